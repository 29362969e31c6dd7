//! A host is struck at each moment of a job: between its claim and its start, between start and run, between outcome and report; and it
//! stands still for longer than its lease.
//!
//! Laws: L3, L4, L7, L19.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use phone_opus::testkit::rig::FAULTS;
use phone_opus::testkit::{Step, Waiting, until};
use serde_json::json;

use super::hosting::{Hosting, clones_of};
use super::world::{PATIENCE, World, seconds};
use crate::private_postgres::PrivateServer;

/// Three renewals may come late on a busy machine.
const LEASE: Duration = Duration::from_secs(3);

/// Worlds at a time: one server has connections for so many hosts.
const AT_ONCE: usize = 6;

/// What may become of a job, and how often its agent may have been started.
struct Promise {
    ends: &'static [&'static str],
    runs: &'static [usize],
}

/// Nobody has begun it: it is answered.
const ANSWERED: Promise = Promise { ends: &["succeeded"], runs: &[1] };

/// It was begun, and nothing was started.
const BEGUN_ONLY: Promise = Promise { ends: &["interrupted"], runs: &[0] };

/// It was begun, and what this machine knows of it is told by its next host: in time, or too late.
const BEGUN: Promise = Promise { ends: &["interrupted", "succeeded", "failed"], runs: &[0, 1] };

/// It ran, and how it ended is told by the next host of this machine: in time, or too late.
const RAN: Promise = Promise { ends: &["interrupted", "succeeded"], runs: &[1] };

/// Each moment of a job, and what is promised when the host's process is killed in it and when its actor panics. After any error it is
/// answered.
const MOMENTS: [(&str, &Promise, &Promise); 10] = [
    // The machine has it, and whether it has a runner by then is open: a next host finds it by its sweep, which takes longest.
    ("fleet.answered@accept", &BEGUN, &ANSWERED),
    ("fleet.ask@claim", &ANSWERED, &ANSWERED),
    // The claim is nobody's until its lease is over.
    ("fleet.answered@claim", &ANSWERED, &ANSWERED),
    ("fleet.answered@note", &ANSWERED, &ANSWERED),
    // Before and after a clone is fetched: nothing has begun, and no clone is left.
    ("fleet.ask@prepare", &ANSWERED, &ANSWERED),
    ("fleet.answered@prepare", &ANSWERED, &ANSWERED),
    ("fleet.ask@start", &ANSWERED, &ANSWERED),
    // Between the commit of the start and the run.
    ("fleet.answered@start", &BEGUN_ONLY, &BEGUN_ONLY),
    ("fleet.ask@tell", &RAN, &ANSWERED),
    ("fleet.answered@tell", &ANSWERED, &ANSWERED),
];

#[tokio::test]
async fn a_host_that_is_struck_at_any_moment_of_a_job_costs_at_most_what_it_had_begun() {
    let Some(server) = PrivateServer::shared() else { return };
    let rows = MOMENTS.iter().flat_map(|(moment, killed, panics)| {
        [("kill", *killed), ("panic", *panics), ("error", &ANSWERED)]
            .map(|(action, promise)| (*moment, action, promise))
    });
    let began = Instant::now();
    let struck = rows.map(|(moment, action, promise)| {
        let server = Arc::clone(&server);
        async move { strike(server, &format!("{moment}={action}"), action == "kill", promise).await }
    });
    let told: Vec<String> = futures_util::stream::iter(struck).buffer_unordered(AT_ONCE).collect().await;
    println!("{}\nin {}", told.join("\n"), seconds(began));
}

/// A job is there, and one host that takes none; another one with this plan comes, and takes it.
async fn strike(server: Arc<PrivateServer>, plan: &str, is_killed: bool, promise: &Promise) -> String {
    let began = Instant::now();
    let mut world = World::new(server, LEASE, 2, 1, 1).await;
    let workspace = world.workspaces[0].clone();
    let mut arguments = world.asking("k", &workspace, vec![Step::Text("at work".into())]);
    if plan.contains("@prepare") {
        let Some(hosting) = Hosting::at(world.sign("hosting"), workspace) else { return format!("{plan}: SKIPPED") };
        world.machines[0].clones_only(&hosting);
        world.machines[1].rig.set("PATH", hosting.path());
        arguments["placement"] = "clone".into();
    }
    world.machines[1].start().await;
    world.is_in(1).await;
    world.sql("UPDATE phone_opus.host SET drained = true").await;
    let asked = world.machines[1].up().call("consult", arguments).await;
    assert!(asked["job_id"].is_string(), "{plan}: {:#}", asked.0);
    world.machines[0].rig.set(FAULTS, plan);
    world.machines[0].start_unheard();
    // The plan is for this process of it.
    world.machines[0].rig.unset(FAULTS);
    if is_killed {
        world.machines[0].is_gone().await;
        world.sql("UPDATE phone_opus.host SET drained = false").await;
    }
    let over = world.only_job_over().await;
    if is_killed {
        world.machines[0].start().await;
    }
    world.settle().await;
    let job = world.only_job_over().await;
    assert_eq!((&over.id, &over.state), (&job.id, &job.state), "{plan}: what is over stays");
    let (runs, ended) = world.runs("k");
    assert!(promise.ends.contains(&job.state.as_str()), "{plan}: {job:?} after {runs} runs");
    assert!(promise.runs.contains(&runs), "{plan}: {job:?} after {runs} runs");
    // What came too late is kept; of what has run there is something.
    let least = i64::from(job.state == "interrupted" && runs > 0);
    assert!((least..=1).contains(&job.late), "{plan}: {job:?} after {runs} runs, {ended} ends");
    let told = format!("{plan}: {}, {runs} runs, {} late, {}", job.state, job.late, seconds(began));
    for machine in &world.machines {
        until("no clone is left", async || (clones_of(&machine.rig) == 0).then_some(())).await;
    }
    world.end().await;
    told
}

#[tokio::test]
async fn a_host_that_stands_still_for_longer_than_its_lease_loses_its_claims_and_its_late_outcome_is_kept_and_shown() {
    let Some(server) = PrivateServer::shared() else { return };
    let began = Instant::now();
    let mut world = World::new(server, LEASE, 2, 2, 1).await;
    let workspace = world.workspaces[0].clone();
    // It has begun one job, and is about to ask for the start of another one when it stands still. The time goes on for it.
    world.machines[0].rig.set(FAULTS, "fleet.ask@start#2=delay:1000");
    world.machines[0].start().await;
    let (begun, go) = (world.sign("begun"), world.sign("go"));
    let waits = vec![Step::Touch(begun.clone()), Step::WaitForFile(go.clone())];
    let first = world.asking("first", &workspace, waits);
    let first = world.machines[0].up().call("consult", first).await;
    let waiting = Waiting::until("the first agent runs", PATIENCE);
    while !begun.exists() {
        waiting.again(|| "it does not").await;
    }
    let second = world.asking("second", &workspace, Vec::new());
    let second = world.machines[0].up().call("consult", second).await;
    let waiting = Waiting::until("the second is claimed", PATIENCE);
    let state = async |world: &World, key: &str| {
        let jobs = world.jobs().await;
        jobs.into_iter().find(|job| job.key == key).expect("a job").state
    };
    loop {
        let state = state(&world, "second").await;
        if state == "claimed" {
            break;
        }
        waiting.again(|| state).await;
    }
    println!("one runs and one is claimed after {}", seconds(began));
    // All of the machine: its host, its runners, its agent.
    world.machines[0].rig.freeze_everything();
    world.machines[1].start().await;
    let waiting = Waiting::until("both are over", PATIENCE);
    loop {
        let states = (state(&world, "first").await, state(&world, "second").await);
        if states == ("interrupted".to_owned(), "succeeded".to_owned()) {
            break;
        }
        waiting.again(|| format!("{states:?}")).await;
    }
    println!("both are over after {}", seconds(began));
    assert_eq!(world.runs("second"), (1, 1), "it was run by the other one");
    world.machines[0].rig.thaw_everything();
    std::fs::write(&go, "").expect("a sign");
    world.settle().await;
    println!("what stood still has told its outcome after {}", seconds(began));
    let jobs = world.jobs().await;
    let seen: Vec<_> = jobs.iter().map(|job| (job.key.as_str(), job.state.as_str(), job.late)).collect();
    assert_eq!(seen, [("first", "interrupted", 1), ("second", "succeeded", 0)]);
    assert_eq!((world.runs("first"), world.runs("second")), ((1, 1), (1, 1)), "neither was run again");
    let read = world.machines[1].up().call("consult_job", json!({"job_id": first["job_id"]})).await;
    assert_eq!((read.str("status"), read.str("response")), ("interrupted", "answer to first"), "{:#}", read.0);
    assert!(read.text().contains("What it told later stands here"), "{}", read.text());
    let read = world.machines[0].up().call("consult_job", json!({"job_id": second["job_id"]})).await.expect_success();
    assert_eq!(read.str("response"), "answer to second");
    world.end().await;
}
