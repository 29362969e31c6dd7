//! Copilot CLI, as it speaks with `--output-format json`.

use serde_json::{Map, Value, json};

use super::{OptionRefused, Speaker, Voice, each_option};

/// What it answers to `--help`: the options the probe looks for.
const HELP: &str = "\
Usage: copilot [OPTIONS] [COMMAND]

Options:
      --disable-client-telemetry
      --model <model>
      --reasoning-effort <level>
  -r, --resume [<value>]
      --session-id <id>
      --disallow-temp-dir
  -C <directory>
      --output-format <format>
      --disable-builtin-mcps
      --available-tools [<tools>...]
      --no-custom-instructions
      --no-auto-update
      --no-ask-user
      --no-remote-export
";

/// Its help, beside that of Claude Code, whose question it is asked by.
pub(super) const HELP_BESIDE: &str = HELP;

const FLAGS: &[&str] = &[
    "--disable-client-telemetry",
    "--disallow-temp-dir",
    "--disable-builtin-mcps",
    "--no-custom-instructions",
    "--no-auto-update",
    "--no-ask-user",
    "--no-remote-export",
];
const OPTIONS: &[&str] = &["--model", "--reasoning-effort", "--resume", "--session-id", "-C", "--output-format"];

/// How the option begins that says which tools there are.
const TOOLS: &str = "--available-tools=";

pub(super) struct Copilot;

fn event(kind: &str, data: &Value) -> Value {
    json!({"type": kind, "data": data, "id": "i", "timestamp": "2026-11-27T04:17:16.593Z", "parentId": "p"})
}

impl Voice for Copilot {
    fn is_called(&self, args: &[String]) -> bool {
        args.iter().any(|arg| arg.starts_with(TOOLS))
    }

    fn asked(&self, _: &[String]) -> Option<String> {
        None
    }

    fn check(&self, args: &[String]) -> Result<Option<String>, OptionRefused> {
        let mut session = None;
        let valued = |name: &str, value: &str| {
            if matches!(name, "--resume" | "--session-id") {
                session = Some(value.to_owned());
            }
        };
        each_option(args, FLAGS, OPTIONS, valued, |arg, _| {
            let line = format!("error: unexpected argument '{arg}' found");
            if arg.starts_with(TOOLS) { Ok(()) } else { Err(OptionRefused { line, code: 1 }) }
        })?;
        Ok(session)
    }

    fn introduction(&self, speaker: &Speaker) -> Vec<Value> {
        vec![
            event("session.tools_updated", &json!({"model": speaker.model})),
            event("assistant.turn_start", &json!({"turnId": "0"})),
        ]
    }

    fn text(&self, speaker: &Speaker, text: &str) -> Value {
        event("assistant.message", &json!({"model": speaker.model, "content": text, "toolRequests": []}))
    }

    fn thinking(&self, _: &Speaker) -> Value {
        event("assistant.message_delta", &json!({"messageId": "m", "deltaContent": "…"}))
    }

    fn tool(&self, _: &Speaker, tool: &str) -> Vec<Value> {
        vec![
            event("tool.execution_start", &json!({"toolCallId": "t", "toolName": tool, "arguments": {}})),
            event("tool.execution_complete", &json!({"toolCallId": "t", "success": true, "result": {"content": ""}})),
        ]
    }

    fn denied(&self, tool: &str, target: &str) -> Value {
        let message = format!("{tool} {target}: permission denied");
        event("tool.execution_complete", &json!({"success": false, "error": {"message": message, "code": "denied"}}))
    }

    fn retries(&self, _: u64, _: u64, _: u64, _: Option<u64>) -> Value {
        event("assistant.turn_retry", &json!({"turnId": "0", "reason": "rate_limit"}))
    }

    fn provider_error(&self, _: &Speaker, class: &str) -> Value {
        event("session.error", &json!({"errorType": class, "message": class}))
    }

    fn limit(&self, _: u64) -> Value {
        event("session.error", &json!({"errorType": "rate_limit", "message": "429 no", "statusCode": 429}))
    }

    fn limit_info(&self, _: &Map<String, Value>) -> Value {
        event("assistant.usage", &json!({}))
    }

    /// With `is_error`, `message` and `statusCode` among the fields the turn has failed.
    fn result(&self, speaker: &Speaker, answer: &str, fields: &Map<String, Value>) -> (Vec<Value>, bool) {
        let last = |code: u8| json!({"type": "result", "sessionId": speaker.session_id, "exitCode": code, "usage": {"premiumRequests": 1}});
        if fields.get("is_error").and_then(Value::as_bool).unwrap_or(false) {
            let message = fields.get("message").and_then(Value::as_str).unwrap_or("failed by the script");
            let data = json!({"errorType": "query", "message": message, "statusCode": fields.get("statusCode")});
            return (vec![event("session.error", &data), last(1)], true);
        }
        let answer = fields.get("result").and_then(Value::as_str).unwrap_or(answer);
        (vec![self.text(speaker, answer), last(0)], false)
    }

    fn half_a_pair(&self) -> &'static str {
        r#"{"type":"assistant.message","data":{"content":"half of a pair: \ud83d"}}"#
    }
}
