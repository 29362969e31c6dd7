//! The host's jobs and roots, as a worker process reaches them: each verb is a question over the pipe.
//!
//! Owns: which question a verb is. May not know: how the host finds its answers, bytes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::asks::{AnswerReceiver, Asker, HostAnswer, Question, host_gone, misunderstood};
use crate::base::fault::Fault;
use crate::base::ids::{FleetJobId, InvocationId, JobId, SessionNumber};
use crate::fleet::FleetView;
use crate::jobs::client::{Accepted, Follow, FollowBackend, Glimpse, JobsBackend, JobsHandle, News, View};
use crate::jobs::{JobRecord, NewJob};
use crate::tools::placed::placing::{PlaceAsk, PlacedJob, Placing, PlacingBackend};
use crate::tools::roots::{AskRoots, RootsHandle};

/// Longest one question about a fleet's job waits: nobody tells the host that its worker waits no more.
const FLEET_WAIT: Duration = Duration::from_secs(30);

/// A handle on the jobs of this process's host.
#[must_use]
pub fn jobs_of_host(asker: Asker) -> JobsHandle {
    JobsHandle::new(OfHost { asker })
}

/// The jobs of the host at the other end of this process's pipes.
struct OfHost {
    asker: Asker,
}

/// A job that is followed by asking the host.
struct Asking {
    asker: Asker,
    follow: u64,
    /// What the agent was doing when the host last said so.
    phase: String,
    /// News that were asked for.
    waiting: Option<AnswerReceiver>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.asker.tell(Question::Unfollow { follow: self.follow });
    }
}

impl JobsBackend for OfHost {
    fn accept(&self, job: NewJob, caller: Option<InvocationId>) -> BoxFuture<'_, Result<Accepted, Fault>> {
        Box::pin(async move {
            match self.asker.ask(Question::Accept { job: Box::new(job), caller }).await? {
                HostAnswer::Accepted { record, joined } => Ok(Accepted { record: *record, joined }),
                _ => Err(misunderstood()),
            }
        })
    }

    fn follow(&self, job: JobId) -> BoxFuture<'_, Result<Follow, Fault>> {
        Box::pin(async move {
            let follow = self.asker.number();
            // Made before the question, so that the host hears of its end even when this future is dropped.
            let mut asking = Asking { asker: self.asker.clone(), follow, phase: String::new(), waiting: None };
            match self.asker.ask(Question::Follow { job, follow }).await? {
                HostAnswer::Following { phase } => asking.phase = phase,
                _ => return Err(misunderstood()),
            }
            Ok(Follow::new(asking))
        })
    }

    fn record(&self, job: JobId) -> BoxFuture<'_, Result<JobRecord, Fault>> {
        Box::pin(async move {
            match self.asker.ask(Question::Record { job }).await? {
                HostAnswer::Record { record } => Ok(*record),
                _ => Err(misunderstood()),
            }
        })
    }

    fn hand_over(&self, job: JobId) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(async move { self.asker.ask(Question::HandOver { job }).await.map(drop) })
    }

    fn mark_read(&self, job: JobId) -> BoxFuture<'_, ()> {
        Box::pin(async move { drop(self.asker.ask(Question::MarkRead { job }).await) })
    }

    fn unread(&self, workspace: PathBuf) -> BoxFuture<'_, Result<Vec<JobId>, Fault>> {
        Box::pin(async move {
            match self.asker.ask(Question::Unread { workspace }).await? {
                HostAnswer::Jobs { jobs } => Ok(jobs),
                _ => Err(misunderstood()),
            }
        })
    }

    fn queue_place(&self, job: JobId) -> BoxFuture<'_, Result<Option<usize>, Fault>> {
        Box::pin(async move {
            match self.asker.ask(Question::QueuePlace { job }).await? {
                HostAnswer::Place { place } => Ok(place),
                _ => Err(misunderstood()),
            }
        })
    }
}

/// A handle on the fleet of the host, whose machine has this name.
#[must_use]
pub fn fleet_of_host(asker: Asker, machine: String) -> Placing {
    Placing::new(FleetOfHost { asker, machine })
}

/// The fleet of the host at the other end of this process's pipes.
struct FleetOfHost {
    asker: Asker,
    machine: String,
}

impl PlacingBackend for FleetOfHost {
    fn machine(&self) -> &str {
        &self.machine
    }

    fn place(&self, ask: PlaceAsk) -> BoxFuture<'_, Result<PlacedJob, Fault>> {
        Box::pin(async move {
            match self.asker.ask(Question::Place { ask: Box::new(ask) }).await? {
                HostAnswer::Placed { placed } => Ok(placed),
                _ => Err(misunderstood()),
            }
        })
    }

    fn view(&self, job: FleetJobId, most: Duration) -> BoxFuture<'_, Result<Option<FleetView>, Fault>> {
        Box::pin(async move {
            let mut left = most;
            loop {
                let now = left.min(FLEET_WAIT);
                left = left.saturating_sub(now);
                match self.asker.ask(Question::PlacedView { job, most: now }).await? {
                    HostAnswer::PlacedView { view: Some(view) } if !view.state.is_terminal() && !left.is_zero() => {}
                    HostAnswer::PlacedView { view } => return Ok(view.map(|view| *view)),
                    _ => return Err(misunderstood()),
                }
            }
        })
    }

    fn settle(&self, call: InvocationId) -> BoxFuture<'_, ()> {
        Box::pin(async move { drop(self.asker.ask(Question::Settle { call }).await) })
    }
}

/// A handle on the roots that the host knows.
#[must_use]
pub fn roots_of_host(asker: Asker) -> RootsHandle {
    RootsHandle::elsewhere(OfHost { asker })
}

impl AskRoots for OfHost {
    fn uris(&self, session: SessionNumber) -> BoxFuture<'_, Vec<String>> {
        Box::pin(async move {
            match self.asker.ask(Question::Roots { session }).await {
                Ok(HostAnswer::Roots { uris }) => uris,
                Ok(_) | Err(_) => Vec::new(),
            }
        })
    }
}

impl FollowBackend for Asking {
    fn next(&mut self) -> BoxFuture<'_, Result<News, Fault>> {
        Box::pin(Self::next(self))
    }

    fn glimpse(&self) -> BoxFuture<'_, Option<Glimpse>> {
        Box::pin(async move {
            match self.asker.ask(Question::Live { follow: self.follow }).await {
                Ok(HostAnswer::Live { glimpse }) => glimpse,
                _ => None,
            }
        })
    }

    fn describe(&self) -> String {
        self.phase.clone()
    }

    fn view(&self) -> View {
        View::default()
    }
}

impl Asking {
    async fn next(&mut self) -> Result<News, Fault> {
        let (asker, follow) = (&self.asker, self.follow);
        let waiting = self.waiting.get_or_insert_with(|| asker.put(Question::Next { follow }));
        let answer = waiting.await;
        self.waiting = None;
        match answer.map_err(|_| host_gone())?? {
            HostAnswer::Finished { record } => Ok(News::Finished(Arc::new(*record))),
            HostAnswer::Unstored { record } => Ok(News::Unstored(Arc::new(*record))),
            HostAnswer::Changed { phase } => {
                self.phase = phase;
                Ok(News::Changed)
            }
            _ => Err(misunderstood()),
        }
    }
}
