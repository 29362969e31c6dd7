//! What a file is worth for a question.
//!
//! Owns: the kinds of files, the score. May not know: how files are found and read, passages.
//!
//! BM25 over fields: each time a term stands in a file counts by where it stands ([`Part`], or the file's name), the sum counts less
//! the longer the file is, and more of the same counts less and less. A term is worth more the fewer files have it.

use aho_corasick::AhoCorasick;

use super::parts::{Line, Part, Parts};
use super::words::Asked;

/// How soon more of the same term stops to count: at this sum, half of all it can be worth is reached.
const SATURATION: f32 = 4.0;
/// How much of a file's length counts against it: nothing at 0, and at 1 twice the text needs twice the terms.
const LENGTH: f32 = 0.5;
/// A term in a file's own name, next to any number of it in its text.
const NAMED: f32 = 1.0;
/// A term in the name of a directory above it.
const PLACED: f32 = 0.2;
/// Another word for a term.
const KIN: f32 = 0.35;
/// Two terms side by side, next to one of them.
const PAIR: f64 = 0.35;
/// A file that was named itself.
const ASKED_FOR: f32 = 8.0;
/// What a file has that lacks all terms but those it has, at least.
const UNCOVERED: f32 = 0.3;

/// What a file is for, and how much it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Source,
    Prose,
    /// It declares what others define.
    Header,
    Example,
    /// Numbers, settings and the like.
    Data,
    Test,
    /// It says again what others say: changelogs, completions, pages of a manual.
    Repetition,
    /// Made by a program, by others, or by lawyers.
    Foreign,
}

impl Kind {
    const fn factor(self) -> f32 {
        match self {
            Self::Source => 1.0,
            Self::Prose => 0.85,
            Self::Header => 0.75,
            Self::Example => 0.7,
            Self::Data => 0.5,
            Self::Test => 0.45,
            Self::Repetition => 0.35,
            Self::Foreign => 0.3,
        }
    }

    pub(super) fn of(path: &str) -> Self {
        let lower = path.to_ascii_lowercase();
        let name = lower.rsplit('/').next().unwrap_or(&lower);
        let (stem, ending) = name.rsplit_once('.').unwrap_or((name, ""));
        let below = |names: &[&str]| lower.split('/').rev().skip(1).any(|part| names.contains(&part));
        let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
        let is_manual = ending.len() == 1 && ending.chars().all(|c| ('1'..='9').contains(&c));
        if ["license", "licence", "copying", "notice"].iter().any(|word| stem.starts_with(word))
            || below(&["vendor", "third_party", "dist", "generated", "build", "target", "licenses"])
        {
            Self::Foreign
        } else if ["changelog", "changes", "news", "history", "release-notes", "releases"].contains(&stem)
            || is_manual
            || below(&["man", "completion", "completions"])
        {
            Self::Repetition
        } else if below(&["test", "tests", "testkit", "benches", "fixtures", "testdata", "__tests__", "spec"])
            || ["tests", "test", "conftest"].contains(&stem)
            || stem.starts_with("test_")
            || ends(&[
                "_test.go",
                ".test.ts",
                ".test.tsx",
                ".test.js",
                ".spec.ts",
                ".spec.js",
                "_test.py",
                "_test.rs",
                "_tests.rs",
            ])
        {
            Self::Test
        } else if below(&["example", "examples"]) {
            Self::Example
        } else if ["json", "csv", "log", "xml", "tsv"].contains(&ending) {
            Self::Data
        } else if ["h", "hh", "hpp", "hxx", "pyi"].contains(&ending) || name.ends_with(".d.ts") {
            Self::Header
        } else if ["md", "markdown", "txt", "rst", "adoc", "org"].contains(&ending) || stem == "readme" {
            Self::Prose
        } else {
            Self::Source
        }
    }
}

/// A file that has terms, as numbers in the order of the terms.
#[derive(Debug)]
pub(super) struct Weighed {
    /// Relative to the root, with slashes.
    pub(super) path: String,
    kind: Kind,
    /// How often each term stands in it, each time by where.
    content: Vec<f32>,
    /// The same of its name and its directories.
    name: Vec<f32>,
    /// Bytes that tell something.
    length: f32,
    asked_for: bool,
}

/// One time that something stands in a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Occurrence {
    /// A term, or behind all terms a pair of them.
    pub(super) of: usize,
    pub(super) weight: f32,
    part: Part,
    from: usize,
    to: usize,
}

/// Calls for each line that has terms, with all that stands on it. Lines that repeat the question are passed over. Returns the bytes
/// of the file that tell something, if it has any such line.
pub(super) fn each_line(
    path: &str,
    bytes: &[u8],
    asked: &Asked,
    needles: &AhoCorasick,
    mut line_has: impl FnMut(Line, &[Occurrence]),
) -> usize {
    let kind = Kind::of(path);
    let mut parts = Parts::new(path, bytes);
    let mut found: Vec<Occurrence> = Vec::new();
    let mut tell = |line: Line, found: &mut Vec<Occurrence>| {
        // A heading may well ask: what is below it answers.
        let asks = found.iter().all(|one| one.part == Part::Heading);
        if !found.is_empty() && (asks || !asked.is_repeated_in(&bytes[line.from..line.to])) {
            add_pairs(bytes, asked, found);
            line_has(line, found);
        }
        found.clear();
    };
    let mut last = Line::default();
    for hit in needles.find_overlapping_iter(bytes) {
        let Some(needle) = asked.needles.get(hit.pattern().as_usize()) else { continue };
        if !needle.fits(bytes, hit.start()) {
            continue;
        }
        if hit.start() >= last.to || last.number == 0 {
            tell(last, &mut found);
            last = parts.line_at(hit.start());
        }
        let part = parts.part_at(hit.start());
        // What a test is called says what it tries, not what is defined there.
        let most = if kind == Kind::Test { Part::Body.weight() } else { f32::MAX };
        let weight = part.weight().min(most) * if needle.is_kin { KIN } else { 1.0 };
        let one = Occurrence { of: needle.counts_for, weight, part, from: hit.start(), to: hit.end() };
        found.push(one);
        if let Some((first, second)) = asked.both(needle.counts_for) {
            found.extend([first, second].map(|of| Occurrence { of, ..one }));
        }
    }
    tell(last, &mut found);
    // Nobody asks how long a file is that has none of it.
    if last.number == 0 { 0 } else { parts.told() }
}

/// Adds the pairs whose terms stand side by side on a line.
fn add_pairs(bytes: &[u8], asked: &Asked, found: &mut Vec<Occurrence>) {
    let mut pairs = Vec::new();
    for (place, first) in found.iter().enumerate() {
        for second in found.iter().skip(place + 1).take(4) {
            if let Some(pair) = asked.pair(first.of, second.of).filter(|_| is_beside(bytes, first.to, second.from)) {
                pairs.push(Occurrence { of: pair, from: first.from, ..*second });
            }
        }
    }
    found.extend(pairs);
}

/// Whether nothing lies between two words but the end of the first, and what joins them.
fn is_beside(bytes: &[u8], from: usize, to: usize) -> bool {
    const ENDING: usize = 6;
    const JOINT: usize = 2;
    let Some(between) = bytes.get(from..to).filter(|between| between.len() <= ENDING + JOINT) else { return false };
    let joint = between.iter().position(|byte| !byte.is_ascii_alphabetic()).unwrap_or(between.len());
    joint <= ENDING && between.len() - joint <= JOINT && between[joint..].iter().all(|byte| b" _-:.'`".contains(byte))
}

/// Weighs a file. `None` when it has no term.
pub(super) fn weigh(path: String, bytes: &[u8], asked: &Asked, needles: &AhoCorasick) -> Option<Weighed> {
    let mut content = vec![0.0; asked.counts()];
    let length = each_line(&path, bytes, asked, needles, |_, found| {
        for one in found {
            content[one.of] += one.weight;
        }
    });
    let lower = path.to_ascii_lowercase();
    let asked_for = !bytes.is_empty() && asked.terms.iter().any(|term| term.is_path && lower.ends_with(&term.needle));
    if !asked_for && content.iter().all(|count| *count == 0.0) {
        return None;
    }
    let (above, own) = names(&path);
    let (above, own) = (asked.stand_in(above, KIN), asked.stand_in(own, KIN));
    let name = own.iter().zip(&above).map(|(own, above)| (NAMED * own).max(PLACED * above)).collect();
    Some(Weighed { kind: Kind::of(&path), name, content, length: length as f32, asked_for, path })
}

/// The directories above a file, and what it is called: by its directory where its own name says nothing.
fn names(path: &str) -> (&str, &str) {
    const NAMELESS: &[&str] = &["mod", "lib", "index", "__init__", "main", "core"];
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = name.split('.').next().unwrap_or(name);
    let (further, parent) = above.rsplit_once('/').unwrap_or(("", above));
    if NAMELESS.contains(&stem) && !["", "src"].contains(&parent) { (further, parent) } else { (above, stem) }
}

/// What counts are compared with.
#[derive(Debug)]
pub(super) struct Scale {
    /// What each term is worth: by how it was written, and by how few files have it.
    pub(super) worth: Vec<f64>,
    /// How many of them are terms; pairs follow.
    terms: usize,
    mean_length: f32,
}

impl Scale {
    #[expect(clippy::cast_precision_loss, reason = "counts of files are far below 2^52")]
    pub(super) fn new(files: &[Weighed], asked: &Asked, read: usize) -> Self {
        let rarity = |place: usize| {
            let having = files.iter().filter(|file| file.content[place] > 0.0).count() as f64;
            logarithm(1.0 + read as f64 / (having + 0.5))
        };
        let terms = asked.terms.iter().map(|term| term.weight);
        let pairs = asked
            .pairs
            .iter()
            .map(|(first, second)| PAIR * asked.terms[*first].weight.min(asked.terms[*second].weight));
        let length: f32 = files.iter().map(|file| file.length).sum();
        Self {
            worth: terms.chain(pairs).enumerate().map(|(place, weight)| weight * rarity(place)).collect(),
            terms: asked.terms.len(),
            mean_length: (length / files.len().max(1) as f32).max(1.0),
        }
    }

    /// What a file is worth.
    pub(super) fn score(&self, file: &Weighed) -> f64 {
        let length = 1.0 - LENGTH + LENGTH * file.length / self.mean_length;
        let (mut sum, mut covered, mut total) = (0.0, 0.0, 0.0);
        for (place, worth) in self.worth.iter().enumerate() {
            let (count, name) = (file.content[place] / length, file.name.get(place).copied().unwrap_or(0.0));
            sum += worth * f64::from(count / (count + SATURATION) + name);
            if place < self.terms {
                covered += worth * f64::from((file.content[place] + name).min(1.0));
                total += worth;
            }
        }
        let coverage = covered / total.max(f64::MIN_POSITIVE);
        let asked_for = if file.asked_for { f64::from(ASKED_FOR) * total } else { 0.0 };
        let uncovered = f64::from(UNCOVERED);
        (sum * (uncovered + (1.0 - uncovered) * coverage) + asked_for) * self.factor(file)
    }

    /// What its kind leaves of a file's worth.
    pub(super) fn factor(&self, file: &Weighed) -> f64 {
        f64::from(file.kind.factor())
    }

    /// Which of two comes first at the same score: what explains before what exercises, then the name.
    pub(super) fn before(one: &Weighed, other: &Weighed) -> std::cmp::Ordering {
        one.kind.cmp(&other.kind).then_with(|| one.path.cmp(&other.path))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Paths of these files, best first.
    fn ranked(prompt: &str, files: &[(&str, &str)]) -> Vec<String> {
        let asked = Asked::new(prompt);
        let needles = asked.needles.iter().map(|needle| needle.text.as_str());
        let needles = AhoCorasick::builder().ascii_case_insensitive(true).build(needles).expect("few words");
        let weighed =
            files.iter().filter_map(|(path, text)| weigh((*path).to_owned(), text.as_bytes(), &asked, &needles));
        let weighed: Vec<Weighed> = weighed.collect();
        let scale = Scale::new(&weighed, &asked, files.len());
        let mut scored: Vec<(f64, &Weighed)> = weighed.iter().map(|file| (scale.score(file), file)).collect();
        scored.sort_by(|one, other| other.0.total_cmp(&one.0).then_with(|| Scale::before(one.1, other.1)));
        scored.into_iter().map(|(_, file)| file.path.clone()).collect()
    }

    #[test]
    fn one_file_comes_before_another() {
        let filler = "nothing of it\n".repeat(200);
        let long = format!("a jar\n{filler}");
        for (why, prompt, first, second) in [
            ("a definition, then a use", "jar", ("b.rs", "fn jar() {}"), ("a.rs", "x(jar)")),
            ("code, then a literal", "jar", ("b.rs", "x(jar)"), ("a.rs", "x(\"jar\")")),
            ("code, then a test", "jar", ("b.rs", "x(jar)"), ("a.rs", "#[cfg(test)]\nmod tests { jar(); }")),
            ("a file's head, then a remark", "jar", ("b.rs", "//! jar\n"), ("a.rs", "x // jar\n")),
            ("a heading, then a line", "jar", ("b.md", "# jar\n"), ("a.md", "x\n\njar\n")),
            ("a name, then a text", "jar", ("jar.rs", "x(jar)"), ("a.rs", "x(jar)")),
            ("a directory's name, where the file has none", "jar", ("jar/mod.rs", "x(jar)"), ("a/jars/x.rs", "x(jar)")),
            ("more of it", "jar", ("b.rs", "x(jar); y(jar)"), ("a.rs", "x(jar); yyyyyy")),
            ("what is short", "jar", ("b.txt", "a jar\n"), ("a.txt", &long)),
            ("both words, then one of them often", "jar lid", ("b.rs", "jar lid"), ("a.rs", "jar jar jar jar")),
            ("words side by side", "exit codes", ("b.rs", "exit_code(); x()"), ("a.rs", "exit(); x(code)")),
            ("words written as one", "exit codes", ("b.rs", "exitcodes()"), ("a.rs", "exit(  );")),
            ("the word itself, then another for it", "crash", ("b.rs", "x(crash)"), ("a.rs", "x(panic)")),
            ("source, then a test of it", "jar", ("z.rs", "x(jar)"), ("tests/a.rs", "x(jar)")),
            ("source, then its test beside it", "jar", ("z.go", "x(jar)"), ("a_test.go", "x(jar)")),
            ("source, then a manual", "jar", ("z.c", "x(jar)"), ("a.3", "x(jar)")),
            ("a text, then a changelog", "jar", ("z.md", "x jar"), ("CHANGELOG.md", "x jar")),
            ("what defines, then what declares", "jar", ("z.c", "int jar(void)"), ("a.h", "int jar(void)")),
            (
                "a sentence, then the question itself",
                "how is the jar opened?",
                ("z.md", "x\n\nthe jar opens"),
                ("a.md", "x\n\nhow is the jar opened? jar opened\n"),
            ),
            (
                "the file that was named",
                "what is in src/a.rs of the jar?",
                ("src/a.rs", "x"),
                ("src/jar.rs", "jar jar"),
            ),
            ("at the same score the first by name", "jar", ("a.rs", "jar"), ("b.rs", "jar")),
        ] {
            assert_eq!(ranked(prompt, &[second, first]).first().map(String::as_str), Some(first.0), "{why}");
        }
    }

    #[test]
    fn at_the_same_score_nothing_comes_before_what_is_no_test() {
        let file = |path: &str| Weighed {
            path: path.to_owned(),
            kind: Kind::of(path),
            content: Vec::new(),
            name: Vec::new(),
            length: 1.0,
            asked_for: false,
        };
        let mut files = ["tests/a.rs", "z.rs", "CHANGELOG.md", "y.md", "examples/b.rs", "data.json"].map(file);
        files.sort_by(Scale::before);
        let paths = files.each_ref().map(|file| file.path.as_str());
        assert_eq!(paths, ["z.rs", "y.md", "examples/b.rs", "data.json", "tests/a.rs", "CHANGELOG.md"]);
    }

    #[test]
    fn a_path_says_what_a_file_is_for() {
        for (path, kind) in [
            ("src/latest.rs", Kind::Source),
            ("src/a/tests.rs", Kind::Test),
            ("src/testkit/rig/mod.rs", Kind::Test),
            ("benches/a.rs", Kind::Test),
            ("test_parse.py", Kind::Test),
            ("web/a.spec.ts", Kind::Test),
            ("examples/a.rs", Kind::Example),
            ("README.md", Kind::Prose),
            ("README", Kind::Prose),
            ("CHANGELOG.md", Kind::Repetition),
            ("NEWS", Kind::Repetition),
            ("docs/fd.1", Kind::Repetition),
            ("contrib/completion/_fd", Kind::Repetition),
            ("LICENSE-MIT", Kind::Foreign),
            ("third_party/a.c", Kind::Foreign),
            ("include/a.h", Kind::Header),
            ("types/a.d.ts", Kind::Header),
            ("package.json", Kind::Data),
            ("Makefile", Kind::Source),
        ] {
            assert_eq!(Kind::of(path), kind, "{path}");
        }
    }

    #[test]
    fn a_file_is_called_by_its_directory_where_its_own_name_says_nothing() {
        for (path, above, own) in [
            ("src/workers/mod.rs", "src", "workers"),
            ("src/core/main.rs", "src", "core"),
            ("src/main.rs", "src", "main"),
            ("mod.rs", "", "mod"),
            ("a/jar.test.ts", "a", "jar"),
        ] {
            assert_eq!(names(path), (above, own), "{path}");
        }
    }

    #[test]
    fn the_logarithm_is_the_one_of_the_library() {
        for number in [1.0, 1.1, std::f64::consts::SQRT_2, 1.5, 2.0, 3.0, 40.0, 777.5, 20_001.0, 1e15] {
            assert!((logarithm(number) - f64::ln(number)).abs() < 1e-8, "{number}: {}", logarithm(number));
        }
    }
}
