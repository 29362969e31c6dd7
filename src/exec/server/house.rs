//! The process around a server.
//!
//! Owns: starting the server's process so that it is told when this one ends, and waiting for it. May not know: what it serves; which
//! signals are heard is the program's.
//!
//! Invariant: the server's process gets no signal once it was reaped.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

use super::super::local::{EndsWithUs, as_a_program};

/// A server's process, seen from the one around it.
#[derive(Debug)]
pub struct House {
    inner: Child,
}

impl House {
    /// Starts it, with this process's own streams. On the main thread: on Linux it is asked to end when the thread does.
    ///
    /// # Errors
    /// The system refused.
    pub fn open(program: &Path, words: &[OsString]) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(words);
        as_a_program(&mut command, EndsWithUs::Asked, None);
        Ok(Self { inner: command.spawn()? })
    }

    /// Sends it a signal.
    pub fn pass_on(&self, signal: Signal) {
        // It has an id exactly until it is reaped.
        if let Some(inner) = self.inner.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(inner, signal);
        }
    }

    /// Waits for its end: the exit code, 128 + n for death by signal n.
    ///
    /// # Cancel safety
    /// It only waits; call it again at will.
    pub async fn ended(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        let status = self.inner.wait().await;
        status.ok().and_then(|s| s.code().or_else(|| s.signal().map(|signal| 128 + signal))).unwrap_or(1)
    }
}
