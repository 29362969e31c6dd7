//! What a collector hears of consults: one trace for each, whole, whatever happens in between, and never a word of what was said.
//!
//! On the real program with the scripted agent; the collector is one of these tests (`collector`).
//!
//! Laws: L10, L13.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, reason = "helpers of tests")]

mod collector;
mod secure;
mod struck;

use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::trace::v1::Span;
use phone_opus::testkit::client::REVISION;
use phone_opus::testkit::{PATIENCE, Rig, Script, Signal, Step, TestClient, Waiting, tried_program};
use serde_json::{Value, json};

use crate::fleet::url as fleet_url;
use crate::private_postgres::PrivateServer;

use self::collector::{Manner, Spans, TestCollector, hex, said};

/// What the client says its call is part of.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const ABOVE: &str = "00f067aa0ba902b7";

fn new_rig(collector: &TestCollector) -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
        .with("PHONE_OPUS_OTLP", collector.url())
        .with("OTEL_METRIC_EXPORT_INTERVAL", "1000")
}

/// A call of `consult` whose client is in a trace.
fn traced(arguments: &Value) -> Value {
    let meta = json!({"traceparent": format!("00-{TRACE}-{ABOVE}-01"), "tracestate": "vendor=1"});
    json!({"name": "consult", "arguments": arguments, "_meta": meta})
}

/// The chain that every consult has.
const CHAIN: [&str; 5] = ["tools/call consult", "job", "runner", "invoke_agent claude", "execute_tool Grep"];

/// The chain is there from the client's call down to what the agent used, in one trace.
fn expect_whole(spans: &Spans) {
    for (depth, name) in CHAIN.iter().enumerate() {
        assert_eq!(spans.way_to(spans.the(name)), CHAIN[..=depth], "{:#?}", spans.drawn());
    }
    assert_eq!(spans.way_to(spans.the("queued")), ["tools/call consult", "job", "queued"]);
    assert!(spans.0.iter().any(|span| span.name.starts_with("chat")), "{:#?}", spans.drawn());
    for span in &spans.0 {
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{span:?}");
        if let Some(above) = spans.above(span).filter(|above| above.name != "tools/call consult") {
            assert!(span.start_time_unix_nano >= above.start_time_unix_nano, "{span:#?} in {above:#?}");
            assert!(span.end_time_unix_nano <= above.end_time_unix_nano, "{span:#?} in {above:#?}");
        }
    }
}

fn is_whole(spans: &Spans) -> bool {
    CHAIN.iter().all(|name| spans.has(name))
}

/// An agent that uses a tool, gives a sign, waits for one and answers.
fn working(rig: &Rig) -> String {
    rig.doing(vec![
        Step::Thinking,
        Step::ToolUse("Grep".to_owned()),
        Step::Touch(rig.sign("begun")),
        Step::WaitForFile(rig.sign("go")),
        Step::Text("so it is".to_owned()),
    ])
}

#[tokio::test]
async fn a_consult_is_one_trace_from_its_clients_call_to_what_the_agent_used_and_nothing_that_was_said_is_in_it() {
    let collector = TestCollector::start(Manner::Takes).await;
    let mut rig = new_rig(&collector).with("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20k3y");
    rig.set("OTEL_SERVICE_NAME", "reviews");
    let mut host = rig.serve().await;
    rig.give_sign("go");
    let prompt = rig.prompt(Script {
        steps: vec![
            Step::Thinking,
            Step::ToolUse("Grep".to_owned()),
            Step::ToolUse(format!("Grep {}", rig.canary())),
            Step::Text("SPOKEN-BY-THE-AGENT".to_owned()),
        ],
        answer: Some("ANSWER-OF-THE-AGENT".to_owned()),
        ..Script::default()
    });
    let asked = json!({"prompt": prompt, "max_turns": 7, "request_key": "KEY-OF-THE-CALLER"});
    let sent = host.send("tools/call", traced(&asked)).await;
    host.reply(sent).await.expect_success();
    let spans = collector.until("the whole chain is there", is_whole).await;
    expect_whole(&spans);
    let call = spans.the("tools/call consult");
    assert_eq!((hex(&call.trace_id), hex(&call.parent_span_id)), (TRACE.to_owned(), ABOVE.to_owned()));
    assert_eq!((spans.traces(), call.trace_state.as_str()), (1, "vendor=1"));
    assert_eq!(said(&call.attributes, "gen_ai.tool.name").as_deref(), Some("consult"));
    assert_eq!(said(&call.attributes, "phone_opus.workspace").as_deref(), Some("work"));
    let run = spans.the("invoke_agent claude");
    assert_eq!(said(&run.attributes, "gen_ai.usage.output_tokens").as_deref(), Some("5"));
    assert_eq!(said(&run.attributes, "gen_ai.provider.name").as_deref(), Some("anthropic"));
    assert!(spans.has("execute_tool other"), "what is no name is not shown");
    assert!(spans.has("worker attempt"));
    // The agent goes on in the same trace, below its run.
    let runs = rig.runs();
    let handed = format!("00-{TRACE}-{}-01", hex(&run.span_id));
    assert_eq!(runs[0].env("TRACEPARENT"), Some(handed.as_str()));
    for headers in collector.headers() {
        assert_eq!(headers.get("authorization").and_then(|value| value.to_str().ok()), Some("Bearer k3y"));
    }
    let resource = collector.resources().pop().expect("one");
    assert_eq!(said(&resource, "service.name").as_deref(), Some("reviews"));

    // The metrics of the same, which come by themselves.
    let waiting = Waiting::until("the metrics tell of the consult", PATIENCE);
    let told = loop {
        let metrics = collector.metrics();
        let duration = metrics.iter().find(|metric| metric.name == "gen_ai.client.operation.duration");
        if let Some(Data::Histogram(histogram)) = duration.and_then(|metric| metric.data.clone()) {
            assert_eq!(histogram.data_points[0].count, 1);
            break metrics;
        }
        waiting.again(|| format!("{:?}", metrics.iter().map(|metric| &metric.name).collect::<Vec<_>>())).await;
    };
    let requests = told.iter().find(|metric| metric.name == "phone_opus.method.requests").expect("it is told");
    let Some(Data::Sum(sum)) = &requests.data else { panic!("{requests:?}") };
    let of_consult = sum
        .data_points
        .iter()
        .find(|point| said(&point.attributes, "phone_opus.method").as_deref() == Some("tools/call:consult"));
    assert_eq!(of_consult.and_then(|point| point.value), Some(Number::AsInt(1)));

    let home = rig.path("home").display().to_string();
    let scratch = rig.path("").display().to_string();
    let bytes = collector.bytes();
    let is_there = |word: &str| bytes.windows(word.len()).any(|window| window == word.as_bytes());
    assert!(is_there("consult") && is_there("work"), "what is looked for would be found");
    let canary = rig.canary().to_owned();
    for secret in [
        canary.as_str(),
        "ANSWER-OF-THE-AGENT",
        "SPOKEN-BY-THE-AGENT",
        "KEY-OF-THE-CALLER",
        "sk-canary",
        "k3y",
        &home,
        scratch.trim_end_matches('/'),
    ] {
        assert!(!is_there(secret), "{secret} reached the collector");
    }
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_call_without_a_trace_begins_one_and_what_asks_for_its_job_later_is_linked_to_it() {
    let collector = TestCollector::start(Manner::Takes).await;
    let mut rig = new_rig(&collector);
    let mut host = rig.serve().await;
    rig.give_sign("go");
    let job = host.consult_in_background(&working(&rig)).await;
    let _ = rig.only_job_over().await;
    host.job(&job).await;
    let spans =
        collector.until("both calls are there", |spans| is_whole(spans) && spans.has("tools/call consult_job")).await;
    expect_whole(&spans);
    let (job, asked) = (spans.the("job"), spans.named("tools/call consult_job").next().expect("it is there"));
    assert_ne!(asked.trace_id, job.trace_id);
    assert_eq!((&asked.links[0].trace_id, &asked.links[0].span_id), (&job.trace_id, &job.span_id));
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_client_that_does_not_sample_its_trace_is_not_told_of_and_its_agent_hears_so() {
    let collector = TestCollector::start(Manner::Takes).await;
    let mut rig = new_rig(&collector);
    let mut host = rig.serve().await;
    rig.give_sign("go");
    let meta = json!({"traceparent": format!("00-{TRACE}-{ABOVE}-00")});
    let arguments = json!({"prompt": working(&rig)});
    host.request("tools/call", json!({"name": "consult", "arguments": arguments, "_meta": meta})).await;
    assert_eq!(rig.runs()[0].env("TRACEPARENT"), Some(format!("00-{TRACE}-{ABOVE}-00").as_str()));
    // A later one that is told of: by then the first would have been.
    host.consult(&rig.answering("told")).await;
    let spans = collector.until("the second is there", |spans| spans.has("job")).await;
    assert!(spans.0.iter().all(|span| hex(&span.trace_id) != TRACE), "{:#?}", spans.drawn());
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn without_a_collector_a_clients_trace_reaches_its_agent_all_the_same() {
    let mut rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
        .with("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        .with("TRACEPARENT", format!("00-{}-{ABOVE}-01", "1".repeat(32)));
    let mut host = rig.serve().await;
    host.consult(&rig.answering("one")).await;
    host.request("tools/call", traced(&json!({"prompt": rig.answering("two")}))).await;
    let runs = rig.runs();
    let handed: Vec<Option<&str>> = runs.iter().map(|run| run.env("TRACEPARENT")).collect();
    assert_eq!(handed, [None, Some(format!("00-{TRACE}-{ABOVE}-01").as_str())], "the host's own is not its callers'");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn the_trace_stays_one_across_a_lost_worker() {
    let collector = TestCollector::start(Manner::Takes).await;
    let mut rig = new_rig(&collector)
        .with("PHONE_OPUS_ISOLATION", "process")
        .with_faults("worker.before_reply@tools/call:consult#1=exit");
    let mut host = rig.serve().await;
    rig.give_sign("go");
    let sent = host.send("tools/call", traced(&json!({"prompt": working(&rig)}))).await;
    host.reply(sent).await.expect_success();
    let spans = collector.until("the whole chain is there", is_whole).await;
    expect_whole(&spans);
    assert_eq!(spans.traces(), 1);
    let mut ends: Vec<(Option<String>, Option<String>)> = spans
        .named("worker attempt")
        .map(|span| {
            (said(&span.attributes, "phone_opus.worker.generation"), said(&span.attributes, "phone_opus.attempt.end"))
        })
        .collect();
    ends.sort();
    let of = |generation: &str, end: &str| (Some(generation.to_owned()), Some(end.to_owned()));
    assert_eq!(ends, [of("1", "worker_lost"), of("2", "settled")]);
    let call = spans.the("tools/call consult");
    assert_eq!(call.events.iter().map(|event| event.name.as_str()).collect::<Vec<_>>(), ["phone_opus.worker_lost"]);
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host]).await;
}

/// Asks for an upgrade and waits until another image runs.
async fn upgrade(host: &TestClient) {
    let image = || std::fs::read(format!("/proc/{}/cmdline", host.host_pid().as_raw_nonzero())).unwrap_or_default();
    let before = image();
    rustix::process::kill_process(host.host_pid(), Signal::USR2).expect("it runs");
    let waiting = Waiting::until("another image runs", PATIENCE);
    while image() == before || image().is_empty() {
        waiting.again(|| String::from_utf8_lossy(&before).into_owned()).await;
    }
}

#[tokio::test]
async fn the_trace_stays_one_across_an_upgrade_and_what_was_not_exported_is_passed_on() {
    let collector = TestCollector::start(Manner::Status(503)).await;
    let mut rig = new_rig(&collector).with("OTEL_METRICS_EXPORTER", "none");
    let mut host = rig.serve().await;
    // One that is over before, and that the collector did not take.
    host.consult(&rig.answering("before")).await;
    let waiting = Waiting::until("something was refused", PATIENCE);
    while collector.requests() == 0 {
        waiting.again(|| "nothing came".to_owned()).await;
    }
    let sent = host.send("tools/call", traced(&json!({"prompt": working(&rig)}))).await;
    rig.wait_for_sign("begun").await;
    upgrade(&host).await;
    collector.answers(Manner::Takes);
    rig.give_sign("go");
    host.reply(sent).await.expect_success();
    let spans =
        collector.until("both consults are there", |spans| is_whole(spans) && spans.named("job").count() == 2).await;
    let (mine, before): (Vec<_>, Vec<_>) = spans.0.into_iter().partition(|span| hex(&span.trace_id) == TRACE);
    assert!(Spans(before).has("invoke_agent claude"), "it was passed on");
    let spans = Spans(mine);
    expect_whole(&spans);
    let call = spans.the("tools/call consult");
    assert_eq!(call.events.iter().map(|event| event.name.as_str()).collect::<Vec<_>>(), ["phone_opus.upgraded"]);
    let mut ends: Vec<Option<String>> =
        spans.named("worker attempt").map(|span| said(&span.attributes, "phone_opus.attempt.end")).collect();
    ends.sort();
    assert_eq!(ends, [Some("settled".to_owned()), Some("upgraded".to_owned())]);
    assert_eq!(host.totals().await["traces_dropped"], json!(0));
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_consult_that_another_host_adopts_is_told_by_that_one_in_its_callers_trace() {
    let collector = TestCollector::start(Manner::Takes).await;
    let mut rig = new_rig(&collector);
    let words = ["mcp", "serve", "--orphan-grace-s", "20"];
    let mut first = rig.host_with(&words, &rig.work());
    first.handshake(REVISION).await;
    let asked = json!({"prompt": working(&rig), "request_key": "one"});
    let lost = first.send("tools/call", traced(&asked)).await;
    rig.wait_for_sign("begun").await;
    first.give_up_on(lost);
    first.signal(Signal::KILL);
    first.exit().await;
    let mut next = rig.host_with(&words, &rig.work());
    next.handshake(REVISION).await;
    let sent = next.send("tools/call", traced(&asked)).await;
    let waiting = Waiting::until("the job is adopted", PATIENCE);
    while next.call("health_snapshot", json!({})).await["adopted_jobs"] != 1 {
        waiting.again(|| "not yet".to_owned()).await;
    }
    rig.give_sign("go");
    next.reply(sent).await.expect_success();
    let both = |spans: &Spans| is_whole(spans) && spans.named("tools/call consult").count() == 2;
    let spans = collector.until("the whole chain and both calls are there", both).await;
    let mine = Spans(spans.0.into_iter().filter(|span| hex(&span.trace_id) == TRACE).collect());
    // The call it was asked by first is lost with its host, and the next one says so; its own, which was answered, is linked to the job.
    for (depth, name) in CHAIN.iter().enumerate().skip(1) {
        assert_eq!(mine.way_to(mine.the(name)), CHAIN[..=depth], "{:#?}", mine.drawn());
    }
    let job = mine.the("job");
    let lost = mine.above(job).expect("the lost call");
    let answered = mine.named("tools/call consult").find(|call| call.span_id != lost.span_id).expect("the other one");
    assert_eq!(answered.links[0].span_id, job.span_id);
    let outcome = |call: &Span| said(&call.attributes, "phone_opus.outcome");
    assert_eq!((outcome(lost).as_deref(), outcome(answered).as_deref()), (Some("host_lost"), Some("success")));
    for call in [lost, answered] {
        assert_eq!((hex(&call.parent_span_id), call.trace_state.as_str()), (ABOVE.to_owned(), "vendor=1"));
    }
    rig.expect_runs(1);
    rig.stop_and_check_invariants([next]).await;
}

#[tokio::test]
async fn a_consult_that_another_machine_answers_is_one_trace_over_both() {
    let Some(server) = PrivateServer::own() else { return };
    let fleet = fleet_url(&server.database().await);
    let collector = TestCollector::start(Manner::Takes).await;
    let rig = || new_rig(&collector).with("PHONE_OPUS_FLEET", &fleet).with("PHONE_OPUS_MAX_RUNNING", "1");
    let (mut asks, mut other) = (rig(), rig());
    other.set("PHONE_OPUS_WORKSPACES", asks.work().display().to_string());
    let mut client = asks.serve().await;
    let taken = client.consult_in_background(&asks.hanging("taken")).await;
    asks.wait_for_sign("taken").await;
    let there = other.serve().await;
    other.give_sign("go");
    let sent = client.send("tools/call", traced(&json!({"prompt": working(&other), "placement": "fleet"}))).await;
    client.reply(sent).await.expect_success();
    let of_it = |spans: Spans| Spans(spans.0.into_iter().filter(|span| hex(&span.trace_id) == TRACE).collect());
    let is_there = |spans: &Spans| is_whole(&of_it(Spans(spans.0.clone())));
    let spans = of_it(collector.until("the whole chain is there", is_there).await);
    expect_whole(&spans);
    let (call, job) = (spans.the("tools/call consult"), spans.the("job"));
    assert_eq!((hex(&call.parent_span_id), call.trace_state.as_str()), (ABOVE.to_owned(), "vendor=1"));
    assert_eq!((hex(&job.parent_span_id), job.trace_state.as_str()), (hex(&call.span_id), "vendor=1"));
    let handed = format!("00-{TRACE}-{}-01", hex(&spans.the("invoke_agent claude").span_id));
    assert_eq!(other.runs()[0].env("TRACEPARENT"), Some(handed.as_str()));
    // A client that does not collect its trace is not told of there either.
    let meta = json!({"traceparent": format!("00-{}-{ABOVE}-00", "2".repeat(32))});
    let arguments = json!({"prompt": other.answering("quiet"), "placement": "fleet"});
    client.request("tools/call", json!({"name": "consult", "arguments": arguments, "_meta": meta})).await;
    let quiet = format!("00-{}-{ABOVE}-00", "2".repeat(32));
    assert_eq!(other.runs()[1].env("TRACEPARENT"), Some(quiet.as_str()));
    assert!(client.call("consult_cancel", json!({"job_id": taken})).await.is_result());
    asks.expect_no_agent_left().await;
    client.finish().await;
    other.stop_and_check_invariants([there]).await;
}

#[tokio::test]
async fn a_collector_that_is_dead_slow_silent_or_refuses_delays_no_consult_and_no_end_and_what_is_lost_is_counted() {
    for manner in [None, Some(Manner::Status(500)), Some(Manner::Silent), Some(Manner::Slow(Duration::from_secs(3)))] {
        let collector = TestCollector::start(manner.unwrap_or(Manner::Takes)).await;
        let mut rig = new_rig(&collector).with("OTEL_EXPORTER_OTLP_TIMEOUT", "1000");
        if manner.is_none() {
            drop(collector);
            rig.set("PHONE_OPUS_OTLP", "http://127.0.0.1:1");
        }
        let mut host = rig.serve().await;
        for answer in ["one", "two", "three"] {
            let began = Instant::now();
            let reply = host.consult(&rig.answering(answer)).await.expect_success();
            assert_eq!(reply.str("response"), answer);
            assert!(began.elapsed() < Duration::from_secs(60), "{manner:?}: {:?}", began.elapsed());
        }
        if manner == Some(Manner::Status(500)) {
            // What is refused for good is lost at once; the others are still tried.
            let waiting = Waiting::until("what was refused is counted", PATIENCE);
            while host.totals().await["traces_dropped"].as_u64().unwrap_or_default() < 6 {
                waiting.again(|| "not yet".to_owned()).await;
            }
        }
        let began = Instant::now();
        host.finish().await;
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{manner:?}: it ended after {took:?}");
        let log = std::fs::read_to_string(rig.path("host-1.stderr")).expect("a log");
        let said = log.lines().filter(|line| line.contains("the collector does not take traces")).count();
        assert!(said <= 1, "{manner:?}: said {said} times");
        rig.check_invariants().await;
    }
}

#[tokio::test]
async fn what_cannot_be_used_is_said_and_nothing_is_exported() {
    let mut rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
        .with("PHONE_OPUS_OTLP", "env")
        .with("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let mut host = rig.serve().await;
    let health = host.health().await;
    assert!(health["notices"].to_string().contains("OTEL_EXPORTER_OTLP_PROTOCOL"), "{:#}", health.0);
    host.consult(&rig.answering("as ever")).await.expect_success();
    rig.set("PHONE_OPUS_OTLP", "http://collector.example:4318");
    let refused = rig.run(&["mcp", "serve"]).await;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("write https://"), "{words}");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn doctor_says_whether_the_collector_answers_and_no_word_of_a_header() {
    let collector = TestCollector::start(Manner::Takes).await;
    let mut rig = new_rig(&collector).with("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20k3y");
    for (manner, word) in [
        (Manner::Takes, "ok   otlp"),
        (Manner::Status(401), "status 401"),
        (Manner::Silent, "did not answer within 100 ms"),
    ] {
        collector.answers(manner);
        rig.set("OTEL_EXPORTER_OTLP_TIMEOUT", if manner == Manner::Silent { "100" } else { "10000" });
        let said = rig.run(&["doctor"]).await;
        let words = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(words.contains(word) && !words.contains("k3y"), "{manner:?}: {words}");
    }
    let shown = rig.run(&["config", "show"]).await;
    assert!(String::from_utf8_lossy(&shown.stdout).contains(&collector.url()));
    rig.check_invariants().await;
}
