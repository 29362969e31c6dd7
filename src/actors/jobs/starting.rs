//! A runner's process, started for a job that is in the store or is on its way there.
//!
//! Owns: the spawn, the first ends of the pipes, where a runner's last words go. May not know: what is said over the pipes.
//!
//! A start takes about as long as the sync that makes its job durable, and needs the processor where the other needs the
//! disk. So where nothing waits, a *held* runner is started beside the accept: it begins when its host greets it, which is
//! after the commit, and leaves when its pipes are closed without that.
//!
//! Invariants: (1) nobody greets a runner whose job is not durable; (2) a held one that is not taken is let go by being
//! dropped, and is waited for.

use std::fmt;
use std::path::Path;
use std::process::Stdio;

use tokio::process::{ChildStdin, ChildStdout};

use super::runner_child::{Leaving, RunnerChild};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::JobId;
use crate::base::state_dir::StateDir;
use crate::exec::local::is_no_room;
use crate::runner::{Begins, RunnerCommand};

/// A runner that was not spoken to yet.
pub(super) struct Started {
    pub(super) child: RunnerChild,
    pub(super) input: ChildStdin,
    pub(super) output: ChildStdout,
}

/// Why there is no runner.
pub(super) enum NotStarted {
    /// The system has nothing to start one with at this moment.
    NoRoom(Fault),
    /// It will not work in a moment either.
    Failed(Fault),
}

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::NoRoom(fault) | Self::Failed(fault)) = self;
        fault.fmt(f)
    }
}

/// Starts one for a job the store has.
pub(super) fn start(runner: &RunnerCommand, dir: &StateDir, job: JobId) -> Result<Started, NotStarted> {
    spawn(runner, dir, job, Begins::AtOnce)
}

fn spawn(runner: &RunnerCommand, dir: &StateDir, job: JobId, begins: Begins) -> Result<Started, NotStarted> {
    let started = runner.start(job, begins, |command| {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(last_words(dir, job));
    });
    let mut child = started.map_err(|error| not_started(&error, runner.program()))?;
    let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        let fault = Fault::new(FaultCode::RunnerSpawnFailed, "the job's runner has no pipes.");
        return Err(NotStarted::Failed(fault));
    };
    Ok(Started { child: RunnerChild::Ours(child), input, output })
}

fn not_started(error: &std::io::Error, program: &Path) -> NotStarted {
    let fault = Fault::new(FaultCode::RunnerSpawnFailed, format!("the job's runner could not be started: {error}."));
    if is_no_room(error) {
        return NotStarted::NoRoom(fault.hint("Raise the limits of descriptors and processes this server has."));
    }
    let shown = program.display();
    NotStarted::Failed(match error.kind() {
        // A runner is this very program.
        std::io::ErrorKind::PermissionDenied => fault.hint(format!(
            "The file of this server's program may not be executed any more ({shown}): give it back its mode \
             (`chmod +x`), or install it again and restart the server."
        )),
        std::io::ErrorKind::NotFound => fault.hint(format!(
            "The file of this server's program is not there any more ({shown}): install it again and restart the server."
        )),
        _ => fault,
    })
}

/// Where a runner's standard error goes: into the job's directory, so that a runner that fails leaves a trace when its host
/// is gone as well. A disk that is full costs the trace, not the run.
fn last_words(dir: &StateDir, job: JobId) -> Stdio {
    match dir.open_job_log(job) {
        Ok(log) => log.into(),
        Err(error) => {
            tracing::debug!(%job, %error, "the runner's last words will be lost");
            Stdio::null()
        }
    }
}

/// A runner that waits for its job to be durable.
pub struct HeldRunner {
    job: JobId,
    started: Option<Box<Started>>,
    leaving: Leaving,
}

impl HeldRunner {
    /// Starts one for a job on its way to the store. Without one, a runner is started later.
    #[must_use]
    pub fn start(runner: &RunnerCommand, dir: &StateDir, job: JobId, leaving: Leaving) -> Option<Self> {
        let started = spawn(runner, dir, job, Begins::WhenSpokenTo).ok()?;
        Some(Self { job, started: Some(Box::new(started)), leaving })
    }

    /// It, when it is this job's, which is durable now.
    pub(super) fn take(mut self, job: JobId) -> Option<Started> {
        if self.job == job { self.started.take().map(|started| *started) } else { None }
    }
}

impl Drop for HeldRunner {
    fn drop(&mut self) {
        if let Some(started) = self.started.take() {
            // Its pipes are closed by this.
            started.child.see_out(&self.leaving);
        }
    }
}
