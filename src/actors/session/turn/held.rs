//! What a session holds of its tools, its worker and its calls.
//!
//! Owns: these types. May not know: what is decided with them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::AbortHandle;

use crate::actors::workers::messages::WorkerHandle;
use crate::base::ids::{Generation, JobId};
use crate::protocol::session::{Call, ClientInfo, Wanted};
use crate::protocol::tasks::TaskAsk;
use crate::tools::{ReplayContract, Target, Tool};

/// What a turn knows of a tool; asked once, when the session begins.
#[derive(Debug, Clone)]
pub(in crate::actors) struct ToolFacts {
    pub(in super::super) name: Arc<str>,
    pub(super) target: Target,
    pub(in super::super) contract: ReplayContract,
    pub(super) deadline: Option<Duration>,
    pub(in super::super) waits: bool,
}

impl ToolFacts {
    pub(in crate::actors) fn of(tool: &dyn Tool) -> Self {
        Self {
            name: Arc::from(tool.name()),
            target: tool.target(),
            contract: tool.contract(),
            deadline: tool.deadline(),
            waits: tool.waits(),
        }
    }
}

/// What is known of the worker.
#[derive(Debug)]
pub(in super::super) enum Serving {
    /// Nothing: nobody was asked.
    Unasked,
    /// The supervisor was asked, or is starting one.
    Awaited,
    /// There is one.
    Up(Generation, WorkerHandle),
}

/// What is kept with a worker call.
#[derive(Debug)]
pub(in super::super) struct Payload {
    pub(in super::super) tool: usize,
    pub(in super::super) arguments: Bytes,
    pub(in super::super) client: ClientInfo,
    pub(in super::super) wants_progress: bool,
}

/// A call the host works at.
#[derive(Debug)]
pub(in super::super) struct HostCall {
    /// What works at it; `None` until its effect is performed.
    pub(in super::super) task: Option<AbortHandle>,
    pub(in super::super) work: HostWork,
}

/// What it works at.
#[derive(Debug)]
pub(in super::super) enum HostWork {
    Tool(Call),
    Ask(TaskAsk, ClientInfo),
    /// Its refusal is on its way.
    Refused,
}

/// Tasks that are followed under one number.
#[derive(Debug)]
pub(in super::super) struct Following {
    pub(in super::super) tasks: Vec<AbortHandle>,
    pub(in super::super) jobs: Vec<JobId>,
    pub(in super::super) wanted: Wanted,
    pub(in super::super) client: ClientInfo,
}

/// What telemetry wants to know about the call that is being settled.
#[derive(Debug, Default)]
pub(super) struct Settling {
    pub(super) job: Option<JobId>,
    pub(super) tells_end: bool,
    /// Further jobs whose end is told.
    pub(super) ends: Vec<JobId>,
    pub(super) path_hint: Option<String>,
    pub(super) generation: Generation,
    pub(super) replays: u32,
}

impl Settling {
    /// The jobs whose end is told.
    pub(super) fn ends_told(&self) -> impl Iterator<Item = JobId> {
        self.job.filter(|_| self.tells_end).into_iter().chain(self.ends.iter().copied())
    }
}
