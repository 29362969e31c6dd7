//! The tool `consult`: accept, follow, wait.
//!
//! Owns: what a consult's arguments mean and how long its caller is kept waiting. May not know: runners, processes.
//!
//! Accepting is idempotent by invocation, so another attempt at the same call (after a worker was lost) joins the job
//! of the first: the caller loses nothing and the agent is not run twice.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemars::JsonSchema;

use super::arguments::ArgumentReader;
use super::callers::{CallerOrigin, Callers, session_over};
use super::diff::{self, DiffRefused, Git};
pub use super::grounds::Caller;
use super::grounds::{DIRECTORY, Wrong};
use super::placed::{self, FleetDesk};
use super::reply::{self, Context, DETAIL, Detail, RENDER, Render, Shape};
use super::several;
use super::{
    Annotations, Evidence, ProbeFuture, ReplayContract, TaskSupport, Tool, ToolCall, ToolDefinition, ToolFuture,
    ToolReply,
};
use crate::agents::{AgentNames, MAX_PROMPT_BYTES, SessionIds};
use crate::base::beside::beside;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{AgentSessionId, ChainId, InvocationId, JobId, UnixMillis};
use crate::base::lenient;
use crate::config::Config;
use crate::config::clients::{ClientProfile, Clients, Structured};
use crate::exec::local::may_be_entered;
use crate::fleet::Placement;
use crate::jobs::client::{Follow, JobsHandle, News};
use crate::jobs::{AskedDiff, ConsultRequest, JobMode, JobRecord, NewJob};
use crate::places::Places;
use crate::tools::roots::RootsHandle;

/// Depth at which a nested consult is refused: an agent may ask another one, which may not ask a third.
const DEPTH_REFUSED: u32 = 2;

/// How many agents a consult of several asks.
const SEVERAL: RangeInclusive<usize> = 2..=5;

/// The options whose defaults are no words of the caller: two calls with one `request_key` are the same when they name the
/// same ones alike. The directory is not among them: keys are the workspace's.
const FROZEN: [&str; 8] =
    ["agent", "session_id", "max_turns", "model", "effort", "timeout_s", "max_budget_usd", "diff"];

/// What is noted of a call that said its placement itself.
const PLACED: &str = "placement";

/// What is said of `cwd`.
const CWD_TOLD: &str = "Absolute directory to answer from, in this project. Default: where this server runs.";

/// Agents of other machines that are named beside it; the list of agents has them all.
const SITES_TOLD: usize = 4;

/// Longest a caller may ask to be kept waiting.
pub const WAIT_MOST: u64 = 3600;

/// The arguments of `consult`, as clients are told about them.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "the schema is generated from it; arguments are read by the argument reader")]
struct ConsultArguments {
    /// The question, self-contained: the agent sees the directory, not this conversation.
    prompt: String,
    /// Absolute directory to answer from, in this project. Default: where this server runs.
    cwd: Option<String>,
    /// Continue the agent session of an earlier reply.
    session_id: Option<String>,
    /// Return a job id at once instead of waiting.
    background: Option<bool>,
    /// Most agent turns.
    max_turns: Option<u32>,
    /// Model name or alias.
    model: Option<String>,
    /// Where the agent knows it.
    #[schemars(extend("enum" = ["low", "medium", "high", "xhigh", "max"]))]
    effort: Option<String>,
    /// Who answers; offline is a word search without a model.
    agent: Option<String>,
    /// Instead of agent: ask 2 to 5 at once, each by itself.
    #[schemars(extend("items" = {"type": "string"}))]
    agents: Option<Vec<String>>,
    /// Seconds the agent may run.
    timeout_s: Option<u32>,
    /// Seconds to wait here before the consult goes on in the background.
    wait_s: Option<u32>,
    /// Your own key: the same key and arguments join the same job, never a second run.
    request_key: Option<String>,
    /// Most US dollars.
    max_budget_usd: Option<f64>,
    /// Add git diff of this commit; true: HEAD.
    diff: Option<String>,
    /// Where it may run: here, or on any machine of the fleet that has the directory.
    #[schemars(extend("enum" = ["local", "fleet", "clone"]))]
    placement: Option<String>,
    /// How the text looks; porcelain when left out.
    #[schemars(extend("enum" = ["porcelain", "json"]))]
    render: Option<String>,
    /// How much is told; concise when left out.
    #[schemars(extend("enum" = ["concise", "full"]))]
    detail: Option<String>,
}

/// What all consult tools share.
#[derive(Clone)]
pub struct Consults {
    /// Jobs.
    pub jobs: JobsHandle,
    /// Who can answer.
    pub agents: AgentNames,
    /// The numbers.
    pub config: Arc<Config>,
    /// What is known about clients.
    pub clients: Clients,
    /// Where a consult runs that names no directory; `None` when that is no place to run one.
    pub default_cwd: Option<PathBuf>,
    /// Where clients may look.
    pub places: Arc<Places>,
    /// What they work on.
    pub roots: RootsHandle,
    /// The chain the caller is part of, and how deep.
    pub nesting: (Option<ChainId>, u32),
    /// Whose sessions there are.
    pub callers: Callers,
    /// Whose directory, configuration and environment the above are.
    pub origin: CallerOrigin,
    /// The queue that is shared with other machines, where one is configured.
    pub fleet: Option<Arc<FleetDesk>>,
}

/// A consult's arguments, read.
#[derive(Debug, Clone)]
pub struct ConsultOptions {
    /// What is asked.
    pub request: ConsultRequest,
    /// Whether the caller waits.
    pub background: bool,
    /// How long it waits; by client when not given.
    pub wait: Option<Duration>,
    /// Its own key.
    pub request_key: Option<String>,
    /// The directory the job belongs to: that of the request, made canonical.
    pub workspace: PathBuf,
    /// The options of the request the caller named itself; the others are defaults.
    pub given: Vec<String>,
    /// Where it may run.
    pub placement: Placement,
}

/// What begins the keys that a bridge gives consults whose callers named none. It may so be sent again after its daemon was
/// lost; to its caller it is the consult that caller began, and another key is nothing it could use.
pub const KEY_OF_BRIDGE: &str = "phone-opus-bridge:";

impl ConsultOptions {
    /// Whether its caller said itself where it may run.
    pub(super) fn is_placed_by_caller(&self) -> bool {
        self.given.iter().any(|name| name == PLACED)
    }

    /// Whether its caller named a key itself.
    pub(super) fn is_keyed_by_caller(&self) -> bool {
        self.request_key.as_ref().is_some_and(|key| !key.starts_with(KEY_OF_BRIDGE))
    }
}

/// How long a directory may take to be looked at. One on a file system that does not answer would hold up the thread that
/// serves everybody; its caller is told instead.
pub(crate) const LOOK_BOUND: Duration = Duration::from_secs(2);

/// Looks at a directory on a thread that may hang, and makes it canonical. What is wrong with it, if it is none.
///
/// # Cancel safety
///
/// Safe: the look is not ended, but nobody waits for it.
pub(super) async fn look_at(dir: PathBuf) -> Result<PathBuf, &'static str> {
    within(LOOK_BOUND, move || resolved(dir)).await
}

/// Looks at a directory, and makes it canonical. It may hang.
pub(crate) fn resolved(dir: PathBuf) -> Result<PathBuf, &'static str> {
    match std::fs::metadata(&dir) {
        Ok(found) if found.is_dir() && !may_be_entered(&dir) => {
            Err("may not be entered by the user this server runs as")
        }
        Ok(found) if found.is_dir() => Ok(std::fs::canonicalize(&dir).unwrap_or(dir)),
        Ok(_) => Err("is not a directory"),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err("cannot be looked at"),
        Err(_) => Err("does not exist"),
    }
}

pub(crate) async fn within<T: Send + 'static>(
    bound: Duration,
    look: impl FnOnce() -> Result<T, &'static str> + Send + 'static,
) -> Result<T, &'static str> {
    let Some(looking) = beside("look", look) else { return Err("cannot be looked at: there is no thread to be had") };
    match tokio::time::timeout(bound, looking).await {
        Ok(Some(looked)) => looked,
        Ok(None) => Err("cannot be looked at"),
        Err(_) => Err("does not answer: its file system hangs"),
    }
}

impl Consults {
    /// The same for the caller of a call: in its directory, under its configuration, as deep in a chain as it is. The tools of
    /// a client's call work with this and with nothing else.
    ///
    /// # Errors
    ///
    /// `caller_lost`: its session is over, and what it brought with it.
    pub fn of(&self, caller: Caller) -> Result<Cow<'_, Self>, Fault> {
        let Caller::Client(session) = caller else { return Ok(Cow::Borrowed(self)) };
        let context = self.callers.of(session).ok_or_else(session_over)?;
        if context.origin == CallerOrigin::Host {
            return Ok(Cow::Borrowed(self));
        }
        let home = context.home();
        Ok(Cow::Owned(Self {
            config: Arc::clone(&context.config),
            clients: self.clients.under(Arc::clone(&context.config)),
            default_cwd: default_cwd(context.cwd.as_deref(), home.as_deref()),
            places: Arc::new(Places { start: context.cwd.clone(), home, ..Places::clone(&self.places) }),
            nesting: context.nesting,
            origin: context.origin,
            jobs: self.jobs.clone(),
            agents: self.agents.clone(),
            roots: self.roots.clone(),
            callers: self.callers.clone(),
            fleet: self.fleet.clone(),
        }))
    }

    /// Reads and checks the arguments of a consult of one agent. Nothing is started while anything is wrong with them.
    ///
    /// # Errors
    ///
    /// `invalid_input` with every problem, `prompt_too_large`, `recursion_refused`.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is changed.
    pub async fn read(
        &self,
        arguments: &[u8],
        client: Option<&str>,
        caller: Caller,
    ) -> Result<(ConsultOptions, Shape), Fault> {
        match self.read_each(arguments, client, caller).await? {
            (only, _) if only.iter().any(|one| one.placement != Placement::Local && one.is_placed_by_caller()) => {
                let detail = "`placement` is for the tool's own call; accepted: `local`.";
                Err(Fault::new(FaultCode::InvalidInput, detail))
            }
            (mut only, shape) if only.len() == 1 => Ok((only.remove(0), shape)),
            _ => Err(Fault::new(FaultCode::InvalidInput, "`agents` is given; accepted: one `agent`.")),
        }
    }

    /// The same for one agent or several: the options of each, in the order they were named. Nothing is started for any of
    /// them while anything is wrong with one.
    ///
    /// # Errors
    ///
    /// As [`Consults::read`].
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is changed.
    pub async fn read_each(
        &self,
        arguments: &[u8],
        client: Option<&str>,
        caller: Caller,
    ) -> Result<(Vec<ConsultOptions>, Shape), Fault> {
        let mut args = ArgumentReader::parse(arguments)?;
        let mut given: Vec<String> =
            FROZEN.iter().filter(|name| args.is_given(name)).map(|name| (*name).to_owned()).collect();
        let prompt = args.text("prompt");
        let prompt = args.require("prompt", prompt, "a text");
        if prompt.as_deref().is_some_and(lenient::is_blank) {
            args.problem("prompt", "is blank", "a question for the agent");
        }
        let cwd = args.string("cwd");
        let session_id = args.session("session_id");
        let background = args.boolean("background").unwrap_or(false);
        let max_turns = args.integer("max_turns", 1..=1000);
        let model = args.word("model", 100);
        let effort = args.choice(
            "effort",
            &[("low", "low"), ("medium", "medium"), ("high", "high"), ("xhigh", "xhigh"), ("max", "max")],
        );
        let agent = args.string("agent");
        let several = self.several(&mut args, agent.is_some(), session_id.is_some());
        let agents = match several {
            Some(several) => {
                // Each is asked as it would be by itself, so each may join what was asked of it by itself.
                given.insert(0, "agent".to_owned());
                several
            }
            None => {
                let agent = agent.unwrap_or_else(|| self.config.agent.clone());
                self.known(&mut args, "agent", &agent);
                self.resumes(&mut args, &agent, session_id);
                vec![agent]
            }
        };
        let timeout_s = args.integer("timeout_s", 1..=86_400).unwrap_or(self.config.timeout.as_secs());
        let wait_s = args.integer("wait_s", 1..=WAIT_MOST);
        let request_key = args.string("request_key");
        if request_key
            .as_ref()
            .is_some_and(|key| lenient::is_blank(key) || key.len() > 200 || key.chars().any(char::is_control))
        {
            args.problem("request_key", "is not usable as a key", "1 to 200 bytes without control characters");
        }
        let max_budget_usd = args.positive("max_budget_usd", 10_000.0);
        let base = args.diff("diff");
        let placement = self.placement(&mut args, &agents, &mut given);
        let shape = shape(&mut args, self.clients.profile(client));
        let mut places = Vec::new();
        let mut here = None;
        for agent in &agents {
            let site = self.config.agents.get(agent);
            let place = match (site, &here) {
                (Some(site), _) => self.directory_elsewhere(cwd.clone(), agent, site, &mut args),
                // One look, and one word about it, for all of them.
                (None, Some(looked)) => Option::clone(looked),
                (None, None) => here.insert(self.directory(cwd.clone(), caller, &mut args).await).clone(),
            };
            places.extend(place.map(|(cwd, workspace)| (cwd, workspace, site.map(|site| site.target.to_string()))));
        }
        let diff = match base {
            Some(base) if args.is_clean() => self.diff(base, &agents, &places, caller, &mut args).await,
            _ => None,
        };
        args.finish()?;
        let (Some(words), true) = (prompt, places.len() == agents.len()) else {
            return Err(Fault::new(FaultCode::Internal, "arguments were accepted that are not there."));
        };
        let (prompt, diff) = match diff {
            Some((base, text)) => (diff::beside(&words, &base, &text), Some(AskedDiff::new(base, words.len()))),
            None => (words, None),
        };
        if prompt.len() > MAX_PROMPT_BYTES {
            let detail = format!("`prompt` has {} bytes; accepted: at most {MAX_PROMPT_BYTES}.", prompt.len());
            return Err(Fault::new(FaultCode::PromptTooLarge, detail)
                .hint("Name the files instead of including them; the agent can read the directory."));
        }
        if self.nesting.1 >= DEPTH_REFUSED {
            return Err(Fault::new(
                FaultCode::RecursionRefused,
                "this is a consult inside a consult inside a consult, and goes no deeper.",
            )
            .hint("Answer with what you have, or hand the question back to your caller."));
        }
        if background && self.nesting.1 > 0 {
            // Whatever the outer run's agent started is ended with it, and a runner in the background is such a thing.
            return Err(Fault::new(
                FaultCode::RecursionRefused,
                "a consult inside a consult cannot go on in the background: when the outer one ends, everything it \
                 started is ended with it.",
            )
            .hint("Ask without `background`, and wait for the answer."));
        }
        let wait = wait_s.map(Duration::from_secs);
        let keyed = |agent: &str| match (&request_key, agents.len()) {
            (Some(key), 2..) => Some(format!("{key}/{agent}")),
            (key, _) => key.clone(),
        };
        let each = agents.iter().zip(places).map(|(agent, (cwd, workspace, machine))| ConsultOptions {
            request: ConsultRequest {
                prompt: prompt.clone(),
                cwd,
                machine,
                agent: agent.clone(),
                session_id,
                max_turns: max_turns.and_then(|turns| u32::try_from(turns).ok()),
                model: model.clone(),
                effort: effort.map(str::to_owned),
                timeout_s,
                max_budget_usd,
                billing: self.config.billing,
                diff: diff.clone(),
            },
            background,
            wait,
            request_key: keyed(agent),
            workspace,
            given: given.clone(),
            placement,
        });
        Ok((each.collect(), shape))
    }

    /// Where it may run. What a call does not say is as configured, where this call can be one of the fleet's.
    fn placement(&self, args: &mut ArgumentReader, agents: &[String], given: &mut Vec<String>) -> Placement {
        let words = [("local", Placement::Local), ("fleet", Placement::Fleet), ("clone", Placement::Clone)];
        let away = agents.iter().any(|agent| self.config.agents.contains_key(agent));
        let fits = self.fleet.is_some() && agents.len() == 1 && !away;
        let Some(asked) = args.choice("placement", &words) else {
            let placement = self.config.fleet_placement;
            return if fits && placement == Placement::Fleet { placement } else { Placement::Local };
        };
        given.push(PLACED.to_owned());
        let wrong = match asked {
            Placement::Local => return asked,
            Placement::Clone => "is `clone`, which this version does not make",
            Placement::Fleet if self.fleet.is_none() => {
                "is `fleet`, and this server shares no queue (`fleet` of the configuration)"
            }
            Placement::Fleet if agents.len() > 1 => "is `fleet`, and several agents are asked",
            Placement::Fleet if away => "is `fleet`, and the agent has a machine of its own",
            Placement::Fleet => return asked,
        };
        let accepted = if fits { "`local` or `fleet`" } else { "`local`" };
        args.problem("placement", wrong, accepted);
        Placement::Local
    }

    /// The agents of a consult of several: all of them known, none of them twice.
    fn several(&self, args: &mut ArgumentReader, one: bool, resumes: bool) -> Option<Vec<String>> {
        let accepted = || {
            let known: Vec<String> = self.agents.iter().map(|name| format!("`{name}`")).collect();
            format!("{} to {} different ones of {}", SEVERAL.start(), SEVERAL.end(), known.join(", "))
        };
        let agents = args.list("agents")?;
        for (wrong, name) in [(one, "agent"), (resumes, "session_id")] {
            if wrong {
                // A session is one agent's.
                args.problem("agents", format_args!("is given together with `{name}`"), "one of the two");
            }
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = agents.iter().find(|agent| !seen.insert(agent.as_str())) {
            args.problem("agents", format_args!("has {:?} twice", shortened(twice)), accepted());
        } else if !SEVERAL.contains(&agents.len()) {
            let wrong = format!("has {} name{}", agents.len(), if agents.len() == 1 { "" } else { "s" });
            args.problem("agents", wrong, accepted());
        }
        for agent in seen.into_iter().take(*SEVERAL.end()) {
            self.known(args, "agents", agent);
        }
        Some(agents)
    }

    /// The diff of the repository around the directory of these agents, and what it is compared with.
    async fn diff(
        &self,
        base: String,
        agents: &[String],
        places: &[(PathBuf, PathBuf, Option<String>)],
        caller: Caller,
        args: &mut ArgumentReader,
    ) -> Option<(String, String)> {
        if let Some(away) = agents.iter().find(|agent| self.config.agents.contains_key(*agent)) {
            let wrong = format!("is made on this machine, and {away:?} looks at a directory of another one");
            args.problem("diff", wrong, "no `diff` with such an agent");
            return None;
        }
        // All of them look at the same directory.
        let dir = places.first().map(|(_, workspace, _)| workspace.clone())?;
        let missing = DiffRefused::NoRepository(dir.clone());
        let refused = match self.repository(dir, caller).await {
            Ok(None) => missing,
            Err((wrong, accepted)) => {
                args.problem("diff", format_args!("is of the whole repository, whose root {wrong}"), accepted);
                return None;
            }
            Ok(Some((root, None))) => {
                tracing::debug!(root = %root.display(), "there is no git for a diff");
                DiffRefused::NoGit
            }
            Ok(Some((root, Some(git)))) => match diff::taken(&git, &root, &base).await {
                Ok(text) => return Some((base, text)),
                Err(refused) => refused,
            },
        };
        args.problem("diff", &refused, refused.accepted());
        None
    }

    /// The repository around a directory, where its caller may have all of it looked into, and the git to be asked about it.
    async fn repository(&self, dir: PathBuf, caller: Caller) -> Result<Option<(PathBuf, Option<Git>)>, Wrong> {
        let unseen = |wrong| (wrong, DIRECTORY);
        let root = within(LOOK_BOUND, move || Ok(diff::root_of(&dir))).await.map_err(unseen)?;
        let Some(root) = root else { return Ok(None) };
        let root = self.place(root, caller).await?;
        let context = match caller {
            Caller::Owner => Some(Arc::clone(self.callers.host())),
            Caller::Client(session) => self.callers.of(session),
        };
        let Some(context) = context else { return Ok(Some((root, None))) };
        let look = move || {
            let environment = &context.environment;
            let git = Git::find(environment.get("PATH"), environment.get("HOME"), &root);
            Ok(Some((root, git)))
        };
        within(LOOK_BOUND, look).await.map_err(unseen)
    }

    /// Says so where there is no such agent.
    fn known(&self, args: &mut ArgumentReader, argument: &str, agent: &str) {
        if let Err(fault) = self.agents.check(agent) {
            let verb = if argument == "agents" { "has" } else { "is" };
            let hint = fault.hint.unwrap_or_default();
            let known = hint.trim_start_matches("Agents: ").trim_end_matches('.');
            args.problem(argument, format_args!("{verb} {:?}, which is no agent", shortened(agent)), known);
        }
    }

    /// Says so where a session is none this agent could go on with.
    fn resumes(&self, args: &mut ArgumentReader, agent: &str, session: Option<AgentSessionId>) {
        let (Some(id), Some(sessions)) = (session, self.agents.sessions(agent)) else { return };
        if *sessions == SessionIds::NotKept {
            args.problem(
                "session_id",
                format_args!("is given, and `{agent}` keeps no sessions"),
                "none with this agent",
            );
        } else if !sessions.have(&id) {
            let accepted =
                format!("the `session_id` of an earlier reply of this agent; its ids are {}", sessions.told());
            args.problem("session_id", format_args!("is \"{id}\", which is no session of `{agent}`"), accepted);
        }
    }

    /// Checks a request an embedding program made, by the same rules.
    ///
    /// # Errors
    ///
    /// As [`Consults::read`].
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is changed.
    pub async fn check(&self, request: &ConsultRequest, mode: JobMode) -> Result<ConsultOptions, Fault> {
        if request.cwd.to_str().is_none() {
            return Err(Fault::new(
                FaultCode::InvalidInput,
                "`cwd` is not UTF-8; accepted: a directory whose path is.",
            ));
        }
        let mut arguments = serde_json::json!(request);
        if let Some(arguments) = arguments.as_object_mut() {
            // Who pays is no argument of the tool: only the program that embeds us, or its configuration, may say.
            arguments.remove("billing");
            arguments.remove("machine");
            // One that was made stands in the prompt already.
            arguments.remove("diff");
            arguments.insert("background".to_owned(), serde_json::Value::Bool(mode == JobMode::Background));
        }
        let (mut options, _) = self.read(arguments.to_string().as_bytes(), None, Caller::Owner).await?;
        options.request.billing = request.billing;
        options.request.diff.clone_from(&request.diff);
        Ok(options)
    }

    /// How long a caller is kept waiting: as long as it asked for, else as long as suits its client. The second is the time
    /// after which that client was seen to give up, where the wait is shorter for it.
    pub(super) fn wait(&self, asked: Option<Duration>, client: Option<&str>) -> (Duration, Option<Duration>) {
        match asked {
            Some(asked) => (asked, None),
            None => (self.clients.profile(client).wait, self.clients.shortened_by(client)),
        }
    }

    /// The directory a consult runs in, as given, else where the server runs, else the one root of its client, never a guess;
    /// and the same made canonical.
    async fn directory(
        &self,
        given: Option<String>,
        caller: Caller,
        args: &mut ArgumentReader,
    ) -> Option<(PathBuf, PathBuf)> {
        let missing = given.is_none();
        let dir = match (given, &self.default_cwd) {
            (Some(given), _) => PathBuf::from(given),
            (None, Some(dir)) => dir.clone(),
            (None, None) => match self.only_root(caller).await {
                Some(root) => root,
                None => {
                    let wrong = match self.origin {
                        CallerOrigin::Host => "is missing, and this server was started in / or in the home directory",
                        CallerOrigin::Caller => "is missing, and this session works in / or in the home directory",
                        CallerOrigin::Base => "is missing, and this connection has told no directory of its own",
                    };
                    args.problem("cwd", wrong, DIRECTORY);
                    return None;
                }
            },
        };
        let looked = match dir.to_str() {
            Some(_) => self.place(dir.clone(), caller).await,
            None => Err(("is not UTF-8", "a directory whose path is")),
        };
        match looked {
            Ok(workspace) => Some((dir, workspace)),
            Err((wrong, accepted)) if missing => {
                let dir = match self.origin {
                    CallerOrigin::Host => "the directory this server was started in",
                    CallerOrigin::Caller | CallerOrigin::Base => "the directory of this session",
                };
                let wrong = format!("is missing, and {dir} {wrong}");
                args.problem("cwd", wrong, accepted);
                None
            }
            Err((wrong, accepted)) => {
                args.problem("cwd", wrong, accepted);
                None
            }
        }
    }

    /// The root of a client that has one.
    async fn only_root(&self, caller: Caller) -> Option<PathBuf> {
        let Caller::Client(session) = caller else { return None };
        let mut roots = self.roots_of(session).await;
        roots.pop().filter(|_| roots.is_empty())
    }

    /// The job a consult becomes.
    #[must_use]
    pub fn job(&self, options: &ConsultOptions, invocation: Option<InvocationId>) -> NewJob {
        NewJob {
            id: JobId::random(),
            invocation,
            request_key: options.request_key.clone(),
            // Where it may run is nothing of the request.
            given: Some(options.given.iter().filter(|name| *name != PLACED).cloned().collect()),
            workspace: options.workspace.clone(),
            mode: if options.background { JobMode::Background } else { JobMode::Sync },
            request: options.request.clone(),
            chain: self.nesting.0.unwrap_or_else(ChainId::random),
            depth: self.nesting.1,
            accepted_at: UnixMillis::now(),
            environment: None,
            account: String::new(),
            host: None,
        }
    }

    /// What a reply about this job says beyond its record.
    pub async fn context(&self, record: &JobRecord, follow: Option<&Follow>) -> Context {
        let left_out = self.config.left_out.clone();
        let unread = self.unread(&record.workspace, &[record.id]).await;
        Context { left_out, environment: self.origin, unread, ..self.standing(record, follow).await }
    }

    /// Finished jobs of a workspace that nobody has read, without those that are told of anyway.
    pub(super) async fn unread(&self, workspace: &Path, told: &[JobId]) -> Vec<JobId> {
        let mut unread = self.jobs.unread(workspace.to_owned()).await.unwrap_or_default();
        unread.retain(|job| !told.contains(job));
        unread
    }

    /// How a job stands, beyond its record.
    pub(super) async fn standing(&self, record: &JobRecord, follow: Option<&Follow>) -> Context {
        let mut context = Context::default();
        if !record.state.is_terminal() {
            context.place = self.jobs.queue_place(record.id).await.unwrap_or_default();
            let live = match follow {
                Some(follow) => follow.glimpse().await,
                None => None,
            };
            match live {
                Some(live) => {
                    context.phase = Some(live.phase);
                    context.text_so_far = live.text;
                }
                None => context.phase = follow.map(Follow::describe),
            }
        }
        context
    }
}

fn shortened(name: &str) -> String {
    name.chars().take(40).collect()
}

/// Reads `render` and `detail`.
pub(crate) fn shape(args: &mut ArgumentReader, profile: ClientProfile) -> Shape {
    let shape = Shape {
        render: args.choice("render", &RENDER).unwrap_or(Render::Porcelain),
        detail: args.choice("detail", &DETAIL).unwrap_or(Detail::Concise),
        budget: profile.response_chars,
        structured: true,
    };
    Shape { structured: profile.structured == Structured::Always || shape.render == Render::Json, ..shape }
}

/// The tool.
pub struct ConsultTool {
    desk: Consults,
}

impl ConsultTool {
    /// The tool over these jobs.
    #[must_use]
    pub fn new(desk: Consults) -> Self {
        Self { desk }
    }

    /// The schema of the arguments, with the agents this system has.
    fn schema(&self) -> serde_json::Value {
        let mut schema = super::readers::schema::<ConsultArguments>();
        if let Some(agent) = schema.pointer_mut("/properties/agent").and_then(serde_json::Value::as_object_mut) {
            agent.insert("enum".to_owned(), serde_json::json!(self.desk.agents.iter().collect::<Vec<_>>()));
        }
        if let Some(items) = schema.pointer_mut("/properties/agents").and_then(serde_json::Value::as_object_mut) {
            items.insert("minItems".to_owned(), serde_json::json!(SEVERAL.start()));
            items.insert("maxItems".to_owned(), serde_json::json!(SEVERAL.end()));
        }
        if self.desk.fleet.is_none()
            && let Some(all) = schema.pointer_mut("/properties").and_then(serde_json::Value::as_object_mut)
        {
            // There is one place.
            all.remove("placement");
        }
        let away: Vec<&str> = self.desk.config.agents.keys().map(String::as_str).take(SITES_TOLD).collect();
        if !away.is_empty()
            && let Some(cwd) = schema.pointer_mut("/properties/cwd").and_then(serde_json::Value::as_object_mut)
        {
            let told = format!("{CWD_TOLD} Of agents on other machines ({}): a directory there.", away.join(", "));
            cwd.insert("description".to_owned(), serde_json::Value::String(told));
        }
        schema
    }
}

impl Tool for ConsultTool {
    fn name(&self) -> &str {
        "consult"
    }

    fn definition(&self) -> ToolDefinition {
        ToolDefinition {
            name: "consult".to_owned(),
            title: "Consult another coding agent".to_owned(),
            description: "Ask another coding agent for a second opinion: it reads (never writes) the directory and \
                          answers. For reviews, stuck bugs and risky designs, not for what you can look up yourself. \
                          A long consult comes back as a running job."
                .to_owned(),
            input_schema: self.schema(),
            annotations: Annotations { read_only: true, destructive: false, idempotent: false, open_world: true },
            meta: Some(super::readers::size_hint(&self.desk)),
        }
    }

    fn contract(&self) -> ReplayContract {
        ReplayContract::ProbeRequired
    }

    fn tasks(&self) -> TaskSupport {
        // A task is one job.
        TaskSupport::OptionalWithout("agents")
    }

    fn waits(&self) -> bool {
        true
    }

    fn deadline(&self) -> Option<Duration> {
        // The soft deadline bounds it; this one is for a call that does not come so far.
        Some(Duration::from_secs(WAIT_MOST + 60))
    }

    fn call(&self, call: ToolCall) -> ToolFuture {
        let desk = self.desk.of(Caller::Client(call.invocation.session)).map(Cow::into_owned);
        Box::pin(async move { consult(&desk?, call).await })
    }

    fn probe(&self, invocation: InvocationId) -> ProbeFuture {
        let jobs = self.desk.jobs.clone();
        Box::pin(async move {
            // One job, or one for each agent. Another attempt joins those that are there and has the others accepted.
            let parts = several::parts(invocation, *SEVERAL.end());
            for asked in std::iter::once(invocation).chain(parts) {
                match jobs.find_invocation(asked).await {
                    Ok(Some(_)) => return Evidence::Accepted,
                    Ok(None) => {}
                    Err(fault) => {
                        tracing::warn!(%fault, "the store could not say whether a consult was accepted");
                        return Evidence::Unknown;
                    }
                }
            }
            Evidence::NotAccepted
        })
    }
}

async fn consult(desk: &Consults, call: ToolCall) -> Result<ToolReply, Fault> {
    let client = call.client.name();
    let client = client.as_deref();
    let caller = Caller::Client(call.invocation.session);
    let (mut each, shape) = desk.read_each(&call.arguments, client, caller).await?;
    if each.len() > 1 {
        return Ok(several::consult(desk, &call, &each, shape).await);
    }
    let options = each.remove(0);
    if let (Placement::Fleet, Some(fleet)) = (options.placement, &desk.fleet) {
        return placed::consult(desk, fleet, &call, options, shape).await;
    }
    let job = desk.job(&options, Some(call.invocation));
    let caller = (!options.background).then_some(call.invocation);
    let accepted = desk.jobs.accept(job, caller).await?;
    let mut record = accepted.record;
    // Another attempt at the same call joins its own job, which is nothing to be told.
    let joined = accepted.joined && options.is_keyed_by_caller() && call.evidence.is_none();
    if record.state.is_terminal() {
        let context = Context { joined, ..desk.context(&record, None).await };
        return Ok(reply::job(&record, &context, shape));
    }
    let id = record.id;
    let mut follow = desk.jobs.follow(id).await.map_err(|fault| fault.job(id))?;
    if options.background {
        if record.mode == JobMode::Sync {
            // It joined a job somebody else waits for; from now on it must not depend on them.
            hand_over(desk, record.id).await?;
            record.mode = JobMode::Background;
        }
        let context = desk.context(&record, Some(&follow)).await;
        return Ok(reply::job(&record, &context, shape));
    }
    let (wait, gave_up_after) = desk.wait(options.wait, client);
    // An attempt after a lost worker waits for the rest only; a caller who joins another's job waits its own time.
    let again = call.evidence.is_some();
    let waited = Duration::from_millis(if again { UnixMillis::now().since(record.accepted_at) } else { 0 });
    let began = Instant::now().checked_sub(waited).unwrap_or_else(Instant::now);
    let mut watch = Watch::new(&call, desk, began);
    let over = watch.until(&mut follow, wait.saturating_sub(waited), Until::Finished).await;
    match over.map_err(|fault| fault.job(id))? {
        Waited::Over(record) => {
            let context = Context { joined, ..desk.context(&record, None).await };
            Ok(reply::job(&record, &context, shape))
        }
        Waited::Unstored(record) => Ok(unstored(desk, &record, shape).await),
        Waited::Lapsed => {
            hand_over(desk, id).await?;
            let record = desk.jobs.record(id).await.map_err(|fault| fault.job(id))?;
            if record.state.is_terminal() {
                return Ok(finished(desk, &record, shape).await);
            }
            let context = Context { handed_over: true, gave_up_after, ..desk.context(&record, Some(&follow)).await };
            Ok(reply::job(&record, &context, shape))
        }
    }
}

/// Lets a job go on without its caller; a store that is busy for a moment is asked again.
pub(super) async fn hand_over(desk: &Consults, job: JobId) -> Result<(), Fault> {
    let mut tries = 0;
    loop {
        match desk.jobs.hand_over(job).await {
            Ok(()) => return Ok(()),
            Err(fault) if tries < 3 && fault.retryable => tries += 1,
            Err(fault) => return Err(fault.job(job)),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The reply about a job that is over.
pub(super) async fn finished(desk: &Consults, record: &JobRecord, shape: Shape) -> ToolReply {
    let context = desk.context(record, None).await;
    reply::job(record, &context, shape)
}

/// The reply about a run that is over whose outcome the store does not take: who waits gets the answer all the same.
pub(super) async fn unstored(desk: &Consults, record: &JobRecord, shape: Shape) -> ToolReply {
    let context = Context { unstored: true, ..desk.context(record, None).await };
    reply::job(record, &context, shape)
}

/// How a wait ended.
pub(super) enum Waited {
    /// The job is over.
    Over(Arc<JobRecord>),
    /// Its run is over, and the store does not take the outcome.
    Unstored(Arc<JobRecord>),
    /// The time is up, or something happened.
    Lapsed,
}

/// What ends a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The job is over.
    Finished,
    /// The job is over, or something happened.
    Anything,
}

/// A wait for news of a job, with progress reports on its own clock.
pub(super) struct Watch<'a> {
    progress: &'a ToolCall,
    began: Instant,
    /// Kept from one wait to the next: news that come thick and fast put off no report.
    ticks: tokio::time::Interval,
}

impl<'a> Watch<'a> {
    /// One for this call, which has waited since `began`.
    pub(super) fn new(progress: &'a ToolCall, desk: &Consults, began: Instant) -> Self {
        let profile = desk.clients.profile(progress.client.name().as_deref());
        let mut ticks = tokio::time::interval(profile.progress);
        ticks.reset();
        Self { progress, began, ticks }
    }

    /// Waits.
    pub(super) async fn until(&mut self, follow: &mut Follow, wait: Duration, until: Until) -> Result<Waited, Fault> {
        let lapse = tokio::time::sleep(wait);
        tokio::pin!(lapse);
        loop {
            tokio::select! {
                news = follow.next() => match news? {
                    News::Finished(record) => return Ok(Waited::Over(record)),
                    News::Unstored(record) => return Ok(Waited::Unstored(record)),
                    News::Changed if until == Until::Anything => return Ok(Waited::Lapsed),
                    News::Changed => {}
                },
                () = &mut lapse => return Ok(Waited::Lapsed),
                _ = self.ticks.tick(), if self.progress.progress.is_wanted() => self.report(follow),
            }
        }
    }

    fn report(&self, follow: &Follow) {
        let elapsed = self.began.elapsed();
        let message = format!("{}, {} s", follow.describe(), elapsed.as_secs());
        self.progress.progress.report(elapsed.as_secs_f64().round(), message);
    }
}

/// A directory a consult may run in without being named: not the root, not the user's home.
#[must_use]
pub fn default_cwd(current: Option<&Path>, home: Option<&Path>) -> Option<PathBuf> {
    current.filter(|dir| dir.is_absolute() && dir.parent().is_some() && Some(*dir) != home).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_the_directory_is_said_in_one_place() {
        let schema = crate::tools::readers::schema::<ConsultArguments>();
        assert_eq!(schema.pointer("/properties/cwd/description").and_then(serde_json::Value::as_str), Some(CWD_TOLD));
    }

    #[tokio::test]
    async fn a_look_that_hangs_is_told_and_holds_nobody_up() {
        let (release, hanging) = std::sync::mpsc::channel::<()>();
        let hung = within(Duration::from_millis(50), move || hanging.recv().map_err(|_| "released")).await;
        assert_eq!(hung, Err("does not answer: its file system hangs"));
        drop(release);
        assert_eq!(within(LOOK_BOUND, || Ok(7)).await, Ok(7));
        assert_eq!(look_at(PathBuf::from("/no/such")).await, Err("does not exist"));
    }
}
