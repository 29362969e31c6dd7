//! The workers' supervisor: slots, generations, and who is to hear of them.
//!
//! Owns: which worker runs, where, and when another is started. May not know: calls, contracts, JSON-RPC, jobs. What
//! becomes of the calls a lost worker had is decided by their sessions, which hold the ledgers; neither decision implies
//! the other.
//!
//! Invariants: (1) a restart is triggered by the joined loop of the old worker (and its process, when it has one, waited
//! for), never by its death notice, so its last messages have been sent before anybody hears that it is gone; (2) sessions
//! hear of a loss before they hear of the next worker; (3) generations are never reused and workers never overlap, not even
//! when this actor itself is lost: both are kept in the [`Roster`], which outlives it.

mod asks;
pub mod backend;
mod in_process;
pub mod lifeline;
pub mod messages;
pub mod process;
pub mod roster;
mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use self::backend::Backend;
use self::lifeline::{Lifeline, Order};
use self::messages::{WorkerHandle, WorkerMsg, WorkersMsg, WorkersSnapshot};
use self::roster::Roster;
use self::worker::{Worker, WorkerArguments, WorkerEnded};
use super::child::{self, Child, reason};
use super::reply::SessionMailbox;
use super::session::events::SessionEvent;
use super::supervision::slot::{RestartPolicy, Slot, SlotEffect, SlotState};
use super::supervision::{Exit, RestartType};
use crate::actors::clock;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{Generation, SessionNumber, UnixMillis};
use crate::failpoints::{FaultPoint, Faults};
use crate::telemetry::{Record, TelemetryHandle};

/// Longest a worker's actor may take to start; building a struct takes microseconds. A process has a bound of its own.
const START_LIMIT: Duration = Duration::from_secs(1);

/// Longest a worker may take to end when the system stops, or when a new supervisor finds the worker of a lost one.
const END_LIMIT: Duration = Duration::from_millis(500);

/// Reasons of losses kept for health.
const KEPT_FAULTS: usize = 8;

/// The supervisor actor.
pub struct Workers;

/// What it is started with, each time.
#[derive(Clone)]
pub struct WorkersArguments {
    /// When to restart.
    pub policy: RestartPolicy,
    /// Where tools run.
    pub backend: Backend,
    /// What outlives the supervisor.
    pub roster: Arc<Roster>,
    /// What another image knew of workers.
    pub past: Option<Arc<WorkersSnapshot>>,
    /// Told of restarts.
    pub telemetry: TelemetryHandle,
    /// What is to break.
    pub faults: Faults,
}

/// The worker there is.
struct Current {
    actor: Child<WorkerEnded>,
    handle: WorkerHandle,
    lifeline: Lifeline,
    pid: Option<u32>,
}

/// Whether workers may be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    No,
    Paused,
}

/// The supervisor's state.
pub struct WorkersState {
    faults: Faults,
    slot: Slot,
    backend: Backend,
    roster: Arc<Roster>,
    worker: Option<Current>,
    /// Who hears of workers; as many as there are connections.
    sessions: BTreeMap<SessionNumber, SessionMailbox>,
    telemetry: TelemetryHandle,
    /// Whether workers may be started.
    pause: Pause,
    /// The first generation of this image, and the first after a pause: they take no lost worker's place.
    first: Generation,
    /// Backoff timers; they end with the supervisor.
    tasks: JoinSet<()>,
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
        arguments.roster.clear().await;
        let past = arguments.past.as_deref();
        let inherited = past.map_or(Generation::NONE, |past| past.generation);
        let mut slot = Slot::after(arguments.roster.last().max(inherited), RestartType::Permanent, arguments.policy);
        slot.inherit(past.map_or(0, |past| past.restarts));
        Ok(WorkersState {
            slot,
            pause: Pause::No,
            first: inherited.next(),
            losses: past.map_or_else(VecDeque::new, |past| past.losses.iter().cloned().collect()),
            backend: arguments.backend,
            roster: arguments.roster,
            worker: None,
            sessions: BTreeMap::new(),
            telemetry: arguments.telemetry,
            faults: arguments.faults,
            tasks: JoinSet::new(),
        })
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        child::in_time(state.act(me, message)).await?
    }

    async fn handle_supervisor_evt(
        &self,
        _me: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        // What happens next is decided when the worker's loop has been joined: this event may overtake its last messages.
        // An actor that is gone while its loop is not takes the loop along by itself.
        if let SupervisionEvent::ActorFailed(cell, error) = &event
            && state.worker.as_ref().is_some_and(|worker| worker.actor.id() == cell.get_id())
        {
            tracing::debug!(why = reason(error), "a worker's actor failed");
        }
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        state.slot.stop();
        if let Some(worker) = state.worker.take() {
            worker.lifeline.end(Order::Stop);
            if !worker.lifeline.over(END_LIMIT).await {
                tracing::error!("a worker did not end in time");
            }
            worker.actor.kill();
        }
        Ok(())
    }
}

impl WorkersState {
    /// Handles one message.
    async fn act(&mut self, me: ActorRef<WorkersMsg>, message: WorkersMsg) -> Result<(), ActorProcessingErr> {
        if self.faults.is_armed() {
            child::meet(&self.faults, FaultPoint::WorkersSupervise, message.name()).await?;
        }
        match message {
            WorkersMsg::Wanted { session, mailbox } => {
                // It may have missed that its worker is gone, together with us.
                let lost = self.lost();
                if lost > Generation::NONE {
                    let _ = mailbox.send(SessionEvent::WorkerGone { generation: lost });
                }
                if let Some(up) = self.news() {
                    let _ = mailbox.send(up);
                }
                self.sessions.insert(session, mailbox);
                if self.pause == Pause::No {
                    let effect = self.slot.wanted(clock::now());
                    self.perform(&me, effect).await;
                }
            }
            WorkersMsg::SessionOver(session) => {
                self.sessions.remove(&session);
                if let Some(worker) = &self.worker {
                    let _ = worker.handle.cast(WorkerMsg::SessionOver(session));
                }
            }
            WorkersMsg::Broken { generation } => {
                // A dying worker drops its tokens too; then this is late and changes nothing.
                if let Some(worker) = self.worker.as_ref().filter(|_| generation == self.slot.generation()) {
                    let fault = Fault::new(FaultCode::WorkerLost, "the worker dropped a call without an outcome");
                    worker.lifeline.end(Order::Kill(Box::new(fault)));
                }
            }
            WorkersMsg::Up { generation, pid } => self.up(generation, pid),
            WorkersMsg::Gone { generation, fault } => self.gone(&me, generation, *fault).await,
            WorkersMsg::Due { generation } => {
                let effect = self.slot.due(generation);
                self.perform(&me, effect).await;
            }
            WorkersMsg::SetAside(reply) => self.set_aside(reply).await,
            WorkersMsg::Resume => {
                self.pause = Pause::No;
                let generation = self.slot.generation();
                self.first = generation.next();
                // Sessions that were told by whoever paused us have nothing left with it.
                self.tell(|| SessionEvent::WorkerGone { generation });
                if !self.sessions.is_empty() {
                    let effect = self.slot.wanted(clock::now());
                    self.perform(&me, effect).await;
                }
            }
            WorkersMsg::Snapshot(reply) => {
                let _ = reply.send(self.snapshot());
            }
        }
        while self.tasks.try_join_next().is_some() {}
        Ok(())
    }

    /// Ends the worker there is, without taking it for lost.
    async fn set_aside(&mut self, reply: oneshot::Sender<WorkersSnapshot>) {
        self.pause = Pause::Paused;
        self.slot.set_aside();
        let snapshot = self.snapshot();
        if let Some(worker) = self.worker.take() {
            worker.lifeline.end(Order::Stop);
            let over = worker.lifeline.over(END_LIMIT).await;
            worker.actor.kill();
            if !over {
                tracing::error!("a worker did not end in time");
                return;
            }
        }
        let _ = reply.send(snapshot);
    }

    fn news(&self) -> Option<SessionEvent> {
        let worker = self.worker.as_ref().filter(|_| self.slot.state() == SlotState::Up)?;
        Some(SessionEvent::WorkerUp { generation: self.slot.generation(), worker: worker.handle.clone() })
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

    fn up(&mut self, generation: Generation, pid: Option<u32>) {
        let Some(worker) = &mut self.worker else { return };
        if !self.slot.up(generation, clock::now()) {
            return;
        }
        worker.pid = pid;
        let handle = worker.handle.clone();
        if generation > self.first {
            self.telemetry.record(Record::WorkerRestart { generation });
        }
        self.tell(|| SessionEvent::WorkerUp { generation, worker: handle.clone() });
    }

    async fn gone(&mut self, me: &ActorRef<WorkersMsg>, generation: Generation, fault: Fault) {
        let over = matches!(self.slot.state(), SlotState::Stopping | SlotState::Empty);
        if generation != self.slot.generation() || over {
            return;
        }
        self.worker = None;
        self.note(generation, fault);
        self.tell(|| SessionEvent::WorkerGone { generation });
        let effect = self.slot.gone(generation, Exit::Failed, clock::now());
        self.perform(me, effect).await;
    }

    fn note(&mut self, generation: Generation, mut fault: Fault) {
        if !fault.detail.ends_with('.') {
            fault.detail.push('.');
        }
        tracing::warn!(%generation, code = %fault.code, reason = fault.detail, "worker lost");
        let fault = fault.generation(generation);
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
                    let period = self.slot.policy().period;
                    self.tell(|| SessionEvent::WorkersGaveUp { period });
                    return;
                }
                SlotEffect::Start(generation) => match self.start(me, generation).await {
                    Ok(()) => return,
                    Err(fault) => {
                        self.note(generation, fault);
                        effect = self.slot.gone(generation, Exit::NotStarted, clock::now());
                    }
                },
            }
        }
    }

    async fn start(&mut self, me: &ActorRef<WorkersMsg>, generation: Generation) -> Result<(), Fault> {
        let (handle, inbox) = WorkerHandle::new();
        let (lifeline, keeping) = Lifeline::new();
        // Entered before it is started: nobody may ever find a worker that is not known here.
        self.roster.enter(generation, lifeline.clone());
        let arguments = WorkerArguments {
            generation,
            backend: self.backend.clone(),
            inbox,
            keeping,
            lifeline: lifeline.clone(),
            workers: me.clone(),
        };
        let failed = |why: String| Fault::new(FaultCode::WorkerSpawnFailed, why);
        match tokio::time::timeout(START_LIMIT, Worker::spawn_linked(None, Worker, arguments, me.get_cell())).await {
            Ok(Ok((actor, _))) => {
                self.worker = Some(Current { actor: Child::new(actor), handle, lifeline, pid: None });
                Ok(())
            }
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("the worker did not start in time".to_owned())),
        }
    }

    fn snapshot(&self) -> WorkersSnapshot {
        WorkersSnapshot {
            generation: self.slot.generation(),
            isolation: self.backend.isolation(),
            pid: self.worker.as_ref().and_then(|worker| worker.pid),
            alive: self.slot.state() == SlotState::Up,
            gave_up: self.slot.state() == SlotState::GaveUp,
            restarts: self.slot.total_restarts(),
            consecutive_failures: self.slot.consecutive_failures(),
            losses: self.losses.iter().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a session hears next.
    async fn heard(mailbox: &mut mpsc::UnboundedReceiver<SessionEvent>) -> SessionEvent {
        tokio::time::timeout(Duration::from_secs(10), mailbox.recv()).await.expect("in time").expect("news")
    }

    #[tokio::test]
    async fn a_new_supervisor_goes_on_with_the_generations_once_the_old_worker_has_ended() {
        let arguments = WorkersArguments {
            policy: RestartPolicy::default(),
            backend: Backend::InProcess(Faults::none()),
            roster: Arc::default(),
            past: None,
            telemetry: TelemetryHandle::new(),
            faults: Faults::none(),
        };
        for generation in 1..=3 {
            let (workers, joined) = Workers::spawn(None, Workers, arguments.clone()).await.expect("a supervisor");
            let before = arguments.roster.read(|entries| entries.worker.clone());
            assert!(before.is_none(), "the worker of the lost supervisor has left the roster");
            let (mailbox, mut news) = mpsc::unbounded_channel();
            workers.cast(WorkersMsg::Wanted { session: SessionNumber(1), mailbox }).expect("taken");
            if generation > 1 {
                // The session may have missed it, together with the lost supervisor.
                let SessionEvent::WorkerGone { generation: gone } = heard(&mut news).await else { panic!("no loss") };
                assert_eq!(gone, Generation(generation - 1));
            }
            let SessionEvent::WorkerUp { generation: up, worker } = heard(&mut news).await else { panic!("no worker") };
            assert_eq!(up, Generation(generation));
            let lifeline = arguments.roster.read(|entries| entries.worker.clone()).expect("it is entered");
            assert!(!lifeline.over(Duration::ZERO).await, "it lives");
            // As brutally as it can be lost.
            workers.kill();
            let _ = joined.await;
            assert!(lifeline.over(Duration::from_secs(10)).await, "a worker nobody supervises ends");
            assert!(worker.cast(WorkerMsg::SessionOver(SessionNumber(1))).is_err());
        }
        assert_eq!(arguments.roster.last(), Generation(3));
    }
}
