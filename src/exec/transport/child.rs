//! A program whose standard streams are a connection, such as `ssh HOST phone-opus exec-server --listen stdio`.
//!
//! Owns: its start, its end, and the last of what it says on its standard error. May not know: what goes over its streams.
//!
//! Invariants: its group gets no signal once it was reaped; dropping it kills the group, and the runtime reaps it.

use crate::base::tasks;
use std::io;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::task::AbortHandle;

use super::super::local::{EndsWithUs, as_a_program};
use super::{BoxRead, BoxWrite};

/// What of its standard error is kept for people: some lines of `ssh`.
const WORDS_BYTES: usize = 4096;

/// What it gets to end by itself once its streams are closed, and again when it was asked.
const GRACE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Child {
    process: tokio::process::Child,
    words: Arc<Mutex<Vec<u8>>>,
    listening: Option<AbortHandle>,
}

impl Child {
    pub(super) fn start(argv: &[String]) -> io::Result<(BoxRead, BoxWrite, Self)> {
        let Some((program, arguments)) = argv.split_first() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no program is named"));
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A signal that is for us is none for it.
            .process_group(0)
            .kill_on_drop(true);
        as_a_program(&mut command, EndsWithUs::Asked, None);
        let mut process = command.spawn()?;
        let (Some(write), Some(read), Some(words_of)) =
            (process.stdin.take(), process.stdout.take(), process.stderr.take())
        else {
            return Err(io::Error::other("a stream of the program is missing"));
        };
        let words = Arc::new(Mutex::new(Vec::new()));
        // Ends with the child's standard error, or with the guard.
        let listening = tasks::spawn(listen(words_of, Arc::clone(&words))).abort_handle();
        Ok((Box::new(read), Box::new(write), Self { process, words, listening: Some(listening) }))
    }

    pub(super) async fn end(mut self) {
        if tokio::time::timeout(GRACE, self.process.wait()).await.is_ok() {
            return;
        }
        self.signal(Signal::TERM);
        if tokio::time::timeout(GRACE, self.process.wait()).await.is_ok() {
            return;
        }
        self.signal(Signal::KILL);
        let _ = tokio::time::timeout(GRACE, self.process.wait()).await;
    }

    pub(super) fn last_words(&self) -> String {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&words).trim().to_owned()
    }

    fn signal(&self, signal: Signal) {
        // It has an id exactly until it is reaped.
        if let Some(group) = self.process.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        if let Some(listening) = self.listening.take() {
            listening.abort();
        }
    }
}

async fn listen(mut stream: tokio::process::ChildStderr, words: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; 1024];
    while let Ok(size @ 1..) = stream.read(&mut buffer).await {
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        words.extend_from_slice(&buffer[..size]);
        let over = words.len().saturating_sub(WORDS_BYTES);
        words.drain(..over);
    }
}
