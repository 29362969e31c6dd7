//! The jobs of this process, behind [`JobsHandle`].
//!
//! Owns: which question goes to the supervisor and which to the store, and how a job that runs under another host is
//! followed. May not know: who waits for a job, how one is run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{oneshot, watch};

use super::messages::{Again, JobsMsg};
use crate::actors::current::Current;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{InvocationId, JobId, UnixMillis};
use crate::jobs::client::{Accepted, Follow, FollowBackend, Glimpse, JobsBackend, JobsHandle, News, View};
use crate::jobs::live::JobLive;
use crate::jobs::store::{CancelState, ChainCost, DayCost, JobCounts, JobFilter, StoreError, StoreHandle};
use crate::jobs::{CancelReason, JobRecord, JobSummary, JournalEntry, NewJob};

/// Failures in a row to look at a job of another host before whoever follows it is told; five seconds of them.
const LOOKS_FAILED: u32 = 20;

/// How often a job of another host is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often a question is put to an incarnation of the supervisor. It gives up after as many failures itself.
const ASKED: u32 = 4;

/// How long the next incarnation may take to come; it normally takes less than a millisecond.
const NEXT: Duration = Duration::from_millis(500);

/// Longest an accept may take. A store that is locked by others gives up long before.
const ACCEPT_LIMIT: Duration = Duration::from_secs(30);

/// A handle on the jobs of this supervisor and this store.
#[must_use]
pub fn jobs_of(actor: Current<JobsMsg>, store: StoreHandle) -> JobsHandle {
    JobsHandle::new(Here { actor, store })
}

/// The jobs of this process.
struct Here {
    actor: Current<JobsMsg>,
    store: StoreHandle,
}

/// A job that is followed in its own host, or by looking at the store.
struct Looking {
    job: JobId,
    store: StoreHandle,
    news: Option<watch::Receiver<JobLive>>,
    seen: u64,
    failed: u32,
    /// Whether an outcome that is not stored was told.
    told: bool,
}

fn stopped() -> Fault {
    Fault::new(FaultCode::Stopping, "the system is stopping.")
}

fn forgotten(error: &StoreError) -> Fault {
    let detail = format!("failed to {error}: the job store lost it, so its state directory was emptied or replaced.");
    Fault::new(FaultCode::StoreUnavailable, detail).hint("Keep cleaners away from the state directory; ask again.")
}

impl Here {
    /// Tells the supervisor; one that is not there needs not to know.
    fn cast(&self, message: JobsMsg) {
        let _ = self.actor.cast(message);
    }
}

impl JobsBackend for Here {
    fn accept(&self, job: NewJob, caller: Option<InvocationId>) -> BoxFuture<'_, Result<Accepted, Fault>> {
        Box::pin(async move {
            let asked = ask(&self.actor, |reply, again| {
                let job = Box::new(job.clone());
                // Asking again joins what the first asking may have become.
                JobsMsg::Accept { job, caller, again, reply }
            });
            match tokio::time::timeout(ACCEPT_LIMIT, asked).await {
                Ok(accepted) => accepted?,
                Err(_) => Err(Fault::new(FaultCode::StoreUnavailable, "the job was not accepted in time.")
                    .hint("It may have been accepted all the same; look with consult_jobs.")),
            }
        })
    }

    fn follow(&self, job: JobId) -> BoxFuture<'_, Result<Follow, Fault>> {
        Box::pin(async move {
            let news = ask(&self.actor, |reply, _| JobsMsg::Attach { job, reply }).await?;
            Ok(Follow::new(Looking { job, store: self.store.clone(), news, seen: 0, failed: 0, told: false }))
        })
    }

    fn record(&self, job: JobId) -> BoxFuture<'_, Result<JobRecord, Fault>> {
        Box::pin(async move { Ok(self.store.job(job).await?) })
    }

    fn events(&self, job: JobId, after_seq: u64, limit: usize) -> BoxFuture<'_, Result<Vec<JournalEntry>, Fault>> {
        Box::pin(async move { Ok(self.store.events(job, after_seq, limit, 256 * 1024).await?) })
    }

    fn list(&self, filter: JobFilter) -> BoxFuture<'_, Result<Vec<JobSummary>, Fault>> {
        Box::pin(async move { Ok(self.store.list(filter).await?) })
    }

    fn cancel(&self, job: JobId) -> BoxFuture<'_, Result<CancelState, Fault>> {
        Box::pin(async move {
            let state = self.store.request_cancel(job, CancelReason::Requested).await?;
            self.cast(JobsMsg::Terminate(job));
            Ok(state)
        })
    }

    fn hand_over(&self, job: JobId) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(async move {
            let _ = self.store.hand_over(job).await?;
            self.cast(JobsMsg::HandedOver(job));
            Ok(())
        })
    }

    fn mark_read(&self, job: JobId) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // An unread mark that stays costs a reminder, nothing else.

            if let Err(error) = self.store.mark_read(job, UnixMillis::now()).await {
                tracing::debug!(%error, "a job was not marked as read");
            }
        })
    }

    fn unread(&self, workspace: PathBuf) -> BoxFuture<'_, Result<Vec<JobId>, Fault>> {
        Box::pin(async move { Ok(self.store.unread(workspace, 5).await?) })
    }

    fn find_invocation(&self, invocation: InvocationId) -> BoxFuture<'_, Result<Option<JobId>, Fault>> {
        Box::pin(async move { Ok(self.store.find_invocation(invocation).await?) })
    }

    fn queue_place(&self, job: JobId) -> BoxFuture<'_, Result<Option<usize>, Fault>> {
        Box::pin(async move { Ok(self.store.queue_place(job).await?) })
    }

    fn counts(&self) -> BoxFuture<'_, Result<JobCounts, Fault>> {
        Box::pin(async move { Ok(self.store.counts().await?) })
    }

    fn cost_by_day(&self, since: UnixMillis) -> BoxFuture<'_, Result<Vec<DayCost>, Fault>> {
        Box::pin(async move { Ok(self.store.cost_by_day(since).await?) })
    }

    fn cost_by_chain(&self, since: UnixMillis) -> BoxFuture<'_, Result<Vec<ChainCost>, Fault>> {
        Box::pin(async move { Ok(self.store.cost_by_chain(since).await?) })
    }

    fn moved_aside(&self) -> BoxFuture<'_, Result<Option<PathBuf>, Fault>> {
        Box::pin(async move { Ok(self.store.moved_aside().await?) })
    }

    fn attached(&self) -> BoxFuture<'_, usize> {
        Box::pin(async move { ask(&self.actor, |reply, _| JobsMsg::Attached(reply)).await.unwrap_or(0) })
    }
}

/// Asks the supervisor. A question its incarnation took along is put to the next one.
async fn ask<T>(actor: &Current<JobsMsg>, question: impl Fn(oneshot::Sender<T>, Again) -> JobsMsg) -> Result<T, Fault> {
    let mut actor = actor.clone();
    let mut again = Again::No;
    for _ in 0..ASKED {
        actor.note();
        let (reply, answer) = oneshot::channel();
        if actor.cast(question(reply, again)).is_ok()
            && let Ok(answer) = answer.await
        {
            return Ok(answer);
        }
        again = Again::Yes;
        // It is started again at once, unless the system stops. An answer may be lost without its actor, too.
        let _ = tokio::time::timeout(NEXT, actor.replaced()).await;
    }
    Err(stopped())
}

impl FollowBackend for Looking {
    fn next(&mut self) -> BoxFuture<'_, Result<News, Fault>> {
        Box::pin(Self::next(self))
    }

    fn glimpse(&self) -> BoxFuture<'_, Option<Glimpse>> {
        Box::pin(std::future::ready(self.view().glimpse()))
    }

    fn describe(&self) -> String {
        self.view().describe()
    }

    fn view(&self) -> View {
        View::new(self.news.clone())
    }
}

impl Looking {
    async fn next(&mut self) -> Result<News, Fault> {
        loop {
            if let Some(news) = &mut self.news {
                let (events, finished, unstored) = {
                    let live = news.borrow_and_update();
                    (live.events, live.finished.clone(), live.unstored.clone())
                };
                if let Some(record) = finished {
                    return Ok(News::Finished(record));
                }
                if let Some(record) = unstored.filter(|_| !std::mem::replace(&mut self.told, true)) {
                    return Ok(News::Unstored(record));
                }
                if events > self.seen {
                    self.seen = events;
                    return Ok(News::Changed);
                }
                if news.changed().await.is_err() {
                    // Its actor is gone; the store says what became of the job.
                    self.news = None;
                    self.seen = 0;
                }
                continue;
            }
            let glance = match self.store.glance(self.job).await {
                Ok(glance) => glance,
                // A store that is busy for a moment is no news of the job.
                Err(error) if self.failed < LOOKS_FAILED && !matches!(error, StoreError::UnknownJob(_)) => {
                    self.failed += 1;
                    tokio::time::sleep(LOOK_EVERY).await;
                    continue;
                }
                // It was there when it began to be followed.
                Err(error @ StoreError::UnknownJob(_)) => return Err(forgotten(&error).job(self.job)),
                Err(error) => return Err(error.into()),
            };
            self.failed = 0;
            if glance.state.is_terminal() {
                return Ok(News::Finished(Arc::new(self.store.job(self.job).await?)));
            }
            if glance.last_event > self.seen {
                self.seen = glance.last_event;
                return Ok(News::Changed);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
