//! May the session read on? A burst is to be served, not refused, and a stuck worker must not make a ping wait.
//!
//! Owns: how long reading waits for a worker that is behind. May not know: bytes, calls, clocks (`now` is passed in).
//!
//! ```text
//!  free ──crowded──▶ holding ──room again──▶ free
//!                      │ ──PATIENCE without a call settled, or WHOLE──▶ spent ──a call settled──▶ free
//! ```
//!
//! Invariant: between two calls that settle, reading waits once.

use std::time::{Duration, Instant};

/// Calls in flight from which on reading waits for the worker; a quarter of the most a session may have, so that what one
/// read brings finds room.
const CROWD: usize = 256;

/// Bytes of arguments in flight from which on reading waits; a quarter of the most, too.
const CROWD_BYTES: usize = 16 * 1024 * 1024;

/// How long reading waits for the next call to settle. A worker process that is at work settles thousands meanwhile, also
/// on a busy machine; one that is stuck costs a ping this much, once.
const PATIENCE: Duration = Duration::from_millis(50);

/// How long reading waits in all while calls settle but room does not come.
const WHOLE: Duration = Duration::from_millis(100);

/// One session's reading.
#[derive(Debug, Default)]
pub struct Flow {
    /// When it began to wait, and when to stop.
    holding: Option<(Instant, Instant)>,
    spent: bool,
    settled: bool,
}

/// Whether so much is in flight that reading is to be thought about.
#[must_use]
pub fn crowded(calls: usize, bytes: usize) -> bool {
    calls > CROWD || bytes > CROWD_BYTES
}

impl Flow {
    /// There is room.
    pub fn clear(&mut self) {
        if self.holding.is_some() || self.spent {
            *self = Self::default();
        }
    }

    /// A call was settled.
    pub fn settled(&mut self) {
        self.settled = true;
    }

    /// It is crowded. Until when reading waits, unless room comes first; `None` when it does not.
    pub fn crowd(&mut self, now: Instant) -> Option<Instant> {
        let settled = std::mem::take(&mut self.settled);
        if self.spent && !settled {
            return None;
        }
        self.spent = false;
        let (began, mut until) = self.holding.unwrap_or((now, now + PATIENCE));
        if settled {
            until = (now + PATIENCE).min(began + WHOLE);
        }
        if now >= until {
            self.holding = None;
            self.spent = true;
            return None;
        }
        self.holding = Some((began, until));
        Some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn a_stuck_worker_holds_reading_once() {
        let start = Instant::now();
        let mut flow = Flow::default();
        assert_eq!(flow.crowd(start), Some(ms(start, 50)));
        assert_eq!(flow.crowd(ms(start, 49)), Some(ms(start, 50)));
        for later in [50, 51, 1000, 60_000] {
            assert_eq!(flow.crowd(ms(start, later)), None, "at {later} ms");
        }
    }

    #[test]
    fn a_worker_that_settles_calls_is_waited_for_but_not_for_ever() {
        let start = Instant::now();
        let mut flow = Flow::default();
        for at in (0..100).step_by(20) {
            flow.settled();
            assert_eq!(flow.crowd(ms(start, at)), Some(ms(start, (at + 50).min(100))), "at {at} ms");
        }
        flow.settled();
        assert_eq!(flow.crowd(ms(start, 100)), None);
        assert_eq!(flow.crowd(ms(start, 101)), None, "nothing was settled since");
        flow.settled();
        assert_eq!(flow.crowd(ms(start, 102)), Some(ms(start, 152)));
    }

    #[test]
    fn room_makes_everything_new() {
        let start = Instant::now();
        let mut flow = Flow::default();
        flow.crowd(start);
        assert_eq!(flow.crowd(ms(start, 60)), None);
        flow.clear();
        assert_eq!(flow.crowd(ms(start, 61)), Some(ms(start, 111)));
    }
}
