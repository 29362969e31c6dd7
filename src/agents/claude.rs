//! Claude Code.
//!
//! Owns: its command line, its environment, where its program is, and who it may be paid by. May not know how it is
//! run. Its output is read by `stream_json`, its end judged by `classify`.
//!
//! It is run read-only: three reading tools, confined to the working directory, without settings, hooks or servers of
//! user and project, and whatever would ask is denied.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};

use super::classify::AgentProfile;
use super::probe::{self, Asked, Features};
use super::there::{self, AskedThere, There};
use super::{
    Agent, AgentCommand, AgentEvent, Credential, Environment, OutputParser, PayerKnown, Payment, ResumedId, RunRequest,
    StreamJson, check_prompt, environment, programs,
};
use crate::base::fault::{Fault, FaultCode};
use crate::exec::local::DESCRIPTORS_VARIABLE;
use crate::jobs::{Billing, ConsultRequest};

/// The fixed line before every prompt.
///
/// A prompt that begins with `/` would be run as one of the agent's own commands; behind any text it is text. The line
/// also says what nobody else tells the agent: that only its last message is read.
pub const PROMPT_PREFIX: &str = "Another coding agent asks for your opinion. You can read but not change files here, \
     and only your final message is passed on, so put the whole answer there. The request:\n\n";

/// Names the program, where the configuration names none.
const PROGRAM_VARIABLE: &str = "PHONE_OPUS_CLAUDE_BIN";

/// Characters of a model or effort name; real ones have under 60.
const MAX_NAME_CHARS: usize = 128;

/// What an agent without `--tools` or `--restricted` is forbidden by rule instead. The rules for files also keep the
/// contents of credentials out of `@` mentions, and the environments of other processes from being read.
const DENY_RULES: &str = "Bash,Write,Edit,MultiEdit,NotebookEdit,WebFetch,WebSearch,Task,Agent,Skill,SlashCommand,\
     Read(~/.ssh/**),Read(~/.aws/**),Read(~/.gnupg/**),Read(~/.config/gcloud/**),Read(~/.claude/**),Read(~/.netrc),\
     Read(//proc/**)";

/// Set for every run, over whatever the host has.
const OWN_VARIABLES: &[(&str, &str)] = &[
    // Otherwise `@path` in a prompt attaches any file of the disk before any permission is asked.
    ("CLAUDE_CODE_DISABLE_FILE_MENTIONS", "1"),
    ("DISABLE_AUTOUPDATER", "1"),
    // With the default of 10, a refused login takes three minutes to be reported.
    ("CLAUDE_CODE_MAX_RETRIES", "2"),
    ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
    // It has no terminal, and neither have the programs it runs: what they say is read by a model.
    ("NO_COLOR", "1"),
];

/// The rule that keeps what was asked on another machine from an agent there: nothing says here where that one keeps it, so it is
/// the usual place.
const STATE_RULE_THERE: &str = "Read(~/.local/state/phone_opus/**)";

const PROFILE: AgentProfile = AgentProfile::new("Claude Code")
    .install_hint(
        "Install Claude Code (`npm install -g @anthropic-ai/claude-code`), or point PHONE_OPUS_CLAUDE_BIN at its program; a \
         host that hands on no PATH must be told in its server configuration.",
    )
    .login_hint(
        "Run `claude` once in a terminal and log in. A host that hands on only part of its environment must also hand on \
         HOME, and CLAUDE_CONFIG_DIR where it is used.",
    )
    .keeps_sessions();

/// Claude Code, found on PATH unless a path is configured.
///
/// ```
/// use std::sync::Arc;
/// use phone_opus::{AgentRegistry, ClaudeCode};
///
/// let claude = ClaudeCode::new(Some("/opt/claude/bin/claude".into())).with_variables(["MY_PROXY".to_owned()]);
/// let agents = AgentRegistry::new().with(Arc::new(claude));           // for `SystemBuilder::agents`
/// assert_eq!(agents.names(), ["claude"]);
/// assert!(agents.get("oracle").is_err());
/// ```
#[derive(Debug, Clone, Default)]
pub struct ClaudeCode {
    configured: Option<PathBuf>,
    /// The names of variables the user has handed on besides those that always are.
    variables: Vec<String>,
}

impl ClaudeCode {
    /// Claude Code at the configured path, if any. It goes before `PHONE_OPUS_CLAUDE_BIN` in the run's environment.
    #[must_use]
    pub fn new(configured: Option<PathBuf>) -> Self {
        Self { configured, variables: Vec::new() }
    }

    /// The same, which is also handed these variables (`agent_env` of the configuration). Names that can spend money are
    /// left out whoever names them.
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
        let asked = Asked { program, env: &env, cwd, descriptors: descriptors(environment) };
        probe::features(asked, state_dir).await
    }

    /// What it says to these words, asked as a consult would start it; a key that consults withhold is withheld.
    ///
    /// # Cancel safety
    ///
    /// As [`ClaudeCode::features`].
    #[doc(hidden)]
    pub async fn answer(
        &self,
        program: &Path,
        environment: &Environment,
        billing: Billing,
        cwd: &Path,
        words: &[&str],
    ) -> Option<String> {
        let env: Vec<_> = self.granted(environment, billing, program).env.into_iter().collect();
        probe::answer(Asked { program, env: &env, cwd, descriptors: descriptors(environment) }, words).await
    }

    /// What to run on another machine: of the caller's environment what may travel, of that machine's own the core.
    async fn prepare_there(
        &self,
        run: &RunRequest<'_>,
        there: &There<'_>,
        state_dir: &Path,
    ) -> Result<AgentCommand, Fault> {
        let billing = run.request.billing;
        let mut granted = environment::for_there(run.environment, billing, &self.variables).granted;
        for (name, value) in OWN_VARIABLES {
            granted.set(name, *value);
        }
        granted.set("NO_COLOR", "1");
        granted.set_run(run);
        let mut env: Vec<_> = granted.env.into_iter().collect();
        let asked = AskedThere { env: &env, cwd: &run.request.cwd };
        let resumes = run.request.session_id.is_some();
        let (program, features) = probe::for_a_run_there(there, self.name(), asked, state_dir, resumes).await?;
        there::set_path(&mut env, &program);
        Ok(AgentCommand {
            args: arguments(run.request, &features, STATE_RULE_THERE),
            program: program.program,
            env,
            stdin: Bytes::from(with_prefix(&run.request.prompt)),
            prompt_prefix_injected: true,
            key_withheld: granted.key_withheld,
            payment: Payment { billing, credential: granted.credential },
            resumed_id: if features.fork_session { ResumedId::Same } else { ResumedId::New },
        })
    }

    fn granted(&self, environment: &Environment, billing: Billing, program: &Path) -> environment::Granted {
        let mut granted = environment::for_claude(environment, billing, &self.variables);
        for (name, value) in OWN_VARIABLES {
            granted.set(name, *value);
        }
        if let Some(path) = programs::path_for(program, environment.get("PATH")) {
            granted.set("PATH", path);
        }
        granted
    }
}

/// The soft limit of descriptors a program is to have, where ours is not the one we were started with.
fn descriptors(environment: &Environment) -> Option<u64> {
    environment.get(DESCRIPTORS_VARIABLE)?.to_str()?.parse().ok()
}

impl Agent for ClaudeCode {
    fn name(&self) -> &str {
        "claude"
    }

    fn locate(&self, env: &Environment) -> Result<PathBuf, Fault> {
        match (&self.configured, env.get(PROGRAM_VARIABLE)) {
            // A flag goes before the variable, which the configuration has taken in already.
            (Some(configured), _) => programs::named(configured, "The configured path", env, PROFILE.install()),
            (None, Some(named)) => programs::named(Path::new(named), PROGRAM_VARIABLE, env, PROFILE.install()),
            (None, None) => programs::find(OsStr::new("claude"), env).ok_or_else(|| {
                let detail = format!("`claude` was not found {}.", programs::searched(env));
                Fault::new(FaultCode::AgentMissing, detail).hint(PROFILE.install())
            }),
        }
    }

    fn needs(&self, environment: &Environment, billing: Billing) -> Environment {
        environment::for_claude(environment, billing, &self.variables).env.into_iter().collect()
    }

    fn under(&self, program: Option<&Path>, variables: &[String]) -> Option<Arc<dyn Agent>> {
        let program = program.map(Path::to_owned);
        Some(Arc::new(Self::new(program).with_variables(variables.iter().cloned())))
    }

    fn was_found(&self, state_dir: &Path) -> bool {
        probe::was_found(state_dir)
    }

    fn forget(&self, program: &Path, state_dir: &Path) {
        probe::forget(program, state_dir);
    }

    fn prepare<'a>(
        &'a self,
        run: &'a RunRequest<'a>,
        state_dir: &'a Path,
    ) -> BoxFuture<'a, Result<AgentCommand, Fault>> {
        async move {
            check_request(run.request)?;
            if let Some(there) = &run.there {
                return self.prepare_there(run, there, state_dir).await;
            }
            let program = self.locate(run.environment)?;
            check_config_dir(run.environment)?;
            let billing = run.request.billing;
            let mut granted = self.granted(run.environment, billing, &program);
            // A probe bears the run's marks as well: if we are killed, it is found by them.
            granted.set_run(run);
            let env: Vec<_> = granted.env.into_iter().collect();
            let asked = Asked {
                program: &program,
                env: &env,
                cwd: &run.request.cwd,
                descriptors: descriptors(run.environment),
            };
            let features = probe::for_a_run(asked, state_dir, run.request.session_id.is_some()).await;
            let stdin = with_prefix(&run.request.prompt);
            Ok(AgentCommand {
                args: arguments(run.request, &features, &state_rule(state_dir)),
                program,
                env,
                stdin: Bytes::from(stdin),
                prompt_prefix_injected: true,
                key_withheld: granted.key_withheld,
                payment: Payment { billing, credential: granted.credential },
                // Versions that can be told to go on under a new id keep the old one otherwise; those before always changed it.
                resumed_id: if features.fork_session { ResumedId::Same } else { ResumedId::New },
            })
        }
        .boxed()
    }

    fn parser(&self) -> Box<dyn OutputParser> {
        Box::new(StreamJson::new())
    }

    fn account(&self, env: &Environment, billing: Billing) -> String {
        environment::claude_account(env, billing)
    }

    fn payer(&self) -> PayerKnown {
        PayerKnown::InStream
    }

    fn check_start(&self, started: &AgentEvent, payment: Payment) -> Result<(), Fault> {
        let AgentEvent::Started { key_source: Some(source), .. } = started else { return Ok(()) };
        let login = matches!(source.as_str(), "none" | "oauth" | "CLAUDE_CODE_OAUTH_TOKEN");
        match (payment.billing, payment.credential, login) {
            (Billing::Subscription, _, true)
            | (Billing::ApiKey, _, false)
            // A token or a cloud account is not named in the introduction; it looks like a login.
            | (Billing::ApiKey, Credential::Unnamed, true) => Ok(()),
            (Billing::Subscription, _, false) => Err(Fault::new(
                FaultCode::BillingMismatch,
                format!("Billing is `subscription`, but Claude Code would use an API key (source: {}).", shown(source)),
            )
            .hint("Log in with a subscription, or set PHONE_OPUS_BILLING=api_key to pay by key.")),
            (Billing::ApiKey, Credential::Key | Credential::Nothing, true) => Err(Fault::new(
                FaultCode::BillingMismatch,
                "Billing is `api_key`, but Claude Code would use its login.".to_owned(),
            )
            .hint("Set ANTHROPIC_API_KEY in the server's environment, or unset PHONE_OPUS_BILLING.")),
        }
    }

    fn profile(&self) -> AgentProfile {
        PROFILE
    }
}

/// The key source as one short word; it comes from the agent and goes into a fault.
fn shown(source: &str) -> String {
    source.chars().filter(|c| !c.is_control()).take(60).collect()
}

/// A directory that is not absolute would be another one for each consult, a repository's own settings among them; and
/// without it another account would be used than was meant.
fn check_config_dir(environment: &Environment) -> Result<(), Fault> {
    match environment.get("CLAUDE_CONFIG_DIR") {
        Some(dir) if !Path::new(dir).is_absolute() => Err(Fault::new(
            FaultCode::AgentNotLoggedIn,
            "CLAUDE_CONFIG_DIR is not an absolute path, so it names no login a consult could use.",
        )
        .hint("Set it to an absolute path in the server's environment, or take it out.")),
        _ => Ok(()),
    }
}

/// The rule that keeps what others asked and were answered from the agent. Its pattern language knows no quoting: what has a
/// meaning in it stands as any one character.
fn state_rule(state_dir: &Path) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-~@+=".contains(&byte) || !byte.is_ascii();
    let bytes: Vec<u8> = state_dir.as_os_str().as_bytes().iter().map(|b| if plain(*b) { *b } else { b'?' }).collect();
    format!("Read(/{}/**)", String::from_utf8_lossy(&bytes).replace('\u{fffd}', "?").trim_end_matches('/'))
}

/// Refuses what Claude Code would misread, rather than letting it do so.
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
        // The agent takes 0 for no limit.
        return invalid("`max_turns`: must be at least 1.".to_owned());
    }
    if request.max_budget_usd.is_some_and(|budget| !budget.is_finite() || budget <= 0.0) {
        return invalid("`max_budget_usd`: must be more than 0.".to_owned());
    }
    Ok(())
}

/// The prompt as the agent gets it.
fn with_prefix(prompt: &str) -> String {
    let mut stdin = String::with_capacity(PROMPT_PREFIX.len() + prompt.len());
    stdin.push_str(PROMPT_PREFIX);
    stdin.push_str(prompt);
    stdin
}

/// The command line. The prompt is not in it. `own` keeps what others asked from the agent.
fn arguments(request: &ConsultRequest, features: &Features, own: &str) -> Vec<OsString> {
    let mut args: Vec<OsString> = ["-p", "--output-format", "stream-json", "--verbose"].map(OsString::from).into();
    let mut add = |words: &[&str]| args.extend(words.iter().map(OsString::from));
    if features.tools {
        add(&["--tools", "Read,Grep,Glob"]);
    }
    if features.restricted {
        add(&["--restricted"]);
    }
    // The directory of a consult may hold ours, so this is asked of a confined agent as well.
    if features.restricted && features.tools {
        add(&["--disallowedTools", own]);
    } else {
        add(&["--disallowedTools", &format!("{DENY_RULES},{own}")]);
    }
    if features.strict_mcp_config {
        add(&["--strict-mcp-config"]);
    }
    if features.setting_sources {
        add(&["--setting-sources", ""]);
    }
    add(&["--permission-mode", "dontAsk"]);
    if features.permission_prompts {
        add(&["--permission-prompts", "none"]);
    }
    if let Some(turns) = request.max_turns {
        add(&["--max-turns", &turns.to_string()]);
    }
    if let Some(budget) = request.max_budget_usd {
        add(&["--max-budget-usd", &budget.to_string()]);
    }
    if let Some(model) = &request.model {
        add(&["--model", model]);
    }
    if let Some(effort) = &request.effort {
        add(&["--effort", effort]);
    }
    if let Some(session) = &request.session_id {
        add(&["--resume", &session.to_string()]);
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::tests_support::{request, script};
    use crate::base::ids::{AgentSessionId, ChainId, RunToken};

    fn words(args: &[OsString]) -> Vec<&str> {
        args.iter().map(|arg| arg.to_str().expect("text")).collect()
    }

    #[test]
    fn the_command_line_is_the_read_only_one() {
        assert_eq!(
            words(&arguments(&request("p"), &Features::newest(), &state_rule(Path::new("/state dir/po")))),
            [
                "-p",
                "--output-format",
                "stream-json",
                "--verbose",
                "--tools",
                "Read,Grep,Glob",
                "--restricted",
                "--disallowedTools",
                "Read(//state?dir/po/**)",
                "--strict-mcp-config",
                "--setting-sources",
                "",
                "--permission-mode",
                "dontAsk",
                "--permission-prompts",
                "none",
            ]
        );
        let session = AgentSessionId::random();
        let full = ConsultRequest {
            session_id: Some(session),
            max_turns: Some(7),
            model: Some("opus".into()),
            effort: Some("high".into()),
            max_budget_usd: Some(0.5),
            ..request("p")
        };
        assert_eq!(
            words(&arguments(&full, &Features::newest(), &state_rule(Path::new("/state dir/po"))))[16..],
            [
                "--max-turns",
                "7",
                "--max-budget-usd",
                "0.5",
                "--model",
                "opus",
                "--effort",
                "high",
                "--resume",
                session.to_string().as_str(),
            ]
        );
    }

    #[test]
    fn an_old_version_is_forbidden_by_rules_what_it_cannot_be_confined_to() {
        let old = Features {
            restricted: false,
            permission_prompts: false,
            setting_sources: false,
            strict_mcp_config: false,
            ..Features::newest()
        };
        let args = arguments(&request("p"), &old, &state_rule(Path::new("/s")));
        let rules = format!("{DENY_RULES},Read(//s/**)");
        assert_eq!(words(&args)[4..8], ["--tools", "Read,Grep,Glob", "--disallowedTools", &rules]);
        for flag in ["--restricted", "--permission-prompts", "--setting-sources", "--strict-mcp-config"] {
            assert!(!words(&args).contains(&flag), "{flag}");
        }
        assert!(!DENY_RULES.contains(' '));
    }

    #[tokio::test]
    async fn the_prompt_is_on_stdin_and_nowhere_else() {
        let dir = tempfile::tempdir().expect("scratch");
        let program = script(dir.path(), "claude", "exit 1");
        let environment: Environment = [
            (PROGRAM_VARIABLE, program.to_str().expect("text")),
            ("CLAUDECODE", "1"),
            ("ANTHROPIC_API_KEY", "key"),
            ("CLAUDE_CODE_MAX_RETRIES", "10"),
            ("PHONE_OPUS_DEPTH", "0"),
        ]
        .into_iter()
        .collect();
        let request = request("/clear CANARY @/etc/passwd");
        let run = RunRequest {
            request: &request,
            token: RunToken::random(),
            chain: ChainId::random(),
            depth: 0,
            environment: &environment,
            there: None,
        };
        let command = ClaudeCode::default().prepare(&run, dir.path()).await.expect("a command");
        assert_eq!(&command.stdin[..], format!("{PROMPT_PREFIX}/clear CANARY @/etc/passwd").as_bytes());
        assert!(command.prompt_prefix_injected && command.key_withheld);
        let everywhere_else = format!("{:?} {:?}", command.args, command.env);
        assert!(!everywhere_else.contains("CANARY"), "{everywhere_else}");
        assert!(!format!("{command:?}").contains("CANARY"));
        let set = |name: &str| {
            command.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.to_str().expect("text"))
        };
        assert_eq!(set("PHONE_OPUS_RUN_TOKEN"), Some(run.token.to_string().as_str()));
        assert_eq!(set("PHONE_OPUS_CHAIN"), Some(run.chain.to_string().as_str()));
        assert_eq!(set("PHONE_OPUS_DEPTH"), Some("1"));
        assert_eq!(set("CLAUDE_CODE_DISABLE_FILE_MENTIONS"), Some("1"));
        assert_eq!(set("CLAUDE_CODE_MAX_RETRIES"), Some("2"));
        assert_eq!((set("CLAUDECODE"), set("ANTHROPIC_API_KEY"), set(PROGRAM_VARIABLE)), (None, None, None));
    }

    #[test]
    fn the_program_is_the_configured_one_then_the_named_one_then_the_first_on_path() {
        let dir = tempfile::tempdir().expect("scratch");
        let on_path = script(dir.path(), "claude", "exit 0");
        let other = script(dir.path(), "other", "exit 0");
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "no program").expect("file");
        let path: Environment = [("PATH", format!("relative:{}", dir.path().display()))].into_iter().collect();
        let named = |value: &Path| path.clone().with(PROGRAM_VARIABLE, value);
        let claude = |configured: &Path| ClaudeCode::new(Some(configured.to_owned()));
        assert_eq!(ClaudeCode::default().locate(&path), Ok(on_path.clone()));
        assert_eq!(claude(&other).locate(&path), Ok(other.clone()));
        assert_eq!(claude(&other).locate(&named(Path::new("/nonexistent"))), Ok(other.clone()));
        assert_eq!(ClaudeCode::default().locate(&named(&other)), Ok(other));
        assert_eq!(ClaudeCode::default().locate(&named(Path::new("claude"))), Ok(on_path));
        let code = |agent: ClaudeCode, env: &Environment| agent.locate(env).map_err(|fault| fault.code);
        assert_eq!(code(ClaudeCode::default(), &Environment::default()), Err(FaultCode::AgentMissing));
        assert_eq!(code(ClaudeCode::default(), &named(Path::new("./claude"))), Err(FaultCode::AgentMissing));
        assert_eq!(code(ClaudeCode::default(), &named(Path::new("nope"))), Err(FaultCode::AgentMissing));
        assert_eq!(code(claude(Path::new("/nonexistent/claude")), &path), Err(FaultCode::AgentMissing));
        assert_eq!(code(claude(&plain), &path), Err(FaultCode::AgentNotExecutable));
        assert_eq!(code(claude(dir.path()), &path), Err(FaultCode::AgentNotExecutable));
    }

    #[test]
    fn who_pays_is_compared_with_what_was_chosen() {
        use Billing::{ApiKey, Subscription};
        use Credential::{Key, Nothing, Unnamed};
        for (billing, credential, source, agrees) in [
            (Subscription, Nothing, Some("none"), true),
            (Subscription, Nothing, Some("oauth"), true),
            (Subscription, Nothing, None, true),
            (Subscription, Nothing, Some("ANTHROPIC_API_KEY"), false),
            (Subscription, Nothing, Some("apiKeyHelper"), false),
            (Subscription, Nothing, Some("/login managed key"), false),
            (ApiKey, Key, Some("ANTHROPIC_API_KEY"), true),
            (ApiKey, Nothing, Some("/login managed key"), true),
            (ApiKey, Unnamed, Some("none"), true),
            (ApiKey, Key, Some("none"), false),
            (ApiKey, Nothing, Some("none"), false),
        ] {
            let started = AgentEvent::Started {
                session_id: None,
                model: None,
                key_source: source.map(str::to_owned),
                version: None,
            };
            let checked = ClaudeCode::default().check_start(&started, Payment { billing, credential });
            assert_eq!(checked.is_ok(), agrees, "{billing:?} {credential:?} {source:?}");
            if let Err(fault) = checked {
                assert_eq!(fault.code, FaultCode::BillingMismatch);
            }
        }
    }

    #[test]
    fn what_the_agent_would_misread_is_refused() {
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
}
