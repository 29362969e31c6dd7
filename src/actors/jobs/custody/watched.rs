//! Custody of a job that was adopted: its runner has no pipe to this host, so the store is looked at.
//!
//! Owns: how often, how far the journal was read, and whether anybody still works at the job. May not know: what follows when
//! nobody does, who waits.
//!
//! What the runner writes down becomes news here as it would through a pipe, so whoever follows the job notices no difference
//! but a quarter of a second. One look serves all who follow.

use std::time::Duration;

use super::Custody;
use super::core::{CustodyEvent, StoreAnswer};
use crate::jobs::evidence::JobEvidence;
use crate::jobs::live::Phase;
use crate::jobs::lock::JobLock;
use crate::jobs::store::{Glance, StoreError};
use crate::jobs::{JobState, JournalEvent, sweep};

/// How often the store is looked at for news, as a runner does for requests.
const NEWS_EVERY: Duration = Duration::from_millis(250);

/// Looks between two at the locks of whoever works at the job.
const LOCK_LOOKS: u32 = 8;

/// Entries and bytes of a journal that are read in one look; what is left is read in the next.
const ENTRIES: usize = 500;
const BYTES: usize = 256 * 1024;

/// What was seen of such a job.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// The journal was read so far.
    seen: u64,
    looks: u32,
}

impl Custody {
    /// Waits for what happens to the job.
    pub(super) async fn watch(&mut self) -> CustodyEvent {
        loop {
            match self.look_for_news().await {
                Ok(None) => {}
                Ok(Some(event)) => return event,
                Err(StoreError::UnknownJob(_)) => return CustodyEvent::Read(StoreAnswer::Unknown),
                // Whoever works at it goes on meanwhile.
                Err(error) => tracing::debug!(job = %self.job, %error, "a job that was adopted cannot be looked at"),
            }
            tokio::select! {
                Some(()) = self.asked.recv() => return CustodyEvent::EndAsked,
                () = tokio::time::sleep(NEWS_EVERY) => {}
            }
        }
    }

    async fn look_for_news(&mut self) -> Result<Option<CustodyEvent>, StoreError> {
        let glance = self.means.store.glance(self.job).await?;
        if glance.state.is_terminal() {
            let record = self.means.store.job(self.job).await?;
            let state = record.state;
            self.record = Some(record);
            return Ok(Some(CustodyEvent::Read(StoreAnswer::State(state))));
        }
        self.tell_news(&glance).await?;
        let due = self.watched.looks.is_multiple_of(LOCK_LOOKS);
        self.watched.looks = self.watched.looks.wrapping_add(1);
        Ok(if due && !self.somebody_is_there(&glance).await? { Some(CustodyEvent::NobodyThere) } else { None })
    }

    /// Makes news of what was written down since the last look.
    async fn tell_news(&mut self, glance: &Glance) -> Result<(), StoreError> {
        let begun = glance.state == JobState::Running && matches!(self.news.borrow().phase, Phase::Queued(_));
        let mut entries = Vec::new();
        if glance.last_event > self.watched.seen {
            entries = self.means.store.events(self.job, self.watched.seen, ENTRIES, BYTES).await?;
        }
        if !begun && entries.is_empty() {
            return Ok(());
        }
        self.watched.seen = entries.last().map_or(self.watched.seen, |entry| entry.seq);
        self.news.send_modify(|live| {
            if begun {
                live.phase = Phase::Starting;
            }
            for entry in entries {
                if let JournalEvent::Agent { event } = entry.event {
                    live.fold(&event);
                }
            }
        });
        Ok(())
    }

    /// Whether somebody works at the job, or waits with it.
    async fn somebody_is_there(&mut self, glance: &Glance) -> Result<bool, StoreError> {
        let dir = &self.means.dir;
        Ok(match glance.state {
            JobState::Queued => {
                let record = self.means.store.job(self.job).await?;
                !sweep::is_orphan(dir, &mut JobEvidence::new(dir), &record)
            }
            // A lock that cannot be looked at counts as held: waiting is safe.
            _ => JobLock::is_held(dir, self.job).unwrap_or(true),
        })
    }
}
