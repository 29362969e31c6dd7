//! `params._meta` of a request: which era it belongs to, who asks, what they can do.
//!
//! Owns: the checks of the envelope, in the order the specification gives them. May not know: what the request is.

use bytes::Bytes;

use super::ClientInfo;
use crate::base::fault::{Fault, FaultCode};
use crate::base::trace::TraceContext;
use crate::protocol::envelope;
use crate::protocol::method::Method;
use crate::protocol::tasks::EXTENSION;
use crate::protocol::version::Version;

/// Why a request is refused, and what its error carries instead of the fault record.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) fault: Fault,
    pub(super) data: Option<serde_json::Value>,
}

impl From<Fault> for Box<Refusal> {
    fn from(fault: Fault) -> Self {
        Self::new(Refusal { fault, data: None })
    }
}

pub(super) fn invalid(detail: impl Into<String>) -> Box<Refusal> {
    Fault::new(FaultCode::InvalidInput, detail).into()
}

/// The members of `params._meta` we look at.
#[derive(Debug, Default)]
pub(super) struct Meta<'a> {
    progress: Option<&'a str>,
    version: Option<&'a str>,
    capabilities: Option<&'a str>,
    client: Option<&'a str>,
    traceparent: Option<&'a str>,
    tracestate: Option<&'a str>,
}

impl<'a> Meta<'a> {
    pub(super) fn read(json: Option<&'a str>) -> Result<Self, Box<Refusal>> {
        let Some(json) = json.filter(|json| *json != "null") else { return Ok(Self::default()) };
        let names = [
            "progressToken",
            "io.modelcontextprotocol/protocolVersion",
            "io.modelcontextprotocol/clientCapabilities",
            "io.modelcontextprotocol/clientInfo",
            "traceparent",
            "tracestate",
        ];
        let [progress, version, capabilities, client, traceparent, tracestate] =
            envelope::object(json, names).map_err(|_| invalid("the member params._meta must be an object."))?;
        Ok(Self { progress, version, capabilities, client, traceparent, tracestate })
    }

    /// An envelope was meant, even if it is not complete.
    pub(super) fn enveloped(&self) -> bool {
        self.version.is_some() || self.capabilities.is_some()
    }

    /// Checks an envelope: it is whole, then its version. A discovery is told about its version first, because that is how
    /// a client finds out what we are.
    pub(super) fn check(&self, method: Method, seen: &mut SeenClient) -> Result<ClientInfo, Box<Refusal>> {
        let version = self.version.and_then(envelope::string);
        let unsupported = version.as_deref().filter(|version| *version != Version::MODERN.as_str()).map(unsupported);
        if method == Method::Discover
            && let Some(refusal) = unsupported
        {
            return Err(refusal);
        }
        let mut lacks = Vec::new();
        if version.is_none() {
            lacks.push("io.modelcontextprotocol/protocolVersion (a string)");
        }
        if self.capabilities.is_none_or(|json| !json.starts_with('{')) {
            lacks.push("io.modelcontextprotocol/clientCapabilities (an object)");
        }
        let client = self.client.map_or(Some(ClientInfo::Unknown), |json| seen.look(json));
        if client.is_none() {
            lacks.push("name and version (strings) in io.modelcontextprotocol/clientInfo");
        }
        match (unsupported, client) {
            (None, Some(client)) if lacks.is_empty() => Ok(client),
            (Some(refusal), _) if lacks.is_empty() => Err(refusal),
            _ => Err(invalid(format!("params._meta lacks {}.", lacks.join(" and ")))),
        }
    }

    /// The token as it was written; null and objects are none. One longer than a kilobyte is none either: it would be
    /// repeated in every notification.
    pub(super) fn progress_token(&self) -> Option<Box<str>> {
        self.progress
            .filter(|json| json.len() <= 1024 && matches!(json.as_bytes().first(), Some(b'"' | b'-' | b'0'..=b'9')))
            .map(Into::into)
    }

    /// What the request is part of. One that is no trace context is none: a trace is nothing to refuse a call for.
    pub(super) fn trace(&self) -> Option<Box<TraceContext>> {
        let context = TraceContext::parse(&envelope::string(self.traceparent?)?)?;
        Some(Box::new(match self.tracestate.and_then(envelope::string) {
            Some(state) => context.with_state(&state),
            None => context,
        }))
    }

    /// Whether this request's client can be given a task.
    pub(super) fn knows_tasks(&self) -> bool {
        let extensions = self.capabilities.and_then(|json| envelope::object(json, ["extensions"]).ok());
        let tasks = extensions.and_then(|[json]| envelope::object(json?, [EXTENSION]).ok());
        tasks.is_some_and(|[json]| json.is_some_and(|json| json.starts_with('{')))
    }
}

fn unsupported(version: &str) -> Box<Refusal> {
    let modern = Version::MODERN.as_str();
    let data = serde_json::json!({"supported": [modern], "requested": version});
    let shown = super::shortened(version);
    let detail = format!("protocol version {shown} cannot be used with an envelope; {modern} can.");
    Box::new(Refusal { fault: Fault::new(FaultCode::UnsupportedVersion, detail), data: Some(data) })
}

/// A request about tasks, or with `taskIds`, from a client that did not say it knows them.
pub(super) fn tasks_needed() -> Box<Refusal> {
    let data = serde_json::json!({"requiredCapabilities": {"extensions": {EXTENSION: {}}}});
    let detail = format!("this request needs the extension {EXTENSION} among its client's capabilities.");
    Box::new(Refusal { fault: Fault::new(FaultCode::MissingCapability, detail), data: Some(data) })
}

/// The last client description that was checked: a client sends the same one with each request.
#[derive(Debug, Default)]
pub(super) struct SeenClient(Bytes);

impl SeenClient {
    /// Its name and version, once one was checked.
    pub(super) fn said(&self) -> Option<(String, String)> {
        let text = std::str::from_utf8(&self.0).ok()?;
        let [name, version] = envelope::object(text, ["name", "version"]).ok()?;
        let owned = |json: &str| envelope::string(json).map(|text| text.into_owned());
        Some((owned(name?)?, owned(version?)?))
    }

    /// The description as it is passed on; `None` when it has no name or no version.
    fn look(&mut self, json: &str) -> Option<ClientInfo> {
        if self.0 != json.as_bytes() {
            let [name, version] = envelope::object(json, ["name", "version"]).ok()?;
            name.and_then(envelope::string).and(version.and_then(envelope::string))?;
            // Only its name is looked at, and not beyond a kilobyte: more would be copied for nothing.
            if json.len() > 1024 {
                return Some(ClientInfo::Unknown);
            }
            self.0 = Bytes::copy_from_slice(json.as_bytes());
        }
        Some(ClientInfo::Raw(self.0.clone()))
    }
}
