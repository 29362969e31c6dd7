//! Who outlives whom: cancels, lost callers, killed hosts and killed runners, on the real binary.
//!
//! Only where `/proc` shows who is alive; elsewhere these laws are tested by group in `src/exec`.
//!
//! Laws: L3, L7.

#![cfg(target_os = "linux")]

use std::process::Stdio;
use std::time::{Duration, Instant};

use phone_opus::internals::base::fault::FaultCode;
use phone_opus::internals::jobs::{JobMode, JobRecord, JobState};
use phone_opus::testkit::{ForkPlace, PATIENCE, Rig, Role, Script, Signal, Step, tried_program, until};
use serde_json::json;
use tokio::io::AsyncWriteExt;

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

fn fault(job: &JobRecord) -> Option<FaultCode> {
    job.outcome.as_ref().and_then(|outcome| outcome.fault.as_ref()).map(|fault| fault.code)
}

/// Steps of an agent that does not want to end: deaf to TERM, one child in its group and one in a session of its own.
fn stubborn(rig: &Rig) -> Vec<Step> {
    vec![
        Step::Text("at work".into()),
        Step::IgnoreTerm,
        Step::Fork(ForkPlace::Group),
        Step::Fork(ForkPlace::Session),
        Step::Touch(rig.sign("begun")),
        Step::Hang,
    ]
}

#[tokio::test]
async fn a_runner_held_for_a_consult_that_is_no_new_job_leaves_nothing() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let prompt = rig.answering("once");
    let asked = json!({"prompt": prompt, "request_key": "one"});
    let first = host.call("consult", asked.clone()).await.expect_success();
    for _ in 0..3 {
        let again = host.call("consult", asked.clone()).await.expect_success();
        assert_eq!(again.str("job_id"), first.str("job_id"));
        let other = host.call("consult", json!({"prompt": "another question", "request_key": "one"})).await;
        assert_eq!(other["fault"]["code"], "request_key_conflict", "{:#}", other.0);
    }
    until("those that were not needed are gone", async || rig.all(Role::Runner).is_empty().then_some(())).await;
    let directories = std::fs::read_dir(rig.state_dir().jobs()).expect("a directory").count();
    assert_eq!(directories, 1, "the one job's");
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_cancel_ends_an_agent_that_ignores_it_and_everything_it_started() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let job = host.consult_in_background(&rig.doing(stubborn(&rig))).await;
    rig.wait_for_sign("begun").await;
    until("the agent and its children are there, each in its place", async || {
        let agents = rig.agents();
        let away = agents.iter().any(|agent| agent.leads_session && agent.command.contains("session"));
        (agents.len() == 3 && away).then_some(())
    })
    .await;
    let reply = host.call("consult_cancel", json!({"job_id": job})).await;
    assert_eq!((reply.is_error(), reply.str("status")), (false, "cancelled"), "{:#}", reply.0);
    // Terminal means that nothing of it is left, not that it is about to end.
    assert_eq!(rig.agents().len(), 0, "{:?}", rig.agents());
    // The one in a session of its own did not get the signal to the group.
    assert!(reply["reaped"].as_u64().is_some_and(|reaped| reaped >= 1), "{:#}", reply.0);
    let again = host.call("consult_cancel", json!({"job_id": job})).await;
    assert_eq!((again.is_error(), &again["already_over"]), (false, &json!(true)));
    let read = host.job(&job).await.expect_fault("cancelled");
    assert_eq!(read["response"], "at work", "what it had said is kept");
    assert!(!read.str("session_id").is_empty());
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn an_answer_comes_with_no_process_left_behind_it() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let reply = host.consult(&rig.doing(vec![Step::Fork(ForkPlace::Group), Step::Fork(ForkPlace::Session)])).await;
    reply.expect_success();
    assert_eq!(rig.agents().len(), 0, "{:?}", rig.agents());
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_client_that_cancels_its_consult_hears_nothing_more_and_the_agent_ends() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.doing(stubborn(&rig))})).await;
    rig.wait_for_sign("begun").await;
    host.cancel(sent).await;
    rig.expect_no_agent_left().await;
    let job = rig.only_job_over().await;
    assert_eq!((job.state, fault(&job)), (JobState::Cancelled, Some(FaultCode::CallerLost)));
    // The next one is served as if nothing had been.
    host.consult(&rig.answering("42")).await.expect_success();
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_caller_that_leaves_takes_its_consult_along_but_not_one_that_somebody_else_joined() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let prompt = rig.waiting("begun", "go");
    let arguments = json!({"prompt": prompt, "request_key": "shared"});
    let first = host.start("consult", arguments.clone()).await;
    rig.wait_for_sign("begun").await;
    let second = host.start("consult", arguments).await;
    host.ping().await;
    // The second has joined when its accept is answered; a look at the jobs comes after it.
    until("both wait", async || {
        let health = host.call("health_snapshot", json!({})).await;
        (health["calls_in_flight"] == 2).then_some(())
    })
    .await;
    host.call("consult_jobs", json!({})).await;
    host.cancel(first).await;
    rig.give_sign("go");
    host.reply(second).await.expect_success();
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_job_joined_from_another_host_survives_the_end_and_the_kill_of_the_first() {
    for kill in [false, true] {
        let mut rig = new_rig();
        let mut first = rig.serve().await;
        let mut second = rig.serve().await;
        let prompt = rig.waiting("begun", "go");
        let arguments = json!({"prompt": prompt, "request_key": "shared"});
        let lost = first.start("consult", arguments.clone()).await;
        rig.wait_for_sign("begun").await;
        let kept = second.start("consult", arguments).await;
        until("the job belongs to nobody in particular", async || {
            rig.jobs().await.iter().all(|job| job.mode.as_str() == "background").then_some(())
        })
        .await;
        first.give_up_on(lost);
        if kill {
            first.signal(Signal::KILL);
        } else {
            first.hang_up().await;
        }
        first.exit().await;
        // Not a wait for something to happen: it is the runner's own two seconds, after which it must not have acted.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        rig.give_sign("go");
        second.reply(kept).await.expect_success();
        rig.expect_runs(1);
        rig.stop_and_check_invariants([second]).await;
    }
}

#[tokio::test]
async fn a_background_consult_that_joined_a_synchronous_one_does_not_end_with_it() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let prompt = rig.waiting("begun", "go");
    let first = host.start("consult", json!({"prompt": prompt, "request_key": "shared"})).await;
    rig.wait_for_sign("begun").await;
    let joined = json!({"prompt": prompt, "request_key": "shared", "background": true});
    let reply = host.call("consult", joined).await;
    assert_eq!((reply.str("mode"), reply.is_error()), ("background", false));
    let job = reply.str("job_id").to_owned();
    host.cancel(first).await;
    host.ping().await;
    rig.give_sign("go");
    host.job(&job).await.expect_success();
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_disconnect_cancels_the_synchronous_consult_and_the_host_ends_in_order() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.doing(stubborn(&rig))})).await;
    rig.wait_for_sign("begun").await;
    let began = Instant::now();
    host.give_up_on(sent);
    host.hang_up().await;
    assert!(host.exit().await.success());
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let job = rig.only_job_over().await;
    assert_eq!((job.state, fault(&job)), (JobState::Cancelled, Some(FaultCode::CallerLost)));
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn signals_end_the_host_in_order_with_its_synchronous_consults() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut rig = new_rig();
        let mut host = rig.serve().await;
        let sent = host.start("consult", json!({"prompt": rig.hanging("begun")})).await;
        rig.wait_for_sign("begun").await;
        host.signal(signal);
        // Clients often send a second one.
        host.signal(signal);
        assert!(host.exit().await.success(), "{signal:?}");
        // The client has not hung up, so it is told what became of its call.
        host.reply(sent).await.expect_fault("stopping");
        let job = rig.only_job_over().await;
        assert_eq!((job.state, fault(&job)), (JobState::Cancelled, Some(FaultCode::CallerLost)), "{signal:?}");
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn a_background_job_survives_its_host_and_the_next_one_reads_its_answer() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let prompt = rig.waiting("begun", "go");
    let job = host.consult_in_background(&prompt).await;
    rig.wait_for_sign("begun").await;
    host.hang_up().await;
    assert!(host.exit().await.success());
    assert_eq!((rig.runners().len(), rig.agents().len()), (1, 1));
    let mut next = rig.serve().await;
    let waiting = next.start("consult_job", json!({"job_id": job, "wait_s": 60})).await;
    next.ping().await;
    rig.give_sign("go");
    let reply = next.reply(waiting).await.expect_success();
    assert_eq!(reply["response"], "done");
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host, next]).await;
}

#[tokio::test]
async fn another_host_cancels_a_job_it_did_not_start() {
    let mut rig = new_rig();
    let (mut one, mut two) = (rig.serve().await, rig.serve().await);
    let job = one.consult_in_background(&rig.doing(stubborn(&rig))).await;
    rig.wait_for_sign("begun").await;
    let reply = two.call("consult_cancel", json!({"job_id": job})).await;
    assert_eq!(reply.str("status"), "cancelled", "{:#}", reply.0);
    assert_eq!(rig.agents().len(), 0);
    one.job(&job).await.expect_fault("cancelled");
    rig.stop_and_check_invariants([one, two]).await;
}

#[tokio::test]
async fn a_killed_host_takes_its_synchronous_consult_along_and_leaves_its_background_job() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let prompt = rig.waiting("background", "go");
    let background = host.consult_in_background(&prompt).await;
    let sent = host.start("consult", json!({"prompt": rig.doing(stubborn(&rig))})).await;
    rig.wait_for_sign("background").await;
    rig.wait_for_sign("begun").await;
    host.give_up_on(sent);
    let began = Instant::now();
    host.signal(Signal::KILL);
    host.exit().await;
    let jobs = until("the synchronous job is over", async || {
        let jobs = rig.jobs().await;
        jobs.iter().any(|job| job.state.is_terminal()).then_some(jobs)
    })
    .await;
    // 2 s of grace for a host that comes back, then the agent's own.
    let took = began.elapsed();
    assert!((Duration::from_millis(1900)..Duration::from_secs(15)).contains(&took), "{took:?}");
    for job in &jobs {
        if job.id.to_string() == background {
            assert_eq!((job.state, job.mode), (JobState::Running, JobMode::Background));
        } else {
            assert_eq!((job.state, fault(job)), (JobState::Cancelled, Some(FaultCode::CallerLost)));
        }
    }
    assert_eq!(rig.agents().len(), 1, "the background job's");
    rig.give_sign("go");
    let mut next = rig.serve().await;
    next.job(&background).await.expect_success();
    rig.stop_and_check_invariants([next]).await;
}

#[tokio::test]
async fn a_consult_that_was_handed_over_survives_the_kill_of_its_host() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let prompt = rig.doing(vec![Step::WaitForFile(rig.sign("go"))]);
    let reply = host.call("consult", json!({"prompt": prompt, "wait_s": 1})).await;
    assert!(!reply.is_error() && reply.str("mode") == "background", "{:#}", reply.0);
    until("the agent runs", async || (!rig.runs().is_empty()).then_some(())).await;
    host.signal(Signal::KILL);
    host.exit().await;
    rig.give_sign("go");
    let mut next = rig.serve().await;
    next.job(reply.str("job_id")).await.expect_success();
    rig.expect_runs(1);
    rig.stop_and_check_invariants([next]).await;
}

#[tokio::test]
async fn a_killed_runner_leaves_an_interrupted_job_and_nothing_alive() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.doing(stubborn(&rig))})).await;
    rig.wait_for_sign("begun").await;
    let runner = rig.the(Role::Runner).await;
    runner.kill();
    let reply = host.reply(sent).await.expect_fault("runner_lost");
    assert_eq!(reply.str("status"), "interrupted");
    assert!(reply.text().contains("was interrupted"), "{}", reply.text());
    rig.expect_no_agent_left().await;
    assert_eq!(rig.runs().len(), 1, "it was not run again");
    host.consult(&rig.answering("42")).await.expect_success();
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_job_whose_host_and_runner_were_killed_is_settled_by_the_next_host() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let job = host.consult_in_background(&rig.doing(stubborn(&rig))).await;
    rig.wait_for_sign("begun").await;
    let runner = rig.the(Role::Runner).await;
    host.signal(Signal::KILL);
    host.exit().await;
    runner.kill();
    let mut next = rig.serve().await;
    let reply = next.job(&job).await.expect_fault("runner_lost");
    assert_eq!(reply.str("status"), "interrupted");
    rig.expect_runs(1);
    rig.stop_and_check_invariants([next]).await;
}

#[tokio::test]
async fn a_runner_that_is_told_to_stop_cancels_its_job() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.doing(stubborn(&rig))})).await;
    rig.wait_for_sign("begun").await;
    let runner = rig.the(Role::Runner).await;
    runner.signal(Signal::TERM);
    let reply = host.reply(sent).await;
    assert!(reply.is_error() && reply.str("status") == "cancelled", "{:#}", reply.0);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_consult_over_its_own_time_is_ended_with_what_it_had_said() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let prompt = rig.prompt(Script { steps: stubborn(&rig), ..Script::default() });
    let reply = host.call("consult", json!({"prompt": prompt, "timeout_s": 2})).await;
    let reply = reply.expect_fault("deadline_exceeded");
    assert_eq!(reply["response"], "at work");
    assert_eq!(rig.agents().len(), 0);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_more_is_gone_even_when_its_input_stays_open() {
    let rig = new_rig().with("PHONE_OPUS_PROGRESS_S", "1").with("PHONE_OPUS_LOG", "off");
    let mut host = rig.command(&["mcp", "serve"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a host");
    let mut input = host.stdin.take().expect("stdin");
    let arguments = json!({"prompt": rig.hanging("begun")});
    let meta = json!({"progressToken": 1});
    for line in [
        json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}),
        json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call",
               "params": {"name": "consult", "arguments": arguments, "_meta": meta}}),
    ] {
        input.write_all(format!("{line}\n").as_bytes()).await.expect("written");
    }
    rig.wait_for_sign("begun").await;
    drop(host.stdout.take());
    let status = tokio::time::timeout(PATIENCE, host.wait()).await.expect("it ends").expect("waited");
    assert!(status.success(), "{status}");
    let job = rig.only_job_over().await;
    assert_eq!((job.state, fault(&job)), (JobState::Cancelled, Some(FaultCode::CallerLost)));
    drop(input);
    rig.check_invariants().await;
}

#[tokio::test]
async fn a_runner_that_stands_still_is_ended_when_its_job_is_cancelled() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let job = host.consult_in_background(&rig.hanging("begun")).await;
    rig.wait_for_sign("begun").await;
    assert_eq!(rig.freeze(Role::Runner).len(), 1);
    host.call("consult_cancel", json!({ "job_id": job })).await;
    let reply = host.job(&job).await;
    assert_eq!(reply.str("status"), "cancelled", "{:#}", reply.0);
    host.ping().await;
    rig.stop_and_check_invariants([host]).await;
}
