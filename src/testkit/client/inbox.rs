//! Everything a client was sent.
//!
//! Owns: which line is what. May not know: who waits for it.
//!
//! Invariant: an id is compared as the text that was sent, byte for byte.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// Characters of a message shown when a wait was in vain.
const SHOWN: usize = 300;

/// Everything a client was sent.
#[derive(Default)]
pub(super) struct Inbox {
    /// By the JSON text of the id.
    pub(super) answers: BTreeMap<String, Vec<Value>>,
    pub(super) notifications: Vec<Value>,
    /// What broke the rule that stdout carries whole protocol messages only.
    pub(super) broken: Vec<String>,
    /// The beginning of the last line.
    pub(super) last: String,
    pub(super) closed: bool,
}

/// The id of a message, as it was written.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

impl Inbox {
    pub(super) fn take(&mut self, line: &[u8]) {
        self.last = String::from_utf8_lossy(&line[..line.len().min(4 * SHOWN)]).chars().take(SHOWN).collect();
        let message: Value = match serde_json::from_slice(line) {
            Ok(message) if line.ends_with(b"\n") => message,
            _ => return self.broken.push(self.last.clone()),
        };
        if message["jsonrpc"] != "2.0" {
            return self.broken.push(self.last.clone());
        }
        if message.get("method").is_some() {
            return self.notifications.push(message);
        }
        // `null` is `None` to serde, and so is an id that is missing; only the first of them is one.
        match serde_json::from_slice::<Head<'_>>(line) {
            Ok(Head { id: Some(id) }) => self.answers.entry(id.get().to_owned()).or_default().push(message),
            Ok(Head { id: None }) if message.get("id").is_some() => {
                self.answers.entry("null".to_owned()).or_default().push(message);
            }
            _ => self.broken.push(self.last.clone()),
        }
    }
}
