//! The sentence that says what stands at a line.
//!
//! Owns: which sentence that is. May not know: what was searched for, how it is shown.
//!
//! A comment or a paragraph says it itself, by the sentence the line is part of. Code is spoken for by the comment of its definition, and
//! if there is none by the definition.

use std::ops::Range;

use super::languages::is_prose;
use super::parts::{Part, Parts, is_definition};

/// Lines above one that are looked at for the definition it stands in.
const ABOVE: usize = 200;
/// Lines of a comment or a paragraph that are looked at, on either side.
const AROUND: usize = 40;
/// Lines between a comment and what it belongs to.
const BETWEEN: usize = 4;
/// Characters of a sentence.
const MAX_CHARS: usize = 400;

/// What opens or closes a line of a comment, a list or a table and is none of its words.
const MARKS: &[&str] =
    &["//!", "///", "//", "/**", "/*", "*/", "**", "*", "\"\"\"", "'''", "#", "--", ";", "- ", "> ", "|"];

/// The sentence for a line, counted from 1; of several that the line is part of, the one that tells most. Empty when there is no such line.
pub(super) fn gist(path: &str, bytes: &[u8], line: u64, tells: impl Fn(&str) -> usize) -> String {
    let mut parts = Parts::new(path, bytes);
    let lines: Vec<(Part, String)> = std::iter::from_fn(|| parts.next_line())
        .map(|(line, part)| (part, String::from_utf8_lossy(&bytes[line.from..line.to]).into_owned()))
        .collect();
    let Some(at) = usize::try_from(line).ok().and_then(|line| line.checked_sub(1)).filter(|at| *at < lines.len())
    else {
        return String::new();
    };
    let found = match lines[at].0 {
        Part::Heading => words(&lines[at].1).to_owned(),
        _ if is_prose(path) => sentence(&lines, at, Whole::Paragraph, tells),
        Part::Head | Part::Doc => sentence(&lines, at, Whole::Comment, tells),
        _ => of_code(&lines, at),
    };
    let mut found = found.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = found.char_indices().nth(MAX_CHARS) {
        found.truncate(end);
        found.push('…');
    }
    found
}

/// What a sentence is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whole {
    Comment,
    Paragraph,
}

fn is_comment(part: Part) -> bool {
    matches!(part, Part::Head | Part::Doc)
}

/// A line without what marks it. Nothing of one that only orders how others look.
fn words(line: &str) -> &str {
    let mut line = line.trim();
    let is_order =
        line.starts_with("```") || line.starts_with('.') && line[1..].starts_with(|c: char| c.is_ascii_uppercase());
    if is_order {
        return "";
    }
    while let Some(rest) = MARKS.iter().find_map(|mark| line.strip_prefix(mark)) {
        line = rest.trim_start();
    }
    ["*/", "\"\"\"", "'''", "|", "#"].iter().fold(line, |line, mark| line.trim_end().trim_end_matches(mark)).trim_end()
}

/// Whether a line is not part of what stands above it: an item of a list, a row of a table.
fn stands_alone(line: &str) -> bool {
    ["- ", "* ", "| "].iter().any(|mark| line.trim_start().starts_with(mark))
}

/// The comment or paragraph around a line as one text, and where the line is in it.
fn block(lines: &[(Part, String)], at: usize, whole: Whole) -> (String, Range<usize>) {
    let belongs = |part: Part| if whole == Whole::Comment { is_comment(part) } else { part != Part::Heading };
    let is_in = |(part, text): &(Part, String)| belongs(*part) && !words(text).is_empty();
    let is_item = |place: usize| whole == Whole::Paragraph && stands_alone(&lines[place].1);
    let (mut from, mut to) = (at, at + 1);
    while from > 0 && at - from < AROUND && !is_item(from) && is_in(&lines[from - 1]) {
        from -= 1;
    }
    while to < lines.len() && to - at < AROUND && is_in(&lines[to]) && !is_item(to) {
        to += 1;
    }
    let (mut text, mut own) = (String::new(), 0..0);
    for (place, (_, line)) in lines.iter().enumerate().take(to).skip(from) {
        let begin = text.len();
        text.push_str(words(line));
        if place == at {
            own = begin..text.len();
        }
        text.push(' ');
    }
    (text, own)
}

/// Of the sentences that a line is part of, the one that tells most, and of equals the one with more of the line.
fn sentence(lines: &[(Part, String)], at: usize, whole: Whole, tells: impl Fn(&str) -> usize) -> String {
    let (text, own) = block(lines, at, whole);
    let (mut best, mut from) = ((0, 0, ""), 0);
    for piece in sentences(&text) {
        let to = from + piece.len();
        let shared = to.min(own.end).saturating_sub(from.max(own.start));
        let told = tells(piece);
        if shared > 0 && (told, shared) > (best.0, best.1) {
            best = (told, shared, piece);
        }
        from = to;
    }
    best.2.trim().to_owned()
}

/// A text cut behind each end of a sentence.
fn sentences(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let ends = |(at, c): &(usize, char)| {
            let behind = &rest[at + c.len_utf8()..];
            let next = behind.trim_start().chars().next();
            // Behind `1.` and `e.g.` a sentence goes on.
            let word = rest[..*at].rsplit(' ').next().unwrap_or_default();
            matches!(c, '.' | '?' | '!')
                && behind.starts_with(' ')
                && word.len() > 1
                && next.is_none_or(|c| !c.is_lowercase())
        };
        let end = rest.char_indices().find(ends).map_or(rest.len(), |(at, c)| at + c.len_utf8());
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(piece)
    })
}

/// What is said of the definition that a line of code is part of, or the definition, or the line.
fn of_code(lines: &[(Part, String)], at: usize) -> String {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let own = indent(&lines[at].1);
    let defines = |(part, text): &(Part, String)| *part == Part::Definition || is_definition(text.trim_start());
    if let Some(said) = said_of(lines, at) {
        return said;
    }
    let definition = if defines(&lines[at]) {
        Some(at)
    } else {
        let above = lines[..at].iter().rev().take(ABOVE);
        above.enumerate().find(|(_, line)| defines(line) && indent(&line.1) < own).map(|(back, _)| at - 1 - back)
    };
    let Some(definition) = definition else { return lines[at].1.trim().to_owned() };
    said_of(lines, definition).unwrap_or_else(|| lines[definition].1.trim().trim_end_matches('{').trim_end().to_owned())
}

/// The first sentence of the comment that belongs to a line of code: above it, or below it where a literal is the comment.
fn said_of(lines: &[(Part, String)], at: usize) -> Option<String> {
    // An attribute, and in C the type of a result, stand between a comment and a name.
    let between = |(part, text): &&(Part, String)| {
        let text = text.trim();
        !is_comment(*part)
            && !text.is_empty()
            && (text.starts_with(['#', '@']) || !text.contains(['{', '}', ';', '=', ',']))
    };
    let above = at - lines[..at].iter().rev().take(BETWEEN).take_while(between).count();
    let is_said = |place: &usize| lines.get(*place).is_some_and(|(part, _)| is_comment(*part));
    let above = above.checked_sub(1).filter(is_said);
    let below = Some(at + 1).filter(|place| is_said(place) && lines[*place].1.trim_start().starts_with(['"', '\'']));
    // The last line of a comment may close it and say nothing.
    let place = above.or(below).map(|place| {
        (place.saturating_sub(1)..=place + 1).find(|place| is_said(place) && !words(&lines[*place].1).is_empty())
    })??;
    let (text, _) = block(lines, place, Whole::Comment);
    sentences(&text).next().map(|first| first.trim().to_owned()).filter(|first| !first.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sentence for the line that holds `§`, which counts for nothing itself.
    fn of(path: &str, text: &str, word: &str) -> String {
        let line = text.lines().position(|line| line.contains('§')).expect("a mark") as u64 + 1;
        let tells = |piece: &str| piece.matches(word).count();
        gist(path, text.replace('§', "").as_bytes(), line, tells)
    }

    #[test]
    fn a_line_is_spoken_for_by_the_nearest_sentence() {
        for (path, text, word, said) in [
            ("a.rs", "//! Owns the jars.§ Nobody else does.\n\nfn a() {}\n", "jar", "Owns the jars."),
            ("a.rs", "//! Owns the jars.§ Nobody else does.\n\nfn a() {}\n", "Nobody", "Nobody else does."),
            (
                "a.rs",
                "/// Counts what is\n/// left. Twice.\n#[must_use]\npub fn count(§) {\n}\n",
                "",
                "Counts what is left.",
            ),
            ("a.rs", "/// Counts.\nfn count() {\n    let jars = 1;§\n}\n", "", "Counts."),
            ("a.rs", "pub enum E {\n    /// It broke. Badly.\n    Broken,§\n}\n", "", "It broke."),
            ("a.rs", "pub fn bare(a: u8) -> u8 {§\n    a\n}\n", "", "pub fn bare(a: u8) -> u8"),
            ("a.rs", "#[cfg(test)]\nmod tests {\n    fn tries() {\n        one();§\n    }\n}\n", "", "fn tries()"),
            (
                "a.py",
                "def parse(text):§\n    \"\"\"Parses it; no more. Or less.\"\"\"\n    return 1\n",
                "",
                "Parses it; no more.",
            ),
            ("a.c", "/*\n * Checks the digit. Once.\n */\nstatic int\ncheck(int a)§\n{\n}\n", "", "Checks the digit."),
            ("a.c", "int x;\n\nstatic int check(int a)\n{\n    return a;§\n}\n", "", "static int check(int a)"),
            ("a.md", "# Backups\n\nKept for a year. A copy§ helps.\n", "copy", "A copy helps."),
            ("a.md", "# Jars\n\n- one is red.\n- two§ is blue,\n  or green.\n- three\n", "", "two is blue, or green."),
            ("a.md", "# Jars\n\n| a | b |\n| c§ | d |\n", "", "c | d"),
            ("a.md", "## Restoring one§\n", "", "Restoring one"),
            ("a.1", ".SH NAME\n.TP\n.B scan\nReads§ barcodes.\n", "", "Reads barcodes."),
            ("a.unknown", "just words§ here", "", "just words here"),
        ] {
            assert_eq!(of(path, text, word), said, "{path}: {text}");
        }
        assert_eq!(gist("a.rs", b"fn a() {}\n", 9, |_| 0), "", "no such line");
        assert_eq!(gist("a.rs", b"", 1, |_| 0), "");
    }

    #[test]
    fn a_sentence_ends_where_the_next_one_begins() {
        for (text, pieces) in [
            ("One. Two? Three! four", &["One.", " Two?", " Three! four"][..]),
            ("See 1. this and e.g. that v1.2 of a.rs. Done", &["See 1. this and e.g. that v1.2 of a.rs.", " Done"]),
            ("no end", &["no end"]),
        ] {
            assert_eq!(sentences(text).collect::<Vec<_>>(), pieces);
        }
        let long = "word ".repeat(MAX_CHARS);
        assert!(gist("a.md", long.as_bytes(), 1, |_| 0).chars().count() <= MAX_CHARS + 1);
    }
}
