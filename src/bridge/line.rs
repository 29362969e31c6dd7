//! Lines that are passed on with one thing in them changed.
//!
//! Owns: where a member of a message lies in its line, and how it is written anew. May not know: why.
//!
//! Invariant: everything but the one member leaves as it came, byte for byte.

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::Value;

use crate::base::lenient;
use crate::protocol::envelope;
use crate::tools::arguments::is_placeholder;

/// The line with `value`, a part of it, replaced; as it is where `value` is none.
#[must_use]
pub(super) fn replaced(line: &str, value: &str, with: &str) -> Bytes {
    let Some(at) = place(line, value) else { return Bytes::copy_from_slice(line.as_bytes()) };
    let mut text = BytesMut::with_capacity(line.len() + with.len());
    text.put_slice(&line.as_bytes()[..at]);
    text.put_slice(with.as_bytes());
    text.put_slice(&line.as_bytes()[at + value.len()..]);
    text.freeze()
}

/// Where a part of a text begins in it.
fn place(line: &str, part: &str) -> Option<usize> {
    let at = (part.as_ptr() as usize).checked_sub(line.as_ptr() as usize)?;
    line.get(at..at.checked_add(part.len())?).filter(|found| std::ptr::eq(*found, part)).map(|_| at)
}

/// The line of a message with another id.
#[must_use]
pub(super) fn with_id(line: &str, id: &str) -> Bytes {
    match envelope::object(line, ["id"]) {
        Ok([Some(value)]) if value != id => replaced(line, value, id),
        _ => Bytes::copy_from_slice(line.as_bytes()),
    }
}

/// The line of a call with a member of its arguments set: of a repeated member the last one counts. `arguments` is the text of
/// its arguments, a part of the line and an object.
#[must_use]
pub(super) fn with_argument(line: &str, arguments: &str, name: &str, value: &Value) -> Bytes {
    let Some(inner) = arguments.strip_suffix('}') else { return Bytes::copy_from_slice(line.as_bytes()) };
    let comma = if inner.trim_start().strip_prefix('{').is_some_and(|rest| rest.trim().is_empty()) { "" } else { "," };
    replaced(line, arguments, &format!("{inner}{comma}\"{name}\":{value}}}"))
}

/// Whether a member of a call's arguments says nothing: it is missing, or a placeholder for none, as the tools read it.
#[must_use]
pub(super) fn says_nothing(value: Option<&str>) -> bool {
    let Some(value) = value else { return true };
    serde_json::from_str(&lenient::repair_surrogates(value)).is_ok_and(|value| is_placeholder(&value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(line: &Bytes) -> &str {
        std::str::from_utf8(line).expect("UTF-8")
    }

    #[test]
    fn an_id_is_replaced_and_nothing_else() {
        for (line, expected) in [
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"id":1}}"#,
                r#"{"jsonrpc":"2.0","id":"b","method":"x","params":{"id":1}}"#,
            ),
            ("{\"result\" : {} , \"id\":\"a\\u0062\"\t}", "{\"result\" : {} , \"id\":\"b\"\t}"),
            (r#"{"id":1.0,"result":{"x":1e3}}"#, r#"{"id":"b","result":{"x":1e3}}"#),
            // Of a repeated member the last one counts.
            (r#"{"id":1,"id":2}"#, r#"{"id":1,"id":"b"}"#),
            (r#"{"method":"x"}"#, r#"{"method":"x"}"#),
            ("[]", "[]"),
        ] {
            assert_eq!(text(&with_id(line, "\"b\"")), expected);
        }
    }

    #[test]
    fn an_argument_is_added_and_every_other_byte_stays() {
        for (arguments, expected) in [
            ("{}", r#"{"key":"k"}"#),
            ("{ \t}", "{ \t\"key\":\"k\"}"),
            (r#"{"prompt":"\ud83d é","n":1.50}"#, r#"{"prompt":"\ud83d é","n":1.50,"key":"k"}"#),
            (r#"{"key":null}"#, r#"{"key":null,"key":"k"}"#),
        ] {
            let line = format!(r#"{{"params":{{"arguments":{arguments} ,"name":"consult"}}}}"#);
            let [params] = envelope::object(&line, ["params"]).expect("an object");
            let [found] = envelope::object(params.expect("params"), ["arguments"]).expect("an object");
            let stamped = with_argument(&line, found.expect("arguments"), "key", &json!("k"));
            assert_eq!(text(&stamped), format!(r#"{{"params":{{"arguments":{expected} ,"name":"consult"}}}}"#));
        }
    }

    #[test]
    fn what_lies_elsewhere_is_not_taken_for_a_part() {
        let line = String::from(r#"{"id":1}"#);
        let elsewhere = String::from("1");
        assert_eq!(text(&replaced(&line, &elsewhere, "2")), line);
    }

    #[test]
    fn a_placeholder_says_nothing() {
        for (value, nothing) in [
            (None, true),
            (Some("null"), true),
            (Some("\"\""), true),
            (Some("\"  \""), true),
            (Some("\"null\""), true),
            (Some("\"\\u0007\""), false),
            (Some("\" null\""), false),
            (Some("\"k\""), false),
            (Some("7"), false),
            (Some("{}"), false),
        ] {
            assert_eq!(says_nothing(value), nothing, "{value:?}");
        }
    }
}
