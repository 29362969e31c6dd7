//! A fleet in this process: the core behind a lock, with a clock.
//!
//! Owns: the lock, the clock, who is woken. Knows only the core. For tests of whatever uses a [`Fleet`], and for one machine alone.
//!
//! Invariant: the lock is held for one step, never over an await.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::core::{FleetCore, FleetEvent, FleetVerdict};
use super::{
    ClaimAsk, Fleet, FleetAccept, FleetCancel, FleetClaim, FleetError, FleetFinish, FleetFuture, FleetRenewed,
    FleetStart, FleetSwept, FleetView, NewFleetJob, Renewal, RunFinish, Ticket,
};
use crate::base::ids::{FleetJobId, UnixMillis};

/// By which a fleet in memory knows the time.
pub type FleetClock = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

/// A fleet that lives as long as this process.
#[derive(Clone)]
pub struct MemoryFleet {
    core: Arc<Mutex<FleetCore>>,
    clock: FleetClock,
    /// The user its hosts belong to.
    user: String,
    changed: watch::Sender<u64>,
}

impl fmt::Debug for MemoryFleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryFleet").finish_non_exhaustive()
    }
}

impl MemoryFleet {
    /// An empty one of this user.
    #[must_use]
    pub fn new(user: impl Into<String>, clock: FleetClock) -> Self {
        Self { core: Arc::default(), clock, user: user.into(), changed: watch::Sender::new(0) }
    }

    /// Something that happened to it.
    pub fn step(&self, event: FleetEvent) -> FleetVerdict {
        let verdict = self.lock().step(event, (self.clock)());
        if !is_news(&verdict) {
            return verdict;
        }
        self.changed.send_modify(|rung| *rung += 1);
        verdict
    }

    /// How a job stands.
    #[must_use]
    pub fn view(&self, job: FleetJobId) -> Option<FleetView> {
        self.lock().view(job)
    }

    fn lock(&self) -> MutexGuard<'_, FleetCore> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether somebody waits for such a thing: what a database tells its hosts of.
fn is_news(verdict: &FleetVerdict) -> bool {
    match verdict {
        FleetVerdict::Accept(accept) => matches!(accept, FleetAccept::Inserted(_)),
        FleetVerdict::Cancel(cancel) => matches!(cancel, FleetCancel::Ended | FleetCancel::Asked),
        FleetVerdict::Sweep(swept) => {
            !(swept.requeued.is_empty() && swept.interrupted.is_empty() && swept.expired.is_empty())
        }
        FleetVerdict::Finish(_) | FleetVerdict::Noted => true,
        FleetVerdict::Claim(_) | FleetVerdict::Start(_) | FleetVerdict::Renew(_) => false,
    }
}

/// A verb whose verdict is this one's; the core gives each event its own.
macro_rules! verb {
    ($self:ident, $event:expr, $verdict:ident) => {
        Box::pin(async move {
            match $self.step($event) {
                FleetVerdict::$verdict(verdict) => Ok(verdict),
                _ => Err(FleetError::Unavailable { detail: "the verdict is another verb's".to_owned() }),
            }
        })
    };
}

impl Fleet for MemoryFleet {
    fn accept<'a>(&'a self, job: &'a NewFleetJob) -> FleetFuture<'a, FleetAccept> {
        verb!(self, FleetEvent::AcceptAsked { job: Box::new(job.freeze()?), owner: self.user.clone() }, Accept)
    }

    fn claim<'a>(&'a self, ask: &'a ClaimAsk) -> FleetFuture<'a, FleetClaim> {
        verb!(self, FleetEvent::ClaimAsked { ask: ask.clone(), user: self.user.clone() }, Claim)
    }

    fn start(&self, ticket: Ticket) -> FleetFuture<'_, FleetStart> {
        verb!(self, FleetEvent::StartAsked(ticket), Start)
    }

    fn renew<'a>(&'a self, renewal: &'a Renewal) -> FleetFuture<'a, FleetRenewed> {
        verb!(
            self,
            {
                renewal.checked()?;
                FleetEvent::LeaseRenewed(Box::new(renewal.clone()))
            },
            Renew
        )
    }

    fn finish<'a>(&'a self, finish: &'a RunFinish) -> FleetFuture<'a, FleetFinish> {
        verb!(
            self,
            {
                finish.checked()?;
                FleetEvent::RunEnded(Box::new(finish.clone()))
            },
            Finish
        )
    }

    fn sweep(&self) -> FleetFuture<'_, FleetSwept> {
        verb!(self, FleetEvent::SweepDue, Sweep)
    }

    fn cancel(&self, job: FleetJobId) -> FleetFuture<'_, FleetCancel> {
        verb!(self, FleetEvent::CancelAsked(job), Cancel)
    }

    fn changes(&self) -> FleetFuture<'_, watch::Receiver<u64>> {
        Box::pin(std::future::ready(Ok(self.changed.subscribe())))
    }

    fn wait(&self, job: FleetJobId, most: Duration) -> FleetFuture<'_, Option<FleetView>> {
        let mut changes = self.changed.subscribe();
        let until = Instant::now() + most;
        Box::pin(async move {
            loop {
                changes.mark_unchanged();
                let view = self.lock().view(job);
                if view.as_ref().is_none_or(|view| view.state.is_terminal()) {
                    return Ok(view);
                }
                // Its sender is ours.
                if tokio::time::timeout_at(until, changes.changed()).await.is_err() {
                    return Ok(view);
                }
            }
        })
    }
}
