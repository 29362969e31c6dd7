//! An agent of one's own, for real: `cargo run --example custom_agent`.
//!
//! This program is everything there is: the host that is asked, the runner that each consult is run by (a process of its own,
//! which would outlive the host), and the agent's program, which reads a prompt and writes lines. The agent says how its
//! program is started and what its lines mean; deadlines, the journal, what its end means and what becomes of it in a crash
//! are the library's.

#![allow(clippy::print_stdout, reason = "an example says what it did, and an agent answers on its output")]

use std::error::Error;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use phone_opus::process::{Registry, dispatch};
use phone_opus::{
    Agent, AgentEvent, AgentProfile, ConsultRequest, Environment, Fault, FaultCode, Grace, JobState, OutputParser,
    PrepareFuture, RunRequest, StateDir, System,
};

/// Counts the words of a prompt.
struct Counter;

impl Agent for Counter {
    fn name(&self) -> &str {
        "counter"
    }

    fn profile(&self) -> AgentProfile {
        AgentProfile::new("The counter").install_hint("It is this program itself.")
    }

    fn locate(&self, _: &Environment) -> Result<PathBuf, Fault> {
        std::env::current_exe().map_err(|error| Fault::new(FaultCode::AgentMissing, error.to_string()))
    }

    fn prepare<'a>(&'a self, run: &'a RunRequest<'a>, _: &'a Path) -> PrepareFuture<'a> {
        // The prompt goes to its standard input, and to no argument.
        Box::pin(async move { Ok(run.command(self.locate(run.environment)?)?.arg("count")) })
    }

    fn parser(&self) -> Box<dyn OutputParser> {
        Box::new(Lines)
    }
}

/// `doing: …` is what it does, `answer: …` is its answer, and its last word.
struct Lines;

impl OutputParser for Lines {
    fn line(&mut self, line: &[u8], out: &mut Vec<AgentEvent>) {
        let line = String::from_utf8_lossy(line);
        out.push(match line.split_once(": ") {
            Some(("doing", tool)) => AgentEvent::ToolUse { tool: tool.to_owned() },
            Some(("answer", text)) => AgentEvent::answer(text),
            _ => AgentEvent::Garbage { bytes: line.len() as u64 },
        });
    }
}

/// The agent's program.
fn count() -> Result<(), Box<dyn Error>> {
    let mut prompt = String::new();
    std::io::stdin().read_to_string(&mut prompt)?;
    println!("doing: counting");
    if prompt.contains("give up") {
        return Err("it gave up".into());
    }
    println!("answer: {} words", prompt.split_whitespace().count());
    Ok(())
}

fn main() -> ExitCode {
    let registry = Registry::new().agent(Counter);
    if let Some(code) = dispatch(std::env::args_os(), &registry) {
        return code;
    }
    let done = if std::env::args().nth(1).as_deref() == Some("count") { count() } else { host(&registry) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

#[tokio::main(flavor = "current_thread")]
async fn host(registry: &Registry) -> Result<(), Box<dyn Error>> {
    let state = tempfile::tempdir()?;
    let here = std::env::current_dir()?;
    let system = System::builder().state_dir(StateDir::at(state.path())).program(registry).start().await?;
    let ask = async |prompt: &str| system.consult(ConsultRequest::new(prompt).agent("counter").cwd(here.clone())).await;
    let (answered, failed) = (ask("how many words are these?").await?, ask("please give up").await?);
    system.shutdown(Grace::default()).await;

    let response = answered.outcome.and_then(|outcome| outcome.response).unwrap_or_default();
    println!("{:?}: {response}", answered.state);
    // Nothing of this program says what an agent's failure is; the table that all agents share does.
    let fault = failed.outcome.and_then(|outcome| outcome.fault).ok_or("it failed")?;
    println!("{:?}: {fault}", failed.state);
    let as_meant =
        answered.state == JobState::Succeeded && response == "5 words" && fault.code == FaultCode::AgentError;
    if as_meant { Ok(()) } else { Err("the consults did not end as they were meant to".into()) }
}
