//! Whether a silent peer is still there.
//!
//! Owns: when it is asked, and when it counts as gone. May not know: sockets; who asks tells it the time.
//!
//! ```text
//! a frame ──▶ heard ──15 s──▶ asked ──15 s──▶ asked again ──15 s──▶ gone
//! doubted ──▶ asked at once ──3 s──▶ gone
//! ```
//!
//! Invariants: (1) nobody is gone who was not asked twice (once, when doubted), so a side that did not look for a while blames
//! nobody for its own absence; (2) a peer that cannot be asked, because it reads nothing, is not gone before [`STALLED`].

use std::time::{Duration, Instant};

/// Silence after which a peer is asked.
pub const ASK_AFTER: Duration = Duration::from_secs(15);

/// Silence after which it is gone: three questions' time.
pub const GONE_AFTER: Duration = Duration::from_secs(45);

/// What a doubted peer gets to answer: a round trip on the worst network that is of any use.
pub const DOUBT: Duration = Duration::from_secs(3);

/// How long a peer may read nothing. Its system says that it lives, and what is for it waits; but not for ever.
pub const STALLED: Duration = Duration::from_secs(600);

/// What is known of a peer.
#[derive(Debug, Clone)]
pub struct Keepalive {
    heard: Instant,
    /// When it was asked last, and how often since it was heard.
    asked: Option<(Instant, u32)>,
    doubted: Option<Instant>,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing until then.
    Wait(Instant),
    /// Ask it.
    Ask,
    /// It is gone.
    Gone,
}

impl Keepalive {
    /// A peer that was heard now.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self { heard: now, asked: None, doubted: None }
    }

    /// A frame came.
    pub fn heard(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// It was asked.
    pub fn asked(&mut self, now: Instant) {
        let before = self.asked.map_or(0, |(_, times)| times);
        self.asked = Some((now, before + 1));
    }

    /// Somebody says that it is gone.
    pub fn doubt(&mut self, now: Instant) {
        self.doubted.get_or_insert(now);
    }

    /// What is to be done.
    #[must_use]
    pub fn due(&self, now: Instant) -> Due {
        let asked_since = |from: Instant| self.asked.is_some_and(|(at, _)| at >= from);
        if now >= self.heard + STALLED {
            return Due::Gone;
        }
        if let Some(doubted) = self.doubted {
            return match () {
                // Even one that cannot be asked: somebody who has its session says that it is gone.
                () if now >= doubted + DOUBT => Due::Gone,
                () if asked_since(doubted) => Due::Wait(doubted + DOUBT),
                () => Due::Ask,
            };
        }
        match self.asked {
            None if now >= self.heard + ASK_AFTER => Due::Ask,
            None => Due::Wait(self.heard + ASK_AFTER),
            Some((at, times)) if now >= at + ASK_AFTER => {
                if times >= 2 && now >= self.heard + GONE_AFTER {
                    Due::Gone
                } else {
                    Due::Ask
                }
            }
            Some((at, _)) => Due::Wait(at + ASK_AFTER),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_silent_peer_is_asked_twice_and_gone_after_forty_five_seconds() {
        let start = Instant::now();
        let mut peer = Keepalive::new(start);
        assert_eq!(peer.due(start + s(14)), Due::Wait(start + s(15)));
        assert_eq!(peer.due(start + s(15)), Due::Ask);
        peer.asked(start + s(15));
        assert_eq!(peer.due(start + s(20)), Due::Wait(start + s(30)));
        assert_eq!(peer.due(start + s(30)), Due::Ask);
        peer.asked(start + s(30));
        assert_eq!(peer.due(start + s(44)), Due::Wait(start + s(45)));
        assert_eq!(peer.due(start + s(45)), Due::Gone);
        peer.heard(start + s(45));
        assert_eq!(peer.due(start + s(50)), Due::Wait(start + s(60)));
    }

    #[test]
    fn nobody_is_gone_because_nobody_looked() {
        let start = Instant::now();
        let mut peer = Keepalive::new(start);
        // A minute in which this side read nothing: the peer was never asked.
        assert_eq!(peer.due(start + s(60)), Due::Ask);
        peer.asked(start + s(60));
        assert_eq!(peer.due(start + s(75)), Due::Ask);
        peer.asked(start + s(75));
        assert_eq!(peer.due(start + s(90)), Due::Gone);
        // A peer that cannot be asked has longer, and not for ever.
        let deaf = Keepalive::new(start);
        assert_eq!(deaf.due(start + s(599)), Due::Ask);
        assert_eq!(deaf.due(start + s(600)), Due::Gone);
    }

    #[test]
    fn who_is_doubted_is_asked_at_once_and_has_three_seconds() {
        let start = Instant::now();
        let mut peer = Keepalive::new(start);
        peer.doubt(start + s(1));
        assert_eq!(peer.due(start + s(1)), Due::Ask);
        peer.asked(start + s(1));
        // A second doubt gives no more time.
        peer.doubt(start + s(3));
        assert_eq!(peer.due(start + s(3)), Due::Wait(start + s(4)));
        assert_eq!(peer.due(start + s(4)), Due::Gone);
        peer.heard(start + s(3));
        assert_eq!(peer.due(start + s(4)), Due::Wait(start + s(18)));
    }
}
