//! Every agent that is a program of its own, as the whole program runs it: the same promises hold of each.
//!
//! Laws: L3, L7, L13.

#![expect(clippy::expect_used, reason = "helpers of tests")]

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
    /// The id of a session it could have.
    other: &'static str,
    /// The id of a session of another kind of agent.
    anothers: &'static str,
    /// The longest prompt it takes.
    most: usize,
    /// A key of its own, which it gets only where it is to pay.
    key: &'static str,
    /// A word in its arguments that keeps it to reading.
    kept_by: &'static str,
    /// How it says that its provider has refused the login.
    refused: fn() -> Map<String, Value>,
}

/// The id of a session, as most agents have them.
const UUID: &str = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";

const MEMBERS: &[Member] = &[
    Member {
        name: "claude",
        billing: "none",
        tells_costs: true,
        gives_its_id: false,
        unknown: "No conversation found with session ID: x",
        other: UUID,
        anothers: "ses_3f2504e04f8941d39a0c0305e8",
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
        other: UUID,
        anothers: "ses_3f2504e04f8941d39a0c0305e8",
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
        other: UUID,
        anothers: "ses_3f2504e04f8941d39a0c0305e8",
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
        other: UUID,
        anothers: "ses_3f2504e04f8941d39a0c0305e8",
        most: 59_000,
        key: "GEMINI_API_KEY",
        kept_by: "plan",
        refused: || {
            let message = r#"[API Error: {"error":{"code":401,"message":"no","status":"UNAUTHENTICATED"}}]"#;
            fields(json!({"is_error": true, "message": message}))
        },
    },
    Member {
        name: "opencode",
        billing: "unproven",
        tells_costs: true,
        gives_its_id: false,
        unknown: "\u{1b}[91m\u{1b}[1mError: \u{1b}[0mSession not found",
        other: "ses_3f2504e04f8941d39a0c0305e8",
        anothers: UUID,
        most: MAX_PROMPT_BYTES,
        key: "OPENCODE_API_KEY",
        kept_by: "phone-opus",
        refused: || fields(json!({"is_error": true, "message": "no such luck", "statusCode": 401})),
    },
    Member {
        name: "qwen",
        billing: "unproven",
        tells_costs: false,
        gives_its_id: false,
        unknown: "No saved session found with ID x. Run `qwen --resume` without an ID to choose from existing sessions.",
        other: UUID,
        anothers: "ses_3f2504e04f8941d39a0c0305e8",
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
        let other = member.other;
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
        // Of an id of another kind some agents would make a name, a file or a new session.
        let jobs = rig.jobs().await.len();
        for anothers in [member.anothers, "last"] {
            let reply =
                host.call("consult", again(rig.answering("never"), anothers)).await.expect_fault("invalid_input");
            assert!(reply.text().contains(&format!("no session of `{name}`")), "{}", reply.text());
        }
        assert_eq!(rig.jobs().await.len(), jobs, "{name}: nothing is accepted");
        rig.expect_runs(4);
        rig.stop_and_check_invariants([host]).await;
    }
}

/// OpenCode says nothing at all, for good, when it is to go on with a session of another directory.
#[tokio::test]
async fn a_session_that_was_had_without_us_is_gone_on_with_where_its_agent_says_it_was_had() {
    let mut rig = new_rig();
    let sessions = rig.path("data/opencode");
    std::fs::create_dir_all(&sessions).expect("a folder");
    std::os::unix::fs::symlink(rig.work(), rig.path("linked")).expect("a link");
    rig.set("XDG_DATA_HOME", rig.path("data").display().to_string());
    let mut host = rig.serve().await;
    let here = rig.work().canonicalize().expect("a directory");
    let other = rig.path("work/other").canonicalize().expect("a directory");
    // Its name, what its agent says of it, from where it is asked, and whether it is gone on with.
    for (name, said, cwd, goes_on) in [
        ("ses_here", Some(&here), rig.work(), true),
        ("ses_link", Some(&here), rig.path("linked"), true),
        ("ses_above", Some(&here), rig.path("work/other"), false),
        ("ses_beside", Some(&other), rig.work(), false),
        ("ses_unsaid", None, rig.work(), true),
    ] {
        if let Some(place) = said {
            let exported = json!({"info": {"id": name, "slug": "x", "directory": place}, "messages": []});
            std::fs::write(sessions.join(name), exported.to_string()).expect("a file");
        }
        let runs = rig.runs().len();
        let asked = json!({"prompt": rig.answering("42"), "agent": "opencode", "session_id": name, "cwd": cwd});
        let reply = host.call("consult", asked).await;
        if goes_on {
            assert_eq!(reply.expect_success()["session_id"], name);
        } else {
            let reply = reply.expect_fault("invalid_session");
            let place = said.expect("said").display().to_string();
            assert!(reply.text().contains(&place), "{name}: {}", reply.text());
        }
        assert_eq!(rig.runs().len() - runs, usize::from(goes_on), "{name}");
    }
    // Whoever asked in the wrong directory can ask in the right one.
    for (name, cwd) in [("ses_above", rig.work()), ("ses_beside", rig.path("work/other"))] {
        let asked = json!({"prompt": rig.answering("42"), "agent": "opencode", "session_id": name, "cwd": cwd});
        host.call("consult", asked).await.expect_success();
    }
    // What was had through us is known here, and its agent is not asked.
    std::fs::write(sessions.join("ses_here"), json!({"info": {"directory": other}}).to_string()).expect("a file");
    let asked = json!({"prompt": rig.answering("43"), "agent": "opencode", "session_id": "ses_here"});
    host.call("consult", asked).await.expect_success();
    rig.stop_and_check_invariants([host]).await;
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
        ("OPENAI_API_KEY", "codex opencode qwen"),
        ("CODEX_API_KEY", "codex"),
        ("GEMINI_API_KEY", "gemini"),
        ("COPILOT_GITHUB_TOKEN", ""),
        ("COPILOT_PROVIDER_BASE_URL", "copilot"),
        ("COPILOT_PROVIDER_API_KEY", "copilot"),
        ("GITHUB_TOKEN", ""),
        ("OPENCODE_API_KEY", "opencode"),
        ("OPENROUTER_API_KEY", "opencode"),
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

/// The configuration of an agent that is talked to.
fn talked_to(rig: &Rig) -> String {
    let player = rig.player().display().to_string();
    format!(
        "[agents.talker]\ncommand = [{player:?}, \"--acp\"]\noutput = \"acp\"\nenv = [\"MINE\"]\npay_env = [\"MY_KEY\"]\n"
    )
}

/// What an agent that is talked to was told, line by line.
fn told(rig: &Rig, sign: &str) -> Vec<Value> {
    let said = std::fs::read_to_string(rig.sign(sign)).unwrap_or_default();
    said.lines().map(|line| serde_json::from_str(line).expect("a message")).collect()
}

#[tokio::test]
async fn an_agent_that_is_talked_to_answers_and_goes_on_with_its_session() {
    let mut rig = new_rig().with("MINE", "1").with("MY_KEY", "dummy-key");
    rig.configure(&talked_to(&rig));
    let mut host = rig.serve().await;
    let ask = |prompt: String| json!({"prompt": prompt, "agent": "talker"});
    let steps = vec![Step::Thinking, Step::Text("I look.".into()), Step::ToolUse("Read".into())];
    let script = Script { answer: Some("42".into()), steps, ..Script::default() };
    let reply = host.call("consult", ask(rig.prompt(script))).await.expect_success();
    assert_eq!(
        (&reply["response"], &reply["billing"], &reply["model"]),
        (&json!("42"), &json!("unproven"), &json!("scripted-model"))
    );
    let session = reply.str("session_id").to_owned();
    assert!(session.starts_with("acp_"), "{session}");
    let run = rig.runs().pop().expect("a run");
    assert!(run.env("MINE").is_some() && run.env("MY_KEY").is_none() && run.env("ANTHROPIC_API_KEY").is_none());
    assert!(run.token().is_some() && !run.argv().iter().any(|word| word.contains("script")));

    let mut again = ask(rig.answering("43"));
    again["session_id"] = json!(session);
    let reply = host.call("consult", again.clone()).await.expect_success();
    // The history that comes with a session is no part of the answer.
    assert_eq!((&reply["response"], &reply["session_id"]), (&json!("43"), &json!(session)));
    again["session_id"] = json!("acp_unknown");
    let reply = host.call("consult", again.clone()).await.expect_fault("unknown_session");
    assert_eq!((&reply["session_id"], &reply["resumable"]), (&json!("acp_unknown"), &json!(false)));
    again["session_id"] = json!(session);
    again["cwd"] = json!(rig.path("work/other"));
    host.call("consult", again).await.expect_fault("invalid_session");
    rig.expect_runs(2);
    for (script, fault) in [
        (
            Script { no_result: true, exit: Some(0), steps: vec![Step::Text("so far".into())], ..Script::default() },
            "agent_protocol",
        ),
        (
            Script { result: fields(json!({"is_error": true, "code": 401, "message": "no"})), ..Script::default() },
            "agent_not_logged_in",
        ),
        (Script { result: fields(json!({"stopReason": "refusal"})), ..Script::default() }, "refused"),
        (Script { result: fields(json!({"stopReason": "max_turn_requests"})), ..Script::default() }, "turn_limit"),
        (Script { steps: vec![Step::Stderr("it broke".into()), Step::Exit(3)], ..Script::default() }, "agent_error"),
    ] {
        host.call("consult", ask(rig.prompt(script))).await.expect_fault(fault);
    }
    let listed: Value = serde_json::from_slice(&rig.run(&["agents", "--json"]).await.stdout).expect("a list");
    let of = |row: &&Value| row["agent"] == "talker";
    let row = listed["agents"].as_array().and_then(|rows| rows.iter().find(of)).expect("its row");
    assert!(
        row["resumes"] == true && row["reads"].as_str().is_some_and(|reads| reads.starts_with("unproven")),
        "{row}"
    );
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn an_agent_that_is_talked_to_gets_no_permission_but_to_read_here() {
    let mut rig = new_rig();
    rig.configure(&talked_to(&rig));
    let mut host = rig.serve().await;
    std::fs::write(rig.work().join("a.txt"), "a").expect("a file");
    let options = json!([{"optionId": "yes", "kind": "allow_once"}, {"optionId": "no", "kind": "reject_once"}]);
    let asks = |id: &str, kind: &str, place: &str| {
        let call = json!({"toolCallId": id, "kind": kind, "title": id, "locations": [{"path": place}]});
        let params = json!({"sessionId": "any", "toolCall": call, "options": options});
        Step::Raw(
            json!({"jsonrpc": "2.0", "id": id, "method": "session/request_permission", "params": params}).to_string(),
        )
    };
    let here = rig.work().join("a.txt").display().to_string();
    let mut steps = Vec::new();
    for step in [
        asks("here", "read", &here),
        asks("outside", "read", "/etc/passwd"),
        asks("edit", "edit", &here),
        asks("strange", "tomorrow", &here),
        Step::Raw(
            json!({"jsonrpc": "2.0", "id": "write", "method": "fs/write_text_file", "params": {"path": here}})
                .to_string(),
        ),
        Step::Raw(
            json!({"jsonrpc": "2.0", "id": "run", "method": "terminal/create", "params": {"command": "touch"}})
                .to_string(),
        ),
    ] {
        steps.extend([step, Step::ReadLine(rig.sign("told"))]);
    }
    let script = Script { answer: Some("42".into()), steps, ..Script::default() };
    let arguments = json!({"prompt": rig.prompt(script), "agent": "talker", "detail": "full", "render": "json"});
    let reply = host.call("consult", arguments).await.expect_success();
    assert_eq!((&reply["response"], &reply["permission_denial_count"]), (&json!("42"), &json!(5)), "{:#}", reply.0);
    let told = told(&rig, "told");
    let chosen: Vec<_> = told
        .iter()
        .map(|one| (one["id"].as_str(), one.pointer("/result/outcome/optionId").and_then(Value::as_str)))
        .collect();
    let expected = [("here", "yes"), ("outside", "no"), ("edit", "no"), ("strange", "no")]
        .map(|(id, said)| (Some(id), Some(said)));
    assert_eq!(chosen[..4], expected);
    assert!(told[4..].iter().all(|one| one["error"]["code"] == -32601), "{told:?}");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn an_agent_that_is_talked_to_is_asked_to_stop_and_ended_with_everything_it_started() {
    let mut rig = new_rig().with("PHONE_OPUS_STALL_S", "10");
    rig.configure(&talked_to(&rig));
    let mut host = rig.serve().await;
    let ask = |prompt: String| json!({"prompt": prompt, "agent": "talker", "background": true});
    // It stops when it is told so, and says why it ended.
    let cancelled = Step::Result(fields(json!({"stopReason": "cancelled"})));
    let steps = vec![
        Step::Text("so far".into()),
        Step::Touch(rig.sign("begun")),
        Step::ReadLine(rig.sign("told")),
        cancelled,
        Step::Hang,
    ];
    let job = host.call("consult", ask(rig.doing(steps))).await.str("job_id").to_owned();
    rig.wait_for_sign("begun").await;
    host.call("consult_cancel", json!({"job_id": job})).await;
    let over = host.call("consult_job", json!({"job_id": job, "wait_s": 60})).await;
    assert_eq!(over["status"], "cancelled");
    assert_eq!(told(&rig, "told")[0]["method"], "session/cancel");
    rig.expect_no_agent_left().await;

    // It takes no notice of anything.
    let steps = vec![Step::IgnoreTerm, Step::Fork(ForkPlace::Group), Step::Touch(rig.sign("deaf")), Step::Hang];
    let job = host.call("consult", ask(rig.doing(steps))).await.str("job_id").to_owned();
    rig.wait_for_sign("deaf").await;
    host.call("consult_cancel", json!({"job_id": job})).await;
    let over = host.call("consult_job", json!({"job_id": job, "wait_s": 60})).await;
    assert_eq!(over["status"], "cancelled");
    rig.expect_no_agent_left().await;

    // It has answered and does not leave: that is no failure, and no wait of its caller's.
    let stays = Script { answer: Some("42".into()), after: vec![Step::Hang], ..Script::default() };
    let reply = host.call("consult", json!({"prompt": rig.prompt(stays), "agent": "talker"})).await.expect_success();
    assert_eq!(reply["response"], "42");
    rig.expect_no_agent_left().await;

    // It falls silent, and others end it.
    let silent = host
        .start(
            "consult",
            json!({"prompt": rig.doing(vec![Step::Text("so far".into()), Step::Hang]), "agent": "talker"}),
        )
        .await;
    let reply = host.reply(silent).await.expect_fault("agent_stalled");
    assert_eq!(reply["response"], "so far");
    let steps = vec![Step::Text("so far".into()), Step::Touch(rig.sign("alone")), Step::Hang];
    let sent = host.start("consult", json!({"prompt": rig.doing(steps), "agent": "talker"})).await;
    rig.wait_for_sign("alone").await;
    rig.signal(Role::Agent, Signal::KILL);
    let reply = host.reply(sent).await.expect_fault("agent_killed");
    assert_eq!((&reply["response"], &reply["resumable"]), (&json!("so far"), &json!(true)));
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_prompt_of_the_most_bytes_is_told_whole_to_an_agent_that_is_talked_to() {
    let mut rig = new_rig();
    rig.configure(&talked_to(&rig));
    let mut host = rig.serve().await;
    let mut prompt = rig.answering("long");
    // Each is two bytes of JSON: more than a pipe holds, and than is written at once.
    prompt.extend(std::iter::repeat_n('"', MAX_PROMPT_BYTES - prompt.len()));
    let reply = host.call("consult", json!({"prompt": prompt, "agent": "talker"})).await.expect_success();
    assert_eq!(reply["response"], "long");
    let run = rig.runs().pop().expect("a run");
    assert_eq!(run.start["prompt_bytes"], MAX_PROMPT_BYTES + PROMPT_PREFIX.len());
    rig.stop_and_check_invariants([host]).await;
}
