//! The agents that are programs of others, found on this machine and run from the command line.
//!
//! Owns: everything that is the same for them ([`CliAgent`]): where a program is looked for, how it is asked what it can do, what
//! of the environment it is given, what it is run with here and on another machine, who pays. What is one agent's own is its
//! [`Sheet`], which stands in that agent's file. May not know any agent by name.
//!
//! Invariants: (1) an agent that cannot be kept to reading is not started; (2) what is known of who pays before the start is
//! compared before the start.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use sha2::{Digest as _, Sha256};

use super::classify::AgentProfile;
use super::environment::{self, Granted, Passes};
use super::probe::{self, Asked, Features, Questions};
use super::there::{self, AskedThere, There};
use super::{
    Agent, AgentCommand, AgentEvent, Credential, Environment, KNOWN, OutputParser, PayerKnown, Payment, ResumedId,
    RunRequest, SITE_AGENTS, check_prompt, programs,
};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{AgentSessionId, RunToken};
use crate::exec::ExecTarget;
use crate::exec::local::DESCRIPTORS_VARIABLE;
use crate::jobs::{Billing, ConsultRequest};

/// The fixed line before every prompt.
///
/// Agents take a prompt that begins with `/` for one of their own commands, or attach what `@` names; behind any text it is text.
/// The line also says what nobody else tells the agent: that only its last message is read.
pub const PROMPT_PREFIX: &str = "Another coding agent asks for your opinion. You can read but not change files here, \
     and only your final message is passed on, so put the whole answer there. The request:\n\n";

/// Characters of a model or effort name; real ones have under 60.
const MAX_NAME_CHARS: usize = 128;

/// Where phone-opus keeps what was asked on another machine: nothing says it here, so it is the usual place.
const STATE_THERE: &str = "~/.local/state/phone_opus";

/// Everything that is one agent's own, but for how its output is read.
pub(super) struct Sheet {
    /// The name callers use, and that of its program.
    pub(super) name: &'static str,
    /// The variable that names its program where the configuration names none.
    pub(super) variable: &'static str,
    /// What is said of it, and how it says that it has answered.
    pub(super) profile: AgentProfile,
    /// What is asked of its program.
    pub(super) questions: &'static Questions,
    /// What of the environment passes to it.
    pub(super) passes: &'static Passes,
    /// Set for every run, over whatever the host has.
    pub(super) own_variables: &'static [(&'static str, &'static str)],
    /// Set to nothing where nothing of it is handed on: what it would otherwise take from a file of the project's.
    pub(super) blanked: &'static [&'static str],
    /// Settings in a file of ours that go over the user's, where it reads such a file.
    pub(super) held_to: Option<&'static HeldTo>,
    /// What it is run with.
    pub(super) arguments: fn(&Invocation<'_>) -> Vec<OsString>,
    /// What a request may not ask of it, and what of an environment it would misread.
    pub(super) check: fn(&ConsultRequest, &Environment) -> Result<(), Fault>,
    /// By which id it goes on with a session.
    pub(super) resumed_id: fn(&Features) -> ResumedId,
    /// The option that gives a new session its id, of an agent that says it at its end only. A run that is cut off is gone on with
    /// all the same.
    pub(super) session_option: Option<&'static str>,
    /// How its program says where a session was had, of an agent that goes on with one in that directory only and does not say so.
    pub(super) session_place: Option<SessionPlace>,
    /// A parser for one run's output.
    pub(super) parser: fn() -> Box<dyn OutputParser>,
    /// From where it is known who pays.
    pub(super) payer: PayerKnown,
    /// Whether a run that introduced itself so may go on.
    pub(super) check_start: fn(&AgentEvent, Payment) -> Result<(), Fault>,
    /// How it is found out whether it is logged in.
    pub(super) login: Login,
}

/// How a program is asked where a session was had.
pub(super) struct SessionPlace {
    /// The words before the session's id.
    pub(super) words: &'static [&'static str],
    /// The directory, out of what it says to that. It may be cut off.
    pub(super) read: fn(&str) -> Option<PathBuf>,
}

/// How long the program may take to say where a session was had. OpenCode 1.18 takes three seconds on a busy machine; when it says
/// nothing, the run is started all the same.
const SESSION_PLACE_WITHIN: Duration = Duration::from_secs(20);

/// Settings an agent is held to by a file.
pub(super) struct HeldTo {
    /// The variable that names the file.
    pub(super) variable: &'static str,
    /// Its name, in the state directory.
    pub(super) file: &'static str,
    /// What is in it.
    pub(super) content: &'static str,
    /// Where an administrator keeps such a file, which is not to be displaced.
    pub(super) unless: &'static [&'static str],
}

impl HeldTo {
    /// The file, which is made where it is not there as it should be. `None` where an administrator's stands in its place.
    fn written(&self, state_dir: &Path) -> io::Result<Option<PathBuf>> {
        if self.unless.iter().any(|theirs| Path::new(theirs).exists()) {
            return Ok(None);
        }
        let directory = state_dir.join("agents");
        let file = directory.join(self.file);
        if fs::read(&file).is_ok_and(|content| content == self.content.as_bytes()) {
            return Ok(Some(file));
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        // Beside it and then renamed: another run may be reading it.
        let beside = directory.join(format!("{}.tmp", uuid::Uuid::new_v4()));
        let mut new = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        let written = new.write_all(self.content.as_bytes()).and_then(|()| fs::rename(&beside, &file));
        if written.is_err() {
            // Nothing can be done about a leftover; the error itself is what is reported.
            let _ = fs::remove_file(&beside);
        }
        written.map(|()| Some(file))
    }
}

/// What an agent is run with is made of.
pub(super) struct Invocation<'a> {
    /// What was asked.
    pub(super) request: &'a ConsultRequest,
    /// What its program can do.
    pub(super) features: &'a Features,
    /// Where phone-opus keeps what others asked, on the machine it runs on.
    pub(super) state_dir: &'a Path,
    /// The id a new session is given.
    pub(super) new_session: Option<AgentSessionId>,
}

impl Invocation<'_> {
    /// Whether its program can do this.
    pub(super) fn has(&self, name: &str) -> bool {
        self.features.has(name)
    }
}

/// How it is found out whether an agent is logged in, and by what.
pub(super) enum Login {
    /// Its program says it to these words.
    Asked(&'static [&'static str], fn(&str) -> LoginSaid),
    /// It is seen in its own files. Then a run that would be paid for otherwise than was chosen is not started.
    Seen(fn(&Environment) -> LoginSaid),
}

/// Whether an agent is logged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginSaid {
    /// By an account whose plan pays.
    Plan,
    /// By a key of its own, which pays by the token.
    Key,
    /// By something it does not name.
    Somehow,
    /// It is not.
    No,
    /// Nobody says.
    Unsaid,
}

/// An agent that is a program of its own, as its maker ships it: `claude`, `codex` and the like. Found on PATH unless a path is
/// configured.
///
/// ```
/// use std::sync::Arc;
/// use phone_opus::{AgentRegistry, CliAgent};
///
/// let codex = CliAgent::named("codex").expect("known").at(Some("/opt/codex/bin/codex".into()));
/// let agents = AgentRegistry::new().with(Arc::new(codex.with_variables(["MY_PROXY".to_owned()])));   // for `SystemBuilder::agents`
/// assert_eq!(agents.names(), ["codex"]);
/// assert!(CliAgent::named("oracle").is_none());
/// ```
#[derive(Clone)]
pub struct CliAgent {
    sheet: &'static Sheet,
    configured: Option<PathBuf>,
    /// The names of variables the user has handed on besides those that always are.
    variables: Vec<String>,
}

impl CliAgent {
    /// The agent of this name, if there is one.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        KNOWN.iter().find(|sheet| sheet.name == name).map(|sheet| Self::of(sheet))
    }

    /// All of them, in the order they are told.
    #[doc(hidden)]
    pub fn all() -> impl Iterator<Item = Self> {
        KNOWN.iter().map(|sheet| Self::of(sheet))
    }

    pub(super) const fn of(sheet: &'static Sheet) -> Self {
        Self { sheet, configured: None, variables: Vec::new() }
    }

    /// The same at the configured path, if any. It goes before the variable of the run's environment that names it, which is
    /// `PHONE_OPUS_CODEX_BIN` for `codex`.
    #[must_use]
    pub fn at(self, configured: Option<PathBuf>) -> Self {
        Self { configured, ..self }
    }

    /// The same, which is also handed these variables (`agent_env` of the configuration). Names that can spend money are
    /// left out whoever names them, and so is what another agent is logged in by.
    #[must_use]
    pub fn with_variables(self, variables: impl IntoIterator<Item = String>) -> Self {
        Self { variables: variables.into_iter().collect(), ..self }
    }

    /// What this program can do when it is called in this directory, as a consult finds it out and keeps it in `state_dir`: a
    /// consult does not ask again where all it uses is known to be there.
    /// Runs it with `--version`, and with `--help` where that is needed.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; what is under way is killed.
    #[doc(hidden)]
    pub async fn features(
        &self,
        program: &Path,
        environment: &Environment,
        billing: Billing,
        cwd: &Path,
        state_dir: &Path,
    ) -> Features {
        let env: Vec<_> = self.granted(environment, billing, program).env.into_iter().collect();
        probe::features(self.asked(program, &env, cwd, environment), state_dir).await
    }

    /// What of the program's options a consult would use and does without.
    #[must_use]
    #[doc(hidden)]
    pub fn missing(&self, features: &Features) -> Vec<&'static str> {
        features.missing(self.sheet.questions)
    }

    /// Whether it is logged in, asked as a consult would start it; a key that consults withhold is withheld.
    ///
    /// # Cancel safety
    ///
    /// As [`CliAgent::features`].
    #[doc(hidden)]
    pub async fn login(&self, program: &Path, environment: &Environment, billing: Billing, cwd: &Path) -> LoginSaid {
        match self.sheet.login {
            Login::Seen(seen) => seen(environment),
            Login::Asked(words, read) => {
                let env: Vec<_> = self.granted(environment, billing, program).env.into_iter().collect();
                let said = probe::answer(self.asked(program, &env, cwd, environment), words).await;
                said.map_or(LoginSaid::Unsaid, |said| read(&said))
            }
        }
    }

    /// Whether a consult with this request would be refused before anything is started for it.
    ///
    /// # Errors
    ///
    /// As [`Agent::prepare`] for what the request asks.
    #[doc(hidden)]
    pub fn check(&self, request: &ConsultRequest, environment: &Environment) -> Result<(), Fault> {
        check_request(request)?;
        (self.sheet.check)(request, environment)
    }

    /// The names of variables that it is logged in by or that pay for it, and of what belongs to those; a key comes first.
    #[doc(hidden)]
    pub fn secrets(&self) -> impl Iterator<Item = &'static str> {
        self.sheet.passes.secrets()
    }

    /// Those of them that switch to an account of a cloud provider.
    #[doc(hidden)]
    pub fn switches(&self) -> impl Iterator<Item = &'static str> {
        self.sheet.passes.clouds.iter().map(|(switch, _)| *switch)
    }

    /// Whether such a variable is to reach it, where there are the switches for all accounts.
    #[must_use]
    #[doc(hidden)]
    pub fn is_handed(&self, name: &str, billing: Billing) -> bool {
        self.sheet.passes.is_for(name, billing)
    }

    /// The first variable of its own that a key for it may be in.
    #[must_use]
    #[doc(hidden)]
    pub fn key(&self) -> Option<&'static str> {
        self.sheet.passes.keys.first().map(|(name, _)| *name)
    }

    /// The variable that names its program.
    #[must_use]
    #[doc(hidden)]
    pub fn variable(&self) -> &'static str {
        self.sheet.variable
    }

    /// Whether this environment holds a way to pay for it by the token.
    #[must_use]
    #[doc(hidden)]
    pub fn can_pay(&self, environment: &Environment) -> bool {
        self.sheet.passes.credential(environment) != Credential::Nothing
    }

    fn asked<'a>(
        &self,
        program: &'a Path,
        env: &'a [(OsString, OsString)],
        cwd: &'a Path,
        environment: &Environment,
    ) -> Asked<'a> {
        Asked { questions: self.sheet.questions, program, env, cwd, descriptors: descriptors(environment) }
    }

    fn granted(&self, environment: &Environment, billing: Billing, program: &Path) -> Granted {
        let mut granted = environment::for_agent(self.sheet.passes, environment, billing, &self.variables);
        self.set_own(&mut granted);
        if let Some(path) = programs::path_for(program, environment.get("PATH")) {
            granted.set("PATH", path);
        }
        granted
    }

    fn set_own(&self, granted: &mut Granted) {
        // It has no terminal, and neither have the programs it runs: what they say is read by a model.
        granted.set("NO_COLOR", "1");
        for (name, value) in self.sheet.own_variables {
            granted.set(name, *value);
        }
        for name in self.sheet.blanked {
            granted.env.entry(name.into()).or_default();
        }
    }

    /// What to run on another machine: of the caller's environment what may travel, of that machine's own the core.
    async fn prepare_there(
        &self,
        run: &RunRequest<'_>,
        there: &There<'_>,
        state_dir: &Path,
    ) -> Result<AgentCommand, Fault> {
        let (sheet, billing) = (self.sheet, run.request.billing);
        if !SITE_AGENTS.contains(&sheet.name) {
            // Files of this machine do that for some, and a look at the directory.
            let title = sheet.profile.title();
            let detail =
                format!("{title} is not run on another machine: what keeps it to reading is seen to on this one.");
            return Err(Fault::new(FaultCode::AgentUnsupported, detail)
                .hint(format!("On another machine these answer: {}.", SITE_AGENTS.join(", "))));
        }
        let mut granted = environment::for_there(sheet.passes, run.environment, billing, &self.variables).granted;
        self.set_own(&mut granted);
        granted.set_run(run);
        let mut env: Vec<_> = granted.env.clone().into_iter().collect();
        let asked = AskedThere { env: &env, cwd: &run.request.cwd };
        let resumes = run.request.session_id.is_some();
        let (program, features) =
            probe::for_a_run_there(there, sheet.questions, sheet.name, asked, state_dir, resumes).await?;
        there::set_path(&mut env, &program);
        self.command(run, program.program, env, &granted, &features, Path::new(STATE_THERE))
    }

    fn command(
        &self,
        run: &RunRequest<'_>,
        program: PathBuf,
        env: Vec<(OsString, OsString)>,
        granted: &Granted,
        features: &Features,
        state_dir: &Path,
    ) -> Result<AgentCommand, Fault> {
        let wanting = features.wanting(self.sheet.questions);
        if !wanting.is_empty() {
            return Err(self.cannot_be_kept_to_reading(&wanting, features));
        }
        let takes_id = run.request.session_id.is_none() && self.sheet.session_option.is_some_and(|it| features.has(it));
        let new_session = takes_id.then(|| session_of(run.token));
        let args = (self.sheet.arguments)(&Invocation { request: run.request, features, state_dir, new_session });
        Ok(AgentCommand {
            program,
            args,
            env,
            stdin: Bytes::from([PROMPT_PREFIX, &run.request.prompt].concat()),
            prompt_prefix_injected: true,
            key_withheld: granted.key_withheld,
            payment: Payment { billing: run.request.billing, credential: granted.credential },
            resumed_id: (self.sheet.resumed_id)(features),
            new_session,
        })
    }

    fn cannot_be_kept_to_reading(&self, wanting: &[&str], features: &Features) -> Fault {
        let title = self.sheet.profile.title();
        let version = features.version.as_deref().map_or_else(String::new, |version| format!(" ({version})"));
        let detail = format!(
            "The installed version of {title}{version} does not know {}, without which it cannot be kept to reading or understood.",
            wanting.join(", ")
        );
        Fault::new(FaultCode::AgentUnsupported, detail).hint(format!("Update {title}."))
    }

    /// Compares what is known of who pays with what was chosen, where it is known before the start.
    fn check_payer(&self, environment: &Environment, billing: Billing, credential: Credential) -> Result<(), Fault> {
        let Login::Seen(seen) = self.sheet.login else { return Ok(()) };
        if self.sheet.payer == PayerKnown::InStream {
            return Ok(());
        }
        let title = self.sheet.profile.title();
        let wrong = match (billing, credential, seen(environment)) {
            (Billing::Subscription, _, LoginSaid::Key) => Some((
                format!("Billing is `subscription`, but {title} is logged in with an API key, which would pay."),
                "Log in with a subscription, or set PHONE_OPUS_BILLING=api_key to pay by key.".to_owned(),
            )),
            (Billing::ApiKey, Credential::Nothing, LoginSaid::Plan) => Some((
                format!("Billing is `api_key`, but {title} would use its login."),
                format!("Set {} in the server's environment, or unset PHONE_OPUS_BILLING.", self.key_names()),
            )),
            _ => None,
        };
        match wrong {
            None => Ok(()),
            Some((detail, hint)) => Err(Fault::new(FaultCode::BillingMismatch, detail).hint(hint)),
        }
    }

    /// The variables a key for it may be in.
    #[must_use]
    #[doc(hidden)]
    pub fn key_names(&self) -> String {
        self.sheet.passes.keys.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" or ")
    }
}

impl std::fmt::Debug for CliAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CliAgent")
            .field("name", &self.sheet.name)
            .field("configured", &self.configured)
            .field("variables", &self.variables)
            .finish()
    }
}

/// The soft limit of descriptors a program is to have, where ours is not the one we were started with.
fn descriptors(environment: &Environment) -> Option<u64> {
    environment.get(DESCRIPTORS_VARIABLE)?.to_str()?.parse().ok()
}

impl Agent for CliAgent {
    fn name(&self) -> &str {
        self.sheet.name
    }

    fn profile(&self) -> AgentProfile {
        self.sheet.profile
    }

    fn locate(&self, env: &Environment) -> Result<PathBuf, Fault> {
        let (sheet, hint) = (self.sheet, self.sheet.profile.install());
        match (&self.configured, env.get(sheet.variable)) {
            // A flag goes before the variable, which the configuration has taken in already.
            (Some(configured), _) => programs::named(configured, "The configured path", env, hint),
            (None, Some(named)) => programs::named(Path::new(named), sheet.variable, env, hint),
            (None, None) => programs::find(OsStr::new(sheet.name), env).ok_or_else(|| {
                let detail = format!("`{}` was not found {}.", sheet.name, programs::searched(env));
                Fault::new(FaultCode::AgentMissing, detail).hint(hint)
            }),
        }
    }

    fn prepare<'a>(
        &'a self,
        run: &'a RunRequest<'a>,
        state_dir: &'a Path,
    ) -> BoxFuture<'a, Result<AgentCommand, Fault>> {
        async move {
            check_request(run.request)?;
            (self.sheet.check)(run.request, run.environment)?;
            if let Some(there) = &run.there {
                return self.prepare_there(run, there, state_dir).await;
            }
            let program = self.locate(run.environment)?;
            let mut granted = self.granted(run.environment, run.request.billing, &program);
            self.check_payer(run.environment, run.request.billing, granted.credential)?;
            if let Some(held_to) = self.sheet.held_to {
                let failed = |error: io::Error| {
                    let detail = format!(
                        "the settings {} is held to could not be written: {error}.",
                        self.sheet.profile.title()
                    );
                    Fault::new(FaultCode::StoreUnavailable, detail)
                };
                if let Some(file) = held_to.written(state_dir).map_err(failed)? {
                    granted.set(held_to.variable, file);
                }
            }
            // A probe bears the run's marks as well: if we are killed, it is found by them.
            granted.set_run(run);
            let env: Vec<_> = granted.env.clone().into_iter().collect();
            let asked = self.asked(&program, &env, &run.request.cwd, run.environment);
            let features = probe::for_a_run(asked, state_dir, run.request.session_id.is_some()).await;
            self.command(run, program.clone(), env.clone(), &granted, &features, state_dir)
        }
        .boxed()
    }

    fn session_place<'a>(&'a self, run: &'a RunRequest<'a>) -> BoxFuture<'a, Option<PathBuf>> {
        async move {
            let (asks, session) = (self.sheet.session_place.as_ref()?, run.request.session_id?);
            // Where a project brings it code it is not started.
            if run.there.is_some() || (self.sheet.check)(run.request, run.environment).is_err() {
                return None;
            }
            let program = self.locate(run.environment).ok()?;
            let mut granted = self.granted(run.environment, run.request.billing, &program);
            granted.set_run(run);
            let env: Vec<_> = granted.env.into_iter().collect();
            let asked = self.asked(&program, &env, &run.request.cwd, run.environment);
            let words = [asks.words, &[session.as_str()]].concat();
            (asks.read)(&probe::answer_within(asked, &words, SESSION_PLACE_WITHIN).await?)
        }
        .boxed()
    }

    fn parser(&self) -> Box<dyn OutputParser> {
        (self.sheet.parser)()
    }

    fn needs(&self, environment: &Environment, billing: Billing) -> Environment {
        environment::for_agent(self.sheet.passes, environment, billing, &self.variables).env.into_iter().collect()
    }

    fn account(&self, env: &Environment, billing: Billing) -> String {
        environment::account(self.sheet.passes, env, billing)
    }

    fn brings_a_login(&self, env: &Environment, billing: Billing) -> bool {
        environment::for_there(self.sheet.passes, env, billing, &[]).brings_a_login()
    }

    fn payer(&self) -> PayerKnown {
        self.sheet.payer
    }

    fn check_start(&self, started: &AgentEvent, payment: Payment) -> Result<(), Fault> {
        (self.sheet.check_start)(started, payment)
    }

    fn under(&self, program: Option<&Path>, variables: &[String]) -> Option<Arc<dyn Agent>> {
        let under = Self::of(self.sheet).at(program.map(Path::to_owned));
        Some(Arc::new(under.with_variables(variables.iter().cloned())))
    }

    fn was_found(&self, state_dir: &Path) -> bool {
        probe::was_found(self.sheet.questions, state_dir)
    }

    fn forget(&self, program: &Path, state_dir: &Path) {
        probe::forget(self.sheet.questions, program, state_dir);
    }

    fn forget_there(&self, target: &ExecTarget, program: &Path, state_dir: &Path) {
        probe::forget_there(self.sheet.questions, target, program, state_dir);
    }
}

/// The id of a new session of this run: the same whenever it is asked for, and nothing its mark could be told from.
fn session_of(token: RunToken) -> AgentSessionId {
    let digest = Sha256::digest(token.to_string());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    AgentSessionId::from_random_bytes(bytes)
}

/// Refuses what any of these agents would misread, rather than letting it do so.
fn check_request(request: &ConsultRequest) -> Result<(), Fault> {
    check_prompt(&request.prompt)?;
    let invalid = |detail: String| Err(Fault::new(FaultCode::InvalidInput, detail));
    for (argument, value) in [("model", &request.model), ("effort", &request.effort)] {
        let Some(value) = value else { continue };
        let fits = !value.is_empty()
            && value.chars().count() <= MAX_NAME_CHARS
            && !value.starts_with('-')
            && !value.chars().any(|c| c.is_control() || c.is_whitespace());
        if !fits {
            return invalid(format!(
                "`{argument}`: must be one word of up to {MAX_NAME_CHARS} characters that does not begin with a dash."
            ));
        }
    }
    if request.max_turns == Some(0) {
        // The agents take 0 for no limit.
        return invalid("`max_turns`: must be at least 1.".to_owned());
    }
    if request.max_budget_usd.is_some_and(|budget| !budget.is_finite() || budget <= 0.0) {
        return invalid("`max_budget_usd`: must be more than 0.".to_owned());
    }
    Ok(())
}

/// Refuses limits an agent has no option for: a run without them is not what was asked for.
pub(super) fn no_limits(title: &str, request: &ConsultRequest) -> Result<(), Fault> {
    let given = [("max_turns", request.max_turns.is_some()), ("max_budget_usd", request.max_budget_usd.is_some())];
    match given.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((name, _)) => {
            let detail = format!("`{name}`: {title} has no such limit.");
            Err(Fault::new(FaultCode::InvalidInput, detail).hint("Leave it out; `timeout_s` bounds every agent."))
        }
    }
}

/// Of an agent whose stream does not say who pays.
pub(super) fn says_nothing_of_its_payer(_: &AgentEvent, _: Payment) -> Result<(), Fault> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::tests_support::request;

    #[test]
    fn what_the_agents_would_misread_is_refused() {
        let refused = |request: ConsultRequest| check_request(&request).map_err(|fault| fault.code);
        let invalid = Err(FaultCode::InvalidInput);
        assert_eq!(refused(request("ask")), Ok(()));
        assert_eq!(refused(request(" \n")), invalid);
        assert_eq!(refused(request(&"x".repeat(1_000_001))), Err(FaultCode::PromptTooLarge));
        for model in ["", "-p", "a b", "a\nb", &"m".repeat(200)] {
            assert_eq!(refused(ConsultRequest { model: Some(model.into()), ..request("p") }), invalid, "{model}");
        }
        assert_eq!(refused(ConsultRequest { max_turns: Some(0), ..request("p") }), invalid);
        for budget in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(refused(ConsultRequest { max_budget_usd: Some(budget), ..request("p") }), invalid);
        }
    }

    #[test]
    fn every_sheet_is_whole_and_no_two_are_of_one_name() {
        for (number, sheet) in KNOWN.iter().enumerate() {
            let name = sheet.name;
            assert!(KNOWN[..number].iter().all(|other| other.name != name), "{name}");
            assert_eq!((sheet.questions.agent, sheet.passes.agent), (name, name));
            assert_eq!(sheet.variable, format!("PHONE_OPUS_{}_BIN", name.to_uppercase()));
            assert!(sheet.profile.install().contains(sheet.variable), "{name}");
            // What is a key is nothing that passes for nothing.
            for (key, _) in sheet.passes.keys {
                let env: Environment = [(*key, "value")].into_iter().collect();
                let given =
                    |billing| environment::for_agent(sheet.passes, &env, billing, &[(*key).to_owned()]).env.len();
                assert_eq!((given(Billing::Subscription), given(Billing::ApiKey)), (0, 1), "{name}: {key}");
                assert!(environment::refusal(key).is_some_and(|why| why.contains("money")), "{name}: {key}");
            }
        }
    }

    #[test]
    fn settings_are_written_once_and_never_in_an_administrators_place() {
        let dir = tempfile::tempdir().expect("scratch");
        let held = HeldTo { variable: "V", file: "x.json", content: "{}", unless: &["/no/such/file"] };
        let file = held.written(dir.path()).expect("written").expect("a file");
        let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&file).expect("there"));
        let first = inode();
        assert_eq!(held.written(dir.path()).expect("written").as_deref(), Some(file.as_path()));
        assert_eq!((inode(), fs::read_to_string(&file).expect("text").as_str()), (first, "{}"));
        fs::write(&file, "other").expect("changed");
        assert!(held.written(dir.path()).is_ok_and(|file| file.is_some()));
        assert_eq!(fs::read_to_string(&file).expect("text"), "{}");
        let theirs = HeldTo { unless: &["/"], ..held };
        assert_eq!(theirs.written(dir.path()).expect("looked"), None);
    }

    #[test]
    fn a_key_goes_to_no_agent_that_it_was_not_meant_for() {
        for owner in KNOWN {
            let secrets = owner.passes.keys.iter().map(|(key, _)| *key).chain(owner.passes.logins.iter().copied());
            for secret in secrets {
                let env: Environment = [(secret, "value")].into_iter().collect();
                for other in KNOWN.iter().filter(|other| !listed_by(other, secret)) {
                    for chosen in [vec![], vec![secret.to_owned()]] {
                        for billing in [Billing::Subscription, Billing::ApiKey] {
                            let given = environment::for_agent(other.passes, &env, billing, &chosen).env;
                            assert!(given.is_empty(), "{secret} of {} reaches {}", owner.name, other.name);
                        }
                    }
                }
            }
        }
    }

    /// Two agents may read one vendor's key.
    fn listed_by(sheet: &Sheet, name: &str) -> bool {
        let passes = sheet.passes;
        passes.keys.iter().any(|(key, _)| *key == name)
            || passes.logins.contains(&name)
            || passes.paid.iter().any(|(paid, _)| *paid == name)
    }
}
