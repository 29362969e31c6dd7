//! One slot's life: when a worker is started, when it is started again, when that is given up.
//!
//! Owns: generations, restart intensity, backoff. May not know: calls, contracts, what a worker does. Whether a
//! *request* runs again is decided in `replay`; nothing here authorises it.
//!
//! ```text
//!  Empty ──start──▶ Starting ──up──▶ Up ──gone──▶ Backoff ──due──▶ Starting
//!                       └──gone──▶ Backoff      └── too often ──▶ GaveUp ──wanted, later──▶ Starting
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::ids::Generation;

/// How often and how fast a slot restarts.
#[derive(Debug, Clone, Copy)]
pub struct RestartPolicy {
    /// Restarts allowed within `period`; one more is giving up.
    pub intensity: usize,
    /// The sliding window.
    pub period: Duration,
    /// The wait before the second restart of a streak; doubles each time. The first restart does not wait.
    pub backoff: Duration,
    /// The longest wait.
    pub backoff_most: Duration,
    /// A worker up for this long has ended the streak.
    pub settled_after: Duration,
}

impl Default for RestartPolicy {
    /// Six restarts wait 0, 50, 100, 200, 400 and 800 ms, well inside the window, so giving up can be reached.
    fn default() -> Self {
        Self {
            intensity: 6,
            period: Duration::from_secs(30),
            backoff: Duration::from_millis(50),
            backoff_most: Duration::from_secs(2),
            settled_after: Duration::from_secs(10),
        }
    }
}

/// Where a slot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotState {
    /// Nothing was started yet: the first call starts the worker.
    Empty,
    /// A worker is being started.
    Starting,
    /// A worker is there.
    Up,
    /// The next start waits.
    Backoff,
    /// Too many restarts; calls are refused until the window has passed.
    GaveUp,
    /// The slot is being stopped; nothing is started any more.
    Stopping,
}

/// What the slot wants done. Exactly one follows from each event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotEffect {
    /// Nothing.
    Nothing,
    /// Start a worker of this generation.
    Start(Generation),
    /// Report [`Slot::due`] with this generation after the wait.
    Wait(Generation, Duration),
    /// Fail what waits: nobody will serve it.
    GiveUp,
}

/// One slot.
#[derive(Debug)]
pub struct Slot {
    policy: RestartPolicy,
    state: SlotState,
    generation: Generation,
    up_since: Option<Instant>,
    restarts: VecDeque<Instant>,
    streak: u32,
    total_restarts: u64,
}

impl Slot {
    /// An empty slot.
    #[must_use]
    pub fn new(policy: RestartPolicy) -> Self {
        Self {
            policy,
            state: SlotState::Empty,
            generation: Generation::NONE,
            up_since: None,
            restarts: VecDeque::new(),
            streak: 0,
            total_restarts: 0,
        }
    }

    /// An empty slot whose generations go on after this one: another supervisor had them.
    #[must_use]
    pub fn after(policy: RestartPolicy, last: Generation) -> Self {
        Self { generation: last, ..Self::new(policy) }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> SlotState {
        self.state
    }

    /// The newest generation.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Restarts since the system started.
    #[must_use]
    pub fn total_restarts(&self) -> u64 {
        self.total_restarts
    }

    /// Failures in a row without a settled worker between them.
    #[must_use]
    pub fn consecutive_failures(&self) -> u32 {
        self.streak
    }

    /// Work has come: a worker is wanted.
    pub fn wanted(&mut self, now: Instant) -> SlotEffect {
        match self.state {
            SlotState::Empty => self.start(),
            SlotState::GaveUp => {
                self.forget_old(now);
                if self.restarts.len() >= self.policy.intensity {
                    return SlotEffect::GiveUp;
                }
                self.streak = 0;
                self.start()
            }
            SlotState::Starting | SlotState::Up | SlotState::Backoff => SlotEffect::Nothing,
            SlotState::Stopping => SlotEffect::GiveUp,
        }
    }

    fn start(&mut self) -> SlotEffect {
        self.state = SlotState::Starting;
        self.generation = self.generation.next();
        SlotEffect::Start(self.generation)
    }

    /// The worker of this generation is there. False when it is not the one expected.
    pub fn up(&mut self, generation: Generation, now: Instant) -> bool {
        if self.state != SlotState::Starting || generation != self.generation {
            return false;
        }
        self.state = SlotState::Up;
        self.up_since = Some(now);
        true
    }

    /// The worker of this generation is gone, or could not be started.
    pub fn gone(&mut self, generation: Generation, now: Instant) -> SlotEffect {
        if generation != self.generation || !matches!(self.state, SlotState::Starting | SlotState::Up) {
            return SlotEffect::Nothing;
        }
        let settled = |since: Instant| now.saturating_duration_since(since) >= self.policy.settled_after;
        if self.up_since.take().is_some_and(settled) {
            self.streak = 0;
        }
        self.forget_old(now);
        if self.restarts.len() >= self.policy.intensity {
            self.streak += 1;
            self.state = SlotState::GaveUp;
            return SlotEffect::GiveUp;
        }
        self.restarts.push_back(now);
        self.total_restarts += 1;
        let wait = match self.streak {
            0 => Duration::ZERO,
            n => self.policy.backoff.saturating_mul(1 << (n - 1).min(16)).min(self.policy.backoff_most),
        };
        self.streak += 1;
        if wait.is_zero() {
            return self.start();
        }
        self.state = SlotState::Backoff;
        SlotEffect::Wait(self.generation, wait)
    }

    /// The wait that followed this generation is over.
    pub fn due(&mut self, generation: Generation) -> SlotEffect {
        if self.state == SlotState::Backoff && generation == self.generation {
            self.start()
        } else {
            SlotEffect::Nothing
        }
    }

    /// Nothing is to be started any more.
    pub fn stop(&mut self) {
        self.state = SlotState::Stopping;
    }

    fn forget_old(&mut self, now: Instant) {
        while self.restarts.front().is_some_and(|at| now.saturating_duration_since(*at) > self.policy.period) {
            self.restarts.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(crashes: usize) -> (Vec<u128>, Slot, Instant) {
        let mut slot = Slot::new(RestartPolicy::default());
        let mut now = Instant::now();
        let mut waits = Vec::new();
        assert_eq!(slot.wanted(now), SlotEffect::Start(Generation(1)));
        for _ in 0..crashes {
            let generation = slot.generation();
            assert!(slot.up(generation, now));
            match slot.gone(generation, now) {
                SlotEffect::Start(next) => {
                    assert_eq!(next, generation.next());
                    waits.push(0);
                }
                SlotEffect::Wait(waiting, wait) => {
                    now += wait;
                    waits.push(wait.as_millis());
                    assert_eq!(slot.due(waiting), SlotEffect::Start(generation.next()));
                }
                SlotEffect::GiveUp => break,
                SlotEffect::Nothing => panic!("a loss has a consequence"),
            }
        }
        (waits, slot, now)
    }

    #[test]
    fn the_first_restart_is_at_once_then_waits_double_and_the_seventh_gives_up() {
        let (waits, slot, _) = waits(7);
        assert_eq!(waits, [0, 50, 100, 200, 400, 800]);
        assert_eq!(slot.state(), SlotState::GaveUp);
        assert_eq!(slot.total_restarts(), 6);
    }

    #[test]
    fn a_slot_that_gave_up_tries_again_after_the_period() {
        let (_, mut slot, now) = waits(7);
        assert_eq!(slot.wanted(now), SlotEffect::GiveUp);
        let later = now + Duration::from_secs(31);
        assert_eq!(slot.wanted(later), SlotEffect::Start(Generation(8)));
    }

    #[test]
    fn a_settled_worker_ends_the_streak() {
        let (_, mut slot, now) = waits(3);
        assert!(slot.up(Generation(4), now));
        assert_eq!(slot.gone(Generation(4), now + Duration::from_secs(11)), SlotEffect::Start(Generation(5)));
    }

    #[test]
    fn news_of_another_generation_changes_nothing() {
        let (_, mut slot, now) = waits(2);
        assert_eq!(slot.gone(Generation(1), now), SlotEffect::Nothing);
        assert!(!slot.up(Generation(2), now));
        assert_eq!(slot.due(Generation(3)), SlotEffect::Nothing);
        slot.stop();
        assert_eq!(slot.gone(Generation(3), now), SlotEffect::Nothing);
        assert_eq!(slot.wanted(now), SlotEffect::GiveUp);
    }
}
