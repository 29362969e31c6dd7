//! Writes what was found as a Markdown answer.
//!
//! Owns: the words and the layout. May not know how files were ranked.

use std::fmt::Write as _;
use std::path::Path;

use super::search::{Found, PASSAGE_LINES, Passage, Ranked, each, is_definition};
use super::words::Term;
use crate::base::lenient;
use crate::checkout::plain;

/// Files shown with excerpts; the next ones only by name.
const SHOWN_FILES: usize = 6;
/// Characters of the whole answer, within what every client shows.
const MAX_ANSWER: usize = 12_000;
/// Characters of one line.
const MAX_LINE: usize = 160;
/// Bytes of a file that is shown; what is searched is smaller, but may have grown since.
const MOST_BYTES: usize = 2 << 20;
/// Lines before and after a passage.
const CONTEXT: u64 = 2;

/// The answer to a search for these terms.
pub(super) fn write(root: &Path, terms: &[Term], found: &Found) -> String {
    let mut out = String::from(
        "**No model was asked.** This is a word search in the working directory by phone-opus' offline agent; it ranks \
         passages, and does not understand the question.\n\n",
    );
    if terms.is_empty() {
        out.push_str("The request has no words to search for. Name what it is about: a function, a file, a subject.\n");
        return out;
    }
    let all = quoted(terms, u64::MAX);
    let stopped = match found.stopped {
        Some(bound) => format!(" The search stopped at its bound for the {bound}; the rest was not read."),
        None => String::new(),
    };
    let stopped = match found.ignores_left_out {
        0 => stopped,
        count => {
            format!("{stopped} Ignore files that did not count (too large, no plain file, or another user's): {count}.")
        }
    };
    let read = format!("{} files ({})", found.files, size(found.bytes));
    if found.ranked.is_empty() {
        let _ = write!(
            out,
            "Searched {read} for {all}: the request matches none of them.{stopped}\n\nTry the words the files would \
             use, or an identifier.\n"
        );
        return out;
    }
    let _ = writeln!(out, "Searched {read} for {all}; {} have at least one of them.{stopped}\n", found.matching);
    out.push_str("## Where to look\n\n");
    for (place, file) in found.ranked.iter().take(SHOWN_FILES).enumerate() {
        let line = file.passages.first().map_or(1, |passage| passage.best);
        let _ = writeln!(out, "{}. `{}:{line}`: {}", place + 1, named(&file.path), quoted(terms, file.terms));
    }
    for file in found.ranked.iter().take(SHOWN_FILES) {
        let section = section(root, terms, file);
        if out.len() + section.len() > MAX_ANSWER {
            break;
        }
        out.push_str(&section);
    }
    let rest: Vec<&Ranked> = found.ranked.iter().skip(SHOWN_FILES).collect();
    if !rest.is_empty() {
        out.push_str("\n## Also\n\n");
        for file in rest {
            let line = file.passages.first().map_or(1, |passage| passage.best);
            let _ = writeln!(out, "- `{}:{line}`: {}", named(&file.path), quoted(terms, file.terms));
        }
    }
    out
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
        let _ = write!(out, "\n### `{}:{from}-{to}`{within}\n\n", named(&file.path));
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
