//! The main function of each process a host starts.
//!
//! Owns: from its words to its exit code. May not know: how the words are read, what its process was like before.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use super::words::{RunWords, RunnerWords};
use super::{Duty, Registry, house};
use crate::agents::{AgentRegistry, Environment, offline};
use crate::base::fault::chain;
use crate::base::ids::Generation;
use crate::base::image;
use crate::base::state_dir::StateDir;
use crate::base::stdio::{Input, Output};
use crate::config::Config;
use crate::failpoints::{ArmError, Ends, FaultCounters, FaultPlan, Faults, PlanError};
use crate::runner::{self, RunnerCommand, RunnerEnd, RunnerOptions};
use crate::waiting::process::{self, WaitingOptions};
use crate::worker::{self, WorkerEnd};

/// Why it did not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BeginError {
    /// The plan of its environment is none.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// It cannot be armed.
    #[error("failed to {}", chain(.0))]
    Arm(#[from] ArmError),
    /// Its runtime or its streams cannot be had.
    #[error("failed to start the runtime: {0}")]
    Runtime(#[from] std::io::Error),
}

/// How long a runtime's own threads may take to end; what is stuck in one does not keep the process.
const RUNTIME_END: Duration = Duration::from_millis(100);

/// How long a worker's loop has for leaving by itself once the host is gone; after that a tool has the thread.
const LEAVE: Duration = Duration::from_secs(1);

/// A tool held the thread when the host was gone.
const EXIT_STUCK: u8 = 100;

/// As Rust's own programs end after a panic.
const EXIT_PANICKED: u8 = 101;

/// The job was not its to run, or not needed.
const EXIT_NOT_OURS: u8 = 3;

/// Serves the host on the standard streams until it is gone.
pub(super) fn worker(generation: Generation, registry: &Registry) -> Result<ExitCode, BeginError> {
    let faults = armed()?;
    let runtime = house::runtime()?;
    // Nobody may outlive the host, not even a tool that never lets go of its thread.
    let watch = || {
        if worker::host_gone(std::io::stdin()).is_ok() {
            std::thread::sleep(LEAVE);
            std::process::exit(i32::from(EXIT_STUCK));
        }
    };
    std::thread::Builder::new().name("host".into()).stack_size(128 * 1024).spawn(watch)?;
    let code = runtime.block_on(async {
        house::ignore_as(Duty::Worker)?;
        let (input, output) = (Input::stdin()?, Output::stdout()?);
        let tools = registry.tools.iter().cloned();
        Ok(match worker::serve(generation, tools, faults, input, output).await {
            Ok(WorkerEnd::HostGone) => ExitCode::SUCCESS,
            Ok(WorkerEnd::Panicked(_)) => ExitCode::from(EXIT_PANICKED),
            Ok(WorkerEnd::Injected) => ExitCode::FAILURE,
            Err(error) => {
                tracing::error!(error = chain(&error), "the worker failed");
                ExitCode::FAILURE
            }
        })
    });
    runtime.shutdown_timeout(RUNTIME_END);
    code
}

/// Runs one job to its end, in a session of its own.
pub(super) fn runner(words: RunnerWords, registry: &Registry) -> Result<ExitCode, BeginError> {
    let RunnerWords { job, held, runs } = words;
    leave_the_terminal();
    let dir = StateDir::at(&runs.state_dir);
    let options = RunnerOptions {
        job,
        held,
        dir: dir.clone(),
        max_running: runs.max_running,
        stall: runs.stall,
        orphan_grace: runs.orphan_grace,
        extra_usage: runs.extra_usage,
        agents: agents(registry, &runs),
        environment: Environment::capture(),
        faults: armed()?,
    };
    let runtime = house::runtime()?;
    let end = runtime.block_on(async {
        let (input, output) = host_streams(Duty::Runner)?;
        runner::run(options, input, output).await.map_err(|error| chain(&error))
    });
    runtime.shutdown_timeout(RUNTIME_END);
    if end.is_ok() && dir.job_words(job).is_none() {
        // It said nothing, so nobody needs to find the file it would have said it in.
        let _ = std::fs::remove_file(dir.job_log(job));
    }
    Ok(match end {
        Ok(RunnerEnd::Done(_) | RunnerEnd::Left | RunnerEnd::Forgotten) => ExitCode::SUCCESS,
        Ok(RunnerEnd::NotOurs) => ExitCode::from(EXIT_NOT_OURS),
        Ok(RunnerEnd::Unneeded) => {
            // Made for it; what somebody else has put something into stays.
            let _ = std::fs::remove_dir(dir.job_dir(job));
            ExitCode::from(EXIT_NOT_OURS)
        }
        Ok(RunnerEnd::NotYet) => ExitCode::from(runner::NOT_YET),
        Err(error) => {
            tracing::error!(error, "the runner failed");
            ExitCode::FAILURE
        }
    })
}

/// Waits until no job is left to wait with and the host is gone, in a session of its own.
pub(super) fn waiting(runs: RunWords, registry: &Registry) -> Result<ExitCode, BeginError> {
    leave_the_terminal();
    let agents = agents(registry, &runs);
    let RunWords { max_running, stall, extra_usage, orphan_grace, .. } = runs;
    let dir = StateDir::at(&runs.state_dir);
    let config = Config {
        max_running,
        stall,
        extra_usage,
        agent_env: runs.agent_env,
        agents: runs.sites,
        customs: runs.customs,
        ..Config::default()
    }
    .with_programs(&runs.programs);
    // Its own environment is that of its host's jobs, so their runners inherit it; those of others come with theirs.
    let runner = RunnerCommand::new(image::own_program(), dir.clone(), &Arc::new(config), agents, None, Vec::new())
        .with_orphan_grace(orphan_grace);
    let options = WaitingOptions { dir, runner, max_running, orphan_grace };
    let runtime = house::runtime()?;
    let end = runtime.block_on(async {
        let (input, output) = host_streams(Duty::Waiting)?;
        process::run(options, input, output).await.map_err(|error| chain(&error))
    });
    // A thread that is blocked on a lock ends with the process.
    runtime.shutdown_background();
    Ok(match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error, "the waiting process failed");
            ExitCode::FAILURE
        }
    })
}

/// Answers one prompt.
pub(super) fn offline_agent(words: &[OsString]) -> ExitCode {
    let code = offline::run(words, std::io::stdin(), std::io::stdout());
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Away from the client's process group and terminal. It fails for a group's leader, who is away already.
fn leave_the_terminal() {
    let _ = rustix::process::setsid();
}

/// The streams on which a process that outlives its host hears and tells it, once nothing that is not heeded can end it. In a
/// runtime.
fn host_streams(duty: Duty) -> Result<(Input, Output), String> {
    house::ignore_as(duty).map_err(|error| chain(&error))?;
    let input = Input::stdin().map_err(|error| chain(&error))?;
    Ok((input, Output::stdout().map_err(|error| chain(&error))?))
}

/// The program's agents, under what its host says of their programs and of other machines.
fn agents(registry: &Registry, runs: &RunWords) -> AgentRegistry {
    registry.agents.configured(&runs.customs, &runs.programs, &runs.agent_env, &runs.sites)
}

/// The fault plan of this process's environment (`PHONE_OPUS_FAULTS`), armed; nothing is armed without one. Rules that end the
/// process are accepted: it is for programs that may be ended, and for [`SystemBuilder::faults`].
///
/// It counts where `PHONE_OPUS_FAULT_COUNTERS` says, so that a host and the processes it starts count together, and in memory
/// otherwise: then each counts for itself.
///
/// [`SystemBuilder::faults`]: crate::SystemBuilder::faults
///
/// # Errors
///
/// Everything that is wrong with the plan, each with its place and what is accepted.
pub fn armed() -> Result<Faults, BeginError> {
    let lookup = |name: &str| std::env::var_os(name);
    let Some(plan) = FaultPlan::from_environment(lookup)? else { return Ok(Faults::none()) };
    let counters = FaultCounters::from_environment(lookup)?;
    Ok(Faults::arm(plan, Ends::Process, counters)?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::agents::{ClaudeCode, ExtraUsage};

    fn runs(claude_bin: Option<&str>, agent_env: &[&str]) -> RunWords {
        RunWords {
            state_dir: "/s".into(),
            max_running: 3,
            stall: Duration::from_secs(1),
            extra_usage: ExtraUsage::Allow,
            orphan_grace: Duration::ZERO,
            programs: claude_bin.map(|path| ("claude".to_owned(), path.into())).into_iter().collect(),
            agent_env: agent_env.iter().map(|&name| name.to_owned()).collect(),
            sites: Default::default(),
            customs: Default::default(),
        }
    }

    #[test]
    fn a_runner_has_the_programs_agents_and_what_its_host_says_of_them_goes_before() {
        let dir = tempfile::tempdir().expect("scratch");
        let file = |name: &str| {
            use std::os::unix::fs::PermissionsExt as _;
            let path = dir.path().join(name);
            std::fs::write(&path, "").expect("a file");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("its mode");
            path
        };
        let (own, hosts) = (file("own"), file("hosts"));
        let registry = Registry::standard().agent(ClaudeCode::new(Some(own.clone())));
        let located = |runs: &RunWords| {
            let agents = agents(&registry, runs);
            assert_eq!(agents.names().len(), Registry::standard().agents.names().len());
            agents.get("claude").expect("known").locate(&Environment::default())
        };
        assert_eq!(located(&runs(None, &[])).as_deref(), Ok(own.as_path()), "the program's own");
        let said = runs(hosts.to_str(), &["MINE"]);
        assert_eq!(located(&said).as_deref(), Ok(hosts.as_path() as &Path), "the host's");
    }
}
