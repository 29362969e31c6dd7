//! Many clients of one socket: a thousand sessions, one that floods, one that never reads, want of descriptors.
//!
//! Full figures: `cargo test --release --test it doors::crowds -- --ignored --nocapture`.
//!
//! Laws: L8, L9, L14, L15.

#![cfg(target_os = "linux")]
#![allow(clippy::expect_used, clippy::print_stdout, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use phone_opus::testkit::{Rig, tried_program};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit, setrlimit};
use serde_json::{Value, json};

use super::host::HostProcess;
use super::kit::LineClient;

/// Sessions on one host.
const THOUSAND: usize = 1000;

fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

/// Lets this process and its children have as many descriptors as they may; whether that is enough for so many.
fn descriptors_for(clients: usize) -> bool {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let enough = maximum.is_none_or(|most| most > clients as u64 + 200);
    if !enough {
        println!("SKIPPED: this user may have {maximum:?} descriptors, too few for {clients} clients");
    }
    enough
}

/// Connects, opens a session and initializes, as a bridge does.
async fn enter(host: &HostProcess, key: usize) -> LineClient {
    let mut client = host.connect().await;
    let open = json!({"type": "session_open", "proto": 1, "session": key.to_string(), "cwd": "/"});
    assert_eq!(client.ask(&open.to_string()).await["type"], "session_open");
    let greeting = json!({
        "jsonrpc": "2.0", "id": 0, "method": "initialize",
        "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "crowd", "version": "1"}},
    });
    assert!(client.ask(&greeting.to_string()).await["result"].is_object());
    client
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

#[tokio::test]
async fn a_thousand_sessions_are_open_and_answer_and_go_through_an_upgrade() {
    if !descriptors_for(THOUSAND) {
        return;
    }
    let rig = new_rig();
    let host = HostProcess::start(&rig).await;
    let mut clients = Vec::new();
    for number in 0..THOUSAND {
        clients.push(enter(&host, number).await);
    }
    for client in &mut clients {
        client.ping().await;
    }
    host.upgrade().await;
    for client in &mut clients {
        client.ping().await;
    }
    // Beside them there is room for a few that ask how it is, and then for nobody: that is an answer.
    let mut turned_away: Option<Value> = None;
    let mut more = Vec::new();
    while turned_away.is_none() && more.len() < 100 {
        let mut client = host.connect().await;
        let said = client.knock(r#"{"type":"hello"}"#).await;
        if said["type"] == "error" {
            turned_away = Some(said);
        } else {
            more.push(client);
        }
    }
    assert_eq!(more.len(), 24);
    assert!(turned_away.is_some_and(|said| said["to"] == "connect"));
    drop(more);
    clients[0].ping().await;
    drop(clients);
    host.stop().await;
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn one_that_floods_and_one_that_never_reads_hold_up_nobody_else() {
    const QUIET: usize = 8;
    const ROUNDS: usize = 50;
    let rig = new_rig();
    let host = HostProcess::start(&rig).await;
    let mut quiet = Vec::new();
    for number in 0..QUIET {
        quiet.push(enter(&host, number).await);
    }
    let mut deaf = enter(&host, QUIET).await;
    let burst = format!("{}\n", json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})).repeat(1000);
    let deaf = tokio::spawn(async move {
        // Until nobody reads it any more.
        let _ = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                deaf.bytes(burst.as_bytes()).await
            }
        })
        .await;
    });
    let flood = enter(&host, QUIET + 1).await;
    let flooding = flood.flood();
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        for client in &mut quiet {
            let began = Instant::now();
            client.ping().await;
            times.push(began.elapsed());
        }
    }
    let (middle, most) = (percentile(&mut times, 50), percentile(&mut times, 99));
    println!("ping of {QUIET} quiet clients beside a flood: median {middle:?}, p99 {most:?}");
    assert!(middle < Duration::from_millis(50), "median {middle:?}");
    assert!(flooding.answered() > 1000, "the flood was served as well");
    flooding.stop();
    deaf.abort();
    drop(quiet);
    host.stop().await;
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn want_of_descriptors_is_told_rests_and_passes() {
    let rig = new_rig();
    let host = HostProcess::start(&rig).await;
    let mut first = host.connect().await;
    first.ping().await;
    let used = host.descriptors() as u64;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let little = Rlimit { current: Some(used + 2), maximum };
    let before = prlimit(Some(host.pid()), Resource::Nofile, little).expect("a limit");
    let (mut served, mut told) = (Vec::new(), 0);
    let ticks = host.ticks();
    let began = Instant::now();
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let mut client = host.connect().await;
        client.line(r#"{"type":"hello"}"#).await;
        waiting.push(client);
    }
    // A few have room; of the others one at a time is told so, and then there is a rest.
    let mut left = Vec::new();
    for mut client in waiting {
        match tokio::time::timeout(Duration::from_millis(300), client.next()).await {
            Ok(Some(said)) if said["type"] == "hello" => served.push(client),
            Ok(said) => {
                assert!(said.is_some_and(|said| said["to"] == "connect"));
                told += 1;
            }
            Err(_) => left.push(client),
        }
    }
    assert!(served.len() <= 4 && told >= 1, "{} served, {told} told", served.len());
    first.ping().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (used, passed) = (host.ticks() - ticks, began.elapsed());
    assert!(used as f64 / 100.0 < 0.05 * passed.as_secs_f64() + 0.02, "{used} ticks in {passed:?}");
    prlimit(Some(host.pid()), Resource::Nofile, before).expect("a limit");
    // Whoever still waits is served once there is room; a new client waits no longer than the longest rest.
    let mut new = host.connect().await;
    new.hello().await;
    for mut client in left {
        let _ = client.next().await;
    }
    first.ping().await;
    drop((served, new, first));
    host.stop().await;
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
#[ignore = "figures of a quiet machine"]
async fn figures_of_a_thousand_sessions() {
    if !descriptors_for(THOUSAND) {
        return;
    }
    let rig = new_rig();
    let host = HostProcess::start(&rig).await;
    // What the first one costs is no session's share.
    let mut warm = Vec::new();
    for number in 0..20 {
        warm.push(enter(&host, number).await);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = host.resident();
    let mut clients = Vec::new();
    let mut entering = Vec::new();
    for number in 20..THOUSAND {
        let began = Instant::now();
        clients.push(enter(&host, number).await);
        entering.push(began.elapsed());
    }
    let at_once = host.resident();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let after = host.resident();
    let each = |bytes: u64| bytes.saturating_sub(before) / clients.len() as u64;
    println!(
        "connect, open, initialize: median {:?}, p99 {:?}",
        percentile(&mut entering, 50),
        percentile(&mut entering, 99)
    );
    println!("memory of a session: {} bytes just opened, {} bytes idle", each(at_once), each(after));
    println!("descriptors: {} for {} sessions", host.descriptors(), clients.len() + warm.len());
    let times = pings(&mut clients).await;
    println!("ping, nobody else: {times}");
    let flood = warm.pop().expect("one").flood();
    let mut deaf = warm.pop().expect("one");
    let burst = format!("{}\n", json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})).repeat(1000);
    let deaf = tokio::spawn(async move {
        loop {
            deaf.bytes(burst.as_bytes()).await
        }
    });
    let times = pings(&mut clients).await;
    println!("ping beside a flood and one that never reads: {times}; the flood had {} answers", flood.answered());
    flood.stop();
    deaf.abort();
    drop((warm, clients));
    host.stop().await;
    rig.stop_and_check_invariants([]).await;
}

async fn pings(clients: &mut [LineClient]) -> String {
    let mut times = Vec::new();
    for client in clients {
        let began = Instant::now();
        client.ping().await;
        times.push(began.elapsed());
    }
    let most = times.iter().max().copied().unwrap_or_default();
    format!("median {:?}, p99 {:?}, maximum {most:?}", percentile(&mut times, 50), percentile(&mut times, 99))
}
