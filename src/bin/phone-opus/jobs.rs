//! `jobs`: reads the store, asks runners through it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::builder::styling::Style;
use phone_opus::internals::agents::AgentEvent;
use phone_opus::internals::base::fault::{Fault, FaultCode};
use phone_opus::internals::base::ids::{JobId, UnixMillis};
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::jobs::store::{
    Ages, CancelState, JobFilter, Limit, Pruned, RetentionPolicy, StoreError, StoreHandle,
};
use phone_opus::internals::jobs::{
    CancelReason, JobRecord, JobState, JobSummary, JournalEntry, JournalEvent, reserve, sweep,
};
use phone_opus::internals::process;
use phone_opus::internals::tools::readers::summary;
use phone_opus::internals::tools::reply::{Context, Detail};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::answer::{self, Form};
use crate::cli::JobsCommand;
use crate::job_word::short;
use crate::logging;
use crate::output::{draw, erase, err, is_lost, out, print, print_json, print_lines, print_prose, say};
use crate::placed;
use crate::progress::{FRAME, turn};
use crate::screen::layout::{CellFit, Column, cut, table};
use crate::screen::{Face, Line, ages, paint};
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
        done.unwrap_or_else(|fault| failed(&fault))
    })
}

/// Says a fault, and the code for it.
fn failed(fault: &Fault) -> ExitCode {
    say(&format!("phone-opus: {fault}"));
    ExitCode::from(if fault.code == FaultCode::InvalidInput { 2 } else { 1 })
}

/// The directory whose jobs are meant.
fn here() -> Option<PathBuf> {
    std::env::current_dir().and_then(std::fs::canonicalize).ok()
}

async fn perform(command: &JobsCommand, store: &StoreHandle, dir: &StateDir) -> Result<ExitCode, Fault> {
    match command {
        JobsCommand::List { limit, state, all, json, .. } => {
            let workspace = here().filter(|_| !all);
            let rows = store.list(JobFilter { workspace, state: *state, limit: usize::from(*limit) }).await?;
            list(&rows, *json);
            Ok(ExitCode::SUCCESS)
        }
        JobsCommand::Show { job, wait, full, no_pager, json, .. } => {
            let job = job.find(store, here().as_deref()).await?;
            let detail = if *full { Detail::Full } else { Detail::Concise };
            let (wait, form) = (Duration::from_secs(*wait), Form::of(*json, *no_pager));
            let record = match wait_for(store, job, wait).await {
                Err(fault) if fault.code == FaultCode::UnknownJob => {
                    return placed::show_job(command.common(), job, wait, (form, detail), fault).await;
                }
                record => record?,
            };
            if out().terminal {
                leave_interrupts_to_the_pager();
            }
            answer::of_job(&record, &Context::default(), form, detail);
            // An answer that could not be printed has no reader.
            if record.state.is_terminal() && !is_lost() {
                store.mark_read(job, UnixMillis::now()).await?;
            }
            Ok(ExitCode::SUCCESS)
        }
        JobsCommand::Tail { job, after, no_follow, json, .. } => {
            let job = job.find(store, here().as_deref()).await?;
            let follow = if *no_follow { Follow::No } else { Follow::ToTheEnd };
            match tail(store, job, *after, follow, *json).await {
                Err(fault) if fault.code == FaultCode::UnknownJob => {
                    Err(placed::no_events(command.common(), job, fault).await)
                }
                told => told,
            }
        }
        JobsCommand::Cancel { job, json, .. } => {
            let job = job.find(store, here().as_deref()).await?;
            match cancel(store, dir, job, *json).await {
                Err(fault) if fault.code == FaultCode::UnknownJob => {
                    let (record, was) = placed::cancel_job(command.common(), job, fault).await?;
                    Ok(cancelled(&record, was, *json))
                }
                ended => ended,
            }
        }
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
            let pruned = while_it_lasts("forgetting", prune(store, dir, policy)).await?;
            let copies = forget_copies(dir, policy.max_unread_age);
            let mut stay = 0;
            for job in &pruned.jobs {
                if dir.remove_job_dir(*job).is_err() {
                    stay += 1;
                }
            }
            if *json {
                let told = json!({"forgotten": pruned.jobs, "directories_left": stay, "damaged_copies": copies});
                print_json(told);
            } else {
                let forgotten = pruned.jobs.len() as u64;
                let were = if forgotten == 1 { "was" } else { "were" };
                print(&format!("{} {were} forgotten.", ages::counted(forgotten, "finished job")));
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
/// Shows on a terminal for how long something goes on, once that is longer than somebody waits without a doubt.
async fn while_it_lasts<T>(what: &str, work: impl Future<Output = T>) -> T {
    /// Until then nothing is shown.
    const PATIENCE: Duration = Duration::from_millis(500);
    let (began, mut frame) = (Instant::now(), 0);
    let mut work = std::pin::pin!(work);
    loop {
        if let Ok(done) = tokio::time::timeout(FRAME, &mut work).await {
            if frame > 0 {
                erase();
            }
            return done;
        }
        if began.elapsed() >= PATIENCE && err().moves {
            let mut line = Line::of(paint::BUSY, turn(frame));
            line.push(paint::PLAIN, &format!(" {what} · {}", ages::elapsed(began.elapsed().as_secs())));
            draw(&[line]);
            frame += 1;
        }
    }
}

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
        print_json(json!({"limits": rows.collect::<Vec<Value>>()}));
        return Ok(ExitCode::SUCCESS);
    }
    if limits.is_empty() {
        print("No agent has reached a usage limit.");
        return Ok(ExitCode::SUCCESS);
    }
    let (face, now) = (out(), UnixMillis::now());
    let rows: Vec<Vec<Line>> = limits.iter().map(|limit| limit_row(limit, face, now)).collect();
    print_lines(&table(&LIMIT_COLUMNS, &rows, face));
    if clear {
        print(&format!("{} forgotten.", ages::counted(limits.len() as u64, "limit")));
    }
    Ok(ExitCode::SUCCESS)
}

const LIMIT_COLUMNS: [Column; 5] = [
    Column::new("AGENT", CellFit::Whole),
    Column::new("MODELS", CellFit::Whole),
    Column::new("PAID BY", CellFit::Whole),
    Column::new("UNTIL", CellFit::Wrap(20)),
    Column::new("TOLD TO JOB", CellFit::Whole),
];

fn limit_row(limit: &Limit, face: Face, now: UnixMillis) -> Vec<Line> {
    let until = if face.terminal { limit.until_in_words(now) } else { limit.until.to_iso8601() };
    vec![
        Line::of(paint::PLAIN, &limit.agent),
        Line::of(paint::PLAIN, limit.scope.family.unwrap_or("all")),
        Line::of(paint::PLAIN, limit.billing.as_str()),
        Line::of(paint::DOUBT, &until),
        id(limit.job, face),
    ]
}

const COLUMNS: [Column; 6] = [
    Column::new("ID", CellFit::Whole),
    Column::new("STATUS", CellFit::Whole),
    Column::new("UNREAD", CellFit::Whole),
    Column::new("AGENT", CellFit::Cut(6)),
    Column::new("ASKED", CellFit::Whole),
    Column::new("PROMPT", CellFit::Cut(12)),
];

/// Shows jobs: on a terminal in a table, in a pipe one a line with tabs between, or as JSON.
fn list(rows: &[JobSummary], as_json: bool) {
    if as_json {
        let rows: Vec<Value> = rows.iter().map(|row| summary(row, Detail::Full)).collect();
        return print_json(json!({"jobs": rows}));
    }
    if rows.is_empty() {
        // A program that reads lines reads none.
        return say("No jobs here. All of them: phone-opus jobs list --all");
    }
    let (face, now) = (out(), UnixMillis::now());
    let rows: Vec<Vec<Line>> = rows.iter().map(|row| job_row(row, face, now)).collect();
    print_lines(&table(&COLUMNS, &rows, face));
}

fn job_row(row: &JobSummary, face: Face, now: UnixMillis) -> Vec<Line> {
    let asked = if face.terminal { ages::ago(row.accepted_at, now) } else { row.accepted_at.to_iso8601() };
    vec![
        id(row.id, face),
        Line::of(look(row.state), row.state.as_str()),
        Line::of(paint::NEW, if row.unread { "unread" } else { "" }),
        Line::of(paint::PLAIN, &row.agent),
        Line::of(paint::DIM, &asked),
        Line::of(paint::PLAIN, &row.prompt_head),
    ]
}

/// An id for whoever reads it: a person types the first characters, a program has the whole.
fn id(job: JobId, face: Face) -> Line {
    Line::of(paint::BOLD, &if face.terminal { short(job) } else { job.to_string() })
}

/// The colour of a state.
fn look(state: JobState) -> Style {
    match state {
        JobState::Queued => paint::DIM,
        JobState::Running => paint::BUSY,
        JobState::Succeeded => paint::GOOD,
        JobState::Failed | JobState::Interrupted => paint::BAD,
        _ => paint::DOUBT,
    }
}

/// How long a journal is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follow {
    ToTheEnd,
    No,
}

/// What happened, in words, and how that looks. In a pipe texts are cut to a line's length as well.
fn describe(event: &JournalEvent) -> (Style, String) {
    let line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(160).collect::<String>();
    let plain = |text: String| (paint::PLAIN, text);
    match event {
        JournalEvent::Dispatched => plain("the runner took the job".to_owned()),
        JournalEvent::ProcessStarted { pid } => plain(format!("the agent started, process {pid}")),
        JournalEvent::ProcessExited { code } => plain(format!("the agent exited with code {code}")),
        JournalEvent::ProcessClosed => plain("nothing of it is left".to_owned()),
        JournalEvent::Truncated => (paint::DOUBT, "the journal is full; the rest is in the outcome only".to_owned()),
        JournalEvent::Agent { event } => match event {
            AgentEvent::Started { session_id, model, key_source, version } => {
                let said =
                    [("session", session_id), ("model", model), ("key source", key_source), ("version", version)];
                let said = said.iter().filter_map(|(name, value)| Some(format!(", {name} {}", value.as_deref()?)));
                plain(line(&format!("introduces itself{}", said.collect::<String>())))
            }
            AgentEvent::Text { text } => plain(format!("says: {}", line(text))),
            AgentEvent::Thinking => (paint::DIM, "thinks".to_owned()),
            AgentEvent::ToolUse { tool } => (paint::BUSY, format!("uses {}", line(tool))),
            AgentEvent::ToolResult => (paint::DIM, "got a tool's result".to_owned()),
            AgentEvent::Denied { denial } => {
                let target = denial.target.as_ref().map_or_else(String::new, |target| format!(" for {target}"));
                (paint::DOUBT, line(&format!("was refused {}{target}", denial.tool)))
            }
            AgentEvent::Retrying { attempt, max, delay_ms, status } => {
                let status = status.map_or_else(String::new, |status| format!(", which answered {status}"));
                let after = *delay_ms as f64 / 1000.0;
                (paint::DOUBT, format!("asks its provider again in {after:.1} s, {attempt} of {max}{status}"))
            }
            AgentEvent::ProviderError { class } => (paint::BAD, line(&format!("its provider failed: {class}"))),
            AgentEvent::Result { result } if result.is_error => {
                let why = result.subtype.as_deref().or(result.error.as_deref()).unwrap_or("it does not say why");
                (paint::BAD, line(&format!("ends with an error: {why}")))
            }
            AgentEvent::Result { result } => {
                let plural = |turns| if turns == 1 { "" } else { "s" };
                let turns =
                    result.num_turns.map_or_else(String::new, |turns| format!(", {turns} turn{}", plural(turns)));
                let cost = result.cost_usd.map_or_else(String::new, |cost| format!(", ${cost:.4}"));
                (paint::GOOD, format!("has answered{turns}{cost}"))
            }
            other => plain(line(&serde_json::to_string(other).unwrap_or_default())),
        },
        other => plain(line(&serde_json::to_string(other).unwrap_or_default())),
    }
}

/// One entry of a journal; on a terminal in one row.
fn entry_line(entry: &JournalEntry, face: Face) -> Line {
    let (style, text) = describe(&entry.event);
    let mut line = Line::of(paint::DIM, &format!("{:>5}  ", entry.seq));
    line.push(style, &text);
    if face.terminal { cut(&line, face.width) } else { line }
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
                    print_json(json!({"seq": entry.seq, "at": entry.at, "event": entry.event}));
                } else {
                    print_lines(&[entry_line(entry, out())]);
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
                let known = short(job);
                print_prose(&format!("Job {known} {}. Its answer: phone-opus jobs show {known}", how(state)));
            }
            return Ok(ExitCode::SUCCESS);
        }
        if follow == Follow::No {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// How a job stands, as the rest of a sentence about it.
fn how(state: JobState) -> &'static str {
    match state {
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "was cancelled",
        JobState::Interrupted => "was interrupted",
        _ => "is not over",
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

/// While a pager has the terminal, Ctrl-C is for it. What cannot be kept ends both, as it did.
pub(crate) fn leave_interrupts_to_the_pager() {
    let _ = process::ignore(&[Signal::INT.as_raw()]);
}

/// Says what became of a job of the fleet that was to be cancelled: how it stands, and how it stood where it was over already.
fn cancelled(record: &JobRecord, was: Option<JobState>, as_json: bool) -> ExitCode {
    let (job, state) = (record.id, record.state);
    if as_json {
        print_json(json!({"job_id": job, "status": state, "changed": was.is_none()}));
    }
    match was {
        Some(was) if !as_json => {
            print_prose(&format!("Job {job} is over already: it {}. Nothing was changed.", how(was)));
        }
        None if state.is_terminal() && !as_json => print(&format!("Job {job} {}.", how(state))),
        None if !state.is_terminal() => {
            say(&format!("phone-opus: job {job} is still {}; its machine has been asked.", state.as_str()));
            return ExitCode::FAILURE;
        }
        _ => {}
    }
    ExitCode::SUCCESS
}

async fn cancel(store: &StoreHandle, dir: &StateDir, job: JobId, as_json: bool) -> Result<ExitCode, Fault> {
    let told = |state: JobState, changed: bool| {
        if as_json {
            print_json(json!({"job_id": job, "status": state, "changed": changed}));
        }
        !as_json
    };
    if let CancelState::Ended { state } = store.request_cancel(job, CancelReason::Requested).await? {
        if told(state, false) {
            print_prose(&format!("Job {job} is over already: it {}. Nothing was changed.", how(state)));
        }
        return Ok(ExitCode::SUCCESS);
    }
    // A job whose runner is gone has nobody to find the request: it is settled here.
    let gone = Fault::new(FaultCode::RunnerLost, "the job's runner is gone.");
    let _ = sweep::settle(store, dir, job, gone).await?;
    let record = wait_for(store, job, CANCEL_WAIT).await?;
    if record.state.is_terminal() {
        if told(record.state, true) {
            print(&format!("Job {job} {}.", how(record.state)));
        }
        // Of a job that was asked for in a shell, its user knows by this. A client that asked for one has to be told.
        if record.invocation.is_none() && record.state == JobState::Cancelled && !is_lost() {
            store.mark_read(job, UnixMillis::now()).await?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    told(record.state, true);
    say(&format!("phone-opus: job {job} is still {}; its runner has been asked.", record.state.as_str()));
    Ok(ExitCode::FAILURE)
}

#[cfg(test)]
mod tests {
    use phone_opus::internals::agents::AgentResult;
    use phone_opus::internals::jobs::PermissionDenial;

    use super::*;

    #[test]
    fn every_event_is_told_in_words() {
        let said = |event: AgentEvent| describe(&JournalEvent::Agent { event }).1;
        let result = |is_error: bool| {
            let mut result = AgentResult::default();
            result.is_error = is_error;
            result.subtype = Some("error_max_turns".to_owned());
            (result.num_turns, result.cost_usd) = (Some(3), Some(0.5));
            result
        };
        for (event, want) in [
            (
                AgentEvent::Started {
                    session_id: Some("s".to_owned()),
                    model: Some("m".to_owned()),
                    key_source: None,
                    version: Some("1.2".to_owned()),
                },
                "introduces itself, session s, model m, version 1.2",
            ),
            (AgentEvent::Text { text: "one\n two".to_owned() }, "says: one two"),
            (AgentEvent::ToolUse { tool: "Read".to_owned() }, "uses Read"),
            (
                AgentEvent::Denied {
                    denial: PermissionDenial { tool: "Write".to_owned(), target: Some("/x".to_owned()) },
                },
                "was refused Write for /x",
            ),
            (
                AgentEvent::Retrying { attempt: 2, max: 10, delay_ms: 1500, status: Some(529) },
                "asks its provider again in 1.5 s, 2 of 10, which answered 529",
            ),
            (AgentEvent::ProviderError { class: "rate_limit".to_owned() }, "its provider failed: rate_limit"),
            (AgentEvent::Result { result: Box::new(result(true)) }, "ends with an error: error_max_turns"),
            (AgentEvent::Result { result: Box::new(result(false)) }, "has answered, 3 turns, $0.5000"),
        ] {
            assert_eq!(said(event), want);
        }
        assert_eq!(describe(&JournalEvent::ProcessStarted { pid: 7 }).1, "the agent started, process 7");
    }
}
