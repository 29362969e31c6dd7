//! What is durable, whatever happens to the store, the runner or the keys: an answer is told and kept while the store
//! refuses it, what was said is not forgotten with the runner, nothing is left alive, a key is bound to what ran, and what
//! is forgotten is gone.
//!
//! Laws: L3, L4, L7, L13.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "helpers of tests")]

use std::path::Path;
use std::time::{Duration, Instant};

use phone_opus::internals::base::ids::JobId;
use phone_opus::internals::jobs::{JobRecord, JobState, reserve};
use phone_opus::testkit::{
    ForkPlace, PATIENCE, Reply, Rig, Role, Script, Step, TestClient, Waiting, processes, tried_program,
};
use serde_json::{Value, json};

fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

fn id(job: &str) -> JobId {
    job.parse().expect("a job's id")
}

/// Waits until a job is over.
async fn over(rig: &Rig, job: &str) -> JobRecord {
    let waiting = Waiting::until("the job is over", PATIENCE);
    loop {
        let found = rig.jobs().await.into_iter().find(|record| record.id.to_string() == job);
        match found {
            Some(record) if record.state.is_terminal() => return record,
            found => waiting.again(|| format!("{found:?} and {:?}", rig.processes())).await,
        }
    }
}

/// Waits until the one running job's agent is recorded, so that its start is over.
async fn until_recorded(rig: &Rig) {
    let waiting = Waiting::until("the agent's process is recorded", PATIENCE);
    while !rig.jobs().await.iter().any(|job| job.process.is_some_and(|process| process.pid > 0)) {
        waiting.again(|| format!("{:?}", rig.processes())).await;
    }
}

async fn until_gone(path: &Path) {
    let waiting = Waiting::until(format!("{} is gone", path.display()), PATIENCE);
    while path.exists() {
        waiting.again(|| "it is there").await;
    }
}

async fn until_exists(path: &Path) {
    let waiting = Waiting::until(format!("{} exists", path.display()), PATIENCE);
    while !path.exists() {
        waiting.again(|| "it does not").await;
    }
}

/// For worlds whose jobs are forgotten on purpose, so that the laws about them have nothing to look at.
async fn expect_nothing_left(rig: &Rig) {
    let waiting = Waiting::until("nothing is left alive", PATIENCE);
    while !rig.processes().is_empty() {
        waiting.again(|| format!("{:?}", rig.processes())).await;
    }
}

fn assert_unstored(reply: &Reply) {
    assert_eq!((&reply["stored"], &reply["status"]), (&json!(false), &json!("succeeded")), "{:#}", reply.0);
    assert!(reply.text().contains("not stored"), "{}", reply.text());
}

// --- the store refuses ----------------------------------------------------------------------------------------------

#[tokio::test]
async fn who_waits_gets_the_answer_while_the_store_is_held_and_it_is_stored_when_it_is_free() {
    for isolation in ["in_process", "process"] {
        let mut rig = new_rig().with("PHONE_OPUS_ISOLATION", isolation);
        let mut host = rig.serve().await;
        let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
        rig.wait_for_sign("begun").await;
        until_recorded(&rig).await;
        let held = rig.hold_store();
        rig.give_sign("go");
        let reply = host.reply(sent).await.expect_success();
        assert_unstored(&reply);
        assert_eq!(reply["response"], "done");
        let job = reply.str("job_id").to_owned();
        // The truth is what is stored: it runs, and its runner lives.
        let shown = host.call("consult_job", json!({"job_id": job})).await;
        assert_eq!(shown["status"], "running", "{:#}", shown.0);
        assert!(
            shown["phase"].as_str().is_some_and(|phase| phase.contains("waits for the job store")),
            "{:#}",
            shown.0
        );
        assert_eq!(rig.runners().len(), 1);
        drop(held);
        let record = over(&rig, &job).await;
        assert_eq!(record.state, JobState::Succeeded);
        // What is stored is not kept beside it.
        until_gone(&rig.state_dir().job_outcome(record.id)).await;
        let shown = host.job(&job).await.expect_success();
        assert_eq!((&shown["response"], &shown["stored"]), (&json!("done"), &Value::Null));
        rig.expect_runs(1);
        rig.stop_and_check_invariants([host]).await;
    }
}

/// How long another program holds the store, how often, and from when: at any moment of a consult. `PHONE_OPUS_STORE_HELD_S=100`
/// holds it for as long as it is meant to be, `PHONE_OPUS_STORE_HELD_SEED` repeats one.
fn holds() -> (Duration, usize, u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("PHONE_OPUS_STORE_HELD_S");
    let seed = number("PHONE_OPUS_STORE_HELD_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("PHONE_OPUS_STORE_HELD_SEED={seed}");
    (Duration::from_secs(seconds.unwrap_or(3)), if seconds.is_some() { 4 } else { 3 }, seed)
}

#[tokio::test]
async fn a_store_that_is_held_from_any_moment_of_a_consult_on_costs_no_answer_and_runs_nothing_twice() {
    let (long, times, seed) = holds();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut rig = new_rig().with_patience(long + PATIENCE).with("PHONE_OPUS_MAX_RUNNING", "8");
    let mut host = rig.serve().await;
    host.consult(&rig.answering("before")).await.expect_success();
    for time in 0..times {
        let mut sent = Vec::new();
        for number in 0..4_u64 {
            let script = Script {
                steps: vec![Step::DelayMs(random.u64(..600))],
                answer: Some(format!("{time}/{number}")),
                ..Script::default()
            };
            let arguments = json!({"prompt": rig.prompt(script), "background": number % 2 == 1});
            sent.push(host.start("consult", arguments).await);
        }
        // Which moment of theirs this is, is the seed's and the machine's to say.
        tokio::time::sleep(Duration::from_millis(random.u64(..800))).await;
        let held = rig.hold_store();
        let since = Instant::now();
        let waiting = Waiting::until("it was held for long enough", long + PATIENCE);
        while since.elapsed() < long {
            host.ping().await;
            waiting.again(|| format!("{:?}", since.elapsed())).await;
        }
        drop(held);
        for (number, sent) in sent.into_iter().enumerate() {
            let reply = host.reply(sent).await;
            if reply.is_error() {
                assert_eq!(reply.code(), "store_unavailable", "{time}/{number}: {:#}", reply.0);
            } else if reply.str("status") == "succeeded" {
                assert_eq!(reply["response"], format!("{time}/{number}"), "{:#}", reply.0);
            }
        }
    }
    let waiting = Waiting::until("every job is over", PATIENCE);
    while rig.jobs().await.iter().any(|job| !job.state.is_terminal()) {
        waiting.again(|| format!("{:?}", rig.processes())).await;
    }
    let jobs = rig.jobs().await;
    let succeeded = jobs.iter().filter(|job| job.state == JobState::Succeeded).count();
    println!("{} accepted, {succeeded} answered", jobs.len());
    for job in jobs.iter().filter(|job| job.state != JobState::Succeeded) {
        let fault = job.outcome.as_ref().and_then(|outcome| outcome.fault.as_ref()).map(|fault| fault.code.as_str());
        assert_eq!(fault, Some("store_unavailable"), "only what could not begin: {job:?}");
    }
    rig.expect_runs(succeeded);
    rig.stop_and_check_invariants([host]).await;
}

/// Who dies while the outcome waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    Runner,
    RunnerAndHost,
}

#[tokio::test]
async fn an_outcome_that_waits_for_the_store_outlives_its_runner_and_its_host() {
    for lost in [Lost::Runner, Lost::RunnerAndHost] {
        let mut rig = new_rig();
        let mut host = rig.serve().await;
        let job = host.consult_in_background(&rig.waiting("begun", "go")).await;
        rig.wait_for_sign("begun").await;
        until_recorded(&rig).await;
        let held = rig.hold_store();
        rig.give_sign("go");
        until_exists(&rig.state_dir().job_outcome(id(&job))).await;
        if lost == Lost::RunnerAndHost {
            host.expect_end();
            host.signal(phone_opus::testkit::Signal::KILL);
            host.exit().await;
        }
        rig.kill(Role::Runner);
        drop(held);
        let mut next = rig.serve().await;
        let record = over(&rig, &job).await;
        assert_eq!(record.state, JobState::Succeeded, "{lost:?}: {record:?}");
        let shown = next.job(&job).await.expect_success();
        assert_eq!(shown["response"], "done", "{lost:?}");
        until_gone(&rig.state_dir().job_outcome(id(&job))).await;
        rig.expect_runs(1);
        rig.stop_and_check_invariants([host, next]).await;
    }
}

#[tokio::test]
async fn a_cleaner_that_empties_the_state_directory_does_not_cost_who_waits_the_answer() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    rig.empty_state();
    rig.give_sign("go");
    let reply = host.reply(sent).await.expect_success();
    assert_unstored(&reply);
    assert_eq!(reply["response"], "done");
    rig.expect_runs(1);
    // It serves on, with a store of its own making.
    host.consult(&rig.answering("42")).await.expect_success();
    host.finish().await;
    expect_nothing_left(&rig).await;
}

/// A disk that the reserve may be kept on.
const DISK: u64 = 24 << 20;

fn small_disk(rig: &Rig) -> Option<phone_opus::testkit::SmallDisk> {
    let disk = rig.small_disk(DISK);
    if disk.is_none() {
        println!("skipped: this user may not mount a disk");
    }
    disk
}

#[tokio::test]
async fn a_full_disk_takes_an_answer_into_the_room_that_is_kept_for_it() {
    let mut rig = new_rig().with("PHONE_OPUS_LOG", "off");
    let Some(disk) = small_disk(&rig) else { return };
    let mut host = rig.serve().await;
    host.consult(&rig.answering("42")).await.expect_success();
    reserve::keep(&rig.state_dir()).expect("room is kept");
    let answer = "x".repeat(300_000);
    let steps = vec![Step::Touch(rig.sign("begun")), Step::WaitForFile(rig.sign("go"))];
    let prompt = rig.prompt(Script { answer: Some(answer.clone()), steps, ..Script::default() });
    let job = host.consult_in_background(&prompt).await;
    rig.wait_for_sign("begun").await;
    disk.fill();
    rig.give_sign("go");
    let record = over(&rig, &job).await;
    let outcome = record.outcome.expect("an outcome");
    assert_eq!((record.state, outcome.response.as_deref()), (JobState::Succeeded, Some(&answer[..])));
    assert!(!rig.state_dir().reserve().exists(), "it was given up");
    disk.free();
    rig.expect_runs(2);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn on_a_full_disk_without_room_the_answer_is_told_kept_in_memory_and_stored_later() {
    let mut rig = new_rig().with("PHONE_OPUS_LOG", "off");
    let Some(disk) = small_disk(&rig) else { return };
    let mut host = rig.serve().await;
    host.consult(&rig.answering("42")).await.expect_success();
    let answer = "x".repeat(300_000);
    let steps = vec![Step::Touch(rig.sign("begun")), Step::WaitForFile(rig.sign("go"))];
    let prompt = rig.prompt(Script { answer: Some(answer.clone()), steps, ..Script::default() });
    let sent = host.start("consult", json!({"prompt": prompt})).await;
    rig.wait_for_sign("begun").await;
    // There never was a reserve, or somebody else has used it.
    let _ = std::fs::remove_file(rig.state_dir().reserve());
    disk.fill();
    rig.give_sign("go");
    let reply = host.reply(sent).await.expect_success();
    assert_unstored(&reply);
    assert!(reply["response"].as_str().is_some_and(|told| told.starts_with("xxx")));
    disk.free();
    let record = over(&rig, reply.str("job_id")).await;
    let outcome = record.outcome.expect("an outcome");
    assert_eq!((record.state, outcome.response.as_deref()), (JobState::Succeeded, Some(&answer[..])));
    rig.expect_runs(2);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn pruning_makes_room_on_a_full_disk() {
    let mut rig = new_rig().with("PHONE_OPUS_LOG", "off");
    let Some(disk) = small_disk(&rig) else { return };
    let mut host = rig.serve().await;
    let answer = "x".repeat(300_000);
    let prompt = rig.prompt(Script { answer: Some(answer), ..Script::default() });
    for _ in 0..3 {
        host.consult(&prompt).await.expect_success();
    }
    host.finish().await;
    reserve::keep(&rig.state_dir()).expect("room is kept");
    disk.fill();
    let ended = rig.run(&["jobs", "prune", "--older-than", "0", "--keep", "0"]).await;
    let said = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");
    assert!(rig.jobs().await.is_empty(), "{said}");
    disk.free();
    expect_nothing_left(&rig).await;
}

// --- the runner is lost -----------------------------------------------------------------------------------------------

#[tokio::test]
async fn what_an_agent_had_said_is_told_when_its_runner_is_lost() {
    for lost in [Lost::Runner, Lost::RunnerAndHost] {
        let mut rig = new_rig();
        let mut host = rig.serve().await;
        let steps = vec![Step::Text("half an answer".into()), Step::Touch(rig.sign("begun")), Step::Hang];
        let session = "6f9619ff-8b86-4011-b42d-00c04fc964ff";
        let script =
            Script { steps, model: Some("opus-x".into()), session_id: Some(session.into()), ..Script::default() };
        let job = host.consult_in_background(&rig.prompt(script)).await;
        rig.wait_for_sign("begun").await;
        let waiting = Waiting::until("what it said is written down", PATIENCE);
        loop {
            let journal = rig.journal(id(&job)).await;
            if journal.iter().any(|entry| format!("{:?}", entry.event).contains("half an answer")) {
                break;
            }
            waiting.again(|| format!("{journal:?}")).await;
        }
        if lost == Lost::RunnerAndHost {
            host.expect_end();
            rig.kill(Role::Runner);
            host.signal(phone_opus::testkit::Signal::KILL);
            host.exit().await;
        } else {
            rig.kill(Role::Runner);
        }
        let mut next = rig.serve().await;
        let record = over(&rig, &job).await;
        assert_eq!(record.state, JobState::Interrupted, "{lost:?}");
        let reply = next.job(&job).await;
        assert_eq!(reply["session_id"], session, "{lost:?}: {:#}", reply.0);
        assert_eq!(reply["model"], "opus-x", "{lost:?}: {:#}", reply.0);
        assert_eq!(reply["response"], "half an answer", "{lost:?}: {:#}", reply.0);
        assert_eq!(reply["resumable"], true, "{lost:?}: {:#}", reply.0);
        assert!(reply["billing"].is_string(), "{lost:?}: {:#}", reply.0);
        rig.expect_runs(1);
        rig.stop_and_check_invariants([host, next]).await;
    }
}

#[tokio::test]
async fn children_without_an_environment_are_ended_with_the_job_of_a_lost_runner() {
    if !processes::are_visible() {
        return println!("skipped: processes cannot be seen here");
    }
    for lost in [Lost::Runner, Lost::RunnerAndHost] {
        let mut rig = new_rig();
        let mut host = rig.serve().await;
        let mut steps = vec![Step::IgnoreTerm];
        steps.extend([ForkPlace::Group, ForkPlace::Session, ForkPlace::Bare].map(Step::Fork));
        steps.extend([Step::Touch(rig.sign("begun")), Step::Hang]);
        let job = host.consult_in_background(&rig.doing(steps)).await;
        rig.wait_for_sign("begun").await;
        let waiting = Waiting::until("all of them are there", PATIENCE);
        while rig.all(Role::Offspring).len() < 3 {
            waiting.again(|| format!("{:?}", rig.processes())).await;
        }
        if lost == Lost::RunnerAndHost {
            host.expect_end();
            rig.kill(Role::Runner);
            host.signal(phone_opus::testkit::Signal::KILL);
            host.exit().await;
        } else {
            rig.kill(Role::Runner);
        }
        let next = rig.serve().await;
        let record = over(&rig, &job).await;
        assert_eq!(record.state, JobState::Interrupted);
        // L7: over means that nothing of it is alive, not that it soon will be.
        assert!(rig.agents().is_empty(), "{lost:?}: {:?}", rig.agents());
        rig.stop_and_check_invariants([host, next]).await;
    }
}

// --- a runner that stands still -----------------------------------------------------------------------------------------

/// Begins a background consult and stops its runner where it stands.
async fn frozen(rig: &Rig, host: &mut TestClient, arguments: Value) -> String {
    let mut arguments = arguments;
    arguments["prompt"] = json!(rig.hanging("begun"));
    arguments["background"] = json!(true);
    let job = host.call("consult", arguments).await.str("job_id").to_owned();
    rig.wait_for_sign("begun").await;
    // The host has heard of it, so it is known to run.
    rig.freeze(Role::Runner);
    job
}

#[tokio::test]
async fn a_runner_that_stands_still_keeps_neither_its_deadline_nor_a_cancel_of_its_host_from_being_kept() {
    for deadline in [false, true] {
        let mut rig = new_rig();
        let mut host = rig.serve().await;
        let arguments = if deadline { json!({"timeout_s": 2}) } else { json!({}) };
        let job = frozen(&rig, &mut host, arguments).await;
        let began = Instant::now();
        if !deadline {
            let told = host.call("consult_cancel", json!({"job_id": job})).await;
            assert!(!told.is_error(), "{:#}", told.0);
        }
        let record = over(&rig, &job).await;
        println!("deadline {deadline}: over after {:?}", began.elapsed());
        let expected = if deadline { JobState::Interrupted } else { JobState::Cancelled };
        assert_eq!(record.state, expected, "{record:?}");
        assert!(rig.agents().is_empty(), "{:?}", rig.agents());
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn a_cancel_by_another_process_is_kept_although_the_runner_stands_still() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let job = frozen(&rig, &mut host, json!({})).await;
    // Asked through the store alone; it says that it has asked.
    rig.run(&["jobs", "cancel", &job]).await;
    let record = over(&rig, &job).await;
    assert_eq!(record.state, JobState::Cancelled, "{record:?}");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
#[ignore = "full size: a job of no host is given two minutes"]
async fn a_runner_of_no_host_that_stands_still_is_ended_by_whoever_looks() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let job = frozen(&rig, &mut host, json!({})).await;
    host.expect_end();
    host.signal(phone_opus::testkit::Signal::KILL);
    host.exit().await;
    let next = rig.serve().await;
    rig.run(&["jobs", "cancel", &job]).await;
    let waiting = Waiting::until("the job is over", Duration::from_secs(180));
    while rig.jobs().await.iter().any(|job| !job.state.is_terminal()) {
        waiting.again(|| format!("{:?}", rig.processes())).await;
    }
    assert_eq!(rig.jobs().await[0].state, JobState::Cancelled);
    rig.stop_and_check_invariants([host, next]).await;
}

// --- keys ---------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_key_whose_agent_never_started_runs_when_it_can_and_one_whose_agent_ran_never_again() {
    let mut rig = new_rig();
    let real = std::fs::read_link(rig.path("phone-opus-scripted-agent")).expect("the agent's link");
    let at = rig.path("bin").join("phone-opus-scripted-agent");
    rig.set("PHONE_OPUS_CLAUDE_BIN", at.display().to_string());
    let mut host = rig.serve().await;
    let ask = |prompt: String| json!({"prompt": prompt, "request_key": "k"});
    let prompt = rig.answering("42");
    host.call("consult", ask(prompt.clone())).await.expect_fault("agent_missing");
    rig.expect_runs(0);
    std::fs::create_dir(rig.path("bin")).expect("a directory");
    std::os::unix::fs::symlink(real, &at).expect("a link");
    let reply = host.call("consult", ask(prompt.clone())).await.expect_success();
    assert_eq!((&reply["response"], &reply["joined"]), (&json!("42"), &Value::Null));
    let again = host.call("consult", ask(prompt)).await.expect_success();
    assert_eq!((&again["job_id"], &again["joined"]), (&reply["job_id"], &Value::Null));
    rig.expect_runs(1);

    let failing = rig.prompt(Script { exit: Some(3), no_result: true, ..Script::default() });
    let ask = |prompt: &str| json!({"prompt": prompt, "request_key": "failing"});
    let failed = host.call("consult", ask(&failing)).await;
    assert!(failed.is_error() && failed["joined"] == Value::Null, "{:#}", failed.0);
    let again = host.call("consult", ask(&failing)).await;
    assert!(again.is_error(), "{:#}", again.0);
    assert_eq!((&again["job_id"], &again["joined"]), (&failed["job_id"], &json!(true)));
    assert!(again.text().contains("another key"), "{}", again.text());
    rig.expect_runs(2);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn the_same_call_joins_from_a_server_with_other_defaults() {
    let mut rig = new_rig().with("PHONE_OPUS_TIMEOUT_S", "600");
    let mut first = rig.serve().await;
    rig.set("PHONE_OPUS_TIMEOUT_S", "900");
    let mut second = rig.serve().await;
    let ask = json!({"prompt": rig.answering("42"), "request_key": "k"});
    let reply = first.call("consult", ask.clone()).await.expect_success();
    let again = second.call("consult", ask.clone()).await.expect_success();
    assert_eq!(again["job_id"], reply["job_id"]);
    let mut other = ask;
    other["timeout_s"] = json!(30);
    second.call("consult", other).await.expect_fault("request_key_conflict");
    rig.expect_runs(1);
    rig.stop_and_check_invariants([first, second]).await;
}

// --- what is told, and what is forgotten ----------------------------------------------------------------------------------

#[tokio::test]
async fn consults_their_caller_cancelled_do_not_push_an_answer_out_of_what_is_announced() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let job = host.consult_in_background(&rig.answering("unread")).await;
    assert_eq!(over(&rig, &job).await.state, JobState::Succeeded);
    for cell in 0..6 {
        let sign = format!("begun {cell}");
        let sent = host.start("consult", json!({"prompt": rig.hanging(&sign)})).await;
        rig.wait_for_sign(&sign).await;
        host.cancel(sent).await;
    }
    let waiting = Waiting::until("all of them are cancelled", PATIENCE);
    while rig.jobs().await.iter().any(|job| !job.state.is_terminal()) {
        waiting.again(|| format!("{:?}", rig.processes())).await;
    }
    let reply = host.consult(&rig.answering("42")).await.expect_success();
    assert_eq!(reply["unread_jobs"], json!([job]), "{:#}", reply.0);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn what_was_pruned_is_in_no_file_of_the_state_directory() {
    let mut rig = new_rig().with("PHONE_OPUS_LOG", "off");
    let mut host = rig.serve().await;
    for _ in 0..3 {
        host.consult(&rig.answering("CANARY-ANSWER")).await.expect_success();
    }
    let copy = rig.state_dir().root().join("phone-opus.db.corrupt-1");
    std::fs::copy(rig.state_dir().database(), &copy).expect("copied");
    let ended = rig.run(&["jobs", "prune", "--older-than", "0", "--keep", "0"]).await;
    assert!(ended.status.success(), "{ended:?}");
    let mut left = Vec::new();
    let mut dirs = vec![rig.state_dir().root().to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                dirs.push(entry);
                continue;
            }
            let bytes = std::fs::read(&entry).expect("read");
            let holds = |mark: &str| bytes.windows(mark.len()).any(|window| window == mark.as_bytes());
            left.extend([rig.canary(), "CANARY-ANSWER"].into_iter().filter(|mark| holds(mark)).map(|_| entry.clone()));
        }
    }
    assert!(left.is_empty(), "still readable in {left:?}");
    host.finish().await;
    expect_nothing_left(&rig).await;
}
