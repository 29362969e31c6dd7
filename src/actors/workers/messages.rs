//! What wakes the workers' supervisor, what a worker is told, and how one is reached.
//!
//! Owns: the lists, and [`WorkerHandle`]. May not know: what becomes of any message.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::actors::current::NotRunning;
use crate::actors::reply::{AttemptReply, SessionMailbox};
use crate::actors::supervision::driver::ChildNews;
use crate::base::fault::Fault;
use crate::base::ids::{CallKey, Generation, SessionNumber, UnixMillis};
use crate::config::WorkerIsolation;
use crate::tools::{Tool, ToolCall};

/// Everything that can wake the workers' supervisor.
pub enum WorkersMsg {
    /// A session has calls for a worker. It hears of every worker from now on.
    Wanted {
        /// Which session.
        session: SessionNumber,
        /// Where it hears of them.
        mailbox: SessionMailbox,
    },
    /// A session is over: it hears of nothing more, and nobody waits for its calls.
    SessionOver(SessionNumber),
    /// A worker dropped an attempt without an outcome. One that lives on is broken.
    Broken {
        /// Which incarnation.
        generation: Generation,
    },
    /// A worker is ready for calls.
    Up {
        /// Which incarnation.
        generation: Generation,
        /// Its process, where it has one of its own.
        pid: Option<u32>,
    },
    /// A worker's loop has ended, and its process: all its messages have been sent.
    Gone {
        /// Which incarnation.
        generation: Generation,
        /// Why.
        fault: Box<Fault>,
    },
    /// News of a worker's actor.
    Child(ChildNews<()>),
    /// End the worker in order and start no other, until told otherwise. Told how things stood, unless it does not end.
    SetAside(oneshot::Sender<WorkersSnapshot>),
    /// Workers may be started again.
    Resume,
    /// How are you?
    Snapshot(oneshot::Sender<WorkersSnapshot>),
}

impl WorkersMsg {
    /// Its name in a fault plan.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Wanted { .. } => "wanted",
            Self::SessionOver(_) => "session_over",
            Self::Broken { .. } => "broken",
            Self::Up { .. } => "up",
            Self::Gone { .. } => "gone",
            Self::Child(news) => news.name(),
            Self::SetAside(_) => "set_aside",
            Self::Resume => "resume",
            Self::Snapshot(_) => "snapshot",
        }
    }
}

/// The workers as health shows them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkersSnapshot {
    /// The newest generation.
    pub generation: Generation,
    /// Where tools run.
    pub isolation: WorkerIsolation,
    /// The worker's process, where it has one of its own.
    pub pid: Option<u32>,
    /// Whether a worker is there.
    pub alive: bool,
    /// Whether calls are refused because of too many losses.
    pub gave_up: bool,
    /// Restarts since the start.
    pub restarts: u64,
    /// Losses in a row.
    pub consecutive_failures: u32,
    /// The last losses, newest last.
    pub losses: Vec<(UnixMillis, Fault)>,
}

/// One attempt, as it is given to a worker.
pub struct Attempt {
    /// Which call.
    pub key: CallKey,
    /// Owed to its session.
    pub reply: AttemptReply,
    /// What is to be run.
    pub tool: Arc<dyn Tool>,
    /// With what.
    pub call: ToolCall,
}

/// What a worker is told.
pub enum WorkerMsg {
    /// Run this.
    Execute(Box<Attempt>),
    /// Run these.
    ExecuteAll(Vec<Attempt>),
    /// Nobody waits for this one any more.
    Withdraw(CallKey),
    /// Nobody waits for anything of this session any more.
    SessionOver(SessionNumber),
}

/// Reaches one incarnation's loop. Cheap to clone; it keeps nothing alive. Every message is about calls, which their
/// sessions bound, so the channel needs no bound of its own.
#[derive(Debug, Clone)]
pub struct WorkerHandle(mpsc::UnboundedSender<WorkerMsg>);

impl WorkerHandle {
    /// A handle, and where its messages come out.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<WorkerMsg>) {
        let (sender, inbox) = mpsc::unbounded_channel();
        (Self(sender), inbox)
    }

    /// Sends a message. Never waits.
    ///
    /// # Errors
    ///
    /// The worker has ended. The message is dropped, and the tokens in it tell their sessions so.
    pub fn cast(&self, message: WorkerMsg) -> Result<(), NotRunning> {
        self.0.send(message).map_err(|_| NotRunning)
    }
}
