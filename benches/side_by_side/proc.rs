//! Proc: what the kernel says about a server and the processes it started.
//!
//! Owns: the readings of `/proc`.
//! May not know: what they are for.
//!
//! Threads and processes that are gone before a reading are missing from it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::server::Trouble;

/// Memory of a process tree, in MB of 1,000,000 bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Resident, shared pages counted in full in each process.
    pub(crate) rss: f64,
    /// Resident, shared pages divided among those who share them.
    pub(crate) pss: f64,
}

/// What a process tree has used since it began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    /// CPU time in ns.
    pub(crate) cpu_ns: u64,
    /// How often a thread went to sleep by itself: each is a wake-up to come.
    pub(crate) sleeps: u64,
}

/// Resident memory now.
pub(crate) fn memory(root: u32) -> Result<Memory, Trouble> {
    let mut memory = Memory { rss: 0.0, pss: 0.0 };
    for process in tree(root) {
        let text = read(&directory(process).join("smaps_rollup"))?;
        memory.rss += kilobytes(&text, "Rss:")?;
        memory.pss += kilobytes(&text, "Pss:")?;
    }
    Ok(memory)
}

/// The most that was ever resident, in MB; of each process by itself.
pub(crate) fn peak_rss(root: u32) -> Result<f64, Trouble> {
    tree(root).into_iter().map(|process| kilobytes(&read(&directory(process).join("status"))?, "VmHWM:")).sum()
}

/// CPU time and sleeps so far, of all threads.
pub(crate) fn used(root: u32) -> Result<Used, Trouble> {
    let mut used = Used { cpu_ns: 0, sleeps: 0 };
    for thread in tree(root).into_iter().flat_map(threads) {
        // A thread may end between the listing and the reading.
        let Ok(schedstat) = fs::read_to_string(thread.join("schedstat")) else { continue };
        let Ok(status) = fs::read_to_string(thread.join("status")) else { continue };
        used.cpu_ns += number(&schedstat).ok_or_else(|| missing("schedstat"))?;
        used.sleeps += field(&status, "voluntary_ctxt_switches:").ok_or_else(|| missing("switches"))?;
    }
    Ok(used)
}

/// The process and all its descendants.
fn tree(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(process) = found.get(next) {
        found.extend(children(*process));
        next += 1;
    }
    found
}

/// The processes it has started.
pub(crate) fn children(process: u32) -> Vec<u32> {
    threads(process)
        .into_iter()
        .filter_map(|thread| fs::read_to_string(thread.join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

fn threads(process: u32) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory(process).join("task")) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn directory(process: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{process}"))
}

fn read(path: &Path) -> Result<String, Trouble> {
    fs::read_to_string(path).map_err(|error| Trouble::Wrong(format!("{} is not readable: {error}", path.display())))
}

fn missing(what: &str) -> Trouble {
    Trouble::Wrong(format!("the kernel keeps no {what}"))
}

fn number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| number(line.strip_prefix(name)?))
}

fn kilobytes(text: &str, name: &str) -> Result<f64, Trouble> {
    field(text, name).map(|kib| kib as f64 * 1.024e-3).ok_or_else(|| missing(name))
}
