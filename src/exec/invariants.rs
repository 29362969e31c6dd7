//! The laws of process sessions, as functions that tests and rigs call.
//!
//! Owns: one `invariant_*` per law. Knows events and the core's public face only.

use super::core::{ProcessLog, RECOVERY_BYTES, RECOVERY_EVENTS, REORDER_BYTES, REORDER_EVENTS, RING_OUTPUTS};
use super::{ProcessEvent, RING_BYTES};

/// A law that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{law}: {detail}")]
pub struct Violation {
    /// The law, in words.
    pub law: &'static str,
    /// What was seen instead.
    pub detail: String,
}

fn violated(law: &'static str, detail: impl Into<String>) -> Result<(), Violation> {
    Err(Violation { law, detail: detail.into() })
}

/// Every position from 1 on is an event or lies in exactly one `Lagged`, in order.
///
/// # Errors
/// The first place where it does not hold.
#[doc(hidden)]
pub fn invariant_positions_have_no_gap(events: &[ProcessEvent]) -> Result<(), Violation> {
    const LAW: &str = "every position is published or announced as lost, once and in order";
    let mut seen = 0;
    for event in events {
        let (first, last) = match event {
            ProcessEvent::Output { seq, .. } | ProcessEvent::Exited { seq, .. } | ProcessEvent::Closed { seq } => {
                (*seq, *seq)
            }
            ProcessEvent::Lagged { from, to } => (*from, *to),
            ProcessEvent::Failed { .. } => continue,
        };
        if first != seen + 1 || last < first {
            return violated(LAW, format!("{event:?} after position {seen}"));
        }
        seen = last;
    }
    Ok(())
}

/// Nothing follows a terminal event, and the exit happens at most once.
///
/// # Errors
/// The first event that should not be there.
#[doc(hidden)]
pub fn invariant_at_most_one_terminal_and_last(events: &[ProcessEvent]) -> Result<(), Violation> {
    const LAW: &str = "at most one terminal event, and it is the last; at most one exit";
    let exits = events.iter().filter(|event| matches!(event, ProcessEvent::Exited { .. })).count();
    if exits > 1 {
        return violated(LAW, format!("{exits} exits"));
    }
    match events.iter().position(ProcessEvent::is_terminal) {
        Some(place) if place + 1 != events.len() => violated(LAW, format!("{:?} follows the end", events[place + 1])),
        _ => Ok(()),
    }
}

/// A finished session has its terminal event.
///
/// # Errors
/// When the list does not end with one, or breaks the law above.
#[doc(hidden)]
pub fn invariant_exactly_one_terminal_and_last(events: &[ProcessEvent]) -> Result<(), Violation> {
    invariant_at_most_one_terminal_and_last(events)?;
    match events.last() {
        Some(last) if last.is_terminal() => Ok(()),
        last => violated("exactly one terminal event", format!("the last event is {last:?}")),
    }
}

/// What was published is what was sent, but for announced losses of output.
///
/// # Errors
/// The first event that was invented, changed, or lost without being output.
#[doc(hidden)]
pub fn invariant_published_is_sent_minus_lagged(
    sent: &[ProcessEvent],
    published: &[ProcessEvent],
) -> Result<(), Violation> {
    const LAW: &str = "the published list is the sent list minus announced losses of output";
    let mut rest = sent.iter();
    for event in published {
        match event {
            ProcessEvent::Failed { .. } => {}
            ProcessEvent::Lagged { from, to } => {
                for lost in *from..=*to {
                    match rest.next() {
                        Some(ProcessEvent::Output { seq, .. }) if *seq == lost => {}
                        other => return violated(LAW, format!("position {lost} is said to be lost but was {other:?}")),
                    }
                }
            }
            event => {
                let expected = rest.next();
                if expected != Some(event) {
                    return violated(LAW, format!("published {event:?}, sent {expected:?}"));
                }
            }
        }
    }
    Ok(())
}

/// Retained and waiting events stay within their bounds.
///
/// # Errors
/// The numbers that are over.
#[doc(hidden)]
pub fn invariant_core_is_bounded(core: &ProcessLog) -> Result<(), Violation> {
    let (events, bytes) = core.retained();
    let (waiting, waiting_bytes) = core.waiting();
    let (most, most_bytes) = match core.is_recovering() {
        true => (RECOVERY_EVENTS, RECOVERY_BYTES),
        false => (REORDER_EVENTS, REORDER_BYTES),
    };
    if events > RING_OUTPUTS || (bytes > RING_BYTES && events > 1) || waiting > most + 2 || waiting_bytes > most_bytes {
        return violated(
            "retained and waiting events are bounded",
            format!("{events} events, {bytes} bytes retained; {waiting} events, {waiting_bytes} bytes waiting"),
        );
    }
    Ok(())
}
