//! What the peer of a connection has read.
//!
//! Owns: the marks that go out between lines and come back. May not know: how they travel.
//!
//! Invariant: a mark that came back was preceded by everything that was written before it was asked for.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// The marks of one connection. They only grow; a later one stands for an earlier one that did not go out yet.
#[derive(Debug)]
pub struct Marks {
    asked: AtomicU64,
    read: watch::Sender<u64>,
}

impl Default for Marks {
    fn default() -> Self {
        Self { asked: AtomicU64::new(0), read: watch::Sender::new(0) }
    }
}

impl Marks {
    /// Has this mark follow what was written so far, at the next write or flush.
    pub fn ask(&self, mark: u64) {
        self.asked.fetch_max(mark, Ordering::Relaxed);
    }

    /// The last mark that came back; 0 before the first.
    #[must_use]
    pub fn read(&self) -> watch::Receiver<u64> {
        self.read.subscribe()
    }

    /// The last mark that was asked for.
    #[cfg_attr(not(feature = "ws"), allow(dead_code, reason = "what has no marks sends none back"))]
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// The peer sent this mark back. What nobody asked for is nobody's.
    #[cfg_attr(not(feature = "ws"), allow(dead_code, reason = "what has no marks sends none back"))]
    pub(in super::super) fn come_back(&self, mark: u64) {
        self.read.send_if_modified(|read| {
            let is_ours = mark > *read && mark <= self.asked();
            *read = if is_ours { mark } else { *read };
            is_ours
        });
    }
}
