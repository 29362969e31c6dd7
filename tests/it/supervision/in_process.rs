//! Crashes and crowds inside one process: the library's system with the real runner and a few tools of its own.
//!
//! Laws: L1, L2, L5, L8, L9, L12, L14.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use phone_opus::internals::actors::supervision::slot::RestartPolicy;
use phone_opus::internals::jobs::ConsultRequest;
use phone_opus::testkit::client::REVISION;
use phone_opus::testkit::tools::{boom, cursed, early_boom, echo, stuck, stumbles};
use phone_opus::testkit::{Rig, TestClient, tried_program, until};
use serde_json::json;

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

#[tokio::test]
async fn a_worker_lost_during_a_consult_costs_neither_its_answer_nor_a_second_run() {
    let rig = new_rig();
    let system = rig.system().tool(boom()).start().await.expect("a system");
    let (mut asking, mut other) = (TestClient::of(&system).greet().await, TestClient::of(&system).greet().await);
    let prompt = rig.waiting("begun", "go");
    let consult = asking.start("consult", json!({"prompt": prompt})).await;
    rig.wait_for_sign("begun").await;
    assert_eq!(other.health().await["worker_generation"], 1);

    let lost = other.call("boom", json!({})).await.expect_fault("outcome_unknown");
    assert_eq!(lost["fault"]["generation"], 1, "{:#}", lost.0);
    let now = until("the next generation works", async || {
        let now = other.health().await;
        // The consult is given to the new worker once the store has said that it was accepted.
        (now["worker_generation"] == 2 && now["replays"] == 1).then_some(now)
    })
    .await;
    let facts = [&now["restart_count"], &now["calls_in_flight"], &now["worker_alive"], &now["ready"]];
    assert_eq!(facts, [&json!(1), &json!(1), &json!(true), &json!(true)], "{:#}", now.0);
    assert!(now["last_fault"].to_string().contains("boom"), "{:#}", now.0);

    rig.give_sign("go");
    let reply = asking.reply(consult).await.expect_success();
    assert_eq!(reply["response"], "done");
    assert_eq!((rig.runs().len(), rig.jobs().await.len()), (1, 1));
    other.ping().await;
    rig.stop_system_and_check_invariants(system, [asking, other]).await;
}

#[tokio::test]
async fn many_losses_during_one_consult_are_no_more_than_one() {
    let rig = new_rig();
    let system = rig.system().tool(boom()).tool(early_boom()).start().await.expect("a system");
    let mut client = TestClient::of(&system).greet().await;
    let prompt = rig.waiting("begun", "go");
    let consult = client.start("consult", json!({"prompt": prompt})).await;
    rig.wait_for_sign("begun").await;
    for (generation, tool) in (1..).zip(["boom", "early_boom"]) {
        let lost = client.call(tool, json!({})).await.expect_fault("outcome_unknown");
        assert_eq!(lost["fault"]["generation"], generation, "{:#}", lost.0);
    }
    rig.give_sign("go");
    let reply = client.reply(consult).await;
    assert!(!reply.is_error(), "{:#}", reply.0);
    rig.expect_runs(1);
    rig.stop_system_and_check_invariants(system, [client]).await;
}

#[tokio::test]
async fn a_convergent_call_is_run_again_after_its_worker_was_lost() {
    let rig = new_rig();
    let system = rig.system().tool(stumbles()).start().await.expect("a system");
    let mut client = TestClient::of(&system).greet().await;
    let reply = client.call("stumbles", json!({})).await;
    assert_eq!((reply.is_error(), reply.text()), (false, "attempt 2"));
    let now = client.health().await;
    assert_eq!((&now["worker_generation"], &now["replays"]), (&json!(2), &json!(1)));
    rig.stop_system_and_check_invariants(system, [client]).await;
}

#[tokio::test]
async fn a_convergent_call_that_loses_every_worker_is_given_up() {
    let rig = new_rig();
    let system = rig.system().tool(cursed()).tool(echo()).start().await.expect("a system");
    let mut client = TestClient::of(&system).greet().await;
    client.call("cursed", json!({})).await.expect_fault("replay_exhausted");
    let reply = client.call("echo", json!({"n": 1})).await;
    assert_eq!((reply.is_error(), reply.text()), (false, "{\"n\":1}"));
    rig.stop_system_and_check_invariants(system, [client]).await;
}

#[tokio::test]
async fn after_too_many_losses_calls_are_refused_while_the_host_still_answers() {
    let rig = new_rig();
    let system = rig.system().tool(boom()).tool(echo()).start().await.expect("a system");
    let mut client = TestClient::of(&system).greet().await;
    // Six restarts are allowed, so the seventh loss is one too many.
    for _ in 0..7 {
        client.call("boom", json!({})).await.expect_fault("outcome_unknown");
    }
    client.call("echo", json!({})).await.expect_fault("worker_lost");
    client.call("consult", json!({"prompt": rig.answering("never")})).await.expect_fault("worker_lost");
    let now = client.health().await;
    assert_eq!((&now["ready"], &now["worker_alive"], &now["restart_count"]), (&json!(false), &json!(false), &json!(6)));
    let listed = client.call("consult_jobs", json!({})).await;
    assert!(!listed.is_error(), "{:#}", listed.0);
    client.ping().await;
    rig.expect_runs(0);
    rig.stop_system_and_check_invariants(system, [client]).await;
}

#[tokio::test]
async fn a_slot_that_gave_up_tries_again_when_its_period_has_passed() {
    let rig = new_rig();
    let policy = RestartPolicy {
        intensity: 2,
        period: Duration::from_secs(2),
        backoff: Duration::from_millis(1),
        ..RestartPolicy::default()
    };
    let system = rig.system().restart_policy(policy).tool(boom()).tool(echo()).start().await.expect("a system");
    let mut client = TestClient::of(&system).greet().await;
    // A slow machine may need more of them to fit into one period.
    until("the slot gives up", async || (client.call("boom", json!({})).await.code() == "worker_lost").then_some(()))
        .await;
    until("it tries again", async || (!client.call("echo", json!({})).await.is_error()).then_some(())).await;
    rig.stop_system_and_check_invariants(system, [client]).await;
}

#[tokio::test]
async fn two_systems_live_in_one_process_and_share_nothing() {
    let (one, two) = (new_rig(), new_rig());
    let first = one.system().tool(boom()).start().await.expect("a system");
    let second = two.system().tool(boom()).start().await.expect("another");
    let (mut a, mut b) = (TestClient::of(&first).greet().await, TestClient::of(&second).greet().await);
    let (asked_a, asked_b) = (one.answering("from one"), two.answering("from two"));
    let sent_a = a.start("consult", json!({"prompt": asked_a})).await;
    let sent_b = b.start("consult", json!({"prompt": asked_b})).await;
    assert_eq!(a.reply(sent_a).await.expect_success()["response"], "from one");
    assert_eq!(b.reply(sent_b).await.expect_success()["response"], "from two");
    a.call("boom", json!({})).await.expect_fault("outcome_unknown");
    let (health_a, health_b) = (a.health().await, b.health().await);
    assert_ne!(health_a["host"], health_b["host"]);
    assert_eq!((&health_b["worker_generation"], &health_b["restart_count"]), (&json!(1), &json!(0)));
    let everything = b.call("consult_jobs", json!({"scope": "all"})).await;
    assert_eq!(everything["jobs"].as_array().map(Vec::len), Some(1));
    one.stop_system_and_check_invariants(first, [a]).await;
    // The other one does not notice.
    b.consult(&two.answering("still here")).await.expect_success();
    two.stop_system_and_check_invariants(second, [b]).await;
}

#[tokio::test]
async fn a_typed_consult_of_an_embedding_program_needs_no_protocol() {
    let rig = new_rig();
    let system = rig.system().start().await.expect("a system");
    let request = |prompt: String| ConsultRequest::new(prompt).cwd(rig.work());
    let record = system.consult(request(rig.answering("42"))).await.expect("accepted");
    assert_eq!(record.outcome.and_then(|outcome| outcome.response).as_deref(), Some("42"));
    rig.stop_system_and_check_invariants(system, []).await;
}

#[tokio::test]
async fn a_typed_consult_passes_the_same_checks_as_a_clients() {
    let rig = new_rig();
    let system = rig.system().start().await.expect("a system");
    let wrong = ConsultRequest::new(" ").cwd("here").agent("oracle").timeout_s(0);
    let refused = system.consult(wrong).await.expect_err("all wrong");
    assert_eq!(refused.code.as_str(), "invalid_input");
    for part in ["4 problems", "`prompt` is blank", "`cwd` is not absolute", "`agent`", "`timeout_s` is 0"] {
        assert!(refused.detail.contains(part), "{part} in {}", refused.detail);
    }
    rig.expect_runs(0);
    rig.stop_system_and_check_invariants(system, []).await;
}

#[tokio::test]
async fn a_consult_that_loses_its_worker_for_good_lets_go_of_its_job() {
    let rig = new_rig();
    let never_again = RestartPolicy { intensity: 0, ..RestartPolicy::default() };
    let system = rig.system().tool(boom()).restart_policy(never_again).start().await.expect("a system");
    let mut client = TestClient::of(&system).greet().await;
    let consult = client.start("consult", json!({"prompt": rig.hanging("begun")})).await;
    rig.wait_for_sign("begun").await;
    client.call("boom", json!({})).await.expect_fault("outcome_unknown");
    client.reply(consult).await.expect_fault("worker_lost");
    // Nobody waits for it any more, and whoever asks again must not find a second agent at work.
    let job = rig.only_job_over().await;
    assert_eq!(job.state.as_str(), "cancelled");
    assert_eq!(job.cancel_requested.map(|reason| reason.as_str()), Some("caller_lost"));
    rig.expect_runs(1);
    client.call("consult", json!({"prompt": rig.answering("no")})).await.expect_fault("worker_lost");
    assert_eq!(client.health().await["ready"], false);
    rig.stop_system_and_check_invariants(system, [client]).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stalls_itself_only_and_catches_up_when_it_does() {
    const CALLS: usize = 200;
    let rig = new_rig();
    let system = rig.system().tool(echo()).start().await.expect("a system");
    let mut deaf = TestClient::of(&system).buffer(16 * 1024).not_reading().open();
    let reading = deaf.reading();
    let written = Arc::new(AtomicUsize::new(0));
    let writing = tokio::spawn({
        let written = Arc::clone(&written);
        async move {
            deaf.send_greeting(REVISION).await;
            let text = "x".repeat(64 * 1024);
            let mut sent = Vec::new();
            for id in 0..CALLS {
                sent.push(deaf.start("echo", json!({"text": text})).await);
                written.store(id + 1, Ordering::SeqCst);
            }
            (deaf, sent)
        }
    });
    // It is held up when nothing more gets through although another client is served all the while.
    let mut other = TestClient::of(&system).greet().await;
    let mut last = usize::MAX;
    until("the client is held up", async || {
        for n in 0..100 {
            let reply = other.call("echo", json!({"n": n})).await;
            assert_eq!(reply.text(), format!("{{\"n\":{n}}}"));
        }
        let before = std::mem::replace(&mut last, written.load(Ordering::SeqCst));
        (before == last && last > 0).then_some(())
    })
    .await;
    assert!(
        last < CALLS && !writing.is_finished(),
        "{last} calls of 64 KiB were taken from a client that reads nothing"
    );
    other.consult(&rig.answering("42")).await.expect_success();

    reading.go_on();
    let (mut deaf, sent) = writing.await.expect("everything was written");
    assert_eq!(sent.len(), CALLS);
    deaf.hang_up().await;
    for sent in sent {
        assert!(!deaf.reply(sent).await.is_error());
    }
    deaf.served().await.expect("in order");
    // That each was answered once is a law, and the laws come last.
    rig.stop_system_and_check_invariants(system, [deaf, other]).await;
}

#[tokio::test]
async fn two_thousand_pipelined_calls_are_each_answered_once_with_their_own_answer() {
    let rig = new_rig();
    let system = rig.system().tool(echo()).start().await.expect("a system");
    let mut client = TestClient::of(&system).greet().await;
    let mut sent = Vec::new();
    for n in 0..2000 {
        sent.push(client.start("echo", json!({"n": n})).await);
    }
    for (n, sent) in sent.into_iter().enumerate() {
        let reply = client.reply(sent).await;
        assert_eq!((reply.is_error(), reply.text()), (false, &format!("{{\"n\":{n}}}")[..]));
    }
    rig.stop_system_and_check_invariants(system, [client]).await;
}

#[tokio::test]
async fn calls_beyond_the_bound_are_refused_at_once_and_the_session_answers() {
    const BOUND: usize = 1024;
    let rig = new_rig();
    let system = rig.system().tool(stuck()).tool(echo()).start().await.expect("a system");
    let (mut client, mut other) = (TestClient::of(&system).greet().await, TestClient::of(&system).greet().await);
    let mut sent = Vec::new();
    for _ in 0..10_000 {
        sent.push(client.start("stuck", json!({})).await);
    }
    client.ping().await;
    for refused in &sent[BOUND..] {
        client.reply(*refused).await.expect_fault("busy");
    }
    // A place that becomes free is a place.
    client.cancel(sent[0]).await;
    let reply = client.call("echo", json!({})).await;
    assert!(!reply.is_error(), "{:#}", reply.0);
    let reply = other.call("echo", json!({})).await;
    assert!(!reply.is_error(), "another session has its own bound: {:#}", reply.0);
    let now = other.health().await;
    assert_eq!(now["calls_in_flight"], BOUND - 1);
    for open in &sent[1..BOUND] {
        client.give_up_on(*open);
    }
    rig.stop_system_and_check_invariants(system, [client, other]).await;
}
