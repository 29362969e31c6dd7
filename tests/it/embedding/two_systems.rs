//! Two systems in one process with different fault plans: one crashes all the time, the other is not touched.
//!
//! Laws: L8, L12.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "helpers of tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use phone_opus::internals::failpoints::{Ends, FaultCounters};
use phone_opus::testkit::PATIENCE;
use phone_opus::testkit::tools::echo;
use phone_opus::{Client, Consult, FaultPlan, Faults, RestartPolicy, Session};
use serde_json::json;

use super::new_rig;

/// Calls that are timed at least, before and during.
const CALLS: usize = 1000;

/// Calls of the other system that are lost meanwhile, at least.
const LOSSES: usize = 50;

/// The times of calls, sorted: so many at least, and until there are enough.
async fn timed(session: &Session, enough: impl Fn() -> bool) -> Vec<Duration> {
    let mut times = Vec::with_capacity(CALLS);
    let patience = Instant::now() + PATIENCE;
    for number in 0_usize.. {
        if times.len() >= CALLS && (enough() || Instant::now() > patience) {
            break;
        }
        let began = Instant::now();
        session.call("echo", json!({"text": number.to_string()})).await.expect("a reply");
        times.push(began.elapsed());
    }
    times.sort_unstable();
    times
}

fn shown(times: &[Duration]) -> String {
    format!(
        "p50 {:?}, p99 {:?}, most {:?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        times[times.len() - 1]
    )
}

async fn one_crashes_and_the_other_is_untouched() {
    let (rig, other) = (new_rig(), new_rig());
    let plan = FaultPlan::parse("worker.before_reply#*=panic; session.dispatch#p0.02=panic", 7).expect("a plan");
    let faults = Faults::arm(plan, Ends::Nothing, FaultCounters::Memory).expect("armed");
    let often = RestartPolicy {
        intensity: usize::MAX,
        backoff: Duration::from_millis(1),
        backoff_most: Duration::from_millis(5),
        ..RestartPolicy::default()
    };
    let crashing = rig.system().tool(echo()).faults(faults.clone()).restart_policy(often);
    let crashing = crashing.start().await.expect("a system");
    let whole = other.system().tool(echo()).start().await.expect("a system");
    let session = whole.open_session(Client::new("whole")).await.expect("a session");
    drop(timed(&session, || true).await);
    let before = timed(&session, || true).await;

    let stop = Arc::new(AtomicBool::new(false));
    let lost = Arc::new(AtomicUsize::new(0));
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (system, stop, lost) = (crashing.clone(), Arc::clone(&stop), Arc::clone(&lost));
        load.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                // A session that failed too often is over; the next one is another client's.
                let Ok(session) = system.open_session(Client::new("crashing")).await else { break };
                for _ in 0..5 {
                    let answered = session.call("echo", json!({"text": "x"})).await;
                    lost.fetch_add(usize::from(answered.is_err()), Ordering::Relaxed);
                }
            }
        });
    }
    let during = timed(&session, || lost.load(Ordering::Relaxed) >= LOSSES).await;
    let outcome = session.consult(Consult::new(other.answering("42"))).await.expect("an answer");
    assert_eq!(outcome.response, "42");
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.expect("no panic");
    }
    let lost = lost.load(Ordering::Relaxed);
    println!("two systems: before {}; during {} and {lost} losses of the other", shown(&before), shown(&during));
    assert!(lost >= LOSSES && !faults.fired().is_empty(), "{lost} calls were lost");
    let health = whole.health().clone();
    assert_eq!(health.gauges.broken_laws(), Vec::<String>::new());
    // What the other's work takes of the processor is felt, and nothing else.
    assert!(during[during.len() / 2] < before[before.len() / 2] * 20 + Duration::from_millis(20), "{}", shown(&during));
    assert!(during[during.len() - 1] < Duration::from_secs(2), "{}", shown(&during));
    drop(session);
    rig.stop_system_and_check_invariants(crashing, []).await;
    other.stop_system_and_check_invariants(whole, []).await;
}

#[tokio::test]
async fn one_that_crashes_all_the_time_leaves_the_other_untouched() {
    one_crashes_and_the_other_is_untouched().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_crashes_all_the_time_leaves_the_other_untouched_on_several_threads() {
    one_crashes_and_the_other_is_untouched().await;
}
