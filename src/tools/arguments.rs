//! Reads a tool's arguments and collects every problem with them, so that a caller mends all of them at once.
//!
//! Invariants: (1) nothing is started while a problem is known; (2) each problem names the argument, what was wrong
//! and what is accepted.
//!
//! Models fill in what they were to leave out, and clients change types on the way. What is meant is read where nothing else
//! can be meant:
//!
//! | sent | read as | by whom it is sent |
//! | --- | --- | --- |
//! | `null`, `""`, blanks, `"null"` for an optional argument | left out | models that fill in every argument; clients that have no `null` |
//! | `30.0`, `3e1` | 30 | serialisers that have one kind of number |
//! | `"30"`, `"0.5"` for a number | the number | clients that pass on what a model wrote as text |
//! | `"true"`, `"False"` for a boolean | the boolean | the same |
//!
//! Everything else is refused: `"abc"`, `30.5`, `1` for a boolean, a list around a value.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::diff;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::AgentSessionId;
use crate::base::lenient;
use crate::base::nearest::nearest;

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

    /// Whether the caller said anything about an option; a placeholder says nothing.
    #[must_use]
    pub fn is_given(&self, name: &str) -> bool {
        self.members.get(name).is_some_and(|value| !is_placeholder(value))
    }

    /// An argument's value, unless it is a placeholder for none.
    fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.members.remove(name).filter(|value| !is_placeholder(value))
    }

    /// A text as it was sent, even one that could be a placeholder: what it says is for its reader to judge.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        match self.members.remove(name)? {
            Value::String(text) => Some(text),
            Value::Null => None,
            other => {
                self.problem(name, format_args!("is {}", kind(&other)), "a string");
                None
            }
        }
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

    /// A diff to be made, if one is wanted: what it compares with. True is what is not committed.
    pub(super) fn diff(&mut self, name: &'static str) -> Option<String> {
        let base = match self.take(name)? {
            Value::Bool(true) => diff::HEAD.to_owned(),
            Value::Bool(false) => return None,
            Value::String(text) if text.trim().eq_ignore_ascii_case("true") => diff::HEAD.to_owned(),
            Value::String(text) if text.trim().eq_ignore_ascii_case("false") => return None,
            Value::String(text) if diff::is_nameable(&text) => return Some(text),
            other => {
                let accepted = "true for what is not committed, or a commit, branch or tag";
                self.problem(name, format_args!("is {}", shown(&other)), accepted);
                return None;
            }
        };
        Some(base)
    }

    /// A list of texts, if given; one without anything in it is none.
    pub fn list(&mut self, name: &'static str) -> Option<Vec<String>> {
        const ACCEPTED: &str = "a list of strings";
        let value = self.take(name)?;
        let Value::Array(values) = value else {
            self.problem(name, format_args!("is {}", shown(&value)), ACCEPTED);
            return None;
        };
        let mut texts = Vec::new();
        for value in values {
            match value {
                Value::String(text) => texts.push(text),
                other => {
                    self.problem(name, format_args!("has {} in it", shown(&other)), ACCEPTED);
                    return None;
                }
            }
        }
        Some(texts).filter(|texts| !texts.is_empty())
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
        if let Some(number) = whole(&value).filter(|number| range.contains(number)) {
            return Some(number);
        }
        let accepted = format!("a whole number from {} to {}", range.start(), range.end());
        self.problem(name, format_args!("is {}", shown(&value)), accepted);
        None
    }

    /// A number above zero, if given.
    pub fn positive(&mut self, name: &'static str, most: f64) -> Option<f64> {
        let value = self.take(name)?;
        if let Some(number) = number(&value).filter(|number| *number > 0.0 && *number <= most) {
            return Some(number);
        }
        self.problem(name, format_args!("is {}", shown(&value)), format_args!("a number above 0, at most {most}"));
        None
    }

    /// True or false, if given.
    pub fn boolean(&mut self, name: &'static str) -> Option<bool> {
        match self.take(name)? {
            Value::Bool(value) => Some(value),
            Value::String(text) if text.trim().eq_ignore_ascii_case("true") => Some(true),
            Value::String(text) if text.trim().eq_ignore_ascii_case("false") => Some(false),
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

    /// The id of an agent's session, if given.
    pub fn session(&mut self, name: &'static str) -> Option<AgentSessionId> {
        let value = self.take(name)?;
        if let Some(id) = value.as_str().and_then(|text| text.parse().ok()) {
            return Some(id);
        }
        self.problem(name, format_args!("is {}", shown(&value)), AgentSessionId::ACCEPTED);
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

/// Whether a value stands for none.
#[must_use]
pub fn is_placeholder(value: &Value) -> bool {
    match value {
        Value::Null => true,
        // A control character is no way to say nothing: whoever sent it meant something, and is told that it is refused.
        Value::String(text) => {
            let controls = text.chars().any(|c| c.is_control() && !c.is_whitespace());
            (lenient::is_blank(text) && !controls) || text == "null"
        }
        _ => false,
    }
}

/// A number, also one that came as text.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        // As JSON writes it: what else Rust reads (`inf`, `1_000`) is no number that was mangled on its way.
        Value::String(text) => serde_json::from_str::<serde_json::Number>(text.trim()).ok()?.as_f64(),
        _ => None,
    }
}

/// A whole number, however it is written.
fn whole(value: &Value) -> Option<u64> {
    /// From here on a double no longer holds each whole number.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if let Some(number) = value.as_u64() {
        return Some(number);
    }
    let number = number(value).filter(|number| number.fract() == 0.0 && (0.0..=EXACT).contains(number))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is whole, not negative and exact")]
    Some(number as u64)
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
        args.session("session_id");
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
            "`session_id` is \"../x\"; accepted: a session's id",
            "`budget` is -1; accepted: a number above 0",
            "`model` is \"-x\"",
            "`state` is \"done\"; accepted: queued, running",
            "`xyzzy` is not an argument; accepted: prompt, max_turns",
        ] {
            assert!(fault.detail.contains(part), "{part}\n in {}", fault.detail);
        }
    }

    /// What each reader makes of a value; `refused` when it is a problem.
    fn read(value: &str) -> [String; 7] {
        fn one<T: std::fmt::Debug>(value: &str, read: impl FnOnce(&mut ArgumentReader) -> Option<T>) -> String {
            let mut args = ArgumentReader::parse(format!("{{\"x\":{value}}}").as_bytes()).expect("it is JSON");
            let read = read(&mut args);
            match args.finish() {
                Ok(()) => read.map_or("absent".to_owned(), |read| format!("{read:?}")),
                Err(fault) => {
                    assert!(fault.detail.contains("accepted: "), "{fault}");
                    "refused".to_owned()
                }
            }
        }
        [
            one(value, |args| args.string("x")),
            one(value, |args| args.word("x", 100)),
            one(value, |args| args.integer("x", 0..=1000)),
            one(value, |args| args.positive("x", 1000.0)),
            one(value, |args| args.boolean("x")),
            one(value, |args| args.choice("x", &[("low", 1), ("high", 2)])),
            one(value, |args| args.uuid::<crate::base::ids::JobId>("x").map(|_| "id")),
        ]
    }

    #[test]
    fn placeholders_are_absent_and_mangled_numbers_and_booleans_are_what_they_were() {
        const NO: &str = "refused";
        let absent = ["absent"; 7];
        for placeholder in ["null", r#""""#, r#""  ""#, r#""\u200b""#, r#""null""#, r#""\n""#] {
            assert_eq!(read(placeholder), absent, "{placeholder}");
        }
        for (value, want) in [
            //               string         word      integer  positive  boolean  choice  uuid
            ("30", [NO, NO, "30", "30.0", NO, NO, NO]),
            ("30.0", [NO, NO, "30", "30.0", NO, NO, NO]),
            ("3e1", [NO, NO, "30", "30.0", NO, NO, NO]),
            ("-0.0", [NO, NO, "0", NO, NO, NO, NO]),
            ("30.5", [NO, NO, NO, "30.5", NO, NO, NO]),
            ("-1", [NO, NO, NO, NO, NO, NO, NO]),
            ("1e300", [NO, NO, NO, NO, NO, NO, NO]),
            (r#""30""#, ["\"30\"", "\"30\"", "30", "30.0", NO, NO, NO]),
            (r#"" 30 ""#, ["\" 30 \"", NO, "30", "30.0", NO, NO, NO]),
            (r#""30.0""#, ["\"30.0\"", "\"30.0\"", "30", "30.0", NO, NO, NO]),
            (r#""0.5""#, ["\"0.5\"", "\"0.5\"", NO, "0.5", NO, NO, NO]),
            (r#""1001""#, ["\"1001\"", "\"1001\"", NO, NO, NO, NO, NO]),
            (r#""inf""#, ["\"inf\"", "\"inf\"", NO, NO, NO, NO, NO]),
            (r#""abc""#, ["\"abc\"", "\"abc\"", NO, NO, NO, NO, NO]),
            ("true", [NO, NO, NO, NO, "true", NO, NO]),
            (r#""true""#, ["\"true\"", "\"true\"", NO, NO, "true", NO, NO]),
            (r#""False""#, ["\"False\"", "\"False\"", NO, NO, "false", NO, NO]),
            (r#""yes""#, ["\"yes\"", "\"yes\"", NO, NO, NO, NO, NO]),
            ("1", [NO, NO, "1", "1.0", NO, NO, NO]),
            (r#""low""#, ["\"low\"", "\"low\"", NO, NO, NO, "1", NO]),
            (r#"["low"]"#, [NO; 7]),
            ("{}", [NO; 7]),
        ] {
            assert_eq!(read(value), want, "{value}");
        }
    }

    #[test]
    fn a_required_text_is_read_as_it_is() {
        for (value, want) in [(r#""""#, Some("")), (r#""null""#, Some("null")), ("null", None)] {
            let mut args = ArgumentReader::parse(format!("{{\"prompt\":{value}}}").as_bytes()).expect("it is JSON");
            assert_eq!(args.text("prompt").as_deref(), want, "{value}");
            args.finish().expect("nothing is wrong");
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
