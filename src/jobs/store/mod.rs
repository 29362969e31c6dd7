//! The job store: the truth about jobs, for every process of a state directory.
//!
//! Owns: the verbs ([`Store`]), what they answer, and why they fail. May not know: actors, processes, locks, MCP. No SQL
//! exists outside this module.
//!
//! ```text
//! many callers ──▶ StoreHandle ──one bounded queue──▶ its thread ──▶ dyn Store ──▶ SQLite
//! ```
//!
//! Invariants: (1) what was accepted, started or finished is on disk before the verb returns; (2) a job changes its
//! state along the edges of [`JobState::advance`] only, by one conditional update; (3) one invocation, and one request
//! key of one workspace, is at most one job; (4) a job's journal is numbered from 1 without gaps, and ends with the job.

mod sqlite;
mod thread;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

#[cfg(feature = "testkit")]
pub use self::sqlite::{HeldWrites, hold_writes};
pub use self::sqlite::{SqliteStore, schema_known, schema_of};
pub use self::thread::StoreHandle;
pub use crate::jobs::admission::{QueueRow, SessionKey};

use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{AgentSessionId, FleetJobId, HostId, InvocationId, JobId, UnixMillis, WaiterId};
use crate::base::local_time;
use crate::base::state_dir::StateDirError;
use crate::jobs::fleet_runs::FleetRun;
use crate::jobs::hosts::HostRow;
use crate::jobs::limits::Scope;
use crate::jobs::row::JobRow;
use crate::jobs::{
    Billing, CancelReason, JobMode, JobOutcome, JobRecord, JobState, JobSummary, JournalEntry, JournalEvent, NewJob,
    RunProcess,
};

/// Longest a verb waits for another process to finish its write.
///
/// The longest write is the deletion of one batch of old jobs, well under a second; who holds the database for five is
/// stuck, and the caller is told `busy`.
pub const BUSY_BOUND: Duration = Duration::from_secs(5);

/// Most rows one listing returns, whatever was asked: a screenful times ten, so that a reply stays a reply.
pub const MOST_LISTED: usize = 1_000;

/// How much may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptLimits {
    /// Most jobs in state `queued`, over all workspaces.
    pub max_queued: usize,
}

/// What became of a consult that asked to be accepted.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub enum Accept {
    /// It is a new job, and durable.
    Inserted(JobRecord),
    /// It is one we have: the same invocation, or the same request key in the same workspace with an equal request.
    Joined(JobRecord),
    /// Its request key was used in this workspace with other arguments.
    Conflict {
        /// By this job.
        job: JobId,
    },
    /// Too many jobs are waiting.
    QueueFull {
        /// This many.
        queued: usize,
    },
    /// The provider has refused this agent, account and family of models until then. Nothing is started before.
    Limited(Limit),
}

/// A provider's usage limit that was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    pub agent: String,
    /// How it is paid for.
    pub billing: Billing,
    /// Whose usage it limits (`Agent::account`).
    pub account: String,
    /// Which requests it is about.
    pub scope: Scope,
    /// When the provider takes requests again, as the agent reported it.
    pub until: UnixMillis,
    /// The job that was refused.
    pub job: JobId,
}

/// The longest a reported limit is believed: the longest windows of providers are a week. A later time is taken for a
/// mistake, and not kept.
pub const LIMIT_MOST: u64 = 8 * 24 * 60 * 60 * 1000;

/// Most chains whose cost is told at a time.
pub const CHAINS_MOST: i64 = 20;

/// What became of a change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Transition {
    /// It is done, and durable.
    Done,
    /// The job is in a state from which it cannot be done; nothing was changed.
    Refused {
        /// That state.
        current: JobState,
    },
}

/// What became of an attempt to start a job.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum StartOutcome {
    /// The job is running, and that is durable: no power failure can make it look unstarted.
    Started,
    /// Another run of the same agent session is not over; try again later.
    SessionBusy {
        /// That run.
        by: JobId,
    },
    /// The provider refuses its agent for now; nothing was changed.
    Limited(Limit),
    /// The job is not queued any more; nothing was changed.
    Refused {
        /// What it is instead.
        current: JobState,
    },
}

/// What became of a request to cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum CancelState {
    /// The job's runner will find the request.
    Requested {
        /// Where the job stands.
        state: JobState,
    },
    /// It had been requested before; the first reason stays.
    AlreadyRequested {
        /// Where the job stands.
        state: JobState,
        /// The first reason.
        reason: CancelReason,
    },
    /// The job is over; nothing was changed.
    Ended { state: JobState },
    /// A caller was lost that the job does not need: it is a background job and goes on.
    GoesOn,
}

/// What became of an attempt to adopt a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Adoption {
    /// The job is in the custody of the host that asked.
    Adopted,
    /// It is in that of another one by now, or nobody may adopt it; nothing was changed.
    Elsewhere,
    /// It is over; nothing was changed.
    Over { state: JobState },
}

/// What a runner or a waiting caller looks at again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance {
    /// Where the job stands.
    pub state: JobState,
    /// Whether somebody waits.
    pub mode: JobMode,
    /// Why it is to be cancelled, if it is.
    pub cancel_requested: Option<CancelReason>,
    /// The highest journal sequence number, 0 when there is none.
    pub last_event: u64,
    /// The host that has custody of it; `None` where no other one may follow it.
    pub host: Option<HostId>,
}

impl Glance {
    /// What a look would have shown when the record was read.
    #[must_use]
    pub const fn of(record: &JobRecord) -> Self {
        Self {
            state: record.state,
            mode: record.mode,
            cancel_requested: record.cancel_requested,
            last_event: record.last_event,
            host: record.host,
        }
    }
}

/// Which jobs to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFilter {
    /// Only those of this workspace.
    pub workspace: Option<PathBuf>,
    /// Only those in this state.
    pub state: Option<JobState>,
    /// At most so many, and never more than [`MOST_LISTED`].
    pub limit: usize,
}

/// How many jobs are in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct JobCounts {
    /// Accepted, not started.
    pub queued: u64,
    /// Owned by a runner.
    pub running: u64,
    /// Answered.
    pub succeeded: u64,
    pub failed: u64,
    /// Stopped.
    pub cancelled: u64,
    /// Without an outcome.
    pub interrupted: u64,
}

impl JobCounts {
    /// How many jobs are in a state.
    #[must_use]
    pub const fn of(&self, state: JobState) -> u64 {
        match state {
            JobState::Queued => self.queued,
            JobState::Running => self.running,
            JobState::Succeeded => self.succeeded,
            JobState::Failed => self.failed,
            JobState::Cancelled => self.cancelled,
            JobState::Interrupted => self.interrupted,
        }
    }

    pub(crate) const fn of_mut(&mut self, state: JobState) -> &mut u64 {
        match state {
            JobState::Queued => &mut self.queued,
            JobState::Running => &mut self.running,
            JobState::Succeeded => &mut self.succeeded,
            JobState::Failed => &mut self.failed,
            JobState::Cancelled => &mut self.cancelled,
            JobState::Interrupted => &mut self.interrupted,
        }
    }
}

/// What the jobs that ended on one day cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DayCost {
    /// The day in UTC, as `YYYY-MM-DD`.
    pub day: String,
    /// Jobs that ended on it.
    pub jobs: u64,
    /// The sum of the known costs, in US dollars.
    pub cost_usd: f64,
    /// Jobs whose cost is not known; the sum says nothing about them.
    pub unknown: u64,
}

/// What one chain of nested consults cost: one that an agent was asked for, and those it asked for in turn.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChainCost {
    /// The chain, which each of its jobs names.
    pub chain: String,
    /// Jobs of it that ended.
    pub jobs: u64,
    /// The sum of the known costs, in US dollars.
    pub cost_usd: f64,
    /// Jobs whose cost is not known; the sum says nothing about them.
    pub unknown: u64,
}

/// By what a job's age is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ages {
    /// By the time it was seen as finished, from one pruning to the next: no jump of the wall clock forgets anything.
    Seen,
    /// By the wall clock, for somebody who says so and looks on.
    Clock,
}

/// How long finished jobs are kept. The one reached first decides; unfinished jobs are never touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// How long a job is kept whose outcome somebody has read.
    pub max_age: Duration,
    /// How long a job is kept that nobody has read.
    pub max_unread_age: Duration,
    /// Most bytes of finished jobs (requests, journals and outcomes); beyond it the oldest read ones go first, then the
    /// oldest unread ones.
    pub max_bytes: u64,
    /// How ages are told.
    pub ages: Ages,
}

impl Default for RetentionPolicy {
    /// 30 days, three times as long unread, 1 GiB.
    fn default() -> Self {
        const DAY: u64 = 24 * 60 * 60;
        Self {
            max_age: Duration::from_secs(30 * DAY),
            max_unread_age: Duration::from_secs(90 * DAY),
            max_bytes: 1 << 30,
            ages: Ages::Seen,
        }
    }
}

/// What a pruning removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pruned {
    /// The jobs that are forgotten; their directories can go too.
    pub jobs: Vec<JobId>,
    /// What they held, in bytes.
    pub bytes: u64,
}

/// A stamp of the store's content: while it stays equal, nothing changed. It has no order and no meaning besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataVersion {
    pub(crate) opened: u64,
    pub(crate) by_others: i64,
    pub(crate) by_us: u64,
}

/// Why a verb failed. Nothing was changed then, except that a failed `accept`, `start` or `finish` may have reached the
/// disk all the same; asking again is safe for all of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process kept the database longer than [`BUSY_BOUND`].
    #[error("use the job store: another process kept it locked for {} s", BUSY_BOUND.as_secs())]
    Busy,
    /// More verbs wait for the store's thread than its queue holds.
    #[error("use the job store: too many requests are waiting for it")]
    Overloaded,
    /// The disk is full.
    #[error("write the job store: the disk is full")]
    Full,
    /// The database cannot be written.
    #[error("write the job store: it is read-only")]
    ReadOnly,
    /// The database is damaged. The next use moves it aside, if it really is.
    #[error("read the job store: the database is damaged ({detail})")]
    Corrupt {
        /// What the database said.
        detail: String,
    },
    /// A later version of the program wrote it.
    #[error("use the job store: its version is {found}, and this program knows {known} and earlier")]
    NewerSchema {
        /// The version in the file.
        found: i64,
        /// The newest version this program knows.
        known: i64,
    },
    /// Input or output failed.
    #[error("use the job store: {detail}")]
    Io {
        /// What the system said.
        detail: String,
    },
    /// The state directory cannot be used.
    #[error("use the job store")]
    StateDir(#[from] StateDirError),
    /// A stored value is none that this version writes.
    #[error("read the job store: {what} is not understood")]
    Unreadable {
        /// Which value.
        what: &'static str,
    },
    /// A value cannot be stored.
    #[error("write the job store: {what} cannot be stored")]
    Unstorable {
        /// Which value.
        what: &'static str,
    },
    /// The database refused a statement of ours.
    #[error("use the job store: {detail}")]
    Internal {
        /// What it said.
        detail: String,
    },
    /// No job has this id.
    #[error("find job {0}")]
    UnknownJob(JobId),
    /// The job is over, and its journal with it.
    #[error("write to the journal of job {job}: it is {}", state.as_str())]
    Ended {
        job: JobId,
        /// How it ended.
        state: JobState,
    },
    /// The verb panicked. The store is opened anew for the next one.
    #[error("use the job store: it panicked")]
    Panicked,
    /// The verb did not come back in time; it may still be carried out. The store is opened anew for the next one.
    #[error("use the job store: it did not answer in time")]
    Stuck,
    /// The handle was closed.
    #[error("use the job store: it is closed")]
    Closed,
}

impl Limit {
    /// When it is lifted, in the zone of whoever reads it, and how long that is from now.
    #[must_use]
    pub fn until_in_words(&self, now: UnixMillis) -> String {
        local_time::to_come(self.until, now)
    }

    /// Why nothing is started for an agent whose usage limit is reached.
    #[must_use]
    pub fn fault(&self, now: UnixMillis) -> Fault {
        let of = self.scope.family.map_or_else(String::new, |family| format!(" for its {family} models"));
        let detail = format!(
            "the usage limit of agent {}{of} is reached until {}, as job {} was told; nothing was started.",
            self.agent,
            self.until_in_words(now),
            self.job
        );
        let other = if self.scope.family.is_some() { "name another `model`, or " } else { "" };
        Fault::new(FaultCode::AgentRateLimited, detail).retry_at(self.until).hint(format!(
            "Wait until then, {other}ask another agent. If the limit was lifted: phone-opus jobs limits --clear"
        ))
    }
}

impl From<&StoreError> for Fault {
    fn from(error: &StoreError) -> Self {
        let code = match error {
            StoreError::UnknownJob(_) => FaultCode::UnknownJob,
            StoreError::Ended { .. } => FaultCode::IllegalTransition,
            _ => FaultCode::StoreUnavailable,
        };
        let mut detail = format!("failed to {error}");
        if let StoreError::StateDir(cause) = error {
            detail = format!("{detail}: failed to {cause}");
        }
        // The error is a fragment, the fault's detail a sentence.
        let mut fault = Self::new(code, format!("{detail}."));
        fault.hint = hint(error).map(str::to_owned);
        fault.retryable = match error {
            StoreError::Busy
            | StoreError::Overloaded
            | StoreError::Full
            | StoreError::Corrupt { .. }
            | StoreError::Io { .. }
            | StoreError::Panicked
            | StoreError::Stuck => true,
            StoreError::ReadOnly
            | StoreError::NewerSchema { .. }
            | StoreError::StateDir(_)
            | StoreError::Unreadable { .. }
            | StoreError::Unstorable { .. }
            | StoreError::Internal { .. }
            | StoreError::UnknownJob(_)
            | StoreError::Ended { .. }
            | StoreError::Closed => false,
        };
        fault
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::from(&error)
    }
}

const fn hint(error: &StoreError) -> Option<&'static str> {
    Some(match error {
        StoreError::Busy | StoreError::Overloaded => "Try again in a few seconds.",
        StoreError::Full => "Free space on the disk of the state directory.",
        StoreError::ReadOnly => "Make the state directory writable, or choose another with --state-dir.",
        StoreError::Corrupt { .. } => {
            "Try again: a damaged database is moved aside, never deleted, and a new one is begun."
        }
        StoreError::NewerSchema { .. } => "Use the newer phone-opus, or another directory with --state-dir.",
        StoreError::Io { .. } => "Look at the disk of the state directory, or choose another with --state-dir.",
        StoreError::StateDir(_) => {
            "Let the directory belong to you and be writable by you alone (chmod 700), or choose another with --state-dir."
        }
        StoreError::UnknownJob(_) => "List the jobs there are; finished ones are kept for 30 days.",
        _ => return None,
    })
}

/// The verbs of a job store. They block; [`StoreHandle`] is the asynchronous side.
///
/// `&mut self` because a store is one connection with one owner; other owners, in this process or another, have their own.
pub trait Store: Send {
    /// Makes a consult a job, or finds the job it already is, in one transaction.
    ///
    /// In this order: the same invocation joins; the same `request_key` in the same workspace joins when the requests are
    /// equal, or differ in nothing their callers named, and conflicts otherwise; a usage limit that was reached refuses, then a full queue; all else is inserted. So
    /// whoever asks again is never told that the queue is full. Request keys are scoped to the workspace: two callers in different directories cannot know
    /// of each other's keys, and must not be given each other's answers. A key is free again when its job is pruned, or is over without an agent having
    /// been started for it.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn accept(&mut self, job: &NewJob, limits: AcceptLimits) -> Result<Accept, StoreError>;

    /// Everything about one job.
    ///
    /// # Errors
    ///
    /// `UnknownJob`; the store cannot be used.
    fn job(&mut self, job: JobId) -> Result<JobRecord, StoreError>;

    /// The little about a job that changes: a few microseconds, whatever its size.
    ///
    /// # Errors
    ///
    /// `UnknownJob`; the store cannot be used.
    fn glance(&mut self, job: JobId) -> Result<Glance, StoreError>;

    /// The job that was accepted for an invocation: the probe after a crash between accepting and answering.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn find_invocation(&mut self, invocation: &InvocationId) -> Result<Option<JobId>, StoreError>;

    /// The jobs that match: finished ones nobody has read first, then newest first.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn list(&mut self, filter: &JobFilter) -> Result<Vec<JobSummary>, StoreError>;

    /// The jobs that are not over, or have ended since a moment, in the order of acceptance and behind the one of this sequence (0: from
    /// the first): [`ROWS_MOST`](crate::jobs::row::ROWS_MOST) at most. No text of theirs is read.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn job_rows(&mut self, since: UnixMillis, after: u64) -> Result<Vec<JobRow>, StoreError>;

    /// Jobs whose id begins with this, which is lower case; the newest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn beginning_with(&mut self, start: &str, limit: usize) -> Result<Vec<JobId>, StoreError>;

    /// The job of a workspace that was accepted last.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn newest(&mut self, workspace: &Path) -> Result<Option<JobId>, StoreError>;

    /// Usage limits that were reached and are not over. `finish` keeps them: a refusal that says until when sets one, a
    /// success of the same agent, billing and account, with a model the limit is about, ends it.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn limits(&mut self, now: UnixMillis) -> Result<Vec<Limit>, StoreError>;

    /// Forgets all usage limits, for whoever knows better; returns how many there were.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn clear_limits(&mut self) -> Result<usize, StoreError>;

    /// Moves a job from `queued` to `running`, unless another run of its agent session is not over.
    ///
    /// # Errors
    ///
    /// `UnknownJob`; the store cannot be used.
    fn start(&mut self, job: JobId, at: UnixMillis) -> Result<StartOutcome, StoreError>;

    /// Records the process of the agent, for a sweep to recognise. Refused unless the job is running.
    ///
    /// # Errors
    ///
    /// `UnknownJob`; the store cannot be used.
    fn set_process(&mut self, job: JobId, process: RunProcess) -> Result<Transition, StoreError>;

    /// Notes of a running job that its agent is on another machine, which has ended it so long after its runner is lost.
    ///
    /// # Errors
    ///
    /// `UnknownJob`, or the store cannot be used.
    fn set_elsewhere(&mut self, job: JobId, over_within: Duration) -> Result<Transition, StoreError>;

    /// Notes that the runner of a job is lost, unless that is noted already. Returns when its agent is over, where that is on
    /// another machine.
    ///
    /// # Errors
    ///
    /// `UnknownJob`, or the store cannot be used.
    fn lost_elsewhere(&mut self, job: JobId, now: UnixMillis) -> Result<Option<UnixMillis>, StoreError>;

    /// Moves a job to a terminal state, with its outcome. The first one wins; a second is refused. `at` is raised to the
    /// newest end the store knows where the clock went back.
    ///
    /// # Errors
    ///
    /// `UnknownJob`; the store cannot be used.
    fn finish(
        &mut self,
        job: JobId,
        to: JobState,
        outcome: &JobOutcome,
        at: UnixMillis,
    ) -> Result<Transition, StoreError>;

    /// Appends to a job's journal, all or nothing, and returns the journal's last number. A crash of the machine (not of a
    /// process) may lose the last ones.
    ///
    /// # Errors
    ///
    /// `UnknownJob`; `Ended` when the job is over; the store cannot be used.
    fn append(&mut self, job: JobId, events: &[(UnixMillis, JournalEvent)]) -> Result<u64, StoreError>;

    /// The journal after `after_seq`, in order: at most `limit` entries and about `max_bytes` of stored text, but at least
    /// one entry if there is any.
    ///
    /// An event that a later version wrote is shown as an `Other` of the agent, so that the numbers keep having no gaps.
    ///
    /// # Errors
    ///
    /// `UnknownJob`; the store cannot be used.
    fn events(
        &mut self,
        job: JobId,
        after_seq: u64,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<JournalEntry>, StoreError>;

    /// Asks a job's runner to end it. The first reason stays. A lost caller ends a synchronous job only: whether it still
    /// is one is decided here, since another host may have taken it over meanwhile.
    ///
    /// # Errors
    ///
    /// `UnknownJob`; the store cannot be used.
    fn request_cancel(&mut self, job: JobId, reason: CancelReason) -> Result<CancelState, StoreError>;

    /// Turns a job nobody waits for any more into a background job. Refused when it is over.
    ///
    /// # Errors
    ///
    /// `UnknownJob`; the store cannot be used.
    fn hand_over(&mut self, job: JobId) -> Result<Transition, StoreError>;

    /// Gives a job that is not over from the custody of one host, which is gone, into that of another. Of several who try it
    /// at once one succeeds. Who waits with a queued job is woken.
    ///
    /// # Errors
    ///
    /// `UnknownJob`; the store cannot be used.
    fn adopt(&mut self, job: JobId, from: HostId, by: HostId) -> Result<Adoption, StoreError>;

    /// Notes what a host says of itself, in the place of what it said before.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn show_host(&mut self, row: &HostRow) -> Result<(), StoreError>;

    /// What hosts have said of themselves. Whether one lives is for its lock to say. What cannot be read is left out.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn hosts(&mut self) -> Result<Vec<HostRow>, StoreError>;

    /// Forgets what these hosts said.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn forget_hosts(&mut self, hosts: &[HostId]) -> Result<(), StoreError>;

    /// Notes by which claim this machine has a fleet's job; a later claim takes the place of an earlier one. Durable.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn note_fleet_run(&mut self, run: FleetRun) -> Result<(), StoreError>;

    /// The claims whose ends the fleet was not told, at most [`MOST_READ`](crate::jobs::fleet_runs::MOST_READ).
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn fleet_runs(&mut self) -> Result<Vec<FleetRun>, StoreError>;

    /// Forgets a claim: the fleet knows how it ended, or gave it to somebody else.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn forget_fleet_run(&mut self, job: FleetJobId) -> Result<(), StoreError>;

    /// Notes that somebody read the outcome; the first time stays, and a job that is not over is left alone.
    ///
    /// # Errors
    ///
    /// `UnknownJob`; the store cannot be used.
    fn mark_read(&mut self, job: JobId, at: UnixMillis) -> Result<(), StoreError>;

    /// The finished jobs of a workspace whose outcome nobody has read: answers first, then the newest. Without those that
    /// their own caller cancelled.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn unread(&mut self, workspace: &Path, limit: usize) -> Result<Vec<JobId>, StoreError>;

    /// The queued and running jobs, in the order of acceptance.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn queue(&mut self) -> Result<Vec<QueueRow>, StoreError>;

    /// A queued job's place in the order of acceptance, from 1; `None` when it is not queued.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn queue_place(&mut self, job: JobId) -> Result<Option<usize>, StoreError>;

    /// The last job before this one that was in this session of the agent.
    ///
    /// # Errors
    ///
    /// `UnknownJob`; the store cannot be used.
    fn last_of_session(&mut self, job: JobId, session: AgentSessionId) -> Result<Option<JobId>, StoreError>;

    /// Notes who waits with these jobs for their turn, and returns those that must not wait: they are to be cancelled, or
    /// are not queued any more.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn wait_with(&mut self, jobs: &[JobId], waiter: WaiterId) -> Result<Vec<JobId>, StoreError>;

    /// How many jobs are in each state.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn counts(&mut self) -> Result<JobCounts, StoreError>;

    /// What was spent since a moment, by the day on which the jobs ended, oldest first.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn cost_by_day(&mut self, since: UnixMillis) -> Result<Vec<DayCost>, StoreError>;

    /// What was spent since a moment by chains of more than one job, the dearest first, [`CHAINS_MOST`] at most.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn cost_by_chain(&mut self, since: UnixMillis) -> Result<Vec<ChainCost>, StoreError>;

    /// Forgets finished jobs that are kept long enough: nothing of them can be read in the database's files afterwards. In
    /// batches: when it fails, what was forgotten stays forgotten.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn prune(&mut self, policy: RetentionPolicy, now: UnixMillis) -> Result<Pruned, StoreError>;

    /// A stamp that differs when anything was written since, by anybody. It costs next to nothing: look at it before
    /// looking at anything else.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    fn data_version(&mut self) -> Result<DataVersion, StoreError>;

    /// Where a damaged database was moved when this store was opened, if one was.
    fn moved_aside(&self) -> Option<PathBuf>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_of_the_store_says_what_to_do_in_plain_words() {
        let unavailable = [
            StoreError::Busy,
            StoreError::Overloaded,
            StoreError::Full,
            StoreError::ReadOnly,
            StoreError::Corrupt { detail: "x".into() },
            StoreError::NewerSchema { found: 9, known: 1 },
            StoreError::Io { detail: "x".into() },
            StoreError::StateDir(StateDirError::Unknown),
        ];
        for error in unavailable {
            let fault = Fault::from(&error);
            assert_eq!(fault.code, FaultCode::StoreUnavailable, "{error:?}");
            assert!(fault.hint.is_some(), "{error:?}");
            assert!(fault.detail.starts_with("failed to "), "{}", fault.detail);
        }
        let newer = Fault::from(StoreError::NewerSchema { found: 9, known: 1 });
        assert!(newer.detail.contains('9') && newer.detail.contains('1') && !newer.retryable, "{newer}");
        assert_eq!(Fault::from(StoreError::UnknownJob(JobId::random())).code, FaultCode::UnknownJob);
    }
}
