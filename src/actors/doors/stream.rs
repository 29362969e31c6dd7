//! The door of one stream: the standard streams of this process, or what an embedding program brings.
//!
//! Owns: the streams until their connection is open. May not know: what is said on them, what its end means to whoever brought
//! them: that one is told by the connection itself.

use tokio::sync::oneshot;

use super::table::Entrance;
use crate::actors::connections::Arrived;
use crate::actors::sessions::messages::SessionsMsg;
use crate::base::fault::Fault;

/// A stream's door.
pub(crate) struct StreamDoor {
    /// Until its connection is open.
    arrived: Option<Arrived>,
    /// Dropped when the connection is over.
    over: Option<oneshot::Receiver<()>>,
}

impl StreamDoor {
    /// For these streams.
    pub(crate) const fn new(arrived: Arrived) -> Self {
        Self { arrived: Some(arrived), over: None }
    }

    /// Opens the connection, and waits for its end.
    ///
    /// # Cancel safety
    ///
    /// Safe: another run goes on with it.
    pub(super) async fn run(&mut self, entrance: &Entrance) -> Result<(), Fault> {
        if let Some(arrived) = self.arrived.take() {
            // Whoever brought the streams was told why not.
            let Ok((number, over)) = entrance.connections.open(arrived) else { return Ok(()) };
            self.over = Some(over);
            // When there is no supervisor at this moment, its next incarnation finds the connection.
            let _ = entrance.sessions.cast(SessionsMsg::Opened(number));
        }
        if let Some(over) = &mut self.over {
            let _ = over.await;
        }
        Ok(())
    }
}
