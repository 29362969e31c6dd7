//! Adoption against its laws, without a process: hosts that are killed and started, each with the rules of its jobs'
//! supervisor, runners with their clocks, callers that come back or do not, and a clock of the world's own.
//!
//! A seed makes a schedule. After each event the laws are looked at: L3 (a consult is one run, and one living host at most
//! looks after it), L4 (a terminal state stays), L7 (a synchronous job is ended for want of a caller only when nobody who
//! waits could be known, and within its time when nobody does). At the end three hosts are killed in a row and no fourth
//! comes: then nothing is left running. The same seed comes out the same.
//!
//! Laws: L3, L4, L7.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests; a failed schedule is printed"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fastrand::Rng;
use phone_opus::internals::actors::jobs::core::{AskId, Custodian, Found, JobsCore, JobsEffect, JobsEvent};
use phone_opus::internals::base::ids::{HostId, InvocationId, JobId, SessionNumber};
use phone_opus::internals::jobs::store::Glance;
use phone_opus::internals::jobs::{CancelReason, JobMode, JobState};
use phone_opus::internals::runner::{Clocks, HostSeen, RunnerCore};

/// Seeds that once failed; they run first.
const SEEDS_THAT_FAILED: &[u64] = &[];
/// Seeds, and events of each.
const SEEDS: u64 = 300;
const EVENTS: usize = 120;

/// How long a job waits to be adopted, and one that was for its callers.
const GRACE: Duration = Duration::from_secs(30);
/// How often a host looks for jobs of others, and a runner at its job.
const SWEEP: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(250);

/// A host that lives.
struct Living {
    id: HostId,
    rules: JobsCore,
    sweep_at: Instant,
    /// When the callers of its adopted jobs are due.
    due: Vec<(Instant, JobId)>,
    asks: u64,
}

/// A job as the store has it, with its runner.
struct Stored {
    key: u64,
    row: HostId,
    mode: JobMode,
    state: JobState,
    cancelled: Option<CancelReason>,
    /// Its clocks; there is no runner once the job is over.
    runner: RunnerCore,
    /// The host at the other end of its pipe, until that is closed.
    pipe: Option<HostId>,
    runs: u32,
    /// Since when no living host has it.
    alone: Option<Instant>,
    /// Since when nobody waits for it whom its host could know, and it may be ended for that.
    unclaimed: Option<Instant>,
}

/// Somebody who waits for a job, through a bridge that outlives hosts.
struct Waiting {
    key: u64,
    /// Where its call is open.
    at: Option<(HostId, InvocationId, JobId)>,
    /// It does not come back: it withdrew, was answered, or its own process is gone.
    over: bool,
}

struct World {
    random: Rng,
    start: Instant,
    now: Instant,
    hosts: Vec<Living>,
    jobs: BTreeMap<JobId, Stored>,
    callers: Vec<Waiting>,
    born: u32,
    log: Vec<String>,
    met: BTreeMap<&'static str, u64>,
}

fn host_id(number: u32) -> HostId {
    format!("00000000-0000-4000-8000-{number:012}").parse().expect("an id")
}

fn job_id(number: usize) -> JobId {
    format!("00000000-0000-4000-9000-{number:012}").parse().expect("an id")
}

impl World {
    fn new(seed: u64) -> Self {
        let start = Instant::now();
        let mut world = Self {
            random: Rng::with_seed(seed),
            start,
            now: start,
            hosts: Vec::new(),
            jobs: BTreeMap::new(),
            callers: Vec::new(),
            born: 0,
            log: Vec::new(),
            met: BTreeMap::new(),
        };
        world.a_host_starts();
        world
    }

    fn met(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    fn say(&mut self, what: impl FnOnce() -> String) {
        let at = (self.now - self.start).as_millis();
        self.log.push(format!("{at} ms: {}", what()));
    }

    fn lives(&self, host: HostId) -> bool {
        self.hosts.iter().any(|living| living.id == host)
    }

    fn a_host_starts(&mut self) {
        self.born += 1;
        let id = host_id(self.born);
        // It looks for jobs of others at once.
        self.hosts.push(Living { id, rules: JobsCore::default(), sweep_at: self.now, due: Vec::new(), asks: 0 });
        self.say(|| format!("host {id} starts"));
    }

    fn a_host_dies(&mut self) {
        if self.hosts.is_empty() {
            return;
        }
        let at = self.random.usize(..self.hosts.len());
        let id = self.hosts.remove(at).id;
        self.met("a host died");
        self.say(|| format!("host {id} dies"));
        let now = self.now;
        for stored in self.jobs.values_mut().filter(|stored| stored.pipe == Some(id)) {
            stored.pipe = None;
            stored.runner.host_went(now);
        }
        for caller in self.callers.iter_mut().filter(|caller| caller.at.is_some_and(|(host, ..)| host == id)) {
            caller.at = None;
        }
        self.note_who_is_alone();
    }

    fn on(&mut self, host: usize, event: JobsEvent, found: Option<Found>) {
        self.say(|| format!("    {event:?}"));
        let mut effects = Vec::new();
        self.hosts[host].rules.step(event, &mut effects);
        for effect in effects {
            self.say(|| format!("        {effect:?}"));
            self.perform(host, effect, found);
        }
    }

    fn perform(&mut self, host: usize, effect: JobsEffect, found: Option<Found>) {
        let id = self.hosts[host].id;
        match effect {
            JobsEffect::Accept(ask) => self.on(host, JobsEvent::Stored { ask, found }, found),
            JobsEffect::Attach(job) => {
                let stored = self.jobs.get_mut(&job).expect("a job");
                assert_eq!(stored.runs, 0, "L3: {job} is run twice");
                (stored.runs, stored.state, stored.pipe) = (1, JobState::Running, Some(id));
            }
            JobsEffect::AttachByStore(job) => {
                assert_eq!(self.jobs[&job].row, id, "L3: {job} is followed by a host its row does not name");
            }
            JobsEffect::AwaitCallers(job) => self.hosts[host].due.push((self.now + GRACE, job)),
            JobsEffect::HandOver(job) => {
                let stored = self.jobs.get_mut(&job).expect("a job");
                if !stored.state.is_terminal() {
                    stored.mode = JobMode::Background;
                    self.met("joined at another host");
                }
            }
            JobsEffect::EndForLostCaller(job) => {
                let waits = |caller: &Waiting| matches!(caller.at, Some((_, _, of)) if of == job) && !caller.over;
                let waited_for = self.callers.iter().any(waits);
                let stored = self.jobs.get_mut(&job).expect("a job");
                // The store lets go on what somebody has joined at another host.
                if stored.mode == JobMode::Sync && !stored.state.is_terminal() {
                    assert!(!waited_for, "L7: {job} is ended although somebody waits for it");
                    stored.cancelled.get_or_insert(CancelReason::CallerLost);
                    self.met("ended for want of callers");
                }
            }
            JobsEffect::Answer(_) | JobsEffect::Attend(_) | JobsEffect::Release(_) | JobsEffect::Terminate(_) => {}
            effect => panic!("{effect:?} is not to be expected"),
        }
    }

    /// A call comes to a host, for the first time or again: the store accepts it, or it joins by its key.
    fn call(&mut self, caller: usize) {
        if self.hosts.is_empty() {
            return;
        }
        let host = self.random.usize(..self.hosts.len());
        let (id, key) = (self.hosts[host].id, self.callers[caller].key);
        let known = self.jobs.iter().find(|(_, stored)| stored.key == key).map(|(job, _)| *job);
        let job = known.unwrap_or_else(|| job_id(self.jobs.len()));
        let custodian = if let Some(job) = known {
            self.met("came back");
            let stored = &self.jobs[&job];
            if stored.state.is_terminal() {
                self.callers[caller].over = true;
                return;
            }
            let gone = !self.lives(stored.row);
            if gone && self.adopt(job, host) { Custodian::Adopted } else { Custodian::Somebody }
        } else {
            let background = self.random.u8(0..6) == 0;
            let mode = if background { JobMode::Background } else { JobMode::Sync };
            let clocks = Clocks { timeout: Duration::from_secs(36_000), stall: Duration::from_secs(36_000) };
            let stored = Stored {
                key,
                row: id,
                mode,
                state: JobState::Queued,
                cancelled: None,
                runner: RunnerCore::new(clocks, mode).adoptable(Some(id), GRACE),
                pipe: None,
                runs: 0,
                alone: None,
                unclaimed: None,
            };
            self.jobs.insert(job, stored);
            Custodian::Inserted
        };
        let stored = &self.jobs[&job];
        let (mode, state) = (stored.mode, stored.state);
        let living = &mut self.hosts[host];
        living.asks += 1;
        let ask = AskId(living.asks);
        let invocation = InvocationId { host: id, session: SessionNumber(1), call: caller as u64 };
        if mode == JobMode::Sync || custodian != Custodian::Inserted {
            self.callers[caller].at = Some((id, invocation, job));
        } else {
            self.callers[caller].over = true;
        }
        let who = self.callers[caller].at.map(|_| invocation);
        let found = Found { job, mode, state, custodian };
        self.on(host, JobsEvent::Asked { ask, caller: who, mode }, Some(found));
    }

    /// One UPDATE … WHERE: of two hosts that adopt a job one does.
    fn adopt(&mut self, job: JobId, host: usize) -> bool {
        let id = self.hosts[host].id;
        let stored = self.jobs.get_mut(&job).expect("a job");
        assert_ne!(stored.row, id, "it is ours");
        stored.row = id;
        self.met("adopted");
        true
    }

    fn sweep(&mut self, host: usize) {
        self.hosts[host].sweep_at = self.now + SWEEP;
        let gone: Vec<(JobId, JobMode)> = self
            .jobs
            .iter()
            .filter(|(_, stored)| !stored.state.is_terminal() && !self.lives(stored.row))
            .map(|(job, stored)| (*job, stored.mode))
            .collect();
        for (job, mode) in gone {
            self.adopt(job, host);
            self.on(host, JobsEvent::Adopted { job, mode }, None);
        }
    }

    /// Time passes: hosts sweep, callers are due, runners look at their jobs.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += LOOK;
            for host in 0..self.hosts.len() {
                if self.hosts[host].sweep_at <= self.now {
                    self.sweep(host);
                }
                let now = self.now;
                let (due, later) =
                    std::mem::take(&mut self.hosts[host].due).into_iter().partition(|(at, _)| *at <= now);
                self.hosts[host].due = later;
                let due: Vec<(Instant, JobId)> = due;
                for (_, job) in due {
                    self.on(host, JobsEvent::CallersDue(job), None);
                }
            }
            let jobs: Vec<JobId> = self.jobs.keys().copied().collect();
            jobs.into_iter().for_each(|job| self.look(job));
            self.note_who_is_alone();
            self.laws();
        }
    }

    /// A runner looks at its job.
    fn look(&mut self, job: JobId) {
        let now = self.now;
        let alive: BTreeSet<HostId> = self.hosts.iter().map(|living| living.id).collect();
        let stored = self.jobs.get_mut(&job).expect("a job");
        if stored.state != JobState::Running {
            return;
        }
        stored.runner.glanced(&Glance {
            state: stored.state,
            mode: stored.mode,
            cancel_requested: stored.cancelled,
            last_event: 0,
            host: Some(stored.row),
        });
        if let Some(host) = stored.runner.host_to_look_for() {
            let seen = if alive.contains(&host) { HostSeen::Alive } else { HostSeen::Gone };
            stored.runner.looked_for_host(host, seen, now);
        }
        if stored.runner.tick(now).is_some() {
            let by_itself = stored.cancelled.is_none();
            let alone = stored.alone;
            if by_itself {
                let long = alone.is_some_and(|since| now.saturating_duration_since(since) + LOOK >= GRACE);
                assert!(long, "L7: {job} ended for want of a host it had");
                self.met("ended for want of a host");
            }
            self.over(job, JobState::Cancelled);
        }
    }

    fn over(&mut self, job: JobId, state: JobState) {
        let stored = self.jobs.get_mut(&job).expect("a job");
        assert!(!stored.state.is_terminal(), "L4: {job} ends twice");
        (stored.state, stored.pipe) = (state, None);
        self.say(|| format!("{job} is {state:?}"));
        for caller in self.callers.iter_mut().filter(|caller| matches!(caller.at, Some((_, _, of)) if of == job)) {
            (caller.at, caller.over) = (None, true);
        }
        for host in 0..self.hosts.len() {
            if self.hosts[host].rules.claim(job).is_some() {
                self.on(host, JobsEvent::Ended(job), None);
            }
        }
    }

    fn note_who_is_alone(&mut self) {
        let alive: BTreeSet<HostId> = self.hosts.iter().map(|living| living.id).collect();
        let waited_for: BTreeSet<JobId> = self.callers.iter().filter_map(|caller| caller.at).map(|at| at.2).collect();
        let now = self.now;
        for (job, stored) in self.jobs.iter_mut().filter(|(_, stored)| !stored.state.is_terminal()) {
            let has_host = alive.contains(&stored.row);
            stored.alone = if has_host { None } else { stored.alone.or(Some(now)) };
            let claimed = waited_for.contains(job) || !has_host;
            stored.unclaimed = if claimed { None } else { stored.unclaimed.or(Some(now)) };
        }
    }

    fn happen(&mut self) {
        match self.random.u8(0..100) {
            0..20 => {
                self.callers.push(Waiting { key: self.callers.len() as u64, at: None, over: false });
                self.call(self.callers.len() - 1);
            }
            20..26 => {
                // Somebody else with the same key.
                if let Some(key) = self.random.choice(self.jobs.values().map(|job| job.key).collect::<Vec<_>>()) {
                    self.callers.push(Waiting { key, at: None, over: false });
                    self.call(self.callers.len() - 1);
                }
            }
            26..44 => {
                let lost = |caller: &Waiting| caller.at.is_none() && !caller.over;
                let lost: Vec<usize> = (0..self.callers.len()).filter(|at| lost(&self.callers[*at])).collect();
                if let Some(caller) = self.random.choice(lost) {
                    self.call(caller);
                }
            }
            44..52 => {
                let open: Vec<usize> = (0..self.callers.len()).filter(|at| !self.callers[*at].over).collect();
                let Some(caller) = self.random.choice(open) else { return };
                self.callers[caller].over = true;
                // One that is gone while it has no host says nothing.
                if let Some((host, invocation, _)) = self.callers[caller].at.take() {
                    let host = self.hosts.iter().position(|living| living.id == host).expect("its host lives");
                    self.on(host, JobsEvent::Withdrawn(invocation), None);
                }
            }
            52..60 => {
                let running: Vec<JobId> =
                    self.jobs.iter().filter(|(_, job)| job.state == JobState::Running).map(|(id, _)| *id).collect();
                if let Some(job) = self.random.choice(running) {
                    self.over(job, JobState::Succeeded);
                }
            }
            60..68 => self.a_host_dies(),
            68..74 if self.hosts.len() < 3 => self.a_host_starts(),
            _ => {
                let time = [LOOK, Duration::from_secs(1), Duration::from_secs(9), Duration::from_secs(33)];
                let time = self.random.choice(time).expect("one of them");
                self.pass(time);
            }
        }
        self.note_who_is_alone();
        self.laws();
    }

    /// Three hosts are killed in a row, each after it could adopt, and no fourth comes.
    fn the_last_three(&mut self) {
        while !self.hosts.is_empty() {
            self.a_host_dies();
        }
        for _ in 0..3 {
            let time = self.random.u64(0..25);
            self.pass(Duration::from_secs(time));
            self.a_host_starts();
            self.pass(LOOK);
            let all = self.jobs.values().filter(|stored| !stored.state.is_terminal());
            let adopted = all.clone().filter(|stored| self.lives(stored.row)).count();
            assert_eq!(adopted, all.count(), "a host that starts adopts what it finds");
            let time = self.random.u64(0..25);
            self.pass(Duration::from_secs(time));
            self.a_host_dies();
        }
        self.note_who_is_alone();
        self.pass(GRACE + LOOK);
        let left: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|(_, stored)| stored.mode == JobMode::Sync && !stored.state.is_terminal())
            .map(|(job, _)| *job)
            .collect();
        assert!(left.is_empty(), "L7: {left:?} run on, and no host is there");
    }

    fn laws(&self) {
        for (job, stored) in &self.jobs {
            assert!(stored.runs <= 1, "L3: {job} ran {} times", stored.runs);
            let claimed: Vec<HostId> =
                self.hosts.iter().filter(|living| living.rules.claim(*job).is_some()).map(|living| living.id).collect();
            assert!(claimed.len() <= 1, "L3: {job} is looked after by {claimed:?}");
            if stored.state.is_terminal() {
                continue;
            }
            if let Some(host) = claimed.first() {
                assert_eq!(*host, stored.row, "L3: {job} is looked after by a host its row does not name");
            }
            if stored.mode == JobMode::Background {
                continue;
            }
            let since = |at: Option<Instant>| at.map(|at| self.now.saturating_duration_since(at)).unwrap_or_default();
            let late = 4 * LOOK;
            assert!(since(stored.alone) <= GRACE + late, "L7: {job} runs on without a host");
            // As long as its host gives callers to come back, once after it was adopted.
            assert!(since(stored.unclaimed) <= GRACE + late, "L7: {job} runs on without a caller");
        }
    }
}

/// Plays a seed; what happened, in words.
fn play(seed: u64) -> (Vec<String>, BTreeMap<&'static str, u64>) {
    let mut world = World::new(seed);
    let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        (0..EVENTS).for_each(|_| world.happen());
        world.the_last_three();
    }));
    if let Err(broken) = played {
        println!("seed {seed}:\n{}", world.log.join("\n"));
        std::panic::resume_unwind(broken);
    }
    (world.log, world.met)
}

#[test]
fn whatever_hosts_are_killed_a_consult_is_adopted_once_and_nothing_is_left_when_none_comes() {
    let mut met: BTreeMap<&'static str, u64> = BTreeMap::new();
    println!("seeds 0..{SEEDS}, {EVENTS} events each");
    for seed in SEEDS_THAT_FAILED.iter().copied().chain(0..SEEDS) {
        for (what, times) in play(seed).1 {
            *met.entry(what).or_default() += times;
        }
    }
    println!("{met:?}");
    for what in [
        "a host died",
        "adopted",
        "came back",
        "ended for want of a host",
        "ended for want of callers",
        "joined at another host",
    ] {
        assert!(met.get(what).is_some_and(|times| *times > 100), "{what}: {met:?}");
    }
}

#[test]
fn a_seed_of_adoptions_comes_out_the_same_twice() {
    for seed in [0, 7, 1234] {
        assert_eq!(play(seed).0, play(seed).0);
    }
}
