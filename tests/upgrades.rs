//! Upgrades in place: whatever is under way when the program is replaced, its client notices nothing.
//!
//! Each test replaces the program by itself, on the real binary with the scripted agent. Only where `/proc` shows which
//! image is running.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::time::Duration;

use phone_opus::testkit::{Client, PATIENCE, Rig, Waiting};
use serde_json::json;

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(env!("CARGO_BIN_EXE_phone-opus"))
}

/// What the image that runs was restored from: another name for each image, none for the first.
fn image(host: &Client) -> Option<String> {
    let words = std::fs::read(format!("/proc/{}/cmdline", host.host_pid().as_raw_nonzero())).expect("it runs");
    let mut words = words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    words.find(|word| word == "--restore")?;
    words.next()
}

/// Asks for an upgrade.
fn reload(host: &Client) {
    rustix::process::kill_process(host.host_pid(), rustix::process::Signal::USR2).expect("it runs");
}

/// Asks for an upgrade and waits for the new image, which need not serve yet.
async fn upgrade(host: &Client) {
    let before = image(host);
    reload(host);
    let waiting = Waiting::until("another image runs", PATIENCE);
    while image(host) == before {
        waiting.again(|| format!("{before:?}")).await;
    }
}

#[tokio::test]
async fn a_session_goes_on_in_another_image_of_the_program() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let listed = host.request("tools/list", json!({})).await;
    for times in 1..=3 {
        upgrade(&host).await;
        host.ping().await;
        assert_eq!(
            host.request("tools/list", json!({})).await["result"],
            listed["result"],
            "no second greeting is needed"
        );
        let totals = host.totals().await;
        assert_eq!(totals["rollouts"], times, "{totals}");
    }
    assert_eq!(host.notifications("notifications/tools/list_changed").len(), 0, "they are the same tools");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_consult_is_answered_by_its_one_run_whatever_image_accepted_it() {
    for isolation in ["in_process", "process"] {
        let mut rig = new_rig().with("PHONE_OPUS_ISOLATION", isolation);
        let mut host = rig.serve().await;
        let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
        rig.wait_for_sign("begun").await;
        let runners = rig.runners();
        for _ in 0..3 {
            upgrade(&host).await;
            host.ping().await;
        }
        assert_eq!(rig.runners(), runners, "{isolation}: the runner notices nothing");
        rig.give_sign("go");
        let reply = host.reply(sent).await.expect_success();
        assert_eq!((reply.str("mode"), reply.str("response")), ("sync", "done"), "{isolation}");
        rig.expect_runs(1);
        let health = host.health().await;
        assert_eq!(health["restart_count"], 0, "{isolation}: an upgrade is no failure: {:#}", health.0);
        let _ = Duration::ZERO;
        rig.stop_and_check_invariants([host]).await;
    }
}
