//! What the journal of a run still knows when its runner is gone.
//!
//! Owns: the fold of a journal into an outcome. May not know: why the runner is gone.
//!
//! Invariant: what the journal does not say stays unknown; a text it has shortened is said to be cut.

use super::journal::{AgentEvent, AgentResult};
use super::{JobOutcome, JournalEvent, PermissionDenial};
use crate::base::ids::JobId;
use crate::jobs::store::{StoreError, StoreHandle};

/// Entries and bytes that are read at a time.
const PAGE: (usize, usize) = (500, 1 << 20);

/// Bytes of text that are recalled; the newest, which are nearest to the answer.
const MOST_TEXT: usize = 256 << 10;

/// Refused tool uses that are recalled: they show what was refused, not how often.
const MOST_DENIALS: usize = 64;

/// What is remembered of a run.
#[derive(Debug, Default)]
pub struct Recall {
    session_id: Option<String>,
    model: Option<String>,
    key_source: Option<String>,
    denials: Vec<PermissionDenial>,
    result: Option<Box<AgentResult>>,
    text: String,
    cut: bool,
}

impl Recall {
    /// Reads a job's journal.
    ///
    /// # Errors
    ///
    /// The store cannot be used.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn of(store: &StoreHandle, job: JobId) -> Result<Self, StoreError> {
        let mut recall = Self::default();
        let mut seen = 0;
        loop {
            let entries = store.events(job, seen, PAGE.0, PAGE.1).await?;
            let Some(last) = entries.last() else { return Ok(recall) };
            seen = last.seq;
            entries.iter().for_each(|entry| recall.fold(&entry.event));
        }
    }

    /// Takes one entry into account.
    pub fn fold(&mut self, event: &JournalEvent) {
        match event {
            JournalEvent::Agent { event } => self.reported(event),
            JournalEvent::Truncated => self.cut = true,
            JournalEvent::Dispatched
            | JournalEvent::ProcessStarted { .. }
            | JournalEvent::ProcessExited { .. }
            | JournalEvent::ProcessClosed => {}
        }
    }

    fn reported(&mut self, event: &AgentEvent) {
        let keep = |kept: &mut Option<String>, new: &Option<String>| {
            if new.is_some() {
                kept.clone_from(new);
            }
        };
        match event {
            AgentEvent::Started { session_id, model, key_source, .. } => {
                keep(&mut self.session_id, session_id);
                keep(&mut self.model, model);
                keep(&mut self.key_source, key_source);
            }
            AgentEvent::Text { text } => self.said(text),
            AgentEvent::Denied { denial } if self.denials.len() < MOST_DENIALS && !self.denials.contains(denial) => {
                self.denials.push(denial.clone());
            }
            AgentEvent::Result { result } => self.result = Some(result.clone()),
            _ => {}
        }
    }

    fn said(&mut self, text: &str) {
        if text.trim().is_empty() {
            return;
        }
        // Shortened texts end with this, and nobody can tell an agent's own from ours: then "cut" says too much.
        self.cut |= text.ends_with('…');
        if !self.text.is_empty() {
            self.text.push_str("\n\n");
        }
        self.text.push_str(text);
        if self.text.len() > MOST_TEXT {
            let mut from = self.text.len() - MOST_TEXT;
            while !self.text.is_char_boundary(from) {
                from += 1;
            }
            self.text.drain(..from);
            self.cut = true;
        }
    }

    /// What can be said of the run.
    #[must_use]
    pub fn outcome(self) -> JobOutcome {
        let mut outcome = JobOutcome {
            session_id: self.session_id,
            model: self.model,
            billing: self.key_source,
            permission_denials: self.denials,
            ..JobOutcome::default()
        };
        if !self.text.is_empty() {
            outcome.response = Some(self.text);
            outcome.response_cut = self.cut;
        }
        if let Some(result) = self.result {
            outcome.cost_usd = result.cost_usd;
            outcome.num_turns = result.num_turns;
            outcome.stop_reason = result.stop_reason;
            outcome.usage = result.usage;
            outcome.model_usage = result.model_usage;
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(event: AgentEvent) -> JournalEvent {
        JournalEvent::Agent { event }
    }

    fn text(text: &str) -> JournalEvent {
        agent(AgentEvent::Text { text: text.to_owned() })
    }

    #[test]
    fn a_journal_tells_the_session_the_model_who_pays_and_what_was_said() {
        let started = agent(AgentEvent::Started {
            session_id: Some("s".into()),
            model: Some("m".into()),
            key_source: Some("none".into()),
            version: None,
        });
        let mut recall = Recall::default();
        assert_eq!(Recall::default().outcome(), JobOutcome::default(), "nothing is known of nothing");
        for event in
            [JournalEvent::Dispatched, JournalEvent::ProcessStarted { pid: 7 }, started, text("one"), text("two")]
        {
            recall.fold(&event);
        }
        let outcome = recall.outcome();
        assert_eq!(outcome.session_id.as_deref(), Some("s"));
        assert_eq!((outcome.model.as_deref(), outcome.billing.as_deref()), (Some("m"), Some("none")));
        assert_eq!((outcome.response.as_deref(), outcome.response_cut), (Some("one\n\ntwo"), false));
        assert_eq!((outcome.cost_usd, outcome.exit), (None, None), "unknown is not zero");
    }

    #[test]
    fn what_the_journal_left_out_is_said_to_be_cut() {
        for shortened in [text("a long one…"), JournalEvent::Truncated] {
            let mut recall = Recall::default();
            recall.fold(&text("said"));
            recall.fold(&shortened);
            assert!(recall.outcome().response_cut, "{shortened:?}");
        }
    }
}
