//! Qwen Code.
//!
//! Owns: its command line, what of the environment it gets, the settings it is held to and how it is seen who pays. May not know how it is run. Its output has
//! Claude Code's shapes and is read by `stream_json`, its end is judged by `classify`.
//!
//! It is run in its plan mode, which writes no file, runs no command and reads only the directory, and in its safe mode: without
//! the hooks, servers, extensions and instructions of user and project, and without the second model call in which it would write
//! down what it remembers. Safe mode alone would still take keys, and the address they are sent to, from a file `.env` or settings
//! of the project: no directory is a trusted one here, so that those do not count. Plan mode alone lets some tools through that write all the same; those are taken away by name.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::classify::AgentProfile;
use super::cli::{self, HeldTo, Invocation, Login, LoginSaid, Sheet};
use super::environment::Passes;
use super::environment::Value::{Path as Place, Text};
use super::probe::Need::{Must, Used};
use super::probe::Questions;
use super::{Credential, Environment, PayerKnown, ResumedId, StreamJson};
use crate::base::fault::{Fault, FaultCode};
use crate::jobs::{Billing, ConsultRequest};

const PROFILE: AgentProfile = AgentProfile::new("Qwen Code")
    .install_hint(
        "Install Qwen Code (`npm install -g @qwen-code/qwen-code`, with Node 22), or point PHONE_OPUS_QWEN_BIN at its program; a host \
         that hands on no PATH must be told in its server configuration.",
    )
    .login_hint(
        "Run `qwen` once in a terminal and choose how to log in (`/auth`). A host that hands on only part of its environment must \
         also hand on HOME, and QWEN_HOME where it is used.",
    )
    .kept_to_reading_by("its plan mode: no shell, nothing is written; reading is confined to the directory")
    .keeps_sessions()
    .names_no_payer();

/// What of the environment passes to it.
static PASSES: Passes = Passes {
    agent: "qwen",
    always: &[("QWEN_HOME", Place), ("QWEN_RUNTIME_DIR", Place), ("QWEN_CODE_LANG", Text)],
    paid: &[
        ("OPENAI_API_KEY", Text),
        ("OPENAI_BASE_URL", Text),
        ("OPENAI_MODEL", Text),
        ("DASHSCOPE_API_KEY", Text),
        ("BAILIAN_CODING_PLAN_API_KEY", Text),
    ],
    keys: &[
        ("OPENAI_API_KEY", Credential::Key),
        ("DASHSCOPE_API_KEY", Credential::Key),
        ("BAILIAN_CODING_PLAN_API_KEY", Credential::Key),
    ],
    homes: &["QWEN_HOME", "HOME"],
    ..Passes::NOTHING
};

/// What its plan mode lets through, and is no reading of the directory: a worktree is a branch and a directory of the repository.
const EXCLUDED: &str = "enter_worktree,exit_worktree,record_artifact,cron_create,cron_delete,cron_list,loop_wakeup,send_message,\
     web_fetch,agent,skill,tool_call,tool_search";

/// What is looked for in its help.
static QUESTIONS: Questions = Questions {
    agent: "qwen",
    helps: &[&["--help"]],
    mark: "--output-format",
    looked_for: &[
        ("stream-json", Must),
        // The mode that only reads.
        ("--approval-mode", Must),
        ("plan", Must),
        ("--exclude-tools", Must),
        // No hooks, servers, extensions and instructions of user and project, and no call of its own besides.
        ("--safe-mode", Used),
        // Signs of life while an answer comes.
        ("--include-partial-messages", Used),
    ],
};

/// Set for every run.
const OWN_VARIABLES: &[(&str, &str)] = &[
    // It starts itself once more for more memory, and the second one is not ours to end.
    ("QWEN_CODE_NO_RELAUNCH", "true"),
    ("QWEN_USAGE_STATISTICS_ENABLED", "false"),
    // What its user trusted is in a file; this one there cannot be.
    ("QWEN_CODE_TRUSTED_FOLDERS_PATH", "/dev/null/none"),
];

/// What goes over the settings of user and project: a directory that nobody trusted brings no variables along. An administrator's own
/// settings stand in the same place, and stay.
const SETTINGS: HeldTo = HeldTo {
    variable: "QWEN_CODE_SYSTEM_SETTINGS_PATH",
    file: "qwen-settings.json",
    content: r#"{"security":{"folderTrust":{"enabled":true}}}"#,
    unless: &["/etc/qwen-code/settings.json", "/Library/Application Support/QwenCode/settings.json"],
};

pub(super) static SHEET: Sheet = Sheet {
    name: "qwen",
    variable: "PHONE_OPUS_QWEN_BIN",
    profile: PROFILE,
    questions: &QUESTIONS,
    passes: &PASSES,
    own_variables: OWN_VARIABLES,
    blanked: &[],
    held_to: Some(&SETTINGS),
    arguments: |invocation| arguments(invocation),
    check,
    resumed_id: |_| ResumedId::Same,
    session_option: None,
    session_place: None,
    parser: || Box::new(StreamJson::new()),
    payer: PayerKnown::BeforeStart,
    check_start: cli::says_nothing_of_its_payer,
    login: Login::Seen(login),
};

/// The command line. The prompt is on standard input alone.
fn arguments(invocation: &Invocation<'_>) -> Vec<OsString> {
    let request = invocation.request;
    let mut args: Vec<OsString> =
        ["-o", "stream-json", "--approval-mode", "plan", "--exclude-tools", EXCLUDED].map(OsString::from).into();
    let mut add = |words: &[&str]| args.extend(words.iter().map(OsString::from));
    for option in ["--safe-mode", "--include-partial-messages"].iter().filter(|option| invocation.has(option)) {
        add(&[option]);
    }
    if let Some(model) = &request.model {
        add(&["-m", model]);
    }
    if let Some(session) = &request.session_id {
        add(&["--resume", &session.to_string()]);
    }
    args
}

/// It has no such limits, and uses the login its user chose whatever keys there are.
fn check(request: &ConsultRequest, environment: &Environment) -> Result<(), Fault> {
    cli::no_limits("Qwen Code", request)?;
    if request.effort.is_some() {
        let detail = "`effort`: Qwen Code has no such choice.";
        return Err(Fault::new(FaultCode::InvalidInput, detail).hint("Leave it out, or name a `model`."));
    }
    if request.billing == Billing::ApiKey && login(environment) == LoginSaid::Plan {
        let detail = "Billing is `api_key`, but Qwen Code would use the login that was chosen in it.";
        let hint = "Choose the API key in `qwen` itself (`/auth`), or unset PHONE_OPUS_BILLING.";
        return Err(Fault::new(FaultCode::BillingMismatch, detail).hint(hint));
    }
    Ok(())
}

/// How its user chose to log in, seen in the user's settings, and whether a key is in the files of variables it reads besides.
fn login(environment: &Environment) -> LoginSaid {
    let place = |name| environment.get(name).map(PathBuf::from).filter(|place| place.is_absolute());
    let Some(own) = place("QWEN_HOME").or_else(|| Some(place("HOME")?.join(".qwen"))) else { return LoginSaid::Unsaid };
    let bytes = std::fs::read(own.join("settings.json")).unwrap_or_default();
    let said: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let files = [Some(own), place("HOME")];
    let has_key =
        || files.iter().flatten().any(|home| holds_key(&home.join(".env"))) || said.get("env").is_some_and(names_key);
    match said.pointer("/security/auth/selectedType").and_then(Value::as_str) {
        Some("qwen-oauth") => LoginSaid::Plan,
        Some("openai" | "openai-responses" | "anthropic" | "gemini" | "vertex-ai") => LoginSaid::Key,
        Some(_) => LoginSaid::Somehow,
        None if has_key() => LoginSaid::Key,
        None => LoginSaid::Unsaid,
    }
}

/// Whether variables in settings are a way to pay.
fn names_key(variables: &Value) -> bool {
    PASSES.keys.iter().any(|(key, _)| variables.get(key).is_some())
}

/// Whether a file of variables holds a way to pay.
fn holds_key(file: &Path) -> bool {
    let content = std::fs::read_to_string(file).unwrap_or_default();
    let names = content.lines().filter_map(|line| line.trim_start().trim_start_matches("export ").split_once('='));
    names.into_iter().any(|(name, _)| PASSES.keys.iter().any(|(key, _)| *key == name.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::probe::Features;
    use crate::agents::tests_support::{AgentTried, request};
    use crate::base::ids::AgentSessionId;
    use crate::jobs::{JobState, PermissionDenial};

    const TRIED: AgentTried = AgentTried(&SHEET);

    const SESSION: &str = "a5f54b27-7ebc-4fbb-a6cc-b029ee6ba16f";

    #[test]
    fn the_command_line_is_the_read_only_one() {
        let session = AgentSessionId::random();
        let full = ConsultRequest { session_id: Some(session), model: Some("m".into()), ..request("p") };
        let args = TRIED.arguments(&full, &Features::newest(&QUESTIONS));
        let id = session.to_string();
        let kept = ["-o", "stream-json", "--approval-mode", "plan", "--exclude-tools", EXCLUDED];
        let more = ["--safe-mode", "--include-partial-messages", "-m", "m", "--resume", &id];
        assert_eq!(args, [&kept[..], &more].concat());
        let old = Features::newest(&QUESTIONS).without(&["--safe-mode", "--include-partial-messages"]);
        assert_eq!(TRIED.arguments(&request("p"), &old), kept);
        // A worktree is written into the repository, in plan mode too.
        assert!(EXCLUDED.split(',').any(|tool| tool == "enter_worktree") && !EXCLUDED.contains(' '));
    }

    #[test]
    fn what_it_cannot_be_asked_is_refused_and_who_pays_is_seen_in_its_settings() {
        let dir = tempfile::tempdir().expect("scratch");
        let env: Environment = [("QWEN_HOME", dir.path())].into_iter().collect();
        let code = |request: &ConsultRequest| check(request, &env).map_err(|fault| fault.code);
        assert_eq!((login(&env), code(&request("p"))), (LoginSaid::Unsaid, Ok(())));
        for wrong in [
            ConsultRequest { effort: Some("high".into()), ..request("p") },
            ConsultRequest { max_turns: Some(1), ..request("p") },
        ] {
            assert_eq!(code(&wrong), Err(FaultCode::InvalidInput));
        }
        let paid = ConsultRequest { billing: Billing::ApiKey, ..request("p") };
        for (chosen, said, good) in [
            ("qwen-oauth", LoginSaid::Plan, Err(FaultCode::BillingMismatch)),
            ("openai", LoginSaid::Key, Ok(())),
            ("something-new", LoginSaid::Somehow, Ok(())),
        ] {
            let settings = format!(r#"{{"security":{{"auth":{{"selectedType":"{chosen}"}}}}}}"#);
            std::fs::write(dir.path().join("settings.json"), settings).expect("settings");
            assert_eq!((login(&env), code(&paid)), (said, good), "{chosen}");
        }
        // None was chosen: then it takes what it finds.
        for (file, content, said) in [
            ("settings.json", r#"{"env":{"OPENAI_API_KEY":"dummy"}}"#, LoginSaid::Key),
            ("settings.json", "{}", LoginSaid::Unsaid),
            (".env", "# none\nOPENAI_MODEL=m\n", LoginSaid::Unsaid),
            (".env", "# one\n export OPENAI_API_KEY = dummy\n", LoginSaid::Key),
        ] {
            std::fs::write(dir.path().join(file), content).expect("a file");
            assert_eq!(login(&env), said, "{file}: {content}");
        }
    }

    fn init() -> String {
        format!(
            r#"{{"type":"system","subtype":"init","session_id":"{SESSION}","tools":[],"model":"m","permission_mode":"plan"}}"#
        )
    }

    /// As it says that its provider failed: in the assistant's words, and once more in its result.
    fn failed(error: &str) -> [String; 2] {
        let error = Value::from(error);
        [
            format!(r#"{{"type":"assistant","message":{{"content":[{{"type":"text","text":{error}}}]}}}}"#),
            format!(
                r#"{{"type":"result","subtype":"error_during_execution","session_id":"{SESSION}","is_error":true,"num_turns":1,"error":{{"message":{error}}}}}"#
            ),
        ]
    }

    #[test]
    fn every_end_it_really_has_is_judged_by_what_it_says() {
        use FaultCode as C;
        // As Qwen Code 0.24.4 writes them.
        for (error, code) in [
            ("[API Error: 401 no such luck]", C::AgentNotLoggedIn),
            ("[API Error: 403 no such luck]", C::AgentNotLoggedIn),
            ("[API Error: 404 no such luck]", C::AgentModel),
            ("[API Error: 429 no such luck]", C::AgentRateLimited),
            ("[API Error: 500 no such luck]", C::AgentUpstream),
            ("[API Error: Connection error. (cause: fetch failed)]", C::AgentUpstream),
            ("[API Error: 400 no such luck]", C::AgentError),
            ("[API Error: Context is too large to send safely after automatic compression. …]", C::InputTooLarge),
            ("No auth type is selected. Please configure an auth type …", C::AgentNotLoggedIn),
        ] {
            let [said, result] = failed(error);
            let seen = TRIED.verdict(1, "", &[&init(), &said, &result]);
            let fault = seen.outcome.fault.expect("a fault");
            assert_eq!((seen.state, fault.code), (JobState::Failed, code), "{error}: {fault}");
            assert_eq!(seen.outcome.session_id.as_deref(), Some(SESSION), "{error}");
        }
        for (stderr, exit, code) in [
            ("No saved session found with ID x. Run `qwen --resume` without an ID …", 1, C::UnknownSession),
            // Of a refused option the end of its help is what is left.
            (
                "-v, --version  Show version number  [boolean]\n  -h, --help  Show help  [boolean]",
                1,
                C::AgentUnsupported,
            ),
            ("it broke", 1, C::AgentError),
            ("", 130, C::AgentKilled),
            ("", 0, C::AgentProtocol),
        ] {
            let fault = TRIED.verdict(exit, stderr, &[]).outcome.fault.expect("a fault");
            assert_eq!(fault.code, code, "{stderr} {exit}");
        }
    }

    #[test]
    fn success_needs_the_result_and_names_what_was_denied() {
        let said =
            r#"{"type":"assistant","parent_tool_use_id":null,"message":{"content":[{"type":"text","text":"42"}]}}"#;
        let done = format!(
            r#"{{"type":"result","subtype":"success","session_id":"{SESSION}","is_error":false,"num_turns":2,"result":"42","usage":{{"input_tokens":20}},"permission_denials":[{{"tool_name":"write_file","tool_use_id":"c","tool_input":{{"file_path":"/w/x","content":"x"}}}}]}}"#
        );
        let good = TRIED.verdict(0, "", &[&init(), said, &done]);
        assert_eq!((good.state, good.outcome.response.as_deref()), (JobState::Succeeded, Some("42")));
        assert_eq!((good.outcome.billing.as_deref(), good.outcome.cost_usd), (Some("unproven"), None));
        let denied = PermissionDenial { tool: "write_file".into(), target: Some("/w/x".into()) };
        assert_eq!(good.outcome.permission_denials, [denied]);
        let cut = TRIED.verdict(0, "", &[&init(), said]).outcome;
        assert_eq!(cut.fault.map(|fault| fault.code), Some(FaultCode::AgentProtocol));
        assert_eq!((cut.response.as_deref(), cut.session_id.as_deref()), (Some("42"), Some(SESSION)));
    }
}
