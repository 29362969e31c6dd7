//! An upgrade of a host with many clients: every one keeps its connection, every line its place, every id its one answer.
//!
//! Laws: L1, L3, L7, L15.

#![cfg(target_os = "linux")]
#![allow(clippy::expect_used, reason = "helpers of tests")]

use phone_opus::testkit::{Rig, tried_program};
use serde_json::json;

use super::host::HostProcess;

fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

#[tokio::test]
async fn every_client_of_a_socket_goes_on_through_an_upgrade() {
    const QUIET: usize = 40;
    const CALLS: usize = 3;
    let rig = new_rig();
    let host = HostProcess::start(&rig).await;
    let mut quiet = Vec::new();
    for _ in 0..QUIET {
        let mut client = host.connect().await;
        let session = client.hello().await;
        quiet.push((client, session));
    }
    let mut callers = Vec::new();
    for number in 0..CALLS {
        let mut client = host.client().await;
        client.handshake(phone_opus::testkit::client::REVISION).await;
        let begun = format!("begun-{number}");
        let prompt = rig.waiting(&begun, "go");
        let consult = client.start("consult", json!({ "prompt": prompt })).await;
        rig.wait_for_sign(&begun).await;
        callers.push((client, consult));
    }
    // Half a line, a question nobody has answered yet, and a client that does not read.
    quiet[0].0.bytes(br#"{"jsonrpc":"2.0","id":"half","meth"#).await;
    quiet[1].0.line(r#"{"type":"status"}"#).await;
    quiet[2].0.line(&vec![r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#; 3000].join("\n")).await;
    let descriptors = host.descriptors();
    for round in 1..=3 {
        host.upgrade().await;
        let mut new = host.connect().await;
        let said = new.ask(r#"{"type":"hello"}"#).await;
        assert_eq!(said["images"], round, "what the program carries itself: {said}");
        new.ping().await;
        new.finish().await;
    }
    quiet[0].0.bytes(b"od\":\"ping\"}\n").await;
    assert_eq!(quiet[0].0.said().await, json!({"jsonrpc": "2.0", "id": "half", "result": {}}));
    let said = quiet[1].0.said().await;
    assert_eq!((&said["type"], &said["to"]), (&json!("error"), &json!("status")), "{said}");
    for _ in 0..3000 {
        assert_eq!(quiet[2].0.said().await["id"], 7);
    }
    for (client, session) in &mut quiet {
        assert_eq!(client.hello().await, *session, "it is the same session");
        client.ping().await;
    }
    rig.give_sign("go");
    for (client, consult) in &callers {
        assert_eq!(client.reply(*consult).await.expect_success()["response"], "done");
    }
    assert_eq!(rig.runs().len(), CALLS, "one run each");
    assert!(host.descriptors() <= descriptors, "{} descriptors instead of {descriptors}", host.descriptors());
    for (client, _) in quiet {
        client.finish().await;
    }
    let mut exchanged = Vec::new();
    for (mut client, _) in callers {
        client.finish().await;
        exchanged.push(client);
    }
    host.stop().await;
    rig.stop_and_check_invariants(exchanged).await;
}

#[tokio::test]
async fn an_upgrade_of_a_host_nobody_is_connected_to_keeps_its_door() {
    let rig = new_rig();
    let host = HostProcess::start(&rig).await;
    host.upgrade().await;
    let mut client = host.connect().await;
    assert_eq!(client.ask(r#"{"type":"hello"}"#).await["images"], 1);
    client.finish().await;
    host.stop().await;
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn clients_that_come_and_go_during_upgrades_are_all_served() {
    let rig = new_rig();
    let host = HostProcess::start(&rig).await;
    let upgrading = async {
        for _ in 0..5 {
            host.upgrade().await;
        }
    };
    let coming = async {
        let mut served = 0_u64;
        loop {
            let mut client = host.connect().await;
            client.hello().await;
            client.ping().await;
            client.finish().await;
            served += 1;
            tokio::task::yield_now().await;
            if served.is_multiple_of(16) {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        }
    };
    tokio::select! {
        () = upgrading => {}
        () = coming => {}
    }
    let mut last = host.connect().await;
    assert_eq!(last.ask(r#"{"type":"hello"}"#).await["images"], 5);
    last.finish().await;
    host.stop().await;
    rig.stop_and_check_invariants([]).await;
}
