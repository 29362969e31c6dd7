//! The door of a listening socket.
//!
//! Owns: the socket, who has come in and is not served yet, the descriptor that is spared for saying "no room". May not know:
//! what is said on a connection, where the socket's name lies. What an accept means is decided in [`crate::daemon::accept`],
//! who may come in in [`crate::daemon::peer`].
//!
//! Invariants: (1) whoever was accepted is served or told why not, also when the loop fails in between; (2) no failure of one
//! client, and no want of descriptors, ends the door or makes it spin; (3) one that is turned away gets one line and harms
//! nobody: the line is written at once or not at all.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::handle::ListenOptions;
use super::table::Entrance;
use crate::actors::child;
use crate::actors::clock;
use crate::actors::connections::{Arrived, StreamKind};
use crate::actors::sessions::messages::SessionsMsg;
use crate::base::descriptors::PassedPipe;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::SessionNumber;
use crate::base::stdio;
use crate::daemon::accept::{Accepting, Arrival, Next};
use crate::daemon::control::{self, ControlRefusal};
use crate::daemon::listener::{Listener, SocketPlace};
use crate::daemon::peer;
use crate::failpoints::{Broken, FaultPoint, Operation};

/// Clients that come in before everybody else has a turn: what opening them costs is well under a millisecond.
const AT_ONCE: usize = 16;

/// Clients that are turned away when a door closes; no more can wait at a door, and who comes later finds it closed.
const WAITING: usize = 4096;

/// Bytes that are read of a client that is turned away, so that closing does not overtake the line that says why.
const UNREAD: usize = 64 * 1024;

/// A listening socket, and its name where it has one that is ours.
#[derive(Debug)]
pub struct ListeningSocket {
    socket: OwnedFd,
    place: Option<SocketPlace>,
}

impl ListeningSocket {
    /// One that another image had.
    pub(crate) const fn passed(socket: OwnedFd, place: Option<SocketPlace>) -> Self {
        Self { socket, place }
    }

    /// Its name, where it is ours.
    #[must_use]
    pub const fn place(&self) -> Option<&SocketPlace> {
        self.place.as_ref()
    }
}

impl From<Listener> for ListeningSocket {
    fn from(listener: Listener) -> Self {
        let place = Some(listener.place().clone());
        Self { socket: listener.into_socket(), place }
    }
}

/// One that somebody else made and named, such as a service manager.
impl From<OwnedFd> for ListeningSocket {
    fn from(socket: OwnedFd) -> Self {
        Self { socket, place: None }
    }
}

/// What is asked of a door.
#[derive(Debug)]
pub enum DoorEvent {
    /// Close, and say this to whoever waits.
    Close {
        /// Without its end.
        line: String,
        /// Told when it is done.
        closed: oneshot::Sender<()>,
    },
    /// Accept here from now on.
    Replace(ListeningSocket),
    /// What would be passed on, were it done now?
    Peek(oneshot::Sender<DoorSnapshot>),
    /// Let nobody in: this is what is passed on. Who comes meanwhile waits at the socket.
    Hold(oneshot::Sender<DoorSnapshot>),
    /// Nothing was passed on: go on.
    GoOn,
}

/// A door, passed on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DoorSnapshot {
    /// The listening socket.
    pub socket: PassedPipe,
    /// Its name, where it is ours.
    pub place: Option<SocketPlace>,
}

/// A socket's door.
pub(crate) struct UnixDoor {
    options: ListenOptions,
    socket: UnixListener,
    place: Option<SocketPlace>,
    events: mpsc::UnboundedReceiver<DoorEvent>,
    accepting: Accepting,
    /// Until when nobody is accepted, for want of descriptors.
    resting: Option<Instant>,
    /// Whether nobody is let in because of an upgrade.
    held: bool,
    /// Accepted, and not served yet.
    arriving: VecDeque<UnixStream>,
    /// Given up for the moment in which one client is told that there is no room.
    spare: Option<OwnedFd>,
}

impl UnixDoor {
    /// The door of this socket, and the way to speak to it. For within a runtime that has I/O.
    ///
    /// # Errors
    ///
    /// The runtime does not take the socket.
    pub(crate) fn new(
        socket: ListeningSocket,
        options: ListenOptions,
    ) -> std::io::Result<(Self, mpsc::UnboundedSender<DoorEvent>)> {
        let ListeningSocket { socket, place } = socket;
        let (told, events) = mpsc::unbounded_channel();
        let door = Self {
            options,
            socket: listening(socket)?,
            place,
            events,
            accepting: Accepting::default(),
            resting: None,
            held: false,
            arriving: VecDeque::new(),
            spare: spare(),
        };
        Ok((door, told))
    }

    /// Lets in whoever connects, until it is told to close.
    ///
    /// # Cancel safety
    ///
    /// Safe: everything is in `self`, and another run goes on with it.
    pub(super) async fn run(&mut self, entrance: &Entrance) -> Result<(), Fault> {
        let mut at_once = 0;
        loop {
            while !self.arriving.is_empty() {
                // While it is met the client is in `self`: a door that fails here serves it next time.
                let met = child::in_time(entrance.faults.meet(FaultPoint::UnixAccept, Operation::None)).await?;
                let Some(client) = self.arriving.pop_front() else { break };
                match met {
                    None => self.let_in(client, entrance),
                    Some(Broken::Error(fault)) => turn_away(client, &refusal(&fault)),
                    Some(_) => drop(client),
                }
                at_once += 1;
                if at_once >= AT_ONCE {
                    at_once = 0;
                    tokio::task::yield_now().await;
                }
            }
            tokio::select! {
                biased;
                // Without a handle nobody can close it any more but the system's end.
                Some(event) = self.events.recv() => match event {
                    DoorEvent::Close { line, closed } => {
                        self.turn_away_waiting(&line);
                        let _ = closed.send(());
                        return Ok(());
                    }
                    DoorEvent::Replace(socket) => self.replace(socket)?,
                    DoorEvent::Peek(reply) => drop(self.snapshot().map(|snapshot| reply.send(snapshot))),
                    DoorEvent::Hold(reply) => {
                        self.held = true;
                        drop(self.snapshot().map(|snapshot| reply.send(snapshot)));
                    }
                    DoorEvent::GoOn => self.held = false,
                },
                () = until(self.resting), if self.resting.is_some() => self.resting = None,
                accepted = self.socket.accept(), if self.resting.is_none() && !self.held => match accepted {
                    Ok((client, _)) => {
                        self.accepting.step(Arrival::Client, clock::now());
                        self.arriving.push_back(client);
                    }
                    Err(error) => self.failed(Errno::from_io_error(&error).unwrap_or(Errno::IO))?,
                },
            }
        }
    }

    /// What is passed on. Everybody who was accepted is served by now.
    fn snapshot(&self) -> Option<DoorSnapshot> {
        // One that cannot be looked at is not passed on, which the dropped reply says.
        let socket = PassedPipe::of(&self.socket).ok()?;
        Some(DoorSnapshot { socket, place: self.place.clone() })
    }

    /// Nobody was accepted, because of this.
    fn failed(&mut self, errno: Errno) -> Result<(), Fault> {
        let now = clock::now();
        match self.accepting.step(Arrival::Failed(errno), now) {
            Next::Serve | Next::Again => Ok(()),
            Next::Rest(rest) => {
                tracing::warn!(%errno, ?rest, "no client can be let in for the moment");
                self.refuse_one();
                self.resting = Some(now + rest);
                Ok(())
            }
            Next::Broken(errno) => {
                Err(Fault::new(FaultCode::Internal, format!("the listening socket cannot be used: {errno}")))
            }
        }
    }

    /// Tells one client that there is no room, with the descriptor that is kept for that.
    fn refuse_one(&mut self) {
        if self.spare.take().is_none() {
            self.spare = spare();
            return;
        }
        if let Ok(client) = accept(&self.socket) {
            let full = "this process has as many files open as it may; try again in a moment";
            say_and_close(client, &ControlRefusal::new("connect", full).line());
        }
        self.spare = spare();
    }

    /// Has a client served, if it is one of ours.
    fn let_in(&self, client: UnixStream, entrance: &Entrance) {
        let theirs = client.peer_cred().ok().map(|peer| peer.uid());
        if let Err(stranger) = peer::admit(theirs, rustix::process::geteuid().as_raw()) {
            tracing::warn!(%stranger, "a client was turned away");
            return turn_away(client, &ControlRefusal::new("connect", stranger.to_string()).line());
        }
        if let Err(fault) = entrance.connections.room() {
            return turn_away(client, &refusal(&fault));
        }
        match client.into_std() {
            Ok(client) => serve(client.into(), None, &self.options, entrance),
            Err(error) => tracing::warn!(%error, "a client's socket cannot be used"),
        }
    }

    /// Accepts at another socket from now on.
    fn replace(&mut self, socket: ListeningSocket) -> Result<(), Fault> {
        let ListeningSocket { socket, place } = socket;
        let new = listening(socket)
            .map_err(|error| Fault::new(FaultCode::Internal, format!("the socket cannot be listened at: {error}")))?;
        for _ in 0..WAITING {
            let Ok(client) = accept(&self.socket) else { break };
            match UnixStream::from_std(StdStream::from(client)) {
                Ok(client) => self.arriving.push_back(client),
                Err(error) => tracing::warn!(%error, "a client's socket cannot be used"),
            }
        }
        self.socket = new;
        self.place = place;
        self.resting = None;
        Ok(())
    }

    /// The system stops: there may be another one soon.
    pub(super) fn turn_all_away(&mut self) {
        self.turn_away_waiting(&control::restarting());
    }

    fn turn_away_waiting(&mut self, line: &str) {
        for client in self.arriving.drain(..) {
            turn_away(client, line);
        }
        for _ in 0..WAITING {
            match accept(&self.socket) {
                Ok(client) => say_and_close(client, line),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => return,
            }
        }
    }
}

/// Has a client's socket served, in the session that another image passed on where there is one.
pub(crate) fn serve(client: OwnedFd, resumes: Option<SessionNumber>, options: &ListenOptions, entrance: &Entrance) {
    let passed = PassedPipe::of(&client).ok();
    let (input, sink) = match stdio::socket(client) {
        Ok((input, sink)) => (Box::new(input), Box::new(sink)),
        Err(error) => {
            tracing::warn!(%error, "a client's socket cannot be used");
            return;
        }
    };
    let (kind, desk) = (StreamKind::Socket(passed), Some(Arc::clone(&options.desk)));
    // Whose a session is that goes on was passed on with it.
    let context = resumes.is_none().then(|| options.context.clone());
    match entrance.connections.open(Arrived { kind, input, sink, ended: None, context, desk, resumes }) {
        // When there is no supervisor at this moment, its next incarnation finds the connection.
        Ok((number, _)) => {
            let _ = entrance.sessions.cast(SessionsMsg::Opened(number));
        }
        Err(fault) => tracing::warn!(%fault, "a client was turned away"),
    }
}

/// What a client is told that is turned away by a fault.
fn refusal(fault: &Fault) -> String {
    ControlRefusal::new("connect", fault.detail.clone()).line()
}

fn listening(socket: OwnedFd) -> std::io::Result<UnixListener> {
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    let socket = std::os::unix::net::UnixListener::from(socket);
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket)
}

/// A descriptor that stands for nothing.
fn spare() -> Option<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// Accepts one client that waits; its stream does not block and closes on `exec`.
fn accept(socket: &impl AsFd) -> Result<OwnedFd, Errno> {
    #[cfg(target_os = "linux")]
    {
        use rustix::net::SocketFlags;
        rustix::net::accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let client = rustix::net::accept(socket)?;
        rustix::io::fcntl_setfd(&client, rustix::io::FdFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&client, true)?;
        Ok(client)
    }
}

/// Says why, and closes.
fn turn_away(client: UnixStream, line: &str) {
    if let Ok(client) = client.into_std() {
        say_and_close(client.into(), line);
    }
}

/// Writes one line and closes. What the client has sent is read first: a socket that is closed with bytes unread tells its
/// other end of a reset, which some clients hear before the line.
fn say_and_close(client: OwnedFd, line: &str) {
    let mut client = StdStream::from(client);
    let mut whole = String::with_capacity(line.len() + 1);
    whole.push_str(line);
    whole.push('\n');
    // An empty socket takes a line at once; a client that does not is gone.
    let _ = client.write_all(whole.as_bytes());
    let _ = client.shutdown(std::net::Shutdown::Write);
    let mut unread = [0; 4096];
    for _ in 0..UNREAD / unread.len() {
        if !client.read(&mut unread).is_ok_and(|count| count > 0) {
            return;
        }
    }
}

/// Waits for this time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
