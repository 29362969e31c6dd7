//! The agent's process, on this machine or on another one, as the runner has it.
//!
//! Owns: what differs between the two. May not know: why it is ended, what it writes.
//!
//! Invariants: (1) what a process elsewhere writes is shown to the host as what one here writes, and its end is told by us, when the
//! outcome is durable; (2) asking for the end returns at once, and is repeated by nobody: where it cannot be said, the process is
//! killed as soon as its machine is reached.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::base::tasks;
use crate::exec::backend::{ExecBackend, ExecProcess, ProcessLost};
use crate::exec::local::{GRACE, LocalProcess, ProcessControl, ProcessEnd, WriteStatus};
use crate::exec::{OutputStream, ProcessSession};

/// How long its machine may take to hear that it is to end.
const ASKED: Duration = Duration::from_secs(2);

/// A process that was started.
pub(super) enum Process {
    Here(LocalProcess),
    There {
        process: Arc<dyn ExecProcess>,
        /// What the host follows.
        shown: ProcessSession,
        machine: Arc<dyn ExecBackend>,
    },
}

/// How a process ended.
pub(super) enum Ended {
    Known(ProcessEnd),
    /// It cannot be learnt any more.
    Lost(ProcessLost),
}

impl Process {
    /// Its number on this machine, 0 where it is on another one.
    pub(super) fn pid(&self) -> u32 {
        match self {
            Self::Here(process) => process.pid(),
            Self::There { process, .. } => process.pid().unwrap_or(0),
        }
    }

    pub(super) fn start_time(&self) -> u64 {
        match self {
            Self::Here(process) => process.start_time(),
            Self::There { process, .. } => process.start_time(),
        }
    }

    pub(super) fn steering(&self) -> Steering {
        match self {
            Self::Here(process) => Steering::Here(process.control()),
            Self::There { process, .. } => {
                Steering::There { process: Arc::clone(process), asked: Arc::new(AtomicBool::new(false)) }
            }
        }
    }

    /// Whether what it says is heard now: one whose machine is being reached again may say much.
    pub(super) fn is_heard(&self) -> bool {
        match self {
            Self::Here(_) => true,
            Self::There { machine, .. } => machine.is_heard(),
        }
    }

    /// Shows output to the host; that of a process here is shown by its backend.
    pub(super) fn show(&self, stream: OutputStream, bytes: &Bytes) {
        if let Self::There { shown, .. } = self {
            let _ = shown.publish_output(stream, bytes.clone());
        }
    }

    /// Waits for the end.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only waits.
    pub(super) async fn ended(&mut self) -> Ended {
        match self {
            Self::Here(process) => Ended::Known(process.wait_end().await),
            Self::There { process, shown, .. } => match process.end().await {
                Ok(end) => {
                    let _ = shown.publish_exited(end.code, end.signal);
                    Ended::Known(end)
                }
                Err(lost) => {
                    let _ = shown.publish_exited(-1, None);
                    Ended::Lost(lost)
                }
            },
        }
    }
}

/// A handle to end a process.
#[derive(Clone)]
pub(super) enum Steering {
    Here(ProcessControl),
    There { process: Arc<dyn ExecProcess>, asked: Arc<AtomicBool> },
}

impl Steering {
    /// Queues bytes for its standard input, where it is on this machine: only such a process is talked to.
    ///
    /// # Cancel safety
    ///
    /// Until it returns, none of them are queued.
    pub(super) async fn write(&self, bytes: Bytes) -> WriteStatus {
        match self {
            Self::Here(control) => control.write(bytes).await,
            Self::There { .. } => WriteStatus::StdinClosed,
        }
    }

    /// Closes its standard input after what was written.
    pub(super) fn close_stdin(&self) {
        if let Self::Here(control) = self {
            control.close_stdin();
        }
    }

    /// Asks for the end: TERM, then KILL. Asking again changes nothing.
    pub(super) fn terminate(&self) {
        match self {
            Self::Here(control) => {
                control.terminate();
            }
            Self::There { process, asked } => {
                if asked.swap(true, Ordering::AcqRel) {
                    return;
                }
                let process = Arc::clone(process);
                // Nobody waits for it: who does waits for the end of the process.
                tasks::spawn(async move {
                    let said = tokio::time::timeout(ASKED, process.terminate(Some(GRACE))).await;
                    if !matches!(said, Ok(Ok(_))) {
                        process.kill();
                    }
                });
            }
        }
    }

    /// Ends it without asking.
    pub(super) fn kill(&self) {
        match self {
            Self::Here(control) => {
                control.kill();
            }
            Self::There { process, asked } => {
                asked.store(true, Ordering::Release);
                process.kill();
            }
        }
    }
}
