//! The whole fleet as one value that is stepped: what every backend has to do, without I/O.
//!
//! Owns: jobs, hosts, turns, caps, pauses and late outcomes, and what each event does to them. May not know: a clock, who asks, how
//! anything is stored. It is the fleet of tests, and what the statements of `postgres` are held to.
//!
//! Invariants: those of [`fleet`](super), and (1) an event that does not fit the state is answered and changes nothing (L16); (2)
//! equal events at equal times give equal verdicts, but for the numbers of fences.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::claiming::{CapScope, Claimant, FleetQueue, FleetRow, choose};
use super::job::{ClaimedJob, Fence, FleetState, FleetView, FrozenJob, LateOutcome, Ticket};
use super::labels::Needs;
use super::rows::{REQUEST_BYTES, json};
use super::{
    CLAIMED_MOST, ClaimAsk, ClaimRefusal, FleetAccept, FleetCancel, FleetClaim, FleetFinish, FleetLease, FleetRenewed,
    FleetStart, FleetSwept, HOST_KEPT, KEPT, LEASE, MOST_CLAIMED, MOST_QUEUED, PAUSE_MOST, QUIET, Renewal, RunFinish,
    SWEPT_AFTER, later,
};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{FleetJobId, HostId, UnixMillis};
use crate::jobs::{ConsultRequest, JobOutcome};

/// Everything that can happen to a fleet.
#[derive(Debug, Clone, PartialEq)]
pub enum FleetEvent {
    /// A user's host brought a job.
    AcceptAsked { job: Box<FrozenJob>, owner: String },
    /// A user's host asked for jobs.
    ClaimAsked { ask: ClaimAsk, user: String },
    /// A host is about to start what it claimed.
    StartAsked(Ticket),
    /// A host said that it lives.
    LeaseRenewed(Box<Renewal>),
    /// A host said how a run ended.
    RunEnded(Box<RunFinish>),
    /// Somebody looked for what is left over.
    SweepDue,
    /// Somebody wants a job's end.
    CancelAsked(FleetJobId),
    /// A cap was set, or lifted.
    CapSet { scope: CapScope, cap: Option<u64> },
    /// A host was told whether it may take jobs.
    DrainSet { host: HostId, drained: bool },
    /// The database went on from another point of its history.
    TimelineChanged,
}

/// What an event comes to.
#[derive(Debug, Clone, PartialEq)]
pub enum FleetVerdict {
    Accept(FleetAccept),
    Claim(FleetClaim),
    Start(FleetStart),
    Renew(FleetRenewed),
    Finish(FleetFinish),
    Sweep(FleetSwept),
    Cancel(FleetCancel),
    /// It is as it was said.
    Noted,
}

/// A fleet in memory.
#[derive(Debug, Clone, Default)]
pub struct FleetCore {
    jobs: BTreeMap<FleetJobId, CoreJob>,
    by_key: HashMap<(String, String), FleetJobId>,
    hosts: BTreeMap<HostId, CoreHost>,
    late: BTreeMap<(FleetJobId, Fence), LateOutcome>,
    /// The fence of each workspace's last claim.
    turns: HashMap<String, u64>,
    caps: BTreeMap<CapScope, u64>,
    /// Until when nothing is started.
    pauses: BTreeMap<CapScope, UnixMillis>,
    /// Draws of acceptances and claims.
    drawn: u64,
    quiet_until: Option<UnixMillis>,
}

#[derive(Debug, Clone)]
struct CoreJob {
    frozen: FrozenJob,
    owner: String,
    state: FleetState,
    turn: u64,
    fence: Option<Fence>,
    host: Option<HostId>,
    accepted: UnixMillis,
    claimed: Option<UnixMillis>,
    started: Option<UnixMillis>,
    ended: Option<UnixMillis>,
    hold_until: Option<UnixMillis>,
    cancel: bool,
    outcome: Option<JobOutcome>,
}

#[derive(Debug, Clone)]
struct CoreHost {
    said: Renewal,
    lease_until: UnixMillis,
    drained: bool,
}

impl FleetCore {
    /// Decides about one event.
    pub fn step(&mut self, event: FleetEvent, now: UnixMillis) -> FleetVerdict {
        match event {
            FleetEvent::AcceptAsked { job, owner } => FleetVerdict::Accept(self.accept(*job, owner, now)),
            FleetEvent::ClaimAsked { ask, user } => FleetVerdict::Claim(self.claim(&ask, user, now)),
            FleetEvent::StartAsked(ticket) => FleetVerdict::Start(self.start(ticket, now)),
            FleetEvent::LeaseRenewed(renewal) => FleetVerdict::Renew(self.renew(*renewal, now)),
            FleetEvent::RunEnded(finish) => FleetVerdict::Finish(self.finish(*finish, now)),
            FleetEvent::SweepDue => FleetVerdict::Sweep(self.sweep(now)),
            FleetEvent::CancelAsked(job) => FleetVerdict::Cancel(self.cancel(job, now)),
            FleetEvent::CapSet { scope, cap } => {
                match cap {
                    Some(cap) => self.caps.insert(scope, cap),
                    None => self.caps.remove(&scope),
                };
                FleetVerdict::Noted
            }
            FleetEvent::DrainSet { host, drained } => {
                if let Some(host) = self.hosts.get_mut(&host) {
                    host.drained = drained;
                }
                FleetVerdict::Noted
            }
            FleetEvent::TimelineChanged => {
                self.quiet_until = Some(later(now, QUIET));
                FleetVerdict::Noted
            }
        }
    }

    /// How a job stands.
    #[must_use]
    pub fn view(&self, job: FleetJobId) -> Option<FleetView> {
        let found = self.jobs.get(&job)?;
        let late = self.late.range((job, Fence(0))..=(job, Fence(u64::MAX))).map(|(_, late)| late.clone());
        Some(FleetView {
            job,
            state: found.state,
            agent: found.frozen.agent.clone(),
            workspace: found.frozen.workspace.clone(),
            host: found.host,
            host_name: found.host.and_then(|host| self.hosts.get(&host)).map(|host| host.said.name.clone()),
            may_clone: Needs::read(&found.frozen.needs).is_ok_and(|needs| !needs.clone.is_empty()),
            cancel_requested: found.cancel,
            accepted: found.accepted,
            outcome: found.outcome.clone(),
            late: late.collect(),
        })
    }

    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }

    fn is_quiet(&self, now: UnixMillis) -> bool {
        self.quiet_until.is_some_and(|until| until > now)
    }

    fn accept(&mut self, frozen: FrozenJob, owner: String, now: UnixMillis) -> FleetAccept {
        let key = (frozen.workspace.clone(), frozen.request_key.clone());
        if let Some(known) = self.by_key.get(&key) {
            let same = self.jobs.get(known).is_some_and(|job| job.frozen.digest == frozen.digest);
            return if same { FleetAccept::Joined(*known) } else { FleetAccept::Conflict(*known) };
        }
        let queued = self.jobs.values().filter(|job| job.state == FleetState::Queued).count();
        if queued >= MOST_QUEUED {
            return FleetAccept::QueueFull { queued };
        }
        let (id, turn) = (frozen.id, self.draw());
        let job = CoreJob {
            frozen,
            owner,
            state: FleetState::Queued,
            turn,
            fence: None,
            host: None,
            accepted: now,
            claimed: None,
            started: None,
            ended: None,
            hold_until: None,
            cancel: false,
            outcome: None,
        };
        self.jobs.insert(id, job);
        self.by_key.insert(key, id);
        FleetAccept::Inserted(id)
    }

    fn claim(&mut self, ask: &ClaimAsk, user: String, now: UnixMillis) -> FleetClaim {
        let Some(host) = self.hosts.get(&ask.host).filter(|host| host.lease_until > now) else {
            return FleetClaim::NotNow(ClaimRefusal::LeaseOver);
        };
        if self.is_quiet(now) {
            return FleetClaim::NotNow(ClaimRefusal::Quiet);
        }
        if host.drained {
            return FleetClaim::NotNow(ClaimRefusal::Drained);
        }
        let owners: Vec<String> = ask.accepts.iter().cloned().chain([user]).collect();
        let claimant = Claimant {
            host: ask.host,
            name: &host.said.name,
            state_id: &host.said.state_id,
            labels: &host.said.labels,
            owners: &owners,
            most: ask.most.min(MOST_CLAIMED),
        };
        let chosen = choose(&self.queue(now), &claimant);
        FleetClaim::Claimed(chosen.into_iter().filter_map(|job| self.give(job, ask.host, now)).collect())
    }

    fn give(&mut self, job: FleetJobId, host: HostId, now: UnixMillis) -> Option<ClaimedJob> {
        let found = self.jobs.get(&job)?;
        let request: ConsultRequest = json("request", &found.frozen.request, REQUEST_BYTES).ok()?;
        let fence = Fence(self.draw());
        let job = self.jobs.get_mut(&job)?;
        job.state = job.state.advance(FleetState::Claimed)?;
        (job.fence, job.host, job.claimed) = (Some(fence), Some(host), Some(now));
        self.turns.insert(job.frozen.workspace.clone(), fence.0);
        let ticket = Ticket { job: job.frozen.id, host, fence };
        let FrozenJob { workspace, account, trace, .. } = job.frozen.clone();
        Some(ClaimedJob { ticket, workspace, account, request, trace })
    }

    /// What a claim looks at.
    fn queue(&self, now: UnixMillis) -> FleetQueue {
        let counts = |job: &&CoreJob| {
            !job.state.is_terminal()
                || (job.state == FleetState::Interrupted && job.hold_until.is_some_and(|until| until > now))
        };
        let row = |job: &CoreJob| FleetRow {
            job: job.frozen.id,
            state: job.state,
            turn: job.turn,
            workspace: job.frozen.workspace.clone(),
            workspace_served: self.turns.get(&job.frozen.workspace).copied().unwrap_or(0),
            agent: job.frozen.agent.clone(),
            account: job.frozen.account.clone(),
            session: job.frozen.session_key(),
            needs: Needs::read(&job.frozen.needs).unwrap_or_default(),
            pin_state: job.frozen.pin_state.clone(),
            waited: Duration::from_millis(now.since(job.accepted)),
            host: job.host,
            host_name: job.host.and_then(|host| self.hosts.get(&host)).map(|host| host.said.name.clone()),
            owner: job.owner.clone(),
        };
        let paused = self.pauses.iter().filter(|(_, until)| **until > now).map(|(scope, _)| scope.clone());
        FleetQueue {
            rows: self.jobs.values().filter(counts).map(row).collect(),
            unread: 0,
            unseen: BTreeMap::new(),
            caps: self.caps.clone(),
            paused: paused.collect(),
        }
    }

    fn start(&mut self, ticket: Ticket, now: UnixMillis) -> FleetStart {
        let has_lease = self.hosts.get(&ticket.host).is_some_and(|host| host.lease_until > now);
        let Some(job) = self.jobs.get_mut(&ticket.job) else { return FleetStart::NoJob };
        let state = job.state;
        match state {
            _ if !job.is_of(ticket) => FleetStart::Refused { state },
            FleetState::Running => FleetStart::Started,
            FleetState::Claimed if !has_lease => FleetStart::LeaseOver,
            FleetState::Claimed => {
                (job.state, job.started) = (FleetState::Running, Some(now));
                FleetStart::Started
            }
            _ => FleetStart::Refused { state },
        }
    }

    fn renew(&mut self, said: Renewal, now: UnixMillis) -> FleetRenewed {
        let quiet = self.is_quiet(now);
        let mut reasserted = 0;
        for ticket in said.running.iter().filter(|ticket| quiet && ticket.host == said.host) {
            // It is kept by whoever ran it that it was begun; the database went back to before that.
            let forgot = |job: &&mut CoreJob| {
                matches!(job.state, FleetState::Queued | FleetState::Claimed)
                    && job.fence.is_none_or(|fence| fence <= ticket.fence)
            };
            if let Some(job) = self.jobs.get_mut(&ticket.job).filter(forgot) {
                job.state = FleetState::Running;
                (job.fence, job.host, job.started) = (Some(ticket.fence), Some(ticket.host), Some(now));
                reasserted += 1;
            }
        }
        let drained = self.hosts.get(&said.host).is_some_and(|host| host.drained);
        self.hosts.insert(said.host, CoreHost { said, lease_until: later(now, LEASE), drained });
        FleetRenewed { drained, quiet, reasserted, lease: FleetLease::default() }
    }

    fn finish(&mut self, finish: RunFinish, now: UnixMillis) -> FleetFinish {
        let RunFinish { ticket, end, outcome, pause } = finish;
        if let Some(pause) = pause {
            let until = self.pauses.entry(pause.scope).or_insert(now);
            *until = later(now, pause.lasts.min(PAUSE_MOST)).max(*until);
        }
        let job = self.jobs.get_mut(&ticket.job);
        let known = job.as_ref().map(|job| job.state);
        if let Some(job) = job.filter(|job| job.is_of(ticket)) {
            // Of two that were interrupted the one its host told has an outcome.
            let told = matches!(job.state, FleetState::Succeeded | FleetState::Failed | FleetState::Cancelled)
                || (job.state == FleetState::Interrupted && job.outcome.is_some());
            if job.state.is_held()
                && let Some(state) = job.state.advance(end)
            {
                (job.state, job.ended, job.outcome) = (state, Some(now), Some(outcome));
                return FleetFinish::Finished;
            }
            if told {
                return FleetFinish::Already;
            }
            // Nothing of it runs any more.
            job.hold_until = None;
        }
        let late = LateOutcome { fence: ticket.fence, host: ticket.host, end, outcome, at: now };
        self.late.entry((ticket.job, ticket.fence)).or_insert(late);
        known.map_or(FleetFinish::NoJob, |state| FleetFinish::Late { state })
    }

    fn sweep(&mut self, now: UnixMillis) -> FleetSwept {
        if self.is_quiet(now) {
            return FleetSwept { quiet: true, ..FleetSwept::default() };
        }
        let mut swept = FleetSwept::default();
        let living: HashSet<HostId> = self
            .hosts
            .iter()
            .filter(|(_, host)| later(host.lease_until, SWEPT_AFTER) > now)
            .map(|(host, _)| *host)
            .collect();
        let mut by_turn: Vec<&mut CoreJob> = self.jobs.values_mut().collect();
        by_turn.sort_by_key(|job| job.turn);
        for job in by_turn {
            let lost = job.host.is_none_or(|host| !living.contains(&host));
            // A clone may take for as long as its job may run.
            let is_old = job.claimed.is_none_or(|claimed| later(claimed, CLAIMED_MOST) <= now) && !job.may_clone();
            if job.state == FleetState::Claimed && (lost || is_old) {
                job.state = FleetState::Queued;
                (job.fence, job.host) = (None, None);
                swept.requeued.push(job.frozen.id);
            } else if job.state == FleetState::Running && lost {
                (job.state, job.ended) = (FleetState::Interrupted, Some(now));
                job.hold_until = Some(later(job.started.unwrap_or(now), job.timeout()));
                swept.interrupted.push(job.frozen.id);
            }
            if job.state == FleetState::Queued && later(job.accepted, job.timeout()) <= now {
                (job.state, job.ended, job.outcome) = (FleetState::Failed, Some(now), Some(expired()));
                swept.expired.push(job.frozen.id);
            }
        }
        swept.forgotten = self.forget(now);
        swept
    }

    fn forget(&mut self, now: UnixMillis) -> usize {
        let before = self.jobs.len();
        self.jobs.retain(|_, job| {
            let held = job.hold_until.is_some_and(|until| until > now);
            held || job.ended.is_none_or(|ended| later(ended, KEPT) > now)
        });
        let jobs = &self.jobs;
        self.by_key.retain(|_, job| jobs.contains_key(job));
        self.late.retain(|_, late| later(late.at, KEPT) > now);
        self.pauses.retain(|_, until| *until > now);
        let used = |host: &HostId| {
            let counts = |job: &CoreJob| job.state.is_held() || job.hold_until.is_some_and(|until| until > now);
            jobs.values().any(|job| job.host == Some(*host) && counts(job))
        };
        self.hosts.retain(|id, host| later(host.lease_until, HOST_KEPT) > now || used(id));
        before - jobs.len()
    }

    fn cancel(&mut self, job: FleetJobId, now: UnixMillis) -> FleetCancel {
        let Some(job) = self.jobs.get_mut(&job) else { return FleetCancel::NoJob };
        match job.state {
            FleetState::Queued | FleetState::Claimed => {
                (job.state, job.ended, job.cancel) = (FleetState::Cancelled, Some(now), true);
                // A host that has a ticket for it has it no more: whatever it says of it is late.
                job.fence = None;
                FleetCancel::Ended
            }
            FleetState::Running => {
                job.cancel = true;
                FleetCancel::Asked
            }
            state => FleetCancel::Over { state },
        }
    }
}

impl CoreJob {
    fn is_of(&self, ticket: Ticket) -> bool {
        self.fence == Some(ticket.fence) && self.host == Some(ticket.host)
    }

    fn may_clone(&self) -> bool {
        Needs::read(&self.frozen.needs).is_ok_and(|needs| !needs.clone.is_empty())
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(self.frozen.timeout_s)
    }
}

/// What is said of a job that nobody took in its time.
#[must_use]
pub fn expired() -> JobOutcome {
    let detail = "no host that may run it took it in its time; nothing was started.";
    JobOutcome { fault: Some(Fault::new(FaultCode::DeadlineExceeded, detail)), ..JobOutcome::default() }
}
