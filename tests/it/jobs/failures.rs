//! Bad input and bad agents: every fault is classified, and the session goes on.
//!
//! Laws: L8, L9.

use phone_opus::internals::agents::MAX_PROMPT_BYTES;
use phone_opus::internals::base::ids::UnixMillis;
use phone_opus::testkit::{Reply, Rig, Script, Step, TestClient, tried_program};
use serde_json::{Value, json};

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

/// The sentence of a fault: of a tool result or a protocol error.
fn detail(reply: &Reply) -> String {
    let structured = &reply.0["result"]["structuredContent"];
    let detail = [&structured["fault"]["detail"], &structured["detail"], &reply.0["error"]["data"]["detail"]];
    detail.into_iter().find_map(Value::as_str).unwrap_or_default().to_owned()
}

async fn refused(host: &mut TestClient, tool: &str, arguments: Value, code: &str, named: &[&str]) {
    let shown = arguments.to_string().chars().take(100).collect::<String>();
    let reply = host.call(tool, arguments).await.expect_fault(code);
    for part in named {
        assert!(detail(&reply).contains(part), "{shown}: {part:?} is not in {}", detail(&reply));
    }
    // The text is all that some clients show.
    assert!(reply.text().contains(named[0]), "{shown}: {}", reply.text());
}

#[tokio::test]
async fn bad_arguments_are_refused_by_name_before_anything_is_started_or_written() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    std::fs::write(rig.path("work/file"), "").expect("a file");
    let file = rig.path("work/file");
    let ok = rig.answering("never");
    for (arguments, named) in [
        (json!({}), &["`prompt` is missing"][..]),
        (json!({"prompt": null}), &["`prompt` is missing"]),
        (json!({"prompt": ""}), &["`prompt` is blank"]),
        (json!({"prompt": " \n\t "}), &["`prompt` is blank"]),
        (json!({"prompt": 7}), &["`prompt` is a number", "a string"]),
        (json!({"prompt": ok, "cwd": "/no/such/dir"}), &["`cwd` does not exist", "existing directory"]),
        (json!({"prompt": ok, "cwd": file}), &["`cwd` is not a directory"]),
        (json!({"prompt": ok, "cwd": "relative"}), &["`cwd` is not absolute"]),
        (json!({"prompt": ok, "cwd": "./"}), &["`cwd` is not absolute"]),
        (json!({"prompt": ok, "session_id": "../x"}), &["`session_id` is \"../x\"", "as it was handed out"]),
        (json!({"prompt": ok, "session_id": "--last"}), &["`session_id`", "letters, digits"]),
        (json!({"prompt": ok, "session_id": 7}), &["`session_id` is 7", "letters, digits"]),
        (json!({"prompt": ok, "max_turns": 0}), &["`max_turns` is 0", "from 1"]),
        (json!({"prompt": ok, "max_turns": -3}), &["`max_turns` is -3"]),
        (json!({"prompt": ok, "timeout_s": 0}), &["`timeout_s` is 0"]),
        (json!({"prompt": ok, "wait_s": -1}), &["`wait_s` is -1"]),
        (json!({"prompt": ok, "max_budget_usd": 0}), &["`max_budget_usd` is 0", "above 0"]),
        (json!({"prompt": ok, "agent": "cluade"}), &["`agent` is \"cluade\""]),
        (json!({"prompt": ok, "effort": "extreme"}), &["`effort` is \"extreme\"", "low, medium"]),
        (json!({"prompt": ok, "model": "--dangerous"}), &["`model` is \"--dangerous\""]),
        (json!({"prompt": ok, "request_key": "\u{7}"}), &["`request_key`"]),
        (json!({"prompt": ok, "sessionId": "x"}), &["`sessionId` is not an argument", "did you mean `session_id`?"]),
        (json!({"prompt": ok, "render": "html"}), &["`render` is \"html\"", "porcelain"]),
        (
            json!({"prompt": " ", "cwd": "/no/such", "max_turns": 0, "sesion_id": "x", "agent": "x", "background": 1}),
            &["6 problems", "`prompt`", "`cwd`", "`max_turns`", "`session_id`", "`agent`", "`background`"],
        ),
    ] {
        refused(&mut host, "consult", arguments, "invalid_input", named).await;
    }
    let long = "x".repeat(MAX_PROMPT_BYTES + 1);
    refused(&mut host, "consult", json!({"prompt": long}), "prompt_too_large", &["`prompt` has"]).await;
    host.ping().await;
    assert!(rig.runs().is_empty() && rig.jobs().await.is_empty());
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn bad_arguments_of_the_readers_are_refused_by_name_too() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let unknown = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";
    for (tool, arguments, code, named) in [
        ("consult_job", json!({}), "invalid_input", &["`job_id` is missing"][..]),
        ("consult_job", json!({"job_id": "../etc"}), "invalid_input", &["`job_id` is \"../etc\"", "UUID"]),
        ("consult_job", json!({"job_id": unknown, "page": 0}), "invalid_input", &["`page` is 0"]),
        ("consult_job", json!({"job_id": unknown}), "unknown_job", &[unknown]),
        ("consult_cancel", json!({"job_id": unknown}), "unknown_job", &[unknown]),
        ("consult_cancel", json!({"job_id": 3, "force": true}), "invalid_input", &["2 problems", "`force`"]),
        (
            "consult_jobs",
            json!({"limit": 0, "state": "done"}),
            "invalid_input",
            &["2 problems", "`limit`", "succeeded"],
        ),
        ("consult_jobs", json!({"limit": 51}), "invalid_input", &["`limit` is 51", "from 1 to 50"]),
        ("health_snapshot", json!({"verbose": true}), "invalid_input", &["`verbose`"]),
    ] {
        refused(&mut host, tool, arguments, code, named).await;
    }
    host.ping().await;
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn an_older_client_gets_bad_arguments_as_a_protocol_error() {
    let mut rig = new_rig();
    let mut host = rig.host();
    host.handshake("2025-06-18").await;
    let reply = host.call("consult", json!({"prompt": ""})).await.expect_fault("invalid_input");
    assert_eq!(reply.0["error"]["code"], -32602, "{:#}", reply.0);
    assert!(reply.0["error"]["message"].as_str().is_some_and(|text| text.contains("`prompt` is blank")));
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn the_home_directory_and_the_root_are_never_a_silent_working_directory() {
    let mut rig = new_rig();
    let mut hosts = Vec::new();
    for dir in [rig.path("home"), "/".into()] {
        let mut host = rig.host_in(&dir);
        host.handshake("2025-11-25").await;
        let arguments = json!({"prompt": rig.answering("never")});
        refused(&mut host, "consult", arguments, "invalid_input", &["`cwd` is missing", "absolute path"]).await;
        hosts.push(host);
    }
    rig.expect_runs(0);
    rig.stop_and_check_invariants(hosts).await;
}

#[tokio::test]
async fn an_agent_that_cannot_be_started_is_a_failure_that_says_why() {
    let mut rig = new_rig();
    std::fs::write(rig.path("plain"), "no program").expect("a file");
    let mut hosts = Vec::new();
    for (program, code) in [
        ("/no/such/claude".to_owned(), "agent_missing"),
        (rig.path("plain").display().to_string(), "agent_not_executable"),
        (rig.work().display().to_string(), "agent_not_executable"),
    ] {
        rig.set("PHONE_OPUS_CLAUDE_BIN", &program);
        let mut host = rig.serve().await;
        let reply = host.consult(&rig.answering("never")).await.expect_fault(code);
        assert_eq!(reply.str("status"), "failed");
        assert!(!detail(&reply).is_empty() && reply.0["result"]["structuredContent"]["fault"]["hint"].is_string());
        host.ping().await;
        hosts.push(host);
    }
    rig.stop_and_check_invariants(hosts).await;
}

/// Consults with this script; the reply must carry the agent's last words.
async fn fails(rig: &Rig, host: &mut TestClient, name: &str, script: Script, code: &str) -> Reply {
    let words = format!("last words of {name}");
    let steps = [vec![Step::Stderr(format!("{words}\n"))], script.steps.clone()].concat();
    let prompt = rig.prompt(Script { steps, ..script });
    let reply = host.call("consult", json!({"prompt": prompt, "detail": "full"})).await;
    assert!(reply.is_error() && reply.code() == code, "{name} is not {code}: {:#}", reply.0);
    assert_eq!(reply.str("status"), "failed", "{name}");
    assert!(reply.str("stderr_tail").contains(&words), "{name}: {:#}", reply.0);
    assert!(reply.text().contains(&words), "{name}: {}", reply.text());
    // The session lives, and the job is over for every other reader as well.
    host.ping().await;
    let read = host.call("consult_job", json!({"job_id": reply.str("job_id")})).await;
    assert_eq!((read.code(), read.str("status")), (code, "failed"), "{name}");
    reply
}

fn fields(value: Value) -> serde_json::Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

#[tokio::test]
async fn an_agent_that_fails_is_classified_with_its_last_words_and_the_session_lives() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let silent = Script { no_init: true, no_result: true, ..Script::default() };
    let session = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";
    let with = |steps: Vec<Step>, exit: i32| Script { steps, exit: Some(exit), ..silent.clone() };
    for (name, script, code) in [
        ("nothing", silent.clone(), "agent_protocol"),
        ("no result", Script { no_result: true, ..Script::default() }, "agent_protocol"),
        ("garbage", with(vec![Step::Garbage(1000)], 0), "agent_protocol"),
        ("half a character", with(vec![Step::HalfUtf8], 0), "agent_protocol"),
        ("exit 3 with output", Script { no_init: false, ..with(vec![Step::Text("so far".into())], 3) }, "agent_error"),
        ("an endless line", with(vec![Step::HugeLine(20 << 20)], 0), "agent_protocol"),
        ("a signal", with(vec![Step::KillSelf(9)], 0), "agent_killed"),
        ("a blank answer", Script { answer: Some(" ".into()), ..Script::default() }, "empty_answer"),
    ] {
        fails(&rig, &mut host, name, script, code).await;
    }

    let login = with(vec![Step::Stderr("Not logged in · Please run /login\n".into())], 1);
    let reply = fails(&rig, &mut host, "no login", login, "agent_not_logged_in").await;
    assert!(reply.text().contains("PHONE_OPUS_BILLING"), "a key was withheld: {}", reply.text());

    let limited = Script {
        steps: vec![Step::ApiError("rate_limit".into()), Step::RateLimit(1_900_000_000)],
        result: fields(json!({"is_error": true, "result": "API Error: 429"})),
        ..Script::default()
    };
    let reply = fails(&rig, &mut host, "a limit", limited, "agent_rate_limited").await;
    assert_eq!(reply["fault"]["retry_at"], json!(1_900_000_000_000_u64));

    let turns = Script {
        session_id: Some(session.into()),
        steps: vec![Step::Text("so far".into())],
        result: fields(json!({"is_error": true, "subtype": "error_max_turns", "result": null})),
        ..Script::default()
    };
    let reply = fails(&rig, &mut host, "turns", turns, "turn_limit").await;
    assert_eq!((reply.str("session_id"), reply.str("response")), (session, "so far"));
    assert!(reply.str("next").contains(session), "{}", reply.str("next"));

    host.consult(&rig.answering("42")).await.expect_success();
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn an_agent_that_another_account_would_pay_for_is_ended_as_soon_as_it_says_so() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let steps = vec![Step::Hang];
    let script = Script { key_source: Some("ANTHROPIC_API_KEY".into()), steps, ..Script::default() };
    let reply = host.consult(&rig.prompt(script)).await.expect_fault("billing_mismatch");
    assert_eq!((reply.str("status"), &reply["response"], &reply["cost_usd"]), ("failed", &Value::Null, &Value::Null));
    assert!(reply.text().contains("PHONE_OPUS_BILLING"), "{}", reply.text());
    assert_eq!(rig.agents().len(), 0);
    host.ping().await;
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn an_agent_that_writes_oddly_but_answers_has_answered() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    for (name, script) in [
        ("garbage between", Script { steps: vec![Step::Garbage(100)], ..Script::default() }),
        ("a line of 20 MB", Script { steps: vec![Step::HugeLine(20 << 20)], ..Script::default() }),
        ("half of a pair", Script { steps: vec![Step::LoneSurrogate], ..Script::default() }),
        ("not JSON", Script { steps: vec![Step::Raw("{\"type\":".into())], ..Script::default() }),
        ("unheard of", Script { steps: vec![Step::Raw("{\"type\":\"novelty\"}".into())], ..Script::default() }),
        ("a late introduction", Script { no_init: true, steps: vec![Step::Introduce], ..Script::default() }),
        (
            "a second result",
            Script { steps: vec![Step::Result(fields(json!({"result": "not yet"})))], ..Script::default() },
        ),
        ("exit 1 after the result", Script { exit: Some(1), ..Script::default() }),
        ("exit 3 after the result", Script { exit: Some(3), ..Script::default() }),
    ] {
        let prompt = rig.prompt(Script { answer: Some(format!("despite {name}")), ..script });
        let reply = host.consult(&prompt).await.expect_success();
        assert_eq!(reply.str("response"), format!("despite {name}"));
    }
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn fifty_megabytes_of_output_are_read_to_the_answer_at_their_end() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let reply = host.consult(&rig.doing(vec![Step::HugeOutput(50 << 20)])).await.expect_success();
    assert_eq!(reply["response"], "done");
    // What was said on the way is bounded, in the reply and on the disk.
    assert!(reply.0.to_string().len() < 64 * 1024);
    let size = std::fs::metadata(rig.state_dir().database()).expect("a database").len();
    assert!(size < 64 << 20, "{size} bytes");
    host.ping().await;
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_is_said_so_and_the_host_serves_what_it_can() {
    let mut rig = new_rig();
    std::fs::write(rig.path("in-the-way"), "").expect("a file");
    rig.set("PHONE_OPUS_STATE_DIR", rig.path("in-the-way").display().to_string());
    let mut host = rig.serve().await;
    for (tool, arguments) in [
        ("consult", json!({"prompt": rig.answering("never")})),
        ("consult_jobs", json!({})),
        ("consult_job", json!({"job_id": "3f2504e0-4f89-41d3-9a0c-0305e82c3301"})),
    ] {
        let reply = host.call(tool, arguments).await.expect_fault("store_unavailable");
        assert!(reply.text().contains("not a directory"), "{tool}: {}", reply.text());
    }
    let health = host.call("health_snapshot", json!({})).await;
    assert_eq!((&health["ready"], &health["store"]["status"]), (&json!(false), &json!("unavailable")));
    host.ping().await;
    rig.expect_runs(0);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_reached_usage_limit_is_known_to_every_host_until_it_is_over() {
    let mut rig = new_rig();
    let (mut one, mut two) = (rig.serve().await, rig.serve().await);
    let in_an_hour = UnixMillis::now().0 / 1000 + 3600;
    let script = Script {
        steps: vec![
            Step::ApiError("rate_limit".into()),
            Step::RateLimit(u64::try_from(in_an_hour).expect("after 1970")),
        ],
        result: fields(json!({"is_error": true, "result": "API Error: 429"})),
        ..Script::default()
    };
    let refused = one.consult(&rig.prompt(script)).await.expect_fault("agent_rate_limited");
    assert_eq!(refused["fault"]["retry_at"], in_an_hour * 1000, "{:#}", refused.0);
    // Nothing more is started for this agent, by nobody, and each is told until when.
    for client in [&mut one, &mut two] {
        let reply = client.consult(&rig.answering("no")).await.expect_fault("agent_rate_limited");
        assert_eq!(reply["fault"]["retry_at"], in_an_hour * 1000, "{:#}", reply.0);
        assert!(reply["fault"]["detail"].to_string().contains("nothing was started"), "{:#}", reply.0);
    }
    rig.expect_runs(1);
    assert_eq!(rig.jobs().await.len(), 1);
    // Another agent is not concerned, and who knows better says so.
    let reply = two.call("consult", json!({"prompt": "where is main?", "agent": "offline"})).await;
    assert!(reply.code() != "agent_rate_limited", "{:#}", reply.0);
    let shown = rig.run(&["jobs", "limits", "--json"]).await;
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert_eq!(
        (&shown["limits"][0]["agent"], &shown["limits"][0]["until"]),
        (&json!("claude"), &json!(in_an_hour * 1000))
    );
    assert!(rig.run(&["jobs", "limits", "--clear"]).await.status.success());
    two.consult(&rig.answering("42")).await.expect_success();
    rig.stop_and_check_invariants([one, two]).await;
}

#[tokio::test]
async fn a_reached_limit_is_of_one_account_and_one_family_of_models_and_is_said_in_words() {
    let mut rig = new_rig();
    let mut one = rig.serve().await;
    let in_an_hour = UnixMillis::now().0 / 1000 + 3600;
    let info = fields(json!({"status": "rejected", "resetsAt": in_an_hour, "rateLimitType": "seven_day_opus"}));
    let limited = Script {
        steps: vec![Step::LimitInfo(info)],
        result: fields(json!({"is_error": true, "result": "API Error: 429", "api_error_status": 429})),
        ..Script::default()
    };
    let opus = |prompt: String| json!({"prompt": prompt, "model": "opus"});
    let refused = one.call("consult", opus(rig.prompt(limited))).await.expect_fault("agent_rate_limited");
    let asked_again = one.call("consult", opus(rig.answering("no"))).await.expect_fault("agent_rate_limited");
    for reply in [&refused, &asked_again] {
        // How long, and the time of day; nobody reads milliseconds.
        assert!(detail(reply).contains("until 20") && detail(reply).contains(", in 1 h"), "{}", detail(reply));
        assert!(!reply.text().contains(&in_an_hour.to_string()), "{}", reply.text());
    }
    assert!(detail(&asked_again).contains("nothing was started"), "{}", detail(&asked_again));
    for model in ["sonnet", "haiku"] {
        one.call("consult", json!({"prompt": rig.answering("42"), "model": model})).await.expect_success();
    }
    rig.set("CLAUDE_CONFIG_DIR", rig.path("another-account").display().to_string());
    let mut two = rig.serve().await;
    two.call("consult", opus(rig.answering("42"))).await.expect_success();
    one.call("consult", opus(rig.answering("no"))).await.expect_fault("agent_rate_limited");
    rig.expect_runs(4);
    rig.stop_and_check_invariants([one, two]).await;
}

#[tokio::test]
async fn what_older_versions_say_in_words_alone_is_classified_and_kept_as_a_limit() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    for (words, code) in [
        ("Credit balance is too low", "agent_billing"),
        ("OAuth token has expired. Please obtain a new token", "agent_not_logged_in"),
        ("Prompt is too long", "input_too_large"),
        ("API Error: Repeated 529 Overloaded errors", "agent_overloaded"),
        // The last one: from here on nothing is started.
        ("5-hour limit reached ∙ resets in 2 hours", "agent_rate_limited"),
    ] {
        let script = Script { result: fields(json!({"is_error": true, "result": words})), ..Script::default() };
        let reply = host.consult(&rig.prompt(script)).await.expect_fault(code);
        assert_eq!(reply["response"], words, "the agent's own words are kept");
    }
    let reply = host.consult(&rig.answering("no")).await.expect_fault("agent_rate_limited");
    assert!(detail(&reply).contains("nothing was started"), "{}", detail(&reply));
    rig.expect_runs(5);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_directory_that_changed_during_a_consult_is_said_so() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let reply = host.call("consult", json!({"prompt": rig.answering("42"), "detail": "full"})).await.expect_success();
    assert_eq!(reply["workspace_changed"], false, "{:#}", reply.0);
    let writes = rig.doing(vec![Step::DelayMs(50), Step::Touch(rig.work().join("written"))]);
    let reply = host.call("consult", json!({ "prompt": writes })).await.expect_success();
    assert_eq!(reply["workspace_changed"], true, "{:#}", reply.0);
    assert!(reply.text().contains("changed meanwhile"), "{}", reply.text());
    rig.stop_and_check_invariants([host]).await;
}
