//! Whether the agent `offline` leads to the file that answers: sixty questions over this repository, a small project that the tests
//! carry, and two packages by others. How long a question takes in a tree of 5,000 files.
//!
//! Of each third question nothing is told but how many were answered, so that the ranking cannot be fitted to it. Figures are for
//! reading; nothing here passes or fails.
//!
//! ```sh
//! cargo bench --bench offline                            # fetches the two packages, some megabytes the first time
//! cargo bench --bench offline -- --misses                # and what was not answered by the first place
//! cargo bench --bench offline -- --only time --files 5000
//! ```

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what a bench tells")]

#[path = "offline/packages.rs"]
mod packages;
#[path = "offline/questions.rs"]
mod questions;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use phone_opus::internals::agents::offline;
use questions::{About, Question};

/// Anything that went wrong; it ends the run with its words.
type Trouble = Box<dyn Error>;

/// How often each question is asked when time is taken.
const TIMES: usize = 3;

/// Where the questions themselves are, which would be found first.
const OURSELVES: &str = "benches/offline";

struct Options {
    only: Option<String>,
    misses: bool,
    /// Files of the tree in which time is taken.
    files: usize,
}

impl Options {
    fn read() -> Self {
        let mut options = Self { only: None, misses: false, files: 5_000 };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--only" => options.only = words.next(),
                "--misses" => options.misses = true,
                "--files" => options.files = words.next().and_then(|count| count.parse().ok()).unwrap_or(options.files),
                _ => {}
            }
        }
        options
    }

    fn wants(&self, table: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == table)
    }
}

/// Answers of some questions.
#[derive(Default)]
struct Score {
    asked: usize,
    first: usize,
    five: usize,
}

impl Score {
    fn count(&mut self, place: Option<usize>) {
        self.asked += 1;
        self.first += usize::from(place == Some(0));
        self.five += usize::from(place.is_some_and(|place| place < 5));
    }

    fn add(&mut self, other: &Self) {
        self.asked += other.asked;
        self.first += other.first;
        self.five += other.five;
    }

    fn told(&self) -> String {
        format!("{:>3} of {:>2} {:>3} of {:>2}", self.first, self.asked, self.five, self.asked)
    }
}

fn name(about: About) -> &'static str {
    match about {
        About::Here => "this repository",
        About::Larder => "larder",
        About::Fd => "fd-find",
        About::Ssh => "libssh2-sys",
    }
}

/// Where everything is that is asked about; packages only if they can be fetched.
fn trees(scratch: &Path) -> BTreeMap<About, PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut trees =
        BTreeMap::from([(About::Here, here.to_owned()), (About::Larder, here.join("tests/offline/larder"))]);
    match packages::fetch(scratch) {
        Ok(found) => trees.extend([About::Fd, About::Ssh].map(|about| (about, found[name(about)].clone()))),
        Err(why) => eprintln!("SKIPPED: the questions about fd-find and libssh2-sys, which cannot be fetched: {why}"),
    }
    trees
}

/// Which place is the first right one, and what came before it.
fn asked(root: &Path, question: &Question) -> (Option<usize>, Vec<(String, u64)>) {
    let mut leads = offline::leads(root, question.asked);
    leads.retain(|(path, _)| !path.starts_with(OURSELVES));
    (leads.iter().position(|(path, _)| question.right.contains(&&path[..])), leads)
}

fn answers(options: &Options, trees: &BTreeMap<About, PathBuf>) {
    let mut scores: BTreeMap<About, [Score; 2]> = BTreeMap::new();
    for (number, question) in questions::all() {
        let Some(root) = trees.get(&question.about) else { continue };
        let (place, leads) = asked(root, question);
        let apart = questions::is_kept_apart(number);
        scores.entry(question.about).or_default()[usize::from(apart)].count(place);
        if options.misses && !apart && place != Some(0) {
            let place = place.map_or("nowhere".to_owned(), |place| format!("in place {}", place + 1));
            println!("{number:>2}. {}\n    {place}; before it: ", question.asked);
            for (path, line) in leads.iter().take(5).take_while(|(path, _)| !question.right.contains(&&path[..])) {
                println!("        {path}:{line}");
            }
        }
    }
    println!("{:<16} {:^17}    {:^17}", "", "looked at", "kept apart");
    println!("{:<16} {:>8} {:>8}    {:>8} {:>8}", "", "first", "in five", "first", "in five");
    let mut sums: [Score; 2] = Default::default();
    for (about, own) in &scores {
        println!("{:<16} {}    {}", name(*about), own[0].told(), own[1].told());
        sums.iter_mut().zip(own).for_each(|(sum, own)| sum.add(own));
    }
    println!("{:<16} {}    {}", "all", sums[0].told(), sums[1].told());
}

/// Copies of text files, each tree's in turn, until there are so many.
fn grow(dir: &Path, trees: &BTreeMap<About, PathBuf>, files: usize) -> Result<(), Trouble> {
    let mut sources = Vec::new();
    for root in trees.values() {
        plain_files(root, &mut sources)?;
    }
    for (number, source) in sources.iter().cycle().take(files).enumerate() {
        let below = dir.join(format!("{}/{}", number / sources.len(), number / 40));
        std::fs::create_dir_all(&below)?;
        let name = source.file_name().unwrap_or_default().to_string_lossy();
        std::fs::copy(source, below.join(format!("{number}-{name}")))?;
    }
    Ok(())
}

fn plain_files(dir: &Path, found: &mut Vec<PathBuf>) -> Result<(), Trouble> {
    let text = |path: &Path| {
        path.extension()
            .and_then(|end| end.to_str())
            .is_some_and(|end| ["rs", "c", "h", "md", "py", "3"].contains(&end))
    };
    let mut entries = std::fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::path);
    for entry in entries {
        let (path, kind) = (entry.path(), entry.file_type()?);
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if kind.is_dir() && !hidden && entry.file_name() != "target" {
            plain_files(&path, found)?;
        } else if kind.is_file() && text(&path) {
            found.push(path);
        }
    }
    Ok(())
}

/// What it takes to read all files of a tree and look at each byte, and nothing else.
fn floor(dir: &Path) -> Result<(Duration, usize, u64), Trouble> {
    let mut files = Vec::new();
    let began = Instant::now();
    plain_files(dir, &mut files)?;
    let (mut bytes, mut lines) = (0, 0);
    for file in &files {
        let text = std::fs::read(file)?;
        bytes += text.len() as u64;
        lines += text.iter().filter(|byte| **byte == b'\n').count();
    }
    std::hint::black_box(lines);
    Ok((began.elapsed(), files.len(), bytes))
}

fn time(options: &Options, trees: &BTreeMap<About, PathBuf>, scratch: &Path) -> Result<(), Trouble> {
    let dir = scratch.join("grown");
    grow(&dir, trees, options.files)?;
    let mut least = floor(&dir)?;
    let mut took = Vec::new();
    for (_, question) in questions::all() {
        let once = || {
            let began = Instant::now();
            std::hint::black_box(offline::leads(&dir, question.asked));
            began.elapsed()
        };
        // The least disturbed one counts, of the floor as well.
        took.push((0..TIMES).map(|_| once()).min().unwrap_or_default());
        least = least.min(floor(&dir)?);
    }
    took.sort();
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let (median, most) = (took[took.len() / 2], took[took.len() - 1]);
    println!("{:<26} {:>8.0} ms", format!("{} files, {} MB read", least.1, least.2 / 1_000_000), millis(least.0));
    println!("{:<26} {:>8.0} ms {:>6.1}×", "a question, median", millis(median), millis(median) / millis(least.0));
    println!("{:<26} {:>8.0} ms {:>6.1}×", "a question, maximum", millis(most), millis(most) / millis(least.0));
    Ok(())
}

fn main() -> Result<(), Trouble> {
    let options = Options::read();
    let scratch = tempfile::tempdir()?;
    let trees = trees(scratch.path());
    if options.wants("answers") {
        answers(&options, &trees);
    }
    if options.wants("time") {
        time(&options, &trees, scratch.path())?;
    }
    Ok(())
}
