//! A job's reply as a person or a program is given it.
//!
//! Owns: what goes to stdout and what to stderr, and how it is laid out. May not know: how a job came about.
//!
//! ```text
//!                  a terminal                       anything else
//! the answer       stdout: Markdown, page by page   stdout: as the agent wrote it
//! facts, a failure stderr: broken at words          stderr: as they are
//! ```

use std::process::ExitCode;

use phone_opus::internals::jobs::{JobRecord, JobState};
use phone_opus::internals::protocol::wire::ReplyText;
use phone_opus::internals::tools::reply::{self, Context, Detail, Reader, Render, Shape};
use phone_opus::internals::tools::several::{Consulted, Standing};
use serde_json::Value;

use crate::job_word::short;
use crate::output::{err, out, print, print_json, say, say_lines};
use crate::pager::{self, Paging};
use crate::screen::layout::{paragraph, wrap};
use crate::screen::{Face, Line, markdown, paint};

/// Characters of an answer on the command line: all of any answer we keep.
pub(crate) const EVERYTHING: usize = 64 * 1024 * 1024;

/// Which form is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Text(Paging),
    Json,
}

impl Form {
    pub(crate) fn of(json: bool, no_pager: bool) -> Self {
        match (json, no_pager) {
            (true, _) => Self::Json,
            (false, true) => Self::Text(Paging::Never),
            (false, false) => Self::Text(Paging::Allowed),
        }
    }
}

/// The reply of a consult that is over or in the background: the answer alone is on stdout, facts about it on stderr.
pub(crate) fn of_consult(record: &JobRecord, context: &Context, form: Form) -> ExitCode {
    let text = text(record, context, form, Detail::Concise);
    match form {
        Form::Json => print_json(parsed(&text)),
        Form::Text(paging) => match (answer(record), record.state.is_terminal()) {
            (Some(answer), _) => {
                show_answer(answer, paging);
                let facts = text.strip_prefix(answer).unwrap_or(&text).trim_start();
                say_plain(facts, true);
            }
            (None, true) => say_plain(&text, false),
            (None, false) if out().terminal => {
                // A job of the fleet is found by its whole id alone.
                let here = context.placed.is_none().then_some(record);
                pager::show(&facts(&with_short(&text, here.into_iter()), out()), Paging::Never);
            }
            (None, false) => print(&text),
        },
    }
    match record.state {
        JobState::Failed => ExitCode::FAILURE,
        JobState::Cancelled | JobState::Interrupted => ExitCode::from(3),
        _ => ExitCode::SUCCESS,
    }
}

/// The answers of several agents, each under its name, and the facts about each. What the reply about all of them says is in
/// `whole`.
pub(crate) fn of_several(agents: &[Consulted], whole: &str, form: Form) {
    let paging = match form {
        Form::Json => return print_json(parsed(whole)),
        Form::Text(paging) => paging,
    };
    if agents.iter().any(|told| matches!(told.standing, Standing::Open(_))) {
        // Not all of it is there: where it is read is part of what was asked for.
        if !out().terminal {
            return print(whole);
        }
        let records = agents.iter().filter_map(|told| told.standing.record());
        return pager::show(&facts(&with_short(whole, records), out()), Paging::Never);
    }
    let mut answers = String::new();
    let mut said = Vec::new();
    for told in agents {
        let (answer, facts) = match &told.standing {
            Standing::Over { record, stored } => {
                let context = Context { unstored: !stored, ..Context::default() };
                let text = text(record, &context, form, Detail::Concise);
                let answer = answer(record).map(str::to_owned);
                let facts = answer.as_deref().and_then(|answer| text.strip_prefix(answer)).unwrap_or(&text);
                (answer, facts.trim_start().to_owned())
            }
            Standing::Refused(fault) | Standing::Lost { fault, .. } => (None, fault.to_string()),
            Standing::Unasked | Standing::Open(_) => (None, "was not asked".to_owned()),
        };
        if let Some(answer) = answer {
            answers.push_str(&format!("## {}\n\n{}\n\n", told.agent, answer.trim_end()));
        }
        said.push(format!("{}: {facts}", told.agent));
    }
    if !answers.is_empty() {
        show_answer(answers.trim_end(), paging);
    }
    say_plain(&said.join("\n"), !answers.is_empty());
}

/// Everything asked for about one job, on stdout.
pub(crate) fn of_job(record: &JobRecord, context: &Context, form: Form, detail: Detail) {
    let text = text(record, context, form, detail);
    match form {
        Form::Json => print_json(parsed(&text)),
        Form::Text(paging) => {
            let face = out();
            if !face.terminal {
                return print(&text);
            }
            let mut lines = Vec::new();
            let rest = match answer(record) {
                Some(answer) => {
                    lines = markdown::lines(answer, face.width);
                    lines.push(Line::default());
                    text.strip_prefix(answer).unwrap_or(&text).trim_start()
                }
                None => &text,
            };
            lines.extend(facts(rest, face));
            pager::show(&lines, paging);
        }
    }
}

/// The answer of a job that has one.
fn answer(record: &JobRecord) -> Option<&str> {
    let outcome = record.outcome.as_ref().filter(|_| record.state == JobState::Succeeded)?;
    Some(outcome.response.as_deref().unwrap_or_default())
}

fn text(record: &JobRecord, context: &Context, form: Form, detail: Detail) -> String {
    let render = if form == Form::Json { Render::Json } else { Render::Porcelain };
    let shape = Shape { render, detail, budget: EVERYTHING, structured: false };
    let context = &Context { reader: Reader::Person, ..context.clone() };
    match reply::job(record, context, shape).text {
        ReplyText::Plain(text) => text,
        // Only what is passed on from another server is anything else.
        _ => String::new(),
    }
}

/// A text with commands about these jobs as a person types them: by the beginnings of their ids, and so within a line.
fn with_short<'a>(text: &str, records: impl Iterator<Item = &'a JobRecord>) -> String {
    records.fold(text.to_owned(), |text, record| {
        text.replace(&format!("jobs show {}", record.id), &format!("jobs show {}", short(record.id)))
    })
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

fn show_answer(answer: &str, paging: Paging) {
    let face = out();
    if face.terminal {
        pager::show(&markdown::lines(answer, face.width), paging);
    } else {
        print(answer);
    }
}

/// Says a text on stderr. Facts that follow an answer on the same screen stand apart from it.
fn say_plain(text: &str, apart: bool) {
    let face = err();
    if !face.terminal {
        return say(text);
    }
    let mut lines = facts(text, face);
    if apart && out().terminal {
        lines.insert(0, Line::default());
    }
    say_lines(&lines);
}

/// Facts in lines: those in brackets are dim, how a consult failed is not, and the lines of an object stay as they are.
fn facts(text: &str, face: Face) -> Vec<Line> {
    let mut lines = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let style = match line {
            line if line.starts_with("[job ") => paint::DIM,
            line if at == 0 && (line.starts_with("The consult failed") || line.contains("was interrupted")) => {
                paint::BAD
            }
            line if at == 0 && line.starts_with("The consult was cancelled") => paint::DOUBT,
            _ => paint::PLAIN,
        };
        match line.chars().next() {
            Some(' ' | '{' | '}') => lines.push(Line::of(style, line)),
            Some('[') => lines.extend(wrap(&Line::of(style, line), face.width)),
            _ => lines.extend(paragraph(style, if line.is_empty() { "\n" } else { line }, face.width)),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_broken_at_words_and_an_object_stays_as_it_is() {
        let face = Face { terminal: true, colour: false, moves: true, width: 40, height: 24 };
        let object = format!("  \"prompt\": \"{}\",", "word ".repeat(20));
        let text = format!(
            "The consult failed (x): y.\n\n[job 3f25 · succeeded · sync · claude (a-model) · 0.1 s]\n{{\n{object}\n}}"
        );
        let shown: Vec<String> = facts(&text, face).iter().map(Line::plain).collect();
        assert_eq!(
            shown,
            [
                "The consult failed (x): y.",
                "",
                "[job 3f25 · succeeded · sync · claude",
                "(a-model) · 0.1 s]",
                "{",
                &object,
                "}"
            ]
        );
    }
}
