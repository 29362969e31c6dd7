//! A worker: one incarnation of the code that executes tools.
//!
//! Owns: the attempts it is running. May not know: ids on the wire, whether an attempt is a call's first or second,
//! what happens after it is gone.
//!
//! A tool's panic is the worker's end: what the panic left behind is unknown, so nothing of this incarnation is kept.
//! Its reply tokens tell their sessions by being dropped.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::poll_immediate;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::{AbortHandle, JoinSet};

use super::reply::AttemptReply;
use crate::fault::Fault;
use crate::ids::SessionNumber;
use crate::protocol::session::{CallNumber, CallOutcome};
use crate::protocol::wire::ToolReply;
use crate::tools::{Tool, ToolCall, ToolFuture};

/// A call across all sessions of a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallKey {
    /// The session it came in on.
    pub session: SessionNumber,
    /// The call within it.
    pub call: CallNumber,
}

/// One attempt, as it is given to a worker.
pub struct Attempt {
    /// Which call.
    pub key: CallKey,
    /// Owed to its session.
    pub reply: AttemptReply,
    /// What is to be run.
    pub tool: Arc<dyn Tool>,
    /// With what.
    pub call: ToolCall,
}

/// Everything that can wake a worker.
pub enum WorkerMsg {
    /// Run these.
    Execute(Vec<Attempt>),
    /// Nobody waits for this one any more.
    Withdraw(CallKey),
    /// Nobody waits for anything of this session any more.
    SessionOver(SessionNumber),
    /// A task finished.
    Finished(CallKey, Result<ToolReply, Fault>),
    /// A task panicked.
    Panicked {
        /// The tool.
        tool: String,
        /// The panic's text.
        message: String,
    },
}

/// The worker actor.
pub struct Worker;

/// A worker's state; dropping it ends every task and every token.
#[derive(Default)]
pub struct WorkerState {
    running: HashMap<CallKey, (AttemptReply, AbortHandle)>,
    tasks: JoinSet<()>,
}

/// A tool panicked; the worker ends because of it.
#[derive(Debug, thiserror::Error)]
#[error("tool {tool} panicked: {message}")]
pub struct ToolPanicked {
    /// The tool.
    pub tool: String,
    /// The panic's text.
    pub message: String,
}

impl Actor for Worker {
    type Msg = WorkerMsg;
    type State = WorkerState;
    type Arguments = ();

    async fn pre_start(&self, _me: ActorRef<Self::Msg>, (): ()) -> Result<Self::State, ActorProcessingErr> {
        Ok(WorkerState::default())
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            WorkerMsg::Execute(attempts) => {
                for Attempt { key, reply, tool, call } in attempts {
                    // A panic here unwinds through `handle`: this token and those after it are dropped with it.
                    let mut work = tool.call(call);
                    match poll_immediate(&mut work).await {
                        Some(result) => reply.finish(outcome(result)),
                        None => state.spawn(&me, key, reply, tool, work),
                    }
                }
                // No task has ended because of it.
                return Ok(());
            }
            WorkerMsg::Withdraw(key) => state.withdraw(|running| *running == key),
            WorkerMsg::SessionOver(session) => state.withdraw(|running| running.session == session),
            WorkerMsg::Finished(key, result) => {
                if let Some((reply, _)) = state.running.remove(&key) {
                    reply.finish(outcome(result));
                }
            }
            WorkerMsg::Panicked { tool, message } => return Err(ToolPanicked { tool, message }.into()),
        }
        while state.tasks.try_join_next().is_some() {}
        Ok(())
    }
}

impl WorkerState {
    fn spawn(
        &mut self,
        me: &ActorRef<WorkerMsg>,
        key: CallKey,
        reply: AttemptReply,
        tool: Arc<dyn Tool>,
        work: ToolFuture,
    ) {
        let me = me.clone();
        let task = self.tasks.spawn(async move {
            let told = match AssertUnwindSafe(work).catch_unwind().await {
                Ok(result) => WorkerMsg::Finished(key, result),
                Err(panic) => WorkerMsg::Panicked { tool: tool.name().to_owned(), message: panic_text(panic.as_ref()) },
            };
            // A worker that is gone hears nothing; its supervisor knows already.
            let _ = me.cast(told);
        });
        self.running.insert(key, (reply, task));
    }

    fn withdraw(&mut self, which: impl Fn(&CallKey) -> bool) {
        let withdrawn: Vec<CallKey> = self.running.keys().copied().filter(which).collect();
        for key in withdrawn {
            if let Some((reply, task)) = self.running.remove(&key) {
                task.abort();
                reply.forget();
            }
        }
    }
}

fn outcome(result: Result<ToolReply, Fault>) -> CallOutcome {
    match result {
        Ok(reply) => CallOutcome::Reply(Box::new(reply)),
        Err(fault) => CallOutcome::Fault(Box::new(fault)),
    }
}

/// The text of a panic's payload.
#[must_use]
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}
