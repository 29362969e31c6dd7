//! The telemetry actor: reads the bounded intake, counts, and hands batches to the log's thread.
//!
//! Nobody waits for it. Its crash costs the batch it held, which is counted as lost; the counters are only borrowed, and
//! its next incarnation goes on counting.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::child;
use super::clock;
use super::kept::{Kept, Lent};
use super::pump::Pumped;
use crate::base::ids::UnixMillis;
use crate::base::tasks;
use crate::failpoints::{Broken, FaultPoint, Faults, Operation};
use crate::protocol::session::FinishedAs;
use crate::telemetry::counters::Counters;
use crate::telemetry::log::{LogEntry, LogWriter, Moment, Torn};
use crate::telemetry::traces::facts::CallEnd;
use crate::telemetry::traces::spans::last_part;
use crate::telemetry::traces::{CallFact, TraceFact};
use crate::telemetry::{Record, TelemetryHandle};

/// Longest a record waits to be counted and written. It keeps this task and the disk's thread asleep between batches.
const AGE: Duration = Duration::from_millis(250);

/// What telemetry, a [`Pump`](super::pump::Pump), is started with.
pub struct TelemetryArguments {
    /// Where records come from; it outlives the actor.
    pub telemetry: TelemetryHandle,
    /// What was counted so far; it outlives the actor too.
    pub counters: Arc<Kept<Counters>>,
    /// The file they go to; `None` counts only.
    pub log: Option<std::path::PathBuf>,
    /// Fault plan.
    pub faults: Faults,
}

impl Pumped for TelemetryArguments {
    const NAME: &'static str = "the telemetry pump";

    async fn run(self, stopped: oneshot::Receiver<()>) {
        run(self, stopped).await;
    }
}

async fn run(arguments: TelemetryArguments, mut stopped: oneshot::Receiver<()>) {
    let TelemetryArguments { telemetry, counters, log, faults } = arguments;
    let path = log;
    let mut log = path.clone().map(LogWriter::new);
    let mut lent = counters.lend().await;
    let Some(counters) = lent.as_mut().and_then(Lent::get) else { return };
    let mut stopping = false;
    while !stopping {
        tokio::select! {
            biased;
            () = telemetry.woken() => {}
            _ = &mut stopped => stopping = true,
        }
        if !stopping {
            // The batch grows while we sleep; who asks, and a full batch, need not wait for it.
            let ripe = tokio::time::sleep(AGE);
            tokio::pin!(ripe);
            while !telemetry.is_urgent() {
                tokio::select! {
                    biased;
                    () = &mut ripe => break,
                    () = telemetry.woken() => {}
                    _ = &mut stopped => {
                        stopping = true;
                        break;
                    }
                }
            }
        }
        let taken = telemetry.take();
        let moment = Moment { at: clock::now(), wall: UnixMillis::now() };
        let mut in_hand = InHand { telemetry: &telemetry, count: taken.records.len() as u64 };
        let torn = match child::in_time(faults.meet(FaultPoint::TelemetryWrite, Operation::None)).await {
            Ok(None) => Some(Torn::No),
            Ok(Some(Broken::Torn)) => Some(Torn::InHalf),
            Ok(Some(_)) => None,
            // The next incarnation goes on with what comes in; the batch in hand is lost, and counted.
            Err(_) => return,
        };
        let mut records = taken.records;
        if telemetry.traces().are_told() {
            records.iter_mut().filter_map(|record| fact(record, moment)).for_each(|fact| telemetry.traces().tell(fact));
        }
        let batch = count(records, counters, log.is_some());
        if torn.is_some() {
            in_hand.count = 0;
        }
        drop(in_hand);
        for question in taken.questions {
            let mut snapshot = counters.snapshot();
            snapshot.totals.dropped += log.as_ref().map_or(0, LogWriter::lost);
            let _ = question.send(snapshot);
        }
        if let (Some(log), Some(torn)) = (log.as_mut().filter(|_| !batch.is_empty()), torn) {
            log.write(batch, torn, moment);
        }
        if !taken.passing.is_empty() {
            // The thread ends with what it was given; the next batch starts another, if there is one.
            if let Some(log) = std::mem::replace(&mut log, path.clone().map(LogWriter::new)) {
                let lost = tasks::spawn_blocking(move || log.close()).await;
                telemetry.lose(lost.unwrap_or_default());
            }
            taken.passing.into_iter().for_each(|reply| drop(reply.send(counters.passed_on())));
        }
    }
    if let Some(log) = log {
        // The last batch is small; the thread has written it in well under the actor's stop limit.
        let _ = tasks::spawn_blocking(move || log.close()).await;
    }
}

/// Records that are lost unless somebody says otherwise.
struct InHand<'a> {
    telemetry: &'a TelemetryHandle,
    count: u64,
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.telemetry.lose(self.count);
    }
}

/// What whoever exports traces is told of a record.
fn fact(record: &mut Record, moment: Moment) -> Option<TraceFact> {
    match record {
        Record::ToolCall(call) => {
            let trace = *call.trace.take()?;
            Some(TraceFact::Call(Box::new(CallFact {
                trace,
                session: call.session.0,
                tool: call.tool.to_string(),
                at: moment.wall_at(call.at),
                latency_us: u64::try_from(call.latency.as_micros()).unwrap_or(u64::MAX),
                end: match call.result {
                    FinishedAs::Success => CallEnd::Success,
                    FinishedAs::Cancelled => CallEnd::Cancelled,
                    FinishedAs::Failed(code) => CallEnd::Failed(code),
                },
                job: call.job,
                workspace: call.path_hint.as_deref().and_then(|path| last_part(Path::new(path))),
                replays: call.replays,
            })))
        }
        Record::JobState { job, state, .. } if state.is_terminal() => Some(TraceFact::Job(*job)),
        Record::Request { .. }
        | Record::WorkerRestart { .. }
        | Record::JobState { .. }
        | Record::Rollout(_)
        | Record::Fault(_) => None,
    }
}

/// Counts records; those that go to the log come back.
fn count(records: Vec<Record>, counters: &mut Counters, logged: bool) -> Vec<LogEntry> {
    let mut snapshots = Vec::new();
    for record in &records {
        counters.count(record);
        if logged && matches!(record, Record::ToolCall(_)) {
            snapshots.extend(counters.hot_paths().map(LogEntry::HotPaths));
        }
    }
    if !logged {
        return Vec::new();
    }
    // They stay where they lie. Snapshots are of directories and not of moments, so they may come behind.
    let is_logged = |record: &Record| !matches!(record, Record::Request { .. });
    let mut batch: Vec<LogEntry> = records.into_iter().filter(is_logged).map(LogEntry::Record).collect();
    batch.append(&mut snapshots);
    batch
}
