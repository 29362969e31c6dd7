//! Everything that can wake the jobs' supervisor.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use super::adopting::AtWork;
use super::core::AskId;
use super::starting::HeldRunner;
use crate::actors::supervision::driver::ChildNews;
use crate::base::fault::Fault;
use crate::base::ids::{InvocationId, JobId, SessionNumber};
use crate::jobs::client::Accepted;
use crate::jobs::live::JobLive;
use crate::jobs::store::Accept;
use crate::jobs::{JobRecord, NewJob};

/// Whether a question was put to an earlier incarnation, which may have acted on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It is the first time.
    No,
    /// The answer to an earlier one was lost.
    Yes,
}

/// Everything that can wake the jobs' supervisor.
pub enum JobsMsg {
    /// Accept a consult.
    Accept {
        /// The job as it was asked for.
        job: Box<NewJob>,
        /// Who waits for it.
        caller: Option<InvocationId>,
        /// Whether it was asked for before.
        again: Again,
        /// Told when it is durable.
        reply: oneshot::Sender<Result<Accepted, Fault>>,
    },
    /// The store has answered.
    Stored {
        /// The ask.
        ask: AskId,
        /// A runner that was started for it meanwhile.
        held: Option<HeldRunner>,
        /// It was adopted on the way: whether anybody works at it.
        adopted: Option<AtWork>,
        /// What became of it.
        result: Box<Result<Accept, Fault>>,
    },
    /// A call was withdrawn; its job may have lost its last caller.
    Withdrawn(InvocationId),
    /// A session goes on after it was interrupted, with these calls open. What else it had has no caller any more.
    Resumed {
        /// The session that goes on.
        session: SessionNumber,
        /// Its calls.
        open: HashSet<u64>,
    },
    /// A session is over: its calls have no caller any more.
    SessionOver(SessionNumber),
    /// A job is waited for by nobody any more, and goes on.
    HandedOver(JobId),
    /// Somebody was told how a job ended.
    Shown(JobId),
    /// Where is the news of this job?
    Attach {
        /// The job that is asked about.
        job: JobId,
        /// `None` when it runs under another host, or is over.
        reply: oneshot::Sender<Option<watch::Receiver<JobLive>>>,
    },
    /// Ask the runner of this job to end it, if it is ours; the store has been told.
    Terminate(JobId),
    /// A job's custody has ended.
    Ended {
        /// The job whose custody ended.
        job: JobId,
        /// How it ended, where the store could say.
        record: Option<Arc<JobRecord>>,
    },
    /// This incarnation begins where the last one ended.
    Restarted,
    /// News of a consult actor.
    Child(ChildNews<JobId>),
    /// Look for jobs whose runner is gone.
    Sweep,
    /// A background job was accepted and has no runner: its host died in between.
    Adopt(Box<JobRecord>),
    /// The sweep has looked at jobs of other hosts.
    Looked {
        /// Jobs that are in the custody of this host from now on, and at which somebody works.
        adopted: Vec<JobRecord>,
        /// Another host lives whose jobs may have to be adopted.
        others: bool,
    },
    /// The time is over in which the callers of an adopted job may come back.
    CallersDue(JobId),
    /// Let go of every job's custody, start no runner, and tell when no accept is under way any more.
    LetGo(oneshot::Sender<()>),
    /// This host ends: let go of the jobs that others may adopt, and of the life of this host with them. Told when it is done.
    Leave(oneshot::Sender<()>),
    /// Attend to them again.
    Resume,
    /// Which jobs are attached?
    Attached(oneshot::Sender<usize>),
}

impl JobsMsg {
    /// Its name in a fault plan.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Accept { .. } => "accept",
            Self::Stored { .. } => "stored",
            Self::Withdrawn(_) => "withdrawn",
            Self::Resumed { .. } => "resumed",
            Self::SessionOver(_) => "session_over",
            Self::HandedOver(_) => "handed_over",
            Self::Shown(_) => "shown",
            Self::Attach { .. } => "attach",
            Self::Terminate(_) => "terminate",
            Self::Ended { .. } => "ended",
            Self::Restarted => "restarted",
            Self::Child(news) => news.name(),
            Self::Sweep => "sweep",
            Self::Adopt(_) => "adopt",
            Self::Looked { .. } => "looked",
            Self::CallersDue(_) => "callers_due",
            Self::LetGo(_) => "let_go",
            Self::Leave(_) => "leave",
            Self::Resume => "resume",
            Self::Attached(_) => "attached",
        }
    }
}
