//! A program that consults an agent, without MCP in between: `cargo run --example embed -- [AGENT] [QUESTION]`.
//!
//! Each consult is run by a process of its own, which is this program again: it begins with `dispatch`. So is the agent
//! `offline`, which is asked unless you name another, so that it needs no model.

#![allow(clippy::print_stdout, reason = "an example says what it did")]

use std::error::Error;
use std::process::ExitCode;

use phone_opus::process::{Registry, dispatch};
use phone_opus::{ConsultRequest, Grace, JobState, StateDir, System};

fn main() -> ExitCode {
    let registry = Registry::standard();
    if let Some(code) = dispatch(std::env::args_os(), &registry) {
        return code;
    }
    match ask(&registry) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn ask(registry: &Registry) -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let agent = arguments.next().unwrap_or_else(|| "offline".to_owned());
    let question = arguments.next().unwrap_or_else(|| "where is a crashed worker restarted?".to_owned());
    let state = tempfile::tempdir()?;
    let here = std::env::current_dir()?;

    let system = System::builder().state_dir(StateDir::at(state.path())).program(registry).start().await?;
    // Durable before this returns, and run at most once, whatever crashes. A consult that failed is a record that says so.
    let record = system.consult(ConsultRequest::new(question).agent(agent).cwd(here)).await?;
    system.shutdown(Grace::default()).await;

    let outcome = record.outcome.ok_or("a job that is over has an outcome")?;
    println!("{:?}: {}", record.state, outcome.response.unwrap_or_default());
    if record.state == JobState::Succeeded { Ok(()) } else { Err("the consult failed".into()) }
}
