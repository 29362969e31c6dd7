//! What each piece of a file is: code, a definition, a comment, a literal, a test.
//!
//! Owns: the languages, as a table, and how much a word tells by where it stands. May not know: what is searched for, scores.
//!
//! It reads as a person skims, and is no parser: a macro may mislead it. Invariants: (1) it never fails, and what it cannot tell is
//! [`Part::Body`]; (2) a file is gone through once, from its beginning, without anything kept of what lies behind; (3) a quote that
//! nobody closes hides the rest of its line, and of the file only in languages whose literals go over lines.

use super::languages::{Comments, Quote, Syntax, Ticks, syntax};

/// Bytes of a comment's beginning that are searched for the words of a licence.
const LICENCE_BYTES: usize = 2_048;

/// What some editors put before a text in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Where a word stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// What a file says of itself at its beginning.
    Head,
    /// A line that gives something its name.
    Definition,
    /// A heading of a text.
    Heading,
    /// A comment that has its lines for itself.
    Doc,
    /// Anything else.
    Body,
    /// A line that names what others define.
    Import,
    /// Text within quotes, which may speak of anything.
    Literal,
    /// What is compiled for tests only, literals included.
    Tested,
    /// Whose the file is.
    Licence,
}

impl Part {
    /// How much a word tells there, next to one in the body.
    pub(super) const fn weight(self) -> f32 {
        match self {
            Self::Definition | Self::Heading => 2.5,
            Self::Head => 2.0,
            Self::Doc => 1.2,
            Self::Body => 1.0,
            Self::Import => 0.5,
            Self::Literal | Self::Tested => 0.15,
            Self::Licence => 0.05,
        }
    }
}

/// What a line is made of, up to the byte at which each piece ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Code,
    /// A comment behind code.
    Remark,
    Doc,
    Head,
    Licence,
    Literal,
}

/// In the midst of what a line ends.
#[derive(Debug, Clone, Copy)]
enum State {
    Code,
    /// Comments that may hold comments count how deep they are.
    Comment {
        depth: u32,
        piece: Piece,
    },
    Literal {
        quote: Quote,
        piece: Piece,
    },
    /// A literal of Rust without escapes, and how many `#` close it.
    Raw {
        hashes: usize,
    },
}

/// Whether the file's own introduction is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Intro {
    Awaited,
    Open,
    /// A licence stands where it would.
    Licence,
    Over,
}

/// What is compiled for tests only.
#[derive(Debug, Clone, Copy)]
struct Tested {
    /// How many braces were open before it.
    depth: i32,
    /// Whether its own were opened.
    begun: bool,
}

/// One line.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Line {
    /// From 1.
    pub(super) number: u64,
    /// Where it begins and ends, without its end of line.
    pub(super) from: usize,
    pub(super) to: usize,
    /// What the whole line is, where that does not depend on its pieces.
    whole: Option<Part>,
    /// What its code is, once somebody asked.
    code: Option<Part>,
}

/// A file that is gone through line by line.
pub(super) struct Parts<'a> {
    bytes: &'a [u8],
    syntax: &'static Syntax,
    /// Bytes of code at which something may begin or end.
    stops: [bool; 256],
    state: State,
    intro: Intro,
    depth: i32,
    tested: Option<Tested>,
    /// Whether a text is within a fence.
    fenced: bool,
    /// Lines of the first paragraph of a text.
    opening: usize,
    line: Line,
    /// What it is made of.
    pieces: Vec<(usize, Piece)>,
    /// Where the next line begins.
    next: usize,
    told: usize,
}

impl<'a> Parts<'a> {
    pub(super) fn new(path: &str, bytes: &'a [u8]) -> Self {
        let syntax = syntax(path);
        let mut stops = [false; 256];
        let comments = syntax.comments.line.iter().copied().chain(syntax.comments.block.map(|(open, _)| open));
        for mark in comments.chain(syntax.quotes.iter().map(|quote| quote.mark)) {
            stops[usize::from(mark.as_bytes()[0])] = true;
        }
        for byte in if syntax.marks_tests { &b"{};"[..] } else { b"" } {
            stops[usize::from(*byte)] = true;
        }
        stops[usize::from(b'\'')] |= syntax.ticks != Ticks::Nothing;
        Self {
            bytes,
            syntax,
            stops,
            state: State::Code,
            intro: Intro::Awaited,
            depth: 0,
            tested: None,
            fenced: false,
            opening: 0,
            line: Line::default(),
            pieces: Vec::new(),
            next: if bytes.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 },
            told: 0,
        }
    }

    /// The line that holds this byte. Asked from the file's beginning to its end.
    pub(super) fn line_at(&mut self, at: usize) -> Line {
        while self.next <= at && self.next < self.bytes.len() {
            self.read_line();
        }
        self.line
    }

    /// The next line, and what it begins with.
    pub(super) fn next_line(&mut self) -> Option<(Line, Part)> {
        if self.next >= self.bytes.len() {
            return None;
        }
        self.read_line();
        let text = &self.bytes[self.line.from..self.line.to];
        let indent = text.len() - text.trim_ascii_start().len();
        let part = self.part_at(self.line.from + indent);
        Some((self.line, part))
    }

    /// What stands at this byte of the last line.
    pub(super) fn part_at(&mut self, at: usize) -> Part {
        if let Some(whole) = self.line.whole {
            return whole;
        }
        let place = self.pieces.partition_point(|(end, _)| *end <= at);
        match self.pieces.get(place).map_or(Piece::Code, |(_, piece)| *piece) {
            Piece::Code => *self.line.code.get_or_insert_with(|| {
                code_part(&String::from_utf8_lossy(&self.bytes[self.line.from..self.line.to]), self.syntax)
            }),
            Piece::Remark => Part::Body,
            Piece::Doc => Part::Doc,
            Piece::Head => Part::Head,
            Piece::Licence => Part::Licence,
            Piece::Literal => Part::Literal,
        }
    }

    /// How many bytes of the whole file tell something: no literals, no tests.
    pub(super) fn told(mut self) -> usize {
        while self.next < self.bytes.len() {
            self.read_line();
        }
        self.told
    }

    fn read_line(&mut self) {
        let from = self.next;
        let to = memchr::memchr(b'\n', &self.bytes[from..]).map_or(self.bytes.len(), |at| from + at);
        self.next = to + 1;
        self.pieces.clear();
        self.line = Line { number: self.line.number + 1, from, to, ..Line::default() };
        if self.syntax.is_prose {
            self.line.whole = Some(self.prose(from, to));
            self.told += to - from;
            return;
        }
        let text = &self.bytes[from..to];
        let blank = text.iter().all(u8::is_ascii_whitespace);
        if blank && matches!(self.state, State::Code) {
            self.intro = match self.intro {
                Intro::Open => Intro::Over,
                Intro::Licence => Intro::Awaited,
                other => other,
            };
        }
        if self.syntax.marks_tests && self.tested.is_none() && matches!(self.state, State::Code) && marks_test(text) {
            self.tested = Some(Tested { depth: self.depth, begun: false });
        }
        self.line.whole = self.tested.map(|_| Part::Tested);
        self.scan(from, to);
        if self.line.whole.is_none() {
            self.told += self
                .pieces
                .iter()
                .fold((from, 0), |(at, told), (end, piece)| {
                    (*end, if *piece == Piece::Literal { told } else { told + end - at })
                })
                .1;
        }
    }

    fn piece(&mut self, end: usize, piece: Piece) {
        if self.pieces.last().map_or(self.line.from, |(end, _)| *end) < end {
            self.pieces.push((end, piece));
        }
    }

    fn scan(&mut self, from: usize, to: usize) {
        if let State::Literal { quote, .. } = self.state
            && !quote.over_lines
        {
            self.state = State::Code;
        }
        let mut at = from;
        while at < to {
            at = match self.state {
                State::Code => self.scan_code(at, to),
                State::Comment { depth, piece } => self.scan_comment(at, to, depth, piece),
                State::Literal { quote, piece } => self.scan_literal(at, to, quote, piece),
                State::Raw { hashes } => self.scan_raw(at, to, hashes),
            };
        }
    }

    /// Goes on in code, up to where something else begins.
    fn scan_code(&mut self, from: usize, to: usize) -> usize {
        let mut at = from;
        loop {
            let Some(found) = self.bytes[at..to].iter().position(|byte| self.stops[usize::from(*byte)]) else {
                self.code_ends(from, to);
                return to;
            };
            at += found;
            let rest = &self.bytes[at..to];
            if self.syntax.marks_tests && matches!(rest[0], b'{' | b'}' | b';') {
                self.brace(rest[0]);
                at += 1;
                continue;
            }
            let Comments { line, block, nested: _ } = self.syntax.comments;
            if line.iter().any(|mark| rest.starts_with(mark.as_bytes())) && self.begins_remark(at) {
                self.code_ends(from, at);
                let piece = self.comment(at, line);
                self.piece(to, piece);
                return to;
            }
            if let Some((open, _)) = block.filter(|(open, _)| rest.starts_with(open.as_bytes())) {
                self.code_ends(from, at);
                let piece = self.comment(at, &[]);
                self.state = State::Comment { depth: 1, piece };
                self.piece(at + open.len(), piece);
                return at + open.len();
            }
            if let Some(end) = self.tick(at, to) {
                at = end;
                continue;
            }
            if let Some(quote) = self.syntax.quotes.iter().find(|quote| rest.starts_with(quote.mark.as_bytes()))
                && (quote.mark != "'" || !self.is_apostrophe(at))
            {
                return self.open_literal(from, at, *quote);
            }
            at += 1;
        }
    }

    fn open_literal(&mut self, from: usize, at: usize, quote: Quote) -> usize {
        let alone = self.bytes[self.line.from..at].iter().all(u8::is_ascii_whitespace);
        let first = alone && quote.documents;
        let piece = match (first, self.intro) {
            (true, Intro::Awaited | Intro::Open) => Piece::Head,
            (true, _) => Piece::Doc,
            (false, _) => Piece::Literal,
        };
        self.code_ends(from, at);
        if first {
            self.intro = Intro::Over;
        }
        let end = at + quote.mark.len();
        self.piece(end, piece);
        let hashes = self.bytes[..at].iter().rev().take_while(|byte| **byte == b'#').count();
        let is_raw = self.syntax.ticks == Ticks::Lifetimes && self.bytes[..at - hashes].ends_with(b"r");
        self.state = if is_raw { State::Raw { hashes } } else { State::Literal { quote, piece } };
        end
    }

    fn scan_comment(&mut self, from: usize, to: usize, depth: u32, piece: Piece) -> usize {
        let Comments { block: Some((open, close)), nested, .. } = self.syntax.comments else { return to };
        let (first, other) = (close.as_bytes()[0], if nested { open.as_bytes()[0] } else { close.as_bytes()[0] });
        let mut at = from;
        while let Some(found) = memchr::memchr2(first, other, &self.bytes[at..to]) {
            at += found;
            let rest = &self.bytes[at..to];
            let (end, depth) = if rest.starts_with(close.as_bytes()) {
                (at + close.len(), depth - 1)
            } else if nested && rest.starts_with(open.as_bytes()) {
                (at + open.len(), depth + 1)
            } else {
                at += 1;
                continue;
            };
            self.piece(end, piece);
            self.state = if depth > 0 { State::Comment { depth, piece } } else { State::Code };
            return end;
        }
        self.piece(to, piece);
        to
    }

    fn scan_literal(&mut self, from: usize, to: usize, quote: Quote, piece: Piece) -> usize {
        let mark = quote.mark.as_bytes();
        let escape = if quote.escapes { b'\\' } else { mark[0] };
        let mut at = from;
        while let Some(found) = memchr::memchr2(escape, mark[0], self.bytes.get(at..to).unwrap_or_default()) {
            at += found;
            if self.bytes[at..to].starts_with(mark) {
                self.state = State::Code;
                self.piece(at + mark.len(), piece);
                return at + mark.len();
            }
            at += if self.bytes[at] == escape { 2 } else { 1 };
        }
        self.piece(to, piece);
        to
    }

    fn scan_raw(&mut self, from: usize, to: usize, hashes: usize) -> usize {
        let mut at = from;
        while let Some(found) = memchr::memchr(b'"', &self.bytes[at..to]) {
            at += found + 1;
            let closing = self.bytes[at..to].iter().take_while(|byte| **byte == b'#').take(hashes).count();
            if closing == hashes {
                self.state = State::Code;
                self.piece(at + hashes, Piece::Literal);
                return at + hashes;
            }
        }
        self.piece(to, Piece::Literal);
        to
    }

    /// Code lies between these two.
    fn code_ends(&mut self, from: usize, to: usize) {
        if self.intro != Intro::Over && self.bytes[from..to].iter().any(|byte| !byte.is_ascii_whitespace()) {
            let shebang = self.line.number == 1 && self.bytes.starts_with(b"#!/");
            self.intro = if shebang { self.intro } else { Intro::Over };
        }
        self.piece(to, Piece::Code);
    }

    /// What the comment is that begins here. Those of these marks go on for as long as lines begin with one.
    fn comment(&mut self, at: usize, marks: &[&str]) -> Piece {
        if self.bytes[self.line.from..at].iter().any(|byte| !byte.is_ascii_whitespace()) {
            return Piece::Remark;
        }
        if self.intro == Intro::Awaited {
            self.intro = if self.is_licence(at, marks) { Intro::Licence } else { Intro::Open };
        }
        let own = self.syntax.ticks == Ticks::Lifetimes && self.bytes[at..].starts_with(b"//!");
        match self.intro {
            Intro::Licence => Piece::Licence,
            Intro::Open => Piece::Head,
            _ if own => Piece::Head,
            Intro::Awaited | Intro::Over => Piece::Doc,
        }
    }

    fn is_licence(&self, at: usize, marks: &[&str]) -> bool {
        let rest = &self.bytes[at..self.bytes.len().min(at + LICENCE_BYTES)];
        let end = match self.syntax.comments.block {
            Some((_, close)) if marks.is_empty() => memchr::memmem::find(rest, close.as_bytes()).unwrap_or(rest.len()),
            _ => {
                let own = |line: &&[u8]| marks.iter().any(|mark| line.trim_ascii_start().starts_with(mark.as_bytes()));
                rest.split_inclusive(|byte| *byte == b'\n').take_while(own).map(<[u8]>::len).sum()
            }
        };
        let text = rest[..end].to_ascii_lowercase();
        ["copyright", "spdx-license", "licensed under"]
            .iter()
            .any(|word| memchr::memmem::find(&text, word.as_bytes()).is_some())
    }

    /// In a shell `$#` and `a#b` are no comments.
    fn begins_remark(&self, at: usize) -> bool {
        self.bytes[at] != b'#' || at == self.line.from || self.bytes[at - 1].is_ascii_whitespace()
    }

    /// As in `don't`, and in labels and lifetimes.
    fn is_apostrophe(&self, at: usize) -> bool {
        at > self.line.from && self.bytes[at - 1].is_ascii_alphanumeric()
    }

    /// Behind the character, label or lifetime of Rust that begins here.
    fn tick(&mut self, at: usize, to: usize) -> Option<usize> {
        if self.syntax.ticks != Ticks::Lifetimes || self.bytes[at] != b'\'' {
            return None;
        }
        let rest = &self.bytes[at + 1..to];
        let length = match rest.first()? {
            b'\\' => 2 + memchr::memchr(b'\'', rest.get(2..)?)?,
            first => 1.max(first.leading_ones() as usize),
        };
        Some(if rest.get(length) == Some(&b'\'') { at + length + 2 } else { at + 1 })
    }

    fn brace(&mut self, byte: u8) {
        self.depth += i32::from(byte == b'{') - i32::from(byte == b'}');
        let Some(tested) = &mut self.tested else { return };
        tested.begun |= byte == b'{';
        if self.depth <= tested.depth && (byte == b';' || byte == b'}' && tested.begun) {
            self.tested = None;
        }
    }

    /// What a line of a text is: its title and first paragraph say what the whole is about.
    fn prose(&mut self, from: usize, to: usize) -> Part {
        let text = self.bytes[from..to].trim_ascii();
        if text.starts_with(b"```") || text.starts_with(b"~~~") {
            self.fenced = !self.fenced;
            self.intro = Intro::Over;
            return Part::Body;
        }
        let is_heading =
            !self.fenced && (text.starts_with(b"#") || text.starts_with(b".SH") || text.starts_with(b".SS"));
        let is_title = is_heading && self.intro == Intro::Awaited;
        if is_title {
            self.intro = Intro::Open;
        } else if is_heading || text.is_empty() && self.opening > 0 {
            self.intro = Intro::Over;
        } else if self.intro == Intro::Open && !text.is_empty() {
            self.opening += 1;
        }
        match self.intro {
            _ if is_heading => Part::Heading,
            Intro::Open => Part::Head,
            _ => Part::Body,
        }
    }
}

/// Whether what follows is compiled for tests only.
fn marks_test(line: &[u8]) -> bool {
    let line = line.trim_ascii_start();
    line.starts_with(b"#[")
        && [&b"#[cfg(test)]"[..], b"#[cfg(all(test", b"#[cfg(any(test", b"#[test]", b"#[tokio::test", b"#[bench]"]
            .iter()
            .any(|mark| line.starts_with(mark))
}

/// What the code of a line is.
fn code_part(line: &str, syntax: &Syntax) -> Part {
    let trimmed = line.trim_start();
    if is_definition(trimmed) || syntax.has_bare_functions && is_bare_function(line) {
        Part::Definition
    } else if ["use ", "pub use ", "import ", "from ", "#include", "require ", "package "]
        .iter()
        .any(|mark| trimmed.starts_with(mark))
    {
        Part::Import
    } else {
        Part::Body
    }
}

/// Whether a line of a language that has no word for it begins a function (`static int check(const char *it)`), or names a macro.
fn is_bare_function(line: &str) -> bool {
    const OTHERS: &[&str] = &[
        "if", "for", "while", "switch", "return", "else", "do", "case", "catch", "throw", "new", "await", "delete",
        "typedef",
    ];
    if line.starts_with("#define ") {
        return true;
    }
    let text = line.trim();
    let first = text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
    let called = text.split_once('(').map(|(before, _)| before);
    let named = called.is_some_and(|before| {
        before.ends_with(|c: char| c.is_alphanumeric() || c == '_') && !before.contains(['=', '.', '"'])
    });
    let outside = !line.starts_with(char::is_whitespace) && !text.ends_with(';');
    named && !first.is_empty() && !OTHERS.contains(&first) && (outside || text.ends_with('{'))
}

/// Whether a line of code gives something its name by a word for it.
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
        "typedef",
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What each `jar` of a text is.
    fn jars(path: &str, text: &str) -> Vec<Part> {
        let mut parts = Parts::new(path, text.as_bytes());
        text.match_indices("jar")
            .map(|(at, _)| {
                parts.line_at(at);
                parts.part_at(at)
            })
            .collect()
    }

    use Part::{Body, Definition, Doc, Head, Heading, Import, Licence, Literal, Tested};

    #[test]
    fn literals_and_comments_are_told_from_code() {
        for (path, text, parts) in [
            // Rust
            ("a.rs", "let jar = \"a jar\"; // jar", &[Body, Literal, Body][..]),
            ("a.rs", "x;\n/// jar\nfn jar() {}", &[Doc, Definition]),
            ("a.rs", "x(\"\\\" jar\", jar)", &[Literal, Body]),
            ("a.rs", "x(\"one\n  jar\n\"); jar", &[Literal, Body]),
            ("a.rs", "x(r#\"jar \" jar\"#, jar)", &[Literal, Literal, Body]),
            ("a.rs", "x('\"', jar, '\\'', jar)", &[Body, Body]),
            ("a.rs", "impl<'a> A<'a> for jar { x(\"jar\") }", &[Definition, Literal]),
            ("a.rs", "x;\n/* jar /* jar */ jar */ jar", &[Doc, Doc, Doc, Body]),
            ("a.rs", "use jar::x;", &[Import]),
            // C
            ("a.c", "x;\n/* jar */\nint jar(void)\n{\n  y(\"jar\", '\"', jar);", &[Doc, Definition, Literal, Body]),
            ("a.c", "#include \"x.h\"\n#define jar 1\n  jar(1);\nint x(jar);", &[Definition, Body, Body]),
            ("a.c", "x = \"open jar\njar", &[Literal, Body]),
            // JavaScript
            ("a.js", "const jar = `a\n jar ${jar}`; jar", &[Definition, Literal, Literal, Body]),
            ("a.ts", "x;\n  open(jar) {\n  if (jar) {\n  y('jar'); // don't jar", &[Definition, Body, Literal, Body]),
            // Go
            ("a.go", "x\n// jar\nfunc jar() {\n y(`\\`, jar, \"jar\")", &[Doc, Definition, Body, Literal]),
            // Python
            (
                "a.py",
                "x\ndef jar():\n  \"\"\"jar\n  jar\"\"\"\n  return 'jar' # jar",
                &[Definition, Doc, Doc, Literal, Body],
            ),
            ("a.py", "x = \"\"\"jar\njar\"\"\"; jar", &[Literal, Literal, Body]),
            // Others
            ("a.sh", "x $#jar \"jar\" # jar\n", &[Body, Literal, Body]),
            ("a.yaml", "x: don't jar 'jar'\n", &[Body, Literal]),
            ("a.lua", "x\n-- jar\njar", &[Doc, Body]),
            ("a.xyz", "\"jar\" // jar", &[Body, Body]),
        ] {
            assert_eq!(jars(path, text), parts, "{path}: {text}");
        }
    }

    #[test]
    fn a_file_introduces_itself_at_its_beginning() {
        for (path, text, parts) in [
            (
                "a.rs",
                "//! jar\n//!\n//! jar\n\n// jar\nmod x { //! jar\n//! jar\n}",
                &[Head, Head, Doc, Body, Head][..],
            ),
            ("a.c", "/* jar */\n\n/* jar */\nint x;", &[Head, Doc]),
            (
                "a.c",
                "/* Copyright of the jar\n * jar */\n\n/* jar */\n#include <x>\n/* jar */",
                &[Licence, Licence, Head, Doc],
            ),
            ("a.go", "// SPDX-License-Identifier: jar\n// jar\n\n// jar\npackage x", &[Licence, Licence, Head]),
            ("a.py", "#!/usr/bin/python\n\"\"\"jar\n\njar\"\"\"\nx = 1\n# jar", &[Head, Head, Doc]),
            ("a.py", "# jar\n\n# jar\nimport jar", &[Head, Doc, Import]),
            (
                "a.md",
                "# jar\n\njar\njar\n\njar\n## jar\njar\n```\n# jar\n```\n# jar",
                &[Heading, Head, Head, Body, Heading, Body, Body, Heading],
            ),
            ("a.1", ".TH X\n.SH jar\njar", &[Heading, Head]),
        ] {
            assert_eq!(jars(path, text), parts, "{path}: {text}");
        }
        let mark = [BYTE_ORDER_MARK, b"# jar\n"].concat();
        let mut parts = Parts::new("a.md", &mark);
        assert_eq!(parts.next_line().map(|(line, part)| (line.number, line.from, part)), Some((1, 3, Heading)));
    }

    #[test]
    fn what_is_compiled_for_tests_only_ends_with_its_item() {
        for (text, parts) in [
            (
                "#[cfg(test)]\nmod tests {\n fn jar() { \"jar}\" }\n // jar }\n}\njar",
                &[Tested, Tested, Tested, Body][..],
            ),
            ("#[cfg(test)]\nmod jar;\njar", &[Tested, Body]),
            ("#[cfg(all(test, unix))]\nuse x::{jar, y};\njar", &[Tested, Body]),
            ("#[test]\n#[ignore]\nfn jar() {\n  {}\n  jar\n}\nfn jar() {}", &[Tested, Tested, Definition]),
            ("impl A {\n  #[cfg(test)]\n  fn jar() {\n  }\n  fn jar() {}\n}", &[Tested, Definition]),
            ("#[cfg(unix)]\nfn jar() {}", &[Definition]),
        ] {
            assert_eq!(jars("a.rs", text), parts, "{text}");
        }
        assert_eq!(jars("a.c", "#[cfg(test)]\nint jar(void) {"), [Definition], "a mark of Rust");
    }

    #[test]
    fn only_what_tells_something_counts_as_length() {
        let told = |path: &str, text: &str| Parts::new(path, text.as_bytes()).told();
        assert_eq!(told("a.rs", "abc(\"12345\")\n#[test]\nfn x() {\n}\nd"), 6);
        assert_eq!(told("a.md", "abc \"12\"\n"), 8);
        assert_eq!(told("a.rs", ""), 0);
    }

    #[test]
    fn any_bytes_are_gone_through() {
        let seed = 5;
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let pieces: &[&[u8]] = &[
            b"\"",
            b"'",
            b"`",
            b"/*",
            b"*/",
            b"//",
            b"r#",
            b"\\",
            b"\n",
            b"{",
            b"}",
            b"#[test]",
            b"\xff",
            b"\xc3\xa9",
            b"'\xe2",
            b"x",
            b" ",
            b"#",
            b"\"\"\"",
        ];
        for round in 0..2_000 {
            let text: Vec<u8> =
                (0..30).flat_map(|_| random.choice(pieces).copied().unwrap_or_default()).copied().collect();
            for path in ["a.rs", "a.c", "a.js", "a.go", "a.py", "a.sh", "a.md", "a.java", "a.hs"] {
                let mut parts = Parts::new(path, &text);
                let mut last = 0;
                while let Some((line, _)) = parts.next_line() {
                    assert!(line.from >= last && line.to <= text.len(), "{round}: {path}");
                    (line.from..line.to).for_each(|at| assert!(parts.part_at(at).weight() > 0.0));
                    last = line.to;
                }
                assert!(Parts::new(path, &text).told() <= text.len());
            }
        }
    }
}
