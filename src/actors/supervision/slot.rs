//! One slot's life: when a child is started, when it is started again, when that is given up.
//!
//! Owns: generations, restart intensity, backoff. May not know: calls, contracts, what a child does.
//!
//! ```text
//!  Empty ──wanted──▶ Starting ──up──▶ Up
//!    ▲                  └──────┬───────┘
//!    ├──────── set aside ──────┤
//!    │                       gone ├── for the first time in a streak ──▶ Starting
//!    │                            ├── again ──▶ Backoff ──due──▶ Starting
//!    │                            ├── too often ──▶ GaveUp ──wanted, later──▶ Starting
//!    │                            └── needs no restart ──▶ Done
//!    └── set aside ── Backoff
//!
//!  any ──stop──▶ Stopping
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{ChildEffect, ChildEvent, Exit, RestartType};
use crate::base::ids::Generation;

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
    /// A child up for this long has ended the streak.
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
    /// Nothing was started yet, or it was set aside: it is started when it is wanted.
    Empty,
    /// A child is being started.
    Starting,
    /// A child is there.
    Up,
    /// The next start waits.
    Backoff,
    /// Too many restarts; nothing is started until the window has passed.
    GaveUp,
    /// The child has ended and its type needs no other.
    Done,
    /// The slot is being stopped; nothing is started any more.
    Stopping,
}

/// What the slot wants done. Exactly one follows from each event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotEffect {
    /// Nothing.
    Nothing,
    /// Start a child of this generation.
    Start(Generation),
    /// Report [`Slot::due`] with this generation after the wait.
    Wait(Generation, Duration),
    /// Fail what waits: nobody will serve it.
    GiveUp,
    /// The child is not started again, and need not be.
    Finished,
}

impl SlotEffect {
    /// The same, of the child with this key.
    #[must_use]
    pub const fn of<K: Copy>(self, key: K) -> Option<ChildEffect<K>> {
        match self {
            Self::Nothing => None,
            Self::Start(generation) => Some(ChildEffect::Start(key, generation)),
            Self::Wait(generation, wait) => Some(ChildEffect::Wait(key, generation, wait)),
            Self::GiveUp => Some(ChildEffect::GiveUp(key)),
            Self::Finished => Some(ChildEffect::LeaveOut(key)),
        }
    }
}

/// One slot.
#[derive(Debug)]
pub struct Slot {
    restart: RestartType,
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
    pub fn new(restart: RestartType, policy: RestartPolicy) -> Self {
        Self::after(Generation::NONE, restart, policy)
    }

    /// An empty slot whose first child is the next generation after this one: generations are never used twice, also not
    /// by a supervisor that was itself started again.
    #[must_use]
    pub fn after(generation: Generation, restart: RestartType, policy: RestartPolicy) -> Self {
        Self {
            restart,
            policy,
            state: SlotState::Empty,
            generation,
            up_since: None,
            restarts: VecDeque::new(),
            streak: 0,
            total_restarts: 0,
        }
    }

    /// Goes on counting where another image of the program stood. The window of its restarts begins anew: what made the
    /// old program fail need not be in the new one.
    pub fn inherit(&mut self, restarts: u64) {
        self.total_restarts = restarts;
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> SlotState {
        self.state
    }

    /// How often and how fast it restarts.
    #[must_use]
    pub const fn policy(&self) -> &RestartPolicy {
        &self.policy
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

    /// Failures in a row without a settled child between them.
    #[must_use]
    pub fn consecutive_failures(&self) -> u32 {
        self.streak
    }

    /// Takes what happened to its child.
    pub fn on<K>(&mut self, event: ChildEvent<K>, now: Instant) -> SlotEffect {
        match event {
            ChildEvent::Wanted(_) => self.wanted(now),
            ChildEvent::Up(_, generation) => {
                self.up(generation, now);
                SlotEffect::Nothing
            }
            ChildEvent::Gone(_, generation, exit) => self.gone(generation, exit, now),
            ChildEvent::Due(_, generation) => self.due(generation),
        }
    }

    /// Work has come: a child is wanted.
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
            SlotState::Done => SlotEffect::Finished,
        }
    }

    fn start(&mut self) -> SlotEffect {
        self.state = SlotState::Starting;
        self.generation = self.generation.next();
        SlotEffect::Start(self.generation)
    }

    /// The child of this generation is there. False when it is not the one expected.
    pub fn up(&mut self, generation: Generation, now: Instant) -> bool {
        if self.state != SlotState::Starting || generation != self.generation {
            return false;
        }
        self.state = SlotState::Up;
        self.up_since = Some(now);
        true
    }

    /// The child of this generation is gone, or could not be started.
    pub fn gone(&mut self, generation: Generation, exit: Exit, now: Instant) -> SlotEffect {
        if generation != self.generation || !matches!(self.state, SlotState::Starting | SlotState::Up) {
            return SlotEffect::Nothing;
        }
        if !self.restart.restarts_after(exit) {
            self.up_since = None;
            self.state = SlotState::Done;
            return SlotEffect::Finished;
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

    /// The child is stopped by its supervisor together with another one, and will be wanted again. This is no failure of
    /// its own. Whether there is a child to stop; news of it from here on change nothing.
    pub fn set_aside(&mut self) -> bool {
        let there = matches!(self.state, SlotState::Up | SlotState::Starting);
        if there || self.state == SlotState::Backoff {
            self.state = SlotState::Empty;
            self.up_since = None;
        }
        there
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
        let mut slot = Slot::new(RestartType::Permanent, RestartPolicy::default());
        let mut now = Instant::now();
        let mut waits = Vec::new();
        assert_eq!(slot.wanted(now), SlotEffect::Start(Generation(1)));
        for _ in 0..crashes {
            let generation = slot.generation();
            assert!(slot.up(generation, now));
            match slot.gone(generation, Exit::Failed, now) {
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
                SlotEffect::Nothing | SlotEffect::Finished => panic!("a loss has a consequence"),
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
    fn a_settled_child_ends_the_streak() {
        let (_, mut slot, now) = waits(3);
        assert!(slot.up(Generation(4), now));
        assert_eq!(
            slot.gone(Generation(4), Exit::Failed, now + Duration::from_secs(11)),
            SlotEffect::Start(Generation(5))
        );
    }

    #[test]
    fn news_of_another_generation_changes_nothing() {
        let (_, mut slot, now) = waits(2);
        assert_eq!(slot.gone(Generation(1), Exit::Failed, now), SlotEffect::Nothing);
        assert!(!slot.up(Generation(2), now));
        assert_eq!(slot.due(Generation(3)), SlotEffect::Nothing);
        slot.stop();
        assert_eq!(slot.gone(Generation(3), Exit::Failed, now), SlotEffect::Nothing);
        assert_eq!(slot.wanted(now), SlotEffect::GiveUp);
    }
    #[test]
    fn a_child_that_was_set_aside_comes_back_as_the_next_generation_and_pays_nothing_for_it() {
        let now = Instant::now();
        let mut slot = Slot::after(Generation(7), RestartType::Permanent, RestartPolicy::default());
        assert!(!slot.set_aside(), "there is nothing to stop");
        assert_eq!(slot.wanted(now), SlotEffect::Start(Generation(8)));
        assert!(slot.up(Generation(8), now) && slot.set_aside());
        assert_eq!(slot.gone(Generation(8), Exit::Killed, now), SlotEffect::Nothing);
        assert_eq!(slot.wanted(now), SlotEffect::Start(Generation(9)));
        assert_eq!((slot.total_restarts(), slot.consecutive_failures()), (0, 0));
    }
}
