//! How whoever opened a door speaks to it.
//!
//! Owns: what may be asked of a socket's door. May not know: how it accepts.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::desk::ControlDesk;
use super::unix::{DoorEvent, ListeningSocket};
use crate::actors::callers::CallerContext;

/// How a socket is listened at.
#[derive(Clone)]
pub struct ListenOptions {
    /// Who answers what is said beside JSON-RPC.
    pub desk: Arc<dyn ControlDesk>,
    /// Whose a connection is before it says so by `session_open`.
    pub context: CallerContext,
}

/// The door of a listening socket. Clones are handles on the same one; dropping them all closes nothing.
#[derive(Debug, Clone)]
pub struct DoorHandle {
    door: mpsc::UnboundedSender<DoorEvent>,
    connections: watch::Receiver<usize>,
}

impl DoorHandle {
    pub(crate) const fn new(door: mpsc::UnboundedSender<DoorEvent>, connections: watch::Receiver<usize>) -> Self {
        Self { door, connections }
    }

    /// Closes the door: whoever waits at it is answered with this line (its end is added), and the socket is closed. Returns
    /// when that is done; the socket's name is not touched. Connections that came in before are served on.
    ///
    /// # Cancel safety
    ///
    /// Safe: the door closes.
    pub async fn close_with(&self, line: impl Into<String>) {
        let (closed, told) = oneshot::channel();
        if self.door.send(DoorEvent::Close { line: line.into(), closed }).is_ok() {
            let _ = told.await;
        }
    }

    /// From now on whoever connects to this socket comes in: its name was taken away, and it was made again. Whoever waits at
    /// the old one comes in as well.
    pub fn replace(&self, socket: impl Into<ListeningSocket>) {
        let _ = self.door.send(DoorEvent::Replace(socket.into()));
    }

    /// How many connections the system has, whatever door they came in by.
    #[must_use]
    pub fn connections(&self) -> watch::Receiver<usize> {
        self.connections.clone()
    }

    /// Resolves when the door is closed: it was told to, the system stopped, or it failed too often.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn closed(&self) {
        self.door.closed().await;
    }
}
