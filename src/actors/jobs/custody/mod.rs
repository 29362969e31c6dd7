//! Custody of one job: its runner's process, the pipes to it, the news that come through them.
//!
//! Owns: the runner's start, the pipes, the tasks that ask it and the store something. May not know: who waits, what the
//! answer is for. [`CustodyCore`] decides; this file waits and performs. The pipes cannot be made again, so no actor owns
//! them: a custody is kept beside the tree and lent to the consult actor of the moment.
//!
//! A runner that is stopped or hangs keeps neither deadline nor cancel. It is asked something over its pipe when its time is
//! over: one that answers knows its own business (it may be waiting for the store), one that does not is ended itself.
//!
//! Invariants: (1) a runner is spoken to, and so begins, for a job the store has, never the other way round; (2) a runner that
//! is gone without an outcome leaves a job that is settled here, with the job's lock as evidence; (3) every stage is in
//! `self`, so another incarnation goes on from there; (4) an outcome the store does not take yet is news for whoever waits,
//! and nothing else.
//!
//! Reading order: [`core`] for the stages, this file for what is waited for, [`link`] for the pipes, `watched` for a job that
//! was adopted, [`passed`] for the next image of the program.

pub mod core;
mod link;
pub mod passed;
mod watched;

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use self::core::{
    CustodyCore, CustodyEffect, CustodyEnd, CustodyEvent, CustodyWait, EXIT_LIMIT, HandIn, LOOK_EVERY, Ours, RunHere,
    RunnerAnswer, ShownPhase, StoreAnswer,
};
use self::link::{Link, RunnerWord, ask_outcome, ask_to_end};
use self::watched::Watched;
use super::means::Means;
use super::room::{Beginning, Room, Turn};
use super::runner_child::RunnerChild;
use super::starting::{self, HeldRunner, NotStarted};
use crate::actors::clock;
use crate::base::fault::Fault;
use crate::base::ids::{JobId, UnixMillis};
use crate::base::tasks::TaskSet;
use crate::exec::client::ExecError;
use crate::jobs::JobRecord;
use crate::jobs::admission::{Position, plan};
use crate::jobs::evidence::JobEvidence;
use crate::jobs::live::{JobLive, Phase};
use crate::jobs::store::StoreError;
use crate::jobs::sweep::{self, Settlement};
use crate::waiting::wire::ToWaiting;

/// Custody of one job.
pub struct Custody {
    job: JobId,
    agent: String,
    means: Means,
    news: watch::Sender<JobLive>,
    asked: mpsc::Receiver<()>,
    core: CustodyCore,
    room: Room,
    /// A runner that was started beside the accept, for a job that has not had to wait.
    held: Option<HeldRunner>,
    /// Where the job's turn is told, once it was handed in.
    turn: Option<watch::Receiver<Turn>>,
    /// The runner that is followed.
    link: Option<Box<Link>>,
    /// The runner whose pipes are over.
    leaving: Option<RunnerChild>,
    /// The job as it was read or settled last, when it is over.
    record: Option<JobRecord>,
    /// What the runner said about an outcome that is not stored.
    unstored: Option<JobRecord>,
    /// Requests to end on their way to the runner.
    telling: TaskSet<()>,
    /// A question to the runner, and what it had to say about an outcome.
    asking: TaskSet<Result<Option<JobRecord>, ExecError>>,
    /// A look at the store; whether somebody wants the job to end.
    looking: TaskSet<bool>,
    /// When the job is to be looked after.
    looks: Option<Interval>,
    /// What was seen of a job that was adopted.
    watched: Watched,
}

impl Custody {
    /// Custody of a job that was just accepted, or that nobody looks after; `held` is a runner that was started beside the
    /// accept.
    pub(super) fn new(
        record: &JobRecord,
        means: Means,
        held: Option<HeldRunner>,
        room: Room,
        news: watch::Sender<JobLive>,
        asked: mpsc::Receiver<()>,
    ) -> Self {
        let ours = if record.host.is_some() { Ours::ByItsRow } else { Ours::ByItsPipes };
        let core = CustodyCore::new(Duration::from_secs(record.request.timeout_s)).held(ours);
        Self::of(record.id, record.request.agent.clone(), core, means, held, room, news, asked)
    }

    /// Custody of a job that was adopted, and at which somebody works whom another host started.
    pub(super) fn adopted(
        record: &JobRecord,
        means: Means,
        run_here: RunHere,
        room: Room,
        news: watch::Sender<JobLive>,
        asked: mpsc::Receiver<()>,
    ) -> Self {
        let core = CustodyCore::adopted(Duration::from_secs(record.request.timeout_s), run_here);
        Self::of(record.id, record.request.agent.clone(), core, means, None, room, news, asked)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a custody that differ from one to the other")]
    fn of(
        job: JobId,
        agent: String,
        core: CustodyCore,
        means: Means,
        held: Option<HeldRunner>,
        room: Room,
        news: watch::Sender<JobLive>,
        asked: mpsc::Receiver<()>,
    ) -> Self {
        Self {
            job,
            agent,
            means,
            news,
            asked,
            core,
            room,
            held,
            turn: None,
            link: None,
            leaving: None,
            record: None,
            unstored: None,
            telling: TaskSet::new(),
            asking: TaskSet::new(),
            looking: TaskSet::new(),
            looks: None,
            watched: Watched::default(),
        }
    }

    /// Looks after the job until it is over, or in other hands. The job as it ended, where the store could say.
    ///
    /// # Cancel safety
    ///
    /// Safe: everything is in `self`, and another run goes on with it.
    pub async fn run(&mut self) -> Option<Arc<JobRecord>> {
        if let Some(record) = &self.news.borrow().finished {
            return Some(Arc::clone(record));
        }
        let mut event = CustodyEvent::Began;
        loop {
            let awaited = self.step(event);
            event = match awaited {
                CustodyWait::Over(CustodyEnd::Stored) => return self.record.take().map(|record| self.publish(record)),
                CustodyWait::Over(CustodyEnd::LeftToOthers) => return None,
                awaited => self.wait_for(awaited).await,
            };
        }
    }

    /// Decides, and does what is to be done at once.
    fn step(&mut self, event: CustodyEvent) -> CustodyWait {
        if let CustodyEvent::NotHandedIn(fault)
        | CustodyEvent::NotStarted(fault)
        | CustodyEvent::PipesOver(Some(fault)) = &event
        {
            tracing::warn!(job = %self.job, %fault, "a runner was not attended to its end");
        }
        let mut effects = Vec::new();
        let awaited = self.core.step(event, clock::now(), &mut effects);
        effects.into_iter().for_each(|effect| self.perform(effect));
        if awaited == CustodyWait::News {
            // For whoever looks for runners that stand still; nobody who follows the job is told.
            self.news.send_if_modified(|live| {
                live.by_store = true;
                false
            });
        }
        awaited
    }

    fn perform(&mut self, effect: CustodyEffect) {
        match effect {
            CustodyEffect::Show(shown) => self.show(shown),
            CustodyEffect::ShowCare => self.means.dir.touch_job_dir(self.job),
            CustodyEffect::TakeFromRoom => self.room.leave(self.job, ToWaiting::Taken),
            CustodyEffect::LeaveRoom => self.room.leave(self.job, ToWaiting::Leave),
            CustodyEffect::KillWaiting => self.room.kill(),
            CustodyEffect::AskToEnd => {
                if let Some(client) = self.link.as_ref().and_then(|link| link.client()) {
                    self.telling.spawn(ask_to_end(client.clone(), self.job));
                }
            }
            CustodyEffect::AskOutcome => {
                if let Some(client) = self.link.as_ref().and_then(|link| link.client()) {
                    self.asking.spawn(ask_outcome(client.clone(), self.job));
                }
            }
            CustodyEffect::LookForCancel => {
                let (store, job) = (self.means.store.clone(), self.job);
                self.looking.spawn(async move {
                    store.glance(job).await.is_ok_and(|glance| glance.cancel_requested.is_some())
                });
            }
            CustodyEffect::TellUnstored => {
                if let Some(record) = self.unstored.take() {
                    tell(&self.news, self.job, record);
                }
            }
            CustodyEffect::LetGoOfPipes => {
                (self.asking, self.looking, self.looks) = (TaskSet::new(), TaskSet::new(), None);
                self.leaving = self.link.take().map(|link| link.child);
            }
            CustodyEffect::KillRunner => {
                if let Some(child) = &mut self.leaving {
                    tracing::warn!(job = %self.job, "a runner that did not end its job is ended itself");
                    child.kill();
                }
            }
            CustodyEffect::SeeOut => {
                if let Some(child) = self.leaving.take() {
                    child.see_out(self.room.leaving());
                }
            }
        }
    }

    /// Waits for the one thing custody waits for.
    async fn wait_for(&mut self, awaited: CustodyWait) -> CustodyEvent {
        match awaited {
            CustodyWait::HandIn(hand_in) => self.hand_in(hand_in).await,
            CustodyWait::Turn => self.turn().await,
            CustodyWait::Start => {
                if self.room.beginning() == Beginning::Paused {
                    tokio::select! {
                        () = self.room.begins() => {}
                        // It is begun all the same: its runner finds that it is to end, runs nothing and stores that.
                        Some(()) = self.asked.recv() => {}
                    }
                }
                self.start()
            }
            CustodyWait::Room(pause) => tokio::select! {
                () = tokio::time::sleep(pause) => CustodyEvent::Paused,
                Some(()) = self.asked.recv() => CustodyEvent::EndAsked,
            },
            CustodyWait::Greeting => match &mut self.link {
                Some(link) => match link.connect(self.job).await {
                    Ok(()) => CustodyEvent::Connected,
                    Err(fault) => CustodyEvent::PipesOver(Some(Box::new(fault))),
                },
                None => CustodyEvent::PipesOver(None),
            },
            CustodyWait::News => self.watch().await,
            CustodyWait::Runner => self.runner().await,
            CustodyWait::Exit => self.exit().await,
            CustodyWait::Store => CustodyEvent::Read(self.read().await),
            CustodyWait::Settling(why) => self.settle(*why).await,
            CustodyWait::Pause(pause) => {
                tokio::time::sleep(pause).await;
                CustodyEvent::Paused
            }
            // It is over before anything is waited for.
            CustodyWait::Over(_) => pending().await,
        }
    }

    /// Shows where a job stands whose agent has said nothing yet, or that the store is waited for.
    fn show(&self, shown: ShownPhase) {
        let phase = Phase::from(shown);
        self.news.send_if_modified(|live| {
            let silent = matches!(live.phase, Phase::Queued(_) | Phase::Starting);
            let changed = (silent || shown == ShownPhase::Storing) && live.phase != phase;
            if changed {
                live.phase = phase;
            }
            changed
        });
    }

    /// Looks whether the job has to wait, which it need not when a permit is free and nobody is due before, and hands it in.
    async fn hand_in(&mut self, hand_in: HandIn) -> CustodyEvent {
        let gate = self.room.gate().await;
        if hand_in == HandIn::New && !self.room.is_used() {
            // What cannot be looked at is tried: the runner waits for a store that is busy.
            let Ok(rows) = self.means.store.queue().await else { return CustodyEvent::Turn };
            let contenders = JobEvidence::new(&self.means.dir).contenders(rows);
            let limit = self.means.runner.max_running();
            if !matches!(plan(&contenders, limit).position(self.job), Some(Position::Wait { .. })) {
                return CustodyEvent::Turn;
            }
        }
        // It holds nothing another one needs, but who knows how long the job waits.
        self.held = None;
        let entered = self.room.enter(self.job, hand_in, &self.news, &self.means);
        drop(gate);
        match entered {
            Ok(turn) => {
                self.turn = Some(turn);
                CustodyEvent::HandedIn
            }
            Err(NotStarted::NoRoom(fault)) => CustodyEvent::NoRoom(Box::new(fault)),
            Err(NotStarted::Failed(fault)) => CustodyEvent::NotHandedIn(Box::new(fault)),
        }
    }

    /// Waits until the job's turn has come.
    async fn turn(&mut self) -> CustodyEvent {
        let Some(told) = &mut self.turn else { return CustodyEvent::WaitingLost };
        loop {
            match *told.borrow_and_update() {
                Turn::NotYet => {}
                Turn::Yours => return CustodyEvent::Turn,
                Turn::Over => return CustodyEvent::OverMeanwhile,
                Turn::Lost => return CustodyEvent::WaitingLost,
            }
            tokio::select! {
                changed = told.changed() => {
                    if changed.is_err() {
                        return CustodyEvent::WaitingLost;
                    }
                }
                Some(()) = self.asked.recv() => return CustodyEvent::EndAsked,
                () = reached(self.core.end_by()) => return CustodyEvent::EndDue,
            }
        }
    }

    /// The runner that was held for the job, or a new one, and the first words to it: the job is durable.
    fn start(&mut self) -> CustodyEvent {
        let held = self.held.take().and_then(|held| held.take(self.job));
        let started = match held {
            Some(started) => Ok(started),
            None => starting::start(&self.means.runner, &self.means.dir, self.job),
        };
        match started {
            Ok(started) => {
                self.link = Some(Box::new(Link::greet(started, self.job, self.means.reader(&self.agent))));
                CustodyEvent::Started
            }
            Err(NotStarted::NoRoom(fault)) => CustodyEvent::NoRoom(Box::new(fault)),
            Err(NotStarted::Failed(fault)) => CustodyEvent::NotStarted(Box::new(fault)),
        }
    }

    /// Waits for what the runner does next, and for the time to look after it.
    async fn runner(&mut self) -> CustodyEvent {
        let Some(link) = &mut self.link else { return CustodyEvent::PipesOver(None) };
        let looks = self.looks.get_or_insert_with(|| {
            let mut looks = tokio::time::interval(LOOK_EVERY);
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            looks
        });
        tokio::select! {
            word = link.next(&self.news) => match word {
                RunnerWord::AgentOver => CustodyEvent::AgentOver,
                RunnerWord::Closed => CustodyEvent::PipesOver(None),
                RunnerWord::Failed(fault) => CustodyEvent::PipesOver(Some(Box::new(fault))),
            },
            () = reached(self.core.end_by()) => CustodyEvent::EndDue,
            Some(answer) = self.asking.join_next(), if !self.asking.is_empty() => {
                CustodyEvent::Answered(match answer {
                    Ok(Ok(Some(record))) => {
                        self.unstored = Some(record);
                        RunnerAnswer::Outcome
                    }
                    Ok(Ok(None)) => RunnerAnswer::Nothing,
                    Ok(Err(_)) | Err(_) => RunnerAnswer::Silence,
                })
            }
            Some(looked) = self.looking.join_next(), if !self.looking.is_empty() => {
                CustodyEvent::Looked { cancelled: looked.unwrap_or(false) }
            }
            Some(()) = self.asked.recv() => CustodyEvent::EndAsked,
            _ = looks.tick() => CustodyEvent::LookDue,
        }
    }

    /// Waits for the exit of a runner whose pipes are over.
    async fn exit(&mut self) -> CustodyEvent {
        let Some(child) = &mut self.leaving else { return CustodyEvent::Exited(None) };
        let exited = tokio::time::timeout(EXIT_LIMIT, child.wait()).await;
        self.leaving = None;
        match exited {
            Ok(code) => CustodyEvent::Exited(code),
            Err(_) => {
                tracing::warn!(job = %self.job, "a runner did not exit after its job");
                CustodyEvent::NotExited
            }
        }
    }

    /// Reads what the store says.
    async fn read(&mut self) -> StoreAnswer {
        match self.means.store.job(self.job).await {
            Ok(record) => {
                let state = record.state;
                self.record = Some(record);
                StoreAnswer::State(state)
            }
            Err(StoreError::UnknownJob(_)) => {
                tracing::error!(job = %self.job, "the store has forgotten a job that was not over");
                StoreAnswer::Unknown
            }
            Err(error) => {
                tracing::warn!(job = %self.job, %error, "the store cannot say yet what became of a job");
                StoreAnswer::Silence
            }
        }
    }

    async fn settle(&mut self, why: Fault) -> CustodyEvent {
        loop {
            return match sweep::settle(&self.means.store, &self.means.dir, self.job, why.clone()).await {
                Ok(Settlement::Terminal(record)) => {
                    self.record = Some(*record);
                    CustodyEvent::Settled
                }
                // Another process holds the job's lock, so it is in good hands.
                Ok(Settlement::InOtherHands) => CustodyEvent::Elsewhere,
                Ok(Settlement::NotBefore(over)) => {
                    let left = Duration::from_millis(over.since(UnixMillis::now()));
                    tokio::time::sleep(left + Duration::from_millis(1)).await;
                    continue;
                }
                Err(fault) => {
                    tracing::warn!(job = %self.job, %fault, "a lost job is not settled yet");
                    CustodyEvent::NotSettled
                }
            };
        }
    }

    fn publish(&self, record: JobRecord) -> Arc<JobRecord> {
        let record = Arc::new(record);
        self.news.send_modify(|live| {
            live.events += 1;
            live.phase = Phase::Ending;
            live.finished = Some(Arc::clone(&record));
        });
        record
    }
}

/// Waits until this moment; for ever where there is none.
async fn reached(moment: Option<std::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(Instant::from_std(moment)).await,
        None => pending().await,
    }
}

/// Tells what the runner said about an outcome that is not stored.
fn tell(news: &watch::Sender<JobLive>, job: JobId, record: JobRecord) {
    if record.id != job || !record.state.is_terminal() {
        tracing::warn!(%job, "a runner told the outcome of something else");
        return;
    }
    news.send_if_modified(|live| {
        let new = live.unstored.is_none();
        if new {
            live.events += 1;
            live.phase = Phase::Storing;
            live.unstored = Some(Arc::new(record));
        }
        new
    });
}
