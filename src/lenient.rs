//! Makes text that a strict JSON reader refuses readable, without changing anything else.
//!
//! JavaScript programs that cut a string in the middle of a pair send lone surrogates (`\ud83d`), models say them, and
//! some programs send bytes that are no UTF-8. Dropping such a request would leave its caller waiting for ever; dropping
//! such an answer would lose it.

use std::borrow::Cow;

/// The line as UTF-8, with U+FFFD for bytes that are none.
#[must_use]
pub fn text(line: &[u8]) -> Cow<'_, str> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
