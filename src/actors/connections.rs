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

use super::current::Current;
use super::jobs::JobsMsg;
use super::kept::Kept;
use super::reply::SessionMailbox;
use super::rollout::RolloutHandle;
use super::session::{Ended, Gauges, Input, SessionEvent, SessionLoop, SessionParts, Sink};
use super::sessions::SessionEnd;
use super::workers::WorkersMsg;
use crate::clients::Clients;
use crate::fault::{Fault, FaultCode};
use crate::faults::Faults;
use crate::ids::{HostId, SessionNumber};
use crate::protocol::catalog::Catalog;
use crate::protocol::session::{SessionCore, SessionLimits};
use crate::protocol::wire::Identity;
use crate::telemetry::TelemetryHandle;
use crate::tools::Tool;
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
    /// Who counts.
    pub telemetry: TelemetryHandle,
    /// What all sessions add up to.
    pub gauges: Arc<Gauges>,
    /// What is to break.
    pub faults: Faults,
    /// What is known about clients.
    pub clients: Clients,
    /// Who answers about tasks; nobody where there are no consults.
    pub tasks: Option<TaskDesk>,
    /// Who hears that something was handled.
    pub rollout: RolloutHandle,
}

struct Connection {
    session: Arc<Kept<SessionLoop>>,
    mailbox: SessionMailbox,
    ended: Ended,
}

struct Open {
    next: u64,
    closing: bool,
    connections: BTreeMap<SessionNumber, Connection>,
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
        let open = Open { next: 1, closing: false, connections: BTreeMap::new() };
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
        input: Input,
        sink: Sink,
    ) -> Result<(SessionNumber, oneshot::Receiver<Result<SessionEnd, Fault>>), Fault> {
        let mut open = self.open_ones();
        if open.closing {
            return Err(Fault::new(FaultCode::Stopping, "the system is stopping."));
        }
        if open.connections.len() >= CONNECTIONS {
            return Err(Fault::new(FaultCode::Busy, "this host serves as many connections as it may."));
        }
        let number = SessionNumber(open.next);
        open.next += 1;
        let s = &self.served;
        let session = SessionLoop::new(SessionParts {
            host: s.host,
            number,
            core: SessionCore::new(Arc::clone(&s.catalog), Arc::clone(&s.identity), s.limits),
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
            tasks: s.tasks.clone(),
            rollout: s.rollout.clone(),
        });
        let (ended, end) = oneshot::channel();
        let mailbox = session.mailbox();
        open.connections.insert(number, Connection { session: Kept::new(session), mailbox, ended });
        Ok((number, end))
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
