//! The rig: a scratch world with the real binary in it, spoken of in verbs.
//!
//! Owns: the scratch directories, the environment of every process, the hosts, and the laws that are checked when a
//! test is over. The agent is the scripted one, under a link in the scratch directory; nothing of the machine's own
//! agents, homes or keys can reach a test.

#![allow(dead_code, reason = "each test program uses its own part of the rig")]
#![allow(clippy::expect_used, clippy::panic, reason = "a test's helper fails the test")]

pub(crate) mod client;
pub(crate) mod processes;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use phone_opus::agents::{AgentRegistry, Environment};
use phone_opus::config::Config;
use phone_opus::ids::JobId;
use phone_opus::jobs::{JobRecord, JobState};
use phone_opus::state_dir::StateDir;
use phone_opus::store::{JobFilter, StoreHandle};
use phone_opus::system::{System, SystemBuilder};
use phone_opus::testkit::scripted_agent::{self, Script, Step};
use serde_json::Value;

pub(crate) use self::client::Client;

/// How long a test waits for what normally takes milliseconds. Other builds may run on the machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A key no agent may see unless it pays by key.
pub(crate) const KEY: &str = "sk-canary-key-5f1d";

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_phone-opus");

/// One line of the scripted agent's log.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) start: Value,
    pub(crate) end: Option<Value>,
}

impl Run {
    pub(crate) fn env(&self, name: &str) -> Option<&str> {
        self.start["env"][name].as_str()
    }

    pub(crate) fn argv(&self) -> Vec<&str> {
        self.start["argv"].as_array().map(|words| words.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
    }

    fn at(moment: &Value) -> i64 {
        moment["ts_ms"].as_i64().expect("a time")
    }

    pub(crate) fn began(&self) -> i64 {
        Self::at(&self.start)
    }

    pub(crate) fn ended(&self) -> i64 {
        Self::at(self.end.as_ref().expect("the run has ended by itself"))
    }
}

/// The scratch world of one test.
pub(crate) struct Rig {
    scratch: tempfile::TempDir,
    env: BTreeMap<String, String>,
    /// Stands in every prompt and may be seen nowhere else.
    canary: String,
    hosts: usize,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let scratch = tempfile::Builder::new().prefix("phone-opus-rig-").tempdir().expect("a scratch directory");
        let path = |name: &str| scratch.path().join(name).display().to_string();
        for dir in ["home", "work", "work/other", "signs"] {
            std::fs::create_dir(scratch.path().join(dir)).expect("a directory");
        }
        std::os::unix::fs::symlink(PROGRAM, path(scripted_agent::PROGRAM_NAME)).expect("a link");
        let env = [
            ("HOME", path("home")),
            ("PATH", "/usr/bin:/bin".to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
            ("PHONE_OPUS_STATE_DIR", path("state")),
            ("PHONE_OPUS_CLAUDE_BIN", path(scripted_agent::PROGRAM_NAME)),
            // A busy machine must not turn a synchronous consult into a background job.
            ("PHONE_OPUS_WAIT_S", "300".to_owned()),
            // The more is logged, the more a leak would show.
            ("PHONE_OPUS_LOG", "trace".to_owned()),
            ("ANTHROPIC_API_KEY", KEY.to_owned()),
        ];
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let canary = format!("CANARY-{}", JobId::random());
        Self { scratch, env, canary, hosts: 0 }
    }

    /// With one variable set for every process started from here on.
    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.set(name, value);
        self
    }

    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.env.insert(name.to_owned(), value.into());
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The directory everything is asked about.
    pub(crate) fn work(&self) -> PathBuf {
        self.path("work")
    }

    pub(crate) fn state_dir(&self) -> StateDir {
        StateDir::at(self.path("state"))
    }

    /// The environment as an embedding program passes it on.
    pub(crate) fn environment(&self) -> Environment {
        self.env.iter().collect()
    }

    pub(crate) fn canary(&self) -> &str {
        &self.canary
    }

    // --- what is asked -------------------------------------------------------------------------------------------

    /// A prompt that has the agent follow this script and log its runs.
    pub(crate) fn prompt(&self, script: Script) -> String {
        let script = Script { log: script.log.or_else(|| Some(self.path("agent.log"))), ..script };
        format!("{} {}", self.canary, script.in_prompt())
    }

    pub(crate) fn answering(&self, answer: &str) -> String {
        self.prompt(Script { answer: Some(answer.to_owned()), ..Script::default() })
    }

    pub(crate) fn doing(&self, steps: Vec<Step>) -> String {
        self.prompt(Script { steps, answer: Some("done".to_owned()), ..Script::default() })
    }

    /// A prompt whose agent gives the sign `begun`, then hangs.
    pub(crate) fn hanging(&self, begun: &str) -> String {
        self.doing(vec![Step::Touch(self.sign(begun)), Step::Hang])
    }

    /// A file by which agents and tests wait for each other.
    pub(crate) fn sign(&self, name: &str) -> PathBuf {
        self.path("signs").join(name)
    }

    pub(crate) fn give_sign(&self, name: &str) {
        std::fs::write(self.sign(name), "").expect("a sign");
    }

    pub(crate) async fn wait_for_sign(&self, name: &str) {
        let sign = self.sign(name);
        until(&format!("the sign {name}"), async || sign.exists().then_some(())).await;
    }

    // --- processes -----------------------------------------------------------------------------------------------

    /// A command in this world.
    pub(crate) fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(PROGRAM);
        command.args(arguments).env_clear().envs(&self.env).current_dir(self.work()).kill_on_drop(true);
        command
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Output {
        let child = self.command(arguments).stdin(Stdio::null()).output();
        tokio::time::timeout(PATIENCE, child).await.expect("the command ends").expect("the command runs")
    }

    /// Starts a host nobody has greeted yet.
    pub(crate) fn host(&mut self) -> Client {
        self.host_in(&self.work())
    }

    /// Starts a host in this directory.
    pub(crate) fn host_in(&mut self, dir: &Path) -> Client {
        self.hosts += 1;
        let stderr = std::fs::File::create(self.path(&format!("host-{}.stderr", self.hosts))).expect("a file");
        let mut child = self
            .command(&["mcp", "serve"])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("a host");
        let mut client = Client::new(child.stdout.take().expect("stdout"), child.stdin.take().expect("stdin"));
        client.host = Some(child);
        client
    }

    /// Starts a host and greets it.
    pub(crate) async fn serve(&mut self) -> Client {
        let mut client = self.host();
        client.handshake("2025-11-25").await;
        client
    }

    /// A system inside this process, with everything the program gives it.
    pub(crate) fn system(&self) -> SystemBuilder {
        System::builder()
            .state_dir(self.state_dir())
            .agents(AgentRegistry::standard(None, PROGRAM.into()))
            .runner(PROGRAM)
            .environment(self.environment())
            .default_cwd(Some(self.work()))
            .config(Config { wait: Some(Duration::from_secs(300)), ..Config::default() })
    }

    // --- what was done -------------------------------------------------------------------------------------------

    /// The agent's runs in the order of their starts.
    pub(crate) fn runs(&self) -> Vec<Run> {
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

    /// Every job of the store, as another process reads it.
    pub(crate) async fn jobs(&self) -> Vec<JobRecord> {
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

    /// The one job of the store, once it is over.
    pub(crate) async fn only_job_over(&self) -> JobRecord {
        until("the job is over", async || {
            let mut jobs = self.jobs().await;
            assert!(jobs.len() < 2, "{jobs:?}");
            jobs.pop().filter(|job| job.state.is_terminal())
        })
        .await
    }

    /// Live processes of this world.
    pub(crate) fn processes(&self) -> Vec<processes::Process> {
        processes::marked(self.scratch.path())
    }

    /// The runners among them.
    pub(crate) fn runners(&self) -> Vec<processes::Process> {
        self.processes().into_iter().filter(|process| process.command.contains("background-consult")).collect()
    }

    /// The agents among them, and what they started.
    pub(crate) fn agents(&self) -> Vec<processes::Process> {
        let agent = |process: &processes::Process| {
            process.command.split(' ').next().is_some_and(|word| word.ends_with(scripted_agent::PROGRAM_NAME))
        };
        self.processes().into_iter().filter(agent).collect()
    }

    pub(crate) async fn expect_no_agent_left(&self) {
        until("no agent is left", async || self.agents().is_empty().then_some(())).await;
    }

    // --- the end -------------------------------------------------------------------------------------------------

    /// Ends the hosts in order and checks every law that can be seen from outside.
    pub(crate) async fn stop_and_check_invariants(self, clients: impl IntoIterator<Item = Client>) {
        for mut client in clients {
            client.hang_up().await;
            if client.host.is_some() {
                let status = client.exit().await;
                assert!(status.success(), "the host ended with {status}");
            }
            client.silence().await;
            client.invariant_one_answer_each();
        }
        self.check_invariants().await;
    }

    pub(crate) async fn check_invariants(&self) {
        self.invariant_nothing_is_left_alive().await;
        self.invariant_every_job_is_over().await;
        self.invariant_files_are_private();
        self.invariant_prompts_and_keys_stay_where_they_belong();
    }

    /// L7.
    async fn invariant_nothing_is_left_alive(&self) {
        let mut last = Vec::new();
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            last = self.processes();
            if last.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("left alive: {last:?}");
    }

    /// L4 and L3: each job is over and was run at most once.
    async fn invariant_every_job_is_over(&self) {
        let jobs = self.jobs().await;
        for job in &jobs {
            assert!(job.state.is_terminal() && job.outcome.is_some(), "{job:?}");
            assert_eq!(job.outcome.as_ref().is_some_and(|o| o.fault.is_none()), job.state == JobState::Succeeded);
        }
        let started = jobs.iter().filter(|job| job.started_at.is_some()).count();
        assert!(self.runs().len() <= started, "{} runs of {started} started jobs", self.runs().len());
    }

    /// L13: 0600 and 0700.
    fn invariant_files_are_private(&self) {
        fn check(path: &Path) {
            let found = std::fs::symlink_metadata(path).expect("it exists");
            let want = if found.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(found.permissions().mode() & 0o777, want, "{}", path.display());
            if found.is_dir() {
                for entry in std::fs::read_dir(path).expect("listed") {
                    check(&entry.expect("an entry").path());
                }
            }
        }
        if self.path("state").exists() {
            check(&self.path("state"));
        }
        let home: Vec<_> = std::fs::read_dir(self.path("home")).expect("listed").collect();
        assert!(home.is_empty(), "left in the home directory: {home:?}");
    }

    /// L13: neither prompts nor keys in logs, telemetry or an agent's arguments and environment.
    fn invariant_prompts_and_keys_stay_where_they_belong(&self) {
        let mut texts: Vec<(String, String)> = Vec::new();
        for dir in [self.scratch.path().to_owned(), self.path("state")] {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.ends_with(".stderr") || name.starts_with("telemetry") {
                    let bytes = std::fs::read(entry.path()).unwrap_or_default();
                    texts.push((name, String::from_utf8_lossy(&bytes).into_owned()));
                }
            }
        }
        let pays_by_key = self.env.get("PHONE_OPUS_BILLING").is_some_and(|billing| billing == "api_key");
        for run in self.runs() {
            texts.push(("an agent's arguments".to_owned(), run.start["argv"].to_string()));
            let env = run.start["env"].to_string();
            assert_eq!(env.contains(KEY), pays_by_key, "{env}");
            assert!(!env.contains(&self.canary), "{env}");
        }
        for (place, text) in texts {
            assert!(!text.contains(&self.canary), "the prompt is in {place}");
            assert!(!text.contains(KEY), "the key is in {place}");
        }
    }
}

/// A client of a system in this process, greeted.
pub(crate) async fn connect(system: &System) -> Client {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (input, output) = tokio::io::split(theirs);
    let system = system.clone();
    tokio::spawn(async move { system.serve(input, output).await });
    let (output, input) = tokio::io::split(ours);
    let mut client = Client::new(output, input);
    client.handshake("2025-11-25").await;
    client
}

/// What a failed test leaves behind is ended; a passed one leaves nothing.
impl Drop for Rig {
    fn drop(&mut self) {
        for process in self.processes() {
            let _ = rustix::process::kill_process(process.pid, rustix::process::Signal::KILL);
        }
    }
}

/// Waits for a condition, with a deadline.
pub(crate) async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
