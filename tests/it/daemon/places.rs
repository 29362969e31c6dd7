//! A daemon where its first place cannot have a socket, on a machine that stands still, and under a service manager of a
//! test's own.
//!
//! Laws: L8, L18.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::Instant;

use phone_opus::testkit::TestClient;
use phone_opus::testkit::client::REVISION;
use phone_opus::testkit::rig::FAULTS;

use super::*;

// --- 9: file systems without sockets ---------------------------------------------------------------------------------------

#[tokio::test]
async fn where_the_file_system_has_no_sockets_the_runtime_directory_has_one() {
    let mut rig = new_rig();
    let run = rig.path("r");
    std::fs::create_dir(&run).expect("a runtime directory");
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o700)).expect("a mode");
    rig.set("XDG_RUNTIME_DIR", run.display().to_string());
    rig.set(FAULTS, "unix.bind=error");
    let started = start(&rig, &[]).await;
    let path = socket(&rig);
    assert!(path.starts_with(&run), "{}", path.display());
    assert!(!rig.state_dir().daemon_socket().exists());
    // Clients go by the record: without the directory it lies in, and without the plan.
    rig.unset(FAULTS);
    rig.unset("XDG_RUNTIME_DIR");
    assert_eq!(status(&rig).await["generation"], started["generation"]);
    let work = rig.work();
    let mut client = rig.host_with(&["mcp", "connect"], &work);
    client.handshake(REVISION).await;
    client.consult(&rig.answering("42")).await.expect_success();
    assert_eq!(daemons(&rig).len(), 1, "the bridge has started another one");
    client.finish().await;
    end(&rig).await;
    assert!(!path.exists(), "its socket is left");
}

#[tokio::test]
async fn where_no_place_can_have_a_socket_each_is_named_and_nothing_is_left() {
    let mut rig = new_rig();
    rig.set(FAULTS, "unix.bind#*=error");
    let began = Instant::now();
    let output = rig.run(&["daemon", "start"]).await;
    code(&output, 1);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let said = said(&output);
    assert!(said.contains("daemon.sock") && said.contains("/tmp/phone_opus-"), "{said}");
    // The client of a bridge has its tools all the same.
    let work = rig.work();
    let mut client = rig.host_with(&["mcp", "connect"], &work);
    client.handshake(REVISION).await;
    client.consult(&rig.answering("42")).await.expect_success();
    client.finish().await;
    nothing_is_left(&rig).await;
}

#[tokio::test]
async fn one_that_ends_before_it_has_a_socket_is_replaced_by_the_next_start() {
    for action in ["exit", "kill", "abort", "panic"] {
        let mut rig = new_rig();
        rig.set(FAULTS, format!("unix.bind={action}"));
        let output = rig.run(&["daemon", "start"]).await;
        code(&output, 1);
        assert!(!said(&output).is_empty(), "{action}");
        until("it has gone", async || daemons(&rig).is_empty().then_some(())).await;
        assert!(!rig.state_dir().daemon_socket().exists() && !rig.state_dir().daemon_record().exists(), "{action}");
        rig.unset(FAULTS);
        assert_eq!(start(&rig, &[]).await["started"], true, "{action}");
        end(&rig).await;
    }
}

// --- 23: a machine that stands still ---------------------------------------------------------------------------------------

/// How long it stands still: longer than every answer is waited for.
const STILL: Duration = Duration::from_secs(5);

async fn bridge(rig: &mut Rig) -> TestClient {
    let work = rig.work();
    let mut client = rig.host_with(&["mcp", "connect"], &work);
    client.handshake(REVISION).await;
    client.call("consult_jobs", json!({})).await;
    client
}

/// Nobody has taken the daemon for lost, and it has restarted nothing of its own.
async fn expect_nothing_happened(client: &mut TestClient) {
    let health = client.health().await;
    assert!(!health.has("notices"), "{:#}", health.0);
    assert_eq!(health["restart_count"], 0, "{:#}", health.0);
    assert_eq!(health["rollout"]["adopted"], 0, "{:#}", health.0);
}

#[tokio::test]
async fn a_daemon_or_a_bridge_that_stands_still_for_five_seconds_is_the_same_afterwards() {
    for roles in [&[Role::Host][..], &[Role::Bridge], &[Role::Host, Role::Bridge, Role::Runner]] {
        let mut rig = new_rig();
        let mut client = bridge(&mut rig).await;
        let daemon = the_daemon(&rig).await;
        let generation = status(&rig).await["generation"].clone();
        let consult = client.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
        rig.wait_for_sign("begun").await;
        for role in roles {
            rig.freeze(*role);
        }
        // Asked of nobody who could answer now.
        let asked = client.start("consult_jobs", json!({})).await;
        // Not a wait for anything: the time in which nothing may be done about it.
        tokio::time::sleep(STILL).await;
        for role in roles {
            rig.thaw(*role);
        }
        assert!(!client.reply(asked).await.is_error(), "{roles:?}");
        rig.give_sign("go");
        client.reply(consult).await.expect_success();
        expect_nothing_happened(&mut client).await;
        assert_eq!(the_daemon(&rig).await, daemon, "{roles:?}");
        assert_eq!(status(&rig).await["generation"], generation, "{roles:?}");
        rig.expect_runs(1);
        client.finish().await;
        end(&rig).await;
        rig.stop_and_check_invariants([client]).await;
    }
}

// --- 25: a service manager of a test's own ---------------------------------------------------------------------------------

/// Starts the daemon on this socket as service managers do: it is descriptor 3, and the variables say so for this process.
fn activate(rig: &Rig, listener: &UnixListener) -> tokio::process::Child {
    let passed = OwnedFd::from(listener.try_clone().expect("a copy"));
    let script =
        r#"exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_FDNAMES=phone-opus LISTEN_PID=$$; exec "$0" daemon run"#;
    let mut command = tokio::process::Command::new("/bin/sh");
    command.args(["-c", script]).arg(rig.program()).env_clear().envs(rig.environment().iter()).kill_on_drop(true);
    command.stdin(Stdio::from(passed)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs")
}

#[tokio::test]
async fn one_that_is_activated_in_vain_answers_a_hundred_and_one_that_is_not_serves_on_the_same_socket() {
    let mut rig = new_rig();
    rig.configure("max_running = 0\n");
    let path = door(&rig);
    let listener = UnixListener::bind(&path).expect("a socket");
    // They stand at the door before there is anybody, as those do for whom a manager starts one, and have asked something.
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let mut peer = Peer::at(&path).await.expect("it listens");
        peer.say(&json!({"type": "session_open", "proto": 1, "session": "k", "cwd": "/"})).await;
        waiting.push(peer);
    }
    let began = Instant::now();
    let mut daemon = activate(&rig, &listener);
    for _ in 0..50 {
        waiting.push(Peer::at(&path).await.expect("it listens"));
    }
    for (at, peer) in waiting.iter_mut().enumerate() {
        let told = peer.hear().await.expect("a line");
        assert_eq!((&told["type"], &told["to"]), (&json!("error"), &json!("start")), "client {at}: {told}");
        assert!(told["message"].as_str().is_some_and(|text| text.contains("max_running")), "{told}");
        assert!(peer.hear().await.is_none(), "client {at} is told one line");
    }
    assert!(
        daemon.try_wait().expect("it can be asked").is_none(),
        "it ended at once, and would be started again at once"
    );
    assert!(daemon.wait().await.expect("it ends").success());
    // Twenty such starts in two seconds are too many for systemd.
    assert!(began.elapsed() > Duration::from_secs(4), "{:?}", began.elapsed());
    assert!(path.exists(), "the manager's socket is gone");
    // The next one finds a configuration it can use.
    rig.configure("");
    let mut daemon = activate(&rig, &listener);
    let mut peer = Peer::at(&path).await.expect("it listens");
    peer.open(&rig, &rig.work()).await;
    peer.call(2, &rig.answering("42")).await;
    assert_eq!(response(&peer.answer(2).await.expect("an answer"))["response"], "42");
    assert_eq!(socket(&rig), path);
    drop(peer);
    code(&rig.run(&["daemon", "stop"]).await, 0);
    assert!(daemon.wait().await.expect("it ends").success());
    assert!(path.exists(), "the manager's socket is gone");
    nothing_is_left(&rig).await;
}
