//! What a run has said so far, folded from its events.
//!
//! Owns: which of several reports counts. May not know what an end means.
//!
//! Invariants: (1) of results the last one counts; (2) of texts the newest are kept; (3) the size is bounded: one
//! result, [`MAX_PARTIAL_BYTES`] of text, [`MAX_DENIALS`] denials.

use super::{AgentEvent, AgentResult};
use crate::base::ids::UnixMillis;
use crate::jobs::PermissionDenial;

/// Bytes of text kept for a run that ends without an answer. The newest are kept: they are nearest to the answer.
const MAX_PARTIAL_BYTES: usize = 256 << 10;
/// Denials kept; the list shows what was refused, not how often.
const MAX_DENIALS: usize = 64;

/// What the agent said about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Started {
    /// Its session.
    pub session_id: Option<String>,
    /// The model it will use.
    pub model: Option<String>,
    /// Where it says its key comes from.
    pub key_source: Option<String>,
    /// Its version.
    pub version: Option<String>,
}

/// Everything about a run's output that its end is judged by.
///
/// ```
/// use phone_opus::{AgentEvent, AgentProfile, JobState, RunEnd, RunExit, RunSummary};
///
/// let mut said = RunSummary::new();
/// said.fold(&AgentEvent::Text { text: "Forty-two.".to_owned() });
/// assert_eq!((said.last_message(), said.partial_text()), ("Forty-two.", "Forty-two."));
/// assert!(said.started().is_none() && said.result().is_none() && said.error().is_none() && said.denials().is_empty());
/// assert!(said.limit().is_none() && said.retry_at().is_none());       // no limit of the provider's was reached
///
/// let mut end = RunEnd::default();
/// end.summary = said;
/// end.exit = Some(RunExit { code: 0, signal: None, reaped: 0 });
/// let verdict = AgentProfile::new("The oracle").answers_by_ending_well().classify(end);
/// assert_eq!((verdict.state, verdict.outcome.response.as_deref()), (JobState::Succeeded, Some("Forty-two.")));
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunSummary {
    started: Option<Started>,
    result: Option<Box<AgentResult>>,
    error: Option<String>,
    denials: Vec<PermissionDenial>,
    retry_at: Option<UnixMillis>,
    limit: Option<String>,
    extra_usage: bool,
    /// Whether the model went on after the last result.
    went_on: bool,
    partial: String,
    partial_cut: bool,
    /// Where the last message begins in `partial`; `None` when no text came since the last use of a tool.
    last_message: Option<usize>,
    events: u64,
    garbage_bytes: u64,
}

impl RunSummary {
    /// A run that has said nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one event into account.
    pub fn fold(&mut self, event: &AgentEvent) {
        self.events += 1;
        self.went_on |= event.is_of_a_turn() && self.result.is_some();
        match event {
            AgentEvent::Started { session_id, model, key_source, version } => {
                let started = self.started.get_or_insert_default();
                keep_newest(&mut started.session_id, session_id);
                keep_newest(&mut started.model, model);
                keep_newest(&mut started.key_source, key_source);
                keep_newest(&mut started.version, version);
            }
            AgentEvent::Text { text } => {
                // The agent answers again, so the error before is overcome.
                self.error = None;
                self.add_text(text);
            }
            AgentEvent::ProviderError { class } => self.error = Some(class.clone()),
            AgentEvent::Denied { denial } => {
                if self.denials.len() < MAX_DENIALS && !self.denials.contains(denial) {
                    self.denials.push(denial.clone());
                }
            }
            AgentEvent::Limited { retry_at, limit } => {
                self.retry_at = retry_at.or(self.retry_at);
                keep_newest(&mut self.limit, limit);
            }
            AgentEvent::ExtraUsage => self.extra_usage = true,
            AgentEvent::Result { result } => {
                self.result = Some(result.clone());
                self.went_on = false;
            }
            AgentEvent::Garbage { bytes } => self.garbage_bytes = self.garbage_bytes.saturating_add(*bytes),
            AgentEvent::Thinking => self.error = None,
            AgentEvent::ToolUse { .. } => {
                self.error = None;
                self.last_message = None;
            }
            AgentEvent::ToolResult => self.last_message = None,
            AgentEvent::Retrying { .. } | AgentEvent::Other { .. } => {}
        }
    }

    /// What the agent said about itself.
    #[must_use]
    pub fn started(&self) -> Option<&Started> {
        self.started.as_ref()
    }

    /// The last result.
    #[must_use]
    pub fn result(&self) -> Option<&AgentResult> {
        self.result.as_deref()
    }

    /// The error class the provider's last answer had.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.result().and_then(|result| result.error.as_deref()).or(self.error.as_deref())
    }

    /// The texts so far, paragraph by paragraph; the newest when they were too many.
    #[must_use]
    pub fn partial_text(&self) -> &str {
        &self.partial
    }

    /// The last message, as far as it is text: what was said since the last use of a tool.
    #[must_use]
    pub fn last_message(&self) -> &str {
        self.last_message.and_then(|from| self.partial.get(from..)).unwrap_or_default()
    }

    /// Whether the model went on after the last result, so that this result is not the end.
    #[must_use]
    #[doc(hidden)]
    pub fn went_on(&self) -> bool {
        self.went_on
    }

    /// Whether anything was used beyond the plan, and paid for besides.
    #[must_use]
    #[doc(hidden)]
    pub fn extra_usage(&self) -> bool {
        self.extra_usage
    }

    /// Which usage limit was reached, by the provider's name for it.
    #[must_use]
    pub fn limit(&self) -> Option<&str> {
        self.limit.as_deref()
    }

    /// Whether the beginning of the texts was dropped.
    #[must_use]
    #[doc(hidden)]
    pub fn partial_text_cut(&self) -> bool {
        self.partial_cut
    }

    /// Refused tool uses, from events and result.
    #[must_use]
    pub fn denials(&self) -> &[PermissionDenial] {
        match self.result() {
            Some(result) if result.permission_denials.len() >= self.denials.len() => &result.permission_denials,
            _ => &self.denials,
        }
    }

    /// When the provider's limit is lifted, if it said so.
    #[must_use]
    pub fn retry_at(&self) -> Option<UnixMillis> {
        self.retry_at
    }

    /// How many events there were, garbage included.
    #[must_use]
    #[doc(hidden)]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// How many bytes of output were not the agent's format.
    #[must_use]
    #[doc(hidden)]
    pub fn garbage_bytes(&self) -> u64 {
        self.garbage_bytes
    }

    /// The answer's text, moved out.
    pub(super) fn take_result_text(&mut self) -> Option<String> {
        self.result.as_mut().and_then(|result| result.text.take())
    }

    /// The texts so far, moved out.
    pub(super) fn take_partial_text(&mut self) -> String {
        std::mem::take(&mut self.partial)
    }

    fn add_text(&mut self, text: &str) {
        if text.trim().is_empty() {
            return;
        }
        if !self.partial.is_empty() {
            self.partial.push_str("\n\n");
        }
        self.last_message.get_or_insert(self.partial.len());
        self.partial.push_str(text);
        if self.partial.len() > MAX_PARTIAL_BYTES {
            let mut from = self.partial.len() - MAX_PARTIAL_BYTES;
            while !self.partial.is_char_boundary(from) {
                from += 1;
            }
            // A new string, so that one huge text does not keep its capacity.
            self.partial = self.partial[from..].to_owned();
            self.partial_cut = true;
            self.last_message = self.last_message.map(|begins| begins.saturating_sub(from));
        }
    }
}

fn keep_newest(kept: &mut Option<String>, new: &Option<String>) {
    if new.is_some() {
        kept.clone_from(new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> AgentEvent {
        AgentEvent::Text { text: text.to_owned() }
    }

    fn result(text: &str) -> AgentEvent {
        AgentEvent::Result { result: Box::new(AgentResult { text: Some(text.to_owned()), ..AgentResult::default() }) }
    }

    #[test]
    fn the_last_result_wins() {
        let mut summary = RunSummary::new();
        for event in [result("first"), text("more"), result("second"), text("after")] {
            summary.fold(&event);
        }
        assert_eq!(summary.result().and_then(|result| result.text.as_deref()), Some("second"));
        assert_eq!(summary.partial_text(), "more\n\nafter");
    }

    #[test]
    fn the_last_message_is_what_was_said_since_the_last_use_of_a_tool() {
        let mut summary = RunSummary::new();
        assert_eq!(summary.last_message(), "");
        for event in [text("let me see"), AgentEvent::ToolUse { tool: "Read".into() }, AgentEvent::ToolResult] {
            summary.fold(&event);
        }
        assert_eq!((summary.partial_text(), summary.last_message()), ("let me see", ""));
        summary.fold(&text("so"));
        summary.fold(&text("it is"));
        assert_eq!(summary.last_message(), "so\n\nit is");
        let long = "ü".repeat(MAX_PARTIAL_BYTES);
        summary.fold(&text(&long));
        assert!(summary.last_message().len() > MAX_PARTIAL_BYTES - 4);
    }

    #[test]
    fn a_result_is_not_the_end_when_the_model_goes_on() {
        let mut summary = RunSummary::new();
        let other = AgentEvent::Other { kind: "system/status".into() };
        for (event, went_on) in [
            (text("a"), false),
            (result("first"), false),
            (other, false),
            (AgentEvent::Thinking, true),
            (result("second"), false),
        ] {
            summary.fold(&event);
            assert_eq!(summary.went_on(), went_on, "{event:?}");
        }
    }

    #[test]
    fn text_is_bounded_and_the_newest_is_kept() {
        let mut summary = RunSummary::new();
        for round in 0..100 {
            summary.fold(&text(&"ü".repeat(10_000)));
            summary.fold(&text(&format!("round {round}")));
        }
        assert!(summary.partial_text().len() <= MAX_PARTIAL_BYTES);
        assert!(summary.partial_text().ends_with("round 99"));
        assert!(summary.partial_text_cut());
    }

    #[test]
    fn denials_are_bounded_and_not_repeated() {
        let mut summary = RunSummary::new();
        for number in 0..1_000 {
            let target = Some(format!("/{}", number / 2));
            summary.fold(&AgentEvent::Denied { denial: PermissionDenial { tool: "Read".into(), target } });
        }
        assert_eq!(summary.denials().len(), MAX_DENIALS);
        assert_eq!(summary.denials()[1].target.as_deref(), Some("/1"));
    }

    #[test]
    fn an_introduction_that_comes_twice_keeps_what_only_the_first_said() {
        let mut summary = RunSummary::new();
        let started = |session: Option<&str>, model: Option<&str>| AgentEvent::Started {
            session_id: session.map(str::to_owned),
            model: model.map(str::to_owned),
            key_source: None,
            version: None,
        };
        summary.fold(&started(Some("s"), Some("m")));
        summary.fold(&started(None, Some("n")));
        let seen = summary.started().expect("started");
        assert_eq!((seen.session_id.as_deref(), seen.model.as_deref()), (Some("s"), Some("n")));
    }
}
