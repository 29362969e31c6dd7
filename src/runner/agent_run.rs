//! From the turn to the verdict: the agent is marked, started, attended to and judged.
//!
//! Owns: the order of these, and that an agent which refused an option before it did anything is asked once more. May not know:
//! what the agent's output means, when a job must end.
//!
//! Invariants: (1) L6: the run's marks are in the store before the agent is started; (2) whatever was started is over when a
//! verdict is given.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::patience::insist;
use super::starting::spawn_failure;
use super::workspace::Watch;
use super::{Runner, attend};
use crate::agents::{Agent, AgentCommand, RunEnd, RunRequest, RunVerdict};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{JobId, RunToken, UnixMillis};
use crate::base::procfs;
use crate::exec::local::{Adopt, DESCRIPTORS_VARIABLE, SpawnSpec, Stdin};
use crate::jobs::{JobOutcome, JobRecord, JobState, JournalEvent, RunExit, RunProcess, leftovers};

/// How long a run waits for a store that is busy or full before it ends without having started. It heeds nothing meanwhile.
const STORE_MOMENT: Duration = Duration::from_secs(5);

impl Runner {
    pub(super) async fn run_agent(&mut self, agent: &dyn Agent, record: &JobRecord, nothing: RunEnd) -> RunVerdict {
        let token = RunToken::random();
        self.journal.write(JournalEvent::Dispatched);
        // The journal goes before the mark: a store that stands still at it stands still for the mark, and nothing is started.
        tokio::task::yield_now().await;
        // The token first, so that whatever the run starts, a question to the program among it, can be recognised even if this
        // runner dies right after.
        let (session, numbering) = (std::process::id(), leftovers::numbering());
        // Only a runner that leads its session: an embedding program may have run this in its own.
        let session = if procfs::leads_session() { session } else { 0 };
        let mark = RunProcess { pid: 0, start_time: 0, token, session, numbering };
        if let Err(error) = insist(STORE_MOMENT, || self.store.set_process(record.id, mark)).await {
            return failed(error.into());
        }
        let first = self.try_agent(agent, record, mark, nothing.clone(), None).await;
        let Some(refused) = first.refused else { return first.verdict };
        // It refused an option before it did anything, so nothing has run: what was known of it is not so.
        tracing::warn!("the agent's program does not know an option it was said to have; it is asked again");
        agent.forget(&refused.program, self.options.dir.root());
        let second = self.try_agent(agent, record, mark, nothing, Some(&refused.args)).await;
        // Asked again, it was said to have the same: the refusal stands.
        if second.is_the_same { first.verdict } else { second.verdict }
    }

    /// Starts the agent and attends to it. Nothing is started by the arguments that were `refused` before.
    async fn try_agent(
        &mut self,
        agent: &dyn Agent,
        record: &JobRecord,
        mark: RunProcess,
        nothing: RunEnd,
        refused: Option<&[OsString]>,
    ) -> Tried {
        let environment = self.options.environment.clone();
        let request = RunRequest {
            request: &record.request,
            token: mark.token,
            chain: record.chain,
            depth: record.depth,
            environment: &environment,
        };
        let command = match self.prepare(agent, &request).await {
            Some(Ok(command)) => command,
            Some(Err(fault)) => return failed(fault).into(),
            None => return agent.classify(RunEnd { stop: self.core.stop().cloned(), ..nothing }).into(),
        };
        let nothing = RunEnd {
            key_withheld: command.key_withheld,
            prompt_prefix_injected: command.prompt_prefix_injected,
            resumed_id: command.resumed_id,
            ..nothing
        };
        if refused.is_some_and(|refused| refused == command.args) {
            return Tried { is_the_same: true, ..agent.classify(nothing).into() };
        }
        let spec = SpawnSpec {
            program: command.program.clone(),
            args: command.args.clone(),
            cwd: record.request.cwd.clone(),
            env: command.env.clone(),
            stdin: Stdin::Bytes(command.stdin.clone()),
            adopt: Adopt::Yes,
            descriptors: environment.get(DESCRIPTORS_VARIABLE).and_then(|soft| soft.to_str()?.parse().ok()),
        };
        let mut watch = Watch::begin(&record.request.cwd);
        let (mut process, tap) = match self.start(&spec).await {
            Some(Ok(started)) => started,
            Some(Err(error)) => {
                return agent.classify(RunEnd { spawn_error: Some(spawn_failure(&error)), ..nothing }).into();
            }
            None => return agent.classify(RunEnd { stop: self.core.stop().cloned(), ..nothing }).into(),
        };
        self.core.started(Instant::now());
        self.journal.write(JournalEvent::ProcessStarted { pid: process.pid() });
        let number =
            self.store_number(record.id, RunProcess { pid: process.pid(), start_time: process.start_time(), ..mark });
        let seen = attend::attend(self, agent, &command, &mut process, tap, &mut watch).await;
        drop(number);
        let exit = RunExit { code: seen.end.code, signal: seen.end.signal, reaped: seen.end.reaped };
        self.journal.write(JournalEvent::ProcessClosed);
        let said_nothing = seen.summary.events() == 0;
        let mut verdict = agent.classify(RunEnd {
            summary: seen.summary,
            exit: Some(exit),
            stop: self.core.stop().cloned(),
            stderr_tail: seen.stderr,
            at: Some(UnixMillis::now()),
            ..nothing
        });
        verdict.outcome.workspace_changed = watch.end().await;
        let code = verdict.outcome.fault.as_ref().map(|fault| fault.code);
        let refused = code == Some(FaultCode::AgentUnsupported) && said_nothing && self.core.stop().is_none();
        Tried { refused: refused.then_some(command), ..verdict.into() }
    }

    /// Stores the agent's number beside the run's mark, as soon as the store takes it and for as long as what is returned is
    /// kept. A sweep finds what is left of a run by its mark alone; an agent that is at work, and may be paid for, is not
    /// ended for want of the number.
    fn store_number(&self, job: JobId, process: RunProcess) -> JoinSet<()> {
        let store = self.store.clone();
        let mut storing = JoinSet::new();
        storing.spawn(async move {
            if let Err(error) = insist(Duration::MAX, || store.set_process(job, process)).await {
                tracing::warn!(%error, "the number of the agent's process is not stored");
            }
        });
        storing
    }
}

/// What came of one try to run the agent.
struct Tried {
    verdict: RunVerdict,
    /// It refused an option and did nothing else; this is how it was started.
    refused: Option<AgentCommand>,
    /// It was not started: it would have been by the same arguments as before.
    is_the_same: bool,
}

impl From<RunVerdict> for Tried {
    fn from(verdict: RunVerdict) -> Self {
        Self { verdict, refused: None, is_the_same: false }
    }
}

pub(super) fn failed(fault: Fault) -> RunVerdict {
    RunVerdict { state: JobState::Failed, outcome: JobOutcome { fault: Some(fault), ..JobOutcome::default() } }
}
