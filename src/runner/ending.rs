//! The last thing a runner does: its job's outcome becomes durable, however long the store refuses it.
//!
//! Owns: the order of the places an outcome may go, and what the host is told meanwhile. May not know: agents, the queue.
//!
//! ```text
//! the store ──refuses──▶ a file beside the job's lock ──no room──▶ the reserve is given up ──▶ both again, with pauses
//!                             and, before long, the host's pipe (a caller who waits gets the answer, `stored: false`)
//! ```
//!
//! Invariants: (1) L4: a job is terminal when the store says so, and nobody is told so before; (2) an outcome is never let
//! go of while its runner lives, unless it is safe in the file or the store has forgotten the job; (3) a runner that waits
//! touches its lock each time, so that a host can tell it from one that hangs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::signal::unix::Signal;
use tokio::sync::Notify;

use super::patience::is_passing;
use crate::agents::RunVerdict;
use crate::base::ids::UnixMillis;
use crate::base::state_dir::StateDir;
use crate::base::tasks;
use crate::exec::{OutputStream, ProcessSession};
use crate::jobs::lock::JobLock;
use crate::jobs::outcome_file::{self, LeftOutcome};
use crate::jobs::store::{StoreError, StoreHandle};
use crate::jobs::{JobRecord, reserve};

/// The first pause between two tries, and the longest: a store that is busy is free within seconds, a full disk is not.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// How long a store may be busy before the host is told the outcome. Twice what another process's write may take.
const TOLD_AFTER: Duration = Duration::from_secs(10);

/// How long a file may take to be written. A disk that hangs keeps the thread that writes it, not the runner.
const FILE_BOUND: Duration = Duration::from_secs(10);

/// How long the host may take to ask for an outcome that nobody else will ever have.
const FETCH_BOUND: Duration = Duration::from_secs(10);

/// Bytes of an outcome that the pipe takes: what a process session retains, with some room.
const TOLD_MOST: usize = 900 * 1024;

/// What the outcome of a job is read as over its runner's pipe, as if it were a process beside the agent.
#[must_use]
pub fn outcome_channel(process_id: &str) -> String {
    format!("{process_id}/outcome")
}

/// What became of an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The store has it.
    Stored,
    /// The store will have it from the file: this runner was told to end first.
    Left,
    /// The store does not know the job any more: its directory was emptied or replaced.
    Forgotten,
}

/// What the host may ask for.
#[derive(Clone)]
pub(super) struct Told {
    /// The outcome, once it is told.
    pub(super) session: ProcessSession,
    /// It was asked for.
    pub(super) fetched: Arc<Notify>,
}

impl Told {
    pub(super) fn new() -> Self {
        Self { session: ProcessSession::new(), fetched: Arc::new(Notify::new()) }
    }
}

/// What an ending works with.
pub(super) struct Ending<'a> {
    pub(super) store: &'a StoreHandle,
    pub(super) dir: &'a StateDir,
    pub(super) lock: &'a JobLock,
    /// The job as it was accepted.
    pub(super) record: &'a JobRecord,
    /// The agent's process.
    pub(super) agent: &'a ProcessSession,
    pub(super) told: &'a Told,
    pub(super) terminate: &'a mut Signal,
}

impl Ending<'_> {
    /// Makes the job terminal.
    ///
    /// # Errors
    ///
    /// The job's journal or state does not take the outcome; asking again is of no use.
    pub(super) async fn perform(mut self, verdict: &RunVerdict) -> Result<Ended, StoreError> {
        let job = self.record.id;
        let left = LeftOutcome { job, state: verdict.state, outcome: verdict.outcome.clone(), at: UnixMillis::now() };
        let began = Instant::now();
        let mut pause = PAUSES.0;
        let (mut kept, mut told) = (false, false);
        loop {
            // Refused means: a first try that seemed to fail had reached the disk, or the job was settled by a sweep.
            let error = match self.store.finish(job, left.state, left.outcome.clone(), left.at).await {
                Ok(_) => {
                    if kept {
                        outcome_file::forget(self.dir, job);
                    }
                    return Ok(Ended::Stored);
                }
                Err(error) => error,
            };
            match error {
                StoreError::UnknownJob(_) => {
                    self.tell(&left);
                    let _ = tokio::time::timeout(FETCH_BOUND, self.told.fetched.notified()).await;
                    return Ok(Ended::Forgotten);
                }
                StoreError::Unstorable { .. } | StoreError::Ended { .. } => return Err(error),
                _ => tracing::warn!(%error, "the outcome is not stored yet"),
            }
            if !kept {
                kept = self.keep(&left).await;
            }
            if matches!(error, StoreError::Full | StoreError::Io { .. }) && reserve::give_up(self.dir) {
                tracing::warn!("the disk is full: the reserve was given up");
                continue;
            }
            if !told && (began.elapsed() >= TOLD_AFTER || !is_passing(&error)) {
                told = true;
                self.tell(&left);
            }
            self.lock.touch();
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSES.1),
                // What is in no safe place is not let go of.
                _ = self.terminate.recv() => if kept { return Ok(Ended::Left) },
            }
        }
    }

    /// Keeps the outcome in the job's directory; whether it is safe there.
    async fn keep(&mut self, left: &LeftOutcome) -> bool {
        let (dir, left) = (self.dir.clone(), left.clone());
        let writing = tasks::spawn_blocking(move || {
            outcome_file::keep(&dir, &left).or_else(|error| {
                if reserve::give_up(&dir) {
                    tracing::warn!("the disk is full: the reserve was given up");
                    return outcome_file::keep(&dir, &left);
                }
                Err(error)
            })
        });
        match tokio::time::timeout(FILE_BOUND, writing).await {
            Ok(Ok(Ok(()))) => true,
            Ok(Ok(Err(error))) => {
                tracing::warn!(%error, "the outcome cannot be kept in a file either");
                false
            }
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// Lets the host have the outcome: for a caller who is there.
    fn tell(&self, left: &LeftOutcome) {
        let Some(bytes) = told_bytes(self.record, left) else { return };
        let mut rest = Bytes::from(bytes);
        while !rest.is_empty() {
            let chunk = rest.split_to(rest.len().min(64 * 1024));
            let _ = self.told.session.publish_output(OutputStream::Stdout, chunk);
        }
        let _ = self.told.session.publish_exited(0, None);
        let _ = self.told.session.publish_closed();
        // Where no agent was started, the host has not heard of its end.
        let _ = self.agent.publish_exited(-1, None);
    }
}

/// The job as it would be stored, cut to what the pipe takes.
fn told_bytes(record: &JobRecord, left: &LeftOutcome) -> Option<Vec<u8>> {
    let mut record = JobRecord {
        state: left.state,
        finished_at: Some(left.at),
        outcome: Some(left.outcome.clone()),
        ..record.clone()
    };
    loop {
        let bytes = serde_json::to_vec(&record).ok()?;
        if bytes.len() <= TOLD_MOST {
            return Some(bytes);
        }
        let outcome = record.outcome.as_mut()?;
        let answer = outcome.response.as_mut().filter(|answer| answer.len() > 64 * 1024);
        let longest = match answer {
            Some(answer) if answer.len() >= record.request.prompt.len() => {
                outcome.response_cut = true;
                answer
            }
            _ => &mut record.request.prompt,
        };
        if longest.len() < 1024 {
            // What is left has no bound of its own: counts by model.
            *outcome = crate::jobs::JobOutcome { response: outcome.response.take(), ..Default::default() };
            let bytes = serde_json::to_vec(&record).ok()?;
            return (bytes.len() <= TOLD_MOST).then_some(bytes);
        }
        let mut half = longest.len() / 2;
        while !longest.is_char_boundary(half) {
            half -= 1;
        }
        longest.truncate(half);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::{ConsultRequest, JobOutcome, JobState};

    fn record(prompt: &str) -> JobRecord {
        JobRecord::plain(JobState::Running, ConsultRequest::new(prompt).cwd("/w"))
    }

    #[test]
    fn an_outcome_of_any_size_is_told_within_what_the_pipe_takes() {
        for (prompt, answer, cut) in [
            ("why?".to_owned(), "because".to_owned(), false),
            ("why?".to_owned(), "é".repeat(4 << 20), true),
            ("why?".to_owned(), "\u{1}".repeat(1 << 20), true),
            ("w".repeat(2 << 20), "because".to_owned(), false),
            ("w".repeat(2 << 20), "b".repeat(2 << 20), true),
        ] {
            let record = record(&prompt);
            let outcome = JobOutcome { response: Some(answer.clone()), ..JobOutcome::default() };
            let left = LeftOutcome { job: record.id, state: JobState::Succeeded, outcome, at: UnixMillis(9) };
            let bytes = told_bytes(&record, &left).expect("something is told");
            assert!(bytes.len() <= TOLD_MOST);
            let told: JobRecord = serde_json::from_slice(&bytes).expect("a record");
            let outcome = told.outcome.expect("an outcome");
            assert_eq!((told.state, told.finished_at), (JobState::Succeeded, Some(UnixMillis(9))));
            assert_eq!(outcome.response_cut, cut);
            assert!(answer.starts_with(&outcome.response.expect("an answer")));
        }
    }
}
