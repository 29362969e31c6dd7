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

use super::{ChildEffect, ChildEvent, Children, Exit};
use crate::actors::child::{Child, Stopped, reason};
use crate::actors::clock;
use crate::base::ids::Generation;
use crate::base::tasks::TaskSet;

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
    tasks: TaskSet<()>,
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
        Self { children, running: BTreeMap::new(), news, tasks: TaskSet::new(), effects: VecDeque::new() }
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
                    // As large as everything it starts with, and seldom: no task of a supervisor keeps room for it.
                    let spawned = Box::pin(spawn(key, generation)).await;
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

#[cfg(test)]
mod tests {
    use ractor::{Actor, ActorProcessingErr};
    use tokio::sync::mpsc;

    use super::super::dynamic::DynamicChildren;
    use super::super::slot::RestartPolicy;
    use super::super::{ChildSpec, RestartType};
    use super::*;

    const SPEC: ChildSpec = ChildSpec {
        name: "a child",
        restart: RestartType::Transient,
        policy: RestartPolicy {
            intensity: 2,
            period: Duration::from_secs(60),
            backoff: Duration::from_millis(1),
            backoff_most: Duration::from_millis(1),
            settled_after: Duration::from_secs(60),
        },
        shutdown: Duration::from_secs(10),
    };

    /// A child that ends as it is told.
    struct Toy;

    enum Told {
        Stop,
        Fail,
    }

    #[cfg_attr(feature = "ractor-async-trait", ractor::async_trait)]
    impl Actor for Toy {
        type Msg = Told;
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _me: ActorRef<Told>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }

        async fn handle(&self, me: ActorRef<Told>, told: Told, (): &mut ()) -> Result<(), ActorProcessingErr> {
            match told {
                Told::Stop => me.stop(None),
                Told::Fail => return Err("it was told to".into()),
            }
            Ok(())
        }
    }

    enum Msg {
        Want(u8),
        SetAside(u8),
        News(ChildNews<u8>),
    }

    /// What a test hears of the supervisor.
    enum Heard {
        Started(u8, ActorRef<Told>),
        Report(ChildReport<u8>),
    }

    struct Parent;

    struct State {
        children: ChildDriver<DynamicChildren<u8>, Msg>,
        told: mpsc::UnboundedSender<Heard>,
    }

    #[cfg_attr(feature = "ractor-async-trait", ractor::async_trait)]
    impl Actor for Parent {
        type Msg = Msg;
        type State = State;
        type Arguments = mpsc::UnboundedSender<Heard>;

        async fn pre_start(
            &self,
            _me: ActorRef<Msg>,
            told: mpsc::UnboundedSender<Heard>,
        ) -> Result<State, ActorProcessingErr> {
            Ok(State { children: ChildDriver::new(DynamicChildren::new(SPEC), Msg::News), told })
        }

        async fn handle(&self, me: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
            let State { children, told } = state;
            let event = match msg {
                Msg::Want(key) => ChildEvent::Wanted(key),
                Msg::SetAside(key) => {
                    children.set_aside(key).await;
                    return Ok(());
                }
                Msg::News(news) => children.event(news),
            };
            let spawn = |key, _| {
                let (told, supervisor) = (told.clone(), me.get_cell());
                async move {
                    match key {
                        b'!' => return Err("there is no such child".to_owned()),
                        b'-' => return Ok(Spawned::NotNeeded),
                        _ => {}
                    }
                    let started = Toy::spawn_linked(None, Toy, (), supervisor).await;
                    if let Ok((actor, _)) = &started {
                        let _ = told.send(Heard::Started(key, actor.clone()));
                    }
                    Spawned::up(started)
                }
            };
            for report in children.handle(&me, event, spawn).await {
                let _ = told.send(Heard::Report(report));
            }
            Ok(())
        }

        async fn handle_supervisor_evt(
            &self,
            _me: ActorRef<Msg>,
            event: SupervisionEvent,
            state: &mut State,
        ) -> Result<(), ActorProcessingErr> {
            state.children.note(&event);
            Ok(())
        }

        async fn post_stop(&self, _me: ActorRef<Msg>, state: &mut State) -> Result<(), ActorProcessingErr> {
            state.children.stop().await;
            Ok(())
        }
    }

    struct Rig {
        parent: ActorRef<Msg>,
        joined: JoinHandle<()>,
        heard: mpsc::UnboundedReceiver<Heard>,
    }

    impl Rig {
        async fn new() -> Self {
            let (told, heard) = mpsc::unbounded_channel();
            let (parent, joined) = Parent::spawn(None, Parent, told).await.expect("a supervisor");
            Self { parent, joined, heard }
        }

        fn tell(&self, msg: Msg) {
            self.parent.cast(msg).expect("taken");
        }

        async fn heard(&mut self) -> Heard {
            tokio::time::timeout(Duration::from_secs(10), self.heard.recv()).await.expect("in time").expect("news")
        }

        async fn started(&mut self, key: u8) -> ActorRef<Told> {
            match self.heard().await {
                Heard::Started(of, actor) if of == key => actor,
                Heard::Started(of, _) => panic!("{of} was started"),
                Heard::Report(report) => panic!("{report:?}"),
            }
        }

        async fn report(&mut self) -> ChildReport<u8> {
            match self.heard().await {
                Heard::Started(of, _) => panic!("{of} was started"),
                Heard::Report(report) => report,
            }
        }
    }

    #[tokio::test]
    async fn a_child_that_fails_comes_back_until_it_was_too_often_and_the_others_notice_nothing() {
        let mut rig = Rig::new().await;
        rig.tell(Msg::Want(b'b'));
        let other = rig.started(b'b').await;
        rig.tell(Msg::Want(b'a'));
        for _ in 0..2 {
            rig.started(b'a').await.cast(Told::Fail).expect("taken");
        }
        rig.started(b'a').await.kill();
        assert_eq!(rig.report().await, ChildReport::GaveUp(b'a'), "a kill by somebody else is a loss as well");
        other.cast(Told::Stop).expect("it lives");
        assert_eq!(rig.report().await, ChildReport::LeftOut(b'b'), "its work was done");
    }

    #[tokio::test]
    async fn what_cannot_be_started_is_reported_each_time_and_what_is_not_needed_once() {
        let mut rig = Rig::new().await;
        rig.tell(Msg::Want(b'!'));
        for _ in 0..3 {
            assert!(matches!(rig.report().await, ChildReport::NotStarted(b'!', _, why) if why.contains("no such")));
        }
        assert_eq!(rig.report().await, ChildReport::GaveUp(b'!'));
        rig.tell(Msg::Want(b'-'));
        assert_eq!(rig.report().await, ChildReport::LeftOut(b'-'));
    }

    #[tokio::test]
    async fn a_child_that_is_set_aside_has_ended_is_no_loss_and_comes_back_when_it_is_wanted() {
        let mut rig = Rig::new().await;
        for _ in 0..4 {
            rig.tell(Msg::Want(b'a'));
            let child = rig.started(b'a').await;
            rig.tell(Msg::SetAside(b'a'));
            child.wait(Some(Duration::from_secs(10))).await.expect("it ends");
        }
    }

    #[tokio::test]
    async fn the_end_of_a_supervisor_is_the_end_of_its_children() {
        let mut rig = Rig::new().await;
        rig.tell(Msg::Want(b'a'));
        rig.tell(Msg::Want(b'b'));
        let children = [rig.started(b'a').await, rig.started(b'b').await];
        rig.parent.stop(None);
        rig.joined.await.expect("joined");
        for child in children {
            assert!(child.cast(Told::Stop).is_err(), "it is gone");
        }
    }
}
