//! How a row is tried: one consult under way while the plan strikes, one after it, and then every law.
//!
//! Owns: the story of a case. May not know: what is expected of which point (that is in the row), how scores are shown.
//!
//! ```text
//! armed host ──greeting, consult──▶ struck ──▶ answered, or the connection ended
//!                                                 │                 └──▶ jobs end, by their runners or by the next host
//!                                                 └──▶ ping, health, consult on the same connection
//! ```

#![expect(clippy::panic, reason = "what a case waits for in vain fails it")]

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::Child;

use super::rows::{Control, ExpectedAnswer, FaultRow, OVER, needs_collector, needs_upgrade};
use super::{PATIENCE, Recovered, Score};
use crate::base::ids::UnixMillis;
use crate::config::WorkerIsolation;
use crate::failpoints::{ActionKind, Ends, FAULT_COUNTERS, FaultCounters, FaultPlan, FaultPoint, Faults};
use crate::jobs::{JobRecord, JobState};
use crate::testkit::client::{Exchange, REVISION, Reply, Sent, TestClient};
use crate::testkit::invariants::Violation;
use crate::testkit::processes::Role;
use crate::testkit::rig::{FAULT_SEED, FAULTS, Rig, Through};
use crate::testkit::scripted_agent::{Script, Step};
use crate::testkit::wait::Waiting;

/// How long a job may be without a runner before another host may look after it, and a little more: its host may be
/// starting one.
const ORPHANED: u64 = 10_500;

/// Between two looks at what takes seconds.
const LOOK: Duration = Duration::from_millis(50);

/// The law of a row: what stands in it.
pub(super) const EXPECTED: &str = "the row: what is promised of this fault";

/// The law of a strike.
pub(super) const STRUCK: &str = "the row: the fault point is met";

/// The world of a case: its rig, the plan in it, and what was found broken so far.
pub(super) struct World {
    pub(super) rig: Rig,
    faults: Faults,
    patience: Duration,
    /// The daemon that follows the plan, where one does.
    daemon: Option<Child>,
    pub(super) broken: Vec<Violation>,
}

impl World {
    /// A world in which every process that is started from here on follows this plan.
    ///
    /// # Panics
    ///
    /// When the plan cannot be armed.
    pub(super) fn new(program: &Path, plan: &str, seed: u64, isolation: WorkerIsolation, patience: Duration) -> Self {
        let isolation = match isolation {
            WorkerIsolation::InProcess => "in_process",
            WorkerIsolation::Process => "process",
        };
        let rig = Rig::new(program)
            .with_patience(patience)
            .with_faults(plan)
            .with_fault_seed(seed)
            .with("PHONE_OPUS_ISOLATION", isolation);
        let counts = rig.path("faults.counts");
        let rig = rig.with(FAULT_COUNTERS, counts.display().to_string());
        let plan = FaultPlan::parse(plan, seed).unwrap_or_else(|error| panic!("{error}"));
        // Only to read the counts: nothing in this process meets a point of it.
        let faults =
            Faults::arm(plan, Ends::Process, FaultCounters::File(counts)).unwrap_or_else(|error| panic!("{error}"));
        Self { rig, faults, patience, daemon: None, broken: Vec::new() }
    }

    /// With clients that come to their host so.
    fn through(mut self, through: Through) -> Self {
        self.rig = self.rig.with_clients(through);
        self
    }

    /// How often the plan has struck, in all processes.
    pub(super) fn fired(&self) -> u64 {
        self.faults.fired().iter().map(|fired| fired.count).sum()
    }

    /// From here on nothing that is started follows the plan.
    pub(super) fn disarm(&mut self) {
        for name in [FAULTS, FAULT_SEED, FAULT_COUNTERS] {
            self.rig.unset(name);
        }
    }

    pub(super) fn note(&mut self, law: &'static str, detail: impl Into<String>) {
        self.broken.push(Violation { law, detail: detail.into() });
    }

    fn expect(&mut self, holds: bool, detail: impl FnOnce() -> String) {
        if !holds {
            self.note(EXPECTED, detail());
        }
    }

    /// A host that serves says what it found broken about itself, and counts, again if telemetry was struck. Returns its
    /// worker's generation; `None` when the connection has ended. A host that has not yet needed a worker is asked for what
    /// only a worker does, until its generation is `least`: a daemon may have been followed by one that was asked nothing.
    ///
    /// # Panics
    ///
    /// When it does not answer.
    pub(super) async fn examine(&mut self, host: &mut TestClient, least: u64) -> Option<u64> {
        let ping = host.send("ping", json!({})).await;
        answered(host, ping).await?;
        let waiting = Waiting::until("the worker's generation is reached", self.patience);
        let health = loop {
            let health = host.start("health_snapshot", json!({"detail": "full"})).await;
            let health = Reply(answered(host, health).await?);
            if health["worker_generation"].as_u64() >= Some(least) {
                break health;
            }
            let read = host.start("consult_jobs", json!({})).await;
            answered(host, read).await?;
            waiting.again(|| "an earlier one").await;
        };
        host.keep(&health);
        for law in health["broken_laws"].as_array().into_iter().flatten() {
            self.note("a session's own laws (L1, L6, L9)", law.to_string());
        }
        let waiting = Waiting::until("telemetry answers", self.patience);
        loop {
            let totals = host.start("telemetry_snapshot", json!({})).await;
            let totals = Reply(answered(host, totals).await?);
            host.keep(&totals);
            if !totals.is_error() {
                break;
            }
            waiting.again(|| "an error").await;
        }
        health["worker_generation"].as_u64()
    }

    /// Waits until every job is over after its host has ended: by its runner, or by the next host. Returns the next host.
    ///
    /// # Panics
    ///
    /// When a job does not end.
    pub(super) async fn succeed(&mut self) -> TestClient {
        self.disarm();
        let mut next: Option<TestClient> = None;
        let waiting = Waiting::until("every job is over", self.patience);
        loop {
            let open: Vec<JobRecord> =
                self.rig.jobs().await.into_iter().filter(|job| !job.state.is_terminal()).collect();
            let abandoned = self.rig.all(Role::Runner).is_empty();
            // A host looks once when it starts, and then every half minute.
            let ripe = |job: &JobRecord| {
                job.state == JobState::Running || UnixMillis::now().since(job.accepted_at) >= ORPHANED
            };
            if next.is_none() && (open.is_empty() || (abandoned && open.iter().all(ripe))) {
                next = Some(self.rig.serve().await);
            }
            match next {
                Some(next) if open.is_empty() => return next,
                _ => {}
            }
            waiting.again(|| format!("{open:?} and {:?}", self.rig.processes())).await;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The end: every client hangs up, every process ends, every law is looked at.
    ///
    /// # Panics
    ///
    /// When a host does not end.
    pub(super) async fn close(mut self, clients: Vec<TestClient>, torn: bool, score: &mut Score) {
        let mut exchanges: Vec<Exchange> = Vec::new();
        for mut client in clients {
            client.finish().await;
            let mut exchange = client.exchange();
            if torn && exchange.broken.len() == 1 {
                // Half a line is what was asked for.
                exchange.broken.clear();
            }
            exchanges.push(exchange);
        }
        let violations = self.rig.violations(&exchanges).await;
        self.broken.extend(violations);
        score.left = self.rig.processes().len();
        score.runs = self.rig.runs().len();
        score.fired = self.fired();
        score.broken = self.broken;
    }
}

/// After how long an upgrade that has not begun is asked for again: twice a trial's own deadline.
const ASKED_AGAIN: Duration = Duration::from_secs(10);

/// Where a collector would be, and nobody listens.
const NOBODYS: &str = "http://127.0.0.1:1";

/// The least generation a row's worker has at its end.
const LEAST: u64 = 1;

/// Plays a row.
///
/// # Panics
///
/// When something that is waited for does not come, or answers other than it must.
pub(super) async fn play(program: &Path, seed: u64, row: &FaultRow) -> Score {
    let mut world = World::new(program, &row.plan(), seed, row.isolation, PATIENCE).through(row.through);
    let mut score = Score::default();
    if needs_collector(row.rule.point) {
        world.rig.set("PHONE_OPUS_OTLP", NOBODYS);
    }
    if row.through == Through::Daemon {
        // The plan is this daemon's alone: neither the bridge's nor that of whoever comes after it.
        world.daemon = Some(world.rig.daemon(&[]).await);
        world.disarm();
    }
    let mut host = world.rig.host();
    if row.expect.answer == ExpectedAnswer::Ends {
        host.expect_end();
    }
    let told = consult(&mut world, &mut host, row).await;
    score.answered = told.clone();
    let runs = world.rig.runs().len();
    let mut clients = Vec::new();
    if host.has_ended() {
        host.hang_up().await;
        let mut next = world.succeed().await;
        score.recovered = served(&world, &mut next, Recovered::NextHost).await;
        score.generation = world.examine(&mut next, LEAST).await;
        clients.extend([host, next]);
    } else {
        score.recovered = served(&world, &mut host, Recovered::Here).await;
        score.generation = world.examine(&mut host, LEAST).await;
        clients.push(host);
    }
    control(&mut world, row);
    let expect = row.expect;
    let answer = match expect.answer {
        ExpectedAnswer::Ends => told == ENDED || told.starts_with(SUCCESS),
        ExpectedAnswer::Success => told == SUCCESS,
        ExpectedAnswer::Fault(code) => told == code.as_str(),
        ExpectedAnswer::Withdrawn => told == WITHDRAWN,
    };
    world.expect(answer, || format!("the caller was told `{told}`, and `{}` is promised", expect.answer));
    // A run that was under way when its host ended is over by now. The last one is that of the consult afterwards.
    let runs = runs.max(world.rig.runs().len().saturating_sub(1));
    world.expect((expect.runs.0..=expect.runs.1).contains(&runs), || {
        format!("{runs} runs of the agent, and {} to {} are promised", expect.runs.0, expect.runs.1)
    });
    world.expect(score.generation == Some(expect.generation), || {
        format!("the worker's generation is {:?}, and {} is promised", score.generation, expect.generation)
    });
    if row.rule.operation.as_deref() == Some(OVER) && row.rule.action.kind().ends_process() {
        clients.iter_mut().for_each(TestClient::expect_end);
    }
    let torn = row.rule.point == FaultPoint::StdioWrite && row.rule.action.kind() == ActionKind::Torn;
    let faults = world.faults.clone();
    world.close(clients, torn, &mut score).await;
    score.runs = runs;
    if score.fired != 1 {
        let unmet = faults.never_met();
        let detail = match unmet.is_empty() {
            true => format!("it struck {} times", score.fired),
            false => format!("nobody met {}", unmet.join(", ")),
        };
        score.broken.push(Violation { law: STRUCK, detail });
    }
    score
}

pub(super) const SUCCESS: &str = "success";
pub(super) const ENDED: &str = "ended";
pub(super) const WITHDRAWN: &str = "withdrawn";

/// The struck consult: what its caller was told.
async fn consult(world: &mut World, host: &mut TestClient, row: &FaultRow) -> String {
    let hello = host.send_greeting(REVISION).await;
    if host.answer_or_end(hello).await.is_none() {
        host.give_up_on(hello);
        return ENDED.to_owned();
    }
    let upgraded = needs_upgrade(row.rule.point);
    let prompt = match upgraded {
        false => world.rig.answering("struck"),
        true => {
            let steps = vec![Step::Touch(world.rig.sign("begun")), Step::WaitForFile(world.rig.sign("go"))];
            world.rig.prompt(Script { steps, answer: Some("struck".to_owned()), ..Script::default() })
        }
    };
    let call = host.start("consult", json!({ "prompt": prompt })).await;
    if upgraded {
        world.rig.wait_for_sign("begun").await;
        let to = match &world.daemon {
            Some(daemon) => daemon.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)),
            None => Some(host.host_pid()),
        };
        upgrade(to);
        let waiting = Waiting::until("the plan has struck", PATIENCE);
        let mut asked = Instant::now();
        while world.fired() == 0 {
            // A next image whose trial took too long on a busy machine is not adopted, and tried when it is asked for again.
            if asked.elapsed() > ASKED_AGAIN {
                asked = Instant::now();
                upgrade(to);
            }
            waiting.again(|| "it has not").await;
        }
        world.rig.give_sign("go");
    }
    if row.expect.answer == ExpectedAnswer::Withdrawn {
        return withdraw(world, host, call).await;
    }
    let Some(answer) = host.answer_or_end(call).await else {
        host.give_up_on(call);
        return ENDED.to_owned();
    };
    let told = word(&Reply(answer), "struck");
    if row.expect.answer == ExpectedAnswer::Ends {
        host.silence().await;
        return format!("{told}, then {ENDED}");
    }
    told
}

/// Asks a host to be replaced by itself. One that ends just then needs not hear it.
pub(super) fn upgrade(host: Option<Pid>) {
    let _ = host.map(|pid| kill_process(pid, Signal::USR2));
}

/// Withdraws a consult that is held up for as long as its caller likes.
pub(super) async fn withdraw(world: &mut World, host: &mut TestClient, call: Sent) -> String {
    let waiting = Waiting::until("the plan has struck", PATIENCE);
    while world.fired() == 0 && !host.is_answered(call) {
        waiting.again(|| "it has not").await;
    }
    host.ping().await;
    if let Some(reply) = host.is_answered(call).then_some(host.answer(call)) {
        return word(&Reply(reply.await), "struck");
    }
    host.cancel(call).await;
    WITHDRAWN.to_owned()
}

/// The answer to a request; `None`, and nobody waits for it any more, when the connection ended without one.
async fn answered(host: &mut TestClient, sent: Sent) -> Option<Value> {
    let answer = host.answer_or_end(sent).await;
    if answer.is_none() {
        host.give_up_on(sent);
    }
    answer
}

/// A reply in a word: success, or its fault.
fn word(reply: &Reply, answer: &str) -> String {
    if reply.is_error() {
        return reply.code().to_owned();
    }
    if reply.str("status") == "succeeded" && reply["response"] == answer {
        return SUCCESS.to_owned();
    }
    format!("{}: {}", reply.str("status"), reply["response"])
}

/// What the caller of any tool was told: success, or its fault.
pub(super) fn told(reply: &Reply) -> String {
    if reply.is_error() { reply.code().to_owned() } else { SUCCESS.to_owned() }
}

/// Whether a consult is served as if nothing had happened.
///
/// # Panics
///
/// When it is not.
async fn served(world: &World, host: &mut TestClient, by: Recovered) -> Recovered {
    let reply = host.consult(&world.rig.answering("after")).await.expect_success();
    assert_eq!(reply["response"], Value::from("after"), "the answer to a consult afterwards");
    by
}

/// Breaks a law on purpose, in rows that must fail.
fn control(world: &mut World, row: &FaultRow) {
    match row.control {
        None | Some(Control::WrongAnswer) => {}
        Some(Control::OpenFile) => {
            let open = world.rig.state_dir().root().join("open");
            std::fs::write(&open, "").unwrap_or_else(|error| panic!("{}: {error}", open.display()));
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            std::fs::set_permissions(&open, mode).unwrap_or_else(|error| panic!("{}: {error}", open.display()));
        }
    }
}
