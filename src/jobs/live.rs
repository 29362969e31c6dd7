//! A running job as those who wait for it see it.
//!
//! Owns: the phase, the tool in use, the text so far. It is news, not truth: the truth is in the store.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{JobRecord, JobState};
use crate::jobs::journal::AgentEvent;

/// Text kept of what the agent has said so far: what a soft deadline can show.
const TEXT_KEPT: usize = 64 * 1024;

/// What an agent is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It waits for its turn; the place in the queue, once known.
    Queued(Option<usize>),
    /// It is being started.
    Starting,
    /// The model thinks, or is asked.
    Thinking,
    /// It uses a tool.
    Tool(String),
    /// It writes its answer.
    Writing,
    /// It waits to ask its provider again.
    Retrying {
        /// Which try comes next.
        attempt: u64,
        /// How many there are.
        max: u64,
    },
    /// Its answer is there and the run is being ended.
    Ending,
    /// The run is over, and its outcome waits for a store that does not take it.
    Storing,
}

impl Phase {
    /// The phase in a few words.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Queued(Some(place)) => format!("queued, place {place}"),
            Self::Queued(None) => "queued".to_owned(),
            Self::Starting => "starting the agent".to_owned(),
            Self::Thinking => "thinking".to_owned(),
            Self::Tool(tool) => format!("using {}", tool.chars().take(60).collect::<String>()),
            Self::Writing => "writing".to_owned(),
            Self::Retrying { attempt, max } => format!("provider failed, trying again ({attempt} of {max})"),
            Self::Ending => "ending".to_owned(),
            Self::Storing => "answered; the answer waits for the job store (is the disk full?)".to_owned(),
        }
    }
}

/// News of one job.
#[derive(Debug, Clone)]
pub struct JobLive {
    /// What the agent is doing.
    pub phase: Phase,
    /// What it has said so far; the last of it, when it is long.
    pub text: String,
    /// Counts events, so that a waiter can tell whether there is anything new.
    pub events: u64,
    /// The job as it ended; present exactly when it is over.
    pub finished: Option<Arc<JobRecord>>,
    /// The job as it will have ended, while the store does not take its outcome. For whoever waits; it is not the truth yet.
    pub unstored: Option<Arc<JobRecord>>,
    /// It is followed by the store alone: whoever works at it has no pipe to this host.
    pub by_store: bool,
}

impl Default for JobLive {
    fn default() -> Self {
        Self {
            phase: Phase::Queued(None),
            text: String::new(),
            events: 0,
            finished: None,
            unstored: None,
            by_store: false,
        }
    }
}

impl JobLive {
    /// Takes in what the agent reported.
    pub fn fold(&mut self, event: &AgentEvent) {
        self.events += 1;
        match event {
            AgentEvent::Started { .. } | AgentEvent::Thinking | AgentEvent::ToolResult => self.phase = Phase::Thinking,
            AgentEvent::ToolUse { tool } => self.phase = Phase::Tool(tool.clone()),
            AgentEvent::Text { text } => {
                self.phase = Phase::Writing;
                if !self.text.is_empty() {
                    self.text.push_str("\n\n");
                }
                self.text.push_str(text);
                if self.text.len() > TEXT_KEPT {
                    let mut from = self.text.len() - TEXT_KEPT;
                    while !self.text.is_char_boundary(from) {
                        from += 1;
                    }
                    self.text.drain(..from);
                }
            }
            AgentEvent::Retrying { attempt, max, .. } => {
                self.phase = Phase::Retrying { attempt: *attempt, max: *max };
            }
            AgentEvent::Result { .. } => self.phase = Phase::Ending,
            AgentEvent::Denied { .. }
            | AgentEvent::Limited { .. }
            | AgentEvent::ExtraUsage
            | AgentEvent::ProviderError { .. }
            | AgentEvent::Other { .. }
            | AgentEvent::Garbage { .. } => {}
        }
    }

    /// Whether the job is over.
    #[must_use]
    pub fn state(&self) -> JobState {
        match (&self.finished, &self.phase) {
            (Some(record), _) => record.state,
            (None, Phase::Queued(_)) => JobState::Queued,
            (None, _) => JobState::Running,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_so_far_is_bounded_and_cut_between_characters() {
        let mut live = JobLive::default();
        for _ in 0..40 {
            live.fold(&AgentEvent::Text { text: "é".repeat(1500) });
        }
        assert!(live.text.len() <= TEXT_KEPT);
        assert!(live.text.ends_with('é'));
        assert_eq!((live.events, live.state()), (40, JobState::Running));
    }
}
