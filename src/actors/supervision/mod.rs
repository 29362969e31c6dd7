//! Supervision in OTP's words: when a child is started again, which others go with it, and when that is given up.
//!
//! Owns: restart types, exits, restart intensity, backoff, strategies; all of it pure, `now` is an argument. May not
//! know: actors, what a child does, requests. Whether a *request* runs again is decided in `session::replay`; nothing here
//! authorises it (L2), and no type is shared with it.
//!
//! Reading order: this file for the words, [`slot`] for one child's life, [`family`] for children that depend on each
//! other. A supervisor's loop tells the state machine what happened and performs the one effect that follows; a restart is
//! triggered by the *joined task* of the old incarnation, never by its death notice, which may overtake its last messages.

pub mod family;
pub mod slot;

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
