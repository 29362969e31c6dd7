//! `jobs`: reads the store, asks runners through it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use phone_opus::fault::{Fault, FaultCode};
use phone_opus::ids::{JobId, UnixMillis};
use phone_opus::jobs::{CancelReason, JobRecord, sweep};
use phone_opus::protocol::wire::ReplyText;
use phone_opus::state_dir::StateDir;
use phone_opus::store::{CancelState, JobFilter, StoreHandle};
use phone_opus::tools::readers::summary;
use phone_opus::tools::reply::{self, Context, Detail, Render, Shape};
use serde_json::Value;

use crate::cli::JobsCommand;
use crate::logging;
use crate::settings::{print, refused, runtime, say, state_dir};

/// How often a job of another process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long a cancel waits for the job's end.
const CANCEL_WAIT: Duration = Duration::from_secs(10);

/// Runs one of the commands.
pub(crate) fn run(command: &JobsCommand) -> ExitCode {
    logging::start();
    let (JobsCommand::List { common, .. } | JobsCommand::Show { common, .. } | JobsCommand::Cancel { common, .. }) =
        command;
    let dir = match state_dir(common) {
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
            };
            if record.state.is_terminal() {
                store.mark_read(*job, UnixMillis::now()).await?;
            }
            let reply = reply::job(&record, &Context::default(), shape);
            if let ReplyText::Plain(text) = &reply.text {
                print(text);
            }
            Ok(ExitCode::SUCCESS)
        }
        JobsCommand::Cancel { job, .. } => cancel(store, dir, *job).await,
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
