//! What a person at the keyboard, and a model, are met with: output that nobody reads, a real terminal, hints, fault plans
//! with a slip in them, and what each client's model gets to see.
//!
//! Laws: L11, L13.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::process::Stdio;

use phone_opus::testkit::outputs::{closed_pipe, full_device};
use phone_opus::testkit::{Reply, Rig, Step, TestClient, tried_program, until};
use serde_json::{Value, json};

fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus"))).with("PHONE_OPUS_LOG", "warn")
}

/// A job that is over and that nobody has read.
async fn unread(rig: &Rig, answer: &str) -> String {
    let prompt = rig.answering(answer);
    let begun = rig.run(&["consult", "--background", "--json", &prompt]).await;
    let job: Value = serde_json::from_slice(&begun.stdout).expect("JSON");
    rig.only_job_over().await;
    job["job_id"].as_str().expect("a job").to_owned()
}

async fn is_unread(rig: &Rig, job: &str) -> bool {
    let jobs = rig.jobs().await;
    let record = jobs.iter().find(|record| record.id.to_string() == job).expect("the job");
    record.read_at.is_none()
}

#[tokio::test]
async fn output_that_nobody_reads_ends_every_command_quietly_and_a_full_disk_is_said() {
    let rig = new_rig();
    let job = unread(&rig, "forty-two").await;
    let asked = rig.answering("never read");
    let commands: &[&[&str]] = &[
        &["jobs", "show", &job],
        &["jobs", "show", "--json", &job],
        &["jobs", "list"],
        &["jobs", "list", "--json"],
        &["jobs", "tail", &job],
        &["jobs", "tail", "--json", &job],
        &["jobs", "cancel", &job],
        &["jobs", "limits"],
        &["jobs", "prune", "--json"],
        &["doctor"],
        &["doctor", "--json"],
        &["doctor", "--live", "--agent", "offline"],
        &["doctor", "--fix", "--dry-run"],
        &["agents"],
        &["agents", "--json"],
        &["selftest", "--list"],
        &["selftest", "--list", "--json"],
        &["faults", "list"],
        &["faults", "list", "--json"],
        &["config", "show"],
        &["completions", "bash"],
        &["--help"],
        &["consult", "--help"],
        &["--version"],
        &["consult", "--agent", "offline", "what is here?"],
        &["consult", "--json", &asked],
    ];
    for arguments in commands {
        let output = rig.run_into(arguments, closed_pipe()).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(141), "{arguments:?}: {said}");
        let quiet = arguments[0] == "consult" || said.is_empty();
        assert!(quiet && !said.contains("panic") && !said.contains("written"), "{arguments:?}: {said}");
        if let Some(full) = full_device() {
            let output = rig.run_into(arguments, full).await;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
            assert!(said.contains("could not be written") && !said.contains("panic"), "{arguments:?}: {said}");
        }
    }
    for record in rig.jobs().await {
        assert!(record.read_at.is_none(), "an answer nobody could read is unread: {}", record.id);
    }
    // Whoever can read it reads it.
    let shown = rig.run(&["jobs", "show", &job]).await;
    assert!(String::from_utf8_lossy(&shown.stdout).contains("forty-two"));
    assert!(!is_unread(&rig, &job).await);
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn words_on_stderr_that_nobody_reads_end_nothing() {
    let rig = new_rig();
    let prompt = rig.answering("forty-two");
    for arguments in [&["consult", &prompt][..], &["consult", "--nonsense"], &["jobs", "show", "x"]] {
        let mut command = rig.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(closed_pipe());
        let output = command.spawn().expect("it runs").wait_with_output().await.expect("it ends");
        let want = if arguments.len() == 2 && arguments[1] == prompt { 0 } else { 2 };
        assert_eq!(output.status.code(), Some(want), "{arguments:?}");
    }
    rig.stop_and_check_invariants([]).await;
}

/// Characters a terminal obeys, of every kind.
const OBEYED: &str = "a\u{1b}]52;c;eA==\u{7}b\u{1b}[2Jc\u{9b}31md\rEVIL\u{8}\u{7f}\u{202e}e\u{2066}f\ttab";

#[tokio::test]
async fn a_terminal_is_shown_what_it_would_obey_and_a_pipe_gets_it_as_it_is() {
    let rig = new_rig();
    std::fs::write(rig.path("work").join("e\u{1b}]52;c;eA==\u{7}\nvil.txt"), "heron in the reeds\n").expect("a file");
    let job = unread(&rig, OBEYED).await;
    let asked = rig.answering(OBEYED);
    let failing = rig.doing(vec![Step::Stderr(format!("{OBEYED}\n")), Step::Exit(9)]);
    let commands: &[&[&str]] = &[
        &["consult", &asked],
        &["consult", "--json", &asked],
        &["consult", "--agent", "offline", "heron reeds"],
        &["consult", &failing],
        &["consult", "--agent", OBEYED, "x"],
        &["consult", "--effort", OBEYED, "x"],
        &["consult", "--nonsense=\u{1b}[2J", "x"],
        &["jobs", "show", &job],
        &["jobs", "show", "--full", &job],
        &["jobs", "show", "--json", &job],
        &["jobs", "tail", &job],
        &["jobs", "tail", "--json", &job],
        &["jobs", "list"],
        &["jobs", "show", "\u{1b}[2J"],
    ];
    for arguments in commands {
        let seen = rig.on_a_terminal(arguments).await;
        assert!(!seen.is_empty(), "{arguments:?} shows something");
        // A terminal ends its own lines with both.
        let seen = seen.replace("\r\n", "\n");
        let obeyed = |c: char| {
            (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        // What clap colours is its own words.
        let foreign = seen.replace("\u{1b}[1m", "").replace("\u{1b}[0m", "").replace("\u{1b}[31m", "");
        assert!(!foreign.chars().any(obeyed), "{arguments:?}: {seen:?}");
    }
    let shown = rig.on_a_terminal(&["jobs", "show", &job]).await;
    assert!(
        shown
            .contains("a\\u001b]52;c;eA==\\u0007b\\u001b[2Jc\\u009b31md\\u000dEVIL\\u0008\\u007f\\u202ee\\u2066f\ttab")
    );
    let piped = rig.run(&["consult", &asked]).await;
    assert_eq!(String::from_utf8_lossy(&piped.stdout), format!("{OBEYED}\n"), "a pipe gets the bytes");
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn people_are_told_what_to_type() {
    let mut rig = new_rig();
    let prompt = rig.answering("later");
    let begun = rig.run(&["consult", "--background", &prompt]).await;
    let said = String::from_utf8_lossy(&begun.stdout).into_owned();
    let job = rig.only_job_over().await.id;
    assert!(said.contains(&format!("phone-opus jobs show {job} --wait")) && !said.contains("consult_job"), "{said}");
    rig.set("PHONE_OPUS_CLAUDE_BIN", "/no/such/claude");
    let output = rig.run(&["consult", "x"]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("agent_missing") && said.contains("--agent offline"), "{said}");
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_consult_ended_from_the_keyboard_is_no_news() {
    let rig = new_rig();
    let mut child = rig.command(&["consult", &rig.hanging("begun")]).stdin(Stdio::null()).spawn().expect("it runs");
    rig.wait_for_sign("begun").await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().expect("a pid")).expect("small")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("interrupted");
    assert_eq!(child.wait().await.expect("it ends").code(), Some(3));
    let job = rig.only_job_over().await;
    assert_eq!((job.state.as_str(), job.read_at.is_some()), ("cancelled", true));
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_fault_plan_with_a_slip_is_refused_and_one_that_is_never_met_is_named() {
    let mut rig = new_rig();
    for (plan, said) in [
        ("worker.before_reply@tools/call:consul=panic", &["did you mean `tools/call:consult`?"][..]),
        ("store.commit@acept=panic", &["never met", "did you mean `accept`?", "finish"]),
        ("worker.before_execute@pign=panic", &["did you mean `ping`?"]),
        ("stdio.read@ping=panic", &["no operation here"]),
    ] {
        rig.set("PHONE_OPUS_FAULTS", plan);
        for arguments in [&["consult", "x"][..], &["mcp", "serve"]] {
            let output = rig.run(arguments).await;
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{plan}: {stderr}");
            assert!(said.iter().all(|part| stderr.contains(part)), "{plan}: {stderr}");
        }
    }
    rig.expect_runs(0);
    rig.set(
        "PHONE_OPUS_FAULTS",
        "worker.before_reply@tools/call:consult#7=panic;worker.before_reply@tools/call:consult=delay:1",
    );
    let output = rig.run(&["consult", &rig.answering("fine")]).await;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    // The command line asks its jobs itself: no worker executes a call.
    assert!(stderr.contains("armed and never met: worker.before_reply@tools/call:consult#7=panic;"), "{stderr}");
    let mut host = rig.serve().await;
    let unmet = |health: &Reply| health["fault_rules_never_met"].as_array().map_or(0, Vec::len);
    assert_eq!(unmet(&host.call("health_snapshot", json!({})).await), 2);
    host.call("consult", json!({"prompt": rig.answering("met")})).await.expect_success();
    until("the rules are met", async || (unmet(&host.health().await) == 0).then_some(())).await;
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn faults_list_tells_every_point_what_it_accepts_and_in_which_operations() {
    let rig = new_rig();
    let output = rig.run(&["faults", "list", "--json"]).await;
    let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let points = listed["points"].as_array().expect("a list");
    let text = String::from_utf8(rig.run(&["faults", "list"]).await.stdout).expect("text");
    assert_eq!(points.len(), phone_opus::internals::failpoints::FaultPoint::ALL.len());
    for point in points {
        assert!(
            text.contains(point["point"].as_str().expect("a name"))
                && !point["actions"].as_array().expect("a list").is_empty()
        );
    }
    let reply = points.iter().find(|point| point["point"] == "worker.before_reply").expect("it is there");
    assert!(reply["operations"].as_array().expect("a list").contains(&json!("tools/call:consult")), "{reply}");
    rig.stop_and_check_invariants([]).await;
}

/// A host greeted by a client of this name.
async fn greeted_by(rig: &mut Rig, name: &str) -> TestClient {
    let mut host = rig.host();
    let client = json!({"name": name, "version": "1"});
    host.request("initialize", json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}))
        .await;
    host.notify("notifications/initialized", json!({})).await;
    host
}

#[tokio::test]
async fn each_client_is_given_what_it_shows_its_model_and_that_is_complete() {
    let mut rig = new_rig();
    let answer = "fn f() {\n\t\"quoted\\n\";\n}\n".repeat(40);
    let mut hosts = Vec::new();
    for (name, structured) in [("claude-code", false), ("codex-mcp-client", false), ("gemini-cli-mcp-client", true)] {
        let mut host = greeted_by(&mut rig, name).await;
        let has = |reply: &Reply| reply.0["result"].get("structuredContent").is_some();
        let plain = host.call("consult", json!({"prompt": rig.answering(&answer)})).await;
        assert_eq!(has(&plain), structured, "{name}");
        assert!(plain.text().contains(&answer), "the answer as it was written");
        println!("{name}: {} bytes of a reply", plain.0.to_string().len());
        let asked = host.call("consult", json!({"prompt": rig.answering(&answer), "render": "json"})).await;
        assert!(has(&asked), "{name}");
        assert_eq!(
            serde_json::from_str::<Value>(asked.text()).ok().as_ref(),
            Some(&asked.0["result"]["structuredContent"])
        );
        for (tool, arguments) in [
            ("consult_jobs", json!({})),
            ("health_snapshot", json!({})),
            ("telemetry_snapshot", json!({})),
            ("consult_job", json!({"job_id": asked.str("job_id"), "after_seq": 0})),
            ("consult_cancel", json!({"job_id": asked.str("job_id")})),
            ("consult", json!({"prompt": " "})),
            ("consult_job", json!({"job_id": "00000000-0000-4000-8000-000000000000"})),
        ] {
            let reply = host.call(tool, arguments).await;
            assert_eq!(has(&reply), structured, "{name} {tool}: {:#}", reply.0);
            assert!(!reply.text().is_empty());
        }
        let listed = host.request("tools/list", json!({})).await["result"].to_string();
        assert!(listed.len() < 6 * 1024, "{} bytes of tools", listed.len());
        let agents = r#""enum":["claude","codex","copilot","gemini","opencode","qwen","offline"]"#;
        for closed in [r#""enum":["porcelain","json"]"#, r#""enum":["workspace","all"]"#, agents] {
            assert!(listed.contains(closed), "{closed}");
        }
        hosts.push(host);
    }
    rig.stop_and_check_invariants(hosts).await;
}

#[tokio::test]
async fn placeholders_and_mangled_types_are_read_as_they_were_meant() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let filled = json!({
        "prompt": rig.answering("fine"), "cwd": "", "session_id": "", "background": "", "max_turns": "", "model": "null",
        "effort": "", "agent": "", "timeout_s": "30.0", "wait_s": 60.0, "request_key": "", "max_budget_usd": "0.5",
        "render": "", "detail": null,
    });
    host.call("consult", filled).await.expect_success();
    let started = host.call("consult", json!({"prompt": rig.answering("later"), "background": "true"})).await;
    assert_eq!(started.str("mode"), "background");
    host.job(started.str("job_id")).await.expect_success();
    for wrong in [json!({"max_turns": "abc"}), json!({"wait_s": 30.5}), json!({"background": "maybe"})] {
        let mut arguments = json!({"prompt": "x"});
        arguments.as_object_mut().expect("an object").extend(wrong.as_object().expect("an object").clone());
        host.call("consult", arguments).await.expect_fault("invalid_input");
    }
    for blank in ["\u{200b}", "\u{feff}", " \u{2060}\n"] {
        let refused = host.call("consult", json!({"prompt": blank})).await.expect_fault("invalid_input");
        assert!(refused.text().contains("blank"), "{}", refused.text());
    }
    rig.expect_runs(2);
    rig.stop_and_check_invariants([host]).await;
}
