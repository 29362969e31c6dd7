//! Reply tokens, and the mailbox they answer to: whoever holds a token owes an answer, and dropping it is an answer too.
//!
//! Invariants: (1) a token is answered exactly once, by use or by drop (panic, kill, refused cast, dropped queue);
//! (2) a token carries the generation it was given to.

use tokio::sync::mpsc;

use super::session::SessionEvent;
use crate::ids::Generation;
use crate::protocol::session::{CallNumber, CallOutcome};

/// Where a session hears from everybody but its client. Every message is about a call of its own or about its worker,
/// and calls are bounded, so the channel needs no bound of its own.
pub type SessionMailbox = mpsc::UnboundedSender<SessionEvent>;

/// Owed to a session by a worker: the outcome of one attempt.
#[derive(Debug)]
pub struct AttemptReply {
    to: Option<SessionMailbox>,
    call: CallNumber,
    generation: Generation,
}

impl AttemptReply {
    /// A token for this attempt, given to this generation.
    #[must_use]
    pub fn new(to: SessionMailbox, call: CallNumber, generation: Generation) -> Self {
        Self { to: Some(to), call, generation }
    }

    /// Reports the outcome.
    pub fn finish(mut self, outcome: CallOutcome) {
        if let Some(to) = self.to.take() {
            // A closed mailbox means the session is over: nobody waits.
            let _ = to.send(SessionEvent::Settled { generation: self.generation, call: self.call, outcome });
        }
    }

    /// Reports nothing: the session withdrew the call itself.
    pub fn forget(mut self) {
        self.to = None;
    }
}

impl Drop for AttemptReply {
    fn drop(&mut self) {
        if let Some(to) = self.to.take() {
            let _ = to.send(SessionEvent::Dropped { generation: self.generation, call: self.call });
        }
    }
}

/// Where a tool reports progress. Reports decide nothing.
#[derive(Debug, Clone)]
pub struct ProgressSink {
    to: Option<(SessionMailbox, CallNumber)>,
}

impl ProgressSink {
    /// A sink for a call whose client wants progress.
    #[must_use]
    pub fn new(to: SessionMailbox, call: CallNumber) -> Self {
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
            let _ = to.send(SessionEvent::Progress { call: *call, value, message });
        }
    }
}
