//! The actor of one connection: what supervision sees of its loop.
//!
//! Owns: the task of the loop. May not know: what the loop does.
//!
//! Invariant: what the loop works with is only lent to it, so that however it ends, the next incarnation goes on with it.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::ExecMsg;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::ExecNumber;
use crate::base::tasks::TaskSet;
use crate::exec::remote::RemoteLoop;

/// The actor.
pub(super) struct ExecConnection;

/// The only message to the actor itself: its loop has ended, for good or by a failure.
pub(super) struct LoopEnded(Result<(), Fault>);

/// The actor's state; dropping it ends the loop, which gives everything back.
pub(super) struct ConnectionState {
    number: ExecNumber,
    execs: ActorRef<ExecMsg>,
    task: TaskSet<()>,
}

#[cfg_attr(feature = "ractor-async-trait", ractor::async_trait)]
impl Actor for ExecConnection {
    type Msg = LoopEnded;
    type State = ConnectionState;
    type Arguments = (ExecNumber, RemoteLoop, ActorRef<ExecMsg>);

    async fn pre_start(
        &self,
        me: ActorRef<Self::Msg>,
        (number, work, execs): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let mut task = TaskSet::new();
        task.spawn(async move {
            let ended = AssertUnwindSafe(work.run()).catch_unwind().await;
            let end = ended.map_err(|_| Fault::new(FaultCode::Internal, "the loop of an exec connection panicked"));
            let _ = me.cast(LoopEnded(end));
        });
        Ok(ConnectionState { number, execs, task })
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        LoopEnded(end): Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        end?;
        let _ = state.execs.cast(ExecMsg::Over(state.number));
        me.stop(None);
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        state.task.abort_all();
        while state.task.join_next().await.is_some() {}
        Ok(())
    }
}
