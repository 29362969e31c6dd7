//! Supervision in OTP's words: when a child is started again, which others go with it, and when that is given up.
//!
//! Owns: restart types, exits, restart intensity, backoff, strategies; all of it pure, `now` is an argument, but for
//! [`driver`], the one loop around it. May not know: what a child does, requests. Whether a *request* runs again is decided
//! in `session::replay`; nothing here authorises it (L2), and no type is shared with it.
//!
//! Reading order: this file for the words, [`slot`] for one child's life, [`dynamic`] for children by key, [`only`] for
//! a single one, [`table`] for children that depend on each other, [`driver`] for what every supervisor does with them. A restart is triggered by the
//! *joined task* of the old incarnation, never by its death notice, which may overtake its last messages.

pub mod driver;
pub mod dynamic;
pub mod only;
pub mod slot;
pub mod table;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use self::slot::RestartPolicy;
use crate::base::ids::Generation;

/// When a child is started again after it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RestartType {
    /// Always: the tree is not whole without it.
    Permanent,
    /// Only after an abnormal end: an end in order means that its work is done.
    Transient,
    /// Never.
    Temporary,
}

impl RestartType {
    /// Every type, for tables.
    pub const ALL: [Self; 3] = [Self::Permanent, Self::Transient, Self::Temporary];

    /// Whether a child of this type is started again after this end.
    #[must_use]
    pub const fn restarts_after(self, exit: Exit) -> bool {
        match self {
            Self::Permanent => true,
            Self::Transient => exit.is_abnormal(),
            Self::Temporary => false,
        }
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exit {
    /// In order, by itself.
    Normal,
    /// It panicked, or said that it is broken.
    Failed,
    /// Somebody killed it who is not its supervisor.
    Killed,
    /// It did not come up.
    NotStarted,
}

impl Exit {
    /// Every end, for tables.
    pub const ALL: [Self; 4] = [Self::Normal, Self::Failed, Self::Killed, Self::NotStarted];

    /// Whether something went wrong.
    #[must_use]
    pub const fn is_abnormal(self) -> bool {
        match self {
            Self::Normal => false,
            Self::Failed | Self::Killed | Self::NotStarted => true,
        }
    }

    /// The end as ractor reports it in an `ActorTerminated`: its own reasons for an end by force are no end in order.
    #[must_use]
    pub fn from_reason(reason: Option<&str>) -> Self {
        match reason {
            Some("killed" | "actor_task_cancelled") => Self::Killed,
            _ => Self::Normal,
        }
    }
}

/// Which others are restarted with a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// None.
    OneForOne,
    /// Those that were started after it, because they may hold on to what it was.
    RestForOne,
}

impl Strategy {
    /// Every strategy, for tables.
    pub const ALL: [Self; 2] = [Self::OneForOne, Self::RestForOne];
}

/// What a supervisor knows about a child before it starts it.
#[derive(Debug, Clone, Copy)]
pub struct ChildSpec {
    /// What it is called in logs and health.
    pub name: &'static str,
    /// When it is started again.
    pub restart: RestartType,
    /// How often and how fast.
    pub policy: RestartPolicy,
    /// How long it may take to stop by itself; then it is killed.
    pub shutdown: Duration,
}

/// What happens to a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildEvent<K> {
    /// There is work for it.
    Wanted(K),
    /// The child of this generation is there.
    Up(K, Generation),
    /// The child of this generation is gone, or could not be started.
    Gone(K, Generation, Exit),
    /// The wait that followed this generation is over.
    Due(K, Generation),
}

impl<K: Copy> ChildEvent<K> {
    /// Whose event it is.
    #[must_use]
    pub const fn key(&self) -> K {
        match self {
            Self::Wanted(key) | Self::Up(key, _) | Self::Gone(key, ..) | Self::Due(key, _) => *key,
        }
    }
}

/// What a supervisor has to do, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildEffect<K> {
    /// Stop this child, and be back when it is gone: stop, wait, kill, wait.
    Stop(K),
    /// Start this child, then report [`ChildEvent::Up`] or [`ChildEvent::Gone`].
    Start(K, Generation),
    /// Report [`ChildEvent::Due`] after the wait.
    Wait(K, Generation, Duration),
    /// This child is not started again, and need not be.
    LeaveOut(K),
    /// This child was lost too often.
    GiveUp(K),
}

/// The decisions about the children of one supervisor. [`driver::ChildDriver`] performs them.
pub trait Children {
    /// What tells them apart.
    type Key: Copy + Ord;

    /// What a child is called.
    fn name(&self, key: Self::Key) -> &'static str;

    /// How long a child may take to stop by itself.
    fn shutdown(&self, key: Self::Key) -> Duration;

    /// Takes what happened; adds what is to be done, in this order.
    fn step(&mut self, event: ChildEvent<Self::Key>, now: Instant, effects: &mut VecDeque<ChildEffect<Self::Key>>);

    /// This child is stopped by its supervisor and will be wanted again; that is no loss.
    fn set_aside(&mut self, key: Self::Key);

    /// This key is not known any more.
    fn forget(&mut self, key: Self::Key);

    /// All are to be stopped; nothing is started from here on.
    fn stop(&mut self, effects: &mut VecDeque<ChildEffect<Self::Key>>);
}
