//! What waits to be written.
//!
//! Owns: the queue between the dispatcher and the writer, and its bounds. May not know: who asked, how it is written.
//!
//! Invariant: nobody waits to queue something; a peer that asks and does not read goes over a bound, and that ends its connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;
use tokio::sync::mpsc;

use super::super::session::EventStream;
use super::super::wire::{self, WireError, WireId, WireOutgoing, WireStream};
use super::PeerEnd;

/// Answers that may wait for the peer to read them: five bursts of the largest size that was ever seen (3,000). A peer that asks so
/// much and reads nothing is cut off.
pub(super) const OUTBOX_LINES: usize = 16 * 1024;

/// Bytes of such answers: the 64 requests of a well-behaved client, each answered by a full ring.
const OUTBOX_BYTES: usize = 96 * 1024 * 1024;

pub(super) enum Out {
    /// An answer.
    Line(Vec<u8>),
    /// The events of a process, from where the stream stands.
    Push(Push),
    /// Everything that has happened, and then nothing more.
    Finish,
}

/// A process whose events are pushed.
pub(super) struct Push {
    pub(super) process_id: Arc<str>,
    pub(super) stream: EventStream,
    /// What its standard output is called.
    pub(super) output: WireStream,
}

/// The dispatcher's end of the writer's queue.
pub(super) struct Outbox {
    queue: mpsc::Sender<Out>,
    /// Bytes of lines in the queue.
    queued: Arc<AtomicUsize>,
}

impl Outbox {
    pub(super) fn new(queue: mpsc::Sender<Out>, queued: Arc<AtomicUsize>) -> Self {
        Self { queue, queued }
    }

    /// Queues without waiting.
    pub(super) fn send(&self, out: Out) -> Result<(), PeerEnd> {
        let size = match &out {
            Out::Line(line) => line.len(),
            Out::Push(_) | Out::Finish => 0,
        };
        let before = self.queued.fetch_add(size, Ordering::Relaxed);
        if before > 0 && before + size > OUTBOX_BYTES {
            return Err(PeerEnd::Overrun);
        }
        match self.queue.try_send(out) {
            // A writer that has ended had nobody to write to; that the peer is gone shows at the input.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(PeerEnd::Overrun),
        }
    }

    pub(super) fn answer<T: Serialize>(&self, id: &WireId, outcome: Result<T, WireError>) -> Result<(), PeerEnd> {
        let line = match outcome {
            Ok(result) => WireOutgoing::Result { id, result }.to_line(),
            Err(error) => wire::error_line(id, error),
        };
        match line {
            Ok(line) => self.send(Out::Line(line)),
            Err(error) => Err(PeerEnd::Broke { reason: format!("an answer could not be written down: {error}") }),
        }
    }

    /// The last word. Waits for room, because nothing else is queued any more.
    pub(super) async fn finish(&self) {
        let _ = self.queue.send(Out::Finish).await;
    }
}
