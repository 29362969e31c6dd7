//! The runner: the small process that owns one job's agent.
//!
//! Owns: the job's lock, the agent's process group and pipes, the journal, the one terminal outcome. May not know: MCP,
//! sessions, other jobs (but for whose turn it is). It needs nobody: its host hears of it at once over the pipes, every
//! other process reads the store.
//!
//! Invariants: (1) nothing is done without the job's lock, so two runners never own one job; (2) L6: the job is
//! `running` in the store before the agent is started; (3) L7: it becomes terminal when the agent's group is empty;
//! (4) L4: `closed` is published after the terminal state is durable; how it gets there is `ending`'s.

mod attend;
mod core;
mod ending;
mod held;
mod journal;
mod workspace;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

pub use self::core::{Clocks, Pipe, RunnerCore};
pub use self::ending::outcome_channel;
use self::ending::{Ended, Ending, Told};
use self::journal::Journal;
use self::workspace::Watch;
use crate::agents::{
    Agent, AgentCommand, AgentRegistry, Environment, ExtraUsage, RunEnd, RunRequest, RunVerdict, SpawnFailure,
};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{JobId, RunToken, UnixMillis};
use crate::base::image::StandIn;
use crate::base::procfs;
use crate::base::state_dir::StateDir;
use crate::config::Config;
use crate::exec::ProcessSession;
use crate::exec::local::{
    Adopt, CloseBy, DESCRIPTORS_VARIABLE, LocalExec, LocalProcess, OutputTap, SpawnError, SpawnSpec, Stdin,
    become_subreaper,
};
use crate::exec::server::{ProcessTable, Server};
use crate::failpoints::{Broken, FaultPoint, Faults, Operation};
use crate::jobs::lock::{JobLock, RunPermit};
use crate::jobs::store::{Glance, StartOutcome, StoreError, StoreHandle};
use crate::jobs::{ConsultRequest, JobOutcome, JobRecord, JobState, JournalEvent, RunExit, RunProcess, leftovers};

/// How often the store is looked at for a cancel by another process.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The code a runner exits with that found no slot for its job after all, which is queued as before.
pub const NOT_YET: u8 = 4;

/// How long a slot is tried for. Who started us saw one come free; its holder gives it back within a moment of its job's lock.
const SLOT_PATIENCE: Duration = Duration::from_secs(2);

/// The first pause between two tries, and the longest.
const SLOT_PAUSE: Duration = Duration::from_millis(1);
const SLOT_PAUSE_MOST: Duration = Duration::from_millis(100);

/// How long a runner whose agent is not started yet waits for a store that is busy or full before it gives up. Nothing is lost by it.
const STORE_PATIENCE: Duration = Duration::from_secs(60);

/// Longest a fault may hold up a runner. One that stands still longer ends, and its job is in the hands of its host or of a
/// sweep, as if it had crashed there.
const HELD_UP: Duration = Duration::from_secs(5);
/// How long a run waits for a store that is busy or full before it goes on or ends without it. It heeds nothing meanwhile.
const STORE_MOMENT: Duration = Duration::from_secs(5);

/// How often a start that may work in a moment is tried again.
const TRY_EVERY: Duration = Duration::from_millis(50);

/// How long a program may be missing, or not to be executed, while an installer puts another one in its place.
const REPLACED: Duration = Duration::from_secs(3);

/// How long a program's file may be open for writing: a download writes to the file itself at worst.
const WRITTEN: Duration = Duration::from_secs(20);

/// How long descriptors, processes and memory may be wanting. The job is accepted, and others give back what they have.
const ROOM: Duration = Duration::from_secs(120);

/// How long the last notifications may take to be read by the host.
const FLUSH: Duration = Duration::from_secs(1);

/// How long a runner may take to leave once its outcome is stored; more than its parts may take together.
const LEAVE: Duration = Duration::from_secs(3);

/// How a host starts runners.
#[derive(Debug, Clone)]
pub struct RunnerCommand {
    program: PathBuf,
    stand_in: StandIn,
    dir: StateDir,
    config: Config,
    agents: AgentRegistry,
    environment: Option<Environment>,
    variables: Vec<(&'static str, OsString)>,
}

impl RunnerCommand {
    /// Runners are `program mcp background-consult`; they inherit the host's environment unless one is given, and of a given one
    /// get what is ours and what some agent needs. `variables` are set over either.
    #[must_use]
    pub fn new(
        program: PathBuf,
        dir: StateDir,
        config: Config,
        agents: AgentRegistry,
        environment: Option<Environment>,
        variables: Vec<(&'static str, OsString)>,
    ) -> Self {
        Self { program, stand_in: StandIn::default(), dir, config, agents, environment, variables }
    }

    /// The agents whose output a host can read.
    #[must_use]
    pub fn agents(&self) -> &AgentRegistry {
        &self.agents
    }

    /// Agent runs at once.
    #[must_use]
    pub fn max_running(&self) -> usize {
        self.config.max_running
    }

    /// A digest of what of the environment may reach an agent; `None` where no environment was given.
    #[must_use]
    pub fn environment_digest(&self, secret: &str) -> Option<String> {
        self.environment.as_ref().map(|environment| environment.digest(secret, &self.config.agent_env))
    }

    /// The program runners are started from.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Whose usage this request is.
    #[must_use]
    pub fn account(&self, request: &ConsultRequest) -> String {
        let agent = self.agents.get(&request.agent).ok();
        let account = |environment: &Environment| agent.map(|agent| agent.account(environment, request.billing));
        self.environment.as_ref().and_then(account).unwrap_or_default()
    }

    /// Starts one job's runner; the caller adds the pipes.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn start(
        &self,
        job: JobId,
        begins: Begins,
        mut pipes: impl FnMut(&mut tokio::process::Command),
    ) -> std::io::Result<tokio::process::Child> {
        self.spawn("background-consult", |command| {
            command.arg("--job").arg(job.to_string());
            if begins == Begins::WhenSpokenTo {
                command.arg("--held");
            }
            pipes(command);
        })
    }

    /// Starts the process that waits with jobs until their turn; the caller adds the pipes.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn start_waiting(
        &self,
        pipes: impl FnMut(&mut tokio::process::Command),
    ) -> std::io::Result<tokio::process::Child> {
        self.spawn("wait", pipes)
    }

    fn spawn(
        &self,
        word: &str,
        mut complete: impl FnMut(&mut tokio::process::Command),
    ) -> std::io::Result<tokio::process::Child> {
        self.stand_in.start(&self.program, |program| {
            let mut command = self.child(program, word);
            complete(&mut command);
            command.spawn()
        })
    }

    fn child(&self, program: &Path, word: &str) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(program);
        command
            .args(["mcp", word, "--state-dir"])
            .arg(self.dir.root())
            .args(["--max-running", &self.config.max_running.to_string()])
            .args(["--stall-s", &self.config.stall.as_secs().to_string()])
            .args(["--extra-usage", self.config.extra_usage.as_str()])
            // It outlives its host as long as its jobs do.
            .kill_on_drop(false);
        if let Some(path) = &self.config.claude_bin {
            command.arg("--claude-bin").arg(path);
        }
        for name in &self.config.agent_env {
            command.arg("--agent-env").arg(name);
        }
        if let Some(environment) = &self.environment {
            // A runner is what its agent can look at first: it holds nothing that is withheld from the agent.
            command.env_clear();
            command.envs(self.agents.for_runners(environment, self.config.billing).iter());
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// When a runner that was started begins with its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// At once.
    AtOnce,
    /// When it is spoken to: its job is on its way to the store.
    WhenSpokenTo,
}

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
    /// There was no slot, or its session is busy; the job is queued as before.
    NotYet,
}

/// Why a runner could not do its work. The job is left for the sweep.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The job's or a slot's lock failed.
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

/// Whether the host that started this runner still holds its end of the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    There,
    Gone,
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
    let core = RunnerCore::new(clocks, record.mode, Instant::now());
    let mut runner = Runner {
        journal: Journal::start(store.clone(), options.job),
        store: store.clone(),
        session: session.clone(),
        core,
        server,
        host: Host::There,
        asked,
        ask_pending: false,
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
    let Runner { journal, options, server, mut signals, .. } = runner;
    journal.finish().await;
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

/// Asks a store that is busy, full or just made anew again, for so long.
///
/// # Errors
///
/// The last one.
async fn insist<T, F>(patience: Duration, mut verb: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let began = Instant::now();
    let mut pause = Duration::from_millis(100);
    loop {
        match verb().await {
            Err(error) if is_passing(&error) && began.elapsed() < patience => {
                tracing::warn!(%error, "the store is asked again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
            done => return done,
        }
    }
}

/// Whether the store may work again in a moment.
fn is_passing(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Busy
            | StoreError::Overloaded
            | StoreError::Full
            | StoreError::Io { .. }
            | StoreError::Panicked
            | StoreError::Stuck
    )
}

/// The one process a runner shows to its host; it exists before the agent does.
struct OneProcess {
    id: String,
    session: ProcessSession,
    /// Its outcome, for a host whose caller waits, when the store does not take it. Not pushed: asked for.
    told: Told,
    /// One place: asking twice adds nothing.
    ask: mpsc::Sender<()>,
}

impl ProcessTable for OneProcess {
    fn exposed(&self) -> Vec<String> {
        vec![self.id.clone()]
    }

    fn session(&self, process_id: &str) -> Option<ProcessSession> {
        if process_id == self.id {
            return Some(self.session.clone());
        }
        (process_id == outcome_channel(&self.id)).then(|| {
            if self.told.session.has_ended() {
                self.told.fetched.notify_one();
            }
            self.told.session.clone()
        })
    }

    fn terminate(&self, process_id: &str) -> bool {
        if process_id != self.id || self.session.has_ended() {
            return false;
        }
        let _ = self.ask.try_send(());
        true
    }
}

/// What came of a try to start.
enum Turn {
    /// The job is `running`.
    Started(RunPermit),
    /// It waits on.
    Later,
    /// It must end.
    Over,
}

struct Signals {
    terminate: Signal,
    hangup: Signal,
    look: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            look: signal(SignalKind::user_defined1())?,
        })
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
        let _slot = match self.take_turn(record).await? {
            Turn::Started(slot) => slot,
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

    /// Takes the turn that has come: whoever started us has seen that a slot is free and nobody is due before.
    async fn take_turn(&mut self, record: &JobRecord) -> Result<Turn, RunnerError> {
        let began = Instant::now();
        // Read a moment ago, so the first try need not look again.
        let mut glance = Some(Glance::of(record));
        let mut pause = SLOT_PAUSE;
        let mut failing: Option<Instant> = None;
        loop {
            match self.try_to_start(glance.take()).await {
                Ok(Turn::Later) if began.elapsed() < SLOT_PATIENCE => failing = None,
                Ok(turn) => return Ok(turn),
                // A store that is busy for a moment is no reason to lose an accepted job.
                Err(RunnerError::Store(error)) if is_passing(&error) => {
                    let since = *failing.get_or_insert_with(Instant::now);
                    if since.elapsed() >= STORE_PATIENCE {
                        return Err(error.into());
                    }
                    tracing::warn!(%error, "the queue cannot be looked at");
                }
                Err(error) => return Err(error),
            }
            self.pause(pause).await;
            pause = (pause * 2).min(SLOT_PAUSE_MOST);
            self.heed().await;
        }
    }

    async fn try_to_start(&mut self, glance: Option<Glance>) -> Result<Turn, RunnerError> {
        let glance = match glance {
            Some(glance) => glance,
            None => self.store.glance(self.options.job).await?,
        };
        self.core.glanced(&glance);
        if self.core.tick(Instant::now()).is_some() {
            return Ok(Turn::Over);
        }
        let Some(slot) = RunPermit::try_acquire_any(&self.options.dir, self.options.max_running)? else {
            return Ok(Turn::Later);
        };
        match self.store.start(self.options.job, UnixMillis::now()).await? {
            StartOutcome::Started => Ok(Turn::Started(slot)),
            StartOutcome::SessionBusy { .. } => Ok(Turn::Later),
            // It waited while another run learnt of the limit.
            StartOutcome::Limited(limit) => {
                self.core.faulted(limit.fault(UnixMillis::now()));
                Ok(Turn::Over)
            }
            StartOutcome::Refused { current: JobState::Running } => {
                // Our own first try reached the disk although it seemed to fail: nobody else holds the job's lock.
                Ok(Turn::Started(slot))
            }
            StartOutcome::Refused { current } => {
                let detail = format!("the job was {} when its turn came.", current.as_str());
                self.core.faulted(Fault::new(FaultCode::IllegalTransition, detail));
                Ok(Turn::Over)
            }
        }
    }

    /// Heeds a request to end that a pause has noted.
    async fn heed(&mut self) {
        if std::mem::take(&mut self.ask_pending) {
            self.asked_to_end().await;
        }
    }

    /// Waits for whatever wakes a runner, at most `limit`.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only notes what it heard.
    async fn pause(&mut self, limit: Duration) {
        tokio::select! {
            Some(()) = self.asked.recv() => self.ask_pending = true,
            _ = self.server.peer_gone(), if self.host == Host::There => self.host_went(),
            _ = self.signals.terminate.recv() => self.core.told_to_stop(),
            _ = self.signals.hangup.recv() => {}
            _ = self.signals.look.recv() => {}
            () = tokio::time::sleep(limit) => {}
        }
    }

    fn host_went(&mut self) {
        self.host = Host::Gone;
        self.core.host_went(Instant::now());
    }

    async fn asked_to_end(&mut self) {
        // The host records why before it asks.
        let recorded = self.store.glance(self.options.job).await.ok().and_then(|glance| glance.cancel_requested);
        self.core.asked_to_end(recorded);
    }

    async fn run_agent(&mut self, agent: &dyn Agent, record: &JobRecord, nothing: RunEnd) -> RunVerdict {
        let token = RunToken::random();
        self.journal.write(JournalEvent::Dispatched);
        // The journal goes before the mark: a store that stands still at it stands still for the mark, and nothing is started.
        tokio::task::yield_now().await;
        // The token first, so that whatever the run starts, a question to the program among it, can be recognised even if this
        // runner dies right after.
        let (session, numbering) = (std::process::id(), leftovers::numbering());
        // Only a runner that leads its session: an embedding program may have run this in its own.
        let session = if procfs::leads_session() { session } else { 0 };
        let mark = RunProcess { pid: 0, start_time: 0, token, session, numbering };
        if let Err(error) = insist(STORE_MOMENT, || self.store.set_process(record.id, mark)).await {
            return failed(error.into());
        }
        let first = self.try_agent(agent, record, mark, nothing.clone(), None).await;
        let Some(refused) = first.refused else { return first.verdict };
        // It refused an option before it did anything, so nothing has run: what was known of it is not so.
        tracing::warn!("the agent's program does not know an option it was said to have; it is asked again");
        agent.forget(&refused.program, self.options.dir.root());
        let second = self.try_agent(agent, record, mark, nothing, Some(&refused.args)).await;
        // Asked again, it was said to have the same: the refusal stands.
        if second.is_the_same { first.verdict } else { second.verdict }
    }

    /// Starts the agent and attends to it. Nothing is started by the arguments that were `refused` before.
    async fn try_agent(
        &mut self,
        agent: &dyn Agent,
        record: &JobRecord,
        mark: RunProcess,
        nothing: RunEnd,
        refused: Option<&[OsString]>,
    ) -> Tried {
        let environment = self.options.environment.clone();
        let request = RunRequest {
            request: &record.request,
            token: mark.token,
            chain: record.chain,
            depth: record.depth,
            environment: &environment,
        };
        let command = match self.prepare(agent, &request).await {
            Some(Ok(command)) => command,
            Some(Err(fault)) => return failed(fault).into(),
            None => return agent.classify(RunEnd { stop: self.core.stop().cloned(), ..nothing }).into(),
        };
        let nothing = RunEnd {
            key_withheld: command.key_withheld,
            prompt_prefix_injected: command.prompt_prefix_injected,
            resumed_id: command.resumed_id,
            ..nothing
        };
        if refused.is_some_and(|refused| refused == command.args) {
            return Tried { is_the_same: true, ..agent.classify(nothing).into() };
        }
        let spec = SpawnSpec {
            program: command.program.clone(),
            args: command.args.clone(),
            cwd: record.request.cwd.clone(),
            env: command.env.clone(),
            stdin: Stdin::Bytes(command.stdin.clone()),
            adopt: Adopt::Yes,
            descriptors: environment.get(DESCRIPTORS_VARIABLE).and_then(|soft| soft.to_str()?.parse().ok()),
        };
        let mut watch = Watch::begin(&record.request.cwd);
        let (mut process, tap) = match self.start(&spec).await {
            Some(Ok(started)) => started,
            Some(Err(error)) => {
                return agent.classify(RunEnd { spawn_error: Some(spawn_failure(&error)), ..nothing }).into();
            }
            None => return agent.classify(RunEnd { stop: self.core.stop().cloned(), ..nothing }).into(),
        };
        self.core.started(Instant::now());
        self.journal.write(JournalEvent::ProcessStarted { pid: process.pid() });
        let evidence = RunProcess { pid: process.pid(), start_time: process.start_time(), ..mark };
        if let Err(error) = insist(STORE_MOMENT, || self.store.set_process(record.id, evidence)).await {
            // Without it a sweep could not find what is left of this run, so the run does not go on.
            self.core.faulted(error.into());
        }
        let seen = attend::attend(self, agent, &command, &mut process, tap, &mut watch).await;
        let exit = RunExit { code: seen.end.code, signal: seen.end.signal, reaped: seen.end.reaped };
        self.journal.write(JournalEvent::ProcessClosed);
        let said_nothing = seen.summary.events() == 0;
        let mut verdict = agent.classify(RunEnd {
            summary: seen.summary,
            exit: Some(exit),
            stop: self.core.stop().cloned(),
            stderr_tail: seen.stderr,
            at: Some(UnixMillis::now()),
            ..nothing
        });
        verdict.outcome.workspace_changed = watch.end().await;
        let code = verdict.outcome.fault.as_ref().map(|fault| fault.code);
        let refused = code == Some(FaultCode::AgentUnsupported) && said_nothing && self.core.stop().is_none();
        Tried { refused: refused.then_some(command), ..verdict.into() }
    }

    /// Starts the program. What passes by itself is waited for: a file that is being replaced, and want of descriptors,
    /// processes or memory. `None` when the job must end meanwhile.
    async fn start(&mut self, spec: &SpawnSpec) -> Option<Result<(LocalProcess, OutputTap), SpawnError>> {
        let began = Instant::now();
        loop {
            match LocalExec::spawn(spec.clone(), self.session.clone(), CloseBy::Owner) {
                Err(error) if began.elapsed() < passes_within(&error) => {
                    tracing::debug!(%error, "the agent's program is tried again");
                    if self.must_end_meanwhile().await {
                        return None;
                    }
                }
                done => return Some(done),
            }
        }
    }

    /// Waits a moment; whether the job must end.
    async fn must_end_meanwhile(&mut self) -> bool {
        self.pause(TRY_EVERY).await;
        self.heed().await;
        self.look().await
    }

    /// Prepares the command; `None` when the job must end meanwhile. A program that was there before and is missing now may be
    /// being replaced, and is waited for.
    async fn prepare(&mut self, agent: &dyn Agent, request: &RunRequest<'_>) -> Option<Result<AgentCommand, Fault>> {
        let root = self.options.dir.root().to_owned();
        let began = Instant::now();
        loop {
            match self.prepare_once(agent, request, &root).await {
                Some(Err(fault))
                    if matches!(fault.code, FaultCode::AgentMissing | FaultCode::AgentNotExecutable)
                        && began.elapsed() < REPLACED
                        && agent.was_found(&root) =>
                {
                    if self.must_end_meanwhile().await {
                        return None;
                    }
                }
                done => return done,
            }
        }
    }

    async fn prepare_once(
        &mut self,
        agent: &dyn Agent,
        request: &RunRequest<'_>,
        root: &Path,
    ) -> Option<Result<AgentCommand, Fault>> {
        let mut preparing = agent.prepare(request, root);
        loop {
            tokio::select! {
                command = &mut preparing => return Some(command),
                () = self.pause(LOOK_EVERY) => {}
            }
            self.heed().await;
            if self.look().await {
                return None;
            }
        }
    }

    /// Looks at the store and the clocks; true when the job is to end.
    async fn look(&mut self) -> bool {
        // A store that cannot be looked at for a moment does not end a run that is paid for already.
        if let Ok(glance) = self.store.glance(self.options.job).await {
            self.core.glanced(&glance);
        }
        self.core.tick(Instant::now()).is_some()
    }
}

/// What came of one try to run the agent.
struct Tried {
    verdict: RunVerdict,
    /// It refused an option and did nothing else; this is how it was started.
    refused: Option<AgentCommand>,
    /// It was not started: it would have been by the same arguments as before.
    is_the_same: bool,
}

impl From<RunVerdict> for Tried {
    fn from(verdict: RunVerdict) -> Self {
        Self { verdict, refused: None, is_the_same: false }
    }
}

/// How long a start that failed so is tried again.
fn passes_within(error: &SpawnError) -> Duration {
    match error {
        SpawnError::Busy { .. } => WRITTEN,
        SpawnError::NoRoom { .. } => ROOM,
        SpawnError::ProgramMissing { .. } | SpawnError::NotExecutable { .. } => REPLACED,
        _ => Duration::ZERO,
    }
}

fn spawn_failure(error: &SpawnError) -> SpawnFailure {
    match error {
        SpawnError::CwdMissing { .. } | SpawnError::CwdNotADirectory { .. } => SpawnFailure::NoDirectory,
        SpawnError::ProgramMissing { .. } => SpawnFailure::Missing,
        SpawnError::NotExecutable { .. } => SpawnFailure::NotExecutable,
        SpawnError::ArgumentsTooLarge { .. } => SpawnFailure::TooLarge,
        SpawnError::CwdNotEntered { .. } => SpawnFailure::DirectoryClosed,
        SpawnError::Busy { .. } => SpawnFailure::Other(error.to_string()),
        SpawnError::NoRoom { source, .. } | SpawnError::Other { source, .. } => SpawnFailure::Other(source.to_string()),
    }
}

fn failed(fault: Fault) -> RunVerdict {
    RunVerdict { state: JobState::Failed, outcome: JobOutcome { fault: Some(fault), ..JobOutcome::default() } }
}

/// The variables by which nested consults know of each other.
#[must_use]
pub fn nesting(environment: &Environment) -> (Option<crate::base::ids::ChainId>, u32) {
    let text = |name: &str| environment.get(name).and_then(|value| value.to_str()).map(str::to_owned);
    let chain = text(crate::agents::CHAIN_VARIABLE).and_then(|chain| chain.parse().ok());
    let depth = text(crate::agents::DEPTH_VARIABLE).and_then(|depth| depth.parse().ok()).unwrap_or(0);
    (chain, depth)
}
