//! Whoever takes spans and metrics, as the rest of the system sees it.
//!
//! Owns: the verbs of a collector, what they answer, what follows from an answer (`Deliveries`, pure). May not know: a protocol.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::metrics::Metric;
use super::traces::spans::Span;

/// Tries of one batch. With the waits between them a collector may be away for a minute without a loss.
const TRIES: u32 = 6;

/// The wait before the second try; it doubles.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The longest wait between tries, whatever the collector asks for; and between batches to one that has not answered for so long.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How a batch was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportAnswer {
    /// It was, but for so many that were rejected.
    Taken {
        /// Spans or points that it did not want.
        rejected: u64,
    },
    /// Not now: it may be sent again.
    Later {
        /// When it asks for that.
        after: Option<Duration>,
        /// What was wrong.
        why: String,
    },
    /// It will never be.
    Refused {
        /// What was wrong.
        why: String,
    },
}

/// Takes spans and metrics. Every verb has an end of its own.
pub trait Collector: Send + Sync + 'static {
    /// Sends spans.
    fn spans<'a>(&'a self, spans: &'a [Span]) -> BoxFuture<'a, ExportAnswer>;

    /// Sends the metrics as they are now.
    fn metrics<'a>(&'a self, metrics: &'a [Metric]) -> BoxFuture<'a, ExportAnswer>;

    /// How often metrics are sent; `None` when they are not.
    fn metrics_every(&self) -> Option<Duration>;
}

/// What is to be done after an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Then {
    /// The next batch.
    Next,
    /// The same again, after this.
    Again(Duration),
    /// Nothing more with this batch; it is lost.
    GiveUp,
}

/// What is to be said of it: once when it begins to fail and once when it is well again, not for each batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Say {
    /// It does not take what it is sent, and this is why.
    Fails(String),
    /// It does again.
    IsWell,
}

/// How deliveries to a collector go.
#[derive(Debug, Default)]
pub struct Deliveries {
    tries: u32,
    /// Whether it was said that it fails.
    said: bool,
    /// Whether a whole batch was lost to its silence, since it last took one.
    away: bool,
}

impl Deliveries {
    /// Whether the last batch was not taken at once.
    #[must_use]
    pub const fn fails(&self) -> bool {
        self.said
    }

    /// How long to wait before the next batch.
    #[must_use]
    pub const fn pause(&self) -> Option<Duration> {
        if self.away { Some(LONGEST_WAIT) } else { None }
    }

    /// Judges an answer.
    pub fn step(&mut self, sent: ExportAnswer) -> (Then, Option<Say>) {
        match sent {
            ExportAnswer::Taken { rejected } => {
                let was_said = std::mem::take(&mut self.said);
                (self.tries, self.away) = (0, false);
                if rejected > 0 {
                    self.said = true;
                    let why = format!("it rejected {rejected} of what it was sent");
                    return (Then::Next, (!was_said).then_some(Say::Fails(why)));
                }
                (Then::Next, was_said.then_some(Say::IsWell))
            }
            ExportAnswer::Later { after, why } => {
                self.tries += 1;
                let say = self.fail(why);
                // Of one that was away for so long each batch is tried once.
                if self.away || self.tries >= TRIES {
                    (self.tries, self.away) = (0, true);
                    return (Then::GiveUp, say);
                }
                let wait = FIRST_WAIT * 2_u32.pow(self.tries - 1);
                (Then::Again(after.unwrap_or(wait).clamp(FIRST_WAIT, LONGEST_WAIT)), say)
            }
            ExportAnswer::Refused { why } => {
                self.tries = 0;
                let say = self.fail(why);
                (Then::GiveUp, say)
            }
        }
    }

    fn fail(&mut self, why: String) -> Option<Say> {
        let first = !std::mem::replace(&mut self.said, true);
        first.then_some(Say::Fails(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later() -> ExportAnswer {
        ExportAnswer::Later { after: None, why: "away".to_owned() }
    }

    #[test]
    fn a_collector_that_is_away_is_tried_again_then_given_up_and_spoken_of_once() {
        let mut delivery = Deliveries::default();
        let mut waits = Vec::new();
        let mut said = Vec::new();
        loop {
            let (then, say) = delivery.step(later());
            said.extend(say);
            match then {
                Then::Again(wait) => waits.push(wait.as_secs()),
                Then::GiveUp => break,
                Then::Next => panic!("it was not taken"),
            }
        }
        assert_eq!(waits, [1, 2, 4, 8, 16]);
        assert_eq!((delivery.step(later()), delivery.pause()), ((Then::GiveUp, None), Some(LONGEST_WAIT)));
        assert_eq!(said, [Say::Fails("away".to_owned())]);
        assert_eq!(delivery.step(ExportAnswer::Taken { rejected: 0 }), (Then::Next, Some(Say::IsWell)));
        assert_eq!((delivery.pause(), delivery.fails()), (None, false));
        assert_eq!(delivery.step(ExportAnswer::Taken { rejected: 0 }), (Then::Next, None));
    }

    #[test]
    fn a_wait_that_is_asked_for_is_kept_within_bounds() {
        for (asked, waited) in [(0, 1), (7, 7), (86_400, 30)] {
            let after = Some(Duration::from_secs(asked));
            let (then, _) = Deliveries::default().step(ExportAnswer::Later { after, why: String::new() });
            assert_eq!(then, Then::Again(Duration::from_secs(waited)), "{asked}");
        }
    }

    #[test]
    fn what_is_refused_is_not_sent_again_and_what_is_rejected_is_said() {
        let mut delivery = Deliveries::default();
        let refused = || ExportAnswer::Refused { why: "401".to_owned() };
        assert_eq!(delivery.step(refused()), (Then::GiveUp, Some(Say::Fails("401".to_owned()))));
        assert_eq!(delivery.step(refused()), (Then::GiveUp, None));
        let mut delivery = Deliveries::default();
        let (then, say) = delivery.step(ExportAnswer::Taken { rejected: 3 });
        assert!(then == Then::Next && matches!(say, Some(Say::Fails(why)) if why.contains('3')));
    }
}
