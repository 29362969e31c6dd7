//! Reply tokens, and the mailbox they answer to: whoever holds a token owes an answer, and dropping it is an answer too.
//!
//! Invariants: (1) a token is answered exactly once, by use or by drop (panic, kill, refused cast, dropped queue);
//! (2) a token carries the generation it was given to.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::session::SessionEvent;
use crate::ids::{CallKey, CallNumber, Generation};
use crate::protocol::session::CallOutcome;

/// Where a session hears from everybody but its client. Every message is about a call of its own, a task it follows or its
/// worker, and these are bounded (of a call's progress there is one), so the channel needs no bound of its own.
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

/// Where a tool reports progress. Reports decide nothing, so a new one takes the place of one that was not read yet: however
/// often a tool reports, one message is under way.
#[derive(Debug, Clone)]
pub struct ProgressSink(Option<(Listener, Latest)>);

/// Who listens to a tool's progress.
#[derive(Debug, Clone)]
enum Listener {
    Session(SessionMailbox, CallNumber),
    /// The host of the worker process the tool runs in.
    Host(mpsc::UnboundedSender<Progress>, CallKey),
}

/// The report nobody has read yet.
#[derive(Debug, Clone, Default)]
pub struct Latest(Arc<Mutex<Option<(f64, String)>>>);

impl Latest {
    /// The report: a value that rises, and what is going on.
    #[must_use]
    pub fn take(&self) -> Option<(f64, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Puts a report in its place; whether whoever reads has to be told.
    fn put(&self, value: f64, message: String) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).replace((value, message)).is_none()
    }
}

/// A report on its way to the host.
#[derive(Debug)]
pub struct Progress {
    /// Which call.
    pub key: CallKey,
    /// What it reported last.
    pub latest: Latest,
}

impl ProgressSink {
    /// A sink for a call whose client wants progress.
    #[must_use]
    pub fn new(to: SessionMailbox, call: CallNumber) -> Self {
        Self(Some((Listener::Session(to, call), Latest::default())))
    }

    /// A sink whose reports leave a worker process.
    #[must_use]
    pub fn to_host(to: mpsc::UnboundedSender<Progress>, key: CallKey) -> Self {
        Self(Some((Listener::Host(to, key), Latest::default())))
    }

    /// A sink nobody listens to.
    #[must_use]
    pub const fn closed() -> Self {
        Self(None)
    }

    /// Whether anybody wants reports.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Reports; `value` must rise from report to report, `message` stays under 200 characters.
    pub fn report(&self, value: f64, message: String) {
        let Some((listener, latest)) = &self.0 else { return };
        if !latest.put(value, message) {
            return;
        }
        let latest = latest.clone();
        match listener {
            Listener::Session(to, call) => drop(to.send(SessionEvent::Progress { call: *call, latest })),
            Listener::Host(to, key) => drop(to.send(Progress { key: *key, latest })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_often_a_tool_reports_one_message_is_under_way_and_tells_the_last() {
        let (to, mut mailbox) = mpsc::unbounded_channel();
        let sink = ProgressSink::new(to, CallNumber(7));
        let mut told = Vec::new();
        for value in 1..=1000 {
            sink.clone().report(f64::from(value), value.to_string());
            if value % 500 == 0 {
                assert_eq!(mailbox.len(), 1);
                let Some(SessionEvent::Progress { call: CallNumber(7), latest }) = mailbox.blocking_recv() else {
                    unreachable!("nothing else was sent")
                };
                told.extend(latest.take());
            }
        }
        assert_eq!(told, [(500.0, "500".to_owned()), (1000.0, "1000".to_owned())]);
    }
}
