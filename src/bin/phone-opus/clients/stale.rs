//! Entries of ours whose program is gone: an installation that was moved or removed.
//!
//! Owns: which entries those are, and what leads them to this program. May not know: who asks.
//!
//! Invariant: an entry is led elsewhere only where what it starts is still, word for word, what was written by us; of it nothing
//! changes but the program.

use std::path::{Path, PathBuf};

use clap::ValueEnum as _;
use phone_opus::internals::base::state_dir::StateDir;
use serde_json::Value;

use super::place::{Found, Where};
use super::plan::{self, After, Force, Record, runs_phone_opus};
use super::record::{self, Kept};
use super::table::{Client, ClientName, ENTRY, words};
use super::text::at;
use super::{Program, program};

/// An entry whose program is gone, and what it is to be.
pub(crate) struct Stale {
    client: &'static Client,
    path: PathBuf,
    /// The program that is gone.
    was: String,
    becomes: String,
    text: String,
    record: Option<Record>,
    found: Found,
    kept: Kept,
}

impl Stale {
    /// What would be done.
    pub(crate) fn text(&self) -> String {
        let Self { client, path, was, becomes, .. } = self;
        format!("{} starts {was}, which is gone: {} is to name {becomes}", client.title, path.display())
    }

    /// Does it.
    pub(crate) fn repoint(self, dir: &StateDir) -> Result<(), String> {
        let Self { text, record, found, kept, .. } = self;
        // The record goes first, as when it is installed.
        found.replace(Some(&text), || kept.write(dir, record.as_ref())).map_err(|error| format!("failed to {error}"))
    }
}

/// All of them that are remembered, and what is to be said of those that this program cannot lead anywhere.
pub(crate) fn find(dir: &StateDir) -> (Vec<Stale>, Vec<String>) {
    let (mut stale, mut said) = (Vec::new(), Vec::new());
    for (kept, record) in record::all(dir) {
        match one(dir, kept, &record) {
            Ok(found) => stale.extend(found),
            Err(why) => said.push(why),
        }
    }
    (stale, said)
}

fn one(dir: &StateDir, kept: Kept, record: &Record) -> Result<Option<Stale>, String> {
    let Ok(name) = ClientName::from_str(&record.client, false) else { return Ok(None) };
    let client = Client::named(name);
    // What cannot be found or read any more starts nothing.
    let Ok(found) = Found::find(&Where::User(PathBuf::from(&record.file))) else { return Ok(None) };
    if !Kept::of(dir, &client.word(), found.real()).is_same(&kept) {
        return Ok(None);
    }
    let Some(old) = found.text.clone() else { return Ok(None) };
    let Ok(said) = client.format.read(&old) else { return Ok(None) };
    let Some(current) = at(&said, &[client.servers, ENTRY]) else { return Ok(None) };
    let Some(was) = gone(current).filter(|_| is_as_written(client, record, current)) else { return Ok(None) };
    let path = found.path().to_owned();
    let Program(becomes) = program().map_err(|why| {
        format!("{} starts {was}, which is gone, and cannot be led to this program: failed to {why}", client.title)
    })?;
    let started = words(current);
    let mut entry = client.entry(&becomes, started.get(1..).unwrap_or_default());
    entry.retain(|(key, _)| client.starts().contains(&key.as_str()));
    let plan = plan::install(client, Some(&old), &entry, Some(record), Force::No)
        .map_err(|error| format!("{}: {}: failed to {error}", client.title, path.display()))?;
    let After::Text(text) = plan.after else { return Ok(None) };
    Ok(Some(Stale { client, path, was, becomes, text, record: plan.record, found, kept }))
}

/// The program an entry starts, where it is ours and is not there any more.
fn gone(entry: &Value) -> Option<String> {
    let named = *words(entry).first()?;
    let program = Path::new(named);
    (runs_phone_opus(entry) && program.is_absolute() && !program.exists()).then(|| named.to_owned())
}

/// Whether what an entry starts is what was written.
fn is_as_written(client: &Client, record: &Record, entry: &Value) -> bool {
    client.starts().iter().all(|key| {
        let written = record.units.iter().find_map(|unit| unit.wrote(client.servers, key));
        written.is_some_and(|written| entry.get(*key) == Some(written))
    })
}
