//! The open connections of a system, whoever serves them at the moment.
//!
//! Owns: each connection's loop while nobody has borrowed it, who waits for its end, how many there may be. May not know:
//! protocol state, supervision. It belongs to the system, so that it outlives every actor but the root.
//!
//! Invariants: (1) a connection that was opened ends exactly once, and whoever waits for it is told; (2) the lock is held
//! for a look or an insertion, never across anything that waits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::clock;
use super::current::Current;
use super::jobs::messages::JobsMsg;
use super::kept::Kept;
use super::reply::SessionMailbox;
use super::rollout::RolloutHandle;
use super::session::{
    ClientInput, ClientOutput, Gauges, SessionEndReply, SessionEvent, SessionLoop, SessionParts, SessionSnapshot,
};
use super::sessions::messages::SessionEnd;
use super::workers::messages::WorkersMsg;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{HostId, SessionNumber};
use crate::config::clients::Clients;
use crate::failpoints::Faults;
use crate::protocol::catalog::Catalog;
use crate::protocol::session::{SessionCore, SessionLimits, Unreadable};
use crate::protocol::wire::Identity;
use crate::telemetry::TelemetryHandle;
use crate::tools::Tool;
use crate::tools::callers::{CallerContext, Callers};
use crate::tools::roots::RootsHandle;
use crate::tools::tasks::TaskDesk;

/// Connections at once. Each costs tens of kilobytes; more is refused at the door.
const CONNECTIONS: usize = 1024;

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

/// Where a connection's bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// From somewhere only the embedding program knows.
    Elsewhere,
    /// From the standard streams of this process, which its next image has as well.
    Standard,
    /// From standard streams that are read or written by a thread, which may hold bytes back: a terminal, a file.
    StandardByThread,
}

/// Why there is nothing to be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Nobody is connected.
    #[error("pass on a connection: there is none")]
    NoConnection,
    /// Only one can be.
    #[error("pass on several connections: only one on the standard streams can be")]
    SeveralConnections,
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
}

struct Connection {
    door: Door,
    session: Arc<Kept<SessionLoop>>,
    mailbox: SessionMailbox,
    ended: SessionEndReply,
}

struct Open {
    next: u64,
    closing: bool,
    connections: BTreeMap<SessionNumber, Connection>,
    awaited: Option<Box<Awaited>>,
}

/// The open connections. Cheap to clone.
#[derive(Clone)]
pub struct Connections {
    served: Arc<Served>,
    open: Arc<Mutex<Open>>,
}

impl Connections {
    /// None yet.
    #[must_use]
    pub fn new(served: Served) -> Self {
        // Session 0 belongs to the embedding program's own typed calls.
        let open = Open { next: 1, closing: false, connections: BTreeMap::new(), awaited: None };
        Self { served: Arc::new(served), open: Arc::new(Mutex::new(open)) }
    }

    fn open_ones(&self) -> MutexGuard<'_, Open> {
        // Nothing that can panic leaves it half changed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection in; somebody has to be told to serve it.
    ///
    /// # Errors
    ///
    /// `busy` when there are as many as there may be; the system is stopping.
    pub fn open(
        &self,
        door: Door,
        input: ClientInput,
        sink: ClientOutput,
    ) -> Result<(SessionNumber, oneshot::Receiver<Result<SessionEnd, Fault>>), Fault> {
        self.open_as(door, None, input, sink)
    }

    /// The same for a session that has this context before anybody serves it; the host's own where there is none.
    ///
    /// # Errors
    ///
    /// As [`Connections::open`].
    pub fn open_as(
        &self,
        door: Door,
        context: Option<CallerContext>,
        input: ClientInput,
        sink: ClientOutput,
    ) -> Result<(SessionNumber, oneshot::Receiver<Result<SessionEnd, Fault>>), Fault> {
        let mut open = self.open_ones();
        if open.closing {
            return Err(Fault::new(FaultCode::Stopping, "the system is stopping."));
        }
        if open.connections.len() >= CONNECTIONS {
            return Err(Fault::new(FaultCode::Busy, "this host serves as many connections as it may."));
        }
        let awaited = if door == Door::Elsewhere { None } else { open.awaited.take() };
        let s = &self.served;
        let (number, core, passed) = match awaited.map(|awaited| *awaited) {
            Some(Awaited { session, core, owes_change }) => (session.number, core, Some((session, owes_change))),
            None => {
                let number = SessionNumber(open.next);
                open.next += 1;
                (number, SessionCore::new(Arc::clone(&s.catalog), Arc::clone(&s.identity), s.limits), None)
            }
        };
        let mut session = SessionLoop::new(SessionParts {
            host: s.host,
            number,
            core,
            tools: Arc::clone(&s.tools),
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
        });
        if let Some((passed, owes_change)) = passed {
            session.take_over(&passed);
            if owes_change {
                session.owe_change();
            }
        }
        let (ended, end) = oneshot::channel();
        let mailbox = session.mailbox();
        match context {
            Some(context) => s.callers.set(number, context),
            None => s.callers.admit(number),
        }
        open.connections.insert(number, Connection { door, session: Kept::new(session), mailbox, ended });
        Ok((number, end))
    }

    /// Takes in what another image passed on, `since` ago: the next connection on the standard streams goes on with it.
    ///
    /// # Errors
    ///
    /// Something in it makes no sense.
    pub fn inherit(
        &self,
        next: u64,
        session: Option<&SessionSnapshot>,
        catalog: u64,
        since: Duration,
    ) -> Result<(), Unreadable> {
        let awaited = match session {
            None => None,
            Some(session) => {
                let s = &self.served;
                let (tools, identity) = (Arc::clone(&s.catalog), Arc::clone(&s.identity));
                let core = SessionCore::restored(tools, identity, s.limits, &session.core, clock::now(), since)?;
                let owes_change = s.catalog.digest() != catalog;
                Some(Box::new(Awaited { session: session.clone(), core, owes_change }))
            }
        };
        let mut open = self.open_ones();
        open.next = open.next.max(next);
        open.awaited = awaited;
        Ok(())
    }

    /// What a snapshot says of all connections: the next number and what is told about the tools.
    #[must_use]
    pub fn passed_on(&self) -> (u64, u64) {
        (self.open_ones().next, self.served.catalog.digest())
    }

    /// The one connection that can be passed on.
    ///
    /// # Errors
    ///
    /// There is none, or something else that cannot be.
    pub fn fit(&self) -> Result<SessionMailbox, Unfit> {
        let open = self.open_ones();
        if open.closing {
            return Err(Unfit::Stopping);
        }
        let mut connections = open.connections.values();
        match (connections.next(), connections.next()) {
            (None, _) => Err(Unfit::NoConnection),
            (Some(_), Some(_)) => Err(Unfit::SeveralConnections),
            (Some(connection), None) => match connection.door {
                Door::Standard => Ok(connection.mailbox.clone()),
                Door::StandardByThread => Err(Unfit::ByThread),
                Door::Elsewhere => Err(Unfit::Elsewhere),
            },
        }
    }

    /// Whether a session has, or will have, a client.
    #[must_use]
    pub fn has_client(&self, number: SessionNumber) -> bool {
        let open = self.open_ones();
        let awaited = open.awaited.as_ref().is_some_and(|awaited| awaited.session.number == number);
        awaited || open.connections.contains_key(&number)
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

    /// The loop of a connection, to be borrowed; `None` when it is over.
    #[must_use]
    pub fn session(&self, number: SessionNumber) -> Option<Arc<Kept<SessionLoop>>> {
        self.open_ones().connections.get(&number).map(|connection| Arc::clone(&connection.session))
    }

    /// A connection is over. Whether it was still open.
    pub fn over(&self, number: SessionNumber, end: SessionEnd) -> bool {
        let Some(connection) = self.open_ones().connections.remove(&number) else { return false };
        drop(connection.session.finish());
        self.served.roots.forget(number);
        self.served.callers.forget(number);
        // Whoever opened it may wait for nothing any more.
        let _ = connection.ended.send(Ok(end));
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
        let mut ending = JoinSet::new();
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
