//! The jobs' supervisor and the handle through which everybody reaches jobs.
//!
//! Owns: which jobs this host attached to, who waits for each, admission's door, the sweep. May not know: agents,
//! MCP, how a runner is spoken to. A dynamic supervisor: one transient consult actor per attached job. What must outlive
//! them and it ([`Attachments`]: the runners' pipes, who waits) is lent to it; its next incarnation finds it there.
//!
//! Invariants: (1) L4: a job is in the store before anybody hears its id; (2) a synchronous job whose last caller
//! withdrew is cancelled, a background job is not; (3) it never awaits the store: verbs run as tasks and come back as
//! messages.

pub mod custody;
mod handle;
pub mod room;
pub(crate) mod runner_child;
pub mod starting;

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::poll_immediate;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use self::custody::{Attachment, Attachments, Means};
pub use self::handle::jobs_of;
use self::starting::HeldRunner;
use super::child::{self, Child};
use super::connections::Connections;
use super::consult::{Consult, ConsultArguments, ConsultMsg};
use super::supervision::slot::{RestartPolicy, Slot, SlotEffect};
use super::supervision::{Exit, RestartType};
use super::workers::reason;
use crate::actors::clock;
use crate::fault::{Fault, FaultCode};
use crate::faults::{Broken, FaultPoint, Faults, Operation};
use crate::ids::{Generation, InvocationId, JobId, SessionNumber, UnixMillis};
use crate::jobs::client::Accepted;
use crate::jobs::evidence::Evidence;
use crate::jobs::live::JobLive;
use crate::jobs::overdue::Overdue;
use crate::jobs::{CancelReason, JobMode, JobRecord, JobState, NewJob};
use crate::jobs::{reserve, sweep};
use crate::runner::RunnerCommand;
use crate::state_dir::StateDir;
use crate::store::{Accept, AcceptLimits, CancelState, RetentionPolicy, StoreError, StoreHandle};
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

/// A consult actor that fails goes on with the same runner. One that keeps failing lets go of it: the job then ends or goes
/// on by its mode, and its followers read the store.
const RESTARTS: RestartPolicy = RestartPolicy {
    intensity: 2,
    period: Duration::from_secs(60),
    backoff: Duration::from_millis(50),
    backoff_most: Duration::from_secs(2),
    settled_after: Duration::from_secs(10),
};

/// Whether a question was put to an earlier incarnation, which may have acted on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It is the first time.
    No,
    /// The answer to an earlier one was lost.
    Yes,
}

/// Everything that can wake the jobs' supervisor.
pub enum JobsMsg {
    /// Accept a consult.
    Accept {
        /// What.
        job: Box<NewJob>,
        /// Who waits for it.
        caller: Option<InvocationId>,
        /// Whether it was asked for before.
        again: Again,
        /// Told when it is durable.
        reply: oneshot::Sender<Result<Accepted, Fault>>,
    },
    /// The store has answered.
    Stored {
        /// Who asked.
        invocation: Option<InvocationId>,
        /// Who waits.
        caller: Option<InvocationId>,
        /// A runner that was started for it meanwhile.
        held: Option<HeldRunner>,
        /// What became of it.
        result: Box<Result<Accept, Fault>>,
        /// Told.
        reply: oneshot::Sender<Result<Accepted, Fault>>,
    },
    /// A call was withdrawn; its job may have lost its last caller.
    Withdrawn(InvocationId),
    /// A session goes on after it was interrupted, with these calls open. What else it had has no caller any more.
    Resumed {
        /// Which.
        session: SessionNumber,
        /// Its calls.
        open: HashSet<u64>,
    },
    /// A session is over: its calls have no caller any more.
    SessionOver(SessionNumber),
    /// A job is waited for by nobody any more, and goes on.
    HandedOver(JobId),
    /// Somebody was told how a job ended.
    Shown(JobId),
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
    /// Somebody has to look after this job.
    Attend(JobId),
    /// A consult actor's task has ended.
    Gone(JobId, Generation),
    /// A backoff is over.
    Due(JobId, Generation),
    /// Look for jobs whose runner is gone.
    Sweep,
    /// A background job was accepted and has no runner: its host died in between.
    Adopt(Box<JobRecord>),
    /// Let go of every job's custody, start no runner, and tell when no accept is under way any more.
    LetGo(oneshot::Sender<()>),
    /// Attend to them again.
    Resume,
    /// Which jobs are attached?
    Attached(oneshot::Sender<usize>),
}

impl JobsMsg {
    /// Its name in a fault plan.
    const fn name(&self) -> &'static str {
        match self {
            Self::Accept { .. } => "accept",
            Self::Stored { .. } => "stored",
            Self::Withdrawn(_) => "withdrawn",
            Self::Resumed { .. } => "resumed",
            Self::SessionOver(_) => "session_over",
            Self::HandedOver(_) => "handed_over",
            Self::Shown(_) => "shown",
            Self::Attach { .. } => "attach",
            Self::Terminate(_) => "terminate",
            Self::Ended { .. } => "ended",
            Self::Attend(_) => "attend",
            Self::Gone(..) => "gone",
            Self::Due(..) => "due",
            Self::Sweep => "sweep",
            Self::Adopt(_) => "adopt",
            Self::LetGo(_) => "let_go",
            Self::Resume => "resume",
            Self::Attached(_) => "attached",
        }
    }
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
    /// The jobs this host looks after; outlives every incarnation of the supervisor.
    pub attachments: Attachments,
    /// The connections: a caller whose connection is over waits for nothing.
    pub connections: Connections,
    /// What is to break.
    pub faults: Faults,
    /// Who counts.
    pub telemetry: TelemetryHandle,
}

struct Attending {
    slot: Slot,
    consult: Option<Child<ConsultMsg>>,
    /// How it went, as its death notice says; acted on when its task has been joined.
    exit: Option<Exit>,
}

/// The supervisor's state.
pub struct JobsState {
    arguments: JobsArguments,
    attending: HashMap<JobId, Attending>,
    /// How often a job was attended to.
    attended: u64,
    /// Accepts under way, and whether their caller withdrew meanwhile.
    accepting: HashMap<InvocationId, bool>,
    /// Calls and sessions that were withdrawn before their consult arrived here: the two take different ways.
    late: VecDeque<InvocationId>,
    over: VecDeque<SessionNumber>,
    sweeps: u64,
    /// Jobs of no host, whose runners may stand still.
    overdue: Arc<Overdue>,
    tasks: JoinSet<()>,
    attention: Attention,
    /// The digest of the environment jobs are run with here, once it was asked for.
    environment: Option<Option<String>>,
}

/// Whether custodies are worked with.
enum Attention {
    /// They are.
    Paid,
    /// They are not, until told otherwise; who is to be told that no accept is under way.
    Withdrawn(Option<oneshot::Sender<()>>),
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
        let sweeping = me.clone();
        if arguments.runner.is_some() {
            // Where no job was ever accepted there is nothing to sweep yet, and an idle host stays asleep.
            let first = if arguments.dir.root().exists() { FIRST_SWEEP } else { SWEEP_EVERY };
            tasks.spawn(async move {
                let mut wait = first;
                loop {
                    tokio::time::sleep(wait).await;
                    if sweeping.cast(JobsMsg::Sweep).is_err() {
                        return;
                    }
                    wait = SWEEP_EVERY;
                }
            });
        }
        // Left by an earlier incarnation.
        let lost = |caller: &&InvocationId| !arguments.connections.has_client(caller.session);
        for (job, attachment) in arguments.attachments.all() {
            me.cast(JobsMsg::Attend(job))?;
            for caller in attachment.claim().callers.iter().filter(lost) {
                me.cast(JobsMsg::Withdrawn(*caller))?;
            }
        }
        Ok(JobsState {
            arguments,
            attending: HashMap::new(),
            attended: 0,
            accepting: HashMap::new(),
            late: VecDeque::new(),
            over: VecDeque::new(),
            sweeps: 0,
            overdue: Arc::default(),
            tasks,
            attention: Attention::Paid,
            environment: None,
        })
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        child::in_time(state.act(me, message)).await?
    }

    async fn handle_supervisor_evt(
        &self,
        _me: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, error) => {
                tracing::error!(why = reason(&error), "a consult actor failed");
                state.note(cell.get_id(), Exit::Failed);
            }
            SupervisionEvent::ActorTerminated(cell, _, why) => {
                state.note(cell.get_id(), Exit::from_reason(why.as_deref()));
            }
            _ => {}
        }
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        // All at once: a synchronous job has lost its caller and ends, a background job is let go.
        let mut asking = JoinSet::new();
        let attached = state.arguments.attachments.all();
        let is_sync = |attachment: &Attachment| attachment.claim().mode == JobMode::Sync;
        for (job, attachment) in attached.iter().filter(|(_, attachment)| is_sync(attachment)) {
            asking.spawn(end_for_lost_caller(state.arguments.store.clone(), attachment.clone(), *job));
        }
        let until = tokio::time::Instant::now() + Duration::from_secs(2);
        // What is not asked in time notices by its pipe that its host is gone.
        let _ = tokio::time::timeout_at(until, async { while asking.join_next().await.is_some() {} }).await;
        for (job, attachment) in attached {
            if let Some(consult) = state.attending.remove(&job).and_then(|attending| attending.consult) {
                if is_sync(&attachment) {
                    let left = until.saturating_duration_since(tokio::time::Instant::now());
                    let _ = consult.actor().wait(Some(left)).await;
                }
                consult.stop(Duration::from_millis(100)).await;
            }
            state.arguments.attachments.release(job);
        }
        Ok(())
    }
}

impl JobsState {
    /// Handles one message.
    async fn act(&mut self, me: ActorRef<JobsMsg>, message: JobsMsg) -> Result<(), ActorProcessingErr> {
        if self.arguments.faults.is_armed() {
            child::meet(&self.arguments.faults, FaultPoint::JobsSupervise, message.name()).await?;
        }
        match message {
            JobsMsg::Accept { job, caller, again, reply } => self.accept(&me, job, caller, again, reply).await,
            JobsMsg::Stored { invocation, caller, held, result, reply } => {
                self.stored(&me, invocation, caller, held, *result, reply).await;
            }
            JobsMsg::Withdrawn(caller) => self.withdrawn(caller),
            JobsMsg::Resumed { session, open } => self.resumed(session, &open),
            JobsMsg::SessionOver(session) => self.session_over(session),
            JobsMsg::HandedOver(job) => {
                if let Some(attachment) = self.arguments.attachments.get(job) {
                    let mut claim = attachment.claim();
                    claim.mode = JobMode::Background;
                    claim.callers.clear();
                }
            }
            JobsMsg::Shown(job) => {
                let store = self.arguments.store.clone();
                self.tasks.spawn(async move {
                    // A mark that is missing costs a reminder, nothing else.
                    if let Err(error) = store.mark_read(job, UnixMillis::now()).await {
                        tracing::debug!(%error, "a job was not marked as read");
                    }
                });
            }
            JobsMsg::Attach { job, reply } => {
                let _ = reply.send(self.arguments.attachments.get(job).map(|attachment| attachment.news()));
            }
            JobsMsg::Terminate(job) => {
                if let Some(attachment) = self.arguments.attachments.get(job) {
                    attachment.terminate();
                }
            }
            JobsMsg::Attend(job) => self.attend(&me, job).await,
            JobsMsg::Gone(job, generation) => {
                if let Some(attending) = self.attending.get_mut(&job) {
                    let exit = attending.exit.take().unwrap_or(Exit::Normal);
                    let effect = attending.slot.gone(generation, exit, clock::now());
                    self.perform(&me, job, effect).await;
                }
            }
            JobsMsg::Due(job, generation) => {
                if let Some(attending) = self.attending.get_mut(&job) {
                    let effect = attending.slot.due(generation);
                    self.perform(&me, job, effect).await;
                }
            }
            JobsMsg::Ended { job, record } => {
                self.release(job);
                if let Some(record) = record {
                    let outcome = record.outcome.as_ref();
                    self.arguments.telemetry.record(Record::JobState {
                        job,
                        state: record.state,
                        code: outcome.and_then(|outcome| outcome.fault.as_ref()).map(|fault| fault.code),
                        cost_usd: outcome.and_then(|outcome| outcome.cost_usd),
                    });
                }
            }
            JobsMsg::Sweep => {
                let (store, dir) = (self.arguments.store.clone(), self.arguments.dir.clone());
                let remnants = dir.clone();
                self.tasks
                    .spawn(async move { drop(tokio::task::spawn_blocking(move || remnants.remove_remnants()).await) });
                if !dir.database().exists() {
                    // No job was ever accepted here, so an idle host leaves the disk alone.
                    return Ok(());
                }
                let prunes = self.sweeps.is_multiple_of(PRUNE_EVERY);
                self.sweeps += 1;
                let ours: HashSet<JobId> = self.arguments.attachments.all().into_iter().map(|(job, _)| job).collect();
                let environment = self.environment();
                let overdue = Arc::clone(&self.overdue);
                self.tasks.spawn(async move {
                    overdue.look(&store, &dir, &ours).await;
                    keep_reserve(&dir).await;
                    match sweep::sweep(&store, &dir, &ours, environment.as_deref()).await {
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
                if self.arguments.attachments.get(record.id).is_none() {
                    self.attach(&me, &record, None).await;
                }
            }
            JobsMsg::LetGo(reply) => {
                self.attention = Attention::Withdrawn(Some(reply));
                for attending in self.attending.values_mut() {
                    attending.slot.set_aside();
                    attending.exit = None;
                    if let Some(consult) = attending.consult.take() {
                        consult.stop(Duration::from_millis(100)).await;
                    }
                }
            }
            JobsMsg::Resume => {
                self.attention = Attention::Paid;
                if let Some(means) = self.means() {
                    self.arguments.attachments.room().resume(&means);
                }
                for (job, _) in self.arguments.attachments.all() {
                    match self.attending.get_mut(&job).map(|attending| attending.slot.wanted(clock::now())) {
                        Some(effect) => self.perform(&me, job, effect).await,
                        None => self.attend(&me, job).await,
                    }
                }
            }
            JobsMsg::Attached(reply) => {
                let _ = reply.send(self.arguments.attachments.len());
            }
        }
        if let Attention::Withdrawn(told) = &mut self.attention
            && self.accepting.is_empty()
            && let Some(told) = told.take()
        {
            let _ = told.send(());
        }
        while self.tasks.try_join_next().is_some() {}
        Ok(())
    }

    /// The digest of the environment jobs are run with here. Without one, a job is run by nobody else.
    fn environment(&mut self) -> Option<String> {
        let JobsArguments { dir, runner, .. } = &self.arguments;
        self.environment
            .get_or_insert_with(|| {
                let secret =
                    dir.secret().inspect_err(|error| tracing::warn!(%error, "environments cannot be compared"));
                runner.as_ref()?.environment_digest(&secret.ok()?)
            })
            .clone()
    }

    async fn accept(
        &mut self,
        me: &ActorRef<JobsMsg>,
        mut job: Box<NewJob>,
        caller: Option<InvocationId>,
        again: Again,
        reply: oneshot::Sender<Result<Accepted, Fault>>,
    ) {
        match self.arguments.faults.meet(FaultPoint::JobsBeforeAccept, Operation::Method("accept")).await {
            None => {}
            Some(Broken::Error(fault)) => {
                let _ = reply.send(Err(*fault));
                return;
            }
            // Lost: whoever asked asks again.
            Some(_) => return,
        }
        let Some(runner) = self.arguments.runner.clone() else {
            let fault =
                Fault::new(FaultCode::RunnerSpawnFailed, "this system was built without a runner for consults.");
            let _ = reply.send(Err(fault));
            return;
        };
        job.account = runner.account(&job.request);
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
        let mut job = job;
        job.environment = self.environment();
        let invocation = job.invocation;
        let (store, limits, me) = (self.arguments.store.clone(), self.arguments.limits, me.clone());
        let holder = self.has_room().then(|| (runner, self.arguments.dir.clone()));
        self.tasks.spawn(async move {
            let mut accepting = pin!(async {
                let result = match again {
                    Again::No => store.accept((*job).clone(), limits).await,
                    Again::Yes => accept_again(&store, &job, limits).await,
                };
                match result {
                    // Whether it took the job along with its verb is found out by asking again.
                    Err(StoreError::Panicked | StoreError::Stuck) => accept_again(&store, &job, limits).await,
                    result => result,
                }
            });
            // Asked for first: while the disk is written, this thread starts who will run the job.
            let (result, held) = match poll_immediate(&mut accepting).await {
                Some(result) => (result, None),
                None => {
                    let held = holder.and_then(|(runner, dir)| HeldRunner::start(&runner, &dir, job.id));
                    (accepting.await, held)
                }
            };
            let result = Box::new(result.map_err(Fault::from));
            let _ = me.cast(JobsMsg::Stored { invocation, caller, held, result, reply });
        });
    }

    /// Whether another job would be run at once, as far as this host knows.
    fn has_room(&self) -> bool {
        let JobsArguments { runner, attachments, .. } = &self.arguments;
        let under_way = attachments.len() + self.accepting.len();
        matches!(self.attention, Attention::Paid)
            && !attachments.room().is_used()
            && runner.as_ref().is_some_and(|runner| under_way <= runner.max_running())
    }

    async fn stored(
        &mut self,
        me: &ActorRef<JobsMsg>,
        invocation: Option<InvocationId>,
        caller: Option<InvocationId>,
        held: Option<HeldRunner>,
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
            Ok(Accept::Limited(limit)) => {
                let _ = reply.send(Err(limit.fault(UnixMillis::now())));
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
        // Before anybody has been told. What an error here tells is wrong, so the caller lets go of its job.
        let met = self.arguments.faults.meet(FaultPoint::JobsAfterAccept, Operation::Method("accept")).await;
        if !joined {
            self.arguments.telemetry.record(Record::JobState {
                job,
                state: JobState::Queued,
                code: None,
                cost_usd: None,
            });
        }
        // One of ours that was accepted just before an incarnation of ours ended has no runner yet.
        let ours = record.state == JobState::Queued
            && invocation.is_some_and(|invocation| record.invocation.as_deref() == Some(&invocation.to_string()));
        // A joined job that nobody runs (its host died between accepting and starting) is run by whoever asks for it.
        let orphan = joined
            && self.arguments.attachments.get(job).is_none()
            && record.environment == self.environment()
            && sweep::is_orphan(&self.arguments.dir, &mut Evidence::new(&self.arguments.dir), &record);
        if !joined || ours || orphan {
            self.attach(me, &record, held).await;
        }
        match (caller, self.arguments.attachments.get(job)) {
            (Some(caller), Some(attachment)) => {
                attachment.claim().callers.insert(caller);
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
        match met {
            None => drop(reply.send(Ok(Accepted { record, joined }))),
            Some(Broken::Error(fault)) => drop(reply.send(Err(*fault))),
            // Lost: whoever asked asks again, and joins.
            Some(_) => {}
        }
    }

    fn means(&self) -> Option<Means> {
        let JobsArguments { store, dir, runner, .. } = &self.arguments;
        runner.clone().map(|runner| Means { store: store.clone(), dir: dir.clone(), runner })
    }

    async fn attach(&mut self, me: &ActorRef<JobsMsg>, record: &JobRecord, held: Option<HeldRunner>) {
        let Some(means) = self.means() else { return };
        self.arguments.attachments.attach(record, means, held);
        self.attend(me, record.id).await;
    }

    /// Puts a consult actor to an attached job, unless it has one.
    async fn attend(&mut self, me: &ActorRef<JobsMsg>, job: JobId) {
        if self.attending.contains_key(&job) || matches!(self.attention, Attention::Withdrawn(_)) {
            return;
        }
        // Each time of its own: what is late about an earlier attachment of the job must not be taken for this one.
        self.attended += 1;
        let slot = Slot::after(Generation(self.attended << 16), RestartType::Transient, RESTARTS);
        let attending = self.attending.entry(job).or_insert(Attending { slot, consult: None, exit: None });
        let effect = attending.slot.wanted(clock::now());
        self.perform(me, job, effect).await;
    }

    async fn perform(&mut self, me: &ActorRef<JobsMsg>, job: JobId, mut effect: SlotEffect) {
        loop {
            match effect {
                SlotEffect::Nothing => return,
                SlotEffect::Wait(generation, wait) => {
                    let told = me.clone();
                    self.tasks.spawn(async move {
                        tokio::time::sleep(wait).await;
                        let _ = told.cast(JobsMsg::Due(job, generation));
                    });
                    return;
                }
                SlotEffect::GiveUp => {
                    tracing::error!(%job, "a consult actor failed too often; its runner is let go");
                    return self.release(job);
                }
                SlotEffect::Finished => return self.release(job),
                SlotEffect::Start(generation) => {
                    let Some(attachment) = self.arguments.attachments.get(job) else { return self.release(job) };
                    let custody = Arc::clone(attachment.custody());
                    let faults = self.arguments.faults.clone();
                    let arguments = ConsultArguments { job, custody, jobs: me.clone(), faults };
                    let started = Consult::spawn_linked(None, Consult, arguments, me.get_cell()).await;
                    let Some(attending) = self.attending.get_mut(&job) else { return };
                    match started {
                        Ok((consult, joined)) => {
                            attending.consult = Some(Child::new(consult));
                            attending.slot.up(generation, clock::now());
                            let told = me.clone();
                            self.tasks.spawn(async move {
                                let _ = joined.await;
                                let _ = told.cast(JobsMsg::Gone(job, generation));
                            });
                            return;
                        }
                        Err(error) => {
                            tracing::error!(%job, %error, "a consult actor could not be started");
                            effect = attending.slot.gone(generation, Exit::NotStarted, clock::now());
                        }
                    }
                }
            }
        }
    }

    fn note(&mut self, id: ActorId, exit: Exit) {
        let consult = |attending: &&mut Attending| attending.consult.as_ref().is_some_and(|consult| consult.id() == id);
        if let Some(attending) = self.attending.values_mut().find(consult) {
            attending.exit = Some(exit);
        }
    }

    /// A job is over, or in other hands.
    fn release(&mut self, job: JobId) {
        self.attending.remove(&job);
        self.arguments.attachments.release(job);
    }

    /// Everybody who waits for a job, or for its being accepted.
    fn callers(&self) -> Vec<InvocationId> {
        let mut callers: Vec<InvocationId> = self.accepting.keys().copied().collect();
        for (_, attachment) in self.arguments.attachments.all() {
            callers.extend(attachment.claim().callers.iter().copied());
        }
        callers
    }

    fn resumed(&mut self, session: SessionNumber, open: &HashSet<u64>) {
        let lost = |caller: &InvocationId| caller.session == session && !open.contains(&caller.call);
        for caller in self.callers().into_iter().filter(lost) {
            self.withdrawn(caller);
        }
    }

    fn session_over(&mut self, session: SessionNumber) {
        // Calls that were withdrawn one by one are not there any more.
        for caller in self.callers().into_iter().filter(|caller| caller.session == session) {
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
        for (job, attachment) in self.arguments.attachments.all() {
            let was_last = {
                let mut claim = attachment.claim();
                claim.callers.remove(&caller) && claim.callers.is_empty() && claim.mode == JobMode::Sync
            };
            if was_last {
                self.tasks.spawn(end_for_lost_caller(self.arguments.store.clone(), attachment, job));
            }
        }
    }
}

fn remember<T>(remembered: &mut VecDeque<T>, new: T) {
    if remembered.len() == LATE {
        remembered.pop_front();
    }
    remembered.push_back(new);
}

/// Accepts what may have been accepted before. An invocation finds its job by itself; without one the job is known by the id
/// it was to have.
async fn accept_again(store: &StoreHandle, job: &NewJob, limits: AcceptLimits) -> Result<Accept, StoreError> {
    match store.job(job.id).await {
        Ok(record) => Ok(Accept::Inserted(record)),
        Err(StoreError::UnknownJob(_)) => store.accept(job.clone(), limits).await,
        Err(error) => Err(error),
    }
}

/// Asks for the end of a job nobody waits for any more, unless somebody has taken it over.
async fn end_for_lost_caller(store: StoreHandle, attachment: Attachment, job: JobId) {
    // The reason first, so that the runner finds it when it is asked to end.
    match store.request_cancel(job, CancelReason::CallerLost).await {
        Ok(CancelState::GoesOn | CancelState::Ended { .. }) => return,
        Ok(CancelState::Requested { .. } | CancelState::AlreadyRequested { .. }) => {}
        Err(error) => tracing::warn!(%error, "the reason of a cancel was not recorded"),
    }
    attachment.terminate();
}

/// Keeps a little room on the disk for an answer that finds it full.
async fn keep_reserve(dir: &StateDir) {
    let dir = dir.clone();
    let kept = tokio::task::spawn_blocking(move || reserve::keep(&dir)).await;
    if let Ok(Err(error)) = kept {
        tracing::debug!(%error, "no room is kept on the disk");
    }
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
