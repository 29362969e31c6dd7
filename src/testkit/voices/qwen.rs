//! Qwen Code, as it speaks with `-o stream-json`: in the words of Claude Code, but for who pays and what it cost.

use serde_json::{Map, Value, json};

use super::claude::Claude;
use super::{OptionRefused, Speaker, Voice, resumed};

/// What it answers to `--help`: the options the probe looks for.
const HELP: &str = "\
Usage: qwen [options] [command]

Options:
      --safe-mode                 Disable all customizations  [boolean]
  -m, --model                     Model  [string]
      --approval-mode             Set the approval mode  [choices: \"plan\", \"default\", \"auto-edit\", \"auto\", \"yolo\"]
  -o, --output-format             The format of the CLI output.  [choices: \"text\", \"json\", \"stream-json\"]
      --include-partial-messages  Include partial assistant messages  [boolean]
  -r, --resume                    Resume a specific session by its ID.  [string]
      --exclude-tools             Tools to exclude  [array]
";

/// Its help, beside that of Claude Code, whose question it is asked by.
pub(super) const HELP_BESIDE: &str = HELP;

const FLAGS: &[&str] = &["--safe-mode", "--include-partial-messages"];
const OPTIONS: &[&str] =
    &["-m", "--model", "--approval-mode", "-o", "--output-format", "-r", "--resume", "--exclude-tools"];

pub(super) struct Qwen;

impl Voice for Qwen {
    fn is_called(&self, args: &[String]) -> bool {
        args.iter().any(|arg| arg == "--exclude-tools")
    }

    fn asked(&self, _: &[String]) -> Option<String> {
        None
    }

    fn check(&self, args: &[String]) -> Result<Option<String>, OptionRefused> {
        resumed(args, FLAGS, OPTIONS)
    }

    fn introduction(&self, speaker: &Speaker) -> Vec<Value> {
        Claude.introduction(&Speaker { key_source: None, ..speaker.clone() })
    }

    fn text(&self, speaker: &Speaker, text: &str) -> Value {
        Claude.text(speaker, text)
    }

    fn thinking(&self, speaker: &Speaker) -> Value {
        Claude.thinking(speaker)
    }

    fn tool(&self, speaker: &Speaker, tool: &str) -> Vec<Value> {
        Claude.tool(speaker, tool)
    }

    /// It says so to its model, and in its result.
    fn denied(&self, tool: &str, target: &str) -> Value {
        let said =
            format!("Qwen Code requires permission to use \"{tool}\" on {target}, but that permission was declined");
        json!({"type": "user", "message": {"role": "user", "content": [{"type": "tool_result", "is_error": true, "content": said}]}})
    }

    /// It says nothing of it.
    fn retries(&self, _: u64, _: u64, _: u64, _: Option<u64>) -> Value {
        json!({"type": "stream_event", "event": {"type": "goal_state"}})
    }

    fn provider_error(&self, speaker: &Speaker, class: &str) -> Value {
        Claude.text(speaker, &format!("[API Error: {class}]"))
    }

    fn limit(&self, _: u64) -> Value {
        json!({"type": "stream_event", "event": {"type": "goal_state"}})
    }

    fn limit_info(&self, _: &Map<String, Value>) -> Value {
        json!({"type": "stream_event", "event": {"type": "goal_state"}})
    }

    /// With `is_error` and `message` among the fields it has failed.
    fn result(&self, speaker: &Speaker, answer: &str, fields: &Map<String, Value>) -> (Vec<Value>, bool) {
        if fields.get("is_error").and_then(Value::as_bool).unwrap_or(false) {
            let message = fields.get("message").and_then(Value::as_str).unwrap_or("failed by the script");
            let result = json!({
                "type": "result", "subtype": "error_during_execution", "session_id": speaker.session_id, "is_error": true,
                "num_turns": 1, "permission_denials": [], "error": {"message": message},
            });
            return (vec![Claude.text(speaker, message), result], true);
        }
        let result = json!({
            "type": "result", "subtype": "success", "session_id": speaker.session_id, "is_error": false, "num_turns": 1,
            "result": fields.get("result").and_then(Value::as_str).unwrap_or(answer),
            "usage": {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8}, "permission_denials": [],
        });
        (vec![result], false)
    }

    fn half_a_pair(&self) -> &'static str {
        Claude.half_a_pair()
    }
}
