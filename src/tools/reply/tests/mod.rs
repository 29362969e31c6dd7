//! What a reply says, field by field and as a whole.

mod recorded;
mod several;

use serde_json::json;

use super::*;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::AgentSessionId;
use crate::jobs::{ConsultRequest, JobOutcome};

fn record(state: JobState, outcome: Option<JobOutcome>) -> JobRecord {
    JobRecord {
        accepted_at: UnixMillis(1000),
        started_at: Some(UnixMillis(1100)),
        finished_at: state.is_terminal().then_some(UnixMillis(3000)),
        outcome,
        ..JobRecord::plain(state, ConsultRequest::new("why?").cwd("/w").timeout_s(60))
    }
}

fn shape(budget: usize) -> Shape {
    Shape { render: Render::Porcelain, detail: Detail::Concise, budget, structured: true }
}

fn parts(reply: &ToolReply) -> (String, Value) {
    let ReplyText::Plain(text) = &reply.text else { panic!("a plain text") };
    let structured = reply.structured.as_ref().expect("structured content");
    (text.clone(), serde_json::from_str(structured).expect("it is JSON"))
}

const ALWAYS: [&str; 19] = [
    "mode",
    "status",
    "job_id",
    "session_id",
    "session_mode",
    "response",
    "agent",
    "model",
    "cwd",
    "billing",
    "cost_usd",
    "duration_ms",
    "num_turns",
    "stop_reason",
    "usage",
    "permission_denial_count",
    "prompt_prefix_injected",
    "truncated",
    "next",
];

#[test]
fn every_reply_carries_every_field_and_failures_do_too() {
    let session = AgentSessionId::random().to_string();
    let failed = JobOutcome {
        session_id: Some(session.clone()),
        fault: Some(Fault::new(FaultCode::TurnLimit, "the agent used all its turns.")),
        resumable: Some(true),
        ..JobOutcome::default()
    };
    let fine = JobOutcome { response: Some("42".into()), cost_usd: Some(0.5), ..JobOutcome::default() };
    for (record, error) in [
        (record(JobState::Succeeded, Some(fine)), false),
        (record(JobState::Failed, Some(failed)), true),
        (record(JobState::Running, None), false),
        (record(JobState::Queued, None), false),
    ] {
        let reply = job(&record, &Context::default(), shape(24_000));
        let (text, structured) = parts(&reply);
        for field in ALWAYS {
            assert!(structured.get(field).is_some(), "{field} in {structured}");
        }
        assert_eq!(reply.fault.is_some(), error);
        assert!(text.contains(&record.id.to_string()), "{text}");
        if error {
            assert!(text.contains(&session) && structured["fault"]["code"] == "turn_limit", "{text}\n{structured}");
            assert_eq!(structured["cost_usd"], Value::Null, "unknown is not 0");
        }
    }
}

#[test]
fn an_answer_over_the_budget_is_cut_in_the_middle_and_its_pages_give_the_whole() {
    let answer: String = (0..5000).map(|n| char::from(b'a' + (n % 26) as u8)).collect::<String>() + "é";
    let outcome = JobOutcome { response: Some(answer.clone()), ..JobOutcome::default() };
    let record = record(JobState::Succeeded, Some(outcome));
    let (text, structured) = parts(&job(&record, &Context::default(), shape(1000)));
    assert_eq!((structured["truncated"].as_bool(), structured["pages"].as_u64()), (Some(true), Some(6)));
    assert!(text.contains("4001 characters left out") && text.contains('é'), "{text}");
    let whole: String = (1..=6)
        .map(|page| {
            let context = Context { page: Some(page), ..Context::default() };
            let (text, structured) = parts(&job(&record, &context, shape(1000)));
            let part = structured["response"].as_str().expect("a page").to_owned();
            assert!(text.contains(&part), "both carry it");
            part
        })
        .collect();
    assert_eq!(whole, answer);
}

#[test]
fn full_shows_the_prompt_and_concise_does_not() {
    let record = record(JobState::Succeeded, Some(JobOutcome::default()));
    let full = Shape { detail: Detail::Full, ..shape(1000) };
    for (shape, shown) in [(shape(1000), false), (full, true)] {
        let (text, structured) = parts(&job(&record, &Context::default(), shape));
        assert_eq!(structured.get("prompt").is_some(), shown);
        assert_eq!(text.matches("why?").count(), usize::from(shown), "once at most: {text}");
        assert_eq!(structured.to_string().matches("why?").count(), usize::from(shown), "{structured}");
    }
}

#[test]
fn the_structured_content_may_be_left_out_and_the_text_then_says_everything() {
    let outcome = JobOutcome {
        session_id: Some(AgentSessionId::random().to_string()),
        response: Some("\"yes\"\nand no".into()),
        model: Some("opus-9".into()),
        billing: Some("none".into()),
        cost_usd: Some(0.010_499_999_999),
        num_turns: Some(7),
        stop_reason: Some("end_turn".into()),
        usage: Some(json!({"input_tokens": 11, "output_tokens": 22, "cache_read_input_tokens": 33})),
        ..JobOutcome::default()
    };
    let record = record(JobState::Succeeded, Some(outcome));
    let context = Context { unread: vec![JobId::random()], ..Context::default() };
    let (whole, structured) = parts(&job(&record, &context, shape(24_000)));
    let bare = job(&record, &context, Shape { structured: false, ..shape(24_000) });
    let ReplyText::Plain(text) = &bare.text else { panic!("a plain text") };
    assert_eq!((&bare.structured, text), (&None, &whole));
    for field in
        ["response", "status", "mode", "job_id", "session_id", "session_mode", "agent", "model", "cwd", "billing"]
    {
        let value = structured[field].as_str().expect("a text");
        assert!(text.contains(value), "{field} {value} in {text}");
    }
    for part in ["$0.0105", "2.0 s", "7 turns", "end_turn", "11 tokens in (33 read from the cache), 22 out"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(text.contains(&context.unread[0].to_string()), "{text}");
    assert_eq!(structured["cost_usd"], json!(0.0105), "as people write it");
    let asked = job(&record, &context, Shape { render: Render::Json, ..shape(24_000) });
    let ReplyText::Plain(text) = &asked.text else { panic!("a plain text") };
    assert_eq!(asked.structured.as_ref(), Some(text));
}

#[test]
fn numbers_are_told_as_people_write_them() {
    for (given, want) in [
        (0.010_499_999_999_999_999, "0.0105"),
        (0.010_499_999_9, "0.0105"),
        (0.1 + 0.2, "0.3"),
        (1.005, "1.005"),
        (123.456_789_1, "123.456789"),
        (0.000_012_345_6, "0.0000123"),
        (0.0, "0.0"),
        (-0.333_333_333_3, "-0.333333"),
        (1e300, "1e+300"),
    ] {
        let mut value = json!({"a": [given], "n": 3});
        tidy(&mut value);
        let got = value["a"][0].as_f64().expect("a number");
        let wanted: f64 = want.parse().expect("a number");
        assert!((got - wanted).abs() <= f64::EPSILON * wanted.abs(), "{given}: {got}");
        assert_eq!(value["n"], json!(3));
    }
}

#[test]
fn what_comes_next_is_said_in_the_words_of_its_reader_and_why_it_came_early() {
    let running = record(JobState::Running, None);
    let next = |context: Context| {
        let (_, structured) = parts(&job(&running, &context, shape(1000)));
        structured["next"].as_str().expect("something to do").to_owned()
    };
    let person = next(Context { reader: Reader::Person, ..Context::default() });
    assert!(person.contains(&format!("phone-opus jobs show {} --wait", running.id)), "{person}");
    let model = next(Context { handed_over: true, ..Context::default() });
    assert!(model.contains("consult_job {") && !model.contains("give up"), "{model}");
    let after = Some(Duration::from_secs(60));
    let early = next(Context { handed_over: true, gave_up_after: after, ..Context::default() });
    assert!(early.contains("give up calls after 60 s") && early.contains("wait_s"), "{early}");
}
