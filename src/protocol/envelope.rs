//! One line of input as a JSON-RPC message.
//!
//! Owns: the shape of the envelope and what each malformed one is answered with. Members are borrowed slices of the
//! line; nothing below the envelope is parsed here. May not know: methods, sessions.
//!
//! Invariants: (1) of a repeated member the last one counts; (2) only a message with a valid id and a method is a request.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

pub use super::id::{ID_ECHOED, ID_MOST, IdToken};
use super::scan;

/// What a line turned out to be.
#[derive(Debug)]
pub enum Incoming<'a> {
    /// A request: it gets exactly one answer.
    Request {
        id: IdToken,
        method: Cow<'a, str>,
        /// The JSON text of its parameters, absent when they are missing or null.
        params: Option<&'a str>,
    },
    /// A notification: it gets none.
    Notification {
        method: Cow<'a, str>,
        /// The JSON text of its parameters.
        params: Option<&'a str>,
    },
    /// A response. Answering one could start a ping-pong, so it never is.
    Response {
        /// What it answers.
        id: Option<IdToken>,
        /// The JSON text of its result; absent for an error.
        result: Option<&'a str>,
    },
    /// A JSON array; its members as JSON texts.
    Batch(Vec<&'a str>),
    /// JSON, but no message.
    Invalid {
        /// The id, where it is a valid one.
        id: Option<IdToken>,
        /// What is wrong, for the reply.
        why: &'static str,
        /// Whether it is an object without the member `jsonrpc`: it may be meant beside JSON-RPC, where that is understood.
        beside: bool,
    },
    /// No JSON.
    Unparsable,
}

/// Reads one line (or one member of a batch).
#[must_use]
pub fn read(line: &str) -> Incoming<'_> {
    // A line of nearly every client begins with its brace.
    let line = if line.starts_with('{') { line } else { line.trim_start_matches('\u{feff}').trim() };
    match line.as_bytes().first() {
        Some(b'{') => {}
        Some(b'[') => return batch(line),
        Some(_) if serde_json::from_str::<IgnoredAny>(line).is_ok() => {
            return Incoming::Invalid { id: None, why: "a message must be a JSON object", beside: false };
        }
        _ => return Incoming::Unparsable,
    }
    let mut found = MemberTexts::default();
    let end = scan::members(line, |name, value| match name {
        b"jsonrpc" => found.jsonrpc = Some(value),
        b"id" => found.id = Some(value),
        b"method" => found.method = Some(value),
        b"params" => found.params = Some(value).filter(|text| *text != "null"),
        b"result" => found.result = Some(value),
        b"error" => found.error = true,
        _ => {}
    });
    match end {
        Some(end) if scan::is_end(line, end) => classify(found),
        _ => Incoming::Unparsable,
    }
}

fn classify(members: MemberTexts<'_>) -> Incoming<'_> {
    let id = members.id.and_then(IdToken::from_json);
    // The sender of a request whose id is too long waits for it all the same: it is refused under that id.
    let refused = |id: Option<IdToken>, why| {
        let id = id.or_else(|| members.id.and_then(IdToken::to_be_refused));
        Incoming::Invalid { id, why, beside: members.jsonrpc.is_none() }
    };
    if members.jsonrpc != Some("\"2.0\"") {
        return refused(id, "the member jsonrpc must be \"2.0\"");
    }
    let answered = members.result.is_some() || members.error;
    let Some(method) = members.method else {
        return if answered {
            Incoming::Response { id, result: members.result }
        } else {
            refused(id, "the member method is missing")
        };
    };
    if answered {
        return refused(id, "a message has either a method or a result, not both");
    }
    let Some(method) = string(method) else {
        return refused(id, "the member method must be a string");
    };
    match (members.id, id) {
        (None, _) => Incoming::Notification { method, params: members.params },
        (Some(_), Some(id)) => Incoming::Request { id, method, params: members.params },
        (Some(_), None) => refused(None, "an id must be a string or a number of at most 64 KiB"),
    }
}

fn batch(line: &str) -> Incoming<'_> {
    struct Texts;
    impl<'de> Visitor<'de> for Texts {
        type Value = Vec<&'de str>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut texts = Vec::new();
            while let Some(member) = seq.next_element::<&'de RawValue>()? {
                texts.push(member.get());
            }
            Ok(texts)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(line);
    match deserializer.deserialize_seq(Texts) {
        Ok(texts) if deserializer.end().is_ok() => Incoming::Batch(texts),
        _ => Incoming::Unparsable,
    }
}

/// A JSON string's value, with lone surrogates repaired.
#[must_use]
pub fn string(json: &str) -> Option<Cow<'_, str>> {
    if let Some(inner) = json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        if !inner.contains('\\') {
            return Some(Cow::Borrowed(inner));
        }
        return serde_json::from_str::<String>(&crate::base::lenient::repair_surrogates(json)).ok().map(Cow::Owned);
    }
    None
}

/// The id of a line of which only the head is known: clients write it near the front or not at all.
#[must_use]
pub fn id_in_head(head: &str) -> Option<IdToken> {
    let bytes = head.as_bytes();
    let mut depth = 0_u32;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                let end = string_end(bytes, at)?;
                if depth == 1 && &head[at..end] == "\"id\"" {
                    let value = head[end..].trim_start().strip_prefix(':')?.trim_start();
                    return first_scalar(value).and_then(IdToken::from_json);
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

fn first_scalar(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    if bytes.first() == Some(&b'"') {
        // Nobody has read this line as JSON, and what is repeated in an answer has to be.
        let whole = |text: &&str| serde_json::from_str::<&RawValue>(text).is_ok();
        return string_end(bytes, 0).map(|end| &text[..end]).filter(whole);
    }
    let end = bytes.iter().position(|b| matches!(b, b',' | b'}' | b' ' | b'\t'))?;
    text.get(..end).filter(|number| serde_json::from_str::<serde_json::Number>(number).is_ok())
}

/// The index just after the string that begins at `start`.
fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return Some(at + 1),
            _ => at += 1,
        }
    }
    None
}

#[derive(Default)]
struct MemberTexts<'a> {
    jsonrpc: Option<&'a str>,
    id: Option<&'a str>,
    method: Option<&'a str>,
    params: Option<&'a str>,
    result: Option<&'a str>,
    error: bool,
}

/// The members of a JSON object as raw texts, for parameters with few known members; of a repeated one the last counts.
///
/// # Errors
///
/// The text is not an object.
pub fn object<'a, const N: usize>(json: &'a str, names: [&str; N]) -> Result<[Option<&'a str>; N], NotAnObject> {
    let mut found = [None; N];
    let each = |name: &[u8], value| {
        if let Some(index) = names.iter().position(|wanted| wanted.as_bytes() == name) {
            found[index] = Some(value);
        }
    };
    scan::members(json, each).map(|_| found).ok_or(NotAnObject)
}

/// The JSON text was not an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON object")]
pub struct NotAnObject;

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str) -> String {
        match read(line) {
            Incoming::Request { id, method, params } => format!("request {id:?} {method} {}", params.unwrap_or("-")),
            Incoming::Notification { method, params } => format!("notification {method} {}", params.unwrap_or("-")),
            Incoming::Response { .. } => "response".into(),
            Incoming::Batch(members) => format!("batch of {}", members.len()),
            Incoming::Invalid { id, .. } => format!("invalid {}", id.map_or("-".into(), |id| format!("{id:?}"))),
            Incoming::Unparsable => "unparsable".into(),
        }
    }

    #[test]
    fn each_kind_of_line_is_what_the_table_says() {
        for (line, want) in [
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, "request 1 ping -"),
            (r#" {"jsonrpc":"2.0","id":1,"method":"ping"} "#, "request 1 ping -"),
            ("\u{feff}{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}", "request 1 ping -"),
            (r#"{"jsonrpc":"2.0","id":"a\u00e9","method":"x","params":{"a":[1]}}"#, r#"request "a\u00e9" x {"a":[1]}"#),
            (r#"{"jsonrpc":"2.0","id":7.0,"method":"x","params":null}"#, "request 7.0 x -"),
            (r#"{"jsonrpc":"2.0","id":1e3,"method":"x"}"#, "request 1e3 x -"),
            (r#"{"jsonrpc":"2.0","id":-0,"method":"x"}"#, "request -0 x -"),
            (
                r#"{"jsonrpc":"2.0","id":123456789012345678901234567890,"method":"x"}"#,
                "request 123456789012345678901234567890 x -",
            ),
            (r#"{"jsonrpc":"2.0","id":"","method":"x"}"#, r#"request "" x -"#),
            (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"x"}"#, "request 2 x -"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"x","extra":{}}"#, "request 1 x -"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"pi\u006eg"}"#, "request 1 ping -"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"t":"\ud83d"}}"#, r#"request 1 x {"t":"\ud83d"}"#),
            (r#"{"jsonrpc":"2.0","method":"n"}"#, "notification n -"),
            (r#"{"jsonrpc":"2.0","id":1,"result":{}}"#, "response"),
            (r#"{"jsonrpc":"2.0","id":1,"error":{}}"#, "response"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"x","result":{}}"#, "invalid 1"),
            (r#"{"jsonrpc":"2.0","id":1}"#, "invalid 1"),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, "invalid 1"),
            (r#"{"id":1,"method":"x"}"#, "invalid 1"),
            (r#"{"jsonrpc":"1.0","id":1,"method":"x"}"#, "invalid 1"),
            (r#"{"jsonrpc":"2.0","id":null,"method":"x"}"#, "invalid -"),
            (r#"{"jsonrpc":"2.0","id":true,"method":"x"}"#, "invalid -"),
            (r#"{"jsonrpc":"2.0","id":{},"method":"x"}"#, "invalid -"),
            (r#"{"jsonrpc":"2.0","id":[1],"method":"x"}"#, "invalid -"),
            ("[]", "batch of 0"),
            (r#"[{"a":1},2]"#, "batch of 2"),
            ("[1", "unparsable"),
            ("7", "invalid -"),
            ("\"x\"", "invalid -"),
            ("null", "invalid -"),
            ("true", "invalid -"),
            ("{", "unparsable"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"x"}}"#, "unparsable"),
            ("nonsense", "unparsable"),
            ("\0\0", "unparsable"),
        ] {
            assert_eq!(shown(line), want, "{line}");
        }
    }

    #[test]
    fn nesting_of_any_depth_is_survived() {
        let deep = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{}{}}}"#,
            "[".repeat(200_000),
            "]".repeat(200_000)
        );
        let kind = shown(&deep);
        assert!(kind.starts_with("request 1 x [[") || kind == "unparsable", "{}", &kind[..40.min(kind.len())]);
    }

    #[test]
    fn the_id_of_an_over_long_line_is_found_in_its_head() {
        for (head, want) in [
            (r#"{"jsonrpc":"2.0","id":42,"method":"tools/call","params":{"x":"aaa"#, Some("42")),
            (r#"{"id" : "a\"b" ,"method":"x","params":{"id":9"#, Some(r#""a\"b""#)),
            (r#"{"method":"x","params":{"id":9,"t":"aaa"#, None),
            (r#"{"id":4"#, None),
            ("{\"id\":\"a\u{0}b\",\"m", None),
            (r#"{"id":"a\qb","m"#, None),
            (r#"{"id":null,"m"#, None),
        ] {
            assert_eq!(id_in_head(head).as_ref().map(IdToken::as_str), want, "{head}");
        }
    }
}
