//! What both floors are made of: lines in, batches out, and the answer to each line.
//!
//! Owns: one read buffer, one reply buffer, every byte a floor says.
//! May not know: validation, timeouts, concurrency, any state of a call beyond its line.

use std::borrow::Cow;
use std::io;
use std::os::fd::AsFd;

use serde::Deserialize;
use serde_json::value::RawValue;

/// Bytes asked of one read: what a pipe holds on Linux.
const READ: usize = 64 * 1024;

/// The longest line taken unless `BENCH_MAX_LINE` says otherwise: the same as phone-opus takes.
const MAX_LINE: usize = 8 * 1024 * 1024;

/// The three tools every server here offers.
const TOOLS: &str = concat!(
    r#"{"name":"echo","description":"Returns the text.","inputSchema":{"type":"object","properties":{"text":{"type":"string"}},"required":["text"]}},"#,
    r#"{"name":"sink","description":"Returns the length of the text.","inputSchema":{"type":"object","properties":{"text":{"type":"string"}},"required":["text"]}},"#,
    r#"{"name":"blob","description":"Returns a text of that size.","inputSchema":{"type":"object","properties":{"size":{"type":"integer"}},"required":["size"]}}"#
);
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
    size: Option<usize>,
}

/// What is done with lines.
pub(crate) trait Lines {
    /// One whole line, without its newline.
    fn line(&mut self, line: &[u8]);
    /// A line is longer than is taken; it is said once.
    fn too_long(&mut self);
    /// No further whole line has been read: what was collected goes out.
    fn written(&mut self) -> io::Result<()>;
}

/// The longest line this server takes.
pub(crate) fn max_line() -> usize {
    std::env::var("BENCH_MAX_LINE").ok().and_then(|text| text.parse().ok()).unwrap_or(MAX_LINE)
}

/// Reads lines until end of input. Nothing is read before what was collected has gone out.
pub(crate) fn pump(from: impl AsFd, max_line: usize, lines: &mut impl Lines) -> io::Result<()> {
    let mut input: Vec<u8> = Vec::with_capacity(READ);
    // Leading bytes of `input` already known to hold no newline.
    let mut searched = 0;
    let mut skipping = false;
    loop {
        let mut start = 0;
        while let Some(offset) = memchr::memchr(b'\n', &input[searched..]) {
            let newline = searched + offset;
            if skipping {
                skipping = false;
            } else {
                lines.line(&input[start..newline]);
            }
            start = newline + 1;
            searched = start;
        }
        if input.len() - start > max_line {
            if !skipping {
                lines.too_long();
            }
            skipping = true;
        }
        lines.written()?;
        if start == input.len() || skipping {
            input.clear();
        } else if start > 0 {
            input.drain(..start);
        }
        searched = input.len();
        input.reserve(READ);
        loop {
            match rustix::io::read(&from, rustix::buffer::spare_capacity(&mut input)) {
                Ok(0) => return Ok(()),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Writes everything.
pub(crate) fn write_all(fd: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Answers every line itself: all that a floor of one process is.
pub(crate) struct Answering<W> {
    to: W,
    replies: Vec<u8>,
}

impl<W: AsFd> Answering<W> {
    /// With nothing to say there yet.
    pub(crate) fn to(to: W) -> Self {
        Self { to, replies: Vec::with_capacity(READ) }
    }
}

impl<W: AsFd> Lines for Answering<W> {
    fn line(&mut self, line: &[u8]) {
        answer(line, &mut self.replies);
    }

    fn too_long(&mut self) {
        too_long(&mut self.replies);
    }

    fn written(&mut self) -> io::Result<()> {
        write_all(&self.to, &self.replies)?;
        self.replies.clear();
        Ok(())
    }
}

/// Appends what a line over the limit is answered with.
pub(crate) fn too_long(out: &mut Vec<u8>) {
    error(b"null", -32600, "the line is too long", out);
}

/// Appends the reply to one line, if it gets one.
pub(crate) fn answer(line: &[u8], out: &mut Vec<u8>) {
    let Ok(message) = serde_json::from_slice::<Message<'_>>(line) else {
        return error(b"null", -32700, "this is not a JSON-RPC message", out);
    };
    let (Some(id), Some(method)) = (message.id, message.method) else { return };
    let id = id.get().as_bytes();
    let params = message.params;
    let modern = params.as_ref().is_some_and(|params| params.meta.is_some());
    match &*method {
        "tools/call" => {
            let name = params.as_ref().and_then(|params| params.name.as_deref());
            let arguments = params.as_ref().and_then(|params| params.arguments.as_ref());
            let text = arguments.and_then(|arguments| arguments.text).map(RawValue::get);
            match (name, text, arguments.and_then(|arguments| arguments.size)) {
                (Some("echo"), Some(text), _) => called(id, text.as_bytes(), modern, out),
                (Some("sink"), Some(text), _) => match serde_json::from_str::<Cow<'_, str>>(text) {
                    Ok(text) => called(id, format!("\"{}\"", text.len()).as_bytes(), modern, out),
                    Err(_) => error(id, -32602, "the text is none", out),
                },
                (Some("blob"), _, Some(size)) => {
                    called(id, format!("\"{}\"", "x".repeat(size)).as_bytes(), modern, out);
                }
                (Some("echo" | "sink" | "blob"), ..) => error(id, -32602, "an argument is missing", out),
                _ => error(id, -32602, "no such tool", out),
            }
        }
        "ping" => {
            head(id, out);
            out.extend_from_slice(b"{}}\n");
        }
        "tools/list" => {
            head(id, out);
            out.extend_from_slice(br#"{"tools":["#);
            out.extend_from_slice(TOOLS.as_bytes());
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

/// `text` is a JSON string.
fn called(id: &[u8], text: &[u8], modern: bool, out: &mut Vec<u8>) {
    head(id, out);
    out.extend_from_slice(br#"{"content":[{"type":"text","text":"#);
    out.extend_from_slice(text);
    out.extend_from_slice(br#"}],"isError":false"#);
    tail(modern, out);
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
