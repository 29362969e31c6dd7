//! Jobs as everybody but their supervisor sees them: accept, follow, read, cancel.
//!
//! Owns: the verbs and what they promise. May not know: where an answer comes from. [`JobsBackend`] has two implementers: the
//! host, which asks its supervisor and its store, and a worker process, which asks its host over the pipe.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::live::JobLive;
use super::{JobRecord, JobSummary, JournalEntry, NewJob};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{InvocationId, JobId, UnixMillis};
use crate::jobs::store::{CancelState, ChainCost, DayCost, JobCounts, JobFilter};

/// What a caller is told about its accepted job.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The job as it stands in the store.
    pub record: JobRecord,
    /// Whether it was there before.
    pub joined: bool,
}

/// What is known live about a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Glimpse {
    /// What the agent is doing, in a few words.
    pub phase: String,
    /// What it has said so far.
    pub text: String,
}

/// A look at what is known live, apart from whoever waits for news.
#[derive(Clone, Default)]
pub struct View(Option<watch::Receiver<JobLive>>);

impl View {
    /// A look at these news; none where they come from elsewhere.
    #[must_use]
    pub const fn new(news: Option<watch::Receiver<JobLive>>) -> Self {
        Self(news)
    }

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

/// Where the verbs of [`JobsHandle`] are carried out.
pub trait JobsBackend: Send + Sync {
    /// [`JobsHandle::accept`].
    fn accept(&self, job: NewJob, caller: Option<InvocationId>) -> BoxFuture<'_, Result<Accepted, Fault>>;
    /// [`JobsHandle::follow`].
    fn follow(&self, job: JobId) -> BoxFuture<'_, Result<Follow, Fault>>;
    /// [`JobsHandle::record`].
    fn record(&self, job: JobId) -> BoxFuture<'_, Result<JobRecord, Fault>>;
    /// [`JobsHandle::events`]; of the host alone.
    fn events(&self, _job: JobId, _after_seq: u64, _limit: usize) -> BoxFuture<'_, Result<Vec<JournalEntry>, Fault>> {
        Box::pin(std::future::ready(Err(only_the_host())))
    }
    /// [`JobsHandle::list`]; of the host alone.
    fn list(&self, _filter: JobFilter) -> BoxFuture<'_, Result<Vec<JobSummary>, Fault>> {
        Box::pin(std::future::ready(Err(only_the_host())))
    }
    /// [`JobsHandle::cancel`]; of the host alone.
    fn cancel(&self, _job: JobId) -> BoxFuture<'_, Result<CancelState, Fault>> {
        Box::pin(std::future::ready(Err(only_the_host())))
    }
    /// [`JobsHandle::hand_over`].
    fn hand_over(&self, job: JobId) -> BoxFuture<'_, Result<(), Fault>>;
    /// [`JobsHandle::mark_read`].
    fn mark_read(&self, job: JobId) -> BoxFuture<'_, ()>;
    /// [`JobsHandle::unread`].
    fn unread(&self, workspace: PathBuf) -> BoxFuture<'_, Result<Vec<JobId>, Fault>>;
    /// [`JobsHandle::find_invocation`]; of the host alone.
    fn find_invocation(&self, _invocation: InvocationId) -> BoxFuture<'_, Result<Option<JobId>, Fault>> {
        Box::pin(std::future::ready(Err(only_the_host())))
    }
    /// [`JobsHandle::queue_place`].
    fn queue_place(&self, job: JobId) -> BoxFuture<'_, Result<Option<usize>, Fault>>;
    /// [`JobsHandle::counts`]; of the host alone.
    fn counts(&self) -> BoxFuture<'_, Result<JobCounts, Fault>> {
        Box::pin(std::future::ready(Err(only_the_host())))
    }
    /// [`JobsHandle::cost_by_day`]; of the host alone.
    fn cost_by_day(&self, _since: UnixMillis) -> BoxFuture<'_, Result<Vec<DayCost>, Fault>> {
        Box::pin(std::future::ready(Err(only_the_host())))
    }
    /// [`JobsHandle::cost_by_chain`]; of the host alone.
    fn cost_by_chain(&self, _since: UnixMillis) -> BoxFuture<'_, Result<Vec<ChainCost>, Fault>> {
        Box::pin(std::future::ready(Err(only_the_host())))
    }
    /// [`JobsHandle::moved_aside`]; of the host alone.
    fn moved_aside(&self) -> BoxFuture<'_, Result<Option<PathBuf>, Fault>> {
        Box::pin(std::future::ready(Err(only_the_host())))
    }
    /// [`JobsHandle::attached`]; of the host alone.
    fn attached(&self) -> BoxFuture<'_, usize> {
        Box::pin(std::future::ready(0))
    }
}

/// Where the news of one job come from.
pub trait FollowBackend: Send + Sync {
    /// [`Follow::next`]; what was seen is kept in `self`.
    fn next(&mut self) -> BoxFuture<'_, Result<News, Fault>>;
    /// [`Follow::glimpse`].
    fn glimpse(&self) -> BoxFuture<'_, Option<Glimpse>>;
    /// [`Follow::describe`].
    fn describe(&self) -> String;
    /// [`Follow::view`].
    fn view(&self) -> View;
}

fn only_the_host() -> Fault {
    Fault::new(FaultCode::Internal, "only the host itself can do that with jobs.")
}

/// Jobs, for tools, embedding programs and the command line. Cheap to clone.
///
/// In a worker process it reaches the jobs of the host, for the verbs a consult needs; the others are the host's alone
/// and answer with a fault.
#[derive(Clone)]
pub struct JobsHandle(Arc<dyn JobsBackend>);

impl JobsHandle {
    /// A handle on the jobs behind this.
    #[doc(hidden)]
    pub fn new(backend: impl JobsBackend + 'static) -> Self {
        Self(Arc::new(backend))
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
    #[doc(hidden)]
    pub async fn accept(&self, job: NewJob, caller: Option<InvocationId>) -> Result<Accepted, Fault> {
        self.0.accept(job, caller).await
    }

    /// Follows a job's news: live when this host runs it, by looking at the store otherwise.
    ///
    /// # Errors
    ///
    /// The system is stopping.
    #[doc(hidden)]
    pub async fn follow(&self, job: JobId) -> Result<Follow, Fault> {
        self.0.follow(job).await
    }

    /// Everything about one job.
    ///
    /// # Errors
    ///
    /// `unknown_job`, `store_unavailable`.
    #[doc(hidden)]
    pub async fn record(&self, job: JobId) -> Result<JobRecord, Fault> {
        self.0.record(job).await
    }

    /// A job's journal after `after_seq`.
    ///
    /// # Errors
    ///
    /// `unknown_job`, `store_unavailable`.
    #[doc(hidden)]
    pub async fn events(&self, job: JobId, after_seq: u64, limit: usize) -> Result<Vec<JournalEntry>, Fault> {
        self.0.events(job, after_seq, limit).await
    }

    /// Jobs that match.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    pub async fn list(&self, filter: JobFilter) -> Result<Vec<JobSummary>, Fault> {
        self.0.list(filter).await
    }

    /// Asks for a job to be ended, wherever it runs; returns at once.
    ///
    /// # Errors
    ///
    /// `unknown_job`, `store_unavailable`.
    pub async fn cancel(&self, job: JobId) -> Result<CancelState, Fault> {
        self.0.cancel(job).await
    }

    /// Lets a synchronous job go on without a caller.
    ///
    /// # Errors
    ///
    /// `store_unavailable`. A job that is over already is no error.
    #[doc(hidden)]
    pub async fn hand_over(&self, job: JobId) -> Result<(), Fault> {
        self.0.hand_over(job).await
    }

    /// Notes that an answer was read.
    #[doc(hidden)]
    pub async fn mark_read(&self, job: JobId) {
        self.0.mark_read(job).await
    }

    /// Finished jobs of a workspace that nobody has read, newest first.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    #[doc(hidden)]
    pub async fn unread(&self, workspace: PathBuf) -> Result<Vec<JobId>, Fault> {
        self.0.unread(workspace).await
    }

    /// The job an invocation was accepted as, if it was.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    #[doc(hidden)]
    pub async fn find_invocation(&self, invocation: InvocationId) -> Result<Option<JobId>, Fault> {
        self.0.find_invocation(invocation).await
    }

    /// A queued job's place, from 1; `None` when it does not wait.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    #[doc(hidden)]
    pub async fn queue_place(&self, job: JobId) -> Result<Option<usize>, Fault> {
        self.0.queue_place(job).await
    }

    /// Jobs by state.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    #[doc(hidden)]
    pub async fn counts(&self) -> Result<JobCounts, Fault> {
        self.0.counts().await
    }

    /// What was spent, by day.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    #[doc(hidden)]
    pub async fn cost_by_day(&self, since: UnixMillis) -> Result<Vec<DayCost>, Fault> {
        self.0.cost_by_day(since).await
    }

    /// What was spent by chains of nested consults, the dearest first.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    #[doc(hidden)]
    pub async fn cost_by_chain(&self, since: UnixMillis) -> Result<Vec<ChainCost>, Fault> {
        self.0.cost_by_chain(since).await
    }

    /// Where a damaged store was moved by this host, if it was: what was in it is to be had from there.
    ///
    /// # Errors
    ///
    /// `store_unavailable`.
    #[doc(hidden)]
    pub async fn moved_aside(&self) -> Result<Option<PathBuf>, Fault> {
        self.0.moved_aside().await
    }

    /// Jobs this host is attached to.
    #[doc(hidden)]
    pub async fn attached(&self) -> usize {
        self.0.attached().await
    }
}

/// News of one job, wherever it runs.
pub struct Follow(Box<dyn FollowBackend>);

impl Follow {
    /// News from here.
    pub fn new(backend: impl FollowBackend + 'static) -> Self {
        Self(Box::new(backend))
    }

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
        self.0.next().await
    }

    /// The news as they stand, where the job runs under this host.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn glimpse(&self) -> Option<Glimpse> {
        self.0.glimpse().await
    }

    /// What the agent is doing, where that is known.
    #[must_use]
    pub fn describe(&self) -> String {
        self.0.describe()
    }

    /// A look at the same job that does not wait.
    #[must_use]
    pub fn view(&self) -> View {
        self.0.view()
    }
}
