//! A consult of several agents: how far each of them is, and when their caller is told.
//!
//! Owns: a seat for each agent, in the order they were named. May not know: jobs, agents, the clock. [`Gathering::step`] takes
//! what happened and says what is to be done; it never waits.
//!
//! ```text
//!  Unasked ─Ask─▶ Asked ─Accepted─▶ Found ─Followed─▶ Waiting ──Ended──▶ Over
//!                   │  └─ is over ─▶ Over │              │ Lapsed, Lost
//!                   └─ Refused ─▶ Refused └─ nobody ─▶ Parting ─HandedOver─▶ Parted
//!                                            waits         └───── Lost ────▶ Lost
//! ```
//!
//! Invariants: (1) each agent is asked once, in order, and the next one when the one before it is accepted or refused; (2) what
//! becomes of one seat changes no other; (3) the caller is told once, when every seat is at an end; (4) a job that is not over
//! when the caller is told was handed over, or could not be.

/// Whether the caller waits for the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// It waits until they are there, or its time is up.
    Waits,
    /// It wants to know the jobs, and goes on.
    GoesOn,
}

/// A job that was accepted, or found by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FoundJob {
    /// It is over.
    Over,
    /// It depends on somebody who waits.
    Dependent,
    /// It goes on by itself.
    Independent,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GatherEvent {
    /// All arguments were read, and nothing is wrong with them.
    Begun,
    /// This agent's consult is a job.
    Accepted(usize, FoundJob),
    /// It is none: nothing was started for this agent.
    Refused(usize),
    /// The job is followed.
    Followed(usize),
    /// The job is over.
    Ended(usize),
    /// How the job goes on cannot be seen, or it could not be handed over.
    Lost(usize),
    /// The job goes on without its caller.
    HandedOver(usize),
    /// The caller waits no longer.
    Lapsed,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GatherEffect {
    /// Have this agent's consult accepted.
    Ask(usize),
    /// Follow its job.
    Follow(usize),
    /// Let its job go on without the caller.
    HandOver(usize),
    /// Tell the caller.
    Tell,
}

/// How far one of them is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seat {
    Unasked,
    Asked,
    Found(FoundJob),
    Waiting,
    Parting,
    Parted,
    Over,
    Refused,
    Lost,
}

impl Seat {
    const fn is_at_an_end(self) -> bool {
        match self {
            Self::Unasked | Self::Asked | Self::Found(_) | Self::Waiting | Self::Parting => false,
            Self::Parted | Self::Over | Self::Refused | Self::Lost => true,
        }
    }
}

/// How far all of them are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gathering {
    patience: Patience,
    seats: Vec<Seat>,
    lapsed: bool,
    told: bool,
}

impl Gathering {
    /// For so many agents.
    #[must_use]
    pub(super) fn new(seats: usize, patience: Patience) -> Self {
        Self { patience, seats: vec![Seat::Unasked; seats], lapsed: false, told: false }
    }

    /// Whether the caller is to be told.
    #[must_use]
    pub(super) const fn is_complete(&self) -> bool {
        self.told
    }

    /// Whether the end of this job is waited for.
    #[must_use]
    pub(super) fn is_waited_for(&self, seat: usize) -> bool {
        self.seats.get(seat) == Some(&Seat::Waiting)
    }

    /// Takes what happened; adds what is to be done, in this order. What cannot happen to a seat changes nothing.
    pub(super) fn step(&mut self, event: GatherEvent, effects: &mut Vec<GatherEffect>) {
        use Seat::{Asked, Found, Lost, Over, Parted, Parting, Refused, Waiting};
        let (at, now) = match event {
            GatherEvent::Begun => return self.go_on(effects),
            GatherEvent::Lapsed => {
                self.lapsed = true;
                return self.part(effects);
            }
            GatherEvent::Accepted(at, FoundJob::Over) => (at, self.moved(at, |seat| seat == Asked, Over)),
            GatherEvent::Accepted(at, found) => (at, self.moved(at, |seat| seat == Asked, Found(found))),
            GatherEvent::Refused(at) => (at, self.moved(at, |seat| seat == Asked, Refused)),
            GatherEvent::Followed(at) => {
                let next = match (self.patience, self.seats.get(at)) {
                    (Patience::GoesOn, Some(Found(FoundJob::Independent))) => Parted,
                    (Patience::GoesOn, _) => Parting,
                    (Patience::Waits, _) => Waiting,
                };
                (at, self.moved(at, |seat| matches!(seat, Found(_)), next))
            }
            GatherEvent::Ended(at) => (at, self.moved(at, |seat| matches!(seat, Waiting | Parting), Over)),
            // An accepted job is kept: it goes on, and its answer can be read.
            GatherEvent::Lost(at) if self.seats.get(at) != Some(&Parting) => {
                (at, self.moved(at, |seat| matches!(seat, Found(_) | Waiting), Parting))
            }
            GatherEvent::Lost(at) => (at, self.moved(at, |seat| seat == Parting, Lost)),
            GatherEvent::HandedOver(at) => (at, self.moved(at, |seat| seat == Parting, Parted)),
        };
        match now {
            Some(Found(_)) => effects.push(GatherEffect::Follow(at)),
            Some(now) => {
                if now == Parting {
                    effects.push(GatherEffect::HandOver(at));
                }
                self.go_on(effects);
            }
            None => {}
        }
    }

    /// Moves a seat from where it may be to where it is now; `None` where it was elsewhere.
    fn moved(&mut self, at: usize, from: impl Fn(Seat) -> bool, to: Seat) -> Option<Seat> {
        let seat = self.seats.get_mut(at).filter(|seat| from(**seat))?;
        *seat = to;
        Some(to)
    }

    /// The next one is asked, or the caller told.
    fn go_on(&mut self, effects: &mut Vec<GatherEffect>) {
        if self.seats.iter().any(|seat| matches!(seat, Seat::Asked | Seat::Found(_))) {
            return;
        }
        if let Some(at) = self.seats.iter().position(|seat| *seat == Seat::Unasked) {
            self.seats[at] = Seat::Asked;
            effects.push(GatherEffect::Ask(at));
        } else if self.lapsed && self.seats.contains(&Seat::Waiting) {
            self.part(effects);
        } else if !self.told && self.seats.iter().all(|seat| seat.is_at_an_end()) {
            self.told = true;
            effects.push(GatherEffect::Tell);
        }
    }

    /// The time is up: what is not over goes on by itself.
    fn part(&mut self, effects: &mut Vec<GatherEffect>) {
        for (at, seat) in self.seats.iter_mut().enumerate() {
            if *seat == Seat::Waiting {
                *seat = Seat::Parting;
                effects.push(GatherEffect::HandOver(at));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashSet, VecDeque};

    use super::*;

    /// A gathering, what was asked of its loop and not done yet, and what was done.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Walk {
        gathering: Gathering,
        due: VecDeque<GatherEffect>,
        done: Vec<GatherEffect>,
        lapses: usize,
    }

    impl Walk {
        fn new(seats: usize, patience: Patience) -> Self {
            let mut walk = Self {
                gathering: Gathering::new(seats, patience),
                due: VecDeque::new(),
                done: Vec::new(),
                lapses: usize::from(patience == Patience::Waits),
            };
            walk.happened(GatherEvent::Begun);
            walk
        }

        fn happened(&mut self, event: GatherEvent) {
            let mut effects = Vec::new();
            self.gathering.step(event, &mut effects);
            self.due.extend(effects);
            self.check();
        }

        /// What may happen next: the answer to what the loop does now; news of what is waited for, once it has nothing to do.
        fn next(&self) -> Vec<GatherEvent> {
            use GatherEvent::{Accepted, Ended, Followed, HandedOver, Lapsed, Lost, Refused};
            match self.due.front() {
                Some(GatherEffect::Ask(at)) => {
                    let found = [FoundJob::Over, FoundJob::Dependent, FoundJob::Independent];
                    found.into_iter().map(|found| Accepted(*at, found)).chain([Refused(*at)]).collect()
                }
                Some(GatherEffect::Follow(at)) => vec![Followed(*at), Lost(*at)],
                Some(GatherEffect::HandOver(at)) => vec![HandedOver(*at), Lost(*at)],
                Some(GatherEffect::Tell) => Vec::new(),
                None => {
                    let waited = (0..self.gathering.seats.len()).filter(|at| self.gathering.is_waited_for(*at));
                    let news = waited.flat_map(|at| [Ended(at), Lost(at)]);
                    news.chain((self.lapses > 0).then_some(Lapsed)).collect()
                }
            }
        }

        fn taken(&self, event: GatherEvent) -> Self {
            let mut walk = self.clone();
            walk.done.extend(walk.due.pop_front());
            walk.lapses -= usize::from(event == GatherEvent::Lapsed);
            walk.happened(event);
            walk
        }

        fn check(&self) {
            let all: Vec<GatherEffect> = self.done.iter().chain(&self.due).copied().collect();
            let asked: Vec<usize> =
                all.iter().filter_map(|e| if let GatherEffect::Ask(at) = e { Some(*at) } else { None }).collect();
            assert_eq!(asked, (0..asked.len()).collect::<Vec<_>>(), "once each, in order: {self:?}");
            let mut seen = HashSet::new();
            assert!(all.iter().all(|effect| seen.insert(format!("{effect:?}"))), "nothing twice: {self:?}");
            let told = all.contains(&GatherEffect::Tell);
            let at_end = self.gathering.seats.iter().all(|seat| seat.is_at_an_end());
            assert_eq!(told, at_end, "told when all are at an end, and not before: {self:?}");
            assert!(!told || all.last() == Some(&GatherEffect::Tell), "nothing after it: {self:?}");
            for (at, seat) in self.gathering.seats.iter().enumerate() {
                let handed = all.contains(&GatherEffect::HandOver(at));
                let needs = matches!(seat, Seat::Parting | Seat::Lost)
                    || (*seat == Seat::Parted && self.gathering.patience == Patience::Waits);
                assert!(handed || !needs, "{at}: {self:?}");
            }
        }
    }

    #[test]
    fn whatever_becomes_of_each_of_three_the_caller_is_told_once_when_all_are_at_an_end() {
        for patience in [Patience::Waits, Patience::GoesOn] {
            let (mut walks, mut ends, mut steps) = (vec![Walk::new(3, patience)], 0, 0);
            while let Some(walk) = walks.pop() {
                let next = walk.next();
                if next.is_empty() {
                    assert!(walk.gathering.is_complete(), "it stands still: {walk:?}");
                    ends += 1;
                }
                steps += next.len();
                walks.extend(next.into_iter().map(|event| walk.taken(event)));
            }
            assert!(ends > 300 && steps > 1000, "{patience:?}: {ends} ways, {steps} steps");
        }
    }

    #[test]
    fn what_becomes_of_one_is_nothing_to_the_others() {
        let settled = |events: &[GatherEvent]| {
            let mut walk = Walk::new(2, Patience::Waits);
            for event in events {
                walk = walk.taken(*event);
            }
            walk
        };
        use GatherEvent::{Accepted, Ended, Followed, Lost, Refused};
        for first in [Refused(0), Accepted(0, FoundJob::Over)] {
            let walk = settled(&[first, Accepted(1, FoundJob::Dependent), Followed(1)]);
            assert!(walk.gathering.is_waited_for(1) && walk.due.is_empty(), "{walk:?}");
            assert!(walk.taken(Ended(1)).gathering.is_complete());
        }
        let both =
            [Accepted(0, FoundJob::Dependent), Followed(0), Accepted(1, FoundJob::Independent), Followed(1), Lost(0)];
        let walk = settled(&both);
        assert!(walk.gathering.is_waited_for(1), "{walk:?}");
        assert_eq!(walk.due, [GatherEffect::HandOver(0)], "it is kept, and can be read");
    }

    #[test]
    fn what_cannot_happen_changes_nothing() {
        let mut gathering = Gathering::new(2, Patience::Waits);
        let before = gathering.clone();
        let mut effects = Vec::new();
        use GatherEvent::{Accepted, Ended, Followed, HandedOver, Lost, Refused};
        for event in
            [Accepted(0, FoundJob::Over), Refused(1), Followed(0), Ended(1), Lost(0), HandedOver(0), Ended(7), Lost(9)]
        {
            gathering.step(event, &mut effects);
        }
        assert_eq!((gathering, effects), (before, Vec::new()));
    }
}
