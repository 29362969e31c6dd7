//! The waiting process: what [`super::core`] decides, done.
//!
//! Owns: the lock and the bell, the threads that are blocked on runs, the runners it starts itself, its end of the host's
//! pipes. May not know: when whose turn it is.
//!
//! Its environment is that of its host, and of the runners of the host's own jobs. What those of a caller are started with is
//! held for each until it has begun. It holds no job's lock but for the moment in which it ends one that never began.

use std::collections::HashMap;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::process::ChildStdin;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::core::{WaitingCore, WaitingEffect, WaitingEvent};
use super::wire::{self, FromWaiting, Pieces, ToWaiting};
use crate::agents::{RunEnd, StopCause};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{HostId, JobId, UnixMillis};
use crate::base::signals;
use crate::base::state_dir::StateDir;
use crate::base::tasks::TaskSet;
use crate::exec::lines::LineReader;
use crate::jobs::evidence::{JobEvidence, WaiterLock};
use crate::jobs::host_lock::HostLock;
use crate::jobs::lock::{JobLock, LockError};
use crate::jobs::store::{CancelState, StoreError, StoreHandle};
use crate::jobs::{CancelReason, JobOutcome, JobState, sweep};
use crate::runner::{Begins, NOT_YET, RunnerCommand, RunnerManner};

/// Stack of a thread that does nothing but to be blocked on a lock.
const STACK: usize = 64 * 1024;

/// How often cancels are looked for where the file system has no FIFO to ring.
const NO_BELL: Duration = Duration::from_secs(1);

/// Longest a word to the host may take. A host that reads nothing is stuck, and hears of it from the store.
const WORD: Duration = Duration::from_secs(1);

/// Times a verb is tried that ends a job, and the pause between; then the job is looked at anew.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// What a waiting process is started with.
pub struct WaitingOptions {
    /// Where jobs and locks lie.
    pub dir: StateDir,
    /// How it starts runners, of which each inherits its environment unless it came with another one.
    pub runner: RunnerCommand,
    /// Agent runs at once.
    pub max_running: usize,
    /// How long jobs wait to be adopted when the host is gone; zero when they do not.
    pub orphan_grace: Duration,
}

/// Why a waiting process could not go on. Its jobs are its host's again, or a sweep's.
#[derive(Debug, thiserror::Error)]
pub enum WaitingError {
    /// Its own lock cannot be had.
    #[error("take the lock of a waiting process")]
    Lock(#[from] LockError),
    /// Signals cannot be heard.
    #[error("listen for signals")]
    Signal(#[source] std::io::Error),
    /// It would not know what to start the job's runner with.
    #[error("learn the environment of job {0}")]
    NotWhole(JobId),
}

/// Waits with jobs until none is left and the host is gone, or TERM comes. For the main function of a process that does
/// nothing else.
///
/// # Errors
///
/// It could not begin.
///
/// # Cancel safety
///
/// Not safe: what is under way is lost; the jobs are then as after its death.
pub async fn run<R, W>(options: WaitingOptions, reader: R, writer: W) -> Result<(), WaitingError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut terminate = signal(SignalKind::terminate()).map_err(WaitingError::Signal)?;
    let _others = deaf().map_err(WaitingError::Signal)?;
    let (lock, has_bell) = WaiterLock::take(&options.dir)?;
    let bell = has_bell.then(|| Bell::open(&options.dir, &lock).ok()).flatten();
    let (freed, mut frees) = mpsc::unbounded_channel();
    let store = StoreHandle::sqlite(options.dir.clone());
    let mut process = Process {
        core: WaitingCore::new(options.max_running).with_orphan_grace(options.orphan_grace),
        store: store.clone(),
        options,
        lock,
        freed,
        runners: TaskSet::new(),
        lifelines: Vec::new(),
        pieces: Pieces::default(),
        manners: HashMap::new(),
        writer: Some(writer),
    };
    let mut lines = LineReader::after(&[], reader);
    let mut host_there = true;
    let mut events = Vec::new();
    while !process.core.is_over() {
        let due = process.core.wake_at();
        let at = due.map_or_else(tokio::time::Instant::now, Into::into);
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            line = lines.next(), if host_there => match line {
                Ok(Some(line)) => events.extend(process.heard(&line)?),
                Ok(None) | Err(_) => {
                    host_there = false;
                    process.lifelines.clear();
                    events.push(WaitingEvent::HostGone);
                }
            },
            Some(freed) = frees.recv() => events.push(freed),
            Some(over) = process.runners.join_next() => events.extend(over.ok()),
            () = rung(bell.as_ref()) => events.push(WaitingEvent::Rang),
            () = tokio::time::sleep_until(at), if due.is_some() => events.push(WaitingEvent::Due),
        }
        // All there is to be heard first: a burst is one look, and one note in the store.
        while let Some(line) = lines.ready() {
            events.extend(process.heard(&line)?);
        }
        while let Ok(freed) = frees.try_recv() {
            events.push(freed);
        }
        process.handle(std::mem::take(&mut events)).await;
    }
    store.close().await;
    Ok(())
}

/// Has the signals ignored that are meant for others of our name, or for a terminal.
fn deaf() -> std::io::Result<Vec<Signal>> {
    use SignalKind as Kind;
    let others =
        [Kind::hangup(), Kind::interrupt(), Kind::quit(), Kind::user_defined1(), Kind::user_defined2(), Kind::alarm()];
    others.into_iter().map(signal).collect()
}

/// The bell, with an end of our own to ring it, so that it never reads as closed.
struct Bell {
    listening: pipe::Receiver,
    _own: pipe::Sender,
}

impl Bell {
    fn open(dir: &StateDir, lock: &WaiterLock) -> std::io::Result<Self> {
        let path = dir.waiter_bell(lock.id());
        let listening = pipe::OpenOptions::new().open_receiver(&path)?;
        let own = pipe::OpenOptions::new().open_sender(&path)?;
        Ok(Self { listening, _own: own })
    }
}

async fn rung(bell: Option<&Bell>) {
    let Some(bell) = bell else { return tokio::time::sleep(NO_BELL).await };
    let mut strokes = [0; 64];
    while bell.listening.readable().await.is_ok() {
        let mut any = false;
        while matches!(bell.listening.try_read(&mut strokes), Ok(count) if count > 0) {
            any = true;
        }
        if any {
            return;
        }
    }
    std::future::pending::<()>().await;
}

struct Process<W> {
    core: WaitingCore,
    options: WaitingOptions,
    store: StoreHandle,
    lock: WaiterLock,
    /// Where the threads say that a lock is free that they were blocked on.
    freed: mpsc::UnboundedSender<WaitingEvent>,
    /// Runners of ours; each ends as an event.
    runners: TaskSet<WaitingEvent>,
    /// What tells runners of ours that their host is there: one that is stuck is not gone.
    lifelines: Vec<(JobId, ChildStdin)>,
    /// What has come of the manner of the next job.
    pieces: Pieces,
    /// How the runners of callers' jobs are started. No more of them than of jobs; who has the same shares it.
    manners: HashMap<JobId, Arc<RunnerManner>>,
    writer: Option<W>,
}

impl<W: AsyncWrite + Unpin> Process<W> {
    /// What a line of the host means; nothing where it is none of ours.
    fn heard(&mut self, line: &[u8]) -> Result<Option<WaitingEvent>, WaitingError> {
        let Some(word) = wire::read(line) else { return Ok(None) };
        Ok(Some(match word {
            ToWaiting::Piece { job, at, bytes } => {
                self.pieces.take(job, at, &bytes.0);
                return Ok(None);
            }
            ToWaiting::WaitAs(job, bytes) => {
                self.learn(job, bytes)?;
                WaitingEvent::Came(job)
            }
            ToWaiting::AgainAs(job, bytes) => {
                self.learn(job, bytes)?;
                WaitingEvent::CameAgain(job)
            }
            ToWaiting::Wait(job) => WaitingEvent::Came(job),
            ToWaiting::Again(job) => WaitingEvent::CameAgain(job),
            ToWaiting::Taken(job) => WaitingEvent::Taken(job),
            ToWaiting::Yours(job) => WaitingEvent::Refused(job),
            ToWaiting::Leave(job) => WaitingEvent::Left(job),
        }))
    }

    /// Learns how the runner of a job is started. Without that nothing may be started for it, so its host has to know.
    fn learn(&mut self, job: JobId, bytes: usize) -> Result<(), WaitingError> {
        let manner = self.pieces.whole(job, bytes).ok_or(WaitingError::NotWhole(job))?;
        let known = self.manners.values().find(|known| ***known == manner).map(Arc::clone);
        self.manners.insert(job, known.unwrap_or_else(|| Arc::new(manner)));
        Ok(())
    }

    async fn handle(&mut self, events: Vec<WaitingEvent>) {
        self.go_through(events).await;
        let core = &self.core;
        self.manners.retain(|job, _| core.has(*job));
    }

    async fn go_through(&mut self, mut events: Vec<WaitingEvent>) {
        let came: Vec<JobId> = events
            .iter()
            .filter_map(|event| match event {
                WaitingEvent::Came(job) | WaitingEvent::CameAgain(job) => Some(*job),
                _ => None,
            })
            .collect();
        if !came.is_empty() {
            match self.store.wait_with(came, self.lock.id()).await {
                Ok(others) if others.is_empty() => {}
                // Cancelled before we could be woken for it, or over: or nobody knows.
                Ok(_) | Err(_) => events.push(WaitingEvent::Doubtful),
            }
        }
        let mut events = std::collections::VecDeque::from(events);
        loop {
            while let Some(event) = events.pop_front() {
                if let WaitingEvent::NotYet(job) | WaitingEvent::RunnerOver(job) = event {
                    self.lifelines.retain(|(of, _)| *of != job);
                }
                for effect in self.core.step(event, Instant::now()) {
                    events.extend(self.perform(effect).await);
                }
            }
            if !self.core.take_look() {
                return;
            }
            events.push_back(match self.store.queue().await {
                Ok(rows) => WaitingEvent::Looked(JobEvidence::new(&self.options.dir).contenders(rows)),
                Err(error) => {
                    tracing::warn!(%error, "the queue cannot be looked at");
                    WaitingEvent::NotSeen
                }
            });
        }
    }

    async fn perform(&mut self, effect: WaitingEffect) -> Option<WaitingEvent> {
        match effect {
            WaitingEffect::Offer(job) => {
                self.say(FromWaiting::Turn(job)).await;
                None
            }
            WaitingEffect::TellOver(job) => {
                self.say(FromWaiting::Over(job)).await;
                None
            }
            WaitingEffect::TellMoved => {
                self.say(FromWaiting::Moved).await;
                None
            }
            WaitingEffect::Start(job) => self.start(job),
            WaitingEffect::Watch(job) => {
                self.watch(WaitingEvent::Freed(job), move |dir| JobLock::wait_until_free(dir, job))
            }
            WaitingEffect::WatchHost(host) => self.watch_host(host),
            WaitingEffect::Cancel(job, reason) => self.end(job, Some(reason)).await,
            WaitingEffect::Expire(job) => self.end(job, None).await,
            WaitingEffect::Lost(job) => {
                let why = Fault::new(FaultCode::RunnerLost, "the job's runners ended without having begun it.");
                if let Err(fault) = sweep::settle(&self.store, &self.options.dir, job, why).await {
                    tracing::error!(%job, %fault, "a job that cannot be run was not settled");
                }
                None
            }
        }
    }

    async fn say(&mut self, word: FromWaiting) {
        let Some(writer) = &mut self.writer else { return };
        let line = wire::line(&word);
        let said = async {
            writer.write_all(&line).await?;
            writer.flush().await
        };
        if !matches!(tokio::time::timeout(WORD, said).await, Ok(Ok(()))) {
            // A line may be half written now, so nothing more is said; offers run out of time, and the store has the rest.
            tracing::warn!("the host does not hear its waiting process");
            self.writer = None;
        }
    }

    /// Has a thread blocked on a lock; what is to be told when it is free. Without a thread it counts as free, and is looked at
    /// again instead.
    fn watch(
        &mut self,
        told: WaitingEvent,
        blocks: impl FnOnce(&StateDir) -> Result<(), LockError> + Send + 'static,
    ) -> Option<WaitingEvent> {
        let (dir, freed, tells) = (self.options.dir.clone(), self.freed.clone(), told.clone());
        let blocked = std::thread::Builder::new().name("watch".to_owned()).stack_size(STACK).spawn(move || {
            signals::leave_to_others();
            if let Err(error) = blocks(&dir) {
                tracing::warn!(%error, "a lock cannot be waited for");
            }
            let _ = freed.send(tells);
        });
        blocked.err().map(|_| told)
    }

    fn watch_host(&mut self, host: HostId) -> Option<WaitingEvent> {
        self.watch(WaitingEvent::HostFreed(host), move |dir| HostLock::wait_until_gone(dir, host))
    }

    /// Starts a runner that has no host to talk to. Whether its host lives is told by a pipe we hold.
    fn start(&mut self, job: JobId) -> Option<WaitingEvent> {
        let pipes = |command: &mut tokio::process::Command| {
            let words = self.options.dir.open_job_log(job).map_or_else(|_| Stdio::null(), Stdio::from);
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(words);
        };
        let runner = &self.options.runner;
        let started = match self.manners.get(&job) {
            Some(manner) => runner.start_in(manner, job, Begins::AtOnce, pipes),
            None => runner.start(job, Begins::AtOnce, pipes),
        };
        match started {
            Ok(mut child) => {
                if let (Some(lifeline), true) = (child.stdin.take(), self.writer.is_some()) {
                    self.lifelines.push((job, lifeline));
                }
                self.runners.spawn(async move { ended(job, child.wait().await.ok()) });
                None
            }
            Err(error) => {
                tracing::warn!(%job, %error, "a runner could not be started; it is tried again");
                Some(WaitingEvent::NotYet(job))
            }
        }
    }

    /// Ends a job that never began.
    async fn end(&mut self, job: JobId, reason: Option<CancelReason>) -> Option<WaitingEvent> {
        for _ in 0..TRIES {
            match self.try_to_end(job, reason).await {
                Ok(()) => return None,
                Err(error) => {
                    tracing::warn!(%job, %error, "a waiting job is not ended yet");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        Some(WaitingEvent::Came(job))
    }

    async fn try_to_end(&self, job: JobId, reason: Option<CancelReason>) -> Result<(), StoreError> {
        let unusable = |error: LockError| StoreError::Io { detail: error.to_string() };
        // Somebody who has it is a runner, and finds the request itself.
        let Some(_lock) = JobLock::try_acquire(&self.options.dir, job).map_err(unusable)? else { return Ok(()) };
        if reason == Some(CancelReason::CallerLost)
            && self.store.request_cancel(job, CancelReason::CallerLost).await? == CancelState::GoesOn
        {
            return Ok(());
        }
        let record = self.store.job(job).await?;
        if record.state != JobState::Queued {
            return Ok(());
        }
        let stop = match reason {
            Some(reason) => StopCause::Cancelled(record.cancel_requested.unwrap_or(reason)),
            None => StopCause::Faulted(Box::new(Fault::new(
                FaultCode::DeadlineExceeded,
                "the job waited a day for its turn.",
            ))),
        };
        let nothing = RunEnd { resume_requested: record.request.session_id, stop: Some(stop), ..RunEnd::default() };
        let (state, outcome) = match self.options.runner.agents().get(&record.request.agent) {
            Ok(agent) => {
                let verdict = agent.classify(nothing);
                (verdict.state, verdict.outcome)
            }
            Err(fault) => (JobState::Failed, JobOutcome { fault: Some(fault), ..JobOutcome::default() }),
        };
        let _ = self.store.finish(job, state, outcome, UnixMillis::now()).await?;
        Ok(())
    }
}

fn ended(job: JobId, status: Option<ExitStatus>) -> WaitingEvent {
    if status.and_then(|status| status.code()) == Some(i32::from(NOT_YET)) {
        WaitingEvent::NotYet(job)
    } else {
        WaitingEvent::RunnerOver(job)
    }
}
