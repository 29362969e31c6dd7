//! When and whether this program is replaced by the new file at its launch path.
//!
//! Owns: what a file is told apart by ([`fingerprint`]), what a candidate has to show before it is adopted
//! ([`candidate`], [`selfcheck`], `owner`), the order of it all ([`core`]), what is known about it from outside ([`status`]). May
//! not know: what a hand-over passes on and how: that is behind [`HandOver`]; actors (`actors::rollout` performs).
//!
//! Invariants (L15): (1) no file is handed anything that did not serve a client of its own and restore our snapshot in a
//! process of its own first; (2) a file that was refused is not run again before it changes; (3) whatever comes of a
//! candidate, the running image serves on; (4) an idle host sleeps: a look is due with a request, never by a clock.

pub mod candidate;
pub mod core;
mod elf;
pub mod fingerprint;
mod kept;
mod owner;
pub mod selfcheck;
pub mod snapshot_file;
pub mod status;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use serde::Serialize;

pub use self::candidate::Verdict;
pub use self::core::Rollout;
pub use self::fingerprint::{Digest, Fingerprint, LaunchPath};
pub use self::kept::keep;
pub use self::snapshot_file::SnapshotFile;
pub use self::status::{Carried, Status};
use crate::agents::Environment;
use crate::base::fault::{Fault, FaultCode};
pub use crate::config::RolloutMode;

/// What a hand-over answers with.
pub type Handing<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How a server passes itself on. One implementation replaces the process's image; tests record.
pub trait HandOver: Send + Sync + 'static {
    /// Writes what a hand-over would pass on at this moment into a file without a name. Nothing stops for it.
    ///
    /// # Cancel safety
    ///
    /// Must be safe: nothing is left behind.
    fn peek(&self) -> Handing<'_, Result<SnapshotFile, Fault>>;

    /// Passes everything on to this program, and does not return where that succeeds. Where it does, it says why it did
    /// not, and the server serves on as before.
    ///
    /// # Cancel safety
    ///
    /// Must be safe: it is dropped when the parts below are restarted, and the server has to serve on. What cannot be broken
    /// off runs in a task of its own, which this waits for.
    fn hand_over(&self, to: Successor) -> Handing<'_, Fault>;
}

/// The program that takes over, as it was when it was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Successor {
    /// The file.
    pub program: PathBuf,
    /// How it looked; whoever starts it should look again.
    pub fingerprint: Fingerprint,
    /// Its version, as it says.
    pub version: String,
}

/// At least so much time passes between two looks at the launch path. A look costs a microsecond; what is bounded is how
/// often a busy server is drawn into one.
pub const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What a system has to know to replace itself. Without it, it never does.
#[derive(Debug, Clone)]
pub struct RolloutSetup {
    /// Where the next build will lie.
    pub launch: LaunchPath,
    /// The running image, as a file that is there whatever was put in its place (`/proc/self/exe`); `None` where the
    /// system names none. Then a new file with the same content is adopted as well.
    pub image: Option<PathBuf>,
    /// The phone-opus program that keeps a candidate's run (`mcp trial`), so that nothing the candidate starts outlives it,
    /// whatever session it goes to; `None` where the system has no adoption. Then what leaves the candidate's group may stay.
    pub keeper: Option<PathBuf>,
    /// What it was given after `mcp serve`.
    pub arguments: Vec<OsString>,
    /// Its working directory.
    pub here: PathBuf,
    /// Whole seconds between two looks, at least: [`LOOK_EVERY`], but in tests.
    pub look_every: Duration,
    /// The name by which the program tells itself from others, where it is not phone-opus.
    pub program: Option<String>,
    /// What a candidate is run with, where it is not what the system's agents are made from.
    pub environment: Option<Environment>,
}

/// Why a rollout was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// The file differed between two requests.
    Watch,
    /// The embedding program asked.
    Reload,
    /// SIGUSR2.
    Signal,
    /// The variable that forces one.
    Variable,
}

impl Trigger {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Watch => "watch",
            Self::Reload => "reload",
            Self::Signal => "signal",
            Self::Variable => "variable",
        }
    }

    /// The trigger of this word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Watch, Self::Reload, Self::Signal, Self::Variable].into_iter().find(|trigger| trigger.as_str() == text)
    }

    /// Whether somebody asked for it, so that an equal file is checked and handed over to as well.
    #[must_use]
    pub const fn is_forced(self) -> bool {
        !matches!(self, Self::Watch)
    }
}

/// How a rollout ended, while the running image serves on. That it succeeded is seen by the new image alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdopted {
    /// `rollout = "off"`.
    #[error("rollouts are switched off; set rollout to auto or on_request.")]
    Off,
    /// This system was not told by which program it could be replaced.
    #[error("this system does not replace itself.")]
    Unable,
    /// There is no file.
    #[error("there is no file at the launch path; install phone-opus there.")]
    Vanished,
    /// It kept changing.
    #[error("the file at the launch path kept changing; ask again when it is whole.")]
    Unsettled,
    /// It is what runs already.
    #[error("the file at the launch path is what runs already.")]
    Unchanged,
    /// It did not pass.
    #[error("{0}")]
    Rejected(Verdict),
    /// It passed, and nobody hands over.
    #[error("the new version passed every check, but this server cannot hand over; it takes over at the next start.")]
    NoHandOver,
    /// It passed, and the hand-over failed.
    #[error("the new version passed every check, but the hand-over failed: {}", .0.detail)]
    HandOverFailed(Box<Fault>),
    /// The part that does this failed.
    #[error("the rollout was broken off by a fault of our own; it is tried again later.")]
    Interrupted,
}

impl NotAdopted {
    /// Its stable name.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Unable => "unable",
            Self::Vanished => "vanished",
            Self::Unsettled => "unsettled",
            Self::Unchanged => "unchanged",
            Self::Rejected(verdict) => verdict.code(),
            Self::NoHandOver => "no_hand_over",
            Self::HandOverFailed(_) => "hand_over_failed",
            Self::Interrupted => "interrupted",
        }
    }

    /// `rejected` when a candidate was at fault, else `failed`.
    #[must_use]
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::Rejected(verdict) if verdict.condemns() => "rejected",
            _ => "failed",
        }
    }

    /// Whether it is news, where nobody asked: most looks find what was there before.
    #[must_use]
    pub const fn is_news(&self) -> bool {
        !matches!(self, Self::Unchanged | Self::Vanished | Self::Unsettled)
    }

    /// As a fault, for those who are told in faults.
    #[must_use]
    pub fn fault(&self) -> Fault {
        Fault::new(FaultCode::RolloutRejected, self.to_string())
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
