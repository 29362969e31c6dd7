//! A Unix socket that an embedding program has its system listen at.
//!
//! Owns: the socket's name, from its making to its end. May not know: who comes in, what is said.
//!
//! Invariant: a name is taken away by whoever made it and only while it is that one: the door's end does it at the latest.

use std::path::Path;
use std::sync::Arc;

use super::System;
use crate::actors::callers::CallerContext;
use crate::actors::doors::desk::{ControlDesk, ControlReply};
use crate::actors::doors::handle::{DoorHandle, ListenOptions};
use crate::base::fault::{Fault, FaultCode, chain};
use crate::base::ids::SessionNumber;
use crate::base::socket::listener::{Listener, SocketPlace};
use crate::daemon::control::{ControlMessage, ControlRefusal};

/// A socket that is listened at. Clones are handles on the same one; dropping them closes nothing.
///
/// ```no_run
/// # async fn listen(system: &phone_opus::System) -> Result<(), phone_opus::Fault> {
/// let door = system.listen("/run/user/1000/my-runtime/socket")?;
/// println!("connect to {}", door.path().display());
/// tokio::select! {
///     () = door.closed() => {}                                        // the system stopped
///     _ = tokio::signal::ctrl_c() => door.close().await,              // nobody new; who is there is served on
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Listening {
    door: DoorHandle,
    place: SocketPlace,
}

impl Listening {
    /// Where clients connect to.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// Lets nobody in any more, and takes the name away. Who came in before is served on.
    ///
    /// # Cancel safety
    ///
    /// Safe: the door closes.
    pub async fn close(&self) {
        self.place.unlink();
        self.door.close_with("").await;
    }

    /// Resolves when nobody is let in any more: it was closed, the system stopped, or it failed too often.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn closed(&self) {
        self.door.closed().await;
    }
}

/// Answers what is said beside JSON-RPC, which is nothing here; the name goes with it.
struct NoControl(SocketPlace);

impl ControlDesk for NoControl {
    fn control(&self, _session: SessionNumber, message: ControlMessage, reply: ControlReply) {
        reply.refuse(&ControlRefusal::new(message.name(), "this program is no daemon"));
    }
}

impl Drop for NoControl {
    fn drop(&mut self) {
        self.0.unlink();
    }
}

impl System {
    /// Listens at a Unix socket: whoever of this process's user connects is served as an MCP client, in a session of its own, as
    /// by [`System::serve`]. Its directory is made where there is none, and has to be this user's alone (mode 0700). The name is made anew (mode 0600) where nobody listens at it, and taken away when the system is gone.
    ///
    /// # Errors
    ///
    /// `invalid_input`: somebody listens there, something else has the name, others can enter the directory, or there can be no socket.
    pub fn listen(&self, path: impl AsRef<Path>) -> Result<Listening, Fault> {
        let listener = Listener::bind(path.as_ref()).map_err(|error| {
            Fault::new(FaultCode::InvalidInput, format!("the socket cannot be made: {}.", chain(&error)))
        })?;
        let place = listener.place().clone();
        let context = CallerContext::clone(self.inner.desk.consults.callers.host());
        let door = self.listen_at(listener, ListenOptions { desk: Arc::new(NoControl(place.clone())), context })?;
        Ok(Listening { door, place })
    }
}
