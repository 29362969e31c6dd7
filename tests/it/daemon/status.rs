//! What people see of a state directory: who serves, who is connected, who waits for what; with a daemon and without.
//!
//! Laws: L7, L13, L18.

#![cfg(target_os = "linux")]

use phone_opus::testkit::client::REVISION;
use phone_opus::testkit::{Rig, Role, TestClient, tried_program, until_seen};
use serde_json::{Value, json};

/// A world of its own around the program, in which one agent runs at once.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus"))).with("PHONE_OPUS_MAX_RUNNING", "1")
}

async fn said(rig: &Rig, words: &[&str]) -> String {
    let output = rig.run(words).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

async fn status(rig: &Rig) -> Value {
    serde_json::from_str(&said(rig, &["status", "--json"]).await).expect("JSON")
}

/// The status once it is so.
async fn status_when(rig: &Rig, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    until_seen(what, async || {
        let status = status(rig).await;
        if is_so(&status) { Ok(status) } else { Err(format!("{status:#}")) }
    })
    .await
}

fn count(value: &Value) -> usize {
    value.as_array().map_or(0, Vec::len)
}

async fn greeted(rig: &mut Rig, words: &[&str]) -> TestClient {
    let work = rig.work();
    let mut client = rig.host_with(words, &work);
    client.handshake(REVISION).await;
    client
}

#[tokio::test]
async fn a_daemon_says_who_is_connected_and_the_queue_who_waits_for_what() {
    let mut rig = new_rig();
    let mut first = greeted(&mut rig, &["mcp", "connect"]).await;
    let mut second = greeted(&mut rig, &["mcp", "connect"]).await;
    let runs = first.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    let waits = second.start("consult", json!({"prompt": rig.answering("43")})).await;
    let status = status_when(&rig, "two jobs", |status| {
        count(&status["jobs"]) == 2 && count(&status["jobs"][1]["callers"]) == 1
    })
    .await;
    let daemon = &status["daemon"];
    let sessions: Vec<&Value> =
        daemon["sessions"].as_array().expect("sessions").iter().filter(|seen| seen["client"].is_string()).collect();
    assert_eq!(sessions.len(), 2, "{daemon:#}");
    for seen in &sessions {
        assert_eq!(
            (&seen["directory"], &seen["environment"], &seen["protocol"], &seen["calls"]),
            (&json!("work"), &json!("caller"), &json!(REVISION), &json!(1)),
            "{seen}"
        );
        assert!(seen["version"].is_string() && seen["since"].is_i64(), "{seen}");
    }
    assert_eq!(status["places"], json!({"used": 1, "of": 1}));
    assert_eq!(status["queue"], json!({"running": 1, "queued": 1}));
    let (running, queued) = (&status["jobs"][0], &status["jobs"][1]);
    assert_eq!((&running["status"], &running["waits_for"]), (&json!("running"), &Value::Null), "{status:#}");
    assert_eq!(queued["waits_for"], json!({"what": "place"}), "{status:#}");
    let of = |job: &Value| job["callers"][0]["session"].clone();
    assert!(of(running) != of(queued) && [of(running), of(queued)].contains(&sessions[0]["session"]), "{status:#}");
    assert_eq!(running["callers"][0]["host"], daemon["host"]);
    assert_eq!(count(&status["hosts"]), 0, "the daemon's own word is newer than its row: {status:#}");
    let text = said(&rig, &["status"]).await;
    assert!(text.contains("1 of 1 places are used, 1 wait") && text.contains("waits for a place"), "{text}");
    rig.give_sign("go");
    first.reply(runs).await.expect_success();
    second.reply(waits).await.expect_success();
    for client in [&mut first, &mut second] {
        client.finish().await;
    }
    said(&rig, &["daemon", "stop", "--force"]).await;
    rig.stop_and_check_invariants([first, second]).await;
}

#[tokio::test]
async fn hosts_without_a_daemon_are_seen_for_as_long_as_they_live() {
    let mut rig = new_rig();
    let nothing = status(&rig).await;
    assert_eq!((&nothing["daemon"], count(&nothing["hosts"])), (&Value::Null, 0));
    assert!(!rig.state_dir().root().exists(), "looking made something");
    let mut idle = greeted(&mut rig, &["mcp", "serve"]).await;
    let mut busy = greeted(&mut rig, &["mcp", "serve"]).await;
    let sent = busy.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    let status = status_when(&rig, "its row", |status| count(&status["hosts"][0]["jobs"]) == 1).await;
    assert_eq!(count(&status["hosts"]), 1, "one that was asked for nothing has none: {status:#}");
    let row = &status["hosts"][0];
    assert_eq!((&row["kind"], &row["state"], &row["max_running"]), (&json!("server"), &json!("serving"), &json!(1)));
    assert_eq!(row["pid"], json!(busy.host_pid().as_raw_nonzero().get()));
    let session = &row["sessions"][0];
    assert_eq!((&session["directory"], &session["environment"]), (&json!("work"), &json!("own")), "{row:#}");
    assert_eq!(row["jobs"][0]["sessions"], json!([session["session"]]), "{row:#}");
    assert_eq!(status["jobs"][0]["callers"], json!([{"host": row["host"], "session": session["session"]}]));
    // What ends is not there any more, and a job that is over is nobody's.
    rig.give_sign("go");
    busy.reply(sent).await.expect_success();
    status_when(&rig, "nothing is asked", |status| {
        count(&status["jobs"]) == 0 && count(&status["hosts"][0]["jobs"]) == 0 && count(&status["hosts"]) == 1
    })
    .await;
    let job = busy.consult_in_background(&rig.hanging("hangs")).await;
    rig.wait_for_sign("hangs").await;
    for host in rig.kill(Role::Host) {
        assert!(host.command.contains("mcp serve"), "{host:?}");
    }
    let gone = status_when(&rig, "the host is gone", |status| count(&status["hosts"]) == 0).await;
    assert_eq!((&gone["jobs"][0]["job_id"], count(&gone["jobs"][0]["callers"])), (&json!(job), 0), "{gone:#}");
    idle.expect_end();
    busy.expect_end();
    // Whoever sweeps next forgets its row.
    let mut next = greeted(&mut rig, &["mcp", "serve"]).await;
    until_seen("the row is forgotten", async || {
        let store = phone_opus::internals::jobs::store::StoreHandle::sqlite(rig.state_dir());
        let rows = store.hosts().await.expect("read");
        store.close().await;
        if rows.is_empty() { Ok(()) } else { Err(format!("{rows:?}")) }
    })
    .await;
    next.call("consult_cancel", json!({"job_id": job})).await;
    rig.expect_no_agent_left().await;
    next.finish().await;
    rig.stop_and_check_invariants([idle, busy, next]).await;
}

#[tokio::test]
async fn a_host_that_ends_in_order_leaves_nothing_of_itself() {
    let mut rig = new_rig();
    let mut client = greeted(&mut rig, &["mcp", "serve"]).await;
    client.consult(&rig.answering("42")).await.expect_success();
    status_when(&rig, "its row", |status| count(&status["hosts"]) == 1).await;
    client.finish().await;
    let store = phone_opus::internals::jobs::store::StoreHandle::sqlite(rig.state_dir());
    assert_eq!(store.hosts().await.expect("read"), []);
    store.close().await;
    let left = std::fs::read_dir(rig.state_dir().hosts()).map_or(0, Iterator::count);
    assert_eq!(left, 0, "its lock");
    rig.stop_and_check_invariants([client]).await;
}
