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

use self::backend::Backend;
use self::lifeline::{Lifeline, Order};
use self::messages::{WorkerHandle, WorkerMsg, WorkersMsg, WorkersSnapshot};
use self::roster::Roster;
use self::worker::{Worker, WorkerArguments};
use super::child;
use super::reply::SessionMailbox;
use super::session::events::SessionEvent;
use super::supervision::driver::{ChildDriver, ChildReport, Spawned};
use super::supervision::only::OnlyChild;
use super::supervision::slot::{RestartPolicy, SlotState};
use super::supervision::{ChildEvent, ChildSpec, Exit, RestartType};
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
    /// Fault plan.
    pub faults: Faults,
}

/// The worker there is.
struct Current {
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
    worker: ChildDriver<OnlyChild, WorkersMsg>,
    backend: Backend,
    roster: Arc<Roster>,
    current: Option<Current>,
    /// Who hears of workers; as many as there are connections.
    sessions: BTreeMap<SessionNumber, SessionMailbox>,
    telemetry: TelemetryHandle,
    /// Whether workers may be started.
    pause: Pause,
    /// The first generation of this image, and the first after a pause: they take no lost worker's place.
    first: Generation,
    losses: VecDeque<(UnixMillis, Fault)>,
}

#[cfg_attr(feature = "ractor-async-trait", ractor::async_trait)]
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
        let spec = ChildSpec {
            name: "a worker's actor",
            restart: RestartType::Permanent,
            policy: arguments.policy,
            shutdown: END_LIMIT,
        };
        let last = arguments.roster.last().max(inherited);
        let worker = OnlyChild::after(last, past.map_or(0, |past| past.restarts), spec);
        Ok(WorkersState {
            worker: ChildDriver::new(worker, WorkersMsg::Child),
            pause: Pause::No,
            first: inherited.next(),
            losses: past.map_or_else(VecDeque::new, |past| past.losses.iter().cloned().collect()),
            backend: arguments.backend,
            roster: arguments.roster,
            current: None,
            sessions: BTreeMap::new(),
            telemetry: arguments.telemetry,
            faults: arguments.faults,
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
        _event: SupervisionEvent,
        _state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        // What happens next is decided when the worker's loop has been joined: this event may overtake its last messages.
        // An actor that is gone while its loop is not takes the loop along by itself.
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        state.worker.stop().await;
        state.see_off().await;
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
                    self.handle(&me, ChildEvent::Wanted(())).await;
                }
            }
            WorkersMsg::SessionOver(session) => {
                self.sessions.remove(&session);
                if let Some(worker) = &self.current {
                    let _ = worker.handle.cast(WorkerMsg::SessionOver(session));
                }
            }
            WorkersMsg::Broken { generation } => {
                // A dying worker drops its tokens too; then this is late and changes nothing.
                if let Some(worker) =
                    self.current.as_ref().filter(|_| generation == self.worker.children().generation())
                {
                    let fault = Fault::new(FaultCode::WorkerLost, "the worker dropped a call without an outcome");
                    worker.lifeline.end(Order::Kill(Box::new(fault)));
                }
            }
            WorkersMsg::Up { generation, pid } => self.up(&me, generation, pid).await,
            WorkersMsg::Gone { generation, fault } => self.gone(&me, generation, *fault).await,
            WorkersMsg::Child(news) => {
                let event = self.worker.event(news);
                self.handle(&me, event).await;
            }
            WorkersMsg::SetAside(reply) => self.set_aside(reply).await,
            WorkersMsg::Resume => {
                self.pause = Pause::No;
                let generation = self.worker.children().generation();
                self.first = generation.next();
                // Sessions that were told by whoever paused us have nothing left with it.
                self.tell(|| SessionEvent::WorkerGone { generation });
                if !self.sessions.is_empty() {
                    self.handle(&me, ChildEvent::Wanted(())).await;
                }
            }
            WorkersMsg::Snapshot(reply) => {
                let _ = reply.send(self.snapshot());
            }
        }
        Ok(())
    }

    /// Ends the worker there is, without taking it for lost.
    async fn set_aside(&mut self, reply: oneshot::Sender<WorkersSnapshot>) {
        self.pause = Pause::Paused;
        self.worker.set_aside(()).await;
        let snapshot = self.snapshot();
        if self.see_off().await {
            let _ = reply.send(snapshot);
        }
    }

    /// Waits for the end of a worker whose actor was stopped; whether it came.
    async fn see_off(&mut self) -> bool {
        let Some(worker) = self.current.take() else { return true };
        worker.lifeline.end(Order::Stop);
        let over = worker.lifeline.over(END_LIMIT).await;
        if !over {
            tracing::error!("a worker did not end in time");
        }
        over
    }

    fn news(&self) -> Option<SessionEvent> {
        let worker = self.current.as_ref().filter(|_| self.worker.children().state() == SlotState::Up)?;
        Some(SessionEvent::WorkerUp { generation: self.worker.children().generation(), worker: worker.handle.clone() })
    }

    /// The newest generation that is gone.
    fn lost(&self) -> Generation {
        let newest = self.worker.children().generation();
        match self.worker.children().state() {
            SlotState::Starting | SlotState::Up => Generation(newest.0.saturating_sub(1)),
            _ => newest,
        }
    }

    /// Tells every session; one that is over is forgotten.
    fn tell(&mut self, event: impl Fn() -> SessionEvent) {
        self.sessions.retain(|_, mailbox| mailbox.send(event()).is_ok());
    }

    async fn up(&mut self, me: &ActorRef<WorkersMsg>, generation: Generation, pid: Option<u32>) {
        let slot = self.worker.children();
        if slot.state() != SlotState::Starting || slot.generation() != generation {
            return;
        }
        let Some(worker) = &mut self.current else { return };
        worker.pid = pid;
        let handle = worker.handle.clone();
        self.handle(me, ChildEvent::Up((), generation)).await;
        if generation > self.first {
            self.telemetry.record(Record::WorkerRestart { generation });
        }
        self.tell(|| SessionEvent::WorkerUp { generation, worker: handle.clone() });
    }

    async fn gone(&mut self, me: &ActorRef<WorkersMsg>, generation: Generation, fault: Fault) {
        let slot = self.worker.children();
        if generation != slot.generation() || matches!(slot.state(), SlotState::Stopping | SlotState::Empty) {
            return;
        }
        self.current = None;
        self.note(generation, fault);
        self.tell(|| SessionEvent::WorkerGone { generation });
        self.handle(me, ChildEvent::Gone((), generation, Exit::Failed)).await;
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

    /// Does what follows from an event.
    async fn handle(&mut self, me: &ActorRef<WorkersMsg>, event: ChildEvent<()>) {
        let Self { worker, backend, roster, current, .. } = self;
        let start = |(), generation| start(me.clone(), generation, backend.clone(), roster, current);
        for report in worker.handle(me, event, start).await {
            match report {
                ChildReport::NotStarted((), generation, why) => {
                    self.note(generation, Fault::new(FaultCode::WorkerSpawnFailed, why));
                }
                ChildReport::GaveUp(()) => {
                    let period = self.worker.children().policy().period;
                    self.tell(|| SessionEvent::WorkersGaveUp { period });
                }
                ChildReport::LeftOut(()) => {}
            }
        }
    }

    fn snapshot(&self) -> WorkersSnapshot {
        WorkersSnapshot {
            generation: self.worker.children().generation(),
            isolation: self.backend.isolation(),
            pid: self.current.as_ref().and_then(|worker| worker.pid),
            alive: self.worker.children().state() == SlotState::Up,
            gave_up: self.worker.children().state() == SlotState::GaveUp,
            restarts: self.worker.children().total_restarts(),
            consecutive_failures: self.worker.children().consecutive_failures(),
            losses: self.losses.iter().cloned().collect(),
        }
    }
}

/// Enters a new worker, then starts it: nobody may ever find one that is not known here.
fn start(
    workers: ActorRef<WorkersMsg>,
    generation: Generation,
    backend: Backend,
    roster: &Roster,
    current: &mut Option<Current>,
) -> impl Future<Output = Result<Spawned, String>> + use<> {
    let (handle, inbox) = WorkerHandle::new();
    let (lifeline, keeping) = Lifeline::new();
    roster.enter(generation, lifeline.clone());
    *current = Some(Current { handle, lifeline: lifeline.clone(), pid: None });
    async move {
        let supervisor = workers.get_cell();
        let arguments = WorkerArguments { generation, backend, inbox, keeping, lifeline, workers };
        match tokio::time::timeout(START_LIMIT, Worker::spawn_linked(None, Worker, arguments, supervisor)).await {
            Ok(Ok((actor, _))) => Ok(Spawned::Coming(actor.get_cell())),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the worker did not start in time".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

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
