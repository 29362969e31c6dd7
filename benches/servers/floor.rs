//! `floor`: about the least an MCP server over stdio can do and still be one. The yardstick of `side_by_side`.
//!
//! Owns: one thread, one read buffer, one reply buffer.
//! May not know: validation, timeouts, concurrency, any state of a call beyond its line.
//! Invariants:
//! 1. Each line is parsed once, into borrowed slices; the echoed text is copied as it stood, escapes included.
//! 2. Replies are written when the read buffer holds no further whole line, in one write, and not before.
//! 3. No reading while replies are unwritten: a client that does not read stalls itself, and memory does not grow.

use std::borrow::Cow;
use std::io;
use std::process::ExitCode;

use serde::Deserialize;
use serde_json::value::RawValue;

/// Bytes asked of one read: what a pipe holds on Linux.
const READ: usize = 64 * 1024;

/// The longest line taken unless `BENCH_MAX_LINE` says otherwise: the same as phone-opus takes.
const MAX_LINE: usize = 8 * 1024 * 1024;

const TOOL: &str = r#"{"name":"echo","description":"Returns the text.","inputSchema":{"type":"object","properties":{"text":{"type":"string"}},"required":["text"]}}"#;
/// Versions a handshake may agree on; the newest when the client wants another.
const LEGACY: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
const SERVER: &str = r#"{"name":"floor","version":"0"}"#;
const MODERN_TAIL: &str =
    r#","resultType":"complete","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"floor","version":"0"}}}"#;

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    params: Option<Params<'a>>,
}

#[derive(Deserialize)]
struct Params<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    arguments: Option<Arguments<'a>>,
    #[serde(borrow, rename = "protocolVersion")]
    protocol_version: Option<Cow<'a, str>>,
    /// Its presence is what tells the eras apart.
    #[serde(borrow, rename = "_meta")]
    meta: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Arguments<'a> {
    #[serde(borrow)]
    text: Option<&'a RawValue>,
}

fn main() -> ExitCode {
    let max_line = std::env::var("BENCH_MAX_LINE").ok().and_then(|text| text.parse().ok()).unwrap_or(MAX_LINE);
    match serve(max_line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Reads and answers until end of input.
fn serve(max_line: usize) -> io::Result<()> {
    let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let mut input: Vec<u8> = Vec::with_capacity(READ);
    // Leading bytes of `input` already known to hold no newline.
    let mut searched = 0;
    let mut skipping = false;
    let mut replies = Vec::with_capacity(READ);
    loop {
        let mut start = 0;
        while let Some(offset) = memchr::memchr(b'\n', &input[searched..]) {
            let newline = searched + offset;
            if skipping {
                skipping = false;
            } else {
                answer(&input[start..newline], &mut replies);
            }
            start = newline + 1;
            searched = start;
        }
        if input.len() - start > max_line {
            if !skipping {
                error(b"null", -32600, "the line is too long", &mut replies);
            }
            skipping = true;
        }
        write_all(stdout, &replies)?;
        replies.clear();
        if start == input.len() || skipping {
            input.clear();
        } else if start > 0 {
            input.drain(..start);
        }
        searched = input.len();
        input.reserve(READ);
        loop {
            match rustix::io::read(stdin, rustix::buffer::spare_capacity(&mut input)) {
                Ok(0) => return Ok(()),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn write_all(fd: impl std::os::fd::AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Appends the reply to one line, if it gets one.
fn answer(line: &[u8], out: &mut Vec<u8>) {
    let Ok(message) = serde_json::from_slice::<Message<'_>>(line) else {
        return error(b"null", -32700, "this is not a JSON-RPC message", out);
    };
    let (Some(id), Some(method)) = (message.id, message.method) else { return };
    let id = id.get().as_bytes();
    let params = message.params;
    let modern = params.as_ref().is_some_and(|params| params.meta.is_some());
    match &*method {
        "tools/call" => {
            if params.as_ref().and_then(|params| params.name.as_deref()) != Some("echo") {
                return error(id, -32602, "no such tool", out);
            }
            let Some(text) = params.and_then(|params| params.arguments).and_then(|arguments| arguments.text) else {
                return error(id, -32602, "echo wants a text", out);
            };
            head(id, out);
            out.extend_from_slice(br#"{"content":[{"type":"text","text":"#);
            out.extend_from_slice(text.get().as_bytes());
            out.extend_from_slice(br#"}],"isError":false"#);
            tail(modern, out);
        }
        "ping" => {
            head(id, out);
            out.extend_from_slice(b"{}}\n");
        }
        "tools/list" => {
            head(id, out);
            out.extend_from_slice(br#"{"tools":["#);
            out.extend_from_slice(TOOL.as_bytes());
            out.extend_from_slice(b"]");
            if modern {
                out.extend_from_slice(br#","ttlMs":0,"cacheScope":"private""#);
            }
            tail(modern, out);
        }
        "initialize" => {
            let asked = params.and_then(|params| params.protocol_version);
            let version = asked.as_deref().filter(|asked| LEGACY.contains(asked)).unwrap_or("2025-11-25");
            head(id, out);
            out.extend_from_slice(br#"{"protocolVersion":""#);
            out.extend_from_slice(version.as_bytes());
            out.extend_from_slice(br#"","capabilities":{"tools":{}},"serverInfo":"#);
            out.extend_from_slice(SERVER.as_bytes());
            tail(false, out);
        }
        "server/discover" => {
            head(id, out);
            out.extend_from_slice(
                br#"{"supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"ttlMs":0,"cacheScope":"private""#,
            );
            tail(true, out);
        }
        _ => error(id, -32601, "no such method", out),
    }
}

fn head(id: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
    out.extend_from_slice(id);
    out.extend_from_slice(br#","result":"#);
}

/// Closes the result and the message.
fn tail(modern: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(if modern { MODERN_TAIL.as_bytes() } else { b"}" });
    out.extend_from_slice(b"}\n");
}

fn error(id: &[u8], code: i32, message: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
    out.extend_from_slice(id);
    out.extend_from_slice(format!(r#","error":{{"code":{code},"message":"{message}"}}}}"#).as_bytes());
    out.push(b'\n');
}
