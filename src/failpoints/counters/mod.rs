//! Counters: how often each rule of a plan was met and has fired.
//!
//! Owns: the counts, in memory or in a file that several processes share. May not know: what a rule says, what happens
//! when one fires.
//!
//! A host, its workers and its runners follow one plan, and "the third time" is the third time in all of them; a rule
//! that killed a worker must be spent for the next one. So the file is raised before the action is carried out.
//!
//! Invariants: (1) with a file, each count is raised under the file's lock, so no two processes see the same one; (2) a
//! file that is missing, torn, or of another plan is replaced by what this process knows, and no count goes back; (3) a
//! file that cannot be used costs the sharing, never the counting: from then on this process counts alone, and says so
//! once.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::plan::{PlanError, PlanPlace, PlanProblem, digest};
use crate::base::state_dir::{PRIVATE_FILE, open_private};

/// The file in which a process counts together with the one that started it.
pub const FAULT_COUNTERS: &str = "PHONE_OPUS_FAULT_COUNTERS";

/// How long the lock is waited for. It is held for some microseconds; whoever holds it this long was stopped, and then
/// counting alone is better than standing still with it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes looked at of a counters file, well above the size of one with every rule.
const MOST_BYTES: u64 = 16 * 1024;

/// Where counts are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultCounters {
    /// In this process.
    Memory,
    /// In this file, shared by all processes that name it. It is made if it is not there, and begun anew if it belongs
    /// to another plan.
    File(PathBuf),
}

/// A counters file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("use {} to count faults: {reason}", path.display())]
#[non_exhaustive]
pub struct CountersError {
    /// The file.
    pub path: PathBuf,
    /// The system's words.
    pub reason: String,
}

impl CountersError {
    fn new(path: &Path, error: &io::Error) -> Self {
        Self { path: path.to_owned(), reason: error.to_string() }
    }
}

impl FaultCounters {
    /// The file this process is told of, or memory.
    ///
    /// # Errors
    ///
    /// The path is not absolute: it would name another file in each directory.
    pub fn from_environment(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, PlanError> {
        let Some(path) = lookup(FAULT_COUNTERS).filter(|path| !path.is_empty()).map(PathBuf::from) else {
            return Ok(Self::Memory);
        };
        if path.is_absolute() {
            return Ok(Self::File(path));
        }
        Err(PlanError {
            problems: vec![PlanProblem {
                place: PlanPlace { variable: Some(FAULT_COUNTERS), rule: None },
                text: path.display().to_string(),
                wrong: "is not an absolute path".to_owned(),
                accepted: "the absolute path of a file of our own".to_owned(),
            }],
        })
    }

    /// A new file in this directory, which no other process knows yet.
    ///
    /// # Errors
    ///
    /// The system refused.
    pub fn new_file_in(dir: &Path) -> Result<Self, CountersError> {
        let path = dir.join(format!("faults-{}.counts", uuid::Uuid::new_v4()));
        File::options()
            .write(true)
            .create_new(true)
            .mode(PRIVATE_FILE)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(|error| CountersError::new(&path, &error))?;
        Ok(Self::File(path))
    }
}

/// How often a rule was met, and how often it fired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) hits: u64,
    pub(super) fired: u64,
}

#[derive(Debug, Default)]
struct Cell {
    hits: AtomicU64,
    fired: AtomicU64,
}

/// The counts of one plan.
#[derive(Debug)]
pub(super) struct Tally {
    /// With a file: what this process last saw in it.
    memory: Vec<Cell>,
    file: Option<SharedFile>,
}

#[derive(Debug)]
struct SharedFile {
    path: PathBuf,
    plan: u64,
    given_up: AtomicBool,
}

impl Tally {
    pub(super) fn new(counters: FaultCounters, plan: u64, rules: usize) -> Result<Self, CountersError> {
        let memory = (0..rules).map(|_| Cell::default()).collect();
        let file = match counters {
            FaultCounters::Memory => None,
            FaultCounters::File(path) => {
                let file = SharedFile { path, plan, given_up: AtomicBool::new(false) };
                file.locked().map_err(|error| CountersError::new(&file.path, &error))?;
                Some(file)
            }
        };
        Ok(Self { memory, file })
    }

    /// The file others can share.
    pub(super) fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }

    /// Raises the rules whose bits are set in `met`, and says which fires: the first that is `due` at its new count.
    pub(super) fn raise(&self, met: u64, due: impl Fn(usize, u64) -> bool) -> Option<usize> {
        if let Some(file) = self.file_in_use() {
            match self.raise_in(file, met, &due) {
                Ok(fires) => return fires,
                Err(error) => file.give_up(&error),
            }
        }
        let mut fires = None;
        for index in (0..self.memory.len()).filter(|index| met >> index & 1 == 1) {
            let hits = self.memory[index].hits.fetch_add(1, Ordering::Relaxed) + 1;
            if fires.is_none() && due(index, hits) {
                self.memory[index].fired.fetch_add(1, Ordering::Relaxed);
                fires = Some(index);
            }
        }
        fires
    }

    /// How often this process knows the rule to have been met, without a look at the file. It may have been more often.
    pub(super) fn hits_known(&self, index: usize) -> u64 {
        self.memory[index].hits.load(Ordering::Relaxed)
    }

    /// The counts as they are now, in the order of the rules.
    pub(super) fn counts(&self) -> Vec<Count> {
        if let Some(file) = self.file_in_use() {
            match file.locked().and_then(|held| held.read(file.plan, self.memory.len())) {
                Ok(read) => return self.merged(read),
                Err(error) => file.give_up(&error),
            }
        }
        self.known()
    }

    fn file_in_use(&self) -> Option<&SharedFile> {
        self.file.as_ref().filter(|file| !file.given_up.load(Ordering::Relaxed))
    }

    fn raise_in(&self, file: &SharedFile, met: u64, due: &impl Fn(usize, u64) -> bool) -> io::Result<Option<usize>> {
        let held = file.locked()?;
        let mut counts = self.merged(held.read(file.plan, self.memory.len())?);
        let mut fires = None;
        for (index, count) in counts.iter_mut().enumerate().filter(|(index, _)| met >> index & 1 == 1) {
            count.hits = count.hits.saturating_add(1);
            if fires.is_none() && due(index, count.hits) {
                count.fired = count.fired.saturating_add(1);
                fires = Some(index);
            }
        }
        held.write(file.plan, &counts)?;
        // Still under the lock, so that an older look cannot overwrite a newer one.
        for (cell, count) in self.memory.iter().zip(&counts) {
            cell.hits.store(count.hits, Ordering::Relaxed);
            cell.fired.store(count.fired, Ordering::Relaxed);
        }
        Ok(fires)
    }

    /// What the file says, where it does not say less than this process knows: it may have been lost and begun anew by
    /// a process that knew nothing, and what is spent stays spent.
    fn merged(&self, read: Option<Vec<Count>>) -> Vec<Count> {
        let mut counts = self.known();
        for (known, read) in counts.iter_mut().zip(read.unwrap_or_default()) {
            *known = Count { hits: known.hits.max(read.hits), fired: known.fired.max(read.fired) };
        }
        counts
    }

    fn known(&self) -> Vec<Count> {
        let load =
            |cell: &Cell| Count { hits: cell.hits.load(Ordering::Relaxed), fired: cell.fired.load(Ordering::Relaxed) };
        self.memory.iter().map(load).collect()
    }
}

impl SharedFile {
    /// Opens the file anew each time: its lock then excludes other threads of this process as well, and a file that was
    /// removed is made again.
    fn locked(&self) -> io::Result<Locked> {
        let until = Instant::now() + PATIENCE;
        loop {
            let file = open_private(&self.path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let locked = Locked(file);
                    // It may have been removed, and made anew by somebody else, between opening and locking it.
                    if locked.is_still_at(&self.path) {
                        return Ok(locked);
                    }
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(Duration::from_micros(200)),
                Err(error) => return Err(error.into()),
            }
            if Instant::now() >= until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "somebody keeps it locked"));
            }
        }
    }

    fn give_up(&self, error: &io::Error) {
        if !self.given_up.swap(true, Ordering::Relaxed) {
            let path = self.path.display();
            tracing::warn!(%path, %error, "faults are no longer counted together with other processes");
        }
    }
}

/// The file while this thread has its lock.
struct Locked(File);

/// Unlocking takes the lock from copies of the descriptor too, which a program that is being started holds for a moment.
impl Drop for Locked {
    fn drop(&mut self) {
        // Closing does it as well, a little later.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

impl Locked {
    fn is_still_at(&self, path: &Path) -> bool {
        match (std::fs::metadata(path), self.0.metadata()) {
            (Ok(there), Ok(ours)) => (there.dev(), there.ino()) == (ours.dev(), ours.ino()),
            _ => false,
        }
    }

    /// The counts of this plan; `None` when the file holds none that are whole.
    fn read(&self, plan: u64, rules: usize) -> io::Result<Option<Vec<Count>>> {
        let mut bytes = Vec::new();
        (&self.0).take(MOST_BYTES).read_to_end(&mut bytes)?;
        Ok(decoded(&bytes, plan).filter(|counts| counts.len() == rules))
    }

    fn write(&self, plan: u64, counts: &[Count]) -> io::Result<()> {
        let text = encoded(plan, counts);
        self.0.write_all_at(text.as_bytes(), 0)?;
        self.0.set_len(text.len() as u64)
    }
}

/// The first word of a counters file.
const MAGIC: &str = "phone-opus-faults-1";

/// Lines for people to read. The numbers have one width, so that a file is overwritten in place by one write; the last
/// line tells a whole file from one that was half overwritten.
fn encoded(plan: u64, counts: &[Count]) -> String {
    let mut text = format!("{MAGIC} {plan:016x}\n");
    for count in counts {
        text.push_str(&format!("{:020} {:020}\n", count.hits, count.fired));
    }
    let sum = digest(text.as_bytes());
    text.push_str(&format!("{sum:016x}\n"));
    text
}

fn decoded(bytes: &[u8], plan: u64) -> Option<Vec<Count>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let body = text.strip_suffix('\n')?;
    let (body, sum) = body.rsplit_once('\n')?;
    if u64::from_str_radix(sum, 16).ok()? != digest(&bytes[..=body.len()]) {
        return None;
    }
    let mut lines = body.lines();
    if lines.next()?.strip_prefix(MAGIC)?.trim_start() != format!("{plan:016x}") {
        return None;
    }
    let count = |line: &str| {
        let (hits, fired) = line.split_once(' ')?;
        Some(Count { hits: hits.parse().ok()?, fired: fired.parse().ok()? })
    };
    lines.map(count).collect()
}

#[cfg(test)]
mod tests;
