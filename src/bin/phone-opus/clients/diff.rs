//! A change as people read it before they agree to it.
//!
//! Owns: which lines are shown, and what of them. May not know: what is changed, and why.
//!
//! Invariant: a string that is not ours to write is shown as `…`. The lines beside ours can hold the keys of other servers, and what a
//! terminal or a build's log has shown stays there.

use similar::{ChangeTag, DiffTag, TextDiff};

use super::text::Format;

/// Characters of a line that are shown; a whole file can be one line.
const WIDTH: usize = 160;

/// The lines that go and come, each with its sign, under the number of the first in either text. `ours` are the strings that may be
/// shown.
pub(super) fn lines(format: Format, old: &str, new: &str, ours: &[&str]) -> Vec<String> {
    let diff = TextDiff::from_lines(old, new);
    let mut shown = Vec::new();
    for group in diff.grouped_ops(0) {
        for op in group.iter().filter(|op| op.tag() != DiffTag::Equal) {
            let (was, is) = (op.old_range(), op.new_range());
            shown.push(format!("@@ -{},{} +{},{} @@", was.start + 1, was.len(), is.start + 1, is.len()));
            for change in diff.iter_changes(op) {
                let sign = match change.tag() {
                    ChangeTag::Delete => '-',
                    ChangeTag::Insert => '+',
                    ChangeTag::Equal => ' ',
                };
                let line = change.value().trim_end_matches(['\r', '\n']);
                shown.push(format!("{sign}{}", cut(&masked(format, line, ours))));
            }
        }
    }
    shown
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
    fn only_lines_that_change_are_shown_and_a_long_one_is_cut() {
        let shown = lines(Format::Json, "{\n  \"a\": 1\n}\n", "{\n  \"a\": 1,\n  \"b\": 2\n}\n", &[]);
        assert_eq!(shown, ["@@ -2,1 +2,2 @@", "-  \"a\": 1", "+  \"a\": 1,", "+  \"b\": 2"]);
        let long = format!("{{\"a\": [{}]}}", "1,".repeat(500));
        assert!(lines(Format::Json, &long, "", &[])[1].chars().count() <= WIDTH + 2);
    }
}
