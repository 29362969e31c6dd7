//! TOML as people write it: with comments, tables in whichever of its forms, and lines in their own order.
//!
//! Owns: where a table or a key belongs in such a text and how it is taken away. May not know: what is written, and whether an edit
//! did what it was to do ([`super::text`] proves it). What the text says, and where, is the crate `toml`'s to say.
//!
//! A table is written in one of four forms, and the forms of a table and of what is in it are independent:
//!
//! ```text
//! header   [mcp_servers.x]                  its keys follow in lines of their own
//! inline   x = { command = "y" }
//! dotted   mcp_servers.x.command = "y"      only what is there already is changed
//! implied  by a header or a dotted key below it
//! ```

use std::ops::Range;

use serde_json::{Map, Value};
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Value as Toml};

use super::text::{At, Splice, TextError, Trace, Tree, indent, line_end, line_start};

type Entry<'d, 't> = (&'d Spanned<toml::de::DeString<'t>>, &'d Spanned<DeValue<'t>>);

fn parse(text: &str) -> Result<Spanned<DeTable<'_>>, TextError> {
    DeTable::parse(text).map_err(|error| TextError::Broken {
        at: At::byte(text, error.span().map_or(0, |span| span.start)),
        what: error.message().lines().next().unwrap_or_default().to_owned(),
    })
}

/// What a text says.
pub(super) fn read(text: &str) -> Result<Value, TextError> {
    Ok(table(parse(text)?.get_ref()))
}

fn table(read: &DeTable<'_>) -> Value {
    let keys = read.iter().map(|(key, value)| (key.get_ref().to_string(), plain(value.get_ref())));
    Value::Object(keys.collect::<Map<_, _>>())
}

/// What JSON has no word for is compared as it is written.
fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(word) => Value::Bool(*word),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => number.into(),
            Err(_) => Value::String(number.to_string()),
        },
        DeValue::Float(number) => Value::String(number.to_string()),
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Array(list) => Value::Array(list.iter().map(|one| plain(one.get_ref())).collect()),
        DeValue::Table(inner) => table(inner),
    }
}

fn find<'d, 't>(table: &'d DeTable<'t>, key: &str) -> Option<Entry<'d, 't>> {
    table.iter().find(|(known, _)| known.get_ref() == key)
}

/// The key and the value at a path, and the table around them.
fn locate<'d, 't>(root: &'d DeTable<'t>, path: &[&str]) -> Option<(Entry<'d, 't>, Option<&'d Spanned<DeValue<'t>>>)> {
    let (last, before) = path.split_last()?;
    let (mut table, mut around) = (root, None);
    for key in before {
        let (_, value) = find(table, key)?;
        (table, around) = (value.get_ref().as_table()?, Some(value));
    }
    Some((find(table, last)?, around))
}

/// How a table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Header,
    Inline,
    Other,
}

fn form(text: &str, value: &Spanned<DeValue<'_>>) -> Form {
    match text.as_bytes().get(value.span().start) {
        Some(b'[') if value.get_ref().is_table() => Form::Header,
        Some(b'{') => Form::Inline,
        _ => Form::Other,
    }
}

/// Where the value at a path is written; of a table with a header, the header.
pub(super) fn range(text: &str, path: &[&str]) -> Option<Range<usize>> {
    let root = parse(text).ok()?;
    let ((_, value), _) = locate(root.get_ref(), path)?;
    Some(value.span())
}

/// The text with a value at a path of two or three keys.
pub(super) fn set(text: &str, path: &[&str], tree: &Tree) -> Result<(String, Option<Trace>), TextError> {
    let root = parse(text)?;
    for depth in 1..path.len() {
        let Some(((key, value), _)) = locate(root.get_ref(), &path[..depth]) else { break };
        if !value.get_ref().is_table() {
            let key_of = |key: &Spanned<toml::de::DeString<'_>>| key.get_ref().to_string();
            return Err(TextError::NotATable { at: At::byte(text, key.span().start), key: key_of(key) });
        }
    }
    if let Some(((_, value), _)) = locate(root.get_ref(), path) {
        return match form(text, value) {
            // Its keys, and tables below it, are all over the text.
            Form::Header => Err(TextError::Unsure),
            _ => Ok((Splice::apply(text, &[Splice::new(value.span(), inline(tree))]), None)),
        };
    }
    let Some((last, before)) = path.split_last() else { return Err(TextError::Unsure) };
    let around = locate(root.get_ref(), before).map(|((_, value), _)| value);
    match (around, around.map(|value| form(text, value)), tree) {
        (Some(around), Some(Form::Inline), _) => Ok((add_inline(text, around, last, tree), None)),
        (Some(around), Some(Form::Header), Tree::Value(_)) => Ok((add_line(text, around, last, tree), None)),
        (_, _, Tree::Table(keys)) => Ok(append(text, path, keys)),
        _ => Err(TextError::Unsure),
    }
}

/// A table of its own at the end, where a header can stand in every text.
fn append(text: &str, path: &[&str], keys: &[(String, Tree)]) -> (String, Option<Trace>) {
    let end = line_end(text);
    let mut new = String::new();
    if !text.is_empty() {
        if !text.ends_with('\n') {
            new.push_str(end);
        }
        if !text.trim_end_matches([' ', '\t']).ends_with("\n\n") && !text.ends_with("\r\n\r\n") {
            new.push_str(end);
        }
    }
    new.push_str(&format!("[{}]{end}", path.join(".")));
    for (key, value) in keys {
        new.push_str(&format!("{key} = {}{end}", inline(value)));
    }
    (format!("{text}{new}"), Some(Trace::Inserted(new)))
}

/// A key in a line of its own, behind those that the table has.
fn add_line(text: &str, table: &Spanned<DeValue<'_>>, key: &str, tree: &Tree) -> String {
    let end = end_of_line(text, last_byte(text, table));
    let gap = line_end(text);
    Splice::apply(text, &[Splice::new(end..end, format!("{gap}{key} = {}", inline(tree)))])
}

/// A key in an inline table, behind those that it has.
fn add_inline(text: &str, table: &Spanned<DeValue<'_>>, key: &str, tree: &Tree) -> String {
    let keys = table.get_ref().as_table();
    let last = keys.and_then(|keys| keys.values().map(|value| value.span().end).max());
    let (at, gap) = match last {
        Some(end) => (end, ", "),
        None => (table.span().start + 1, " "),
    };
    let closing = if last.is_none() { " " } else { "" };
    Splice::apply(text, &[Splice::new(at..at, format!("{gap}{key} = {}{closing}", inline(tree)))])
}

/// The text without the key at a path.
pub(super) fn remove(text: &str, path: &[&str], trace: Option<&Trace>) -> Result<String, TextError> {
    let root = parse(text)?;
    let ((key, value), around) = locate(root.get_ref(), path).ok_or(TextError::Unsure)?;
    let cut = if form(text, value) == Form::Header {
        let end = next_line(text, last_byte(text, value));
        match trace {
            Some(Trace::Inserted(inserted)) if text.get(..end).is_some_and(|head| head.ends_with(inserted)) => {
                end - inserted.len()..end
            }
            _ => blank_before(text, line_start(text, value.span().start))..end,
        }
    } else if around.is_some_and(|around| form(text, around) == Form::Inline) {
        beside_comma(text, key.span().start, value.span().end)
    } else if indent(text, key.span().start).is_some() {
        line_start(text, key.span().start)..next_line(text, value.span().end)
    } else {
        return Err(TextError::Unsure);
    };
    Ok(Splice::apply(text, &[Splice::new(cut, "")]))
}

/// The last byte of a header and the lines that belong to it, without tables of its own below it.
fn last_byte(text: &str, table: &Spanned<DeValue<'_>>) -> usize {
    let own = table.get_ref().as_table().into_iter().flat_map(DeTable::values);
    let own = own.filter(|value| form(text, value) != Form::Header && is_outside_of_headers(text, value));
    own.map(|value| value.span().end).chain([table.span().end]).max().unwrap_or_default()
}

/// A table that only a deeper header implies has that header's key as its place.
fn is_outside_of_headers(text: &str, value: &Spanned<DeValue<'_>>) -> bool {
    let line = text.get(line_start(text, value.span().start)..).unwrap_or_default();
    !value.get_ref().is_table() || !line.trim_start().starts_with('[')
}

fn end_of_line(text: &str, from: usize) -> usize {
    let rest = text.get(from..).unwrap_or_default();
    from + rest.find('\n').map_or(rest.len(), |end| end - usize::from(rest[..end].ends_with('\r')))
}

fn next_line(text: &str, from: usize) -> usize {
    let rest = text.get(from..).unwrap_or_default();
    from + rest.find('\n').map_or(rest.len(), |end| end + 1)
}

/// Where a line begins, or the blank one before it.
fn blank_before(text: &str, start: usize) -> usize {
    let before = start.checked_sub(1).map(|end| line_start(text, end));
    match before {
        Some(blank) if text.get(blank..start).is_some_and(|line| line.trim().is_empty()) => blank,
        _ => start,
    }
}

/// A key of an inline table with one of the commas beside it.
fn beside_comma(text: &str, start: usize, end: usize) -> Range<usize> {
    let before = text.get(..start).unwrap_or_default().trim_end();
    let after = text.get(end..).unwrap_or_default();
    if before.ends_with(',') {
        before.len() - 1..end
    } else if let Some(rest) = after.trim_start().strip_prefix(',') {
        start..text.len() - rest.trim_start().len()
    } else {
        before.len()..text.len() - after.trim_start().len()
    }
}

fn inline(tree: &Tree) -> String {
    match tree {
        Tree::Value(value) => literal(value),
        Tree::Table(keys) => {
            let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key} = {}", inline(value))).collect();
            format!("{{ {} }}", keys.join(", "))
        }
    }
}

fn literal(value: &Value) -> String {
    match value {
        Value::String(text) => Toml::String(text.clone()).to_string(),
        Value::Array(list) => format!("[{}]", list.iter().map(literal).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}
