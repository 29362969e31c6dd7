//! Who answers the control messages of a daemon's clients.
//!
//! Owns: which of them are answered here and which are the loop's to decide. May not know: how anything is decided or done.
//!
//! Called on sessions' own tasks, so nothing here waits: what needs time goes to the loop, with the token that answers.

use phone_opus::internals::actors::doors::desk::{ControlDesk, ControlReply};
use phone_opus::internals::base::ids::SessionNumber;
use phone_opus::internals::daemon::control::{About, ControlMessage, ControlRefusal, Opening, PageAsk};
use phone_opus::internals::daemon::life::LifeVerb;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// Requests that may wait for the loop, which handles one in microseconds. Each session waits for its own.
const WAITING: usize = 1024;

/// What the loop is asked.
pub(super) enum Request {
    /// To decide about this.
    Decide(LifeVerb, ControlReply),
    /// How the daemon is.
    Status(ControlReply),
    /// To serve the page, or to serve it no longer.
    Page(PageAsk, ControlReply),
    /// To make a session its caller's.
    Open(SessionNumber, Box<Opening>, ControlReply),
}

impl Request {
    fn reply(self) -> (&'static str, ControlReply) {
        match self {
            Self::Decide(verb, reply) => (verb.as_str(), reply),
            Self::Status(reply) => ("status", reply),
            Self::Page(_, reply) => ("dashboard", reply),
            Self::Open(_, _, reply) => ("session_open", reply),
        }
    }
}

/// The desk at the door.
pub(super) struct Desk {
    about: About,
    requests: mpsc::Sender<Request>,
}

impl Desk {
    /// The desk of this daemon, and where its requests come out.
    pub(super) fn new(about: About) -> (Self, mpsc::Receiver<Request>) {
        let (requests, asked) = mpsc::channel(WAITING);
        (Self { about, requests }, asked)
    }

    fn pass(&self, request: Request) {
        if let Err(TrySendError::Full(request) | TrySendError::Closed(request)) = self.requests.try_send(request) {
            let (to, reply) = request.reply();
            reply.refuse(&ControlRefusal::new(to, "this daemon is ending, or has too much to do; ask again"));
        }
    }
}

impl ControlDesk for Desk {
    fn control(&self, session: SessionNumber, message: ControlMessage, reply: ControlReply) {
        self.pass(match message {
            ControlMessage::Hello => return reply.answer(self.about.line()),
            ControlMessage::Status => Request::Status(reply),
            ControlMessage::SessionOpen(opening) => Request::Open(session, opening, reply),
            ControlMessage::Pause => Request::Decide(LifeVerb::Pause, reply),
            ControlMessage::Resume => Request::Decide(LifeVerb::Resume, reply),
            ControlMessage::Drain => Request::Decide(LifeVerb::Drain, reply),
            ControlMessage::Reload => Request::Decide(LifeVerb::Reload, reply),
            ControlMessage::Dashboard(ask) => Request::Page(ask, reply),
            ControlMessage::Shutdown(mode) => Request::Decide(LifeVerb::Shutdown(mode), reply),
        });
    }
}
