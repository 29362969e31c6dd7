//! An agent that runs in one's own way: `cargo run --example own_exec`.
//!
//! The machine here is a box of sorts: the agent `offline` runs as everybody else does, but with little of the processor and of
//! memory, by a program of this machine that the library starts and ends with all it has started. A container would be named in the
//! same place; one behind an interface of its own is given by its streams (`MachineProcess::streams`). The program is the runner of
//! its own jobs, so its runners know the machine as well: both are in one `Registry`.

#![allow(clippy::print_stdout, reason = "an example says what it did")]

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use phone_opus::machine::{Machine, MachineError, MachineFuture, MachineProcess, MachineStart};
use phone_opus::process::{Registry, dispatch};
use phone_opus::{AgentElsewhere, ConsultRequest, Environment, Grace, JobState, Offline, StateDir, System};

/// Two gigabytes of memory at most, and what of the processor nobody else wants.
struct SmallBox;

/// A shell sets the bounds and becomes the program: `$0` is its first word.
const BOUNDS: &str = "ulimit -v 2097152; exec nice -n 19 \"$0\" \"$@\"";

impl Machine for SmallBox {
    fn name(&self) -> &str {
        "small-box"
    }

    /// What is started here ends with its runner, also when that one is killed.
    fn over_within(&self) -> Duration {
        Duration::ZERO
    }

    fn start(&self, start: MachineStart) -> MachineFuture<'_, Result<MachineProcess, MachineError>> {
        Box::pin(async move {
            if !start.cwd.is_dir() {
                return Err(MachineError::NoDirectory);
            }
            Ok(MachineProcess::here(start.by("/bin/sh", ["-c", BOUNDS])))
        })
    }
}

fn registry() -> std::io::Result<Registry> {
    let (here, program) = (std::env::current_dir()?, std::env::current_exe()?);
    // `offline` is looked up as a program that has its words; it is this one.
    let boxed = AgentElsewhere::new("boxed", Offline::new(program.clone()), SmallBox)
        .workspace(here)
        .program(program.to_string_lossy());
    Ok(Registry::standard().agent(boxed))
}

fn main() -> ExitCode {
    let registry = match registry() {
        Ok(registry) => registry,
        Err(error) => {
            println!("{error}");
            return ExitCode::FAILURE;
        }
    };
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
    let state = tempfile::tempdir()?;
    let system = System::builder()
        .state_dir(StateDir::at(state.path()))
        .program(registry)
        .environment(Environment::capture())
        .start()
        .await?;
    let question = ConsultRequest::new("where is a crashed worker restarted?").agent("boxed");
    let record = system.consult(question.cwd(std::env::current_dir()?)).await?;
    system.shutdown(Grace::default()).await;

    let machine = record.request.machine.clone().unwrap_or_default();
    let outcome = record.outcome.ok_or("a job that is over has an outcome")?;
    println!("{:?} on {machine}: {}", record.state, outcome.response.unwrap_or_default());
    if let Some(fault) = outcome.fault {
        println!("{fault}");
    }
    let as_meant = record.state == JobState::Succeeded && machine == "own:small-box";
    if as_meant { Ok(()) } else { Err("the consult did not end as it was meant to".into()) }
}
