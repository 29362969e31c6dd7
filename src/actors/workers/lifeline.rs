//! How a worker is ended, and known to have ended, whatever becomes of whoever started it.
//!
//! Owns: the order to end, given once, and the word that it is over. May not know: what a worker is, who started it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::base::fault::Fault;

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
    /// The lifeline of a worker that is about to be started, and the keeper's end of it.
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

/// A keeper's end of [`Lifeline`].
#[derive(Debug)]
pub struct Keeping {
    pub(super) orders: watch::Receiver<Option<Order>>,
    pub(super) over: watch::Sender<bool>,
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
