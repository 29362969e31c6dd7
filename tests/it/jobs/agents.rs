//! Every agent that is a program of its own, as the whole program runs it: the same promises hold of each.
//!
//! Laws: L3, L7, L13.

use phone_opus::internals::agents::{MAX_PROMPT_BYTES, PROMPT_PREFIX};
use phone_opus::internals::jobs::{JobState, JournalEvent};
use phone_opus::testkit::{ForkPlace, Rig, Role, Script, Signal, Step, TestClient, tried_program};
use phone_opus::{AgentEvent, CliAgent};
use serde_json::{Map, Value, json};

/// An agent, and what differs between it and the others.
struct Member {
    name: &'static str,
    /// What replies say of who pays.
    billing: &'static str,
    /// Whether it says what a run cost.
    tells_costs: bool,
    /// Whether a new session is given its id.
    gives_its_id: bool,
    /// What it says on stderr of a session that it does not have.
    unknown: &'static str,
    /// The longest prompt it takes.
    most: usize,
    /// A key of its own, which it gets only where it is to pay.
    key: &'static str,
    /// A word in its arguments that keeps it to reading.
    kept_by: &'static str,
    /// How it says that its provider has refused the login.
    refused: fn() -> Map<String, Value>,
}

const MEMBERS: &[Member] = &[
    Member {
        name: "claude",
        billing: "none",
        tells_costs: true,
        gives_its_id: false,
        unknown: "No conversation found with session ID: x",
        most: MAX_PROMPT_BYTES,
        key: "ANTHROPIC_API_KEY",
        kept_by: "--restricted",
        refused: || fields(json!({"is_error": true, "result": "API Error: 401", "api_error_status": 401})),
    },
    Member {
        name: "codex",
        billing: "unproven",
        tells_costs: false,
        gives_its_id: false,
        unknown: "Error: thread/resume: thread/resume failed: no rollout found for thread id x (code -32600)",
        most: MAX_PROMPT_BYTES,
        key: "OPENAI_API_KEY",
        kept_by: "read-only",
        refused: || {
            fields(json!({"is_error": true, "message": "unexpected status 401 Unauthorized: no, url: http://x"}))
        },
    },
    Member {
        name: "copilot",
        billing: "unproven",
        tells_costs: false,
        gives_its_id: true,
        unknown: "Error: No session, task, or name matched 'x'.",
        most: MAX_PROMPT_BYTES,
        key: "COPILOT_PROVIDER_API_KEY",
        kept_by: "--available-tools=view,grep,glob",
        refused: || {
            let message = "Authentication failed with provider at http://x (HTTP 401).";
            fields(json!({"is_error": true, "message": message, "statusCode": 401}))
        },
    },
    Member {
        name: "gemini",
        billing: "unproven",
        tells_costs: false,
        gives_its_id: false,
        unknown: "Error resuming session: Invalid session identifier \"x\".",
        most: 59_000,
        key: "GEMINI_API_KEY",
        kept_by: "plan",
        refused: || {
            let message = r#"[API Error: {"error":{"code":401,"message":"no","status":"UNAUTHENTICATED"}}]"#;
            fields(json!({"is_error": true, "message": message}))
        },
    },
    Member {
        name: "qwen",
        billing: "unproven",
        tells_costs: false,
        gives_its_id: false,
        unknown: "No saved session found with ID x. Run `qwen --resume` without an ID to choose from existing sessions.",
        most: MAX_PROMPT_BYTES,
        key: "OPENAI_API_KEY",
        kept_by: "--safe-mode",
        refused: || fields(json!({"is_error": true, "message": "[API Error: 401 no such luck]"})),
    },
];

fn fields(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

async fn ask(host: &mut TestClient, member: &Member, prompt: &str) -> phone_opus::testkit::Reply {
    host.call("consult", json!({"prompt": prompt, "agent": member.name})).await
}

#[test]
fn every_agent_is_a_member() {
    let known: Vec<String> = CliAgent::all().map(|agent| phone_opus::Agent::name(&agent).to_owned()).collect();
    assert_eq!(MEMBERS.iter().map(|member| member.name).collect::<Vec<_>>(), known);
}

#[tokio::test]
async fn each_answers_resumes_and_knows_a_session_that_is_another_one() {
    for member in MEMBERS {
        let (mut rig, name) = (new_rig(), member.name);
        let mut host = rig.serve().await;
        let steps = vec![Step::Thinking, Step::ToolUse("Grep".into()), Step::Text("so far".into())];
        let script = Script { answer: Some("42".into()), steps, ..Script::default() };
        let reply = ask(&mut host, member, &rig.prompt(script)).await.expect_success();
        assert_eq!(
            (&reply["response"], &reply["agent"], &reply["billing"]),
            (&json!("42"), &json!(name), &json!(member.billing))
        );
        assert_eq!(!reply["cost_usd"].is_null(), member.tells_costs, "{name}: {:#}", reply.0);
        let session = reply.str("session_id").to_owned();
        let job = reply.str("job_id").parse().expect("a job");
        let told: Vec<AgentEvent> = rig
            .journal(job)
            .await
            .into_iter()
            .filter_map(|entry| match entry.event {
                JournalEvent::Agent { event } => Some(event),
                _ => None,
            })
            .collect();
        let at = |wanted: fn(&AgentEvent) -> bool| {
            told.iter().position(wanted).unwrap_or_else(|| panic!("{name}: {told:?}"))
        };
        let order = [
            at(|event| matches!(event, AgentEvent::Started { .. })),
            at(|event| *event == AgentEvent::Thinking),
            at(|event| matches!(event, AgentEvent::ToolUse { .. })),
            at(|event| *event == AgentEvent::ToolResult),
            at(|event| matches!(event, AgentEvent::Text { text } if text == "so far")),
            at(|event| matches!(event, AgentEvent::Result { .. })),
        ];
        assert!(order.is_sorted(), "{name}: {told:?}");

        let again = |prompt: String, session: &str| json!({"prompt": prompt, "agent": name, "session_id": session});
        let reply = host.call("consult", again(rig.answering("43"), &session)).await.expect_success();
        assert_eq!((&reply["session_id"], &reply["session_mode"]), (&json!(session), &json!("resumed")), "{name}");
        let runs = rig.runs();
        let names_it = |number: usize| runs[number].argv().contains(&session.as_str());
        assert_eq!((names_it(0), names_it(1)), (member.gives_its_id, true), "{name}");

        // Another session answers: it does not know what was said before.
        let other = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";
        let strange = Script { session_id: Some(other.into()), answer: Some("44".into()), ..Script::default() };
        let reply = host.call("consult", again(rig.prompt(strange), &session)).await.expect_fault("unknown_session");
        assert_eq!(reply["session_id"], other, "{name}");
        let unknown = Script {
            no_init: true,
            no_result: true,
            exit: Some(1),
            steps: vec![Step::Stderr(member.unknown.into())],
            ..Script::default()
        };
        let reply = host.call("consult", again(rig.prompt(unknown), other)).await.expect_fault("unknown_session");
        assert_eq!((&reply["session_id"], &reply["resumable"]), (&json!(other), &json!(false)), "{name}");
        // It was had in another directory: nothing is started.
        let mut elsewhere = again(rig.answering("never"), &session);
        elsewhere["cwd"] = json!(rig.path("work/other"));
        let reply = host.call("consult", elsewhere).await.expect_fault("invalid_session");
        assert!(reply.text().contains(&rig.work().display().to_string()), "{name}: {}", reply.text());
        rig.expect_runs(4);
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn success_needs_the_terminal_event_and_a_failure_is_told_by_its_reason() {
    for member in MEMBERS {
        let mut rig = new_rig();
        let mut host = rig.serve().await;
        let cut =
            Script { no_result: true, exit: Some(0), steps: vec![Step::Text("so far".into())], ..Script::default() };
        let reply = ask(&mut host, member, &rig.prompt(cut)).await.expect_fault("agent_protocol");
        assert_eq!(reply["response"], "so far", "{}", member.name);
        let nothing = Script { no_init: true, no_result: true, exit: Some(0), ..Script::default() };
        ask(&mut host, member, &rig.prompt(nothing)).await.expect_fault("agent_protocol");
        let refused = Script { result: (member.refused)(), ..Script::default() };
        ask(&mut host, member, &rig.prompt(refused)).await.expect_fault("agent_not_logged_in");
        let old = Script {
            no_init: true,
            no_result: true,
            exit: Some(1),
            steps: vec![Step::Stderr("it broke".into())],
            ..Script::default()
        };
        let reply = ask(&mut host, member, &rig.prompt(old)).await.expect_fault("agent_error");
        assert!(reply.str("stderr_tail").contains("it broke"), "{}", member.name);
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn a_prompt_of_the_most_bytes_arrives_whole_and_on_stdin_alone() {
    for member in MEMBERS {
        let mut rig = new_rig();
        let mut host = rig.serve().await;
        let mut prompt = rig.answering("long");
        prompt.extend(std::iter::repeat_n('x', member.most - prompt.len()));
        assert_eq!(ask(&mut host, member, &prompt).await.expect_success()["response"], "long", "{}", member.name);
        let run = rig.runs().pop().expect("a run");
        assert_eq!(run.start["prompt_bytes"], member.most + PROMPT_PREFIX.len(), "{}", member.name);
        assert!(run.argv().contains(&member.kept_by), "{}: {:?}", member.name, run.argv());
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn no_key_reaches_an_agent_that_it_was_not_meant_for() {
    let secrets = [
        ("ANTHROPIC_API_KEY", "claude"),
        ("ANTHROPIC_AUTH_TOKEN", "claude"),
        ("CLAUDE_CODE_OAUTH_TOKEN", ""),
        ("OPENAI_API_KEY", "codex qwen"),
        ("CODEX_API_KEY", "codex"),
        ("GEMINI_API_KEY", "gemini"),
        ("COPILOT_GITHUB_TOKEN", ""),
        ("COPILOT_PROVIDER_BASE_URL", "copilot"),
        ("COPILOT_PROVIDER_API_KEY", "copilot"),
        ("GITHUB_TOKEN", ""),
        ("DASHSCOPE_API_KEY", "qwen"),
        ("COPILOT_ALLOW_ALL", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("DATABASE_PASSWORD", ""),
    ];
    for billing in ["subscription", "api_key"] {
        let mut rig = new_rig().with("PHONE_OPUS_BILLING", billing);
        for (name, _) in secrets {
            rig.set(name, format!("dummy-of-{name}"));
        }
        let mut host = rig.serve().await;
        for (number, member) in MEMBERS.iter().enumerate() {
            ask(&mut host, member, &rig.answering("42")).await;
            let run = rig.runs().into_iter().nth(number).expect("a run");
            for (name, owner) in secrets {
                let login = [("claude", "CLAUDE_CODE_OAUTH_TOKEN"), ("copilot", "COPILOT_GITHUB_TOKEN")];
                let meant = owner.split(' ').any(|owner| owner == member.name) && billing == "api_key"
                    || login.contains(&(member.name, name));
                assert_eq!(run.env(name).is_some(), meant, "{name} and {} under {billing}", member.name);
            }
            assert_eq!(run.env(member.key).is_some(), billing == "api_key", "{} under {billing}", member.name);
            assert!(run.token().is_some() && run.env("HOME").is_some());
        }
        host.finish().await;
        rig.expect_no_agent_left().await;
    }
}

#[tokio::test]
async fn each_is_cancelled_and_killed_with_everything_it_started() {
    for member in MEMBERS {
        let mut rig = new_rig();
        let mut host = rig.serve().await;
        // Asked to stop, it takes no notice, and neither does what it started.
        let steps = vec![Step::IgnoreTerm, Step::Fork(ForkPlace::Group), Step::Touch(rig.sign("begun")), Step::Hang];
        let arguments = json!({"prompt": rig.doing(steps), "agent": member.name, "background": true});
        let job = host.call("consult", arguments).await.str("job_id").to_owned();
        rig.wait_for_sign("begun").await;
        host.call("consult_cancel", json!({"job_id": job})).await;
        let over = host.call("consult_job", json!({"job_id": job, "wait_s": 60})).await;
        assert_eq!(over["status"], "cancelled", "{}", member.name);
        rig.expect_no_agent_left().await;

        // Somebody else kills it.
        for (signal, sign) in [(Signal::TERM, "first"), (Signal::KILL, "second")] {
            let steps = vec![Step::Text("so far".into()), Step::Touch(rig.sign(sign)), Step::Hang];
            let arguments = json!({"prompt": rig.doing(steps), "agent": member.name});
            let sent = host.start("consult", arguments).await;
            rig.wait_for_sign(sign).await;
            rig.signal(Role::Agent, signal);
            let reply = host.reply(sent).await.expect_fault("agent_killed");
            assert_eq!((&reply["response"], &reply["resumable"]), (&json!("so far"), &json!(true)), "{}", member.name);
        }
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn a_silent_agent_is_ended_as_stalled() {
    let mut rig = new_rig().with("PHONE_OPUS_STALL_S", "10").with("PHONE_OPUS_MAX_RUNNING", "16");
    let mut host = rig.serve().await;
    let mut sent = Vec::new();
    for member in MEMBERS {
        let steps = vec![Step::Text("at work".into()), Step::Hang];
        sent.push(host.start("consult", json!({"prompt": rig.doing(steps), "agent": member.name})).await);
    }
    for (sent, member) in sent.into_iter().zip(MEMBERS) {
        let reply = host.reply(sent).await.expect_fault("agent_stalled");
        assert_eq!(reply["response"], "at work", "{}", member.name);
    }
    assert!(rig.jobs().await.iter().all(|job| job.state == JobState::Failed));
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn the_program_lists_its_agents_and_asks_each_what_it_can_do() {
    let mut rig = new_rig();
    let output = rig.run(&["agents", "--json"]).await;
    let listed: Value = serde_json::from_slice(&output.stdout).expect("a list");
    for member in MEMBERS {
        let of = |row: &&Value| row["agent"] == member.name;
        let row = listed["agents"].as_array().and_then(|rows| rows.iter().find(of)).expect("its row").clone();
        assert_eq!((&row["found"], &row["resumes"]), (&json!(true), &json!(true)), "{row}");
        assert_eq!(row["payer"] == "unproven", member.billing == "unproven", "{row}");
    }
    let output = rig.run(&["doctor", "--json"]).await;
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    let checks = report["checks"].as_array().expect("checks");
    for member in MEMBERS {
        let flags = checks.iter().find(|check| check["check"] == "flags" && check["data"]["agent"] == member.name);
        assert_eq!(flags.expect("its flags")["data"]["missing"], json!([]), "{}", member.name);
        rig.set(&format!("PHONE_OPUS_{}_BIN", member.name.to_uppercase()), "/no/such/program");
    }
    let listed: Value = serde_json::from_slice(&rig.run(&["agents", "--json"]).await.stdout).expect("a list");
    let found = |row: &Value| row["found"] == true;
    let rows: Vec<&Value> = listed["agents"].as_array().expect("rows").iter().filter(|row| found(row)).collect();
    assert_eq!(rows.iter().map(|row| row["agent"].as_str()).collect::<Vec<_>>(), [Some("offline")]);
    rig.check_invariants().await;
}

#[tokio::test]
async fn a_command_of_the_users_own_answers_as_text_or_in_a_known_stream() {
    let mut rig = new_rig().with("MINE", "1").with("MY_KEY", "dummy-key").with("OTHER", "2");
    let player = rig.player().display().to_string();
    rig.configure(&format!(
        "[agents.plain]\n\
         command = [\"/bin/sh\", \"-c\", \"cat > /dev/null; echo forty-two; echo m$MINE k$MY_KEY o$OTHER\"]\n\
         env = [\"MINE\"]\npay_env = [\"MY_KEY\"]\nreads = \"it only echoes\"\n\
         [agents.broken]\ncommand = [\"/bin/sh\", \"-c\", \"cat > /dev/null; echo so far; exit 3\"]\n\
         [agents.absent]\ncommand = [\"/no/such/program\"]\n\
         [agents.stream]\ncommand = [{player:?}, \"exec\", \"--json\", \"-\"]\noutput = \"codex\"\n"
    ));
    let mut host = rig.serve().await;
    let ask = |agent: &str, prompt: String| json!({"prompt": prompt, "agent": agent});
    let reply = host.call("consult", ask("plain", "what?".to_owned())).await.expect_success();
    assert_eq!((&reply["response"], &reply["billing"]), (&json!("forty-two\nm1 k o"), &json!("unproven")));
    let reply = host.call("consult", ask("broken", "what?".to_owned())).await.expect_fault("agent_error");
    assert_eq!(reply["response"], "so far");
    host.call("consult", ask("absent", "what?".to_owned())).await.expect_fault("agent_missing");
    let reply = host.call("consult", ask("stream", rig.answering("43"))).await.expect_success();
    assert_eq!(reply["response"], "43");
    let mut resumed = ask("stream", "more?".to_owned());
    resumed["session_id"] = json!("3f2504e0-4f89-41d3-9a0c-0305e82c3301");
    host.call("consult", resumed).await.expect_fault("invalid_input");

    let listed: Value = serde_json::from_slice(&rig.run(&["agents", "--json"]).await.stdout).expect("a list");
    let of = |row: &&Value| row["agent"] == "plain";
    let row = listed["agents"].as_array().and_then(|rows| rows.iter().find(of)).expect("its row");
    assert_eq!(row["reads"], "unproven, by your word: it only echoes");
    rig.stop_and_check_invariants([host]).await;
}
