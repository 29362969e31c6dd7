//! Walks a tree and ranks its files by what a prompt's terms have in common with them.
//!
//! Owns: what is read, the bounds. May not know: how files are scored, how the result is shown.
//!
//! All files are read once, by one thread, and weighed by others ([`score`](super::score)); what is kept of each is a number for each
//! term. The best of them are read again for their passages. Memory is that of those numbers and of [`HELD_BATCHES`] batches of texts.

use std::io::Read as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use aho_corasick::AhoCorasick;

use super::passages::{Hit, MAX_HITS, Passage, passages};
use super::score::{Scale, Weighed, each_line, weigh};
use super::words::Asked;
use crate::checkout::plain;
use crate::checkout::walk::{Bound, Omitted, Walk, WalkEntry, Way};
use crate::places;

/// Files that are read again, for their passages decide among them.
const MAX_READ_AGAIN: usize = 40;
/// What the best passage counts next to the whole file.
const CLOSENESS: f64 = 0.05;
/// Files that are ranked in the result.
const MAX_RANKED: usize = 16;

/// Threads that weigh, at most: one more reads, and no machine reads faster than two weigh.
const MAX_WEIGHERS: usize = 2;
/// Bytes from which on texts that were read are handed on: threads that meet at every small file wait for each other.
const BATCH_BYTES: usize = 256 << 10;
/// Batches that wait for a weigher. With those in work and the one that is filled there are five, of 1.25 MB at most.
const HELD_BATCHES: usize = 2;

/// Files that hold every word and explain none.
const UNREAD_NAMES: &[&str] =
    &["Cargo.lock", "package-lock.json", "yarn.lock", "pnpm-lock.yaml", "poetry.lock", "uv.lock", "go.sum"];
const UNREAD_ENDINGS: &[&str] = &[".min.js", ".min.css", ".map", ".svg", ".lock", ".snap", ".ipynb"];
/// Directories of other people's code, where no ignore file names them.
const UNREAD_DIRECTORIES: &[&str] = &["node_modules", "__pycache__"];

/// Entries listed at most, over all directories: many times the files that are read.
const MAX_ENTRIES: usize = 400_000;

/// How much is read at most. Reaching a bound ends the walk, and the answer says so.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) files: usize,
    pub(super) bytes: u64,
    pub(super) file_bytes: u64,
    pub(super) time: Duration,
}

impl Default for Limits {
    /// A large project is read whole; a home directory is not. The time is well below what callers wait.
    fn default() -> Self {
        Self { files: 20_000, bytes: 256 << 20, file_bytes: 1 << 20, time: Duration::from_secs(20) }
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The best files, best first.
    pub(super) ranked: Vec<Ranked>,
    /// Files that have any term.
    pub(super) matching: usize,
    /// Files read.
    pub(super) files: usize,
    /// Bytes read.
    pub(super) bytes: u64,
    /// Ignore files that did not count.
    pub(super) ignores_left_out: usize,
    /// The bound that ended the walk.
    pub(super) stopped: Option<&'static str>,
}

/// One file that has terms.
#[derive(Debug)]
pub(super) struct Ranked {
    /// Relative to the root, with slashes.
    pub(super) path: String,
    /// Its best passages, best first.
    pub(super) passages: Vec<Passage>,
}

impl Ranked {
    /// The line that tells most.
    pub(super) fn line(&self) -> u64 {
        self.passages.first().map_or(1, |passage| passage.best)
    }
}

/// Searches everything below `root` that its ignore files do not exclude.
pub(super) fn search(root: &Path, asked: &Asked, limits: &Limits) -> Found {
    let mut found = Found::default();
    if asked.terms.is_empty() {
        return found;
    }
    let needles = asked.needles.iter().map(|needle| needle.text.as_str());
    // A needle is in lower case (ASCII), and so is what a term compares it with.
    let Ok(needles) = AhoCorasick::builder().ascii_case_insensitive(true).build(needles) else { return found };
    let started = Instant::now();
    let Some(walk) = walk(root, started + limits.time) else { return found };
    let from = walk.root().to_owned();
    let weigh =
        |batch: Batch| batch.into_iter().filter_map(|(path, bytes)| weigh(path, &bytes, asked, &needles)).collect();
    let mut files = weighed(weigh, |mut hand_on| read_all(walk, started, limits, &mut found, &mut hand_on));
    // Whoever was quicker, the sums are the same.
    files.sort_by(|one, other| one.path.cmp(&other.path));
    found.matching = files.len();
    found.ranked = ranked(&from, files, asked, &needles, found.files, limits.file_bytes);
    found
}

/// Paths and texts of some files.
type Batch = Vec<(String, Vec<u8>)>;

/// Reads what a walk meets, within the limits.
fn read_all(mut walk: Walk, started: Instant, limits: &Limits, found: &mut Found, hand_on: &mut dyn FnMut(Batch)) {
    let from = walk.root().to_owned();
    let (mut batch, mut held) = (Batch::new(), 0);
    for entry in walk.by_ref() {
        if !entry.kind.is_file() || is_unread(&entry) {
            continue;
        }
        found.stopped = if found.files >= limits.files {
            Some("number of files")
        } else if found.bytes >= limits.bytes {
            Some("amount of text")
        } else if started.elapsed() >= limits.time {
            Some("time")
        } else {
            None
        };
        if found.stopped.is_some() {
            break;
        }
        // What cannot be read is not there for us.
        let Some(bytes) = read(&entry.path, limits.file_bytes) else { continue };
        found.files += 1;
        found.bytes += bytes.len() as u64;
        // A binary file: what stands before its first NUL is no text either.
        if memchr::memchr(0, &bytes).is_none() {
            held += bytes.len();
            batch.push((entry.path.strip_prefix(&from).unwrap_or(&entry.path).to_string_lossy().into_owned(), bytes));
        }
        if held >= BATCH_BYTES {
            hand_on(std::mem::take(&mut batch));
            held = 0;
        }
    }
    hand_on(batch);
    found.ignores_left_out = walk.ignores_left_out();
    found.stopped = found.stopped.or(walk.ended().map(|bound| match bound {
        Bound::Entries => "number of files",
        Bound::Time => "time",
    }));
}

/// What becomes of what one thread hands on and others weigh. Where no thread can be had, the first does it all.
fn weighed<T: Send, W: Send>(weigh: impl Fn(T) -> Vec<W> + Sync, read: impl FnOnce(&mut dyn FnMut(T))) -> Vec<W> {
    let (sender, receiver) = sync_channel::<T>(HELD_BATCHES);
    // It goes with the last weigher, so that nobody hands on to no one.
    let receiver = Arc::new(Mutex::new(receiver));
    let weigh = &weigh;
    let work = |receiver: Arc<Mutex<Receiver<T>>>| {
        let next = move || receiver.lock().unwrap_or_else(PoisonError::into_inner).recv().ok();
        move || std::iter::from_fn(next).flat_map(weigh).collect::<Vec<W>>()
    };
    thread::scope(|scope| {
        let wanted = thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_WEIGHERS));
        let begin = |_| thread::Builder::new().spawn_scoped(scope, work(Arc::clone(&receiver))).ok();
        let threads: Vec<_> = (0..wanted).map_while(begin).collect();
        drop(receiver);
        let mut all = Vec::new();
        read(&mut |text| {
            if threads.is_empty() {
                all.extend(weigh(text));
            } else {
                // Nobody takes it where every weigher has panicked, and that is told below.
                let _ = sender.send(text);
            }
        });
        drop(sender);
        for thread in threads {
            all.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        all
    })
}

fn walk(root: &Path, until: Instant) -> Option<Walk> {
    let way = Way {
        // Ignore files count without a repository as well; the user's own are not part of the tree.
        left_out: Omitted::Named,
        skips_hidden: true,
        one_file_system: true,
        passes_over: |_, entry| {
            places::is_secret(&entry.path)
                || entry.kind.is_dir() && (is_foreign(&entry.path) || places::is_state(&entry.path))
        },
        entries: MAX_ENTRIES,
        until,
    };
    Walk::new(root, way)
}

/// Whether it is a directory of installed or built things.
fn is_foreign(path: &Path) -> bool {
    path.file_name().is_some_and(|name| UNREAD_DIRECTORIES.iter().any(|unread| name == *unread))
        // What build tools put into directories that are not to be kept.
        || path.join("CACHEDIR.TAG").exists()
}

fn is_unread(entry: &WalkEntry) -> bool {
    let name = entry.path.file_name().unwrap_or_default().to_string_lossy();
    UNREAD_NAMES.contains(&name.as_ref()) || UNREAD_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// A file's text; none of one that is larger, or that is no plain file by now.
fn read(path: &Path, most: u64) -> Option<Vec<u8>> {
    let (file, found) = plain::open(path).ok()??;
    if found.len() > most {
        return None;
    }
    // With room for all of it and a byte more, its end is found by the second read.
    let mut bytes = Vec::with_capacity(usize::try_from(found.len()).ok()? + 1);
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The best files, with their passages: those that may come first are read again.
fn ranked(
    from: &Path,
    files: Vec<Weighed>,
    asked: &Asked,
    needles: &AhoCorasick,
    read_files: usize,
    most: u64,
) -> Vec<Ranked> {
    let scale = Scale::new(&files, asked, read_files);
    let mut scored: Vec<(f64, Weighed)> = files.into_iter().map(|file| (scale.score(&file), file)).collect();
    let order = |one: &(f64, Weighed), other: &(f64, Weighed)| {
        other.0.total_cmp(&one.0).then_with(|| Scale::before(&one.1, &other.1))
    };
    scored.sort_by(order);
    scored.truncate(MAX_READ_AGAIN);
    let mut again: Vec<((f64, Weighed), Vec<Passage>)> = scored
        .into_iter()
        .map(|(score, file)| {
            let bytes = read(&from.join(&file.path), most).unwrap_or_default();
            let mut hits = Vec::new();
            each_line(&file.path, &bytes, asked, needles, |line, found| {
                if hits.len() < MAX_HITS {
                    hits.push(Hit::new(line.number, found));
                }
            });
            if hits.is_empty() {
                hits.push(Hit::beginning());
            }
            let passages = passages(&hits, &scale.worth);
            let best = passages.first().map_or(0.0, |passage| passage.score);
            ((score + CLOSENESS * best * scale.factor(&file), file), passages)
        })
        .collect();
    again.sort_by(|one, other| order(&one.0, &other.0));
    again.truncate(MAX_RANKED);
    again.into_iter().map(|((_, file), passages)| Ranked { path: file.path, passages }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_weighed_once_whoever_does_it() {
        for count in [0, 1, 2, 500] {
            let mut found =
                weighed(|number: u32| vec![number; number as usize % 3], |hand_on| (0..count).for_each(hand_on));
            found.sort_unstable();
            assert_eq!(found, (0..count).flat_map(|number| vec![number; number as usize % 3]).collect::<Vec<_>>());
        }
    }
}
