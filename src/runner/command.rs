//! How a host starts runners, and the process that waits with jobs until their turn.
//!
//! Owns: the program, the arguments and the environment they are started with, for the host itself and for each of its callers
//! ([`RunnerManner`]). May not know: which pipes they get, what they do, when their turn is.
//!
//! Invariants: (1) of an environment that was given, a runner gets what is ours and what some agent needs, and nothing else;
//! (2) a caller's runner has nothing of the host's environment but what is ours and what programs need to start.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::agents::{AgentPrograms, AgentRegistry, AgentSites, CustomAgents, Environment, ExtraUsage};
use crate::base::ids::JobId;
use crate::base::image::StandIn;
use crate::base::state_dir::StateDir;
use crate::config::{Config, Key};
use crate::jobs::ConsultRequest;
use crate::tools::callers::{CallerContext, CallerOrigin};

/// What a runner is told and given, beside its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerManner {
    /// Everything in its environment; where there is none it inherits that of whoever starts it.
    pub environment: Option<Environment>,
    /// Silence after which an agent is taken for stuck.
    pub stall: Duration,
    /// What becomes of a run that would be paid for beyond its plan.
    pub extra_usage: ExtraUsage,
    /// The agents' programs that are configured.
    pub programs: AgentPrograms,
    /// Variables that are handed on to agents besides the usual ones.
    pub agent_env: Vec<String>,
    /// The agents of other machines.
    pub sites: AgentSites,
    /// The agents of the user's own.
    pub customs: CustomAgents,
}

impl RunnerManner {
    fn new(config: &Config, environment: Option<Environment>) -> Self {
        Self {
            environment,
            stall: config.stall,
            extra_usage: config.extra_usage,
            programs: config.programs(),
            agent_env: config.agent_env.clone(),
            // A runner knows the machines of its own program.
            sites: config
                .agents
                .iter()
                .filter(|(_, site)| !site.is_own())
                .map(|(name, site)| (name.clone(), site.clone()))
                .collect(),
            customs: config.customs.clone(),
        }
    }
}

/// A digest of what a job is run with: what of the environment may reach its agent, and what its runner is told beside. Whoever
/// has the same may run the job when its caller and its host are gone.
///
/// All of [`RunnerManner`] is in it. With another program somebody else's agent would answer, or none; with other rules for extra
/// usage the job would be billed as its caller has forbidden.
#[must_use]
pub fn manner_digest(environment: &Environment, config: &Config, secret: &str) -> String {
    let RunnerManner { environment: _, stall, extra_usage, programs, agent_env, sites: _, customs } =
        RunnerManner::new(config, None);
    // Both always have a JSON text. Those on machines of a program's own are among them: another program has none.
    let tables = serde_json::to_string(&(&config.agents, &customs)).unwrap_or_default();
    let settings = (stall, extra_usage.as_str(), programs, &agent_env, tables);
    let also = customs.values().flat_map(|custom| custom.names(config.billing));
    environment.digest(secret, config.billing, &agent_env, also, &settings)
}

/// What all runners of a host have in common.
#[derive(Debug)]
struct Common {
    program: PathBuf,
    stand_in: StandIn,
    dir: StateDir,
    config: Arc<Config>,
    agents: AgentRegistry,
    environment: Option<Environment>,
    /// As the host starts a child for itself; made for the first one, which most hosts never start.
    manner: OnceLock<Arc<RunnerManner>>,
    /// Set over every environment.
    variables: Vec<(&'static str, OsString)>,
}

impl Common {
    fn manner(&self) -> &Arc<RunnerManner> {
        self.manner.get_or_init(|| {
            // A runner is what its agent can look at first: it holds nothing that is withheld from the agent.
            let given = |own: &Environment| self.agents.for_runners(own, self.config.billing);
            Arc::new(RunnerManner::new(&self.config, self.environment.as_ref().map(given)))
        })
    }
}

/// What makes a caller's runners others than the host's.
#[derive(Debug, Clone)]
struct ForCaller {
    context: Arc<CallerContext>,
    agents: AgentRegistry,
    manner: Arc<RunnerManner>,
}

/// How a host starts runners: for itself, or for one of its callers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RunnerCommand {
    host: Arc<Common>,
    /// Whose runners they are, where it is not the host itself.
    caller: Option<ForCaller>,
    orphan_grace: Duration,
}

impl RunnerCommand {
    /// Runners are `program mcp background-consult`; they inherit the host's environment unless one is given, and of a given one
    /// get what is ours and what some agent needs. `variables` are set over either.
    #[must_use]
    pub fn new(
        program: PathBuf,
        dir: StateDir,
        config: &Arc<Config>,
        agents: AgentRegistry,
        environment: Option<Environment>,
        variables: Vec<(&'static str, OsString)>,
    ) -> Self {
        let (stand_in, config, manner) = (StandIn::default(), Arc::clone(config), OnceLock::new());
        let host = Common { program, stand_in, dir, config, agents, environment, manner, variables };
        Self { host: Arc::new(host), caller: None, orphan_grace: Duration::ZERO }
    }

    /// The same for a host whose jobs wait so long to be adopted when it is gone; zero when they do not.
    #[must_use]
    pub fn with_orphan_grace(self, grace: Duration) -> Self {
        Self { orphan_grace: grace, ..self }
    }

    /// How runners of a caller's jobs are started: with its environment, under its configuration.
    #[must_use]
    pub fn for_caller(&self, caller: &Arc<CallerContext>) -> Self {
        if caller.origin == CallerOrigin::Host {
            return self.clone();
        }
        let (config, hosts, agents) = (&caller.config, &self.host.config, &self.host.agents);
        let programs = config.programs();
        let same = programs == hosts.programs() && config.agent_env == hosts.agent_env;
        let agents = if same { agents.clone() } else { agents.under(&programs, &config.agent_env) };
        let own = self.own_variables();
        let mut given = agents.for_callers_runners(&own, &caller.environment, config.billing, caller.key_withheld);
        for (name, value) in &self.host.variables {
            given = given.with(*name, value);
        }
        let manner = Arc::new(RunnerManner::new(config, Some(given)));
        Self {
            host: Arc::clone(&self.host),
            caller: Some(ForCaller { context: Arc::clone(caller), agents, manner }),
            orphan_grace: self.orphan_grace,
        }
    }

    /// What of the host's environment is for all of its children: without its settings, which each caller has of its own.
    fn own_variables(&self) -> Environment {
        let settings: BTreeSet<String> = Key::ALL.iter().map(Key::variable).collect();
        let own = self.host.environment.iter().flat_map(Environment::iter);
        own.filter(|(name, _)| name.to_str().is_some_and(|name| !settings.contains(name))).collect()
    }

    /// Whose runners they are, where it is not the host itself.
    #[must_use]
    pub fn caller(&self) -> Option<&Arc<CallerContext>> {
        self.caller.as_ref().map(|caller| &caller.context)
    }

    /// How a runner of a caller's jobs is started by somebody who does not have its environment; `None` where it is the host's
    /// own, which all its children have.
    #[must_use]
    pub fn callers_manner(&self) -> Option<&Arc<RunnerManner>> {
        self.caller.as_ref().map(|caller| &caller.manner)
    }

    fn manner(&self) -> &Arc<RunnerManner> {
        self.callers_manner().unwrap_or_else(|| self.host.manner())
    }

    fn config(&self) -> &Config {
        self.caller.as_ref().map_or(&self.host.config, |caller| &caller.context.config)
    }

    /// The agents whose output a host can read.
    #[must_use]
    pub fn agents(&self) -> &AgentRegistry {
        self.caller.as_ref().map_or(&self.host.agents, |caller| &caller.agents)
    }

    /// Agent runs at once.
    #[must_use]
    pub fn max_running(&self) -> usize {
        self.host.config.max_running
    }

    /// What the agents' environment is made from.
    fn environment(&self) -> Option<&Environment> {
        self.caller().map(|caller| &caller.environment).or(self.host.environment.as_ref())
    }

    /// [`manner_digest`] of these runners; `None` where no environment was given.
    #[must_use]
    pub fn digest(&self, secret: &str) -> Option<String> {
        self.environment().map(|environment| manner_digest(environment, self.config(), secret))
    }

    /// The program runners are started from.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.host.program
    }

    /// Whose usage this request is.
    #[must_use]
    pub fn account(&self, request: &ConsultRequest) -> String {
        let agent = self.agents().get(&request.agent).ok();
        let account = |environment: &Environment| agent.map(|agent| agent.account(environment, request.billing));
        self.environment().and_then(account).unwrap_or_default()
    }

    /// The same where it can be told on another machine: by what its agent is handed to log in with. Empty where the agent
    /// is logged in by files of its own, of which another machine knows nothing.
    #[must_use]
    pub fn account_anywhere(&self, request: &ConsultRequest) -> String {
        let agent = self.agents().get(&request.agent).ok();
        let brings = |env: &Environment| agent.is_some_and(|agent| agent.brings_a_login(env, request.billing));
        if self.environment().is_some_and(brings) { self.account(request) } else { String::new() }
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
        pipes: impl FnMut(&mut tokio::process::Command),
    ) -> std::io::Result<tokio::process::Child> {
        self.start_in(self.manner(), job, begins, pipes)
    }

    /// The same in another manner.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn start_in(
        &self,
        manner: &RunnerManner,
        job: JobId,
        begins: Begins,
        mut pipes: impl FnMut(&mut tokio::process::Command),
    ) -> std::io::Result<tokio::process::Child> {
        self.spawn(manner, "background-consult", |command| {
            command.arg("--job").arg(job.to_string());
            if begins == Begins::WhenSpokenTo {
                command.arg("--held");
            }
            pipes(command);
        })
    }

    /// Starts the process that waits with jobs until their turn; the caller adds the pipes. It has the host's own environment,
    /// whosever jobs it waits with.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn start_waiting(
        &self,
        pipes: impl FnMut(&mut tokio::process::Command),
    ) -> std::io::Result<tokio::process::Child> {
        self.spawn(self.host.manner(), "wait", pipes)
    }

    fn spawn(
        &self,
        manner: &RunnerManner,
        word: &str,
        mut complete: impl FnMut(&mut tokio::process::Command),
    ) -> std::io::Result<tokio::process::Child> {
        self.host.stand_in.start(&self.host.program, |program| {
            let mut command = self.child(manner, program, word);
            complete(&mut command);
            command.spawn()
        })
    }

    /// A child of the host's own, as it would be started; for the tests of who reads its words.
    #[cfg(test)]
    pub(crate) fn child_of_host(&self, program: &Path, word: &str) -> tokio::process::Command {
        self.child(self.host.manner(), program, word)
    }

    /// Its words are read by [`crate::process`].
    fn child(&self, manner: &RunnerManner, program: &Path, word: &str) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(program);
        command
            .args(["mcp", word, "--state-dir"])
            .arg(self.host.dir.root())
            .args(["--max-running", &self.max_running().to_string()])
            .args(["--stall-s", &manner.stall.as_secs().to_string()])
            .args(["--extra-usage", manner.extra_usage.as_str()])
            // It outlives its host as long as its jobs do.
            .kill_on_drop(false);
        if !self.orphan_grace.is_zero() {
            // A part of a second is none.
            command.args(["--orphan-grace-s", &self.orphan_grace.as_secs().max(1).to_string()]);
        }
        for (agent, path) in &manner.programs {
            // A path need not be text.
            let mut word = OsString::from(format!("{agent}="));
            word.push(path);
            command.arg("--agent-bin").arg(word);
        }
        for name in &manner.agent_env {
            command.arg("--agent-env").arg(name);
        }
        for site in &manner.sites {
            // Names and texts always have a JSON text. Nothing secret is in it: a token stays in its file.
            command.arg("--site").arg(serde_json::to_string(&site).unwrap_or_default());
        }
        for custom in &manner.customs {
            // Words and names always have a JSON text, and no value of a variable is in it.
            command.arg("--custom-agent").arg(serde_json::to_string(&custom).unwrap_or_default());
        }
        if let Some(environment) = &manner.environment {
            command.env_clear().envs(environment.iter());
        }
        command.envs(self.host.variables.iter().map(|(name, value)| (name, value)));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables.iter().copied().collect()
    }

    fn hosts() -> RunnerCommand {
        let own = environment(&[
            ("PATH", "/host/bin"),
            ("LANG", "host"),
            ("PHONE_OPUS_LOG", "trace"),
            ("PHONE_OPUS_CLAUDE_BIN", "/host/claude"),
            ("PHONE_OPUS_BILLING", "api_key"),
        ]);
        let agents = AgentRegistry::standard(None, "/bin/phone-opus".into());
        let plan = vec![("PHONE_OPUS_FAULTS", OsString::from("plan"))];
        RunnerCommand::new("/p".into(), StateDir::at("/s"), &Arc::default(), agents, Some(own), plan)
    }

    fn caller(origin: CallerOrigin) -> Arc<CallerContext> {
        Arc::new(CallerContext {
            cwd: Some("/w".into()),
            environment: environment(&[("PATH", "/caller/bin"), ("MINE", "1"), ("CLAUDE_CONFIG_DIR", "/caller")]),
            config: Arc::new(Config {
                claude_bin: Some("/caller/claude".into()),
                agent_env: vec!["MINE".to_owned()],
                stall: Duration::from_secs(11),
                max_running: 64,
                ..Config::default()
            }),
            nesting: (None, 0),
            key_withheld: true,
            origin,
        })
    }

    /// The environment and the words of a child.
    fn child(command: &RunnerCommand, manner: &RunnerManner) -> (Environment, Vec<String>) {
        let child = command.child(manner, Path::new("/p"), "background-consult");
        let child = child.as_std();
        let set = child.get_envs().filter_map(|(name, value)| Some((name, value?)));
        (set.collect(), child.get_args().map(|word| word.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn a_callers_runner_has_its_callers_environment_and_settings_and_the_hosts_plan_and_bound() {
        let hosts = hosts();
        let theirs = hosts.for_caller(&caller(CallerOrigin::Caller));
        let (given, words) = child(&theirs, theirs.manner());
        let expected = environment(&[
            ("CLAUDE_CONFIG_DIR", "/caller"),
            ("MINE", "1"),
            ("PATH", "/caller/bin"),
            ("PHONE_OPUS_FAULTS", "plan"),
            ("PHONE_OPUS_KEY_WITHHELD", "1"),
            ("PHONE_OPUS_LOG", "trace"),
        ]);
        assert_eq!(given, expected);
        let has = |word: &str, value: &str| words.windows(2).any(|pair| pair == [word, value]);
        assert!(has("--agent-bin", "claude=/caller/claude") && has("--agent-env", "MINE"), "{words:?}");
        assert!(has("--stall-s", "11") && has("--max-running", "3"), "the places are the host's: {words:?}");
        assert_eq!(theirs.callers_manner().and_then(|manner| manner.environment.clone()), Some(expected));
        // Who waits with its jobs has nothing of it.
        let (waiting, words) = child(&theirs, theirs.host.manner());
        assert_eq!(waiting, child(&hosts, hosts.manner()).0);
        assert!(waiting.get("MINE").is_none() && !words.contains(&"/caller/claude".to_owned()), "{words:?}");
    }

    #[test]
    fn the_hosts_own_are_as_they_were_whoever_asks() {
        let hosts = hosts();
        let same = hosts.for_caller(&caller(CallerOrigin::Host));
        assert!(same.caller().is_none() && same.callers_manner().is_none());
        assert_eq!(same.manner(), hosts.manner());
        assert_eq!(same.digest("s"), hosts.digest("s"));
        let theirs = hosts.for_caller(&caller(CallerOrigin::Caller));
        assert_ne!(theirs.digest("s"), hosts.digest("s"));
        let again = hosts.for_caller(&caller(CallerOrigin::Base));
        assert_eq!(again.digest("s"), theirs.digest("s"), "of what it is, not of whose");
    }
}
