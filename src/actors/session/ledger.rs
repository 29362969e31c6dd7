//! The ledger: every call a worker may be executing, and what is known about it.
//!
//! Owns: calls from the moment they are accepted until their outcome is known. It belongs to the session, so it survives
//! any worker. May not know: how a worker is started, what a call contains.
//!
//! Invariants: (1) a call is recorded as in flight before a worker is given it (L6); (2) an outcome from another
//! generation than the one in flight is counted and dropped (L5); (3) a call leaves the ledger exactly once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::{Deserialize, Serialize};

use super::replay::{self, Disposition, Knowledge};
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{CallNumber, Generation};
use crate::tools::{Evidence, ReplayContract};

/// One call.
#[derive(Debug)]
struct Invocation<P> {
    contract: ReplayContract,
    knowledge: Knowledge,
    /// The generation in flight, or the last one that was.
    generation: Generation,
    attempts: u32,
    evidence: Option<Evidence>,
    /// A probe was asked for and has not answered.
    probing: bool,
    payload: P,
}

impl<P> Invocation<P> {
    /// Whether this generation has it and has not reported.
    fn is_in_flight(&self, generation: Generation) -> bool {
        self.knowledge == Knowledge::InFlight && self.generation == generation
    }

    fn settled(self) -> SettledCall<P> {
        SettledCall { payload: self.payload, replays: self.attempts.saturating_sub(1) }
    }
}

/// What the ledger wants done about a call.
#[derive(Debug, PartialEq, Eq)]
pub enum LedgerEffect {
    /// Give it to the worker as soon as there is one.
    Send(CallNumber),
    /// Ask its tool for evidence.
    Probe(CallNumber),
    /// Take it out of the ledger ([`Ledger::take`]) and answer it with this fault.
    Fail(CallNumber, Box<Fault>),
}

/// What is known of a call, as it is passed on to the next image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedCall {
    /// Which call.
    pub call: u64,
    /// The last generation that had it.
    pub generation: Generation,
    /// Attempts that count.
    pub attempts: u32,
    /// Whether any worker ever had it.
    pub tried: bool,
}

/// A call that has left the ledger with an outcome.
#[derive(Debug, PartialEq, Eq)]
pub struct SettledCall<P> {
    /// What the loop kept with it.
    pub payload: P,
    /// Attempts after the first.
    pub replays: u32,
}

/// The worker calls of one session. `P` is what the loop keeps with a call.
#[derive(Debug)]
pub struct Ledger<P> {
    /// Keyed by our own numbers, so the hash need not resist anybody.
    entries: HashMap<CallNumber, Invocation<P>, foldhash::fast::RandomState>,
}

impl<P> Default for Ledger<P> {
    fn default() -> Self {
        Self { entries: HashMap::default() }
    }
}

impl<P> Ledger<P> {
    /// Calls in the ledger.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Gives back the memory that is kept for more calls than there are.
    pub fn rest(&mut self) {
        self.entries.shrink_to_fit();
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether this generation has the call and has not reported.
    #[must_use]
    pub fn is_in_flight(&self, key: CallNumber, generation: Generation) -> bool {
        self.entries.get(&key).is_some_and(|entry| entry.is_in_flight(generation))
    }

    /// Takes a call in; it waits to be sent.
    pub fn record(&mut self, key: CallNumber, contract: ReplayContract, payload: P) {
        let entry = Invocation {
            contract,
            knowledge: Knowledge::NotDispatched,
            generation: Generation::NONE,
            attempts: 0,
            evidence: None,
            probing: false,
            payload,
        };
        self.entries.insert(key, entry);
    }

    /// Records that the call goes to this generation now. Must come before the worker is given it.
    ///
    /// What a probe found, which attempt it is (from 1), and what is kept with it; `None` when the call is gone or was not
    /// waiting to be sent.
    pub fn dispatch(&mut self, key: CallNumber, generation: Generation) -> Option<(Option<Evidence>, u32, &P)> {
        let entry = self.entries.get_mut(&key)?;
        if entry.knowledge == Knowledge::InFlight || entry.probing {
            return None;
        }
        entry.knowledge = Knowledge::InFlight;
        entry.generation = generation;
        entry.attempts += 1;
        Some((entry.evidence, entry.attempts, &entry.payload))
    }

    /// A worker could not be given the call: it ended before. No worker had this attempt.
    pub fn retract(&mut self, key: CallNumber, generation: Generation) {
        let in_flight =
            |entry: &&mut Invocation<P>| entry.knowledge == Knowledge::InFlight && entry.generation == generation;
        if let Some(entry) = self.entries.get_mut(&key).filter(in_flight) {
            entry.attempts = entry.attempts.saturating_sub(1);
            // What an earlier attempt left behind is as unknown as before.
            entry.knowledge = if entry.attempts == 0 { Knowledge::NotDispatched } else { Knowledge::OutcomeUnknown };
        }
    }

    /// Calls that wait to be sent, oldest first.
    #[must_use]
    pub fn waiting(&self) -> Vec<CallNumber> {
        let ready = |entry: &Invocation<P>| {
            entry.knowledge == Knowledge::NotDispatched
                || (entry.knowledge == Knowledge::OutcomeUnknown
                    && !entry.probing
                    && matches!(
                        replay::disposition(entry.knowledge, entry.contract, entry.evidence, entry.attempts),
                        Disposition::Replay | Disposition::Attach
                    ))
        };
        let mut keys: Vec<CallNumber> =
            self.entries.iter().filter(|(_, entry)| ready(entry)).map(|(key, _)| *key).collect();
        keys.sort_unstable();
        keys
    }

    /// An attempt came out. The payload of the call, or `None` when the news is stale.
    pub fn settle(&mut self, key: CallNumber, generation: Generation) -> Option<SettledCall<P>> {
        let Entry::Occupied(found) = self.entries.entry(key) else { return None };
        found.get().is_in_flight(generation).then(|| found.remove().settled())
    }

    /// Removes a call: withdrawn, or answered with a fault.
    pub fn take(&mut self, key: CallNumber) -> Option<SettledCall<P>> {
        self.entries.remove(&key).map(Invocation::settled)
    }

    /// What the loop keeps with a call.
    #[must_use]
    pub fn payload(&self, key: CallNumber) -> Option<&P> {
        self.entries.get(&key).map(|entry| &entry.payload)
    }

    /// Whether it holds this call.
    #[must_use]
    pub fn holds(&self, key: CallNumber) -> bool {
        self.entries.contains_key(&key)
    }

    /// This generation and all before it are gone: decides about each call they had. The oldest call comes first.
    pub fn lost(&mut self, generation: Generation) -> Vec<LedgerEffect> {
        let mut keys: Vec<CallNumber> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.knowledge == Knowledge::InFlight && entry.generation <= generation)
            .map(|(key, _)| *key)
            .collect();
        keys.sort_unstable();
        keys.into_iter()
            .filter_map(|key| {
                let entry = self.entries.get_mut(&key)?;
                entry.knowledge = Knowledge::OutcomeUnknown;
                // Evidence is as old as the attempt before the one that was lost.
                entry.evidence = None;
                self.decide(key)
            })
            .collect()
    }

    /// A probe has answered.
    pub fn probed(&mut self, key: CallNumber, evidence: Evidence) -> Option<LedgerEffect> {
        let entry = self.entries.get_mut(&key)?;
        if !std::mem::take(&mut entry.probing) {
            return None;
        }
        entry.evidence = Some(evidence);
        self.decide(key)
    }

    /// This generation and all before it were ended to make room, not lost: decides about each call they had as about one
    /// that was lost, but the attempt is not charged to its budget. So it is with calls another image passed on.
    pub fn released(&mut self, generation: Generation) -> Vec<LedgerEffect> {
        for entry in self.entries.values_mut() {
            if entry.knowledge == Knowledge::InFlight && entry.generation <= generation {
                entry.knowledge = Knowledge::OutcomeUnknown;
                entry.attempts = entry.attempts.saturating_sub(1);
                entry.evidence = None;
            }
        }
        let undecided = |entry: &Invocation<P>| {
            entry.knowledge == Knowledge::OutcomeUnknown && !entry.probing && entry.evidence.is_none()
        };
        let mut keys: Vec<CallNumber> =
            self.entries.iter().filter(|(_, entry)| undecided(entry)).map(|(key, _)| *key).collect();
        keys.sort_unstable();
        keys.into_iter().filter_map(|key| self.decide(key)).collect()
    }

    /// What is kept with the calls a worker has at this moment.
    pub fn in_flight(&self) -> impl Iterator<Item = &P> {
        self.entries.values().filter(|entry| entry.knowledge == Knowledge::InFlight).map(|entry| &entry.payload)
    }

    /// Every call as it is passed on, oldest first: an attempt in flight ends with this image, and is not charged.
    #[must_use]
    pub fn passed_on(&self) -> Vec<(PassedCall, &P)> {
        let mut passed: Vec<(PassedCall, &P)> = self
            .entries
            .iter()
            .map(|(key, entry)| {
                let charged = entry.attempts - u32::from(entry.knowledge == Knowledge::InFlight);
                let tried = entry.knowledge != Knowledge::NotDispatched;
                let call = PassedCall { call: key.0, generation: entry.generation, attempts: charged, tried };
                (call, &entry.payload)
            })
            .collect();
        passed.sort_unstable_by_key(|(call, _)| call.call);
        passed
    }

    /// Takes in a call another image passed on. It is decided about with the next [`Ledger::released`].
    pub fn restore(&mut self, passed: &PassedCall, contract: ReplayContract, payload: P) {
        let entry = Invocation {
            contract,
            knowledge: if passed.tried { Knowledge::OutcomeUnknown } else { Knowledge::NotDispatched },
            generation: passed.generation,
            attempts: passed.attempts,
            evidence: None,
            probing: false,
            payload,
        };
        self.entries.insert(CallNumber(passed.call), entry);
    }

    fn decide(&mut self, key: CallNumber) -> Option<LedgerEffect> {
        let entry = self.entries.get_mut(&key)?;
        let fail = |code, detail: &str| {
            LedgerEffect::Fail(key, Box::new(Fault::new(code, detail).generation(entry.generation)))
        };
        Some(match replay::disposition(entry.knowledge, entry.contract, entry.evidence, entry.attempts) {
            Disposition::Dispatch | Disposition::Replay | Disposition::Attach => LedgerEffect::Send(key),
            Disposition::Probe => {
                entry.probing = true;
                LedgerEffect::Probe(key)
            }
            Disposition::FailUnknown => fail(
                FaultCode::OutcomeUnknown,
                "the worker was lost while it ran this call; whether the call took effect is not known.",
            ),
            Disposition::FailExhausted => {
                fail(FaultCode::ReplayExhausted, "the worker was lost each time it ran this call.")
            }
        })
    }

    /// Every call, in order: for failing all of them when the slot gives up.
    #[must_use]
    pub fn keys(&self) -> Vec<CallNumber> {
        let mut keys: Vec<CallNumber> = self.entries.keys().copied().collect();
        keys.sort_unstable();
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(call: u64) -> CallNumber {
        CallNumber(call)
    }

    const G1: Generation = Generation(1);
    const G2: Generation = Generation(2);

    #[test]
    fn a_stale_outcome_is_dropped() {
        let mut ledger = Ledger::default();
        ledger.record(key(1), ReplayContract::Convergent, "call");
        ledger.dispatch(key(1), G1);
        assert_eq!(ledger.lost(G1), [LedgerEffect::Send(key(1))]);
        assert_eq!(ledger.settle(key(1), G1), None, "the lost generation reports late");
        ledger.dispatch(key(1), G2);
        assert_eq!(ledger.settle(key(1), G1), None);
        assert_eq!(ledger.settle(key(1), G2), Some(SettledCall { payload: "call", replays: 1 }));
        assert_eq!(ledger.settle(key(1), G2), None, "a call leaves once");
    }

    #[test]
    fn a_call_that_needs_a_probe_is_neither_sent_nor_failed_before_it_answers() {
        for (evidence, want) in
            [(Evidence::Accepted, "send"), (Evidence::NotAccepted, "send"), (Evidence::Unknown, "fail")]
        {
            let mut ledger = Ledger::default();
            ledger.record(key(1), ReplayContract::ProbeRequired, ());
            ledger.dispatch(key(1), G1);
            assert_eq!(ledger.lost(G1), [LedgerEffect::Probe(key(1))]);
            assert!(ledger.waiting().is_empty());
            assert!(ledger.dispatch(key(1), G2).is_none());
            match ledger.probed(key(1), evidence) {
                Some(LedgerEffect::Send(_)) => {
                    assert_eq!(want, "send");
                    assert_eq!(ledger.waiting(), [key(1)]);
                    assert_eq!(
                        ledger.dispatch(key(1), G2).map(|(evidence, attempt, ())| (evidence, attempt)),
                        Some((Some(evidence), 2))
                    );
                }
                Some(LedgerEffect::Fail(_, fault)) => {
                    assert_eq!((want, fault.code), ("fail", FaultCode::OutcomeUnknown));
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(ledger.probed(key(1), evidence), None, "a probe answers once");
        }
    }

    #[test]
    fn an_attempt_no_worker_took_is_no_attempt() {
        for contract in ReplayContract::ALL {
            let mut ledger = Ledger::default();
            ledger.record(key(1), contract, ());
            for generation in 1..=5 {
                let (_, attempt, ()) = ledger.dispatch(key(1), Generation(generation)).expect("it waits");
                assert_eq!(attempt, 1);
                ledger.retract(key(1), Generation(generation));
                assert_eq!(ledger.waiting(), [key(1)]);
            }
            ledger.dispatch(key(1), Generation(6));
            ledger.retract(key(1), G1);
            assert!(ledger.is_in_flight(key(1), Generation(6)), "another attempt is not touched");
        }
    }

    #[test]
    fn a_call_that_is_passed_on_keeps_its_budget_and_its_contract_decides() {
        for (contract, want) in [
            (ReplayContract::Convergent, "send"),
            (ReplayContract::ProbeRequired, "probe"),
            (ReplayContract::NeverReplay, "fail"),
        ] {
            let mut old = Ledger::default();
            old.record(key(1), contract, "call");
            old.record(key(2), contract, "waits");
            old.dispatch(key(1), G1);
            let mut new = Ledger::default();
            for (passed, payload) in old.passed_on() {
                new.restore(&passed, contract, *payload);
            }
            // The next image decides as the old one does when it stays.
            for mut ledger in [old, new] {
                let effects = ledger.released(G1);
                let [effect] = &effects[..] else { panic!("{effects:?}") };
                match effect {
                    LedgerEffect::Send(call) => assert_eq!((*call, want), (key(1), "send")),
                    LedgerEffect::Probe(call) => {
                        assert_eq!((*call, want), (key(1), "probe"));
                        assert!(ledger.released(G1).is_empty(), "a probe is under way");
                        assert!(ledger.probed(key(1), Evidence::NotAccepted).is_some());
                    }
                    LedgerEffect::Fail(call, fault) => {
                        assert_eq!((*call, fault.code, want), (key(1), FaultCode::OutcomeUnknown, "fail"));
                        ledger.take(key(1));
                        continue;
                    }
                }
                assert_eq!(ledger.waiting(), [key(1), key(2)]);
                let attempt = ledger.dispatch(key(1), G2).map(|(_, attempt, _)| attempt);
                assert_eq!(attempt, Some(1), "the attempt that was cut off does not count");
            }
        }
    }

    #[test]
    fn a_call_no_worker_had_is_sent_whatever_its_contract() {
        for contract in ReplayContract::ALL {
            let mut ledger = Ledger::default();
            ledger.record(key(1), contract, ());
            assert!(ledger.lost(G1).is_empty());
            assert_eq!(ledger.waiting(), [key(1)]);
        }
    }

    #[test]
    fn a_call_that_must_not_be_replayed_fails_once_with_the_generation_it_was_lost_in() {
        let mut ledger = Ledger::default();
        ledger.record(key(1), ReplayContract::NeverReplay, ());
        ledger.record(key(2), ReplayContract::Convergent, ());
        ledger.dispatch(key(1), G1);
        ledger.dispatch(key(2), G1);
        let effects = ledger.lost(G1);
        let [LedgerEffect::Fail(failed, fault), LedgerEffect::Send(sent)] = &effects[..] else { panic!("{effects:?}") };
        assert_eq!((*failed, *sent), (key(1), key(2)));
        assert_eq!((fault.code, fault.generation), (FaultCode::OutcomeUnknown, Some(G1)));
        assert!(ledger.take(key(1)).is_some());
        assert!(ledger.lost(G1).is_empty());
    }
}
