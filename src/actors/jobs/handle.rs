//! Jobs as everybody but their supervisor sees them: accept, follow, read, cancel.
//!
//! Owns: where an answer comes from (the supervisor, the store, or, in a worker process, the host), and how a job that
//! runs elsewhere is followed. May not know: who waits for a job, how one is run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::{Accepted, Again, JobsMsg};
use crate::actors::current::Current;
use crate::fault::{Fault, FaultCode};
use crate::ids::{InvocationId, JobId, UnixMillis};
use crate::jobs::live::JobLive;
use crate::jobs::{CancelReason, JobRecord, JobSummary, JournalEntry, NewJob};
use crate::store::{CancelState, ChainCost, DayCost, JobCounts, JobFilter, StoreError, StoreHandle};
use crate::worker::asks::{Answer, Asker, Glimpse, Question, Waiting, host_gone, misunderstood};

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
///
/// In a worker process it reaches the jobs of the host, for the verbs a consult needs; the others are the host's alone
/// and answer with a fault.
#[derive(Clone)]
pub struct JobsHandle(Reach);

#[derive(Clone)]
enum Reach {
    /// They belong to this process.
    Here { actor: Current<JobsMsg>, store: StoreHandle },
    /// They belong to the host at the other end of this process's pipes.
    Host(Asker),
}

/// News of one job, wherever it runs.
pub struct Follow(Source);

enum Source {
    Here(Looking),
    Host(Asking),
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

/// A job that is followed by asking the host.
struct Asking {
    asker: Asker,
    follow: u64,
    /// What the agent was doing when the host last said so.
    phase: String,
    /// News that were asked for.
    waiting: Option<Waiting>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.asker.tell(Question::Unfollow { follow: self.follow });
    }
}

/// A look at what is known live, apart from whoever waits for news.
#[derive(Clone, Default)]
pub struct View(Option<watch::Receiver<JobLive>>);

impl View {
    /// The news as they stand, where the job runs under this host.
    #[must_use]
    pub fn glimpse(&self) -> Option<Glimpse> {
        let live = self.0.as_ref()?.borrow();
        Some(Glimpse { phase: live.phase.describe(), text: live.text.clone() })
    }

    /// What the agent is doing, where that is known.
    #[must_use]
    pub fn describe(&self) -> String {
        self.0.as_ref().map_or_else(|| "running, not under this host".to_owned(), |news| news.borrow().phase.describe())
    }
}

/// What following a job has shown.
#[derive(Debug, Clone)]
pub enum News {
    /// It is over.
    Finished(Arc<JobRecord>),
    /// Its run is over, and the store does not take the outcome. The job as it will have ended; told once.
    Unstored(Arc<JobRecord>),
    /// It goes on and something happened.
    Changed,
}

fn stopped() -> Fault {
    Fault::new(FaultCode::Stopping, "the system is stopping.")
}

fn forgotten(error: &StoreError) -> Fault {
    let detail = format!("failed to {error}: the job store lost it, so its state directory was emptied or replaced.");
    Fault::new(FaultCode::StoreUnavailable, detail).hint("Keep cleaners away from the state directory; ask again.")
}

impl JobsHandle {
    /// A handle on these jobs.
    #[must_use]
    pub fn new(actor: Current<JobsMsg>, store: StoreHandle) -> Self {
        Self(Reach::Here { actor, store })
    }

    /// A handle on the jobs of this process's host.
    #[must_use]
    pub fn of_host(asker: Asker) -> Self {
        Self(Reach::Host(asker))
    }

    fn store(&self) -> Result<&StoreHandle, Fault> {
        match &self.0 {
            Reach::Here { store, .. } => Ok(store),
            Reach::Host(_) => Err(Fault::new(FaultCode::Internal, "only the host itself can do that with jobs.")),
        }
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
        match &self.0 {
            Reach::Here { actor, .. } => {
                let asked = ask(actor, |reply, again| {
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
            Reach::Host(asker) => match asker.ask(Question::Accept { job: Box::new(job), caller }).await? {
                Answer::Accepted { record, joined } => Ok(Accepted { record: *record, joined }),
                _ => Err(misunderstood()),
            },
        }
    }

    /// Follows a job's news: live when this host runs it, by looking at the store otherwise.
    ///
    /// # Errors
    ///
    /// The system is stopping.
    pub async fn follow(&self, job: JobId) -> Result<Follow, Fault> {
        match &self.0 {
            Reach::Here { actor, store } => {
                let news = ask(actor, |reply, _| JobsMsg::Attach { job, reply }).await?;
                Ok(Follow(Source::Here(Looking { job, store: store.clone(), news, seen: 0, failed: 0, told: false })))
            }
            Reach::Host(asker) => {
                let follow = asker.number();
                // Made before the question, so that the host hears of its end even when this future is dropped.
                let mut asking = Asking { asker: asker.clone(), follow, phase: String::new(), waiting: None };
                match asker.ask(Question::Follow { job, follow }).await? {
                    Answer::Following { phase } => asking.phase = phase,
                    _ => return Err(misunderstood()),
                }
                Ok(Follow(Source::Host(asking)))
            }
        }
    }

    /// Everything about one job.
    ///
    /// # Errors
    ///
    /// `unknown_job`, `store_unavailable`.
    pub async fn record(&self, job: JobId) -> Result<JobRecord, Fault> {
        match &self.0 {
            Reach::Here { store, .. } => Ok(store.job(job).await?),
            Reach::Host(asker) => match asker.ask(Question::Record { job }).await? {
                Answer::Record { record } => Ok(*record),
                _ => Err(misunderstood()),
            },
        }
    }

    /// A job's journal after `after_seq`.
    ///
    /// # Errors
    ///
    /// `unknown_job`, `store_unavailable`.
    pub async fn events(&self, job: JobId, after_seq: u64, limit: usize) -> Result<Vec<JournalEntry>, Fault> {
        Ok(self.store()?.events(job, after_seq, limit, 256 * 1024).await?)
    }

    /// Jobs that match.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    pub async fn list(&self, filter: JobFilter) -> Result<Vec<JobSummary>, Fault> {
        Ok(self.store()?.list(filter).await?)
    }

    /// Asks for a job to be ended, wherever it runs; returns at once.
    ///
    /// # Errors
    ///
    /// `unknown_job`, `store_unavailable`.
    pub async fn cancel(&self, job: JobId) -> Result<CancelState, Fault> {
        let state = self.store()?.request_cancel(job, CancelReason::Requested).await?;
        self.cast(JobsMsg::Terminate(job));
        Ok(state)
    }

    /// Lets a synchronous job go on without a caller.
    ///
    /// # Errors
    ///
    /// `store_unavailable`. A job that is over already is no error.
    pub async fn hand_over(&self, job: JobId) -> Result<(), Fault> {
        match &self.0 {
            Reach::Here { store, .. } => {
                let _ = store.hand_over(job).await?;
                self.cast(JobsMsg::HandedOver(job));
                Ok(())
            }
            Reach::Host(asker) => asker.ask(Question::HandOver { job }).await.map(drop),
        }
    }

    /// Notes that an answer was read.
    pub async fn mark_read(&self, job: JobId) {
        // An unread mark that stays costs a reminder, nothing else.
        match &self.0 {
            Reach::Here { store, .. } => {
                if let Err(error) = store.mark_read(job, UnixMillis::now()).await {
                    tracing::debug!(%error, "a job was not marked as read");
                }
            }
            Reach::Host(asker) => drop(asker.ask(Question::MarkRead { job }).await),
        }
    }

    /// Finished jobs of a workspace that nobody has read, newest first.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    pub async fn unread(&self, workspace: PathBuf) -> Result<Vec<JobId>, Fault> {
        match &self.0 {
            Reach::Here { store, .. } => Ok(store.unread(workspace, 5).await?),
            Reach::Host(asker) => match asker.ask(Question::Unread { workspace }).await? {
                Answer::Jobs { jobs } => Ok(jobs),
                _ => Err(misunderstood()),
            },
        }
    }

    /// The job an invocation was accepted as, if it was.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    pub async fn find_invocation(&self, invocation: InvocationId) -> Result<Option<JobId>, Fault> {
        Ok(self.store()?.find_invocation(invocation).await?)
    }

    /// A queued job's place, from 1; `None` when it does not wait.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    pub async fn queue_place(&self, job: JobId) -> Result<Option<usize>, Fault> {
        match &self.0 {
            Reach::Here { store, .. } => Ok(store.queue_place(job).await?),
            Reach::Host(asker) => match asker.ask(Question::QueuePlace { job }).await? {
                Answer::Place { place } => Ok(place),
                _ => Err(misunderstood()),
            },
        }
    }

    /// Jobs by state.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    pub async fn counts(&self) -> Result<JobCounts, Fault> {
        Ok(self.store()?.counts().await?)
    }

    /// What was spent, by day.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    pub async fn cost_by_day(&self, since: UnixMillis) -> Result<Vec<DayCost>, Fault> {
        Ok(self.store()?.cost_by_day(since).await?)
    }

    /// What was spent by chains of nested consults, the dearest first.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    pub async fn cost_by_chain(&self, since: UnixMillis) -> Result<Vec<ChainCost>, Fault> {
        Ok(self.store()?.cost_by_chain(since).await?)
    }

    /// Where a damaged store was moved by this host, if it was: what was in it is to be had from there.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    pub async fn moved_aside(&self) -> Result<Option<PathBuf>, Fault> {
        Ok(self.store()?.moved_aside().await?)
    }

    /// Jobs this host is attached to.
    pub async fn attached(&self) -> usize {
        match &self.0 {
            Reach::Here { actor, .. } => ask(actor, |reply, _| JobsMsg::Attached(reply)).await.unwrap_or(0),
            Reach::Host(_) => 0,
        }
    }

    /// Tells the supervisor; one that is not there needs not to know.
    fn cast(&self, message: JobsMsg) {
        if let Reach::Here { actor, .. } = &self.0 {
            let _ = actor.cast(message);
        }
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

impl Follow {
    /// Waits for news.
    ///
    /// # Errors
    ///
    /// `store_unavailable`, `unknown_job`.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was seen, and what was asked for, is kept in `self`.
    pub async fn next(&mut self) -> Result<News, Fault> {
        match &mut self.0 {
            Source::Here(looking) => looking.next().await,
            Source::Host(asking) => asking.next().await,
        }
    }

    /// The news as they stand, where the job runs under this host.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn glimpse(&self) -> Option<Glimpse> {
        match &self.0 {
            Source::Here(looking) => View(looking.news.clone()).glimpse(),
            Source::Host(asking) => match asking.asker.ask(Question::Live { follow: asking.follow }).await {
                Ok(Answer::Live { glimpse }) => glimpse,
                _ => None,
            },
        }
    }

    /// What the agent is doing, where that is known.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.0 {
            Source::Here(looking) => View(looking.news.clone()).describe(),
            Source::Host(asking) => asking.phase.clone(),
        }
    }

    /// A look at the same job that does not wait.
    #[must_use]
    pub fn view(&self) -> View {
        match &self.0 {
            Source::Here(looking) => View(looking.news.clone()),
            Source::Host(_) => View(None),
        }
    }
}

impl Asking {
    async fn next(&mut self) -> Result<News, Fault> {
        let (asker, follow) = (&self.asker, self.follow);
        let waiting = self.waiting.get_or_insert_with(|| asker.put(Question::Next { follow }));
        let answer = waiting.await;
        self.waiting = None;
        match answer.map_err(|_| host_gone())?? {
            Answer::Finished { record } => Ok(News::Finished(Arc::new(*record))),
            Answer::Unstored { record } => Ok(News::Unstored(Arc::new(*record))),
            Answer::Changed { phase } => {
                self.phase = phase;
                Ok(News::Changed)
            }
            _ => Err(misunderstood()),
        }
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
