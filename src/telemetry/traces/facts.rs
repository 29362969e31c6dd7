//! What whoever exports spans is told.
//!
//! Owns: the facts. May not know: spans. What is long, as the journal of a job, is not in a fact: it is read where it is kept.

use serde::{Deserialize, Serialize};

use crate::base::fault::FaultCode;
use crate::base::ids::{CallNumber, Generation, JobId, UnixMillis};
use crate::base::trace::TraceContext;

/// What is remembered of a call in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallTrace {
    /// The call within its session.
    pub call: u64,
    /// What its client said it is part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Box<TraceContext>>,
    /// Its attempts so far.
    #[serde(default)]
    pub attempts: Vec<AttemptSeen>,
    /// When the program was replaced under it.
    #[serde(default)]
    pub upgrades: Vec<UnixMillis>,
}

impl CallTrace {
    pub(super) const fn new(call: CallNumber, parent: Option<Box<TraceContext>>) -> Self {
        Self { call: call.0, parent, attempts: Vec::new(), upgrades: Vec::new() }
    }
}

/// An attempt that was given to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptSeen {
    /// When.
    pub at: UnixMillis,
    /// To which.
    pub generation: Generation,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallEnd {
    /// With a result.
    Success,
    /// Its client withdrew it.
    Cancelled,
    /// With this error, or an error result.
    Failed(FaultCode),
}

/// A call that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallFact {
    /// What was remembered of it.
    pub trace: CallTrace,
    /// The session it came in on.
    pub session: u64,
    /// The tool's name, which is one of ours or of the embedding program's.
    pub tool: String,
    /// When it was over.
    pub at: UnixMillis,
    /// From the line's arrival to its answer, in microseconds.
    pub latency_us: u64,
    /// How it ended.
    pub end: CallEnd,
    /// The job it was about.
    pub job: Option<JobId>,
    /// The name of the directory it was about, without what is above it.
    pub workspace: Option<String>,
    /// Attempts after the first.
    pub replays: u32,
}

/// Something that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceFact {
    /// A call.
    Call(Box<CallFact>),
    /// A job, of which everything is in the store.
    Job(JobId),
}
