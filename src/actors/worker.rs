//! A worker: one incarnation of the code that executes tools, as its host sees it.
//!
//! Owns: how a worker is reached ([`WorkerHandle`]), how it is ended and known to have ended ([`Lifeline`]), the actor that
//! supervision sees. May not know: ids on the wire, whether an attempt is a call's first or second, what happens after it
//! is gone, and whether the tools run in this process or in another; that is [`workers`](super::workers)' choice.
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

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{mpsc, watch};

use super::current::NotRunning;
use super::reply::AttemptReply;
use super::workers::{Backend, WorkersMsg};
use crate::base::fault::{Fault, FaultCode};
pub use crate::base::ids::CallKey;
use crate::base::ids::{Generation, SessionNumber};
use crate::tools::{Tool, ToolCall};

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

/// What a worker is told.
pub enum WorkerMsg {
    /// Run this.
    Execute(Box<Attempt>),
    /// Run these.
    ExecuteAll(Vec<Attempt>),
    /// Nobody waits for this one any more.
    Withdraw(CallKey),
    /// Nobody waits for anything of this session any more.
    SessionOver(SessionNumber),
}

/// Reaches one incarnation's loop. Cheap to clone; it keeps nothing alive. Every message is about calls, which their
/// sessions bound, so the channel needs no bound of its own.
#[derive(Debug, Clone)]
pub struct WorkerHandle(mpsc::UnboundedSender<WorkerMsg>);

impl WorkerHandle {
    /// A handle, and where its messages come out.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<WorkerMsg>) {
        let (sender, inbox) = mpsc::unbounded_channel();
        (Self(sender), inbox)
    }

    /// Sends a message. Never waits.
    ///
    /// # Errors
    ///
    /// The worker has ended. The message is dropped, and the tokens in it tell their sessions so.
    pub fn cast(&self, message: WorkerMsg) -> Result<(), NotRunning> {
        self.0.send(message).map_err(|_| NotRunning)
    }
}

/// How a worker is to end.
#[derive(Debug, Clone)]
pub enum Order {
    /// It is not needed any more.
    Stop,
    /// It is broken, and why.
    Kill(Box<Fault>),
}

/// Ends a worker and knows when it has ended. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lifeline {
    order: Arc<watch::Sender<Option<Order>>>,
    over: watch::Receiver<bool>,
}

impl Lifeline {
    /// The lifeline of a worker that is about to be started, and the keeper's side of it.
    #[must_use]
    pub fn new() -> (Self, Keeping) {
        let (order, orders) = watch::channel(None);
        let (over_sender, over) = watch::channel(false);
        (Self { order: Arc::new(order), over }, Keeping { orders, over: over_sender })
    }

    /// Orders its end; a second order changes nothing.
    pub fn end(&self, order: Order) {
        self.order.send_if_modified(|given| {
            let first = given.is_none();
            if first {
                *given = Some(order);
            }
            first
        });
    }

    /// Waits until it has ended; false when it did not within the limit.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn over(&self, limit: Duration) -> bool {
        let mut over = self.over.clone();
        // A keeper that is gone without a word is over too.
        tokio::time::timeout(limit, over.wait_for(|over| *over)).await.is_ok()
    }
}

/// A keeper's side of [`Lifeline`].
#[derive(Debug)]
pub struct Keeping {
    orders: watch::Receiver<Option<Order>>,
    over: watch::Sender<bool>,
}

impl Keeping {
    /// Waits for the order to end.
    ///
    /// # Cancel safety
    ///
    /// Safe: an order that was given is there for the next wait.
    pub async fn ordered(&mut self) -> Order {
        match self.orders.wait_for(Option::is_some).await {
            Ok(order) => order.clone().unwrap_or(Order::Stop),
            Err(_) => Order::Stop,
        }
    }
}

/// The worker actor: what supervision sees of an incarnation.
pub struct Worker;

/// What it is started with.
pub struct WorkerArguments {
    /// Which incarnation.
    pub generation: Generation,
    /// Where its tools run.
    pub backend: Backend,
    /// What it is told.
    pub inbox: mpsc::UnboundedReceiver<WorkerMsg>,
    /// The keeper's side of its lifeline.
    pub keeping: Keeping,
    /// Its lifeline.
    pub lifeline: Lifeline,
    /// Who hears that it is up, and that it is gone.
    pub workers: ActorRef<WorkersMsg>,
}

/// The only message to the actor itself: its keeper has ended.
pub enum WorkerEnded {
    /// As it was told to.
    InOrder,
    /// Not in order.
    Lost(Box<Fault>),
}

/// The actor's state: a worker nobody supervises ends.
pub struct Held(Lifeline);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.end(Order::Stop);
    }
}

impl Actor for Worker {
    type Msg = WorkerEnded;
    type State = Held;
    type Arguments = WorkerArguments;

    async fn pre_start(&self, me: ActorRef<Self::Msg>, a: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        let WorkerArguments { generation, backend, inbox, mut keeping, lifeline, workers } = a;
        let farewell = Farewell { generation, told: Some((me, workers.clone())) };
        // The keeper is not the actor's own task: it has to outlive a kill of the actor, to see the process off.
        tokio::spawn(async move {
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
