//! Agents: the programs that answer consults.
//!
//! Owns: what an agent is asked to run (argv, environment, stdin), what its output lines mean, and what its end means.
//! May not know: the store, actors, MCP, who runs the command. Nothing here starts a process except the feature probe.
//!
//! ```text
//! ConsultRequest ─ prepare ─▶ AgentCommand ─ (somebody runs it) ─▶ bytes ─ OutputReader ─▶ AgentEvent
//!                                                                                            │ RunSummary::fold
//!                                       Verdict (state, outcome) ◀─ classify ─ RunEnd ◀──────┘
//! ```
//!
//! An agent that is a program of its own, as its maker ships it, is one file here, `claude.rs` and `codex.rs` being the models:
//!
//! 1. its [`Sheet`](cli::Sheet): its name and the variable that names its program; its [`AgentProfile`], which is what is said of it
//!    and how it answers; what is asked of its program and looked for there ([`Questions`](probe::Questions)); what of the
//!    environment passes to it and what of that pays ([`Passes`](environment::Passes)); its command line, made of a request and of
//!    what its program can do; how it is found out who pays;
//! 2. a parser of its stream, where no other agent's fits, with a table of lines and what each becomes;
//! 3. a table of ends as the program really writes them and the verdict on each. Wordings that mean something by themselves are rows
//!    in `words.rs`, what is seen otherwise is a row in `classify.rs`.
//!
//! Besides: a row in [`KNOWN`], a key for its program in the configuration (`config/programs.rs` and `config/keys.rs`), a voice of
//! the scripted agent, and its column in `tests/interop/real_agents.py`.
//!
//! Invariants: (1) the prompt is on stdin, never in argv or the environment; (2) the environment is made from a
//! snapshot passed in and an allowlist, never inherited; (3) whatever an agent writes, memory stays bounded and nothing
//! panics; (4) classification is a pure function of what was seen.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{AgentSessionId, ChainId, RunToken};
use crate::exec::ExecTarget;
use crate::exec::machine::Machine;
use crate::jobs::{Billing, ConsultRequest};

mod acp;
mod classify;
mod claude;
mod cli;
mod codex;
mod copilot;
mod custom;
mod environment;
mod fields;
mod gemini;
mod lines;
mod names;
pub mod offline;
mod opencode;
mod payer;
mod plain_text;
mod probe;
mod programs;
mod qwen;
mod site;
mod stream_json;
mod summary;
#[cfg(test)]
mod tests_support;
mod there;
mod values;
mod words;

pub use crate::jobs::journal::{AgentEvent, AgentResult};
pub(crate) use classify::UNPROVEN;
pub use classify::{AgentProfile, ResumedId, RunEnd, RunVerdict, SpawnFailure, StopCause};
pub use claude::ClaudeCode;
pub use cli::{CliAgent, LoginSaid, PROMPT_PREFIX};
pub use codex::CodexStream;
pub use custom::{CustomAgent, CustomAgents};
pub(crate) use environment::refusal as variable_refused;
pub use environment::{
    CHAIN as CHAIN_VARIABLE, DEPTH as DEPTH_VARIABLE, Environment, PassedEnvironment, RUN_TOKEN as RUN_TOKEN_VARIABLE,
};
pub use lines::{AgentLine, LineSplitter, MAX_LINE_BYTES};
pub use names::AgentNames;
pub(crate) use names::SessionIds;
pub use offline::Offline;
pub use payer::{ExtraUsage, PayerGuard, PayerKnown};
pub use plain_text::PlainText;
pub use probe::Features;
pub use site::{AgentElsewhere, AgentSite, AgentSites, SITE_AGENTS};
pub use stream_json::StreamJson;
pub use summary::{RunSummary, Started};
pub use there::{There, core_environment};

/// The agents that are programs of their own, in the order they are told.
static KNOWN: &[&cli::Sheet] =
    &[&claude::SHEET, &codex::SHEET, &copilot::SHEET, &gemini::SHEET, &opencode::SHEET, &qwen::SHEET];

/// The programs of agents that are configured, by the agents' names.
pub type AgentPrograms = BTreeMap<String, PathBuf>;

/// Bytes of prompt an agent is given.
///
/// Claude Code takes 1 MB well and fails at 5 MB after a start that costs a quarter of a gigabyte. A longer prompt is
/// refused with `prompt_too_large` before anything is started.
pub const MAX_PROMPT_BYTES: usize = 1_000_000;

/// One program that can answer consults: how it is found and started, what its output lines mean, and what is said of it.
///
/// Everything else is the same for all agents and needs no line here: the process and its group, deadlines and stalls, the
/// journal, what its end means ([`AgentProfile::classify`]), what becomes of a run whose runner crashed. An agent is known to
/// hosts and to the runners they start, so it belongs to a program's [`Registry`](crate::process::Registry).
///
/// ```
/// use std::ffi::OsStr;
/// use std::path::{Path, PathBuf};
///
/// use phone_opus::{
///     Agent, AgentEvent, AgentProfile, Billing, Environment, Fault, OutputParser, PayerKnown, Payment, PlainText, PrepareFuture,
///     RunEnd, RunRequest, RunVerdict, find_program,
/// };
///
/// /// Any program that reads a question and writes an answer.
/// struct Oracle;
///
/// impl Agent for Oracle {
///     fn name(&self) -> &str { "oracle" }
///
///     fn profile(&self) -> AgentProfile {
///         AgentProfile::new("The oracle").install_hint("apt install oracle").answers_by_ending_well()
///     }
///
///     fn locate(&self, environment: &Environment) -> Result<PathBuf, Fault> {
///         find_program(OsStr::new("oracle"), environment, &self.profile())
///     }
///
///     fn prepare<'a>(&'a self, run: &'a RunRequest<'a>, _: &'a Path) -> PrepareFuture<'a> {
///         Box::pin(async move {
///             let program = self.locate(run.environment)?;
///             Ok(run.command(program)?.arg("--brief").variable(run.environment, "ORACLE_KEY"))
///         })
///     }
///
///     fn parser(&self) -> Box<dyn OutputParser> { Box::new(PlainText::new()) }
///
///     // The rest need not be written; this is what holds then.
///     fn classify(&self, end: RunEnd) -> RunVerdict { self.profile().classify(end) }
///     fn needs(&self, environment: &Environment, _: Billing) -> Environment { environment.clone() }
///     fn account(&self, _: &Environment, _: Billing) -> String { String::new() }
///     fn payer(&self) -> PayerKnown { PayerKnown::BeforeStart }
///     fn check_start(&self, _: &AgentEvent, _: Payment) -> Result<(), Fault> { Ok(()) }
/// }
/// # let _ = phone_opus::AgentRegistry::new().with(std::sync::Arc::new(Oracle));
/// ```
pub trait Agent: Send + Sync {
    /// The name callers use.
    fn name(&self) -> &str;

    /// What is said of it, and how it says that it has answered.
    fn profile(&self) -> AgentProfile;

    /// The agent's program, as an absolute path that is executable. Links are not resolved: a program may look at the
    /// name it is called by. [`find_program`] looks where shells and installers do.
    ///
    /// # Errors
    ///
    /// `agent_missing` or `agent_not_executable`, with what to do about it.
    fn locate(&self, env: &Environment) -> Result<PathBuf, Fault>;

    /// What to run for this request; [`RunRequest::command`] is most of it. May run the agent's `--version`, and its `--help`
    /// once per version (at most 10 s); `state_dir` is where what was found out can be kept.
    ///
    /// # Errors
    ///
    /// Those of [`Agent::locate`]; `invalid_input` and `prompt_too_large` for requests no run can serve.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; a probe under way is to be killed with its process group then.
    fn prepare<'a>(&'a self, run: &'a RunRequest<'a>, state_dir: &'a Path) -> PrepareFuture<'a>;

    /// Where the session was had that the run is to go on with, as its program says it: for an agent that goes on with a session in
    /// that directory only and does not say so. `None` where nobody knows, and where it makes no difference.
    #[doc(hidden)]
    fn session_place<'a>(&'a self, run: &'a RunRequest<'a>) -> BoxFuture<'a, Option<PathBuf>> {
        let _ = run;
        Box::pin(std::future::ready(None))
    }

    /// A parser for one run's output.
    fn parser(&self) -> Box<dyn OutputParser>;

    /// The same for an agent that is talked to while it runs: it knows what is to be said ([`OutputParser::replies`]), and the
    /// command's bytes for standard input count for nothing. On this machine only.
    #[doc(hidden)]
    fn dialogue(&self, run: &RunRequest<'_>) -> Option<Box<dyn OutputParser>> {
        let _ = run;
        None
    }

    /// What the end of a run means; by the table that all agents share, unless the agent knows better.
    fn classify(&self, end: RunEnd) -> RunVerdict {
        self.profile().classify(end)
    }

    /// What of the host's environment its runner has to have, besides what every runner has. All of it, unless the agent says
    /// otherwise.
    fn needs(&self, environment: &Environment, billing: Billing) -> Environment {
        let _ = billing;
        environment.clone()
    }

    /// Whose usage a run in this environment is: equal exactly for runs that share a provider's limits, and nothing that
    /// could be used to log in. Empty for an agent that has no limits.
    fn account(&self, _env: &Environment, _billing: Billing) -> String {
        String::new()
    }

    /// From where it is known who pays for a run. For an agent that says so on its stream, nothing may be paid before it
    /// has: the run is ended when it does not.
    fn payer(&self) -> PayerKnown {
        PayerKnown::BeforeStart
    }

    /// Whether the run may go on after this event. Called for [`AgentEvent::Started`], before the first turn.
    ///
    /// # Errors
    ///
    /// `billing_mismatch` when the agent would be paid for from another source than the one chosen: the run is
    /// ended at once, with the fault as its [`StopCause::Faulted`].
    fn check_start(&self, started: &AgentEvent, payment: Payment) -> Result<(), Fault> {
        let _ = (started, payment);
        Ok(())
    }

    /// The machine its process runs on, when that is not this one.
    #[doc(hidden)]
    fn site(&self) -> Option<&AgentSite> {
        None
    }

    /// That machine, where it is one of the program's own.
    #[doc(hidden)]
    fn machine(&self) -> Option<Arc<dyn Machine>> {
        None
    }

    /// The same agent under the settings of one caller: where its program is, and which variables it is handed besides. `None`
    /// for an agent that has no such settings.
    #[doc(hidden)]
    fn under(&self, program: Option<&Path>, variables: &[String]) -> Option<Arc<dyn Agent>> {
        let _ = (program, variables);
        None
    }

    /// Whether its program was found here before: one that is missing now may be being replaced, and is waited for.
    #[doc(hidden)]
    fn was_found(&self, state_dir: &Path) -> bool {
        let _ = state_dir;
        false
    }

    /// Forgets what was found out about its program: it did not know an option it was called with.
    #[doc(hidden)]
    fn forget(&self, program: &Path, state_dir: &Path) {
        let _ = (program, state_dir);
    }

    /// The same of its program on another machine.
    #[doc(hidden)]
    fn forget_there(&self, target: &ExecTarget, program: &Path, state_dir: &Path) {
        let _ = (target, program, state_dir);
    }

    /// Whether a run on another machine is logged in by what travels there, and not by what is found there.
    #[doc(hidden)]
    fn brings_a_login(&self, environment: &Environment, billing: Billing) -> bool {
        let _ = (environment, billing);
        false
    }
}

/// A command on its way; see [`Agent::prepare`].
pub type PrepareFuture<'a> = BoxFuture<'a, Result<AgentCommand, Fault>>;

/// An agent's program by its name: on PATH, else where installers put programs; an absolute path is taken as it is.
///
/// # Errors
///
/// `agent_missing` or `agent_not_executable`, with the profile's hint.
pub fn find_program(name: &OsStr, env: &Environment, profile: &AgentProfile) -> Result<PathBuf, Fault> {
    if Path::new(name).is_absolute() {
        return programs::named(Path::new(name), "The agent", env, profile.install());
    }
    programs::find(name, env).ok_or_else(|| {
        let detail = format!("`{}` was not found {}.", name.to_string_lossy(), programs::searched(env));
        Fault::new(FaultCode::AgentMissing, detail).hint(profile.install())
    })
}

/// What one run is made from.
#[derive(Debug, Clone, Copy)]
pub struct RunRequest<'a> {
    /// What was asked.
    pub request: &'a ConsultRequest,
    /// Marks everything the run starts.
    pub token: RunToken,
    /// The chain of nested consults.
    pub chain: ChainId,
    /// How deep in the chain this run is; the agent is told one more.
    pub depth: u32,
    /// The host's environment, as it was when the host started.
    pub environment: &'a Environment,
    /// The trace its own spans belong to, as `traceparent` has it.
    #[doc(hidden)]
    pub traceparent: Option<&'a str>,
    /// The machine it is to run on, when that is not this one.
    #[doc(hidden)]
    pub there: Option<There<'a>>,
}

impl RunRequest<'_> {
    /// The machine it is to run on, by its name, when that is not this one: then no program is to be looked for here.
    #[must_use]
    pub fn machine(&self) -> Option<String> {
        self.there.map(|there| there.site.target.to_string())
    }

    /// This program with the prompt on its standard input, and the environment every agent has: what programs need to find
    /// their way (`PATH`, `HOME`, `LANG`, proxies), no key, and the marks by which what a lost run left running is found.
    ///
    /// # Errors
    ///
    /// `invalid_input` for a prompt without a word, `prompt_too_large` for one no agent takes.
    pub fn command(&self, program: impl Into<PathBuf>) -> Result<AgentCommand, Fault> {
        check_prompt(&self.request.prompt)?;
        let mut granted = match self.there {
            // That machine has its own.
            Some(_) => environment::for_offline(&Environment::default()),
            None => environment::for_offline(self.environment),
        };
        granted.set_run(self);
        Ok(AgentCommand {
            program: program.into(),
            args: Vec::new(),
            env: granted.env.into_iter().collect(),
            stdin: Bytes::from(self.request.prompt.clone()),
            prompt_prefix_injected: false,
            key_withheld: false,
            payment: Payment { billing: self.request.billing, credential: Credential::Nothing },
            resumed_id: ResumedId::Same,
            new_session: None,
        })
    }
}

/// A command ready to be spawned in the request's `cwd`, with this environment and nothing else.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AgentCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments, without the program's name. Never holds prompt text.
    pub args: Vec<OsString>,
    /// Its whole environment, sorted by name.
    pub env: Vec<(OsString, OsString)>,
    /// To be written to its stdin, which is closed afterwards.
    pub stdin: Bytes,
    /// Whether our fixed line stands before the caller's prompt.
    pub prompt_prefix_injected: bool,
    /// Whether an API key was in the environment and not handed on.
    pub key_withheld: bool,
    /// What [`Agent::check_start`] compares with.
    pub payment: Payment,
    /// By which id a session goes on that is resumed.
    pub resumed_id: ResumedId,
    /// The id a new session was given, where it was given one.
    pub new_session: Option<AgentSessionId>,
}

impl AgentCommand {
    /// With one more argument. Nothing of the prompt may be in it: arguments can be read by every user of a machine.
    #[must_use]
    pub fn arg(mut self, word: impl Into<OsString>) -> Self {
        self.args.push(word.into());
        self
    }

    /// With more arguments.
    #[must_use]
    pub fn args(mut self, words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(words.into_iter().map(Into::into));
        self
    }

    /// With a variable of the host's environment, where it has it: the agent's own settings, and what it logs in by.
    #[must_use]
    pub fn variable(self, environment: &Environment, name: &str) -> Self {
        match environment.get(name) {
            Some(value) => self.set(name, value),
            None => self,
        }
    }

    /// With a variable of its own.
    #[must_use]
    pub fn set(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        let name = name.into();
        match self.env.binary_search_by(|(known, _)| known.cmp(&name)) {
            Ok(at) => self.env[at].1 = value.into(),
            Err(at) => self.env.insert(at, (name, value.into())),
        }
        self
    }

    /// With other bytes on its standard input than the prompt alone.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Bytes>) -> Self {
        self.stdin = bytes.into();
        self
    }
}

/// Names only: values are secrets and prompts.
impl fmt::Debug for AgentCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentCommand")
            .field("program", &self.program)
            .field("args", &self.args)
            .field("env", &self.env.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("stdin_bytes", &self.stdin.len())
            .field("prompt_prefix_injected", &self.prompt_prefix_injected)
            .field("key_withheld", &self.key_withheld)
            .field("payment", &self.payment)
            .finish()
    }
}

/// Where the money was to come from, and what the agent got to make it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Payment {
    /// What was chosen.
    pub billing: Billing,
    /// What the environment handed on holds.
    pub credential: Credential,
}

/// What an environment handed to an agent can pay with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credential {
    /// Nothing: the agent has its own login or none.
    Nothing,
    /// An API key the agent names in its introduction.
    Key,
    /// A gateway's token or a cloud provider's account, which the agent does not name in its introduction.
    Unnamed,
}

/// Turns one run's output lines into events. [`StreamJson`] reads what Claude Code writes, [`CodexStream`] what Codex writes,
/// [`PlainText`] takes everything for the answer.
///
/// ```
/// use phone_opus::{AgentEvent, OutputParser};
///
/// /// Each line is a part of the answer, which is there when the output ends.
/// #[derive(Default)]
/// struct Lines(Vec<String>);
///
/// impl OutputParser for Lines {
///     fn line(&mut self, line: &[u8], _: &mut Vec<AgentEvent>) { self.0.push(String::from_utf8_lossy(line).into_owned()) }
///     fn end(&mut self, out: &mut Vec<AgentEvent>) { out.push(AgentEvent::answer(self.0.join(" "))) }
/// }
///
/// let (mut parser, mut told) = (Lines::default(), Vec::new());
/// parser.line(b"forty", &mut told);
/// parser.line(b"two", &mut told);
/// parser.end(&mut told);
/// assert_eq!(told, [AgentEvent::answer("forty two")]);
/// ```
pub trait OutputParser: Send {
    /// One line without its line end; the last one may be cut off. Adds what it means to `out`. It is never longer than 64 MiB:
    /// a longer one is counted as [`AgentEvent::Garbage`] and not shown to anybody.
    fn line(&mut self, line: &[u8], out: &mut Vec<AgentEvent>);

    /// The output has ended. Adds what that means.
    fn end(&mut self, out: &mut Vec<AgentEvent>) {
        let _ = out;
    }

    /// What is to be said to an agent that is talked to, since it was last asked.
    #[doc(hidden)]
    fn replies(&mut self) -> Replies {
        Replies::default()
    }

    /// The run is to end: whether there is a way to say so to the agent, which is among its next replies then.
    #[doc(hidden)]
    fn stop(&mut self) -> bool {
        false
    }
}

/// What is to be said to an agent that is talked to.
#[doc(hidden)]
#[derive(Debug, Default, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replies {
    /// For its standard input.
    pub bytes: Vec<u8>,
    /// Nothing will be said after it: its standard input may be closed.
    pub over: bool,
}

/// A parser behind a line splitter: bytes in, events out. What is unfinished stays in here.
pub struct OutputReader {
    splitter: LineSplitter,
    parser: Box<dyn OutputParser>,
}

impl OutputReader {
    /// A reader of one run's stdout.
    #[must_use]
    pub fn new(parser: Box<dyn OutputParser>) -> Self {
        Self::bounded(parser, MAX_LINE_BYTES)
    }

    /// A reader that skips lines of more than `max_line` bytes: for whoever wants news and not the answer.
    #[must_use]
    pub fn bounded(parser: Box<dyn OutputParser>, max_line: usize) -> Self {
        Self { splitter: LineSplitter::new(max_line), parser }
    }

    /// The next bytes, in any portions. Adds the events of every line they complete to `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<AgentEvent>) {
        let parser = &mut self.parser;
        self.splitter.push(bytes, &mut |line| feed(parser.as_mut(), line, out));
    }

    /// What is to be said to an agent that is talked to; see [`OutputParser::replies`].
    pub(crate) fn replies(&mut self) -> Replies {
        self.parser.replies()
    }

    /// See [`OutputParser::stop`].
    pub(crate) fn stop(&mut self) -> bool {
        self.parser.stop()
    }

    /// What was taken of a line that is not whole yet.
    #[must_use]
    pub fn unfinished(&self) -> &[u8] {
        self.splitter.unfinished()
    }

    /// The end of the output: the last line counts even without a line end.
    pub fn finish(&mut self, out: &mut Vec<AgentEvent>) {
        let parser = &mut self.parser;
        self.splitter.finish(&mut |line| feed(parser.as_mut(), line, out));
        parser.end(out);
    }
}

fn feed(parser: &mut dyn OutputParser, line: AgentLine<'_>, out: &mut Vec<AgentEvent>) {
    match line {
        AgentLine::Whole(bytes) => parser.line(bytes, out),
        AgentLine::TooLong { bytes } => out.push(AgentEvent::Garbage { bytes }),
    }
}

/// The agents of one system, by name.
#[derive(Clone, Default)]
pub struct AgentRegistry {
    agents: Vec<Arc<dyn Agent>>,
}

impl AgentRegistry {
    /// A registry without agents.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The agents every installation has: those that are programs of their own (`claude`, `codex` and the like), whether or not they are
    /// installed here, and `offline`.
    ///
    /// `claude` is the configured path of Claude Code, if any; `program` is phone-opus itself, which the offline agent
    /// is run from.
    #[must_use]
    pub fn standard(claude: Option<PathBuf>, program: PathBuf) -> Self {
        let programs = claude.into_iter().map(|path| ("claude".to_owned(), path)).collect();
        Self::installed(&programs, &[], program)
    }

    /// The same with these programs of theirs, handed these variables.
    #[must_use]
    #[doc(hidden)]
    pub fn installed(programs: &AgentPrograms, variables: &[String], program: PathBuf) -> Self {
        let at = |agent: CliAgent| agent.clone().at(programs.get(agent.name()).cloned());
        CliAgent::all()
            .map(|agent| at(agent).with_variables(variables.iter().cloned()))
            .fold(Self::new(), |all, agent| all.with(Arc::new(agent)))
            .with(Arc::new(Offline::new(program)))
    }

    /// Adds an agent; it takes the place of one of the same name.
    #[must_use]
    pub fn with(mut self, agent: Arc<dyn Agent>) -> Self {
        match self.agents.iter_mut().find(|known| known.name() == agent.name()) {
            Some(known) => *known = agent,
            None => self.agents.push(agent),
        }
        self
    }

    /// Adds these; those of the same names are replaced.
    #[must_use]
    #[doc(hidden)]
    pub fn with_all(self, others: &Self) -> Self {
        others.agents.iter().cloned().fold(self, Self::with)
    }

    /// The environment runners, and who waits to start them, are started with, out of a host's own: ours, and what any agent
    /// needs.
    #[must_use]
    #[doc(hidden)]
    pub fn for_runners(&self, environment: &Environment, billing: Billing) -> Environment {
        let needed = self.agents.iter().map(|agent| agent.needs(environment, billing));
        environment::for_runner(environment, needed)
    }

    /// The environment the runner of a caller is started with whose host (`own`) has another one.
    #[must_use]
    #[doc(hidden)]
    pub fn for_callers_runners(
        &self,
        own: &Environment,
        environment: &Environment,
        billing: Billing,
        withheld: bool,
    ) -> Environment {
        let needed = self.agents.iter().map(|agent| agent.needs(environment, billing));
        environment::for_callers_runner(own, environment, needed, withheld)
    }

    /// The same agents under the settings of one caller: their programs, and the variables that are handed on.
    #[must_use]
    #[doc(hidden)]
    pub fn under(&self, programs: &AgentPrograms, variables: &[String]) -> Self {
        let under = |agent: &Arc<dyn Agent>| {
            let program = programs.get(agent.name()).map(PathBuf::as_path);
            agent.under(program, variables).unwrap_or_else(|| Arc::clone(agent))
        };
        Self { agents: self.agents.iter().map(under).collect() }
    }

    /// The same agents, with what a user's configuration says of them: agents of the user's own, programs, variables that are
    /// handed on, other machines. What a program says of its agents stays where the configuration says nothing.
    #[must_use]
    #[doc(hidden)]
    pub fn configured(
        &self,
        customs: &CustomAgents,
        programs: &AgentPrograms,
        variables: &[String],
        sites: &AgentSites,
    ) -> Self {
        let all = self.with_customs(customs);
        let all = if programs.is_empty() && variables.is_empty() { all } else { all.under(programs, variables) };
        all.with_sites(sites)
    }

    /// What of a caller's environment may go to another process that is to run its consults: what any agent needs, and nothing
    /// that is ours or for the loading of programs.
    #[must_use]
    #[doc(hidden)]
    pub fn for_callers(&self, environment: &Environment, billing: Billing) -> Environment {
        let needed = self.agents.iter().map(|agent| agent.needs(environment, billing));
        environment::for_caller(environment, needed)
    }

    /// Whether a caller with this environment has a way to pay that is not in what it sends of it.
    #[must_use]
    #[doc(hidden)]
    pub fn withholds(&self, environment: &Environment, sent: &Environment) -> bool {
        environment::withholds(environment, sent)
    }

    /// The names, in the order they were added.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.agents.iter().map(|agent| agent.name()).collect()
    }

    /// The agent of this name.
    ///
    /// # Errors
    ///
    /// `invalid_input`, naming the nearest and all known names.
    pub fn get(&self, name: &str) -> Result<Arc<dyn Agent>, Fault> {
        if let Some(agent) = self.agents.iter().find(|agent| agent.name() == name) {
            return Ok(Arc::clone(agent));
        }
        Err(names::unknown_agent(name, &self.names()))
    }
}

impl fmt::Debug for AgentRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AgentRegistry").field(&self.names()).finish()
    }
}

/// Refuses what no agent can run: no text at all, or more than [`MAX_PROMPT_BYTES`].
fn check_prompt(prompt: &str) -> Result<(), Fault> {
    if prompt.trim().is_empty() {
        return Err(Fault::new(FaultCode::InvalidInput, "`prompt`: is empty; say what to ask."));
    }
    if prompt.len() > MAX_PROMPT_BYTES {
        return Err(Fault::new(
            FaultCode::PromptTooLarge,
            format!("`prompt`: has {} bytes, at most {MAX_PROMPT_BYTES} are accepted.", prompt.len()),
        )
        .hint("Name the files to read instead of including them; the agent reads the working directory itself."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_agent_is_answered_with_the_nearest_name() {
        let registry = AgentRegistry::standard(None, PathBuf::from("/bin/phone-opus"));
        assert_eq!(registry.names(), ["claude", "codex", "copilot", "gemini", "opencode", "qwen", "offline"]);
        assert_eq!(registry.get("offline").map(|agent| agent.name().to_owned()), Ok("offline".to_owned()));
        let fault = registry.get("Cluade").err().expect("unknown");
        assert_eq!(fault.code, FaultCode::InvalidInput);
        assert_eq!(
            fault.hint.as_deref(),
            Some(
                "Agents: `claude`, `codex`, `copilot`, `gemini`, `opencode`, `qwen`, `offline` (did you mean `claude`?)."
            )
        );
        let fault = registry.get("zzz").err().expect("unknown");
        assert_eq!(
            fault.hint.as_deref(),
            Some("Agents: `claude`, `codex`, `copilot`, `gemini`, `opencode`, `qwen`, `offline`.")
        );
    }

    #[test]
    fn an_overlong_line_is_one_piece_of_garbage_and_the_next_line_counts() {
        let mut reader = OutputReader { splitter: LineSplitter::new(64), parser: Box::new(StreamJson::new()) };
        let mut out = Vec::new();
        reader.push(&[b'x'; 500], &mut out);
        reader.push(b"\n{\"type\":\"user\"}\n{\"type\":\"us", &mut out);
        reader.finish(&mut out);
        assert_eq!(
            out,
            [AgentEvent::Garbage { bytes: 500 }, AgentEvent::ToolResult, AgentEvent::Garbage { bytes: 11 }]
        );
    }
}
