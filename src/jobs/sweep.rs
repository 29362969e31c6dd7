//! What is done about jobs whose runner is gone.
//!
//! Owns: the evidence (the job's lock is free) and what follows from it. May not know: actors.
//!
//! Invariants: (1) nothing is settled without holding the job's lock; (2) a process is ended only by the marks of its run
//! (`leftovers`), never because of its pid alone; (3) a job that never started an agent may still be run, one that did is
//! not run again; (4) an outcome its runner left in the job's directory is the job's outcome; where there is none, what the
//! journal knows is told; (5) L7: a job whose agent is on another machine is not settled before that machine has ended it.

use std::collections::HashSet;

use super::admission::QueueRow;
use super::evidence::{self, JobEvidence};
use super::lock::JobLock;
use super::outcome_file::{self, LeftOutcome};
use super::recall::Recall;
use super::{CancelReason, JobMode, JobOutcome, JobRecord, JobState, leftovers};
use crate::base::beside::beside;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{JobId, UnixMillis, WaiterId};
use crate::base::state_dir::StateDir;
use crate::jobs::store::{StoreHandle, Transition};

/// Whether a queued job has had its time to get a runner, or somebody to wait with it, and has neither: its host died.
#[must_use]
pub fn is_orphan(dir: &StateDir, evidence: &mut JobEvidence<'_>, job: &JobRecord) -> bool {
    is_left_alone(dir, evidence, job.id, job.state, job.accepted_at, job.waiter)
}

fn is_left_alone(
    dir: &StateDir,
    evidence: &mut JobEvidence<'_>,
    job: JobId,
    state: JobState,
    accepted_at: UnixMillis,
    waiter: Option<WaiterId>,
) -> bool {
    state == JobState::Queued
        && !evidence.is_fresh(job, accepted_at)
        && !evidence.waits(waiter)
        // A lock that cannot be looked at counts as held: waiting is safe.
        && !JobLock::is_held(dir, job).unwrap_or(true)
}

/// Whether an agent was started for a job and its runner is gone.
fn is_lost(dir: &StateDir, row: &QueueRow) -> bool {
    row.state == JobState::Running && !JobLock::is_held(dir, row.job).unwrap_or(true)
}

/// The jobs whose agent was started and whose runner is gone: a sweep settles them. Changes nothing.
///
/// # Errors
///
/// The queue cannot be read.
pub async fn lost(store: &StoreHandle, dir: &StateDir) -> Result<Vec<JobId>, Fault> {
    let rows = store.queue().await?;
    Ok(rows.into_iter().filter(|row| is_lost(dir, row)).map(|row| row.job).collect())
}

/// What a sweep found.
#[derive(Debug, Default)]
pub struct Swept {
    /// Background jobs that need a runner and may be run here.
    pub orphans: Vec<JobRecord>,
    /// Jobs that were settled.
    pub settled: Vec<JobId>,
}

/// Looks at every job that is not over, except `ours`, and settles those whose runner is gone. One that may be run here was accepted
/// with an environment whose digest is among `environments`, since it is to run with that of its caller.
///
/// # Errors
///
/// The queue cannot be read.
pub async fn sweep(
    store: &StoreHandle,
    dir: &StateDir,
    ours: &HashSet<JobId>,
    environments: &HashSet<Option<String>>,
) -> Result<Swept, Fault> {
    let mut swept = Swept::default();
    let mut evidence = JobEvidence::new(dir);
    for row in store.queue().await? {
        let orphan = is_left_alone(dir, &mut evidence, row.job, row.state, row.accepted_at, row.waiter);
        if ours.contains(&row.job) || !(orphan || is_lost(dir, &row)) {
            continue;
        }
        if orphan && row.mode == JobMode::Background && environments.contains(&row.environment) {
            match store.job(row.job).await {
                Ok(record) => swept.orphans.push(record),
                Err(error) => tracing::warn!(job = %row.job, %error, "a job without a runner cannot be read"),
            }
            continue;
        }
        let gone = if orphan { "who waited with the job is gone." } else { "the job's runner is gone." };
        let why = Fault::new(FaultCode::RunnerLost, gone);
        // One job that cannot be settled must not keep the others from it.
        match settle(store, dir, row.job, why).await {
            Ok(Settlement::Terminal(_)) => swept.settled.push(row.job),
            Ok(Settlement::InOtherHands | Settlement::NotBefore(_)) => {}
            Err(fault) => tracing::warn!(job = %row.job, %fault, "a lost job was not settled"),
        }
    }
    Ok(swept)
}

/// What came of settling a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Settlement {
    /// It is terminal.
    Terminal(Box<JobRecord>),
    /// Its lock is held: somebody else looks after it.
    InOtherHands,
    /// Its agent is on another machine, and may live until then.
    NotBefore(UnixMillis),
}

/// Settles a job whose runner is gone: ends what is left of it, then makes it terminal.
///
/// # Errors
///
/// The store cannot be used.
pub async fn settle(store: &StoreHandle, dir: &StateDir, job: JobId, why: Fault) -> Result<Settlement, Fault> {
    let lock = match JobLock::try_acquire(dir, job) {
        Ok(Some(lock)) => lock,
        Ok(None) => return Ok(Settlement::InOtherHands),
        Err(error) => return Err(Fault::new(FaultCode::StoreUnavailable, format!("failed to {error}."))),
    };
    let record = store.job(job).await?;
    if record.state.is_terminal() {
        return Ok(Settlement::Terminal(Box::new(record)));
    }
    let reaped = match record.process {
        // It looks through all processes, which takes milliseconds: not on the actors' thread.
        Some(process) => match beside("leftovers", move || leftovers::end(process)) {
            Some(ending) => ending.await.unwrap_or(0),
            // It stands still for milliseconds, which is less than what may be left alive costs.
            None => leftovers::end(process),
        },
        None => 0,
    };
    let kept = dir.clone();
    let left = match beside("outcome", move || outcome_file::read(&kept, job)) {
        Some(reading) => reading.await.flatten(),
        None => outcome_file::read(dir, job),
    };
    if left.is_none() && record.state == JobState::Running {
        let now = UnixMillis::now();
        if let Some(over) = store.lost_elsewhere(job, now).await?.filter(|over| *over > now) {
            return Ok(Settlement::NotBefore(over));
        }
    }
    let LeftOutcome { state, outcome, at, .. } = match left {
        Some(left) => left,
        None => {
            let why = match dir.job_words(job) {
                Some(log) => {
                    Fault { detail: format!("{} Its last words are in {}.", why.detail, log.display()), ..why }
                }
                None => why,
            };
            let (state, outcome) = verdict(&record, Recall::of(store, job).await?.outcome(), why, reaped);
            LeftOutcome { job, state, outcome, at: UnixMillis::now() }
        }
    };
    let transition = store.finish(job, state, outcome, at).await?;
    outcome_file::forget(dir, job);
    if let Transition::Refused { current } = transition {
        tracing::debug!(%job, current = current.as_str(), "a lost job was settled by somebody else");
    }
    drop(lock);
    // A permit or a session may be free now, and nobody is blocked on a run that is long dead.
    evidence::ring_all(dir);
    Ok(Settlement::Terminal(Box::new(store.job(job).await?)))
}

/// What is to be said of a job whose runner is gone, over what its journal knows.
fn verdict(record: &JobRecord, known: JobOutcome, why: Fault, reaped: u32) -> (JobState, JobOutcome) {
    let requested = record.request.session_id.map(|session| session.to_string());
    let mut outcome = known;
    outcome.session_id = outcome.session_id.or(requested);
    // A session that was begun is written down by its agent as it goes on.
    outcome.resumable = outcome.session_id.is_some().then_some(true);
    if let Some(reason) = record.cancel_requested {
        let code = if reason == CancelReason::CallerLost { FaultCode::CallerLost } else { FaultCode::Cancelled };
        outcome.fault = Some(Fault::new(code, "the job was to be cancelled, and its runner is gone."));
        return (JobState::Cancelled, outcome);
    }
    if record.state == JobState::Queued {
        outcome.resumable = Some(outcome.session_id.is_some());
        outcome.fault = Some(why.hint("No agent was started for it; ask again."));
        // One that waited was in good hands, which are gone; one that never did could not be started.
        let state = if record.waiter.is_some() { JobState::Interrupted } else { JobState::Failed };
        return (state, outcome);
    }
    let ended =
        if reaped > 0 { format!(" {reaped} of its processes were still alive and were ended.") } else { String::new() };
    let hint = match (&outcome.response, &outcome.session_id) {
        (Some(_), _) => "What it had said is told as far as it was written down; it was not run again.",
        (None, Some(_)) => "Its session can be resumed; it was not run again.",
        (None, None) => "It is not known how far the agent came; it was not run again.",
    };
    outcome.fault = Some(Fault { detail: format!("{}{ended}", why.detail), ..why }.hint(hint));
    (JobState::Interrupted, outcome)
}
