//! `mcp wait`: the process that waits with a host's jobs.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::config::Config;
use phone_opus::internals::runner::RunnerCommand;
use phone_opus::internals::waiting::process::{self, WaitingOptions};

use crate::begin;
use crate::cli::WaitArguments;
use crate::logging;
use crate::settings::{agents, chain, program, refused, runtime};

/// Waits until no job is left to wait with and the host is gone, in a session of its own.
pub(crate) fn run(arguments: &WaitArguments) -> ExitCode {
    logging::start_runner();
    // Away from the client's process group and terminal. It fails for a group's leader, who is away already.
    let _ = rustix::process::setsid();
    let runs = &arguments.runs;
    let dir = StateDir::at(&runs.state_dir);
    let config = Config {
        max_running: runs.max_running,
        stall: Duration::from_secs(runs.stall_s),
        claude_bin: runs.claude_bin.clone(),
        extra_usage: runs.extra_usage,
        agent_env: runs.agent_env.clone(),
        agents: runs.sites(),
        ..Config::default()
    };
    let agents = agents(runs.claude_bin.clone(), &runs.agent_env, &config.agents, program());
    // Its own environment is that of its host's jobs, so their runners inherit it; those of others come with theirs.
    let orphan_grace = Duration::from_secs(runs.orphan_grace_s);
    let runner = RunnerCommand::new(program(), dir.clone(), &Arc::new(config), agents, None, Vec::new())
        .with_orphan_grace(orphan_grace);
    let options = WaitingOptions { dir, runner, max_running: runs.max_running, orphan_grace };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return refused(&error),
    };
    let end = runtime.block_on(async {
        let (input, output) = begin::host_streams()?;
        process::run(options, input, output).await.map_err(|error| chain(&error))
    });
    // A thread that is blocked on a lock ends with the process.
    runtime.shutdown_background();
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error, "the waiting process failed");
            ExitCode::FAILURE
        }
    }
}
