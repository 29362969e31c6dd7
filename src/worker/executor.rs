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
use tokio::task::AbortHandle;

use crate::base::fault::Fault;
use crate::base::ids::CallKey;
use crate::base::tasks::TaskSet;
use crate::failpoints::{Broken, FaultPoint, Faults, Operation};
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
#[non_exhaustive]
pub struct ToolPanicked {
    pub tool: String,
}

/// Why a worker cannot go on as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mishap {
    /// A tool panicked.
    Panicked(ToolPanicked),
    /// A fault plan wants something broken, while this attempt was in hand.
    Broken(CallKey, Broken),
}

impl From<ToolPanicked> for Mishap {
    fn from(panicked: ToolPanicked) -> Self {
        Self::Panicked(panicked)
    }
}

/// How an attempt that was not lost came out.
enum Outcome {
    Settled(Result<ToolReply, Fault>),
    Broken(Broken),
}

/// An attempt that came to its end in a task.
pub struct EndedTask {
    key: CallKey,
    tool: Arc<dyn Tool>,
    result: Result<Outcome, ToolPanicked>,
}

/// Runs attempts. Dropping it ends every task and drops every token.
pub struct Executor<T> {
    /// Keyed by our own numbers, so the hash need not resist anybody.
    running: HashMap<CallKey, (T, AbortHandle), foldhash::fast::RandomState>,
    tasks: TaskSet<EndedTask>,
    waiting: VecDeque<Work<T>>,
    concurrent: usize,
    faults: Faults,
    /// Tools whose attempts were settled while a plan is armed: a point follows each.
    settled: VecDeque<Arc<dyn Tool>>,
}

impl<T> Executor<T> {
    /// An executor that has so many attempts open at most.
    #[must_use]
    pub fn new(concurrent: usize, faults: Faults) -> Self {
        Self {
            running: HashMap::default(),
            tasks: TaskSet::new(),
            waiting: VecDeque::new(),
            concurrent,
            faults,
            settled: VecDeque::new(),
        }
    }

    /// Attempts it has, those that wait included.
    #[must_use]
    pub fn open(&self) -> usize {
        self.running.len() + self.waiting.len()
    }

    /// Whether a point follows what was settled.
    #[must_use]
    pub fn has_settled(&self) -> bool {
        !self.settled.is_empty()
    }

    /// Meets the point after each reply. To be called when the replies are on their way.
    ///
    /// # Cancel safety
    ///
    /// Safe: a point that was begun counts as met.
    pub async fn after_replies(&mut self) -> Option<Broken> {
        while let Some(tool) = self.settled.pop_front() {
            let broken = self.faults.meet(FaultPoint::WorkerAfterReply, Operation::Tool(tool.name())).await;
            if broken.is_some() {
                return broken;
            }
        }
        None
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
    pub fn execute(&mut self, work: Work<T>, settle: impl FnOnce(CallKey, T, CallOutcome)) -> Result<(), Mishap> {
        if self.running.len() >= self.concurrent || !self.waiting.is_empty() {
            self.waiting.push_back(work);
            return Ok(());
        }
        self.begin(work, settle)
    }

    fn begin(&mut self, work: Work<T>, settle: impl FnOnce(CallKey, T, CallOutcome)) -> Result<(), Mishap> {
        let Work { key, token, tool, call } = work;
        let panicked = |tool: &dyn Tool| ToolPanicked { tool: tool.name().to_owned() };
        if concerned(&self.faults, &*tool) {
            let work = armed(self.faults.clone(), Arc::clone(&tool), call);
            self.spawn(key, token, tool, work);
            return Ok(());
        }
        let first = catch_unwind(AssertUnwindSafe(|| {
            let mut future = tool.call(call);
            match (&mut future).now_or_never() {
                Some(result) => Ok(result),
                None => Err(future),
            }
        }));
        match first {
            Err(_) => Err(panicked(&*tool).into()),
            Ok(Ok(result)) => {
                settle(key, token, outcome(result));
                Ok(())
            }
            Ok(Err(future)) => {
                self.spawn(key, token, tool, async move { Outcome::Settled(future.await) });
                Ok(())
            }
        }
    }

    fn spawn(
        &mut self,
        key: CallKey,
        token: T,
        tool: Arc<dyn Tool>,
        work: impl Future<Output = Outcome> + Send + 'static,
    ) {
        let task = self.tasks.spawn(async move {
            let result = AssertUnwindSafe(work).catch_unwind().await;
            let result = result.map_err(|_| ToolPanicked { tool: tool.name().to_owned() });
            EndedTask { key, tool, result }
        });
        self.running.insert(key, (token, task));
    }

    /// Waits for an attempt's end; for ever when none runs.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is lost when the future is dropped.
    pub async fn ended(&mut self) -> EndedTask {
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
    pub fn settle(&mut self, ended: EndedTask, mut settle: impl FnMut(CallKey, T, CallOutcome)) -> Result<(), Mishap> {
        let result = match ended.result? {
            Outcome::Settled(result) => result,
            // The message is lost, and the token with it.
            Outcome::Broken(Broken::Drop) => {
                self.running.remove(&ended.key);
                return self.fill(settle);
            }
            Outcome::Broken(broken) => return Err(Mishap::Broken(ended.key, broken)),
        };
        if let Some((token, _)) = self.running.remove(&ended.key) {
            settle(ended.key, token, outcome(result));
            if concerned(&self.faults, &*ended.tool) {
                self.settled.push_back(ended.tool);
            }
        }
        self.fill(settle)
    }

    fn fill(&mut self, mut settle: impl FnMut(CallKey, T, CallOutcome)) -> Result<(), Mishap> {
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
    ) -> Result<(), Mishap> {
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

/// Whether a plan has anything to do with this tool's attempts.
fn concerned(faults: &Faults, tool: &dyn Tool) -> bool {
    const POINTS: [FaultPoint; 3] =
        [FaultPoint::WorkerBeforeExecute, FaultPoint::WorkerBeforeReply, FaultPoint::WorkerAfterReply];
    faults.is_armed() && POINTS.iter().any(|point| faults.concern(*point, Operation::Tool(tool.name())))
}

/// A tool's work between its two points.
async fn armed(faults: Faults, tool: Arc<dyn Tool>, call: ToolCall) -> Outcome {
    let operation = Operation::Tool(tool.name());
    match faults.meet(FaultPoint::WorkerBeforeExecute, operation).await {
        None => {}
        Some(Broken::Error(fault)) => return Outcome::Settled(Err(*fault)),
        Some(broken) => return Outcome::Broken(broken),
    }
    let result = tool.call(call).await;
    match faults.meet(FaultPoint::WorkerBeforeReply, operation).await {
        None => Outcome::Settled(result),
        Some(Broken::Error(fault)) => Outcome::Settled(Err(*fault)),
        Some(broken) => Outcome::Broken(broken),
    }
}

fn outcome(result: Result<ToolReply, Fault>) -> CallOutcome {
    match result {
        Ok(reply) => CallOutcome::Reply(Box::new(reply)),
        Err(fault) => CallOutcome::Fault(Box::new(fault)),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::base::fault::FaultCode;
    use crate::base::ids::{CallNumber, Generation, HostId, InvocationId, SessionNumber};
    use crate::protocol::session::ClientInfo;
    use crate::tools::progress::ProgressSink;
    use crate::tools::{Annotations, ToolDefinition, ToolFuture};

    /// Does what its arguments say.
    struct Act;

    impl Tool for Act {
        fn name(&self) -> &str {
            "act"
        }

        fn definition(&self) -> ToolDefinition {
            ToolDefinition {
                name: "act".to_owned(),
                title: String::new(),
                description: String::new(),
                input_schema: json!({}),
                annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
                meta: None,
            }
        }

        fn call(&self, call: ToolCall) -> ToolFuture {
            match &call.arguments[..] {
                b"panic at once" => panic!("as asked"),
                _ => Box::pin(async move {
                    match &call.arguments[..] {
                        b"ready" => return Ok(ToolReply::text("done")),
                        b"for ever" => std::future::pending::<()>().await,
                        b"later" => tokio::task::yield_now().await,
                        b"panic later" => {
                            tokio::task::yield_now().await;
                            panic!("as asked");
                        }
                        _ => panic!("as asked"),
                    }
                    Err(Fault::new(FaultCode::Busy, "later."))
                }),
            }
        }
    }

    fn work(call: u64, deed: &'static str) -> Work<u64> {
        let session = SessionNumber(call % 2);
        Work {
            key: CallKey { session, call: CallNumber(call) },
            token: call,
            tool: Arc::new(Act),
            call: ToolCall {
                invocation: InvocationId { host: HostId::random(), session, call },
                generation: Generation(1),
                evidence: None,
                arguments: Bytes::from_static(deed.as_bytes()),
                client: ClientInfo::Unknown,
                progress: ProgressSink::closed(),
                waited: std::time::Duration::ZERO,
            },
        }
    }

    #[tokio::test]
    async fn attempts_beyond_the_bound_begin_in_the_order_they_came() {
        let settled = RefCell::new(Vec::new());
        let settle = |_: CallKey, token: u64, _: CallOutcome| settled.borrow_mut().push(token);
        let mut executor = Executor::new(2, Faults::none());
        for (call, deed) in [(1, "for ever"), (2, "later"), (3, "ready"), (4, "ready"), (5, "for ever"), (6, "ready")] {
            executor.execute(work(call, deed), settle).expect("no panic");
        }
        assert_eq!(*settled.borrow(), [0_u64; 0], "two are open, so even a ready one waits");
        let ended = executor.ended().await;
        executor.settle(ended, settle).expect("no panic");
        assert_eq!(*settled.borrow(), [2, 3, 4], "the fifth has the room now");
        let back = RefCell::new(Vec::new());
        executor
            .withdraw(|key| key.session == SessionNumber(1), |token| back.borrow_mut().push(token), settle)
            .expect("no panic");
        back.borrow_mut().sort_unstable();
        assert_eq!(*back.borrow(), [1, 5]);
        assert_eq!(*settled.borrow(), [2, 3, 4, 6]);
    }

    #[tokio::test]
    async fn a_waiting_attempt_that_is_withdrawn_is_never_begun() {
        let settle = |_: CallKey, token: u64, _: CallOutcome| panic!("{token} was settled");
        let mut executor = Executor::new(1, Faults::none());
        executor.execute(work(1, "for ever"), settle).expect("no panic");
        executor.execute(work(2, "panic at once"), settle).expect("it waits");
        let back = RefCell::new(Vec::new());
        executor.withdraw(|_| true, |token| back.borrow_mut().push(token), settle).expect("it is not begun");
        assert_eq!(*back.borrow(), [1, 2]);
    }

    #[tokio::test]
    async fn a_panic_is_reported_wherever_it_happens() {
        let settle = |_: CallKey, token: u64, _: CallOutcome| panic!("{token} was settled");
        let panicked = ToolPanicked { tool: "act".to_owned() };
        for deed in ["panic at once", "panic at the first poll"] {
            assert_eq!(
                Executor::new(CONCURRENT, Faults::none()).execute(work(1, deed), settle),
                Err(panicked.clone().into()),
                "{deed}"
            );
        }
        let mut executor = Executor::new(CONCURRENT, Faults::none());
        executor.execute(work(1, "panic later"), settle).expect("not yet");
        let ended = executor.ended().await;
        assert_eq!(executor.settle(ended, settle), Err(panicked.into()));
    }
}
