//! How others reach rollouts: sessions that have handled something, the embedding program, health, whoever hands over.
//!
//! Owns: when the next look is due, what health shows, the way to hand over. It belongs to the system and outlives every
//! incarnation of the actor.
//!
//! Invariants: (1) what a session does for each read is one load and one comparison; (2) the lock is held for a copy,
//! never across anything that waits.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::RolloutMsg;
use crate::actors::clock;
use crate::actors::current::Current;
use crate::rollout::{Carried, HandOver, NotAdopted, RolloutSetup, Status, Trigger};

/// No look is ever due.
const NEVER: u64 = u64::MAX;

/// Reaches rollouts. Cheap to clone.
#[derive(Clone)]
pub struct RolloutHandle {
    actor: Current<RolloutMsg>,
    shared: Arc<Shared>,
}

struct Shared {
    /// What `due` is counted from.
    began: Instant,
    /// The second from which on a look is due.
    due: AtomicU64,
    every: Duration,
    board: Mutex<Board>,
    moved: Notify,
}

struct Board {
    status: Status,
    hand_over: Option<Arc<dyn HandOver>>,
    /// Who began what is under way.
    by: Trigger,
}

impl fmt::Debug for RolloutHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RolloutHandle").field("status", &self.status()).finish_non_exhaustive()
    }
}

impl RolloutHandle {
    /// Before anything has happened.
    #[must_use]
    pub fn new(actor: Current<RolloutMsg>, setup: Option<&RolloutSetup>, status: Status) -> Self {
        let every = setup.map_or(Duration::MAX, |setup| setup.look_every);
        let board = Board { status, hand_over: None, by: Trigger::Watch };
        let shared = Shared {
            began: clock::now(),
            due: AtomicU64::new(NEVER),
            every,
            board: Mutex::new(board),
            moved: Notify::new(),
        };
        Self { actor, shared: Arc::new(shared) }
    }

    /// A session has handled what its client sent: the launch path is looked at, when that is due.
    #[inline]
    pub fn handled(&self, now: Instant) {
        let second = now.saturating_duration_since(self.shared.began).as_secs();
        if second >= self.shared.due.load(Ordering::Relaxed) {
            self.look(second);
        }
    }

    #[cold]
    fn look(&self, second: u64) {
        self.shared.due.store(second.saturating_add(self.shared.every.as_secs()), Ordering::Relaxed);
        // While there is nobody to look, there will be another request after the next 30 s.
        let _ = self.actor.cast(RolloutMsg::LookDue);
    }

    /// Asks for a rollout and waits for nothing. During one it is joined.
    pub fn ask(&self, by: Trigger) {
        let _ = self.actor.cast(RolloutMsg::Asked(by, None));
    }

    /// Asks for a rollout and waits until it has ended without one. Where it succeeds, nothing ever returns here.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the rollout under way.
    pub async fn reload(&self, by: Trigger) -> NotAdopted {
        let (told, ended) = oneshot::channel();
        if self.actor.cast(RolloutMsg::Asked(by, Some(told))).is_err() {
            return NotAdopted::Interrupted;
        }
        ended.await.unwrap_or(NotAdopted::Interrupted)
    }

    /// From now on a candidate that passed is handed over to in this way.
    pub fn hand_over_by(&self, how: Arc<dyn HandOver>) {
        self.board().hand_over = Some(how);
    }

    /// What health shows.
    #[must_use]
    pub fn status(&self) -> Status {
        self.board().status.clone()
    }

    /// Resolves when what health shows has changed since the last time; for one who waits.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn moved(&self) {
        self.shared.moved.notified().await;
    }

    /// What the image that takes over is told, by one that is handing over.
    #[must_use]
    pub fn carried(&self) -> Carried {
        let board = self.board();
        Carried {
            adopted: board.status.adopted + 1,
            from: env!("CARGO_PKG_VERSION").to_owned(),
            by: board.by.as_str().to_owned(),
        }
    }

    /// From now on looks are due, the first one after the usual time.
    pub(super) fn watch(&self) {
        let second = clock::now().saturating_duration_since(self.shared.began).as_secs();
        self.shared.due.store(second.saturating_add(self.shared.every.as_secs()), Ordering::Relaxed);
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.board().status);
        self.shared.moved.notify_one();
    }

    pub(super) fn began(&self, by: Trigger) {
        self.board().by = by;
    }

    pub(super) fn how(&self) -> Option<Arc<dyn HandOver>> {
        self.board().hand_over.clone()
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        // Nothing that can panic leaves it half changed.
        self.shared.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::actors::current::Naming;
    use crate::config::RolloutMode;
    use crate::rollout::{LOOK_EVERY, LaunchPath};

    #[test]
    fn a_look_is_due_with_the_first_request_after_each_thirty_seconds_and_never_where_nobody_watches() {
        let setup = RolloutSetup {
            keeper: None,
            launch: LaunchPath { path: PathBuf::from("/x/phone-opus"), stable: true },
            image: None,
            arguments: Vec::new(),
            here: PathBuf::from("/"),
            look_every: LOOK_EVERY,
            program: None,
            environment: None,
        };
        let naming = Naming::new();
        let status = Status::new(RolloutMode::Auto, Some(&setup.launch));
        let handle = RolloutHandle::new(naming.current(), Some(&setup), status);
        let due = || handle.shared.due.load(Ordering::Relaxed);
        let handled = |second: u64| handle.handled(handle.shared.began + Duration::from_secs(second));
        handled(1_000_000);
        assert_eq!(due(), NEVER, "nobody watches");
        handle.watch();
        assert_eq!(due(), 30);
        for (second, next) in [(0, 30), (29, 30), (30, 60), (31, 60), (59, 60), (4_000, 4_030), (4_029, 4_030)] {
            handled(second);
            assert_eq!(due(), next, "at {second} s");
        }
    }
}
