//! Jobs as everybody but their supervisor sees them: accept, follow, read, cancel.
//!
//! Owns: where an answer comes from, the supervisor or the store, and how a job that runs elsewhere is followed. May not
//! know: who waits for a job, how one is run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::{Accepted, Again, JobsMsg};
use crate::actors::current::Current;
use crate::fault::{Fault, FaultCode};
use crate::ids::{InvocationId, JobId, UnixMillis};
use crate::jobs::live::JobLive;
use crate::jobs::{CancelReason, JobRecord, JobState, JobSummary, JournalEntry, NewJob};
use crate::store::{CancelState, DayCost, JobCounts, JobFilter, StoreError, StoreHandle};

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

/// Jobs, for tools, embedding programs and the command line. Cheap to clone.
#[derive(Clone)]
pub struct JobsHandle {
    actor: Current<JobsMsg>,
    store: StoreHandle,
}

/// News of one job, wherever it runs.
pub struct Follow {
    job: JobId,
    store: StoreHandle,
    news: Option<watch::Receiver<JobLive>>,
    seen: u64,
    failed: u32,
}

/// What following a job has shown.
#[derive(Debug, Clone)]
pub enum News {
    /// It is over.
    Finished(Arc<JobRecord>),
    /// It goes on and something happened.
    Changed,
}

fn stopped() -> Fault {
    Fault::new(FaultCode::Stopping, "the system is stopping.")
}

impl JobsHandle {
    /// A handle on these jobs.
    #[must_use]
    pub fn new(actor: Current<JobsMsg>, store: StoreHandle) -> Self {
        Self { actor, store }
    }

    /// Accepts a consult: when this returns a job, the job is durable and will reach a terminal state.
    ///
    /// # Errors
    ///
    /// `request_key_conflict`, `queue_full`, `store_unavailable`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not undo the accept.
    pub async fn accept(&self, job: NewJob, caller: Option<InvocationId>) -> Result<Accepted, Fault> {
        let asked = self.ask(|reply, again| {
            let job = Box::new(job.clone());
            // Asking again joins what the first asking may have become.
            JobsMsg::Accept { job, caller, again, reply }
        });
        match tokio::time::timeout(ACCEPT_LIMIT, asked).await {
            Ok(accepted) => accepted?,
            Err(_) => Err(Fault::new(FaultCode::StoreUnavailable, "the job was not accepted in time.")
                .hint("It may have been accepted all the same; look with consult_jobs.")),
        }
    }

    /// Asks the supervisor. A question its incarnation took along is put to the next one.
    async fn ask<T>(&self, question: impl Fn(oneshot::Sender<T>, Again) -> JobsMsg) -> Result<T, Fault> {
        let mut actor = self.actor.clone();
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

    /// Follows a job's news: live when this host runs it, by looking at the store otherwise.
    ///
    /// # Errors
    ///
    /// The system is stopping.
    pub async fn follow(&self, job: JobId) -> Result<Follow, Fault> {
        let news = self.ask(|reply, _| JobsMsg::Attach { job, reply }).await?;
        Ok(Follow { job, store: self.store.clone(), news, seen: 0, failed: 0 })
    }

    /// Everything about one job.
    ///
    /// # Errors
    ///
    /// `unknown_job`, `store_unavailable`.
    pub async fn record(&self, job: JobId) -> Result<JobRecord, Fault> {
        Ok(self.store.job(job).await?)
    }

    /// A job's journal after `after_seq`.
    ///
    /// # Errors
    ///
    /// `unknown_job`, `store_unavailable`.
    pub async fn events(&self, job: JobId, after_seq: u64, limit: usize) -> Result<Vec<JournalEntry>, Fault> {
        Ok(self.store.events(job, after_seq, limit, 256 * 1024).await?)
    }

    /// Jobs that match.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    pub async fn list(&self, filter: JobFilter) -> Result<Vec<JobSummary>, Fault> {
        Ok(self.store.list(filter).await?)
    }

    /// Asks for a job to be ended, wherever it runs; returns at once.
    ///
    /// # Errors
    ///
    /// `unknown_job`, `store_unavailable`.
    pub async fn cancel(&self, job: JobId) -> Result<CancelState, Fault> {
        let state = self.store.request_cancel(job, CancelReason::Requested).await?;
        let _ = self.actor.cast(JobsMsg::Terminate(job));
        Ok(state)
    }

    /// Lets a synchronous job go on without a caller.
    ///
    /// # Errors
    ///
    /// `store_unavailable`. A job that is over already is no error.
    pub async fn hand_over(&self, job: JobId) -> Result<(), Fault> {
        let _ = self.store.hand_over(job).await?;
        let _ = self.actor.cast(JobsMsg::HandedOver(job));
        Ok(())
    }

    /// Notes that an answer was read.
    pub async fn mark_read(&self, job: JobId) {
        // An unread mark that stays costs a reminder, nothing else.
        if let Err(error) = self.store.mark_read(job, UnixMillis::now()).await {
            tracing::debug!(%error, "a job was not marked as read");
        }
    }

    /// Finished jobs of a workspace that nobody has read, newest first.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    pub async fn unread(&self, workspace: PathBuf) -> Result<Vec<JobId>, Fault> {
        Ok(self.store.unread(workspace, 5).await?)
    }

    /// The job an invocation was accepted as, if it was.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    pub async fn find_invocation(&self, invocation: InvocationId) -> Result<Option<JobId>, Fault> {
        Ok(self.store.find_invocation(invocation).await?)
    }

    /// A queued job's place, from 1; `None` when it does not wait.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    pub async fn queue_place(&self, job: JobId) -> Result<Option<usize>, Fault> {
        let rows = self.store.queue().await?;
        let waiting: Vec<JobId> = rows.iter().filter(|row| row.state == JobState::Queued).map(|row| row.job).collect();
        Ok(waiting.iter().position(|row| *row == job).map(|place| place + 1))
    }

    /// Jobs by state.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    pub async fn counts(&self) -> Result<JobCounts, Fault> {
        Ok(self.store.counts().await?)
    }

    /// What was spent, by day.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    pub async fn cost_by_day(&self, since: UnixMillis) -> Result<Vec<DayCost>, Fault> {
        Ok(self.store.cost_by_day(since).await?)
    }

    /// Jobs this host is attached to.
    pub async fn attached(&self) -> usize {
        self.ask(|reply, _| JobsMsg::Attached(reply)).await.unwrap_or(0)
    }
}

impl Follow {
    /// Waits for news.
    ///
    /// # Errors
    ///
    /// `store_unavailable`, `unknown_job`.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was seen is kept in `self`.
    pub async fn next(&mut self) -> Result<News, Fault> {
        loop {
            if let Some(news) = &mut self.news {
                let (events, finished) = {
                    let live = news.borrow_and_update();
                    (live.events, live.finished.clone())
                };
                if let Some(record) = finished {
                    return Ok(News::Finished(record));
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

    /// The news as they stand, where the job runs under this host.
    #[must_use]
    pub fn live(&self) -> Option<JobLive> {
        self.news.as_ref().map(|news| news.borrow().clone())
    }

    /// What the agent is doing, where that is known.
    #[must_use]
    pub fn describe(&self) -> String {
        self.news
            .as_ref()
            .map_or_else(|| "running under another host".to_owned(), |news| news.borrow().phase.describe())
    }
}
