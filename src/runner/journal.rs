//! Writes a job's journal without making the agent's output wait for the disk.
//!
//! Invariants: (1) entries keep their order, and the journal has no gap: an entry that cannot be written ends it; (2) it is
//! bounded, and says so when it ends early; (3) a text longer than the bound is shortened, the whole of it is in the outcome.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::patience::is_passing;
use crate::agents::AgentEvent;
use crate::base::ids::{JobId, UnixMillis};
use crate::base::tasks;
use crate::jobs::JournalEvent;
use crate::jobs::store::{StoreError, StoreHandle};

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

/// Times entries are tried to be written. A store that is busy for longer has more important things to write.
const TRIES: u32 = 3;

/// Between two tries.
const AGAIN: Duration = Duration::from_millis(100);

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
        let writer = tasks::spawn(async move {
            let mut batch = Vec::with_capacity(BATCH);
            let mut last = 0;
            while waiting.recv_many(&mut batch, BATCH).await > 0 {
                if let Err(error) = append(&store, job, std::mem::take(&mut batch), &mut last).await {
                    // The journal is news; the outcome is written by another verb.
                    tracing::warn!(%error, "the journal ends early");
                    return;
                }
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
            tracing::warn!("the journal does not keep up, or has ended; entries are left out");
        }
    }

    /// Waits until everything is written.
    pub(super) async fn finish(mut self) {
        self.entries = None;
        let _ = self.writer.await;
    }
}

/// Appends entries once, although the verb may not be repeated: whether a try that failed had reached the disk is told by
/// the journal's own number, because nobody else writes it.
async fn append(
    store: &StoreHandle,
    job: JobId,
    entries: Vec<(UnixMillis, JournalEvent)>,
    last: &mut u64,
) -> Result<(), StoreError> {
    let mut tries = 1;
    loop {
        match store.append(job, entries.clone()).await {
            Ok(seq) => {
                *last = seq;
                return Ok(());
            }
            // Whether it reaches the disk yet, nobody knows.
            Err(StoreError::Stuck) => return Err(StoreError::Stuck),
            Err(error) if is_passing(&error) && tries < TRIES => {
                tracing::warn!(%error, "journal entries are not written yet");
                tokio::time::sleep(AGAIN).await;
                let stored = store.glance(job).await?.last_event;
                if stored > *last {
                    *last = stored;
                    return Ok(());
                }
                tries += 1;
            }
            Err(error) => return Err(error),
        }
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
        JournalEvent::Agent { event: AgentEvent::Text { text } } if text.len() > MOST_TEXT => {
            let mut cut = MOST_TEXT;
            while !text.is_char_boundary(cut) {
                cut -= 1;
            }
            // A new string, so that what waits for the disk does not hold the memory of the whole text.
            let text = format!("{}…", &text[..cut]);
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
