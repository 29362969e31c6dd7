//! Upgrades, up to the moment of the hand-over: which files are adopted, which are refused and why, and that the running
//! image serves on whatever lies at its launch path.
//!
//! The candidates are files of their own and the program that is tested. Who hands over is a recorder, or nobody.
//!
//! Laws: L15, L18.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phone_opus::internals::base::fault::{Fault, FaultCode};
use phone_opus::internals::config::{Config, RolloutMode};
use phone_opus::internals::failpoints::{Ends, FORCE_ROLLOUT_KEY, FaultCounters, FaultPlan, Faults};
use phone_opus::internals::rollout::selfcheck::SNAPSHOT_FORMAT;
use phone_opus::internals::rollout::{
    HandOver, Handing, LaunchPath, NotAdopted, RolloutSetup, SnapshotFile, Successor, Trigger, Verdict,
};
use phone_opus::internals::system::handover::{HostSnapshot, Nameless};
use phone_opus::internals::system::{System, SystemBuilder};
use phone_opus::testkit::{Rig, Role, TestClient, tried_program, until, until_seen};
use serde_json::{Value, json};

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

/// Notes what would have been handed over, and goes on serving.
struct Recorder {
    /// Where snapshots are written.
    dir: PathBuf,
    /// What a snapshot says it is.
    format: u32,
    peeks: AtomicUsize,
    /// The next snapshot is not written, by a panic.
    panics: AtomicBool,
    handed: Mutex<Vec<Successor>>,
}

impl Recorder {
    fn new(rig: &Rig) -> Arc<Self> {
        Self::of_format(rig, SNAPSHOT_FORMAT)
    }

    fn of_format(rig: &Rig, format: u32) -> Arc<Self> {
        let dir = rig.path("snapshots");
        fs::create_dir(&dir).expect("a directory");
        let (peeks, panics, handed) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(Vec::new()));
        Arc::new(Self { dir, format, peeks, panics, handed })
    }

    fn handed(&self) -> Vec<Successor> {
        self.handed.lock().expect("unpoisoned").clone()
    }

    fn snapshots_left(&self) -> usize {
        fs::read_dir(&self.dir).expect("a directory").count()
    }
}

impl HandOver for Recorder {
    fn peek(&self) -> Handing<'_, Result<SnapshotFile, Fault>> {
        Box::pin(async move {
            let number = self.peeks.fetch_add(1, Ordering::Relaxed);
            assert!(!self.panics.swap(false, Ordering::Relaxed), "the snapshot panics");
            let place = if number.is_multiple_of(2) { Nameless::Anywhere } else { Nameless::InDirectory };
            let mut snapshot = serde_json::to_value(HostSnapshot::of_nothing()).expect("JSON");
            snapshot["format"] = json!(self.format);
            let text = snapshot.to_string();
            Ok(SnapshotFile::holding(text.as_bytes(), &self.dir, place).expect("it is held"))
        })
    }

    fn hand_over(&self, to: Successor) -> Handing<'_, Fault> {
        self.handed.lock().expect("unpoisoned").push(to);
        Box::pin(async { Fault::new(FaultCode::Internal, "a recorder hands over to nobody.") })
    }
}

/// A launch path in the scratch directory, with the program at it.
struct Launch {
    path: PathBuf,
    /// The file that was there at first, which plays the running image.
    image: PathBuf,
    beside: PathBuf,
}

impl Launch {
    fn new(rig: &Rig) -> Self {
        let dir = rig.path("bin");
        fs::create_dir(&dir).expect("a directory");
        let launch = Self { path: dir.join("phone-opus"), image: rig.path("running"), beside: rig.path("beside") };
        fs::copy(rig.program(), &launch.path).expect("copied");
        fs::hard_link(&launch.path, &launch.image).expect("linked");
        launch
    }

    fn setup(&self, rig: &Rig) -> RolloutSetup {
        RolloutSetup {
            launch: LaunchPath { path: self.path.clone(), stable: true },
            image: Some(self.image.clone()),
            keeper: Some(env!("CARGO_BIN_EXE_phone-opus").into()),
            arguments: Vec::new(),
            here: rig.work(),
            look_every: Duration::ZERO,
            program: None,
            environment: None,
        }
    }

    /// As an installer does it.
    fn install(&self, bytes: &[u8], mode: u32) {
        fs::write(&self.beside, bytes).expect("written");
        fs::set_permissions(&self.beside, fs::Permissions::from_mode(mode)).expect("set");
        fs::rename(&self.beside, &self.path).expect("renamed");
    }

    fn install_script(&self, script: &str) {
        self.install(format!("#!/bin/sh\n{script}\n").as_bytes(), 0o755);
    }

    /// The program, as another build of it.
    fn install_next(&self, rig: &Rig) {
        let mut next = fs::read(rig.program()).expect("read");
        next.extend_from_slice(b"another build");
        self.install(&next, 0o755);
    }
}

fn launched(rig: &Rig, launch: &Launch) -> SystemBuilder {
    rig.system().rollout(launch.setup(rig))
}

async fn start(builder: SystemBuilder, how: &Arc<Recorder>) -> System {
    let system = builder.start().await.expect("a system");
    system.hand_over_by(Arc::clone(how) as Arc<dyn HandOver>);
    system
}

async fn rollout(client: &mut TestClient) -> Value {
    client.health().await.0["result"]["structuredContent"]["rollout"].clone()
}

/// Goes on asking until a file was refused for this.
async fn expect_refusal(client: &mut TestClient, verdict: &str) -> Value {
    until_seen(&format!("a file is refused as {verdict}"), async || {
        let seen = rollout(client).await;
        let refused = seen["rejected"]["verdict"] == verdict && seen["state"] == "idle";
        if refused { Ok(seen) } else { Err(seen) }
    })
    .await
}

#[tokio::test]
async fn whatever_lies_at_the_launch_path_the_old_image_serves_on_and_the_next_good_one_is_adopted() {
    let rig = new_rig();
    let launch = Launch::new(&rig);
    let how = Recorder::new(&rig);
    let system = start(launched(&rig, &launch), &how).await;
    let mut client = TestClient::of(&system).greet().await;
    // The store is there, so that a version that does not know it can be told.
    client.consult(&rig.answering("first")).await.expect_success();

    let real = rig.program().display().to_string();
    let (ran, whole) = (rig.path("ran"), fs::read(rig.program()).expect("read"));
    let noted = |script: &str| format!("echo run >> {}; {script}", ran.display());
    let line = |format: u32, schema: u32| {
        format!(
            "echo '{{\"selfcheck\":\"phone-opus\",\"version\":\"9\",\"snapshot_format\":{format},\
             \"takes_descriptor\":true,\"store_schema\":{schema},\"catalog\":\"\"}}'"
        )
    };
    let mut foreign = whole[..8192].to_vec();
    foreign[18] ^= 0x55;
    let old = rig.path("old-snapshot");
    fs::write(&old, "{\"format\":0,\"program\":\"0\"}").expect("written");
    let restores_old = format!(
        "case \"$*\" in *--restore*) exec {real} mcp selfcheck --json --restore {};; esac; exec {real} \"$@\"",
        old.display()
    );
    let script = |text: &str| (format!("#!/bin/sh\n{text}\n").into_bytes(), 0o755);
    let cases: Vec<(&str, (Vec<u8>, u32))> = vec![
        ("not_executable", ([&whole[..], b"another build"].concat(), 0o644)),
        ("not_a_program", (Vec::new(), 0o755)),
        // No shell is asked to make something of it.
        ("not_a_program", (format!("touch {}\n", rig.path("shell").display()).into_bytes(), 0o755)),
        ("truncated", (whole[..4096].to_vec(), 0o755)),
        ("truncated", (whole[..whole.len() / 2].to_vec(), 0o755)),
        ("wrong_architecture", (foreign, 0o755)),
        ("not_started", (b"#!/nonexistent/interpreter\n".to_vec(), 0o755)),
        ("exited", script(&noted("echo these are my last words >&2; exit 1"))),
        ("killed", script(&noted("kill -9 $$"))),
        ("hung", script(&noted("trap '' TERM; sleep 1000"))),
        ("garbled", script(&noted("echo hello"))),
        ("garbled", script("while :; do echo yes; done")),
        ("garbled", script("exit 0")),
        ("snapshot_format", script(&line(0, 99))),
        ("snapshot_format", script(&line(SNAPSHOT_FORMAT + 1, 99))),
        // As versions say it that pass on their state in a file with a name.
        ("older_hand_over", script(&line(SNAPSHOT_FORMAT, 99).replace("\"takes_descriptor\":true,", ""))),
        ("older_store", script(&line(SNAPSHOT_FORMAT, 1))),
        ("cannot_serve", script("echo '{\"refused\":\"serve\",\"reason\":\"no room\"}'; exit 1")),
        ("exited", script(&format!("PHONE_OPUS_BILLING=never exec {real} \"$@\""))),
        ("restore_panicked", script(&format!("PHONE_OPUS_FAULTS=rollout.after_restore=panic exec {real} \"$@\""))),
        ("killed", script(&format!("PHONE_OPUS_FAULTS=rollout.after_restore=kill exec {real} \"$@\""))),
        ("hung", script(&format!("PHONE_OPUS_FAULTS=rollout.after_restore=hang exec {real} \"$@\""))),
        ("restore_refused", script(&restores_old)),
    ];
    for (index, (verdict, (bytes, mode))) in cases.into_iter().enumerate() {
        let began = Instant::now();
        let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&launch.path).expect("a file"));
        launch.install(&bytes, mode);
        let refused = until_seen(&format!("case {index} is refused as {verdict}"), async || {
            let seen = rollout(&mut client).await;
            let this = seen["rejected"]["file"]["inode"] == inode() && seen["rejected"]["verdict"] == verdict;
            if this && seen["state"] == "idle" { Ok(seen) } else { Err(seen) }
        })
        .await;
        println!("{verdict}: {:?}: {}", began.elapsed(), refused["last"]["reason"]);
        assert_eq!(refused["last"]["outcome"], "rejected", "{refused}");
        assert_eq!(refused["last"]["code"], "rollout_rejected", "{refused}");
        assert_eq!(refused["last"]["verdict"], verdict, "{refused}");
        assert_eq!(refused["last"]["by"], "watch", "{refused}");
        // Nothing of it is left, and the image that refused it serves.
        assert_eq!(how.snapshots_left(), 0, "{verdict}");
        client.ping().await;
    }
    assert!(!rig.path("shell").exists(), "a shell made something of a text");
    let reasons = rollout(&mut client).await;
    assert!(reasons["last"]["reason"].as_str().is_some_and(|text| text.contains("format 0")), "{reasons}");
    // Each was run once, however often its path was looked at since.
    let runs = fs::read_to_string(&ran).expect("what ran").lines().count();
    assert_eq!(runs, 4, "four scripts note that they ran");
    assert!(how.handed().is_empty());
    client.consult(&rig.answering("second")).await.expect_success();

    launch.install_next(&rig);
    until("the good one is handed over to", async || {
        client.ping().await;
        how.handed().pop()
    })
    .await;
    let handed = how.handed();
    assert_eq!(handed[0].program, launch.path);
    assert_eq!(handed[0].version, env!("CARGO_PKG_VERSION"));
    assert_eq!(how.snapshots_left(), 0);
    client.consult(&rig.answering("third")).await.expect_success();
    rig.expect_runs(3);
    rig.stop_system_and_check_invariants(system, [client]).await;
}

#[tokio::test]
async fn the_last_words_of_a_candidate_are_shown_and_a_refused_one_is_not_run_again() {
    let rig = new_rig();
    let launch = Launch::new(&rig);
    let system = start(launched(&rig, &launch), &Recorder::new(&rig)).await;
    let mut client = TestClient::of(&system).greet().await;
    let ran = rig.path("ran");
    let script = format!("echo run >> {}; echo no such luck >&2; exit 7", ran.display());
    launch.install_script(&script);
    let refused = expect_refusal(&mut client, "exited").await;
    let reason = refused["last"]["reason"].as_str().expect("a reason");
    assert!(reason.contains("code 7") && reason.contains("no such luck"), "{reason}");
    // Written anew, with the same content: it is read again, and not run.
    let before = refused["rejected"]["file"]["inode"].clone();
    launch.install_script(&script);
    until_seen("the new file is known", async || {
        let seen = rollout(&mut client).await;
        let other = seen["rejected"]["file"]["inode"] != before;
        if other { Ok(()) } else { Err(seen) }
    })
    .await;
    assert_eq!(fs::read_to_string(&ran).expect("what ran"), "run\n");
    // Whoever asks has it run again.
    let ended = system.reload(Trigger::Reload).await;
    assert!(matches!(ended, NotAdopted::Rejected(Verdict::Failed { code: 7, .. })), "{ended:?}");
    assert_eq!(fs::read_to_string(&ran).expect("what ran"), "run\nrun\n");
    let telemetry = system.health().telemetry().await.expect("telemetry");
    assert_eq!(telemetry["totals"]["rollouts"], 0, "{telemetry}");
    let state = rig.state_dir();
    rig_lines(&state.telemetry(), 2).await;
    rig.stop_system_and_check_invariants(system, [client]).await;
}

/// Waits for so many rollout records.
async fn rig_lines(log: &Path, count: usize) {
    until_seen("the rollouts are in the log", async || {
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line"));
        let rollouts: Vec<Value> = lines.filter(|line| line["type"] == "rollout").collect();
        if rollouts.len() < count {
            return Err(text);
        }
        assert_eq!(rollouts.len(), count, "{text}");
        assert_eq!((&rollouts[0]["outcome"], &rollouts[0]["verdict"]), (&json!("rejected"), &json!("exited")));
        assert_eq!((&rollouts[0]["trigger"], &rollouts[1]["trigger"]), (&json!("watch"), &json!("reload")));
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_replaced_while_it_is_checked_is_not_what_is_adopted() {
    let rig = new_rig();
    let launch = Launch::new(&rig);
    let how = Recorder::new(&rig);
    let system = start(launched(&rig, &launch), &how).await;
    let mut client = TestClient::of(&system).greet().await;
    // The next build, put in place by the candidate itself, in the middle of its check.
    launch.install_next(&rig);
    let next = rig.path("next");
    fs::rename(&launch.path, &next).expect("renamed");
    let (next, path, real) = (next.display(), launch.path.display(), rig.program().display());
    launch.install_script(&format!("[ -e {next} ] && mv {next} {path}; exec {real} \"$@\""));
    let handed = until("something is handed over to", async || {
        client.ping().await;
        how.handed().pop()
    })
    .await;
    let length = fs::metadata(rig.program()).expect("the program").len();
    assert_eq!(handed.fingerprint.size, length + b"another build".len() as u64);
    rig.stop_system_and_check_invariants(system, [client]).await;
}

#[tokio::test]
async fn a_file_that_is_being_written_is_not_run_before_it_rests() {
    let rig = new_rig();
    let launch = Launch::new(&rig);
    let system = start(launched(&rig, &launch), &Recorder::new(&rig)).await;
    let mut client = TestClient::of(&system).greet().await;
    let ran = rig.path("ran");
    launch.install_script(&format!("echo run >> {}; exit 1", ran.display()));
    let mut file = fs::File::options().append(true).open(&launch.path).expect("opened");
    let (began, mut last, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
    while began.elapsed() < Duration::from_secs(3) {
        file.write_all(b"# and more\n").expect("written");
        longest = longest.max(last.elapsed());
        last = Instant::now();
        client.ping().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A machine that did not let us write for so long has let the file rest.
    if longest < Duration::from_millis(800) {
        assert!(!ran.exists(), "it was run while it was written");
        assert_eq!(rollout(&mut client).await["state"], "settling");
    } else {
        println!("not looked at: writing stood still for {longest:?}");
    }
    drop(file);
    expect_refusal(&mut client, "exited").await;
    rig.stop_system_and_check_invariants(system, [client]).await;
}

#[tokio::test]
async fn a_touched_file_and_the_running_one_at_another_place_are_no_candidates() {
    let rig = new_rig();
    let launch = Launch::new(&rig);
    let how = Recorder::new(&rig);
    let system = start(launched(&rig, &launch), &how).await;
    let mut client = TestClient::of(&system).greet().await;
    // The same bytes, as another file.
    let bytes = fs::read(&launch.path).expect("read");
    launch.install(&bytes, 0o755);
    // It takes a while to be known; what is seen in the end is that nothing was checked.
    until("it was settled on", async || (rollout(&mut client).await["state"] == "settling").then_some(())).await;
    until("it is known", async || (rollout(&mut client).await["state"] == "idle").then_some(())).await;
    fs::remove_file(&launch.path).expect("removed");
    client.ping().await;
    let seen = rollout(&mut client).await;
    assert_eq!(seen.get("last"), None, "{seen}");
    assert_eq!(how.peeks.load(Ordering::Relaxed), 0);
    assert_eq!(system.reload(Trigger::Reload).await, NotAdopted::Vanished);
    rig.stop_system_and_check_invariants(system, [client]).await;
}

#[tokio::test]
async fn a_panic_in_a_rollout_costs_that_rollout_and_nothing_else() {
    let rig = new_rig();
    let launch = Launch::new(&rig);
    let how = Recorder::new(&rig);
    how.panics.store(true, Ordering::Relaxed);
    let system = start(launched(&rig, &launch), &how).await;
    let mut client = TestClient::of(&system).greet().await;
    let prompt = rig.waiting("begun", "go");
    let consult = client.start("consult", json!({"prompt": prompt})).await;
    rig.wait_for_sign("begun").await;
    let generation = client.generation().await;
    assert_eq!(system.reload(Trigger::Reload).await, NotAdopted::Interrupted);
    let seen = until_seen("health says so", async || {
        let seen = rollout(&mut client).await;
        if seen["last"]["verdict"] == "interrupted" { Ok(seen) } else { Err(seen) }
    })
    .await;
    assert_eq!(seen["last"]["outcome"], "failed", "{seen}");
    // The next one is asked of another incarnation, which knows how to hand over.
    let ended = system.reload(Trigger::Reload).await;
    assert!(matches!(ended, NotAdopted::HandOverFailed(_)), "{ended:?}");
    assert_eq!(how.handed().len(), 1);
    assert_eq!(client.generation().await, generation, "no worker was lost");
    rig.give_sign("go");
    client.reply(consult).await.expect_success();
    rig.expect_runs(1);
    rig.stop_system_and_check_invariants(system, [client]).await;
}

#[tokio::test]
async fn a_rollout_that_is_stopped_with_the_workers_is_broken_off_with_its_candidate() {
    let rig = new_rig();
    let launch = Launch::new(&rig);
    let plan = FaultPlan::parse("workers.supervise@up=error", 0).expect("a plan");
    let faults = Faults::arm(plan, Ends::Nothing, FaultCounters::Memory).expect("armed");
    let system = start(launched(&rig, &launch).faults(faults), &Recorder::new(&rig)).await;
    let begun = rig.sign("begun");
    launch.install_script(&format!("touch {}; exec sleep 1000", begun.display()));
    let reloading = tokio::spawn({
        let system = system.clone();
        async move { system.reload(Trigger::Reload).await }
    });
    rig.wait_for_sign("begun").await;
    let mut client = TestClient::of(&system).greet().await;
    // The first worker takes the supervisor along, and with it what was started later.
    client.consult(&rig.answering("yes")).await.expect_success();
    assert_eq!(reloading.await.expect("no panic"), NotAdopted::Interrupted);
    assert_eq!(rollout(&mut client).await["state"], "idle");
    rig.expect_runs(1);
    rig.stop_system_and_check_invariants(system, [client]).await;
}

#[tokio::test]
async fn who_asks_during_a_rollout_gets_its_end() {
    let rig = new_rig();
    let launch = Launch::new(&rig);
    let how = Recorder::new(&rig);
    let system = start(launched(&rig, &launch), &how).await;
    let asked = [Trigger::Reload, Trigger::Signal, Trigger::Reload].map(|by| system.reload(by));
    for ended in futures_util::future::join_all(asked).await {
        assert!(matches!(ended, NotAdopted::HandOverFailed(_)), "{ended:?}");
    }
    assert_eq!((how.peeks.load(Ordering::Relaxed), how.handed().len()), (1, 1));
    rig.stop_system_and_check_invariants(system, []).await;
}

#[tokio::test]
async fn a_snapshot_the_new_version_does_not_know_is_refused_by_itself() {
    let rig = new_rig();
    let launch = Launch::new(&rig);
    let how = Recorder::of_format(&rig, SNAPSHOT_FORMAT + 7);
    let system = start(launched(&rig, &launch), &how).await;
    let ended = system.reload(Trigger::Reload).await;
    assert!(matches!(ended, NotAdopted::Rejected(Verdict::RestoreRefused { .. })), "{ended:?}");
    assert_eq!((how.handed().len(), how.snapshots_left()), (0, 0));
    rig.stop_system_and_check_invariants(system, []).await;
}

#[tokio::test]
async fn configuration_and_launch_path_decide_who_may_ask() {
    let rig = new_rig();
    let launch = Launch::new(&rig);
    let how = Recorder::new(&rig);
    let config = |rollout| Config { wait: Some(Duration::from_secs(300)), rollout, ..Config::default() };

    let off = start(launched(&rig, &launch).config(config(RolloutMode::Off)), &how).await;
    assert_eq!(off.reload(Trigger::Signal).await, NotAdopted::Off);
    off.shutdown(phone_opus::internals::system::Grace::default()).await;

    let without = rig.system().start().await.expect("a system");
    assert_eq!(without.reload(Trigger::Reload).await, NotAdopted::Unable);
    let mut client = TestClient::of(&without).greet().await;
    let seen = rollout(&mut client).await;
    assert_eq!((&seen["state"], &seen["launch_path_stable"]), (&json!("idle"), &json!(false)), "{seen}");
    client.finish().await;
    without.shutdown(phone_opus::internals::system::Grace::default()).await;

    // Neither of these looks by itself, and both do when they are asked.
    launch.install_next(&rig);
    let mut setup = launch.setup(&rig);
    setup.launch.stable = false;
    let unstable = rig.system().rollout(setup);
    for builder in [unstable, launched(&rig, &launch).config(config(RolloutMode::OnRequest))] {
        let before = how.handed().len();
        let system = start(builder, &how).await;
        let mut client = TestClient::of(&system).greet().await;
        for _ in 0..100 {
            client.ping().await;
        }
        let seen = rollout(&mut client).await;
        assert_eq!((&seen["state"], seen.get("last")), (&json!("idle"), None), "{seen}");
        assert_eq!(how.handed().len(), before);
        let ended = system.reload(Trigger::Reload).await;
        assert!(matches!(ended, NotAdopted::HandOverFailed(_)), "{ended:?}");
        assert_eq!(how.handed().len(), before + 1);
        client.finish().await;
        system.shutdown(phone_opus::internals::system::Grace::default()).await;
    }
    rig.check_invariants().await;
}

#[tokio::test]
async fn the_variable_forces_one_rollout_at_the_first_such_operation_across_images() {
    for (operation, worker) in [("ping", false), ("tools/call:health_snapshot", false), ("tools/call:consult", true)] {
        let rig = new_rig();
        let launch = Launch::new(&rig);
        let how = Recorder::new(&rig);
        let counts = rig.path("counts");
        let faults = || {
            let plan = FaultPlan::from_environment(|name| (name == FORCE_ROLLOUT_KEY).then(|| operation.into()));
            let plan = plan.expect("a plan").expect("one");
            Faults::arm(plan, Ends::Nothing, FaultCounters::File(counts.clone())).expect("armed")
        };
        // The second system counts where the first one did, as an image that takes over does.
        for (image, expected) in [("old", 1), ("new", 1)] {
            let system = start(launched(&rig, &launch).faults(faults()), &how).await;
            let mut client = TestClient::of(&system).greet().await;
            client.request("tools/list", json!({})).await;
            assert!(image == "new" || how.handed().is_empty(), "{operation}: something else forced it");
            for _ in 0..3 {
                match operation {
                    "ping" => client.ping().await,
                    _ if worker => drop(client.consult(&rig.answering("yes")).await.expect_success()),
                    _ => drop(client.health().await),
                }
            }
            until_seen(&format!("{operation}: {expected} is handed over to"), async || {
                let handed = how.handed().len();
                if handed == expected && system.rollouts().status().state == "idle" { Ok(()) } else { Err(handed) }
            })
            .await;
            if image == "old" {
                let last = system.rollouts().status().last.expect("a rollout");
                assert_eq!(last.by, Trigger::Variable, "{operation}");
            }
            client.finish().await;
            system.shutdown(phone_opus::internals::system::Grace::default()).await;
        }
        assert_eq!(how.handed().len(), 1, "{operation}");
        rig.check_invariants().await;
    }
}

/// The real server, started by its path as a client starts it.
fn serve(rig: &Rig, program: &Path, isolation: &str) -> TestClient {
    let mut command = tokio::process::Command::new(program);
    command
        .args(["mcp", "serve", "--isolation", isolation])
        .env_clear()
        .envs(rig.environment().iter())
        .current_dir(rig.work())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    TestClient::of_process(command.spawn().expect("a host"))
}

#[tokio::test]
async fn a_server_whose_file_was_replaced_by_a_broken_one_still_starts_workers_and_runners() {
    for isolation in ["in_process", "process"] {
        let rig = new_rig();
        let launch = Launch::new(&rig);
        let mut client = serve(&rig, &launch.path, isolation);
        client.handshake("2025-11-25").await;
        let seen = rollout(&mut client).await;
        assert_eq!(seen["launch_path"], launch.path.display().to_string(), "{seen}");
        assert_eq!((&seen["launch_path_stable"], &seen["mode"]), (&json!(true), &json!("auto")), "{seen}");
        fs::remove_file(&launch.image).expect("only the server has it open");
        launch.install_script("echo I am broken >&2; exit 9");
        rustix::process::kill_process(client.host_pid(), rustix::process::Signal::USR2).expect("signalled");
        let refused = expect_refusal(&mut client, "exited").await;
        assert_eq!(refused["last"]["by"], "signal", "{refused}");
        client.consult(&rig.answering("still there")).await.expect_success();
        let reply = client.call("consult", json!({"prompt": "what is here", "agent": "offline"})).await;
        reply.expect_success();
        // Children are started from the running image, and tools that list processes know them.
        if isolation == "process" {
            let worker = rig.the(Role::Worker).await;
            let name = fs::read_to_string(format!("/proc/{}/comm", worker.pid.as_raw_nonzero())).expect("a name");
            assert_eq!(name, "phone-opus\n");
        }
        fs::remove_file(&launch.path).expect("removed");
        client.consult(&rig.answering("and again")).await.expect_success();
        rig.stop_and_check_invariants([client]).await;
    }
}

#[tokio::test]
#[ignore = "takes as long as a server leaves its launch path alone, 30 s"]
async fn a_server_finds_a_new_file_with_the_first_request_after_thirty_seconds() {
    let rig = new_rig();
    let launch = Launch::new(&rig);
    let began = Instant::now();
    let mut client = serve(&rig, &launch.path, "in_process");
    client.handshake("2025-11-25").await;
    launch.install_script("exit 5");
    let refused = expect_refusal(&mut client, "exited").await;
    let after = began.elapsed();
    println!("found and refused after {after:?}: {}", refused["last"]);
    assert_eq!(refused["last"]["by"], "watch", "{refused}");
    assert!(after >= Duration::from_secs(29), "{after:?}");
    rig.stop_and_check_invariants([client]).await;
}

#[tokio::test]
async fn a_server_that_is_stopped_while_it_checks_a_candidate_takes_it_along() {
    let rig = new_rig();
    let launch = Launch::new(&rig);
    for way in ["a client that hangs up", "SIGTERM"] {
        let mut client = serve(&rig, &launch.path, "in_process");
        client.handshake("2025-11-25").await;
        let begun = rig.sign(way);
        launch.install_script(&format!("touch '{}'; trap '' TERM; sleep 1000", begun.display()));
        rustix::process::kill_process(client.host_pid(), rustix::process::Signal::USR2).expect("signalled");
        rig.wait_for_sign(way).await;
        let began = Instant::now();
        if way == "SIGTERM" {
            client.signal(rustix::process::Signal::TERM);
        } else {
            client.hang_up().await;
        }
        assert!(client.exit().await.success(), "{way}");
        println!("{way}: the server ended after {:?}", began.elapsed());
        until("nothing is left of the candidate", async || rig.processes().is_empty().then_some(())).await;
        // Its own file is back for the next one.
        fs::remove_file(&launch.path).expect("removed");
        fs::hard_link(&launch.image, &launch.path).expect("linked");
    }
    rig.check_invariants().await;
}

#[tokio::test]
async fn a_server_in_a_build_directory_says_that_its_path_is_not_stable_and_is_checked_when_asked() {
    let rig = new_rig();
    let dir = rig.path("target/debug");
    fs::create_dir_all(&dir).expect("made");
    let program = dir.join("phone-opus");
    fs::copy(rig.program(), &program).expect("copied");
    let mut client = serve(&rig, &program, "in_process");
    client.handshake("2025-11-25").await;
    let seen = rollout(&mut client).await;
    assert_eq!(seen["launch_path_stable"], false, "{seen}");
    rustix::process::kill_process(client.host_pid(), rustix::process::Signal::USR2).expect("signalled");
    let seen = until_seen("it was checked and adopted", async || {
        let seen = rollout(&mut client).await;
        if seen["adopted"] == 1 { Ok(seen) } else { Err(seen) }
    })
    .await;
    assert_eq!(seen.get("rejected"), None, "{seen}");
    assert_eq!((&seen["last"]["outcome"], &seen["last"]["by"]), (&json!("adopted"), &json!("signal")), "{seen}");
    assert!(seen["last"]["reason"].as_str().is_some_and(|text| text.contains(env!("CARGO_PKG_VERSION"))), "{seen}");
    assert_eq!(client.totals().await["rollouts"], 1);
    rig.stop_and_check_invariants([client]).await;
}

#[tokio::test]
async fn a_selfcheck_touches_nothing_and_says_what_it_is_on_one_line() {
    let rig = new_rig();
    let output = rig.run(&["mcp", "selfcheck", "--json", "--isolation", "process"]).await;
    assert!(output.status.success(), "{output:?}");
    let said: Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!(said["selfcheck"], "phone-opus");
    assert_eq!(said["snapshot_format"], SNAPSHOT_FORMAT);
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 1);
    assert!(!rig.path("state").exists(), "it made a state directory");
    let words = rig.run(&["mcp", "selfcheck"]).await;
    assert!(String::from_utf8_lossy(&words.stdout).contains("can serve here"), "{words:?}");
    let wrong = rig.run(&["mcp", "selfcheck", "--no-such-option"]).await;
    assert_eq!(wrong.status.code(), Some(2));
    rig.check_invariants().await;
}

/// What a rollout costs before anything is handed over; printed.
#[tokio::test]
async fn a_check_takes_milliseconds() {
    let rig = new_rig();
    let launch = Launch::new(&rig);
    let how = Recorder::new(&rig);
    let system = start(launched(&rig, &launch), &how).await;
    let mut times = Vec::new();
    for _ in 0..10 {
        let began = Instant::now();
        let ended = system.reload(Trigger::Reload).await;
        assert!(matches!(ended, NotAdopted::HandOverFailed(_)), "{ended:?}");
        times.push(began.elapsed());
    }
    times.sort();
    println!("a forced check of an equal file: median {:?}, longest {:?}", times[5], times[9]);
    assert!(times[5] < Duration::from_secs(5), "{times:?}");
    rig.stop_system_and_check_invariants(system, []).await;
}
