//! A session: one client's connection, from its bytes to its answers.
//!
//! Owns: the connection's streams, its timer, the tasks of host tools and probes, whom a session speaks to. May not know: what
//! an event means ([`turn`] decides that), what a tool does, how a worker is started.
//!
//! One loop selects what happened ([`SessionEvent`], bytes, time), has the turn decide about it ([`SessionTurn::step`]) and
//! performs the effects; the actor around it is what supervision sees. A call costs two messages: to the worker and back.
//!
//! The loop's state is the connection, which cannot be made again, so the actor only borrows it ([`Kept`]): when actor or
//! loop panics, the next incarnation goes on where the last one stood. What it was doing just then is answered with an
//! error; everything else in flight goes on.
//!
//! Invariants: (1) a turn never waits: it decides, sends messages and writes what the client takes at once, so a cancel
//! or a ping is served while anything else runs; (2) reading stops while the client does not read its answers, so a
//! stalled client stalls itself (L14) and nothing grows without a bound (L9); (3) one owner writes, whole lines (L11);
//! (4) L5 and L6 as kept by the ledger; (5) a panic of a host tool is that call's fault, not the session's; (6) a call
//! in flight is in the ledger or among the host's calls, else it is answered when the session is resumed; (7) the gauge
//! counts what is in the ledger.

mod calls;
pub mod events;
pub mod flow;
pub mod gauges;
pub mod ledger;
mod passed;
pub mod replay;
mod streams;
mod struck;
mod subscriptions;
mod turn;

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};

pub use self::events::{ClientSeen, SessionEvent};
pub use self::gauges::Gauges;
pub use self::passed::SessionSnapshot;
pub use self::streams::{ClientInput, ClientOutput};
use self::streams::{Pushed, Streams, poll_push, poll_read};
pub use self::turn::DirectCall;
pub(in crate::actors) use self::turn::ToolFacts;
use self::turn::{SessionTurn, TurnEffect, TurnEffects, TurnEvent};
use super::child;
use super::connections::Connections;
use super::current::Current;
use super::doors::desk::{ControlDesk, ControlReply};
use super::jobs::messages::JobsMsg;
use super::kept::{Kept, Lent};
use super::reply::SessionMailbox;
use super::rollout::RolloutHandle;
use super::sessions::messages::{SessionEnd, SessionsMsg};
use super::workers::messages::WorkersMsg;
use crate::actors::clock;
use crate::base::fault::Fault;
use crate::base::ids::{HostId, SessionNumber, UnixMillis};
use crate::base::tasks::TaskSet;
use crate::config::clients::Clients;
use crate::failpoints::{Faults, Operation};
use crate::protocol::session::{CallOutcome, SessionCore};
use crate::telemetry::TelemetryHandle;
use crate::tools::Tool;
use crate::tools::roots::RootsHandle;
use crate::tools::tasks::TaskDesk;

/// Longest the last answers may take to be written once the session is over.
const DRAIN: Duration = Duration::from_secs(1);

/// How long calls may still answer after the client has closed its end. Fast calls do; a caller that waits longer is gone.
const LINGER: Duration = Duration::from_millis(500);

/// Messages handled before bytes are written and read again.
const TURN: usize = 256;

/// The session actor: what supervision sees of the loop.
pub struct SessionActor;

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
    /// What a session knows of each.
    pub(in crate::actors) facts: Arc<[ToolFacts]>,
    /// The supervisor of the worker.
    pub workers: Current<WorkersMsg>,
    /// The jobs; they hear of withdrawn calls, since a job may lose its last caller by one.
    pub jobs: Current<JobsMsg>,
    /// Telemetry.
    pub telemetry: TelemetryHandle,
    /// What all sessions add up to.
    pub gauges: Arc<Gauges>,
    /// What the client sends.
    pub input: ClientInput,
    /// Where it reads.
    pub sink: ClientOutput,
    /// Longest line taken.
    pub line_limit: usize,
    /// Fault plan.
    pub faults: Faults,
    /// What is known about clients.
    pub clients: Clients,
    /// Answers questions about tasks.
    pub tasks: Option<TaskDesk>,
    /// Hears what the client works on.
    pub roots: RootsHandle,
    /// Hears that something was handled.
    pub rollout: RolloutHandle,
    /// Who answers what is said beside JSON-RPC; nobody where only clients come in.
    pub desk: Option<Arc<dyn ControlDesk>>,
}

/// What an incarnation is started with.
pub struct SessionArguments {
    /// Its number.
    pub number: SessionNumber,
    /// The connection, to be borrowed.
    pub kept: Arc<Kept<SessionLoop>>,
    /// All connections: they say whether an end is one for good.
    pub connections: Connections,
    /// The supervisor of the sessions; it hears that the connection is over.
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
    /// The loop's mailbox: it is told there that the system stops.
    mailbox: Option<SessionMailbox>,
    lending: Option<oneshot::Receiver<SessionMailbox>>,
    task: TaskSet<()>,
}

#[cfg_attr(feature = "ractor-async-trait", ractor::async_trait)]
impl Actor for SessionActor {
    type Msg = SessionMsg;
    type State = SessionState;
    type Arguments = SessionArguments;

    async fn pre_start(&self, me: ActorRef<Self::Msg>, a: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        let (lent, lending) = oneshot::channel();
        let kept = a.kept;
        let mut task = TaskSet::new();
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

/// Whom a session speaks to.
struct Neighbours {
    workers: Current<WorkersMsg>,
    jobs: Current<JobsMsg>,
    telemetry: TelemetryHandle,
    gauges: Arc<Gauges>,
    clients: Clients,
    task_desk: Option<TaskDesk>,
    roots: RootsHandle,
    rollout: RolloutHandle,
    desk: Option<Arc<dyn ControlDesk>>,
}

/// The session's one timer.
struct Alarm {
    sleep: Pin<Box<tokio::time::Sleep>>,
    /// What it is set to, while it runs.
    set: Option<Instant>,
    /// Who is woken when it fires, while that is certain.
    heard_by: Option<Waker>,
}

impl Alarm {
    fn new() -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(Duration::ZERO)), set: None, heard_by: None }
    }

    /// Sets it to when it is wanted next. It is left to run out when it turns out not to be needed: setting it anew for each
    /// call would cost more than the one needless look.
    fn wanted(&mut self, at: Option<Instant>) {
        if let Some(at) = at.filter(|at| self.set.is_none_or(|set| *at < set)) {
            self.sleep.as_mut().reset(tokio::time::Instant::from_std(at));
            self.set = Some(at);
            self.heard_by = None;
        }
    }

    /// Whether it has fired, while it runs. Whoever waits for it already looks only whether it has: to wait anew costs several
    /// times that.
    fn has_fired(&mut self, cx: &mut Context<'_>) -> bool {
        if self.set.is_none() {
            return false;
        }
        let waits = self.heard_by.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if waits && !self.sleep.is_elapsed() {
            return false;
        }
        // Without a budget, or it might not be waited for.
        let fired = std::pin::pin!(tokio::task::unconstrained(self.sleep.as_mut())).poll(cx).is_ready();
        self.heard_by = (!fired).then(|| cx.waker().clone());
        if fired {
            self.set = None;
        }
        fired
    }
}

/// Where a loop looks for its client's next lines.
#[derive(Clone, Copy)]
enum Lines {
    /// Nowhere: none is taken now.
    None,
    /// Among those that were read before.
    Left,
    /// It reads.
    Client,
}

/// What a loop may have waited for.
enum Happened {
    /// Something came by the mailbox.
    Heard(SessionEvent),
    /// The client took output, or will not.
    Pushed(std::io::Result<Pushed>),
    /// Everybody else had a turn.
    OthersServed,
    /// The client sent something, or will not.
    Read(std::io::Result<usize>),
    /// The timer fired.
    Woke,
}

/// For how long a fault that was met in a turn holds the session up.
enum HeldUp {
    For(Duration),
    Forever,
}

/// A connection and everything that is going on in it.
pub struct SessionLoop {
    turn: SessionTurn,
    /// What was decided and is not done yet.
    todo: TurnEffects,
    /// When the last turn was decided.
    now: Instant,
    tools: Arc<[Arc<dyn Tool>]>,
    neighbours: Neighbours,
    mailbox: SessionMailbox,
    events: mpsc::UnboundedReceiver<SessionEvent>,
    streams: Streams,
    /// Host tools and probes; they end with the session.
    tasks: TaskSet<()>,
    alarm: Alarm,
    /// Whether an incarnation has served before.
    resumed: bool,
    /// Calls went to a worker in this turn.
    handed_over: bool,
    /// Worker calls that the gauge counts.
    gauged: usize,
    faults: Faults,
    held_up: Option<HeldUp>,
}

impl SessionLoop {
    /// A connection nobody serves yet.
    #[must_use]
    pub fn new(a: SessionParts) -> Self {
        let (mailbox, events) = mpsc::unbounded_channel();
        Self {
            turn: SessionTurn::new((a.host, a.number), a.core, a.facts, a.line_limit, a.faults.clone())
                .with_traces(a.telemetry.traces().clone()),
            todo: TurnEffects::new(),
            now: clock::now(),
            tools: a.tools,
            neighbours: Neighbours {
                workers: a.workers,
                jobs: a.jobs,
                telemetry: a.telemetry,
                gauges: a.gauges,
                clients: a.clients,
                task_desk: a.tasks,
                roots: a.roots,
                rollout: a.rollout,
                desk: a.desk,
            },
            mailbox,
            events,
            streams: Streams { input: a.input, sink: a.sink },
            tasks: TaskSet::new(),
            alarm: Alarm::new(),
            resumed: false,
            handed_over: false,
            gauged: 0,
            faults: a.faults,
            held_up: None,
        }
    }

    /// Where it hears from everybody but its client.
    #[must_use]
    pub fn mailbox(&self) -> SessionMailbox {
        self.mailbox.clone()
    }

    /// Takes in what another image passed on. What can only be begun by a running session waits for its first turn.
    pub fn take_over(&mut self, snapshot: &SessionSnapshot) {
        self.turn.take_over(snapshot);
        self.turn.traces.inherit(self.turn.number, snapshot.traces(), UnixMillis::now());
        self.gauge();
        self.neighbours.roots.set(self.turn.number, self.turn.core.roots().clone());
        self.resumed = true;
    }

    /// The tools differ from those of the image before.
    pub fn owe_change(&mut self) {
        self.turn.outgoing.owes_change = true;
    }

    /// Serves until the connection is over, or until a turn does not come to its end: then another run goes on.
    ///
    /// # Cancel safety
    ///
    /// Safe: everything is in `self`, and another run goes on with it.
    async fn run(&mut self) -> SessionEnd {
        if std::mem::replace(&mut self.resumed, true) {
            // What the last run had decided and not done is done before anything is decided anew.
            self.decide(TurnEvent::Interrupted);
            self.decide(TurnEvent::Resumed);
            self.neighbours.rollout.handled(self.now);
        }
        loop {
            if self.turn.stillness.is_still() {
                // Neither bytes nor clock: what is done now, the next image would do again.
                if let Some(event) = self.events.recv().await {
                    self.decide(TurnEvent::Heard(event));
                }
                continue;
            }
            if self.faults.is_armed() && child::in_time(self.meet_faults()).await.is_err() {
                return SessionEnd::Failed;
            }
            self.write_now().await;
            if self.turn.is_over() {
                break;
            }
            self.turn.tell_when_quiet(self.held_up.is_some(), &mut self.todo);
            if !self.todo.is_empty() {
                self.perform();
            }
            let crowded = self.turn.is_crowded();
            let reading = self.turn.reads(crowded.then(clock::now));
            if crowded {
                // Calls that were just handed over get their turn before more are read.
                tokio::task::yield_now().await;
            }
            self.alarm.wanted(self.turn.wakes());
            if std::mem::take(&mut self.handed_over) {
                // A worker in this process answers most calls in its next turn; until then there is nothing to wait for.
                give_way().await;
            }
            let lines = match (reading, self.turn.is_behind()) {
                (true, true) => Lines::Left,
                (true, false) if !self.turn.incoming.ended => Lines::Client,
                _ => Lines::None,
            };
            let mut others = std::pin::pin!(tokio::task::yield_now());
            match std::future::poll_fn(|cx| self.poll_next(cx, lines, others.as_mut())).await {
                Happened::Heard(event) => {
                    self.decide(TurnEvent::Heard(event));
                    for _ in 1..TURN {
                        let Ok(event) = self.events.try_recv() else { break };
                        self.decide(TurnEvent::Heard(event));
                    }
                    while !self.tasks.is_empty() && self.tasks.try_join_next().is_some() {}
                }
                Happened::Pushed(pushed) => self.on_pushed(pushed),
                Happened::OthersServed => self.read_on(),
                Happened::Read(read) => self.on_read(read),
                Happened::Woke => self.decide(TurnEvent::Woke),
            }
        }
        let _ = tokio::time::timeout(DRAIN, self.streams.sink.shutdown()).await;
        SessionEnd::Closed
    }

    /// What happens next. News come before bytes: what is decided must not wait behind new work.
    ///
    /// To wait for news costs several times what a look costs, and a call is over before it has to be waited for. So the wait
    /// comes last, when nothing else has come either.
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        lines: Lines,
        others: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<Happened> {
        if !self.events.is_empty()
            && let Poll::Ready(Some(event)) = self.events.poll_recv(cx)
        {
            return Poll::Ready(Happened::Heard(event));
        }
        if self.turn.outgoing.is_due()
            && let Poll::Ready(pushed) = poll_push(&mut self.streams.sink, self.turn.outgoing.bytes(), cx)
        {
            return Poll::Ready(Happened::Pushed(pushed));
        }
        match lines {
            Lines::None => {}
            // Other sessions, and what the system has to tell about them, come before the lines that are left.
            Lines::Left => {
                if others.poll(cx).is_ready() {
                    return Poll::Ready(Happened::OthersServed);
                }
            }
            Lines::Client => {
                let read = poll_read(&mut self.streams.input, &mut self.turn.incoming.reader, cx);
                if let Poll::Ready(read) = read {
                    return Poll::Ready(Happened::Read(read));
                }
            }
        }
        if self.alarm.has_fired(cx) {
            return Poll::Ready(Happened::Woke);
        }
        match self.events.poll_recv(cx) {
            Poll::Ready(Some(event)) => Poll::Ready(Happened::Heard(event)),
            // We hold a sender ourselves.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// Decides one turn and does what was decided.
    fn decide(&mut self, event: TurnEvent) {
        self.now = clock::now();
        self.decide_as_before(event);
    }

    /// Decides a turn about an event that time plays no part in, so the clock is not asked.
    fn decide_as_before(&mut self, event: TurnEvent) {
        self.turn.step(event, self.now, &mut self.todo);
        self.gauge();
        if !self.todo.is_empty() {
            self.perform();
        }
    }

    /// Does what was decided, one effect at a time: the others stay where the next incarnation finds them.
    fn perform(&mut self) {
        while let Some(effect) = self.todo.pop_front() {
            self.act(effect);
        }
    }

    fn act(&mut self, effect: TurnEffect) {
        let session = self.turn.number;
        match effect {
            TurnEffect::Dispatch => self.dispatch(),
            TurnEffect::Count => self.neighbours.telemetry.record_all(&mut self.turn.counted),
            TurnEffect::RunHere(call) => self.run_here(call),
            TurnEffect::RunAgain(call, waited) => self.begin_here(call, waited),
            TurnEffect::Refuse(call, fault) => {
                // Answered when the turn is over, like an outcome.
                let outcome = CallOutcome::Fault(fault);
                let _ = self.mailbox.send(SessionEvent::HostSettled { call, outcome });
            }
            TurnEffect::WantWorker => self.want_worker(),
            TurnEffect::ReportBroken(generation) => {
                let _ = self.neighbours.workers.cast(WorkersMsg::Broken { generation });
            }
            TurnEffect::WithdrawFromWorker(call) => self.withdraw_from_worker(call),
            TurnEffect::WithdrawFromJob(invocation) => {
                let _ = self.neighbours.jobs.cast(JobsMsg::Withdrawn(invocation));
            }
            TurnEffect::Reopen(open) => {
                let _ = self.neighbours.jobs.cast(JobsMsg::Resumed { session, open });
            }
            TurnEffect::Abort(task) => task.abort(),
            TurnEffect::Probe(call) => self.probe(call),
            TurnEffect::Ask(number, ask, client) => self.ask(number, ask, client),
            TurnEffect::Follow(number) => self.follow(number),
            TurnEffect::Control(number, message) => {
                // Without a desk the token is dropped, which answers.
                let reply = ControlReply::new(self.mailbox.clone(), number, message.name());
                if let Some(desk) = &self.neighbours.desk {
                    desk.control(session, message, reply);
                }
            }
            TurnEffect::SetRoots(roots) => self.neighbours.roots.set(session, roots),
            TurnEffect::NoteGaveUp(client, after) => {
                tracing::debug!(client = client.name().as_deref(), ?after, "a client withdrew a call");
                self.observed(self.neighbours.clients.gave_up(client.name().as_deref(), after));
            }
            TurnEffect::NoteWaited(client, so_long) => {
                self.observed(self.neighbours.clients.waited(client.name().as_deref(), so_long));
            }
            TurnEffect::Shown(job) => {
                let _ = self.neighbours.jobs.cast(JobsMsg::Shown(job));
            }
            TurnEffect::Finished(method) => {
                self.crash_worker_at(Operation::Method(method));
                self.force_rollout_at(Operation::Method(method));
            }
            TurnEffect::Stale => drop(self.neighbours.gauges.stale.fetch_add(1, Ordering::Relaxed)),
            TurnEffect::TellQuiet(told) => drop(told.send(())),
            TurnEffect::PassOn(reply, snapshot) => drop(reply.send(*snapshot)),
            TurnEffect::AnswerDirect(reply, outcome) => drop(reply.send(*outcome)),
            TurnEffect::TellProgress(sink, value, message) => sink.report(value, message),
            TurnEffect::Describe(reply, seen) => drop(reply.send(*seen)),
        }
    }

    /// Corrects the gauge by what a turn changed.
    fn gauge(&mut self) {
        let (held, gauge) = (self.turn.ledger.len(), &self.neighbours.gauges.in_flight);
        let before = std::mem::replace(&mut self.gauged, held);
        if held > before {
            gauge.fetch_add(held - before, Ordering::Relaxed);
        } else if held < before {
            gauge.fetch_sub(before - held, Ordering::Relaxed);
        }
    }

    /// Ends a connection nobody serves any more: says so to its client, within the time a drain may take.
    pub async fn end(&mut self) {
        let _ = self.mailbox.send(SessionEvent::Stop);
        let _ = self.run().await;
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
        self.neighbours.gauges.in_flight.fetch_sub(self.gauged, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_alarm_wakes_whoever_asked_last_and_as_often_as_it_is_set() {
        let mut alarm = Alarm::new();
        let second = Duration::from_secs(1);
        let unheard = &mut Context::from_waker(Waker::noop());
        assert!(!alarm.has_fired(unheard), "it is not set");
        for round in 1..=3 {
            let now = clock::now();
            alarm.wanted(Some(now + 3 * second));
            assert!(!alarm.has_fired(unheard) && !alarm.has_fired(unheard));
            if round == 2 {
                // Sooner; and what is wanted later than that changes nothing.
                alarm.wanted(Some(now + second));
                alarm.wanted(Some(now + 9 * second));
            }
            let polls = std::cell::Cell::new(0);
            std::future::poll_fn(|cx| {
                polls.set(polls.get() + 1);
                if alarm.has_fired(cx) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            assert_eq!(polls.get(), 2, "woken once, in round {round}");
            let waited = clock::now().duration_since(now).as_secs();
            assert_eq!(waited, if round == 2 { 1 } else { 3 });
            assert!(!alarm.has_fired(unheard), "it fires once");
        }
    }
}
