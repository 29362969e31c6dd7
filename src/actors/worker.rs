//! A worker: one incarnation of the code that executes tools.
//!
//! Owns: the attempts it is running. May not know: sessions, ids on the wire, whether an attempt is a replay's first
//! or second, what happens after it is gone.
//!
//! A tool's panic is the worker's end: what the panic left behind is unknown, so nothing of this incarnation is kept.
//! Its reply tokens tell the supervisor by being dropped.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::poll_immediate;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::{AbortHandle, JoinSet};

use super::reply::{AttemptReply, CallKey};
use super::workers::WorkersMsg;
use crate::fault::Fault;
use crate::ids::Generation;
use crate::protocol::session::CallOutcome;
use crate::protocol::wire::ToolReply;
use crate::tools::{Tool, ToolCall};

/// One attempt, as it is given to a worker.
pub struct Attempt {
    /// Owed to the supervisor.
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

/// What a worker is started with.
pub struct WorkerArguments {
    /// Who is told.
    pub supervisor: ActorRef<WorkersMsg>,
    /// Which incarnation it is.
    pub generation: Generation,
}

/// A worker's state; dropping it ends every task and every token.
pub struct WorkerState {
    supervisor: ActorRef<WorkersMsg>,
    generation: Generation,
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
    type Arguments = WorkerArguments;

    async fn pre_start(
        &self,
        _me: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(WorkerState {
            supervisor: arguments.supervisor,
            generation: arguments.generation,
            running: HashMap::new(),
            tasks: JoinSet::new(),
        })
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            WorkerMsg::Execute(attempts) => {
                let mut done = Vec::with_capacity(attempts.len());
                for Attempt { reply, tool, call } in attempts {
                    // A panic here unwinds through `handle`: the tokens of the batch are dropped with it.
                    let mut work = tool.call(call);
                    match poll_immediate(&mut work).await {
                        Some(result) => done.push(reply.into_batch(outcome(result))),
                        None => state.spawn(&me, reply, tool, work),
                    }
                }
                state.report(done);
            }
            WorkerMsg::Withdraw(key) => {
                if let Some((reply, task)) = state.running.remove(&key) {
                    task.abort();
                    reply.forget();
                }
            }
            WorkerMsg::Finished(key, result) => {
                if let Some((reply, _)) = state.running.remove(&key) {
                    let done = reply.into_batch(outcome(result));
                    state.report(vec![done]);
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
        reply: AttemptReply,
        tool: Arc<dyn Tool>,
        work: Pin<Box<dyn Future<Output = Result<ToolReply, Fault>> + Send>>,
    ) {
        let key = reply.key();
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

    fn report(&self, results: Vec<(CallKey, CallOutcome)>) {
        if !results.is_empty() {
            let _ = self.supervisor.cast(WorkersMsg::Settled { generation: self.generation, results });
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
