//! OpenCode.
//!
//! Owns: its command line, what of the environment it gets, what a project may not bring along, how it is seen who pays, and what a
//! line of its output means. May not know how it is run. Its end is judged by `classify`.
//!
//! It is run as an agent of our own making, of which the variable that holds its configuration says that it may read, search and list
//! and nothing else. Rules of the last word count, and nobody else has a word about an agent of that name. Configurations of the
//! project are left out; but what they name as plugins, and what lies in the project as plugins, it runs as code whatever it is told.
//! A directory with such is refused.
//!
//! Asked to go on with a session of another directory, a directory below it among them, it says nothing at all, for good. Where a
//! session was had it says itself.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::{Deserializer, Value, json};

use super::classify::AgentProfile;
use super::cli::{self, Invocation, Login, LoginSaid, SessionPlace, Sheet};
use super::environment::Passes;
use super::environment::Value::{Path as Place, Text};
use super::fields::{EventStream, Events, MAX_ERROR_CHARS, MAX_TARGET_CHARS, name, other, shortened, text};
use super::probe::Need::{Must, Used};
use super::probe::Questions;
use super::{AgentEvent, AgentResult, Credential, Environment, PayerKnown, ResumedId};
use crate::base::fault::{Fault, FaultCode};
use crate::base::lenient;
use crate::jobs::{ConsultRequest, PermissionDenial};

const PROFILE: AgentProfile = AgentProfile::new("OpenCode")
    .install_hint(
        "Install OpenCode (`npm install -g opencode-ai`), or point PHONE_OPUS_OPENCODE_BIN at its program; a host that hands on no \
         PATH must be told in its server configuration.",
    )
    .login_hint(
        "Run `opencode auth login` once in a terminal. A host that hands on only part of its environment must also hand on HOME, and \
         XDG_DATA_HOME and XDG_CONFIG_HOME where they are used.",
    )
    .kept_to_reading_by("three reading tools, confined to the directory and the repository it is in")
    .keeps_sessions_named("ses_")
    .names_no_payer();

/// What of the environment passes to it. It takes the keys of many providers; those of one vendor's own agent are that agent's.
static PASSES: Passes = Passes {
    agent: "opencode",
    always: &[("OPENCODE_CONFIG", Place), ("OPENCODE_CONFIG_DIR", Place)],
    paid: &[
        ("OPENCODE_API_KEY", Text),
        ("OPENROUTER_API_KEY", Text),
        ("OPENAI_API_KEY", Text),
        // What it keeps in its file of logins, keys among it.
        ("OPENCODE_AUTH_CONTENT", Text),
    ],
    keys: &[
        ("OPENCODE_API_KEY", Credential::Key),
        ("OPENROUTER_API_KEY", Credential::Key),
        ("OPENAI_API_KEY", Credential::Key),
        ("OPENCODE_AUTH_CONTENT", Credential::Unnamed),
    ],
    homes: &["XDG_DATA_HOME", "HOME"],
    ..Passes::NOTHING
};

/// The agent it is run as.
const AGENT: &str = "phone-opus";

/// What a session is called; it would ask its model for a name.
const TITLE: &str = "Asked by another agent";

/// What is looked for in its help.
static QUESTIONS: Questions = Questions {
    agent: "opencode",
    helps: &[&["run", "--help"]],
    mark: "--format",
    looked_for: &[
        ("--format", Must),
        ("json", Must),
        // As whom it is run.
        ("--agent", Must),
        // Plugins of its user's do not run.
        ("--pure", Used),
        // Otherwise it asks its model for one.
        ("--title", Used),
        ("--session", Used),
        ("--variant", Used),
    ],
};

/// Its configuration for a run, over its user's. Of the rules of an agent the last that fits counts, whatever stands before them.
const CONFIG: &str = r#"{"agent":{"phone-opus":{"mode":"primary","permission":{"*":"deny","read":"allow","grep":"allow","glob":"allow","list":"allow","external_directory":"deny"}}},"snapshot":false,"share":"disabled","autoupdate":false,"lsp":false,"formatter":false}"#;

/// Set for every run.
const OWN_VARIABLES: &[(&str, &str)] = &[
    ("OPENCODE_CONFIG_CONTENT", CONFIG),
    ("OPENCODE_DISABLE_PROJECT_CONFIG", "1"),
    // Instructions and skills that were written for Claude Code.
    ("OPENCODE_DISABLE_CLAUDE_CODE", "1"),
    ("OPENCODE_DISABLE_EXTERNAL_SKILLS", "1"),
    ("OPENCODE_DISABLE_AUTOUPDATE", "1"),
    ("OPENCODE_DISABLE_MODELS_FETCH", "1"),
    ("OPENCODE_DISABLE_LSP_DOWNLOAD", "1"),
];

pub(super) static SHEET: Sheet = Sheet {
    name: "opencode",
    variable: "PHONE_OPUS_OPENCODE_BIN",
    profile: PROFILE,
    questions: &QUESTIONS,
    passes: &PASSES,
    own_variables: OWN_VARIABLES,
    blanked: &[],
    held_to: None,
    arguments: |invocation| arguments(invocation),
    check,
    resumed_id: |_| ResumedId::Same,
    session_option: None,
    session_place: Some(SessionPlace { words: &["export"], read: place_of_session }),
    parser: || Box::new(Events(OpenCode::default())),
    payer: PayerKnown::BeforeStart,
    check_start: cli::says_nothing_of_its_payer,
    login: Login::Seen(login),
};

/// The command line. The prompt is on standard input alone.
fn arguments(invocation: &Invocation<'_>) -> Vec<OsString> {
    let request = invocation.request;
    let mut args: Vec<OsString> = ["run", "--format", "json", "--agent", AGENT].map(OsString::from).into();
    let mut add = |words: &[&str]| args.extend(words.iter().map(OsString::from));
    if invocation.has("--pure") {
        add(&["--pure"]);
    }
    if let Some(model) = &request.model {
        add(&["-m", model]);
    }
    if let Some(effort) = request.effort.as_deref().filter(|_| invocation.has("--variant")) {
        add(&["--variant", effort]);
    }
    match &request.session_id {
        Some(session) => add(&["-s", session.as_str()]),
        // A session that is gone on with has its name.
        None if invocation.has("--title") => add(&["--title", TITLE]),
        None => {}
    }
    args
}

/// The directory of a session, as `opencode export` says it (1.18). The session may be longer than what was read of it; what it is
/// comes first.
fn place_of_session(exported: &str) -> Option<PathBuf> {
    let (_, rest) = exported.split_once("\"info\"")?;
    let info = rest.trim_start().strip_prefix(':')?;
    let info = Deserializer::from_str(info).into_iter::<Value>().next()?.ok()?;
    text(&info, "directory").map(PathBuf::from)
}

/// It has no such limits, and is not run where a project brings it code.
fn check(request: &ConsultRequest, environment: &Environment) -> Result<(), Fault> {
    cli::no_limits("OpenCode", request)?;
    if request.model.as_deref().is_some_and(|model| !model.contains('/')) {
        let detail = "`model`: OpenCode names a model with its provider, as `anthropic/claude-sonnet-4-5`.";
        return Err(Fault::new(FaultCode::InvalidInput, detail).hint("`opencode models` lists them."));
    }
    match brought(&request.cwd, environment.get("HOME").map(Path::new)) {
        None => Ok(()),
        Some(place) => {
            let detail = format!(
                "`cwd`: OpenCode would run code that the project brings along as a plugin ({}), and cannot be told not to.",
                place.display()
            );
            Err(Fault::new(FaultCode::InvalidInput, detail).hint("Ask another agent about this directory."))
        }
    }
}

/// Bytes of a configuration that is looked at; a real one has a few thousand. A longer one is taken for one with a plugin.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// What of a project it would run as code: a plugin in the directory or one above it, or a configuration that may name one. What
/// lies in the user's home itself, or above it, is no project's.
fn brought(cwd: &Path, home: Option<&Path>) -> Option<PathBuf> {
    // It is run by the directory's own name, and looks above that.
    let cwd = cwd.canonicalize().unwrap_or_else(|_| cwd.to_owned());
    let home = home.and_then(|home| home.canonicalize().ok());
    let of_projects = |dir: &&Path| !home.as_ref().is_some_and(|home| home.starts_with(dir));
    cwd.ancestors().take_while(of_projects).find_map(|dir| {
        let own = dir.join(".opencode");
        let plugins = ["plugin", "plugins"].map(|name| own.join(name));
        let configs =
            [dir, own.as_path()].into_iter().flat_map(|dir| [dir.join("opencode.json"), dir.join("opencode.jsonc")]);
        plugins
            .into_iter()
            .find(|place| holds_files(place))
            .or_else(|| configs.into_iter().find(|file| may_name_one(file)))
    })
}

fn holds_files(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}

/// Whether a configuration names a plugin, or could in letters that are written as numbers.
fn may_name_one(file: &Path) -> bool {
    match std::fs::metadata(file) {
        Ok(data) if data.is_file() && data.len() <= MAX_CONFIG_BYTES => {
            let content = std::fs::read(file).unwrap_or_default();
            let content = String::from_utf8_lossy(&content).to_lowercase();
            content.contains("plugin") || content.contains("\\u")
        }
        Ok(_) => true,
        Err(_) => false,
    }
}

/// By what it is logged in to its providers, seen in its file of logins. It may be logged in to several, and the model decides.
fn login(environment: &Environment) -> LoginSaid {
    let place = |name| environment.get(name).map(PathBuf::from).filter(|place| place.is_absolute());
    let data = place("XDG_DATA_HOME").or_else(|| Some(place("HOME")?.join(".local/share")));
    let Some(file) = data.map(|data| data.join("opencode/auth.json")) else { return LoginSaid::Unsaid };
    let bytes = std::fs::read(file).unwrap_or_default();
    let said: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let kinds: Vec<&str> = said.as_object().into_iter().flatten().filter_map(|(_, one)| text(one, "type")).collect();
    match kinds.first() {
        None => LoginSaid::Unsaid,
        Some(_) if kinds.iter().all(|kind| *kind == "oauth") => LoginSaid::Plan,
        Some(_) if kinds.iter().all(|kind| *kind == "api") => LoginSaid::Key,
        Some(_) => LoginSaid::Somehow,
    }
}

/// Bytes of an answer that are kept in one message; longer ones are no answers any more.
const MAX_TEXT_BYTES: usize = 16 << 20;

/// Reads what it writes with `--format json`: one event a line, of which unknown ones are passed over.
///
/// No event ends a run by itself: the answer is there when a step has ended for another reason than that tools are to be used.
#[derive(Debug, Default)]
struct OpenCode {
    session: Option<String>,
    /// What was said in the step.
    message: Option<String>,
    steps: u64,
    spent: Spent,
}

/// What the steps have used so far.
#[derive(Debug, Default)]
struct Spent {
    cost: f64,
    /// By its name in the reply, in the order of [`COUNTS`].
    tokens: [u64; COUNTS.len()],
}

/// Its counts of tokens, and what they are called in replies.
const COUNTS: [(&str, &str); 5] = [
    ("/input", "input_tokens"),
    ("/output", "output_tokens"),
    ("/reasoning", "reasoning_tokens"),
    ("/cache/read", "cache_read_input_tokens"),
    ("/cache/write", "cache_creation_input_tokens"),
];

impl Spent {
    fn add(&mut self, part: &Value) {
        let cost = part.get("cost").and_then(Value::as_f64).filter(|cost| cost.is_finite() && *cost > 0.0);
        self.cost += cost.unwrap_or(0.0);
        let Some(tokens) = part.get("tokens") else { return };
        for (count, (place, _)) in self.tokens.iter_mut().zip(COUNTS) {
            *count = count.saturating_add(tokens.pointer(place).and_then(Value::as_u64).unwrap_or(0));
        }
    }

    fn usage(&self) -> Option<Value> {
        let told = || COUNTS.iter().zip(self.tokens).map(|((_, name), count)| ((*name).to_owned(), json!(count)));
        self.tokens.iter().any(|count| *count > 0).then(|| Value::Object(told().collect()))
    }
}

impl EventStream for OpenCode {
    fn event(&mut self, kind: &str, event: &Value, out: &mut Vec<AgentEvent>) {
        if self.session.is_none()
            && let Some(session) = name(event, "sessionID")
        {
            self.session = Some(session);
            let session_id = self.session.clone();
            out.push(AgentEvent::Started { session_id, model: None, key_source: None, version: None });
        }
        let none = Value::Null;
        let part = event.get("part").unwrap_or(&none);
        match kind {
            "step_start" => {
                self.message = None;
                out.push(AgentEvent::Thinking);
            }
            "reasoning" => out.push(AgentEvent::Thinking),
            "text" => out.push(self.text(text(part, "text").unwrap_or_default())),
            "tool_use" => out.extend(tool(part)),
            "step_finish" => out.push(self.step_over(part)),
            "error" => {
                let result = self.failed(event.get("error").unwrap_or(&none));
                out.push(AgentEvent::Result { result: Box::new(result) });
            }
            _ => out.push(other(kind)),
        }
    }
}

impl OpenCode {
    fn text(&mut self, said: &str) -> AgentEvent {
        if lenient::is_blank(said) {
            return other("text");
        }
        let said = said[..said.floor_char_boundary(MAX_TEXT_BYTES)].to_owned();
        self.message = Some(said.clone());
        AgentEvent::Text { text: said }
    }

    fn step_over(&mut self, part: &Value) -> AgentEvent {
        self.steps += 1;
        self.spent.add(part);
        let reason = text(part, "reason").unwrap_or_default();
        if reason == "tool-calls" {
            return other("step_finish");
        }
        let ended = |error: &str| AgentResult { errors: vec![error.to_owned()], ..self.error() };
        let result = match reason {
            "length" => ended("The answer reached max_output_tokens."),
            "error" => ended("The step ended with an error."),
            _ => AgentResult {
                subtype: Some("success".to_owned()),
                text: self.message.take(),
                // By this word the shared table knows a refusal.
                stop_reason: Some(if reason == "content-filter" {
                    "refusal".to_owned()
                } else {
                    shortened(reason, 40)
                }),
                ..self.known()
            },
        };
        AgentEvent::Result { result: Box::new(result) }
    }

    /// What it says when a provider, or it itself, has failed.
    fn failed(&self, error: &Value) -> AgentResult {
        let none = Value::Null;
        let data = error.get("data").unwrap_or(&none);
        let message = shortened(text(data, "message").unwrap_or_default(), MAX_ERROR_CHARS);
        let status = data.get("statusCode").and_then(Value::as_u64);
        let kind = text(error, "name").unwrap_or_default();
        AgentResult {
            // These two have many reasons, which only the words tell apart.
            api_error_status: match kind {
                "ProviderAuthError" => Some(401),
                _ => status.filter(|status| ![400, 402].contains(status)),
            },
            terminal_reason: (kind == "ContextOverflowError").then(|| "prompt_too_long".to_owned()),
            errors: match kind {
                "MessageOutputLengthError" => vec!["The answer reached max_output_tokens.".to_owned()],
                _ => vec![message],
            },
            ..self.error()
        }
    }

    fn error(&self) -> AgentResult {
        AgentResult { subtype: Some("error_reported".to_owned()), is_error: true, ..self.known() }
    }

    fn known(&self) -> AgentResult {
        AgentResult {
            session_id: self.session.clone(),
            num_turns: Some(self.steps).filter(|steps| *steps > 0),
            // Of a model whose prices it does not know it says 0.
            cost_usd: Some(self.spent.cost).filter(|cost| *cost > 0.0),
            usage: self.spent.usage(),
            ..AgentResult::default()
        }
    }
}

/// A tool that was used: it is told when it has come to its end.
fn tool(part: &Value) -> [AgentEvent; 2] {
    let none = Value::Null;
    let state = part.get("state").unwrap_or(&none);
    let tool = name(part, "tool").unwrap_or_default();
    let keys = ["filePath", "path", "command", "url", "pattern"];
    let target = keys.into_iter().find_map(|key| text(state.get("input")?, key));
    let target = target.map(|target| shortened(target, MAX_TARGET_CHARS));
    // A tool that is withheld does not exist for it; older versions say so as the result of a tool `invalid`.
    let refusals = ["unavailable tool", "rule which prevents", "rejected permission"];
    let error = text(state, "error").unwrap_or_default();
    let refused = text(state, "status") == Some("error") && refusals.iter().any(|words| error.contains(words));
    let over = if refused || tool == "invalid" {
        AgentEvent::Denied { denial: PermissionDenial { tool: tool.clone(), target } }
    } else {
        AgentEvent::ToolResult
    };
    [AgentEvent::ToolUse { tool }, over]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::RunEnd;
    use crate::agents::probe::Features;
    use crate::agents::tests_support::{self, AgentTried, request};
    use crate::base::ids::AgentSessionId;
    use crate::jobs::{Billing, JobState};

    const TRIED: AgentTried = AgentTried(&SHEET);

    const SESSION: &str = "ses_de457804bffeBYrIDvN3KCkJMW";

    #[test]
    fn the_command_line_is_the_read_only_one() {
        let session: AgentSessionId = SESSION.parse().expect("an id");
        let full = ConsultRequest {
            session_id: Some(session),
            model: Some("p/m".into()),
            effort: Some("high".into()),
            ..request("p")
        };
        let newest = Features::newest(&QUESTIONS);
        let kept = ["run", "--format", "json", "--agent", AGENT];
        let more = ["--pure", "-m", "p/m", "--variant", "high", "-s", SESSION];
        assert_eq!(TRIED.arguments(&full, &newest), [&kept[..], &more].concat());
        assert_eq!(TRIED.arguments(&request("p"), &newest), [&kept[..], &["--pure", "--title", TITLE]].concat());
        let old = newest.without(&["--pure", "--title", "--variant", "--session"]);
        assert_eq!(TRIED.arguments(&ConsultRequest { effort: Some("high".into()), ..request("p") }, &old), kept);
        // What keeps it to reading is for the agent it is run as, and in the order that counts.
        let config: Value = serde_json::from_str(CONFIG).expect("JSON");
        let rules = config.pointer("/agent/phone-opus/permission").and_then(Value::as_object).expect("its rules");
        assert!(CONFIG.find("\"*\":\"deny\"") < CONFIG.find("\"allow\""));
        let allowed: Vec<&str> =
            rules.iter().filter(|(_, rule)| *rule == "allow").map(|(tool, _)| tool.as_str()).collect();
        assert_eq!(allowed.len(), 4, "{allowed:?}");
        assert!(["read", "grep", "glob", "list"].iter().all(|tool| allowed.contains(tool)));
    }

    #[test]
    fn a_directory_in_which_a_project_brings_it_code_is_refused() {
        let scratch = tempfile::tempdir().expect("scratch");
        let home = scratch.path().join("home");
        let (top, sub) = (home.join("project"), home.join("project/a/b"));
        std::fs::create_dir_all(&sub).expect("directories");
        let environment: Environment = [("HOME", home.clone())].into_iter().collect();
        let code = |cwd: &Path| {
            let asked = ConsultRequest { cwd: cwd.to_owned(), ..request("p") };
            check(&asked, &environment).map_err(|fault| {
                (fault.code, fault.detail.contains(".opencode") || fault.detail.contains("opencode.json"))
            })
        };
        let refused = Err((FaultCode::InvalidInput, true));
        assert_eq!(code(&sub), Ok(()));
        // What is the user's own counts as it does for any other run of it.
        for own in [home.join(".opencode/plugin"), home.join(".config/opencode/plugin")] {
            std::fs::create_dir_all(&own).expect("a directory");
            std::fs::write(own.join("mine.js"), "").expect("a plugin");
        }
        std::fs::write(home.join("opencode.json"), r#"{"plugin":["x"]}"#).expect("a configuration");
        assert_eq!(code(&sub), Ok(()));
        for (place, content, good) in [
            (".opencode/plugin/x.js", "", false),
            (".opencode/plugins/x.ts", "", false),
            ("opencode.json", r#"{"plugin":["./x.js"]}"#, false),
            ("opencode.jsonc", "{ // mine\n \"plugins\": [] }", false),
            (".opencode/opencode.json", r#"{"plug\u0069n":["./x.js"]}"#, false),
            ("opencode.json", r#"{"model":"p/m"}"#, true),
            (".opencode/agent/x.md", "an agent", true),
        ] {
            for dir in [&sub, &top] {
                let file = dir.join(place);
                std::fs::create_dir_all(file.parent().expect("a directory")).expect("made");
                std::fs::write(&file, content).expect("written");
                assert_eq!(code(&sub), if good { Ok(()) } else { refused }, "{place} in {}", dir.display());
                std::fs::remove_file(&file).expect("removed");
                if let Some(made) = file.parent().filter(|made| made.ends_with("plugin") || made.ends_with("plugins")) {
                    std::fs::remove_dir(made).expect("removed");
                }
            }
        }
        // Longer than is looked at.
        std::fs::write(top.join("opencode.json"), " ".repeat(2 << 20)).expect("written");
        assert_eq!(code(&sub), refused);
    }

    #[test]
    fn what_it_cannot_be_asked_is_refused_and_who_pays_is_seen_in_its_file_of_logins() {
        let scratch = tempfile::tempdir().expect("scratch");
        let env: Environment = [("XDG_DATA_HOME", scratch.path())].into_iter().collect();
        let code = |request: &ConsultRequest| check(request, &env).map_err(|fault| fault.code);
        assert_eq!(login(&env), LoginSaid::Unsaid);
        for wrong in [
            ConsultRequest { max_turns: Some(1), ..request("p") },
            ConsultRequest { max_budget_usd: Some(1.0), ..request("p") },
            ConsultRequest { model: Some("sonnet".into()), ..request("p") },
        ] {
            assert_eq!(code(&wrong), Err(FaultCode::InvalidInput));
        }
        assert_eq!(code(&ConsultRequest { billing: Billing::ApiKey, ..request("p") }), Ok(()));
        std::fs::create_dir(scratch.path().join("opencode")).expect("its directory");
        for (content, said) in [
            ("{}", LoginSaid::Unsaid),
            (r#"{"anthropic":{"type":"oauth","access":"x"}}"#, LoginSaid::Plan),
            (r#"{"openai":{"type":"api","key":"dummy"}}"#, LoginSaid::Key),
            (r#"{"a":{"type":"oauth"},"b":{"type":"api"}}"#, LoginSaid::Somehow),
            (r#"{"a":{"type":"wellknown"}}"#, LoginSaid::Somehow),
            ("no JSON", LoginSaid::Unsaid),
        ] {
            std::fs::write(scratch.path().join("opencode/auth.json"), content).expect("a file");
            assert_eq!(login(&env), said, "{content}");
        }
    }

    fn event(kind: &str, part: &str) -> String {
        format!(r#"{{"type":"{kind}","timestamp":1795760359501,"sessionID":"{SESSION}","part":{part}}}"#)
    }

    fn over(reason: &str) -> String {
        let tokens = r#"{"total":13,"input":10,"output":3,"reasoning":0,"cache":{"write":0,"read":2}}"#;
        event("step_finish", &format!(r#"{{"type":"step-finish","reason":"{reason}","tokens":{tokens},"cost":0.125}}"#))
    }

    #[test]
    fn every_known_line_becomes_its_event() {
        let started =
            AgentEvent::Started { session_id: Some(SESSION.into()), model: None, key_source: None, version: None };
        let used = |status: &str| {
            event(
                "tool_use",
                &format!(r#"{{"type":"tool","tool":"write","state":{{"input":{{"filePath":"/w/x"}},{status}}}}}"#),
            )
        };
        let denied =
            AgentEvent::Denied { denial: PermissionDenial { tool: "write".into(), target: Some("/w/x".into()) } };
        let kind = |kind: &str| AgentEvent::Other { kind: kind.into() };
        let tool = || AgentEvent::ToolUse { tool: "write".into() };
        for (line, expected) in [
            (event("step_start", r#"{"type":"step-start"}"#), vec![AgentEvent::Thinking]),
            (event("reasoning", r#"{"type":"reasoning","text":"…"}"#), vec![AgentEvent::Thinking]),
            (event("text", r#"{"type":"text","text":"a"}"#), vec![AgentEvent::Text { text: "a".into() }]),
            (event("text", r#"{"type":"text","text":" "}"#), vec![kind("text")]),
            (
                used(
                    r#""status":"error","error":"Model tried to call unavailable tool 'invalid'. Available tools: read.""#,
                ),
                vec![tool(), denied.clone()],
            ),
            (
                used(r#""status":"error","error":"The user has specified a rule which prevents you from using this""#),
                vec![tool(), denied],
            ),
            (used(r#""status":"error","error":"File not found""#), vec![tool(), AgentEvent::ToolResult]),
            (used(r#""status":"completed","output":"x""#), vec![tool(), AgentEvent::ToolResult]),
            (over("tool-calls"), vec![kind("step_finish")]),
            (event("tomorrow", "{}"), vec![kind("tomorrow")]),
        ] {
            assert_eq!(TRIED.events(&[&line]), [&[started.clone()][..], &expected[..]].concat(), "{line}");
        }
        assert_eq!(TRIED.events(&["Migrating …"]), [AgentEvent::Garbage { bytes: 13 }]);
        let old = event("tool_use", r#"{"tool":"invalid","state":{"status":"completed","input":{"tool":"bash"}}}"#);
        assert!(matches!(TRIED.events(&[&old])[..], [_, _, AgentEvent::Denied { .. }]));
    }

    #[test]
    fn every_end_it_really_has_is_judged_by_what_it_says() {
        use FaultCode as C;
        let failed =
            |error: &str| format!(r#"{{"type":"error","timestamp":1,"sessionID":"{SESSION}","error":{error}}}"#);
        let api = |status: u16| {
            failed(&format!(
                r#"{{"name":"APIError","data":{{"message":"no such luck","statusCode":{status},"isRetryable":false}}}}"#
            ))
        };
        let unknown = |message: &str| failed(&format!(r#"{{"name":"UnknownError","data":{{"message":"{message}"}}}}"#));
        for (error, code) in [
            (api(401), C::AgentNotLoggedIn),
            (api(403), C::AgentNotLoggedIn),
            (api(404), C::AgentModel),
            (api(429), C::AgentRateLimited),
            (api(500), C::AgentUpstream),
            (api(529), C::AgentOverloaded),
            (api(413), C::InputTooLarge),
            (api(400), C::AgentError),
            (failed(r#"{"name":"ProviderAuthError","data":{"providerID":"p","message":"no"}}"#), C::AgentNotLoggedIn),
            (failed(r#"{"name":"ContextOverflowError","data":{"message":"too much"}}"#), C::InputTooLarge),
            (failed(r#"{"name":"MessageOutputLengthError","data":{}}"#), C::AnswerTooLong),
            (
                unknown("Cannot connect to API: Unable to connect. Is the computer able to access the url?"),
                C::AgentUpstream,
            ),
            (unknown("Model not found: p/m."), C::AgentModel),
            (unknown("You have reached your usage limit."), C::AgentRateLimited),
            (unknown("something new"), C::AgentError),
            (over("length"), C::AnswerTooLong),
            (over("error"), C::AgentError),
            (over("content-filter"), C::Refused),
        ] {
            let seen = TRIED.verdict(1, "", &[&event("step_start", "{}"), &error]);
            let fault = seen.outcome.fault.expect("a fault");
            assert_eq!((seen.state, fault.code), (JobState::Failed, code), "{error}: {fault}");
            assert_eq!(seen.outcome.session_id.as_deref(), Some(SESSION), "{error}");
        }
        for (stderr, exit, code) in [
            ("\u{1b}[91m\u{1b}[1mError: \u{1b}[0mSession not found", 1, C::UnknownSession),
            ("it broke", 1, C::AgentError),
            ("", 143, C::AgentKilled),
            ("", 0, C::AgentProtocol),
        ] {
            let fault = TRIED.verdict(exit, stderr, &[]).outcome.fault.expect("a fault");
            assert_eq!(fault.code, code, "{stderr} {exit}");
        }
    }

    #[test]
    fn success_needs_the_end_of_a_step_that_was_not_for_tools() {
        let (start, said) = (event("step_start", "{}"), event("text", r#"{"text":"42"}"#));
        let looked = event("text", r#"{"text":"I look."}"#);
        let good = TRIED.verdict(0, "", &[&start, &looked, &over("tool-calls"), &start, &said, &over("stop")]).outcome;
        assert_eq!((good.response.as_deref(), good.session_id.as_deref()), (Some("42"), Some(SESSION)));
        assert_eq!((good.cost_usd, good.num_turns, good.resumable), (Some(0.25), Some(2), Some(true)));
        let usage = good.usage.expect("counts");
        assert_eq!((&usage["input_tokens"], &usage["cache_read_input_tokens"]), (&json!(20), &json!(4)));
        assert_eq!(good.billing.as_deref(), Some("unproven"));
        // Tools were to be used, and nothing followed.
        for lines in [&[&start, &looked, &over("tool-calls")][..], &[&start, &said]] {
            let lines: Vec<&str> = lines.iter().map(|line| line.as_str()).collect();
            let cut = TRIED.verdict(0, "", &lines).outcome;
            assert_eq!(cut.fault.map(|fault| fault.code), Some(FaultCode::AgentProtocol));
            assert!(cut.response.is_some());
        }
        // What it said before it looked is no answer.
        let empty = TRIED.verdict(0, "", &[&start, &looked, &over("tool-calls"), &start, &over("stop")]);
        assert_eq!(empty.outcome.response.as_deref(), Some("I look."), "the last it said");
        // It went on after an error.
        let error = format!(
            r#"{{"type":"error","sessionID":"{SESSION}","error":{{"name":"APIError","data":{{"statusCode":500}}}}}}"#
        );
        assert_eq!(TRIED.verdict(0, "", &[&start, &error, &start, &said, &over("stop")]).state, JobState::Succeeded);
        // A price it does not know is not 0.
        let free = over("stop").replace("0.125", "0");
        assert_eq!(TRIED.verdict(0, "", &[&start, &said, &free]).outcome.cost_usd, None);
    }

    #[test]
    fn where_a_session_was_had_is_read_however_long_the_session_is() {
        let info = |more: &str| {
            format!("{{\n  \"info\": {{\"id\": \"{SESSION}\", \"slug\": \"x\"{more}}},\n  \"messages\": [")
        };
        let had = info(", \"directory\": \"/w/a\", \"title\": \"t \\\"directory\\\": \\\"/x\\\"\"");
        for (exported, place) in [
            (format!("{had}]}}"), Some("/w/a")),
            // Cut off.
            (format!("{had}{{\"info\": {{\"directory\": \"/x\"}}, \"te"), Some("/w/a")),
            (had[..had.len() / 2].to_owned(), None),
            (info(""), None),
            (info(", \"directory\": 7"), None),
            ("Error: Session not found: ses_x".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(place_of_session(&exported).as_deref(), place.map(Path::new), "{exported}");
        }
    }

    #[test]
    fn an_id_that_is_none_of_its_sessions_is_refused() {
        for (id, good) in [(SESSION, true), ("11111111-1111-4111-8111-111111111111", false), ("msg_1", false)] {
            let id = id.parse().expect("an id");
            assert_eq!(PROFILE.check_session(&id).is_ok(), good, "{id}");
        }
        let strange = RunEnd {
            resume_requested: SESSION.parse().ok(),
            ..tests_support::run_end(
                0,
                "",
                &TRIED.events(&[
                    &event("step_start", "{}").replace(SESSION, "ses_other"),
                    &event("text", r#"{"text":"42"}"#).replace(SESSION, "ses_other"),
                    &over("stop").replace(SESSION, "ses_other"),
                ]),
            )
        };
        assert_eq!(PROFILE.classify(strange).outcome.fault.map(|fault| fault.code), Some(FaultCode::UnknownSession));
    }
}
