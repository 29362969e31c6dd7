//! The laws of a fleet, as functions over what was asked and answered.
//!
//! Owns: a witness that knows a fleet by its events and verdicts alone, and one `invariant_*` per law. May not know: how a fleet
//! keeps anything, so that the same witness stands beside the core and beside a database.
//!
//! A witness sees events in the order in which they were decided.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::claiming::CapScope;
use super::core::{FleetEvent, FleetVerdict};
use super::job::{ClaimedJob, Fence, FleetState, FrozenJob, Ticket};
use super::{
    CLAIMED_MOST, ClaimRefusal, FleetAccept, FleetCancel, FleetClaim, FleetFinish, FleetStart, FleetView, LEASE,
    SWEPT_AFTER, later,
};
use crate::base::ids::{FleetJobId, HostId, UnixMillis};

/// A law of a fleet that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{law}: {detail}")]
pub struct FleetViolation {
    /// The law, in words.
    pub law: &'static str,
    /// What was seen instead.
    pub detail: String,
}

/// What the laws are checked by.
#[derive(Debug, Clone, Default)]
pub struct FleetWitness {
    jobs: BTreeMap<FleetJobId, Witnessed>,
    keys: HashMap<(String, String), (FleetJobId, String)>,
    leases: HashMap<HostId, (UnixMillis, String)>,
    drained: HashSet<HostId>,
    fences: Vec<Fence>,
    caps: BTreeMap<CapScope, u64>,
    broken: Vec<FleetViolation>,
}

#[derive(Debug, Clone)]
struct Witnessed {
    frozen: FrozenJob,
    state: FleetState,
    ticket: Option<Ticket>,
    claimed_at: Option<UnixMillis>,
    /// The tickets a start was confirmed for.
    started: BTreeSet<Fence>,
    started_at: Option<UnixMillis>,
    hold_until: Option<UnixMillis>,
    late: BTreeSet<Fence>,
    host_name: Option<String>,
}

/// The law of states.
const EDGES: &str = "states change along the edges that are drawn, and what is over stays over";

impl FleetWitness {
    /// Notes what was asked, when, and what was answered.
    pub fn saw(&mut self, event: &FleetEvent, verdict: &FleetVerdict, now: UnixMillis) {
        match (event, verdict) {
            (FleetEvent::AcceptAsked { job, .. }, FleetVerdict::Accept(accept)) => self.saw_accept(job, *accept),
            (FleetEvent::ClaimAsked { ask, .. }, FleetVerdict::Claim(claim)) => self.saw_claim(ask.host, claim, now),
            (FleetEvent::StartAsked(ticket), FleetVerdict::Start(start)) => self.saw_start(*ticket, *start, now),
            (FleetEvent::LeaseRenewed(renewal), FleetVerdict::Renew(_)) => {
                self.leases.insert(renewal.host, (later(now, LEASE), renewal.name.clone()));
            }
            (FleetEvent::RunEnded(finish), FleetVerdict::Finish(answer)) => {
                self.saw_finish(finish.ticket, finish.end, *answer);
            }
            (FleetEvent::SweepDue, FleetVerdict::Sweep(swept)) => {
                for job in &swept.requeued {
                    self.moved(*job, FleetState::Queued, now);
                }
                for job in &swept.interrupted {
                    self.moved(*job, FleetState::Interrupted, now);
                }
                for job in &swept.expired {
                    self.moved(*job, FleetState::Failed, now);
                }
            }
            (FleetEvent::CancelAsked(job), FleetVerdict::Cancel(FleetCancel::Ended)) => {
                self.moved(*job, FleetState::Cancelled, now);
            }
            (FleetEvent::CapSet { scope, cap }, _) => {
                match cap {
                    Some(cap) => self.caps.insert(scope.clone(), *cap),
                    None => self.caps.remove(scope),
                };
            }
            (FleetEvent::DrainSet { host, drained }, _) => {
                if *drained {
                    self.drained.insert(*host);
                } else {
                    self.drained.remove(host);
                }
            }
            _ => {}
        }
    }

    fn broke(&mut self, law: &'static str, detail: String) {
        self.broken.push(FleetViolation { law, detail });
    }

    fn saw_accept(&mut self, job: &FrozenJob, accept: FleetAccept) {
        const LAW: &str = "one request key of one workspace is one job";
        let key = (job.workspace.clone(), job.request_key.clone());
        let known = self.keys.get(&key).cloned();
        match (accept, known) {
            (FleetAccept::Inserted(id), None) => {
                self.keys.insert(key, (id, job.digest.clone()));
                let new = Witnessed {
                    frozen: job.clone(),
                    state: FleetState::Queued,
                    ticket: None,
                    claimed_at: None,
                    started: BTreeSet::new(),
                    started_at: None,
                    hold_until: None,
                    late: BTreeSet::new(),
                    host_name: None,
                };
                self.jobs.insert(id, new);
            }
            (FleetAccept::Joined(id), Some((known, digest))) if id == known && digest == job.digest => {}
            (FleetAccept::Conflict(id), Some((known, digest))) if id == known && digest != job.digest => {}
            // Whose key it is belongs to rows that are not shown, which no model has.
            (FleetAccept::QueueFull { .. } | FleetAccept::Hidden, None) => {}
            (accept, known) => self.broke(LAW, format!("{accept:?}, and the key was of {known:?}")),
        }
    }

    fn saw_claim(&mut self, host: HostId, claim: &FleetClaim, now: UnixMillis) {
        const LAW: &str = "only a host that lives and may take jobs is given any";
        let FleetClaim::Claimed(given) = claim else {
            let lives = self.leases.get(&host).is_some_and(|(until, _)| *until > now);
            if lives && *claim == FleetClaim::NotNow(ClaimRefusal::LeaseOver) {
                self.broke(LAW, format!("{host} lives and was told that its lease is over"));
            }
            return;
        };
        let lease = self.leases.get(&host).cloned();
        if lease.as_ref().is_none_or(|(until, _)| *until <= now) || self.drained.contains(&host) {
            self.broke(LAW, format!("{host} with the lease {lease:?} at {now:?} was given {}", given.len()));
        }
        for job in given {
            self.fences.push(job.ticket.fence);
            self.moved(job.ticket.job, FleetState::Claimed, now);
            if let Some(job_seen) = self.jobs.get_mut(&job.ticket.job) {
                (job_seen.ticket, job_seen.claimed_at) = (Some(job.ticket), Some(now));
                job_seen.host_name = lease.as_ref().map(|(_, name)| name.clone());
            }
        }
        self.saw_caps(given, now);
    }

    /// A cap may have been lowered below what ran then; a claim has to find room all the same.
    fn saw_caps(&mut self, given: &[ClaimedJob], now: UnixMillis) {
        for (scope, cap) in self.caps.clone() {
            let took = given.iter().any(|job| self.jobs.get(&job.ticket.job).is_some_and(|seen| seen.is_in(&scope)));
            let counted = self.counted(&scope, now);
            if took && counted > cap {
                self.broke("caps are exact (L19)", format!("{counted} of {cap} for {scope:?}"));
            }
        }
    }

    /// How many count against a cap.
    #[must_use]
    pub fn counted(&self, scope: &CapScope, now: UnixMillis) -> u64 {
        let counts = |job: &&Witnessed| {
            (job.state.is_held() || job.hold_until.is_some_and(|until| until > now)) && job.is_in(scope)
        };
        u64::try_from(self.jobs.values().filter(counts).count()).unwrap_or(u64::MAX)
    }

    fn saw_start(&mut self, ticket: Ticket, start: FleetStart, now: UnixMillis) {
        const LAW: &str = "what is started was claimed, by a host that lives, and nobody wanted its end";
        if start != FleetStart::Started {
            return;
        }
        let lives = self.leases.get(&ticket.host).is_some_and(|(until, _)| *until > now);
        let Some(job) = self.jobs.get_mut(&ticket.job) else {
            return self.broke(LAW, format!("{} is none", ticket.job));
        };
        let again = job.state == FleetState::Running && job.started.contains(&ticket.fence);
        let good = again || (job.state == FleetState::Claimed && job.ticket == Some(ticket) && lives);
        if !again {
            job.started_at = Some(now);
        }
        job.started.insert(ticket.fence);
        if !again {
            self.moved(ticket.job, FleetState::Running, now);
        }
        if !good {
            self.broke(LAW, format!("{ticket:?} at {now:?}"));
        }
    }

    fn saw_finish(&mut self, ticket: Ticket, end: FleetState, answer: FleetFinish) {
        let Some(job) = self.jobs.get_mut(&ticket.job) else { return };
        match answer {
            FleetFinish::Finished => self.told(ticket.job, end),
            FleetFinish::Late { .. } => {
                job.late.insert(ticket.fence);
                if job.ticket == Some(ticket) {
                    job.hold_until = None;
                }
            }
            FleetFinish::Already | FleetFinish::NoJob => {}
        }
    }

    /// Its host said how it ended: nothing is taken from anybody, and nothing of it runs.
    fn told(&mut self, id: FleetJobId, end: FleetState) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let from = std::mem::replace(&mut job.state, end);
        if from.advance(end).is_none() {
            self.broke(EDGES, format!("{id} went from {from:?} to {end:?}"));
        }
    }

    fn moved(&mut self, id: FleetJobId, to: FleetState, now: UnixMillis) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return self.broke(EDGES, format!("{id} is none"));
        };
        let from = job.state;
        job.state = to;
        if to == FleetState::Interrupted {
            let timeout = std::time::Duration::from_secs(job.frozen.timeout_s);
            job.hold_until = job.started_at.map(|at| later(at, timeout));
        }
        // A host is believed for one lease more than it had.
        let host = job.ticket.map(|ticket| ticket.host);
        let lease = host.and_then(|host| self.leases.get(&host)).map(|(until, _)| later(*until, SWEPT_AFTER));
        let is_old = job.claimed_at.is_none_or(|at| later(at, CLAIMED_MOST) <= now);
        let taken = matches!(
            (from, to),
            (FleetState::Claimed, FleetState::Queued) | (FleetState::Running, FleetState::Interrupted)
        );
        if from.advance(to).is_none() {
            self.broke(EDGES, format!("{id} went from {from:?} to {to:?}"));
        } else if taken && lease.is_some_and(|until| until > now) && !(from == FleetState::Claimed && is_old) {
            self.broke("nothing is taken from a host that may live", format!("{id} at {now:?}"));
        }
    }

    /// The jobs it has seen.
    pub fn jobs(&self) -> impl Iterator<Item = FleetJobId> {
        self.jobs.keys().copied()
    }
}

impl Witnessed {
    fn is_in(&self, scope: &CapScope) -> bool {
        match scope {
            CapScope::Fleet => true,
            CapScope::Account(account) => self.frozen.account == *account,
            CapScope::Agent(agent) => self.frozen.agent == *agent,
            CapScope::Host(name) => self.host_name.as_ref() == Some(name),
        }
    }
}

/// Of one job at most one start is ever confirmed (L3, L19).
///
/// # Errors
/// A job with two.
pub fn invariant_a_job_is_started_at_most_once(witness: &FleetWitness) -> Result<(), FleetViolation> {
    const LAW: &str = "one job of the fleet is at most one start (L3)";
    match witness.jobs.iter().find(|(_, job)| job.started.len() > 1) {
        Some((id, job)) => Err(FleetViolation { law: LAW, detail: format!("{id} by {:?}", job.started) }),
        None => Ok(()),
    }
}

/// Each claim has a fence of its own, greater than every one before it (L19).
///
/// # Errors
/// The first that is not.
pub fn invariant_fences_grow(witness: &FleetWitness) -> Result<(), FleetViolation> {
    const LAW: &str = "each claim has a fence greater than all before it (L19)";
    match witness.fences.windows(2).find(|pair| pair[0] >= pair[1]) {
        Some(pair) => Err(FleetViolation { law: LAW, detail: format!("{pair:?}") }),
        None => Ok(()),
    }
}

/// Everything that was answered was right when it was answered: edges of states, keys, leases, caps (L3, L16, L19).
///
/// # Errors
/// The first that was not.
pub fn invariant_every_answer_was_right(witness: &FleetWitness) -> Result<(), FleetViolation> {
    witness.broken.first().cloned().map_or(Ok(()), Err)
}

/// A job is what it was last said to be, and every outcome that came too late is there (L4, L19).
///
/// # Errors
/// What is missing or different.
pub fn invariant_what_was_told_is_kept(
    witness: &FleetWitness,
    job: FleetJobId,
    view: Option<&FleetView>,
) -> Result<(), FleetViolation> {
    const LAW: &str = "what was told is kept, late outcomes included (L19)";
    let broken = |detail| Err(FleetViolation { law: LAW, detail });
    let Some(seen) = witness.jobs.get(&job) else { return Ok(()) };
    // What is over is forgotten some time.
    let Some(view) = view else {
        return if seen.state.is_terminal() {
            Ok(())
        } else {
            broken(format!("{job} was {:?} and is gone", seen.state))
        };
    };
    if view.state != seen.state {
        return broken(format!("{job} was {:?} and is {:?}", seen.state, view.state));
    }
    let kept: BTreeSet<Fence> = view.late.iter().map(|late| late.fence).collect();
    if kept.is_superset(&seen.late) { Ok(()) } else { broken(format!("{job}: {:?}, kept {kept:?}", seen.late)) }
}
