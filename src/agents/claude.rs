//! Claude Code.
//!
//! Owns: its command line, what of the environment it gets, and who it may be paid by. May not know how it is run. Its output is
//! read by `stream_json`, its end judged by `classify`.
//!
//! It is run read-only: three reading tools, confined to the working directory, without settings, hooks or servers of
//! user and project, and whatever would ask is denied.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::classify::AgentProfile;
use super::cli::{CliAgent, Invocation, Login, LoginSaid, Sheet};
use super::environment::Value::{Path as Place, Paths, Text};
use super::environment::{Passes, Value as Holds};
use super::probe::Need::{Aside, Used};
use super::probe::Questions;
use super::{
    Agent, AgentCommand, AgentEvent, Credential, Environment, OutputParser, PayerKnown, Payment, ResumedId, RunRequest,
    StreamJson,
};
use crate::base::fault::{Fault, FaultCode};
use crate::exec::ExecTarget;
use crate::jobs::Billing;

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
];

/// The OAuth token is the subscription's own login, for machines without a browser.
const LOGIN_TOKEN: &str = "CLAUDE_CODE_OAUTH_TOKEN";

/// What passes to it besides.
const ALLOWLIST: &[(&str, Holds)] = &[
    ("CLAUDE_CONFIG_DIR", Place),
    (LOGIN_TOKEN, Text),
    ("API_TIMEOUT_MS", Text),
    ("CLAUDE_CODE_TMPDIR", Place),
    // The certificate a gateway knows its client by; it proves who asks and pays for nothing.
    ("CLAUDE_CODE_CLIENT_CERT", Place),
    ("CLAUDE_CODE_CLIENT_KEY", Place),
    ("CLAUDE_CODE_CLIENT_KEY_PASSPHRASE", Text),
    // Words: which stores of certificates are used.
    ("CLAUDE_CODE_CERT_STORE", Text),
    // Systems whose library the search program that comes along does not work with.
    ("USE_BUILTIN_RIPGREP", Text),
    ("NIX_LD", Place),
    ("NIX_LD_LIBRARY_PATH", Paths),
];

/// Words in an `ANTHROPIC_…` name that make it a way to pay or a place to send the bill to. Headers may hold a key.
const PAYING_WORDS: &[&str] = &["KEY", "TOKEN", "SECRET", "BEARER", "BASE_URL", "CUSTOM_HEADERS"];

/// What of the environment passes to it.
pub(super) static PASSES: Passes = Passes {
    agent: "claude",
    always: ALLOWLIST,
    family: Some(("ANTHROPIC_", PAYING_WORDS)),
    // Only the key is named in its introduction.
    keys: &[("ANTHROPIC_API_KEY", Credential::Key), ("ANTHROPIC_AUTH_TOKEN", Credential::Unnamed)],
    clouds: &[
        (
            "CLAUDE_CODE_USE_BEDROCK",
            &[
                ("AWS_REGION", Text),
                ("AWS_DEFAULT_REGION", Text),
                ("AWS_PROFILE", Text),
                ("AWS_ACCESS_KEY_ID", Text),
                ("AWS_SECRET_ACCESS_KEY", Text),
                ("AWS_SESSION_TOKEN", Text),
                ("AWS_BEARER_TOKEN_BEDROCK", Text),
                ("AWS_CONFIG_FILE", Place),
                ("AWS_SHARED_CREDENTIALS_FILE", Place),
            ],
        ),
        (
            "CLAUDE_CODE_USE_VERTEX",
            &[("CLOUD_ML_REGION", Text), ("GOOGLE_APPLICATION_CREDENTIALS", Place), ("GOOGLE_CLOUD_PROJECT", Text)],
        ),
        ("CLAUDE_CODE_USE_FOUNDRY", &[]),
    ],
    logins: &[LOGIN_TOKEN],
    homes: &["CLAUDE_CONFIG_DIR", "HOME"],
    of_this_machine: &["CLAUDE_CODE_CERT_STORE", "USE_BUILTIN_RIPGREP", "CLAUDE_CODE_CLIENT_KEY_PASSPHRASE"],
    ..Passes::NOTHING
};

/// What is looked for in its help. `--max-turns` works and is never named there.
pub(super) static QUESTIONS: Questions = Questions {
    agent: "claude",
    helps: &[&["--help"]],
    mark: "--output-format",
    looked_for: &[
        // The hard limit of the built-in tools.
        ("--tools", Used),
        // File tools are confined to the working directory.
        ("--restricted", Used),
        // Whatever would ask is denied.
        ("--permission-prompts", Used),
        // No hooks, servers and rules of user and project.
        ("--setting-sources", Used),
        // No MCP servers.
        ("--strict-mcp-config", Used),
        // Without it a resumed session keeps its id; a version that does not know it changes the id.
        ("--fork-session", Aside),
    ],
};

const PROFILE: AgentProfile = AgentProfile::new("Claude Code")
    .install_hint(
        "Install Claude Code (`npm install -g @anthropic-ai/claude-code`), or point PHONE_OPUS_CLAUDE_BIN at its program; a \
         host that hands on no PATH must be told in its server configuration.",
    )
    .login_hint(
        "Run `claude` once in a terminal and log in. A host that hands on only part of its environment must also hand on \
         HOME, and CLAUDE_CONFIG_DIR where it is used.",
    )
    .kept_to_reading_by("three reading tools, confined to the directory")
    .keeps_sessions();

pub(super) static SHEET: Sheet = Sheet {
    name: "claude",
    variable: "PHONE_OPUS_CLAUDE_BIN",
    profile: PROFILE,
    questions: &QUESTIONS,
    passes: &PASSES,
    own_variables: OWN_VARIABLES,
    blanked: &[],
    held_to: None,
    arguments: |invocation| arguments(invocation),
    check: |_, environment| check_config_dir(environment),
    // Versions that can be told to go on under a new id keep the old one otherwise; those before always changed it.
    resumed_id: |features| if features.has("--fork-session") { ResumedId::Same } else { ResumedId::New },
    session_option: None,
    session_place: None,
    parser: || Box::new(StreamJson::new()),
    payer: PayerKnown::InStream,
    check_start,
    login: Login::Asked(&["auth", "status"], login_of),
};

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
#[derive(Debug, Clone)]
pub struct ClaudeCode(CliAgent);

impl Default for ClaudeCode {
    fn default() -> Self {
        Self(CliAgent::of(&SHEET))
    }
}

impl ClaudeCode {
    /// Claude Code at the configured path, if any. It goes before `PHONE_OPUS_CLAUDE_BIN` in the run's environment.
    #[must_use]
    pub fn new(configured: Option<PathBuf>) -> Self {
        Self(CliAgent::of(&SHEET).at(configured))
    }

    /// The same, which is also handed these variables (`agent_env` of the configuration). Names that can spend money are
    /// left out whoever names them.
    #[must_use]
    pub fn with_variables(self, variables: impl IntoIterator<Item = String>) -> Self {
        Self(self.0.with_variables(variables))
    }
}

/// As of any agent that is a program of its own.
impl Agent for ClaudeCode {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn profile(&self) -> AgentProfile {
        self.0.profile()
    }

    fn locate(&self, env: &Environment) -> Result<PathBuf, Fault> {
        self.0.locate(env)
    }

    fn prepare<'a>(
        &'a self,
        run: &'a RunRequest<'a>,
        state_dir: &'a Path,
    ) -> BoxFuture<'a, Result<AgentCommand, Fault>> {
        self.0.prepare(run, state_dir)
    }

    fn parser(&self) -> Box<dyn OutputParser> {
        self.0.parser()
    }

    fn needs(&self, environment: &Environment, billing: Billing) -> Environment {
        self.0.needs(environment, billing)
    }

    fn account(&self, env: &Environment, billing: Billing) -> String {
        self.0.account(env, billing)
    }

    fn brings_a_login(&self, env: &Environment, billing: Billing) -> bool {
        self.0.brings_a_login(env, billing)
    }

    fn payer(&self) -> PayerKnown {
        self.0.payer()
    }

    fn check_start(&self, started: &AgentEvent, payment: Payment) -> Result<(), Fault> {
        self.0.check_start(started, payment)
    }

    fn under(&self, program: Option<&Path>, variables: &[String]) -> Option<Arc<dyn Agent>> {
        self.0.under(program, variables)
    }

    fn was_found(&self, state_dir: &Path) -> bool {
        self.0.was_found(state_dir)
    }

    fn forget(&self, program: &Path, state_dir: &Path) {
        self.0.forget(program, state_dir);
    }

    fn forget_there(&self, target: &ExecTarget, program: &Path, state_dir: &Path) {
        self.0.forget_there(target, program, state_dir);
    }
}

fn check_start(started: &AgentEvent, payment: Payment) -> Result<(), Fault> {
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

/// What `claude auth status` says.
fn login_of(said: &str) -> LoginSaid {
    let said: Value = serde_json::from_str(said).unwrap_or_default();
    let by = said.get("authMethod").and_then(Value::as_str);
    match (said.get("loggedIn").and_then(Value::as_bool), by) {
        (Some(true), Some("claude.ai")) => LoginSaid::Plan,
        (Some(true), Some("api_key")) => LoginSaid::Key,
        (Some(true), _) => LoginSaid::Somehow,
        (Some(false), _) => LoginSaid::No,
        (None, _) => LoginSaid::Unsaid,
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
    let place = String::from_utf8_lossy(&bytes).replace('\u{fffd}', "?");
    // In this language one slash begins at the settings' own directory, and two at the root.
    let root = if place.starts_with('/') { "/" } else { "" };
    format!("Read({root}{}/**)", place.trim_end_matches('/'))
}

/// The command line. The prompt is not in it.
fn arguments(invocation: &Invocation<'_>) -> Vec<OsString> {
    let (request, own) = (invocation.request, state_rule(invocation.state_dir));
    let mut args: Vec<OsString> = ["-p", "--output-format", "stream-json", "--verbose"].map(OsString::from).into();
    let mut add = |words: &[&str]| args.extend(words.iter().map(OsString::from));
    if invocation.has("--tools") {
        add(&["--tools", "Read,Grep,Glob"]);
    }
    if invocation.has("--restricted") {
        add(&["--restricted"]);
    }
    // The directory of a consult may hold ours, so this is asked of a confined agent as well.
    if invocation.has("--restricted") && invocation.has("--tools") {
        add(&["--disallowedTools", &own]);
    } else {
        add(&["--disallowedTools", &format!("{DENY_RULES},{own}")]);
    }
    if invocation.has("--strict-mcp-config") {
        add(&["--strict-mcp-config"]);
    }
    if invocation.has("--setting-sources") {
        add(&["--setting-sources", ""]);
    }
    add(&["--permission-mode", "dontAsk"]);
    if invocation.has("--permission-prompts") {
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
    use crate::agents::cli::PROMPT_PREFIX;
    use crate::agents::probe::Features;
    use crate::agents::tests_support::{request, script, words};
    use crate::base::ids::{AgentSessionId, ChainId, RunToken};
    use crate::jobs::ConsultRequest;

    const PROGRAM_VARIABLE: &str = SHEET.variable;

    fn run_with(request: &ConsultRequest, features: &Features, state_dir: &str) -> Vec<OsString> {
        arguments(&Invocation { request, features, state_dir: Path::new(state_dir), new_session: None })
    }

    #[test]
    fn the_command_line_is_the_read_only_one() {
        assert_eq!(
            words(&run_with(&request("p"), &Features::newest(&QUESTIONS), "/state dir/po")),
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
            words(&run_with(&full, &Features::newest(&QUESTIONS), "/state dir/po"))[16..],
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
        let old = Features::newest(&QUESTIONS).without(&[
            "--restricted",
            "--permission-prompts",
            "--setting-sources",
            "--strict-mcp-config",
        ]);
        let args = run_with(&request("p"), &old, "/s");
        let rules = format!("{DENY_RULES},Read(//s/**)");
        assert_eq!(words(&args)[4..8], ["--tools", "Read,Grep,Glob", "--disallowedTools", &rules]);
        for flag in ["--restricted", "--permission-prompts", "--setting-sources", "--strict-mcp-config"] {
            assert!(!words(&args).contains(&flag), "{flag}");
        }
        assert!(!DENY_RULES.contains(' '));
        // On another machine its own home is meant.
        assert_eq!(state_rule(Path::new("~/.local/state/phone_opus")), "Read(~/.local/state/phone_opus/**)");
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
            traceparent: None,
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
}
