//! A session: one client's connection, from its bytes to its answers.
//!
//! Owns: the bytes of the connection, the state machine [`SessionCore`], the [`ledger`] of its worker calls, the calls
//! that run beside it in the host. May not know: what a tool does, how a worker is started.
//!
//! One loop selects what happened ([`SessionEvent`], bytes, time) and performs what the state machine asks for; the
//! actor around it is what supervision sees. A call costs two messages: to the worker and back.
//!
//! The loop's state is the connection, which cannot be made again, so the actor only borrows it ([`Kept`]): when actor or
//! loop panics, the next incarnation goes on where the last one stood. What it was doing just then is answered with an
//! error; everything else in flight goes on.
//!
//! Invariants: (1) a turn never waits: it decides, sends messages and writes what the client takes at once, so a cancel
//! or a ping is served while anything else runs; (2) reading stops while the client does not read its answers, so a
//! stalled client stalls itself (L14) and nothing grows without a bound (L9); (3) one owner writes, whole lines (L11);
//! (4) L5 and L6 as kept by the ledger; (5) a panic of a host tool is that call's fault, not the session's; (6) a call
//! in flight is in the ledger or among the host's calls, else it is answered when the session is resumed.

mod calls;
mod deadlines;
pub mod events;
pub mod flow;
pub mod gauges;
pub mod ledger;
mod passed;
pub mod replay;
mod streams;
mod struck;
mod subscriptions;

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use self::calls::Settling;
pub use self::events::SessionEvent;
use self::flow::Flow;
pub use self::gauges::Gauges;
use self::ledger::Ledger;
pub use self::passed::SessionSnapshot;
use self::passed::{Following, HostCall, Stillness, TakenOver};
use self::streams::push;
pub use self::streams::{ClientInput, ClientOutput};
use super::child;
use super::connections::Connections;
use super::current::Current;
use super::jobs::messages::JobsMsg;
use super::kept::{Kept, Lent};
use super::reply::SessionMailbox;
use super::rollout::RolloutHandle;
use super::sessions::messages::{SessionEnd, SessionsMsg};
use super::workers::messages::{WorkerHandle, WorkersMsg};
use crate::actors::clock;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{CallNumber, Generation, HostId, JobId, SessionNumber};
use crate::config::clients::Clients;
use crate::failpoints::{Faults, Operation};
use crate::protocol::frame::{Frame, FrameReader};
use crate::protocol::session::{CallOutcome, ClientInfo, SessionCore, SessionEffect};
use crate::protocol::tasks::TaskAnswer;
use crate::telemetry::TelemetryHandle;
use crate::tools::progress::ProgressSink;
use crate::tools::roots::RootsHandle;
use crate::tools::tasks::TaskDesk;
use crate::tools::{Target, Tool};

/// Unwritten bytes at which reading stops: one pipe's worth many times over, small beside a process.
const BACKLOG: usize = 1024 * 1024;

/// Longest the last answers may take to be written once the session is over.
const DRAIN: Duration = Duration::from_secs(1);

/// Messages handled before bytes are written and read again.
const TURN: usize = 256;

/// The session actor: what supervision sees of the loop.
pub struct Session;

/// What a connection's loop is made from.
pub struct SessionParts {
    /// This system.
    pub host: HostId,
    /// Its number.
    pub number: SessionNumber,
    /// The state machine, before its first message.
    pub core: SessionCore,
    /// The tools, in the catalogue's order.
    pub tools: Arc<[Arc<dyn Tool>]>,
    /// Who starts workers.
    pub workers: Current<WorkersMsg>,
    /// Who hears of withdrawn calls: a job may lose its last caller by one.
    pub jobs: Current<JobsMsg>,
    /// Who counts.
    pub telemetry: TelemetryHandle,
    /// What all sessions add up to.
    pub gauges: Arc<Gauges>,
    /// The client's bytes.
    pub input: ClientInput,
    /// Ours.
    pub sink: ClientOutput,
    /// Longest line taken.
    pub line_limit: usize,
    /// What is to break.
    pub faults: Faults,
    /// What is known about clients.
    pub clients: Clients,
    /// Who answers about tasks.
    pub tasks: Option<TaskDesk>,
    /// Who hears what the client works on.
    pub roots: RootsHandle,
    /// Who hears that something was handled.
    pub rollout: RolloutHandle,
}

/// What an incarnation is started with.
pub struct SessionArguments {
    /// Its number.
    pub number: SessionNumber,
    /// The connection, to be borrowed.
    pub kept: Arc<Kept<SessionLoop>>,
    /// All connections: they say whether an end is one for good.
    pub connections: Connections,
    /// Who hears that the connection is over.
    pub sessions: ActorRef<SessionsMsg>,
}

/// The only message to the actor itself: its loop has ended.
pub enum SessionMsg {
    /// In order, or not.
    LoopEnded(SessionEnd),
}

/// The loop of a session panicked, or stood still in the middle of a turn.
#[derive(Debug, thiserror::Error)]
#[error("the session's loop failed")]
pub struct LoopFailed;

/// The actor's state; dropping it ends the loop, which gives the connection back.
pub struct SessionState {
    number: SessionNumber,
    sessions: ActorRef<SessionsMsg>,
    connections: Connections,
    /// How the loop is told that the system stops.
    mailbox: Option<SessionMailbox>,
    lending: Option<oneshot::Receiver<SessionMailbox>>,
    task: JoinSet<()>,
}

impl Actor for Session {
    type Msg = SessionMsg;
    type State = SessionState;
    type Arguments = SessionArguments;

    async fn pre_start(&self, me: ActorRef<Self::Msg>, a: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        let (lent, lending) = oneshot::channel();
        let kept = a.kept;
        let mut task = JoinSet::new();
        task.spawn(async move {
            // The last incarnation may still be giving it back. One that is over had an end that was not heard.
            let Some(connection) = kept.lend().await else {
                let _ = me.cast(SessionMsg::LoopEnded(SessionEnd::Closed));
                return;
            };
            let end = AssertUnwindSafe(serve(connection, lent)).catch_unwind().await.unwrap_or(SessionEnd::Failed);
            let _ = me.cast(SessionMsg::LoopEnded(end));
        });
        Ok(SessionState {
            number: a.number,
            sessions: a.sessions,
            connections: a.connections,
            mailbox: None,
            lending: Some(lending),
            task,
        })
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SessionMsg::LoopEnded(SessionEnd::Failed) => Err(LoopFailed.into()),
            SessionMsg::LoopEnded(SessionEnd::Closed) => {
                let _ = state.sessions.cast(SessionsMsg::Over(state.number, SessionEnd::Closed));
                me.stop(None);
                Ok(())
            }
        }
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        if state.connections.are_closing() {
            if let Some(lending) = state.lending.take() {
                state.mailbox = lending.await.ok();
            }
            if let Some(mailbox) = &state.mailbox {
                let _ = mailbox.send(SessionEvent::Stop);
            }
        } else {
            // Only this incarnation ends: the connection is given back between two turns.
            state.task.abort_all();
        }
        while state.task.join_next().await.is_some() {}
        Ok(())
    }
}

/// Serves with a borrowed connection until it is over.
async fn serve(mut connection: Lent<SessionLoop>, lent: oneshot::Sender<SessionMailbox>) -> SessionEnd {
    if let Some(session) = connection.get() {
        let _ = lent.send(session.mailbox.clone());
        if session.run().await == SessionEnd::Failed {
            return SessionEnd::Failed;
        }
    }
    drop(connection.finish());
    SessionEnd::Closed
}

/// What is known of the worker.
enum Serving {
    /// Nothing: nobody was asked.
    Unasked,
    /// The supervisor was asked, or is starting one.
    Awaited,
    /// There is one.
    Up(Generation, WorkerHandle),
}

/// What is kept with a worker call.
struct Payload {
    tool: usize,
    arguments: Bytes,
    client: ClientInfo,
    progress: ProgressSink,
}

/// Where a session stands on its way to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SessionStage {
    /// The client sends.
    Open,
    /// It sends nothing more; what is in flight may still answer until then.
    Lingering(tokio::time::Instant),
    /// Nothing is decided any more; what was decided is written until then.
    Draining(tokio::time::Instant),
}

/// A connection and everything that is going on in it.
pub struct SessionLoop {
    host: HostId,
    number: SessionNumber,
    core: SessionCore,
    tools: Arc<[Arc<dyn Tool>]>,
    names: Vec<Arc<str>>,
    workers: Current<WorkersMsg>,
    jobs: Current<JobsMsg>,
    telemetry: TelemetryHandle,
    gauges: Arc<Gauges>,
    mailbox: SessionMailbox,
    events: mpsc::UnboundedReceiver<SessionEvent>,
    serving: Serving,
    /// The newest worker that is known to be gone.
    dead: Generation,
    ledger: Ledger<Payload>,
    host_calls: HashMap<CallNumber, HostCall>,
    /// Host tools and probes; they end with the session.
    tasks: JoinSet<()>,
    reader: FrameReader,
    line_limit: usize,
    input: ClientInput,
    sink: ClientOutput,
    out: BytesMut,
    /// Whole lines of `out`; what follows them was being written when a panic struck.
    whole: usize,
    /// The message that is being read.
    reading: Option<Frame>,
    /// Whether an incarnation has served before.
    resumed: bool,
    /// Whether something was written that the sink may still hold.
    unflushed: bool,
    /// Jobs whose end is told by what is not written yet; no more than there are answers in it.
    shown: Vec<JobId>,
    effects: Vec<SessionEffect>,
    /// What was decided and is not done yet.
    todo: VecDeque<SessionEffect>,
    calls: Vec<CallNumber>,
    /// Calls went to a worker in this turn.
    handed_over: bool,
    stage: SessionStage,
    flow: Flow,
    /// Until when reading waits for the worker, while it does.
    held: Option<tokio::time::Instant>,
    /// The tools' deadlines, in the catalogue's order.
    deadlines: Vec<Option<Duration>>,
    /// When the earliest call in flight may be late.
    due: Option<tokio::time::Instant>,
    /// The deadline `due` was made from, while it is one call's whole deadline.
    shortest: Option<Duration>,
    clock: Pin<Box<tokio::time::Sleep>>,
    /// What the clock is set to, while it runs.
    clock_at: Option<tokio::time::Instant>,
    clients: Clients,
    task_desk: Option<TaskDesk>,
    roots: RootsHandle,
    rollout: RolloutHandle,
    /// Who follows tasks for the client, by number.
    follows: HashMap<CallNumber, Following>,
    /// The client has not heard yet that the tools differ.
    owes_change: bool,
    faults: Faults,
    /// A fault that was met in a turn holds everything up for so long; `None` inside is for ever.
    held_up: Option<Option<Duration>>,
    /// Whether it stands still for an upgrade.
    stillness: Stillness,
    /// What another image passed on and is not done yet.
    inherited: Option<TakenOver>,
}

impl SessionLoop {
    /// A connection nobody serves yet.
    #[must_use]
    pub fn new(a: SessionParts) -> Self {
        let (mailbox, events) = mpsc::unbounded_channel();
        let names = a.tools.iter().map(|tool| Arc::from(tool.name())).collect();
        let deadlines = a.tools.iter().map(|tool| tool.deadline()).collect();
        Self {
            host: a.host,
            number: a.number,
            core: a.core,
            tools: a.tools,
            names,
            workers: a.workers,
            jobs: a.jobs,
            telemetry: a.telemetry,
            gauges: a.gauges,
            mailbox,
            events,
            serving: Serving::Unasked,
            dead: Generation::NONE,
            ledger: Ledger::default(),
            host_calls: HashMap::new(),
            tasks: JoinSet::new(),
            reader: FrameReader::new(a.line_limit),
            line_limit: a.line_limit,
            input: a.input,
            sink: a.sink,
            out: BytesMut::new(),
            whole: 0,
            reading: None,
            resumed: false,
            unflushed: false,
            shown: Vec::new(),
            effects: Vec::new(),
            todo: VecDeque::new(),
            calls: Vec::new(),
            handed_over: false,
            stage: SessionStage::Open,
            flow: Flow::default(),
            held: None,
            deadlines,
            due: None,
            shortest: None,
            clock: Box::pin(tokio::time::sleep(Duration::ZERO)),
            clock_at: None,
            clients: a.clients,
            task_desk: a.tasks,
            roots: a.roots,
            rollout: a.rollout,
            follows: HashMap::new(),
            owes_change: false,
            faults: a.faults,
            held_up: None,
            stillness: Stillness::Moving,
            inherited: None,
        }
    }

    /// Where it hears from everybody but its client.
    #[must_use]
    pub fn mailbox(&self) -> SessionMailbox {
        self.mailbox.clone()
    }

    /// Serves until the connection is over, or until a turn does not come to its end: then another run goes on.
    ///
    /// # Cancel safety
    ///
    /// Safe: everything is in `self`, and another run goes on with it.
    async fn run(&mut self) -> SessionEnd {
        if std::mem::replace(&mut self.resumed, true) {
            self.resume();
        }
        loop {
            if self.stillness.is_still() {
                // Neither bytes nor clock: what is done now, the next image would do again.
                if let Some(event) = self.events.recv().await {
                    self.on_event(event);
                }
                continue;
            }
            if self.faults.is_armed() && child::in_time(self.meet_faults()).await.is_err() {
                return SessionEnd::Failed;
            }
            self.write_now().await;
            if self.is_over() {
                break;
            }
            self.tell_when_quiet();
            let mut reading =
                self.stage == SessionStage::Open && self.out.len() <= BACKLOG && self.stillness == Stillness::Moving;
            if flow::crowded(self.core.in_flight(), self.core.bytes_in_flight()) {
                // Calls that were just handed over get their turn before more are read.
                self.held = self.flow.crowd(clock::now()).map(tokio::time::Instant::from_std);
                reading &= self.held.is_none();
                tokio::task::yield_now().await;
            } else {
                self.held = None;
                self.flow.clear();
            }
            self.set_clock();
            let timed = self.clock_at.is_some();
            if std::mem::take(&mut self.handed_over) {
                // A worker in this process answers most calls in its next turn; until then there is nothing to wait for.
                give_way().await;
            }
            tokio::select! {
                // News before bytes: what is decided must not wait behind new work.
                biased;
                Some(event) = self.events.recv() => {
                    self.on_event(event);
                    for _ in 1..TURN {
                        let Ok(event) = self.events.try_recv() else { break };
                        self.on_event(event);
                    }
                    while !self.tasks.is_empty() && self.tasks.try_join_next().is_some() {}
                }
                pushed = push(&mut self.sink, &self.out), if self.unflushed || !self.out.is_empty() => {
                    self.on_pushed(pushed);
                }
                read = self.input.read_buf(self.reader.space()), if reading => self.on_read(read),
                () = self.clock.as_mut(), if timed => self.on_time(),
            }
        }
        let _ = tokio::time::timeout(DRAIN, self.sink.shutdown()).await;
        SessionEnd::Closed
    }

    /// Goes on after another incarnation. It may have ended in the middle of a turn.
    fn resume(&mut self) {
        self.out.truncate(self.whole);
        self.calls.clear();
        // What the turn had decided and not done yet.
        self.perform(None);
        let passed_on = self.inherit();
        if let Some(frame) = self.reading.take() {
            self.core.abandon(&frame, &mut self.out);
            self.whole = self.out.len();
        }
        let mut open: Vec<CallNumber> = self.core.open_calls().map(|(call, ..)| call).collect();
        open.sort_unstable();
        let in_hand = |call: &CallNumber| self.ledger.holds(*call) || self.host_calls.contains_key(call);
        let lost: Vec<CallNumber> = open.iter().copied().filter(|call| !in_hand(call)).collect();
        for call in lost {
            let fault = match passed_on {
                false => Fault::new(FaultCode::Internal, "the session failed while it handled this call."),
                true => Fault::new(FaultCode::OutcomeUnknown, "an upgrade cut this call off, and it could not go on.")
                    .hint("A job that was accepted is kept; find it with consult_jobs."),
            };
            self.settle(call, CallOutcome::Fault(Box::new(fault)), Settling::default());
        }
        let held: Vec<CallNumber> = self.ledger.keys().into_iter().chain(self.host_calls.keys().copied()).collect();
        for call in held {
            if !self.core.is_open(call) {
                self.withdraw(call);
            }
        }
        // A turn that broke off may have lost the time of the next deadline: it is found again.
        self.expire();
        // What was said to an incarnation that is gone, by us or by it, may be lost: say and ask again.
        let open = open.into_iter().filter(|call| self.core.is_open(*call)).map(|call| call.0).collect();
        let _ = self.jobs.cast(JobsMsg::Resumed { session: self.number, open });
        self.serving = Serving::Unasked;
        if passed_on {
            self.release(self.dead);
        }
        if !self.ledger.is_empty() {
            self.want_worker();
        }
        // Lines that had arrived behind it; nothing else would wake them.
        self.take_lines();
        self.perform(None);
    }

    fn is_over(&self) -> bool {
        match self.stage {
            SessionStage::Open => false,
            SessionStage::Lingering(_) => self.core.in_flight() == 0 && self.out.is_empty(),
            SessionStage::Draining(_) => self.out.is_empty(),
        }
    }

    fn on_event(&mut self, event: SessionEvent) {
        let Some(event) = self.stillness.admit(event) else { return };
        match event {
            SessionEvent::Settled { generation, call, outcome } => self.on_settled(generation, call, outcome),
            SessionEvent::Dropped { generation, call } => {
                // A worker that lives on without having answered is broken. If it is dying anyway, this changes nothing:
                // the call is decided about when its generation is gone.
                if self.ledger.is_in_flight(call, generation) {
                    let _ = self.workers.cast(WorkersMsg::Broken { generation });
                }
            }
            SessionEvent::WorkerUp { generation, worker } => {
                // A supervisor we have not asked speaks to our previous incarnation; a generation that is known to be gone
                // is no longer up.
                if matches!(self.serving, Serving::Unasked) || generation <= self.dead {
                    return;
                }
                self.serving = Serving::Up(generation, worker);
                let waiting = self.ledger.waiting();
                self.send(&waiting);
            }
            SessionEvent::WorkerGone { generation } => {
                self.dead = self.dead.max(generation);
                if matches!(self.serving, Serving::Up(current, _) if current <= generation) {
                    self.serving = Serving::Awaited;
                }
                for effect in self.ledger.lost(generation) {
                    self.decided(effect);
                }
            }
            SessionEvent::WorkersGaveUp { period } => {
                self.serving = Serving::Unasked;
                let fault = Fault::new(
                    FaultCode::WorkerLost,
                    "workers were lost too often; calls that need one are refused for a while.",
                )
                .hint(format!(
                    "Jobs can still be read and cancelled; try the call again in {} s.",
                    period.as_secs().max(1)
                ));
                for call in self.ledger.keys() {
                    self.fail(call, Box::new(fault.clone()));
                }
            }
            SessionEvent::Probed { call, evidence } => {
                if let Some(effect) = self.ledger.probed(call, evidence) {
                    self.decided(effect);
                }
            }
            SessionEvent::HostSettled { call, outcome } => {
                self.host_calls.remove(&call);
                // Where a worker's calls are the crowd, only theirs make room.
                if !flow::crowded(self.ledger.len(), 0) {
                    self.flow.settled();
                }
                self.answer(call, outcome, Settling::default());
            }
            SessionEvent::Told { call, answer } => {
                self.host_calls.remove(&call);
                if !flow::crowded(self.ledger.len(), 0) {
                    self.flow.settled();
                }
                let told = answer.as_ref().ok().and_then(TaskAnswer::ended).filter(|_| self.core.is_open(call));
                self.core.on_told(call, answer, clock::now(), &mut self.out, &mut self.effects);
                self.whole = self.out.len();
                self.shown.extend(told);
                self.perform(None);
            }
            SessionEvent::TaskNews { number, news } => {
                // A client that is slow to read misses them, as it may; whoever follows comes to an end all the same.
                let mut missed = BytesMut::new();
                let out = if self.out.len() <= BACKLOG { &mut self.out } else { &mut missed };
                let before = out.len();
                self.core.on_task(number, &news, out, &mut self.effects);
                let said = out.len() > before && missed.is_empty();
                self.whole = self.out.len();
                self.shown.extend(news.ended().filter(|_| said));
                self.perform(None);
            }
            SessionEvent::Peek(reply) => drop(reply.send(self.snapshot())),
            SessionEvent::Freeze(reply) => self.freeze(reply),
            SessionEvent::HoldStill(reply) => self.hold_still(reply),
            SessionEvent::Thaw(ended) => self.thaw(ended),
            SessionEvent::ToolsChanged => {
                self.owes_change = true;
                self.say_change();
            }
            SessionEvent::Progress { call, latest } => {
                // News that can be missed are left out for a client that is slow to read.
                if let Some((value, message)) = latest.take()
                    && self.out.len() <= BACKLOG / 4
                {
                    self.core.on_progress(call, value, Some(&message), &mut self.out);
                    self.whole = self.out.len();
                }
            }
            SessionEvent::Stop => {
                if self.stillness != Stillness::Moving {
                    self.thaw(Generation::NONE);
                }
                self.stop();
            }
        }
    }

    /// Performs what the state machine asked for.
    fn perform(&mut self, mut settling: Option<Settling>) {
        if self.effects.is_empty() && self.todo.is_empty() {
            return;
        }
        // One at a time, and the others stay where the next incarnation finds them.
        self.todo.extend(self.effects.drain(..));
        let mut calls = std::mem::take(&mut self.calls);
        while let Some(effect) = self.todo.pop_front() {
            match effect {
                SessionEffect::Invoke(call) => match self.tools[call.tool].target() {
                    Target::Worker => calls.extend(self.record(call)),
                    Target::Host => self.run_here(call),
                },
                SessionEffect::Ask { number, ask, client } => self.ask(number, ask, client),
                SessionEffect::Withdraw(call) => self.withdraw(call),
                SessionEffect::Follow { number, jobs, news, client } => self.follow(number, jobs, news, &client),
                SessionEffect::Unfollow(number) => self.unfollow(number),
                SessionEffect::Roots(roots) => self.roots.set(self.number, roots),
                SessionEffect::GaveUp { client, after } => {
                    tracing::debug!(client = client.name().as_deref(), ?after, "a client withdrew a call");
                    self.observed(self.clients.gave_up(client.name().as_deref(), after));
                }
                SessionEffect::Waited { client, so_long } => {
                    self.observed(self.clients.waited(client.name().as_deref(), so_long));
                }
                SessionEffect::Finished(finished) => {
                    if finished.tool.is_none() {
                        self.crash_worker_at(Operation::Method(finished.method));
                        self.force_rollout_at(Operation::Method(finished.method));
                    }
                    self.count(finished, settling.take());
                }
            }
        }
        if !calls.is_empty() {
            if matches!(self.serving, Serving::Unasked) {
                self.want_worker();
            }
            self.send(&calls);
            calls.clear();
        }
        self.calls = calls;
    }

    /// The system stops while the client may still wait: it is told, call by call.
    fn stop(&mut self) {
        if self.stage == SessionStage::Open {
            self.core.on_stopping(&mut self.out, &mut self.effects);
            self.whole = self.out.len();
            self.perform(None);
            let mut open: Vec<CallNumber> = self.core.open_calls().map(|(call, ..)| call).collect();
            open.sort_unstable();
            for call in open {
                self.withdraw(call);
                let fault = Fault::new(FaultCode::Stopping, "the server is stopping.")
                    .hint("A job that was accepted is kept; find it with consult_jobs when the server is back.");
                self.settle(call, CallOutcome::Fault(Box::new(fault)), Settling::default());
            }
        }
        self.close();
    }

    /// Ends a connection nobody serves any more: says so to its client, within the time a drain may take.
    pub async fn end(&mut self) {
        let _ = self.mailbox.send(SessionEvent::Stop);
        let _ = self.run().await;
    }

    /// Nothing is decided any more: whatever is open has no caller.
    fn close(&mut self) {
        self.core.on_closed(clock::now(), &mut self.effects);
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                SessionEffect::Withdraw(call) => self.withdraw(call),
                SessionEffect::Finished(finished) => self.count(finished, None),
                SessionEffect::Unfollow(number) => self.unfollow(number),
                // A closed state machine asks for nothing new.
                SessionEffect::Invoke(_)
                | SessionEffect::Ask { .. }
                | SessionEffect::Follow { .. }
                | SessionEffect::Roots(_) => {}
                SessionEffect::GaveUp { .. } | SessionEffect::Waited { .. } => {}
            }
        }
        if !matches!(self.stage, SessionStage::Draining(_)) {
            self.stage = SessionStage::Draining(tokio::time::Instant::now() + DRAIN);
        }
    }
}

/// Lets the tasks that are ready have their turn. The runtime's own `yield_now` would first look for news of the system, which
/// is a system call.
async fn give_way() {
    let mut gave = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut gave, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Told when a connection is over.
pub type SessionEndReply = oneshot::Sender<Result<SessionEnd, Fault>>;

impl Drop for SessionLoop {
    fn drop(&mut self) {
        // A connection that is given up has calls open.
        self.gauges.in_flight.fetch_sub(self.ledger.len(), Ordering::Relaxed);
    }
}
