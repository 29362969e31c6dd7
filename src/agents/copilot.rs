//! GitHub's Copilot CLI.
//!
//! Owns: its command line, what of the environment it gets, how it is seen who pays, and what a line of its output means. May not
//! know how it is run. Its end is judged by `classify`.
//!
//! It is run with three tools that read, confined to the directory: any other tool does not exist for its model, and whatever would
//! ask is denied. Instructions, hooks and servers of the project do not count unless its user has trusted the directory in it; those
//! in the user's own settings do, since no option leaves them out.

use std::ffi::OsString;
use std::path::PathBuf;

use serde_json::Value;

use super::classify::AgentProfile;
use super::cli::{self, Invocation, Login, LoginSaid, Sheet};
use super::environment::Passes;
use super::environment::Value::{Path as Place, Text};
use super::fields::{EventStream, Events, MAX_ERROR_CHARS, MAX_TARGET_CHARS, counts, name, other, shortened, text};
use super::probe::Need::{Must, Used};
use super::probe::Questions;
use super::{AgentEvent, AgentResult, Credential, Environment, PayerKnown, ResumedId};
use crate::base::fault::{Fault, FaultCode};
use crate::base::lenient;
use crate::jobs::{Billing, ConsultRequest, PermissionDenial};

const PROFILE: AgentProfile = AgentProfile::new("Copilot CLI")
    .install_hint(
        "Install Copilot CLI (`npm install -g @github/copilot`), or point PHONE_OPUS_COPILOT_BIN at its program; a host that hands \
         on no PATH must be told in its server configuration.",
    )
    .login_hint(
        "Run `copilot login` once in a terminal, or set COPILOT_GITHUB_TOKEN. A host that hands on only part of its environment must \
         also hand on HOME, and COPILOT_HOME where it is used.",
    )
    .kept_to_reading_by("three reading tools, confined to the directory")
    .keeps_sessions()
    .names_no_payer();

/// The token of a GitHub account, which is its login. `GH_TOKEN` and `GITHUB_TOKEN` are for anything, and do not pass.
const LOGIN_TOKEN: &str = "COPILOT_GITHUB_TOKEN";

/// Makes it use a provider of the user's own instead of the account.
const PROVIDER: &str = "COPILOT_PROVIDER_BASE_URL";

/// What of the environment passes to it. COPILOT_ALLOW_ALL, which lets it do anything, is not there, and neither is the command that
/// prints a key.
static PASSES: Passes = Passes {
    agent: "copilot",
    always: &[
        ("COPILOT_HOME", Place),
        (LOGIN_TOKEN, Text),
        ("COPILOT_MODEL", Text),
        ("COPILOT_GH_HOST", Text),
        ("GH_HOST", Text),
    ],
    paid: &[
        (PROVIDER, Text),
        ("COPILOT_PROVIDER_API_KEY", Text),
        ("COPILOT_PROVIDER_BEARER_TOKEN", Text),
        ("COPILOT_PROVIDER_TYPE", Text),
        ("COPILOT_PROVIDER_WIRE_API", Text),
        ("COPILOT_PROVIDER_AZURE_API_VERSION", Text),
        ("COPILOT_PROVIDER_MODEL_ID", Text),
        ("COPILOT_PROVIDER_WIRE_MODEL", Text),
        ("COPILOT_PROVIDER_MAX_PROMPT_TOKENS", Text),
        ("COPILOT_PROVIDER_MAX_OUTPUT_TOKENS", Text),
        ("COPILOT_PROVIDER_HEADERS", Text),
        ("COPILOT_OFFLINE", Text),
    ],
    keys: &[
        (PROVIDER, Credential::Key),
        ("COPILOT_PROVIDER_API_KEY", Credential::Key),
        ("COPILOT_PROVIDER_BEARER_TOKEN", Credential::Key),
    ],
    logins: &[LOGIN_TOKEN],
    homes: &["COPILOT_HOME", "HOME"],
    ..Passes::NOTHING
};

/// The tools its model has: an option of one word, since a list would go on to the next option.
const TOOLS: &str = "--available-tools=view,grep,glob";

/// What is looked for in its help.
static QUESTIONS: Questions = Questions {
    agent: "copilot",
    helps: &[&["--help"]],
    mark: "--available-tools",
    looked_for: &[
        ("--output-format", Must),
        ("--available-tools", Must),
        // Without it a session that is gone on with stays where it was.
        ("-C", Used),
        // Gives a new session its id, which its stream names in its last line only.
        ("--session-id", Used),
        ("--no-ask-user", Used),
        ("--disable-builtin-mcps", Used),
        ("--no-custom-instructions", Used),
        ("--no-auto-update", Used),
        // Otherwise the directory of temporary files can be read as well.
        ("--disallow-temp-dir", Used),
        // Sessions stay on this machine.
        ("--no-remote-export", Used),
        ("--disable-client-telemetry", Used),
    ],
};

/// What it is run with where a version knows it.
const OPTIONS: &[&str] = &[
    "--no-ask-user",
    "--disable-builtin-mcps",
    "--no-custom-instructions",
    "--no-auto-update",
    "--disallow-temp-dir",
    "--no-remote-export",
    "--disable-client-telemetry",
];

pub(super) static SHEET: Sheet = Sheet {
    name: "copilot",
    variable: "PHONE_OPUS_COPILOT_BIN",
    profile: PROFILE,
    questions: &QUESTIONS,
    passes: &PASSES,
    own_variables: &[],
    blanked: &[],
    held_to: None,
    arguments: |invocation| arguments(invocation),
    check,
    resumed_id: |_| ResumedId::Same,
    session_option: Some("--session-id"),
    session_place: None,
    parser: || Box::new(Events(Copilot::default())),
    payer: PayerKnown::BeforeStart,
    check_start: cli::says_nothing_of_its_payer,
    login: Login::Seen(login),
};

/// The command line. The prompt is on standard input alone, which it reads where no option gives it one.
fn arguments(invocation: &Invocation<'_>) -> Vec<OsString> {
    let request = invocation.request;
    let mut args = Vec::new();
    if invocation.has("-C") {
        args.extend(["-C".into(), request.cwd.clone().into_os_string()]);
    }
    let mut add = |words: &[&str]| args.extend(words.iter().map(OsString::from));
    add(&["--output-format", "json", TOOLS]);
    for option in OPTIONS.iter().filter(|option| invocation.has(option)) {
        add(&[option]);
    }
    if let Some(model) = &request.model {
        add(&["--model", model]);
    }
    if let Some(effort) = &request.effort {
        add(&["--reasoning-effort", effort]);
    }
    match (&request.session_id, &invocation.new_session) {
        // An unknown id is refused here; by the other option it would be the id of a new session.
        (Some(session), _) => add(&["--resume", &session.to_string()]),
        (None, Some(session)) => add(&["--session-id", &session.to_string()]),
        (None, None) => {}
    }
    args
}

/// It has no such limits. It pays by the token only where it has a provider of the user's own; otherwise it uses the account.
fn check(request: &ConsultRequest, environment: &Environment) -> Result<(), Fault> {
    cli::no_limits("Copilot CLI", request)?;
    if request.billing == Billing::ApiKey && environment.get(PROVIDER).is_none() {
        let detail = "Billing is `api_key`, but Copilot CLI would use its account: no provider is named that a key could be for.";
        let hint = format!(
            "Set {PROVIDER} and COPILOT_PROVIDER_API_KEY in the server's environment, or unset PHONE_OPUS_BILLING."
        );
        return Err(Fault::new(FaultCode::BillingMismatch, detail).hint(hint));
    }
    Ok(())
}

/// Whether it is logged in, as far as that is seen. It may keep that with the system's own secrets.
fn login(environment: &Environment) -> LoginSaid {
    if environment.get(LOGIN_TOKEN).is_some() {
        return LoginSaid::Plan;
    }
    let home = environment.get("COPILOT_HOME").map(PathBuf::from);
    let home = home.or_else(|| environment.get("HOME").map(|home| PathBuf::from(home).join(".copilot")));
    let Some(file) = home.filter(|home| home.is_absolute()).map(|home| home.join("config.json")) else {
        return LoginSaid::Unsaid;
    };
    let Ok(content) = std::fs::read_to_string(file) else { return LoginSaid::Unsaid };
    // It begins with lines of comment.
    let lines: Vec<&str> = content.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let said: Value = serde_json::from_str(&lines.join("\n")).unwrap_or_default();
    let users = ["loggedInUsers", "logged_in_users"].into_iter().find_map(|key| said.get(key)?.as_array());
    if users.is_some_and(|users| !users.is_empty()) { LoginSaid::Plan } else { LoginSaid::Unsaid }
}

/// Bytes of an answer that are kept in one message; longer ones are no answers any more.
const MAX_TEXT_BYTES: usize = 16 << 20;

/// Reads what it writes with `--output-format json`: one event a line, `type` and `data`, of which unknown ones are passed over.
///
/// The answer is the last message before the line `result`, which is the last one. Its exit code proves nothing: a run that was told
/// to end may end with 0.
#[derive(Debug, Default)]
struct Copilot {
    last_message: Option<String>,
    /// The tool that is being used, and on what.
    tool: Option<PermissionDenial>,
    /// Of the last try that failed.
    failed: Failed,
    /// The error that ended the turn.
    error: Option<Ended>,
}

/// A try that failed.
#[derive(Debug, Default)]
struct Failed {
    attempt: u64,
    status: Option<u64>,
}

/// What a turn ended with instead of an answer.
#[derive(Debug)]
struct Ended {
    message: String,
    status: Option<u64>,
}

impl EventStream for Copilot {
    fn event(&mut self, kind: &str, event: &Value, out: &mut Vec<AgentEvent>) {
        let none = Value::Null;
        let data = event.get("data").unwrap_or(&none);
        let status = data.get("statusCode").and_then(Value::as_u64);
        out.push(match kind {
            "session.tools_updated" => {
                AgentEvent::Started { session_id: None, model: name(data, "model"), key_source: None, version: None }
            }
            // A sign of life; the text itself is told when it is whole.
            "assistant.message_delta" | "assistant.reasoning" | "assistant.reasoning_delta" => AgentEvent::Thinking,
            "assistant.message" => self.message(text(data, "content").unwrap_or_default()),
            "tool.execution_start" => self.tool(data),
            "tool.execution_complete" => self.tool_over(data),
            "model.call_failure" => {
                let attempt = data.get("retryAttempt").and_then(Value::as_u64).unwrap_or(0);
                self.failed = Failed { attempt, status };
                other(kind)
            }
            "assistant.turn_retry" => {
                let Failed { attempt, status } = self.failed;
                AgentEvent::Retrying { attempt: attempt + 1, max: 0, delay_ms: 0, status }
            }
            "session.error" => {
                let message = shortened(text(data, "message").unwrap_or_default(), MAX_ERROR_CHARS);
                self.error = Some(Ended { message, status });
                other(kind)
            }
            "result" => AgentEvent::Result { result: Box::new(self.result(event)) },
            _ => other(kind),
        });
    }
}

impl Copilot {
    fn message(&mut self, said: &str) -> AgentEvent {
        // It went on from whatever went wrong.
        self.error = None;
        if lenient::is_blank(said) {
            return other("assistant.message");
        }
        let said = said[..said.floor_char_boundary(MAX_TEXT_BYTES)].to_owned();
        self.last_message = Some(said.clone());
        AgentEvent::Text { text: said }
    }

    fn tool(&mut self, data: &Value) -> AgentEvent {
        let tool = name(data, "toolName").unwrap_or_default();
        let target =
            ["path", "command", "url", "pattern"].into_iter().find_map(|key| text(data.get("arguments")?, key));
        let target = target.map(|target| shortened(target, MAX_TARGET_CHARS));
        self.tool = Some(PermissionDenial { tool: tool.clone(), target });
        AgentEvent::ToolUse { tool }
    }

    /// A tool that is withheld does not exist for it; what it would have to ask for is denied.
    fn tool_over(&mut self, data: &Value) -> AgentEvent {
        let said = |key| data.pointer(key).and_then(Value::as_str).unwrap_or_default();
        let refused = said("/error/code") == "denied" || said("/error/message").ends_with("does not exist.");
        match self.tool.take().filter(|_| refused) {
            Some(denial) => AgentEvent::Denied { denial },
            None => AgentEvent::ToolResult,
        }
    }

    fn result(&mut self, event: &Value) -> AgentResult {
        let error = self.error.take();
        let failed = error.is_some() || event.get("exitCode").and_then(Value::as_u64) != Some(0);
        let told = error.as_ref().map(|error| error.message.clone());
        AgentResult {
            subtype: Some(if failed { "error_reported" } else { "success" }.to_owned()),
            is_error: failed,
            text: self.last_message.take().filter(|_| !failed),
            session_id: name(event, "sessionId"),
            // These two have many reasons, which only the words tell apart.
            api_error_status: error.and_then(|error| error.status).filter(|status| ![400, 402].contains(status)),
            errors: told.into_iter().collect(),
            usage: counts(event, "usage"),
            ..AgentResult::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::agents::probe::Features;
    use crate::agents::tests_support::{self, AgentTried, request};
    use crate::agents::{RunEnd, RunVerdict};
    use crate::base::ids::AgentSessionId;
    use crate::jobs::JobState;

    const TRIED: AgentTried = AgentTried(&SHEET);

    const SESSION: &str = "11111111-1111-4111-8111-111111111112";

    #[test]
    fn the_command_line_is_the_read_only_one_and_always_names_the_directory() {
        let session = AgentSessionId::random();
        let full = ConsultRequest {
            session_id: Some(session),
            model: Some("m".into()),
            effort: Some("high".into()),
            ..request("p")
        };
        let newest = Features::newest(&QUESTIONS);
        let (cwd, id) = (full.cwd.display().to_string(), session.to_string());
        let mut expected = vec!["-C", &cwd, "--output-format", "json", "--available-tools=view,grep,glob"];
        expected.extend(OPTIONS);
        let kept = expected.len();
        expected.extend(["--model", "m", "--reasoning-effort", "high", "--resume", &id]);
        assert_eq!(TRIED.arguments(&full, &newest), expected);
        expected.truncate(kept);
        expected.extend(["--session-id", &id]);
        assert_eq!(
            TRIED.invoked(&Invocation {
                request: &request("p"),
                features: &newest,
                state_dir: Path::new("/s"),
                new_session: Some(session)
            }),
            expected
        );
        let old = newest.without(&["-C", "--session-id"]).without(OPTIONS);
        assert_eq!(TRIED.arguments(&request("p"), &old), ["--output-format", "json", TOOLS]);
    }

    #[test]
    fn it_pays_by_key_only_for_a_provider_of_its_own_and_has_no_limits() {
        let env = |variables: &[(&'static str, &'static str)]| variables.iter().copied().collect::<Environment>();
        let code = |request: &ConsultRequest, env: &Environment| check(request, env).map_err(|fault| fault.code);
        let nothing = env(&[]);
        let limited = ConsultRequest { max_turns: Some(1), ..request("p") };
        assert_eq!(code(&limited, &nothing), Err(FaultCode::InvalidInput));
        assert_eq!(code(&request("p"), &nothing), Ok(()));
        let paid = ConsultRequest { billing: Billing::ApiKey, ..request("p") };
        let key_alone = env(&[("COPILOT_PROVIDER_API_KEY", "key")]);
        for (env, good) in [(&nothing, false), (&key_alone, false), (&env(&[(PROVIDER, "http://x")]), true)] {
            assert_eq!(code(&paid, env), if good { Ok(()) } else { Err(FaultCode::BillingMismatch) });
        }
    }

    #[test]
    fn a_login_is_seen_in_its_file_and_in_its_token() {
        let dir = tempfile::tempdir().expect("scratch");
        let env: Environment = [("COPILOT_HOME", dir.path())].into_iter().collect();
        assert_eq!(login(&env), LoginSaid::Unsaid);
        for (content, said) in [
            ("// Managed.\n{\"firstLaunchAt\":\"2026-03-11T00:00:00.000Z\"}", LoginSaid::Unsaid),
            ("// Managed.\n{\"loggedInUsers\":[]}", LoginSaid::Unsaid),
            ("// Managed.\n{\"loggedInUsers\":[{\"host\":\"https://github.com\",\"login\":\"ada\"}]}", LoginSaid::Plan),
            ("{ torn", LoginSaid::Unsaid),
        ] {
            std::fs::write(dir.path().join("config.json"), content).expect("a login");
            assert_eq!(login(&env), said, "{content}");
        }
        assert_eq!(login(&env.with(LOGIN_TOKEN, "dummy")), LoginSaid::Plan);
        let elsewhere: Environment = [("COPILOT_HOME", "here")].into_iter().collect();
        assert_eq!(login(&elsewhere), LoginSaid::Unsaid);
    }

    fn tool_use(tool: &str) -> String {
        format!(r#"{{"type":"tool.execution_start","data":{{"toolName":"{tool}","arguments":{{"path":"/w/x"}}}}}}"#)
    }

    #[test]
    fn every_known_line_becomes_its_event() {
        let kind = |kind: &str| AgentEvent::Other { kind: kind.into() };
        let tool = |tool: &str| AgentEvent::ToolUse { tool: tool.into() };
        let denied = |tool: &str| AgentEvent::Denied {
            denial: PermissionDenial { tool: tool.into(), target: Some("/w/x".into()) },
        };
        let (create, view) = (tool_use("create"), tool_use("view"));
        let over = |rest: &str| format!(r#"{{"type":"tool.execution_complete","data":{{"toolCallId":"c",{rest}}}}}"#);
        let missing = over(r#""success":false,"error":{"message":"Tool 'create' does not exist.","code":"failure"}"#);
        let refused = over(r#""success":false,"error":{"message":"Permission denied because no …","code":"denied"}"#);
        let failed = over(r#""success":false,"error":{"message":"No such file","code":"failure"}"#);
        let good = over(r#""success":true,"result":{"content":"hello\n"}"#);
        let table: Vec<(Vec<&str>, Vec<AgentEvent>)> = vec![
            (
                vec![r#"{"type":"session.tools_updated","data":{"model":"gpt-5"},"ephemeral":true}"#],
                vec![AgentEvent::Started {
                    session_id: None,
                    model: Some("gpt-5".into()),
                    key_source: None,
                    version: None,
                }],
            ),
            (vec![r#"{"type":"user.message","data":{"content":"q"}}"#], vec![kind("user.message")]),
            (vec![r#"{"type":"assistant.message_delta","data":{"deltaContent":"a"}}"#], vec![AgentEvent::Thinking]),
            (
                vec![r#"{"type":"assistant.message","data":{"content":"ab","toolRequests":[]}}"#],
                vec![AgentEvent::Text { text: "ab".into() }],
            ),
            // It says nothing besides that it uses a tool.
            (
                vec![r#"{"type":"assistant.message","data":{"content":"","toolRequests":[{}]}}"#],
                vec![kind("assistant.message")],
            ),
            (vec![&create, &missing], vec![tool("create"), denied("create")]),
            (vec![&view, &refused], vec![tool("view"), denied("view")]),
            (vec![&view, &failed], vec![tool("view"), AgentEvent::ToolResult]),
            (vec![&view, &good], vec![tool("view"), AgentEvent::ToolResult]),
            (
                vec![
                    r#"{"type":"model.call_failure","data":{"statusCode":429,"retryAttempt":1}}"#,
                    r#"{"type":"assistant.turn_retry","data":{"turnId":"0","reason":"rate_limit"}}"#,
                ],
                vec![
                    kind("model.call_failure"),
                    AgentEvent::Retrying { attempt: 2, max: 0, delay_ms: 0, status: Some(429) },
                ],
            ),
            (vec![r#"{"type":"tomorrow","data":[1]}"#], vec![kind("tomorrow")]),
            (vec![r#"{"type":"tomorrow"}"#], vec![kind("tomorrow")]),
            (vec!["plain text"], vec![AgentEvent::Garbage { bytes: 10 }]),
        ];
        for (lines, expected) in table {
            assert_eq!(TRIED.events(&lines), expected, "{lines:?}");
        }
    }

    fn verdict(code: i32, stderr: &str, lines: &[&str]) -> RunVerdict {
        let new_session = SESSION.parse().ok();
        PROFILE.classify(RunEnd { new_session, ..tests_support::run_end(code, stderr, &TRIED.events(lines)) })
    }

    fn last(code: u8) -> String {
        format!(r#"{{"type":"result","sessionId":"{SESSION}","exitCode":{code},"usage":{{"premiumRequests":1}}}}"#)
    }

    #[test]
    fn every_end_it_really_has_is_judged_by_what_it_says() {
        use FaultCode as C;
        // As Copilot CLI 1.0.102 writes them; those without a status but the first are as its users report them.
        let table = [
            ("Authentication failed with provider at http://x (HTTP 401).", Some(401), C::AgentNotLoggedIn),
            ("Authentication failed with provider at http://x (HTTP 403).", Some(403), C::AgentNotLoggedIn),
            ("Model 'm' not found on provider at http://x (HTTP 404).", Some(404), C::AgentModel),
            ("Failed to get response from the AI model; … Last error: 429 no", Some(429), C::AgentRateLimited),
            ("Failed to get response from the AI model; … Last error: 500 no", Some(500), C::AgentUpstream),
            ("Failed to get response from the AI model; … Last error: 503 no", Some(503), C::AgentUpstream),
            ("Could not connect to local model provider at http://x.", None, C::AgentUpstream),
            ("402 You have no quota", Some(402), C::AgentRateLimited),
            ("400 no such luck", Some(400), C::AgentError),
            ("something new", None, C::AgentError),
        ];
        for (message, status, code) in table {
            let data = serde_json::json!({"errorType": "query", "message": message, "statusCode": status});
            let error = serde_json::json!({"type": "session.error", "data": data}).to_string();
            let seen = verdict(1, "", &[&error, &last(1)]);
            let fault = seen.outcome.fault.expect("a fault");
            assert_eq!((seen.state, fault.code), (JobState::Failed, code), "{message}: {fault}");
            assert_eq!(seen.outcome.session_id.as_deref(), Some(SESSION), "{message}");
        }
        for (stderr, exit, code) in [
            ("Error: No session, task, or name matched 'x'.", 1, C::UnknownSession),
            ("error: unexpected argument '--bogus' found", 1, C::AgentUnsupported),
            ("Error: No authentication information found.", 1, C::AgentNotLoggedIn),
            ("it broke", 1, C::AgentError),
            ("", 0, C::AgentProtocol),
        ] {
            let seen = verdict(exit, stderr, &[]).outcome;
            assert_eq!(seen.fault.map(|fault| fault.code), Some(code), "{stderr}");
            assert_eq!(seen.session_id, None, "{stderr}: nothing was begun");
        }
    }

    #[test]
    fn success_needs_the_last_line_and_a_run_that_is_cut_off_can_be_gone_on_with() {
        let said = r#"{"type":"assistant.message","data":{"content":"42"}}"#;
        let good = verdict(0, "", &[said, &last(0)]).outcome;
        assert_eq!((good.response.as_deref(), good.session_id.as_deref()), (Some("42"), Some(SESSION)));
        assert_eq!((good.billing.as_deref(), good.cost_usd, good.resumable), (Some("unproven"), None, Some(true)));
        assert_eq!(good.usage, Some(serde_json::json!({"premiumRequests": 1})));
        // Told to end, it ends with 0 and without that line.
        let cut = verdict(0, "", &[said]).outcome;
        assert_eq!(cut.fault.map(|fault| fault.code), Some(FaultCode::AgentProtocol));
        assert_eq!((cut.response.as_deref(), cut.session_id.as_deref()), (Some("42"), Some(SESSION)));
        let killed = verdict(143, "", &[said]).outcome;
        assert_eq!(killed.fault.map(|fault| fault.code), Some(FaultCode::AgentKilled));
        assert_eq!((killed.session_id.as_deref(), killed.resumable), (Some(SESSION), Some(true)));
        // An error it went on from is none.
        let error = r#"{"type":"session.error","data":{"message":"x","statusCode":500}}"#;
        assert_eq!(verdict(0, "", &[error, said, &last(0)]).state, JobState::Succeeded);
    }
}
