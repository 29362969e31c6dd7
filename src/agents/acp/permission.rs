//! What an agent may do that asks before it does it.
//!
//! Owns: what is reading, and which of the offered answers is given. May not know: who asks, or what is done without asking.
//!
//! Reading is allowed in the directory the agent was asked about, once. Everything else is refused: another kind of tool, a kind that
//! nobody knows, a place outside, a place that is not said.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::agents::fields::{MAX_TARGET_CHARS, shortened, text};
use crate::jobs::PermissionDenial;

/// Characters of the name of a kind of tool.
const MAX_KIND_CHARS: usize = 40;

/// Places of one use of a tool that are looked at; one with more is refused.
const MAX_PLACES: usize = 64;

/// By which names tools are told a place.
const PLACE_KEYS: [&str; 12] = [
    "path",
    "file_path",
    "filePath",
    "filepath",
    "absolute_path",
    "absolutePath",
    "dir_path",
    "dirPath",
    "directory",
    "cwd",
    "uri",
    "parentDir",
];

/// A use of a tool, as far as it was told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tool {
    kind: Option<String>,
    title: Option<String>,
    places: Vec<String>,
}

impl Tool {
    /// The use of a tool that is told.
    pub(super) fn used(told: &Value) -> Self {
        Self::default().updated(told)
    }

    /// With what is told now.
    pub(super) fn updated(mut self, told: &Value) -> Self {
        let take = |key, chars| text(told, key).map(|said| shortened(said, chars));
        self.kind = take("kind", MAX_KIND_CHARS).or(self.kind);
        self.title = take("title", MAX_TARGET_CHARS).or(self.title);
        let located = told.get("locations").and_then(Value::as_array).into_iter().flatten();
        let input = told.get("rawInput");
        let named = PLACE_KEYS.iter().filter_map(|key| input?.get(key));
        let places = located.filter_map(|location| location.get("path")).chain(named);
        for place in places {
            // What is no text is no place, and not passed over either.
            let place = place.as_str().unwrap_or("\0");
            if !self.places.iter().any(|known| known == place) && self.places.len() <= MAX_PLACES {
                self.places.push(place.to_owned());
            }
        }
        self
    }

    /// The use of a tool that permission is asked for: as it was told before, and now.
    pub(super) fn asked_for(params: &Value, known: &HashMap<String, Self>) -> Self {
        let asked = params.get("toolCall").unwrap_or(&Value::Null);
        let before = text(asked, "toolCallId").and_then(|id| known.get(id)).cloned();
        before.unwrap_or_default().updated(asked)
    }

    /// What kind of tool it is.
    pub(super) fn name(&self) -> String {
        self.kind.clone().unwrap_or_else(|| "other".to_owned())
    }

    /// That it was refused.
    pub(super) fn denial(&self) -> PermissionDenial {
        PermissionDenial {
            tool: self.name(),
            target: self.places.first().or(self.title.as_ref()).map(|place| shortened(place, MAX_TARGET_CHARS)),
        }
    }
}

/// Whether this is reading in this directory.
pub(super) fn is_reading(tool: &Tool, cwd: &Path) -> bool {
    let within = || tool.places.len() <= MAX_PLACES && tool.places.iter().all(|place| is_within(place, cwd));
    match tool.kind.as_deref() {
        // What is read is said.
        Some("read") => !tool.places.is_empty() && within(),
        // A search that names no place is one of the directory.
        Some("search" | "think") => within(),
        _ => false,
    }
}

/// Whether a place is in the directory, whatever links lead to it. What is not there yet cannot be read, and may be anything.
fn is_within(place: &str, cwd: &Path) -> bool {
    let path = PathBuf::from(place.strip_prefix("file://").unwrap_or(place));
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    match (real(&cwd.join(path)), real(cwd)) {
        (Some(place), Some(cwd)) => place.starts_with(cwd),
        _ => false,
    }
}

/// Which of the offered answers is given. An allowance is for once.
pub(super) fn answer(params: &Value, allowed: bool, stopping: bool) -> Value {
    let offered = params.get("options").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let option = |kind: &str| {
        let one = offered.iter().find(|option| text(option, "kind") == Some(kind))?;
        text(one, "optionId").map(|id| json!({"outcome": "selected", "optionId": id}))
    };
    let refuse = || option("reject_once").or_else(|| option("reject_always"));
    let chosen = match (stopping, allowed) {
        (true, _) => None,
        (false, true) => option("allow_once").or_else(refuse),
        (false, false) => refuse(),
    };
    // An agent that offers no way to refuse is told that nobody answers.
    chosen.unwrap_or_else(|| json!({"outcome": "cancelled"}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_in_the_directory_is_allowed_and_nothing_else() {
        let scratch = tempfile::tempdir().expect("scratch");
        let cwd = scratch.path().join("work");
        std::fs::create_dir_all(cwd.join("src")).expect("directories");
        std::fs::write(cwd.join("a.txt"), "a").expect("a file");
        std::fs::write(scratch.path().join("outside"), "secret").expect("a file");
        std::os::unix::fs::symlink(scratch.path().join("outside"), cwd.join("link")).expect("a link");
        std::os::unix::fs::symlink(cwd.join("a.txt"), cwd.join("inner")).expect("a link");
        let (inside, outside) = (cwd.join("a.txt"), scratch.path().join("outside"));
        let at = |path: &Path| json!([{"path": path}]);
        for (asked, allowed) in [
            (json!({"kind": "read", "locations": at(&inside)}), true),
            (json!({"kind": "read", "rawInput": {"filePath": inside}}), true),
            (json!({"kind": "read", "rawInput": {"path": "a.txt"}}), true),
            (json!({"kind": "read", "locations": at(&cwd.join("inner"))}), true),
            (json!({"kind": "search"}), true),
            (json!({"kind": "search", "locations": at(&cwd.join("src"))}), true),
            (json!({"kind": "think"}), true),
            // Where it reads is not said, or is outside, or leads outside.
            (json!({"kind": "read"}), false),
            (json!({"kind": "read", "locations": at(&outside)}), false),
            (json!({"kind": "read", "rawInput": {"path": "../outside"}}), false),
            (json!({"kind": "read", "locations": at(&cwd.join("link"))}), false),
            (json!({"kind": "read", "locations": at(&cwd.join("src/../../outside"))}), false),
            (json!({"kind": "read", "locations": at(&inside), "rawInput": {"path": outside}}), false),
            (json!({"kind": "read", "locations": [{"path": inside}, {"path": outside}]}), false),
            (json!({"kind": "read", "locations": [{"path": 7}]}), false),
            (json!({"kind": "read", "locations": at(&cwd.join("not-there"))}), false),
            (json!({"kind": "search", "rawInput": {"path": "/"}}), false),
            // Other kinds, and what is no kind.
            (json!({"kind": "edit", "locations": at(&inside)}), false),
            (json!({"kind": "delete", "locations": at(&inside)}), false),
            (json!({"kind": "move", "locations": at(&inside)}), false),
            (json!({"kind": "execute", "rawInput": {"command": "cat a.txt"}}), false),
            (json!({"kind": "fetch", "rawInput": {"url": "https://x"}}), false),
            (json!({"kind": "switch_mode"}), false),
            (json!({"kind": "other"}), false),
            (json!({"kind": "tomorrow"}), false),
            (json!({"kind": 7, "locations": at(&inside)}), false),
            (json!({"title": "Read a.txt", "locations": at(&inside)}), false),
            (json!({}), false),
        ] {
            assert_eq!(is_reading(&Tool::used(&asked), &cwd), allowed, "{asked}");
        }
        // What was told before counts, and what is told now besides.
        let known: HashMap<String, Tool> =
            [("t".to_owned(), Tool::used(&json!({"kind": "read", "title": "Read", "locations": at(&inside)})))].into();
        let asks = |call: Value| Tool::asked_for(&json!({"toolCall": call}), &known);
        assert!(is_reading(&asks(json!({"toolCallId": "t"})), &cwd));
        assert!(!is_reading(&asks(json!({"toolCallId": "t", "rawInput": {"path": outside}})), &cwd));
        assert!(!is_reading(&asks(json!({"toolCallId": "t", "kind": "edit"})), &cwd));
        assert!(!is_reading(&asks(json!({"toolCallId": "u"})), &cwd));
        assert!(!is_reading(&Tool::asked_for(&Value::Null, &known), &cwd));
    }

    #[test]
    fn a_refusal_is_given_by_what_is_offered_and_an_allowance_is_for_once() {
        let option = |id: &str, kind: &str| json!({"optionId": id, "name": id, "kind": kind});
        let all = [
            option("always", "allow_always"),
            option("once", "allow_once"),
            option("no", "reject_once"),
            option("never", "reject_always"),
        ];
        let answer_of = |options: &[Value], allowed, stopping| {
            let said = answer(&json!({"options": options}), allowed, stopping);
            text(&said, "optionId").unwrap_or(text(&said, "outcome").unwrap_or_default()).to_owned()
        };
        for (options, allowed, stopping, said) in [
            (&all[..], true, false, "once"),
            (&all[..], false, false, "no"),
            (&all[..], true, true, "cancelled"),
            (&all[..1], true, false, "cancelled"),
            (&all[..2], false, false, "cancelled"),
            (&all[3..], true, false, "never"),
            (&all[3..], false, false, "never"),
            (&[], true, false, "cancelled"),
        ] {
            assert_eq!(answer_of(options, allowed, stopping), said, "{options:?} {allowed} {stopping}");
        }
        assert_eq!(answer(&Value::Null, true, false), json!({"outcome": "cancelled"}));
    }
}
