//! What the consult tools answer: one projection of a job, shown as text and as structured content.
//!
//! Owns: how a reply is to be made and what is known for it (here), the fields and what `concise` and `full` show
//! (`fields`), their text (`porcelain`), what is told about several at once (`several`). May not know: where a job came from.
//!
//! Invariants: (1) text and structured content are each complete, because real clients show the model only one of
//! them; (2) a client that would show its model the structured content instead of the text gets it only when it is asked for,
//! so that no model reads an answer with escapes in it; (3) an unknown number is null, not 0; (4) a failure carries everything
//! a success does, the session id above all.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

mod fields;
mod porcelain;
mod several;

use self::fields::JobReply;
use self::porcelain::porcelain;
pub use self::several::SeveralContext;
pub(crate) use self::several::several;
use super::{ReplyText, ToolReply};
use crate::base::ids::{JobId, UnixMillis};
use crate::config::LeftOut;
use crate::jobs::{JobRecord, JobState, JournalEntry};
use crate::tools::callers::CallerOrigin;

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
    /// Whose environment and configuration the caller's consults have.
    pub environment: CallerOrigin,
    /// After so long its client was seen to give up, which is why the soft deadline came before the usual one.
    pub gave_up_after: Option<Duration>,
    /// Who is told what to do next.
    pub reader: Reader,
    /// What happened since the event the caller had seen, where it asked for that.
    pub events: Vec<JournalEntry>,
    /// Which machine of a fleet has or had it, and why that one.
    pub placed: Option<MachineTold>,
    /// Answers that stand in the same reply and share its budget.
    pub beside: usize,
}

/// Which machine of a fleet a job is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineTold {
    /// Its name; none as long as nobody has the job.
    pub machine: Option<String>,
    /// Why that one, or for which one it waits.
    pub because: String,
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
    let reply = JobReply::new(record, context, shape, UnixMillis::now());
    let text = match shape.render {
        Render::Json => structured(&reply).to_string(),
        Render::Porcelain => porcelain(&reply),
    };
    let structured = match (shape.structured, shape.render) {
        (false, _) => None,
        (true, Render::Json) => Some(text.clone()),
        (true, Render::Porcelain) => Some(structured(&reply).to_string()),
    };
    let fault = reply.facts.failure.as_ref().map(|failure| failure.fault.code);
    ToolReply {
        text: ReplyText::Plain(text),
        structured,
        fault: fault.filter(|_| record.state != JobState::Succeeded),
        job: Some(record.id),
        // What is not stored is told again when it is.
        tells_end: record.state.is_terminal() && !context.unstored,
        ends: Vec::new(),
        path_hint: Some(reply.facts.cwd),
    }
}

/// What is sent as structured content: the members in the order of their names, the numbers as people write them.
pub(super) fn structured(told: &impl Serialize) -> Value {
    // Only a map whose keys are no text, or a path that is none, would fail; a reply has neither.
    let mut value = serde_json::to_value(told).unwrap_or_default();
    tidy(&mut value);
    value
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

/// A reply made of one object and a text for people.
#[must_use]
pub fn object(told: &impl Serialize, text: String, shape: Shape) -> ToolReply {
    let structured = structured(told).to_string();
    let text = if shape.render == Render::Json { structured.clone() } else { text };
    let structured = shape.structured.then_some(structured);
    ToolReply { text: ReplyText::Plain(text), structured, ..ToolReply::default() }
}

#[cfg(test)]
mod tests;
