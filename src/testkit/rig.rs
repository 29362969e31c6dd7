//! The rig: a scratch world with the real program in it, spoken of in verbs.
//!
//! Owns: the scratch directories, the environment of every process, and the laws that are checked when a case is over.
//! The agent is the scripted one, under a link in the scratch directory; nothing of the machine's own agents, homes or
//! keys can reach a case. May not know: what a case is about.
//!
//! ```text
//! scratch/  home/  work/  work/other/  signs/  state/     directories; the agent's program is a link beside them
//!           agent.log                                     one line per start and end of a run
//!           host-N.stderr                                 what each host logged
//! ```

#![expect(clippy::expect_used, clippy::panic, reason = "what goes wrong in a rig fails the case")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::process::{Child, Command};

use super::agent_process::AgentProcess;
use super::client::{Exchange, REVISION, TestClient};
use super::invariants::{self, Surroundings, Violation};
use super::processes::{self, Process, Role};
use super::scripted_agent::{self, Script, Step};
use super::starts::{NOBODY, Start};
use super::tools::{Tally, TestTool};
use super::wait::{PATIENCE, Waiting};
use crate::agents::{AgentProfile, AgentRegistry, CliAgent, Environment, RUN_TOKEN_VARIABLE, find_program};
use crate::base::ids::JobId;
use crate::base::state_dir::StateDir;
use crate::config::{Config, Words};
use crate::jobs::store::{JobFilter, StoreHandle};
use crate::jobs::{JobRecord, JournalEntry};
use crate::system::{Grace, Shutdown, System, SystemBuilder};
use crate::tools::{ReplayContract, Tool as _};

/// A key no agent may see unless it pays by key.
pub const KEY: &str = "sk-canary-key-5f1d";

/// The variable that holds a fault plan, for every process of the program.
pub const FAULTS: &str = "PHONE_OPUS_FAULTS";

/// The variable that holds the seed of a fault plan's draws.
pub const FAULT_SEED: &str = "PHONE_OPUS_FAULT_SEED";

/// Agents that run at once when nothing else was configured.
const MAX_RUNNING: usize = 3;

/// What the store hands out of a journal at a time.
const JOURNAL_ENTRIES: usize = 1000;
const JOURNAL_BYTES: usize = 8 * 1024 * 1024;

/// Characters of a host's log that are shown when a law is broken.
const LOG_SHOWN: usize = 2000;

/// How a client comes to whoever serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Through {
    /// By the standard streams of a host of its own (`mcp serve`).
    #[default]
    Streams,
    /// By a bridge (`mcp connect`) to a daemon that it shares.
    Daemon,
}

impl Words for Through {
    const WORDS: &'static [(&'static str, Self, &'static str)] = &[
        ("streams", Self::Streams, "each by the standard streams of a server of its own"),
        ("daemon", Self::Daemon, "by bridges to one daemon"),
    ];
}

/// One run of the scripted agent, by its log.
#[derive(Debug, Clone)]
pub struct Run {
    /// What it said when it started: `pid`, `pgid`, `argv`, `env`, `cwd`, `prompt_bytes`, `prompt_head`, `ts_ms`.
    pub start: Value,
    /// The same when it ended by itself; absent when it was ended.
    pub end: Option<Value>,
}

impl Run {
    /// A variable of its environment.
    #[must_use]
    pub fn env(&self, name: &str) -> Option<&str> {
        self.start["env"][name].as_str()
    }

    /// Its arguments.
    #[must_use]
    pub fn argv(&self) -> Vec<&str> {
        self.start["argv"].as_array().map(|words| words.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
    }

    /// The token of the run it is; absent when no runner started it.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.env(RUN_TOKEN_VARIABLE)
    }

    /// When it began, in milliseconds since 1970.
    #[must_use]
    pub fn began(&self) -> i64 {
        self.start["ts_ms"].as_i64().unwrap_or_default()
    }

    /// When it ended by itself, in milliseconds since 1970.
    #[must_use]
    pub fn end_at(&self) -> Option<i64> {
        self.end.as_ref()?["ts_ms"].as_i64()
    }

    /// When it ended by itself, in milliseconds since 1970.
    ///
    /// # Panics
    ///
    /// When it did not.
    #[must_use]
    pub fn ended(&self) -> i64 {
        self.end_at().expect("the run has ended by itself")
    }
}

/// The program a test tries: the one it was built with, or the one `PHONE_OPUS_TEST_PROGRAM` names, such as a released one.
/// In an integration test: `Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))`. A crate that has none of its own asks
/// [`installed_program`].
#[must_use]
pub fn tried_program(built: impl Into<PathBuf>) -> PathBuf {
    std::env::var_os("PHONE_OPUS_TEST_PROGRAM").map_or_else(|| built.into(), PathBuf::from)
}

/// The program a crate tries that builds none: the one `PHONE_OPUS_TEST_PROGRAM` names, else `phone-opus` on PATH.
///
/// # Panics
///
/// When there is neither; it says what to do.
#[must_use]
pub fn installed_program() -> PathBuf {
    let on_path = || {
        let profile = AgentProfile::new("phone-opus");
        find_program(OsStr::new("phone-opus"), &Environment::capture(), &profile).ok()
    };
    let named = std::env::var_os("PHONE_OPUS_TEST_PROGRAM").map(PathBuf::from);
    named.or_else(on_path).unwrap_or_else(|| {
        panic!("no program to try: name one by PHONE_OPUS_TEST_PROGRAM, or put phone-opus on PATH (cargo install phone-opus)")
    })
}

/// Gives a file or a directory to another user and group. False where this user may not: a test then says what it skips.
#[must_use]
pub fn give_away(path: &Path, user: u32, group: u32) -> bool {
    std::os::unix::fs::chown(path, Some(user), Some(group)).is_ok()
}

/// The scratch world of one case. Dropped, it ends whatever is left of it.
pub struct Rig {
    program: PathBuf,
    scratch: tempfile::TempDir,
    env: BTreeMap<String, String>,
    /// Stands in every prompt and may be seen nowhere else.
    canary: String,
    hosts: usize,
    /// How the clients of this world come to a host.
    through: Through,
    patience: Duration,
    before: Surroundings,
    /// What a case put into the home.
    own_at_home: BTreeSet<String>,
    /// How the program is started.
    start: Start,
    /// What the tools of a case did, with the contract each is under: attempts, and effects.
    watched: Vec<(ReplayContract, Tally, Tally)>,
    /// Whether a fault plan of this world tears records of telemetry, on purpose.
    tears_telemetry: bool,
}

impl Rig {
    /// A world around this program ([`tried_program`]), which must be able to play the scripted agent (built with the feature
    /// `testkit`) unless `PHONE_OPUS_TEST_AGENT` names another one that does.
    ///
    /// # Panics
    ///
    /// When there is no room for it on the disk.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let program = std::path::absolute(program.into()).expect("an absolute path");
        let scratch = tempfile::Builder::new().prefix("phone-opus-rig-").tempdir().expect("a scratch directory");
        let path = |name: &str| scratch.path().join(name).display().to_string();
        for dir in ["home", "work", "work/other", "signs"] {
            std::fs::create_dir(scratch.path().join(dir)).expect("a directory");
        }
        // An older program under test cannot play what the kit has learnt since; a newer one plays for it then.
        let player = std::env::var_os("PHONE_OPUS_TEST_AGENT").map_or_else(|| program.clone(), PathBuf::from);
        std::os::unix::fs::symlink(&player, path(scripted_agent::PROGRAM_NAME)).expect("a link");
        let env = [
            ("HOME", path("home")),
            ("PATH", "/usr/bin:/bin".to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
            ("PHONE_OPUS_STATE_DIR", path("state")),
            // A busy machine must not turn a synchronous consult into a background job.
            ("PHONE_OPUS_WAIT_S", "300".to_owned()),
            // The more is logged, the more a leak would show.
            ("PHONE_OPUS_LOG", "trace".to_owned()),
            ("ANTHROPIC_API_KEY", KEY.to_owned()),
        ];
        // It plays every agent that is a program of its own.
        let programs = CliAgent::all().map(|agent| (agent.variable(), path(scripted_agent::PROGRAM_NAME)));
        let mut env: BTreeMap<String, String> =
            env.into_iter().chain(programs).map(|(name, value)| (name.to_owned(), value)).collect();
        // Without a superuser's rights a rig could not see whose its processes are; a superuser sees them all the same.
        if !rustix::process::geteuid().is_root() {
            env.insert("PHONE_OPUS_DUMPABLE".to_owned(), "1".to_owned());
        }
        let canary = format!("CANARY-{}", JobId::random());
        let before = Surroundings::look();
        Self {
            program,
            scratch,
            env,
            canary,
            hosts: 0,
            through: Through::Streams,
            patience: PATIENCE,
            before,
            own_at_home: BTreeSet::new(),
            start: Start::plain(),
            watched: Vec::new(),
            tears_telemetry: false,
        }
    }

    /// With one variable set for every process started from here on.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.set(name, value);
        self
    }

    /// With a fault plan for every process started from here on, as in
    /// `worker.before_execute@tools/call:consult=panic`.
    #[must_use]
    pub fn with_faults(self, plan: &str) -> Self {
        self.with(FAULTS, plan)
    }

    /// With the seed of the fault plan's draws.
    #[must_use]
    pub fn with_fault_seed(self, seed: u64) -> Self {
        self.with(FAULT_SEED, seed.to_string())
    }

    /// With another patience than [`PATIENCE`], for the clients it makes as well.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// With clients that come to their host so, from here on.
    #[must_use]
    pub fn with_clients(mut self, through: Through) -> Self {
        self.through = through;
        self
    }

    /// With every process of the program started so from here on.
    #[must_use]
    pub fn with_start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Makes this world [`NOBODY`]'s, for a program that is started as nobody ([`Start::as_nobody`]).
    ///
    /// # Panics
    ///
    /// When this process may not.
    pub fn give_away(&self) {
        own(self.scratch.path(), NOBODY);
    }

    /// Makes this world ours again, to look at what was done in it.
    ///
    /// # Panics
    ///
    /// When this process may not.
    pub fn take_back(&self) {
        own(self.scratch.path(), rustix::process::geteuid().as_raw());
    }

    /// The program that plays the agent.
    #[must_use]
    pub fn player(&self) -> PathBuf {
        self.path(scripted_agent::PROGRAM_NAME)
    }

    /// Sets one variable for every process started from here on.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        let value = value.into();
        let tears = |rule: &str| rule.trim().starts_with("telemetry.write") && rule.contains("=torn");
        self.tears_telemetry |= name == FAULTS && value.split(';').any(tears);
        self.env.insert(name.to_owned(), value);
    }

    /// Writes the user's own configuration file.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn configure(&mut self, text: &str) {
        for file in self.configuration() {
            std::fs::write(file, text).expect("a file");
        }
    }

    /// Where the user's own configuration file lies for Linux and for macOS, in directories that are there.
    ///
    /// # Panics
    ///
    /// When they cannot be made.
    pub fn configuration(&mut self) -> [PathBuf; 2] {
        let linux = self.at_home(".config/phone_opus");
        [linux, self.at_home("Library/Application Support/phone_opus")].map(|dir| dir.join("config.toml"))
    }

    /// A directory of the home that is the case's own; whatever else appears there breaks a law.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    pub fn at_home(&mut self, name: &str) -> PathBuf {
        let dir = self.path("home").join(name);
        std::fs::create_dir_all(&dir).expect("a directory");
        self.own_at_home.extend(name.split('/').next().map(str::to_owned));
        dir
    }

    /// Takes one variable from every process started from here on.
    pub fn unset(&mut self, name: &str) {
        self.env.remove(name);
    }

    /// A path in the scratch directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The program under test.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The directory everything is asked about.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.path("work")
    }

    /// Where jobs are kept.
    #[must_use]
    pub fn state_dir(&self) -> StateDir {
        StateDir::at(self.path("state"))
    }

    /// The environment as an embedding program passes it on.
    #[must_use]
    pub fn environment(&self) -> Environment {
        self.env.iter().collect()
    }

    /// A text that stands in every prompt of this world and nowhere else.
    #[must_use]
    pub fn canary(&self) -> &str {
        &self.canary
    }

    // --- what is asked -------------------------------------------------------------------------------------------

    /// A prompt that has the agent follow this script and log its runs.
    #[must_use]
    pub fn prompt(&self, script: Script) -> String {
        let script = Script { log: script.log.or_else(|| Some(self.path("agent.log"))), ..script };
        format!("{} {}", self.canary, script.in_prompt())
    }

    /// A prompt the agent answers with this.
    #[must_use]
    pub fn answering(&self, answer: &str) -> String {
        self.prompt(Script { answer: Some(answer.to_owned()), ..Script::default() })
    }

    /// A prompt whose agent takes these steps and answers `done`.
    #[must_use]
    pub fn doing(&self, steps: Vec<Step>) -> String {
        self.prompt(Script { steps, answer: Some("done".to_owned()), ..Script::default() })
    }

    /// A prompt whose agent gives the sign `begun`, then hangs.
    #[must_use]
    pub fn hanging(&self, begun: &str) -> String {
        self.doing(vec![Step::Touch(self.sign(begun)), Step::Hang])
    }

    /// A prompt whose agent gives the sign `begun`, waits for the sign `go`, and answers `done`.
    #[must_use]
    pub fn waiting(&self, begun: &str, go: &str) -> String {
        self.doing(vec![Step::Touch(self.sign(begun)), Step::WaitForFile(self.sign(go))])
    }

    /// A file by which agents and cases wait for each other.
    #[must_use]
    pub fn sign(&self, name: &str) -> PathBuf {
        self.path("signs").join(name)
    }

    /// Gives a sign.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn give_sign(&self, name: &str) {
        std::fs::write(self.sign(name), "").expect("a sign");
    }

    /// Waits for a sign.
    ///
    /// # Panics
    ///
    /// When it is not given.
    pub async fn wait_for_sign(&self, name: &str) {
        let waiting = Waiting::until(format!("the sign {name} is given"), self.patience);
        while !self.sign(name).exists() {
            waiting.again(|| format!("{:?}", self.processes())).await;
        }
    }

    /// The user's configuration file, for every process started from here on; the directory it lies in is made, the file is
    /// not. Beside the home, in which nothing may be written. Where the platform's rule is `XDG_CONFIG_HOME`.
    ///
    /// # Panics
    ///
    /// When the directory cannot be made.
    #[must_use]
    pub fn user_configuration(&mut self) -> PathBuf {
        let dir = self.path("config");
        std::fs::create_dir_all(dir.join("phone_opus")).expect("a directory");
        self.set("XDG_CONFIG_HOME", dir.display().to_string());
        dir.join("phone_opus/config.toml")
    }

    // --- processes -----------------------------------------------------------------------------------------------

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
        let waiting = Waiting::until("the daemon is told to stop", self.patience);
        loop {
            let stopped = self.run(&["daemon", "stop", "--force"]).await;
            if matches!(stopped.status.code(), Some(0 | 4)) {
                break;
            }
            // One whose part stands still is heard of again when that part was started anew.
            waiting.again(|| format!("{stopped:?}")).await;
        }
        let waiting = Waiting::until("no daemon is left", self.patience);
        let is_daemon = |process: &Process| process.role == Role::Host && process.command.contains(" daemon run");
        while self.processes().iter().any(is_daemon) {
            waiting.again(|| format!("{:?}", self.processes())).await;
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

    // --- what was done -------------------------------------------------------------------------------------------

    /// The agent's runs in the order of their starts.
    ///
    /// # Panics
    ///
    /// When its log holds something else.
    #[must_use]
    pub fn runs(&self) -> Vec<Run> {
        let log = std::fs::read_to_string(self.path("agent.log")).unwrap_or_default();
        let mut runs: Vec<Run> = Vec::new();
        for line in log.lines() {
            let line: Value = serde_json::from_str(line).expect("a line of the log");
            if line["event"] == "start" {
                runs.push(Run { start: line, end: None });
            } else if let Some(run) = runs.iter_mut().find(|run| run.start["pid"] == line["pid"] && run.end.is_none()) {
                run.end = Some(line);
            }
        }
        runs
    }

    /// Expects the agent to have been run so often until now.
    ///
    /// # Panics
    ///
    /// When it was not.
    #[track_caller]
    pub fn expect_runs(&self, count: usize) {
        let runs = self.runs();
        let shown: Vec<_> = runs.iter().map(|run| (run.token(), run.began(), run.end_at())).collect();
        assert_eq!(runs.len(), count, "runs of the agent (token, begin, end): {shown:?}");
    }

    /// Every job of the store, as another process reads it.
    ///
    /// # Panics
    ///
    /// When the store cannot be read.
    pub async fn jobs(&self) -> Vec<JobRecord> {
        if !self.state_dir().database().exists() {
            return Vec::new();
        }
        let store = StoreHandle::sqlite(self.state_dir());
        let rows = store.list(JobFilter { workspace: None, state: None, limit: 1000 }).await.expect("listed");
        let mut records = Vec::new();
        for row in rows {
            records.push(store.job(row.id).await.expect("a job"));
        }
        store.close().await;
        records
    }

    /// A job's journal, as another process reads it.
    ///
    /// # Panics
    ///
    /// When the store cannot be read.
    pub async fn journal(&self, job: JobId) -> Vec<JournalEntry> {
        let store = StoreHandle::sqlite(self.state_dir());
        let mut journal: Vec<JournalEntry> = Vec::new();
        loop {
            let after = journal.last().map_or(0, |entry| entry.seq);
            let more = store.events(job, after, JOURNAL_ENTRIES, JOURNAL_BYTES).await.expect("a journal");
            if more.is_empty() {
                break;
            }
            journal.extend(more);
        }
        store.close().await;
        journal
    }

    /// The one job of the store, once it is over.
    ///
    /// # Panics
    ///
    /// When there are more, or it does not end.
    pub async fn only_job_over(&self) -> JobRecord {
        let waiting = Waiting::until("the only job is over", self.patience);
        loop {
            let mut jobs = self.jobs().await;
            assert!(jobs.len() < 2, "more than one job: {jobs:?}");
            match jobs.pop() {
                Some(job) if job.state.is_terminal() => return job,
                job => waiting.again(|| format!("{job:?} and {:?}", self.processes())).await,
            }
        }
    }

    /// Live processes of this world; none where `/proc` does not show them.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        processes::marked(self.scratch.path())
    }

    /// Those of one role.
    #[must_use]
    pub fn all(&self, role: Role) -> Vec<Process> {
        self.processes().into_iter().filter(|process| process.role == role).collect()
    }

    /// The runners.
    #[must_use]
    pub fn runners(&self) -> Vec<Process> {
        self.all(Role::Runner)
    }

    /// The agents, and what they started.
    #[must_use]
    pub fn agents(&self) -> Vec<Process> {
        let agent = |process: &Process| matches!(process.role, Role::Agent | Role::Offspring);
        self.processes().into_iter().filter(agent).collect()
    }

    /// The worker process of this client's host, if it has one at this moment.
    ///
    /// # Panics
    ///
    /// When the host is no process of its own.
    #[must_use]
    pub fn worker_of(&self, client: &TestClient) -> Option<Process> {
        let host = client.host_pid();
        self.all(Role::Worker).into_iter().find(|worker| worker.parent == Some(host))
    }

    /// The one process of a role, once there is exactly one.
    ///
    /// # Panics
    ///
    /// When there is none, or there are more.
    pub async fn the(&self, role: Role) -> Process {
        let waiting = Waiting::until(format!("there is one {role:?}"), self.patience);
        loop {
            let mut found = self.all(role);
            match found.pop() {
                Some(process) if found.is_empty() => return process,
                other => {
                    found.extend(other);
                    waiting.again(|| format!("{found:?} among {:?}", self.processes())).await;
                }
            }
        }
    }

    /// Ends every process of a role on the spot (SIGKILL), and returns them. One that has just ended by itself is not
    /// among them. Announce a host's end to its client: [`TestClient::expect_end`].
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn kill(&self, role: Role) -> Vec<Process> {
        self.signal(role, rustix::process::Signal::KILL)
    }

    /// Stops every process of a role where it stands (SIGSTOP), and returns them.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn freeze(&self, role: Role) -> Vec<Process> {
        self.signal(role, rustix::process::Signal::STOP)
    }

    /// Lets every process of a role go on (SIGCONT), and returns them.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn thaw(&self, role: Role) -> Vec<Process> {
        self.signal(role, rustix::process::Signal::CONT)
    }

    /// Stops every process of this world where it stands, as a frozen machine does: hosts, runners, agents.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn freeze_everything(&self) -> Vec<Process> {
        self.signal_everything(rustix::process::Signal::STOP)
    }

    /// Lets every process of this world go on.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn thaw_everything(&self) -> Vec<Process> {
        self.signal_everything(rustix::process::Signal::CONT)
    }

    fn signal_everything(&self, signal: rustix::process::Signal) -> Vec<Process> {
        let reached: Vec<Process> = self.processes().into_iter().filter(|process| process.send(signal)).collect();
        assert!(!reached.is_empty(), "there is no process to signal");
        reached
    }

    /// Has consults answered by an agent whose help does not name this option, as an older version's.
    ///
    /// # Panics
    ///
    /// When it cannot be written.
    pub fn use_agent_without(&mut self, option: &str) {
        let agent = self.path(scripted_agent::PROGRAM_NAME);
        let older = self.path("older-agent");
        // The shell that writes it is another process: a file this one held open for writing could not be run.
        let body = format!(
            "#!/bin/sh\ncase \"$1\" in --help) '{0}' --help | grep -v -e '{option}' ;; *) exec '{0}' \"$@\" ;; esac\n",
            agent.display()
        );
        let written = std::process::Command::new("/bin/sh")
            .args(["-c", "printf %s \"$1\" > \"$0\" && chmod 700 \"$0\""])
            .arg(&older)
            .arg(&body)
            .status();
        assert!(written.expect("a shell").success(), "the agent is written");
        self.set("PHONE_OPUS_CLAUDE_BIN", older.display().to_string());
    }

    /// Signals every process of a role, and returns those that were still there.
    ///
    /// # Panics
    ///
    /// When there was none.
    pub fn signal(&self, role: Role, signal: rustix::process::Signal) -> Vec<Process> {
        let reached: Vec<Process> = self.all(role).into_iter().filter(|process| process.send(signal)).collect();
        assert!(!reached.is_empty(), "no {role:?} to signal among {:?}", self.processes());
        reached
    }

    /// Waits until no agent is left, nor anything one started.
    ///
    /// # Panics
    ///
    /// When something stays.
    pub async fn expect_no_agent_left(&self) {
        let waiting = Waiting::until("no agent is left", self.patience);
        while !self.agents().is_empty() {
            waiting.again(|| format!("{:?}", self.agents())).await;
        }
    }

    // --- the end -------------------------------------------------------------------------------------------------

    /// Ends the hosts in order and checks every law that can be seen from outside.
    ///
    /// # Panics
    ///
    /// When a host does not end well, or a law is broken.
    pub async fn stop_and_check_invariants(self, clients: impl IntoIterator<Item = TestClient>) {
        let mut exchanges = Vec::new();
        for mut client in clients {
            client.finish().await;
            exchanges.push(client.exchange());
        }
        self.expect_laws(&exchanges).await;
    }

    /// Ends the clients and then the system in this process, in order, and checks every law that can be seen from
    /// outside.
    ///
    /// # Panics
    ///
    /// When it does not end in order, or a law is broken.
    pub async fn stop_system_and_check_invariants(self, system: System, clients: impl IntoIterator<Item = TestClient>) {
        let mut exchanges = Vec::new();
        for mut client in clients {
            client.finish().await;
            exchanges.push(client.exchange());
        }
        let down = system.shutdown(Grace::default()).await;
        assert!(matches!(down, Shutdown::InOrder), "the system's stop: {down:?}");
        self.expect_laws(&exchanges).await;
    }

    /// Checks every law that can be seen without a client.
    ///
    /// # Panics
    ///
    /// When one is broken.
    pub async fn check_invariants(&self) {
        self.expect_laws(&[]).await;
    }

    /// Holds what this tool does to its contract, and its effects to happening once, when the case is over. Only a tool that
    /// was made with these effects has any.
    pub fn watch(&mut self, tool: &TestTool, effects: &Tally) {
        self.watched.push((tool.contract(), tool.attempts(), effects.clone()));
    }

    async fn expect_laws(&self, exchanges: &[Exchange]) {
        let broken = self.violations(exchanges).await;
        if !broken.is_empty() {
            let broken: Vec<String> = broken.iter().map(ToString::to_string).collect();
            panic!("{} laws are broken:\n{}\n{}", broken.len(), broken.join("\n"), self.last_words());
        }
    }

    /// Every law that is broken, by what can be seen from outside once the clients are done. Waits for what may take a
    /// moment: that nothing is left alive.
    ///
    /// # Panics
    ///
    /// When the store or the agent's log cannot be read.
    pub async fn violations(&self, exchanges: &[Exchange]) -> Vec<Violation> {
        let mut broken = Broken(Vec::new());
        if self.through == Through::Daemon {
            // It stays when its clients go, and is nothing that a case has left.
            self.end_daemon().await;
        }
        broken.note(self.nothing_is_left_alive().await);
        let (jobs, runs, telemetry) = (self.jobs().await, self.runs(), self.telemetry());
        for exchange in exchanges {
            broken.note(invariants::invariant_one_answer_each(exchange));
            broken.note(invariants::invariant_what_was_told_is_stored(exchange, &jobs));
            broken.note(invariants::invariant_generations_never_go_back(&exchange.generations));
            broken.note(invariants::invariant_the_connection_was_not_dropped(exchange));
            broken.note(invariants::invariant_totals_add_up(&exchange.totals));
            broken.note(invariants::invariant_stdout_is_messages_only(exchange));
        }
        broken.note(invariants::invariant_one_run_each(&jobs, &runs));
        broken.note(invariants::invariant_one_job_per_request(&jobs));
        broken.note(invariants::invariant_jobs_are_over(&jobs));
        for job in &jobs {
            broken.note(invariants::invariant_journal_is_whole(job, &self.journal(job.id).await));
        }
        broken.note(invariants::invariant_recorded_before_dispatch(&jobs, &runs));
        let limit = self.env.get("PHONE_OPUS_MAX_RUNNING").and_then(|limit| limit.parse().ok());
        broken.note(invariants::invariant_at_most_so_many_run_at_once(&runs, limit.unwrap_or(MAX_RUNNING)));
        if !self.tears_telemetry {
            broken.note(invariants::invariant_telemetry_is_whole_records(&telemetry));
        }
        broken.note(invariants::invariant_surroundings_are_untouched(&self.before, &Surroundings::look()));
        broken.note(invariants::invariant_files_are_private(&self.path("state")));
        broken.note(self.nothing_is_left_at_home());
        broken.note(self.secrets_stay_where_they_belong(&runs, telemetry.clone()));
        broken.note(invariants::invariant_no_illegal_transition(&jobs, &telemetry));
        for (contract, attempts, effects) in &self.watched {
            broken.note(invariants::invariant_attempts_follow_their_contract(*contract, attempts));
            broken.note(invariants::invariant_effects_happen_once(effects));
        }
        broken.0
    }

    async fn nothing_is_left_alive(&self) -> Result<(), Violation> {
        let began = std::time::Instant::now();
        loop {
            let looked = invariants::invariant_nothing_is_left_alive(&self.processes());
            if looked.is_ok() || began.elapsed() > self.patience {
                return looked;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The telemetry log, whole and in order of its files.
    fn telemetry(&self) -> String {
        let mut names: Vec<PathBuf> = std::fs::read_dir(self.path("state"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("telemetry")))
            .collect();
        names.sort();
        let read = |path: &PathBuf| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        names.iter().map(read).collect()
    }

    fn nothing_is_left_at_home(&self) -> Result<(), Violation> {
        let left: Vec<PathBuf> =
            std::fs::read_dir(self.path("home")).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        let own =
            |path: &PathBuf| path.file_name().is_some_and(|name| self.own_at_home.contains(&*name.to_string_lossy()));
        let left: Vec<PathBuf> = left.into_iter().filter(|path| !own(path)).collect();
        if left.is_empty() {
            return Ok(());
        }
        Err(Violation { law: "L13: nothing is written outside the state directory", detail: format!("{left:?}") })
    }

    fn secrets_stay_where_they_belong(&self, runs: &[Run], telemetry: String) -> Result<(), Violation> {
        let mut logs = vec![("the telemetry log".to_owned(), telemetry)];
        for host in 1..=self.hosts {
            let name = format!("host-{host}.stderr");
            let bytes = std::fs::read(self.path(&name)).unwrap_or_default();
            logs.push((name, String::from_utf8_lossy(&bytes).into_owned()));
        }
        for job in std::fs::read_dir(self.state_dir().jobs()).into_iter().flatten().flatten() {
            let bytes = std::fs::read(job.path().join("runner.log")).unwrap_or_default();
            logs.push(("a runner's log".to_owned(), String::from_utf8_lossy(&bytes).into_owned()));
        }
        logs.extend(runs.iter().map(|run| ("an agent's arguments".to_owned(), run.start["argv"].to_string())));
        let (prompt, key) = (("the prompt", &self.canary[..]), ("the key", KEY));
        invariants::invariant_secrets_stay_where_they_belong(&[prompt, key], &logs)?;
        let environments: Vec<_> =
            runs.iter().map(|run| ("an agent's environment".to_owned(), run.start["env"].to_string())).collect();
        invariants::invariant_secrets_stay_where_they_belong(&[prompt], &environments)?;
        if self.env.get("PHONE_OPUS_BILLING").is_none_or(|billing| billing != "api_key") {
            return invariants::invariant_secrets_stay_where_they_belong(&[key], &environments);
        }
        if !self.env.values().any(|value| value == KEY) {
            // Of a world whose agent has no key of its own.
            return Ok(());
        }
        match environments.iter().find(|(_, env)| !env.contains(KEY)) {
            None => Ok(()),
            Some(_) => Err(Violation { law: "the key that pays reaches the agent", detail: "it did not".to_owned() }),
        }
    }

    /// The ends of the hosts' logs.
    fn last_words(&self) -> String {
        let mut words = String::new();
        for host in 1..=self.hosts {
            let bytes = std::fs::read(self.path(&format!("host-{host}.stderr"))).unwrap_or_default();
            let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_SHOWN)..]).into_owned();
            words.push_str(&format!("--- the end of host {host}'s log ---\n{tail}\n"));
        }
        words
    }
}

/// Gives everything below a directory to this user; a link itself, not what it names.
fn own(root: &Path, user: u32) {
    std::os::unix::fs::lchown(root, Some(user), Some(user)).expect("it may be given away");
    if !root.is_symlink() && root.is_dir() {
        for entry in std::fs::read_dir(root).expect("a directory").flatten() {
            own(&entry.path(), user);
        }
    }
}

/// The laws that were broken.
struct Broken(Vec<Violation>);

impl Broken {
    fn note(&mut self, looked: Result<(), Violation>) {
        self.0.extend(looked.err());
    }
}

/// What a failed case leaves behind is ended; a passed one leaves nothing.
impl Drop for Rig {
    fn drop(&mut self) {
        for process in self.processes() {
            let _ = process.send(rustix::process::Signal::KILL);
        }
    }
}
