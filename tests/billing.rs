//! Who pays, as far as the whole program decides it: the command line, the runner, an agent that introduces itself.

#![expect(clippy::expect_used, reason = "a test")]

use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use phone_opus::testkit::scripted_agent::{PROGRAM_NAME, Script, Step};
use rustix::process::{Pid, test_kill_process_group};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_phone-opus");

/// The program in an environment of its own, with the scripted agent as Claude Code.
fn phone_opus(scratch: &Path, args: &[&str]) -> Output {
    command(scratch, args).output().expect("the program runs")
}

fn command(scratch: &Path, args: &[&str]) -> Command {
    let agent = scratch.join(PROGRAM_NAME);
    if !agent.exists() {
        symlink(PROGRAM, &agent).expect("a link to the program");
    }
    let mut command = Command::new(PROGRAM);
    command
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", scratch)
        .env("PHONE_OPUS_STATE_DIR", scratch.join("state"))
        .env("PHONE_OPUS_CLAUDE_BIN", &agent)
        .current_dir(scratch);
    command
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

#[test]
fn doctor_does_not_take_a_withheld_key_for_a_login() {
    let scratch = tempfile::tempdir().expect("scratch");
    let agent = scratch.path().join("claude");
    // Written by another process: one that this process still held for writing could not be run.
    let mut writer = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 700 \"$0\""])
        .arg(&agent)
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    writer.stdin.take().expect("its stdin").write_all(ASKED.as_bytes()).expect("the script");
    assert!(writer.wait().expect("its end").success());
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
        let output = command(scratch.path(), &["doctor", "--json"])
            .env("PHONE_OPUS_CLAUDE_BIN", &agent)
            .env("PHONE_OPUS_BILLING", billing)
            .env("ANTHROPIC_API_KEY", key)
            .env("LC_LOGIN", login)
            .output()
            .expect("the program runs");
        let report = reply(&output);
        let checks = report["checks"].as_array().expect("checks");
        let found = checks.iter().find(|check| check["check"] == "login").expect("a login check");
        assert_eq!(found["ok"], good, "billing {billing}, key {key:?}, login {login:?}: {found}");
    }
}

#[test]
fn an_agent_that_would_bill_the_wrong_account_is_killed_and_not_asked_to_stop() {
    let scratch = tempfile::tempdir().expect("scratch");
    let log = scratch.path().join("log");
    let script = Script {
        key_source: Some("apiKeyHelper".into()),
        log: Some(log.clone()),
        steps: vec![Step::Hang],
        ..Script::default()
    };
    let output = phone_opus(scratch.path(), &["consult", "--json", &script.in_prompt()]);
    let failed = reply(&output);
    assert_eq!(output.status.code(), Some(1), "{failed}");
    assert_eq!(failed["fault"]["code"], "billing_mismatch", "{failed}");

    // Who is asked to stop may still send the one request that is not to be sent.
    let job = failed["job_id"].as_str().expect("a job");
    let full = reply(&phone_opus(scratch.path(), &["jobs", "show", job, "--full", "--json"]));
    assert_eq!(full["exit"]["signal"], 9, "{full}");

    let started = std::fs::read_to_string(&log).expect("the agent's log");
    let started: Value = serde_json::from_str(started.lines().next().expect("a line")).expect("JSON");
    let group = started["pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).expect("a pid");
    assert!(test_kill_process_group(group).is_err(), "something of the run's group is left");
}
