//! How languages write comments and literals, as far as it takes to tell them from code.
//!
//! Owns: the table. May not know: what is made of it.

/// How a language is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Syntax {
    /// How its files end.
    endings: &'static [&'static str],
    pub(super) comments: Comments,
    /// Longer marks first.
    pub(super) quotes: &'static [Quote],
    pub(super) ticks: Ticks,
    /// Whether `#[cfg(test)]` marks what is compiled for tests only.
    pub(super) marks_tests: bool,
    /// Whether a function is defined without a word for it.
    pub(super) has_bare_functions: bool,
    /// Whether it is text for people, with headings.
    pub(super) is_prose: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Comments {
    /// From a mark to the end of the line.
    pub(super) line: &'static [&'static str],
    /// From a mark to another one.
    pub(super) block: Option<(&'static str, &'static str)>,
    pub(super) nested: bool,
}

/// What opens and closes a literal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quote {
    pub(super) mark: &'static str,
    pub(super) escapes: bool,
    pub(super) over_lines: bool,
    /// Whether one that stands alone is a comment.
    pub(super) documents: bool,
}

/// What a single tick opens where it opens no literal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ticks {
    Nothing,
    /// Characters, labels and lifetimes.
    Lifetimes,
}

const fn quote(mark: &'static str) -> Quote {
    Quote { mark, escapes: true, over_lines: false, documents: false }
}

const fn long(mark: &'static str) -> Quote {
    Quote { over_lines: true, ..quote(mark) }
}

const fn raw(mark: &'static str) -> Quote {
    Quote { escapes: false, ..long(mark) }
}

const fn doc(mark: &'static str) -> Quote {
    Quote { documents: true, ..long(mark) }
}

const SLASHES: Comments = Comments { line: &["//"], block: Some(("/*", "*/")), nested: false };
const HASHES: Comments = Comments { line: &["#"], block: None, nested: false };
const SIMPLE: &[Quote] = &[quote("\""), quote("'")];

/// What of a file is not told apart: all of it is body.
const UNKNOWN: Syntax = Syntax {
    endings: &[],
    comments: Comments { line: &[], block: None, nested: false },
    quotes: &[],
    ticks: Ticks::Nothing,
    marks_tests: false,
    has_bare_functions: false,
    is_prose: false,
};

const LANGUAGES: &[Syntax] = &[
    Syntax {
        endings: &["rs"],
        comments: Comments { nested: true, ..SLASHES },
        quotes: &[long("\"")],
        ticks: Ticks::Lifetimes,
        marks_tests: true,
        ..UNKNOWN
    },
    Syntax {
        endings: &["c", "h", "cc", "hh", "cpp", "hpp", "cxx", "m", "mm", "cs", "proto", "php"],
        comments: SLASHES,
        quotes: SIMPLE,
        has_bare_functions: true,
        ..UNKNOWN
    },
    Syntax {
        endings: &["java", "kt", "kts", "swift", "scala", "dart", "groovy"],
        comments: SLASHES,
        quotes: &[long("\"\"\""), quote("\""), quote("'")],
        has_bare_functions: true,
        ..UNKNOWN
    },
    Syntax {
        endings: &["js", "jsx", "mjs", "cjs", "ts", "tsx", "mts", "vue", "svelte"],
        comments: SLASHES,
        quotes: &[quote("\""), quote("'"), long("`")],
        has_bare_functions: true,
        ..UNKNOWN
    },
    Syntax { endings: &["go"], comments: SLASHES, quotes: &[quote("\""), quote("'"), raw("`")], ..UNKNOWN },
    Syntax {
        endings: &["py", "pyi"],
        comments: HASHES,
        quotes: &[doc("\"\"\""), doc("'''"), quote("\""), quote("'")],
        ..UNKNOWN
    },
    Syntax {
        endings: &[
            "sh",
            "bash",
            "zsh",
            "fish",
            "rb",
            "pl",
            "pm",
            "r",
            "jl",
            "ex",
            "exs",
            "nix",
            "tf",
            "toml",
            "yaml",
            "yml",
            "ini",
            "conf",
            "cfg",
            "mk",
            "cmake",
            "Makefile",
            "Dockerfile",
        ],
        comments: HASHES,
        quotes: SIMPLE,
        ..UNKNOWN
    },
    Syntax {
        endings: &["lua", "sql", "hs", "elm"],
        comments: Comments { line: &["--"], block: None, nested: false },
        quotes: SIMPLE,
        ..UNKNOWN
    },
    Syntax {
        endings: &["el", "lisp", "clj", "scm", "asm"],
        comments: Comments { line: &[";"], ..UNKNOWN.comments },
        quotes: &[quote("\"")],
        ..UNKNOWN
    },
    Syntax {
        endings: &["md", "markdown", "txt", "rst", "adoc", "org", "README", "1", "2", "3", "4", "5", "6", "7", "8"],
        is_prose: true,
        ..UNKNOWN
    },
];

/// The language of a file, by its name.
pub(super) fn syntax(path: &str) -> &'static Syntax {
    let name = path.rsplit('/').next().unwrap_or(path);
    let ending = name.rsplit('.').next().unwrap_or(name);
    LANGUAGES.iter().find(|language| language.endings.contains(&ending)).unwrap_or(&UNKNOWN)
}

/// Whether a file is text for people.
pub(super) fn is_prose(path: &str) -> bool {
    syntax(path).is_prose
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_languages_claim_a_file() {
        let mut endings: Vec<&str> = LANGUAGES.iter().flat_map(|language| language.endings).copied().collect();
        let all = endings.len();
        endings.sort_unstable();
        endings.dedup();
        assert_eq!(endings.len(), all);
        for (path, known) in
            [("src/a.rs", true), ("Makefile", true), ("doc/README", true), ("a.b.toml", true), ("a.xyz", false)]
        {
            assert_eq!(*syntax(path) != UNKNOWN, known, "{path}");
        }
    }

    #[test]
    fn a_longer_mark_is_looked_for_first() {
        for language in LANGUAGES {
            for (place, quote) in language.quotes.iter().enumerate() {
                let hidden = language.quotes[..place].iter().any(|other| quote.mark.starts_with(other.mark));
                assert!(!hidden, "{:?}: {}", language.endings, quote.mark);
            }
        }
    }
}
