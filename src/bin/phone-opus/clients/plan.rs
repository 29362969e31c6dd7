//! What is to become of a client's file, and what has to be remembered to take it back.
//!
//! Owns: which values are ours to write, to leave and to take back. May not know: how a text is edited, files, the terminal.
//!
//! ```text
//!                 no entry    ours as it is to be    runs phone-opus otherwise          runs something else
//! install         whole       nothing                its program, and limits it lacks   refused (--force: whole)
//! uninstall       nothing     out                    back to what it was before         stays, and is told (--force: out)
//! ```
//!
//! Invariants: (1) what the user wrote stays: an install changes nothing of an entry that runs phone-opus but the program, and a
//! limit is added only where there is none; (2) an uninstall takes a value back only where it is still what an install wrote, and
//! an entry as a whole, since without its command no client can read it; (3) installing twice is installing once.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::table::{Client, ENTRY, words};
use super::text::{At, Format, TextError, Trace, Tree, at};

/// One value that was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Unit {
    /// Its keys, from the outermost.
    pub(super) path: Vec<String>,
    /// What stood there before, as it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    was: Option<String>,
    /// What was written.
    now: Value,
    /// Tables on the way that were made for it.
    #[serde(default)]
    made: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trace: Option<Trace>,
}

impl Unit {
    fn path(&self) -> Vec<&str> {
        self.path.iter().map(String::as_str).collect()
    }

    /// What it has written for a key of our entry, if it has.
    pub(super) fn wrote(&self, servers: &str, key: &str) -> Option<&Value> {
        match self.path()[..] {
            [table, entry] if table == servers && entry == ENTRY => self.now.get(key),
            [table, entry, own] if table == servers && entry == ENTRY && own == key => Some(&self.now),
            _ => None,
        }
    }
}

/// What was done to one file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The client's name on the command line.
    pub(super) client: String,
    /// The file, as it was reached.
    pub(super) file: String,
    /// There was no file.
    pub(super) absent: bool,
    pub(super) units: Vec<Unit>,
}

/// What a file is to be.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum After {
    Same,
    Text(String),
    /// No file, as before.
    Gone,
}

/// A plan.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    pub(super) after: After,
    /// What is to be remembered; nothing where everything is taken back.
    pub(super) record: Option<Record>,
    /// The values that change: their keys, and what they become.
    pub(super) changes: Vec<(String, Option<Value>)>,
    /// Keys that stay as the user has them.
    pub(super) kept: Vec<String>,
}

/// Why there is no plan.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PlanError {
    #[error(transparent)]
    Text(#[from] TextError),
    /// Somebody else has the name.
    #[error("use the name `{ENTRY}`: {at}: an entry of that name runs something else; --force replaces it")]
    Foreign { at: At },
}

impl PlanError {
    /// Where in the file, if it is about a place.
    pub(super) fn at(&self) -> Option<At> {
        match self {
            Self::Text(error) => error.at(),
            Self::Foreign { at } => Some(*at),
        }
    }
}

/// Whether what the user has may be written over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Force {
    Yes,
    No,
}

/// An entry as it is written.
pub(super) type Entry = [(String, Value)];

fn value_of(entry: &Entry) -> Value {
    Value::Object(entry.iter().cloned().collect())
}

/// Whether an entry starts phone-opus as a server, from wherever.
pub(super) fn runs_phone_opus(entry: &Value) -> bool {
    let words = words(entry);
    let called = words.first().and_then(|program| program.rsplit('/').next());
    called == Some("phone-opus") && matches!(words.get(1..3), Some(["mcp", "serve" | "connect"]))
}

/// Plans an install. `old` is the file's text, if there is a file.
pub(super) fn install(
    client: &Client,
    old: Option<&str>,
    entry: &Entry,
    before: Option<&Record>,
    force: Force,
) -> Result<Plan, PlanError> {
    let (format, text) = (client.format, old.unwrap_or_default());
    let path = [client.servers, ENTRY];
    let said = format.read(text)?;
    let fresh = |units, absent| Record { client: client.word(), file: String::new(), absent, units };
    let Some(current) = at(&said, &path) else {
        // In TOML a table is there by what is in it.
        let made = usize::from(format == Format::Json && at(&said, &path[..1]).is_none());
        return whole(client, text, entry, made, |unit| fresh(vec![unit], old.is_none()));
    };
    if !runs_phone_opus(current) {
        if force == Force::No {
            let at = format.place(text, &path).unwrap_or(At { line: 1, column: 1 });
            return Err(PlanError::Foreign { at });
        }
        return whole(client, text, entry, 0, |unit| fresh(vec![unit], false));
    }
    let mut next = before.cloned().unwrap_or_else(|| fresh(Vec::new(), false));
    let (mut new, mut changes, mut kept) = (text.to_owned(), Vec::new(), Vec::new());
    for (key, value) in entry {
        let path = [client.servers, ENTRY, key];
        match current.get(key) {
            Some(there) if there == value => continue,
            Some(_) if force == Force::No && !client.starts().contains(&key.as_str()) => {
                kept.push(path.join("."));
                continue;
            }
            // What kind of entry this is, its client guesses where it does not say so.
            None if key == "type" => continue,
            _ => {}
        }
        let was = format.raw(&new, &path);
        let (edited, trace) = format.set(&new, &path, &Tree::Value(value.clone()))?;
        new = edited;
        changes.push((path.join("."), Some(value.clone())));
        next.remember(Unit { path: path.map(str::to_owned).into(), was, now: value.clone(), made: 0, trace });
    }
    let (after, record) =
        if changes.is_empty() { (After::Same, before.cloned()) } else { (After::Text(new), Some(next)) };
    Ok(Plan { after, record, changes, kept })
}

/// The whole entry, in the place of whatever has the name.
fn whole(
    client: &Client,
    text: &str,
    entry: &Entry,
    made: usize,
    record: impl FnOnce(Unit) -> Record,
) -> Result<Plan, PlanError> {
    let path = [client.servers, ENTRY];
    let was = client.format.raw(text, &path);
    let (new, trace) = client.format.set(text, &path, &Tree::table(entry))?;
    let now = value_of(entry);
    let changes = vec![(path.join("."), Some(now.clone()))];
    let unit = Unit { path: path.map(str::to_owned).into(), was, now, made, trace };
    Ok(Plan { after: After::Text(new), record: Some(record(unit)), changes, kept: Vec::new() })
}

impl Record {
    /// Adds a unit, or brings the one up to date that it is a part of.
    fn remember(&mut self, unit: Unit) {
        for known in &mut self.units {
            if known.path == unit.path {
                known.now = unit.now;
                return;
            }
            let part = unit.path.strip_prefix(known.path.as_slice());
            if let (Some([key]), Some(table)) = (part, known.now.as_object_mut()) {
                table.insert(key.clone(), unit.now);
                return;
            }
        }
        self.units.push(unit);
    }
}

/// Plans an uninstall. Without a record, what an install would write now is taken for what was written.
pub(super) fn uninstall(
    client: &Client,
    old: Option<&str>,
    entries: &[Vec<(String, Value)>],
    before: Option<&Record>,
    force: Force,
) -> Result<Plan, PlanError> {
    let format = client.format;
    let path = [client.servers, ENTRY];
    let nothing = Plan { after: After::Same, record: None, changes: Vec::new(), kept: Vec::new() };
    let Some(old) = old else { return Ok(nothing) };
    let said = format.read(old)?;
    let Some(current) = at(&said, &path) else { return Ok(nothing) };
    let assumed = |now: Value| Unit { path: path.map(str::to_owned).into(), was: None, now, made: 0, trace: None };
    let units = match before {
        Some(record) => record.units.clone(),
        None => {
            let written = entries.iter().map(|entry| value_of(entry)).find(|entry| entry == current);
            vec![assumed(written.unwrap_or_else(|| entries.first().map(|entry| value_of(entry)).unwrap_or_default()))]
        }
    };
    let (mut text, mut changes, mut kept, mut left) = (old.to_owned(), Vec::new(), Vec::new(), Vec::new());
    for unit in units.iter().rev() {
        let said = format.read(&text)?;
        let unit_path = unit.path();
        match at(&said, &unit_path) {
            None => {}
            Some(now) if *now == unit.now => {
                text = undo(format, &text, unit)?;
                let was = unit.was.as_deref().and_then(|raw| format.literal(raw));
                changes.push((unit.path.join("."), was));
            }
            Some(now) => {
                kept.extend(differing(&unit.path, now, &unit.now));
                left.push(unit.clone());
            }
        }
    }
    if force == Force::Yes && at(&format.read(&text)?, &path).is_some() {
        let whole = units.iter().find(|unit| unit.path() == path).cloned();
        text = take_out(format, &text, &whole.unwrap_or_else(|| assumed(Value::Null)))?;
        changes = vec![(path.join("."), None)];
        (kept, left) = (Vec::new(), Vec::new());
    }
    left.reverse();
    let record = before.filter(|_| !left.is_empty()).map(|before| Record { units: left, ..before.clone() });
    let empty = text.trim().is_empty() || text.split_whitespace().collect::<String>() == "{}";
    let after = match (before, text == old) {
        (_, true) => After::Same,
        (Some(before), false) if before.absent && empty => After::Gone,
        _ => After::Text(text),
    };
    Ok(Plan { after, record, changes, kept })
}

/// The text before a unit was written.
fn undo(format: Format, text: &str, unit: &Unit) -> Result<String, TextError> {
    match &unit.was {
        None => take_out(format, text, unit),
        Some(raw) => {
            let value = format.literal(raw).ok_or(TextError::Unsure)?;
            format.rewrite(text, &unit.path(), raw, &value)
        }
    }
}

/// The text without a unit, and without the tables that were made for it where nothing else has come into them.
fn take_out(format: Format, text: &str, unit: &Unit) -> Result<String, TextError> {
    let path = unit.path();
    let trace = |depth: usize| unit.trace.as_ref().filter(|_| depth == path.len() - unit.made);
    let mut text = format.remove(text, &path, trace(path.len()))?;
    for depth in (path.len() - unit.made..path.len()).rev() {
        let made = path.get(..depth).unwrap_or_default();
        let bare = format.raw(&text, made).is_some_and(|raw| raw.split_whitespace().collect::<String>() == "{}");
        if !bare {
            break;
        }
        text = format.remove(&text, made, trace(depth))?;
    }
    Ok(text)
}

/// The keys of a unit that are not as they were written.
fn differing(path: &[String], now: &Value, written: &Value) -> Vec<String> {
    let path = path.join(".");
    let (Some(now), Some(written)) = (now.as_object(), written.as_object()) else { return vec![path] };
    let keys = now.keys().chain(written.keys().filter(|key| !now.contains_key(*key)));
    let other = keys.filter(|key| now.get(*key) != written.get(*key));
    other.map(|key| format!("{path}.{key}")).collect()
}
