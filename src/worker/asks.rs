//! What a worker process asks its host, and how: jobs belong to the host, and the worker's tools reach them over the pipe.
//!
//! Owns: the questions and their answers, and [`Asker`], through which a [`JobsHandle`](crate::jobs::client::JobsHandle)
//! of a worker process puts them. May not know: bytes, how the host finds its answers.
//!
//! Invariants: (1) a question gets one answer, or learns by its channel's end that there will be none; (2) accepting is
//! idempotent by invocation in the host, so a question that was put twice changes nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{FleetJobId, InvocationId, JobId, SessionNumber};
use crate::fleet::FleetView;
use crate::jobs::client::Glimpse;
use crate::jobs::{JobRecord, NewJob};
use crate::tools::placed::placing::{PlaceAsk, PlacedJob};

/// What only the host knows or may do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Question {
    /// Accept a consult.
    Accept {
        job: Box<NewJob>,
        /// Who waits.
        caller: Option<InvocationId>,
    },
    /// Begin to follow a job's news, under a number of the asker's own.
    Follow {
        job: JobId,
        /// The number.
        follow: u64,
    },
    /// Wait for news.
    Next {
        /// The number.
        follow: u64,
    },
    /// What is known live.
    Live {
        /// The number.
        follow: u64,
    },
    /// Nobody follows any more. Not answered.
    Unfollow {
        /// The number.
        follow: u64,
    },
    /// Everything about a job.
    Record { job: JobId },
    /// Its place in the queue.
    QueuePlace { job: JobId },
    /// Answers of a workspace that nobody has read.
    Unread { workspace: PathBuf },
    /// Let it go on without a caller.
    HandOver { job: JobId },
    /// What the client of a session works on.
    Roots { session: SessionNumber },
    /// Its answer was read.
    MarkRead { job: JobId },
    /// Put a consult into the fleet's queue.
    Place { ask: Box<PlaceAsk> },
    /// How a job of the fleet stands when it is over, or after so long.
    PlacedView { job: FleetJobId, most: Duration },
    /// A call waits for its job of the fleet no longer.
    Settle { call: InvocationId },
}

/// What the host answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostAnswer {
    /// The job, durable.
    Accepted {
        /// As it stands in the store.
        record: Box<JobRecord>,
        /// Whether it was there before.
        joined: bool,
    },
    /// It is followed; what the agent is doing.
    Following {
        /// In a few words.
        phase: String,
    },
    /// It goes on and something happened.
    Changed {
        /// In a few words.
        phase: String,
    },
    /// It is over.
    Finished {
        /// As it ended.
        record: Box<JobRecord>,
    },
    /// Its run is over, and the store does not take the outcome.
    Unstored {
        /// As it will have ended.
        record: Box<JobRecord>,
    },
    /// What is known live, where this host runs it.
    Live { glimpse: Option<Glimpse> },
    /// A job.
    Record { record: Box<JobRecord> },
    Place {
        /// From 1.
        place: Option<usize>,
    },
    /// Some jobs.
    Jobs {
        /// Their ids.
        jobs: Vec<JobId>,
    },
    /// What a client works on.
    Roots {
        /// As it named them.
        uris: Vec<String>,
    },
    /// A job in the fleet's queue.
    Placed { placed: PlacedJob },
    /// A job of the fleet; none that it knows.
    PlacedView { view: Option<Box<FleetView>> },
    /// Nothing to say.
    Done,
}

/// A question on its way, and who waits for the answer.
#[derive(Debug)]
pub struct Asked {
    pub question: Question,
    /// Told the answer; `None` when none is expected.
    pub reply: Option<oneshot::Sender<Result<HostAnswer, Fault>>>,
}

/// Puts questions to the host. Cheap to clone. Calls are bounded and each has few questions open, so the channel needs no
/// bound of its own.
#[derive(Debug, Clone)]
pub struct Asker {
    to: mpsc::UnboundedSender<Asked>,
    /// Numbers follows; shared by all clones.
    next: Arc<std::sync::atomic::AtomicU64>,
}

/// An answer on its way.
pub type AnswerReceiver = oneshot::Receiver<Result<HostAnswer, Fault>>;

impl Asker {
    /// An asker, and where its questions come out.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Asked>) {
        let (to, questions) = mpsc::unbounded_channel();
        (Self { to, next: Arc::default() }, questions)
    }

    /// A number nobody else has.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    /// Puts a question; the answer comes when the receiver is awaited.
    #[must_use]
    pub fn put(&self, question: Question) -> AnswerReceiver {
        let (reply, answer) = oneshot::channel();
        // A closed channel drops the reply, which its receiver sees.
        let _ = self.to.send(Asked { question, reply: Some(reply) });
        answer
    }

    /// Says something that needs no answer.
    pub fn tell(&self, question: Question) {
        let _ = self.to.send(Asked { question, reply: None });
    }

    /// Asks and waits.
    ///
    /// # Errors
    ///
    /// The host's fault; the host is gone.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not undo the question.
    pub async fn ask(&self, question: Question) -> Result<HostAnswer, Fault> {
        self.put(question).await.map_err(|_| host_gone())?
    }
}

/// The other end of the pipe is gone.
#[must_use]
pub fn host_gone() -> Fault {
    Fault::new(FaultCode::Internal, "the host is gone.")
}

/// The host answered something else than it was asked.
#[must_use]
pub fn misunderstood() -> Fault {
    Fault::new(FaultCode::WorkerProtocol, "the host answered another question than it was asked.")
}
