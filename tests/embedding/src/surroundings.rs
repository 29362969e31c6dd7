//! What a process has that a library could leave behind.
//!
//! Owns: the look at it. May not know: phone-opus. Where there is no `/proc`, only temporary files, directory and environment are
//! looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use crate::Problem;

pub struct Surroundings {
    /// Names of what there is, by kind.
    there: BTreeMap<&'static str, BTreeSet<String>>,
    /// Compared, and never shown.
    environment: Vec<(OsString, OsString)>,
}

impl Surroundings {
    pub fn now() -> Result<Self, Problem> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        // Blocked, ignored and caught.
        let masks = ["SigBlk", "SigIgn", "SigCgt"];
        let signals = status.lines().filter(|line| masks.iter().any(|mask| line.starts_with(mask))).map(str::to_owned);
        let there = [
            ("threads", names_in("/proc/self/task")),
            ("descriptors", descriptors()),
            ("children", children_of(std::process::id())),
            ("temporary files", names_in(std::env::temp_dir())),
            ("signals", signals.collect()),
            ("directory", BTreeSet::from([std::env::current_dir()?.display().to_string()])),
        ];
        Ok(Self { there: there.into(), environment: std::env::vars_os().collect() })
    }

    /// The same, but for one kind.
    pub fn without(mut self, kind: &str) -> Self {
        self.there.remove(kind);
        self
    }

    /// Says what differs.
    pub fn same_as(&self, later: &Self) -> Result<(), Problem> {
        let mut differs: Vec<String> = Vec::new();
        for (kind, before) in &self.there {
            let after = &later.there[kind];
            if before != after {
                let gone: Vec<_> = before.difference(after).collect();
                let new: Vec<_> = after.difference(before).collect();
                differs.push(format!("{kind}: gone {gone:?}, new {new:?}"));
            }
        }
        if self.environment != later.environment {
            differs.push("the environment".to_owned());
        }
        if differs.is_empty() { Ok(()) } else { Err(format!("not as before: {}", differs.join("; ")).into()) }
    }
}

fn names_in(folder: impl AsRef<Path>) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Number and target of each, but that of the look itself.
fn descriptors() -> BTreeSet<String> {
    let entries: Vec<_> = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten().collect();
    let shown = entries.iter().filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        (!target.ends_with("fd")).then(|| format!("{} {}", entry.file_name().to_string_lossy(), target.display()))
    });
    shown.collect()
}

/// Every process whose parent this is, also those that nobody has reaped.
fn children_of(parent: u32) -> BTreeSet<String> {
    let is_child = |stat: &str| {
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        after_name.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    let stats = names_in("/proc").into_iter().filter_map(|name| fs::read_to_string(format!("/proc/{name}/stat")).ok());
    stats.filter(|stat| is_child(stat)).map(|stat| stat.trim().chars().take(60).collect()).collect()
}
