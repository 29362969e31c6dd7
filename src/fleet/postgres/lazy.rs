//! A fleet in PostgreSQL that is reached when it is first needed.
//!
//! Owns: when it is opened. Nothing is reached, read or kept before the first verb; one that could not be reached is tried again by
//! the next verb.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{Mutex, watch};

use super::PgFleet;
use crate::base::ids::FleetJobId;
use crate::fleet::{
    ClaimAsk, Fleet, FleetAccept, FleetAddress, FleetCancel, FleetClaim, FleetError, FleetFinish, FleetFuture,
    FleetRenewed, FleetStart, FleetSwept, FleetView, NewFleetJob, Renewal, RunFinish, Ticket,
};

/// A fleet in the database of this address.
pub struct LazyFleet {
    address: FleetAddress,
    opened: Mutex<Option<Arc<PgFleet>>>,
}

impl fmt::Debug for LazyFleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyFleet").field("address", &self.address).finish_non_exhaustive()
    }
}

impl LazyFleet {
    /// One that was not reached yet.
    #[must_use]
    pub fn new(address: FleetAddress) -> Self {
        Self { address, opened: Mutex::default() }
    }

    async fn fleet(&self) -> Result<Arc<PgFleet>, FleetError> {
        let mut opened = self.opened.lock().await;
        if let Some(fleet) = &*opened {
            return Ok(Arc::clone(fleet));
        }
        let fleet = Arc::new(PgFleet::open(self.address.as_str()).await?);
        *opened = Some(Arc::clone(&fleet));
        Ok(fleet)
    }
}

macro_rules! forwarded {
    ($(fn $verb:ident($($name:ident: $type:ty),*) -> $answer:ty;)*) => {$(
        fn $verb<'a>(&'a self $(, $name: $type)*) -> FleetFuture<'a, $answer> {
            async move { self.fleet().await?.$verb($($name),*).await }.boxed()
        }
    )*};
}

impl Fleet for LazyFleet {
    forwarded! {
        fn accept(job: &'a NewFleetJob) -> FleetAccept;
        fn claim(ask: &'a ClaimAsk) -> FleetClaim;
        fn start(ticket: Ticket) -> FleetStart;
        fn renew(renewal: &'a Renewal) -> FleetRenewed;
        fn finish(finish: &'a RunFinish) -> FleetFinish;
        fn sweep() -> FleetSwept;
        fn cancel(job: FleetJobId) -> FleetCancel;
        fn wait(job: FleetJobId, most: Duration) -> Option<FleetView>;
        fn changes() -> watch::Receiver<u64>;
    }
}
