//! A daemon that somebody stops while clients are connected: it stays stopped, and costs them neither connection nor consult.
//!
//! Laws: L1, L3, L7, L8, L15, L18.

#![cfg(target_os = "linux")]

use phone_opus::internals::jobs::JobMode;
use phone_opus::testkit::{Rig, Role, Signal, TestClient, tried_program, until};
use serde_json::json;

use super::{connect, new_rig};

/// What health says is not as it was to be.
async fn notices(client: &mut TestClient) -> String {
    client.call("health_snapshot", json!({"render": "json"})).await["notices"].to_string()
}

async fn no_daemon_is_left(rig: &Rig) {
    until("the daemon has ended", async || rig.all(Role::Host).is_empty().then_some(())).await;
}

async fn done(rig: &Rig, words: &[&str]) {
    let output = rig.run(words).await;
    assert!(output.status.success(), "{words:?}: {output:?}");
}

async fn status_is(rig: &Rig, code: i32) {
    let output = rig.run(&["daemon", "status"]).await;
    assert_eq!(output.status.code(), Some(code), "{output:?}");
}

#[tokio::test]
async fn a_daemon_that_is_stopped_stays_stopped_until_somebody_starts_one() {
    let mut rig = new_rig();
    let mut client = connect(&mut rig).await;
    client.consult(&rig.answering("41")).await.expect_success();
    done(&rig, &["daemon", "stop"]).await;
    no_daemon_is_left(&rig).await;
    client.consult(&rig.answering("42")).await.expect_success();
    let said = notices(&mut client).await;
    assert!(said.contains("this process does: the daemon was stopped"), "{said}");
    status_is(&rig, 4).await;
    // Somebody starts one: the client is served by it, and this process by nobody's order any more.
    done(&rig, &["daemon", "start"]).await;
    until("the daemon serves", async || (notices(&mut client).await == "null").then_some(())).await;
    client.consult(&rig.answering("43")).await.expect_success();
    let started = rig.the(Role::Host).await;
    // One that makes room for the next one is followed by it.
    done(&rig, &["daemon", "drain"]).await;
    client.consult(&rig.answering("44")).await.expect_success();
    assert_eq!(notices(&mut client).await, "null");
    let next = rig.the(Role::Host).await;
    assert!(next.pid != started.pid, "{next:?}");
    rig.expect_runs(4);
    client.finish().await;
    done(&rig, &["daemon", "stop", "--force"]).await;
    rig.stop_and_check_invariants([client]).await;
}

#[tokio::test]
async fn a_consult_whose_daemon_is_ended_goes_on_and_is_answered_once() {
    for how in ["force", "signal", "force, and another is started"] {
        let mut rig = new_rig();
        let mut client = connect(&mut rig).await;
        let sent = client.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
        rig.wait_for_sign("begun").await;
        let refused = rig.run(&["daemon", "stop"]).await;
        assert_eq!(refused.status.code(), Some(1), "others' work: {refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("--drain"), "{refused:?}");
        match how {
            "signal" => drop(rig.signal(Role::Host, Signal::TERM)),
            _ => done(&rig, &["daemon", "stop", "--force"]).await,
        }
        no_daemon_is_left(&rig).await;
        client.call("consult_jobs", json!({})).await;
        assert!(notices(&mut client).await.contains("the daemon was stopped"), "{how}");
        if how.contains("another") {
            done(&rig, &["daemon", "start"]).await;
            until("the daemon serves", async || (notices(&mut client).await == "null").then_some(())).await;
        }
        rig.give_sign("go");
        client.reply(sent).await.expect_success();
        rig.expect_runs(1);
        let jobs = rig.jobs().await;
        assert!(jobs.len() == 1 && jobs[0].mode == JobMode::Sync, "{how}: {jobs:?}");
        client.finish().await;
        if how.contains("another") {
            done(&rig, &["daemon", "stop", "--force"]).await;
        }
        no_daemon_is_left(&rig).await;
        rig.stop_and_check_invariants([client]).await;
    }
}

#[tokio::test]
async fn a_consult_that_waits_for_its_turn_goes_on_waiting_when_its_daemon_is_ended() {
    let mut rig = new_rig().with("PHONE_OPUS_MAX_RUNNING", "1");
    let mut client = connect(&mut rig).await;
    let first = client.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    let second = client.start("consult", json!({"prompt": rig.answering("43")})).await;
    until("it waits", async || (rig.jobs().await.len() == 2).then_some(())).await;
    done(&rig, &["daemon", "stop", "--force"]).await;
    client.call("consult_jobs", json!({})).await;
    rig.give_sign("go");
    client.reply(first).await.expect_success();
    client.reply(second).await.expect_success();
    rig.expect_runs(2);
    let jobs = rig.jobs().await;
    assert!(jobs.iter().all(|job| job.mode == JobMode::Sync), "{jobs:?}");
    client.finish().await;
    rig.stop_and_check_invariants([client]).await;
}

#[tokio::test]
async fn a_daemon_that_is_stopped_after_its_last_call_answers_it_and_what_is_new_is_served_here() {
    let mut rig = new_rig();
    let mut client = connect(&mut rig).await;
    let sent = client.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    done(&rig, &["daemon", "stop", "--drain"]).await;
    client.consult(&rig.answering("43")).await.expect_success();
    assert!(notices(&mut client).await.contains("the daemon was stopped"));
    assert_eq!(rig.all(Role::Host).len(), 1, "it has a call: {:?}", rig.processes());
    rig.give_sign("go");
    client.reply(sent).await.expect_success();
    no_daemon_is_left(&rig).await;
    rig.expect_runs(2);
    client.finish().await;
    rig.stop_and_check_invariants([client]).await;
}

#[tokio::test]
async fn a_client_that_hangs_up_after_its_daemon_was_ended_takes_its_consult_along() {
    let mut rig = new_rig();
    let mut client = connect(&mut rig).await;
    let sent = client.start("consult", json!({"prompt": rig.hanging("begun")})).await;
    rig.wait_for_sign("begun").await;
    done(&rig, &["daemon", "stop", "--force"]).await;
    no_daemon_is_left(&rig).await;
    // It has its consult again.
    assert!(notices(&mut client).await.contains("the daemon was stopped"));
    client.call("consult_jobs", json!({})).await;
    client.hang_up().await;
    client.give_up_on(sent);
    assert!(client.exit().await.success());
    rig.expect_no_agent_left().await;
    rig.only_job_over().await;
    rig.stop_and_check_invariants([client]).await;
}

#[tokio::test]
async fn a_daemon_finds_its_next_version_where_the_client_that_started_it_was_called() {
    let dir = tempfile::tempdir().expect("a directory");
    let called = dir.path().join("phone-opus");
    std::os::unix::fs::symlink(tried_program(env!("CARGO_BIN_EXE_phone-opus")), &called).expect("a link");
    let mut rig = Rig::new(&called);
    let mut client = connect(&mut rig).await;
    let health = client.call("health_snapshot", json!({"render": "json"})).await;
    assert!(rig.the(Role::Host).await.command.contains("daemon run"));
    assert_eq!(health["rollout"]["launch_path"], json!(called), "{:#}", health.0);
    client.finish().await;
    done(&rig, &["daemon", "stop", "--force"]).await;
    rig.stop_and_check_invariants([client]).await;
}
