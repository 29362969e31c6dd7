//! A fleet as its clients' side: what a consult asks of it, wherever its tool runs.
//!
//! Owns: the verbs and what they promise. May not know: where they are carried out. [`PlacingBackend`] has two implementers: the host
//! ([`FleetDesk`](super::FleetDesk)), which has the queue, and a worker process, which asks its host over the pipe.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{FleetJobId, InvocationId};
use crate::fleet::{FleetCancel, FleetView};
use crate::tools::consult::ConsultOptions;

/// A consult that is to be put into the queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlaceAsk {
    /// What was asked for.
    pub options: ConsultOptions,
    /// The call it is. A call that waits, and is withdrawn before it is answered, has its job cancelled; who gives none ends it itself.
    pub call: Option<InvocationId>,
}

/// A job in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedJob {
    /// Its id.
    pub job: FleetJobId,
    /// Whether it may run on this machine only.
    pub tied: bool,
    /// Whether it was there before.
    pub joined: bool,
}

/// Where the verbs of [`Placing`] are carried out.
pub trait PlacingBackend: Send + Sync {
    /// The name of this machine.
    fn machine(&self) -> &str;
    /// [`Placing::place`].
    fn place(&self, ask: PlaceAsk) -> BoxFuture<'_, Result<PlacedJob, Fault>>;
    /// [`Placing::view`].
    fn view(&self, job: FleetJobId, most: Duration) -> BoxFuture<'_, Result<Option<FleetView>, Fault>>;
    /// [`Placing::settle`].
    fn settle(&self, call: InvocationId) -> BoxFuture<'_, ()>;
    /// [`Placing::cancel`]; of the host alone.
    fn cancel(&self, _job: FleetJobId) -> BoxFuture<'_, Result<FleetCancel, Fault>> {
        Box::pin(std::future::ready(Err(Fault::new(
            FaultCode::Internal,
            "only the host itself cancels jobs of a fleet.",
        ))))
    }
}

/// A fleet, for tools and the command line. Cheap to clone.
#[derive(Clone)]
pub struct Placing(Arc<dyn PlacingBackend>);

impl fmt::Debug for Placing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placing").field("machine", &self.machine()).finish_non_exhaustive()
    }
}

impl Placing {
    /// A handle on the fleet behind this.
    pub fn new(backend: impl PlacingBackend + 'static) -> Self {
        Self(Arc::new(backend))
    }

    /// The name of this machine.
    #[must_use]
    pub fn machine(&self) -> &str {
        self.0.machine()
    }

    /// Puts a consult into the queue: when this returns a job, it is durable. Idempotent by the caller's key, or the call.
    ///
    /// # Errors
    ///
    /// `request_key_conflict`, `queue_full`, `store_unavailable`, `invalid_input` for a directory of no workspace, `caller_lost`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not undo it; asking again with the same key joins it.
    pub async fn place(&self, ask: PlaceAsk) -> Result<PlacedJob, Fault> {
        self.0.place(ask).await
    }

    /// How a job stands when it is over, or after so long. `None` for one that the fleet does not know.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn view(&self, job: FleetJobId, most: Duration) -> Result<Option<FleetView>, Fault> {
        self.0.view(job, most).await
    }

    /// A call waits no longer, and its job goes on or is over.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn settle(&self, call: InvocationId) {
        self.0.settle(call).await;
    }

    /// Ends a job that has not begun, or has its host end it.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not undo it.
    pub async fn cancel(&self, job: FleetJobId) -> Result<FleetCancel, Fault> {
        self.0.cancel(job).await
    }
}
