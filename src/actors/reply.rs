//! Reply tokens: whoever holds one owes an answer, and dropping it is an answer too.
//!
//! Invariants: (1) a token is answered exactly once, by use or by drop (panic, kill, refused cast, dropped queue);
//! (2) a token carries the generation it was given to.

use ractor::ActorRef;

use super::session::SessionMsg;
use super::workers::WorkersMsg;
use crate::fault::{Fault, FaultCode};
use crate::ids::{Generation, SessionNumber};
use crate::protocol::session::{CallNumber, CallOutcome};

/// A call across all sessions of a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallKey {
    /// The session it came in on.
    pub session: SessionNumber,
    /// The call within it.
    pub call: CallNumber,
}

/// The answer to one call, on its way to the session.
#[derive(Debug)]
pub struct Answer {
    /// Which call.
    pub call: CallNumber,
    /// How it came out.
    pub outcome: CallOutcome,
    /// The worker that gave it; [`Generation::NONE`] when none did.
    pub generation: Generation,
    /// Attempts after the first.
    pub replays: u32,
}

impl Answer {
    /// An answer no worker gave.
    #[must_use]
    pub fn from_host(call: CallNumber, outcome: CallOutcome) -> Self {
        Self { call, outcome, generation: Generation::NONE, replays: 0 }
    }
}

/// Owed to a session by the workers' supervisor: the answer to one call.
#[derive(Debug)]
pub struct SessionReply {
    to: Option<ActorRef<SessionMsg>>,
    call: CallNumber,
}

impl SessionReply {
    /// A token for this call of this session.
    #[must_use]
    pub fn new(to: ActorRef<SessionMsg>, call: CallNumber) -> Self {
        Self { to: Some(to), call }
    }

    /// Gives the token up for an answer that travels in a batch: the caller must send it.
    pub fn into_batch(mut self) -> Option<(ActorRef<SessionMsg>, CallNumber)> {
        self.to.take().map(|to| (to, self.call))
    }

    /// Answers nobody: the session withdrew the call.
    pub fn forget(mut self) {
        self.to = None;
    }
}

impl Drop for SessionReply {
    fn drop(&mut self) {
        if let Some(to) = self.to.take() {
            let fault = Fault::new(FaultCode::WorkerLost, "the part that held this call went away before it answered.");
            // A closed mailbox means the session is over: nobody waits.
            let _ =
                to.cast(SessionMsg::Settled(vec![Answer::from_host(self.call, CallOutcome::Fault(Box::new(fault)))]));
        }
    }
}

/// Owed to the workers' supervisor by a worker: the outcome of one attempt.
#[derive(Debug)]
pub struct AttemptReply {
    to: Option<ActorRef<WorkersMsg>>,
    key: CallKey,
    generation: Generation,
}

impl AttemptReply {
    /// A token for this attempt, given to this generation.
    #[must_use]
    pub fn new(to: ActorRef<WorkersMsg>, key: CallKey, generation: Generation) -> Self {
        Self { to: Some(to), key, generation }
    }

    /// The call the attempt belongs to.
    #[must_use]
    pub fn key(&self) -> CallKey {
        self.key
    }

    /// Gives the token up for an outcome that travels in a batch: the caller must send it.
    #[must_use]
    pub fn into_batch(mut self, outcome: CallOutcome) -> (CallKey, CallOutcome) {
        self.to = None;
        (self.key, outcome)
    }

    /// Reports nothing: the supervisor withdrew the call itself.
    pub fn forget(mut self) {
        self.to = None;
    }
}

impl Drop for AttemptReply {
    fn drop(&mut self) {
        if let Some(to) = self.to.take() {
            let _ = to.cast(WorkersMsg::Dropped { generation: self.generation, key: self.key });
        }
    }
}

/// Where a tool reports progress. Reports go past the supervisor: they decide nothing.
#[derive(Debug, Clone)]
pub struct ProgressSink {
    to: Option<(ActorRef<SessionMsg>, CallNumber)>,
}

impl ProgressSink {
    /// A sink for a call whose client wants progress.
    #[must_use]
    pub fn new(to: ActorRef<SessionMsg>, call: CallNumber) -> Self {
        Self { to: Some((to, call)) }
    }

    /// A sink nobody listens to.
    #[must_use]
    pub const fn closed() -> Self {
        Self { to: None }
    }

    /// Whether anybody wants reports.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.to.is_some()
    }

    /// Reports; `value` must rise from report to report, `message` stays under 200 characters.
    pub fn report(&self, value: f64, message: String) {
        if let Some((to, call)) = &self.to {
            let _ = to.cast(SessionMsg::Progress { call: *call, value, message });
        }
    }
}
