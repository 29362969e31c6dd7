//! Everything that can wake the sessions' supervisor.

use crate::actors::supervision::driver::ChildNews;
use crate::base::ids::SessionNumber;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEnd {
    /// The client closed it, or the system stopped.
    Closed,
    /// The session failed more often than it is started again.
    Failed,
}

/// Everything that can wake the sessions' supervisor.
#[derive(Debug)]
pub enum SessionsMsg {
    /// A connection was opened.
    Opened(SessionNumber),
    /// A connection is over.
    Over(SessionNumber, SessionEnd),
    /// News of a session's actor.
    Child(ChildNews<SessionNumber>),
}
