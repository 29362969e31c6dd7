//! Codex.
//!
//! Owns: its command line, what of the environment it gets, how it is seen who pays, and what a line of its output means
//! ([`CodexStream`]). May not know how it is run. Its end is judged by `classify`.
//!
//! It is run read-only: its sandbox lets no program it starts write or reach the network, nothing asks for more, and no settings,
//! rules, servers, plugins or remote applications of the user's and no instructions of the project's count. Reading is not confined:
//! its sandbox lets it read what its user may.

use std::ffi::OsString;
use std::path::PathBuf;

use serde_json::Value;

use super::classify::AgentProfile;
use super::cli::{self, Invocation, Login, LoginSaid, Sheet};
use super::environment::Passes;
use super::environment::Value::{Path as Place, Text};
use super::fields::{
    EventStream, Events, MAX_ERROR_CHARS, MAX_NAME_CHARS, MAX_TARGET_CHARS, counts, name, other, shortened, text,
};
use super::probe::Need::{Must, Used};
use super::probe::Questions;
use super::{AgentEvent, AgentResult, Credential, Environment, OutputParser, PayerKnown, ResumedId};
use crate::jobs::PermissionDenial;

const PROFILE: AgentProfile = AgentProfile::new("Codex")
    .install_hint(
        "Install Codex (`npm install -g @openai/codex`), or point PHONE_OPUS_CODEX_BIN at its program; a host that hands on no \
         PATH must be told in its server configuration.",
    )
    .login_hint(
        "Run `codex login` once in a terminal. A host that hands on only part of its environment must also hand on HOME, and \
         CODEX_HOME where it is used.",
    )
    .kept_to_reading_by("its sandbox: nothing is written, no network for what it starts; it reads whatever its user may")
    .keeps_sessions()
    .names_no_payer();

/// What of the environment passes to it.
static PASSES: Passes = Passes {
    agent: "codex",
    always: &[("CODEX_HOME", Place), ("CODEX_CA_CERTIFICATE", Place)],
    paid: &[
        ("CODEX_API_KEY", Text),
        ("OPENAI_API_KEY", Text),
        ("OPENAI_BASE_URL", Text),
        ("OPENAI_ORGANIZATION", Text),
        ("OPENAI_PROJECT", Text),
    ],
    keys: &[("CODEX_API_KEY", Credential::Key), ("OPENAI_API_KEY", Credential::Key)],
    homes: &["CODEX_HOME", "HOME"],
    ..Passes::NOTHING
};

/// What is switched off where a version has it: each of them reaches the network, or what is not the directory.
const FEATURES: &[&str] =
    &["plugins", "remote_plugin", "apps", "browser_use", "computer_use", "image_generation", "in_app_browser"];

/// What is looked for in the help of its `exec` and in its list of features.
static QUESTIONS: Questions = Questions {
    agent: "codex",
    helps: &[&["exec", "--help"], &["features", "list"]],
    mark: "--skip-git-repo-check",
    looked_for: &[
        ("--json", Must),
        ("--sandbox", Must),
        // No settings, servers and programs of the user's.
        ("--ignore-user-config", Used),
        // No rules that let a command through.
        ("--ignore-rules", Used),
        ("--cd", Used),
        ("--disable", Used),
        ("plugins", Used),
        ("remote_plugin", Used),
        ("apps", Used),
        ("browser_use", Used),
        ("computer_use", Used),
        ("image_generation", Used),
        ("in_app_browser", Used),
    ],
};

/// Set in every run, whatever its version: what it does not know of them it passes over.
const SETTINGS: &[&str] = &[
    // Nobody is there to be asked.
    "approval_policy=\"never\"",
    // The programs it starts get no key.
    "shell_environment_policy.inherit=\"core\"",
    // Its provider searches in what it has kept, where a version does not heed this; it goes nowhere for it.
    "web_search=\"disabled\"",
    // What a project tells agents is not what the caller asks.
    "project_doc_max_bytes=0",
    "check_for_update_on_startup=false",
];

pub(super) static SHEET: Sheet = Sheet {
    name: "codex",
    variable: "PHONE_OPUS_CODEX_BIN",
    profile: PROFILE,
    questions: &QUESTIONS,
    passes: &PASSES,
    own_variables: &[],
    blanked: &[],
    held_to: None,
    arguments: |invocation| arguments(invocation),
    check: |request, _| cli::no_limits("Codex", request),
    // A thread of another id is another thread, without the history.
    resumed_id: |_| ResumedId::Same,
    session_option: None,
    session_place: None,
    parser: || Box::new(CodexStream::new()),
    payer: PayerKnown::BeforeStart,
    check_start: cli::says_nothing_of_its_payer,
    login: Login::Seen(login),
};

/// The command line. The prompt is not in it: a dash makes it read standard input, and without one it would wait for more there.
fn arguments(invocation: &Invocation<'_>) -> Vec<OsString> {
    let request = invocation.request;
    let mut args: Vec<OsString> =
        ["exec", "--json", "--skip-git-repo-check", "-s", "read-only"].map(OsString::from).into();
    let mut add = |words: &[&str]| args.extend(words.iter().map(OsString::from));
    for option in ["--ignore-user-config", "--ignore-rules"] {
        if invocation.has(option) {
            add(&[option]);
        }
    }
    for feature in FEATURES.iter().filter(|feature| invocation.has("--disable") && invocation.has(feature)) {
        add(&["--disable", feature]);
    }
    for setting in SETTINGS {
        add(&["-c", setting]);
    }
    if let Some(model) = &request.model {
        add(&["-m", model]);
    }
    if let Some(effort) = &request.effort {
        add(&["-c", &format!("model_reasoning_effort={}", Value::from(effort.as_str()))]);
    }
    // Options of the directory and the sandbox count before `resume` only.
    if invocation.has("--cd") {
        args.extend(["--cd".into(), request.cwd.clone().into_os_string()]);
    }
    if let Some(session) = &request.session_id {
        args.extend(["resume".into(), session.to_string().into()]);
    }
    args.push("-".into());
    args
}

/// By what it is logged in, seen in the file it keeps that in. It may keep it with the system's own secrets instead.
fn login(environment: &Environment) -> LoginSaid {
    let home = environment.get("CODEX_HOME").map(PathBuf::from);
    let home = home.or_else(|| environment.get("HOME").map(|home| PathBuf::from(home).join(".codex")));
    let Some(file) = home.filter(|home| home.is_absolute()).map(|home| home.join("auth.json")) else {
        return LoginSaid::Unsaid;
    };
    let Ok(bytes) = std::fs::read(file) else { return LoginSaid::Unsaid };
    let said: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let is_there = |name: &str| said.get(name).is_some_and(|value| !value.is_null() && value.as_str() != Some(""));
    match said.get("auth_mode").and_then(Value::as_str).map(str::to_ascii_lowercase).as_deref() {
        Some("apikey" | "api_key") => LoginSaid::Key,
        Some("chatgpt") => LoginSaid::Plan,
        Some(_) => LoginSaid::Somehow,
        // Older versions wrote none; a token won over a key.
        None if is_there("tokens") => LoginSaid::Plan,
        None if is_there("OPENAI_API_KEY") => LoginSaid::Key,
        None => LoginSaid::Unsaid,
    }
}

/// Bytes of an answer that are kept in one message; longer ones are no answers any more.
const MAX_TEXT_BYTES: usize = 16 << 20;

/// Reads what `codex exec --json` writes: one event a line, of which unknown ones are passed over.
///
/// The answer is the last message before the turn is completed. A turn that fails says so, and why, in words. An error that is
/// followed by neither is told when the output ends: then it is what is known.
#[derive(Debug, Default)]
pub struct CodexStream(Events<Codex>);

impl CodexStream {
    /// A parser at the beginning of a run.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl OutputParser for CodexStream {
    fn line(&mut self, line: &[u8], out: &mut Vec<AgentEvent>) {
        self.0.line(line, out);
    }

    fn end(&mut self, out: &mut Vec<AgentEvent>) {
        self.0.end(out);
    }
}

/// What is known of a run so far.
#[derive(Debug, Default)]
struct Codex {
    thread: Option<String>,
    last_message: Option<String>,
    /// The last error that it did not go on from.
    error: Option<String>,
    ended: bool,
}

impl EventStream for Codex {
    fn event(&mut self, kind: &str, event: &Value, out: &mut Vec<AgentEvent>) {
        let item = event.get("item").filter(|item| item.is_object());
        match (kind, item) {
            ("thread.started", _) => {
                self.thread = name(event, "thread_id");
                out.push(AgentEvent::Started {
                    session_id: self.thread.clone(),
                    model: None,
                    key_source: None,
                    version: None,
                });
            }
            ("item.started" | "item.updated" | "item.completed", Some(item)) => {
                if let Some(event) = self.item(kind == "item.started", kind == "item.completed", item) {
                    self.error = None;
                    out.push(event);
                } else {
                    out.push(other(&format!("{kind}/{}", text(item, "type").unwrap_or_default())));
                }
            }
            ("turn.completed", _) => {
                let text = self.last_message.take();
                let usage = counts(event, "usage");
                let subtype = Some("success".to_owned());
                out.push(self.result(AgentResult { subtype, text, usage, ..AgentResult::default() }));
            }
            ("turn.failed", _) => {
                let message = event.pointer("/error/message").and_then(Value::as_str).or(self.error.as_deref());
                let failed = failure(message.unwrap_or_default());
                out.push(self.result(failed));
            }
            ("error", _) => out.push(self.error(text(event, "message").unwrap_or_default())),
            _ => out.push(other(kind)),
        }
    }

    fn end(&mut self, out: &mut Vec<AgentEvent>) {
        if let Some(error) = self.error.take().filter(|_| !self.ended) {
            out.push(self.result(failure(&error)));
        }
    }
}

impl Codex {
    /// What an item means, where it means anything.
    fn item(&mut self, begins: bool, ends: bool, item: &Value) -> Option<AgentEvent> {
        let tool = match text(item, "type")? {
            "agent_message" if ends => {
                let mut said = text(item, "text").unwrap_or_default().to_owned();
                said.truncate(said.floor_char_boundary(MAX_TEXT_BYTES));
                self.last_message = Some(said.clone());
                return Some(AgentEvent::Text { text: said });
            }
            "reasoning" => return Some(AgentEvent::Thinking),
            "command_execution" => "shell".to_owned(),
            "file_change" => "apply_patch".to_owned(),
            "web_search" => "web_search".to_owned(),
            "mcp_tool_call" => {
                let part = |key| text(item, key).unwrap_or("?");
                shortened(&format!("{}.{}", part("server"), part("tool")), MAX_NAME_CHARS)
            }
            _ => return None,
        };
        if begins {
            return Some(AgentEvent::ToolUse { tool });
        }
        if !ends {
            return None;
        }
        let refused = matches!(text(item, "status"), Some("declined"));
        if refused || tool == "apply_patch" && text(item, "status") == Some("failed") {
            let target = text(item, "command").or_else(|| item.pointer("/changes/0/path").and_then(Value::as_str));
            let target = target.map(|target| shortened(target, MAX_TARGET_CHARS));
            return Some(AgentEvent::Denied { denial: PermissionDenial { tool, target } });
        }
        Some(AgentEvent::ToolResult)
    }

    /// An error it goes on from is a try of several; of another one it will say next that its turn has failed.
    fn error(&mut self, message: &str) -> AgentEvent {
        if let Some(again) = again(message) {
            return again;
        }
        self.error = Some(shortened(message, MAX_ERROR_CHARS));
        // Its words are in the turn's end.
        other("error")
    }

    fn result(&mut self, result: AgentResult) -> AgentEvent {
        self.ended = true;
        AgentEvent::Result { result: Box::new(AgentResult { session_id: self.thread.clone(), ..result }) }
    }
}

/// A turn that failed with these words. A status they name is worth more than the words; but for 400, which has many reasons.
fn failure(message: &str) -> AgentResult {
    AgentResult {
        subtype: Some("error_turn_failed".to_owned()),
        is_error: true,
        api_error_status: status(message).filter(|status| *status != 400),
        errors: vec![shortened(message, MAX_ERROR_CHARS)],
        ..AgentResult::default()
    }
}

/// The status of the provider that its words name.
fn status(message: &str) -> Option<u64> {
    let named = ["unexpected status ", "last status: "].into_iter().find_map(|before| message.split_once(before))?.1;
    named.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The note of a further try: `Reconnecting... 2/5 (why)`, or that it waits for the network.
fn again(message: &str) -> Option<AgentEvent> {
    let rest = message.strip_prefix("Reconnecting...")?.trim_start();
    let (tries, _) = rest.split_once(' ').unwrap_or((rest, ""));
    let (attempt, max) = tries.split_once('/').unwrap_or_default();
    let number = |digits: &str| digits.parse().unwrap_or(0);
    Some(AgentEvent::Retrying { attempt: number(attempt), max: number(max), delay_ms: 0, status: status(rest) })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::agents::probe::Features;
    use crate::agents::tests_support::{self, AgentTried, request, script, words};
    use crate::agents::{Agent as _, CliAgent, PROMPT_PREFIX, RunEnd, RunRequest, RunVerdict, SpawnFailure};
    use crate::base::fault::{Fault, FaultCode};
    use crate::base::ids::{AgentSessionId, ChainId, RunToken, UnixMillis};
    use crate::jobs::{Billing, ConsultRequest, JobState};

    const TRIED: AgentTried = AgentTried(&SHEET);

    const THREAD: &str = "01a21ad9-7c8b-7263-b423-ba109a3148e2";

    #[test]
    fn the_command_line_is_the_read_only_one() {
        let session = AgentSessionId::random();
        let full = ConsultRequest {
            session_id: Some(session),
            model: Some("gpt-5".into()),
            effort: Some("high".into()),
            ..request("p")
        };
        let args = TRIED.arguments(&full, &Features::newest(&QUESTIONS));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        assert_eq!(
            args[..7],
            ["exec", "--json", "--skip-git-repo-check", "-s", "read-only", "--ignore-user-config", "--ignore-rules"]
        );
        let has = |pair: [&str; 2]| args.windows(2).any(|words| words == pair);
        for feature in FEATURES {
            assert!(has(["--disable", feature]), "{feature}");
        }
        for setting in SETTINGS {
            assert!(has(["-c", setting]), "{setting}");
        }
        assert!(has(["-m", "gpt-5"]) && has(["-c", "model_reasoning_effort=\"high\""]), "{args:?}");
        assert_eq!(args[args.len() - 5..], ["--cd", "/", "resume", &session.to_string(), "-"]);
        // What a version does not know is not said to it.
        let bare = Features::newest(&QUESTIONS).without(&[
            "--ignore-user-config",
            "--ignore-rules",
            "--cd",
            "plugins",
            "apps",
        ]);
        let args = TRIED.arguments(&request("p"), &bare);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        for word in ["--ignore-user-config", "--ignore-rules", "--cd", "plugins", "apps", "resume"] {
            assert!(!args.contains(&word), "{word}");
        }
        assert!(args.contains(&"browser_use") && args.ends_with(&["-"]));
    }

    /// A program that answers its questions like this version, and refuses to run.
    fn program(dir: &Path, help: &str) -> PathBuf {
        script(
            dir,
            "codex",
            &format!(
                "case \"$1 $2\" in '--version ') echo 'codex-cli 9.9';; 'exec --help') echo '{help}';; \
                 'features list') echo 'plugins  stable  true';; *) exit 1;; esac"
            ),
        )
    }

    async fn prepared(
        dir: &Path,
        help: &str,
        request: &ConsultRequest,
        variables: &[(&str, &str)],
    ) -> Result<super::super::AgentCommand, Fault> {
        let program = program(dir, help);
        let environment: Environment = variables
            .iter()
            .copied()
            .collect::<Environment>()
            .with("PATH", std::env::var_os("PATH").unwrap_or_default())
            .with(SHEET.variable, program);
        let (token, chain) = (RunToken::random(), ChainId::random());
        let run =
            RunRequest { request, token, chain, depth: 0, environment: &environment, traceparent: None, there: None };
        CliAgent::of(&SHEET).prepare(&run, &dir.join("state")).await
    }

    const HELP: &str = "--json --sandbox --skip-git-repo-check --ignore-user-config --ignore-rules --cd --disable";

    #[tokio::test]
    async fn the_prompt_is_on_stdin_and_the_environment_holds_what_was_meant_for_it() {
        let dir = tempfile::tempdir().expect("scratch");
        let variables = [
            ("CODEX_HOME", "/home/one/.codex"),
            ("CODEX_API_KEY", "key-c"),
            ("OPENAI_API_KEY", "key-o"),
            ("OPENAI_BASE_URL", "http://elsewhere"),
            ("ANTHROPIC_API_KEY", "key-a"),
            ("CLAUDE_CODE_OAUTH_TOKEN", "token-a"),
            ("GEMINI_API_KEY", "key-g"),
            ("COPILOT_ALLOW_ALL", "true"),
        ];
        for (billing, keys) in [(Billing::Subscription, false), (Billing::ApiKey, true)] {
            let request = ConsultRequest { billing, ..request("/init CANARY @/etc/passwd") };
            let command = prepared(dir.path(), HELP, &request, &variables).await.expect("a command");
            assert_eq!(&command.stdin[..], format!("{PROMPT_PREFIX}/init CANARY @/etc/passwd").as_bytes());
            assert!(!format!("{:?} {:?}", command.args, command.env).contains("CANARY"));
            assert!(words(&command.args).windows(2).any(|words| words == ["--disable", "plugins"]));
            assert!(!words(&command.args).contains(&"apps"), "its list of features does not name it");
            let has = |name: &str| command.env.iter().any(|(known, _)| known == name);
            assert!(has("CODEX_HOME") && has("NO_COLOR") && has("PHONE_OPUS_RUN_TOKEN"));
            for name in ["CODEX_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"] {
                assert_eq!(has(name), keys, "{name} under {billing:?}");
            }
            for name in ["ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "GEMINI_API_KEY", "COPILOT_ALLOW_ALL"] {
                assert!(!has(name), "{name} under {billing:?}");
            }
            assert_eq!(command.key_withheld, !keys);
            let credential = if keys { Credential::Key } else { Credential::Nothing };
            assert_eq!(command.payment.credential, credential);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_kept_to_reading_or_asked_so_is_not_started() {
        let dir = tempfile::tempdir().expect("scratch");
        let fault = |help: &'static str, request: ConsultRequest| {
            let dir = tempfile::tempdir_in(dir.path()).expect("scratch");
            async move { prepared(dir.path(), help, &request, &[]).await.expect_err("a fault") }
        };
        let old = fault("--json --skip-git-repo-check", request("p")).await;
        assert_eq!(old.code, FaultCode::AgentUnsupported);
        assert!(old.detail.contains("codex-cli 9.9") && old.detail.contains("--sandbox"), "{old}");
        for limited in [
            ConsultRequest { max_turns: Some(3), ..request("p") },
            ConsultRequest { max_budget_usd: Some(0.5), ..request("p") },
        ] {
            let refused = fault(HELP, limited).await;
            assert_eq!(refused.code, FaultCode::InvalidInput, "{refused}");
        }
    }

    #[tokio::test]
    async fn who_pays_is_judged_before_the_start() {
        let dir = tempfile::tempdir().expect("scratch");
        let key = r#"{"auth_mode":"apikey","OPENAI_API_KEY":"sk-dummy"}"#;
        let old_key = r#"{"OPENAI_API_KEY":"sk-dummy","tokens":null}"#;
        let plan = r#"{"auth_mode":"chatgpt","OPENAI_API_KEY":null,"tokens":{"id_token":"x"}}"#;
        let old_plan = r#"{"OPENAI_API_KEY":"sk-dummy","tokens":{"id_token":"x"}}"#;
        use Billing::{ApiKey, Subscription};
        for (auth, said, billing, given, good) in [
            (Some(key), LoginSaid::Key, Subscription, false, false),
            (Some(old_key), LoginSaid::Key, Subscription, true, false),
            (Some(key), LoginSaid::Key, ApiKey, false, true),
            (Some(plan), LoginSaid::Plan, Subscription, true, true),
            (Some(old_plan), LoginSaid::Plan, Subscription, false, true),
            (Some(plan), LoginSaid::Plan, ApiKey, false, false),
            (Some(plan), LoginSaid::Plan, ApiKey, true, true),
            (Some("{ torn"), LoginSaid::Unsaid, Subscription, false, true),
            (None, LoginSaid::Unsaid, Subscription, false, true),
            (None, LoginSaid::Unsaid, ApiKey, true, true),
        ] {
            let file = dir.path().join("auth.json");
            let _ = std::fs::remove_file(&file);
            if let Some(auth) = auth {
                std::fs::write(&file, auth).expect("a login");
            }
            let home = dir.path().to_str().expect("text");
            let mut variables = vec![("CODEX_HOME", home)];
            variables.extend(given.then_some(("OPENAI_API_KEY", "key")));
            assert_eq!(login(&variables.iter().copied().collect()), said, "{auth:?}");
            let request = ConsultRequest { billing, ..request("p") };
            let came = prepared(dir.path(), HELP, &request, &variables).await.map(|_| ()).map_err(|fault| fault.code);
            assert_eq!(
                came,
                if good { Ok(()) } else { Err(FaultCode::BillingMismatch) },
                "{auth:?} {billing:?} {given}"
            );
        }
    }

    #[test]
    fn every_known_line_becomes_its_event() {
        let kind = |kind: &str| AgentEvent::Other { kind: kind.to_owned() };
        let tool = |tool: &str| AgentEvent::ToolUse { tool: tool.to_owned() };
        let denied = |tool: &str, target: &str| AgentEvent::Denied {
            denial: PermissionDenial { tool: tool.to_owned(), target: Some(target.to_owned()) },
        };
        let try_of = |attempt, max, status| AgentEvent::Retrying { attempt, max, delay_ms: 0, status };
        let table = [
            (
                format!(r#"{{"type":"thread.started","thread_id":"{THREAD}"}}"#),
                AgentEvent::Started { session_id: Some(THREAD.into()), model: None, key_source: None, version: None },
            ),
            (r#"{"type":"turn.started"}"#.to_owned(), kind("turn.started")),
            (r#"{"type":"item.completed","item":{"id":"i","type":"reasoning","text":"x"}}"#.to_owned(), AgentEvent::Thinking),
            (
                r#"{"type":"item.completed","item":{"id":"i","type":"agent_message","text":"a"}}"#.to_owned(),
                AgentEvent::Text { text: "a".into() },
            ),
            (
                r#"{"type":"item.started","item":{"type":"command_execution","command":"ls","status":"in_progress"}}"#.to_owned(),
                tool("shell"),
            ),
            (
                r#"{"type":"item.completed","item":{"type":"command_execution","command":"ls","exit_code":1,"status":"failed"}}"#
                    .to_owned(),
                AgentEvent::ToolResult,
            ),
            (
                r#"{"type":"item.completed","item":{"type":"command_execution","command":"rm x","status":"declined"}}"#.to_owned(),
                denied("shell", "rm x"),
            ),
            (
                r#"{"type":"item.completed","item":{"type":"file_change","changes":[{"path":"/w/x","kind":"add"}],"status":"failed"}}"#
                    .to_owned(),
                denied("apply_patch", "/w/x"),
            ),
            (
                r#"{"type":"item.started","item":{"type":"mcp_tool_call","server":"s","tool":"t","status":"in_progress"}}"#.to_owned(),
                tool("s.t"),
            ),
            (r#"{"type":"item.updated","item":{"type":"todo_list","items":[]}}"#.to_owned(), kind("item.updated/todo_list")),
            (r#"{"type":"item.completed","item":{"type":"error","message":"w"}}"#.to_owned(), kind("item.completed/error")),
            (
                r#"{"type":"error","message":"Reconnecting... 2/5 (unexpected status 503 Service Unavailable: x)"}"#.to_owned(),
                try_of(2, 5, Some(503)),
            ),
            (
                r#"{"type":"error","message":"Reconnecting... waiting for network (Connection failed: x)"}"#.to_owned(),
                try_of(0, 0, None),
            ),
            (r#"{"type":"error","message":"it broke"}"#.to_owned(), kind("error")),
            (r#"{"type":"tomorrow","x":[1]}"#.to_owned(), kind("tomorrow")),
            ("plain text".to_owned(), AgentEvent::Garbage { bytes: 10 }),
            ("42".to_owned(), AgentEvent::Garbage { bytes: 2 }),
        ];
        for (line, event) in table {
            let (mut parser, mut out) = (CodexStream::new(), Vec::new());
            parser.line(line.as_bytes(), &mut out);
            assert_eq!(out, [event], "{line}");
        }
        assert_eq!(TRIED.events(&[" ", ""]), []);
    }

    #[test]
    fn the_answer_is_the_last_message_before_the_turns_end_and_costs_are_not_known() {
        let lines = [
            &format!(r#"{{"type":"thread.started","thread_id":"{THREAD}"}}"#),
            r#"{"type":"item.completed","item":{"type":"agent_message","text":"first"}}"#,
            r#"{"type":"item.completed","item":{"type":"command_execution","status":"completed","exit_code":0}}"#,
            r#"{"type":"item.completed","item":{"type":"agent_message","text":"half \ud83d"}}"#,
            r#"{"type":"turn.completed","usage":{"input_tokens":10,"output_tokens":2}}"#,
        ];
        let Some(AgentEvent::Result { result }) = TRIED.events(&lines).pop() else { panic!("no result") };
        assert_eq!((result.text.as_deref(), result.session_id.as_deref()), (Some("half \u{fffd}"), Some(THREAD)));
        assert_eq!(result.usage, Some(serde_json::json!({"input_tokens": 10, "output_tokens": 2})));
        assert_eq!((result.cost_usd, result.num_turns, result.is_error), (None, None, false));
    }

    /// What becomes of a run that wrote these lines.
    fn verdict(code: i32, stderr: &str, lines: &[&str]) -> RunVerdict {
        // 2026-11-27T12:00:00Z
        let at = Some(UnixMillis(1_795_780_800_000));
        let resume_requested = stderr.contains("rollout").then(AgentSessionId::random);
        PROFILE.classify(RunEnd { at, resume_requested, ..tests_support::run_end(code, stderr, &TRIED.events(lines)) })
    }

    fn failed(message: &str) -> Vec<String> {
        let message = Value::from(message);
        vec![
            format!(r#"{{"type":"thread.started","thread_id":"{THREAD}"}}"#),
            r#"{"type":"turn.started"}"#.to_owned(),
            format!(r#"{{"type":"error","message":{message}}}"#),
            format!(r#"{{"type":"turn.failed","error":{{"message":{message}}}}}"#),
        ]
    }

    #[test]
    fn every_end_it_really_has_is_judged_by_what_it_says() {
        use FaultCode as C;
        // As Codex 0.169.0 writes them.
        let table = [
            ("unexpected status 401 Unauthorized: no, url: http://x/responses", C::AgentNotLoggedIn),
            ("unexpected status 403 Forbidden: no, url: http://x/responses", C::AgentNotLoggedIn),
            ("Missing environment variable: `MY_KEY`. It is not set.", C::AgentNotLoggedIn),
            ("Your access token could not be refreshed. Please log out and sign in again.", C::AgentNotLoggedIn),
            ("unexpected status 404 Not Found: no, url: http://x/responses", C::AgentModel),
            (
                "unexpected status 400 Bad Request: {\"detail\":\"The 'x' model is not supported when using Codex\"}",
                C::AgentModel,
            ),
            ("exceeded retry limit, last status: 429 Too Many Requests", C::AgentRateLimited),
            ("rate limit exceeded: Rate limit reached, try again in 11s", C::AgentRateLimited),
            ("You’ve hit your usage limit. Try again later.", C::AgentRateLimited),
            ("Quota exceeded. Check your plan and billing details.", C::AgentBilling),
            ("unexpected status 503 Service Unavailable: no, url: http://x/responses", C::AgentUpstream),
            ("We’re currently experiencing high demand, which may cause temporary errors.", C::AgentOverloaded),
            ("Selected model is at capacity. Please try a different model.", C::AgentOverloaded),
            ("stream disconnected before completion: error sending request", C::AgentUpstream),
            (
                "Codex ran out of room in the model's context window. Start a new thread or clear earlier history before retrying.",
                C::InputTooLarge,
            ),
            ("Incomplete response returned, reason: max_output_tokens", C::AnswerTooLong),
            ("Incomplete response returned, reason: content_filter", C::Refused),
            ("something new", C::AgentError),
            ("", C::AgentError),
        ];
        for (message, code) in table {
            let lines = failed(message);
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            // The same where it ended before it said that its turn had failed; of no words nothing is known then.
            let cut = if message.is_empty() { &lines[..] } else { &lines[..3] };
            for lines in [&lines[..], cut] {
                let seen = verdict(1, "", lines);
                let fault = seen.outcome.fault.expect("a fault");
                assert_eq!((seen.state, fault.code), (JobState::Failed, code), "{message}: {fault}");
                assert_eq!(seen.outcome.session_id.as_deref(), Some(THREAD), "{message}");
                assert_eq!(seen.outcome.billing.as_deref(), Some("unproven"), "{message}");
            }
        }
        let table = [
            ("Error: thread/resume failed: no rollout found for thread id x (code -32600)", 1, C::UnknownSession),
            ("error: unexpected argument '--no-such-thing' found", 2, C::AgentUnsupported),
            ("Error: Unknown feature flag: nosuch", 1, C::AgentUnsupported),
            ("it broke", 1, C::AgentError),
            ("", 0, C::AgentProtocol),
            ("", 143, C::AgentKilled),
        ];
        for (stderr, exit, code) in table {
            let fault = verdict(exit, stderr, &[]).outcome.fault.expect("a fault");
            assert_eq!(fault.code, code, "{stderr} {exit}");
        }
    }

    #[test]
    fn success_needs_the_turns_end_and_says_that_its_payer_is_not_proven() {
        let start = format!(r#"{{"type":"thread.started","thread_id":"{THREAD}"}}"#);
        let said = r#"{"type":"item.completed","item":{"type":"agent_message","text":"42"}}"#;
        let done = r#"{"type":"turn.completed","usage":{"input_tokens":1,"output_tokens":2}}"#;
        let good = verdict(0, "", &[&start, said, done]);
        assert_eq!((good.state, good.outcome.response.as_deref()), (JobState::Succeeded, Some("42")));
        assert_eq!((good.outcome.billing.as_deref(), good.outcome.cost_usd), (Some("unproven"), None));
        assert_eq!((good.outcome.session_id.as_deref(), good.outcome.resumable), (Some(THREAD), Some(true)));
        let cut = verdict(0, "", &[&start, said]);
        assert_eq!(cut.outcome.fault.map(|fault| fault.code), Some(FaultCode::AgentProtocol));
        let silent = verdict(0, "", &[&start, done]);
        assert_eq!(silent.outcome.fault.map(|fault| fault.code), Some(FaultCode::EmptyAnswer));
        // It got over an error, and went on.
        let tries = r#"{"type":"error","message":"Reconnecting... 1/5 (x)"}"#;
        assert_eq!(verdict(0, "", &[&start, tries, said, done]).state, JobState::Succeeded);
        let not_started = PROFILE.classify(RunEnd { spawn_error: Some(SpawnFailure::Missing), ..RunEnd::default() });
        assert_eq!(not_started.outcome.billing, None);
    }

    #[test]
    fn a_usage_limit_says_when_it_is_lifted_where_it_does() {
        let hour = 3_600_000;
        for (message, after) in [
            (
                "You’ve hit your usage limit. Upgrade to Pro or try again in 2 hours 30 minutes.",
                Some(2 * hour + hour / 2),
            ),
            ("You've hit your usage limit. Try again in 3 days.", Some(72 * hour)),
            ("rate limit exceeded: Rate limit reached, try again in 11s", Some(11_000)),
            ("You’ve hit your usage limit. Try again later.", None),
        ] {
            let lines = failed(message);
            let fault =
                verdict(1, "", &lines.iter().map(String::as_str).collect::<Vec<_>>()).outcome.fault.expect("a fault");
            assert_eq!(fault.retry_at.map(|at| at.0 - 1_795_780_800_000), after, "{message}");
        }
    }

    #[test]
    fn random_damage_never_panics_and_always_gives_bounded_events() {
        let sample = r#"{"type":"item.completed","item":{"type":"mcp_tool_call","server":"\ud83d","tool":1,"status":"x"},"usage":{}}"#;
        tests_support::expect_damage_is_survived(0xc0de, sample, SHEET.parser);
    }
}
