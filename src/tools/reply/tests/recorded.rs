//! Replies about jobs of every kind, byte for byte as they were recorded.
//!
//! `recorded.txt` holds for each job its text and its structured content. `PHONE_OPUS_ACCEPT=1 cargo test --lib
//! replies_are_as_recorded` writes it anew: look at what changed before it is committed.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use schemars::generate::SchemaSettings;

use super::*;
use crate::jobs::journal::{AgentEvent, AgentResult};
use crate::jobs::{JobMode, JournalEvent, PermissionDenial, RunExit};

/// One reply.
struct Case {
    name: &'static str,
    record: JobRecord,
    context: Context,
    events: Vec<JournalEntry>,
    budget: usize,
}

/// An id that is the same in every run.
fn id<T: std::str::FromStr>(digit: char) -> T {
    let text = "xxxxxxxx-xxxx-4xxx-8xxx-xxxxxxxxxxxx".replace('x', &digit.to_string());
    text.parse().ok().expect("a uuid")
}

/// The same in every run: a job that is not over was accepted in a time that never comes.
fn known(state: JobState, outcome: Option<JobOutcome>) -> JobRecord {
    let accepted_at = if state.is_terminal() { UnixMillis(1000) } else { UnixMillis(i64::MAX) };
    JobRecord { id: id('a'), chain: id('c'), accepted_at, ..record(state, outcome) }
}

fn fault(code: FaultCode) -> Fault {
    Fault::new(code, format!("what is said of {code}."))
}

fn failed(fault: Fault) -> JobOutcome {
    JobOutcome { fault: Some(fault), ..JobOutcome::default() }
}

fn rich() -> JobOutcome {
    JobOutcome {
        response: Some("\"yes\"\nand no: é".into()),
        session_id: Some(id::<AgentSessionId>('b').to_string()),
        model: Some("opus-9".into()),
        billing: Some("none".into()),
        cost_usd: Some(0.010_499_999_999),
        num_turns: Some(7),
        stop_reason: Some("end_turn".into()),
        usage: Some(json!({
            "service_tier": "standard", "input_tokens": 11, "output_tokens": 22, "cache_read_input_tokens": 33,
            "cache_creation_input_tokens": 0, "server_tool_use": {"web_search_requests": 0.1 + 0.2},
        })),
        model_usage: Some(json!({"opus-9": {"costUSD": 0.010_499_999_999, "inputTokens": 11}})),
        permission_denials: vec![
            PermissionDenial { tool: "Bash".into(), target: Some("rm -rf /".into()) },
            PermissionDenial { tool: "Write".into(), target: None },
        ],
        prompt_prefix_injected: true,
        exit: Some(RunExit { code: 0, signal: None, reaped: 0 }),
        workspace_changed: Some(false),
        queued_ms: Some(5),
        run_ms: Some(1900),
        ..JobOutcome::default()
    }
}

fn answered(answer: &str) -> JobOutcome {
    JobOutcome { response: Some(answer.into()), ..JobOutcome::default() }
}

fn over(name: &'static str, state: JobState, outcome: JobOutcome) -> Case {
    Case { context: Context::default(), events: Vec::new(), budget: 24_000, name, record: known(state, Some(outcome)) }
}

/// The same of an agent that ran on another machine.
fn elsewhere(mut case: Case) -> Case {
    case.record.request.machine = Some("wss://build.example:443/".to_owned());
    case
}

fn open(name: &'static str, state: JobState, context: Context) -> Case {
    Case { context, events: Vec::new(), budget: 24_000, name, record: known(state, None) }
}

fn left_out() -> Option<LeftOut> {
    Some(LeftOut { place: "/w/.phone-opus.toml".into(), why: "is not UTF-8".into() })
}

fn events() -> Vec<JournalEntry> {
    let result = AgentResult { cost_usd: Some(0.1 + 0.2), num_turns: Some(2), ..AgentResult::default() };
    let denial = PermissionDenial { tool: "Bash".into(), target: None };
    [
        JournalEvent::Dispatched,
        JournalEvent::ProcessStarted { pid: 7 },
        JournalEvent::Agent { event: AgentEvent::Text { text: "one\ntwo".into() } },
        JournalEvent::Agent { event: AgentEvent::Denied { denial } },
        JournalEvent::Agent { event: AgentEvent::Result { result: Box::new(result) } },
        JournalEvent::ProcessExited { code: 0 },
        JournalEvent::Truncated,
    ]
    .into_iter()
    .zip(3..)
    .map(|(event, seq)| JournalEntry { seq, at: UnixMillis(2000), event })
    .collect()
}

fn exit(code: i32, signal: Option<i32>) -> Option<RunExit> {
    Some(RunExit { code, signal, reaped: 1 })
}

fn cases() -> Vec<Case> {
    use JobState::{Cancelled, Failed, Interrupted, Queued, Running, Succeeded};
    let said = Context { text_so_far: "so far\nthis".into(), phase: Some("using Read".into()), ..Context::default() };
    let handed_over = Context { handed_over: true, ..said.clone() };
    let person = || Context { reader: Reader::Person, ..Context::default() };
    let session = || Some(id::<AgentSessionId>('b').to_string());
    let resumable = |code| JobOutcome { session_id: session(), resumable: Some(true), ..failed(fault(code)) };
    let long: String = (0..95).map(|n| char::from(b'a' + (n % 26) as u8)).chain(['é']).collect();
    let page = |page| Case {
        context: Context { page: Some(page), ..Context::default() },
        budget: 40,
        ..over("a page of a long answer", Succeeded, answered(&long))
    };
    // Beyond what a calendar holds, so that no zone and no clock is in the text.
    let retry_at = fault(FaultCode::AgentRateLimited).hint("Wait.").retry_at(UnixMillis(i64::MIN)).job(id('a'));
    let mut resumed = known(Succeeded, Some(rich()));
    resumed.request = ConsultRequest { model: Some("opus".into()), ..resumed.request }.resume(id('d'));
    resumed.mode = JobMode::Background;
    resumed.depth = 2;
    let mut asked = known(Running, None);
    asked.request = ConsultRequest { model: Some("opus".into()), ..asked.request }.agent("offline").resume(id('d'));
    vec![
        open("queued", Queued, Context::default()),
        open("queued with a place", Queued, Context { place: Some(3), ..Context::default() }),
        open("queued, for a person", Queued, person()),
        open(
            "on another machine of the fleet",
            Running,
            Context {
                placed: Some(MachineTold { machine: Some("box".into()), because: "it has the workspace".into() }),
                ..Context::default()
            },
        ),
        open("running", Running, Context::default()),
        open("running and heard of", Running, said.clone()),
        open("handed over", Running, handed_over.clone()),
        open(
            "handed over early",
            Running,
            Context { gave_up_after: Some(Duration::from_secs(60)), ..handed_over.clone() },
        ),
        open("running, for a person", Running, Context { reader: Reader::Person, ..handed_over }),
        Case { record: asked, ..open("a resumed session at work", Running, Context::default()) },
        Case { events: events(), ..open("running, with events", Running, said) },
        over("nothing known", Succeeded, JobOutcome::default()),
        over("everything known", Succeeded, rich()),
        Case { events: events(), ..over("everything known, with events", Succeeded, rich()) },
        Case { record: resumed, ..over("a resumed session", Succeeded, rich()) },
        over("no prefix", Succeeded, JobOutcome { prompt_prefix_injected: false, ..rich() }),
        over("extra usage", Succeeded, JobOutcome { extra_usage: true, ..rich() }),
        over("extra usage of nobody knows whom", Succeeded, JobOutcome { extra_usage: true, ..answered("42") }),
        over("cost of nothing", Succeeded, JobOutcome { cost_usd: Some(0.0), ..answered("42") }),
        over("a cost between two digits", Succeeded, JobOutcome { cost_usd: Some(0.000_149_99), ..answered("42") }),
        over("a cost with many digits", Succeeded, JobOutcome { cost_usd: Some(0.1 + 0.2), ..answered("42") }),
        over("a usage limit", Succeeded, JobOutcome { limit: Some("five_hour".into()), ..answered("42") }),
        over("usage that is no object", Succeeded, JobOutcome { usage: Some(json!([1.25, null])), ..answered("42") }),
        over("usage without an output", Succeeded, JobOutcome { usage: Some(json!({"input_tokens": 1})), ..rich() }),
        over(
            "usage with a cache",
            Succeeded,
            JobOutcome {
                usage: Some(json!({
                    "input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 3,
                    "cache_creation_input_tokens": 4,
                })),
                ..answered("42")
            },
        ),
        over("an answer that was kept in part", Succeeded, JobOutcome { response_cut: true, ..answered("42") }),
        Case { budget: 40, ..over("a long answer", Succeeded, answered(&long)) },
        page(1),
        page(2),
        page(3),
        Case {
            context: Context { page: Some(1), ..Context::default() },
            ..over("a page of a short answer", Succeeded, answered("42"))
        },
        over("files changed", Succeeded, JobOutcome { workspace_changed: Some(true), ..rich() }),
        over("files not judged", Succeeded, JobOutcome { workspace_changed: None, ..rich() }),
        over("a code after an answer", Succeeded, JobOutcome { exit: exit(3, None), ..rich() }),
        over("a signal after an answer", Succeeded, JobOutcome { exit: exit(143, Some(15)), ..rich() }),
        Case {
            context: Context { unstored: true, ..Context::default() },
            ..over("an answer not stored", Succeeded, rich())
        },
        Case {
            context: Context { joined: true, ..Context::default() },
            ..over("an answer joined", Succeeded, answered("42"))
        },
        Case {
            context: Context { unread: vec![id('e'), id('f')], left_out: left_out(), ..Context::default() },
            ..over("with unread jobs and a file left out", Succeeded, answered("42"))
        },
        Case {
            context: Context { environment: CallerOrigin::Base, ..Context::default() },
            ..over("with the environment the system says", Succeeded, answered("42"))
        },
        over("failed without a fault", Failed, JobOutcome::default()),
        over("a turn limit", Failed, resumable(FaultCode::TurnLimit)),
        Case { context: person(), ..over("a turn limit, for a person", Failed, resumable(FaultCode::TurnLimit)) },
        over("a budget used up", Failed, resumable(FaultCode::BudgetExhausted)),
        over("a session that can be resumed", Failed, resumable(FaultCode::AgentStalled)),
        Case { context: person(), ..over("the same for a person", Failed, resumable(FaultCode::AgentStalled)) },
        over(
            "a session that cannot",
            Failed,
            JobOutcome { resumable: Some(false), session_id: session(), ..failed(fault(FaultCode::AgentProtocol)) },
        ),
        over("no agent", Failed, failed(fault(FaultCode::AgentMissing).hint("Install it."))),
        Case {
            context: person(),
            ..over("no agent, for a person", Failed, failed(fault(FaultCode::AgentMissing).hint("Install it.")))
        },
        over("a rate limit", Failed, failed(retry_at)),
        over(
            "a failure that had said something",
            Failed,
            JobOutcome {
                fault: Some(fault(FaultCode::AgentUpstream)),
                stderr_tail: Some(format!("{}\nlast words\n\n", "x".repeat(700))),
                exit: exit(1, None),
                ..rich()
            },
        ),
        over(
            "an empty standard error",
            Failed,
            JobOutcome { stderr_tail: Some(" \n".into()), ..failed(fault(FaultCode::AgentError)) },
        ),
        Case {
            context: Context { joined: true, unread: vec![id('e')], ..Context::default() },
            ..over("a failure joined", Failed, resumable(FaultCode::TurnLimit))
        },
        Case {
            context: Context { unstored: true, left_out: left_out(), ..Context::default() },
            ..over("a failure not stored", Failed, resumable(FaultCode::TurnLimit))
        },
        over("cancelled", Cancelled, failed(fault(FaultCode::Cancelled))),
        over("cancelled without a fault", Cancelled, rich()),
        over("its caller gone", Cancelled, failed(fault(FaultCode::CallerLost).operation("consult"))),
        over(
            "interrupted",
            Interrupted,
            JobOutcome { response: Some("half".into()), ..resumable(FaultCode::RunnerLost) },
        ),
        elsewhere(over(
            "on another machine",
            Succeeded,
            JobOutcome { exit: exit(0, None), workspace_changed: None, ..rich() },
        )),
        elsewhere(over("on a machine that was lost", Interrupted, resumable(FaultCode::ExecLost))),
        Case { record: known(Interrupted, None), ..over("no outcome", Interrupted, JobOutcome::default()) },
        over("an answer with a fault", Succeeded, JobOutcome { fault: Some(fault(FaultCode::Refused)), ..rich() }),
    ]
}

fn replied(case: &Case, shape: Shape) -> ToolReply {
    let context = Context { events: case.events.clone(), ..case.context.clone() };
    job(&case.record, &context, shape)
}

/// Everything that is known of a reply, as it is written down.
fn written(case: &Case, shape: Shape) -> String {
    let reply = replied(case, shape);
    let ReplyText::Plain(text) = reply.text else { panic!("a plain text") };
    let mut written = format!("=== {} · {:?}\n{text}\n", case.name, shape.detail);
    if let Some(structured) = reply.structured {
        let _ = writeln!(written, "{structured}");
    }
    let _ = writeln!(written, "({:?}, {:?}, {:?}, {:?})", reply.fault, reply.job, reply.tells_end, reply.path_hint);
    written
}

/// The replies that are recorded under `full` as well.
const IN_FULL: [&str; 6] = [
    "handed over",
    "everything known, with events",
    "a resumed session",
    "a rate limit",
    "a failure that had said something",
    "no outcome",
];

/// What a client may be told about the structured content before it sees any.
fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    settings.into_generator().into_root_schema_for::<JobReply>().to_value()
}

#[test]
fn the_schema_of_a_reply_is_made_from_its_type_and_holds_for_every_reply() {
    let schema = schema();
    let required = schema["required"].as_array().expect("what every reply has");
    for field in ALWAYS {
        assert!(required.contains(&json!(field)), "{field} in {required:?}");
    }
    assert_eq!(required.len(), ALWAYS.len(), "{required:?}");
    let properties = schema["properties"].as_object().expect("every field that there is");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let mut told = std::collections::BTreeSet::new();
    for case in cases() {
        for detail in [Detail::Concise, Detail::Full] {
            let shape = Shape { render: Render::Json, detail, budget: case.budget, structured: true };
            let reply = replied(&case, shape);
            let value = serde_json::from_str(&reply.structured.expect("structured content")).expect("it is JSON");
            if let Err(error) = validator.validate(&value) {
                panic!("{}: {error} at {}\n{value:#}", case.name, error.instance_path());
            }
            told.extend(value.as_object().expect("an object").keys().cloned());
        }
    }
    assert!(told.iter().eq(properties.keys()), "{told:?}\n{:?}", properties.keys());
}

#[test]
fn replies_are_as_recorded() {
    let mut new = String::new();
    for case in cases() {
        for detail in [Detail::Concise, Detail::Full] {
            let shape = Shape { render: Render::Porcelain, detail, budget: case.budget, structured: true };
            // What `full` adds is the same for most.
            if detail == Detail::Concise || IN_FULL.contains(&case.name) {
                new.push_str(&written(&case, shape));
            }
            // Asked for as JSON, the text is the structured content; who is not given that has the text all the same.
            let as_json = replied(&case, Shape { render: Render::Json, ..shape });
            let ReplyText::Plain(text) = as_json.text else { panic!("a plain text") };
            assert_eq!(Some(text), as_json.structured, "{}", case.name);
            assert_eq!(as_json.structured, replied(&case, shape).structured, "{}", case.name);
            let bare = replied(&case, Shape { structured: false, ..shape });
            assert_eq!(bare.structured, None, "{}", case.name);
        }
    }
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/tools/reply/tests/recorded.txt");
    if std::env::var_os("PHONE_OPUS_ACCEPT").is_some() {
        std::fs::write(file, new).expect("written");
        return;
    }
    let old = std::fs::read_to_string(file).expect("a recording");
    for (number, (old, new)) in (1..).zip(old.lines().zip(new.lines())) {
        assert_eq!(old, new, "line {number}; if it is right, accept it: see the head of this file");
    }
    assert_eq!(old, new);
}
