//! A panic in each part of the tree in turn: the session goes on, each request gets its one answer, no agent runs twice.
//!
//! Laws: L1, L3, L8, L10.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use phone_opus::internals::failpoints::{Ends, FaultCounters, FaultPlan, Faults};
use phone_opus::internals::system::System;
use phone_opus::testkit::{Rig, TestClient, tried_program, until};
use serde_json::{Value, json};

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

async fn connect(system: &System) -> TestClient {
    TestClient::of(system).greet().await
}

fn faults(plan: &str) -> Faults {
    let plan = FaultPlan::parse(plan, 0).expect("a plan");
    Faults::arm(plan, Ends::Nothing, FaultCounters::Memory).expect("armed")
}

async fn stop(system: System, rig: Rig, clients: impl IntoIterator<Item = TestClient>) {
    assert_eq!(system.health().gauges.broken_laws(), Vec::<String>::new());
    rig.stop_system_and_check_invariants(system, clients).await;
}

/// A consult that is under way while the plan strikes, and one after it; both answered, one run each.
async fn a_consult_survives(plan: &str) {
    let rig = new_rig();
    let faults = faults(plan);
    let system = rig.system().faults(faults.clone()).start().await.expect("a system");
    let mut client = connect(&system).await;
    let prompt = rig.waiting("begun", "go");
    let consult = client.start("consult", json!({"prompt": prompt})).await;
    rig.wait_for_sign("begun").await;
    // Somebody else makes work for every part while the consult runs.
    let mut other = connect(&system).await;
    let reply = other.consult(&rig.answering("meanwhile")).await;
    assert!(!reply.is_error(), "{plan}: {:#}", reply.0);
    until(&format!("{plan} has struck"), async || (!faults.fired().is_empty()).then_some(())).await;
    rig.give_sign("go");
    let reply = client.reply(consult).await;
    assert!(!reply.is_error(), "{plan}: {:#}", reply.0);
    assert_eq!(reply.expect_success()["response"], "done", "{plan}");
    client.consult(&rig.answering("after")).await.expect_success();
    client.ping().await;
    assert_eq!(rig.runs().len(), 3, "{plan}");
    stop(system, rig, [client, other]).await;
}

#[tokio::test]
async fn a_panic_of_the_jobs_supervisor_costs_no_consult() {
    for message in ["accept", "stored", "attach", "ended", "gone", "accept#2", "stored#2", "attach#2"] {
        a_consult_survives(&format!("jobs.supervise@{message}=panic")).await;
    }
}

#[tokio::test]
async fn a_panic_of_a_consult_actor_costs_no_consult() {
    for message in ["began", "ended", "began#2"] {
        a_consult_survives(&format!("consult.attend@{message}=panic")).await;
    }
}

#[tokio::test]
async fn a_panic_of_the_sessions_supervisor_costs_no_connection() {
    for message in ["opened#2", "opened#1"] {
        a_consult_survives(&format!("sessions.supervise@{message}=panic")).await;
    }
}

#[tokio::test]
async fn a_panic_around_accepting_costs_no_consult() {
    for rule in [
        "jobs.before_accept=panic",
        "jobs.after_accept=panic",
        "jobs.before_accept=drop",
        "jobs.after_accept=drop",
        "store.commit@accept=panic#2",
    ] {
        let rule = rule.replace("=panic#2", "#2=panic");
        a_consult_survives(&rule).await;
    }
}

#[tokio::test]
async fn a_panic_of_a_session_costs_at_most_what_it_was_reading() {
    for plan in ["stdio.read#4=panic", "stdio.write#3=panic", "session.dispatch@tools/call:consult=panic"] {
        a_consult_survives(plan).await;
    }
}

#[tokio::test]
async fn a_call_that_was_lost_with_its_session_is_answered_once_and_its_neighbours_go_on() {
    let rig = new_rig();
    let faults = faults("ledger.record@tools/call:consult=panic");
    let system = rig.system().faults(faults.clone()).start().await.expect("a system");
    let mut client = connect(&system).await;
    let burst: Vec<Value> =
        (1..=4).map(|n| json!({"jsonrpc": "2.0", "id": format!("p{n}"), "method": "ping"})).collect();
    let prompt = rig.answering("never");
    let call = json!({"jsonrpc": "2.0", "id": "lost", "method": "tools/call",
                      "params": {"name": "consult", "arguments": {"prompt": prompt}}});
    let lines = [&burst[0], &burst[1], &call, &burst[2], &burst[3]].map(Value::to_string).join("\n") + "\n";
    client.bytes(lines.as_bytes()).await;
    client.ping().await;
    for id in ["\"p1\"", "\"p2\"", "\"p3\"", "\"p4\""] {
        assert_eq!(client.answers_to(id).len(), 1, "{id}");
    }
    let lost = client.answers_to("\"lost\"");
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0]["result"]["structuredContent"]["fault"]["code"], "internal", "{lost:?}");
    assert!(rig.runs().is_empty());
    stop(system, rig, [client]).await;
}

#[tokio::test]
async fn a_panic_of_telemetry_costs_a_batch_that_is_counted() {
    let rig = new_rig();
    let system = rig.system().faults(faults("telemetry.write=panic")).start().await.expect("a system");
    let mut client = connect(&system).await;
    client.ping().await;
    let totals = until("telemetry counts again", async || {
        client.ping().await;
        let reply = client.call("telemetry_snapshot", json!({})).await;
        (!reply.is_error()).then(|| reply["totals"].clone())
    })
    .await;
    assert!(totals["dropped"].as_u64().is_some_and(|dropped| dropped > 0), "{totals}");
    stop(system, rig, [client]).await;
}

#[tokio::test]
async fn a_part_that_keeps_failing_ends_the_system_in_order_and_jobs_are_kept() {
    let rig = new_rig();
    let system = rig.system().faults(faults("jobs.supervise#*=panic")).start().await.expect("a system");
    let mut client = connect(&system).await;
    // Nothing was accepted; which of its workers took the call along the last time is a matter of moments.
    let reply = client.call("consult", json!({"prompt": rig.answering("never")})).await;
    assert!(["stopping", "replay_exhausted"].contains(&reply.code()), "{:#}", reply.0);
    let down = system.down().await;
    assert!(format!("{down:?}").contains("jobs failed too often"), "{down:?}");
    client.silence().await;
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_background_consult_whose_supervisor_failed_after_accepting_has_a_runner_at_once() {
    let rig = new_rig();
    let system = rig.system().faults(faults("jobs.supervise@stored=panic")).start().await.expect("a system");
    let mut client = connect(&system).await;
    let job = client.consult_in_background(&rig.answering("42")).await;
    let began = std::time::Instant::now();
    assert_eq!(client.job(&job).await.expect_success()["response"], "42");
    // Without its host's care it would wait for a sweep, half a minute later.
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
    stop(system, rig, [client]).await;
}

#[tokio::test]
async fn a_synchronous_consult_ends_with_its_caller_also_when_nobody_heard_of_it() {
    for message in ["withdrawn", "session_over"] {
        let rig = new_rig();
        let plan = faults(&format!("jobs.supervise@{message}=panic"));
        let system = rig.system().faults(plan).start().await.expect("a system");
        let (mut asking, other) = (connect(&system).await, connect(&system).await);
        let consult = asking.start("consult", json!({"prompt": rig.hanging("begun")})).await;
        rig.wait_for_sign("begun").await;
        asking.give_up_on(consult);
        asking.hang_up().await;
        assert_eq!(rig.only_job_over().await.state.as_str(), "cancelled", "{message}");
        stop(system, rig, [asking, other]).await;
    }
}

#[tokio::test]
async fn a_session_that_fails_while_it_sends_several_calls_takes_nobody_along() {
    let rig = new_rig();
    let plan = faults("session.dispatch@tools/call:consult#2=panic");
    let system = rig.system().faults(plan).start().await.expect("a system");
    let mut client = connect(&system).await;
    client.consult(&rig.answering("the first brings the worker")).await.expect_success();
    let call = |id: u64, text: &str| {
        json!({"jsonrpc": "2.0", "id": format!("c{id}"), "method": "tools/call",
               "params": {"name": "consult", "arguments": {"prompt": rig.answering(text)}}})
        .to_string()
    };
    let lines = format!("{}\n{}\n", call(1, "one"), call(2, "two"));
    client.bytes(lines.as_bytes()).await;
    let ids = ["\"c1\"", "\"c2\""];
    until("both are answered", async || {
        let answers = client.exchange().answers;
        ids.iter().all(|id| answers.contains_key(*id)).then_some(())
    })
    .await;
    let answered = ids.map(|id| client.answers_to(id));
    for answers in answered {
        assert_eq!(answers[0]["result"]["structuredContent"]["status"], "succeeded", "{answers:?}");
    }
    assert_eq!(client.generation().await, 1, "the worker all sessions share lives on");
    stop(system, rig, [client]).await;
}

#[tokio::test]
async fn a_system_that_is_killed_tells_whoever_serves_a_connection() {
    let rig = new_rig();
    let system = rig.system().start().await.expect("a system");
    let (ours, theirs) = tokio::io::duplex(1024);
    let (input, output) = tokio::io::split(theirs);
    let serving = tokio::spawn({
        let system = system.clone();
        async move { system.serve(input, output).await }
    });
    tokio::task::yield_now().await;
    // No time at all: the root is killed.
    let down = system.shutdown(phone_opus::internals::system::Grace::none()).await;
    assert!(matches!(down, phone_opus::internals::system::Shutdown::Killed), "{down:?}");
    let served = tokio::time::timeout(std::time::Duration::from_secs(10), serving).await.expect("it returns");
    drop(served.expect("without a panic"));
    drop(ours);
    rig.check_invariants().await;
}
