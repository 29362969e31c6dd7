//! The current incarnation of a supervised actor, for those who outlive it.
//!
//! An actor that is restarted gets a new reference; whoever was started after it is restarted with it and holds the new
//! one, but handles given to tools and to the embedding program live longer than any incarnation. They go through this.
//!
//! Invariants: (1) a message reaches the incarnation that is current when it is sent, or nobody; (2) a message that
//! reaches nobody is given back by its error, and a reply token in it tells its owner by being dropped.

use ractor::{ActorRef, Message};
use tokio::sync::watch;

/// Names the current incarnation; held by its supervisor.
#[derive(Debug)]
pub struct Naming<M>(watch::Sender<Option<ActorRef<M>>>);

/// Reaches the current incarnation. Cheap to clone.
#[derive(Debug)]
pub struct Current<M>(watch::Receiver<Option<ActorRef<M>>>);

impl<M> Clone for Current<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// There is no incarnation at this moment, or it ended just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("reach an actor that is not running")]
pub struct NotRunning;

impl<M: Message> Naming<M> {
    /// Nobody yet.
    #[must_use]
    pub fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// From now on this one is meant.
    pub fn set(&self, actor: &ActorRef<M>) {
        self.0.send_replace(Some(actor.clone()));
    }

    /// From now on nobody is meant.
    pub fn clear(&self) {
        self.0.send_replace(None);
    }

    /// A way to reach whoever is meant.
    #[must_use]
    pub fn current(&self) -> Current<M> {
        Current(self.0.subscribe())
    }
}

impl<M: Message> Default for Naming<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Message> Current<M> {
    /// Notes who is current now, for [`Current::replaced`].
    pub fn note(&mut self) {
        self.0.mark_unchanged();
    }

    /// Waits until somebody else is current than when it was noted. Never, when nobody names incarnations any more.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn replaced(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Sends a message to the current incarnation. Never waits.
    ///
    /// # Errors
    ///
    /// Nobody is there to take it.
    pub fn cast(&self, message: M) -> Result<(), NotRunning> {
        match &*self.0.borrow() {
            Some(actor) => actor.cast(message).map_err(|_| NotRunning),
            None => Err(NotRunning),
        }
    }
}
