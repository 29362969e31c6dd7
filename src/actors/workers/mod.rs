//! The workers' supervisor: slots, generations, and who is to hear of them.
//!
//! Owns: which worker runs and when another is started. May not know: calls, contracts, JSON-RPC, jobs. What becomes of
//! the calls a lost worker had is decided by their sessions, which hold the ledgers; neither decision implies the other.
//!
//! Invariants: (1) a restart is triggered by the joined task of the old worker, never by its death notice, so its last
//! messages have been sent before anybody hears that it is gone; (2) sessions hear of a loss before they hear of the
//! next worker.

pub use super::supervision::slot;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use self::slot::{RestartPolicy, Slot, SlotEffect, SlotState};
use super::child::Child;
use super::reply::SessionMailbox;
use super::session::SessionEvent;
use super::supervision::{Exit, RestartType};
use super::worker::{ToolPanicked, Worker, WorkerMsg};
use crate::fault::{Fault, FaultCode};
use crate::ids::{Generation, SessionNumber, UnixMillis};
use crate::telemetry::{Record, TelemetryHandle};

/// Longest a worker may take to start; building a struct takes microseconds.
const START_LIMIT: Duration = Duration::from_secs(1);

/// Reasons of losses kept for health.
const KEPT_FAULTS: usize = 8;

/// Everything that can wake the workers' supervisor.
pub enum WorkersMsg {
    /// A session has calls for a worker. It hears of every worker from now on.
    Wanted {
        /// Which session.
        session: SessionNumber,
        /// Where it hears of them.
        mailbox: SessionMailbox,
    },
    /// A session is over: it hears of nothing more, and nobody waits for its calls.
    SessionOver(SessionNumber),
    /// A worker dropped an attempt without an outcome. One that lives on is broken.
    Broken {
        /// Which incarnation.
        generation: Generation,
    },
    /// A worker's task has ended: all its messages have been sent.
    Gone {
        /// Which incarnation.
        generation: Generation,
    },
    /// A backoff is over.
    Due {
        /// The incarnation it followed.
        generation: Generation,
    },
    /// How are you?
    Snapshot(oneshot::Sender<WorkersSnapshot>),
}

/// The workers as health shows them.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkersSnapshot {
    /// The newest generation.
    pub generation: Generation,
    /// Whether a worker is there.
    pub alive: bool,
    /// Whether calls are refused because of too many losses.
    pub gave_up: bool,
    /// Restarts since the start.
    pub restarts: u64,
    /// Losses in a row.
    pub consecutive_failures: u32,
    /// The last losses, newest last.
    pub losses: Vec<(UnixMillis, Fault)>,
}

/// The supervisor actor.
pub struct Workers;

/// What it is started with.
#[derive(Clone)]
pub struct WorkersArguments {
    /// When to restart.
    pub policy: RestartPolicy,
    /// Told of restarts.
    pub telemetry: TelemetryHandle,
    /// The newest generation there was; outlives every incarnation of the supervisor.
    pub last: Arc<AtomicU64>,
}

/// The supervisor's state.
pub struct WorkersState {
    slot: Slot,
    last: Arc<AtomicU64>,
    worker: Option<Child<WorkerMsg>>,
    /// Who hears of workers; as many as there are connections.
    sessions: HashMap<SessionNumber, SessionMailbox>,
    telemetry: TelemetryHandle,
    /// Join watches and backoff timers; they end with the supervisor.
    tasks: JoinSet<()>,
    /// Why the worker is going, until it is gone.
    reason: Option<String>,
    losses: VecDeque<(UnixMillis, Fault)>,
}

impl Actor for Workers {
    type Msg = WorkersMsg;
    type State = WorkersState;
    type Arguments = WorkersArguments;

    async fn pre_start(
        &self,
        _me: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(WorkersState {
            slot: Slot::after(
                Generation(arguments.last.load(Ordering::Relaxed)),
                RestartType::Permanent,
                arguments.policy,
            ),
            last: arguments.last,
            worker: None,
            sessions: HashMap::new(),
            telemetry: arguments.telemetry,
            tasks: JoinSet::new(),
            reason: None,
            losses: VecDeque::new(),
        })
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            WorkersMsg::Wanted { session, mailbox } => {
                // It may have missed that its worker is gone, together with us.
                let _ = mailbox.send(SessionEvent::WorkerGone { generation: state.lost() });
                if let Some(up) = state.up() {
                    let _ = mailbox.send(up);
                }
                state.sessions.insert(session, mailbox);
                let effect = state.slot.wanted(Instant::now());
                state.perform(&me, effect).await;
            }
            WorkersMsg::SessionOver(session) => {
                state.sessions.remove(&session);
                if let Some(worker) = &state.worker {
                    let _ = worker.cast(WorkerMsg::SessionOver(session));
                }
            }
            WorkersMsg::Broken { generation } => {
                // A dying worker drops its tokens too; then this is late and changes nothing.
                if let Some(worker) = state.worker.as_ref().filter(|_| generation == state.slot.generation()) {
                    worker.kill();
                }
            }
            WorkersMsg::Gone { generation } => state.gone(&me, generation).await,
            WorkersMsg::Due { generation } => {
                let effect = state.slot.due(generation);
                state.perform(&me, effect).await;
            }
            WorkersMsg::Snapshot(reply) => {
                let _ = reply.send(state.snapshot());
            }
        }
        while state.tasks.try_join_next().is_some() {}
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _me: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        // Only the reason is taken here. The event may hold the old state and may overtake the worker's last
        // messages; what happens next is decided when its task has been joined.
        if let SupervisionEvent::ActorFailed(cell, error) = &event
            && state.worker.as_ref().is_some_and(|worker| worker.id() == cell.get_id())
        {
            state.reason = Some(reason(error));
        }
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        state.slot.stop();
        if let Some(worker) = state.worker.take() {
            worker.stop(Duration::from_millis(250)).await;
        }
        Ok(())
    }
}

/// Why an actor failed, as far as it may be told: a panic's own text can quote anything.
pub(super) fn reason(error: &ActorProcessingErr) -> String {
    match error.downcast_ref::<ToolPanicked>() {
        Some(panicked) => panicked.to_string(),
        None => "it panicked".to_owned(),
    }
}

impl WorkersState {
    fn up(&self) -> Option<SessionEvent> {
        let worker = self.worker.as_ref().filter(|_| self.slot.state() == SlotState::Up)?;
        Some(SessionEvent::WorkerUp { generation: self.slot.generation(), worker: worker.actor().clone() })
    }

    /// The newest generation that is gone.
    fn lost(&self) -> Generation {
        let newest = self.slot.generation();
        match self.slot.state() {
            SlotState::Starting | SlotState::Up => Generation(newest.0.saturating_sub(1)),
            _ => newest,
        }
    }

    /// Tells every session; one that is over is forgotten.
    fn tell(&mut self, event: impl Fn() -> SessionEvent) {
        self.sessions.retain(|_, mailbox| mailbox.send(event()).is_ok());
    }

    async fn gone(&mut self, me: &ActorRef<WorkersMsg>, generation: Generation) {
        if generation != self.slot.generation() {
            return;
        }
        self.worker = None;
        self.note(generation, FaultCode::WorkerLost);
        self.tell(|| SessionEvent::WorkerGone { generation });
        let effect = self.slot.gone(generation, Exit::Failed, Instant::now());
        self.perform(me, effect).await;
    }

    fn note(&mut self, generation: Generation, code: FaultCode) {
        let reason = self.reason.take().unwrap_or_else(|| "the worker ended".to_owned());
        tracing::warn!(%generation, reason, "worker lost");
        let fault = Fault::new(code, reason).generation(generation);
        self.telemetry.record(Record::Fault(Box::new(fault.clone())));
        if self.losses.len() == KEPT_FAULTS {
            self.losses.pop_front();
        }
        self.losses.push_back((UnixMillis::now(), fault));
    }

    /// Performs what the slot wants, until it wants nothing at once.
    async fn perform(&mut self, me: &ActorRef<WorkersMsg>, mut effect: SlotEffect) {
        loop {
            match effect {
                SlotEffect::Nothing | SlotEffect::Finished => return,
                SlotEffect::Wait(generation, wait) => {
                    let me = me.clone();
                    self.tasks.spawn(async move {
                        tokio::time::sleep(wait).await;
                        let _ = me.cast(WorkersMsg::Due { generation });
                    });
                    return;
                }
                SlotEffect::GiveUp => {
                    self.tell(|| SessionEvent::WorkersGaveUp);
                    return;
                }
                SlotEffect::Start(generation) => {
                    self.last.store(generation.0, Ordering::Relaxed);
                    let started = Worker::spawn_linked(None, Worker, (), me.get_cell());
                    match tokio::time::timeout(START_LIMIT, started).await {
                        Ok(Ok((worker, joined))) => {
                            self.worker = Some(Child::new(worker.clone()));
                            self.slot.up(generation, Instant::now());
                            let told = me.clone();
                            self.tasks.spawn(async move {
                                let _ = joined.await;
                                let _ = told.cast(WorkersMsg::Gone { generation });
                            });
                            if generation > Generation(1) {
                                self.telemetry.record(Record::WorkerRestart { generation });
                            }
                            self.tell(|| SessionEvent::WorkerUp { generation, worker: worker.clone() });
                            return;
                        }
                        Ok(Err(error)) => self.reason = Some(error.to_string()),
                        Err(_) => self.reason = Some("the worker did not start in time".to_owned()),
                    }
                    self.note(generation, FaultCode::WorkerSpawnFailed);
                    effect = self.slot.gone(generation, Exit::Failed, Instant::now());
                }
            }
        }
    }

    fn snapshot(&self) -> WorkersSnapshot {
        WorkersSnapshot {
            generation: self.slot.generation(),
            alive: self.slot.state() == SlotState::Up,
            gave_up: self.slot.state() == SlotState::GaveUp,
            restarts: self.slot.total_restarts(),
            consecutive_failures: self.slot.consecutive_failures(),
            losses: self.losses.iter().cloned().collect(),
        }
    }
}
