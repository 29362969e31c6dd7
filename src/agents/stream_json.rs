//! Reads Claude Code's `stream-json` output, and its `json` output on the way; Qwen Code writes the same shapes.
//!
//! Owns: what a line means. May not know how lines were cut, what an end means, or any process.
//!
//! The reader is lenient because the writer is not strict: the introduction need not come first, unknown types appear
//! with new versions, a model's lone surrogate is passed through as an escape that strict readers refuse, `json` mode
//! writes one object or one array, and others write to the same stream (`values`). Invariants: (1) any bytes give events, never an error; (2) no text of an unread
//! line is kept; (3) what is kept of lists and of nested values is bounded.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;

use super::values::{Company, values};
use super::{AgentEvent, AgentResult, OutputParser};
use crate::base::ids::UnixMillis;
use crate::base::lenient;
use crate::jobs::PermissionDenial;

/// Refused tool uses kept of one result; each is another try of the same thing by then.
const MAX_DENIALS: usize = 64;
/// Error texts kept of one result, and characters of each.
const MAX_ERRORS: usize = 16;
const MAX_ERROR_CHARS: usize = 2_000;
/// Bytes of a token count object; a real one has a few hundred. A larger one is dropped.
const MAX_USAGE_BYTES: usize = 64 << 10;
/// Characters of a denial's target.
const MAX_TARGET_CHARS: usize = 200;
/// Characters of names and kinds, which are repeated in every listing.
const MAX_NAME_CHARS: usize = 100;
/// The types of lines that are looked for where something else stands in the line too. Programs that log write objects
/// as well, and theirs mean nothing here.
const TYPES: &[&str] = &["system", "assistant", "user", "result", "rate_limit_event", "stream_event"];

/// The parser of one run.
#[derive(Debug, Default)]
pub struct StreamJson {
    /// The error class of the last assistant event; the result that follows does not repeat it.
    error: Option<String>,
}

impl StreamJson {
    /// A parser at the beginning of a run.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn event(&mut self, event: &Value, out: &mut Vec<AgentEvent>) {
        let kind = text(event, "type").unwrap_or_default();
        let subtype = text(event, "subtype").unwrap_or_default();
        match (kind, subtype) {
            ("system", "init") => out.push(started(event)),
            ("system", "api_retry") => out.push(AgentEvent::Retrying {
                attempt: number(event, "attempt").unwrap_or(0),
                max: number(event, "max_retries").unwrap_or(0),
                delay_ms: number(event, "retry_delay_ms").unwrap_or(0),
                status: number(event, "error_status"),
            }),
            ("system", "permission_denied") => out.push(AgentEvent::Denied { denial: denial(event) }),
            ("system", "thinking_tokens") => out.push(AgentEvent::Thinking),
            ("rate_limit_event", _) => limited(event, out),
            ("assistant", _) => self.assistant(event, out),
            ("user", _) => out.push(AgentEvent::ToolResult),
            ("result", _) => {
                let result = Box::new(result(event, self.error.clone()));
                out.push(AgentEvent::Result { result });
            }
            _ => out.push(other(kind, subtype)),
        }
    }

    /// Takes a value for what it says it is; false when it is none of this agent's.
    fn take(&mut self, value: Value, company: Company, out: &mut Vec<AgentEvent>) -> bool {
        let is_ours = |event: &Value| match (text(event, "type"), company) {
            (Some(_), Company::Alone) => true,
            (Some(kind), Company::Mixed) => TYPES.contains(&kind),
            (None, _) => false,
        };
        match value {
            Value::Array(events) if !events.is_empty() && events.iter().all(Value::is_object) => {
                events.iter().for_each(|event| self.event(event, out));
                true
            }
            event @ Value::Object(_) if is_ours(&event) => {
                self.event(&event, out);
                true
            }
            _ => false,
        }
    }

    fn assistant(&mut self, event: &Value, out: &mut Vec<AgentEvent>) {
        if event.get("parent_tool_use_id").is_some_and(|parent| !parent.is_null()) {
            // A helper of the agent speaks; its words are not the answer.
            return out.push(other("assistant", "nested"));
        }
        self.error = text(event, "error").map(|class| shortened(class, MAX_NAME_CHARS));
        if let Some(class) = &self.error {
            // The text of such an event is the error's, and comes again with the result.
            return out.push(AgentEvent::ProviderError { class: class.clone() });
        }
        match event.pointer("/message/content") {
            Some(Value::String(said)) => out.push(AgentEvent::Text { text: said.clone() }),
            Some(Value::Array(blocks)) => blocks.iter().for_each(|block| out.push(content_block(block))),
            _ => out.push(other("assistant", "")),
        }
    }
}

impl OutputParser for StreamJson {
    fn line(&mut self, line: &[u8], out: &mut Vec<AgentEvent>) {
        let line = line.trim_ascii();
        if line.is_empty() {
            return;
        }
        if let Some(event) = without_content(line) {
            return out.push(event);
        }
        if let Ok(event) = serde_json::from_slice::<Value>(line)
            && self.take(event, Company::Alone, out)
        {
            return;
        }
        // Once more with what strict readers refuse put right, and value by value.
        let text = lenient::text(line);
        let refused =
            values(lenient::repair_surrogates(&text).as_bytes(), &mut |value, company| self.take(value, company, out));
        if refused > 0 {
            out.push(AgentEvent::Garbage { bytes: refused.min(line.len() as u64) });
        }
    }
}

/// The event of a line whose content nobody needs. Tool results are the longest lines of all, and this way they are not
/// built up in memory.
fn without_content(line: &[u8]) -> Option<AgentEvent> {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
    }
    if line.first() != Some(&b'{') {
        return None;
    }
    match serde_json::from_slice::<Head<'_>>(line).ok()?.kind.as_ref() {
        "user" => Some(AgentEvent::ToolResult),
        "stream_event" => Some(other("stream_event", "")),
        _ => None,
    }
}

fn started(event: &Value) -> AgentEvent {
    let name = |key| text(event, key).map(|value| shortened(value, MAX_NAME_CHARS));
    AgentEvent::Started {
        session_id: name("session_id"),
        model: name("model"),
        // One that is blank names nobody.
        key_source: name("apiKeySource").filter(|source| !source.trim().is_empty()),
        version: name("claude_code_version"),
    }
}

fn content_block(block: &Value) -> AgentEvent {
    match text(block, "type").unwrap_or_default() {
        "text" => AgentEvent::Text { text: text(block, "text").unwrap_or_default().to_owned() },
        "thinking" | "redacted_thinking" => AgentEvent::Thinking,
        "tool_use" => AgentEvent::ToolUse { tool: shortened(text(block, "name").unwrap_or_default(), MAX_NAME_CHARS) },
        kind => other("assistant", kind),
    }
}

/// A limit event also comes while there is room; only a refusal says when to try again. What is used beyond the plan is
/// allowed, and paid for.
fn limited(event: &Value, out: &mut Vec<AgentEvent>) {
    let info = event.get("rate_limit_info").unwrap_or(event);
    let refused = !text(info, "status").is_some_and(|status| status.starts_with("allowed"));
    if refused {
        let retry_at = number(info, "resetsAt").or_else(|| number(info, "resets_at")).and_then(epoch);
        let limit = text(info, "rateLimitType").or_else(|| text(info, "rate_limit_type"));
        out.push(AgentEvent::Limited { retry_at, limit: limit.map(|limit| shortened(limit, MAX_NAME_CHARS)) });
    } else if ["isUsingOverage", "is_using_overage"].into_iter().any(|key| info.get(key) == Some(&Value::Bool(true))) {
        out.push(AgentEvent::ExtraUsage);
    } else {
        out.push(other("rate_limit_event", "allowed"));
    }
}

/// A time since 1970 in seconds, or in milliseconds when it is too large for seconds of this millennium.
pub(super) fn epoch(time: u64) -> Option<UnixMillis> {
    let millis = if time < 100_000_000_000 { time.checked_mul(1_000)? } else { time };
    i64::try_from(millis).ok().filter(|millis| *millis > 0).map(UnixMillis)
}

fn result(event: &Value, error: Option<String>) -> AgentResult {
    let own = |key| text(event, key).map(str::to_owned);
    let usage =
        |key| event.get(key).filter(|usage| usage.is_object() && usage.to_string().len() <= MAX_USAGE_BYTES).cloned();
    AgentResult {
        subtype: own("subtype"),
        is_error: event.get("is_error").and_then(Value::as_bool).unwrap_or(false),
        text: own("result"),
        session_id: own("session_id"),
        num_turns: number(event, "num_turns"),
        stop_reason: own("stop_reason"),
        terminal_reason: own("terminal_reason"),
        api_error_status: number(event, "api_error_status"),
        api_error_type: own("api_error_type"),
        error: own("error").or(error),
        errors: list(event, "errors")
            .take(MAX_ERRORS)
            .map(|error| match error {
                Value::String(error) => shortened(error, MAX_ERROR_CHARS),
                other => shortened(&other.to_string(), MAX_ERROR_CHARS),
            })
            // Others who speak so have one, with its words in an object.
            .chain(event.pointer("/error/message").and_then(Value::as_str).map(|it| shortened(it, MAX_ERROR_CHARS)))
            .collect(),
        cost_usd: event.get("total_cost_usd").and_then(Value::as_f64),
        usage: usage("usage"),
        model_usage: usage("modelUsage"),
        permission_denials: list(event, "permission_denials").take(MAX_DENIALS).map(denial).collect(),
    }
}

fn denial(event: &Value) -> PermissionDenial {
    let input = event.get("tool_input");
    let target = ["file_path", "path", "notebook_path", "command", "url", "pattern"]
        .into_iter()
        .find_map(|key| input.and_then(|input| text(input, key)))
        // The message names the file; the reason is the same for every file, and equal denials are counted once.
        .or_else(|| text(event, "message"))
        .or_else(|| text(event, "decision_reason"));
    PermissionDenial {
        tool: shortened(text(event, "tool_name").unwrap_or("?"), MAX_NAME_CHARS),
        target: target.map(|target| shortened(target, MAX_TARGET_CHARS)),
    }
}

fn other(kind: &str, subtype: &str) -> AgentEvent {
    let kind = if subtype.is_empty() { kind.to_owned() } else { format!("{kind}/{subtype}") };
    AgentEvent::Other { kind: shortened(&kind, MAX_NAME_CHARS) }
}

fn text<'a>(event: &'a Value, key: &str) -> Option<&'a str> {
    event.get(key).and_then(Value::as_str)
}

fn number(event: &Value, key: &str) -> Option<u64> {
    match event.get(key)? {
        Value::String(digits) => digits.parse().ok(),
        // A negative or absurd number saturates, which is what the caller would do with it.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
        value => value.as_u64().or_else(|| value.as_f64().map(|float| float as u64)),
    }
}

fn list<'a>(event: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    event.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn shortened(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::tests_support;

    fn events(lines: &[&str]) -> Vec<AgentEvent> {
        tests_support::events(Box::new(StreamJson::new()), lines)
    }

    fn the_result(lines: &[&str]) -> AgentResult {
        match events(lines).pop() {
            Some(AgentEvent::Result { result }) => *result,
            other => panic!("no result but {other:?}"),
        }
    }

    #[test]
    fn a_denial_names_what_was_refused_so_that_two_files_are_two_denials() {
        // As Claude Code 2.1.329 writes it.
        let line = |file: &str| {
            format!(
                r#"{{"type":"system","subtype":"permission_denied","tool_name":"Read","tool_use_id":"t","decision_reason_type":"other","decision_reason":"--restricted: path outside the working directory","message":"{file} is outside /w; --restricted confines the file tools to the working directory."}}"#
            )
        };
        let mut summary = crate::agents::RunSummary::new();
        events(&[&line("/a"), &line("/b"), &line("/a")]).iter().for_each(|event| summary.fold(event));
        let targets: Vec<_> = summary.denials().iter().filter_map(|denial| denial.target.as_deref()).collect();
        assert_eq!(targets.len(), 2, "{targets:?}");
        assert!(targets[0].starts_with("/a is outside"), "{targets:?}");
    }

    #[test]
    fn every_known_line_becomes_its_event() {
        let seen = events(&[
            r#"{"type":"system","subtype":"ui_invalidate"}"#,
            r#"{"cwd":"/x","type":"system","subtype":"init","session_id":"s","model":"m","apiKeySource":"none","claude_code_version":"2.1"}"#,
            r#"{"type":"system","subtype":"thinking_tokens","estimated_tokens":7}"#,
            r#"{"type":"system","subtype":"api_retry","attempt":1,"max_retries":2,"retry_delay_ms":512.3,"error_status":null}"#,
            r#"{"type":"system","subtype":"permission_denied","tool_name":"Read","message":"outside"}"#,
            r#"{"type":"assistant","message":{"content":[{"type":"thinking","thinking":"…"},{"type":"text","text":"a"},{"type":"tool_use","name":"Grep","input":{}}]}}"#,
            r#"{"type":"assistant","parent_tool_use_id":"t","message":{"content":[{"type":"text","text":"nested"}]}}"#,
            r#"{"type":"user","message":{"content":[{"type":"tool_result"}]},"tool_use_result":"x"}"#,
            r#"{"type":"rate_limit_event","rate_limit_info":{"status":"allowed_warning","resetsAt":1900000000}}"#,
            r#"{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":1900000000,"rateLimitType":"five_hour"}}"#,
            r#"{"type":"rate_limit_event","rate_limit_info":{"status":"allowed","isUsingOverage":true}}"#,
            r#"{"type":"stream_event","event":{}}"#,
            r#"{"type":"tomorrow","x":[1]}"#,
            "   ",
            "plain text",
            "42",
        ]);
        let kind = |kind: &str| AgentEvent::Other { kind: kind.to_owned() };
        assert_eq!(
            seen,
            [
                kind("system/ui_invalidate"),
                AgentEvent::Started {
                    session_id: Some("s".into()),
                    model: Some("m".into()),
                    key_source: Some("none".into()),
                    version: Some("2.1".into())
                },
                AgentEvent::Thinking,
                AgentEvent::Retrying { attempt: 1, max: 2, delay_ms: 512, status: None },
                AgentEvent::Denied { denial: PermissionDenial { tool: "Read".into(), target: Some("outside".into()) } },
                AgentEvent::Thinking,
                AgentEvent::Text { text: "a".into() },
                AgentEvent::ToolUse { tool: "Grep".into() },
                kind("assistant/nested"),
                AgentEvent::ToolResult,
                kind("rate_limit_event/allowed"),
                AgentEvent::Limited { retry_at: Some(UnixMillis(1_900_000_000_000)), limit: Some("five_hour".into()) },
                AgentEvent::ExtraUsage,
                kind("stream_event"),
                kind("tomorrow"),
                AgentEvent::Garbage { bytes: 10 },
                AgentEvent::Garbage { bytes: 2 },
            ]
        );
    }

    #[test]
    fn a_result_is_read_whole_with_the_error_class_of_the_last_assistant_event() {
        let result = the_result(&[
            r#"{"type":"assistant","error":"rate_limit","message":{"content":[{"type":"text","text":"API Error"}]}}"#,
            r#"{"usage":{"input_tokens":3},"is_error":true,"type":"result","subtype":"success","result":"API Error: 429","session_id":"s","num_turns":1,"stop_reason":"stop_sequence","terminal_reason":"api_error","api_error_status":429,"total_cost_usd":0.25,"modelUsage":{"m":{"outputTokens":1}},"permission_denials":[{"tool_name":"Bash","tool_use_id":"t","tool_input":{"command":"rm"}}],"errors":["e",{"a":1}]}"#,
        ]);
        assert_eq!(result.error.as_deref(), Some("rate_limit"));
        assert_eq!(result.api_error_status, Some(429));
        assert_eq!(result.cost_usd, Some(0.25));
        assert_eq!(result.usage, Some(serde_json::json!({"input_tokens": 3})));
        assert_eq!(result.errors, ["e", r#"{"a":1}"#]);
        assert_eq!(result.permission_denials, [PermissionDenial { tool: "Bash".into(), target: Some("rm".into()) }]);
    }

    #[test]
    fn a_later_assistant_event_without_error_clears_the_class() {
        let result = the_result(&[
            r#"{"type":"assistant","error":"rate_limit","message":{"content":[]}}"#,
            r#"{"type":"assistant","message":{"content":[{"type":"text","text":"recovered"}]}}"#,
            r#"{"type":"result","result":"recovered"}"#,
        ]);
        assert_eq!(result.error, None);
    }

    #[test]
    fn one_object_or_one_array_is_read_like_lines() {
        let object = r#"{"type":"result","result":"a"}"#;
        assert_eq!(the_result(&[object]).text.as_deref(), Some("a"));
        let array = format!("[{},{object}]", r#"{"type":"system","subtype":"init","session_id":"s"}"#);
        let seen = events(&[&array]);
        assert!(matches!(seen[..], [AgentEvent::Started { .. }, AgentEvent::Result { .. }]), "{seen:?}");
    }

    #[test]
    fn a_key_source_that_names_nobody_is_none() {
        for (source, named) in [
            (r#""none""#, Some("none")),
            (r#""ANTHROPIC_API_KEY""#, Some("ANTHROPIC_API_KEY")),
            (r#""""#, None),
            (r#"" \t""#, None),
            ("null", None),
            ("false", None),
            (r#"["none"]"#, None),
        ] {
            let seen = events(&[&format!(r#"{{"type":"system","subtype":"init","apiKeySource":{source}}}"#)]);
            let [AgentEvent::Started { key_source, .. }] = &seen[..] else { panic!("{source}: {seen:?}") };
            assert_eq!(key_source.as_deref(), named, "{source}");
        }
    }

    #[test]
    fn an_event_counts_whatever_stands_before_or_behind_it_in_its_line() {
        let text = r#"{"type":"assistant","message":{"content":[{"type":"text","text":"a"}]}}"#;
        let result = r#"{"type":"result","result":"\ud83d"}"#;
        let init = r#"{"type":"system","subtype":"init","apiKeySource":"none"}"#;
        for before in
            ["\u{feff}", "Loading…\r", "\u{1b}[2K\u{1b}[1G", "[1/3] {half ", r#"{"level":"info","msg":"x"}"#, "x"]
        {
            for (events_of, kinds) in [(init, 1), (text, 1), (result, 1)] {
                let seen = events(&[&format!("{before}{events_of}")]);
                assert_eq!(seen.len(), kinds + 1, "{before:?}: {seen:?}");
                let clean = events(&[events_of]);
                assert_eq!(seen[..kinds], clean[..], "{before:?}");
                assert!(matches!(seen[kinds], AgentEvent::Garbage { bytes } if bytes > 0), "{seen:?}");
            }
        }
        let glued = events(&[&format!("{init}{text}{result}")]);
        assert!(
            matches!(&glued[..], [AgentEvent::Started { .. }, AgentEvent::Text { .. }, AgentEvent::Result { result }]
                if result.text.as_deref() == Some("\u{fffd}")),
            "{glued:?}"
        );
        let torn = events(&[&format!(r#"{result}{{"type":"assis"#)]);
        assert!(matches!(torn[..], [AgentEvent::Result { .. }, AgentEvent::Garbage { bytes: 14 }]), "{torn:?}");
        // A log that quotes an event inside of its own object has not given one.
        let quoted = events(&[&format!(r#"debug {{"got":{result}}}"#)]);
        assert!(matches!(quoted[..], [AgentEvent::Garbage { .. }]), "{quoted:?}");
    }

    #[test]
    fn lone_surrogates_are_replaced_and_pairs_and_escaped_backslashes_are_kept() {
        // what stands in the JSON string, what it means
        let table = [
            (r"\ud83d", "\u{fffd}"),
            (r"\ude00", "\u{fffd}"),
            (r"a\ud83d\ude00b", "a😀b"),
            (r"\ud83d\ud83d\ude00", "\u{fffd}😀"),
            (r"\uD83Dx", "\u{fffd}x"),
            (r"\\ud83d \ud83d", "\\ud83d \u{fffd}"),
            (r#"\"\ud83d\n"#, "\"\u{fffd}\n"),
            (r"\u00e9\ud83d", "é\u{fffd}"),
        ];
        for (escaped, meant) in table {
            let result = the_result(&[&format!(r#"{{"type":"result","result":"{escaped}"}}"#)]);
            assert_eq!(result.text.as_deref(), Some(meant), "{escaped}");
        }
    }

    #[test]
    fn broken_utf8_costs_the_character_and_not_the_line() {
        let mut out = Vec::new();
        StreamJson::new().line(b"{\"type\":\"result\",\"result\":\"caf\xc3\"}", &mut out);
        assert!(matches!(&out[..], [AgentEvent::Result { result }] if result.text.as_deref() == Some("caf\u{fffd}")));
    }

    #[test]
    fn random_damage_never_panics_and_always_gives_bounded_events() {
        let sample = r#"{"type":"result","subtype":"x","result":"\ud83d\ude00","errors":["\ud83d"],"usage":{},"num_turns":-1,"permission_denials":[{}]}"#;
        tests_support::expect_damage_is_survived(0x5eed, sample, || Box::new(StreamJson::new()));
    }
}
