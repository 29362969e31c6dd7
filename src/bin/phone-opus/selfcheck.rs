//! `mcp selfcheck`: can this file serve here?
//!
//! The configuration is read as `mcp serve` reads it, since that is what it would serve with. Everything else is the
//! library's.

use std::ffi::OsString;
use std::process::ExitCode;

use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::failpoints::{FaultPoint, Operation};
use phone_opus::internals::rollout::selfcheck::{SelfCheck, SelfCheckError};
use phone_opus::internals::system::handover::Restore;
use phone_opus::internals::system::selfcheck;
use serde::Serialize;

use crate::cli::SelfcheckOptions;
use crate::logging;
use crate::output::print;
use crate::settings::{Prepared, SetupError, configure, inherited, refused, runtime};

/// Where nothing can be: a server that only shows what it is must not touch the directory of one that serves.
const NOWHERE: &str = "/dev/null/selfcheck";

/// Says whether it can.
pub(crate) fn run(options: &SelfcheckOptions) -> ExitCode {
    logging::start();
    match check(options) {
        Ok(Ok(said)) => {
            let text = match said.restored {
                Some(_) => "it can serve here, and restores the snapshot",
                None => "it can serve here",
            };
            tell(options, &said, &format!("phone-opus {}: {text}", said.version));
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => {
            let refusal = error.refusal();
            tell(options, &refusal, &format!("phone-opus {}: {}", env!("CARGO_PKG_VERSION"), refusal.reason));
            ExitCode::FAILURE
        }
        Err(error) => refused(&error),
    }
}

/// Keeps the run of a candidate; see `phone_opus::internals::rollout::keep`.
pub(crate) fn keep(parent: i32, command: Vec<OsString>) -> ExitCode {
    let mut words = command.into_iter();
    let Some(program) = words.next() else { return ExitCode::from(2) };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return refused(&error),
    };
    match runtime.block_on(phone_opus::internals::rollout::keep(parent, program.into(), words.collect())) {
        Ok(Some(report)) => {
            print(&report);
            ExitCode::SUCCESS
        }
        Ok(None) => ExitCode::FAILURE,
        Err(error) => refused(&error),
    }
}

fn tell(options: &SelfcheckOptions, line: &impl Serialize, words: &str) {
    match serde_json::to_string(line) {
        Ok(line) if options.json => print(&line),
        _ => print(words),
    }
}

fn check(options: &SelfcheckOptions) -> Result<Result<SelfCheck, SelfCheckError>, SetupError> {
    let prepared = || -> Result<Prepared, SetupError> {
        let mut prepared = configure(&options.serve.common, &options.serve.overrides)?;
        if let Some(isolation) = options.serve.isolation {
            prepared.config.isolation = isolation;
        }
        prepared.dir = StateDir::at(NOWHERE);
        Ok(prepared)
    };
    let (serving, restoring) = (prepared()?, prepared()?);
    let faults = inherited()?;
    let checked = runtime()?.block_on(async {
        let system = serving.system().telemetry_log(false).start().await;
        let system = system.map_err(|fault| SelfCheckError::Start(Box::new(fault)))?;
        let mut said = selfcheck::serve_once(system).await?;
        if let Some(snapshot) = &options.serve.restore {
            let _ = faults.meet(FaultPoint::RolloutAfterRestore, Operation::None).await;
            selfcheck::restore(restoring.system(), &Restore::parse(snapshot))?;
            said.restored = Some(true);
        }
        Ok(said)
    });
    Ok(checked)
}
