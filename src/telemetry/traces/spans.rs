//! What facts look like as spans.
//!
//! Owns: the names of spans and attributes, which is above which, what is said of a call and of a job. Pure: everything comes from
//! what is passed in, and the same facts give the same spans, whoever sees them. May not know: how spans are sent.
//!
//! ```text
//! the client's span ─ tools/call ─┬─ worker attempt, one for each
//!                                 └─ job ─┬─ queued
//!                                         └─ runner ─ invoke_agent ─┬─ chat, one for each turn
//!                                                                   └─ execute_tool, one for each use
//! ```
//!
//! Names follow OpenTelemetry's conventions for generative AI and MCP where they have one, and are `phone_opus.…` else.
//!
//! Invariant (L13): attributes are numbers, words of our own lists, names of tools, models and agents that have the form of names, and
//! the last part of a directory. No prompt, answer, argument or error text is read here.

use std::collections::VecDeque;
use std::path::Path;

use serde_json::Value as Json;

use super::CallPlace;
use super::facts::{CallEnd, CallFact};
use crate::base::ids::{HostId, JobId, UnixMillis};
use crate::base::trace::{AGENT, JobTrace, SpanId, TraceId};
use crate::jobs::journal::AgentEvent;
use crate::jobs::{JobMode, JobOutcome, JobRecord, JobState, JournalEntry, JournalEvent};

/// Turns and tool uses that are told of one job, each; a long run has a hundred. How many were left out is said.
const PARTS: usize = 256;

/// Events that are told of one run.
const EVENTS: usize = 64;

/// Characters of a name that came from outside; longer ones are none of a tool or model.
const NAME: usize = 64;

/// A value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A word.
    Text(String),
    /// A number.
    Int(i64),
    /// A number with a fraction.
    Real(f64),
    /// Yes or no.
    Bool(bool),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Bool(yes)
    }
}

/// Attributes, in the order they were added.
pub type Attributes = Vec<(&'static str, Value)>;

/// What a span is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// Work in this system.
    Internal,
    /// A client's request, as it is served.
    Server,
    /// What another program is asked.
    Client,
}

/// Something that happened at one moment of a span.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanEvent {
    /// What.
    pub name: &'static str,
    /// When, in nanoseconds since 1970.
    pub at: u64,
    /// What is said of it.
    pub attributes: Attributes,
}

/// One span.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Its trace.
    pub trace: TraceId,
    /// Its own id.
    pub id: SpanId,
    /// What is above it.
    pub parent: Option<SpanId>,
    /// Its name, of few different ones.
    pub name: String,
    pub kind: SpanKind,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Nanoseconds since 1970; never before the start.
    pub end: u64,
    /// What is said of it.
    pub attributes: Attributes,
    /// What happened meanwhile, in order.
    pub events: Vec<SpanEvent>,
    /// Spans elsewhere that it has to do with.
    pub links: Vec<(TraceId, SpanId)>,
    /// Whether it failed; by which code is among the attributes.
    pub failed: bool,
    /// `tracestate`, as it came.
    pub state: Option<String>,
}

impl Span {
    fn new(
        (trace, id, parent): (TraceId, SpanId, Option<SpanId>),
        name: impl Into<String>,
        (start, end): (u64, u64),
    ) -> Self {
        Self {
            trace,
            id,
            parent,
            name: name.into(),
            kind: SpanKind::Internal,
            start,
            end: end.max(start),
            attributes: Attributes::new(),
            events: Vec::new(),
            links: Vec::new(),
            failed: false,
            state: None,
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    fn with_some<V: Into<Value>>(self, name: &'static str, value: Option<V>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    fn of_kind(self, kind: SpanKind) -> Self {
        Self { kind, ..self }
    }

    fn failed_by(self, code: Option<&'static str>) -> Self {
        let failed = code.is_some();
        Self { failed, ..self }.with_some("error.type", code)
    }
}

/// Nanoseconds since 1970.
fn nanos(at: UnixMillis) -> u64 {
    u64::try_from(at.0).unwrap_or(0).saturating_mul(1_000_000)
}

/// A name that came from outside, where it has the form of one: it may be shown.
fn name(text: &str) -> Option<&str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:/@[]".contains(&byte);
    (!text.is_empty() && text.len() <= NAME && text.bytes().all(plain)).then_some(text)
}

/// The last part of a directory.
#[must_use]
pub fn last_part(dir: &Path) -> Option<String> {
    let last: String = dir.file_name()?.to_string_lossy().chars().filter(|c| !c.is_control()).take(NAME).collect();
    (!last.is_empty()).then_some(last)
}

/// The spans of a call that is over: its own, and one for each attempt. `of_job` is where the job it was about belongs.
#[must_use]
pub fn of_call(fact: &CallFact, host: HostId, place: CallPlace, of_job: Option<(JobId, &JobTrace)>) -> Vec<Span> {
    if !place.sampled {
        return Vec::new();
    }
    let end = nanos(fact.at);
    let start = end.saturating_sub(fact.latency_us.saturating_mul(1_000));
    let (outcome, code) = match fact.end {
        CallEnd::Success => ("success", None),
        CallEnd::Cancelled => ("cancelled", None),
        CallEnd::Failed(code) => ("error", Some(code.as_str())),
    };
    let mut call =
        Span::new((place.trace, place.span, place.parent), format!("tools/call {}", fact.tool), (start, end))
            .of_kind(SpanKind::Server)
            .with("mcp.method.name", "tools/call")
            .with("gen_ai.operation.name", "execute_tool")
            .with("gen_ai.tool.name", fact.tool.as_str())
            .with("mcp.session.id", format!("{host}/{}", fact.session))
            .with("phone_opus.outcome", outcome)
            .with("phone_opus.replays", u64::from(fact.replays))
            .with_some("phone_opus.job.id", fact.job.map(|job| job.to_string()))
            .with_some("phone_opus.workspace", fact.workspace.clone())
            .failed_by(code);
    call.state = fact.trace.parent.as_ref().and_then(|parent| parent.state.clone());
    // It asked about a job of another call: the two traces are told of each other.
    if let Some((job, of_job)) = of_job
        && (of_job.trace, of_job.parent) != (place.trace, Some(place.span))
        && of_job.told
        && of_job.sampled
    {
        call.links.push((of_job.trace, JobTrace::span(job, "job", 0)));
    }
    call.events.extend(fact.trace.upgrades.iter().map(|at| SpanEvent {
        name: "phone_opus.upgraded",
        at: nanos(*at).clamp(start, end),
        attributes: Attributes::new(),
    }));
    let mut attempts = Vec::new();
    let seen = &fact.trace.attempts;
    for (number, attempt) in seen.iter().enumerate() {
        let from = nanos(attempt.at).clamp(start, end);
        let next = seen.get(number + 1);
        // What is known of the end of a lost attempt is that the next one followed.
        let to = next.map_or(end, |next| nanos(next.at).clamp(start, end));
        let upgraded =
            next.is_some_and(|next| fact.trace.upgrades.iter().any(|at| (attempt.at..=next.at).contains(at)));
        let generation = attempt.generation.0;
        let number = number as u64 + 1;
        let ids = [host.to_string(), fact.session.to_string(), fact.trace.call.to_string(), number.to_string()];
        let id = SpanId::derived(&["attempt", &ids[0], &ids[1], &ids[2], &ids[3]]);
        let ended = match (next, upgraded) {
            (None, _) => "settled",
            (Some(_), true) => "upgraded",
            (Some(_), false) => "worker_lost",
        };
        if ended == "worker_lost" {
            let attributes = vec![("phone_opus.worker.generation", generation.into())];
            call.events.push(SpanEvent { name: "phone_opus.worker_lost", at: to, attributes });
        }
        let span = Span::new((place.trace, id, Some(place.span)), "worker attempt", (from, to))
            .with("phone_opus.worker.generation", generation)
            .with("phone_opus.attempt", number)
            .with("phone_opus.attempt.end", ended)
            .failed_by((ended == "worker_lost").then_some("worker_lost"));
        attempts.push(span);
    }
    call.events.sort_by_key(|event| event.at);
    attempts.insert(0, call);
    attempts
}

/// The span of the call that asked for a job and was lost with its host, where `host` has adopted the job: what is above the job is
/// there then too. What is known of the call is when it began.
///
/// One that was answered or withdrawn before is none of these: its own host told of it.
#[must_use]
pub fn of_lost_call(record: &JobRecord, host: HostId) -> Option<Span> {
    let trace = record.trace.as_ref().filter(|trace| trace.told && trace.sampled)?;
    let (call, id) = (trace.call?, trace.parent?);
    let (asked, rest) = record.invocation.as_deref()?.split_once(':')?;
    let session = rest.split(':').next()?;
    let is_adopted = record.host == Some(host) && asked != host.to_string();
    if !is_adopted || record.mode != JobMode::Sync || record.cancel_requested.is_some() {
        return None;
    }
    // The same for each of its jobs, so that nothing but the call is said here.
    let at = nanos(call.at.unwrap_or(record.accepted_at));
    let mut span = Span::new((trace.trace, id, call.above), CONSULTED, (at, at))
        .of_kind(SpanKind::Server)
        .with("mcp.method.name", "tools/call")
        .with("gen_ai.operation.name", "execute_tool")
        .with("gen_ai.tool.name", "consult")
        .with("mcp.session.id", format!("{asked}/{session}"))
        .with("phone_opus.outcome", "host_lost")
        .with_some("phone_opus.workspace", last_part(&record.workspace));
    span.failed = true;
    span.state.clone_from(&trace.state);
    Some(span)
}

/// The name of a call's span, of the one tool that asks for jobs.
const CONSULTED: &str = "tools/call consult";

/// The spans of a job that is over, by what the store has of it.
#[must_use]
pub fn of_job(record: &JobRecord, journal: &[JournalEntry]) -> Vec<Span> {
    let Some(trace) = record.trace.as_ref().filter(|trace| trace.told && trace.sampled) else { return Vec::new() };
    let told = JobSpans { record, trace, outcome: record.outcome.as_ref() };
    let end = record.finished_at.map_or_else(|| nanos(record.accepted_at), nanos);
    let accepted = nanos(record.accepted_at);
    let started = record.started_at.map(nanos);
    let mut spans = vec![told.job(accepted, end)];
    spans.push(told.span("queued", 0, "job", "queued", (accepted, started.unwrap_or(end))));
    if let Some(started) = started {
        let exit = told.outcome.and_then(|outcome| outcome.exit.as_ref());
        let runner = told.span("runner", 0, "job", "runner", (started, end));
        spans.push(runner.with_some("process.exit.code", exit.map(|exit| Value::Int(exit.code.into()))));
        spans.extend(told.run(journal, (started, end)));
    }
    spans
}

struct JobSpans<'a> {
    record: &'a JobRecord,
    trace: &'a JobTrace,
    outcome: Option<&'a JobOutcome>,
}

impl JobSpans<'_> {
    fn span(&self, part: &str, number: u64, above: &str, name: impl Into<String>, when: (u64, u64)) -> Span {
        let of = |part, number| JobTrace::span(self.record.id, part, number);
        let mut span = Span::new((self.trace.trace, of(part, number), Some(of(above, 0))), name, when);
        span.state.clone_from(&self.trace.state);
        span
    }

    fn agent(&self) -> &str {
        name(&self.record.request.agent).unwrap_or("other")
    }

    fn code(&self) -> Option<&'static str> {
        let fault = self.outcome.and_then(|outcome| outcome.fault.as_ref());
        match self.record.state {
            JobState::Succeeded | JobState::Cancelled => None,
            _ => Some(fault.map_or("error", |fault| fault.code.as_str())),
        }
    }

    fn job(&self, accepted: u64, end: u64) -> Span {
        let record = self.record;
        let cost = self.outcome.and_then(|outcome| outcome.cost_usd);
        let mut job = self
            .span("job", 0, "job", "job", (accepted, end))
            .with("phone_opus.job.id", record.id.to_string())
            .with("phone_opus.job.state", record.state.as_str())
            .with("phone_opus.job.mode", record.mode.as_str())
            .with("phone_opus.job.depth", u64::from(record.depth))
            .with("gen_ai.agent.name", self.agent())
            .with_some("phone_opus.workspace", last_part(&record.workspace))
            .with_some("phone_opus.cost_usd", cost)
            .failed_by(self.code());
        job.parent = self.trace.parent;
        job
    }

    /// The agent's run, its turns and what it used.
    fn run(&self, journal: &[JournalEntry], (started, end): (u64, u64)) -> Vec<Span> {
        let at = |found: fn(&JournalEvent) -> bool| {
            journal.iter().find(|entry| found(&entry.event)).map(|entry| nanos(entry.at).clamp(started, end))
        };
        let Some(from) = at(|event| matches!(event, JournalEvent::ProcessStarted { .. })) else { return Vec::new() };
        let to = at(|event| matches!(event, JournalEvent::ProcessClosed))
            .or_else(|| at(|event| matches!(event, JournalEvent::ProcessExited { .. })))
            .unwrap_or(end);
        let mut parts = Parts::default();
        for entry in journal {
            if let JournalEvent::Agent { event } = &entry.event {
                parts.see(event, nanos(entry.at).clamp(from, to));
            }
        }
        let Parts { turns, tools, events, left_out, .. } = parts.closed(to);
        let (request, outcome) = (&self.record.request, self.outcome);
        let count = |key| tokens(outcome?.usage.as_ref()?, key);
        let model = outcome.and_then(|outcome| outcome.model.as_deref()).and_then(name);
        let mut run = self
            .span(AGENT, 0, "runner", format!("invoke_agent {}", self.agent()), (from, to))
            .of_kind(SpanKind::Client)
            .with("gen_ai.operation.name", "invoke_agent")
            .with("gen_ai.agent.name", self.agent())
            .with_some("gen_ai.provider.name", provider(&request.agent))
            .with_some("gen_ai.request.model", request.model.as_deref().and_then(name))
            .with_some("gen_ai.response.model", model)
            .with_some(
                "gen_ai.conversation.id",
                outcome.and_then(|outcome| outcome.session_id.as_deref()).and_then(name),
            )
            .with_some("gen_ai.usage.input_tokens", count(Tokens::Input))
            .with_some("gen_ai.usage.output_tokens", count(Tokens::Output))
            .with_some("phone_opus.turns", outcome.and_then(|outcome| outcome.num_turns))
            .with_some("phone_opus.cost_usd", outcome.and_then(|outcome| outcome.cost_usd))
            .with_some("phone_opus.parts_left_out", (left_out > 0).then_some(left_out))
            .failed_by(self.code());
        run.events = events;
        let mut spans = vec![run];
        for (number, when) in (0_u64..).zip(turns) {
            let called = model.map_or_else(|| "chat".to_owned(), |model| format!("chat {model}"));
            let turn = self.span("turn", number, AGENT, called, when).of_kind(SpanKind::Client);
            let turn = turn.with("gen_ai.operation.name", "chat").with_some("gen_ai.response.model", model);
            spans.push(turn.with_some("gen_ai.provider.name", provider(&request.agent)));
        }
        for (number, (tool, when)) in (0_u64..).zip(tools) {
            let span = self.span("tool", number, AGENT, format!("execute_tool {tool}"), when);
            spans.push(span.with("gen_ai.operation.name", "execute_tool").with("gen_ai.tool.name", tool));
        }
        spans
    }
}

/// Who runs the models of an agent, by the name the conventions have for it.
#[must_use]
pub fn provider(agent: &str) -> Option<&'static str> {
    match agent {
        "claude" => Some("anthropic"),
        "codex" => Some("openai"),
        "gemini" => Some("gcp.gemini"),
        _ => None,
    }
}

/// Which tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens {
    /// What the model read.
    Input,
    /// What it wrote.
    Output,
}

/// A count of tokens, as agents write it.
#[must_use]
pub fn tokens(usage: &Json, which: Tokens) -> Option<u64> {
    let names: &[&str] = match which {
        Tokens::Input => &["input_tokens", "prompt_tokens", "input"],
        Tokens::Output => &["output_tokens", "completion_tokens", "output"],
    };
    names.iter().find_map(|name| usage.get(*name)?.as_u64())
}

/// What an agent did in a run, as its journal tells it.
#[derive(Debug, Default)]
struct Parts {
    turns: Vec<(u64, u64)>,
    tools: Vec<(String, (u64, u64))>,
    events: Vec<SpanEvent>,
    left_out: u64,
    /// The turn that goes on: since when, and until when something was heard of it.
    turn: Option<(u64, u64)>,
    /// Tools whose result has not come, oldest first. None is known by more than its name.
    used: VecDeque<(String, u64)>,
}

impl Parts {
    fn see(&mut self, event: &AgentEvent, at: u64) {
        match event {
            AgentEvent::Thinking | AgentEvent::Text { .. } => self.speaks(at),
            AgentEvent::ToolUse { tool } => {
                self.speaks(at);
                self.used.push_back((name(tool).unwrap_or("other").to_owned(), at));
            }
            AgentEvent::ToolResult => {
                self.turn_over();
                if let Some((tool, since)) = self.used.pop_front() {
                    self.tool(tool, (since, at));
                }
            }
            AgentEvent::Denied { denial } => {
                let tool = name(&denial.tool).unwrap_or("other");
                self.event("phone_opus.denied", at, vec![("gen_ai.tool.name", tool.into())]);
            }
            AgentEvent::Retrying { attempt, delay_ms, status, .. } => {
                let mut said: Attributes =
                    vec![("phone_opus.attempt", (*attempt).into()), ("phone_opus.delay_ms", (*delay_ms).into())];
                said.extend(status.map(|status| ("http.response.status_code", status.into())));
                self.event("phone_opus.retrying", at, said);
            }
            AgentEvent::ProviderError { class } => {
                let class = name(class).unwrap_or("other");
                self.event("phone_opus.provider_error", at, vec![("error.type", class.into())]);
            }
            AgentEvent::Limited { .. } => self.event("phone_opus.limited", at, Attributes::new()),
            AgentEvent::ExtraUsage => self.event("phone_opus.extra_usage", at, Attributes::new()),
            AgentEvent::Result { .. } => {
                // The end of the last turn, where one was heard of.
                if let Some((_, last)) = &mut self.turn {
                    *last = at;
                }
                self.turn_over();
            }
            AgentEvent::Started { .. } | AgentEvent::Other { .. } | AgentEvent::Garbage { .. } => {}
        }
    }

    fn speaks(&mut self, at: u64) {
        match &mut self.turn {
            Some((_, last)) => *last = at,
            None => self.turn = Some((at, at)),
        }
    }

    fn turn_over(&mut self) {
        let Some(turn) = self.turn.take() else { return };
        if self.turns.len() < PARTS { self.turns.push(turn) } else { self.left_out += 1 }
    }

    fn tool(&mut self, tool: String, when: (u64, u64)) {
        if self.tools.len() < PARTS { self.tools.push((tool, when)) } else { self.left_out += 1 }
    }

    fn event(&mut self, name: &'static str, at: u64, attributes: Attributes) {
        if self.events.len() < EVENTS {
            self.events.push(SpanEvent { name, at, attributes })
        } else {
            self.left_out += 1
        }
    }

    /// The run is over, and with it what was not heard of again.
    fn closed(mut self, at: u64) -> Self {
        self.turn_over();
        for (tool, since) in std::mem::take(&mut self.used) {
            self.tool(tool, (since, at));
        }
        self
    }
}

#[cfg(test)]
mod tests;
