//! What a fault plan does to a session.
//!
//! Owns: the fault points of the loop and what strikes there, the look at the session's laws once one has fired. May not
//! know: what a plan says, what a call is answered with otherwise.
//!
//! Invariants: (1) what strikes within a turn is answered, waited for or cut off after it, as it would happen by itself;
//! (2) without a plan nothing here is executed but a look at whether there is one.

use std::sync::Arc;

use super::turn::{Serving, TurnEvent};
use super::{HeldUp, SessionEvent, SessionLoop};
use crate::actors::reply::AttemptReply;
use crate::actors::workers::messages::WorkersMsg;
use crate::base::ids::{CallNumber, Generation};
use crate::failpoints::{Broken, FaultPoint, InTurn, Operation};
use crate::protocol::session::CallOutcome;
use crate::rollout::Trigger;

impl SessionLoop {
    /// Meets what an armed plan holds between two turns.
    #[cold]
    pub(super) async fn meet_faults(&mut self) {
        if self.faults.have_fired()
            && let Err(broken) = self.invariant_calls_are_in_hand()
        {
            tracing::error!(session = %self.turn.number, broken, "a law is broken");
            self.neighbours.gauges.broken(broken);
        }
        match self.held_up.take() {
            None => {}
            Some(HeldUp::For(time)) => tokio::time::sleep(time).await,
            Some(HeldUp::Forever) => std::future::pending().await,
        }
        if self.turn.outgoing.bytes().is_empty() {
            return;
        }
        match self.faults.meet(FaultPoint::StdioWrite, Operation::None).await {
            None => {}
            Some(Broken::Torn) => {
                // Half of the first line, and then nobody is there to write the rest to.
                self.turn.outgoing.tear();
                self.write_now().await;
                self.decide(TurnEvent::HungUp);
            }
            Some(_) => self.decide(TurnEvent::HungUp),
        }
    }

    /// Notes that a fault holds the session up, or gives back what it breaks.
    #[cold]
    pub(super) fn hold_up(&mut self, met: InTurn) -> Option<Broken> {
        match met {
            InTurn::Do(broken) => Some(broken),
            InTurn::Wait(time) => {
                self.held_up = Some(time.map_or(HeldUp::Forever, HeldUp::For));
                None
            }
        }
    }

    /// Meets the point of each call before any of them leaves, so that what strikes here leaves none half sent; returns
    /// those that are to be sent.
    #[cold]
    pub(super) fn struck(&mut self, calls: &[CallNumber], generation: Generation) -> Vec<CallNumber> {
        let mut met = Vec::new();
        for call in calls {
            let Some(payload) = self.turn.ledger.payload(*call) else { continue };
            let name = Arc::clone(&self.turn.tools[payload.tool].name);
            let in_turn = self.faults.meet_in_turn(FaultPoint::SessionDispatch, Operation::Tool(&name));
            met.push((*call, in_turn.and_then(|in_turn| self.hold_up(in_turn))));
        }
        let mut unstruck = Vec::new();
        for (call, broken) in met {
            if broken.is_some() && self.turn.ledger.dispatch(call, generation).is_none() {
                continue;
            }
            match broken {
                None => unstruck.push(call),
                // Answered when the turn is over, like an outcome.
                Some(Broken::Error(fault)) => {
                    let outcome = CallOutcome::Fault(fault);
                    let _ = self.mailbox.send(SessionEvent::Settled { generation, call, outcome });
                }
                // Lost on its way, which its token tells.
                Some(_) => drop(AttemptReply::new(self.mailbox.clone(), call, generation)),
            }
        }
        unstruck
    }

    /// Takes the worker away, where the plan asks for it at an operation no worker executes.
    pub(super) fn crash_worker_at(&self, operation: Operation<'_>) {
        // Without a worker there is nothing to take away, and a rule that is to fire once waits until there is.
        if let Serving::Up(generation, _) = &self.turn.serving
            && self.faults.crash_key_matches(operation)
        {
            let _ = self.neighbours.workers.cast(WorkersMsg::Broken { generation: *generation });
        }
    }

    /// Asks for a rollout, where the plan forces one at this operation.
    pub(super) fn force_rollout_at(&self, operation: Operation<'_>) {
        if self.faults.forces_rollout(operation) {
            self.neighbours.rollout.ask(Trigger::Variable);
        }
    }

    /// L1, L6 and L9 as far as a session can see them, between two turns: every call in flight is in exactly one place, and
    /// nothing else is.
    ///
    /// # Errors
    ///
    /// What is broken, in words.
    pub fn invariant_calls_are_in_hand(&self) -> Result<(), String> {
        self.turn.core.invariant_calls_are_consistent_and_bounded()?;
        for call in self.turn.open_calls() {
            match (self.turn.ledger.holds(call), self.turn.host_calls.contains_key(&call)) {
                (true, false) | (false, true) => {}
                (true, true) => return Err(format!("call {} is in two places", call.0)),
                (false, false) => return Err(format!("call {} is in nobody's hands", call.0)),
            }
        }
        let held = self.turn.ledger.len() + self.turn.host_calls.len();
        if held != self.turn.in_flight() {
            return Err(format!("{held} calls are held for {} in flight", self.turn.in_flight()));
        }
        if self.turn.outgoing.torn() > 0 {
            return Err(format!("{} bytes of output end in the middle of a line", self.turn.outgoing.bytes().len()));
        }
        Ok(())
    }
}
