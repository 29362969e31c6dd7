//! Who pays, as far as the whole program decides it: the command line, the runner, an agent that introduces itself.
//!
//! Laws: L7, L13.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use phone_opus::testkit::{Reply, Rig, Script, Step, tried_program};
use rustix::process::{Pid, test_kill_process_group};
use serde_json::{Value, json};

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

fn reply(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(
        |error| json!({"unreadable": error.to_string(), "stderr": String::from_utf8_lossy(&output.stderr)}),
    )
}

/// A program that can only be asked about itself, and counts a key in its environment as a login, as Claude Code does.
const ASKED: &str = r#"#!/bin/sh
case "$1" in
    --version) echo '2.1.329 (Claude Code)' ;;
    auth)
        if [ -n "$ANTHROPIC_API_KEY" ]; then echo '{"loggedIn":true,"authMethod":"api_key"}'
        elif [ -n "$LC_LOGIN" ]; then echo "{\"loggedIn\":true,\"authMethod\":\"$LC_LOGIN\"}"
        else echo '{"loggedIn":false,"authMethod":"none"}'; fi ;;
esac
"#;

#[tokio::test]
async fn doctor_does_not_take_a_withheld_key_for_a_login() {
    let mut rig = new_rig();
    let agent = rig.path("claude");
    // Written by another process: one that this process still held for writing could not be run.
    let mut writer = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 700 \"$0\""])
        .arg(&agent)
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    writer.stdin.take().expect("its stdin").write_all(ASKED.as_bytes()).expect("the script");
    assert!(writer.wait().expect("its end").success());
    rig.set("PHONE_OPUS_CLAUDE_BIN", agent.display().to_string());
    for (billing, key, login, good) in [
        ("subscription", "", "claude.ai", json!(true)),
        ("subscription", "k", "claude.ai", json!(true)),
        ("subscription", "k", "", json!(false)),
        ("subscription", "", "", json!(false)),
        // A key that the program itself keeps would pay, and every consult would be refused.
        ("subscription", "", "api_key", json!(false)),
        ("api_key", "k", "", json!(true)),
        ("api_key", "", "", json!(null)),
        ("api_key", "", "claude.ai", json!(false)),
    ] {
        rig.set("PHONE_OPUS_BILLING", billing);
        rig.set("ANTHROPIC_API_KEY", key);
        rig.set("LC_LOGIN", login);
        let report = reply(&rig.run(&["doctor", "--json"]).await);
        let checks = report["checks"].as_array().expect("checks");
        let found = checks.iter().find(|check| check["check"] == "login").expect("a login check");
        assert_eq!(found["ok"], good, "billing {billing}, key {key:?}, login {login:?}: {found}");
    }
    rig.check_invariants().await;
}

#[tokio::test]
async fn an_agent_that_would_bill_the_wrong_account_is_killed_and_not_asked_to_stop() {
    let rig = new_rig();
    let script = Script { key_source: Some("apiKeyHelper".into()), steps: vec![Step::Hang], ..Script::default() };
    let output = rig.run(&["consult", "--json", &rig.prompt(script)]).await;
    let failed = reply(&output);
    assert_eq!(output.status.code(), Some(1), "{failed}");
    assert_eq!(failed["fault"]["code"], "billing_mismatch", "{failed}");

    // Who is asked to stop may still send the one request that is not to be sent.
    let job = failed["job_id"].as_str().expect("a job");
    let full = reply(&rig.run(&["jobs", "show", job, "--full", "--json"]).await);
    assert_eq!(full["exit"]["signal"], 9, "{full}");

    let [run] = &rig.runs()[..] else { panic!("one run") };
    let group = run.start["pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).expect("a pid");
    assert!(test_kill_process_group(group).is_err(), "something of the run's group is left");
    rig.check_invariants().await;
}

/// What may stand before an introduction in its line.
const PREFIXES: [(&str, &str); 7] = [
    ("a byte order mark", "\u{feff}"),
    ("a progress text", "Loading…\r"),
    ("colour codes", "\u{1b}[2K\u{1b}[1G"),
    ("a log line", "[12:30:01] WARN {cache} miss "),
    ("a log line in JSON", "{\"level\":\"warn\",\"msg\":\"slow\"}"),
    ("a torn line", "{\"type\":\"system\",\"subtype\":\"ui_inv"),
    ("words", "npm notice "),
];

/// The reply of a run that was not to be paid for: ended before it gave its sign that it went on.
fn expect_ended_for_its_payer(rig: &Rig, name: &str, went_on: &str, reply: Reply) {
    let reply = reply.expect_fault("billing_mismatch");
    assert_eq!(reply.str("status"), "failed", "{name}: {:#}", reply.0);
    assert_eq!(reply["exit"]["signal"], 9, "{name}: it is not asked to stop: {:#}", reply.0);
    assert!(!rig.sign(went_on).exists(), "{name}: the agent went on");
    assert_eq!(rig.agents().len(), 0, "{name}");
}

#[tokio::test]
async fn a_payer_that_is_not_the_chosen_one_is_seen_whatever_stands_before_the_introduction() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    for (number, (name, prefix)) in PREFIXES.into_iter().enumerate() {
        let went_on = format!("went-on-{number}");
        let script = |key_source: &str, steps| Script {
            before_init: Some(prefix.to_owned()),
            key_source: Some(key_source.to_owned()),
            answer: Some("42".into()),
            steps,
            ..Script::default()
        };
        // It waits for a sign that comes only when somebody has let it go on.
        let waits = vec![Step::WaitForFile(rig.sign("never")), Step::Touch(rig.sign(&went_on))];
        let paid_by_key = rig.prompt(script("ANTHROPIC_API_KEY", waits));
        let sent = host.start("consult", json!({"prompt": paid_by_key, "timeout_s": 20})).await;
        expect_ended_for_its_payer(&rig, name, &went_on, host.reply(sent).await);
        let login = rig.prompt(script("none", vec![]));
        let reply = host.consult(&login).await.expect_success();
        assert_eq!((&reply["response"], &reply["billing"]), (&json!("42"), &json!("none")), "{name}: {:#}", reply.0);
    }
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn an_agent_that_begins_to_work_without_saying_who_pays_is_ended() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let text = || Step::Text("at work".into());
    for (number, (name, script, first)) in [
        ("no introduction, a text", Script { no_init: true, ..Script::default() }, Some(text())),
        ("no introduction, a tool", Script { no_init: true, ..Script::default() }, Some(Step::ToolUse("Read".into()))),
        ("no introduction, thinking", Script { no_init: true, ..Script::default() }, Some(Step::Thinking)),
        (
            "no introduction, a result",
            Script { no_init: true, ..Script::default() },
            Some(Step::Result(fields(json!({})))),
        ),
        ("an introduction without a source", Script { no_key_source: true, ..Script::default() }, Some(text())),
        (
            "an introduction that comes too late",
            Script { no_init: true, ..Script::default() },
            Some(Step::Glued(vec![text(), Step::Introduce])),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let went_on = format!("went-on-{number}");
        let mut steps: Vec<Step> = first.into_iter().collect();
        steps.extend([Step::WaitForFile(rig.sign("never")), Step::Touch(rig.sign(&went_on))]);
        let prompt = rig.prompt(Script { steps, ..script });
        let sent = host.start("consult", json!({"prompt": prompt, "timeout_s": 20})).await;
        expect_ended_for_its_payer(&rig, name, &went_on, host.reply(sent).await);
    }
    // One that fails before it begins has cost nothing, and its own reason is what helps.
    let unknown = Script {
        no_init: true,
        result: fields(json!({
            "is_error": true, "subtype": "error_during_execution", "result": null, "total_cost_usd": null,
            "errors": ["No conversation found with session ID: x"],
        })),
        ..Script::default()
    };
    host.consult(&rig.prompt(unknown)).await.expect_fault("unknown_session");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn extra_usage_is_said_in_the_reply_and_stopped_where_that_was_chosen() {
    let mut rig = new_rig();
    let info = fields(json!({"status": "allowed", "rateLimitType": "five_hour", "isUsingOverage": true}));
    let paid = |rig: &Rig, steps: Vec<Step>| {
        let steps = [vec![Step::Text("so far".into()), Step::LimitInfo(info.clone())], steps].concat();
        rig.prompt(Script { answer: Some("42".into()), steps, ..Script::default() })
    };
    let mut host = rig.serve().await;
    let reply = host.consult(&paid(&rig, vec![])).await.expect_success();
    assert!(reply.str("billing").contains("extra usage"), "{:#}", reply.0);
    assert!(reply.text().contains("extra usage"), "{}", reply.text());
    let reply = host.consult(&rig.answering("43")).await.expect_success();
    assert_eq!(reply["billing"], "none");

    rig.set("PHONE_OPUS_EXTRA_USAGE", "stop");
    let mut careful = rig.serve().await;
    let waits = vec![Step::WaitForFile(rig.sign("never")), Step::Touch(rig.sign("went-on"))];
    let sent = careful.start("consult", json!({"prompt": paid(&rig, waits), "timeout_s": 20})).await;
    let reply = careful.reply(sent).await;
    assert!(reply.text().contains("extra_usage"), "it names the setting: {}", reply.text());
    expect_ended_for_its_payer(&rig, "extra usage", "went-on", reply);
    // What is answered is paid for; it is not thrown away.
    let late = Script { answer: Some("44".into()), after: vec![Step::LimitInfo(info)], ..Script::default() };
    let reply = careful.consult(&rig.prompt(late)).await.expect_success();
    assert_eq!(reply["response"], "44");
    rig.stop_and_check_invariants([host, careful]).await;
}

fn fields(value: Value) -> serde_json::Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}
