//! What a host of a fleet decides: when it says that it lives, claims, starts, tells and looks.
//!
//! Owns: its lease by its own steady clock, the jobs it has claimed and how far each is, what is under way. May not know: the fleet,
//! the store, the clock. [`HostCore::step`] takes what happened and says what is to be done; it never waits.
//!
//! ```text
//!  claimed ──Note──▶ noted ──Start──▶ starting ──Started──▶ Accept ──▶ here ──Follow──▶ over ──Tell──▶ told ──Forget──▶
//!              in the store │   ▲    │  ▲ LeaseOver, no answer: asked again after a renewal
//!                        Prepare┘    └── refused ──Forget──▶
//!          where it may need a clone; there is none ──Tell──▶
//! ```
//!
//! Invariants: (1) a job is accepted in the store only after its start was confirmed (L19), so no agent is started before; (2) no
//! start is asked for while the lease, counted from before its renewal was asked, is over; (3) an outcome is told until it was
//! answered, and only then forgotten; (4) renewals, claims, sweeps and readings are under way once each (L9); (5) no more jobs are
//! claimed than there is room for; (6) a host whose claim had no answer goes on as another one, and the first one's lease is renewed
//! for as long as this machine runs jobs of it, as that of a host of this machine that is gone; what nobody here heard of is given to
//! others all the same, because a claim has a time of its own.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{FleetJobId, HostId};
use crate::fleet::{
    ClaimedJob, Fence, FleetClaim, FleetError, FleetLease, FleetRenewed, FleetStart, FleetState, MOST_CLAIMED, Ticket,
};
use crate::jobs::fleet_runs::FleetRun;
use crate::jobs::{JobOutcome, JobRecord, JobState};

/// Everything that can happen to it.
#[derive(Debug)]
pub(super) enum HostEvent {
    /// Time has passed.
    Due,
    /// Something in the fleet may have changed.
    Rang,
    /// A renewal that was asked for at this time was answered.
    Renewed { host: HostId, asked: Instant, answer: Result<FleetRenewed, FleetError> },
    /// A claim was answered; the places that were free for it.
    Claimed(Result<FleetClaim, FleetError>),
    /// The store knows by which claim a job is here, or cannot be told.
    Noted { job: FleetJobId, noted: bool },
    /// What a job needs before its start is there, or is not to be had.
    Prepared { job: FleetJobId, answer: Result<(), Fault> },
    /// A start was answered.
    Started { job: FleetJobId, answer: Result<FleetStart, FleetError> },
    /// This machine's store has accepted a job, or refused it.
    Accepted { job: FleetJobId, answer: Result<(), Fault> },
    /// A job of this machine is over.
    Over { job: FleetJobId, record: Box<JobRecord> },
    /// How a job ended was told, or could not be.
    Told { job: FleetJobId, told: bool },
    /// A job's request to be cancelled was looked for.
    Looked { job: FleetJobId, cancel: bool },
    /// A sweep is over.
    Swept,
    /// The claims the store has, each with its job where that is known.
    Read(Vec<(FleetRun, Option<Box<JobRecord>>)>),
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum HostEffect {
    /// Say that a host lives, and what it runs: this one, or one whose jobs this machine still runs.
    Renew { host: HostId, running: Vec<Ticket> },
    /// Claim as many as there is room for beside so many that are on their way.
    Claim { host: HostId, on_their_way: usize },
    /// Note in the store by which claim a job is here.
    Note(FleetRun),
    /// Make what a job needs before its start: a clone of its commit, where its workspace is not here.
    Prepare(Box<ClaimedJob>),
    /// Ask whether a job may be started.
    Start(Ticket),
    /// Accept a job in the store, which runs it.
    Accept(Box<ClaimedJob>),
    /// Tell when a job of this machine is over.
    Follow(FleetJobId),
    /// Tell the fleet how a job ended.
    Tell { ticket: Ticket, end: FleetState, outcome: Box<JobOutcome>, account: String },
    /// Forget a claim.
    Forget(FleetJobId),
    /// Look whether a job is to be cancelled.
    Look(FleetJobId),
    /// Cancel a job of this machine.
    Cancel(FleetJobId),
    /// Look for what hosts that are gone have left.
    Sweep,
    /// Read the claims the store has.
    Read,
}

/// How far a job is.
#[derive(Debug)]
enum Stage {
    /// The store is told.
    Noting(Asking),
    /// What it needs is made. Nobody else waits for it: the job is given to another host when this one is gone.
    Preparing(Asking),
    /// The fleet is asked whether it may be started.
    Starting(Asking),
    /// Its start was confirmed, and the store is asked to accept it.
    Accepting(Asking),
    /// This machine's store has it.
    Here { cancelled: bool },
    /// It is over, and the fleet is told.
    Telling { end: FleetState, outcome: Box<JobOutcome>, asking: Asking },
}

/// Whether something is asked that a stage needs an answer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    /// It is to be asked.
    Now,
    /// It was asked, and is not answered.
    Underway,
    /// It was answered by nothing that helps; it is asked again at the next look.
    Later,
}

impl Asking {
    fn begins(&mut self, looks: bool) -> bool {
        let begins = *self == Self::Now || (*self == Self::Later && looks);
        if begins {
            *self = Self::Underway;
        }
        begins
    }
}

#[derive(Debug)]
struct Run {
    ticket: Ticket,
    account: String,
    /// What was asked, until the store has it.
    claimed: Option<Box<ClaimedJob>>,
    stage: Stage,
}

/// What is under way, and when it is due again.
#[derive(Debug)]
struct Chore {
    due: Instant,
    underway: bool,
}

impl Chore {
    const fn new(due: Instant) -> Self {
        Self { due, underway: false }
    }

    fn begins(&mut self, now: Instant) -> bool {
        let begins = !self.underway && self.due <= now;
        self.underway |= begins;
        begins
    }

    fn over(&mut self, due: Instant) {
        (self.underway, self.due) = (false, due);
    }

    fn within(&mut self, due: Instant) {
        self.due = self.due.min(due);
    }
}

/// A host of a fleet.
#[derive(Debug)]
pub(super) struct HostCore {
    host: HostId,
    lease_until: Option<Instant>,
    /// As it was told last.
    lease: FleetLease,
    drained: bool,
    quiet: bool,
    runs: BTreeMap<FleetJobId, Run>,
    renewal: Chore,
    claim: Chore,
    look: Instant,
    sweep: Chore,
    read: Chore,
    /// Something rang while a claim was under way.
    rang: bool,
    /// Whether the fleet answered when it was last asked.
    reached: bool,
}

impl HostCore {
    pub(super) fn new(host: HostId, now: Instant) -> Self {
        let lease = FleetLease::default();
        Self {
            host,
            lease_until: None,
            lease,
            drained: false,
            quiet: false,
            runs: BTreeMap::new(),
            renewal: Chore::new(now),
            claim: Chore::new(now),
            look: now + lease.look_every(),
            sweep: Chore::new(now + lease.sweep_every()),
            read: Chore::new(now),
            rang: false,
            reached: true,
        }
    }

    /// When it wants to be woken at the latest.
    pub(super) fn due(&self) -> Instant {
        let chores = [&self.renewal, &self.claim, &self.sweep, &self.read];
        let next = chores.into_iter().filter(|chore| !chore.underway).map(|chore| chore.due).min();
        next.map_or(self.look, |next| next.min(self.look))
    }

    /// Whether the fleet answered when it was last asked.
    pub(super) const fn is_reached(&self) -> bool {
        self.reached
    }

    fn has_lease(&self, now: Instant) -> bool {
        self.lease_until.is_some_and(|until| until > now)
    }

    /// Takes what happened; adds what is to be done, in this order.
    pub(super) fn step(&mut self, event: HostEvent, now: Instant, effects: &mut Vec<HostEffect>) {
        match event {
            HostEvent::Due => {}
            HostEvent::Rang => {
                self.rang = self.claim.underway;
                self.claim.due = self.claim.due.min(now);
                self.look = now;
            }
            HostEvent::Renewed { host, asked, answer } => {
                if host == self.host {
                    self.renewed(asked, answer, now);
                }
            }
            HostEvent::Claimed(answer) => self.claimed(answer, now),
            HostEvent::Noted { job, noted } => match noted {
                true => self.to(job, Stage::Noting(Asking::Now), |run| match run.may_clone() {
                    true => Stage::Preparing(Asking::Now),
                    false => Stage::Starting(Asking::Now),
                }),
                false => self.again(job),
            },
            HostEvent::Prepared { job, answer } => self.prepared(job, answer),
            HostEvent::Started { job, answer } => self.started(job, answer, now, effects),
            HostEvent::Accepted { job, answer } => self.accepted(job, answer, effects),
            HostEvent::Over { job, record } => self.over(job, *record),
            HostEvent::Told { job, told } => match told {
                true => self.drop_run(job, effects),
                false => self.again(job),
            },
            HostEvent::Looked { job, cancel } => {
                if let Some(Run { stage: Stage::Here { cancelled }, .. }) = self.runs.get_mut(&job)
                    && cancel
                    && !std::mem::replace(cancelled, true)
                {
                    effects.push(HostEffect::Cancel(job));
                }
            }
            HostEvent::Swept => self.sweep.over(now + self.lease.sweep_every()),
            HostEvent::Read(runs) => self.read(runs, now, effects),
        }
        self.go_on(now, effects);
    }

    fn renewed(&mut self, asked: Instant, answer: Result<FleetRenewed, FleetError>, now: Instant) {
        self.reached = answer.is_ok();
        match answer {
            Ok(renewed) => {
                if !self.has_lease(now) {
                    // What waited for it is asked again.
                    self.look = now;
                    self.claim.due = self.claim.due.min(now);
                }
                self.lease_until = Some(asked + renewed.lease.get());
                if std::mem::replace(&mut self.lease, renewed.lease) > renewed.lease {
                    // What was to be done less often is due sooner.
                    let soon = now + renewed.lease.sweep_every();
                    self.sweep.within(soon);
                    self.read.within(soon);
                    self.claim.within(now + renewed.lease.look_every());
                }
                // A fleet whose history changed wants to hear at once what is run here; it was told with this renewal unless
                // that is news.
                let again = renewed.quiet && !self.quiet;
                (self.drained, self.quiet) = (renewed.drained, renewed.quiet);
                self.renewal.over(if again { now } else { now + renewed.lease.renew_every() });
            }
            Err(_) => self.renewal.over(now + self.lease.look_every()),
        }
    }

    fn claimed(&mut self, answer: Result<FleetClaim, FleetError>, now: Instant) {
        let given = match answer {
            Ok(FleetClaim::Claimed(given)) => given,
            // What was given then is nobody's: as somebody else this host lets the lease of that one end, so that others have it.
            Err(FleetError::Unsure { .. }) => {
                self.host = HostId::random();
                (self.lease_until, self.renewal) = (None, Chore::new(now));
                Vec::new()
            }
            Ok(FleetClaim::NotNow(_)) | Err(_) => Vec::new(),
        };
        let more = !given.is_empty() || std::mem::take(&mut self.rang);
        self.claim.over(if more { now } else { now + self.lease.look_every() });
        for job in given {
            let ticket = job.ticket;
            let account = job.account.clone();
            let run = Run { ticket, account, claimed: Some(Box::new(job)), stage: Stage::Noting(Asking::Now) };
            self.runs.insert(ticket.job, run);
        }
    }

    fn prepared(&mut self, job: FleetJobId, answer: Result<(), Fault>) {
        match answer {
            Ok(()) => self.to(job, Stage::Preparing(Asking::Underway), |_| Stage::Starting(Asking::Now)),
            // It says nothing of the clone; one that is there by now is found when it is asked again.
            Err(fault) if fault.code == FaultCode::StoreUnavailable => self.again(job),
            Err(fault) => self.to(job, Stage::Preparing(Asking::Underway), |_| failed(fault)),
        }
    }

    fn started(
        &mut self,
        job: FleetJobId,
        answer: Result<FleetStart, FleetError>,
        now: Instant,
        effects: &mut Vec<HostEffect>,
    ) {
        match answer {
            Ok(FleetStart::Started) => {
                self.to(job, Stage::Starting(Asking::Underway), |_| Stage::Accepting(Asking::Now));
            }
            Ok(FleetStart::Refused { .. } | FleetStart::NoJob) => self.drop_run(job, effects),
            Ok(FleetStart::LeaseOver) => {
                self.lease_until = None;
                self.renewal.due = now;
                self.again(job);
            }
            // It may have been written: asked again with the same ticket, the fleet says so.
            Err(_) => self.again(job),
        }
    }

    fn accepted(&mut self, job: FleetJobId, answer: Result<(), Fault>, effects: &mut Vec<HostEffect>) {
        let Some(run) = self.runs.get_mut(&job) else { return };
        if !matches!(run.stage, Stage::Accepting(_)) {
            return;
        }
        match answer {
            Ok(()) => {
                run.claimed = None;
                run.stage = Stage::Here { cancelled: false };
                effects.push(HostEffect::Follow(job));
            }
            // It may have been accepted all the same; asking again joins.
            Err(fault) if fault.code == FaultCode::StoreUnavailable => self.again(job),
            Err(fault) => run.stage = failed(fault),
        }
    }

    fn over(&mut self, job: FleetJobId, record: JobRecord) {
        let Some(run) = self.runs.get_mut(&job) else { return };
        if matches!(run.stage, Stage::Telling { .. }) {
            return;
        }
        let end = match record.state {
            JobState::Succeeded => FleetState::Succeeded,
            JobState::Cancelled => FleetState::Cancelled,
            // Its runner, or the exec server its agent ran by, was lost; this machine has seen to it that nothing of it runs.
            JobState::Interrupted => FleetState::Interrupted,
            JobState::Queued | JobState::Running | JobState::Failed => FleetState::Failed,
        };
        let mut outcome = Box::new(record.outcome.unwrap_or_default());
        // Everybody of the fleet sees it, and the words of a command may hold what is theirs alone: its program says enough.
        outcome.machine = record.request.machine.and_then(|target| target.split(' ').next().map(str::to_owned));
        if let Some(of) = record.request.clone_of {
            // The directory its session was had in is gone.
            (outcome.clone_of, outcome.resumable) = (Some(of), Some(false));
        }
        run.stage = Stage::Telling { end, outcome, asking: Asking::Now };
    }

    /// Takes in what the store knows and this core does not: claims of an earlier incarnation or of a host that is gone.
    fn read(&mut self, runs: Vec<(FleetRun, Option<Box<JobRecord>>)>, now: Instant, effects: &mut Vec<HostEffect>) {
        self.read.over(now + self.lease.sweep_every());
        for (FleetRun { job, host, fence }, record) in runs {
            if self.runs.contains_key(&job) {
                continue;
            }
            // What never came so far runs nowhere: its lease's end gives it to others, or says what became of it.
            let Some(record) = record else { continue };
            let ticket = Ticket { job, host, fence: Fence(fence) };
            let stage = Stage::Here { cancelled: false };
            self.runs.insert(job, Run { ticket, account: String::new(), claimed: None, stage });
            if record.state.is_terminal() {
                self.over(job, *record);
            } else {
                effects.push(HostEffect::Follow(job));
            }
        }
    }

    /// What is asked again at the next occasion.
    fn again(&mut self, job: FleetJobId) {
        match self.runs.get_mut(&job).map(|run| &mut run.stage) {
            Some(
                Stage::Noting(asking)
                | Stage::Preparing(asking)
                | Stage::Starting(asking)
                | Stage::Accepting(asking)
                | Stage::Telling { asking, .. },
            ) => {
                *asking = Asking::Later;
            }
            Some(Stage::Here { .. }) | None => {}
        }
    }

    fn to(&mut self, job: FleetJobId, from: Stage, to: impl FnOnce(&Run) -> Stage) {
        if let Some(run) = self.runs.get_mut(&job)
            && std::mem::discriminant(&run.stage) == std::mem::discriminant(&from)
        {
            run.stage = to(run);
        }
    }

    fn drop_run(&mut self, job: FleetJobId, effects: &mut Vec<HostEffect>) {
        if self.runs.remove(&job).is_some() {
            effects.push(HostEffect::Forget(job));
        }
    }

    /// The tickets for which an agent may have been started, by the host that has them. This one is always among them.
    fn begun(&self) -> BTreeMap<HostId, Vec<Ticket>> {
        let mut begun = BTreeMap::from([(self.host, Vec::new())]);
        for run in self.runs.values().filter(|run| run.is_begun()) {
            begun.entry(run.ticket.host).or_default().push(run.ticket);
        }
        begun
    }

    /// What is due now.
    fn go_on(&mut self, now: Instant, effects: &mut Vec<HostEffect>) {
        if self.read.begins(now) {
            effects.push(HostEffect::Read);
        }
        if self.renewal.begins(now) {
            effects.extend(self.begun().into_iter().map(|(host, running)| HostEffect::Renew { host, running }));
        }
        let (has_lease, looks) = (self.has_lease(now), self.look <= now);
        if looks {
            self.look = now + self.lease.look_every();
        }
        let on_their_way = self.runs.values().filter(|run| run.is_on_its_way()).count();
        let may_claim = has_lease && !self.drained && !self.quiet && on_their_way < MOST_CLAIMED;
        if may_claim && self.claim.begins(now) {
            effects.push(HostEffect::Claim { host: self.host, on_their_way });
        } else if !may_claim && !self.claim.underway && self.claim.due <= now {
            self.claim.due = now + self.lease.look_every();
        }
        if self.sweep.begins(now) {
            effects.push(HostEffect::Sweep);
        }
        for (job, run) in &mut self.runs {
            run.go_on(*job, has_lease, looks, effects);
        }
    }
}

/// A job for which nothing was started, and nothing will be.
fn failed(fault: Fault) -> Stage {
    let outcome = Box::new(JobOutcome { fault: Some(fault), ..JobOutcome::default() });
    Stage::Telling { end: FleetState::Failed, outcome, asking: Asking::Now }
}

impl Run {
    /// Whether an agent may have been started for it.
    const fn is_begun(&self) -> bool {
        !matches!(self.stage, Stage::Noting(_) | Stage::Preparing(_) | Stage::Starting(_))
    }

    /// Whether it takes a place that this machine's store does not know of yet.
    const fn is_on_its_way(&self) -> bool {
        matches!(self.stage, Stage::Noting(_) | Stage::Preparing(_) | Stage::Starting(_) | Stage::Accepting(_))
    }

    /// Whether it may run in a clone.
    fn may_clone(&self) -> bool {
        self.claimed.as_ref().is_some_and(|claimed| claimed.request.clone_of.is_some())
    }

    fn go_on(&mut self, job: FleetJobId, has_lease: bool, looks: bool, effects: &mut Vec<HostEffect>) {
        match &mut self.stage {
            Stage::Noting(asking) => {
                if asking.begins(looks) {
                    let Ticket { job, host, fence } = self.ticket;
                    effects.push(HostEffect::Note(FleetRun { job, host, fence: fence.0 }));
                }
            }
            Stage::Preparing(asking) => {
                if asking.begins(looks)
                    && let Some(claimed) = &self.claimed
                {
                    effects.push(HostEffect::Prepare(claimed.clone()));
                }
            }
            Stage::Starting(asking) => {
                if has_lease && asking.begins(looks) {
                    effects.push(HostEffect::Start(self.ticket));
                }
            }
            Stage::Accepting(asking) => {
                if asking.begins(looks)
                    && let Some(claimed) = &self.claimed
                {
                    effects.push(HostEffect::Accept(claimed.clone()));
                }
            }
            Stage::Here { cancelled } => {
                if looks && !*cancelled {
                    effects.push(HostEffect::Look(job));
                }
            }
            Stage::Telling { end, outcome, asking } => {
                if asking.begins(looks) {
                    let (end, outcome, account) = (*end, outcome.clone(), self.account.clone());
                    effects.push(HostEffect::Tell { ticket: self.ticket, end, outcome, account });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
