//! The bridge: one client on the standard streams, served by the daemon of its state directory, or by this process.
//!
//! Owns: the client's streams, the connections to whoever serves, the looking for one, the host this process becomes where
//! there is none. May not know: what is decided about a line ([`core`]), signals, the command line.
//!
//! ```text
//!  client ◀──lines──▶ bridge ◀──socket──▶ daemon                    as long as there is one, or one can be started
//!                       └────◀──memory──▶ a system in this process  else, and health says why
//! ```
//!
//! Invariants: (1) the client is answered while nobody serves, and keeps its connection when whoever serves is lost; (2) nobody
//! is signalled, displaced or unlinked from here (L18); (3) a client that does not read stalls itself only (L14): nothing more
//! is read for it; (4) one owner writes to the client, whole lines (L11).

pub mod core;
mod line;
mod links;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinError;

use self::core::{BridgeCore, BridgeEffect, BridgeEvent, BridgeSetup, LinkNumber, Reach};
use self::links::{Links, Stream};
use crate::base::fault::{Fault, chain};
use crate::base::state_dir::StateDir;
use crate::base::tasks::TaskSet;
use crate::daemon::start::{self, DaemonLook, DaemonStart};
use crate::protocol::frame::{FrameReader, LINE_LIMIT};
use crate::system::{Grace, Shutdown, System, SystemBuilder};

/// Unwritten bytes at which nothing more is read for the client, of it or of whoever serves.
const BACKLOG: usize = 1024 * 1024;

/// Bytes between this process's own host and the bridge, each way.
const BETWEEN: usize = 256 * 1024;

/// Longest the last answers may take to be written once the bridge is over.
const DRAIN: Duration = Duration::from_secs(1);

/// What a bridge needs.
pub struct BridgeOptions {
    /// What it decides with.
    pub setup: BridgeSetup,
    /// The version of this program.
    pub build: &'static str,
    /// Whose daemon it looks for.
    pub dir: StateDir,
    /// The only socket it looks at, where one was named.
    pub socket: Option<PathBuf>,
    /// How a daemon is started.
    pub start: DaemonStart,
    /// Why this client cannot be told of to a daemon, where that is so: none is looked for.
    pub unfit: Option<String>,
    /// The system this process becomes where there is no daemon, with a notice for its health.
    pub host: HostOf,
}

/// Makes the system this process becomes, with a notice for its health.
pub type HostOf = Box<dyn FnMut(String) -> SystemBuilder + Send>;

/// How a bridge ended.
#[derive(Debug)]
pub enum BridgeEnd {
    /// Its client closed the connection, or it was told to end.
    InOrder,
    /// So did it, and the system in this process did not stop in order.
    AfterFault(Fault),
}

/// What came of something that took its time.
enum Outcome {
    Looked(DaemonLook),
    Peeked(DaemonLook),
    Started(Result<OwnedFd, String>),
    /// There is no use in looking.
    Unfit(String),
}

/// A bridge that serves.
struct Bridge<W> {
    core: BridgeCore,
    means: Means,
    links: Links,
    next_link: u64,
    under_way: TaskSet<Outcome>,
    /// A system that starts in this process.
    beginning: TaskSet<Result<System, Fault>>,
    /// The system in this process.
    host: Option<Host>,
    /// Systems in this process that end, as a daemon serves again.
    endings: TaskSet<Option<Fault>>,
    output: W,
    out: BytesMut,
    over: bool,
}

/// A system in this process.
struct Host {
    link: LinkNumber,
    system: System,
    /// The task that serves the bridge there.
    serving: TaskSet<()>,
}

impl Host {
    /// Stops it in order.
    async fn stop(mut self) -> Option<Fault> {
        let down = self.system.shutdown(Grace::default()).await;
        while self.serving.join_next().await.is_some() {}
        match down {
            Shutdown::InOrder | Shutdown::Killed => None,
            Shutdown::AfterFault(fault) => Some(fault),
        }
    }
}

/// What is done for the core.
struct Means {
    dir: StateDir,
    socket: Option<PathBuf>,
    start: DaemonStart,
    unfit: Option<String>,
    host: HostOf,
}

/// Serves one client until it closes its connection, or until `stop` resolves.
///
/// # Cancel safety
///
/// Not safe: what this process began to serve would be left behind.
pub async fn serve<R, W>(options: BridgeOptions, mut input: R, output: W, stop: impl Future<Output = ()>) -> BridgeEnd
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let BridgeOptions { setup, build, dir, socket, start, unfit, host } = options;
    let mut bridge = Bridge {
        core: BridgeCore::new(setup, build, now()),
        means: Means { dir, socket, start, unfit, host },
        links: Links::default(),
        next_link: 1,
        under_way: TaskSet::new(),
        beginning: TaskSet::new(),
        host: None,
        endings: TaskSet::new(),
        output,
        out: BytesMut::new(),
        over: false,
    };
    let mut incoming = FrameReader::new(LINE_LIMIT);
    let mut reads = true;
    let mut stop = std::pin::pin!(stop);
    bridge.decide(BridgeEvent::Begun).await;
    while !bridge.over {
        let behind = bridge.out.len() > BACKLOG;
        let wanted = bridge.core.wants_room();
        let wakes = bridge.core.wakes().map(tokio::time::Instant::from_std);
        let alarm = async {
            match wakes {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            () = &mut stop => Some(BridgeEvent::Stopped),
            () = alarm => Some(BridgeEvent::Woke),
            Some(done) = bridge.under_way.join_next() => Some(bridge.heard(done)),
            Some(started) = bridge.beginning.join_next() => Some(bridge.began(started)),
            written = write(&mut bridge.output, &mut bridge.out), if !bridge.out.is_empty() => match written {
                Ok(()) => None,
                // Nobody reads any more.
                Err(_) => break,
            },
            event = bridge.links.next(wanted), if !behind => Some(event),
            read = input.read_buf(incoming.space()), if reads && !behind => {
                let ended = !matches!(read, Ok(count) if count > 0);
                while let Some(frame) = incoming.next_frame() {
                    bridge.decide(BridgeEvent::Client(frame)).await;
                }
                if ended {
                    reads = false;
                    if let Some(frame) = incoming.finish() {
                        bridge.decide(BridgeEvent::Client(frame)).await;
                    }
                }
                ended.then_some(BridgeEvent::ClientEnded)
            }
        };
        if let Some(event) = event {
            bridge.decide(event).await;
        }
    }
    bridge.end().await
}

impl<W: AsyncWrite + Unpin> Bridge<W> {
    /// Decides about an event, and does what was decided.
    async fn decide(&mut self, event: BridgeEvent) {
        let mut effects = Vec::new();
        self.core.step(event, now(), &mut self.out, &mut effects);
        for effect in effects {
            self.act(effect).await;
        }
    }

    async fn act(&mut self, effect: BridgeEffect) {
        match effect {
            BridgeEffect::Send(link, bytes) => self.links.send(link, &bytes),
            BridgeEffect::Reach => {
                if let Some(why) = self.means.unfit.clone() {
                    self.under_way.spawn(std::future::ready(Outcome::Unfit(why)));
                    return;
                }
                let (dir, socket) = (self.means.dir.clone(), self.means.socket.clone());
                self.under_way.spawn_blocking(move || Outcome::Looked(start::look(&dir, socket.as_deref())));
            }
            BridgeEffect::Peek => {
                let (dir, socket) = (self.means.dir.clone(), self.means.socket.clone());
                self.under_way.spawn_blocking(move || Outcome::Peeked(start::look(&dir, socket.as_deref())));
            }
            BridgeEffect::Start => {
                let start = self.means.start.clone();
                let connect =
                    move || start.connect(start::PATIENCE).map_err(|error| format!("failed to {}.", chain(&error)));
                self.under_way.spawn_blocking(move || Outcome::Started(connect()));
            }
            BridgeEffect::HostHere(why) => {
                self.stop_hosting().await;
                let notice = format!("no daemon serves this client, this process does: {why}");
                let builder = (self.means.host)(notice);
                self.beginning.spawn(builder.start());
            }
            BridgeEffect::Close(link) => {
                self.links.close(link);
                if let Some(host) = self.host.take_if(|host| host.link == link) {
                    self.endings.spawn(host.stop());
                }
            }
            BridgeEffect::EndInput(link) => self.links.end_input(link),
            BridgeEffect::Note(note) => tracing::warn!("{note}"),
            BridgeEffect::End => self.over = true,
        }
    }

    /// What came of something, as the core hears it.
    fn heard(&mut self, done: Result<Outcome, JoinError>) -> BridgeEvent {
        match done {
            Ok(Outcome::Started(started)) => BridgeEvent::Started(started.and_then(|stream| self.connected(stream))),
            Ok(Outcome::Looked(look)) => BridgeEvent::Reached(self.reached(look)),
            Ok(Outcome::Peeked(look)) => BridgeEvent::Peeked(self.reached(look)),
            Ok(Outcome::Unfit(why)) => BridgeEvent::Reached(Reach::Denied(why)),
            // It does not fit every stage, but each stage has an end without it.
            Err(error) => BridgeEvent::Started(Err(format!("what looked for a daemon failed: {error}."))),
        }
    }

    fn reached(&mut self, look: DaemonLook) -> Reach {
        match look {
            DaemonLook::There(stream) => match self.connected(stream) {
                Ok(link) => Reach::There(link),
                Err(why) => Reach::Denied(why),
            },
            DaemonLook::Absent => Reach::Absent,
            DaemonLook::Denied(path) => Reach::Denied(format!("{} may not be connected to from here.", path.display())),
            DaemonLook::Failed(path, errno) => {
                Reach::Denied(format!("{} cannot be connected to: {errno}.", path.display()))
            }
        }
    }

    fn began(&mut self, started: Result<Result<System, Fault>, JoinError>) -> BridgeEvent {
        BridgeEvent::Hosted(match started {
            Ok(Ok(system)) => Ok(self.hosted(system)),
            Ok(Err(fault)) => Err(fault.to_string()),
            Err(error) => Err(format!("it failed while it started: {error}.")),
        })
    }

    fn connected(&mut self, stream: OwnedFd) -> Result<LinkNumber, String> {
        let stream = std::os::unix::net::UnixStream::from(stream);
        let stream = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
        let stream = stream.map_err(|error| format!("the connection to the daemon cannot be used: {error}."))?;
        Ok(self.link(Box::new(stream)))
    }

    fn link(&mut self, stream: Box<dyn Stream>) -> LinkNumber {
        let number = LinkNumber(self.next_link);
        self.next_link += 1;
        self.links.add(number, stream);
        number
    }

    /// A system in this process serves the bridge as it would any client.
    fn hosted(&mut self, system: System) -> LinkNumber {
        let (ours, theirs) = tokio::io::duplex(BETWEEN);
        let mut serving = TaskSet::new();
        let serves = system.clone();
        serving.spawn(async move {
            let (reader, writer) = tokio::io::split(theirs);
            if let Err(fault) = serves.serve(reader, writer).await {
                tracing::warn!(%fault, "the system in this process serves no more");
            }
        });
        let link = self.link(Box::new(ours));
        self.host = Some(Host { link, system, serving });
        link
    }

    async fn stop_hosting(&mut self) -> Option<Fault> {
        self.host.take()?.stop().await
    }

    /// Says the last words and lets go of everything.
    async fn end(mut self) -> BridgeEnd {
        let last = async {
            while !self.out.is_empty() {
                write(&mut self.output, &mut self.out).await?;
            }
            self.output.shutdown().await
        };
        let _ = tokio::time::timeout(DRAIN, last).await;
        // A daemon sees that its client is gone; a system in this process is told to stop.
        self.links = Links::default();
        // A daemon that is being started serves others.
        self.under_way.detach_all();
        while let Some(started) = self.beginning.join_next().await {
            if let Ok(Ok(system)) = started {
                system.shutdown(Grace::default()).await;
            }
        }
        let last = self.stop_hosting().await;
        let mut faults: Vec<Fault> = last.into_iter().collect();
        while let Some(ended) = self.endings.join_next().await {
            faults.extend(ended.ok().flatten());
        }
        match faults.pop() {
            None => BridgeEnd::InOrder,
            Some(fault) => BridgeEnd::AfterFault(fault),
        }
    }
}

/// Writes what the client takes.
///
/// # Cancel safety
///
/// Safe: what was written is taken out of `out`.
async fn write(output: &mut (impl AsyncWrite + Unpin), out: &mut BytesMut) -> io::Result<()> {
    let count = output.write(out).await?;
    if count == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    out.advance(count);
    if out.is_empty() {
        output.flush().await?;
    }
    Ok(())
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
