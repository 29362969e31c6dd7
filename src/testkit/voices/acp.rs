//! An agent that is talked to, as it speaks with `--acp`: the Agent Client Protocol.

use std::io::{self, BufRead, Write};

use serde_json::{Map, Value, json};

use super::{Conversed, OptionRefused, Speaker, Voice, each_option};

pub(super) struct Acp;

/// A session of such an id it does not have.
const UNKNOWN: &str = "unknown";

fn update(speaker: &Speaker, update: &Value) -> Value {
    json!({"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": speaker.session_id, "update": update}})
}

fn chunk(kind: &str, text: &str) -> Value {
    json!({"sessionUpdate": kind, "content": {"type": "text", "text": text}})
}

/// What it answers to a request that comes before the question; for the question itself nothing.
fn greeted(method: &str, params: &Value, session: &mut String) -> Result<Value, Value> {
    let modes =
        json!({"currentModeId": "default", "availableModes": [{"id": "default"}, {"id": "yolo"}, {"id": "plan"}]});
    match method {
        "initialize" => Ok(json!({
            "protocolVersion": 1, "agentCapabilities": {"loadSession": true}, "authMethods": [],
            "agentInfo": {"name": "scripted", "version": "1.0"},
        })),
        "session/new" => {
            *session = format!("acp_{}", uuid::Uuid::new_v4().simple());
            Ok(json!({"sessionId": session, "modes": modes, "models": {"currentModelId": "scripted-model"}}))
        }
        "session/load" => {
            params.get("sessionId").and_then(Value::as_str).unwrap_or_default().clone_into(session);
            let known = !session.contains(UNKNOWN);
            if known {
                Ok(json!({"modes": modes}))
            } else {
                Err(json!({"code": -32602, "message": "Session not there"}))
            }
        }
        "session/set_mode" => Ok(json!({})),
        _ => Err(json!({"code": -32601, "message": method})),
    }
}

impl Voice for Acp {
    fn is_called(&self, args: &[String]) -> bool {
        args.iter().any(|arg| arg == "--acp")
    }

    fn asked(&self, _: &[String]) -> Option<String> {
        None
    }

    fn check(&self, args: &[String]) -> Result<Option<String>, OptionRefused> {
        each_option(args, &["--acp"], &[], |_, _| {}, |_, _| Ok(()))?;
        Ok(None)
    }

    fn converse(&self, input: &mut dyn BufRead, output: &mut dyn Write) -> Option<io::Result<Conversed>> {
        let mut session = String::new();
        let mut converse = || -> io::Result<Conversed> {
            loop {
                let mut line = String::new();
                if input.read_line(&mut line)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let message: Value = serde_json::from_str(&line)?;
                let (id, method) = (message["id"].clone(), message["method"].as_str().unwrap_or_default());
                let params = &message["params"];
                if method == "session/prompt" {
                    let prompt = params["prompt"][0]["text"].as_str().unwrap_or_default().to_owned();
                    return Ok(Conversed { prompt, session_id: std::mem::take(&mut session), request: id });
                }
                let answer = match greeted(method, params, &mut session) {
                    Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
                    Err(error) => json!({"jsonrpc": "2.0", "id": id, "error": error}),
                };
                if method == "session/load" {
                    // The history, which is no answer.
                    let speaker = Speaker { session_id: session.clone(), ..Speaker::default() };
                    writeln!(output, "{}", update(&speaker, &chunk("agent_message_chunk", "an old answer")))?;
                }
                writeln!(output, "{answer}")?;
                output.flush()?;
            }
        };
        Some(converse())
    }

    fn introduction(&self, speaker: &Speaker) -> Vec<Value> {
        vec![update(speaker, &json!({"sessionUpdate": "available_commands_update", "availableCommands": []}))]
    }

    fn text(&self, speaker: &Speaker, text: &str) -> Value {
        update(speaker, &chunk("agent_message_chunk", text))
    }

    fn thinking(&self, speaker: &Speaker) -> Value {
        update(speaker, &chunk("agent_thought_chunk", "…"))
    }

    fn tool(&self, speaker: &Speaker, tool: &str) -> Vec<Value> {
        vec![
            update(speaker, &json!({"sessionUpdate": "tool_call", "toolCallId": "t", "title": tool, "kind": "read"})),
            update(speaker, &json!({"sessionUpdate": "tool_call_update", "toolCallId": "t", "status": "completed"})),
        ]
    }

    /// It asks whether it may, and is told that it may not.
    fn denied(&self, tool: &str, target: &str) -> Value {
        let options = json!([
            {"optionId": "yes", "name": "Yes", "kind": "allow_once"}, {"optionId": "no", "name": "No", "kind": "reject_once"},
        ]);
        let call = json!({"toolCallId": "d", "title": tool, "kind": "edit", "locations": [{"path": target}]});
        let params = json!({"sessionId": "any", "toolCall": call, "options": options});
        json!({"jsonrpc": "2.0", "id": "asks", "method": "session/request_permission", "params": params})
    }

    fn retries(&self, _: u64, _: u64, _: u64, _: Option<u64>) -> Value {
        json!({"jsonrpc": "2.0", "method": "_scripted/retry"})
    }

    fn provider_error(&self, _: &Speaker, _: &str) -> Value {
        json!({"jsonrpc": "2.0", "method": "_scripted/error"})
    }

    fn limit(&self, _: u64) -> Value {
        json!({"jsonrpc": "2.0", "method": "_scripted/limit"})
    }

    fn limit_info(&self, _: &Map<String, Value>) -> Value {
        json!({"jsonrpc": "2.0", "method": "_scripted/limit"})
    }

    /// With `is_error`, `code` and `message` among the fields it answers with an error; `stopReason` is why it ended.
    fn result(&self, speaker: &Speaker, answer: &str, fields: &Map<String, Value>) -> (Vec<Value>, bool) {
        if fields.get("is_error").and_then(Value::as_bool).unwrap_or(false) {
            let error = json!({"code": fields.get("code"), "message": fields.get("message")});
            return (vec![json!({"jsonrpc": "2.0", "id": speaker.request, "error": error})], true);
        }
        let answer = fields.get("result").and_then(Value::as_str).unwrap_or(answer);
        let reason = fields.get("stopReason").and_then(Value::as_str).unwrap_or("end_turn");
        let end = json!({"jsonrpc": "2.0", "id": speaker.request, "result": {"stopReason": reason}});
        (vec![self.text(speaker, answer), end], false)
    }

    fn half_a_pair(&self) -> &'static str {
        r#"{"jsonrpc":"2.0","method":"session/update","params":{"update":{"content":{"text":"half of a pair: \ud83d"}}}}"#
    }
}
