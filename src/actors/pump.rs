//! The pump: an actor around one task that carries what comes in to where it goes, such as telemetry's intake to its log.
//!
//! Owns: the task, how supervision hears of its end, how it is told to stop. May not know: what is carried; that is the
//! [`Pumped`] value the actor is started with.
//!
//! Invariants: (1) the task has ended when the actor has; (2) a task that ends or panics before it was told to fails the actor, so
//! that its supervisor starts another.

use crate::base::tasks::TaskSet;
use std::marker::PhantomData;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

/// What a pump does, and what it is started with.
pub(super) trait Pumped: Send + 'static {
    /// What its failure calls it.
    const NAME: &'static str;

    /// Carries until `stopped` is told or dropped, then what is left. To return before that is a failure.
    fn run(self, stopped: oneshot::Receiver<()>) -> impl Future<Output = ()> + Send;
}

/// The actor around the task of a `P`.
pub(super) struct Pump<P>(PhantomData<fn() -> P>);

impl<P> Pump<P> {
    pub(super) const fn new() -> Self {
        Self(PhantomData)
    }
}

/// The task ended, which it must not.
#[derive(Debug, thiserror::Error)]
#[error("{0} ended")]
struct PumpEnded(&'static str);

/// The actor's state; dropping it ends the task.
pub(super) struct PumpState {
    task: TaskSet<()>,
    stop: Option<oneshot::Sender<()>>,
}

/// Everything that can wake the actor.
pub(super) enum PumpMsg {
    /// The task ended.
    Ended,
}

#[cfg_attr(feature = "ractor-async-trait", ractor::async_trait)]
impl<P: Pumped> Actor for Pump<P> {
    type Msg = PumpMsg;
    type State = PumpState;
    type Arguments = P;

    async fn pre_start(&self, me: ActorRef<PumpMsg>, pumped: P) -> Result<PumpState, ActorProcessingErr> {
        let (stop, stopped) = oneshot::channel();
        let mut task = TaskSet::new();
        // The message is sent by a guard, so that a panic of the task is noticed too.
        let guard = Guard(me);
        task.spawn(async move {
            let _guard = guard;
            pumped.run(stopped).await;
        });
        Ok(PumpState { task, stop: Some(stop) })
    }

    async fn handle(
        &self,
        _me: ActorRef<PumpMsg>,
        message: PumpMsg,
        _state: &mut PumpState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            PumpMsg::Ended => Err(PumpEnded(P::NAME).into()),
        }
    }

    async fn post_stop(&self, _me: ActorRef<PumpMsg>, state: &mut PumpState) -> Result<(), ActorProcessingErr> {
        if let Some(stop) = state.stop.take() {
            let _ = stop.send(());
        }
        while state.task.join_next().await.is_some() {}
        Ok(())
    }
}

struct Guard(ActorRef<PumpMsg>);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.cast(PumpMsg::Ended);
    }
}
