//! What a host of a fleet does in each stage, and whatever happens: random schedules of several hosts over one fleet in memory.
//!
//! Laws: L3, L9, L19.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;

use super::*;
use crate::base::ids::UnixMillis;
use crate::fleet::labels::AgentLabel;
use crate::fleet::{
    ClaimAsk, Fleet as _, FleetAccept, LEASE, Labels, MemoryFleet, Needs, NewFleetJob, POLL, Renewal, RunFinish,
};
use crate::jobs::{CloneChanges, CloneOf, ConsultRequest};

fn record(state: JobState) -> Box<JobRecord> {
    let outcome = state.is_terminal().then(JobOutcome::default);
    Box::new(JobRecord { outcome, ..JobRecord::plain(state, ConsultRequest::new("why?").cwd("/w")) })
}

fn clone_of() -> CloneOf {
    CloneOf::new("ssh://h/a".into(), "c".into(), String::new(), CloneChanges::None, None, false)
}

/// A host, and what it was told to do last.
struct One {
    core: HostCore,
    now: Instant,
}

impl One {
    fn new() -> Self {
        let now = Instant::now();
        Self { core: HostCore::new(HostId::random(), now), now }
    }

    fn step(&mut self, event: HostEvent) -> Vec<HostEffect> {
        let mut effects = Vec::new();
        self.core.step(event, self.now, &mut effects);
        effects
    }

    fn lives(&mut self) -> Vec<HostEffect> {
        let answer = Ok(FleetRenewed { drained: false, quiet: false, reasserted: 0, lease: FleetLease::default() });
        self.step(HostEvent::Renewed { host: self.core.host, asked: self.now, answer })
    }

    /// A host that has its lease and is given one job.
    fn given() -> (Self, FleetJobId, Ticket) {
        Self::given_with(None)
    }

    fn given_with(clone_of: Option<CloneOf>) -> (Self, FleetJobId, Ticket) {
        let mut one = Self::new();
        one.step(HostEvent::Due);
        assert!(matches!(one.lives()[..], [HostEffect::Claim { on_their_way: 0, .. }]));
        let ticket = Ticket { job: FleetJobId::random(), host: one.core.host, fence: Fence(7) };
        let request = ConsultRequest { clone_of, ..ConsultRequest::new("why?").cwd("/w") };
        let claimed = ClaimedJob { ticket, workspace: "w".into(), account: String::new(), request, trace: None };
        let effects = one.step(HostEvent::Claimed(Ok(FleetClaim::Claimed(vec![claimed]))));
        assert!(
            matches!(effects[..], [HostEffect::Claim { on_their_way: 1, .. }, HostEffect::Note(run)] if run.fence == 7)
        );
        (one, ticket.job, ticket)
    }
}

#[test]
fn what_may_need_a_clone_is_prepared_before_its_start_is_asked_for_and_fails_without_one() {
    let of = clone_of();
    let (mut one, job, ticket) = One::given_with(Some(of.clone()));
    let effects = one.step(HostEvent::Noted { job, noted: true });
    assert!(matches!(&effects[..], [HostEffect::Prepare(claimed)] if claimed.ticket == ticket), "{effects:?}");
    one.now += POLL;
    let due = one.step(HostEvent::Due);
    assert!(!due.iter().any(|effect| matches!(effect, HostEffect::Prepare(_) | HostEffect::Start(_))), "{due:?}");
    assert!(one.core.begun()[&ticket.host].is_empty(), "nothing of it was begun");
    let effects = one.step(HostEvent::Prepared { job, answer: Ok(()) });
    assert!(matches!(effects[..], [HostEffect::Start(start)] if start == ticket));
    one.step(HostEvent::Started { job, answer: Ok(FleetStart::Started) });
    one.step(HostEvent::Accepted { job, answer: Ok(()) });
    let mut over = record(JobState::Succeeded);
    over.request.clone_of = Some(of.clone());
    let effects = one.step(HostEvent::Over { job, record: over });
    let [HostEffect::Tell { outcome, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((outcome.clone_of.as_ref(), outcome.resumable), (Some(&of), Some(false)));

    let (mut one, job, ticket) = One::given_with(Some(of));
    one.step(HostEvent::Noted { job, noted: true });
    let unanswered = Fault::new(FaultCode::StoreUnavailable, "nobody answered.");
    assert!(one.step(HostEvent::Prepared { job, answer: Err(unanswered) }).is_empty(), "not at once");
    one.now += POLL;
    assert!(
        one.step(HostEvent::Due).iter().any(|effect| matches!(effect, HostEffect::Prepare(_))),
        "it is asked again"
    );
    let fault = Fault::new(FaultCode::WorkspaceUnavailable, "no clone.");
    let effects = one.step(HostEvent::Prepared { job, answer: Err(fault) });
    let [HostEffect::Tell { ticket: told, end: FleetState::Failed, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(*told, ticket);
    let effects = one.step(HostEvent::Told { job, told: true });
    assert!(matches!(effects[..], [HostEffect::Forget(_)]), "and no agent was started");
}

#[test]
fn a_claimed_job_is_noted_then_started_then_accepted_then_told_and_then_forgotten() {
    let (mut one, job, ticket) = One::given();
    let effects = one.step(HostEvent::Noted { job, noted: true });
    assert!(matches!(effects[..], [HostEffect::Start(start)] if start == ticket));
    let effects = one.step(HostEvent::Started { job, answer: Ok(FleetStart::Started) });
    assert!(matches!(effects[..], [HostEffect::Accept(_)]), "{effects:?}");
    let effects = one.step(HostEvent::Accepted { job, answer: Ok(()) });
    assert!(matches!(effects[..], [HostEffect::Follow(_)]));
    let effects = one.step(HostEvent::Looked { job, cancel: true });
    assert!(matches!(effects[..], [HostEffect::Cancel(_)]));
    assert!(one.step(HostEvent::Looked { job, cancel: true }).is_empty(), "once is enough");
    let effects = one.step(HostEvent::Over { job, record: record(JobState::Cancelled) });
    assert!(matches!(&effects[..], [HostEffect::Tell { end: FleetState::Cancelled, .. }]));
    assert!(one.step(HostEvent::Told { job, told: false }).is_empty(), "not at once");
    one.now += POLL;
    assert!(one.step(HostEvent::Due).iter().any(|effect| matches!(effect, HostEffect::Tell { .. })));
    let effects = one.step(HostEvent::Told { job, told: true });
    assert!(matches!(effects[..], [HostEffect::Forget(_)]) && one.core.runs.is_empty());
}

#[test]
fn a_run_ends_in_the_fleet_as_it_ended_on_its_machine() {
    for (state, told) in [
        (JobState::Succeeded, FleetState::Succeeded),
        (JobState::Failed, FleetState::Failed),
        (JobState::Cancelled, FleetState::Cancelled),
        // Its runner was lost, or the exec server by which its agent was reached.
        (JobState::Interrupted, FleetState::Interrupted),
    ] {
        let (mut one, job, _) = One::given();
        one.step(HostEvent::Noted { job, noted: true });
        one.step(HostEvent::Started { job, answer: Ok(FleetStart::Started) });
        one.step(HostEvent::Accepted { job, answer: Ok(()) });
        let effects = one.step(HostEvent::Over { job, record: record(state) });
        let [HostEffect::Tell { end, .. }] = &effects[..] else { panic!("{effects:?}") };
        assert_eq!(*end, told, "{state:?}");
    }
}

#[test]
fn a_fleet_with_a_shorter_lease_has_everything_done_as_often_as_that_asks() {
    let mut one = One::new();
    one.step(HostEvent::Due);
    let lease = FleetLease::of_millis(4_000);
    let renewed = FleetRenewed { drained: false, quiet: false, reasserted: 0, lease };
    one.step(HostEvent::Read(Vec::new()));
    one.step(HostEvent::Renewed { host: one.core.host, asked: one.now, answer: Ok(renewed) });
    one.step(HostEvent::Claimed(Ok(FleetClaim::Claimed(Vec::new()))));
    assert_eq!(one.core.lease_until, Some(one.now + lease.get()));
    one.now += lease.renew_every();
    let effects = one.step(HostEvent::Due);
    assert!(matches!(effects[..], [HostEffect::Renew { .. }, HostEffect::Claim { .. }]), "{effects:?}");
    one.now += lease.sweep_every() - lease.renew_every();
    let effects = one.step(HostEvent::Due);
    assert!(matches!(effects[..], [HostEffect::Read, HostEffect::Sweep]), "{effects:?}");
    one.now += lease.get();
    assert!(!one.core.has_lease(one.now), "nobody said since that it lives");
}

#[test]
fn nothing_is_accepted_whose_start_was_refused_is_not_known_or_was_asked_without_a_lease() {
    let gone = || FleetError::Unsure { detail: "cut".into() };
    for (answer, forgotten) in [
        (Ok(FleetStart::Refused { state: FleetState::Queued }), true),
        (Ok(FleetStart::NoJob), true),
        (Ok(FleetStart::LeaseOver), false),
        (Err(gone()), false),
    ] {
        let (mut one, job, ticket) = One::given();
        one.step(HostEvent::Noted { job, noted: true });
        let effects = one.step(HostEvent::Started { job, answer });
        assert!(!effects.iter().any(|effect| matches!(effect, HostEffect::Accept(_) | HostEffect::Start(_))));
        assert_eq!(effects.iter().any(|effect| matches!(effect, HostEffect::Forget(_))), forgotten, "{effects:?}");
        one.now += POLL;
        let mut effects = one.step(HostEvent::Due);
        effects.extend(one.lives());
        let asked = effects.iter().filter(|effect| matches!(effect, HostEffect::Start(start) if *start == ticket));
        assert_eq!(asked.count(), usize::from(!forgotten), "the same ticket again");
    }
    let (mut one, job, _) = One::given();
    one.now += LEASE;
    assert!(!one.step(HostEvent::Noted { job, noted: true }).iter().any(|e| matches!(e, HostEffect::Start(_))));
    let (mut one, job, _) = One::given();
    assert!(!one.step(HostEvent::Noted { job, noted: false }).iter().any(|e| matches!(e, HostEffect::Start(_))));
    one.now += POLL;
    assert!(one.step(HostEvent::Due).iter().any(|e| matches!(e, HostEffect::Note(_))), "the store is told again");
}

#[test]
fn a_host_that_begins_again_tells_what_its_store_has_and_runs_nothing_for_what_it_has_not() {
    let mut one = One::new();
    one.step(HostEvent::Due);
    let old = HostId::random();
    let run = |fence| FleetRun { job: FleetJobId::random(), host: old, fence };
    let (over, goes, never) = (run(1), run(2), run(3));
    let read = vec![(over, Some(record(JobState::Succeeded))), (goes, Some(record(JobState::Running))), (never, None)];
    let effects = one.step(HostEvent::Read(read));
    assert_eq!(effects.len(), 2, "{effects:?}");
    assert!(effects.iter().any(|effect| matches!(effect, HostEffect::Follow(job) if *job == goes.job)));
    let told = |effect: &HostEffect| matches!(effect, HostEffect::Tell { ticket, end: FleetState::Succeeded, .. } if ticket.host == old && ticket.fence == Fence(1));
    assert!(effects.iter().any(told));
    let begun = one.core.begun();
    assert_eq!((begun.len(), begun[&old].len()), (2, 2), "of the one that is gone it says what this machine runs");
}

#[test]
fn without_the_database_nothing_is_claimed_and_it_is_asked_once_a_poll() {
    let mut one = One::new();
    let away = || FleetError::Unavailable { detail: "away".into() };
    let mut asked = 0;
    for _ in 0..60 {
        let mut effects = one.step(HostEvent::Due);
        while let Some(effect) = effects.pop() {
            let event = match effect {
                HostEffect::Renew { host, .. } => {
                    asked += 1;
                    HostEvent::Renewed { host, asked: one.now, answer: Err(away()) }
                }
                HostEffect::Sweep => HostEvent::Swept,
                HostEffect::Read => HostEvent::Read(Vec::new()),
                other => panic!("{other:?}"),
            };
            effects.extend(one.step(event));
        }
        one.now += Duration::from_secs(1);
    }
    assert!((6..=13).contains(&asked), "{asked} in a minute");
    assert!(!one.core.is_reached());
}

/// One machine: a store that outlives its hosts.
struct Machine {
    core: HostCore,
    name: String,
    runs: BTreeMap<FleetJobId, FleetRun>,
    jobs: BTreeMap<FleetJobId, JobState>,
    /// What is asked and not answered.
    asked: Vec<HostEffect>,
    followed: BTreeSet<FleetJobId>,
}

impl Machine {
    fn begins(&mut self, now: Instant) {
        self.core = HostCore::new(HostId::random(), now);
        self.asked.clear();
        self.followed.clear();
    }
}

struct World {
    fleet: MemoryFleet,
    clock: Arc<AtomicI64>,
    zero: Instant,
    machines: Vec<Machine>,
    /// How often each job's agent was started, on any machine.
    starts: BTreeMap<FleetJobId, usize>,
    random: fastrand::Rng,
}

const PLACES: usize = 2;

impl World {
    fn new(seed: u64) -> Self {
        let clock = Arc::new(AtomicI64::new(1_000_000));
        let read = Arc::clone(&clock);
        let fleet = MemoryFleet::new("me", Arc::new(move || UnixMillis(read.load(Ordering::Relaxed))));
        let zero = Instant::now();
        let machine = |number: usize| Machine {
            core: HostCore::new(HostId::random(), zero),
            name: format!("m{number}"),
            runs: BTreeMap::new(),
            jobs: BTreeMap::new(),
            asked: Vec::new(),
            followed: BTreeSet::new(),
        };
        let machines = (0..3).map(machine).collect();
        Self { fleet, clock, zero, machines, starts: BTreeMap::new(), random: fastrand::Rng::with_seed(seed) }
    }

    fn now(&self) -> Instant {
        let passed = self.clock.load(Ordering::Relaxed) - 1_000_000;
        self.zero + Duration::from_millis(u64::try_from(passed).expect("forward"))
    }

    fn tell(&mut self, at: usize, event: HostEvent) {
        let now = self.now();
        let machine = &mut self.machines[at];
        machine.core.step(event, now, &mut machine.asked);
        let running = |job: &FleetJobId| self.starts.get(job).copied().unwrap_or(0);
        for job in self.machines[at].jobs.keys() {
            assert!(running(job) <= 1, "L3: {job} was started twice");
        }
    }

    /// Performs one thing that was asked for. What is lost was done or not, and nobody hears of it.
    fn perform(&mut self, at: usize, effect: HostEffect, lost: bool) {
        let unsure = || FleetError::Unsure { detail: "cut".into() };
        let (fleet, now) = (self.fleet.clone(), self.now());
        let before = lost && self.random.bool();
        let machine = &mut self.machines[at];
        let event = match effect {
            HostEffect::Renew { host, running } => {
                let agents = [("claude".to_owned(), AgentLabel::default())].into();
                let labels = Labels { agents, slots: 2, ..Labels::default() };
                let name = machine.name.clone();
                let renewal = Renewal { host, name, state_id: "s".into(), labels, running };
                let answer = if before { Err(unsure()) } else { now_of(fleet.renew(&renewal)) };
                HostEvent::Renewed { host, asked: now, answer: if lost { Err(unsure()) } else { answer } }
            }
            HostEffect::Claim { host, on_their_way } => {
                let busy = machine.jobs.values().filter(|state| !state.is_terminal()).count();
                let most = PLACES.saturating_sub(busy + on_their_way);
                let ask = ClaimAsk { host, most, accepts: Vec::new() };
                let answer = match (most, before) {
                    (0, _) => Ok(FleetClaim::Claimed(Vec::new())),
                    (_, true) => Err(unsure()),
                    (_, false) => now_of(fleet.claim(&ask)),
                };
                HostEvent::Claimed(if lost && most > 0 { Err(unsure()) } else { answer })
            }
            HostEffect::Note(run) => {
                if !before {
                    machine.runs.insert(run.job, run);
                }
                HostEvent::Noted { job: run.job, noted: !lost }
            }
            HostEffect::Prepare(claimed) => {
                let refused = || Fault::new(FaultCode::WorkspaceUnavailable, "lost.");
                HostEvent::Prepared { job: claimed.ticket.job, answer: if lost { Err(refused()) } else { Ok(()) } }
            }
            HostEffect::Start(ticket) => {
                let answer = if before { Err(unsure()) } else { now_of(fleet.start(ticket)) };
                HostEvent::Started { job: ticket.job, answer: if lost { Err(unsure()) } else { answer } }
            }
            HostEffect::Accept(claimed) => {
                let job = claimed.ticket.job;
                if !before && !machine.jobs.contains_key(&job) {
                    machine.jobs.insert(job, JobState::Running);
                    *self.starts.entry(job).or_default() += 1;
                }
                let refused = || Fault::new(FaultCode::StoreUnavailable, "lost.");
                HostEvent::Accepted { job, answer: if lost { Err(refused()) } else { Ok(()) } }
            }
            HostEffect::Follow(job) => {
                machine.followed.insert(job);
                return;
            }
            HostEffect::Tell { ticket, end, outcome, .. } => {
                let finish = RunFinish { ticket, end, outcome: *outcome, pause: None };
                let told = !before && now_of(fleet.finish(&finish)).is_ok();
                HostEvent::Told { job: ticket.job, told: told && !lost }
            }
            HostEffect::Forget(job) => {
                if !lost {
                    machine.runs.remove(&job);
                }
                return;
            }
            HostEffect::Look(job) => {
                let cancel = !lost && fleet.view(job).is_some_and(|view| view.cancel_requested);
                HostEvent::Looked { job, cancel }
            }
            HostEffect::Cancel(job) => {
                if let Some(state) = machine.jobs.get_mut(&job).filter(|state| !state.is_terminal()) {
                    *state = JobState::Cancelled;
                }
                return;
            }
            HostEffect::Sweep => {
                drop(now_of(fleet.sweep()));
                HostEvent::Swept
            }
            HostEffect::Read => {
                let known = |run: &FleetRun| (*run, machine.jobs.get(&run.job).map(|state| record(*state)));
                HostEvent::Read(machine.runs.values().map(known).collect())
            }
        };
        self.tell(at, event);
    }

    fn act(&mut self, at: usize, loses: bool) {
        let asked = self.machines[at].asked.len();
        if asked > 0 {
            let which = self.random.usize(..asked);
            let effect = self.machines[at].asked.remove(which);
            let lost = loses && self.random.u8(..8) == 0;
            self.perform(at, effect, lost);
        }
    }

    fn end_one(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        let over = machine.jobs.iter_mut().find(|(_, state)| !state.is_terminal());
        if let Some((_, state)) = over {
            *state = JobState::Succeeded;
        }
        let followed = machine.followed.iter().copied();
        let over: Vec<_> = followed
            .filter_map(|job| Some((job, *machine.jobs.get(&job)?)))
            .filter(|(_, state)| state.is_terminal())
            .collect();
        for (job, state) in over {
            self.machines[at].followed.remove(&job);
            self.tell(at, HostEvent::Over { job, record: record(state) });
        }
    }

    fn pass(&mut self, most_ms: i64) {
        let by = self.random.i64(0..=most_ms);
        self.clock.fetch_add(by, Ordering::Relaxed);
    }
}

fn now_of<T>(verb: crate::fleet::FleetFuture<'_, T>) -> Result<T, FleetError> {
    verb.now_or_never().expect("a fleet in memory answers at once")
}

#[test]
fn whatever_happens_to_hosts_each_job_is_started_at_most_once_and_ends() {
    let only = std::env::var("PHONE_OPUS_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in only.map_or(0..300, |seed: u64| seed..seed + 1) {
        let mut world = World::new(seed);
        let mut jobs = Vec::new();
        for step in 0..400 {
            let at = world.random.usize(..3);
            match world.random.u8(..24) {
                0 if jobs.len() < 12 => {
                    let job = NewFleetJob {
                        id: FleetJobId::random(),
                        workspace: format!("w{}", world.random.u8(..3)),
                        request_key: format!("{step}"),
                        request: ConsultRequest {
                            clone_of: world.random.bool().then(clone_of),
                            ..ConsultRequest::new("why?").cwd("/w").timeout_s(600)
                        },
                        given: None,
                        account: String::new(),
                        needs: Needs::default(),
                        pin_state: None,
                        trace: None,
                    };
                    assert!(matches!(now_of(world.fleet.accept(&job)), Ok(FleetAccept::Inserted(_))));
                    jobs.push(job.id);
                    (0..3).for_each(|at| world.tell(at, HostEvent::Rang));
                }
                1 => world.end_one(at),
                2 => {
                    let now = world.now();
                    world.machines[at].begins(now);
                }
                3 if !jobs.is_empty() && world.random.u8(..4) == 0 => {
                    let job = jobs[world.random.usize(..jobs.len())];
                    assert!(now_of(world.fleet.cancel(job)).is_ok(), "it is known");
                }
                4 => world.pass(20_000),
                5..=8 => {
                    world.pass(1_000);
                    world.tell(at, HostEvent::Due);
                }
                _ => world.act(at, true),
            }
        }
        // Nothing is lost any more, and everything ends.
        for _ in 0..2_000 {
            world.pass(3_000);
            for at in 0..3 {
                world.tell(at, HostEvent::Due);
                while !world.machines[at].asked.is_empty() {
                    world.act(at, false);
                }
                world.end_one(at);
            }
            let over = |job: &FleetJobId| world.fleet.view(*job).is_some_and(|view| view.state.is_terminal());
            if jobs.iter().all(over) && world.machines.iter().all(|machine| machine.core.runs.is_empty()) {
                break;
            }
        }
        for job in &jobs {
            let view = world.fleet.view(*job).expect("it is kept");
            assert!(view.state.is_terminal(), "seed {seed}: {view:?}");
            assert!(world.starts.get(job).copied().unwrap_or(0) <= 1, "L3, seed {seed}");
            let ran = world.starts.contains_key(job);
            assert!(ran || view.state != FleetState::Succeeded, "seed {seed}: nobody ran it");
        }
    }
}
