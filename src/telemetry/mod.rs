//! Telemetry: what happened, for whoever runs this at night.
//!
//! Owns: the record types, the bounded intake, the counters, the log file. May not know: prompts and answers; no
//! record has a field that could hold one (L13).
//!
//! Invariants (L10): (1) recording never waits; (2) what is lost is counted; (3) losing all of it changes nothing else.

pub mod collector;
pub mod counters;
pub mod log;
pub mod metrics;
#[cfg(any(test, feature = "otlp"))]
pub mod otlp;
pub mod traces;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use self::traces::{CallTrace, Traces};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{Generation, JobId, SessionNumber};
use crate::jobs::JobState;
use crate::protocol::envelope::IdToken;
use crate::protocol::session::FinishedAs;

/// Records the intake holds. About 100 bytes each; at the highest rate measured it is a few milliseconds of work.
/// When it is full, records are dropped and counted.
const INTAKE: usize = 16 * 1024;

/// Records after which the reader is woken before its time; small beside the intake, large beside a wake-up's cost.
const BATCH: usize = 512;

/// One thing that happened.
#[derive(Debug)]
pub enum Record {
    /// A request that is no tool call was finished.
    Request {
        method: &'static str,
        /// How it ended.
        result: FinishedAs,
    },
    /// A tool call was finished.
    ToolCall(ToolCallRecord),
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
    /// A rollout has ended: another image serves, or a candidate was not adopted.
    Rollout(RolloutRecord),
    /// Something failed.
    Fault(Box<Fault>),
}

/// A rollout that has ended.
#[derive(Debug, Clone)]
pub struct RolloutRecord {
    /// `adopted`, `rejected` or `failed`.
    pub outcome: &'static str,
    /// What was wrong, as one word.
    pub verdict: Option<&'static str>,
    /// Who began it: `watch`, `reload`, `signal` or `variable`.
    pub by: &'static str,
    /// From the first look to the end; nothing for the image that took over, which has not seen the look.
    pub took: Duration,
    /// How long nobody served: from what the image before passed on to its restoring. Only the image that took over knows.
    pub gap: Option<Duration>,
}

/// A finished tool call.
#[derive(Debug)]
pub struct ToolCallRecord {
    /// When it was finished, by the runtime's clock: the log makes a time of day of it.
    pub at: Instant,
    /// The session it came in on.
    pub session: SessionNumber,
    /// Its id as the client wrote it; the log shortens it to 64 characters.
    pub request_id: Option<IdToken>,
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
    /// What is to be told of it in a trace, where anybody is told.
    pub trace: Option<Box<CallTrace>>,
}

/// The records on their way, and who is to be woken for them.
#[derive(Debug, Default)]
struct Intake {
    waiting: Mutex<Waiting>,
    /// The first record of a batch, and a batch that is full, wake the reader; those in between do not.
    wake: Notify,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    records: Vec<Record>,
    questions: Vec<oneshot::Sender<counters::CountersReport>>,
    passing: Vec<oneshot::Sender<counters::CountersSnapshot>>,
}

/// The recording half of the intake; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TelemetryHandle {
    intake: Arc<Intake>,
    traces: Traces,
}

/// What the reader took from the intake.
#[derive(Debug, Default)]
pub struct Taken {
    /// Records, oldest first.
    pub records: Vec<Record>,
    /// Whoever wants to know what was counted, these records included.
    pub questions: Vec<oneshot::Sender<counters::CountersReport>>,
    /// Whoever wants to pass on what was counted, once these records are in the file as well.
    pub passing: Vec<oneshot::Sender<counters::CountersSnapshot>>,
}

impl TelemetryHandle {
    /// An empty intake.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty intake beside these traces.
    #[must_use]
    pub fn with_traces(traces: Traces) -> Self {
        Self { intake: Arc::default(), traces }
    }

    /// The traces of the same system.
    #[must_use]
    pub const fn traces(&self) -> &Traces {
        &self.traces
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that can panic leaves it half changed.
        self.intake.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records something. Never waits; a record that finds no room is counted and forgotten.
    pub fn record(&self, record: Record) {
        let mut waiting = self.waiting();
        let count = waiting.records.len();
        if count >= INTAKE {
            self.intake.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.records.push(record);
        drop(waiting);
        self.wake(count, count + 1);
    }

    /// Records these, and leaves their place for the next ones. The same as one by one, at the cost of one.
    pub fn record_all(&self, records: &mut Vec<Record>) {
        if records.is_empty() {
            return;
        }
        let mut waiting = self.waiting();
        let before = waiting.records.len();
        let lost = records.len().saturating_sub(INTAKE.saturating_sub(before));
        records.truncate(records.len() - lost);
        waiting.records.append(records);
        let count = waiting.records.len();
        drop(waiting);
        if lost > 0 {
            self.lose(lost as u64);
        }
        self.wake(before, count);
    }

    /// Wakes the reader where the intake, which held `before` records and holds `count`, has got its first or is a batch now.
    fn wake(&self, before: usize, count: usize) {
        let reached = |count: usize| usize::from(count > 0) + usize::from(count >= BATCH);
        if reached(before) != reached(count) {
            self.intake.wake.notify_one();
        }
    }

    /// Counts records that were taken and then lost.
    pub fn lose(&self, count: u64) {
        self.intake.dropped.fetch_add(count, Ordering::Relaxed);
    }

    /// Records that found no room, or were lost, so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.intake.dropped.load(Ordering::Relaxed)
    }

    /// Takes what is there; the reader's side.
    #[must_use]
    pub fn take(&self) -> Taken {
        let mut waiting = self.waiting();
        // Under load the next batch is as large; it is not to be grown one doubling after another.
        let room = Vec::with_capacity(waiting.records.len().min(BATCH));
        Taken {
            records: std::mem::replace(&mut waiting.records, room),
            questions: std::mem::take(&mut waiting.questions),
            passing: std::mem::take(&mut waiting.passing),
        }
    }

    /// Whether a reader should take now rather than let the batch grow.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        let waiting = self.waiting();
        waiting.records.len() >= BATCH || !waiting.questions.is_empty() || !waiting.passing.is_empty()
    }

    /// Waits until the first record of a batch is there, the batch is full, or somebody asks.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn woken(&self) {
        self.intake.wake.notified().await;
    }

    /// What was counted so far, to be passed on: the log is written to the end by then. `None` when telemetry is not there.
    ///
    /// # Cancel safety
    ///
    /// As [`TelemetryHandle::snapshot`].
    pub async fn pass_on(&self) -> Option<counters::CountersSnapshot> {
        let (reply, answer) = oneshot::channel();
        self.waiting().passing.push(reply);
        self.intake.wake.notify_one();
        answer.await.ok()
    }

    /// What was counted so far; `None` when telemetry is not there.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves a question nobody hears the answer of.
    pub async fn snapshot(&self) -> Option<counters::CountersReport> {
        let (reply, answer) = oneshot::channel();
        self.waiting().questions.push(reply);
        self.intake.wake.notify_one();
        Some(self.with_losses(answer.await.ok()?))
    }

    /// The report, with what was lost on its way to who counts.
    #[must_use]
    pub fn with_losses(&self, mut report: counters::CountersReport) -> counters::CountersReport {
        report.totals.dropped += self.dropped();
        report.totals.traces_dropped += self.traces.lost();
        report
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn what_is_recorded_together_wakes_the_reader_and_is_dropped_as_one_by_one() {
        let restarts = |count: usize| (0..count).map(|_| Record::WorkerRestart { generation: Generation(2) }).collect();
        let woken = |telemetry: &TelemetryHandle| telemetry.woken().now_or_never().is_some();
        let rows = [
            (0, 0, false),
            (0, 1, true),
            (0, BATCH, true),
            (1, BATCH - 2, false),
            (1, BATCH - 1, true),
            (BATCH - 1, BATCH, true),
            (BATCH, 1, false),
            (INTAKE - 1, 1, false),
            (INTAKE - 1, 7, false),
            (INTAKE, 7, false),
        ];
        for (before, more, wakes) in rows {
            let telemetry = TelemetryHandle::new();
            telemetry.record_all(&mut restarts(before));
            woken(&telemetry);
            let mut records: Vec<Record> = restarts(more);
            telemetry.record_all(&mut records);
            assert!(records.is_empty());
            assert_eq!(woken(&telemetry), wakes, "{more} behind {before}");
            let taken = telemetry.take().records.len();
            assert_eq!((taken, telemetry.dropped()), ((before + more).min(INTAKE), (before + more - taken) as u64));
        }
    }

    #[test]
    fn a_full_intake_drops_and_counts() {
        let telemetry = TelemetryHandle::new();
        for _ in 0..INTAKE + 7 {
            telemetry.record(Record::WorkerRestart { generation: Generation(2) });
        }
        assert_eq!(telemetry.dropped(), 7);
        assert_eq!(telemetry.take().records.len(), INTAKE);
        telemetry.record(Record::WorkerRestart { generation: Generation(3) });
        assert_eq!((telemetry.take().records.len(), telemetry.dropped()), (1, 7));
    }
}
