//! Custody of one job: its runner's process, the pipes to it, the news that come through them.
//!
//! Owns: the runner's start, the pipes, what becomes of a runner that is gone. May not know: who waits, what the answer is
//! for. The pipes cannot be made again, so no actor owns them: a custody is kept beside the tree and lent to the consult
//! actor of the moment.
//!
//! ```text
//!  Waiting ──its turn──▶ Starting ──spawned──▶ Following ──pipes over──▶ Leaving ──exited──▶ Judging ──over──▶ done
//!      ▲                                                                   └── over already ──────┼─────────▶ done
//!      │                                                                                        ├── still queued
//!      └────────────────────────────────────────────────────────────────────────────────────────┘── else: settle
//! ```
//!
//! A runner that is stopped or hangs keeps neither deadline nor cancel. It is asked something over its pipe when its time is
//! over: one that answers knows its own business (it may be waiting for the store), one that does not is ended itself.
//!
//! Invariants: (1) a runner is spoken to, and so begins, for a job the store has, never the other way round; (2) the pipe's end is not the
//! truth: what became of the job is read from the store; (3) a runner that is gone without an outcome leaves a job that is
//! settled here, with the job's lock as evidence; (4) every stage is in `self`, so another incarnation goes on from there;
//! (5) an outcome the store does not take yet is news for whoever waits, and nothing else.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rustix::fd::{AsFd, OwnedFd};
use serde::{Deserialize, Serialize};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::attachments::{Attachment, Attachments};
use super::means::Means;
use super::room::{HandIn, Room, RoomSnapshot, Turn};
use super::runner_child::RunnerChild;
use super::starting::{self, HeldRunner, NotStarted, Started};
use crate::agents::{AgentEvent, OutputReader};
use crate::base::base64::Base64;
use crate::base::descriptors::{InheritedPipes, PassedPipe};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{InvocationId, JobId};
use crate::base::procfs;
use crate::exec::client::{ExecClient, ExecError, Handover};
use crate::exec::session::EventStream;
use crate::exec::{Cursor, OutputStream, ProcessEvent};
use crate::jobs::admission::{Position, plan};
use crate::jobs::evidence::JobEvidence;
use crate::jobs::live::{JobLive, Phase};
use crate::jobs::store::{StoreError, StoreHandle};
use crate::jobs::sweep;
use crate::jobs::{JobMode, JobRecord, JobState};
use crate::runner::{NOT_YET, outcome_channel};
use crate::waiting::wire::ToWaiting;

/// Runners started for one job as long as none of them got to start the agent.
const RUNNER_STARTS: u32 = 2;

/// How long a runner that has said everything may take to exit.
const EXIT_LIMIT: Duration = Duration::from_secs(5);

/// How long a runner that was asked to end its job may take. It needs the agent's grace (300 ms), a kill and one commit; a
/// store that is busy takes seconds. One that takes longer stands still, and is ended itself.
const END_LIMIT: Duration = Duration::from_secs(15);

/// How often the loss of who waited with a job is borne, one after the other; then the job is settled.
const LOSSES: u32 = 8;

/// The pause after the first of them; it doubles with each.
const LOSS_PAUSE: Duration = Duration::from_millis(50);

/// How often a job that has a runner is looked at: an ended one's outcome, whether a running one should be over.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long an accepted job waits for a runner because the system has nothing to start one with. Those that run give back
/// what they have within their own deadlines, an hour by default; what is not free by then is not ours to wait for.
const ROOM_LIMIT: Duration = Duration::from_secs(3600);

/// Looks between two at the store for a cancel by another process. The runner finds one itself within 250 ms.
const CANCEL_LOOKS: u32 = 5;

/// How long a runner whose time is over may take to answer anything.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How long a store that refuses is asked what became of a job whose runner is gone, before a sweep is left with it.
const JUDGE_LIMIT: Duration = Duration::from_secs(15 * 60);

/// The pauses between, from the first to the longest.
const JUDGE_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// A runner that is spoken to.
struct Link {
    child: RunnerChild,
    /// The same two pipes once more: the next image of this program goes on with them. `None` when there was no room for
    /// them, and then there is no upgrade while the job runs.
    ends: Option<Ends>,
    /// The connection while nobody has it: between two images, or between letting go and going on after all.
    resting: Option<(Handover, u64)>,
    /// The handshake; a task of its own, so that nobody who stops waiting for it loses the pipes.
    connecting: JoinSet<Result<(ExecClient, EventStream), Fault>>,
    connected: Option<(ExecClient, EventStream)>,
    reader: Option<OutputReader>,
}

/// Our ends of a runner's pipes.
struct Ends {
    /// What the runner reads.
    input: OwnedFd,
    /// What it writes.
    output: OwnedFd,
}

enum Stage {
    Waiting(HandIn),
    Starting,
    Following(Box<Link>),
    Leaving(Box<RunnerChild>),
    Judging,
}

/// Custody of one job, passed on to the next image of this program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CustodySnapshot {
    job: JobId,
    agent: String,
    mode: JobMode,
    callers: Vec<InvocationId>,
    starts: u32,
    why: Option<Fault>,
    stage: StageSnapshot,
    phase: Phase,
    text: String,
    events: u64,
    /// The runner was asked to end its job.
    asked: bool,
    overdue: bool,
    /// Seconds its agent may run; 0 where an earlier image did not say.
    #[serde(default)]
    timeout_s: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
enum StageSnapshot {
    Waiting,
    Starting,
    Following(Box<LinkSnapshot>),
    Leaving { pid: i32 },
    Judging,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct LinkSnapshot {
    pid: i32,
    input: PassedPipe,
    output: PassedPipe,
    unread: Base64,
    next_id: i64,
    /// The last event that was looked at.
    seen: u64,
    /// What was read of a line of the agent's.
    partial: Base64,
}

impl CustodySnapshot {
    /// The job.
    #[must_use]
    pub fn job(&self) -> JobId {
        self.job
    }

    /// The pipes that go with it.
    pub fn pipes(&self) -> impl Iterator<Item = &PassedPipe> {
        let link = if let StageSnapshot::Following(link) = &self.stage { Some(link) } else { None };
        link.into_iter().flat_map(|link| [&link.input, &link.output])
    }

    /// The runner's process.
    fn pid(&self) -> Option<i32> {
        match &self.stage {
            StageSnapshot::Following(link) => Some(link.pid),
            StageSnapshot::Leaving { pid } => Some(*pid),
            StageSnapshot::Waiting | StageSnapshot::Starting | StageSnapshot::Judging => None,
        }
    }
}

/// Custody of one job.
pub struct Custody {
    job: JobId,
    agent: String,
    means: Means,
    news: watch::Sender<JobLive>,
    asked: mpsc::Receiver<()>,
    starts: u32,
    why: Option<Fault>,
    stage: Stage,
    /// A runner that was started beside the accept, for a job that has not had to wait.
    held: Option<HeldRunner>,
    room: Room,
    /// How often who waited with it was lost since it was last seen to wait.
    losses: u32,
    /// Requests to end on their way to the runner.
    telling: JoinSet<()>,
    /// When a runner that was asked to end its job must have done so.
    end_by: Option<Instant>,
    /// It has not.
    overdue: bool,
    /// Since when there is nothing to start a runner with.
    no_room_since: Option<Instant>,
    vigil: Vigil,
}

/// What a runner is watched by, besides its pipe.
struct Vigil {
    /// How long its agent may run; zero when that is not known.
    timeout: Duration,
    /// Since when the job is known to run.
    running: Option<Instant>,
    /// The agent is known to be over, or may be: its outcome is asked for.
    over: bool,
    /// The runner's time is over: if it does not answer, it is ended.
    due: bool,
    looks: u32,
    /// A question to the runner, and what it had to say about an outcome.
    asking: JoinSet<Result<Option<JobRecord>, ExecError>>,
    /// A look at the store; whether somebody wants the job to end.
    looking: JoinSet<bool>,
}

impl Vigil {
    fn of(timeout: Duration) -> Self {
        Self {
            timeout,
            running: None,
            over: false,
            due: false,
            looks: 0,
            asking: JoinSet::new(),
            looking: JoinSet::new(),
        }
    }

    /// Asks the runner for an outcome the store does not take.
    fn ask(&mut self, client: &ExecClient, job: JobId) {
        if self.asking.is_empty() {
            let (client, channel) = (client.clone(), outcome_channel(&job.to_string()));
            self.asking.spawn(async move {
                let read = client.read(&channel, 0, None, Duration::ZERO);
                let limit = || ExecError::Deadline { method: "process/read", within: ANSWER_LIMIT };
                let read = tokio::time::timeout(ANSWER_LIMIT, read).await.map_err(|_| limit())?;
                match read {
                    Ok(read) if read.closed => {
                        let bytes: Vec<u8> = read.chunks.iter().flat_map(|chunk| chunk.bytes.iter().copied()).collect();
                        Ok(serde_json::from_slice(&bytes).ok())
                    }
                    // A runner that knows no such thing answers as well.
                    Ok(_) | Err(ExecError::Refused { .. }) => Ok(None),
                    Err(error) => Err(error),
                }
            });
        }
    }

    /// Looks after a running job, every [`LOOK_EVERY`].
    fn keep(&mut self, store: &StoreHandle, client: &ExecClient, job: JobId, ending: bool) {
        self.running.get_or_insert_with(Instant::now);
        self.looks = self.looks.wrapping_add(1);
        if self.over {
            self.ask(client, job);
        }
        if !ending && self.looks.is_multiple_of(CANCEL_LOOKS) && self.looking.is_empty() {
            let store = store.clone();
            self.looking
                .spawn(async move { store.glance(job).await.is_ok_and(|glance| glance.cancel_requested.is_some()) });
        }
    }

    /// When the runner's own deadline has been over for so long that it should have ended the job.
    fn limit(&self) -> Option<Instant> {
        let since = self.running.filter(|_| !self.timeout.is_zero())?;
        since.checked_add(self.timeout)?.checked_add(END_LIMIT)
    }
}

fn pipe_failed(error: ExecError) -> Fault {
    // A runner that dies while it greets has said nothing wrong.
    let code = match error {
        ExecError::Disconnected { .. } => FaultCode::RunnerLost,
        _ => FaultCode::RunnerProtocol,
    };
    Fault::new(code, format!("the pipe to the job's runner failed: {error}."))
}

/// How long the store has been asked in vain.
#[derive(Default)]
struct Patience {
    since: Option<Instant>,
    pause: Duration,
}

impl Patience {
    /// The next pause; `None` when it was long enough.
    fn next(&mut self) -> Option<Duration> {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.pause = (self.pause * 2).clamp(JUDGE_PAUSES.0, JUDGE_PAUSES.1);
        (since.elapsed() < JUDGE_LIMIT).then_some(self.pause)
    }
}

/// What came of waiting for room.
enum Wanting {
    Perhaps,
    /// It has lasted too long.
    Never,
    /// The job is to end.
    NotWanted,
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
        Self {
            job: record.id,
            agent: record.request.agent.clone(),
            means,
            news,
            asked,
            starts: 0,
            why: None,
            stage: Stage::Waiting(HandIn::New),
            held,
            room,
            losses: 0,
            telling: JoinSet::new(),
            end_by: None,
            overdue: false,
            vigil: Vigil::of(Duration::from_secs(record.request.timeout_s)),
            no_room_since: None,
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
        let mut patience = Patience::default();
        loop {
            match &mut self.stage {
                Stage::Waiting(hand_in) => {
                    let hand_in = *hand_in;
                    match self.wait_for_turn(hand_in).await {
                        Ok(Turn::Yours) => {
                            self.show(Phase::Starting);
                            self.stage = Stage::Starting;
                        }
                        Ok(Turn::NotYet | Turn::Over) => self.judge(None),
                        Ok(Turn::Lost) => self.lost().await,
                        Err(NotStarted::NoRoom(fault)) => self.make_do(fault).await,
                        Err(NotStarted::Failed(fault)) => {
                            self.note(fault);
                            self.lost().await;
                        }
                    }
                }
                Stage::Starting => match self.start() {
                    Ok(link) => {
                        self.starts += 1;
                        self.no_room_since = None;
                        self.room.leave(self.job, ToWaiting::Taken);
                        self.stage = Stage::Following(Box::new(link));
                    }
                    Err(NotStarted::NoRoom(fault)) => self.make_do(fault).await,
                    Err(NotStarted::Failed(fault)) => {
                        self.starts += 1;
                        self.room.leave(self.job, ToWaiting::Taken);
                        self.judge(Some(fault));
                    }
                },
                Stage::Following(_) => {
                    let followed = self.follow().await;
                    if let Stage::Following(link) = std::mem::replace(&mut self.stage, Stage::Judging) {
                        // The pipes go here; a runner that has ended its job exits then.
                        self.stage = Stage::Leaving(Box::new(link.child));
                    }
                    if let Err(fault) = followed {
                        self.note(fault);
                    }
                }
                Stage::Leaving(child) => {
                    let mut overdue = self.overdue;
                    // Nobody waits for the exit of a runner that has done everything; it is seen out beside.
                    if !overdue
                        && let Ok(record) = self.means.store.job(self.job).await
                        && record.state.is_terminal()
                    {
                        if let Stage::Leaving(child) = std::mem::replace(&mut self.stage, Stage::Judging) {
                            child.see_out();
                        }
                        return Some(self.publish(record));
                    }
                    let mut code = None;
                    while overdue
                        || match tokio::time::timeout(EXIT_LIMIT, child.wait()).await {
                            Ok(exited) => {
                                code = exited;
                                false
                            }
                            Err(_) => true,
                        }
                    {
                        if !std::mem::take(&mut overdue) {
                            tracing::warn!(job = %self.job, "a runner did not exit after its job");
                            break;
                        }
                        // Its lock is free when it is gone, and the job is settled then.
                        tracing::warn!(job = %self.job, "a runner that did not end its job is ended itself");
                        child.kill();
                    }
                    if code == Some(i32::from(NOT_YET)) {
                        self.show(Phase::Queued(None));
                        // There was no slot after all, which says nothing against the runner.
                        self.starts = self.starts.saturating_sub(1);
                        self.why = None;
                    }
                    self.stage = Stage::Judging;
                }
                Stage::Judging => match self.means.store.job(self.job).await {
                    Ok(record) if record.state.is_terminal() => return Some(self.publish(record)),
                    // No agent was started, so another runner may try.
                    Ok(record) if record.state == JobState::Queued && self.starts < RUNNER_STARTS => {
                        self.stage = Stage::Waiting(HandIn::New);
                    }
                    Ok(_) => {
                        self.room.leave(self.job, ToWaiting::Leave);
                        match self.settle().await {
                            Ok(settled) => return settled,
                            Err(fault) => {
                                tracing::warn!(job = %self.job, %fault, "a lost job is not settled yet");
                                wait_for_store(&self.news, &mut patience).await?;
                            }
                        }
                    }
                    Err(StoreError::UnknownJob(_)) => {
                        tracing::error!(job = %self.job, "the store has forgotten a job that was not over");
                        return None;
                    }
                    Err(error) => {
                        tracing::warn!(job = %self.job, %error, "the store cannot say yet what became of a job");
                        wait_for_store(&self.news, &mut patience).await?;
                    }
                },
            }
        }
    }

    /// Shows where a job stands whose agent has said nothing yet.
    fn show(&self, phase: Phase) {
        self.news.send_if_modified(|live| {
            let changed = matches!(live.phase, Phase::Queued(_) | Phase::Starting) && live.phase != phase;
            if changed {
                live.phase = phase;
            }
            changed
        });
    }

    /// Waits until the job's turn has come: not at all when a slot is free and nobody is due before.
    async fn wait_for_turn(&mut self, hand_in: HandIn) -> Result<Turn, NotStarted> {
        let gate = self.room.gate().await;
        if hand_in == HandIn::New && !self.room.is_used() {
            // What cannot be looked at is tried: the runner waits for a store that is busy.
            let Ok(rows) = self.means.store.queue().await else { return Ok(Turn::Yours) };
            let contenders = JobEvidence::new(&self.means.dir).contenders(rows);
            let limit = self.means.runner.max_running();
            if !matches!(plan(&contenders, limit).position(self.job), Some(Position::Wait { .. })) {
                return Ok(Turn::Yours);
            }
        }
        // It holds nothing another one needs, but who knows how long the job waits.
        self.held = None;
        let mut told = self.room.enter(self.job, hand_in, &self.news, &self.means)?;
        drop(gate);
        self.no_room_since = None;
        loop {
            let turn = *told.borrow_and_update();
            if turn != Turn::NotYet {
                return Ok(turn);
            }
            tokio::select! {
                changed = told.changed() => {
                    if changed.is_err() {
                        return Ok(Turn::Lost);
                    }
                }
                // The request is in the store, and whoever waits was woken for it.
                Some(()) = self.asked.recv() => {
                    self.end_by.get_or_insert_with(|| Instant::now() + END_LIMIT);
                }
                () = tokio::time::sleep_until(self.end_by.unwrap_or_else(Instant::now)), if self.end_by.is_some() => {
                    self.end_by = Some(Instant::now() + END_LIMIT);
                    self.room.kill();
                }
            }
        }
    }

    /// Hands the job in anew after a while.
    async fn lost(&mut self) {
        self.losses += 1;
        if self.losses > LOSSES {
            self.starts = RUNNER_STARTS;
            return self.judge(None);
        }
        // Nobody else is to take it for a job without anybody meanwhile.
        self.means.dir.touch_job_dir(self.job);
        tokio::time::sleep(LOSS_PAUSE * (1 << self.losses.min(6))).await;
        self.stage = Stage::Waiting(HandIn::New);
    }

    fn note(&mut self, fault: Fault) {
        tracing::warn!(job = %self.job, %fault, "a runner was not attended to its end");
        self.why = Some(fault);
    }

    fn judge(&mut self, why: Option<Fault>) {
        if let Some(fault) = why {
            self.note(fault);
        }
        self.stage = Stage::Judging;
    }

    async fn settle(&mut self) -> Result<Option<Arc<JobRecord>>, Fault> {
        let lost = || Fault::new(FaultCode::RunnerLost, "the job's runner ended without an outcome.");
        let why = self.why.clone().unwrap_or_else(lost);
        let settled = sweep::settle(&self.means.store, &self.means.dir, self.job, why).await?;
        // None: another process holds the job's lock, so it is in good hands.
        Ok(settled.map(|record| self.publish(record)))
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

    /// Has the job wait until there is something to start its runner with, or somebody who waits with it; a moment at a time.
    async fn make_do(&mut self, fault: Fault) {
        let why = match self.wait_for_room().await {
            Wanting::Perhaps => return,
            Wanting::Never => Some(fault),
            // Nobody runs it, so nobody else can end it.
            Wanting::NotWanted => None,
        };
        self.starts = RUNNER_STARTS;
        self.room.leave(self.job, ToWaiting::Taken);
        self.judge(why);
    }

    /// Waits a moment for descriptors, processes or memory to come free. The job is accepted, so it stays in the queue, and
    /// other hosts see that it is looked after although nobody holds a lock for it.
    async fn wait_for_room(&mut self) -> Wanting {
        let since = *self.no_room_since.get_or_insert_with(Instant::now);
        let waited = since.elapsed();
        if waited >= ROOM_LIMIT {
            return Wanting::Never;
        }
        self.means.dir.touch_job_dir(self.job);
        // Soon at first, then as rarely as it takes for nobody to notice.
        let pause = (waited / 4).clamp(Duration::from_millis(50), Duration::from_secs(2));
        tokio::select! {
            () = tokio::time::sleep(pause) => Wanting::Perhaps,
            Some(()) = self.asked.recv() => Wanting::NotWanted,
        }
    }

    /// The runner that was held for the job, or a new one, and the first words to it: the job is durable.
    fn start(&mut self) -> Result<Link, NotStarted> {
        let held = self.held.take().and_then(|held| held.take(self.job));
        let Started { child, input, output } = match held {
            Some(started) => started,
            None => starting::start(&self.means.runner, &self.means.dir, self.job)?,
        };
        let ends = Ends::again(&input, &output).ok();
        let job = self.job.to_string();
        let mut connecting = JoinSet::new();
        connecting.spawn(async move {
            let client = ExecClient::connect(output, input, "phone-opus").await.map_err(pipe_failed)?;
            let events = client.subscribe(&job, Cursor::start()).await.map_err(pipe_failed)?;
            Ok((client, events))
        });
        let reader = self.means.reader(&self.agent);
        Ok(Link { child, ends, resting: None, connecting, connected: None, reader })
    }

    /// Follows the runner to the end of its pipes.
    async fn follow(&mut self) -> Result<(), Fault> {
        let Stage::Following(link) = &mut self.stage else { return Ok(()) };
        if let (Some((handover, seen)), Some(ends)) = (link.resting.take(), &link.ends) {
            link.connecting = ends.take_up(self.job, handover, seen);
        }
        if link.connected.is_none() {
            let connected = match link.connecting.join_next().await {
                Some(Ok(connected)) => connected?,
                Some(Err(_)) | None => {
                    return Err(Fault::new(FaultCode::RunnerProtocol, "the greeting of the job's runner failed."));
                }
            };
            link.connected = Some(connected);
        }
        let Some((client, events)) = &mut link.connected else { return Ok(()) };
        let mut reported: Vec<AgentEvent> = Vec::new();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        if self.end_by.is_some() {
            // Asked while the job waited.
            self.telling.spawn(ask_to_end(client.clone(), self.job));
        }
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(ProcessEvent::Output { stream: OutputStream::Stdout, bytes, .. }) => {
                        let Some(reader) = &mut link.reader else { continue };
                        reader.push(&bytes, &mut reported);
                        if !reported.is_empty() {
                            self.news.send_modify(|live| reported.drain(..).for_each(|event| live.fold(&event)));
                        }
                    }
                    Some(ProcessEvent::Exited { .. }) => self.vigil.over = true,
                    Some(ProcessEvent::Output { .. } | ProcessEvent::Lagged { .. }) => {}
                    // Closed means: terminal, durable, nothing left alive.
                    Some(ProcessEvent::Closed { .. }) | None => return Ok(()),
                    Some(ProcessEvent::Failed { message }) => {
                        let detail = format!("the pipe to the job's runner ended: {message}.");
                        return Err(Fault::new(FaultCode::RunnerLost, detail));
                    }
                },
                () = tokio::time::sleep_until(self.end_by.unwrap_or_else(Instant::now)), if self.end_by.is_some() => {
                    // One that answers is asked again later: it ends its job, or waits for the store.
                    self.end_by = Some(Instant::now() + END_LIMIT);
                    self.vigil.due = true;
                    self.vigil.ask(client, self.job);
                }
                Some(answer) = self.vigil.asking.join_next(), if !self.vigil.asking.is_empty() => {
                    let due = std::mem::take(&mut self.vigil.due);
                    match answer {
                        Ok(Ok(Some(record))) => tell(&self.news, self.job, record),
                        Ok(Ok(None)) => {}
                        Ok(Err(_)) | Err(_) if due => {
                            self.overdue = true;
                            return Err(Fault::new(FaultCode::RunnerLost, "the job's runner did not end it in time."));
                        }
                        Ok(Err(_)) | Err(_) => {}
                    }
                }
                Some(Ok(true)) = self.vigil.looking.join_next(), if !self.vigil.looking.is_empty() => {
                    self.end_by.get_or_insert_with(|| Instant::now() + END_LIMIT);
                }
                Some(()) = self.asked.recv() => {
                    self.end_by.get_or_insert_with(|| Instant::now() + END_LIMIT);
                    self.telling.spawn(ask_to_end(client.clone(), self.job));
                }
                _ = looks.tick() => {
                    self.vigil.keep(&self.means.store, client, self.job, self.end_by.is_some());
                    if self.vigil.limit().is_some_and(|limit| limit <= Instant::now()) {
                        self.end_by.get_or_insert_with(Instant::now);
                    }
                }
            }
        }
    }
}

impl Ends {
    /// The same pipes once more.
    fn again(input: &impl AsFd, output: &impl AsFd) -> std::io::Result<Self> {
        let again = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned();
        Ok(Self { input: again(input)?, output: again(output)? })
    }

    /// Takes up the connection that was let go of at this position.
    fn take_up(&self, job: JobId, handover: Handover, seen: u64) -> JoinSet<Result<(ExecClient, EventStream), Fault>> {
        let ends = Self::again(&self.input, &self.output);
        let mut connecting = JoinSet::new();
        connecting.spawn(async move {
            let lost = |error: std::io::Error| {
                Fault::new(FaultCode::RunnerLost, format!("the pipes of the job's runner were lost: {error}."))
            };
            let ends = ends.map_err(lost)?;
            let writer = pipe::Sender::from_owned_fd(ends.input).map_err(lost)?;
            let reader = pipe::Receiver::from_owned_fd(ends.output).map_err(lost)?;
            let client = ExecClient::adopt(reader, writer, &handover);
            let events = client.subscribe(&job.to_string(), Cursor::after(seen)).await.map_err(pipe_failed)?;
            Ok((client, events))
        });
        connecting
    }
}

/// What cannot be passed on at this moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pass on the runner of job {job}: {why}")]
pub struct NotNow {
    /// Whose.
    pub job: JobId,
    /// Why not.
    pub why: &'static str,
}

/// How long a handshake under way, or a runner that has yet to read what it was told, is waited for before an upgrade.
const LET_GO: Duration = Duration::from_secs(1);

impl Attachment {
    /// What would be passed on, as far as that can be said without taking it from whoever works with it.
    #[must_use]
    pub fn peek(&self) -> CustodySnapshot {
        let (mode, callers) = self.claim();
        let news = self.news();
        let live = news.borrow();
        CustodySnapshot {
            job: self.job(),
            agent: String::new(),
            mode,
            callers,
            starts: RUNNER_STARTS,
            why: None,
            stage: StageSnapshot::Judging,
            phase: live.phase.clone(),
            text: live.text.clone(),
            events: live.events,
            asked: false,
            overdue: false,
            timeout_s: 0,
        }
    }
}

impl Custody {
    fn passed(&self, attachment: &Attachment, stage: StageSnapshot) -> CustodySnapshot {
        let live = self.news.borrow();
        let (mode, callers) = attachment.claim();
        CustodySnapshot {
            job: self.job,
            agent: self.agent.clone(),
            mode,
            callers,
            starts: self.starts,
            why: self.why.clone(),
            stage,
            phase: live.phase.clone(),
            text: live.text.clone(),
            events: live.events,
            asked: self.end_by.is_some() || !self.asked.is_empty(),
            overdue: self.overdue,
            timeout_s: self.vigil.timeout.as_secs(),
        }
    }

    /// Lets go of the pipes between two messages, so that the next image can go on with them. Nobody may work with the
    /// custody meanwhile. When there is no next image, [`Custody::run`] goes on by itself.
    ///
    /// # Errors
    ///
    /// Not at this moment; nothing is lost by having tried, unless its runner reads nothing any more.
    ///
    /// # Cancel safety
    ///
    /// Not safe: the connection may be let go of and not taken up again.
    pub async fn let_go(&mut self, attachment: &Attachment) -> Result<CustodySnapshot, NotNow> {
        let job = self.job;
        let not_now = |why| NotNow { job, why };
        let stage = match &mut self.stage {
            Stage::Following(link) => {
                if link.ends.is_none() {
                    return Err(not_now("there was no room for its pipes"));
                }
                if link.connected.is_none() {
                    match tokio::time::timeout(LET_GO, link.connecting.join_next()).await {
                        Err(_) => return Err(not_now("it has not greeted yet")),
                        Ok(Some(Ok(Ok(connected)))) => link.connected = Some(connected),
                        // It failed: what became of its job is read from the store.
                        Ok(_) => {}
                    }
                }
                let let_go = match link.connected.take() {
                    None => None,
                    Some((client, events)) => {
                        let seen = events.cursor().seen();
                        match tokio::time::timeout(LET_GO, client.detach()).await {
                            Err(_) => return Err(not_now("it does not read what it was told")),
                            Ok(Ok(handover)) => Some((handover, seen)),
                            Ok(Err(_)) => None,
                        }
                    }
                };
                match let_go {
                    Some((handover, seen)) => {
                        link.resting = Some((handover.clone(), seen));
                        match link.passed(handover, seen) {
                            Some(link) => StageSnapshot::Following(Box::new(link)),
                            None => StageSnapshot::Judging,
                        }
                    }
                    // The pipe is over. Whoever comes next waits for the process and reads the store.
                    None => {
                        let pid = link.child.pid();
                        if let Stage::Following(link) = std::mem::replace(&mut self.stage, Stage::Judging) {
                            self.stage = Stage::Leaving(Box::new(link.child));
                        }
                        pid.map_or(StageSnapshot::Judging, |pid| StageSnapshot::Leaving { pid })
                    }
                }
            }
            Stage::Waiting(_) => StageSnapshot::Waiting,
            Stage::Starting => StageSnapshot::Starting,
            Stage::Leaving(child) => child.pid().map_or(StageSnapshot::Judging, |pid| StageSnapshot::Leaving { pid }),
            Stage::Judging => StageSnapshot::Judging,
        };
        Ok(self.passed(attachment, stage))
    }
}

impl Link {
    fn passed(&self, handover: Handover, seen: u64) -> Option<LinkSnapshot> {
        let ends = self.ends.as_ref()?;
        Some(LinkSnapshot {
            pid: self.child.pid()?,
            input: PassedPipe::of(&ends.input).ok()?,
            output: PassedPipe::of(&ends.output).ok()?,
            unread: Base64(handover.unread.into()),
            next_id: handover.next_id,
            seen,
            partial: Base64(self.reader.as_ref().map_or(&[][..], OutputReader::unfinished).to_vec().into()),
        })
    }
}

/// Sees to it that children nobody passed on are waited for when they end: a runner that was let go lives on. To be called
/// before this image starts a child of its own.
pub fn inherit_the_rest(passed: &[CustodySnapshot], waiting: Option<&RoomSnapshot>) {
    let known: HashSet<i32> =
        passed.iter().filter_map(CustodySnapshot::pid).chain(waiting.map(RoomSnapshot::pid)).collect();
    let children = procfs::children().into_iter().map(|pid| pid.as_raw_nonzero().get());
    children.filter(|pid| !known.contains(pid)).for_each(|pid| {
        // Dropped is waited for.
        drop(RunnerChild::inherited(pid));
    });
}

impl Attachments {
    /// Takes in what another image passed on.
    pub fn inherit(&self, passed: &CustodySnapshot, pipes: &mut InheritedPipes, means: Means) {
        let judging = || {
            // Its pipes did not come along, so the runner is told nothing any more; its job is settled by what it leaves.
            tracing::error!(job = %passed.job, "the pipes of a runner were not passed on");
            match passed.pid().and_then(RunnerChild::inherited) {
                Some(child) => Stage::Leaving(Box::new(child)),
                None => Stage::Judging,
            }
        };
        let stage = match &passed.stage {
            StageSnapshot::Waiting => Stage::Waiting(HandIn::Again),
            StageSnapshot::Starting => Stage::Starting,
            StageSnapshot::Judging => Stage::Judging,
            StageSnapshot::Leaving { pid } => {
                RunnerChild::inherited(*pid).map_or(Stage::Judging, |child| Stage::Leaving(Box::new(child)))
            }
            StageSnapshot::Following(link) => {
                let ends = pipes.take(&link.input).zip(pipes.take(&link.output));
                match (ends, RunnerChild::inherited(link.pid)) {
                    (Some((input, output)), Some(child)) => {
                        let handover =
                            Handover { unread: link.unread.0.to_vec(), next_id: link.next_id, positions: Vec::new() };
                        let mut reader = means.reader(&passed.agent);
                        if let Some(reader) = &mut reader {
                            // Less than a line, so nothing is reported.
                            reader.push(&link.partial.0, &mut Vec::new());
                        }
                        Stage::Following(Box::new(Link {
                            child,
                            ends: Some(Ends { input, output }),
                            resting: Some((handover, link.seen)),
                            connecting: JoinSet::new(),
                            connected: None,
                            reader,
                        }))
                    }
                    _ => judging(),
                }
            }
        };
        let live = JobLive {
            phase: passed.phase.clone(),
            text: passed.text.clone(),
            events: passed.events,
            ..JobLive::default()
        };
        let (news, followed) = watch::channel(live);
        let (terminate, asked) = mpsc::channel(1);
        let custody = Custody {
            job: passed.job,
            agent: passed.agent.clone(),
            means,
            news,
            asked,
            starts: passed.starts,
            why: passed.why.clone(),
            stage,
            held: None,
            room: self.room().clone(),
            losses: 0,
            telling: JoinSet::new(),
            end_by: None,
            overdue: passed.overdue,
            vigil: Vigil { over: true, ..Vigil::of(Duration::from_secs(passed.timeout_s)) },
            no_room_since: None,
        };
        if passed.asked {
            // To be asked twice adds nothing.
            let _ = terminate.try_send(());
        }
        self.take_in(passed.job, passed.mode, passed.callers.clone(), custody, followed, terminate);
    }
}

/// Waits before the store is asked again, and says so to whoever follows the job; `None` when it was asked for long.
async fn wait_for_store(news: &watch::Sender<JobLive>, patience: &mut Patience) -> Option<()> {
    let pause = patience.next()?;
    news.send_if_modified(|live| {
        let new = live.phase != Phase::Storing;
        live.phase = Phase::Storing;
        new
    });
    tokio::time::sleep(pause).await;
    Some(())
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

/// Tells a runner to end its job.
async fn ask_to_end(client: ExecClient, job: JobId) {
    if let Err(error) = client.terminate(&job.to_string()).await {
        tracing::debug!(%error, "a runner was not told to end its job; it finds the request in the store");
    }
}
