//! Runners that stand still and have no host that would notice.
//!
//! Owns: which jobs of no host should have ended long ago, and the proof that a process is the runner of one. May not know:
//! actors, pipes.
//!
//! A runner keeps its job's deadline and finds a cancel within a second; one that is stopped (SIGSTOP) or hangs keeps
//! neither, and holds the job's lock. Its host, while there is one, asks it over its pipe; for the others this is the bound.
//!
//! ```text
//! seen running ──its time, or a cancel, and 60 s more──▶ late ──30 s without a sign of life──▶ ended ──▶ settled as lost
//! ```
//!
//! Invariants: (1) time is what this process saw pass, so that no jump of a clock makes a job late; (2) a process is ended
//! only when it is proven the job's runner: it has the lock's file open, says so on its command line, and holds the number by
//! a descriptor; (3) a runner that waits for the store touches its lock, and is left alone; so is every one while the disk
//! cannot be written, where no sign could be given.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::base::ids::JobId;
use crate::base::state_dir::StateDir;
use crate::jobs::JobState;
use crate::jobs::store::StoreHandle;

/// How long after its time a job may still run: its runner ends the agent (a second), or waits its turn at the store.
const GRACE: Duration = Duration::from_secs(60);

/// How long a late job's runner may give no sign of life; it gives one every 10 s while it waits for the store.
const SILENCE: Duration = Duration::from_secs(30);

/// Jobs that are watched at once; more than may run. What is over it is watched when there is room.
const WATCHED_MOST: usize = 1024;

/// One running job as it was last seen.
#[derive(Debug, Clone, Copy)]
struct Watched {
    /// How long its agent may run.
    timeout: Duration,
    /// When it was first seen running, by this process.
    since: Instant,
    /// When it was first seen to be cancelled.
    cancelled: Option<Instant>,
    /// The sign of life that was last seen, and since when.
    sign: Option<(u128, Instant)>,
}

impl Watched {
    const fn new(timeout: Duration, now: Instant) -> Self {
        Self { timeout, since: now, cancelled: None, sign: None }
    }

    /// Takes a look into account; whether its runner is to be ended.
    fn step(&mut self, cancelled: bool, sign: Option<u128>, now: Instant) -> bool {
        if cancelled {
            self.cancelled.get_or_insert(now);
        }
        let past = |since: Instant, limit: Duration| now.saturating_duration_since(since) >= limit;
        let late =
            past(self.since, self.timeout.saturating_add(GRACE)) || self.cancelled.is_some_and(|at| past(at, GRACE));
        let Some(sign) = sign else { return false };
        let since = match self.sign {
            Some((seen, since)) if seen == sign => since,
            _ => now,
        };
        self.sign = Some((sign, since));
        late && past(since, SILENCE)
    }
}

/// The running jobs of no host.
#[derive(Debug, Default)]
pub struct Overdue(Mutex<HashMap<JobId, Watched>>);

impl Overdue {
    /// Looks at every running job that is not one of `ours`, and ends runners that stand still. To be called now and then.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn look(&self, store: &StoreHandle, dir: &StateDir, ours: &HashSet<JobId>) {
        let Ok(rows) = store.queue().await else { return };
        let running: HashSet<JobId> = rows
            .iter()
            .filter(|row| row.state == JobState::Running && !ours.contains(&row.job))
            .map(|row| row.job)
            .collect();
        let known: HashSet<JobId> = {
            let mut watched = self.watched();
            watched.retain(|job, _| running.contains(job));
            watched.keys().copied().collect()
        };
        for job in running.into_iter().take(WATCHED_MOST) {
            if !known.contains(&job) {
                // Read once: a record holds a prompt.
                let Ok(record) = store.job(job).await else { continue };
                let timeout = Duration::from_secs(record.request.timeout_s);
                self.watched().insert(job, Watched::new(timeout, Instant::now()));
            }
            let Ok(glance) = store.glance(job).await else { continue };
            let cancelled = glance.cancel_requested.is_some();
            let sign = sign_of_life(dir, job);
            let stands_still =
                self.watched().get_mut(&job).is_some_and(|watched| watched.step(cancelled, sign, Instant::now()));
            if stands_still && end_runner(dir, job) {
                tracing::warn!(%job, "a runner that stood still beyond its job's time was ended");
            }
        }
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, Watched>> {
        // Nothing that can panic leaves it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What changes when a runner shows that it lives; `None` where it could not.
fn sign_of_life(dir: &StateDir, job: JobId) -> Option<u128> {
    rustix::fs::access(dir.jobs(), rustix::fs::Access::WRITE_OK).ok()?;
    let touched = std::fs::metadata(dir.job_lock(job)).and_then(|found| found.modified()).ok()?;
    touched.duration_since(std::time::UNIX_EPOCH).ok().map(|since| since.as_nanos())
}

/// Ends the process that is proven to be the job's runner; whether one was.
#[cfg(target_os = "linux")]
fn end_runner(dir: &StateDir, job: JobId) -> bool {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    for pid in crate::base::procfs::pids().into_iter().flatten().filter_map(Pid::from_raw) {
        if !is_runner(dir, job, pid) {
            continue;
        }
        // The descriptor pins it; it is looked at once more before it is ended.
        let Ok(pinned) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if is_runner(dir, job, pid) {
            return pidfd_send_signal(&pinned, Signal::KILL).is_ok();
        }
    }
    false
}

#[cfg(not(target_os = "linux"))]
fn end_runner(_dir: &StateDir, _job: JobId) -> bool {
    false
}

#[cfg(target_os = "linux")]
fn is_runner(dir: &StateDir, job: JobId, pid: rustix::process::Pid) -> bool {
    use std::os::unix::fs::MetadataExt as _;

    let place = std::path::PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let Ok(words) = std::fs::read(place.join("cmdline")) else { return false };
    let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
    let named = job.to_string();
    let says_so = words.iter().any(|word| *word == b"background-consult")
        && words.windows(2).any(|pair| pair[0] == b"--job" && pair[1] == named.as_bytes());
    if !says_so {
        return false;
    }
    let Ok(lock) = std::fs::metadata(dir.job_lock(job)) else { return false };
    let Ok(open) = std::fs::read_dir(place.join("fd")) else { return false };
    let is_lock = |found: std::fs::Metadata| (found.dev(), found.ino()) == (lock.dev(), lock.ino());
    open.filter_map(Result::ok).any(|entry| std::fs::metadata(entry.path()).is_ok_and(is_lock))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(100);

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_runner_is_ended_when_its_time_is_long_over_and_it_gives_no_sign() {
        // Looks: when, whether a cancel was requested, the sign; and whether the runner is to be ended then.
        type Look = (u64, bool, Option<u128>, bool);
        let cases: [(&str, &[Look]); 6] = [
            ("within its time", &[(0, false, Some(1), false), (159, false, Some(1), false)]),
            ("past its time, silent", &[(0, false, Some(1), false), (160, false, Some(1), true)]),
            (
                "past its time, with signs",
                &[(0, false, Some(1), false), (160, false, Some(2), false), (189, false, Some(3), false)],
            ),
            (
                "signs that stop",
                &[(0, false, Some(1), false), (160, false, Some(2), false), (190, false, Some(2), true)],
            ),
            (
                "cancelled",
                &[
                    (0, false, Some(1), false),
                    (5, true, Some(1), false),
                    (64, true, Some(1), false),
                    (65, true, Some(1), true),
                ],
            ),
            ("where no sign can be given", &[(0, true, None, false), (1000, true, None, false)]),
        ];
        for (what, looks) in cases {
            let now = Instant::now();
            let mut watched = Watched::new(TIMEOUT, now);
            for (at, cancelled, sign, ended) in looks {
                assert_eq!(watched.step(*cancelled, *sign, now + secs(*at)), *ended, "{what}, at {at} s");
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_the_process_that_holds_the_lock_and_says_so_is_a_runner() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        let job = JobId::random();
        let _lock = crate::jobs::lock::JobLock::try_acquire(&dir, job).expect("usable").expect("free");
        // It holds the lock's file and is no runner by its command line.
        assert!(!is_runner(&dir, job, rustix::process::getpid()));
        // It says so on its command line and does not have the lock's file.
        let mut liar = std::process::Command::new("sh")
            .args(["-c", "read line", "mcp", "background-consult", "--job", &job.to_string()])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("a shell");
        let pid = rustix::process::Pid::from_child(&liar);
        assert!(!is_runner(&dir, job, pid));
        assert!(!end_runner(&dir, job));
        assert!(liar.try_wait().expect("asked").is_none());
        liar.kill().expect("ended");
        liar.wait().expect("waited for");
    }
}
