//! One followed process: when its gaps are read from the peer.
//!
//! Owns: the pauses before, between and without reads, and what an answer to one means. May not know: connections, ids of
//! requests beyond the one it waits for.
//!
//! ```text
//! complete --hole--> 200 ms (or at once when much waits) --process/read--> complete | again after 50 ms .. 2 s
//! complete --nothing heard for 0.5 s, doubling to 30 s--> process/read   (the last events may be what was lost)
//! ```
//!
//! Invariant: one read at a time, and each with a deadline.

use std::time::Duration;

use serde_json::value::RawValue;
use tokio::time::Instant;

use super::super::core::{ProcessLog, Urgency};
use super::super::session::ProcessSession;
use super::super::wire::{self, ReadAnswer, ReadParams, WireError, code};
use super::NONSENSE_LIMIT;

/// What a missing event gets to arrive by itself.
const GAP_PATIENCE: Duration = Duration::from_millis(200);

/// The pauses between reads that did not close a gap.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(2);

/// The pauses between looks at a session of which nothing is heard. The first keeps a lost last event under a second, the
/// last costs a quiet job two lines a minute.
const QUIET_FIRST: Duration = Duration::from_millis(500);
const QUIET_LAST: Duration = Duration::from_secs(30);

/// What the peer gets to answer a read of our own, which never waits.
const READ_DEADLINE: Duration = Duration::from_secs(5);

/// One followed process.
#[derive(Debug)]
pub(in crate::exec) struct Route {
    pub(in crate::exec) session: ProcessSession,
    reading: Option<Reading>,
    /// The gap at the head and since when it is there.
    gap: Option<(u64, Instant)>,
    /// No read before this, after one that did not help.
    not_before: Instant,
    retry: Duration,
    /// The next look when nothing is heard.
    quiet_at: Instant,
    quiet: Duration,
    /// Answers in a row that could not be understood.
    nonsense: u32,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    id: i64,
    until: Instant,
}

/// What a route wants that has become due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::exec) enum RouteDue {
    /// To read what follows this position.
    Read(u64),
    /// To forget the read of this id: it was not answered in time.
    GiveUp(i64),
}

impl Route {
    /// A route that reads at once, for what was pushed before it existed.
    pub(in crate::exec) fn new(session: ProcessSession, now: Instant) -> Self {
        Self {
            session,
            reading: None,
            gap: None,
            not_before: now,
            retry: RETRY_FIRST,
            quiet_at: now,
            quiet: QUIET_FIRST,
            nonsense: 0,
        }
    }

    /// The session heard something by itself.
    pub(in crate::exec) fn heard(&mut self, now: Instant) {
        self.quiet = QUIET_FIRST;
        self.quiet_at = now + self.quiet;
        self.note_gap(now);
    }

    /// Reads as soon as it is asked what is due; what was asked before is not answered any more.
    pub(in crate::exec) fn read_again(&mut self, now: Instant) {
        self.reading = None;
        self.not_before = now;
        self.retry = RETRY_FIRST;
        self.quiet_at = now;
        self.quiet = QUIET_FIRST;
    }

    fn note_gap(&mut self, now: Instant) {
        let after = self.session.look(|core| core.need_read().map(|need| need.after));
        self.gap = after.map(|after| match self.gap {
            Some((known, since)) if known == after => (known, since),
            _ => (after, now),
        });
    }

    /// When this route has to do something next.
    pub(in crate::exec) fn due_at(&self) -> Instant {
        if let Some(reading) = self.reading {
            return reading.until;
        }
        // A gap is noted whenever there may be one, so without one nothing has to be looked up.
        let wanted = match self.gap {
            None => self.quiet_at,
            Some((_, since)) => match self.session.look(ProcessLog::need_read) {
                Some(need) if need.urgency == Urgency::Patient => since + GAP_PATIENCE,
                Some(_) => since,
                None => self.quiet_at,
            },
        };
        wanted.max(self.not_before)
    }

    /// What is to be done now. A read that is wanted must be followed by [`Route::sent`] or [`Route::not_sent`].
    pub(in crate::exec) fn due(&mut self, now: Instant) -> Option<RouteDue> {
        if self.due_at() > now {
            return None;
        }
        if let Some(reading) = self.reading.take() {
            self.back_off(now);
            return Some(RouteDue::GiveUp(reading.id));
        }
        Some(RouteDue::Read(self.session.last_seq()))
    }

    /// The read it wanted.
    pub(in crate::exec) fn params(process_id: &str, after: u64) -> ReadParams {
        ReadParams { process_id: process_id.to_owned(), after_seq: Some(after), max_bytes: None, wait_ms: Some(0) }
    }

    /// The read was sent.
    pub(in crate::exec) fn sent(&mut self, id: i64, now: Instant) {
        self.next_look(now);
        self.reading = Some(Reading { id, until: now + READ_DEADLINE });
    }

    /// The read could not be sent.
    pub(in crate::exec) fn not_sent(&mut self, now: Instant) {
        self.next_look(now);
        self.back_off(now);
    }

    fn next_look(&mut self, now: Instant) {
        self.quiet_at = now + self.quiet;
        self.quiet = (self.quiet * 2).min(QUIET_LAST);
    }

    fn back_off(&mut self, now: Instant) {
        self.not_before = now + self.retry;
        self.retry = (self.retry * 2).min(RETRY_LAST);
    }

    /// A read of what follows `after` was answered. Answers it does not wait for change nothing.
    pub(in crate::exec) fn answered(
        &mut self,
        id: i64,
        after: u64,
        outcome: Result<Box<RawValue>, WireError>,
        now: Instant,
    ) {
        // A process may have been given up and followed again; then another read counts.
        if self.reading.is_none_or(|reading| reading.id != id) {
            return;
        }
        self.reading = None;
        match outcome.map(|answer| wire::read_params::<ReadAnswer>(&answer)) {
            Ok(Ok(answer)) => {
                self.nonsense = 0;
                let before = self.session.last_seq();
                let is_whole = self.session.change(|core| {
                    core.receive_read(after, answer.into());
                    core.need_read().is_none()
                });
                if is_whole || self.session.last_seq() > before {
                    self.retry = RETRY_FIRST;
                } else {
                    self.back_off(now);
                }
            }
            Ok(Err(error)) => {
                self.nonsense += 1;
                self.back_off(now);
                if self.nonsense >= NONSENSE_LIMIT {
                    self.session.publish_failed(format!("the exec server's answers cannot be read: {error}"));
                }
            }
            Err(error) if error.code == code::INVALID_REQUEST => {
                self.session.publish_failed(format!("the exec server does not know the process: {}", error.message));
            }
            Err(_) => self.back_off(now),
        }
        self.note_gap(now);
    }
}
