//! The telemetry actor: reads the bounded intake, counts, and hands batches to the log's thread.
//!
//! Nobody waits for it. Its crash costs the counters (they start at zero) and the batch it held.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use crate::telemetry::counters::Counters;
use crate::telemetry::log::{Entry, LogWriter};
use crate::telemetry::{Intake, Record};

/// Records per write; with the age below it keeps the disk's thread asleep under load and the file fresh at rest.
const BATCH: usize = 512;

/// Longest a record waits to be written.
const AGE: Duration = Duration::from_millis(250);

/// The intake's reading end; it outlives the actor, so that a restarted one goes on where the old one stopped.
pub type IntakeEnd = Arc<Mutex<mpsc::Receiver<Intake>>>;

/// The telemetry actor.
pub struct Telemetry;

/// What it is started with.
pub struct TelemetryArguments {
    /// Where records come from.
    pub intake: IntakeEnd,
    /// The file they go to; `None` counts only.
    pub log: Option<std::path::PathBuf>,
}

/// The pump ended, which it must not.
#[derive(Debug, thiserror::Error)]
#[error("the telemetry pump ended")]
pub struct PumpEnded;

/// The actor's state; dropping it ends the pump.
pub struct TelemetryState {
    pump: JoinSet<()>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

/// Everything that can wake the actor besides its intake.
pub enum TelemetryMsg {
    /// The pump ended.
    PumpEnded,
}

impl Actor for Telemetry {
    type Msg = TelemetryMsg;
    type State = TelemetryState;
    type Arguments = TelemetryArguments;

    async fn pre_start(
        &self,
        me: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let mut pump = JoinSet::new();
        // The message is sent by a guard, so that a panic of the pump is noticed too.
        let guard = Guard(me);
        pump.spawn(async move {
            let _guard = guard;
            run(arguments, stopped).await;
        });
        Ok(TelemetryState { pump, stop: Some(stop) })
    }

    async fn handle(
        &self,
        _me: ActorRef<Self::Msg>,
        message: Self::Msg,
        _state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            TelemetryMsg::PumpEnded => Err(PumpEnded.into()),
        }
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        if let Some(stop) = state.stop.take() {
            let _ = stop.send(());
        }
        while state.pump.join_next().await.is_some() {}
        Ok(())
    }
}

struct Guard(ActorRef<TelemetryMsg>);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.cast(TelemetryMsg::PumpEnded);
    }
}

async fn run(arguments: TelemetryArguments, mut stopped: tokio::sync::oneshot::Receiver<()>) {
    let mut intake = arguments.intake.lock().await;
    let mut log = arguments.log.map(LogWriter::new);
    let mut counters = Counters::default();
    let mut taken = Vec::with_capacity(64);
    let mut batch: Vec<Entry> = Vec::new();
    let mut oldest: Option<tokio::time::Instant> = None;
    loop {
        let flush_at = oldest.map(|since| since + AGE);
        tokio::select! {
            count = intake.recv_many(&mut taken, 64) => if count == 0 { break },
            () = wait_until(flush_at) => {}
            _ = &mut stopped => {
                while let Ok(item) = intake.try_recv() {
                    taken.push(item);
                }
                take(&mut taken, &mut counters, log.as_ref(), &mut batch);
                break;
            }
        }
        take(&mut taken, &mut counters, log.as_ref(), &mut batch);
        if batch.is_empty() {
            continue;
        }
        let since = *oldest.get_or_insert_with(tokio::time::Instant::now);
        if batch.len() >= BATCH || since.elapsed() >= AGE {
            oldest = None;
            if let Some(log) = &mut log {
                log.write(std::mem::take(&mut batch));
            }
        }
    }
    if let Some(mut log) = log {
        if !batch.is_empty() {
            log.write(batch);
        }
        // The last batch is small; the thread has written it in well under the actor's stop limit.
        let _ = tokio::task::spawn_blocking(move || log.close()).await;
    }
}

fn take(taken: &mut Vec<Intake>, counters: &mut Counters, log: Option<&LogWriter>, batch: &mut Vec<Entry>) {
    for item in taken.drain(..) {
        match item {
            Intake::Record(record) => {
                counters.count(&record);
                let hot = matches!(record, Record::ToolCall(_)).then(|| counters.hot_paths()).flatten();
                if log.is_some() && !matches!(record, Record::Request { .. }) {
                    batch.push(Entry::Record(record));
                    batch.extend(hot.map(Entry::HotPaths));
                }
            }
            Intake::Snapshot(reply) => {
                let mut snapshot = counters.snapshot();
                snapshot.totals.dropped += log.map_or(0, LogWriter::lost);
                let _ = reply.send(snapshot);
            }
        }
    }
}

async fn wait_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
