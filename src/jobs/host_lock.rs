//! The lock of a host: the evidence that it lives, for the runners of its jobs and for whoever would adopt them.
//!
//! Owns: the file `hosts/ID/lock`, who holds it, what dead hosts left. May not know: jobs, the store, how long a host may be
//! gone.
//!
//! Invariants: (1) a held lock means a live host, whichever image of it: the descriptor goes through an upgrade in place, and
//! no child inherits it; (2) a host that ends in order leaves nothing, what another one leaves is removed by whoever looks for
//! it; (3) a lock that cannot be looked at counts as held: waiting is safe.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::lock::{HeldLock, LockError, is_held_at, wait_until_free_at};
use crate::base::ids::HostId;
use crate::base::state_dir::StateDir;

/// How long a daemon's jobs wait to be adopted when it is gone: whoever starts the next one needs seconds, and an agent nobody
/// hears should not work on for longer.
pub const ORPHAN_GRACE: Duration = Duration::from_secs(30);

/// Who looks for what dead hosts left shares a lock for some microseconds; nobody else has the name.
const LOOKED_AT: Duration = Duration::from_millis(250);

/// How often a directory is made anew that was removed, as one that a dead host left, before its lock was taken.
const TRIES: u32 = 64;

/// The life of a host; given back when it is dropped or its process ends in any way.
#[derive(Debug)]
pub struct HostLock {
    dir: StateDir,
    host: HostId,
    held: HeldLock,
}

impl HostLock {
    /// Takes it.
    ///
    /// # Errors
    ///
    /// Its file or directory cannot be made or used.
    pub fn take(dir: &StateDir, host: HostId) -> Result<Self, LockError> {
        let path = dir.host_lock(host);
        let mut tries = 0;
        let held = loop {
            let made = dir.create_host_dir(host).map_err(LockError::from);
            match made.and_then(|()| HeldLock::try_take(&path, LOOKED_AT)) {
                Ok(held) => break held,
                Err(error) if tries == TRIES || path.exists() => return Err(error),
                Err(_) => tries += 1,
            }
        };
        let held = held.ok_or_else(|| LockError::io(&path, &io::ErrorKind::WouldBlock.into()))?;
        Ok(Self { dir: dir.clone(), host, held })
    }

    /// The lock an earlier image of this host took, by the descriptor it passed on. `None` where that is not the lock's file.
    #[must_use]
    pub fn passed_on(dir: &StateDir, host: HostId, descriptor: OwnedFd) -> Option<Self> {
        let held = HeldLock::passed_on(&dir.host_lock(host), File::from(descriptor))?;
        Some(Self { dir: dir.clone(), host, held })
    }

    /// Whether a host lives, in this process or another. Makes nothing.
    #[must_use]
    pub fn lives(dir: &StateDir, host: HostId) -> bool {
        is_held_at(&dir.host_lock(host)).unwrap_or(true)
    }

    /// Blocks until a host is gone: at once when it is, and whatever ends it otherwise.
    ///
    /// # Errors
    ///
    /// Its lock is there and cannot be looked at.
    pub fn wait_until_gone(dir: &StateDir, host: HostId) -> Result<(), LockError> {
        wait_until_free_at(&dir.host_lock(host))
    }
}

impl AsFd for HostLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.held.as_fd()
    }
}

impl Drop for HostLock {
    fn drop(&mut self) {
        // Held until after this, so that nobody takes what is being removed for a live one's.
        let _ = fs::remove_file(self.dir.host_lock(self.host));
        let _ = fs::remove_dir(self.dir.hosts().join(self.host.to_string()));
    }
}

/// Removes the locks of hosts that are gone; a job may name one of them: a lock that is not there is as free. How many.
pub fn clear_hosts(dir: &StateDir) -> usize {
    let Ok(entries) = fs::read_dir(dir.hosts()) else { return 0 };
    let mut removed = 0;
    for entry in entries.flatten() {
        let Some(host) = entry.file_name().to_str().and_then(|name| name.parse::<HostId>().ok()) else { continue };
        let path = dir.host_lock(host);
        if path.exists() {
            // Taken for the moment of the removal; a holder keeps it from us.
            let Ok(Some(_looked)) = HeldLock::try_share(&path, Duration::ZERO) else { continue };
            let _ = fs::remove_file(&path);
        }
        // One that is being made at this moment has its file by now, or makes its directory again.
        removed += usize::from(fs::remove_dir(entry.path()).is_ok());
    }
    removed
}

/// How many of those there are. Changes nothing.
#[must_use]
pub fn dead_hosts(dir: &StateDir) -> usize {
    let entries = fs::read_dir(dir.hosts()).into_iter().flatten().flatten();
    let hosts = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<HostId>().ok());
    hosts.filter(|host| !HostLock::lives(dir, *host)).count()
}

/// Whether hosts live, each looked at once.
#[derive(Debug)]
pub struct LivingHosts<'a> {
    dir: &'a StateDir,
    alive: HashSet<HostId>,
    gone: HashSet<HostId>,
}

impl<'a> LivingHosts<'a> {
    /// As it is from now on.
    #[must_use]
    pub fn new(dir: &'a StateDir) -> Self {
        Self { dir, alive: HashSet::new(), gone: HashSet::new() }
    }

    /// Whether this one lives.
    pub fn lives(&mut self, host: HostId) -> bool {
        if !self.alive.contains(&host) && !self.gone.contains(&host) {
            let seen = if HostLock::lives(self.dir, host) { &mut self.alive } else { &mut self.gone };
            seen.insert(host);
        }
        self.alive.contains(&host)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn state() -> (tempfile::TempDir, StateDir) {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        (scratch, dir)
    }

    #[test]
    fn a_host_lives_as_long_as_it_holds_its_lock_and_leaves_nothing() {
        let (_scratch, dir) = state();
        let host = HostId::random();
        assert!(!HostLock::lives(&dir, host));
        assert!(!dir.root().exists(), "looking made something");
        let lock = HostLock::take(&dir, host).expect("taken");
        let place = dir.hosts().join(host.to_string());
        for (path, mode) in [(dir.hosts(), 0o700), (place.clone(), 0o700), (dir.host_lock(host), 0o600)] {
            assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, mode, "{path:?}");
        }
        assert!(HostLock::lives(&dir, host));
        let flags = rustix::io::fcntl_getfd(&lock).expect("a descriptor");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "a child would inherit it");
        assert!(LivingHosts::new(&dir).lives(host) && !LivingHosts::new(&dir).lives(HostId::random()));
        HostLock::take(&dir, host).expect_err("somebody has it");
        drop(lock);
        assert!(!HostLock::lives(&dir, host) && !place.exists());
        HostLock::wait_until_gone(&dir, host).expect("at once");
    }

    #[test]
    fn what_dead_hosts_left_is_removed_and_what_lives_stays() {
        let (_scratch, dir) = state();
        let (living, dead, bare) = (HostId::random(), HostId::random(), HostId::random());
        let lock = HostLock::take(&dir, living).expect("taken");
        dir.create_host_dir(dead).expect("made");
        fs::write(dir.host_lock(dead), "1\n").expect("written");
        dir.create_host_dir(bare).expect("made");
        fs::write(dir.hosts().join("not a host"), "").expect("written");
        assert_eq!(dead_hosts(&dir), 2);
        assert_eq!(clear_hosts(&dir), 2);
        assert!(HostLock::lives(&dir, living) && dir.host_lock(living).exists());
        assert!(dir.hosts().join("not a host").exists(), "what is not known is left alone");
        drop(lock);
        assert_eq!(clear_hosts(&dir), 0);
    }

    #[test]
    fn a_lock_that_is_taken_while_others_clear_is_held_all_the_same() {
        let (_scratch, dir) = state();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let held = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    clear_hosts(&dir);
                }
            });
            let take = |host| HostLock::take(&dir, host).is_ok_and(|_lock| HostLock::lives(&dir, host));
            let held = (0..200).filter(|_| take(HostId::random())).count();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            held
        });
        assert_eq!(held, 200);
    }

    #[test]
    fn the_next_image_holds_the_lock_it_was_passed_and_no_other_file() {
        let (_scratch, dir) = state();
        let host = HostId::random();
        let lock = HostLock::take(&dir, host).expect("taken");
        let passed = lock.as_fd().try_clone_to_owned().expect("a descriptor");
        // An `exec` runs no destructor.
        std::mem::forget(lock);
        let lock = HostLock::passed_on(&dir, host, passed).expect("it is the lock");
        assert!(HostLock::lives(&dir, host));
        let other = OwnedFd::from(File::open(dir.root()).expect("a directory"));
        assert!(HostLock::passed_on(&dir, host, other).is_none());
        drop(lock);
    }
}
