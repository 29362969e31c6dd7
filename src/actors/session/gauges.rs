//! What the sessions of a system add up to.
//!
//! Owns: the counts all of them share, and the laws found broken. May not know: who shows them, what a session does.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// What all sessions of a system add up to, for health.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Worker calls in ledgers.
    pub in_flight: AtomicUsize,
    /// Connections that are open.
    pub connections: AtomicUsize,
    /// Messages of earlier generations that were dropped.
    pub stale: AtomicU64,
    /// Attempts after a first one.
    pub replays: AtomicU64,
    /// What a session found broken about itself; looked for only once a fault point has fired.
    broken: Mutex<Vec<String>>,
}

/// Broken laws that are kept; the first ones say the most.
const BROKEN_KEPT: usize = 16;

impl Gauges {
    /// Goes on where another image stood.
    pub fn inherit(&self, stale: u64, replays: u64, broken: &[String]) {
        self.stale.store(stale, Ordering::Relaxed);
        self.replays.store(replays, Ordering::Relaxed);
        broken.iter().for_each(|what| self.broken(what.clone()));
    }

    pub(super) fn broken(&self, what: String) {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        if broken.len() < BROKEN_KEPT {
            broken.push(what);
        }
    }

    /// Laws that were found broken while a fault plan was armed. There are none.
    #[must_use]
    pub fn broken_laws(&self) -> Vec<String> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
