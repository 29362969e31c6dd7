//! Writes a job's journal without making the agent's output wait for the disk.
//!
//! Invariants: (1) entries keep their order; (2) the journal is bounded, and says so when it ends early; (3) a text
//! longer than the bound is shortened, the whole of it is in the outcome.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{STORE_MOMENT, insist};
use crate::agents::AgentEvent;
use crate::ids::{JobId, UnixMillis};
use crate::jobs::JournalEvent;
use crate::store::StoreHandle;

/// Entries per job: a long run has a few hundred; one that loops is cut off here.
const MOST_ENTRIES: usize = 20_000;

/// Bytes of texts per job, for an agent that writes without end. A long run has a tenth of it.
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// Bytes of one entry's text.
const MOST_TEXT: usize = 4 * 1024;

/// Entries that may wait for the disk; more than a second of the busiest agent. Then they are left out.
const WAITING: usize = 1024;

/// Entries per transaction.
const BATCH: usize = 128;

/// The writing half.
pub(super) struct Journal {
    entries: Option<mpsc::Sender<(UnixMillis, JournalEvent)>>,
    writer: JoinHandle<()>,
    written: usize,
    bytes: usize,
    ended: bool,
    lost: bool,
}

impl Journal {
    pub(super) fn start(store: StoreHandle, job: JobId) -> Self {
        let (entries, mut waiting) = mpsc::channel(WAITING);
        let writer = tokio::spawn(async move {
            let mut batch = Vec::with_capacity(BATCH);
            let mut patience = STORE_MOMENT;
            while waiting.recv_many(&mut batch, BATCH).await > 0 {
                let entries = std::mem::take(&mut batch);
                patience = match insist(patience, || store.append(job, entries.clone())).await {
                    Ok(_) => STORE_MOMENT,
                    Err(error) => {
                        // The journal is news; the outcome is written by another verb, which must not wait for it twice.
                        tracing::warn!(%error, "journal entries were lost");
                        Duration::ZERO
                    }
                };
            }
        });
        Self { entries: Some(entries), writer, written: 0, bytes: 0, ended: false, lost: false }
    }

    pub(super) fn write(&mut self, event: JournalEvent) {
        let Some(entries) = &self.entries else { return };
        if self.ended {
            return;
        }
        let mut event = shortened(event);
        self.written += 1;
        self.bytes += text_of(&event);
        self.ended = self.written >= MOST_ENTRIES || self.bytes > MOST_BYTES;
        if self.ended {
            event = JournalEvent::Truncated;
        }
        if entries.try_send((UnixMillis::now(), event)).is_err() && !self.lost {
            self.lost = true;
            tracing::warn!("the journal does not keep up; entries are left out");
        }
    }

    /// Waits until everything is written.
    pub(super) async fn finish(mut self) {
        self.entries = None;
        let _ = self.writer.await;
    }
}

/// The bytes of an entry that have no bound of their own.
fn text_of(event: &JournalEvent) -> usize {
    match event {
        JournalEvent::Agent { event: AgentEvent::Text { text } } => text.len(),
        _ => 0,
    }
}

fn shortened(event: JournalEvent) -> JournalEvent {
    match event {
        JournalEvent::Agent { event: AgentEvent::Text { mut text } } if text.len() > MOST_TEXT => {
            let mut cut = MOST_TEXT;
            while !text.is_char_boundary(cut) {
                cut -= 1;
            }
            text.truncate(cut);
            text.push('…');
            JournalEvent::Agent { event: AgentEvent::Text { text } }
        }
        JournalEvent::Agent { event: AgentEvent::Result { mut result } } => {
            // The answer itself is the outcome's.
            result.text = None;
            JournalEvent::Agent { event: AgentEvent::Result { result } }
        }
        event => event,
    }
}
