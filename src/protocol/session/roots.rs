//! What the client works on: its roots, asked for once it said that it has some, and again when it says they changed.
//!
//! Owns: when they are asked for, which answer counts, how much of it. May not know: what a root grants.
//!
//! ```text
//!  not declared (and the stateless era, which has no requests of ours):   nothing is ever asked
//!  declared ──initialized, or the first call──▶ asked ──answer──▶ known ──they changed──▶ asked
//! ```
//!
//! Invariants: (1) one question is open at a time; (2) only the answer to the newest one counts; (3) nothing waits for it here.

use bytes::{BufMut as _, BytesMut};
use serde::{Deserialize, Serialize};

use super::{Origin, SessionCore, SessionEffect, SessionEffects};
use crate::places::ROOTS;
use crate::protocol::envelope::{self, IdToken};

/// Bytes of one root's URI; a path has at most so many, some of them written with three.
const URI_BYTES: usize = 16 * 1024;

/// What is known of a client's roots.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Roots {
    /// It has none, or cannot be asked.
    #[default]
    None,
    /// It was asked, or will be at once.
    Awaited,
    /// Their URIs.
    Known(Vec<String>),
}

/// Where the talk about them stands, and is passed on like this.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct RootsTalk {
    declared: bool,
    /// The number of the open question.
    open: Option<u64>,
    /// They changed since it was put.
    stale: bool,
    last: u64,
    roots: Roots,
}

impl RootsTalk {
    /// A handshake: whether the client has roots.
    pub(super) fn greeted(&mut self, capabilities: Option<&str>) {
        let declared = capabilities
            .and_then(|json| envelope::object(json, ["roots"]).ok())
            .is_some_and(|[roots]| roots.is_some_and(|roots| roots.starts_with('{')));
        let roots = if declared { Roots::Awaited } else { Roots::None };
        *self = Self { declared, roots, last: self.last, ..Self::default() };
    }

    /// Whether they have to be asked for.
    fn is_due(&self) -> bool {
        self.declared && self.open.is_none() && self.roots == Roots::Awaited
    }
}

fn id(number: u64) -> String {
    format!("\"phone-opus-roots-{number}\"")
}

impl SessionCore {
    /// What is known of the client's roots.
    #[must_use]
    pub fn roots(&self) -> &Roots {
        &self.roots.roots
    }

    /// Asks for them, where that is due. What is written for a member of a batch is an answer, so there it waits.
    pub(super) fn ask_roots(&mut self, origin: Origin, out: &mut BytesMut, effects: &mut SessionEffects) {
        if !self.roots.is_due() || origin.batch.is_some() {
            return;
        }
        self.roots.last += 1;
        self.roots.open = Some(self.roots.last);
        out.put_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
        out.put_slice(id(self.roots.last).as_bytes());
        out.put_slice(b",\"method\":\"roots/list\"}\n");
        effects.push_back(SessionEffect::Roots(Roots::Awaited));
    }

    /// The client says that they changed.
    pub(super) fn roots_changed(&mut self, origin: Origin, out: &mut BytesMut, effects: &mut SessionEffects) {
        if !self.roots.declared {
            return;
        }
        self.roots.roots = Roots::Awaited;
        self.roots.stale = self.roots.open.is_some();
        effects.push_back(SessionEffect::Roots(Roots::Awaited));
        self.ask_roots(origin, out, effects);
    }

    /// A response: ours, if it answers the open question.
    pub(super) fn on_response(
        &mut self,
        answers: Option<&IdToken>,
        result: Option<&str>,
        origin: Origin,
        out: &mut BytesMut,
        effects: &mut SessionEffects,
    ) {
        let ours = self.roots.open.is_some_and(|open| answers.is_some_and(|answers| answers.as_str() == id(open)));
        if !ours {
            return;
        }
        self.roots.open = None;
        if std::mem::take(&mut self.roots.stale) {
            return self.ask_roots(origin, out, effects);
        }
        // An error says that there are none after all.
        self.roots.roots = Roots::Known(result.map(uris).unwrap_or_default());
        effects.push_back(SessionEffect::Roots(self.roots.roots.clone()));
    }
}

fn uris(result: &str) -> Vec<String> {
    #[derive(Deserialize)]
    struct Root {
        uri: String,
    }
    #[derive(Deserialize)]
    struct Listed {
        #[serde(default)]
        roots: Vec<Root>,
    }
    let listed: Listed = serde_json::from_str(result).unwrap_or(Listed { roots: Vec::new() });
    listed.roots.into_iter().map(|root| root.uri).filter(|uri| uri.len() <= URI_BYTES).take(ROOTS).collect()
}
