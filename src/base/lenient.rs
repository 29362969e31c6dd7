//! Makes text that a strict JSON reader refuses readable, without changing anything else.
//!
//! JavaScript programs that cut a string in the middle of a pair send lone surrogates (`\ud83d`), models say them, and
//! some programs send bytes that are no UTF-8. Dropping such a request would leave its caller waiting for ever; dropping
//! such an answer would lose it.

use std::borrow::Cow;

/// The line as UTF-8, with U+FFFD for bytes that are none.
#[must_use]
#[expect(unsafe_code, reason = "that a line is ASCII is seen in a fraction of the time that it is UTF-8")]
pub fn text(line: &[u8]) -> Cow<'_, str> {
    if line.is_ascii() {
        // SAFETY: ASCII is UTF-8.
        return Cow::Borrowed(unsafe { std::str::from_utf8_unchecked(line) });
    }
    // Nearly every line is UTF-8, and to see that is cheaper than to look for what to replace.
    std::str::from_utf8(line).map_or_else(|_| String::from_utf8_lossy(line), Cow::Borrowed)
}

/// JSON text in which each `\uXXXX` escape of a lone surrogate is replaced by `\ufffd`.
///
/// Borrowed when there is nothing to replace, which costs one search for `\ud`.
#[must_use]
pub fn repair_surrogates(json: &str) -> Cow<'_, str> {
    let bytes = json.as_bytes();
    let suspicious = memchr::memchr_iter(b'\\', bytes)
        .any(|at| bytes.get(at + 1) == Some(&b'u') && matches!(bytes.get(at + 2), Some(b'd' | b'D')));
    if !suspicious {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len());
    let mut copied = 0;
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'\\' {
            at += 1;
            continue;
        }
        let Some(unit) = escape_at(bytes, at) else {
            at += 2;
            continue;
        };
        match unit {
            0xD800..=0xDBFF if matches!(escape_at(bytes, at + 6), Some(0xDC00..=0xDFFF)) => at += 12,
            0xD800..=0xDFFF => {
                out.push_str(&json[copied..at]);
                out.push_str("\\ufffd");
                at += 6;
                copied = at;
            }
            _ => at += 6,
        }
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    out.push_str(&json[copied..]);
    Cow::Owned(out)
}

/// The code unit of a `\uXXXX` escape that begins at `at`.
fn escape_at(bytes: &[u8], at: usize) -> Option<u16> {
    let escape = bytes.get(at..at + 6)?;
    if !escape.starts_with(b"\\u") || !escape[2..].iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u16::from_str_radix(std::str::from_utf8(&escape[2..]).ok()?, 16).ok()
}

/// The text as a terminal may be shown it: what a terminal would obey (control characters but line end and tab, and what turns
/// the direction of writing) is written out, as in `\u001b`. JSON stays JSON by it.
#[must_use]
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 32);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '\r' && rest.peek() == Some(&'\n') {
            // The end of a line as some systems write it.
            continue;
        }
        if is_obeyed(c) {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

fn is_obeyed(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether a text shows nothing: white space, control characters, and what Unicode gives no mark of its own (format
/// characters, joiners, variation selectors, fillers, tags).
#[must_use]
pub fn is_blank(text: &str) -> bool {
    text.chars().all(is_invisible)
}

fn is_invisible(c: char) -> bool {
    c.is_whitespace()
        || c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_shown_what_it_would_obey_and_everything_else_as_it_is() {
        for (given, want) in [
            ("plain\ttext\nwith lines é漢😀", "plain\ttext\nwith lines é漢😀"),
            ("\u{1b}]52;c;eA==\u{7}", "\\u001b]52;c;eA==\\u0007"),
            ("\u{1b}[2J\u{9b}31m", "\\u001b[2J\\u009b31m"),
            ("good\rEVIL", "good\\u000dEVIL"),
            ("one\r\ntwo\r\n", "one\ntwo\n"),
            ("\u{0}\u{8}\u{7f}\u{85}", "\\u0000\\u0008\\u007f\\u0085"),
            ("a\u{202e}b\u{2066}c\u{2069}", "a\\u202eb\\u2066c\\u2069"),
            ("\u{200f}שלום\u{200d}", "\u{200f}שלום\u{200d}"),
        ] {
            assert_eq!(visible(given), want, "{given:?}");
            assert_eq!(matches!(visible(given), Cow::Borrowed(_)), given == want);
        }
    }

    #[test]
    fn a_text_without_a_visible_character_is_blank() {
        for blank in [
            "",
            " \t\r\n",
            "\u{200b}",
            "\u{feff}",
            "\u{a0}\u{2003}\u{3000}",
            "\u{0}\u{7f}\u{85}",
            "\u{200c}\u{200d}\u{2060}",
            "\u{202e}\u{2066}",
            "\u{fe0f}\u{e0100}",
            "\u{3164}\u{115f}\u{ffa0}",
            "\u{2800}",
            "\u{ad}",
            "\u{e0041}\u{e007f}",
        ] {
            assert!(is_blank(blank), "{blank:?}");
        }
        for shown in ["?", ".", "\u{200b}x\u{200b}", "é", "漢", "😀", "\u{fffd}", "-"] {
            assert!(!is_blank(shown), "{shown:?}");
        }
    }

    #[test]
    fn only_lone_surrogates_are_replaced() {
        for (given, want) in [
            (r#""plain""#, r#""plain""#),
            (r#""\ud83d\ude00""#, r#""\ud83d\ude00""#),
            (r#""\ud83d""#, r#""\ufffd""#),
            (r#""\ude00x\ud83d\ud83d\ude00""#, r#""\ufffdx\ufffd\ud83d\ude00""#),
            (r#""\\ud83d""#, r#""\\ud83d""#),
            (r#""\\\ud83d""#, r#""\\\ufffd""#),
            (r#""\uD83D\n""#, r#""\ufffd\n""#),
            (r#""\ud8"#, r#""\ud8"#),
        ] {
            assert_eq!(repair_surrogates(given), want, "{given}");
        }
    }
}
