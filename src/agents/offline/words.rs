//! Which words of a prompt are worth searching for, and where a line has them.
//!
//! Owns: stop words, stems and word boundaries. May not know files.

use super::kin::kin;

/// Terms of one search; more make every line match something.
const MAX_TERMS: usize = 24;
/// Bytes of a prompt that are looked at: the question, not the log pasted behind it.
const MAX_PROMPT: usize = 64 << 10;
/// Words from which on a prompt is a sentence, which nobody writes by chance, and bytes up to which a line may hold it.
const SENTENCE_WORDS: usize = 4;
const MAX_SENTENCE: usize = 300;
/// What a prompt begins with to have all shown.
const ALL: &str = "all:";
/// Characters of a term.
const MAX_TERM_CHARS: usize = 80;

/// What a piece of an identifier is worth, next to a word somebody wrote by itself.
const PIECE_WEIGHT: f64 = 0.4;
/// What an identifier is worth: whoever writes one means that one.
const IDENTIFIER_WEIGHT: f64 = 2.0;

/// Words that ask instead of naming anything, and words every project is full of.
const STOP_WORDS: &[&str] = &[
    "a",
    "able",
    "about",
    "actually",
    "after",
    "all",
    "also",
    "am",
    "an",
    "and",
    "any",
    "anything",
    "are",
    "as",
    "ask",
    "at",
    "be",
    "because",
    "been",
    "before",
    "being",
    "best",
    "better",
    "between",
    "but",
    "by",
    "can",
    "code",
    "codebase",
    "come",
    "could",
    "describe",
    "did",
    "different",
    "do",
    "does",
    "doing",
    "don",
    "done",
    "each",
    "else",
    "etc",
    "every",
    "exactly",
    "example",
    "explain",
    "few",
    "find",
    "for",
    "from",
    "get",
    "gets",
    "give",
    "given",
    "go",
    "goes",
    "going",
    "good",
    "had",
    "happen",
    "happens",
    "has",
    "have",
    "having",
    "he",
    "help",
    "her",
    "here",
    "him",
    "his",
    "how",
    "i",
    "if",
    "implement",
    "implemented",
    "in",
    "into",
    "is",
    "isn",
    "it",
    "its",
    "just",
    "know",
    "let",
    "like",
    "ll",
    "look",
    "made",
    "make",
    "makes",
    "many",
    "may",
    "me",
    "mean",
    "means",
    "might",
    "mine",
    "more",
    "most",
    "much",
    "must",
    "my",
    "need",
    "needs",
    "no",
    "nor",
    "not",
    "now",
    "of",
    "off",
    "ok",
    "on",
    "once",
    "one",
    "only",
    "opinion",
    "or",
    "other",
    "our",
    "out",
    "over",
    "own",
    "part",
    "please",
    "project",
    "question",
    "re",
    "really",
    "repo",
    "repository",
    "review",
    "right",
    "same",
    "say",
    "second",
    "see",
    "she",
    "should",
    "show",
    "so",
    "some",
    "something",
    "still",
    "such",
    "summarise",
    "summarize",
    "sure",
    "take",
    "tell",
    "than",
    "that",
    "the",
    "their",
    "them",
    "then",
    "there",
    "these",
    "they",
    "thing",
    "things",
    "think",
    "this",
    "those",
    "through",
    "to",
    "too",
    "two",
    "under",
    "understand",
    "up",
    "us",
    "use",
    "used",
    "uses",
    "using",
    "ve",
    "very",
    "want",
    "was",
    "way",
    "we",
    "well",
    "were",
    "what",
    "when",
    "where",
    "whether",
    "which",
    "while",
    "who",
    "whole",
    "whose",
    "why",
    "will",
    "with",
    "without",
    "would",
    "you",
    "your",
];

/// What may stand behind a stem for the word to count as the same.
const SUFFIXES: &[&str] = &[
    "", "s", "es", "ed", "d", "e", "er", "ers", "ing", "ings", "or", "ors", "ion", "ions", "ation", "ations", "ment",
    "ments", "able", "ably", "al", "ly", "y", "ies", "ied", "ying", "ive", "ure", "ures", "ured", "uration",
];

/// Bytes of the longest ending, and of a letter that is doubled before it.
const MAX_ENDING: usize = 8;

/// How a term is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// At the beginning of a word or of a part of an identifier, with any ending.
    Stem,
    /// Anywhere.
    Literal,
}

/// One thing to search for.
#[derive(Debug, Clone)]
pub(super) struct Term {
    /// As the prompt has it, lower case.
    pub(super) shown: String,
    /// What every match contains, lower case (ASCII).
    pub(super) needle: String,
    /// How much a match is worth before rarity.
    pub(super) weight: f64,
    /// Whether it names a file.
    pub(super) is_path: bool,
    mode: Mode,
}

/// Whether a word, or a part of a camel-case or snake-case identifier, begins here.
fn starts_word(line: &[u8], at: usize) -> bool {
    let Some(before) = at.checked_sub(1).map(|before| line[before]) else { return true };
    !(before.is_ascii_alphabetic() || before >= 0x80) || before.is_ascii_lowercase() && line[at].is_ascii_uppercase()
}

/// Whether the rest of the word is an ending of the stem's own word.
fn ends_alike(line: &[u8], end: usize, stem: &str) -> bool {
    // In `RestartWorker` the next part begins with the capital; in `RESTARTED` capitals go on.
    let shouting = end > 0 && line[end - 1].is_ascii_uppercase();
    let goes_on = |byte: &u8| byte.is_ascii_lowercase() || *byte >= 0x80 || shouting && byte.is_ascii_uppercase();
    let length = line[end..].iter().take(MAX_ENDING + 1).take_while(|byte| goes_on(byte)).count();
    let rest = &line[end..end + length];
    let is_ending = |rest: &[u8]| SUFFIXES.iter().any(|suffix| suffix.as_bytes().eq_ignore_ascii_case(rest));
    // `stop` and `stopped`.
    let doubled = rest.first().map(u8::to_ascii_lowercase).as_ref() == stem.as_bytes().last();
    is_ending(rest) || !rest.is_empty() && doubled && is_ending(&rest[1..])
}

/// What is looked for in a text, in lower case (ASCII).
#[derive(Debug)]
pub(super) struct Needle {
    pub(super) text: String,
    /// What it counts for: a term, or behind all terms a pair of them.
    pub(super) counts_for: usize,
    /// Whether it is another word than the one that was asked for.
    pub(super) is_kin: bool,
    mode: Mode,
}

impl Needle {
    /// Whether it stands in a text at this byte, where its letters were found in any case.
    pub(super) fn fits(&self, text: &[u8], at: usize) -> bool {
        match self.mode {
            Mode::Literal => true,
            Mode::Stem => starts_word(text, at) && ends_alike(text, at + self.text.len(), &self.text),
        }
    }
}

/// How much is to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// Six files, a sentence of each.
    Six,
    /// All that were ranked, and lines of the first.
    All,
}

/// What is searched for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) extent: Extent,
    /// In the prompt's order, each once.
    pub(super) terms: Vec<Term>,
    /// Terms that follow each other without a word between them: `exit codes` may be `exit_code`, `ExitCode` or `exitcode`.
    pub(super) pairs: Vec<(usize, usize)>,
    pub(super) needles: Vec<Needle>,
    /// The words of a prompt that is a sentence.
    sentence: Option<String>,
}

impl Asked {
    pub(super) fn new(prompt: &str) -> Self {
        let (extent, prompt) = match prompt.trim_start().strip_prefix(ALL) {
            Some(question) => (Extent::All, question),
            None => (Extent::Six, prompt),
        };
        let sentence = Some(spoken(prompt.trim()))
            .filter(|words| prompt.len() <= MAX_SENTENCE && words.split(' ').count() >= SENTENCE_WORDS);
        let terms = terms(prompt);
        let pairs = pairs(prompt, &terms);
        let needle = |text: &str, counts_for, is_kin, mode| Needle { text: text.to_owned(), counts_for, is_kin, mode };
        let mut needles: Vec<Needle> = Vec::new();
        for (place, term) in terms.iter().enumerate() {
            needles.push(needle(&term.needle, place, false, term.mode));
        }
        for (place, term) in terms.iter().enumerate().filter(|(_, term)| term.mode == Mode::Stem) {
            for other in kin(&term.needle, stem) {
                // What was asked for by name is no other word for something else.
                if terms.iter().all(|term| term.needle != other) {
                    needles.push(needle(&other, place, true, Mode::Stem));
                }
            }
        }
        for (place, (first, second)) in pairs.iter().enumerate() {
            let joined = format!("{}{}", terms[*first].shown, terms[*second].needle);
            needles.push(needle(&joined, terms.len() + place, false, Mode::Stem));
        }
        Self { extent, terms, pairs, needles, sentence }
    }

    /// How near the terms are to a name, in their order: 1 if they stand in it, `kin` if another word for them does.
    pub(super) fn stand_in(&self, name: &str, kin: f32) -> Vec<f32> {
        let lower = name.to_ascii_lowercase();
        let mut near = vec![0.0; self.terms.len()];
        for needle in self.needles.iter().filter(|needle| needle.counts_for < self.terms.len()) {
            if lower.match_indices(&needle.text).any(|(at, _)| needle.fits(name.as_bytes(), at)) {
                let own: &mut f32 = &mut near[needle.counts_for];
                *own = own.max(if needle.is_kin { kin } else { 1.0 });
            }
        }
        near
    }

    /// How many terms stand in a text, under their own name.
    pub(super) fn count_in(&self, text: &str) -> usize {
        self.stand_in(text, 0.0).iter().filter(|near| **near > 0.0).count()
    }

    /// How many things are counted: terms, and pairs of them.
    pub(super) fn counts(&self) -> usize {
        self.terms.len() + self.pairs.len()
    }

    /// The terms of a pair.
    pub(super) fn both(&self, pair: usize) -> Option<(usize, usize)> {
        self.pairs.get(pair.checked_sub(self.terms.len())?).copied()
    }

    /// The pair that these two terms are.
    pub(super) fn pair(&self, first: usize, second: usize) -> Option<usize> {
        Some(self.terms.len() + self.pairs.iter().position(|pair| *pair == (first, second))?)
    }

    /// Whether a line repeats the question. Such a line answers nothing.
    pub(super) fn is_repeated_in(&self, line: &[u8]) -> bool {
        self.sentence.as_ref().is_some_and(|sentence| {
            line.len() >= sentence.len() && spoken(&String::from_utf8_lossy(line)).contains(sentence)
        })
    }
}

/// Terms of words that follow each other in a prompt.
fn pairs(prompt: &str, terms: &[Term]) -> Vec<(usize, usize)> {
    let place = |word: &str| {
        let word = word.trim_matches(|c: char| !c.is_alphanumeric()).to_ascii_lowercase();
        terms.iter().position(|term| term.mode == Mode::Stem && term.shown == word)
    };
    let words: Vec<&str> =
        prompt.get(..prompt.len().min(MAX_SENTENCE)).unwrap_or_default().split([' ', '-', '\n', '_']).collect();
    let mut found: Vec<(usize, usize)> = Vec::new();
    for two in words.windows(2) {
        let ends = two[0].ends_with([',', '.', ';', ':', '?', '!', ')']);
        if let (false, Some(first), Some(second)) = (ends, place(two[0]), place(two[1]))
            && first != second
            && !found.contains(&(first, second))
        {
            found.push((first, second));
        }
    }
    found.truncate(MAX_TERMS);
    found
}

/// The words of a text, however it is punctuated.
fn spoken(text: &str) -> String {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

/// The terms of a prompt, in its order, each once.
fn terms(prompt: &str) -> Vec<Term> {
    let mut end = prompt.len().min(MAX_PROMPT);
    while !prompt.is_char_boundary(end) {
        end -= 1;
    }
    let mut found: Vec<Term> = Vec::new();
    let mut add = |term: Term| match found.iter_mut().find(|known| known.needle == term.needle) {
        Some(known) => known.weight = known.weight.max(term.weight),
        None => found.push(term),
    };
    for token in prompt[..end].split(|c: char| !(c.is_alphanumeric() || "_-./:".contains(c))) {
        let token = token.trim_matches(|c| "-./:".contains(c));
        if token.chars().count() <= MAX_TERM_CHARS {
            token_terms(token, &mut add);
        }
    }
    if found.len() > MAX_TERMS {
        // What somebody spelled out goes before pieces; among equals the first ones.
        found.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        found.truncate(MAX_TERMS);
    }
    found
}

fn token_terms(token: &str, add: &mut impl FnMut(Term)) {
    let lower = token.to_ascii_lowercase();
    let is_path = token.contains('/') && !token.contains("//") || has_extension(token);
    let is_identifier = !is_path && (token.contains('_') || token.contains("::") || is_camel(token));
    if is_path || is_identifier {
        let weight = IDENTIFIER_WEIGHT;
        add(Term { shown: lower.clone(), needle: lower, weight, is_path, mode: Mode::Literal });
    }
    let pieces: Vec<String> = token.split(|c: char| !c.is_alphanumeric()).flat_map(camel_parts).collect();
    let whole = pieces.len() == 1 && !is_path;
    for (place, piece) in pieces.iter().enumerate() {
        let is_extension = is_path && place + 1 == pieces.len() && has_extension(token);
        let piece = piece.to_ascii_lowercase();
        let short = piece.chars().count() < if piece.chars().all(|c| c.is_ascii_digit()) { 3 } else { 2 };
        if short || is_extension || STOP_WORDS.contains(&piece.as_str()) {
            continue;
        }
        // `read-only` is two words; the parts of an identifier only support it.
        let weight = if whole || !(is_path || is_identifier) { 1.0 } else { PIECE_WEIGHT };
        add(Term { needle: stem(&piece), shown: piece, weight, is_path: false, mode: Mode::Stem });
    }
}

/// Whether it ends like a file name: a dot and a few letters behind a name.
fn has_extension(token: &str) -> bool {
    token.rsplit_once('.').is_some_and(|(name, extension)| {
        !name.is_empty()
            && (1..=4).contains(&extension.len())
            && extension.starts_with(|c: char| c.is_ascii_lowercase())
            && extension.chars().all(|c| c.is_ascii_alphanumeric())
    })
}

/// `fooBar` or `FooBar`, not `Foo` and not `FOO`.
fn is_camel(token: &str) -> bool {
    token.as_bytes().windows(2).any(|pair| pair[0].is_ascii_lowercase() && pair[1].is_ascii_uppercase())
}

fn camel_parts(word: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut before = ' ';
    for c in word.chars() {
        match parts.last_mut() {
            Some(part) if !(before.is_ascii_lowercase() && c.is_ascii_uppercase()) => part.push(c),
            _ => parts.push(c.to_string()),
        }
        before = c;
    }
    parts
}

/// The part of a word its other forms share, at least three letters.
fn stem(word: &str) -> String {
    // ending, letters that must be left before it
    const ENDINGS: &[(&str, usize)] = &[
        ("ations", 4),
        ("ation", 4),
        ("ments", 4),
        ("ment", 4),
        ("ings", 3),
        ("ing", 3),
        ("ions", 4),
        ("ion", 4),
        ("ies", 3),
        ("ied", 3),
        ("ers", 4),
        ("sses", 2),
        ("xes", 2),
        ("ches", 2),
        ("shes", 2),
        ("ed", 3),
        ("es", 3),
        ("s", 3),
        ("e", 4),
        ("y", 4),
    ];
    if !word.is_ascii() || word.ends_with("ss") || word.ends_with("us") || word.ends_with("is") {
        return word.to_owned();
    }
    for (ending, least) in ENDINGS {
        let Some(rest) = word.strip_suffix(ending).filter(|rest| rest.len() >= *least) else { continue };
        let rest = match *ending {
            // `sses`, `xes`, `ches`, `shes` keep what belongs to the word.
            "sses" | "xes" | "ches" | "shes" => &word[..word.len() - 2],
            // `workers` is the plural of `worker`, which is a word of its own.
            "ers" => &word[..word.len() - 1],
            _ => rest,
        };
        let bytes = rest.as_bytes();
        let doubled = bytes.len() > 3
            && bytes[bytes.len() - 1] == bytes[bytes.len() - 2]
            && !b"aeiouls".contains(&bytes[bytes.len() - 1])
            && matches!(*ending, "ed" | "ing" | "ings");
        let cancelled = rest.ends_with("ll") && rest.len() > 5 && *ending != "s";
        return if doubled || cancelled { rest[..rest.len() - 1].to_owned() } else { rest.to_owned() };
    }
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(prompt: &str) -> Vec<String> {
        terms(prompt).into_iter().map(|term| term.shown).collect()
    }

    #[test]
    fn a_question_leaves_its_nouns_and_verbs() {
        assert_eq!(shown("How are crashed workers restarted?"), ["crashed", "workers", "restarted"]);
        assert_eq!(shown("Please explain why the read-only mode doesn't work."), ["read", "mode", "doesn", "work"]);
        assert_eq!(shown("what does it do?"), [] as [&str; 0]);
    }

    #[test]
    fn identifiers_and_paths_are_kept_whole_and_in_pieces() {
        assert_eq!(shown("call `restart_worker`"), ["call", "restart_worker", "restart", "worker"]);
        assert_eq!(shown("RunSummary::fold"), ["runsummary::fold", "run", "summary", "fold"]);
        assert_eq!(shown("src/agents/mod.rs"), ["src/agents/mod.rs", "src", "agents", "mod"]);
        assert!(terms("src/agents/mod.rs")[0].is_path);
        assert!(terms("fix it in main.rs.")[1].is_path);
    }

    #[test]
    fn a_word_is_found_in_all_its_forms_and_not_inside_others() {
        for (prompt, line, found) in [
            ("crashed", "fn on_crash(", true),
            ("crashed", "WorkerCrashed", true),
            ("workers", "struct Worker {", true),
            ("workers", "WORKERS", true),
            ("worker", "the workspace", false),
            ("workers", "reworked", false),
            ("restarted", "let restarting = 1", true),
            ("restart", "RestartIntensity", true),
            ("stopped", "stop()", true),
            ("stop", "it was stopped", true),
            ("cancellation", "cancelled", true),
            ("cancel", "cancellation", true),
            ("retries", "retry_at", true),
            ("retry", "we retried", true),
            ("handle", "handling", true),
            ("processes", "process", true),
            ("execution", "execute", true),
            ("configuration", "configure", true),
            ("recovery", "recovers", true),
            ("log", "catalog", false),
            ("log", "blogs", false),
            ("log", "telemetry_log", true),
            ("log", "logic", false),
            ("idle", "idle_timeout", true),
            ("bus", "business", false),
        ] {
            assert_eq!(Asked::new(prompt).count_in(line) == 1, found, "{prompt} in {line}");
        }
    }

    #[test]
    fn any_prompt_gives_a_bounded_number_of_terms() {
        let seed = 7;
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let prompt: String = (0..2_000).map(|_| random.char(' '..'\u{2ff}')).collect();
            assert!(terms(&prompt).len() <= MAX_TERMS);
        }
        assert!(terms(&"é".repeat(MAX_PROMPT)).is_empty());
    }

    #[test]
    fn another_word_for_a_term_is_looked_for_and_counts_less() {
        for (prompt, line, near) in [
            ("crashed", "on_panic", 0.3),
            ("crashed", "it crashes", 1.0),
            ("directory", "the folders", 0.3),
            ("compressed", "zlib", 0.3),
            ("jar", "folder", 0.0),
            // What was asked for itself is no other word for something else.
            ("crash panic", "panic!", 0.0),
        ] {
            assert_eq!(Asked::new(prompt).stand_in(line, 0.3)[0], near, "{prompt} in {line}");
        }
        assert!(Asked::new("all of these: crash, limit, config, log, test").needles.len() < 64);
    }

    #[test]
    fn words_side_by_side_are_a_pair() {
        for (prompt, pairs) in [
            ("how are the exit codes merged?", &[("exit", "codes"), ("codes", "merged")][..]),
            ("known-hosts file", &[("known", "hosts"), ("hosts", "file")]),
            ("exit, codes", &[]),
            ("the exit of codes", &[]),
            ("log log log", &[]),
        ] {
            let asked = Asked::new(prompt);
            let shown = |place: usize| asked.terms[place].shown.as_str();
            let found: Vec<_> = asked.pairs.iter().map(|(first, second)| (shown(*first), shown(*second))).collect();
            assert_eq!(found, pairs, "{prompt}");
        }
    }

    #[test]
    fn a_line_that_repeats_the_question_is_known() {
        let question = "how is a crashed worker restarted?";
        for (prompt, line, repeats) in [
            (question, "    ask(\"How is a crashed worker  restarted\")", true),
            (question, "a crashed worker is restarted", false),
            (question, "how is a crashed", false),
            ("all: how is a crashed worker restarted?", "how is a crashed worker restarted", true),
            // A few words are found by chance.
            ("restart worker", "restart worker", false),
        ] {
            assert_eq!(Asked::new(prompt).is_repeated_in(line.as_bytes()), repeats, "{prompt} in {line}");
        }
    }

    #[test]
    fn a_question_says_how_much_is_to_be_shown() {
        assert_eq!(Asked::new("all: where is it parsed?").extent, Extent::All);
        assert_eq!(Asked::new("where are all: parsed?").extent, Extent::Six);
        let both = ["where is it parsed?", " all:where is it parsed?"].map(|prompt| Asked::new(prompt).terms.len());
        assert_eq!(both, [1, 1]);
    }
}
