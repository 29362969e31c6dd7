//! Reads a tool's arguments and collects every problem with them, so that a caller mends all of them at once.
//!
//! Invariants: (1) nothing is started while a problem is known; (2) each problem names the argument, what was wrong
//! and what is accepted.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::base::nearest::nearest;
use crate::fault::{Fault, FaultCode};
use crate::lenient;

/// Reads the arguments of one call.
#[derive(Debug)]
pub struct ArgumentReader {
    members: Map<String, Value>,
    known: Vec<&'static str>,
    problems: Vec<String>,
}

impl ArgumentReader {
    /// Parses the JSON object of the arguments. Of a repeated member the last one counts.
    ///
    /// # Errors
    ///
    /// `invalid_input` when the text cannot be read at all (nested too deeply, a number out of range).
    pub fn parse(json: &[u8]) -> Result<Self, Fault> {
        let text = lenient::text(json);
        match serde_json::from_str::<Map<String, Value>>(&lenient::repair_surrogates(&text)) {
            Ok(members) => Ok(Self { members, known: Vec::new(), problems: Vec::new() }),
            Err(error) => {
                // Only the place is told: the text of the error may quote the prompt.
                let place = format!("line {}, column {}", error.line(), error.column());
                Err(Fault::new(FaultCode::InvalidInput, format!("the arguments cannot be read (at {place}).")))
            }
        }
    }

    /// Whether the caller said anything about an option; null and an empty text say nothing.
    #[must_use]
    pub fn is_given(&self, name: &str) -> bool {
        self.members.get(name).is_some_and(|value| !value.is_null() && value.as_str() != Some(""))
    }

    fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.members.remove(name).filter(|value| !value.is_null())
    }

    /// Notes a problem with an argument: what it is, and what is accepted.
    pub fn problem(&mut self, name: &str, wrong: impl Display, accepted: impl Display) {
        self.problems.push(format!("`{name}` {wrong}; accepted: {accepted}"));
    }

    /// A text, if given.
    pub fn string(&mut self, name: &'static str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            other => {
                self.problem(name, format_args!("is {}", kind(&other)), "a string");
                None
            }
        }
    }

    /// A short word without control characters, if given: a name that is handed on to a program.
    pub fn word(&mut self, name: &'static str, most: usize) -> Option<String> {
        let text = self.string(name)?;
        let good = !text.is_empty()
            && text.len() <= most
            && !text.starts_with('-')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:/[]@".contains(c));
        if good {
            return Some(text);
        }
        self.problem(
            name,
            format_args!("is {}", quoted(&text)),
            format_args!("1 to {most} letters, digits and -_.:/[]@, not beginning with a dash"),
        );
        None
    }

    /// A whole number within `range`, if given.
    pub fn integer(&mut self, name: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.take(name)?;
        if let Some(number) = value.as_u64().filter(|number| range.contains(number)) {
            return Some(number);
        }
        let accepted = format!("a whole number from {} to {}", range.start(), range.end());
        self.problem(name, format_args!("is {}", shown(&value)), accepted);
        None
    }

    /// A number above zero, if given.
    pub fn positive(&mut self, name: &'static str, most: f64) -> Option<f64> {
        let value = self.take(name)?;
        if let Some(number) = value.as_f64().filter(|number| *number > 0.0 && *number <= most) {
            return Some(number);
        }
        self.problem(name, format_args!("is {}", shown(&value)), format_args!("a number above 0, at most {most}"));
        None
    }

    /// True or false, if given.
    pub fn boolean(&mut self, name: &'static str) -> Option<bool> {
        match self.take(name)? {
            Value::Bool(value) => Some(value),
            other => {
                self.problem(name, format_args!("is {}", shown(&other)), "true or false");
                None
            }
        }
    }

    /// One of a few words, if given.
    pub fn choice<T: Copy>(&mut self, name: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let value = self.take(name)?;
        if let Some((_, chosen)) = choices.iter().find(|(word, _)| value.as_str() == Some(word)) {
            return Some(*chosen);
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        self.problem(name, format_args!("is {}", shown(&value)), words.join(", "));
        None
    }

    /// A lower-case canonical UUID, if given.
    pub fn uuid<T: FromStr>(&mut self, name: &'static str) -> Option<T> {
        let value = self.take(name)?;
        if let Some(id) = value.as_str().and_then(|text| text.parse().ok()) {
            return Some(id);
        }
        self.problem(
            name,
            format_args!("is {}", shown(&value)),
            "a UUID in lower case with dashes, as it was handed out",
        );
        None
    }

    /// Notes that a required argument is missing, unless something was already said about it.
    pub fn require<T>(&mut self, name: &'static str, value: Option<T>, accepted: impl Display) -> Option<T> {
        let said = self.problems.iter().any(|problem| problem.starts_with(&format!("`{name}` ")));
        if value.is_none() && !said {
            self.problem(name, "is missing", accepted);
        }
        value
    }

    /// Whether nothing was wrong so far.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Ends the reading.
    ///
    /// # Errors
    ///
    /// `invalid_input` naming every problem, unknown arguments among them, each with the nearest known name.
    pub fn finish(mut self) -> Result<(), Fault> {
        let unknown: Vec<String> = self.members.keys().cloned().collect();
        for name in unknown {
            let nearest = nearest(&name, &self.known);
            let wrong = match nearest {
                Some(near) => format!("is not an argument (did you mean `{near}`?)"),
                None => "is not an argument".to_owned(),
            };
            let shown: String = name.chars().take(60).collect();
            let accepted = self.known.join(", ");
            self.problem(&shown, wrong, accepted);
        }
        match self.problems.len() {
            0 => Ok(()),
            1 => Err(Fault::new(FaultCode::InvalidInput, format!("{}.", self.problems[0]))),
            count => {
                let listed: Vec<String> =
                    self.problems.iter().enumerate().map(|(n, problem)| format!("({}) {problem}", n + 1)).collect();
                let detail = format!("{count} problems with the arguments: {}.", listed.join("; "));
                Err(Fault::new(FaultCode::InvalidInput, detail))
            }
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A wrong value as the message shows it: short scalars as they are, everything else by its kind.
fn shown(value: &Value) -> String {
    match value {
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => quoted(text),
        other => kind(other).to_owned(),
    }
}

fn quoted(text: &str) -> String {
    if text.chars().count() > 60 {
        format!("{:?}…", text.chars().take(60).collect::<String>())
    } else {
        format!("{text:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_named_at_once_with_what_is_accepted() {
        let json = br#"{"max_turns":0,"cwd":7,"backgruond":true,"session_id":"../x","budget":-1,"model":"-x","state":"done","xyzzy":1}"#;
        let mut args = ArgumentReader::parse(json).expect("it is JSON");
        let prompt = args.string("prompt");
        args.require("prompt", prompt, "a text");
        args.integer("max_turns", 1..=1000);
        args.string("cwd");
        args.boolean("background");
        args.uuid::<crate::ids::JobId>("session_id");
        args.positive("budget", 100.0);
        args.word("model", 100);
        args.choice("state", &[("queued", 1), ("running", 2)]);
        let fault = args.finish().expect_err("it is all wrong");
        for part in [
            "9 problems",
            "`prompt` is missing; accepted: a text",
            "`max_turns` is 0; accepted: a whole number from 1 to 1000",
            "`cwd` is a number; accepted: a string",
            "`backgruond` is not an argument (did you mean `background`?)",
            "`session_id` is \"../x\"; accepted: a UUID",
            "`budget` is -1; accepted: a number above 0",
            "`model` is \"-x\"",
            "`state` is \"done\"; accepted: queued, running",
            "`xyzzy` is not an argument; accepted: prompt, max_turns",
        ] {
            assert!(fault.detail.contains(part), "{part}\n in {}", fault.detail);
        }
    }

    #[test]
    fn null_is_absent_and_other_spellings_find_the_nearest_name() {
        let mut args = ArgumentReader::parse(br#"{"prompt":null,"sessionId":"x"}"#).expect("it is JSON");
        assert_eq!(args.string("prompt"), None);
        args.string("session_id");
        let fault = args.finish().expect_err("sessionId is unknown");
        assert!(fault.detail.contains("did you mean `session_id`?"), "{}", fault.detail);
    }

    #[test]
    fn arguments_nested_too_deeply_are_refused_without_quoting_them() {
        let json = format!("{{\"prompt\":{}{}}}", "[".repeat(500), "]".repeat(500));
        let fault = ArgumentReader::parse(json.as_bytes()).expect_err("too deep");
        assert_eq!(fault.code, FaultCode::InvalidInput);
        assert!(!fault.detail.contains("[["), "{}", fault.detail);
    }
}
