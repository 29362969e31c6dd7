//! The actor of a host's part in a fleet: its lease, the jobs it claims, and how they end.
//!
//! Owns: what is asked of the fleet and of this machine's store, as tasks that come back as messages. [`HostCore`](core::HostCore)
//! decides, this performs. May not know: how a run is made, SQL, MCP, who waits for a job.
//!
//! There is one only where a fleet is configured. It is restarted alone: a claimed job is one of this machine's store, so neither a
//! crash here nor the database's absence costs a run, and what the fleet was not told is read from the store.

mod core;
mod questions;
mod sites;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use self::core::{HostCore, HostEffect, HostEvent};
use self::questions::{Question, pause_of};
use self::sites::look_at_sites;
use super::child;
use super::clock;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{FleetJobId, HostId, UnixMillis};
use crate::base::tasks::TaskSet;
use crate::failpoints::{Broken, FaultPoint, Faults, Operation};
use crate::fleet::{
    ClaimAsk, ClaimedJob, Fleet, FleetClaim, FleetError, FleetRenewed, FleetState, POLL, Renewal, RunFinish, Ticket,
};
use crate::jobs::client::{JobsHandle, News};
use crate::jobs::fleet_runs::{FleetRun, local};
use crate::jobs::store::{StoreError, StoreHandle};
use crate::jobs::{JobOutcome, JobRecord};
use crate::tools::consult::Consults;
use crate::tools::placed::{self, FleetDesk};

/// What it is started with.
#[derive(Clone)]
pub struct FleetArguments {
    /// This host's side of the fleet.
    pub desk: FleetDesk,
    /// By which what is claimed is checked like what a client asks for.
    pub consults: Consults,
    /// The jobs of this machine.
    pub jobs: JobsHandle,
    /// The truth about them.
    pub store: StoreHandle,
    /// How many may run here at once.
    pub max_running: usize,
    /// What is to break at `fleet.ask` and `fleet.answered`.
    pub faults: Faults,
}

/// Everything that can wake it.
pub struct FleetMsg(Heard);

enum Heard {
    /// Something happened.
    Happened(HostEvent),
    /// What was to ask or to wait has panicked, and nothing will come of it.
    Broke,
}

impl From<HostEvent> for FleetMsg {
    fn from(event: HostEvent) -> Self {
        Self(Heard::Happened(event))
    }
}

/// Nobody knows what was done: another incarnation begins by what the store and the fleet say.
#[derive(Debug, thiserror::Error)]
#[error("a question of this host panicked")]
struct QuestionPanicked;

/// The actor.
pub(super) struct Hosting;

/// Its state.
pub(super) struct HostingState {
    arguments: FleetArguments,
    core: HostCore,
    tasks: TaskSet<()>,
    /// Wakes it when something is due.
    timer: TaskSet<()>,
}

#[cfg_attr(feature = "ractor-async-trait", ractor::async_trait)]
impl Actor for Hosting {
    type Msg = FleetMsg;
    type State = HostingState;
    type Arguments = FleetArguments;

    async fn pre_start(&self, me: ActorRef<Self::Msg>, a: FleetArguments) -> Result<HostingState, ActorProcessingErr> {
        a.desk.begin_anew();
        let mut tasks = TaskSet::new();
        tasks.spawn(listen(Arc::clone(a.desk.fleet()), me.clone()));
        tasks.spawn(look_at_sites(a.desk.clone()));
        me.cast(HostEvent::Due.into())?;
        // Another one for each incarnation: what the last one claimed and did not come to is for others.
        let core = HostCore::new(HostId::random(), clock::now());
        Ok(HostingState { arguments: a, core, tasks, timer: TaskSet::new() })
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        FleetMsg(heard): FleetMsg,
        state: &mut HostingState,
    ) -> Result<(), ActorProcessingErr> {
        let Heard::Happened(event) = heard else { return Err(QuestionPanicked.into()) };
        child::in_time(async { state.act(&me, event) }).await?;
        Ok(())
    }
}

/// Hears that something may have changed, for as long as the actor lives.
async fn listen(fleet: Arc<dyn Fleet>, me: ActorRef<FleetMsg>) {
    loop {
        if let Ok(mut changes) = fleet.changes().await {
            while changes.changed().await.is_ok() {
                if me.cast(HostEvent::Rang.into()).is_err() {
                    return;
                }
            }
        }
        // The database is away; everything is looked at by the clock meanwhile.
        tokio::time::sleep(POLL).await;
    }
}

impl HostingState {
    fn act(&mut self, me: &ActorRef<FleetMsg>, event: HostEvent) {
        let (now, was_reached) = (clock::now(), self.core.is_reached());
        let mut effects = Vec::new();
        self.core.step(event, now, &mut effects);
        match (was_reached, self.core.is_reached()) {
            (true, false) => tracing::warn!("the fleet's queue does not answer; this machine's own consults go on"),
            (false, true) => tracing::info!("the fleet's queue answers again"),
            _ => {}
        }
        for effect in effects {
            self.perform(me, effect);
        }
        while self.tasks.try_join_next().is_some() {}
        let (due, me) = (tokio::time::Instant::from_std(self.core.due()), me.clone());
        self.timer = TaskSet::new();
        self.timer.spawn(async move {
            tokio::time::sleep_until(due).await;
            let _ = me.cast(HostEvent::Due.into());
        });
    }

    fn perform(&mut self, me: &ActorRef<FleetMsg>, effect: HostEffect) {
        let (a, me) = (self.arguments.clone(), me.clone());
        self.tasks.spawn(async move {
            let heard = match AssertUnwindSafe(a.come_to(effect)).catch_unwind().await {
                Ok(Some(event)) => Heard::Happened(event),
                Ok(None) => return,
                Err(_) => Heard::Broke,
            };
            let _ = me.cast(FleetMsg(heard));
        });
    }
}

impl FleetArguments {
    /// Performs an effect between its fault points; what came of it.
    async fn come_to(&self, effect: HostEffect) -> Option<HostEvent> {
        let Some(question) = Question::of(&effect, clock::now()) else { return self.do_it(effect).await };
        if let Some(detail) = self.broken(FaultPoint::FleetAsk, question).await {
            return question.failed(FleetError::Unavailable { detail });
        }
        let event = self.do_it(effect).await;
        match self.broken(FaultPoint::FleetAnswered, question).await {
            Some(detail) => question.failed(FleetError::Unsure { detail }),
            None => event,
        }
    }

    /// Meets a point; why the question fails there, if it does.
    async fn broken(&self, point: FaultPoint, question: Question) -> Option<String> {
        match self.faults.meet(point, Operation::Method(question.name())).await {
            Some(Broken::Error(fault)) => Some(fault.detail),
            _ => None,
        }
    }

    /// Performs an effect; what came of it.
    async fn do_it(&self, effect: HostEffect) -> Option<HostEvent> {
        let fleet = self.desk.fleet();
        Some(match effect {
            HostEffect::Renew { host, running } => {
                let asked = clock::now();
                HostEvent::Renewed { host, asked, answer: self.renew(host, running).await }
            }
            HostEffect::Claim { host, on_their_way } => HostEvent::Claimed(self.claim(host, on_their_way).await),
            HostEffect::Note(run) => {
                HostEvent::Noted { job: run.job, noted: self.store.note_fleet_run(run).await.is_ok() }
            }
            HostEffect::Prepare(claimed) => {
                let answer = placed::prepare(&self.consults, &self.desk, &claimed).await;
                HostEvent::Prepared { job: claimed.ticket.job, answer }
            }
            HostEffect::Start(ticket) => HostEvent::Started { job: ticket.job, answer: fleet.start(ticket).await },
            HostEffect::Accept(claimed) => {
                HostEvent::Accepted { job: claimed.ticket.job, answer: self.accept(&claimed).await }
            }
            HostEffect::Follow(job) => HostEvent::Over { job, record: self.over(job).await },
            HostEffect::Tell { ticket, end, outcome, account } => {
                HostEvent::Told { job: ticket.job, told: self.tell(ticket, end, *outcome, &account).await }
            }
            HostEffect::Forget(job) => {
                self.desk.remove_clone(local(job)).await;
                if let Err(error) = self.store.forget_fleet_run(job).await {
                    tracing::debug!(%error, "a claim stays noted, and is told once more");
                }
                return None;
            }
            HostEffect::Look(job) => {
                let view = fleet.wait(job, Duration::ZERO).await;
                let cancel = matches!(view, Ok(Some(view)) if view.cancel_requested && !view.state.is_terminal());
                HostEvent::Looked { job, cancel }
            }
            HostEffect::Cancel(job) => {
                if let Err(fault) = self.jobs.cancel(local(job)).await {
                    tracing::warn!(%fault, "a job of the fleet could not be cancelled");
                }
                return None;
            }
            HostEffect::Sweep => {
                match fleet.sweep().await {
                    Ok(swept) => {
                        let (requeued, interrupted) = (swept.requeued.len(), swept.interrupted.len());
                        if requeued + interrupted > 0 {
                            tracing::info!(requeued, interrupted, "jobs of hosts that are gone were taken from them");
                        }
                    }
                    Err(error) => tracing::debug!(%error, "the fleet was not swept"),
                }
                HostEvent::Swept
            }
            HostEffect::Read => {
                self.desk.sweep_clones(&self.store).await;
                HostEvent::Read(self.read().await)
            }
        })
    }

    async fn renew(&self, host: HostId, running: Vec<Ticket>) -> Result<FleetRenewed, FleetError> {
        let said = self.desk.said(self.max_running).await?;
        let renewal = Renewal { host, name: said.name, state_id: said.state_id, labels: said.labels, running };
        self.desk.fleet().renew(&renewal).await
    }

    async fn claim(&self, host: HostId, on_their_way: usize) -> Result<FleetClaim, FleetError> {
        let busy = match self.store.counts().await {
            Ok(counts) => usize::try_from(counts.queued + counts.running).unwrap_or(usize::MAX),
            // A machine whose store does not answer takes nothing.
            Err(_) => usize::MAX,
        };
        let most = self.max_running.saturating_sub(busy).saturating_sub(on_their_way);
        if most == 0 {
            return Ok(FleetClaim::Claimed(Vec::new()));
        }
        let ask = ClaimAsk { host, most, accepts: self.desk.accepts().to_vec() };
        self.desk.fleet().claim(&ask).await
    }

    /// Makes a claimed job one of this machine's store, which runs it.
    async fn accept(&self, claimed: &ClaimedJob) -> Result<(), Fault> {
        let job = placed::own_job(&self.consults, &self.desk, claimed).await?;
        self.jobs.accept(job, None).await.map(drop)
    }

    /// Waits until a job of this machine is over.
    async fn over(&self, job: FleetJobId) -> Box<JobRecord> {
        loop {
            if let Ok(mut follow) = self.jobs.follow(local(job)).await {
                while let Ok(news) = follow.next().await {
                    // What is not stored yet is told when it is: whoever tells it next reads it there.
                    if let News::Finished(record) = news {
                        self.desk.remove_clone(local(job)).await;
                        return Box::new(JobRecord::clone(&record));
                    }
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn tell(&self, ticket: Ticket, end: FleetState, outcome: JobOutcome, account: &str) -> bool {
        let pause = pause_of(&outcome, account, UnixMillis::now());
        let finish = RunFinish { ticket, end, outcome, pause };
        match self.desk.fleet().finish(&finish).await {
            Ok(_) => true,
            Err(FleetError::Bad(bad)) => {
                // It will not get better: what is said instead is that it could not be said.
                tracing::warn!(%bad, job = %ticket.job, "an outcome does not fit into the fleet");
                let fault = Fault::new(FaultCode::Internal, format!("the answer could not be passed on: {bad}."));
                let outcome = JobOutcome { fault: Some(fault), ..JobOutcome::default() };
                let finish = RunFinish { ticket, end: FleetState::Failed, outcome, pause: None };
                self.desk.fleet().finish(&finish).await.is_ok()
            }
            Err(error) => {
                tracing::debug!(%error, "an outcome is told to the fleet later");
                false
            }
        }
    }

    /// The claims the store has, each with its job.
    async fn read(&self) -> Vec<(FleetRun, Option<Box<JobRecord>>)> {
        let mut read = Vec::new();
        for run in self.store.fleet_runs().await.unwrap_or_default() {
            match self.store.job(local(run.job)).await {
                Ok(record) => read.push((run, Some(Box::new(record)))),
                Err(StoreError::UnknownJob(_)) => {
                    if self.is_nobodys(run).await {
                        let _ = self.store.forget_fleet_run(run.job).await;
                    }
                    read.push((run, None));
                }
                Err(error) => tracing::debug!(%error, "a job of the fleet could not be read"),
            }
        }
        read
    }

    /// Whether a claim that came to nothing here is over for the fleet as well.
    async fn is_nobodys(&self, run: FleetRun) -> bool {
        match self.desk.fleet().wait(run.job, Duration::ZERO).await {
            Ok(Some(view)) => view.state.is_terminal() || view.host != Some(run.host),
            Ok(None) => true,
            Err(_) => false,
        }
    }
}
