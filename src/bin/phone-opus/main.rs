//! The phone-opus program: command line, signals, logging, exit codes. Everything else is the library's.

mod agents;
mod agreement;
mod answer;
mod begin;
mod cli;
mod clients;
mod completions;
mod config;
mod connect;
mod consult;
mod daemon;
#[cfg(feature = "see")]
mod dashboard;
mod doctor;
#[cfg(any(feature = "selftest", feature = "see"))]
mod end_signals;
mod exec_server;
mod faults;
#[cfg(feature = "fleet")]
mod fleet;
mod job_word;
mod jobs;
mod logging;
mod manual;
mod output;
mod pager;
mod piped;
mod placed;
mod progress;
#[cfg(feature = "see")]
mod report;
mod screen;
mod selfcheck;
#[cfg(feature = "selftest")]
mod selftest;
mod serve;
mod settings;
mod several;
mod status;
#[cfg(feature = "see")]
mod top;

use std::process::ExitCode;

use clap::Parser;
use phone_opus::internals::process::{self, Duty, Registry, StartedAs};
#[cfg(feature = "testkit")]
use phone_opus::testkit::scripted_agent;

use crate::begin::{Image, Kind, begin, first_process};
use crate::cli::{Cli, Command, DaemonCommand, McpCommand};

fn main() -> ExitCode {
    #[cfg(feature = "testkit")]
    if let Some(ended) = play_the_scripted_agent() {
        return ended;
    }
    name_ourselves();
    if let Some(started) = StartedAs::read(std::env::args_os().skip(1)) {
        return process::run(started, &Registry::standard().on_begin(on_begin));
    }
    if let Some(answered) = completions::asked() {
        return output::ended(answered);
    }
    output::ended(match Cli::try_parse() {
        Ok(cli) => run(cli.command),
        Err(error) => output::usage(&error),
    })
}

/// What a process that a host started begins with.
fn on_begin(duty: Duty) {
    match duty {
        Duty::Runner | Duty::Waiting => logging::start_runner(),
        // An agent like any other: what is sent to all of us by our name is not for it.
        Duty::OfflineAgent => name_this(c"offline-agent"),
        _ => logging::start(),
    }
}

fn run(command: Command) -> ExitCode {
    if matches!(
        command,
        Command::Mcp { command: McpCommand::Serve(_) | McpCommand::Connect(_) } | Command::ExecServer(_)
    ) && let Some(ended) = first_process()
    {
        return ended;
    }
    if let Command::Daemon { command: DaemonCommand::Run(options) } = &command {
        // It makes itself nobody's own before it begins.
        return first_process().unwrap_or_else(|| daemon::run(options));
    }
    let (kind, image) = kind(&command);
    begin(kind, image);
    match command {
        Command::Mcp { command: McpCommand::Serve(options) } => serve::serve(&options),
        Command::Mcp { command: McpCommand::Connect(options) } => connect::connect(&options),
        Command::Mcp { command: McpCommand::Selfcheck(options) } => selfcheck::run(&options),
        Command::Mcp { command: McpCommand::Trial { parent, command } } => selfcheck::keep(parent, command),
        Command::Consult(options) => consult::run(&options),
        Command::Jobs { command } => jobs::run(&command),
        Command::Daemon { command } => daemon::ask(&command),
        Command::ExecServer(options) => exec_server::run(&options),
        Command::Status(options) => status::run(&options),
        #[cfg(feature = "see")]
        Command::Dashboard(options) => dashboard::run(&options),
        #[cfg(not(feature = "see"))]
        Command::Dashboard { .. } => without("dashboard"),
        Command::Install(options) => clients::install(&options),
        Command::Uninstall(options) => clients::uninstall(&options),
        Command::Doctor(options) => doctor::run(&options),
        #[cfg(feature = "fleet")]
        Command::Fleet { command } => fleet::run(&command),
        #[cfg(not(feature = "fleet"))]
        Command::Fleet { .. } => {
            output::say(
                "phone-opus: this program was built without the fleet. Released programs have it, and so has what \
                 `cargo build --features fleet` makes.",
            );
            ExitCode::from(2)
        }
        Command::Agents(options) => agents::run(&options),
        Command::Faults { command } => faults::run(&command),
        #[cfg(feature = "selftest")]
        Command::Selftest(options) => selftest::run(&options),
        #[cfg(not(feature = "selftest"))]
        Command::Selftest { .. } => without("self-test"),
        #[cfg(feature = "see")]
        Command::Report(options) => report::run(&options),
        #[cfg(not(feature = "see"))]
        Command::Report { .. } => without("report"),
        #[cfg(feature = "see")]
        Command::Top(options) => top::run(&options),
        #[cfg(not(feature = "see"))]
        Command::Top { .. } => without("live view"),
        Command::Config { command } => config::run(&command),
        Command::Completions { shell } => completions::script(shell),
        Command::Man { dir } => manual::write(&dir),
    }
}

/// Says that this program was built without a part.
#[cfg(not(all(feature = "selftest", feature = "see")))]
fn without(part: &str) -> ExitCode {
    output::say(&format!(
        "phone-opus: this program was built without its {part}. Released programs have it, and so has what `cargo build \
         --features full` makes.",
    ));
    ExitCode::from(2)
}

/// What this process is to be, and whether another image of it was there before.
fn kind(command: &Command) -> (Kind, Image) {
    match command {
        Command::Mcp { command: McpCommand::Serve(options) } if options.restore.is_some() => {
            (Kind::Server, Image::Next)
        }
        Command::Mcp { command: McpCommand::Serve(_) } => (Kind::Server, Image::First),
        Command::Mcp { command: McpCommand::Connect(_) } => (Kind::Bridge, Image::First),
        Command::Consult(_) => (Kind::Consult, Image::First),
        // It asks as one.
        Command::Doctor(options) if options.live => (Kind::Consult, Image::First),
        Command::ExecServer(options) if options.kept => (Kind::ExecServer, Image::First),
        #[cfg(feature = "see")]
        Command::Dashboard(_) => (Kind::Dashboard, Image::First),
        _ => (Kind::Tool, Image::First),
    }
}

/// A child is started from the running image, by a path that says nothing; tools that list processes show its last word.
fn name_ourselves() {
    name_this(c"phone-opus");
}

fn name_this(name: &std::ffi::CStr) {
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::set_name(name);
    #[cfg(not(target_os = "linux"))]
    let _ = name;
}

/// What it is when it is called by the scripted agent's name.
#[cfg(feature = "testkit")]
fn play_the_scripted_agent() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let called = arguments.next().unwrap_or_default();
    scripted_agent::is_called(&called).then(|| {
        // Its file has our name; what it plays has not.
        name_this(c"claude");
        let rest: Vec<std::ffi::OsString> = arguments.collect();
        code(scripted_agent::main(&rest, std::io::stdin(), std::io::stdout(), std::io::stderr()))
    })
}

#[cfg(feature = "testkit")]
fn code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
