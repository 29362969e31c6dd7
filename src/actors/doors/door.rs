//! The actor of one door: what supervision sees of its loop.
//!
//! Owns: the task of the loop. May not know: which kind of door it is, what comes in.
//!
//! Invariant: what the loop works with is only lent to it, so that however it ends, the next incarnation goes on with it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::messages::DoorsMsg;
use super::table::{DoorLoop, Entrance};
use crate::actors::kept::Kept;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::DoorNumber;
use crate::base::tasks::TaskSet;

/// The actor.
pub(super) struct Door;

/// What an incarnation is started with.
pub(super) struct DoorArguments {
    /// Its number.
    pub(super) number: DoorNumber,
    /// The door, to be borrowed.
    pub(super) kept: Arc<Kept<DoorLoop>>,
    /// What it opens connections with.
    pub(super) entrance: Entrance,
    /// The supervisor; it hears that the door is closed.
    pub(super) doors: ActorRef<DoorsMsg>,
}

/// The only message to the actor itself: its loop has ended, closed or failed.
pub(super) struct DoorEnded(Result<(), Fault>);

/// The actor's state; dropping it ends the loop, which gives the door back.
pub(super) struct DoorState {
    number: DoorNumber,
    doors: ActorRef<DoorsMsg>,
    task: TaskSet<()>,
}

#[cfg_attr(feature = "ractor-async-trait", ractor::async_trait)]
impl Actor for Door {
    type Msg = DoorEnded;
    type State = DoorState;
    type Arguments = DoorArguments;

    async fn pre_start(&self, me: ActorRef<Self::Msg>, a: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        let DoorArguments { number, kept, entrance, doors } = a;
        let mut task = TaskSet::new();
        task.spawn(async move {
            // The last incarnation may still be giving it back.
            let Some(mut lent) = kept.lend().await else {
                let _ = me.cast(DoorEnded(Ok(())));
                return;
            };
            let end = match lent.get() {
                Some(door) => AssertUnwindSafe(door.run(&entrance))
                    .catch_unwind()
                    .await
                    .unwrap_or_else(|_| Err(Fault::new(FaultCode::Internal, "the loop of a door panicked"))),
                None => Ok(()),
            };
            if end.is_ok() {
                drop(lent.finish());
            }
            let _ = me.cast(DoorEnded(end));
        });
        Ok(DoorState { number, doors, task })
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        DoorEnded(end): Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        end?;
        let _ = state.doors.cast(DoorsMsg::Over(state.number));
        me.stop(None);
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        state.task.abort_all();
        while state.task.join_next().await.is_some() {}
        Ok(())
    }
}
