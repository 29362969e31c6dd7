//! Jobs that wait for their turn: one process waits with all of a host's, asks nobody, and whatever is killed, each of them
//! comes to its one end.
//!
//! Laws: L3, L7, L9, L17.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use phone_opus::internals::jobs::{JobRecord, JobState};
use phone_opus::testkit::{PATIENCE, Process, Rig, Role, Signal, TestClient, Waiting, tried_program, until};
use serde_json::json;

/// A world in which one agent runs at a time.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus"))).with("PHONE_OPUS_MAX_RUNNING", "1")
}

/// A host whose one permit is taken until the sign `go` is given.
async fn busy(rig: &mut Rig) -> (TestClient, String) {
    let mut client = rig.serve().await;
    let prompt = rig.waiting("begun", "go");
    let running = client.consult_in_background(&prompt).await;
    rig.wait_for_sign("begun").await;
    (client, running)
}

async fn state_of(rig: &Rig, job: &str) -> JobState {
    record(rig, job).await.state
}

async fn record(rig: &Rig, job: &str) -> JobRecord {
    rig.jobs().await.into_iter().find(|one| one.id.to_string() == job).expect("an accepted job")
}

/// Waits until there are so many jobs and somebody waits with each that has not begun.
async fn handed_in(rig: &Rig, count: usize) {
    until("all are handed in", async || {
        let jobs = rig.jobs().await;
        let waits = |job: &JobRecord| job.state != JobState::Queued || job.waiter.is_some();
        (jobs.len() == count && jobs.iter().all(waits)).then_some(())
    })
    .await;
}

/// Waits until a job is in this state.
async fn becomes(rig: &Rig, job: &str, state: JobState) {
    until(&format!("{job} is {}", state.as_str()), async || (state_of(rig, job).await == state).then_some(())).await;
}

/// How often a process gave up its processor by itself, which is each time it was woken and slept again.
fn woken(process: &Process) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.pid.as_raw_nonzero())).expect("it lives");
    let switches = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).map(str::trim);
        line.and_then(|count| count.parse::<u64>().ok()).unwrap_or_default()
    };
    tasks.flatten().map(switches).sum()
}

#[tokio::test]
async fn forty_waiting_jobs_are_one_process_that_nothing_wakes() {
    let mut rig = new_rig();
    let (mut client, running) = busy(&mut rig).await;
    let prompt = rig.answering("done");
    let mut waiting = Vec::new();
    for _ in 0..40 {
        waiting.push(client.consult_in_background(&prompt).await);
    }
    let one = rig.the(Role::Waiting).await;
    handed_in(&rig, 41).await;
    assert_eq!(rig.all(Role::Runner).len(), 1, "{:?}", rig.processes());
    // Without a wait: a job that waits has no news to block for.
    let reply = client.call("consult_job", json!({"job_id": waiting[39]})).await;
    assert_eq!(reply.str("status"), "queued", "{reply:?}");
    // Long enough for many looks of whoever looks four times a second.
    let before = woken(&one);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let times = woken(&one) - before;
    assert!(times <= 4, "it was woken {times} times in two seconds");

    rig.give_sign("go");
    // The last first: by then most are over. Asking blocks, where looking at forty jobs again and again takes their processor.
    for job in waiting.iter().rev().chain([&running]) {
        let reply = client.call("consult_job", json!({"job_id": job, "wait_s": 50})).await.expect_success();
        assert_eq!(reply.str("status"), "succeeded", "{reply:?}");
    }
    let ended: Vec<JobState> = rig.jobs().await.iter().map(|job| job.state).collect();
    assert_eq!(ended, [JobState::Succeeded; 41]);
    until("nobody waits any more", async || (rig.all(Role::Waiting).is_empty()).then_some(())).await;
    rig.expect_runs(41);
    client.finish().await;
    rig.stop_and_check_invariants([client]).await;
}

#[tokio::test]
async fn background_jobs_go_on_in_their_order_without_any_server() {
    let mut rig = new_rig();
    let (mut client, running) = busy(&mut rig).await;
    let mut waiting = Vec::new();
    for number in 0..3 {
        waiting.push(client.consult_in_background(&rig.answering(&format!("{number}"))).await);
    }
    let sync = client.start("consult", json!({"prompt": rig.answering("nobody hears it")})).await;
    handed_in(&rig, 5).await;
    rig.kill(Role::Host);
    client.give_up_on(sync);
    let lost = rig.jobs().await.into_iter().max_by_key(|job| job.sequence).expect("a job").id.to_string();
    becomes(&rig, &lost, JobState::Cancelled).await;
    let lost = record(&rig, &lost).await.outcome.and_then(|outcome| outcome.fault).expect("why");
    assert_eq!(lost.code.as_str(), "caller_lost");

    // The permit comes free by a death that nobody but the kernel tells of.
    rig.kill(Role::Runner);
    for job in &waiting {
        becomes(&rig, job, JobState::Succeeded).await;
    }
    until("who waited has ended by itself", async || (rig.all(Role::Waiting).is_empty()).then_some(())).await;
    let mut began: Vec<_> = rig.jobs().await.into_iter().filter(|job| waiting.contains(&job.id.to_string())).collect();
    began.sort_by_key(|job| job.sequence);
    assert!(began.is_sorted_by_key(|job| job.started_at), "{began:?}");

    // The run that was killed is settled by the next server.
    let mut next = rig.serve().await;
    becomes(&rig, &running, JobState::Interrupted).await;
    next.finish().await;
    rig.stop_and_check_invariants([next]).await;
}

#[tokio::test]
async fn a_host_hands_its_jobs_in_anew_when_who_waited_is_killed() {
    let mut rig = new_rig();
    let (mut client, running) = busy(&mut rig).await;
    let sync = client.start("consult", json!({"prompt": rig.answering("heard")})).await;
    let background = client.consult_in_background(&rig.answering("kept")).await;
    for _ in 0..3 {
        let before = rig.the(Role::Waiting).await;
        before.kill();
        until("another one waits", async || (rig.all(Role::Waiting).iter().any(|now| *now != before)).then_some(()))
            .await;
    }
    rig.give_sign("go");
    assert_eq!(client.reply(sync).await.expect_success().str("response"), "heard");
    for job in [&running, &background] {
        becomes(&rig, job, JobState::Succeeded).await;
    }
    client.finish().await;
    rig.stop_and_check_invariants([client]).await;
}

#[tokio::test]
async fn a_waiting_job_is_cancelled_from_anywhere_at_once() {
    let mut rig = new_rig();
    let (mut client, running) = busy(&mut rig).await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(client.consult_in_background(&rig.answering("never")).await);
    }
    rig.the(Role::Waiting).await;
    // By its own host, by another process, and by one when no host is left.
    client.call("consult_cancel", json!({"job_id": waiting[0]})).await;
    becomes(&rig, &waiting[0], JobState::Cancelled).await;
    let cancel = async |rig: &Rig, job: &str| {
        let told = rig.run(&["jobs", "cancel", job]).await;
        assert!(told.status.success(), "{told:?}");
    };
    cancel(&rig, &waiting[1]).await;
    becomes(&rig, &waiting[1], JobState::Cancelled).await;
    let reply = client.job(&waiting[1]).await;
    assert_eq!(reply.str("status"), "cancelled", "{reply:?}");
    rig.kill(Role::Host);
    cancel(&rig, &waiting[2]).await;
    becomes(&rig, &waiting[2], JobState::Cancelled).await;
    rig.give_sign("go");
    becomes(&rig, &running, JobState::Succeeded).await;
    rig.expect_runs(1);
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_host_that_stands_still_holds_up_nobody() {
    let mut rig = new_rig();
    let (mut client, running) = busy(&mut rig).await;
    let background = client.consult_in_background(&rig.answering("all the same")).await;
    let sync = client.start("consult", json!({"prompt": rig.answering("heard late")})).await;
    handed_in(&rig, 3).await;
    rig.freeze(Role::Host);
    rig.give_sign("go");
    let last = rig.jobs().await.into_iter().max_by_key(|job| job.sequence).expect("a job").id.to_string();
    for job in [&running, &background, &last] {
        becomes(&rig, job, JobState::Succeeded).await;
    }
    rig.thaw(Role::Host);
    assert_eq!(client.reply(sync).await.expect_success().str("response"), "heard late");
    rig.expect_runs(3);
    client.finish().await;
    rig.stop_and_check_invariants([client]).await;
}

/// Servers that come and go until this job is over: each looks for lost jobs a second after its start.
async fn swept(rig: &mut Rig, job: &str) -> JobRecord {
    let waiting = Waiting::until("the job is swept", 2 * PATIENCE);
    loop {
        let mut sweeper = rig.serve().await;
        let looked = Instant::now();
        let mut found = record(rig, job).await;
        while !found.state.is_terminal() && looked.elapsed() < Duration::from_millis(2500) {
            waiting.again(|| format!("{found:?}")).await;
            found = record(rig, job).await;
        }
        sweeper.finish().await;
        if found.state.is_terminal() {
            return found;
        }
    }
}

#[tokio::test]
async fn a_job_left_alone_is_run_with_the_environment_of_its_caller_or_not_at_all() {
    for (home, end) in [(None, JobState::Succeeded), (Some("/elsewhere"), JobState::Interrupted)] {
        let mut rig = new_rig();
        let (mut client, _) = busy(&mut rig).await;
        let left = client.consult_in_background(&rig.answering("found")).await;
        // Its process may live a moment before it has the job.
        handed_in(&rig, 2).await;
        rig.kill(Role::Host);
        rig.kill(Role::Waiting);
        rig.give_sign("go");
        if let Some(home) = home {
            rig.set("CLAUDE_CONFIG_DIR", home);
        }
        let found = swept(&mut rig, &left).await;
        assert_eq!(found.state, end, "{found:?}");
        rig.stop_and_check_invariants([]).await;
    }
}

#[tokio::test]
async fn the_signals_that_are_meant_for_others_do_not_end_who_waits() {
    let mut rig = new_rig();
    let (mut client, running) = busy(&mut rig).await;
    let waiting = client.consult_in_background(&rig.answering("still there")).await;
    let one = rig.the(Role::Waiting).await;
    until("it waits", async || (record(&rig, &waiting).await.waiter.is_some()).then_some(())).await;
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::ALARM] {
        one.signal(signal);
    }
    rig.give_sign("go");
    becomes(&rig, &waiting, JobState::Succeeded).await;
    becomes(&rig, &running, JobState::Succeeded).await;
    client.finish().await;
    rig.stop_and_check_invariants([client]).await;
}
