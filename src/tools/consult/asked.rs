//! What a consult's caller asks for: its arguments, read and checked, and the job they become.
//!
//! Owns: what each argument means, its defaults, and what is refused. May not know: who waits, what a reply says.
//!
//! Nothing is started while anything is wrong with the arguments.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::looking::{LOOK_BOUND, within};
use super::{Consults, SEVERAL, WAIT_MOST};
use crate::agents::{MAX_PROMPT_BYTES, SessionIds};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{AgentSessionId, ChainId, InvocationId, JobId, UnixMillis};
use crate::base::lenient;
use crate::config::clients::{ClientProfile, Structured};
use crate::fleet::Placement;
use crate::jobs::{AskedDiff, ConsultRequest, JobMode, NewJob};
use crate::tools::arguments::ArgumentReader;
use crate::tools::callers::CallerOrigin;
use crate::tools::diff::{self, DiffRefused, Git};
use crate::tools::grounds::{Caller, DIRECTORY, Wrong};
use crate::tools::reply::{DETAIL, Detail, RENDER, Render, Shape};

/// Depth at which a nested consult is refused: an agent may ask another one, which may not ask a third.
const DEPTH_REFUSED: u32 = 2;

/// The options whose defaults are no words of the caller: two calls with one `request_key` are the same when they name the
/// same ones alike. The directory is not among them: keys are the workspace's.
const FROZEN: [&str; 8] =
    ["agent", "session_id", "max_turns", "model", "effort", "timeout_s", "max_budget_usd", "diff"];

/// What is noted of a call that said its placement itself.
const PLACED: &str = "placement";

/// A consult's arguments, read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Whether a clone has what is not committed.
    pub with_changes: bool,
}

/// What begins the keys that a bridge gives consults whose callers named none. It may so be sent again after its daemon was
/// lost; to its caller it is the consult that caller began, and another key is nothing it could use.
pub const KEY_OF_BRIDGE: &str = "phone-opus-bridge:";

impl ConsultOptions {
    /// The options of the request that its caller named itself. Where it may run is nothing of the request.
    pub(in crate::tools) fn named(&self) -> Vec<String> {
        self.given.iter().filter(|name| *name != PLACED).cloned().collect()
    }

    /// Whether its caller said itself where it may run.
    pub(in crate::tools) fn is_placed_by_caller(&self) -> bool {
        self.given.iter().any(|name| name == PLACED)
    }

    /// Whether its caller named a key itself.
    pub(in crate::tools) fn is_keyed_by_caller(&self) -> bool {
        self.request_key.as_ref().is_some_and(|key| !key.starts_with(KEY_OF_BRIDGE))
    }
}

impl Consults {
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

    /// The same for who waits by [`placed`](crate::tools::placed) where the consult may run elsewhere.
    ///
    /// # Errors
    ///
    /// As [`Consults::read`].
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is changed.
    pub async fn read_placed(&self, arguments: &[u8], caller: Caller) -> Result<ConsultOptions, Fault> {
        let (mut each, _) = self.read_each(arguments, None, caller).await?;
        match (each.pop(), each.is_empty()) {
            (Some(only), true) => Ok(only),
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
        let with_changes = args.boolean("changes").unwrap_or(false);
        if with_changes && placement != Placement::Clone {
            args.problem("changes", "is true, and `placement` is not `clone`", "`placement` = `clone` beside it");
        }
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
                clone_of: None,
            },
            background,
            wait,
            request_key: keyed(agent),
            workspace,
            given: given.clone(),
            placement,
            with_changes,
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
            return if fits { placement } else { Placement::Local };
        };
        given.push(PLACED.to_owned());
        if asked == Placement::Local || fits {
            return asked;
        }
        let word = if asked == Placement::Clone { "clone" } else { "fleet" };
        let wrong = if self.fleet.is_none() {
            "this server shares no queue (`fleet` of the configuration)"
        } else if agents.len() > 1 {
            "several agents are asked"
        } else {
            "the agent has a machine of its own"
        };
        args.problem("placement", format_args!("is `{word}`, and {wrong}"), "`local`");
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
    pub(in crate::tools) async fn repository(
        &self,
        dir: PathBuf,
        caller: Caller,
    ) -> Result<Option<(PathBuf, Option<Git>)>, Wrong> {
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
            arguments.remove("clone_of");
            arguments.insert("background".to_owned(), serde_json::Value::Bool(mode == JobMode::Background));
        }
        let (mut options, _) = self.read(arguments.to_string().as_bytes(), None, Caller::Owner).await?;
        options.request.billing = request.billing;
        options.request.diff.clone_from(&request.diff);
        options.request.clone_of.clone_from(&request.clone_of);
        Ok(options)
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
            given: Some(options.named()),
            workspace: options.workspace.clone(),
            mode: if options.background { JobMode::Background } else { JobMode::Sync },
            request: options.request.clone(),
            chain: self.nesting.0.unwrap_or_else(ChainId::random),
            depth: self.nesting.1,
            accepted_at: UnixMillis::now(),
            environment: None,
            account: String::new(),
            host: None,
            trace: None,
        }
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
