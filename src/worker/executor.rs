//! Runs tools: what a worker does, whether it is a task of its host or a process of its own.
//!
//! Owns: the attempts that run, those that wait for room, the rule of the first poll. May not know: where attempts come
//! from, where outcomes go, what happens after a panic.
//!
//! Invariants: (1) a token given with an attempt is handed back exactly once, with an outcome or by a withdrawal, or is
//! dropped with the executor; (2) at most [`CONCURRENT`] attempts are open, and those beyond begin in the order they
//! came; (3) a tool's panic is caught here and ends nothing by itself: it is reported, and whoever owns the executor ends
//! the worker, because what the panic left behind is unknown.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::task::{AbortHandle, JoinSet};

use super::wire::CallKey;
use crate::fault::Fault;
use crate::protocol::session::CallOutcome;
use crate::protocol::wire::ToolReply;
use crate::tools::{Tool, ToolCall};

/// Attempts open at once in one worker: four sessions with all the calls they may have. Attempts beyond it wait here, in
/// the order they came; their number is bounded by the sessions that sent them.
pub const CONCURRENT: usize = 4096;

/// One attempt. `T` is what is owed for it.
pub struct Work<T> {
    /// Which call.
    pub key: CallKey,
    /// What is owed.
    pub token: T,
    /// What is to be run.
    pub tool: Arc<dyn Tool>,
    /// With what.
    pub call: ToolCall,
}

/// A tool panicked; its worker ends because of it. What the panic said stays where it was: it may quote anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tool {tool} panicked")]
pub struct ToolPanicked {
    /// The tool.
    pub tool: String,
}

/// An attempt that came to its end in a task.
pub struct Ended {
    key: CallKey,
    result: Result<Result<ToolReply, Fault>, ToolPanicked>,
}

/// Runs attempts. Dropping it ends every task and drops every token.
pub struct Executor<T> {
    /// Keyed by our own numbers, so the hash need not resist anybody.
    running: HashMap<CallKey, (T, AbortHandle), foldhash::fast::RandomState>,
    tasks: JoinSet<Ended>,
    waiting: VecDeque<Work<T>>,
    concurrent: usize,
}

impl<T> Default for Executor<T> {
    fn default() -> Self {
        Self::new(CONCURRENT)
    }
}

impl<T> Executor<T> {
    /// An executor that has so many attempts open at most.
    #[must_use]
    pub fn new(concurrent: usize) -> Self {
        Self { running: HashMap::default(), tasks: JoinSet::new(), waiting: VecDeque::new(), concurrent }
    }

    /// Whether there is anything to wait for in [`Executor::ended`].
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// Begins an attempt. One that is ready at its first poll costs no task and is settled before this returns.
    ///
    /// # Errors
    ///
    /// The tool panicked; the token is gone.
    pub fn execute(&mut self, work: Work<T>, settle: impl FnOnce(CallKey, T, CallOutcome)) -> Result<(), ToolPanicked> {
        if self.running.len() >= self.concurrent || !self.waiting.is_empty() {
            self.waiting.push_back(work);
            return Ok(());
        }
        self.begin(work, settle)
    }

    fn begin(&mut self, work: Work<T>, settle: impl FnOnce(CallKey, T, CallOutcome)) -> Result<(), ToolPanicked> {
        let Work { key, token, tool, call } = work;
        let panicked = |tool: &dyn Tool| ToolPanicked { tool: tool.name().to_owned() };
        let first = catch_unwind(AssertUnwindSafe(|| {
            let mut future = tool.call(call);
            match (&mut future).now_or_never() {
                Some(result) => Ok(result),
                None => Err(future),
            }
        }));
        match first {
            Err(_) => Err(panicked(&*tool)),
            Ok(Ok(result)) => {
                settle(key, token, outcome(result));
                Ok(())
            }
            Ok(Err(future)) => {
                let task = self.tasks.spawn(async move {
                    let result = AssertUnwindSafe(future).catch_unwind().await;
                    Ended { key, result: result.map_err(|_| panicked(&*tool)) }
                });
                self.running.insert(key, (token, task));
                Ok(())
            }
        }
    }

    /// Waits for an attempt's end; for ever when none runs.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is lost when the future is dropped.
    pub async fn ended(&mut self) -> Ended {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(ended)) => return ended,
                // A withdrawn attempt's task was cancelled; its token is gone already.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Settles an attempt that ended, and begins those that waited for its room.
    ///
    /// # Errors
    ///
    /// It panicked, or one that waited did.
    pub fn settle(
        &mut self,
        ended: Ended,
        mut settle: impl FnMut(CallKey, T, CallOutcome),
    ) -> Result<(), ToolPanicked> {
        let result = ended.result?;
        if let Some((token, _)) = self.running.remove(&ended.key) {
            settle(ended.key, token, outcome(result));
        }
        self.fill(settle)
    }

    fn fill(&mut self, mut settle: impl FnMut(CallKey, T, CallOutcome)) -> Result<(), ToolPanicked> {
        while self.running.len() < self.concurrent {
            let Some(work) = self.waiting.pop_front() else { break };
            self.begin(work, &mut settle)?;
        }
        Ok(())
    }

    /// Ends the attempts `which` names and hands their tokens back; what waited for their room begins.
    ///
    /// # Errors
    ///
    /// One that waited panicked as it began.
    pub fn withdraw(
        &mut self,
        which: impl Fn(&CallKey) -> bool,
        mut back: impl FnMut(T),
        settle: impl FnMut(CallKey, T, CallOutcome),
    ) -> Result<(), ToolPanicked> {
        let withdrawn: Vec<CallKey> = self.running.keys().copied().filter(&which).collect();
        for key in withdrawn {
            if let Some((token, task)) = self.running.remove(&key) {
                task.abort();
                back(token);
            }
        }
        if !self.waiting.is_empty() {
            let (withdrawn, kept) = std::mem::take(&mut self.waiting).into_iter().partition(|work| which(&work.key));
            let withdrawn: VecDeque<Work<T>> = withdrawn;
            self.waiting = kept;
            withdrawn.into_iter().for_each(|work| back(work.token));
        }
        self.fill(settle)
    }

    /// Ends every attempt and waits until none is being polled any more.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves them ending.
    pub async fn end(&mut self) {
        self.waiting.clear();
        self.tasks.shutdown().await;
    }
}

fn outcome(result: Result<ToolReply, Fault>) -> CallOutcome {
    match result {
        Ok(reply) => CallOutcome::Reply(Box::new(reply)),
        Err(fault) => CallOutcome::Fault(Box::new(fault)),
    }
}
