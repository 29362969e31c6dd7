//! Children of one supervisor that depend on each other: start in order, restart together, stop in reverse.
//!
//! Owns: which children are stopped and started when one of them ends. May not know: what they are.
//!
//! Invariants: (1) a child is started only while all it depends on are up; (2) under [`Strategy::RestForOne`] those
//! started after a lost child are stopped, last first, before it is started again; (3) a child that gave up is left out
//! or escalated, as its spec says, and never silently forgotten.

use std::time::{Duration, Instant};

use super::slot::{RestartPolicy, Slot, SlotEffect, SlotState};
use super::{Exit, RestartType, Strategy};
use crate::base::ids::Generation;

/// What a supervisor knows about a child before it starts it.
#[derive(Debug, Clone, Copy)]
pub struct ChildSpec {
    /// Its name in logs and health.
    pub name: &'static str,
    /// When it is started again.
    pub restart: RestartType,
    /// How often and how fast.
    pub policy: RestartPolicy,
    /// Whether the others may hold on to an incarnation of it.
    pub others: Others,
    /// What follows when it gave up.
    pub on_give_up: OnGiveUp,
}

/// Whether children started later may hold on to an incarnation of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// They may: under [`Strategy::RestForOne`] they are restarted with it.
    DependOnIt,
    /// Nobody waits for it, and losing it changes nothing for anybody.
    Independent,
}

/// What follows when a child was lost too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnGiveUp {
    /// The supervisor gives up as well.
    Escalate,
    /// The others go on without it.
    LeaveOut,
}

/// A child's place in the order of start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub usize);

/// What a supervisor's loop has to do, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FamilyEffect {
    /// Stop this child, and be back when it is gone: stop, wait, kill, wait.
    Stop(Place),
    /// Start this child, then report [`Family::up`] or [`Family::gone`].
    Start(Place, Generation),
    /// Report [`Family::due`] after the wait.
    Wait(Place, Generation, Duration),
    /// This child is not there any more; the others go on.
    LeaveOut(Place),
    /// Give up: this child was lost too often.
    Escalate(Place),
}

/// The children.
#[derive(Debug)]
pub struct Family {
    strategy: Strategy,
    children: Vec<(ChildSpec, Slot)>,
    stopping: bool,
}

impl Family {
    /// Nobody is started yet.
    #[must_use]
    pub fn new(strategy: Strategy, specs: impl IntoIterator<Item = ChildSpec>) -> Self {
        let children = specs.into_iter().map(|spec| (spec, Slot::new(spec.restart, spec.policy))).collect();
        Self { strategy, children, stopping: false }
    }

    /// What is known about a child.
    #[must_use]
    pub fn spec(&self, place: Place) -> Option<&ChildSpec> {
        self.children.get(place.0).map(|(spec, _)| spec)
    }

    /// The newest generation of a child.
    #[must_use]
    pub fn generation(&self, place: Place) -> Generation {
        self.children.get(place.0).map_or(Generation::NONE, |(_, slot)| slot.generation())
    }

    /// Restarts of all children so far, those of whom were only stopped along not counted.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.children.iter().map(|(_, slot)| slot.total_restarts()).sum()
    }

    /// Whether a child is there.
    #[must_use]
    pub fn is_up(&self, place: Place) -> bool {
        self.children.get(place.0).is_some_and(|(_, slot)| slot.state() == SlotState::Up)
    }

    /// Starts the first child that is due; the next one follows when it is up.
    pub fn start(&mut self, now: Instant) -> Vec<FamilyEffect> {
        if self.stopping {
            return Vec::new();
        }
        for place in 0..self.children.len() {
            let (spec, slot) = &mut self.children[place];
            match slot.state() {
                SlotState::Empty => {
                    let effect = slot.wanted(now);
                    return self.follow(Place(place), effect);
                }
                // Those after it wait for it, unless nobody depends on it.
                SlotState::Starting | SlotState::Backoff if spec.others == Others::DependOnIt => return Vec::new(),
                _ => {}
            }
        }
        Vec::new()
    }

    /// A child is there; the next one may be started.
    pub fn up(&mut self, place: Place, generation: Generation, now: Instant) -> Vec<FamilyEffect> {
        let is_up = self.children.get_mut(place.0).is_some_and(|(_, slot)| slot.up(generation, now));
        if is_up { self.start(now) } else { Vec::new() }
    }

    /// A child's task has ended, or it could not be started.
    pub fn gone(&mut self, place: Place, generation: Generation, exit: Exit, now: Instant) -> Vec<FamilyEffect> {
        let strategy = self.strategy;
        let Some((spec, slot)) = self.children.get_mut(place.0) else { return Vec::new() };
        let effect = slot.gone(generation, exit, now);
        let mut effects = Vec::new();
        let lost = matches!(effect, SlotEffect::Start(_) | SlotEffect::Wait(..) | SlotEffect::GiveUp);
        if lost && strategy == Strategy::RestForOne && spec.others == Others::DependOnIt {
            let later = place.0 + 1;
            for (offset, (_, slot)) in self.children[later..].iter_mut().enumerate().rev() {
                if slot.set_aside() {
                    effects.push(FamilyEffect::Stop(Place(later + offset)));
                }
            }
        }
        effects.extend(self.follow(place, effect));
        effects
    }

    /// A wait is over.
    pub fn due(&mut self, place: Place, generation: Generation) -> Vec<FamilyEffect> {
        match self.children.get_mut(place.0) {
            Some((_, slot)) => {
                let effect = slot.due(generation);
                self.follow(place, effect)
            }
            None => Vec::new(),
        }
    }

    /// Everybody is to be stopped, last first; nothing is started from here on.
    pub fn stop(&mut self) -> Vec<FamilyEffect> {
        self.stopping = true;
        let mut effects = Vec::new();
        for (place, (_, slot)) in self.children.iter_mut().enumerate().rev() {
            if matches!(slot.state(), SlotState::Up | SlotState::Starting) {
                effects.push(FamilyEffect::Stop(Place(place)));
            }
            slot.stop();
        }
        effects
    }

    fn follow(&self, place: Place, effect: SlotEffect) -> Vec<FamilyEffect> {
        let Some((spec, _)) = self.children.get(place.0) else { return Vec::new() };
        match (effect, spec.on_give_up) {
            (SlotEffect::Nothing, _) => Vec::new(),
            (SlotEffect::Start(generation), _) => vec![FamilyEffect::Start(place, generation)],
            (SlotEffect::Wait(generation, wait), _) => vec![FamilyEffect::Wait(place, generation, wait)],
            (SlotEffect::Finished, _) | (SlotEffect::GiveUp, OnGiveUp::LeaveOut) => {
                vec![FamilyEffect::LeaveOut(place)]
            }
            (SlotEffect::GiveUp, OnGiveUp::Escalate) => vec![FamilyEffect::Escalate(place)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FamilyEffect as F;
    use super::*;

    const fn spec(restart: RestartType, others: Others, on_give_up: OnGiveUp) -> ChildSpec {
        let policy = RestartPolicy {
            intensity: 2,
            period: Duration::from_secs(60),
            backoff: Duration::from_millis(50),
            backoff_most: Duration::from_secs(2),
            settled_after: Duration::from_secs(10),
        };
        ChildSpec { name: "child", restart, policy, others, on_give_up }
    }

    /// Three children, all up.
    fn three(strategy: Strategy, middle: RestartType) -> (Family, Instant) {
        let now = Instant::now();
        let permanent = spec(RestartType::Permanent, Others::DependOnIt, OnGiveUp::Escalate);
        let middle = spec(middle, Others::DependOnIt, OnGiveUp::Escalate);
        let mut family = Family::new(strategy, [permanent, middle, permanent]);
        assert_eq!(family.start(now), [F::Start(Place(0), Generation(1))]);
        assert_eq!(family.up(Place(0), Generation(1), now), [F::Start(Place(1), Generation(1))]);
        assert_eq!(family.up(Place(1), Generation(1), now), [F::Start(Place(2), Generation(1))]);
        assert_eq!(family.up(Place(2), Generation(1), now), []);
        (family, now)
    }

    #[test]
    fn the_matrix_of_restart_type_exit_and_strategy() {
        use Exit as E;
        use RestartType as R;
        use Strategy as S;
        let again = F::Start(Place(1), Generation(2));
        let rest = F::Stop(Place(2));
        let out = F::LeaveOut(Place(1));
        // One row per type and exit; columns: one for one, rest for one. The middle one of three ends.
        let table: [(R, E, &[F], &[F]); 12] = [
            (R::Permanent, E::Normal, &[again], &[rest, again]),
            (R::Permanent, E::Failed, &[again], &[rest, again]),
            (R::Permanent, E::Killed, &[again], &[rest, again]),
            (R::Permanent, E::NotStarted, &[again], &[rest, again]),
            (R::Transient, E::Normal, &[out], &[out]),
            (R::Transient, E::Failed, &[again], &[rest, again]),
            (R::Transient, E::Killed, &[again], &[rest, again]),
            (R::Transient, E::NotStarted, &[again], &[rest, again]),
            (R::Temporary, E::Normal, &[out], &[out]),
            (R::Temporary, E::Failed, &[out], &[out]),
            (R::Temporary, E::Killed, &[out], &[out]),
            (R::Temporary, E::NotStarted, &[out], &[out]),
        ];
        assert_eq!(table.len(), R::ALL.len() * E::ALL.len());
        for (restart, exit, alone, together) in table {
            for (strategy, want) in [(S::OneForOne, alone), (S::RestForOne, together)] {
                let (mut family, now) = three(strategy, restart);
                let got = family.gone(Place(1), Generation(1), exit, now);
                assert_eq!(got, want, "{restart:?} {exit:?} {strategy:?}");
                assert!(family.is_up(Place(0)));
                assert_eq!(family.is_up(Place(2)), !want.contains(&rest));
            }
        }
    }

    #[test]
    fn the_rest_follows_in_order_and_as_new_generations() {
        let (mut family, now) = three(Strategy::RestForOne, RestartType::Permanent);
        let effects = family.gone(Place(0), Generation(1), Exit::Failed, now);
        assert_eq!(effects, [F::Stop(Place(2)), F::Stop(Place(1)), F::Start(Place(0), Generation(2))]);
        // What was stopped along says so late; it is no loss.
        assert_eq!(family.gone(Place(2), Generation(1), Exit::Killed, now), []);
        assert_eq!(family.up(Place(0), Generation(2), now), [F::Start(Place(1), Generation(2))]);
        assert_eq!(family.up(Place(1), Generation(2), now), [F::Start(Place(2), Generation(2))]);
        assert_eq!(family.restarts(), 1);
    }

    #[test]
    fn a_lost_child_that_waits_keeps_the_rest_waiting() {
        let (mut family, now) = three(Strategy::RestForOne, RestartType::Permanent);
        family.gone(Place(0), Generation(1), Exit::Failed, now);
        let wait = F::Wait(Place(0), Generation(2), Duration::from_millis(50));
        assert_eq!(family.gone(Place(0), Generation(2), Exit::NotStarted, now), [wait]);
        assert_eq!(family.start(now), []);
        assert_eq!(family.due(Place(0), Generation(2)), [F::Start(Place(0), Generation(3))]);
        let effects = family.gone(Place(0), Generation(3), Exit::NotStarted, now);
        assert_eq!(effects, [F::Escalate(Place(0))]);
    }

    #[test]
    fn a_child_nobody_depends_on_takes_nobody_along_and_is_left_out_in_the_end() {
        let now = Instant::now();
        let sink = spec(RestartType::Permanent, Others::Independent, OnGiveUp::LeaveOut);
        let part = spec(RestartType::Permanent, Others::DependOnIt, OnGiveUp::Escalate);
        let mut family = Family::new(Strategy::RestForOne, [sink, part]);
        family.start(now);
        family.up(Place(0), Generation(1), now);
        family.up(Place(1), Generation(1), now);
        assert_eq!(family.gone(Place(0), Generation(1), Exit::Failed, now), [F::Start(Place(0), Generation(2))]);
        family.up(Place(0), Generation(2), now);
        family.gone(Place(0), Generation(2), Exit::Failed, now);
        assert_eq!(family.due(Place(0), Generation(2)), [F::Start(Place(0), Generation(3))]);
        family.up(Place(0), Generation(3), now);
        assert_eq!(family.gone(Place(0), Generation(3), Exit::Failed, now), [F::LeaveOut(Place(0))]);
        assert!(family.is_up(Place(1)));
    }

    #[test]
    fn a_stop_is_in_reverse_and_nothing_is_started_after_it() {
        let (mut family, now) = three(Strategy::RestForOne, RestartType::Permanent);
        assert_eq!(family.stop(), [F::Stop(Place(2)), F::Stop(Place(1)), F::Stop(Place(0))]);
        assert_eq!(family.gone(Place(1), Generation(1), Exit::Failed, now), []);
        assert_eq!(family.start(now), []);
    }
}
