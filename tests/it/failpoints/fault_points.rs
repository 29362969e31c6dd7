//! Fault plans on the real program, one family after the other: what the caller is told, what is run, what is stored, and
//! that the next call is served as if nothing had been. That all laws hold is checked when each case is over.
//!
//! Laws: L1, L3, L4, L8.

#![cfg(target_os = "linux")]

use phone_opus::testkit::{Reply, Rig, Role, TestClient, tried_program, until};
use serde_json::json;

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

#[derive(Debug, Clone, Copy)]
enum Where {
    Host,
    Process,
}

impl Where {
    const BOTH: [Self; 2] = [Self::Host, Self::Process];

    const fn word(self) -> &'static str {
        match self {
            Self::Host => "in_process",
            Self::Process => "process",
        }
    }
}

/// What a call came to: its fault's code, or the status of the job.
fn told(reply: &Reply) -> &str {
    if reply.is_error() { reply.code() } else { reply.str("status") }
}

/// Every rule of the plan has fired so often, and no session found a law broken meanwhile.
async fn expect_fired(host: &mut TestClient, rules: &[(&str, u64)]) {
    let health = host.health().await;
    let fired: Vec<_> = rules.iter().map(|(rule, count)| json!({"rule": rule, "count": count})).collect();
    assert_eq!(health["fired_fault_points"], json!(fired), "{:#}", health.0);
    assert_eq!(health["broken_laws"], json!([]));
}

/// The jobs there are, each as state and code, sorted.
async fn jobs(rig: &Rig) -> Vec<String> {
    let mut jobs: Vec<String> = rig
        .jobs()
        .await
        .iter()
        .map(|job| {
            let fault = job.outcome.as_ref().and_then(|outcome| outcome.fault.as_ref());
            fault
                .map_or_else(|| job.state.as_str().to_owned(), |fault| format!("{} {}", job.state.as_str(), fault.code))
        })
        .collect();
    jobs.sort();
    jobs
}

/// One rule, and what comes of a consult that meets it.
struct Row {
    rule: String,
    told: &'static str,
    /// Runs of the agent for it.
    runs: usize,
    /// What is stored of it; nothing when it was not accepted.
    job: Option<&'static str>,
    /// The worker that serves afterwards.
    generation: u64,
}

fn row(rule: impl Into<String>, told: &'static str, runs: usize, job: Option<&'static str>, generation: u64) -> Row {
    Row { rule: rule.into(), told, runs, job, generation }
}

/// It costs nothing that anybody could see, but a worker now and then.
fn harmless(rule: impl Into<String>, generation: u64) -> Row {
    row(rule, "succeeded", 1, Some("succeeded"), generation)
}

/// A consult meets the rule; one in the background follows it.
async fn check(row: &Row, place: Where) {
    let what = format!("{} ({})", row.rule, place.word());
    let mut rig = new_rig().with_faults(&row.rule).with("PHONE_OPUS_ISOLATION", place.word());
    let mut host = rig.serve().await;
    let reply = host.consult(&rig.answering("42")).await;
    assert_eq!(told(&reply), row.told, "{what}: {:#}", reply.0);
    if row.told == "succeeded" {
        assert_eq!(reply["response"], "42", "{what}");
    }
    let job = host.consult_in_background(&rig.answering("43")).await;
    let after = host.job(&job).await.expect_success();
    assert_eq!(after["response"], "43", "{what}");
    // The first one may be told that it failed before its job has ended.
    let stored: Vec<String> = [row.job, Some("succeeded")].into_iter().flatten().map(str::to_owned).collect();
    until(&format!("{what}: {stored:?} is stored"), async || (jobs(&rig).await == stored).then_some(())).await;
    assert_eq!(rig.runs().len(), row.runs + 1, "{what}");
    assert_eq!(host.generation().await, row.generation, "{what}");
    expect_fired(&mut host, &[(&row.rule, 1)]).await;
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_store_that_fails_for_a_moment_costs_no_consult_but_one_it_has_not_accepted() {
    for row in [
        row("store.commit@accept=error", "store_unavailable", 0, None, 1),
        harmless("store.commit@accept=panic", 1),
        harmless("store.commit@start=error", 1),
        harmless("store.commit@start=panic", 1),
        harmless("store.commit@set_process=error", 1),
        harmless("store.commit@set_process#2=error", 1),
        harmless("store.commit@set_process#2=panic", 1),
        harmless("store.commit@append=error", 1),
        harmless("store.commit@append=panic", 1),
        harmless("store.commit@finish=error", 1),
        harmless("store.commit@finish=panic", 1),
        harmless("store.commit@mark_read=error", 1),
        harmless("store.commit@mark_read=panic", 1),
    ] {
        check(&row, Where::Host).await;
    }
}

#[tokio::test]
async fn a_store_that_stands_still_once_the_agent_is_at_work_does_not_end_it() {
    // For 15 s, which is longer than anything that is not begun yet is tried for.
    for rule in ["store.commit@set_process#2=hang", "store.commit@append#2=hang"] {
        check(&harmless(rule, 1), Where::Host).await;
    }
}

#[tokio::test]
async fn a_runner_that_dies_while_it_writes_is_replaced_until_an_agent_may_have_run() {
    for row in [
        harmless("store.commit@start=kill", 1),
        row("store.commit@set_process=kill", "runner_lost", 0, Some("interrupted runner_lost"), 1),
        row("store.commit@finish=kill", "runner_lost", 1, Some("interrupted runner_lost"), 1),
        row("store.commit@finish=exit", "runner_lost", 1, Some("interrupted runner_lost"), 1),
    ] {
        check(&row, Where::Host).await;
    }
}

#[tokio::test]
async fn a_cancel_that_could_not_be_stored_is_told_and_the_next_one_works() {
    for action in ["error", "panic"] {
        let rule = format!("store.commit@request_cancel={action}");
        let mut rig = new_rig().with_faults(&rule);
        let mut host = rig.serve().await;
        let job = host.consult_in_background(&rig.hanging("begun")).await;
        rig.wait_for_sign("begun").await;
        let cancel = json!({"job_id": job});
        let refused = host.call("consult_cancel", cancel.clone()).await.expect_fault("store_unavailable");
        assert_eq!(refused["fault"]["retryable"], true, "{:#}", refused.0);
        assert_eq!(told(&host.call("consult_cancel", cancel).await), "cancelled");
        expect_fired(&mut host, &[(&rule, 1)]).await;
        rig.expect_runs(1);
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn a_caller_that_goes_while_the_store_fails_takes_its_agent_along_all_the_same() {
    let mut rig = new_rig().with_faults("store.commit@request_cancel=error");
    let mut host = rig.serve().await;
    let consult = host.start("consult", json!({"prompt": rig.hanging("begun")})).await;
    rig.wait_for_sign("begun").await;
    host.cancel(consult).await;
    assert_eq!(rig.only_job_over().await.state.as_str(), "cancelled");
    rig.expect_no_agent_left().await;
    expect_fired(&mut host, &[("store.commit@request_cancel=error", 1)]).await;
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_consult_that_outlasts_its_caller_is_handed_over_although_the_store_failed() {
    for (action, place) in [("error", Where::Host), ("panic", Where::Process)] {
        let rule = format!("store.commit@hand_over={action}");
        let mut rig = new_rig().with_faults(&rule).with("PHONE_OPUS_ISOLATION", place.word());
        let mut host = rig.serve().await;
        let arguments = json!({"prompt": rig.waiting("begun", "go"), "wait_s": 1});
        let running = host.call("consult", arguments).await;
        assert_eq!(told(&running), "running", "{rule}: {:#}", running.0);
        // Nobody waits for it any more, and it goes on.
        rig.give_sign("go");
        host.job(running.str("job_id")).await.expect_success();
        expect_fired(&mut host, &[(&rule, 1)]).await;
        rig.expect_runs(1);
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn a_runner_that_dies_before_its_agent_is_replaced() {
    for action in ["error", "kill", "exit", "panic"] {
        let rule = format!("runner.start={action}");
        check(&harmless(rule, 1), Where::Host).await;
    }
}

#[tokio::test]
async fn a_job_whose_runners_all_die_has_failed_without_a_run() {
    let mut rig = new_rig().with_faults("runner.start#*=kill");
    let mut host = rig.serve().await;
    let reply = host.consult(&rig.answering("never")).await.expect_fault("runner_lost");
    assert_eq!(told(&reply), "runner_lost");
    assert_eq!(jobs(&rig).await, ["failed runner_lost"]);
    rig.expect_runs(0);
    // Two runners, and no third.
    expect_fired(&mut host, &[("runner.start#*=kill", 2)]).await;
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_runner_that_dies_with_the_answer_in_hand_is_told_as_interrupted_and_not_run_again() {
    for action in ["error", "kill", "exit", "panic"] {
        let rule = format!("runner.before_terminal={action}");
        check(&row(rule, "runner_lost", 1, Some("interrupted runner_lost"), 1), Where::Host).await;
    }
}

#[tokio::test]
async fn an_outcome_that_was_stored_and_not_told_is_told_all_the_same() {
    for action in ["error", "kill", "exit", "panic", "drop"] {
        let rule = format!("runner.after_terminal={action}");
        check(&harmless(rule, 1), Where::Host).await;
    }
}

#[tokio::test]
async fn a_runner_that_hangs_when_its_outcome_is_stored_leaves_all_the_same() {
    check(&harmless("runner.after_terminal=hang", 1), Where::Host).await;
}

#[tokio::test]
#[ignore = "full size: a store that hangs is waited for, thirty seconds a call"]
async fn a_store_that_hangs_is_an_answer_and_the_host_still_ends_in_order() {
    let mut rig = new_rig().with_faults("store.commit@accept=hang");
    let mut host = rig.serve().await;
    host.consult(&rig.answering("never")).await.expect_fault("store_unavailable");
    host.ping().await;
    host.call("consult_jobs", json!({})).await.expect_fault("deadline_exceeded");
    assert_eq!(host.health().await["ready"], false);
    rig.expect_runs(0);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn what_breaks_around_accepting_starts_no_second_agent_in_either_place() {
    for place in Where::BOTH {
        for row in [
            row("jobs.before_accept=error", "injected", 0, None, 1),
            harmless("jobs.before_accept=drop", 1),
            // The jobs' supervisor takes the worker along, and the next one joins.
            harmless("jobs.before_accept=panic", 2),
            harmless("jobs.after_accept=drop", 1),
            harmless("jobs.after_accept=panic", 2),
        ] {
            check(&row, place).await;
        }
    }
}

#[tokio::test]
async fn a_caller_who_was_told_an_error_after_the_accept_leaves_no_agent_behind() {
    for place in Where::BOTH {
        let mut rig = new_rig().with_faults("jobs.after_accept=error").with("PHONE_OPUS_ISOLATION", place.word());
        let mut host = rig.serve().await;
        host.consult(&rig.hanging("begun")).await.expect_fault("injected");
        assert_eq!(rig.only_job_over().await.state.as_str(), "cancelled");
        rig.expect_no_agent_left().await;
        assert!(rig.runs().len() <= 1);
        host.consult(&rig.answering("42")).await.expect_success();
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn a_worker_that_cannot_start_is_started_again_in_either_place() {
    for rule in ["worker.start=error", "worker.start=panic"] {
        for place in Where::BOTH {
            check(&harmless(rule, 2), place).await;
        }
    }
    for rule in ["worker.start=kill", "worker.start=exit:7", "worker.start=abort", "worker.start=garbage"] {
        check(&harmless(rule, 2), Where::Process).await;
    }
}

#[tokio::test]
async fn a_worker_that_says_nothing_at_its_start_is_given_five_seconds() {
    let slow = [("hang", Where::Host), ("hang", Where::Process), ("silence", Where::Process)];
    let checks = slow.map(|(action, place)| async move {
        let rule = format!("worker.start={action}");
        check(&harmless(rule, 2), place).await;
    });
    let [a, b, c] = checks;
    tokio::join!(a, b, c);
}

#[tokio::test]
async fn a_worker_that_never_starts_is_given_up_and_health_says_why() {
    let mut rig = new_rig()
        .with_faults("worker.start#*=kill")
        .with("PHONE_OPUS_ISOLATION", "process")
        .with("PHONE_OPUS_RESTART_INTENSITY", "2");
    let mut host = rig.serve().await;
    let refused = host.consult(&rig.answering("never")).await.expect_fault("worker_lost");
    assert!(refused["fault"]["hint"].as_str().is_some_and(|hint| hint.contains("30 s")), "{:#}", refused.0);
    let health = host.health().await;
    assert_eq!((&health["ready"], &health["worker_alive"]), (&json!(false), &json!(false)), "{:#}", health.0);
    let last = &health["last_fault"]["fault"];
    assert_eq!(last["code"], "worker_spawn_failed", "{last:#}");
    assert!(last["detail"].as_str().is_some_and(|detail| detail.contains("killed by signal 9")), "{last:#}");
    expect_fired(&mut host, &[("worker.start#*=kill", 3)]).await;
    host.ping().await;
    rig.expect_runs(0);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_worker_that_breaks_around_a_consult_costs_no_second_run_in_either_place() {
    for point in ["before_execute", "before_reply", "after_reply"] {
        let rule = |action: &str| format!("worker.{point}={action}");
        for place in Where::BOTH {
            check(&harmless(rule("panic"), 2), place).await;
        }
        for action in ["kill", "abort", "exit", "garbage"] {
            check(&harmless(rule(action), 2), Where::Process).await;
        }
    }
    check(&harmless("worker.before_reply=torn", 2), Where::Process).await;
    check(&harmless("worker.before_execute=drop", 2), Where::Host).await;
    check(&harmless("worker.before_reply=drop", 2), Where::Host).await;
}

#[tokio::test]
async fn a_host_that_dies_at_the_accept_leaves_no_job_and_the_next_host_serves() {
    let mut rig = new_rig().with_faults("store.commit@accept=kill");
    let mut host = rig.serve().await;
    host.expect_end();
    let lost = host.start("consult", json!({"prompt": rig.answering("never")})).await;
    host.give_up_on(lost);
    assert!(!host.exit().await.success());
    assert_eq!(jobs(&rig).await, [""; 0]);
    rig.unset(phone_opus::testkit::rig::FAULTS);
    let mut next = rig.serve().await;
    next.consult(&rig.answering("42")).await.expect_success();
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host, next]).await;
}

#[tokio::test]
#[ignore = "full size: a job without a runner is left to its host for ten seconds"]
async fn a_job_that_was_accepted_by_a_host_that_died_is_run_once_by_whoever_asks_again() {
    let mut rig = new_rig().with_faults("jobs.after_accept=kill");
    let mut host = rig.serve().await;
    host.expect_end();
    let asked = json!({"prompt": rig.answering("42"), "request_key": "k", "background": true});
    let lost = host.start("consult", asked.clone()).await;
    host.give_up_on(lost);
    assert!(!host.exit().await.success());
    assert_eq!(jobs(&rig).await, ["queued"]);
    rig.unset(phone_opus::testkit::rig::FAULTS);
    let mut next = rig.serve().await;
    let job = until("the job has a runner", async || {
        let reply = next.call("consult", asked.clone()).await;
        assert!(!reply.is_error(), "{:#}", reply.0);
        (reply.str("status") != "queued" || !rig.all(Role::Runner).is_empty()).then(|| reply.str("job_id").to_owned())
    })
    .await;
    assert_eq!(next.job(&job).await.expect_success()["response"], "42");
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host, next]).await;
}

// --- the variables kept for compatibility ------------------------------------------------------------------------------

const CRASH_ONCE: &str = "PHONE_OPUS_MCP_TEST_WORKER_CRASH_ONCE_KEY";

#[tokio::test]
async fn the_crash_once_variable_takes_the_worker_of_a_consult_once() {
    for place in Where::BOTH {
        let mut rig = new_rig().with(CRASH_ONCE, "tools/call:consult").with("PHONE_OPUS_ISOLATION", place.word());
        let mut host = rig.serve().await;
        for _ in 0..3 {
            host.consult(&rig.answering("42")).await.expect_success();
        }
        assert_eq!(host.generation().await, 2);
        expect_fired(&mut host, &[("worker.before_execute@tools/call:consult=panic", 1)]).await;
        rig.expect_runs(3);
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn the_crash_once_variable_takes_the_worker_at_what_no_worker_executes_once_there_is_one() {
    for place in Where::BOTH {
        for operation in ["ping", "tools/list", "tools/call:consult_jobs"] {
            let what = format!("{operation} ({})", place.word());
            let mut rig = new_rig().with(CRASH_ONCE, operation).with("PHONE_OPUS_ISOLATION", place.word());
            let mut host = rig.serve().await;
            let meet = async |host: &mut TestClient| match operation.strip_prefix("tools/call:") {
                Some(tool) => assert!(!host.call(tool, json!({})).await.is_error(), "{what}"),
                None => assert!(host.request(operation, json!({})).await.get("result").is_some(), "{what}"),
            };
            // No worker was needed yet, so there is none to lose.
            meet(&mut host).await;
            assert_eq!(host.generation().await, 0, "{what}");
            let prompt = rig.waiting("begun", "go");
            let consult = host.start("consult", json!({ "prompt": prompt })).await;
            rig.wait_for_sign("begun").await;
            meet(&mut host).await;
            meet(&mut host).await;
            host.wait_for_generation(2).await;
            rig.give_sign("go");
            host.reply(consult).await.expect_success();
            let health = host.health().await;
            assert_eq!((health.number("worker_generation"), health.number("replays")), (2, 1), "{what}");
            rig.expect_runs(1);
            rig.stop_and_check_invariants([host]).await;
        }
    }
}

// --- plans -------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_plan_that_is_wrong_is_refused_at_the_start_with_every_problem() {
    let mut rig = new_rig()
        .with_faults("worker.strat=kill; runner.start=torn; store.commit#0=error; stdio.read=explode; ping")
        .with_fault_seed(7);
    rig.set("PHONE_OPUS_FAULT_SEED", "seven");
    for command in [&["mcp", "serve"][..], &["consult", "x"], &["mcp", "worker", "--generation", "1"]] {
        let output = rig.run(command).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
        for part in [
            "worker.strat",
            "worker.start",
            "torn",
            "\"0\" does not say when",
            "explode",
            "ping",
            "seven",
            "7 problems",
        ] {
            assert!(said.contains(part), "{command:?}: {part} is not in {said}");
        }
        assert!(output.stdout.is_empty());
    }
    rig.expect_runs(0);
    rig.check_invariants().await;
}

#[tokio::test]
async fn spent_points_stay_spent_across_workers_and_runners() {
    let plan = "worker.before_execute@tools/call:consult=kill;worker.before_execute@tools/call:consult#3=kill;\
                runner.start=kill;runner.start#4=kill";
    let mut rig = new_rig().with_faults(plan).with("PHONE_OPUS_ISOLATION", "process");
    let mut host = rig.serve().await;
    for _ in 0..4 {
        host.consult(&rig.answering("42")).await.expect_success();
    }
    // The first attempt, and the first after the one that followed it.
    assert_eq!(host.generation().await, 3);
    let rules: Vec<(&str, u64)> = plan.split(';').map(|rule| (rule, 1)).collect();
    expect_fired(&mut host, &rules).await;
    rig.expect_runs(4);
    rig.stop_and_check_invariants([host]).await;
}

/// Which of many consults in turn meet a rule that is drawn with this seed.
async fn drawn(seed: u64) -> String {
    let rule = "worker.before_execute@tools/call:consult#p0.5=error";
    let mut rig = new_rig().with_faults(rule).with_fault_seed(seed).with("PHONE_OPUS_ISOLATION", "process");
    let mut host = rig.serve().await;
    // Who asks for the same again joins, which costs no further run.
    let asked = json!({"prompt": rig.answering("42"), "request_key": "k"});
    let mut met = String::new();
    for _ in 0..24 {
        let reply = host.call("consult", asked.clone()).await;
        met.push(if reply.code() == "injected" { 'x' } else { '.' });
        if reply.code() != "injected" {
            reply.expect_success();
        }
    }
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host]).await;
    met
}

#[tokio::test]
async fn draws_repeat_with_their_seed() {
    let (first, again, other) = (drawn(1).await, drawn(1).await, drawn(2).await);
    println!("seed 1: {first}, seed 2: {other}");
    assert_eq!(first, again);
    assert_ne!(first, other);
    assert!((6..=18).contains(&first.matches('x').count()), "{first}");
}
