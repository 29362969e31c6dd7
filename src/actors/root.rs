//! The root of the tree: starts everything in order, ends everything in the reverse order, under one deadline.
//!
//! Owns: the children and their order. May not know: what any of them does. When a child that has no restart of its own
//! fails, the root gives up in order: accepted jobs are durable and go on without it.
//!
//! Start: telemetry, jobs, workers, sessions. The store's thread starts with its first verb and is closed last.

use std::path::PathBuf;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::watch;

use super::child::{Child, Stopped};
use super::current::Naming;
use super::jobs::{Jobs, JobsArguments, JobsMsg};
use super::sessions::{Sessions, SessionsArguments, SessionsMsg};
use super::telemetry::{Telemetry, TelemetryArguments, TelemetryMsg};
use super::workers::reason;
use super::workers::{Workers, WorkersArguments, WorkersMsg};
use crate::fault::{Fault, FaultCode};
use crate::store::StoreHandle;
use crate::telemetry::TelemetryHandle;

/// Longest a child may take to start; each builds a struct.
const START_LIMIT: Duration = Duration::from_secs(2);

/// What each child may take to stop. The sum is the bound of an ordered stop.
const STOP_SESSIONS: Duration = Duration::from_millis(2500);
const STOP_WORKERS: Duration = Duration::from_millis(600);
const STOP_JOBS: Duration = Duration::from_millis(2500);
const STOP_TELEMETRY: Duration = Duration::from_millis(500);
const CLOSE_STORE: Duration = Duration::from_millis(1000);

/// The root actor.
pub struct Root;

/// What it is started with.
pub struct RootArguments {
    /// The workers' supervisor is started with this.
    pub workers: WorkersArguments,
    /// The job store.
    pub store: StoreHandle,
    /// The jobs' supervisor is started with this.
    pub jobs: JobsArguments,
    /// Who counts.
    pub telemetry: TelemetryHandle,
    /// Where they are written; `None` counts only.
    pub log: Option<PathBuf>,
    /// The sessions' supervisor is started with this.
    pub sessions: SessionsArguments,
    /// How the others are reached.
    pub names: Names,
    /// Told when the tree is down, and why.
    pub down: watch::Sender<Option<Down>>,
}

/// Names the current incarnation of each part others speak to.
#[derive(Default)]
pub struct Names {
    /// Connections.
    pub sessions: Naming<SessionsMsg>,
    /// Jobs.
    pub jobs: Naming<JobsMsg>,
    /// Workers.
    pub workers: Naming<WorkersMsg>,
}

/// Why the tree is down.
#[derive(Debug, Clone)]
pub enum Down {
    /// It was told to stop.
    Stopped,
    /// One of its parts failed.
    Failed(Fault),
}

/// Nothing: the root is told to stop by its stop port, which overtakes every message.
pub enum RootMsg {}

/// The root's state.
pub struct RootState {
    telemetry: Child<TelemetryMsg>,
    jobs: Child<JobsMsg>,
    workers: Child<WorkersMsg>,
    sessions: Child<SessionsMsg>,
    _names: Names,
    store: StoreHandle,
    down: watch::Sender<Option<Down>>,
    why: Option<Fault>,
}

async fn started<M: ractor::Message>(
    spawn: impl Future<Output = Result<(ActorRef<M>, ractor::concurrency::JoinHandle<()>), SpawnErr>>,
) -> Result<Child<M>, ActorProcessingErr> {
    match tokio::time::timeout(START_LIMIT, spawn).await {
        Ok(Ok((actor, _))) => Ok(Child::new(actor)),
        Ok(Err(error)) => Err(error.into()),
        Err(late) => Err(late.into()),
    }
}

impl Actor for Root {
    type Msg = RootMsg;
    type State = RootState;
    type Arguments = RootArguments;

    async fn pre_start(&self, me: ActorRef<Self::Msg>, a: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        let cell = || me.get_cell();
        let telemetry = TelemetryArguments { telemetry: a.telemetry.clone(), log: a.log };
        let telemetry = started(Telemetry::spawn_linked(None, Telemetry, telemetry, cell())).await?;
        let jobs = started(Jobs::spawn_linked(None, Jobs, a.jobs, cell())).await?;
        let workers = started(Workers::spawn_linked(None, Workers, a.workers, cell())).await?;
        a.names.jobs.set(jobs.actor());
        a.names.workers.set(workers.actor());
        let sessions = started(Sessions::spawn_linked(None, Sessions, a.sessions, cell())).await?;
        a.names.sessions.set(sessions.actor());
        Ok(RootState { telemetry, jobs, workers, sessions, _names: a.names, store: a.store, down: a.down, why: None })
    }

    async fn handle(
        &self,
        _me: ActorRef<Self::Msg>,
        message: Self::Msg,
        _state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {}
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let (cell, error) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell, reason(&error)),
            SupervisionEvent::ActorTerminated(cell, _, reason) => (cell, reason.unwrap_or_else(|| "ended".to_owned())),
            _ => return Ok(()),
        };
        let id = cell.get_id();
        let part = if id == state.telemetry.id() {
            // Nobody waits for it, and losing it changes nothing else.
            tracing::error!(error, "telemetry is gone");
            return Ok(());
        } else if id == state.jobs.id() {
            "jobs"
        } else if id == state.workers.id() {
            "workers"
        } else if id == state.sessions.id() {
            "sessions"
        } else {
            return Ok(());
        };
        tracing::error!(part, error, "a part of the tree failed; stopping in order");
        state.why.get_or_insert_with(|| {
            Fault::new(FaultCode::Internal, format!("the part {part} failed: {error}."))
                .hint("Accepted jobs are kept; start again and read them with consult_job.")
        });
        me.stop(None);
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: RootStateRef<'_>) -> Result<(), ActorProcessingErr> {
        // Reverse of the start: no new work comes in, what is open is answered or withdrawn, jobs are let go, and
        // telemetry sees all of it.
        let ends = [
            ("sessions", stop(&state.sessions, STOP_SESSIONS).await),
            ("workers", stop(&state.workers, STOP_WORKERS).await),
            ("jobs", stop(&state.jobs, STOP_JOBS).await),
            ("telemetry", stop(&state.telemetry, STOP_TELEMETRY).await),
        ];
        for (part, end) in ends {
            if end != Stopped::InTime {
                tracing::warn!(part, ?end, "a part of the tree did not stop in time");
            }
        }
        let _ = tokio::time::timeout(CLOSE_STORE, state.store.close()).await;
        let down = state.why.take().map_or(Down::Stopped, Down::Failed);
        let _ = state.down.send(Some(down));
        Ok(())
    }
}

type RootStateRef<'a> = &'a mut RootState;

async fn stop<M: ractor::Message>(child: &Child<M>, limit: Duration) -> Stopped {
    Child::new(child.actor().clone()).stop(limit).await
}
