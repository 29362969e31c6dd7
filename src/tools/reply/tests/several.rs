//! What a reply about several agents says.

use super::*;
use crate::jobs::{JobMode, RunExit};
use crate::tools::several::{Consulted, Standing};

fn consulted(agent: &str, standing: Standing) -> Consulted {
    Consulted::new(agent, standing)
}

fn over(agent: &str, state: JobState, outcome: JobOutcome) -> Consulted {
    let mut record = record(state, Some(outcome));
    record.request.agent = agent.to_owned();
    // What ran has an exit to tell of.
    consulted(agent, Standing::Over { record: record.into(), stored: true })
}

fn answered(agent: &str, cost_usd: Option<f64>) -> Consulted {
    over(
        agent,
        JobState::Succeeded,
        JobOutcome { response: Some(format!("so says {agent}")), cost_usd, ..JobOutcome::default() },
    )
}

fn failed(agent: &str) -> Consulted {
    let fault = Some(Fault::new(FaultCode::TurnLimit, "the agent used all its turns."));
    let exit = Some(RunExit { code: 1, signal: None, reaped: 0 });
    over(agent, JobState::Failed, JobOutcome { fault, exit, cost_usd: Some(0.25), ..JobOutcome::default() })
}

fn refused(agent: &str) -> Consulted {
    consulted(agent, Standing::Refused(Fault::new(FaultCode::QueueFull, "9 jobs are waiting already.").hint("Wait.")))
}

fn lost(agent: &str) -> Consulted {
    let fault = Fault::new(FaultCode::StoreUnavailable, "the disk hangs.");
    consulted(agent, Standing::Lost { record: Box::new(record(JobState::Running, None)), fault })
}

fn open(agent: &str) -> Consulted {
    let mut record = record(JobState::Running, None);
    record.accepted_at = UnixMillis::now();
    record.request.agent = agent.to_owned();
    consulted(agent, Standing::Open(Box::new(record)))
}

fn context() -> SeveralContext {
    SeveralContext {
        mode: JobMode::Sync,
        handed_over: false,
        gave_up_after: None,
        unread: Vec::new(),
        left_out: None,
        environment: CallerOrigin::Host,
        reader: Reader::Model,
    }
}

fn told(agents: &[Consulted], context: &SeveralContext, shape: Shape) -> (ToolReply, String, Value) {
    let known: Vec<Context> = agents.iter().map(|_| Context::default()).collect();
    let reply = several(agents, &known, context, shape);
    let (text, structured) = parts(&reply);
    (reply, text, structured)
}

#[test]
fn it_is_an_error_when_none_succeeded_and_none_is_under_way() {
    type Row = (Vec<Consulted>, &'static str, Option<FaultCode>, Value, usize);
    let rows: Vec<Row> = vec![
        (vec![answered("a", Some(0.5)), answered("b", Some(0.25))], "succeeded", None, json!(0.75), 2),
        (vec![answered("a", Some(0.5)), answered("b", None)], "succeeded", None, Value::Null, 2),
        (vec![failed("a"), answered("b", Some(0.5))], "succeeded", None, json!(0.75), 2),
        (vec![refused("a"), answered("b", Some(0.5))], "succeeded", None, json!(0.5), 1),
        (vec![refused("a"), failed("b")], "failed", Some(FaultCode::QueueFull), json!(0.25), 1),
        (vec![failed("a"), failed("b")], "failed", Some(FaultCode::TurnLimit), json!(0.5), 2),
        (vec![failed("a"), open("b")], "running", None, Value::Null, 1),
        (vec![lost("a"), failed("b")], "failed", Some(FaultCode::StoreUnavailable), Value::Null, 1),
        (vec![lost("a"), answered("b", Some(0.5))], "succeeded", None, Value::Null, 1),
    ];
    for (agents, status, fault, cost, ends) in rows {
        let (reply, text, structured) = told(&agents, &context(), shape(24_000));
        assert_eq!((structured["status"].as_str(), reply.fault), (Some(status), fault), "{text}");
        assert_eq!((&structured["cost_usd"], reply.ends.len()), (&cost, ends), "{text}");
        assert!(reply.job.is_none() && structured.get("job_id").is_none(), "it has no job of its own: {structured}");
        let answers = structured["answers"].as_array().expect("a list");
        let names: Vec<Option<&str>> = answers.iter().map(|answer| answer["agent"].as_str()).collect();
        assert_eq!(names, [Some("a"), Some("b")], "as they were named");
        for (answer, agent) in answers.iter().zip(&agents) {
            if agent.standing.record().is_some() {
                assert!(text.contains(answer["job_id"].as_str().expect("an id")), "{text}");
            }
            for part in [&answer["response"], &answer["fault"]["detail"], &answer["fault"]["hint"], &answer["status"]] {
                assert!(part.as_str().is_none_or(|part| text.contains(part)), "{part} in {text}");
            }
        }
    }
}

#[test]
fn each_answer_has_the_fields_of_a_reply_of_its_own() {
    let agents = [answered("a", None), open("b"), failed("c")];
    let (_, text, structured) = told(&agents, &context(), shape(24_000));
    for answer in structured["answers"].as_array().expect("a list") {
        for field in ALWAYS {
            assert!(answer.get(field).is_some(), "{field} in {answer}");
        }
    }
    assert!(text.starts_with("## a\n\nso says a\n\n[job "), "{text}");
    for heading in ["\n\n## b\n\nThe consult is still running", "\n\n## c\n\nThe consult failed (turn_limit)"] {
        assert!(text.contains(heading), "{text}");
    }
    assert!(text.contains("\n\n[3 agents · 1 succeeded, 1 running, 1 failed · sync · "), "{text}");
    let asked = told(&agents, &context(), Shape { render: Render::Json, ..shape(24_000) });
    assert_eq!(asked.0.structured.as_deref(), Some(asked.1.as_str()));
}

#[test]
fn how_the_others_are_read_is_said_once_for_all_of_them() {
    let agents = [open("a"), answered("b", None), open("c")];
    let ids: Vec<JobId> = agents.iter().filter_map(|told| told.standing.record()).map(|record| record.id).collect();
    for (reader, handed_over, gave_up_after, parts) in [
        (Reader::Model, true, None, ["goes on in the background. Read each", "{\"job_id\":\"ID\",\"wait_s\":45}"]),
        (Reader::Model, true, Some(Duration::from_secs(60)), ["after 60 s", "{\"job_id\":\"ID\",\"wait_s\":45}"]),
        (Reader::Model, false, None, ["Read each answer with", "{\"job_id\":\"ID\",\"wait_s\":45}"]),
        (Reader::Person, false, None, ["Read each answer: ", "phone-opus jobs show ID --wait 600"]),
    ] {
        let context = SeveralContext { reader, handed_over, gave_up_after, ..context() };
        let (_, text, structured) = told(&agents, &context, shape(24_000));
        let next = structured["next"].as_str().expect("what to do");
        assert!(text.contains(next) && next.contains(parts[0]), "{next}");
        for (id, open) in ids.iter().zip([true, false, true]) {
            assert_eq!(next.contains(&parts[1].replace("ID", &id.to_string())), open, "{next}");
        }
        assert!(next.contains("(a)") && next.contains("(c)") && !next.contains("(b)"), "{next}");
        let each = structured["answers"].as_array().expect("a list");
        assert!(each.iter().all(|answer| answer["next"].is_null()), "once: {structured}");
    }
}

#[test]
fn they_share_one_budget_and_each_is_read_on_page_by_page() {
    let long = |agent: &str, characters: usize| {
        let response = Some("x".repeat(characters));
        over(agent, JobState::Succeeded, JobOutcome { response, ..JobOutcome::default() })
    };
    let agents = [long("a", 400), long("b", 900), long("c", 2500)];
    let (_, text, structured) = told(&agents, &context(), shape(1200));
    assert!(text.chars().filter(|c| *c == 'x').count() <= 1200 + 20, "{text}");
    let of = |at: usize| {
        let answer = &structured["answers"][at];
        let next = answer["next"].as_str().unwrap_or_default();
        (
            answer["truncated"] == true,
            answer["pages"].as_u64(),
            next.contains("consult_job"),
            next.contains("\"page\":1"),
        )
    };
    assert_eq!(of(0), (false, None, false, false));
    assert_eq!(of(1), (true, None, true, false), "the whole of it fits by itself");
    assert_eq!(of(2), (true, Some(3), true, true));
}
