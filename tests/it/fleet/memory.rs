//! Two hosts inside this process, over a queue in memory.
//!
//! Laws: L3, L4, L19.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::sync::Arc;
use std::time::Duration;

use phone_opus::internals::fleet::postgres::LazyFleet;
use phone_opus::internals::fleet::{Fleet, MemoryFleet};
use phone_opus::testkit::{Rig, TestClient, tried_program};
use phone_opus::{Config, FleetAddress, Grace, System, UnixMillis};
use serde_json::json;

pub(super) fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

pub(super) fn queue() -> Arc<dyn Fleet> {
    Arc::new(MemoryFleet::new("me", Arc::new(UnixMillis::now)))
}

/// A host of `rig` that has the directory of `of`, and a place for one agent.
pub(super) async fn host(rig: &Rig, of: &Rig, fleet: &Arc<dyn Fleet>) -> System {
    let workspaces = vec![of.work()];
    let config = Config { wait: Some(Duration::from_secs(300)), max_running: 1, workspaces, ..Config::default() };
    rig.system().config(config).fleet(Arc::clone(fleet)).start().await.expect("a system")
}

/// Keeps the one place of a host taken, so that it claims nothing. The job, to be cancelled.
pub(super) async fn occupied(rig: &Rig, client: &mut TestClient) -> String {
    let job = client.consult_in_background(&rig.hanging("taken")).await;
    rig.wait_for_sign("taken").await;
    job
}

#[tokio::test]
async fn a_busy_machines_consult_is_answered_on_another_and_the_reply_says_where_and_why() {
    let (asks, other, fleet) = (new_rig(), new_rig(), queue());
    let here = host(&asks, &asks, &fleet).await;
    let mut client = TestClient::of(&here).greet().await;
    let taken = occupied(&asks, &mut client).await;
    let there = host(&other, &asks, &fleet).await;
    let arguments = json!({"prompt": other.answering("from there"), "placement": "fleet", "request_key": "k"});
    let reply = client.call("consult", arguments.clone()).await.expect_success();
    assert_eq!(reply.str("response"), "from there", "{:#}", reply.0);
    assert_eq!(reply["placed_because"], "it has the workspace", "{:#}", reply.0);
    assert!(reply["machine"].is_string(), "{:#}", reply.0);
    let again = client.call("consult", arguments).await.expect_success();
    assert_eq!(again["job_id"], reply["job_id"], "one key is one job");
    let read = client.call("consult_job", json!({"job_id": reply["job_id"]})).await.expect_success();
    assert_eq!(read.str("response"), "from there", "{:#}", read.0);
    let wrong = json!({"prompt": "another", "placement": "fleet", "request_key": "k"});
    client.call("consult", wrong).await.expect_fault("request_key_conflict");
    other.expect_runs(1);
    assert!(client.call("consult_cancel", json!({"job_id": taken})).await.is_result());
    client.finish().await;
    drop(here.shutdown(Grace::default()).await);
    other.stop_system_and_check_invariants(there, []).await;
}

#[tokio::test]
async fn a_consult_that_is_a_task_is_looked_at_waited_for_and_cancelled_like_one_of_this_machine() {
    let (asks, other, fleet) = (new_rig(), new_rig(), queue());
    let here = host(&asks, &asks, &fleet).await;
    let mut client = TestClient::of(&here).open();
    client.handshake("2025-11-25").await;
    let taken = occupied(&asks, &mut client).await;
    let there = host(&other, &asks, &fleet).await;
    let created = async |client: &mut TestClient, prompt: String| {
        let params = json!({"name": "consult", "arguments": {"prompt": prompt, "placement": "fleet"}, "task": {}});
        client.request("tools/call", params).await["result"]["task"].clone()
    };
    let task = created(&mut client, other.waiting("begun", "go")).await;
    assert_eq!(task["status"], "working", "{task:#}");
    other.wait_for_sign("begun").await;
    let about = |task: &serde_json::Value| json!({"taskId": task["taskId"]});
    let waiting = client.send("tasks/result", about(&task)).await;
    let seen = client.request("tasks/get", about(&task)).await;
    assert_eq!(seen["result"]["status"], "working", "{seen:#}");
    assert_eq!(seen["result"]["createdAt"], task["createdAt"], "it was made once: {seen:#}");
    assert!(seen["result"]["statusMessage"].as_str().is_some_and(|said| said.contains("on host")), "{seen:#}");
    other.give_sign("go");
    let result = client.answer(waiting).await;
    assert_eq!(result["result"]["structuredContent"]["response"], "done", "{result:#}");
    let seen = client.request("tasks/get", about(&task)).await;
    assert_eq!(seen["result"]["status"], "completed", "{seen:#}");
    assert_eq!(client.request("tasks/cancel", about(&task)).await["error"]["code"], -32602, "it is over");

    let task = created(&mut client, other.hanging("hangs")).await;
    other.wait_for_sign("hangs").await;
    let cancelled = client.request("tasks/cancel", about(&task)).await;
    assert_eq!(cancelled["result"]["status"], "cancelled", "{cancelled:#}");
    let nobodys = json!({"taskId": "6f0c4f0e-5f0b-4c0e-9a57-0d7a1f0e8b11"});
    assert!(client.request("tasks/get", nobodys).await["error"].is_object());
    other.expect_runs(2);
    assert!(client.call("consult_cancel", json!({"job_id": taken})).await.is_result());
    client.finish().await;
    drop(here.shutdown(Grace::default()).await);
    other.stop_system_and_check_invariants(there, []).await;
}

#[tokio::test]
async fn a_cancel_reaches_the_machine_that_runs_it() {
    let (asks, other, fleet) = (new_rig(), new_rig(), queue());
    let here = host(&asks, &asks, &fleet).await;
    let mut client = TestClient::of(&here).greet().await;
    let taken = occupied(&asks, &mut client).await;
    let there = host(&other, &asks, &fleet).await;
    let arguments = json!({"prompt": other.hanging("begun"), "placement": "fleet", "background": true});
    let reply = client.call("consult", arguments).await;
    other.wait_for_sign("begun").await;
    let cancelled = client.call("consult_cancel", json!({"job_id": reply["job_id"]})).await;
    assert_eq!(cancelled["already_over"], false, "{:#}", cancelled.0);
    let read = client.call("consult_job", json!({"job_id": reply["job_id"], "wait_s": 60})).await;
    assert_eq!(read["status"], "cancelled", "{:#}", read.0);
    assert!(client.call("consult_cancel", json!({"job_id": taken})).await.is_result());
    client.finish().await;
    drop(here.shutdown(Grace::default()).await);
    other.stop_system_and_check_invariants(there, []).await;
}

#[tokio::test]
async fn a_host_that_ends_while_it_runs_a_job_is_followed_by_one_that_tells_the_answer() {
    let (asks, other, fleet) = (new_rig(), new_rig(), queue());
    let here = host(&asks, &asks, &fleet).await;
    let mut client = TestClient::of(&here).greet().await;
    let taken = occupied(&asks, &mut client).await;
    let there = host(&other, &asks, &fleet).await;
    let arguments = json!({"prompt": other.waiting("begun", "go"), "placement": "fleet", "background": true});
    let reply = client.call("consult", arguments).await;
    other.wait_for_sign("begun").await;
    drop(there.shutdown(Grace::default()).await);
    let next = host(&other, &asks, &fleet).await;
    other.give_sign("go");
    let read = client.call("consult_job", json!({"job_id": reply["job_id"], "wait_s": 60})).await.expect_success();
    assert_eq!(read["status"], "succeeded", "{:#}", read.0);
    other.expect_runs(1);
    assert!(client.call("consult_cancel", json!({"job_id": taken})).await.is_result());
    client.finish().await;
    drop(here.shutdown(Grace::default()).await);
    other.stop_system_and_check_invariants(next, []).await;
}

#[tokio::test]
async fn without_the_database_local_consults_go_on_and_others_are_refused_by_name() {
    let rig = new_rig();
    let nowhere = FleetAddress::new("postgres://fleet@%2Fnonexistent/fleet");
    let fleet: Arc<dyn Fleet> = Arc::new(LazyFleet::new(nowhere));
    let system = host(&rig, &rig, &fleet).await;
    let mut client = TestClient::of(&system).greet().await;
    let refused = client.call("consult", json!({"prompt": "why?", "placement": "fleet"})).await;
    let refused = refused.expect_fault("store_unavailable");
    assert!(refused.text().contains("placement = local"), "{}", refused.text());
    let reply = client.consult(&rig.answering("here")).await.expect_success();
    assert_eq!(reply.str("response"), "here");
    assert!(!reply.has("placed_because"));
    rig.stop_system_and_check_invariants(system, [client]).await;
}
