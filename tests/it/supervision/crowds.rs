//! Crowds: more requests than a stuck worker can hold, clients that do not read, windows of every size. Nothing is lost,
//! doubled or swapped, what does not fit is refused at once, and whoever is not concerned does not notice.
//!
//! The worker process of the systems in this program is this program again: `worker_process` is its entry. Full sizes:
//! `cargo test --release --test it supervision::crowds -- --ignored --nocapture`.
//!
//! Laws: L1, L9, L14.

#![cfg(target_os = "linux")]
#![allow(clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tools and helpers of tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use phone_opus::internals::base::ids::Generation;
use phone_opus::internals::base::stdio::Input;
use phone_opus::internals::failpoints::Faults;
use phone_opus::internals::system::SystemBuilder;
use phone_opus::internals::worker::{self, Isolation, WorkerCommand};
use phone_opus::testkit::client::REVISION;
use phone_opus::testkit::processes::resident;
use phone_opus::testkit::tools::echo;
use phone_opus::testkit::{Rig, Role, Sent, TestClient, tried_program, until};
use serde_json::json;

/// Calls one connection may have in flight.
const BOUND: usize = 1024;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    InProcess,
    Process,
}

const BOTH: [Where; 2] = [Where::InProcess, Where::Process];

impl Where {
    const fn word(self) -> &'static str {
        match self {
            Self::InProcess => "in_process",
            Self::Process => "process",
        }
    }
}

// --- the worker process ------------------------------------------------------------------------------------------------

const GENERATION: &str = "PHONE_OPUS_TEST_GENERATION";

/// The test harness prints on standard output, so the pipe to the host is moved out of its way.
const SCRIPT: &str = "exec 3>&1 >/dev/null; PHONE_OPUS_TEST_GENERATION=$2 \
                      exec \"$0\" --exact supervision::crowds::worker_process --ignored --nocapture";

#[test]
#[ignore = "the worker process of the other tests"]
fn worker_process() {
    let Some(generation) = std::env::var(GENERATION).ok().and_then(|text| text.parse().ok()) else {
        println!("no host has started this");
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let pipe = std::fs::OpenOptions::new().write(true).open("/dev/fd/3").expect("the pipe to the host");
        let output = tokio::net::unix::pipe::Sender::from_file(pipe).expect("a pipe");
        let tools = [Arc::new(echo()) as _];
        let end =
            worker::serve(Generation(generation), tools, Faults::none(), Input::stdin().expect("stdin"), output).await;
        std::process::exit(if matches!(end, Ok(worker::WorkerEnd::HostGone)) { 0 } else { 101 });
    });
}

/// A system in this process, whose tools run there.
fn system(rig: &Rig, place: Where) -> SystemBuilder {
    let isolation = match place {
        Where::InProcess => Isolation::InProcess,
        Where::Process => Isolation::Process(WorkerCommand {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), SCRIPT.into(), std::env::current_exe().expect("this program").into()],
            env: Some(rig.environment()),
        }),
    };
    rig.system().isolation(isolation).tool(echo())
}

// --- a stuck worker ----------------------------------------------------------------------------------------------------

/// How a worker gets stuck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stuck {
    /// Its tool never answers.
    Hangs(Where),
    /// It reads nothing any more.
    Deaf,
    /// It is stopped where it stands.
    Frozen,
}

impl Stuck {
    const ALL: [Self; 4] = [Self::Hangs(Where::InProcess), Self::Hangs(Where::Process), Self::Deaf, Self::Frozen];

    fn rig(self) -> Rig {
        // The first consult is served; from the second on nothing is.
        let plan = |action: &str| {
            format!(
                "worker.before_execute@tools/call:consult=delay:1;worker.before_execute@tools/call:consult#*={action}"
            )
        };
        match self {
            Self::Hangs(place) => new_rig().with_faults(&plan("hang")).with("PHONE_OPUS_ISOLATION", place.word()),
            Self::Deaf => new_rig().with_faults(&plan("stop_reading")).with("PHONE_OPUS_ISOLATION", "process"),
            Self::Frozen => new_rig().with("PHONE_OPUS_ISOLATION", "process"),
        }
    }
}

fn memory(host: &TestClient) -> usize {
    usize::try_from(resident(host.host_pid()).expect("the host lives")).expect("a size")
}

async fn timed_ping(host: &mut TestClient) -> Duration {
    let began = Instant::now();
    host.ping().await;
    began.elapsed()
}

async fn a_crowd_before(stuck: Stuck, crowd: usize) {
    let mut rig = stuck.rig();
    let mut host = rig.serve().await;
    let job = host.consult_in_background(&rig.hanging("begun")).await;
    rig.wait_for_sign("begun").await;
    if stuck == Stuck::Frozen {
        rig.freeze(Role::Worker);
    }
    let idle = timed_ping(&mut host).await;
    let began = Instant::now();
    let asked = json!({"prompt": rig.answering("never")});
    let mut sent: Vec<Sent> = Vec::new();
    let before = memory(&host);
    let mut full = 0;
    let mut pings = Vec::new();
    while sent.len() < crowd {
        sent.push(host.start("consult", asked.clone()).await);
        if sent.len().is_multiple_of(500) {
            pings.push(timed_ping(&mut host).await);
        }
        if sent.len() == BOUND + 76 {
            host.ping().await;
            full = memory(&host);
        }
    }
    pings.push(timed_ping(&mut host).await);
    let after = memory(&host);
    for refused in &sent[BOUND..] {
        host.reply(*refused).await.expect_fault("busy");
    }
    let mut still = Vec::new();
    for _ in 0..20 {
        still.push(timed_ping(&mut host).await);
    }
    let mut looks = Vec::new();
    for _ in 0..10 {
        let began = Instant::now();
        assert!(!host.call("consult_jobs", json!({})).await.is_error());
        looks.push(began.elapsed());
    }
    let asking = Instant::now();
    let cancelled = host.call("consult_cancel", json!({"job_id": job})).await;
    let cancel = asking.elapsed();
    assert_eq!((cancelled.is_error(), cancelled.str("status")), (false, "cancelled"), "{:#}", cancelled.0);
    // A place that becomes free is a place, and no more than one.
    host.cancel(sent[0]).await;
    let (place, none) = (host.start("consult", asked.clone()).await, host.start("consult", asked).await);
    host.reply(none).await.expect_fault("busy");
    host.give_up_on(place);
    let health = host.health().await;
    assert_eq!(health.number("calls_in_flight"), BOUND as u64);
    assert_eq!((health.number("worker_generation"), health.number("replays")), (1, 0));
    for times in [&mut pings, &mut still, &mut looks] {
        times.sort_unstable();
    }
    println!(
        "{stuck:?}, {crowd} requests in {:?}: ping {idle:?} before, behind 500 requests median {:?}, max {:?}, stuck median \
         {:?}, max {:?}; consult_jobs median {:?}, max {:?}; consult_cancel {cancel:?}; resident {} KiB before, {} KiB with {} requests, {} KiB with {crowd}",
        began.elapsed(),
        pings[pings.len() / 2],
        pings[pings.len() - 1],
        still[still.len() / 2],
        still[still.len() - 1],
        looks[looks.len() / 2],
        looks[looks.len() - 1],
        before / KIB,
        full / KIB,
        BOUND + 76,
        after / KIB,
    );
    // Reading waits for a worker that is behind, 50 ms at most; the rest is what a busy machine may add.
    assert!(pings[pings.len() - 1] < Duration::from_secs(1), "a ping waited for a stuck worker: {pings:?}");
    // Only calls of the worker make room, so nobody waits for it again when something else was answered.
    assert!(looks[0] < Duration::from_millis(40), "each look waited for a stuck worker: {looks:?}");
    assert!(cancel < Duration::from_secs(2), "a cancel waited for a stuck worker: {cancel:?}");
    // What is refused leaves nothing behind but records on their way to the log, of which there are so many at most: each
    // of the refused lines is 300 bytes, and 2 MiB is less than keeping 7,000 of them would be. And what is kept is the
    // calls: a few KiB each at most.
    assert!(after.saturating_sub(full) < 2 * MIB, "the host grew with what it refused: {full} to {after}");
    assert!(
        full.saturating_sub(before) < 4 * KIB * BOUND,
        "a call in flight costs more than 4 KiB: {before} to {full}"
    );
    for open in &sent[1..BOUND] {
        host.give_up_on(*open);
    }
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_crowd_before_a_stuck_worker_is_refused_while_the_host_answers() {
    for stuck in Stuck::ALL {
        a_crowd_before(stuck, 8_000).await;
    }
}

#[tokio::test]
#[ignore = "full size"]
async fn ten_thousand_requests_before_a_stuck_worker_are_refused_while_the_host_answers() {
    for stuck in Stuck::ALL {
        a_crowd_before(stuck, 10_000).await;
    }
}

// --- a client that does not read ---------------------------------------------------------------------------------------

async fn a_deaf_client_stalls_itself_only(place: Where, calls: usize) {
    let rig = new_rig();
    let system = system(&rig, place).start().await.expect("a system");
    // The worker is started before anything is measured.
    let mut other = TestClient::of(&system).greet().await;
    other.call("echo", json!({})).await;
    let mut deaf = TestClient::of(&system).buffer(16 * KIB).not_reading().open();
    let reading = deaf.reading();
    let written = Arc::new(AtomicUsize::new(0));
    let writing = tokio::spawn({
        let written = Arc::clone(&written);
        async move {
            deaf.send_greeting(REVISION).await;
            let text = "x".repeat(64 * KIB);
            let mut sent = Vec::new();
            for id in 0..calls {
                sent.push(deaf.start("echo", json!({"text": text})).await);
                written.store(id + 1, Ordering::SeqCst);
            }
            (deaf, sent)
        }
    });
    // It is held up when nothing more gets through although another client is served all the while.
    let mut last = usize::MAX;
    let mut slowest = Duration::ZERO;
    until("the client is held up", async || {
        for n in 0..100 {
            let began = Instant::now();
            let reply = other.call("echo", json!({"n": n})).await;
            assert_eq!(reply.text(), format!("{{\"n\":{n}}}"));
            slowest = slowest.max(began.elapsed());
        }
        let before = std::mem::replace(&mut last, written.load(Ordering::SeqCst));
        (before == last && last > 0).then_some(())
    })
    .await;
    println!("{place:?}: {last} calls of 64 KiB were taken; the other client waited {slowest:?} at most");
    assert!(last < calls && !writing.is_finished(), "{last} calls were taken from a client that reads nothing");
    other.consult(&rig.answering("42")).await.expect_success();

    reading.go_on();
    let (mut deaf, sent) = writing.await.expect("everything was written");
    for sent in sent {
        assert!(!deaf.reply(sent).await.is_error());
    }
    deaf.hang_up().await;
    deaf.served().await.expect("in order");
    rig.stop_system_and_check_invariants(system, [deaf, other]).await;
}

#[tokio::test]
async fn a_client_that_never_reads_stalls_itself_only_in_either_place() {
    for place in BOTH {
        a_deaf_client_stalls_itself_only(place, 200).await;
    }
}

#[tokio::test]
#[ignore = "full size"]
async fn a_client_that_leaves_two_thousand_replies_unread_stalls_itself_only() {
    for place in BOTH {
        a_deaf_client_stalls_itself_only(place, 2_000).await;
    }
}

// --- windows -----------------------------------------------------------------------------------------------------------

/// The arguments of the n-th call: about so many bytes that no other call has.
fn arguments(n: usize, size: usize) -> serde_json::Value {
    let letter = char::from(b'a' + u8::try_from(n % 26).expect("a letter"));
    let head = format!("{n}:");
    let body = letter.to_string().repeat(size.saturating_sub(head.len()));
    json!({ "text": head + &body })
}

/// Keeps so many calls of this size unanswered until a cell's bytes are used up, and looks at every answer.
async fn window(place: Where, window: usize, size: usize, most: usize) {
    // A window that alone is more than a cell's bytes is cut to them; at full size none is.
    let window = window.min(most / size);
    let calls = (4 * window).max(16).min(most / size);
    let rig = new_rig();
    let system = system(&rig, place).start().await.expect("a system");
    let mut client = TestClient::of(&system).greet().await;
    client.call("echo", json!({})).await;
    let began = Instant::now();
    let mut sent = std::collections::VecDeque::new();
    let mut busy = 0;
    for n in 0..calls {
        sent.push_back((n, client.start("echo", arguments(n, size)).await));
        // Answers that have come are taken at once, for thousands of a mebibyte would not fit into memory.
        while let Some((first, call)) = sent.front().copied()
            && (sent.len() == window || n + 1 == calls || client.is_answered(call))
        {
            sent.pop_front();
            let reply = client.take(call).await;
            if reply.code() == "busy" {
                busy += 1;
                continue;
            }
            assert!(!reply.is_error(), "{place:?} {window} × {size}: {}", reply.text());
            // Compared, not shown: it may be a mebibyte.
            let asked = arguments(first, size).to_string();
            assert!(reply.text() == asked, "{place:?} {window} × {size}: call {first} is wrong");
        }
    }
    let took = began.elapsed();
    println!(
        "{:10} window {window:4} × {size:7} B: {calls:5} calls in {took:?}, {:.0} calls/s, {busy} refused",
        place.word(),
        calls as f64 / took.as_secs_f64()
    );
    // What fits is never refused. What does not is held back while its worker is at work, which no test can promise for a
    // machine that is busy otherwise.
    if window <= BOUND && window * (size + KIB) <= 64 * MIB {
        assert_eq!(busy, 0, "{place:?} {window} × {size}");
    }
    rig.stop_system_and_check_invariants(system, [client]).await;
}

async fn windows(windows: &[usize], sizes: &[usize], most: usize) {
    for place in BOTH {
        for size in sizes {
            for wide in windows {
                window(place, *wide, *size, most).await;
            }
        }
    }
}

#[tokio::test]
async fn windows_of_calls_lose_double_and_swap_nothing_in_either_place() {
    windows(&[1, 8, 64], &[64, 64 * KIB], 2 * MIB).await;
    windows(&[512, 4096], &[64], 512 * KIB).await;
    windows(&[4], &[MIB], 8 * MIB).await;
}

#[tokio::test]
#[ignore = "full size: minutes, and gigabytes through the pipes"]
async fn windows_up_to_four_thousand_calls_and_a_mebibyte_lose_double_and_swap_nothing() {
    windows(&[1, 8, 64, 512, 4096], &[64, 64 * KIB, MIB], 4096 * MIB).await;
}
