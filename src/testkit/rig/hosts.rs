//! The processes a rig starts: commands, hosts, daemons, the agent alone; and a system inside this one.
//!
//! Owns: how each is started and told to end. May not know: what is asked of them.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};

use super::{Rig, Through};
use crate::agents::AgentRegistry;
use crate::config::Config;
use crate::system::{System, SystemBuilder};
use crate::testkit::agent_process::AgentProcess;
use crate::testkit::client::{REVISION, TestClient};
use crate::testkit::processes::{Process, Role};
use crate::testkit::scripted_agent::{self, Script};
use crate::testkit::wait::Waiting;

impl Rig {
    /// A command in this world.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        // `/proc/self/exe` is another program once there is one between.
        let file = if self.start.words().is_empty() { None } else { std::fs::canonicalize(&self.program).ok() };
        let program = file.as_deref().unwrap_or(&self.program);
        let mut words = self.start.words().iter().map(OsString::as_os_str).chain([program.as_os_str()]);
        let mut command = Command::new(words.next().unwrap_or(program.as_os_str()));
        command.args(words).args(arguments);
        command.env_clear().envs(&self.env).current_dir(self.work()).kill_on_drop(true);
        command
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    ///
    /// When it does not end.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let child = self.command(arguments).stdin(Stdio::null()).output();
        let ended = tokio::time::timeout(self.patience, child).await;
        ended.unwrap_or_else(|_| panic!("{arguments:?} did not end")).expect("the command runs")
    }

    /// Starts a host nobody has greeted yet.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn host(&mut self) -> TestClient {
        self.host_in(&self.work())
    }

    /// Starts a host in this directory, or a bridge where clients come through a daemon.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn host_in(&mut self, dir: &Path) -> TestClient {
        let word = match self.through {
            Through::Streams => "serve",
            Through::Daemon => "connect",
        };
        self.host_with(&["mcp", word], dir)
    }

    /// Starts a host by these arguments in this directory.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn host_with(&mut self, arguments: &[&str], dir: &Path) -> TestClient {
        let mut command = self.logged(arguments);
        command.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        TestClient::of_process(command.spawn().expect("a host")).patience(self.patience)
    }

    /// A command whose words on stderr are kept among those of the hosts.
    fn logged(&mut self, arguments: &[&str]) -> Command {
        self.hosts += 1;
        let stderr = std::fs::File::create(self.path(&format!("host-{}.stderr", self.hosts))).expect("a file");
        let mut command = self.command(arguments);
        command.stderr(stderr);
        command
    }

    /// Starts a daemon by these words and with everything this world's processes are started with, its fault plan too, and
    /// waits until it serves. Nobody has connected to it by then.
    ///
    /// # Panics
    ///
    /// When it does not serve.
    pub async fn daemon(&mut self, words: &[&str]) -> Child {
        let mut command = self.logged(&[&["daemon", "run"], words].concat());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("a daemon");
        let waiting = Waiting::until("a daemon serves", self.patience);
        while !self.state_dir().daemon_record().exists() {
            waiting.again(|| format!("{:?}", self.processes())).await;
        }
        child
    }

    /// Ends the daemon of this world, where there is one. Nothing happens to jobs that have a runner.
    ///
    /// # Panics
    ///
    /// When it does not end.
    pub async fn end_daemon(&self) {
        let waiting = Waiting::until("no daemon is left", self.patience);
        let is_daemon = |process: &Process| process.role == Role::Host && process.command.contains(" daemon run");
        loop {
            // Told again as long as one is there: one that a client had just started is not heard of when it is told first, and one
            // whose part stands still is heard of when that part was started anew.
            let stopped = self.run(&["daemon", "stop", "--force"]).await;
            let is_told = matches!(stopped.status.code(), Some(0 | 4));
            if is_told && !self.processes().iter().any(is_daemon) {
                break;
            }
            waiting.again(|| format!("{stopped:?}, {:?}", self.processes())).await;
        }
    }

    /// Starts a host and greets it.
    ///
    /// # Panics
    ///
    /// When it does not answer.
    pub async fn serve(&mut self) -> TestClient {
        let mut client = self.host();
        client.handshake(REVISION).await;
        client
    }

    /// A system inside this process, with everything the program gives it.
    #[must_use]
    pub fn system(&self) -> SystemBuilder {
        System::builder()
            .state_dir(self.state_dir())
            .agents(AgentRegistry::standard(None, self.program.clone()))
            .runner(&self.program)
            .environment(self.environment())
            .default_cwd(Some(self.work()))
            .config(Config { wait: Some(Duration::from_secs(300)), ..Config::default() })
    }

    /// Starts the scripted agent as a process of its own, with no runner around it.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub async fn play(&self, script: &Script) -> AgentProcess {
        let mut command = Command::new(&self.program);
        command
            .arg0(scripted_agent::PROGRAM_NAME)
            .args(["-p", "--output-format", "stream-json", "--verbose"])
            .env_clear()
            .envs(&self.env)
            .current_dir(self.work());
        AgentProcess::start(command, script.in_prompt().as_bytes()).await
    }
}
