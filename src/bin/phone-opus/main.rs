//! The phone-opus program: command line, signals, logging, exit codes. Everything else is the library's.

mod cli;
mod consult;
mod doctor;
mod jobs;
mod logging;
#[cfg(feature = "testkit")]
mod selftest;
mod serve;
mod settings;
mod worker;

#[cfg(feature = "testkit")]
use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use phone_opus::agents::offline;
use phone_opus::ids::Generation;
#[cfg(feature = "testkit")]
use phone_opus::testkit::scripted_agent;

use crate::cli::{Cli, Command, McpCommand};

fn main() -> ExitCode {
    #[cfg(feature = "testkit")]
    if let Some(ended) = play_the_scripted_agent() {
        return ended;
    }
    let cli = Cli::parse();
    match cli.command {
        Command::Mcp { command: McpCommand::Serve(options) } => serve::serve(&options),
        Command::Mcp { command: McpCommand::BackgroundConsult(options) } => serve::background_consult(&options),
        Command::Mcp { command: McpCommand::Worker { generation } } => worker::run(Generation(generation)),
        Command::Mcp { command: McpCommand::OfflineAgent { arguments } } => {
            code(offline::run(&arguments, std::io::stdin(), std::io::stdout()))
        }
        Command::Consult(options) => consult::run(&options),
        Command::Jobs { command } => jobs::run(&command),
        Command::Doctor(options) => doctor::run(&options),
        #[cfg(feature = "testkit")]
        Command::Selftest(options) => selftest::run(&options),
        #[cfg(not(feature = "testkit"))]
        Command::Selftest(_) => {
            settings::say(
                "phone-opus: this program was built without the test kit, so it cannot play the scripted agent; \
                 build it with the feature `testkit` (on by default): cargo install --path . --features testkit",
            );
            ExitCode::from(2)
        }
    }
}

/// What it is when it is called by the scripted agent's name.
#[cfg(feature = "testkit")]
fn play_the_scripted_agent() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let called = arguments.next().unwrap_or_default();
    scripted_agent::is_called(&called).then(|| {
        let rest: Vec<OsString> = arguments.collect();
        code(scripted_agent::main(&rest, std::io::stdin(), std::io::stdout(), std::io::stderr()))
    })
}

fn code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
