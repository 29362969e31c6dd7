//! The time by which actors decide.
//!
//! It is the runtime's clock, not the system's: under a paused clock a test then sees deadlines, backoffs and restart
//! periods pass as its timers do. Deciding code is given it as an argument and knows no clock.

use std::time::Instant;

/// Now, by the runtime's clock.
#[must_use]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
