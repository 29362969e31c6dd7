//! What is known of workers beyond the life of their supervisor.
//!
//! Owns: the newest generation there ever was, the lifeline of the worker there is. May not know: when one is started.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::lifeline::{Lifeline, Order};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::Generation;

/// Longest the worker of a lost supervisor may take to end.
const END_LIMIT: Duration = Duration::from_millis(500);

/// What outlives the supervisor: the last generation, and the lifeline of the worker there is.
#[derive(Debug, Default)]
pub struct Roster(Mutex<Entries>);

#[derive(Debug, Default)]
pub(super) struct Entries {
    last: Generation,
    pub(super) worker: Option<Lifeline>,
}

impl Roster {
    pub(super) fn read<T>(&self, look: impl FnOnce(&mut Entries) -> T) -> T {
        // Two plain values: whoever panicked while holding it left them whole.
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The newest generation there ever was.
    #[must_use]
    pub fn last(&self) -> Generation {
        self.read(|entries| entries.last)
    }

    pub(super) fn enter(&self, generation: Generation, lifeline: Lifeline) {
        self.read(|entries| *entries = Entries { last: generation, worker: Some(lifeline) });
    }

    /// Ends the worker of a supervisor that is gone.
    pub(super) async fn clear(&self) {
        let Some(lifeline) = self.read(|entries| entries.worker.take()) else { return };
        let lost = Fault::new(FaultCode::WorkerLost, "the supervisor of the worker was lost");
        lifeline.end(Order::Kill(Box::new(lost)));
        if !lifeline.over(END_LIMIT).await {
            tracing::error!("a worker without a supervisor did not end");
        }
    }
}
