//! The jobs a host looks after: their custodies, and the rules about who waits for them.
//!
//! Owns: the table of attached jobs, the one [`JobsCore`] of a system. May not know: what the rules say, how custody is
//! taken. It belongs to the system and outlives every incarnation of the jobs' supervisor.
//!
//! The two locks are private to this file and never held over an await. Nothing that can panic leaves either half changed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};

use super::core::{AskId, Claim, JobsCore, JobsEffect, JobsEvent};
use super::custody::Custody;
use super::custody::core::RunHere;
use super::means::Means;
use super::room::Room;
use super::starting::HeldRunner;
use crate::actors::kept::Kept;
use crate::base::ids::{InvocationId, JobId};
use crate::jobs::live::JobLive;
use crate::jobs::{JobMode, JobRecord};

/// A job this host looks after, as its supervisor sees it. Cheap to clone.
#[derive(Clone)]
pub struct Attachment {
    job: JobId,
    custody: Arc<Kept<Custody>>,
    news: watch::Receiver<JobLive>,
    terminate: mpsc::Sender<()>,
    rules: Rules,
}

/// The rules about the jobs of a system, wherever they are asked. Cheap to clone.
#[derive(Clone, Default)]
struct Rules(Arc<Mutex<JobsCore>>);

impl Rules {
    fn core(&self) -> MutexGuard<'_, JobsCore> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attachment {
    /// The job.
    #[must_use]
    pub const fn job(&self) -> JobId {
        self.job
    }

    /// Custody, to be borrowed.
    #[must_use]
    pub fn custody(&self) -> &Arc<Kept<Custody>> {
        &self.custody
    }

    /// The news.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<JobLive> {
        self.news.clone()
    }

    /// Asks the runner to end its job. One request waits at most: a second one adds nothing.
    pub fn terminate(&self) {
        let _ = self.terminate.try_send(());
    }

    /// Whether its runner has no pipe to this host.
    #[must_use]
    pub fn is_by_store(&self) -> bool {
        self.news.borrow().by_store
    }

    /// Whether callers of the host the job was adopted from may still come back.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.rules.core().claim(self.job).is_some_and(Claim::is_awaited)
    }

    /// Whether a caller waits for the job, and who does. A job that was just released is waited for by nobody.
    #[must_use]
    pub fn claim(&self) -> (JobMode, Vec<InvocationId>) {
        let core = self.rules.core();
        let of = |claim: &Claim| (claim.mode(), claim.callers().collect());
        core.claim(self.job).map_or_else(|| (JobMode::Background, Vec::new()), of)
    }
}

/// The jobs this host looks after. Cheap to clone.
#[derive(Clone, Default)]
pub struct Attachments {
    table: Arc<Mutex<BTreeMap<JobId, Attachment>>>,
    rules: Rules,
    room: Room,
}

impl Attachments {
    fn table(&self) -> MutexGuard<'_, BTreeMap<JobId, Attachment>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where those wait whose turn has not come.
    #[must_use]
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// The number of a new ask.
    #[must_use]
    pub fn next_ask(&self) -> AskId {
        self.rules.core().next_ask()
    }

    /// Whether jobs are attended to.
    #[must_use]
    pub fn are_attended_to(&self) -> bool {
        self.rules.core().is_attentive()
    }

    /// Takes what happened; what is to be done, in this order.
    #[must_use]
    pub fn decide(&self, event: JobsEvent) -> Vec<JobsEffect> {
        let mut effects = Vec::new();
        self.rules.core().step(event, &mut effects);
        effects
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<(JobId, Attachment)> {
        self.table().iter().map(|(job, attachment)| (*job, attachment.clone())).collect()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, job: JobId) -> Option<Attachment> {
        self.table().get(&job).cloned()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table().is_empty()
    }

    /// Makes custody of a job; the one that is there stays. The rules have its claim already.
    pub fn attach(&self, record: &JobRecord, means: Means, held: Option<HeldRunner>) {
        let (news, followed) = watch::channel(JobLive::default());
        // One place: a second request to end adds nothing to the first.
        let (terminate, asked) = mpsc::channel(1);
        let mut table = self.table();
        table.entry(record.id).or_insert_with(|| Attachment {
            job: record.id,
            custody: Kept::new(Custody::new(record, means, held, self.room.clone(), news, asked)),
            news: followed,
            terminate,
            rules: self.rules.clone(),
        });
    }

    /// Makes custody of a job that was adopted; the one that is there stays. The rules have its claim already.
    pub fn attach_by_store(&self, record: &JobRecord, means: Means, run_here: RunHere) {
        let (news, followed) = watch::channel(JobLive { by_store: true, ..JobLive::default() });
        let (terminate, asked) = mpsc::channel(1);
        let mut table = self.table();
        table.entry(record.id).or_insert_with(|| Attachment {
            job: record.id,
            custody: Kept::new(Custody::adopted(record, means, run_here, self.room.clone(), news, asked)),
            news: followed,
            terminate,
            rules: self.rules.clone(),
        });
    }

    /// Takes in a custody that another image passed on, and who waits for its job.
    pub(super) fn take_in(
        &self,
        job: JobId,
        claim: JobsEvent,
        custody: Custody,
        news: watch::Receiver<JobLive>,
        terminate: mpsc::Sender<()>,
    ) {
        // Nobody attends to anything yet; the supervisor does when it starts.
        drop(self.decide(claim));
        let rules = self.rules.clone();
        self.table().insert(job, Attachment { job, custody: Kept::new(custody), news, terminate, rules });
    }

    /// Lets go of a job. What still held its pipes lets go of them too.
    pub fn release(&self, job: JobId) {
        if let Some(attachment) = self.table().remove(&job) {
            drop(attachment.custody.finish());
        }
    }
}
