//! The words in which a host starts its own processes.
//!
//! Owns: reading them. They are written where each process is started: `runner/command.rs` (runners and who waits with jobs),
//! [`WorkerCommand`](crate::worker::WorkerCommand) (workers), `agents/offline` (its agent). May not know: what is done with
//! them.
//!
//! They are read by hand, and not by a command line's parser, which takes longer than all else such a process does before it
//! begins: calls wait for each worker's restart, and callers for each runner's start.
//!
//! Invariants: (1) what is not a host's is left to the program, whatever it is; (2) what is a host's and cannot be read is an
//! error that names the word: nobody begins with half of what it was told.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::agents::{AgentPrograms, AgentSite, AgentSites, CustomAgent, CustomAgents, ExtraUsage};
use crate::base::ids::{Generation, JobId};
use crate::config::Config;

/// What a host started this process as.
#[derive(Debug, Clone)]
pub enum StartedAs {
    /// Tools for one host.
    Worker(Generation),
    /// One job.
    Runner(Box<RunnerWords>),
    /// Holds jobs until their turn.
    Waiting(Box<RunWords>),
    /// The built-in agent; with its own words.
    OfflineAgent(Vec<OsString>),
}

/// What a runner is told.
#[derive(Debug, Clone)]
pub struct RunnerWords {
    /// Its job.
    pub job: JobId,
    /// It begins only when its host speaks: the job is on its way to the store.
    pub held: bool,
    /// How it runs the agent.
    pub runs: RunWords,
}

/// What a host's own processes are told of the runs of agents.
#[derive(Debug, Clone)]
pub struct RunWords {
    /// Where jobs are kept.
    pub state_dir: PathBuf,
    /// Agent runs at once.
    pub max_running: usize,
    /// Silence after which an agent is taken for stuck.
    pub stall: Duration,
    /// What becomes of a run that would be paid for beyond its plan.
    pub extra_usage: ExtraUsage,
    /// How long a job whose host is gone may be adopted by another one; zero when it may not.
    pub orphan_grace: Duration,
    /// The agents' programs that are configured.
    pub programs: AgentPrograms,
    /// Variables that are handed on to agents.
    pub agent_env: Vec<String>,
    /// The agents of other machines.
    pub sites: AgentSites,
    /// The agents of the user's own.
    pub customs: CustomAgents,
}

/// Words that are a host's and say nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}`: {problem}; it is started by a server, in its server's words", shown(.word))]
pub struct WordsError {
    /// The word.
    pub word: OsString,
    /// What is wrong with it.
    pub problem: &'static str,
}

fn shown(word: &OsStr) -> impl fmt::Display {
    word.to_string_lossy().chars().filter(|one| !one.is_control()).take(80).collect::<String>()
}

impl StartedAs {
    /// What these words start, those after the program's name; `None` where they are not a host's.
    ///
    /// # Errors
    ///
    /// They are a host's, and cannot be read.
    pub fn read(words: impl IntoIterator<Item = OsString>) -> Option<Result<Self, WordsError>> {
        let mut words = words.into_iter();
        if words.next()? != "mcp" {
            return None;
        }
        let command = words.next()?;
        Some(match command.to_str()? {
            "worker" => worker(words),
            "background-consult" => Options::of(words, IsRunner::Yes).and_then(Options::into_runner),
            "wait" => Options::of(words, IsRunner::No).and_then(Options::into_waiting),
            "offline-agent" => Ok(Self::OfflineAgent(words.collect())),
            _ => return None,
        })
    }
}

fn worker(mut words: impl Iterator<Item = OsString>) -> Result<StartedAs, WordsError> {
    let generation = match words.next() {
        Some(name) if name == "--generation" => value_of(&name, words.next())?,
        other => return Err(unknown(other.unwrap_or_else(|| "worker".into()))),
    };
    match words.next() {
        Some(more) => Err(unknown(more)),
        None => Ok(StartedAs::Worker(Generation(generation))),
    }
}

/// Whether the words are those of one job.
#[derive(Clone, Copy, PartialEq, Eq)]
enum IsRunner {
    Yes,
    No,
}

/// What was read so far: each option at most once, but for those that are lists.
#[derive(Default)]
struct Options {
    job: Option<JobId>,
    held: bool,
    state_dir: Option<PathBuf>,
    max_running: Option<usize>,
    stall_s: Option<u64>,
    extra_usage: Option<ExtraUsage>,
    orphan_grace_s: Option<u64>,
    programs: AgentPrograms,
    agent_env: Vec<String>,
    sites: AgentSites,
    customs: CustomAgents,
}

impl Options {
    fn of(mut words: impl Iterator<Item = OsString>, is_runner: IsRunner) -> Result<Self, WordsError> {
        let mut read = Self::default();
        while let Some(name) = words.next() {
            if name == "--held" && is_runner == IsRunner::Yes && !read.held {
                read.held = true;
                continue;
            }
            let known = match name.to_str() {
                Some("--job") => is_runner == IsRunner::Yes,
                Some(
                    "--state-dir" | "--max-running" | "--stall-s" | "--extra-usage" | "--orphan-grace-s"
                    | "--claude-bin" | "--agent-bin" | "--agent-env" | "--site" | "--custom-agent",
                ) => true,
                _ => false,
            };
            if !known {
                return Err(unknown(name));
            }
            if !read.take(&name, words.next())? {
                return Err(WordsError { word: name, problem: "is there twice" });
            }
        }
        Ok(read)
    }

    /// Whether it is the first of its name.
    fn take(&mut self, name: &OsStr, value: Option<OsString>) -> Result<bool, WordsError> {
        let repeated = match name.to_str() {
            Some("--job") => self.job.replace(value_of(name, value)?).is_some(),
            Some("--state-dir") => self.state_dir.replace(path_of(name, value)?).is_some(),
            Some("--max-running") => self.max_running.replace(value_of(name, value)?).is_some(),
            Some("--stall-s") => self.stall_s.replace(value_of(name, value)?).is_some(),
            Some("--extra-usage") => {
                let word = text_of(name, value)?;
                self.extra_usage.replace(ExtraUsage::parse(&word).ok_or_else(|| unreadable(name))?).is_some()
            }
            Some("--orphan-grace-s") => self.orphan_grace_s.replace(value_of(name, value)?).is_some(),
            // As a process of a version before several agents says it.
            Some("--claude-bin") => self.programs.insert("claude".to_owned(), path_of(name, value)?).is_some(),
            Some("--agent-bin") => {
                let word = given(name, value)?;
                let (agent, path) = of_an_agent(&word).ok_or_else(|| unreadable(name))?;
                self.programs.insert(agent, path).is_some()
            }
            Some("--agent-env") => {
                self.agent_env.push(text_of(name, value)?);
                false
            }
            Some("--custom-agent") => {
                let word = text_of(name, value)?;
                let (named, custom): (String, CustomAgent) =
                    serde_json::from_str(&word).map_err(|_| unreadable(name))?;
                self.customs.insert(named, custom);
                false
            }
            _ => {
                let word = text_of(name, value)?;
                let (named, site): (String, AgentSite) = serde_json::from_str(&word).map_err(|_| unreadable(name))?;
                self.sites.insert(named, site);
                false
            }
        };
        Ok(!repeated)
    }

    fn into_runs(self) -> Result<RunWords, WordsError> {
        let usual = Config::default;
        Ok(RunWords {
            state_dir: self.state_dir.ok_or_else(|| missing("--state-dir"))?,
            max_running: self.max_running.unwrap_or_else(|| usual().max_running),
            stall: self.stall_s.map_or_else(|| usual().stall, Duration::from_secs),
            extra_usage: self.extra_usage.unwrap_or_else(|| usual().extra_usage),
            orphan_grace: Duration::from_secs(self.orphan_grace_s.unwrap_or(0)),
            programs: self.programs,
            agent_env: self.agent_env,
            sites: self.sites,
            customs: self.customs,
        })
    }

    fn into_runner(self) -> Result<StartedAs, WordsError> {
        let (job, held) = (self.job.ok_or_else(|| missing("--job"))?, self.held);
        Ok(StartedAs::Runner(Box::new(RunnerWords { job, held, runs: self.into_runs()? })))
    }

    fn into_waiting(self) -> Result<StartedAs, WordsError> {
        Ok(StartedAs::Waiting(Box::new(self.into_runs()?)))
    }
}

fn unknown(word: OsString) -> WordsError {
    WordsError { word, problem: "is none of its options" }
}

fn missing(name: &str) -> WordsError {
    WordsError { word: name.into(), problem: "is missing" }
}

fn unreadable(name: &OsStr) -> WordsError {
    WordsError { word: name.to_owned(), problem: "has a value that cannot be read" }
}

/// The value of an option: what follows it and is not an option itself.
fn given(name: &OsStr, value: Option<OsString>) -> Result<OsString, WordsError> {
    value
        .filter(|value| !value.is_empty() && !value.as_encoded_bytes().starts_with(b"-"))
        .ok_or_else(|| WordsError { word: name.to_owned(), problem: "has no value" })
}

fn path_of(name: &OsStr, value: Option<OsString>) -> Result<PathBuf, WordsError> {
    Ok(given(name, value)?.into())
}

/// `codex=/opt/codex`: an agent, and a path that need not be text.
fn of_an_agent(word: &OsStr) -> Option<(String, PathBuf)> {
    let bytes = word.as_bytes();
    let at = memchr::memchr(b'=', bytes)?;
    let agent = std::str::from_utf8(&bytes[..at]).ok()?;
    Some((agent.to_owned(), OsStr::from_bytes(&bytes[at + 1..]).into()))
}

fn text_of(name: &OsStr, value: Option<OsString>) -> Result<String, WordsError> {
    given(name, value)?.into_string().map_err(|_| unreadable(name))
}

fn value_of<T: FromStr>(name: &OsStr, value: Option<OsString>) -> Result<T, WordsError> {
    text_of(name, value)?.parse().map_err(|_| unreadable(name))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::agents::AgentRegistry;
    use crate::base::state_dir::StateDir;
    use crate::runner::RunnerCommand;

    fn read(line: &str) -> Option<Result<StartedAs, WordsError>> {
        StartedAs::read(line.split(' ').map(OsString::from))
    }

    const RUNNER: &str = "mcp background-consult --state-dir /s --max-running 3 --stall-s 420 --extra-usage stop";
    const JOB: &str = "--job 65256527-361a-4d3a-9a5f-945ee374307e";
    const SITE: &str =
        r#"["box",{"agent":"claude","target":["ssh","b"],"token_file":null,"program":null,"workspaces":["/w"]}]"#;

    #[test]
    fn what_a_host_writes_is_read_as_it_was_meant() {
        let (name, site): (String, AgentSite) = serde_json::from_str(SITE).expect("a site");
        let sites: AgentSites = [(name, site)].into_iter().collect();
        let custom = CustomAgent {
            command: vec!["llm".to_owned(), "-x y".to_owned()],
            output: "text".to_owned(),
            env: vec!["MINE".to_owned()],
            pay_env: Vec::new(),
            reads: None,
        };
        let config = Config {
            max_running: 7,
            stall: Duration::from_secs(11),
            extra_usage: ExtraUsage::Allow,
            claude_bin: Some("/opt/my claude".into()),
            agent_env: vec!["A".to_owned(), "B".to_owned()],
            agents: sites.clone(),
            customs: [("mine".to_owned(), custom)].into(),
            ..Config::default()
        };
        let dir = StateDir::at("/state of mine");
        let none = AgentRegistry::new();
        let command = RunnerCommand::new("/p".into(), dir.clone(), &Arc::new(config.clone()), none, None, Vec::new());
        let command = command.with_orphan_grace(Duration::from_secs(30));
        let written = |word: &str, more: &[&str]| {
            let child = command.child_of_host(Path::new("/p"), word);
            let words: Vec<OsString> = child.as_std().get_args().map(OsStr::to_owned).collect();
            StartedAs::read(words.into_iter().chain(more.iter().map(OsString::from)))
        };
        let is_as_meant = |runs: &RunWords| {
            assert_eq!(runs.state_dir, dir.root());
            assert_eq!((runs.max_running, runs.stall), (config.max_running, config.stall));
            assert_eq!((runs.extra_usage, runs.orphan_grace), (config.extra_usage, Duration::from_secs(30)));
            assert_eq!((&runs.programs, &runs.agent_env), (&config.programs(), &config.agent_env));
            assert_eq!((&runs.sites, &runs.customs), (&sites, &config.customs));
        };
        let job = JobId::random();
        for (more, is_held) in
            [(&["--job", &job.to_string()][..], false), (&["--job", &job.to_string(), "--held"], true)]
        {
            let Some(Ok(StartedAs::Runner(words))) = written("background-consult", more) else { panic!("a runner") };
            assert_eq!((words.job, words.held), (job, is_held));
            is_as_meant(&words.runs);
        }
        let Some(Ok(StartedAs::Waiting(runs))) = written("wait", &[]) else { panic!("who waits") };
        is_as_meant(&runs);
    }

    #[test]
    fn workers_and_the_offline_agent_are_told_apart_from_what_is_the_programs() {
        assert!(matches!(read("mcp worker --generation 7"), Some(Ok(StartedAs::Worker(Generation(7))))));
        let Some(Ok(StartedAs::OfflineAgent(rest))) = read("mcp offline-agent --resume x") else { panic!("the agent") };
        assert_eq!(rest, ["--resume", "x"]);
        for line in ["", "mcp", "mcp serve", "jobs list", "worker --generation 7", "serve mcp worker", "mcp workers"] {
            assert!(read(line).is_none(), "{line} is the program's own");
        }
    }

    #[test]
    fn what_is_a_hosts_and_cannot_be_read_is_refused_by_its_word() {
        let table = [
            ("mcp worker --generation -1".to_owned(), "--generation", "has no value"),
            ("mcp worker --generation x".to_owned(), "--generation", "has a value that cannot be read"),
            ("mcp worker --generation".to_owned(), "--generation", "has no value"),
            ("mcp worker".to_owned(), "worker", "is none of its options"),
            ("mcp worker --generation 1 --else".to_owned(), "--else", "is none of its options"),
            (RUNNER.to_owned(), "--job", "is missing"),
            (format!("{RUNNER} {JOB} {JOB}"), "--job", "is there twice"),
            (format!("{RUNNER} --job x"), "--job", "has a value that cannot be read"),
            (format!("{RUNNER} {JOB} --claude-bin"), "--claude-bin", "has no value"),
            (format!("{RUNNER} {JOB} --claude-bin --help"), "--claude-bin", "has no value"),
            (format!("{RUNNER} {JOB} --held --held"), "--held", "is none of its options"),
            (format!("{RUNNER} {JOB} --else 1"), "--else", "is none of its options"),
            (format!("{RUNNER} {JOB} --site {{}}"), "--site", "has a value that cannot be read"),
            (format!("mcp background-consult {JOB}"), "--state-dir", "is missing"),
            ("mcp wait --state-dir /s --held".to_owned(), "--held", "is none of its options"),
            (format!("mcp wait --state-dir /s {JOB}"), "--job", "is none of its options"),
            ("mcp wait --state-dir /s --max-running -3".to_owned(), "--max-running", "has no value"),
            (
                "mcp wait --state-dir /s --extra-usage some".to_owned(),
                "--extra-usage",
                "has a value that cannot be read",
            ),
        ];
        for (line, word, problem) in table {
            let refused = read(&line).expect("a host's").expect_err("refused");
            assert_eq!((refused.word.to_str(), refused.problem), (Some(word), problem), "{line}");
        }
    }
}
