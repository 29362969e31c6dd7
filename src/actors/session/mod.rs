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

pub mod flow;
pub mod ledger;
mod passed;
pub mod replay;

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::poll_immediate;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use self::flow::Flow;
use self::ledger::{Ledger, LedgerEffect};
pub use self::passed::SessionSnapshot;
use self::passed::{Following, HostCall, HostWork, Inherited, Stillness};
use super::child;
use super::connections::Connections;
use super::current::Current;
use super::jobs::JobsMsg;
use super::kept::{Kept, Lent};
use super::reply::{AttemptReply, Latest, ProgressSink, SessionMailbox};
use super::rollout::RolloutHandle;
use super::sessions::{SessionEnd, SessionsMsg};
use super::worker::{Attempt, CallKey, WorkerHandle, WorkerMsg};
use super::workers::WorkersMsg;
use crate::actors::clock;
use crate::clients::Clients;
use crate::fault::{Fault, FaultCode};
use crate::faults::{Broken, FaultPoint, Faults, InTurn, Operation};
use crate::ids::{Generation, HostId, InvocationId, JobId, SessionNumber};
use crate::protocol::frame::{Frame, FrameReader};
use crate::protocol::session::{Call, CallNumber, CallOutcome, ClientInfo, Effect, Finished, SessionCore, Wanted};
use crate::protocol::tasks::{TaskAnswer, TaskAsk, TaskNews};
use crate::rollout::Trigger;
use crate::telemetry::{Record, TelemetryHandle, ToolCallRecord};
use crate::tools::tasks::TaskDesk;
use crate::tools::{Evidence, Target, Tool, ToolCall};

/// How long calls may still answer after the client has closed its end. Fast calls do; whoever waits longer is gone.
const LINGER: Duration = Duration::from_millis(500);

/// Unwritten bytes at which reading stops: one pipe's worth many times over, small beside a process.
const BACKLOG: usize = 1024 * 1024;

/// Room kept for output between turns; more is given back.
const OUTPUT_KEPT: usize = 256 * 1024;

/// Longest the last answers may take to be written once the session is over.
const DRAIN: Duration = Duration::from_secs(1);

/// Messages handled before bytes are written and read again.
const TURN: usize = 256;

/// What a connection reads from.
pub type Input = Box<dyn AsyncRead + Send + Unpin>;

/// What a connection writes to.
pub type Sink = Box<dyn AsyncWrite + Send + Unpin>;

/// Everything a session hears besides its client's bytes and its clock.
#[derive(Debug)]
pub enum SessionEvent {
    /// A worker finished an attempt.
    Settled {
        /// Which incarnation says so.
        generation: Generation,
        /// Which call.
        call: CallNumber,
        /// How it came out.
        outcome: CallOutcome,
    },
    /// A worker dropped an attempt without an outcome.
    Dropped {
        /// Which incarnation.
        generation: Generation,
        /// Which call.
        call: CallNumber,
    },
    /// There is a worker.
    WorkerUp {
        /// Which incarnation.
        generation: Generation,
        /// It.
        worker: WorkerHandle,
    },
    /// A worker and all before it are gone, and have said everything they had to say.
    WorkerGone {
        /// The newest of them.
        generation: Generation,
    },
    /// There will be no worker for a while.
    WorkersGaveUp {
        /// After so long at most, one is started again when it is wanted.
        period: Duration,
    },
    /// A probe answered.
    Probed {
        /// For which call.
        call: CallNumber,
        /// What it found.
        evidence: Evidence,
    },
    /// A host tool finished.
    HostSettled {
        /// Which call.
        call: CallNumber,
        /// How it came out.
        outcome: CallOutcome,
    },
    /// Something about tasks was found out.
    Told {
        /// For which request.
        call: CallNumber,
        /// What.
        answer: Result<TaskAnswer, Box<Fault>>,
    },
    /// News of a task that is followed.
    TaskNews {
        /// Under which number.
        number: CallNumber,
        /// What.
        news: TaskNews,
    },
    /// What would be passed on, were it done now?
    Peek(oneshot::Sender<SessionSnapshot>),
    /// Read nothing more, and tell when only calls are open that another image can go on with.
    Freeze(oneshot::Sender<()>),
    /// Do nothing more: this is what is passed on.
    HoldStill(oneshot::Sender<SessionSnapshot>),
    /// Nothing was passed on: go on. The workers up to this generation were ended for it.
    Thaw(Generation),
    /// The tools differ from what clients were told.
    ToolsChanged,
    /// A call made progress.
    Progress {
        /// Which call.
        call: CallNumber,
        /// What it reported last.
        latest: Latest,
    },
    /// The system stops.
    Stop,
}

/// What all sessions of a system add up to, for health.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Worker calls in ledgers.
    pub in_flight: AtomicUsize,
    /// Messages of earlier generations that were dropped.
    pub stale: AtomicU64,
    /// Attempts after a first one.
    pub replays: AtomicU64,
    /// What a session found broken about itself; looked for only once a fault point has fired.
    broken: Mutex<Vec<String>>,
}

/// Broken laws that are kept; the first ones say the most.
const BROKEN_KEPT: usize = 16;

impl Gauges {
    /// Goes on where another image stood.
    pub fn inherit(&self, stale: u64, replays: u64, broken: &[String]) {
        self.stale.store(stale, Ordering::Relaxed);
        self.replays.store(replays, Ordering::Relaxed);
        broken.iter().for_each(|what| self.broken(what.clone()));
    }

    fn broken(&self, what: String) {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        if broken.len() < BROKEN_KEPT {
            broken.push(what);
        }
    }

    /// Laws that were found broken while a fault plan was armed. There are none.
    #[must_use]
    pub fn broken_laws(&self) -> Vec<String> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

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
    pub input: Input,
    /// Ours.
    pub sink: Sink,
    /// Longest line taken.
    pub line_limit: usize,
    /// What is to break.
    pub faults: Faults,
    /// What is known about clients.
    pub clients: Clients,
    /// Who answers about tasks.
    pub tasks: Option<TaskDesk>,
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
enum Stage {
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
    input: Input,
    sink: Sink,
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
    effects: Vec<Effect>,
    /// What was decided and is not done yet.
    todo: VecDeque<Effect>,
    calls: Vec<CallNumber>,
    /// Calls went to a worker in this turn.
    handed_over: bool,
    stage: Stage,
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
    inherited: Option<Inherited>,
}

/// What telemetry wants to know about the call that is being settled.
#[derive(Default)]
struct Settling {
    job: Option<JobId>,
    tells_end: bool,
    path_hint: Option<String>,
    generation: Generation,
    replays: u32,
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
            stage: Stage::Open,
            flow: Flow::default(),
            held: None,
            deadlines,
            due: None,
            shortest: None,
            clock: Box::pin(tokio::time::sleep(Duration::ZERO)),
            clock_at: None,
            clients: a.clients,
            task_desk: a.tasks,
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
                self.stage == Stage::Open && self.out.len() <= BACKLOG && self.stillness == Stillness::Moving;
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

    fn want_worker(&mut self) {
        self.serving = Serving::Awaited;
        let mailbox = self.mailbox.clone();
        // There may be no supervisor at this moment; its next incarnation comes with our own next one.
        let _ = self.workers.cast(WorkersMsg::Wanted { session: self.number, mailbox });
    }

    fn is_over(&self) -> bool {
        match self.stage {
            Stage::Open => false,
            Stage::Lingering(_) => self.core.in_flight() == 0 && self.out.is_empty(),
            Stage::Draining(_) => self.out.is_empty(),
        }
    }

    /// Writes what the client takes at once.
    async fn write_now(&mut self) {
        while self.unflushed || !self.out.is_empty() {
            match poll_immediate(push(&mut self.sink, &self.out)).await {
                Some(pushed) => self.on_pushed(pushed),
                None => return,
            }
        }
    }

    fn on_pushed(&mut self, pushed: std::io::Result<Pushed>) {
        match pushed {
            Ok(Pushed::Flushed) => {
                self.unflushed = false;
                for job in self.shown.drain(..) {
                    // Told only now, so that an answer which reached nobody is still announced as unread.
                    let _ = self.jobs.cast(JobsMsg::Shown(job));
                }
            }
            Ok(Pushed::Written(count)) if count > 0 => {
                self.unflushed = true;
                self.out.advance(count);
                self.whole = self.out.len();
                if self.out.is_empty() {
                    if self.out.capacity() > OUTPUT_KEPT {
                        self.out = BytesMut::new();
                    } else {
                        self.out.clear();
                    }
                    if self.owes_change {
                        self.say_change();
                    }
                }
            }
            Ok(Pushed::Written(_)) => self.hung_up(),
            Err(error) => {
                tracing::debug!(%error, "the client reads nothing more");
                self.hung_up();
            }
        }
    }

    /// The client reads nothing more: there is nobody to answer.
    fn hung_up(&mut self) {
        self.out.clear();
        self.whole = 0;
        self.unflushed = false;
        self.shown.clear();
        self.close();
    }

    fn on_read(&mut self, read: std::io::Result<usize>) {
        let more = match read {
            Ok(count) => count > 0,
            Err(error) => {
                tracing::debug!(%error, "the input failed");
                false
            }
        };
        if more
            && let Some(met) = self.faults.meet_in_turn(FaultPoint::StdioRead, Operation::None)
            && self.hold_up(met).is_some()
        {
            return self.on_read(Err(std::io::Error::other("a fault point was met")));
        }
        self.take_lines();
        if !more {
            // The last line counts even without a newline.
            if let Some(frame) = self.reader.finish() {
                self.take(frame, clock::now());
            }
            if self.stage == Stage::Open {
                self.stage = Stage::Lingering(tokio::time::Instant::now() + LINGER);
            }
        }
        self.perform(None);
    }

    fn take_lines(&mut self) {
        let now = clock::now();
        while let Some(frame) = self.reader.next_frame() {
            self.take(frame, now);
        }
        self.rollout.handled(now);
    }

    /// Notes that a fault holds the session up, or gives back what it breaks.
    #[cold]
    fn hold_up(&mut self, met: InTurn) -> Option<Broken> {
        match met {
            InTurn::Do(broken) => Some(broken),
            InTurn::Wait(time) => {
                self.held_up = Some(time);
                None
            }
        }
    }

    /// Meets what an armed plan holds between two turns.
    #[cold]
    async fn meet_faults(&mut self) {
        if self.faults.have_fired()
            && let Err(broken) = self.invariant_calls_are_in_hand()
        {
            tracing::error!(session = %self.number, broken, "a law is broken");
            self.gauges.broken(broken);
        }
        if let Some(time) = self.held_up.take() {
            match time {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        }
        if self.out.is_empty() {
            return;
        }
        match self.faults.meet(FaultPoint::StdioWrite, Operation::None).await {
            None => {}
            Some(Broken::Torn) => {
                // Half of the first line, and then nobody is there to write the rest to.
                let line = memchr::memchr(b'\n', &self.out).unwrap_or(self.out.len());
                self.out.truncate(line / 2);
                self.write_now().await;
                self.hung_up();
            }
            Some(_) => self.hung_up(),
        }
    }

    /// L1, L6 and L9 as far as a session can see them, between two turns: every call in flight is in exactly one place, and
    /// nothing else is.
    ///
    /// # Errors
    ///
    /// What is broken, in words.
    pub fn invariant_calls_are_in_hand(&self) -> Result<(), String> {
        self.core.invariant_calls_are_consistent_and_bounded()?;
        for (call, ..) in self.core.open_calls() {
            match (self.ledger.holds(call), self.host_calls.contains_key(&call)) {
                (true, false) | (false, true) => {}
                (true, true) => return Err(format!("call {} is in two places", call.0)),
                (false, false) => return Err(format!("call {} is in nobody's hands", call.0)),
            }
        }
        let held = self.ledger.len() + self.host_calls.len();
        if held != self.core.in_flight() {
            return Err(format!("{held} calls are held for {} in flight", self.core.in_flight()));
        }
        if self.whole != self.out.len() {
            return Err(format!("{} bytes of output end in the middle of a line", self.out.len()));
        }
        Ok(())
    }

    fn take(&mut self, frame: Frame, now: Instant) {
        let frame = self.reading.insert(frame);
        self.core.on_frame(frame, now, &mut self.out, &mut self.effects);
        self.reading = None;
        self.whole = self.out.len();
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
                // Who was not asked speaks to an earlier incarnation of ours; who is known to be gone is.
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

    /// Says that the tools differ, once the client has read what it was sent before: however often they changed, it lists
    /// them once.
    fn say_change(&mut self) {
        if self.stage == Stage::Open && self.out.len() <= BACKLOG {
            self.owes_change = false;
            self.core.on_tools_changed(&mut self.out);
            self.whole = self.out.len();
        }
    }

    fn on_settled(&mut self, generation: Generation, call: CallNumber, mut outcome: CallOutcome) {
        let Some(settled) = self.ledger.settle(call, generation) else {
            self.gauges.stale.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.gauges.in_flight.fetch_sub(1, Ordering::Relaxed);
        if let CallOutcome::Fault(fault) = &mut outcome {
            fault.generation.get_or_insert(generation);
            fault.retried = settled.replays;
            // Whoever was answered with a fault waits for no job.
            let _ = self.jobs.cast(JobsMsg::Withdrawn(self.invocation(call)));
        }
        let settling = Settling { generation, replays: settled.replays, ..Settling::default() };
        self.settle(call, outcome, settling);
    }

    fn settle(&mut self, call: CallNumber, outcome: CallOutcome, settling: Settling) {
        self.flow.settled();
        self.answer(call, outcome, settling);
    }

    fn answer(&mut self, call: CallNumber, mut outcome: CallOutcome, mut settling: Settling) {
        if let CallOutcome::Reply(reply) = &mut outcome {
            settling.job = reply.job;
            settling.tells_end = reply.tells_end;
            settling.path_hint = reply.path_hint.take();
        }
        self.core.on_settled(call, outcome, clock::now(), &mut self.out, &mut self.effects);
        self.whole = self.out.len();
        self.perform(Some(settling));
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
                Effect::Invoke(call) => match self.tools[call.tool].target() {
                    Target::Worker => calls.extend(self.record(call)),
                    Target::Host => self.run_here(call),
                },
                Effect::Ask { number, ask, client } => self.ask(number, ask, client),
                Effect::Withdraw(call) => self.withdraw(call),
                Effect::Follow { number, jobs, news, client } => self.follow(number, jobs, news, &client),
                Effect::Unfollow(number) => self.unfollow(number),
                Effect::GaveUp { client, after } => self.gave_up(&client, after),
                Effect::Finished(finished) => {
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

    /// Takes the worker away, where the plan asks for it at an operation no worker executes.
    fn crash_worker_at(&self, operation: Operation<'_>) {
        // Without a worker there is nothing to take away, and a rule that is to fire once waits until there is.
        if let Serving::Up(generation, _) = &self.serving
            && self.faults.crash_key_matches(operation)
        {
            let _ = self.workers.cast(WorkersMsg::Broken { generation: *generation });
        }
    }

    /// Asks for a rollout, where the plan forces one at this operation.
    fn force_rollout_at(&self, operation: Operation<'_>) {
        if self.faults.forces_rollout(operation) {
            self.rollout.ask(Trigger::Variable);
        }
    }

    /// Takes a worker call into the ledger.
    fn record(&mut self, call: Call) -> Option<CallNumber> {
        let operation = Operation::Tool(&self.names[call.tool]);
        if let Some(InTurn::Do(Broken::Error(fault))) = self.faults.meet_in_turn(FaultPoint::LedgerRecord, operation) {
            // Answered when the turn is over: effects of this one are still being performed.
            let (mailbox, call) = (self.mailbox.clone(), call.number);
            let answering = self.tasks.spawn(async move {
                let _ = mailbox.send(SessionEvent::HostSettled { call, outcome: CallOutcome::Fault(fault) });
            });
            self.host_calls.insert(call, HostCall { task: answering, work: HostWork::Refused });
            return None;
        }
        self.note_deadline(call.tool);
        let progress = self.progress(&call);
        let contract = self.tools[call.tool].contract();
        let payload = Payload { tool: call.tool, arguments: call.arguments, client: call.client, progress };
        self.ledger.record(call.number, contract, payload);
        self.gauges.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(call.number)
    }

    /// Gives calls to the worker, if there is one. Each is recorded as in flight before it leaves.
    fn send(&mut self, calls: &[CallNumber]) {
        let Serving::Up(generation, _) = self.serving else { return };
        let unstruck;
        let calls = if self.faults.is_armed() {
            unstruck = self.struck(calls, generation);
            &unstruck[..]
        } else {
            calls
        };
        let message = if let [call] = calls {
            let Some(attempt) = self.attempt(*call, generation) else { return };
            WorkerMsg::Execute(Box::new(attempt))
        } else {
            let attempts: Vec<Attempt> = calls.iter().filter_map(|call| self.attempt(*call, generation)).collect();
            if attempts.is_empty() {
                return;
            }
            WorkerMsg::ExecuteAll(attempts)
        };
        let Serving::Up(_, worker) = &self.serving else { return };
        if worker.cast(message).is_ok() {
            self.handed_over = true;
            if self.faults.is_armed() {
                for payload in calls.iter().filter_map(|call| self.ledger.payload(*call)) {
                    self.force_rollout_at(Operation::Tool(&self.names[payload.tool]));
                }
            }
        } else {
            // It ended before it was given them, so no worker ever had them. The next one is asked for: news of it may
            // have gone to an earlier incarnation of ours.
            for call in calls {
                self.ledger.retract(*call, generation);
            }
            self.dead = self.dead.max(generation);
            self.want_worker();
        }
    }

    /// Meets the point of each call before any of them leaves, so that what strikes here leaves none half sent; returns
    /// those that are to be sent.
    #[cold]
    fn struck(&mut self, calls: &[CallNumber], generation: Generation) -> Vec<CallNumber> {
        let mut met = Vec::new();
        for call in calls {
            let Some(payload) = self.ledger.payload(*call) else { continue };
            let name = Arc::clone(&self.names[payload.tool]);
            let in_turn = self.faults.meet_in_turn(FaultPoint::SessionDispatch, Operation::Tool(&name));
            met.push((*call, in_turn.and_then(|in_turn| self.hold_up(in_turn))));
        }
        let mut unstruck = Vec::new();
        for (call, broken) in met {
            if broken.is_some() && self.ledger.dispatch(call, generation).is_none() {
                continue;
            }
            match broken {
                None => unstruck.push(call),
                // Answered when the turn is over, like an outcome.
                Some(Broken::Error(fault)) => {
                    let outcome = CallOutcome::Fault(fault);
                    let _ = self.mailbox.send(SessionEvent::Settled { generation, call, outcome });
                }
                // Lost on its way, which its token tells.
                Some(_) => drop(AttemptReply::new(self.mailbox.clone(), call, generation)),
            }
        }
        unstruck
    }

    fn attempt(&mut self, call: CallNumber, generation: Generation) -> Option<Attempt> {
        let invocation = self.invocation(call);
        let (evidence, attempt, payload) = self.ledger.dispatch(call, generation)?;
        if attempt > 1 {
            self.gauges.replays.fetch_add(1, Ordering::Relaxed);
        }
        Some(Attempt {
            key: CallKey { session: self.number, call },
            reply: AttemptReply::new(self.mailbox.clone(), call, generation),
            tool: Arc::clone(&self.tools[payload.tool]),
            call: ToolCall {
                invocation,
                generation,
                evidence,
                arguments: payload.arguments.clone(),
                client: payload.client.clone(),
                progress: payload.progress.clone(),
                waited: Duration::ZERO,
            },
        })
    }

    fn progress(&self, call: &Call) -> ProgressSink {
        if call.wants_progress { ProgressSink::new(self.mailbox.clone(), call.number) } else { ProgressSink::closed() }
    }

    fn decided(&mut self, effect: LedgerEffect) {
        match effect {
            LedgerEffect::Send(call) => self.send(&[call]),
            LedgerEffect::Probe(call) => {
                let Some(payload) = self.ledger.payload(call) else { return };
                let probe = self.tools[payload.tool].probe(self.invocation(call));
                let mailbox = self.mailbox.clone();
                self.tasks.spawn(async move {
                    let evidence = probe.await;
                    let _ = mailbox.send(SessionEvent::Probed { call, evidence });
                });
            }
            LedgerEffect::Fail(call, fault) => self.fail(call, fault),
        }
    }

    /// Answers a worker call with a fault. Its caller waits no longer, so a synchronous job it may have become ends too:
    /// who asks again must not start a second agent beside the first.
    fn fail(&mut self, call: CallNumber, mut fault: Box<Fault>) {
        if let Some(lost) = self.ledger.take(call) {
            self.gauges.in_flight.fetch_sub(1, Ordering::Relaxed);
            let _ = self.jobs.cast(JobsMsg::Withdrawn(self.invocation(call)));
            fault.retried = lost.replays;
            let settling = Settling {
                generation: fault.generation.unwrap_or_default(),
                replays: lost.replays,
                ..Settling::default()
            };
            self.settle(call, CallOutcome::Fault(fault), settling);
        }
    }

    fn invocation(&self, call: CallNumber) -> InvocationId {
        InvocationId { host: self.host, session: self.number, call: call.0 }
    }

    fn withdraw(&mut self, call: CallNumber) {
        if let Some(held) = self.host_calls.remove(&call) {
            held.task.abort();
        }
        if self.ledger.take(call).is_some() {
            self.gauges.in_flight.fetch_sub(1, Ordering::Relaxed);
            if let Serving::Up(_, worker) = &self.serving {
                let _ = worker.cast(WorkerMsg::Withdraw(CallKey { session: self.number, call }));
            }
            // After the worker was told, so that it asks for nothing on behalf of this call afterwards.
            let _ = self.jobs.cast(JobsMsg::Withdrawn(self.invocation(call)));
        }
    }

    /// Runs a host tool beside the session. Its panic is answered, not passed on.
    fn run_here(&mut self, call: Call) {
        self.note_deadline(call.tool);
        self.crash_worker_at(Operation::Tool(&self.names[call.tool]));
        self.force_rollout_at(Operation::Tool(&self.names[call.tool]));
        self.begin_here(call, Duration::ZERO);
    }

    fn begin_here(&mut self, call: Call, waited: Duration) {
        let work = HostWork::Tool(call.clone());
        let tool = Arc::clone(&self.tools[call.tool]);
        let number = call.number;
        let tool_call = ToolCall {
            invocation: self.invocation(number),
            generation: Generation::NONE,
            evidence: None,
            progress: self.progress(&call),
            arguments: call.arguments,
            client: call.client,
            waited,
        };
        let name = Arc::clone(&self.names[call.tool]);
        let mailbox = self.mailbox.clone();
        let task = self.tasks.spawn(async move {
            let work = AssertUnwindSafe(async move { tool.call(tool_call).await }).catch_unwind();
            let outcome = match work.await {
                Ok(Ok(reply)) => CallOutcome::Reply(Box::new(reply)),
                Ok(Err(fault)) => CallOutcome::Fault(Box::new(fault)),
                Err(_) => {
                    tracing::error!(tool = &*name, "a host tool panicked");
                    let fault = Fault::new(FaultCode::Internal, "the tool failed in a way it must not.");
                    CallOutcome::Fault(Box::new(fault.operation(&*name)))
                }
            };
            let _ = mailbox.send(SessionEvent::HostSettled { call: number, outcome });
        });
        self.host_calls.insert(number, HostCall { task, work });
    }

    /// A client withdrew a call: it may have a limit, which is remembered.
    fn gave_up(&mut self, client: &ClientInfo, after: Duration) {
        if let Some(unsaved) = self.clients.gave_up(client.name().as_deref(), after) {
            tracing::info!(
                client = client.name().as_deref(),
                ?after,
                "a client gave up after a round number of seconds"
            );
            self.tasks.spawn_blocking(move || {
                if let Err(error) = unsaved.save() {
                    tracing::debug!(%error, "what was observed about a client was not saved");
                }
            });
        }
    }

    /// Finds out about tasks, beside the session.
    fn ask(&mut self, number: CallNumber, ask: TaskAsk, client: ClientInfo) {
        let desk = self.task_desk.clone();
        let mailbox = self.mailbox.clone();
        let work = HostWork::Ask(ask.clone(), client.clone());
        let task = self.tasks.spawn(async move {
            let answer = async move {
                match desk {
                    Some(desk) => desk.ask(ask, &client).await,
                    None => Err(Fault::new(FaultCode::Internal, "there are no tasks here.")),
                }
            };
            let answer = AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!("a question about tasks panicked");
                Err(Fault::new(FaultCode::Internal, "the question failed in a way it must not."))
            });
            let _ = mailbox.send(SessionEvent::Told { call: number, answer: answer.map_err(Box::new) });
        });
        self.host_calls.insert(number, HostCall { task, work });
    }

    /// Follows tasks for the client, beside the session.
    fn follow(&mut self, number: CallNumber, jobs: Vec<JobId>, wanted: Wanted, client: &ClientInfo) {
        let Some(desk) = &self.task_desk else { return };
        let mut following = Vec::with_capacity(jobs.len());
        for job in jobs.iter().copied() {
            let mailbox = self.mailbox.clone();
            let tell = move |news| drop(mailbox.send(SessionEvent::TaskNews { number, news }));
            following.push(self.tasks.spawn(desk.clone().follow(job, wanted, client.clone(), tell)));
        }
        self.follows.insert(number, Following { tasks: following, jobs, wanted, client: client.clone() });
    }

    fn unfollow(&mut self, number: CallNumber) {
        for task in self.follows.remove(&number).into_iter().flat_map(|following| following.tasks) {
            task.abort();
        }
    }

    /// The system stops while the client may still wait: it is told, call by call.
    fn stop(&mut self) {
        if self.stage == Stage::Open {
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
                Effect::Withdraw(call) => self.withdraw(call),
                Effect::Finished(finished) => self.count(finished, None),
                Effect::Unfollow(number) => self.unfollow(number),
                // A closed state machine asks for nothing new.
                Effect::Invoke(_) | Effect::Ask { .. } | Effect::Follow { .. } | Effect::GaveUp { .. } => {}
            }
        }
        if !matches!(self.stage, Stage::Draining(_)) {
            self.stage = Stage::Draining(tokio::time::Instant::now() + DRAIN);
        }
    }

    /// Sets the clock to when it is wanted next. It is left to run out when it turns out not to be needed: setting it
    /// anew for each call would cost more than the one needless look.
    fn set_clock(&mut self) {
        let end = match self.stage {
            Stage::Open => None,
            Stage::Lingering(at) | Stage::Draining(at) => Some(at),
        };
        let wanted = [self.due, end, self.held].into_iter().flatten().min();
        if let Some(at) = wanted.filter(|at| self.clock_at.is_none_or(|set| *at < set)) {
            self.clock.as_mut().reset(at);
            self.clock_at = Some(at);
        }
    }

    fn on_time(&mut self) {
        let now = tokio::time::Instant::now();
        self.clock_at = None;
        match self.stage {
            Stage::Lingering(end) if now >= end => self.close(),
            Stage::Draining(end) if now >= end => {
                self.out.clear();
                self.whole = 0;
            }
            _ => {}
        }
        if self.due.is_some_and(|due| now >= due) {
            self.due = None;
            self.expire();
        }
    }

    /// Notes when a call that begins now is late.
    fn note_deadline(&mut self, tool: usize) {
        let Some(limit) = self.deadlines[tool] else { return };
        // Only the first of a tool's calls moves the clock; when it fires, the calls open then are looked at.
        if self.due.is_none() || self.shortest.is_none_or(|shortest| limit < shortest) {
            let due = tokio::time::Instant::now() + limit;
            if self.due.is_none_or(|set| due < set) {
                self.due = Some(due);
                self.shortest = Some(limit);
            }
        }
    }

    /// Answers calls whose tool's deadline has passed, and sets the clock for the next one.
    fn expire(&mut self) {
        let now = clock::now();
        self.shortest = None;
        let mut late: Vec<(CallNumber, usize)> = Vec::new();
        let mut next: Option<Duration> = None;
        for (call, tool, since) in self.core.open_calls() {
            let Some((tool, limit)) = tool.and_then(|tool| Some((tool, self.deadlines[tool]?))) else { continue };
            match limit.checked_sub(now.saturating_duration_since(since)).filter(|left| !left.is_zero()) {
                None => late.push((call, tool)),
                Some(left) => next = Some(next.map_or(left, |next| next.min(left))),
            }
        }
        self.due = next.map(|left| tokio::time::Instant::now() + left);
        late.sort_unstable();
        for (call, tool) in late {
            self.withdraw(call);
            let fault = Fault::new(FaultCode::DeadlineExceeded, "the tool did not answer within its deadline.")
                .operation(&*self.names[tool]);
            self.settle(call, CallOutcome::Fault(Box::new(fault)), Settling::default());
        }
    }

    fn count(&mut self, finished: Finished, settling: Option<Settling>) {
        let Some(tool) = finished.tool else {
            self.telemetry.record(Record::Request { method: finished.method, result: finished.result });
            return;
        };
        let settling = settling.unwrap_or_default();
        self.shown.extend(settling.job.filter(|_| settling.tells_end));
        self.telemetry.record(Record::ToolCall(ToolCallRecord {
            at: finished.at,
            session: self.number,
            request_id: finished.request_id,
            tool: Arc::clone(&self.names[tool]),
            path_hint: settling.path_hint,
            latency: finished.latency,
            result: finished.result,
            job: settling.job,
            generation: settling.generation,
            replays: settling.replays,
        }));
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

/// What became of output.
enum Pushed {
    /// So many bytes were taken.
    Written(usize),
    /// Nothing is held back any more.
    Flushed,
}

/// Writes, or makes sure that nothing written is held back: a sink of an embedding program may buffer.
///
/// # Cancel safety
///
/// Safe: what was not taken is still in `out`.
async fn push(sink: &mut Sink, out: &[u8]) -> std::io::Result<Pushed> {
    if out.is_empty() {
        sink.flush().await.map(|()| Pushed::Flushed)
    } else {
        sink.write(out).await.map(Pushed::Written)
    }
}

/// Told when a connection is over.
pub type Ended = oneshot::Sender<Result<SessionEnd, Fault>>;

impl Drop for SessionLoop {
    fn drop(&mut self) {
        // A connection that is given up has calls open.
        self.gauges.in_flight.fetch_sub(self.ledger.len(), Ordering::Relaxed);
    }
}
