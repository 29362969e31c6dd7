//! Walks over JSON text without building anything: where a value ends, which members an object has.
//!
//! Owns: the grammar of JSON (RFC 8259), as strict as the parser we use everywhere else. May not know: messages.
//!
//! A request passes here three times at most (its envelope, its parameters, its tool's arguments), so this is most of what
//! reading one costs. Strings are looked at in blocks, which compilers turn into vector code.
//!
//! Invariant: a text is taken exactly when `serde_json` takes it; the tests below hold the two against each other.

use std::borrow::Cow;

use serde::de::IgnoredAny;

/// Nesting looked at here; what is deeper is left to the parser, which keeps a stack on the heap.
const DEPTH: u32 = 64;

/// Bytes of a string looked at together.
const BLOCK: usize = 32;

/// Calls `each` with the name and the text of every member of the object that `text` begins with, in order; a name that
/// comes twice is told twice.
///
/// Returns where the object ends; `None` when there is no whole object, whatever was told before.
pub fn members<'a>(text: &'a str, mut each: impl FnMut(&str, &'a str)) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = space(bytes, 0);
    if bytes.get(at) != Some(&b'{') {
        return None;
    }
    at = space(bytes, at + 1);
    if bytes.get(at) == Some(&b'}') {
        return Some(at + 1);
    }
    loop {
        let name_end = string(bytes, at)?;
        let name = &text[at + 1..name_end - 1];
        at = space(bytes, name_end);
        if bytes.get(at) != Some(&b':') {
            return None;
        }
        let start = space(bytes, at + 1);
        let end = value(bytes, start)?;
        each(&unescaped(name, &text[name_end - name.len() - 2..name_end])?, &text[start..end]);
        at = space(bytes, end);
        match bytes.get(at)? {
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
#[must_use]
pub fn value(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    let mut depth = 0_u32;
    // A bit per level, the innermost lowest: 1 is an object.
    let mut objects = 0_u64;
    loop {
        // A value begins here.
        match bytes.get(at)? {
            b'"' => at = string(bytes, at)?,
            b'{' | b'[' if depth == DEPTH => return deep(bytes, start),
            b'{' => {
                at = space(bytes, at + 1);
                if bytes.get(at)? == &b'}' {
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
                if bytes.get(at)? == &b']' {
                    at += 1;
                } else {
                    depth += 1;
                    objects <<= 1;
                    continue;
                }
            }
            b't' => at = literal(bytes, at, b"true")?,
            b'f' => at = literal(bytes, at, b"false")?,
            b'n' => at = literal(bytes, at, b"null")?,
            _ => at = number(bytes, at)?,
        }
        // A value has ended here.
        loop {
            if depth == 0 {
                return Some(at);
            }
            at = space(bytes, at);
            let in_object = objects & 1 == 1;
            match (bytes.get(at)?, in_object) {
                (b',', true) => at = name(bytes, space(bytes, at + 1))?,
                (b',', false) => at = space(bytes, at + 1),
                (b'}', true) | (b']', false) => {
                    depth -= 1;
                    objects >>= 1;
                    at += 1;
                    continue;
                }
                _ => return None,
            }
            break;
        }
    }
}

/// Where the string that begins at `start` ends, its quotes included; `None` when there is no whole one.
#[must_use]
pub fn string(bytes: &[u8], start: usize) -> Option<usize> {
    if bytes.get(start) != Some(&b'"') {
        return None;
    }
    let special = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    let mut at = start + 1;
    loop {
        // No branch within a block, so that all its bytes are looked at together.
        while let Some(block) = bytes.get(at..at + BLOCK) {
            if block.iter().fold(false, |found, byte| found | special(*byte)) {
                break;
            }
            at += BLOCK;
        }
        while !special(*bytes.get(at)?) {
            at += 1;
        }
        match bytes[at] {
            b'"' => return Some(at + 1),
            b'\\' => {
                at += match bytes.get(at + 1)? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 2,
                    b'u' if bytes.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit) => 6,
                    _ => return None,
                };
            }
            _ => return None,
        }
    }
}

/// A member's name and its colon: where its value begins.
fn name(bytes: &[u8], at: usize) -> Option<usize> {
    let at = space(bytes, string(bytes, at)?);
    (bytes.get(at)? == &b':').then(|| space(bytes, at + 1))
}

fn literal(bytes: &[u8], at: usize, word: &[u8]) -> Option<usize> {
    bytes[at..].starts_with(word).then_some(at + word.len())
}

fn number(bytes: &[u8], mut at: usize) -> Option<usize> {
    let digits = |mut at: usize| {
        let first = at;
        while bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        (at > first).then_some(at)
    };
    if bytes.get(at) == Some(&b'-') {
        at += 1;
    }
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

fn space(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
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

/// A name as it is meant; `quoted` is the same with its quotes.
fn unescaped<'a>(name: &'a str, quoted: &str) -> Option<Cow<'a, str>> {
    if memchr::memchr(b'\\', name.as_bytes()).is_none() {
        return Some(Cow::Borrowed(name));
    }
    serde_json::from_str::<String>(quoted).ok().map(Cow::Owned)
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
        let end = members(text, |name, value| told.push((name.to_owned(), value))).expect("an object");
        assert_eq!(&text[end..], " rest");
        let want = [("a", "1"), ("b", r#"{"c":[2]}"#), ("a", r#""x""#), ("", "null")];
        assert_eq!(told, want.map(|(name, value)| (name.to_owned(), value)));
        for text in ["", "[]", "{\"a\":1", "{\"a\":1,}", "{\"\\ud83d\":1}", "1", "{\"a\":1 \"b\":2}"] {
            assert_eq!(members(text, |_, _| {}), None, "{text}");
        }
        assert!(is_end(" \t", 0) && !is_end("{} x", 2));
    }
}
