//! What the consult tools answer: one projection of a job, shown as text and as structured content.
//!
//! Owns: the fields, what `concise` and `full` show, the budget of an answer and its pages. May not know: where a job
//! came from.
//!
//! Invariants: (1) text and structured content are each complete, because real clients show the model only one of
//! them; (2) a client that would show its model the structured content instead of the text gets it only when it is asked for,
//! so that no model reads an answer with escapes in it; (3) an unknown number is null, not 0; (4) a failure carries everything
//! a success does, the session id above all.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{ReplyText, ToolReply};
use crate::base::fault::FaultCode;
use crate::base::ids::{JobId, UnixMillis};
use crate::base::local_time;
use crate::config::LeftOut;
use crate::jobs::{JobOutcome, JobRecord, JobState};

/// How the text block looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Render {
    /// For reading.
    #[default]
    Porcelain,
    /// The structured content once more.
    Json,
}

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Detail {
    /// The answer and what matters about it.
    #[default]
    Concise,
    /// Everything that is known.
    Full,
}

/// The words of `render`.
pub const RENDER: [(&str, Render); 2] = [("porcelain", Render::Porcelain), ("json", Render::Json)];

/// The words of `detail`.
pub const DETAIL: [(&str, Detail); 2] = [("concise", Detail::Concise), ("full", Detail::Full)];

/// How a reply is to be made.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// How the text looks.
    pub render: Render,
    /// How much is told.
    pub detail: Detail,
    /// Characters of an answer per page.
    pub budget: usize,
    /// Whether the structured content goes along.
    pub structured: bool,
}

/// Who reads what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reader {
    /// A model, which calls tools.
    #[default]
    Model,
    /// A person at the command line, who types commands.
    Person,
}

/// What is known about a job beyond its record.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// What the agent has said so far.
    pub text_so_far: String,
    /// What it is doing.
    pub phase: Option<String>,
    /// Its place in the queue.
    pub place: Option<usize>,
    /// Finished jobs of the workspace that nobody has read.
    pub unread: Vec<JobId>,
    /// The page of the answer that is wanted, from 1; head and tail when none is.
    pub page: Option<usize>,
    /// The call that is open: a soft deadline turned it into a background job.
    pub handed_over: bool,
    /// The store does not take the outcome: the record says how the job will have ended.
    pub unstored: bool,
    /// The call joined a job it did not begin, by its `request_key`.
    pub joined: bool,
    /// The project's configuration file, where it could not be used.
    pub left_out: Option<LeftOut>,
    /// After so long its client was seen to give up, which is why the soft deadline came before the usual one.
    pub gave_up_after: Option<Duration>,
    /// Who is told what to do next.
    pub reader: Reader,
}

/// Cuts an answer that is over the budget: head and tail with a marker, or one page.
fn cut(answer: &str, budget: usize, page: Option<usize>) -> (String, bool, usize) {
    let count = answer.chars().count();
    let pages = count.div_ceil(budget).max(1);
    if let Some(page) = page {
        let text = answer.chars().skip((page - 1) * budget).take(budget).collect();
        return (text, pages > 1, pages);
    }
    if count <= budget {
        return (answer.to_owned(), false, pages);
    }
    let head = budget * 2 / 3;
    let tail = budget - head;
    let start: String = answer.chars().take(head).collect();
    let end: String = answer.chars().skip(count - tail).collect();
    let left_out = count - head - tail;
    (format!("{start}\n\n[… {left_out} characters left out; read them with `page` …]\n\n{end}"), true, pages)
}

/// Pages of a job's answer, at least one.
#[must_use]
pub fn pages(record: &JobRecord, budget: usize) -> usize {
    let answer = record.outcome.as_ref().and_then(|outcome| outcome.response.as_deref());
    answer.map_or(1, |answer| answer.chars().count().div_ceil(budget).max(1))
}

/// The reply about one job.
#[must_use]
pub fn job(record: &JobRecord, context: &Context, shape: Shape) -> ToolReply {
    let outcome = record.outcome.as_ref();
    let fault = outcome.and_then(|outcome| outcome.fault.as_ref());
    let answer = match outcome {
        Some(outcome) => outcome.response.as_deref(),
        None => Some(context.text_so_far.as_str()).filter(|text| !text.is_empty()),
    };
    let (response, truncated, pages) = answer.map_or((None, false, 1), |answer| {
        let (text, truncated, pages) = cut(answer, shape.budget, context.page);
        (Some(text), truncated, pages)
    });
    let truncated = truncated || outcome.is_some_and(|outcome| outcome.response_cut);
    let session = outcome
        .and_then(|outcome| outcome.session_id.clone())
        .or_else(|| record.request.session_id.map(|session| session.to_string()));
    let ended = record.finished_at.unwrap_or_else(UnixMillis::now);
    let next = next(record, context, session.as_deref(), truncated, pages);

    let mut object = Map::new();
    let mut put = |name: &str, value: Value| drop(object.insert(name.to_owned(), value));
    put("mode", json!(record.mode.as_str()));
    put("status", json!(record.state.as_str()));
    put("job_id", json!(record.id.to_string()));
    put("session_id", json!(session));
    put("session_mode", json!(if record.request.session_id.is_some() { "resumed" } else { "new" }));
    put("response", json!(response));
    put("agent", json!(record.request.agent));
    put("model", json!(outcome.and_then(|o| o.model.clone()).or_else(|| record.request.model.clone())));
    put("cwd", json!(record.request.cwd));
    put("billing", json!(outcome.and_then(billing)));
    put("cost_usd", json!(outcome.and_then(|o| o.cost_usd)));
    put("duration_ms", json!(ended.since(record.accepted_at)));
    put("num_turns", json!(outcome.and_then(|o| o.num_turns)));
    put("stop_reason", json!(outcome.and_then(|o| o.stop_reason.as_deref())));
    put("usage", json!(outcome.and_then(|o| o.usage.as_ref()).map(|usage| brief_usage(usage, shape.detail))));
    put("permission_denial_count", json!(outcome.map_or(0, |o| o.permission_denials.len())));
    put("prompt_prefix_injected", json!(outcome.is_some_and(|o| o.prompt_prefix_injected)));
    put("truncated", json!(truncated));
    put("next", json!(next));
    if context.unstored {
        put("stored", json!(false));
    }
    // An answer is the same for everybody who asked for it; a failure has to say that it is not this call's.
    if context.joined && record.state.is_terminal() && record.state != JobState::Succeeded {
        put("joined", json!(true));
    }
    let changed = outcome.and_then(|o| o.workspace_changed);
    // Not judged is told, so that a directory cannot switch the look off unseen; absent is unchanged, or nothing ran.
    let unjudged = changed.is_none() && outcome.is_some_and(|o| o.exit.is_some());
    if changed == Some(true) || unjudged || (shape.detail == Detail::Full && outcome.is_some()) {
        put("workspace_changed", json!(changed));
    }
    if pages > 1 {
        put("page", json!(context.page));
        put("pages", json!(pages));
    }
    if let Some(phase) = context.phase.as_ref().filter(|_| !record.state.is_terminal()) {
        put("phase", json!(phase));
    }
    if let Some(place) = context.place {
        put("queue_position", json!(place));
    }
    if let Some(exit) = outcome.and_then(|o| o.exit).filter(|exit| exit.code != 0 || exit.signal.is_some()) {
        put("exit", json!(exit));
    }
    if let Some(fault) = fault {
        put("fault", json!(fault));
        put("resumable", json!(outcome.and_then(|o| o.resumable)));
        put("stderr_tail", json!(outcome.and_then(|o| o.stderr_tail.as_deref())));
    }
    if !context.unread.is_empty() {
        put("unread_jobs", json!(context.unread.iter().map(ToString::to_string).collect::<Vec<_>>()));
    }
    if let Some(left_out) = &context.left_out {
        put("project_file_left_out", json!(left_out));
    }
    if shape.detail == Detail::Full {
        put("prompt", json!(cut(&record.request.prompt, shape.budget, None).0));
        put("effective_prompt", json!(effective_prompt(record)));
        put("model_usage", json!(outcome.and_then(|o| o.model_usage.as_ref())));
        put("permission_denials", json!(outcome.map(|o| &o.permission_denials)));
        put("exit", json!(outcome.and_then(|o| o.exit)));
        put("limit", json!(outcome.and_then(|o| o.limit.as_deref())));
        put("stderr_tail", json!(outcome.and_then(|o| o.stderr_tail.as_deref())));
        put(
            "timings",
            json!({
                "accepted_at": record.accepted_at, "started_at": record.started_at, "finished_at": record.finished_at,
                "queued_ms": outcome.and_then(|o| o.queued_ms), "run_ms": outcome.and_then(|o| o.run_ms),
            }),
        );
        put("chain", json!({"id": record.chain, "depth": record.depth}));
    }
    let mut object = Value::Object(object);
    tidy(&mut object);
    let structured = object.to_string();
    let text = match shape.render {
        Render::Json => structured.clone(),
        Render::Porcelain => porcelain(record, &object, response.as_deref()),
    };
    ToolReply {
        text: ReplyText::Plain(text),
        structured: shape.structured.then_some(structured),
        fault: fault.filter(|_| record.state != JobState::Succeeded).map(|fault| fault.code),
        job: Some(record.id),
        // What is not stored is told again when it is.
        tells_end: record.state.is_terminal() && !context.unstored,
        path_hint: Some(record.request.cwd.display().to_string()),
    }
}

/// Who paid: where the agent said its key came from, and whether the plan was enough.
fn billing(outcome: &JobOutcome) -> Option<String> {
    let source = outcome.billing.as_deref();
    match outcome.extra_usage {
        false => source.map(str::to_owned),
        true => Some(format!("{}, and extra usage: paid for beyond the plan", source.unwrap_or("unknown"))),
    }
}

/// How the agent's process ended, where that was no ordinary end.
fn exit_in_words(exit: &Value) -> Option<String> {
    match (exit["code"].as_i64(), exit["signal"].as_i64()) {
        (_, Some(signal)) => Some(format!("agent ended by signal {signal}")),
        (Some(0) | None, None) => None,
        (Some(code), None) => Some(format!("agent exited with code {code}")),
    }
}

/// The counts most people ask for; everything under `full`.
fn brief_usage(usage: &Value, detail: Detail) -> Value {
    let Value::Object(all) = usage else { return usage.clone() };
    if detail == Detail::Full {
        return usage.clone();
    }
    let kept = ["input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"];
    Value::Object(kept.iter().filter_map(|name| Some(((*name).to_owned(), all.get(*name)?.clone()))).collect())
}

/// What the agent was asked, with the prompt's place in it: the prompt itself stands beside it, once.
fn effective_prompt(record: &JobRecord) -> String {
    let injected = record.outcome.as_ref().is_some_and(|outcome| outcome.prompt_prefix_injected);
    format!("{}[prompt]", if injected { crate::agents::PROMPT_PREFIX } else { "" })
}

/// Numbers as people write them: an amount that was added up is told to a millionth, what is less than a thousandth to three
/// digits.
pub fn tidy(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let rounded = number.as_f64().map(rounded).and_then(serde_json::Number::from_f64);
            if let Some(rounded) = rounded {
                *number = rounded;
            }
        }
        Value::Array(all) => all.iter_mut().for_each(tidy),
        Value::Object(all) => all.values_mut().for_each(tidy),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn rounded(number: f64) -> f64 {
    let text = if number.abs() < 0.001 { format!("{number:.2e}") } else { format!("{number:.6}") };
    text.parse().unwrap_or(number)
}

/// What to do now, if anything.
fn next(record: &JobRecord, context: &Context, session: Option<&str>, truncated: bool, pages: usize) -> Option<String> {
    let id = record.id;
    if !record.state.is_terminal() {
        if context.reader == Reader::Person {
            return Some(format!("Read the answer: phone-opus jobs show {id} --wait 600"));
        }
        let kept = match (context.handed_over, context.gave_up_after) {
            (false, _) => String::new(),
            (true, None) => "The consult goes on in the background. ".to_owned(),
            (true, Some(after)) => format!(
                "The consult goes on in the background already, because this client was seen to give up calls after {} s; \
                 `wait_s` asks for a longer wait. ",
                after.as_secs()
            ),
        };
        return Some(format!(
            "{kept}Read the answer with one blocking call: consult_job {{\"job_id\":\"{id}\",\"wait_s\":45}}."
        ));
    }
    if context.unstored {
        return Some(
            "This is not stored yet: the job store refuses it (see health_snapshot; is the disk of the state directory \
             full?). Keep it. The job shows as running until it is stored, and is not run again."
                .to_owned(),
        );
    }
    if truncated && pages > 1 {
        let page = context.page.map_or(1, |page| page + 1);
        if page <= pages {
            return Some(format!("Page {page} of {pages}: consult_job {{\"job_id\":\"{id}\",\"page\":{page}}}."));
        }
    }
    let outcome = record.outcome.as_ref();
    let code = outcome.and_then(|outcome| outcome.fault.as_ref()).map(|fault| fault.code);
    if context.joined && record.state != JobState::Succeeded {
        return Some(
            "This `request_key` belongs to that job, which is over and is not run again: use another key to ask once \
             more."
                .to_owned(),
        );
    }
    match (code, outcome.and_then(|outcome| outcome.resumable), session) {
        (Some(FaultCode::AgentMissing), ..) if context.reader == Reader::Person => {
            Some("Without any model: phone-opus consult --agent offline PROMPT".to_owned())
        }
        (Some(FaultCode::TurnLimit | FaultCode::BudgetExhausted), _, Some(session))
            if context.reader == Reader::Person =>
        {
            Some(format!(
                "Go on in the same session: phone-opus consult --session {session} PROMPT, with a higher limit"
            ))
        }
        (Some(_), Some(true), Some(session)) if context.reader == Reader::Person => {
            Some(format!("The session can be resumed: phone-opus consult --session {session} PROMPT"))
        }
        (Some(FaultCode::TurnLimit | FaultCode::BudgetExhausted), _, Some(session)) => {
            Some(format!("Go on in the same session: consult with session_id {session} and a higher limit."))
        }
        (Some(_), Some(true), Some(session)) => Some(format!("The session can be resumed: session_id {session}.")),
        _ => None,
    }
}

fn porcelain(record: &JobRecord, object: &Value, response: Option<&str>) -> String {
    let mut text = String::new();
    let outcome = record.outcome.as_ref();
    let fault = outcome.and_then(|outcome| outcome.fault.as_ref());
    match (record.state, fault) {
        (JobState::Succeeded, _) => {}
        (state, Some(fault)) => {
            let verb = match state {
                JobState::Cancelled => "was cancelled",
                JobState::Interrupted => "was interrupted",
                _ => "failed",
            };
            text.push_str(&format!("The consult {verb} ({}): {}", fault.code, fault.detail));
            if let Some(hint) = &fault.hint {
                text.push_str(&format!(" {hint}"));
            }
            if let Some(stderr) = outcome.and_then(|o| o.stderr_tail.as_deref()).filter(|tail| !tail.trim().is_empty())
            {
                let last: String =
                    stderr.trim_end().chars().rev().take(600).collect::<Vec<_>>().into_iter().rev().collect();
                text.push_str(&format!("\n\nThe agent's last words on standard error:\n{last}"));
            }
            if response.is_some() {
                text.push_str("\n\nWhat it had said:\n");
            }
        }
        (JobState::Queued, None) => text.push_str("The consult waits for its turn."),
        (_, None) => {
            let phase = object["phase"].as_str().unwrap_or("at work");
            text.push_str(&format!("The consult is still running ({phase})."));
            if response.is_some() {
                text.push_str(" So far it has said:\n\n");
            }
        }
    }
    if let Some(response) = response {
        text.push_str(response);
    }
    let mut facts =
        vec![format!("job {}", record.id), record.state.as_str().to_owned(), record.mode.as_str().to_owned()];
    if let Some(place) = object["queue_position"].as_u64() {
        facts.push(format!("place {place} in the queue"));
    }
    let model = object["model"].as_str().map_or(String::new(), |model| format!(" ({model})"));
    facts.push(format!("{}{model}", record.request.agent));
    if let Some(session) = object["session_id"].as_str() {
        facts.push(format!("session {session} ({})", object["session_mode"].as_str().unwrap_or("new")));
    }
    facts.push(format!("cwd {}", record.request.cwd.display()));
    if let Some(ms) = object["duration_ms"].as_f64() {
        facts.push(format!("{:.1} s", ms / 1000.0));
    }
    if record.state.is_terminal() {
        facts.push(outcome.and_then(|o| o.cost_usd).map_or("cost unknown".to_owned(), |cost| format!("${cost:.4}")));
        if let Some(billing) = object["billing"].as_str() {
            facts.push(format!("key source {billing}"));
        }
        facts.extend(exit_in_words(&object["exit"]));
        if let Some(turns) = object["num_turns"].as_u64() {
            facts.push(format!("{turns} turns"));
        }
        if let Some(count) = object["permission_denial_count"].as_u64().filter(|count| *count > 0) {
            facts.push(format!("{count} tool uses denied"));
        }
        if let Some(stop) = object["stop_reason"].as_str() {
            facts.push(format!("stopped by {stop}"));
        }
        facts.extend(tokens(&object["usage"]));
        if let Some(fault) = fault.filter(|fault| fault.retryable) {
            facts.push(format!("{} may pass: the same call can succeed later", fault.code));
        }
        if let Some(resumable) = object["resumable"].as_bool() {
            facts.push(if resumable { "resumable" } else { "not resumable" }.to_owned());
        }
        if let Some(at) = object["fault"]["retry_at"].as_i64() {
            facts.push(format!("try again at {}", local_time::to_come(UnixMillis(at), UnixMillis::now())));
        }
        if object["workspace_changed"] == true {
            facts.push("files in the directory changed meanwhile".to_owned());
        } else if object.get("workspace_changed").is_some_and(Value::is_null) {
            facts.push("whether files changed is not known".to_owned());
        }
        if object["truncated"] == true {
            facts.push("answer cut".to_owned());
        }
        match (object["page"].as_u64(), object["pages"].as_u64()) {
            (Some(page), Some(pages)) => facts.push(format!("page {page} of {pages}")),
            (None, Some(pages)) => facts.push(format!("{pages} pages")),
            _ => {}
        }
    }
    if object["stored"] == false {
        facts.push("NOT STORED YET".to_owned());
    }
    text.push_str(&format!("\n\n[{}]", facts.join(" · ")));
    if let Some(next) = object["next"].as_str() {
        text.push_str(&format!("\n{next}"));
    }
    if let (Some(place), Some(why)) =
        (object["project_file_left_out"]["place"].as_str(), object["project_file_left_out"]["why"].as_str())
    {
        text.push_str(&format!("\nThe project's file {place} was left out: it {why}."));
    }
    if let Some(unread) = object["unread_jobs"].as_array() {
        let ids: Vec<&str> = unread.iter().filter_map(Value::as_str).collect();
        text.push_str(&format!("\nFinished and not read yet: {}.", ids.join(", ")));
    }
    if object.get("prompt").is_some() {
        // `full`: the rest of the projection, where a reader of the text finds it too.
        let mut rest = object.clone();
        if let Value::Object(rest) = &mut rest {
            rest.remove("response");
        }
        text.push_str(&format!("\n\n{}", serde_json::to_string_pretty(&rest).unwrap_or_default()));
    }
    text
}

/// What was read and written, with what the cache had of it.
fn tokens(usage: &Value) -> Option<String> {
    let (input, output) = (usage["input_tokens"].as_u64()?, usage["output_tokens"].as_u64()?);
    let cached = [("cache_read_input_tokens", "read from"), ("cache_creation_input_tokens", "put into")];
    let cached =
        cached.iter().filter_map(|(name, what)| Some((usage[*name].as_u64().filter(|count| *count > 0)?, what)));
    let cached: Vec<String> = cached.map(|(count, what)| format!("{count} {what} the cache")).collect();
    let cached = if cached.is_empty() { String::new() } else { format!(" ({})", cached.join(", ")) };
    Some(format!("{input} tokens in{cached}, {output} out"))
}

/// A reply made of one JSON object and a text for people.
#[must_use]
pub fn object(value: &Value, text: String, shape: Shape) -> ToolReply {
    let structured = value.to_string();
    let text = if shape.render == Render::Json { structured.clone() } else { text };
    let structured = shape.structured.then_some(structured);
    ToolReply { text: ReplyText::Plain(text), structured, ..ToolReply::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fault::Fault;
    use crate::base::ids::{AgentSessionId, ChainId};
    use crate::jobs::{ConsultRequest, JobMode, JobOutcome};

    fn record(state: JobState, outcome: Option<JobOutcome>) -> JobRecord {
        JobRecord {
            id: JobId::random(),
            sequence: 1,
            invocation: None,
            request_key: None,
            workspace: "/w".into(),
            mode: JobMode::Sync,
            state,
            request: ConsultRequest::new("why?").cwd("/w").timeout_s(60),
            chain: ChainId::random(),
            depth: 0,
            accepted_at: UnixMillis(1000),
            started_at: Some(UnixMillis(1100)),
            finished_at: state.is_terminal().then_some(UnixMillis(3000)),
            cancel_requested: None,
            process: None,
            outcome,
            read_at: None,
            last_event: 0,
            waiter: None,
            environment: None,
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
}
