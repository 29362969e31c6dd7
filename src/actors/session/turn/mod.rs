//! The turns of a session: what each event means for its calls, its worker, its client's bytes and its clock.
//!
//! Owns: everything a session decides with: the state machine, the ledger, the calls of the host, who follows tasks, what was
//! read and what is to be written, how far the session is on its way to its end. May not know: how an effect is performed,
//! tasks, the other end of a channel, clocks (`now` is passed in).
//!
//! ```text
//!  event ──▶ step(event, now) ──▶ effects, performed in their order ──┐
//!    ▲                                                                │
//!    └── mailbox, bytes, clock ◀──────────────────────────────────────┘
//! ```
//!
//! Invariants: (1) a step never waits and starts nothing; (2) each call in flight is in the ledger or among the calls of the
//! host, else it is answered when the session is resumed; (3) effects go to the end of one queue, which outlives a panic; (4) a
//! step allocates nothing for a call but its places in tables that are kept.

mod calls;
mod clockwork;
mod controls;
mod direct;
mod effects;
mod held;
mod outgoing;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::task::AbortHandle;

use self::clockwork::Clockwork;
pub(super) use self::controls::{Controls, ControlsSnapshot};
use self::direct::Direct;
pub use self::direct::DirectCall;
pub(super) use self::effects::{TurnEffect, TurnEvent};
use self::held::Settling;
pub(in crate::actors) use self::held::ToolFacts;
pub(super) use self::held::{Following, HostCall, HostWork, Payload, Serving};
pub(super) use self::outgoing::Outgoing;
use super::flow::{self, Flow};
use super::ledger::Ledger;
use super::passed::{Stillness, TakenOver};
use super::{ClientSeen, LINGER, SessionEvent};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{CallNumber, Generation, HostId, JobId, SessionNumber};
use crate::failpoints::Faults;
use crate::protocol::frame::{Frame, FrameReader};
use crate::protocol::session::{CallOutcome, ClientInfo, LineWas, SessionCore, SessionEffect, SessionEffects, Wanted};
use crate::protocol::tasks::{TaskAnswer, TaskAsk, TaskNews};
use crate::telemetry::Record;
use crate::telemetry::traces::Traces;
use crate::tools::progress::Latest;

/// What is to be done, in this order. The loop keeps the queue, so that what a panic interrupts is done by the next run.
pub(super) type TurnEffects = VecDeque<TurnEffect>;

/// Where a session stands on its way to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SessionStage {
    /// The client sends.
    Open,
    /// It sends nothing more; what is in flight may still answer until then.
    Lingering(Instant),
    /// Nothing is decided any more; what was decided is written until then.
    Draining(Instant),
}

/// What was read of the client.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) reader: FrameReader,
    pub(super) line_limit: usize,
    /// The message that is being handled.
    reading: Option<Frame>,
    /// The client sends nothing more; lines that were read before may be left.
    pub(super) ended: bool,
    /// Lines may be left that were not looked at, so that others get their turn.
    pub(super) behind: bool,
    /// Whether nobody else is served in this system, so that nobody waits for this session's turn to end.
    pub(super) alone: bool,
}

/// Lines of one client that are handled before others get their turn. A line costs a microsecond or two, and a call a few.
const LINES: usize = 64;

/// Bytes of them; one line may have more.
const LINE_BYTES: usize = 64 * 1024;

/// The deciding half of a session.
#[derive(Debug)]
pub(super) struct SessionTurn {
    pub(super) host: HostId,
    pub(super) number: SessionNumber,
    /// The tools, in the catalogue's order.
    pub(super) tools: Arc<[ToolFacts]>,
    pub(super) core: SessionCore,
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
    /// What is said beside JSON-RPC.
    pub(super) controls: Controls,
    pub(super) serving: Serving,
    /// The newest worker that is known to be gone.
    pub(super) dead: Generation,
    pub(super) ledger: Ledger<Payload>,
    pub(super) host_calls: HashMap<CallNumber, HostCall>,
    /// Calls that came by the mailbox and are answered there.
    direct: HashMap<CallNumber, Direct>,
    /// The embedding program's name for itself, where this is its own session.
    embedder: Option<Arc<str>>,
    /// Who follows tasks for the client, by number.
    pub(super) follows: HashMap<CallNumber, Following>,
    /// What the state machine asked for and is not decided yet.
    asked: SessionEffects,
    /// Calls for the worker that were decided about since the last [`TurnEffect::Dispatch`].
    pub(super) sending: Vec<CallNumber>,
    /// What is to be recorded, oldest first.
    pub(super) counted: Vec<Record>,
    pub(super) stage: SessionStage,
    flow: Flow,
    clockwork: Clockwork,
    /// Whether it stands still for an upgrade.
    pub(super) stillness: Stillness,
    /// What another image passed on and is not begun yet.
    pub(super) taken_over: Option<TakenOver>,
    /// Whether the interruption was an upgrade.
    upgraded: bool,
    faults: Faults,
    /// What is remembered of calls for traces.
    pub(super) traces: Traces,
}

impl SessionTurn {
    /// A session before its first message. `faults` is for the one fault point that lies inside a decision.
    pub(super) fn new(
        (host, number): (HostId, SessionNumber),
        core: SessionCore,
        tools: Arc<[ToolFacts]>,
        line_limit: usize,
        faults: Faults,
    ) -> Self {
        Self {
            host,
            number,
            tools,
            core,
            incoming: Incoming {
                reader: FrameReader::new(line_limit),
                line_limit,
                reading: None,
                ended: false,
                behind: false,
                alone: true,
            },
            outgoing: Outgoing::default(),
            controls: Controls::default(),
            serving: Serving::Unasked,
            dead: Generation::NONE,
            ledger: Ledger::default(),
            host_calls: HashMap::new(),
            direct: HashMap::new(),
            embedder: None,
            follows: HashMap::new(),
            asked: SessionEffects::new(),
            sending: Vec::new(),
            counted: Vec::new(),
            stage: SessionStage::Open,
            flow: Flow::default(),
            clockwork: Clockwork::default(),
            stillness: Stillness::Moving,
            taken_over: None,
            upgraded: false,
            faults,
            traces: Traces::default(),
        }
    }

    /// The same, whose calls are told of in these traces.
    pub(super) fn with_traces(self, traces: Traces) -> Self {
        Self { traces, ..self }
    }

    /// Decides one turn. What is to be done goes to the end of `effects`.
    pub(super) fn step(&mut self, event: TurnEvent, now: Instant, effects: &mut TurnEffects) {
        match event {
            TurnEvent::Heard(event) => self.on_heard(event, now, effects),
            TurnEvent::Read => {
                self.clockwork.spoken(now);
                self.on_read(now, effects);
            }
            TurnEvent::ReadAll => {
                self.incoming.ended = true;
                self.on_read(now, effects);
            }
            TurnEvent::Written(count) => {
                if self.outgoing.written(count) && self.outgoing.owes_change {
                    self.say_change();
                }
            }
            TurnEvent::WrittenThrough => {
                self.outgoing.written(self.outgoing.bytes().len());
                self.outgoing.flushed(effects);
                if self.outgoing.owes_change {
                    self.say_change();
                }
            }
            TurnEvent::Flushed => self.outgoing.flushed(effects),
            TurnEvent::HungUp => {
                self.outgoing.clear();
                self.close(now, effects);
            }
            TurnEvent::Woke => self.on_woke(now, effects),
            TurnEvent::Undelivered { generation, calls } => self.on_undelivered(generation, &calls, effects),
            TurnEvent::Interrupted => self.on_interrupted(now, effects),
            TurnEvent::Resumed => self.on_resumed(now, effects),
        }
        // One message for all calls of a turn. Without a worker they wait in the ledger.
        if !self.sending.is_empty() {
            effects.push_back(TurnEffect::Dispatch);
        }
    }

    /// Whether nothing is left to do.
    pub(super) fn is_over(&self) -> bool {
        match self.stage {
            SessionStage::Open => false,
            SessionStage::Lingering(_) => {
                self.core.in_flight() == 0
                    && self.direct.is_empty()
                    && self.controls.are_answered()
                    && self.outgoing.bytes().is_empty()
            }
            SessionStage::Draining(_) => self.outgoing.bytes().is_empty(),
        }
    }

    /// Whether so much is in flight that reading may have to wait.
    pub(super) fn is_crowded(&self) -> bool {
        flow::crowded(self.core.in_flight(), self.core.bytes_in_flight())
    }

    /// Whether lines that were read are to be looked at in a turn of their own.
    pub(super) fn is_behind(&self) -> bool {
        self.incoming.behind
    }

    /// Whether more is read from the client. `crowded` says when it is looked, where so much is in flight.
    pub(super) fn reads(&mut self, crowded: Option<Instant>) -> bool {
        match crowded {
            Some(now) => self.clockwork.held = self.flow.crowd(now),
            None => {
                self.clockwork.held = None;
                self.flow.clear();
            }
        }
        self.stage == SessionStage::Open
            && self.stillness == Stillness::Moving
            && !self.outgoing.is_backlogged()
            && self.clockwork.held.is_none()
            && !self.controls.hold_lines()
    }

    pub(super) fn on_heard(&mut self, event: SessionEvent, now: Instant, effects: &mut TurnEffects) {
        let Some(event) = self.stillness.admit(event) else { return };
        match event {
            SessionEvent::Settled { generation, call, outcome } => {
                self.on_settled(generation, call, outcome, now, effects);
            }
            SessionEvent::Dropped { generation, call } => {
                // A worker that lives on without having answered is broken. If it is dying anyway, this changes nothing:
                // the call is decided about when its generation is gone.
                if self.ledger.is_in_flight(call, generation) {
                    effects.push_back(TurnEffect::ReportBroken(generation));
                }
            }
            SessionEvent::WorkerUp { generation, worker } => {
                // A supervisor we have not asked speaks to our previous incarnation; a generation that is known to be gone
                // is no longer up.
                if matches!(self.serving, Serving::Unasked) || generation <= self.dead {
                    return;
                }
                self.serving = Serving::Up(generation, worker);
                self.send_waiting();
            }
            SessionEvent::WorkerGone { generation } => {
                self.dead = self.dead.max(generation);
                if matches!(self.serving, Serving::Up(current, _) if current <= generation) {
                    self.serving = Serving::Awaited;
                }
                for effect in self.ledger.lost(generation) {
                    self.decided(effect, now, effects);
                }
            }
            SessionEvent::WorkersGaveUp { period } => self.on_gave_up(period, now, effects),
            SessionEvent::Probed { call, evidence } => {
                if let Some(effect) = self.ledger.probed(call, evidence) {
                    self.decided(effect, now, effects);
                }
            }
            SessionEvent::HostSettled { call, outcome } => {
                self.made_room(call);
                self.answer(call, outcome, Settling::default(), now, effects);
            }
            SessionEvent::Told { call, answer } => self.on_told(call, answer, now, effects),
            SessionEvent::TaskNews { number, news } => self.on_task_news(number, &news, now, effects),
            SessionEvent::ControlAnswered { number, line, refused } => {
                self.on_control_answered(number, line, refused, now, effects);
            }
            SessionEvent::Describe(reply) => {
                let (client, version, protocol) = self.core.client_seen();
                let client = client.or_else(|| self.embedder.as_deref().map(str::to_owned));
                let seen = ClientSeen { client, version, protocol, calls: self.in_flight() };
                effects.push_back(TurnEffect::Describe(reply, Box::new(seen)));
            }
            SessionEvent::SayBeside(line) => self.say_beside(line),
            SessionEvent::Peek(reply) => effects.push_back(TurnEffect::PassOn(reply, Box::new(self.snapshot(now)))),
            SessionEvent::Freeze(reply) => self.freeze(reply),
            SessionEvent::HoldStill(reply) => self.hold_still(reply, now, effects),
            SessionEvent::Thaw(ended) => self.thaw(ended, now, effects),
            SessionEvent::ToolsChanged => {
                self.outgoing.owes_change = true;
                self.say_change();
            }
            SessionEvent::Progress { call, latest } => self.on_progress(call, &latest, effects),
            SessionEvent::Embedded(name) => self.embedder = Some(name),
            SessionEvent::Invoked(call) => self.take_direct(*call, now, effects),
            SessionEvent::Left(call) => self.leave_direct(call, now, effects),
            SessionEvent::Stop => {
                if self.stillness != Stillness::Moving {
                    self.thaw(Generation::NONE, now, effects);
                }
                self.stop(now, effects);
            }
        }
    }

    /// There will be no worker for a while: no call waits for one.
    fn on_gave_up(&mut self, period: Duration, now: Instant, effects: &mut TurnEffects) {
        self.serving = Serving::Unasked;
        let fault = Fault::new(
            FaultCode::WorkerLost,
            "workers were lost too often; calls that need one are refused for a while.",
        )
        .hint(format!("Jobs can still be read and cancelled; try the call again in {} s.", period.as_secs().max(1)));
        for call in self.ledger.keys() {
            self.fail(call, Box::new(fault.clone()), now, effects);
        }
    }

    /// A call of the host came out.
    fn made_room(&mut self, call: CallNumber) {
        self.host_calls.remove(&call);
        // Where a worker's calls are the crowd, only theirs make room.
        if !flow::crowded(self.ledger.len(), 0) {
            self.flow.settled();
        }
    }

    fn on_told(
        &mut self,
        call: CallNumber,
        answer: Result<TaskAnswer, Box<Fault>>,
        now: Instant,
        effects: &mut TurnEffects,
    ) {
        self.made_room(call);
        let told = answer.as_ref().ok().and_then(TaskAnswer::ended).filter(|_| self.core.is_open(call));
        self.core.on_told(call, answer, now, &mut self.outgoing.out, &mut self.asked);
        self.outgoing.line_ended();
        self.outgoing.shows(told);
        self.absorb(None, now, effects);
    }

    fn on_task_news(&mut self, number: CallNumber, news: &TaskNews, now: Instant, effects: &mut TurnEffects) {
        // A client that is slow to read misses them, as it may; its follower comes to an end all the same.
        let mut missed = BytesMut::new();
        let misses = self.outgoing.is_backlogged();
        let out = if misses { &mut missed } else { &mut self.outgoing.out };
        let before = out.len();
        self.core.on_task(number, news, out, &mut self.asked);
        let said = !misses && out.len() > before;
        self.outgoing.line_ended();
        self.outgoing.shows(news.ended().filter(|_| said));
        self.absorb(None, now, effects);
    }

    fn on_progress(&mut self, call: CallNumber, latest: &Latest, effects: &mut TurnEffects) {
        if let Some(direct) = self.direct.get(&call) {
            let told = latest.take().map(|(value, message)| (direct.progress.clone(), value, message));
            effects.extend(told.map(|(sink, value, message)| TurnEffect::TellProgress(sink, value, message)));
            return;
        }
        // News that can be missed are left out for a client that is slow to read.
        if let Some((value, message)) = latest.take()
            && !self.outgoing.is_slow()
        {
            self.core.on_progress(call, value, Some(&message), &mut self.outgoing.out);
            self.outgoing.line_ended();
        }
    }

    fn on_read(&mut self, now: Instant, effects: &mut TurnEffects) {
        self.take_lines(now, effects);
        self.absorb(None, now, effects);
    }

    /// Takes the lines that were read, as many as one turn may.
    fn take_lines(&mut self, now: Instant, effects: &mut TurnEffects) {
        let (mut lines, mut bytes) = if self.incoming.alone { (usize::MAX, usize::MAX) } else { (LINES, LINE_BYTES) };
        self.incoming.behind = false;
        while !self.controls.hold_lines() {
            if lines == 0 || bytes == 0 {
                self.incoming.behind = true;
                return;
            }
            let Some(frame) = self.incoming.reader.next_frame() else { break };
            lines -= 1;
            bytes = bytes.saturating_sub(frame.len());
            self.take(frame, now, effects);
        }
        if self.incoming.ended && !self.controls.hold_lines() && self.stage == SessionStage::Open {
            // The last line counts even without a newline.
            if let Some(frame) = self.incoming.reader.finish() {
                self.take(frame, now, effects);
            }
            self.stage = SessionStage::Lingering(now + LINGER);
        }
    }

    fn take(&mut self, frame: Frame, now: Instant, effects: &mut TurnEffects) {
        let frame = self.incoming.reading.insert(frame);
        let was = self.core.on_frame(frame, now, &mut self.outgoing.out, &mut self.asked);
        if was == LineWas::Beside
            && let Frame::Line(line) = frame
        {
            let line = line.clone();
            self.on_beside(&line, now, effects);
        }
        self.incoming.reading = None;
        self.outgoing.line_ended();
    }

    /// Says that the tools differ, once the client has read what it was sent before: however often they changed, it lists
    /// them once.
    pub(super) fn say_change(&mut self) {
        if self.stage == SessionStage::Open && !self.outgoing.is_backlogged() {
            self.outgoing.owes_change = false;
            self.core.on_tools_changed(&mut self.outgoing.out);
            self.outgoing.line_ended();
        }
    }

    /// Decides about what the state machine asked for; `settling` is about the call it has just answered.
    fn absorb(&mut self, mut settling: Option<Settling>, now: Instant, effects: &mut TurnEffects) {
        // One at a time, and the others stay where the next incarnation finds them.
        while let Some(effect) = self.asked.pop_front() {
            match effect {
                SessionEffect::Invoke(call) => self.invoke(call, now, effects),
                SessionEffect::Ask { number, ask, client } => self.ask(number, ask, client, effects),
                SessionEffect::Withdraw(call) => self.withdraw(call, effects),
                SessionEffect::Follow { number, jobs, news, client } => {
                    self.follow(number, jobs, news, client, effects);
                }
                SessionEffect::Unfollow(number) => self.unfollow(number, effects),
                SessionEffect::Roots(roots) => effects.push_back(TurnEffect::SetRoots(roots)),
                SessionEffect::GaveUp { client, after } => effects.push_back(TurnEffect::NoteGaveUp(client, after)),
                SessionEffect::Waited { client, so_long } => effects.push_back(TurnEffect::NoteWaited(client, so_long)),
                SessionEffect::Finished(finished) => {
                    if finished.tool.is_none() && self.faults.is_armed() {
                        effects.push_back(TurnEffect::Finished(finished.method));
                    }
                    self.count(finished, settling.take(), effects);
                }
            }
        }
    }

    pub(super) fn ask(&mut self, number: CallNumber, ask: TaskAsk, client: ClientInfo, effects: &mut TurnEffects) {
        self.host_calls.insert(number, HostCall { task: None, work: HostWork::Ask(ask.clone(), client.clone()) });
        effects.push_back(TurnEffect::Ask(number, ask, client));
    }

    pub(super) fn follow(
        &mut self,
        number: CallNumber,
        jobs: Vec<JobId>,
        wanted: Wanted,
        client: ClientInfo,
        effects: &mut TurnEffects,
    ) {
        self.follows.insert(number, Following { tasks: Vec::new(), jobs, wanted, client });
        effects.push_back(TurnEffect::Follow(number));
    }

    /// The effect that began this call was performed: it is worked at by this task.
    pub(super) fn begun(&mut self, call: CallNumber, task: AbortHandle) {
        match self.host_calls.get_mut(&call) {
            Some(held) => held.task = Some(task),
            None => task.abort(),
        }
    }

    /// Another run goes on. The last one may have ended in the middle of a turn.
    fn on_interrupted(&mut self, now: Instant, effects: &mut TurnEffects) {
        self.outgoing.drop_torn();
        self.sending.clear();
        if !self.counted.is_empty() {
            effects.push_back(TurnEffect::Count);
        }
        self.absorb(None, now, effects);
        if let Some(taken_over) = self.taken_over.take() {
            self.upgraded = true;
            self.begin_again(taken_over, now, effects);
        }
    }

    fn on_resumed(&mut self, now: Instant, effects: &mut TurnEffects) {
        let upgraded = std::mem::take(&mut self.upgraded);
        if let Some(frame) = self.incoming.reading.take() {
            self.core.abandon(&frame, &mut self.outgoing.out);
            self.outgoing.line_ended();
        }
        // A call of the host that was not begun by now was lost while its effect was performed.
        self.host_calls.retain(|_, held| held.task.is_some() || matches!(held.work, HostWork::Refused));
        let open = self.open_calls();
        for call in open.iter().copied() {
            if self.ledger.holds(call) || self.host_calls.contains_key(&call) {
                continue;
            }
            let fault = match upgraded {
                false => Fault::new(FaultCode::Internal, "the session failed while it handled this call."),
                true => Fault::new(FaultCode::OutcomeUnknown, "an upgrade cut this call off, and it could not go on.")
                    .hint("A job that was accepted is kept; find it with consult_jobs."),
            };
            self.settle(call, CallOutcome::Fault(Box::new(fault)), Settling::default(), now, effects);
        }
        let held: Vec<CallNumber> = self.ledger.keys().into_iter().chain(self.host_calls.keys().copied()).collect();
        for call in held {
            if !self.is_open(call) {
                self.withdraw(call, effects);
            }
        }
        // A turn that broke off may have lost the time of the next deadline: it is found again.
        self.expire(now, effects);
        // What was said to an incarnation that is gone, by us or by it, may be lost: say and ask again.
        let open = open.into_iter().filter(|call| self.is_open(*call)).map(|call| call.0).collect();
        effects.push_back(TurnEffect::Reopen(open));
        self.serving = Serving::Unasked;
        if upgraded {
            self.release(self.dead, now, effects);
        }
        if !self.ledger.is_empty() {
            self.want_worker(effects);
        }
        // Lines that had arrived behind it; nothing else would wake them.
        self.on_read(now, effects);
    }
}

#[cfg(test)]
mod tests;
