//! The only child of its supervisor.
//!
//! Owns: its slot. May not know: what it is.

use std::collections::VecDeque;
use std::ops::Deref;
use std::time::{Duration, Instant};

use super::slot::{Slot, SlotState};
use super::{ChildEffect, ChildEvent, ChildSpec, Children};
use crate::base::ids::Generation;

/// The child; whoever asks how it stands asks its slot.
#[derive(Debug)]
pub struct OnlyChild {
    spec: ChildSpec,
    slot: Slot,
}

impl OnlyChild {
    /// It is not started yet. Its first incarnation is the next generation after this one, and so many restarts were counted
    /// before.
    #[must_use]
    pub fn after(generation: Generation, restarts: u64, spec: ChildSpec) -> Self {
        let mut slot = Slot::after(generation, spec.restart, spec.policy);
        slot.inherit(restarts);
        Self { spec, slot }
    }
}

impl Deref for OnlyChild {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        &self.slot
    }
}

impl Children for OnlyChild {
    type Key = ();

    fn name(&self, (): ()) -> &'static str {
        self.spec.name
    }

    fn shutdown(&self, (): ()) -> Duration {
        self.spec.shutdown
    }

    fn step(&mut self, event: ChildEvent<()>, now: Instant, effects: &mut VecDeque<ChildEffect<()>>) {
        effects.extend(self.slot.on(event, now).of(()));
    }

    fn set_aside(&mut self, (): ()) {
        self.slot.set_aside();
    }

    fn forget(&mut self, (): ()) {
        self.slot.stop();
    }

    fn stop(&mut self, effects: &mut VecDeque<ChildEffect<()>>) {
        if matches!(self.slot.state(), SlotState::Up | SlotState::Starting) {
            effects.push_back(ChildEffect::Stop(()));
        }
        self.slot.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::super::slot::RestartPolicy;
    use super::super::{Exit, RestartType};
    use super::*;

    #[test]
    fn it_goes_on_where_the_last_supervisor_stood_and_says_what_is_to_be_done() {
        let spec = ChildSpec {
            name: "child",
            restart: RestartType::Permanent,
            policy: RestartPolicy::default(),
            shutdown: Duration::ZERO,
        };
        let mut child = OnlyChild::after(Generation(7), 3, spec);
        let now = Instant::now();
        let mut effects = VecDeque::new();
        child.step(ChildEvent::Wanted(()), now, &mut effects);
        child.step(ChildEvent::Up((), Generation(8)), now, &mut effects);
        child.step(ChildEvent::Gone((), Generation(7), Exit::Failed), now, &mut effects);
        child.step(ChildEvent::Gone((), Generation(8), Exit::Failed), now, &mut effects);
        assert_eq!(effects, [ChildEffect::Start((), Generation(8)), ChildEffect::Start((), Generation(9))]);
        assert_eq!(child.total_restarts(), 4);
        effects.clear();
        child.stop(&mut effects);
        assert_eq!(effects, [ChildEffect::Stop(())]);
    }
}
