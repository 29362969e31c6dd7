//! The daemon's process as shells, service managers and clients meet it: how it starts, what it takes over and leaves behind, how
//! it is found, asked and ended. Each test is one way in which such processes are known to fail.
//!
//! | | known to fail | shown by |
//! | --- | --- | --- |
//! | 1 | stale files and pids after a kill | `one_that_was_killed_is_replaced_whatever_it_left_behind` |
//! | 2 | a stored pid is somebody else's by now | `a_number_in_the_record_is_nobodys_to_be_ended` |
//! | 3 | alive, and does not serve | `bridge::real::a_daemon_that_stands_still_is_left_alone_and_this_process_serves`, `bridge::skew::a_daemon_that_does_not_answer_costs_its_client_less_than_three_seconds` |
//! | 4 | many start at once | `fifty_who_start_at_once_have_one`, `bridge::real::fifty_clients_at_once_have_one_daemon` |
//! | 5 | the old one takes the new one's socket away | `one_that_stops_takes_nothing_of_the_next_one_away` |
//! | 6 | long paths | `a_state_directory_of_any_length_has_a_door` |
//! | 7 | client and daemon compute different paths | `a_client_of_any_environment_comes_to_the_same_one` |
//! | 8 | cleaners | `a_door_that_was_cleaned_away_is_made_again_and_sessions_go_on` |
//! | 9 | file systems without sockets, or of another machine | `places::where_the_file_system_has_no_sockets_the_runtime_directory_has_one`, `places::where_no_place_can_have_a_socket_each_is_named_and_nothing_is_left`, `a_record_of_another_machine_leads_nowhere` |
//! | 10 | versions | `versions::bridges_and_daemons_of_either_version_serve_their_clients`, `versions::the_first_new_bridge_brings_an_old_daemon_to_its_next_version_and_no_client_notices`, `versions::what_every_version_says_is_answered_whatever_else_it_says`, `bridge::skew` |
//! | 11 | pipes of the starter are held | `who_captures_the_output_of_a_start_is_not_kept`, `two_hundred_descriptors_of_the_starter_are_held_by_no_daemon` |
//! | 12 | its directory is kept busy, or deleted | `the_directory_it_was_started_in_may_go_and_others_are_consulted_in_theirs` |
//! | 13 | ends with its terminal | `it_outlives_the_session_and_the_group_of_whoever_started_it` |
//! | 14 | a client comes while it ends by itself | `who_comes_while_it_ends_by_itself_is_served_by_the_next_one` |
//! | 15 | root in a user's directory | `in_another_users_directory_nothing_is_started_and_nothing_made`, `strangers::root_does_nothing_in_a_directory_where_another_users_daemon_serves` |
//! | 16 | umask, and a moment in which others could connect | `whatever_the_umask_nobody_else_comes_in`, `strangers::a_stranger_who_knocks_all_the_while_never_comes_in` |
//! | 17 | whose process a peer is | `strangers::a_stranger_for_whom_somebody_has_opened_every_door_is_told_whom_it_serves`, `strangers::one_without_a_number_in_its_namespace_is_known_by_the_number_it_has_here`, `only_the_same_user_comes_in` |
//! | 18 | agents inherit lock or socket | `an_agent_has_nothing_of_the_daemons_but_its_own_streams` |
//! | 19 | no descriptors | `with_few_descriptors_some_are_told_so_and_others_are_served_when_there_are_some_again`, `doors::crowds::want_of_descriptors_is_told_rests_and_passes` |
//! | 20 | a start that fails in silence | `one_that_cannot_start_says_why_and_nobody_waits_in_vain`, `strangers::where_nothing_can_be_written_the_reason_is_said_within_a_second` |
//! | 21 | a client in a sandbox displaces it | `strangers::a_client_that_may_not_connect_leaves_a_healthy_daemon_alone`, `bridge::alone::where_a_connection_is_denied_nothing_is_started_and_this_process_serves` |
//! | 22 | whoever asks starts one | `who_asks_starts_nothing_and_makes_nothing` |
//! | 23 | a machine that stands still | `places::a_daemon_or_a_bridge_that_stands_still_for_five_seconds_is_the_same_afterwards` |
//! | 24 | a stop ends others' work | `a_stop_ends_nobodys_job_unless_it_is_told_to` |
//! | 25 | service managers | `one_that_a_service_manager_activates_serves_on_that_socket_and_leaves_it_alone`, `one_that_is_activated_and_cannot_serve_answers_a_hundred_and_ends_well`, `places::one_that_is_activated_in_vain_answers_a_hundred_and_one_that_is_not_serves_on_the_same_socket` |
//!
//! Rows 1, 5, 14 and 16 are played as often as `PHONE_OPUS_DAEMON_ROUNDS` says (`.ci/long daemon-rounds`).
//!
//! Laws: L13, L15, L17, L18.

#![expect(clippy::expect_used, clippy::panic, reason = "what goes wrong in a helper fails the test")]

mod places;
mod status;
mod strangers;
mod thousand;
mod versions;

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use phone_opus::Environment;
use phone_opus::internals::base::ids::DaemonId;
use phone_opus::internals::daemon::ask::{ANSWER, AskError, ask};
use phone_opus::internals::daemon::control::{DaemonAnswer, Opening};
use phone_opus::internals::daemon::record::DaemonRecord;
use phone_opus::internals::daemon::start::{DaemonStart, DaemonStarter, PATIENCE as STARTS_WITHIN};
use phone_opus::testkit::{
    NOBODY, PATIENCE, Process, Rig, Role, Signal, Start, Waiting, give_away, tried_program, until, until_seen,
};
use rustix::fs::{CWD, FileType, Mode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

/// How long a wait takes whose condition normally comes within milliseconds.
const LONG: Duration = Duration::from_secs(60);

fn new_rig() -> Rig {
    // What a daemon is started with holds no program of one client.
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

/// How often a case is played: a few times here, as often as `PHONE_OPUS_DAEMON_ROUNDS` says where there is time.
fn rounds(few: usize) -> usize {
    std::env::var("PHONE_OPUS_DAEMON_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(few)
}

/// A circumstance this machine may not allow; the test says so where people look.
macro_rules! or_skip {
    ($start:expr) => {
        match $start {
            Some(start) => start,
            None => return println!("skipped: {} cannot be made here", stringify!($start)),
        }
    };
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}", said(output));
}

fn parsed(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {}", said(output)))
}

/// Starts one; what it says of itself.
async fn start(rig: &Rig, words: &[&str]) -> Value {
    let output = rig.run(&[&["daemon", "start", "--json"], words].concat()).await;
    code(&output, 0);
    parsed(&output)
}

async fn status(rig: &Rig) -> Value {
    let output = rig.run(&["daemon", "status", "--json"]).await;
    code(&output, 0);
    parsed(&output)
}

/// The daemons of this world.
fn daemons(rig: &Rig) -> Vec<Process> {
    rig.processes().into_iter().filter(|process| process.command.contains(" daemon run")).collect()
}

async fn the_daemon(rig: &Rig) -> Process {
    until_seen("there is one daemon", async || {
        let mut found = daemons(rig);
        if found.len() == 1 { found.pop().ok_or_else(String::new) } else { Err(format!("{found:?}")) }
    })
    .await
}

fn socket(rig: &Rig) -> PathBuf {
    DaemonRecord::read(&rig.state_dir()).expect("a record").expect("it is there").socket()
}

/// Ends it and proves that nothing is left.
async fn end(rig: &Rig) {
    code(&rig.run(&["daemon", "stop", "--force"]).await, 0);
    nothing_is_left(rig).await;
}

async fn nothing_is_left(rig: &Rig) {
    until_seen("every process has ended", async || {
        let left = rig.processes();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    assert!(
        !rig.state_dir().daemon_socket().exists() && !rig.state_dir().daemon_record().exists(),
        "something is left"
    );
    rig.check_invariants().await;
}

/// A client on the socket that speaks line by line.
struct Peer(BufReader<UnixStream>);

impl Peer {
    async fn at(path: &Path) -> std::io::Result<Self> {
        Ok(Self(BufReader::new(UnixStream::connect(path).await?)))
    }

    /// A socket that somebody else makes has its name before it takes anybody.
    async fn once_there_is_a_listener(path: &Path) -> Self {
        until("somebody listens", async || Self::at(path).await.ok()).await
    }

    async fn of(rig: &Rig) -> Self {
        Self::at(&socket(rig)).await.expect("somebody listens")
    }

    async fn say(&mut self, line: &Value) {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).await.expect("it is read");
    }

    /// The next line; `None` at the end.
    async fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        let read = tokio::time::timeout(LONG, self.0.read_line(&mut line)).await.expect("a line in time");
        match read {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"))),
        }
    }

    async fn asked(&mut self, line: Value) -> Value {
        self.say(&line).await;
        self.hear().await.expect("an answer")
    }

    /// The answer to a request; what comes before it is left out.
    async fn answer(&mut self, id: u64) -> Option<Value> {
        loop {
            match self.hear().await {
                Some(line) if line["id"] == id => return Some(line),
                Some(_) => {}
                None => return None,
            }
        }
    }

    /// Makes the session one of this world's user, in this directory, and greets.
    async fn open(&mut self, rig: &Rig, dir: &Path) {
        let settings = json!({"claude_bin": rig.player().display().to_string(), "wait_s": 300});
        let opening = Opening {
            protocol: 1,
            build: None,
            session: "a key".to_owned(),
            cwd: dir.to_owned(),
            environment: rig.environment().without(|name| name.to_string_lossy().starts_with("PHONE_OPUS_")),
            key_withheld: false,
            nesting: (None, 0),
            catalog: None,
            settings: serde_json::from_value(settings).expect("settings"),
            host_settings: std::collections::BTreeMap::new(),
        };
        let line = serde_json::from_str(&opening.line()).expect("JSON");
        let opened = self.asked(line).await;
        assert_eq!(opened["type"], "session_opened", "{opened}");
        let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "peer", "version": "1"}}});
        self.say(&hello).await;
        self.answer(1).await.expect("it is greeted");
        self.say(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    }

    async fn call(&mut self, id: u64, prompt: &str) {
        let params = json!({"name": "consult", "arguments": {"prompt": prompt, "render": "json"}});
        self.say(&json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params})).await;
    }

    async fn ping(&mut self, id: u64) {
        self.say(&json!({"jsonrpc": "2.0", "id": id, "method": "ping"})).await;
        assert!(self.answer(id).await.is_some(), "the session is gone");
    }
}

fn response(answer: &Value) -> Value {
    let text = answer["result"]["content"][0]["text"].as_str().unwrap_or_default();
    serde_json::from_str(text).unwrap_or_else(|_| answer.clone())
}

// --- 1: what is left behind ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn one_that_was_killed_is_replaced_whatever_it_left_behind() {
    let rig = new_rig();
    let mut seen = HashSet::new();
    for round in 0..rounds(5) {
        let said = start(&rig, &[]).await;
        assert_eq!(said["started"], true, "round {round}: {said}");
        assert!(seen.insert(said["generation"].to_string()), "the same life twice");
        assert!(socket(&rig).exists() && rig.state_dir().daemon_record().exists());
        the_daemon(&rig).await.kill();
        until("it has gone", async || daemons(&rig).is_empty().then_some(())).await;
        // A process that is ending shows no command any more before it lets go of its socket.
        until_seen("nobody is there to be asked", async || {
            let output = rig.run(&["daemon", "status"]).await;
            if output.status.code() == Some(4) { Ok(()) } else { Err(format!("{output:?}")) }
        })
        .await;
    }
    // A link to something of value.
    let (socket, value) = (rig.state_dir().daemon_socket(), rig.path("value"));
    std::fs::write(&value, "kept").expect("a file");
    std::fs::remove_file(&socket).expect("it was left");
    symlink(&value, &socket).expect("a link");
    start(&rig, &[]).await;
    assert_eq!(std::fs::read_to_string(&value).expect("it is there"), "kept");
    code(&rig.run(&["daemon", "stop"]).await, 0);
    // What nobody of ours would put there stays, and is named.
    let pipe = |path: &Path| rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).map_err(Into::into);
    let makes: [fn(&Path) -> std::io::Result<()>; 3] =
        [|path| std::fs::create_dir(path), |path| std::fs::write(path, ""), pipe];
    for make in makes {
        make(&socket).expect("it is made");
        let output = rig.run(&["daemon", "start"]).await;
        code(&output, 1);
        assert!(
            said(&output).contains("is not replaced") && said(&output).contains("daemon.sock"),
            "{}",
            said(&output)
        );
        assert!(socket.exists());
        let _ = std::fs::remove_dir(&socket).or_else(|_| std::fs::remove_file(&socket));
    }
    // A record that names a process which lives and is no daemon.
    start(&rig, &[]).await;
    let record = std::fs::read_to_string(rig.state_dir().daemon_record()).expect("a record");
    the_daemon(&rig).await.kill();
    until("it has gone", async || daemons(&rig).is_empty().then_some(())).await;
    let mut record: Value = serde_json::from_str(&record).expect("JSON");
    record["pid"] = json!(std::process::id());
    std::fs::write(rig.state_dir().daemon_record(), record.to_string()).expect("it is written");
    assert_eq!(start(&rig, &[]).await["started"], true, "a pid is no proof of a daemon");
    code(&rig.run(&["daemon", "stop"]).await, 0);
    std::fs::create_dir(rig.state_dir().daemon_record()).expect("a directory");
    let output = rig.run(&["daemon", "start"]).await;
    code(&output, 1);
    assert!(said(&output).contains("daemon.json"), "{}", said(&output));
    std::fs::remove_dir(rig.state_dir().daemon_record()).expect("it was there");
    start(&rig, &[]).await;
    end(&rig).await;
}

// --- 2: stored numbers -----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_number_in_the_record_is_nobodys_to_be_ended() {
    let rig = new_rig();
    let mut stranger = tokio::process::Command::new("sleep").arg("600").kill_on_drop(true).spawn().expect("a stranger");
    start(&rig, &[]).await;
    let path = rig.state_dir().daemon_record();
    let mut record: Value = serde_json::from_slice(&std::fs::read(&path).expect("a record")).expect("JSON");
    record["pid"] = json!(stranger.id());
    std::fs::write(&path, record.to_string()).expect("it is written");
    code(&rig.run(&["daemon", "stop"]).await, 0);
    until("the daemon has gone", async || daemons(&rig).is_empty().then_some(())).await;
    // And where none runs.
    std::fs::write(&path, record.to_string()).expect("it is written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    for words in [&["daemon", "stop"][..], &["daemon", "stop", "--force"], &["daemon", "drain"]] {
        code(&rig.run(words).await, 4);
    }
    assert!(stranger.try_wait().expect("it can be asked").is_none(), "a stranger was ended");
    stranger.kill().await.expect("ours to end");
    std::fs::remove_file(&path).expect("it was there");
    nothing_is_left(&rig).await;
}

// --- 4: fifty at once ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn fifty_who_start_at_once_have_one() {
    let rig = new_rig();
    let starts = (0..50).map(|_| start(&rig, &[]));
    let all = futures_util::future::join_all(starts).await;
    let lives: HashSet<String> = all.iter().map(|said| said["generation"].to_string()).collect();
    assert_eq!(lives.len(), 1, "{lives:?}");
    assert_eq!(all.iter().filter(|said| said["started"] == true).count(), 1, "one of them has started it: {all:?}");
    the_daemon(&rig).await;
    end(&rig).await;
}

// --- 5: the old one and the new one ----------------------------------------------------------------------------------------

#[tokio::test]
async fn one_that_stops_takes_nothing_of_the_next_one_away() {
    let rig = new_rig();
    for _ in 0..rounds(10) {
        let old = start(&rig, &[]).await;
        let stop = rig.run(&["daemon", "stop"]);
        let next = rig.run(&["daemon", "start", "--json"]);
        let (stopped, _) = tokio::join!(stop, next);
        code(&stopped, 0);
        // Whoever asked meanwhile may have had the old one; the next one is there for who asks now, and stays.
        let new = start(&rig, &[]).await;
        assert_ne!(new["generation"], old["generation"]);
        until_seen("the old one has gone", async || {
            let found = daemons(&rig);
            if found.len() == 1 { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
        assert_eq!(status(&rig).await["generation"], new["generation"]);
        assert!(socket(&rig).exists());
    }
    end(&rig).await;
}

// --- 6: long paths ---------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_state_directory_of_any_length_has_a_door() {
    for (bytes, letter) in [(90, "x"), (100, "x"), (108, "x"), (300, "x"), (120, "ö")] {
        let mut rig = new_rig();
        let mut dir = rig.path("s").display().to_string();
        while dir.len() < bytes {
            let left = bytes - dir.len();
            // A name has 255 bytes at most.
            dir.push_str(if dir.rsplit('/').next().unwrap_or_default().len() > 200 { "/" } else { letter });
            assert!(left > 0);
        }
        let run = rig.path("r");
        std::fs::create_dir(&run).expect("a runtime directory");
        std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o700)).expect("a mode");
        rig.set("PHONE_OPUS_STATE_DIR", dir.trim_end_matches('/'));
        rig.set("XDG_RUNTIME_DIR", run.display().to_string());
        let said = start(&rig, &[]).await;
        // Found without the directory that its alias may lie in.
        rig.unset("XDG_RUNTIME_DIR");
        assert_eq!(status(&rig).await["generation"], said["generation"], "{bytes} bytes");
        code(&rig.run(&["daemon", "stop"]).await, 0);
        until("it has gone", async || rig.processes().is_empty().then_some(())).await;
    }
    let rig = new_rig();
    let long = rig.path(&"y".repeat(120)).display().to_string();
    let output = rig.run(&["daemon", "start", "--socket", &long]).await;
    code(&output, 1);
    assert!(said(&output).contains("bytes") && said(&output).contains("yyyy"), "{}", said(&output));
}

// --- 7: where it is looked for ---------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_client_of_any_environment_comes_to_the_same_one() {
    let mut rig = new_rig();
    let started = start(&rig, &[]).await;
    let dir = rig.state_dir().root().display().to_string();
    let asked = ["daemon", "status", "--json", "--state-dir", &dir];
    // As from cron, from a sandbox with directories of its own, after a change of user.
    let bare = rig.command(&asked).env_clear().output().await.expect("it runs");
    code(&bare, 0);
    assert_eq!(parsed(&bare)["generation"], started["generation"]);
    for (name, value) in [("TMPDIR", "/nowhere"), ("XDG_RUNTIME_DIR", "/nowhere"), ("HOME", "/nowhere")] {
        rig.set(name, value);
        let output = rig.run(&asked).await;
        code(&output, 0);
        assert_eq!(parsed(&output)["generation"], started["generation"], "{name}");
        assert_eq!(
            parsed(&rig.run(&["daemon", "start", "--json", "--state-dir", &dir]).await)["started"],
            false,
            "{name}"
        );
    }
    end(&rig).await;
}

// --- 8: cleaners -----------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_door_that_was_cleaned_away_is_made_again_and_sessions_go_on() {
    let mut rig = new_rig();
    let run = rig.path("r");
    std::fs::create_dir(&run).expect("a runtime directory");
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o700)).expect("a mode");
    rig.set("XDG_RUNTIME_DIR", run.display().to_string());
    let long = rig.path(&"x".repeat(150));
    for state in [rig.state_dir().root().to_owned(), long] {
        rig.set("PHONE_OPUS_STATE_DIR", state.display().to_string());
        let started = start(&rig, &["--look-s", "0.05"]).await;
        let record = phone_opus::StateDir::at(&state);
        let socket = DaemonRecord::read(&record).expect("read").expect("a record").socket();
        let mut old = Peer::at(&socket).await.expect("it listens");
        old.ping(1).await;
        let clean: [fn(&Path); 2] = [
            |socket| std::fs::remove_file(socket).expect("it was there"),
            |socket| {
                // All of it, where it is a directory of the socket's own.
                let dir = socket.parent().expect("a directory");
                if dir.to_string_lossy().contains("phone_opus-") {
                    std::fs::remove_dir_all(dir).expect("it was there");
                } else {
                    std::fs::remove_file(socket).expect("it was there");
                    let _ = std::fs::remove_file(dir.join("daemon.json"));
                }
            },
        ];
        for clean in clean {
            clean(&socket);
            until("a new client comes in", async || Peer::at(&socket).await.ok()).await.ping(1).await;
            until("the record is there", async || DaemonRecord::read(&record).ok().flatten()).await;
            assert_eq!(status(&rig).await["generation"], started["generation"], "it is another one");
            old.ping(2).await;
        }
        code(&rig.run(&["daemon", "stop"]).await, 0);
        until("it has gone", async || rig.processes().is_empty().then_some(())).await;
    }
    // Without waiting, by the control line.
    rig.set("PHONE_OPUS_STATE_DIR", rig.state_dir().root().display().to_string());
    start(&rig, &[]).await;
    let mut old = Peer::of(&rig).await;
    let path = socket(&rig);
    std::fs::remove_file(&path).expect("it was there");
    code(&rig.run(&["daemon", "status"]).await, 1);
    assert_eq!(old.asked(json!({"type": "reload"})).await, json!({"type": "ok", "to": "reload"}));
    until("a new client comes in", async || Peer::at(&path).await.ok()).await.ping(1).await;
    end(&rig).await;
}

// --- 9: another machine's record -------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_record_of_another_machine_leads_nowhere() {
    let rig = new_rig();
    start(&rig, &[]).await;
    let path = rig.state_dir().daemon_record();
    let record = std::fs::read_to_string(&path).expect("a record");
    code(&rig.run(&["daemon", "stop"]).await, 0);
    until("it has gone", async || daemons(&rig).is_empty().then_some(())).await;
    let mut elsewhere: Value = serde_json::from_str(&record).expect("JSON");
    elsewhere["host"] = json!("another machine");
    elsewhere["socket"] = json!("/nowhere/daemon.sock");
    std::fs::write(&path, elsewhere.to_string()).expect("it is written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    code(&rig.run(&["daemon", "status"]).await, 4);
    assert_eq!(start(&rig, &[]).await["started"], true);
    end(&rig).await;
}

// --- 11: pipes of the starter ----------------------------------------------------------------------------------------------

/// The descriptors of a process that lead to this file.
fn holds(process: &Process, file: &Path) -> usize {
    let dir = std::fs::read_dir(format!("/proc/{}/fd", process.pid.as_raw_nonzero())).expect("it is there");
    let leads = |entry: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_link(entry.ok()?.path()).is_ok_and(|target| target == file).then_some(())
    };
    dir.filter_map(leads).count()
}

#[tokio::test]
async fn who_captures_the_output_of_a_start_is_not_kept() {
    let rig = new_rig();
    // `x=$(phone-opus daemon start 3>&1)`: another copy of the captured pipe goes along.
    let rig = rig.with_start(Start::plain().after("exec 3>&1 4>&2 5>&1 9>&2"));
    let output = rig.run(&["daemon", "start"]).await;
    code(&output, 0);
    assert_eq!(daemons(&rig).len(), 1, "it goes on");
    let rig = rig.with_start(Start::plain());
    end(&rig).await;
}

#[tokio::test]
async fn two_hundred_descriptors_of_the_starter_are_held_by_no_daemon() {
    if !Path::new("/bin/bash").exists() {
        return println!("skipped: no bash here, and other shells know ten descriptors");
    }
    let rig = new_rig();
    let file = rig.path("foreign");
    std::fs::write(&file, "").expect("a file");
    let script = r#"for i in $(seq 10 209); do eval "exec $i>>'$0'"; done; exec "$@""#;
    let program = rig.program().display().to_string();
    let child = tokio::process::Command::new("/bin/bash")
        .args(["-c", script, &file.display().to_string(), &program, "daemon", "start"])
        .env_clear()
        .envs(rig.environment().iter())
        .stdin(Stdio::null())
        .output();
    code(&child.await.expect("it runs"), 0);
    let daemon = the_daemon(&rig).await;
    assert_eq!(holds(&daemon, &file), 0, "{daemon:?}");
    end(&rig).await;
}

// --- 12: its directory -----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_directory_it_was_started_in_may_go_and_others_are_consulted_in_theirs() {
    let rig = new_rig();
    let gone = rig.path("gone");
    std::fs::create_dir(&gone).expect("a directory");
    let output = rig.command(&["daemon", "start"]).current_dir(&gone).output().await.expect("it runs");
    code(&output, 0);
    std::fs::remove_dir(&gone).expect("nobody is in it");
    let daemon = the_daemon(&rig).await;
    let cwd = std::fs::read_link(format!("/proc/{}/cwd", daemon.pid.as_raw_nonzero())).expect("it is there");
    assert_eq!(cwd, Path::new("/"));
    let mut peer = Peer::of(&rig).await;
    peer.open(&rig, &rig.path("work/other")).await;
    peer.call(2, &rig.answering("from elsewhere")).await;
    let answer = peer.answer(2).await.expect("an answer");
    assert_eq!(response(&answer)["response"], "from elsewhere", "{answer}");
    let cwd = rig.runs()[0].start["cwd"].clone();
    assert_eq!(cwd, json!(std::fs::canonicalize(rig.path("work/other")).expect("it is there").display().to_string()));
    drop(peer);
    end(&rig).await;
}

// --- 13: its terminal ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn it_outlives_the_session_and_the_group_of_whoever_started_it() {
    let rig = new_rig();
    let words = ["-c", "\"$0\" daemon start && exec sleep 600"];
    let mut shell = tokio::process::Command::new("setsid");
    shell.arg("/bin/sh").args(words).arg(rig.program()).env_clear().envs(rig.environment().iter());
    let mut shell = shell.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn().expect("a session");
    until("it serves", async || Peer::at(&rig.state_dir().daemon_socket()).await.ok()).await;
    let daemon = the_daemon(&rig).await;
    assert!(daemon.leads_session, "{daemon:?}");
    let started_by = i32::try_from(shell.id().expect("it runs")).expect("a pid");
    assert_ne!(
        daemon.parent.map(|parent| parent.as_raw_nonzero().get()),
        Some(started_by),
        "a descendant of its starter"
    );
    let group = rustix::process::Pid::from_raw(started_by).expect("a pid");
    // `setsid` forks only where it would be a group's leader, which it is not here.
    let _ = rustix::process::kill_process_group(group, Signal::HUP);
    let _ = rustix::process::kill_process_group(group, Signal::KILL);
    let _ = shell.wait().await;
    assert!(daemon.lives(), "it went with its starter");
    status(&rig).await;
    end(&rig).await;
}

// --- 14: the end of one that nobody needs ----------------------------------------------------------------------------------

#[tokio::test]
async fn who_comes_while_it_ends_by_itself_is_served_by_the_next_one() {
    let rig = new_rig();
    let starting = || {
        let words = ["--idle-s", "0.05", "--look-s", "0.01"].map(OsString::from);
        let environment: Environment = rig.environment();
        DaemonStart::new(rig.state_dir(), rig.program().to_owned(), &environment, DaemonStarter::Client).with(words)
    };
    let mut lives: HashSet<DaemonId> = HashSet::new();
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..rounds(40) {
        let start = starting();
        let asked = tokio::task::spawn_blocking(move || {
            // A client tries once more when it is told that there will be another.
            let mut last = None;
            for _ in 0..2 {
                let stream = start.connect(STARTS_WITHIN).expect("a daemon");
                match ask(&stream, r#"{"type":"hello"}"#, ANSWER) {
                    Ok(DaemonAnswer::Hello { generation, .. }) => return Ok(generation),
                    Ok(DaemonAnswer::Restarting) | Err(AskError::Closed) => {}
                    other => last = Some(other),
                }
            }
            Err(format!("{last:?}"))
        });
        let life = asked.await.expect("no panic").unwrap_or_else(|why| panic!("round {round} of seed {seed}: {why}"));
        lives.insert(life);
        tokio::time::sleep(Duration::from_millis(random.u64(40..70))).await;
    }
    assert!(lives.len() > 1, "it never ended, so nothing was shown (seed {seed})");
    nothing_is_left(&rig).await;
}

#[tokio::test]
async fn one_that_a_person_started_stays_and_one_with_a_client_does() {
    let rig = new_rig();
    start(&rig, &["--idle-s", "0.05", "--look-s", "0.02"]).await;
    let mut peer = Peer::of(&rig).await;
    let told = peer.asked(json!({"type": "status"})).await;
    assert_eq!((&told["state"], &told["connections"], &told["idle_s"]), (&json!("serving"), &json!(1), &json!(0)));
    // Looked at more than once meanwhile.
    tokio::time::sleep(Duration::from_millis(300)).await;
    peer.ping(1).await;
    drop(peer);
    nothing_is_left(&rig).await;
    start(&rig, &[]).await;
    assert_eq!(status(&rig).await["idle_s"], Value::Null);
    end(&rig).await;
}

// --- 15: root --------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn in_another_users_directory_nothing_is_started_and_nothing_made() {
    let mut rig = new_rig();
    let theirs = rig.path("theirs");
    std::fs::create_dir(&theirs).expect("a directory");
    if !give_away(&theirs, NOBODY, NOBODY) {
        return println!("skipped: only root can give a directory away");
    }
    for state in [theirs.clone(), theirs.join("of/theirs")] {
        rig.set("PHONE_OPUS_STATE_DIR", state.display().to_string());
        for words in [&["daemon", "start"][..], &["daemon", "run"]] {
            let output = rig.run(words).await;
            code(&output, 1);
            assert!(said(&output).contains("belongs to user id 65534"), "{words:?}: {}", said(&output));
        }
    }
    assert_eq!(std::fs::read_dir(&theirs).expect("a directory").count(), 0, "something was made");
    assert!(rig.processes().is_empty());
}

// --- 16: masks -------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn whatever_the_umask_nobody_else_comes_in() {
    for mask in ["000", "777"] {
        let rig = new_rig().with_start(Start::plain().after(&format!("umask {mask}")));
        start(&rig, &[]).await;
        let mode = |path: &Path| std::fs::symlink_metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!(mode(rig.state_dir().root()), 0o700, "{mask}");
        for file in [socket(&rig), rig.state_dir().daemon_record(), rig.state_dir().daemon_lock()] {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
        }
        let rig = rig.with_start(Start::plain());
        let dir = rig.state_dir().root().display().to_string();
        if let Some(nobody) = Start::plain().as_nobody() {
            let rig = rig.with_start(nobody);
            let output = rig.run(&["daemon", "status", "--state-dir", &dir]).await;
            code(&output, 1);
            assert!(said(&output).contains("may not"), "{}", said(&output));
            end(&rig.with_start(Start::plain())).await;
        } else {
            println!("skipped: no other user can be had here");
            end(&rig).await;
        }
    }
}

// --- 18: what children inherit ---------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_agent_has_nothing_of_the_daemons_but_its_own_streams() {
    let rig = new_rig();
    start(&rig, &[]).await;
    let mut peer = Peer::of(&rig).await;
    peer.open(&rig, &rig.work()).await;
    peer.call(2, &rig.waiting("begun", "go")).await;
    rig.wait_for_sign("begun").await;
    let descriptors = |agent: &Process| {
        let dir = std::fs::read_dir(format!("/proc/{}/fd", agent.pid.as_raw_nonzero())).expect("it is there");
        let mut open: Vec<u32> = dir.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        open.sort_unstable();
        open
    };
    // The sign is a file that it makes, and closes a moment after it is seen.
    let waiting = Waiting::until("agents hold their streams alone", PATIENCE);
    for agent in rig.agents() {
        while descriptors(&agent) != [0, 1, 2] {
            waiting.again(|| format!("{agent:?} holds {:?}", descriptors(&agent))).await;
        }
    }
    rig.give_sign("go");
    assert_eq!(response(&peer.answer(2).await.expect("an answer"))["response"], "done");
    drop(peer);
    end(&rig).await;
}

// --- 19: no descriptors ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn with_few_descriptors_some_are_told_so_and_others_are_served_when_there_are_some_again() {
    let rig = new_rig().with_start(Start::plain().descriptors(32, 32));
    start(&rig, &[]).await;
    let rig = rig.with_start(Start::plain());
    let path = socket(&rig);
    let daemon = the_daemon(&rig).await;
    let mut peers = Vec::new();
    for _ in 0..60 {
        peers.push(Peer::at(&path).await.expect("the door is open"));
    }
    let spent = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid.as_raw_nonzero())).expect("it is there");
        let after = stat.rsplit(')').next().unwrap_or_default().to_owned();
        let ticks: Vec<u64> =
            after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
        ticks.iter().sum::<u64>()
    };
    // A loop that spins spends a second's ticks in a second: a hundred.
    let before = spent();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = spent() - before;
    assert!(used < 10, "{used} ticks were spent in two seconds");
    drop(peers);
    until("there is room again", async || {
        let mut peer = Peer::at(&path).await.ok()?;
        peer.0.get_mut().write_all(b"{\"type\":\"hello\"}\n").await.ok()?;
        let mut line = String::new();
        let read = tokio::time::timeout(Duration::from_secs(10), peer.0.read_line(&mut line)).await;
        (read.is_ok_and(|read| read.is_ok()) && line.contains("\"hello\"")).then_some(())
    })
    .await;
    end(&rig).await;
}

// --- 20: a start that fails ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn one_that_cannot_start_says_why_and_nobody_waits_in_vain() {
    let mut rig = new_rig();
    let file = rig.path("file");
    std::fs::write(&file, "").expect("a file");
    let cases = [
        (file.display().to_string(), "not a directory"),
        (file.join("below").display().to_string(), "create the directory"),
    ];
    for (dir, why) in &cases {
        let output = rig.run(&["daemon", "start", "--state-dir", dir]).await;
        code(&output, 1);
        assert!(said(&output).contains(why), "{dir}: {}", said(&output));
    }
    // What only the daemon itself finds out.
    rig.configure("max_running = 0\n");
    let output = rig.run(&["daemon", "start"]).await;
    code(&output, 1);
    assert!(said(&output).contains("max_running"), "{}", said(&output));
    let output = rig.run(&["daemon", "run"]).await;
    code(&output, 2);
    rig.configure("");
    start(&rig, &[]).await;
    let second = rig.run(&["daemon", "run"]).await;
    code(&second, 1);
    assert!(said(&second).contains("serves") && said(&second).contains("already"), "{}", said(&second));
    end(&rig).await;
}

// --- 22: who asks starts nothing -------------------------------------------------------------------------------------------

#[tokio::test]
async fn who_asks_starts_nothing_and_makes_nothing() {
    let rig = new_rig();
    for word in ["status", "stop", "drain", "reload", "pause", "resume"] {
        let output = rig.run(&["daemon", word]).await;
        code(&output, 4);
        assert!(said(&output).contains("no daemon is running"), "{}", said(&output));
        let output = rig.run(&["daemon", word, "--json"]).await;
        code(&output, 4);
        assert_eq!(parsed(&output), json!({"version": 1, "running": false}));
    }
    assert!(!rig.state_dir().root().exists(), "something was made");
    assert!(rig.processes().is_empty());
    rig.check_invariants().await;
}

// --- 24: others' work ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_stop_ends_nobodys_job_unless_it_is_told_to() {
    let rig = new_rig();
    start(&rig, &[]).await;
    let mut busy = Peer::of(&rig).await;
    busy.open(&rig, &rig.work()).await;
    busy.call(2, &rig.waiting("begun", "go")).await;
    rig.wait_for_sign("begun").await;
    let output = rig.run(&["daemon", "stop"]).await;
    code(&output, 1);
    assert!(
        said(&output).contains("1 job runs or waits here") && said(&output).contains("--drain"),
        "{}",
        said(&output)
    );
    busy.ping(3).await;
    let mut other = Peer::of(&rig).await;
    other.open(&rig, &rig.work()).await;
    code(&rig.run(&["daemon", "stop", "--drain"]).await, 0);
    // Its place is free at once, and it serves whom it has.
    code(&rig.run(&["daemon", "status"]).await, 4);
    busy.ping(4).await;
    let last = other.hear().await.expect("whoever opened a session is told that no other one is to be started");
    assert_eq!(last, json!({"type": "restarting", "stopped": true}));
    let told = other.asked(json!({"type": "status"})).await;
    assert_eq!(told["state"], "draining", "{told}");
    other.call(5, &rig.answering("too late")).await;
    let refused = other.answer(5).await.expect("an answer");
    assert!(refused.to_string().contains("stopping"), "{refused}");
    rig.give_sign("go");
    assert_eq!(response(&busy.answer(2).await.expect("an answer"))["response"], "done");
    assert!(busy.hear().await.is_none() && other.hear().await.is_none(), "it ends with the last call");
    rig.expect_runs(1);
    nothing_is_left(&rig).await;
}

#[tokio::test]
async fn while_it_is_paused_nothing_begins_and_everything_does_when_it_is_told() {
    let rig = new_rig();
    start(&rig, &[]).await;
    code(&rig.run(&["daemon", "pause"]).await, 0);
    assert_eq!(status(&rig).await["state"], "paused");
    let mut peer = Peer::of(&rig).await;
    peer.open(&rig, &rig.work()).await;
    peer.call(2, &rig.answering("late")).await;
    until("the job is accepted", async || (rig.jobs().await.len() == 1).then_some(())).await;
    peer.ping(3).await;
    rig.expect_runs(0);
    assert!(rig.agents().is_empty());
    code(&rig.run(&["daemon", "resume"]).await, 0);
    assert_eq!(response(&peer.answer(2).await.expect("an answer"))["response"], "late");
    rig.expect_runs(1);
    drop(peer);
    end(&rig).await;
}

// --- 25: service managers --------------------------------------------------------------------------------------------------

/// systemd's own client of activation, which runs the program when somebody connects.
fn activated(rig: &Rig, socket: &Path) -> Option<tokio::process::Child> {
    let tool = ["/usr/bin", "/bin", "/lib/systemd"].map(|dir| Path::new(dir).join("systemd-socket-activate"));
    let tool = tool.into_iter().find(|tool| tool.exists())?;
    let mut command = tokio::process::Command::new(tool);
    command.arg("--listen").arg(socket);
    for (name, value) in rig.environment().iter() {
        let mut pair = name.to_owned();
        pair.push("=");
        pair.push(value);
        command.arg("--setenv").arg(pair);
    }
    command.arg(rig.program()).args(["daemon", "run"]).env_clear().kill_on_drop(true);
    Some(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs"))
}

/// A directory of ours for a socket.
fn door(rig: &Rig) -> PathBuf {
    let dir = rig.path("run");
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).expect("a mode");
    dir.join("x.sock")
}

#[tokio::test]
async fn one_that_a_service_manager_activates_serves_on_that_socket_and_leaves_it_alone() {
    let rig = new_rig();
    let path = door(&rig);
    let mut manager = or_skip!(activated(&rig, &path));
    let mut peer = Peer::once_there_is_a_listener(&path).await;
    let made = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).expect("it is there"));
    let hello = peer.asked(json!({"type": "hello"})).await;
    assert_eq!(hello["type"], "hello", "{hello}");
    assert_eq!(socket(&rig), path, "others find it by the record");
    assert_eq!(status(&rig).await["idle_s"], 1800);
    peer.open(&rig, &rig.work()).await;
    peer.call(2, &rig.waiting("begun", "go")).await;
    rig.wait_for_sign("begun").await;
    let started: Vec<Process> = rig.runners().into_iter().chain(rig.agents()).collect();
    let seen: Vec<(Role, String)> =
        started.iter().filter_map(|process| Some((process.role, process.environment()?))).collect();
    for role in [Role::Runner, Role::Agent] {
        assert!(seen.iter().any(|(of, _)| *of == role), "no {role:?} was seen: {started:?}");
    }
    for (role, environment) in seen {
        assert!(!environment.contains("LISTEN_") && !environment.contains("NOTIFY_SOCKET"), "{role:?}");
    }
    rig.give_sign("go");
    assert_eq!(response(&peer.answer(2).await.expect("an answer"))["response"], "done");
    code(&rig.run(&["daemon", "stop"]).await, 0);
    assert!(manager.wait().await.expect("it ends").success());
    let left = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).expect("it is not ours to take away"));
    assert_eq!(made, left);
    nothing_is_left(&rig).await;
}

#[tokio::test]
async fn one_that_is_activated_and_cannot_serve_answers_a_hundred_and_ends_well() {
    let mut rig = new_rig();
    rig.configure("max_running = 0\n");
    let path = door(&rig);
    let mut manager = or_skip!(activated(&rig, &path));
    let mut first = Some(Peer::once_there_is_a_listener(&path).await);
    for _ in 0..100 {
        let mut peer = match first.take() {
            Some(peer) => peer,
            None => Peer::at(&path).await.expect("it listens"),
        };
        let told = peer.hear().await.expect("a line");
        assert_eq!((&told["type"], &told["to"]), (&json!("error"), &json!("start")), "{told}");
        assert!(told["message"].as_str().is_some_and(|text| text.contains("max_running")), "{told}");
    }
    assert!(
        manager.try_wait().expect("it can be asked").is_none(),
        "it ended at once, and would be started again at once"
    );
    assert!(manager.wait().await.expect("it ends").success());
    nothing_is_left(&rig).await;
}

#[tokio::test]
async fn a_service_manager_is_told_when_it_serves_looks_and_stops() {
    let mut rig = new_rig();
    let path = rig.path("n.sock");
    let manager = tokio::net::UnixDatagram::bind(&path).expect("a socket");
    rig.set("NOTIFY_SOCKET", path.display().to_string());
    let mut daemon = rig.command(&["daemon", "run"]).stdin(Stdio::null()).spawn().expect("it runs");
    let told = async || {
        let mut bytes = [0; 256];
        let read = tokio::time::timeout(LONG, manager.recv(&mut bytes)).await.expect("in time").expect("received");
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    };
    assert_eq!(told().await, "READY=1\n");
    let process = the_daemon(&rig).await;
    process.signal(Signal::HUP);
    let reloading = told().await;
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(told().await, "READY=1\n");
    process.signal(Signal::TERM);
    assert_eq!(told().await, "STOPPING=1\n");
    assert!(daemon.wait().await.expect("it ends").success());
    nothing_is_left(&rig).await;
}

#[tokio::test]
async fn files_for_a_service_manager_are_shown_first_and_only_ours_are_replaced_or_removed() {
    if cfg!(target_os = "macos") {
        return println!("skipped: the names are systemd's");
    }
    let rig = new_rig();
    let to = rig.path("units");
    let dir = to.display().to_string();
    let output = rig.run(&["daemon", "install", "--to", &dir]).await;
    code(&output, 0);
    assert!(said(&output).contains("would be written") && !to.exists(), "{}", said(&output));
    let output = rig.run(&["daemon", "install", "--to", &dir, "--write", "--json"]).await;
    code(&output, 0);
    let files = parsed(&output)["files"].as_array().expect("files").clone();
    for file in &files {
        let text = std::fs::read_to_string(file["path"].as_str().expect("a path")).expect("it is written");
        assert_eq!(json!(text), file["text"]);
        assert!(!text.contains('@') || !text.contains("@PROGRAM@"), "{text}");
    }
    let all: String = files.iter().filter_map(|file| file["text"].as_str()).collect();
    assert!(all.contains(&format!("ListenStream={}", rig.state_dir().daemon_socket().display())), "{all}");
    assert!(all.contains("TriggerLimitIntervalSec=0") && all.contains("daemon run --state-dir"), "{all}");
    code(&rig.run(&["daemon", "install", "--to", &dir, "--write"]).await, 0);
    let output = rig.run(&["daemon", "uninstall", "--to", &dir]).await;
    assert!(said(&output).contains("would be removed") && to.join("phone-opus.socket").exists(), "{}", said(&output));
    code(&rig.run(&["daemon", "uninstall", "--to", &dir, "--write"]).await, 0);
    assert_eq!(std::fs::read_dir(&to).expect("a directory").count(), 0);
    std::fs::write(to.join("phone-opus.service"), "[Service]\n").expect("somebody's");
    for words in [["daemon", "install"], ["daemon", "uninstall"]] {
        let output = rig.run(&[&words[..], &["--to", &dir, "--write"]].concat()).await;
        code(&output, 1);
        assert!(said(&output).contains("phone-opus.service"), "{}", said(&output));
    }
    assert_eq!(std::fs::read_to_string(to.join("phone-opus.service")).expect("it is there"), "[Service]\n");
}

// --- its next version ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn one_that_replaces_itself_stays_the_same_for_everybody() {
    let rig = new_rig();
    let started = start(&rig, &[]).await;
    let mut peer = Peer::of(&rig).await;
    peer.open(&rig, &rig.work()).await;
    peer.call(2, &rig.waiting("begun", "go")).await;
    rig.wait_for_sign("begun").await;
    let before = the_daemon(&rig).await;
    for round in 0..2 {
        code(&rig.run(&["daemon", "reload"]).await, 0);
        // The same process, in another image.
        until_seen("it has replaced itself", async || {
            let now = the_daemon(&rig).await;
            if now.pid == before.pid && now.command.contains("--restore") { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
        let told = until("it serves again", async || {
            let output = rig.run(&["daemon", "status", "--json"]).await;
            output.status.success().then(|| parsed(&output))
        });
        assert_eq!(told.await["generation"], started["generation"], "round {round}");
        assert_eq!(parsed(&rig.run(&["daemon", "start", "--json"]).await)["started"], false);
        peer.ping(10 + round).await;
    }
    rig.give_sign("go");
    assert_eq!(response(&peer.answer(2).await.expect("an answer"))["response"], "done");
    rig.expect_runs(1);
    drop(peer);
    end(&rig).await;
}

// --- how it is told ----------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn settings_of_its_own_are_the_daemons_and_a_client_that_has_others_is_told() {
    let mut rig = new_rig();
    rig.set("PHONE_OPUS_MAX_RUNNING", "2");
    start(&rig, &[]).await;
    let mut peer = Peer::of(&rig).await;
    let opening = json!({"type": "session_open", "proto": 1, "session": "k", "cwd": rig.work(),
        "host_settings": {"max_running": 2, "max_queued": 7}});
    let opened = peer.asked(opening.clone()).await;
    assert_eq!((&opened["type"], &opened["resumed"]), (&json!("session_opened"), &json!(false)), "{opened}");
    assert_eq!(opened["settings_ignored"], json!(["max_queued"]));
    drop(peer);
    let mut again = Peer::of(&rig).await;
    assert_eq!(again.asked(opening).await["resumed"], true, "the same key");
    drop(again);
    end(&rig).await;
}

#[tokio::test]
async fn signals_ask_for_its_end_and_it_leaves_nothing() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let rig = new_rig();
        start(&rig, &[]).await;
        let mut peer = Peer::of(&rig).await;
        peer.ping(1).await;
        the_daemon(&rig).await.signal(signal);
        assert!(peer.hear().await.is_none(), "{signal:?}");
        nothing_is_left(&rig).await;
    }
}
