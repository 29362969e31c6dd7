//! The runner: the small process that owns one job's agent.
//!
//! Owns: the job's lock, the agent's process group and pipes, the journal, the one terminal outcome. May not know: MCP,
//! sessions, other jobs (but for whose turn it is). It needs nobody: its host hears of it at once over the pipes, every
//! other process reads the store.
//!
//! Invariants: (1) nothing is done without the job's lock, so two runners never own one job; (2) L6: the job is
//! `running` in the store before the agent is started; (3) L7: it becomes terminal when the agent's group is empty, on whichever machine;
//! (4) L4: `closed` is published after the terminal state is durable; how it gets there is `ending`'s.

mod agent_run;
mod attend;
mod command;
mod core;
mod elsewhere;
mod ending;
mod held;
mod journal;
mod nesting;
mod patience;
mod process;
mod seen_there;
mod shown;
mod starting;
mod talk;
mod turn;
mod waking;
mod workspace;

use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use self::agent_run::failed;
pub use self::command::{Begins, RunnerCommand, RunnerManner, manner_digest};
pub use self::core::{Clocks, HostSeen, Pipe, RunnerCore};
pub use self::elsewhere::try_site;
pub use self::ending::outcome_channel;
use self::ending::{Ended, Ending, Told};
use self::journal::Journal;
pub use self::nesting::nesting;
pub use self::seen_there::{MachineSeen, WorkspaceSeen, seen_there};
use self::shown::OneProcess;
use self::turn::Turn;
use self::waking::{Host, Signals};
use crate::agents::{AgentRegistry, Environment, ExtraUsage, RunEnd, RunVerdict};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{JobId, UnixMillis};
use crate::base::state_dir::StateDir;
use crate::exec::ProcessSession;
use crate::exec::local::become_subreaper;
use crate::exec::server::Server;
use crate::failpoints::{Broken, FaultPoint, Faults, Operation};
use crate::jobs::lock::JobLock;
use crate::jobs::store::{StoreError, StoreHandle};
use crate::jobs::{JobRecord, JobState};

/// The code a runner exits with that found no permit for its job after all, which is queued as before.
pub const NOT_YET: u8 = 4;

/// Longest a fault may hold up a runner. One that stands still longer ends, and its job is in the hands of its host or of a
/// sweep, as if it had crashed there.
const HELD_UP: Duration = Duration::from_secs(5);

/// How long the last notifications may take to be read by the host.
const FLUSH: Duration = Duration::from_secs(1);

/// How long a runner may take to leave once its outcome is stored; more than its parts may take together.
const LEAVE: Duration = Duration::from_secs(3);

/// What a runner is started with.
#[derive(Debug)]
pub struct RunnerOptions {
    pub job: JobId,
    /// It was started beside its job's accept: it begins when its host speaks to it, and leaves when its host hangs up before.
    pub held: bool,
    /// Where the store and the locks lie.
    pub dir: StateDir,
    /// Agent runs at once in this state directory.
    pub max_running: usize,
    /// Silence after which the agent is taken for stuck.
    pub stall: Duration,
    /// How long the job waits to be adopted when its host is gone; zero when it is not.
    pub orphan_grace: Duration,
    /// What becomes of a run that would be paid for beyond its plan.
    pub extra_usage: ExtraUsage,
    /// The agents there are.
    pub agents: AgentRegistry,
    /// The environment an agent's own is made from.
    pub environment: Environment,
    /// What is to break.
    pub faults: Faults,
}

/// How a runner ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunnerEnd {
    /// Its job is terminal.
    Done(JobState),
    /// Its job's outcome is safe and not in the store yet: a sweep puts it there.
    Left,
    /// The store has forgotten its job.
    Forgotten,
    /// The job was not its to run: another runner has it, or it is over.
    NotOurs,
    /// It was held for a job that it was not needed for.
    Unneeded,
    /// There was no permit, or its session is busy; the job is queued as before.
    NotYet,
}

/// Why a runner could not do its work. The job is left for the sweep.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The job's or a permit's lock failed.
    #[error("take the job's lock")]
    Lock(#[from] crate::jobs::lock::LockError),
    /// The store failed.
    #[error("use the job store")]
    Store(#[from] StoreError),
    /// A fault point of an armed plan was met.
    #[error("go on: {0}")]
    Injected(Fault),
    /// A signal handler could not be installed.
    #[error("listen for signals")]
    Signal(#[source] std::io::Error),
}

/// Runs one job to its terminal state. For the main function of a process that does nothing else, on its main thread
/// under a current-thread runtime: the agent gets its death signal when this thread ends.
///
/// # Errors
///
/// The job could not be taken or settled; whatever was started has been ended.
///
/// # Cancel safety
///
/// Not safe: dropping the future kills the agent's group and leaves the job to the sweep.
pub async fn run<R, W>(options: RunnerOptions, reader: R, writer: W) -> Result<RunnerEnd, RunnerError>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    // The host is answered first: it must not take a runner that waits for the disk for one that is dead.
    let session = ProcessSession::new();
    let (ask, asked) = mpsc::channel(1);
    let told = Told::new();
    let shown = OneProcess { id: options.job.to_string(), session: session.clone(), told: told.clone(), ask };
    let (reader, word) = held::heeding(reader);
    let mut server = Server::start(reader, writer, shown);
    let faults = options.faults.clone();
    let store = StoreHandle::sqlite_with(options.dir.clone(), faults.clone());
    if options.held && !held::wait(word, &mut server, &store).await {
        store.close().await;
        return Ok(RunnerEnd::Unneeded);
    }
    met(&faults, FaultPoint::RunnerStart).await?;
    let Some(lock) = JobLock::try_acquire(&options.dir, options.job)? else { return Ok(RunnerEnd::NotOurs) };
    let record = store.job(options.job).await?;
    if record.state != JobState::Queued {
        // Running with a free lock means that an earlier runner died: that is the sweep's, never a second run.
        return Ok(RunnerEnd::NotOurs);
    }
    if let Err(error) = become_subreaper() {
        tracing::warn!(%error, "processes that leave the agent's session will not be found");
    }
    let listening = Signals::new().map_err(RunnerError::Signal)?;
    let clocks = Clocks { timeout: Duration::from_secs(record.request.timeout_s), stall: options.stall };
    let core = RunnerCore::new(clocks, record.mode).adoptable(record.host, options.orphan_grace);
    let mut runner = Runner {
        journal: Journal::start(store.clone(), options.job),
        store: store.clone(),
        session: session.clone(),
        core,
        server,
        host: Host::There,
        asked,
        ask_pending: false,
        over_there: None,
        signals: listening,
        options,
    };
    let Some(verdict) = runner.work(&record).await? else {
        let Runner { journal, server, .. } = runner;
        journal.finish().await;
        server.finish(FLUSH).await;
        store.close().await;
        return Ok(RunnerEnd::NotYet);
    };
    let state = verdict.state;
    let Runner { journal, options, server, mut signals, over_there, .. } = runner;
    journal.finish().await;
    elsewhere::over_there(over_there, &lock, &mut signals.terminate).await;
    met(&faults, FaultPoint::RunnerBeforeTerminal).await?;
    let ending = Ending {
        store: &store,
        dir: &options.dir,
        lock: &lock,
        record: &record,
        agent: &session,
        told: &told,
        terminate: &mut signals.terminate,
    };
    match ending.perform(&verdict).await? {
        Ended::Stored => {}
        Ended::Left => return Ok(RunnerEnd::Left),
        Ended::Forgotten => return Ok(RunnerEnd::Forgotten),
    }
    // Durable now: the host may be told.
    let leaving = async {
        if !met(&faults, FaultPoint::RunnerAfterTerminal).await? {
            let _ = session.publish_closed();
        }
        server.finish(FLUSH).await;
        store.close().await;
        Ok(RunnerEnd::Done(state))
    };
    // Whatever holds it up: a host that was not told hears of it by the end of the pipe, and then reads the store.
    tokio::time::timeout(LEAVE, leaving).await.unwrap_or(Ok(RunnerEnd::Done(state)))
}

/// Meets a point; whether a message is to be lost there.
async fn met(faults: &Faults, point: FaultPoint) -> Result<bool, RunnerError> {
    match tokio::time::timeout(HELD_UP, faults.meet(point, Operation::None)).await {
        Ok(None) => Ok(false),
        Ok(Some(Broken::Error(fault))) => Err(RunnerError::Injected(*fault)),
        Ok(Some(_)) => Ok(true),
        Err(_) => {
            let detail = format!("the runner stood still at {point}.");
            Err(RunnerError::Injected(Fault::new(FaultCode::Injected, detail)))
        }
    }
}

struct Runner {
    options: RunnerOptions,
    store: StoreHandle,
    session: ProcessSession,
    journal: Journal,
    core: RunnerCore,
    server: Server,
    host: Host,
    asked: mpsc::Receiver<()>,
    ask_pending: bool,
    /// Until when something may live on another machine that was lost to us.
    over_there: Option<Instant>,
    signals: Signals,
}

impl Runner {
    /// From the turn to the verdict; `None` when the turn has passed by. Whatever was started is over when this returns.
    async fn work(&mut self, record: &JobRecord) -> Result<Option<RunVerdict>, RunnerError> {
        let agent = match self.options.agents.get(&record.request.agent) {
            Ok(agent) => agent,
            Err(fault) => return Ok(Some(failed(fault))),
        };
        let nothing = RunEnd { resume_requested: record.request.session_id, ..RunEnd::default() };
        let _permit = match self.take_turn(record).await? {
            Turn::Started(permit) => permit,
            Turn::Later => return Ok(None),
            Turn::Over => return Ok(Some(agent.classify(RunEnd { stop: self.core.stop().cloned(), ..nothing }))),
        };
        let queued_ms = UnixMillis::now().since(record.accepted_at);
        let began = Instant::now();
        let mut verdict = self.run_agent(agent.as_ref(), record, nothing).await;
        verdict.outcome.queued_ms = Some(queued_ms);
        verdict.outcome.run_ms = u64::try_from(began.elapsed().as_millis()).ok();
        Ok(Some(verdict))
    }
}
