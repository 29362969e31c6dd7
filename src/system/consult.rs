//! A consult as an embedding program asks for it, and what comes of it.
//!
//! Owns: what may be said of a consult, and how a job that is over is told. May not know: how it is run, who waits for it.
//!
//! Invariants: (1) what is not said is left to the session's configuration, and is no word of the caller when a key comes again;
//! (2) a consult without an answer is a fault, and the fault has the job where there is one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::JobId;
use crate::jobs::{JobMode, JobOutcome, JobRecord, JobState, PermissionDenial, RunExit};

/// A question to an agent. What is not said is as the session's configuration says.
///
/// ```
/// use std::time::Duration;
/// use phone_opus::Consult;
///
/// let consult = Consult::new("review this")
///     .cwd("/repository").agent("claude").model("opus").effort("high")
///     .timeout(Duration::from_secs(1800)).max_turns(40).max_budget_usd(2.5)
///     .diff("HEAD")                                                   // with what is not committed
///     .request_key("review-of-4f2a");                                 // asked twice, run once
/// # let _ = consult;
/// ```
#[derive(Debug, Clone, Default)]
pub struct Consult {
    said: Map<String, Value>,
    /// A directory that is no text, to be refused as such.
    no_text: bool,
}

impl Consult {
    /// Asks this. The agent sees the directory and nothing else of what the caller knows.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self::default().with("prompt", prompt.into())
    }

    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.said.insert(name.to_owned(), value.into());
        self
    }

    /// The directory the agent answers from: absolute, and one the session may have looked into.
    #[must_use]
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        self.no_text = dir.to_str().is_none();
        self.with("cwd", dir.to_string_lossy().into_owned())
    }

    /// Who answers.
    #[must_use]
    pub fn agent(self, name: impl Into<String>) -> Self {
        self.with("agent", name.into())
    }

    /// Model name or alias, handed on as it is.
    #[must_use]
    pub fn model(self, name: impl Into<String>) -> Self {
        self.with("model", name.into())
    }

    /// `low`, `medium`, `high`, `xhigh` or `max`, where the agent knows it.
    #[must_use]
    pub fn effort(self, level: impl Into<String>) -> Self {
        self.with("effort", level.into())
    }

    /// How long the agent may run; whole seconds, at least one.
    #[must_use]
    pub fn timeout(self, limit: Duration) -> Self {
        let more = u64::from(limit.subsec_nanos() > 0);
        self.with("timeout_s", limit.as_secs().saturating_add(more))
    }

    /// Most turns the agent may take.
    #[must_use]
    pub fn max_turns(self, turns: u32) -> Self {
        self.with("max_turns", turns)
    }

    /// Most US dollars the agent may spend.
    #[must_use]
    pub fn max_budget_usd(self, dollars: f64) -> Self {
        self.with("max_budget_usd", dollars)
    }

    /// Continues the agent's session of an earlier outcome ([`ConsultOutcome::session_id`]).
    #[must_use]
    pub fn session(self, session_id: impl Into<String>) -> Self {
        self.with("session_id", session_id.into())
    }

    /// Adds what `git diff` shows of the directory's repository against this commit, under a heading behind the prompt; `HEAD`
    /// is what is not committed. Refused where git would run what the repository names.
    #[must_use]
    pub fn diff(self, base: impl Into<String>) -> Self {
        self.with("diff", base.into())
    }

    /// A key of your own. The same key with the same arguments in the same directory is the same job, never a second run, from
    /// any session, system and process of the state directory; with other arguments it is refused.
    #[must_use]
    pub fn request_key(self, key: impl Into<String>) -> Self {
        self.with("request_key", key.into())
    }

    /// Whether it can be told at all.
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.no_text {
            // A path of other bytes would be another directory.
            let detail = "`cwd` is not UTF-8; accepted: a directory whose path is.";
            return Err(Fault::new(FaultCode::InvalidInput, detail));
        }
        Ok(())
    }

    /// As the tool is told.
    pub(super) fn arguments(&self, mode: JobMode) -> Vec<u8> {
        let mut said = self.said.clone();
        said.insert("background".to_owned(), Value::Bool(mode == JobMode::Background));
        Value::Object(said).to_string().into_bytes()
    }
}

/// An answer. Unknown is `None`, never a zero.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ConsultOutcome {
    /// The job it was.
    pub job_id: JobId,
    /// What the agent said.
    pub response: String,
    /// The agent's session, to be continued with [`Consult::session`].
    pub session_id: Option<String>,
    /// The model that answered, as the agent reported it.
    pub model: Option<String>,
    /// What it cost in US dollars.
    pub cost_usd: Option<f64>,
    /// Token counts, as the agent reported them.
    pub usage: Option<Value>,
    /// Turns the agent took.
    pub num_turns: Option<u64>,
    /// Why the model stopped.
    pub stop_reason: Option<String>,
    /// Where the agent said its key came from.
    pub billing: Option<String>,
    /// How the agent's process ended.
    pub exit: Option<RunExit>,
    /// Whether anything in the directory was different afterwards.
    pub workspace_changed: Option<bool>,
    /// Tool uses that were refused.
    pub permission_denials: Vec<PermissionDenial>,
    /// Whether the job had been accepted before, by its key.
    pub joined: bool,
    /// Whether the store has the outcome. It has, unless the disk refuses; then this is the only copy until it does.
    pub stored: bool,
    /// Everything about the job.
    pub record: Arc<JobRecord>,
}

impl ConsultOutcome {
    /// Of a job that is over.
    pub(super) fn of(record: Arc<JobRecord>, joined: bool, stored: bool) -> Result<Self, ConsultFault> {
        let outcome = match (record.state, &record.outcome) {
            (JobState::Succeeded, Some(outcome)) => outcome.clone(),
            (state, outcome) => {
                let fault = outcome.as_ref().and_then(|outcome| outcome.fault.clone());
                let fault = fault.unwrap_or_else(|| without_reason(state)).job(record.id);
                return Err(ConsultFault::Ended { fault, record });
            }
        };
        let JobOutcome { response, session_id, model, cost_usd, usage, num_turns, stop_reason, billing, .. } = outcome;
        Ok(Self {
            job_id: record.id,
            response: response.unwrap_or_default(),
            session_id,
            model,
            cost_usd,
            usage,
            num_turns,
            stop_reason,
            billing,
            exit: outcome.exit,
            workspace_changed: outcome.workspace_changed,
            permission_denials: outcome.permission_denials,
            joined,
            stored,
            record,
        })
    }
}

/// What is said of a job that ended so, where it says nothing itself.
fn without_reason(state: JobState) -> Fault {
    let code = match state {
        JobState::Cancelled => FaultCode::Cancelled,
        JobState::Interrupted => FaultCode::RunnerLost,
        JobState::Queued | JobState::Running | JobState::Succeeded | JobState::Failed => FaultCode::Internal,
    };
    Fault::new(code, format!("the job is {} and has no outcome.", state.as_str()))
}

/// Why there is no answer. Its `source` is the [`Fault`], which has a code to match on.
///
/// ```
/// use phone_opus::{ConsultFault, Fault, FaultCode};
///
/// fn told(why: &ConsultFault) -> String {
///     let half = why.record().and_then(|record| record.outcome.as_ref()?.response.clone());
///     match (why.fault().code, why.job_id(), half) {
///         (FaultCode::QueueFull, ..) => "come back later".to_owned(),
///         (_, Some(job), Some(half)) => format!("job {job} got as far as this: {half}"),
///         (_, _, _) => why.fault().to_string(),
///     }
/// }
/// assert_eq!(told(&Fault::new(FaultCode::QueueFull, "20 jobs wait.").into()), "come back later");
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConsultFault {
    /// It was not accepted: nothing runs and nothing was kept. `invalid_input` names every problem.
    #[error("have the consult accepted")]
    Refused(#[source] Fault),
    /// The job is over without an answer: failed, cancelled or interrupted. What the agent had said is in the record.
    #[error("answer the consult (job {})", record.id)]
    Ended {
        /// Why.
        #[source]
        fault: Fault,
        /// Everything about the job.
        record: Arc<JobRecord>,
    },
    /// It was accepted, and how it goes on could not be seen from here. The job is kept; ask the store for it later.
    #[error("follow the consult (job {job_id})")]
    Lost {
        /// The job.
        job_id: JobId,
        /// Why.
        #[source]
        fault: Fault,
    },
}

impl From<Fault> for ConsultFault {
    fn from(fault: Fault) -> Self {
        Self::Refused(fault)
    }
}

impl ConsultFault {
    /// What went wrong.
    #[must_use]
    pub const fn fault(&self) -> &Fault {
        match self {
            Self::Refused(fault) | Self::Ended { fault, .. } | Self::Lost { fault, .. } => fault,
        }
    }

    /// The job, where there is one.
    #[must_use]
    pub fn job_id(&self) -> Option<JobId> {
        match self {
            Self::Refused(fault) => fault.job_id,
            Self::Ended { record, .. } => Some(record.id),
            Self::Lost { job_id, .. } => Some(*job_id),
        }
    }

    /// Everything about the job, where it is over.
    #[must_use]
    pub fn record(&self) -> Option<&JobRecord> {
        match self {
            Self::Ended { record, .. } => Some(record),
            Self::Refused(_) | Self::Lost { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;
    use crate::jobs::ConsultRequest;

    fn record(state: JobState, outcome: Option<JobOutcome>) -> Arc<JobRecord> {
        Arc::new(JobRecord { outcome, ..JobRecord::plain(state, ConsultRequest::new("why?").cwd("/w")) })
    }

    #[test]
    fn what_is_not_said_is_no_argument() {
        let said = |consult: &Consult, mode| String::from_utf8(consult.arguments(mode)).expect("text");
        assert_eq!(said(&Consult::new("why?"), JobMode::Sync), r#"{"background":false,"prompt":"why?"}"#);
        let all = Consult::new("why?")
            .cwd("/w")
            .agent("offline")
            .model("m")
            .effort("low")
            .timeout(Duration::from_millis(1500))
            .max_turns(3)
            .max_budget_usd(0.5)
            .session("s")
            .request_key("k")
            .diff("main");
        let text = said(&all, JobMode::Background);
        let value: Value = serde_json::from_str(&text).expect("JSON");
        let expected = serde_json::json!({
            "prompt": "why?", "cwd": "/w", "agent": "offline", "model": "m", "effort": "low", "timeout_s": 2, "max_turns": 3,
            "max_budget_usd": 0.5, "session_id": "s", "request_key": "k", "diff": "main", "background": true,
        });
        assert_eq!(value, expected);
        let odd = Consult::new("why?").cwd(std::ffi::OsString::from_vec(b"/w/\xff".to_vec()));
        assert_eq!(
            odd.check().expect_err("another directory is not asked about in its place").code,
            FaultCode::InvalidInput
        );
        all.check().expect("it is text");
    }

    #[test]
    fn a_job_that_is_over_is_an_outcome_or_a_fault_with_its_record() {
        let answered = JobOutcome { response: Some("42".into()), cost_usd: Some(0.25), ..JobOutcome::default() };
        let told = ConsultOutcome::of(record(JobState::Succeeded, Some(answered)), true, false).expect("an answer");
        assert_eq!((told.response.as_str(), told.cost_usd, told.joined, told.stored), ("42", Some(0.25), true, false));
        let said = JobOutcome {
            response: Some("half".into()),
            fault: Some(Fault::new(FaultCode::TurnLimit, "too many turns.")),
            ..JobOutcome::default()
        };
        for (state, outcome, code) in [
            (JobState::Failed, Some(said), FaultCode::TurnLimit),
            (JobState::Cancelled, None, FaultCode::Cancelled),
            (JobState::Interrupted, None, FaultCode::RunnerLost),
        ] {
            let record = record(state, outcome);
            let fault = ConsultOutcome::of(Arc::clone(&record), false, true).expect_err("no answer");
            assert_eq!((fault.fault().code, fault.job_id()), (code, Some(record.id)));
            assert_eq!(fault.record(), Some(&*record));
            assert!(fault.source().is_some_and(|source| source.to_string().len() > 5));
        }
    }
}
