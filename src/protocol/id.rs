//! A request's id.
//!
//! Owns: what an id is, when two are the same, how long one may be. May not know: envelopes, sessions.
//!
//! Invariants: (1) an id goes out as the text it came in as, byte for byte; (2) two ids are the same when their JSON values
//! are, however they were written: `"caf\u00e9"` is `"café"`, and `1234.0` is `1234`. A client that cancels a request may
//! write its id with another library than the one that wrote the request.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::envelope::string;
use super::wire::LINE_MOST;

/// An id as its sender wrote it; compared by its value.
///
/// Cheap to clone: a call in flight keeps it twice, and telemetry once more. Nearly every id is short enough to lie in the
/// token itself, which costs no allocation and nothing to be freed by another thread.
#[derive(Clone)]
pub struct IdToken(Token);

#[derive(Clone)]
enum Token {
    /// So many bytes of UTF-8.
    Here(u8, [u8; IdToken::HERE]),
    Shared(Arc<str>),
    /// Written in one of several ways: the text, and the text all of these ways have in common.
    Odd(Arc<(Box<str>, String)>),
}

/// Longest id taken, in bytes of JSON. It is kept while its request is open and repeated in the answer; clients count.
pub const ID_MOST: usize = 64 * 1024;

/// Longest id a refusal repeats: what is said beside it has room in the rest of the line. Only a line of another limit than
/// the usual one can hold a longer one; such a request is answered without its id, five times a second at most.
pub const ID_ECHOED: usize = LINE_MOST - 4 * 1024;

/// Digits of a number that is written out to be compared with another one. A double has no more before its point; a longer
/// number is the same only as one that is written alike.
const DIGITS: usize = 310;

impl IdToken {
    /// The longest text that lies in the token: a UUID in its quotes.
    const HERE: usize = 38;

    fn new(json: &str) -> Self {
        if let Some(value) = value_of(json) {
            return Self(Token::Odd(Arc::new((json.into(), value))));
        }
        let mut here = [0; Self::HERE];
        match (here.get_mut(..json.len()), u8::try_from(json.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(json.as_bytes());
                Self(Token::Here(length, here))
            }
            _ => Self(Token::Shared(json.into())),
        }
    }

    /// The JSON text of the id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // The bytes are those of a `str`, so the empty text is never given.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Token::Here(length, bytes) => &bytes[..usize::from(*length)],
            Token::Shared(text) => text.as_bytes(),
            Token::Odd(odd) => odd.0.as_bytes(),
        }
    }

    /// What is compared.
    fn value(&self) -> &[u8] {
        match &self.0 {
            Token::Odd(odd) => odd.1.as_bytes(),
            Token::Here(..) | Token::Shared(_) => self.as_bytes(),
        }
    }

    /// Takes the JSON text of a string or number as an id; anything else is none, and so is one longer than [`ID_MOST`].
    #[must_use]
    pub fn from_json(json: &str) -> Option<Self> {
        is_scalar(json).then_some(json).filter(|json| json.len() <= ID_MOST).map(Self::new)
    }

    /// The id of a request that is refused because of its length, to be repeated once; none beyond [`ID_ECHOED`].
    #[must_use]
    pub(super) fn to_be_refused(json: &str) -> Option<Self> {
        (is_scalar(json) && json.len() <= ID_ECHOED).then(|| Self(Token::Shared(json.into())))
    }
}

fn is_scalar(json: &str) -> bool {
    matches!(json.as_bytes().first(), Some(b'"' | b'-' | b'0'..=b'9'))
}

/// The text that every spelling of this value has in common, where it has more spellings than this one and this is not the
/// common one itself.
fn value_of(json: &str) -> Option<String> {
    if is_common(json.as_bytes()) { None } else { common(json) }
}

/// Whether a text is at sight the one that all spellings of its value have in common; nearly every id is.
#[inline]
fn is_common(json: &[u8]) -> bool {
    match json {
        // No other text with a quote inside can come out of a spelling without a backslash.
        [b'"', ..] => !json.contains(&b'\\'),
        [b'-', digits @ ..] => digits.iter().all(u8::is_ascii_digit) && digits != b"0",
        digits => digits.iter().all(u8::is_ascii_digit),
    }
}

#[cold]
fn common(json: &str) -> Option<String> {
    if json.starts_with('"') { string(json).map(|value| format!("\"{value}\"")) } else { whole(json) }
}

/// A number without exponent and without zeros at the end of its fraction. `None` when it would be too long.
fn whole(number: &str) -> Option<String> {
    let (sign, number) = number.strip_prefix('-').map_or(("", number), |rest| ("-", rest));
    let (digits, exponent) = match number.split_once(['e', 'E']) {
        Some((digits, exponent)) => (digits, exponent.parse::<i64>().ok()?),
        None => (number, 0),
    };
    let (before, after) = digits.split_once('.').unwrap_or((digits, ""));
    let digits = format!("{before}{after}");
    let kept = digits.trim_start_matches('0');
    if kept.is_empty() {
        return Some("0".to_owned());
    }
    // Where the point stands, counted from the first digit that is not 0.
    let point = i64::try_from(before.len()).ok()?.checked_add(exponent)?;
    let point = point.checked_sub(i64::try_from(digits.len() - kept.len()).ok()?)?;
    let kept = kept.trim_end_matches('0');
    let most = i64::try_from(DIGITS).ok()?;
    if kept.len() > DIGITS || !(-most..=most).contains(&point) {
        return None;
    }
    Some(match usize::try_from(point) {
        Err(_) | Ok(0) => format!("{sign}0.{}{kept}", "0".repeat(usize::try_from(-point).unwrap_or(0))),
        Ok(point) if point >= kept.len() => format!("{sign}{kept}{}", "0".repeat(point - kept.len())),
        Ok(point) => format!("{sign}{}.{}", &kept[..point], &kept[point..]),
    })
}

impl PartialEq for IdToken {
    fn eq(&self, other: &Self) -> bool {
        self.value() == other.value()
    }
}

impl Eq for IdToken {}

impl Hash for IdToken {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.value().hash(state);
    }
}

impl fmt::Debug for IdToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_same_wherever_its_text_lies() {
        for length in [1, IdToken::HERE - 1, IdToken::HERE, IdToken::HERE + 1, 1000] {
            let json = format!("\"{}\"", "é".repeat(length / 2));
            for json in [json, "7".repeat(length)] {
                let id = IdToken::from_json(&json).expect("an id");
                assert_eq!((id.as_str(), id.clone()), (json.as_str(), id.clone()));
                assert_ne!(Some(id), IdToken::from_json(&format!("{json}0")));
            }
        }
    }

    #[test]
    fn ids_are_the_same_when_their_values_are_and_are_echoed_as_they_were_written() {
        let families: &[&[&str]] = &[
            &["1234", "1234.0", "1.234e3", "1.2340E+3", "123400e-2", "1234e0", "1234.000"],
            &["0", "-0", "0.0", "-0.0", "0e5", "0.000e-3"],
            &["-7", "-7.0", "-70e-1"],
            &["0.5", "5e-1", "0.50", "50e-2"],
            &["12.5", "1.25e1", "125e-1"],
            &["123456789012345678901234567890", "123456789012345678901234567890.0", "12345678901234567890123456789e1"],
            &["\"café\"", r#""caf\u00e9""#, r#""caf\u00E9""#, r#""\u0063afé""#],
            &[r#""a/b""#, r#""a\/b""#, r#""\u0061\u002fb""#],
            &[r#""a\"b""#, r#""a\u0022b""#],
            &[r#""a\\b""#, r#""a\u005cb""#],
            &["\"😀\"", r#""\ud83d\ude00""#],
            &["\"7\"", r#""\u0037""#],
            &["\"1234.0\""],
            &["7"],
            &["\"\""],
            &["1e400"],
            &["1e401"],
            &["1e99999999999999999999"],
        ];
        for (at, family) in families.iter().enumerate() {
            for id in *family {
                let token = IdToken::from_json(id).expect("an id");
                assert_eq!(token.as_str(), *id, "it is echoed");
                for (other_at, others) in families.iter().enumerate() {
                    for other in *others {
                        let same = IdToken::from_json(other).is_some_and(|other| other == token);
                        assert_eq!(same, at == other_at, "{id} and {other}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_id_that_is_too_long_is_kept_to_be_refused_only() {
        let id = |length: usize| format!("\"{}\"", "x".repeat(length - 2));
        assert!(IdToken::from_json(&id(ID_MOST)).is_some());
        assert!(IdToken::from_json(&id(ID_MOST + 1)).is_none());
        assert!(IdToken::to_be_refused(&id(ID_ECHOED)).is_some());
        assert!(IdToken::to_be_refused(&id(ID_ECHOED + 1)).is_none());
        for none in ["null", "true", "{}", "[1]"] {
            assert!(IdToken::to_be_refused(none).is_none() && IdToken::from_json(none).is_none(), "{none}");
        }
    }
}
