//! How long a host is believed to live after it said so, and the times that follow from that.
//!
//! One number for a whole fleet: whoever tells a host that it lives tells it how long. May not know: a clock.

use std::time::Duration;

use super::{LEASE, POLL};

/// The lease of a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FleetLease(Duration);

impl Default for FleetLease {
    fn default() -> Self {
        Self(LEASE)
    }
}

impl FleetLease {
    /// The shortest one: a renewal on a busy machine still comes in time.
    pub const LEAST: Duration = Duration::from_secs(1);

    /// The longest one. A lost host's jobs wait for twice as long.
    pub const MOST: Duration = Duration::from_secs(60 * 60);

    /// One of so many milliseconds, or as near as there is.
    #[must_use]
    pub fn of_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis).clamp(Self::LEAST, Self::MOST))
    }

    /// How long it is.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }

    /// How often a host says that it lives, so that three renewals may be lost.
    #[must_use]
    pub fn renew_every(self) -> Duration {
        self.0 / 4
    }

    /// How often a host takes from others what hosts that are gone had. All of them do, so any one's is enough.
    #[must_use]
    pub fn sweep_every(self) -> Duration {
        self.0 / 2
    }

    /// How often whoever depends on the fleet looks, whether or not it was told of anything.
    #[must_use]
    pub fn look_every(self) -> Duration {
        (self.0 / 12).min(POLL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_renewed_swept_and_looked_at_as_often_as_its_length_asks() {
        let seconds = Duration::from_secs;
        for (millis, lease, renew, sweep, look) in [
            (60_000, seconds(60), seconds(15), seconds(30), seconds(5)),
            (12_000, seconds(12), seconds(3), seconds(6), seconds(1)),
            (0, seconds(1), Duration::from_millis(250), Duration::from_millis(500), seconds(1) / 12),
            (u64::MAX, seconds(3_600), seconds(900), seconds(1_800), seconds(5)),
        ] {
            let found = FleetLease::of_millis(millis);
            let times = (found.get(), found.renew_every(), found.sweep_every(), found.look_every());
            assert_eq!(times, (lease, renew, sweep, look), "{millis}");
        }
        assert_eq!(FleetLease::default(), FleetLease::of_millis(60_000));
    }
}
