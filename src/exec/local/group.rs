//! A process group and its signals.
//!
//! Owns: whether a group may still be signalled, and whether anything of it is left. May not know: when it is to end, nor
//! what its leader is.
//!
//! Invariant: a group that is [`GroupState::Gone`] is never signalled again; its number may belong to somebody else.

use crate::base::procfs;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};

/// A process group and whether it may still be signalled.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) leader: Pid,
    /// Held while signalling, so that nobody signals a number that was given back meanwhile.
    pub(super) state: Mutex<GroupState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GroupState {
    /// The leader is not reaped, so its pid is its own.
    Led,
    /// The leader is reaped; others may be left.
    Leaderless,
    /// Seen empty.
    Gone,
}

impl Group {
    pub(super) fn signal(&self, signal: Signal) {
        let state = self.state();
        if *state == GroupState::Gone {
            return;
        }
        let reached = rustix::process::kill_process_group(self.leader, signal);
        // A leader may have moved to another group of its session. It gets a gentle signal once, not twice.
        if *state == GroupState::Led && (reached.is_err() || signal == Signal::KILL) {
            let _ = rustix::process::kill_process(self.leader, signal);
        }
    }

    pub(super) fn enter(&self, next: GroupState) {
        *self.state() = next;
    }

    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, GroupState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing of the group is left that could still run. Only after the leader was reaped.
    pub(super) fn is_empty(&self, look: Look) -> bool {
        // Members that fell to us when their parent died stay members until we reap them.
        while let Ok(Some(_)) = rustix::process::waitpgid(self.leader, WaitOptions::NOHANG) {}
        match rustix::process::test_kill_process_group(self.leader) {
            Err(Errno::SRCH) => true,
            // Members nobody may signal: zombies (macOS) or programs that changed their user. Neither can be waited for.
            Err(_) => procfs::living_members(self.leader).is_none_or(|members| {
                if !members.is_empty() {
                    tracing::warn!(group = ?self.leader, ?members, "group members may not be signalled and are left");
                }
                true
            }),
            // Zombies that somebody else has to reap count for `kill` and for nothing else.
            Ok(()) => look == Look::Thorough && procfs::living_members(self.leader).is_some_and(|all| all.is_empty()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Quick,
    Thorough,
}
