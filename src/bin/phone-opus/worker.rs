//! `mcp worker`: tools in a process of their own.

use std::process::ExitCode;
use std::time::Duration;

use phone_opus::internals::base::ids::Generation;
use phone_opus::internals::base::stdio::{Input, Output};
use phone_opus::internals::worker::{self, WorkerEnd};

use crate::begin::{self, Kind};
use crate::logging;
use crate::settings::{SetupError, chain, inherited, refused, runtime};

/// How long the loop has for leaving by itself once the host is gone; after that a tool has the thread.
const LEAVE: Duration = Duration::from_secs(1);

/// How long a runtime's own threads may take to end.
const RUNTIME_END: Duration = Duration::from_millis(100);

/// Serves the host on the standard streams until it is gone.
pub(crate) fn run(generation: Generation) -> ExitCode {
    logging::start();
    match serve(generation) {
        Ok(code) => code,
        Err(error) => refused(&error),
    }
}

fn serve(generation: Generation) -> Result<ExitCode, SetupError> {
    let faults = inherited()?;
    let runtime = runtime()?;
    // Nobody may outlive the host, not even a tool that never lets go of its thread.
    let watch = || {
        if worker::host_gone(std::io::stdin()).is_ok() {
            std::thread::sleep(LEAVE);
            std::process::exit(i32::from(EXIT_STUCK));
        }
    };
    std::thread::Builder::new().name("host".into()).stack_size(128 * 1024).spawn(watch).map_err(SetupError::Runtime)?;
    let code = runtime.block_on(async {
        begin::ignore(Kind::Worker)?;
        let (input, output) =
            (Input::stdin().map_err(SetupError::Runtime)?, Output::stdout().map_err(SetupError::Runtime)?);
        Ok(match worker::serve(generation, [], faults, input, output).await {
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

/// A tool held the thread when the host was gone.
const EXIT_STUCK: u8 = 100;

/// As Rust's own programs end after a panic.
const EXIT_PANICKED: u8 = 101;
