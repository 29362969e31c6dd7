//! A configuration file's text: what it says, and the same text with one value more, another one, or one less.
//!
//! Owns: what is common to the formats, and the proof that an edit did what it was to do. May not know: clients, files.
//!
//! Invariants: (1) every byte that an edit is not about stays as it is, since a format splices the text and writes nothing anew;
//! (2) what an edited text says is what the text before said with that one value changed, or there is no edit
//! ([`TextError::Unsure`]); (3) taking a value away that [`Format::set`] put in gives the text before it, byte for byte, where
//! nothing else was changed around it.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{json_text, toml_text};

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// JSON, with comments and trailing commas where there are any.
    Json,
    /// TOML.
    Toml,
}

/// What is put into a text. A table's keys are in the order in which people read them.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Tree {
    Value(Value),
    Table(Vec<(String, Tree)>),
}

impl Tree {
    /// A table of plain values.
    pub(super) fn table(keys: &[(String, Value)]) -> Self {
        Self::Table(keys.iter().map(|(key, value)| (key.clone(), Self::Value(value.clone()))).collect())
    }

    /// This below these keys.
    pub(super) fn below(self, keys: &[&str]) -> Self {
        keys.iter().rev().fold(self, |inner, key| Self::Table(vec![((*key).to_owned(), inner)]))
    }

    /// What it says.
    pub(super) fn value(&self) -> Value {
        match self {
            Self::Value(value) => value.clone(),
            Self::Table(keys) => Value::Object(keys.iter().map(|(key, tree)| (key.clone(), tree.value())).collect()),
        }
    }
}

/// What the place of a value was like before it came, as far as taking it away again does not show that by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Trace {
    /// What stood between the braces of a table without keys.
    Interior(String),
    /// The whole text, which had no table.
    File(String),
    /// What was put in, with what sets it off from its neighbours.
    Inserted(String),
}

/// A place in a text, from 1, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl At {
    /// The place of a byte.
    pub(super) fn byte(text: &str, byte: usize) -> Self {
        let before = text.get(..byte).unwrap_or(text);
        let last = before.rsplit('\n').next().unwrap_or_default();
        Self { line: before.matches('\n').count() + 1, column: last.chars().count() + 1 }
    }
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Why a text is not edited.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TextError {
    /// It is not what its format allows.
    #[error("read it: {at}: {what}")]
    Broken { at: At, what: String },
    /// What should hold our entry is no table.
    #[error("add to it: {at}: `{key}` is no table")]
    NotATable { at: At, key: String },
    /// Whoever reads it would see one of the two.
    #[error("read it: {at}: `{key}` is there twice")]
    Twice { at: At, key: String },
    /// The text has a form in which the edit would change something else.
    #[error("change it without changing more than that; edit it by hand")]
    Unsure,
}

impl TextError {
    /// Where in the text, if it is about a place.
    pub(super) fn at(&self) -> Option<At> {
        match self {
            Self::Broken { at, .. } | Self::NotATable { at, .. } | Self::Twice { at, .. } => Some(*at),
            Self::Unsure => None,
        }
    }
}

/// A part of a text and what comes in its place.
pub(super) struct Splice {
    pub(super) range: Range<usize>,
    pub(super) with: String,
}

impl Splice {
    pub(super) fn new(range: Range<usize>, with: impl Into<String>) -> Self {
        Self { range, with: with.into() }
    }

    /// The text with all of these, which are in order and apart.
    pub(super) fn apply(text: &str, splices: &[Self]) -> String {
        let mut new = String::with_capacity(text.len() + 256);
        let mut kept = 0;
        for splice in splices {
            new.push_str(text.get(kept..splice.range.start).unwrap_or_default());
            new.push_str(&splice.with);
            kept = splice.range.end;
        }
        new.push_str(text.get(kept..).unwrap_or_default());
        new
    }
}

/// A mark that editors of one platform put before a text. It is no part of what the text says.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The text behind the mark, and the mark.
fn unmarked(text: &str) -> (&str, &str) {
    let body = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    (body, &text[..text.len() - body.len()])
}

impl Format {
    /// What a text says; nothing says `{}`.
    pub(super) fn read(self, text: &str) -> Result<Value, TextError> {
        let (body, _) = unmarked(text);
        match self {
            Self::Json => json_text::read(body),
            Self::Toml => toml_text::read(body),
        }
    }

    /// A value as it is written.
    pub(super) fn raw(self, text: &str, path: &[&str]) -> Option<String> {
        let (body, _) = unmarked(text);
        let range = match self {
            Self::Json => json_text::range(body, path),
            Self::Toml => toml_text::range(body, path),
        }?;
        body.get(range).map(str::to_owned)
    }

    /// Where a value is written.
    pub(super) fn place(self, text: &str, path: &[&str]) -> Option<At> {
        let (body, _) = unmarked(text);
        let range = match self {
            Self::Json => json_text::range(body, path),
            Self::Toml => toml_text::range(body, path),
        }?;
        Some(At::byte(body, range.start))
    }

    /// The text with a value at a path, and what taking it away has to know. Tables on the way are made.
    pub(super) fn set(self, text: &str, path: &[&str], tree: &Tree) -> Result<(String, Option<Trace>), TextError> {
        let (body, mark) = unmarked(text);
        let mut wanted = self.read(text)?;
        put(&mut wanted, path, tree.value());
        let (new, trace) = match self {
            Self::Json => json_text::set(body, path, tree),
            Self::Toml => toml_text::set(body, path, tree),
        }?;
        Ok((self.proven(format!("{mark}{new}"), &wanted)?, trace))
    }

    /// The text with other words for a value that is there.
    pub(super) fn rewrite(self, text: &str, path: &[&str], raw: &str, value: &Value) -> Result<String, TextError> {
        let (body, mark) = unmarked(text);
        let mut wanted = self.read(text)?;
        put(&mut wanted, path, value.clone());
        let range = match self {
            Self::Json => json_text::range(body, path),
            Self::Toml => toml_text::range(body, path),
        };
        let range = range.ok_or(TextError::Unsure)?;
        self.proven(format!("{mark}{}", Splice::apply(body, &[Splice::new(range, raw)])), &wanted)
    }

    /// The text without the value at a path.
    pub(super) fn remove(self, text: &str, path: &[&str], trace: Option<&Trace>) -> Result<String, TextError> {
        let (body, mark) = unmarked(text);
        let mut wanted = self.read(text)?;
        take(&mut wanted, path);
        let new = match self {
            Self::Json => json_text::remove(body, path, trace)?,
            Self::Toml => {
                // A table that only a header below it implies is gone with that one.
                let new = toml_text::remove(body, path, trace)?;
                if at(&self.read(&new)?, &path[..path.len() - 1]).is_none() {
                    take(&mut wanted, &path[..path.len() - 1]);
                }
                new
            }
        };
        self.proven(format!("{mark}{new}"), &wanted)
    }

    /// What a value says that is written so.
    pub(super) fn literal(self, raw: &str) -> Option<Value> {
        let text = match self {
            Self::Json => format!("{{\"x\": {raw}\n}}"),
            Self::Toml => format!("x = {raw}\n"),
        };
        self.read(&text).ok()?.get("x").cloned()
    }

    fn proven(self, new: String, wanted: &Value) -> Result<String, TextError> {
        match self.read(&new) {
            Ok(said) if said == *wanted => Ok(new),
            _ => Err(TextError::Unsure),
        }
    }
}

/// The value at a path.
pub(super) fn at<'v>(value: &'v Value, path: &[&str]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

fn put(value: &mut Value, path: &[&str], new: Value) {
    let Some((last, before)) = path.split_last() else { return };
    let mut table = value;
    for key in before {
        let Some(object) = table.as_object_mut() else { return };
        table = object.entry(*key).or_insert_with(|| Value::Object(Map::new()));
    }
    if let Some(object) = table.as_object_mut() {
        object.insert((*last).to_owned(), new);
    }
}

fn take(value: &mut Value, path: &[&str]) {
    let Some((last, before)) = path.split_last() else { return };
    let table = before.iter().try_fold(value, |value, key| value.get_mut(key));
    if let Some(object) = table.and_then(Value::as_object_mut) {
        object.remove(*last);
    }
}

/// How lines end in a text.
pub(super) fn line_end(text: &str) -> &'static str {
    if text.contains("\r\n") { "\r\n" } else { "\n" }
}

/// Where the line of a byte begins.
pub(super) fn line_start(text: &str, byte: usize) -> usize {
    text.get(..byte).and_then(|before| before.rfind('\n')).map_or(0, |end| end + 1)
}

/// The spaces before a byte on its line, if there is nothing else.
pub(super) fn indent(text: &str, byte: usize) -> Option<&str> {
    text.get(line_start(text, byte)..byte).filter(|before| before.chars().all(|c| c == ' ' || c == '\t'))
}
