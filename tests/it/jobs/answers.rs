//! When an agent has answered: what its lines hold, how its process ends, how long it is silent, whose session it is.
//!
//! Laws: L4, L7.

use std::time::{Duration, Instant};

use phone_opus::internals::base::ids::AgentSessionId;
use phone_opus::testkit::{Reply, Rig, Script, Step, tried_program};
use serde_json::{Map, Value, json};

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

fn fields(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn result(text: &str) -> Step {
    Step::Result(fields(&json!({ "result": text })))
}

fn expect_answer(name: &str, reply: Reply, answer: &str) -> Reply {
    assert!(!reply.is_error(), "{name}: {:#}", reply.0);
    assert_eq!((reply.str("status"), reply.str("response")), ("succeeded", answer), "{name}: {:#}", reply.0);
    reply
}

#[tokio::test]
async fn a_line_that_holds_more_than_one_event_gives_them_all() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let part = |text: &str| Step::Part(text.into());
    let text = || Step::Text("on the way".into());
    for (name, steps) in [
        ("a text without a line end", vec![part("Compiling… "), result("42")]),
        ("two events", vec![Step::Glued(vec![text(), result("42")])]),
        ("three events", vec![Step::Glued(vec![Step::Thinking, text(), result("42")])]),
        ("an event and a torn one", vec![Step::Glued(vec![result("42"), part("{\"type\":\"assis")])]),
        ("a torn one and an event", vec![part("{\"type\":\"user\",\"message\":\"abc"), result("42")]),
        ("a byte order mark", vec![part("\u{feff}"), result("42")]),
        ("colour codes on both sides", vec![Step::Glued(vec![part("\u{1b}[32m"), result("42"), part("\u{1b}[0m")])]),
        ("a log object", vec![Step::Glued(vec![part("{\"level\":\"info\",\"n\":1} "), result("42")])]),
        (
            "a quoted result before it",
            vec![Step::Glued(vec![part("got {\"x\":{\"type\":\"result\",\"result\":\"no\"}} "), result("42")])],
        ),
        ("a torn tail without a line end", vec![result("42"), part("{\"type\":\"resu")]),
    ] {
        let prompt = rig.prompt(Script { steps, no_result: true, ..Script::default() });
        expect_answer(name, host.consult(&prompt).await, "42");
    }
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_whole_answer_is_given_however_the_agent_ends_and_how_it_ended_is_told() {
    let mut rig = new_rig().with("PHONE_OPUS_MAX_RUNNING", "16");
    let mut host = rig.serve().await;
    let began = Instant::now();
    let hang = |steps: Vec<Step>| [steps, vec![Step::Hang]].concat();
    let mut open = Vec::new();
    for (name, after, answer, exit) in [
        ("leaves", vec![], "42", json!(null)),
        ("exits with 1", vec![Step::Exit(1)], "42", json!({"code": 1})),
        ("exits with 3", vec![Step::Exit(3)], "42", json!({"code": 3})),
        ("is killed", vec![Step::KillSelf(9)], "42", json!({"signal": 9})),
        ("aborts", vec![Step::KillSelf(6)], "42", json!({"signal": 6})),
        ("hangs", hang(vec![]), "42", json!({"signal": 15})),
        ("hangs and is deaf", hang(vec![Step::IgnoreTerm]), "42", json!({"signal": 9})),
        ("closes its output and hangs", hang(vec![Step::CloseOutput]), "42", json!({"signal": 15})),
        (
            "says something of no interest and hangs",
            hang(vec![Step::Raw("{\"type\":\"system\",\"subtype\":\"hook\"}".into())]),
            "42",
            json!({"signal": 15}),
        ),
        ("gives a second result and hangs", hang(vec![Step::DelayMs(2000), result("43")]), "43", json!({"signal": 15})),
        (
            "goes on for longer than it may stay",
            vec![Step::Thinking, Step::DelayMs(7000), result("44")],
            "44",
            json!(null),
        ),
    ] {
        let prompt = rig.prompt(Script { answer: Some("42".into()), after, ..Script::default() });
        open.push((name, host.start("consult", json!({ "prompt": prompt })).await, answer, exit));
    }
    for (name, sent, answer, exit) in open {
        let reply = expect_answer(name, host.reply(sent).await, answer);
        for key in ["code", "signal"] {
            let told = exit[key].is_null() || exit[key] == reply["exit"][key];
            assert!(told, "{name}: {exit} is not {:#}", reply["exit"]);
        }
        assert_eq!(exit.is_null(), reply["exit"].is_null(), "{name}: {:#}", reply.0);
        assert_eq!(exit.is_null(), !reply.text().contains("agent e"), "{name}: {}", reply.text());
    }
    // Far below the time of an agent that is silent.
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn an_answer_that_is_there_is_not_lost_to_the_deadline_nor_to_a_cancel() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let script = |rig: &Rig, sign: &str| {
        let after = vec![Step::Touch(rig.sign(sign)), Step::Hang];
        rig.prompt(Script { answer: Some("42".into()), after, ..Script::default() })
    };
    let late = json!({"prompt": script(&rig, "late"), "timeout_s": 2});
    expect_answer("the deadline", host.call("consult", late).await, "42");
    let cancelled = json!({"prompt": script(&rig, "there"), "background": true});
    let job = host.call("consult", cancelled).await.str("job_id").to_owned();
    rig.wait_for_sign("there").await;
    host.call("consult_cancel", json!({"job_id": job})).await;
    let reply = host.call("consult_job", json!({"job_id": job, "wait_s": 60})).await;
    expect_answer("a cancel", reply, "42");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn an_empty_result_is_answered_with_the_last_message() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let empty = |steps| Script { answer: Some(String::new()), steps, ..Script::default() };
    let said = || Step::Text("42".into());
    let tool = || Step::ToolUse("Read".into());
    let reply = host.consult(&rig.prompt(empty(vec![Step::Text("let me see".into()), tool(), said()]))).await;
    expect_answer("a last message", reply, "42");
    let left_out = Script { result: fields(&json!({"result": null})), ..empty(vec![said()]) };
    expect_answer("no result text at all", host.consult(&rig.prompt(left_out)).await, "42");
    let reply = host.consult(&rig.prompt(empty(vec![said(), tool()]))).await.expect_fault("empty_answer");
    assert_eq!(reply["response"], "42", "what was said is kept: {:#}", reply.0);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn an_agent_is_not_stalled_while_it_waits_as_announced_or_nobody_could_hear_it() {
    let mut rig = new_rig().with("PHONE_OPUS_STALL_S", "10");
    let mut host = rig.serve().await;
    let retry = |delay_ms| Step::ApiRetry { attempt: 1, max: 2, delay_ms, status: Some(529) };
    let waits = vec![retry(14_000), Step::DelayMs(14_000), Step::Text("again".into())];
    let waits = host.start("consult", json!({"prompt": rig.doing(waits)})).await;
    let silent = vec![Step::Text("at work".into()), Step::Hang];
    let silent = host.start("consult", json!({"prompt": rig.doing(silent)})).await;
    host.reply(waits).await.expect_success();
    host.reply(silent).await.expect_fault("agent_stalled");

    // Everything stands still for longer than an agent may be silent, as in a frozen container.
    let frozen = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    rig.freeze_everything();
    tokio::time::sleep(Duration::from_secs(12)).await;
    rig.thaw_everything();
    rig.give_sign("go");
    assert_eq!(host.reply(frozen).await.expect_success()["response"], "done");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_session_that_goes_on_under_a_new_id_is_resumed_where_versions_do_so() {
    for (knows_fork, succeeds) in [(true, false), (false, true)] {
        let mut rig = new_rig();
        if !knows_fork {
            rig.use_agent_without("--fork-session");
        }
        let mut host = rig.serve().await;
        let (asked, new) = (AgentSessionId::random().to_string(), AgentSessionId::random().to_string());
        let script = Script { session_id: Some(new.clone()), answer: Some("42".into()), ..Script::default() };
        let arguments = json!({"prompt": rig.prompt(script), "session_id": asked});
        let reply = host.call("consult", arguments).await;
        if succeeds {
            let reply = expect_answer("a version without the option", reply, "42");
            assert_eq!((reply.str("session_id"), reply.str("session_mode")), (new.as_str(), "resumed"));
        } else {
            reply.expect_fault("unknown_session");
        }
        rig.stop_and_check_invariants([host]).await;
    }
}
