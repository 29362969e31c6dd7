//! How a host starts runners, and the process that waits with jobs until their turn.
//!
//! Owns: the program, the arguments and the environment they are started with. May not know: which pipes they get, what they
//! do, when their turn is.
//!
//! Invariant: of an environment that was given, a runner gets what is ours and what some agent needs, and nothing else.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::agents::{AgentRegistry, Environment};
use crate::base::ids::JobId;
use crate::base::image::StandIn;
use crate::base::state_dir::StateDir;
use crate::config::Config;
use crate::jobs::ConsultRequest;

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
