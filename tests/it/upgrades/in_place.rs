//! Upgrades in place: whatever is under way when the program is replaced, its client notices nothing.
//!
//! Each test replaces the program by itself, or by a copy, on the real binary with the scripted agent. Only where `/proc`
//! shows which image is running.
//!
//! `PHONE_OPUS_UPGRADES=100` makes the series under load as long as it is meant to be, `PHONE_OPUS_UPGRADES_SEED` repeats
//! one (it is printed), and `PHONE_OPUS_TEST_PROGRAM` names another program than the one of this build, such as a released
//! one.
//!
//! Laws: L1, L3, L7, L15.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, clippy::print_stdout, reason = "helpers of tests")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use phone_opus::internals::system::handover::HostSnapshot;
use phone_opus::testkit::client::envelope;
use phone_opus::testkit::places::{Stand, remove};
use phone_opus::testkit::processes::resident;
use phone_opus::testkit::{
    PATIENCE, Reply, Rig, Role, Script, Sent, Signal, Step, TestClient, Waiting, give_away, tried_program, until,
};
use serde_json::{Value, json};

/// How long a fault point holds an upgrade up, so that something can happen during it.
const HELD: &str = "rollout.before_exec=delay:400";

/// The program that is tried: that of this build, or another one.
fn tried() -> PathBuf {
    tried_program(env!("CARGO_BIN_EXE_phone-opus"))
}

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried())
}

/// A world around a copy of the program, which can be replaced.
fn rig_of_a_copy() -> (Rig, PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("phone-opus");
    lay(&program, copy_to);
    (Rig::new(&program), program, dir)
}

/// The same program, at another place.
fn copy_to(new: &Path) {
    let _bytes = std::fs::copy(tried(), new).expect("a copy");
}

/// Puts another file in a program's place, as an installer does.
fn lay(program: &Path, write: impl FnOnce(&Path)) {
    let new = program.with_extension("new");
    write(&new);
    std::fs::rename(new, program).expect("it is put in place");
}

/// What the image that runs was restored from: another name for each image, none for the first.
fn image(host: &TestClient) -> Option<String> {
    let words = std::fs::read(format!("/proc/{}/cmdline", host.host_pid().as_raw_nonzero())).expect("it runs");
    let mut words = words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    words.find(|word| word == "--restore")?;
    words.next()
}

/// Asks for an upgrade.
fn reload(host: &TestClient) {
    rustix::process::kill_process(host.host_pid(), Signal::USR2).expect("it runs");
}

/// Waits for another image than this one; it need not serve yet.
async fn next_image(host: &TestClient, before: Option<String>) {
    let waiting = Waiting::until("another image runs", PATIENCE);
    while image(host) == before {
        waiting.again(|| format!("{before:?}")).await;
    }
}

/// Asks for an upgrade and waits for the new image, which need not serve yet.
async fn upgrade(host: &TestClient) {
    let before = image(host);
    reload(host);
    next_image(host, before).await;
}

/// Waits until the host of a rig has said this so often in its log.
async fn said(rig: &Rig, words: &str, times: usize) {
    let log = rig.path("host-1.stderr");
    let waiting = Waiting::until(format!("it says {words:?}"), PATIENCE);
    loop {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if text.matches(words).count() >= times {
            return;
        }
        waiting.again(|| text.lines().rev().take(5).collect::<Vec<_>>().join("\n")).await;
    }
}

/// What a host says that was not replaced.
const STAYED: &str = "no new version was adopted";

/// What a host says when a plan holds an upgrade up: everything is at rest by then.
const AT_REST: &str = "a fault point fired";

/// Children of the host that ended and were not waited for.
fn zombies(host: &TestClient) -> Vec<String> {
    let parent = format!("PPid:\t{}", host.host_pid().as_raw_nonzero());
    let processes = std::fs::read_dir("/proc").expect("processes");
    let status =
        |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(entry.ok()?.path().join("status")).ok();
    processes.filter_map(status).filter(|status| status.contains(&parent) && status.contains("State:\tZ")).collect()
}

/// Descriptors the host has open.
fn descriptors(host: &TestClient) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", host.host_pid().as_raw_nonzero())).expect("it runs").count()
}

/// Files of hand-overs that are left.
fn snapshots(rig: &Rig) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(rig.state_dir().root()).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("handover-"))).collect()
}

#[tokio::test]
async fn jobs_go_on_waiting_with_the_same_process_in_another_image_and_when_there_is_none() {
    for (plan, replaced) in [("", true), ("rollout.before_exec#1=error", false)] {
        let mut rig = new_rig().with("PHONE_OPUS_MAX_RUNNING", "1");
        if !plan.is_empty() {
            rig = rig.with_faults(plan);
        }
        let mut host = rig.serve().await;
        let held = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
        rig.wait_for_sign("begun").await;
        let waiting = host.start("consult", json!({"prompt": rig.answering("its turn came")})).await;
        let background = host.consult_in_background(&rig.answering("and this one's")).await;
        let with = rig.the(Role::Waiting).await;
        for _ in 0..3 {
            if replaced {
                upgrade(&host).await;
            } else {
                reload(&host);
            }
            host.ping().await;
        }
        if !replaced {
            said(&rig, STAYED, 1).await;
        }
        let pids: Vec<_> = rig.all(Role::Waiting).iter().map(|process| process.pid).collect();
        assert_eq!(pids, [with.pid], "nobody had to be handed in anew");
        rig.give_sign("go");
        let _ = host.reply(held).await.expect_success();
        assert_eq!(host.reply(waiting).await.expect_success().str("response"), "its turn came");
        let reply = host.call("consult_job", json!({"job_id": background, "wait_s": 20})).await.expect_success();
        assert_eq!(reply.str("response"), "and this one's");
        rig.expect_runs(3);
        until("nobody is left unwaited for", async || zombies(&host).is_empty().then_some(())).await;
        host.finish().await;
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn a_session_goes_on_in_another_image_of_the_program() {
    for version in ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"] {
        let mut rig = new_rig();
        let mut host = rig.host();
        host.handshake(version).await;
        let listed = host.request("tools/list", json!({})).await;
        for times in 1..=2 {
            upgrade(&host).await;
            host.ping().await;
            let again = host.request("tools/list", json!({})).await;
            assert_eq!(again["result"], listed["result"], "{version}: no second greeting is needed");
            if version >= "2025-06-18" {
                assert_eq!(host.totals().await["rollouts"], times);
            }
        }
        assert_eq!(host.notifications("notifications/tools/list_changed").len(), 0, "they are the same tools");
        assert_eq!(snapshots(&rig), Vec::<PathBuf>::new());
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn a_client_that_has_not_greeted_yet_is_still_one_that_has_not() {
    let mut rig = new_rig();
    let mut host = rig.host();
    host.ping().await;
    upgrade(&host).await;
    let refused = host.request("tools/list", json!({})).await;
    assert!(refused["error"]["message"].as_str().is_some_and(|text| text.contains("initialize")), "{refused}");
    host.request("tools/list", json!({"_meta": envelope()})).await["result"]["tools"].as_array().expect("tools");
    host.handshake("2025-06-18").await;
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_consult_is_answered_by_its_one_run_whatever_image_accepted_it() {
    for isolation in ["in_process", "process"] {
        let mut rig = new_rig().with("PHONE_OPUS_ISOLATION", isolation);
        let mut host = rig.serve().await;
        let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
        rig.wait_for_sign("begun").await;
        let runners = rig.runners();
        for _ in 0..3 {
            upgrade(&host).await;
            host.ping().await;
        }
        assert_eq!(rig.runners(), runners, "{isolation}: the runner notices nothing");
        rig.give_sign("go");
        let reply = host.reply(sent).await.expect_success();
        assert_eq!((reply.str("mode"), reply.str("response")), ("sync", "done"), "{isolation}");
        rig.expect_runs(1);
        let health = host.health().await;
        assert_eq!(health["restart_count"], 0, "{isolation}: an upgrade is no failure: {:#}", health.0);
        assert_eq!(host.totals().await["restarts"], 0);
        until("its runner is waited for", async || zombies(&host).is_empty().then_some(())).await;
        host.consult(&rig.answering("again")).await.expect_success();
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn an_upgrade_at_any_moment_of_a_consult_costs_nothing() {
    // The moments are drawn: upgrades follow each other while consults begin and end.
    let seed = number("PHONE_OPUS_UPGRADES_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("PHONE_OPUS_UPGRADES_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for isolation in ["in_process", "process"] {
        let mut rig = new_rig().with("PHONE_OPUS_ISOLATION", isolation);
        let mut host = rig.serve().await;
        for round in 0..12 {
            let steps = vec![Step::ToolUse("Grep".into()), Step::DelayMs(rng.u64(..60))];
            let answer = format!("answer {round}");
            let prompt = rig.prompt(Script { steps, answer: Some(answer.clone()), ..Script::default() });
            let sent = host.start("consult", json!({"prompt": prompt})).await;
            while !host.is_answered(sent) {
                tokio::time::sleep(Duration::from_millis(rng.u64(..80))).await;
                upgrade(&host).await;
            }
            assert_eq!(host.reply(sent).await.expect_success().str("response"), answer, "{isolation}");
        }
        rig.expect_runs(12);
        until("nobody is left unwaited for", async || zombies(&host).is_empty().then_some(())).await;
        println!("{isolation}: {} upgrades during 12 consults", host.totals().await["rollouts"]);
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn a_background_job_and_who_waits_for_it_go_on() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let job = host.consult_in_background(&rig.waiting("begun", "go")).await;
    rig.wait_for_sign("begun").await;
    let waits = host.start("consult_job", json!({"job_id": job, "wait_s": 60})).await;
    let lapses = host.start("consult_job", json!({"job_id": job, "wait_s": 2})).await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1500) {
        upgrade(&host).await;
        host.ping().await;
    }
    let upgraded = Instant::now();
    let lapsed = host.reply(lapses).await;
    assert_eq!((lapsed.is_error(), lapsed.str("status")), (false, "running"), "{:#}", lapsed.0);
    // One that the last of them had begun anew would be over two seconds after it.
    assert!(upgraded.elapsed() < Duration::from_millis(1900), "a wait does not begin anew: {:?}", upgraded.elapsed());
    rig.give_sign("go");
    assert_eq!(host.reply(waits).await.expect_success().str("response"), "done");
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_job_can_be_cancelled_and_a_caller_can_go_after_an_upgrade() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let job = host.consult_in_background(&rig.hanging("one")).await;
    let sent = host.start("consult", json!({"prompt": rig.hanging("two")})).await;
    rig.wait_for_sign("one").await;
    rig.wait_for_sign("two").await;
    upgrade(&host).await;
    let reply = host.call("consult_cancel", json!({"job_id": job})).await;
    assert_eq!((reply.is_error(), reply.str("status")), (false, "cancelled"), "{:#}", reply.0);
    host.job(&job).await.expect_fault("cancelled");
    host.cancel(sent).await;
    rig.expect_no_agent_left().await;
    until("nobody is left unwaited for", async || zombies(&host).is_empty().then_some(())).await;
    host.expect_silence_about(sent).await;
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn progress_rises_and_subscriptions_are_heard_across_upgrades() {
    let mut rig = new_rig().with("PHONE_OPUS_PROGRESS_S", "1");
    let mut host = rig.serve().await;
    let params = json!({"name": "consult", "arguments": {"prompt": rig.waiting("begun", "go")}, "_meta": {"progressToken": "p\\u002d1"}});
    let sent = host.send("tools/call", params).await;
    // The same as a task of the core, whose token lives as long as the task.
    let params = json!({"name": "consult", "arguments": {"prompt": rig.waiting("task", "go")}, "task": {"ttl": 60_000},
                        "_meta": {"progressToken": 7}});
    let task = host.request("tools/call", params).await["result"]["task"]["taskId"].clone();
    let mut tasks = envelope();
    tasks["io.modelcontextprotocol/clientCapabilities"] = json!({"extensions": {"io.modelcontextprotocol/tasks": {}}});
    let params = json!({"notifications": {"taskIds": [task], "toolsListChanged": true}, "_meta": tasks});
    let stream = host.send("subscriptions/listen", params).await;
    rig.wait_for_sign("begun").await;
    rig.wait_for_sign("task").await;
    let values = |host: &TestClient, token: Value| -> Vec<f64> {
        let notes = host.notifications("notifications/progress").into_iter();
        let own = notes.filter(|note| note["params"]["progressToken"] == token);
        own.map(|note| note["params"]["progress"].as_f64().expect("a number")).collect()
    };
    for reports in 1..=3 {
        upgrade(&host).await;
        until("reports of both", async || {
            let heard =
                [json!("p\\u002d1"), json!(7)].iter().all(|token| values(&host, token.clone()).len() >= reports);
            heard.then_some(())
        })
        .await;
    }
    rig.give_sign("go");
    host.reply(sent).await.expect_success();
    until("news of its end", async || {
        let news = host.notifications("notifications/tasks");
        news.iter().any(|note| note["params"]["status"] == "completed").then_some(())
    })
    .await;
    for token in [json!("p\\u002d1"), json!(7)] {
        let values = values(&host, token);
        assert!(values.windows(2).all(|pair| pair[0] < pair[1]), "{values:?}");
    }
    rig.expect_runs(2);
    host.cancel(stream).await;
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn both_eras_hear_that_the_tools_differ_when_they_do() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let params = json!({"notifications": {"toolsListChanged": true}, "_meta": envelope()});
    let stream = host.send("subscriptions/listen", params).await;
    let listed = host.request("tools/list", json!({})).await;
    let changed = |host: &TestClient| host.notifications("notifications/tools/list_changed").len();
    upgrade(&host).await;
    host.ping().await;
    assert_eq!(changed(&host), 0);
    // What the next image reads makes one tool's description differ.
    rig.configure("response_chars = 300000\n");
    upgrade(&host).await;
    until("both copies", async || (changed(&host) == 2).then_some(())).await;
    assert_ne!(host.request("tools/list", json!({})).await["result"], listed["result"]);
    upgrade(&host).await;
    host.ping().await;
    assert_eq!(changed(&host), 2, "told once");
    host.cancel(stream).await;
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_line_of_which_half_was_read_is_read_on() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let line = b"{\"jsonrpc\":\"2.0\",\"id\":\"h\\u00e4lf \\ud83d\\ude00\",\"method\":\"ping\"}\n";
    for at in [1, 20, 40, line.len() - 1] {
        // An answered ping tells that the half before it, in the same write, was read as well.
        let mut bytes = b"{\"jsonrpc\":\"2.0\",\"id\":\"first\",\"method\":\"ping\"}\n".to_vec();
        bytes.extend_from_slice(&line[..at]);
        host.bytes(&bytes).await;
        until("the first is answered", async || (!host.answers_to("\"first\"").is_empty()).then_some(())).await;
        upgrade(&host).await;
        host.bytes(&line[at..]).await;
        host.ping().await;
        assert_eq!(host.answers_to(r#""h\u00e4lf \ud83d\ude00""#).len(), 1, "cut at {at}");
        assert_eq!(host.answers_to("\"first\"").len(), 0);
    }
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_line_that_is_too_long_is_skipped_to_its_end() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let long = format!("{{\"jsonrpc\":\"2.0\",\"id\":\"long\",\"method\":\"{}", "x".repeat(9 * 1024 * 1024));
    host.bytes(long.as_bytes()).await;
    upgrade(&host).await;
    host.bytes(b"yyy\"}\n").await;
    host.ping().await;
    let answers = host.answers_to("\"long\"");
    assert!(answers.len() == 1 && answers[0].get("error").is_some(), "{answers:?}");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn what_a_slow_client_has_not_read_is_passed_on_to_the_byte() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    host.stop_reading();
    let mut asked: Vec<Sent> = Vec::new();
    // Several pipes' worth, so that the rest waits in the host, cut anywhere.
    for _ in 0..120 {
        asked.push(host.send("tools/list", json!({})).await);
    }
    for _ in 0..3 {
        upgrade(&host).await;
        asked.push(host.send("ping", json!({})).await);
    }
    host.read_on();
    for sent in asked {
        host.answer(sent).await;
    }
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_client_on_a_socket_notices_nothing_either() {
    let rig = new_rig();
    // As clients on Node hand them out: one socket for either direction.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    ours.set_nonblocking(true).expect("it does not block");
    let mut command = rig.command(&["mcp", "serve"]);
    command.stdin(std::os::fd::OwnedFd::from(theirs.try_clone().expect("a copy")));
    command.stdout(std::os::fd::OwnedFd::from(theirs)).stderr(std::process::Stdio::null());
    let mut child = command.spawn().expect("a host");
    drop(command);
    let pid =
        rustix::process::Pid::from_raw(i32::try_from(child.id().expect("it runs")).expect("a pid")).expect("a pid");
    let (output, input) = tokio::net::UnixStream::from_std(ours).expect("a stream").into_split();
    let mut host = TestClient::new(output, input);
    host.handshake("2025-11-25").await;
    let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    for rollouts in 1..=2 {
        rustix::process::kill_process(pid, Signal::USR2).expect("it runs");
        let waiting = Waiting::until("it was upgraded", PATIENCE);
        while host.totals().await["rollouts"] != rollouts {
            waiting.again(|| "not yet").await;
        }
    }
    rig.give_sign("go");
    assert_eq!(host.reply(sent).await.expect_success().str("response"), "done");
    host.hang_up().await;
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends").expect("it is waited for");
    assert!(ended.success(), "{ended}");
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn calls_that_were_sent_in_one_write_around_an_upgrade_are_each_answered_once() {
    for isolation in ["in_process", "process"] {
        let mut rig = new_rig().with("PHONE_OPUS_ISOLATION", isolation).with_faults(HELD);
        let mut host = rig.serve().await;
        let burst = |from: usize| -> String {
            let line = |id: usize| match id % 4 {
                0 => json!({"jsonrpc": "2.0", "id": format!("b{id}"), "method": "ping"}),
                1 => json!({"jsonrpc": "2.0", "id": format!("b{id}"), "method": "tools/list"}),
                2 => json!({"jsonrpc": "2.0", "id": format!("b{id}"), "method": "tools/call",
                            "params": {"name": "consult", "arguments": {"prompt": rig.answering("x"), "background": true,
                                                                        "request_key": "the same"}}}),
                _ => json!({"jsonrpc": "2.0", "id": format!("b{id}"), "method": "tools/call",
                            "params": {"name": "health_snapshot", "arguments": {}}}),
            };
            (from..from + 60).map(|id| format!("{}\n", line(id))).collect()
        };
        let before = image(&host);
        host.bytes(burst(0).as_bytes()).await;
        reload(&host);
        host.bytes(burst(60).as_bytes()).await;
        said(&rig, AT_REST, 1).await;
        // Nobody reads this before the next image does.
        host.bytes(burst(120).as_bytes()).await;
        next_image(&host, before).await;
        host.bytes(burst(180).as_bytes()).await;
        for id in 0..240 {
            let id = format!("\"b{id}\"");
            let waiting = Waiting::until(format!("{id} is answered"), PATIENCE);
            loop {
                let answers = host.answers_to(&id);
                if !answers.is_empty() {
                    assert_eq!(answers.len(), 1, "{id}");
                    assert!(answers[0].get("error").is_none(), "{id}: {answers:?}");
                    break;
                }
                waiting.again(|| "nothing").await;
            }
        }
        until("its one job is over", async || {
            let jobs = rig.jobs().await;
            (jobs.len() == 1 && jobs[0].state.is_terminal()).then_some(())
        })
        .await;
        rig.expect_runs(1);
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_during_an_upgrade_is_seen_off_by_the_next_image() {
    let mut rig = new_rig().with_faults(HELD);
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.hanging("begun")})).await;
    rig.wait_for_sign("begun").await;
    let before = image(&host);
    reload(&host);
    said(&rig, AT_REST, 1).await;
    host.give_up_on(sent);
    host.hang_up().await;
    assert!(host.exit().await.success(), "in order, by {before:?} or its successor");
    rig.expect_no_agent_left().await;
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_signal_during_an_upgrade_is_not_lost() {
    // Before everything is at rest, while it is, and so late that the next image finds it pending.
    for (signal, wait) in
        [(Signal::TERM, 0), (Signal::INT, 200), (Signal::HUP, 395), (Signal::TERM, 405), (Signal::TERM, 412)]
    {
        let mut rig = new_rig().with_faults(HELD);
        let mut host = rig.serve().await;
        let sent = host.start("consult", json!({"prompt": rig.hanging("begun")})).await;
        rig.wait_for_sign("begun").await;
        reload(&host);
        if wait > 0 {
            said(&rig, AT_REST, 1).await;
        }
        tokio::time::sleep(Duration::from_millis(wait)).await;
        host.signal(signal);
        assert!(host.exit().await.success(), "{signal:?} after {wait} ms: in order");
        // It was told, unless its client had gone first.
        assert!(host.answer_or_end(sent).await.is_none_or(|answer| Reply(answer).code() == "stopping"));
        rig.expect_no_agent_left().await;
        assert_eq!(snapshots(&rig), Vec::<PathBuf>::new(), "{signal:?} after {wait} ms");
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn a_runner_that_ends_during_an_upgrade_has_its_answer_told_by_the_next_image() {
    let mut rig = new_rig().with_faults(HELD);
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    reload(&host);
    said(&rig, AT_REST, 1).await;
    rig.give_sign("go");
    assert_eq!(host.reply(sent).await.expect_success().str("response"), "done");
    assert!(image(&host).is_some(), "by the next image");
    until("it is waited for", async || zombies(&host).is_empty().then_some(())).await;
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_second_upgrade_during_the_first_is_one_with_it() {
    let mut rig = new_rig().with_faults(HELD);
    let mut host = rig.serve().await;
    let before = image(&host);
    reload(&host);
    said(&rig, AT_REST, 1).await;
    reload(&host);
    next_image(&host, before).await;
    host.ping().await;
    assert_eq!(host.totals().await["rollouts"], 1);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_program_that_cannot_be_run_leaves_the_old_image_serving() {
    for isolation in ["in_process", "process"] {
        let (rig, program, _dir) = rig_of_a_copy();
        let mut rig = rig.with("PHONE_OPUS_ISOLATION", isolation);
        let mut host = rig.serve().await;
        let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
        rig.wait_for_sign("begun").await;
        let runners = rig.runners();
        let mut open = usize::MAX;
        let write = |bytes: &'static [u8], mode: u32| {
            move |new: &Path| {
                std::fs::write(new, bytes).expect("a file");
                std::fs::set_permissions(new, std::fs::Permissions::from_mode(mode)).expect("its mode");
            }
        };
        // No program, an empty file, and one that may not be run.
        for (times, (bytes, mode)) in
            [(&b"no program"[..], 0o755), (b"", 0o755), (b"\x7fELF", 0o644)].into_iter().enumerate()
        {
            lay(&program, write(bytes, mode));
            reload(&host);
            said(&rig, STAYED, times + 1).await;
            host.ping().await;
            if times == 0 {
                // What looks for ended children is there from the first candidate on.
                open = descriptors(&host);
            }
            assert_eq!(image(&host), None);
            assert_eq!(snapshots(&rig), Vec::<PathBuf>::new());
        }
        std::fs::remove_file(&program).expect("it is removed");
        reload(&host);
        said(&rig, STAYED, 4).await;
        host.ping().await;
        assert_eq!(rig.runners(), runners, "the runner notices nothing");
        until("descriptors are as before", async || (descriptors(&host) <= open).then_some(())).await;
        // Pipes of clients that are gone do not end it: what an exec resets is as it was.
        lay(&program, copy_to);
        upgrade(&host).await;
        rig.give_sign("go");
        assert_eq!(host.reply(sent).await.expect_success().str("response"), "done", "{isolation}");
        rig.expect_runs(1);
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn no_bad_program_is_adopted_and_health_says_why_and_the_next_good_one_is() {
    let (mut rig, program, _dir) = rig_of_a_copy();
    let whole = std::fs::read(tried()).expect("it is read");
    let real = tried().display().to_string();
    let old = rig.path("old-snapshot");
    std::fs::write(&old, "{\"format\":0,\"program\":\"0\"}").expect("written");
    let script = |text: String| format!("#!/bin/sh\n{text}\n").into_bytes();
    let on_restore = |then: String| script(format!("case \"$*\" in *--restore*) {then};; esac; exec '{real}' \"$@\""));
    let mut foreign = whole[..8192].to_vec();
    // The number of the machine.
    foreign[18] ^= 0x55;
    let cases = [
        ("not_executable", whole.clone(), 0o644),
        ("wrong_architecture", foreign, 0o755),
        ("exited", script("exit 1".into()), 0o755),
        ("hung", script("sleep 1000".into()), 0o755),
        (
            "restore_panicked",
            on_restore(format!("PHONE_OPUS_FAULTS=rollout.after_restore=panic exec '{real}' \"$@\"")),
            0o755,
        ),
        (
            "restore_refused",
            on_restore(format!("exec '{real}' mcp selfcheck --json --restore '{}'", old.display())),
            0o755,
        ),
        ("truncated", whole[..whole.len() / 2].to_vec(), 0o755),
    ];
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    for (times, (verdict, bytes, mode)) in cases.into_iter().enumerate() {
        lay(&program, |new: &Path| {
            std::fs::write(new, &bytes).expect("a file");
            std::fs::set_permissions(new, std::fs::Permissions::from_mode(mode)).expect("its mode");
        });
        reload(&host);
        said(&rig, STAYED, times + 1).await;
        let health = host.call("health_snapshot", json!({})).await;
        let seen = &health["rollout"];
        assert_eq!((&seen["last"]["verdict"], &seen["adopted"]), (&json!(verdict), &json!(0)), "{seen:#}");
        assert_eq!(seen["rejected"]["verdict"], verdict, "{seen:#}");
        assert_eq!(image(&host), None, "{verdict}");
        assert_eq!(snapshots(&rig), Vec::<PathBuf>::new(), "{verdict}");
    }
    lay(&program, copy_to);
    upgrade(&host).await;
    rig.give_sign("go");
    assert_eq!(host.reply(sent).await.expect_success().str("response"), "done");
    let health = host.call("health_snapshot", json!({})).await;
    assert_eq!((&health["rollout"]["adopted"], &health["rollout"]["last"]["outcome"]), (&json!(1), &json!("adopted")));
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_program_of_somebody_else_or_one_that_others_may_write_is_not_run() {
    const NOBODY: u32 = 65534;
    let (mut rig, program, dir) = rig_of_a_copy();
    let mut host = rig.serve().await;
    let ran = rig.path("ran");
    // A wrapper, which would say that it ran.
    let script = format!("#!/bin/sh\ntouch {}\nexec '{}' \"$@\"\n", ran.display(), tried().display());
    let (us, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let cases = [
        ("foreign_owner", 0o755, (NOBODY, NOBODY), 0o700),
        ("foreign_owner", 0o755, (NOBODY, group), 0o700),
        ("writable_by_others", 0o775, (us, NOBODY), 0o700),
        ("writable_by_others", 0o757, (us, group), 0o700),
        ("writable_by_others", 0o777, (us, group), 0o700),
        ("loose_directory", 0o755, (us, group), 0o777),
    ];
    let mut times = 0;
    for (verdict, mode, (owner, group), around) in cases {
        lay(&program, |new: &Path| std::fs::write(new, &script).expect("a file"));
        if (owner, group) != (us, rustix::process::getegid().as_raw()) && !give_away(&program, owner, group) {
            println!("SKIPPED: only root can give a program to user {owner} and group {group}");
            continue;
        }
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(mode)).expect("its mode");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(around)).expect("its mode");
        reload(&host);
        times += 1;
        said(&rig, STAYED, times).await;
        let seen = host.call("health_snapshot", json!({})).await["rollout"].clone();
        assert_eq!((&seen["last"]["verdict"], &seen["adopted"]), (&json!(verdict), &json!(0)), "{mode:o}: {seen:#}");
        assert!(!ran.exists(), "{verdict}: it was run");
    }
    // One of ours, where names are kept by their owners.
    lay(&program, copy_to);
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o1777)).expect("its mode");
    upgrade(&host).await;
    assert_eq!(host.call("health_snapshot", json!({})).await["rollout"]["adopted"], 1);
    rig.stop_and_check_invariants([host]).await;
}

/// Processes with this word among their arguments.
fn with_word(word: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").expect("processes").flatten();
    let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.split(' ').any(|found| found == word)).collect()
}

#[tokio::test]
async fn nothing_a_candidate_started_outlives_its_trial_whatever_session_it_went_to() {
    let (mut rig, program, _dir) = rig_of_a_copy();
    let real = tried().display().to_string();
    let number = fastrand::u32(100_000_000..999_999_999).to_string();
    let begun = rig.sign("begun");
    let note = format!("touch {}", begun.display());
    let away = format!("setsid sleep {number} >/dev/null 2>&1 </dev/null &");
    let twice = format!("setsid sh -c 'sleep {number} & sleep {number} &' >/dev/null 2>&1 </dev/null; {note}");
    let bare =
        format!("env -i setsid sh -c 'trap \"\" TERM HUP; {note}; exec sleep {number}' >/dev/null 2>&1 </dev/null &");
    let wait = format!("while [ ! -e {} ]; do :; done", begun.display());
    // Where it goes, and how the candidate itself ends.
    let cases = [
        ("exited", format!("{away} {note}; exit 3")),
        ("exited", format!("{twice}; exit 3")),
        ("exited", format!("{bare} {wait}; exit 3")),
        ("killed", format!("{bare} {wait}; kill -9 $$")),
        ("hung", format!("{bare} {wait}; trap '' TERM; sleep 1000")),
        ("garbled", format!("{bare} {wait}; while :; do echo yes; done")),
        // It passes: what it left does not live on beside its successor.
        ("adopted", format!("{bare} {wait}; exec '{real}' \"$@\"")),
    ];
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.waiting("consult", "go")})).await;
    rig.wait_for_sign("consult").await;
    for (times, (verdict, text)) in cases.into_iter().enumerate() {
        let _ = std::fs::remove_file(&begun);
        let before = image(&host);
        // Only where it is tried: its serving is not.
        let text = format!("#!/bin/sh\n[ \"$2\" = selfcheck ] || exec '{real}' \"$@\"\n{text}\n");
        lay(&program, |new: &Path| {
            std::fs::write(new, &text).expect("a file");
            std::fs::set_permissions(new, std::fs::Permissions::from_mode(0o755)).expect("its mode");
        });
        reload(&host);
        if verdict == "adopted" {
            next_image(&host, before).await;
        } else {
            said(&rig, STAYED, times + 1).await;
            let seen = host.call("health_snapshot", json!({})).await["rollout"].clone();
            assert_eq!(seen["last"]["verdict"], verdict, "{seen:#}");
        }
        assert!(begun.exists(), "{verdict}: it got that far");
        assert_eq!(with_word(&number), Vec::<String>::new(), "{verdict}");
    }
    rig.give_sign("go");
    assert_eq!(
        host.reply(sent).await.expect_success().str("response"),
        "done",
        "children of the server are left alone"
    );
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_server_that_is_killed_during_a_trial_leaves_nothing_of_it() {
    let number = fastrand::u32(100_000_000..999_999_999).to_string();
    for signal in [Signal::KILL, Signal::TERM] {
        let (mut rig, program, _dir) = rig_of_a_copy();
        let mut host = rig.serve().await;
        host.expect_end();
        let begun = rig.sign("begun");
        let text = format!(
            "#!/bin/sh\nsetsid env -i sleep {number} >/dev/null 2>&1 </dev/null &\ntouch {}; trap '' TERM; sleep 1000\n",
            begun.display()
        );
        lay(&program, |new: &Path| {
            std::fs::write(new, &text).expect("a file");
            std::fs::set_permissions(new, std::fs::Permissions::from_mode(0o755)).expect("its mode");
        });
        reload(&host);
        until("it is tried", async || begun.exists().then_some(())).await;
        host.signal(signal);
        host.exit().await;
        until("nothing of it is left", async || with_word(&number).is_empty().then_some(())).await;
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn a_failed_upgrade_leaves_a_host_that_bears_a_client_which_does_not_read() {
    let (mut rig, program, _dir) = rig_of_a_copy();
    let mut host = rig.serve().await;
    lay(&program, |new| std::fs::write(new, "no program").expect("a file"));
    reload(&host);
    said(&rig, STAYED, 1).await;
    lay(&program, copy_to);
    let job = host.consult_in_background(&rig.waiting("begun", "go")).await;
    rig.wait_for_sign("begun").await;
    // The write to its pipe fails; that is an error for whoever writes, and no signal that ends the process.
    for runner in rig.kill(Role::Runner) {
        until("it is gone", async || (!runner.lives()).then_some(())).await;
    }
    host.call("consult_cancel", json!({"job_id": job})).await;
    host.ping().await;
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn faults_before_the_exec_leave_the_old_image_serving_or_end_it_as_a_kill_would() {
    for (plan, stays) in [
        ("rollout.snapshot=panic", true),
        ("rollout.snapshot=hang", true),
        ("rollout.snapshot=kill", false),
        ("rollout.before_exec=error", true),
        ("rollout.before_exec=panic", true),
        ("rollout.before_exec=hang", true),
        ("rollout.before_exec=kill", false),
        ("rollout.before_exec=abort", false),
        ("rollout.after_restore=error", false),
        ("rollout.after_restore=panic", false),
        ("rollout.after_restore=exit", false),
        ("rollout.after_restore=kill", false),
    ] {
        let mut rig = new_rig().with_faults(plan);
        let mut host = rig.serve().await;
        let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
        let job = host.consult_in_background(&rig.waiting("other", "go")).await;
        rig.wait_for_sign("begun").await;
        rig.wait_for_sign("other").await;
        if stays {
            reload(&host);
            said(&rig, STAYED, 1).await;
            host.ping().await;
            assert_eq!(image(&host), None, "{plan}");
            rig.give_sign("go");
            assert_eq!(host.reply(sent).await.expect_success().str("response"), "done", "{plan}");
            assert_eq!(host.job(&job).await.expect_success().str("response"), "done", "{plan}");
            // It was spent, and the next one is adopted.
            upgrade(&host).await;
            host.ping().await;
            rig.stop_and_check_invariants([host]).await;
        } else {
            host.signal(Signal::USR2);
            host.give_up_on(sent);
            host.exit().await;
            assert!(host.answer_or_end(sent).await.is_none(), "{plan}: its connection ended");
            assert_eq!(snapshots(&rig), Vec::<PathBuf>::new(), "{plan}: nothing to read is left of it");
            // A synchronous job has lost its caller with its host; a background job goes on.
            let mut next = rig.serve().await;
            until("the job nobody waits for is over", async || {
                let jobs = rig.jobs().await;
                (jobs.iter().filter(|job| job.state.is_terminal()).count() == 1).then_some(())
            })
            .await;
            rig.give_sign("go");
            let reply = next.call("consult_job", json!({"job_id": job, "wait_s": 60})).await.expect_success();
            assert_eq!(reply.str("response"), "done", "{plan}");
            rig.stop_and_check_invariants([host, next]).await;
        }
    }
}

/// Something is put in a file's place.
type Breaks = fn(&Path);

/// What can become of a configuration file, while its owner edits it or a checkout replaces it. The secret may be shown
/// nowhere.
const BREAKS: [(&str, Breaks); 10] = [
    ("no TOML", |file| std::fs::write(file, "token = SECRET-VALUE\n").expect("written")),
    ("an unknown key", |file| std::fs::write(file, "no_such_key = \"SECRET-VALUE\"\n").expect("written")),
    ("a bad value", |file| std::fs::write(file, "timeout_s = \"SECRET-VALUE\"\n").expect("written")),
    ("a value out of bounds", |file| std::fs::write(file, "timeout_s = 0\n").expect("written")),
    ("no text", |file| std::fs::write(file, b"\xff\xfe").expect("written")),
    ("a directory", |file| std::fs::create_dir(file).expect("made")),
    ("a pipe nobody writes to", |file| assert!(Stand::Fifo.put(file))),
    ("a device that never ends", |file| assert!(Stand::LinkToZero.put(file))),
    ("larger than any configuration", |file| assert!(Stand::SparseGiant.put(file))),
    ("a link to itself", |file| assert!(Stand::LinkToItself.put(file))),
];

#[tokio::test]
async fn a_configuration_that_breaks_between_the_trial_and_the_exec_costs_no_session() {
    let mut rig = new_rig().with_faults("rollout.before_exec#*=delay:200");
    let user = rig.user_configuration();
    let good = |file: &Path| std::fs::write(file, "max_running = 2\n").expect("written");
    good(&user);
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    for (times, (what, breaks)) in (1..).zip(BREAKS) {
        let before = image(&host);
        reload(&host);
        said(&rig, AT_REST, times).await;
        remove(&user);
        breaks(&user);
        next_image(&host, before).await;
        let health = host.call("health_snapshot", json!({"detail": "full"})).await;
        assert_eq!(health["limits"]["max_running"], 2, "{what}: what was in force is in force");
        let notice = health["notices"][0].as_str().unwrap_or_default();
        assert!(notice.contains("config.toml") && !health.0.to_string().contains("SECRET"), "{what}: {notice}");
        assert_eq!(health["rollout"]["adopted"], times, "{what}");
        remove(&user);
        good(&user);
    }
    // The next one reads it again.
    let before = image(&host);
    reload(&host);
    next_image(&host, before).await;
    assert_eq!(host.call("health_snapshot", json!({})).await["notices"], Value::Null);
    rig.give_sign("go");
    assert_eq!(host.reply(sent).await.expect_success().str("response"), "done");
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_projects_file_that_breaks_between_the_trial_and_the_exec_costs_no_session() {
    let mut rig = new_rig().with_faults("rollout.before_exec#*=delay:200");
    let project = rig.work().join(".phone-opus.toml");
    let mut host = rig.serve().await;
    for (times, (what, breaks)) in (1..).zip(BREAKS) {
        let before = image(&host);
        reload(&host);
        said(&rig, AT_REST, times).await;
        breaks(&project);
        next_image(&host, before).await;
        let health = host.call("health_snapshot", json!({"detail": "full"})).await;
        assert_eq!(health["rollout"]["adopted"], times, "{what}");
        assert!(!health.0.to_string().contains("SECRET"), "{what}: {:#}", health.0);
        host.consult(&rig.answering(what)).await.expect_success();
        remove(&project);
    }
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn no_directory_ever_lists_a_snapshot_wherever_it_lies() {
    for plan in ["rollout.before_exec#*=delay:300", "rollout.before_exec#*=delay:300;rollout.snapshot#*=error"] {
        let mut rig = new_rig().with_faults(plan);
        let mut host = rig.serve().await;
        let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
        rig.wait_for_sign("begun").await;
        for adopted in 1..=3_usize {
            reload(&host);
            // With the snapshot made, and before the next image has it.
            said(&rig, "rollout.before_exec", adopted).await;
            assert_eq!(snapshots(&rig), Vec::<PathBuf>::new(), "{plan}");
            let waiting = Waiting::until("it was adopted", PATIENCE);
            while host.call("health_snapshot", json!({})).await["rollout"]["adopted"] != adopted {
                waiting.again(|| format!("not {adopted}")).await;
            }
            assert_eq!(snapshots(&rig), Vec::<PathBuf>::new(), "{plan}");
        }
        rig.give_sign("go");
        assert_eq!(host.reply(sent).await.expect_success().str("response"), "done", "{plan}");
        rig.expect_runs(1);
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn what_an_older_version_hands_over_in_a_file_with_a_name_is_taken_once() {
    let mut rig = new_rig();
    let file = rig.path("handover-old.json");
    let mut value = serde_json::to_value(HostSnapshot::of_nothing()).expect("JSON");
    let members = value.as_object_mut().expect("an object");
    for added_since in ["config", "state_dir"] {
        members.remove(added_since).expect("it is a member");
    }
    std::fs::write(&file, value.to_string()).expect("written");
    let (word, work) = (file.display().to_string(), rig.work());
    let mut host = rig.host_with(&["mcp", "serve", "--restore", &word], &work);
    host.handshake("2025-11-25").await;
    assert_eq!(host.call("health_snapshot", json!({})).await["rollout"]["adopted"], 1);
    assert!(!file.exists(), "it is read once");
    upgrade(&host).await;
    assert_eq!(host.call("health_snapshot", json!({})).await["rollout"]["adopted"], 2);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn what_older_versions_left_of_hand_overs_is_removed_by_a_server_and_by_prune() {
    let mut rig = new_rig();
    let state = rig.state_dir();
    state.create().expect("made");
    let plant = |name: &str, age: u64| {
        let file = std::fs::File::create(state.root().join(name)).expect("made");
        file.set_permissions(std::fs::Permissions::from_mode(0o600)).expect("set");
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(age)).expect("set");
    };
    plant("handover-1.json", 600);
    let host = rig.serve().await;
    until("the server removes it", async || snapshots(&rig).is_empty().then_some(())).await;
    plant("handover-2.json", 600);
    plant("handover-3.json", 0);
    assert!(rig.run(&["jobs", "prune"]).await.status.success());
    assert_eq!(snapshots(&rig), [state.root().join("handover-3.json")], "one that is still to be taken stays");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_fault_that_was_spent_stays_spent_in_the_next_image() {
    let mut rig =
        new_rig().with_faults("worker.before_execute@tools/call:consult#2=panic;rollout.after_restore=delay:50");
    let mut host = rig.serve().await;
    host.consult(&rig.answering("first")).await.expect_success();
    upgrade(&host).await;
    // The second one, counted across the upgrade, strikes and is made good.
    host.consult(&rig.answering("second")).await.expect_success();
    assert_eq!(host.health().await["restart_count"], 1);
    upgrade(&host).await;
    host.consult(&rig.answering("third")).await.expect_success();
    let health = host.call("health_snapshot", json!({"detail": "full"})).await;
    let fired: Vec<&Value> = health["fired_fault_points"].as_array().expect("a list").iter().collect();
    assert!(fired.len() == 2 && fired.iter().all(|fired| fired["count"] == 1), "{fired:?}");
    assert_eq!(health["restart_count"], 1, "and what was counted is kept");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn health_and_telemetry_go_on_counting() {
    let mut rig = new_rig().with_faults("worker.before_execute@tools/call:consult=panic");
    let mut host = rig.serve().await;
    host.consult(&rig.answering("x")).await.expect_success();
    let (health, telemetry) = (host.health().await, host.call("telemetry_snapshot", json!({})).await);
    let generation = health.number("worker_generation");
    assert_eq!((generation, health.number("restart_count")), (2, 1));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    upgrade(&host).await;
    let after = host.health().await;
    assert!(after.number("uptime_s") > health.number("uptime_s"), "{:#}", after.0);
    assert_eq!(after.number("worker_generation"), generation, "known before there is a new worker");
    assert_eq!(after["last_fault"], health["last_fault"]);
    host.consult(&rig.answering("y")).await.expect_success();
    assert_eq!(host.generation().await, generation + 1, "never used again");
    let rows = |telemetry: &Reply, tool: &str| {
        let rows = telemetry["methods"].as_array().expect("rows").clone();
        rows.into_iter().find(|row| row["method"] == tool).expect("a row")
    };
    let later = host.call("telemetry_snapshot", json!({})).await;
    let (was, is) = (rows(&telemetry, "tools/call:consult"), rows(&later, "tools/call:consult"));
    assert_eq!((was["count"].as_u64(), is["count"].as_u64()), (Some(1), Some(2)));
    assert!(is["max_ms"].as_f64() >= was["max_ms"].as_f64());
    assert_eq!(later["totals"]["restarts"], 1);
    assert_eq!(later["totals"]["rollouts"], 1);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn memory_and_descriptors_stay_flat_over_many_upgrades() {
    let mut rig = new_rig().with("PHONE_OPUS_LOG", "warn");
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    let mut seen = Vec::new();
    for _ in 0..12 {
        upgrade(&host).await;
        host.ping().await;
        host.health().await;
        seen.push((descriptors(&host), resident(host.host_pid()).expect("it runs") / 1024));
    }
    println!("descriptors and KiB after each upgrade: {seen:?}");
    // A look falls between two requests or into one: what stays is what the least of several looks shows.
    let least =
        |looks: &[(usize, u64)]| looks.iter().copied().reduce(|a, b| (a.0.min(b.0), a.1.min(b.1))).expect("looks");
    let (early, late) = (least(&seen[1..5]), least(&seen[8..]));
    assert!(late.1 <= early.1 + 1024, "{seen:?}");
    // A child of the upgrade whose end is not collected yet is a descriptor for a moment.
    let as_early = async || Some(descriptors(&host)).filter(|now| *now <= early.0);
    until("it has no more descriptors than after the first upgrades", as_early).await;
    rig.give_sign("go");
    host.reply(sent).await.expect_success();
    rig.stop_and_check_invariants([host]).await;
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// A value of so many sorted ones.
fn at(sorted: &[Duration], of_100: usize) -> Duration {
    sorted.get((sorted.len() * of_100 / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

fn shown(what: &str, mut gaps: Vec<Duration>) {
    gaps.sort_unstable();
    let worst = gaps.last().copied().unwrap_or_default();
    println!("{what}: p50 {:?}, p99 {:?}, max {worst:?} of {}", at(&gaps, 50), at(&gaps, 99), gaps.len());
}

/// A consult that is open.
struct Open {
    sent: Sent,
    answer: String,
}

#[tokio::test]
async fn upgrades_in_a_row_under_load_lose_nothing() {
    let upgrades = number("PHONE_OPUS_UPGRADES").unwrap_or(8);
    let seed = number("PHONE_OPUS_UPGRADES_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("PHONE_OPUS_UPGRADES={upgrades} PHONE_OPUS_UPGRADES_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let isolation = if rng.bool() { "process" } else { "in_process" };
    let mut rig = new_rig()
        .with("PHONE_OPUS_ISOLATION", isolation)
        .with("PHONE_OPUS_LOG", "warn")
        .with("PHONE_OPUS_PROGRESS_S", "1")
        .with("PHONE_OPUS_MAX_RUNNING", "4");
    let mut host = rig.serve().await;
    let idle = descriptors(&host);
    let params = json!({"notifications": {"toolsListChanged": true}, "_meta": envelope()});
    let stream = host.send("subscriptions/listen", params).await;
    let mut open: Vec<Open> = Vec::new();
    let mut jobs: Vec<(String, String)> = Vec::new();
    let mut lists: Vec<Sent> = Vec::new();
    let (mut asked, mut across) = (0_u64, 0);
    let (mut gaps, mut quiet) = (Vec::new(), Vec::new());
    let mut held: Vec<(usize, u64)> = Vec::new();
    for done in 0..upgrades {
        // Some time of plain service, and then the upgrade; pings without a pause all the while.
        let begin = Instant::now() + Duration::from_millis(rng.u64(20..120));
        let mut under_way: Option<(Option<String>, Instant)> = None;
        let mut worst = Duration::ZERO;
        loop {
            while open.len() < 4 {
                asked += 1;
                let answer = format!("answer {asked}");
                // Most end before the next upgrade, some outlast several.
                let most = if rng.u8(..4) == 0 { 1500 } else { 80 };
                let steps = vec![Step::ToolUse("Grep".into()), Step::DelayMs(rng.u64(..most))];
                let prompt = rig.prompt(Script { steps, answer: Some(answer.clone()), ..Script::default() });
                let mut params = json!({"name": "consult", "arguments": {"prompt": prompt}});
                if rng.u8(..4) == 0 && jobs.len() < asked as usize / 4 {
                    params["arguments"]["background"] = json!(true);
                    let reply = Reply(host.request("tools/call", params).await);
                    jobs.push((reply.str("job_id").to_owned(), answer));
                    continue;
                }
                params["_meta"] = json!({"progressToken": asked});
                open.push(Open { sent: host.send("tools/call", params).await, answer });
            }
            if rng.u8(..8) == 0 {
                lists.push(host.send("tools/list", json!({})).await);
            }
            let asked_at = Instant::now();
            host.ping().await;
            let took = asked_at.elapsed();
            match &under_way {
                None if Instant::now() >= begin => {
                    under_way = Some((image(&host), Instant::now()));
                    reload(&host);
                }
                None => quiet.push(took),
                Some((before, since)) => {
                    worst = worst.max(took);
                    if image(&host) != *before {
                        across += open.iter().filter(|open| !host.is_answered(open.sent)).count();
                        break;
                    }
                    assert!(since.elapsed() < PATIENCE, "upgrade {done} does not come; seed {seed}");
                }
            }
            let (over, still) = open.into_iter().partition::<Vec<Open>, _>(|open| host.is_answered(open.sent));
            open = still;
            for over in over {
                assert_eq!(host.reply(over.sent).await.expect_success().str("response"), over.answer);
            }
        }
        // The first ping the next image answers ends the gap.
        let asked_at = Instant::now();
        host.ping().await;
        gaps.push(worst.max(asked_at.elapsed()));
        held.push((descriptors(&host), resident(host.host_pid()).expect("it runs") / 1024));
        host.generation().await;
    }
    for over in &open {
        assert_eq!(host.reply(over.sent).await.expect_success().str("response"), over.answer);
    }
    for sent in lists {
        assert!(host.answer(sent).await["result"]["tools"].is_array());
    }
    for (job, answer) in jobs {
        let reply = host.call("consult_job", json!({"job_id": job, "wait_s": 60})).await.expect_success();
        assert_eq!(reply.str("response"), answer);
    }
    for token in 1..=asked {
        let notes = host.notifications("notifications/progress").into_iter();
        let own = notes.filter(|note| note["params"]["progressToken"] == token);
        let values: Vec<f64> = own.map(|note| note["params"]["progress"].as_f64().expect("a number")).collect();
        assert!(values.windows(2).all(|pair| pair[0] < pair[1]), "{values:?}");
    }
    rig.expect_runs(usize::try_from(asked).expect("a count"));
    assert_eq!(host.totals().await["rollouts"], upgrades);
    assert_eq!(host.health().await["restart_count"], 0);
    until("nobody is left unwaited for", async || zombies(&host).is_empty().then_some(())).await;
    println!("{isolation}: {asked} consults, {across} times one was open across an upgrade");
    println!("descriptors and KiB after the first and the last upgrade: {:?} {:?}", held.first(), held.last());
    shown("a ping in between", quiet);
    shown("a ping across an upgrade", gaps);
    if let (Some(first), Some(last)) = (held.first(), held.last()) {
        assert!(last.1 < first.1 + 8 * 1024, "{held:?}");
    }
    // Without jobs there are the streams, the runtime's and the store's.
    until("no pipe of a runner is left", async || (descriptors(&host) <= idle + 8).then_some(())).await;
    host.cancel(stream).await;
    rig.stop_and_check_invariants([host]).await;

    // What a client sees instead, which has to connect again.
    let mut rig = new_rig().with("PHONE_OPUS_ISOLATION", isolation).with("PHONE_OPUS_LOG", "warn");
    let mut host = rig.serve().await;
    let mut gaps = Vec::new();
    let mut gone = Vec::new();
    for _ in 0..8 {
        let began = Instant::now();
        host.finish().await;
        let mut next = rig.serve().await;
        next.ping().await;
        gaps.push(began.elapsed());
        gone.push(std::mem::replace(&mut host, next));
    }
    shown("a restart and a greeting", gaps);
    gone.push(host);
    rig.stop_and_check_invariants(gone).await;
}
