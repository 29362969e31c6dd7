//! Rollouts: performs what [`crate::rollout::Rollout`] decides.
//!
//! Owns: the look, the reading, the check and the hand-over that are under way, and who waits for their end. May not know:
//! when one is due, what a verdict means, what is passed on.
//!
//! Invariants: (1) nothing it does holds anybody up: each thing is a task of its own with a bound; (2) a panic here, or in
//! anything under way, costs the rollout under way and no more: what is remembered is borrowed ([`Kept`]), and the next
//! incarnation begins with [`RolloutEvent::Lost`]; (3) without a rollout under way there is no timer.

mod handle;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

pub use self::handle::RolloutHandle;
use super::kept::{Kept, Lent};
use crate::actors::clock;
use crate::agents::Environment;
use crate::base::ids::UnixMillis;
use crate::base::tasks::{self, TaskSet};
use crate::rollout::candidate::{DEADLINE, Trial};
use crate::rollout::core::{Candidate, RolloutEffect, RolloutEvent, SETTLE};
use crate::rollout::selfcheck::SelfCheck;
use crate::rollout::{Digest, Fingerprint, NotAdopted, Rollout, RolloutSetup, Successor, Trigger};
use crate::telemetry::{Record, RolloutRecord, TelemetryHandle};

/// The rollout actor.
pub struct Rollouts;

/// What it is started with.
#[derive(Clone)]
pub struct RolloutArguments {
    /// By what it is replaced; never, when it was not told.
    pub setup: Option<Arc<RolloutSetup>>,
    /// The state, which outlives the actor.
    pub kept: Arc<Kept<Rollout>>,
    /// How others reach it.
    pub handle: RolloutHandle,
    /// What a candidate is run with.
    pub environment: Environment,
    /// The job store, where there is one.
    pub database: Option<std::path::PathBuf>,
    /// Telemetry.
    pub telemetry: TelemetryHandle,
}

/// What wakes it.
#[derive(Debug)]
pub enum RolloutMsg {
    /// A request was handled, and the last look is long enough ago.
    LookDue,
    /// Somebody wants a rollout, and may wait for its end.
    Asked(Trigger, Option<oneshot::Sender<NotAdopted>>),
    /// What was under way came to this.
    Happened(RolloutEvent),
    /// What was under way panicked.
    Broke,
}

/// Something under way panicked.
#[derive(Debug, thiserror::Error)]
#[error("a step of a rollout panicked")]
pub struct StepPanicked;

/// The state was taken away, which it must not.
#[derive(Debug, thiserror::Error)]
#[error("the state of rollouts is gone")]
pub struct StateGone;

/// The actor's state; dropping it ends what is under way.
pub struct RolloutState {
    a: RolloutArguments,
    /// Given back by the stop: a state that ended in order is handed to the supervisor, who may look at it late.
    lent: Option<Lent<Rollout>>,
    waiting: Vec<oneshot::Sender<NotAdopted>>,
    /// The one thing that is under way.
    tasks: TaskSet<()>,
    /// The running image's content, once it was read.
    running: Option<Digest>,
    since: Instant,
}

#[cfg_attr(feature = "ractor-async-trait", ractor::async_trait)]
impl Actor for Rollouts {
    type Msg = RolloutMsg;
    type State = RolloutState;
    type Arguments = RolloutArguments;

    async fn pre_start(&self, me: ActorRef<Self::Msg>, a: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        let mut lent = a.kept.lend().await.ok_or(StateGone)?;
        if a.setup.is_some() && lent.get().is_some_and(|rollout| rollout.watches()) {
            a.handle.watch();
        }
        let mut state = RolloutState {
            a,
            lent: Some(lent),
            waiting: Vec::new(),
            tasks: TaskSet::new(),
            running: None,
            since: clock::now(),
        };
        // What an earlier incarnation had under way.
        state.step(&me, RolloutEvent::Lost);
        Ok(state)
    }

    async fn handle(
        &self,
        me: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RolloutMsg::LookDue => state.step(&me, RolloutEvent::LookDue),
            RolloutMsg::Asked(trigger, waiting) => state.asked(&me, trigger, waiting),
            RolloutMsg::Happened(event) => {
                if let RolloutEvent::Read { running: Some(running), .. } = event {
                    state.running = Some(running);
                }
                state.step(&me, event);
            }
            RolloutMsg::Broke => return Err(StepPanicked.into()),
        }
        while state.tasks.try_join_next().is_some() {}
        Ok(())
    }

    async fn post_stop(&self, _me: ActorRef<Self::Msg>, state: &mut Self::State) -> Result<(), ActorProcessingErr> {
        // A candidate that is being run is killed with its group when its task is dropped.
        state.tasks.abort_all();
        while state.tasks.join_next().await.is_some() {}
        drop(state.lent.take());
        Ok(())
    }
}

impl RolloutState {
    fn asked(&mut self, me: &ActorRef<RolloutMsg>, trigger: Trigger, waiting: Option<oneshot::Sender<NotAdopted>>) {
        if self.a.setup.is_none() {
            let _ = waiting.map(|waiting| waiting.send(NotAdopted::Unable));
            return;
        }
        self.waiting.extend(waiting);
        self.step(me, RolloutEvent::Asked(trigger));
    }

    fn step(&mut self, me: &ActorRef<RolloutMsg>, event: RolloutEvent) {
        let Some(rollout) = self.lent.as_mut().and_then(Lent::get) else { return };
        let was = rollout.state();
        match rollout.step(event, clock::now()) {
            Ok(effects) => {
                let state = rollout.state();
                if was == "idle" {
                    self.since = clock::now();
                }
                let refused = rollout.refused().cloned();
                self.a.handle.note(|status| {
                    if state != status.state {
                        status.checking_since = (state == "checking").then(UnixMillis::now);
                    }
                    status.state = state;
                    status.refused(refused.as_ref());
                });
                for effect in effects {
                    self.perform(me, effect);
                }
            }
            Err(fault) => {
                tracing::error!(%fault, "a rollout was told what it cannot be told");
                self.a.telemetry.record(Record::Fault(Box::new(fault)));
            }
        }
    }

    fn perform(&mut self, me: &ActorRef<RolloutMsg>, effect: RolloutEffect) {
        if let RolloutEffect::Ended(by, why) = effect {
            return self.ended(by, why);
        }
        let Some(setup) = self.a.setup.clone() else { return };
        match effect {
            RolloutEffect::Ended(..) => {}
            RolloutEffect::Look => {
                let look = blocking(move || Fingerprint::look(&setup.launch.path));
                self.begin(me, async { look.await.map_or(RolloutEvent::Lost, RolloutEvent::Looked) });
            }
            RolloutEffect::Rest => self.begin(me, async {
                tokio::time::sleep(SETTLE).await;
                RolloutEvent::Rested
            }),
            RolloutEffect::Read => {
                let known = self.running;
                // Whoever asks has an equal file handed over to as well.
                let compared = !self.trigger().is_forced();
                let read = blocking(move || {
                    let file = Digest::read(&setup.launch.path).ok();
                    let image = setup.image.as_deref().filter(|_| compared);
                    (file, known.or_else(|| Digest::read(image?).ok()))
                });
                self.begin(me, async {
                    read.await.map_or(RolloutEvent::Lost, |(file, running)| RolloutEvent::Read { file, running })
                });
            }
            RolloutEffect::Check(candidate) => {
                let (trial, how) = (self.trial(&setup), self.a.handle.how());
                self.begin(me, async move {
                    RolloutEvent::Checked(trial.check(candidate.fingerprint, how.as_deref()).await)
                });
            }
            RolloutEffect::HandOver(candidate, said) => self.hand_over(me, &setup, candidate, said),
        }
    }

    fn trigger(&mut self) -> Trigger {
        self.lent.as_mut().and_then(Lent::get).map_or(Trigger::Watch, |rollout| rollout.trigger())
    }

    fn trial(&self, setup: &RolloutSetup) -> Trial {
        Trial {
            program: setup.launch.path.clone(),
            arguments: setup.arguments.clone(),
            environment: setup.environment.clone().unwrap_or_else(|| self.a.environment.clone()),
            here: setup.here.clone(),
            image: setup.image.clone(),
            keeper: setup.keeper.clone(),
            database: self.a.database.clone(),
            name: setup.program.clone(),
        }
    }

    fn hand_over(&mut self, me: &ActorRef<RolloutMsg>, setup: &RolloutSetup, candidate: Candidate, said: SelfCheck) {
        let how = self.a.handle.how();
        let by = self.trigger();
        self.a.handle.began(by);
        let program = setup.launch.path.clone();
        tracing::info!(program = %program.display(), version = said.version, "a candidate passed its check");
        self.begin(me, async move {
            let Some(how) = how else { return RolloutEvent::NotHandedOver(NotAdopted::NoHandOver) };
            let to = Successor { program, fingerprint: candidate.fingerprint, version: said.version };
            let fault = how.hand_over(to).await;
            RolloutEvent::NotHandedOver(NotAdopted::HandOverFailed(Box::new(fault)))
        });
    }

    /// Begins the one thing that is under way. What came of it is a message; a panic is one too.
    fn begin(&mut self, me: &ActorRef<RolloutMsg>, work: impl Future<Output = RolloutEvent> + Send + 'static) {
        let me = me.clone();
        self.tasks.spawn(async move {
            let message = match AssertUnwindSafe(work).catch_unwind().await {
                Ok(event) => RolloutMsg::Happened(event),
                Err(_) => RolloutMsg::Broke,
            };
            let _ = me.cast(message);
        });
    }

    fn ended(&mut self, by: Trigger, why: NotAdopted) {
        if by.is_forced() || why.is_news() {
            tracing::warn!(by = by.as_str(), verdict = why.code(), %why, "no new version was adopted");
            self.a.handle.note(|status| status.ended(by, &why));
            self.a.telemetry.record(Record::Rollout(RolloutRecord {
                outcome: why.outcome(),
                verdict: Some(why.code()),
                by: by.as_str(),
                took: clock::now().saturating_duration_since(self.since),
                gap: None,
            }));
        }
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(why.clone());
        }
    }
}

/// `None` when the file system does not answer.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::time::timeout(DEADLINE, tasks::spawn_blocking(work)).await.ok()?.ok()
}
