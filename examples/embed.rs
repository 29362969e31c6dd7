//! A program that consults an agent, without MCP in between: `cargo run --example embed -- PATH/TO/phone-opus [AGENT] [QUESTION]`.
//!
//! The path is that of the program each consult is run by, in a process of its own (`cargo build` makes
//! `target/debug/phone-opus`). The agent is `offline` unless you name another, so it needs no model.

#![allow(clippy::print_stdout, reason = "an example says what it did")]

use std::error::Error;
use std::path::PathBuf;

use phone_opus::{AgentRegistry, ConsultRequest, Environment, Grace, JobState, StateDir, System};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let runner = PathBuf::from(arguments.next().ok_or("name the phone-opus program")?).canonicalize()?;
    let agent = arguments.next().unwrap_or_else(|| "offline".to_owned());
    let question = arguments.next().unwrap_or_else(|| "where is a crashed worker restarted?".to_owned());
    let state = tempfile::tempdir()?;
    let here = std::env::current_dir()?;

    let system = System::builder()
        .state_dir(StateDir::at(state.path()))
        .agents(AgentRegistry::standard(None, runner.clone()))
        .environment(Environment::capture())
        .runner(runner)
        .default_cwd(Some(here.clone()))
        .start()
        .await?;
    // Durable before this returns, and run at most once, whatever crashes. A consult that failed is a record that says so.
    let record = system.consult(ConsultRequest::new(question).agent(agent).cwd(here)).await?;
    system.shutdown(Grace::default()).await;

    let outcome = record.outcome.ok_or("a job that is over has an outcome")?;
    println!("{:?}: {}", record.state, outcome.response.unwrap_or_default());
    if record.state == JobState::Succeeded { Ok(()) } else { Err("the consult failed".into()) }
}
