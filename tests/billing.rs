//! Who pays, as far as the whole program decides it: the command line, the runner, an agent that introduces itself.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use phone_opus::testkit::{Rig, Script, Step, tried_program};
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
