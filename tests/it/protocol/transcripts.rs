//! Golden transcripts: what each era looks like on the wire, from greeting to farewell, and whether the official schemas
//! agree.
//!
//! A transcript is `tests/transcripts/NAME.jsonl`, one message a line in the order of the wire; what differs from run to run
//! is replaced by something of the same type. `PHONE_OPUS_ACCEPT=1 cargo test --test it transcripts` writes them anew: look at
//! what changed before it is committed.
//!
//! The schemas are data of the protocol's authors and not part of this repository. They are looked for in the directory
//! `PHONE_OPUS_MCP_SCHEMA` names, else in `../shared/mcp-schema`; without them that test says loudly that it was skipped.
//!
//! Laws: L1, L11.

#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use phone_opus::internals::system::{Grace, Shutdown};
use phone_opus::testkit::client::envelope;
use phone_opus::testkit::{PATIENCE, Rig, Step, tried_program};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};

const NAMES: [&str; 6] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28", "2026-07-28-listen"];

/// One side of a conversation, and everything that was said.
struct Tape {
    input: Box<dyn AsyncWrite + Unpin>,
    output: BufReader<Box<dyn AsyncRead + Unpin>>,
    said: Vec<(&'static str, Value)>,
    next: u64,
    modern: bool,
}

impl Tape {
    fn new(output: impl AsyncRead + Unpin + 'static, input: impl AsyncWrite + Unpin + 'static, modern: bool) -> Self {
        let output = BufReader::new(Box::new(output) as Box<dyn AsyncRead + Unpin>);
        Self { input: Box::new(input), output, said: Vec::new(), next: 0, modern }
    }

    async fn say(&mut self, message: Value) {
        self.input.write_all(format!("{message}\n").as_bytes()).await.expect("it reads");
        self.input.flush().await.expect("it reads");
        self.said.push(("server", message));
    }

    /// The next message; of several reports in a row the first is kept.
    async fn hear(&mut self) -> Value {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.output.read_line(&mut line)).await.expect("in time");
        assert!(read.expect("it writes") > 0, "the output has ended after {:?}", self.said.last());
        let message: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let progress = |message: &Value| message["method"] == "notifications/progress";
        if !(progress(&message) && self.said.last().is_some_and(|(to, last)| *to == "client" && progress(last))) {
            self.said.push(("client", message.clone()));
        }
        message
    }

    /// Hears until this is found.
    async fn until(&mut self, found: impl Fn(&Value) -> bool) -> Value {
        loop {
            let message = self.hear().await;
            if found(&message) {
                return message;
            }
        }
    }

    async fn send(&mut self, method: &str, mut params: Value, capabilities: Value) -> u64 {
        self.next += 1;
        if self.modern {
            let mut meta = envelope();
            meta["io.modelcontextprotocol/clientCapabilities"] = capabilities;
            meta["io.modelcontextprotocol/clientInfo"] = json!({"name": "tape", "version": "1"});
            if let Some(Value::Object(more)) = params.get("_meta") {
                meta.as_object_mut().expect("an object").extend(more.clone());
            }
            params["_meta"] = meta;
        }
        let id = self.next;
        self.say(json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})).await;
        id
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        let id = self.send(method, params, json!({})).await;
        self.until(|message| message["id"] == id).await
    }

    /// The answer to a request that is told of a task's end, and the news of it, which are said in either order: the news
    /// are recorded last.
    async fn until_over(&mut self, id: u64) {
        let news = |message: &Value| message["method"] == "notifications/tasks/status";
        let first = self.until(|message| message["id"] == id || news(message)).await;
        let told = self.said.len() - 1;
        if news(&first) {
            self.until(|message| message["id"] == id).await;
            let told = self.said.remove(told);
            self.said.push(told);
        } else {
            self.until(news).await;
        }
    }

    async fn ask_with_tasks(&mut self, method: &str, params: Value) -> Value {
        let id = self.send(method, params, tasks()).await;
        self.until(|message| message["id"] == id).await
    }

    async fn cancel(&mut self, id: u64) {
        self.say(json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}})).await;
    }
}

fn tasks() -> Value {
    json!({"extensions": {"io.modelcontextprotocol/tasks": {}}})
}

/// What every revision has.
async fn ordinary(rig: &Rig, tape: &mut Tape) {
    let call = |arguments: Value| json!({"name": "consult", "arguments": arguments});
    tape.ask("tools/list", json!({})).await;
    tape.ask("tools/list", json!({"cursor": "nobody's"})).await;
    tape.ask("tools/call", call(json!({"prompt": rig.answering("42")}))).await;
    tape.ask("tools/call", call(json!({"prompt": rig.answering("42"), "render": "xml", "max_turns": 0}))).await;
    tape.ask("tools/call", json!({"name": "nobody"})).await;
    tape.ask("prompts/list", json!({})).await;
    tape.say(json!(7)).await;
    tape.hear().await;
    // Progress.
    let prompt = rig.doing(vec![Step::ToolUse("Grep".into()), Step::WaitForFile(rig.sign("go"))]);
    let mut params = call(json!({"prompt": prompt}));
    params["_meta"] = json!({"progressToken": "p-1"});
    let id = tape.send("tools/call", params, json!({})).await;
    tape.until(|message| message["method"] == "notifications/progress").await;
    rig.give_sign("go");
    tape.until(|message| message["id"] == id).await;
    // A cancel is answered by nothing: the next thing heard is the answer to the next request.
    let id = tape.send("tools/call", call(json!({"prompt": rig.hanging("begun")})), json!({})).await;
    rig.wait_for_sign("begun").await;
    tape.cancel(id).await;
    tape.ask("tools/list", json!({"cursor": "still nobody's"})).await;
}

async fn legacy(rig: &Rig, version: &str, tape: &mut Tape) {
    let client = json!({"name": "tape", "version": "1"});
    tape.ask("tools/list", json!({})).await;
    let hello = json!({"protocolVersion": version, "capabilities": {}, "clientInfo": client});
    tape.ask("initialize", hello).await;
    tape.say(json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    tape.ask("ping", json!({})).await;
    ordinary(rig, tape).await;
    if version == "2025-03-26" {
        tape.say(json!([
            {"jsonrpc": "2.0", "id": "a", "method": "ping"},
            {"jsonrpc": "2.0", "method": "notifications/initialized"},
            {"jsonrpc": "2.0", "id": "b", "method": "tools/list", "params": {"cursor": "x"}},
        ]))
        .await;
        tape.hear().await;
    }
    if version == "2025-11-25" {
        let call =
            |prompt: String| json!({"name": "consult", "arguments": {"prompt": prompt}, "task": {"ttl": 60_000}});
        let created = tape.ask("tools/call", call(rig.waiting("one", "answer one"))).await;
        let task = json!({"taskId": created["result"]["task"]["taskId"]});
        rig.wait_for_sign("one").await;
        tape.ask("tasks/get", task.clone()).await;
        tape.ask("tasks/list", json!({})).await;
        let id = tape.send("tasks/result", task.clone(), json!({})).await;
        rig.give_sign("answer one");
        tape.until_over(id).await;
        tape.ask("tasks/get", task.clone()).await;
        tape.ask("tasks/cancel", task).await;
        let created = tape.ask("tools/call", call(rig.hanging("two"))).await;
        let task = json!({"taskId": created["result"]["task"]["taskId"]});
        rig.wait_for_sign("two").await;
        let id = tape.send("tasks/cancel", task.clone(), json!({})).await;
        tape.until_over(id).await;
        tape.ask("tasks/result", task).await;
        tape.ask("tools/call", json!({"name": "consult", "arguments": {"prompt": 7}, "task": {}})).await;
        tape.ask("tasks/get", json!({"taskId": "00000000-0000-4000-8000-000000000000"})).await;
    }
}

async fn modern(rig: &Rig, tape: &mut Tape) {
    tape.ask("server/discover", json!({})).await;
    let old = json!({"_meta": {"io.modelcontextprotocol/protocolVersion": "2099-01-01"}});
    tape.ask("server/discover", old.clone()).await;
    ordinary(rig, tape).await;
    tape.ask("ping", json!({})).await;
    tape.ask("tools/call", json!({"name": "consult", "_meta": {"io.modelcontextprotocol/clientInfo": 7}})).await;
    // The life of a task.
    let call = |prompt: String| json!({"name": "consult", "arguments": {"prompt": prompt}});
    let created = tape.ask_with_tasks("tools/call", call(rig.waiting("one", "answer one"))).await;
    let task = json!({"taskId": created["result"]["taskId"]});
    rig.wait_for_sign("one").await;
    tape.ask_with_tasks("tasks/get", task.clone()).await;
    tape.ask("tasks/get", task.clone()).await;
    tape.ask_with_tasks("tasks/update", json!({"taskId": task["taskId"], "inputResponses": {}})).await;
    let wishes = json!({"notifications": {"taskIds": [task["taskId"]]}});
    let id = tape.send("subscriptions/listen", wishes, tasks()).await;
    tape.until(|message| message["method"] == "notifications/subscriptions/acknowledged").await;
    tape.until(|message| message["method"] == "notifications/tasks").await;
    rig.give_sign("answer one");
    tape.until(|message| message["params"]["status"] == "completed").await;
    tape.cancel(id).await;
    tape.ask_with_tasks("tasks/get", task.clone()).await;
    tape.ask_with_tasks("tasks/cancel", task).await;
    tape.ask_with_tasks("tasks/get", json!({"taskId": "00000000-0000-4000-8000-000000000000"})).await;
}

/// Replaces what differs from run to run.
struct Redaction {
    places: Vec<(String, &'static str)>,
    ids: BTreeMap<String, String>,
}

impl Redaction {
    fn of(rig: &Rig) -> Self {
        let root = rig.path("");
        let root = root.to_string_lossy().trim_end_matches('/').to_owned();
        let real = std::fs::canonicalize(&root).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        let places = [(rig.canary().to_owned(), "canary"), (root, "/scratch"), (real, "/scratch")];
        Self { places: places.into_iter().filter(|(text, _)| !text.is_empty()).collect(), ids: BTreeMap::new() }
    }

    fn text(&mut self, text: &str) -> String {
        let mut text = text.to_owned();
        for (place, name) in &self.places {
            text = text.replace(place, name);
        }
        // A machine that is busy gives up the look at the directory.
        text = text.replace(" · whether files changed is not known", "");
        let mut out = String::new();
        let mut rest = text.as_str();
        while let Some(first) = rest.chars().next() {
            let token = rest.get(..36).filter(|token| token.parse::<phone_opus::internals::base::ids::JobId>().is_ok());
            if let Some(token) = token {
                let nth = self.ids.len() + 1;
                let unknown = "00000000-0000-4000-8000-000000000000";
                let name =
                    if token == unknown { unknown.to_owned() } else { format!("00000000-0000-4000-8000-{nth:012}") };
                out.push_str(self.ids.entry(token.to_owned()).or_insert(name));
                rest = &rest[36..];
            } else if first.is_ascii_digit() && !out.ends_with(|last: char| last.is_ascii_alphanumeric() || last == '.')
            {
                let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
                let (number, after) = rest.split_at(end);
                // A time of something that was waited for.
                let time = after.starts_with(" s") && !after[2..].starts_with(|c: char| c.is_alphanumeric());
                out.push_str(if time { "0" } else { number });
                rest = after;
            } else {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
        out
    }

    fn value(&mut self, name: &str, value: &Value) -> Value {
        match (name, value) {
            ("version", Value::String(text)) if text == env!("CARGO_PKG_VERSION") => json!("0.0.0"),
            ("createdAt" | "lastUpdatedAt", Value::String(_)) => json!("2026-01-01T00:00:00.000Z"),
            ("duration_ms" | "progress", Value::Number(_)) => json!(0),
            // What an agent is doing is a matter of moments.
            ("message", Value::String(text)) if text.ends_with(" s") => json!("at work, 0 s"),
            (_, Value::String(text)) => json!(self.text(text)),
            (_, Value::Array(items)) => items.iter().map(|item| self.value(name, item)).collect(),
            (_, Value::Object(members)) => {
                let mut members: Map<String, Value> =
                    members.iter().map(|(name, value)| (name.clone(), self.value(name, value))).collect();
                if members.get("status") == Some(&json!("working")) && members.contains_key("statusMessage") {
                    members.insert("statusMessage".to_owned(), json!("at work"));
                }
                if members.get("workspace_changed") == Some(&Value::Null) {
                    members.remove("workspace_changed");
                }
                Value::Object(members)
            }
            (_, other) => other.clone(),
        }
    }
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts").join(format!("{name}.jsonl"))
}

fn compare(name: &str, rig: &Rig, tape: &Tape) {
    let mut redaction = Redaction::of(rig);
    let lines: Vec<String> = tape
        .said
        .iter()
        .map(|(to, message)| json!({"to": to, "message": redaction.value("", message)}).to_string())
        .collect();
    let new = lines.join("\n") + "\n";
    if std::env::var_os("PHONE_OPUS_ACCEPT").is_some() {
        std::fs::write(file(name), new).expect("written");
        return;
    }
    let old = std::fs::read_to_string(file(name)).unwrap_or_default();
    for (number, (old, new)) in (1..).zip(old.lines().zip(new.lines())) {
        assert_eq!(old, new, "line {number} of {name}; if it is right, accept it: see the head of this file");
    }
    assert_eq!(old.lines().count(), new.lines().count(), "messages in {name}");
}

async fn over_the_program(name: &'static str) {
    let rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus"))).with("PHONE_OPUS_PROGRESS_S", "1");
    let mut host = rig
        .command(&["mcp", "serve"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let (input, output) = (host.stdin.take().expect("piped"), host.stdout.take().expect("piped"));
    let mut tape = Tape::new(output, input, name == "2026-07-28");
    match name {
        "2026-07-28" => modern(&rig, &mut tape).await,
        version => legacy(&rig, version, &mut tape).await,
    }
    compare(name, &rig, &tape);
    drop(tape);
    assert!(host.wait().await.expect("it ends").success());
    rig.check_invariants().await;
}

#[tokio::test]
async fn the_revision_of_2024_11_05_is_spoken_as_recorded() {
    over_the_program("2024-11-05").await;
}

#[tokio::test]
async fn the_revision_of_2025_03_26_is_spoken_as_recorded() {
    over_the_program("2025-03-26").await;
}

#[tokio::test]
async fn the_revision_of_2025_06_18_is_spoken_as_recorded() {
    over_the_program("2025-06-18").await;
}

#[tokio::test]
async fn the_revision_of_2025_11_25_is_spoken_as_recorded() {
    over_the_program("2025-11-25").await;
}

#[tokio::test]
async fn the_revision_of_2026_07_28_is_spoken_as_recorded() {
    over_the_program("2026-07-28").await;
}

/// The catalog of the program never changes, so the life of a subscription to it is shown on a system in this process.
#[tokio::test]
async fn a_subscription_to_the_catalog_lives_as_recorded() {
    let rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")));
    let system = rig.system().start().await.expect("it starts");
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (input, output) = tokio::io::split(theirs);
    let serving = tokio::spawn({
        let system = system.clone();
        async move { system.serve(input, output).await }
    });
    let (output, input) = tokio::io::split(ours);
    let mut tape = Tape::new(output, input, true);
    let acknowledged = |message: &Value| message["method"] == "notifications/subscriptions/acknowledged";
    let wishes = json!({"notifications": {"toolsListChanged": true, "resourcesListChanged": true}});
    let first = tape.send("subscriptions/listen", wishes.clone(), json!({})).await;
    tape.until(acknowledged).await;
    tape.send("subscriptions/listen", wishes, json!({})).await;
    tape.until(acknowledged).await;
    system.tools_changed();
    tape.hear().await;
    tape.hear().await;
    tape.cancel(first).await;
    // A session of the other era on the same connection.
    let client = json!({"name": "tape", "version": "1"});
    let hello = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client});
    tape.say(json!({"jsonrpc": "2.0", "id": "hello", "method": "initialize", "params": hello})).await;
    tape.hear().await;
    system.tools_changed();
    tape.hear().await;
    tape.hear().await;
    assert!(matches!(system.shutdown(Grace::default()).await, Shutdown::InOrder));
    tape.hear().await;
    compare("2026-07-28-listen", &rig, &tape);
    drop(tape);
    assert!(serving.await.expect("no panic").is_ok());
    rig.check_invariants().await;
}

/// The official schema of a revision.
struct Schema {
    text: Value,
    definitions: &'static str,
    validators: BTreeMap<String, jsonschema::Validator>,
}

impl Schema {
    fn read(dir: &Path, version: &str) -> Self {
        let text = std::fs::read_to_string(dir.join(format!("{version}.json"))).expect("the schema is there");
        let text: Value = serde_json::from_str(&text).expect("JSON");
        let definitions = if text.get("$defs").is_some() { "$defs" } else { "definitions" };
        Self { text, definitions, validators: BTreeMap::new() }
    }

    /// What the schema has against a message.
    fn against(&mut self, definition: &str, message: &Value) -> Option<String> {
        if !self.validators.contains_key(definition) {
            assert!(self.text[self.definitions].get(definition).is_some(), "no definition {definition}");
            let schema = json!({
                "$schema": self.text["$schema"], "$ref": format!("#/{}/{definition}", self.definitions),
                self.definitions: self.text[self.definitions],
            });
            let validator = jsonschema::validator_for(&schema).expect("a schema");
            self.validators.insert(definition.to_owned(), validator);
        }
        let errors = self.validators[definition].iter_errors(message);
        let errors: Vec<String> = errors.map(|error| format!("{error} at {}", error.instance_path())).collect();
        (!errors.is_empty()).then(|| format!("{definition}: {}", errors.join("; ")))
    }
}

/// The definitions a message of ours must satisfy, with the part of it that must.
fn definitions(version: &str, message: &Value, asked: &BTreeMap<String, Value>) -> Vec<(&'static str, Value)> {
    let modern = version == "2026-07-28";
    let new = modern || version == "2025-11-25";
    if let Some(method) = message["method"].as_str() {
        let of_its_kind = match method {
            "notifications/progress" => "ProgressNotification",
            "notifications/tools/list_changed" => "ToolListChangedNotification",
            "notifications/subscriptions/acknowledged" => "SubscriptionsAcknowledgedNotification",
            "notifications/tasks/status" => "TaskStatusNotification",
            // The extension has no schema of its own.
            "notifications/tasks" => "JSONRPCNotification",
            other => panic!("we never say {other}"),
        };
        return vec![("JSONRPCNotification", message.clone()), (of_its_kind, message.clone())];
    }
    if let Some(error) = message.get("error") {
        let mut message = message.clone();
        if message["id"].is_null() {
            // JSON-RPC's own null has no place in the schemas; the newer ones let it be left out.
            if !new {
                return Vec::new();
            }
            message.as_object_mut().expect("an object").remove("id");
        }
        let kind = match error["code"].as_i64() {
            Some(-32022) if modern => "UnsupportedProtocolVersionError",
            Some(-32021) if modern => "MissingRequiredClientCapabilityError",
            _ if new => "JSONRPCErrorResponse",
            _ => "JSONRPCError",
        };
        return vec![(kind, message)];
    }
    let request = &asked[&message["id"].to_string()];
    let result = message["result"].clone();
    let envelope = if new { "JSONRPCResultResponse" } else { "JSONRPCResponse" };
    let mut all = vec![(envelope, message.clone())];
    let task = &request["params"]["task"];
    match request["method"].as_str().expect("a method") {
        "initialize" => all.push(("InitializeResult", result)),
        "ping" => all.push(("EmptyResult", result)),
        "tools/list" => all.push(("ListToolsResult", result)),
        "tools/call" if task.is_object() && !modern => all.push(("CreateTaskResult", result)),
        "tools/call" if result["resultType"] == "task" => all.push(("Result", result)),
        "tools/call" => all.push(("CallToolResult", result)),
        "server/discover" => all.push(("DiscoverResult", result)),
        "subscriptions/listen" => all.push(("SubscriptionsListenResult", result)),
        "tasks/get" | "tasks/cancel" | "tasks/update" if modern => {
            if result.get("result").is_some() {
                all.push(("CallToolResult", result["result"].clone()));
            }
            all.push(("Result", result));
        }
        "tasks/get" => all.push(("GetTaskResult", result)),
        "tasks/cancel" => all.push(("CancelTaskResult", result)),
        "tasks/list" => all.push(("ListTasksResult", result)),
        "tasks/result" => {
            all.push(("GetTaskPayloadResult", result.clone()));
            all.push(("CallToolResult", result));
        }
        other => panic!("{other} has no result"),
    }
    all
}

#[test]
fn every_kind_of_message_is_valid_by_the_official_schema_of_its_revision() {
    let given = std::env::var_os("PHONE_OPUS_MCP_SCHEMA").map(PathBuf::from);
    let dir = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/mcp-schema"));
    if !dir.join("2026-07-28.json").exists() {
        // Past the capture of the test's output, so that it is seen.
        let loud = format!("SKIPPED: no official schemas at {}; set PHONE_OPUS_MCP_SCHEMA.\n", dir.display());
        let _ = std::io::stderr().write_all(loud.as_bytes());
        return;
    }
    let mut kinds: BTreeMap<(String, &str), usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for name in NAMES {
        let version = &name[..10];
        let mut schema = Schema::read(&dir, version);
        let mut asked = BTreeMap::new();
        let text = std::fs::read_to_string(file(name)).expect("a transcript");
        for (number, line) in (1..).zip(text.lines()) {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let messages = match &line["message"] {
                Value::Array(batch) => batch.clone(),
                message => vec![message.clone()],
            };
            for message in messages {
                if line["to"] == "server" {
                    asked.insert(message["id"].to_string(), message);
                    continue;
                }
                // The transcript of subscriptions has one greeting of another revision.
                if name.ends_with("listen") && message["id"] == "hello" {
                    continue;
                }
                for (definition, part) in definitions(version, &message, &asked) {
                    *kinds.entry((version.to_owned(), definition)).or_default() += 1;
                    if let Some(error) = schema.against(definition, &part) {
                        wrong.push(format!("{name}, line {number}: {error}"));
                    }
                }
            }
        }
        // A check that lets everything pass would be none.
        assert!(schema.against("CallToolResult", &json!({"isError": 7})).is_some());
        assert!(schema.against("ListToolsResult", &json!({"tools": [{"name": 7}]})).is_some());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (kind, version) in [
        ("InitializeResult", "2024-11-05"),
        ("CallToolResult", "2024-11-05"),
        ("ProgressNotification", "2024-11-05"),
        ("JSONRPCError", "2025-06-18"),
        ("EmptyResult", "2025-03-26"),
        ("CreateTaskResult", "2025-11-25"),
        ("GetTaskResult", "2025-11-25"),
        ("CancelTaskResult", "2025-11-25"),
        ("ListTasksResult", "2025-11-25"),
        ("GetTaskPayloadResult", "2025-11-25"),
        ("DiscoverResult", "2026-07-28"),
        ("ListToolsResult", "2026-07-28"),
        ("UnsupportedProtocolVersionError", "2026-07-28"),
        ("MissingRequiredClientCapabilityError", "2026-07-28"),
        ("SubscriptionsAcknowledgedNotification", "2026-07-28"),
        ("ToolListChangedNotification", "2026-07-28"),
        ("SubscriptionsListenResult", "2026-07-28"),
    ] {
        assert!(kinds.contains_key(&(version.to_owned(), kind)), "no transcript of {version} has a {kind}");
    }
    println!("{} messages of {} kinds are valid", kinds.values().sum::<usize>(), kinds.len());
}
