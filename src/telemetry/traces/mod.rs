//! Traces: what is remembered of calls until they are over, and what whoever exports spans is told.
//!
//! Owns: the calls in flight that are part of a trace, the bounded intake of facts, which trace a job is part of. May not know: how a
//! fact becomes spans, who exports them.
//!
//! Where nothing is exported, only what a client brings is remembered, so that its trace reaches the agent; a call without any costs
//! one look at a number. The tables' locks are private to this file and never held over an await.
//!
//! Invariants: (1) telling a fact never waits; (2) a fact that finds no room, or is lost, is counted (L10); (3) no fact has a field
//! that could hold a prompt, an answer or an argument (L13).

pub mod facts;
pub mod sampling;
pub mod spans;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

pub use self::facts::{AttemptSeen, CallFact, CallTrace, TraceFact};
use self::sampling::Sampler;
use crate::base::ids::{CallNumber, Generation, HostId, InvocationId, JobId, SessionNumber, UnixMillis};
use crate::base::trace::{AskingCall, JobTrace, SpanId, TraceContext, TraceId};

/// Facts that may wait for whoever exports them: some hundred bytes each. A collector that is away for a while costs what is beyond.
const FACTS: usize = 4 * 1024;

/// Facts that are passed on at an upgrade; more are lost, and counted.
const PASSED: usize = 512;

/// Calls in flight that are remembered. Four sessions at the bound of their calls.
const CALLS: usize = 4 * 1024;

/// Attempts that are remembered of one call; a worker that is lost more often than that has other troubles.
const ATTEMPTS: usize = 16;

/// What a system's traces are told with.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Telling {
    /// Nobody exports anything.
    #[default]
    Nobody,
    /// Spans are exported, as far as this samples them.
    Exporter(Sampler),
}

#[derive(Debug, Default)]
struct Shared {
    telling: Telling,
    /// Where the whole host is in a trace, as the server of an agent that we started.
    above: Option<TraceContext>,
    calls: Mutex<BTreeMap<(SessionNumber, CallNumber), CallTrace>>,
    /// How many there are, so that nobody locks for nothing.
    open: AtomicUsize,
    facts: Mutex<Facts>,
    wake: Notify,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Facts {
    waiting: VecDeque<TraceFact>,
    /// What was taken and neither exported nor given up.
    in_hand: Vec<TraceFact>,
}

/// A system's traces; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Traces(Arc<Shared>);

/// Nothing that can panic leaves a table half changed.
fn locked<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Traces {
    /// Traces that are told so. `above` is what the host itself is part of: calls that bring no trace of their own belong below it.
    #[must_use]
    pub fn new(telling: Telling, above: Option<TraceContext>) -> Self {
        Self(Arc::new(Shared { telling, above, ..Shared::default() }))
    }

    /// Whether anybody exports spans.
    #[must_use]
    pub fn are_told(&self) -> bool {
        self.0.telling != Telling::Nobody
    }

    /// A call begins, whose client brought this.
    pub fn begin(&self, session: SessionNumber, call: CallNumber, brought: Option<Box<TraceContext>>) {
        if brought.is_none() && !self.are_told() {
            return;
        }
        let parent = brought.or_else(|| self.0.above.clone().map(Box::new));
        let mut calls = locked(&self.0.calls);
        if calls.len() >= CALLS {
            drop(calls);
            self.lose(1);
            return;
        }
        calls.insert((session, call), CallTrace::new(call, parent));
        self.0.open.store(calls.len(), Ordering::Relaxed);
    }

    /// An attempt at a call goes to this worker.
    pub fn attempt(&self, session: SessionNumber, call: CallNumber, generation: Generation, at: UnixMillis) {
        if !self.are_told() || self.0.open.load(Ordering::Relaxed) == 0 {
            return;
        }
        if let Some(trace) = locked(&self.0.calls).get_mut(&(session, call))
            && trace.attempts.len() < ATTEMPTS
        {
            trace.attempts.push(AttemptSeen { at, generation });
        }
    }

    /// A call is over. What was remembered of it, where anybody is to be told.
    #[must_use]
    pub fn end(&self, session: SessionNumber, call: CallNumber) -> Option<Box<CallTrace>> {
        if self.0.open.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut calls = locked(&self.0.calls);
        let ended = calls.remove(&(session, call));
        self.0.open.store(calls.len(), Ordering::Relaxed);
        drop(calls);
        ended.filter(|_| self.are_told()).map(Box::new)
    }

    /// A session is over, and what it had open with it.
    pub fn over(&self, session: SessionNumber) {
        if self.0.open.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut calls = locked(&self.0.calls);
        calls.retain(|(of, _), _| *of != session);
        self.0.open.store(calls.len(), Ordering::Relaxed);
    }

    /// What is passed on of a session's calls.
    #[must_use]
    pub fn passed(&self, session: SessionNumber) -> Vec<CallTrace> {
        let calls = locked(&self.0.calls);
        let first = (session, CallNumber(0));
        calls.range(first..).take_while(|((of, _), _)| *of == session).map(|(_, call)| call.clone()).collect()
    }

    /// Takes in what was passed on of a session's calls, by an image that was replaced now.
    pub fn inherit(&self, session: SessionNumber, passed: &[CallTrace], now: UnixMillis) {
        let mut calls = locked(&self.0.calls);
        for call in passed.iter().take(CALLS) {
            let mut call = call.clone();
            if call.upgrades.len() < ATTEMPTS {
                call.upgrades.push(now);
            }
            calls.insert((session, CallNumber(call.call)), call);
        }
        self.0.open.store(calls.len(), Ordering::Relaxed);
    }

    /// The trace of a job that is accepted for this invocation; `None` where it is part of none. `brought` is what a job without an
    /// invocation brings from the machine it was asked on.
    #[must_use]
    pub fn of_job(
        &self,
        host: HostId,
        invocation: Option<InvocationId>,
        job: JobId,
        brought: Option<TraceContext>,
    ) -> Option<JobTrace> {
        let call = invocation.map(InvocationId::whole).and_then(|call| {
            locked(&self.0.calls).get(&(call.session, CallNumber(call.call))).cloned().map(|trace| (call, trace))
        });
        let told = self.are_told();
        match call {
            Some((invocation, call)) if told => {
                let place = self.place(host, invocation.session, &call);
                let asking = AskingCall { above: place.parent, at: call.attempts.first().map(|attempt| attempt.at) };
                let state = call.parent.and_then(|parent| parent.state);
                // Of a call that is not collected there is no span; whoever is above it is what the agent can belong to.
                let above = if place.sampled { None } else { place.parent };
                let parent = above.or(Some(place.span));
                let call = place.sampled.then_some(asking);
                Some(JobTrace { trace: place.trace, parent, sampled: place.sampled, state, told, call })
            }
            Some((_, call)) => call.parent.map(|parent| JobTrace::below(*parent, told)),
            None => match brought.or_else(|| self.0.above.clone()) {
                Some(above) => {
                    Some(JobTrace { sampled: self.samples(above.trace, Some(&above)), ..JobTrace::below(above, told) })
                }
                None if told => {
                    let trace = JobTrace::of_its_own(job);
                    let sampled = self.samples(trace, None);
                    Some(JobTrace { trace, parent: None, sampled, state: None, told, call: None })
                }
                None => None,
            },
        }
    }

    /// Where the span of a call belongs.
    #[must_use]
    pub fn place(&self, host: HostId, session: SessionNumber, call: &CallTrace) -> CallPlace {
        let parts = [host.to_string(), session.to_string(), call.call.to_string()];
        let parts = ["call", &parts[0], &parts[1], &parts[2]];
        let parent = call.parent.as_deref();
        let trace = parent.map_or_else(|| TraceId::derived(&parts), |parent| parent.trace);
        CallPlace {
            trace,
            span: SpanId::derived(&parts),
            parent: parent.map(|parent| parent.span),
            sampled: self.samples(trace, parent),
        }
    }

    fn samples(&self, trace: TraceId, parent: Option<&TraceContext>) -> bool {
        match self.0.telling {
            Telling::Nobody => parent.is_some_and(|parent| parent.sampled),
            Telling::Exporter(sampler) => sampler.samples(trace, parent.map(|parent| parent.sampled)),
        }
    }

    /// Tells whoever exports. Never waits; what finds no room is counted and forgotten.
    pub fn tell(&self, fact: TraceFact) {
        if !self.are_told() {
            return;
        }
        let mut facts = locked(&self.0.facts);
        if facts.waiting.len() >= FACTS {
            drop(facts);
            self.lose(1);
            return;
        }
        facts.waiting.push_back(fact);
        drop(facts);
        self.0.wake.notify_one();
    }

    /// Takes facts, oldest first, into the hand of whoever exports: at least one, and no more than weigh so much. Those that an earlier
    /// incarnation had in hand are lost, and counted: they may have been exported, or be what it failed at.
    #[must_use]
    pub fn take(&self, most: usize, weight: impl Fn(&TraceFact) -> usize) -> Vec<TraceFact> {
        let mut facts = locked(&self.0.facts);
        let lost = facts.in_hand.len();
        let mut weighed = 0;
        let fits = |fact: &&TraceFact| {
            let before = weighed;
            weighed += weight(fact);
            before == 0 || weighed <= most
        };
        let count = facts.waiting.iter().take_while(fits).count();
        facts.in_hand = facts.waiting.drain(..count).collect();
        let taken = facts.in_hand.clone();
        drop(facts);
        self.lose(lost as u64);
        taken
    }

    /// What is in hand waits again, before all others.
    pub fn put_back(&self) {
        let mut facts = locked(&self.0.facts);
        while let Some(fact) = facts.in_hand.pop() {
            facts.waiting.push_front(fact);
        }
    }

    /// What is in hand is exported.
    pub fn exported(&self) {
        locked(&self.0.facts).in_hand.clear();
    }

    /// What is in hand is given up, and counted.
    pub fn give_up(&self) {
        let lost = std::mem::take(&mut locked(&self.0.facts).in_hand).len();
        self.lose(lost as u64);
    }

    /// Whether any fact waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        locked(&self.0.facts).waiting.is_empty()
    }

    /// Waits until there may be facts.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn woken(&self) {
        self.0.wake.notified().await;
    }

    /// Counts facts that were lost.
    pub fn lose(&self, count: u64) {
        self.0.lost.fetch_add(count, Ordering::Relaxed);
    }

    /// Facts that found no room, or were lost, so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// What an image that is replaced passes on: facts nobody has exported, those in hand included, as far as they are few.
    #[must_use]
    pub fn passed_facts(&self) -> PassedFacts {
        let facts = locked(&self.0.facts);
        let all = facts.in_hand.iter().chain(&facts.waiting);
        let passed: Vec<TraceFact> = all.take(PASSED).cloned().collect();
        let lost = (facts.in_hand.len() + facts.waiting.len() - passed.len()) as u64 + self.lost();
        PassedFacts { facts: passed, lost }
    }

    /// Goes on with what an earlier image passed on.
    pub fn inherit_facts(&self, passed: &PassedFacts) {
        self.lose(passed.lost);
        passed.facts.iter().for_each(|fact| self.tell(fact.clone()));
    }
}

/// What is passed on at an upgrade.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PassedFacts {
    /// What was not exported.
    pub facts: Vec<TraceFact>,
    /// How many were lost before.
    pub lost: u64,
}

/// Where the span of a call belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallPlace {
    /// The trace.
    pub trace: TraceId,
    /// The span's own id.
    pub span: SpanId,
    /// What is above it.
    pub parent: Option<SpanId>,
    /// Whether it is exported.
    pub sampled: bool,
}

#[cfg(test)]
mod tests;
