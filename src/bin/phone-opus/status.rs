//! `status`: who serves here, what is asked, and what is waited for.
//!
//! Owns: what people and scripts are shown. May not know: how a queue is ordered, how a daemon answers.
//!
//! Everything is looked up where it lies: the queue in the store, the daemon by its own word. So it says the same of the queue with
//! a daemon and without one, and starts and makes nothing.

use std::collections::HashMap;
use std::process::ExitCode;

use phone_opus::internals::base::ids::UnixMillis;
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::daemon::ask::{ANSWER, ask};
use phone_opus::internals::daemon::control::{DaemonAnswer, DaemonStatus};
use phone_opus::internals::daemon::start::{DaemonLook, look};
use phone_opus::internals::jobs::admission::QueueRow;
use phone_opus::internals::jobs::store::StoreHandle;
use phone_opus::internals::jobs::{JobMode, JobState};
use serde_json::{Value, json};

use crate::cli::StatusOptions;
use crate::logging;
use crate::output::{print, say};
use crate::settings::{chain, refused, runtime, state_dir};

/// Shows it. Exit code 1 when the store does not say.
pub(crate) fn run(options: &StatusOptions) -> ExitCode {
    logging::start();
    let dir = match state_dir(&options.common) {
        Ok(dir) => dir,
        Err(error) => return refused(&error),
    };
    let daemon = daemon(&dir);
    let queue = match queue(&dir) {
        Ok(queue) => queue,
        Err(why) => {
            say(&format!("phone-opus: failed to {why}"));
            return ExitCode::FAILURE;
        }
    };
    if options.json {
        let jobs: Vec<Value> = queue.iter().map(job).collect();
        print(&json!({"daemon": daemon, "jobs": jobs}).to_string());
    } else {
        print(&shown(daemon.as_ref(), &queue));
    }
    ExitCode::SUCCESS
}

/// The daemon, where one answers.
fn daemon(dir: &StateDir) -> Option<DaemonStatus> {
    let DaemonLook::There(stream) = look(dir, None) else { return None };
    match ask(&stream, r#"{"type":"status"}"#, ANSWER) {
        Ok(DaemonAnswer::Status(status)) => Some(status),
        _ => None,
    }
}

/// What waits and what runs, in the order of acceptance. Where nothing was ever asked there is no store, and none is made.
fn queue(dir: &StateDir) -> Result<Vec<QueueRow>, String> {
    if !dir.database().exists() {
        return Ok(Vec::new());
    }
    let runtime = runtime().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let store = StoreHandle::sqlite(dir.clone());
        let rows = store.queue().await;
        store.close().await;
        rows.map_err(|error| chain(&error))
    })
}

fn job(row: &QueueRow) -> Value {
    json!({
        "job_id": row.job,
        "state": row.state,
        "mode": row.mode,
        "workspace": row.workspace.display().to_string(),
        "accepted_at": row.accepted_at,
    })
}

/// The same for people.
fn shown(daemon: Option<&DaemonStatus>, queue: &[QueueRow]) -> String {
    let mut lines = vec![match daemon {
        Some(status) => {
            format!("a daemon serves {} clients (process {})", status.connections.saturating_sub(1), status.pid)
        }
        None => "no daemon is running".to_owned(),
    }];
    let now = UnixMillis::now();
    let mut places: HashMap<bool, usize> = HashMap::new();
    for row in queue {
        let runs = row.state == JobState::Running;
        let place = places.entry(runs).or_default();
        *place += 1;
        let stands = if runs { "runs".to_owned() } else { format!("waits, accepted as number {place}") };
        let since = now.since(row.accepted_at) / 1000;
        let who = match row.mode {
            JobMode::Sync => "its caller waits for it",
            JobMode::Background => "in the background",
        };
        lines.push(format!("{} {stands}, for {since} s, {who}: {}", row.job, row.workspace.display()));
    }
    if queue.is_empty() {
        lines.push("nothing is asked".to_owned());
    }
    lines.join("\n")
}
