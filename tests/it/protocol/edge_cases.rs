//! The edges of JSON-RPC and of both eras, as one table over the real binary: what goes in, and exactly what comes out.
//!
//! A row is given to a host of its own as one piece of input that then ends; whatever the host writes is compared as a
//! whole, so a line too many fails a row as a line too few does.
//!
//! Laws: L1, L11.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::process::Stdio;

use phone_opus::testkit::{PATIENCE, Rig, tried_program, until};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// What a request id gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Got {
    Error(i64),
    /// A result; of a tool, one that is no error.
    Result,
    /// A tool's error result.
    ToolError,
}

use Got::{Error, Result, ToolError};

/// An id as it was written, and what it got.
type Answer = (&'static str, Got);

const LEGACY: &[&str] = &["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
const BATCHLESS: &[&str] = &["2024-11-05", "2025-06-18", "2025-11-25", MODERN];
const BATCHES: &[&str] = &["2025-03-26"];
const NEWEST: &[&str] = &["2025-11-25", MODERN];
const OLD: &[&str] = &["2024-11-05", "2025-03-26", "2025-06-18"];
const ALL: &[&str] = &["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", MODERN];
const MODERN: &str = "2026-07-28";
const ONLY_MODERN: &[&str] = &[MODERN];
/// Nothing was said before the row.
const COLD: &[&str] = &["cold"];

struct Row {
    what: &'static str,
    eras: &'static [&'static str],
    input: Vec<u8>,
    want: Vec<Answer>,
}

fn row(
    what: &'static str,
    eras: &'static [&'static str],
    input: impl AsRef<[u8]>,
    want: impl IntoIterator<Item = Answer>,
) -> Row {
    let mut input = input.as_ref().to_vec();
    input.push(b'\n');
    Row { what, eras, input, want: want.into_iter().collect() }
}

/// A cheap request that both eras have. `@` becomes the envelope in the stateless era.
fn list(id: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/list","params":{{@}}}}"#)
}

fn request(method: &str, params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":9,"method":"{method}","params":{{{params}}}}}"#)
}

fn call(tool: &str, more: &str) -> String {
    request("tools/call", &format!(r#""name":"{tool}"{more},@"#))
}

const TASKS: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"extensions":{"io.modelcontextprotocol/tasks":{}}}}"#;
const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

fn lines_that_are_no_messages() -> Vec<Row> {
    let mut pretty = list("9").replace(',', ",\n");
    pretty.push('\n');
    vec![
        row("no JSON", ALL, "no JSON", [("null", Error(-32700))]),
        row("cut-off JSON", ALL, r#"{"jsonrpc":"2.0","id":9,"meth"#, [("null", Error(-32700))]),
        row("NUL bytes", ALL, b"\0\0\0", [("null", Error(-32700))]),
        row("hopeless bytes", ALL, b"{\"jsonrpc\":\"2.0\",\"id\":\xff\xfe}", [("null", Error(-32700))]),
        row("no JSON before anything was answered", COLD, "no JSON", []),
        row("a number", ALL, "7", [("null", Error(-32600))]),
        row("a string", ALL, "\"x\"", [("null", Error(-32600))]),
        row("null", ALL, "null", [("null", Error(-32600))]),
        row("true", ALL, "true", [("null", Error(-32600))]),
        row("a request spread over lines", ALL, pretty, [("null", Error(-32700)); 4]),
        row(
            "a request after all that",
            ALL,
            format!("no JSON\n7\n{}", list("9")),
            [("null", Error(-32700)), ("null", Error(-32600)), ("9", Result)],
        ),
    ]
}

fn lines_that_need_mending() -> Vec<Row> {
    let bad_utf8 =
        [br#"{"jsonrpc":"2.0","id":9,"method":"tools/list","x":""#.as_slice(), b"\xff\xfe", br#"","params":{@}}"#];
    let deep = format!(r#"{},"x":{}{}}}"#, &list("9")[..list("9").len() - 1], "[".repeat(100_000), "]".repeat(100_000));
    let deep_argument = format!(r#","arguments":{{"limit":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let long_with_id = format!(r#"{{"jsonrpc":"2.0","id":9,"method":"x","params":{{"x":"{}"}}}}"#, "x".repeat(9 << 20));
    let long_without = format!(r#"{{"jsonrpc":"2.0","method":"x","params":{{"x":"{}"}},"id":9}}"#, "x".repeat(9 << 20));
    vec![
        row("bytes that are no UTF-8", ALL, bad_utf8.concat(), [("9", Result)]),
        row("a lone surrogate", NEWEST, call("consult_job", r#","arguments":{"job_id":"\ud83d"}"#), [("9", ToolError)]),
        row("a lone surrogate in an id", ALL, list(r#""\ud83d""#), [(r#""\ud83d""#, Result)]),
        row("blank lines, blanks around, CR LF", ALL, format!("\n  \t\r\n  {}  \r\n\n", list("9")), [("9", Result)]),
        row("a byte order mark", ALL, format!("\u{feff}{}", list("9")), [("9", Result)]),
        row("a line over the limit", ALL, long_with_id, [("9", Error(-32600))]),
        row("a line over the limit without an id in its head", ALL, long_without, [("null", Error(-32600))]),
        row(
            "a line over the limit, and the next one",
            ALL,
            format!("{}\n{}", "x".repeat(9 << 20), list("9")),
            [("null", Error(-32600)), ("9", Result)],
        ),
        row(
            "very deep nesting where nobody looks",
            ALL,
            format!("{deep}\n{}", list("8")),
            [("8", Result), ("9", Result)],
        ),
        row("very deep nesting in arguments", NEWEST, call("consult_jobs", &deep_argument), [("9", ToolError)]),
        row(
            "very deep nesting that is cut off",
            ALL,
            format!("{}\n{}", "[".repeat(100_000), list("9")),
            [("null", Error(-32700)), ("9", Result)],
        ),
        row(
            "a number out of range",
            NEWEST,
            call("consult_jobs", r#","arguments":{"limit":1e999}"#),
            [("9", ToolError)],
        ),
        row(
            "a number out of range, older",
            OLD,
            call("consult_jobs", r#","arguments":{"limit":1e999}"#),
            [("9", Error(-32602))],
        ),
    ]
}

fn ids() -> Vec<Row> {
    let long: &'static str = Box::leak(format!("\"{}\"", "i".repeat(10_000)).into_boxed_str());
    let beyond: &'static str = Box::leak(format!("\"{}\"", "i".repeat(100_000)).into_boxed_str());
    let mut rows = vec![
        row("7 and \"7\"", ALL, format!("{}\n{}", list("7"), list("\"7\"")), [("7", Result), ("\"7\"", Result)]),
        row(
            "an id in flight",
            NEWEST,
            format!("{0}\n{0}", call("health_snapshot", "")),
            [("9", Error(-32600)), ("9", Result)],
        ),
        row("an id that is free again", ALL, format!("{0}\n{0}", list("9")), [("9", Result), ("9", Result)]),
        row("an id beyond reason", ALL, list(beyond), [(beyond, Error(-32600))]),
    ];
    for id in ["null", "true", "{}", "[9]"] {
        rows.push(row("an id that is none", ALL, list(id), [("null", Error(-32600))]));
    }
    for id in [
        "0",
        "-1",
        "-0",
        "7.0",
        "1e3",
        "9007199254740993",
        "123456789012345678901234567890",
        "\"\"",
        "\"é\"",
        r#""\u00e9\n""#,
        long,
    ] {
        rows.push(row("an id as it was written", ALL, list(id), [(id, Result)]));
    }
    rows
}

fn envelopes() -> Vec<Row> {
    let mut rows = vec![
        row("no jsonrpc", ALL, r#"{"id":9,"method":"tools/list","params":{@}}"#, [("9", Error(-32600))]),
        row("another jsonrpc", ALL, r#"{"jsonrpc":"1.0","id":9,"method":"tools/list"}"#, [("9", Error(-32600))]),
        row("a method that is no string", ALL, r#"{"jsonrpc":"2.0","id":9,"method":7}"#, [("9", Error(-32600))]),
        row("no method", ALL, r#"{"jsonrpc":"2.0","id":9}"#, [("9", Error(-32600))]),
        row(
            "method and result",
            ALL,
            r#"{"jsonrpc":"2.0","id":9,"method":"ping","result":{}}"#,
            [("9", Error(-32600))],
        ),
        row("params null", LEGACY, r#"{"jsonrpc":"2.0","id":9,"method":"tools/list","params":null}"#, [("9", Result)]),
        row("params missing", LEGACY, r#"{"jsonrpc":"2.0","id":9,"method":"tools/list"}"#, [("9", Result)]),
        row(
            "no envelope and no handshake",
            COLD,
            r#"{"jsonrpc":"2.0","id":9,"method":"tools/list"}"#,
            [("9", Error(-32602))],
        ),
        row(
            "unknown members",
            ALL,
            r#"{"jsonrpc":"2.0","id":9,"method":"tools/list","x":{},"params":{"y":[],@}}"#,
            [("9", Result)],
        ),
        row(
            "members twice",
            ALL,
            r#"{"jsonrpc":"2.0","id":1,"id":9,"method":"x","method":"tools/list","params":{@}}"#,
            [("9", Result)],
        ),
        row("an unknown notification", ALL, r#"{"jsonrpc":"2.0","method":"notifications/unheard_of"}"#, []),
        row(
            "a request without an id",
            ALL,
            r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"consult","arguments":{"prompt":"x"},@}}"#,
            [],
        ),
        row("a response", ALL, r#"{"jsonrpc":"2.0","id":9,"result":{}}"#, []),
        row("an error", ALL, r#"{"jsonrpc":"2.0","id":9,"error":{"code":1,"message":"x"}}"#, []),
        row("an error without an id", ALL, r#"{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"x"}}"#, []),
    ];
    for params in ["[]", "\"x\"", "7"] {
        let line = format!(r#"{{"jsonrpc":"2.0","id":9,"method":"tools/list","params":{params}}}"#);
        rows.push(row("params that are no object", ALL, line, [("9", Error(-32602))]));
    }
    for odd in ["{}", "null", "[9]", "\"nobody\"", "999", "true"] {
        let line = format!(r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{odd}}}}}"#);
        rows.push(row("a cancel of nothing", ALL, line, []));
    }
    rows.push(row("a cancel without params", ALL, r#"{"jsonrpc":"2.0","method":"notifications/cancelled"}"#, []));
    rows
}

fn methods() -> Vec<Row> {
    let mut rows = Vec::new();
    for method in ["nope", "prompts/list", "resources/list", "completion/complete", "logging/setLevel", "roots/list"] {
        rows.push(row("a method that we do not have", ALL, request(method, "@"), [("9", Error(-32601))]));
    }
    for method in ["ping", "initialize", "tasks/result", "tasks/list", "resources/subscribe"] {
        rows.push(row("a method the stateless era has not", ONLY_MODERN, request(method, "@"), [("9", Error(-32601))]));
    }
    for method in ["subscriptions/listen", "tasks/update"] {
        rows.push(row("a method only the stateless era has", LEGACY, request(method, ""), [("9", Error(-32601))]));
    }
    for method in ["tasks/get", "tasks/result", "tasks/list", "tasks/cancel"] {
        rows.push(row("tasks before there were any", OLD, request(method, ""), [("9", Error(-32601))]));
    }
    let ping = r#"{"jsonrpc":"2.0","id":9,"method":"ping"}"#;
    let initialize = |rest: &str| request("initialize", &format!(r#""protocolVersion":"2025-06-18"{rest}"#));
    rows.extend([
        row("a ping before everything", COLD, ping, [("9", Result)]),
        row("a ping", LEGACY, ping, [("9", Result)]),
        row("a ping without an envelope beside the stateless era", ONLY_MODERN, ping, [("9", Result)]),
        row("a second initialize", LEGACY, initialize(""), [("9", Result)]),
        row("an initialize beside the stateless era", ONLY_MODERN, initialize(""), [("9", Result)]),
        row("an initialize in an envelope that names a version", ONLY_MODERN, initialize(",@"), [("9", Result)]),
        row("an initialize without a version", COLD, request("initialize", ""), [("9", Error(-32602))]),
        row("an unknown version", COLD, request("initialize", r#""protocolVersion":"1999-01-01""#), [("9", Result)]),
        row("a cursor that is not ours", ALL, request("tools/list", r#""cursor":"x",@"#), [("9", Error(-32602))]),
        row("a cursor that is no string", ALL, request("tools/list", r#""cursor":7,@"#), [("9", Error(-32602))]),
        row("an unknown tool", ALL, call("nope", ""), [("9", Error(-32602))]),
        row("a call without a name", ALL, request("tools/call", "@"), [("9", Error(-32602))]),
        row("a name that is no string", ALL, request("tools/call", r#""name":7,@"#), [("9", Error(-32602))]),
        row("arguments that are no object", ALL, call("health_snapshot", r#","arguments":[]"#), [("9", Error(-32602))]),
        row("arguments null", ALL, call("health_snapshot", r#","arguments":null"#), [("9", Result)]),
        row("no arguments", ALL, call("health_snapshot", ""), [("9", Result)]),
        row("bad arguments", OLD, call("consult_jobs", r#","arguments":{"limit":0}"#), [("9", Error(-32602))]),
        row("bad arguments", NEWEST, call("consult_jobs", r#","arguments":{"limit":0}"#), [("9", ToolError)]),
    ]);
    for token in ["null", "{}", "[]", "true"] {
        let meta = format!(
            r#""_meta":{{"progressToken":{token},"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{{}}}}"#
        );
        let line = request("tools/call", &format!(r#""name":"health_snapshot",{meta}"#));
        rows.push(row("a progress token that is none", ALL, line, [("9", Result)]));
    }
    rows
}

fn batches() -> Vec<Row> {
    let two = format!("[{},{}]", list("8"), list("9"));
    let notifications = r#"[{"jsonrpc":"2.0","method":"notifications/x"},{"jsonrpc":"2.0","id":1,"result":{}}]"#;
    let mixed = format!(
        r#"[7,{},{},{{"jsonrpc":"2.0","id":6,"method":"initialize","params":{{"protocolVersion":"2025-03-26"}}}},[],{}]"#,
        list("8"),
        r#"{"jsonrpc":"2.0","method":"notifications/x"}"#,
        call("health_snapshot", ""),
    );
    vec![
        row("an array", BATCHLESS, two.clone(), [("null", Error(-32600))]),
        row("an array before everything", COLD, two.clone(), [("null", Error(-32600))]),
        row("a batch", BATCHES, two, [("batch", Result), ("8", Result), ("9", Result)]),
        row("an empty batch", BATCHES, "[]", [("null", Error(-32600))]),
        row("a batch that asks for nothing", BATCHES, notifications, []),
        row(
            "a batch of everything",
            BATCHES,
            mixed,
            [
                ("batch", Result),
                ("null", Error(-32600)),
                ("8", Result),
                ("6", Error(-32600)),
                ("null", Error(-32600)),
                ("9", Result),
            ],
        ),
    ]
}

/// An envelope of these members, in this order of checks: shape, method, envelope, version, parameters, capability.
fn order_of_checks() -> Vec<Row> {
    let meta =
        |version: &str, rest: &str| format!(r#""_meta":{{"io.modelcontextprotocol/protocolVersion":{version}{rest}}}"#);
    let can = r#","io.modelcontextprotocol/clientCapabilities":{}"#;
    let mut rows = Vec::new();
    for version in ["\"2099-01-01\"", "\"2025-06-18\""] {
        for (method, rest, want) in [
            ("server/discover", "", -32022),
            ("server/discover", can, -32022),
            ("tools/list", can, -32022),
            ("tools/list", "", -32602),
            ("subscriptions/listen", can, -32022),
            ("nope", can, -32601),
            ("ping", can, -32601),
        ] {
            rows.push(row(
                "a version that has no envelope",
                COLD,
                request(method, &meta(version, rest)),
                [("9", Error(want))],
            ));
        }
    }
    let good = "\"2026-07-28\"";
    for (rest, want) in [
        ("", Error(-32602)),
        (r#","io.modelcontextprotocol/clientCapabilities":7"#, Error(-32602)),
        (
            r#","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"x"}"#,
            Error(-32602),
        ),
        (r#","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":7"#, Error(-32602)),
        (
            r#","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"x","version":"1"}"#,
            Result,
        ),
        (can, Result),
    ] {
        for method in ["server/discover", "tools/list"] {
            rows.push(row("an envelope", COLD, request(method, &meta(good, rest)), [("9", want)]));
        }
    }
    let task = format!(r#""taskId":"{NOBODY}""#);
    rows.extend([
        row("a version that is no string", COLD, request("tools/list", &meta("7", can)), [("9", Error(-32602))]),
        row("_meta that is no object", ALL, request("tools/list", r#""_meta":7"#), [("9", Error(-32602))]),
        row("an envelope before its parameters", COLD, request("tools/call", &meta(good, "")), [("9", Error(-32602))]),
        row("a capability before parameters", COLD, request("tasks/get", &meta(good, can)), [("9", Error(-32021))]),
    ]);
    for method in ["tasks/get", "tasks/update", "tasks/cancel"] {
        rows.push(row(
            "tasks without the extension",
            ONLY_MODERN,
            request(method, &format!("{task},@")),
            [("9", Error(-32021))],
        ));
        rows.push(row("a task nobody has", COLD, request(method, &format!("{task},{TASKS}")), [("9", Error(-32602))]));
        rows.push(row(
            "a task that is no id",
            COLD,
            request(method, &format!(r#""taskId":"x",{TASKS}"#)),
            [("9", Error(-32602))],
        ));
    }
    for method in ["tasks/get", "tasks/result", "tasks/cancel"] {
        rows.push(row("a task nobody has", &["2025-11-25"], request(method, &task), [("9", Error(-32602))]));
    }
    rows.extend([
        row("no tasks", &["2025-11-25"], request("tasks/list", ""), [("9", Result)]),
        row(
            "a cursor of tasks that is not ours",
            &["2025-11-25"],
            request("tasks/list", r#""cursor":"x""#),
            [("9", Error(-32602))],
        ),
        row(
            "a task of a tool that has none",
            &["2025-11-25"],
            call("health_snapshot", r#","task":{}"#),
            [("9", Error(-32601))],
        ),
        row(
            "a task that cannot begin",
            &["2025-11-25"],
            call("consult", r#","task":{},"arguments":{"prompt":7}"#),
            [("9", Error(-32602))],
        ),
        row(
            "a task before there were any is not looked at",
            OLD,
            call("health_snapshot", r#","task":{}"#),
            [("9", Result)],
        ),
        row(
            "a task the stateless era does not ask for is not looked at",
            ONLY_MODERN,
            call("health_snapshot", r#","task":7"#),
            [("9", Result)],
        ),
        row(
            "a subscription to tasks without the extension",
            ONLY_MODERN,
            request("subscriptions/listen", &format!(r#""notifications":{{"taskIds":["{NOBODY}"]}},@"#)),
            [("9", Error(-32021))],
        ),
        row("a subscription to nothing", ONLY_MODERN, request("subscriptions/listen", "@"), [("9", Error(-32602))]),
    ]);
    rows
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

fn answer(text: &str) -> std::result::Result<(String, Got), String> {
    let head: Head<'_> = serde_json::from_str(text).map_err(|error| format!("{error} in {text:.300}"))?;
    // The id of one row is half of a surrogate pair, which this reader would refuse.
    let readable = text.replace(r"\ud83d", r"\ufffd");
    let message: Value = serde_json::from_str(&readable).map_err(|error| format!("{error} in {text:.300}"))?;
    let got = match (message["error"]["code"].as_i64(), &message["result"]) {
        (Some(code), Value::Null) => Error(code),
        (None, result) if result["isError"] == true => ToolError,
        (None, Value::Object(_)) => Result,
        _ => return Err(format!("no answer: {text:.300}")),
    };
    Ok((head.id.map_or("null", RawValue::get).to_owned(), got))
}

/// A host whose streams are read and written as bytes.
fn piped(rig: &Rig) -> Command {
    let mut host = rig.command(&["mcp", "serve"]);
    host.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    host
}

/// What a host answers to a piece of input that then ends.
async fn answers(rig: &Rig, input: &[u8]) -> std::result::Result<Vec<(String, Got)>, String> {
    let mut host = piped(rig).spawn().map_err(|error| error.to_string())?;
    let (mut stdin, mut stdout) = (host.stdin.take().expect("piped"), host.stdout.take().expect("piped"));
    let writing = async move {
        stdin.write_all(input).await.map_err(|error| format!("the host does not read: {error}"))?;
        stdin.shutdown().await.map_err(|error| error.to_string())
    };
    let mut output = String::new();
    let both = async {
        let (written, read) = tokio::join!(writing, stdout.read_to_string(&mut output));
        written.and(read.map_err(|error| error.to_string()))
    };
    tokio::time::timeout(PATIENCE, both).await.map_err(|_| "the host does not end".to_owned())??;
    let status = host.wait().await.map_err(|error| error.to_string())?;
    if !status.success() {
        return Err(format!("the host ended with {status}"));
    }
    let mut got = Vec::new();
    for line in output.lines() {
        if line.starts_with('[') {
            let members: Vec<&RawValue> = serde_json::from_str(line).map_err(|error| error.to_string())?;
            got.push(("batch".to_owned(), Result));
            for member in members {
                got.push(answer(member.get())?);
            }
        } else {
            got.push(answer(line)?);
        }
    }
    Ok(got)
}

/// What is said before a row, and the row in its era.
fn input(row: &Row, era: &str) -> Vec<u8> {
    let envelope = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;
    let (before, meta) = match era {
        "cold" => (String::new(), ""),
        MODERN => (request("server/discover", envelope).replace(":9,", ":\"before\",") + "\n", envelope),
        version => {
            let hello = request("initialize", &format!(r#""protocolVersion":"{version}","capabilities":{{}}"#));
            let ready = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
            (format!("{}\n{ready}\n", hello.replace(":9,", ":\"before\",")), r#""_meta":{}"#)
        }
    };
    let mut input = before.into_bytes();
    let mut rest = &row.input[..];
    while let Some(at) = rest.iter().position(|byte| *byte == b'@') {
        input.extend_from_slice(&rest[..at]);
        input.extend_from_slice(meta.as_bytes());
        rest = &rest[at + 1..];
    }
    input.extend_from_slice(rest);
    input
}

#[tokio::test]
async fn every_row_of_the_table_gets_exactly_what_it_says_in_each_era() {
    let rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")));
    let tables = [
        lines_that_are_no_messages(),
        lines_that_need_mending(),
        ids(),
        envelopes(),
        methods(),
        batches(),
        order_of_checks(),
    ];
    let (mut wrong, mut rows) = (Vec::new(), 0);
    for row in tables.iter().flatten() {
        for era in row.eras {
            rows += 1;
            let shown = String::from_utf8_lossy(&row.input[..row.input.len().min(200)]).into_owned();
            match answers(&rig, &input(row, era)).await {
                Ok(mut got) => {
                    got.retain(|(id, _)| id != "\"before\"");
                    got.sort();
                    let mut want: Vec<(String, Got)> =
                        row.want.iter().map(|(id, got)| ((*id).to_owned(), *got)).collect();
                    want.sort();
                    if got != want {
                        wrong.push(format!("{} in {era}: {got:?} instead of {want:?} for {shown}", row.what));
                    }
                }
                Err(error) => wrong.push(format!("{} in {era}: {error} for {shown}", row.what)),
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {rows} rows:\n{}", wrong.len(), wrong.join("\n"));
    assert!(rows > 300, "{rows} rows");
    println!("{rows} rows held");
    // What was no request, or was refused, has run nothing.
    rig.expect_runs(0);
    assert!(rig.jobs().await.is_empty());
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_last_line_without_an_end_is_served() {
    let rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")));
    let got = answers(&rig, br#"{"jsonrpc":"2.0","id":9,"method":"ping"}"#).await;
    assert_eq!(got, Ok(vec![("9".to_owned(), Result)]));
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn complaints_about_lines_that_are_no_messages_are_rationed() {
    let rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")));
    let ping = r#"{"jsonrpc":"2.0","id":9,"method":"ping"}"#;
    let got =
        answers(&rig, format!("{ping}\n{}{ping}\n", "nonsense\n".repeat(10_000)).as_bytes()).await.expect("answers");
    let complaints = got.iter().filter(|(id, _)| id == "null").count();
    // Five a second; on a slow machine ten thousand lines may take more than one.
    assert!((1..=50).contains(&complaints), "{complaints}");
    assert_eq!(got.len() - complaints, 2, "both pings are answered");
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_client_that_reads_no_more_is_gone() {
    let rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")));
    let mut host = piped(&rig).spawn().expect("it starts");
    drop(host.stdout.take());
    let mut stdin = host.stdin.take().expect("piped");
    // The input stays open: what ends the session is the answer nobody takes.
    let _ = stdin.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":9,\"method\":\"ping\"}\n").await;
    let status = until("the host's end", async || host.try_wait().expect("its state")).await;
    assert!(status.success(), "{status}");
    rig.stop_and_check_invariants([]).await;
}
