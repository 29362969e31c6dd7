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
    /// Run this.
    Execute(Box<Attempt>),
    /// Run these.
    ExecuteAll(Vec<Attempt>),
    /// Nobody waits for this one any more.
    Withdraw(CallKey),
    /// Nobody waits for anything of this session any more.
    SessionOver(SessionNumber),
    /// A task finished.
    Finished(CallKey, Result<ToolReply, Fault>),
    /// A task panicked. What the panic said stays here: it may quote anything, and where it happened is logged.
    Panicked {
        /// The tool.
        tool: String,
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
#[error("tool {tool} panicked")]
pub struct ToolPanicked {
    /// The tool.
    pub tool: String,
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
            // No task has ended because of these two. A panic unwinds through `handle`: the token of the attempt and
            // those after it are dropped with it.
            WorkerMsg::Execute(attempt) => {
                state.execute(&me, *attempt).await;
                return Ok(());
            }
            WorkerMsg::ExecuteAll(attempts) => {
                for attempt in attempts {
                    state.execute(&me, attempt).await;
                }
                return Ok(());
            }
            WorkerMsg::Withdraw(key) => state.withdraw(|running| *running == key),
            WorkerMsg::SessionOver(session) => state.withdraw(|running| running.session == session),
            WorkerMsg::Finished(key, result) => {
                if let Some((reply, _)) = state.running.remove(&key) {
                    reply.finish(outcome(result));
                }
            }
            WorkerMsg::Panicked { tool } => return Err(ToolPanicked { tool }.into()),
        }
        while state.tasks.try_join_next().is_some() {}
        Ok(())
    }
}

impl WorkerState {
    async fn execute(&mut self, me: &ActorRef<WorkerMsg>, Attempt { key, reply, tool, call }: Attempt) {
        let mut work = tool.call(call);
        match poll_immediate(&mut work).await {
            Some(result) => reply.finish(outcome(result)),
            None => self.spawn(me, key, reply, tool, work),
        }
    }

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
                Err(_) => WorkerMsg::Panicked { tool: tool.name().to_owned() },
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
