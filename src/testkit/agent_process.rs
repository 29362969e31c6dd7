//! The scripted agent as a process of its own group, without a runner around it.

#![expect(clippy::expect_used, reason = "an agent that cannot be started or waited for fails the case")]

use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::processes::group_lives;
use super::wait::{PATIENCE, Waiting};

/// One run; it is ended with its group when it is dropped.
pub struct AgentProcess {
    child: Child,
    group: Pid,
}

impl AgentProcess {
    /// Starts this command in a group of its own, with piped streams, and writes its whole input.
    ///
    /// # Panics
    ///
    /// When it cannot be started. A program that ends without reading is no failure.
    pub async fn start(mut command: Command, stdin: &[u8]) -> Self {
        let mut child = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the agent is started");
        let group = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).expect("a pid");
        let mut input = child.stdin.take().expect("a piped stdin");
        let _ = input.write_all(stdin).await;
        Self { child, group }
    }

    /// Its process group, which is also its pid.
    #[must_use]
    pub fn group(&self) -> Pid {
        self.group
    }

    /// Whether it has ended by now.
    ///
    /// # Panics
    ///
    /// When it cannot be asked.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("asked").is_some()
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// When it does not end.
    pub async fn wait(&mut self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("the agent ends").expect("it is waited for")
    }

    /// Everything it writes to stdout, and what it leaves behind writes; once.
    ///
    /// # Panics
    ///
    /// When the stream stays open, or was read before.
    pub async fn stdout(&mut self) -> Vec<u8> {
        read(self.child.stdout.take().expect("stdout is read once")).await
    }

    /// Everything it writes to stdout and to stderr, read at the same time; once.
    ///
    /// # Panics
    ///
    /// When a stream stays open, or was read before.
    pub async fn output(&mut self) -> (Vec<u8>, Vec<u8>) {
        let stdout = self.child.stdout.take().expect("stdout is read once");
        let stderr = self.child.stderr.take().expect("stderr is read once");
        tokio::join!(read(stdout), read(stderr))
    }

    /// Signals its group.
    ///
    /// # Panics
    ///
    /// When nothing of the group is left.
    pub fn signal(&self, signal: Signal) {
        kill_process_group(self.group, signal).expect("the group is signalled");
    }

    /// Waits until nothing of its group is left.
    ///
    /// # Panics
    ///
    /// When something stays.
    pub async fn expect_nothing_left(&self) {
        let waiting = Waiting::until("the agent's group is empty", PATIENCE);
        while group_lives(self.group) {
            waiting.again(|| "something lives in it").await;
        }
    }
}

async fn read(mut stream: impl tokio::io::AsyncRead + Unpin) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    read.expect("the stream ends").expect("it is read");
    bytes
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let _ = kill_process_group(self.group, Signal::KILL);
    }
}
