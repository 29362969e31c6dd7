//! The jobs' supervisor, and the handle on the jobs of this process.
//!
//! Owns: the consult actors and their slots, the answers that are owed, admission's door, the sweep. May not know: agents,
//! MCP, how a runner is spoken to, who waits for a job. [`JobsCore`](core::JobsCore) decides, the supervisor performs: one
//! transient consult actor per attached job. What must outlive both ([`Attachments`]: the runners' pipes, the rules) is
//! lent to the supervisor; its next incarnation finds it there.
//!
//! Invariants: (1) L4: a job is in the store before anybody hears its id; (2) the supervisor never awaits the store: verbs
//! run as tasks and come back as messages; (3) every change of who waits passes `JobsCore::step`.
//!
//! Reading order: [`core`] for the rules, [`messages`] for what wakes the supervisor, this file, `chores`, `adopting`,
//! [`attachments`], [`custody`], [`room`], [`host_life`].

pub(crate) mod adopting;
pub mod attachments;
pub mod board;
mod chores;
mod consult;
pub mod core;
pub mod custody;
mod handle;
pub mod host_life;
pub mod means;
pub mod messages;
pub mod room;
pub(crate) mod runner_child;
mod runners;
pub mod starting;

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::poll_immediate;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;

use self::adopting::{AtWork, LeftAlone, Looked};
use self::attachments::{Attachment, Attachments};
use self::board::{HostBoard, clear_rows};
use self::chores::{accept_again, end_for_lost_caller, keep_reserve, prune};
use self::consult::{Consult, ConsultArguments};
use self::core::{AskId, Custodian, Found, JobsEffect, JobsEvent};
use self::custody::core::RunHere;
pub use self::handle::jobs_of;
use self::host_life::HostLife;
use self::means::Means;
use self::messages::{Again, JobsMsg};
use self::room::Beginning;
use self::runners::{RunAs, Runners};
use self::starting::HeldRunner;
use super::child;
use super::connections::Connections;
use super::supervision::driver::{ChildDriver, ChildReport, Spawned};
use super::supervision::dynamic::DynamicChildren;
use super::supervision::slot::RestartPolicy;
use super::supervision::{ChildEvent, ChildSpec, RestartType};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{InvocationId, JobId, UnixMillis};
use crate::base::state_dir::StateDir;
use crate::base::tasks::{self, TaskSet};
use crate::failpoints::{Broken, FaultPoint, Faults, Operation};
use crate::jobs::client::Accepted;
use crate::jobs::evidence::JobEvidence;
use crate::jobs::host_lock::clear_hosts;
use crate::jobs::overdue::Overdue;
use crate::jobs::store::{Accept, AcceptLimits, StoreError, StoreHandle};
use crate::jobs::sweep::{self, Swept};
use crate::jobs::{JobMode, JobRecord, JobState, NewJob};
use crate::runner::RunnerCommand;
use crate::telemetry::traces::TraceFact;
use crate::telemetry::{Record, TelemetryHandle};
use crate::tools::callers::{Callers, session_over};
use crate::tools::placed::FleetDesk;
use crate::tools::placed::waiters::WaitersEvent;

/// How often a host looks for jobs whose runner is gone.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// The first sweep waits a little, so that a probing client that starts and kills us costs no disk.
const FIRST_SWEEP: Duration = Duration::from_secs(1);

/// Old jobs are forgotten every so many sweeps: once an hour.
const PRUNE_EVERY: u64 = 120;

/// A consult actor that fails goes on with the same runner. One that keeps failing lets go of it: the job then ends or goes
/// on by its mode, and its followers read the store.
const RESTARTS: RestartPolicy = RestartPolicy {
    intensity: 2,
    period: Duration::from_secs(60),
    backoff: Duration::from_millis(50),
    backoff_most: Duration::from_secs(2),
    settled_after: Duration::from_secs(10),
};

/// What a consult actor is to its supervisor.
const CONSULT: ChildSpec = ChildSpec {
    name: "a consult actor",
    restart: RestartType::Transient,
    policy: RESTARTS,
    shutdown: Duration::from_millis(100),
};

/// The supervisor actor.
pub struct Jobs;

/// What it is started with.
#[derive(Clone)]
pub struct JobsArguments {
    /// The truth.
    pub store: StoreHandle,
    /// Where locks lie.
    pub dir: StateDir,
    /// How a runner of the host itself is started; `None` in a system without consults.
    pub runner: Option<Arc<RunnerCommand>>,
    /// Whose sessions there are, and with which environment their jobs are run.
    pub callers: Callers,
    /// How much may wait.
    pub limits: AcceptLimits,
    /// The jobs this host looks after; outlives every incarnation of the supervisor.
    pub attachments: Attachments,
    /// The life of this host, by which its jobs may be adopted.
    pub life: HostLife,
    /// What this host says of itself.
    pub board: HostBoard,
    /// The connections: a caller whose connection is over waits for nothing.
    pub connections: Connections,
    /// This host's fleet, whose jobs lose their callers by the same news.
    pub fleet: Option<FleetDesk>,
    /// Fault plan.
    pub faults: Faults,
    /// Telemetry.
    pub telemetry: TelemetryHandle,
}

/// The supervisor's state.
pub struct JobsState {
    arguments: JobsArguments,
    consults: ChildDriver<DynamicChildren<JobId>, JobsMsg>,
    /// What is asked of this incarnation.
    asking: HashMap<AskId, Asking>,
    sweeps: u64,
    /// Jobs of no host, whose runners may stand still.
    overdue: Arc<Overdue>,
    /// Waiting jobs of hosts that are gone.
    alone: Arc<LeftAlone>,
    tasks: TaskSet<()>,
    /// Jobs of the fleet that have lost their callers and are being cancelled.
    cancelling: TaskSet<()>,
    /// The next sweep, where one is due sooner than the others.
    soon: TaskSet<()>,
    /// Who is to be told that no accept is under way.
    still: Option<oneshot::Sender<()>>,
    runners: Runners,
}

/// The job an event is about, where custody of it may have to be made.
#[derive(Default)]
struct About<'a> {
    record: Option<&'a JobRecord>,
    /// How its runner is started.
    runner: Option<Arc<RunnerCommand>>,
    /// A runner that was started for it beside its accept.
    held: Option<HeldRunner>,
}

/// An accept that was asked for, and is answered once.
struct Asking {
    /// Until the store has it.
    job: Option<Box<NewJob>>,
    invocation: Option<InvocationId>,
    /// How it is run.
    run_as: RunAs,
    again: Again,
    reply: oneshot::Sender<Result<Accepted, Fault>>,
}

#[cfg_attr(feature = "ractor-async-trait", ractor::async_trait)]
impl Actor for Jobs {
    type Msg = JobsMsg;
    type State = JobsState;
    type Arguments = JobsArguments;

    async fn pre_start(
        &self,
        me: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let mut tasks = TaskSet::new();
        let sweeping = me.clone();
        if arguments.runner.is_some() {
            // Where no job was ever accepted there is nothing to sweep yet, and an idle host stays asleep.
            let first = match (arguments.dir.root().exists(), arguments.life.adopts_what_is_left()) {
                // Whoever adopts jobs of others does it before their time is over, and is no program a client tries out.
                (true, true) => Duration::ZERO,
                (true, false) => FIRST_SWEEP,
                (false, _) => SWEEP_EVERY,
            };
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
        if arguments.board.has_begun() {
            tasks.spawn(arguments.board.clone().keep());
        }
        // Left by an earlier incarnation.
        let lost = |caller: &&InvocationId| !arguments.connections.has_client(caller.session);
        me.cast(JobsMsg::Restarted)?;
        for (_, attachment) in arguments.attachments.all() {
            for caller in attachment.claim().1.iter().filter(lost) {
                me.cast(JobsMsg::Withdrawn(*caller))?;
            }
        }
        let JobsArguments { runner, dir, callers, .. } = &arguments;
        Ok(JobsState {
            runners: Runners::new(runner.clone(), dir.clone(), callers.clone()),
            arguments,
            consults: ChildDriver::new(DynamicChildren::new(CONSULT), JobsMsg::Child),
            asking: HashMap::new(),
            sweeps: 0,
            overdue: Arc::default(),
            alone: Arc::default(),
            tasks,
            cancelling: TaskSet::new(),
            soon: TaskSet::new(),
            still: None,
        })
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        // Boxed, as all that may be done for a message is large: five kilobytes, moved six times before anything happens.
        child::in_time(Box::pin(state.act(me, message))).await?
    }

    async fn handle_supervisor_evt(
        &self,
        _me: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        state.consults.note(&event);
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        // All at once: a synchronous job has lost its caller and ends, a background job is let go.
        let mut asking = TaskSet::new();
        let attached = state.arguments.attachments.all();
        let is_sync = |attachment: &Attachment| attachment.claim().0 == JobMode::Sync;
        for (job, attachment) in attached.iter().filter(|(_, attachment)| is_sync(attachment)) {
            asking.spawn(end_for_lost_caller(state.arguments.store.clone(), attachment.clone(), *job));
        }
        state.callers_changed(|| WaitersEvent::Ends);
        let until = tokio::time::Instant::now() + Duration::from_secs(2);
        // What is not asked in time notices by its pipe that its host is gone.
        let _ = tokio::time::timeout_at(until, async { while asking.join_next().await.is_some() {} }).await;
        let cancelled = async { while state.cancelling.join_next().await.is_some() {} };
        if tokio::time::timeout_at(until, cancelled).await.is_err() {
            tracing::warn!("jobs of the fleet that have lost their callers were not cancelled, and go on");
        }
        for (job, attachment) in attached {
            if let Some(consult) = state.consults.forget(job) {
                if is_sync(&attachment) {
                    consult.ended(until.saturating_duration_since(tokio::time::Instant::now())).await;
                }
                consult.stop(CONSULT.shutdown).await;
            }
            state.release(job);
        }
        let _ = tokio::time::timeout_at(until, state.arguments.board.clear()).await;
        // Nobody waits for what is left, but for background jobs, which another host may adopt.
        state.arguments.life.end();
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
            JobsMsg::Stored { ask, held, adopted, result } => self.stored(&me, ask, held, adopted, *result).await,
            JobsMsg::Withdrawn(caller) => {
                self.callers_changed(|| WaitersEvent::Withdrawn(caller));
                self.decide(&me, JobsEvent::Withdrawn(caller)).await;
            }
            JobsMsg::Resumed { session, open } => {
                self.callers_changed(|| WaitersEvent::Resumed { session, open: open.clone() });
                self.decide(&me, JobsEvent::Resumed { session, open }).await;
            }
            JobsMsg::SessionOver(session) => {
                self.runners.forget(session);
                self.callers_changed(|| WaitersEvent::SessionOver(session));
                self.decide(&me, JobsEvent::SessionOver(session)).await;
            }
            JobsMsg::HandedOver(job) => self.decide(&me, JobsEvent::HandedOver(job)).await,
            JobsMsg::Terminate(job) => self.decide(&me, JobsEvent::Terminate(job)).await,
            JobsMsg::Restarted => self.decide(&me, JobsEvent::Restarted).await,
            JobsMsg::Adopt(record) => {
                // Who had its environment may be gone by now.
                if let Some(run_as) = self.runners.with(record.environment.as_deref()) {
                    let event = JobsEvent::Orphaned { job: record.id, mode: record.mode };
                    let mut about = About { record: Some(&record), runner: Some(run_as.runner), held: None };
                    self.decide_about(&me, event, &mut about).await;
                }
            }
            JobsMsg::Looked { adopted, others } => {
                for record in &adopted {
                    let event = JobsEvent::Adopted { job: record.id, mode: record.mode };
                    self.decide_about(&me, event, &mut About { record: Some(record), ..About::default() }).await;
                }
                let sweeps = self.arguments.life.adopts_what_is_left() && self.soon.is_empty();
                if let (true, true, Some(grace)) = (others, sweeps, self.arguments.life.grace()) {
                    // A host that is gone right after is noticed well within the time its jobs wait.
                    self.soon.spawn(async move {
                        tokio::time::sleep((grace / 3).min(SWEEP_EVERY)).await;
                        let _ = me.cast(JobsMsg::Sweep);
                    });
                }
            }
            JobsMsg::CallersDue(job) => self.decide(&me, JobsEvent::CallersDue(job)).await,
            JobsMsg::LetGo(reply) => {
                self.still = Some(reply);
                self.callers_changed(|| WaitersEvent::LetGo);
                self.decide(&me, JobsEvent::LetGo).await;
            }
            JobsMsg::Leave(reply) => {
                let returning = self.arguments.callers.returning();
                self.callers_changed(|| WaitersEvent::Left { returning: returning.clone() });
                self.decide(&me, JobsEvent::Left { returning }).await;
                // Free before any of their callers knows that it has to come back.
                self.arguments.life.end();
                let _ = reply.send(());
            }
            JobsMsg::Resume => {
                self.callers_changed(|| WaitersEvent::Resume);
                if let Some(means) = self.runners.own().cloned().map(|runner| self.means(runner)) {
                    self.arguments.attachments.room().resume(&means);
                }
                self.decide(&me, JobsEvent::Resume).await;
            }
            JobsMsg::Ended { job, record } => {
                self.release(job);
                if let Some(record) = record {
                    self.count(&record);
                }
            }
            JobsMsg::Child(news) => {
                let event = self.consults.event(news);
                self.attend(&me, event).await;
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
            JobsMsg::Attached(reply) => {
                let _ = reply.send(self.arguments.attachments.len());
            }
            JobsMsg::Sweep => self.sweep(me),
        }
        while self.tasks.try_join_next().is_some() || self.soon.try_join_next().is_some() {}
        while self.cancelling.try_join_next().is_some() {}
        Ok(())
    }

    /// Cancels the fleet's jobs whose last caller here is gone.
    fn callers_changed(&mut self, event: impl FnOnce() -> WaitersEvent) {
        let Some(fleet) = &self.arguments.fleet else { return };
        for job in fleet.callers_changed(event()) {
            self.cancelling.spawn(fleet.clone().cancel_for_lost_caller(job));
        }
    }

    async fn decide(&mut self, me: &ActorRef<JobsMsg>, event: JobsEvent) {
        self.decide_about(me, event, &mut About::default()).await;
    }

    /// Decides and performs.
    async fn decide_about(&mut self, me: &ActorRef<JobsMsg>, event: JobsEvent, about: &mut About<'_>) {
        for effect in self.arguments.attachments.decide(event) {
            self.perform(me, effect, about).await;
        }
        self.arguments.board.note();
    }

    async fn perform(&mut self, me: &ActorRef<JobsMsg>, effect: JobsEffect, about: &mut About<'_>) {
        match effect {
            JobsEffect::Accept(ask) => self.ask_store(me, ask),
            JobsEffect::RefuseWithdrawn(ask) => {
                let detail = "the call was withdrawn before the consult was accepted.";
                self.answer(ask, Err(Fault::new(FaultCode::CallerLost, detail)));
            }
            // Answered by `stored`, which has the answer, when everything else is done.
            JobsEffect::Refuse(_) | JobsEffect::Answer(_) => {}
            JobsEffect::Attach(job) => {
                let record = about.record.filter(|record| record.id == job);
                match (record, about.runner.take().map(|runner| self.means(runner))) {
                    (Some(record), Some(means)) => self.arguments.attachments.attach(record, means, about.held.take()),
                    _ => tracing::error!(%job, "custody of a job could not be made"),
                }
            }
            JobsEffect::AttachByStore(job) => {
                let record = about.record.filter(|record| record.id == job);
                // Where nobody here has its environment, it is followed all the same, and started by nobody.
                let with = record.and_then(|record| self.runners.with(record.environment.as_deref()));
                let run_here = if with.is_some() { RunHere::Allowed } else { RunHere::Refused };
                let runner = with.map(|run_as| run_as.runner).or_else(|| self.runners.own().cloned());
                match (record, runner.map(|runner| self.means(runner))) {
                    (Some(record), Some(means)) => self.arguments.attachments.attach_by_store(record, means, run_here),
                    _ => tracing::error!(%job, "custody of an adopted job could not be made"),
                }
            }
            JobsEffect::AwaitCallers(job) => {
                let (grace, me) = (self.arguments.life.grace().unwrap_or_default(), me.clone());
                self.tasks.spawn(async move {
                    tokio::time::sleep(grace).await;
                    let _ = me.cast(JobsMsg::CallersDue(job));
                });
            }
            JobsEffect::Attend(job) => self.attend(me, ChildEvent::Wanted(job)).await,
            JobsEffect::HandOver(job) => {
                let store = self.arguments.store.clone();
                self.tasks.spawn(async move {
                    if let Err(error) = store.hand_over(job).await {
                        tracing::warn!(%error, "a joined job still depends on its first caller");
                    }
                });
            }
            JobsEffect::EndForLostCaller(job) => {
                if let Some(attachment) = self.arguments.attachments.get(job) {
                    self.tasks.spawn(end_for_lost_caller(self.arguments.store.clone(), attachment, job));
                }
            }
            JobsEffect::Terminate(job) => {
                if let Some(attachment) = self.arguments.attachments.get(job) {
                    attachment.terminate();
                }
            }
            JobsEffect::SetAside(job) => self.consults.set_aside(job).await,
            JobsEffect::Release(job) => {
                self.consults.forget(job);
                self.arguments.attachments.release(job);
            }
            JobsEffect::Still => {
                if let Some(told) = self.still.take() {
                    let _ = told.send(());
                }
            }
        }
    }

    fn answer(&mut self, ask: AskId, answer: Result<Accepted, Fault>) {
        if let Some(asking) = self.asking.remove(&ask) {
            // Who asked may have gone.
            let _ = asking.reply.send(answer);
        }
    }

    fn count(&self, record: &JobRecord) {
        let outcome = record.outcome.as_ref();
        self.arguments.telemetry.record(Record::JobState {
            job: record.id,
            state: record.state,
            code: outcome.and_then(|outcome| outcome.fault.as_ref()).map(|fault| fault.code),
            cost_usd: outcome.and_then(|outcome| outcome.cost_usd),
        });
    }

    /// Looks for jobs whose runner is gone, and does what is due once in a while.
    fn sweep(&mut self, me: ActorRef<JobsMsg>) {
        let (store, dir) = (self.arguments.store.clone(), self.arguments.dir.clone());
        let remnants = dir.clone();
        self.tasks.spawn(async move {
            let remove = move || (remnants.remove_remnants(), clear_hosts(&remnants));
            drop(tasks::spawn_blocking(remove).await);
        });
        if !dir.database().exists() {
            // No job was ever accepted here, so an idle host leaves the disk alone.
            return;
        }
        let prunes = self.sweeps.is_multiple_of(PRUNE_EVERY);
        self.sweeps += 1;
        let attached = self.arguments.attachments.all();
        // A runner without a pipe to us that stands still is ended as one of no host is.
        let with_pipes: HashSet<JobId> =
            attached.iter().filter(|(_, attachment)| !attachment.is_by_store()).map(|(job, _)| *job).collect();
        let mut ours: HashSet<JobId> = attached.into_iter().map(|(job, _)| job).collect();
        let (life, alone) = (self.arguments.life.clone(), Arc::clone(&self.alone));
        let present = self.runners.present();
        let overdue = Arc::clone(&self.overdue);
        let telemetry = self.arguments.telemetry.clone();
        self.tasks.spawn(async move {
            let environments = present.digests().await;
            match adopting::look(&store, &dir, &life, &ours, &environments, &alone).await {
                Ok(Looked { adopted, spared, others }) => {
                    ours.extend(adopted.iter().map(|record| record.id));
                    ours.extend(spared);
                    if others || !adopted.is_empty() {
                        let _ = me.cast(JobsMsg::Looked { adopted, others });
                    }
                }
                Err(error) => tracing::warn!(%error, "jobs of other hosts could not be looked at"),
            }
            if dir.hosts().exists() {
                clear_rows(&store, &dir).await;
            }
            overdue.look(&store, &dir, &with_pipes).await;
            keep_reserve(&dir).await;
            match sweep::sweep(&store, &dir, &ours, &environments).await {
                Ok(Swept { orphans, settled }) => {
                    // Nobody else is there to tell of their ends.
                    settled.into_iter().for_each(|job| telemetry.traces().tell(TraceFact::Job(job)));
                    for mut record in orphans {
                        let others = life.grace().is_some() && record.host.is_some_and(|host| host != life.host());
                        if !others || adopting::adopt(&store, &dir, &life, &mut record).await.is_some() {
                            let _ = me.cast(JobsMsg::Adopt(Box::new(record)));
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "the sweep did not finish"),
            }
            if prunes {
                prune(&store, &dir).await;
            }
        });
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
        if self.arguments.attachments.room().beginning() == Beginning::Refused {
            let fault = Fault::new(FaultCode::Stopping, "this daemon is ending and takes no new consult.");
            let _ = reply.send(Err(fault.hint("Ask again: the next connection leads to its successor.")));
            return;
        }
        if !self.runners.are_there() {
            let fault =
                Fault::new(FaultCode::RunnerSpawnFailed, "this system was built without a runner for consults.");
            let _ = reply.send(Err(fault));
            return;
        }
        let Some(run_as) = self.runners.of(job.invocation.map(|invocation| invocation.session)) else {
            let _ = reply.send(Err(session_over()));
            return;
        };
        job.account = run_as.runner.account(&job.request);
        job.environment = run_as.digest.as_deref().map(str::to_owned);
        job.host = self.arguments.life.hold();
        let brought = job.trace.take().and_then(|trace| trace.above());
        let host = self.arguments.life.host();
        job.trace = self.arguments.telemetry.traces().of_job(host, job.invocation, job.id, brought);
        let (ask, mode) = (self.arguments.attachments.next_ask(), job.mode);
        let invocation = job.invocation;
        self.asking.insert(ask, Asking { job: Some(job), invocation, run_as, again, reply });
        self.decide(me, JobsEvent::Asked { ask, caller, mode }).await;
    }

    fn ask_store(&mut self, me: &ActorRef<JobsMsg>, ask: AskId) {
        let Some(asking) = self.asking.get_mut(&ask) else { return };
        let again = asking.again;
        let Some(job) = asking.job.take() else { return };
        let runner = Arc::clone(&asking.run_as.runner);
        let (store, limits, me) = (self.arguments.store.clone(), self.arguments.limits, me.clone());
        let adopts = self.arguments.life.grace().map(|_| (self.arguments.dir.clone(), self.arguments.life.clone()));
        let leaving = self.arguments.attachments.room().leaving().clone();
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
            let (mut result, held) = match poll_immediate(&mut accepting).await {
                Some(result) => (result, None),
                None => {
                    let held = holder.and_then(|(runner, dir)| HeldRunner::start(&runner, &dir, job.id, leaving));
                    (accepting.await, held)
                }
            };
            let adopted = match (&mut result, adopts) {
                (Ok(Accept::Joined(record)), Some((dir, life))) => adopting::adopt(&store, &dir, &life, record).await,
                _ => None,
            };
            let _ = me.cast(JobsMsg::Stored { ask, held, adopted, result: Box::new(result.map_err(Fault::from)) });
        });
    }

    /// Whether another job would be run at once, as far as this host knows.
    fn has_room(&self) -> bool {
        let JobsArguments { runner, attachments, .. } = &self.arguments;
        let under_way = attachments.len() + self.asking.len();
        attachments.are_attended_to()
            && !attachments.room().is_used()
            && attachments.room().beginning() == Beginning::AsUsual
            && runner.as_ref().is_some_and(|runner| under_way <= runner.max_running())
    }

    async fn stored(
        &mut self,
        me: &ActorRef<JobsMsg>,
        ask: AskId,
        held: Option<HeldRunner>,
        adopted: Option<AtWork>,
        result: Result<Accept, Fault>,
    ) {
        let (record, joined) = match accepted(result) {
            Ok(accepted) => accepted,
            Err(fault) => {
                self.decide(me, JobsEvent::Stored { ask, found: None }).await;
                return self.answer(ask, Err(fault));
            }
        };
        // Before anybody has been told. What an error here tells is wrong, so the caller lets go of its job.
        let met = self.arguments.faults.meet(FaultPoint::JobsAfterAccept, Operation::Method("accept")).await;
        if !joined {
            self.count(&record);
        }
        if self.arguments.board.begin() {
            self.tasks.spawn(self.arguments.board.clone().keep());
        }
        let custodian = self.custodian(ask, &record, joined, adopted);
        let found = Found { job: record.id, mode: record.mode, state: record.state, custodian };
        let runner = self.asking.get(&ask).map(|asking| Arc::clone(&asking.run_as.runner));
        let mut about = About { record: Some(&record), runner, held };
        self.decide_about(me, JobsEvent::Stored { ask, found: Some(found) }, &mut about).await;
        match met {
            None => self.answer(ask, Ok(Accepted { record, joined })),
            Some(Broken::Error(fault)) => self.answer(ask, Err(*fault)),
            // Lost: whoever asked asks again, and joins.
            Some(_) => drop(self.asking.remove(&ask)),
        }
    }

    /// Who looks after a job that was accepted or joined, by the evidence there is.
    fn custodian(&self, ask: AskId, record: &JobRecord, joined: bool, adopted: Option<AtWork>) -> Custodian {
        if !joined {
            return Custodian::Inserted;
        }
        let asking = self.asking.get(&ask);
        // What cannot be compared is not the same.
        let has_its_environment = record.environment.is_some()
            && asking.is_some_and(|asking| record.environment.as_deref() == asking.run_as.digest.as_deref());
        match adopted {
            // Its host is gone for sure, so nobody is about to begin with it.
            Some(AtWork::Nobody) if has_its_environment => return Custodian::Orphan,
            Some(_) => return Custodian::Adopted,
            None => {}
        }
        // One of ours that was accepted just before an incarnation of ours ended has no runner yet.
        let Some(asking) = asking else { return Custodian::Somebody };
        let is_ours = |invocation: InvocationId| record.invocation.as_deref() == Some(&invocation.to_string());
        if record.state == JobState::Queued && asking.invocation.is_some_and(is_ours) {
            return Custodian::Unattended;
        }
        // A joined job that nobody runs (its host died between accepting and starting) is run by whoever asks for it.
        let unattached = self.arguments.attachments.get(record.id).is_none();
        let orphan = unattached
            && has_its_environment
            && sweep::is_orphan(&self.arguments.dir, &mut JobEvidence::new(&self.arguments.dir), record);
        match record.host {
            _ if orphan => Custodian::Orphan,
            // Accepted or adopted a moment ago.
            Some(host) if unattached && host == self.arguments.life.host() => Custodian::Here,
            _ => Custodian::Somebody,
        }
    }

    fn means(&self, runner: Arc<RunnerCommand>) -> Means {
        let JobsArguments { store, dir, .. } = &self.arguments;
        Means { store: store.clone(), dir: dir.clone(), runner }
    }

    /// Does what follows from an event about a job's consult actor.
    async fn attend(&mut self, me: &ActorRef<JobsMsg>, event: ChildEvent<JobId>) {
        let JobsArguments { attachments, faults, .. } = &self.arguments;
        let spawn = |job, _| spawn(job, attachments.get(job), faults.clone(), me.clone());
        for report in self.consults.handle(me, event, spawn).await {
            match report {
                // One that was lost too often lets go of its runner.
                ChildReport::LeftOut(job) | ChildReport::GaveUp(job) => {
                    let attachment = self.arguments.attachments.get(job);
                    let is_sync = |attachment: &Attachment| attachment.claim().0 == JobMode::Sync;
                    if let (Some(_), Some(attachment)) = (self.arguments.life.grace(), attachment.filter(is_sync)) {
                        // A runner that lives by our lock does not notice by its pipe.
                        self.tasks.spawn(end_for_lost_caller(self.arguments.store.clone(), attachment, job));
                    }
                    self.release(job);
                }
                ChildReport::NotStarted(..) => {}
            }
        }
    }

    /// A job is over, or in other hands.
    fn release(&mut self, job: JobId) {
        drop(self.arguments.attachments.decide(JobsEvent::Ended(job)));
        self.consults.forget(job);
        self.arguments.attachments.release(job);
        self.arguments.board.note();
    }
}

/// Starts the consult actor of a job that is attached.
async fn spawn(
    job: JobId,
    attachment: Option<Attachment>,
    faults: Faults,
    jobs: ActorRef<JobsMsg>,
) -> Result<Spawned, String> {
    let Some(attachment) = attachment else { return Ok(Spawned::NotNeeded) };
    let supervisor = jobs.get_cell();
    let arguments = ConsultArguments { job, custody: Arc::clone(attachment.custody()), jobs, faults };
    Spawned::up(Consult::spawn_linked(None, Consult, arguments, supervisor).await)
}

/// The job the store has accepted, and whether it was there before.
fn accepted(result: Result<Accept, Fault>) -> Result<(JobRecord, bool), Fault> {
    match result? {
        Accept::Inserted(record) => Ok((record, false)),
        Accept::Joined(record) => Ok((record, true)),
        Accept::Conflict { job } => {
            let detail = format!("`request_key` was used in this workspace with other arguments, by job {job}.");
            Err(Fault::new(FaultCode::RequestKeyConflict, detail)
                .hint("Use another key for another request, or read that job with consult_job."))
        }
        Accept::Limited(limit) => Err(limit.fault(UnixMillis::now())),
        Accept::QueueFull { queued } => {
            Err(Fault::new(FaultCode::QueueFull, format!("{queued} jobs are waiting already."))
                .hint("Wait for one of them, or cancel one with consult_cancel."))
        }
    }
}
