//! Children of one kind by key, each for itself: they come while the supervisor runs, and go when their work is done.
//!
//! Owns: which keys have a child, when one is started again. May not know: what a child is, what its key means.
//!
//! ```text
//!  Wanted ──▶ Start ──Up──▶ (it works) ──Gone──▶ Start · Wait ──Due──▶ Start
//!                                          ├──▶ LeaveOut: its work is done, its key is free
//!                                          └──▶ GiveUp: lost too often; its key is kept until it is forgotten
//! ```
//!
//! Invariants: (1) a key has one child at most; (2) a generation is never used twice for a key, not even by a child that
//! takes the place of a forgotten one, so news of an earlier one change nothing.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::slot::{Slot, SlotState};
use super::{ChildEffect, ChildEvent, ChildSpec, Children};
use crate::base::ids::Generation;

/// The children.
#[derive(Debug)]
pub struct DynamicChildren<K> {
    spec: ChildSpec,
    slots: BTreeMap<K, Slot>,
    /// The newest generation of those that are not there any more.
    last: Generation,
}

impl<K: Copy + Ord> DynamicChildren<K> {
    /// None yet; each will be started by this spec.
    #[must_use]
    pub const fn new(spec: ChildSpec) -> Self {
        Self { spec, slots: BTreeMap::new(), last: Generation::NONE }
    }

    /// Whether the key is taken: a child is there, or on its way, or was lost too often.
    #[must_use]
    pub fn has(&self, key: K) -> bool {
        self.slots.contains_key(&key)
    }

    /// Where the slot of a key stands.
    #[must_use]
    pub fn state(&self, key: K) -> Option<SlotState> {
        self.slots.get(&key).map(Slot::state)
    }
}

impl<K: Copy + Ord> Children for DynamicChildren<K> {
    type Key = K;

    fn name(&self, _: K) -> &'static str {
        self.spec.name
    }

    fn shutdown(&self, _: K) -> Duration {
        self.spec.shutdown
    }

    fn step(&mut self, event: ChildEvent<K>, now: Instant, effects: &mut VecDeque<ChildEffect<K>>) {
        let key = event.key();
        if let ChildEvent::Wanted(_) = event {
            let new = || Slot::after(self.last, self.spec.restart, self.spec.policy);
            self.slots.entry(key).or_insert_with(new);
        }
        let Some(slot) = self.slots.get_mut(&key) else { return };
        let effect = slot.on(event, now).of(key);
        if let Some(ChildEffect::LeaveOut(_)) = effect {
            self.forget(key);
        }
        effects.extend(effect);
    }

    fn set_aside(&mut self, key: K) {
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.set_aside();
        }
    }

    fn forget(&mut self, key: K) {
        if let Some(slot) = self.slots.remove(&key) {
            self.last = self.last.max(slot.generation());
        }
    }

    fn stop(&mut self, effects: &mut VecDeque<ChildEffect<K>>) {
        for (key, slot) in self.slots.iter_mut().rev() {
            if matches!(slot.state(), SlotState::Up | SlotState::Starting) {
                effects.push_back(ChildEffect::Stop(*key));
            }
            slot.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::slot::RestartPolicy;
    use super::super::{Exit, RestartType};
    use super::ChildEffect as F;
    use super::*;

    const POLICY: RestartPolicy = RestartPolicy {
        intensity: 3,
        period: Duration::from_secs(60),
        backoff: Duration::from_millis(50),
        backoff_most: Duration::from_millis(80),
        settled_after: Duration::from_secs(10),
    };

    fn children(restart: RestartType) -> DynamicChildren<char> {
        DynamicChildren::new(ChildSpec { name: "child", restart, policy: POLICY, shutdown: Duration::ZERO })
    }

    fn on(children: &mut DynamicChildren<char>, event: ChildEvent<char>, now: Instant) -> Vec<F<char>> {
        let mut effects = VecDeque::new();
        children.step(event, now, &mut effects);
        effects.into()
    }

    /// A child that is up, and its generation.
    fn up(children: &mut DynamicChildren<char>, key: char, now: Instant) -> Generation {
        let effects = on(children, ChildEvent::Wanted(key), now);
        let [F::Start(started, generation)] = effects[..] else { panic!("it is not started: {effects:?}") };
        assert_eq!(started, key);
        assert_eq!(on(children, ChildEvent::Up(key, generation), now), []);
        generation
    }

    #[test]
    fn the_table_of_restart_type_and_exit() {
        use Exit as E;
        use RestartType as R;
        // Whether it is started again; else its key is free.
        let table: [(R, E, bool); 12] = [
            (R::Permanent, E::Normal, true),
            (R::Permanent, E::Failed, true),
            (R::Permanent, E::Killed, true),
            (R::Permanent, E::NotStarted, true),
            (R::Transient, E::Normal, false),
            (R::Transient, E::Failed, true),
            (R::Transient, E::Killed, true),
            (R::Transient, E::NotStarted, true),
            (R::Temporary, E::Normal, false),
            (R::Temporary, E::Failed, false),
            (R::Temporary, E::Killed, false),
            (R::Temporary, E::NotStarted, false),
        ];
        assert_eq!(table.len(), R::ALL.len() * E::ALL.len());
        for (restart, exit, again) in table {
            let mut children = children(restart);
            let now = Instant::now();
            up(&mut children, 'b', now);
            let generation = up(&mut children, 'a', now);
            let effects = on(&mut children, ChildEvent::Gone('a', generation, exit), now);
            let want = if again { F::Start('a', generation.next()) } else { F::LeaveOut('a') };
            assert_eq!(effects, [want], "{restart:?} {exit:?}");
            assert_eq!(children.has('a'), again, "{restart:?} {exit:?}");
            assert_eq!(children.state('b'), Some(SlotState::Up), "the other one has nothing to do with it");
        }
    }

    #[test]
    fn the_table_of_losses_waits_that_double_to_their_bound_and_the_one_that_is_too_many() {
        let mut children = children(RestartType::Transient);
        let mut now = Instant::now();
        let mut generation = up(&mut children, 'a', now);
        // The first restart is at once, the next two wait, the fourth loss is one too many.
        for wait in [0, 50, 80] {
            let effects = on(&mut children, ChildEvent::Gone('a', generation, Exit::Failed), now);
            let wait = Duration::from_millis(wait);
            if wait.is_zero() {
                assert_eq!(effects, [F::Start('a', generation.next())]);
            } else {
                assert_eq!(effects, [F::Wait('a', generation, wait)]);
                now += wait;
                let due = on(&mut children, ChildEvent::Due('a', generation), now);
                assert_eq!(due, [F::Start('a', generation.next())]);
                assert_eq!(on(&mut children, ChildEvent::Due('a', generation), now), [], "once");
            }
            generation = generation.next();
            on(&mut children, ChildEvent::Up('a', generation), now);
        }
        let effects = on(&mut children, ChildEvent::Gone('a', generation, Exit::Failed), now);
        assert_eq!(effects, [F::GiveUp('a')]);
        assert_eq!(children.state('a'), Some(SlotState::GaveUp), "its key is kept until its owner has dealt with it");
        assert_eq!(on(&mut children, ChildEvent::Wanted('a'), now), [F::GiveUp('a')], "not before the period is over");
        now += POLICY.period + Duration::from_secs(1);
        assert_eq!(on(&mut children, ChildEvent::Wanted('a'), now), [F::Start('a', generation.next())]);
    }

    #[test]
    fn a_child_that_settled_pays_nothing_for_what_was_before() {
        let mut children = children(RestartType::Permanent);
        let mut now = Instant::now();
        let mut generation = up(&mut children, 'a', now);
        for _ in 0..5 {
            now += POLICY.period + Duration::from_secs(1);
            let effects = on(&mut children, ChildEvent::Gone('a', generation, Exit::Killed), now);
            generation = generation.next();
            assert_eq!(effects, [F::Start('a', generation)]);
            on(&mut children, ChildEvent::Up('a', generation), now);
        }
    }

    #[test]
    fn who_is_wanted_twice_is_started_once_and_a_key_that_comes_again_is_another_child() {
        let mut children = children(RestartType::Transient);
        let now = Instant::now();
        let first = up(&mut children, 'a', now);
        assert_eq!(on(&mut children, ChildEvent::Wanted('a'), now), []);
        children.forget('a');
        assert_eq!(on(&mut children, ChildEvent::Gone('a', first, Exit::Failed), now), [], "nobody knows it any more");
        let second = up(&mut children, 'a', now);
        assert!(second > first);
        assert_eq!(on(&mut children, ChildEvent::Gone('a', first, Exit::Failed), now), [], "late news of the first");
        assert_eq!(on(&mut children, ChildEvent::Due('a', first), now), []);
        assert_eq!(children.state('a'), Some(SlotState::Up));
    }

    #[test]
    fn a_child_that_was_set_aside_is_no_loss_and_comes_back_when_it_is_wanted() {
        let mut children = children(RestartType::Transient);
        let now = Instant::now();
        let generation = up(&mut children, 'a', now);
        children.set_aside('a');
        assert_eq!(on(&mut children, ChildEvent::Gone('a', generation, Exit::Killed), now), []);
        assert_eq!(up(&mut children, 'a', now), generation.next());
    }

    #[test]
    fn a_stop_ends_those_that_are_there_and_nothing_is_started_after_it() {
        let mut children = children(RestartType::Permanent);
        let now = Instant::now();
        let generation = up(&mut children, 'a', now);
        up(&mut children, 'b', now);
        let mut effects = VecDeque::new();
        children.stop(&mut effects);
        assert_eq!(effects, [F::Stop('b'), F::Stop('a')]);
        assert_eq!(on(&mut children, ChildEvent::Gone('a', generation, Exit::Killed), now), []);
        assert_eq!(on(&mut children, ChildEvent::Wanted('b'), now), [F::GiveUp('b')]);
    }
}
