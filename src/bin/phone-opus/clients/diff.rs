//! A change as people read it before they agree to it.
//!
//! Owns: which lines are shown, and what of them. May not know: what is changed, and why.
//!
//! Invariant: a string that is not ours to write is shown as `…`. The lines beside ours can hold the keys of other servers, and what a
//! terminal or a build's log has shown stays there.

use std::ops::Range;

use super::text::Format;

/// Characters of a line that are shown; a whole file can be one line.
const WIDTH: usize = 160;

/// Pairs of lines that are compared for the smallest change. An install changes some ten lines; of a change that is larger all lines
/// are shown, from the first that differs to the last.
const PAIRS: usize = 1_000_000;

/// The lines that go and come, each with its sign, under the number of the first in either text. `ours` are the strings that may be
/// shown.
pub(super) fn lines(format: Format, old: &str, new: &str, ours: &[&str]) -> Vec<String> {
    let old: Vec<&str> = old.split_inclusive('\n').collect();
    let new: Vec<&str> = new.split_inclusive('\n').collect();
    let mut shown = Vec::new();
    for (was, is) in changes(&old, &new) {
        shown.push(format!("@@ -{},{} +{},{} @@", was.start + 1, was.len(), is.start + 1, is.len()));
        for (sign, lines) in [('-', old.get(was)), ('+', new.get(is))] {
            for line in lines.unwrap_or_default() {
                shown.push(format!("{sign}{}", cut(&masked(format, line.trim_end_matches(['\r', '\n']), ours))));
            }
        }
    }
    shown
}

/// Where the lines of two texts differ: which of the old go, and which of the new come in their place.
fn changes(old: &[&str], new: &[&str]) -> Vec<(Range<usize>, Range<usize>)> {
    let alike = |(a, b): &(&&str, &&str)| a == b;
    let head = old.iter().zip(new).take_while(alike).count();
    let (old, new) = (&old[head..], &new[head..]);
    let tail = old.iter().rev().zip(new.iter().rev()).take_while(alike).count();
    let (old, new) = (&old[..old.len() - tail], &new[..new.len() - tail]);
    let kept = if old.len().saturating_mul(new.len()) <= PAIRS { common(old, new) } else { Vec::new() };
    let mut changes = Vec::new();
    let (mut a, mut b) = (0, 0);
    for (next_a, next_b) in kept.into_iter().chain([(old.len(), new.len())]) {
        if a < next_a || b < next_b {
            changes.push((head + a..head + next_a, head + b..head + next_b));
        }
        (a, b) = (next_a + 1, next_b + 1);
    }
    changes
}

/// A longest list of lines that both have in this order, as the number of each in either.
fn common(old: &[&str], new: &[&str]) -> Vec<(usize, usize)> {
    let wide = new.len() + 1;
    // How many lines the rests of both have in common, from a line of either on.
    let mut most = vec![0_u32; (old.len() + 1) * wide];
    for a in (0..old.len()).rev() {
        for b in (0..new.len()).rev() {
            let (down, right) = (most[(a + 1) * wide + b], most[a * wide + b + 1]);
            let both = most[(a + 1) * wide + b + 1] + 1;
            most[a * wide + b] = if old[a] == new[b] { both } else { down.max(right) };
        }
    }
    let (mut a, mut b, mut found) = (0, 0, Vec::new());
    while a < old.len() && b < new.len() {
        if old[a] == new[b] {
            found.push((a, b));
            (a, b) = (a + 1, b + 1);
        } else if most[(a + 1) * wide + b] >= most[a * wide + b + 1] {
            a += 1;
        } else {
            b += 1;
        }
    }
    found
}

fn cut(line: &str) -> String {
    match line.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

/// A line with the strings left out that are neither keys nor ours.
fn masked(format: Format, line: &str, ours: &[&str]) -> String {
    let mut shown = String::new();
    let mut rest = line;
    while let Some(start) = rest.find(|c| c == '"' || (c == '\'' && format == Format::Toml)) {
        let (before, from) = rest.split_at(start);
        shown.push_str(before);
        let length = string_length(from);
        let (string, after) = from.split_at(length);
        let follows = after.trim_start().chars().next();
        let key = matches!((format, follows), (Format::Json, Some(':')) | (Format::Toml, Some('=')));
        let inner = string.trim_matches(['"', '\'']);
        if key || ours.contains(&inner) {
            shown.push_str(string);
        } else {
            let quote = &string[..1];
            shown.push_str(&format!("{quote}…{quote}"));
        }
        rest = after;
    }
    shown + rest
}

/// Bytes of the string that a text begins with, with its quotes; all of the text where it does not end.
fn string_length(text: &str) -> usize {
    let quote = text.chars().next();
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' && quote == Some('"') {
            escaped = true;
        } else if Some(c) == quote {
            return at + c.len_utf8();
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_is_not_shown() {
        let ours = ["/opt/phone-opus", "mcp", "serve"];
        let table = [
            (Format::Json, r#"  "command": "/opt/phone-opus","#, r#"  "command": "/opt/phone-opus","#),
            (Format::Json, r#"  "args": ["mcp", "serve"]"#, r#"  "args": ["mcp", "serve"]"#),
            (Format::Json, r#""env": {"KEY": "s\"ecret"}},"#, r#""env": {"KEY": "…"}},"#),
            (Format::Json, r#"["mcp", "--token=secret"]"#, r#"["mcp", "…"]"#),
            (Format::Json, r#""unterminated: secret"#, r#""…""#),
            (Format::Toml, r#"KEY = "secret" # "why""#, r##"KEY = "…" # "…""##),
            (Format::Toml, r#"x = { KEY = 'secret', "a key" = "b" }"#, r#"x = { KEY = '…', "a key" = "…" }"#),
            (Format::Toml, r#"[mcp_servers."a b".env]"#, r#"[mcp_servers."…".env]"#),
            (Format::Toml, r#"["secret"]"#, r#"["…"]"#),
            (Format::Toml, r#"args = ["mcp", "secret"]"#, r#"args = ["mcp", "…"]"#),
        ];
        for (format, line, shown) in table {
            assert_eq!(masked(format, line, &ours), shown);
        }
    }

    #[test]
    fn what_goes_and_what_comes_makes_one_text_of_the_other_and_no_line_that_stays_is_among_it() {
        let mut tried = 0;
        for seed in 0..3000_u32 {
            // Texts of few different lines, so that many are alike.
            let text = |salt: u32| -> Vec<&str> {
                let draw = |at: u32| {
                    seed.wrapping_mul(2_654_435_761).wrapping_add(at * 40_503 + salt).wrapping_mul(2_246_822_519) >> 28
                };
                (0..draw(99) % 9).map(|at| ["a\n", "b\n", "c\n"][draw(at) as usize % 3]).collect()
            };
            let (old, new) = (text(1), text(7));
            let (mut made, mut from): (Vec<&str>, usize) = (Vec::new(), 0);
            for (was, is) in changes(&old, &new) {
                made.extend(&old[from..was.start]);
                assert!(!was.is_empty() || !is.is_empty());
                assert!(old.get(was.clone()) != new.get(is.clone()), "{old:?} {new:?}");
                made.extend(&new[is]);
                from = was.end;
            }
            made.extend(&old[from..]);
            assert_eq!(made, new, "of {old:?}");
            tried += usize::from(old != new);
        }
        assert!(tried > 1000, "{tried} texts differ");
        let (old, new) = ("a\nx\nb\nc\nd\n", "a\nb\nc\ny\nd\n");
        let shown = lines(Format::Json, old, new, &[]);
        assert_eq!(shown, ["@@ -2,1 +2,0 @@", "-x", "@@ -5,0 +4,1 @@", "+y"]);
    }

    #[test]
    fn only_lines_that_change_are_shown_and_a_long_one_is_cut() {
        let shown = lines(Format::Json, "{\n  \"a\": 1\n}\n", "{\n  \"a\": 1,\n  \"b\": 2\n}\n", &[]);
        assert_eq!(shown, ["@@ -2,1 +2,2 @@", "-  \"a\": 1", "+  \"a\": 1,", "+  \"b\": 2"]);
        let long = format!("{{\"a\": [{}]}}", "1,".repeat(500));
        assert!(lines(Format::Json, &long, "", &[])[1].chars().count() <= WIDTH + 2);
    }
}
