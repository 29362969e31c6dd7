//! Who answers what is said beside JSON-RPC.
//!
//! Owns: the interface, and the token that answers. May not know: what a control message asks for, sessions' protocol.
//!
//! A session decides which control messages it takes (`session/turn/controls.rs`) and hands each to the desk of the door its
//! connection came in by. The desk answers by the token, at once or later; the session writes the lines in the order in which
//! they were asked for.

use crate::actors::reply::SessionMailbox;
use crate::actors::session::SessionEvent;
use crate::base::ids::SessionNumber;
use crate::daemon::control::{ControlMessage, ControlRefusal};

/// What is behind a door that takes control messages.
pub trait ControlDesk: Send + Sync {
    /// A session was sent this. Called on the session's own task, so it must not wait; whoever needs time keeps the token.
    ///
    /// After `session_open` the session handles no further line until the token is answered: a caller's context is set before
    /// its first call is looked at, however late that is.
    fn control(&self, session: SessionNumber, message: ControlMessage, reply: ControlReply);
}

/// Owed to a session: the line a control message is answered with. Dropping it answers with an error.
#[derive(Debug)]
pub struct ControlReply {
    to: Option<SessionMailbox>,
    number: u64,
    asked: &'static str,
}

impl ControlReply {
    /// A token for the control message of this number and type.
    #[must_use]
    pub(in crate::actors) const fn new(to: SessionMailbox, number: u64, asked: &'static str) -> Self {
        Self { to: Some(to), number, asked }
    }

    /// Answers with this line, without its end.
    pub fn answer(mut self, line: String) {
        self.tell(line, false);
    }

    /// Says that it was not followed. A `session_open` that is refused may be sent again.
    pub fn refuse(mut self, refusal: &ControlRefusal) {
        self.tell(refusal.line(), true);
    }

    fn tell(&mut self, line: String, refused: bool) {
        if let Some(to) = self.to.take() {
            // A closed mailbox means the session is over: nobody reads.
            let _ = to.send(SessionEvent::ControlAnswered { number: self.number, line, refused });
        }
    }
}

impl Drop for ControlReply {
    fn drop(&mut self) {
        if self.to.is_some() {
            let lost = ControlRefusal::new(self.asked, "it was lost inside the daemon, and is not known to be done");
            self.tell(lost.line(), true);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn a_token_answers_once_however_it_ends() {
        let (to, mut mailbox) = mpsc::unbounded_channel();
        let token = |number| ControlReply::new(to.clone(), number, "status");
        token(1).answer("{}".to_owned());
        token(2).refuse(&ControlRefusal::new("status", "no"));
        drop(token(3));
        let mut told = Vec::new();
        while let Ok(SessionEvent::ControlAnswered { number, line, refused }) = mailbox.try_recv() {
            told.push((number, refused, line));
        }
        assert_eq!(
            told.iter().map(|(number, refused, _)| (*number, *refused)).collect::<Vec<_>>(),
            [(1, false), (2, true), (3, true)]
        );
        assert!(told[2].2.contains(r#""to":"status""#) && told[2].2.contains("lost"), "{}", told[2].2);
    }
}
