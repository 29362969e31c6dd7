//! What a host says of itself to whoever looks: its sessions, its jobs and who waits for them.
//!
//! Owns: the file `hosts/ID.json`, which rows are of hosts that live. May not know: who collects what is in a row, what it is
//! looked at for. It is for people: nothing is decided by it.
//!
//! A host writes its row when something in it changes, and by no timer; one that never had a job has none. The file is locked by
//! its host, so that what a dead one left is known for it.
//!
//! Invariants: (1) a row holds no prompt, answer, directory or variable, and the names clients give themselves are not in it; (2) a
//! row is shown only while its host lives; (3) looking makes nothing.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::lock::{LockError, is_held_at};
use crate::base::ids::{HostId, JobId, SessionNumber, UnixMillis};
use crate::base::state_dir::{StateDir, open_private};
use crate::jobs::JobMode;

/// Bytes of a row that are read. A job takes some hundred, and a host attends to a thousand at most.
const MOST: u64 = 1024 * 1024;

/// How often a row is read again that was written meanwhile.
const TRIES: usize = 5;

/// A host as it was when something changed last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRow {
    /// Which.
    pub host: HostId,
    /// The program's version.
    pub build: String,
    /// Its process, for people.
    pub pid: u32,
    /// When it began.
    pub began: UnixMillis,
    /// When this was written.
    pub changed: UnixMillis,
    /// Its sessions.
    pub sessions: Vec<SessionNumber>,
    /// The jobs it looks after.
    pub jobs: Vec<HostJob>,
}

/// A job of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostJob {
    /// Which.
    pub job: JobId,
    /// Whether somebody waits, or it goes on by itself.
    pub mode: JobMode,
    /// The sessions whose calls wait for it.
    pub callers: Vec<SessionNumber>,
}

/// The file of a host's row. Removed when it is dropped.
#[derive(Debug)]
pub struct HostRowFile {
    path: PathBuf,
    file: File,
}

impl HostRowFile {
    /// Makes it.
    ///
    /// # Errors
    ///
    /// The system refused, or another process has it.
    pub fn make(dir: &StateDir, host: HostId) -> Result<Self, LockError> {
        dir.create_hosts()?;
        let path = dir.host_row(host);
        let io = |error: io::Error| LockError::io(&path, &error);
        let file = open_private(&path).map_err(io)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| io(errno.into()))?;
        Ok(Self { path, file })
    }

    /// Writes it anew.
    ///
    /// # Errors
    ///
    /// The system refused.
    pub fn write(&self, row: &HostRow) -> io::Result<()> {
        let text = serde_json::to_vec(row)?;
        // Whoever reads in between finds no JSON, and reads again.
        self.file.set_len(0)?;
        self.file.write_all_at(&text, 0)
    }
}

impl Drop for HostRowFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The rows of the hosts that live, the oldest first.
#[must_use]
pub fn living_rows(dir: &StateDir) -> Vec<HostRow> {
    let mut rows: Vec<HostRow> =
        files(dir).filter(|path| is_held_at(path).unwrap_or(false)).filter_map(|path| read(&path)).collect();
    rows.sort_by_key(|row| row.began);
    rows
}

/// Removes what dead hosts left. How many rows that were.
pub fn clear_rows(dir: &StateDir) -> usize {
    let left = |path: &PathBuf| is_held_at(path) == Ok(false) && fs::remove_file(path).is_ok();
    files(dir).filter(left).count()
}

fn files(dir: &StateDir) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir.hosts()).ok().into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_stem().and_then(|name| name.to_str());
        path.extension().is_some_and(|end| end == "json") && name.is_some_and(|name| name.parse::<HostId>().is_ok())
    })
}

fn read(path: &Path) -> Option<HostRow> {
    (0..TRIES).find_map(|_| {
        let file = File::open(path).ok()?;
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(file, MOST), &mut text).ok()?;
        serde_json::from_str(&text).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, StateDir) {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        (scratch, dir)
    }

    fn row(host: HostId, began: i64, jobs: usize) -> HostRow {
        let job = |_| HostJob { job: JobId::random(), mode: JobMode::Sync, callers: vec![SessionNumber(3)] };
        HostRow {
            host,
            build: "0.1.0".to_owned(),
            pid: 7,
            began: UnixMillis(began),
            changed: UnixMillis(9),
            sessions: vec![SessionNumber(3)],
            jobs: (0..jobs).map(job).collect(),
        }
    }

    #[test]
    fn what_a_host_wrote_last_is_read_while_it_lives() {
        let (_scratch, dir) = scratch();
        assert!(living_rows(&dir).is_empty() && !dir.root().exists(), "looking made something");
        let (one, two) = (HostId::random(), HostId::random());
        let (first, second) = (HostRowFile::make(&dir, one), HostRowFile::make(&dir, two));
        let (first, second) = (first.expect("it is made"), second.expect("it is made"));
        let (long, short, other) = (row(one, 2, 9), row(one, 2, 1), row(two, 1, 0));
        first.write(&long).expect("it is written");
        first.write(&short).expect("it is written");
        second.write(&other).expect("it is written");
        assert_eq!(living_rows(&dir), [other, short], "the oldest host first");
        drop(first);
        assert_eq!(living_rows(&dir).len(), 1);
        assert!(!dir.host_row(one).exists());
    }

    #[test]
    fn what_a_dead_host_left_is_not_shown_and_is_cleared_and_nothing_else_is() {
        let (_scratch, dir) = scratch();
        let living = HostRowFile::make(&dir, HostId::random()).expect("it is made");
        let dead = HostId::random();
        fs::write(dir.host_row(dead), serde_json::to_vec(&row(dead, 1, 1)).expect("JSON")).expect("it is left");
        let others = ["notes.json", "lock", "x"].map(|name| dir.hosts().join(name));
        others.iter().for_each(|path| fs::write(path, "").expect("a file"));
        assert!(living_rows(&dir).is_empty(), "the living one has said nothing yet");
        assert_eq!(clear_rows(&dir), 1);
        assert!(!dir.host_row(dead).exists() && living.path.exists() && others.iter().all(|path| path.exists()));
    }
}
