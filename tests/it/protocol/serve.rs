//! The real binary over stdio: handshakes, consults, jobs, soft deadlines, progress, bounds.
//!
//! Laws: L1, L3, L9, L13.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use phone_opus::internals::agents::{MAX_PROMPT_BYTES, PROMPT_PREFIX};
use phone_opus::testkit::client::envelope;
use phone_opus::testkit::{KEY, PATIENCE, Reply, Rig, Script, Step, processes, tried_program, until};
use serde_json::{Value, json};

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

#[tokio::test]
async fn every_legacy_revision_is_negotiated_and_serves_a_consult() {
    let mut rig = new_rig();
    let mut hosts = Vec::new();
    for (wanted, given) in [
        ("2024-11-05", "2024-11-05"),
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2026-07-28", "2025-11-25"),
    ] {
        let mut host = rig.host();
        let answer = host.handshake(wanted).await;
        assert_eq!(answer["result"]["protocolVersion"], given, "{answer}");
        assert_eq!(answer["result"]["serverInfo"]["name"], "phone-opus");
        let reply = host.consult(&rig.answering(&format!("to {wanted}"))).await;
        assert!(!reply.is_error() && reply.text().starts_with(&format!("to {wanted}")), "{:#}", reply.0);
        let structured = reply.0["result"].get("structuredContent").is_some();
        assert_eq!(structured, given >= "2025-06-18", "{given}: {:#}", reply.0);
        hosts.push(host);
    }
    rig.stop_and_check_invariants(hosts).await;
}

#[tokio::test]
async fn the_stateless_revision_needs_no_handshake() {
    let mut rig = new_rig();
    let mut host = rig.host();
    let found = host.request("server/discover", json!({"_meta": envelope()})).await;
    assert_eq!(found["result"]["supportedVersions"], json!(["2026-07-28"]));
    assert_eq!(found["result"]["resultType"], "complete");
    let listed = host.request("tools/list", json!({"_meta": envelope()})).await;
    assert_eq!(listed["result"]["tools"][0]["name"], "consult");
    let arguments = json!({"prompt": rig.answering("42")});
    let params = json!({"name": "consult", "arguments": arguments, "_meta": envelope()});
    let reply = Reply(host.request("tools/call", params).await).expect_success();
    assert_eq!(reply["response"], "42");
    assert_eq!(reply.0["result"]["resultType"], "complete");
    // The other era is still closed on this connection.
    let refused = host.request("tools/list", json!({})).await;
    assert_eq!(refused["error"]["data"]["code"], "not_initialized");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn what_every_session_pays_for_is_small() {
    let mut rig = new_rig();
    let mut host = rig.host();
    let hello = host.handshake("2025-11-25").await;
    let instructions = hello["result"]["instructions"].as_str().expect("instructions");
    assert!(instructions.len() < 600, "{} bytes", instructions.len());
    for params in [json!({}), json!({"_meta": envelope()})] {
        let listed = host.request("tools/list", params).await;
        let names: BTreeSet<&str> = listed["result"]["tools"]
            .as_array()
            .expect("tools")
            .iter()
            .map(|tool| tool["name"].as_str().expect("a name"))
            .collect();
        let known =
            ["consult", "consult_cancel", "consult_job", "consult_jobs", "health_snapshot", "telemetry_snapshot"];
        assert_eq!(names, BTreeSet::from(known));
        let size = listed.to_string().len();
        assert!(size < 6 * 1024, "{size} bytes");
    }
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_synchronous_consult_answers_with_everything_known_about_it() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let prompt = rig.prompt(Script {
        answer: Some("six times seven".into()),
        model: Some("scripted-2".into()),
        steps: vec![
            Step::Thinking,
            Step::ToolUse("Grep".into()),
            Step::Denied { tool: "Write".into(), target: "/etc/passwd".into() },
        ],
        ..Script::default()
    });
    let reply = host.call("consult", json!({"prompt": prompt, "cwd": rig.work(), "detail": "full"})).await;
    let reply = reply.expect_success();
    for (field, value) in [
        ("mode", json!("sync")),
        ("session_mode", json!("new")),
        ("response", json!("six times seven")),
        ("agent", json!("claude")),
        ("model", json!("scripted-2")),
        ("cwd", json!(rig.work())),
        ("billing", json!("none")),
        ("cost_usd", json!(0.001)),
        ("num_turns", json!(1)),
        ("stop_reason", json!("end_turn")),
        ("permission_denial_count", json!(1)),
        ("prompt_prefix_injected", json!(true)),
        ("truncated", json!(false)),
        ("next", Value::Null),
        ("prompt", json!(prompt)),
    ] {
        assert_eq!(reply[field], value, "{field}");
    }
    assert!(reply.text().starts_with("six times seven"), "{}", reply.text());
    assert!(reply.text().contains(reply.str("job_id")) && reply.text().contains(reply.str("session_id")));
    // The agent was confined, and was told where it is in a chain.
    let [run] = &rig.runs()[..] else { panic!("one run") };
    assert!(run.argv().contains(&"--restricted"), "{:?}", run.argv());
    assert_eq!((run.env("PHONE_OPUS_DEPTH"), run.env("ANTHROPIC_API_KEY")), (Some("1"), None));
    assert_eq!(run.start["cwd"], json!(rig.work()));
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn an_api_key_reaches_the_agent_only_when_it_is_to_pay() {
    let mut rig = new_rig().with("PHONE_OPUS_BILLING", "api_key");
    let mut host = rig.serve().await;
    let reply = host.consult(&rig.answering("42")).await.expect_success();
    assert_eq!(reply["billing"], "ANTHROPIC_API_KEY");
    assert_eq!(rig.runs()[0].env("ANTHROPIC_API_KEY"), Some(KEY));
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_background_job_is_acknowledged_at_once_and_read_with_one_blocking_call() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let prompt = rig.waiting("begun", "go");
    let job = host.consult_in_background(&prompt).await;
    rig.wait_for_sign("begun").await;
    // The prompt is on nobody's command line while it is being answered.
    assert_eq!(processes::on_a_command_line(rig.canary()), None);
    if cfg!(target_os = "linux") {
        assert_eq!((rig.runners().len(), rig.agents().len()), (1, 1));
    }
    let waiting = host.start("consult_job", json!({"job_id": job, "wait_s": 60})).await;
    host.ping().await;
    rig.give_sign("go");
    let reply = host.reply(waiting).await.expect_success();
    assert_eq!((reply.str("job_id"), reply.str("response"), reply.str("mode")), (&job[..], "done", "background"));
    // Reading it again costs no run.
    host.job(&job).await.expect_success();
    rig.expect_runs(1);
    let listed = host.call("consult_jobs", json!({"state": "succeeded"})).await;
    assert_eq!(listed["jobs"][0]["job_id"], json!(job));
    assert_eq!(listed["jobs"][0]["unread"], json!(false));
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_jobs_events_are_numbered_without_gaps_and_read_on_from_any_of_them() {
    read_event_by_event(new_rig()).await;
}

/// What is heard of live is in the journal later, as late as the disk makes it; nobody waits for more news to read it.
#[tokio::test]
async fn an_event_that_is_journalled_late_is_read_all_the_same() {
    read_event_by_event(new_rig().with_faults("store.commit@append#*=delay:1500")).await;
}

/// Reads a job's events by calls that each block until there is something after the last event seen.
async fn read_event_by_event(mut rig: Rig) {
    let mut host = rig.serve().await;
    let steps = vec![Step::Text("one".into()), Step::ToolUse("Read".into()), Step::WaitForFile(rig.sign("go"))];
    let job = host.consult_in_background(&rig.doing(steps)).await;
    let mut seen: Vec<(u64, String)> = Vec::new();
    let mut over = false;
    while !over {
        let after = seen.last().map_or(0, |(seq, _)| *seq);
        let asked = Instant::now();
        let reply = host.call("consult_job", json!({"job_id": job, "wait_s": 60, "after_seq": after})).await;
        assert!(!reply.is_error(), "{:#}", reply.0);
        assert!(asked.elapsed() < Duration::from_secs(40), "it was kept until its time was up: {:#}", reply.0);
        for event in reply["events"].as_array().into_iter().flatten() {
            seen.push((event["seq"].as_u64().unwrap_or_default(), event["event"].to_string()));
        }
        if seen.iter().any(|(_, event)| event.contains("tool_use") || event.contains("\"Read\"")) {
            rig.give_sign("go");
        }
        over = reply.str("status") == "succeeded" && reply["events"].as_array().is_none_or(Vec::is_empty);
    }
    assert_eq!(seen.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), (1..=seen.len() as u64).collect::<Vec<_>>());
    let ends = (seen.first(), seen.last());
    assert!(ends.0.is_some_and(|first| first.1.contains("dispatched")), "{seen:?}");
    assert!(ends.1.is_some_and(|last| last.1.contains("process_closed")), "{seen:?}");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn an_answer_over_the_budget_is_cut_and_its_pages_give_the_whole() {
    let mut rig = new_rig().with("PHONE_OPUS_RESPONSE_CHARS", "1000");
    let mut host = rig.serve().await;
    let answer: String = (0..3300).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    let reply = host.consult(&rig.answering(&answer)).await.expect_success();
    assert_eq!((&reply["truncated"], &reply["pages"]), (&json!(true), &json!(4)));
    let job = reply.str("job_id").to_owned();
    assert!(reply.str("next").contains("\"page\":1"), "{}", reply.str("next"));
    let mut whole = String::new();
    for page in 1..=4 {
        let part = host.call("consult_job", json!({"job_id": job, "page": page})).await.expect_success();
        whole.push_str(part.str("response"));
    }
    assert_eq!(whole, answer);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_lapsed_wait_is_a_success_that_costs_next_to_nothing() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let job = host.consult_in_background(&rig.hanging("begun")).await;
    rig.wait_for_sign("begun").await;
    let reply = host.call("consult_job", json!({"job_id": job, "wait_s": 1})).await;
    assert!(!reply.is_error() && reply.str("status") == "running", "{:#}", reply.0);
    // About four characters are a token; either block may be the one the model sees.
    let structured = reply.0["result"]["structuredContent"].to_string();
    assert!(reply.text().len() < 120 && structured.len() < 120, "{} {structured}", reply.text());
    let reply = host.call("consult_cancel", json!({"job_id": job})).await;
    assert_eq!(reply.str("status"), "cancelled");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_consult_that_outlasts_its_wait_goes_on_in_the_background() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let steps = vec![Step::Text("so far so good".into()), Step::Touch(rig.sign("begun"))];
    let steps = [steps, vec![Step::WaitForFile(rig.sign("go"))]].concat();
    // The wait may be over before the agent has said anything on a busy machine: then it is given more.
    let (mut wait, prompt) = (1, rig.doing(steps));
    let mut reply;
    loop {
        reply = host.call("consult", json!({"prompt": prompt, "wait_s": wait, "request_key": "once"})).await;
        if !reply["response"].is_null() || wait > 20 {
            break;
        }
        wait += 4;
    }
    assert!(!reply.is_error() && reply.str("status") == "running", "{:#}", reply.0);
    assert_eq!((reply.str("response"), reply.str("mode")), ("so far so good", "background"));
    let job = reply.str("job_id").to_owned();
    assert!(reply.str("next").contains(&format!("consult_job {{\"job_id\":\"{job}\",\"wait_s\":")), "{:#}", reply.0);
    rig.give_sign("go");
    let reply = host.job(&job).await.expect_success();
    assert_eq!(reply["response"], "done");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn progress_rises_strictly_while_a_caller_waits_and_ends_with_the_answer() {
    let mut rig = new_rig().with("PHONE_OPUS_PROGRESS_S", "1");
    let mut host = rig.serve().await;
    let prompt = rig.doing(vec![Step::ToolUse("Grep".into()), Step::WaitForFile(rig.sign("go"))]);
    let params = json!({"name": "consult", "arguments": {"prompt": prompt}, "_meta": {"progressToken": "p-1"}});
    let sent = host.send("tools/call", params).await;
    until("three reports", async || (host.notifications("notifications/progress").len() >= 3).then_some(())).await;
    rig.give_sign("go");
    let reply = Reply(host.answer(sent).await).expect_success();
    assert_eq!(reply["response"], "done");
    let reports = host.notifications("notifications/progress");
    let values: Vec<f64> = reports.iter().map(|note| note["params"]["progress"].as_f64().expect("a number")).collect();
    assert!(values.windows(2).all(|pair| pair[0] < pair[1]), "{values:?}");
    for note in &reports {
        assert_eq!(note["params"]["progressToken"], "p-1");
        assert!(note["params"]["message"].as_str().is_some_and(|text| !text.is_empty() && text.len() < 200));
    }
    host.ping().await;
    assert_eq!(host.notifications("notifications/progress").len(), reports.len(), "none after the answer");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_finished_job_nobody_has_read_is_announced_in_the_next_reply_of_its_workspace() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let job = host.consult_in_background(&rig.answering("first")).await;
    rig.only_job_over().await;
    let elsewhere = json!({"prompt": rig.answering("x"), "cwd": rig.path("work/other")});
    let reply = host.call("consult", elsewhere).await.expect_success();
    assert_eq!(reply["unread_jobs"], Value::Null, "another workspace");
    let reply = host.consult(&rig.answering("second")).await.expect_success();
    assert_eq!(reply["unread_jobs"], json!([job]));
    assert!(reply.text().contains(&job), "{}", reply.text());
    host.job(&job).await.expect_success();
    let reply = host.consult(&rig.answering("third")).await.expect_success();
    assert_eq!(reply["unread_jobs"], Value::Null, "it was read");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_session_is_resumed_by_the_id_of_its_reply() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let first = host.consult(&rig.answering("one")).await.expect_success();
    let session = first.str("session_id").to_owned();
    let prompt = rig.answering("two");
    let second = host.call("consult", json!({"prompt": prompt, "session_id": session})).await.expect_success();
    assert_eq!((second.str("session_id"), second.str("session_mode")), (&session[..], "resumed"));
    assert!(rig.runs()[1].argv().windows(2).any(|pair| pair == ["--resume", &session]));
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn two_consults_of_one_session_run_one_after_the_other() {
    let mut rig = new_rig();
    let (mut one, mut two) = (rig.serve().await, rig.serve().await);
    let session = one.consult(&rig.answering("one")).await.expect_success().str("session_id").to_owned();
    let prompt = rig.doing(vec![Step::DelayMs(700)]);
    let arguments = json!({"prompt": prompt, "session_id": session});
    let first = one.start("consult", arguments.clone()).await;
    let second = two.start("consult", arguments).await;
    one.reply(first).await.expect_success();
    two.reply(second).await.expect_success();
    let [_, earlier, later] = &rig.runs()[..] else { panic!("three runs") };
    assert!(earlier.ended() <= later.began(), "{} > {}", earlier.ended(), later.began());
    rig.stop_and_check_invariants([one, two]).await;
}

#[tokio::test]
async fn one_request_key_is_one_run_and_other_arguments_are_refused() {
    let mut rig = new_rig();
    let (mut one, mut two) = (rig.serve().await, rig.serve().await);
    let prompt = rig.waiting("begun", "go");
    let arguments = json!({"prompt": prompt, "request_key": "review-1"});
    let first = one.start("consult", arguments.clone()).await;
    rig.wait_for_sign("begun").await;
    // The same question from the same client and from another one joins.
    let again = one.start("consult", arguments.clone()).await;
    let elsewhere = two.start("consult", arguments).await;
    let other = json!({"prompt": rig.answering("other"), "request_key": "review-1"});
    one.call("consult", other).await.expect_fault("request_key_conflict");
    rig.give_sign("go");
    let first = one.reply(first).await.expect_success();
    for reply in [one.reply(again).await, two.reply(elsewhere).await] {
        assert_eq!(reply.expect_success().str("job_id"), first.str("job_id"));
    }
    rig.expect_runs(1);
    rig.stop_and_check_invariants([one, two]).await;
}

#[tokio::test]
async fn twenty_consults_at_once_are_all_answered_by_at_most_three_agents() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let mut sent = Vec::new();
    for n in 0..20 {
        let prompt = rig.prompt(Script {
            answer: Some(format!("answer {n}")),
            steps: vec![Step::DelayMs(50)],
            ..Script::default()
        });
        sent.push(host.start("consult", json!({"prompt": prompt})).await);
    }
    for (n, sent) in sent.into_iter().enumerate() {
        let reply = host.reply(sent).await.expect_success();
        assert_eq!(reply.str("response"), format!("answer {n}"));
    }
    let runs = rig.runs();
    assert_eq!(runs.len(), 20);
    let most = runs
        .iter()
        .map(|run| runs.iter().filter(|other| other.began() <= run.began() && run.began() < other.ended()).count())
        .max();
    assert!(most.is_some_and(|most| (2..=3).contains(&most)), "{most:?} agents at once");
    let health = host.call("health_snapshot", json!({})).await;
    assert_eq!((&health["jobs"]["succeeded"], &health["queue_depth"]), (&json!(20), &json!(0)));
    let counted = host.call("telemetry_snapshot", json!({})).await;
    assert_eq!(counted["totals"]["requests"].as_u64().map(|requests| requests >= 21), Some(true), "{:#}", counted.0);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_place_in_the_queue_is_told_and_a_waiting_job_can_be_cancelled() {
    let mut rig = new_rig().with("PHONE_OPUS_MAX_RUNNING", "1");
    let mut host = rig.serve().await;
    let running = host.consult_in_background(&rig.hanging("begun")).await;
    rig.wait_for_sign("begun").await;
    let waiting = host.consult_in_background(&rig.answering("never")).await;
    let reply = host.call("consult_job", json!({"job_id": waiting})).await;
    assert_eq!((reply.str("status"), &reply["queue_position"]), ("queued", &json!(1)), "{:#}", reply.0);
    for job in [&waiting, &running] {
        let reply = host.call("consult_cancel", json!({"job_id": job})).await;
        assert_eq!(reply.str("status"), "cancelled", "{:#}", reply.0);
    }
    assert_eq!(rig.runs().len(), 1, "the waiting job was never run");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn bytes_that_are_no_requests_are_answered_as_such_and_the_session_goes_on() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    host.line("no JSON at all").await;
    host.bytes(b"{\"jsonrpc\":\"2.0\",\"id\":\xff\xfe}\n").await;
    host.line("").await;
    host.line("7").await;
    host.line("[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}]").await;
    // Longer than any line may be.
    host.bytes(&[b'x'; 9 * 1024 * 1024]).await;
    host.line("").await;
    let codes = host.errors_without_id(5).await;
    assert!(codes.iter().all(|code| [-32700, -32600].contains(code)), "{codes:?}");
    host.ping().await;
    // In pieces, with a carriage return.
    for part in ["{\"jsonrpc\":\"2.0\",\"id\":\"a b\",", "\"method\":\"pi", "ng\"}\r", "\n"] {
        host.bytes(part.as_bytes()).await;
        tokio::task::yield_now().await;
    }
    host.consult(&rig.answering("42")).await.expect_success();
    assert_eq!(host.answers_to("\"a b\"").len(), 1, "its id comes back as it was written");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn what_was_asked_before_the_end_of_the_input_is_answered() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let mut sent = Vec::new();
    for _ in 0..50 {
        sent.push(host.send("tools/list", json!({})).await);
    }
    sent.push(host.start("health_snapshot", json!({})).await);
    host.hang_up().await;
    for sent in sent {
        assert!(host.answer(sent).await["result"].is_object());
    }
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn requests_from_a_file_are_answered_into_a_file() {
    let rig = new_rig();
    let lines = [
        json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}),
        json!({"jsonrpc": "2.0", "id": 2, "method": "ping"}),
    ];
    // The last line has no end.
    let text = lines.map(|line| line.to_string()).join("\n");
    std::fs::write(rig.path("requests"), text).expect("written");
    let status = rig
        .command(&["mcp", "serve"])
        .stdin(std::fs::File::open(rig.path("requests")).expect("opened"))
        .stdout(std::fs::File::create(rig.path("answers")).expect("created"))
        .stderr(std::process::Stdio::null())
        .status();
    assert!(tokio::time::timeout(PATIENCE, status).await.expect("in time").expect("it runs").success());
    let answers = std::fs::read_to_string(rig.path("answers")).expect("answers");
    let ids: Vec<Value> =
        answers.lines().map(|line| serde_json::from_str::<Value>(line).expect("a message")["id"].clone()).collect();
    assert_eq!(ids, [json!(1), json!(2)]);
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn the_largest_prompt_reaches_the_agent_whole() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let mut prompt = rig.answering("read");
    let head = prompt.len();
    prompt.extend((head..MAX_PROMPT_BYTES).map(|n| char::from(b'a' + (n % 26) as u8)));
    assert_eq!(host.consult(&prompt).await.expect_success()["response"], "read");
    let bytes = rig.runs()[0].start["prompt_bytes"].as_u64();
    assert_eq!(bytes, Some((PROMPT_PREFIX.len() + MAX_PROMPT_BYTES) as u64));
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_prompt_that_looks_like_a_command_is_text() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    for head in ["/clear", "@/etc/passwd", "--help", "\u{0} \u{1b}[31m", "\u{fffd}\u{202e}"] {
        let prompt = format!("{head} {}", rig.answering("text"));
        assert_eq!(host.consult(&prompt).await.expect_success()["response"], "text", "{head:?}");
    }
    for run in rig.runs() {
        assert!(run.start["prompt_head"].as_str().is_some_and(|text| text.starts_with(&PROMPT_PREFIX[..20])));
    }
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_consult_inside_a_consult_is_counted_and_a_third_is_refused() {
    let mut rig = new_rig().with("PHONE_OPUS_DEPTH", "1");
    let mut inner = rig.serve().await;
    inner.consult(&rig.answering("42")).await.expect_success();
    assert_eq!(rig.runs()[0].env("PHONE_OPUS_DEPTH"), Some("2"));
    rig.set("PHONE_OPUS_DEPTH", "2");
    let mut innermost = rig.serve().await;
    innermost.consult(&rig.answering("never")).await.expect_fault("recursion_refused");
    rig.expect_runs(1);
    rig.stop_and_check_invariants([inner, innermost]).await;
}
