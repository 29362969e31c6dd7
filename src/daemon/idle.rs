//! When a daemon that nobody needs may end by itself.
//!
//! Owns: the rule. May not know: clocks, connections, jobs; it is told how many there are.
//!
//! A daemon that a person started stays until somebody stops it. One that a client started, or that was activated, ends
//! after it has had neither connections nor jobs for a while, in the order of every stop: a late client finds no socket or
//! is told `restarting`, and never silence.

use std::time::{Duration, Instant};

/// How long it stays without connections and jobs.
pub const IDLE: Duration = Duration::from_secs(30 * 60);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleEvent {
    /// There are so many connections now.
    Connections(usize),
    /// There are so many jobs that are not over.
    Jobs(usize),
    /// The time that was waited for has come.
    Due,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleEffect {
    /// It is needed, or stays in any case.
    Stay,
    /// It is to be asked again then.
    WakeAt(Instant),
    /// It is to stop.
    Stop,
}

/// Whether anybody needs this daemon.
#[derive(Debug, Clone)]
pub struct Idle {
    /// `None`: it stays in any case.
    limit: Option<Duration>,
    connections: usize,
    jobs: usize,
    since: Instant,
}

impl Idle {
    /// One that nobody has come to yet, and that ends after this long; `None` when it stays in any case.
    #[must_use]
    pub const fn new(limit: Option<Duration>, now: Instant) -> Self {
        Self { limit, connections: 0, jobs: 0, since: now }
    }

    /// One step.
    pub fn step(&mut self, event: IdleEvent, now: Instant) -> IdleEffect {
        let was_needed = self.is_needed();
        match event {
            IdleEvent::Connections(count) => self.connections = count,
            IdleEvent::Jobs(count) => self.jobs = count,
            IdleEvent::Due => {}
        }
        if was_needed && !self.is_needed() {
            self.since = now;
        }
        self.effect(now)
    }

    /// What holds at this time.
    #[must_use]
    pub fn effect(&self, now: Instant) -> IdleEffect {
        match self.limit {
            Some(limit) if !self.is_needed() => {
                let until = self.since + limit;
                if now >= until { IdleEffect::Stop } else { IdleEffect::WakeAt(until) }
            }
            _ => IdleEffect::Stay,
        }
    }

    const fn is_needed(&self) -> bool {
        self.connections > 0 || self.jobs > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn it_ends_only_after_it_was_needed_by_nobody_for_the_whole_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut idle = Idle::new(Some(LIMIT), start);
        assert_eq!(idle.effect(start), IdleEffect::WakeAt(at(60)));
        assert_eq!(idle.step(IdleEvent::Connections(1), at(50)), IdleEffect::Stay);
        assert_eq!(idle.step(IdleEvent::Due, at(60)), IdleEffect::Stay, "somebody is connected");
        assert_eq!(idle.step(IdleEvent::Jobs(1), at(61)), IdleEffect::Stay);
        assert_eq!(idle.step(IdleEvent::Connections(0), at(70)), IdleEffect::Stay, "a job runs");
        assert_eq!(idle.step(IdleEvent::Jobs(0), at(100)), IdleEffect::WakeAt(at(160)), "from the end of the job on");
        assert_eq!(idle.step(IdleEvent::Jobs(0), at(120)), IdleEffect::WakeAt(at(160)), "told again, nothing new");
        assert_eq!(idle.step(IdleEvent::Due, at(159)), IdleEffect::WakeAt(at(160)));
        assert_eq!(idle.step(IdleEvent::Due, at(160)), IdleEffect::Stop);
    }

    #[test]
    fn one_that_a_person_started_stays() {
        let start = Instant::now();
        let mut idle = Idle::new(None, start);
        assert_eq!(idle.step(IdleEvent::Due, start + LIMIT * 1000), IdleEffect::Stay);
    }
}
