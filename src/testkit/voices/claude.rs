//! Claude Code, as it speaks with `-p --output-format stream-json`.

use serde_json::{Map, Value, json};

use super::{OptionRefused, Speaker, Voice, each_option};

/// What it answers to `--version`.
pub const VERSION: &str = "2.1.329 (Claude Code)\n";

/// What it answers to `--help`: the options the probe looks for. `--max-turns` works and is not named, as in the real one.
pub const HELP: &str = "\
Usage: claude [options] [command] [prompt]

Options:
  -p, --print                       Print response and exit
  --output-format <format>          \"text\", \"json\" or \"stream-json\"
  --verbose                         Override verbose mode
  --tools <tools...>                Specify the list of available tools
  --allowedTools <tools...>         Tools to allow
  --disallowedTools <tools...>      Tools to deny
  --restricted                      Confine the file tools
  --strict-mcp-config               Only use MCP servers from --mcp-config
  --setting-sources <sources>       Setting sources to load
  --permission-mode <mode>          Permission mode
  --permission-prompts <target>     Where permission prompts go
  --system-prompt-snapshot <mode>   System prompt on resume
  --append-system-prompt <prompt>   Append to the system prompt
  --max-budget-usd <amount>         Most to spend
  --model <model>                   Model
  --effort <level>                  Effort
  -r, --resume [sessionId]          Resume a conversation
  --fork-session                    Create a new session ID when resuming
  -v, --version                     Output the version number
";

const FLAGS: &[&str] = &["-p", "--print", "--verbose", "--restricted", "--strict-mcp-config", "--fork-session"];
const OPTIONS: &[&str] = &[
    "--output-format",
    "--tools",
    "--allowedTools",
    "--disallowedTools",
    "--setting-sources",
    "--permission-mode",
    "--permission-prompts",
    "--system-prompt-snapshot",
    "--append-system-prompt",
    "--max-budget-usd",
    "--max-turns",
    "--model",
    "--effort",
    "--resume",
    "-r",
];

pub(super) struct Claude;

fn assistant(speaker: &Speaker, block: &Value) -> Value {
    json!({"type": "assistant", "session_id": speaker.session_id, "message": {"role": "assistant", "content": [block]}})
}

impl Voice for Claude {
    fn is_called(&self, _: &[String]) -> bool {
        true
    }

    fn asked(&self, args: &[String]) -> Option<String> {
        let any = |words: [&str; 2]| args.iter().any(|arg| words.contains(&arg.as_str()));
        if any(["--version", "-v"]) {
            return Some(VERSION.to_owned());
        }
        // Who asks so may be looking for another program's options.
        any(["--help", "-h"])
            .then(|| [HELP, super::copilot::HELP_BESIDE, super::gemini::HELP_BESIDE, super::qwen::HELP_BESIDE].concat())
    }

    fn check(&self, args: &[String]) -> Result<Option<String>, OptionRefused> {
        let (mut resume, mut format, mut verbose) = (None, "text".to_owned(), false);
        let valued = |name: &str, value: &str| match name {
            "--resume" | "-r" => resume = Some(value.to_owned()),
            "--output-format" => value.clone_into(&mut format),
            "--verbose" => verbose = true,
            _ => {}
        };
        each_option(args, FLAGS, OPTIONS, valued, |arg, _| {
            Err(OptionRefused { line: format!("error: unknown option '{arg}'"), code: 1 })
        })?;
        if format == "stream-json" && !verbose {
            let line = "Error: When using --print, --output-format=stream-json requires --verbose".to_owned();
            return Err(OptionRefused { line, code: 1 });
        }
        Ok(resume)
    }

    fn introduction(&self, speaker: &Speaker) -> Vec<Value> {
        let mut init = json!({
            "type": "system", "subtype": "init", "session_id": speaker.session_id, "model": speaker.model,
            "tools": ["Read", "Grep", "Glob"], "mcp_servers": [], "permissionMode": "dontAsk",
            "claude_code_version": "2.1.329",
        });
        if let Some(source) = &speaker.key_source {
            init["apiKeySource"] = json!(source);
        }
        vec![init]
    }

    fn text(&self, speaker: &Speaker, text: &str) -> Value {
        assistant(speaker, &json!({"type": "text", "text": text}))
    }

    fn thinking(&self, speaker: &Speaker) -> Value {
        assistant(speaker, &json!({"type": "thinking", "thinking": "…"}))
    }

    fn tool(&self, speaker: &Speaker, tool: &str) -> Vec<Value> {
        vec![
            assistant(speaker, &json!({"type": "tool_use", "name": tool, "id": "t", "input": {}})),
            json!({"type": "user", "message": {"content": [{"type": "tool_result"}]}}),
        ]
    }

    fn denied(&self, tool: &str, target: &str) -> Value {
        json!({
            "type": "system", "subtype": "permission_denied", "tool_name": tool,
            "tool_input": {"file_path": target}, "message": "denied by the script",
        })
    }

    fn retries(&self, attempt: u64, max: u64, delay_ms: u64, status: Option<u64>) -> Value {
        json!({
            "type": "system", "subtype": "api_retry", "attempt": attempt, "max_retries": max,
            "retry_delay_ms": delay_ms, "error_status": status, "error": "server_error",
        })
    }

    fn provider_error(&self, speaker: &Speaker, class: &str) -> Value {
        let mut event = self.text(speaker, "API Error");
        event["error"] = json!(class);
        event
    }

    fn limit(&self, at: u64) -> Value {
        json!({
            "type": "rate_limit_event",
            "rate_limit_info": {"status": "rejected", "resetsAt": at, "rateLimitType": "five_hour"},
        })
    }

    fn limit_info(&self, info: &Map<String, Value>) -> Value {
        json!({"type": "rate_limit_event", "rate_limit_info": info})
    }

    /// A result with the usual fields and these over them; a field set to null is left out.
    fn result(&self, speaker: &Speaker, answer: &str, fields: &Map<String, Value>) -> (Vec<Value>, bool) {
        let mut result = json!({
            "is_error": false, "type": "result", "subtype": "success", "result": answer,
            "session_id": speaker.session_id, "num_turns": 1, "duration_ms": 1, "stop_reason": "end_turn",
            "terminal_reason": "completed", "total_cost_usd": 0.001,
            "usage": {"input_tokens": 3, "output_tokens": 5},
            "modelUsage": {speaker.model.as_str(): {"inputTokens": 3, "outputTokens": 5}},
            "permission_denials": [],
        });
        if let Some(object) = result.as_object_mut() {
            object.extend(fields.clone());
            object.retain(|_, value| !value.is_null());
        }
        let failed = result.get("is_error").and_then(Value::as_bool).unwrap_or(false);
        (vec![result], failed)
    }

    fn half_a_pair(&self) -> &'static str {
        r#"{"type":"assistant","message":{"content":[{"type":"text","text":"half of a pair: \ud83d"}]}}"#
    }
}
