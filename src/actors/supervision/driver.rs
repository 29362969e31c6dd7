//! The loop that every supervisor has in common: starts children, watches them end, waits, starts them again.
//!
//! Owns: the children that are there, their joined tasks, how each of them ended, the timers of waits. May not know: when a
//! child is started again ([`Children`] decides), what a child does. The one file here that knows actors.
//!
//! A supervisor gives it a decision part, a name for its own messages ([`ChildNews`]), and with each event a function that
//! starts a child. It reports what the supervisor may have to act on: a child that is not started again, or was not started.
//!
//! Invariants: (1) a child counts as gone when its task has been joined, never by its death notice, which may overtake its
//! last messages; (2) tasks and timers end with the supervisor.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::time::Duration;

use ractor::concurrency::JoinHandle;
use ractor::{ActorCell, ActorRef, Message, SpawnErr, SupervisionEvent};
use tokio::task::JoinSet;

use super::{ChildEffect, ChildEvent, Children, Exit};
use crate::actors::child::{Child, Stopped, reason};
use crate::actors::clock;
use crate::base::ids::Generation;

/// What the driver has to tell the supervisor it belongs to, in a message of the supervisor's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildNews<K> {
    /// A child's task has ended: all its messages have been sent.
    Joined(K, Generation),
    /// A wait is over.
    Due(K, Generation),
}

impl<K> ChildNews<K> {
    /// Its name in a fault plan.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Joined(..) => "gone",
            Self::Due(..) => "due",
        }
    }
}

/// What came of starting a child.
pub enum Spawned {
    /// It is there.
    Up(ActorCell, JoinHandle<()>),
    /// It is on its way. Its supervisor hears when it is up, and when it is gone, by messages of its own.
    Coming(ActorCell),
    /// There is nothing for it to do any more: it counts as having ended in order.
    NotNeeded,
}

impl Spawned {
    /// A child that has nothing to do before it is there.
    ///
    /// # Errors
    ///
    /// Why it was not started.
    pub fn up<M>(started: Result<(ActorRef<M>, JoinHandle<()>), SpawnErr>) -> Result<Self, String> {
        let (actor, joined) = started.map_err(|error| error.to_string())?;
        Ok(Self::Up(actor.get_cell(), joined))
    }
}

/// What became of a child that its supervisor may have to act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChildReport<K> {
    /// It could not be started, and why.
    NotStarted(K, Generation, String),
    /// It is not started again: it need not be, or others can do without it.
    LeftOut(K),
    /// It is not started again: it was lost too often.
    GaveUp(K),
}

/// A child that was started.
struct Running {
    child: Child,
    generation: Generation,
    /// How it ended and why, as its death notice says; acted on when its task has been joined.
    ended: Option<(Exit, String)>,
}

/// The driver of one supervisor.
pub struct ChildDriver<C: Children, M> {
    children: C,
    running: BTreeMap<C::Key, Running>,
    news: fn(ChildNews<C::Key>) -> M,
    tasks: JoinSet<()>,
    effects: VecDeque<ChildEffect<C::Key>>,
}

impl<C, M> ChildDriver<C, M>
where
    C: Children,
    C::Key: Debug + Send + 'static,
    M: Message,
{
    /// Nobody is started yet.
    #[must_use]
    pub fn new(children: C, news: fn(ChildNews<C::Key>) -> M) -> Self {
        Self { children, running: BTreeMap::new(), news, tasks: JoinSet::new(), effects: VecDeque::new() }
    }

    /// What decides.
    #[must_use]
    pub const fn children(&self) -> &C {
        &self.children
    }

    /// Takes a death notice. What follows from it waits until the child's task has been joined.
    pub fn note(&mut self, event: &SupervisionEvent) {
        let (cell, exit, why) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell, Exit::Failed, reason(error)),
            SupervisionEvent::ActorTerminated(cell, _, why) => {
                (cell, Exit::from_reason(why.as_deref()), why.clone().unwrap_or_else(|| "it ended".to_owned()))
            }
            _ => return,
        };
        let found = self.running.iter_mut().find(|(_, running)| running.child.id() == cell.get_id());
        if let Some((key, running)) = found {
            if exit == Exit::Failed {
                tracing::error!(?key, why, "{} failed", self.children.name(*key));
            }
            running.ended = Some((exit, why));
        }
    }

    /// Why the child that these news are about ended, where they are about one that is there.
    #[must_use]
    pub fn why(&self, news: &ChildNews<C::Key>) -> Option<&str> {
        let ChildNews::Joined(key, generation) = news else { return None };
        let running = self.running.get(key).filter(|running| running.generation == *generation)?;
        Some(running.ended.as_ref().map_or("it ended", |(_, why)| why))
    }

    /// The event that these news are.
    #[must_use]
    pub fn event(&self, news: ChildNews<C::Key>) -> ChildEvent<C::Key> {
        match news {
            ChildNews::Due(key, generation) => ChildEvent::Due(key, generation),
            ChildNews::Joined(key, generation) => {
                let running = self.running.get(&key).filter(|running| running.generation == generation);
                let ended = running.and_then(|running| running.ended.as_ref());
                ChildEvent::Gone(key, generation, ended.map_or(Exit::Normal, |(exit, _)| *exit))
            }
        }
    }

    /// Does what follows from an event.
    ///
    /// # Cancel safety
    ///
    /// Not safe: a child may have been started and not be known.
    pub async fn handle<F>(
        &mut self,
        me: &ActorRef<M>,
        event: ChildEvent<C::Key>,
        mut spawn: impl FnMut(C::Key, Generation) -> F,
    ) -> Vec<ChildReport<C::Key>>
    where
        F: Future<Output = Result<Spawned, String>>,
    {
        let mut reports = Vec::new();
        self.step(event);
        while let Some(effect) = self.effects.pop_front() {
            match effect {
                ChildEffect::Stop(key) => self.end(key, self.children.shutdown(key)).await,
                ChildEffect::Start(key, generation) => {
                    let spawned = spawn(key, generation).await;
                    if let Err(why) = &spawned {
                        tracing::error!(?key, why, "{} could not be started", self.children.name(key));
                        reports.push(ChildReport::NotStarted(key, generation, why.clone()));
                    }
                    self.started(me, key, generation, spawned);
                }
                ChildEffect::Wait(key, generation, wait) => {
                    let (told, news) = (me.clone(), self.news);
                    self.tasks.spawn(async move {
                        tokio::time::sleep(wait).await;
                        let _ = told.cast(news(ChildNews::Due(key, generation)));
                    });
                }
                ChildEffect::LeaveOut(key) => reports.push(ChildReport::LeftOut(key)),
                ChildEffect::GiveUp(key) => {
                    tracing::error!(?key, "{} failed too often", self.children.name(key));
                    reports.push(ChildReport::GaveUp(key));
                }
            }
        }
        while self.tasks.try_join_next().is_some() {}
        reports
    }

    fn step(&mut self, event: ChildEvent<C::Key>) {
        if let ChildEvent::Gone(key, generation, _) = event
            && self.running.get(&key).is_some_and(|running| running.generation == generation)
        {
            self.running.remove(&key);
        }
        self.children.step(event, clock::now(), &mut self.effects);
    }

    fn started(&mut self, me: &ActorRef<M>, key: C::Key, generation: Generation, spawned: Result<Spawned, String>) {
        let mut enter = |cell| {
            let running = Running { child: Child::new(cell), generation, ended: None };
            self.running.insert(key, running);
        };
        let event = match spawned {
            Ok(Spawned::Up(cell, joined)) => {
                enter(cell);
                let (told, news) = (me.clone(), self.news);
                self.tasks.spawn(async move {
                    let _ = joined.await;
                    let _ = told.cast(news(ChildNews::Joined(key, generation)));
                });
                ChildEvent::Up(key, generation)
            }
            Ok(Spawned::Coming(cell)) => return enter(cell),
            Ok(Spawned::NotNeeded) => ChildEvent::Gone(key, generation, Exit::Normal),
            Err(_) => ChildEvent::Gone(key, generation, Exit::NotStarted),
        };
        self.step(event);
    }

    async fn end(&mut self, key: C::Key, limit: Duration) {
        let Some(running) = self.running.remove(&key) else { return };
        let end = running.child.stop(limit).await;
        if end != Stopped::InTime {
            tracing::warn!(?key, ?end, "{} did not stop in time", self.children.name(key));
        }
    }

    /// Ends a child in order, without taking it for lost: it is started again when it is wanted again.
    ///
    /// # Cancel safety
    ///
    /// Safe: the child ends.
    pub async fn set_aside(&mut self, key: C::Key) {
        self.children.set_aside(key);
        self.end(key, self.children.shutdown(key)).await;
    }

    /// The key is not known any more. Its child, which nobody supervises from here on.
    pub fn forget(&mut self, key: C::Key) -> Option<Child> {
        self.children.forget(key);
        self.running.remove(&key).map(|running| running.child)
    }

    /// Everybody is forgotten.
    pub fn forget_all(&mut self) -> Vec<(C::Key, Child)> {
        let all = std::mem::take(&mut self.running);
        all.into_iter()
            .map(|(key, running)| {
                self.children.forget(key);
                (key, running.child)
            })
            .collect()
    }

    /// Ends all children in order, last first; nothing is started from here on.
    ///
    /// # Cancel safety
    ///
    /// Safe: dropping it leaves children running, which end with their supervisor.
    pub async fn stop(&mut self) {
        self.effects.clear();
        self.children.stop(&mut self.effects);
        while let Some(effect) = self.effects.pop_front() {
            if let ChildEffect::Stop(key) = effect {
                self.end(key, self.children.shutdown(key)).await;
            }
        }
    }
}
