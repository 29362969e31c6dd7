//! What becomes of a call: from the state machine's wish to its answer.
//!
//! Owns: which call is handed to the worker and which runs here, what is told to whom when one comes out, is withdrawn or
//! fails. May not know: what a line says, whether a lost call may run again (the ledger decides that).
//!
//! ```text
//!  Invoke ──▶ recorded ──sent──▶ with the worker ──settled──▶ answered, counted
//!     └─────▶ begun here ──────────────────────────settled──────▲
//! ```
//!
//! Invariants: (1) a worker call is recorded as in flight before it leaves; (2) the gauge counts what is in the ledger;
//! (3) who was answered with a fault for a worker call, or withdrew it, waits for no job.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;

use super::ledger::LedgerEffect;
use super::passed::{HostCall, HostWork};
use super::{Payload, Serving, SessionEvent, SessionLoop};
use crate::actors::clock;
use crate::actors::jobs::messages::JobsMsg;
use crate::actors::reply::{AttemptReply, progress_to};
use crate::actors::workers::messages::{Attempt, WorkerMsg, WorkersMsg};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{CallKey, CallNumber, Generation, InvocationId, JobId};
use crate::config::clients::Unsaved;
use crate::failpoints::{Broken, FaultPoint, InTurn, Operation};
use crate::protocol::session::{Call, CallOutcome, Finished};
use crate::telemetry::{Record, ToolCallRecord};
use crate::tools::ToolCall;
use crate::tools::progress::ProgressSink;

/// What telemetry wants to know about the call that is being settled.
#[derive(Default)]
pub(super) struct Settling {
    job: Option<JobId>,
    tells_end: bool,
    path_hint: Option<String>,
    generation: Generation,
    replays: u32,
}

impl SessionLoop {
    /// Takes a worker call into the ledger.
    pub(super) fn record(&mut self, call: Call) -> Option<CallNumber> {
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

    /// Runs a host tool beside the session. Its panic is answered, not passed on.
    pub(super) fn run_here(&mut self, call: Call) {
        self.note_deadline(call.tool);
        self.crash_worker_at(Operation::Tool(&self.names[call.tool]));
        self.force_rollout_at(Operation::Tool(&self.names[call.tool]));
        self.begin_here(call, Duration::ZERO);
    }

    pub(super) fn begin_here(&mut self, call: Call, waited: Duration) {
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

    pub(super) fn want_worker(&mut self) {
        self.serving = Serving::Awaited;
        let mailbox = self.mailbox.clone();
        // There may be no supervisor at this moment; its next incarnation comes with our own next one.
        let _ = self.workers.cast(WorkersMsg::Wanted { session: self.number, mailbox });
    }

    /// Gives calls to the worker, if there is one. Each is recorded as in flight before it leaves.
    pub(super) fn send(&mut self, calls: &[CallNumber]) {
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
        if call.wants_progress { progress_to(self.mailbox.clone(), call.number) } else { ProgressSink::closed() }
    }

    pub(super) fn decided(&mut self, effect: LedgerEffect) {
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

    pub(super) fn on_settled(&mut self, generation: Generation, call: CallNumber, mut outcome: CallOutcome) {
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

    /// Answers a worker call with a fault. Its caller waits no longer, so a synchronous job it may have become ends too:
    /// who asks again must not start a second agent beside the first.
    pub(super) fn fail(&mut self, call: CallNumber, mut fault: Box<Fault>) {
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

    pub(super) fn settle(&mut self, call: CallNumber, outcome: CallOutcome, settling: Settling) {
        self.flow.settled();
        self.answer(call, outcome, settling);
    }

    pub(super) fn answer(&mut self, call: CallNumber, mut outcome: CallOutcome, mut settling: Settling) {
        if let CallOutcome::Reply(reply) = &mut outcome {
            settling.job = reply.job;
            settling.tells_end = reply.tells_end;
            settling.path_hint = reply.path_hint.take();
        }
        self.core.on_settled(call, outcome, clock::now(), &mut self.out, &mut self.effects);
        self.whole = self.out.len();
        self.perform(Some(settling));
    }

    pub(super) fn withdraw(&mut self, call: CallNumber) {
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

    /// Something was observed about a client, which is remembered.
    pub(super) fn observed(&mut self, unsaved: Option<Unsaved>) {
        let Some(unsaved) = unsaved else { return };
        self.tasks.spawn_blocking(move || {
            if let Err(error) = unsaved.save() {
                tracing::debug!(%error, "what was observed about a client was not saved");
            }
        });
    }

    pub(super) fn count(&mut self, finished: Finished, settling: Option<Settling>) {
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

    fn invocation(&self, call: CallNumber) -> InvocationId {
        InvocationId { host: self.host, session: self.number, call: call.0 }
    }
}
