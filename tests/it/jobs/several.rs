//! A consult of several agents: a job for each, one reply about all of them.
//!
//! Laws: L2, L3, L7.

#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::time::Duration;

use phone_opus::internals::base::ids::JobId;
use phone_opus::internals::jobs::{JobRecord, JobState, JournalEvent};
use phone_opus::testkit::{Reply, Rig, Role, Script, Step, TestClient, tried_program, until};
use serde_json::{Value, json};

/// The word by which each program is known among those that are asked the same. Gemini CLI is last: Qwen Code has its word, too.
const CALLED_WITH: [(&str, &str); 5] = [
    ("claude", "--restricted"),
    ("codex", "read-only"),
    ("copilot", "--available-tools=view,grep,glob"),
    ("qwen", "--safe-mode"),
    ("gemini", "plan"),
];

fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

/// One prompt, and what each agent makes of it.
fn prompt(rig: &Rig, parts: &[(&str, Script)]) -> String {
    let part = |agent: &str| parts.iter().find(|(known, _)| *known == agent).map(|(_, script)| script.clone());
    let called = CALLED_WITH.iter().filter_map(|(agent, word)| Some(((*word).to_owned(), part(agent)?)));
    rig.prompt(Script { when_called_with: called.collect(), ..Script::default() })
}

fn answering(answer: &str) -> Script {
    Script { answer: Some(answer.to_owned()), ..Script::default() }
}

fn doing(steps: Vec<Step>) -> Script {
    Script { steps, ..answering("done") }
}

/// Ends without a word.
fn broken() -> Script {
    Script { steps: vec![Step::Stderr("it broke".into()), Step::Exit(9)], ..Script::default() }
}

/// The answers of a reply, by agent.
fn answers(reply: &Reply) -> BTreeMap<String, Value> {
    let answers = reply["answers"].as_array().unwrap_or_else(|| panic!("no answers in {:#}", reply.0));
    answers.iter().map(|answer| (answer["agent"].as_str().expect("a name").to_owned(), answer.clone())).collect()
}

/// Jobs by agent.
async fn jobs(rig: &Rig) -> BTreeMap<String, JobRecord> {
    rig.jobs().await.into_iter().map(|job| (job.request.agent.clone(), job)).collect()
}

/// How often each agent was run, by what it was called with.
fn runs(rig: &Rig) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for run in rig.runs() {
        let argv = run.argv();
        let (agent, _) = CALLED_WITH.iter().find(|(_, word)| argv.contains(word)).expect("a program we know");
        *counts.entry(*agent).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn one_that_is_broken_and_one_that_is_slow_cost_the_others_nothing() {
    for cast in [&["claude", "codex"][..], &["claude", "codex", "copilot", "gemini", "qwen"]] {
        let mut rig = new_rig();
        let mut host = rig.serve().await;
        let slow = "claude";
        let bad = "codex";
        let part = |agent: &&'static str| match *agent {
            "claude" => (*agent, doing(vec![Step::Touch(rig.sign("begun")), Step::WaitForFile(rig.sign("go"))])),
            "codex" => (*agent, broken()),
            other => (*agent, answering(&format!("so says {other}"))),
        };
        let parts: Vec<_> = cast.iter().map(part).collect();
        let sent = host.start("consult", json!({"prompt": prompt(&rig, &parts), "agents": cast})).await;
        // With one of the three places taken by the slow one, the others have their turns all the same.
        let over = |jobs: &BTreeMap<String, JobRecord>| jobs.values().filter(|job| job.state.is_terminal()).count();
        until("all but one are over", async || {
            let jobs = jobs(&rig).await;
            (over(&jobs) == cast.len() - 1).then_some(())
        })
        .await;
        rig.wait_for_sign("begun").await;
        assert!(!host.is_answered(sent), "its caller waits for the slow one");
        rig.give_sign("go");
        let reply = host.reply(sent).await;
        assert!(reply.is_result() && reply["status"] == "succeeded" && reply["mode"] == "sync", "{:#}", reply.0);
        assert!(!reply.has("job_id") && reply["next"].is_null(), "{:#}", reply.0);
        let told = answers(&reply);
        let jobs = jobs(&rig).await;
        assert_eq!(told.keys().collect::<Vec<_>>(), jobs.keys().collect::<Vec<_>>());
        let end = |agent: &str| jobs[agent].finished_at.expect("it is over");
        for agent in cast {
            let answer = &told[*agent];
            assert_eq!(answer["job_id"], json!(jobs[*agent].id), "{agent}");
            assert!(reply.text().contains(&format!("## {agent}\n\n")), "{}", reply.text());
            let (status, said) = match *agent {
                "claude" => ("succeeded", json!("done")),
                "codex" => ("failed", Value::Null),
                other => ("succeeded", json!(format!("so says {other}"))),
            };
            assert_eq!((answer["status"].as_str(), &answer["response"]), (Some(status), &said), "{answer:#}");
            assert!(*agent == slow || end(agent) < end(slow), "{agent} was over before the slow one");
            assert_eq!(!answer["cost_usd"].is_null(), *agent == "claude", "{agent} says what it cost, or not");
            assert_eq!(answer["fault"]["code"].as_str(), (*agent == bad).then_some("agent_error"), "{answer:#}");
        }
        assert_eq!(reply["cost_usd"], Value::Null, "what is not known of one is not known of all");
        let longest = told.values().map(|answer| answer["duration_ms"].as_u64()).max().flatten();
        assert_eq!((reply["duration_ms"].as_u64(), longest), (longest, told[slow]["duration_ms"].as_u64()));
        let once: BTreeMap<&str, usize> = cast.iter().map(|agent| (*agent, 1)).collect();
        assert_eq!(runs(&rig), once, "each was run once");
        let reply = host.call("consult_jobs", json!({})).await.expect_success();
        let unread = |row: &Value| row["unread"] == true;
        assert!(!reply["jobs"].as_array().expect("rows").iter().any(unread), "each answer was read: {:#}", reply.0);
        assert_eq!(rig.agents().len(), 0);
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn offline_and_commands_of_the_users_own_answer_beside_the_others() {
    for cast in [&["offline", "mine"][..], &["mine", "claude", "offline", "codex", "plain"]] {
        let mut rig = new_rig();
        let player = rig.player().display().to_string();
        rig.configure(&format!(
            "[agents.mine]\ncommand = [{player:?}, \"exec\", \"--json\", \"-\"]\noutput = \"codex\"\n\
             [agents.plain]\ncommand = [\"/bin/sh\", \"-c\", \"cat > /dev/null; echo so says plain\"]\n"
        ));
        std::fs::write(rig.work().join("main.rs"), "fn the_needle() {}\n").expect("a file");
        let mut host = rig.serve().await;
        let called = ["claude", "codex"].map(|agent| {
            let (_, word) = CALLED_WITH.iter().find(|(known, _)| *known == agent).expect("a program we know");
            ((*word).to_owned(), answering(&format!("so says {agent}")))
        });
        let script = Script { when_called_with: called.into(), ..answering("so says mine") };
        let asked = format!("where is the_needle? {}", rig.prompt(script));
        let reply = host.call("consult", json!({"prompt": asked, "agents": cast})).await;
        assert!(reply.is_result() && reply["status"] == "succeeded" && reply["next"].is_null(), "{:#}", reply.0);

        let listed = reply["answers"].as_array().expect("answers");
        let order: Vec<_> = listed.iter().map(|answer| answer["agent"].as_str().expect("a name")).collect();
        assert_eq!(order, cast, "in the order they were named");
        let jobs = jobs(&rig).await;
        assert_eq!(jobs.len(), cast.len(), "a job of its own each");
        for answer in listed {
            let agent = answer["agent"].as_str().expect("a name");
            let job = &jobs[agent];
            assert_eq!((&answer["job_id"], &answer["status"]), (&json!(job.id), &json!("succeeded")), "{answer:#}");
            let said = answer["response"].as_str().expect("an answer");
            let expected = if agent == "offline" { "main.rs".to_owned() } else { format!("so says {agent}") };
            assert!(said.contains(&expected), "{agent}: {said}");
            assert!(reply.text().contains(&format!("## {agent}\n\n")), "{}", reply.text());
            let (began, ended) = (job.started_at.expect("begun"), job.finished_at.expect("over"));
            assert!(job.accepted_at <= began && began <= ended, "{agent}");
            assert_eq!(answer["duration_ms"].as_u64(), Some(ended.since(job.accepted_at)), "{agent}");
            let journal = rig.journal(job.id).await;
            let starts = journal.iter().filter(|entry| matches!(entry.event, JournalEvent::ProcessStarted { .. }));
            assert_eq!(starts.count(), 1, "{agent} was run once");
        }
        let scripted = cast.iter().filter(|agent| !matches!(**agent, "offline" | "plain")).count();
        rig.expect_runs(scripted);
        // What has nothing to write with is not asked whether it wrote.
        let offline = listed.iter().find(|answer| answer["agent"] == "offline").expect("it answered");
        assert!(offline.get("workspace_changed").is_none(), "{offline:#}");
        assert_eq!(rig.agents().len(), 0);
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn past_the_wait_every_job_is_listed_and_goes_on() {
    for background in [false, true] {
        let mut rig = new_rig();
        let mut host = rig.serve().await;
        let waits = |agent| (agent, doing(vec![Step::WaitForFile(rig.sign("go"))]));
        let asked = prompt(&rig, &[waits("claude"), waits("codex")]);
        let arguments = json!({"prompt": asked, "agents": ["claude", "codex"], "wait_s": 1, "background": background});
        let reply = host.call("consult", arguments).await;
        assert!(reply.is_result() && reply["mode"] == "background", "{:#}", reply.0);
        assert_eq!(reply["status"], "running");
        let told = answers(&reply);
        for (agent, job) in jobs(&rig).await {
            assert_eq!(job.mode.as_str(), "background");
            let call = format!("consult_job {{\"job_id\":\"{}\",\"wait_s\":45}} ({agent})", job.id);
            assert!(reply.str("next").contains(&call) && reply.text().contains(&call), "{}", reply.text());
            assert_eq!(told[&agent]["job_id"], json!(job.id));
        }
        rig.give_sign("go");
        for answer in told.values() {
            let reply = host.job(answer["job_id"].as_str().expect("an id")).await.expect_success();
            assert_eq!(reply["response"], "done");
        }
        rig.expect_runs(2);
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn what_is_wrong_with_one_is_told_before_any_is_started() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    for (more, parts) in [
        (json!({"agents": ["claude", "cladue"]}), &["`agents` has \"cladue\"", "did you mean `claude`?"][..]),
        (json!({"agents": ["claude"]}), &["`agents` has 1 name;", "2 to 5 different ones of `claude`"]),
        (json!({"agents": ["claude", "codex", "claude"]}), &["`agents` has \"claude\" twice"]),
        (
            json!({"agents": ["claude", "codex", "copilot", "gemini", "qwen", "offline"]}),
            &["`agents` has 6 names", "2 to 5"],
        ),
        (json!({"agents": ["claude", "codex"], "agent": "claude"}), &["together with `agent`"]),
        (
            json!({"agents": ["claude", "codex"], "session_id": "3f2504e0-4f89-41d3-9a0c-0305e82c3301"}),
            &["together with `session_id`"],
        ),
        (json!({"agents": "claude,codex"}), &["`agents` is \"claude,codex\"; accepted: a list of strings"]),
        (json!({"agents": ["claude", 7]}), &["`agents` has 7 in it"]),
        (json!({"agents": ["claude", "no", "nor"], "cwd": "x"}), &["\"no\"", "\"nor\"", "`cwd` is not absolute"]),
    ] {
        let mut arguments = json!({"prompt": rig.answering("42")});
        let object = arguments.as_object_mut().expect("an object");
        object.extend(more.as_object().expect("an object").clone());
        let reply = host.call("consult", arguments).await.expect_fault("invalid_input");
        for part in parts {
            assert!(reply.text().contains(part), "{part} in {}", reply.text());
        }
    }
    assert!(rig.jobs().await.is_empty() && rig.runs().is_empty());
    // A list of none is how some say nothing.
    let reply = host.call("consult", json!({"prompt": rig.answering("42"), "agents": []})).await.expect_success();
    assert_eq!((&reply["response"], &reply["agent"]), (&json!("42"), &json!("claude")));
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn one_key_is_one_run_of_each_and_the_key_of_each_is_its_own() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let asked = prompt(&rig, &[("claude", answering("a")), ("codex", answering("b")), ("qwen", answering("c"))]);
    let of = |agents: &[&str]| json!({"prompt": asked, "agents": agents, "request_key": "k"});
    let first = host.call("consult", of(&["claude", "codex"])).await.expect_success();
    let again = host.call("consult", of(&["claude", "codex"])).await.expect_success();
    let ids = |reply: &Reply| answers(reply).into_iter().map(|(agent, told)| (agent, told["job_id"].clone()));
    assert_eq!(ids(&first).collect::<Vec<_>>(), ids(&again).collect::<Vec<_>>());
    // Another one beside one of them is asked, and that one is not asked again; by its own key it is the same by itself.
    let other = host.call("consult", of(&["qwen", "codex"])).await.expect_success();
    assert_eq!(answers(&other)["codex"]["job_id"], answers(&first)["codex"]["job_id"]);
    let alone = json!({"prompt": asked, "agent": "claude", "request_key": "k/claude"});
    let alone = host.call("consult", alone).await.expect_success();
    assert_eq!(alone["job_id"], answers(&first)["claude"]["job_id"]);
    assert_eq!(runs(&rig), BTreeMap::from([("claude", 1), ("codex", 1), ("qwen", 1)]));
    // What one of them refuses is that one's answer.
    let conflict = json!({"prompt": rig.answering("else"), "agents": ["claude", "gemini"], "request_key": "k"});
    let reply = host.call("consult", conflict).await.expect_success();
    let told = answers(&reply);
    assert_eq!(told["claude"]["fault"]["code"], "request_key_conflict");
    assert_eq!((&told["claude"]["status"], &told["claude"]["job_id"]), (&json!("refused"), &Value::Null));
    assert_eq!(told["gemini"]["response"], "else");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn it_is_an_error_when_none_of_them_answered() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    rig.give_sign("go");
    let asked = prompt(&rig, &[("claude", broken()), ("codex", broken())]);
    let reply = host.call("consult", json!({"prompt": asked, "agents": ["claude", "codex"]})).await;
    assert!(reply.is_error() && reply["status"] == "failed", "{:#}", reply.0);
    assert!(answers(&reply).values().all(|answer| answer["fault"]["code"] == "agent_error"), "{:#}", reply.0);
    rig.expect_runs(2);
    rig.stop_and_check_invariants([host]).await;
}

/// Two agents that have begun and stand still.
async fn two_at_work(rig: &Rig, host: &mut TestClient, more: Value) -> phone_opus::testkit::Sent {
    let waits = |agent: &'static str| {
        (
            agent,
            doing(vec![Step::ToolUse("Grep".into()), Step::Touch(rig.sign(agent)), Step::WaitForFile(rig.sign("go"))]),
        )
    };
    let mut params = json!({
        "name": "consult",
        "arguments": {"prompt": prompt(rig, &[waits("claude"), waits("codex")]), "agents": ["claude", "codex"]},
    });
    params.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    let sent = host.send("tools/call", params).await;
    for agent in ["claude", "codex"] {
        rig.wait_for_sign(agent).await;
    }
    sent
}

#[tokio::test]
async fn a_cancel_ends_all_of_them() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let sent = two_at_work(&rig, &mut host, json!({})).await;
    host.cancel(sent).await;
    until("both are over", async || {
        jobs(&rig).await.values().all(|job| job.state == JobState::Cancelled).then_some(())
    })
    .await;
    rig.expect_no_agent_left().await;
    host.expect_silence_about(sent).await;
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn after_a_worker_is_lost_the_next_one_joins_each_of_them() {
    let mut rig = new_rig().with("PHONE_OPUS_ISOLATION", "process");
    let mut host = rig.serve().await;
    let sent = two_at_work(&rig, &mut host, json!({})).await;
    rig.kill(Role::Worker);
    host.wait_for_generation(2).await;
    rig.give_sign("go");
    let reply = Reply(host.answer(sent).await);
    host.keep(&reply);
    assert!(reply.is_result(), "{:#}", reply.0);
    assert!(answers(&reply).values().all(|answer| answer["response"] == "done"), "{:#}", reply.0);
    assert_eq!(runs(&rig), BTreeMap::from([("claude", 1), ("codex", 1)]));
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn whatever_breaks_around_accepting_each_is_run_once_or_told_as_refused() {
    for (fault, refused) in [
        ("jobs.before_accept=error", Some("claude")),
        ("jobs.before_accept#2=error", Some("codex")),
        ("jobs.before_accept#2=drop", None),
        ("jobs.after_accept#1=drop", None),
        ("jobs.after_accept#2=panic", None),
        ("worker.before_reply@tools/call:consult=kill", None),
    ] {
        let mut rig = new_rig().with("PHONE_OPUS_ISOLATION", "process").with_faults(fault);
        let mut host = rig.serve().await;
        let asked = prompt(&rig, &[("claude", answering("a")), ("codex", answering("b"))]);
        let reply = host.call("consult", json!({"prompt": asked, "agents": ["claude", "codex"]})).await;
        assert!(reply.is_result(), "{fault}: {:#}", reply.0);
        let told = answers(&reply);
        for agent in ["claude", "codex"] {
            let status = if refused == Some(agent) { "refused" } else { "succeeded" };
            assert_eq!(told[agent]["status"], status, "{fault}: {:#}", reply.0);
        }
        rig.expect_runs(2 - usize::from(refused.is_some()));
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn progress_says_how_far_each_of_them_is() {
    let mut rig = new_rig().with("PHONE_OPUS_PROGRESS_S", "1");
    let mut host = rig.serve().await;
    let sent = two_at_work(&rig, &mut host, json!({"_meta": {"progressToken": "p"}})).await;
    let message = until("a report says what both do", async || {
        let reports = host.notifications("notifications/progress");
        let messages = reports.iter().filter_map(|note| note["params"]["message"].as_str());
        let both = |message: &&str| message.contains("claude: ") && message.contains("; codex: ");
        messages.map(str::to_owned).find(|message| both(&message.as_str()))
    })
    .await;
    assert!(message.len() < 200, "{message}");
    rig.give_sign("go");
    let reply = Reply(host.answer(sent).await);
    host.keep(&reply);
    assert!(reply.is_result(), "{:#}", reply.0);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn from_the_command_line_each_answer_stands_under_its_name() {
    let rig = new_rig();
    let asked = prompt(&rig, &[("claude", answering("a")), ("codex", broken()), ("qwen", answering("c"))]);
    let run = rig.run(&["consult", "--no-stdin", "--agents", "claude,codex,qwen", &asked]).await;
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{err}");
    assert_eq!(out.trim_end(), "## claude\n\na\n\n## qwen\n\nc", "{err}");
    for part in ["claude: [job ", "codex: The consult failed (agent_error)", "qwen: [job "] {
        assert!(err.contains(part), "{part} in {err}");
    }
    let run = rig.run(&["consult", "--json", "--no-stdin", "--agents", "claude,codex", &asked]).await;
    let told: Value = serde_json::from_slice(&run.stdout).expect("an object");
    let states: Vec<_> = told["answers"].as_array().expect("a list").iter().map(|told| &told["status"]).collect();
    assert_eq!(states, ["succeeded", "failed"]);
    let run = rig.run(&["consult", "--no-stdin", "--background", "--agents", "claude,qwen", &asked]).await;
    let out = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(run.status.success() && out.contains("phone-opus jobs show"), "{out}");
    let jobs: Vec<JobId> = rig.jobs().await.into_iter().map(|job| job.id).collect();
    assert_eq!(jobs.iter().filter(|job| out.contains(&job.to_string())).count(), 2, "{out}");
    until("they are over", async || rig.jobs().await.iter().all(|job| job.state.is_terminal()).then_some(())).await;
    for wrong in [&["--agents", "claude,codex", "--agent", "claude"][..], &["--agents", "claude,nobody"]] {
        let words: Vec<&str> = ["consult", "--no-stdin", "what?"].iter().chain(wrong).copied().collect();
        assert_eq!(rig.run(&words).await.status.code(), Some(2), "{wrong:?}");
    }
    // Nobody waits this long for what is not there.
    tokio::time::timeout(Duration::from_secs(60), rig.check_invariants()).await.expect("in time");
}

#[tokio::test]
async fn with_these_arguments_all_that_is_told_of_the_tools_is_under_6_kb() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let listed = host.request("tools/list", json!({})).await["result"].to_string();
    assert!(listed.contains("\"agents\"") && listed.contains("\"diff\"") && listed.len() < 6000, "{}", listed.len());
    rig.stop_and_check_invariants([host]).await;
}
