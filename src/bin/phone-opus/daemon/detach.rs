//! Away from whoever started a daemon.
//!
//! Owns: what a daemon keeps of its starter (nothing but what it is passed), the second start, the pipe on which it says that it
//! serves. May not know: what it serves.
//!
//! Invariants: (1) no descriptor of the starter's outlives the start: whoever waits for the end of a pipe it gave us does not
//! wait for the daemon's; (2) one line is said on the pipe, and then it is closed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};

use phone_opus::internals::base::descriptors;
use rustix::fs::Mode;

use crate::output::say;
use crate::settings::program;

/// Starts this command once more, as the daemon itself, and leaves.
pub(super) fn start_again() -> ExitCode {
    // A session of its own, so that the daemon, which does not lead it, can never get a terminal.
    let _ = rustix::process::setsid();
    let mut words = std::env::args_os();
    let called = words.next().unwrap_or_default();
    let words = words.map(|word| if word == "--detach" { "--detached".into() } else { word });
    let mut command = Command::new(program());
    command.arg0(called).args(words).stdin(Stdio::null());
    match command.spawn() {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("phone-opus: the daemon could not be started: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Makes this process nobody's but its own. On the first thread, before anything is opened; `passed` are the descriptors a
/// service manager passed on.
pub(super) fn leave(is_detached: bool, ready: Option<i32>, passed: &[RawFd]) -> Ready {
    let ready = Ready::take(ready);
    let kept = ready.0.as_ref().map(std::os::fd::AsRawFd::as_raw_fd);
    descriptors::close_foreign_but(&passed.iter().copied().chain(kept).collect::<Vec<_>>());
    if is_detached {
        let _ = rustix::process::setsid();
    }
    rustix::process::umask(Mode::from_raw_mode(0o077));
    ready
}

/// Where it is said that a daemon serves, or why not.
pub(super) struct Ready(Option<File>);

impl Ready {
    /// Nobody listens.
    pub(super) fn nobody() -> Self {
        Self(None)
    }

    fn take(fd: Option<i32>) -> Self {
        let opened = match fd {
            None => return Self(None),
            // What is said there later goes nowhere.
            Some(1) => standard_output(),
            Some(fd) => OpenOptions::new().write(true).open(format!("/dev/fd/{fd}")),
        };
        Self(opened.inspect_err(|error| tracing::warn!(%error, "nobody can be told that the daemon serves")).ok())
    }

    /// Says it, once. Whoever listened may have gone.
    pub(super) fn say(&mut self, line: &str) {
        if let Some(mut pipe) = self.0.take() {
            let _ = pipe.write_all(format!("{line}\n").as_bytes());
        }
    }
}

/// The standard output, which is nowhere from here on.
fn standard_output() -> io::Result<File> {
    let output = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    rustix::stdio::dup2_stdout(OpenOptions::new().write(true).open("/dev/null")?)?;
    Ok(output.into())
}
