//! Gemini CLI, as it speaks with `-o stream-json`.

use serde_json::{Map, Value, json};

use super::{OptionRefused, Speaker, Voice, resumed};

/// What it answers to `--help`: the options the probe looks for.
const HELP: &str = "\
Usage: gemini [options] [command]

Options:
  -m, --model                     Model  [string]
      --skip-trust                Trust the current workspace for this session.  [boolean]
      --approval-mode             Set the approval mode  [choices: \"default\", \"auto_edit\", \"yolo\", \"plan\"]
      --allowed-mcp-server-names  Allowed MCP server names  [array]
  -e, --extensions                A list of extensions to use.  [array]
  -r, --resume                    Resume a previous session.  [string]
  -o, --output-format             The format of the CLI output.  [choices: \"text\", \"json\", \"stream-json\"]
";

const FLAGS: &[&str] = &["--skip-trust"];
const OPTIONS: &[&str] = &[
    "-m",
    "--model",
    "--approval-mode",
    "--allowed-mcp-server-names",
    "-e",
    "--extensions",
    "-r",
    "--resume",
    "-o",
    "--output-format",
];

pub(super) struct Gemini;

impl Voice for Gemini {
    /// Its questions are in the words of Claude Code; what answers them is the same program.
    fn is_called(&self, args: &[String]) -> bool {
        args.iter().any(|arg| arg == "--approval-mode")
    }

    fn asked(&self, _: &[String]) -> Option<String> {
        None
    }

    fn check(&self, args: &[String]) -> Result<Option<String>, OptionRefused> {
        resumed(args, FLAGS, OPTIONS)
    }

    fn introduction(&self, speaker: &Speaker) -> Vec<Value> {
        vec![json!({"type": "init", "session_id": speaker.session_id, "model": speaker.model})]
    }

    fn text(&self, _: &Speaker, text: &str) -> Value {
        json!({"type": "message", "role": "assistant", "content": text})
    }

    /// It says nothing of its thoughts; a piece of a message is what is heard of it.
    fn thinking(&self, _: &Speaker) -> Value {
        json!({"type": "message", "role": "assistant", "content": " ", "delta": true})
    }

    fn tool(&self, _: &Speaker, tool: &str) -> Vec<Value> {
        vec![
            json!({"type": "tool_use", "tool_name": tool, "tool_id": "t", "parameters": {}}),
            json!({"type": "tool_result", "tool_id": "t", "status": "success", "output": ""}),
        ]
    }

    fn denied(&self, tool: &str, target: &str) -> Value {
        json!({"type": "tool_result", "tool_id": "t", "status": "error", "output": format!("{tool} {target}: denied")})
    }

    /// It says so on stderr only.
    fn retries(&self, attempt: u64, _: u64, _: u64, status: Option<u64>) -> Value {
        json!({"type": "retry", "attempt": attempt, "status": status})
    }

    fn provider_error(&self, _: &Speaker, class: &str) -> Value {
        json!({"type": "error", "severity": "error", "message": class})
    }

    fn limit(&self, _: u64) -> Value {
        json!({"type": "error", "severity": "warning", "message": "quota"})
    }

    fn limit_info(&self, _: &Map<String, Value>) -> Value {
        json!({"type": "stats"})
    }

    /// With `is_error` and `message` among the fields it has failed.
    fn result(&self, speaker: &Speaker, answer: &str, fields: &Map<String, Value>) -> (Vec<Value>, bool) {
        if fields.get("is_error").and_then(Value::as_bool).unwrap_or(false) {
            let message = fields.get("message").and_then(Value::as_str).unwrap_or("failed by the script");
            let error = json!({"type": "unknown", "message": message});
            return (vec![json!({"type": "result", "status": "error", "error": error, "stats": {}})], true);
        }
        let answer = fields.get("result").and_then(Value::as_str).unwrap_or(answer);
        let stats = json!({"input_tokens": 3, "output_tokens": 5, "total_tokens": 8});
        (vec![self.text(speaker, answer), json!({"type": "result", "status": "success", "stats": stats})], false)
    }

    fn half_a_pair(&self) -> &'static str {
        r#"{"type":"message","role":"assistant","content":"half of a pair: \ud83d"}"#
    }
}

/// Its help, beside that of Claude Code, whose question it is asked by.
pub(super) const HELP_BESIDE: &str = HELP;
