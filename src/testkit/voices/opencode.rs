//! OpenCode, as it speaks with `run --format json`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{OptionRefused, Speaker, Voice, each_option};

/// What it answers to `run --help`: the options the probe looks for.
const HELP: &str = "\
opencode run [message..]

Options:
      --pure         run without external plugins  [boolean]
  -s, --session      session id to continue  [string]
  -m, --model        model to use in the format of provider/model  [string]
      --agent        agent to use  [string]
      --format       format: default (formatted) or json (raw JSON events)  [string] [choices: \"default\", \"json\"]
      --title        title for the session  [string]
      --variant      model variant  [string]
";

const FLAGS: &[&str] = &["run", "--pure"];
const OPTIONS: &[&str] = &["-s", "--session", "-m", "--model", "--agent", "--format", "--title", "--variant"];

pub(super) struct OpenCode;

/// Its own ids begin so.
fn session(speaker: &Speaker) -> String {
    let id = &speaker.session_id;
    if id.starts_with("ses_") { id.clone() } else { format!("ses_{}", id.replace('-', "")) }
}

fn event(speaker: &Speaker, kind: &str, part: &Value) -> Value {
    json!({"type": kind, "timestamp": 1_795_760_359_501_u64, "sessionID": session(speaker), "part": part})
}

fn over(speaker: &Speaker, reason: &str) -> Value {
    let tokens = json!({"total": 13, "input": 10, "output": 3, "reasoning": 0, "cache": {"write": 0, "read": 0}});
    event(speaker, "step_finish", &json!({"type": "step-finish", "reason": reason, "tokens": tokens, "cost": 0.125}))
}

/// What it says of a session to `export`: what a test has put into a file of the session's id, and nothing of another one.
fn exported(session: &str) -> String {
    let data = std::env::var_os("XDG_DATA_HOME").unwrap_or_default();
    std::fs::read_to_string(Path::new(&data).join("opencode").join(session)).unwrap_or_default()
}

impl Voice for OpenCode {
    fn is_called(&self, args: &[String]) -> bool {
        args.first().is_some_and(|first| first == "run" || first == "export")
    }

    fn asked(&self, args: &[String]) -> Option<String> {
        match args {
            [export, session, ..] if export == "export" => Some(exported(session)),
            _ => args.iter().any(|arg| arg == "--help").then(|| HELP.to_owned()),
        }
    }

    fn check(&self, args: &[String]) -> Result<Option<String>, OptionRefused> {
        let mut resume = None;
        let valued = |name: &str, value: &str| {
            if matches!(name, "-s" | "--session") {
                resume = Some(value.to_owned());
            }
        };
        each_option(args, FLAGS, OPTIONS, valued, |arg, _| {
            Err(OptionRefused { line: format!("Unknown argument: {}", arg.trim_start_matches('-')), code: 1 })
        })?;
        Ok(resume)
    }

    fn introduction(&self, speaker: &Speaker) -> Vec<Value> {
        vec![event(speaker, "step_start", &json!({"type": "step-start"}))]
    }

    fn text(&self, speaker: &Speaker, text: &str) -> Value {
        event(speaker, "text", &json!({"type": "text", "text": text}))
    }

    fn thinking(&self, speaker: &Speaker) -> Value {
        event(speaker, "reasoning", &json!({"type": "reasoning", "text": "…"}))
    }

    fn tool(&self, speaker: &Speaker, tool: &str) -> Vec<Value> {
        let state = json!({"status": "completed", "input": {}, "output": ""});
        vec![
            event(speaker, "tool_use", &json!({"type": "tool", "tool": tool, "state": state})),
            over(speaker, "tool-calls"),
            event(speaker, "step_start", &json!({"type": "step-start"})),
        ]
    }

    fn denied(&self, tool: &str, target: &str) -> Value {
        let error = "Model tried to call unavailable tool 'invalid'. Available tools: glob, grep, read.";
        let state = json!({"status": "error", "input": {"filePath": target}, "error": error});
        json!({"type": "tool_use", "part": {"type": "tool", "tool": tool, "state": state}})
    }

    /// It says nothing of it.
    fn retries(&self, _: u64, _: u64, _: u64, _: Option<u64>) -> Value {
        json!({"type": "status"})
    }

    fn provider_error(&self, speaker: &Speaker, class: &str) -> Value {
        let data = json!({"message": class});
        json!({"type": "error", "sessionID": session(speaker), "error": {"name": "UnknownError", "data": data}})
    }

    fn limit(&self, _: u64) -> Value {
        json!({"type": "status"})
    }

    fn limit_info(&self, _: &Map<String, Value>) -> Value {
        json!({"type": "status"})
    }

    /// With `is_error`, `message` and `statusCode` among the fields the turn has failed.
    fn result(&self, speaker: &Speaker, answer: &str, fields: &Map<String, Value>) -> (Vec<Value>, bool) {
        if fields.get("is_error").and_then(Value::as_bool).unwrap_or(false) {
            let message = fields.get("message").and_then(Value::as_str).unwrap_or("failed by the script");
            let data = json!({"message": message, "statusCode": fields.get("statusCode"), "isRetryable": false});
            let error = json!({"name": "APIError", "data": data});
            return (vec![json!({"type": "error", "sessionID": session(speaker), "error": error})], true);
        }
        let answer = fields.get("result").and_then(Value::as_str).unwrap_or(answer);
        (vec![self.text(speaker, answer), over(speaker, "stop")], false)
    }

    fn half_a_pair(&self) -> &'static str {
        r#"{"type":"text","sessionID":"ses_x","part":{"type":"text","text":"half of a pair: \ud83d"}}"#
    }
}
