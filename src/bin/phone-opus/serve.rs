//! `mcp serve` and the runner's process.

use std::process::ExitCode;
use std::time::Duration;

use phone_opus::agents::{AgentRegistry, Environment};
use phone_opus::handover::{NewImage, Snapshot, signals};
use phone_opus::runner::{self, RunnerEnd, RunnerOptions};
use phone_opus::state_dir::StateDir;
use phone_opus::stdio::{Input, Output};
use phone_opus::system::{Grace, Shutdown};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{RunnerArguments, ServeOptions};
use crate::logging;
use crate::settings::{SetupError, armed, chain, prepare_again, program, refused, runtime, say};

/// How long a runtime's own threads may take to end; what is stuck in one does not keep the process.
const RUNTIME_END: Duration = Duration::from_millis(100);

/// Serves one client on the standard streams until it closes them or a signal comes.
pub(crate) fn serve(options: &ServeOptions) -> ExitCode {
    logging::start();
    match serve_client(options) {
        Ok(code) => code,
        Err(error) => refused(&error),
    }
}

fn serve_client(options: &ServeOptions) -> Result<ExitCode, SetupError> {
    let passed_on = options.restore.as_deref().map(Snapshot::take).transpose()?;
    let counts = passed_on.as_ref().and_then(Snapshot::fault_counts);
    let mut prepared = prepare_again(&options.common, &options.overrides, counts)?;
    // Found out now, while this file is what runs: later another one may lie there, which is what an upgrade is about.
    let next = NewImage::new(prepared.program.clone(), std::env::args_os(), std::env::vars_os());
    if let Some(isolation) = options.isolation {
        prepared.config.isolation = isolation.into();
    }
    let runtime = runtime()?;
    let code = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(SetupError::Runtime)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(SetupError::Runtime)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(SetupError::Runtime)?;
        let mut reload = signal(SignalKind::user_defined2()).map_err(SetupError::Runtime)?;
        if passed_on.is_some() {
            tracing::info!("going on where another image of the program stood");
            // Held since before this image began.
            signals::let_through();
        }
        let (input, output) =
            (Input::stdin().map_err(SetupError::Runtime)?, Output::stdout().map_err(SetupError::Runtime)?);
        let mut builder = prepared.system();
        if let Some(snapshot) = passed_on {
            builder = builder.restore(snapshot);
        }
        let system = match builder.start().await {
            Ok(system) => system,
            Err(fault) => {
                say(&format!("phone-opus: {fault}"));
                return Ok(ExitCode::FAILURE);
            }
        };
        let reloading = async {
            while reload.recv().await.is_some() {
                let (system, next) = (system.clone(), next.clone());
                // Apart from whoever waits for signals, because one may come meanwhile; and a second request is refused by
                // the first.
                tokio::spawn(async move {
                    let error = system.hand_over(&next).await;
                    tracing::warn!(error = chain(&error), "the program was not replaced and serves on");
                });
            }
        };
        // Clients stop a server by any of these, some within milliseconds of each other.
        let served = tokio::select! {
            served = system.serve_standard(input, output) => served.map(drop),
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
            _ = hangup.recv() => Ok(()),
            () = reloading => Ok(()),
        };
        let down = system.shutdown(Grace::default()).await;
        Ok(match (served, down) {
            (Ok(()), Shutdown::InOrder | Shutdown::Killed) => ExitCode::SUCCESS,
            (_, Shutdown::AfterFault(fault)) | (Err(fault), _) => {
                say(&format!("phone-opus: {fault}"));
                ExitCode::FAILURE
            }
        })
    });
    runtime.shutdown_timeout(RUNTIME_END);
    code
}

/// Runs one job to its end, in a session of its own.
pub(crate) fn background_consult(options: &RunnerArguments) -> ExitCode {
    logging::start_runner();
    // Away from the client's process group and terminal. It fails for a group's leader, who is away already.
    let _ = rustix::process::setsid();
    let dir = StateDir::at(&options.state_dir);
    let faults = match armed(&dir, None) {
        Ok(faults) => faults,
        Err(error) => return refused(&error),
    };
    let (job, kept) = (options.job, dir.clone());
    let options = RunnerOptions {
        job,
        dir,
        max_running: options.max_running,
        stall: Duration::from_secs(options.stall_s),
        agents: AgentRegistry::standard(options.claude_bin.clone(), program()),
        environment: Environment::capture(),
        faults,
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return refused(&error),
    };
    let end = runtime.block_on(async {
        let (input, output) = match (Input::stdin(), Output::stdout()) {
            (Ok(input), Ok(output)) => (input, output),
            (Err(error), _) | (_, Err(error)) => return Err(chain(&error)),
        };
        runner::run(options, input, output).await.map_err(|error| chain(&error))
    });
    runtime.shutdown_timeout(RUNTIME_END);
    if end.is_ok() && kept.job_words(job).is_none() {
        // It said nothing, so nobody needs to find the file it would have said it in.
        let _ = std::fs::remove_file(kept.job_log(job));
    }
    match end {
        Ok(RunnerEnd::Done(_)) => ExitCode::SUCCESS,
        Ok(RunnerEnd::NotOurs) => ExitCode::from(3),
        Err(error) => {
            tracing::error!(error, "the runner failed");
            ExitCode::FAILURE
        }
    }
}
