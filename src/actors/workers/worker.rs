//! The worker actor: one incarnation of the code that executes tools, as supervision sees it.
//!
//! Owns: its keeper's task. May not know: ids on the wire, whether an attempt is a call's first or second, what happens
//! after it is gone, and whether the tools run in this process or in another; that is its [`Backend`].
//!
//! ```text
//!  actor ──starts──▶ keeper ──starts──▶ loop (fed by handles)
//!    │ dropped = end it ▶ │ ◀─ joined ──────┘
//!    ◀────────── Ended ───┴──▶ Gone, to the supervisor
//! ```
//!
//! Invariants: (1) `Gone` is sent when the loop has been joined, and its process, if it has one, waited for: all its
//! messages have been sent and all its tokens have told by then; (2) every way a worker ends passes its keeper, which
//! outlives the actor: nobody can end the one without the other.

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;

use super::backend::Backend;
use super::lifeline::{Keeping, Lifeline, Order};
use super::messages::{WorkerMsg, WorkersMsg};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::Generation;
use crate::base::tasks;

/// The worker actor: what supervision sees of an incarnation.
pub(super) struct Worker;

/// What it is started with.
pub(super) struct WorkerArguments {
    /// Which incarnation.
    pub generation: Generation,
    /// Where its tools run.
    pub backend: Backend,
    /// What it is told.
    pub inbox: mpsc::UnboundedReceiver<WorkerMsg>,
    /// The keeper's end of its lifeline.
    pub keeping: Keeping,
    /// Its lifeline.
    pub lifeline: Lifeline,
    /// Who hears that it is up, and that it is gone.
    pub workers: ActorRef<WorkersMsg>,
}

/// The only message to the actor itself: its keeper has ended.
pub(super) enum WorkerEnded {
    /// As it was told to.
    InOrder,
    /// Not in order.
    Lost(Box<Fault>),
}

/// The actor's state: a worker nobody supervises ends.
pub(super) struct Held(Lifeline);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.end(Order::Stop);
    }
}

#[cfg_attr(feature = "ractor-async-trait", ractor::async_trait)]
impl Actor for Worker {
    type Msg = WorkerEnded;
    type State = Held;
    type Arguments = WorkerArguments;

    async fn pre_start(&self, me: ActorRef<Self::Msg>, a: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        let WorkerArguments { generation, backend, inbox, mut keeping, lifeline, workers } = a;
        let farewell = Farewell { generation, told: Some((me, workers.clone())) };
        // The keeper is not the actor's own task: it has to outlive a kill of the actor, to see the process off.
        tasks::spawn(async move {
            let fault = backend.keep(generation, inbox, &mut keeping, &workers).await;
            let ordered = matches!(&*keeping.orders.borrow(), Some(Order::Stop));
            keeping.over.send_replace(true);
            farewell.tell(ordered, fault);
        });
        Ok(Held(lifeline))
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        _state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            WorkerEnded::InOrder => me.stop(None),
            WorkerEnded::Lost(fault) => return Err(fault),
        }
        Ok(())
    }
}

/// Tells that a worker is gone, also when its keeper panicked.
struct Farewell {
    generation: Generation,
    told: Option<(ActorRef<WorkerEnded>, ActorRef<WorkersMsg>)>,
}

impl Farewell {
    fn tell(mut self, ordered: bool, fault: Fault) {
        self.say(ordered, fault);
    }

    fn say(&mut self, ordered: bool, fault: Fault) {
        let Some((actor, workers)) = self.told.take() else { return };
        let fault = Box::new(fault);
        // Whoever is gone needs not to hear it.
        let _ = workers.cast(WorkersMsg::Gone { generation: self.generation, fault: fault.clone() });
        let _ = actor.cast(if ordered { WorkerEnded::InOrder } else { WorkerEnded::Lost(fault) });
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        self.say(false, Fault::new(FaultCode::Internal, "what kept the worker failed."));
    }
}
