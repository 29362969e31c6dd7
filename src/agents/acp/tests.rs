//! The conversation as a step function: lines in, events and lines out.

use serde_json::{Value, json};

use super::{Conversation, Listener, MAX_TOOLS, Question};
use crate::agents::tests_support::run_end;
use crate::agents::{AgentEvent, AgentProfile, OutputParser, RunEnd, RunVerdict};
use crate::base::fault::FaultCode;
use crate::jobs::{JobState, PermissionDenial};

const PROFILE: AgentProfile = AgentProfile::new("The configured agent").keeps_sessions_named("").names_no_payer();

/// A conversation, and everything that was said in it.
struct Talk {
    agent: Conversation,
    events: Vec<AgentEvent>,
    said: Vec<Value>,
    over: bool,
}

impl Talk {
    fn about(session: Option<&str>) -> Self {
        let session = session.map(|session| session.parse().expect("an id"));
        let question = Question { cwd: "/work".into(), prompt: "CANARY\n\"what?\"".to_owned(), session };
        let mut talk = Self { agent: Conversation::new(question), events: Vec::new(), said: Vec::new(), over: false };
        talk.listen();
        talk
    }

    fn listen(&mut self) {
        let replies = self.agent.replies();
        for line in String::from_utf8(replies.bytes).expect("text").lines() {
            self.said.push(serde_json::from_str(line).expect("a line is a message"));
        }
        self.over = replies.over;
    }

    /// The agent writes this.
    fn hears(&mut self, message: &Value) -> &mut Self {
        self.agent.line(message.to_string().as_bytes(), &mut self.events);
        self.listen();
        self
    }

    /// The agent answers our last request.
    fn answers(&mut self, result: &Value) -> &mut Self {
        let id = self.last()["id"].clone();
        self.hears(&json!({"jsonrpc": "2.0", "id": id, "result": result}))
    }

    fn refuses(&mut self, error: &Value) -> &mut Self {
        let id = self.last()["id"].clone();
        self.hears(&json!({"jsonrpc": "2.0", "id": id, "error": error}))
    }

    fn updates(&mut self, update: &Value) -> &mut Self {
        self.hears(&update_of("s1", update))
    }

    fn says(&mut self, text: &str) -> &mut Self {
        self.updates(&json!({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}}))
    }

    fn last(&self) -> &Value {
        self.said.last().expect("something was said")
    }

    /// One that was greeted, has a session, and was asked.
    fn asked() -> Self {
        let mut talk = Self::about(None);
        talk.answers(&greeting(true)).answers(&json!({"sessionId": "s1"}));
        assert_eq!(talk.last()["method"], "session/prompt");
        talk.events.clear();
        talk
    }

    fn verdict(&mut self, code: i32) -> RunVerdict {
        self.agent.end(&mut self.events);
        PROFILE.classify(run_end(code, "", &self.events))
    }
}

fn update_of(session: &str, update: &Value) -> Value {
    json!({"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": session, "update": update}})
}

fn greeting(loads: bool) -> Value {
    json!({
        "protocolVersion": 1, "agentCapabilities": {"loadSession": loads, "tomorrow": 1}, "authMethods": [],
        "agentInfo": {"name": "scripted", "version": "1.0"},
    })
}

fn kind(kind: &str) -> AgentEvent {
    AgentEvent::Other { kind: kind.into() }
}

#[test]
fn a_question_is_asked_in_a_new_session_and_the_answer_is_its_last_message() {
    let mut talk = Talk::about(None);
    let greeted = talk.last();
    assert_eq!((&greeted["method"], &greeted["params"]["protocolVersion"]), (&json!("initialize"), &json!(1)));
    let offered = json!({"fs": {"readTextFile": false, "writeTextFile": false}, "terminal": false});
    assert_eq!(greeted["params"]["clientCapabilities"], offered);
    talk.answers(&greeting(false));
    let opened = talk.last();
    assert_eq!(
        (&opened["method"], &opened["params"]),
        (&json!("session/new"), &json!({"cwd": "/work", "mcpServers": []}))
    );
    talk.answers(&json!({"sessionId": "s1", "models": {"currentModelId": "m", "availableModels": []}}));
    let asked = talk.last();
    assert_eq!(asked["method"], "session/prompt");
    assert_eq!(asked["params"], json!({"sessionId": "s1", "prompt": [{"type": "text", "text": "CANARY\n\"what?\""}]}));
    assert!(!talk.said[..talk.said.len() - 1].iter().any(|said| said.to_string().contains("CANARY")));
    talk.says("I ").says("look.");
    talk.updates(
        &json!({"sessionUpdate": "tool_call", "toolCallId": "t", "title": "Read", "kind": "read", "status": "pending"}),
    );
    talk.updates(&json!({"sessionUpdate": "tool_call_update", "toolCallId": "t", "status": "in_progress"}));
    talk.updates(&json!({"sessionUpdate": "tool_call_update", "toolCallId": "t", "status": "completed"}));
    talk.updates(&json!({"sessionUpdate": "agent_thought_chunk", "content": {"type": "text", "text": "hm"}}));
    talk.updates(&json!({"sessionUpdate": "plan", "entries": []})).updates(&json!({"sessionUpdate": "tomorrow"}));
    talk.updates(
        &json!({"sessionUpdate": "usage_update", "used": 1, "size": 2, "cost": {"amount": 0.25, "currency": "USD"}}),
    );
    talk.says("42");
    assert!(!talk.over);
    talk.answers(&json!({"stopReason": "end_turn", "usage": {"inputTokens": 3}}));
    assert!(talk.over, "its standard input may be closed");
    let started = AgentEvent::Started {
        session_id: Some("s1".into()),
        model: Some("m".into()),
        key_source: None,
        version: Some("scripted 1.0".into()),
    };
    let text = |text: &str| AgentEvent::Text { text: text.into() };
    let expected = [
        started,
        AgentEvent::Thinking,
        AgentEvent::Thinking,
        text("I look."),
        AgentEvent::ToolUse { tool: "read".into() },
        kind("tool_call_update"),
        AgentEvent::ToolResult,
        AgentEvent::Thinking,
        kind("plan"),
        kind("tomorrow"),
        kind("usage_update"),
        AgentEvent::Thinking,
        text("42"),
    ];
    assert_eq!(talk.events[..expected.len()], expected);
    let seen = talk.verdict(0);
    assert_eq!((seen.state, seen.outcome.response.as_deref()), (JobState::Succeeded, Some("42")));
    assert_eq!((seen.outcome.session_id.as_deref(), seen.outcome.resumable), (Some("s1"), Some(true)));
    assert_eq!((seen.outcome.cost_usd, seen.outcome.billing.as_deref()), (Some(0.25), Some("unproven")));
    assert_eq!(seen.outcome.usage, Some(json!({"inputTokens": 3})));
    assert_eq!(seen.outcome.stop_reason.as_deref(), Some("end_turn"));
}

#[test]
fn a_session_is_gone_on_with_where_the_agent_can_and_its_history_is_no_answer() {
    let mut talk = Talk::about(Some("s1"));
    talk.answers(&greeting(true));
    let loaded = talk.last();
    assert_eq!(loaded["method"], "session/load");
    assert_eq!(loaded["params"], json!({"cwd": "/work", "mcpServers": [], "sessionId": "s1"}));
    // What it said then, and asked for then.
    talk.says("an old answer");
    talk.updates(&json!({"sessionUpdate": "tool_call", "toolCallId": "t", "kind": "edit"}));
    assert_eq!(talk.events, [kind("session/update"), kind("session/update")]);
    talk.answers(&Value::Null);
    assert_eq!(talk.last()["method"], "session/prompt");
    talk.says("new").answers(&json!({"stopReason": "end_turn"}));
    talk.updates(&json!({"sessionUpdate": "usage_update", "cost": {"amount": 9.0, "currency": "USD"}}));
    let seen = talk.verdict(0).outcome;
    assert_eq!((seen.response.as_deref(), seen.session_id.as_deref(), seen.cost_usd), (Some("new"), Some("s1"), None));

    for loads in [true, false] {
        let mut talk = Talk::about(Some("s1"));
        talk.answers(&greeting(loads));
        if loads {
            talk.refuses(&json!({"code": -32602, "message": "no such session"}));
        }
        assert!(talk.over && !talk.said.iter().any(|said| said["method"] == "session/prompt"));
        let asked = "s1".parse().ok();
        let seen = PROFILE.classify(RunEnd { resume_requested: asked, ..run_end(0, "", &talk.events) });
        assert_eq!(seen.outcome.fault.map(|fault| fault.code), Some(FaultCode::UnknownSession), "{loads}");
        assert_eq!((seen.outcome.session_id.as_deref(), seen.outcome.resumable), (Some("s1"), Some(false)));
    }
}

#[test]
fn a_session_that_shows_nothing_of_its_past_is_lost_and_not_asked() {
    let chunk = |kind: &str| json!({"sessionUpdate": kind, "content": {"type": "text", "text": "old"}});
    let of = |session: &str, update: Value| update_of(session, &update);
    // What comes before the session is opened, and whether that is a history.
    let table = [
        (vec![of("s1", chunk("user_message_chunk"))], true),
        (vec![of("s1", chunk("agent_message_chunk"))], true),
        (vec![of("s1", chunk("agent_thought_chunk"))], true),
        (vec![of("s1", json!({"sessionUpdate": "tool_call", "toolCallId": "t"}))], true),
        (vec![], false),
        (vec![of("s1", json!({"sessionUpdate": "available_commands_update", "availableCommands": []}))], false),
        (vec![of("s1", json!({"sessionUpdate": "usage_update", "used": 0}))], false),
        (vec![of("s1", json!({"sessionUpdate": "current_mode_update"}))], false),
        (vec![of("s2", chunk("agent_message_chunk"))], false),
        (vec![of("s1", json!("user_message_chunk"))], false),
    ];
    for (heard, is_there) in table {
        let mut talk = Talk::about(Some("s1"));
        talk.answers(&greeting(true));
        for message in &heard {
            talk.hears(message);
        }
        talk.answers(&json!({"modes": {"currentModeId": "default", "availableModes": [{"id": "plan"}]}}));
        talk.answers(&json!({}));
        assert_eq!(talk.last()["method"] == "session/prompt", is_there, "{heard:?}");
        assert_eq!(talk.over, !is_there, "{heard:?}");
        if !is_there {
            let asked = "s1".parse().ok();
            let seen = PROFILE.classify(RunEnd { resume_requested: asked, ..run_end(0, "", &talk.events) });
            assert_eq!(seen.outcome.fault.map(|fault| fault.code), Some(FaultCode::UnknownSession), "{heard:?}");
        }
    }
    // What comes while its mode is set is history as well: one agent answers before it has shown everything.
    let mut talk = Talk::about(Some("s1"));
    talk.answers(&greeting(true))
        .answers(&json!({"modes": {"currentModeId": "default", "availableModes": [{"id": "plan"}]}}));
    talk.hears(&of("s1", chunk("user_message_chunk"))).answers(&json!({}));
    assert_eq!(talk.last()["method"], "session/prompt");
}

#[test]
fn of_modes_that_only_read_the_best_is_chosen_before_the_question() {
    let modes = |current: &str, offered: &[&str]| {
        let offered: Vec<Value> = offered.iter().map(|id| json!({"id": id, "name": id})).collect();
        json!({"sessionId": "s1", "modes": {"currentModeId": current, "availableModes": offered}})
    };
    let setting = |current: &str, offered: &[&str]| {
        let offered: Vec<Value> = offered.iter().map(|value| json!({"value": value, "name": value})).collect();
        let model = json!({"id": "model", "category": "model", "currentValue": "p/m", "options": []});
        let mode = json!({"id": "m", "category": "mode", "currentValue": current, "options": offered});
        json!({"sessionId": "s1", "configOptions": [model, mode]})
    };
    for (opened, chosen) in [
        (
            modes("default", &["default", "auto_edit", "yolo", "plan"]),
            Some(json!({"sessionId": "s1", "modeId": "plan"})),
        ),
        (modes("auto", &["auto", "full-access", "read-only"]), Some(json!({"sessionId": "s1", "modeId": "read-only"}))),
        (modes("build", &["ask", "build", "plan"]), Some(json!({"sessionId": "s1", "modeId": "plan"}))),
        (setting("build", &["build", "plan"]), Some(json!({"sessionId": "s1", "configId": "m", "value": "plan"}))),
        (setting("plan", &["build", "plan"]), None),
        (modes("plan", &["build", "plan"]), None),
        (modes("default", &["default", "yolo"]), None),
        (json!({"sessionId": "s1"}), None),
    ] {
        let mut talk = Talk::about(None);
        talk.answers(&greeting(true)).answers(&opened);
        if let Some(chosen) = chosen {
            let method = if chosen.get("modeId").is_some() { "session/set_mode" } else { "session/set_config_option" };
            assert_eq!((&talk.last()["method"], &talk.last()["params"]), (&json!(method), &chosen));
            talk.answers(&json!({}));
        }
        assert_eq!(talk.last()["method"], "session/prompt", "{opened}");
        let model = talk.events.iter().find_map(|event| match event {
            AgentEvent::Started { model, .. } => Some(model.as_deref()),
            _ => None,
        });
        assert_eq!(model, Some(opened.get("configOptions").map(|_| "p/m")));
    }
    // A mode it offers and refuses is no mode it is in.
    let mut talk = Talk::about(None);
    talk.answers(&greeting(true))
        .answers(&modes("default", &["plan"]))
        .refuses(&json!({"code": -32603, "message": "no"}));
    assert!(talk.over && !talk.said.iter().any(|said| said["method"] == "session/prompt"));
}

#[test]
fn whatever_it_asks_for_is_answered_and_only_reading_is_allowed() {
    let options = json!([
        {"optionId": "yes", "name": "Yes", "kind": "allow_once"}, {"optionId": "no", "name": "No", "kind": "reject_once"},
    ]);
    let mut talk = Talk::asked();
    let ask = |id: Value, call: Value| {
        json!({"jsonrpc": "2.0", "id": id, "method": "session/request_permission",
            "params": {"sessionId": "s1", "toolCall": call, "options": options}})
    };
    for (id, call, chosen, denied) in [
        (json!(0), json!({"toolCallId": "a", "kind": "search"}), "yes", None),
        (
            json!("x"),
            json!({"toolCallId": "b", "kind": "edit", "locations": [{"path": "/work/a"}]}),
            "no",
            Some(("edit", "/work/a")),
        ),
        (
            json!(7),
            json!({"toolCallId": "c", "kind": "execute", "title": "touch x"}),
            "no",
            Some(("execute", "touch x")),
        ),
        (json!(8), json!({"toolCallId": "d", "title": "?"}), "no", Some(("other", "?"))),
    ] {
        talk.events.clear();
        talk.hears(&ask(id.clone(), call.clone()));
        let answer = talk.last();
        assert_eq!((&answer["id"], &answer["result"]["outcome"]["optionId"]), (&id, &json!(chosen)), "{call}");
        let denial = denied.map(|(tool, target)| PermissionDenial { tool: tool.into(), target: Some(target.into()) });
        let event = denial.map_or_else(|| kind("session/request_permission"), |denial| AgentEvent::Denied { denial });
        assert_eq!(talk.events, [event]);
    }
    for method in ["fs/write_text_file", "fs/read_text_file", "terminal/create", "session/elicitation", "_x/y"] {
        talk.hears(
            &json!({"jsonrpc": "2.0", "id": "r", "method": method, "params": {"path": "/work/x", "content": "CANARY"}}),
        );
        let answer = talk.last();
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!("r"), &json!(-32601)), "{method}");
        assert!(!answer.to_string().contains("CANARY"));
    }
    // Asked to stop, it is answered nothing more.
    assert!(talk.agent.stop() && !talk.agent.stop());
    talk.listen();
    assert_eq!(talk.last(), &json!({"jsonrpc": "2.0", "method": "session/cancel", "params": {"sessionId": "s1"}}));
    talk.hears(&ask(json!(9), json!({"toolCallId": "e", "kind": "search"})));
    assert_eq!(talk.last()["result"]["outcome"], json!({"outcome": "cancelled"}));
    talk.answers_prompt(&json!({"stopReason": "cancelled"}));
    assert!(talk.over);
    assert_eq!(
        talk.verdict(0).outcome.fault.map(|fault| fault.code),
        Some(FaultCode::AgentKilled),
        "nobody of ours says why"
    );
    let seen = Talk::about(None).agent.stop();
    assert!(!seen, "there is nothing to stop before it is asked");
}

#[test]
fn one_that_ends_its_turn_over_a_refusal_is_asked_to_go_on_a_few_times() {
    let refused = |talk: &mut Talk| {
        talk.updates(&json!({"sessionUpdate": "tool_call", "toolCallId": "t", "kind": "edit"}));
        let params = json!({"sessionId": "s1", "toolCall": {"toolCallId": "t"}, "options": []});
        talk.hears(&json!({"jsonrpc": "2.0", "id": 1, "method": "session/request_permission", "params": params}));
    };
    let prompts = |talk: &Talk| talk.said.iter().filter(|said| said["method"] == "session/prompt").count();
    let end = json!({"stopReason": "end_turn"});
    let mut talk = Talk::asked();
    talk.says("I write.");
    refused(&mut talk);
    talk.answers_prompt(&end);
    assert_eq!((prompts(&talk), talk.over), (2, false));
    talk.says("42").answers(&end);
    assert_eq!(talk.verdict(0).outcome.response.as_deref(), Some("42"));
    // It answers all the same, is stopped, or ends every time.
    let mut talk = Talk::asked();
    refused(&mut talk);
    talk.says("42").answers_prompt(&end);
    assert_eq!((prompts(&talk), talk.over), (1, true));
    let mut talk = Talk::asked();
    refused(&mut talk);
    assert!(talk.agent.stop());
    talk.answers_prompt(&end);
    assert_eq!((prompts(&talk), talk.over), (1, true));
    let mut talk = Talk::asked();
    for _ in 0..10 {
        if !talk.over {
            refused(&mut talk);
            let id = talk.said.iter().rfind(|said| said["method"] == "session/prompt").expect("asked")["id"].clone();
            talk.hears(&json!({"jsonrpc": "2.0", "id": id, "result": end}));
        }
    }
    assert_eq!((prompts(&talk), talk.over), (4, true));
    assert_eq!(talk.verdict(0).outcome.fault.map(|fault| fault.code), Some(FaultCode::EmptyAnswer));
}

impl Talk {
    /// The agent answers the question, whatever was said to it since.
    fn answers_prompt(&mut self, result: &Value) {
        let asked = self.said.iter().find(|said| said["method"] == "session/prompt").expect("asked")["id"].clone();
        self.hears(&json!({"jsonrpc": "2.0", "id": asked, "result": result}));
    }
}

#[test]
fn every_end_is_judged_by_its_reason_or_its_error() {
    use FaultCode as C;
    for (reason, code) in [
        ("end_turn", None),
        ("max_tokens", Some(C::AnswerTooLong)),
        ("max_turn_requests", Some(C::TurnLimit)),
        ("refusal", Some(C::Refused)),
        ("cancelled", Some(C::AgentKilled)),
        ("tomorrow", Some(C::AgentError)),
    ] {
        let mut talk = Talk::asked();
        talk.says("so far").answers(&json!({"stopReason": reason}));
        let seen = talk.verdict(0).outcome;
        assert_eq!(seen.fault.map(|fault| fault.code), code, "{reason}");
        assert_eq!(seen.response.as_deref(), Some("so far"), "{reason}");
    }
    for (error, code) in [
        (json!({"code": -32000, "message": "Authentication required"}), C::AgentNotLoggedIn),
        (json!({"code": 401, "message": "no"}), C::AgentNotLoggedIn),
        (json!({"code": 429, "message": "no"}), C::AgentRateLimited),
        (json!({"code": -32603, "message": "Internal error", "data": {"details": "401 no"}}), C::AgentNotLoggedIn),
        (json!({"code": -32603, "message": "Internal error", "data": {"details": "429 slowly"}}), C::AgentRateLimited),
        (json!({"code": -32603, "message": "Internal error", "data": "503 later"}), C::AgentUpstream),
        (json!({"code": -32603, "message": "Internal error", "data": {"details": "401"}}), C::AgentError),
        (json!({"code": -32603, "message": "Internal error", "data": {"details": "4011 of them"}}), C::AgentError),
        (json!({"code": -32603, "message": "401 of them were not found"}), C::AgentError),
        (json!({"code": 500, "message": "no"}), C::AgentUpstream),
        (json!({"code": 400, "message": "no"}), C::AgentError),
        (
            json!({"code": -32603, "message": "Internal error", "data": {"details": "You've hit your usage limit."}}),
            C::AgentRateLimited,
        ),
        (json!({"code": -32603, "message": "Internal error", "data": "fetch failed"}), C::AgentUpstream),
        (json!({"code": -32603, "message": "something new"}), C::AgentError),
        (json!("no object"), C::AgentError),
    ] {
        let mut talk = Talk::asked();
        talk.says("so far").refuses(&error);
        assert!(talk.over);
        let seen = talk.verdict(1).outcome;
        assert_eq!(seen.fault.map(|fault| fault.code), Some(code), "{error}");
        assert!(seen.response.is_some_and(|said| said.starts_with("so far")), "{error}");
    }
    for greeting in [json!({"protocolVersion": 2}), json!({}), Value::Null] {
        let mut talk = Talk::about(None);
        talk.answers(&greeting);
        assert_eq!(talk.said.len(), 1, "nothing more is said");
        assert_eq!(talk.verdict(0).outcome.fault.map(|fault| fault.code), Some(C::AgentUnsupported), "{greeting}");
    }
    let mut talk = Talk::about(None);
    talk.answers(&greeting(true)).answers(&json!({}));
    assert_eq!(talk.verdict(0).outcome.fault.map(|fault| fault.code), Some(C::AgentError));
    // It left in the middle.
    let mut talk = Talk::asked();
    talk.says("so far");
    let seen = talk.verdict(0).outcome;
    assert_eq!(
        (seen.fault.map(|fault| fault.code), seen.response.as_deref()),
        (Some(C::AgentProtocol), Some("so far"))
    );
    let mut talk = Talk::about(None);
    talk.agent.line(b"Usage: agent [options]", &mut talk.events);
    assert_eq!(talk.verdict(0).outcome.fault.map(|fault| fault.code), Some(C::AgentProtocol));
    // An id that could not be handed out again.
    let mut talk = Talk::about(None);
    talk.answers(&greeting(true)).answers(&json!({"sessionId": "../x"})).hears(&json!({}));
    assert_eq!(talk.verdict(143).outcome.resumable, Some(false));
}

#[test]
fn what_is_not_for_us_changes_nothing_and_what_is_kept_is_bounded() {
    let mut talk = Talk::asked();
    let chunk = json!({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "stranger"}});
    for strange in [
        update_of("s2", &chunk),
        json!({"jsonrpc": "2.0", "id": 999, "result": {"stopReason": "end_turn"}}),
        json!({"jsonrpc": "2.0", "id": "3", "result": {"stopReason": "end_turn"}}),
        json!({"jsonrpc": "2.0", "method": "session/update"}),
        json!({"jsonrpc": "2.0", "method": "tomorrow"}),
        json!({"jsonrpc": "2.0", "id": "x".repeat(1000), "method": "session/request_permission"}),
        json!([1, 2]),
    ] {
        let said = talk.said.len();
        talk.hears(&strange);
        assert_eq!((talk.said.len(), talk.over), (said, false), "{strange}");
    }
    assert!(talk.events.iter().all(|event| matches!(event, AgentEvent::Other { .. } | AgentEvent::Garbage { .. })));
    for number in 0..MAX_TOOLS + 10 {
        talk.updates(&json!({"sessionUpdate": "tool_call", "toolCallId": number.to_string(), "kind": "read"}));
    }
    assert_eq!(talk.agent.seen.tools.len(), MAX_TOOLS);
    // A line that a strict reader refuses, and two in one.
    talk.events.clear();
    let half = r#"{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s1","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"half \ud83d"}}}}"#;
    talk.agent.line(format!("{half} {half}").as_bytes(), &mut talk.events);
    talk.answers(&json!({"stopReason": "end_turn"}));
    assert_eq!(talk.verdict(0).outcome.response.as_deref(), Some("half \u{fffd}half \u{fffd}"));
}

#[test]
fn who_only_listens_hears_the_same_and_says_nothing() {
    let (mut listener, mut heard) = (Listener::default(), Vec::new());
    let chunk = |text: &str| json!({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}});
    for message in [
        update_of("s1", &chunk("4")),
        update_of("s1", &chunk("2")),
        update_of("s1", &json!({"sessionUpdate": "tool_call", "toolCallId": "t", "kind": "read"})),
        json!({"jsonrpc": "2.0", "id": 5, "method": "session/request_permission", "params": {}}),
        update_of("s1", &chunk("42")),
        json!({"jsonrpc": "2.0", "id": 3, "result": {"stopReason": "end_turn"}}),
    ] {
        listener.line(message.to_string().as_bytes(), &mut heard);
    }
    let text = |text: &str| AgentEvent::Text { text: text.into() };
    let tool = AgentEvent::ToolUse { tool: "read".into() };
    let said: Vec<&AgentEvent> =
        heard.iter().filter(|event| matches!(event, AgentEvent::Text { .. } | AgentEvent::ToolUse { .. })).collect();
    assert_eq!(said, [&text("42"), &tool, &text("42")]);
    assert!(matches!(heard.last(), Some(AgentEvent::Result { .. })));
    assert!(listener.replies().bytes.is_empty());
}

#[test]
fn whatever_is_written_nothing_panics_and_no_answer_is_longer_than_it_may_be() {
    let seed = 0x0ac9;
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let pieces = [
        "{",
        "}",
        "[",
        "]",
        "\"",
        ":",
        ",",
        "\"id\"",
        "\"method\"",
        "\"result\"",
        "\"error\"",
        "1",
        "2",
        "3",
        "null",
        "\\ud83d",
        "é",
        "\"session/update\"",
        "\"session/request_permission\"",
        "\"params\"",
        "{\"sessionId\":\"s1\"",
        "\"update\"",
        "\n",
    ];
    for _ in 0..3_000 {
        let mut talk = if random.bool() { Talk::asked() } else { Talk::about(None) };
        let line: String = (0..random.usize(0..30)).map(|_| pieces[random.usize(..pieces.len())]).collect();
        talk.agent.line(line.as_bytes(), &mut talk.events);
        talk.listen();
        let _ = talk.verdict(0);
    }
}
