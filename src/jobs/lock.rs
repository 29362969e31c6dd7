//! Locks: the evidence of who is alive.
//!
//! Owns: the exclusive locks on `jobs/ID/lock` (one runner per job) and `slots/N` (one permit per agent run). May not
//! know: the store, processes, what the holder does.
//!
//! Invariants: (1) a lock has at most one holder, in whatever process; (2) the kernel takes it back on any death, and no
//! agent inherits it, so that a held lock means a live holder; (3) the pid inside the file is for people who look, and
//! nothing is decided by it.
//!
//! The locks are `flock` locks, which belong to the open file: two in one process exclude each other as well, and closing
//! another descriptor of the same file does not release them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::base::ids::JobId;
use crate::base::state_dir::{StateDir, StateDirError, open_private};

/// How long taking a lock is tried before somebody else is believed to hold it.
///
/// [`JobLock::is_held`] has to take the lock for some microseconds to learn that it is free, and must not make a runner
/// that starts in that moment believe its job has another owner. A real holder costs the caller this wait, once.
const PROBE_TOLERANCE: Duration = Duration::from_millis(250);

/// A lock could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// The directory it lies in cannot be used.
    #[error("prepare a lock")]
    Directory(#[from] StateDirError),
    /// The system refused.
    #[error("lock {}: {reason}", path.display())]
    Io {
        /// The lock's file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
}

impl LockError {
    pub(crate) fn io(path: &Path, error: &io::Error) -> Self {
        Self::Io { path: path.to_owned(), reason: error.to_string() }
    }
}

/// The ownership of one job; given back when it is dropped or its process ends in any way.
#[derive(Debug)]
pub struct JobLock {
    job: JobId,
    held: HeldLock,
}

impl JobLock {
    /// Takes the ownership of a job, or says that somebody has it (`None`, after 250 ms).
    ///
    /// # Errors
    ///
    /// The lock's file or directory cannot be made or used.
    pub fn try_acquire(dir: &StateDir, job: JobId) -> Result<Option<Self>, LockError> {
        dir.create_job_dir(job)?;
        let held = HeldLock::try_take(&dir.job_lock(job), PROBE_TOLERANCE)?;
        Ok(held.map(|held| Self { job, held }))
    }

    /// Whether somebody, in this process or another, owns the job now. A job without a lock file has no owner.
    ///
    /// The answer may be old when it arrives. Whoever wants to act on a job without an owner takes the lock instead, and
    /// holds it while acting.
    ///
    /// # Errors
    ///
    /// The file is there and cannot be looked at.
    pub fn is_held(dir: &StateDir, job: JobId) -> Result<bool, LockError> {
        is_held_at(&dir.job_lock(job))
    }

    /// Blocks until nobody owns the job: at once when nobody does, and whatever ends its owner otherwise. Many may wait so
    /// for one owner, and keep nobody from owning it afterwards.
    ///
    /// # Errors
    ///
    /// The file is there and cannot be looked at.
    pub fn wait_until_free(dir: &StateDir, job: JobId) -> Result<(), LockError> {
        wait_until_free_at(&dir.job_lock(job))
    }

    /// Gives the lock's file the present time: a sign of life, for an owner who takes long.
    pub fn touch(&self) {
        use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        // Who cannot write does not lose the job: nobody is ended on a disk that cannot be written.
        let _ = futimens(&self.held.file, &Timestamps { last_access: now, last_modification: now });
    }

    /// The job that is owned.
    #[must_use]
    pub const fn job(&self) -> JobId {
        self.job
    }
}

/// The file, to be looked at; `None` when there is none.
fn open_to_look(path: &Path) -> Result<Option<File>, LockError> {
    match OpenOptions::new().read(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LockError::io(path, &error)),
    }
}

/// Whether somebody holds the lock of this file for itself now; a file that is not there has no holder.
pub(crate) fn is_held_at(path: &Path) -> Result<bool, LockError> {
    let Some(file) = open_to_look(path)? else { return Ok(false) };
    // Shared, so that two who only look do not take each other for an owner.
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(LockError::io(path, &error.into())),
    }
}

/// Blocks until nobody holds the lock of this file for itself; a file that is not there has no holder.
pub(crate) fn wait_until_free_at(path: &Path) -> Result<(), LockError> {
    let Some(file) = open_to_look(path)? else { return Ok(()) };
    loop {
        match flock(&file, FlockOperation::LockShared) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(LockError::io(path, &error.into())),
        }
    }
}

/// A permit to run one agent; given back when it is dropped or its process ends in any way.
#[derive(Debug)]
pub struct RunPermit {
    number: usize,
    _held: HeldLock,
}

impl RunPermit {
    /// Takes any free one of the first `limit` permits; `None` when all are taken.
    ///
    /// # Errors
    ///
    /// A lock's file cannot be made or used.
    pub fn try_acquire_any(dir: &StateDir, limit: usize) -> Result<Option<Self>, LockError> {
        if !dir.slots().is_dir() {
            dir.create()?;
        }
        for number in 0..limit {
            if let Some(held) = HeldLock::try_take(&dir.slot_lock(number), Duration::ZERO)? {
                return Ok(Some(Self { number, _held: held }));
            }
        }
        Ok(None)
    }

    /// The permit's number, from 0.
    #[must_use]
    pub const fn number(&self) -> usize {
        self.number
    }
}

/// The lock on a file; given back when it is dropped or its process ends in any way.
#[derive(Debug)]
pub(crate) struct HeldLock {
    file: File,
}

impl HeldLock {
    /// The lock an earlier image of this program took, by the descriptor it passed on. `None` where another file is at the
    /// path by now: that is held by nobody of ours.
    pub(crate) fn passed_on(path: &Path, file: File) -> Option<Self> {
        is_still_at(path, &file).then_some(Self { file })
    }

    /// Takes the lock for itself within `patience`, or says that somebody has it.
    pub(crate) fn try_take(path: &Path, patience: Duration) -> Result<Option<Self>, LockError> {
        let held = Self::lock(path, FlockOperation::NonBlockingLockExclusive, patience)?;
        if let Some(Self { file }) = &held {
            let mut file: &File = file;
            // Information for people; a full disk must not keep a job from being owned.
            let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        }
        Ok(held)
    }

    /// Takes the lock together with others that share it within `patience`, or says that somebody has it for itself.
    pub(crate) fn try_share(path: &Path, patience: Duration) -> Result<Option<Self>, LockError> {
        Self::lock(path, FlockOperation::NonBlockingLockShared, patience)
    }

    fn lock(path: &Path, operation: FlockOperation, patience: Duration) -> Result<Option<Self>, LockError> {
        let until = Instant::now() + patience;
        loop {
            let file = open_private(path).map_err(|error| LockError::io(path, &error))?;
            match flock(&file, operation) {
                // The file may have been removed, and made anew by somebody else, between opening and locking it.
                Ok(()) if is_still_at(path, &file) => return Ok(Some(Self { file })),
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) if Instant::now() >= until => return Ok(None),
                Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(1)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(LockError::io(path, &error.into())),
            }
        }
    }
}

impl AsFd for HeldLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn is_still_at(path: &Path, file: &File) -> bool {
    match (std::fs::metadata(path), file.metadata()) {
        (Ok(there), Ok(ours)) => (there.dev(), there.ino()) == (ours.dev(), ours.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn state() -> (tempfile::TempDir, StateDir) {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        (scratch, dir)
    }

    /// A program being started by another test holds a copy of every descriptor until it has replaced itself.
    fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < until, "never: {what}");
            std::thread::yield_now();
        }
    }

    fn assert_becomes_free(dir: &StateDir, job: JobId) {
        eventually("the job has no owner", || (JobLock::is_held(dir, job) == Ok(false)).then_some(()));
    }

    #[test]
    fn a_job_has_one_owner_until_it_is_dropped() {
        let (_scratch, dir) = state();
        let job = JobId::random();
        assert_eq!(JobLock::is_held(&dir, job), Ok(false), "nobody ever took it");
        assert!(!dir.job_dir(job).exists(), "looking leaves no trace");
        let lock = JobLock::try_acquire(&dir, job).expect("usable").expect("free");
        assert_eq!(lock.job(), job);
        assert!(JobLock::try_acquire(&dir, job).expect("usable").is_none());
        assert_eq!(JobLock::is_held(&dir, job), Ok(true));
        assert_eq!(JobLock::is_held(&dir, job), Ok(true), "looking does not take it away");
        drop(lock);
        assert_becomes_free(&dir, job);
        assert!(JobLock::try_acquire(&dir, job).expect("usable").is_some());
    }

    #[test]
    fn the_lock_file_is_private_and_names_its_holder() {
        let (_scratch, dir) = state();
        let job = JobId::random();
        let _lock = JobLock::try_acquire(&dir, job).expect("usable").expect("free");
        let path = dir.job_lock(job);
        assert_eq!(path.metadata().expect("there").mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(path).expect("readable"), format!("{}\n", std::process::id()));
    }

    #[test]
    fn a_removed_lock_file_does_not_give_a_job_two_owners_of_the_new_one() {
        let (_scratch, dir) = state();
        let job = JobId::random();
        let old = JobLock::try_acquire(&dir, job).expect("usable").expect("free");
        dir.remove_job_dir(job).expect("removed");
        let new = JobLock::try_acquire(&dir, job).expect("usable").expect("a new file is free");
        assert!(JobLock::try_acquire(&dir, job).expect("usable").is_none());
        drop(old);
        assert_eq!(JobLock::is_held(&dir, job), Ok(true));
        drop(new);
    }

    #[test]
    fn onlookers_never_make_a_free_job_look_owned() {
        let (_scratch, dir) = state();
        let job = JobId::random();
        drop(JobLock::try_acquire(&dir, job).expect("usable").expect("free"));
        let stop = std::sync::atomic::AtomicBool::new(false);
        let owned = std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let _ = JobLock::is_held(&dir, job);
                        std::thread::yield_now();
                    }
                });
            }
            // Asserted when the onlookers have gone: they would look on for ever past a panic.
            let owned = (0..200).filter(|_| matches!(JobLock::try_acquire(&dir, job), Ok(Some(_)))).count();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            owned
        });
        assert_eq!(owned, 200);
    }

    #[test]
    fn no_more_permits_than_the_limit_are_given() {
        let (_scratch, dir) = state();
        let mut held: Vec<_> =
            (0..3).map(|_| RunPermit::try_acquire_any(&dir, 3).expect("usable").expect("free")).collect();
        assert_eq!(held.iter().map(RunPermit::number).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(RunPermit::try_acquire_any(&dir, 3).expect("usable").is_none());
        held.remove(1);
        let again = eventually("a permit is free", || RunPermit::try_acquire_any(&dir, 3).expect("usable"));
        assert_eq!(again.number(), 1);
        assert!(RunPermit::try_acquire_any(&dir, 0).expect("usable").is_none());
    }

    const CHILD: &str = "PHONE_OPUS_TEST_LOCK_CHILD";

    /// The other process of the test below: takes the lock, says so, and waits to be killed.
    #[test]
    fn child_that_holds_a_lock() {
        let Some(argument) = std::env::var_os(CHILD) else { return };
        let text = argument.to_str().expect("text");
        let (root, job) = text.rsplit_once('|').expect("two parts");
        let lock = JobLock::try_acquire(&StateDir::at(root), job.parse().expect("an id")).expect("usable");
        println!("\nheld={}", lock.is_some());
        let _ = io::stdin().lines().next();
    }

    fn child_holding(dir: &StateDir, job: JobId) -> Child {
        let mut child = Command::new(std::env::current_exe().expect("our own path"))
            .args(["--exact", "jobs::lock::tests::child_that_holds_a_lock", "--nocapture", "--test-threads=1"])
            .env(CHILD, format!("{}|{job}", dir.root().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test binary starts");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let said = output.lines().map_while(Result::ok).find(|line| line.starts_with("held="));
        assert_eq!(said.as_deref(), Some("held=true"));
        child
    }

    #[test]
    fn another_process_excludes_us_and_its_death_frees_the_job() {
        let (_scratch, dir) = state();
        let job = JobId::random();
        let mut child = child_holding(&dir, job);
        assert_eq!(JobLock::is_held(&dir, job), Ok(true));
        assert!(JobLock::try_acquire(&dir, job).expect("usable").is_none());
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert_becomes_free(&dir, job);
        assert!(JobLock::try_acquire(&dir, job).expect("usable").is_some());
    }

    #[test]
    fn a_started_program_does_not_inherit_the_lock() {
        let (_scratch, dir) = state();
        let job = JobId::random();
        let lock = JobLock::try_acquire(&dir, job).expect("usable").expect("free");
        let mut agent = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat starts");
        drop(lock);
        assert_becomes_free(&dir, job);
        assert_eq!(agent.try_wait().expect("ours"), None, "and the agent is still alive");
        agent.kill().expect("killed");
        agent.wait().expect("reaped");
    }
}
