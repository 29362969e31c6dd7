//! The exporter crashes, stands still or is refused with a batch in its hand: what that costs, and what it does not.
//!
//! Laws: L8, L10.

use phone_opus::testkit::{PATIENCE, Waiting};
use serde_json::json;

use super::collector::{Manner, Spans, TestCollector, hex};
use super::{TRACE, expect_whole, is_whole, new_rig, traced, working};

/// Calls and jobs that were told of.
fn facts(spans: &Spans) -> u64 {
    let is_one = |name: &str| name == "job" || name.starts_with("tools/call ");
    spans.0.iter().filter(|span| is_one(&span.name)).count() as u64
}

fn of_the_trace(spans: &Spans) -> Spans {
    Spans(spans.0.iter().filter(|span| hex(&span.trace_id) == TRACE).cloned().collect())
}

#[tokio::test]
async fn a_crash_of_the_exporter_costs_the_batch_in_hand_which_is_counted_and_the_next_trace_arrives_whole() {
    for action in ["panic", "error", "hang"] {
        let rule = format!("exporter.carry={action}");
        let collector = TestCollector::start(Manner::Takes).await;
        let mut rig = new_rig(&collector).with("OTEL_METRICS_EXPORTER", "none").with_faults(&rule);
        let mut host = rig.serve().await;
        rig.give_sign("go");
        let reply = host.consult(&rig.answering("as ever")).await.expect_success();
        assert_eq!(reply.str("response"), "as ever");
        // Whoever asks is told of as well; which facts are in one hand is a matter of moments.
        let (mut told, mut dropped) = (2, 0);
        let waiting = Waiting::until("what was in hand is counted", PATIENCE);
        while dropped == 0 {
            waiting.again(|| format!("{:#?}", collector.spans().drawn())).await;
            dropped = host.totals().await["traces_dropped"].as_u64().expect("a count");
            told += 1;
        }
        let sent = host.send("tools/call", traced(&json!({"prompt": working(&rig)}))).await;
        host.reply(sent).await.expect_success();
        told += 2;
        let spans = collector
            .until("the next trace is there, and what else is not counted", |spans| {
                is_whole(&of_the_trace(spans)) && facts(spans) + dropped == told
            })
            .await;
        expect_whole(&of_the_trace(&spans));
        let health = host.call("health_snapshot", json!({"detail": "full"})).await;
        assert_eq!(health["fired_fault_points"], json!([{"rule": rule, "count": 1}]), "{:#}", health.0);
        assert_eq!((&health["ready"], &health["worker_generation"]), (&json!(true), &json!(1)), "{:#}", health.0);
        assert_eq!(host.totals().await["traces_dropped"], json!(dropped));
        rig.expect_runs(2);
        rig.stop_and_check_invariants([host]).await;
    }
}
