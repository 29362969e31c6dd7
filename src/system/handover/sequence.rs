//! The sequence of a hand-over: freeze, pass on, `exec`; or thaw.
//!
//! Owns: the order, the bounds, and that everything that was stopped is started again when there is no next image. May not
//! know: what the parts pass on.
//!
//! The order follows the calls: first nobody and nothing new comes in, then nobody works at calls, then nobody starts or follows jobs,
//! and last the sessions stand still, having heard everything the others had to say.
//!
//! Invariants: (1) one at a time; (2) a system that is told to stop is not replaced; (3) between the last look at that and
//! the `exec` nothing is awaited.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot};

use super::image::NewImage;
use super::{HostSnapshot, Luggage, Nameless, SnapshotError, SnapshotFile};
use crate::actors::callers::{CallerSnapshot, Callers};
use crate::actors::child;
use crate::actors::connections::{ConnectionSnapshot, Connections, Fit, Unfit};
use crate::actors::current::Current;
use crate::actors::doors::table::DoorTable;
use crate::actors::doors::unix::{DoorEvent, DoorSnapshot};
use crate::actors::jobs::attachments::Attachments;
use crate::actors::jobs::custody::passed::{CustodySnapshot, NotNow};
use crate::actors::jobs::host_life::HostLife;
use crate::actors::jobs::messages::JobsMsg;
use crate::actors::jobs::room::Beginning;
use crate::actors::reply::SessionMailbox;
use crate::actors::rollout::RolloutHandle;
use crate::actors::session::{Gauges, SessionEvent, SessionSnapshot};
use crate::actors::workers::messages::{WorkersMsg, WorkersSnapshot};
use crate::base::descriptors::PassedPipe;
use crate::base::fault::Fault;
use crate::base::ids::{Generation, HostId, UnixMillis};
use crate::base::signals::Holding;
use crate::base::state_dir::{StateDir, StateDirError};
use crate::config::Config;
use crate::failpoints::{Broken, FaultPoint, Faults, Operation};
use crate::jobs::store::StoreHandle;
use crate::telemetry::TelemetryHandle;

/// Time that calls which wait for nothing outside get to finish. The client is not read during it.
const FINISH: Duration = Duration::from_secs(2);

/// What a part gets to stop, answer or let go.
const PART: Duration = Duration::from_secs(3);

/// How long signals that were taken before they were held may need to be heard: a turn of the runtime and its reactor.
const HEARD: Duration = Duration::from_millis(1);

/// Why the program was not replaced. The old image serves on.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// Another hand-over is under way.
    #[error("hand over: another hand-over is in progress")]
    InProgress,
    /// There is nothing that could be passed on.
    #[error("hand over")]
    Unfit(#[from] Unfit),
    /// Not at this moment; it may be tried again.
    #[error("hand over at this moment: {why} did not come to rest")]
    NotNow {
        /// What did not.
        why: &'static str,
    },
    /// A runner cannot be passed on at this moment; it may be tried again.
    #[error("hand over at this moment")]
    Runner(#[from] NotNow),
    /// The snapshot cannot be written.
    #[error("hand over")]
    Snapshot(#[from] SnapshotError),
    /// The state directory cannot be used.
    #[error("hand over")]
    StateDir(#[from] StateDirError),
    /// The system has no directory for it.
    #[error("hand over without a state directory")]
    NoDirectory,
    /// A fault point was met.
    #[error("hand over: {}", .0.detail)]
    Injected(Box<Fault>),
    /// Another file was put in the place of the one that was checked.
    #[error("run {}, which is not the file any more that was checked", program.display())]
    Replaced {
        /// Where it was.
        program: PathBuf,
    },
    /// The system refused to run the new program.
    #[error("run {}", program.display())]
    Exec {
        /// The program that was refused.
        program: PathBuf,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
}

/// Whether a hand-over is under way.
#[derive(Debug, Default)]
pub(crate) struct Underway(AtomicBool);

struct Turn<'a>(&'a AtomicBool);

impl Underway {
    fn begin(&self) -> Result<Turn<'_>, HandOverError> {
        let free = self.0.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_ok();
        free.then_some(Turn(&self.0)).ok_or(HandOverError::InProgress)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What a hand-over works with.
pub(crate) struct HandOverDesk {
    pub(crate) underway: Underway,
    pub(crate) host: HostId,
    pub(crate) started: Instant,
    pub(crate) dir: Option<StateDir>,
    pub(crate) config: Arc<Config>,
    pub(crate) connections: Connections,
    pub(crate) doors: DoorTable,
    pub(crate) callers: Callers,
    /// What the embedding program passes on itself.
    pub(crate) luggage: Mutex<Option<Arc<dyn Luggage>>>,
    pub(crate) workers: Current<WorkersMsg>,
    pub(crate) jobs: Current<JobsMsg>,
    pub(crate) attachments: Attachments,
    pub(crate) life: HostLife,
    pub(crate) store: StoreHandle,
    pub(crate) telemetry: TelemetryHandle,
    pub(crate) gauges: Arc<Gauges>,
    pub(crate) faults: Faults,
    pub(crate) rollout: RolloutHandle,
}

/// What was stopped, and has to be started again when there is no next image.
#[derive(Default)]
struct Frozen {
    doors: Vec<mpsc::UnboundedSender<DoorEvent>>,
    sessions: Vec<SessionMailbox>,
    /// The last worker that was ended for it.
    ended: Generation,
    workers: bool,
    jobs: bool,
}

/// The sessions that are passed on.
#[derive(Default)]
struct Sessions {
    standard: Option<SessionSnapshot>,
    by_sockets: Vec<ConnectionSnapshot>,
}

impl Sessions {
    /// One more; nothing when it has just ended, and its context with it.
    fn add(&mut self, fit: &Fit, session: SessionSnapshot, callers: &Callers) {
        match (fit.socket, callers.of(fit.number)) {
            (None, _) => self.standard = Some(session),
            (Some(socket), Some(caller)) => {
                let caller = CallerSnapshot::from(&*caller);
                self.by_sockets.push(ConnectionSnapshot { socket, session, caller });
            }
            (Some(_), None) => {}
        }
    }
}

async fn within<T>(limit: Duration, answer: oneshot::Receiver<T>, why: &'static str) -> Result<T, HandOverError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) | Err(_) => Err(HandOverError::NotNow { why }),
    }
}

async fn within_limit<T>(
    limit: Duration,
    work: impl Future<Output = T>,
    why: &'static str,
) -> Result<T, HandOverError> {
    tokio::time::timeout(limit, work).await.map_err(|_| HandOverError::NotNow { why })
}

/// Asks each session, all before the first answers.
fn ask_sessions<T>(fit: &[Fit], ask: fn(oneshot::Sender<T>) -> SessionEvent) -> Vec<(&Fit, oneshot::Receiver<T>)> {
    fit.iter()
        .map(|fit| {
            let (reply, answer) = oneshot::channel();
            let _ = fit.mailbox.send(ask(reply));
            (fit, answer)
        })
        .collect()
}

/// A session's answer; `None` when it is ending and has none.
async fn unless_over<T>(limit: Duration, answer: oneshot::Receiver<T>) -> Result<Option<T>, HandOverError> {
    within_limit(limit, answer, "a session").await.map(Result::ok)
}

impl HandOverDesk {
    /// As [`System::leave_jobs`](crate::system::System::leave_jobs).
    pub(crate) async fn leave_jobs(&self) {
        if self.life.grace().is_none() {
            return;
        }
        self.attachments.room().set_beginning(Beginning::Refused);
        let (still, answer) = oneshot::channel();
        let (left, last) = oneshot::channel();
        // What is being accepted is waited for: it belongs to somebody who may come back as well.
        let asked = self.jobs.cast(JobsMsg::LetGo(still)).is_ok();
        let _ = within(PART, answer, "the jobs").await;
        if asked && self.jobs.cast(JobsMsg::Leave(left)).is_ok() {
            let _ = within(PART, last, "the jobs").await;
        }
        let _ = self.jobs.cast(JobsMsg::Resume);
    }

    /// What a hand-over would pass on now. Nothing stops.
    pub(crate) async fn peek(&self) -> Result<HostSnapshot, HandOverError> {
        let doors = self.ask_doors(&self.doors.lasting(), DoorEvent::Peek).await?;
        let fit = self.fit(&doors)?;
        let mut sessions = Sessions::default();
        for (fit, session) in ask_sessions(&fit, SessionEvent::Peek) {
            // One that ends just now is none that would be passed on.
            if let Some(session) = unless_over(PART, session).await? {
                sessions.add(fit, session, &self.callers);
            }
        }
        let (reply, answer) = oneshot::channel();
        let _ = self.workers.cast(WorkersMsg::Snapshot(reply));
        let workers = within(PART, answer, "the workers").await?;
        let jobs = self.attachments.all().iter().map(|(_, attachment)| attachment.peek()).collect();
        Ok(self.snapshot((doors, sessions), workers, jobs).await)
    }

    /// The connections, all of which can be passed on; a system that only listens has none.
    fn fit(&self, doors: &[DoorSnapshot]) -> Result<Vec<Fit>, Unfit> {
        let fit = self.connections.fit()?;
        if fit.is_empty() && doors.is_empty() { Err(Unfit::NoConnection) } else { Ok(fit) }
    }

    /// Asks doors what is passed on of them.
    async fn ask_doors(
        &self,
        doors: &[mpsc::UnboundedSender<DoorEvent>],
        ask: fn(oneshot::Sender<DoorSnapshot>) -> DoorEvent,
    ) -> Result<Vec<DoorSnapshot>, HandOverError> {
        let mut snapshots = Vec::new();
        for door in doors {
            let (reply, answer) = oneshot::channel();
            // One that was closed just now is none any more.
            if door.send(ask(reply)).is_ok() {
                snapshots.push(within(PART, answer, "a door").await?);
            }
        }
        Ok(snapshots)
    }

    /// Waits until every session has nothing in flight that another image could not go on with, or is over. What does not
    /// finish in time is decided about by its contract, as if its worker had been lost.
    async fn quiet(&self, fit: &[Fit]) -> Result<(), HandOverError> {
        let until = tokio::time::Instant::now() + FINISH;
        for (fit, quiet) in ask_sessions(fit, SessionEvent::Freeze) {
            if let Ok(Err(_)) = tokio::time::timeout_at(until, quiet).await
                && tokio::time::timeout_at(until, self.connections.gone(fit.number)).await.is_err()
            {
                return Err(HandOverError::NotNow { why: "a connection" });
            }
        }
        Ok(())
    }

    /// Has every session stand still. One that is over by then is not passed on; one that came meanwhile cannot be.
    async fn still(&self, fit: &[Fit]) -> Result<Sessions, HandOverError> {
        let mut sessions = Sessions::default();
        let mut over = 0;
        for (fit, still) in ask_sessions(fit, SessionEvent::HoldStill) {
            match unless_over(PART, still).await? {
                Some(session) => sessions.add(fit, session, &self.callers),
                None => {
                    within_limit(PART, self.connections.gone(fit.number), "a connection").await?;
                    over += 1;
                }
            }
        }
        if *self.connections.count().borrow() + over != fit.len() {
            return Err(HandOverError::NotNow { why: "a connection" });
        }
        Ok(sessions)
    }

    /// The same in a file, for a program that is to restore it as a trial.
    pub(crate) async fn peek_into_file(&self) -> Result<SnapshotFile, HandOverError> {
        let dir = self.dir.as_ref().ok_or(HandOverError::NoDirectory)?;
        let snapshot = self.peek().await?;
        dir.create()?;
        Ok(snapshot.write(dir.root(), Nameless::Anywhere)?)
    }

    async fn snapshot(
        &self,
        (doors, sessions): (Vec<DoorSnapshot>, Sessions),
        workers: WorkersSnapshot,
        jobs: Vec<CustodySnapshot>,
    ) -> HostSnapshot {
        let (next_session, catalog) = self.connections.passed_on();
        // Telemetry that is not there costs what it counted, never the hand-over (L10).
        let telemetry = tokio::time::timeout(PART, self.telemetry.pass_on()).await.ok().flatten();
        let luggage = self.luggage.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let packed = luggage.map(|luggage| luggage.pack());
        HostSnapshot {
            head: HostSnapshot::head(super::FORMAT),
            taken_at: UnixMillis::now(),
            host: self.host,
            uptime: self.started.elapsed(),
            next_session,
            catalog,
            session: sessions.standard,
            connections: sessions.by_sockets,
            doors,
            packed,
            workers,
            jobs,
            waiting: None,
            host_lock: None,
            telemetry,
            dropped: self.telemetry.dropped(),
            traces: self.telemetry.traces().passed_facts(),
            stale: self.gauges.stale.load(Ordering::Relaxed),
            replays: self.gauges.replays.load(Ordering::Relaxed),
            broken_laws: self.gauges.broken_laws(),
            fault_counts: self.faults.counters_file().map(ToOwned::to_owned),
            rollout: self.rollout.carried(),
            config: serde_json::to_value(&*self.config).ok(),
            state_dir: self.dir.as_ref().and_then(|dir| dir.root().to_str()).map(ToOwned::to_owned),
        }
        .with_its_format()
    }

    /// Becomes the next image; returns only why not, and then everything goes on.
    pub(crate) async fn hand_over(&self, to: &NewImage) -> HandOverError {
        let turn = match self.underway.begin() {
            Ok(turn) => turn,
            Err(error) => return error,
        };
        let mut frozen = Frozen::default();
        let error = match AssertUnwindSafe(self.pass_on(to, &mut frozen)).catch_unwind().await {
            Ok(error) => error,
            Err(_) => HandOverError::NotNow { why: "the hand-over itself" },
        };
        self.thaw(frozen);
        drop(turn);
        error
    }

    async fn pass_on(&self, to: &NewImage, frozen: &mut Frozen) -> HandOverError {
        match self.try_to_pass_on(to, frozen).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_to_pass_on(
        &self,
        to: &NewImage,
        frozen: &mut Frozen,
    ) -> Result<std::convert::Infallible, HandOverError> {
        let dir = self.dir.as_ref().ok_or(HandOverError::NoDirectory)?;
        // A host that accepted no job yet has none.
        dir.create()?;
        frozen.doors = self.doors.lasting();
        let doors = self.ask_doors(&frozen.doors, DoorEvent::Hold).await?;
        let fit = self.fit(&doors)?;
        frozen.sessions = fit.iter().map(|fit| fit.mailbox.clone()).collect();
        self.quiet(&fit).await?;

        let (reply, answer) = oneshot::channel();
        frozen.workers = self.workers.cast(WorkersMsg::SetAside(reply)).is_ok();
        let workers = within(PART, answer, "the worker").await?;
        frozen.ended = workers.generation;

        let (reply, answer) = oneshot::channel();
        frozen.jobs = self.jobs.cast(JobsMsg::LetGo(reply)).is_ok();
        within(PART, answer, "the jobs").await?;
        let mut custodies = Vec::new();
        let mut jobs = Vec::new();
        for (_, attachment) in self.attachments.all() {
            // One that is over is in the store, where everybody finds it.
            let Ok(lent) = tokio::time::timeout(PART, attachment.custody().lend()).await else {
                return Err(HandOverError::NotNow { why: "a job" });
            };
            let Some(mut custody) = lent else { continue };
            if let Some(custody) = custody.get() {
                jobs.push(custody.let_go(&attachment).await?);
            }
            custodies.push(custody);
        }

        let sessions = self.still(&fit).await?;
        // A store that fails has nothing under way; one that does not answer may have.
        if tokio::time::timeout(PART, self.store.settled()).await.is_err() {
            return Err(HandOverError::NotNow { why: "the store" });
        }

        let waiting = self.attachments.room().let_go().await;
        let host_lock = self.life.passed();
        let snapshot = HostSnapshot { waiting, host_lock, ..self.snapshot((doors, sessions), workers, jobs).await };
        let pipes: Vec<PassedPipe> = snapshot.descriptors().copied().collect();
        let written = snapshot.write(dir.root(), self.place().await?)?;
        let failed = self.become_it(to, &written, &pipes).await;
        // Nobody works with them before this.
        drop(custodies);
        Err(failed)
    }

    /// Where the snapshot is to lie.
    async fn place(&self) -> Result<Nameless, HandOverError> {
        match child::in_time(self.faults.meet(FaultPoint::RolloutSnapshot, Operation::None)).await {
            Ok(None) => Ok(Nameless::Anywhere),
            // What fails is the file in memory, as on a system that has none.
            Ok(Some(Broken::Error(_))) => Ok(Nameless::InDirectory),
            Ok(Some(_)) | Err(_) => Err(HandOverError::NotNow { why: "a fault point" }),
        }
    }

    /// The last steps, with everything at rest.
    async fn become_it(&self, to: &NewImage, snapshot: &SnapshotFile, pipes: &[PassedPipe]) -> HandOverError {
        match child::in_time(self.faults.meet(FaultPoint::RolloutBeforeExec, Operation::None)).await {
            Ok(None) => {}
            Ok(Some(Broken::Error(fault))) => return HandOverError::Injected(fault),
            Ok(Some(_)) | Err(_) => return HandOverError::NotNow { why: "a fault point" },
        }
        let _holding = Holding::begin();
        // Those taken before are heard by whoever waits for them, and a stop they ask for has begun by then.
        tokio::time::sleep(HEARD).await;
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
        if self.connections.are_closing() {
            return Unfit::Stopping.into();
        }
        if !to.is_as_checked() {
            return HandOverError::Replaced { program: to.program().to_owned() };
        }
        tracing::info!(program = %to.program().display(), "handing over to another image of the program");
        let source = to.exec(snapshot, pipes);
        HandOverError::Exec { program: to.program().to_owned(), source }
    }

    fn thaw(&self, frozen: Frozen) {
        if frozen.jobs {
            let _ = self.jobs.cast(JobsMsg::Resume);
        }
        if frozen.workers {
            let _ = self.workers.cast(WorkersMsg::Resume);
        }
        for session in frozen.sessions {
            let _ = session.send(SessionEvent::Thaw(frozen.ended));
        }
        for door in frozen.doors {
            let _ = door.send(DoorEvent::GoOn);
        }
    }
}

/// Turns of the runtime in which whoever was woken by a signal acts on it; the way from the signal to the stop is three
/// tasks long.
const TURNS: usize = 16;
