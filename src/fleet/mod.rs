//! The fleet: one queue for the hosts of several machines, above each machine's own store.
//!
//! Owns: the eight verbs ([`Fleet`]), what they answer, and why they fail; whose turn it is among machines (`claiming`), what a host
//! can do (`labels`), what is believed of a row (`rows`). [`core`] decides about all of it without I/O, [`memory`] keeps that in one
//! process, `postgres` keeps it in PostgreSQL (feature `fleet`). May not know: this machine's store, actors, how a run is made, MCP.
//!
//! ```text
//!  host A ─ accept ─▶ ┌───────────────┐ ◀─ claim, start, renew, finish ─ host B
//!  host A ─ wait ───▶ │ jobs, hosts,  │ ◀─ sweep ─ whoever looks
//!  anybody ─ cancel ▶ │ turns, caps   │
//!                     └───────────────┘
//! ```
//!
//! A host that claims a job says that it starts it, and only then accepts it in its own store under the same id, which starts an
//! agent. What a host holds is a [`Ticket`]; its fence tells it from every other claim of the job.
//!
//! Invariants: (1) of one job at most one start is ever confirmed (L3): a claim of a host that is gone is given to another, a start
//! never (L19); (2) claims are made one after the other, so that caps and turns are exact (L19); (3) an outcome that comes too late
//! is kept and changes no end (L19); (4) all times are the queue's own, and a host measures its lease by its own steady clock from
//! before it asked; (5) every verb can be asked again: what was done is not done twice, and what is confirmed again is as durable.

pub mod address;
pub mod claiming;
pub mod core;
pub mod invariants;
pub mod job;
pub mod labels;
pub mod lease;
pub mod memory;
pub mod people;
pub mod placement;
#[cfg(any(test, feature = "fleet"))]
pub mod postgres;
pub mod remote;
pub mod rows;
#[cfg(test)]
mod tests;

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

pub use self::address::FleetAddress;
pub use self::claiming::{CapScope, FleetPause};
pub use self::job::{ClaimedJob, Fence, FleetState, FleetView, LateOutcome, NewFleetJob, Ticket};
use self::labels::SLOTS;
pub use self::labels::{Labels, Needs};
pub use self::lease::FleetLease;
pub use self::memory::MemoryFleet;
pub use self::placement::Placement;
use self::rows::{BadRow, NAME_BYTES, OUTCOME_BYTES, text, word, written};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{FleetJobId, HostId, UnixMillis};
use crate::jobs::JobOutcome;
use crate::jobs::store::LIMIT_MOST;

/// How long a host is believed to live after it said so, where the fleet says nothing else ([`FleetLease`]). Three renewals may be
/// lost, and a restart of the database takes less.
pub const LEASE: Duration = Duration::from_secs(60);

/// How long after the end of a host's lease its jobs are taken from it: one lease more, for a start that was on its way.
pub const SWEPT_AFTER: Duration = LEASE;

/// How long a claim is good for that needs no clone: as long as that of a host that goes at once. A machine speaks for a host that is
/// gone for as long as it runs a job of it, and what that one claimed besides must not wait for so long.
pub const CLAIMED_MOST: Duration = LEASE.saturating_add(SWEPT_AFTER);

/// How long after a change of the database's history nobody claims: one lease, as long as it takes each host to say what it runs.
pub const QUIET: Duration = LEASE;

/// How often whoever waits looks, whether or not it was told of anything.
pub const POLL: Duration = Duration::from_secs(5);

/// Most jobs that wait in one fleet. A claim reads all of them, so that turns are exact; beyond it `accept` says that the queue is
/// full. Two accepts at the same moment may both find the last place.
pub const MOST_QUEUED: usize = 4_000;

/// Most jobs one claim gives, so that it never holds the others up for long; who has room for more asks again.
pub const MOST_CLAIMED: usize = 16;

/// How long a job that is over is kept, as a machine keeps its own.
pub const KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long a host whose lease is over is remembered, so that people see who left.
pub const HOST_KEPT: Duration = Duration::from_secs(60 * 60);

/// The longest a usage limit is believed, as on one machine: a longer one is taken for this one.
pub const PAUSE_MOST: Duration = Duration::from_millis(LIMIT_MOST);

/// What a verb gives, some time.
pub type FleetFuture<'a, T> = BoxFuture<'a, Result<T, FleetError>>;

/// One queue of several machines.
///
/// # Cancel safety
///
/// A verb that is dropped may have been done or not, as after [`FleetError::Unsure`]: ask again.
pub trait Fleet: Send + Sync {
    /// Puts a job into the queue. One request key of one workspace is one job: the same request joins it, another one is refused.
    fn accept<'a>(&'a self, job: &'a NewFleetJob) -> FleetFuture<'a, FleetAccept>;

    /// Takes jobs whose turn it is for a host whose lease is valid.
    fn claim<'a>(&'a self, ask: &'a ClaimAsk) -> FleetFuture<'a, FleetClaim>;

    /// Says that a claimed job is about to be started. Only [`FleetStart::Started`] allows it; asked again with the same ticket
    /// after an unsure answer, it says whether the start was written.
    fn start(&self, ticket: Ticket) -> FleetFuture<'_, FleetStart>;

    /// Says that a host lives, and what it can do.
    fn renew<'a>(&'a self, renewal: &'a Renewal) -> FleetFuture<'a, FleetRenewed>;

    /// Says how a run ended. The host's own store has it before; it is asked again until it was answered.
    fn finish<'a>(&'a self, finish: &'a RunFinish) -> FleetFuture<'a, FleetFinish>;

    /// Takes the jobs of hosts that are gone from them, ends those that nobody took in their time, and forgets what is old.
    fn sweep(&self) -> FleetFuture<'_, FleetSwept>;

    /// Ends a job that has not begun, or asks its host to end it.
    fn cancel(&self, job: FleetJobId) -> FleetFuture<'_, FleetCancel>;

    /// Waits until a job is over, but not longer than `most`; then it says how the job stands. `None` for a job it does not know.
    fn wait(&self, job: FleetJobId, most: Duration) -> FleetFuture<'_, Option<FleetView>>;

    /// Where it is heard that something may have changed. Whoever depends on it looks each [`POLL`] besides. No verb: it changes
    /// nothing, and what it gives outlives a loss of the database.
    fn changes(&self) -> FleetFuture<'_, watch::Receiver<u64>>;
}

/// What became of a job that asked to be accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum FleetAccept {
    /// It is new, and durable.
    Inserted(FleetJobId),
    /// It is one the fleet has, and durable.
    Joined(FleetJobId),
    /// Its key was used in its workspace for another request.
    Conflict(FleetJobId),
    /// Its key was used in its workspace by another user, whose jobs are not shown to this one.
    Hidden,
    /// Too many wait.
    QueueFull {
        /// This many.
        queued: usize,
    },
}

/// A host asks for jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimAsk {
    pub host: HostId,
    /// At most so many.
    pub most: usize,
    /// Users whose jobs it takes beside those of its own.
    pub accepts: Vec<String>,
}

/// What a host was given.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub enum FleetClaim {
    /// These, in their order; none when it is nobody's turn that it serves.
    Claimed(Vec<ClaimedJob>),
    /// Nothing, because this host may not claim now.
    NotNow(ClaimRefusal),
}

/// Why a host may not claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimRefusal {
    /// Its lease is over, or it never had one: renew first.
    LeaseOver,
    /// It was told to take no more.
    Drained,
    /// The database's history changed: hosts say first what they run.
    Quiet,
}

/// Whether an agent may be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum FleetStart {
    /// Yes: it is written that this ticket's host starts it.
    Started,
    /// No: the host's lease is over. After a renewal it may ask again.
    LeaseOver,
    /// No, and never with this ticket: the job is somebody else's, to be cancelled, or over.
    Refused {
        /// What it is.
        state: FleetState,
    },
    /// No: there is no such job.
    NoJob,
}

/// A host says that it lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// The process: random, so that none is taken for an earlier one.
    pub host: HostId,
    /// The machine's name, for people and for caps.
    pub name: String,
    /// What its state directory is called.
    pub state_id: String,
    pub labels: Labels,
    /// What it runs, by its own store. Needed where the fleet has said [`FleetRenewed::quiet`]; otherwise it may be empty.
    pub running: Vec<Ticket>,
}

impl Renewal {
    /// Whether it is within its bounds.
    ///
    /// # Errors
    ///
    /// The first field that is not.
    pub fn checked(&self) -> Result<(), BadRow> {
        text("name", &self.name, NAME_BYTES)?;
        word("state_id", &self.state_id)?;
        self.labels.write()?;
        let few = u32::try_from(self.running.len()).is_ok_and(|running| running <= SLOTS);
        if few { Ok(()) } else { Err(BadRow::new("running", "has too many entries")) }
    }
}

/// What a host that lives is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct FleetRenewed {
    /// Whether it was told to take no more jobs.
    pub drained: bool,
    /// Whether the database's history changed: it has to say what it runs, at once.
    pub quiet: bool,
    /// Jobs of its list that the database had forgotten were begun.
    pub reasserted: usize,
    /// For how long it is believed to live from now on.
    pub lease: FleetLease,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct RunFinish {
    pub ticket: Ticket,
    /// `succeeded`, `failed`, `cancelled`, or `interrupted` where its host lives and has lost what ran the agent: nothing of it runs any more.
    pub end: FleetState,
    pub outcome: JobOutcome,
    /// A usage limit it met, for everybody.
    pub pause: Option<FleetPause>,
}

impl RunFinish {
    /// Whether it is within its bounds; its outcome as JSON.
    ///
    /// # Errors
    ///
    /// The first field that is not.
    pub fn checked(&self) -> Result<String, BadRow> {
        if !self.end.is_terminal() {
            return Err(BadRow::new("end", "is no end of a run"));
        }
        if let Some(pause) = &self.pause {
            CapScope::read(&pause.scope.write())?;
            text("why", &pause.why, NAME_BYTES)?;
        }
        written("outcome", &self.outcome, OUTCOME_BYTES)
    }
}

/// What became of an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum FleetFinish {
    /// It is the job's.
    Finished,
    /// It was told before.
    Already,
    /// The job was taken from this ticket, or is over: it is kept beside it.
    Late {
        /// What the job is.
        state: FleetState,
    },
    /// There is no such job any more; it is kept all the same.
    NoJob,
}

/// What a sweep did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct FleetSwept {
    /// Claimed by a host that is gone: they wait again.
    pub requeued: Vec<FleetJobId>,
    /// Running at a host that is gone. They count until their deadline.
    pub interrupted: Vec<FleetJobId>,
    /// Waited longer than they may.
    pub expired: Vec<FleetJobId>,
    /// Jobs that are forgotten.
    pub forgotten: usize,
    /// Nothing was done, because the database's history changed.
    pub quiet: bool,
}

/// What became of a request to cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum FleetCancel {
    /// It had not begun, and is over.
    Ended,
    /// Its host will find the request.
    Asked,
    /// It is over; nothing was changed.
    Over {
        /// How.
        state: FleetState,
    },
    /// There is no such job.
    NoJob,
}

/// Why a verb failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FleetError {
    /// Nothing was done.
    #[error("use the fleet's queue: {detail}")]
    Unavailable {
        /// What happened.
        detail: String,
    },
    /// It may have been done, or be done for a while only: ask again.
    #[error("learn from the fleet's queue whether it was done: {detail}")]
    Unsure {
        /// What happened.
        detail: String,
    },
    /// What was to be written, or was read, is out of its bounds. Nothing was done.
    #[error(transparent)]
    Bad(#[from] BadRow),
    /// Programs of this version may not use this queue any more.
    #[error("use the fleet's queue: it needs programs that know version {least}, and this one knows {known}")]
    TooOld {
        /// The least version it asks for.
        least: i64,
        /// The version of this program.
        known: i64,
    },
    /// The way to the database is not safe, or says nothing that can be used.
    #[error("reach the fleet's queue: {detail}")]
    Settings {
        /// What is wrong.
        detail: &'static str,
    },
}

impl FleetError {
    /// What a caller is told.
    #[must_use]
    pub fn fault(&self) -> Fault {
        Fault::new(FaultCode::StoreUnavailable, format!("failed to {self}."))
    }
}

/// A time so much later.
#[must_use]
pub fn later(at: UnixMillis, by: Duration) -> UnixMillis {
    UnixMillis(at.0.saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
}
