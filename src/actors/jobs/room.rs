//! A host's waiting jobs, and the process that waits with them.
//!
//! Owns: that process's start and end as far as the host decides them, the pipes to it, who of the host's custodies is told
//! what, the places that are shown. May not know: what a custody does with its turn.
//!
//! The process is started for the first job that waits, and let go when none does any more: it ends by itself then, as it does
//! when it is left alone with its jobs and the last of them has begun. It belongs to no actor, so nobody's panic costs it.
//!
//! Invariants: (1) what was handed in is in its hands until it is taken, over or lost, and each is told once; (2) a turn that
//! nobody attends to is given back; (3) the host has no timer for waiting jobs: places are looked at when they have changed,
//! once in two seconds at most, by one look for all.

use std::collections::{BTreeMap, HashMap};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::fd::{AsFd, OwnedFd};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::custody::core::HandIn;
use super::means::Means;
use super::runner_child::{Leaving, RunnerChild};
use super::starting::NotStarted;
use crate::base::descriptors::{InheritedPipes, PassedPipe};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::JobId;
use crate::base::tasks::TaskSet;
use crate::exec::lines::LineReader;
use crate::exec::local::is_no_room;
use crate::jobs::JobState;
use crate::jobs::live::{JobLive, Phase};
use crate::runner::RunnerManner;
use crate::waiting::wire::{self, First, FromWaiting, ToWaiting};

/// How often places are looked at, at most.
const PLACES: Duration = Duration::from_secs(2);

/// How long a process that has closed its pipes may take to exit.
const EXIT_LIMIT: Duration = Duration::from_secs(5);

/// What a waiting job's custody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing yet.
    NotYet,
    /// It is its turn.
    Yours,
    /// The job is over, or in other hands.
    Over,
    /// Who waited with it is gone.
    Lost,
}

struct Entry {
    turn: watch::Sender<Turn>,
    /// How its runner is started, where that is not as the host's own.
    manner: Option<Arc<RunnerManner>>,
    news: watch::Sender<JobLive>,
}

/// The process that waits.
struct Link {
    number: u64,
    pid: Option<i32>,
    /// The same pipes once more, for the next image of this program.
    ends: Option<Ends>,
    words: mpsc::UnboundedSender<ToWaiting>,
}

/// Our ends of its pipes.
struct Ends {
    input: OwnedFd,
    output: OwnedFd,
}

impl Ends {
    fn again(input: &impl AsFd, output: &impl AsFd) -> std::io::Result<Self> {
        let again = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned();
        Ok(Self { input: again(input)?, output: again(output)? })
    }
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<JobId, Entry>,
    link: Option<Link>,
    /// A process another image started, or one whose talk was interrupted, until somebody enters.
    resting: Option<(RunnerChild, Ends)>,
    links: u64,
    talks: TaskSet<()>,
}

/// Whether a system begins jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Beginning {
    /// When their turn has come.
    #[default]
    AsUsual,
    /// Not until it is told. What is accepted waits.
    Paused,
    /// What was accepted, and nothing more is: another host takes it.
    Refused,
}

struct Shared {
    state: Mutex<State>,
    beginning: watch::Sender<Beginning>,
    /// Held by whoever looks whether its job has to wait at all: the next one may find that others do.
    gate: tokio::sync::Mutex<()>,
    /// Runners that need no place any more.
    leaving: Leaving,
}

/// Where a host's jobs wait. Cheap to clone.
#[derive(Clone)]
pub struct Room(Arc<Shared>);

impl Default for Room {
    fn default() -> Self {
        let beginning = watch::Sender::new(Beginning::default());
        let gate = tokio::sync::Mutex::default();
        Self(Arc::new(Shared { state: Mutex::default(), beginning, gate, leaving: Leaving::default() }))
    }
}

/// The process that waits, passed on to the next image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoomSnapshot {
    pid: i32,
    input: PassedPipe,
    output: PassedPipe,
}

impl RoomSnapshot {
    /// The pipes that go with it.
    pub fn pipes(&self) -> impl Iterator<Item = &PassedPipe> {
        [&self.input, &self.output].into_iter()
    }

    /// Its process.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid
    }
}

impl Room {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }

    /// The runners whose end is due.
    #[must_use]
    pub fn leaving(&self) -> &Leaving {
        &self.0.leaving
    }

    /// From now on jobs are begun like this.
    pub fn set_beginning(&self, beginning: Beginning) {
        self.0.beginning.send_replace(beginning);
    }

    /// Whether jobs are begun.
    #[must_use]
    pub fn beginning(&self) -> Beginning {
        *self.0.beginning.borrow()
    }

    /// The same, as it changes.
    #[must_use]
    pub fn beginnings(&self) -> watch::Receiver<Beginning> {
        self.0.beginning.subscribe()
    }

    /// Resolves when jobs are begun.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn begins(&self) {
        // Its sender is in `self`.
        let _ = self.0.beginning.subscribe().wait_for(|beginning| *beginning != Beginning::Paused).await;
    }

    /// Whether jobs wait already, so that another one has to.
    #[must_use]
    pub fn is_used(&self) -> bool {
        !self.state().waiting.is_empty()
    }

    /// One look at a time whether a job has to wait.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn gate(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.gate.lock().await
    }

    /// Hands in a job, or finds it where it was handed in before, and returns where its turn is told.
    ///
    /// # Errors
    ///
    /// Nobody can be started who would wait with it.
    pub(super) fn enter(
        &self,
        job: JobId,
        hand_in: HandIn,
        news: &watch::Sender<JobLive>,
        means: &Means,
    ) -> Result<watch::Receiver<Turn>, NotStarted> {
        let mut state = self.state();
        while state.talks.try_join_next().is_some() {}
        if state.link.is_none() {
            self.connect(&mut state, means)?;
        }
        if let Some(entry) = state.waiting.get(&job) {
            return Ok(entry.turn.subscribe());
        }
        let (turn, told) = watch::channel(Turn::NotYet);
        let manner = means.runner.callers_manner().cloned();
        state.waiting.insert(job, Entry { turn, manner, news: news.clone() });
        state.hand_in(job, if hand_in == HandIn::Again { First::No } else { First::Yes });
        Ok(told)
    }

    /// The job's runner was started, or it is looked after otherwise.
    pub fn leave(&self, job: JobId, word: fn(JobId) -> ToWaiting) {
        let mut state = self.state();
        if state.waiting.remove(&job).is_some() {
            state.say(word(job));
        }
        state.end_if_unused();
    }

    /// Ends the process, which does not do as it is told. Its jobs are handed in anew.
    pub fn kill(&self) {
        let state = self.state();
        if let Some(pid) = state.link.as_ref().and_then(|link| link.pid).and_then(rustix::process::Pid::from_raw) {
            tracing::warn!("a waiting process does not do as it is told, and is ended");
            // The talk with it waits for it after its pipes have ended, so the number is still its own.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    /// Gets somebody to wait: who is there from before, or a new process.
    fn connect(&self, state: &mut State, means: &Means) -> Result<(), NotStarted> {
        let failed = |error: std::io::Error| {
            let why = format!("nobody can be started to wait with the job: {error}.");
            let fault = Fault::new(FaultCode::RunnerSpawnFailed, why);
            if is_no_room(&error) { NotStarted::NoRoom(fault) } else { NotStarted::Failed(fault) }
        };
        let (child, ends) = match state.resting.take() {
            Some(resting) => resting,
            None => {
                let started = means.runner.start_waiting(|command| {
                    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
                });
                let mut child = started.map_err(failed)?;
                let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
                    return Err(failed(std::io::ErrorKind::BrokenPipe.into()));
                };
                let ends = Ends {
                    input: input.into_owned_fd().map_err(failed)?,
                    output: output.into_owned_fd().map_err(failed)?,
                };
                (RunnerChild::Ours(child), ends)
            }
        };
        let kept = Ends::again(&ends.input, &ends.output).ok();
        let writer = pipe::Sender::from_owned_fd(ends.input).map_err(failed)?;
        let reader = pipe::Receiver::from_owned_fd(ends.output).map_err(failed)?;
        let (words, said) = mpsc::unbounded_channel();
        state.links += 1;
        let number = state.links;
        state.link = Some(Link { number, pid: child.pid(), ends: kept, words });
        let talk = Talk { room: Arc::downgrade(&self.0), number, child, means: means.clone() };
        state.talks.spawn(talk.run(reader, writer, said));
        Ok(())
    }

    /// Lets go of the pipes between two words, for the next image. Nobody is told anything meanwhile.
    ///
    /// # Cancel safety
    ///
    /// Not safe: the process may be talked to by nobody; entering again mends it.
    pub async fn let_go(&self) -> Option<RoomSnapshot> {
        let (link, mut talks) = {
            let mut state = self.state();
            (state.link.take()?, std::mem::take(&mut state.talks))
        };
        // The sender goes first: what was to be said is said.
        let Link { pid, ends, words, .. } = link;
        let (pid, ends) = (pid?, ends?);
        drop(words);
        talks.shutdown().await;
        let passed =
            RoomSnapshot { pid, input: PassedPipe::of(&ends.input).ok()?, output: PassedPipe::of(&ends.output).ok()? };
        if let Some(child) = RunnerChild::inherited(pid) {
            self.state().resting = Some((child, ends));
        }
        Some(passed)
    }

    /// Goes on with it when there was no next image.
    pub fn resume(&self, means: &Means) {
        let mut state = self.state();
        if state.resting.is_none() || state.link.is_some() {
            return;
        }
        if let Err(fault) = self.connect(&mut state, means) {
            tracing::error!(%fault, "the waiting process cannot be talked to again");
            return state.lose();
        }
        let jobs: Vec<JobId> = state.waiting.keys().copied().collect();
        jobs.into_iter().for_each(|job| state.hand_in(job, First::No));
        state.end_if_unused();
    }

    /// Takes in what another image passed on; whoever enters next talks to it.
    pub fn inherit(&self, passed: &RoomSnapshot, pipes: &mut InheritedPipes) {
        let ends = pipes.take(&passed.input).zip(pipes.take(&passed.output));
        match (ends, RunnerChild::inherited(passed.pid)) {
            (Some((input, output)), Some(child)) => self.state().resting = Some((child, Ends { input, output })),
            _ => tracing::error!("the pipes of the waiting process were not passed on"),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic leaves it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Hands in a job that is in the table, with what its runner is started with.
    fn hand_in(&self, job: JobId, first: First) {
        let manner = self.waiting.get(&job).and_then(|entry| entry.manner.as_deref());
        wire::hand_in(job, first, manner).into_iter().for_each(|word| self.say(word));
    }

    fn say(&self, word: ToWaiting) {
        if let Some(link) = &self.link {
            let _ = link.words.send(word);
        }
    }

    /// Lets a process go that waits with nothing of ours.
    fn end_if_unused(&mut self) {
        if self.waiting.is_empty() {
            // The end of its input tells it.
            self.link = None;
        }
    }

    fn lose(&mut self) {
        self.link = None;
        for (_, entry) in std::mem::take(&mut self.waiting) {
            let _ = entry.turn.send(Turn::Lost);
        }
    }

    /// The process has said something.
    fn heard(&mut self, word: FromWaiting) {
        match word {
            FromWaiting::Turn(job) => {
                let told = self.waiting.get(&job).is_some_and(|entry| entry.turn.send(Turn::Yours).is_ok());
                if !told {
                    self.waiting.remove(&job);
                    self.say(ToWaiting::Yours(job));
                }
            }
            FromWaiting::Over(job) => {
                if let Some(entry) = self.waiting.remove(&job) {
                    let _ = entry.turn.send(Turn::Over);
                }
            }
            FromWaiting::Moved => {}
        }
        self.end_if_unused();
    }
}

/// The talk with one process, from its start to its end.
struct Talk {
    room: Weak<Shared>,
    number: u64,
    child: RunnerChild,
    means: Means,
}

impl Talk {
    async fn run(mut self, reader: pipe::Receiver, writer: pipe::Sender, mut said: mpsc::UnboundedReceiver<ToWaiting>) {
        let mut lines = LineReader::after(&[], reader);
        let mut writer = Some(writer);
        // The first who waits is to know its place.
        let mut places_at = Some(Instant::now());
        loop {
            let at = places_at.unwrap_or_else(Instant::now);
            tokio::select! {
                line = lines.next() => {
                    let Ok(Some(line)) = line else { break };
                    let Some(word) = wire::read::<FromWaiting>(&line) else { continue };
                    if word == FromWaiting::Moved {
                        places_at.get_or_insert_with(|| Instant::now() + PLACES);
                    } else if let Some(room) = self.room.upgrade() {
                        room.state().heard(word);
                    }
                }
                word = said.recv(), if writer.is_some() => match (word, &mut writer) {
                    (Some(word), Some(to)) => {
                        if word.hands_in() {
                            places_at.get_or_insert_with(|| Instant::now() + PLACES);
                        }
                        // Shorter than what a pipe takes at once or not at all. Who is gone is noticed by its output.
                        let _ = to.write_all(&wire::line(&word)).await;
                    }
                    _ => writer = None,
                },
                () = tokio::time::sleep_until(at), if places_at.is_some() => {
                    places_at = None;
                    self.show_places().await;
                }
            }
        }
        if let Some(room) = self.room.upgrade() {
            let mut state = room.state();
            if state.link.as_ref().is_some_and(|link| link.number == self.number) {
                tracing::warn!("who waited with queued jobs is gone; they are handed in anew");
                state.lose();
            }
        }
        let _ = tokio::time::timeout(EXIT_LIMIT, self.child.wait()).await;
    }

    /// Shows everybody who waits where it stands.
    async fn show_places(&self) {
        let Some(room) = self.room.upgrade() else { return };
        if room.state().waiting.is_empty() {
            return;
        }
        let Ok(rows) = self.means.store.queue().await else { return };
        let waiting = rows.iter().filter(|row| row.state == JobState::Queued);
        let places: HashMap<JobId, usize> = waiting.enumerate().map(|(at, row)| (row.job, at + 1)).collect();
        for (job, entry) in &room.state().waiting {
            let Some(&place) = places.get(job) else { continue };
            entry.news.send_if_modified(|live| {
                let changed = matches!(live.phase, Phase::Queued(before) if before != Some(place));
                if changed {
                    live.phase = Phase::Queued(Some(place));
                }
                changed
            });
        }
    }
}
