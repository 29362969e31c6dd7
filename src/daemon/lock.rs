//! The two locks of a daemon.
//!
//! Owns: `daemon.lock`, which is the daemon's life, and `start.lock`, which keeps fifty clients that find no daemon from
//! starting fifty. May not know: what the holder does. Both are the kernel's: it takes them back on any death.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::base::state_dir::StateDir;
use crate::jobs::lock::{HeldLock, LockError, is_held_at};

/// Whoever looks whether a daemon lives shares its lock for some microseconds. A daemon that starts in that moment tries
/// again; a living one costs it this wait, once.
const LOOKED_AT: Duration = Duration::from_millis(250);

/// The life of a state directory's daemon; given back when it is dropped or its process ends in any way.
#[derive(Debug)]
pub struct DaemonLock {
    held: HeldLock,
}

impl DaemonLock {
    /// Takes it, or says that a daemon lives (`None`, after 250 ms).
    ///
    /// # Errors
    ///
    /// The directory or the lock's file cannot be made or used.
    pub fn try_acquire(dir: &StateDir) -> Result<Option<Self>, LockError> {
        dir.create()?;
        let held = HeldLock::try_take(&dir.daemon_lock(), LOOKED_AT)?;
        Ok(held.map(|held| Self { held }))
    }

    /// The lock an earlier image of this daemon took, by the descriptor it passed on. `None` where that is not the lock's file.
    #[must_use]
    pub fn passed_on(dir: &StateDir, descriptor: OwnedFd) -> Option<Self> {
        HeldLock::passed_on(&dir.daemon_lock(), File::from(descriptor)).map(|held| Self { held })
    }

    /// Whether a daemon of this directory lives, in this process or another. Makes nothing: where there is no file there is
    /// no daemon.
    ///
    /// # Errors
    ///
    /// The file is there and cannot be looked at.
    pub fn is_held(dir: &StateDir) -> Result<bool, LockError> {
        is_held_at(&dir.daemon_lock())
    }
}

impl AsFd for DaemonLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.held.as_fd()
    }
}

/// The right to start a daemon; given back when it is dropped or its process ends in any way.
#[derive(Debug)]
pub struct StartLock {
    _held: HeldLock,
}

impl StartLock {
    /// Waits for it, and says `None` when somebody else has been starting one all the while. Blocks its thread.
    ///
    /// # Errors
    ///
    /// The directory or the lock's file cannot be made or used.
    pub fn acquire_within(dir: &StateDir, patience: Duration) -> Result<Option<Self>, LockError> {
        dir.create()?;
        let held = HeldLock::try_take(&dir.start_lock(), patience)?;
        Ok(held.map(|held| Self { _held: held }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the lock can be had again. A child that another test has forked shares it until it becomes its program.
    fn comes_free(dir: &StateDir) -> bool {
        HeldLock::try_take(&dir.daemon_lock(), Duration::from_secs(30)).expect("it can be tried").is_some()
    }

    #[test]
    fn a_directory_has_one_daemon_and_looking_for_it_makes_nothing() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        assert!(!DaemonLock::is_held(&dir).expect("it can be looked for"));
        assert!(!dir.root().exists(), "looking made something");
        let held = DaemonLock::try_acquire(&dir).expect("it can be taken").expect("nobody has it");
        assert!(DaemonLock::is_held(&dir).expect("it can be looked at"));
        assert!(DaemonLock::try_acquire(&dir).expect("it can be tried").is_none());
        drop(held);
        assert!(comes_free(&dir));
    }

    #[test]
    fn a_lock_that_was_passed_on_is_the_same_life() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        let held = DaemonLock::try_acquire(&dir).expect("it can be taken").expect("nobody has it");
        let passed = held.as_fd().try_clone_to_owned().expect("a descriptor");
        let again = DaemonLock::passed_on(&dir, passed).expect("it is the lock's file");
        drop(held);
        assert!(DaemonLock::is_held(&dir).expect("it can be looked at"), "it was given back in between");
        drop(again);
        assert!(comes_free(&dir));
        let other = File::open(scratch.path()).expect("a directory");
        assert!(DaemonLock::passed_on(&dir, other.into()).is_none());
    }

    #[test]
    fn who_starts_a_daemon_does_it_alone() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path());
        let first = StartLock::acquire_within(&dir, Duration::ZERO).expect("it can be taken").expect("nobody has it");
        let waiting = std::thread::spawn({
            let dir = dir.clone();
            move || StartLock::acquire_within(&dir, Duration::from_secs(30)).expect("it can be waited for").is_some()
        });
        assert!(StartLock::acquire_within(&dir, Duration::ZERO).expect("it can be tried").is_none());
        drop(first);
        assert!(waiting.join().expect("no panic"), "the next one starts when the first is done");
    }
}
