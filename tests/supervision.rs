//! Crashes and crowds inside one process: the library's system with the real runner and a few tools of its own.

#![allow(clippy::expect_used, clippy::panic, reason = "tools and helpers of tests")]

mod rig;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use phone_opus::actors::workers::slot::RestartPolicy;
use phone_opus::jobs::ConsultRequest;
use phone_opus::system::{Grace, Shutdown, System};
use phone_opus::testkit::scripted_agent::Step;
use phone_opus::tools::{Annotations, ReplayContract, Tool, ToolCall, ToolDefinition, ToolFuture, ToolReply};
use rig::client::Reply;
use rig::{Client, Rig, connect, until};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// A tool of an embedding program.
struct TestTool {
    name: &'static str,
    contract: ReplayContract,
    calls: Arc<AtomicUsize>,
    run: fn(usize, ToolCall) -> ToolFuture,
}

impl TestTool {
    /// `run` is given the number of the attempt, from 1.
    fn new(name: &'static str, contract: ReplayContract, run: fn(usize, ToolCall) -> ToolFuture) -> Self {
        Self { name, contract, calls: Arc::default(), run }
    }
}

impl Tool for TestTool {
    fn name(&self) -> &str {
        self.name
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
            name: self.name.to_owned(),
            title: self.name.to_owned(),
            description: "For tests.".to_owned(),
            input_schema: json!({"type": "object"}),
            annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
            meta: None,
        }
    }

    fn contract(&self) -> ReplayContract {
        self.contract
    }

    fn deadline(&self) -> Option<Duration> {
        None
    }

    fn call(&self, call: ToolCall) -> ToolFuture {
        (self.run)(self.calls.fetch_add(1, Ordering::SeqCst) + 1, call)
    }
}

/// Answers with its arguments at its first poll.
fn echo() -> TestTool {
    TestTool::new("echo", ReplayContract::Convergent, |_, call| {
        let text = String::from_utf8_lossy(&call.arguments).into_owned();
        Box::pin(std::future::ready(Ok(ToolReply::text(text))))
    })
}

/// Takes its worker along.
fn boom() -> TestTool {
    TestTool::new("boom", ReplayContract::NeverReplay, |_, _| {
        Box::pin(async {
            tokio::task::yield_now().await;
            panic!("boom");
        })
    })
}

/// Takes its worker along before it has returned a future.
fn early_boom() -> TestTool {
    TestTool::new("early_boom", ReplayContract::NeverReplay, |_, _| panic!("early boom"))
}

/// Fails the first time.
fn stumbles() -> TestTool {
    TestTool::new("stumbles", ReplayContract::Convergent, |attempt, _| {
        Box::pin(async move {
            tokio::task::yield_now().await;
            assert!(attempt > 1, "stumbled");
            Ok(ToolReply::text(format!("attempt {attempt}")))
        })
    })
}

/// Fails each time.
fn cursed() -> TestTool {
    TestTool::new("cursed", ReplayContract::Convergent, |_, _| Box::pin(async { panic!("cursed") }))
}

/// Never answers.
fn stuck() -> TestTool {
    TestTool::new("stuck", ReplayContract::Convergent, |_, _| Box::pin(std::future::pending()))
}

async fn stop(system: System, rig: Rig, clients: impl IntoIterator<Item = Client>) {
    let mut ended = Vec::new();
    for mut client in clients {
        client.hang_up().await;
        client.silence().await;
        ended.push(client);
    }
    let down = system.shutdown(Grace::default()).await;
    assert!(matches!(down, Shutdown::InOrder), "{down:?}");
    rig.stop_and_check_invariants(ended).await;
}

async fn health(client: &mut Client) -> Reply {
    client.call("health_snapshot", json!({"detail": "full"})).await
}

#[tokio::test]
async fn a_worker_lost_during_a_consult_costs_neither_its_answer_nor_a_second_run() {
    let rig = Rig::new();
    let system = rig.system().tool(boom()).start().await.expect("a system");
    let (mut asking, mut other) = (connect(&system).await, connect(&system).await);
    let prompt = rig.doing(vec![Step::Touch(rig.sign("begun")), Step::WaitForFile(rig.sign("go"))]);
    let consult = asking.start("consult", json!({"prompt": prompt})).await;
    rig.wait_for_sign("begun").await;
    assert_eq!(health(&mut other).await["worker_generation"], 1);

    let lost = other.call("boom", json!({})).await.expect_fault("outcome_unknown");
    assert_eq!(lost["fault"]["generation"], 1, "{:#}", lost.0);
    let now = until("the next generation works", async || {
        let now = health(&mut other).await;
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
    stop(system, rig, [asking, other]).await;
}

#[tokio::test]
async fn many_losses_during_one_consult_are_no_more_than_one() {
    let rig = Rig::new();
    let system = rig.system().tool(boom()).tool(early_boom()).start().await.expect("a system");
    let mut client = connect(&system).await;
    let prompt = rig.doing(vec![Step::Touch(rig.sign("begun")), Step::WaitForFile(rig.sign("go"))]);
    let consult = client.start("consult", json!({"prompt": prompt})).await;
    rig.wait_for_sign("begun").await;
    for (generation, tool) in (1..).zip(["boom", "early_boom"]) {
        let lost = client.call(tool, json!({})).await.expect_fault("outcome_unknown");
        assert_eq!(lost["fault"]["generation"], generation, "{:#}", lost.0);
    }
    rig.give_sign("go");
    let reply = client.reply(consult).await;
    assert!(!reply.is_error(), "{:#}", reply.0);
    assert_eq!(rig.runs().len(), 1);
    stop(system, rig, [client]).await;
}

#[tokio::test]
async fn a_convergent_call_is_run_again_after_its_worker_was_lost() {
    let rig = Rig::new();
    let system = rig.system().tool(stumbles()).start().await.expect("a system");
    let mut client = connect(&system).await;
    let reply = client.call("stumbles", json!({})).await;
    assert_eq!((reply.is_error(), reply.text()), (false, "attempt 2"));
    let now = health(&mut client).await;
    assert_eq!((&now["worker_generation"], &now["replays"]), (&json!(2), &json!(1)));
    stop(system, rig, [client]).await;
}

#[tokio::test]
async fn a_convergent_call_that_loses_every_worker_is_given_up() {
    let rig = Rig::new();
    let system = rig.system().tool(cursed()).tool(echo()).start().await.expect("a system");
    let mut client = connect(&system).await;
    client.call("cursed", json!({})).await.expect_fault("replay_exhausted");
    let reply = client.call("echo", json!({"n": 1})).await;
    assert_eq!((reply.is_error(), reply.text()), (false, "{\"n\":1}"));
    stop(system, rig, [client]).await;
}

#[tokio::test]
async fn after_too_many_losses_calls_are_refused_while_the_host_still_answers() {
    let rig = Rig::new();
    let system = rig.system().tool(boom()).tool(echo()).start().await.expect("a system");
    let mut client = connect(&system).await;
    // Six restarts are allowed, so the seventh loss is one too many.
    for _ in 0..7 {
        client.call("boom", json!({})).await.expect_fault("outcome_unknown");
    }
    client.call("echo", json!({})).await.expect_fault("worker_lost");
    client.call("consult", json!({"prompt": rig.answering("never")})).await.expect_fault("worker_lost");
    let now = health(&mut client).await;
    assert_eq!((&now["ready"], &now["worker_alive"], &now["restart_count"]), (&json!(false), &json!(false), &json!(6)));
    let listed = client.call("consult_jobs", json!({})).await;
    assert!(!listed.is_error(), "{:#}", listed.0);
    client.ping().await;
    assert!(rig.runs().is_empty());
    stop(system, rig, [client]).await;
}

#[tokio::test]
async fn a_slot_that_gave_up_tries_again_when_its_period_has_passed() {
    let rig = Rig::new();
    let policy = RestartPolicy {
        intensity: 2,
        period: Duration::from_secs(2),
        backoff: Duration::from_millis(1),
        ..RestartPolicy::default()
    };
    let system = rig.system().restart_policy(policy).tool(boom()).tool(echo()).start().await.expect("a system");
    let mut client = connect(&system).await;
    // A slow machine may need more of them to fit into one period.
    until("the slot gives up", async || (client.call("boom", json!({})).await.code() == "worker_lost").then_some(()))
        .await;
    until("it tries again", async || (!client.call("echo", json!({})).await.is_error()).then_some(())).await;
    stop(system, rig, [client]).await;
}

#[tokio::test]
async fn two_systems_live_in_one_process_and_share_nothing() {
    let (one, two) = (Rig::new(), Rig::new());
    let first = one.system().tool(boom()).start().await.expect("a system");
    let second = two.system().tool(boom()).start().await.expect("another");
    let (mut a, mut b) = (connect(&first).await, connect(&second).await);
    let (asked_a, asked_b) = (one.answering("from one"), two.answering("from two"));
    let sent_a = a.start("consult", json!({"prompt": asked_a})).await;
    let sent_b = b.start("consult", json!({"prompt": asked_b})).await;
    assert_eq!(a.reply(sent_a).await.expect_success()["response"], "from one");
    assert_eq!(b.reply(sent_b).await.expect_success()["response"], "from two");
    a.call("boom", json!({})).await.expect_fault("outcome_unknown");
    let (health_a, health_b) = (health(&mut a).await, health(&mut b).await);
    assert_ne!(health_a["host"], health_b["host"]);
    assert_eq!((&health_b["worker_generation"], &health_b["restart_count"]), (&json!(1), &json!(0)));
    let everything = b.call("consult_jobs", json!({"scope": "all"})).await;
    assert_eq!(everything["jobs"].as_array().map(Vec::len), Some(1));
    stop(first, one, [a]).await;
    // The other one does not notice.
    b.consult(&two.answering("still here")).await.expect_success();
    stop(second, two, [b]).await;
}

#[tokio::test]
async fn a_typed_consult_of_an_embedding_program_needs_no_protocol() {
    let rig = Rig::new();
    let system = rig.system().start().await.expect("a system");
    let request = |prompt: String| ConsultRequest::new(prompt).cwd(rig.work());
    let record = system.consult(request(rig.answering("42"))).await.expect("accepted");
    assert_eq!(record.outcome.and_then(|outcome| outcome.response).as_deref(), Some("42"));
    stop(system, rig, []).await;
}

#[tokio::test]
async fn a_typed_consult_passes_the_same_checks_as_a_clients() {
    let rig = Rig::new();
    let system = rig.system().start().await.expect("a system");
    let refused = system.consult(ConsultRequest::new(" ").agent("oracle").timeout_s(0)).await.expect_err("all wrong");
    assert_eq!(refused.code.as_str(), "invalid_input");
    for part in ["4 problems", "`prompt` is blank", "`cwd` is not absolute", "`agent`", "`timeout_s` is 0"] {
        assert!(refused.detail.contains(part), "{part} in {}", refused.detail);
    }
    assert!(rig.runs().is_empty());
    stop(system, rig, []).await;
}

#[tokio::test]
async fn a_consult_that_loses_its_worker_for_good_lets_go_of_its_job() {
    let rig = Rig::new();
    let never_again = RestartPolicy { intensity: 0, ..RestartPolicy::default() };
    let system = rig.system().tool(boom()).restart_policy(never_again).start().await.expect("a system");
    let mut client = connect(&system).await;
    let consult = client.start("consult", json!({"prompt": rig.hanging("begun")})).await;
    rig.wait_for_sign("begun").await;
    client.call("boom", json!({})).await.expect_fault("outcome_unknown");
    client.reply(consult).await.expect_fault("worker_lost");
    // Nobody waits for it any more, and whoever asks again must not find a second agent at work.
    let job = rig.only_job_over().await;
    assert_eq!(job.state.as_str(), "cancelled");
    assert_eq!(job.cancel_requested.map(|reason| reason.as_str()), Some("caller_lost"));
    assert_eq!(rig.runs().len(), 1);
    client.call("consult", json!({"prompt": rig.answering("no")})).await.expect_fault("worker_lost");
    assert_eq!(health(&mut client).await["ready"], false);
    stop(system, rig, [client]).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stalls_itself_only_and_catches_up_when_it_does() {
    const CALLS: usize = 200;
    let rig = Rig::new();
    let system = rig.system().tool(echo()).start().await.expect("a system");
    let (ours, theirs) = tokio::io::duplex(16 * 1024);
    let (input, output) = tokio::io::split(theirs);
    let serving = tokio::spawn({
        let system = system.clone();
        async move { system.serve(input, output).await }
    });
    let (output, mut input) = tokio::io::split(ours);
    let written = Arc::new(AtomicUsize::new(0));
    let writing = tokio::spawn({
        let written = Arc::clone(&written);
        async move {
            let hello = json!({"jsonrpc": "2.0", "id": "hello", "method": "initialize",
                               "params": {"protocolVersion": "2025-11-25", "capabilities": {}}});
            input.write_all(format!("{hello}\n").as_bytes()).await.expect("written");
            let text = "x".repeat(64 * 1024);
            for id in 0..CALLS {
                let call = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call",
                                  "params": {"name": "echo", "arguments": {"text": text}}});
                input.write_all(format!("{call}\n").as_bytes()).await.expect("written");
                written.store(id + 1, Ordering::SeqCst);
            }
            input.shutdown().await.expect("closed");
        }
    });
    // It is held up when nothing more gets through although another client is served all the while.
    let mut other = connect(&system).await;
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

    let mut lines = BufReader::new(output).lines();
    let mut answered = BTreeSet::new();
    while let Some(line) = lines.next_line().await.expect("read") {
        let answer: Value = serde_json::from_str(&line).expect("a message");
        if let Some(id) = answer["id"].as_u64() {
            assert!(answered.insert(id), "{id} was answered twice");
        }
    }
    assert_eq!(answered.len(), CALLS);
    writing.await.expect("everything was written");
    serving.await.expect("served").expect("in order");
    stop(system, rig, [other]).await;
}

#[tokio::test]
async fn two_thousand_pipelined_calls_are_each_answered_once_with_their_own_answer() {
    let rig = Rig::new();
    let system = rig.system().tool(echo()).start().await.expect("a system");
    let mut client = connect(&system).await;
    let mut sent = Vec::new();
    for n in 0..2000 {
        sent.push(client.start("echo", json!({"n": n})).await);
    }
    for (n, sent) in sent.into_iter().enumerate() {
        let reply = client.reply(sent).await;
        assert_eq!((reply.is_error(), reply.text()), (false, &format!("{{\"n\":{n}}}")[..]));
    }
    stop(system, rig, [client]).await;
}

#[tokio::test]
async fn calls_beyond_the_bound_are_refused_at_once_and_the_session_answers() {
    const BOUND: usize = 1024;
    let rig = Rig::new();
    let system = rig.system().tool(stuck()).tool(echo()).start().await.expect("a system");
    let (mut client, mut other) = (connect(&system).await, connect(&system).await);
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
    let now = health(&mut other).await;
    assert_eq!(now["calls_in_flight"], BOUND - 1);
    for open in &sent[1..BOUND] {
        client.give_up_on(*open);
    }
    stop(system, rig, [client, other]).await;
}
