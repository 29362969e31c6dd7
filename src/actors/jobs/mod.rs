//! The jobs' supervisor and the handle through which everybody reaches jobs.
//!
//! Owns: which jobs this host attached to, who waits for each, admission's door, the sweep. May not know: agents,
//! MCP, how a runner is spoken to.
//!
//! Invariants: (1) L4: a job is in the store before anybody hears its id; (2) a synchronous job whose last caller
//! withdrew is cancelled, a background job is not; (3) it never awaits the store: verbs run as tasks and come back as
//! messages.

mod handle;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

pub use self::handle::{Follow, JobsHandle, News, View};
use super::child::Child;
use super::consult::{Consult, ConsultArguments, ConsultMsg};
use super::workers::reason;
use crate::fault::{Fault, FaultCode};
use crate::ids::{InvocationId, JobId, SessionNumber, UnixMillis};
use crate::jobs::live::JobLive;
use crate::jobs::sweep;
use crate::jobs::{CancelReason, JobMode, JobRecord, JobState, NewJob};
use crate::runner::RunnerCommand;
use crate::state_dir::StateDir;
use crate::store::{Accept, AcceptLimits, CancelState, RetentionPolicy, StoreHandle};
use crate::telemetry::{Record, TelemetryHandle};

/// How often a host looks for jobs whose runner is gone.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// The first sweep waits a little, so that a probing client that starts and kills us costs no disk.
const FIRST_SWEEP: Duration = Duration::from_secs(1);

/// Old jobs are forgotten every so many sweeps: once an hour.
const PRUNE_EVERY: u64 = 120;

/// Withdrawn calls that are remembered. A consult that was withdrawn on its way arrives within a few messages; these are
/// many times the calls that can be on their way.
const LATE: usize = 4096;

/// What a caller is told about its accepted job.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The job as it stands in the store.
    pub record: JobRecord,
    /// Whether it was there before.
    pub joined: bool,
}

/// Everything that can wake the jobs' supervisor.
pub enum JobsMsg {
    /// Accept a consult.
    Accept {
        /// What.
        job: Box<NewJob>,
        /// Who waits for it.
        caller: Option<InvocationId>,
        /// Told when it is durable.
        reply: oneshot::Sender<Result<Accepted, Fault>>,
    },
    /// The store has answered.
    Stored {
        /// Who waits.
        caller: Option<InvocationId>,
        /// What became of it.
        result: Box<Result<Accept, Fault>>,
        /// Told.
        reply: oneshot::Sender<Result<Accepted, Fault>>,
    },
    /// A call was withdrawn; its job may have lost its last caller.
    Withdrawn(InvocationId),
    /// A session is over: its calls have no caller any more.
    SessionOver(SessionNumber),
    /// A job is waited for by nobody any more, and goes on.
    HandedOver(JobId),
    /// Where is the news of this job?
    Attach {
        /// Which.
        job: JobId,
        /// `None` when it runs under another host, or is over.
        reply: oneshot::Sender<Option<watch::Receiver<JobLive>>>,
    },
    /// Ask the runner of this job to end it, if it is ours; the store has been told.
    Terminate(JobId),
    /// A job's custody has ended.
    Ended {
        /// Which.
        job: JobId,
        /// How it ended, where the store could say.
        record: Option<Arc<JobRecord>>,
    },
    /// Look for jobs whose runner is gone.
    Sweep,
    /// A background job was accepted and has no runner: its host died in between.
    Adopt(Box<JobRecord>),
    /// Which jobs are attached?
    Attached(oneshot::Sender<usize>),
}

/// The supervisor actor.
pub struct Jobs;

/// What it is started with.
#[derive(Clone)]
pub struct JobsArguments {
    /// The truth.
    pub store: StoreHandle,
    /// Where locks lie.
    pub dir: StateDir,
    /// How a runner is started; `None` in a system without consults.
    pub runner: Option<Arc<RunnerCommand>>,
    /// How much may wait.
    pub limits: AcceptLimits,
    /// Who counts.
    pub telemetry: TelemetryHandle,
}

struct Attached {
    consult: Child<ConsultMsg>,
    news: watch::Receiver<JobLive>,
    mode: JobMode,
    callers: HashSet<InvocationId>,
}

/// The supervisor's state.
pub struct JobsState {
    arguments: JobsArguments,
    attached: HashMap<JobId, Attached>,
    /// Accepts under way, and whether their caller withdrew meanwhile.
    accepting: HashMap<InvocationId, bool>,
    /// Calls and sessions that were withdrawn before their consult arrived here: the two take different ways.
    late: VecDeque<InvocationId>,
    over: VecDeque<SessionNumber>,
    sweeps: u64,
    tasks: JoinSet<()>,
}

impl Actor for Jobs {
    type Msg = JobsMsg;
    type State = JobsState;
    type Arguments = JobsArguments;

    async fn pre_start(
        &self,
        me: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let mut tasks = JoinSet::new();
        if arguments.runner.is_some() {
            // Where no job was ever accepted there is nothing to sweep yet, and an idle host stays asleep.
            let first = if arguments.dir.database().exists() { FIRST_SWEEP } else { SWEEP_EVERY };
            tasks.spawn(async move {
                let mut wait = first;
                loop {
                    tokio::time::sleep(wait).await;
                    if me.cast(JobsMsg::Sweep).is_err() {
                        return;
                    }
                    wait = SWEEP_EVERY;
                }
            });
        }
        Ok(JobsState {
            arguments,
            attached: HashMap::new(),
            accepting: HashMap::new(),
            late: VecDeque::new(),
            over: VecDeque::new(),
            sweeps: 0,
            tasks,
        })
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            JobsMsg::Accept { job, caller, reply } => state.accept(&me, job, caller, reply),
            JobsMsg::Stored { caller, result, reply } => state.stored(&me, caller, *result, reply).await,
            JobsMsg::Withdrawn(caller) => state.withdrawn(caller),
            JobsMsg::SessionOver(session) => state.session_over(session),
            JobsMsg::HandedOver(job) => {
                if let Some(attached) = state.attached.get_mut(&job) {
                    attached.mode = JobMode::Background;
                    attached.callers.clear();
                }
            }
            JobsMsg::Attach { job, reply } => {
                let _ = reply.send(state.attached.get(&job).map(|attached| attached.news.clone()));
            }
            JobsMsg::Terminate(job) => {
                if let Some(attached) = state.attached.get(&job) {
                    let _ = attached.consult.cast(ConsultMsg::Terminate);
                }
            }
            JobsMsg::Ended { job, record } => {
                state.attached.remove(&job);
                if let Some(record) = record {
                    let outcome = record.outcome.as_ref();
                    state.arguments.telemetry.record(Record::JobState {
                        job,
                        state: record.state,
                        code: outcome.and_then(|outcome| outcome.fault.as_ref()).map(|fault| fault.code),
                        cost_usd: outcome.and_then(|outcome| outcome.cost_usd),
                    });
                }
            }
            JobsMsg::Sweep => {
                let (store, dir) = (state.arguments.store.clone(), state.arguments.dir.clone());
                if !dir.database().exists() {
                    // No job was ever accepted here, so an idle host leaves the disk alone.
                    return Ok(());
                }
                let prunes = state.sweeps.is_multiple_of(PRUNE_EVERY);
                state.sweeps += 1;
                let ours: HashSet<JobId> = state.attached.keys().copied().collect();
                state.tasks.spawn(async move {
                    match sweep::sweep(&store, &dir, &ours).await {
                        Ok(orphans) => {
                            orphans.into_iter().for_each(|record| drop(me.cast(JobsMsg::Adopt(Box::new(record)))))
                        }
                        Err(error) => tracing::warn!(%error, "the sweep did not finish"),
                    }
                    if prunes {
                        prune(&store, &dir).await;
                    }
                });
            }
            JobsMsg::Adopt(record) => {
                if !state.attached.contains_key(&record.id) {
                    state.attach(&me, &record).await;
                }
            }
            JobsMsg::Attached(reply) => {
                let _ = reply.send(state.attached.len());
            }
        }
        while state.tasks.try_join_next().is_some() {}
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _me: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(cell, error) = event {
            // Its runner goes on by itself and the store keeps the truth; whoever followed the news reads there.
            tracing::error!(why = reason(&error), "a consult actor failed");
            let id = cell.get_id();
            state.attached.retain(|_, attached| attached.consult.id() != id);
        }
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        // All at once: a synchronous job has lost its caller and ends, a background job is let go.
        let mut asking = JoinSet::new();
        for (job, attached) in &state.attached {
            if attached.mode == JobMode::Sync {
                let consult = attached.consult.actor().clone();
                asking.spawn(end_for_lost_caller(state.arguments.store.clone(), consult, *job));
            }
        }
        let ending: Vec<Attached> = state.attached.drain().map(|(_, attached)| attached).collect();
        let until = tokio::time::Instant::now() + Duration::from_secs(2);
        // What is not asked in time notices by its pipe that its host is gone.
        let _ = tokio::time::timeout_at(until, async { while asking.join_next().await.is_some() {} }).await;
        for Attached { consult, mode, .. } in ending {
            if mode == JobMode::Sync {
                let left = until.saturating_duration_since(tokio::time::Instant::now());
                let _ = consult.actor().wait(Some(left)).await;
            }
            consult.stop(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

impl JobsState {
    fn accept(
        &mut self,
        me: &ActorRef<JobsMsg>,
        job: Box<NewJob>,
        caller: Option<InvocationId>,
        reply: oneshot::Sender<Result<Accepted, Fault>>,
    ) {
        if self.arguments.runner.is_none() {
            let fault =
                Fault::new(FaultCode::RunnerSpawnFailed, "this system was built without a runner for consults.");
            let _ = reply.send(Err(fault));
            return;
        }
        if let Some(caller) = caller {
            if self.late.contains(&caller) || self.over.contains(&caller.session) {
                // Nobody waits for it any more; nothing is started.
                let fault =
                    Fault::new(FaultCode::CallerLost, "the call was withdrawn before the consult was accepted.");
                let _ = reply.send(Err(fault));
                return;
            }
            self.accepting.insert(caller, false);
        }
        let (store, limits, me) = (self.arguments.store.clone(), self.arguments.limits, me.clone());
        self.tasks.spawn(async move {
            let result = Box::new(store.accept(*job, limits).await.map_err(Fault::from));
            let _ = me.cast(JobsMsg::Stored { caller, result, reply });
        });
    }

    async fn stored(
        &mut self,
        me: &ActorRef<JobsMsg>,
        caller: Option<InvocationId>,
        result: Result<Accept, Fault>,
        reply: oneshot::Sender<Result<Accepted, Fault>>,
    ) {
        let withdrawn = caller.is_some_and(|caller| self.accepting.remove(&caller).unwrap_or(false));
        let (record, joined) = match result {
            Ok(Accept::Inserted(record)) => (record, false),
            Ok(Accept::Joined(record)) => (record, true),
            Ok(Accept::Conflict { job }) => {
                let detail = format!("`request_key` was used in this workspace with other arguments, by job {job}.");
                let fault = Fault::new(FaultCode::RequestKeyConflict, detail)
                    .hint("Use another key for another request, or read that job with consult_job.");
                let _ = reply.send(Err(fault));
                return;
            }
            Ok(Accept::QueueFull { queued }) => {
                let fault = Fault::new(FaultCode::QueueFull, format!("{queued} jobs are waiting already."))
                    .hint("Wait for one of them, or cancel one with consult_cancel.");
                let _ = reply.send(Err(fault));
                return;
            }
            Err(fault) => {
                let _ = reply.send(Err(fault));
                return;
            }
        };
        let job = record.id;
        if !joined {
            self.arguments.telemetry.record(Record::JobState {
                job,
                state: JobState::Queued,
                code: None,
                cost_usd: None,
            });
        }
        // A joined job that nobody runs (its host died between accepting and starting) is run by whoever asks for it.
        let orphan = joined
            && !self.attached.contains_key(&job)
            && sweep::is_orphan(&self.arguments.dir, job, record.state, record.accepted_at);
        if !joined || orphan {
            self.attach(me, &record).await;
        }
        match (caller, self.attached.get_mut(&job)) {
            (Some(caller), Some(attached)) => {
                attached.callers.insert(caller);
            }
            // It runs under another host, whose own callers must not end it for ours.
            (Some(_), None) if record.mode == JobMode::Sync && !record.state.is_terminal() => {
                let store = self.arguments.store.clone();
                self.tasks.spawn(async move {
                    if let Err(error) = store.hand_over(job).await {
                        tracing::warn!(%error, "a joined job still depends on its first caller");
                    }
                });
            }
            _ => {}
        }
        if withdrawn && let Some(caller) = caller {
            self.withdrawn(caller);
        }
        let _ = reply.send(Ok(Accepted { record, joined }));
    }

    async fn attach(&mut self, me: &ActorRef<JobsMsg>, record: &JobRecord) {
        let Some(runner) = self.arguments.runner.clone() else { return };
        let (news, followed) = watch::channel(JobLive::default());
        let arguments = ConsultArguments {
            job: record.id,
            agent: record.request.agent.clone(),
            jobs: me.clone(),
            store: self.arguments.store.clone(),
            dir: self.arguments.dir.clone(),
            runner,
            news,
        };
        match Consult::spawn_linked(None, Consult, arguments, me.get_cell()).await {
            Ok((consult, _)) => {
                let attached = Attached {
                    consult: Child::new(consult),
                    news: followed,
                    mode: record.mode,
                    callers: HashSet::new(),
                };
                self.attached.insert(record.id, attached);
            }
            // The job is durable; the sweep starts or settles it.
            Err(error) => tracing::error!(%error, "a consult actor could not be started"),
        }
    }

    fn session_over(&mut self, session: SessionNumber) {
        // Calls that were withdrawn one by one are not there any more.
        let attached = self.attached.values().flat_map(|attached| attached.callers.iter());
        let callers: Vec<InvocationId> =
            attached.chain(self.accepting.keys()).filter(|caller| caller.session == session).copied().collect();
        for caller in callers {
            self.withdrawn(caller);
        }
        remember(&mut self.over, session);
    }

    fn withdrawn(&mut self, caller: InvocationId) {
        if let Some(withdrawn) = self.accepting.get_mut(&caller) {
            *withdrawn = true;
            return;
        }
        remember(&mut self.late, caller);
        let lost: Vec<JobId> = self
            .attached
            .iter_mut()
            .filter_map(|(job, attached)| {
                let was_last = attached.callers.remove(&caller) && attached.callers.is_empty();
                (was_last && attached.mode == JobMode::Sync).then_some(*job)
            })
            .collect();
        for job in lost {
            let Some(attached) = self.attached.get(&job) else { continue };
            let (store, consult) = (self.arguments.store.clone(), attached.consult.actor().clone());
            self.tasks.spawn(end_for_lost_caller(store, consult, job));
        }
    }
}

fn remember<T>(remembered: &mut VecDeque<T>, new: T) {
    if remembered.len() == LATE {
        remembered.pop_front();
    }
    remembered.push_back(new);
}

/// Asks for the end of a job nobody waits for any more, unless somebody has taken it over.
async fn end_for_lost_caller(store: StoreHandle, consult: ActorRef<ConsultMsg>, job: JobId) {
    // The reason first, so that the runner finds it when it is asked to end.
    match store.request_cancel(job, CancelReason::CallerLost).await {
        Ok(CancelState::GoesOn | CancelState::Ended { .. }) => return,
        Ok(CancelState::Requested { .. } | CancelState::AlreadyRequested { .. }) => {}
        Err(error) => tracing::warn!(%error, "the reason of a cancel was not recorded"),
    }
    let _ = consult.cast(ConsultMsg::Terminate);
}

/// Forgets jobs that were kept long enough.
async fn prune(store: &StoreHandle, dir: &StateDir) {
    match store.prune(RetentionPolicy::default(), UnixMillis::now()).await {
        Ok(pruned) => {
            for job in pruned.jobs {
                if let Err(error) = dir.remove_job_dir(job) {
                    tracing::debug!(%error, "the directory of a forgotten job stays");
                }
            }
        }
        Err(error) => tracing::warn!(%error, "old jobs were not forgotten"),
    }
}
