//! Daemons and bridges of different versions: the real program with another number in it, and lines that stay as they are.
//!
//! Laws: L1, L3, L15, L18.

use phone_opus::testkit::TestClient;
use phone_opus::testkit::client::REVISION;

use super::*;

/// The version of the program under test, and one before it of as many letters.
const OURS: &str = env!("CARGO_PKG_VERSION");
const OLDER: &str = "0.0.0";

// --- 10: versions ----------------------------------------------------------------------------------------------------------

/// The program under test as an older version of itself: the same bytes but for its number.
fn older(rig: &Rig) -> PathBuf {
    assert_eq!(OURS.len(), OLDER.len(), "another version of as many letters");
    let mut bytes = std::fs::read(rig.program()).expect("the program");
    let mut at = 0;
    let ours = OURS.as_bytes();
    while let Some(found) = bytes[at..].windows(ours.len()).position(|window| window == ours) {
        bytes[at + found..at + found + ours.len()].copy_from_slice(OLDER.as_bytes());
        at += found + ours.len();
    }
    let path = rig.path("older-phone-opus");
    put(&bytes, &path);
    path
}

/// Puts a program into another's place, by a process of its own: one that is open for writing here could not be run.
fn put(bytes: &[u8], path: &Path) {
    let new = path.with_extension("new");
    std::fs::write(&new, bytes).expect("a file");
    let copied = std::process::Command::new("/bin/sh")
        .args(["-c", "cp \"$1\" \"$1.x\" && chmod 700 \"$1.x\" && mv \"$1.x\" \"$2\" && rm \"$1\"", "sh"])
        .args([&new, path])
        .status();
    assert!(copied.expect("a shell").success(), "it is there");
}

async fn run(rig: &Rig, program: &Path, words: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(program);
    command.args(words).env_clear().envs(rig.environment().iter()).current_dir(rig.work()).stdin(Stdio::null());
    command.output().await.expect("it runs")
}

fn bridge(rig: &Rig, program: &Path) -> TestClient {
    let mut command = tokio::process::Command::new(program);
    command.args(["mcp", "connect"]).env_clear().envs(rig.environment().iter()).current_dir(rig.work());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    TestClient::of_process(command.spawn().expect("it runs"))
}

async fn build(rig: &Rig) -> String {
    let told = Peer::of(rig).await.asked(json!({"type": "hello"})).await;
    told["build"].as_str().expect("a version").to_owned()
}

#[tokio::test]
async fn bridges_and_daemons_of_either_version_serve_their_clients() {
    for (old_daemon, old_bridge) in [(false, false), (false, true), (true, false), (true, true)] {
        let rig = new_rig();
        let (old, new) = (older(&rig), rig.program().to_owned());
        let of = |is_old: bool| if is_old { &old } else { &new };
        let case = format!("old daemon: {old_daemon}, old bridge: {old_bridge}");
        code(&run(&rig, of(old_daemon), &["daemon", "start"]).await, 0);
        let daemon = the_daemon(&rig).await;
        assert_eq!(build(&rig).await, if old_daemon { OLDER } else { OURS }, "{case}");
        let mut client = bridge(&rig, of(old_bridge));
        client.handshake(REVISION).await;
        client.consult(&rig.answering("42")).await.expect_success();
        let health = client.health().await;
        assert!(!health.has("notices"), "{case}: {:#}", health.0);
        // Its file is what it was, so there is no next version of an old one.
        assert_eq!(the_daemon(&rig).await.pid, daemon.pid, "{case}");
        client.finish().await;
        // Either version ends either.
        code(&run(&rig, of(!old_daemon), &["daemon", "stop"]).await, 0);
        nothing_is_left(&rig).await;
    }
}

#[tokio::test]
async fn the_first_new_bridge_brings_an_old_daemon_to_its_next_version_and_no_client_notices() {
    let rig = new_rig();
    let old = older(&rig);
    let place = rig.path("phone-opus");
    put(&std::fs::read(&old).expect("the program"), &place);
    code(&run(&rig, &place, &["daemon", "start"]).await, 0);
    let daemon = the_daemon(&rig).await;
    let mut first = bridge(&rig, &place);
    first.handshake(REVISION).await;
    let sent = first.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    assert_eq!(build(&rig).await, OLDER);
    // The package is upgraded, and the next client comes.
    put(&std::fs::read(rig.program()).expect("the program"), &place);
    let mut second = bridge(&rig, &place);
    second.handshake(REVISION).await;
    second.consult(&rig.answering("43")).await.expect_success();
    until_seen("the daemon is of the next version", async || {
        let told = match Peer::at(&socket(&rig)).await {
            Ok(mut peer) => peer.asked(json!({"type": "hello"})).await,
            Err(error) => json!(error.to_string()),
        };
        if told["build"] == OURS { Ok(()) } else { Err(told.to_string()) }
    })
    .await;
    assert_eq!(the_daemon(&rig).await.pid, daemon.pid, "it replaced itself in place");
    rig.give_sign("go");
    first.reply(sent).await.expect_success();
    rig.expect_runs(2);
    for client in [&mut first, &mut second] {
        client.consult(&rig.answering("44")).await.expect_success();
        client.finish().await;
    }
    end(&rig).await;
}

#[tokio::test]
async fn what_every_version_says_is_answered_whatever_else_it_says() {
    let rig = new_rig();
    let started = start(&rig, &[]).await;
    for line in [
        json!({"type": "hello"}),
        json!({"type": "hello", "proto": 99, "of_a_later_version": [1]}),
        json!({"type": "status", "of_a_later_version": {}}),
    ] {
        let told = Peer::of(&rig).await.asked(line.clone()).await;
        assert_eq!((&told["type"], &told["generation"]), (&line["type"], &started["generation"]), "{told}");
        assert!(told["proto"].is_u64() && told["build"].is_string() && told["pid"].is_u64(), "{told}");
    }
    // A bridge of any version opens its session; what it says beside that is no reason to refuse it.
    for (proto, build) in [(1, "0.0.0"), (1, "999.0.0"), (2, "999.0.0")] {
        let mut peer = Peer::of(&rig).await;
        let opened = peer
            .asked(json!({"type": "session_open", "proto": proto, "build": build, "session": "k",
            "cwd": rig.work(), "of_a_later_version": true}))
            .await;
        assert_eq!((&opened["type"], &opened["build"]), (&json!("session_opened"), &json!(OURS)), "{opened}");
        peer.ping(1).await;
    }
    let told = Peer::of(&rig).await.asked(json!({"type": "shutdown", "of_a_later_version": 1})).await;
    assert_eq!(told, json!({"type": "ok", "to": "shutdown"}));
    nothing_is_left(&rig).await;
}
