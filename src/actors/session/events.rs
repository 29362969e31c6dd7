//! Everything that wakes a session besides its client's bytes and its clock.
//!
//! Owns: the list. May not know: what becomes of any of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::DirectCall;
use super::passed::SessionSnapshot;
use crate::actors::workers::messages::WorkerHandle;
use crate::base::fault::Fault;
use crate::base::ids::{CallNumber, Generation};
use crate::protocol::session::CallOutcome;
use crate::protocol::tasks::{TaskAnswer, TaskNews};
use crate::protocol::version::Version;
use crate::tools::Evidence;
use crate::tools::progress::Latest;

/// A session's client, for whoever looks at a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientSeen {
    /// Its name.
    pub client: Option<String>,
    /// The version of its program.
    pub version: Option<String>,
    /// The revision it speaks.
    pub protocol: Option<Version>,
    /// Calls in flight.
    pub calls: usize,
}

/// Everything a session hears besides its client's bytes and its clock.
#[derive(Debug)]
pub enum SessionEvent {
    /// A worker finished an attempt.
    Settled {
        /// Which incarnation says so.
        generation: Generation,
        /// Which call.
        call: CallNumber,
        /// How it came out.
        outcome: CallOutcome,
    },
    /// A worker dropped an attempt without an outcome.
    Dropped {
        /// Which incarnation.
        generation: Generation,
        /// Which call.
        call: CallNumber,
    },
    /// There is a worker.
    WorkerUp {
        /// Which incarnation.
        generation: Generation,
        /// The way to it.
        worker: WorkerHandle,
    },
    /// A worker and all before it are gone, and have said everything they had to say.
    WorkerGone {
        /// The newest of them.
        generation: Generation,
    },
    /// There will be no worker for a while.
    WorkersGaveUp {
        /// After so long at most, one is started again when it is wanted.
        period: Duration,
    },
    /// A probe answered.
    Probed {
        /// For which call.
        call: CallNumber,
        /// What it found.
        evidence: Evidence,
    },
    /// A host tool finished.
    HostSettled {
        /// Which call.
        call: CallNumber,
        /// How it came out.
        outcome: CallOutcome,
    },
    /// Something about tasks was found out.
    Told {
        /// For which request.
        call: CallNumber,
        /// What was found out.
        answer: Result<TaskAnswer, Box<Fault>>,
    },
    /// News of a task that is followed.
    TaskNews {
        /// Under which number.
        number: CallNumber,
        /// How the task stands.
        news: TaskNews,
    },
    /// A control message was answered.
    ControlAnswered {
        /// Which one.
        number: u64,
        /// The answer, without its line's end.
        line: String,
        /// Whether it was not followed.
        refused: bool,
    },
    /// Who is the client, and how many calls has it in flight?
    Describe(oneshot::Sender<ClientSeen>),
    /// Whoever opened the session with a control message is told this line, without its end.
    SayBeside(String),
    /// What would be passed on, were it done now?
    Peek(oneshot::Sender<SessionSnapshot>),
    /// Read nothing more, and tell when only calls are open that another image can go on with.
    Freeze(oneshot::Sender<()>),
    /// Do nothing more: this is what is passed on.
    HoldStill(oneshot::Sender<SessionSnapshot>),
    /// Nothing was passed on: go on. The workers up to this generation were ended for it.
    Thaw(Generation),
    /// The tools differ from what clients were told.
    ToolsChanged,
    /// A call made progress.
    Progress {
        /// Which call.
        call: CallNumber,
        /// What it reported last.
        latest: Latest,
    },
    /// It is a session of the embedding program itself, which calls itself so.
    Embedded(Arc<str>),
    /// The embedding program makes a call.
    Invoked(Box<DirectCall>),
    /// It does not wait for this one any more.
    Left(CallNumber),
    /// The system stops.
    Stop,
}
