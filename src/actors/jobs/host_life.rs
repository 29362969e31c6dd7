//! The life of this host, as runners of its jobs and other hosts see it.
//!
//! Owns: the host's lock, how long its jobs wait to be adopted when it is gone, how many it has adopted. May not know: jobs,
//! the store.
//!
//! It belongs to the system and outlives every actor. A host whose jobs do not wait holds no lock and adopts none: what it
//! leaves ends or goes on by its mode, as its runners see by their pipes.
//!
//! The lock of this table is private to this file and never held over an await.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fd::{AsFd, OwnedFd};

use crate::base::descriptors::PassedPipe;
use crate::base::ids::HostId;
use crate::base::state_dir::StateDir;
use crate::jobs::host_lock::HostLock;

/// The life of this host. Cheap to clone.
#[derive(Clone)]
pub struct HostLife(Arc<Life>);

/// Which jobs of hosts that are gone a host adopts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopts {
    /// Those it finds.
    WhatIsLeft,
    /// Those its own callers ask for again.
    WhatIsAsked,
}

struct Life {
    dir: StateDir,
    host: HostId,
    grace: Duration,
    adopts: Adopts,
    lock: Mutex<LockState>,
    adopted: AtomicU64,
}

/// Where its lock stands.
enum LockState {
    /// It has had no job yet.
    NotYet,
    /// It has it.
    Held(HostLock),
    /// It has ended in order.
    Over,
}

impl HostLife {
    /// Of this host, whose jobs wait so long to be adopted; zero when they do not. Nothing is touched.
    #[must_use]
    pub fn new(dir: StateDir, host: HostId, grace: Duration) -> Self {
        Self::adopting(dir, host, grace, Adopts::WhatIsLeft)
    }

    /// The same, where it is said which jobs it adopts.
    #[must_use]
    pub fn adopting(dir: StateDir, host: HostId, grace: Duration, adopts: Adopts) -> Self {
        let lock = Mutex::new(LockState::NotYet);
        Self(Arc::new(Life { dir, host, grace, adopts, lock, adopted: AtomicU64::new(0) }))
    }

    /// Whether it looks for jobs of hosts that are gone, and adopts them.
    #[must_use]
    pub fn adopts_what_is_left(&self) -> bool {
        self.grace().is_some() && self.0.adopts == Adopts::WhatIsLeft
    }

    fn lock(&self) -> MutexGuard<'_, LockState> {
        // Nothing that can panic leaves it half changed.
        self.0.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This host.
    #[must_use]
    pub fn host(&self) -> HostId {
        self.0.host
    }

    /// How long its jobs wait to be adopted, and those it adopts for their callers; `None` when it has no part in that.
    #[must_use]
    pub fn grace(&self) -> Option<Duration> {
        Some(self.0.grace).filter(|grace| !grace.is_zero())
    }

    /// This host, for the row of a job, with its lock held from here on. `None` when its jobs are not to be adopted, or cannot be:
    /// then they depend on their pipes.
    pub fn hold(&self) -> Option<HostId> {
        self.grace()?;
        self.is_seen().then_some(self.0.host)
    }

    /// Whether others see that this host lives: its lock is held from here on, where it can be.
    pub fn is_seen(&self) -> bool {
        let mut held = self.lock();
        match &*held {
            LockState::Held(_) => true,
            LockState::Over => false,
            LockState::NotYet => match HostLock::take(&self.0.dir, self.0.host) {
                Ok(lock) => {
                    *held = LockState::Held(lock);
                    true
                }
                Err(error) => {
                    tracing::warn!(%error, "others cannot see that this host lives, nor adopt its jobs when it is gone");
                    false
                }
            },
        }
    }

    /// Ends in order: nothing is left of the lock, and nothing more is held.
    pub fn end(&self) {
        let held = std::mem::replace(&mut *self.lock(), LockState::Over);
        drop(held);
    }

    /// The lock, for the next image of this program.
    #[must_use]
    pub fn passed(&self) -> Option<PassedPipe> {
        match &*self.lock() {
            LockState::Held(lock) => PassedPipe::of(&lock.as_fd()).ok(),
            LockState::NotYet | LockState::Over => None,
        }
    }

    /// Takes in the lock another image passed on.
    pub fn inherit(&self, lock: OwnedFd) {
        match HostLock::passed_on(&self.0.dir, self.0.host, lock) {
            Some(lock) => *self.lock() = LockState::Held(lock),
            None => tracing::error!("the lock of this host was not passed on; it is taken anew"),
        }
    }

    /// One job more was adopted.
    pub fn count_adopted(&self) {
        self.0.adopted.fetch_add(1, Ordering::Relaxed);
    }

    /// Jobs this image has adopted.
    #[must_use]
    pub fn adopted(&self) -> u64 {
        self.0.adopted.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_lives_from_its_first_job_to_its_ordered_end_and_touches_nothing_before() {
        let scratch = tempfile::tempdir().expect("a directory");
        let dir = StateDir::at(scratch.path().join("state"));
        let life = |grace| HostLife::new(dir.clone(), HostId::random(), Duration::from_secs(grace));
        let apart = life(0);
        assert_eq!((apart.hold(), apart.grace()), (None, None));
        let life = life(30);
        assert!(!dir.root().exists() && life.passed().is_none());
        assert_eq!(life.hold(), Some(life.host()));
        assert_eq!(life.hold(), Some(life.host()), "once");
        assert!(life.passed().is_some() && HostLock::lives(&dir, life.host()));
        life.end();
        assert!(!HostLock::lives(&dir, life.host()));
        assert_eq!(life.hold(), None, "nobody may adopt what comes after");
        assert_eq!(std::fs::read_dir(dir.hosts()).expect("a directory").count(), 0);
    }
}
