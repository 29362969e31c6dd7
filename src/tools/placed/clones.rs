//! Clones that jobs of other machines run in.
//!
//! Owns: the directories of clones in the state directory, who looks after each, how large one may become and how many are fetched at
//! a time, when one is removed. May not know: what git is asked (`fetch.rs`), the queue.
//!
//! ```text
//!  make ──▶ fetched ──▶ its job is accepted, and runs in it ──▶ over ──▶ remove
//!    └── refused, dropped ──▶ removed                            host gone ──▶ sweep, by any host of the state directory
//! ```
//!
//! Invariants: (1) a clone is 0700, below the state directory, and its host holds its lock until it is removed; (2) a clone whose lock
//! is free is removed as soon as its job is over or was never accepted, and not before; (3) what is fetched is bounded in time and in
//! bytes, and is refused whole when it is beyond.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::fetch::{CloneRefused, Fetch, NO_THREAD, checked, looked};
use crate::agents::Environment;
use crate::base::beside::beside;
use crate::base::fault::Fault;
use crate::base::ids::JobId;
use crate::base::state_dir::StateDir;
use crate::config::Config;
use crate::jobs::CloneOf;
use crate::jobs::lock::HeldLock;
use crate::jobs::store::{StoreError, StoreHandle};

/// Clones that are fetched at a time; others wait, within the time of their jobs. Each fills the disk as fast as the network does.
const FETCHES: usize = 2;

/// How often the size of a clone is looked at while it grows.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long the lock of a clone is tried; a sweep has it for as long as it asks the store.
const LOCK_TOLERANCE: Duration = Duration::from_secs(1);

/// How often a clone is tried to be removed, and how long after each other: git may write a last file when it is killed.
const REMOVALS: usize = 10;
const REMOVE_AGAIN: Duration = Duration::from_millis(50);

/// The clones of this host. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Clones {
    dir: StateDir,
    /// The addresses its user lets it fetch from.
    pub(super) patterns: Arc<[String]>,
    helpers: Arc<[String]>,
    most_bytes: u64,
    fetches: Arc<Semaphore>,
    held: Arc<Mutex<BTreeMap<JobId, HeldLock>>>,
}

impl Clones {
    pub(super) fn new(dir: StateDir, config: &Config) -> Self {
        Self {
            dir,
            patterns: config.fleet_clone.clone().into(),
            helpers: config.fleet_clone_credentials.clone().into(),
            most_bytes: u64::try_from(config.fleet_clone_mb).unwrap_or(u64::MAX).saturating_mul(1 << 20),
            fetches: Arc::new(Semaphore::new(FETCHES)),
            held: Arc::default(),
        }
    }

    /// The files of a job's clone, if there is one.
    pub(super) fn tree(&self, job: JobId) -> Option<PathBuf> {
        let tree = self.dir.clone_tree(job);
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&job);
        (held && tree.is_dir()).then_some(tree)
    }

    /// Fetches the commit that stands for a job's directory, within so much time. Its job may run in [`Clones::tree`] then.
    ///
    /// # Errors
    ///
    /// `workspace_unavailable`: why it is not to be had. Nothing of it is left.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time: git is killed with its process group, and what it wrote is removed.
    pub(super) async fn make(
        &self,
        job: JobId,
        asked: &CloneOf,
        environment: &Environment,
        within: Duration,
    ) -> Result<(), Fault> {
        let made = self.made(job, asked, environment, Instant::now() + within).await;
        made.map_err(|refused| refused.fault(asked))
    }

    async fn made(
        &self,
        job: JobId,
        asked: &CloneOf,
        environment: &Environment,
        until: Instant,
    ) -> Result<(), CloneRefused> {
        let wanted = checked(asked, &self.patterns)?;
        let turn = tokio::time::timeout_at(until, self.fetches.acquire()).await;
        let _turn = turn.map_err(|_| CloneRefused::Slow)?.map_err(|_| CloneRefused::Slow)?;
        let (dir, path) = (self.dir.clone(), self.dir.clone_lock(job));
        let begun = beside("clone", move || {
            let begin = || {
                let place = dir.create_clone_dir(job).map_err(|error| error.to_string())?;
                let lock = HeldLock::try_take(&path, LOCK_TOLERANCE).map_err(|error| error.to_string())?;
                Ok::<_, String>((place, lock))
            };
            // A sweep may have taken it for one that was left before its lock was taken.
            begin().or_else(|_| begin())
        });
        let begun = match begun {
            Some(begun) => begun.await,
            None => None,
        };
        let (place, lock) = match begun {
            Some(Ok((place, Some(lock)))) => (place, lock),
            Some(Ok((_, None))) => return Err(CloneRefused::Disk("another host has its place".to_owned())),
            Some(Err(error)) => return Err(CloneRefused::Disk(error)),
            None => return Err(CloneRefused::Disk(NO_THREAD.to_owned())),
        };
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(job, lock);
        let unfinished = Unfinished { clones: self, job, made: false };
        let fetch = Fetch { place: &place, environment, helpers: &self.helpers, until };
        tokio::select! {
            fetched = fetch.run(&wanted) => fetched?,
            refused = self.outgrown(&place) => return Err(refused),
        }
        if size_of(place).await.is_none_or(|bytes| bytes > self.most_bytes) {
            return Err(CloneRefused::TooLarge(self.most_bytes));
        }
        unfinished.done();
        Ok(())
    }

    /// Looks how large a clone is until it is too large.
    async fn outgrown(&self, place: &Path) -> CloneRefused {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if size_of(place.to_owned()).await.is_some_and(|bytes| bytes > self.most_bytes) {
                return CloneRefused::TooLarge(self.most_bytes);
            }
        }
    }

    /// Gives every lock back.
    pub(super) fn let_go(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Removes a job's clone, if it has one here.
    pub(super) async fn remove(&self, job: JobId) {
        if let Some(removing) = self.removing(job) {
            removing.await;
        }
    }

    fn removing(&self, job: JobId) -> Option<crate::base::beside::Beside<()>> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&job);
        let dir = self.dir.clones().join(job.to_string());
        if held.is_none() && !dir.exists() {
            return None;
        }
        beside("clone", move || remove(&dir, held))
    }

    /// Removes what nobody looks after and no job runs in: what hosts that are gone have left.
    pub(super) async fn sweep(&self, store: &StoreHandle) {
        let clones = self.dir.clones();
        // On a thread of its own: a disk that hangs holds up no session.
        let found = looked(move || {
            let found = fs::read_dir(clones).into_iter().flatten().flatten();
            found.filter_map(|entry| entry.file_name().to_str()?.parse::<JobId>().ok()).collect::<Vec<_>>()
        });
        for job in found.await.unwrap_or_default() {
            if self.held.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&job) {
                continue;
            }
            let path = self.dir.clone_lock(job);
            let lock = looked(move || HeldLock::try_take(&path, Duration::ZERO).ok().flatten()).await.flatten();
            let Some(lock) = lock else { continue };
            // Looked at under its lock: whoever makes one has accepted its job before the lock is given back.
            let runs_on = match store.job(job).await {
                Ok(record) => !record.state.is_terminal(),
                Err(StoreError::UnknownJob(_)) => false,
                Err(_) => true,
            };
            if runs_on {
                continue;
            }
            tracing::info!(%job, "a clone that a host has left is removed");
            let dir = self.dir.clones().join(job.to_string());
            if let Some(removing) = beside("clone", move || remove(&dir, Some(lock))) {
                removing.await;
            }
        }
    }
}

/// A clone that is being made, and is removed unless it is done.
struct Unfinished<'a> {
    clones: &'a Clones,
    job: JobId,
    made: bool,
}

impl Unfinished<'_> {
    fn done(mut self) {
        self.made = true;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.made {
            // On a thread of its own; where there is none, the next sweep does it.
            drop(self.clones.removing(self.job));
        }
    }
}

/// Removes a directory whose lock is held, and the lock last.
fn remove(dir: &Path, lock: Option<HeldLock>) {
    for removal in 1..=REMOVALS {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                if removal == REMOVALS {
                    tracing::warn!(%error, dir = %dir.display(), "a clone could not be removed; the next sweep tries it again");
                }
            }
            _ => break,
        }
        // What git writes read-only lies in directories that we may write to. An agent may have closed one.
        opened(dir);
        std::thread::sleep(REMOVE_AGAIN);
    }
    drop(lock);
}

/// Opens directories that somebody has closed to us.
fn opened(dir: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let Ok(found) = fs::symlink_metadata(dir) else { return };
    if !found.is_dir() {
        return;
    }
    let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        opened(&entry.path());
    }
}

/// Bytes on the disk below a directory; `None` when nobody could look.
async fn size_of(dir: PathBuf) -> Option<u64> {
    beside("clone", move || {
        let (mut bytes, mut rest) = (0_u64, vec![dir]);
        while let Some(dir) = rest.pop() {
            // What is gone by now counts no more.
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let Ok(found) = entry.metadata() else { continue };
                bytes = bytes.saturating_add(found.blocks().saturating_mul(512));
                if found.is_dir() {
                    rest.push(entry.path());
                }
            }
        }
        bytes
    })?
    .await
}
