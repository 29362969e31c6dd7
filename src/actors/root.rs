//! The root of the tree: starts its parts in order, restarts what fails together with what depends on it, ends everything
//! in the reverse order under one deadline.
//!
//! Owns: the parts and their order ([`Family`], rest for one). May not know: what any of them does. What must survive a
//! part (connections, the custody of runners, generations, the intake of telemetry) belongs to the system and is lent to
//! the parts, so a restart costs what the table in docs/failures.md says and nothing else.
//!
//! Order: telemetry, jobs, workers, rollouts, sessions. Nobody depends on telemetry or on rollouts. The store's thread starts with its first verb and
//! is closed last; a panic there costs the verb it happened in.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ractor::concurrency::JoinHandle;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, Message, SpawnErr, SupervisionEvent};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::child::{Child, Stopped, reason};
use super::connections::Connections;
use super::current::Naming;
use super::jobs::messages::JobsMsg;
use super::jobs::{Jobs, JobsArguments};
use super::kept::Kept;
use super::rollout::{RolloutArguments, RolloutMsg, Rollouts};
use super::sessions::messages::SessionsMsg;
use super::sessions::{Sessions, SessionsArguments};
use super::supervision::family::{ChildSpec, Family, FamilyEffect, OnGiveUp, Others, Place};
use super::supervision::slot::RestartPolicy;
use super::supervision::{Exit, RestartType, Strategy};
use super::telemetry::{Telemetry, TelemetryArguments, TelemetryMsg};
use super::workers::messages::WorkersMsg;
use super::workers::{Workers, WorkersArguments};
use crate::actors::clock;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::Generation;
use crate::failpoints::Faults;
use crate::jobs::store::StoreHandle;
use crate::telemetry::counters::Counters;
use crate::telemetry::{Record, TelemetryHandle};

/// Longest a part may take to start; each builds a struct.
const START_LIMIT: Duration = Duration::from_secs(2);

/// What each part may take to stop, in the order of start. With the store's end the sum is the bound of an ordered stop.
const STOP: [Duration; 5] = [
    Duration::from_millis(500),
    Duration::from_millis(2500),
    Duration::from_millis(600),
    Duration::from_millis(300),
    Duration::from_millis(2500),
];
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

const TELEMETRY: Place = Place(0);
const JOBS: Place = Place(1);
const WORKERS: Place = Place(2);
const ROLLOUT: Place = Place(3);
const SESSIONS: Place = Place(4);

const fn part(name: &'static str) -> ChildSpec {
    ChildSpec {
        name,
        restart: RestartType::Permanent,
        policy: RESTARTS,
        others: Others::DependOnIt,
        on_give_up: OnGiveUp::Escalate,
    }
}

/// The parts, in the order of start.
const PARTS: [ChildSpec; 5] = [
    ChildSpec { others: Others::Independent, on_give_up: OnGiveUp::LeaveOut, ..part("telemetry") },
    part("jobs"),
    part("workers"),
    ChildSpec { others: Others::Independent, on_give_up: OnGiveUp::LeaveOut, ..part("rollout") },
    part("sessions"),
];

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
    /// Who counts.
    pub telemetry: TelemetryHandle,
    /// Where they are written; `None` counts only.
    pub log: Option<PathBuf>,
    /// How the parts are reached.
    pub names: Names,
    /// What is to break.
    pub faults: Faults,
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
    /// Rollouts.
    pub rollout: Naming<RolloutMsg>,
}

/// Why the tree is down.
#[derive(Debug, Clone)]
pub enum Down {
    /// It was told to stop.
    Stopped,
    /// One of its parts failed.
    Failed(Fault),
}

/// What wakes the root. It is told to stop by its stop port, which overtakes every message.
#[derive(Debug)]
pub enum RootMsg {
    /// A part's task has ended: all its messages have been sent.
    Gone(Place, Generation),
    /// A backoff is over.
    Due(Place, Generation),
}

/// The parts that are there.
#[derive(Default)]
struct Parts {
    telemetry: Option<Child<TelemetryMsg>>,
    jobs: Option<Child<JobsMsg>>,
    workers: Option<Child<WorkersMsg>>,
    rollout: Option<Child<RolloutMsg>>,
    sessions: Option<Child<SessionsMsg>>,
}

/// The root's state.
pub struct RootState {
    a: RootArguments,
    family: Family,
    parts: Parts,
    /// How parts ended, as their death notices say; acted on when their tasks have been joined.
    exits: [Option<(Exit, String)>; 5],
    /// Join watches and backoff timers; they end with the root.
    tasks: JoinSet<()>,
    why: Option<Fault>,
}

impl Actor for Root {
    type Msg = RootMsg;
    type State = RootState;
    type Arguments = RootArguments;

    async fn pre_start(&self, me: ActorRef<Self::Msg>, a: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        let family = Family::new(Strategy::RestForOne, PARTS);
        let mut state = RootState {
            a,
            family,
            parts: Parts::default(),
            exits: [const { None }; 5],
            tasks: JoinSet::new(),
            why: None,
        };
        let effects = state.family.start(clock::now());
        state.perform(&me, effects).await;
        if let Some(place) = (0..PARTS.len()).find(|place| !state.family.is_up(Place(*place))) {
            return Err(format!("the part {} did not start", PARTS[place].name).into());
        }
        Ok(state)
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let effects = match message {
            RootMsg::Gone(place, generation) => state.gone(place, generation),
            RootMsg::Due(place, generation) => state.family.due(place, generation),
        };
        state.perform(&me, effects).await;
        while state.tasks.try_join_next().is_some() {}
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _me: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let (id, exit, why) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell.get_id(), Exit::Failed, reason(&error)),
            SupervisionEvent::ActorTerminated(cell, _, why) => {
                (cell.get_id(), Exit::from_reason(why.as_deref()), why.unwrap_or_else(|| "it ended".to_owned()))
            }
            _ => return Ok(()),
        };
        if let Some(place) = state.parts.find(id) {
            state.exits[place.0] = Some((exit, why));
        }
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        // Reverse of the start: no new work comes in, what is open is answered or withdrawn, jobs are let go, and
        // telemetry sees all of it.
        state.a.connections.close();
        if !state.family.is_up(SESSIONS) {
            state.a.connections.end_all(STOP[SESSIONS.0]).await;
        }
        for effect in state.family.stop() {
            if let FamilyEffect::Stop(place) = effect {
                state.stop(place).await;
            }
        }
        // Those whose session was lost in the very moment of the stop.
        state.a.connections.end_all(STOP[SESSIONS.0]).await;
        let _ = tokio::time::timeout(CLOSE_STORE, state.a.store.close()).await;
        let down = state.why.take().map_or(Down::Stopped, Down::Failed);
        let _ = state.a.down.send(Some(down));
        Ok(())
    }
}

impl Parts {
    fn find(&self, id: ActorId) -> Option<Place> {
        let is = |there: Option<ActorId>| there == Some(id);
        if is(self.telemetry.as_ref().map(Child::id)) {
            Some(TELEMETRY)
        } else if is(self.jobs.as_ref().map(Child::id)) {
            Some(JOBS)
        } else if is(self.workers.as_ref().map(Child::id)) {
            Some(WORKERS)
        } else if is(self.rollout.as_ref().map(Child::id)) {
            Some(ROLLOUT)
        } else if is(self.sessions.as_ref().map(Child::id)) {
            Some(SESSIONS)
        } else {
            None
        }
    }
}

async fn started<M: Message>(
    spawn: impl Future<Output = Result<(ActorRef<M>, JoinHandle<()>), SpawnErr>>,
) -> Result<(Child<M>, JoinHandle<()>), String> {
    match tokio::time::timeout(START_LIMIT, spawn).await {
        Ok(Ok((actor, joined))) => Ok((Child::new(actor), joined)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it did not start in time".to_owned()),
    }
}

async fn ended<M: Message>(child: Option<Child<M>>, limit: Duration) -> Option<Stopped> {
    match child {
        Some(child) => Some(child.stop(limit).await),
        None => None,
    }
}

impl RootState {
    fn gone(&mut self, place: Place, generation: Generation) -> Vec<FamilyEffect> {
        if generation != self.family.generation(place) || !self.family.is_up(place) {
            return Vec::new();
        }
        let (exit, why) = self.exits[place.0].take().unwrap_or((Exit::Failed, "it ended".to_owned()));
        self.lost(place, generation, why);
        self.family.gone(place, generation, exit, clock::now())
    }

    fn lost(&mut self, place: Place, generation: Generation, why: String) {
        let name = PARTS[place.0].name;
        tracing::error!(part = name, %generation, why, "a part of the tree failed");
        let fault = Fault::new(FaultCode::Internal, format!("the part {name} failed: {why}."));
        self.a.telemetry.record(Record::Fault(Box::new(fault)));
    }

    async fn perform(&mut self, me: &ActorRef<RootMsg>, effects: Vec<FamilyEffect>) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                FamilyEffect::Stop(place) => self.stop(place).await,
                FamilyEffect::Start(place, generation) => {
                    let now = clock::now;
                    let next = match self.start(me, place, generation).await {
                        Ok(()) => self.family.up(place, generation, now()),
                        Err(why) => {
                            self.lost(place, generation, why);
                            self.family.gone(place, generation, Exit::NotStarted, now())
                        }
                    };
                    effects.extend(next);
                }
                FamilyEffect::Wait(place, generation, wait) => {
                    let told = me.clone();
                    self.tasks.spawn(async move {
                        tokio::time::sleep(wait).await;
                        let _ = told.cast(RootMsg::Due(place, generation));
                    });
                }
                FamilyEffect::LeaveOut(place) => {
                    tracing::error!(part = PARTS[place.0].name, "a part failed too often and is left out");
                }
                FamilyEffect::Escalate(place) => {
                    let name = PARTS[place.0].name;
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

    async fn start(&mut self, me: &ActorRef<RootMsg>, place: Place, generation: Generation) -> Result<(), String> {
        let cell = me.get_cell();
        let joined = match place {
            TELEMETRY => {
                let arguments = TelemetryArguments {
                    telemetry: self.a.telemetry.clone(),
                    counters: Arc::clone(&self.a.counters),
                    log: self.a.log.clone(),
                    faults: self.a.faults.clone(),
                };
                let (child, joined) = started(Telemetry::spawn_linked(None, Telemetry, arguments, cell)).await?;
                self.parts.telemetry = Some(child);
                joined
            }
            JOBS => {
                let (child, joined) = started(Jobs::spawn_linked(None, Jobs, self.a.jobs.clone(), cell)).await?;
                self.a.names.jobs.set(child.actor());
                self.parts.jobs = Some(child);
                joined
            }
            WORKERS => {
                let arguments = self.a.workers.clone();
                let (child, joined) = started(Workers::spawn_linked(None, Workers, arguments, cell)).await?;
                self.a.names.workers.set(child.actor());
                self.parts.workers = Some(child);
                joined
            }
            ROLLOUT => {
                let arguments = self.a.rollout.clone();
                let (child, joined) = started(Rollouts::spawn_linked(None, Rollouts, arguments, cell)).await?;
                self.a.names.rollout.set(child.actor());
                self.parts.rollout = Some(child);
                joined
            }
            _ => {
                let arguments = self.a.sessions.clone();
                let (child, joined) = started(Sessions::spawn_linked(None, Sessions, arguments, cell)).await?;
                self.a.names.sessions.set(child.actor());
                self.parts.sessions = Some(child);
                joined
            }
        };
        let told = me.clone();
        self.tasks.spawn(async move {
            let _ = joined.await;
            let _ = told.cast(RootMsg::Gone(place, generation));
        });
        Ok(())
    }

    async fn stop(&mut self, place: Place) {
        let limit = STOP[place.0];
        let end = match place {
            TELEMETRY => ended(self.parts.telemetry.take(), limit).await,
            JOBS => ended(self.parts.jobs.take(), limit).await,
            WORKERS => ended(self.parts.workers.take(), limit).await,
            ROLLOUT => ended(self.parts.rollout.take(), limit).await,
            _ => ended(self.parts.sessions.take(), limit).await,
        };
        if end.is_some_and(|end| end != Stopped::InTime) {
            tracing::warn!(part = PARTS[place.0].name, ?end, "a part of the tree did not stop in time");
        }
    }
}
