//! What a request in flight is answered with.
//!
//! Owns: when it is answered, in which shape its version wants it, that the answer fits its line; its progress before that.
//! May not know: who executes a call, how a task stands.
//!
//! Invariant: every answer of a request in flight is written by `deliver`, which lets go of it.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::{CallOutcome, FinishedAs, Pending, SessionCore, SessionEffect, SessionEffects, Work};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::CallNumber;
use crate::protocol::envelope;
use crate::protocol::tasks::{TaskAsk, TaskProtocol};
use crate::protocol::version::Version;
use crate::protocol::wire::{self, ReplyText, ToolReply};

/// A call that is answered sooner says nothing about how long its client waits.
const LONG: Duration = Duration::from_secs(20);

impl SessionCore {
    /// A call came out. Nothing happens when it was cancelled meanwhile: that is where the two are decided.
    pub fn on_settled(
        &mut self,
        call: CallNumber,
        outcome: CallOutcome,
        now: Instant,
        out: &mut BytesMut,
        effects: &mut SessionEffects,
    ) {
        // The call of a task is answered when it is known how the task stands.
        if let CallOutcome::Reply(reply) = &outcome
            && let Some(job) = reply.job
            && let Some(pending) = self.pending.get_mut(&call.0)
            && let Work::Tool { tool, progress, last_progress, task: Some(protocol) } = &mut pending.work
        {
            let (tool, progress, last_progress, protocol) = (*tool, progress.take(), *last_progress, *protocol);
            pending.work = Work::Created { tool, progress, last_progress, protocol };
            let client = pending.client.clone();
            let ask = match protocol {
                TaskProtocol::Core => TaskAsk::Look(job),
                TaskProtocol::Extension => TaskAsk::Read(job),
            };
            effects.push_back(SessionEffect::Ask { number: call, ask, client });
            return;
        }
        self.deliver(call, now, out, effects, |core, pending, out| core.answer(pending, outcome, out));
    }

    /// Progress of a call: sent when the client asked for it, the call is still open and the value rises.
    pub fn on_progress(&mut self, call: CallNumber, value: f64, message: Option<&str>, out: &mut BytesMut) {
        let Some(pending) = self.pending.get_mut(&call.0) else { return };
        if let Work::Tool { progress: Some(token), last_progress, task: None, .. } = &mut pending.work
            && value > *last_progress
        {
            *last_progress = value;
            wire::progress(out, token, value, message);
        }
    }

    /// Lets an answer be written where it belongs, not longer than a line may be, and counts its request, which is let go
    /// of when its answer is written: whatever interrupts that finds it still open.
    pub(super) fn deliver(
        &mut self,
        number: CallNumber,
        now: Instant,
        out: &mut BytesMut,
        effects: &mut SessionEffects,
        write: impl FnOnce(&Self, &Pending, &mut BytesMut) -> FinishedAs,
    ) {
        let Some(pending) = self.pending.get(&number.0) else { return };
        let mut part = BytesMut::new();
        let target = if pending.batch.is_some() { &mut part } else { &mut *out };
        let start = target.len();
        let mut result = write(self, pending, target);
        if target.len() - start > wire::LINE_MOST {
            target.truncate(start);
            let fault =
                Fault::new(FaultCode::ReplyTooLarge, "the reply is longer than 8 MiB, the most a line may have.")
                    .hint("Ask for less of it, or for a page.");
            wire::error(target, Some(&pending.id), &fault, None);
            result = FinishedAs::Failed(fault.code);
        }
        let Some(pending) = self.forget(number.0) else { return };
        let finished = pending.finished(number, now, result);
        if finished.latency >= LONG && finished.tool.is_some() {
            effects.push_back(SessionEffect::Waited { client: pending.client, so_long: finished.latency });
        }
        effects.push_back(SessionEffect::Finished(finished));
        if let Some(batch) = pending.batch {
            self.put_part(batch, Some(&pending.id), part);
            self.close_share(batch, out);
        }
    }

    fn answer(&self, pending: &Pending, outcome: CallOutcome, out: &mut BytesMut) -> FinishedAs {
        // Who waits for a task of the core, or for something else than a tool, expects no tool's result.
        let as_task = match &pending.work {
            Work::Tool { task, .. } => *task == Some(TaskProtocol::Core),
            Work::Created { protocol, .. } => *protocol == TaskProtocol::Core,
            Work::Ask(_) | Work::Listen { .. } | Work::Gone => true,
        };
        let mut fault = match outcome {
            CallOutcome::Reply(reply) if as_task => {
                // No job, so there is no task to be told about, and its client expects nothing else.
                let text = match &reply.text {
                    ReplyText::Plain(text) => Cow::Borrowed(text.as_str()),
                    ReplyText::Json(json) => {
                        let text = std::str::from_utf8(json).ok().and_then(envelope::string);
                        Cow::Owned(text.unwrap_or_default().into_owned())
                    }
                };
                Box::new(Fault::new(reply.fault.unwrap_or(FaultCode::Internal), text))
            }
            CallOutcome::Reply(reply) => {
                wire::called(out, &pending.id, pending.version, &reply, &self.identity);
                return reply.fault.map_or(FinishedAs::Success, FinishedAs::Failed);
            }
            CallOutcome::Fault(fault) => fault,
        };
        if let Some(tool) = pending.work.tool() {
            fault.operation.get_or_insert_with(|| self.catalog.name(tool).to_owned());
        }
        // Older revisions want bad arguments as a protocol error, newer ones where the model can see and mend them.
        if as_task || (fault.code == FaultCode::InvalidInput && pending.version < Version::V2025_11_25) {
            wire::error(out, Some(&pending.id), &fault, None);
        } else {
            let mut reply = ToolReply::fault(&fault);
            reply.structured = reply.structured.filter(|_| pending.structured);
            wire::called(out, &pending.id, pending.version, &reply, &self.identity);
        }
        FinishedAs::Failed(fault.code)
    }
}
