//! What parsers of agents' streams take out of a line: a field, and as much of a text as is kept.
//!
//! Owns: nothing. May not know: what a line means.

use serde_json::Value;

use super::{AgentEvent, OutputParser};
use crate::agents::values::values;
use crate::base::lenient;

/// Characters of names and kinds, which are repeated in every listing.
pub(super) const MAX_NAME_CHARS: usize = 100;
/// Characters of what a refused tool was to be used on.
pub(super) const MAX_TARGET_CHARS: usize = 200;
/// Characters of an error's text.
pub(super) const MAX_ERROR_CHARS: usize = 2_000;
/// Bytes of a token count object; a real one has a few hundred. A larger one is dropped.
pub(super) const MAX_USAGE_BYTES: usize = 64 << 10;

/// A field that is a text.
pub(super) fn text<'a>(event: &'a Value, key: &str) -> Option<&'a str> {
    event.get(key).and_then(Value::as_str)
}

/// The beginning of a text, with a sign where something is left out.
pub(super) fn shortened(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// A field that is a name, as much of it as is kept.
pub(super) fn name(event: &Value, key: &str) -> Option<String> {
    text(event, key).map(|name| shortened(name, MAX_NAME_CHARS))
}

/// An object of counts, unless it is none any more.
pub(super) fn counts(event: &Value, key: &str) -> Option<Value> {
    event.get(key).filter(|counts| counts.is_object() && counts.to_string().len() <= MAX_USAGE_BYTES).cloned()
}

/// A line that is of no interest.
pub(super) fn other(kind: &str) -> AgentEvent {
    AgentEvent::Other { kind: shortened(kind, MAX_NAME_CHARS) }
}

/// A parser of a stream of which each line is one event, an object with a `type`.
pub(super) trait EventStream: Send {
    /// One event.
    fn event(&mut self, kind: &str, event: &Value, out: &mut Vec<AgentEvent>);

    /// The output has ended.
    fn end(&mut self, out: &mut Vec<AgentEvent>) {
        let _ = out;
    }
}

/// Reads the lines of such a stream: as they are, and where a strict reader refuses one, with what it refuses put right and value by
/// value.
#[derive(Debug, Default)]
pub(super) struct Events<S>(pub(super) S);

impl<S: EventStream> OutputParser for Events<S> {
    fn line(&mut self, line: &[u8], out: &mut Vec<AgentEvent>) {
        let line = line.trim_ascii();
        if line.is_empty() {
            return;
        }
        let mut take = |value: &Value, out: &mut Vec<AgentEvent>| match text(value, "type") {
            Some(kind) => {
                self.0.event(kind, value, out);
                true
            }
            None => false,
        };
        if let Ok(event) = serde_json::from_slice::<Value>(line)
            && take(&event, out)
        {
            return;
        }
        let text = lenient::text(line);
        let refused = values(lenient::repair_surrogates(&text).as_bytes(), &mut |value, _| take(&value, out));
        if refused > 0 {
            out.push(AgentEvent::Garbage { bytes: refused.min(line.len() as u64) });
        }
    }

    fn end(&mut self, out: &mut Vec<AgentEvent>) {
        self.0.end(out);
    }
}
