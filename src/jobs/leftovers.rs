//! Ends what is left of a run whose runner is gone.
//!
//! A pid proves nothing: it may belong to somebody else by now. On Linux the run's token in a process's environment is
//! the evidence, for every process of the user; elsewhere nothing can be proved, so nothing is ended and the agent's
//! own end (its pipes are closed) is relied on.

use std::time::Duration;

use crate::jobs::RunProcess;

/// How long the ended may take to be gone. One that hangs in the kernel stays longer, and is not waited for: nothing of it
/// runs any more.
pub const BOUND: Duration = Duration::from_secs(2);

/// Ends every process that carries the run's token, and waits until they are gone; returns how many there were. Blocks for
/// milliseconds, for [`BOUND`] at most.
#[must_use]
pub fn end(process: RunProcess) -> u32 {
    #[cfg(target_os = "linux")]
    {
        linux::end(process)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = process;
        0
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashSet;
    use std::fs;
    use std::os::fd::OwnedFd;
    use std::time::Instant;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    use super::BOUND;
    use crate::ids::RUN_TOKEN_VARIABLE;
    use crate::jobs::RunProcess;

    pub(super) fn end(process: RunProcess) -> u32 {
        let mut ended = HashSet::new();
        let until = Instant::now() + BOUND;
        // Again until none is found: one may have forked just before it was ended.
        loop {
            let mut dying = Vec::new();
            for pid in carriers(process) {
                // The descriptor pins the process: it is looked at once more before it is ended, so that a pid that
                // was given to somebody else in between is left alone.
                let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
                if carries(pid, process) && pidfd_send_signal(&fd, Signal::KILL).is_ok() {
                    ended.insert(pid.as_raw_nonzero());
                    dying.push(fd);
                }
            }
            if dying.is_empty() {
                break;
            }
            dying.iter().for_each(|fd| wait_for(fd, until));
            if Instant::now() >= until {
                tracing::warn!("processes of a lost run were ended and are not gone yet");
                break;
            }
        }
        u32::try_from(ended.len()).unwrap_or(u32::MAX)
    }

    /// Waits for a process's end. A job is over when nothing of it is left, not when it was told to end.
    fn wait_for(fd: &OwnedFd, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(0), tv_nsec: i64::from(left.subsec_nanos()) };
        let _ = poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout));
    }

    pub(super) fn carriers(process: RunProcess) -> Vec<Pid> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter_map(Pid::from_raw)
            .filter(|pid| carries(*pid, process))
            .collect()
    }

    fn carries(pid: Pid, process: RunProcess) -> bool {
        let marker = format!("{RUN_TOKEN_VARIABLE}={}", process.token);
        // Another user's process cannot be read, and is none of ours; a zombie's environment is empty.
        fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero()))
            .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|entry| entry == marker.as_bytes()))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::ids::RUN_TOKEN_VARIABLE;
    use crate::ids::RunToken;

    #[test]
    fn what_carries_the_token_is_gone_when_it_was_ended_and_nothing_else_is_touched() {
        let (token, other) = (RunToken::random(), RunToken::random());
        let sleeping = |token: RunToken| {
            Command::new("sleep").arg("600").env(RUN_TOKEN_VARIABLE, token.to_string()).spawn().expect("a child")
        };
        let mut ours: Vec<_> = (0..20).map(|_| sleeping(token)).collect();
        let mut stranger = sleeping(other);
        // A child that has not replaced itself yet has the environment of this process.
        let mark = RunProcess { pid: 0, start_time: 0, token };
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while linux::carriers(mark).len() < ours.len() {
            assert!(std::time::Instant::now() < until, "they do not start");
        }
        assert_eq!(end(mark), 20);
        for child in &mut ours {
            assert!(child.try_wait().expect("asked").is_some(), "it was ended and is not gone");
        }
        assert_eq!(end(mark), 0);
        assert!(stranger.try_wait().expect("asked").is_none());
        stranger.kill().expect("ended");
        stranger.wait().expect("waited for");
    }
}
