//! Batches: several messages on one line, answered with one line.
//!
//! Owns: which batch is taken, when its answer is whole and how long it may become. May not know: what its members ask.
//!
//! Invariants: (1) the reading of the batch and each member in flight hold a share, and the answer is written when the last
//! one is given back; (2) a batch holds neither a batch nor an `initialize`.

use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Batch, Handshake, Origin, SessionCore, SessionEffects};
use crate::base::fault::{Fault, FaultCode};
use crate::protocol::envelope::{self, IdToken, Incoming};
use crate::protocol::version::Version;
use crate::protocol::wire;

/// Bytes of a batch's answer from which on its members are answered with an error; these have room in the rest of the line.
const BATCH_MOST: usize = wire::LINE_MOST - 1024 * 1024;

impl SessionCore {
    pub(super) fn on_batch(
        &mut self,
        members: &[&str],
        line: &Bytes,
        now: Instant,
        out: &mut BytesMut,
        effects: &mut SessionEffects,
    ) {
        let allowed = matches!(self.handshake, Handshake::Ready { version: Version::V2025_03_26, .. });
        let problem = if !allowed {
            Some("batches are not part of the protocol version in use; send one message per line.")
        } else if members.is_empty() {
            Some("a batch must not be empty.")
        } else if members.len() > self.limits.batch {
            Some("the batch has more members than this server takes (256).")
        } else {
            None
        };
        if let Some(problem) = problem {
            wire::error(out, None, &Fault::new(FaultCode::InvalidRequest, problem), None);
            return;
        }
        let number = self.next_batch;
        self.next_batch += 1;
        // The batch itself holds one share, so that it cannot close before its last member was read.
        self.batches.insert(number, Batch { open: 1, parts: BytesMut::new() });
        for member in members {
            let mut part = BytesMut::new();
            let message = envelope::read(member);
            let id = match &message {
                Incoming::Request { id, .. } => Some(id.clone()),
                _ => None,
            };
            let message = match message {
                Incoming::Request { id, method, .. } if method == "initialize" => {
                    Incoming::Invalid { id: Some(id), why: "initialize must not be part of a batch", beside: false }
                }
                Incoming::Batch(_) => {
                    Incoming::Invalid { id: None, why: "a batch must not hold a batch", beside: false }
                }
                Incoming::Invalid { id, beside: true, .. } if self.takes_control => Incoming::Invalid {
                    id,
                    why: "what is said beside JSON-RPC must not be part of a batch",
                    beside: false,
                },
                message => message,
            };
            self.on_message(message, line, Origin { batch: Some(number), now }, &mut part, effects);
            self.put_part(number, id.as_ref(), part);
        }
        self.close_share(number, out);
    }

    pub(super) fn put_part(&mut self, batch: u64, id: Option<&IdToken>, mut part: BytesMut) {
        if let Some(batch) = self.batches.get_mut(&batch).filter(|_| !part.is_empty()) {
            if batch.parts.len() + part.len() > BATCH_MOST {
                part.clear();
                let fault = Fault::new(FaultCode::ReplyTooLarge, "the batch's answer is longer than any line may be.")
                    .hint("Send the request on a line of its own.");
                wire::error(&mut part, id, &fault, None);
            }
            batch.parts.put_slice(if batch.parts.is_empty() { b"[" } else { b"," });
            batch.parts.put_slice(part.strip_suffix(b"\n").unwrap_or(&part));
        }
    }

    pub(super) fn close_share(&mut self, number: u64, out: &mut BytesMut) {
        let Some(batch) = self.batches.get_mut(&number) else { return };
        batch.open -= 1;
        if batch.open == 0
            && let Some(batch) = self.batches.remove(&number).filter(|batch| !batch.parts.is_empty())
        {
            out.put_slice(&batch.parts);
            out.put_slice(b"]\n");
        }
    }
}
