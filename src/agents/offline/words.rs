//! Which words of a prompt are worth searching for, and where a line has them.
//!
//! Owns: stop words, stems and word boundaries. May not know files.

/// Terms of one search; more make every line match something.
const MAX_TERMS: usize = 24;
/// Bytes of a prompt that are looked at: the question, not the log pasted behind it.
const MAX_PROMPT: usize = 64 << 10;
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
    "again",
    "all",
    "also",
    "am",
    "an",
    "and",
    "answer",
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
    "check",
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
    "file",
    "files",
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
    "line",
    "lines",
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

impl Term {
    /// Whether the line has it. `lower` is the line in lower case (ASCII), byte for byte as long.
    pub(super) fn is_in(&self, line: &str, lower: &str) -> bool {
        match self.mode {
            Mode::Literal => lower.contains(&self.needle),
            Mode::Stem => lower.match_indices(&self.needle).any(|(at, found)| {
                let end = at + found.len();
                starts_word(line.as_bytes(), at) && ends_alike(line.as_bytes(), end, &self.needle)
            }),
        }
    }
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
    let goes_on = |byte: &&u8| byte.is_ascii_lowercase() || **byte >= 0x80 || shouting && byte.is_ascii_uppercase();
    let rest: Vec<u8> = line[end..].iter().take_while(goes_on).map(u8::to_ascii_lowercase).collect();
    let is_ending = |rest: &[u8]| SUFFIXES.iter().any(|suffix| suffix.as_bytes() == rest);
    // `stop` and `stopped`.
    let doubled = !rest.is_empty() && rest.first() == stem.as_bytes().last();
    is_ending(&rest) || doubled && is_ending(&rest[1..])
}

/// The terms of a prompt, in its order, each once.
pub(super) fn terms(prompt: &str) -> Vec<Term> {
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
            let term = &terms(prompt)[0];
            assert_eq!(term.is_in(line, &line.to_ascii_lowercase()), found, "{prompt} ({}) in {line}", term.needle);
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
}
