//! `mcp serve`.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use phone_opus::internals::base::signals;
use phone_opus::internals::base::stdio::{Input, Output};
use phone_opus::internals::rollout::Trigger;
use phone_opus::internals::system::handover::{HostSnapshot, NewImage, Restore};
use phone_opus::internals::system::{Grace, Shutdown, System};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::begin::{self, Kind};
use crate::cli::ServeOptions;
use crate::logging;
use crate::output::say;
use crate::settings::{SetupError, prepare, prepare_after, refused, rollout, runtime, say_never_met};

/// How long a runtime's own threads may take to end; what is stuck in one does not keep the process.
const RUNTIME_END: Duration = Duration::from_millis(100);

/// Serves one client on the standard streams until it closes them or a signal comes.
pub(crate) fn serve(options: &ServeOptions) -> ExitCode {
    logging::start();
    serve_client(options).unwrap_or_else(|error| refused(&error))
}

fn serve_client(options: &ServeOptions) -> Result<ExitCode, SetupError> {
    let passed_on = options.restore.as_deref().map(|word| HostSnapshot::take(&Restore::parse(word))).transpose()?;
    let mut prepared = match &passed_on {
        Some(before) => prepare_after(before, &options.common, &options.overrides)?,
        None => prepare(&options.common, &options.overrides)?,
    };
    if let Some(isolation) = options.isolation {
        prepared.config.isolation = isolation;
    }
    if passed_on.is_none() {
        say_who_is_waited_for("serve");
    }
    let runtime = runtime()?;
    let code = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(SetupError::Runtime)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(SetupError::Runtime)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(SetupError::Runtime)?;
        let mut quit = signal(SignalKind::quit()).map_err(SetupError::Runtime)?;
        let mut reload = signal(SignalKind::user_defined2()).map_err(SetupError::Runtime)?;
        begin::ignore(Kind::Server)?;
        if passed_on.is_some() {
            tracing::info!("going on where another image of the program stood");
            // Held since before this image began.
            signals::let_through();
        }
        let (input, output) =
            (Input::stdin().map_err(SetupError::Runtime)?, Output::stdout().map_err(SetupError::Runtime)?);
        let faults = prepared.faults.clone();
        let mut builder = prepared.system().orphan_grace(Duration::from_secs(options.orphan_grace_s));
        let mut next = None;
        if let Some(setup) = rollout() {
            // As we were started, and with another file in our place.
            next = Some(NewImage::new(setup.launch.path.clone(), std::env::args_os(), environment()));
            builder = builder.rollout(setup);
        }
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
        if let Some(next) = next {
            system.hand_over_in_place(next);
        }
        // Clients stop a server by any of these, some within milliseconds of each other.
        let served = tokio::select! {
            served = system.serve_standard(input, output) => served.map(drop),
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
            _ = hangup.recv() => Ok(()),
            _ = quit.recv() => Ok(()),
            never = reloads(&system, &mut reload) => match never {},
        };
        let down = system.shutdown(Grace::default()).await;
        say_never_met(&faults);
        Ok(match (served, down) {
            (_, Shutdown::AfterFault(fault)) | (Err(fault), _) => {
                say(&format!("phone-opus: {fault}"));
                ExitCode::FAILURE
            }
            (Ok(()), _) => ExitCode::SUCCESS,
        })
    });
    runtime.shutdown_timeout(RUNTIME_END);
    code
}

/// Tells a person who has typed the command what becomes of it: a client would talk through a pipe.
pub(crate) fn say_who_is_waited_for(command: &str) {
    if std::io::stdin().is_terminal() {
        say(&format!(
            "phone-opus: waiting for an MCP client on stdin, which is this terminal; Ctrl-C ends it. How a client is told of it: \
             phone-opus mcp {command} --help"
        ));
    }
}

/// The environment as this image was started with it, and what it knows that its next image cannot see.
pub(crate) fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    let told = begin::told();
    let ours = told.as_ref().map(|(name, _)| *name);
    let started_with = std::env::vars_os().filter(move |(name, _)| ours.is_none_or(|ours| name != ours));
    started_with.chain(told.map(|(name, value)| (name.into(), value.into())))
}

/// Asks for a rollout each time the signal comes. What becomes of it is in health and in telemetry.
async fn reloads(system: &System, signal: &mut Signal) -> Infallible {
    loop {
        if signal.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        system.rollouts().ask(Trigger::Signal);
    }
}
