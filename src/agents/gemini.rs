//! Gemini CLI.
//!
//! Owns: its command line, what of the environment it gets, the settings it is held to, how it is seen who pays, and what a line of
//! its output means. May not know how it is run. Its end is judged by `classify`.
//!
//! It is run in its plan mode: no shell, nothing is written but into a folder of its own below its home, and reading is confined to
//! the directory. No extensions and no servers are started. It trusts the directory for the run, since it would not begin
//! otherwise; what a project could start by that are hooks, which the settings of the run switch off.

use std::ffi::OsString;
use std::path::PathBuf;

use serde_json::Value;

use super::classify::AgentProfile;
use super::cli::{self, HeldTo, Invocation, Login, LoginSaid, PROMPT_PREFIX, Sheet};
use super::environment::Passes;
use super::environment::Value::{Path as Place, Text};
use super::fields::{EventStream, Events, MAX_ERROR_CHARS, MAX_TARGET_CHARS, counts, name, other, shortened, text};
use super::probe::Need::{Must, Used};
use super::probe::Questions;
use super::{AgentEvent, AgentResult, Credential, Environment, PayerKnown, ResumedId};
use crate::base::fault::{Fault, FaultCode};
use crate::jobs::{Billing, ConsultRequest, PermissionDenial};

const PROFILE: AgentProfile = AgentProfile::new("Gemini CLI")
    .install_hint(
        "Install Gemini CLI (`npm install -g @google/gemini-cli`), or point PHONE_OPUS_GEMINI_BIN at its program; a host that hands \
         on no PATH must be told in its server configuration.",
    )
    .login_hint(
        "Run `gemini` once in a terminal and choose how to log in. A host that hands on only part of its environment must also hand \
         on HOME.",
    )
    .kept_to_reading_by("its plan mode: no shell, nothing is written but its own plans; reading is confined to the directory")
    .keeps_sessions()
    .names_no_payer();

/// What of the environment passes to it.
static PASSES: Passes = Passes {
    agent: "gemini",
    always: &[
        ("GEMINI_CLI_HOME", Place),
        ("GEMINI_MODEL", Text),
        ("GOOGLE_GENAI_USE_GCA", Text),
        ("GOOGLE_CLOUD_PROJECT", Text),
        ("GOOGLE_CLOUD_PROJECT_ID", Text),
        ("GOOGLE_CLOUD_LOCATION", Text),
    ],
    paid: &[
        ("GEMINI_API_KEY", Text),
        ("GOOGLE_API_KEY", Text),
        ("GOOGLE_GEMINI_BASE_URL", Text),
        ("GOOGLE_VERTEX_BASE_URL", Text),
    ],
    keys: &[("GEMINI_API_KEY", Credential::Key), ("GOOGLE_API_KEY", Credential::Key)],
    clouds: &[("GOOGLE_GENAI_USE_VERTEXAI", &[("GOOGLE_APPLICATION_CREDENTIALS", Place)])],
    homes: &["GEMINI_CLI_HOME", "HOME"],
    ..Passes::NOTHING
};

/// What is looked for in its help.
static QUESTIONS: Questions = Questions {
    agent: "gemini",
    helps: &[&["--help"]],
    mark: "--output-format",
    looked_for: &[
        ("stream-json", Must),
        // The mode that only reads.
        ("--approval-mode", Must),
        ("plan", Must),
        // Without it a directory that nobody trusted is refused.
        ("--skip-trust", Used),
        ("--extensions", Used),
        ("--allowed-mcp-server-names", Used),
    ],
};

/// Set for every run.
const OWN_VARIABLES: &[(&str, &str)] = &[
    // It starts itself once more for more memory, and the second one is not ours to end.
    ("GEMINI_CLI_NO_RELAUNCH", "true"),
    ("GEMINI_TELEMETRY_ENABLED", "false"),
];

/// What goes over the settings of user and project. Files of variables in the project, which is trusted for the run, could send the
/// user's key to an address of their own: `.env` is left out by this, and for `.gemini/.env` the addresses are set. An administrator's own settings stand in the same place, and stay.
const SETTINGS: HeldTo = HeldTo {
    variable: "GEMINI_CLI_SYSTEM_SETTINGS_PATH",
    file: "gemini-settings.json",
    content: r#"{"hooksConfig":{"enabled":false},"advanced":{"ignoreLocalEnv":true},"general":{"enableAutoUpdate":false},"privacy":{"usageStatisticsEnabled":false}}"#,
    unless: &["/etc/gemini-cli/settings.json", "/Library/Application Support/GeminiCli/settings.json"],
};

/// A name that no server has: the option takes no empty list.
const NO_SERVER: &str = "phone-opus-none";

pub(super) static SHEET: Sheet = Sheet {
    name: "gemini",
    variable: "PHONE_OPUS_GEMINI_BIN",
    profile: PROFILE,
    questions: &QUESTIONS,
    passes: &PASSES,
    own_variables: OWN_VARIABLES,
    blanked: &["GOOGLE_GEMINI_BASE_URL", "GOOGLE_VERTEX_BASE_URL"],
    held_to: Some(&SETTINGS),
    arguments: |invocation| arguments(invocation),
    check,
    resumed_id: |_| ResumedId::Same,
    session_option: None,
    session_place: None,
    parser: || Box::new(Events(Gemini::default())),
    payer: PayerKnown::BeforeStart,
    check_start: cli::says_nothing_of_its_payer,
    login: Login::Seen(login),
};

/// The command line. The prompt is on standard input alone.
fn arguments(invocation: &Invocation<'_>) -> Vec<OsString> {
    let request = invocation.request;
    let mut args: Vec<OsString> = ["-o", "stream-json", "--approval-mode", "plan"].map(OsString::from).into();
    let mut add = |words: &[&str]| args.extend(words.iter().map(OsString::from));
    for words in [&["--skip-trust"][..], &["--extensions", "none"], &["--allowed-mcp-server-names", NO_SERVER]] {
        if invocation.has(words[0]) {
            add(words);
        }
    }
    if let Some(model) = &request.model {
        add(&["-m", model]);
    }
    if let Some(session) = &request.session_id {
        add(&["-r", &session.to_string()]);
    }
    args
}

/// Bytes of a prompt as it repeats it in its first line. It does not wait for its own output to be read: what no longer fits into a
/// pipe of 64 KiB is lost when it ends, and its answer with it.
const MAX_ECHO_BYTES: usize = 60_000;

/// It has no such limits, and uses the login its user chose whatever keys there are.
fn check(request: &ConsultRequest, environment: &Environment) -> Result<(), Fault> {
    cli::no_limits("Gemini CLI", request)?;
    let echo = Value::from([PROMPT_PREFIX, &request.prompt].concat()).to_string().len();
    if echo > MAX_ECHO_BYTES {
        let detail = format!(
            "`prompt`: Gemini CLI repeats it in {echo} bytes of output, and loses its answer when there are more than {MAX_ECHO_BYTES}."
        );
        return Err(Fault::new(FaultCode::PromptTooLarge, detail)
            .hint("Name the files to read instead of including them, or ask another agent."));
    }
    if request.effort.is_some() {
        let detail = "`effort`: Gemini CLI has no such choice.";
        return Err(Fault::new(FaultCode::InvalidInput, detail).hint("Leave it out, or name a `model`."));
    }
    if request.billing == Billing::ApiKey && login(environment) == LoginSaid::Plan {
        let detail = "Billing is `api_key`, but Gemini CLI would use the login that was chosen in it.";
        let hint = "Choose the API key in `gemini` itself (`/auth`), or unset PHONE_OPUS_BILLING.";
        return Err(Fault::new(FaultCode::BillingMismatch, detail).hint(hint));
    }
    Ok(())
}

/// How its user chose to log in, seen in the user's settings.
fn login(environment: &Environment) -> LoginSaid {
    let home = environment.get("GEMINI_CLI_HOME").or_else(|| environment.get("HOME")).map(PathBuf::from);
    let Some(home) = home.filter(|home| home.is_absolute()) else { return LoginSaid::Unsaid };
    let Ok(bytes) = std::fs::read(home.join(".gemini").join("settings.json")) else { return LoginSaid::Unsaid };
    let said: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let chosen = said.pointer("/security/auth/selectedType").or_else(|| said.get("selectedAuthType"));
    match chosen.and_then(Value::as_str) {
        Some("oauth-personal") => LoginSaid::Plan,
        Some("gemini-api-key" | "vertex-ai") => LoginSaid::Key,
        Some(_) => LoginSaid::Somehow,
        None => LoginSaid::Unsaid,
    }
}

/// Bytes of an answer that are kept while it comes in pieces; longer ones are no answers any more.
const MAX_TEXT_BYTES: usize = 16 << 20;

/// Reads what it writes with `-o stream-json`: one event a line, of which unknown ones are passed over. An answer comes in pieces,
/// which are put together until something else comes.
#[derive(Debug, Default)]
struct Gemini {
    session: Option<String>,
    /// The message that is being said.
    message: String,
    last_message: Option<String>,
    /// The tool that is being used, and on what.
    tool: Option<PermissionDenial>,
}

impl Gemini {
    /// The message that was being said is whole.
    fn said(&mut self, out: &mut Vec<AgentEvent>) {
        let text = std::mem::take(&mut self.message);
        if !text.trim().is_empty() {
            self.last_message = Some(text.clone());
            out.push(AgentEvent::Text { text });
        }
    }
}

impl EventStream for Gemini {
    fn event(&mut self, kind: &str, event: &Value, out: &mut Vec<AgentEvent>) {
        let said = || text(event, "content").unwrap_or_default();
        if kind == "message" && text(event, "role") == Some("assistant") {
            let whole = event.get("delta").and_then(Value::as_bool) != Some(true);
            let room = MAX_TEXT_BYTES.saturating_sub(self.message.len());
            self.message.push_str(&said()[..said().floor_char_boundary(room)]);
            // A sign of life; the text itself is told when it is whole.
            return if whole { self.said(out) } else { out.push(AgentEvent::Thinking) };
        }
        self.said(out);
        match kind {
            "init" => {
                self.session = name(event, "session_id");
                out.push(AgentEvent::Started {
                    session_id: self.session.clone(),
                    model: name(event, "model"),
                    key_source: None,
                    version: None,
                });
            }
            "tool_use" => {
                let tool = name(event, "tool_name").unwrap_or_default();
                let input = event.get("parameters");
                let keys = ["file_path", "absolute_path", "dir_path", "path", "command", "url", "pattern"];
                let target = keys.into_iter().find_map(|key| text(input?, key));
                let target = target.map(|target| shortened(target, MAX_TARGET_CHARS));
                self.tool = Some(PermissionDenial { tool: tool.clone(), target });
                out.push(AgentEvent::ToolUse { tool });
            }
            "tool_result" => {
                let refused = text(event, "status") == Some("error") && is_refusal(event);
                match self.tool.take().filter(|_| refused) {
                    Some(denial) => out.push(AgentEvent::Denied { denial }),
                    None => out.push(AgentEvent::ToolResult),
                }
            }
            "error" => out.push(other("error")),
            "result" => {
                let failed = text(event, "status") != Some("success");
                let message = event.pointer("/error/message").and_then(Value::as_str).unwrap_or_default();
                let result = AgentResult {
                    subtype: Some(if failed { "error_reported" } else { "success" }.to_owned()),
                    is_error: failed,
                    text: self.last_message.take().filter(|_| !failed),
                    session_id: self.session.clone(),
                    api_error_status: status(message).filter(|status| failed && *status != 400),
                    errors: if failed { vec![shortened(message, MAX_ERROR_CHARS)] } else { Vec::new() },
                    usage: counts(event, "stats"),
                    ..AgentResult::default()
                };
                out.push(AgentEvent::Result { result: Box::new(result) });
            }
            _ => out.push(other(kind)),
        }
    }

    fn end(&mut self, out: &mut Vec<AgentEvent>) {
        self.said(out);
    }
}

/// Whether a tool did not do what it was asked because it may not.
fn is_refusal(event: &Value) -> bool {
    let words = ["denied", "not found", "outside the allowed", "not in workspace", "not allowed"];
    let output = text(event, "output").or_else(|| event.pointer("/error/message").and_then(Value::as_str));
    let output = output.unwrap_or_default().to_lowercase();
    words.iter().any(|word| output.contains(word))
}

/// The status of the provider that an error's text holds: `[API Error: {"error":{"code":401,…`.
fn status(message: &str) -> Option<u64> {
    let (_, after) = message.split_once("\"code\":")?;
    after.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::probe::Features;
    use crate::agents::tests_support::{AgentTried, request};
    use crate::base::ids::AgentSessionId;
    use crate::jobs::JobState;

    const TRIED: AgentTried = AgentTried(&SHEET);

    const SESSION: &str = "dcfc605d-3373-44c2-b498-a67389ffe61a";

    #[test]
    fn the_command_line_is_the_read_only_one() {
        let session = AgentSessionId::random();
        let full = ConsultRequest { session_id: Some(session), model: Some("m".into()), ..request("p") };
        let args = TRIED.arguments(&full, &Features::newest(&QUESTIONS));
        let session = session.to_string();
        let expected = [
            "-o",
            "stream-json",
            "--approval-mode",
            "plan",
            "--skip-trust",
            "--extensions",
            "none",
            "--allowed-mcp-server-names",
            NO_SERVER,
            "-m",
            "m",
            "-r",
            &session,
        ];
        assert_eq!(args, expected);
        let old = Features::newest(&QUESTIONS).without(&["--skip-trust", "--extensions", "--allowed-mcp-server-names"]);
        assert_eq!(TRIED.arguments(&request("p"), &old), ["-o", "stream-json", "--approval-mode", "plan"]);
    }

    #[test]
    fn what_it_cannot_be_asked_is_refused_and_who_pays_is_judged_before_the_start() {
        let dir = tempfile::tempdir().expect("scratch");
        let home = dir.path().join(".gemini");
        std::fs::create_dir(&home).expect("its home");
        let env: Environment = [("HOME", dir.path())].into_iter().collect();
        let code = |request: &ConsultRequest| check(request, &env).map_err(|fault| fault.code);
        assert_eq!(login(&env), LoginSaid::Unsaid);
        for wrong in [
            ConsultRequest { effort: Some("high".into()), ..request("p") },
            ConsultRequest { max_turns: Some(1), ..request("p") },
        ] {
            assert_eq!(code(&wrong), Err(FaultCode::InvalidInput));
        }
        assert_eq!(code(&request(&"x".repeat(59_000))), Ok(()));
        // What it must escape is longer when it is repeated.
        for long in ["x".repeat(60_000), "\n".repeat(30_000)] {
            assert_eq!(code(&request(&long)), Err(FaultCode::PromptTooLarge));
        }
        let paid = ConsultRequest { billing: Billing::ApiKey, ..request("p") };
        for (chosen, said, good) in [
            ("oauth-personal", LoginSaid::Plan, Err(FaultCode::BillingMismatch)),
            ("gemini-api-key", LoginSaid::Key, Ok(())),
            ("vertex-ai", LoginSaid::Key, Ok(())),
            ("compute-default-credentials", LoginSaid::Somehow, Ok(())),
        ] {
            let settings = format!(r#"{{"security":{{"auth":{{"selectedType":"{chosen}"}}}}}}"#);
            std::fs::write(home.join("settings.json"), settings).expect("settings");
            assert_eq!((login(&env), code(&paid)), (said, good), "{chosen}");
            assert_eq!(code(&request("p")), Ok(()), "{chosen}");
        }
    }

    #[test]
    fn every_known_line_becomes_its_event() {
        let tool_use =
            r#"{"type":"tool_use","tool_name":"write_file","tool_id":"t","parameters":{"file_path":"/w/x"}}"#;
        let denied =
            AgentEvent::Denied { denial: PermissionDenial { tool: "write_file".into(), target: Some("/w/x".into()) } };
        let kind = |kind: &str| AgentEvent::Other { kind: kind.into() };
        let table: Vec<(Vec<&str>, Vec<AgentEvent>)> = vec![
            (
                vec![r#"{"type":"init","session_id":"s","model":"auto"}"#],
                vec![AgentEvent::Started {
                    session_id: Some("s".into()),
                    model: Some("auto".into()),
                    key_source: None,
                    version: None,
                }],
            ),
            (vec![r#"{"type":"message","role":"user","content":"q"}"#], vec![kind("message")]),
            (
                vec![
                    r#"{"type":"message","role":"assistant","content":"a","delta":true}"#,
                    r#"{"type":"message","role":"assistant","content":"b","delta":true}"#,
                ],
                vec![AgentEvent::Thinking, AgentEvent::Thinking, AgentEvent::Text { text: "ab".into() }],
            ),
            (
                vec![r#"{"type":"message","role":"assistant","content":"whole"}"#],
                vec![AgentEvent::Text { text: "whole".into() }],
            ),
            (
                vec![
                    tool_use,
                    r#"{"type":"tool_result","tool_id":"t","status":"error","output":"Access denied: plan path"}"#,
                ],
                vec![AgentEvent::ToolUse { tool: "write_file".into() }, denied],
            ),
            (
                vec![tool_use, r#"{"type":"tool_result","tool_id":"t","status":"success","output":"x"}"#],
                vec![AgentEvent::ToolUse { tool: "write_file".into() }, AgentEvent::ToolResult],
            ),
            (vec![r#"{"type":"tomorrow"}"#], vec![kind("tomorrow")]),
            (vec!["Ripgrep is not available."], vec![AgentEvent::Garbage { bytes: 25 }]),
        ];
        for (lines, expected) in table {
            assert_eq!(TRIED.events(&lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn every_end_it_really_has_is_judged_by_what_it_says() {
        use FaultCode as C;
        let init = format!(r#"{{"type":"init","session_id":"{SESSION}","model":"auto"}}"#);
        let failed = |message: &str| {
            format!(
                r#"{{"type":"result","status":"error","error":{{"type":"unknown","message":{}}},"stats":{{}}}}"#,
                Value::from(message)
            )
        };
        let api =
            |status: u16| format!(r#"[API Error: {{"error":{{"code":{status},"message":"no","status":"INTERNAL"}}}}]"#);
        for (message, exit, code) in [
            (api(401), 145, C::AgentNotLoggedIn),
            (api(403), 147, C::AgentNotLoggedIn),
            (api(404), 148, C::AgentModel),
            (api(429), 173, C::AgentRateLimited),
            (api(500), 244, C::AgentUpstream),
            (api(503), 247, C::AgentUpstream),
            (api(400), 144, C::AgentError),
            ("[API Error: API key not valid. Please pass a valid API key.]".to_owned(), 144, C::AgentNotLoggedIn),
            ("exception TypeError: fetch failed sending request".to_owned(), 1, C::AgentUpstream),
            ("something new".to_owned(), 1, C::AgentError),
        ] {
            let seen = TRIED.verdict(exit, "", &[&init, &failed(&message)]);
            let fault = seen.outcome.fault.expect("a fault");
            assert_eq!((seen.state, fault.code), (JobState::Failed, code), "{message}: {fault}");
            assert_eq!(seen.outcome.session_id.as_deref(), Some(SESSION));
        }
        for (stderr, exit, code) in [
            ("Error resuming session: Invalid session identifier \"x\".", 42, C::UnknownSession),
            ("Error resuming session: No previous sessions found for this project.", 42, C::UnknownSession),
            ("Unknown argument: nosuch", 1, C::AgentUnsupported),
            ("Invalid auth method selected.", 41, C::AgentNotLoggedIn),
            ("Please set an Auth method in your settings.json", 41, C::AgentNotLoggedIn),
            ("it broke", 1, C::AgentError),
            ("", 0, C::AgentProtocol),
        ] {
            let fault = TRIED.verdict(exit, stderr, &[]).outcome.fault.expect("a fault");
            assert_eq!(fault.code, code, "{stderr}");
        }
        let said = r#"{"type":"message","role":"assistant","content":"42","delta":true}"#;
        let done = r#"{"type":"result","status":"success","stats":{"input_tokens":10,"output_tokens":2}}"#;
        let good = TRIED.verdict(0, "", &[&init, said, done]);
        assert_eq!((good.state, good.outcome.response.as_deref()), (JobState::Succeeded, Some("42")));
        assert_eq!((good.outcome.billing.as_deref(), good.outcome.cost_usd), (Some("unproven"), None));
        let cut = TRIED.verdict(0, "", &[&init, said]);
        assert_eq!(cut.outcome.fault.map(|fault| fault.code), Some(C::AgentProtocol));
        assert_eq!(cut.outcome.response.as_deref(), Some("42"));
    }
}
