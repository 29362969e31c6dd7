//! The fleet as one value: random events with every law after each, and what a person would ask of it by name.
//!
//! Laws: L3, L4, L9, L16, L19.

pub(super) mod schedules;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use self::schedules::{Kinds, World, job, labels, ops};
use super::core::{FleetCore, FleetEvent, FleetVerdict};
use super::invariants::{
    FleetWitness, invariant_a_job_is_started_at_most_once, invariant_every_answer_was_right, invariant_fences_grow,
    invariant_what_was_told_is_kept,
};
use super::*;

/// Seeds of `cargo test`, and the variable that asks for more (`.ci/long fleet-model`).
const SEEDS: u64 = 60;
const SEEDS_VARIABLE: &str = "PHONE_OPUS_FLEET_SEEDS";
const FIRST_SEED: u64 = 20_261_127;

/// Events of one schedule.
const EVENTS: usize = 250;

/// The first law that is seen to be broken in a schedule of which the fleet is not told what `heeds` says no to.
fn first_broken(seed: u64, heeds: impl Fn(&FleetEvent) -> bool) -> Option<invariants::FleetViolation> {
    let (mut core, mut witness, mut world) = (FleetCore::default(), FleetWitness::default(), World::default());
    ops(seed, EVENTS).iter().find_map(|op| {
        let event = world.event(op)?;
        let now = world.now();
        let verdict = if heeds(&event) { core.step(event.clone(), now) } else { FleetVerdict::Noted };
        world.learn(&event, &verdict);
        witness.saw(&event, &verdict, now);
        invariant_every_answer_was_right(&witness).err()
    })
}

#[test]
fn a_fleet_that_heeds_no_cap_is_seen_to_break_them() {
    let seeds = FIRST_SEED..FIRST_SEED + SEEDS;
    println!("seeds {seeds:?}");
    let broken: Vec<_> = seeds
        .clone()
        .filter_map(|seed| first_broken(seed, |event| !matches!(event, FleetEvent::CapSet { .. })))
        .collect();
    println!("seen in {} of {SEEDS}", broken.len());
    assert!(broken.iter().all(|broken| broken.law.contains("caps are exact")), "{broken:?}");
    assert!(broken.len() * 2 > seeds.count(), "only in {}", broken.len());
    assert_eq!(first_broken(FIRST_SEED, |_| true), None);
}

fn one_schedule(seed: u64, kinds: &mut Kinds) {
    let mut core = FleetCore::default();
    let mut witness = FleetWitness::default();
    let mut world = World::default();
    for (at, op) in ops(seed, EVENTS).into_iter().enumerate() {
        let Some(event) = world.event(&op) else { continue };
        let now = world.now();
        let verdict = core.step(event.clone(), now);
        world.learn(&event, &verdict);
        kinds.note(&verdict);
        witness.saw(&event, &verdict, now);
        let laws = [
            invariant_a_job_is_started_at_most_once(&witness),
            invariant_fences_grow(&witness),
            invariant_every_answer_was_right(&witness),
        ];
        for law in laws {
            law.unwrap_or_else(|broken| panic!("seed {seed}, event {at}, {op:?}: {broken}"));
        }
    }
    for job in witness.jobs() {
        invariant_what_was_told_is_kept(&witness, job, core.view(job).as_ref())
            .unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
    }
}

#[test]
fn whatever_happens_to_a_fleet_a_job_is_started_once_and_caps_are_exact() {
    let seeds = std::env::var(SEEDS_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    println!("seeds {FIRST_SEED}..{}", FIRST_SEED + seeds);
    let mut kinds = Kinds::default();
    for seed in FIRST_SEED..FIRST_SEED + seeds {
        one_schedule(seed, &mut kinds);
    }
    println!("{kinds:?}");
    kinds.expect_all();
}

/// A core with a clock, spoken to as a story.
struct Told {
    core: FleetCore,
    now: UnixMillis,
}

impl Told {
    fn new() -> Self {
        Self { core: FleetCore::default(), now: UnixMillis(1_000_000) }
    }

    fn pass(&mut self, time: Duration) {
        self.now = later(self.now, time);
    }

    fn host(&mut self, slots: u32) -> HostId {
        let host = HostId::random();
        let _ = self.renew(host, slots, &[]);
        host
    }

    fn renew(&mut self, host: HostId, slots: u32, running: &[Ticket]) -> FleetRenewed {
        let renewal = Renewal {
            host,
            name: "box".into(),
            state_id: "s".into(),
            labels: labels(slots),
            running: running.to_vec(),
        };
        match self.core.step(FleetEvent::LeaseRenewed(Box::new(renewal)), self.now) {
            FleetVerdict::Renew(renewed) => renewed,
            other => panic!("{other:?}"),
        }
    }

    fn accept(&mut self, workspace: &str, key: &str) -> FleetAccept {
        let frozen = job(FleetJobId::random(), workspace, key, "", 1000).freeze().expect("a job");
        match self.core.step(FleetEvent::AcceptAsked { job: Box::new(frozen), owner: "me".into() }, self.now) {
            FleetVerdict::Accept(accept) => accept,
            other => panic!("{other:?}"),
        }
    }

    fn claim(&mut self, host: HostId) -> Vec<ClaimedJob> {
        let ask = ClaimAsk { host, most: usize::MAX, accepts: Vec::new() };
        match self.core.step(FleetEvent::ClaimAsked { ask, user: "me".into() }, self.now) {
            FleetVerdict::Claim(FleetClaim::Claimed(jobs)) => jobs,
            FleetVerdict::Claim(FleetClaim::NotNow(_)) => Vec::new(),
            other => panic!("{other:?}"),
        }
    }

    fn start(&mut self, ticket: Ticket) -> FleetStart {
        match self.core.step(FleetEvent::StartAsked(ticket), self.now) {
            FleetVerdict::Start(start) => start,
            other => panic!("{other:?}"),
        }
    }

    fn finish(&mut self, ticket: Ticket) -> FleetFinish {
        self.end(ticket, FleetState::Succeeded)
    }

    fn end(&mut self, ticket: Ticket, end: FleetState) -> FleetFinish {
        let finish = RunFinish { ticket, end, outcome: JobOutcome::default(), pause: None };
        match self.core.step(FleetEvent::RunEnded(Box::new(finish)), self.now) {
            FleetVerdict::Finish(finish) => finish,
            other => panic!("{other:?}"),
        }
    }

    fn sweep(&mut self) -> FleetSwept {
        match self.core.step(FleetEvent::SweepDue, self.now) {
            FleetVerdict::Sweep(swept) => swept,
            other => panic!("{other:?}"),
        }
    }

    fn cap(&mut self, scope: CapScope, cap: u64) {
        self.core.step(FleetEvent::CapSet { scope, cap: Some(cap) }, self.now);
    }
}

fn inserted(accept: FleetAccept) -> FleetJobId {
    match accept {
        FleetAccept::Inserted(job) => job,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_claimed_job_of_a_lost_host_runs_elsewhere_and_a_started_one_never() {
    let mut told = Told::new();
    let lost = told.host(2);
    let (begun, waiting) = (inserted(told.accept("a", "1")), inserted(told.accept("b", "1")));
    let tickets: Vec<Ticket> = told.claim(lost).iter().map(|job| job.ticket).collect();
    assert_eq!(told.start(tickets[0]), FleetStart::Started);
    told.pass(LEASE + SWEPT_AFTER - Duration::from_millis(1));
    let other = told.host(2);
    assert_eq!(told.sweep(), FleetSwept::default(), "it may have had its last word a moment ago");
    told.pass(Duration::from_millis(1));
    let swept = told.sweep();
    assert_eq!((swept.requeued, swept.interrupted), (vec![waiting], vec![begun]));
    let again = told.claim(other);
    assert_eq!(again.iter().map(|job| job.ticket.job).collect::<Vec<_>>(), [waiting]);
    assert_eq!(told.start(again[0].ticket), FleetStart::Started);
    // The lost host was only asleep.
    let _ = told.renew(lost, 2, &[]);
    assert_eq!(told.start(tickets[1]), FleetStart::Refused { state: FleetState::Running });
    assert_eq!(told.finish(tickets[0]), FleetFinish::Late { state: FleetState::Interrupted });
    assert_eq!(told.finish(tickets[1]), FleetFinish::Late { state: FleetState::Running });
    let view = told.core.view(begun).expect("kept");
    assert_eq!((view.state, view.late.len()), (FleetState::Interrupted, 1), "it is shown and changes no end");
    assert_eq!(told.finish(again[0].ticket), FleetFinish::Finished);
    assert_eq!(told.finish(again[0].ticket), FleetFinish::Already);
}

#[test]
fn what_was_claimed_and_is_not_started_in_its_time_is_given_to_others_though_its_host_is_spoken_for() {
    let mut told = Told::new();
    let (gone, other) = (told.host(2), told.host(2));
    let (begun, claimed) = (inserted(told.accept("a", "1")), inserted(told.accept("b", "1")));
    let tickets: Vec<Ticket> = told.claim(gone).iter().map(|job| job.ticket).collect();
    assert_eq!(told.start(tickets[0]), FleetStart::Started);
    // Its machine runs the one and has never heard of the other: the answer to that claim was lost.
    let third = (LEASE + SWEPT_AFTER) / 3;
    for _ in 0..3 {
        assert_eq!(told.sweep(), FleetSwept::default());
        told.pass(third);
        let _ = told.renew(gone, 2, &tickets[..1]);
        let _ = told.renew(other, 2, &[]);
    }
    let swept = told.sweep();
    assert_eq!((swept.requeued, swept.interrupted), (vec![claimed], Vec::new()));
    let again = told.claim(other);
    assert_eq!(again.iter().map(|job| job.ticket.job).collect::<Vec<_>>(), [claimed]);
    assert_eq!(told.start(tickets[1]), FleetStart::Refused { state: FleetState::Claimed });
    assert_eq!(told.start(again[0].ticket), FleetStart::Started);
    assert_eq!(told.finish(tickets[0]), FleetFinish::Finished, "what runs is nobody else's");
    assert_eq!(told.core.view(begun).expect("kept").state, FleetState::Succeeded);
}

#[test]
fn what_a_lost_host_ran_counts_until_its_deadline_or_its_late_outcome() {
    for is_late in [false, true] {
        let mut told = Told::new();
        told.cap(CapScope::Fleet, 1);
        let lost = told.host(1);
        inserted(told.accept("a", "1"));
        let ticket = told.claim(lost)[0].ticket;
        assert_eq!(told.start(ticket), FleetStart::Started);
        let began = told.now;
        told.pass(LEASE + SWEPT_AFTER);
        assert_eq!(told.sweep().interrupted.len(), 1);
        inserted(told.accept("b", "1"));
        let other = told.host(1);
        assert_eq!(told.claim(other), [], "its agent may still be at work");
        if is_late {
            assert_eq!(told.finish(ticket), FleetFinish::Late { state: FleetState::Interrupted });
        } else {
            told.now = UnixMillis(began.0 + 999_999);
            let _ = told.renew(other, 1, &[]);
            assert_eq!(told.claim(other), []);
            told.pass(Duration::from_millis(1));
        }
        assert_eq!(told.claim(other).len(), 1, "late: {is_late}");
    }
}

#[test]
fn what_its_host_says_was_interrupted_is_over_at_once_and_holds_no_place() {
    let mut told = Told::new();
    told.cap(CapScope::Fleet, 1);
    let host = told.host(1);
    let job = inserted(told.accept("a", "1"));
    let ticket = told.claim(host)[0].ticket;
    assert_eq!(told.start(ticket), FleetStart::Started);
    assert_eq!(told.end(ticket, FleetState::Interrupted), FleetFinish::Finished);
    assert_eq!(told.end(ticket, FleetState::Interrupted), FleetFinish::Already);
    let view = told.core.view(job).expect("kept");
    assert_eq!((view.state, view.outcome.is_some(), view.late.len()), (FleetState::Interrupted, true, 0));
    inserted(told.accept("b", "1"));
    assert_eq!(told.claim(host).len(), 1, "nothing of it runs");
}

#[test]
fn nine_small_workspaces_do_not_wait_for_the_two_hundred_jobs_of_one() {
    let mut told = Told::new();
    told.cap(CapScope::Fleet, 1);
    for key in 0..200 {
        inserted(told.accept("busy", &key.to_string()));
    }
    for quiet in 0..9 {
        inserted(told.accept(&format!("quiet {quiet}"), "1"));
    }
    let host = told.host(4);
    let mut served = BTreeMap::new();
    for turn in 0..209 {
        let given = told.claim(host);
        assert_eq!(given.len(), 1);
        served.entry(given[0].workspace.clone()).or_insert(turn);
        assert_eq!(told.start(given[0].ticket), FleetStart::Started);
        assert_eq!(told.finish(given[0].ticket), FleetFinish::Finished);
    }
    assert_eq!(served.len(), 10);
    assert!(served.values().all(|turn| *turn < 10), "{served:?}");
}

#[test]
fn after_a_change_of_history_nobody_claims_and_hosts_say_what_they_run() {
    let mut told = Told::new();
    let host = told.host(3);
    let job = inserted(told.accept("a", "1"));
    inserted(told.accept("b", "1"));
    let before = told.core.clone();
    let ticket = told.claim(host)[0].ticket;
    assert_eq!(told.start(ticket), FleetStart::Started);
    // The database goes on from before the claim.
    told.core = before;
    told.core.step(FleetEvent::TimelineChanged, told.now);
    assert_eq!(told.claim(host), []);
    assert!(told.sweep().quiet);
    let renewed = told.renew(host, 3, &[ticket]);
    assert!(renewed.quiet && renewed.reasserted == 1);
    assert_eq!(told.core.view(job).map(|view| view.state), Some(FleetState::Running));
    assert_eq!(told.renew(host, 3, &[ticket]).reasserted, 0);
    told.pass(QUIET);
    assert!(!told.renew(host, 3, &[ticket]).quiet);
    assert_eq!(told.claim(host).len(), 1, "only the one that nobody runs");
    assert_eq!(told.finish(ticket), FleetFinish::Finished);
}

#[test]
fn a_full_queue_says_so_and_one_key_is_one_job_all_the_same() {
    let mut told = Told::new();
    let first = inserted(told.accept("a", "0"));
    for key in 1..MOST_QUEUED {
        inserted(told.accept("a", &key.to_string()));
    }
    assert_eq!(told.accept("b", "0"), FleetAccept::QueueFull { queued: MOST_QUEUED });
    assert_eq!(told.accept("a", "0"), FleetAccept::Joined(first));
    let host = told.host(1000);
    assert_eq!(told.claim(host).len(), MOST_CLAIMED);
    inserted(told.accept("b", "0"));
}

#[test]
fn what_nobody_takes_in_its_time_is_over_and_says_why() {
    let mut told = Told::new();
    let job = inserted(told.accept("a", "1"));
    told.pass(Duration::from_secs(1000));
    assert_eq!(told.sweep().expired, [job]);
    let view = told.core.view(job).expect("kept");
    let fault = view.outcome.and_then(|outcome| outcome.fault).expect("a fault");
    assert_eq!((view.state, fault.code), (FleetState::Failed, FaultCode::DeadlineExceeded));
    told.pass(KEPT);
    assert_eq!(told.sweep().forgotten, 1);
    assert_eq!(told.core.view(job), None);
    inserted(told.accept("a", "1"));
}

#[test]
fn a_usage_limit_one_host_met_stops_the_others_for_that_account() {
    let mut told = Told::new();
    let host = told.host(2);
    inserted(told.accept("a", "1"));
    let ticket = told.claim(host)[0].ticket;
    let lasts = Duration::from_secs(30);
    let pause = FleetPause { scope: CapScope::Agent("claude".into()), lasts, why: "limit".into() };
    let finish = RunFinish { ticket, end: FleetState::Failed, outcome: JobOutcome::default(), pause: Some(pause) };
    let verdict = told.core.step(FleetEvent::RunEnded(Box::new(finish)), told.now);
    assert_eq!(verdict, FleetVerdict::Finish(FleetFinish::Finished), "it was claimed and could not be started");
    inserted(told.accept("b", "1"));
    assert_eq!(told.claim(host), []);
    told.pass(lasts);
    assert_eq!(told.claim(host).len(), 1);
}

#[test]
fn a_witness_notices_what_breaks_the_laws() {
    let broken = |law: Result<(), invariants::FleetViolation>| assert!(law.is_err());
    let mut told = Told::new();
    let host = told.host(2);
    let frozen = job(FleetJobId::random(), "w", "1", "", 1000).freeze().expect("a job");
    let accepted = FleetEvent::AcceptAsked { job: Box::new(frozen.clone()), owner: "me".into() };
    let renewed = {
        let renewal =
            Renewal { host, name: "box".into(), state_id: "s".into(), labels: labels(2), running: Vec::new() };
        FleetEvent::LeaseRenewed(Box::new(renewal))
    };
    let claimed = |fence| {
        let ticket = Ticket { job: frozen.id, host, fence: Fence(fence) };
        let request = crate::jobs::ConsultRequest::new("p");
        let given = ClaimedJob { ticket, workspace: "w".into(), account: String::new(), request, trace: None };
        let ask = ClaimAsk { host, most: 1, accepts: Vec::new() };
        let event = FleetEvent::ClaimAsked { ask, user: "me".into() };
        (ticket, event, FleetVerdict::Claim(FleetClaim::Claimed(vec![given])))
    };
    let told_that = |events: &[(FleetEvent, FleetVerdict)]| {
        let mut witness = FleetWitness::default();
        let quiet = FleetRenewed { drained: false, quiet: false, reasserted: 0, lease: FleetLease::default() };
        witness.saw(&renewed, &FleetVerdict::Renew(quiet), told.now);
        witness.saw(&accepted, &FleetVerdict::Accept(FleetAccept::Inserted(frozen.id)), told.now);
        for (event, verdict) in events {
            witness.saw(event, verdict, told.now);
        }
        witness
    };
    let started = |ticket| (FleetEvent::StartAsked(ticket), FleetVerdict::Start(FleetStart::Started));
    let ((one, first_event, first), (two, second_event, second)) = (claimed(5), claimed(4));
    let (first, second) = ((first_event, first), (second_event, second));

    let good = told_that(&[first.clone(), started(one), started(one)]);
    assert_eq!(invariant_every_answer_was_right(&good), Ok(()));
    assert_eq!(invariant_a_job_is_started_at_most_once(&good), Ok(()));
    broken(invariant_every_answer_was_right(&told_that(&[started(one)])));
    broken(invariant_a_job_is_started_at_most_once(&told_that(&[first.clone(), started(one), started(two)])));
    broken(invariant_fences_grow(&told_that(&[first.clone(), second])));
    let cap = FleetEvent::CapSet { scope: CapScope::Fleet, cap: Some(0) };
    broken(invariant_every_answer_was_right(&told_that(&[(cap, FleetVerdict::Noted), first.clone()])));
    let swept = FleetSwept { interrupted: vec![frozen.id], ..FleetSwept::default() };
    let taken = told_that(&[first.clone(), started(one), (FleetEvent::SweepDue, FleetVerdict::Sweep(swept))]);
    broken(invariant_every_answer_was_right(&taken));
    broken(invariant_what_was_told_is_kept(&good, frozen.id, None));
    let joined = (accepted.clone(), FleetVerdict::Accept(FleetAccept::Inserted(FleetJobId::random())));
    broken(invariant_every_answer_was_right(&told_that(&[joined])));
}

#[tokio::test]
async fn who_waits_for_a_job_is_told_of_its_end_or_of_how_it_stands() {
    let clock = Arc::new(AtomicI64::new(1_000_000));
    let time = Arc::clone(&clock);
    let fleet = MemoryFleet::new("me", Arc::new(move || UnixMillis(time.load(Ordering::Relaxed))));
    let fleet: &dyn Fleet = &fleet;
    let host = HostId::random();
    let renewal = Renewal { host, name: "box".into(), state_id: "s".into(), labels: labels(1), running: Vec::new() };
    assert!(!fleet.renew(&renewal).await.expect("renewed").quiet);
    let new = job(FleetJobId::random(), "w", "1", "", 1000);
    let id = inserted(fleet.accept(&new).await.expect("accepted"));
    assert_eq!(fleet.wait(FleetJobId::random(), Duration::MAX / 4).await, Ok(None));
    let stands = fleet.wait(id, Duration::ZERO).await.expect("looked").expect("known");
    assert_eq!(stands.state, FleetState::Queued);
    let ask = ClaimAsk { host, most: 1, accepts: Vec::new() };
    let FleetClaim::Claimed(given) = fleet.claim(&ask).await.expect("claimed") else { panic!("not now") };
    let ticket = given[0].ticket;
    assert_eq!(fleet.start(ticket).await, Ok(FleetStart::Started));
    assert_eq!(fleet.cancel(id).await, Ok(FleetCancel::Asked));
    let finish = RunFinish { ticket, end: FleetState::Cancelled, outcome: JobOutcome::default(), pause: None };
    let waiting = fleet.wait(id, Duration::from_secs(3600));
    let (view, finished) = tokio::join!(waiting, fleet.finish(&finish));
    assert_eq!(finished, Ok(FleetFinish::Finished));
    let view = view.expect("looked").expect("known");
    assert_eq!(
        (view.state, view.cancel_requested, view.host_name.as_deref()),
        (FleetState::Cancelled, true, Some("box"))
    );
    clock.fetch_add(1, Ordering::Relaxed);
    assert_eq!(fleet.sweep().await, Ok(FleetSwept::default()));
    let bad = RunFinish { end: FleetState::Running, ..finish };
    assert!(matches!(fleet.finish(&bad).await, Err(FleetError::Bad(_))), "it is no end");
}
