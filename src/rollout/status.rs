//! What is known about rollouts from outside: in health, and across a hand-over.
//!
//! Owns: the shape of both. May not know: how it came to be.

use serde::{Deserialize, Serialize};

use super::core::RefusedCandidate;
use super::{Fingerprint, LaunchPath, NotAdopted, Trigger};
use crate::base::ids::UnixMillis;
use crate::config::RolloutMode;

/// As health shows it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Status {
    /// `idle`, `settling`, `checking` or `handing_over`.
    pub state: &'static str,
    /// When the file at the launch path is adopted.
    pub mode: RolloutMode,
    /// Since when a candidate is being checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checking_since: Option<UnixMillis>,
    /// What became of the last rollout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Last>,
    /// The file that was refused last; it is checked again when it differs, or when somebody asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Rejected>,
    /// How often this server was replaced since its client started it.
    pub adopted: u64,
    /// Where the next version is looked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub launch_path: Option<String>,
    /// Whether it is adopted there without being asked for.
    pub launch_path_stable: bool,
}

/// What became of a rollout.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Last {
    /// `adopted`, `rejected` or `failed`.
    pub outcome: &'static str,
    /// The fault's code; absent when it was adopted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// What was wrong, as one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<&'static str>,
    /// What was wrong and what to do about it, or which version was replaced by which.
    pub reason: String,
    /// Who began it.
    pub by: Trigger,
    /// When it ended.
    pub at: UnixMillis,
}

/// A file that was refused.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rejected {
    /// Why, as one word.
    pub verdict: &'static str,
    /// Why, and what to do about it.
    pub reason: String,
    /// How the file looked.
    pub file: Fingerprint,
}

/// What a server that takes over is told about the rollouts before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// How often the server was replaced, this time included.
    pub adopted: u64,
    /// The version that hands over.
    pub from: String,
    /// Who began it.
    pub by: String,
}

impl Status {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(mode: RolloutMode, launch: Option<&LaunchPath>) -> Self {
        Self {
            state: "idle",
            mode,
            launch_path: launch.map(|launch| launch.path.display().to_string()),
            launch_path_stable: launch.is_some_and(|launch| launch.stable),
            ..Self::default()
        }
    }

    /// Notes how a rollout ended.
    pub fn ended(&mut self, by: Trigger, why: &NotAdopted) {
        self.last = Some(Last {
            outcome: why.outcome(),
            code: Some(why.fault().code.as_str()),
            verdict: Some(why.code()),
            reason: why.to_string(),
            by,
            at: UnixMillis::now(),
        });
    }

    /// Notes that this image has taken over.
    pub fn taken_over(&mut self, carried: &Carried, by: Trigger) {
        self.adopted = carried.adopted;
        self.last = Some(Last {
            outcome: "adopted",
            code: None,
            verdict: None,
            reason: format!("version {} took over from version {}.", env!("CARGO_PKG_VERSION"), carried.from),
            by,
            at: UnixMillis::now(),
        });
    }

    /// Notes which file is not checked again.
    pub fn refused(&mut self, refused: Option<&RefusedCandidate>) {
        self.rejected = refused.map(|refused| Rejected {
            verdict: refused.verdict.code(),
            reason: refused.verdict.to_string(),
            file: refused.candidate.fingerprint,
        });
    }
}
