//! How much one client may ask.

use std::time::{Duration, Instant};

/// Requests that one client may make in a minute; a household with three phones makes forty.
const REQUESTS_PER_MINUTE: u32 = 120;

/// What a client has left, as a bucket that fills again.
pub struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    pub fn new(now: Instant) -> Self {
        Self { left: f64::from(REQUESTS_PER_MINUTE), at: now }
    }

    /// Whether one more is served now.
    pub fn take(&mut self, now: Instant) -> bool {
        let since = now.duration_since(self.at).as_secs_f64() / Duration::from_secs(60).as_secs_f64();
        self.left = (self.left + since * f64::from(REQUESTS_PER_MINUTE)).min(f64::from(REQUESTS_PER_MINUTE));
        self.at = now;
        let may = self.left >= 1.0;
        self.left -= f64::from(u8::from(may));
        may
    }
}
