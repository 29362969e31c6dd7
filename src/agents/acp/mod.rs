//! The Agent Client Protocol: an agent that is talked to over its standard input and output.
//!
//! Owns: what is said to such an agent and when, and what its lines mean. May not know how it is run, or which program it is; what it
//! may do is judged by `permission`, its end by `classify`.
//!
//! ```text
//!  greeting ──answer──▶ opening (a new session, or one to go on with) ──▶ setting its mode ──▶ asked ──answer──▶ over
//!      └── error, or an answer that cannot be used ─────────────────────────────────────────────────────────────▶ over
//! ```
//!
//! It is a step function: a line in, events and lines out. Messages are read value by value and not into types: a kind of update, of
//! tool or of option that nobody knew is passed over, or refused where it is asked for, and is no reason to lose an answer.
//!
//! Invariants: (1) no request of the agent's stays unanswered, and whatever is not known is refused; (2) nothing is offered that
//! writes, or runs anything; (3) what is replayed of an older session is no part of the answer, and a session of which nothing is
//! replayed has lost its history and is not asked; (4) what is kept is bounded.

mod permission;

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};

use self::permission::Tool;
use super::fields::{MAX_ERROR_CHARS, MAX_TARGET_CHARS, counts, name, other, shortened, text};
use super::values::values;
use super::{AgentEvent, AgentResult, OutputParser, Replies};
use crate::base::ids::AgentSessionId;
use crate::base::lenient;
use crate::jobs::PermissionDenial;

/// The version of the protocol that is spoken.
const VERSION: u64 = 1;

/// Modes in which an agent only reads, by the ids that agents give them, the best first.
const READING_MODES: [&str; 4] = ["plan", "read-only", "ask", "readonly"];

/// Bytes of an answer that are kept while it comes in pieces; longer ones are no answers any more.
const MAX_TEXT_BYTES: usize = 16 << 20;

/// Uses of tools that are remembered; the oldest ones are over long before.
const MAX_TOOLS: usize = 4096;

/// Characters of the id of a use of a tool, or of a request. Real ones have under 60.
const MAX_ID_CHARS: usize = 200;

/// What it is asked when it has ended its turn over a refusal without having answered: some do so at each.
const GO_ON: &str =
    "That was refused: here you can read this directory and nothing else. Go on without it, and answer the request.";

/// How often it is asked so.
const GO_ON_MOST: u8 = 3;

/// What a method is refused with that is not offered.
const NOT_OFFERED: i64 = -32601;

/// What an agent answers that nobody has logged in to.
const AUTH_REQUIRED: i64 = -32000;

/// Where a conversation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It was greeted.
    Greeting,
    /// It was asked for the session.
    Opening,
    /// It was asked to go into a mode in which it only reads.
    Setting,
    /// It was asked the question.
    Asked,
    /// It has answered, or cannot.
    Over,
}

/// What the agent is asked.
#[derive(Debug, Clone)]
pub(super) struct Question {
    /// Where it is to look.
    pub(super) cwd: std::path::PathBuf,
    /// The whole text.
    pub(super) prompt: String,
    /// The session to go on with.
    pub(super) session: Option<AgentSessionId>,
}

/// What an agent has told while it answers.
#[derive(Debug, Default)]
struct Updates {
    /// The message that is being said.
    message: String,
    last_message: Option<String>,
    /// Nothing but its message came last: no use of a tool.
    spoke_last: bool,
    tools: HashMap<String, Tool>,
    /// What the whole session has cost so far.
    cost: Option<f64>,
}

impl Updates {
    fn update(&mut self, update: &Value, out: &mut Vec<AgentEvent>) {
        let kind = text(update, "sessionUpdate").unwrap_or_default();
        match kind {
            "agent_message_chunk" => {
                let said = update.get("content").and_then(|content| text(content, "text")).unwrap_or_default();
                let room = MAX_TEXT_BYTES.saturating_sub(self.message.len());
                self.message.push_str(&said[..said.floor_char_boundary(room)]);
                // A sign of life; the text itself is told when it is whole.
                out.push(AgentEvent::Thinking);
            }
            "agent_thought_chunk" => {
                self.said(out);
                out.push(AgentEvent::Thinking);
            }
            "tool_call" => {
                self.said(out);
                self.spoke_last = false;
                let tool = Tool::used(update);
                out.push(AgentEvent::ToolUse { tool: tool.name() });
                self.remember(update, tool);
                out.extend(is_over(update).then_some(AgentEvent::ToolResult));
            }
            "tool_call_update" => {
                let known = text(update, "toolCallId").and_then(|id| self.tools.get(id)).cloned();
                self.remember(update, known.unwrap_or_default().updated(update));
                out.push(if is_over(update) { AgentEvent::ToolResult } else { other(kind) });
            }
            "usage_update" => {
                let cost = update.get("cost").filter(|cost| text(cost, "currency") == Some("USD"));
                self.cost = cost.and_then(|cost| cost.get("amount")?.as_f64()).or(self.cost);
                out.push(other(kind));
            }
            _ => out.push(other(kind)),
        }
    }

    fn remember(&mut self, update: &Value, tool: Tool) {
        let Some(id) = text(update, "toolCallId").filter(|id| id.len() <= MAX_ID_CHARS) else { return };
        if self.tools.len() < MAX_TOOLS || self.tools.contains_key(id) {
            self.tools.insert(id.to_owned(), tool);
        }
    }

    /// The message that was being said is whole.
    fn said(&mut self, out: &mut Vec<AgentEvent>) {
        let text = std::mem::take(&mut self.message);
        if !lenient::is_blank(&text) {
            self.last_message = Some(text.clone());
            self.spoke_last = true;
            out.push(AgentEvent::Text { text });
        }
    }
}

/// One conversation with an agent.
#[derive(Debug)]
pub(super) struct Conversation {
    question: Question,
    stage: Stage,
    /// The id of our last request, which is the only one that is not answered.
    asked: u64,
    /// What is to be said.
    out: Vec<u8>,
    /// It was asked to stop.
    stopping: bool,
    /// Something was refused since it was last asked.
    denied: bool,
    /// How often it was asked to go on.
    gone_on: u8,
    /// It has shown something of the session that is gone on with, as the protocol has it do before it answers.
    replayed: bool,
    /// What it says it is.
    version: Option<String>,
    session: Option<String>,
    model: Option<String>,
    seen: Updates,
}

impl Conversation {
    /// One that begins with this.
    pub(super) fn new(question: Question) -> Self {
        let mut conversation = Self {
            question,
            stage: Stage::Greeting,
            asked: 0,
            out: Vec::new(),
            stopping: false,
            denied: false,
            gone_on: 0,
            replayed: false,
            version: None,
            session: None,
            model: None,
            seen: Updates::default(),
        };
        let nothing = json!({"fs": {"readTextFile": false, "writeTextFile": false}, "terminal": false});
        let us = json!({"name": "phone-opus", "title": "phone-opus", "version": env!("CARGO_PKG_VERSION")});
        let greeting = json!({"protocolVersion": VERSION, "clientCapabilities": nothing, "clientInfo": us});
        conversation.ask(Stage::Greeting, "initialize", &greeting);
        conversation
    }

    fn say(&mut self, message: &Value) {
        self.out.extend_from_slice(message.to_string().as_bytes());
        self.out.push(b'\n');
    }

    fn ask(&mut self, stage: Stage, method: &str, params: &Value) {
        self.stage = stage;
        self.asked += 1;
        self.say(&json!({"jsonrpc": "2.0", "id": self.asked, "method": method, "params": params}));
    }

    /// Takes one message; whether it is one.
    fn take(&mut self, message: &Value, out: &mut Vec<AgentEvent>) -> bool {
        let (method, id) = (text(message, "method"), message.get("id").filter(|id| !id.is_null()));
        match (method, id) {
            (Some(method), Some(id)) => self.requested(method, id, params(message), out),
            (Some(method), None) => self.told(method, params(message), out),
            (None, Some(id)) if self.stage != Stage::Over && id.as_u64() == Some(self.asked) => {
                match message.get("error") {
                    Some(error) => self.refused(error, out),
                    None => self.answered(message.get("result").unwrap_or(&Value::Null), out),
                }
            }
            // An answer to what was not asked.
            (None, Some(_)) => out.push(other("response")),
            (None, None) => return false,
        }
        true
    }

    /// The agent asks for something.
    fn requested(&mut self, method: &str, id: &Value, params: &Value, out: &mut Vec<AgentEvent>) {
        if id.to_string().len() > MAX_ID_CHARS {
            out.push(other("request"));
            return;
        }
        if method == "session/request_permission" {
            let asked = Tool::asked_for(params, &self.seen.tools);
            let allowed = permission::is_reading(&asked, &self.question.cwd);
            let answer = permission::answer(params, allowed && !self.stopping, self.stopping);
            self.say(&json!({"jsonrpc": "2.0", "id": id, "result": {"outcome": answer}}));
            self.denied |= !allowed;
            let denied = || AgentEvent::Denied { denial: asked.denial() };
            out.push(if allowed { other("session/request_permission") } else { denied() });
            return;
        }
        let error = json!({"code": NOT_OFFERED, "message": format!("{} is not offered", shortened(method, 60))});
        self.say(&json!({"jsonrpc": "2.0", "id": id, "error": error}));
        // What an agent asks of its own kind of client is none of a tool's business.
        if !["fs/", "terminal/"].iter().any(|offer| method.starts_with(offer)) {
            return out.push(other(method));
        }
        let target = ["path", "command"].into_iter().find_map(|key| text(params, key));
        let target = target.map(|target| shortened(target, MAX_TARGET_CHARS));
        out.push(AgentEvent::Denied { denial: PermissionDenial { tool: shortened(method, 60), target } });
    }

    /// The agent tells something.
    fn told(&mut self, method: &str, params: &Value, out: &mut Vec<AgentEvent>) {
        let ours = self.session.is_some() && text(params, "sessionId") == self.session.as_deref();
        // What comes before the question is the history of a session that is gone on with.
        let update = params.get("update").filter(|_| method == "session/update" && ours);
        match update {
            Some(update) if self.stage == Stage::Asked => self.seen.update(update, out),
            update => {
                self.replayed |= update.is_some_and(is_history);
                out.push(other(method));
            }
        }
    }

    /// The agent answers our last request.
    fn answered(&mut self, result: &Value, out: &mut Vec<AgentEvent>) {
        match self.stage {
            Stage::Greeting => self.open(result, out),
            Stage::Opening => self.opened(result, out),
            Stage::Setting => self.put_the_question(out),
            Stage::Asked => self.over(result, out),
            Stage::Over => {}
        }
    }

    fn open(&mut self, greeting: &Value, out: &mut Vec<AgentEvent>) {
        let spoken = greeting.get("protocolVersion").and_then(Value::as_u64);
        if spoken != Some(VERSION) {
            let spoken = spoken.map_or_else(|| "none".to_owned(), |version| version.to_string());
            let error = format!("It speaks version {spoken} of the Agent Client Protocol, and not {VERSION}.");
            return self.fail("error_unsupported", error, None, out);
        }
        let said = |key| greeting.pointer(key).and_then(Value::as_str).map(|said| shortened(said, 60));
        self.version = match (said("/agentInfo/name"), said("/agentInfo/version")) {
            (Some(name), Some(version)) => Some(format!("{name} {version}")),
            (name, version) => name.or(version),
        };
        let mut params = json!({"cwd": self.question.cwd.to_string_lossy(), "mcpServers": []});
        let Some(session) = self.question.session else {
            return self.ask(Stage::Opening, "session/new", &params);
        };
        if greeting.pointer("/agentCapabilities/loadSession").and_then(Value::as_bool) != Some(true) {
            let error = "It keeps no sessions that could be gone on with.".to_owned();
            return self.fail("error_unknown_session", error, None, out);
        }
        params["sessionId"] = json!(session);
        self.session = Some(session.to_string());
        self.ask(Stage::Opening, "session/load", &params);
    }

    fn opened(&mut self, session: &Value, out: &mut Vec<AgentEvent>) {
        if self.question.session.is_none() {
            match text(session, "sessionId").filter(|id| id.chars().count() <= MAX_ID_CHARS) {
                Some(id) => self.session = Some(id.to_owned()),
                None => {
                    let error = "It opened a session without an id.".to_owned();
                    return self.fail("error_reported", error, None, out);
                }
            }
        }
        let model = session.get("models").and_then(|models| name(models, "currentModelId"));
        self.model = model.or_else(|| setting(session, "model").and_then(|model| name(model, "currentValue")));
        match reading_mode(session) {
            Some((method, mut params)) => {
                params["sessionId"] = json!(self.session);
                self.ask(Stage::Setting, method, &params);
            }
            None => self.put_the_question(out),
        }
    }

    fn put_the_question(&mut self, out: &mut Vec<AgentEvent>) {
        if self.question.session.is_some() && !self.replayed {
            let error = "It opened the session and showed nothing of it: what was said there is lost.".to_owned();
            return self.fail("error_unknown_session", error, None, out);
        }
        out.push(AgentEvent::Started {
            session_id: self.session.clone(),
            model: self.model.clone(),
            key_source: None,
            version: self.version.clone(),
        });
        let prompt = std::mem::take(&mut self.question.prompt);
        self.prompt(&prompt);
    }

    fn prompt(&mut self, text: &str) {
        let params = json!({"sessionId": self.session, "prompt": [{"type": "text", "text": text}]});
        self.ask(Stage::Asked, "session/prompt", &params);
    }

    /// It has answered the question.
    fn over(&mut self, end: &Value, out: &mut Vec<AgentEvent>) {
        self.seen.said(out);
        let reason = text(end, "stopReason").unwrap_or_default();
        let unanswered = self.denied && reason == "end_turn" && !self.seen.spoke_last;
        if unanswered && !self.stopping && self.gone_on < GO_ON_MOST {
            (self.denied, self.gone_on) = (false, self.gone_on + 1);
            out.push(other("session/prompt"));
            return self.prompt(GO_ON);
        }
        let failed =
            |subtype: &str| AgentResult { subtype: Some(subtype.to_owned()), is_error: true, ..AgentResult::default() };
        let result = match reason {
            "end_turn" => AgentResult {
                subtype: Some("success".to_owned()),
                text: self.seen.last_message.take(),
                ..AgentResult::default()
            },
            "max_tokens" => AgentResult {
                errors: vec!["The answer reached max_output_tokens.".to_owned()],
                ..failed("error_reported")
            },
            "max_turn_requests" => failed("error_max_turns"),
            "cancelled" => AgentResult {
                terminal_reason: Some("aborted_streaming".to_owned()),
                ..failed("error_during_execution")
            },
            // A refusal by its provider; and an end that nobody knew is no answer.
            _ => AgentResult {
                errors: vec![format!("It ended by {}.", shortened(reason, 40))],
                ..failed("error_reported")
            },
        };
        let stop_reason = Some(shortened(reason, 40)).filter(|reason| !reason.is_empty());
        self.finish(AgentResult { stop_reason, usage: counts(end, "usage"), ..result }, out);
    }

    /// It refuses our last request.
    fn refused(&mut self, error: &Value, out: &mut Vec<AgentEvent>) {
        self.seen.said(out);
        let code = error.get("code").and_then(Value::as_i64).unwrap_or(0);
        let said = text(error, "message").unwrap_or_default();
        let data = error.get("data");
        let details =
            data.and_then(|data| data.as_str().or_else(|| text(data, "details")).or_else(|| text(data, "message")));
        let told = shortened(&[said, details.unwrap_or_default()].join(" "), MAX_ERROR_CHARS);
        // Some answer with the status of their provider, and some with an error of their own whose details begin with it. These two
        // have many reasons, which only the words tell apart.
        let told_status = || details.and_then(|said| said.split_once(' ')?.0.parse::<i64>().ok());
        let status = match code {
            AUTH_REQUIRED => Some(401),
            code if code > 0 => Some(code),
            _ => told_status(),
        };
        let status = status.and_then(|status| u64::try_from(status).ok());
        let status = status.filter(|status| (401..600).contains(status) && *status != 402);
        let unknown = self.stage == Stage::Opening && self.question.session.is_some() && status.is_none();
        let subtype = if unknown { "error_unknown_session" } else { "error_reported" };
        self.fail(subtype, told, status, out);
    }

    fn fail(&mut self, subtype: &str, error: String, status: Option<u64>, out: &mut Vec<AgentEvent>) {
        let result = AgentResult {
            subtype: Some(subtype.to_owned()),
            is_error: true,
            api_error_status: status,
            errors: vec![error],
            ..AgentResult::default()
        };
        self.finish(result, out);
    }

    fn finish(&mut self, result: AgentResult, out: &mut Vec<AgentEvent>) {
        self.stage = Stage::Over;
        // It is the whole session's, so that of an older one says nothing about this question.
        let cost_usd = self.seen.cost.filter(|_| self.question.session.is_none());
        let result = AgentResult { session_id: self.session.clone(), cost_usd, ..result };
        out.push(AgentEvent::Result { result: Box::new(result) });
    }
}

/// A setting of a session, by its category.
fn setting<'a>(session: &'a Value, category: &str) -> Option<&'a Value> {
    let settings = session.get("configOptions")?.as_array()?;
    settings.iter().find(|one| text(one, "category") == Some(category))
}

/// How a session is put into a mode in which it only reads: where it offers one, and is in another.
fn reading_mode(session: &Value) -> Option<(&'static str, Value)> {
    let best = |offered: Option<&Value>, key: &str, current: Option<&str>| {
        let offered = offered.and_then(Value::as_array)?;
        let is_offered = |mode: &&str| offered.iter().any(|one| text(one, key) == Some(*mode));
        READING_MODES.into_iter().find(is_offered).map(|mode| (mode, current == Some(mode)))
    };
    // Agents say it in one way or the other; those that say it in both mean the same.
    let as_setting = setting(session, "mode").and_then(|mode| {
        let (chosen, is_set) = best(mode.get("options"), "value", text(mode, "currentValue"))?;
        let params = json!({"configId": text(mode, "id"), "value": chosen});
        Some(("session/set_config_option", params, is_set))
    });
    let as_mode = || {
        let modes = session.get("modes")?;
        let (chosen, is_set) = best(modes.get("availableModes"), "id", text(modes, "currentModeId"))?;
        Some(("session/set_mode", json!({"modeId": chosen}), is_set))
    };
    let (method, params, is_set) = as_setting.or_else(as_mode)?;
    (!is_set).then_some((method, params))
}

/// A message's parameters.
fn params(message: &Value) -> &Value {
    message.get("params").unwrap_or(&Value::Null)
}

/// Whether an update is a piece of a conversation, and not of what surrounds it.
fn is_history(update: &Value) -> bool {
    let kind = text(update, "sessionUpdate").unwrap_or_default();
    matches!(kind, "user_message_chunk" | "agent_message_chunk" | "agent_thought_chunk" | "tool_call")
}

/// Whether a use of a tool has come to its end.
fn is_over(update: &Value) -> bool {
    matches!(text(update, "status"), Some("completed" | "failed"))
}

/// Reads a line: as it is, and where a strict reader refuses it, with what it refuses put right and value by value.
fn read(line: &[u8], out: &mut Vec<AgentEvent>, mut take: impl FnMut(&Value, &mut Vec<AgentEvent>) -> bool) {
    let line = line.trim_ascii();
    if line.is_empty() {
        return;
    }
    if let Ok(message) = serde_json::from_slice::<Value>(line)
        && take(&message, out)
    {
        return;
    }
    let readable = lenient::text(line);
    let refused = values(lenient::repair_surrogates(&readable).as_bytes(), &mut |value, _| take(&value, out));
    if refused > 0 {
        out.push(AgentEvent::Garbage { bytes: refused.min(line.len() as u64) });
    }
}

impl OutputParser for Conversation {
    fn line(&mut self, line: &[u8], out: &mut Vec<AgentEvent>) {
        read(line, out, |message, out| self.take(message, out));
    }

    fn end(&mut self, out: &mut Vec<AgentEvent>) {
        self.seen.said(out);
    }

    fn replies(&mut self) -> Replies {
        Replies { bytes: std::mem::take(&mut self.out), over: self.stage == Stage::Over }
    }

    fn stop(&mut self) -> bool {
        if self.stage != Stage::Asked || self.stopping {
            return false;
        }
        self.stopping = true;
        self.say(&json!({"jsonrpc": "2.0", "method": "session/cancel", "params": {"sessionId": self.session}}));
        true
    }
}

/// Hears what an agent tells, and says nothing: for news of a conversation that somebody else has. It may begin to listen at any time.
#[derive(Debug, Default)]
pub(super) struct Listener(Updates);

impl OutputParser for Listener {
    fn line(&mut self, line: &[u8], out: &mut Vec<AgentEvent>) {
        read(line, out, |message, out| {
            match text(message, "method") {
                Some("session/update") => self.0.update(params(message).get("update").unwrap_or(&Value::Null), out),
                Some(method) => out.push(other(method)),
                None if message.pointer("/result/stopReason").is_some() => {
                    self.0.said(out);
                    let text = self.0.last_message.take();
                    out.push(AgentEvent::Result { result: Box::new(AgentResult { text, ..AgentResult::default() }) });
                }
                None if message.is_object() => out.push(other("response")),
                None => return false,
            }
            true
        });
    }

    fn end(&mut self, out: &mut Vec<AgentEvent>) {
        self.0.said(out);
    }
}

/// A conversation about this, as it is begun.
pub(super) fn conversation(cwd: &Path, prompt: String, session: Option<AgentSessionId>) -> Box<dyn OutputParser> {
    Box::new(Conversation::new(Question { cwd: cwd.to_owned(), prompt, session }))
}

#[cfg(test)]
mod tests;
