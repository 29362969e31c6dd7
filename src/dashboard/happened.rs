//! Faults, restarts and upgrades of a state directory's hosts, from their log.
//!
//! Owns: how far back it is shown, and how many. May not know: the log's lines (`seen::said`).
//!
//! Invariant: the log is read when it has changed, and not on the runtime's thread.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::base::ids::UnixMillis;
use crate::base::state_dir::StateDir;
use crate::base::tasks;
use crate::seen::past::Period;
use crate::seen::said::{self, LogSaid};

/// How far back: the longest that anybody looks for last week's trouble.
const BACK: i64 = 14 * 24 * 60 * 60 * 1000;

/// Happenings that are shown: more than a person reads.
const SHOWN: usize = 500;

/// What was read last.
#[derive(Debug)]
pub struct Happened {
    log: PathBuf,
    /// The log as it was: its number, its size.
    was: Option<(u64, u64)>,
    shown: Vec<Value>,
}

impl Happened {
    /// Of this directory.
    #[must_use]
    pub fn of(dir: &StateDir) -> Self {
        Self { log: dir.telemetry(), was: None, shown: Vec::new() }
    }

    /// Reads the log where it has changed.
    pub async fn look(&mut self) {
        let (log, was) = (self.log.clone(), self.was);
        let until = UnixMillis::now();
        let period = Period { since: UnixMillis(until.0 - BACK), until };
        let read = tasks::spawn_blocking(move || {
            let is = std::fs::metadata(&log).ok().map(|found| (found.ino(), found.len()))?;
            (Some(is) != was).then(|| (is, said::read(&log, period)))
        });
        if let Ok(Some((is, said))) = read.await {
            self.was = Some(is);
            self.shown = shown(&said);
        }
    }

    /// As pages have it, oldest first.
    #[must_use]
    pub fn shown(&self) -> Value {
        json!(self.shown)
    }
}

fn shown(said: &LogSaid) -> Vec<Value> {
    let restarts = said
        .restarts
        .iter()
        .map(|one| (one.at, json!({"at": one.at, "what": "restart", "generation": one.generation})));
    let faults = said
        .faults
        .iter()
        .map(|one| (one.at, json!({"at": one.at, "what": "fault", "code": one.code, "stage": one.stage})));
    let rollouts = said.rollouts.iter().map(|one| {
        let told = json!({"at": one.at, "what": "upgrade", "outcome": one.outcome, "verdict": one.verdict, "gap_ms": one.gap_ms});
        (one.at, told)
    });
    let mut all: Vec<(UnixMillis, Value)> = restarts.chain(faults).chain(rollouts).collect();
    all.sort_by_key(|(at, _)| *at);
    let more = all.len().saturating_sub(SHOWN);
    all.drain(..more);
    all.into_iter().map(|(_, told)| told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_happened_is_shown_in_its_order_and_a_log_that_grows_is_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = StateDir::at(dir.path());
        let mut happened = Happened::of(&dir);
        happened.look().await;
        assert_eq!(happened.shown(), json!([]));
        let now = UnixMillis::now().0;
        let fault = format!(
            "{{\"type\":\"fault\",\"ts_unix_ms\":{},\"code\":\"worker_lost\",\"stage\":\"worker\"}}\n",
            now - 3
        );
        let restart = format!("{{\"type\":\"worker_restart\",\"ts_unix_ms\":{},\"generation\":3}}\n", now - 2);
        std::fs::write(dir.telemetry(), restart.clone()).expect("written");
        happened.look().await;
        assert_eq!(happened.shown(), json!([{"at": now - 2, "what": "restart", "generation": 3}]));
        std::fs::write(dir.telemetry(), restart.clone() + &fault).expect("written");
        happened.look().await;
        assert_eq!(
            happened.shown()[0],
            json!({"at": now - 3, "what": "fault", "code": "worker_lost", "stage": "worker"})
        );
        std::fs::write(dir.telemetry(), restart.repeat(SHOWN + 7)).expect("written");
        happened.look().await;
        assert_eq!(happened.shown().as_array().map(Vec::len), Some(SHOWN));
    }
}
