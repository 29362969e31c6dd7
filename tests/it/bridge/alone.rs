//! A bridge where no daemon can be had.
//!
//! Laws: L1, L7, L18.

#![cfg(target_os = "linux")]

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use phone_opus::testkit::client::REVISION;
use phone_opus::testkit::{Rig, Role, Start, TestClient};
use serde_json::json;

use super::new_rig;

/// A bridge to a daemon at this socket.
async fn connect(rig: &mut Rig, socket: &str) -> TestClient {
    let work = rig.work();
    let mut client = rig.host_with(&["mcp", "connect", "--socket", socket], &work);
    client.handshake(REVISION).await;
    client
}

/// What health says is not as it was to be.
async fn notices(client: &mut TestClient) -> String {
    client.call("health_snapshot", json!({"render": "json"})).await["notices"].to_string()
}

#[tokio::test]
async fn where_no_daemon_can_be_started_this_process_serves_and_says_why() {
    let mut rig = new_rig();
    let socket = format!("{}/{}.sock", rig.path("state").display(), "x".repeat(120));
    let mut client = connect(&mut rig, &socket).await;
    let said = notices(&mut client).await;
    assert!(said.contains("no daemon serves this client, this process does: failed to start a daemon"), "{said}");
    client.consult(&rig.answering("42")).await.expect_success();
    let job = client.consult_in_background(&rig.answering("43")).await;
    client.call("consult_job", json!({"job_id": job, "wait_s": 60})).await.expect_success();
    assert_eq!(rig.all(Role::Host).len(), 0, "{:?}", rig.processes());
    rig.stop_and_check_invariants([client]).await;
}

#[tokio::test]
async fn where_a_connection_is_denied_nothing_is_started_and_this_process_serves() {
    let Some(start) = Start::plain().as_nobody() else { return };
    let mut rig = new_rig().with_start(start);
    let closed = rig.path("closed");
    std::fs::create_dir(&closed).expect("a directory");
    let _door = std::os::unix::net::UnixListener::bind(closed.join("daemon.sock")).expect("a socket");
    rig.give_away();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).expect("nobody may");
    let mut client = connect(&mut rig, &closed.join("daemon.sock").display().to_string()).await;
    let said = notices(&mut client).await;
    assert!(said.contains("may not be connected to from here"), "{said}");
    client.consult(&rig.answering("42")).await.expect_success();
    client.finish().await;
    rig.take_back();
    for left in ["daemon.lock", "daemon.json", "start.lock", "daemon.sock", "daemon.log"] {
        assert!(!rig.path("state").join(left).exists(), "{left} was made");
    }
    assert!(closed.join("daemon.sock").exists(), "what was there is left alone");
    rig.check_invariants().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_takes_its_consult_along_and_the_process_ends() {
    let mut rig = new_rig();
    let socket = format!("{}/{}.sock", rig.path("state").display(), "x".repeat(120));
    let mut client = connect(&mut rig, &socket).await;
    let sent = client.start("consult", json!({"prompt": rig.hanging("begun")})).await;
    rig.wait_for_sign("begun").await;
    let began = Instant::now();
    client.hang_up().await;
    client.give_up_on(sent);
    assert!(client.exit().await.success());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    rig.expect_no_agent_left().await;
    rig.only_job_over().await;
    rig.stop_and_check_invariants([client]).await;
}
