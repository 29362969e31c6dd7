//! Time in tests of an embedding program: the runtime's clock is the system's, so pausing it is all there is to do.
//!
//! Laws: L8, L12.

use std::time::{Duration, Instant};

use phone_opus::testkit::tools::{boom, stuck};
use phone_opus::{Client, FaultCode, Grace, RestartPolicy, Shutdown, System};
use serde_json::json;

/// So much of this machine's own time, for hours of the system's.
const MOMENT: Duration = Duration::from_secs(20);

#[tokio::test(start_paused = true)]
async fn deadlines_and_restart_periods_pass_as_the_tests_clock_does() {
    let (began, at) = (Instant::now(), tokio::time::Instant::now());
    let policy = RestartPolicy { intensity: 2, period: Duration::from_secs(3600), ..RestartPolicy::default() };
    let system = System::builder()
        .tool(stuck().within(Duration::from_secs(60)))
        .tool(boom())
        .restart_policy(policy)
        .start()
        .await
        .expect("a system");
    let session = system.open_session(Client::new("test")).await.expect("a session");
    let late = session.call("stuck", json!({})).await.expect_err("it never answers");
    assert_eq!(late.code, FaultCode::DeadlineExceeded, "{late}");
    assert!(at.elapsed() >= Duration::from_secs(60), "its deadline, by the clock of the test: {:?}", at.elapsed());
    // Lost more often than the hour bears, until the slot gives up; an hour later a call is tried again.
    for _ in 0..4 {
        session.call("boom", json!({})).await.expect_err("its worker is lost");
    }
    let given_up = session.call("boom", json!({})).await.expect_err("it gave up");
    let generation = given_up.generation;
    tokio::time::advance(Duration::from_secs(3700)).await;
    let again = session.call("boom", json!({})).await.expect_err("its worker is lost again");
    assert!(again.generation > generation, "{given_up:?}, then {again:?}");
    assert!(matches!(system.shutdown(Grace::default()).await, Shutdown::InOrder));
    assert!(began.elapsed() < MOMENT, "{:?}", began.elapsed());
}
