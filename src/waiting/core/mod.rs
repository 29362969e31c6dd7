//! What a waiting process does about its jobs, and when.
//!
//! Owns: which jobs it holds, whose turn it is, what it is blocked on, when it ends. May not know: processes, locks, the
//! store, I/O; `now` is passed in.
//!
//! ```text
//!  waiting ──its turn, host there──▶ offered ──taken──▶ left to the host
//!     │                                └── refused, or 2 s of silence ──▶ started by us
//!     ├──its turn, host gone──▶ started by us
//!     └── cancelled, caller lost, a day ──▶ over
//! ```
//!
//! Time passes for it only while something is under way: an offer that is not answered, a start that is not to be seen yet,
//! callers that have just been lost. With every permit taken it is blocked on the runs that have them and on nothing else.
//!
//! Invariants: (1) a job is offered or started only when the plan of a look says that it may start, and once for each turn;
//! (2) while it waits with anything that could start, it is blocked on every live run, or looks again within a second; (3) a
//! background job never ends because a host is gone; (4) a synchronous one that may be adopted ends a grace after the last
//! host is gone that had custody of it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use crate::base::ids::{HostId, JobId};
use crate::jobs::admission::{Contender, Position, plan};
use crate::jobs::{CancelReason, JobMode, JobState};

/// How long a synchronous job that nobody may adopt survives its host, as it does in a runner.
pub const CALLER_GRACE: Duration = Duration::from_secs(2);

/// How long a host may take to start the runner of a job whose turn it is. One that is stopped or stuck must not hold up the
/// queue of all others.
const OFFER_LIMIT: Duration = Duration::from_secs(2);

/// Longest a job waits for its turn, as in a runner: nobody waits longer for a second opinion.
pub const QUEUE_BOUND: Duration = Duration::from_secs(24 * 60 * 60);

/// Runners started for one job as long as none of them got to start the agent, as a host does.
const RUNNER_STARTS: u32 = 2;

/// The first pause before a look at what is under way elsewhere, and the longest: a runner starts within milliseconds, and
/// one that does not is somebody's trouble that ends when its lock is given back.
const AGAIN_FIRST: Duration = Duration::from_millis(4);
const AGAIN_MOST: Duration = Duration::from_secs(1);

/// Everything that can wake it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitingEvent {
    /// The host hands in a job.
    Came(JobId),
    /// The host hands in a job again, not knowing what was said about it since.
    CameAgain(JobId),
    /// Some of the jobs handed in must not wait: the store says why.
    Doubtful,
    /// The host has started the runner.
    Taken(JobId),
    /// The host does not start it.
    Refused(JobId),
    /// The host looks after it otherwise.
    Left(JobId),
    /// The host is gone.
    HostGone,
    /// A run that was watched has ended, in whatever way.
    Freed(JobId),
    /// A host that was watched is gone.
    HostFreed(HostId),
    /// The bell was rung.
    Rang,
    /// A runner of ours has ended without its job having begun: there was no permit after all.
    NotYet(JobId),
    /// A runner of ours has ended otherwise.
    RunnerOver(JobId),
    /// The queue was looked at.
    Looked(Vec<Contender>),
    /// The queue cannot be looked at for the moment.
    NotSeen,
    /// Time has passed.
    Due,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitingEffect {
    /// Tell the host that it is this job's turn.
    Offer(JobId),
    /// Start its runner.
    Start(JobId),
    /// Block until this run is over.
    Watch(JobId),
    /// Block until this host, which has adopted a job of ours, is gone.
    WatchHost(HostId),
    /// Make this job, which never began, cancelled.
    Cancel(JobId, CancelReason),
    /// Make this job failed: it waited too long.
    Expire(JobId),
    /// Settle this job: no runner came to run it.
    Lost(JobId),
    /// Tell the host that the job is over or in other hands.
    TellOver(JobId),
    /// Tell the host that places have changed.
    TellMoved,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Offered(Instant),
    /// Its runner was started, by us; it is to be seen running soon.
    Started,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    since: Instant,
    stage: Stage,
    /// As the last look said; the store decides.
    sync: bool,
    /// Runners of ours that ended without having begun it.
    failed: u32,
    /// The host that has custody of it, by its row; `None` where it may not be adopted.
    host: Option<HostId>,
    /// Since when no host is known to have it.
    lost: Option<Instant>,
}

/// The state of a waiting process.
#[derive(Debug)]
pub struct WaitingCore {
    limit: usize,
    /// How long a job waits to be adopted; zero when none is.
    orphan_grace: Duration,
    jobs: BTreeMap<JobId, Held>,
    host_gone: Option<Instant>,
    /// Runs we are blocked on.
    watched: BTreeSet<JobId>,
    /// Hosts we are blocked on.
    hosts: BTreeSet<HostId>,
    /// Runs whose lock was given back since the last look: not to be blocked on again before they were seen to go on.
    freed: HashSet<JobId>,
    /// Every permit was taken at the last look, by runs we are blocked on.
    full: bool,
    look: bool,
    again_at: Option<Instant>,
    pause: Duration,
    order: Vec<JobId>,
}

impl WaitingCore {
    /// With no jobs yet.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            orphan_grace: Duration::ZERO,
            jobs: BTreeMap::new(),
            host_gone: None,
            watched: BTreeSet::new(),
            hosts: BTreeSet::new(),
            freed: HashSet::new(),
            full: false,
            look: false,
            again_at: None,
            pause: AGAIN_FIRST,
            order: Vec::new(),
        }
    }

    /// The same for jobs that wait so long to be adopted when their host is gone.
    #[must_use]
    pub fn with_orphan_grace(self, grace: Duration) -> Self {
        Self { orphan_grace: grace, ..self }
    }

    /// When a synchronous job is to be ended because no host has it.
    fn callers_lost_at(&self, held: &Held) -> Option<Instant> {
        let adoptable = held.host.is_some() && !self.orphan_grace.is_zero();
        let grace = if adoptable { self.orphan_grace } else { CALLER_GRACE };
        held.lost.filter(|_| held.sync && held.stage == Stage::Waiting).map(|lost| lost + grace)
    }

    /// Whether the queue is to be looked at, once all that is there to be heard was heard. Asking takes the wish back.
    pub fn take_look(&mut self) -> bool {
        std::mem::take(&mut self.look) && !self.jobs.is_empty()
    }

    /// Whether there is nothing left to wait for and nobody who could hand in more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.jobs.is_empty() && self.host_gone.is_some()
    }

    /// When it wants to hear [`WaitingEvent::Due`], if nothing else happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let offers = self.jobs.values().filter_map(|held| match held.stage {
            Stage::Offered(at) => Some(at + OFFER_LIMIT),
            Stage::Waiting | Stage::Started => None,
        });
        let callers = self.jobs.values().filter_map(|held| self.callers_lost_at(held));
        let bounds = self.jobs.values().map(|held| held.since + QUEUE_BOUND).min();
        offers.chain(callers).chain(bounds).chain(self.again_at).min()
    }

    /// Jobs it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether it holds this one.
    #[must_use]
    pub fn has(&self, job: JobId) -> bool {
        self.jobs.contains_key(&job)
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Something happened.
    pub fn step(&mut self, event: WaitingEvent, now: Instant) -> Vec<WaitingEffect> {
        match event {
            WaitingEvent::Came(job) => self.came(job, now),
            WaitingEvent::CameAgain(job) => return self.came_again(job, now),
            WaitingEvent::Doubtful | WaitingEvent::Rang => self.look = true,
            WaitingEvent::Taken(job) | WaitingEvent::Left(job) => {
                self.jobs.remove(&job);
                self.soon(now);
            }
            WaitingEvent::Refused(job) => return self.refused(job),
            WaitingEvent::HostGone => return self.host_went(now),
            WaitingEvent::Freed(job) => {
                self.watched.remove(&job);
                self.freed.insert(job);
                self.full = false;
                self.look = true;
            }
            WaitingEvent::HostFreed(host) => {
                self.hosts.remove(&host);
                for held in self.jobs.values_mut().filter(|held| held.host == Some(host)) {
                    held.lost.get_or_insert(now);
                }
                // Another one may have adopted them by now.
                self.look = true;
            }
            WaitingEvent::NotYet(job) => {
                if let Some(held) = self.jobs.get_mut(&job) {
                    held.stage = Stage::Waiting;
                }
                self.later(now);
            }
            WaitingEvent::RunnerOver(job) => {
                // Over, or somebody else's: the next look tells, and a job that is still queued waits on.
                self.look = true;
                if let Some(held) = self.jobs.get_mut(&job) {
                    held.stage = Stage::Waiting;
                    held.failed += 1;
                    if held.failed >= RUNNER_STARTS {
                        self.jobs.remove(&job);
                        let mut effects = vec![WaitingEffect::Lost(job)];
                        self.tell(WaitingEffect::TellOver(job), &mut effects);
                        return effects;
                    }
                }
            }
            WaitingEvent::Looked(contenders) => return self.looked(contenders, now),
            WaitingEvent::NotSeen => self.later(now),
            WaitingEvent::Due => return self.due(now),
        }
        Vec::new()
    }

    fn came(&mut self, job: JobId, now: Instant) {
        let new = Held { since: now, stage: Stage::Waiting, sync: true, failed: 0, host: None, lost: None };
        self.jobs.entry(job).or_insert(new);
        // With every permit taken there is nothing to be seen that an end of one of them will not show.
        self.look |= !self.full;
    }

    fn came_again(&mut self, job: JobId, now: Instant) -> Vec<WaitingEffect> {
        self.came(job, now);
        match self.jobs.get_mut(&job) {
            Some(Held { stage: stage @ Stage::Offered(_), .. }) => {
                *stage = Stage::Offered(now);
                vec![WaitingEffect::Offer(job)]
            }
            _ => Vec::new(),
        }
    }

    fn refused(&mut self, job: JobId) -> Vec<WaitingEffect> {
        match self.jobs.get_mut(&job) {
            Some(held) if matches!(held.stage, Stage::Offered(_)) => {
                held.stage = Stage::Started;
                vec![WaitingEffect::Start(job)]
            }
            _ => Vec::new(),
        }
    }

    fn host_went(&mut self, now: Instant) -> Vec<WaitingEffect> {
        self.host_gone.get_or_insert(now);
        for held in self.jobs.values_mut() {
            held.lost.get_or_insert(now);
        }
        self.look = true;
        // Whether it had begun to start them nobody knows; the job's lock decides between its runner and ours.
        self.take_over(|_| true)
    }

    fn take_over(&mut self, since: impl Fn(Instant) -> bool) -> Vec<WaitingEffect> {
        let mut effects = Vec::new();
        for (job, held) in &mut self.jobs {
            if matches!(held.stage, Stage::Offered(at) if since(at)) {
                held.stage = Stage::Started;
                effects.push(WaitingEffect::Start(*job));
            }
        }
        effects
    }

    fn due(&mut self, now: Instant) -> Vec<WaitingEffect> {
        if self.again_at.is_some_and(|at| at <= now) {
            self.again_at = None;
            self.look = true;
        }
        if self.jobs.values().any(|held| self.callers_lost_at(held).is_some_and(|at| at <= now)) {
            // The store knows which of them were handed over meanwhile.
            self.look = true;
        }
        let mut effects = self.take_over(|at| at + OFFER_LIMIT <= now);
        let expired = |held: &Held| held.stage == Stage::Waiting && held.since + QUEUE_BOUND <= now;
        let old: Vec<JobId> = self.jobs.iter().filter(|(_, held)| expired(held)).map(|(job, _)| *job).collect();
        for job in old {
            self.jobs.remove(&job);
            effects.push(WaitingEffect::Expire(job));
            self.tell(WaitingEffect::TellOver(job), &mut effects);
        }
        effects
    }

    fn looked(&mut self, contenders: Vec<Contender>, now: Instant) -> Vec<WaitingEffect> {
        let mut effects = Vec::new();
        self.forget_the_over(&contenders, now, &mut effects);
        let plan = plan(&contenders, self.limit);
        let mut under_way = false;
        let mine: Vec<JobId> = plan.order().iter().copied().filter(|job| self.jobs.contains_key(job)).collect();
        for &job in plan.order() {
            if plan.position(job) != Some(Position::Start) {
                continue;
            }
            under_way = true;
            let Some(held) = self.jobs.get_mut(&job).filter(|held| held.stage == Stage::Waiting) else { continue };
            if self.host_gone.is_some() {
                held.stage = Stage::Started;
                effects.push(WaitingEffect::Start(job));
            } else {
                held.stage = Stage::Offered(now);
                effects.push(WaitingEffect::Offer(job));
            }
        }
        let running = || contenders.iter().filter(|one| one.alive && one.row.state == JobState::Running);
        for run in running() {
            let job = run.row.job;
            if self.freed.contains(&job) {
                // Its lock was free a moment ago and is held again: somebody settles it.
                under_way = true;
            } else if self.watched.insert(job) {
                effects.push(WaitingEffect::Watch(job));
            }
        }
        self.freed.clear();
        self.full = !under_way && running().count() >= self.limit;
        if mine != self.order {
            self.order = mine;
            self.tell(WaitingEffect::TellMoved, &mut effects);
        }
        if under_way && !self.jobs.is_empty() {
            self.later(now);
        } else {
            self.again_at = None;
            self.pause = AGAIN_FIRST;
        }
        effects
    }

    /// Lets go of what is not queued any more, and ends what is to be ended.
    fn forget_the_over(&mut self, contenders: &[Contender], now: Instant, effects: &mut Vec<WaitingEffect>) {
        let mut queued = HashSet::new();
        for row in contenders.iter().map(|one| &one.row).filter(|row| row.state == JobState::Queued) {
            let Some(held) = self.jobs.get_mut(&row.job) else { continue };
            held.sync = row.mode == JobMode::Sync;
            let host = std::mem::replace(&mut held.host, row.host);
            if let (true, true, Some(now_of)) = (self.host_gone.is_some(), host != row.host, row.host) {
                // It was adopted, or is seen for the first time since our own host is gone: its host's lock says the rest.
                held.lost = None;
                if !self.orphan_grace.is_zero() && self.hosts.insert(now_of) {
                    effects.push(WaitingEffect::WatchHost(now_of));
                }
            }
            let held = *held;
            let lost = self.callers_lost_at(&held).is_some_and(|at| at <= now).then_some(CancelReason::CallerLost);
            let reason = row.cancel_requested.or(lost);
            // What was offered or started is with a runner, which finds the request itself.
            match reason.filter(|_| held.stage == Stage::Waiting) {
                Some(reason) => effects.push(WaitingEffect::Cancel(row.job, reason)),
                None => drop(queued.insert(row.job)),
            }
        }
        let over: Vec<JobId> = self.jobs.keys().copied().filter(|job| !queued.contains(job)).collect();
        for job in over {
            // A host that was offered it knows.
            let told = self.jobs.remove(&job).is_some_and(|held| held.stage == Stage::Waiting);
            if told {
                self.tell(WaitingEffect::TellOver(job), effects);
            }
        }
    }

    fn tell(&self, word: WaitingEffect, effects: &mut Vec<WaitingEffect>) {
        if self.host_gone.is_none() {
            effects.push(word);
        }
    }

    /// Looks again when what is under way may have come to something, less and less often.
    fn later(&mut self, now: Instant) {
        self.again_at = Some(now + self.pause);
        self.pause = (self.pause * 2).min(AGAIN_MOST);
    }

    /// Looks again as soon as a runner may have begun.
    fn soon(&mut self, now: Instant) {
        self.pause = AGAIN_FIRST;
        if !self.jobs.is_empty() {
            self.later(now);
        }
    }
}

#[cfg(test)]
mod tests;
