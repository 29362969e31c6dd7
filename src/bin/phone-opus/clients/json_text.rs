//! JSON as people write it: with comments, trailing commas and whatever indentation.
//!
//! Owns: where a key belongs in such a text, how it is set off there, and how it is taken away. May not know: what is written, and
//! whether an edit did what it was to do ([`super::text`] proves it). What the text says, and where, is `jsonc-parser`'s to say.

use std::ops::Range;

use jsonc_parser::ast::{Object, ObjectProp, Value as Node};
use jsonc_parser::common::Ranged as _;
use jsonc_parser::tokens::{Token, TokenAndRange};
use jsonc_parser::{CollectOptions, CommentCollectionStrategy, ParseOptions, parse_to_ast};
use serde_json::{Map, Value};

use super::text::{At, Splice, TextError, Trace, Tree, indent, line_end, line_start};

/// What the clients' own readers take, all together. What one of them refuses in its own file is for it to say.
const ACCEPTED: ParseOptions = ParseOptions {
    allow_comments: true,
    allow_loose_object_property_names: false,
    allow_trailing_commas: true,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

/// The indentation of a text that has none.
const UNIT: &str = "  ";

/// A text that was read.
struct Doc<'t> {
    text: &'t str,
    root: Option<Node<'t>>,
    tokens: Vec<TokenAndRange<'t>>,
}

impl<'t> Doc<'t> {
    fn read(text: &'t str) -> Result<Self, TextError> {
        let collect = CollectOptions { comments: CommentCollectionStrategy::Off, tokens: true };
        let parsed = parse_to_ast(text, &collect, &ACCEPTED).map_err(|error| TextError::Broken {
            at: At { line: error.line_display(), column: error.column_display() },
            what: error.kind().to_string(),
        })?;
        Ok(Self { text, root: parsed.value, tokens: parsed.tokens.unwrap_or_default() })
    }

    /// The table that the text is.
    fn root(&self) -> Result<Option<&Object<'t>>, TextError> {
        let Some(root) = &self.root else { return Ok(None) };
        let none = || TextError::NotATable { at: At::byte(self.text, root.range().start), key: "the file".to_owned() };
        root.as_object().map(Some).ok_or_else(none)
    }

    /// The comma that follows a value, in whichever line.
    fn comma_after(&self, end: usize) -> Option<usize> {
        let next = self.tokens.partition_point(|token| token.range.start < end);
        self.tokens.get(next).filter(|token| token.token == Token::Comma).map(|token| token.range.start)
    }

    fn slice(&self, range: Range<usize>) -> &'t str {
        self.text.get(range).unwrap_or_default()
    }
}

fn span(node: &impl jsonc_parser::common::Ranged) -> Range<usize> {
    let range = node.range();
    range.start..range.end
}

/// What a text says. A key that is there twice is nobody's to choose from, wherever that is.
pub(super) fn read(text: &str) -> Result<Value, TextError> {
    let doc = Doc::read(text)?;
    match doc.root()? {
        Some(root) => object(text, root),
        None => Ok(Value::Object(Map::new())),
    }
}

fn object(text: &str, object: &Object<'_>) -> Result<Value, TextError> {
    let mut read = Map::new();
    for prop in &object.properties {
        let key = prop.name.as_str().to_owned();
        if read.contains_key(&key) {
            return Err(TextError::Twice { at: At::byte(text, prop.range.start), key });
        }
        read.insert(key, node(text, &prop.value)?);
    }
    Ok(Value::Object(read))
}

fn node(text: &str, value: &Node<'_>) -> Result<Value, TextError> {
    Ok(match value {
        Node::StringLit(string) => Value::String(string.value.clone().into_owned()),
        Node::BooleanLit(word) => Value::Bool(word.value),
        Node::NullKeyword(_) => Value::Null,
        // A number that no type of ours holds is kept as it is written.
        Node::NumberLit(number) => {
            serde_json::from_str(number.value).unwrap_or_else(|_| Value::String(number.value.to_owned()))
        }
        Node::Object(inner) => object(text, inner)?,
        Node::Array(array) => {
            Value::Array(array.elements.iter().map(|element| node(text, element)).collect::<Result<_, _>>()?)
        }
    })
}

/// Where the value at a path is written.
pub(super) fn range(text: &str, path: &[&str]) -> Option<Range<usize>> {
    let doc = Doc::read(text).ok()?;
    let (last, before) = path.split_last()?;
    let mut table = doc.root().ok()??;
    for key in before {
        table = table.get(key)?.value.as_object()?;
    }
    table.get(last).map(|prop| span(&prop.value))
}

/// The text with a value at a path.
pub(super) fn set(text: &str, path: &[&str], tree: &Tree) -> Result<(String, Option<Trace>), TextError> {
    let doc = Doc::read(text)?;
    let style = Style::of(&doc);
    let Some(root) = doc.root()? else {
        let end = if text.trim().is_empty() { "" } else { text.trim_end() };
        let gap = if end.is_empty() { "" } else { style.line_end };
        let new = format!("{end}{gap}{}{}", style.lines(&tree.clone().below(path), ""), style.line_end);
        return Ok((new, Some(Trace::File(text.to_owned()))));
    };
    let mut table = root;
    let Some((last, before)) = path.split_last() else { return Err(TextError::Unsure) };
    for (depth, key) in before.iter().enumerate() {
        let Some(prop) = table.get(key) else {
            let rest = tree.clone().below(path.get(depth + 1..).unwrap_or_default());
            return Ok(insert(&doc, &style, table, key, &rest));
        };
        table = prop
            .value
            .as_object()
            .ok_or_else(|| TextError::NotATable { at: At::byte(text, prop.range.start), key: (*key).to_owned() })?;
    }
    let Some(prop) = table.get(last) else { return Ok(insert(&doc, &style, table, last, tree)) };
    let new = match indent(text, prop.range.start) {
        Some(indent) => style.lines(tree, indent),
        None => style.line(tree, doc.slice(span(&prop.name).end..span(&prop.value).start).contains(' ')),
    };
    Ok((Splice::apply(text, &[Splice::new(span(&prop.value), new)]), None))
}

/// The text without the key at a path.
pub(super) fn remove(text: &str, path: &[&str], trace: Option<&Trace>) -> Result<String, TextError> {
    let doc = Doc::read(text)?;
    let (Some((last, before)), Some(root)) = (path.split_last(), doc.root()?) else { return Err(TextError::Unsure) };
    let mut table = root;
    for key in before {
        table = table.get(key).and_then(|prop| prop.value.as_object()).ok_or(TextError::Unsure)?;
    }
    let index = table.properties.iter().position(|prop| prop.name.as_str() == *last).ok_or(TextError::Unsure)?;
    let prop = table.properties.get(index).ok_or(TextError::Unsure)?;
    let comma = doc.comma_after(prop.range.end);
    let cut = gap_before(text, prop.range.start)..comma.map_or(prop.range.end, |comma| comma + 1);
    if table.properties.len() == 1 {
        return Ok(without_the_only(&doc, table, cut, trace));
    }
    let before = index.checked_sub(1).and_then(|before| table.properties.get(before));
    let mut splices = Vec::new();
    // The last of a list without a comma at its end: the one before has none either then.
    if let (None, Some(before)) = (comma, before)
        && let Some(comma) = doc.comma_after(before.range.end)
    {
        splices.push(Splice::new(comma..comma + 1, ""));
    }
    splices.push(Splice::new(cut, ""));
    Ok(Splice::apply(text, &splices))
}

fn without_the_only(doc: &Doc<'_>, table: &Object<'_>, cut: Range<usize>, trace: Option<&Trace>) -> String {
    let (opens, closes) = (table.range.start + 1, table.range.end - 1);
    let left = format!("{}{}", doc.slice(opens..cut.start), doc.slice(cut.end..closes));
    let outside = format!("{}{}", doc.slice(0..table.range.start), doc.slice(table.range.end..doc.text.len()));
    let same = |a: &str, b: &str| a.split_whitespace().eq(b.split_whitespace());
    let interior = match trace {
        Some(Trace::File(file)) if left.trim().is_empty() && same(&outside, file) => return file.clone(),
        Some(Trace::Interior(interior)) if same(&left, interior) => interior.clone(),
        _ if left.trim().is_empty() => String::new(),
        _ => left,
    };
    Splice::apply(doc.text, &[Splice::new(opens..closes, interior)])
}

/// Where what sets a key off from what stands before it begins: its line's end and its indentation, or spaces.
fn gap_before(text: &str, start: usize) -> usize {
    let before = text.get(..start).unwrap_or_default();
    let before = before.trim_end_matches([' ', '\t']);
    let before = before.strip_suffix('\n').map_or(before, |line| line.strip_suffix('\r').unwrap_or(line));
    before.len()
}

/// A new key at the end of a table.
fn insert(doc: &Doc<'_>, style: &Style<'_>, table: &Object<'_>, key: &str, tree: &Tree) -> (String, Option<Trace>) {
    let Some(last) = table.properties.last() else { return first(doc, style, table, key, tree) };
    let text = doc.text;
    let key = quoted(key);
    let comma = doc.comma_after(last.range.end);
    let after = comma.map_or(last.range.end, |comma| comma + 1);
    let trailing = if comma.is_some() { "," } else { "" };
    let separating = if comma.is_some() { "" } else { "," };
    let splices = match indent(text, last.range.start).filter(|_| !is_one_line(doc, table)) {
        Some(indent) => {
            let end = end_of_line(text, after).unwrap_or(after);
            let value = style.lines(tree, indent);
            vec![
                Splice::new(last.range.end..last.range.end, separating),
                Splice::new(end..end, format!("{}{indent}{key}: {value}{trailing}", style.line_end)),
            ]
        }
        None => {
            let spaced = is_spaced(doc, last);
            let gap = if spaced { " " } else { "" };
            let value = style.line(tree, spaced);
            vec![Splice::new(after..after, format!("{separating}{gap}{key}:{gap}{value}{trailing}"))]
        }
    };
    (Splice::apply(text, &splices), None)
}

/// The first key of a table.
fn first(doc: &Doc<'_>, style: &Style<'_>, table: &Object<'_>, key: &str, tree: &Tree) -> (String, Option<Trace>) {
    let (opens, closes) = (table.range.start + 1, table.range.end - 1);
    let interior = doc.slice(opens..closes);
    let trace = Some(Trace::Interior(interior.to_owned()));
    let key = quoted(key);
    if style.one_line {
        let spaced = doc.text.contains(": ");
        let gap = if spaced { " " } else { "" };
        let at = opens + interior.trim_end().len();
        let new = format!("{key}:{gap}{}", style.line(tree, spaced));
        return (Splice::apply(doc.text, &[Splice::new(at..closes, new)]), trace);
    }
    let start = line_start(doc.text, table.range.start);
    let line = doc.slice(start..table.range.start);
    let outer = &line[..line.len() - line.trim_start().len()];
    let inner = format!("{outer}{}", style.unit);
    let new = format!("{end}{inner}{key}: {}", style.lines(tree, &inner), end = style.line_end);
    let at = opens + interior.trim_end().len();
    let rest = doc.slice(at..closes);
    let rest = if rest.contains('\n') { rest.to_owned() } else { format!("{}{outer}", style.line_end) };
    (Splice::apply(doc.text, &[Splice::new(at..closes, format!("{new}{rest}"))]), trace)
}

fn is_one_line(doc: &Doc<'_>, table: &Object<'_>) -> bool {
    !doc.slice(span(table)).contains('\n')
}

fn is_spaced(doc: &Doc<'_>, prop: &ObjectProp<'_>) -> bool {
    doc.slice(span(&prop.name).end..span(&prop.value).start).contains(' ')
}

/// The end of the line of a byte, where nothing but comments follows on it.
fn end_of_line(text: &str, from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        let rest = text.get(at..)?;
        let next = rest.trim_start_matches([' ', '\t']);
        let end = || rest.find('\n').map_or(rest.len(), |end| end - usize::from(rest[..end].ends_with('\r')));
        if next.is_empty() || next.starts_with('\n') || next.starts_with("\r\n") || next.starts_with("//") {
            return Some(at + end());
        }
        let comment = next.strip_prefix("/*")?;
        let length = comment.find("*/").filter(|length| !comment[..*length].contains('\n'))?;
        at += rest.len() - next.len() + length + 4;
    }
}

fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

/// How a text is laid out.
struct Style<'t> {
    line_end: &'static str,
    /// One step of indentation.
    unit: &'t str,
    /// Everything stands in one line.
    one_line: bool,
}

impl<'t> Style<'t> {
    fn of(doc: &Doc<'t>) -> Self {
        let text = doc.text;
        let root = doc.root().ok().flatten();
        let first = root.and_then(|root| root.properties.first());
        let unit = first.and_then(|first| indent(text, first.range.start)).filter(|unit| !unit.is_empty());
        let one_line = first.is_some() && !text.trim().contains('\n');
        Self { line_end: line_end(text), unit: unit.unwrap_or(UNIT), one_line }
    }

    /// A value in lines, the first of which is indented like this.
    fn lines(&self, tree: &Tree, indent: &str) -> String {
        match tree {
            Tree::Value(value) => in_line(value, true),
            Tree::Table(keys) if keys.is_empty() => "{}".to_owned(),
            Tree::Table(keys) => {
                let inner = format!("{indent}{}", self.unit);
                let line = |(key, value): &(String, Tree)| {
                    format!("{}{inner}{}: {}", self.line_end, quoted(key), self.lines(value, &inner))
                };
                let lines: Vec<String> = keys.iter().map(line).collect();
                format!("{{{}{}{indent}}}", lines.join(","), self.line_end)
            }
        }
    }

    /// A value in one line.
    fn line(&self, tree: &Tree, spaced: bool) -> String {
        let gap = if spaced { " " } else { "" };
        match tree {
            Tree::Value(value) => in_line(value, spaced),
            Tree::Table(keys) => {
                let one = |(key, value): &(String, Tree)| format!("{}:{gap}{}", quoted(key), self.line(value, spaced));
                format!("{{{}}}", keys.iter().map(one).collect::<Vec<_>>().join(&format!(",{gap}")))
            }
        }
    }
}

fn in_line(value: &Value, spaced: bool) -> String {
    match value {
        Value::Array(list) => {
            let words: Vec<String> = list.iter().map(|one| in_line(one, spaced)).collect();
            format!("[{}]", words.join(if spaced { ", " } else { "," }))
        }
        other => other.to_string(),
    }
}
