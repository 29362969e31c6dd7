//! The agent's command is prepared, and its program started.
//!
//! Owns: what passes by itself and is waited for, and how long. May not know: what is in a command, what the agent does.
//!
//! Invariant: a job that must end meanwhile does not wait on.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Runner;
use super::elsewhere::Reached;
use super::process::Process;
use crate::agents::{Agent, AgentCommand, RunRequest, SpawnFailure};
use crate::base::fault::{Fault, FaultCode};
use crate::exec::ProcessSession;
use crate::exec::backend::{ProcessStartError, StartRequest};
use crate::exec::local::{CloseBy, LocalExec, OutputTap, SpawnError, SpawnSpec};

/// How often a start that may work in a moment is tried again.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// How long a program may be missing, or not to be executed, while an installer puts another one in its place.
const REPLACED: Duration = Duration::from_secs(3);

/// How long a program's file may be open for writing: a download writes to the file itself at worst.
const WRITTEN: Duration = Duration::from_secs(20);

/// How long descriptors, processes and memory may be wanting. The job is accepted, and others give back what they have.
const ROOM: Duration = Duration::from_secs(120);

impl Runner {
    /// Starts the program. What passes by itself is waited for: a file that is being replaced, and want of descriptors,
    /// processes or memory. `None` when the job must end meanwhile.
    pub(super) async fn start(&mut self, spec: &SpawnSpec) -> Option<Result<(Process, OutputTap), SpawnError>> {
        let began = Instant::now();
        loop {
            match LocalExec::spawn(spec.clone(), self.session.clone(), CloseBy::Owner) {
                Err(error) if began.elapsed() < passes_within(&error) => {
                    tracing::debug!(%error, "the agent's program is tried again");
                    if self.must_end_meanwhile().await {
                        return None;
                    }
                }
                done => return Some(done.map(|(process, tap)| (Process::Here(process), tap))),
            }
        }
    }

    /// The same on another machine, whose own words are waited for in the same way.
    pub(super) async fn start_there(
        &mut self,
        reached: &Reached,
        request: &StartRequest,
    ) -> Option<Result<(Process, OutputTap), ProcessStartError>> {
        let began = Instant::now();
        let mut tries = 0;
        loop {
            tries += 1;
            // A name is taken for as long as its server remembers it.
            let request = StartRequest { process_id: format!("{}-{tries}", request.process_id), ..request.clone() };
            // Dropped, it leaves no process there.
            let started = self.meanwhile(reached.backend.start(request, ProcessSession::new())).await?;
            match started {
                Err(ProcessStartError::Spawn(error)) if began.elapsed() < passes_within(&error) => {
                    tracing::debug!(%error, "the agent's program is tried again");
                    if self.must_end_meanwhile().await {
                        return None;
                    }
                }
                Ok((process, tap)) => {
                    let (shown, machine) = (self.session.clone(), Arc::clone(&reached.backend));
                    return Some(Ok((Process::There { process, shown, machine }, tap)));
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Waits a moment; whether the job must end.
    async fn must_end_meanwhile(&mut self) -> bool {
        self.pause(TRY_EVERY).await;
        self.heed().await;
        self.look().await
    }

    /// Prepares the command; `None` when the job must end meanwhile. A program that was there before and is missing now may be
    /// being replaced, and is waited for.
    pub(super) async fn prepare(
        &mut self,
        agent: &dyn Agent,
        request: &RunRequest<'_>,
    ) -> Option<Result<AgentCommand, Fault>> {
        let root = self.options.dir.root().to_owned();
        let began = Instant::now();
        loop {
            match self.prepare_once(agent, request, &root).await {
                Some(Err(fault))
                    if matches!(fault.code, FaultCode::AgentMissing | FaultCode::AgentNotExecutable)
                        && began.elapsed() < REPLACED
                        && agent.was_found(&root) =>
                {
                    if self.must_end_meanwhile().await {
                        return None;
                    }
                }
                done => return done,
            }
        }
    }

    async fn prepare_once(
        &mut self,
        agent: &dyn Agent,
        request: &RunRequest<'_>,
        root: &Path,
    ) -> Option<Result<AgentCommand, Fault>> {
        self.meanwhile(agent.prepare(request, root)).await
    }
}

/// How long a start that failed so is tried again.
fn passes_within(error: &SpawnError) -> Duration {
    match error {
        SpawnError::Busy { .. } => WRITTEN,
        SpawnError::NoRoom { .. } => ROOM,
        SpawnError::ProgramMissing { .. } | SpawnError::NotExecutable { .. } => REPLACED,
        _ => Duration::ZERO,
    }
}

pub(super) fn spawn_failure(error: &SpawnError) -> SpawnFailure {
    match error {
        SpawnError::CwdMissing { .. } | SpawnError::CwdNotADirectory { .. } => SpawnFailure::NoDirectory,
        SpawnError::ProgramMissing { .. } => SpawnFailure::Missing,
        SpawnError::NotExecutable { .. } => SpawnFailure::NotExecutable,
        SpawnError::ArgumentsTooLarge { .. } => SpawnFailure::TooLarge,
        SpawnError::CwdNotEntered { .. } => SpawnFailure::DirectoryClosed,
        SpawnError::Busy { .. } => SpawnFailure::Other(error.to_string()),
        SpawnError::NoRoom { source, .. } | SpawnError::Other { source, .. } => SpawnFailure::Other(source.to_string()),
    }
}
