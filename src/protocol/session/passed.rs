//! The state machine as it is passed on to the next image of the program.
//!
//! Owns: what of it is passed on, and how it is made again from that. May not know: where a snapshot lies, what the loop
//! around it passes on.
//!
//! Ids, tokens and arguments are passed on as the texts they were; tools by their names, because their positions may
//! differ. What is not passed on can be made again or forgotten: the last checked description of a client, the window in
//! which complaints are counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use serde::{Deserialize, Serialize};

use super::roots::RootsTalk;
use super::standing::StandingSnapshot;
use super::{Batch, ClientInfo, Handshake, Pending, SessionCore, SessionLimits, Work};
use crate::base::base64::Base64;
use crate::protocol::catalog::Catalog;
use crate::protocol::envelope::IdToken;
use crate::protocol::method::Method;
use crate::protocol::tasks::TaskProtocol;
use crate::protocol::version::Version;
use crate::protocol::wire::Identity;

/// A part of a snapshot that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("understand {what} of a session")]
pub struct Unreadable {
    pub what: &'static str,
}

/// A session's state machine, passed on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoreSnapshot {
    handshake: Option<HandshakeSnapshot>,
    answered: bool,
    next_call: u64,
    next_batch: u64,
    pending: Vec<PendingSnapshot>,
    batches: Vec<BatchSnapshot>,
    standings: Vec<StandingSnapshot>,
    #[serde(default)]
    roots: RootsTalk,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct HandshakeSnapshot {
    version: Version,
    client: ClientSnapshot,
    #[serde(default)]
    client_version: Option<String>,
}

/// Who called, passed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientSnapshot {
    /// It did not say.
    Unknown,
    Name(String),
    /// The object it sent.
    Raw(String),
}

impl From<&ClientInfo> for ClientSnapshot {
    fn from(client: &ClientInfo) -> Self {
        match client {
            ClientInfo::Unknown => Self::Unknown,
            ClientInfo::Name(name) => Self::Name(name.to_string()),
            ClientInfo::Raw(json) => Self::Raw(String::from_utf8_lossy(json).into_owned()),
        }
    }
}

impl From<&ClientSnapshot> for ClientInfo {
    fn from(client: &ClientSnapshot) -> Self {
        match client {
            ClientSnapshot::Unknown => Self::Unknown,
            ClientSnapshot::Name(name) => Self::Name(name.as_str().into()),
            ClientSnapshot::Raw(json) => Self::Raw(json.clone().into()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct PendingSnapshot {
    number: u64,
    id: String,
    version: Version,
    client: ClientSnapshot,
    work: WorkSnapshot,
    bytes: usize,
    batch: Option<u64>,
    structured: bool,
    /// How long it had been open.
    age: Duration,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum WorkSnapshot {
    Tool { tool: String, progress: Option<String>, last_progress: Option<f64>, task: Option<TaskProtocol> },
    Created { tool: String, progress: Option<String>, last_progress: Option<f64>, protocol: TaskProtocol },
    Ask { method: String },
    Listen { tools: bool },
    Gone,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct BatchSnapshot {
    number: u64,
    open: usize,
    parts: Base64,
}

/// Nothing was reported yet; JSON has no number for it.
fn finite(progress: f64) -> Option<f64> {
    Some(progress).filter(|value| value.is_finite())
}

fn id(text: &str) -> Result<IdToken, Unreadable> {
    IdToken::from_json(text).ok_or(Unreadable { what: "an id" })
}

impl SessionCore {
    /// What is passed on.
    #[must_use]
    pub fn snapshot(&self, now: Instant) -> CoreSnapshot {
        let handshake = match &self.handshake {
            Handshake::Before => None,
            Handshake::Ready { version, client } => {
                let client_version = self.client_version.as_deref().map(str::to_owned);
                Some(HandshakeSnapshot { version: *version, client: client.into(), client_version })
            }
        };
        let name = |tool: usize| self.catalog.name(tool).to_owned();
        let text = |token: &Option<Box<str>>| token.as_deref().map(str::to_owned);
        let pending = |(number, call): (&u64, &Pending)| PendingSnapshot {
            number: *number,
            id: call.id.as_str().to_owned(),
            version: call.version,
            client: (&call.client).into(),
            work: match &call.work {
                Work::Tool { tool, progress, last_progress, task } => WorkSnapshot::Tool {
                    tool: name(*tool),
                    progress: text(progress),
                    last_progress: finite(*last_progress),
                    task: *task,
                },
                Work::Created { tool, progress, last_progress, protocol } => WorkSnapshot::Created {
                    tool: name(*tool),
                    progress: text(progress),
                    last_progress: finite(*last_progress),
                    protocol: *protocol,
                },
                Work::Ask(method) => WorkSnapshot::Ask { method: method.as_str().to_owned() },
                Work::Listen { tools } => WorkSnapshot::Listen { tools: *tools },
                Work::Gone => WorkSnapshot::Gone,
            },
            bytes: call.bytes,
            batch: call.batch,
            structured: call.structured,
            age: now.saturating_duration_since(call.since),
        };
        let mut pending: Vec<PendingSnapshot> = self.pending.iter().map(pending).collect();
        pending.sort_unstable_by_key(|call| call.number);
        let batches = self.batches.iter().map(|(number, batch)| BatchSnapshot {
            number: *number,
            open: batch.open,
            parts: Base64(batch.parts.clone().freeze()),
        });
        CoreSnapshot {
            handshake,
            answered: self.answered,
            next_call: self.next_call,
            next_batch: self.next_batch,
            pending,
            batches: batches.collect(),
            standings: self.standings.snapshot(),
            roots: self.roots.clone(),
        }
    }

    /// Goes on where another image stood, `since` ago. A call of a tool that is not in this catalogue is still open; all
    /// it can be answered with is an error.
    ///
    /// # Errors
    ///
    /// Something in it is nothing we write.
    pub fn restored(
        catalog: Arc<Catalog>,
        identity: Arc<Identity>,
        limits: SessionLimits,
        snapshot: &CoreSnapshot,
        now: Instant,
        since: Duration,
    ) -> Result<Self, Unreadable> {
        let mut core = Self::new(catalog, identity, limits);
        if let Some(HandshakeSnapshot { version, client, client_version }) = &snapshot.handshake {
            core.client_version = client_version.as_deref().map(Box::from);
            core.handshake = Handshake::Ready { version: *version, client: client.into() };
        }
        core.answered = snapshot.answered;
        core.roots = snapshot.roots.clone();
        core.next_call = snapshot.next_call;
        core.next_batch = snapshot.next_batch;
        core.batches = snapshot.batches.iter().map(BatchSnapshot::restored).collect::<HashMap<_, _>>();
        for call in &snapshot.pending {
            let id = id(&call.id)?;
            let began = now.checked_sub(call.age + since).unwrap_or(now);
            let pending = Pending {
                id: id.clone(),
                version: call.version,
                client: (&call.client).into(),
                work: call.work.restored(&core.catalog),
                bytes: call.bytes,
                batch: call.batch,
                structured: call.structured,
                since: began,
            };
            core.call_bytes += pending.bytes;
            core.by_id.insert(id, call.number);
            core.pending.insert(call.number, pending);
        }
        for standing in &snapshot.standings {
            match standing {
                StandingSnapshot::Stream { number, id: text, tools } => {
                    let id = id(text)?;
                    core.by_id.insert(id.clone(), *number);
                    core.standings.open_stream(*number, id, *tools);
                }
                StandingSnapshot::Task { number, token, last } => {
                    let last = last.unwrap_or(f64::NEG_INFINITY);
                    core.standings.tell_of_task(*number, token.as_deref().map(Box::from), last);
                }
            }
        }
        let broken = |_| Unreadable { what: "the table of calls" };
        core.invariant_calls_are_consistent_and_bounded().map_err(broken)?;
        Ok(core)
    }
}

impl BatchSnapshot {
    fn restored(&self) -> (u64, Batch) {
        (self.number, Batch { open: self.open, parts: BytesMut::from(&self.parts.0[..]) })
    }
}

impl WorkSnapshot {
    fn restored(&self, catalog: &Catalog) -> Work {
        let token = |token: &Option<String>| token.as_deref().map(Box::from);
        let last = |last: &Option<f64>| last.unwrap_or(f64::NEG_INFINITY);
        match self {
            Self::Tool { tool, progress, last_progress, task } => match catalog.position(tool) {
                Some(tool) => {
                    Work::Tool { tool, progress: token(progress), last_progress: last(last_progress), task: *task }
                }
                None => Work::Gone,
            },
            Self::Created { tool, progress, last_progress, protocol } => match catalog.position(tool) {
                Some(tool) => Work::Created {
                    tool,
                    progress: token(progress),
                    last_progress: last(last_progress),
                    protocol: *protocol,
                },
                None => Work::Gone,
            },
            Self::Ask { method } => Method::parse(method).map_or(Work::Gone, Work::Ask),
            Self::Listen { tools } => Work::Listen { tools: *tools },
            Self::Gone => Work::Gone,
        }
    }
}
