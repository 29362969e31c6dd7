//! The evidence that somebody looks after a job, and the bell of who waits with it.
//!
//! Owns: the lock a waiting process holds (`waiting/ID`), its bell (`waiting/ID.bell`, a FIFO), and what counts as alive.
//! May not know: what a plan is made of, the store.
//!
//! Invariants: (1) one lock stands for all jobs of a waiting process, so that a look at a long queue asks for few locks; (2)
//! ringing never waits, and a bell nobody listens to is no error; (3) what a dead waiting process left is removed by the next.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;

use super::JobState;
use super::admission::{Contender, QueueRow};
use super::lock::{HeldLock, JobLock, LockError, is_held_at};
use crate::base::ids::{JobId, UnixMillis, WaiterId};
use crate::base::state_dir::StateDir;

/// How long an accepted job may be without anybody: its host is about to start its runner, or to hand it in. A host that can do
/// neither for the moment gives a sign more often than that.
pub const STARTING: Duration = Duration::from_secs(10);

/// What follows a waiting process's name in that of its bell.
const BELL: &str = ".bell";

/// The lock of a waiting process, and its name.
#[derive(Debug)]
pub struct WaiterLock {
    dir: StateDir,
    id: WaiterId,
    _held: HeldLock,
}

impl WaiterLock {
    /// Takes a new one, with a bell beside it, and removes what dead ones left. A file system without FIFOs has no bell
    /// (`false`).
    ///
    /// # Errors
    ///
    /// The directory or the lock cannot be made.
    pub fn take(dir: &StateDir) -> Result<(Self, bool), LockError> {
        dir.create_waiting()?;
        clear_waiters(dir);
        let id = WaiterId::random();
        let path = dir.waiter_lock(id);
        let held = HeldLock::try_take(&path, Duration::from_secs(1))?;
        let held = held.ok_or_else(|| LockError::io(&path, &io::ErrorKind::WouldBlock.into()))?;
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let bell = make_fifo(&dir.waiter_bell(id), mode).is_ok();
        Ok((Self { dir: dir.clone(), id, _held: held }, bell))
    }

    /// Its name.
    #[must_use]
    pub const fn id(&self) -> WaiterId {
        self.id
    }
}

impl Drop for WaiterLock {
    fn drop(&mut self) {
        // Held until after this, so that nobody takes a name that is being removed for a live one.
        let _ = fs::remove_file(self.dir.waiter_bell(self.id));
        let _ = fs::remove_file(self.dir.waiter_lock(self.id));
    }
}

#[cfg(target_os = "linux")]
fn make_fifo(path: &Path, mode: rustix::fs::Mode) -> rustix::io::Result<()> {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)
}

#[cfg(not(target_os = "linux"))]
fn make_fifo(path: &Path, mode: rustix::fs::Mode) -> rustix::io::Result<()> {
    rustix::fs::mkfifoat(rustix::fs::CWD, path, mode)
}

/// Removes locks and bells whose holder is gone.
pub fn clear_waiters(dir: &StateDir) {
    let Ok(entries) = fs::read_dir(dir.waiting()) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_bell = path.extension().is_some();
        let lock = path.with_extension("");
        if is_bell && lock.exists() {
            continue;
        }
        // Taken for the moment of the removal; a holder keeps it from us.
        let free = is_bell || matches!(HeldLock::try_share(&lock, Duration::ZERO), Ok(Some(_)));
        if free {
            let _ = fs::remove_file(path.with_extension(&BELL[1..]));
            let _ = fs::remove_file(&lock);
        }
    }
}

/// How many locks there are whose holder is gone. Changes nothing.
#[must_use]
pub fn dead_waiters(dir: &StateDir) -> usize {
    let entries = fs::read_dir(dir.waiting()).into_iter().flatten().flatten();
    let locks = entries.map(|entry| entry.path()).filter(|path| path.extension().is_none());
    locks.filter(|lock| is_held_at(lock).is_ok_and(|held| !held)).count()
}

/// Wakes one waiting process.
pub fn ring(dir: &StateDir, waiter: WaiterId) {
    strike(&dir.waiter_bell(waiter));
}

/// Wakes every waiting process of the directory: something ended that nobody of them is blocked on.
pub fn ring_all(dir: &StateDir) {
    let Ok(entries) = fs::read_dir(dir.waiting()) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_some() {
            strike(&path);
        }
    }
}

fn strike(bell: &Path) {
    // Without a reader it cannot be opened, and a full one has been rung.
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits()).unwrap_or(0);
    if let Ok(mut bell) = OpenOptions::new().write(true).custom_flags(flags).open(bell) {
        let _ = bell.write(&[1]);
    }
}

/// Whether somebody looks after jobs, looked at once for each waiting process.
#[derive(Debug)]
pub struct JobEvidence<'a> {
    dir: &'a StateDir,
    now: UnixMillis,
    waiters: HashMap<WaiterId, bool>,
}

impl<'a> JobEvidence<'a> {
    /// As it is from now on.
    #[must_use]
    pub fn new(dir: &'a StateDir) -> Self {
        Self { dir, now: UnixMillis::now(), waiters: HashMap::new() }
    }

    /// Whether a queued job was accepted so recently that its host may still be about to look after it, or its host has
    /// given a sign lately that it is and cannot: it has nothing to start a runner with.
    #[must_use]
    pub fn is_fresh(&self, job: JobId, accepted_at: UnixMillis) -> bool {
        let starting = u64::try_from(STARTING.as_millis()).unwrap_or(u64::MAX);
        // A sign from a time to come is of a clock that was set since, and says nothing.
        let lately = |at: UnixMillis| self.now.since(at).max(at.since(self.now)) < starting;
        self.now.since(accepted_at) < starting || self.dir.job_dir_touched(job).is_some_and(lately)
    }

    /// Whether a waiting process lives. What cannot be looked at counts as alive: waiting is safe.
    pub fn waits(&mut self, waiter: Option<WaiterId>) -> bool {
        let Some(waiter) = waiter else { return false };
        let dir = self.dir;
        *self.waiters.entry(waiter).or_insert_with(|| is_held_at(&dir.waiter_lock(waiter)).unwrap_or(true))
    }

    /// Whether a job that is not over is looked after.
    pub fn is_alive(&mut self, row: &QueueRow) -> bool {
        let owned = |dir| JobLock::is_held(dir, row.job).unwrap_or(true);
        match row.state {
            JobState::Queued => self.waits(row.waiter) || self.is_fresh(row.job, row.accepted_at) || owned(self.dir),
            _ => owned(self.dir),
        }
    }

    /// Rows with their evidence, for a plan.
    #[must_use]
    pub fn contenders(mut self, rows: Vec<QueueRow>) -> Vec<Contender> {
        rows.into_iter()
            .map(|row| {
                let alive = self.is_alive(&row);
                Contender { row, alive }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

    use super::*;
    use crate::jobs::JobMode;

    #[test]
    fn a_bell_is_private_rings_its_listener_only_and_goes_with_its_lock() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        let (one, has_bell) = WaiterLock::take(&dir).expect("taken");
        assert!(has_bell);
        let bell = dir.waiter_bell(one.id());
        let found = fs::metadata(&bell).expect("there");
        assert!(found.file_type().is_fifo());
        assert_eq!(found.mode() & 0o777, 0o600);
        // Nobody listens: nothing waits.
        ring(&dir, one.id());
        ring_all(&dir);
        assert!(JobEvidence::new(&dir).waits(Some(one.id())));
        let (other, _) = WaiterLock::take(&dir).expect("taken");
        assert!(bell.exists(), "what lives is left alone by the next");
        drop(other);
        let id = one.id();
        drop(one);
        assert!(!bell.exists() && !dir.waiter_lock(id).exists());
        assert!(!JobEvidence::new(&dir).waits(Some(id)));
    }

    #[test]
    fn a_job_in_want_of_a_runner_is_looked_after_as_long_as_its_host_says_so() {
        use std::time::SystemTime;
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        let (now, long) = (SystemTime::now(), Duration::from_secs(3600));
        let ago = |seconds: u64| now - Duration::from_secs(seconds);
        let later = now + long;
        // How long ago it was accepted; when the last sign was given, if any.
        let table = [
            ("just accepted", 1, None, true),
            ("accepted a while ago, and not a word", 11, None, false),
            ("a sign since", 3600, Some(ago(3)), true),
            ("no sign any more", 3600, Some(ago(11)), false),
            ("a sign from before it was accepted says nothing against it", 1, Some(ago(3600)), true),
            ("a sign of a clock that was wrong", 3600, Some(later), false),
        ];
        for (what, accepted, sign, looked_after) in table {
            let job = JobId::random();
            dir.touch_job_dir(job);
            match sign {
                Some(at) => {
                    let opened = fs::File::open(dir.job_dir(job)).expect("a directory");
                    opened.set_modified(at).expect("set");
                }
                None => dir.remove_job_dir(job).expect("removed"),
            }
            let row = QueueRow {
                job,
                sequence: 1,
                workspace: "/work".into(),
                session: None,
                state: JobState::Queued,
                mode: JobMode::Sync,
                accepted_at: UnixMillis::at(ago(accepted)),
                turn: 1,
                workspace_served: 0,
                cancel_requested: None,
                waiter: None,
                environment: None,
                host: None,
            };
            assert_eq!(JobEvidence::new(&dir).is_alive(&row), looked_after, "{what}");
        }
        let job = JobId::random();
        dir.touch_job_dir(job);
        assert!(JobEvidence::new(&dir).is_fresh(job, UnixMillis::at(ago(3600))), "a sign that was just given");
        assert_eq!(fs::metadata(dir.job_dir(job)).expect("made for it").mode() & 0o777, 0o700);
    }

    #[test]
    fn what_a_dead_one_left_is_removed_by_the_next() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        dir.create_waiting().expect("made");
        let dead = WaiterId::random();
        fs::write(dir.waiter_lock(dead), "1\n").expect("written");
        fs::write(dir.waiter_bell(dead), "").expect("written");
        let alone = WaiterId::random();
        fs::write(dir.waiter_bell(alone), "").expect("written");
        let (held, _) = WaiterLock::take(&dir).expect("taken");
        let left = fs::read_dir(dir.waiting()).expect("listed").count();
        assert_eq!(left, 2, "the lock and the bell of the one that lives");
        drop(held);
    }
}
