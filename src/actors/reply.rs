//! Reply tokens, and the mailbox they answer to: whoever holds a token owes an answer, and dropping it is an answer too.
//!
//! Invariants: (1) a token is answered exactly once, by use or by drop (panic, kill, refused cast, dropped queue);
//! (2) a token carries the generation it was given to.

use tokio::sync::mpsc;

use super::session::events::SessionEvent;
use crate::base::ids::{CallNumber, Generation};
use crate::protocol::session::CallOutcome;
use crate::tools::progress::{Latest, ProgressListener, ProgressSink};

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

/// A session listens to the progress of one of its calls.
struct ToSession {
    mailbox: SessionMailbox,
    call: CallNumber,
}

impl ProgressListener for ToSession {
    fn reported(&self, latest: Latest) {
        // A closed mailbox means the session is over: nobody listens.
        let _ = self.mailbox.send(SessionEvent::Progress { call: self.call, latest });
    }
}

/// A sink for a call whose client wants progress.
#[must_use]
pub fn progress_to(mailbox: SessionMailbox, call: CallNumber) -> ProgressSink {
    ProgressSink::new(ToSession { mailbox, call })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_often_a_tool_reports_one_message_is_under_way_and_tells_the_last() {
        let (to, mut mailbox) = mpsc::unbounded_channel();
        let sink = progress_to(to, CallNumber(7));
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
