//! The workers' supervisor: slots, the ledger, and the calls between sessions and workers.
//!
//! Owns: which worker runs, which calls it has, what becomes of them when it is lost. May not know: JSON-RPC, jobs.
//!
//! Two decisions stay apart: [`slot`] says when a worker is started again, [`replay`] (through [`ledger`]) says
//! whether a call is run again. Invariants: (1) a restart is triggered by the joined task of the old worker, never by
//! its death notice, so its last messages have all been handled; (2) L5 and L6 as kept by the ledger; (3) a session's
//! reply token is held here until the call leaves the ledger.

pub mod ledger;
pub mod replay;
pub mod slot;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use self::ledger::{Ledger, LedgerEffect};
use self::slot::{RestartPolicy, Slot, SlotEffect, SlotState};
use super::child::Child;
use super::jobs::JobsMsg;
use super::reply::{Answer, AttemptReply, CallKey, ProgressSink, SessionReply};
use super::session::SessionMsg;
use super::worker::{Attempt, Worker, WorkerArguments, WorkerMsg};
use crate::fault::{Fault, FaultCode};
use crate::ids::{Generation, HostId, InvocationId, UnixMillis};
use crate::protocol::session::{CallOutcome, ClientInfo};
use crate::telemetry::{Record, TelemetryHandle};
use crate::tools::{Evidence, Tool, ToolCall};

/// Longest a worker may take to start; building a struct takes microseconds.
const START_LIMIT: Duration = Duration::from_secs(1);

/// Calls the ledger holds over all sessions; sixteen sessions at their own bound. Beyond it a call is refused.
const LEDGER_CALLS: usize = 16 * 1024;

/// Reasons of losses kept for health.
const KEPT_FAULTS: usize = 8;

/// One call, as a session hands it over.
pub struct Invocation {
    /// Which call.
    pub key: CallKey,
    /// What is to be run.
    pub tool: Arc<dyn Tool>,
    /// With what.
    pub arguments: Bytes,
    /// For whom.
    pub client: ClientInfo,
    /// Who hears of progress.
    pub progress: ProgressSink,
    /// Owed to the session.
    pub reply: SessionReply,
}

/// Everything that can wake the workers' supervisor.
pub enum WorkersMsg {
    /// Run these.
    Invoke(Vec<Invocation>),
    /// Nobody waits for these any more.
    Withdraw(Vec<CallKey>),
    /// A worker finished attempts.
    Settled {
        /// Which incarnation says so.
        generation: Generation,
        /// The outcomes.
        results: Vec<(CallKey, CallOutcome)>,
    },
    /// A worker dropped an attempt without an outcome: it is broken.
    Dropped {
        /// Which incarnation.
        generation: Generation,
        /// Which attempt.
        key: CallKey,
    },
    /// A worker's task has ended: all its messages have been handled.
    Gone {
        /// Which incarnation.
        generation: Generation,
    },
    /// A backoff is over.
    Due {
        /// The incarnation it followed.
        generation: Generation,
    },
    /// A probe answered.
    Probed {
        /// For which call.
        key: CallKey,
        /// What it found.
        evidence: Evidence,
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
    /// Calls in the ledger.
    pub in_flight: usize,
    /// Messages of earlier generations that were dropped.
    pub stale: u64,
    /// Attempts after a first one.
    pub replays: u64,
    /// The last losses, newest last.
    pub losses: Vec<(UnixMillis, Fault)>,
}

/// The supervisor actor.
pub struct Workers;

/// What it is started with.
pub struct WorkersArguments {
    /// This system.
    pub host: HostId,
    /// When to restart.
    pub policy: RestartPolicy,
    /// Told when a call is withdrawn: a job may lose its last caller by it.
    pub jobs: ActorRef<JobsMsg>,
    /// Told of restarts.
    pub telemetry: TelemetryHandle,
}

struct Payload {
    tool: Arc<dyn Tool>,
    arguments: Bytes,
    client: ClientInfo,
    progress: ProgressSink,
    reply: SessionReply,
}

/// The supervisor's state.
pub struct WorkersState {
    host: HostId,
    slot: Slot,
    worker: Option<Child<WorkerMsg>>,
    ledger: Ledger<Payload>,
    jobs: ActorRef<JobsMsg>,
    telemetry: TelemetryHandle,
    /// Join watches, backoff timers and probes; they end with the supervisor.
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
            host: arguments.host,
            slot: Slot::new(arguments.policy),
            worker: None,
            ledger: Ledger::default(),
            jobs: arguments.jobs,
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
            WorkersMsg::Invoke(invocations) => state.invoke(&me, invocations).await,
            WorkersMsg::Withdraw(keys) => state.withdraw(&keys),
            WorkersMsg::Settled { generation, results } => state.settled(generation, results),
            WorkersMsg::Dropped { generation, key } => state.dropped(generation, key),
            WorkersMsg::Gone { generation } => state.gone(&me, generation, None).await,
            WorkersMsg::Due { generation } => {
                let effect = state.slot.due(generation);
                state.perform(&me, effect).await;
            }
            WorkersMsg::Probed { key, evidence } => {
                let effect = state.ledger.probed(key, evidence);
                state.decided(&me, effect);
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
            state.reason = Some(error.to_string());
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

impl WorkersState {
    async fn invoke(&mut self, me: &ActorRef<WorkersMsg>, invocations: Vec<Invocation>) {
        let mut keys = Vec::with_capacity(invocations.len());
        for Invocation { key, tool, arguments, client, progress, reply } in invocations {
            if self.ledger.len() >= LEDGER_CALLS {
                let fault = Fault::new(FaultCode::Busy, "too many calls are in flight in this host.")
                    .hint("Wait for one of them and send the call again.");
                answer(vec![Owed::fault(reply, Box::new(fault))]);
                continue;
            }
            let contract = tool.contract();
            self.ledger.record(key, contract, Payload { tool, arguments, client, progress, reply });
            keys.push(key);
        }
        if self.slot.state() != SlotState::Up {
            let effect = self.slot.wanted(Instant::now());
            self.perform(me, effect).await;
        }
        // Starting a worker sends everything that waits; what was sent is not sent twice.
        self.send(me, &keys);
    }

    /// Gives calls to the worker, if there is one. Each is recorded as in flight before it leaves.
    fn send(&mut self, me: &ActorRef<WorkersMsg>, keys: &[CallKey]) {
        let Some(worker) = self.worker.as_ref().filter(|_| self.slot.state() == SlotState::Up) else { return };
        let generation = self.slot.generation();
        let mut attempts = Vec::with_capacity(keys.len());
        for &key in keys {
            let Some((evidence, payload)) = self.ledger.dispatch(key, generation) else { continue };
            let call = ToolCall {
                invocation: InvocationId { host: self.host, session: key.session, call: key.call.0 },
                generation,
                evidence,
                arguments: payload.arguments.clone(),
                client: payload.client.clone(),
                progress: payload.progress.clone(),
            };
            let reply = AttemptReply::new(me.clone(), key, generation);
            attempts.push(Attempt { reply, tool: Arc::clone(&payload.tool), call });
        }
        if !attempts.is_empty() {
            // A refused cast drops the tokens, and the worker's end is on its way: both are handled there.
            let _ = worker.cast(WorkerMsg::Execute(attempts));
        }
    }

    fn withdraw(&mut self, keys: &[CallKey]) {
        for &key in keys {
            if let Some(payload) = self.ledger.take(key) {
                payload.reply.forget();
                if let Some(worker) = &self.worker {
                    let _ = worker.cast(WorkerMsg::Withdraw(key));
                }
            }
            let invocation = InvocationId { host: self.host, session: key.session, call: key.call.0 };
            let _ = self.jobs.cast(JobsMsg::Withdrawn(invocation));
        }
    }

    fn settled(&mut self, generation: Generation, results: Vec<(CallKey, CallOutcome)>) {
        let mut answers = Vec::with_capacity(results.len());
        for (key, mut outcome) in results {
            if let Some(settled) = self.ledger.settle(key, generation) {
                if let CallOutcome::Fault(fault) = &mut outcome {
                    fault.generation.get_or_insert(generation);
                    fault.retried = settled.replays;
                }
                answers.push(Owed { reply: settled.payload.reply, outcome, generation, replays: settled.replays });
            }
        }
        answer(answers);
    }

    fn dropped(&mut self, generation: Generation, key: CallKey) {
        // A dying worker drops its tokens too; one that lives on and lost one is broken, so it is ended. Either way
        // the call is decided about when that generation is gone.
        if generation == self.slot.generation()
            && self.ledger.payload(key).is_some()
            && let Some(worker) = &self.worker
        {
            worker.kill();
        }
    }

    async fn gone(&mut self, me: &ActorRef<WorkersMsg>, generation: Generation, why: Option<FaultCode>) {
        if generation != self.slot.generation() {
            return;
        }
        self.worker = None;
        let reason = self.reason.take().unwrap_or_else(|| "the worker ended".to_owned());
        tracing::warn!(%generation, reason, "worker lost");
        let fault = Fault::new(why.unwrap_or(FaultCode::WorkerLost), reason).generation(generation);
        self.telemetry.record(Record::Fault(Box::new(fault.clone())));
        if self.losses.len() == KEPT_FAULTS {
            self.losses.pop_front();
        }
        self.losses.push_back((UnixMillis::now(), fault));
        let slot_effect = self.slot.gone(generation, Instant::now());
        for effect in self.ledger.lost(generation) {
            self.decided(me, Some(effect));
        }
        self.perform(me, slot_effect).await;
    }

    /// Performs what the slot wants, until it wants nothing at once.
    async fn perform(&mut self, me: &ActorRef<WorkersMsg>, mut effect: SlotEffect) {
        loop {
            match effect {
                SlotEffect::Nothing => return,
                SlotEffect::Wait(generation, wait) => {
                    let me = me.clone();
                    self.tasks.spawn(async move {
                        tokio::time::sleep(wait).await;
                        let _ = me.cast(WorkersMsg::Due { generation });
                    });
                    return;
                }
                SlotEffect::GiveUp => {
                    let detail = "workers were lost too often; calls that need one are refused for a while.";
                    let fault = Fault::new(FaultCode::WorkerLost, detail)
                        .hint("Jobs can still be read and cancelled; try the call again in 30 s.");
                    let answers = self.ledger.keys().into_iter().filter_map(|key| self.ledger.take(key));
                    answer(answers.map(|payload| Owed::fault(payload.reply, Box::new(fault.clone()))).collect());
                    return;
                }
                SlotEffect::Start(generation) => {
                    let arguments = WorkerArguments { supervisor: me.clone(), generation };
                    let started = Worker::spawn_linked(None, Worker, arguments, me.get_cell());
                    match tokio::time::timeout(START_LIMIT, started).await {
                        Ok(Ok((worker, joined))) => {
                            self.worker = Some(Child::new(worker));
                            self.slot.up(generation, Instant::now());
                            let told = me.clone();
                            self.tasks.spawn(async move {
                                let _ = joined.await;
                                let _ = told.cast(WorkersMsg::Gone { generation });
                            });
                            if generation > Generation(1) {
                                self.telemetry.record(Record::WorkerRestart { generation });
                            }
                            let waiting = self.ledger.waiting();
                            self.send(me, &waiting);
                            return;
                        }
                        Ok(Err(error)) => self.reason = Some(error.to_string()),
                        Err(_) => self.reason = Some("the worker did not start in time".to_owned()),
                    }
                    effect = self.slot.gone(generation, Instant::now());
                }
            }
        }
    }

    fn decided(&mut self, me: &ActorRef<WorkersMsg>, effect: Option<LedgerEffect>) {
        match effect {
            None => {}
            Some(LedgerEffect::Send(key)) => self.send(me, &[key]),
            Some(LedgerEffect::Probe(key)) => {
                let Some(payload) = self.ledger.payload(key) else { return };
                let invocation = InvocationId { host: self.host, session: key.session, call: key.call.0 };
                let probe = payload.tool.probe(invocation);
                let me = me.clone();
                self.tasks.spawn(async move {
                    let _ = me.cast(WorkersMsg::Probed { key, evidence: probe.await });
                });
            }
            Some(LedgerEffect::Fail(key, fault)) => {
                if let Some(payload) = self.ledger.take(key) {
                    answer(vec![Owed::fault(payload.reply, fault)]);
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
            in_flight: self.ledger.len(),
            stale: self.ledger.stale(),
            replays: self.ledger.replays(),
            losses: self.losses.iter().cloned().collect(),
        }
    }
}

/// An answer and the token it redeems.
struct Owed {
    reply: SessionReply,
    outcome: CallOutcome,
    generation: Generation,
    replays: u32,
}

impl Owed {
    fn fault(reply: SessionReply, fault: Box<Fault>) -> Self {
        let generation = fault.generation.unwrap_or(Generation::NONE);
        Self { reply, outcome: CallOutcome::Fault(fault), generation, replays: 0 }
    }
}

/// Sends answers to their sessions, one message per run of answers to the same session.
fn answer(answers: Vec<Owed>) {
    let mut batch: Vec<Answer> = Vec::with_capacity(answers.len());
    let mut target: Option<ActorRef<SessionMsg>> = None;
    for Owed { reply, outcome, generation, replays } in answers {
        let Some((session, call)) = reply.into_batch() else { continue };
        if target.as_ref().is_some_and(|target| target.get_id() != session.get_id())
            && let Some(target) = target.take()
        {
            let _ = target.cast(SessionMsg::Settled(std::mem::take(&mut batch)));
        }
        target.get_or_insert(session);
        batch.push(Answer { call, outcome, generation, replays });
    }
    if let Some(target) = target.filter(|_| !batch.is_empty()) {
        let _ = target.cast(SessionMsg::Settled(batch));
    }
}
