//! How a call is run: by the worker, or beside the session.
//!
//! Owns: the attempts a worker is given, the tasks of host tools and probes. May not know: what becomes of a call (the turn
//! decides that), what a line says.
//!
//! Invariants: (1) a worker call is recorded as in flight before it leaves; (2) a panic of a host tool is answered, not passed
//! on.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;

use super::turn::{Serving, TurnEvent};
use super::{SessionEvent, SessionLoop};
use crate::actors::reply::{AttemptReply, SessionMailbox, progress_to};
use crate::actors::workers::messages::{Attempt, WorkerMsg, WorkersMsg};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{CallKey, CallNumber, Generation, UnixMillis};
use crate::config::clients::Unsaved;
use crate::failpoints::Operation;
use crate::protocol::session::{Call, CallOutcome};
use crate::tools::ToolCall;
use crate::tools::progress::ProgressSink;

impl SessionLoop {
    /// Runs a host tool beside the session.
    pub(super) fn run_here(&mut self, call: Call) {
        let name = &self.turn.tools[call.tool].name;
        self.crash_worker_at(Operation::Tool(name));
        self.force_rollout_at(Operation::Tool(name));
        self.begin_here(call, Duration::ZERO);
    }

    /// Begins a host tool whose caller has waited this long, unless the caller withdrew it in the same turn.
    pub(super) fn begin_here(&mut self, call: Call, waited: Duration) {
        let number = call.number;
        if !self.turn.host_calls.contains_key(&number) {
            return;
        }
        let tool = Arc::clone(&self.tools[call.tool]);
        let tool_call = ToolCall {
            invocation: self.turn.invocation(number),
            generation: Generation::NONE,
            evidence: None,
            progress: progress(&self.mailbox, number, call.wants_progress),
            arguments: call.arguments,
            client: call.client,
            waited,
        };
        let name = Arc::clone(&self.turn.tools[call.tool].name);
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
        self.turn.begun(number, task);
    }

    pub(super) fn want_worker(&self) {
        let (session, mailbox) = (self.turn.number, self.mailbox.clone());
        // There may be no supervisor at this moment; its next incarnation comes with our own next one.
        let _ = self.neighbours.workers.cast(WorkersMsg::Wanted { session, mailbox });
    }

    /// Gives the worker the calls that wait to be sent, if there is one. Each is recorded as in flight before it leaves.
    pub(super) fn dispatch(&mut self) {
        let mut calls = std::mem::take(&mut self.turn.sending);
        if let Serving::Up(generation, _) = self.turn.serving {
            if self.faults.is_armed() {
                calls = self.struck(&calls, generation);
            }
            if !self.deliver(&calls, generation) {
                self.decide(TurnEvent::Undelivered { generation, calls: std::mem::take(&mut calls) });
            }
        }
        calls.clear();
        self.turn.sending = calls;
    }

    /// Whether the worker lives, as far as these calls have shown.
    fn deliver(&mut self, calls: &[CallNumber], generation: Generation) -> bool {
        let message = if let [call] = calls {
            let Some(attempt) = self.attempt(*call, generation) else { return true };
            WorkerMsg::Execute(Box::new(attempt))
        } else {
            let attempts: Vec<Attempt> = calls.iter().filter_map(|call| self.attempt(*call, generation)).collect();
            if attempts.is_empty() {
                return true;
            }
            WorkerMsg::ExecuteAll(attempts)
        };
        let Serving::Up(_, worker) = &self.turn.serving else { return true };
        if worker.cast(message).is_err() {
            return false;
        }
        self.handed_over = true;
        if self.faults.is_armed() {
            for payload in calls.iter().filter_map(|call| self.turn.ledger.payload(*call)) {
                self.force_rollout_at(Operation::Tool(&self.turn.tools[payload.tool].name));
            }
        }
        true
    }

    fn attempt(&mut self, call: CallNumber, generation: Generation) -> Option<Attempt> {
        let invocation = self.turn.invocation(call);
        let (evidence, attempt, payload) = self.turn.ledger.dispatch(call, generation)?;
        if self.turn.traces.are_told() {
            self.turn.traces.attempt(self.turn.number, call, generation, UnixMillis::now());
        }
        if attempt > 1 {
            self.neighbours.gauges.replays.fetch_add(1, Ordering::Relaxed);
        }
        Some(Attempt {
            key: CallKey { session: self.turn.number, call },
            reply: AttemptReply::new(self.mailbox.clone(), call, generation),
            tool: Arc::clone(&self.tools[payload.tool]),
            call: ToolCall {
                invocation,
                generation,
                evidence,
                arguments: payload.arguments.clone(),
                client: payload.client.clone(),
                progress: progress(&self.mailbox, call, payload.wants_progress),
                waited: Duration::ZERO,
            },
        })
    }

    /// Asks a call's tool for evidence, beside the session.
    pub(super) fn probe(&mut self, call: CallNumber) {
        let Some(payload) = self.turn.ledger.payload(call) else { return };
        let probe = self.tools[payload.tool].probe(self.turn.invocation(call));
        let mailbox = self.mailbox.clone();
        self.tasks.spawn(async move {
            let evidence = probe.await;
            let _ = mailbox.send(SessionEvent::Probed { call, evidence });
        });
    }

    pub(super) fn withdraw_from_worker(&self, call: CallNumber) {
        if let Serving::Up(_, worker) = &self.turn.serving {
            let _ = worker.cast(WorkerMsg::Withdraw(CallKey { session: self.turn.number, call }));
        }
    }

    /// Something was observed about a client, which is remembered.
    pub(super) fn observed(&mut self, unsaved: Option<Unsaved>) {
        let Some(unsaved) = unsaved else { return };
        self.tasks.spawn_blocking(move || {
            if let Err(error) = unsaved.save() {
                tracing::debug!(%error, "what was observed about a client was not saved");
            }
        });
    }
}

fn progress(mailbox: &SessionMailbox, call: CallNumber, wanted: bool) -> ProgressSink {
    if wanted { progress_to(mailbox.clone(), call) } else { ProgressSink::closed() }
}
