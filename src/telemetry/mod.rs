//! Telemetry: what happened, for whoever runs this at night.
//!
//! Owns: the record types, the bounded intake, the counters, the log file. May not know: prompts and answers; no
//! record has a field that could hold one (L13).
//!
//! Invariants (L10): (1) recording never waits; (2) what is lost is counted; (3) losing all of it changes nothing else.

pub mod counters;
pub mod log;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::fault::{Fault, FaultCode};
use crate::ids::{Generation, JobId, SessionNumber, UnixMillis};
use crate::jobs::JobState;
use crate::protocol::session::FinishedAs;

/// Records the intake holds. About 100 bytes each; at the highest rate measured it is a few milliseconds of work.
/// When it is full, records are dropped and counted.
const INTAKE: usize = 16 * 1024;

/// One thing that happened.
#[derive(Debug)]
pub enum Record {
    /// A request that is no tool call was finished.
    Request {
        /// Its method.
        method: &'static str,
        /// How it ended.
        result: FinishedAs,
    },
    /// A tool call was finished.
    ToolCall(Box<ToolCallRecord>),
    /// A worker was started again.
    WorkerRestart {
        /// The new incarnation.
        generation: Generation,
    },
    /// A job changed its state.
    JobState {
        /// Which job.
        job: JobId,
        /// To which state.
        state: JobState,
        /// Why it did not succeed.
        code: Option<FaultCode>,
        /// What it cost in US dollars.
        cost_usd: Option<f64>,
    },
    /// Something failed.
    Fault(Box<Fault>),
}

/// A finished tool call.
#[derive(Debug)]
pub struct ToolCallRecord {
    /// When it was finished.
    pub at: UnixMillis,
    /// The session it came in on.
    pub session: SessionNumber,
    /// Its id as the client wrote it, shortened to 64 characters.
    pub request_id: String,
    /// The tool.
    pub tool: Arc<str>,
    /// The directory it was about.
    pub path_hint: Option<String>,
    /// From the line's arrival to its answer.
    pub latency: Duration,
    /// How it ended.
    pub result: FinishedAs,
    /// The job it was about.
    pub job: Option<JobId>,
    /// The worker that gave the answer; [`Generation::NONE`] when none did.
    pub generation: Generation,
    /// Attempts after the first.
    pub replays: u32,
}

/// What can be put into the intake.
#[derive(Debug)]
pub enum Intake {
    /// Something happened.
    Record(Record),
    /// What was counted so far?
    Snapshot(oneshot::Sender<counters::Snapshot>),
}

/// The sending half of the intake; cheap to clone.
#[derive(Debug, Clone)]
pub struct TelemetryHandle {
    intake: mpsc::Sender<Intake>,
    dropped: Arc<AtomicU64>,
}

impl TelemetryHandle {
    /// An intake and the end its owner reads.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Intake>) {
        let (intake, records) = mpsc::channel(INTAKE);
        (Self { intake, dropped: Arc::new(AtomicU64::new(0)) }, records)
    }

    /// Records something. Never waits; a record that finds no room is counted and forgotten.
    pub fn record(&self, record: Record) {
        if self.intake.try_send(Intake::Record(record)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records that found no room so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// What was counted so far; `None` when telemetry is not there.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future asks for nothing.
    pub async fn snapshot(&self) -> Option<counters::Snapshot> {
        let (reply, answer) = oneshot::channel();
        self.intake.send(Intake::Snapshot(reply)).await.ok()?;
        let mut snapshot = answer.await.ok()?;
        snapshot.totals.dropped += self.dropped();
        Some(snapshot)
    }
}
