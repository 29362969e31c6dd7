//! The offline agent: answers a consult without any model, by searching the working directory for its words.
//!
//! Owns: the command that runs it and the program it runs. May not know who runs it. It is chosen only by name, so that
//! the whole path works on a machine without any agent CLI.
//!
//! It is a process of its own like every agent, and writes what Claude Code writes, so that nothing after it needs to
//! know. Invariants: (1) it opens files for reading only, below its working directory, and no network; (2) files, bytes
//! and time are bounded; (3) the same tree and the same prompt give the same answer.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use serde_json::{Value, json};

use super::classify::AgentProfile;
use super::there::{self, AskedThere};
use super::{
    Agent, AgentCommand, Credential, Environment, MAX_PROMPT_BYTES, OutputParser, Payment, ResumedId, RunRequest,
    StreamJson, check_prompt, environment,
};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::AgentSessionId;

mod answer;
mod gist;
mod kin;
mod languages;
mod parts;
mod passages;
mod score;
mod search;
mod words;

use search::Limits;
use words::Asked;

/// The program on another machine, by the name it is installed as.
const PROGRAM: &str = "phone-opus";
/// What the program is called with to become the offline agent.
const ARGS: [&str; 2] = ["mcp", "offline-agent"];
/// What it names as its model.
const MODEL: &str = "none (offline search)";

const PROFILE: AgentProfile = AgentProfile::new("The offline agent")
    .install_hint("It is part of phone-opus itself; was the program moved or replaced?")
    .login_hint("The offline agent needs no login.")
    .kept_to_reading_by("it is this program itself, without a model: it only reads")
    .never_writes();

/// The agent without a model, run from phone-opus' own program.
#[derive(Debug, Clone)]
pub struct Offline {
    program: PathBuf,
}

impl Offline {
    /// The agent as run by this program, which must dispatch `mcp offline-agent` to [`run`].
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self { program }
    }
}

impl Agent for Offline {
    fn name(&self) -> &str {
        "offline"
    }

    fn locate(&self, _env: &Environment) -> Result<PathBuf, Fault> {
        if self.program.is_absolute() && self.program.is_file() {
            return Ok(self.program.clone());
        }
        Err(Fault::new(FaultCode::AgentMissing, format!("`{}` is not there.", self.program.display()))
            .hint(PROFILE.install()))
    }

    fn prepare<'a>(
        &'a self,
        run: &'a RunRequest<'a>,
        _state_dir: &'a Path,
    ) -> BoxFuture<'a, Result<AgentCommand, Fault>> {
        async move {
            check_prompt(&run.request.prompt)?;
            let mut granted = match run.there {
                // It needs nothing of its caller's.
                Some(_) => environment::for_offline(&Environment::default()),
                None => environment::for_offline(run.environment),
            };
            granted.set_run(run);
            let mut args: Vec<OsString> = ARGS.map(OsString::from).into();
            if let Some(session) = &run.request.session_id {
                args.extend(["--resume".into(), session.to_string().into()]);
            }
            let mut env: Vec<_> = granted.env.into_iter().collect();
            let program = match &run.there {
                None => self.locate(run.environment)?,
                Some(there) => {
                    let asked = AskedThere { env: &env, cwd: &run.request.cwd };
                    let found = there.find(PROGRAM, asked).await?;
                    there::set_path(&mut env, &found);
                    found.program
                }
            };
            Ok(AgentCommand {
                program,
                args,
                env,
                stdin: Bytes::from(run.request.prompt.clone()),
                prompt_prefix_injected: false,
                key_withheld: false,
                payment: Payment { billing: run.request.billing, credential: Credential::Nothing },
                resumed_id: ResumedId::Same,
                new_session: None,
            })
        }
        .boxed()
    }

    fn needs(&self, environment: &Environment, _billing: crate::jobs::Billing) -> Environment {
        environment::for_offline(environment).env.into_iter().collect()
    }

    fn parser(&self) -> Box<dyn OutputParser> {
        Box::new(StreamJson::new())
    }

    fn profile(&self) -> AgentProfile {
        PROFILE
    }
}

/// The program: the prompt on `stdin`, the working directory is searched, events on `stdout`. `args` are those after
/// `mcp offline-agent`. Returns the exit code. Blocks for at most about 20 s once stdin is closed.
pub fn run(args: &[OsString], stdin: impl Read, stdout: impl Write) -> i32 {
    answer_in(Path::new("."), args, stdin, stdout).unwrap_or(1)
}

/// The places a prompt leads to below `root`, best first: each file as the answer names it, and the line of it that tells most.
#[must_use]
pub fn leads(root: &Path, prompt: &str) -> Vec<(String, u64)> {
    let found = search::search(root, &Asked::new(prompt), &Limits::default());
    found.ranked.into_iter().map(|file| (file.line(), file.path)).map(|(line, path)| (path, line)).collect()
}

fn answer_in(root: &Path, args: &[OsString], stdin: impl Read, mut stdout: impl Write) -> io::Result<i32> {
    let session_id = AgentSessionId::random().to_string();
    let mut event = |event: Value| -> io::Result<()> {
        writeln!(stdout, "{event}")?;
        stdout.flush()
    };
    event(json!({
        "type": "system", "subtype": "init", "session_id": session_id, "model": MODEL, "apiKeySource": "none",
        "claude_code_version": env!("CARGO_PKG_VERSION"), "tools": ["Search"], "mcp_servers": [],
    }))?;
    if let Some(at) = args.iter().position(|arg| arg == "--resume") {
        let asked = args.get(at + 1).map(|id| id.to_string_lossy()).unwrap_or_default();
        event(json!({
            "type": "result", "subtype": "error_during_execution", "is_error": true, "session_id": session_id,
            "num_turns": 0, "total_cost_usd": 0.0, "errors": [format!("No conversation found with session ID: {asked}")],
        }))?;
        return Ok(1);
    }
    let mut prompt = Vec::new();
    stdin.take(2 * MAX_PROMPT_BYTES as u64).read_to_end(&mut prompt)?;
    let prompt = String::from_utf8_lossy(&prompt);
    let block = |block: Value| json!({"type": "assistant", "session_id": session_id, "message": {"role": "assistant", "content": [block]}});
    event(block(json!({"type": "tool_use", "id": "search", "name": "Search", "input": {}})))?;
    let asked = Asked::new(&prompt);
    let found = search::search(root, &asked, &Limits::default());
    event(json!({"type": "user", "session_id": session_id, "message": {"content": [{"type": "tool_result"}]}}))?;
    let text = answer::write(root, &asked, &found);
    event(block(json!({"type": "text", "text": text})))?;
    event(json!({
        "type": "result", "subtype": "success", "is_error": false, "result": text, "session_id": session_id,
        "num_turns": 1, "total_cost_usd": 0.0, "stop_reason": "end_turn", "terminal_reason": "completed",
        "usage": {"input_tokens": 0, "output_tokens": 0}, "permission_denials": [],
    }))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::agents::tests_support::request;
    use crate::agents::{OutputReader, RunEnd, RunSummary, RunVerdict};
    use crate::base::ids::{ChainId, RunToken};
    use crate::jobs::{Billing, JobState, RunExit};

    /// A small project about supervision, with the noise real ones have.
    fn project() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("scratch");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directory");
            fs::write(path, text).expect("file");
        };
        write(
            "src/workers/supervisor.rs",
            "//! Watches the workers.\n\nuse std::time::Duration;\n\n/// Starts a crashed worker again, after a pause that grows.\n\
             pub fn restart_worker(slot: Slot, crash: Crash) -> Generation {\n    let pause = backoff(crash.count);\n\
             \x20   slot.start(pause)\n}\n\nfn backoff(count: u32) -> Duration {\n    Duration::from_millis(50 << count)\n}\n",
        );
        write("src/workers/mod.rs", "//! The workers.\npub mod supervisor;\n\npub struct Worker;\n");
        write(
            "src/http/client.rs",
            "//! Fetches pages.\npub fn get(url: &str) -> Page {\n    connect(url).read()\n}\n",
        );
        write("src/workspace.rs", "//! How a workspace is found.\npub fn workspace() {}\n");
        write("docs/design.md", "# Design\n\n## Restarting workers\n\nA worker that crashes is restarted at once.\n");
        write("tests/supervision.rs", "#[test]\nfn crashed_workers_are_restarted() {}\n");
        write(".gitignore", "/build\n");
        write("build/out.rs", "// crashed workers restarted crashed workers restarted\n");
        write(".secret/notes.md", "crashed workers restarted\n");
        write("Cargo.lock", "# crashed workers restarted\n");
        write("data.bin", "crashed workers\0 restarted\n");
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).expect("link");
        dir
    }

    fn run_in(root: &Path, args: &[&str], prompt: &str) -> (i32, RunVerdict) {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let mut stdout = Vec::new();
        let code = answer_in(root, &args, prompt.as_bytes(), &mut stdout).expect("written");
        let agent = Offline::new("/bin/phone-opus".into());
        let (mut reader, mut events, mut summary) = (OutputReader::new(agent.parser()), Vec::new(), RunSummary::new());
        reader.push(&stdout, &mut events);
        reader.finish(&mut events);
        events.iter().for_each(|event| summary.fold(event));
        let exit = Some(RunExit { code, signal: None, reaped: 0 });
        (code, agent.classify(RunEnd { summary, exit, ..RunEnd::default() }))
    }

    fn ask(root: &Path, prompt: &str) -> String {
        let (code, verdict) = run_in(root, &[], prompt);
        assert_eq!((code, verdict.state), (0, JobState::Succeeded), "{verdict:?}");
        let outcome = verdict.outcome;
        assert_eq!((outcome.cost_usd, outcome.num_turns), (Some(0.0), Some(1)));
        assert_eq!((outcome.model.as_deref(), outcome.billing.as_deref()), (Some(MODEL), Some("none")));
        assert_eq!(outcome.resumable, Some(false));
        outcome.response.expect("an answer")
    }

    #[test]
    fn a_question_finds_the_file_that_answers_it() {
        let project = project();
        let answer = ask(project.path(), "How are crashed workers restarted?");
        let place = |needle: &str| answer.find(needle).unwrap_or_else(|| panic!("no {needle} in:\n{answer}"));
        assert!(answer.starts_with("**No model was asked.**"), "{answer}");
        assert!(place("1. src/workers/supervisor.rs:6\n") < place("docs/design.md"));
        place("   Starts a crashed worker again, after a pause that grows.\n");
        assert!(place("src/workers/supervisor.rs") < place("tests/supervision.rs"));
        assert!(answer.lines().all(|line| line.chars().count() <= 80), "{answer}");
        let all = ask(project.path(), "all: How are crashed workers restarted?");
        assert!(all.contains("    6: pub fn restart_worker(slot: Slot, crash: Crash)"), "{all}");
        assert!(all.contains("`all:`") != answer.contains("`all:`"), "{answer}");
        for unread in ["build/", ".secret", "Cargo.lock", "data.bin", "link/", "http/client", "workspace.rs"] {
            assert!(!answer.contains(unread), "{unread} in:\n{answer}");
        }
    }

    #[test]
    fn an_identifier_and_a_path_are_found_as_such() {
        let project = project();
        assert!(ask(project.path(), "what calls `restart_worker`?").contains("src/workers/supervisor.rs:6\n"));
        let answer = ask(project.path(), "explain src/http/client.rs to me");
        assert!(answer.contains("1. src/http/client.rs:"), "{answer}");
    }

    #[test]
    fn the_same_tree_gives_the_same_answer() {
        let project = project();
        let ask = || ask(project.path(), "how are crashed workers restarted after a pause?");
        assert_eq!(ask(), ask());
    }

    #[test]
    fn nothing_found_is_an_answer_that_names_the_words() {
        let project = project();
        let answer = ask(project.path(), "Where is the photosynthesis of zebrafish?");
        assert!(answer.contains("`photosynthesis`") && answer.contains("`zebrafish`"), "{answer}");
        assert!(answer.contains("matches none"), "{answer}");
        let answer = ask(project.path(), "how does it do that?");
        assert!(answer.contains("no words to search for"), "{answer}");
    }

    #[test]
    fn bounds_are_kept_and_said() {
        let project = project();
        let terms = Asked::new("crashed workers");
        let limits = Limits { files: 2, ..Limits::default() };
        let found = search::search(project.path(), &terms, &limits);
        assert_eq!(found.files, 2);
        let answer = answer::write(project.path(), &terms, &found);
        assert!(answer.contains("stopped"), "{answer}");
        let limits = Limits { time: std::time::Duration::ZERO, ..Limits::default() };
        assert_eq!(search::search(project.path(), &terms, &limits).files, 0);
    }

    #[test]
    fn a_session_cannot_be_resumed() {
        let project = project();
        let (code, verdict) = run_in(project.path(), &["--resume", "x"], "go on");
        assert_eq!(code, 1);
        assert_eq!(verdict.outcome.fault.map(|fault| fault.code), Some(FaultCode::UnknownSession));
    }

    #[tokio::test]
    async fn the_prompt_is_on_stdin_and_nowhere_else() {
        let program = std::env::current_exe().expect("this program");
        let environment: Environment =
            [("HOME", "/h"), ("ANTHROPIC_API_KEY", "k"), ("CLAUDECODE", "1")].into_iter().collect();
        let mut request = request("CANARY");
        request.billing = Billing::ApiKey;
        request.session_id = Some(AgentSessionId::random());
        let run = RunRequest {
            request: &request,
            token: RunToken::random(),
            chain: ChainId::random(),
            depth: 1,
            environment: &environment,
            traceparent: None,
            there: None,
        };
        let command = Offline::new(program.clone()).prepare(&run, Path::new("/")).await.expect("a command");
        assert_eq!(&command.stdin[..], b"CANARY");
        assert_eq!(command.args[..3], ["mcp", "offline-agent", "--resume"].map(OsString::from));
        let names: Vec<_> = command.env.iter().map(|(name, _)| name.to_str().expect("text")).collect();
        assert_eq!(names, ["HOME", "PHONE_OPUS_CHAIN", "PHONE_OPUS_DEPTH", "PHONE_OPUS_RUN_TOKEN"]);
        assert!(!format!("{:?} {:?}", command.args, command.env).contains("CANARY"));
    }
}
