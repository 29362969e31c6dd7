//! Walks a tree and ranks its files by what a prompt's terms have in common with them.
//!
//! Owns: what is read, the bounds, the score. May not know how the result is shown.
//!
//! A term is worth more the fewer files have it. A file is as good as its best passage, a passage as good as the
//! different terms that stand close together in it, and definitions and headings count more than uses.

use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use aho_corasick::AhoCorasick;

use super::words::Term;
use crate::checkout::plain;
use crate::checkout::walk::{Bound, Omitted, Walk, WalkEntry, Way};
use crate::places;

/// Matching lines kept of one file; the first ones, which in most files are the telling ones.
const MAX_HITS: usize = 400;
/// Lines a passage spans at most: what fits on a screen next to others.
pub(super) const PASSAGE_LINES: u64 = 12;
/// Passages shown of one file.
const MAX_PASSAGES: usize = 2;
/// Files that are ranked in the result.
const MAX_RANKED: usize = 16;

/// Files that hold every word and explain none.
const UNREAD_NAMES: &[&str] =
    &["Cargo.lock", "package-lock.json", "yarn.lock", "pnpm-lock.yaml", "poetry.lock", "uv.lock", "go.sum"];
const UNREAD_ENDINGS: &[&str] = &[".min.js", ".min.css", ".map", ".svg", ".lock", ".snap", ".ipynb"];
/// Directories of other people's code, where no ignore file names them.
const UNREAD_DIRECTORIES: &[&str] = &["node_modules", "__pycache__"];

/// Entries listed at most, over all directories: many times the files that are read.
const MAX_ENTRIES: usize = 400_000;

/// What some editors put before a text in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

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
    /// The terms it has anywhere, as bits of their position.
    pub(super) terms: u64,
    score: f64,
}

/// Some lines close together.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Passage {
    /// Its first line, from 1.
    pub(super) from: u64,
    /// Its last line with a term.
    pub(super) to: u64,
    /// The line that tells most.
    pub(super) best: u64,
    /// Every line of it that has a term.
    pub(super) lines: Vec<u64>,
    /// The terms it has.
    pub(super) terms: u64,
    score: f64,
}

/// One line that has terms.
#[derive(Debug, Clone, Copy)]
struct Hit {
    line: u64,
    terms: u64,
    factor: f64,
}

struct Candidate {
    path: String,
    hits: Vec<Hit>,
    terms: u64,
    /// Terms in its name, and in the names of its directories.
    named: u64,
    placed: u64,
}

/// Searches everything below `root` that its ignore files do not exclude.
pub(super) fn search(root: &Path, terms: &[Term], limits: &Limits) -> Found {
    let mut found = Found::default();
    if terms.is_empty() {
        return found;
    }
    let needles = terms.iter().map(|term| term.needle.as_str());
    // A needle is in lower case (ASCII), and so is what a term compares it with.
    let Ok(needles) = AhoCorasick::builder().ascii_case_insensitive(true).build(needles) else { return found };
    let started = Instant::now();
    let mut candidates = Vec::new();
    let Some(mut walk) = walk(root, started + limits.time) else { return found };
    let from = walk.root().to_owned();
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
        let path = entry.path.strip_prefix(&from).unwrap_or(&entry.path).to_string_lossy().into_owned();
        candidates.extend(candidate(path, &bytes, terms, &needles));
    }
    found.ignores_left_out = walk.ignores_left_out();
    found.stopped = found.stopped.or(walk.ended().map(|bound| match bound {
        Bound::Entries => "number of files",
        Bound::Time => "time",
    }));
    found.matching = candidates.len();
    found.ranked = ranked(candidates, terms, found.files);
    found
}

fn walk(root: &Path, until: Instant) -> Option<Walk> {
    let way = Way {
        // Ignore files count without a repository as well; the user's own are not part of the tree.
        left_out: Omitted::Named,
        skips_hidden: true,
        one_file_system: true,
        passes_over: |_, path| is_foreign(path) || places::is_secret(path) || places::is_state(path),
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
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn candidate(path: String, bytes: &[u8], terms: &[Term], needles: &AhoCorasick) -> Option<Candidate> {
    // A binary file: what stands before its first NUL is no text either.
    if memchr::memchr(0, bytes).is_some() {
        return None;
    }
    let prose = is_prose(&path);
    let tests_from = tests_from(bytes);
    let mut hits = Vec::new();
    for (line, text) in lines_with(needles, bytes) {
        let text = String::from_utf8_lossy(text);
        let lower = text.to_ascii_lowercase();
        let terms = bits(terms, |term| term.is_in(&text, &lower));
        if terms != 0 {
            let factor = line_factor(&text, prose) * if line >= tests_from { 0.6 } else { 1.0 };
            hits.push(Hit { line, terms, factor });
        }
        if hits.len() >= MAX_HITS {
            break;
        }
    }
    let lower = path.to_ascii_lowercase();
    let (directories, name) = lower.rsplit_once('/').unwrap_or(("", &lower));
    let named = bits(terms, |term| if term.is_path { lower.ends_with(&term.needle) } else { term.is_in(name, name) });
    let placed = bits(terms, |term| !term.is_path && term.is_in(directories, directories));
    let is_named_path = terms.iter().enumerate().any(|(bit, term)| term.is_path && named & (1 << bit) != 0);
    if hits.is_empty() && is_named_path && !bytes.is_empty() {
        // Somebody asked for this very file; its beginning is the best there is to show.
        hits.push(Hit { line: 1, terms: named, factor: 1.0 });
    }
    let all = hits.iter().fold(0, |all, hit| all | hit.terms) | named & path_bits(terms);
    (!hits.is_empty()).then_some(Candidate { path, hits, terms: all, named, placed })
}

/// The lines that hold a needle, with their numbers from 1.
fn lines_with<'a>(needles: &'a AhoCorasick, bytes: &'a [u8]) -> impl Iterator<Item = (u64, &'a [u8])> {
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
    let (mut rest, mut line) = (bytes, 1);
    std::iter::from_fn(move || {
        let found = needles.find(rest)?;
        let begins = memchr::memrchr(b'\n', &rest[..found.start()]).map_or(0, |at| at + 1);
        line += memchr::memchr_iter(b'\n', &rest[..begins]).count() as u64;
        let ends = memchr::memchr(b'\n', &rest[found.end()..]).map_or(rest.len(), |at| found.end() + at);
        let hit = (line, &rest[begins..ends]);
        rest = rest.get(ends + 1..).unwrap_or_default();
        line += 1;
        Some(hit)
    })
}

fn bits(terms: &[Term], has: impl Fn(&Term) -> bool) -> u64 {
    terms.iter().enumerate().filter(|(_, term)| has(term)).fold(0, |bits, (bit, _)| bits | 1 << bit)
}

fn path_bits(terms: &[Term]) -> u64 {
    bits(terms, |term| term.is_path)
}

fn is_prose(path: &str) -> bool {
    [".md", ".markdown", ".txt", ".rst", ".adoc"].iter().any(|ending| path.ends_with(ending))
}

/// The line from which on a Rust file holds its tests.
fn tests_from(bytes: &[u8]) -> u64 {
    memchr::memmem::find(bytes, b"\n#[cfg(test)]\nmod tests")
        .map_or(u64::MAX, |at| 2 + memchr::memchr_iter(b'\n', &bytes[..at]).count() as u64)
}

/// How much a line tells, by what it is.
fn line_factor(line: &str, prose: bool) -> f64 {
    let line = line.trim_start();
    if prose {
        return if line.starts_with('#') { 1.5 } else { 1.0 };
    }
    if is_definition(line) {
        return 1.6;
    }
    let comment = ["//!", "///", "/**", "* ", "\"\"\"", "# ", "// "].iter().any(|mark| line.starts_with(mark));
    if comment {
        1.2
    } else if ["use ", "import ", "from ", "#include"].iter().any(|mark| line.starts_with(mark)) {
        0.5
    } else {
        1.0
    }
}

/// Whether a line of code gives something its name.
pub(super) fn is_definition(line: &str) -> bool {
    const MODIFIERS: &[&str] = &[
        "pub",
        "async",
        "unsafe",
        "export",
        "default",
        "public",
        "private",
        "protected",
        "internal",
        "static",
        "final",
        "abstract",
        "override",
        "inline",
        "extern",
        "open",
        "sealed",
        "data",
        "declare",
    ];
    const KEYWORDS: &[&str] = &[
        "fn",
        "struct",
        "enum",
        "trait",
        "impl",
        "mod",
        "macro_rules!",
        "const",
        "type",
        "union",
        "class",
        "def",
        "function",
        "interface",
        "func",
        "module",
        "namespace",
        "object",
        "record",
        "protocol",
        "fun",
        "val",
    ];
    let mut words = line.split_whitespace().take(6);
    let first = words.find(|word| {
        let word = word.split('(').next().unwrap_or(word);
        !MODIFIERS.contains(&word)
    });
    first.is_some_and(|word| KEYWORDS.contains(&word) || word.starts_with("impl<")) && words.next().is_some()
}

/// Files by kind: what explains, what exercises, what only repeats.
fn path_factor(path: &str) -> f64 {
    let lower = path.to_ascii_lowercase();
    let inside = |names: &[&str]| lower.split('/').any(|part| names.contains(&part));
    let ends = |endings: &[&str]| endings.iter().any(|ending| lower.ends_with(ending));
    if inside(&["vendor", "third_party", "dist", "generated", "build", "target"]) {
        0.3
    } else if lower.contains("changelog") || ends(&[".json", ".csv", ".log", ".xml"]) {
        0.5
    } else if inside(&["test", "tests", "benches", "examples", "fixtures", "testdata", "__tests__", "spec"])
        || ends(&["_test.go", ".test.ts", ".test.js", ".spec.ts", "_test.py", "_test.rs"])
    {
        0.7
    } else if is_prose(&lower) {
        0.85
    } else {
        1.0
    }
}

fn ranked(candidates: Vec<Candidate>, terms: &[Term], files: usize) -> Vec<Ranked> {
    let worth = worth(&candidates, terms, files);
    let total: f64 = worth.iter().sum();
    let sum = |bits: u64| -> f64 { each(bits).map(|bit| worth[bit]).sum() };
    let mut ranked: Vec<Ranked> = candidates
        .into_iter()
        .map(|file| {
            let passages = passages(&file.hits, &worth);
            let best = passages.first().map_or(0.0, |passage| passage.score);
            let spread: f64 = each(file.terms)
                .map(|bit| {
                    let lines = file.hits.iter().filter(|hit| hit.terms & (1 << bit) != 0).count().min(6);
                    worth[bit] * (1.0 - 0.6_f64.powi(i32::try_from(lines).unwrap_or(6)))
                })
                .sum();
            let named_paths = file.named & path_bits(terms);
            let name = 0.8 * sum(file.named) + 0.3 * sum(file.placed & !file.named) + 4.0 * sum(named_paths);
            let coverage = sum(file.terms | file.named) / total.max(f64::MIN_POSITIVE);
            let score = (best + 0.5 * spread + name) * (0.3 + 0.7 * coverage) * path_factor(&file.path);
            Ranked { path: file.path, passages, terms: file.terms, score }
        })
        .collect();
    ranked.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.path.cmp(&b.path)));
    ranked.truncate(MAX_RANKED);
    ranked
}

/// What each term is worth: by how it was written, and by how few files have it.
#[expect(clippy::cast_precision_loss, reason = "counts of files are far below 2^52")]
fn worth(candidates: &[Candidate], terms: &[Term], files: usize) -> Vec<f64> {
    terms
        .iter()
        .enumerate()
        .map(|(bit, term)| {
            let having = candidates.iter().filter(|file| file.terms & (1 << bit) != 0).count();
            term.weight * logarithm(1.0 + files as f64 / (having as f64 + 0.5))
        })
        .collect()
}

/// The natural logarithm of a number from 1 on, to nine digits. The one of the system is in a library of its own, which every
/// server and every runner of this program would load at its start for this one use.
fn logarithm(number: f64) -> f64 {
    let (mut rest, mut doublings) = (number, 0_u32);
    while rest > std::f64::consts::SQRT_2 && rest.is_finite() {
        rest /= 2.0;
        doublings += 1;
    }
    let ratio = (rest - 1.0) / (rest + 1.0);
    let series = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0].iter().rev().fold(0.0, |sum, odd| sum * ratio * ratio + 1.0 / odd);
    f64::from(doublings) * std::f64::consts::LN_2 + 2.0 * ratio * series
}

/// The positions of the set bits.
pub(super) fn each(bits: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |bit| bits & (1 << bit) != 0)
}

/// The best passages that do not overlap.
fn passages(hits: &[Hit], worth: &[f64]) -> Vec<Passage> {
    let mut all: Vec<Passage> = (0..hits.len()).map(|first| passage(&hits[first..], worth)).collect();
    all.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.from.cmp(&b.from)));
    let mut kept: Vec<Passage> = Vec::new();
    for passage in all {
        let good = kept.first().is_none_or(|best| passage.score > 0.5 * best.score);
        let apart = kept.iter().all(|other| passage.from > other.to + 4 || passage.to + 4 < other.from);
        if good && apart {
            kept.push(passage);
        }
        if kept.len() == MAX_PASSAGES {
            break;
        }
    }
    kept
}

/// The passage that begins with the first of these hits.
fn passage(hits: &[Hit], worth: &[f64]) -> Passage {
    let from = hits.first().map_or(1, |hit| hit.line);
    let hits: Vec<&Hit> = hits.iter().take_while(|hit| hit.line < from + PASSAGE_LINES).collect();
    let terms = hits.iter().fold(0, |terms, hit| terms | hit.terms);
    // Each term counts once, where it stands best.
    let sum: f64 = each(terms)
        .map(|bit| {
            let factors = hits.iter().filter(|hit| hit.terms & (1 << bit) != 0).map(|hit| hit.factor);
            worth[bit] * factors.fold(0.0, f64::max)
        })
        .sum();
    let together = hits.iter().map(|hit| hit.terms.count_ones()).max().unwrap_or(1);
    let line_score = |hit: &Hit| each(hit.terms).map(|bit| worth[bit]).sum::<f64>() * hit.factor;
    let mut best = (from, f64::MIN);
    for hit in &hits {
        let score = line_score(hit);
        if score > best.1 {
            best = (hit.line, score);
        }
    }
    // A passage that begins with its best lines is preferred to one that ends with them.
    let spread = hits.last().map_or(0, |hit| hit.line - from);
    let tightness = if spread < PASSAGE_LINES / 2 { 1.05 } else { 1.0 };
    Passage {
        from,
        to: hits.last().map_or(from, |hit| hit.line),
        best: best.0,
        lines: hits.iter().map(|hit| hit.line).collect(),
        terms,
        score: sum * (1.0 + 0.25 * f64::from(together - 1)) * tightness,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(needles: &[&str], text: &[u8]) -> Vec<(u64, String)> {
        let needles = AhoCorasick::builder().ascii_case_insensitive(true).build(needles).expect("few words");
        lines_with(&needles, text).map(|(line, text)| (line, String::from_utf8_lossy(text).into_owned())).collect()
    }

    #[test]
    fn the_logarithm_is_the_one_of_the_library() {
        for number in [1.0, 1.1, std::f64::consts::SQRT_2, 1.5, 2.0, 3.0, 40.0, 777.5, 20_001.0, 1e15] {
            assert!((logarithm(number) - f64::ln(number)).abs() < 1e-8, "{number}: {}", logarithm(number));
        }
    }

    #[test]
    fn each_line_with_a_needle_is_found_once_with_its_number() {
        let text = b"\xEF\xBB\xBFthe Worker, a worker\n\nnothing\r\nRESTART a worker\r\n\nlast restart";
        let lines = [(1, "the Worker, a worker"), (4, "RESTART a worker\r"), (6, "last restart")];
        assert_eq!(found(&["worker", "restart", "art"], text), lines.map(|(line, text)| (line, text.to_owned())));
        assert_eq!(found(&["worker"], b"worker"), [(1, "worker".to_owned())]);
        assert_eq!(found(&["worker"], b"\nworker\n\n"), [(2, "worker".to_owned())]);
        assert!(found(&["worker"], b"").is_empty());
        assert!(found(&["worker"], b"work\ner").is_empty());
    }
}
