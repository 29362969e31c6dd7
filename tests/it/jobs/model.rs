//! Whole consults against the rules of the jobs' supervisor, without a process: a store, runners and another host in
//! miniature, hosts that are killed and hosts that adopt, and a random order of everything that can happen to them.
//!
//! A seed makes a schedule. After each event the laws are looked at: L3 (a consult is at most one run, a key is one job),
//! L4 (who is answered is answered with a job the store has, and a terminal state stays), L7 (a synchronous job whose
//! callers are gone is ended, no other job is, and nothing runs for a terminal one). The same seed comes out the same.
//!
//! Laws: L3, L4, L7.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "helpers of tests; a schedule that failed is printed")]

use std::collections::{BTreeMap, BTreeSet, HashSet};

use fastrand::Rng;
use phone_opus::internals::actors::jobs::core::{AskId, Custodian, Found, JobsCore, JobsEffect, JobsEvent};
use phone_opus::internals::base::ids::{HostId, InvocationId, JobId, SessionNumber};
use phone_opus::internals::jobs::{JobMode, JobState};

/// Seeds that once failed; they run first.
const SEEDS_THAT_FAILED: &[u64] = &[];
/// Seeds, and events of each.
const SEEDS: u64 = 2_500;
const EVENTS: usize = 80;

/// A job as the store has it, with the process that runs it.
#[derive(Debug, Clone)]
struct Stored {
    key: Option<u8>,
    arguments: u8,
    mode: JobMode,
    state: JobState,
    invocation: Option<InvocationId>,
    cancelled: Option<Why>,
    /// Who looks after it: our host, another one, nobody.
    host: Host,
    runner: Runner,
    runs: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    Ours,
    Other,
    Nobody,
    /// One that was killed; whoever works at the job goes on.
    Dead,
    /// Ours by the job's row: it was adopted, which is on its way to the supervisor.
    Adopting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Requested,
    CallerLost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runner {
    None,
    Waiting,
    Running,
}

/// One call of the tool, from its ask to its answer.
#[derive(Debug, Clone)]
struct Call {
    caller: Option<InvocationId>,
    key: Option<u8>,
    arguments: u8,
    mode: JobMode,
    /// Where its ask is: `None` before it was put and after it was answered.
    ask: Option<AskId>,
    withdrawn: bool,
    answer: Option<Option<JobId>>,
    /// Its host was killed, and it asks the next one by its key.
    comes_back: bool,
}

/// The store's answer, on its way back to the supervisor.
#[derive(Debug, Clone, Copy)]
struct Under {
    ask: AskId,
    call: usize,
    /// What the store did, once it did it.
    did: Option<Option<Found>>,
}

struct World {
    random: Rng,
    core: JobsCore,
    jobs: BTreeMap<JobId, Stored>,
    calls: Vec<Call>,
    under: Vec<Under>,
    asks: u64,
    sessions: u64,
    attending: BTreeSet<JobId>,
    still: bool,
    let_go: bool,
    /// Hosts there were.
    hosts: u32,
    /// Hosts die often, and each call has a key by which it can be made again.
    kills: bool,
    log: Vec<String>,
    /// How often what was interesting happened, so that a schedule that reaches nothing is noticed.
    met: BTreeMap<&'static str, u64>,
}

fn host(number: u32) -> HostId {
    format!("00000000-0000-4000-8000-{number:012}").parse().expect("an id")
}

fn job_id(number: usize) -> JobId {
    format!("00000000-0000-4000-9000-{number:012}").parse().expect("an id")
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: Rng::with_seed(seed),
            core: JobsCore::default(),
            jobs: BTreeMap::new(),
            calls: Vec::new(),
            under: Vec::new(),
            asks: 0,
            sessions: 3,
            attending: BTreeSet::new(),
            still: true,
            let_go: false,
            hosts: 1,
            kills: seed % 2 == 1,
            log: Vec::new(),
            met: BTreeMap::new(),
        }
    }

    fn met(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    fn on(&mut self, event: JobsEvent) {
        self.log.push(match &event {
            // A set has no order of its own.
            JobsEvent::Resumed { session, open } => format!("Resumed {session:?} {:?}", BTreeSet::from_iter(open)),
            event => format!("{event:?}"),
        });
        let mut effects = Vec::new();
        self.core.step(event, &mut effects);
        for effect in effects {
            self.log.push(format!("    {effect:?}"));
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: JobsEffect) {
        match effect {
            JobsEffect::Accept(ask) => {
                let call = self.calls.iter().position(|call| call.ask == Some(ask)).expect("a call asks");
                self.under.push(Under { ask, call, did: None });
            }
            JobsEffect::RefuseWithdrawn(ask) | JobsEffect::Refuse(ask) => self.answer(ask, None),
            JobsEffect::Answer(ask) => {
                let under = self.under.iter().find(|under| under.ask == ask).expect("an answer has a question");
                let found = under.did.flatten().expect("L4: an accept is answered after the store has it");
                assert!(self.jobs.contains_key(&found.job), "L4: an answer names a job the store has");
                self.answer(ask, Some(found.job));
            }
            JobsEffect::Attach(job) => {
                let stored = self.jobs.get_mut(&job).expect("a job");
                let free = matches!(stored.host, Host::Ours | Host::Nobody);
                assert!(free, "L3: a job of another host is not attached here: {stored:?}");
                stored.host = Host::Ours;
            }
            JobsEffect::AttachByStore(job) => {
                let stored = self.jobs.get_mut(&job).expect("a job");
                assert!(stored.host == Host::Adopting, "L3: it is followed, and not ours: {stored:?}");
                stored.host = Host::Ours;
                self.met("adopted with its runner");
            }
            JobsEffect::AwaitCallers(job) => {
                assert!(self.core.claim(job).is_some(), "callers of {job} are waited for, which nobody looks after");
            }
            JobsEffect::Attend(job) => {
                assert!(!self.let_go, "nobody attends while attention is withdrawn");
                self.attending.insert(job);
            }
            JobsEffect::HandOver(job) => {
                let stored = self.jobs.get_mut(&job).expect("a job");
                if !stored.state.is_terminal() {
                    stored.mode = JobMode::Background;
                }
            }
            JobsEffect::EndForLostCaller(job) => {
                self.met("ended for a lost caller");
                let waits =
                    |call: &Call| call.answer == Some(Some(job)) && !call.withdrawn && call.mode == JobMode::Sync;
                let stored = self.jobs.get_mut(&job).expect("a job");
                // Whoever waits for one that is over has its end already.
                let over = stored.state.is_terminal();
                assert!(over || !self.calls.iter().any(waits), "L7: {job} is ended although somebody waits for it");
                // The store lets go on what another host's caller has taken over meanwhile.
                if stored.mode == JobMode::Sync && !stored.state.is_terminal() {
                    stored.cancelled.get_or_insert(Why::CallerLost);
                }
            }
            JobsEffect::Terminate(_) => {}
            JobsEffect::SetAside(job) => drop(self.attending.remove(&job)),
            JobsEffect::Release(job) => {
                self.attending.remove(&job);
                let stored = self.jobs.get_mut(&job).expect("a job");
                if !stored.state.is_terminal() {
                    stored.host = if stored.runner == Runner::None { Host::Nobody } else { Host::Other };
                }
            }
            JobsEffect::Still => {
                assert!(self.under.is_empty(), "still, and an accept is under way");
                self.still = true;
            }
        }
    }

    fn answer(&mut self, ask: AskId, job: Option<JobId>) {
        self.under.retain(|under| under.ask != ask);
        let call = self.calls.iter_mut().find(|call| call.ask == Some(ask)).expect("a call asks");
        assert!(call.answer.is_none(), "an ask is answered once");
        call.ask = None;
        call.answer = Some(job);
    }

    /// A call puts its question, for the first time or again.
    fn put(&mut self, at: usize) {
        self.asks += 1;
        let ask = AskId(self.asks);
        let call = &mut self.calls[at];
        call.ask = Some(ask);
        let event = JobsEvent::Asked { ask, caller: call.caller, mode: call.mode };
        self.on(event);
    }

    /// The store takes an accept: by invocation, by key, or anew.
    fn commit(&mut self, at: usize) {
        let Under { call, .. } = self.under[at];
        let call = self.calls[call].clone();
        let same_call = |stored: &Stored| call.caller.is_some() && stored.invocation == call.caller;
        let same_key = |stored: &Stored| call.key.is_some() && stored.key == call.key;
        if self.random.u8(0..10) == 0 {
            self.met("refused");
            self.under[at].did = Some(None);
            return;
        }
        let known = self.jobs.iter().find(|(_, stored)| same_call(stored) || same_key(stored));
        let did = match known {
            Some((_, stored)) if stored.arguments != call.arguments => None,
            Some((&job, stored)) => {
                let custodian = match stored.host {
                    Host::Dead if !stored.state.is_terminal() => Custodian::Adopted,
                    Host::Ours | Host::Other | Host::Dead | Host::Adopting => Custodian::Somebody,
                    Host::Nobody if stored.state == JobState::Queued && same_call(stored) => Custodian::Unattended,
                    Host::Nobody if stored.state == JobState::Queued => Custodian::Orphan,
                    Host::Nobody => Custodian::Somebody,
                };
                Some(Found { job, mode: stored.mode, state: stored.state, custodian })
            }
            None => {
                let job = job_id(self.jobs.len());
                let stored = Stored {
                    key: call.key,
                    arguments: call.arguments,
                    mode: call.mode,
                    state: JobState::Queued,
                    invocation: call.caller,
                    cancelled: None,
                    host: Host::Nobody,
                    runner: Runner::None,
                    runs: 0,
                };
                self.jobs.insert(job, stored);
                Some(Found { job, mode: call.mode, state: JobState::Queued, custodian: Custodian::Inserted })
            }
        };
        match did {
            Some(Found { custodian: Custodian::Somebody, .. }) => self.met("joined"),
            Some(Found { custodian: Custodian::Adopted, job, .. }) => {
                self.met("adopted for a call");
                self.jobs.get_mut(&job).expect("a job").host = Host::Adopting;
            }
            _ => {}
        }
        self.under[at].did = Some(did);
    }

    fn any_job(&mut self, fits: impl Fn(&Stored) -> bool) -> Option<JobId> {
        let fitting: Vec<JobId> = self.jobs.iter().filter(|(_, job)| fits(job)).map(|(id, _)| *id).collect();
        self.random.choice(fitting)
    }

    /// One thing happens.
    fn happen(&mut self) {
        if self.kills && self.random.u8(0..6) == 0 {
            return match self.random.u8(0..6) {
                0 => self.the_host_dies(),
                1 => self.callers_are_due(),
                2 => self.sweep(),
                _ => self.one_comes_back(),
            };
        }
        match self.random.u8(0..100) {
            0..20 => {
                let caller = (self.random.u8(0..5) > 0).then(|| InvocationId {
                    host: host(self.hosts),
                    session: SessionNumber(self.random.u64(1..=self.sessions)),
                    call: self.calls.len() as u64,
                });
                // Without a caller: a background job, or an embedding program's own consult.
                let waits = caller.is_some() || self.random.bool();
                let mode = if waits { JobMode::Sync } else { JobMode::Background };
                let key = if self.kills {
                    Some(self.random.u8(0..24))
                } else {
                    (self.random.u8(0..3) == 0).then(|| self.random.u8(0..3))
                };
                let arguments = u8::from(self.random.u8(0..8) == 0);
                self.calls.push(Call {
                    caller,
                    key,
                    arguments,
                    mode,
                    ask: None,
                    withdrawn: false,
                    answer: None,
                    comes_back: false,
                });
                self.put(self.calls.len() - 1);
            }
            20..22 => {
                // A call whose worker was lost is tried again, and asks once more.
                let open = |call: &&Call| call.caller.is_some() && !call.withdrawn && call.answer.is_some();
                let answered: Vec<Call> = self.calls.iter().filter(open).cloned().collect();
                if let Some(call) = self.random.choice(answered) {
                    self.met("tried again");
                    self.calls.push(Call { answer: None, ask: None, ..call });
                    self.put(self.calls.len() - 1);
                }
            }
            22..35 => {
                let open = (0..self.under.len()).filter(|at| self.under[*at].did.is_none());
                if let Some(at) = self.random.choice(open.collect::<Vec<_>>()) {
                    self.commit(at);
                }
            }
            35..50 => {
                let done = (0..self.under.len()).filter(|at| self.under[*at].did.is_some());
                if let Some(at) = self.random.choice(done.collect::<Vec<_>>()) {
                    let Under { ask, did, .. } = self.under[at];
                    self.on(JobsEvent::Stored { ask, found: did.flatten() });
                }
            }
            50..60 => self.one_withdraws(),
            60..63 => {
                let session = SessionNumber(self.random.u64(1..=self.sessions));
                self.sessions += 1;
                for call in self.calls.iter_mut().filter(|c| c.caller.is_some_and(|c| c.session == session)) {
                    call.withdrawn = true;
                }
                self.on(JobsEvent::SessionOver(session));
            }
            63..66 => {
                let session = SessionNumber(self.random.u64(1..=self.sessions));
                let of_session = |call: &Call| call.caller.filter(|caller| caller.session == session);
                let callers: BTreeSet<u64> =
                    self.calls.iter().filter(|c| !c.withdrawn).filter_map(of_session).map(|c| c.call).collect();
                let open: HashSet<u64> = callers.into_iter().filter(|_| self.random.bool()).collect();
                for call in &mut self.calls {
                    call.withdrawn |= of_session(call).is_some_and(|caller| !open.contains(&caller.call));
                }
                self.on(JobsEvent::Resumed { session, open });
            }
            66..69 => self.restart(),
            69..84 => self.a_runner_moves(),
            84..87 => {
                // Only a caller that waits reaches its soft deadline.
                let waits = |call: &&Call| !call.withdrawn && call.caller.is_some();
                let waited_for: BTreeSet<JobId> =
                    self.calls.iter().filter(waits).filter_map(|call| call.answer.flatten()).collect();
                let ours = |id: &JobId| !self.jobs[id].state.is_terminal() && self.jobs[id].host == Host::Ours;
                let open: Vec<JobId> = waited_for.into_iter().filter(ours).collect();
                if let Some(job) = self.random.choice(open) {
                    self.jobs.get_mut(&job).expect("a job").mode = JobMode::Background;
                    self.on(JobsEvent::HandedOver(job));
                }
            }
            87..90 => {
                if let Some(job) = self.any_job(|job| !job.state.is_terminal()) {
                    self.jobs.get_mut(&job).expect("a job").cancelled.get_or_insert(Why::Requested);
                    self.on(JobsEvent::Terminate(job));
                }
            }
            90..94 => self.sweep(),
            _ if self.let_go => {
                self.let_go = false;
                self.on(JobsEvent::Resume);
            }
            _ => {
                self.let_go = true;
                self.still = false;
                self.on(JobsEvent::LetGo);
            }
        }
    }

    /// Our host is killed, and another one is there in its place.
    fn the_host_dies(&mut self) {
        self.met("a host died");
        self.log.push("the host dies".to_owned());
        for at in 0..self.under.len() {
            if self.under[at].did.is_none() && self.random.bool() {
                self.commit(at);
            }
        }
        self.under.clear();
        self.attending.clear();
        self.core = JobsCore::default();
        (self.let_go, self.still) = (false, true);
        self.hosts += 1;
        for stored in self.jobs.values_mut().filter(|stored| matches!(stored.host, Host::Ours | Host::Adopting)) {
            // Whoever works at a job, or waits with it, outlives its host.
            stored.host = if stored.runner == Runner::None { Host::Nobody } else { Host::Dead };
        }
        for call in self.calls.iter_mut().filter(|call| !call.withdrawn) {
            let over = matches!(call.answer, Some(Some(job)) if self.jobs[&job].state.is_terminal());
            call.ask = None;
            // A bridge asks again by the key of its call. Whoever has none, or is in the process that died, has lost its call.
            call.comes_back = call.caller.is_some() && call.key.is_some() && !over && call.mode == JobMode::Sync;
            if call.comes_back {
                call.answer = None;
            }
            call.withdrawn = !call.comes_back;
        }
    }

    /// A call whose host was killed is made again at the next one.
    fn one_comes_back(&mut self) {
        let waiting: Vec<usize> =
            (0..self.calls.len()).filter(|at| self.calls[*at].comes_back && !self.calls[*at].withdrawn).collect();
        let Some(at) = self.random.choice(waiting) else { return };
        self.met("came back");
        let session = SessionNumber(self.random.u64(1..=self.sessions));
        let call = self.calls.len() as u64;
        let again = Call {
            caller: Some(InvocationId { host: host(self.hosts), session, call }),
            comes_back: false,
            ..self.calls[at].clone()
        };
        (self.calls[at].comes_back, self.calls[at].withdrawn) = (false, true);
        self.calls.push(again);
        self.put(self.calls.len() - 1);
    }

    /// The time is over in which the callers of an adopted job may come back.
    fn callers_are_due(&mut self) {
        let awaited: Vec<JobId> =
            self.core.claims().filter(|(_, claim)| claim.is_awaited()).map(|(job, _)| job).collect();
        if let Some(job) = self.random.choice(awaited) {
            self.met("callers were due");
            self.on(JobsEvent::CallersDue(job));
        }
    }

    fn one_withdraws(&mut self) {
        let open: Vec<usize> =
            (0..self.calls.len()).filter(|at| !self.calls[*at].withdrawn && self.calls[*at].caller.is_some()).collect();
        let Some(at) = self.random.choice(open) else { return };
        let caller = self.calls[at].caller.expect("a caller");
        // Every attempt of it.
        for call in self.calls.iter_mut().filter(|call| call.caller == Some(caller)) {
            call.withdrawn = true;
        }
        if self.calls.iter().any(|call| call.caller == Some(caller) && call.ask.is_some()) {
            self.met("withdrew while it asked");
        }
        self.on(JobsEvent::Withdrawn(caller));
    }

    /// The supervisor panics: what was on its way to it is lost, what the store did is not.
    fn restart(&mut self) {
        self.met("restarted");
        for at in 0..self.under.len() {
            // A verb that was on its way is carried out or not.
            if self.under[at].did.is_none() && self.random.bool() {
                self.commit(at);
            }
        }
        self.under.clear();
        self.attending.clear();
        // Who had attention withdrawn may never reach this incarnation.
        self.let_go = false;
        self.on(JobsEvent::Restarted);
        for (job, _) in self.core.claims() {
            assert!(self.attending.contains(&job), "{job} is attended to by nobody");
        }
        for at in 0..self.calls.len() {
            // Whoever waits asks again; whoever withdrew does not.
            if self.calls[at].ask.take().is_some() && !self.calls[at].withdrawn {
                self.put(at);
            }
        }
    }

    fn a_runner_moves(&mut self) {
        let Some(job) = self.any_job(|job| !job.state.is_terminal() && job.host != Host::Nobody) else { return };
        let attended = self.attending.contains(&job);
        let draw = self.random.u8(0..6);
        let stored = self.jobs.get_mut(&job).expect("a job");
        match (stored.runner, draw) {
            // Only who attends to it starts a runner.
            (Runner::None, _) if attended => stored.runner = Runner::Waiting,
            (Runner::None, _) => {}
            // It has waited for another host long enough.
            (_, 5) if stored.host == Host::Dead && stored.mode == JobMode::Sync => {
                stored.state = JobState::Cancelled;
                self.met("nobody adopted it in time");
            }
            (Runner::Waiting, 0) => stored.runner = Runner::None,
            (Runner::Waiting, _) if stored.cancelled.is_some() => stored.state = JobState::Cancelled,
            (Runner::Waiting, _) => {
                stored.state = JobState::Running;
                stored.runner = Runner::Running;
                stored.runs += 1;
            }
            // It dies: its custody, or a sweep, finds the lock free and settles the job.
            (Runner::Running, 0) => {
                stored.state = JobState::Interrupted;
                self.met("a runner died");
            }
            (Runner::Running, _) if stored.cancelled.is_some() => stored.state = JobState::Cancelled,
            (Runner::Running, 1..3) => stored.state = JobState::Succeeded,
            (Runner::Running, _) => {}
        }
        if self.jobs[&job].state.is_terminal() {
            self.jobs.get_mut(&job).expect("a job").runner = Runner::None;
            if attended {
                self.on(JobsEvent::Ended(job));
            }
        }
    }

    /// Background jobs that nobody runs are adopted; synchronous ones have lost their caller.
    fn sweep(&mut self) {
        let dead = |job: &Stored| match job.host {
            Host::Dead => !job.state.is_terminal(),
            // What was adopted, and was lost on the way to the supervisor.
            Host::Adopting => job.state == JobState::Running,
            _ => false,
        };
        let gone: Vec<(JobId, JobMode)> =
            self.jobs.iter().filter(|(_, job)| dead(job)).map(|(id, job)| (*id, job.mode)).collect();
        for (job, mode) in gone {
            let on_its_way = self.under.iter().any(|under| under.did.flatten().is_some_and(|found| found.job == job));
            let stored = self.jobs.get_mut(&job).expect("a job");
            if on_its_way && stored.host == Host::Adopting {
                continue;
            }
            // Of two hosts that adopt it one does.
            stored.host = if self.random.u8(0..4) == 0 { Host::Other } else { Host::Adopting };
            if stored.host == Host::Adopting {
                self.on(JobsEvent::Adopted { job, mode });
            }
        }
        let lost: Vec<(JobId, JobMode)> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.host == Host::Nobody && job.state == JobState::Queued)
            .map(|(id, job)| (*id, job.mode))
            .collect();
        for (job, mode) in lost {
            // One that is being accepted is too young to be swept.
            let young = self.under.iter().any(|under| under.did.flatten().is_some_and(|found| found.job == job));
            if young {
                continue;
            }
            match mode {
                JobMode::Background => {
                    self.met("adopted");
                    self.on(JobsEvent::Orphaned { job, mode });
                }
                JobMode::Sync => self.jobs.get_mut(&job).expect("a job").state = JobState::Interrupted,
            }
        }
    }

    fn invariant_one_run_each(&self) {
        for (id, job) in &self.jobs {
            assert!(job.runs <= 1, "L3: {id} ran {} times", job.runs);
        }
        for key in 0..24 {
            let of_key = self.jobs.values().filter(|job| job.key == Some(key)).count();
            assert!(of_key <= 1, "L3: {of_key} jobs of one key");
        }
    }

    fn invariant_who_is_answered_has_a_job(&self) {
        for call in &self.calls {
            if let Some(Some(job)) = call.answer {
                assert!(self.jobs.contains_key(&job), "L4: {job} is not stored");
            }
        }
    }

    fn invariant_nothing_outlives_its_caller(&self) {
        for (id, job) in &self.jobs {
            let waits = |call: &Call| call.answer == Some(Some(*id)) && !call.withdrawn && call.caller.is_some();
            let waited_for = self.calls.iter().any(waits);
            if job.state.is_terminal() {
                assert_eq!(job.runner, Runner::None, "L7: something runs for {id}, which is over");
                continue;
            }
            let claim = self.core.claim(*id);
            let Some(claim) = claim else { continue };
            let asked = claim.callers().count();
            // Somebody may still be asking, which ends with the answer.
            let by_program =
                |call: &Call| call.answer == Some(Some(*id)) && call.caller.is_none() && call.mode == JobMode::Sync;
            let stays =
                |caller: &InvocationId| self.calls.iter().any(|call| call.caller == Some(*caller) && !call.withdrawn);
            let alone = claim.mode() == JobMode::Sync
                && !claim.is_awaited()
                && !claim.callers().any(|caller| stays(&caller))
                && !self.core.is_accepting()
                && !self.calls.iter().any(by_program);
            assert!(!alone || claim.is_lost(), "L7: nobody waits for {id}, and it was not ended");
            if waited_for && claim.mode() == JobMode::Sync {
                assert!(asked > 0, "somebody waits for {id}, and the supervisor does not know");
            }
        }
    }

    fn laws(&self) {
        self.invariant_one_run_each();
        self.invariant_who_is_answered_has_a_job();
        self.invariant_nothing_outlives_its_caller();
    }
}

/// Plays a seed; what happened, in words.
fn play(seed: u64) -> (Vec<String>, BTreeMap<&'static str, u64>) {
    let mut world = World::new(seed);
    for _ in 0..EVENTS {
        let happened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            world.happen();
            world.laws();
        }));
        if let Err(broken) = happened {
            println!("seed {seed}:\n{}", world.log.join("\n"));
            std::panic::resume_unwind(broken);
        }
    }
    (world.log, world.met)
}

#[test]
fn whatever_order_things_happen_in_a_consult_keeps_the_laws() {
    let mut met: BTreeMap<&'static str, u64> = BTreeMap::new();
    let seeds = SEEDS_THAT_FAILED.iter().copied().chain(0..SEEDS);
    println!("seeds 0..{SEEDS}, {EVENTS} events each");
    for seed in seeds {
        for (what, times) in play(seed).1 {
            *met.entry(what).or_default() += times;
        }
    }
    println!("{met:?}");
    for what in [
        "joined",
        "ended for a lost caller",
        "withdrew while it asked",
        "tried again",
        "refused",
        "restarted",
        "a runner died",
        "adopted",
        "a host died",
        "came back",
        "adopted for a call",
        "adopted with its runner",
        "callers were due",
        "nobody adopted it in time",
    ] {
        // A host has to die at one moment of few for these.
        let rare = ["adopted for a call", "callers were due", "nobody adopted it in time"].contains(&what);
        let least = if rare { 10 } else { 100 };
        assert!(met.get(what).is_some_and(|times| *times > least), "{what}: {met:?}");
    }
}

#[test]
fn a_seed_comes_out_the_same_twice() {
    for seed in [0, 7, 1234] {
        assert_eq!(play(seed).0, play(seed).0);
    }
}
