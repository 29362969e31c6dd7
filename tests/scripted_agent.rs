//! The scripted agent as a real process: signals, groups and what stays behind.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::io::{Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use phone_opus::agents::{
    Agent as _, AgentEvent, ClaudeCode, Environment, OutputReader, RunEnd, RunRequest, RunSummary,
};
use phone_opus::ids::{AgentSessionId, ChainId, RunToken};
use phone_opus::jobs::{Billing, ConsultRequest, JobState, RunExit};
use phone_opus::testkit::scripted_agent::{self, Place, Script, Step};
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};

/// The program that plays the agent when it is called by the agent's name.
const PROGRAM: &str = env!("CARGO_BIN_EXE_phone-opus");

/// One run of the program in its own process group; ended with its group when it is dropped.
struct Agent {
    child: Child,
    group: Pid,
}

impl Agent {
    fn start(script: &Script) -> Self {
        let mut child = Command::new(PROGRAM)
            .arg0(scripted_agent::PROGRAM_NAME)
            .args(["-p", "--output-format", "stream-json", "--verbose"])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let group = Pid::from_child(&child);
        child.stdin.take().expect("stdin").write_all(script.in_prompt().as_bytes()).expect("written");
        Self { child, group }
    }

    fn wait(&mut self) -> ExitStatus {
        until("the agent has ended", || self.child.try_wait().expect("waited"))
    }

    fn stdout(&mut self) -> String {
        let mut text = String::new();
        self.child.stdout.take().expect("stdout").read_to_string(&mut text).expect("read");
        text
    }

    fn expect_nothing_left(&self) {
        until("the group is empty", || (!group_lives(self.group)).then_some(()));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = kill_process_group(self.group, Signal::KILL);
        let _ = self.child.wait();
    }
}

/// Whether a process of the group lives; one that nobody has reaped yet does not.
fn group_lives(group: Pid) -> bool {
    if test_kill_process_group(group).is_err() {
        return false;
    }
    let Ok(processes) = std::fs::read_dir("/proc") else { return true };
    processes.flatten().any(|process| {
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        // After the name, which may hold anything: state, parent, group.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        matches!(fields[..], [state, _, of, ..] if state != "Z" && of == group.as_raw_nonzero().to_string())
    })
}

fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn reached(path: &Path) {
    until("the script has come so far", || path.exists().then_some(()));
}

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("scratch");
    let sign = dir.path().join("sign");
    (dir, sign)
}

/// Probe, command line, environment, stdin, parser and table with a real process between them.
#[test]
fn a_prepared_command_runs_to_its_verdict() {
    let (dir, log) = scratch();
    let link = dir.path().join(scripted_agent::PROGRAM_NAME);
    std::os::unix::fs::symlink(PROGRAM, &link).expect("a link");
    let environment = Environment::capture()
        .with("PHONE_OPUS_CLAUDE_BIN", &link)
        .with("ANTHROPIC_API_KEY", "key")
        .with("CLAUDECODE", "1");
    let session = AgentSessionId::random();
    let script = Script { log: Some(log.clone()), answer: Some("CANARY answer".into()), ..Script::default() };
    let request = ConsultRequest {
        prompt: script.in_prompt(),
        cwd: dir.path().to_owned(),
        agent: "claude".into(),
        session_id: Some(session),
        max_turns: Some(3),
        model: Some("opus".into()),
        effort: Some("high".into()),
        timeout_s: 60,
        max_budget_usd: Some(1.5),
        billing: Billing::Subscription,
    };
    let run = RunRequest {
        request: &request,
        token: RunToken::random(),
        chain: ChainId::random(),
        depth: 0,
        environment: &environment,
    };
    let state = dir.path().join("state");
    let claude = ClaudeCode::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let command = runtime.block_on(claude.prepare(&run, &state)).expect("a command");
    assert!(command.args.iter().any(|arg| arg == "--restricted"));
    assert!(state.join("probe").exists(), "the stand-in's help is read like the real one's");

    let mut child = Command::new(&command.program)
        .args(&command.args)
        .env_clear()
        .envs(command.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&request.cwd)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let group = Pid::from_child(&child);
    child.stdin.take().expect("stdin").write_all(&command.stdin).expect("written");
    let mut agent = Agent { child, group };
    let stdout = agent.stdout();
    let code = agent.wait().code().expect("an exit code");
    agent.expect_nothing_left();

    let (mut reader, mut events, mut summary) = (OutputReader::new(claude.parser()), Vec::new(), RunSummary::new());
    reader.push(stdout.as_bytes(), &mut events);
    reader.finish(&mut events);
    events.iter().for_each(|event| summary.fold(event));
    let started = events.iter().find(|event| matches!(event, AgentEvent::Started { .. })).expect("started");
    claude.check_start(started, command.payment).expect("the key was withheld, so the login pays");
    let verdict = claude.classify(RunEnd {
        summary,
        exit: Some(RunExit { code, signal: None, reaped: 0 }),
        resume_requested: Some(session),
        key_withheld: command.key_withheld,
        prompt_prefix_injected: command.prompt_prefix_injected,
        ..RunEnd::default()
    });
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

#[test]
fn it_dies_of_sigterm_by_default() {
    let (_dir, sign) = scratch();
    let mut agent = Agent::start(&Script { steps: vec![Step::Touch(sign.clone()), Step::Hang], ..Script::default() });
    reached(&sign);
    kill_process_group(agent.group, Signal::TERM).expect("sent");
    assert_eq!(agent.wait().signal(), Some(15));
    agent.expect_nothing_left();
}

#[test]
fn it_ignores_sigterm_when_told_and_dies_of_sigkill() {
    let (dir, sign) = scratch();
    let (go, after) = (dir.path().join("go"), dir.path().join("after"));
    let steps = vec![
        Step::IgnoreTerm,
        Step::Touch(sign.clone()),
        Step::WaitForFile(go.clone()),
        Step::Touch(after.clone()),
        Step::Hang,
    ];
    let mut agent = Agent::start(&Script { steps, ..Script::default() });
    reached(&sign);
    kill_process(agent.group, Signal::TERM).expect("sent");
    std::fs::write(go, "").expect("go");
    reached(&after);
    assert!(agent.child.try_wait().expect("waited").is_none());
    kill_process_group(agent.group, Signal::KILL).expect("sent");
    assert_eq!(agent.wait().signal(), Some(9));
    agent.expect_nothing_left();
}

#[test]
fn it_kills_itself() {
    let mut agent = Agent::start(&Script { steps: vec![Step::KillSelf(9)], ..Script::default() });
    assert_eq!(agent.wait().signal(), Some(9));
    agent.expect_nothing_left();
}

#[test]
fn a_grandchild_of_its_group_outlives_it_and_is_reached() {
    let mut agent = Agent::start(&Script { steps: vec![Step::Fork(Place::Group)], ..Script::default() });
    assert!(agent.wait().success());
    assert!(group_lives(agent.group));
    kill_process_group(agent.group, Signal::KILL).expect("sent");
    agent.expect_nothing_left();
    assert!(agent.stdout().contains("\"type\":\"result\""));
}

#[test]
fn a_grandchild_of_its_own_session_is_not_reached() {
    let mut agent = Agent::start(&Script { steps: vec![Step::Fork(Place::Session)], ..Script::default() });
    assert!(agent.wait().success());
    if !Path::new("/proc/self/stat").exists() {
        println!("skipped: without /proc the grandchild cannot be found to end it");
        return;
    }
    // It starts in the group and leaves it for its own; then it is the only one that carries this argument.
    let grandchild = until("the grandchild leads its own session", || {
        std::fs::read_dir("/proc").expect("proc").flatten().find_map(|process| {
            let words = std::fs::read(process.path().join("cmdline")).ok()?;
            let stat = std::fs::read_to_string(process.path().join("stat")).ok()?;
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            let pid = process.file_name().to_str()?.to_owned();
            let ours = words.starts_with(scripted_agent::PROGRAM_NAME.as_bytes())
                && words.ends_with(b"session\0")
                && std::fs::read_link(process.path().join("exe")).ok()? == std::fs::canonicalize(PROGRAM).ok()?;
            (ours && fields.get(3) == Some(&pid.as_str())).then(|| pid.parse::<i32>().ok().and_then(Pid::from_raw))?
        })
    });
    assert!(!group_lives(agent.group));
    kill_process(grandchild, Signal::KILL).expect("sent");
    until("the grandchild is gone", || (!group_lives(grandchild)).then_some(()));
}

#[test]
fn it_waits_for_a_file_and_writes_more_than_a_pipe_holds() {
    let (_dir, sign) = scratch();
    let steps = vec![Step::WaitForFile(sign.clone()), Step::HugeOutput(1 << 20), Step::HugeLine(1 << 20)];
    let mut agent = Agent::start(&Script { steps, answer: Some("done".into()), ..Script::default() });
    assert!(agent.child.try_wait().expect("waited").is_none());
    std::fs::write(&sign, "").expect("go");
    let text = agent.stdout();
    assert!(text.len() > 2 << 20 && text.ends_with("}\n") && text.contains("\"result\":\"done\""));
    assert!(agent.wait().success());
    agent.expect_nothing_left();
}
