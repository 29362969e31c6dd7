//! Is a worker process still there? Decides when to ask it, and when its silence is its end.
//!
//! Owns: what was heard when, the check that is on its way. May not know: pipes, clocks (`now` is passed in).
//!
//! ```text
//!  quiet ──nothing heard for `quiet` while it has work──▶ asked ──alive──▶ quiet
//!                                                           └──nothing for another `quiet`──▶ dead
//! ```
//!
//! A tool that takes its time is no silence: the loop around it answers. A worker that goes on talking but has not
//! answered after `PATIENCE` times `quiet` reads nothing any more, and is dead too.

use std::time::{Duration, Instant};

/// How many times `quiet` an answer may take from a worker that talks about other things meanwhile: a long queue of calls
/// may stand before the check.
const PATIENCE: u32 = 4;

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// It has no work: look again when it has.
    Idle,
    /// Nothing to do before then.
    At(Instant),
    /// Send a check with this number, and look again then.
    Ask(u64, Instant),
    /// It is to be given up.
    Dead,
}

/// One worker process as its host hears it.
#[derive(Debug)]
pub struct Vigil {
    quiet: Duration,
    heard: Instant,
    /// When it was last known to have all it was given.
    checked: Instant,
    asked: Option<(u64, Instant)>,
    next: u64,
}

impl Vigil {
    /// A worker that has just been heard; `quiet` is how long it may be silent while it has work.
    #[must_use]
    pub fn new(quiet: Duration, now: Instant) -> Self {
        Self { quiet, heard: now, checked: now, asked: None, next: 1 }
    }

    /// It was given its first work just now.
    pub fn begin(&mut self, now: Instant) {
        self.heard = now;
        self.checked = now;
    }

    /// It said something.
    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// It answered a check; whether it is the one that was asked.
    pub fn alive(&mut self, n: u64) -> bool {
        let is_asked = self.asked.is_some_and(|(asked, _)| asked == n);
        if is_asked {
            self.asked = None;
            self.checked = self.heard;
        }
        is_asked
    }

    /// Time has passed.
    pub fn look(&mut self, now: Instant, has_work: bool) -> Look {
        if !has_work {
            // What was asked is forgotten: the answer changes nothing.
            self.asked = None;
            self.checked = self.heard;
            return Look::Idle;
        }
        let Some((n, asked)) = self.asked else {
            // One that talks all the time is asked too, if rarely: it may have lost what it does not talk about.
            let due = (self.heard + self.quiet).min(self.checked + self.quiet * PATIENCE);
            if now < due {
                return Look::At(due);
            }
            let n = self.next;
            self.next += 1;
            self.asked = Some((n, now));
            return Look::Ask(n, now + self.quiet);
        };
        let due = (self.heard.max(asked) + self.quiet).min(asked + self.quiet * PATIENCE);
        if now < due {
            return Look::At(due);
        }
        if now >= due + self.quiet / 2 {
            // We look far too late: this host did not run either, so the time says nothing about the worker.
            self.asked = Some((n, now));
            return Look::At(now + self.quiet);
        }
        Look::Dead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_secs(5);

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_worker_without_work_is_never_asked() {
        let start = Instant::now();
        let mut vigil = Vigil::new(QUIET, start);
        assert_eq!(vigil.look(at(start, 3600), false), Look::Idle);
    }

    #[test]
    fn silence_is_asked_about_and_an_answer_ends_it() {
        let start = Instant::now();
        let mut vigil = Vigil::new(QUIET, start);
        assert_eq!(vigil.look(at(start, 4), true), Look::At(at(start, 5)));
        assert_eq!(vigil.look(at(start, 5), true), Look::Ask(1, at(start, 10)));
        vigil.heard(at(start, 6));
        vigil.alive(1);
        assert_eq!(vigil.look(at(start, 10), true), Look::At(at(start, 11)));
        assert_eq!(vigil.look(at(start, 11), true), Look::Ask(2, at(start, 16)));
    }

    #[test]
    fn a_worker_that_does_not_answer_is_dead_after_twice_the_time() {
        let start = Instant::now();
        let mut vigil = Vigil::new(QUIET, start);
        vigil.look(at(start, 5), true);
        vigil.alive(7);
        assert_eq!(vigil.look(at(start, 9), true), Look::At(at(start, 10)));
        assert_eq!(vigil.look(at(start, 10), true), Look::Dead);
    }

    #[test]
    fn a_worker_that_talks_without_answering_is_dead_in_the_end() {
        let start = Instant::now();
        let mut vigil = Vigil::new(QUIET, start);
        vigil.look(at(start, 5), true);
        for second in 6..25 {
            vigil.heard(at(start, second));
            assert_ne!(vigil.look(at(start, second), true), Look::Dead, "second {second}");
        }
        vigil.heard(at(start, 25));
        assert_eq!(vigil.look(at(start, 25), true), Look::Dead);
    }

    #[test]
    fn a_host_that_was_stopped_itself_gives_the_worker_its_time_again() {
        let start = Instant::now();
        let mut vigil = Vigil::new(QUIET, start);
        vigil.look(at(start, 5), true);
        assert_eq!(vigil.look(at(start, 600), true), Look::At(at(start, 605)));
        assert_eq!(vigil.look(at(start, 605), true), Look::Dead);
    }

    #[test]
    fn what_was_asked_is_forgotten_when_the_work_ends() {
        let start = Instant::now();
        let mut vigil = Vigil::new(QUIET, start);
        vigil.look(at(start, 5), true);
        assert_eq!(vigil.look(at(start, 10), false), Look::Idle);
        vigil.begin(at(start, 60));
        assert_eq!(vigil.look(at(start, 60), true), Look::At(at(start, 65)));
    }

    #[test]
    fn a_worker_that_talks_all_the_time_is_asked_too() {
        let start = Instant::now();
        let mut vigil = Vigil::new(QUIET, start);
        for second in 1..20 {
            vigil.heard(at(start, second));
            assert!(matches!(vigil.look(at(start, second), true), Look::At(_)), "second {second}");
        }
        vigil.heard(at(start, 20));
        assert_eq!(vigil.look(at(start, 20), true), Look::Ask(1, at(start, 25)));
        assert!(!vigil.alive(2) && vigil.alive(1));
        assert_eq!(vigil.look(at(start, 20), true), Look::At(at(start, 25)));
    }
}
