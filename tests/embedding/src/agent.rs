//! An agent of the program's own, whose program is this one again.
//!
//! Owns: how it is started, what its lines mean, and the program itself. May not know: who asks, and what its end means.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use phone_opus::{
    Agent, AgentEvent, AgentProfile, Environment, Fault, FaultCode, OutputParser, PrepareFuture, RunRequest,
};

use crate::Problem;

/// The word by which this program is told to be the agent's.
pub const WORD: &str = "count";

/// Counts the words of a prompt, and gives up when it is asked to.
pub struct Counter;

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
        Box::pin(async move { Ok(run.command(self.locate(run.environment)?)?.arg(WORD)) })
    }

    fn parser(&self) -> Box<dyn OutputParser> {
        Box::new(Lines)
    }
}

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
pub fn count() -> Result<(), Problem> {
    let mut prompt = String::new();
    std::io::stdin().read_to_string(&mut prompt)?;
    println!("doing: counting");
    if prompt.contains("give up") {
        return Err("it gave up".into());
    }
    println!("answer: {} words", prompt.split_whitespace().count());
    Ok(())
}
