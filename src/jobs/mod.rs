//! Jobs: what a consult is once it has been accepted.
//!
//! Owns: the job's states and the one function that moves between them, the frozen request, the outcome, the
//! journal's event kinds. May not know: SQL, actors, how an agent is run.
//!
//! ```text
//!            runner took it            outcome
//!  queued ─────────────────▶ running ───────────▶ succeeded | failed | cancelled
//!    │                          └── runner gone ──▶ interrupted
//!    └── cancel, caller lost ──▶ cancelled   ── could not start ──▶ failed   ── runner gone ──▶ interrupted
//! ```
//!
//! Invariants: (1) the four states on the right are final; (2) every change of state passes [`JobState::advance`],
//! and the store enforces the same edges once more in its own update.

pub mod admission;
pub mod client;
pub mod cloned;
pub mod evidence;
pub mod fleet_runs;
pub mod host_lock;
pub mod hosts;
pub mod journal;
pub mod leftovers;
pub mod limits;
pub mod live;
pub mod lock;
pub mod outcome_file;
pub mod overdue;
pub mod recall;
pub mod reserve;
pub mod row;
pub mod store;
pub mod sweep;
pub mod turns;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::cloned::{CloneChanges, CloneOf, ClonePatch};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{AgentSessionId, ChainId, HostId, InvocationId, JobId, RunToken, UnixMillis, WaiterId};
use crate::base::trace::JobTrace;
use crate::jobs::journal::AgentEvent;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum JobState {
    /// Accepted and durable; no agent has been started.
    Queued,
    /// A runner owns it and may have started the agent.
    Running,
    /// The agent answered.
    Succeeded,
    /// The agent or the run failed.
    Failed,
    /// Stopped by request, deadline or because its caller is gone.
    Cancelled,
    /// The runner is gone without an outcome.
    Interrupted,
}

impl JobState {
    /// Every state, for tables and argument messages.
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled, Self::Interrupted];

    /// The stable text of the state.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }

    /// The state with this text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether the state is final.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        match self {
            Self::Queued | Self::Running => false,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Interrupted => true,
        }
    }

    /// The one function every change of state passes; the match is the diagram above.
    ///
    /// # Errors
    ///
    /// `illegal_transition`, naming both states, for every edge that is not drawn.
    #[doc(hidden)]
    pub fn advance(self, to: Self) -> Result<Self, Fault> {
        match (self, to) {
            (Self::Queued, Self::Running | Self::Failed | Self::Cancelled | Self::Interrupted)
            | (Self::Running, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Interrupted) => Ok(to),
            (from, to) => Err(Fault::new(
                FaultCode::IllegalTransition,
                format!("a job cannot go from {} to {}", from.as_str(), to.as_str()),
            )),
        }
    }
}

/// Whether somebody waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobMode {
    /// The caller waits; when it is gone the job is cancelled.
    Sync,
    /// Nobody needs to wait; the job goes on without any host.
    Background,
}

impl JobMode {
    /// The stable text of the mode.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Background => "background",
        }
    }
}

/// Where the agent's money may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Billing {
    /// The user's login; API keys are withheld from the agent.
    #[default]
    Subscription,
    /// API keys of the environment are handed on.
    ApiKey,
}

impl Billing {
    /// The stable text of the choice.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Subscription => "subscription",
            Self::ApiKey => "api_key",
        }
    }

    /// The choice of this text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Subscription, Self::ApiKey].into_iter().find(|billing| billing.as_str() == text)
    }
}

/// What was asked, frozen when the job was accepted. Two requests are "the same arguments" when these are equal.
///
/// ```no_run
/// # async fn go_on(system: &phone_opus::System) -> Result<(), Box<dyn std::error::Error>> {
/// use phone_opus::{ConsultRequest, JobMode};
///
/// let session = "6f0c4f0e-5f0b-4c0e-9a57-0d7a1f0e8b11".parse()?;      // of an earlier outcome
/// let request = ConsultRequest::new("and the tests?").cwd("/repository").resume(session).timeout_s(600);
/// let job = system.start_consult(request, JobMode::Background).await?.id;
/// # let _ = job;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ConsultRequest {
    /// The caller's text, without our prefix.
    pub prompt: String,
    /// An absolute, existing directory, of `machine` where that is said; the agent runs there.
    pub cwd: PathBuf,
    /// Where the agent's process runs, when that is not this machine: how that one is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The agent that answers, by name.
    pub agent: String,
    /// The agent session to resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<AgentSessionId>,
    /// Most turns the agent may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_turns: Option<u32>,
    /// Model name or alias, handed on as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Effort level, handed on as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<String>,
    /// Seconds the agent may run.
    pub timeout_s: u64,
    /// Most US dollars the agent may spend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_budget_usd: Option<f64>,
    /// Where the money may come from.
    pub billing: Billing,
    /// The diff that was asked for and stands in the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<AskedDiff>,
    /// The commit that stands for the directory on machines that do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_of: Option<CloneOf>,
}

/// A diff that stands behind the caller's words in a prompt. Asked for again it may be another one: what is the same is what
/// was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct AskedDiff {
    /// What is compared with, as the caller named it.
    pub base: String,
    /// Bytes of the prompt before it: the caller's words.
    pub at: usize,
}

impl AskedDiff {
    /// One that stands behind so many bytes.
    pub(crate) const fn new(base: String, at: usize) -> Self {
        Self { base, at }
    }
}

impl ConsultRequest {
    /// The caller's words, without the diff that was asked for.
    #[must_use]
    #[doc(hidden)]
    pub fn words(&self) -> &str {
        let end = self.diff.as_ref().map_or(self.prompt.len(), |diff| diff.at);
        self.prompt.get(..end).unwrap_or(&self.prompt)
    }

    /// A request to Claude Code with everything at its default; [`ConsultRequest::cwd`] must follow.
    #[must_use]
    pub fn new(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            cwd: PathBuf::new(),
            machine: None,
            agent: "claude".to_owned(),
            session_id: None,
            max_turns: None,
            model: None,
            effort: None,
            timeout_s: 3600,
            max_budget_usd: None,
            billing: Billing::Subscription,
            diff: None,
            clone_of: None,
        }
    }

    /// The directory the agent runs in: absolute and there.
    #[must_use]
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cwd = dir.into();
        self
    }

    /// The agent that answers.
    #[must_use]
    pub fn agent(mut self, name: impl Into<String>) -> Self {
        self.agent = name.into();
        self
    }

    /// The agent session to resume.
    #[must_use]
    pub fn resume(mut self, session: AgentSessionId) -> Self {
        self.session_id = Some(session);
        self
    }

    /// How long the agent may run.
    #[must_use]
    pub fn timeout_s(mut self, seconds: u64) -> Self {
        self.timeout_s = seconds;
        self
    }
}

/// A job to be inserted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewJob {
    /// The id the job will have unless it joins an older one.
    pub id: JobId,
    /// The invocation that asks; a second accept of the same invocation joins.
    pub invocation: Option<InvocationId>,
    /// The caller's own key; a second accept with the same key and arguments joins, with other arguments it conflicts.
    pub request_key: Option<String>,
    /// The options of the request its caller named; what it did not name is not compared when its key comes again. `None`:
    /// all of them.
    #[serde(default)]
    pub given: Option<Vec<String>>,
    /// The directory the job belongs to: `cwd`, made canonical; of another machine, [`elsewhere`](crate::places::elsewhere).
    pub workspace: PathBuf,
    /// Whether somebody waits.
    pub mode: JobMode,
    /// What was asked.
    pub request: ConsultRequest,
    /// The chain of nested consults.
    pub chain: ChainId,
    /// How deep in the chain this one is; 0 outside any agent.
    pub depth: u32,
    /// When it was accepted.
    pub accepted_at: UnixMillis,
    /// The digest of the environment it is to run with, where that is known; never the environment itself.
    #[serde(default)]
    pub environment: Option<String>,
    /// Whose usage it is (`Agent::account`); set by whoever knows the environment the agent is to get.
    #[serde(default)]
    pub account: String,
    /// The host that has custody of it, where another one may follow it in that; set by that host.
    #[serde(default)]
    pub host: Option<HostId>,
    /// The trace it is part of; set by the host that accepts it, below what is here of a job without an invocation.
    #[serde(default)]
    pub trace: Option<JobTrace>,
}

/// A job as the store holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JobRecord {
    /// Its id.
    pub id: JobId,
    /// Grows by one per accepted job of the store: the order of the queue.
    pub sequence: u64,
    /// The invocation that asked.
    pub invocation: Option<String>,
    /// The caller's own key.
    pub request_key: Option<String>,
    /// The directory it belongs to.
    pub workspace: PathBuf,
    /// Whether somebody waits (a soft deadline turns `sync` into `background`).
    pub mode: JobMode,
    /// Where it stands.
    pub state: JobState,
    /// What was asked.
    pub request: ConsultRequest,
    /// The chain of nested consults.
    pub chain: ChainId,
    /// How deep in the chain it is.
    pub depth: u32,
    /// When it was accepted.
    pub accepted_at: UnixMillis,
    /// When a runner moved it to `running`.
    pub started_at: Option<UnixMillis>,
    /// When it reached its terminal state.
    pub finished_at: Option<UnixMillis>,
    /// Who asked for it to be cancelled, if anybody did.
    pub cancel_requested: Option<CancelReason>,
    /// The process the agent runs in, once started.
    #[doc(hidden)]
    pub process: Option<RunProcess>,
    /// How it ended; present exactly when the state is terminal.
    pub outcome: Option<JobOutcome>,
    /// When somebody first read the outcome.
    pub read_at: Option<UnixMillis>,
    /// The highest journal sequence number, 0 when there is none.
    pub last_event: u64,
    /// Who waits for its turn with it, while it is queued.
    #[serde(skip)]
    #[doc(hidden)]
    pub waiter: Option<WaiterId>,
    /// The digest of the environment it is to run with.
    #[serde(skip)]
    #[doc(hidden)]
    pub environment: Option<String>,
    /// The host that has custody of it; `None` where no other one may follow it in that.
    #[serde(skip)]
    #[doc(hidden)]
    pub host: Option<HostId>,
    /// The trace it is part of.
    #[serde(skip)]
    #[doc(hidden)]
    pub trace: Option<JobTrace>,
}

impl JobRecord {
    /// A job in this state, and nothing else to be said of it: what tests begin with.
    #[cfg(test)]
    pub(crate) fn plain(state: JobState, request: ConsultRequest) -> Self {
        Self {
            id: JobId::random(),
            sequence: 1,
            invocation: None,
            request_key: None,
            workspace: request.cwd.clone(),
            mode: JobMode::Sync,
            state,
            request,
            chain: ChainId::random(),
            depth: 0,
            accepted_at: UnixMillis(1),
            started_at: None,
            finished_at: None,
            cancel_requested: None,
            process: None,
            outcome: None,
            read_at: None,
            last_event: 0,
            waiter: None,
            environment: None,
            host: None,
            trace: None,
        }
    }

    /// Whether the job is over without an agent having been started for it.
    ///
    /// A runner that says so has no exit to tell of. One that is gone says nothing, so then there must be no mark either,
    /// which is recorded before anything is started.
    #[must_use]
    #[doc(hidden)]
    pub fn nothing_ran(&self) -> bool {
        let judged = self.state == JobState::Failed && self.process.is_none_or(|process| process.pid == 0);
        self.state.is_terminal()
            && self.state != JobState::Succeeded
            && self.outcome.as_ref().is_none_or(|outcome| outcome.exit.is_none())
            && (judged || self.process.is_none())
    }
}

/// The short row of a listing.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct JobSummary {
    /// The job.
    pub id: JobId,
    /// Where it stands.
    pub state: JobState,
    /// Whether somebody waits.
    pub mode: JobMode,
    /// The agent that answers.
    pub agent: String,
    /// The directory it belongs to.
    pub workspace: PathBuf,
    /// The agent session it created or resumed, when known.
    pub session_id: Option<String>,
    /// The first 80 characters of the prompt, on one line.
    pub prompt_head: String,
    /// When it was accepted.
    pub accepted_at: UnixMillis,
    /// When it reached its terminal state.
    pub finished_at: Option<UnixMillis>,
    /// Whether its outcome is there and nobody has read it.
    pub unread: bool,
}

/// The agent's process, as evidence for a sweep: a pid alone proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunProcess {
    /// The agent's pid, which is also its process group.
    pub pid: u32,
    /// The kernel's start time of that process (clock ticks since boot on Linux), 0 where unknown.
    pub start_time: u64,
    /// The token in the environment of everything the run started.
    pub token: RunToken,
    /// The session its runner leads, into which everything the run starts is born; 0 where unknown.
    #[serde(default)]
    pub session: u32,
    /// Which numbering of processes these numbers belong to: one boot of one machine, one namespace. 0 where unknown, and
    /// then the numbers prove nothing.
    #[serde(default)]
    pub numbering: u64,
}

/// Why a job is to be cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CancelReason {
    /// Somebody asked.
    Requested,
    /// The caller of a synchronous consult is gone.
    CallerLost,
    /// The runner was told to end (signal).
    RunnerStopped,
}

impl CancelReason {
    /// The stable text of the reason.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::CallerLost => "caller_lost",
            Self::RunnerStopped => "runner_stopped",
        }
    }

    /// The reason with this text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Requested, Self::CallerLost, Self::RunnerStopped].into_iter().find(|reason| reason.as_str() == text)
    }
}

/// How the agent's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunExit {
    /// Exit code, 128 + n for death by signal n.
    pub code: i32,
    /// The signal it died of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Processes of its group that had to be ended after it.
    pub reaped: u32,
}

/// One refused tool use of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PermissionDenial {
    /// The tool that was refused.
    pub tool: String,
    /// The path or command it was refused for, shortened to 200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Everything a finished job has to say. Unknown is `None`, never a zero.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JobOutcome {
    /// The answer; also present on failure when the agent had said something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    /// Whether `response` was cut to the most we keep.
    #[serde(default)]
    pub response_cut: bool,
    /// The agent session, resumable when `resumable` says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// The model that answered, as the agent reported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Where the agent said its key came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub billing: Option<String>,
    /// Whether anything was used beyond the plan, and paid for besides.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub extra_usage: bool,
    /// The usage limit that was reached, by the provider's name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// What it cost in US dollars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// Turns the agent took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_turns: Option<u64>,
    /// Why the model stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
    /// Token counts, as the agent reported them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Value>,
    /// Token counts and cost by model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_usage: Option<Value>,
    /// Tool uses that were refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub permission_denials: Vec<PermissionDenial>,
    /// Whether our fixed line stood before the caller's prompt.
    #[serde(default)]
    pub prompt_prefix_injected: bool,
    /// Why it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// How the agent's process ended; absent when none was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<RunExit>,
    /// Whether the agent session can be resumed after this end; `None` when it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumable: Option<bool>,
    /// Whether anything in the working directory was different after the run; `None` when that is not known. Of an agent that has
    /// nothing to write with: false, and nobody looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_changed: Option<bool>,
    /// The last of the agent's standard error, for failures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_tail: Option<String>,
    /// Milliseconds from acceptance to the runner's start of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_ms: Option<u64>,
    /// Milliseconds from the agent's start to the end of its process group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_ms: Option<u64>,
    /// The exec server of the machine it ran on, where a host of a fleet reached that for somebody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The commit it ran in a clone of, where it did not run in the directory that was asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_of: Option<CloneOf>,
}

/// One journal entry of a job. Sequence numbers start at 1 and have no gaps.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct JournalEntry {
    /// Position in the job's journal.
    pub seq: u64,
    /// When it was written down.
    pub at: UnixMillis,
    /// What happened.
    pub event: JournalEvent,
}

/// What the journal records: process events and agent events under one sequence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum JournalEvent {
    /// The runner took the job and is about to start the agent.
    Dispatched,
    /// The agent's process exists.
    ProcessStarted { pid: u32 },
    /// Something the agent reported; long texts are shortened before they are journalled.
    Agent { event: AgentEvent },
    /// The agent's process exited; output may follow.
    ProcessExited {
        /// Exit code, 128 + n for death by signal n.
        code: i32,
    },
    /// All pipes are closed and the process group is empty.
    ProcessClosed,
    /// The journal reached its bound; what follows is in the outcome only.
    Truncated,
}
