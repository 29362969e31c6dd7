//! Bridges and a real daemon, which the first of them starts.
//!
//! Laws: L1, L3, L7, L8, L17, L18.

#![cfg(target_os = "linux")]

use std::time::{Duration, Instant};

use phone_opus::testkit::client::REVISION;
use phone_opus::testkit::rig::FAULTS;
use phone_opus::testkit::{Rig, Role, TestClient, until};
use serde_json::json;

use super::{connect, new_rig};

/// Ends the clients and the daemon, and checks every law.
async fn stop(rig: Rig, clients: Vec<TestClient>) {
    let mut ended = Vec::new();
    for mut client in clients {
        client.finish().await;
        ended.push(client);
    }
    let stopped = rig.run(&["daemon", "stop", "--force"]).await;
    assert!(stopped.status.success(), "{stopped:?}");
    rig.stop_and_check_invariants(ended).await;
}

#[tokio::test]
async fn a_daemon_is_started_by_whoever_needs_it_and_serves() {
    let mut rig = new_rig();
    let mut client = connect(&mut rig).await;
    client.consult(&rig.answering("42")).await.expect_success();
    let daemon = rig.the(Role::Host).await;
    assert!(daemon.command.contains("daemon run") && daemon.leads_session, "{daemon:?}");
    let health = client.call("health_snapshot", json!({"render": "json"})).await;
    assert!(!health.has("notices"), "{:#}", health.0);
    // It stays when its client goes, and serves the next one.
    client.finish().await;
    let mut next = connect(&mut rig).await;
    next.consult(&rig.answering("43")).await.expect_success();
    assert_eq!(rig.the(Role::Host).await, daemon);
    stop(rig, vec![client, next]).await;
}

#[tokio::test]
async fn a_daemon_killed_in_the_middle_costs_neither_connection_nor_consult() {
    let mut rig = new_rig();
    let mut client = connect(&mut rig).await;
    let prompt = rig.waiting("begun", "go");
    let sent = client.start("consult", json!({"prompt": prompt})).await;
    rig.wait_for_sign("begun").await;
    let killed = rig.kill(Role::Host);
    assert_eq!(killed.len(), 1);
    until("the next daemon is there", async || {
        rig.all(Role::Host).into_iter().any(|next| next.pid != killed[0].pid).then_some(())
    })
    .await;
    // Served by the next one while the consult goes on.
    client.call("consult_jobs", json!({})).await;
    rig.give_sign("go");
    client.reply(sent).await.expect_success();
    rig.expect_runs(1);
    stop(rig, vec![client]).await;
}

#[tokio::test]
async fn a_daemon_that_ends_as_a_client_comes_in_costs_neither_that_one_nor_another() {
    for action in ["exit", "kill", "abort"] {
        let mut rig = new_rig().with_faults(&format!("unix.accept#2={action}"));
        let mut struck = rig.daemon(&[]).await;
        rig.unset(FAULTS);
        let mut first = connect(&mut rig).await;
        let prompt = rig.waiting("begun", "go");
        let sent = first.start("consult", json!({"prompt": prompt})).await;
        rig.wait_for_sign("begun").await;
        // The second who comes in.
        let mut second = connect(&mut rig).await;
        second.consult(&rig.answering("43")).await.expect_success();
        assert!(!struck.wait().await.expect("it ends").success(), "{action}");
        let health = second.health().await;
        assert!(!health.has("notices"), "{action}: {:#}", health.0);
        rig.give_sign("go");
        first.reply(sent).await.expect_success();
        rig.expect_runs(2);
        assert_eq!(rig.all(Role::Host).len(), 1, "{action}: both have the next one");
        stop(rig, vec![first, second]).await;
    }
}

#[tokio::test]
async fn a_daemon_that_stands_still_is_left_alone_and_this_process_serves() {
    let mut rig = new_rig();
    let began = Instant::now();
    let mut first = connect(&mut rig).await;
    first.call("health_snapshot", json!({"render": "json"})).await;
    let without = began.elapsed();
    first.consult(&rig.answering("42")).await.expect_success();
    let stopped = rig.freeze(Role::Host);
    let began = Instant::now();
    let mut second = connect(&mut rig).await;
    let health = second.call("health_snapshot", json!({"render": "json"})).await;
    let cost = began.elapsed().saturating_sub(without);
    assert!(cost < Duration::from_secs(3), "{cost:?} more than the {without:?} of the first");
    let said = health["notices"].to_string();
    assert!(said.contains("did not answer within 2 s"), "{said}");
    second.consult(&rig.answering("43")).await.expect_success();
    rig.thaw(Role::Host);
    // Nobody has displaced it, and its client goes on with it.
    first.consult(&rig.answering("44")).await.expect_success();
    assert_eq!(rig.all(Role::Host), stopped);
    stop(rig, vec![first, second]).await;
}

#[tokio::test]
async fn fifty_clients_at_once_have_one_daemon() {
    let mut rig = new_rig();
    let work = rig.work();
    let mut clients: Vec<TestClient> = (0..50).map(|_| rig.host_with(&["mcp", "connect"], &work)).collect();
    for client in &mut clients {
        client.handshake(REVISION).await;
    }
    for client in &mut clients {
        let health = client.call("health_snapshot", json!({"render": "json"})).await;
        assert!(!health.has("notices"), "{:#}", health.0);
    }
    assert_eq!(rig.all(Role::Host).len(), 1);
    let told = rig.run(&["daemon", "status", "--json"]).await;
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).expect("JSON");
    assert_eq!(told["connections"], 51, "fifty sessions, and whoever asks: {told}");
    stop(rig, clients).await;
}

#[tokio::test]
async fn two_clients_of_one_daemon_have_each_their_own_directory_and_environment() {
    let mut rig = new_rig();
    rig.set("HTTPS_PROXY", "http://first.invalid:1");
    let mut first = connect(&mut rig).await;
    rig.unset("HTTPS_PROXY");
    rig.set("LC_ALL", "en_GB.UTF-8");
    let other = rig.path("work/other");
    let mut second = rig.host_with(&["mcp", "connect"], &other);
    second.handshake(REVISION).await;
    let (one, two) = (rig.answering("1"), rig.answering("2"));
    let (one, two) = tokio::join!(first.consult(&one), second.consult(&two));
    assert_eq!(one.expect_success().str("cwd"), rig.work().display().to_string());
    assert_eq!(two.expect_success().str("cwd"), other.display().to_string());
    rig.expect_runs(2);
    let runs = rig.runs();
    let of =
        |dir: &std::path::Path| runs.iter().find(|run| run.start["cwd"] == dir.display().to_string()).expect("a run");
    let (one, two) = (of(&rig.work()), of(&other));
    assert_eq!((one.env("HTTPS_PROXY"), one.env("LC_ALL")), (Some("http://first.invalid:1"), None));
    assert_eq!((two.env("HTTPS_PROXY"), two.env("LC_ALL")), (None, Some("en_GB.UTF-8")));
    assert_eq!(rig.all(Role::Host).len(), 1);
    stop(rig, vec![first, second]).await;
}
