//! Children of one supervisor that depend on each other: start in order, restart together, stop in reverse.
//!
//! Owns: which children are stopped and started when one of them ends. May not know: what they are.
//!
//! Invariants: (1) a child is started only while all it depends on are up; (2) under [`Strategy::RestForOne`] those
//! started after a lost child are stopped, last first, before it is started again; (3) a child that gave up is left out
//! or escalated, as its spec says, and never silently forgotten.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::slot::{Slot, SlotEffect, SlotState};
use super::{ChildEffect, ChildEvent, ChildSpec, Children, Exit, Strategy};
use crate::base::ids::Generation;

/// A child and what the others have to do with it.
#[derive(Debug, Clone, Copy)]
pub struct TableEntry {
    /// The child.
    pub child: ChildSpec,
    /// Whether the others may hold on to an incarnation of it.
    pub others: Others,
    /// What follows when it gave up.
    pub on_give_up: OnGiveUp,
    /// When it is started first.
    pub begin: Begin,
}

/// When a child is started first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With the others.
    AtStart,
    /// When it is wanted by itself.
    WhenWanted,
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

/// A child, by its place in the order of start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildId(pub usize);

/// The children.
#[derive(Debug)]
pub struct ChildTable {
    strategy: Strategy,
    children: Vec<(TableEntry, Slot)>,
    /// Those that are started when they are wanted, and were.
    wanted: BTreeSet<ChildId>,
    stopping: bool,
}

impl ChildTable {
    /// Nobody is started yet.
    #[must_use]
    pub fn new(strategy: Strategy, entries: impl IntoIterator<Item = TableEntry>) -> Self {
        let slot = |entry: &TableEntry| Slot::new(entry.child.restart, entry.child.policy);
        let children = entries.into_iter().map(|entry| (entry, slot(&entry))).collect();
        Self { strategy, children, wanted: BTreeSet::new(), stopping: false }
    }

    /// Restarts of all children so far, those of whom were only stopped along not counted.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.children.iter().map(|(_, slot)| slot.total_restarts()).sum()
    }

    /// Whether a child is there.
    #[must_use]
    pub fn is_up(&self, id: ChildId) -> bool {
        self.children.get(id.0).is_some_and(|(_, slot)| slot.state() == SlotState::Up)
    }

    /// The first child that is not there and should be.
    #[must_use]
    pub fn missing(&self) -> Option<ChildId> {
        (0..self.children.len()).map(ChildId).find(|id| self.is_due(*id) && !self.is_up(*id))
    }

    fn is_due(&self, id: ChildId) -> bool {
        self.children.get(id.0).is_some_and(|(entry, _)| entry.begin == Begin::AtStart) || self.wanted.contains(&id)
    }

    /// Starts the first child that is due; the next one follows when it is up.
    fn start(&mut self, now: Instant, effects: &mut VecDeque<ChildEffect<ChildId>>) {
        if self.stopping {
            return;
        }
        for id in 0..self.children.len() {
            if !self.is_due(ChildId(id)) {
                continue;
            }
            let (entry, slot) = &mut self.children[id];
            match slot.state() {
                SlotState::Empty => {
                    let effect = slot.wanted(now);
                    return effects.extend(self.follow(ChildId(id), effect));
                }
                // Those after it wait for it, unless nobody depends on it.
                SlotState::Starting | SlotState::Backoff if entry.others == Others::DependOnIt => return,
                _ => {}
            }
        }
    }

    /// A child's task has ended, or it could not be started.
    fn gone(
        &mut self,
        id: ChildId,
        generation: Generation,
        exit: Exit,
        now: Instant,
        effects: &mut VecDeque<ChildEffect<ChildId>>,
    ) {
        let strategy = self.strategy;
        let Some((entry, slot)) = self.children.get_mut(id.0) else { return };
        let effect = slot.gone(generation, exit, now);
        let lost = matches!(effect, SlotEffect::Start(_) | SlotEffect::Wait(..) | SlotEffect::GiveUp);
        if lost && strategy == Strategy::RestForOne && entry.others == Others::DependOnIt {
            let later = id.0 + 1;
            for (offset, (_, slot)) in self.children[later..].iter_mut().enumerate().rev() {
                if slot.set_aside() {
                    effects.push_back(ChildEffect::Stop(ChildId(later + offset)));
                }
            }
        }
        effects.extend(self.follow(id, effect));
    }

    fn follow(&self, id: ChildId, effect: SlotEffect) -> Option<ChildEffect<ChildId>> {
        let (entry, _) = self.children.get(id.0)?;
        match (effect, entry.on_give_up) {
            (SlotEffect::GiveUp, OnGiveUp::LeaveOut) => Some(ChildEffect::LeaveOut(id)),
            (effect, _) => effect.of(id),
        }
    }
}

impl Children for ChildTable {
    type Key = ChildId;

    fn name(&self, id: ChildId) -> &'static str {
        self.children.get(id.0).map_or("a child", |(entry, _)| entry.child.name)
    }

    fn shutdown(&self, id: ChildId) -> Duration {
        self.children.get(id.0).map_or(Duration::ZERO, |(entry, _)| entry.child.shutdown)
    }

    /// That one of them is wanted starts all, in order, but for those that are not wanted yet and begin then only.
    fn step(&mut self, event: ChildEvent<ChildId>, now: Instant, effects: &mut VecDeque<ChildEffect<ChildId>>) {
        match event {
            ChildEvent::Wanted(id) => {
                self.wanted.insert(id);
                self.start(now, effects);
            }
            ChildEvent::Up(id, generation) => {
                if self.children.get_mut(id.0).is_some_and(|(_, slot)| slot.up(generation, now)) {
                    self.start(now, effects);
                }
            }
            ChildEvent::Gone(id, generation, exit) => self.gone(id, generation, exit, now, effects),
            ChildEvent::Due(id, generation) => {
                if let Some((_, slot)) = self.children.get_mut(id.0) {
                    let effect = slot.due(generation);
                    effects.extend(self.follow(id, effect));
                }
            }
        }
    }

    fn set_aside(&mut self, id: ChildId) {
        if let Some((_, slot)) = self.children.get_mut(id.0) {
            slot.set_aside();
        }
    }

    /// A child's place in the order is its own for good; it is only not started any more.
    fn forget(&mut self, id: ChildId) {
        if let Some((_, slot)) = self.children.get_mut(id.0) {
            slot.stop();
        }
    }

    fn stop(&mut self, effects: &mut VecDeque<ChildEffect<ChildId>>) {
        self.stopping = true;
        for (id, (_, slot)) in self.children.iter_mut().enumerate().rev() {
            if matches!(slot.state(), SlotState::Up | SlotState::Starting) {
                effects.push_back(ChildEffect::Stop(ChildId(id)));
            }
            slot.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::RestartType;
    use super::super::slot::RestartPolicy;
    use super::ChildEffect as F;
    use super::*;

    const fn spec(restart: RestartType, others: Others, on_give_up: OnGiveUp) -> TableEntry {
        let policy = RestartPolicy {
            intensity: 2,
            period: Duration::from_secs(60),
            backoff: Duration::from_millis(50),
            backoff_most: Duration::from_secs(2),
            settled_after: Duration::from_secs(10),
        };
        TableEntry {
            child: ChildSpec { name: "child", restart, policy, shutdown: Duration::ZERO },
            others,
            on_give_up,
            begin: Begin::AtStart,
        }
    }

    fn on(table: &mut ChildTable, event: ChildEvent<ChildId>, now: Instant) -> Vec<F<ChildId>> {
        let mut effects = VecDeque::new();
        table.step(event, now, &mut effects);
        effects.into()
    }

    fn start(table: &mut ChildTable, now: Instant) -> Vec<F<ChildId>> {
        on(table, ChildEvent::Wanted(ChildId(0)), now)
    }

    fn up(table: &mut ChildTable, id: usize, generation: u64, now: Instant) -> Vec<F<ChildId>> {
        on(table, ChildEvent::Up(ChildId(id), Generation(generation)), now)
    }

    fn gone(table: &mut ChildTable, id: usize, generation: u64, exit: Exit, now: Instant) -> Vec<F<ChildId>> {
        on(table, ChildEvent::Gone(ChildId(id), Generation(generation), exit), now)
    }

    fn due(table: &mut ChildTable, id: usize, generation: u64, now: Instant) -> Vec<F<ChildId>> {
        on(table, ChildEvent::Due(ChildId(id), Generation(generation)), now)
    }

    /// Three children, all up.
    fn three(strategy: Strategy, middle: RestartType) -> (ChildTable, Instant) {
        let now = Instant::now();
        let permanent = spec(RestartType::Permanent, Others::DependOnIt, OnGiveUp::Escalate);
        let middle = spec(middle, Others::DependOnIt, OnGiveUp::Escalate);
        let mut table = ChildTable::new(strategy, [permanent, middle, permanent]);
        assert_eq!(start(&mut table, now), [F::Start(ChildId(0), Generation(1))]);
        assert_eq!(up(&mut table, 0, 1, now), [F::Start(ChildId(1), Generation(1))]);
        assert_eq!(up(&mut table, 1, 1, now), [F::Start(ChildId(2), Generation(1))]);
        assert_eq!(up(&mut table, 2, 1, now), []);
        (table, now)
    }

    #[test]
    fn one_that_begins_when_it_is_wanted_is_missed_by_nobody_before() {
        let now = Instant::now();
        let permanent = spec(RestartType::Permanent, Others::DependOnIt, OnGiveUp::Escalate);
        let mut later = spec(RestartType::Permanent, Others::Independent, OnGiveUp::LeaveOut);
        later.begin = Begin::WhenWanted;
        let mut table = ChildTable::new(Strategy::RestForOne, [permanent, later, permanent]);
        assert_eq!(start(&mut table, now), [F::Start(ChildId(0), Generation(1))]);
        assert_eq!(up(&mut table, 0, 1, now), [F::Start(ChildId(2), Generation(1))]);
        assert_eq!((up(&mut table, 2, 1, now), table.missing()), (vec![], None));
        // What it depends on is lost before it is wanted: nothing of it is stopped, nothing of it is started.
        let again = [F::Stop(ChildId(2)), F::Start(ChildId(0), Generation(2))];
        assert_eq!(gone(&mut table, 0, 1, Exit::Failed, now), again);
        assert_eq!(gone(&mut table, 2, 1, Exit::Normal, now), []);
        assert_eq!(up(&mut table, 0, 2, now), [F::Start(ChildId(2), Generation(2))]);
        assert_eq!(up(&mut table, 2, 2, now), []);
        let wanted = on(&mut table, ChildEvent::Wanted(ChildId(1)), now);
        assert_eq!((wanted, table.missing()), (vec![F::Start(ChildId(1), Generation(1))], Some(ChildId(1))));
        assert_eq!((up(&mut table, 1, 1, now), table.missing()), (vec![], None));
        assert_eq!(on(&mut table, ChildEvent::Wanted(ChildId(1)), now), []);
    }

    #[test]
    fn the_matrix_of_restart_type_exit_and_strategy() {
        use Exit as E;
        use RestartType as R;
        use Strategy as S;
        let again = F::Start(ChildId(1), Generation(2));
        let rest = F::Stop(ChildId(2));
        let out = F::LeaveOut(ChildId(1));
        // One row per type and exit; columns: one for one, rest for one. The middle one of three ends.
        type Effects<'a> = &'a [F<ChildId>];
        let rows: [(R, E, Effects<'_>, Effects<'_>); 12] = [
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
        assert_eq!(rows.len(), R::ALL.len() * E::ALL.len());
        for (restart, exit, alone, together) in rows {
            for (strategy, want) in [(S::OneForOne, alone), (S::RestForOne, together)] {
                let (mut table, now) = three(strategy, restart);
                let got = gone(&mut table, 1, 1, exit, now);
                assert_eq!(got, want, "{restart:?} {exit:?} {strategy:?}");
                assert!(table.is_up(ChildId(0)));
                assert_eq!(table.is_up(ChildId(2)), !want.contains(&rest));
            }
        }
    }

    #[test]
    fn the_rest_follows_in_order_and_as_new_generations() {
        let (mut table, now) = three(Strategy::RestForOne, RestartType::Permanent);
        let effects = gone(&mut table, 0, 1, Exit::Failed, now);
        assert_eq!(effects, [F::Stop(ChildId(2)), F::Stop(ChildId(1)), F::Start(ChildId(0), Generation(2))]);
        // What was stopped along says so late; it is no loss.
        assert_eq!(gone(&mut table, 2, 1, Exit::Killed, now), []);
        assert_eq!(up(&mut table, 0, 2, now), [F::Start(ChildId(1), Generation(2))]);
        assert_eq!(up(&mut table, 1, 2, now), [F::Start(ChildId(2), Generation(2))]);
        assert_eq!(table.restarts(), 1);
    }

    #[test]
    fn a_lost_child_that_waits_keeps_the_rest_waiting() {
        let (mut table, now) = three(Strategy::RestForOne, RestartType::Permanent);
        gone(&mut table, 0, 1, Exit::Failed, now);
        let wait = F::Wait(ChildId(0), Generation(2), Duration::from_millis(50));
        assert_eq!(gone(&mut table, 0, 2, Exit::NotStarted, now), [wait]);
        assert_eq!(start(&mut table, now), []);
        assert_eq!(due(&mut table, 0, 2, now), [F::Start(ChildId(0), Generation(3))]);
        let effects = gone(&mut table, 0, 3, Exit::NotStarted, now);
        assert_eq!(effects, [F::GiveUp(ChildId(0))]);
    }

    #[test]
    fn a_child_nobody_depends_on_takes_nobody_along_and_is_left_out_in_the_end() {
        let now = Instant::now();
        let sink = spec(RestartType::Permanent, Others::Independent, OnGiveUp::LeaveOut);
        let part = spec(RestartType::Permanent, Others::DependOnIt, OnGiveUp::Escalate);
        let mut table = ChildTable::new(Strategy::RestForOne, [sink, part]);
        start(&mut table, now);
        up(&mut table, 0, 1, now);
        up(&mut table, 1, 1, now);
        assert_eq!(gone(&mut table, 0, 1, Exit::Failed, now), [F::Start(ChildId(0), Generation(2))]);
        up(&mut table, 0, 2, now);
        gone(&mut table, 0, 2, Exit::Failed, now);
        assert_eq!(due(&mut table, 0, 2, now), [F::Start(ChildId(0), Generation(3))]);
        up(&mut table, 0, 3, now);
        assert_eq!(gone(&mut table, 0, 3, Exit::Failed, now), [F::LeaveOut(ChildId(0))]);
        assert!(table.is_up(ChildId(1)));
    }

    #[test]
    fn a_stop_is_in_reverse_and_nothing_is_started_after_it() {
        let (mut table, now) = three(Strategy::RestForOne, RestartType::Permanent);
        let mut effects = VecDeque::new();
        table.stop(&mut effects);
        assert_eq!(effects, [F::Stop(ChildId(2)), F::Stop(ChildId(1)), F::Stop(ChildId(0))]);
        assert_eq!(gone(&mut table, 1, 1, Exit::Failed, now), []);
        assert_eq!(start(&mut table, now), []);
    }
}
