//! The page that a daemon serves: when it listens, through what it goes on, when it ends.
//!
//! Laws: L7, L9, L13, L15.

use phone_opus::testkit::{Rig, until, until_seen};
use serde_json::Value;

use super::{Following, Served, new_rig, place};

/// What `dashboard` prints: the address, by its port and its token.
pub(super) async fn address(rig: &Rig, words: &[&str]) -> (u16, String) {
    let mut all = vec!["dashboard", "--json"];
    all.extend(words);
    let output = rig.run(&all).await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(said["socket"], Value::Null, "it serves nothing itself: {said}");
    place(said["url"].as_str().expect("an address"))
}

#[tokio::test]
async fn a_daemon_serves_the_page_when_asked_and_goes_on_through_an_upgrade_until_it_is_told_to_stop() {
    let mut rig = new_rig();
    let daemon = rig.daemon(&[]).await;
    let socket = rig.state_dir().root().join("dashboard.sock");
    assert!(!socket.exists(), "nobody asked");
    let served = Served::of(daemon, &rig).await;
    let port = served.port;
    let opened = served.open().await;
    assert_eq!(served.exchange(&served.token).await.status, 401, "it was used");
    assert_eq!(served.ask("GET /api/overview", "", "").await.status, 401);
    let ours = opened.headers();
    assert_eq!(served.ask("GET /api/overview", &ours, "").await.status, 200);
    // Its own health is asked for by the way everybody has.
    until("it shows itself", async || {
        let overview = served.tool("GET /api/overview").await.json();
        let servers = overview["sections"]["servers"].as_array()?.clone();
        servers.iter().any(|server| server["kind"] == "daemon").then_some(())
    })
    .await;
    let (again, another) = address(&rig, &[]).await;
    assert_eq!(again, port, "there is one");

    let mut live = Following::open(&served, "/api/live", &ours).await;
    live.until("whole", |_| true).await;
    let pid = served.child.id().expect("it lives");
    assert_eq!(rig.run(&["daemon", "reload"]).await.status.code(), Some(0));
    until_seen("it has replaced itself", async || {
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if command.contains("--restore") { Ok(()) } else { Err(command) }
    })
    .await;
    while live.next().await.is_some() {}
    // Same port, same session, and what was given out before still opens it once.
    let overview = until("it is served again", async || {
        let answer = served.ask("GET /api/overview", &ours, "").await;
        (answer.status != 0).then_some(answer)
    })
    .await;
    assert_eq!(overview.status, 200, "{overview:?}");
    assert_eq!(served.exchange(&another).await.status, 200);
    assert_eq!(served.exchange(&another).await.status, 401);

    let stopped = rig.run(&["dashboard", "--stop", "--json"]).await;
    assert_eq!(serde_json::from_slice::<Value>(&stopped.stdout).expect("JSON")["done"], true);
    until("nothing listens", async || (!socket.exists()).then_some(())).await;
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err(), "it listens still");
    let (_, token) = address(&rig, &[]).await;
    assert!(!token.is_empty(), "it is served again when somebody asks");
    let Served { mut child, .. } = served;
    rig.end_daemon().await;
    let _ = child.wait().await;
    assert!(!socket.exists(), "it ends with its daemon");
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn without_a_daemon_there_is_none_to_be_stopped_and_a_port_that_is_taken_is_said() {
    let mut rig = new_rig();
    let none = rig.run(&["dashboard", "--stop"]).await;
    assert_eq!(none.status.code(), Some(1), "{none:?}");
    assert!(String::from_utf8_lossy(&none.stderr).contains("none runs"), "{none:?}");
    let mut daemon = rig.daemon(&[]).await;
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = taken.local_addr().expect("a name").port().to_string();
    let refused = rig.run(&["dashboard", "--port", &port]).await;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("the daemon") && said.contains(&port), "{said}");
    rig.end_daemon().await;
    let _ = daemon.wait().await;
    rig.stop_and_check_invariants([]).await;
}
