//! The open connections of a system, whoever serves them at the moment.
//!
//! Owns: each connection's loop while nobody has borrowed it, who waits for its end, how many there are and may be. May not
//! know: protocol state, supervision, doors. It belongs to the system, so that it outlives every actor but the root.
//!
//! Invariants: (1) a connection that was opened ends exactly once, and whoever waits for it is told; (2) the lock is held
//! for a look or an insertion, never across anything that waits.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use super::callers::CallerSnapshot;
use super::clock;
use super::current::Current;
use super::doors::desk::ControlDesk;
use super::jobs::messages::JobsMsg;
use super::kept::Kept;
use super::reply::SessionMailbox;
use super::rollout::RolloutHandle;
use super::session::{
    ClientInput, ClientOutput, Gauges, SessionEndReply, SessionEvent, SessionLoop, SessionParts, SessionSnapshot,
    ToolFacts,
};
use super::sessions::messages::SessionEnd;
use super::workers::messages::WorkersMsg;
use crate::base::descriptors::PassedPipe;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{HostId, SessionNumber, UnixMillis};
use crate::base::tasks::TaskSet;
use crate::config::clients::Clients;
use crate::failpoints::Faults;
use crate::jobs::hosts::{SessionSeen, shown_directory, shown_word};
use crate::protocol::catalog::Catalog;
use crate::protocol::session::{SessionCore, SessionLimits, Unreadable};
use crate::protocol::wire::Identity;
use crate::telemetry::TelemetryHandle;
use crate::tools::Tool;
use crate::tools::callers::{CallerContext, Callers};
use crate::tools::roots::RootsHandle;
use crate::tools::tasks::TaskDesk;

/// Connections at once. Each costs tens of kilobytes and a descriptor; more is refused at the door. A thousand clients on one
/// machine, and room for those that only ask how it is.
const CONNECTIONS: usize = 1024;

/// Bytes of arguments that the calls of one client of a socket may hold: a thousand clients share the process, and two of the
/// longest lines fit.
const SHARED_CALL_BYTES: usize = 16 * 1024 * 1024;

/// What every session of a system is made from.
pub struct Served {
    /// This system.
    pub host: HostId,
    /// What is offered.
    pub catalog: Arc<Catalog>,
    /// The same, in the same order, to be run.
    pub tools: Arc<[Arc<dyn Tool>]>,
    /// Who we say we are.
    pub identity: Arc<Identity>,
    /// Bounds of each session.
    pub limits: SessionLimits,
    /// Longest line taken.
    pub line_limit: usize,
    /// Who starts workers.
    pub workers: Current<WorkersMsg>,
    /// Who hears of lost callers.
    pub jobs: Current<JobsMsg>,
    /// Telemetry.
    pub telemetry: TelemetryHandle,
    /// What all sessions add up to.
    pub gauges: Arc<Gauges>,
    /// Fault plan.
    pub faults: Faults,
    /// What is known about clients.
    pub clients: Clients,
    /// Who answers about tasks; nobody where there are no consults.
    pub tasks: Option<TaskDesk>,
    /// What clients work on.
    pub roots: RootsHandle,
    /// Whose sessions they are.
    pub callers: Callers,
    /// Who hears that something was handled.
    pub rollout: RolloutHandle,
}

/// What a connection's bytes come from, as far as another image of the program could go on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// From somewhere only the embedding program knows.
    Elsewhere,
    /// From the standard streams of this process, which its next image has as well.
    Standard,
    /// From standard streams that are read or written by a thread, which may hold bytes back: a terminal, a file.
    StandardByThread,
    /// From a socket that was accepted at a door of ours; known by this, where the system says what it is.
    Socket(Option<PassedPipe>),
}

/// A client that has come in.
pub struct Arrived {
    /// What its bytes come from.
    pub kind: StreamKind,
    /// What it sends.
    pub input: ClientInput,
    /// Where it reads.
    pub sink: ClientOutput,
    /// Told how its connection ended, or why there is none.
    pub ended: Option<SessionEndReply>,
    /// Whose it is, before anybody serves it; the host's own where there is none.
    pub context: Option<CallerContext>,
    /// Who answers what it says beside JSON-RPC.
    pub desk: Option<Arc<dyn ControlDesk>>,
    /// The session that another image passed on and that goes on with it.
    pub resumes: Option<SessionNumber>,
}

/// A connection that another image can go on with.
pub struct Fit {
    /// Its number.
    pub number: SessionNumber,
    /// Its descriptor; none for the standard streams, which every image has.
    pub socket: Option<PassedPipe>,
    /// The way to its session.
    pub mailbox: SessionMailbox,
}

/// A connection by a socket, passed on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConnectionSnapshot {
    /// Its descriptor.
    pub socket: PassedPipe,
    /// Its session.
    pub session: SessionSnapshot,
    /// Whose it is.
    pub caller: CallerSnapshot,
}

/// Why there is nothing to be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Nobody is connected.
    #[error("pass on a connection: there is none")]
    NoConnection,
    /// Its descriptors are not known.
    #[error("pass on a connection whose descriptors only the embedding program knows")]
    Elsewhere,
    /// Something holds bytes back.
    #[error("pass on a terminal or a file: its bytes may be held by a thread")]
    ByThread,
    /// It is stopping.
    #[error("pass on a system that is stopping")]
    Stopping,
}

/// What another image passed on, until its connection is taken up.
struct Awaited {
    session: SessionSnapshot,
    core: SessionCore,
    owes_change: bool,
    comes_by: ComesBy,
}

/// What an awaited connection comes by.
enum ComesBy {
    /// The standard streams.
    Standard,
    /// This socket; absent in a dry run.
    Socket(Option<OwnedFd>),
}

struct Connection {
    /// When this image took it in.
    since: UnixMillis,
    kind: StreamKind,
    session: Arc<Kept<SessionLoop>>,
    mailbox: SessionMailbox,
    ended: Option<SessionEndReply>,
    /// Dropped with the connection; its door may wait for that.
    _over: oneshot::Sender<()>,
}

struct Open {
    next: u64,
    closing: bool,
    connections: BTreeMap<SessionNumber, Connection>,
    awaited: BTreeMap<SessionNumber, Box<Awaited>>,
}

/// The open connections. Cheap to clone.
#[derive(Clone)]
pub struct Connections {
    served: Arc<Served>,
    /// What sessions know of the tools.
    facts: Arc<[ToolFacts]>,
    open: Arc<Mutex<Open>>,
    /// How many there are.
    count: Arc<watch::Sender<usize>>,
}

impl Connections {
    /// None yet.
    #[must_use]
    pub fn new(served: Served) -> Self {
        // Session 0 belongs to the embedding program's own typed calls.
        let open = Open { next: 1, closing: false, connections: BTreeMap::new(), awaited: BTreeMap::new() };
        let facts = served.tools.iter().map(|tool| ToolFacts::of(&**tool)).collect();
        Self {
            served: Arc::new(served),
            facts,
            open: Arc::new(Mutex::new(open)),
            count: Arc::new(watch::Sender::new(0)),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// The bounds of a session, which may share the process with many.
    fn limits(&self, shares: bool) -> SessionLimits {
        let limits = self.served.limits;
        let call_bytes = if shares { limits.call_bytes.min(SHARED_CALL_BYTES) } else { limits.call_bytes };
        SessionLimits { call_bytes, ..limits }
    }

    fn counted(&self, open: &Open) {
        let count = open.connections.len();
        self.served.gauges.connections.store(count, Ordering::Relaxed);
        self.count.send_replace(count);
    }

    /// Whether one more may come in.
    ///
    /// # Errors
    ///
    /// `busy` when there are as many as there may be; the system is stopping.
    pub fn room(&self) -> Result<(), Fault> {
        Self::room_in(&self.open_ones())
    }

    fn room_in(open: &Open) -> Result<(), Fault> {
        if open.closing {
            return Err(Fault::new(FaultCode::Stopping, "the system is stopping."));
        }
        if open.connections.len() >= CONNECTIONS {
            return Err(Fault::new(FaultCode::Busy, "this host serves as many connections as it may."));
        }
        Ok(())
    }

    fn open_ones(&self) -> MutexGuard<'_, Open> {
        // Nothing that can panic leaves it half changed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection in; somebody has to be told to serve it. What is returned beside its number resolves when it is over.
    ///
    /// # Errors
    ///
    /// `busy` when there are as many as there may be; the system is stopping. Whoever waits for the end is told the same.
    pub fn open(&self, arrived: Arrived) -> Result<(SessionNumber, oneshot::Receiver<()>), Fault> {
        let Arrived { kind, input, sink, ended, context, desk, resumes } = arrived;
        let mut open = self.open_ones();
        if let Err(fault) = Self::room_in(&open) {
            let _ = ended.map(|ended| ended.send(Err(fault.clone())));
            return Err(fault);
        }
        let by_standard = |awaited: &Awaited| matches!(awaited.comes_by, ComesBy::Standard);
        let resumes = match kind {
            StreamKind::Standard | StreamKind::StandardByThread => {
                open.awaited.iter().find(|(_, awaited)| by_standard(awaited)).map(|(number, _)| *number)
            }
            StreamKind::Elsewhere | StreamKind::Socket(_) => resumes,
        };
        let awaited = resumes.and_then(|number| open.awaited.remove(&number));
        let s = &self.served;
        let (number, core, passed) = match awaited.map(|awaited| *awaited) {
            Some(Awaited { session, core, owes_change, .. }) => (session.number, core, Some((session, owes_change))),
            None => {
                let number = SessionNumber(open.next);
                open.next += 1;
                (
                    number,
                    SessionCore::new(Arc::clone(&s.catalog), Arc::clone(&s.identity), self.limits(desk.is_some())),
                    None,
                )
            }
        };
        let mut session = SessionLoop::new(SessionParts {
            host: s.host,
            number,
            core: if desk.is_some() { core.with_control() } else { core },
            tools: Arc::clone(&s.tools),
            facts: Arc::clone(&self.facts),
            workers: s.workers.clone(),
            jobs: s.jobs.clone(),
            telemetry: s.telemetry.clone(),
            gauges: Arc::clone(&s.gauges),
            input,
            sink,
            line_limit: s.line_limit,
            faults: s.faults.clone(),
            clients: s.clients.clone(),
            tasks: s.tasks.clone().map(|desk| desk.of(number)),
            roots: s.roots.clone(),
            rollout: s.rollout.clone(),
            desk,
        });
        if let Some((passed, owes_change)) = passed {
            session.take_over(&passed);
            if owes_change {
                session.owe_change();
            }
        }
        let (over, closed) = oneshot::channel();
        let mailbox = session.mailbox();
        match context {
            Some(context) => s.callers.admit_as(number, context),
            // Whose a session is that goes on was passed on with it.
            None if resumes.is_some_and(|resumes| resumes == number) => {}
            None => s.callers.admit(number),
        }
        let since = UnixMillis::now();
        let connection = Connection { since, kind, session: Kept::new(session), mailbox, ended, _over: over };
        open.connections.insert(number, connection);
        self.counted(&open);
        Ok((number, closed))
    }

    /// Takes in what another image passed on, `since` ago: the next connection on the standard streams goes on with the one of
    /// them, and those by sockets are opened by whoever has a desk for them ([`Connections::passed_sockets`]).
    ///
    /// # Errors
    ///
    /// Something in it makes no sense. What does is taken in all the same.
    pub fn inherit(
        &self,
        next: u64,
        standard: Option<&SessionSnapshot>,
        by_sockets: impl IntoIterator<Item = (ConnectionSnapshot, Option<OwnedFd>)>,
        catalog: u64,
        since: Duration,
    ) -> Result<(), Unreadable> {
        let s = &self.served;
        let owes_change = s.catalog.digest() != catalog;
        let mut worst = Ok(());
        let mut open = self.open_ones();
        open.next = open.next.max(next);
        let standard = standard.map(|session| (session.clone(), None, ComesBy::Standard));
        let by_sockets = by_sockets.into_iter().map(|(passed, socket)| {
            let ConnectionSnapshot { session, caller, .. } = passed;
            (session, Some(CallerContext::from(caller)), ComesBy::Socket(socket))
        });
        for (session, context, comes_by) in standard.into_iter().chain(by_sockets) {
            let (tools, identity) = (Arc::clone(&s.catalog), Arc::clone(&s.identity));
            let limits = self.limits(matches!(comes_by, ComesBy::Socket(_)));
            match SessionCore::restored(tools, identity, limits, &session.core, clock::now(), since) {
                Ok(core) => {
                    open.next = open.next.max(session.number.0 + 1);
                    match context {
                        Some(context) => s.callers.admit_as(session.number, context),
                        None => s.callers.admit(session.number),
                    }
                    let awaited = Awaited { core, owes_change, comes_by, session };
                    open.awaited.insert(awaited.session.number, Box::new(awaited));
                }
                Err(error) => worst = Err(error),
            }
        }
        worst
    }

    /// The sockets of connections that were passed on and are awaited, each once; none are there in a dry run.
    #[must_use]
    pub fn passed_sockets(&self) -> Vec<(SessionNumber, Option<OwnedFd>)> {
        let mut open = self.open_ones();
        let socket = |(number, awaited): (&SessionNumber, &mut Box<Awaited>)| match &mut awaited.comes_by {
            ComesBy::Standard => None,
            ComesBy::Socket(socket) => Some((*number, socket.take())),
        };
        open.awaited.iter_mut().filter_map(socket).collect()
    }

    /// What a snapshot says of all connections: the next number and what is told about the tools.
    #[must_use]
    pub fn passed_on(&self) -> (u64, u64) {
        (self.open_ones().next, self.served.catalog.digest())
    }

    /// The connections that can be passed on, oldest first: all there are.
    ///
    /// # Errors
    ///
    /// There is one that cannot be.
    pub fn fit(&self) -> Result<Vec<Fit>, Unfit> {
        let open = self.open_ones();
        if open.closing {
            return Err(Unfit::Stopping);
        }
        let fit = |(number, connection): (&SessionNumber, &Connection)| {
            let socket = match connection.kind {
                StreamKind::Standard => None,
                StreamKind::Socket(Some(socket)) => Some(socket),
                StreamKind::StandardByThread => return Err(Unfit::ByThread),
                StreamKind::Elsewhere | StreamKind::Socket(None) => return Err(Unfit::Elsewhere),
            };
            Ok(Fit { number: *number, socket, mailbox: connection.mailbox.clone() })
        };
        open.connections.iter().map(fit).collect()
    }

    /// Where the session of a connection hears from everybody but its client; `None` when it is over.
    #[must_use]
    pub fn mailbox(&self, number: SessionNumber) -> Option<SessionMailbox> {
        self.open_ones().connections.get(&number).map(|connection| connection.mailbox.clone())
    }

    /// Waits until a connection is over.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn gone(&self, number: SessionNumber) {
        let mut count = self.count();
        loop {
            count.mark_unchanged();
            if !self.open_ones().connections.contains_key(&number) || count.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether a session has, or will have, a client.
    #[must_use]
    pub fn has_client(&self, number: SessionNumber) -> bool {
        let open = self.open_ones();
        open.awaited.contains_key(&number) || open.connections.contains_key(&number)
    }

    /// The numbers of all connections, oldest first.
    #[must_use]
    pub fn numbers(&self) -> Vec<SessionNumber> {
        self.open_ones().connections.keys().copied().collect()
    }

    /// Tells every session that the tools differ.
    pub fn tools_changed(&self) {
        for connection in self.open_ones().connections.values() {
            // A session that is over hears nothing more.
            let _ = connection.mailbox.send(SessionEvent::ToolsChanged);
        }
    }

    /// The oldest sessions, so many of them, and how many there are. Each is asked who its client is and has this long to say.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn seen(&self, most: usize, patience: Duration) -> (Vec<SessionSeen>, usize) {
        let (asked, all) = {
            let open = self.open_ones();
            let ask = |(number, connection): (&SessionNumber, &Connection)| {
                let (reply, answer) = oneshot::channel();
                let _ = connection.mailbox.send(SessionEvent::Describe(reply));
                (*number, connection.since, answer)
            };
            (open.connections.iter().take(most).map(ask).collect::<Vec<_>>(), open.connections.len())
        };
        let until = tokio::time::Instant::now() + patience;
        let mut seen = Vec::with_capacity(asked.len());
        for (session, since, answer) in asked {
            let said = tokio::time::timeout_at(until, answer).await.ok().and_then(Result::ok).unwrap_or_default();
            // One that is over by now has no context.
            let Some(caller) = self.served.callers.of(session) else { continue };
            seen.push(SessionSeen {
                session,
                client: said.client.as_deref().map(shown_word),
                version: said.version.as_deref().map(shown_word),
                protocol: said.protocol.map(|version| version.as_str().to_owned()),
                directory: caller.cwd.as_deref().and_then(shown_directory),
                since,
                calls: said.calls,
                environment: caller.origin.as_str().to_owned(),
            });
        }
        (seen, all)
    }

    /// Tells every client that has opened its session with a control message this line, without its end.
    pub fn say_beside(&self, line: &str) {
        for connection in self.open_ones().connections.values() {
            let _ = connection.mailbox.send(SessionEvent::SayBeside(line.to_owned()));
        }
    }

    /// The loop of a connection, to be borrowed; `None` when it is over.
    #[must_use]
    pub fn session(&self, number: SessionNumber) -> Option<Arc<Kept<SessionLoop>>> {
        self.open_ones().connections.get(&number).map(|connection| Arc::clone(&connection.session))
    }

    /// A connection is over. Whether it was still open.
    pub fn over(&self, number: SessionNumber, end: SessionEnd) -> bool {
        let mut open = self.open_ones();
        let Some(connection) = open.connections.remove(&number) else { return false };
        self.counted(&open);
        drop(open);
        drop(connection.session.finish());
        self.served.roots.forget(number);
        self.served.callers.forget(number);
        self.served.telemetry.traces().over(number);
        // Whoever opened it may wait for nothing any more.
        let _ = connection.ended.map(|ended| ended.send(Ok(end)));
        true
    }

    /// From here on an incarnation's end is the connection's end, and no connection is opened.
    pub fn close(&self) {
        self.open_ones().closing = true;
    }

    /// Whether the system stops.
    #[must_use]
    pub fn are_closing(&self) -> bool {
        self.open_ones().closing
    }

    /// Ends whatever nobody serves any more, within this time.
    ///
    /// # Cancel safety
    ///
    /// Not safe: what was not ended by then stays open.
    pub async fn end_all(&self, limit: Duration) {
        let mut ending = TaskSet::new();
        for session in self.numbers().into_iter().filter_map(|number| self.session(number)) {
            ending.spawn(async move {
                if let Some(mut lent) = session.lend().await
                    && let Some(session) = lent.get()
                {
                    session.end().await;
                }
            });
        }
        let _ = tokio::time::timeout(limit, async { while ending.join_next().await.is_some() {} }).await;
        for number in self.numbers() {
            self.over(number, SessionEnd::Closed);
        }
    }
}
