//! What a hostile agent writes, through the real runner: how it is classified, and how much memory it costs.
//!
//! `PHONE_OPUS_HOSTILE_MB=100` writes as much as is meant, with lines of half of it; a tenth is enough to see that memory
//! does not grow with it. `PHONE_OPUS_TEST_PROGRAM` names another program than the one of this build.
//!
//! Laws: L8, L9.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "helpers of tests")]

use std::time::Duration;

use phone_opus::testkit::{
    ForkPlace, Process, Reply, Rig, Role, Script, Step, TestClient, Waiting, processes, tried_program,
};
use serde_json::{Map, Value, json};

/// What a host may take beyond what it had after a small consult, whatever an agent writes: buffers and news that do not grow with
/// it.
const HOST_GROWTH_MB: u64 = 18;

/// What a runner may take beyond one whose agent says nothing, when its agent writes much but no long lines: 1 MiB of ring,
/// 1 MiB of the tap, 8 MiB of journal on its way to the disk, 256 KiB of text, and what the allocator keeps of them.
const RUNNER_GROWTH_MB: u64 = 24;

/// A long line is kept (up to 64 MiB), read, and its text taken out of it; the text is then written into the outcome, which is
/// kept for another try and turned into JSON for the store: this many times its length with what buffers have grown beyond it.
const COPIES_OF_A_LINE: u64 = 6;

fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
        // Every line of output is worth a line of the log at the most verbose level.
        .with("PHONE_OPUS_LOG", "warn")
}

fn megabytes() -> u64 {
    std::env::var("PHONE_OPUS_HOSTILE_MB").ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

/// The most memory of its own a host and a runner had, in MB.
#[derive(Debug, Clone, Copy)]
struct Peaks {
    host: u64,
    runner: u64,
}

impl Peaks {
    /// `None` where `/proc` does not say.
    fn of(host: &Process, runner: &Process) -> Option<Self> {
        let megabytes = |process: &Process| Some(processes::own_peak(process.pid)? / 1_000_000);
        Some(Self { host: megabytes(host)?, runner: megabytes(runner)? })
    }
}

/// What a consult of these steps is answered, and the most memory its host and its runner had by the time everything was
/// read.
async fn consulted(rig: &Rig, host: &mut TestClient, script: Script) -> (Reply, Option<Peaks>) {
    let mut script = script;
    // Said in a line of its own, so that whoever has heard it has read everything before it.
    script.steps.extend([Step::Text("all said".into()), Step::WaitForFile(rig.sign("go"))]);
    let job = host.consult_in_background(&rig.prompt(script)).await;
    let waiting = Waiting::until("everything is read", Duration::from_secs(120));
    loop {
        let reply = host.call("consult_job", json!({"job_id": job})).await;
        if reply.str("response").ends_with("all said") {
            break;
        }
        waiting.again(|| reply.text().chars().take(300).collect::<String>()).await;
    }
    // The runner reads the same bytes apart from its host, and writes them down.
    let (serving, runner) = (rig.the(Role::Host).await, rig.the(Role::Runner).await);
    let waiting = Waiting::until("the runner has read everything", Duration::from_secs(120));
    let mut before = (0, None);
    loop {
        let now = (busy_ticks(&runner), processes::own_peak(runner.pid));
        if now == before {
            break;
        }
        before = now;
        waiting.again(|| format!("{now:?}")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let peaks = Peaks::of(&serving, &runner);
    rig.give_sign("go");
    let reply = host.job(&job).await;
    std::fs::remove_file(rig.sign("go")).expect("the sign is taken back");
    (reply, peaks)
}

/// What a host and a runner take when an agent says next to nothing. The code that any other consult uses is used by then.
async fn plain(rig: &Rig, host: &mut TestClient) -> Option<Peaks> {
    let (reply, peaks) = consulted(rig, host, answering("so", Vec::new())).await;
    reply.expect_success();
    peaks
}

/// The processor time a process has used, in the kernel's ticks.
fn busy_ticks(process: &Process) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid.as_raw_nonzero())).unwrap_or_default();
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    fields.iter().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

fn answering(answer: &str, steps: Vec<Step>) -> Script {
    Script { answer: Some(answer.into()), steps, ..Script::default() }
}

fn expect_growth_below(what: &str, plain: Option<Peaks>, now: Option<Peaks>, runner_mb: u64) {
    let Some((plain, now)) = plain.zip(now) else { return println!("{what}: memory cannot be read here") };
    let grown = |now: u64, plain: u64| now.saturating_sub(plain);
    let (host, runner) = (grown(now.host, plain.host), grown(now.runner, plain.runner));
    println!(
        "{what}: +{host} MB at the host (bound {HOST_GROWTH_MB}), +{runner} MB at the runner (bound {runner_mb}); {now:?}"
    );
    assert!(host <= HOST_GROWTH_MB && runner <= runner_mb, "{what}: {now:?} where a small one has {plain:?}");
}

#[tokio::test]
async fn memory_does_not_grow_with_the_output() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let plain = plain(&rig, &mut host).await;
    let bytes = megabytes() * 1_000_000;
    for (what, steps) in [
        ("events", vec![Step::HugeOutput(bytes)]),
        ("garbage lines", vec![Step::Garbage(u32::try_from(bytes / 32).expect("few enough"))]),
        ("stderr", vec![Step::HugeStderr(bytes)]),
    ] {
        let (reply, peaks) = consulted(&rig, &mut host, answering("42", steps)).await;
        assert_eq!(reply.expect_success()["response"], "42", "after {what}");
        expect_growth_below(&format!("{} MB of {what}", megabytes()), plain, peaks, RUNNER_GROWTH_MB);
    }
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn one_long_line_costs_the_runner_some_copies_of_it_and_the_host_nothing() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let plain = plain(&rig, &mut host).await;
    let length = megabytes() / 2;
    let bytes = length * 1_000_000;
    let (reply, peaks) = consulted(&rig, &mut host, answering("42", vec![Step::HugeLine(bytes)])).await;
    assert_eq!(reply.expect_success()["response"], "42");
    let bound = COPIES_OF_A_LINE * length;
    expect_growth_below(&format!("a line of {length} MB that means nothing"), plain, peaks, bound);
    let (reply, peaks) = consulted(&rig, &mut host, answering("42", vec![Step::HugeText(bytes)])).await;
    assert_eq!(reply.expect_success()["response"], "42");
    expect_growth_below(&format!("a text of {length} MB"), plain, peaks, bound);
    // A text that is no longer news, many times: none of them may wait for the disk as a whole.
    let texts = vec![Step::HugeText(1_000_000); usize::try_from(megabytes()).expect("few enough")];
    let (reply, peaks) = consulted(&rig, &mut host, answering("42", texts)).await;
    assert_eq!(reply.expect_success()["response"], "42");
    expect_growth_below(&format!("{} texts of 1 MB", megabytes()), plain, peaks, RUNNER_GROWTH_MB);
    rig.stop_and_check_invariants([host]).await;
}

fn fields(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

#[tokio::test]
async fn what_is_no_text_does_not_cost_the_answer() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let raw = r#"{"type":"result","subtype":"success","is_error":false,"result":"half a pair: \ud83d, and on","session_id":"3f2504e0-4f89-41d3-9a0c-0305e82c3301","num_turns":1,"terminal_reason":"completed"}"#;
    let silent = |steps| Script { steps, no_result: true, ..Script::default() };
    for (what, script, answer) in [
        ("a lone surrogate in a text", answering("42", vec![Step::LoneSurrogate]), "42"),
        ("a lone surrogate in the answer", silent(vec![Step::Raw(raw.into())]), "half a pair: \u{fffd}, and on"),
        (
            "half a character at the end",
            silent(vec![Step::Result(fields(&json!({"result": "42"}))), Step::HalfUtf8]),
            "42",
        ),
        (
            "more events after the result",
            silent(vec![
                Step::Result(fields(&json!({"result": "42"}))),
                Step::ToolUse("Grep".into()),
                Step::Text("and one more thing".into()),
            ]),
            "42",
        ),
        (
            "a second result after the first",
            answering("last", vec![Step::Result(fields(&json!({"result": "first"}))), Step::Text("more".into())]),
            "last",
        ),
    ] {
        let reply = host.consult(&rig.prompt(script)).await;
        assert!(!reply.is_error(), "{what}: {:#}", reply.0);
        assert_eq!(reply["response"], answer, "{what}");
    }
    // Half a character, and nothing else: nothing was answered.
    let reply = host.consult(&rig.prompt(silent(vec![Step::HalfUtf8]))).await;
    reply.expect_fault("agent_protocol");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_result_is_no_answer_while_what_the_agent_started_still_runs() {
    let mut rig = new_rig();
    let mut host = rig.serve().await;
    let result = Step::Result(fields(&json!({"result": "42"})));
    // The agent is gone, two that it started are not, and hold its pipes.
    let left = vec![result.clone(), Step::Fork(ForkPlace::Group), Step::Fork(ForkPlace::Session), Step::Exit(0)];
    let reply = host.call("consult", json!({"prompt": rig.doing(left), "detail": "full"})).await.expect_success();
    assert_eq!((&reply["response"], &reply["exit"]["reaped"]), (&json!("42"), &json!(2)), "{:#}", reply.0);
    assert_eq!(rig.agents().len(), 0, "{:?}", rig.agents());
    // The agent itself goes on after its result; the job is not over before it is.
    let on = vec![result, Step::Touch(rig.sign("said")), Step::WaitForFile(rig.sign("go"))];
    let script = Script { steps: on, no_result: true, ..Script::default() };
    let sent = host.start("consult", json!({"prompt": rig.prompt(script)})).await;
    rig.wait_for_sign("said").await;
    host.ping().await;
    let jobs = rig.jobs().await;
    assert_eq!(jobs.iter().filter(|job| !job.state.is_terminal()).count(), 1, "{jobs:?}");
    rig.give_sign("go");
    assert_eq!(host.reply(sent).await.expect_success()["response"], "42");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn an_agent_that_falls_silent_is_ended_as_stalled_with_what_it_had_said() {
    let mut rig = new_rig().with("PHONE_OPUS_STALL_S", "10");
    let mut host = rig.serve().await;
    let quiet = vec![Step::Text("at work".into()), Step::IgnoreTerm, Step::Fork(ForkPlace::Group), Step::Hang];
    let quiet = host.start("consult", json!({"prompt": rig.doing(quiet)})).await;
    // Slow is not silent.
    let slow = (0..6).flat_map(|_| [Step::DelayMs(2500), Step::Thinking]).collect();
    let slow = host.start("consult", json!({"prompt": rig.doing(slow)})).await;
    let reply = host.reply(quiet).await.expect_fault("agent_stalled");
    assert_eq!(reply["response"], "at work");
    host.reply(slow).await.expect_success();
    rig.stop_and_check_invariants([host]).await;
}
