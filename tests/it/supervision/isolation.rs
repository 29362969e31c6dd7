//! One contract, two places to run tools: in the host's process, and in a process of their own.
//!
//! The worker process of these tests is this test program again: `worker_process` is its entry.
//!
//! Laws: L2, L5, L6, L7, L8.

#![allow(clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tools and helpers of tests")]

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use phone_opus::internals::actors::supervision::slot::RestartPolicy;
use phone_opus::internals::base::fault::{Fault, FaultCode};
use phone_opus::internals::base::ids::Generation;
use phone_opus::internals::base::stdio::Input;
use phone_opus::internals::failpoints::Faults;
use phone_opus::internals::system::{System, SystemBuilder};
use phone_opus::internals::tools::{ReplayContract, Tool, ToolCall, ToolDefinition, ToolFuture, ToolReply};
use phone_opus::internals::worker::{self, Isolation, WorkerCommand, WorkerPolicy};
use phone_opus::testkit::tools::definition;
use phone_opus::testkit::{PATIENCE, Process, Reply, Rig, TestClient, tried_program, until, until_seen};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

// --- tools -------------------------------------------------------------------------------------------------------

/// A tool of an embedding program, the same in the host and in the worker process.
struct TestTool {
    name: &'static str,
    contract: ReplayContract,
    run: fn(ToolCall) -> ToolFuture,
}

impl Tool for TestTool {
    fn name(&self) -> &str {
        self.name
    }

    fn definition(&self) -> ToolDefinition {
        definition(self.name)
    }

    fn contract(&self) -> ReplayContract {
        self.contract
    }

    fn deadline(&self) -> Option<Duration> {
        None
    }

    fn call(&self, call: ToolCall) -> ToolFuture {
        (self.run)(call)
    }
}

/// What the tests call: `echo` gives its arguments back; `wait` never answers in the first generation and says its
/// generation in any other; `slow` takes its time and reports progress; `act` does what it is told, which is never done
/// again.
fn tools() -> [TestTool; 4] {
    let tool = |name, contract, run| TestTool { name, contract, run };
    [
        tool("echo", ReplayContract::Convergent, |call| {
            let text = String::from_utf8_lossy(&call.arguments).into_owned();
            Box::pin(std::future::ready(Ok(ToolReply { structured: Some(text.clone()), ..ToolReply::text(text) })))
        }),
        tool("wait", ReplayContract::Convergent, |call| {
            Box::pin(async move {
                if call.generation == Generation(1) {
                    std::future::pending::<()>().await;
                }
                Ok(ToolReply::text(format!("generation {}", call.generation)))
            })
        }),
        tool("slow", ReplayContract::Convergent, |call| {
            Box::pin(async move {
                for step in 1..=30_u32 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    call.progress.report(f64::from(step), format!("step {step}"));
                }
                Ok(ToolReply::text("done"))
            })
        }),
        tool("act", ReplayContract::NeverReplay, |call| {
            Box::pin(async move {
                tokio::task::yield_now().await;
                let arguments: Value = serde_json::from_slice(&call.arguments).expect("an object");
                act(arguments["do"].as_str().expect("a deed"))
            })
        }),
    ]
}

fn act(deed: &str) -> Result<ToolReply, Fault> {
    match deed {
        "panic" => panic!("as asked"),
        "error" => return Err(Fault::new(FaultCode::Busy, "as asked.")),
        "exit" => std::process::exit(3),
        "abort" => std::process::abort(),
        "kill" => {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
        "hang" => loop {
            std::thread::park();
        },
        "torn" => {
            to_host(b"{\"settled\":{\"g\":1");
            std::process::exit(0);
        }
        "garbage" => to_host(b"this is no message\n"),
        "long line" => {
            to_host(&vec![b'x'; worker::wire::line_limit(phone_opus::internals::protocol::frame::LINE_LIMIT) + 1]);
            to_host(b"\n");
        }
        other => panic!("no such deed: {other}"),
    }
    // Killed any moment, or found out.
    std::thread::sleep(Duration::from_secs(60));
    Ok(ToolReply::text("still here"))
}

// --- the worker process --------------------------------------------------------------------------------------------

/// Says what the worker process is to do wrong in its first generation.
const MANNERS: &str = "PHONE_OPUS_TEST_MANNERS";

const GENERATION: &str = "PHONE_OPUS_TEST_GENERATION";

/// The test harness prints on standard output, so the pipe to the host is moved out of its way.
const SCRIPT: &str = "exec 3>&1 >/dev/null; PHONE_OPUS_TEST_GENERATION=$2 \
                      exec \"$0\" --exact supervision::isolation::worker_process --ignored --nocapture";

fn command(rig: &Rig, manners: &str) -> WorkerCommand {
    let this = std::env::current_exe().expect("this program");
    WorkerCommand {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), SCRIPT.into(), this.into()],
        env: Some(rig.environment().with(MANNERS, manners)),
    }
}

/// The pipe to the host.
fn host_pipe() -> std::fs::File {
    std::fs::OpenOptions::new().write(true).open("/dev/fd/3").expect("the pipe to the host")
}

fn to_host(bytes: &[u8]) {
    host_pipe().write_all(bytes).expect("written");
}

#[test]
#[ignore = "the worker process of the other tests"]
fn worker_process() {
    let Some(generation) = std::env::var(GENERATION).ok().and_then(|text| text.parse().ok()) else {
        println!("no host has started this");
        return;
    };
    std::thread::spawn(|| {
        worker::host_gone(std::io::stdin()).expect("waited");
        std::thread::sleep(Duration::from_secs(1));
        std::process::exit(100);
    });
    let manners = std::env::var(MANNERS).unwrap_or_default();
    if generation == 1 && !manners.is_empty() {
        misbehave(&manners);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let output = tokio::net::unix::pipe::Sender::from_file(host_pipe()).expect("a pipe");
        let tools = tools().map(|tool| Arc::new(tool) as Arc<dyn Tool>);
        let end =
            worker::serve(Generation(generation), tools, Faults::none(), Input::stdin().expect("stdin"), output).await;
        std::process::exit(if matches!(end, Ok(worker::WorkerEnd::HostGone)) { 0 } else { 101 });
    });
}

/// What a worker of another make might do.
fn misbehave(manners: &str) -> ! {
    let names = r#"["echo","wait","slow","act","consult"]"#;
    let ready = |protocol: u32, generation: u32, names: &str| {
        to_host(format!("{{\"ready\":{{\"protocol\":{protocol},\"g\":{generation},\"tools\":{names}}}}}\n").as_bytes());
    };
    match manners {
        "mute" => {}
        "wrong generation" => ready(2, 7, names),
        "wrong protocol" => ready(3, 1, names),
        "missing tool" => ready(2, 1, r#"["echo"]"#),
        "no greeting" => to_host(b"Hello!\n"),
        "deaf" => ready(2, 1, names),
        "silent" => {
            ready(2, 1, names);
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        }
        "liar" => {
            ready(2, 1, names);
            for line in std::io::stdin().lines() {
                let line = line.expect("a line");
                let line: Value = serde_json::from_str(&line).expect("a message");
                let Value::Object(call) = &line["execute"] else { continue };
                let about = |g: u64, c: u64| json!({"g": g, "s": call["s"], "c": c, "text": "a lie"});
                let c = call["c"].as_u64().expect("a number");
                for lie in [about(2, c), about(1, c + 1000)] {
                    to_host(format!("{}\n", json!({ "settled": lie })).as_bytes());
                }
                let truth = json!({"g": 1, "s": call["s"], "c": c, "text": "the truth"});
                to_host(format!("{}\n", json!({ "settled": truth })).as_bytes());
            }
        }
        other => panic!("no such manners: {other}"),
    }
    loop {
        std::thread::park();
    }
}

// --- the suite -----------------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    InProcess,
    Process,
}

const BOTH: [Where; 2] = [Where::InProcess, Where::Process];

/// Short, so that tests do not take long, and long beside what a busy machine holds a process up.
const POLICY: WorkerPolicy = WorkerPolicy { handshake: Duration::from_secs(4), quiet: Duration::from_millis(1500) };

fn system(rig: &Rig, place: Where, manners: &str) -> SystemBuilder {
    let isolation = match place {
        Where::InProcess => Isolation::InProcess,
        Where::Process => Isolation::Process(command(rig, manners)),
    };
    tools().into_iter().fold(rig.system().isolation(isolation).worker_policy(POLICY), SystemBuilder::tool)
}

async fn connect(system: &System) -> TestClient {
    TestClient::of(system).greet().await
}

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

async fn stop(system: System, rig: Rig, clients: impl IntoIterator<Item = TestClient>) {
    rig.stop_system_and_check_invariants(system, clients).await;
}

/// Worker processes of this world.
fn workers(rig: &Rig) -> Vec<i32> {
    let worker = |process: &Process| {
        process.command.contains("isolation::worker_process ") || process.command.contains("mcp worker")
    };
    rig.processes().into_iter().filter(worker).map(|process| process.pid.as_raw_nonzero().get()).collect()
}

async fn health(client: &mut TestClient) -> Reply {
    client.call("health_snapshot", json!({"detail": "full"})).await
}

fn exists(pid: &Value) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// What goes wrong.
enum Trouble {
    /// The tool `act` does this.
    Deed(&'static str),
    /// The worker process has these manners.
    Manners(&'static str),
}

/// One row of the contract.
struct Row {
    trouble: Trouble,
    /// Why it cannot happen in the host's own process.
    only_a_process: Option<&'static str>,
    /// What the call that must not be run again is answered with.
    act: &'static str,
    /// The fault in health, and a part of its text; nothing when no worker is lost.
    fault: Option<(&'static str, &'static str)>,
}

const ENDS_THE_HOST: Option<&str> = Some("it would end the host itself");
const STOPS_THE_HOST: Option<&str> = Some("it would stop the host itself: tools must not block");
const NO_PIPE: Option<&str> = Some("there is no pipe");

const fn row(
    trouble: Trouble,
    only_a_process: Option<&'static str>,
    act: &'static str,
    fault: Option<(&'static str, &'static str)>,
) -> Row {
    Row { trouble, only_a_process, act, fault }
}

const UNKNOWN: &str = "outcome_unknown";

fn table() -> Vec<Row> {
    use Trouble::{Deed, Manners};
    vec![
        row(Deed("error"), None, "busy", None),
        row(Deed("panic"), None, UNKNOWN, Some(("worker_lost", "tool act panicked"))),
        row(Deed("exit"), ENDS_THE_HOST, UNKNOWN, Some(("worker_lost", "exited with code 3"))),
        row(Deed("abort"), ENDS_THE_HOST, UNKNOWN, Some(("worker_lost", "aborted"))),
        row(Deed("kill"), ENDS_THE_HOST, UNKNOWN, Some(("worker_lost", "was killed by signal 9"))),
        row(Deed("hang"), STOPS_THE_HOST, UNKNOWN, Some(("worker_unresponsive", "no sign of life"))),
        row(Deed("torn"), NO_PIPE, UNKNOWN, Some(("worker_protocol", "torn"))),
        row(Deed("garbage"), NO_PIPE, UNKNOWN, Some(("worker_protocol", "no message"))),
        row(Deed("long line"), NO_PIPE, UNKNOWN, Some(("worker_protocol", "too long"))),
        row(Manners("deaf"), NO_PIPE, UNKNOWN, Some(("worker_unresponsive", "no sign of life"))),
        row(Manners("silent"), NO_PIPE, UNKNOWN, Some(("worker_unresponsive", "no sign of life"))),
        // No worker had a call, so none is lost.
        row(Manners("mute"), NO_PIPE, "done", Some(("worker_handshake_timeout", "did not greet"))),
        row(Manners("wrong generation"), NO_PIPE, "done", Some(("worker_protocol", "generation 7"))),
        row(Manners("wrong protocol"), NO_PIPE, "done", Some(("worker_protocol", "version 3"))),
        row(Manners("missing tool"), NO_PIPE, "done", Some(("worker_protocol", "no tool"))),
        row(Manners("no greeting"), NO_PIPE, "done", Some(("worker_protocol", "no greeting"))),
    ]
}

/// One row in one place.
async fn contract(row: &Row, place: Where) {
    let rig = new_rig();
    let (deed, manners) = match row.trouble {
        Trouble::Deed(deed) => (deed, ""),
        Trouble::Manners(manners) => ("error", manners),
    };
    let system = system(&rig, place, manners).start().await.expect("a system");
    let (mut client, mut other) = (connect(&system).await, connect(&system).await);
    let prompt = rig.waiting("begun", "go");
    let consult = client.start("consult", json!({ "prompt": prompt })).await;
    let wait = client.start("wait", json!({})).await;
    // A client is greeted and told the tools whatever the worker does.
    let listed = other.request("tools/list", json!({})).await;
    assert!(listed["result"]["tools"].to_string().contains("\"act\""), "{listed}");
    if manners.is_empty() {
        rig.wait_for_sign("begun").await;
        assert_eq!(health(&mut other).await["calls_in_flight"], 2);
    }
    let before = health(&mut other).await;
    let isolation = if place == Where::Process { "process" } else { "in_process" };
    assert_eq!(before["isolation"], isolation);

    let act = other.start("act", json!({ "do": deed })).await;
    let reply = other.reply(act).await;
    match row.act {
        "done" => drop(reply.expect_fault("busy")),
        code => drop(reply.expect_fault(code)),
    }
    match row.fault {
        None => {
            client.cancel(wait).await;
            let now = health(&mut other).await;
            let facts = [&now["worker_generation"], &now["restart_count"], &now["last_fault"]];
            assert_eq!(facts, [&json!(1), &json!(0), &Value::Null], "{:#}", now.0);
        }
        Some((code, text)) => {
            assert_eq!(client.reply(wait).await.text(), "generation 2");
            // Whoever was answered by the second generation was so after the first had been waited for.
            assert!(place == Where::InProcess || !exists(&before["worker_pid"]), "{:#}", before.0);
            let now = health(&mut other).await;
            let facts = [&now["worker_generation"], &now["restart_count"], &now["worker_alive"]];
            assert_eq!(facts, [&json!(2), &json!(1), &json!(true)], "{:#}", now.0);
            let fault = &now["last_fault"]["fault"];
            assert_eq!((&fault["code"], &fault["generation"]), (&json!(code), &json!(1)), "{:#}", now.0);
            assert!(fault["detail"].as_str().is_some_and(|detail| detail.contains(text)), "{fault:#}");
            if place == Where::Process {
                let pid = now["worker_pid"].as_i64().expect("a process");
                assert_eq!(workers(&rig), [i32::try_from(pid).expect("a pid")], "one worker at a time");
            }
        }
    }
    rig.wait_for_sign("begun").await;
    rig.give_sign("go");
    let reply = client.reply(consult).await.expect_success();
    assert_eq!(reply["response"], "done");
    assert_eq!((rig.runs().len(), rig.jobs().await.len()), (1, 1), "one consult, one agent run");
    stop(system, rig, [client, other]).await;
}

async fn contracts(place: Where, part: impl Fn(&Trouble) -> bool) {
    for row in table().iter().filter(|row| part(&row.trouble)) {
        let name = match row.trouble {
            Trouble::Deed(name) | Trouble::Manners(name) => name,
        };
        match row.only_a_process.filter(|_| place == Where::InProcess) {
            Some(why) => println!("{place:?}, {name}: impossible, {why}"),
            None => {
                println!("{place:?}, {name}");
                contract(row, place).await;
            }
        }
    }
}

#[tokio::test]
async fn a_lost_worker_costs_no_answer_in_the_hosts_process() {
    contracts(Where::InProcess, |_| true).await;
}

#[tokio::test]
async fn a_lost_worker_costs_no_answer_when_a_tool_takes_its_process_along() {
    contracts(Where::Process, |trouble| matches!(trouble, Trouble::Deed(_))).await;
}

#[tokio::test]
async fn a_lost_worker_costs_no_answer_when_the_process_has_no_manners() {
    contracts(Where::Process, |trouble| matches!(trouble, Trouble::Manners(_))).await;
}

/// Sends a whole window of calls at once and reads the answers; each call has one, and it is its own.
async fn burst(system: &System, place: Where, calls: usize, bytes: usize) {
    let text = "x".repeat(bytes);
    let mut window = json!({"jsonrpc": "2.0", "id": "hello", "method": "initialize",
                            "params": {"protocolVersion": "2025-11-25", "capabilities": {}}})
    .to_string();
    for n in 0..calls {
        let call = json!({"name": "echo", "arguments": {"n": n, "text": text}});
        let call = json!({"jsonrpc": "2.0", "id": n, "method": "tools/call", "params": call});
        window.push_str(&format!("\n{call}"));
    }
    window.push('\n');
    // Room for all of it: nothing but the session itself decides how fast it is read.
    let (ours, theirs) = tokio::io::duplex(window.len());
    let (input, output) = tokio::io::split(theirs);
    let serving = tokio::spawn({
        let system = system.clone();
        async move { system.serve(input, output).await }
    });
    let (output, mut input) = tokio::io::split(ours);
    input.write_all(window.as_bytes()).await.expect("written");
    let mut lines = BufReader::new(output).lines();
    let mut answered = vec![false; calls];
    while answered.contains(&false) {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("in time").expect("read");
        let answer = Reply(serde_json::from_str(&line.expect("a line")).expect("a message"));
        let Some(n) = answer.0["id"].as_u64().and_then(|n| usize::try_from(n).ok()) else { continue };
        assert!(!answer.is_error(), "{place:?}, call {n} of {calls}: {}", answer.code());
        assert_eq!((answer["n"].as_u64(), answer.str("text").len()), (u64::try_from(n).ok(), bytes));
        assert!(!std::mem::replace(&mut answered[n], true), "{n} was answered twice");
    }
    input.shutdown().await.expect("closed");
    assert_eq!(lines.next_line().await.expect("read"), None);
    serving.await.expect("served").expect("in order");
}

#[tokio::test]
async fn a_burst_is_answered_wholly_in_either_place() {
    for place in BOTH {
        let rig = new_rig();
        let system = system(&rig, place, "").start().await.expect("a system");
        for (calls, bytes) in [(4096, 64), (64, 1 << 20)] {
            burst(&system, place, calls, bytes).await;
        }
        stop(system, rig, []).await;
    }
}

#[tokio::test]
async fn a_tool_that_takes_its_time_is_no_silence_and_its_progress_is_told() {
    for place in BOTH {
        let rig = new_rig();
        let policy = WorkerPolicy { quiet: Duration::from_millis(700), ..POLICY };
        let system = system(&rig, place, "").worker_policy(policy).start().await.expect("a system");
        let mut client = connect(&system).await;
        // Never answers and says nothing; only the loop around it does.
        let wait = client.start("wait", json!({})).await;
        let params = json!({"name": "slow", "arguments": {}, "_meta": {"progressToken": "p"}});
        let slow = client.send("tools/call", params).await;
        assert_eq!(client.reply(slow).await.text(), "done");
        let told = client.notifications("notifications/progress");
        assert!(told.len() > 20 && told[0]["params"]["message"] == "step 1", "{place:?}: {told:?}");
        assert_eq!(health(&mut client).await["worker_generation"], 1);
        client.cancel(wait).await;
        stop(system, rig, [client]).await;
    }
}

#[tokio::test]
async fn a_soft_deadline_shows_what_is_known_live_in_either_place() {
    for place in BOTH {
        let rig = new_rig();
        let system = system(&rig, place, "").start().await.expect("a system");
        let mut client = connect(&system).await;
        let reply = client.call("consult", json!({"prompt": rig.hanging("begun"), "wait_s": 1})).await;
        assert_eq!((reply.is_error(), reply.str("status"), reply.str("mode")), (false, "running", "background"));
        let job = reply.str("job_id").to_owned();
        // A second consult by the same key joins; by another prompt it is refused, with the host's own fault.
        let keyed = |prompt: String| json!({"prompt": prompt, "request_key": "k", "background": true});
        let first = client.call("consult", keyed(rig.answering("42"))).await;
        let second = client.call("consult", keyed(rig.answering("42"))).await;
        assert_eq!(first.str("job_id"), second.str("job_id"), "{:#}", second.0);
        client.call("consult", keyed(rig.answering("43"))).await.expect_fault("request_key_conflict");
        client.call("consult", json!({"prompt": "?", "agent": "oracle"})).await.expect_fault("invalid_input");
        client.job(first.str("job_id")).await.expect_success();
        client.call("consult_cancel", json!({ "job_id": job })).await;
        assert_eq!(client.job(&job).await.str("status"), "cancelled");
        stop(system, rig, [client]).await;
    }
}

#[tokio::test]
async fn a_cancelled_consult_ends_its_agent_in_either_place() {
    for place in BOTH {
        let rig = new_rig();
        let system = system(&rig, place, "").start().await.expect("a system");
        let mut client = connect(&system).await;
        let consult = client.start("consult", json!({"prompt": rig.hanging("begun")})).await;
        rig.wait_for_sign("begun").await;
        client.cancel(consult).await;
        assert_eq!(rig.only_job_over().await.state.as_str(), "cancelled");
        rig.expect_no_agent_left().await;
        stop(system, rig, [client]).await;
    }
}

#[tokio::test]
async fn news_of_another_generation_or_of_no_call_is_counted_and_dropped() {
    let rig = new_rig();
    let system = system(&rig, Where::Process, "liar").start().await.expect("a system");
    let mut client = connect(&system).await;
    assert_eq!(client.call("echo", json!({})).await.text(), "the truth");
    let now = health(&mut client).await;
    assert_eq!((&now["stale_messages"], &now["worker_generation"]), (&json!(2), &json!(1)));
    stop(system, rig, [client]).await;
}

#[tokio::test]
async fn a_worker_program_that_cannot_run_is_given_up_and_the_host_goes_on() {
    for (program, text) in [("/nonexistent/worker", "could not be started"), ("/bin/false", "exited with code 1")] {
        let rig = new_rig();
        let command = WorkerCommand { program: program.into(), args: Vec::new(), env: None };
        let policy = RestartPolicy { intensity: 2, backoff: Duration::from_millis(1), ..RestartPolicy::default() };
        let system = system(&rig, Where::InProcess, "").isolation(Isolation::Process(command)).restart_policy(policy);
        let system = system.start().await.expect("a system");
        let mut client = connect(&system).await;
        client.call("echo", json!({})).await.expect_fault("worker_lost");
        let now = health(&mut client).await;
        let fault = &now["last_fault"]["fault"];
        assert_eq!((&fault["code"], &now["ready"]), (&json!("worker_spawn_failed"), &json!(false)), "{fault:#}");
        assert!(fault["detail"].as_str().is_some_and(|detail| detail.contains(text)), "{fault:#}");
        client.ping().await;
        stop(system, rig, [client]).await;
    }
}

/// Runs a test of this module in a process of its own: it counts what the process has open.
fn alone(test: &str) {
    let this = std::env::current_exe().expect("this program");
    let name = format!("supervision::isolation::{test}");
    let output = std::process::Command::new(this)
        .args(["--exact", &name, "--ignored", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// Set in a process that runs one test and nothing beside it.
const ALONE: &str = "PHONE_OPUS_TEST_ALONE";

#[test]
fn fifty_lost_workers_leave_nothing_behind() {
    alone("fifty_workers_are_lost_alone");
}

#[tokio::test]
#[ignore = "run by `fifty_lost_workers_leave_nothing_behind`"]
async fn fifty_workers_are_lost_alone() {
    if std::env::var_os(ALONE).is_none() {
        return println!("skipped: other tests run beside this one");
    }
    let rig = new_rig();
    let quick = Duration::from_millis(1);
    let policy = RestartPolicy { intensity: 1000, backoff: quick, backoff_most: quick, ..RestartPolicy::default() };
    let system = system(&rig, Where::Process, "").restart_policy(policy).start().await.expect("a system");
    let mut client = connect(&system).await;
    let open = || std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    client.call("act", json!({"do": "kill"})).await.expect_fault("outcome_unknown");
    // The next worker is up, with what belongs to it.
    assert!(!client.call("echo", json!({})).await.is_error());
    let before = open();
    for round in 0..50 {
        let echo = client.start("echo", json!({ "n": round })).await;
        client.call("act", json!({"do": if round % 2 == 0 { "kill" } else { "abort" }})).await.expect_fault(UNKNOWN);
        assert!(!client.reply(echo).await.is_error());
    }
    client.call("echo", json!({})).await;
    // What is opened once, such as the log, may have been opened meanwhile; fifty of anything were not.
    until_seen("no descriptor was left open", async || match open() {
        now if now <= before + 4 => Ok(()),
        now => Err(format!("{now} are open, {before} were")),
    })
    .await;
    assert_eq!(workers(&rig).len(), 1);
    assert_eq!(health(&mut client).await["worker_generation"], 52);
    stop(system, rig, [client]).await;
}

#[tokio::test]
async fn a_worker_whose_tool_holds_its_thread_ends_with_its_host() {
    let rig = new_rig();
    let command = command(&rig, "");
    let mut child = tokio::process::Command::new(&command.program)
        .args(&command.args)
        .args(["--generation", "1"])
        .env_clear()
        .envs(command.env.iter().flat_map(|env| env.iter()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("a worker");
    let mut input = child.stdin.take().expect("stdin");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let host = "00000000-0000-4000-8000-000000000000";
    let settings = json!({"host": host, "line_limit": 1 << 20, "desk": null});
    let hello = json!({"hello": {"protocol": 2, "g": 1, "settings": settings}});
    let call = |c: u64, tool: &str| {
        let head = json!({"g": 1, "s": 1, "c": c, "tool": tool});
        format!("{{\"execute\":{head},\"arguments\":{}}}", json!({"do": "hang"}))
    };
    let said = format!("{hello}\n{}\n{}\n", call(1, "echo"), call(2, "act"));
    input.write_all(said.as_bytes()).await.expect("written");
    for part in ["ready", "settled"] {
        let line = lines.next_line().await.expect("read").expect("a line");
        assert!(line.contains(part), "{line}");
    }
    drop(input);
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends").expect("waited");
    assert_eq!(status.code(), Some(100));
    let mut rest = Vec::new();
    lines.into_inner().read_to_end(&mut rest).await.expect("read");
    assert_eq!(String::from_utf8_lossy(&rest), "");
    rig.check_invariants().await;
}

// --- the program itself --------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_programs_worker_process_dies_with_a_killed_host() {
    let mut rig = new_rig().with("PHONE_OPUS_ISOLATION", "process");
    let mut client = rig.serve().await;
    let consult = client.start("consult", json!({"prompt": rig.hanging("begun")})).await;
    rig.wait_for_sign("begun").await;
    assert_eq!(workers(&rig).len(), 1);
    client.signal(rustix::process::Signal::KILL);
    client.exit().await;
    until("no worker is left", async || workers(&rig).is_empty().then_some(())).await;
    client.give_up_on(consult);
    client.silence().await;
    assert_eq!(rig.only_job_over().await.state.as_str(), "cancelled");
    rig.check_invariants().await;
}

#[tokio::test]
async fn a_killed_worker_process_of_the_program_costs_no_second_run() {
    let mut rig = new_rig().with("PHONE_OPUS_ISOLATION", "process");
    let mut client = rig.serve().await;
    let prompt = rig.waiting("begun", "go");
    let consult = client.start("consult", json!({ "prompt": prompt })).await;
    rig.wait_for_sign("begun").await;
    let [pid] = workers(&rig)[..] else { panic!("one worker") };
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    until("the next one has the call", async || {
        let now = health(&mut client).await;
        (now["worker_generation"] == 2 && now["replays"] == 1).then_some(())
    })
    .await;
    rig.give_sign("go");
    client.reply(consult).await.expect_success();
    assert_eq!(rig.runs().len(), 1);
    rig.stop_and_check_invariants([client]).await;
}

/// How often the threads of a process went to sleep.
fn sleeps(pid: i32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok())
        .flat_map(|status| {
            status
                .lines()
                .filter_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
                .filter_map(|count| count.trim().parse::<u64>().ok())
                .collect::<Vec<_>>()
        })
        .sum()
}

#[tokio::test]
async fn a_worker_process_and_its_host_sleep_while_there_is_no_work() {
    let mut rig = new_rig().with("PHONE_OPUS_ISOLATION", "process");
    let mut client = rig.serve().await;
    client.consult(&rig.answering("42")).await.expect_success();
    let [worker] = workers(&rig)[..] else { panic!("one worker") };
    let host = client.host_pid().as_raw_nonzero().get();
    let both = || (sleeps(worker), sleeps(host));
    // The last timer of the work runs out once; the sweep of jobs comes every 30 s.
    let mut last = both();
    until("nobody woke up for four seconds", async || {
        tokio::time::sleep(Duration::from_secs(4)).await;
        let before = std::mem::replace(&mut last, both());
        (before == last).then_some(())
    })
    .await;
    rig.stop_and_check_invariants([client]).await;
}
