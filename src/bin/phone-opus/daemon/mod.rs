//! `daemon`: the process that many clients share, and what is asked of it from a shell.
//!
//! Owns: which command does what, and its exit codes. May not know: what a daemon does and in which order
//! (`phone_opus::internals::daemon::life`).

mod activation;
mod asking;
mod desk;
mod detach;
mod install;
#[cfg(feature = "see")]
mod page;
#[cfg(not(feature = "see"))]
#[path = "no_page.rs"]
mod page;
mod process;

use std::path::PathBuf;
use std::process::ExitCode;

use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::daemon::control::ShutdownMode;
use phone_opus::internals::daemon::life::LifeVerb;

pub(crate) use self::process::run;
use crate::cli::{DaemonCommand, DaemonPlace};
use crate::settings::{SetupError, state_dir};

/// The exit code when no daemon is running.
const NONE_RUNS: u8 = 4;

/// Everything but `run`, which is a process of its own from its first moment on.
pub(crate) fn ask(command: &DaemonCommand) -> ExitCode {
    match command {
        DaemonCommand::Run(options) => run(options),
        DaemonCommand::Start(options) => asking::start(options),
        DaemonCommand::Stop { drain, force, of } => {
            let mode = match (drain, force) {
                (true, _) => ShutdownMode::Drain,
                (_, true) => ShutdownMode::Force,
                _ => ShutdownMode::WhenFree,
            };
            asking::request(LifeVerb::Shutdown(mode), of)
        }
        DaemonCommand::Status(of) => asking::status(of),
        DaemonCommand::Reload(of) => asking::request(LifeVerb::Reload, of),
        DaemonCommand::Drain(of) => asking::request(LifeVerb::Drain, of),
        DaemonCommand::Pause(of) => asking::request(LifeVerb::Pause, of),
        DaemonCommand::Resume(of) => asking::request(LifeVerb::Resume, of),
        DaemonCommand::Install(options) => install::install(options),
        DaemonCommand::Uninstall(options) => install::uninstall(options),
    }
}

/// The state directory and the socket that was asked for, whatever directory this process is in later.
fn place(place: &DaemonPlace) -> Result<(StateDir, Option<PathBuf>), SetupError> {
    let dir = state_dir(&place.common)?;
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    Ok((dir, place.socket.as_ref().map(absolute)))
}
