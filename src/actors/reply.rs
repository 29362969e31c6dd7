//! Reply tokens, and the mailbox they answer to: whoever holds a token owes an answer, and dropping it is an answer too.
//!
//! Invariants: (1) a token is answered exactly once, by use or by drop (panic, kill, refused cast, dropped queue);
//! (2) a token carries the generation it was given to.

use tokio::sync::mpsc;

use super::session::SessionEvent;
use crate::ids::Generation;
use crate::protocol::session::{CallNumber, CallOutcome};
use crate::worker::wire::CallKey;

/// Where a session hears from everybody but its client. Every message is about a call of its own, a task it follows or its
/// worker, and these are bounded, so the channel needs no bound of its own.
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
pub struct ProgressSink(Listener);

/// Who listens to a tool's progress.
#[derive(Debug, Clone)]
enum Listener {
    Nobody,
    Session(SessionMailbox, CallNumber),
    /// The host of the worker process the tool runs in.
    Host(mpsc::UnboundedSender<Progress>, CallKey),
}

/// A report on its way to the host.
#[derive(Debug)]
pub struct Progress {
    /// Which call.
    pub key: CallKey,
    /// A value that rises.
    pub value: f64,
    /// What is going on.
    pub message: String,
}

impl ProgressSink {
    /// A sink for a call whose client wants progress.
    #[must_use]
    pub fn new(to: SessionMailbox, call: CallNumber) -> Self {
        Self(Listener::Session(to, call))
    }

    /// A sink whose reports leave a worker process.
    #[must_use]
    pub fn to_host(to: mpsc::UnboundedSender<Progress>, key: CallKey) -> Self {
        Self(Listener::Host(to, key))
    }

    /// A sink nobody listens to.
    #[must_use]
    pub const fn closed() -> Self {
        Self(Listener::Nobody)
    }

    /// Whether anybody wants reports.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        !matches!(self.0, Listener::Nobody)
    }

    /// Reports; `value` must rise from report to report, `message` stays under 200 characters.
    pub fn report(&self, value: f64, message: String) {
        match &self.0 {
            Listener::Nobody => {}
            Listener::Session(to, call) => drop(to.send(SessionEvent::Progress { call: *call, value, message })),
            Listener::Host(to, key) => drop(to.send(Progress { key: *key, value, message })),
        }
    }
}
