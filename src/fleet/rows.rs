//! What comes in from a shared database is somebody else's word, and is read like a client's message.
//!
//! Owns: the bounds and the alphabets of every field, and the one error that says which field was none. May not know: SQL, what a
//! row is for.
//!
//! Invariants: (1) what passes here fits the bounds below, so that no row costs more memory than its bound (L9); (2) fields that
//! are not known are let pass: a later version writes them; (3) an error names the field and never repeats its value (L13).

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a workspace's name: the longest path there is, and what stands before it.
pub const WORKSPACE_BYTES: usize = 4_400;
/// Bytes of a request key; those that hosts make have 80.
pub const KEY_BYTES: usize = 256;
/// Bytes of a name: of an agent, a host, an account, a session, a build, a tag, a database user.
pub const NAME_BYTES: usize = 256;
/// Bytes of a frozen request: the longest prompt, each character escaped.
pub const REQUEST_BYTES: usize = 8 << 20;
/// Bytes of an outcome: twice the longest answer that is kept, escaped.
pub const OUTCOME_BYTES: usize = 16 << 20;
/// Bytes of a host's labels or a job's needs, as JSON.
pub const LABELS_BYTES: usize = 64 << 10;

/// A row, or a value that was to become one, holds what this version does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("take a row of the fleet: {field} {problem}")]
pub struct BadRow {
    /// The field.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl BadRow {
    /// This field is not what it has to be.
    #[must_use]
    pub const fn new(field: &'static str, problem: &'static str) -> Self {
        Self { field, problem }
    }
}

/// A text without control characters, neither empty nor longer than `most` bytes.
pub fn text<'a>(field: &'static str, value: &'a str, most: usize) -> Result<&'a str, BadRow> {
    match value {
        "" => Err(BadRow::new(field, "is empty")),
        long if long.len() > most => Err(BadRow::new(field, "is too long")),
        other if other.chars().any(char::is_control) => Err(BadRow::new(field, "has control characters")),
        good => Ok(good),
    }
}

/// A word that people and programs type: visible ASCII, no spaces.
pub fn word<'a>(field: &'static str, value: &'a str) -> Result<&'a str, BadRow> {
    let value = text(field, value, NAME_BYTES)?;
    if value.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(value) } else { Err(BadRow::new(field, "is no word")) }
}

/// As [`word`], or nothing at all.
pub fn word_or_nothing<'a>(field: &'static str, value: &'a str) -> Result<&'a str, BadRow> {
    if value.is_empty() { Ok(value) } else { word(field, value) }
}

/// A SHA-256 digest as we write it.
pub fn digest<'a>(field: &'static str, value: &'a str) -> Result<&'a str, BadRow> {
    let is_hex = value.len() == 64 && value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_hex { Ok(value) } else { Err(BadRow::new(field, "is no digest")) }
}

/// An id in the one spelling we write.
pub fn id<T: std::str::FromStr>(field: &'static str, value: &str) -> Result<T, BadRow> {
    value.parse().map_err(|_| BadRow::new(field, "is no id"))
}

/// A number that counts something.
pub fn count(field: &'static str, value: i64) -> Result<u64, BadRow> {
    u64::try_from(value).map_err(|_| BadRow::new(field, "is negative"))
}

/// JSON of at most so many bytes.
pub fn json<T: DeserializeOwned>(field: &'static str, value: &str, most: usize) -> Result<T, BadRow> {
    if value.len() > most {
        return Err(BadRow::new(field, "is too long"));
    }
    // Everything that is kept is an object; a list of its fields in their order is nobody's.
    let object = value.trim_start().starts_with('{').then(|| serde_json::from_str(value).ok()).flatten();
    object.ok_or(BadRow::new(field, "is not understood"))
}

/// The JSON of a value of ours, of at most so many bytes. Characters that PostgreSQL's texts do not hold are escaped in it.
pub fn written<T: Serialize>(field: &'static str, value: &T, most: usize) -> Result<String, BadRow> {
    let text = serde_json::to_string(value).map_err(|_| BadRow::new(field, "cannot be written"))?;
    if text.len() > most { Err(BadRow::new(field, "is too long")) } else { Ok(text) }
}
