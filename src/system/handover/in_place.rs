//! How a rollout hands over where the process is to stay: a candidate that passed becomes its image.
//!
//! Owns: nothing; it brings together who decides ([`crate::rollout`]) and who carries it out (`sequence`). May not know:
//! what makes a candidate good.
//!
//! Invariants: (1) it keeps no system alive; (2) whoever waits for it may go away, and what was begun comes to its end.

use std::sync::{Arc, Weak};

use super::{HandOverDesk, NewImage};
use crate::base::fault::{Fault, FaultCode, chain};
use crate::base::tasks;
use crate::rollout::{HandOver, Handing, SnapshotFile, Successor};

/// Replaces this process's image.
pub(crate) struct InPlace {
    desk: Weak<HandOverDesk>,
    image: NewImage,
}

impl InPlace {
    /// The candidate is started as this image says, whatever its own program is.
    pub(crate) fn new(desk: &Arc<HandOverDesk>, image: NewImage) -> Self {
        Self { desk: Arc::downgrade(desk), image }
    }

    fn desk(&self) -> Result<Arc<HandOverDesk>, Fault> {
        self.desk.upgrade().ok_or_else(|| Fault::new(FaultCode::Stopping, "the system is gone."))
    }
}

impl HandOver for InPlace {
    fn peek(&self) -> Handing<'_, Result<SnapshotFile, Fault>> {
        Box::pin(async { self.desk()?.peek_into_file().await.map_err(|error| fault(&error)) })
    }

    fn hand_over(&self, to: Successor) -> Handing<'_, Fault> {
        Box::pin(async move {
            let desk = match self.desk() {
                Ok(desk) => desk,
                Err(gone) => return gone,
            };
            let image = self.image.checked(to.program, to.fingerprint);
            // A task of its own: it may not be broken off between what it stops and what it starts again.
            match tasks::spawn(async move { desk.hand_over(&image).await }).await {
                Ok(error) => fault(&error),
                Err(_) => Fault::new(FaultCode::Internal, "the hand-over was broken off."),
            }
        })
    }
}

/// The error with what it came from, as one sentence.
fn fault(error: &dyn std::error::Error) -> Fault {
    Fault::new(FaultCode::RolloutRejected, format!("failed to {}.", chain(error)))
}
