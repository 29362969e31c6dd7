//! A running system, for programs that embed one. The binary is such a program.
//!
//! Owns: how the parts are put together. Nothing here is global (L12): two systems run in one process, and the
//! embedding program keeps its signals, its logger, its environment and its exit.

mod assembly;
mod builder;
mod consult;
pub mod handover;
mod job_events;
mod listening;
mod offer;
pub mod own_tools;
mod program;
pub mod selfcheck;
mod session;
mod start;

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ractor::{ActorCell, ActorRef};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};

pub use self::builder::{OwnTools, SystemBuilder};
pub use self::consult::{Consult, ConsultFault, ConsultOutcome};
use self::handover::{HandOverError, HostSnapshot, InPlace, Luggage, NewImage};
pub use self::job_events::{Cursor, JobDesk, JobEvent, JobEvents};
pub use self::listening::Listening;
pub use self::offer::Offer;
pub use self::program::serve_program;
pub use self::session::{Client, Session, ToolCalling};
use crate::actors::callers::{CallerContext, Callers};
use crate::actors::connections::{Arrived, Connections, StreamKind};
use crate::actors::current::Current;
use crate::actors::doors::StreamDoor;
use crate::actors::doors::handle::{DoorHandle, ListenOptions};
use crate::actors::doors::messages::DoorsMsg;
use crate::actors::doors::table::{DoorLoop, DoorTable, Entrance};
use crate::actors::doors::unix::{self, DoorEvent, ListeningSocket, UnixDoor};
use crate::actors::health::HealthSource;
use crate::actors::jobs::board::HostView;
use crate::actors::jobs::messages::JobsMsg;
use crate::actors::jobs::room::Beginning;
use crate::actors::rollout::RolloutHandle;
use crate::actors::root::{Down, RootMsg};
use crate::actors::session::{ClientInput, ClientOutput};
use crate::actors::sessions::messages::SessionEnd;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{HostId, JobId};
use crate::base::stdio;
use crate::daemon::listener::SocketPlace;
use crate::jobs::client::News;
use crate::jobs::hosts::HostSaid;
use crate::jobs::{ConsultRequest, JobMode, JobRecord};
use crate::rollout::{HandOver, NotAdopted, Trigger};
use crate::runner::RunnerCommand;
use crate::tools::consult::Consults;

/// When to use us, as every model that connects is told. Under 600 characters: every session pays for it.
pub const INSTRUCTIONS: &str = "Ask another coding agent for a second opinion with `consult`: reviews of risky diffs, \
bugs you are stuck on, design choices. It can read this directory and nothing else, and never writes. Do not use it for \
what you can look up or run yourself. A consult that outlasts your wait, or has background=true, becomes a job: read it \
with ONE blocking call, consult_job with wait_s; do not poll. Pass the session_id of a reply to continue that \
conversation. Answers are kept: unread_jobs in a reply names finished ones.";

/// Time between two looks whether jobs that were ended are let go of.
const LET_GO: Duration = Duration::from_millis(5);

/// Longest an ordered stop takes in all; the sum of its parts is in the root actor.
const STOP_LIMIT: Duration = Duration::from_secs(12);

struct Inner {
    root: ActorRef<RootMsg>,
    connections: Connections,
    doors: Ways,
    desk: JobDesk,
    /// Hears who waits for a job no more.
    jobs: Current<JobsMsg>,
    /// How jobs are run; nothing where there are no consults.
    runner: Option<Arc<RunnerCommand>>,
    health: HealthSource,
    view: HostView,
    handing: Arc<handover::HandOverDesk>,
    down: watch::Receiver<Option<Down>>,
}

/// The ways in.
struct Ways {
    table: DoorTable,
    supervisor: Current<DoorsMsg>,
    entrance: Entrance,
}

impl Ways {
    /// Opens a door, which is spoken to in this way.
    fn open(&self, door: DoorLoop, events: Option<mpsc::UnboundedSender<DoorEvent>>) {
        let number = self.table.open(door, events);
        // When there is no supervisor at this moment, its next incarnation finds the door.
        let _ = self.supervisor.cast(DoorsMsg::Opened(number));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A system that was stopped hears nothing of it.
        self.root.stop(None);
    }
}

/// A running system. Clones are handles on the same one, and so is every [`Session`]: when the last is dropped, the system stops
/// in order, as by [`System::shutdown`], though nobody waits for it. It ends everything it started but the runners of background
/// jobs, which go on and are found again in the store.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use phone_opus::{Grace, System};
///
/// let system = System::builder().start().await?;
/// system.tools_changed();                                             // every client lists the tools again
/// let told = system.health().telemetry().await?;                      // what it did so far
/// assert!(told.is_object());
/// system.shutdown(Grace::within(Duration::from_secs(5)).end_background()).await;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct System {
    inner: Arc<Inner>,
}

/// How a system is to stop: within which time, and whether jobs in the background end with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grace {
    limit: Duration,
    background: Background,
}

/// What becomes of jobs in the background when their system stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Background {
    GoesOn,
    Ends,
}

impl Grace {
    /// An ordered stop that takes so long at most; what has not ended by then is killed.
    #[must_use]
    pub const fn within(limit: Duration) -> Self {
        Self { limit, background: Background::GoesOn }
    }

    /// No ordered stop at all: the root is killed at once.
    #[must_use]
    pub const fn none() -> Self {
        Self::within(Duration::ZERO)
    }

    /// Ends the jobs of this system that run in the background, too; they would go on otherwise. It takes as long as their
    /// agents take to end.
    #[must_use]
    pub const fn end_background(mut self) -> Self {
        self.background = Background::Ends;
        self
    }
}

/// Twelve seconds, which every part's own time adds up to; jobs in the background go on.
impl Default for Grace {
    fn default() -> Self {
        Self::within(STOP_LIMIT)
    }
}

/// How a stop went.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Shutdown {
    /// Everything ended in order.
    InOrder,
    /// A part had failed before, which is why the system stopped.
    AfterFault(Fault),
    /// The grace was over first; the root was killed, its children with it.
    Killed,
}

impl System {
    /// Serves one client until its connection is over.
    ///
    /// # Errors
    ///
    /// `busy` when there are too many connections; the system is stopping.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the connection open; it ends with the client or the system.
    pub async fn serve<R, W>(&self, reader: R, writer: W) -> Result<SessionEnd, Fault>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        self.serve_at(StreamKind::Elsewhere, None, Box::new(reader), Box::new(writer)).await
    }

    /// The same for a client whose directory, environment and configuration are not this system's own.
    ///
    /// # Errors
    ///
    /// As [`System::serve`].
    ///
    /// # Cancel safety
    ///
    /// As [`System::serve`].
    #[doc(hidden)]
    pub async fn serve_as<R, W>(&self, context: CallerContext, reader: R, writer: W) -> Result<SessionEnd, Fault>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        self.serve_at(StreamKind::Elsewhere, Some(context), Box::new(reader), Box::new(writer)).await
    }

    /// Whose sessions there are, with the directory, environment and configuration of each.
    #[must_use]
    #[doc(hidden)]
    pub fn callers(&self) -> &Callers {
        &self.inner.desk.consults.callers
    }

    /// Serves the client on this process's standard streams until its connection is over.
    ///
    /// # Errors
    ///
    /// As [`System::serve`].
    ///
    /// # Cancel safety
    ///
    /// As [`System::serve`].
    pub async fn serve_standard(&self, input: stdio::Input, output: stdio::Output) -> Result<SessionEnd, Fault> {
        let holds_back = input.is_read_by_thread() || output.is_written_by_thread();
        let kind = if holds_back { StreamKind::StandardByThread } else { StreamKind::Standard };
        self.serve_at(kind, None, Box::new(input), Box::new(output)).await
    }

    /// Serves whoever connects to a listening socket, each in a session of its own, until the door is closed or the system
    /// stops. Whoever comes in must be of this process's user, by the kernel's word.
    ///
    /// # Errors
    ///
    /// The socket cannot be listened at within this runtime.
    #[doc(hidden)]
    pub fn listen_at(&self, socket: impl Into<ListeningSocket>, options: ListenOptions) -> Result<DoorHandle, Fault> {
        let (door, told) = UnixDoor::new(socket.into(), options)
            .map_err(|error| Fault::new(FaultCode::Internal, format!("the socket cannot be listened at: {error}.")))?;
        self.inner.doors.open(DoorLoop::Unix(Box::new(door)), Some(told.clone()));
        Ok(DoorHandle::new(told, self.inner.connections.count()))
    }

    /// Goes on at the doors that another image passed on, each with its name where that is ours, and serves the connections
    /// that came in by them. Nothing was passed on where there is none.
    ///
    /// # Errors
    ///
    /// As [`System::listen_at`].
    #[doc(hidden)]
    pub fn listen_again(&self, options: &ListenOptions) -> Result<Vec<(DoorHandle, Option<SocketPlace>)>, Fault> {
        let mut doors = Vec::new();
        for socket in self.inner.doors.table.passed() {
            let place = socket.place().cloned();
            doors.push((self.listen_at(socket, options.clone())?, place));
        }
        for (number, socket) in self.inner.connections.passed_sockets() {
            if let Some(socket) = socket {
                unix::serve(socket, Some(number), options, &self.inner.doors.entrance);
            }
        }
        Ok(doors)
    }

    /// From now on this is asked what the embedding program passes on itself whenever the system is handed over.
    #[doc(hidden)]
    pub fn carry(&self, luggage: Arc<dyn Luggage>) {
        *self.inner.handing.luggage.lock().unwrap_or_else(PoisonError::into_inner) = Some(luggage);
    }

    /// What [`System::hand_over`] would pass on now; nothing stops. For a dry run by the program that is to take over. What
    /// only a hand-over can tell (how far the pipes of runners were read) is left out.
    ///
    /// # Errors
    ///
    /// There is nothing that could be passed on, or a part does not answer.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    #[doc(hidden)]
    pub async fn peek(&self) -> Result<HostSnapshot, HandOverError> {
        self.inner.handing.peek().await
    }

    /// Makes this process another image of its program, in place: the client notices nothing, calls go on, jobs keep their
    /// runners. Returns only why that did not happen, and then this system serves on as before.
    ///
    /// Every connection goes with it: the one on the standard streams ([`System::serve_standard`]) and those by sockets
    /// ([`System::listen`]), with the doors they came in by. A connection by streams that only the embedding program knows
    /// ([`System::serve`]) cannot, and a system that has one is refused. It
    /// ends nothing else of the embedding program than the image itself: no destructor runs, other threads are gone. Signals
    /// are held meanwhile on the thread that calls, so it belongs on a runtime of one thread; the next image lets them
    /// through with [`signals::let_through`](crate::base::signals::let_through). Threads of the embedding program should
    /// leave signals to that one ([`signals::leave_to_others`](crate::base::signals::leave_to_others)).
    ///
    /// # Cancel safety
    ///
    /// Not safe: what was frozen would stay so. Give it a task of its own.
    #[doc(hidden)]
    pub async fn hand_over(&self, to: &NewImage) -> HandOverError {
        self.inner.handing.hand_over(to).await
    }

    async fn serve_at(
        &self,
        kind: StreamKind,
        context: Option<CallerContext>,
        input: ClientInput,
        sink: ClientOutput,
    ) -> Result<SessionEnd, Fault> {
        let (ended, end) = oneshot::channel();
        let ended = Some(ended);
        let arrived = Arrived { kind, input, sink, ended, context, desk: None, resumes: None };
        self.inner.doors.open(DoorLoop::Stream(StreamDoor::new(arrived)), None);
        let stopping = || Fault::new(FaultCode::Stopping, "the system is stopping.");
        tokio::select! {
            // A stop in order ends every connection before it says that the system is down.
            biased;
            end = end => end.map_err(|_| stopping())?,
            _ = self.down() => {
                for number in self.inner.connections.numbers() {
                    self.inner.connections.over(number, SessionEnd::Failed);
                }
                Err(stopping())
            }
        }
    }

    /// The jobs of this system's store.
    #[must_use]
    pub fn jobs(&self) -> &JobDesk {
        &self.inner.desk
    }

    /// Whether jobs are begun from now on. What runs goes on in any case.
    #[doc(hidden)]
    pub fn begin_jobs(&self, beginning: Beginning) {
        self.inner.handing.attachments.room().set_beginning(beginning);
    }

    /// How this host is, as others see it: its sessions, its jobs and who waits for them.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    #[doc(hidden)]
    pub async fn seen(&self) -> HostSaid {
        self.inner.view.look().await
    }

    /// Which host this is.
    #[must_use]
    #[doc(hidden)]
    pub fn host(&self) -> HostId {
        self.inner.health.host
    }

    /// Tells every client that has opened its session with a control message this line, without its end.
    #[doc(hidden)]
    pub fn say_beside(&self, line: &str) {
        self.inner.connections.say_beside(line);
    }

    /// Takes no new consult, and lets go of those whose callers may come back elsewhere: who opened a session with a control
    /// message does, with the key of its consult. Such a job goes on and waits to be adopted, as if this host were gone. For
    /// right before [`System::shutdown`]; where jobs are not to be adopted ([`SystemBuilder::orphan_grace`]) it does nothing.
    ///
    /// # Cancel safety
    ///
    /// Not safe: jobs may be attended to by nobody until the stop.
    #[doc(hidden)]
    pub async fn leave_jobs(&self) {
        self.inner.handing.leave_jobs().await;
    }

    /// A number that differs when what clients are told about the tools does.
    #[must_use]
    #[doc(hidden)]
    pub fn catalog_digest(&self) -> u64 {
        self.inner.connections.passed_on().1
    }

    /// What the consult tools share.
    #[must_use]
    #[doc(hidden)]
    pub fn desk(&self) -> &Consults {
        &self.inner.desk.consults
    }

    /// Tells every client to list the tools again. Call it when one of your tools changed its definition; only you can
    /// know.
    ///
    /// Legacy sessions hear of it once, in the stateless era each subscription that asked for it does.
    pub fn tools_changed(&self) {
        self.inner.connections.tools_changed();
    }

    /// Asks for a rollout: the file at the launch path is checked, and where it passes, this program is replaced by it,
    /// even if it is the same. Who asks during a rollout joins it.
    ///
    /// Does not return on success. A returned value is the reason why the running program was kept.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the rollout under way.
    #[doc(hidden)]
    pub async fn reload(&self, by: Trigger) -> NotAdopted {
        self.inner.health.rollout.reload(by).await
    }

    /// From now on a candidate that passed its check is handed over to in this way. Until then it is checked as far as
    /// that is possible without a snapshot, and not adopted.
    #[doc(hidden)]
    pub fn hand_over_by(&self, how: Arc<dyn HandOver>) {
        self.inner.health.rollout.hand_over_by(how);
    }

    /// From now on a candidate that passed its check becomes this process's image, started as this one says; see
    /// [`System::hand_over`] for what that asks of the embedding program.
    #[doc(hidden)]
    pub fn hand_over_in_place(&self, image: NewImage) {
        self.hand_over_by(Arc::new(InPlace::new(&self.inner.handing, image)));
    }

    /// What is known about rollouts.
    #[must_use]
    #[doc(hidden)]
    pub fn rollouts(&self) -> &RolloutHandle {
        &self.inner.health.rollout
    }

    /// How it is and what it did.
    #[must_use]
    pub fn health(&self) -> &HealthSource {
        &self.inner.health
    }

    /// Accepts a consult of the embedding program itself and waits for its end. Where the store does not take the outcome, the
    /// record is given all the same, and the job stays `running` in the store until it does.
    ///
    /// # Errors
    ///
    /// It was not accepted. A consult that failed is a record that says so.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the job running until this system stops.
    pub async fn consult(&self, request: ConsultRequest) -> Result<JobRecord, Fault> {
        let record = self.start_consult(request, JobMode::Sync).await?;
        let mut follow = self.jobs().follow(record.id).await?;
        loop {
            match follow.next().await? {
                News::Finished(record) | News::Unstored(record) => return Ok((*record).clone()),
                News::Changed => {}
            }
        }
    }

    /// Accepts a consult of the embedding program itself, after the same checks a client's arguments pass.
    ///
    /// # Errors
    ///
    /// `invalid_input` with every problem, `prompt_too_large`, `recursion_refused`, `queue_full`, `store_unavailable`.
    pub async fn start_consult(&self, request: ConsultRequest, mode: JobMode) -> Result<JobRecord, Fault> {
        let options = self.inner.desk.consults.check(&request, mode).await?;
        let job = self.inner.desk.consults.job(&options, None);
        Ok(self.jobs().accept(job, None).await?.record)
    }

    /// Resolves when the system is down by itself: one of its parts failed.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn down(&self) -> Down {
        let mut down = self.inner.down.clone();
        match down.wait_for(Option::is_some).await {
            Ok(down) => down.clone().unwrap_or(Down::Stopped),
            Err(_) => Down::Failed(Fault::new(FaultCode::Internal, "the root of the tree is gone.")),
        }
    }

    /// The root of this system's tree, to be linked to a supervisor of the embedding program's own, or monitored by it. That one
    /// hears of the end as ractor tells it: `ActorTerminated` when the system was stopped, `ActorFailed` with a [`Fault`] when one
    /// of its parts failed too often. Stopping it stops the system in order. A supervisor that itself ends kills it, as it does
    /// any child: then the system's parts are dropped, and runners see that their host is gone.
    #[must_use]
    pub fn actor(&self) -> ActorCell {
        self.inner.root.get_cell()
    }

    /// Ends the jobs in the background that this system has, and waits for their end.
    async fn end_background(&self) {
        loop {
            let attached = self.inner.handing.attachments.all().into_iter();
            let background = attached.filter(|(_, attachment)| attachment.claim().0 == JobMode::Background);
            let jobs: Vec<JobId> = background.map(|(job, _)| job).collect();
            if jobs.is_empty() {
                return;
            }
            for job in &jobs {
                if let Err(fault) = self.jobs().cancel(*job).await {
                    tracing::warn!(%job, %fault, "a job in the background was not asked to end");
                }
            }
            for job in jobs {
                let Ok(mut follow) = self.jobs().follow(job).await else { continue };
                while matches!(follow.next().await, Ok(News::Changed | News::Unstored(_))) {}
            }
            // One that is over is let go of a moment later.
            tokio::time::sleep(LET_GO).await;
        }
    }

    /// Stops everything in order: connections, workers, jobs (synchronous ones are cancelled, background ones let go, unless
    /// [`Grace::end_background`]), telemetry, store. Nothing of it is left when it returns: no task, thread, process or file.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the system stopping.
    pub async fn shutdown(&self, grace: Grace) -> Shutdown {
        if grace.limit.is_zero() {
            self.inner.root.kill();
            self.inner.health.life.end();
            return Shutdown::Killed;
        }
        let until = tokio::time::Instant::now() + grace.limit;
        if grace.background == Background::Ends {
            let _ = tokio::time::timeout_at(until, self.end_background()).await;
        }
        self.inner.root.stop(None);
        match tokio::time::timeout_at(until, self.down()).await {
            Ok(down) => {
                // A runner whose outcome is stored leaves by itself, and is no part of the tree.
                let leaving = self.inner.handing.attachments.room().leaving();
                let _ = tokio::time::timeout_at(until, leaving.all_have_left()).await;
                match down {
                    Down::Stopped => Shutdown::InOrder,
                    Down::Failed(fault) => Shutdown::AfterFault(fault),
                }
            }
            Err(_) => {
                self.inner.root.kill();
                self.inner.health.life.end();
                Shutdown::Killed
            }
        }
    }
}
