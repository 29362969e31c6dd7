//! The connections of a system to exec servers, whoever works for them at the moment.
//!
//! Owns: each one's loop while it is wanted. May not know: what runs over it. It belongs to the system, so that it outlives every
//! actor but the root.
//!
//! Invariant: the lock is held for a look or an insertion, never across anything that waits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::ExecMsg;
use crate::actors::current::Current;
use crate::actors::root::RootMsg;
use crate::base::ids::ExecNumber;
use crate::exec::client::ExecError;
use crate::exec::remote::{self, Connector, RemoteExec, RemoteHealth, RemoteLoop, RemoteOptions};
use crate::exec::target::{AfterACut, ExecTarget};
use crate::failpoints::Faults;

/// Connections of one system at once. Each agent that runs elsewhere has one; far more than anybody configures.
const LINKS: usize = 64;

/// One connection, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExecRow {
    /// Where it leads.
    pub target: String,
    /// How it is.
    #[serde(flatten)]
    pub health: RemoteHealth,
}

struct OpenLink {
    target: String,
    work: RemoteLoop,
}

#[derive(Default)]
struct OpenLinks {
    next: u64,
    links: BTreeMap<ExecNumber, OpenLink>,
}

/// The connections. Cheap to clone.
#[derive(Clone)]
pub struct ExecLinks {
    open: Arc<Mutex<OpenLinks>>,
    supervisor: Current<ExecMsg>,
    root: Current<RootMsg>,
    faults: Faults,
}

impl ExecLinks {
    /// None yet.
    #[must_use]
    pub fn new(supervisor: Current<ExecMsg>, root: Current<RootMsg>, faults: Faults) -> Self {
        Self { open: Arc::default(), supervisor, root, faults }
    }

    fn open_ones(&self) -> MutexGuard<'_, OpenLinks> {
        // Nothing that can panic leaves it half changed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects to a server and makes the handshake; the connection is supervised with the rest of the system.
    ///
    /// # Errors
    ///
    /// When the server is not reached or refuses, when there are [`LINKS`] connections, or when the system stops.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    pub async fn connect(&self, target: ExecTarget, token: Option<String>) -> Result<RemoteExec, ExecError> {
        let (name, after_a_cut) = (target.to_string(), target.after_a_cut());
        self.connect_by(name, remote::connector(target, token), after_a_cut).await
    }

    /// [`ExecLinks::connect`] by whatever makes the streams.
    ///
    /// # Errors
    ///
    /// As [`ExecLinks::connect`].
    pub(super) async fn connect_by(
        &self,
        target: String,
        connector: Connector,
        after_a_cut: AfterACut,
    ) -> Result<RemoteExec, ExecError> {
        let (number, remote) = {
            let mut open = self.open_ones();
            if open.links.len() >= LINKS {
                return Err(ExecError::Busy { what: "connection to an exec server" });
            }
            let number = ExecNumber(open.next);
            open.next += 1;
            let options = RemoteOptions { seed: number.0, faults: self.faults.clone(), ..RemoteOptions::default() };
            let (remote, work) = RemoteExec::lent(connector, after_a_cut, options);
            open.links.insert(number, OpenLink { target, work });
            (number, remote)
        };
        // Without a supervisor, the root starts one, which looks.
        if self.supervisor.cast(ExecMsg::Opened(number)).is_err() && self.root.cast(RootMsg::ExecWanted).is_err() {
            self.give_up(number);
        }
        remote.up().await?;
        Ok(remote)
    }

    /// The numbers of all connections, oldest first.
    #[must_use]
    pub fn numbers(&self) -> Vec<ExecNumber> {
        self.open_ones().links.keys().copied().collect()
    }

    /// How each connection is.
    #[must_use]
    pub fn rows(&self) -> Vec<ExecRow> {
        let all: Vec<_> =
            self.open_ones().links.values().map(|link| (link.target.clone(), link.work.clone())).collect();
        all.into_iter().map(|(target, work)| ExecRow { target, health: work.health() }).collect()
    }

    /// The loop of a connection; `None` when it is over.
    pub(super) fn work(&self, number: ExecNumber) -> Option<RemoteLoop> {
        self.open_ones().links.get(&number).map(|link| link.work.clone())
    }

    /// A connection is over.
    pub(super) fn over(&self, number: ExecNumber) {
        let link = self.open_ones().links.remove(&number);
        drop(link);
    }

    /// Nobody works for a connection any more: everything on it fails.
    pub(super) fn give_up(&self, number: ExecNumber) {
        let link = self.open_ones().links.remove(&number);
        if let Some(link) = link {
            link.work.give_up("the system does not work for this connection any more");
        }
    }

    /// The system stops: everything that is open fails. Servers end what ran when its lease is over.
    pub(crate) fn give_up_all(&self) {
        for number in self.numbers() {
            self.give_up(number);
        }
    }
}
