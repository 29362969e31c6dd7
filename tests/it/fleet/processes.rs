//! Two real hosts and a PostgreSQL of the test's own.
//!
//! Laws: L3, L4, L19.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use phone_opus::testkit::{Rig, tried_program};
use serde_json::json;

use crate::private_postgres::PrivateServer;

/// The URL of a database, of its settings.
pub(crate) fn url(settings: &str) -> String {
    let of = |key: &str| settings.split(' ').find_map(|pair| pair.strip_prefix(key)).expect("it is there").to_owned();
    format!("postgres://fleet@{}/{}", of("host=").replace('/', "%2F"), of("dbname="))
}

pub(super) fn new_rig(url: &str) -> Rig {
    let program = tried_program(env!("CARGO_BIN_EXE_phone-opus"));
    Rig::new(program).with("PHONE_OPUS_FLEET", url).with("PHONE_OPUS_MAX_RUNNING", "1")
}

#[tokio::test]
async fn a_consult_of_one_host_is_answered_on_another_through_a_restart_of_the_database() {
    let Some(server) = PrivateServer::own() else { return };
    let url = url(&server.database().await);
    let (mut asks, mut other) = (new_rig(&url), new_rig(&url));
    other.set("PHONE_OPUS_WORKSPACES", asks.work().display().to_string());
    let mut client = asks.serve().await;
    let taken = client.consult_in_background(&asks.hanging("taken")).await;
    asks.wait_for_sign("taken").await;
    let there = other.serve().await;
    let arguments = json!({"prompt": other.answering("first"), "placement": "fleet"});
    let reply = client.call("consult", arguments).await.expect_success();
    assert_eq!(reply.str("response"), "first", "{:#}", reply.0);
    let arguments = json!({"prompt": other.waiting("begun", "go"), "placement": "fleet", "background": true});
    let reply = client.call("consult", arguments).await;
    other.wait_for_sign("begun").await;
    server.kill_and_restart();
    // Who asks while it is away is told so.
    server.sql("postgres", "SELECT 1").await;
    other.give_sign("go");
    let read = client.call("consult_job", json!({"job_id": reply["job_id"], "wait_s": 120})).await.expect_success();
    assert_eq!(read["status"], "succeeded", "{:#}", read.0);
    other.expect_runs(2);
    assert!(client.call("consult_cancel", json!({"job_id": taken})).await.is_result());
    client.finish().await;
    other.stop_and_check_invariants([there]).await;
}
