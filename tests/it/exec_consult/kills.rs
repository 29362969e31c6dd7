//! Whoever is killed, on either side: the job ends once, the agent with it, and nothing is left.
//!
//! Laws: L3, L4, L7.

use std::time::{Duration, Instant};

use phone_opus::internals::base::fault::FaultCode;
use phone_opus::internals::base::ids::UnixMillis;
use phone_opus::internals::jobs::JobState;
use phone_opus::testkit::{Role, Step, until};
use serde_json::json;

use super::kit::{House, SHORT_LEASE, Way, begun, fault};

#[tokio::test]
async fn a_killed_server_interrupts_the_job_with_what_was_heard_and_leaves_nothing_alive() {
    for way in [Way::Unix, Way::Child] {
        let mut house = House::new(way, SHORT_LEASE).await;
        let mut host = house.rig.serve().await;
        let steps = vec![Step::Text("half of it".into()), Step::Touch(house.rig.sign("begun")), Step::Hang];
        let sent = host.start("consult", json!({"prompt": house.rig.doing(steps)})).await;
        begun(&house, "begun").await;
        house.kill_servers();
        let lost = host.reply(sent).await.expect_fault("exec_lost");
        assert_eq!((lost.str("status"), lost["response"].as_str()), ("interrupted", Some("half of it")), "{way:?}");
        assert_eq!(lost["resumable"], true, "{way:?}: {:#}", lost.0);
        assert_eq!(house.rig.agents().len(), 0, "{way:?}: {:?}", house.rig.agents());
        house.rig.expect_runs(1);
        // The next one is answered as soon as there is a server again.
        house.serve(SHORT_LEASE).await;
        host.consult(&house.rig.answering("42")).await.expect_success();
        house.close([host]).await;
    }
}

#[tokio::test]
async fn an_answer_that_was_whole_is_an_answer_though_its_server_is_killed() {
    let mut house = House::new(Way::Unix, SHORT_LEASE).await;
    let mut host = house.rig.serve().await;
    let script = phone_opus::testkit::Script {
        answer: Some("whole".to_owned()),
        after: vec![Step::Touch(house.rig.sign("said")), Step::Hang],
        ..phone_opus::testkit::Script::default()
    };
    let sent = host.start("consult", json!({"prompt": house.rig.prompt(script)})).await;
    house.rig.wait_for_sign("said").await;
    house.kill_servers();
    let reply = host.reply(sent).await.expect_success();
    assert_eq!(reply["response"], "whole", "{:#}", reply.0);
    house.rig.expect_runs(1);
    house.close([host]).await;
}

#[tokio::test]
async fn a_killed_runner_leaves_its_job_running_until_the_lease_of_the_server_has_run_out() {
    let mut house = House::new(Way::Unix, SHORT_LEASE).await;
    let mut host = house.rig.serve().await;
    let job = host.consult_in_background(&house.rig.hanging("begun")).await;
    begun(&house, "begun").await;
    let killed = UnixMillis::now();
    house.rig.kill(Role::Runner);
    let lost = host.job(&job).await.expect_fault("runner_lost");
    assert_eq!(lost.str("status"), "interrupted", "{:#}", lost.0);
    let record = house.rig.only_job_over().await;
    let after = record.finished_at.expect("an end").since(killed);
    assert!(after >= SHORT_LEASE * 1000, "settled after {after} ms, and the agent may live for {SHORT_LEASE} s");
    assert_eq!(house.rig.agents().len(), 0, "{:?}", house.rig.agents());
    house.rig.expect_runs(1);
    house.close([host]).await;
}

#[tokio::test]
async fn a_killed_runner_ends_what_ran_on_the_streams_of_its_child() {
    let mut house = House::new(Way::Child, SHORT_LEASE).await;
    let mut host = house.rig.serve().await;
    let job = host.consult_in_background(&house.rig.hanging("begun")).await;
    begun(&house, "begun").await;
    house.rig.kill(Role::Runner);
    host.job(&job).await.expect_fault("runner_lost");
    house.expect_no_agent_left().await;
    until("its server is gone", async || house.servers().is_empty().then_some(())).await;
    house.rig.expect_runs(1);
    house.close([host]).await;
}

#[tokio::test]
async fn a_killed_host_takes_its_synchronous_consult_along_and_leaves_its_background_job() {
    for way in Way::ALL {
        let mut house = House::new(way, 30).await;
        let mut host = house.rig.serve().await;
        let job = host.consult_in_background(&house.rig.waiting("background", "go")).await;
        let sent = host.start("consult", json!({"prompt": house.rig.hanging("sync")})).await;
        house.rig.wait_for_sign("background").await;
        house.rig.wait_for_sign("sync").await;
        host.give_up_on(sent);
        host.expect_end();
        house.rig.kill(Role::Host);
        let began = Instant::now();
        until("the synchronous one is over", async || {
            let jobs = house.rig.jobs().await;
            jobs.iter().any(|job| fault(job) == Some(FaultCode::CallerLost)).then_some(())
        })
        .await;
        assert!(began.elapsed() < Duration::from_secs(20), "{way:?}: after {:?}", began.elapsed());
        until("the other one runs on, alone", async || (house.rig.agents().len() == 1).then_some(())).await;
        house.rig.give_sign("go");
        let mut next = house.rig.serve().await;
        let read = next.job(&job).await.expect_success();
        assert_eq!(read["response"], "done", "{way:?}");
        assert!(house.rig.jobs().await.iter().all(|job| job.state != JobState::Running), "{way:?}");
        house.rig.expect_runs(2);
        house.close([host, next]).await;
    }
}
