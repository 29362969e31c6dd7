//! What the program does to itself before it does anything else.
//!
//! Owns: what this process takes over from whoever started it: descriptors, the mask of signals, limits; that others may
//! not look into it; which signals by name each of our processes hears; and being the first process of a container. May
//! not know: what the command then does.
//!
//! ```text
//!             TERM   INT QUIT   HUP    USR1    USR2     ALRM and the like, XFSZ
//! server      ends   ends       ends   -       rollout  -
//!   daemon    ends   ends       looks  -       rollout  -
//! bridge      ends   ends       ends   -       -        -
//! consult     ends   ends       ends   -       -        -
//! exec server ends   ends       ends   -       -        -
//! dashboard   ends   ends       ends   -       -        -
//! ```
//!
//! Workers, runners and who waits with jobs are `phone_opus::process`'s.
//!
//! Invariants: (1) a signal that is sent to all of us by our name costs nobody an answer but where it asks for the end;
//! (2) an agent gets none of this: each begins as a shell would have started it.

use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitCode, ExitStatus};
use std::sync::OnceLock;

use phone_opus::internals::base::{descriptors, signals};
use phone_opus::internals::exec::local::DESCRIPTORS_VARIABLE;
use phone_opus::internals::process;
use rustix::process::{Pid, Resource, Rlimit, Signal as Kill, WaitOptions, getrlimit, kill_process, setrlimit, wait};
use tokio::signal::unix::{SignalKind, signal};

use crate::output::say;
use crate::settings::{SetupError, chain, program};

/// What a process of this program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It serves clients, and starts the others.
    Server,
    /// It stands between a client and a server, and becomes a server where there is none.
    Bridge,
    /// A system in a shell: one question.
    Consult,
    /// It runs processes for clients elsewhere.
    ExecServer,
    /// It serves the page.
    #[cfg_attr(not(feature = "see"), expect(dead_code, reason = "its command is left out"))]
    Dashboard,
    /// Reads or checks something and ends.
    Tool,
}

/// Whether this image takes the place of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Image {
    /// It begins anew.
    First,
    /// Its signals were held by the one before until it has handlers.
    Next,
}

/// The soft limit of descriptors as it was before we raised it.
static DESCRIPTORS: OnceLock<u64> = OnceLock::new();

/// Makes this process its own. On the first thread, before anything is opened or started.
pub(crate) fn begin(kind: Kind, image: Image) {
    if image == Image::First {
        signals::let_through();
    }
    descriptors::keep_from_children();
    if kind != Kind::Tool {
        process::keep_others_out();
    }
    if matches!(kind, Kind::Server | Kind::Bridge | Kind::Consult | Kind::ExecServer | Kind::Dashboard) {
        raise_descriptors();
    }
}

/// A server holds some six descriptors for each job it attends to, and many systems give 1024 or 256 until one asks for
/// more, which every process may.
fn raise_descriptors() {
    let now = getrlimit(Resource::Nofile);
    let told = std::env::var(DESCRIPTORS_VARIABLE).ok().and_then(|told| told.parse().ok());
    // An image before this one has raised it already, and says what it was.
    if let Some(before) = told.or(now.current) {
        let _ = DESCRIPTORS.set(before);
    }
    if now.current != now.maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
    }
}

/// What this process tells its runners, and its next image, beside the environment it was started with.
pub(crate) fn told() -> Option<(&'static str, String)> {
    DESCRIPTORS.get().map(|before| (DESCRIPTORS_VARIABLE, before.to_string()))
}

/// What a process of this kind hears and does not heed. What it heeds has handlers of its own; the rest does what it does by
/// default.
fn unheeded(kind: Kind) -> &'static [i32] {
    use nix::libc::{SIGUSR1, SIGUSR2};
    match kind {
        Kind::Server => &[SIGUSR1],
        Kind::Bridge | Kind::Consult | Kind::ExecServer | Kind::Dashboard => &[SIGUSR1, SIGUSR2],
        Kind::Tool => &[],
    }
}

/// Hears what is not heeded, so that it does not end this process. In a runtime; its children begin with the defaults again.
pub(crate) fn ignore(kind: Kind) -> Result<(), SetupError> {
    process::ignore(unheeded(kind)).map_err(SetupError::Runtime)
}

/// Serves as the first process of a container where this is one: starts itself once more to do the work, and meanwhile passes
/// signals on and reaps whoever falls to the first process, which nobody else would. `None` where it is not the first.
pub(crate) fn first_process() -> Option<ExitCode> {
    if rustix::process::getpid() != Pid::INIT {
        return None;
    }
    signals::let_through();
    Some(match keep_the_house() {
        Ok(code) => code,
        Err(error) => {
            say(&format!("phone-opus: failed to serve as the first process: {}", chain(&error)));
            ExitCode::FAILURE
        }
    })
}

fn keep_the_house() -> io::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let passed_on = [Kill::TERM, Kill::INT, Kill::HUP, Kill::QUIT, Kill::USR1, Kill::USR2];
        let mut heard = Vec::new();
        for kind in passed_on {
            heard.push((kind, signal(SignalKind::from_raw(kind.as_raw()))?));
        }
        let mut ended = signal(SignalKind::child())?;
        let mut words = std::env::args_os();
        let called = words.next().unwrap_or_default();
        let mut command = Command::new(program());
        command.arg0(called).args(words);
        // Waited for below, with everybody else's children.
        let worker = command.spawn()?;
        let worker = Pid::from_child(&worker);
        loop {
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                if pid == worker {
                    return Ok(ended_as(ExitStatus::from_raw(status.as_raw())));
                }
            }
            let signals =
                heard.iter_mut().map(|(kind, signal)| Box::pin(async move { signal.recv().await.map(|()| *kind) }));
            tokio::select! {
                (kind, ..) = futures_util::future::select_all(signals) => if let Some(kind) = kind {
                    // Not waited for yet, so the number is still its own.
                    let _ = kill_process(worker, kind);
                },
                _ = ended.recv() => {}
            }
        }
    })
}

fn ended_as(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_deaf_to_what_the_others_heed() {
        use nix::libc::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ};
        // What a kind heeds by a handler of its own, or by ending.
        let heeded = [
            (Kind::Server, &[SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR2][..]),
            (Kind::Bridge, &[SIGTERM, SIGINT, SIGQUIT, SIGHUP]),
            (Kind::Consult, &[SIGTERM, SIGINT, SIGQUIT, SIGHUP]),
            (Kind::ExecServer, &[SIGTERM, SIGINT, SIGQUIT, SIGHUP]),
            (Kind::Dashboard, &[SIGTERM, SIGINT, SIGQUIT, SIGHUP]),
        ];
        for (kind, heeded) in heeded {
            let unheeded = unheeded(kind);
            for signal in [SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGALRM, SIGXFSZ, SIGXCPU] {
                let ignores = unheeded.contains(&signal) || process::unheeded_everywhere().contains(&signal);
                let heeds = heeded.contains(&signal);
                assert!(heeds != ignores, "{kind:?} and signal {signal}: one of the two, and only one");
            }
        }
    }
}
