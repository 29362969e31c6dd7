//! A collector behind TLS: told where it proves who it is, and by whom this machine or its variable says it may; never else.
//!
//! Laws: L10, L13.

use std::path::Path;
use std::time::{Duration, Instant};

use phone_opus::testkit::Rig;
use serde_json::json;

use super::collector::{Manner, Spans, TestCollector, hex};
use super::{PATIENCE, TRACE, Waiting, expect_whole, is_whole, new_rig, traced, working};
use crate::front::{Front, certificate};

/// What the variable of the platform names, and that of the protocol.
const BELIEVED: [&str; 2] = ["SSL_CERT_FILE", "OTEL_EXPORTER_OTLP_CERTIFICATE"];

fn ours() -> String {
    certificate("authority.pem").display().to_string()
}

/// An authority that has not signed for this collector.
fn another() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/exec/transport/tls_tests/authority.pem").display().to_string()
}

async fn behind_tls(collector: &TestCollector) -> Front {
    Front::before(collector.url().trim_start_matches("http://")).await
}

#[tokio::test]
async fn a_collector_that_proves_who_it_is_hears_whole_traces() {
    for variable in BELIEVED {
        let collector = TestCollector::start(Manner::Takes).await;
        let front = behind_tls(&collector).await;
        let mut rig = new_rig(&collector)
            .with("PHONE_OPUS_OTLP", format!("https://127.0.0.1:{}", front.port()))
            .with(variable, ours());
        let mut host = rig.serve().await;
        rig.give_sign("go");
        let sent = host.send("tools/call", traced(&json!({"prompt": working(&rig)}))).await;
        host.reply(sent).await.expect_success();
        let spans = collector.until("the whole chain is there", is_whole).await;
        expect_whole(&spans);
        assert!(spans.0.iter().all(|span| hex(&span.trace_id) == TRACE), "{variable}: {:#?}", spans.drawn());
        let said = rig.run(&["doctor"]).await;
        let words = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(words.contains("ok   otlp"), "{variable}: {words}");
        rig.stop_and_check_invariants([host]).await;
    }
}

/// A host is not told who believes by this variable, or is led to by this name, and everything else goes on.
async fn nothing_is_told(name: &str, variable: &str, believed: String) {
    let collector = TestCollector::start(Manner::Takes).await;
    let front = behind_tls(&collector).await;
    let mut rig = new_rig(&collector)
        .with("PHONE_OPUS_OTLP", format!("https://{name}:{}", front.port()))
        .with(variable, believed);
    let mut host = rig.serve().await;
    let began = Instant::now();
    let reply = host.consult(&rig.answering("as ever")).await.expect_success();
    assert_eq!(reply.str("response"), "as ever");
    assert!(began.elapsed() < Duration::from_secs(30), "{name}: {:?}", began.elapsed());
    let waiting = Waiting::until("a batch is given up and counted", PATIENCE);
    while host.totals().await["traces_dropped"] == 0 {
        waiting.again(|| log(&rig)).await;
    }
    let reply = host.consult(&rig.answering("and again")).await.expect_success();
    assert_eq!(reply.str("response"), "and again");
    let log = log(&rig);
    let said: Vec<&str> = log.lines().filter(|line| line.contains("the collector does not take traces")).collect();
    assert!(said.len() == 1 && said[0].to_lowercase().contains("certificate"), "{name}: {log}");
    assert_eq!(collector.requests(), 0, "{name}: {:#?}", Spans::drawn(&collector.spans()));
    let doctor = rig.run(&["doctor"]).await;
    let words = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(words.to_lowercase().contains("certificate") && !words.contains("ok   otlp"), "{name}: {words}");
    rig.stop_and_check_invariants([host]).await;
}

fn log(rig: &Rig) -> String {
    std::fs::read_to_string(rig.path("host-1.stderr")).expect("a log")
}

#[tokio::test]
async fn a_collector_that_is_not_believed_or_is_somebody_else_hears_nothing_and_what_is_lost_is_counted() {
    // Beside each other: a batch is tried for half a minute before it is given up.
    tokio::join!(
        nothing_is_told("127.0.0.1", BELIEVED[0], another()),
        nothing_is_told("127.0.0.1", BELIEVED[1], another()),
        nothing_is_told("localhost", BELIEVED[0], ours()),
        nothing_is_told("localhost", BELIEVED[1], ours()),
        nothing_is_told("127.0.0.1", BELIEVED[1], certificate("nobodys.pem").display().to_string()),
    );
}
