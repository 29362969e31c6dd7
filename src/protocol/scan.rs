//! Walks over JSON text without building anything: where a value ends, which members an object has.
//!
//! Owns: the grammar of JSON (RFC 8259), as strict as the parser we use everywhere else. May not know: messages.
//!
//! A request passes here three times (its envelope, its parameters, its tool's arguments), so this is most of what reading
//! one costs. The parser takes twice as long, because it may stop anywhere and say where and why; here the answer is yes
//! or no. What is rare (escapes, numbers that are no integers, deep nesting) is kept out of the way of what is not.
//!
//! Invariant: a text is taken exactly when `serde_json` takes it; the tests below hold the two against each other.

use serde::de::IgnoredAny;

/// Nesting looked at here; what is deeper is left to the parser, which keeps a stack on the heap.
const DEPTH: u32 = 64;

/// Bytes of a string looked at together.
const WORD: usize = 8;

/// Words after which a string counts as long.
const SHORT: usize = 8;

/// Bytes of a long string looked at together: compilers make vector code of it.
const BLOCK: usize = 32;

/// Calls `each` with the name and the text of every member of the object that `text` begins with, in order; a name that
/// comes twice is told twice.
///
/// Returns where the object ends; `None` when there is no whole object, whatever was told before.
#[inline]
pub fn members<'a>(text: &'a str, mut each: impl FnMut(&[u8], &'a str)) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = space(bytes, 0);
    if *bytes.get(at)? != b'{' {
        return None;
    }
    at = space(bytes, at + 1);
    if *bytes.get(at)? == b'}' {
        return Some(at + 1);
    }
    loop {
        let name = at;
        let (name_end, kind) = text_at(bytes, name)?;
        at = space(bytes, name_end);
        if *bytes.get(at)? != b':' {
            return None;
        }
        let start = space(bytes, at + 1);
        let end = value(bytes, start)?;
        let value = text.get(start..end)?;
        match kind {
            Kind::Plain => each(&bytes[name + 1..name_end - 1], value),
            Kind::Escaped => each(unescaped(&bytes[name..name_end])?.as_bytes(), value),
        }
        at = space(bytes, end);
        match *bytes.get(at)? {
            b',' => at = space(bytes, at + 1),
            b'}' => return Some(at + 1),
            _ => return None,
        }
    }
}

/// Whether nothing but white space follows.
#[must_use]
pub fn is_end(text: &str, at: usize) -> bool {
    space(text.as_bytes(), at) == text.len()
}

/// Where the value that begins at `start` ends; `None` when there is no whole one.
#[inline]
#[must_use]
pub fn value(bytes: &[u8], start: usize) -> Option<usize> {
    match *bytes.get(start)? {
        b'"' => string(bytes, start),
        b'{' | b'[' => nested(bytes, start),
        _ => scalar(bytes, start),
    }
}

/// Where the string that begins at `start` ends, its quotes included; `None` when there is no whole one.
#[inline]
#[must_use]
pub fn string(bytes: &[u8], start: usize) -> Option<usize> {
    text_at(bytes, start).map(|(end, _)| end)
}

/// Whether a string is what it looks like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Escaped,
}

#[inline(always)]
fn text_at(bytes: &[u8], start: usize) -> Option<(usize, Kind)> {
    if *bytes.get(start)? != b'"' {
        return None;
    }
    let at = plain(bytes, start + 1);
    match *bytes.get(at)? {
        b'"' => Some((at + 1, Kind::Plain)),
        b'\\' => Some((escaped(bytes, at)?, Kind::Escaped)),
        _ => None,
    }
}

/// Where a string ends whose first escape is at `at`.
#[inline(never)]
fn escaped(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => {
                at += match *bytes.get(at + 1)? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 2,
                    b'u' if bytes.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit) => 6,
                    _ => return None,
                };
                at = plain(bytes, at);
            }
            _ => return None,
        }
    }
}

/// Where the first byte from `at` on is that a string may not hold as it is: a quote, a backslash, a control character;
/// or the end.
#[inline(always)]
fn plain(bytes: &[u8], mut at: usize) -> usize {
    let mut words = 0;
    while let Some(word) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        let found = special_in(u64::from_le_bytes(*word));
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += WORD;
        words += 1;
        if words == SHORT {
            at = plain_blocks(bytes, at);
        }
    }
    while bytes.get(at).is_some_and(|byte| !special(*byte)) {
        at += 1;
    }
    at
}

/// Where the first block from `at` on begins that holds such a byte, or is none.
#[inline(never)]
fn plain_blocks(bytes: &[u8], at: usize) -> usize {
    let (blocks, _) = bytes[at..].as_chunks::<BLOCK>();
    let plain = |block: &&[u8; BLOCK]| !block.iter().fold(false, |found, byte| found | special(*byte));
    at + blocks.iter().take_while(plain).count() * BLOCK
}

#[inline(always)]
const fn special(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\')
}

/// Sets the highest bit of the first special byte of a word; what is above it may be set or not.
#[inline(always)]
const fn special_in(word: u64) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; WORD]);
    const HIGH: u64 = ONES << 7;
    // The highest bit is set where a byte is smaller than what is taken away, which borrows; that disturbs only bytes
    // above it.
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    let quote = word ^ (ONES * b'"' as u64);
    let quote = quote.wrapping_sub(ONES) & !quote;
    let backslash = word ^ (ONES * b'\\' as u64);
    let backslash = backslash.wrapping_sub(ONES) & !backslash;
    (control | quote | backslash) & HIGH
}

/// Where the object or array that begins at `start` ends.
#[inline(never)]
fn nested(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    let mut depth = 0_u32;
    // A bit per level, the innermost lowest: 1 is an object.
    let mut objects = 0_u64;
    loop {
        // A value begins here.
        match *bytes.get(at)? {
            b'"' => at = string(bytes, at)?,
            b'{' | b'[' if depth == DEPTH => return deep(bytes, start),
            b'{' => {
                at = space(bytes, at + 1);
                if *bytes.get(at)? == b'}' {
                    at += 1;
                } else {
                    depth += 1;
                    objects = objects << 1 | 1;
                    at = name(bytes, at)?;
                    continue;
                }
            }
            b'[' => {
                at = space(bytes, at + 1);
                if *bytes.get(at)? == b']' {
                    at += 1;
                } else {
                    depth += 1;
                    objects <<= 1;
                    continue;
                }
            }
            _ => at = scalar(bytes, at)?,
        }
        // A value has ended here.
        loop {
            if depth == 0 {
                return Some(at);
            }
            at = space(bytes, at);
            match (*bytes.get(at)?, objects & 1 == 1) {
                (b',', true) => {
                    at = name(bytes, space(bytes, at + 1))?;
                    break;
                }
                (b',', false) => {
                    at = space(bytes, at + 1);
                    break;
                }
                (b'}', true) | (b']', false) => {
                    depth -= 1;
                    objects >>= 1;
                    at += 1;
                }
                _ => return None,
            }
        }
    }
}

/// A member's name and its colon: where its value begins.
#[inline(always)]
fn name(bytes: &[u8], at: usize) -> Option<usize> {
    let at = space(bytes, string(bytes, at)?);
    (*bytes.get(at)? == b':').then(|| space(bytes, at + 1))
}

/// Where the number or the word that begins at `at` ends.
#[inline(never)]
fn scalar(bytes: &[u8], at: usize) -> Option<usize> {
    let word = |word: &[u8]| bytes[at..].starts_with(word).then_some(at + word.len());
    match *bytes.get(at)? {
        b't' => word(b"true"),
        b'f' => word(b"false"),
        b'n' => word(b"null"),
        _ => number(bytes, at),
    }
}

fn number(bytes: &[u8], mut at: usize) -> Option<usize> {
    let digits = |first: usize| {
        let count = bytes.get(first..)?.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (count > 0).then_some(first + count)
    };
    at += usize::from(bytes.get(at) == Some(&b'-'));
    at = if bytes.get(at) == Some(&b'0') { at + 1 } else { digits(at)? };
    // A zero may not lead.
    if bytes.get(at).is_some_and(u8::is_ascii_digit) {
        return None;
    }
    if bytes.get(at) == Some(&b'.') {
        at = digits(at + 1)?;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        let signed = matches!(bytes.get(at + 1), Some(b'+' | b'-'));
        at = digits(at + 1 + usize::from(signed))?;
    }
    Some(at)
}

#[inline(always)]
fn space(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// The same as [`value`], for any nesting.
#[cold]
fn deep(bytes: &[u8], start: usize) -> Option<usize> {
    let mut values = serde_json::Deserializer::from_slice(&bytes[start..]).into_iter::<IgnoredAny>();
    matches!(values.next(), Some(Ok(_))).then(|| start + values.byte_offset())
}

/// A name as it is meant; `quoted` is it as it is written.
#[cold]
fn unescaped(quoted: &[u8]) -> Option<String> {
    serde_json::from_slice(quoted).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both are asked whether the text is one whole value.
    fn check(text: &str) {
        let want = serde_json::from_str::<IgnoredAny>(text).is_ok();
        let end = value(text.as_bytes(), space(text.as_bytes(), 0));
        assert_eq!(end.is_some_and(|end| is_end(text, end)), want, "{text:?}");
    }

    const WHOLE: [&str; 24] = [
        "{}",
        "[]",
        "{ }",
        "[ ]",
        "null",
        "true",
        "false",
        "0",
        "-0",
        "-1.5e+10",
        "1E-2",
        "123456789012345678901234567890",
        r#""""#,
        r#""a""#,
        r#""é€😀""#,
        r#""\"\\\/\b\f\n\r\t\u00e9\ud83d""#,
        r#"{"a":1}"#,
        r#"{"a" : [1 , {"b" : "c"} , null ] , "d":{}}"#,
        r#"[[[[[[]]]]],"",[{}]]"#,
        r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"text":"x"}}}"#,
        r#"{"long":"012345678901234567890123456789012345678901234567890123456789"}"#,
        r#"["0123456789012345678901234567890","01234567890123456789012345678901"]"#,
        r#"{"\u0061":{"b\n":[]}}"#,
        "[\n1,\t2,\r3]",
    ];

    #[test]
    fn whole_values_are_walked_to_their_end() {
        for text in WHOLE {
            assert_eq!(value(text.as_bytes(), 0), Some(text.len()), "{text}");
            check(text);
        }
    }

    #[test]
    fn what_the_parser_refuses_is_refused() {
        for text in [
            "",
            " ",
            "{",
            "[",
            "\"",
            "-",
            "+1",
            ".5",
            "1.",
            "01",
            "-01",
            "1e",
            "1e+",
            "tru",
            "nul",
            "nulL",
            "{]",
            "[}",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{,}",
            "{a:1}",
            "{\"a\" 1}",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\\u12\"",
            "\"\n\"",
            "\"\u{1f}\"",
            "\"\\\"",
            "'a'",
            "[1}",
            "{\"a\":1]",
            "\u{feff}{}",
            "{1:2}",
            "{\"a\":1\"b\":2}",
        ] {
            assert_eq!(value(text.as_bytes(), 0), None, "{text:?}");
            check(text);
        }
    }

    /// Cut, with a byte changed, doubled or left out: the scanner and the parser agree about every one.
    #[test]
    fn damaged_values_are_judged_as_the_parser_judges_them() {
        const SEED: u64 = 0x5ca9;
        println!("seed {SEED}");
        let mut random = fastrand::Rng::with_seed(SEED);
        let alphabet = br#"{}[]",:\/ 0129-+.eEtrufalsn"#;
        for text in WHOLE {
            for cut in (0..text.len()).filter(|cut| text.is_char_boundary(*cut)) {
                check(&text[..cut]);
            }
        }
        for _ in 0..20_000 {
            let mut bytes = random.choice(WHOLE).unwrap_or("{}").as_bytes().to_vec();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                let byte = alphabet[random.usize(..alphabet.len())];
                match random.u8(0..3) {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    _ if bytes.len() > 1 => drop(bytes.remove(at)),
                    _ => {}
                }
            }
            if let Ok(text) = std::str::from_utf8(&bytes) {
                check(text);
            }
        }
    }

    #[test]
    fn any_depth_is_walked() {
        for depth in [DEPTH as usize - 1, DEPTH as usize, DEPTH as usize + 1, 100_000] {
            let text = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            assert_eq!(value(text.as_bytes(), 0), Some(text.len()), "{depth}");
            assert_eq!(value(&text.as_bytes()[..text.len() - 1], 0), None, "{depth}");
        }
    }

    #[test]
    fn members_are_told_in_order_with_their_names_unescaped() {
        let mut told = Vec::new();
        let text = r#" { "a" : 1 , "b":{"c":[2]},"\u0061":"x", "":null } rest"#;
        let end = members(text, |name, value| told.push((String::from_utf8_lossy(name).into_owned(), value)))
            .expect("an object");
        assert_eq!(&text[end..], " rest");
        let want = [("a", "1"), ("b", r#"{"c":[2]}"#), ("a", r#""x""#), ("", "null")];
        assert_eq!(told, want.map(|(name, value)| (name.to_owned(), value)));
        for text in ["", "[]", "{\"a\":1", "{\"a\":1,}", "{\"\\ud83d\":1}", "1", "{\"a\":1 \"b\":2}"] {
            assert_eq!(members(text, |_, _| {}), None, "{text}");
        }
        assert!(is_end(" \t", 0) && !is_end("{} x", 2));
    }
}
