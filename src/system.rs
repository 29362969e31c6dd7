//! A running system, for programs that embed one. The binary is such a program.
//!
//! Owns: how the parts are put together. Nothing here is global (L12): two systems run in one process, and the
//! embedding program keeps its signals, its logger, its environment and its exit.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorRef};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::actors::child;
use crate::actors::connections::{Connections, Door, Served};
use crate::actors::current::{Current, Naming};
use crate::actors::jobs::custody::{Attachments, Means};
use crate::actors::jobs::{JobsArguments, JobsHandle, JobsMsg};
use crate::actors::kept::Kept;
use crate::actors::rollout::{RolloutArguments, RolloutHandle, RolloutMsg};
use crate::actors::root::{Down, Names, Root, RootArguments, RootMsg};
use crate::actors::session::{Gauges, Input, Sink};
use crate::actors::sessions::{SessionEnd, SessionsArguments, SessionsMsg};
use crate::actors::workers::process::ProcessBackend;
use crate::actors::workers::slot::RestartPolicy;
use crate::actors::workers::{Backend, Roster, WorkersArguments, WorkersMsg};
use crate::agents::{Agent, AgentNames, AgentRegistry, Environment};
use crate::clients::Clients;
use crate::config::Config;
use crate::fault::{Fault, FaultCode};
use crate::faults::{Broken, FaultPoint, Faults, Operation};
use crate::handover::{self, HandOverError, InPlace, NewImage, Snapshot, SnapshotError};
use crate::health::HealthSource;
use crate::ids::HostId;
use crate::jobs::{ConsultRequest, JobMode, JobRecord};
use crate::protocol::catalog::{Catalog, Define, Room};
use crate::protocol::session::SessionLimits;
use crate::protocol::wire::Identity;
use crate::rollout::{Carried, Fingerprint, HandOver, NotAdopted, Rollout, RolloutSetup, Status, Trigger};
use crate::runner::{RunnerCommand, nesting};
use crate::state_dir::StateDir;
use crate::stdio;
use crate::store::{AcceptLimits, StoreHandle};
use crate::telemetry::counters::Counters;
use crate::telemetry::{Record, RolloutRecord, TelemetryHandle};
use crate::tools::consult::{ConsultTool, Desk};
use crate::tools::readers::{CancelTool, HealthTool, JobTool, JobsTool, TelemetryTool};
use crate::tools::tasks::TaskDesk;
use crate::tools::{Target, Tool};
use crate::worker::settings::{DeskSettings, Settings};
use crate::worker::{Isolation, WorkerCommand, WorkerPolicy, wire};

/// When to use us, as every model that connects is told. Under 600 characters: every session pays for it.
pub const INSTRUCTIONS: &str = "Ask another coding agent for a second opinion with `consult`: reviews of risky diffs, \
bugs you are stuck on, design choices. It can read this directory and nothing else, and never writes. Do not use it for \
what you can look up or run yourself. A consult that outlasts your wait, or has background=true, becomes a job: read it \
with ONE blocking call, consult_job with wait_s; do not poll. Pass the session_id of a reply to continue that \
conversation. Answers are kept: unread_jobs in a reply names finished ones.";

/// Longest line a client may send. Several clients close the connection on lines over 10 MiB, and our own are far shorter:
/// answers are cut to a budget.
pub const LINE_LIMIT: usize = 8 * 1024 * 1024;

/// Longest an ordered stop takes in all; the sum of its parts is in the root actor.
const STOP_LIMIT: Duration = Duration::from_secs(12);

/// Which of our own tools clients are offered, beside those of the embedding program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OwnTools {
    /// The consult tools, where the system can consult, and the snapshots of health and telemetry.
    #[default]
    All,
    /// None: the embedding program's tools are all there are. It still reaches jobs, health and telemetry through [`System`].
    None,
}

/// Puts a system together.
pub struct SystemBuilder {
    state_dir: Option<StateDir>,
    config: Config,
    agents: AgentRegistry,
    tools: Vec<Arc<dyn Tool>>,
    own_tools: OwnTools,
    runner: Option<PathBuf>,
    environment: Option<Environment>,
    default_cwd: Option<PathBuf>,
    restart: Option<RestartPolicy>,
    isolation: Isolation,
    worker_policy: WorkerPolicy,
    session_limits: SessionLimits,
    line_limit: usize,
    telemetry_log: bool,
    faults: Faults,
    rollout: Option<RolloutSetup>,
    restore: Option<Snapshot>,
}

impl SystemBuilder {
    /// Where jobs and their locks are kept. Without it the system offers its own tools only, and no consults.
    #[must_use]
    pub fn state_dir(mut self, dir: StateDir) -> Self {
        self.state_dir = Some(dir);
        self
    }

    /// The numbers.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Adds an agent; one of the same name is replaced.
    #[must_use]
    pub fn agent(mut self, agent: impl Agent + 'static) -> Self {
        self.agents = self.agents.with(Arc::new(agent));
        self
    }

    /// The agents, all at once.
    #[must_use]
    pub fn agents(mut self, agents: AgentRegistry) -> Self {
        self.agents = agents;
        self
    }

    /// Adds a tool.
    #[must_use]
    pub fn tool(mut self, tool: impl Tool) -> Self {
        self.tools.push(Arc::new(tool));
        self
    }

    /// Which of our own tools clients are offered; all of them when not set.
    #[must_use]
    pub fn own_tools(mut self, offered: OwnTools) -> Self {
        self.own_tools = offered;
        self
    }

    /// The phone-opus program that is run for each job. Required for consults.
    #[must_use]
    pub fn runner(mut self, program: impl Into<PathBuf>) -> Self {
        self.runner = Some(program.into());
        self
    }

    /// The environment of runners, from which an agent's is made; a copy of the process's own when not set.
    #[must_use]
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }

    /// Where a consult runs that names no directory.
    #[must_use]
    pub fn default_cwd(mut self, dir: Option<PathBuf>) -> Self {
        self.default_cwd = dir;
        self
    }

    /// When workers are started again; as the configuration says when not set.
    #[must_use]
    pub fn restart_policy(mut self, policy: RestartPolicy) -> Self {
        self.restart = Some(policy);
        self
    }

    /// Where worker tools run; in this process when not set.
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// How long a worker process may be silent.
    #[must_use]
    pub fn worker_policy(mut self, policy: WorkerPolicy) -> Self {
        self.worker_policy = policy;
        self
    }

    /// Bounds of each session.
    #[must_use]
    pub fn session_limits(mut self, limits: SessionLimits) -> Self {
        self.session_limits = limits;
        self
    }

    /// Longest line a client may send; [`LINE_LIMIT`] when not set.
    #[must_use]
    pub fn line_limit(mut self, bytes: usize) -> Self {
        self.line_limit = bytes;
        self
    }

    /// Whether telemetry is written to the state directory; it is counted in any case.
    #[must_use]
    pub fn telemetry_log(mut self, written: bool) -> Self {
        self.telemetry_log = written;
        self
    }

    /// What is to break; nothing when not set.
    #[must_use]
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// By which program the system is to be replaced, and what that one has to show first; never, when not set. It also
    /// takes somebody who hands over: [`System::hand_over_in_place`], [`System::hand_over_by`].
    #[must_use]
    pub fn rollout(mut self, setup: RolloutSetup) -> Self {
        self.rollout = Some(setup);
        self
    }

    /// Goes on where an earlier image of this program stood: the next connection that is served on the standard streams is
    /// the one it had. Only the process that was started with the snapshot may, and once: it takes over descriptors and
    /// children.
    #[must_use]
    pub fn restore(mut self, snapshot: Snapshot) -> Self {
        self.restore = Some(snapshot);
        self
    }

    /// A dry run of [`SystemBuilder::restore`]: makes every state machine again, and touches no descriptor, process or disk.
    ///
    /// # Errors
    ///
    /// Something in the snapshot makes no sense to this program.
    pub fn check(self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        let workers = Naming::<WorkersMsg>::new();
        let jobs = Naming::<JobsMsg>::new();
        let host = snapshot.host;
        let telemetry = TelemetryHandle::new();
        let dir = StateDir::at("/nonexistent");
        let store = StoreHandle::sqlite(dir.clone());
        let environment = Environment::default();
        let runner = self.runner.map(|program| {
            let config = self.config.clone();
            Arc::new(RunnerCommand::new(program, dir.clone(), config, self.agents.clone(), None, Vec::new()))
        });
        let assembly = Assembly {
            host,
            started: Instant::now(),
            config: Arc::new(self.config),
            agents: self.agents,
            nesting: nesting(&environment),
            default_cwd: self.default_cwd,
            telemetry: telemetry.clone(),
            observed: None,
            extra: self.tools,
            offered: self.own_tools,
            consults: self.own_tools == OwnTools::All && self.state_dir.is_some() && runner.is_some(),
            session_limits: self.session_limits,
            line_limit: self.line_limit,
            faults: Faults::none(),
            rollout: rollouts(None, None, &Config::default(), Naming::new().current(), &telemetry),
        };
        let handle = JobsHandle::new(jobs.current(), store.clone());
        let (served, _) = assembly.served(workers.current(), handle, jobs.current());
        let connections = Connections::new(served);
        connections.inherit(snapshot.next_session, snapshot.session.as_ref(), snapshot.catalog, snapshot.age())?;
        if snapshot.session.is_some() {
            let sink: Sink = Box::new(tokio::io::sink());
            let opened = connections.open(Door::Standard, Box::new(tokio::io::empty()), sink);
            opened.map_err(|fault| SnapshotError::NoSystem { reason: fault.detail })?;
        }
        if let Some(counters) = &snapshot.telemetry {
            drop(Counters::restored(counters));
        }
        Ok(())
    }

    /// Starts the system. Nothing touches the disk before it is needed.
    ///
    /// # Errors
    ///
    /// A part did not start; whatever had started is stopped.
    ///
    /// # Cancel safety
    ///
    /// Not safe: a dropped future may leave a started tree behind that nobody stops.
    pub async fn start(self) -> Result<System, Fault> {
        let restore = self.restore;
        if restore.is_some() {
            let met = child::in_time(self.faults.meet(FaultPoint::RolloutAfterRestore, Operation::None)).await?;
            if let Some(Broken::Error(fault)) = met {
                return Err(*fault);
            }
        }
        let host = restore.as_ref().map_or_else(HostId::random, |snapshot| snapshot.host);
        let telemetry = TelemetryHandle::new();
        let log = self.state_dir.as_ref().filter(|_| self.telemetry_log).map(StateDir::telemetry);
        let config = Arc::new(self.config);
        let environment = self.environment.unwrap_or_else(Environment::capture);
        let trial = environment.clone();
        let environment = Some(environment);
        // A system without a directory has no consults; its store is never opened.
        let dir = self.state_dir.clone().unwrap_or_else(|| StateDir::at("/nonexistent"));
        let faults = self.faults;
        let store = StoreHandle::sqlite_with(dir.clone(), faults.clone());
        let runner = match (&self.state_dir, self.runner) {
            (Some(dir), Some(program)) => Some(Arc::new(RunnerCommand::new(
                program,
                dir.clone(),
                (*config).clone(),
                self.agents.clone(),
                environment.clone(),
                faults.variables(),
            ))),
            _ => None,
        };
        let offered = self.own_tools;
        let consults = offered == OwnTools::All && runner.is_some();
        let (down_tx, down) = watch::channel(None);
        let now = Instant::now();
        let uptime = restore.as_ref().map_or(Duration::ZERO, |snapshot| snapshot.uptime + snapshot.age());
        let started = now.checked_sub(uptime).unwrap_or(now);
        let names = Names::default();
        let setup = self.rollout.map(Arc::new);
        let carried = restore.as_ref().map(|snapshot| snapshot.rollout.clone());
        let rollout = rollouts(setup.as_deref(), carried, &config, names.rollout.current(), &telemetry);
        let assembly = Assembly {
            host,
            started,
            config: Arc::clone(&config),
            agents: self.agents.clone(),
            nesting: environment.as_ref().map_or((None, 0), nesting),
            default_cwd: self.default_cwd,
            telemetry: telemetry.clone(),
            observed: self.state_dir.as_ref().map(StateDir::clients),
            extra: self.tools,
            offered,
            consults,
            session_limits: self.session_limits,
            line_limit: self.line_limit,
            faults: faults.clone(),
            rollout: rollout.clone(),
        };
        let handle = JobsHandle::new(names.jobs.current(), store.clone());
        let worker = handle.clone();
        let (served, (desk, health)) = assembly.served(names.workers.current(), handle, names.jobs.current());
        let backend = match self.isolation {
            Isolation::InProcess => Backend::InProcess(faults.clone()),
            Isolation::Process(command) => {
                let desk = consults.then_some(&desk);
                Backend::Process(Arc::new(process_backend(command, self.worker_policy, worker, &served, desk)))
            }
        };
        let gauges = Arc::clone(&served.gauges);
        let connections = Connections::new(served);
        let attachments = Attachments::default();
        let mut counters = Counters::default();
        let mut past = None;
        if let Some(snapshot) = restore {
            let means = runner.clone().map(|runner| Means { store: store.clone(), dir: dir.clone(), runner });
            snapshot.restore_into(&connections, &attachments, &gauges, &telemetry, means.as_ref());
            if let Some(counted) = &snapshot.telemetry {
                counters = Counters::restored(counted);
            }
            past = Some(Arc::new(snapshot.workers));
        }
        let jobs = JobsArguments {
            store: store.clone(),
            dir,
            runner,
            limits: AcceptLimits { max_queued: config.max_queued },
            attachments: attachments.clone(),
            connections: connections.clone(),
            faults: faults.clone(),
            telemetry: telemetry.clone(),
        };
        let sessions = SessionsArguments {
            connections: connections.clone(),
            workers: names.workers.current(),
            jobs: names.jobs.current(),
            faults: faults.clone(),
        };
        let supervisor = names.sessions.current();
        let workers = WorkersArguments {
            policy: self.restart.unwrap_or_else(|| restarts(&config)),
            backend,
            roster: Arc::new(Roster::default()),
            past,
            telemetry: telemetry.clone(),
            faults: faults.clone(),
        };
        let image = |setup: &Arc<RolloutSetup>| setup.image.clone().unwrap_or_else(|| setup.launch.path.clone());
        let running = setup.as_ref().and_then(|setup| Fingerprint::look(&image(setup)));
        let stable = setup.as_ref().is_some_and(|setup| setup.launch.stable);
        let rollout = RolloutArguments {
            setup,
            kept: Kept::new(Rollout::new(config.rollout, stable, running)),
            handle: rollout,
            environment: trial,
            database: self.state_dir.as_ref().map(StateDir::database),
            telemetry: telemetry.clone(),
        };
        let handing = handover::Desk {
            rollout: rollout.handle.clone(),
            underway: handover::Underway::default(),
            host,
            started,
            dir: self.state_dir.clone(),
            connections: connections.clone(),
            workers: names.workers.current(),
            jobs: names.jobs.current(),
            attachments,
            store: store.clone(),
            telemetry: telemetry.clone(),
            gauges,
            faults: faults.clone(),
        };
        let arguments = RootArguments {
            counters: Kept::new(counters),
            store,
            connections: connections.clone(),
            jobs,
            workers,
            rollout,
            sessions,
            telemetry,
            log,
            names,
            faults,
            down: down_tx,
        };
        let (root, _) = Root::spawn(None, Root, arguments)
            .await
            .map_err(|error| Fault::new(FaultCode::Internal, format!("the system did not start: {error}.")))?;
        Ok(System {
            inner: Arc::new(Inner {
                root,
                connections,
                sessions: supervisor,
                desk,
                health,
                handing: Arc::new(handing),
                down,
            }),
        })
    }
}

/// How rollouts are reached, and what is known about them before the first.
fn rollouts(
    setup: Option<&RolloutSetup>,
    carried: Option<Carried>,
    config: &Config,
    actor: Current<RolloutMsg>,
    telemetry: &TelemetryHandle,
) -> RolloutHandle {
    let mut status = Status::new(config.rollout, setup.map(|setup| &setup.launch));
    if let Some(carried) = carried {
        let by = Trigger::parse(&carried.by).unwrap_or(Trigger::Reload);
        status.taken_over(&carried, by);
        telemetry.record(Record::Rollout(RolloutRecord {
            outcome: "adopted",
            verdict: None,
            by: by.as_str(),
            took: Duration::ZERO,
        }));
    }
    RolloutHandle::new(actor, setup, status)
}

/// When workers are started again, as configured.
fn restarts(config: &Config) -> RestartPolicy {
    RestartPolicy {
        intensity: config.restart_intensity,
        period: config.restart_period,
        backoff: config.restart_backoff,
        ..RestartPolicy::default()
    }
}

/// What this system's worker processes are started with and told. They run the same tools under the same numbers.
fn process_backend(
    command: WorkerCommand,
    policy: WorkerPolicy,
    jobs: JobsHandle,
    served: &Served,
    desk: Option<&Desk>,
) -> ProcessBackend {
    // What is no text cannot be sent, and a consult could not run there either.
    let text = |path: &PathBuf| path.to_str().is_some();
    let desk = desk.map(|desk| DeskSettings {
        config: Config { claude_bin: desk.config.claude_bin.clone().filter(text), ..Config::clone(&desk.config) },
        observed: desk.clients.file().map(Path::to_owned).filter(text),
        agents: desk.agents.iter().map(str::to_owned).collect(),
        default_cwd: desk.default_cwd.clone().filter(text),
        nesting: desk.nesting,
    });
    ProcessBackend {
        command,
        variables: served.faults.variables(),
        policy,
        settings: Settings { host: served.host, line_limit: wire::line_limit(served.line_limit), desk },
        tools: served
            .tools
            .iter()
            .filter(|tool| tool.target() == Target::Worker)
            .map(|tool| tool.name().to_owned())
            .collect(),
        jobs,
        gauges: Arc::clone(&served.gauges),
    }
}

/// What the tools are made from.
struct Assembly {
    host: HostId,
    started: Instant,
    config: Arc<Config>,
    agents: AgentRegistry,
    nesting: (Option<crate::ids::ChainId>, u32),
    default_cwd: Option<PathBuf>,
    telemetry: TelemetryHandle,
    observed: Option<PathBuf>,
    extra: Vec<Arc<dyn Tool>>,
    offered: OwnTools,
    /// Whether the consult tools are among them.
    consults: bool,
    session_limits: SessionLimits,
    line_limit: usize,
    faults: Faults,
    rollout: RolloutHandle,
}

impl Assembly {
    fn served(
        self,
        workers: Current<WorkersMsg>,
        jobs: JobsHandle,
        jobs_actor: Current<JobsMsg>,
    ) -> (Served, (Desk, HealthSource)) {
        let gauges = Arc::new(Gauges::default());
        let health = HealthSource {
            gauges: Arc::clone(&gauges),
            host: self.host,
            started: self.started,
            workers: workers.clone(),
            jobs: jobs.clone(),
            telemetry: self.telemetry.clone(),
            config: Arc::clone(&self.config),
            faults: self.faults.clone(),
            rollout: self.rollout.clone(),
        };
        let desk = Desk {
            jobs,
            agents: AgentNames::new(self.agents.names()),
            clients: Clients::new(Arc::clone(&self.config), self.observed),
            config: self.config,
            default_cwd: self.default_cwd,
            nesting: self.nesting,
        };
        let mut tools: Vec<Arc<dyn Tool>> = Vec::new();
        if self.consults {
            tools.push(Arc::new(ConsultTool::new(desk.clone())));
            tools.push(Arc::new(JobTool::new(desk.clone())));
            tools.push(Arc::new(JobsTool::new(desk.clone())));
            tools.push(Arc::new(CancelTool::new(desk.clone())));
        }
        if self.offered == OwnTools::All {
            tools.push(Arc::new(HealthTool::new(health.clone())));
            tools.push(Arc::new(TelemetryTool::new(health.clone())));
        }
        tools.extend(self.extra);
        // They tell when to use `consult`; where it is not offered there is nothing to tell.
        let instructions = if self.consults { INSTRUCTIONS } else { "" };
        let entries = tools
            .iter()
            .map(|tool| {
                let define: Define = {
                    let tool = Arc::clone(tool);
                    Arc::new(move || tool.definition())
                };
                // What tells how a stuck worker is, and ends what it does, must not wait behind its calls.
                let room = if tool.target() == Target::Host { Room::Kept } else { Room::Shared };
                (tool.name().to_owned(), room, define)
            })
            .collect();
        let served = Served {
            host: self.host,
            catalog: Arc::new(Catalog::new(entries).with_tasks(tools.iter().map(|tool| tool.tasks()))),
            tools: tools.into(),
            identity: Arc::new(Identity::new("phone-opus", env!("CARGO_PKG_VERSION"), instructions)),
            limits: self.session_limits,
            line_limit: self.line_limit,
            workers,
            jobs: jobs_actor,
            telemetry: self.telemetry,
            gauges,
            faults: self.faults,
            clients: desk.clients.clone(),
            tasks: self.consults.then(|| TaskDesk::new(desk.clone())),
            rollout: self.rollout,
        };
        (served, (desk, health))
    }
}

struct Inner {
    root: ActorRef<RootMsg>,
    connections: Connections,
    sessions: Current<SessionsMsg>,
    desk: Desk,
    health: HealthSource,
    handing: Arc<handover::Desk>,
    down: watch::Receiver<Option<Down>>,
}

/// A running system. Clones are handles on the same one; dropping them all does not stop it.
#[derive(Clone)]
pub struct System {
    inner: Arc<Inner>,
}

/// How long an ordered stop may take. Zero is no ordered stop at all: the root is killed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grace(pub Duration);

impl Default for Grace {
    fn default() -> Self {
        Self(STOP_LIMIT)
    }
}

/// How a stop went.
#[derive(Debug, Clone)]
pub enum Shutdown {
    /// Everything ended in order.
    InOrder,
    /// A part had failed before, which is why the system stopped.
    AfterFault(Fault),
    /// The grace was over first; the root was killed, its children with it.
    Killed,
}

impl System {
    /// A system to be put together.
    #[must_use]
    pub fn builder() -> SystemBuilder {
        SystemBuilder {
            state_dir: None,
            config: Config::default(),
            agents: AgentRegistry::new(),
            tools: Vec::new(),
            own_tools: OwnTools::default(),
            runner: None,
            environment: None,
            default_cwd: None,
            restart: None,
            isolation: Isolation::default(),
            worker_policy: WorkerPolicy::default(),
            session_limits: SessionLimits::default(),
            line_limit: LINE_LIMIT,
            telemetry_log: true,
            faults: Faults::none(),
            rollout: None,
            restore: None,
        }
    }

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
        self.serve_at(Door::Elsewhere, Box::new(reader), Box::new(writer)).await
    }

    /// Serves the client on this process's standard streams until its connection is over. Such a connection can be passed on
    /// to another image of the program ([`System::hand_over`]), and one that was ([`SystemBuilder::restore`]) goes on here.
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
        let door = if holds_back { Door::StandardByThread } else { Door::Standard };
        self.serve_at(door, Box::new(input), Box::new(output)).await
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
    pub async fn peek(&self) -> Result<Snapshot, HandOverError> {
        self.inner.handing.peek().await
    }

    /// Makes this process another image of its program, in place: the client notices nothing, calls go on, jobs keep their
    /// runners. Returns only why that did not happen, and then this system serves on as before.
    ///
    /// Only a system with one connection, served by [`System::serve_standard`], can be handed over; others are refused. It
    /// ends nothing else of the embedding program than the image itself: no destructor runs, other threads are gone. Signals
    /// are held meanwhile on the thread that calls, so it belongs on a runtime of one thread; the next image lets them
    /// through with [`signals::let_through`](crate::handover::signals::let_through). Threads of the embedding program should
    /// leave signals to that one ([`signals::leave_to_others`](crate::handover::signals::leave_to_others)).
    ///
    /// # Cancel safety
    ///
    /// Not safe: what was frozen would stay so. Give it a task of its own.
    pub async fn hand_over(&self, to: &NewImage) -> HandOverError {
        self.inner.handing.hand_over(to).await
    }

    async fn serve_at(&self, door: Door, input: Input, sink: Sink) -> Result<SessionEnd, Fault> {
        let (number, end) = self.inner.connections.open(door, input, sink)?;
        // When there is no supervisor at this moment, its next incarnation finds the connection.
        let _ = self.inner.sessions.cast(SessionsMsg::Opened(number));
        let stopping = || Fault::new(FaultCode::Stopping, "the system is stopping.");
        tokio::select! {
            // A stop in order ends every connection before it says that the system is down.
            biased;
            end = end => end.map_err(|_| stopping())?,
            _ = self.down() => {
                self.inner.connections.over(number, SessionEnd::Failed);
                Err(stopping())
            }
        }
    }

    /// Jobs.
    #[must_use]
    pub fn jobs(&self) -> &JobsHandle {
        &self.inner.desk.jobs
    }

    /// What the consult tools share.
    #[must_use]
    pub fn desk(&self) -> &Desk {
        &self.inner.desk
    }

    /// Tells every client that the tools differ from what it was told, so that it lists them again: who knows that an
    /// embedding program's tool describes itself differently now is that program.
    ///
    /// Legacy sessions hear of it once, in the stateless era each subscription that asked for it does.
    pub fn tools_changed(&self) {
        self.inner.connections.tools_changed();
    }

    /// Asks for a rollout: the file at the launch path is checked, and where it passes, this program is replaced by it,
    /// even if it is the same. Who asks during a rollout joins it.
    ///
    /// Where it succeeds, nothing returns. Where it returns, it says why, and the system serves on.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the rollout under way.
    pub async fn reload(&self, by: Trigger) -> NotAdopted {
        self.inner.health.rollout.reload(by).await
    }

    /// From now on a candidate that passed its check is handed over to in this way. Until then it is checked as far as
    /// that is possible without a snapshot, and not adopted.
    pub fn hand_over_by(&self, how: Arc<dyn HandOver>) {
        self.inner.health.rollout.hand_over_by(how);
    }

    /// From now on a candidate that passed its check becomes this process's image, started as this one says; see
    /// [`System::hand_over`] for what that asks of the embedding program.
    pub fn hand_over_in_place(&self, image: NewImage) {
        self.hand_over_by(Arc::new(InPlace::new(&self.inner.handing, image)));
    }

    /// What is known about rollouts.
    #[must_use]
    pub fn rollouts(&self) -> &RolloutHandle {
        &self.inner.health.rollout
    }

    /// How it is and what it did.
    #[must_use]
    pub fn health(&self) -> &HealthSource {
        &self.inner.health
    }

    /// Accepts a consult of the embedding program itself and waits for its end.
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
            if let crate::actors::jobs::News::Finished(record) = follow.next().await? {
                return Ok((*record).clone());
            }
        }
    }

    /// Accepts a consult of the embedding program itself, after the same checks a client's arguments pass.
    ///
    /// # Errors
    ///
    /// `invalid_input` with every problem, `prompt_too_large`, `recursion_refused`, `queue_full`, `store_unavailable`.
    pub async fn start_consult(&self, request: ConsultRequest, mode: JobMode) -> Result<JobRecord, Fault> {
        let options = self.inner.desk.check(&request, mode).await?;
        let job = self.inner.desk.job(&options, None);
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

    /// Stops everything in order: connections, workers, jobs (synchronous ones are cancelled, background ones let go),
    /// telemetry, store.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the system stopping.
    pub async fn shutdown(&self, grace: Grace) -> Shutdown {
        if grace.0.is_zero() {
            self.inner.root.kill();
            return Shutdown::Killed;
        }
        self.inner.root.stop(None);
        match tokio::time::timeout(grace.0, self.down()).await {
            Ok(Down::Stopped) => Shutdown::InOrder,
            Ok(Down::Failed(fault)) => Shutdown::AfterFault(fault),
            Err(_) => {
                self.inner.root.kill();
                Shutdown::Killed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    use super::*;
    use crate::protocol::wire::ToolReply;
    use crate::tools::{Annotations, ToolCall, ToolDefinition, ToolFuture};

    struct Own;

    impl Tool for Own {
        fn name(&self) -> &str {
            "own"
        }

        fn definition(&self) -> ToolDefinition {
            ToolDefinition {
                name: "own".to_owned(),
                title: String::new(),
                description: String::new(),
                input_schema: serde_json::json!({"type": "object"}),
                annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
                meta: None,
            }
        }

        fn call(&self, _call: ToolCall) -> ToolFuture {
            Box::pin(async { Ok(ToolReply::text("done")) })
        }
    }

    /// What the handshake and the list say.
    async fn said(builder: SystemBuilder) -> (serde_json::Value, Vec<String>) {
        let system = builder.tool(Own).start().await.expect("it starts");
        let (client, server) = tokio::io::duplex(64 * 1024);
        let (reader, writer) = tokio::io::split(server);
        let serving = tokio::spawn({
            let system = system.clone();
            async move { system.serve(reader, writer).await }
        });
        let (from, mut to) = tokio::io::split(client);
        let requests = concat!(
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":2,"method":"tools/list"}"#,
            "\n"
        );
        to.write_all(requests.as_bytes()).await.expect("it is taken");
        let mut lines = BufReader::new(from).lines();
        let mut reply = async || -> serde_json::Value {
            let line = lines.next_line().await.expect("it answers").expect("a line");
            serde_json::from_str(&line).expect("JSON")
        };
        let (initialized, listed) = (reply().await, reply().await);
        let tools = listed["result"]["tools"].as_array().expect("a list");
        let names = tools.iter().filter_map(|tool| tool["name"].as_str().map(str::to_owned)).collect();
        assert!(matches!(system.shutdown(Grace::default()).await, Shutdown::InOrder));
        serving.await.expect("no panic").expect("it was served");
        (initialized["result"].clone(), names)
    }

    #[tokio::test]
    async fn an_embedder_may_offer_its_own_tools_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let whole = || System::builder().state_dir(StateDir::at(dir.path())).runner("phone-opus");
        let (all, names) = said(whole()).await;
        assert!(all["instructions"].as_str().is_some_and(|text| text.contains("consult")), "{all}");
        assert_eq!(names.len(), 7, "{names:?}");
        let (none, names) = said(whole().own_tools(OwnTools::None)).await;
        assert_eq!(names, ["own"]);
        assert!(none.get("instructions").is_none(), "{none}");
        let (no_consults, names) = said(System::builder()).await;
        assert_eq!(names, ["health_snapshot", "telemetry_snapshot", "own"]);
        assert!(no_consults.get("instructions").is_none(), "{no_consults}");
    }
}
