//! Which version a request is served in, and for whom.
//!
//! Owns: the answer to `initialize`, the choice between the handshake's version and the envelope's. May not know: what the
//! request is about.
//!
//! Invariant: only `initialize` changes the handshake; a request with an envelope needs none.

use bytes::BytesMut;

use super::meta::{Meta, Refusal, invalid};
use super::requests::Dispatched;
use super::{ClientInfo, Handshake, SessionCore};
use crate::base::fault::{Fault, FaultCode};
use crate::protocol::envelope::{self, IdToken};
use crate::protocol::method::Method;
use crate::protocol::version::Version;
use crate::protocol::wire::{self, Tasks};

impl SessionCore {
    pub(super) fn initialize(
        &mut self,
        id: &IdToken,
        params: &str,
        out: &mut BytesMut,
    ) -> Result<Dispatched, Box<Refusal>> {
        let [wanted, client, can] = envelope::object(params, ["protocolVersion", "clientInfo", "capabilities"])
            .map_err(|_| invalid("the member params must be an object."))?;
        let Some(wanted) = wanted.and_then(envelope::string) else {
            return Err(invalid("initialize needs params.protocolVersion, a string."));
        };
        let version = Version::negotiate(&wanted);
        let [name, program] =
            client.and_then(|client| envelope::object(client, ["name", "version"]).ok()).unwrap_or_default();
        self.client_version =
            program.and_then(envelope::string).map(|version| version.chars().take(50).collect::<String>().into());
        let client = name
            .and_then(envelope::string)
            .map_or(ClientInfo::Unknown, |name| ClientInfo::Name(name.chars().take(200).collect::<String>().into()));
        // A proxy or a restarted front end may send a second one: it is answered again, and its version counts.
        self.handshake = Handshake::Ready { version, client };
        self.roots.greeted(can);
        wire::initialized(out, id, version, &self.identity, self.tasks());
        Ok(Dispatched::Answered)
    }

    /// The version a request is served in: its envelope's, else the handshake's.
    pub(super) fn version_of(
        &mut self,
        method: Method,
        meta: &Meta<'_>,
    ) -> Result<(Version, ClientInfo), Box<Refusal>> {
        if meta.enveloped() {
            return Ok((Version::MODERN, meta.check(method, &mut self.seen)?));
        }
        match &self.handshake {
            Handshake::Ready { version, client } => Ok((*version, client.clone())),
            Handshake::Before => {
                Err(Fault::new(FaultCode::NotInitialized, "this connection has not been initialized.")
                    .hint("Send initialize first, or put the 2026-07-28 envelope into params._meta of each request.")
                    .into())
            }
        }
    }

    /// The client's name and the version of its program as it said them last, and the revision it is served in.
    #[must_use]
    pub fn client_seen(&self) -> (Option<String>, Option<String>, Option<Version>) {
        match &self.handshake {
            Handshake::Ready { version, client } => {
                let said = self.client_version.as_deref().map(str::to_owned);
                (client.name().map(|name| name.into_owned()), said, Some(*version))
            }
            Handshake::Before => match self.seen.said() {
                Some((name, said)) => (Some(name), Some(said), Some(Version::MODERN)),
                None => (None, None, None),
            },
        }
    }

    /// The version of the handshake, once there was one.
    #[must_use]
    pub fn negotiated(&self) -> Option<Version> {
        match &self.handshake {
            Handshake::Ready { version, .. } => Some(*version),
            Handshake::Before => None,
        }
    }

    pub(super) fn tasks(&self) -> Tasks {
        if self.catalog.offers_tasks() { Tasks::Offered } else { Tasks::None }
    }
}
