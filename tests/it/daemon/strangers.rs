//! A daemon and processes of another user, and of one that may not connect. Only root can be somebody else: everybody else
//! sees the tests say that they are skipped.
//!
//! Laws: L13, L18.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Instant;

use phone_opus::testkit::TestClient;
use phone_opus::testkit::client::REVISION;
use rustix::process::geteuid;

use super::*;

/// Where a stranger tries to come in: a socket.
const DOOR: &str = "STRANGERS_DOOR";

/// The file that ends its tries.
const ENOUGH: &str = "STRANGERS_ENOUGH";

/// Says where people look that a test has shown nothing.
fn skipped(why: &str) {
    // Not by a macro, whose words are kept from who runs the tests.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("SKIPPED: {why}\n").as_bytes());
}

/// Starts as nobody; where this user may not, it is said.
fn as_nobody() -> Option<Start> {
    let start = Start::plain().as_nobody();
    if start.is_none() {
        skipped("only root can start a process as another user");
    }
    start
}

/// Lets everybody look at a directory of the scratch, or nobody again.
fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
}

/// The other process of the tests below: connects again and again, and says what came of it.
#[test]
#[ignore = "the stranger of the other tests"]
fn a_stranger_knocks() {
    let (Some(door), Some(enough)) = (std::env::var_os(DOOR), std::env::var_os(ENOUGH)) else {
        println!("no test has started this");
        return;
    };
    let (door, enough) = (PathBuf::from(door), PathBuf::from(enough));
    let dir = door.parent().expect("a directory");
    let (mut tried, mut came_in, mut seen) = (0_u64, 0_u64, 0_u64);
    while !enough.exists() {
        // The socket is made under another name, which a stranger would have to find.
        let mut names = vec![door.clone()];
        let listed = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        names.extend(listed.filter(|path| path.to_string_lossy().contains("daemon.sock.")));
        seen += names.len() as u64 - 1;
        for name in names {
            tried += 1;
            came_in += u64::from(StdStream::connect(&name).is_ok());
        }
    }
    println!("{{\"tried\": {tried}, \"came_in\": {came_in}, \"seen\": {seen}}}");
}

/// This very program, as nobody, at this door.
fn stranger(door: &Path, enough: &Path) -> Option<tokio::process::Child> {
    let start = as_nobody()?;
    let (first, words) = start.words().split_first()?;
    let mut command = tokio::process::Command::new(first);
    command.args(words).arg(std::env::current_exe().expect("this program"));
    command.args(["--exact", "daemon::strangers::a_stranger_knocks", "--ignored", "--nocapture"]);
    command.env(DOOR, door).env(ENOUGH, enough).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    Some(command.spawn().expect("it runs"))
}

// --- 15: a user's daemon, and root -----------------------------------------------------------------------------------------

#[tokio::test]
async fn root_does_nothing_in_a_directory_where_another_users_daemon_serves() {
    let Some(nobody) = as_nobody() else { return };
    let mut rig = new_rig().with_start(nobody.clone());
    rig.give_away();
    let mut child = rig.daemon(&[]).await;
    let started = status(&rig).await;
    let daemon = the_daemon(&rig).await;
    let state = rig.state_dir().root().to_owned();
    let listed = || {
        let entries = std::fs::read_dir(&state).expect("a directory").flatten();
        let of = |entry: std::fs::DirEntry| (entry.file_name(), entry.metadata().expect("it is there").uid());
        let mut names: Vec<_> = entries.map(of).collect();
        names.sort();
        names
    };
    let before = listed();
    let rig = rig.with_start(Start::plain());
    for words in [&["daemon", "start"][..], &["daemon", "run"], &["daemon", "stop", "--force"], &["daemon", "status"]] {
        let output = rig.run(words).await;
        assert!(!output.status.success(), "{words:?}: {}", said(&output));
    }
    assert_eq!(listed(), before, "root has made something");
    assert!(daemon.lives());
    // By the kernel's word alone: a socket that root can connect to serves nobody but its user.
    let mut peer = Peer::at(&rig.state_dir().daemon_socket()).await.expect("root may connect anywhere");
    let told = peer.hear().await.expect("a line");
    let why = told["message"].as_str().unwrap_or_default();
    assert_eq!(why, "this daemon serves user id 65534 and you are user id 0", "{told}");
    assert!(peer.hear().await.is_none());
    let rig = rig.with_start(nobody);
    assert_eq!(status(&rig).await["generation"], started["generation"]);
    code(&rig.run(&["daemon", "stop"]).await, 0);
    assert!(child.wait().await.expect("it ends").success());
    rig.take_back();
}

// --- 16: no moment in which others could come in ---------------------------------------------------------------------------

#[tokio::test]
async fn a_stranger_who_knocks_all_the_while_never_comes_in() {
    let rig = new_rig().with_start(Start::plain().after("umask 000"));
    // Everything on the way to the state directory is open to everybody.
    mode(&rig.path(""), 0o755);
    let enough = rig.path("enough");
    let Some(stranger) = stranger(&rig.state_dir().daemon_socket(), &enough) else { return };
    for _ in 0..rounds(10) {
        start(&rig, &[]).await;
        code(&rig.run(&["daemon", "stop"]).await, 0);
        until("it has gone", async || daemons(&rig).is_empty().then_some(())).await;
    }
    std::fs::write(&enough, "").expect("a sign");
    let output = stranger.wait_with_output().await.expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return skipped("nobody may not run the tests' program where it lies");
    }
    let line = text.lines().find(|line| line.starts_with('{')).expect("what it saw");
    let told: Value = serde_json::from_str(line).expect("JSON");
    println!("{told}");
    assert!(told["tried"].as_u64() > Some(100), "{told}");
    assert_eq!((&told["came_in"], &told["seen"]), (&json!(0), &json!(0)), "{told}");
    nothing_is_left(&rig).await;
}

// --- 17: whose process it is -----------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_stranger_for_whom_somebody_has_opened_every_door_is_told_whom_it_serves() {
    let Some(nobody) = as_nobody() else { return };
    let rig = new_rig();
    start(&rig, &[]).await;
    let mut old = Peer::of(&rig).await;
    old.ping(1).await;
    let (dir, path) = (rig.state_dir().root().to_owned(), socket(&rig));
    for (path, open) in [(&rig.path(""), 0o755), (&dir, 0o777), (&path, 0o666)] {
        mode(path, open);
    }
    // It has no word for what it is told, but for the client that it is.
    let (first, words) = nobody.words().split_first().expect("words");
    let script =
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.makefile().read())";
    let python =
        tokio::process::Command::new(first).args(words).args(["/usr/bin/python3", "-c", script]).arg(&path).output();
    match python.await {
        Ok(output) if output.status.success() => {
            let told = said(&output);
            assert!(told.contains("this daemon serves user id 0 and you are user id 65534"), "{told}");
            assert_eq!(told.trim().lines().count(), 1, "{told}");
        }
        _ => skipped("no python here that would connect as another user"),
    }
    // Our own clients know better than to speak to anybody where everybody can enter.
    let rig = rig.with_start(nobody);
    let output = rig.run(&["daemon", "status", "--state-dir", &dir.display().to_string()]).await;
    assert!(!output.status.success(), "{}", said(&output));
    let rig = rig.with_start(Start::plain());
    for (path, closed) in [(&path, 0o600), (&dir, 0o700)] {
        mode(path, closed);
    }
    old.ping(2).await;
    end(&rig).await;
}

#[tokio::test]
async fn one_without_a_number_in_its_namespace_is_known_by_the_number_it_has_here() {
    let rig = new_rig();
    let started = start(&rig, &[]).await;
    let dir = rig.state_dir().root().display().to_string();
    let mut command = tokio::process::Command::new("unshare");
    command.arg("--user").arg(rig.program()).args(["daemon", "status", "--json", "--state-dir", &dir]);
    let output = command.env_clear().envs(rig.environment().iter()).stdin(Stdio::null()).output().await;
    match output {
        // It is the same user by the kernel's word, whatever its own namespace calls it.
        Ok(output) if output.status.success() => assert_eq!(parsed(&output)["generation"], started["generation"]),
        Ok(output) if said(&output).contains("unshare") => skipped("no user namespace can be made here"),
        Ok(output) => panic!("{}", said(&output)),
        Err(_) => skipped("there is no `unshare` here"),
    }
    end(&rig).await;
}

// --- 20: a directory that cannot be written --------------------------------------------------------------------------------

#[tokio::test]
async fn where_nothing_can_be_written_the_reason_is_said_within_a_second() {
    let rig = new_rig();
    let closed = rig.path("closed");
    std::fs::create_dir(&closed).expect("a directory");
    let rig = if geteuid().is_root() {
        let Some(nobody) = as_nobody() else { return };
        rig.with_start(nobody)
    } else {
        rig
    };
    if geteuid().is_root() {
        rig.give_away();
    }
    mode(&closed, 0o500);
    let dir = closed.join("state").display().to_string();
    let mut least = LONG;
    for _ in 0..5 {
        let began = Instant::now();
        let output = rig.run(&["daemon", "start", "--state-dir", &dir]).await;
        least = least.min(began.elapsed());
        code(&output, 1);
        assert!(
            said(&output).contains("ermission denied") && said(&output).contains("closed/state"),
            "{}",
            said(&output)
        );
    }
    assert!(least < Duration::from_secs(1), "{least:?}");
    assert!(rig.processes().is_empty());
    if geteuid().is_root() {
        rig.take_back();
    }
}

// --- 21: a client that may not connect -------------------------------------------------------------------------------------

#[tokio::test]
async fn a_client_that_may_not_connect_leaves_a_healthy_daemon_alone() {
    let nobody = if geteuid().is_root() {
        let Some(nobody) = as_nobody() else { return };
        nobody
    } else {
        Start::plain()
    };
    let mut rig = new_rig().with_start(nobody);
    let closed = rig.path("closed");
    std::fs::create_dir(&closed).expect("a directory");
    mode(&closed, 0o700);
    if geteuid().is_root() {
        rig.give_away();
    }
    let path = closed.join("daemon.sock");
    let words = path.display().to_string();
    let mut child = rig.daemon(&["--socket", &words]).await;
    let started = status(&rig).await;
    let daemon = the_daemon(&rig).await;
    let mut old = Peer::at(&path).await.ok();
    // As in a sandbox: the daemon lives, and its door is out of reach.
    mode(&closed, 0o000);
    let work = rig.work();
    for arguments in [&["mcp", "connect"][..], &["mcp", "connect", "--socket", &words]] {
        let mut client: TestClient = rig.host_with(arguments, &work);
        client.handshake(REVISION).await;
        let said = client.call("health_snapshot", json!({"render": "json"})).await["notices"].to_string();
        assert!(said.contains("may not be connected to from here"), "{said}");
        client.consult(&rig.answering("42")).await.expect_success();
        client.finish().await;
    }
    for word in ["start", "status", "stop", "drain", "reload"] {
        let output = rig.run(&["daemon", word]).await;
        code(&output, 1);
        assert!(said(&output).contains("may not"), "{word}: {}", said(&output));
    }
    mode(&closed, 0o700);
    assert_eq!(the_daemon(&rig).await, daemon, "it was displaced");
    assert_eq!(status(&rig).await["generation"], started["generation"]);
    if let Some(old) = &mut old
        && !geteuid().is_root()
    {
        old.ping(1).await;
    }
    code(&rig.run(&["daemon", "stop"]).await, 0);
    assert!(child.wait().await.expect("it ends").success());
    if geteuid().is_root() {
        rig.take_back();
    }
    rig.check_invariants().await;
}
