//! Calls that come by the mailbox: an embedding program's own, for which there is no line to read and none to write.
//!
//! Owns: what is held of such a call beside the ledger, and its answer. May not know: how it is run, who waits for it. All else
//! (contract, replay, deadline, withdrawal) is that of a call that came as a line.
//!
//! Invariants: (1) a call is answered once, or its sender is dropped with the session; (2) a session without such calls pays a
//! look at an empty table.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{SessionStage, SessionTurn, Settling, TurnEffect, TurnEffects};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::CallNumber;
use crate::base::nearest::nearest;
use crate::protocol::session::{Call, CallOutcome, ClientInfo, FinishedAs};
use crate::telemetry::{Record, ToolCallRecord};
use crate::tools::progress::ProgressSink;

/// A call, as an embedding program hands it to its session.
#[derive(Debug)]
pub struct DirectCall {
    /// Its number, which no other call of the session has.
    pub number: CallNumber,
    /// The tool's name.
    pub tool: String,
    /// The JSON text of the arguments: an object.
    pub arguments: Bytes,
    /// Who calls.
    pub client: ClientInfo,
    /// Where its progress goes; says whether anybody wants it.
    pub progress: ProgressSink,
    /// Told how it came out; dropped when its session is over.
    pub reply: oneshot::Sender<CallOutcome>,
}

/// What is held of one that is open.
#[derive(Debug)]
pub(super) struct Direct {
    pub(super) tool: usize,
    pub(super) since: Instant,
    pub(super) bytes: usize,
    pub(super) progress: ProgressSink,
    reply: oneshot::Sender<CallOutcome>,
}

impl SessionTurn {
    /// Takes such a call in, unless there is no such tool or no room.
    pub(super) fn take_direct(&mut self, call: DirectCall, now: Instant, effects: &mut TurnEffects) {
        let DirectCall { number, tool: name, arguments, client, progress, reply } = call;
        let tool = match self.admit_direct(&name, arguments.len()) {
            Ok(tool) => tool,
            Err(fault) => {
                let outcome = Box::new(CallOutcome::Fault(Box::new(fault)));
                return effects.push_back(TurnEffect::AnswerDirect(reply, outcome));
            }
        };
        let wants_progress = progress.is_wanted();
        self.direct.insert(number, Direct { tool, since: now, bytes: arguments.len(), progress, reply });
        self.invoke(Call { number, tool, arguments, client, wants_progress, trace: None }, now, effects);
    }

    /// The tool of a call that may be taken in.
    fn admit_direct(&self, name: &str, bytes: usize) -> Result<usize, Fault> {
        if self.stage != SessionStage::Open {
            return Err(Fault::new(FaultCode::Stopping, "the session is over."));
        }
        let Some(tool) = self.tools.iter().position(|tool| &*tool.name == name) else {
            let fault = Fault::new(FaultCode::InvalidInput, format!("there is no tool {name:?}."));
            let known: Vec<&str> = self.tools.iter().map(|tool| &*tool.name).collect();
            return Err(match nearest(name, &known) {
                Some(near) => fault.hint(format!("Did you mean {near:?}?")),
                None => fault,
            });
        };
        let limits = self.core.limits();
        let held: usize = self.direct.values().map(|direct| direct.bytes).sum();
        if self.direct.len() >= limits.calls || held + bytes > limits.call_bytes {
            return Err(Fault::new(FaultCode::Busy, "this session has as many calls in flight as it may.")
                .hint("Wait for one to be answered."));
        }
        Ok(tool)
    }

    /// Nobody waits for such a call any more.
    pub(super) fn leave_direct(&mut self, call: CallNumber, now: Instant, effects: &mut TurnEffects) {
        if let Some(direct) = self.direct.remove(&call) {
            self.withdraw(call, effects);
            self.count_direct((call, &direct), FinishedAs::Cancelled, Settling::default(), now, effects);
        }
    }

    /// Answers such a call; gives the outcome back where it is none.
    pub(super) fn answer_direct(
        &mut self,
        call: CallNumber,
        outcome: CallOutcome,
        settling: &mut Settling,
        now: Instant,
        effects: &mut TurnEffects,
    ) -> Option<CallOutcome> {
        if self.direct.is_empty() {
            return Some(outcome);
        }
        let Some(direct) = self.direct.remove(&call) else { return Some(outcome) };
        let settling = std::mem::take(settling);
        let result = match &outcome {
            CallOutcome::Reply(reply) => reply.fault.map_or(FinishedAs::Success, FinishedAs::Failed),
            CallOutcome::Fault(fault) => FinishedAs::Failed(fault.code),
        };
        effects.extend(settling.ends_told().map(TurnEffect::Shown));
        self.count_direct((call, &direct), result, settling, now, effects);
        effects.push_back(TurnEffect::AnswerDirect(direct.reply, Box::new(outcome)));
        None
    }

    fn count_direct(
        &mut self,
        (call, direct): (CallNumber, &Direct),
        result: FinishedAs,
        settling: Settling,
        now: Instant,
        effects: &mut TurnEffects,
    ) {
        let record = ToolCallRecord {
            at: now,
            session: self.number,
            request_id: None,
            tool: Arc::clone(&self.tools[direct.tool].name),
            path_hint: settling.path_hint,
            latency: now.saturating_duration_since(direct.since),
            result,
            job: settling.job,
            generation: settling.generation,
            replays: settling.replays,
            trace: self.traces.end(self.number, call),
        };
        self.note(Record::ToolCall(record), effects);
    }

    /// Whether somebody waits for this call.
    pub(super) fn is_open(&self, call: CallNumber) -> bool {
        self.core.is_open(call) || self.direct.contains_key(&call)
    }

    /// Nothing is answered any more: whoever waits is told by its dropped sender.
    pub(super) fn drop_direct(&mut self, effects: &mut TurnEffects) {
        for (call, _) in std::mem::take(&mut self.direct) {
            self.withdraw(call, effects);
        }
    }
}
