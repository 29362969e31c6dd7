//! Ends what is left of a run whose runner is gone.
//!
//! A pid proves nothing: it may belong to somebody else by now. On Linux the run's token in a process's environment is
//! the evidence, for every process of the user; elsewhere nothing can be proved, so nothing is ended and the agent's
//! own end (its pipes are closed) is relied on.

use crate::jobs::RunProcess;

/// Ends every process that carries the run's token; returns how many. Blocks for milliseconds.
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

    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    use crate::agents::RUN_TOKEN_VARIABLE;
    use crate::jobs::RunProcess;

    /// Passes over the process table; a process that forks faster than this is found by the next sweep.
    const PASSES: u32 = 10;

    pub(super) fn end(process: RunProcess) -> u32 {
        let mut ended = HashSet::new();
        for _ in 0..PASSES {
            let found = carriers(process);
            if found.is_empty() {
                break;
            }
            for pid in found {
                // The descriptor pins the process: it is looked at once more before it is ended, so that a pid that
                // was given to somebody else in between is left alone.
                let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
                if carries(pid, process) && pidfd_send_signal(&fd, Signal::KILL).is_ok() {
                    ended.insert(pid.as_raw_nonzero());
                }
            }
            std::thread::yield_now();
        }
        u32::try_from(ended.len()).unwrap_or(u32::MAX)
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
