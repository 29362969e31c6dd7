//! What becomes of a call: from the state machine's wish to its answer.
//!
//! Owns: what is held of a call while it is open, what is told to whom when it comes out, is withdrawn or fails. May not
//! know: what a line says, whether a lost call may run again (the ledger decides that), how a call is run.
//!
//! ```text
//!  Invoke ──▶ recorded ──Dispatch──▶ with the worker ──settled──▶ answered, counted
//!     └─────▶ RunHere ─────────────────────────────────settled──────▲
//! ```
//!
//! Invariants: (1) a worker call is recorded before it is dispatched; (2) a caller that was answered with a fault for a worker
//! call, or withdrew it, waits for no job.

use std::sync::Arc;
use std::time::Instant;

use super::{HostCall, HostWork, Payload, Serving, SessionStage, SessionTurn, Settling, TurnEffect, TurnEffects};
use crate::actors::session::DRAIN;
use crate::actors::session::ledger::LedgerEffect;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{CallNumber, Generation, InvocationId};
use crate::failpoints::{Broken, FaultPoint, InTurn, Operation};
use crate::protocol::session::{Call, CallOutcome, Finished, SessionEffect};
use crate::telemetry::{Record, ToolCallRecord};
use crate::tools::Target;

impl SessionTurn {
    /// Takes a new call in, for a worker or for the host.
    pub(super) fn invoke(&mut self, mut call: Call, now: Instant, effects: &mut TurnEffects) {
        self.traces.begin(self.number, call.number, call.trace.take());
        match self.tools[call.tool].target {
            Target::Worker => self.record(call, now, effects),
            Target::Host => {
                self.note_deadline(call.tool, now);
                self.begin_here(&call);
                effects.push_back(TurnEffect::RunHere(call));
            }
        }
    }

    /// Takes a worker call into the ledger.
    fn record(&mut self, call: Call, now: Instant, effects: &mut TurnEffects) {
        let tool = &self.tools[call.tool];
        // The one fault point inside a decision: a call it strikes was never recorded.
        let met = self.faults.meet_in_turn(FaultPoint::LedgerRecord, Operation::Tool(&tool.name));
        if let Some(InTurn::Do(Broken::Error(fault))) = met {
            self.host_calls.insert(call.number, HostCall { task: None, work: HostWork::Refused });
            effects.push_back(TurnEffect::Refuse(call.number, fault));
            return;
        }
        let contract = tool.contract;
        self.note_deadline(call.tool, now);
        let payload = Payload {
            tool: call.tool,
            arguments: call.arguments,
            client: call.client,
            wants_progress: call.wants_progress,
        };
        self.ledger.record(call.number, contract, payload);
        self.sending.push(call.number);
        if matches!(self.serving, Serving::Unasked) {
            self.want_worker(effects);
        }
    }

    /// Holds a call of the host; its task follows with [`TurnEffect::RunHere`].
    pub(in super::super) fn begin_here(&mut self, call: &Call) {
        self.host_calls.insert(call.number, HostCall { task: None, work: HostWork::Tool(call.clone()) });
    }

    fn note_deadline(&mut self, tool: usize, now: Instant) {
        if let Some(limit) = self.tools[tool].deadline {
            self.clockwork.begins(limit, now);
        }
    }

    /// There is a worker: it is given every call that waits.
    pub(super) fn send_waiting(&mut self) {
        self.sending.extend(self.ledger.waiting());
    }

    pub(in super::super) fn want_worker(&mut self, effects: &mut TurnEffects) {
        self.serving = Serving::Awaited;
        effects.push_back(TurnEffect::WantWorker);
    }

    /// The worker had ended before it was given these calls, so no worker ever had them. The next one is asked for: news of it
    /// may have gone to an earlier incarnation of the session.
    pub(super) fn on_undelivered(&mut self, generation: Generation, calls: &[CallNumber], effects: &mut TurnEffects) {
        for call in calls {
            self.ledger.retract(*call, generation);
        }
        self.dead = self.dead.max(generation);
        self.want_worker(effects);
    }

    pub(in super::super) fn decided(&mut self, effect: LedgerEffect, now: Instant, effects: &mut TurnEffects) {
        match effect {
            LedgerEffect::Send(call) => self.sending.push(call),
            LedgerEffect::Probe(call) => effects.push_back(TurnEffect::Probe(call)),
            LedgerEffect::Fail(call, fault) => self.fail(call, fault, now, effects),
        }
    }

    /// A worker finished an attempt.
    pub(super) fn on_settled(
        &mut self,
        generation: Generation,
        call: CallNumber,
        mut outcome: CallOutcome,
        now: Instant,
        effects: &mut TurnEffects,
    ) {
        let Some(settled) = self.ledger.settle(call, generation) else {
            effects.push_back(TurnEffect::Stale);
            return;
        };
        if let CallOutcome::Fault(fault) = &mut outcome {
            fault.generation.get_or_insert(generation);
            fault.retried = settled.replays;
            // A caller that was answered with a fault waits for no job.
            effects.push_back(TurnEffect::WithdrawFromJob(self.invocation(call)));
        }
        let settling = Settling { generation, replays: settled.replays, ..Settling::default() };
        self.settle(call, outcome, settling, now, effects);
    }

    /// Answers a worker call with a fault. Its caller waits no longer, so a synchronous job it may have become ends too:
    /// a caller that asks again must not start a second agent beside the first.
    pub(super) fn fail(&mut self, call: CallNumber, mut fault: Box<Fault>, now: Instant, effects: &mut TurnEffects) {
        if let Some(lost) = self.ledger.take(call) {
            effects.push_back(TurnEffect::WithdrawFromJob(self.invocation(call)));
            fault.retried = lost.replays;
            let settling = Settling {
                generation: fault.generation.unwrap_or_default(),
                replays: lost.replays,
                ..Settling::default()
            };
            self.settle(call, CallOutcome::Fault(fault), settling, now, effects);
        }
    }

    /// Answers a call, which makes room for another.
    pub(super) fn settle(
        &mut self,
        call: CallNumber,
        outcome: CallOutcome,
        settling: Settling,
        now: Instant,
        effects: &mut TurnEffects,
    ) {
        self.flow.settled();
        self.answer(call, outcome, settling, now, effects);
    }

    pub(super) fn answer(
        &mut self,
        call: CallNumber,
        mut outcome: CallOutcome,
        mut settling: Settling,
        now: Instant,
        effects: &mut TurnEffects,
    ) {
        if let CallOutcome::Reply(reply) = &mut outcome {
            settling.job = reply.job;
            settling.tells_end = reply.tells_end;
            settling.ends = std::mem::take(&mut reply.ends);
            settling.path_hint = reply.path_hint.take();
        }
        let Some(outcome) = self.answer_direct(call, outcome, &mut settling, now, effects) else { return };
        self.core.on_settled(call, outcome, now, &mut self.outgoing.out, &mut self.asked);
        self.outgoing.line_ended();
        self.absorb(Some(settling), now, effects);
    }

    /// Nobody waits for this call any more.
    pub(super) fn withdraw(&mut self, call: CallNumber, effects: &mut TurnEffects) {
        if let Some(task) = self.host_calls.remove(&call).and_then(|held| held.task) {
            effects.push_back(TurnEffect::Abort(task));
        }
        if self.ledger.take(call).is_some() {
            if matches!(self.serving, Serving::Up(..)) {
                effects.push_back(TurnEffect::WithdrawFromWorker(call));
            }
            // After the worker was told, so that it asks for nothing on behalf of this call afterwards.
            effects.push_back(TurnEffect::WithdrawFromJob(self.invocation(call)));
        }
    }

    pub(super) fn unfollow(&mut self, number: CallNumber, effects: &mut TurnEffects) {
        let tasks = self.follows.remove(&number).into_iter().flat_map(|following| following.tasks);
        effects.extend(tasks.map(TurnEffect::Abort));
    }

    pub(super) fn count(&mut self, finished: Finished, settling: Option<Settling>, effects: &mut TurnEffects) {
        let Some(tool) = finished.tool else {
            self.note(Record::Request { method: finished.method, result: finished.result }, effects);
            return;
        };
        let settling = settling.unwrap_or_default();
        self.outgoing.shows(settling.ends_told());
        let record = ToolCallRecord {
            at: finished.at,
            session: self.number,
            request_id: finished.request_id,
            tool: Arc::clone(&self.tools[tool].name),
            path_hint: settling.path_hint,
            latency: finished.latency,
            result: finished.result,
            job: settling.job,
            generation: settling.generation,
            replays: settling.replays,
            trace: finished.call.and_then(|call| self.traces.end(self.number, call)),
        };
        self.note(Record::ToolCall(record), effects);
    }

    /// Has something recorded; the first of a turn's effects that ask for it records all there is.
    #[inline]
    pub(super) fn note(&mut self, record: Record, effects: &mut TurnEffects) {
        self.counted.push(record);
        effects.push_back(TurnEffect::Count);
    }

    /// How many calls are in flight.
    pub(in super::super) fn in_flight(&self) -> usize {
        self.core.in_flight() + self.direct.len()
    }

    /// The calls in flight, oldest first.
    pub(in super::super) fn open_calls(&self) -> Vec<CallNumber> {
        let open = self.core.open_calls().map(|(call, ..)| call);
        let mut open: Vec<CallNumber> = open.chain(self.direct.keys().copied()).collect();
        open.sort_unstable();
        open
    }

    /// The system stops while the client may still wait: it is told, call by call.
    pub(super) fn stop(&mut self, now: Instant, effects: &mut TurnEffects) {
        if self.stage == SessionStage::Open {
            self.core.on_stopping(&mut self.outgoing.out, &mut self.asked);
            self.outgoing.line_ended();
            self.absorb(None, now, effects);
            for call in self.open_calls() {
                self.withdraw(call, effects);
                let fault = Fault::new(FaultCode::Stopping, "the server is stopping.")
                    .hint("A job that was accepted is kept; find it with consult_jobs when the server is back.");
                self.settle(call, CallOutcome::Fault(Box::new(fault)), Settling::default(), now, effects);
            }
        }
        self.close(now, effects);
    }

    /// Nothing is decided any more: whatever is open has no caller.
    pub(super) fn close(&mut self, now: Instant, effects: &mut TurnEffects) {
        self.drop_direct(effects);
        self.core.on_closed(now, &mut self.asked);
        for effect in std::mem::take(&mut self.asked) {
            match effect {
                SessionEffect::Withdraw(call) => self.withdraw(call, effects),
                SessionEffect::Finished(finished) => self.count(finished, None, effects),
                SessionEffect::Unfollow(number) => self.unfollow(number, effects),
                // A closed state machine asks for nothing new.
                SessionEffect::Invoke(_)
                | SessionEffect::Ask { .. }
                | SessionEffect::Follow { .. }
                | SessionEffect::Roots(_)
                | SessionEffect::GaveUp { .. }
                | SessionEffect::Waited { .. } => {}
            }
        }
        if !matches!(self.stage, SessionStage::Draining(_)) {
            self.stage = SessionStage::Draining(now + DRAIN);
        }
    }

    pub(in super::super) fn invocation(&self, call: CallNumber) -> InvocationId {
        InvocationId { host: self.host, session: self.number, call: call.0 }
    }
}
