//! Cells about what the program runs into: a store that is held or full, a runner that stands still, a new version that
//! leaves something behind, output that nobody reads.
//!
//! Owns: those cells. May not know: the others.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::json;

use super::super::client::{Reply, TestClient};
use super::super::outputs::closed_pipe;
use super::super::places::remove;
use super::super::processes::{self, Role};
use super::super::rig::Rig;
use super::super::trouble::{FileFate, ProgramFile};
use super::super::wait::{PATIENCE, Waiting};
use super::{Seen, Tried, lawful, over, world};

/// How long the store is held: longer than it is waited for at a time.
const HELD: Duration = Duration::from_secs(6);

/// An answer that comes while another program holds the store.
pub(super) async fn held_store(tried: &Tried) -> Seen {
    let mut rig = world(tried);
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    // Held before the agent's process is written down, the agent would not be started.
    let waiting = Waiting::until("the agent's process is recorded", PATIENCE);
    while !rig.jobs().await.iter().any(|job| job.process.is_some_and(|process| process.pid > 0)) {
        waiting.again(|| format!("{:?}", rig.processes())).await;
    }
    let held = rig.hold_store();
    rig.give_sign("go");
    let began = Instant::now();
    let waiting = Waiting::until("the store was held for long enough", PATIENCE);
    while began.elapsed() < HELD {
        waiting.again(|| format!("{:?}", began.elapsed())).await;
    }
    drop(held);
    let reply = host.reply(sent).await;
    let job = rig.only_job_over().await;
    let stored = job.outcome.as_ref().and_then(|outcome| outcome.response.as_deref()) == Some("done");
    told(&rig, host, &reply, stored).await
}

/// An answer that finds the disk full, and room a moment later.
pub(super) async fn full_disk(tried: &Tried) -> Seen {
    let mut rig = world(tried);
    let Some(disk) = rig.small_disk(4 << 20) else { return ("no disk can be mounted here".to_owned(), None) };
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    disk.fill();
    rig.give_sign("go");
    let reply = host.reply(sent).await;
    disk.free();
    let job = rig.only_job_over().await;
    let stored = job.outcome.as_ref().and_then(|outcome| outcome.response.as_deref()) == Some("done");
    told(&rig, host, &reply, stored).await
}

async fn told(rig: &Rig, host: TestClient, reply: &Reply, stored: bool) -> Seen {
    let told = !reply.is_error() && reply["response"] == "done";
    let runs = rig.runs().len();
    let word = |yes, what: &str| if yes { what.to_owned() } else { format!("not {what}") };
    let seen = format!("{} and {}, {runs} run", word(told, "told"), word(stored, "stored"));
    over(rig, host, (seen, Some(told && stored && runs == 1))).await
}

/// A job is cancelled whose runner stands still: only the runner could end its agent.
pub(super) async fn frozen_runner(tried: &Tried) -> Seen {
    let mut rig = world(tried);
    let mut host = rig.serve().await;
    let job = host.consult_in_background(&rig.hanging("begun")).await;
    rig.wait_for_sign("begun").await;
    if !processes::are_visible() {
        return ("processes cannot be seen here".to_owned(), None);
    }
    rig.freeze(Role::Runner);
    let began = Instant::now();
    host.call("consult_cancel", json!({"job_id": job})).await;
    let reply = host.job(&job).await;
    let left = rig.agents().len();
    let within = began.elapsed() < Duration::from_secs(30);
    let right = reply.str("status") == "cancelled" && left == 0 && within;
    let words = if left == 0 { "nothing".to_owned() } else { format!("{left} processes") };
    let seen = format!("{words} within 30 s; {}", reply.str("status"));
    over(&rig, host, (seen, Some(right))).await
}

/// A world around a copy of the program, which can be replaced; a hand-over stays where it can be seen for a moment.
fn replaceable(tried: &Tried) -> (Rig, PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let copy = dir.path().join("phone-opus");
    std::fs::copy(&tried.program, &copy).expect("a copy");
    (tried.part.in_world(Rig::new(&copy)), copy, dir)
}

/// A new version is tried that starts a process in a session of its own without an environment, and fails.
pub(super) async fn trial(tried: &Tried) -> Seen {
    if !processes::are_visible() {
        return ("processes cannot be seen here".to_owned(), None);
    }
    let (mut rig, copy, _dir) = replaceable(tried);
    let mut host = rig.serve().await;
    let begun = rig.sign("tried");
    let number = 100_000_000 + std::process::id();
    let (sign, deaf) = (begun.display(), "trap \"\" TERM HUP");
    let away = format!("env -i setsid sh -c '{deaf}; touch {sign}; exec sleep {number}' >/dev/null 2>&1 </dev/null &");
    replace(&copy, &format!("#!/bin/sh\n{away}\nwhile [ ! -e {sign} ]; do :; done\nexit 3\n"));
    kill_process(host.host_pid(), Signal::USR2).expect("it runs");
    let waiting = Waiting::until("the new version was tried", PATIENCE);
    let verdict = loop {
        let health = host.call("health_snapshot", json!({})).await;
        if let Some(verdict) = health["rollout"]["last"]["verdict"].as_str() {
            break verdict.to_owned();
        }
        waiting.again(|| format!("{:#}", health["rollout"])).await;
    };
    let left = processes::on_a_command_line(&number.to_string());
    let seen = if left.is_some() { "its child" } else { "nothing" };
    let right = left.is_none() && begun.exists() && verdict == "exited";
    over(&rig, host, (format!("{seen}; `{verdict}`"), Some(right))).await
}

/// What directories list of a server's state while it is handed over to another image of it.
pub(super) async fn snapshot(tried: &Tried) -> Seen {
    let mut rig = world(tried).with_faults("rollout.before_exec#*=delay:500");
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    kill_process(host.host_pid(), Signal::USR2).expect("it runs");
    let log = rig.path("host-1.stderr");
    let waiting = Waiting::until("it is being handed over", PATIENCE);
    while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains("rollout.before_exec")) {
        waiting.again(|| "not yet".to_owned()).await;
    }
    let listed = std::fs::read_dir(rig.state_dir().root()).expect("a directory").flatten();
    let listed = listed.filter(|entry| entry.file_name().to_string_lossy().starts_with("handover")).count();
    let waiting = Waiting::until("another image serves", PATIENCE);
    while host.call("health_snapshot", json!({})).await["rollout"]["adopted"] != 1 {
        waiting.again(|| "not yet".to_owned()).await;
    }
    rig.give_sign("go");
    let answered = host.reply(sent).await["response"] == "done";
    let seen = if listed == 0 { "nothing".to_owned() } else { format!("{listed} files") };
    let word = if answered { "the call under way is answered" } else { "the call under way is lost" };
    over(&rig, host, (format!("{seen}; {word}"), Some(listed == 0 && answered))).await
}

/// The program's file loses the permission to be run while it serves.
pub(super) async fn not_run(tried: &Tried) -> Seen {
    let (mut rig, copy, _dir) = replaceable(tried);
    let player = rig.player();
    remove(&player);
    std::os::unix::fs::symlink(&tried.program, player).expect("a link");
    rig.set("PHONE_OPUS_ROLLOUT", "off");
    let mut host = rig.serve().await;
    let file = ProgramFile::new(&copy);
    let done = file.befall(FileFate::NotRun);
    let reply = host.consult(&rig.answering("42")).await;
    let right = done && !reply.is_error() && reply["response"] == "42";
    let seen = if right { "answered".to_owned() } else { reply.text().to_owned() };
    let seen = over(&rig, host, (seen, Some(right))).await;
    file.undo();
    seen
}

/// An answer is shown to a pipe nobody reads any more.
pub(super) async fn closed_output(tried: &Tried) -> Seen {
    let rig = world(tried);
    let begun = rig.run(&["consult", "--background", "--json", &rig.answering("42")]).await;
    let job = rig.only_job_over().await;
    let id = job.id.to_string();
    let shown = rig.run_into(&["jobs", "show", &id], closed_pipe()).await;
    let quiet = shown.stderr.is_empty();
    let unread = rig.only_job_over().await.read_at.is_none();
    let code = shown.status.code().map_or("a signal".to_owned(), |code| format!("code {code}"));
    let words = if quiet { "not a word" } else { "words on stderr" };
    let kept = if unread { "unread" } else { "taken for read" };
    let right = begun.status.success() && shown.status.code() == Some(141) && quiet && unread;
    lawful(&rig, &[], (format!("{code}, {words}; the answer stays {kept}"), Some(right))).await
}

/// Another program in a program's place, written by another process: one that is open for writing here while something forks
/// could not be run.
fn replace(program: &Path, text: &str) {
    let written = std::process::Command::new("/bin/sh")
        .args(["-c", "printf %s \"$2\" > \"$1.new\" && chmod 755 \"$1.new\" && mv \"$1.new\" \"$1\"", "sh"])
        .arg(program)
        .arg(text)
        .status();
    assert!(written.expect("a shell").success());
}
