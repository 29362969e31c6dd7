//! Random schedules of a fleet, which both the core and a database can be told.
//!
//! Owns: what may happen ([`Op`]), drawn from a seed, and how it becomes an event for one fleet, whose tickets have fences of its
//! own. Laws: none are checked here.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::base::ids::{FleetJobId, HostId, UnixMillis};
use crate::fleet::core::{FleetEvent, FleetVerdict};
use crate::fleet::{
    CapScope, ClaimAsk, ClaimRefusal, FleetAccept, FleetCancel, FleetClaim, FleetFinish, FleetPause, FleetStart,
    FleetState, Labels, Needs, NewFleetJob, Renewal, RunFinish, Ticket, later,
};
use crate::jobs::{ConsultRequest, JobOutcome};

/// Machines of a schedule.
const MACHINES: usize = 4;

/// How far the clock goes at once: no sum of it is near the ends of leases and deadlines, so that a database that takes its own time
/// besides answers alike.
pub(in crate::fleet) const TICK: Duration = Duration::from_secs(35);

/// The account every second job needs.
const ACCOUNT: &str = "a1";

/// One thing that happens.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::fleet) enum Op {
    Accept {
        workspace: u8,
        key: u8,
        session: Option<u8>,
        has_account: bool,
        timeout_s: u64,
        needs_big: bool,
    },
    Renew {
        machine: usize,
    },
    /// The process of a machine is gone, and another one begins there.
    Reborn {
        machine: usize,
    },
    Claim {
        machine: usize,
        most: usize,
    },
    /// The nth ticket, counted from the last.
    Start {
        nth: usize,
    },
    Finish {
        nth: usize,
        end: FleetState,
        pause: bool,
    },
    Sweep,
    Cancel {
        nth: usize,
    },
    Cap {
        scope: u8,
        cap: Option<u64>,
    },
    Drain {
        machine: usize,
        drained: bool,
    },
    Pass,
    TimelineChanged,
}

/// How a run ends, as its host tells it.
const ENDS: [FleetState; 4] =
    [FleetState::Succeeded, FleetState::Failed, FleetState::Cancelled, FleetState::Interrupted];

/// The things that happen in the schedule of this seed.
pub(in crate::fleet) fn ops(seed: u64, count: usize) -> Vec<Op> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut ops: Vec<Op> = (0..MACHINES).map(|machine| Op::Renew { machine }).collect();
    while ops.len() < count {
        let machine = random.usize(0..MACHINES);
        let op = match random.u8(0..100) {
            0..24 => Op::Accept {
                workspace: random.u8(0..5),
                key: random.u8(0..30),
                session: (random.u8(0..4) == 0).then(|| random.u8(0..2)),
                has_account: random.bool(),
                timeout_s: if random.u8(0..4) == 0 { 200 } else { 1000 },
                needs_big: random.u8(0..6) == 0,
            },
            24..44 => Op::Claim { machine, most: random.usize(1..4) },
            44..60 => Op::Start { nth: random.usize(0..4) },
            60..74 => Op::Finish {
                nth: random.usize(0..6),
                end: ENDS[random.usize(0..ENDS.len())],
                pause: random.u8(0..12) == 0,
            },
            74..80 => Op::Sweep,
            80..84 => Op::Cancel { nth: random.usize(0..8) },
            84..86 => Op::Cap { scope: random.u8(0..4), cap: random.bool().then(|| random.u64(1..4)) },
            86..88 => Op::Drain { machine, drained: random.u8(0..3) == 0 },
            88..90 => Op::Reborn { machine },
            90..91 => Op::TimelineChanged,
            91..93 => Op::Renew { machine },
            _ => {
                // Most hosts say that they live; some do not.
                ops.push(Op::Pass);
                ops.extend((0..MACHINES).filter(|_| random.u8(0..4) > 0).map(|machine| Op::Renew { machine }));
                continue;
            }
        };
        ops.push(op);
    }
    ops
}

/// What one fleet has been told and has said. The same jobs and hosts for every fleet that shares it by clone.
#[derive(Debug, Clone)]
pub(in crate::fleet) struct World {
    hosts: Vec<HostId>,
    /// The processes that will begin when others are gone.
    unborn: Vec<HostId>,
    ids: Vec<FleetJobId>,
    accepts: usize,
    jobs: Vec<FleetJobId>,
    tickets: Vec<Ticket>,
    running: Vec<Ticket>,
    now: UnixMillis,
}

impl Default for World {
    fn default() -> Self {
        Self {
            hosts: (0..MACHINES).map(|_| HostId::random()).collect(),
            unborn: (0..200).map(|_| HostId::random()).collect(),
            ids: (0..400).map(|_| FleetJobId::random()).collect(),
            accepts: 0,
            jobs: Vec::new(),
            tickets: Vec::new(),
            running: Vec::new(),
            now: UnixMillis(1_800_000_000_000),
        }
    }
}

impl World {
    pub(in crate::fleet) fn now(&self) -> UnixMillis {
        self.now
    }

    /// The clock of a database, instead of its own.
    pub(in crate::fleet) fn set_now(&mut self, now: UnixMillis) {
        self.now = now;
    }

    /// The event an op is here; `None` where it is about nothing that exists, or about the clock alone.
    pub(in crate::fleet) fn event(&mut self, op: &Op) -> Option<FleetEvent> {
        let nth_from_last = |nth: usize, tickets: &[Ticket]| tickets.iter().rev().nth(nth).copied();
        Some(match op {
            Op::Accept { .. } => {
                let job = Box::new(self.new_job(op)?.freeze().expect("within its bounds"));
                FleetEvent::AcceptAsked { job, owner: "me".into() }
            }
            Op::Renew { machine } => self.renewed(*machine),
            Op::Reborn { machine } => {
                self.hosts[*machine] = self.unborn.pop()?;
                self.renewed(*machine)
            }
            Op::Claim { machine, most } => {
                let ask = ClaimAsk { host: self.hosts[*machine], most: *most, accepts: Vec::new() };
                FleetEvent::ClaimAsked { ask, user: "me".into() }
            }
            Op::Start { nth } => FleetEvent::StartAsked(nth_from_last(*nth, &self.tickets)?),
            Op::Finish { nth, end, pause } => {
                let ticket = nth_from_last(*nth, &self.tickets)?;
                self.running.retain(|running| *running != ticket);
                let lasts = TICK * 2 + TICK / 2;
                let pause =
                    pause.then(|| FleetPause { scope: CapScope::Account(ACCOUNT.into()), lasts, why: "limit".into() });
                FleetEvent::RunEnded(Box::new(RunFinish { ticket, end: *end, outcome: JobOutcome::default(), pause }))
            }
            Op::Sweep => FleetEvent::SweepDue,
            Op::Cancel { nth } => FleetEvent::CancelAsked(*self.jobs.iter().rev().nth(*nth)?),
            Op::Cap { scope, cap } => {
                let scope = match scope {
                    0 => CapScope::Fleet,
                    1 => CapScope::Account(ACCOUNT.into()),
                    2 => CapScope::Agent("claude".into()),
                    _ => CapScope::Host("machine 1".into()),
                };
                FleetEvent::CapSet { scope, cap: *cap }
            }
            Op::Drain { machine, drained } => FleetEvent::DrainSet { host: self.hosts[*machine], drained: *drained },
            Op::Pass => {
                self.now = later(self.now, TICK);
                return None;
            }
            Op::TimelineChanged => FleetEvent::TimelineChanged,
        })
    }

    /// The job an op brings.
    pub(in crate::fleet) fn new_job(&mut self, op: &Op) -> Option<NewFleetJob> {
        let Op::Accept { workspace, key, session, has_account, timeout_s, needs_big } = op else { return None };
        let id = *self.ids.get(self.accepts)?;
        self.accepts += 1;
        let account = if *has_account { ACCOUNT } else { "" };
        let mut job = job(id, &format!("path:s:/w{workspace}"), &format!("key {key}"), account, *timeout_s);
        if *needs_big {
            job.needs.tags.push("big".into());
        }
        job.request.session_id =
            session.map(|number| format!("00000000-0000-4000-8000-00000000000{number}").parse().expect("an id"));
        Some(job)
    }

    fn renewed(&self, machine: usize) -> FleetEvent {
        let host = self.hosts[machine];
        let mut labels = labels(2);
        if machine != 0 {
            labels.tags.clear();
        }
        FleetEvent::LeaseRenewed(Box::new(Renewal {
            host,
            name: format!("machine {machine}"),
            state_id: format!("state-{machine}"),
            labels,
            running: self.running.iter().copied().filter(|ticket| ticket.host == host).collect(),
        }))
    }

    /// Takes note of what was said.
    pub(in crate::fleet) fn learn(&mut self, event: &FleetEvent, verdict: &FleetVerdict) {
        match (event, verdict) {
            (_, FleetVerdict::Accept(FleetAccept::Inserted(job))) => self.jobs.push(*job),
            (_, FleetVerdict::Claim(FleetClaim::Claimed(given))) => {
                self.tickets.extend(given.iter().map(|job| job.ticket));
            }
            (FleetEvent::StartAsked(ticket), FleetVerdict::Start(FleetStart::Started)) => self.running.push(*ticket),
            _ => {}
        }
    }
}

/// A job of Claude's.
pub(in crate::fleet) fn job(id: FleetJobId, workspace: &str, key: &str, account: &str, timeout_s: u64) -> NewFleetJob {
    NewFleetJob {
        id,
        workspace: workspace.into(),
        request_key: key.into(),
        request: ConsultRequest::new(format!("prompt of {key}")).cwd("/w").timeout_s(timeout_s),
        given: None,
        account: account.into(),
        needs: Needs::default(),
        pin_state: None,
        trace: None,
    }
}

/// A host of so many slots that serves the jobs here.
pub(in crate::fleet) fn labels(slots: u32) -> Labels {
    let labels = format!(r#"{{"agents":{{"claude":{{"accounts":["{ACCOUNT}"]}}}},"slots":{slots},"tags":["big"]}}"#);
    Labels::read(&labels).expect("labels")
}

/// How often each kind of verdict came, so that a schedule in which nothing happens is noticed.
#[derive(Debug, Default)]
pub(in crate::fleet) struct Kinds(BTreeMap<&'static str, usize>);

/// What has to happen in schedules that are worth their time.
const WANTED: &[&str] = &[
    "inserted",
    "joined",
    "conflict",
    "claimed",
    "claimed nothing",
    "lease over",
    "drained",
    "quiet",
    "started",
    "start refused",
    "start without lease",
    "finished",
    "already",
    "late",
    "requeued",
    "interrupted",
    "expired",
    "ended",
    "asked",
    "over",
];

impl Kinds {
    pub(in crate::fleet) fn note(&mut self, verdict: &FleetVerdict) {
        let mut kinds = Vec::new();
        match verdict {
            FleetVerdict::Accept(FleetAccept::Inserted(_)) => kinds.push("inserted"),
            FleetVerdict::Accept(FleetAccept::Joined(_)) => kinds.push("joined"),
            FleetVerdict::Accept(FleetAccept::Conflict(_)) => kinds.push("conflict"),
            FleetVerdict::Claim(FleetClaim::Claimed(given)) if given.is_empty() => kinds.push("claimed nothing"),
            FleetVerdict::Claim(FleetClaim::Claimed(_)) => kinds.push("claimed"),
            FleetVerdict::Claim(FleetClaim::NotNow(ClaimRefusal::LeaseOver)) => kinds.push("lease over"),
            FleetVerdict::Claim(FleetClaim::NotNow(ClaimRefusal::Drained)) => kinds.push("drained"),
            FleetVerdict::Claim(FleetClaim::NotNow(ClaimRefusal::Quiet)) => kinds.push("quiet"),
            FleetVerdict::Start(FleetStart::Started) => kinds.push("started"),
            FleetVerdict::Start(FleetStart::LeaseOver) => kinds.push("start without lease"),
            FleetVerdict::Start(FleetStart::Refused { .. }) => kinds.push("start refused"),
            FleetVerdict::Finish(FleetFinish::Finished) => kinds.push("finished"),
            FleetVerdict::Finish(FleetFinish::Already) => kinds.push("already"),
            FleetVerdict::Finish(FleetFinish::Late { .. }) => kinds.push("late"),
            FleetVerdict::Sweep(swept) => {
                kinds.extend((!swept.requeued.is_empty()).then_some("requeued"));
                kinds.extend((!swept.interrupted.is_empty()).then_some("interrupted"));
                kinds.extend((!swept.expired.is_empty()).then_some("expired"));
            }
            FleetVerdict::Cancel(FleetCancel::Ended) => kinds.push("ended"),
            FleetVerdict::Cancel(FleetCancel::Asked) => kinds.push("asked"),
            FleetVerdict::Cancel(FleetCancel::Over { .. }) => kinds.push("over"),
            _ => {}
        }
        for kind in kinds {
            *self.0.entry(kind).or_default() += 1;
        }
    }

    pub(in crate::fleet) fn expect_all(&self) {
        let missing: Vec<_> = WANTED.iter().filter(|kind| !self.0.contains_key(*kind)).collect();
        assert!(missing.is_empty(), "never happened: {missing:?}, in {:?}", self.0);
    }
}
