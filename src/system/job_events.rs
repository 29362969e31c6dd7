//! Jobs as an embedding program has them: handed in, read, ended, and followed event by event.
//!
//! Owns: the order in which a job's events are told, from where, and when that is over. May not know: where the journal lies,
//! who writes it.
//!
//! ```text
//!  journal after the cursor ──▶ Entry, Entry, … ──nothing more──▶ wait for news ──▶ look again
//!                                                      └── the job is over, and the journal read to its end ──▶ Ended
//! ```
//!
//! Invariants: (1) events come in their order, each once, and none is left out without `Lagged`; (2) who does not read holds a
//! page of them and no more: the rest stays in the store; (3) after `Ended` or an error there is nothing more.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::stream::{Stream, unfold};

use super::consult::{Consult, ConsultFault};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::JobId;
use crate::jobs::client::{Follow, JobsHandle, News};
use crate::jobs::{JobMode, JobRecord, JournalEntry};
use crate::tools::consult::{Caller, Consults};

/// Entries that are read at once. A few screens; their texts are shortened, and the store bounds a page's bytes besides.
const PAGE: usize = 64;

/// Shortest time between two looks at the journal. News come by the runner's pipe and entries by its store, in batches: more
/// looks would find the same.
const LOOK: Duration = Duration::from_millis(50);

/// Longest time between two looks while something was heard of that is not in the journal yet.
const LOOK_MOST: Duration = Duration::from_secs(1);

/// Looks in a row that a store may refuse before whoever follows is told; five seconds of them.
const REFUSED: u32 = 20;
const REFUSED_PAUSE: Duration = Duration::from_millis(250);

/// A place among a job's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cursor(u64);

impl Cursor {
    /// Before the first event.
    pub const START: Self = Self(0);

    /// After the event of this number ([`JournalEntry::seq`]).
    #[must_use]
    pub const fn after(seq: u64) -> Self {
        Self(seq)
    }

    /// The number of the event it is after; zero at the start.
    #[must_use]
    pub const fn seq(self) -> u64 {
        self.0
    }
}

/// What happened to a job.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum JobEvent {
    /// The next entry of its journal.
    Entry(JournalEntry),
    /// So many entries are not to be had any more; the next one comes after them.
    Lagged {
        /// How many.
        missed: u64,
    },
    /// It is over; nothing comes after this.
    Ended(Arc<JobRecord>),
}

/// The events of one job, as a [`Stream`] or by [`JobEvents::next`]: those that happened, then those that happen, then
/// [`JobEvent::Ended`]. It reads on as it is asked, so that whoever asks slowly costs nothing.
pub struct JobEvents {
    events: Pin<Box<dyn Stream<Item = Result<JobEvent, Fault>> + Send>>,
    cursor: Cursor,
}

impl fmt::Debug for JobEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobEvents").field("cursor", &self.cursor).finish_non_exhaustive()
    }
}

impl JobEvents {
    /// Those of this job after `cursor`.
    pub(super) fn of(jobs: JobsHandle, job: JobId, cursor: Cursor) -> Self {
        let reading = Reading {
            jobs,
            job,
            after: cursor.0,
            page: VecDeque::new(),
            follow: None,
            over: None,
            heard: None,
            looked: None,
            refused: 0,
            told_all: false,
        };
        let events = unfold(reading, async |mut reading| reading.next().await.map(|event| (event, reading)));
        Self { events: Box::pin(events), cursor }
    }

    /// The next event; `None` after the last.
    ///
    /// # Errors
    ///
    /// `unknown_job`, `store_unavailable`. It is the last: subscribe again at [`JobEvents::cursor`].
    ///
    /// # Cancel safety
    ///
    /// Safe: an event that was not returned is the next one.
    pub async fn next(&mut self) -> Option<Result<JobEvent, Fault>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// After the last entry that was told.
    #[must_use]
    pub const fn cursor(&self) -> Cursor {
        self.cursor
    }
}

impl Stream for JobEvents {
    type Item = Result<JobEvent, Fault>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.events.as_mut().poll_next(cx);
        match &polled {
            Poll::Ready(Some(Ok(JobEvent::Entry(entry)))) => self.cursor = Cursor(entry.seq),
            Poll::Ready(Some(Ok(JobEvent::Lagged { missed }))) => self.cursor = Cursor(self.cursor.0 + missed),
            _ => {}
        }
        polled
    }
}

/// What is known while a journal is read.
struct Reading {
    jobs: JobsHandle,
    job: JobId,
    /// The last entry that was told.
    after: u64,
    page: VecDeque<JournalEntry>,
    follow: Option<Follow>,
    /// The job, once it is over.
    over: Option<Arc<JobRecord>>,
    /// How long until the next look for what was heard of; nothing was heard of where there is none.
    heard: Option<Duration>,
    /// When it was last looked.
    looked: Option<Instant>,
    refused: u32,
    told_all: bool,
}

impl Reading {
    async fn next(&mut self) -> Option<Result<JobEvent, Fault>> {
        if self.told_all {
            return None;
        }
        let event = self.read_on().await;
        self.told_all = matches!(event, Err(_) | Ok(JobEvent::Ended(_)));
        Some(event)
    }

    async fn read_on(&mut self) -> Result<JobEvent, Fault> {
        loop {
            if let Some(event) = self.told() {
                return Ok(event);
            }
            // Whoever heard of the end looks after that: everything is in the journal then.
            let over = self.over.take();
            match self.jobs.events(self.job, self.after, PAGE).await {
                Ok(entries) => self.page.extend(entries),
                Err(fault) if self.refused < REFUSED && fault.code == FaultCode::StoreUnavailable => {
                    self.refused += 1;
                    self.over = over;
                    tokio::time::sleep(REFUSED_PAUSE).await;
                    continue;
                }
                Err(fault) => return Err(fault.job(self.job)),
            }
            (self.refused, self.looked) = (0, Some(Instant::now()));
            match over {
                Some(record) if self.page.is_empty() => return Ok(JobEvent::Ended(record)),
                over => self.over = over,
            }
            if self.page.is_empty() {
                self.wait().await?;
            } else {
                self.heard = None;
            }
        }
    }

    /// The next event that was read.
    fn told(&mut self) -> Option<JobEvent> {
        let entry = self.page.front()?;
        let missed = entry.seq.saturating_sub(self.after + 1);
        if missed > 0 {
            self.after += missed;
            return Some(JobEvent::Lagged { missed });
        }
        self.after = entry.seq;
        self.page.pop_front().map(JobEvent::Entry)
    }

    /// Waits until a look may find something.
    async fn wait(&mut self) -> Result<(), Fault> {
        let follow = match &mut self.follow {
            Some(follow) => follow,
            none => none.insert(self.jobs.follow(self.job).await?),
        };
        let news = match self.heard {
            Some(pause) => tokio::time::timeout(pause, follow.next()).await.ok(),
            None => Some(follow.next().await),
        };
        match news.transpose()? {
            Some(News::Finished(record)) => {
                self.over = Some(record);
                return Ok(());
            }
            // It will be over when the store takes its outcome.
            Some(News::Unstored(_) | News::Changed) | None => {}
        }
        self.heard = Some(self.heard.map_or(LOOK, |pause| (pause * 2).min(LOOK_MOST)));
        let since = self.looked.map_or(LOOK, |looked| looked.elapsed());
        tokio::time::sleep(LOOK.saturating_sub(since)).await;
        Ok(())
    }
}

/// The jobs of a system's store, for whoever runs the program: every directory's, whoever asked. Cheap to clone.
///
/// What is behind it ([`JobsHandle`]) lists and cancels them.
///
/// ```no_run
/// # async fn review(system: &phone_opus::System) -> Result<(), Box<dyn std::error::Error>> {
/// use phone_opus::{Consult, Cursor, JobEvent, JobFilter, JobState};
///
/// let jobs = system.jobs();
/// let job = jobs.submit(Consult::new("review this").cwd("/repository")).await?;   // durable, and begun
/// let mut events = jobs.subscribe(job, Cursor::START);
/// while let Some(event) = events.next().await {
///     match event? {
///         JobEvent::Ended(record) => assert!(record.state.is_terminal()),
///         told => println!("{}: {told:?}", events.cursor().seq()),                // where to go on another time
///     }
/// }
/// let outcome = jobs.get(job).await?.outcome;
/// for running in jobs.list(JobFilter { workspace: None, state: Some(JobState::Running), limit: 20 }).await? {
///     jobs.cancel(running.id).await?;
/// }
/// # let _ = outcome;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct JobDesk {
    pub(super) consults: Consults,
}

impl Deref for JobDesk {
    type Target = JobsHandle;

    fn deref(&self) -> &JobsHandle {
        &self.consults.jobs
    }
}

impl JobDesk {
    /// Hands a consult in, in the background: accepted and durable when this returns, and then run whatever becomes of this
    /// process.
    ///
    /// # Errors
    ///
    /// [`ConsultFault::Refused`]: nothing was started.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not undo an accept.
    pub async fn submit(&self, consult: Consult) -> Result<JobId, ConsultFault> {
        consult.check()?;
        let arguments = consult.arguments(JobMode::Background);
        let (options, _) = self.consults.read(&arguments, None, Caller::Owner).await?;
        let accepted = self.consults.jobs.accept(self.consults.job(&options, None), None).await?;
        Ok(accepted.record.id)
    }

    /// Everything about one job.
    ///
    /// # Errors
    ///
    /// `unknown_job`, `store_unavailable`.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn get(&self, job: JobId) -> Result<JobRecord, Fault> {
        self.consults.jobs.record(job).await
    }

    /// The events of a job after `cursor`: what its journal has, then what happens, to its end.
    #[must_use]
    pub fn subscribe(&self, job: JobId, cursor: Cursor) -> JobEvents {
        JobEvents::of(self.consults.jobs.clone(), job, cursor)
    }
}

#[cfg(test)]
mod tests;
