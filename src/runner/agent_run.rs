//! From the turn to the verdict: the agent is marked, started, attended to and judged.
//!
//! Owns: the order of these, and that an agent which refused an option before it did anything is asked once more. May not know:
//! what the agent's output means, when a job must end.
//!
//! Invariants: (1) L6: the run's marks are in the store before the agent is started; (2) whatever was started is over when a
//! verdict is given.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use super::elsewhere::Reached;
use super::patience::insist;
use super::process::Process;
use super::starting::spawn_failure;
use super::talk::Talk;
use super::workspace::Watch;
use super::{Runner, attend};
use crate::agents::{Agent, AgentCommand, RunEnd, RunRequest, RunVerdict, core_environment};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{JobId, RUN_TOKEN_VARIABLE, RunToken, UnixMillis};
use crate::base::procfs;
use crate::base::tasks::TaskSet;
use crate::exec::backend::{ProcessStartError, StartRequest, StdinKind};
use crate::exec::local::{Adopt, DESCRIPTORS_VARIABLE, OutputTap, SpawnSpec, Stdin};
use crate::exec::target::OWN;
use crate::jobs::{JobOutcome, JobRecord, JobState, JournalEvent, RunExit, RunProcess, leftovers};

/// How long a run waits for a store that is busy or full before it ends without having started. It heeds nothing meanwhile.
const STORE_MOMENT: Duration = Duration::from_secs(5);

/// Jobs in a row that were refused a session and are passed over in the look for the last one that had it. Past them it counts as one
/// that was never seen here.
const REFUSALS_PASSED_OVER: usize = 32;

/// Where the agent's own spans belong, as the environment has it.
fn traceparent(record: &JobRecord) -> Option<String> {
    let trace = record.trace.as_ref()?;
    trace.for_agent(record.id).map(|context| context.traceparent())
}

impl Runner {
    pub(super) async fn run_agent(&mut self, agent: &dyn Agent, record: &JobRecord, nothing: RunEnd) -> RunVerdict {
        let seen = match self.session_seen(agent, record).await {
            Ok(seen) => seen,
            Err(fault) => return failed(fault),
        };
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
        let reached = match (agent.site(), &record.request.machine) {
            (None, None) => None,
            (site, frozen) if site.map(|site| site.target.to_string()) != *frozen => return failed(moved(record)),
            (Some(site), _) => match self.reach(agent, site, &record.request.cwd).await {
                Some(Ok(reached)) => Some(reached),
                Some(Err(fault)) => return failed(fault),
                None => return agent.classify(RunEnd { stop: self.core.stop().cloned(), ..nothing }),
            },
            (None, Some(_)) => return failed(moved(record)),
        };
        let refused = match seen {
            // Nobody here knows where it was had; its agent may.
            SessionSeen::Never if reached.is_none() => self.had_elsewhere(agent, record, mark, &nothing).await,
            SessionSeen::Never | SessionSeen::Settled => None,
        };
        let verdict = match refused {
            Some(verdict) => verdict,
            None => self.run_there(agent, record, mark, nothing, reached.as_ref()).await,
        };
        if let Some(reached) = reached {
            reached.leave().await;
        }
        verdict
    }

    /// Refuses to go on with a session that is none of the agent's, or that was had in another directory. Of other ids some agents make
    /// a name, a file or a new session. What is in a session's history is of its directory, and what agents make of another one
    /// differs: some move along, some stay, one hangs.
    async fn session_seen(&self, agent: &dyn Agent, record: &JobRecord) -> Result<SessionSeen, Fault> {
        let resumed = record.request.session_id.filter(|_| agent.profile().resumes());
        let Some(session) = resumed else { return Ok(SessionSeen::Settled) };
        agent.profile().check_session(&session)?;
        let mut later = record.id;
        for _ in 0..REFUSALS_PASSED_OVER {
            let before = match self.store.last_of_session(later, session).await {
                Ok(Some(before)) => before,
                Ok(None) => return Ok(SessionSeen::Never),
                Err(_) => return Ok(SessionSeen::Settled),
            };
            let Ok(job) = self.store.job(before).await else { return Ok(SessionSeen::Settled) };
            if was_refused(&job) {
                later = before;
                continue;
            }
            let had = job.request;
            if (&had.cwd, &had.machine) == (&record.request.cwd, &record.request.machine) {
                return Ok(SessionSeen::Settled);
            }
            return Err(had_in(&had.cwd, had.machine.as_deref()));
        }
        Ok(SessionSeen::Never)
    }

    /// Asks the agent's program where the session was had; the verdict, where that is another directory.
    async fn had_elsewhere(
        &mut self,
        agent: &dyn Agent,
        record: &JobRecord,
        mark: RunProcess,
        nothing: &RunEnd,
    ) -> Option<RunVerdict> {
        let environment = self.options.environment.clone();
        let traceparent = traceparent(record);
        let request = RunRequest {
            request: &record.request,
            token: mark.token,
            chain: record.chain,
            depth: record.depth,
            environment: &environment,
            traceparent: traceparent.as_deref(),
            there: None,
        };
        let Some(place) = self.meanwhile(agent.session_place(&request)).await else {
            return Some(agent.classify(RunEnd { stop: self.core.stop().cloned(), ..nothing.clone() }));
        };
        let (place, cwd) = (place?, &record.request.cwd);
        let is_there = place == *cwd || std::fs::canonicalize(cwd).is_ok_and(|cwd| cwd == place);
        (!is_there).then(|| failed(had_in(&place, None)))
    }

    async fn run_there(
        &mut self,
        agent: &dyn Agent,
        record: &JobRecord,
        mark: RunProcess,
        nothing: RunEnd,
        reached: Option<&Reached>,
    ) -> RunVerdict {
        let first = self.try_agent(agent, record, mark, nothing.clone(), Try { reached, refused: None }).await;
        let Some(refused) = first.refused else { return first.verdict };
        // It refused an option before it did anything, so nothing has run: what was known of it is not so.
        tracing::warn!("the agent's program does not know an option it was said to have; it is asked again");
        agent.forget(&refused.program, self.options.dir.root());
        let second = self.try_agent(agent, record, mark, nothing, Try { reached, refused: Some(&refused.args) }).await;
        // Asked again, it was said to have the same: the refusal stands.
        if second.is_the_same { first.verdict } else { second.verdict }
    }

    /// Starts the agent and attends to it.
    async fn try_agent(
        &mut self,
        agent: &dyn Agent,
        record: &JobRecord,
        mark: RunProcess,
        nothing: RunEnd,
        Try { reached, refused }: Try<'_>,
    ) -> Tried {
        let environment = self.options.environment.clone();
        let traceparent = traceparent(record);
        let request = RunRequest {
            request: &record.request,
            token: mark.token,
            chain: record.chain,
            depth: record.depth,
            environment: &environment,
            traceparent: traceparent.as_deref(),
            there: reached.map(Reached::there),
        };
        let dialogue = agent.dialogue(&request).filter(|_| reached.is_none());
        let command = match self.prepare(agent, &request).await {
            Some(Ok(command)) => command,
            Some(Err(fault)) => return failed(fault).into(),
            None => return agent.classify(RunEnd { stop: self.core.stop().cloned(), ..nothing }).into(),
        };
        let nothing = RunEnd {
            key_withheld: command.key_withheld,
            prompt_prefix_injected: command.prompt_prefix_injected,
            resumed_id: command.resumed_id,
            new_session: command.new_session,
            ..nothing
        };
        if refused.is_some_and(|refused| refused == command.args) {
            return Tried { is_the_same: true, ..agent.classify(nothing).into() };
        }
        // Nothing of another machine is looked at here, and nothing where the agent has nothing that writes.
        let could_write = agent.profile().could_write();
        let mut watch = (reached.is_none() && could_write).then(|| Watch::begin(&record.request.cwd));
        let stdin = if dialogue.is_some() { Stdin::Piped } else { Stdin::Bytes(command.stdin.clone()) };
        let (mut process, tap) = match self.start_agent(agent, record, (&command, stdin), &nothing, reached).await {
            Ok(started) => started,
            Err(verdict) => return (*verdict).into(),
        };
        self.core.started(Instant::now());
        self.journal.write(JournalEvent::ProcessStarted { pid: process.pid() });
        let number =
            self.store_number(record.id, RunProcess { pid: process.pid(), start_time: process.start_time(), ..mark });
        let talk = Talk::new(dialogue, process.steering());
        let mut seen = attend::attend(self, agent, &command, talk, &mut process, tap, &mut watch).await;
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
        if let (Some(lost), Some(reached)) = (seen.lost.take(), reached) {
            self.lost(reached.over_within);
            interrupted(&mut verdict, record, &lost.message);
        }
        verdict.outcome.workspace_changed = match watch {
            Some(watch) => watch.end().await,
            None => (!could_write).then_some(false),
        };
        let code = verdict.outcome.fault.as_ref().map(|fault| fault.code);
        let refused = code == Some(FaultCode::AgentUnsupported) && said_nothing && self.core.stop().is_none();
        Tried { refused: refused.then_some(command), ..verdict.into() }
    }

    /// Starts the agent's program where it is to run; or says what came of that.
    async fn start_agent(
        &mut self,
        agent: &dyn Agent,
        record: &JobRecord,
        (command, stdin): (&AgentCommand, Stdin),
        nothing: &RunEnd,
        reached: Option<&Reached>,
    ) -> Result<(Process, OutputTap), Box<RunVerdict>> {
        let not_started = |error| RunEnd { spawn_error: Some(spawn_failure(&error)), ..nothing.clone() };
        let end = match reached {
            None => match self.start(&self.spec(record, command, stdin)).await {
                Some(Ok(started)) => return Ok(started),
                Some(Err(error)) => not_started(error),
                None => RunEnd { stop: self.core.stop().cloned(), ..nothing.clone() },
            },
            Some(reached) => match self.start_there(reached, &request_there(record, command)).await {
                Some(Ok(started)) => return Ok(started),
                Some(Err(ProcessStartError::Spawn(error))) => not_started(error),
                Some(Err(error)) => {
                    if matches!(error, ProcessStartError::Ambiguous { .. }) {
                        self.lost(reached.over_within);
                    }
                    return Err(Box::new(failed_there(record, &error)));
                }
                None => {
                    // Whether it was started cannot be known; its machine is told to end it.
                    self.lost(reached.over_within);
                    RunEnd { stop: self.core.stop().cloned(), ..nothing.clone() }
                }
            },
        };
        Err(Box::new(agent.classify(end)))
    }

    fn spec(&self, record: &JobRecord, command: &AgentCommand, stdin: Stdin) -> SpawnSpec {
        let soft = self.options.environment.get(DESCRIPTORS_VARIABLE);
        SpawnSpec {
            program: command.program.clone(),
            args: command.args.clone(),
            cwd: record.request.cwd.clone(),
            env: command.env.clone(),
            stdin,
            adopt: Adopt::Yes,
            descriptors: soft.and_then(|soft| soft.to_str()?.parse().ok()),
        }
    }

    /// Stores the agent's number beside the run's mark, as soon as the store takes it and for as long as what is returned is
    /// kept. A sweep finds what is left of a run by its mark alone; an agent that is at work, and may be paid for, is not
    /// ended for want of the number.
    fn store_number(&self, job: JobId, process: RunProcess) -> TaskSet<()> {
        let store = self.store.clone();
        let mut storing = TaskSet::new();
        storing.spawn(async move {
            if let Err(error) = insist(Duration::MAX, || store.set_process(job, process)).await {
                tracing::warn!(%error, "the number of the agent's process is not stored");
            }
        });
        storing
    }
}

/// What is known here of the session that is to be gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SessionSeen {
    /// Nothing stands in the way, or there is none.
    Settled,
    /// It was had without us.
    Never,
}

/// Whether the job was to go on with a session and was refused before its agent was started: it was not in that session.
fn was_refused(job: &JobRecord) -> bool {
    job.outcome.as_ref().is_some_and(|outcome| {
        outcome.exit.is_none() && outcome.fault.as_ref().is_some_and(|fault| fault.code == FaultCode::InvalidSession)
    })
}

/// A session of another directory, or of another machine.
fn had_in(cwd: &Path, machine: Option<&str>) -> Fault {
    let on = machine.map_or_else(String::new, |machine| format!(" on {machine}"));
    let detail = format!("The session was had in {}{on}, and is gone on with there only.", cwd.display());
    let hint = "Name that directory as `cwd`, or leave `session_id` out to start a new session.";
    Fault::new(FaultCode::InvalidSession, detail).hint(hint)
}

/// How the agent is tried.
struct Try<'a> {
    /// Its machine, where that is another one.
    reached: Option<&'a Reached>,
    /// Nothing is started by the arguments that were refused before.
    refused: Option<&'a [OsString]>,
}

/// The same command for another machine: what it has of its environment is that machine's, under what the command sets.
fn request_there(record: &JobRecord, command: &AgentCommand) -> StartRequest {
    let mut request = StartRequest::new(record.id.to_string(), command.program.clone(), record.request.cwd.clone());
    request.args = command.args.clone();
    request.env = command.env.clone();
    request.env_policy = Some(core_environment());
    request.stdin = StdinKind::Bytes(command.stdin.clone());
    request.ends_with_leader = true;
    request.marked_by = Some(RUN_TOKEN_VARIABLE.to_owned());
    request
}

/// The agent is configured to run somewhere else than when the consult was accepted. It is run in neither place: a directory of the
/// same name may be there.
fn moved(record: &JobRecord) -> Fault {
    let machine = record.request.machine.as_deref().unwrap_or("this machine");
    let detail = format!("`{}` was to run on {machine}, and is configured to run elsewhere now.", record.request.agent);
    Fault::new(FaultCode::InvalidInput, detail)
        .hint("Ask again: the new consult runs where the agent is configured to.")
}

/// What is told of a start on another machine that failed there by something else than the program.
fn failed_there(record: &JobRecord, error: &ProcessStartError) -> RunVerdict {
    let machine = record.request.machine.as_deref().unwrap_or_default();
    let code = match error {
        ProcessStartError::Unreachable { .. } => FaultCode::ExecUnreachable,
        ProcessStartError::Ambiguous { .. } => FaultCode::ExecLost,
        ProcessStartError::Unsupported { .. } | ProcessStartError::Refused { .. } => FaultCode::ExecRefused,
        ProcessStartError::Spawn(_) | ProcessStartError::DuplicateId { .. } => FaultCode::Internal,
    };
    let mut verdict = failed(Fault::new(code, format!("{machine}: failed to {error}.")));
    if code == FaultCode::ExecLost {
        verdict.state = JobState::Interrupted;
    }
    verdict
}

/// Nobody can tell what became of the agent: unless it had answered, or was to end, its job is interrupted with what was heard.
fn interrupted(verdict: &mut RunVerdict, record: &JobRecord, why: &str) {
    if verdict.state != JobState::Failed {
        return;
    }
    let machine = record.request.machine.as_deref().unwrap_or_default();
    let detail = match record.request.machine.as_deref().filter(|machine| machine.starts_with(OWN)) {
        Some(own) => format!("the agent was lost on {own}: {why}."),
        None => format!("the exec server at {machine} was lost while the agent ran, and the agent with it: {why}."),
    };
    let session = verdict.outcome.session_id.is_some();
    let hint = if session {
        "Its session can be resumed; it was not run again."
    } else {
        "It is not known how far the agent came; it was not run again."
    };
    verdict.state = JobState::Interrupted;
    verdict.outcome.resumable = session.then_some(true);
    verdict.outcome.exit = None;
    verdict.outcome.fault = Some(Fault::new(FaultCode::ExecLost, detail).hint(hint));
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
