//! The scripted agent as a real process: signals, groups and what stays behind.
//!
//! Laws: L7, L13.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;

use phone_opus::internals::agents::{
    Agent as _, AgentEvent, ClaudeCode, Environment, OutputReader, RunEnd, RunRequest, RunSummary,
};
use phone_opus::internals::base::ids::{AgentSessionId, ChainId, RunToken};
use phone_opus::internals::jobs::{ConsultRequest, JobState, RunExit};
use phone_opus::testkit::processes::{are_visible, group_lives};
use phone_opus::testkit::{
    AgentProcess, ForkPlace, Rig, Role, Script, Signal, Step, scripted_agent, tried_program, until,
};
use serde_json::json;

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

fn doing(steps: Vec<Step>) -> Script {
    Script { steps, ..Script::default() }
}

/// Probe, command line, environment, stdin, parser and table with a real process between them.
#[tokio::test]
async fn a_prepared_command_runs_to_its_verdict() {
    let rig = new_rig();
    let (link, log) = (rig.path(scripted_agent::PROGRAM_NAME), rig.path("own.log"));
    let environment = Environment::capture()
        .with("PHONE_OPUS_CLAUDE_BIN", &link)
        .with("ANTHROPIC_API_KEY", "key")
        .with("CLAUDECODE", "1");
    let session = AgentSessionId::random();
    let script = Script { log: Some(log.clone()), answer: Some("CANARY answer".into()), ..Script::default() };
    let mut request =
        ConsultRequest::new(script.in_prompt()).cwd(rig.work()).agent("claude").resume(session).timeout_s(60);
    (request.max_turns, request.max_budget_usd) = (Some(3), Some(1.5));
    (request.model, request.effort) = (Some("opus".into()), Some("high".into()));
    let run = RunRequest {
        request: &request,
        token: RunToken::random(),
        chain: ChainId::random(),
        depth: 0,
        environment: &environment,
        traceparent: None,
        there: None,
    };
    let state = rig.path("probed");
    let claude = ClaudeCode::default();
    let command = claude.prepare(&run, &state).await.expect("a command");
    assert!(command.args.iter().any(|arg| arg == "--restricted"));
    assert!(state.join("probe").exists(), "the stand-in's help is read like the real one's");

    let mut prepared = tokio::process::Command::new(&command.program);
    prepared.args(&command.args).env_clear().envs(command.env.iter().map(|(name, value)| (name, value)));
    prepared.current_dir(&request.cwd);
    let mut agent = AgentProcess::start(prepared, &command.stdin).await;
    let stdout = agent.stdout().await;
    let code = agent.wait().await.code().expect("an exit code");
    agent.expect_nothing_left().await;

    let (mut reader, mut events, mut summary) = (OutputReader::new(claude.parser()), Vec::new(), RunSummary::new());
    reader.push(&stdout, &mut events);
    reader.finish(&mut events);
    events.iter().for_each(|event| summary.fold(event));
    let started = events.iter().find(|event| matches!(event, AgentEvent::Started { .. })).expect("started");
    claude.check_start(started, command.payment).expect("the key was withheld, so the login pays");
    let mut end = RunEnd::default();
    (end.summary, end.exit) = (summary, Some(RunExit { code, signal: None, reaped: 0 }));
    end.resume_requested = Some(session);
    (end.key_withheld, end.prompt_prefix_injected) = (command.key_withheld, command.prompt_prefix_injected);
    let verdict = claude.classify(end);
    assert_eq!(verdict.state, JobState::Succeeded, "{verdict:?}");
    assert_eq!(verdict.outcome.response.as_deref(), Some("CANARY answer"));
    assert_eq!(verdict.outcome.session_id, Some(session.to_string()));

    // What the process itself saw: no prompt, no key, no marker of the host.
    let log = std::fs::read_to_string(log).expect("a log");
    let seen: serde_json::Value = serde_json::from_str(log.lines().next().expect("a line")).expect("JSON");
    let (argv, env) = (seen["argv"].to_string(), &seen["env"]);
    assert!(!argv.contains("CANARY") && !env.to_string().contains("CANARY"), "{argv} {env}");
    assert!(env.get("ANTHROPIC_API_KEY").is_none() && env.get("CLAUDECODE").is_none(), "{env}");
    assert_eq!(env["PHONE_OPUS_DEPTH"], "1");
    assert_eq!(env["PHONE_OPUS_RUN_TOKEN"], run.token.to_string());
}

#[tokio::test]
async fn it_dies_of_sigterm_by_default() {
    let rig = new_rig();
    let mut agent = rig.play(&doing(vec![Step::Touch(rig.sign("begun")), Step::Hang])).await;
    rig.wait_for_sign("begun").await;
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait().await.signal(), Some(15));
    agent.expect_nothing_left().await;
    rig.check_invariants().await;
}

#[tokio::test]
async fn it_ignores_sigterm_when_told_and_dies_of_sigkill() {
    let rig = new_rig();
    let steps = vec![
        Step::IgnoreTerm,
        Step::Touch(rig.sign("begun")),
        Step::WaitForFile(rig.sign("go")),
        Step::Touch(rig.sign("after")),
        Step::Hang,
    ];
    let mut agent = rig.play(&doing(steps)).await;
    rig.wait_for_sign("begun").await;
    agent.signal(Signal::TERM);
    rig.give_sign("go");
    rig.wait_for_sign("after").await;
    assert!(!agent.has_ended());
    agent.signal(Signal::KILL);
    assert_eq!(agent.wait().await.signal(), Some(9));
    agent.expect_nothing_left().await;
    rig.check_invariants().await;
}

#[tokio::test]
async fn it_kills_itself() {
    let rig = new_rig();
    let mut agent = rig.play(&doing(vec![Step::KillSelf(9)])).await;
    assert_eq!(agent.wait().await.signal(), Some(9));
    agent.expect_nothing_left().await;
    rig.check_invariants().await;
}

#[tokio::test]
async fn a_grandchild_of_its_group_outlives_it_and_is_reached() {
    let rig = new_rig();
    let mut agent = rig.play(&doing(vec![Step::Fork(ForkPlace::Group)])).await;
    assert!(agent.wait().await.success());
    assert!(group_lives(agent.group()));
    agent.signal(Signal::KILL);
    agent.expect_nothing_left().await;
    assert!(String::from_utf8_lossy(&agent.stdout().await).contains("\"type\":\"result\""));
    rig.check_invariants().await;
}

#[tokio::test]
async fn a_grandchild_of_its_own_session_is_not_reached() {
    let rig = new_rig();
    let mut agent = rig.play(&doing(vec![Step::Fork(ForkPlace::Session)])).await;
    assert!(agent.wait().await.success());
    if !are_visible() {
        println!("skipped: without /proc the grandchild cannot be found to end it");
        return;
    }
    // It starts in the group and leaves it for its own.
    let grandchild = until("the grandchild leads its own session", async || {
        rig.all(Role::Offspring).into_iter().find(|process| process.leads_session)
    })
    .await;
    assert!(!group_lives(agent.group()));
    grandchild.kill();
    until("the grandchild is gone", async || (!group_lives(grandchild.pid)).then_some(())).await;
    rig.check_invariants().await;
}

#[tokio::test]
async fn it_waits_for_a_file_and_writes_more_than_a_pipe_holds() {
    let rig = new_rig();
    let steps = vec![Step::WaitForFile(rig.sign("go")), Step::HugeOutput(1 << 20), Step::HugeLine(1 << 20)];
    let mut agent = rig.play(&Script { answer: Some("done".into()), ..doing(steps) }).await;
    assert!(!agent.has_ended());
    rig.give_sign("go");
    let text = String::from_utf8(agent.stdout().await).expect("text");
    assert!(text.len() > 2 << 20 && text.ends_with("}\n") && text.contains("\"result\":\"done\""));
    assert!(agent.wait().await.success());
    agent.expect_nothing_left().await;
    rig.check_invariants().await;
}

/// The row of a step in the table below. A step without a row does not compile here.
fn row(step: &Step) -> usize {
    match step {
        Step::Text(_) => 0,
        Step::Thinking => 1,
        Step::ToolUse(_) => 2,
        Step::DelayMs(_) => 3,
        Step::WaitForFile(_) => 4,
        Step::Touch(_) => 5,
        Step::Hang => 6,
        Step::IgnoreTerm => 7,
        Step::Garbage(_) => 8,
        Step::Raw(_) => 9,
        Step::HugeOutput(_) => 10,
        Step::HugeLine(_) => 11,
        Step::LoneSurrogate => 12,
        Step::HalfUtf8 => 13,
        Step::Stderr(_) => 14,
        Step::HugeStderr(_) => 15,
        Step::Fork(_) => 16,
        Step::RateLimit(_) => 17,
        Step::ApiRetry { .. } => 18,
        Step::ApiError(_) => 19,
        Step::Denied { .. } => 20,
        Step::Result(_) => 21,
        Step::Exit(_) => 22,
        Step::KillSelf(_) => 23,
        Step::CloseOutput => 24,
        Step::HugeText(_) => 25,
        Step::Part(_) => 26,
        Step::Introduce => 27,
        Step::Glued(_) => 28,
        Step::LimitInfo(_) => 29,
        Step::ReadLine(_) => 31,
        Step::TakePlace { .. } => 30,
    }
}

/// What a step makes of a run.
enum Ends {
    /// With this exit code, and with what stands on stdout and on stderr.
    With(i32, &'static str, &'static str),
    /// By this signal.
    By(i32),
    /// Only when it is sent this signal, which it dies of.
    When(Signal),
    /// Not by SIGTERM.
    DeafTo,
}

#[tokio::test]
async fn each_step_does_what_it_says_and_nothing_else() {
    use Ends::{By, DeafTo, When, With};
    let rig = new_rig();
    rig.give_sign("given");
    let retry = Step::ApiRetry { attempt: 2, max: 3, delay_ms: 40, status: Some(529) };
    let denied = Step::Denied { tool: "Write".into(), target: "/x".into() };
    let fields = json!({"result": "not yet"}).as_object().cloned().expect("an object");
    let info = json!({"isUsingOverage": true}).as_object().cloned().expect("an object");
    let mut rows = BTreeSet::new();
    for (step, ends) in [
        (Step::Text("so far".into()), With(0, "\"text\":\"so far\"", "")),
        (Step::Thinking, With(0, "\"type\":\"thinking\"", "")),
        (Step::ToolUse("Grep".into()), With(0, "\"name\":\"Grep\"", "")),
        (Step::DelayMs(5), With(0, "", "")),
        (Step::WaitForFile(rig.sign("given")), With(0, "", "")),
        (Step::Touch(rig.sign("touched")), With(0, "", "")),
        (Step::TakePlace { dir: rig.path("signs"), of: 1 }, With(0, "", "")),
        (Step::Hang, When(Signal::TERM)),
        (Step::IgnoreTerm, DeafTo),
        (Step::Garbage(2), With(0, "garbage line 1: {not json\n", "")),
        (Step::Raw("{\"type\":\"novelty\"}".into()), With(0, "\n{\"type\":\"novelty\"}\n", "")),
        (Step::HugeOutput(5000), With(0, "xxxxxxxx", "")),
        (Step::HugeLine(5000), With(0, "xxxx\n{", "")),
        (Step::HugeText(5000), With(0, "\"text\":\"xxxx", "")),
        (Step::LoneSurrogate, With(0, "\\ud83d\"", "")),
        // Half of a character is the last thing before the answer's own line.
        (Step::HalfUtf8, With(0, "half a character: \u{fffd}{", "")),
        (Step::Stderr("last words".into()), With(0, "", "last words")),
        (Step::HugeStderr(200_000), With(0, "", "xxxxxxxx")),
        (Step::Fork(ForkPlace::Group), When(Signal::KILL)),
        (Step::RateLimit(1_900_000_000), With(0, "\"resetsAt\":1900000000", "")),
        (retry, With(0, "\"retry_delay_ms\":40", "")),
        (Step::ApiError("overloaded".into()), With(0, "\"error\":\"overloaded\"", "")),
        (denied, With(0, "\"subtype\":\"permission_denied\"", "")),
        (Step::Result(fields), With(0, "\"result\":\"not yet\"", "")),
        (Step::Exit(7), With(7, "", "")),
        (Step::KillSelf(9), By(9)),
        (Step::CloseOutput, With(0, "", "")),
        (Step::Part("Loading…\r".into()), With(0, "}\nLoading…\r{", "")),
        (Step::Introduce, With(0, "\"subtype\":\"init\"", "")),
        (Step::Glued(vec![Step::Raw("{}".into()), Step::Raw("{}".into())]), With(0, "\n{}{}\n", "")),
        (Step::LimitInfo(info), With(0, "\"isUsingOverage\":true", "")),
        // Its input was read to its end.
        (Step::ReadLine(rig.sign("read")), With(0, "", "")),
    ] {
        let (name, last, silent) =
            (format!("{step:?}"), matches!(step, Step::Exit(_)), matches!(step, Step::CloseOutput));
        assert!(rows.insert(row(&step)), "{name} has two rows");
        let begun = rig.sign(&format!("begun-{}", rows.len()));
        let waits = matches!(ends, When(Signal::TERM) | DeafTo);
        let steps = match ends {
            // A sign after the step, as far as a step that never ends can have one.
            DeafTo => vec![step, Step::Touch(begun.clone()), Step::Hang],
            When(Signal::TERM) => vec![Step::Touch(begun.clone()), step],
            _ => vec![step],
        };
        let mut agent = rig.play(&Script { answer: Some("42".into()), ..doing(steps) }).await;
        if waits {
            until("it has come so far", async || begun.exists().then_some(())).await;
            agent.signal(Signal::TERM);
        }
        match ends {
            With(code, said, complained) => {
                let (stdout, stderr) = agent.output().await;
                let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                assert_eq!(agent.wait().await.code(), Some(code), "{name}: {stdout}");
                assert!(stdout.contains(said), "{name}: {stdout}");
                assert!(
                    stderr.contains(complained) && (complained.is_empty() == stderr.is_empty()),
                    "{name}: {stderr}"
                );
                assert_eq!(stdout.contains("\"result\":\"42\""), !last && !silent, "{name}: {stdout}");
            }
            By(signal) => assert_eq!(agent.wait().await.signal(), Some(signal), "{name}"),
            When(Signal::TERM) => assert_eq!(agent.wait().await.signal(), Some(15), "{name}"),
            When(signal) => {
                assert!(agent.wait().await.success() && group_lives(agent.group()), "{name}");
                agent.signal(signal);
            }
            DeafTo => {
                assert!(!agent.has_ended(), "{name}");
                agent.signal(Signal::KILL);
                assert_eq!(agent.wait().await.signal(), Some(9), "{name}");
            }
        }
        agent.expect_nothing_left().await;
    }
    assert!(rig.sign("touched").exists());
    assert_eq!(rows.into_iter().collect::<Vec<_>>(), (0..=row(&Step::ReadLine("/".into()))).collect::<Vec<_>>());
    rig.check_invariants().await;
}
