//! The root of the tree: starts its parts in order, restarts what fails together with what depends on it, ends everything
//! in the reverse order under one deadline.
//!
//! Owns: the parts and their order ([`ChildTable`], rest for one), how each is started ([`PARTS`]). May not know: what any
//! of them does. What must survive a part (connections, the custody of runners, generations, the intake of telemetry)
//! belongs to the system and is lent to the parts, so a restart costs what the table in docs/failures.md says and nothing
//! else.
//!
//! Nobody depends on the exporter, on telemetry, on rollouts or on connections to exec servers; those are started when the first is wanted, and a fleet's where one is
//! configured. The store's thread starts with its first verb and is closed last; a panic
//! there costs the verb it happened in.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use ractor::concurrency::JoinHandle;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, Message, SpawnErr, SupervisionEvent};
use tokio::sync::watch;

use super::connections::Connections;
use super::current::Naming;
use super::doors::messages::DoorsMsg;
use super::doors::{Doors, DoorsArguments};
use super::exec::links::ExecLinks;
use super::exec::{ExecMsg, Execs};
use super::exporter::ExporterArguments;
use super::fleet::{FleetArguments, Hosting};
use super::jobs::messages::JobsMsg;
use super::jobs::{Jobs, JobsArguments};
use super::kept::Kept;
use super::pump::Pump;
use super::rollout::{RolloutArguments, RolloutMsg, Rollouts};
use super::sessions::messages::{SessionEnd, SessionsMsg};
use super::sessions::{Sessions, SessionsArguments};
use super::supervision::driver::{ChildDriver, ChildNews, ChildReport, Spawned};
use super::supervision::slot::RestartPolicy;
use super::supervision::table::{Begin, ChildId, ChildTable, OnGiveUp, Others, TableEntry};
use super::supervision::{ChildEvent, ChildSpec, RestartType, Strategy};
use super::telemetry::TelemetryArguments;
use super::workers::messages::WorkersMsg;
use super::workers::{Workers, WorkersArguments};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::Generation;
use crate::failpoints::Faults;
use crate::jobs::store::StoreHandle;
use crate::telemetry::counters::Counters;
use crate::telemetry::{Record, TelemetryHandle};

/// Longest a part may take to start; each builds a struct.
const START_LIMIT: Duration = Duration::from_secs(2);

/// How long the store may take to close. With what each part may take to stop it is the bound of an ordered stop.
const CLOSE_STORE: Duration = Duration::from_millis(1000);

/// Upper levels of a tree restart little, because their limits multiply those below: a part that fails a fourth time in a
/// minute does not get well by being started again.
const RESTARTS: RestartPolicy = RestartPolicy {
    intensity: 3,
    period: Duration::from_secs(60),
    backoff: Duration::from_millis(50),
    backoff_most: Duration::from_secs(2),
    settled_after: Duration::from_secs(10),
};

/// Starts a part; the root supervises it.
type StartPart = fn(&RootArguments, ActorCell) -> BoxFuture<'_, Result<Spawned, String>>;

/// A part of the tree.
struct Part {
    entry: TableEntry,
    start: StartPart,
}

const fn part(name: &'static str, shutdown_ms: u64, start: StartPart) -> Part {
    let shutdown = Duration::from_millis(shutdown_ms);
    let child = ChildSpec { name, restart: RestartType::Permanent, policy: RESTARTS, shutdown };
    let (others, on_give_up) = (Others::DependOnIt, OnGiveUp::Escalate);
    Part { entry: TableEntry { child, others, on_give_up, begin: Begin::AtStart }, start }
}

/// A part nobody depends on.
const fn aside(mut part: Part) -> Part {
    part.entry.others = Others::Independent;
    part.entry.on_give_up = OnGiveUp::LeaveOut;
    part
}

/// A part that is started when it is wanted.
const fn later(mut part: Part) -> Part {
    part.entry.begin = Begin::WhenWanted;
    part
}

/// The parts, in the order of start.
const PARTS: [Part; 9] = [
    later(aside(part("exporter", 1000, |a, root| Box::pin(exporter(a, root))))),
    aside(part("telemetry", 500, |a, root| Box::pin(telemetry(a, root)))),
    part("jobs", 2500, |a, root| Box::pin(jobs(a, root))),
    part("workers", 600, |a, root| Box::pin(workers(a, root))),
    aside(part("rollout", 300, |a, root| Box::pin(rollout(a, root)))),
    later(aside(part("exec", 500, |a, root| Box::pin(exec(a, root))))),
    later(aside(part("fleet", 300, |a, root| Box::pin(fleet(a, root))))),
    part("sessions", 2500, |a, root| Box::pin(sessions(a, root))),
    part("doors", 500, |a, root| Box::pin(doors(a, root))),
];

/// What carries traces and metrics to a collector. It is stopped last, and so sees what the others told at their end.
const EXPORTER: ChildId = ChildId(0);

/// The first of those that there always are.
const FIRST: ChildId = ChildId(1);

/// The one that serves the connections.
const SESSIONS: ChildId = ChildId(PARTS.len() - 2);

/// The one that works for connections to exec servers.
const EXEC: ChildId = ChildId(PARTS.len() - 4);

/// This host's part in a fleet.
const FLEET: ChildId = ChildId(PARTS.len() - 3);

async fn exporter(a: &RootArguments, root: ActorCell) -> Result<Spawned, String> {
    let Some(arguments) = a.exporter.clone() else { return Ok(Spawned::NotNeeded) };
    Spawned::up(Pump::spawn_linked(None, Pump::new(), arguments, root).await)
}

async fn telemetry(a: &RootArguments, root: ActorCell) -> Result<Spawned, String> {
    let arguments = TelemetryArguments {
        telemetry: a.telemetry.clone(),
        counters: Arc::clone(&a.counters),
        log: a.log.clone(),
        faults: a.faults.clone(),
    };
    Spawned::up(Pump::spawn_linked(None, Pump::new(), arguments, root).await)
}

async fn jobs(a: &RootArguments, root: ActorCell) -> Result<Spawned, String> {
    let started = Jobs::spawn_linked(None, Jobs, a.jobs.clone(), root).await;
    Spawned::up(named(&a.names.jobs, started))
}

async fn workers(a: &RootArguments, root: ActorCell) -> Result<Spawned, String> {
    let started = Workers::spawn_linked(None, Workers, a.workers.clone(), root).await;
    Spawned::up(named(&a.names.workers, started))
}

async fn rollout(a: &RootArguments, root: ActorCell) -> Result<Spawned, String> {
    let started = Rollouts::spawn_linked(None, Rollouts, a.rollout.clone(), root).await;
    Spawned::up(named(&a.names.rollout, started))
}

async fn exec(a: &RootArguments, root: ActorCell) -> Result<Spawned, String> {
    let started = Execs::spawn_linked(None, Execs, a.exec.clone(), root).await;
    Spawned::up(named(&a.names.exec, started))
}

async fn fleet(a: &RootArguments, root: ActorCell) -> Result<Spawned, String> {
    let Some(arguments) = a.fleet.clone() else { return Ok(Spawned::NotNeeded) };
    Spawned::up(Hosting::spawn_linked(None, Hosting, arguments, root).await)
}

async fn sessions(a: &RootArguments, root: ActorCell) -> Result<Spawned, String> {
    let started = Sessions::spawn_linked(None, Sessions, a.sessions.clone(), root).await;
    Spawned::up(named(&a.names.sessions, started))
}

async fn doors(a: &RootArguments, root: ActorCell) -> Result<Spawned, String> {
    let started = Doors::spawn_linked(None, Doors, a.doors.clone(), root).await;
    Spawned::up(named(&a.names.doors, started))
}

/// Lets others reach the incarnation that was started.
fn named<M: Message>(naming: &Naming<M>, started: Started<M>) -> Started<M> {
    started.inspect(|(actor, _)| naming.set(actor))
}

/// An actor that was started, and its task.
type Started<M> = Result<(ActorRef<M>, JoinHandle<()>), SpawnErr>;

/// The root actor.
pub struct Root;

/// What it is started with.
pub struct RootArguments {
    /// What was counted so far; it outlives telemetry.
    pub counters: Arc<Kept<Counters>>,
    /// The job store.
    pub store: StoreHandle,
    /// The connections, which outlive every part.
    pub connections: Connections,
    /// The jobs' supervisor is started with this.
    pub jobs: JobsArguments,
    /// The workers' supervisor is started with this.
    pub workers: WorkersArguments,
    /// The rollouts' actor is started with this.
    pub rollout: RolloutArguments,
    /// The sessions' supervisor is started with this.
    pub sessions: SessionsArguments,
    /// The doors' supervisor is started with this.
    pub doors: DoorsArguments,
    /// Connections to exec servers, which outlive every part.
    pub exec: ExecLinks,
    /// This host's part in a fleet, where one is configured.
    pub fleet: Option<FleetArguments>,
    /// What carries traces and metrics to a collector, where one is configured.
    pub exporter: Option<ExporterArguments>,
    /// Telemetry.
    pub telemetry: TelemetryHandle,
    /// Where they are written; `None` counts only.
    pub log: Option<PathBuf>,
    /// How the parts are reached.
    pub names: Names,
    /// Fault plan.
    pub faults: Faults,
    /// Told when the tree is down, and why.
    pub down: watch::Sender<Option<Down>>,
}

/// Names the current incarnation of each part others speak to.
#[derive(Default)]
pub struct Names {
    /// Connections.
    pub sessions: Naming<SessionsMsg>,
    /// Doors.
    pub doors: Naming<DoorsMsg>,
    /// Jobs.
    pub jobs: Naming<JobsMsg>,
    /// Workers.
    pub workers: Naming<WorkersMsg>,
    /// Rollouts.
    pub rollout: Naming<RolloutMsg>,
    /// Connections to exec servers.
    pub exec: Naming<ExecMsg>,
    /// The root itself.
    pub root: Naming<RootMsg>,
}

/// Why the tree is down.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Down {
    /// It was told to stop.
    Stopped,
    /// One of its parts failed.
    Failed(Fault),
}

/// What wakes the root. It is told to stop by its stop port, which overtakes every message.
#[derive(Debug)]
pub enum RootMsg {
    /// News of a part.
    Part(ChildNews<ChildId>),
    /// A connection to an exec server is wanted, and nobody was there to work for it.
    ExecWanted,
}

/// The root's state.
pub struct RootState {
    a: Box<RootArguments>,
    parts: ChildDriver<ChildTable, RootMsg>,
    why: Option<Fault>,
}

#[cfg_attr(feature = "ractor-async-trait", ractor::async_trait)]
impl Actor for Root {
    type Msg = RootMsg;
    type State = RootState;
    type Arguments = Box<RootArguments>;

    async fn pre_start(&self, me: ActorRef<Self::Msg>, a: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        let table = ChildTable::new(Strategy::RestForOne, PARTS.map(|part| part.entry));
        a.names.root.set(&me);
        let mut state = RootState { a, parts: ChildDriver::new(table, RootMsg::Part), why: None };
        if state.a.exporter.is_some() {
            state.handle(&me, ChildEvent::Wanted(EXPORTER)).await;
        }
        state.handle(&me, ChildEvent::Wanted(FIRST)).await;
        if state.a.fleet.is_some() {
            state.handle(&me, ChildEvent::Wanted(FLEET)).await;
        }
        if let Some(missing) = state.parts.children().missing() {
            return Err(format!("the part {} did not start", PARTS[missing.0].entry.child.name).into());
        }
        Ok(state)
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let news = match message {
            RootMsg::Part(news) => news,
            RootMsg::ExecWanted => {
                state.exec_wanted(&me).await;
                return Ok(());
            }
        };
        if let (ChildNews::Joined(id, generation), Some(why)) = (news, state.parts.why(&news)) {
            state.lost(id, generation, why);
        }
        let event = state.parts.event(news);
        state.handle(&me, event).await;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _me: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        state.parts.note(&event);
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        // Reverse of the start: no new work comes in, what is open is answered or withdrawn, jobs are let go, and
        // telemetry sees all of it.
        let limit = PARTS[SESSIONS.0].entry.child.shutdown;
        state.a.connections.close();
        if !state.parts.children().is_up(SESSIONS) {
            state.a.connections.end_all(limit).await;
        }
        state.parts.stop().await;
        state.a.exec.give_up_all();
        // Those whose session was lost in the very moment of the stop.
        state.a.connections.end_all(limit).await;
        let _ = tokio::time::timeout(CLOSE_STORE, state.a.store.close()).await;
        let why = state.why.take();
        let _ = state.a.down.send(Some(why.clone().map_or(Down::Stopped, Down::Failed)));
        // A supervisor of the embedding program's own is told by this how it ended.
        why.map_or(Ok(()), |fault| Err(fault.into()))
    }
}

impl Drop for RootState {
    fn drop(&mut self) {
        if self.a.down.borrow().is_some() {
            return;
        }
        // It was killed, by its owner or with a supervisor it was linked to, and every part with it. What the parts were lent is
        // let go of: clients hear the end of their streams, runners that of their pipes.
        self.a.connections.close();
        for number in self.a.connections.numbers() {
            self.a.connections.over(number, SessionEnd::Failed);
        }
        self.a.doors.doors.abandon();
        self.a.exec.give_up_all();
        self.a.jobs.life.end();
        for (job, _) in self.a.jobs.attachments.all() {
            self.a.jobs.attachments.release(job);
        }
        self.a.store.abandon();
    }
}

/// Starts a part.
async fn start(a: &RootArguments, root: ActorCell, id: ChildId) -> Result<Spawned, String> {
    let started = tokio::time::timeout(START_LIMIT, (PARTS[id.0].start)(a, root)).await;
    started.unwrap_or_else(|_| Err("it did not start in time".to_owned()))
}

impl RootState {
    /// A part failed, or could not be started.
    fn lost(&self, id: ChildId, generation: Generation, why: &str) {
        let name = PARTS[id.0].entry.child.name;
        tracing::error!(part = name, %generation, why, "a part of the tree failed");
        let fault = Fault::new(FaultCode::Internal, format!("the part {name} failed: {why}."));
        self.a.telemetry.record(Record::Fault(Box::new(fault)));
    }

    /// Has somebody work for the connections to exec servers.
    async fn exec_wanted(&mut self, me: &ActorRef<RootMsg>) {
        self.handle(me, ChildEvent::Wanted(EXEC)).await;
        // It may have been starting when the connection was wanted. One that was left out works for nobody any more.
        if self.a.names.exec.current().cast(ExecMsg::Look).is_err() {
            self.a.exec.give_up_all();
        }
    }

    /// Does what follows from an event.
    async fn handle(&mut self, me: &ActorRef<RootMsg>, event: ChildEvent<ChildId>) {
        let Self { a, parts, .. } = self;
        for report in parts.handle(me, event, |id, _| start(a, me.get_cell(), id)).await {
            match report {
                ChildReport::NotStarted(id, generation, why) => self.lost(id, generation, &why),
                ChildReport::LeftOut(id) => {
                    let name = PARTS[id.0].entry.child.name;
                    tracing::error!(part = name, "a part failed too often and is left out");
                }
                ChildReport::GaveUp(id) => {
                    let name = PARTS[id.0].entry.child.name;
                    tracing::error!(part = name, "a part failed too often; stopping in order");
                    self.why.get_or_insert_with(|| {
                        Fault::new(FaultCode::Internal, format!("the part {name} failed too often."))
                            .hint("Accepted jobs are kept; start again and read them with consult_job.")
                    });
                    me.stop(None);
                }
            }
        }
    }
}
