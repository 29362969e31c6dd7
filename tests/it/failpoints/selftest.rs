//! `phone-opus selftest`: what it says when every law holds, and that it says so when one does not.
//!
//! Laws: L7, L13, and that the self-test finds each law that is broken on purpose.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::process::{Output, Stdio};
use std::time::Duration;

use phone_opus::testkit::custody_board::AgentPart;
use phone_opus::testkit::processes::Role;
use phone_opus::testkit::rig::Through;
use phone_opus::testkit::scoreboard::{Draw, rows};
use phone_opus::testkit::wait::until;
use phone_opus::testkit::{Rig, tried_program};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

/// Longest one run may take: sixteen seconds alone, and several run beside each other here, each of them with twenty worlds.
const PATIENCE: Duration = Duration::from_secs(240);

/// Runs the command in a world of its own, in which it makes more of them, and proves that nothing is left of any.
async fn selftest(arguments: &[&str]) -> Output {
    let mut rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus"))).with_patience(PATIENCE);
    // Scratch directories of the cases lie in this one's.
    let scratch = rig.path("cases");
    std::fs::create_dir(&scratch).expect("a directory");
    rig.set("TMPDIR", scratch.display().to_string());
    let output = rig.run(&[&["selftest"], arguments].concat()).await;
    assert_eq!(std::fs::read_dir(&scratch).expect("it is there").count(), 0, "scratch directories are left");
    rig.check_invariants().await;
    output
}

/// Whoever ends it, however it was asked, ends what it was trying.
#[tokio::test]
async fn one_that_is_ended_leaves_nothing_alive_and_says_by_what() {
    let asked: [&[&str]; 2] =
        [&["selftest", "--custody"], &["selftest", "--only", "worker.before_reply@tools/call:consult=hang"]];
    for words in asked {
        for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
            let mut rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus"))).with_patience(PATIENCE);
            let scratch = rig.path("cases");
            std::fs::create_dir(&scratch).expect("a directory");
            rig.set("TMPDIR", scratch.display().to_string());
            let mut command = rig.command(words);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
            // Somebody's agent, or a world it is just being started in.
            until("a world of it lives", async || rig.all(Role::Host).pop()).await;
            let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw).expect("it lives");
            kill_process(pid, signal).expect("a signal");
            let mut said = String::new();
            child.stderr.take().expect("piped").read_to_string(&mut said).await.expect("text");
            let status = child.wait().await.expect("it ends");
            assert_eq!(status.code(), Some(128 + signal.as_raw()), "{words:?} {signal:?}: {said}");
            assert!(said.contains("ended by signal"), "{said}");
            assert_eq!(
                std::fs::read_dir(&scratch).expect("it is there").count(),
                0,
                "{words:?} {signal:?}: directories are left"
            );
            rig.check_invariants().await;
        }
    }
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

#[track_caller]
fn parsed(output: &Output, code: i32) -> Value {
    let said = text(output);
    assert_eq!(output.status.code(), Some(code), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&said).expect("one JSON object and nothing else")
}

#[tokio::test]
async fn a_row_of_each_kind_of_end_holds_on_the_real_program() {
    for (only, played) in [
        ("worker.before_execute@tools/call:consult=kill", 2),
        ("worker.before_reply@tools/call:consult=hang", 2),
        ("worker.after_reply@tools/call:consult=torn", 0),
        ("stdio.write#2=torn", 1),
        ("runner.before_terminal=kill", 1),
        ("runner.start=error", 1),
        ("store.commit@append=", 7),
        ("sessions.supervise@over=", 7),
        ("ledger.record", 5),
    ] {
        let output = selftest(&["--json", "--only", only]).await;
        if played == 0 {
            assert_eq!(output.status.code(), Some(2), "{only}: no such row");
            continue;
        }
        let board = parsed(&output, 0);
        assert_eq!(
            (&board["ok"], &board["build"], &board["version"]),
            (&json!(true), &json!(env!("CARGO_PKG_VERSION")), &json!(1))
        );
        let rows = board["rows"].as_array().expect("rows");
        assert_eq!(rows.len(), played, "{only}");
        for row in rows {
            assert_eq!((&row["holds"], &row["left"], &row["fired"]), (&json!(true), &json!(0), &json!(1)), "{row}");
            assert!(row["runs"].as_u64() <= Some(1) && row["ms"].is_u64(), "{row}");
        }
    }
}

#[tokio::test]
async fn a_row_of_each_kind_holds_for_the_client_of_a_daemon() {
    let mut played = 0;
    for only in [
        "unix.accept",
        "jobs.after_accept",
        "jobs.supervise@attach",
        "stdio.write#2=",
        "rollout.after_restore",
        "runner.before_terminal=kill",
    ] {
        let board = parsed(&selftest(&["--json", "--through", "daemon", "--only", only]).await, 0);
        let rows = board["rows"].as_array().expect("rows");
        assert!(!rows.is_empty(), "{only}");
        played += rows.len();
        for row in rows {
            assert_eq!((&row["holds"], &row["left"], &row["fired"]), (&json!(true), &json!(0), &json!(1)), "{row}");
            // Whatever becomes of a daemon, its client keeps its connection.
            assert_eq!(row["recovered"], "yes", "{row}");
            assert!(row["replay"].as_str().is_some_and(|again| again.contains("--through daemon")), "{row}");
        }
    }
    assert!(played > 40, "{played} rows");
}

#[tokio::test]
async fn a_panic_anywhere_holds_and_is_shown_as_a_table() {
    let output = selftest(&["--only", "=panic"]).await;
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let count = rows(Through::Streams).iter().filter(|row| row.name().contains("=panic")).count();
    assert_eq!(said.lines().filter(|line| line.starts_with("ok ")).count(), count, "{said}");
    for heading in ["answered", "recovered", "generation", "runs", "orphans", "time"] {
        assert!(said.lines().next().is_some_and(|line| line.contains(heading)), "{heading}: {said}");
    }
    assert!(said.contains(&format!("all laws hold: {count} played in")), "{said}");
}

#[tokio::test]
async fn a_broken_law_is_named_with_its_row_and_how_to_see_it_again() {
    let board = parsed(&selftest(&["--json", "--control", "--seed", "5"]).await, 1);
    assert_eq!((&board["ok"], &board["seed"]), (&json!(false), &json!(5)));
    for (row, law, detail) in [
        ("open-file", "L13: files are 0600", "state/open is 644"),
        ("wrong-answer", "the row", "the caller was told `success`, and `busy` is promised"),
    ] {
        let rows = board["rows"].as_array().expect("rows");
        let row = rows.iter().find(|shown| shown["name"].as_str().is_some_and(|name| name.ends_with(row)));
        let row = row.expect("the row");
        let broken = row["broken"].as_array().expect("laws");
        assert_eq!((&row["holds"], broken.len()), (&json!(false), 1), "{row}");
        let told = |field: &str, text: &str| broken[0][field].as_str().is_some_and(|told| told.contains(text));
        assert!(told("law", law) && told("detail", detail), "{row}");
        let again = row["replay"].as_str().expect("a text");
        for part in ["PHONE_OPUS_FAULTS='worker.before_execute", "PHONE_OPUS_FAULT_SEED=5", "--control"] {
            assert!(again.contains(part), "{part} is not in {again}");
        }
    }
    let output = selftest(&["--control", "--only", "open-file"]).await;
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("FAIL worker.before_execute") && said.contains("L13: files are 0600"), "{said}");
    assert!(said.contains("1 of 1 broke a law"), "{said}");
}

#[tokio::test]
async fn a_seed_is_played_again_as_it_was_drawn() {
    let draw = Draw::of(7);
    for _ in 0..2 {
        let board = parsed(&selftest(&["--json", "--replay", "7"]).await, 0);
        let row = &board["rows"][0];
        assert_eq!((&row["plan"], &row["name"]), (&json!(draw.plan), &json!("seed 7")));
    }
    // A soak of no time plays its first seed, and says which.
    let output = selftest(&["--soak", "0", "--seed", "8", "--at-once", "1"]).await;
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("seed 8") && said.contains(&Draw::of(8).plan) && said.contains("all laws hold: 1"), "{said}");
}

#[tokio::test]
async fn what_is_asked_for_wrongly_is_refused_before_anything_is_played() {
    for wrong in [
        &["--only", "no such row"][..],
        &["--only", "worker.", "--only", "runner."],
        &["--soak", "soon"],
        &["--soak", "1", "--replay", "1"],
        &["--at-once", "0"],
        &["--through", "a_window"],
        &["--through", "daemon", "--soak", "1"],
        &["--seed", "-1"],
    ] {
        let output = selftest(wrong).await;
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", text(&output));
        assert!(!output.stderr.is_empty(), "{wrong:?}");
    }
    let listed = selftest(&["--list"]).await;
    assert_eq!(text(&listed).lines().count(), rows(Through::Streams).len());
    let listed = parsed(&selftest(&["--list", "--json", "--only", "runner.start=kill"]).await, 0);
    assert_eq!(listed["rows"][0]["answer"], "success", "{listed}");
}

#[tokio::test]
async fn every_cell_of_the_custody_scoreboard_is_right() {
    let board = parsed(&selftest(&["--custody", "--json"]).await, 0);
    let cells = board["cells"].as_array().expect("cells");
    let wrong = |cell: &&Value| cell["right"] == json!(false);
    assert_eq!((cells.len(), cells.iter().filter(wrong).count()), (33, 0), "{board:#}");
}

#[tokio::test]
async fn every_cell_of_the_custody_scoreboard_is_right_for_the_clients_of_a_daemon() {
    let board = parsed(&selftest(&["--custody", "--through", "daemon", "--json"]).await, 0);
    let cells = board["cells"].as_array().expect("cells");
    let wrong = |cell: &&Value| cell["right"] == json!(false);
    assert_eq!((cells.len(), cells.iter().filter(wrong).count()), (31, 0), "{board:#}");
}

#[tokio::test]
async fn each_agent_is_handed_its_own_keys_and_nobody_elses() {
    let board = parsed(&selftest(&["--custody", "--agent", "all", "--only", "keys of every agent", "--json"]).await, 0);
    let cells = board["cells"].as_array().expect("cells");
    assert!(cells.iter().all(|cell| cell["right"] == json!(true)), "{board:#}");
    let agents: Vec<String> = AgentPart::all().map(|part| part.name().to_owned()).collect();
    let asked: Vec<&str> = cells.iter().step_by(2).filter_map(|cell| cell["agent"].as_str()).collect();
    assert_eq!((asked, cells.len()), (agents.iter().map(String::as_str).collect(), 2 * agents.len()));
    let output = selftest(&["--custody", "--agent", "codex", "--only", "no such cell"]).await;
    assert_eq!(output.status.code(), Some(2));
}
