//! Tools: what a client can call.
//!
//! Owns: the trait every tool implements, its replay contract, how arguments are read and refused. May not know:
//! JSON-RPC, sessions, which worker runs it.
//!
//! Reading order: this file for the contract, [`arguments`] for reading arguments, [`consult`] and [`readers`] for
//! the tools themselves, [`several`] for a consult of more than one agent, [`reply`] for what they answer, [`tasks`] for the other view of a job.

pub mod arguments;
pub mod callers;
pub mod consult;
mod diff;
mod grounds;
pub mod placed;
pub mod progress;
pub mod readers;
pub mod reply;
pub mod roots;
pub mod several;
pub mod tasks;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use self::progress::ProgressSink;
use crate::base::fault::Fault;
use crate::base::ids::{Generation, InvocationId};
pub use crate::protocol::catalog::{Annotations, TaskSupport, ToolDefinition};
use crate::protocol::session::ClientInfo;
pub use crate::protocol::wire::{ReplyText, ToolReply};

/// The names of our own tools, in the order they are listed.
pub const NAMES: [&str; 6] =
    ["consult", "consult_job", "consult_jobs", "consult_cancel", "health_snapshot", "telemetry_snapshot"];

/// When a call may be run again after its worker was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplayContract {
    /// Running it twice is the same as running it once.
    Convergent,
    /// It may be run again only when evidence says it had no effect; [`Tool::probe`] finds the evidence.
    ProbeRequired,
    /// Never. The default, because an embedder's tool may do anything.
    NeverReplay,
}

impl ReplayContract {
    /// Every contract, for tables.
    pub const ALL: [Self; 3] = [Self::Convergent, Self::ProbeRequired, Self::NeverReplay];
}

/// What a probe found out about a call whose worker was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The call took effect: a new attempt attaches to it.
    Accepted,
    /// It had no effect: a new attempt starts it.
    NotAccepted,
    /// It could not be found out.
    Unknown,
}

/// Where a tool runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Target {
    /// In a worker: its crash is survived and the contract decides what happens to the call.
    Worker,
    /// In the host, beside the session: available even when no worker can be started.
    Host,
}

/// One attempt at one call.
#[derive(Debug)]
pub struct ToolCall {
    /// The call, the same through all its attempts.
    pub invocation: InvocationId,
    /// The worker it runs in; [`Generation::NONE`] in the host.
    pub generation: Generation,
    /// What a probe found, for attempts after the first.
    pub evidence: Option<Evidence>,
    /// The JSON text of the arguments: an object.
    pub arguments: Bytes,
    /// Who called.
    pub client: ClientInfo,
    /// Takes progress reports; says whether anybody wants them.
    pub progress: ProgressSink,
    /// How long its caller had waited when the program was replaced under it; zero for every other attempt. Only tools that
    /// run in the host are told.
    pub waited: Duration,
}

/// A tool's work. It is dropped at any await when its caller is gone or its worker dies.
pub type ToolFuture = Pin<Box<dyn Future<Output = Result<ToolReply, Fault>> + Send>>;

/// A probe's work.
pub type ProbeFuture = Pin<Box<dyn Future<Output = Evidence> + Send>>;

/// Something a client can call.
///
/// # Cancel safety
///
/// The future [`Tool::call`] returns may be dropped at any await point. Work that must outlive that belongs to an
/// actor, not to the future.
///
/// ```
/// use std::time::Duration;
/// use phone_opus::{
///     Annotations, Fault, FaultCode, ReplayContract, Target, TaskSupport, Tool, ToolCall, ToolDefinition, ToolFuture, ToolReply,
/// };
///
/// /// Says how far a build is, even when no worker can be started.
/// struct BuildState;
///
/// impl Tool for BuildState {
///     fn name(&self) -> &str { "build_state" }
///     fn definition(&self) -> ToolDefinition {
///         ToolDefinition {
///             name: "build_state".into(), title: "Build".into(), description: "Says how far the build is.".into(),
///             input_schema: serde_json::json!({"type": "object"}),
///             annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
///             meta: None,
///         }
///     }
///     fn contract(&self) -> ReplayContract { ReplayContract::Convergent }
///     fn target(&self) -> Target { Target::Host }
///     fn tasks(&self) -> TaskSupport { TaskSupport::Forbidden }
///     fn deadline(&self) -> Option<Duration> { Some(Duration::from_secs(2)) }
///     fn waits(&self) -> bool { false }
///     fn call(&self, _: ToolCall) -> ToolFuture {
///         Box::pin(async { Ok(ToolReply::fault(&Fault::new(FaultCode::InvalidInput, "There is no build."))) })
///     }
/// }
/// # let _ = phone_opus::System::builder().tool(BuildState);
/// ```
pub trait Tool: Send + Sync + 'static {
    /// Its name, stable, at most 40 characters of snake_case.
    fn name(&self) -> &str;

    /// What clients are told about it. Called once per protocol revision, when tools are first listed.
    fn definition(&self) -> ToolDefinition;

    /// When a call may be run again.
    fn contract(&self) -> ReplayContract {
        ReplayContract::NeverReplay
    }

    /// Where it runs.
    fn target(&self) -> Target {
        Target::Worker
    }

    /// Whether its calls may become tasks.
    fn tasks(&self) -> TaskSupport {
        TaskSupport::Forbidden
    }

    /// Longest a call may take before its caller is answered `deadline_exceeded`. `None` when the tool bounds itself.
    fn deadline(&self) -> Option<Duration> {
        Some(Duration::from_secs(60))
    }

    /// Whether its calls wait for something outside, for as long as it takes. An upgrade does not wait for them: they go on
    /// in the new program, as their contract allows.
    fn waits(&self) -> bool {
        false
    }

    /// Runs one attempt. A future that is ready at its first poll costs no task.
    fn call(&self, call: ToolCall) -> ToolFuture;

    /// Finds out whether an earlier attempt took effect; asked only under [`ReplayContract::ProbeRequired`].
    fn probe(&self, invocation: InvocationId) -> ProbeFuture {
        let _ = invocation;
        Box::pin(std::future::ready(Evidence::Unknown))
    }
}
