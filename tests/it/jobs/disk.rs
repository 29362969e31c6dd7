//! The store under stress, as the whole program bears it: a disk that is full, read-only or damaged, a store of a later
//! version, many who write at once, and ten thousand jobs.
//!
//! `cargo test --test it jobs::disk -- --ignored --nocapture` prints what reading among ten thousand jobs takes.
//! `PHONE_OPUS_TEST_PROGRAM` names another program than the one of this build.
//!
//! Laws: L4, L9.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "helpers of tests")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use phone_opus::internals::base::ids::{ChainId, JobId, RunToken, UnixMillis};
use phone_opus::internals::jobs::store::{AcceptLimits, SqliteStore, StartOutcome, Store, Transition};
use phone_opus::internals::jobs::{ConsultRequest, JobMode, JobOutcome, JobState, JournalEvent, NewJob, RunProcess};
use phone_opus::testkit::client::REVISION;
use phone_opus::testkit::{PATIENCE, Rig, Role, Step, TestClient, Waiting, tried_program, until};
use serde_json::{Value, json};
use tokio::process::Command;

fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

/// A host that a shell starts by `exec … "$@"`.
async fn host_by(rig: &Rig, script: &str) -> TestClient {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(rig.program()).args(["mcp", "serve"]);
    command.env_clear().envs(rig.environment().iter()).current_dir(rig.work()).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut host = TestClient::of_process(command.spawn().expect("a shell"));
    host.handshake(REVISION).await;
    host
}

fn words(reply: &phone_opus::testkit::Reply) -> String {
    let fault = &reply.0["result"]["structuredContent"]["fault"];
    format!("{} {}", fault["detail"].as_str().unwrap_or_default(), fault["hint"].as_str().unwrap_or_default())
}

/// The most a process may write into one file; `None` for no limit.
#[cfg(target_os = "linux")]
fn limit_files(pid: rustix::process::Pid, bytes: Option<u64>) {
    use rustix::process::{Resource, Rlimit, prlimit};
    prlimit(Some(pid), Resource::Fsize, Rlimit { current: bytes, maximum: None }).expect("a limit");
}

/// A limit on the size of files stands for a disk that is full: the write of a page fails halfway through a verb.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_disk_that_is_full_refuses_what_it_cannot_keep_and_loses_nothing_it_has() {
    let mut rig = new_rig().with("PHONE_OPUS_LOG", "off");
    let mut first = rig.serve().await;
    let kept = first.consult(&rig.answering("kept")).await.expect_success();
    // Without the signal that would end it, a write beyond the limit is an error like any other.
    let mut host = host_by(&rig, "trap '' XFSZ; exec \"$@\"").await;
    limit_files(host.host_pid(), Some(1024));
    let refused = host.consult(&rig.answering("never")).await.expect_fault("store_unavailable");
    assert!(!words(&refused).trim().is_empty(), "{:#}", refused.0);
    rig.expect_runs(1);
    // What is there is read all the same, by it and by others.
    for reader in [&mut host, &mut first] {
        let reply = reader.call("consult_job", json!({"job_id": kept["job_id"]})).await.expect_success();
        assert_eq!(reply["response"], "kept");
        reader.ping().await;
    }
    // A job was accepted while there was room, and there is none left for its answer: it is waited for, not lost.
    limit_files(host.host_pid(), None);
    let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    let runner = rig.the(Role::Runner).await;
    limit_files(runner.pid, Some(1024));
    rig.give_sign("go");
    rig.expect_no_agent_left().await;
    // Not a wait for something to happen: it must not have given up while the disk is full.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(runner.lives());
    assert_eq!(rig.jobs().await.iter().filter(|job| job.state == JobState::Running).count(), 1);
    limit_files(runner.pid, None);
    assert_eq!(host.reply(sent).await.expect_success()["response"], "done");
    host.consult(&rig.answering("42")).await.expect_success();
    rig.stop_and_check_invariants([first, host]).await;
}

/// Who runs as root may write anywhere, unless it gives that up.
fn without_privilege() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("exec \"$@\"");
    }
    let drop = "setpriv --bounding-set=-dac_override --inh-caps=-all";
    let works = std::process::Command::new("sh")
        .args(["-c", &format!("d=$(mktemp -d) && chmod 500 $d && {drop} test ! -w $d && rmdir $d")])
        .status()
        .is_ok_and(|status| status.success());
    works.then_some("exec setpriv --bounding-set=-dac_override --inh-caps=-all \"$@\"")
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_said_so_and_used_again_when_it_can() {
    let Some(start) = without_privilege() else {
        return println!("skipped: this is root, and setpriv cannot take its privilege away");
    };
    let mut rig = new_rig();
    let mut first = rig.serve().await;
    first.consult(&rig.answering("kept")).await.expect_success();
    first.finish().await;
    let state = rig.path("state");
    let set = |mode| std::fs::set_permissions(&state, std::fs::Permissions::from_mode(mode)).expect("a mode");
    set(0o500);
    let mut host = host_by(&rig, start).await;
    let refused = host.consult(&rig.answering("never")).await.expect_fault("store_unavailable");
    assert!(words(&refused).contains("--state-dir"), "what to do about it: {:#}", refused.0);
    let health = host.health().await;
    assert_eq!((&health["ready"], &health["store"]["status"]), (&json!(false), &json!("unavailable")));
    host.ping().await;
    rig.expect_runs(1);
    set(0o700);
    let waiting = Waiting::until("the store is used again", PATIENCE);
    loop {
        let health = host.health().await;
        if health["store"]["status"] == "ok" {
            break;
        }
        waiting.again(|| format!("{:#}", health.0)).await;
    }
    host.consult(&rig.answering("42")).await.expect_success();
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_damaged_store_is_moved_aside_with_a_message_and_never_deleted() {
    let mut rig = new_rig();
    rig.state_dir().create().expect("a directory");
    let garbage = b"this is no database, however long one looks at it. ".repeat(500);
    std::fs::write(rig.state_dir().database(), &garbage).expect("written");
    let mut hosts = vec![rig.serve().await, rig.serve().await];
    for host in &mut hosts {
        host.consult(&rig.answering("42")).await.expect_success();
    }
    let mut moved = Vec::new();
    for host in &mut hosts {
        moved.extend(host.health().await["store"]["damaged_store_moved_to"].as_str().map(PathBuf::from));
    }
    let [aside] = &moved[..] else { panic!("one of them moved it: {moved:?}") };
    assert!(std::fs::read(aside).expect("it is kept") == garbage, "not a byte of it was changed");
    let said = |host: usize| std::fs::read_to_string(rig.path(&format!("host-{host}.stderr"))).unwrap_or_default();
    assert!([said(1), said(2)].iter().any(|log| log.contains("it was moved aside")), "{}{}", said(1), said(2));
    rig.stop_and_check_invariants(hosts).await;
}

/// Where SQLite keeps the version of a database: bytes 60 to 63 of its first page.
const VERSION_AT: usize = 60;

#[tokio::test]
async fn a_store_of_a_later_version_is_refused_and_left_alone() {
    let mut rig = new_rig();
    let mut first = rig.serve().await;
    first.consult(&rig.answering("kept")).await.expect_success();
    first.finish().await;
    let database = rig.state_dir().database();
    // Who closes the store last, host or runner, puts the log into the database; before that the log's word counts.
    let log = database.with_extension("db-wal");
    until("the store is closed", async || (!log.exists()).then_some(())).await;
    let ours = std::fs::read(&database).expect("read");
    let mut later = ours.clone();
    later[VERSION_AT..VERSION_AT + 4].copy_from_slice(&99_u32.to_be_bytes());
    std::fs::write(&database, &later).expect("written");
    let mut host = rig.serve().await;
    for (tool, arguments) in [("consult", json!({"prompt": rig.answering("never")})), ("consult_jobs", json!({}))] {
        let refused = host.call(tool, arguments).await.expect_fault("store_unavailable");
        assert!(words(&refused).contains("version is 99"), "{:#}", refused.0);
        assert!(words(&refused).contains("newer phone-opus"), "what to do about it: {:#}", refused.0);
    }
    host.ping().await;
    rig.expect_runs(1);
    host.finish().await;
    assert!(std::fs::read(&database).expect("read") == later, "not a byte was changed");
    std::fs::write(&database, &ours).expect("written");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn hosts_and_runners_that_write_at_once_lose_nothing() {
    let mut rig = new_rig().with("PHONE_OPUS_MAX_RUNNING", "8").with("PHONE_OPUS_LOG", "warn");
    let mut hosts = Vec::new();
    for _ in 0..4 {
        hosts.push(rig.serve().await);
    }
    let busy = vec![Step::ToolUse("Grep".into()); 100];
    let began = Instant::now();
    let mut sent = Vec::new();
    for call in 0..24 {
        let prompt = rig.doing(busy.clone());
        sent.push((call % 4, hosts[call % 4].start("consult", json!({"prompt": prompt})).await));
    }
    for (host, sent) in sent {
        hosts[host].reply(sent).await.expect_success();
    }
    println!("24 consults of 4 hosts, 8 at once, 200 entries each: {:?}", began.elapsed());
    rig.expect_runs(24);
    for job in rig.jobs().await {
        // Introduction, tool uses and their results, the answer's text, the result, and the process around them.
        assert!(job.last_event >= 206, "{job:?}");
    }
    rig.stop_and_check_invariants(hosts).await;
}

/// Ten thousand jobs in fifty workspaces, all but a few of them over, with the journal of a short run each.
fn ten_thousand(dir: &phone_opus::internals::base::state_dir::StateDir, here: &Path) -> Vec<JobId> {
    let mut store = SqliteStore::in_dir(dir).expect("a store");
    let mut jobs = Vec::new();
    for n in 0..10_000_i64 {
        let at = UnixMillis(UnixMillis::now().0 - 10_000_000 + n * 1000);
        let workspace = if n % 50 == 0 { here.to_owned() } else { format!("/workspace/{}", n % 50).into() };
        let job = NewJob {
            id: JobId::random(),
            invocation: None,
            request_key: None,
            given: None,
            workspace: workspace.clone(),
            mode: JobMode::Background,
            request: ConsultRequest::new("why? ".repeat(400)).cwd(workspace).timeout_s(60),
            chain: ChainId::random(),
            depth: 0,
            accepted_at: at,
            environment: None,
            account: String::new(),
            host: None,
            trace: None,
        };
        let _ = store.accept(&job, AcceptLimits { max_queued: 20 }).expect("accepted");
        jobs.push(job.id);
        if n >= 9_990 {
            continue;
        }
        assert_eq!(store.start(job.id, at), Ok(StartOutcome::Started));
        let mark = RunProcess { pid: 1, start_time: 1, token: RunToken::random(), session: 1, numbering: 1 };
        assert_eq!(store.set_process(job.id, mark), Ok(Transition::Done));
        let journal = vec![(at, JournalEvent::Dispatched), (at, JournalEvent::ProcessStarted { pid: 1 })];
        store.append(job.id, &journal).expect("written");
        let mut outcome = JobOutcome::default();
        outcome.response = Some("because. ".repeat(400));
        (outcome.num_turns, outcome.cost_usd) = (Some(3), Some(0.01));
        assert_eq!(store.finish(job.id, JobState::Succeeded, &outcome, at), Ok(Transition::Done));
        if n % 10 != 0 {
            store.mark_read(job.id, at).expect("read");
        }
    }
    jobs
}

/// Calls a tool a thousand times, and tells how long the middle and the hundredth slowest took.
async fn timed(host: &mut TestClient, what: &str, tool: &str, mut arguments: impl FnMut(usize) -> Value) {
    let mut took = Vec::new();
    for call in 0..1000 {
        let arguments = arguments(call);
        let began = Instant::now();
        let reply = host.call(tool, arguments).await;
        took.push(began.elapsed());
        assert!(!reply.is_error(), "{what}: {:#}", reply.0);
    }
    took.sort_unstable();
    println!("{what}: p50 {:?}, p99 {:?}, max {:?}", took[500], took[990], took[999]);
}

#[tokio::test]
#[ignore = "prints times; it takes a minute to fill the store"]
async fn reading_among_ten_thousand_jobs() {
    let mut rig = new_rig().with("PHONE_OPUS_LOG", "off");
    let dir = rig.state_dir();
    let here = std::fs::canonicalize(rig.work()).expect("a directory");
    let began = Instant::now();
    let jobs = tokio::task::spawn_blocking(move || ten_thousand(&dir, &here)).await.expect("filled");
    let size = std::fs::metadata(rig.state_dir().database()).expect("a database").len();
    println!("10,000 jobs accepted, run and finished in {:?}; {} MB", began.elapsed(), size / 1_000_000);
    let mut host = rig.serve().await;
    timed(&mut host, "health_snapshot", "health_snapshot", |_| json!({})).await;
    timed(&mut host, "consult_jobs of the workspace", "consult_jobs", |_| json!({})).await;
    timed(&mut host, "consult_jobs of all, 50", "consult_jobs", |_| json!({"scope": "all", "limit": 50})).await;
    timed(&mut host, "consult_jobs by state", "consult_jobs", |_| json!({"scope": "all", "state": "queued"})).await;
    let job = |call: usize| jobs[call * 9].to_string();
    timed(&mut host, "consult_job", "consult_job", |call| json!({"job_id": job(call)})).await;
    timed(&mut host, "consult_job with events", "consult_job", |call| json!({"job_id": job(call), "after_seq": 0}))
        .await;
    // The queued ones were accepted by nobody who could run them; a host that stays would take them up.
    host.signal(phone_opus::testkit::Signal::KILL);
    host.exit().await;
}

#[tokio::test]
#[ignore = "prints times"]
async fn from_accepting_a_consult_to_its_agents_first_words() {
    let mut rig = new_rig().with("PHONE_OPUS_LOG", "off");
    let mut host = rig.serve().await;
    // What an agent is like is found out by the first one.
    host.consult(&rig.answering("warm")).await.expect_success();
    let mut took: [Vec<i64>; 4] = Default::default();
    for _ in 0..200 {
        let began = Instant::now();
        let reply = host.consult(&rig.answering("42")).await.expect_success();
        took[3].push(i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX));
        let job = reply.str("job_id").to_owned();
        let shown = host.call("consult_job", json!({"job_id": job, "after_seq": 0, "detail": "full"})).await;
        let accepted = shown["timings"]["accepted_at"].as_i64().expect("a time");
        let events = shown["events"].as_array().expect("events");
        let first = |kind: &str| {
            let event = events.iter().find(|event| event["event"].to_string().contains(kind));
            event.and_then(|event| event["at"].as_i64()).expect("its time") - accepted
        };
        took[0].push(first("\"dispatched\""));
        took[1].push(first("\"process_started\""));
        took[2].push(first("\"agent\""));
    }
    let names = ["runner at work", "agent's process", "agent's first event", "answer, for the caller"];
    for (name, mut took) in names.into_iter().zip(took) {
        took.sort_unstable();
        println!("accepted to {name}: p50 {} ms, p99 {} ms", took[took.len() / 2], took[took.len() * 99 / 100]);
    }
    rig.stop_and_check_invariants([host]).await;
}
