//! What becomes of a fleet's consult when its caller cancels it, leaves, or asks through a worker process.
//!
//! Laws: L2, L3, L7, L19.

use phone_opus::Grace;
use phone_opus::internals::base::fault::FaultCode;
use phone_opus::internals::jobs::{JobRecord, JobState};
use phone_opus::testkit::{Rig, Role, TestClient, until};
use serde_json::json;

use super::memory::{host, new_rig, occupied, queue};
use super::processes;
use crate::private_postgres::PrivateServer;

/// How the caller of a consult goes.
#[derive(Debug, Clone, Copy)]
enum Goes {
    Cancels,
    Leaves,
    TheSystemEnds,
}

async fn ends_job_of(other: &Rig) -> JobRecord {
    let job = other.only_job_over().await;
    other.expect_no_agent_left().await;
    job
}

#[tokio::test]
async fn a_consult_whose_caller_cancels_or_leaves_is_cancelled_on_the_other_machine() {
    for goes in [Goes::Cancels, Goes::Leaves, Goes::TheSystemEnds] {
        let (asks, other, fleet) = (new_rig(), new_rig(), queue());
        let here = host(&asks, &asks, &fleet).await;
        let mut client = TestClient::of(&here).greet().await;
        let taken = occupied(&asks, &mut client).await;
        let there = host(&other, &asks, &fleet).await;
        let arguments = json!({"prompt": other.hanging("begun"), "placement": "fleet"});
        let sent = client.start("consult", arguments).await;
        other.wait_for_sign("begun").await;
        assert!(client.call("consult_cancel", json!({"job_id": taken})).await.is_result());
        match goes {
            Goes::Cancels => {
                client.cancel(sent).await;
                assert_eq!(ends_job_of(&other).await.state, JobState::Cancelled, "{goes:?}");
                client.expect_silence_about(sent).await;
                client.finish().await;
                drop(here.shutdown(Grace::default()).await);
            }
            Goes::Leaves => {
                client.give_up_on(sent);
                client.finish().await;
                assert_eq!(ends_job_of(&other).await.state, JobState::Cancelled, "{goes:?}");
                drop(here.shutdown(Grace::default()).await);
            }
            Goes::TheSystemEnds => {
                client.give_up_on(sent);
                drop(here.shutdown(Grace::default()).await);
                assert_eq!(ends_job_of(&other).await.state, JobState::Cancelled, "{goes:?}");
                client.finish().await;
            }
        }
        other.expect_runs(1);
        other.stop_system_and_check_invariants(there, []).await;
    }
}

#[tokio::test]
async fn one_in_the_background_and_one_that_came_back_as_a_running_job_go_on_without_their_caller() {
    for arguments in [json!({"background": true}), json!({"wait_s": 1})] {
        let (asks, other, fleet) = (new_rig(), new_rig(), queue());
        let here = host(&asks, &asks, &fleet).await;
        let mut client = TestClient::of(&here).greet().await;
        let taken = occupied(&asks, &mut client).await;
        let there = host(&other, &asks, &fleet).await;
        let mut arguments = arguments;
        arguments["prompt"] = other.waiting("begun", "go").into();
        arguments["placement"] = "fleet".into();
        let reply = client.call("consult", arguments).await;
        assert!(reply.has("job_id") && reply["status"] != "succeeded", "{:#}", reply.0);
        other.wait_for_sign("begun").await;
        assert!(client.call("consult_cancel", json!({"job_id": taken})).await.is_result());
        client.finish().await;
        drop(here.shutdown(Grace::default()).await);
        other.give_sign("go");
        assert_eq!(other.only_job_over().await.state, JobState::Succeeded);
        other.stop_system_and_check_invariants(there, []).await;
    }
}

#[tokio::test]
async fn one_that_another_caller_put_into_the_queue_is_not_cancelled_by_who_joined_it() {
    let (asks, other, fleet) = (new_rig(), new_rig(), queue());
    let here = host(&asks, &asks, &fleet).await;
    let mut client = TestClient::of(&here).greet().await;
    let taken = occupied(&asks, &mut client).await;
    let there = host(&other, &asks, &fleet).await;
    let prompt = other.waiting("begun", "go");
    let arguments = json!({"prompt": prompt, "placement": "fleet", "request_key": "k"});
    let first = client.start("consult", arguments.clone()).await;
    other.wait_for_sign("begun").await;
    let mut joins = TestClient::of(&here).greet().await;
    let second = joins.start("consult", arguments).await;
    until("both wait", async || {
        let health = client.call("health_snapshot", json!({})).await;
        (health["calls_in_flight"] == 2).then_some(())
    })
    .await;
    joins.cancel(second).await;
    joins.ping().await;
    other.give_sign("go");
    client.reply(first).await.expect_success();
    assert!(client.call("consult_cancel", json!({"job_id": taken})).await.is_result());
    for client in [&mut client, &mut joins] {
        client.finish().await;
    }
    drop(here.shutdown(Grace::default()).await);
    other.stop_system_and_check_invariants(there, []).await;
}

#[tokio::test]
async fn a_worker_process_asks_the_fleet_of_its_host_and_what_it_asked_outlives_it() {
    let Some(server) = PrivateServer::own() else { return };
    let url = processes::url(&server.database().await);
    let (mut asks, mut other) = (processes::new_rig(&url), processes::new_rig(&url));
    asks.set("PHONE_OPUS_ISOLATION", "process");
    other.set("PHONE_OPUS_WORKSPACES", asks.work().display().to_string());
    let mut client = asks.serve().await;
    let taken = client.consult_in_background(&asks.hanging("taken")).await;
    asks.wait_for_sign("taken").await;
    let there = other.serve().await;
    let arguments = json!({"prompt": other.answering("from there"), "placement": "fleet"});
    let reply = client.call("consult", arguments).await.expect_success();
    assert_eq!(reply.str("response"), "from there", "{:#}", reply.0);
    assert!(reply["machine"].is_string() && reply["placed_because"] == "it has the workspace", "{:#}", reply.0);

    // Its worker is lost while it waits: the next one waits for the same job.
    let prompt = other.waiting("begun", "go");
    let sent = client.start("consult", json!({"prompt": prompt, "placement": "fleet"})).await;
    other.wait_for_sign("begun").await;
    let generation = client.generation().await;
    asks.kill(Role::Worker);
    client.wait_for_generation(generation + 1).await;
    other.give_sign("go");
    client.reply(sent).await.expect_success();
    other.expect_runs(2);

    // A cancel ends it there.
    let sent = client.start("consult", json!({"prompt": other.hanging("again"), "placement": "fleet"})).await;
    other.wait_for_sign("again").await;
    client.cancel(sent).await;
    other.expect_no_agent_left().await;
    let last = until("it is over", async || {
        let jobs = other.jobs().await;
        jobs.into_iter().max_by_key(|job| job.sequence).filter(|job| job.state.is_terminal())
    })
    .await;
    let fault = last.outcome.and_then(|outcome| outcome.fault).map(|fault| fault.code);
    assert_eq!((last.state, fault), (JobState::Cancelled, Some(FaultCode::Cancelled)));
    assert!(client.call("consult_cancel", json!({"job_id": taken})).await.is_result());
    client.finish().await;
    other.stop_and_check_invariants([there]).await;
}

#[tokio::test]
async fn the_end_of_input_of_a_server_cancels_its_consult_on_another_machine_before_it_ends() {
    let Some(server) = PrivateServer::own() else { return };
    let url = processes::url(&server.database().await);
    let (mut asks, mut other) = (processes::new_rig(&url), processes::new_rig(&url));
    other.set("PHONE_OPUS_WORKSPACES", asks.work().display().to_string());
    let mut client = asks.serve().await;
    let taken = client.consult_in_background(&asks.hanging("taken")).await;
    asks.wait_for_sign("taken").await;
    let there = other.serve().await;
    let sent = client.start("consult", json!({"prompt": other.hanging("begun"), "placement": "fleet"})).await;
    other.wait_for_sign("begun").await;
    assert!(client.call("consult_cancel", json!({"job_id": taken})).await.is_result());
    client.give_up_on(sent);
    client.finish().await;
    assert_eq!(other.only_job_over().await.state, JobState::Cancelled);
    other.stop_and_check_invariants([there]).await;
}
