//! Every byte of a message we send, and the one place where faults become wire errors.
//!
//! Invariants: (1) each public function appends exactly one whole line, newline included; (2) an id goes out as it came in.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;

use super::envelope::IdToken;
use super::version::Version;
use crate::base::fault::{Fault, FaultClass, FaultCode};
use crate::base::ids::JobId;

/// Longest line we send. Several clients close the connection at 10 MiB and more, and lose the call.
pub const LINE_MOST: usize = 8 * 1024 * 1024;

/// What a tool gives back.
#[derive(Debug, Clone, Default)]
pub struct ToolReply {
    /// The text block.
    pub text: ReplyText,
    /// The same, as a JSON object's text.
    pub structured: Option<String>,
    /// Why it is an error result.
    pub fault: Option<FaultCode>,
    /// The job it is about, for telemetry.
    pub job: Option<JobId>,
    /// Whether it tells how that job ended. Once it is written, the job counts as read.
    pub tells_end: bool,
    /// Further jobs whose end it tells: those of a reply that is about several.
    pub ends: Vec<JobId>,
    /// The directory it was about, for telemetry.
    pub path_hint: Option<String>,
}

/// The text of a reply.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ReplyText {
    /// Text, to be written as a JSON string.
    Plain(String),
    /// A JSON string as it is to be written, quotes included: what came in can go out without being decoded.
    Json(Bytes),
}

impl Default for ReplyText {
    fn default() -> Self {
        Self::Plain(String::new())
    }
}

impl ToolReply {
    /// A plain text answer.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: ReplyText::Plain(text.into()), ..Self::default() }
    }

    /// An error result: one plain sentence, and the fault record as structured content.
    #[must_use]
    pub fn fault(fault: &Fault) -> Self {
        let structured = serde_json::json!({ "status": "error", "fault": fault }).to_string();
        Self {
            text: ReplyText::Plain(fault.to_string()),
            structured: Some(structured),
            fault: Some(fault.code),
            job: fault.job_id,
            ..Self::default()
        }
    }
}

/// Who we say we are.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The server's name.
    pub name: &'static str,
    pub version: &'static str,
    /// When to use us, for the model; left out when empty.
    pub instructions: &'static str,
    modern_tail: String,
    /// The member of `_meta` that says who we are, in the stateless era.
    server_info: String,
}

impl Identity {
    /// An identity; the instructions stay under 600 characters because every session of every user pays for them.
    #[must_use]
    pub fn new(name: &'static str, version: &'static str, instructions: &'static str) -> Self {
        let server_info =
            format!("\"io.modelcontextprotocol/serverInfo\":{{\"name\":\"{name}\",\"version\":\"{version}\"}}");
        let modern_tail = format!(",\"resultType\":\"complete\",\"_meta\":{{{server_info}}}}}}}\n");
        Self { name, version, instructions, modern_tail, server_info }
    }

    /// Ends a result of the stateless era.
    pub(super) fn tail(&self, out: &mut BytesMut, kind: &str) {
        out.put_slice(format!(",\"resultType\":\"{kind}\",\"_meta\":{{{}}}}}}}\n", self.server_info).as_bytes());
    }
}

/// The JSON-RPC number of a protocol fault.
#[must_use]
pub const fn rpc_code(code: FaultCode) -> i32 {
    match code {
        FaultCode::ParseError => -32700,
        FaultCode::InvalidRequest => -32600,
        FaultCode::UnknownMethod => -32601,
        FaultCode::MissingCapability => -32021,
        FaultCode::UnsupportedVersion => -32022,
        FaultCode::Internal | FaultCode::IllegalTransition => -32603,
        _ if matches!(code.class(), FaultClass::Protocol) => -32602,
        // Own codes stay outside the range the specification reserves.
        _ => -31999,
    }
}

/// Begins an answer.
pub(super) fn head(out: &mut BytesMut, id: Option<&IdToken>) {
    out.put_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
    out.put_slice(id.map_or(b"null", IdToken::as_bytes));
}

fn json(out: &mut BytesMut, value: &impl Serialize) {
    // Writing to memory cannot fail, and none of our types has a failing serialiser.
    let written: Result<(), serde_json::Error> = serde_json::to_writer(out.writer(), value);
    debug_assert!(written.is_ok());
}

/// A JSON-RPC error. Its message is a whole sentence: it is all that a model sees.
pub fn error(out: &mut BytesMut, id: Option<&IdToken>, fault: &Fault, data: Option<serde_json::Value>) {
    #[derive(Serialize)]
    struct Error<'a> {
        code: i32,
        message: String,
        data: Data<'a>,
    }
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Data<'a> {
        Given(serde_json::Value),
        Fault(&'a Fault),
    }
    let message = match &fault.hint {
        Some(hint) => format!("{} {hint}", fault.detail),
        None => fault.detail.clone(),
    };
    head(out, id);
    out.put_slice(b",\"error\":");
    let data = data.map_or(Data::Fault(fault), Data::Given);
    json(out, &Error { code: rpc_code(fault.code), message, data });
    out.put_slice(b"}\n");
}

/// The empty result of a legacy `ping`; nothing else may stand in it, some clients check.
pub fn pong(out: &mut BytesMut, id: &IdToken) {
    head(out, Some(id));
    out.put_slice(b",\"result\":{}}\n");
}

/// Whether tasks are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tasks {
    /// Some tool's calls may become tasks.
    Offered,
    /// None's.
    None,
}

/// The answer to `initialize`.
pub fn initialized(out: &mut BytesMut, id: &IdToken, version: Version, identity: &Identity, tasks: Tasks) {
    head(out, Some(id));
    out.put_slice(b",\"result\":{\"protocolVersion\":\"");
    out.put_slice(version.as_str().as_bytes());
    out.put_slice(b"\",\"capabilities\":{\"tools\":{\"listChanged\":true}");
    if tasks == Tasks::Offered && version == Version::V2025_11_25 {
        out.put_slice(b",\"tasks\":{\"list\":{},\"cancel\":{},\"requests\":{\"tools\":{\"call\":{}}}}");
    }
    out.put_slice(b"},\"serverInfo\":{\"name\":\"");
    out.put_slice(identity.name.as_bytes());
    out.put_slice(b"\",\"version\":\"");
    out.put_slice(identity.version.as_bytes());
    out.put_slice(b"\"}");
    instructions(out, identity);
    out.put_slice(b"}}\n");
}

fn instructions(out: &mut BytesMut, identity: &Identity) {
    if !identity.instructions.is_empty() {
        out.put_slice(b",\"instructions\":");
        json(out, &identity.instructions);
    }
}

/// The answer to `server/discover`.
pub fn discovered(out: &mut BytesMut, id: &IdToken, identity: &Identity, tasks: Tasks) {
    head(out, Some(id));
    out.put_slice(b",\"result\":{\"supportedVersions\":[\"");
    out.put_slice(Version::MODERN.as_str().as_bytes());
    out.put_slice(b"\"],\"capabilities\":{\"tools\":{\"listChanged\":true}");
    if tasks == Tasks::Offered {
        // The value is an empty object: some clients take nothing else.
        out.put_slice(b",\"extensions\":{\"io.modelcontextprotocol/tasks\":{}}");
    }
    out.put_slice(b"},\"ttlMs\":0,\"cacheScope\":\"private\"");
    instructions(out, identity);
    out.put_slice(identity.modern_tail.as_bytes());
}

/// The answer to `tools/list`; `tools` is the member made by the catalogue.
pub fn tools(out: &mut BytesMut, id: &IdToken, version: Version, tools: &str, identity: &Identity) {
    head(out, Some(id));
    out.put_slice(b",\"result\":{");
    out.put_slice(tools.as_bytes());
    if version == Version::MODERN {
        out.put_slice(b",\"ttlMs\":0,\"cacheScope\":\"private\"");
        out.put_slice(identity.modern_tail.as_bytes());
    } else {
        out.put_slice(b"}}\n");
    }
}

/// The answer to `tools/call`.
pub fn called(out: &mut BytesMut, id: &IdToken, version: Version, reply: &ToolReply, identity: &Identity) {
    head(out, Some(id));
    out.put_slice(b",\"result\":{");
    result_members(out, version, reply);
    if version == Version::MODERN {
        out.put_slice(identity.modern_tail.as_bytes());
    } else {
        out.put_slice(b"}}\n");
    }
}

/// What every revision has in the result of a call.
pub(super) fn result_members(out: &mut BytesMut, version: Version, reply: &ToolReply) {
    out.put_slice(b"\"content\":[{\"type\":\"text\",\"text\":");
    match &reply.text {
        ReplyText::Plain(text) => json(out, text),
        ReplyText::Json(text) => out.put_slice(text),
    }
    out.put_slice(b"}]");
    if let Some(structured) = reply.structured.as_ref().filter(|_| version >= Version::V2025_06_18) {
        out.put_slice(b",\"structuredContent\":");
        out.put_slice(structured.as_bytes());
    }
    if reply.fault.is_some() {
        out.put_slice(b",\"isError\":true");
    }
}

/// The answer to a request that has nothing to say, in the stateless era.
pub fn acknowledged(out: &mut BytesMut, id: &IdToken, identity: &Identity) {
    head(out, Some(id));
    out.put_slice(b",\"result\":{");
    out.put_slice(identity.modern_tail.get(1..).unwrap_or_default().as_bytes());
}

/// The member of `_meta` that ties a message to a subscription: its id, as it was written.
pub(super) fn subscription_member(out: &mut BytesMut, subscription: &IdToken) {
    out.put_slice(b"\"io.modelcontextprotocol/subscriptionId\":");
    out.put_slice(subscription.as_str().as_bytes());
}

/// The first message of a subscription: the part of its wishes that is honoured.
pub fn subscribed(out: &mut BytesMut, subscription: &IdToken, tools: bool, tasks: Option<&[JobId]>) {
    out.put_slice(
        b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/subscriptions/acknowledged\",\"params\":{\"notifications\":{",
    );
    if tools {
        out.put_slice(b"\"toolsListChanged\":true");
    }
    if let Some(tasks) = tasks {
        out.put_slice(if tools { b",\"taskIds\":" } else { b"\"taskIds\":" });
        json(out, &tasks);
    }
    out.put_slice(b"},\"_meta\":{");
    subscription_member(out, subscription);
    out.put_slice(b"}}}\n");
}

/// The last message of a subscription that we end: no more will come, and asking again is no use.
pub fn unsubscribed(out: &mut BytesMut, subscription: &IdToken, identity: &Identity) {
    head(out, Some(subscription));
    out.put_slice(b",\"result\":{\"resultType\":\"complete\",\"_meta\":{");
    subscription_member(out, subscription);
    out.put_slice(b",");
    out.put_slice(identity.server_info.as_bytes());
    out.put_slice(b"}}}\n");
}

/// The tools differ; for a legacy session, or for one subscription.
pub fn tools_changed(out: &mut BytesMut, subscription: Option<&IdToken>) {
    out.put_slice(b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/tools/list_changed\"");
    if let Some(subscription) = subscription {
        out.put_slice(b",\"params\":{\"_meta\":{");
        subscription_member(out, subscription);
        out.put_slice(b"}}");
    }
    out.put_slice(b"}\n");
}

/// A progress notification; `token` is the JSON text the client chose, `value` strictly rises.
pub fn progress(out: &mut BytesMut, token: &str, value: f64, message: Option<&str>) {
    out.put_slice(b"{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{\"progressToken\":");
    out.put_slice(token.as_bytes());
    out.put_slice(b",\"progress\":");
    json(out, &value);
    if let Some(message) = message {
        out.put_slice(b",\"message\":");
        json(out, &message);
    }
    out.put_slice(b"}}\n");
}
