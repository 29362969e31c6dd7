//! An outcome that waits for the store, as a file in its job's directory.
//!
//! Owns: the file and its form. May not know: who waits, the store.
//!
//! Invariants: (1) a file that can be read is whole: it gets its name when it is on the disk; (2) it is 0600, and gone once
//! the store has what is in it; (3) what it says counts only while the store does not say how the job ended.

use std::fs;
use std::io::{self, Read as _, Write as _};

use serde::{Deserialize, Serialize};

use super::{JobOutcome, JobState};
use crate::base::ids::{JobId, UnixMillis};
use crate::base::state_dir::{StateDir, open_private};

/// Largest file that is read: an answer of 8 MiB, every character of it escaped, and what is said about it.
const MOST_BYTES: u64 = 64 << 20;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeftOutcome {
    /// Whose it is.
    pub job: JobId,
    /// The terminal state.
    pub state: JobState,
    /// Everything to be said about it.
    pub outcome: JobOutcome,
    /// When the run was over.
    pub at: UnixMillis,
}

/// Keeps an outcome: when this returns, it is on the disk. Blocks.
///
/// # Errors
///
/// The disk refused; nothing is left of the attempt.
pub fn keep(dir: &StateDir, left: &LeftOutcome) -> io::Result<()> {
    dir.create_job_dir(left.job).map_err(io::Error::other)?;
    let path = dir.job_outcome(left.job);
    let nameless = path.with_extension("new");
    let written = write(&nameless, left).and_then(|()| fs::rename(&nameless, &path));
    if written.is_err() {
        let _ = fs::remove_file(&nameless);
        return written;
    }
    // The name too.
    fs::File::open(dir.job_dir(left.job))?.sync_all()
}

fn write(path: &std::path::Path, left: &LeftOutcome) -> io::Result<()> {
    let text = serde_json::to_vec(left)?;
    let mut file = open_private(path)?;
    file.set_len(0)?;
    file.write_all(&text)?;
    file.sync_all()
}

/// The outcome that is kept for a job, if one is and it can be read. Blocks.
#[must_use]
pub fn read(dir: &StateDir, job: JobId) -> Option<LeftOutcome> {
    let path = dir.job_outcome(job);
    // Most jobs have none, and their directory may not even be there.
    let found = fs::symlink_metadata(&path).ok()?;
    if !found.is_file() || found.len() > MOST_BYTES {
        return None;
    }
    let mut text = Vec::new();
    open_private(&path).ok()?.take(MOST_BYTES).read_to_end(&mut text).ok()?;
    let left: LeftOutcome = serde_json::from_slice(&text).ok()?;
    (left.job == job && left.state.is_terminal()).then_some(left)
}

/// Forgets what is kept for a job.
pub fn forget(dir: &StateDir, job: JobId) {
    let path = dir.job_outcome(job);
    // What cannot be removed says what the store says, and goes with the job's directory.
    let _ = fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn left(job: JobId) -> LeftOutcome {
        let outcome = JobOutcome { response: Some("42 \u{1}".to_owned()), ..JobOutcome::default() };
        LeftOutcome { job, state: JobState::Succeeded, outcome, at: UnixMillis(7) }
    }

    #[test]
    fn a_kept_outcome_is_private_and_read_again_until_it_is_forgotten() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        let job = JobId::random();
        assert_eq!(read(&dir, job), None);
        keep(&dir, &left(job)).expect("kept");
        keep(&dir, &left(job)).expect("kept again");
        let mode = fs::metadata(dir.job_outcome(job)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(read(&dir, job), Some(left(job)));
        forget(&dir, job);
        assert_eq!(read(&dir, job), None);
        assert!(dir.job_dir(job).read_dir().expect("a directory").next().is_none(), "nothing is left beside it");
    }

    #[test]
    fn a_torn_or_foreign_file_says_nothing() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        let job = JobId::random();
        keep(&dir, &left(JobId::random())).expect("kept");
        dir.create_job_dir(job).expect("a directory");
        let whole = serde_json::to_vec(&left(job)).expect("text");
        let running = LeftOutcome { state: JobState::Running, ..left(job) };
        for text in [
            &whole[..whole.len() / 2],
            b"",
            &serde_json::to_vec(&left(JobId::random())).expect("text"),
            &serde_json::to_vec(&running).expect("text"),
        ] {
            fs::write(dir.job_outcome(job), text).expect("written");
            assert_eq!(read(&dir, job), None);
        }
        fs::remove_file(dir.job_outcome(job)).expect("removed");
        std::os::unix::fs::symlink("/etc/hostname", dir.job_outcome(job)).expect("linked");
        assert_eq!(read(&dir, job), None);
    }
}
