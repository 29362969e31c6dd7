//! Writes what was found as a Markdown answer.
//!
//! Owns: the words and the layout. May not know how files were ranked.

use std::fmt::Write as _;
use std::path::Path;

use super::gist::gist;
use super::parts::is_definition;
use super::passages::{PASSAGE_LINES, Passage, each};
use super::search::{Found, Ranked};
use super::words::{Asked, Extent, Term};
use crate::base::lenient;
use crate::checkout::plain;

/// Files that are shown: what fits on a screen.
const SHOWN_FILES: usize = 6;
/// Columns of a terminal, for all but what must stay whole.
const COLUMNS: usize = 80;
/// Lines of one sentence.
const SENTENCE_LINES: usize = 2;
/// Characters of the whole answer, within what every client shows.
const MAX_ANSWER: usize = 12_000;
/// Characters of one line.
const MAX_LINE: usize = 160;
/// Bytes of a file that is shown; what is searched is smaller, but may have grown since.
const MOST_BYTES: usize = 2 << 20;
/// Lines before and after a passage.
const CONTEXT: u64 = 2;

/// The answer to a search.
pub(super) fn write(root: &Path, asked: &Asked, found: &Found) -> String {
    let mut out = introduction(asked, found);
    for (place, file) in found.ranked.iter().take(SHOWN_FILES).enumerate() {
        let line = file.line();
        let _ = writeln!(out, "\n{}. {}:{line}", place + 1, named(&file.path));
        let bytes = plain::read(&root.join(&file.path), MOST_BYTES).ok().flatten().unwrap_or_default();
        let gist = gist(&file.path, &bytes, line, |text| asked.count_in(text));
        for line in wrapped(&lenient::visible(&gist), COLUMNS - 3, SENTENCE_LINES) {
            let _ = writeln!(out, "   {line}");
        }
    }
    match asked.extent {
        _ if found.ranked.is_empty() => {}
        Extent::Six => {
            let more = match found.ranked.len().saturating_sub(SHOWN_FILES) {
                0 => "Lines of these".to_owned(),
                rest => format!("{rest} more, and lines of these"),
            };
            let _ = writeln!(out, "\n{more}: the same question with `all:` before it.");
        }
        Extent::All => add_excerpts(&mut out, root, &asked.terms, found),
    }
    out
}

/// What was searched, and for what: each fact a paragraph.
fn introduction(asked: &Asked, found: &Found) -> String {
    let mut facts = Vec::new();
    let all = quoted(&asked.terms, u64::MAX);
    let read = format!("{} files ({})", found.files, size(found.bytes));
    if asked.terms.is_empty() {
        facts.push("**No model was asked.** The request has no words to search for. Name what it is about: a function, a file, a subject.".to_owned());
    } else if found.ranked.is_empty() {
        facts.push(format!("**No model was asked.** A word search for {all}, in {read}."));
        facts.push("The request matches none. Try the words the files would use, or an identifier.".to_owned());
    } else {
        facts.push(format!("**No model was asked.** A word search for {all}: {} of {read} have one.", found.matching));
    }
    if let Some(bound) = found.stopped {
        facts.push(format!("The search stopped at its bound for the {bound}; the rest was not read."));
    }
    if found.ignores_left_out > 0 {
        let left_out = found.ignores_left_out;
        facts.push(format!("Ignore files left out (too large, no plain file, or another user's): {left_out}."));
    }
    facts.iter().map(|fact| paragraph(fact)).collect::<Vec<_>>().join("\n")
}

/// Lines of the files that are shown, and the names of the others.
fn add_excerpts(out: &mut String, root: &Path, terms: &[Term], found: &Found) {
    let rest: Vec<&Ranked> = found.ranked.iter().skip(SHOWN_FILES).collect();
    if !rest.is_empty() {
        out.push_str("\n## Also\n\n");
        for file in rest {
            let _ = writeln!(out, "- {}:{}", named(&file.path), file.line());
        }
    }
    for file in found.ranked.iter().take(SHOWN_FILES) {
        let section = section(root, terms, file);
        if out.len() + section.len() > MAX_ANSWER {
            break;
        }
        out.push_str(&section);
    }
}

/// A text in lines that a terminal shows whole, each ended.
fn paragraph(text: &str) -> String {
    wrapped(text, COLUMNS, usize::MAX).into_iter().map(|line| line + "\n").collect()
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// A text in lines of so many columns, a longer word by itself. What does not fit in so many lines is left out with a sign.
fn wrapped(text: &str, columns: usize, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let is_full = lines.len() == most;
        let Some(line) = lines.last_mut().filter(|line| is_full || width(line) + 1 + width(word) <= columns) else {
            lines.push(word.to_owned());
            continue;
        };
        if width(line) + 1 + width(word) > columns {
            while width(line) + 2 > columns && line.pop().is_some() {}
            line.push_str(" …");
            break;
        }
        line.push(' ');
        line.push_str(word);
    }
    lines
}

/// A file's name on one line, whatever is in it: a repository may hold any.
fn named(path: &str) -> String {
    lenient::visible(path).replace('\n', "\\u000a").replace('\t', "\\u0009")
}

/// One file's excerpts. Empty when the file is gone by now.
fn section(root: &Path, terms: &[Term], file: &Ranked) -> String {
    let mut out = String::new();
    let Ok(Some(bytes)) = plain::read(&root.join(&file.path), MOST_BYTES) else { return out };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let mut passages: Vec<&Passage> = file.passages.iter().collect();
    passages.sort_by_key(|passage| passage.from);
    for passage in passages {
        let last = lines.len() as u64;
        let from = passage.from.saturating_sub(CONTEXT).max(1);
        let to = (passage.to + CONTEXT).min(from + PASSAGE_LINES + 2 * CONTEXT).min(last);
        let within = enclosing(&lines, passage.best).map(|item| format!(", in `{item}`")).unwrap_or_default();
        let _ = write!(out, "\n### {}:{from}-{to}{within}\n\n", named(&file.path));
        let _ = writeln!(out, "{}\n", quoted(terms, passage.terms));
        let excerpt: String = (from..=to).map(|number| numbered(&lines, number, passage)).collect();
        let fence = "`".repeat(longest_backticks(&excerpt).max(2) + 1);
        let _ = writeln!(out, "{fence}{}\n{excerpt}{fence}", language(&file.path));
    }
    out
}

/// One line as grep shows it: `12:` with a term, `12-` without.
fn numbered(lines: &[&str], number: u64, passage: &Passage) -> String {
    let text = usize::try_from(number - 1).ok().and_then(|index| lines.get(index)).copied().unwrap_or_default();
    let mark = if passage.lines.contains(&number) { ':' } else { '-' };
    let cut = text.char_indices().nth(MAX_LINE).map_or(text.len(), |(end, _)| end);
    let more = if cut < text.len() { "…" } else { "" };
    let text: String = text[..cut].chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c }).collect();
    format!("{number:>5}{mark} {}{more}\n", text.trim_end())
}

/// The definition a line stands in: the nearest one above it that is indented less.
fn enclosing(lines: &[&str], number: u64) -> Option<String> {
    let index = usize::try_from(number).ok()?.checked_sub(1)?;
    let indent = |line: &str| line.len() - line.trim_start().len();
    let own = indent(lines.get(index)?);
    let item = lines[..index]
        .iter()
        .rev()
        .take(200)
        .find(|line| !line.trim().is_empty() && indent(line) < own && is_definition(line.trim_start()))?;
    let name: String = item.trim().split(['{', '(']).next()?.trim().chars().filter(|c| *c != '`').take(80).collect();
    (!name.is_empty()).then_some(name)
}

fn quoted(terms: &[Term], bits: u64) -> String {
    each(bits).filter_map(|bit| terms.get(bit)).map(|term| format!("`{}`", term.shown)).collect::<Vec<_>>().join(", ")
}

fn longest_backticks(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{} KB", bytes / 1_000),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000),
    }
}

/// The fence's language, for readers that colour it.
fn language(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("rs") => "rust",
        Some("py") => "python",
        Some("ts" | "tsx") => "typescript",
        Some("js" | "jsx" | "mjs") => "javascript",
        Some("go") => "go",
        Some("c" | "h") => "c",
        Some("cpp" | "hpp" | "cc") => "cpp",
        Some("java") => "java",
        Some("sh") => "sh",
        Some("toml") => "toml",
        Some("yaml" | "yml") => "yaml",
        Some("md") => "markdown",
        _ => "text",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_at_the_edge_of_a_terminal_and_what_is_left_out_is_marked() {
        for (text, columns, most, lines) in [
            ("one two three", 7, 9, &["one two", "three"][..]),
            ("one two three", 7, 1, &["one t …"]),
            ("one two", 7, 1, &["one two"]),
            ("incomprehensible it is", 5, 9, &["incomprehensible", "it is"]),
            ("incomprehensible it is", 5, 1, &["inc …"]),
            ("", 5, 2, &[]),
        ] {
            assert_eq!(wrapped(text, columns, most), lines, "{text} in {columns}, {most}");
        }
        let seed = 11;
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let text: String = (0..300).map(|_| random.choice(['a', 'é', ' ', '…']).unwrap_or(' ')).collect();
            let lines = wrapped(&text, 80, 2);
            assert!(lines.len() <= 2 && lines.iter().all(|line| width(line) <= 80 || !line.contains(' ')), "{lines:?}");
        }
    }
}
