//! A bridge and a daemon of another version, one that does not answer, one that is lost.
//!
//! Laws: L1, L2, L3, L17, L18.

#![cfg(target_os = "linux")]

use std::time::{Duration, Instant};

use phone_opus::internals::tools::consult::KEY_OF_BRIDGE;
use phone_opus::testkit::{Rig, TestClient, until};
use serde_json::{Value, json};

use super::new_rig;
use super::peer::{Door, OTHER_TOOLS};

const OURS: &str = env!("CARGO_PKG_VERSION");

/// A bridge nobody has greeted yet.
fn bridge(rig: &mut Rig) -> TestClient {
    let work = rig.work();
    rig.host_with(&["mcp", "connect"], &work)
}

/// What health says is not as it was to be.
async fn notices(client: &mut TestClient) -> String {
    client.call("health_snapshot", json!({"render": "json"})).await["notices"].to_string()
}

#[tokio::test]
async fn a_daemon_is_told_whose_session_it_is_and_gets_calls_as_they_came() {
    let mut rig = new_rig();
    rig.set("HTTPS_PROXY", "http://proxy.invalid:1");
    rig.set("SECRET_OF_MINE", "canary-of-the-environment");
    rig.set("PHONE_OPUS_TIMEOUT_S", "77");
    rig.set("PHONE_OPUS_MAX_QUEUED", "9");
    let door = Door::open(&rig);
    let mut client = bridge(&mut rig);
    client.handshake("2025-11-25").await;
    let mut guest = door.guest().await;
    let opening = guest.open(OURS, None).await;
    assert_eq!(opening["cwd"], rig.work().display().to_string());
    assert_eq!(opening["env"]["HTTPS_PROXY"], "http://proxy.invalid:1");
    assert_eq!(opening["settings"]["timeout_s"], 77);
    assert_eq!(opening["host_settings"]["max_queued"], 9);
    let said = opening.to_string();
    for kept in ["canary-of-the-environment", "sk-canary", "PHONE_OPUS_"] {
        assert!(!said.contains(kept), "{kept} is in {said}");
    }
    assert_eq!(opening["key_withheld"], true, "it has a key that it does not send");
    let hello = guest.asked("initialize").await;
    assert_eq!(hello["params"]["protocolVersion"], "2025-11-25");
    let sent = client.start("consult", json!({"prompt": "what?"})).await;
    let asked = guest.asked("tools/call").await;
    assert_eq!(asked["params"]["arguments"]["prompt"], "what?");
    let key = asked["params"]["arguments"]["request_key"].as_str().and_then(|key| key.strip_prefix(KEY_OF_BRIDGE));
    assert!(key.is_some_and(|key| key.len() == 36), "{asked}");
    guest.answer(&asked, "that").await;
    assert_eq!(client.reply(sent).await.text(), "that");
    rig.stop_and_check_invariants([client]).await;
    assert_eq!(guest.hear().await, None, "the daemon sees that its client is gone");
}

#[tokio::test]
async fn a_daemon_lost_in_the_middle_costs_neither_connection_nor_call() {
    let mut rig = new_rig();
    let door = Door::open(&rig);
    let mut client = bridge(&mut rig);
    client.handshake("2025-11-25").await;
    let sent = client.start("consult", json!({"prompt": "what?"})).await;
    let mut keys = Vec::new();
    for _ in 0..3 {
        let mut guest = door.guest().await;
        guest.open(OURS, None).await;
        let asked = guest.asked("tools/call").await;
        keys.push(asked["params"]["arguments"]["request_key"].clone());
    }
    let mut guest = door.guest().await;
    guest.open(OURS, None).await;
    let asked = guest.asked("tools/call").await;
    keys.push(asked["params"]["arguments"]["request_key"].clone());
    keys.dedup();
    assert_eq!(keys.len(), 1, "each time the same call");
    guest.answer(&asked, "that").await;
    assert_eq!(client.reply(sent).await.text(), "that");
    rig.stop_and_check_invariants([client]).await;
}

#[tokio::test]
async fn old_and_new_bridges_and_daemons_serve_together() {
    for (build, asked_to_reload) in [("0.0.1", true), (OURS, false), ("999.0.0", false)] {
        let mut rig = new_rig();
        let door = Door::open(&rig);
        let mut client = bridge(&mut rig);
        client.handshake("2025-11-25").await;
        let mut guest = door.guest().await;
        guest.open(build, None).await;
        if asked_to_reload {
            guest.told("reload").await;
            guest.say(&json!({"type": "ok", "to": "reload"})).await;
        }
        let hello = guest.hear().await.expect("it is there");
        assert_eq!(hello["method"], "initialize", "daemon {build}");
        let sent = client.start("consult_jobs", json!({})).await;
        let asked = guest.asked("tools/call").await;
        guest.answer(&asked, "none").await;
        assert_eq!(client.reply(sent).await.text(), "none", "daemon {build}");
        rig.stop_and_check_invariants([client]).await;
    }
}

#[tokio::test]
async fn tools_of_another_version_are_told_of_and_listed_there() {
    let mut rig = new_rig();
    let door = Door::open(&rig);
    let mut client = bridge(&mut rig);
    client.handshake("2025-11-25").await;
    let listed = client.request("tools/list", json!({})).await;
    assert!(listed["result"]["tools"].as_array().is_some_and(|tools| tools.len() == 6), "{listed}");
    let mut guest = door.guest().await;
    guest.open("999.0.0", Some(OTHER_TOOLS)).await;
    // Before it has heard of them, it lists its own.
    until("the client is told that there are others", async || {
        (!client.notifications("notifications/tools/list_changed").is_empty()).then_some(())
    })
    .await;
    let sent = client.send("tools/list", json!({})).await;
    let asked = guest.asked("tools/list").await;
    guest.say(&json!({"jsonrpc": "2.0", "id": asked["id"], "result": {"tools": []}})).await;
    assert_eq!(client.answer(sent).await["result"]["tools"], json!([]));
    assert_eq!(client.notifications("notifications/tools/list_changed").len(), 1);
    // A tool this version has never heard of is for the daemon to judge.
    let sent = client.start("of_a_later_version", json!({})).await;
    let asked = guest.asked("tools/call").await;
    guest.answer(&asked, "done").await;
    assert_eq!(client.reply(sent).await.text(), "done");
    rig.stop_and_check_invariants([client]).await;
}

#[tokio::test]
async fn a_daemon_that_refuses_the_session_is_left_and_this_process_serves() {
    for (hello, reload) in [
        (
            json!({"type": "hello", "proto": 1, "build": "0.0.1", "generation": "65256527-361a-4d3a-9a5f-945ee374307e", "pid": 1}),
            true,
        ),
        (
            json!({"type": "hello", "proto": 2, "build": "999.0.0", "generation": "65256527-361a-4d3a-9a5f-945ee374307e", "pid": 1}),
            false,
        ),
    ] {
        let mut rig = new_rig();
        let door = Door::open(&rig);
        let mut client = bridge(&mut rig);
        client.handshake("2025-11-25").await;
        let sent = client.start("health_snapshot", json!({"render": "json"})).await;
        let mut guest = door.guest().await;
        guest.told("session_open").await;
        guest.say(&json!({"type": "error", "to": "session_open", "message": "`proto` is not spoken here"})).await;
        guest.told("hello").await;
        guest.say(&hello).await;
        if reload {
            guest.told("reload").await;
        }
        assert_eq!(guest.hear().await, None);
        let said = client.reply(sent).await["notices"].to_string();
        assert!(
            said.contains("`proto` is not spoken here") && said.contains(hello["build"].as_str().expect("a text")),
            "{said}"
        );
        rig.stop_and_check_invariants([client]).await;
    }
}

#[tokio::test]
async fn a_daemon_that_does_not_answer_costs_its_client_less_than_three_seconds() {
    let mut rig = new_rig();
    let began = Instant::now();
    let mut alone = rig.serve().await;
    notices(&mut alone).await;
    let without = began.elapsed();
    let door = Door::open(&rig);
    let began = Instant::now();
    let mut client = bridge(&mut rig);
    client.handshake("2025-11-25").await;
    let said = notices(&mut client).await;
    let cost = began.elapsed().saturating_sub(without);
    assert!(cost < Duration::from_secs(3), "{cost:?} more than the {without:?} of a server that asks nobody");
    assert!(said.contains("did not answer within 2 s"), "{said}");
    client.consult(&rig.answering("42")).await.expect_success();
    // It is left as it is: nobody came twice, and its socket is there.
    drop(door.guest().await);
    assert!(!door.is_visited_within(Duration::from_millis(50)).await);
    assert!(rig.state_dir().daemon_socket().exists());
    rig.expect_runs(1);
    rig.stop_and_check_invariants([alone, client]).await;
}

#[tokio::test]
async fn a_client_is_greeted_before_anybody_serves_and_told_to_stop_in_order() {
    let mut rig = new_rig();
    let door = Door::open(&rig);
    let mut client = bridge(&mut rig);
    client.handshake("2025-11-25").await;
    client.ping().await;
    let sent = client.start("consult", json!({"prompt": "what?"})).await;
    let mut guest = door.guest().await;
    guest.open(OURS, None).await;
    guest.asked("tools/call").await;
    client.signal(phone_opus::testkit::Signal::TERM);
    client.reply(sent).await.expect_fault("stopping");
    assert!(client.exit().await.success());
    assert_eq!(guest.hear().await, None);
    rig.stop_and_check_invariants([client]).await;
}

#[tokio::test]
async fn what_is_asked_in_a_script_is_answered_before_the_end() {
    let mut rig = new_rig();
    let door = Door::open(&rig);
    let mut client = bridge(&mut rig);
    client.handshake("2025-11-25").await;
    let sent = client.start("consult_jobs", json!({})).await;
    client.hang_up().await;
    let mut guest = door.guest().await;
    guest.open(OURS, None).await;
    let asked = guest.asked("tools/call").await;
    assert_eq!(guest.hear().await, None::<Value>, "there will be no more");
    guest.answer(&asked, "none").await;
    assert_eq!(client.reply(sent).await.text(), "none");
    assert!(client.exit().await.success());
    rig.stop_and_check_invariants([client]).await;
}
