//! A supervised child, and the way its supervisor ends it.

use std::time::Duration;

use ractor::{ActorCell, ActorId, ActorProcessingErr};

use crate::base::fault::{Fault, FaultCode};
use crate::failpoints::{Broken, FaultPoint, Faults, Operation};

/// How long a child that was killed may take to be gone; longer means it is stuck in synchronous code.
const KILL_LIMIT: Duration = Duration::from_millis(250);

/// Longest an actor may stand still in the middle of its work. Whatever it waits for by itself has a shorter bound, so one
/// that takes longer is as good as lost, and is started again like one that is.
const STANDSTILL: Duration = Duration::from_secs(5);

/// Meets the point at which an actor handles a message. An error there is the actor saying that it is broken.
pub(super) async fn meet(faults: &Faults, point: FaultPoint, operation: &str) -> Result<(), Fault> {
    match faults.meet(point, Operation::Method(operation)).await {
        Some(Broken::Error(fault)) => Err(*fault),
        _ => Ok(()),
    }
}

/// Handles one message, or a part of the work, without standing still for ever.
///
/// # Errors
///
/// It took longer than anything in it may.
pub(crate) async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, Fault> {
    let stood = |_| Fault::new(FaultCode::Internal, format!("it stood still for {} s", STANDSTILL.as_secs()));
    tokio::time::timeout(STANDSTILL, work).await.map_err(stood)
}

/// Why an actor failed, as far as it may be told: a panic's own text can quote anything.
pub(super) fn reason(error: &ActorProcessingErr) -> String {
    match error.downcast_ref::<Fault>() {
        Some(fault) => fault.detail.clone(),
        None => "it panicked".to_owned(),
    }
}

/// How a child ended when it was told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// By itself, within its limit.
    InTime,
    /// It was killed after its limit.
    Killed,
    /// Not even a kill ended it: it is stuck in synchronous code.
    Abandoned,
}

/// A child actor and the way to end it.
pub struct Child(ActorCell);

impl Child {
    /// Takes ownership of a started child.
    #[must_use]
    pub fn new(actor: ActorCell) -> Self {
        Self(actor)
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> ActorId {
        self.0.get_id()
    }

    /// Tells it to stop, and does not wait for it.
    pub fn ask_to_stop(&self) {
        self.0.stop(None);
    }

    /// Waits for its end, for so long at most.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn ended(&self, limit: Duration) {
        let _ = self.0.wait(Some(limit)).await;
    }

    /// Ends it at its next await; its state is dropped, nothing else runs.
    pub fn kill(&self) {
        self.0.kill();
    }

    /// Ends it in order: stop, wait, kill, wait. What is still in its mailbox is dropped.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future leaves the child stopping.
    pub async fn stop(self, limit: Duration) -> Stopped {
        self.0.stop(None);
        self.end(limit).await
    }

    async fn end(self, limit: Duration) -> Stopped {
        if self.0.wait(Some(limit)).await.is_ok() {
            return Stopped::InTime;
        }
        self.0.kill();
        if self.0.wait(Some(KILL_LIMIT)).await.is_ok() {
            return Stopped::Killed;
        }
        tracing::error!(actor = %self.0.get_id(), "an actor did not end when it was killed");
        Stopped::Abandoned
    }
}
