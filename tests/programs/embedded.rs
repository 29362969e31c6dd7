//! A program that embeds the library, for the tests of what happens to such a program from outside: it is upgraded in place, killed,
//! and its runners are. It serves its standard streams, is runner and worker of itself, and plays the scripted agent that it asks.
//!
//! Owns: agents here (`claude`), on a machine of its own by a program (`boxed`), and on one by its streams (`streamed`); commands of
//! its user's (`echoed`, `told`).
//!
//! Laws: L7, L15.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use phone_opus::machine::{Machine, MachineError, MachineFuture, MachineProcess, MachineStart};
use phone_opus::process::Registry;
use phone_opus::testkit::machine::StreamedHere;
use phone_opus::testkit::scripted_agent;
use phone_opus::{AgentElsewhere, ClaudeCode, Config, CustomAgent, StateDir, System, serve_program};

/// Agents here, by a program between.
struct Boxed;

impl Machine for Boxed {
    fn name(&self) -> &str {
        "boxed"
    }

    fn over_within(&self) -> Duration {
        Duration::ZERO
    }

    fn start(&self, start: MachineStart) -> MachineFuture<'_, Result<MachineProcess, MachineError>> {
        Box::pin(async move { Ok(MachineProcess::here(start.by("/usr/bin/env", ["BOXED=1"]))) })
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let called = words.next().unwrap_or_default();
    if scripted_agent::is_called(&called) {
        let rest: Vec<_> = words.collect();
        let code = scripted_agent::main(&rest, std::io::stdin(), std::io::stdout(), std::io::stderr());
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).unwrap_or_default();
    let claude = || ClaudeCode::new(Some(variable("PHONE_OPUS_CLAUDE_BIN")));
    let here = std::env::current_dir().unwrap_or_default();
    let there = variable("PHONE_OPUS_CLAUDE_BIN").to_string_lossy().into_owned();
    let registry = Registry::new()
        .agent(claude())
        .agent(AgentElsewhere::new("boxed", claude(), Boxed).workspace(&here).program(&there))
        .agent(AgentElsewhere::new("streamed", claude(), StreamedHere).workspace(&here).program(&there));
    // A later file may say another name.
    let name = std::fs::read_to_string(variable("EMBEDDED_NAME")).unwrap_or_else(|_| "embedded".to_owned());
    serve_program(&name, &registry, words, |_| {
        let mut config = Config { wait: Some(Duration::from_secs(300)), ..Config::default() };
        let mut told = CustomAgent::new(["/usr/bin/env"]);
        told.env.push("EMBEDDED_TOLD".to_owned());
        config.customs.insert("told".to_owned(), told);
        config.customs.insert("echoed".to_owned(), CustomAgent::new(["/bin/cat"]));
        Ok(System::builder()
            .state_dir(StateDir::at(variable("PHONE_OPUS_STATE_DIR")))
            .config(config)
            .default_cwd(Some(here.clone())))
    })
}
