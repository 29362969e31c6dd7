//! What an embedding program says before its system starts.
//!
//! Owns: the settings, and what holds where nothing is said. May not know: how the parts are put together.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ractor::ActorCell;

use super::System;
use crate::actors::supervision::slot::RestartPolicy;
use crate::agents::{Agent, AgentRegistry, Environment};
use crate::base::image::own_program;
use crate::base::state_dir::StateDir;
use crate::config::Config;
use crate::failpoints::Faults;
use crate::fleet::Fleet;
use crate::jobs::hosts::HostKind;
use crate::process::Registry;
use crate::protocol::frame::LINE_LIMIT;
use crate::protocol::session::SessionLimits;
use crate::rollout::RolloutSetup;
use crate::system::handover::HostSnapshot;
use crate::tools::Tool;
use crate::worker::{Isolation, WorkerPolicy};

/// Which of our own tools clients are offered, beside those of the embedding program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OwnTools {
    /// The consult tools, where the system can consult, and the snapshots of health and telemetry.
    #[default]
    All,
    /// None: the embedding program's tools are all there are. It still reaches jobs, health and telemetry through [`System`].
    None,
}

/// Puts a system together.
///
/// ```
/// use std::time::Duration;
/// use phone_opus::{AgentRegistry, Config, OwnTools, SessionLimits, StateDir, System, WorkerPolicy};
///
/// let builder = System::builder()
///     .state_dir(StateDir::at("/var/lib/my-runtime"))
///     .agents(AgentRegistry::standard(None, "/usr/bin/phone-opus".into()))
///     .runner("/usr/bin/phone-opus")                                  // or your own program: `program`
///     .config(Config { max_running: 2, ..Config::default() })
///     .own_tools(OwnTools::None)
///     .session_limits(SessionLimits { calls: 8, ..SessionLimits::default() })
///     .line_limit(1 << 20)
///     .worker_policy(WorkerPolicy { quiet: Duration::from_secs(2), ..WorkerPolicy::default() })
///     .orphan_grace(Duration::from_secs(30))
///     .telemetry_log(false)
///     .notices(["The disk is nearly full.".to_owned()]);
/// # let _ = builder;
/// ```
pub struct SystemBuilder {
    pub(super) state_dir: Option<StateDir>,
    pub(super) config: Config,
    pub(super) agents: AgentRegistry,
    pub(super) tools: Vec<Arc<dyn Tool>>,
    pub(super) own_tools: OwnTools,
    pub(super) runner: Option<PathBuf>,
    pub(super) environment: Option<Environment>,
    pub(super) default_cwd: Option<PathBuf>,
    pub(super) start_dir: Option<PathBuf>,
    pub(super) restart: Option<RestartPolicy>,
    pub(super) isolation: Isolation,
    pub(super) worker_policy: WorkerPolicy,
    pub(super) orphan_grace: Duration,
    pub(super) callers_grace: Duration,
    pub(super) kind: HostKind,
    pub(super) session_limits: SessionLimits,
    pub(super) line_limit: usize,
    pub(super) telemetry_log: bool,
    pub(super) faults: Faults,
    pub(super) rollout: Option<RolloutSetup>,
    pub(super) restore: Option<HostSnapshot>,
    pub(super) notices: Vec<String>,
    pub(super) fleet: Option<Arc<dyn Fleet>>,
    pub(super) claims: bool,
    pub(super) parent: Option<ActorCell>,
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
            start_dir: None,
            restart: None,
            isolation: Isolation::default(),
            worker_policy: WorkerPolicy::default(),
            orphan_grace: Duration::ZERO,
            callers_grace: Duration::ZERO,
            kind: HostKind::default(),
            session_limits: SessionLimits::default(),
            line_limit: LINE_LIMIT,
            telemetry_log: true,
            faults: Faults::none(),
            rollout: None,
            restore: None,
            notices: Vec::new(),
            fleet: None,
            claims: true,
            parent: None,
        }
    }
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

    /// The queue it shares with hosts of other machines, instead of the configuration's.
    #[must_use]
    #[doc(hidden)]
    pub fn fleet(mut self, fleet: Arc<dyn Fleet>) -> Self {
        self.fleet = Some(fleet);
        self
    }

    /// Whether it takes jobs of its fleet; it does when nothing is said. A program that is there for one question only asks: what it
    /// claimed would have nobody who tells how it ended.
    #[must_use]
    #[doc(hidden)]
    pub fn claims(mut self, claims: bool) -> Self {
        self.claims = claims;
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

    /// The agents and tools of this program, which is also what each job is run by: its main function begins with
    /// [`dispatch`](crate::process::dispatch) and the same registry.
    #[must_use]
    pub fn program(mut self, registry: &Registry) -> Self {
        self.agents = self.agents.with_all(&registry.agents);
        self.tools.extend(registry.tools.iter().cloned());
        self.runner = Some(own_program());
        self
    }

    /// The phone-opus program that is run for each job, or one like it. Required for consults, unless
    /// [`SystemBuilder::program`] says that it is this one.
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

    /// Below which directory clients may have everything looked into; [`SystemBuilder::default_cwd`] when not set. `/`, a home
    /// and what homes lie in grant a client's roots instead, or what lies below the home. What the embedding program asks
    /// itself ([`System::consult`]) is bound by stores of secrets only.
    #[must_use]
    pub fn start_dir(mut self, dir: Option<PathBuf>) -> Self {
        self.start_dir = dir;
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

    /// How long a job of this system waits to be adopted by another one when this one is gone without having ended, and a job
    /// this one adopts waits for its callers; whole seconds. Zero, when not set: a synchronous job ends when its system is gone,
    /// and none is adopted.
    #[must_use]
    pub fn orphan_grace(mut self, grace: Duration) -> Self {
        self.orphan_grace = grace;
        self
    }

    /// What kind of host it is shown as beside the others of its state directory.
    #[must_use]
    #[doc(hidden)]
    pub fn kind(mut self, kind: HostKind) -> Self {
        self.kind = kind;
        self
    }

    /// As [`SystemBuilder::orphan_grace`] for jobs that this system's own callers ask for again, by the key they had at a host that
    /// is gone; it adopts no others, and its own wait for nobody.
    #[must_use]
    #[doc(hidden)]
    pub fn callers_grace(mut self, grace: Duration) -> Self {
        self.callers_grace = grace;
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

    /// Starts the system under a supervisor of the embedding program's own: linked from its first moment, see
    /// [`System::actor`]. Whoever starts it again after its end does that with a builder; what was accepted is in the store.
    #[must_use]
    pub fn supervised_by(mut self, supervisor: ActorCell) -> Self {
        self.parent = Some(supervisor);
        self
    }

    /// What health shows under `notices`, a sentence each: what is not as the user asked for it, and what holds instead.
    #[must_use]
    pub fn notices(mut self, notices: impl IntoIterator<Item = String>) -> Self {
        self.notices.extend(notices);
        self
    }

    /// By which program the system is to be replaced, and what that one has to show first; never, when not set. It also
    /// takes somebody who hands over: [`System::hand_over_in_place`], [`System::hand_over_by`].
    #[must_use]
    #[doc(hidden)]
    pub fn rollout(mut self, setup: RolloutSetup) -> Self {
        self.rollout = Some(setup);
        self
    }

    /// Goes on where an earlier image of this program stood: the next connection that is served on the standard streams is
    /// the one it had. Only the process that was started with the snapshot may, and once: it takes over descriptors and
    /// children.
    #[must_use]
    #[doc(hidden)]
    pub fn restore(mut self, snapshot: HostSnapshot) -> Self {
        self.restore = Some(snapshot);
        self
    }
}
