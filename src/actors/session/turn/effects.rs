//! What a turn decides about, and what it wants done.
//!
//! Owns: the two lists. May not know: what follows from an event, how an effect is performed.

use std::collections::HashSet;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::actors::session::{ClientSeen, SessionEvent, SessionSnapshot};
use crate::base::fault::Fault;
use crate::base::ids::{CallNumber, Generation, InvocationId, JobId};
use crate::daemon::control::ControlMessage;
use crate::protocol::session::{Call, CallOutcome, ClientInfo, Roots};
use crate::protocol::tasks::TaskAsk;
use crate::tools::progress::ProgressSink;

/// Everything a turn decides about.
#[derive(Debug)]
pub(in super::super) enum TurnEvent {
    /// Something came by the mailbox.
    Heard(SessionEvent),
    /// Bytes were added to the reader.
    Read,
    /// The client sends nothing more.
    ReadAll,
    /// So many bytes of output were taken.
    Written(usize),
    /// All output was taken, and nothing of it is held back.
    WrittenThrough,
    /// Nothing written is held back any more.
    Flushed,
    /// The client reads nothing more.
    HungUp,
    /// The clock fired.
    Woke,
    /// The worker had ended before it was given these calls.
    Undelivered {
        /// Which incarnation.
        generation: Generation,
        /// The calls.
        calls: Vec<CallNumber>,
    },
    /// A panic broke the last run off, or another image did; what was decided is still to be performed.
    Interrupted,
    /// All that was decided before the interruption is performed: the session goes on.
    Resumed,
}

/// What a turn wants done.
#[derive(Debug)]
pub(in super::super) enum TurnEffect {
    /// Run this call in the host.
    RunHere(Call),
    /// Run this call in the host again; its caller has waited this long.
    RunAgain(Call, Duration),
    /// Answer this call, which a fault point struck, with this.
    Refuse(CallNumber, Box<Fault>),
    /// Give the worker the calls that wait to be sent, if there is one.
    Dispatch,
    /// Ask the supervisor for a worker.
    WantWorker,
    /// Tell the supervisor that this worker is broken.
    ReportBroken(Generation),
    /// Tell the worker that nobody waits for this call.
    WithdrawFromWorker(CallNumber),
    /// Tell the jobs that nobody waits for this call.
    WithdrawFromJob(InvocationId),
    /// Tell the jobs which calls are still open.
    Reopen(HashSet<u64>),
    /// End this task.
    Abort(AbortHandle),
    /// Ask the call's tool for evidence.
    Probe(CallNumber),
    /// Find this out about tasks, for the request of this number.
    Ask(CallNumber, TaskAsk, ClientInfo),
    /// Follow the tasks of this number.
    Follow(CallNumber),
    /// Hand this control message, the one of this number, to whoever answers it.
    Control(u64, ControlMessage),
    /// Say what the client works on.
    SetRoots(Roots),
    /// Remember that the client gave up after so long.
    NoteGaveUp(ClientInfo, Duration),
    /// Remember that the client waited so long.
    NoteWaited(ClientInfo, Duration),
    /// Say that the end of this job was shown.
    Shown(JobId),
    /// A request of this method, which no worker executes, was finished: a fault plan may ask for something at it.
    Finished(&'static str),
    /// Record what was counted and is not recorded yet.
    Count,
    /// Count an outcome of an earlier generation.
    Stale,
    /// Tell that only calls are open that another image can go on with.
    TellQuiet(oneshot::Sender<()>),
    /// Tell what is passed on.
    PassOn(oneshot::Sender<SessionSnapshot>, Box<SessionSnapshot>),
    /// Answer a call that came by the mailbox.
    AnswerDirect(oneshot::Sender<CallOutcome>, Box<CallOutcome>),
    /// Tell whoever made such a call how far it is.
    TellProgress(ProgressSink, f64, String),
    /// Tell who the client is.
    Describe(oneshot::Sender<ClientSeen>, Box<ClientSeen>),
}
