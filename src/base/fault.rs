//! Faults: what supervision acts on and what a caller is told when something failed.
//!
//! Owns: the closed list of fault codes, with the class, the usual stage and whether trying again can help.
//! May not know: JSON-RPC (wire errors are made in `protocol`), actors, processes.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::ids::{Generation, JobId, UnixMillis};

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FaultClass {
    /// The message or its arguments were not acceptable.
    Protocol,
    /// A process could not be started or went away.
    Process,
    /// A pipe or connection failed.
    Transport,
    /// A wait reached its bound.
    Timeout,
    /// Running the request again is not allowed, and its outcome is not known.
    Replay,
    /// A bound was reached.
    Resource,
    /// The agent or its provider failed.
    Downstream,
    /// A new binary was not adopted.
    Rollout,
    /// The job store failed.
    Store,
    /// The program broke one of its own rules.
    Invariant,
}

/// Which part was at work when it went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Stage {
    /// The host process outside its workers.
    Host,
    /// A worker executing a tool.
    Worker,
    /// The life of a job: admission, runner, custody.
    Job,
    /// The agent CLI.
    Agent,
    /// Pipes and sockets.
    Transport,
    /// Reading and checking messages.
    Protocol,
    /// Replacing the binary.
    Rollout,
    /// The job store.
    Store,
}

macro_rules! fault_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $class:ident, $stage:ident, $retry:ident;)*) => {
        /// Every fault there is. The texts are stable: clients may match on them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        #[non_exhaustive]
        pub enum FaultCode {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl FaultCode {
            /// Every code, for tables and tests.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable text of the code.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The class the code belongs to.
            #[must_use]
            pub const fn class(self) -> FaultClass {
                match self { $(Self::$name => FaultClass::$class,)* }
            }

            /// The part that usually raises it.
            #[must_use]
            pub const fn stage(self) -> Stage {
                match self { $(Self::$name => Stage::$stage,)* }
            }

            /// Whether the same request may succeed when it is sent again later.
            #[must_use]
            pub const fn retryable(self) -> bool {
                match self { $(Self::$name => fault_codes!(@retry $retry),)* }
            }
        }
    };
    (@retry again) => { true };
    (@retry never) => { false };
}

fault_codes! {
    /// A line was not JSON.
    ParseError = "parse_error", Protocol, Protocol, never;
    /// A message was JSON but no acceptable request.
    InvalidRequest = "invalid_request", Protocol, Protocol, never;
    /// The method does not exist.
    UnknownMethod = "unknown_method", Protocol, Protocol, never;
    /// Parameters or arguments were not acceptable.
    InvalidInput = "invalid_input", Protocol, Protocol, never;
    /// A request came before the handshake and without an envelope.
    NotInitialized = "not_initialized", Protocol, Protocol, never;
    /// The envelope named a protocol version we do not speak.
    UnsupportedVersion = "unsupported_version", Protocol, Protocol, never;
    /// The request needs a capability its client did not declare.
    MissingCapability = "missing_capability", Protocol, Protocol, never;
    /// A reply is longer than any line may be.
    ReplyTooLarge = "reply_too_large", Resource, Host, never;
    /// The worker died and could not be replaced in time.
    WorkerLost = "worker_lost", Process, Worker, again;
    /// A worker could not be started.
    WorkerSpawnFailed = "worker_spawn_failed", Process, Worker, again;
    /// A worker process did not greet in time.
    WorkerHandshakeTimeout = "worker_handshake_timeout", Timeout, Worker, again;
    /// A worker process said something that is no message of ours.
    WorkerProtocol = "worker_protocol", Transport, Worker, again;
    /// A worker process gave no sign of life while it had work.
    WorkerUnresponsive = "worker_unresponsive", Timeout, Worker, again;
    /// A fault point of an armed plan was met.
    Injected = "injected", Invariant, Host, again;
    /// A job's runner could not be started.
    RunnerSpawnFailed = "runner_spawn_failed", Process, Job, again;
    /// A job's runner went away without an outcome.
    RunnerLost = "runner_lost", Process, Job, again;
    /// A pipe to a runner spoke something else than the exec protocol.
    RunnerProtocol = "runner_protocol", Transport, Job, again;
    /// The exec server of the agent's machine was not reached; nothing was started there.
    ExecUnreachable = "exec_unreachable", Transport, Transport, again;
    /// The exec server of the agent's machine refused us, or cannot do what an agent needs.
    ExecRefused = "exec_refused", Transport, Transport, never;
    /// The exec server of the agent's machine was lost for longer than it waits for us, and the agent with it.
    ExecLost = "exec_lost", Transport, Transport, again;
    /// The files a job of the fleet is about could not be had on the machine that was to run it; no agent was started.
    WorkspaceUnavailable = "workspace_unavailable", Downstream, Job, again;
    /// The deadline of the request passed.
    DeadlineExceeded = "deadline_exceeded", Timeout, Job, again;
    /// The agent produced nothing for the stall time.
    AgentStalled = "agent_stalled", Timeout, Agent, again;
    /// It is not known whether the request ran, and its contract forbids running it again.
    OutcomeUnknown = "outcome_unknown", Replay, Worker, never;
    /// The request was run again as often as allowed.
    ReplayExhausted = "replay_exhausted", Replay, Worker, again;
    /// The host is being stopped.
    Stopping = "stopping", Process, Host, again;
    /// Too much work in flight.
    Busy = "busy", Resource, Host, again;
    /// The prompt is larger than an agent can take.
    PromptTooLarge = "prompt_too_large", Resource, Host, never;
    /// Too many jobs are waiting.
    QueueFull = "queue_full", Resource, Job, again;
    /// The same request key was used with other arguments.
    RequestKeyConflict = "request_key_conflict", Protocol, Job, never;
    /// A consult inside a consult inside a consult.
    RecursionRefused = "recursion_refused", Resource, Job, never;
    /// No job has this id.
    UnknownJob = "unknown_job", Protocol, Job, never;
    /// The job was cancelled by request.
    Cancelled = "cancelled", Process, Job, never;
    /// The caller of a synchronous consult went away, so the job was cancelled.
    CallerLost = "caller_lost", Process, Job, again;
    /// The agent's program was not found.
    AgentMissing = "agent_missing", Downstream, Agent, never;
    /// The agent's program is not executable.
    AgentNotExecutable = "agent_not_executable", Downstream, Agent, never;
    /// The agent could not be started for another reason.
    AgentSpawnFailed = "agent_spawn_failed", Downstream, Agent, again;
    /// The agent's version does not know an option we need.
    AgentUnsupported = "agent_unsupported", Downstream, Agent, never;
    /// The agent was killed by a signal that was not ours.
    AgentKilled = "agent_killed", Downstream, Agent, again;
    /// The agent has no login or key, or it was refused.
    AgentNotLoggedIn = "agent_not_logged_in", Downstream, Agent, never;
    /// The provider refused for lack of credit.
    AgentBilling = "agent_billing", Downstream, Agent, never;
    /// The provider's usage limit is reached.
    AgentRateLimited = "agent_rate_limited", Downstream, Agent, again;
    /// The provider is overloaded.
    AgentOverloaded = "agent_overloaded", Downstream, Agent, again;
    /// The provider or the network to it failed.
    AgentUpstream = "agent_upstream", Downstream, Agent, again;
    /// The model does not exist or is not available to this account.
    AgentModel = "agent_model", Downstream, Agent, never;
    /// The agent reported an error of no known kind.
    AgentError = "agent_error", Downstream, Agent, again;
    /// The agent session to resume does not exist.
    UnknownSession = "unknown_session", Downstream, Agent, never;
    /// The agent refused the session id as such, or the session was had in another directory.
    InvalidSession = "invalid_session", Downstream, Agent, never;
    /// Prompt and history are larger than the model takes.
    InputTooLarge = "input_too_large", Downstream, Agent, never;
    /// The agent used all its turns; its session can be resumed.
    TurnLimit = "turn_limit", Downstream, Agent, never;
    /// The budget of the request was used up.
    BudgetExhausted = "budget_exhausted", Downstream, Agent, never;
    /// The model refused the request.
    Refused = "refused", Downstream, Agent, never;
    /// The answer reached the model's output limit.
    AnswerTooLong = "answer_too_long", Downstream, Agent, never;
    /// The agent ended well but said nothing.
    EmptyAnswer = "empty_answer", Downstream, Agent, again;
    /// The agent's output was not what its kind of agent writes.
    AgentProtocol = "agent_protocol", Downstream, Agent, again;
    /// The agent took the prompt for one of its own commands.
    PromptGuardFailed = "prompt_guard_failed", Downstream, Agent, never;
    /// The agent would have been paid for from another source than the one chosen.
    BillingMismatch = "billing_mismatch", Downstream, Agent, never;
    /// A new binary did not pass its check.
    RolloutRejected = "rollout_rejected", Rollout, Rollout, never;
    /// The job store cannot be used.
    StoreUnavailable = "store_unavailable", Store, Store, again;
    /// A state machine was asked for a transition that does not exist.
    IllegalTransition = "illegal_transition", Invariant, Host, never;
    /// A part of the program failed in a way it must not.
    Internal = "internal", Invariant, Host, again;
}

impl fmt::Display for FaultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One fault, as it is recorded, reported in health and shown to callers.
///
/// ```
/// use phone_opus::{Fault, FaultClass, FaultCode, Stage, UnixMillis};
///
/// let fault = Fault::new(FaultCode::InvalidInput, "`cents` is no number.").operation("charge").hint("Send a whole number.");
/// assert_eq!((fault.class, fault.stage), (FaultCode::InvalidInput.class(), FaultCode::InvalidInput.stage()));
/// assert!(!FaultCode::InvalidInput.retryable());
/// assert_eq!(fault.to_string(), "invalid_input: `cents` is no number. Send a whole number.");
///
/// let later = Fault::new(FaultCode::Busy, "The book is closed.").retry_at(UnixMillis(86_400_000));
/// assert!(later.retryable && later.class == FaultClass::Resource && later.stage == Stage::Host);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Fault {
    /// What kind of thing went wrong.
    pub class: FaultClass,
    /// Which fault it is.
    pub code: FaultCode,
    /// The worker generation it happened in, when one was involved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// Which part was at work.
    pub stage: Stage,
    /// What was being done: a tool's or method's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Whether the same request may succeed when it is sent again later.
    pub retryable: bool,
    /// How often the program itself already tried again.
    pub retried: u32,
    /// What happened, as one plain sentence without prompt text.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// When trying again makes sense, if the provider said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<UnixMillis>,
    /// The job that was accepted before it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
}

impl Fault {
    /// A fault with the usual class, stage and retry advice of its code.
    ///
    /// `detail` is one plain sentence; it never carries prompt text.
    pub fn new(code: FaultCode, detail: impl Into<String>) -> Self {
        Self {
            class: code.class(),
            code,
            generation: None,
            stage: code.stage(),
            operation: None,
            retryable: code.retryable(),
            retried: 0,
            detail: detail.into(),
            hint: None,
            retry_at: None,
            job_id: None,
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Names what was being done.
    #[must_use]
    pub fn operation(mut self, operation: impl Into<String>) -> Self {
        self.operation = Some(operation.into());
        self
    }

    /// Names the worker generation it happened in.
    #[must_use]
    #[doc(hidden)]
    pub fn generation(mut self, generation: Generation) -> Self {
        self.generation = Some(generation);
        self
    }

    /// Names the job that was accepted before it happened.
    #[must_use]
    pub fn job(mut self, job: JobId) -> Self {
        self.job_id = Some(job);
        self
    }

    /// Says when trying again makes sense.
    #[must_use]
    pub fn retry_at(mut self, at: UnixMillis) -> Self {
        self.retry_at = Some(at);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)?;
        if let Some(hint) = &self.hint {
            write!(f, " {hint}")?;
        }
        if let Some(job) = &self.job_id {
            write!(f, " (job {job})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// An error with everything it came from, as one text.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_snake_case_and_survive_json() {
        let mut seen = std::collections::HashSet::new();
        for &code in FaultCode::ALL {
            let text = code.as_str();
            assert!(seen.insert(text), "{text} stands twice");
            assert!(text.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{text}");
            let json = serde_json::to_string(&Fault::new(code, "x")).expect("a fault serialises");
            assert!(json.contains(&format!("\"code\":\"{text}\"")), "{json}");
            let back: Fault = serde_json::from_str(&json).expect("and reads back");
            assert_eq!(back.code, code);
        }
    }
}
