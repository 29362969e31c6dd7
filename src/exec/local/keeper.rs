//! Who keeps a process until it is over.
//!
//! Owns: the child, its end: waiting, asking, killing, reaping, and how long each may take. May not know: what the process
//! reads and writes; its pipes are tasks it waits for.
//!
//! ```text
//! leader ends ──▶ group empties ──▶ pipes close ──▶ over
//!      └─ (others are kept) ──▶ pipes close: closed ──▶ group empties, or is ended ──▶ over
//! ```
//!
//! Invariant: a keeper that goes before that kills the group while the leader still holds its number.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions};
use tokio::process::Child;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::super::session::ProcessSession;
use super::group::{Group, GroupState, Look};
use super::pipes::PumpEnd;
use super::{Adopt, CloseBy, GRACE, KILL_BOUND, Leftovers, PIPE_BOUND, ProcessEnd, Stop};
use crate::base::procfs;
use crate::base::tasks::TaskSet;

/// The longest pause between two looks at a group. Others' children end without telling us, so we have to look.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// From this pause on a look also tells zombies from living members, which costs a walk through the process table.
const THOROUGH_PAUSE: Duration = Duration::from_millis(16);

/// How often dead adopted descendants are reaped while the leader runs; they cost a table entry until then.
const ADOPTED_PAUSE: Duration = Duration::from_secs(1);

/// The pause between two looks at a group that lives on without its leader.
const LINGER_PAUSE: Duration = Duration::from_secs(1);

/// How long the pipes of a killed group may stay open where what left the group may live on: what is in them is read at once.
const KEPT_PIPE_BOUND: Duration = Duration::from_millis(100);

/// Kills the group if the keeper goes away before it is done.
#[derive(Debug)]
pub(super) struct Fuse {
    pub(super) group: Arc<Group>,
    pub(super) session: ProcessSession,
}

impl Drop for Fuse {
    fn drop(&mut self) {
        if *self.group.state() != GroupState::Gone {
            self.group.signal(Signal::KILL);
            self.session.publish_failed("the process was killed because its keeper stopped");
        }
    }
}

/// Owns the child until it is over. Runs as its own task, so that nobody has to wait for it to go on.
pub(super) struct Keeper {
    /// Dropped before the child, so that the group is killed while the leader still holds its number.
    pub(super) fuse: Fuse,
    pub(super) child: Child,
    pub(super) adopt: Adopt,
    pub(super) close: CloseBy,
    pub(super) leftovers: Leftovers,
    /// What its descendants are known by.
    pub(super) mark: Option<OsString>,
    pub(super) stop: watch::Receiver<Stop>,
    /// What the group gets when it is asked to end.
    pub(super) grace: Arc<Mutex<Duration>>,
    /// When the grace of a stop is over.
    pub(super) kill_at: Option<Instant>,
    pub(super) pumps: TaskSet<PumpEnd>,
    pub(super) pipes_until: watch::Sender<Option<Instant>>,
    pub(super) feeder: Option<AbortOnDrop>,
}

#[derive(Debug)]
pub(super) struct AbortOnDrop(pub(super) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Keeper {
    pub(super) async fn run(mut self) -> ProcessEnd {
        let status = self.leader_ends().await;
        self.fuse.group.enter(GroupState::Leaderless);
        let (code, signal) = decode(status.as_ref());
        if let Err(refused) = self.fuse.session.publish_exited(code, signal) {
            tracing::warn!(%refused, "the session did not take the exit");
        }
        let closed = self.leftovers == Leftovers::Keep && self.leader_leaves_others().await;
        let Emptied { reaped, left } = self.group_empties().await;
        self.fuse.group.enter(GroupState::Gone);
        self.feeder = None;
        let pipes_leaked = self.pipes_close().await;
        if !closed {
            self.publish_closed();
        }
        ProcessEnd { code, signal, reaped, left, terminated: *self.stop.borrow() != Stop::No, pipes_leaked }
    }

    /// Waits for the leader, ending it when asked to. An error when it does not end, [`KILL_BOUND`] after it was killed.
    async fn leader_ends(&mut self) -> io::Result<ExitStatus> {
        let mut sweep = tokio::time::interval(ADOPTED_PAUSE);
        let mut give_up_at = None;
        loop {
            tokio::select! {
                biased;
                status = self.child.wait() => return status,
                stop = stop_asked(&mut self.stop) => self.stop_group(stop),
                () = tokio::time::sleep_until(self.kill_at.unwrap_or_else(Instant::now)), if self.kill_at.is_some() => {
                    self.fuse.group.signal(Signal::KILL);
                    self.kill_at = None;
                    give_up_at = Some(Instant::now() + KILL_BOUND);
                }
                () = tokio::time::sleep_until(give_up_at.unwrap_or_else(Instant::now)), if give_up_at.is_some() => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "it outlived a KILL"));
                }
                _ = sweep.tick(), if self.adopt == Adopt::Yes => {
                    reap_children(|child| *child == self.fuse.group.leader);
                }
            }
        }
    }

    fn publish_closed(&self) {
        if self.close == CloseBy::Backend
            && let Err(refused) = self.fuse.session.publish_closed()
        {
            tracing::warn!(%refused, "the session did not take the end");
        }
    }

    /// The leader is gone, and others may live on with its pipes: waits until the pipes close and publishes that, then until the
    /// group is empty; or until somebody asks for the end. Returns whether the end was published.
    async fn leader_leaves_others(&mut self) -> bool {
        let mut look = tokio::time::interval(LINGER_PAUSE);
        let mut closed = false;
        while *self.stop.borrow() == Stop::No {
            tokio::select! {
                biased;
                stop = stop_asked(&mut self.stop) => self.stop_group(stop),
                pump = self.pumps.join_next(), if !closed => {
                    if pump.is_none() {
                        self.feeder = None;
                        self.publish_closed();
                        closed = true;
                    }
                }
                _ = look.tick() => {
                    if *self.fuse.group.state() != GroupState::Gone && self.is_nobodys() {
                        // Never signalled again, whatever holds the pipes.
                        self.fuse.group.enter(GroupState::Gone);
                    }
                }
            }
            if closed && (*self.fuse.group.state() == GroupState::Gone || self.is_nobodys()) {
                break;
            }
        }
        closed
    }

    /// Whether the group is empty; its number is somebody else's when a process has it again.
    fn is_nobodys(&self) -> bool {
        self.fuse.group.is_empty(Look::Thorough) || procfs::start_time(self.fuse.group.leader) != 0
    }

    fn stop_group(&mut self, stop: Stop) {
        match stop {
            Stop::No => {}
            Stop::Asked => {
                self.fuse.group.signal(Signal::TERM);
                let grace = *self.grace.lock().unwrap_or_else(PoisonError::into_inner);
                let at = Instant::now() + grace;
                self.kill_at = Some(self.kill_at.map_or(at, |before| before.min(at)));
            }
            Stop::Kill => {
                self.fuse.group.signal(Signal::KILL);
                self.kill_at = Some(Instant::now());
            }
        }
    }

    /// Waits until nothing of the group, nor of what we adopted, is left, and kills what does not go by itself.
    async fn group_empties(&mut self) -> Emptied {
        if *self.fuse.group.state() == GroupState::Gone {
            return Emptied { reaped: 0, left: 0 };
        }
        let mut killed = BTreeSet::new();
        let mut pause = Duration::from_millis(1);
        let mut emptying = Emptying::new(Instant::now());
        loop {
            let look = if pause >= THOROUGH_PAUSE { Look::Thorough } else { Look::Quick };
            let group_is_empty = self.fuse.group.is_empty(look);
            let adopted = self.adopted();
            let reaped = |killed: &BTreeSet<i32>| u32::try_from(killed.len()).unwrap_or(u32::MAX);
            match emptying.looked(group_is_empty && adopted.is_empty(), self.kill_at, Instant::now()) {
                Next::Done => return Emptied { reaped: reaped(&killed), left: 0 },
                Next::GiveUp => {
                    let members = procfs::living_members(self.fuse.group.leader).unwrap_or_default();
                    let left: BTreeSet<i32> =
                        adopted.iter().map(|child| child.as_raw_nonzero().get()).chain(members).collect();
                    tracing::error!(group = ?self.fuse.group.leader, ?left, "processes outlived a KILL and are left");
                    // One at least: where processes cannot be listed, the group itself.
                    return Emptied { reaped: reaped(&killed), left: reaped(&left).max(1) };
                }
                Next::Wait => {}
                Next::Kill => {
                    if killed.is_empty() {
                        pause = Duration::from_millis(1);
                    }
                    if !group_is_empty {
                        let leader = self.fuse.group.leader;
                        match procfs::living_members(leader) {
                            Some(members) => killed.extend(members),
                            None => _ = killed.insert(leader.as_raw_nonzero().get()),
                        }
                        self.fuse.group.signal(Signal::KILL);
                    }
                    for child in adopted {
                        killed.insert(child.as_raw_nonzero().get());
                        // Ours to reap, so the number cannot have become somebody else's.
                        let _ = rustix::process::kill_process(child, Signal::KILL);
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                stop = stop_asked(&mut self.stop) => self.stop_group(stop),
            }
            pause = (pause * 2).min(LOOK_PAUSE);
        }
    }

    /// What of its descendants fell to this process and lives.
    fn adopted(&self) -> Vec<Pid> {
        match (self.adopt, &self.mark) {
            (Adopt::Yes, _) => reap_children(|_| false),
            (Adopt::No, None) => Vec::new(),
            (Adopt::No, Some(mark)) => {
                let mut living = procfs::children();
                living.retain(|child| procfs::lives_with(*child, mark));
                living
            }
        }
    }

    /// Waits for the pipes to close, for [`PIPE_BOUND`] at most. Returns whether something held them.
    async fn pipes_close(&mut self) -> bool {
        let bound = match self.leftovers {
            Leftovers::End => PIPE_BOUND,
            Leftovers::Keep => KEPT_PIPE_BOUND,
        };
        self.pipes_until.send_replace(Some(Instant::now() + bound));
        let mut leaked = false;
        while let Some(end) = self.pumps.join_next().await {
            leaked |= !matches!(end, Ok(PumpEnd::Closed));
        }
        leaked
    }
}

/// What became of a group whose leader is gone.
#[derive(Debug, Clone, Copy)]
struct Emptied {
    reaped: u32,
    left: u32,
}

/// What to do about a group whose leader is gone, look by look.
#[derive(Debug)]
struct Emptying {
    /// Until then its members may end by themselves.
    quiet_end: Instant,
    /// When they were first killed.
    killed_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Wait,
    Kill,
    Done,
    GiveUp,
}

impl Emptying {
    fn new(now: Instant) -> Self {
        Self { quiet_end: now + GRACE, killed_at: None }
    }

    /// The group was looked at; `kill_at` is when the grace of a stop is over, if one was asked for.
    fn looked(&mut self, is_empty: bool, kill_at: Option<Instant>, now: Instant) -> Next {
        if is_empty {
            return Next::Done;
        }
        if now < kill_at.unwrap_or(self.quiet_end) {
            return Next::Wait;
        }
        let since = *self.killed_at.get_or_insert(now);
        // Again and again until then: a member may have forked in between.
        if now < since + KILL_BOUND { Next::Kill } else { Next::GiveUp }
    }
}

/// The next stop level somebody asks for; pending for ever when nobody can ask any more.
async fn stop_asked(stop: &mut watch::Receiver<Stop>) -> Stop {
    match stop.changed().await {
        Ok(()) => *stop.borrow_and_update(),
        Err(_) => std::future::pending().await,
    }
}

/// Reaps dead children of this process but those that are somebody's, and returns the living ones of the others.
pub(super) fn reap_children(is_somebodys: impl Fn(&Pid) -> bool) -> Vec<Pid> {
    let mut living = procfs::children();
    living.retain(|child| {
        !is_somebodys(child) && matches!(rustix::process::waitpid(Some(*child), WaitOptions::NOHANG), Ok(None))
    });
    living
}

fn decode(status: Result<&ExitStatus, &io::Error>) -> (i32, Option<i32>) {
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => (code, None),
            (None, Some(signal)) => (128 + signal, Some(signal)),
            (None, None) => (-1, None),
        },
        Err(error) => {
            tracing::warn!(%error, "the exit of a process could not be learnt");
            (-1, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_outlives_its_kill_is_waited_for_ten_seconds_and_no_longer() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        let mut emptying = Emptying::new(now);
        // Its members may end by themselves for a while, unless a stop has given them a while already.
        assert_eq!(emptying.looked(false, None, now + ms(299)), Next::Wait);
        assert_eq!(emptying.looked(false, Some(now + ms(100)), now + ms(100)), Next::Kill);
        assert_eq!(emptying.looked(false, None, now + ms(10_099)), Next::Kill);
        assert_eq!(emptying.looked(true, None, now + ms(10_100)), Next::Done);
        assert_eq!(emptying.looked(false, None, now + ms(10_100)), Next::GiveUp);
    }
}
