//! `jobs`: reads the store, asks runners through it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use phone_opus::internals::agents::AgentEvent;
use phone_opus::internals::base::fault::{Fault, FaultCode};
use phone_opus::internals::base::ids::{JobId, UnixMillis};
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::jobs::store::{
    Ages, CancelState, JobFilter, Pruned, RetentionPolicy, StoreError, StoreHandle,
};
use phone_opus::internals::jobs::{CancelReason, JobRecord, JournalEvent, reserve, sweep};
use phone_opus::internals::protocol::wire::ReplyText;
use phone_opus::internals::tools::readers::summary;
use phone_opus::internals::tools::reply::{self, Context, Detail, Reader, Render, Shape};
use serde_json::{Value, json};

use crate::cli::JobsCommand;
use crate::logging;
use crate::output::{is_lost, print, say};
use crate::settings::{refused, runtime, state_dir};

/// How often a job of another process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long a cancel waits for the job's end.
const CANCEL_WAIT: Duration = Duration::from_secs(10);

/// Runs one of the commands.
pub(crate) fn run(command: &JobsCommand) -> ExitCode {
    logging::start();
    let dir = match state_dir(command.common()) {
        Ok(dir) => dir,
        Err(error) => return refused(&error),
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return refused(&error),
    };
    runtime.block_on(async {
        let store = StoreHandle::sqlite(dir.clone());
        let done = perform(command, &store, &dir).await;
        store.close().await;
        done.unwrap_or_else(|fault| {
            say(&format!("phone-opus: {fault}"));
            ExitCode::FAILURE
        })
    })
}

async fn perform(command: &JobsCommand, store: &StoreHandle, dir: &StateDir) -> Result<ExitCode, Fault> {
    match command {
        JobsCommand::List { limit, state, all, json, .. } => {
            let here = std::env::current_dir().and_then(std::fs::canonicalize).ok();
            let workspace = here.filter(|_| !all);
            let rows = store.list(JobFilter { workspace, state: *state, limit: usize::from(*limit) }).await?;
            if *json {
                let rows: Vec<Value> = rows.iter().map(|row| summary(row, Detail::Full)).collect();
                print(&Value::Array(rows).to_string());
            } else if rows.is_empty() {
                print("No jobs here. All of them: phone-opus jobs list --all");
            }
            if !*json {
                for row in rows {
                    let age = UnixMillis::now().since(row.accepted_at) / 1000;
                    let unread = if row.unread { "unread" } else { "" };
                    print(&format!(
                        "{}  {:<11} {:<6} {:<8} {:>6} s ago  {}",
                        row.id,
                        row.state.as_str(),
                        unread,
                        row.agent,
                        age,
                        row.prompt_head
                    ));
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        JobsCommand::Show { job, wait, full, json, .. } => {
            let record = wait_for(store, *job, Duration::from_secs(*wait)).await?;
            let shape = Shape {
                render: if *json { Render::Json } else { Render::Porcelain },
                detail: if *full { Detail::Full } else { Detail::Concise },
                budget: usize::MAX / 4,
                structured: true,
            };
            let context = Context { reader: Reader::Person, ..Context::default() };
            let reply = reply::job(&record, &context, shape);
            if let ReplyText::Plain(text) = &reply.text {
                print(text);
            }
            // An answer that could not be printed has no reader.
            if record.state.is_terminal() && !is_lost() {
                store.mark_read(*job, UnixMillis::now()).await?;
            }
            Ok(ExitCode::SUCCESS)
        }
        JobsCommand::Tail { job, after, no_follow, json, .. } => {
            tail(store, *job, *after, if *no_follow { Follow::No } else { Follow::ToTheEnd }, *json).await
        }
        JobsCommand::Cancel { job, .. } => cancel(store, dir, *job).await,
        JobsCommand::Prune { older_than, keep, json, .. } => {
            let age = Duration::from_secs(u64::from(*older_than) * 24 * 60 * 60);
            let policy = RetentionPolicy {
                max_age: age,
                // An answer nobody has read is kept three times as long, as always.
                max_unread_age: age * 3,
                max_bytes: keep.saturating_mul(1024 * 1024),
                ages: Ages::Clock,
            };
            dir.remove_remnants();
            let pruned = prune(store, dir, policy).await?;
            let copies = forget_copies(dir, policy.max_unread_age);
            let mut stay = 0;
            for job in &pruned.jobs {
                if dir.remove_job_dir(*job).is_err() {
                    stay += 1;
                }
            }
            if *json {
                let told = json!({"forgotten": pruned.jobs, "directories_left": stay, "damaged_copies": copies});
                print(&told.to_string());
            } else {
                print(&format!("{} finished jobs were forgotten.", pruned.jobs.len()));
                if copies > 0 {
                    print(&format!("{copies} copies of a damaged job store were removed."));
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        JobsCommand::Limits { clear, json, .. } => limits(store, *clear, *json).await,
    }
}

/// Tries to forget jobs once the reserve was given up, and between two of them: a store that could not be opened is opened
/// again after a second.
const PRUNE_TRIES: u32 = 4;
const PRUNE_AGAIN: Duration = Duration::from_millis(1100);

/// Forgets jobs; on a full disk with the room that is kept for it, since forgetting is written down first.
async fn prune(store: &StoreHandle, dir: &StateDir, policy: RetentionPolicy) -> Result<Pruned, Fault> {
    let mut pruned = store.prune(policy, UnixMillis::now()).await;
    let full = |pruned: &Result<Pruned, StoreError>| matches!(pruned, Err(StoreError::Full | StoreError::Io { .. }));
    if full(&pruned) && reserve::give_up(dir) {
        say("phone-opus: the disk is full; the room that is kept for it was given up.");
        let mut tries = 0;
        while full(&pruned) && tries < PRUNE_TRIES {
            tries += 1;
            tokio::time::sleep(PRUNE_AGAIN).await;
            pruned = store.prune(policy, UnixMillis::now()).await;
        }
    }
    Ok(pruned?)
}

/// Removes databases that were moved aside as damaged and are old enough: what is in them is forgotten too. Returns how many
/// files.
fn forget_copies(dir: &StateDir, age: Duration) -> usize {
    let database = dir.database();
    let Some(prefix) = database.file_name().and_then(|name| name.to_str()).map(|name| format!("{name}.corrupt-"))
    else {
        return 0;
    };
    let is_old = |path: &std::path::Path| {
        let touched = std::fs::symlink_metadata(path).and_then(|found| found.modified());
        touched.is_ok_and(|touched| touched.elapsed().is_ok_and(|passed| passed >= age))
    };
    let entries = std::fs::read_dir(dir.root()).into_iter().flatten().filter_map(Result::ok);
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)))
        .filter(|entry| is_old(&entry.path()))
        .filter(|entry| std::fs::remove_file(entry.path()).is_ok())
        .count()
}

async fn limits(store: &StoreHandle, clear: bool, as_json: bool) -> Result<ExitCode, Fault> {
    let limits = store.limits(UnixMillis::now()).await?;
    if clear {
        store.clear_limits().await?;
    }
    if as_json {
        let rows = limits.iter().map(
            |limit| json!({"agent": limit.agent, "billing": limit.billing, "account": limit.account, "models": limit.scope.family,
                           "until": limit.until, "job_id": limit.job}),
        );
        print(&Value::Array(rows.collect()).to_string());
        return Ok(ExitCode::SUCCESS);
    }
    if limits.is_empty() {
        print("No agent has reached a usage limit.");
    }
    for limit in limits {
        let done = if clear { "forgotten" } else { "nothing is started for it" };
        let models = limit.scope.family.map_or_else(String::new, |family| format!(", {family} models"));
        print(&format!(
            "{} ({}{models}): until {}, as job {} was told; {done}",
            limit.agent,
            limit.billing.as_str(),
            limit.until_in_words(UnixMillis::now()),
            limit.job
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// How long a journal is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follow {
    ToTheEnd,
    No,
}

/// One line about what happened.
fn describe(event: &JournalEvent) -> String {
    let line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(160).collect::<String>();
    match event {
        JournalEvent::Dispatched => "the runner took the job".to_owned(),
        JournalEvent::ProcessStarted { pid } => format!("the agent started, process {pid}"),
        JournalEvent::ProcessExited { code } => format!("the agent exited with code {code}"),
        JournalEvent::ProcessClosed => "nothing of it is left".to_owned(),
        JournalEvent::Truncated => "the journal is full; the rest is in the outcome only".to_owned(),
        JournalEvent::Agent { event } => match event {
            AgentEvent::Text { text } => format!("says: {}", line(text)),
            AgentEvent::Thinking => "thinks".to_owned(),
            AgentEvent::ToolUse { tool } => format!("uses {}", line(tool)),
            AgentEvent::ToolResult => "got a tool's result".to_owned(),
            other => line(&serde_json::to_string(other).unwrap_or_default()),
        },
    }
}

async fn tail(store: &StoreHandle, job: JobId, after: u64, follow: Follow, as_json: bool) -> Result<ExitCode, Fault> {
    /// Entries read at a time.
    const PAGE: usize = 200;
    let mut seen = after;
    loop {
        // Looked at first: what was journalled before the end is then read below.
        let state = store.glance(job).await?.state;
        loop {
            let entries = store.events(job, seen, PAGE, 256 * 1024).await?;
            let Some(last) = entries.last() else { break };
            seen = last.seq;
            for entry in &entries {
                if as_json {
                    print(&json!({"seq": entry.seq, "at": entry.at, "event": entry.event}).to_string());
                } else {
                    print(&format!("{:>5}  {}", entry.seq, describe(&entry.event)));
                }
                if is_lost() {
                    return Ok(ExitCode::FAILURE);
                }
            }
        }
        if is_lost() {
            return Ok(ExitCode::FAILURE);
        }
        if state.is_terminal() {
            if !as_json {
                print(&format!("Job {job} is {}. Its answer: phone-opus jobs show {job}", state.as_str()));
            }
            return Ok(ExitCode::SUCCESS);
        }
        if follow == Follow::No {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn wait_for(store: &StoreHandle, job: JobId, wait: Duration) -> Result<JobRecord, Fault> {
    let began = Instant::now();
    loop {
        if store.glance(job).await?.state.is_terminal() || began.elapsed() >= wait {
            return Ok(store.job(job).await?);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn cancel(store: &StoreHandle, dir: &StateDir, job: JobId) -> Result<ExitCode, Fault> {
    if let CancelState::Ended { state } = store.request_cancel(job, CancelReason::Requested).await? {
        print(&format!("Job {job} was already {}; nothing was changed.", state.as_str()));
        return Ok(ExitCode::SUCCESS);
    }
    // A job whose runner is gone has nobody to find the request: it is settled here.
    let gone = Fault::new(FaultCode::RunnerLost, "the job's runner is gone.");
    let _ = sweep::settle(store, dir, job, gone).await?;
    let record = wait_for(store, job, CANCEL_WAIT).await?;
    if record.state.is_terminal() {
        print(&format!("Job {job} is {}.", record.state.as_str()));
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("phone-opus: job {job} is still {}; its runner has been asked.", record.state.as_str()));
    Ok(ExitCode::FAILURE)
}
