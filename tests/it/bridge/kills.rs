//! A daemon that is killed again and again while its clients ask: no connection, no answer and no run too many is lost.
//!
//! `PHONE_OPUS_DAEMON_KILLS` says how often (`.ci/long daemon`: 200), `PHONE_OPUS_BRIDGES` how many clients there are,
//! `PHONE_OPUS_SEED` which schedule.
//!
//! Laws: L1, L3, L7, L8, L18.

#![cfg(target_os = "linux")]

use std::time::{Duration, Instant};

use phone_opus::testkit::client::REVISION;
use phone_opus::testkit::{Rig, Role, TestClient, tried_program, until};
use serde_json::json;

/// A number of the environment, else this one.
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[tokio::test]
async fn a_daemon_killed_again_and_again_costs_no_client_an_answer_or_a_second_run() {
    let kills = number("PHONE_OPUS_DAEMON_KILLS", 3);
    let bridges = number("PHONE_OPUS_BRIDGES", 4);
    let seed = number("PHONE_OPUS_SEED", fastrand::u64(..));
    println!("seed {seed}: {kills} kills, {bridges} bridges");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut gaps = Vec::new();
    let mut left = kills;
    while left > 0 {
        // The laws are held against every job of a rig, and a store lists a thousand of them.
        let now = left.min((900 / bridges).max(1));
        left -= now;
        gaps.extend(killed(&mut random, now, bridges).await);
    }
    gaps.sort_unstable();
    let at = |part: usize| gaps[(gaps.len() - 1) * part / 100];
    println!("from a kill to the next answer: p50 {:?}, p99 {:?}, most {:?}", at(50), at(99), at(100));
}

/// So many kills of the daemons of one state directory; from each kill to the next answer of each client.
async fn killed(random: &mut fastrand::Rng, kills: u64, bridges: u64) -> Vec<Duration> {
    let mut rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus"))).with("PHONE_OPUS_MAX_RUNNING", "64");
    let work = rig.work();
    let mut clients: Vec<TestClient> = (0..bridges).map(|_| rig.host_with(&["mcp", "connect"], &work)).collect();
    for client in &mut clients {
        client.handshake(REVISION).await;
        client.call("consult_jobs", json!({})).await;
    }
    let mut gaps: Vec<Duration> = Vec::new();
    let mut asked = 0;
    for kill in 0..kills {
        let (begun, go) = (format!("begun-{kill}"), format!("go-{kill}"));
        let mut sent = Vec::new();
        for (at, client) in clients.iter_mut().enumerate() {
            let prompt = rig.waiting(&format!("{begun}-{at}"), &go);
            sent.push(client.start("consult", json!({"prompt": prompt})).await);
            asked += 1;
        }
        // Some have begun, some have only just been asked for.
        let waits = random.usize(..=clients.len());
        for at in 0..waits {
            rig.wait_for_sign(&format!("{begun}-{at}")).await;
        }
        // Who starts one and finds it started ends by itself.
        until("there is one daemon", async || (rig.all(Role::Host).len() == 1).then_some(())).await;
        let killed = rig.kill(Role::Host);
        assert_eq!(killed.len(), 1, "one daemon");
        let began = Instant::now();
        for client in &mut clients {
            client.call("consult_jobs", json!({})).await;
            gaps.push(began.elapsed());
        }
        let next = rig.all(Role::Host);
        assert!(next.len() == 1 && next[0].pid != killed[0].pid, "{next:?}");
        rig.give_sign(&go);
        for (client, sent) in clients.iter().zip(sent) {
            client.reply(sent).await.expect_success();
        }
    }
    rig.expect_runs(asked);
    for client in &mut clients {
        client.finish().await;
    }
    let stopped = rig.run(&["daemon", "stop", "--force"]).await;
    assert!(stopped.status.success(), "{stopped:?}");
    until("no daemon is left", async || rig.all(Role::Host).is_empty().then_some(())).await;
    rig.stop_and_check_invariants(clients).await;
    gaps
}
