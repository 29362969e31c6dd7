//! The worker in the host's own process: one loop around an [`Executor`].
//!
//! Owns: that loop. May not know: pipes, sessions' state. A panic, of a tool or of the loop itself, is the worker's end:
//! what it left behind is unknown, so nothing of this incarnation is kept. Its reply tokens tell their sessions by being
//! dropped.

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use super::lifeline::{Keeping, Order};
use super::messages::{Attempt, WorkerMsg};
use crate::actors::reply::AttemptReply;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{CallKey, CallNumber, SessionNumber};
use crate::base::tasks::TaskSet;
use crate::failpoints::{Broken, FaultPoint, Faults, Operation};
use crate::protocol::session::CallOutcome;
use crate::worker::executor::{CONCURRENT, Executor, Mishap, Work};

/// How long the tools of an ended worker may take to reach their next await; one that does not is stuck in synchronous
/// code, and what it still does belongs to nobody.
const END_LIMIT: Duration = Duration::from_millis(200);

/// Longest a fault may hold up the loop, at its start or between two turns. A worker of this process greets nobody and
/// answers no checks: one that is held up longer ends, as a silent process would.
const HELD_UP: Duration = Duration::from_secs(5);

/// Stands for no call.
const NO_CALL: CallKey = CallKey { session: SessionNumber(0), call: CallNumber(0) };

/// Keeps a worker until it has ended; returns why it did.
pub(super) async fn keep(
    inbox: mpsc::UnboundedReceiver<WorkerMsg>,
    keeping: &mut Keeping,
    up: impl FnOnce(Option<u32>) + Send + 'static,
    faults: Faults,
) -> Fault {
    let (end, told_to_end) = oneshot::channel();
    let mut looping = TaskSet::new();
    looping.spawn(run(inbox, faults, up, told_to_end));
    let ordered = tokio::select! {
        biased;
        ended = looping.join_next() => return why(ended, None),
        order = keeping.ordered() => order,
    };
    drop(end);
    let in_order = tokio::time::timeout(END_LIMIT * 2, looping.join_next()).await;
    if let Ok(ended) = in_order {
        return why(ended, Some(ordered));
    }
    // The loop itself is stuck, in a tool's first poll.
    looping.abort_all();
    why(looping.join_next().await, Some(ordered))
}

fn why(ended: Option<Result<Option<Mishap>, tokio::task::JoinError>>, ordered: Option<Order>) -> Fault {
    let lost = |detail: String| Fault::new(FaultCode::WorkerLost, detail);
    match (ended, ordered) {
        // A panic may be known only by the tokens it dropped, and the order to end be the answer to that.
        (Some(Ok(Some(Mishap::Panicked(panicked)))), _) => lost(format!("{panicked}.")),
        // It has no pipe that could be torn or fall silent; all it can do is end.
        (Some(Ok(Some(Mishap::Broken(..)))), _) => lost("a fault point broke the worker.".to_owned()),
        (Some(Err(error)), _) if error.is_panic() => lost("the worker's loop panicked.".to_owned()),
        (_, Some(Order::Kill(fault))) => *fault,
        (_, Some(Order::Stop) | None) => lost("the worker was ended.".to_owned()),
    }
}

fn settle(_: CallKey, reply: AttemptReply, outcome: CallOutcome) {
    reply.finish(outcome);
}

fn work(Attempt { key, reply, tool, call }: Attempt) -> Work<AttemptReply> {
    Work { key, token: reply, tool, call }
}

/// Runs what it is given until a tool panics or it is told to end (then there is no mishap). No attempt is being polled when
/// it returns, unless it is stuck: on a runtime of several threads, one whose task was only aborted would go on until its
/// next await, beside the next worker's.
async fn run(
    mut inbox: mpsc::UnboundedReceiver<WorkerMsg>,
    faults: Faults,
    up: impl FnOnce(Option<u32>),
    told_to_end: oneshot::Receiver<()>,
) -> Option<Mishap> {
    let mut executor = Executor::new(CONCURRENT, faults.clone());
    let mut order = EndOrder { told: told_to_end, heard_by: None };
    let mishap = {
        let mut turns = std::pin::pin!(turns(&mut executor, &mut inbox, faults, up));
        std::future::poll_fn(|cx| match order.is_given(cx) {
            true => Poll::Ready(None),
            false => turns.as_mut().poll(cx).map(Some),
        })
        .await
    };
    let _ = tokio::time::timeout(END_LIMIT, executor.end()).await;
    mishap
}

/// The order to end. It is waited for once and looked for before each turn, which costs a fraction of waiting anew.
struct EndOrder {
    told: oneshot::Receiver<()>,
    /// Who is woken by it.
    heard_by: Option<Waker>,
}

impl EndOrder {
    /// Whether it was given; whoever asks is woken when it is. A sender that was dropped has given it.
    fn is_given(&mut self, cx: &mut Context<'_>) -> bool {
        if self.heard_by.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return self.told.try_recv() != Err(TryRecvError::Empty);
        }
        self.heard_by = Some(cx.waker().clone());
        // Without a budget, or it might not have been waited for.
        std::pin::pin!(tokio::task::unconstrained(&mut self.told)).poll(cx).is_ready()
    }
}

async fn turns(
    executor: &mut Executor<AttemptReply>,
    inbox: &mut mpsc::UnboundedReceiver<WorkerMsg>,
    faults: Faults,
    up: impl FnOnce(Option<u32>),
) -> Mishap {
    match tokio::time::timeout(HELD_UP, faults.meet(FaultPoint::WorkerStart, Operation::None)).await {
        Ok(None) => {}
        Ok(Some(broken)) => return Mishap::Broken(NO_CALL, broken),
        Err(_) => return Mishap::Broken(NO_CALL, Broken::Silence),
    }
    up(None);
    loop {
        if executor.has_settled()
            && let Some(broken) =
                tokio::time::timeout(HELD_UP, executor.after_replies()).await.unwrap_or(Some(Broken::Silence))
        {
            return Mishap::Broken(NO_CALL, broken);
        }
        let done = tokio::select! {
            // What has ended before what is to begin: it makes room.
            biased;
            ended = executor.ended(), if executor.is_running() => executor.settle(ended, settle),
            Some(message) = inbox.recv() => handle(executor, message),
            else => std::future::pending().await,
        };
        if let Err(mishap) = done {
            return mishap;
        }
    }
}

fn handle(executor: &mut Executor<AttemptReply>, message: WorkerMsg) -> Result<(), Mishap> {
    match message {
        WorkerMsg::Execute(attempt) => executor.execute(work(*attempt), settle),
        // After a panic the rest is dropped: no worker is left to run it.
        WorkerMsg::ExecuteAll(attempts) => {
            attempts.into_iter().try_for_each(|attempt| executor.execute(work(attempt), settle))
        }
        WorkerMsg::Withdraw(key) => executor.withdraw(|running| *running == key, AttemptReply::forget, settle),
        WorkerMsg::SessionOver(session) => {
            executor.withdraw(|running| running.session == session, AttemptReply::forget, settle)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use bytes::Bytes;
    use serde_json::json;

    use super::super::lifeline::Lifeline;
    use super::super::messages::WorkerHandle;
    use super::*;
    use crate::base::ids::{Generation, HostId, InvocationId};
    use crate::protocol::session::ClientInfo;
    use crate::tools::progress::ProgressSink;
    use crate::tools::{Annotations, Tool, ToolCall, ToolDefinition, ToolFuture};

    /// Is busy for a while between two awaits, and says when it begins and ends that.
    struct Busy {
        begun: Arc<AtomicBool>,
        done: Arc<AtomicBool>,
    }

    impl Tool for Busy {
        fn name(&self) -> &str {
            "busy"
        }

        fn definition(&self) -> ToolDefinition {
            ToolDefinition {
                name: "busy".to_owned(),
                title: String::new(),
                description: String::new(),
                input_schema: json!({}),
                annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
                meta: None,
            }
        }

        fn call(&self, _: ToolCall) -> ToolFuture {
            let (begun, done) = (Arc::clone(&self.begun), Arc::clone(&self.done));
            Box::pin(async move {
                tokio::task::yield_now().await;
                begun.store(true, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(50));
                done.store(true, Ordering::SeqCst);
                std::future::pending().await
            })
        }
    }

    #[tokio::test]
    async fn an_order_to_end_wakes_whoever_asked_last() {
        for asked_before in 0..3 {
            let (end, told) = oneshot::channel();
            let mut order = EndOrder { told, heard_by: None };
            for _ in 0..asked_before {
                assert!(!order.is_given(&mut Context::from_waker(Waker::noop())));
            }
            let mut end = Some(end);
            std::future::poll_fn(|cx| {
                // It is given after it was looked for.
                if order.is_given(cx) {
                    return Poll::Ready(());
                }
                assert!(!order.is_given(cx), "looked for twice");
                drop(end.take());
                Poll::Pending
            })
            .await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn a_worker_that_was_told_to_end_has_ended_when_none_of_its_attempts_is_being_polled() {
        let (begun, done) = (Arc::default(), Arc::default());
        let tool = Busy { begun: Arc::clone(&begun), done: Arc::clone(&done) };
        let (handle, inbox) = WorkerHandle::new();
        let (lifeline, mut keeping) = Lifeline::new();
        let (to, _mailbox) = mpsc::unbounded_channel();
        let key = CallKey { session: SessionNumber(1), call: CallNumber(1) };
        let call = ToolCall {
            invocation: InvocationId { host: HostId::random(), session: key.session, call: 1 },
            generation: Generation(1),
            evidence: None,
            arguments: Bytes::new(),
            client: ClientInfo::Unknown,
            progress: ProgressSink::closed(),
            waited: Duration::ZERO,
        };
        let reply = AttemptReply::new(to, key.call, Generation(1));
        handle.cast(WorkerMsg::Execute(Box::new(Attempt { key, reply, tool: Arc::new(tool), call }))).unwrap();
        let kept = tokio::spawn(async move { keep(inbox, &mut keeping, |_| {}, Faults::none()).await });
        while !begun.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        lifeline.end(Order::Stop);
        kept.await.unwrap();
        assert!(done.load(Ordering::SeqCst), "the attempt went on beside the next worker's");
    }
}
