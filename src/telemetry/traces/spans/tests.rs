//! Tests of the mapping.

use super::*;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{CallNumber, Generation, SessionNumber};
use crate::base::trace::{AskingCall, TraceContext};
use crate::jobs::{CancelReason, ConsultRequest, PermissionDenial};
use crate::telemetry::traces::sampling::Sampler;
use crate::telemetry::traces::{AttemptSeen, CallTrace, Telling, Traces};

fn traces() -> Traces {
    Traces::new(Telling::Exporter(Sampler::default()), None)
}

fn call(attempts: &[(i64, u64)], upgrades: &[i64]) -> CallFact {
    let parent = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").map(Box::new);
    let mut trace = CallTrace::new(CallNumber(4), parent);
    trace.attempts = attempts
        .iter()
        .map(|(at, generation)| AttemptSeen { at: UnixMillis(*at), generation: Generation(*generation) })
        .collect();
    trace.upgrades = upgrades.iter().copied().map(UnixMillis).collect();
    CallFact {
        trace,
        session: 2,
        tool: "consult".to_owned(),
        at: UnixMillis(1_000),
        latency_us: 900_500,
        end: CallEnd::Success,
        job: Some(JobId::random()),
        workspace: Some("repo".to_owned()),
        replays: 0,
    }
}

fn spans_of(fact: &CallFact, of_job: Option<(JobId, &JobTrace)>) -> Vec<Span> {
    let host: HostId = "8a3f1c5e-0000-4000-8000-00000000000a".parse().expect("an id");
    let place = traces().place(host, SessionNumber(fact.session), &fact.trace);
    of_call(fact, host, place, of_job)
}

fn said<'a>(span: &'a Span, name: &str) -> Option<&'a Value> {
    span.attributes.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
}

#[test]
fn a_call_is_a_span_below_its_clients_with_one_for_each_attempt() {
    for (attempts, upgrades, ends, events) in [
        (&[(100, 1)][..], &[][..], &["settled"][..], &[][..]),
        (&[(100, 1), (400, 2)], &[], &["worker_lost", "settled"], &["phone_opus.worker_lost"]),
        (&[(100, 1), (400, 2)], &[300], &["upgraded", "settled"], &["phone_opus.upgraded"]),
        (
            &[(100, 1), (400, 2), (700, 3)],
            &[650],
            &["worker_lost", "upgraded", "settled"],
            &["phone_opus.worker_lost", "phone_opus.upgraded"],
        ),
        (&[], &[], &[], &[]),
    ] {
        let fact = call(attempts, upgrades);
        let spans = spans_of(&fact, None);
        let call = &spans[0];
        assert_eq!((call.name.as_str(), call.kind), ("tools/call consult", SpanKind::Server));
        assert_eq!((call.start, call.end), (99_500_000, 1_000_000_000));
        assert_eq!(call.parent.map(|parent| parent.to_string()).as_deref(), Some("00f067aa0ba902b7"));
        let seen: Vec<&Value> = spans[1..].iter().filter_map(|span| said(span, "phone_opus.attempt.end")).collect();
        assert_eq!(seen, ends.iter().map(|end| Value::from(*end)).collect::<Vec<_>>().iter().collect::<Vec<_>>());
        let happened: Vec<&str> = call.events.iter().map(|event| event.name).collect();
        assert_eq!(happened, events);
        for (at, attempt) in spans[1..].iter().enumerate() {
            assert_eq!((attempt.parent, attempt.trace), (Some(call.id), call.trace));
            assert!(attempt.start >= call.start && attempt.end <= call.end);
            assert_eq!(attempt.failed, ends[at] == "worker_lost");
        }
        let ids: std::collections::BTreeSet<SpanId> = spans.iter().map(|span| span.id).collect();
        assert_eq!(ids.len(), spans.len());
    }
}

#[test]
fn a_call_about_somebody_elses_job_is_linked_to_it_and_to_its_own_it_is_not() {
    let fact = call(&[], &[]);
    let job = fact.job.expect("a job");
    let own = &spans_of(&fact, None)[0];
    let mine = JobTrace { trace: own.trace, parent: Some(own.id), sampled: true, state: None, told: true, call: None };
    assert_eq!(spans_of(&fact, Some((job, &mine)))[0].links, []);
    let other = JobTrace { trace: TraceId::derived(&["other"]), ..mine.clone() };
    assert_eq!(spans_of(&fact, Some((job, &other)))[0].links, [(other.trace, JobTrace::span(job, "job", 0))]);
    let untold = JobTrace { told: false, ..other };
    assert_eq!(spans_of(&fact, Some((job, &untold)))[0].links, [], "nothing is there to be linked to");
}

#[test]
fn a_call_that_failed_says_by_which_code_and_one_that_is_not_collected_says_nothing() {
    let mut fact = CallFact { end: CallEnd::Failed(FaultCode::AgentMissing), ..call(&[], &[]) };
    let spans = spans_of(&fact, None);
    assert!(spans[0].failed);
    assert_eq!(said(&spans[0], "error.type"), Some(&"agent_missing".into()));
    if let Some(parent) = &mut fact.trace.parent {
        parent.sampled = false;
    }
    assert_eq!(spans_of(&fact, None), []);
}

fn job(state: JobState) -> JobRecord {
    let mut request = ConsultRequest::new("PROMPT").cwd("/home/somebody/private/repo").agent("claude");
    request.model = Some("opus".to_owned());
    let mut record = JobRecord::plain(state, request);
    record.accepted_at = UnixMillis(1_000);
    record.started_at = Some(UnixMillis(1_500));
    record.finished_at = Some(UnixMillis(9_000));
    record.trace = Some(JobTrace {
        trace: TraceId::derived(&["t"]),
        parent: Some(SpanId::derived(&["s"])),
        sampled: true,
        state: Some("a=1".to_owned()),
        told: true,
        call: Some(AskingCall { above: Some(SpanId::derived(&["above"])), at: Some(UnixMillis(900)) }),
    });
    record.outcome = Some(JobOutcome {
        response: Some("ANSWER".to_owned()),
        model: Some("claude-opus-4".to_owned()),
        usage: Some(serde_json::json!({"input_tokens": 12, "output_tokens": 34, "service_tier": "CANARY"})),
        cost_usd: Some(0.25),
        num_turns: Some(2),
        ..JobOutcome::default()
    });
    record
}

#[test]
fn a_call_that_was_lost_with_its_host_is_told_by_whoever_adopted_its_job_and_by_nobody_else() {
    let (lost, next) = (HostId::random(), HostId::random());
    let mut adopted = job(JobState::Succeeded);
    adopted.invocation = Some(format!("{lost}:3:8"));
    adopted.host = Some(next);
    let call = of_lost_call(&adopted, next).expect("a span");
    assert_eq!((Some(call.id), call.trace), (of_job(&adopted, &[])[0].parent, TraceId::derived(&["t"])));
    assert_eq!((call.parent, call.start, call.end), (Some(SpanId::derived(&["above"])), 900_000_000, 900_000_000));
    assert_eq!((call.failed, said(&call, "phone_opus.outcome")), (true, Some(&"host_lost".into())));
    assert_eq!(said(&call, "mcp.session.id"), Some(&format!("{lost}/3").into()));
    // Another job of the same call says the same.
    let part =
        JobRecord { invocation: Some(format!("{lost}:3:8/2")), accepted_at: UnixMillis(2_000), ..adopted.clone() };
    assert_eq!(of_lost_call(&part, next).as_ref(), Some(&call));
    let own = JobRecord { invocation: Some(format!("{next}:3:8")), ..adopted.clone() };
    let followed = JobRecord { host: Some(lost), ..adopted.clone() };
    let answered = JobRecord { mode: JobMode::Background, ..adopted.clone() };
    let withdrawn = JobRecord { cancel_requested: Some(CancelReason::Requested), ..adopted.clone() };
    let nobodys = JobRecord { invocation: None, ..adopted };
    for other in [own, followed, answered, withdrawn, nobodys] {
        assert_eq!(of_lost_call(&other, next), None, "{other:?}");
    }
}

fn journal(events: &[(i64, JournalEvent)]) -> Vec<JournalEntry> {
    let entry = |(seq, (at, event)): (u64, &(i64, JournalEvent))| JournalEntry {
        seq,
        at: UnixMillis(*at),
        event: event.clone(),
    };
    (1..).zip(events).map(entry).collect()
}

fn agent(event: AgentEvent) -> JournalEvent {
    JournalEvent::Agent { event }
}

#[test]
fn a_job_is_a_chain_down_to_turns_and_tool_uses() {
    let used = |tool: &str| agent(AgentEvent::ToolUse { tool: tool.to_owned() });
    let text = || agent(AgentEvent::Text { text: "SPOKEN".to_owned() });
    let journal = journal(&[
        (1_600, JournalEvent::Dispatched),
        (1_700, JournalEvent::ProcessStarted { pid: 1 }),
        (2_000, agent(AgentEvent::Thinking)),
        (2_500, used("Read")),
        (2_600, used("rm -rf / # SPOKEN")),
        (3_000, agent(AgentEvent::ToolResult)),
        (3_500, agent(AgentEvent::ToolResult)),
        (3_600, agent(AgentEvent::Retrying { attempt: 2, max: 3, delay_ms: 50, status: Some(529) })),
        (4_000, text()),
        (4_100, used("Grep")),
        (5_000, JournalEvent::ProcessExited { code: 0 }),
        (5_500, JournalEvent::ProcessClosed),
    ]);
    let record = job(JobState::Succeeded);
    let spans = of_job(&record, &journal);
    let shown: Vec<(&str, u64, u64, String)> = spans
        .iter()
        .map(|span| {
            let above =
                spans.iter().find(|above| Some(above.id) == span.parent).map_or("the call", |above| &above.name);
            (span.name.as_str(), span.start / 1_000_000, span.end / 1_000_000, above.to_owned())
        })
        .collect();
    let run = "invoke_agent claude".to_owned();
    assert_eq!(
        shown,
        [
            ("job", 1_000, 9_000, "the call".to_owned()),
            ("queued", 1_000, 1_500, "job".to_owned()),
            ("runner", 1_500, 9_000, "job".to_owned()),
            ("invoke_agent claude", 1_700, 5_500, "runner".to_owned()),
            ("chat claude-opus-4", 2_000, 2_600, run.clone()),
            ("chat claude-opus-4", 4_000, 4_100, run.clone()),
            ("execute_tool Read", 2_500, 3_000, run.clone()),
            ("execute_tool other", 2_600, 3_500, run.clone()),
            ("execute_tool Grep", 4_100, 5_500, run),
        ]
    );
    let agent = &spans[3];
    for (name, value) in [
        ("gen_ai.operation.name", Value::from("invoke_agent")),
        ("gen_ai.provider.name", "anthropic".into()),
        ("gen_ai.request.model", "opus".into()),
        ("gen_ai.usage.input_tokens", 12_u64.into()),
        ("gen_ai.usage.output_tokens", 34_u64.into()),
        ("phone_opus.cost_usd", 0.25.into()),
    ] {
        assert_eq!(said(agent, name), Some(&value), "{name}");
    }
    assert_eq!(agent.events.iter().map(|event| event.name).collect::<Vec<_>>(), ["phone_opus.retrying"]);
    assert_eq!(said(&spans[0], "phone_opus.workspace"), Some(&"repo".into()));
    let all = format!("{spans:?}");
    for word in ["PROMPT", "ANSWER", "SPOKEN", "CANARY", "somebody", "private"] {
        assert!(!all.contains(word), "{word} in {all}");
    }
    assert_eq!(of_job(&record, &journal), spans, "whoever sees it tells the same");
}

#[test]
fn a_job_that_never_ran_or_is_not_collected_has_no_more_than_there_was() {
    let mut record = job(JobState::Failed);
    record.started_at = None;
    if let Some(outcome) = &mut record.outcome {
        outcome.fault = Some(Fault::new(FaultCode::RunnerLost, "SECRET words"));
    }
    let spans = of_job(&record, &[]);
    assert_eq!(spans.iter().map(|span| span.name.as_str()).collect::<Vec<_>>(), ["job", "queued"]);
    assert_eq!((spans[0].failed, said(&spans[0], "error.type")), (true, Some(&"runner_lost".into())));
    assert!(!format!("{spans:?}").contains("SECRET"));
    for change in [|trace: &mut JobTrace| trace.sampled = false, |trace: &mut JobTrace| trace.told = false] {
        let mut record = record.clone();
        change(record.trace.as_mut().expect("a trace"));
        assert_eq!(of_job(&record, &[]), []);
    }
    record.trace = None;
    assert_eq!(of_job(&record, &[]), []);
}

#[test]
fn a_run_that_never_ends_is_cut_and_says_so() {
    let mut events = vec![(1_700, JournalEvent::ProcessStarted { pid: 1 })];
    for at in 0..2 * PARTS as i64 {
        events.push((2_000 + at, agent(AgentEvent::ToolUse { tool: "Read".to_owned() })));
        events.push((2_000 + at, agent(AgentEvent::ToolResult)));
        let denial = PermissionDenial { tool: "Bash".to_owned(), target: Some("SECRET".to_owned()) };
        events.push((2_000 + at, agent(AgentEvent::Denied { denial })));
    }
    let spans = of_job(&job(JobState::Succeeded), &journal(&events));
    assert_eq!(spans.len(), 4 + 2 * PARTS);
    let left_out = 2 * PARTS + 2 * PARTS - EVENTS;
    assert_eq!(said(&spans[3], "phone_opus.parts_left_out"), Some(&(left_out as u64).into()));
    assert!(!format!("{spans:?}").contains("SECRET"));
}

#[test]
fn what_has_not_the_form_of_a_name_is_none() {
    for (text, is_name) in [
        ("claude-opus-4[1m]", true),
        ("mcp__server__tool", true),
        ("openai/gpt-5:beta", true),
        ("", false),
        ("two words", false),
        ("a\nb", false),
        ("é", false),
    ] {
        assert_eq!(name(text).is_some(), is_name, "{text:?}");
    }
    assert!(name(&"x".repeat(NAME + 1)).is_none());
    assert_eq!(last_part(Path::new("/home/me/re\npo")).as_deref(), Some("repo"));
    assert_eq!(last_part(Path::new("/")), None);
}
