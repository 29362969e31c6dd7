//! Admission: who may run now, and who waits for how many.
//!
//! Owns: the order of the queue. May not know: the store, the locks, the clock, who started the jobs. Everybody who looks
//! computes the same plan from the same rows; the permits' locks and the store's `start` enforce what a stale plan got wrong.
//!
//! Whose turn it is among those that wait is told by [`turns`](super::turns).
//!
//! Invariants: (1) at most `limit` runs at once; (2) never two runs of one agent session at once, the earlier accepted
//! first; (3) the first job of a workspace is overtaken at most once by each other workspace, unless its session is busy;
//! (4) a queued job whose runner is gone delays nobody; a running one gives its permit back but keeps its session busy
//! until the sweep has ended what is left of it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::PathBuf;

use super::turns::{Capacity, InLine, TurnOrder};
use crate::base::ids::{HostId, JobId, UnixMillis, WaiterId};
use crate::jobs::{CancelReason, JobMode, JobState};

pub use super::turns::SessionKey;

/// A job that is queued or running, as far as the order of the queue depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueRow {
    pub job: JobId,
    /// Its place in the order of acceptance.
    pub sequence: u64,
    /// The directory it belongs to.
    pub workspace: PathBuf,
    /// The agent session it resumes, or has started and told us of.
    pub session: Option<SessionKey>,
    /// `queued` or `running`.
    pub state: JobState,
    /// Whether somebody waits.
    pub mode: JobMode,
    /// When it was accepted.
    pub accepted_at: UnixMillis,
    /// The turn it was accepted in.
    pub turn: u64,
    /// The turn in which its workspace last started a run, 0 when it never did.
    pub workspace_served: u64,
    /// Why it is to be cancelled, if it is.
    pub cancel_requested: Option<CancelReason>,
    /// Who waits for its turn with it, while it is queued.
    pub waiter: Option<WaiterId>,
    /// The digest of the environment it is to run with.
    pub environment: Option<String>,
    /// The host that has custody of it; `None` where no other one may follow it in that.
    pub host: Option<HostId>,
}

/// A row together with the evidence of its runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contender {
    pub row: QueueRow,
    /// Whether somebody holds the job's lock.
    pub alive: bool,
}

/// Where a queued job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// It may start now.
    Start,
    /// It has to wait.
    Wait {
        /// Its place among those that wait, from 1.
        place: usize,
        /// Runs that hold a permit now.
        ahead_running: usize,
    },
}

/// The order of the queue at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    positions: HashMap<JobId, Position>,
    order: Vec<JobId>,
}

impl Plan {
    /// Where a job stands; `None` when it is not queued or its runner is gone.
    #[must_use]
    pub fn position(&self, job: JobId) -> Option<Position> {
        self.positions.get(&job).copied()
    }

    /// The queued jobs whose runners live: first those that may start, then those that wait, each in order.
    #[must_use]
    pub fn order(&self) -> &[JobId] {
        &self.order
    }

    /// The jobs that may start now.
    pub fn startable(&self) -> impl Iterator<Item = JobId> {
        self.order.iter().copied().filter(|&job| self.position(job) == Some(Position::Start))
    }
}

/// Decides who may start and who waits where, with `limit` runs at once. A limit of 0 starts nobody.
#[must_use]
pub fn plan(contenders: &[Contender], limit: usize) -> Plan {
    let running = |contender: &&Contender| contender.row.state == JobState::Running;
    let ahead_running = contenders.iter().filter(running).filter(|contender| contender.alive).count();
    let queued = |contender: &&Contender| contender.alive && contender.row.state == JobState::Queued;
    let mut line = TurnOrder::new(contenders.iter().filter(queued).map(|contender| &contender.row));
    let mut plan = Plan::default();

    let busy = contenders.iter().filter(running).filter_map(|contender| contender.row.session.as_ref()).collect();
    let mut permits = Permits { free: limit.saturating_sub(ahead_running) };
    for row in line.take_starts(busy, &mut permits) {
        plan.put(row.job, Position::Start);
    }

    let mut place = 0;
    while let Some(row) = line.take_next(|_| true) {
        place += 1;
        plan.put(row.job, Position::Wait { place, ahead_running });
    }
    plan
}

impl Plan {
    fn put(&mut self, job: JobId, position: Position) {
        self.positions.insert(job, position);
        self.order.push(job);
    }
}

/// Run permits nobody holds: any job fits into any of them.
struct Permits {
    free: usize,
}

impl Capacity<QueueRow> for Permits {
    fn fits(&self, _: &QueueRow) -> bool {
        self.free > 0
    }

    fn take(&mut self, _: &QueueRow) {
        self.free -= 1;
    }
}

impl InLine for QueueRow {
    fn sequence(&self) -> u64 {
        self.sequence
    }

    fn workspace(&self) -> &OsStr {
        self.workspace.as_os_str()
    }

    fn session(&self) -> Option<&SessionKey> {
        self.session.as_ref()
    }

    fn turn(&self) -> u64 {
        self.turn
    }

    fn workspace_served(&self) -> u64 {
        self.workspace_served
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::*;

    /// A store in miniature: accepts, starts and ends jobs, and draws turns as the real one does.
    #[derive(Default)]
    struct Model {
        contenders: Vec<Contender>,
        served: HashMap<PathBuf, u64>,
        turn: u64,
        sequence: u64,
    }

    impl Model {
        fn accept(&mut self, workspace: &str, session: Option<&str>) -> JobId {
            self.turn += 1;
            self.sequence += 1;
            let job = JobId::random();
            let row = QueueRow {
                job,
                sequence: self.sequence,
                workspace: workspace.into(),
                session: session.map(|session| SessionKey { agent: "a".into(), session: session.into() }),
                state: JobState::Queued,
                mode: JobMode::Sync,
                accepted_at: UnixMillis(0),
                turn: self.turn,
                workspace_served: self.served.get(Path::new(workspace)).copied().unwrap_or(0),
                cancel_requested: None,
                waiter: None,
                environment: None,
                host: None,
            };
            self.contenders.push(Contender { row, alive: true });
            job
        }

        fn start(&mut self, job: JobId) {
            self.turn += 1;
            let turn = self.turn;
            let contender = self.find(job);
            contender.row.state = JobState::Running;
            let workspace = contender.row.workspace.clone();
            for contender in self.contenders.iter_mut().filter(|contender| contender.row.workspace == workspace) {
                contender.row.workspace_served = turn;
            }
            self.served.insert(workspace, turn);
        }

        fn end(&mut self, job: JobId) {
            self.contenders.retain(|contender| contender.row.job != job);
        }

        fn find(&mut self, job: JobId) -> &mut Contender {
            self.contenders.iter_mut().find(|contender| contender.row.job == job).expect("a live job")
        }

        /// Runs everything with `limit` permits, one end at a time, and tells the order of the starts.
        fn drain(&mut self, limit: usize) -> Vec<JobId> {
            let mut started = Vec::new();
            loop {
                let next: Vec<JobId> = plan(&self.contenders, limit).startable().collect();
                for &job in &next {
                    self.start(job);
                }
                started.extend(next);
                let Some(first) = self.contenders.iter().find(|c| c.row.state == JobState::Running) else {
                    return started;
                };
                let first = first.row.job;
                self.end(first);
            }
        }
    }

    fn wait(place: usize, ahead_running: usize) -> Option<Position> {
        Some(Position::Wait { place, ahead_running })
    }

    #[test]
    fn an_empty_queue_has_no_positions() {
        let plan = plan(&[], 3);
        assert_eq!(plan.order(), []);
        assert_eq!(plan.position(JobId::random()), None);
    }

    #[test]
    fn one_workspace_is_served_in_the_order_of_acceptance() {
        let mut model = Model::default();
        let jobs: Vec<_> = (0..4).map(|_| model.accept("/w", None)).collect();
        let at_first = plan(&model.contenders, 2);
        assert_eq!(at_first.order(), jobs);
        assert_eq!(at_first.position(jobs[1]), Some(Position::Start));
        assert_eq!(at_first.position(jobs[2]), wait(1, 0));
        model.start(jobs[0]);
        let later = plan(&model.contenders, 2);
        assert_eq!(later.position(jobs[0]), None, "a running job has no position");
        assert_eq!(later.position(jobs[1]), Some(Position::Start));
        assert_eq!(later.position(jobs[3]), wait(2, 1));
        assert_eq!(plan(&model.contenders, 0).startable().count(), 0);
    }

    #[test]
    fn workspaces_take_turns_however_long_the_backlog_of_one_is() {
        let mut model = Model::default();
        let busy: Vec<_> = (0..4).map(|_| model.accept("/busy", None)).collect();
        let quiet = model.accept("/quiet", None);
        assert_eq!(model.drain(1), [busy[0], quiet, busy[1], busy[2], busy[3]]);
    }

    #[test]
    fn a_new_workspace_does_not_overtake_one_that_has_waited() {
        let mut model = Model::default();
        let first = model.accept("/a", None);
        model.start(first);
        let second = model.accept("/a", None);
        let newcomer = model.accept("/b", None);
        model.end(first);
        assert_eq!(model.drain(1), [second, newcomer]);
    }

    #[test]
    fn runs_of_one_session_are_serial_and_do_not_hold_up_the_rest() {
        let mut model = Model::default();
        let first = model.accept("/a", Some("s"));
        let second = model.accept("/b", Some("s"));
        let behind = model.accept("/b", None);
        let at_first = plan(&model.contenders, 3);
        assert_eq!(at_first.position(first), Some(Position::Start));
        assert_eq!(at_first.position(second), wait(1, 0));
        assert_eq!(at_first.position(behind), Some(Position::Start));
        model.start(first);
        assert_eq!(plan(&model.contenders, 3).position(second), wait(1, 1));
        model.end(first);
        assert_eq!(plan(&model.contenders, 3).position(second), Some(Position::Start));
    }

    #[test]
    fn the_earlier_consult_of_a_session_goes_first_even_when_its_workspace_is_due_later() {
        let mut model = Model::default();
        let running = model.accept("/a", None);
        let earlier = model.accept("/a", Some("s"));
        let later = model.accept("/b", Some("s"));
        model.start(running);
        assert_eq!(plan(&model.contenders, 2).position(later), wait(1, 1));
        assert_eq!(plan(&model.contenders, 2).position(earlier), Some(Position::Start));
    }

    #[test]
    fn sessions_of_different_agents_are_different_sessions() {
        let mut model = Model::default();
        let one = model.accept("/a", Some("s"));
        let other = model.accept("/a", Some("s"));
        model.find(other).row.session.as_mut().expect("set").agent = "b".into();
        assert_eq!(plan(&model.contenders, 2).startable().collect::<Vec<_>>(), [one, other]);
    }

    #[test]
    fn dead_runners_give_way() {
        let mut model = Model::default();
        let dead = model.accept("/w", Some("s"));
        let alive = model.accept("/w", Some("s"));
        model.find(dead).alive = false;
        assert_eq!(plan(&model.contenders, 1).position(dead), None);
        assert_eq!(plan(&model.contenders, 1).position(alive), Some(Position::Start));
        model.start(dead);
        let other = model.accept("/w", None);
        let plan = plan(&model.contenders, 1);
        assert_eq!(plan.position(alive), wait(1, 0), "what the dead one left may still be at work in the session");
        assert_eq!(plan.position(other), Some(Position::Start), "its permit is free");
    }

    fn invariant_never_more_than_the_limit_run(model: &Model, limit: usize) {
        let running = model.contenders.iter().filter(|c| c.alive && c.row.state == JobState::Running).count();
        let startable = plan(&model.contenders, limit).startable().count();
        assert!(running + startable <= limit.max(running), "{running} run, {startable} may start, limit {limit}");
    }

    fn invariant_never_two_runs_of_one_session(model: &Model, limit: usize) {
        let plan = plan(&model.contenders, limit);
        let mut seen = HashSet::new();
        for contender in &model.contenders {
            let runs =
                contender.row.state == JobState::Running || plan.position(contender.row.job) == Some(Position::Start);
            if let (true, Some(session)) = (runs, &contender.row.session) {
                assert!(seen.insert(session), "two runs of {session:?}");
            }
        }
    }

    fn invariant_every_live_queued_job_has_one_place(model: &Model, limit: usize) {
        let plan = plan(&model.contenders, limit);
        let live = model.contenders.iter().filter(|c| c.alive && c.row.state == JobState::Queued);
        assert_eq!(live.count(), plan.order().len());
        let places: Vec<usize> = plan
            .order()
            .iter()
            .filter_map(|&job| match plan.position(job) {
                Some(Position::Wait { place, .. }) => Some(place),
                _ => None,
            })
            .collect();
        assert_eq!(places, (1..=places.len()).collect::<Vec<_>>());
    }

    fn invariant_no_permit_is_left_over_while_somebody_could_run(model: &Model, limit: usize) {
        let plan = plan(&model.contenders, limit);
        let running = model.contenders.iter().filter(|c| c.alive && c.row.state == JobState::Running).count();
        let sessionless = model
            .contenders
            .iter()
            .filter(|c| c.alive && c.row.state == JobState::Queued && c.row.session.is_none())
            .count();
        assert!(plan.startable().count() >= sessionless.min(limit.saturating_sub(running)));
    }

    fn invariant_the_first_of_a_workspace_is_overtaken_once_by_each_other(
        overtaken: &HashMap<JobId, HashMap<PathBuf, usize>>,
    ) {
        for (head, by) in overtaken {
            for (workspace, times) in by {
                assert!(*times <= 1, "{head} was overtaken {times} times by {workspace:?}");
            }
        }
    }

    #[test]
    fn random_queues_keep_the_laws() {
        const SEED: u64 = 0x5eed_0011;
        println!("seed {SEED:#x}");
        let mut random = fastrand::Rng::with_seed(SEED);
        for round in 0..60 {
            let runners_die = round % 2 == 0;
            let limit = random.usize(1..4);
            let mut model = Model::default();
            // How often others started since a job became the first of its workspace.
            let mut overtaken: HashMap<JobId, HashMap<PathBuf, usize>> = HashMap::new();
            for _ in 0..120 {
                match random.u8(0..10) {
                    0..4 => {
                        let workspace = format!("/w{}", random.u8(0..4));
                        let session = (random.u8(0..3) == 0).then(|| format!("s{}", random.u8(0..3)));
                        model.accept(&workspace, session.as_deref());
                    }
                    4..7 => {
                        let heads = heads(&model);
                        let next = plan(&model.contenders, limit).startable().next();
                        if let Some(job) = next {
                            model.start(job);
                            let workspace = model.find(job).row.workspace.clone();
                            for head in heads.into_iter().filter(|&head| head != job) {
                                *overtaken.entry(head).or_default().entry(workspace.clone()).or_default() += 1;
                            }
                        }
                    }
                    7..9 => {
                        let running = model.contenders.iter().find(|c| c.row.state == JobState::Running);
                        if let Some(job) = running.map(|c| c.row.job) {
                            model.end(job);
                        }
                    }
                    _ if runners_die => {
                        if let Some(index) = random.choice(0..model.contenders.len()) {
                            model.contenders[index].alive = random.bool();
                        }
                    }
                    _ => {}
                }
                invariant_never_more_than_the_limit_run(&model, limit);
                invariant_never_two_runs_of_one_session(&model, limit);
                invariant_every_live_queued_job_has_one_place(&model, limit);
                invariant_no_permit_is_left_over_while_somebody_could_run(&model, limit);
            }
            if !runners_die {
                invariant_the_first_of_a_workspace_is_overtaken_once_by_each_other(&overtaken);
            }
        }
    }

    /// The first live queued job of each workspace, where no session holds it up.
    fn heads(model: &Model) -> Vec<JobId> {
        let mut heads: HashMap<&Path, &Contender> = HashMap::new();
        for contender in model.contenders.iter().filter(|c| c.alive && c.row.state == JobState::Queued) {
            let head = heads.entry(&contender.row.workspace).or_insert(contender);
            if contender.row.sequence < head.row.sequence {
                *head = contender;
            }
        }
        heads.values().filter(|c| c.row.session.is_none()).map(|c| c.row.job).collect()
    }
}
