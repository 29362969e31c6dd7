//! Who pays for a run, watched from its first line to its last.
//!
//! Owns: whether the payer is known, and what is a sign that something was paid for. May not know: what an agent's key
//! sources mean ([`Agent::check_start`] does), who ends the run.
//!
//! ```text
//!  unknown ──introduction with a source──▶ known ──extra usage, where it is to stop──▶ stopped
//!     └── wrong source, or a sign of a turn ──▶ stopped
//! ```
//!
//! Invariants: (1) of an agent that names its payer on its stream, nothing of a turn is seen before the payer is known
//! without the run being stopped; (2) a run is stopped once.

use serde::{Deserialize, Serialize};

use super::{Agent, AgentEvent, AgentResult, Payment};
use crate::base::fault::{Fault, FaultCode};

/// From where it is known who pays for a run of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PayerKnown {
    /// From its login and its environment, before it is started; or nothing is paid at all.
    BeforeStart,
    /// From its own words, which are to come before its first turn.
    InStream,
}

/// What becomes of a run whose plan is used up and whose provider goes on, for money besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ExtraUsage {
    /// It goes on, and its reply says so.
    #[default]
    Allow,
    /// It is stopped.
    Stop,
}

impl ExtraUsage {
    /// The word of the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Stop => "stop",
        }
    }

    /// The choice of this word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Allow, Self::Stop].into_iter().find(|choice| choice.as_str() == text)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Payer {
    Unknown,
    Known,
    Stopped,
}

/// Watches the events of one run.
#[derive(Debug)]
pub struct PayerGuard {
    payment: Payment,
    extra: ExtraUsage,
    payer: Payer,
    answered: bool,
}

impl PayerGuard {
    /// A guard for a run of an agent that makes its payer known so.
    #[must_use]
    pub fn new(known: PayerKnown, payment: Payment, extra: ExtraUsage) -> Self {
        let payer = match known {
            PayerKnown::BeforeStart => Payer::Known,
            PayerKnown::InStream => Payer::Unknown,
        };
        Self { payment, extra, payer, answered: false }
    }

    /// Whether the run may go on after this event, the next one of it.
    ///
    /// # Errors
    ///
    /// `billing_mismatch`, once: the run is to be ended on the spot.
    pub fn look(&mut self, agent: &dyn Agent, event: &AgentEvent) -> Result<(), Fault> {
        let looked = match (self.payer, event) {
            (Payer::Stopped, _) => return Ok(()),
            (_, AgentEvent::Started { key_source, .. }) => {
                let checked = agent.check_start(event, self.payment);
                if checked.is_ok() && key_source.is_some() {
                    self.payer = Payer::Known;
                }
                checked
            }
            (Payer::Unknown, event) if costs(event) => Err(unnamed()),
            // An answer that is there is paid for already.
            (_, AgentEvent::ExtraUsage) if self.extra == ExtraUsage::Stop && !self.answered => Err(extra_usage()),
            _ => Ok(()),
        };
        self.answered |= matches!(event, AgentEvent::Result { .. });
        if looked.is_err() {
            self.payer = Payer::Stopped;
        }
        looked
    }
}

/// Whether somebody pays, or has paid, when this is said.
fn costs(event: &AgentEvent) -> bool {
    match event {
        AgentEvent::Result { result } => !is_refusal_for_free(result),
        event => event.is_of_a_turn() || *event == AgentEvent::ExtraUsage,
    }
}

/// A run that failed before it began says so in a result, and its own reason is what its caller needs.
fn is_refusal_for_free(result: &AgentResult) -> bool {
    let failed = result.is_error || result.subtype.as_deref().is_some_and(|subtype| subtype.starts_with("error_"));
    failed && result.cost_usd.is_none_or(|cost| cost <= 0.0)
}

fn unnamed() -> Fault {
    Fault::new(
        FaultCode::BillingMismatch,
        "The agent began to work and did not say who pays, so it was ended.".to_owned(),
    )
    .hint("A program that stands in for the agent, or a version that is too old, hides its introduction; `phone-opus doctor` names the program.")
}

fn extra_usage() -> Fault {
    Fault::new(
        FaultCode::BillingMismatch,
        "The plan is used up and more would be paid for besides (extra usage), so the agent was ended.".to_owned(),
    )
    .hint("Wait until the plan's limit is lifted, or set `extra_usage = \"allow\"` in your configuration.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::{ClaudeCode, Credential};
    use crate::jobs::Billing;

    fn started(source: Option<&str>) -> AgentEvent {
        AgentEvent::Started {
            session_id: Some("s".into()),
            model: None,
            key_source: source.map(str::to_owned),
            version: None,
        }
    }

    fn result(result: AgentResult) -> AgentEvent {
        AgentEvent::Result { result: Box::new(result) }
    }

    fn text() -> AgentEvent {
        AgentEvent::Text { text: "x".into() }
    }

    /// The number of the event the run is stopped at.
    fn stopped_at(known: PayerKnown, extra: ExtraUsage, events: &[AgentEvent]) -> Option<usize> {
        let payment = Payment { billing: Billing::Subscription, credential: Credential::Nothing };
        let mut guard = PayerGuard::new(known, payment, extra);
        let mut stops = events.iter().enumerate().filter_map(|(number, event)| {
            let fault = guard.look(&ClaudeCode::default(), event).err()?;
            assert_eq!(fault.code, FaultCode::BillingMismatch);
            Some(number)
        });
        let first = stops.next();
        assert_eq!(stops.next(), None, "a run is stopped once");
        first
    }

    #[test]
    fn nothing_of_a_turn_goes_by_before_the_payer_is_known() {
        let answer = || result(AgentResult { text: Some("42".into()), ..AgentResult::default() });
        let other = |kind: &str| AgentEvent::Other { kind: kind.into() };
        let good = || started(Some("none"));
        for (events, stopped) in [
            (vec![good(), text(), answer()], None),
            (vec![other("system/ui_invalidate"), good(), text()], None),
            (vec![AgentEvent::Garbage { bytes: 3 }, good(), answer()], None),
            (vec![started(None), good(), text()], None),
            (vec![started(Some("ANTHROPIC_API_KEY")), text(), answer()], Some(0)),
            (vec![good(), started(Some("apiKeyHelper")), text()], Some(1)),
            (vec![text(), answer()], Some(0)),
            (vec![answer()], Some(0)),
            (vec![started(None), text()], Some(1)),
            (vec![AgentEvent::Garbage { bytes: 90 }, AgentEvent::Thinking], Some(1)),
            (vec![AgentEvent::ToolUse { tool: "Read".into() }, good()], Some(0)),
            (vec![AgentEvent::ToolResult], Some(0)),
            (vec![other("assistant/nested")], Some(0)),
            (vec![other("stream_event")], Some(0)),
            (vec![AgentEvent::ExtraUsage], Some(0)),
            (vec![other("system/status"), other("tomorrow")], None),
        ] {
            assert_eq!(stopped_at(PayerKnown::InStream, ExtraUsage::Allow, &events), stopped, "{events:?}");
        }
        assert_eq!(stopped_at(PayerKnown::BeforeStart, ExtraUsage::Allow, &[text(), answer()]), None);
    }

    #[test]
    fn a_run_that_failed_before_it_began_is_told_its_own_reason() {
        let failed = |cost_usd| {
            result(AgentResult {
                is_error: true,
                subtype: Some("error_during_execution".into()),
                cost_usd,
                ..AgentResult::default()
            })
        };
        for (cost, stopped) in [(None, None), (Some(0.0), None), (Some(0.1), Some(0))] {
            assert_eq!(stopped_at(PayerKnown::InStream, ExtraUsage::Allow, &[failed(cost)]), stopped, "{cost:?}");
        }
    }

    #[test]
    fn extra_usage_is_stopped_where_that_was_chosen_and_an_answer_is_never_thrown_away_for_it() {
        let begin = || vec![started(Some("none")), text(), AgentEvent::ExtraUsage];
        let late = vec![started(Some("none")), result(AgentResult::default()), AgentEvent::ExtraUsage];
        for (known, begins) in [(PayerKnown::InStream, begin()), (PayerKnown::BeforeStart, begin())] {
            assert_eq!(stopped_at(known, ExtraUsage::Allow, &begins), None);
            assert_eq!(stopped_at(known, ExtraUsage::Stop, &begins), Some(2));
        }
        assert_eq!(stopped_at(PayerKnown::InStream, ExtraUsage::Stop, &late), None);
        for choice in [ExtraUsage::Allow, ExtraUsage::Stop] {
            assert_eq!(ExtraUsage::parse(choice.as_str()), Some(choice));
        }
    }
}
