//! Codex, as it speaks with `exec --json`.

use serde_json::{Map, Value, json};

use super::{OptionRefused, Speaker, Voice, each_option};

/// What it answers to `exec --help`: the options the probe looks for.
const HELP: &str = "\
Run Codex non-interactively

Usage: codex exec [OPTIONS] [PROMPT]

Options:
  -c, --config <key=value>
      --disable <FEATURE>
  -m, --model <MODEL>
  -s, --sandbox <SANDBOX_MODE>
  -C, --cd <DIR>
      --skip-git-repo-check
      --ignore-user-config
      --ignore-rules
      --json
";

/// What it answers to `features list`.
const FEATURES: &str = "\
plugins           stable  true
remote_plugin     stable  true
apps              stable  true
browser_use       stable  true
computer_use      stable  true
image_generation  stable  true
in_app_browser    stable  true
";

const FLAGS: &[&str] = &["--json", "--skip-git-repo-check", "--ignore-user-config", "--ignore-rules"];
const OPTIONS: &[&str] = &["-c", "--disable", "-m", "--model", "-s", "--sandbox", "-C", "--cd"];

pub(super) struct Codex;

fn item(item: Value) -> Value {
    json!({"type": "item.completed", "item": item})
}

impl Voice for Codex {
    fn is_called(&self, args: &[String]) -> bool {
        args.first().is_some_and(|word| word == "exec" || word == "features")
    }

    fn asked(&self, args: &[String]) -> Option<String> {
        match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["exec", "--help"] => Some(HELP.to_owned()),
            ["features", "list"] => Some(FEATURES.to_owned()),
            _ => None,
        }
    }

    fn check(&self, args: &[String]) -> Result<Option<String>, OptionRefused> {
        let (mut resume, mut reads_stdin, mut unknown) = (None, false, None);
        let valued = |name: &str, value: &str| {
            if name == "--disable" && !FEATURES.split_whitespace().any(|known| known == value) {
                unknown = Some(value.to_owned());
            }
        };
        each_option(&args[1..], FLAGS, OPTIONS, valued, |arg, rest| match arg {
            "resume" => {
                resume = rest.next().cloned();
                Ok(())
            }
            "-" => {
                reads_stdin = true;
                Ok(())
            }
            _ => Err(OptionRefused { line: format!("error: unexpected argument '{arg}' found"), code: 2 }),
        })?;
        match (unknown, reads_stdin) {
            (Some(feature), _) => {
                Err(OptionRefused { line: format!("Error: Unknown feature flag: {feature}"), code: 1 })
            }
            // The real one would wait for ever.
            (None, false) => Err(OptionRefused { line: "No prompt provided.".to_owned(), code: 1 }),
            (None, true) => Ok(resume),
        }
    }

    fn introduction(&self, speaker: &Speaker) -> Vec<Value> {
        vec![json!({"type": "thread.started", "thread_id": speaker.session_id}), json!({"type": "turn.started"})]
    }

    fn text(&self, _: &Speaker, text: &str) -> Value {
        item(json!({"id": "i", "type": "agent_message", "text": text}))
    }

    fn thinking(&self, _: &Speaker) -> Value {
        item(json!({"id": "i", "type": "reasoning", "text": "…"}))
    }

    fn tool(&self, _: &Speaker, tool: &str) -> Vec<Value> {
        let run = |status: &str| json!({"id": "i", "type": "command_execution", "command": tool, "status": status});
        vec![json!({"type": "item.started", "item": run("in_progress")}), item(run("completed"))]
    }

    fn denied(&self, tool: &str, target: &str) -> Value {
        let command = format!("{tool} {target}");
        item(json!({"id": "i", "type": "command_execution", "command": command, "status": "declined"}))
    }

    fn retries(&self, attempt: u64, max: u64, _: u64, status: Option<u64>) -> Value {
        let why = status.map_or_else(
            || "stream disconnected before completion: error sending request".to_owned(),
            |status| format!("unexpected status {status} No: by the script"),
        );
        json!({"type": "error", "message": format!("Reconnecting... {attempt}/{max} ({why})")})
    }

    fn provider_error(&self, _: &Speaker, class: &str) -> Value {
        json!({"type": "error", "message": class})
    }

    fn limit(&self, _: u64) -> Value {
        json!({"type": "error", "message": "You’ve hit your usage limit. Try again in 1 hour."})
    }

    fn limit_info(&self, _: &Map<String, Value>) -> Value {
        json!({"type": "token_count"})
    }

    /// With `is_error` and `message` among the fields the turn has failed.
    fn result(&self, speaker: &Speaker, answer: &str, fields: &Map<String, Value>) -> (Vec<Value>, bool) {
        if fields.get("is_error").and_then(Value::as_bool).unwrap_or(false) {
            let message = fields.get("message").and_then(Value::as_str).unwrap_or("failed by the script");
            let failed = json!({"type": "turn.failed", "error": {"message": message}});
            return (vec![json!({"type": "error", "message": message}), failed], true);
        }
        let answer = fields.get("result").and_then(Value::as_str).unwrap_or(answer);
        let usage =
            json!({"input_tokens": 3, "cached_input_tokens": 0, "output_tokens": 5, "reasoning_output_tokens": 0});
        (vec![self.text(speaker, answer), json!({"type": "turn.completed", "usage": usage})], false)
    }

    fn half_a_pair(&self) -> &'static str {
        r#"{"type":"item.completed","item":{"type":"agent_message","text":"half of a pair: \ud83d"}}"#
    }
}
