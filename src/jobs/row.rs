//! What is known of a job besides its text, for whoever looks at many of them.
//!
//! Owns: the row. May not know: SQL, who looks. Neither the prompt nor the answer is in a row, nor anything an agent has written (L13).

use std::path::PathBuf;

use serde::Serialize;

use super::{CancelReason, JobMode, JobState};
use crate::base::ids::{ChainId, JobId, UnixMillis};

/// Most rows one look gives; whoever wants more asks on behind the last one. Some 2 MB.
pub const ROWS_MOST: usize = 5_000;

/// One job without its text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobRow {
    /// The job.
    #[serde(rename = "job_id")]
    pub id: JobId,
    /// Its place in the order of acceptance.
    #[serde(skip)]
    pub sequence: u64,
    /// Where it stands.
    #[serde(rename = "status")]
    pub state: JobState,
    /// Whether somebody waits.
    pub mode: JobMode,
    /// The agent that answers.
    pub agent: String,
    /// The directory it belongs to.
    #[serde(serialize_with = "lossy")]
    pub workspace: PathBuf,
    /// The chain of nested consults.
    pub chain: ChainId,
    /// How deep in the chain it is.
    pub depth: u32,
    /// When it was accepted.
    pub accepted_at: UnixMillis,
    /// When a runner took it.
    pub started_at: Option<UnixMillis>,
    /// When it ended.
    pub finished_at: Option<UnixMillis>,
    /// What it cost in US dollars; `None` when that is not known.
    pub cost_usd: Option<f64>,
    /// The code of why it did not succeed.
    pub code: Option<String>,
    /// Why it is to be cancelled, if it is.
    pub cancel_requested: Option<CancelReason>,
    /// Whether its outcome is there and nobody has read it.
    pub unread: bool,
    /// The highest number of its journal, 0 when there is none.
    pub last_event: u64,
}

impl JobRow {
    /// Milliseconds from acceptance to start; `None` when it was never started.
    #[must_use]
    pub fn waited_ms(&self) -> Option<u64> {
        self.started_at.map(|started| started.since(self.accepted_at))
    }

    /// Milliseconds from start to end; `None` unless it has both.
    #[must_use]
    pub fn ran_ms(&self) -> Option<u64> {
        Some(self.finished_at?.since(self.started_at?))
    }
}

/// JSON holds no path that is not UTF-8.
fn lossy<S: serde::Serializer>(path: &std::path::Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}
