//! A host's connection to an exec server, in its tree.
//!
//! Laws: L7, L8, L9.

use std::time::Duration;

use phone_opus::internals::exec::backend::ExecBackend as _;
use phone_opus::internals::exec::{ProcessEvent, ProcessSession};
use phone_opus::testkit::exec_proxy::FaultyProxy;
use phone_opus::{Faults, Grace, System};
use serde_json::json;

use super::place::{Place, Running, in_time, scratch};

#[tokio::test]
async fn a_hosts_connection_is_supervised_shown_by_health_and_ends_with_the_host() {
    let Some(mut place) = Place::unix().await else { return };
    let apart = scratch();
    let proxy = FaultyProxy::start(&apart.path().join("proxy"), place.target(), 1, u64::MAX).expect("a proxy");
    let target = proxy.target().expect("a target");
    let faults = Faults::armed("exec.read#3=panic; exec.read#5=panic; exec.connect#3=error").expect("a plan");
    let system = System::builder().faults(faults.clone()).start().await.expect("a system");
    let links = system.health().exec.clone();
    assert!(links.rows().is_empty(), "nobody is started for what nobody wants");
    let remote = in_time("a connection", links.connect(target, None)).await.expect("a connection");
    let session = ProcessSession::new();
    let script = "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; exit 3";
    let started = in_time("a start", remote.start(place.shell("p", script), session.clone())).await;
    // Its answer may be what the first panic takes along; then the server is asked whether it was started.
    let mut running = Running { process: started.expect("a process"), session };
    let (out, _) = running.output().await;
    let expected: String = (0..40).map(|line| format!("line {line}\n")).collect();
    assert_eq!(String::from_utf8_lossy(&out), expected);
    assert!(matches!(running.all().await.last(), Some(ProcessEvent::Closed { .. })));
    assert_eq!(running.code().await, 3);
    assert!(faults.never_met().is_empty(), "{:?}", faults.never_met());
    let rows = serde_json::to_value(links.rows()).expect("rows");
    assert_eq!((&rows[0]["state"], &rows[0]["processes"]), (&json!("up"), &json!(0)), "{rows}");
    assert!(rows[0]["generation"].as_u64().is_some_and(|generation| generation >= 3), "{rows}");

    let session = ProcessSession::new();
    let started = in_time("a start", remote.start(place.shell("q", "echo up; sleep 1000"), session.clone())).await;
    let mut running = Running { process: started.expect("a process"), session };
    running.until("up\n").await;
    in_time("the stop", system.shutdown(Grace::within(Duration::from_secs(5)))).await;
    assert!(matches!(running.all().await.last(), Some(ProcessEvent::Failed { .. })));
    assert!(in_time("its end", running.process.0.end()).await.is_err());
    // What ran is ended with the server's lease, or with the server, whichever comes first.
    drop((running, remote));
    place.kill_server().await;
    place.is_empty().await;
}
