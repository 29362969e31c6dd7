//! The worker in the host's own process: one loop around an [`Executor`].
//!
//! Owns: that loop. May not know: pipes, sessions' state. A panic, of a tool or of the loop itself, is the worker's end:
//! what it left behind is unknown, so nothing of this incarnation is kept. Its reply tokens tell their sessions by being
//! dropped.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::actors::reply::AttemptReply;
use crate::actors::worker::{Attempt, Keeping, Order, WorkerMsg};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{CallKey, CallNumber, SessionNumber};
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
    let mut looping = JoinSet::new();
    looping.spawn(async move {
        match tokio::time::timeout(HELD_UP, faults.meet(FaultPoint::WorkerStart, Operation::None)).await {
            Ok(None) => {}
            Ok(Some(broken)) => return Mishap::Broken(NO_CALL, broken),
            Err(_) => return Mishap::Broken(NO_CALL, Broken::Silence),
        }
        up(None);
        run(inbox, faults).await
    });
    let ordered = tokio::select! {
        biased;
        ended = looping.join_next() => return why(ended, None),
        order = keeping.ordered() => order,
    };
    looping.abort_all();
    why(looping.join_next().await, Some(ordered))
}

fn why(ended: Option<Result<Mishap, tokio::task::JoinError>>, ordered: Option<Order>) -> Fault {
    let lost = |detail: String| Fault::new(FaultCode::WorkerLost, detail);
    match (ended, ordered) {
        // A panic may be known only by the tokens it dropped, and the order to end be the answer to that.
        (Some(Ok(Mishap::Panicked(panicked))), _) => lost(format!("{panicked}.")),
        // It has no pipe that could be torn or fall silent; all it can do is end.
        (Some(Ok(Mishap::Broken(..))), _) => lost("a fault point broke the worker.".to_owned()),
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

/// Runs what it is given until a tool panics. For ever when none does: an order ends it from outside.
async fn run(mut inbox: mpsc::UnboundedReceiver<WorkerMsg>, faults: Faults) -> Mishap {
    let mut executor = Executor::new(CONCURRENT, faults);
    loop {
        if executor.has_settled()
            && let Some(broken) =
                tokio::time::timeout(HELD_UP, executor.after_replies()).await.unwrap_or(Some(Broken::Silence))
        {
            let _ = tokio::time::timeout(END_LIMIT, executor.end()).await;
            return Mishap::Broken(NO_CALL, broken);
        }
        let done = tokio::select! {
            // What has ended before what is to begin: it makes room.
            biased;
            ended = executor.ended(), if executor.is_running() => executor.settle(ended, settle),
            Some(message) = inbox.recv() => handle(&mut executor, message),
            else => std::future::pending().await,
        };
        if let Err(mishap) = done {
            let _ = tokio::time::timeout(END_LIMIT, executor.end()).await;
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
