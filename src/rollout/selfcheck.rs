//! What a program says when it is asked about itself, so that another program can tell whether to hand over to it.
//!
//! Owns: the one line of `mcp selfcheck --json`, which a program of an earlier or a later version has to understand. May
//! not know: who asks, and what the answer is good for.
//!
//! Invariants: (1) nothing is written, locked or started that a running server could notice; (2) members may be added to
//! the lines, and none is renamed or taken away.

use serde::{Deserialize, Serialize};

use crate::base::fault::Fault;

/// The version of the snapshots this program writes and reads.
pub const SNAPSHOT_FORMAT: u32 = 1;

/// The line a program says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfCheck {
    /// Always `phone-opus`: another program at the same path is no candidate.
    pub selfcheck: String,
    /// The name of a program that embeds the library. Absent for phone-opus itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    pub version: String,
    /// Snapshots of this version it restores, and no others.
    pub snapshot_format: u32,
    /// Whether it restores a snapshot from an open file that has no name. Absent where it looks for a path.
    #[serde(default)]
    pub takes_descriptor: bool,
    /// The latest version of the job store it speaks.
    pub store_schema: i64,
    /// Tells its tools from those of another version; nothing is decided by it.
    pub catalog: String,
    /// Whether it has restored the snapshot it was given, without serving from it. Absent when it was given none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<bool>,
}

/// The name in [`SelfCheck::selfcheck`].
pub const NAME: &str = "phone-opus";

/// The line of a program that cannot do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why, as one of a few words.
    pub refused: RefusalCode,
    /// Why, in words that hold nothing of the snapshot's content.
    pub reason: String,
    /// The version of a snapshot that was refused for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<u32>,
}

/// Why a program cannot do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// It cannot serve a client.
    Serve,
    /// The snapshot is of another version.
    SnapshotFormat,
    /// The snapshot cannot be restored.
    Restore,
}

/// What went wrong in the trial.
#[derive(Debug, thiserror::Error)]
pub enum SelfCheckError {
    /// The system did not start, or ended by itself.
    #[error("start: {0}")]
    Start(Box<Fault>),
    /// It did not answer a client as it should.
    #[error("answer a client's {method}")]
    Answer {
        /// What was asked.
        method: &'static str,
    },
    /// It did not end in order.
    #[error("end in order")]
    End,
    /// A snapshot is of another format.
    #[error("restore a snapshot of format {found}; accepted: {SNAPSHOT_FORMAT}")]
    Format {
        /// Of which.
        found: u32,
    },
    /// A snapshot cannot be read or restored. More is not said, since what cannot be read may be quoted in the reason, and it
    /// holds prompts.
    #[error("restore the snapshot")]
    Restore,
}

impl SelfCheckError {
    /// The line that says so.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let (refused, found) = match self {
            Self::Start(_) | Self::Answer { .. } | Self::End => (RefusalCode::Serve, None),
            Self::Format { found } => (RefusalCode::SnapshotFormat, Some(*found)),
            Self::Restore => (RefusalCode::Restore, None),
        };
        Refusal { refused, reason: format!("failed to {self}"), found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_later_program_is_understood_and_one_of_another_program_is_not() {
        let later = r#"{"selfcheck":"phone-opus","version":"9.0.0","snapshot_format":7,"store_schema":12,
                        "catalog":"00","restored":true,"and_more":{"x":1}}"#;
        let read: SelfCheck = serde_json::from_str(later).expect("understood");
        assert_eq!((read.snapshot_format, read.store_schema, read.restored), (7, 12, Some(true)));
        let without = r#"{"selfcheck":"phone-opus","version":"9.0.0"}"#;
        assert!(serde_json::from_str::<SelfCheck>(without).is_err());
    }
}
