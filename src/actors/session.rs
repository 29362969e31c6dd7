//! The session actor: the loop around one client's [`SessionCore`].
//!
//! Owns: the state machine, the calls that run beside it in the host, the output of one turn. May not know: what a
//! tool does, how bytes reach the client.
//!
//! Invariants: (1) it never awaits: every turn decides, sends messages and returns, so a cancel or a ping is served
//! while anything else runs; (2) a panic of a host tool is that call's fault, not the session's; (3) the output of a
//! turn is handed on as one block of whole lines.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::FutureExt;
use futures_util::future::poll_immediate;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{AbortHandle, JoinSet};

use super::door::Output;
use super::reply::{Answer, CallKey, ProgressSink, SessionReply};
use super::worker::panic_text;
use super::workers::{Invocation, WorkersMsg};
use crate::fault::{Fault, FaultCode};
use crate::ids::{Generation, HostId, InvocationId, JobId, SessionNumber, UnixMillis};
use crate::protocol::frame::Frame;
use crate::protocol::session::{Call, CallNumber, CallOutcome, Effect, Finished, SessionCore};
use crate::telemetry::{Record, TelemetryHandle, ToolCallRecord};
use crate::tools::{Target, Tool, ToolCall};

/// How long calls may still answer after the client has closed its end. Fast calls do; whoever waits longer is gone.
const LINGER: Duration = Duration::from_millis(500);

/// How often deadlines are looked at while calls are in flight; without any, nothing ticks.
const TICK: Duration = Duration::from_secs(1);

/// Everything that can wake a session.
pub enum SessionMsg {
    /// Lines arrived.
    Frames {
        /// The lines.
        frames: Vec<Frame>,
        /// Room the reader gets back at the end of the turn.
        credit: Option<OwnedSemaphorePermit>,
    },
    /// Calls came out.
    Settled(Vec<Answer>),
    /// A call made progress.
    Progress {
        /// Which call.
        call: CallNumber,
        /// A value that rises.
        value: f64,
        /// What is going on.
        message: String,
    },
    /// Deadlines are to be looked at.
    Tick,
    /// The client sends nothing more.
    InputEnded,
    /// The client reads nothing more, or waiting for the last calls has lasted long enough.
    Over,
}

/// The session actor.
pub struct Session;

/// What it is started with.
pub struct SessionArguments {
    /// This system.
    pub host: HostId,
    /// Its number.
    pub number: SessionNumber,
    /// The state machine, before its first message.
    pub core: SessionCore,
    /// The tools, in the catalogue's order.
    pub tools: Arc<[Arc<dyn Tool>]>,
    /// Who runs worker tools.
    pub workers: ActorRef<WorkersMsg>,
    /// Where its output goes.
    pub output: Output,
    /// Who counts.
    pub telemetry: TelemetryHandle,
}

/// The session's state.
pub struct SessionState {
    host: HostId,
    number: SessionNumber,
    core: SessionCore,
    tools: Arc<[Arc<dyn Tool>]>,
    names: Vec<Arc<str>>,
    workers: ActorRef<WorkersMsg>,
    /// Let go of when the session stops, so that the writer ends after what it was given.
    output: Option<Output>,
    telemetry: TelemetryHandle,
    host_calls: HashMap<CallNumber, AbortHandle>,
    tasks: JoinSet<()>,
    ticking: bool,
    ending: bool,
    effects: Vec<Effect>,
    out: BytesMut,
}

impl Actor for Session {
    type Msg = SessionMsg;
    type State = SessionState;
    type Arguments = SessionArguments;

    async fn pre_start(&self, _me: ActorRef<Self::Msg>, a: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        let names = a.tools.iter().map(|tool| Arc::from(tool.name())).collect();
        Ok(SessionState {
            host: a.host,
            number: a.number,
            core: a.core,
            tools: a.tools,
            names,
            workers: a.workers,
            output: Some(a.output),
            telemetry: a.telemetry,
            host_calls: HashMap::new(),
            tasks: JoinSet::new(),
            ticking: false,
            ending: false,
            effects: Vec::new(),
            out: BytesMut::new(),
        })
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let now = Instant::now();
        match message {
            SessionMsg::Frames { frames, credit } => {
                for frame in &frames {
                    state.core.on_frame(frame, now, &mut state.out, &mut state.effects);
                }
                state.perform(&me, None).await;
                drop(credit);
            }
            SessionMsg::Settled(answers) => state.settled(&me, answers, now).await,
            SessionMsg::Progress { call, value, message } => {
                if state.output.as_ref().is_some_and(|output| !output.is_backed_up()) {
                    state.core.on_progress(call, value, Some(&message), &mut state.out);
                }
            }
            SessionMsg::Tick => {
                state.ticking = false;
                state.expire(&me, now).await;
            }
            SessionMsg::InputEnded => {
                state.ending = true;
                state.after(&me, LINGER, SessionMsg::Over);
            }
            SessionMsg::Over => {
                state.ending = true;
                state.core.on_closed(now, &mut state.effects);
                state.perform(&me, None).await;
            }
        }
        state.flush();
        if !state.ticking && state.core.in_flight() > 0 {
            state.ticking = true;
            state.after(&me, TICK, SessionMsg::Tick);
        }
        while state.tasks.try_join_next().is_some() {}
        if state.ending && state.core.in_flight() == 0 {
            me.stop(None);
        }
        Ok(())
    }

    async fn post_stop(&self, me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        // Stopped from above: whatever is open has no caller any more.
        state.core.on_closed(Instant::now(), &mut state.effects);
        state.perform(&me, None).await;
        state.flush();
        state.output = None;
        Ok(())
    }
}

/// What telemetry wants to know about the call that is being settled.
struct Settling {
    job: Option<JobId>,
    path_hint: Option<String>,
    generation: Generation,
    replays: u32,
}

impl SessionState {
    async fn settled(&mut self, me: &ActorRef<SessionMsg>, answers: Vec<Answer>, now: Instant) {
        for Answer { call, mut outcome, generation, replays } in answers {
            self.host_calls.remove(&call);
            let (job, path_hint) = match &mut outcome {
                CallOutcome::Reply(reply) => (reply.job, reply.path_hint.take()),
                CallOutcome::Fault(_) => (None, None),
            };
            self.core.on_settled(call, outcome, now, &mut self.out, &mut self.effects);
            self.perform(me, Some(Settling { job, path_hint, generation, replays })).await;
        }
    }

    /// Performs what the state machine asked for.
    async fn perform(&mut self, me: &ActorRef<SessionMsg>, mut settling: Option<Settling>) {
        if self.effects.is_empty() {
            return;
        }
        let mut invocations = Vec::new();
        let mut withdrawn = Vec::new();
        let mut host_calls = Vec::new();
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Invoke(call) => match self.tools[call.tool].target() {
                    Target::Worker => invocations.push(self.invocation(me, call)),
                    Target::Host => host_calls.push(call),
                },
                Effect::Withdraw(call) => {
                    if let Some(task) = self.host_calls.remove(&call) {
                        task.abort();
                    }
                    withdrawn.push(CallKey { session: self.number, call });
                }
                Effect::Finished(finished) => self.record(finished, settling.take()),
            }
        }
        if !invocations.is_empty() {
            // A refused cast drops the tokens, which answer.
            let _ = self.workers.cast(WorkersMsg::Invoke(invocations));
        }
        if !withdrawn.is_empty() {
            let _ = self.workers.cast(WorkersMsg::Withdraw(withdrawn));
        }
        for call in host_calls {
            self.run_here(me, call).await;
        }
    }

    fn progress(&self, me: &ActorRef<SessionMsg>, call: &Call) -> ProgressSink {
        if call.wants_progress { ProgressSink::new(me.clone(), call.number) } else { ProgressSink::closed() }
    }

    fn invocation(&self, me: &ActorRef<SessionMsg>, call: Call) -> Invocation {
        Invocation {
            key: CallKey { session: self.number, call: call.number },
            tool: Arc::clone(&self.tools[call.tool]),
            progress: self.progress(me, &call),
            reply: SessionReply::new(me.clone(), call.number),
            arguments: call.arguments,
            client: call.client,
        }
    }

    /// Runs a host tool beside the session. Its panic is answered, not passed on.
    async fn run_here(&mut self, me: &ActorRef<SessionMsg>, call: Call) {
        let tool = Arc::clone(&self.tools[call.tool]);
        let number = call.number;
        let tool_call = ToolCall {
            invocation: InvocationId { host: self.host, session: self.number, call: number.0 },
            generation: Generation::NONE,
            evidence: None,
            progress: self.progress(me, &call),
            arguments: call.arguments,
            client: call.client,
        };
        let name = Arc::clone(&self.names[call.tool]);
        let work = AssertUnwindSafe(async move { tool.call(tool_call).await }).catch_unwind();
        let mut work = Box::pin(work.map(move |result| match result {
            Ok(Ok(reply)) => CallOutcome::Reply(Box::new(reply)),
            Ok(Err(fault)) => CallOutcome::Fault(Box::new(fault)),
            Err(panic) => {
                tracing::error!(tool = &*name, panic = panic_text(panic.as_ref()), "a host tool panicked");
                let fault = Fault::new(FaultCode::Internal, "the tool failed in a way it must not.");
                CallOutcome::Fault(Box::new(fault.operation(&*name)))
            }
        }));
        if let Some(outcome) = poll_immediate(&mut work).await {
            let _ = me.cast(SessionMsg::Settled(vec![Answer::from_host(number, outcome)]));
            return;
        }
        let reply = SessionReply::new(me.clone(), number);
        let task = self.tasks.spawn(async move {
            let outcome = work.await;
            if let Some((session, call)) = reply.into_batch() {
                let _ = session.cast(SessionMsg::Settled(vec![Answer::from_host(call, outcome)]));
            }
        });
        self.host_calls.insert(number, task);
    }

    /// Answers calls whose tool's deadline has passed.
    async fn expire(&mut self, me: &ActorRef<SessionMsg>, now: Instant) {
        let late: Vec<(CallNumber, usize)> = self
            .core
            .open_calls()
            .filter(|(_, tool, since)| {
                self.tools[*tool].deadline().is_some_and(|limit| now.saturating_duration_since(*since) >= limit)
            })
            .map(|(call, tool, _)| (call, tool))
            .collect();
        for (call, tool) in late {
            if let Some(task) = self.host_calls.remove(&call) {
                task.abort();
            }
            let key = CallKey { session: self.number, call };
            let _ = self.workers.cast(WorkersMsg::Withdraw(vec![key]));
            let fault = Fault::new(FaultCode::DeadlineExceeded, "the tool did not answer within its deadline.")
                .operation(&*self.names[tool]);
            self.settled(me, vec![Answer::from_host(call, CallOutcome::Fault(Box::new(fault)))], now).await;
        }
    }

    fn record(&self, finished: Finished, settling: Option<Settling>) {
        let Some(tool) = finished.tool else {
            self.telemetry.record(Record::Request { method: finished.method, result: finished.result });
            return;
        };
        let settling =
            settling.unwrap_or(Settling { job: None, path_hint: None, generation: Generation::NONE, replays: 0 });
        let id = finished.request_id.as_ref().map_or("", |id| id.as_str());
        self.telemetry.record(Record::ToolCall(Box::new(ToolCallRecord {
            at: UnixMillis::now(),
            session: self.number,
            request_id: id.chars().take(64).collect(),
            tool: Arc::clone(&self.names[tool]),
            path_hint: settling.path_hint,
            latency: finished.latency,
            result: finished.result,
            job: settling.job,
            generation: settling.generation,
            replays: settling.replays,
        })));
    }

    fn after(&mut self, me: &ActorRef<SessionMsg>, wait: Duration, message: SessionMsg) {
        let me = me.clone();
        self.tasks.spawn(async move {
            tokio::time::sleep(wait).await;
            let _ = me.cast(message);
        });
    }

    fn flush(&mut self) {
        if let Some(output) = self.output.as_ref().filter(|_| !self.out.is_empty()) {
            output.send(self.out.split().freeze());
        }
    }
}
