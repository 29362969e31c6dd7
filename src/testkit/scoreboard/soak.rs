//! Random plans against random work, each decided by one seed.
//!
//! Owns: what a seed draws, and how it is played. May not know: what is promised of single faults: several at once may
//! meet in ways no row names, so here only the laws are looked at, and that every question is answered, its host's
//! end excepted.

use std::fmt;
use std::num::NonZeroU64;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::case::{World, upgrade};
use super::rows::{action, needs_collector, place};
use super::{Recovered, Score};
use crate::config::WorkerIsolation;
use crate::failpoints::{ActionKind, FaultPoint, FaultRule, When};
use crate::testkit::client::{REVISION, Reply, Sent, TestClient};
use crate::testkit::scripted_agent::Step as Act;

/// How long a soak waits for one thing: three of the longest bounds of a row may follow each other.
pub const PATIENCE: Duration = Duration::from_secs(100);

/// How long a client that may be held up in a worker waits before it withdraws.
const TIRED: Duration = Duration::from_secs(12);

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Asks, and waits for the answer later.
    Consult(Talk),
    /// Asks in the background, and waits for the job's id.
    Background(Talk),
    /// Reads a job it knows.
    Read,
    /// Lists jobs.
    List,
    /// Asks for health.
    Health,
    /// Asks what was counted.
    Telemetry,
    /// Pings.
    Ping,
    /// Withdraws its last consult that is not answered.
    Withdraw,
    /// Cancels a job it knows.
    CancelJob,
    /// Waits for the answers to all its consults.
    Settle,
    /// Has its host replaced by another image of the same program.
    Upgrade,
}

/// How an agent answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talk {
    /// At once.
    Quick,
    /// After so many milliseconds.
    Slow(u64),
    /// After a text, a tool and more text than a pipe holds.
    Long,
}

/// What a seed draws.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draw {
    /// The seed.
    pub seed: u64,
    /// Where tools run.
    pub isolation: WorkerIsolation,
    /// The fault plan every process follows.
    pub plan: String,
    /// Clients, each with a host of its own on the same state directory.
    pub clients: usize,
    /// Who does what, one after the other.
    pub deeds: Vec<(usize, Deed)>,
    /// Whether the plan may end a host, or its connection.
    pub may_end: bool,
    /// Whether the plan may hold a call up in its worker for as long as its caller likes.
    pub may_hold: bool,
}

/// The plan, and the work in short.
impl fmt::Display for Draw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seed, plan, place) = (self.seed, &self.plan, place(self.isolation));
        write!(f, "seed {seed}: {plan} ({place}), {} clients:", self.clients)?;
        self.deeds.iter().try_for_each(|(client, deed)| write!(f, " {client}:{deed:?}"))
    }
}

/// Some seed, short enough to be typed.
#[must_use]
pub fn any_seed() -> u64 {
    u64::from(uuid::Uuid::new_v4().as_fields().0)
}

/// `SplitMix64`: the same numbers in every build.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to but not `most`.
    fn below(&mut self, most: u64) -> u64 {
        self.next() % most.max(1)
    }

    fn of<T: Copy>(&mut self, many: &[T]) -> Option<T> {
        let at = usize::try_from(self.below(many.len() as u64)).ok()?;
        many.get(at).copied()
    }
}

/// Every point that a host on standard streams meets, with every action it accepts.
fn pairs() -> Vec<(FaultPoint, ActionKind)> {
    let reached = FaultPoint::ALL.iter().copied().filter(|point| {
        point.is_reached() && !point.is_of_a_socket() && !point.is_of_a_fleet() && !needs_collector(*point)
    });
    reached.flat_map(|point| point.accepted().iter().map(move |&kind| (point, kind))).collect()
}

impl Draw {
    /// What this seed draws, in every build of this version.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let isolation = if dice.below(2) == 0 { WorkerIsolation::InProcess } else { WorkerIsolation::Process };
        let pairs = pairs();
        let count = 1 + dice.below(3);
        let rules: Vec<FaultRule> =
            (0..count).filter_map(|_| dice.of(&pairs).map(|pair| rule(pair, &mut dice))).collect();
        let clients = if dice.below(3) == 0 { 2 } else { 1 };
        let count = 4 + dice.below(8);
        let deeds = (0..count).map(|_| (usize::from(clients == 2 && dice.below(2) == 1), deed(&mut dice))).collect();
        let text: Vec<String> = rules.iter().map(ToString::to_string).collect();
        Self {
            seed,
            isolation,
            plan: text.join(";"),
            clients,
            deeds,
            may_end: may_end(&rules, isolation),
            may_hold: rules.iter().any(may_hold),
        }
    }
}

fn rule((point, kind): (FaultPoint, ActionKind), dice: &mut Dice) -> FaultRule {
    let time = if dice.below(2) == 0 { 1 } else { 1 + dice.below(6) };
    let delay = Duration::from_millis(1 + dice.below(400));
    let code = u8::try_from(1 + dice.below(9)).unwrap_or(1);
    let when = NonZeroU64::new(time).map_or(When::Always, When::Nth);
    FaultRule { point, operation: None, when, action: action(kind, delay, code) }
}

fn deed(dice: &mut Dice) -> Deed {
    let talk = match dice.below(8) {
        0 | 1 => Talk::Slow(50 + dice.below(400)),
        // Longer than a synchronous job survives its host.
        2 => Talk::Slow(3000),
        3 | 4 => Talk::Long,
        _ => Talk::Quick,
    };
    match dice.below(17) {
        0..=3 => Deed::Consult(talk),
        4..=6 => Deed::Background(talk),
        7..=8 => Deed::Read,
        9 => Deed::List,
        10 => Deed::Health,
        11 => Deed::Telemetry,
        12 => Deed::Ping,
        13 => Deed::Withdraw,
        14 => Deed::CancelJob,
        15 => Deed::Upgrade,
        _ => Deed::Settle,
    }
}

/// Whether a worker's own process meets it, where it has one.
const fn is_workers_own(point: FaultPoint) -> bool {
    matches!(
        point,
        FaultPoint::WorkerStart
            | FaultPoint::WorkerBeforeExecute
            | FaultPoint::WorkerBeforeReply
            | FaultPoint::WorkerAfterReply
    )
}

fn may_end(rules: &[FaultRule], isolation: WorkerIsolation) -> bool {
    use ActionKind as A;
    use FaultPoint as P;
    let elsewhere =
        |point: FaultPoint| point.is_runners_own() || (isolation == WorkerIsolation::Process && is_workers_own(point));
    let ends = |rule: &FaultRule| match (rule.point, rule.action.kind()) {
        (P::StdioRead | P::StdioWrite, A::Error) | (P::StdioWrite, A::Torn) => true,
        (P::RolloutAfterRestore, A::Panic | A::Error | A::Hang) => true,
        (point, kind) => kind.ends_process() && !elsewhere(point),
    };
    // A session that fails a third time loses its connection.
    let fails = |rule: &&FaultRule| {
        matches!(rule.point, P::StdioRead | P::StdioWrite | P::SessionDispatch | P::LedgerRecord)
            && matches!(rule.action.kind(), A::Panic | A::Hang)
    };
    rules.iter().any(ends) || rules.iter().filter(fails).count() > 2
}

fn may_hold(rule: &FaultRule) -> bool {
    matches!(rule.point, FaultPoint::WorkerBeforeExecute | FaultPoint::WorkerBeforeReply)
        && rule.action.kind() == ActionKind::Hang
}

/// A client, and what it waits for.
struct Player {
    client: TestClient,
    /// Consults without an answer so far, and what their agents answer.
    open: Vec<(Sent, String)>,
}

/// How questions came out.
#[derive(Default)]
struct Told {
    well: usize,
    faults: usize,
    withdrawn: usize,
    cut_off: usize,
}

struct Soak<'a> {
    draw: &'a Draw,
    world: World,
    jobs: Vec<String>,
    asked: usize,
    told: Told,
}

/// Plays a draw.
///
/// # Panics
///
/// When something that is waited for does not come.
pub(super) async fn play(program: &Path, draw: &Draw) -> Score {
    let world = World::new(program, &draw.plan, draw.seed, draw.isolation, PATIENCE);
    let mut soak = Soak { draw, world, jobs: Vec::new(), asked: 0, told: Told::default() };
    let mut players = Vec::new();
    for _ in 0..draw.clients {
        let mut client = soak.world.rig.host();
        if draw.may_end {
            client.expect_end();
        }
        let hello = client.send_greeting(REVISION).await;
        let mut player = Player { client, open: Vec::new() };
        soak.hear(&mut player, hello).await;
        players.push(player);
    }
    for (who, deed) in &draw.deeds {
        if let Some(player) = players.get_mut(*who) {
            soak.act(player, *deed).await;
        }
    }
    for player in &mut players {
        soak.settle(player).await;
    }
    let mut clients = Vec::new();
    for mut player in players {
        // Who asked for nothing that a worker does has none.
        if soak.world.examine(&mut player.client, 0).await.is_none() {
            player.client.hang_up().await;
        }
        clients.push(player.client);
    }
    // What the plan has left unstruck must not strike the last word.
    let mut next = soak.world.succeed().await;
    let mut score = Score::default();
    let prompt = soak.world.rig.answering("after");
    next.consult(&prompt).await.expect_success();
    score.recovered = Recovered::NextHost;
    score.generation = soak.world.examine(&mut next, 0).await;
    clients.push(next);
    let Told { well, faults, withdrawn, cut_off } = soak.told;
    score.answered = format!("{well} well, {faults} faults, {withdrawn} withdrawn, {cut_off} cut off");
    let torn = draw.plan.split(';').any(|rule| rule.starts_with("stdio.write") && rule.ends_with("=torn"));
    soak.world.close(clients, torn, &mut score).await;
    score
}

impl Soak<'_> {
    async fn act(&mut self, player: &mut Player, deed: Deed) {
        if player.client.has_ended() {
            return;
        }
        let known = self.jobs.last().cloned();
        match deed {
            Deed::Consult(talk) => {
                let (prompt, answer) = self.prompt(talk);
                let sent = player.client.start("consult", json!({ "prompt": prompt })).await;
                player.open.push((sent, answer));
            }
            Deed::Background(talk) => {
                let (prompt, _) = self.prompt(talk);
                let arguments = json!({"prompt": prompt, "background": true});
                if let Some(reply) = self.ask(player, "consult", arguments).await {
                    self.jobs.extend(reply["job_id"].as_str().map(str::to_owned));
                }
            }
            Deed::Read => {
                if let Some(job) = known {
                    self.ask(player, "consult_job", json!({"job_id": job, "wait_s": 1})).await;
                }
            }
            Deed::List => drop(self.ask(player, "consult_jobs", json!({})).await),
            Deed::Health => drop(self.ask(player, "health_snapshot", json!({})).await),
            Deed::Telemetry => drop(self.ask(player, "telemetry_snapshot", json!({})).await),
            Deed::Ping => {
                let sent = player.client.send("ping", json!({})).await;
                self.hear(player, sent).await;
            }
            Deed::Withdraw => {
                if let Some((sent, answer)) = player.open.pop()
                    && !self.withdraw(player, sent).await
                {
                    player.open.push((sent, answer));
                }
            }
            Deed::CancelJob => {
                if let Some(job) = known {
                    self.ask(player, "consult_cancel", json!({ "job_id": job })).await;
                }
            }
            Deed::Settle => self.settle(player).await,
            Deed::Upgrade => upgrade(Some(player.client.host_pid())),
        }
    }

    /// A prompt, and the answer its agent gives.
    fn prompt(&mut self, talk: Talk) -> (String, String) {
        self.asked += 1;
        let answer = format!("answer {}", self.asked);
        let steps = match talk {
            Talk::Quick => Vec::new(),
            Talk::Slow(ms) => vec![Act::DelayMs(ms)],
            Talk::Long => {
                vec![Act::Text("looking".to_owned()), Act::ToolUse("Grep".to_owned()), Act::HugeOutput(200_000)]
            }
        };
        let script = crate::testkit::Script { steps, answer: Some(answer.clone()), ..Default::default() };
        (self.world.rig.prompt(script), answer)
    }

    async fn ask(&mut self, player: &mut Player, tool: &str, arguments: Value) -> Option<Reply> {
        let sent = player.client.start(tool, arguments).await;
        self.hear(player, sent).await.map(Reply)
    }

    /// Waits for an answer; `None` when the connection ended without one, or the call was held up and withdrawn.
    async fn hear(&mut self, player: &mut Player, sent: Sent) -> Option<Value> {
        let began = Instant::now();
        while self.draw.may_hold && !player.client.is_answered(sent) && !player.client.has_ended() {
            if began.elapsed() > TIRED && self.withdraw(player, sent).await {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let answer = player.client.answer_or_end(sent).await;
        match &answer {
            Some(answer) if Reply(answer.clone()).is_error() => self.told.faults += 1,
            Some(_) => self.told.well += 1,
            None => {
                self.told.cut_off += 1;
                player.client.give_up_on(sent);
            }
        }
        answer
    }

    /// Withdraws a request; false when it was answered before that was heard.
    async fn withdraw(&mut self, player: &mut Player, sent: Sent) -> bool {
        player.client.notify("notifications/cancelled", json!({"requestId": sent.0})).await;
        let ping = player.client.send("ping", json!({})).await;
        if player.client.answer_or_end(ping).await.is_none() {
            player.client.give_up_on(ping);
        }
        if player.client.is_answered(sent) {
            return false;
        }
        player.client.give_up_on(sent);
        self.told.withdrawn += 1;
        true
    }

    /// Hears every consult that is open. An answer is the answer to its own question.
    async fn settle(&mut self, player: &mut Player) {
        for (sent, answer) in std::mem::take(&mut player.open) {
            let Some(reply) = self.hear(player, sent).await.map(Reply) else { continue };
            if reply.str("status") == "succeeded" && reply["response"] != answer.as_str() {
                let detail = format!("{} was the answer, and {answer:?} was to come", reply["response"]);
                self.world.note("an answer belongs to its question", detail);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failpoints::FaultPlan;

    #[test]
    fn a_seed_draws_the_same_plan_and_work_each_time_and_another_seed_others() {
        for seed in [0, 1, 42, u64::MAX] {
            assert_eq!(Draw::of(seed), Draw::of(seed));
        }
        assert_ne!(Draw::of(1).deeds, Draw::of(2).deeds);
        let draws: Vec<Draw> = (0..400).map(Draw::of).collect();
        let count = |which: fn(&Draw) -> bool| draws.iter().filter(|draw| which(draw)).count();
        assert!((150..250).contains(&count(|draw| draw.isolation == WorkerIsolation::Process)));
        assert!((80..200).contains(&count(|draw| draw.clients == 2)));
        assert!(count(|draw| draw.may_end) > 50 && count(|draw| !draw.may_end) > 50);
        for draw in &draws {
            let plan = FaultPlan::parse(&draw.plan, draw.seed).expect("a plan");
            assert!((1..=3).contains(&plan.rules().len()) && plan.unreached().count() == 0, "{}", draw.plan);
            assert!((4..=11).contains(&draw.deeds.len()) && draw.deeds.iter().all(|(who, _)| *who < draw.clients));
        }
    }

    #[test]
    fn a_thousand_seeds_draw_every_pair_and_every_deed() {
        let draws: Vec<Draw> = (0..3000).map(Draw::of).collect();
        for (point, kind) in pairs() {
            let has = |rule: &FaultRule| rule.point == point && rule.action.kind() == kind;
            let drawn = |draw: &&Draw| FaultPlan::parse(&draw.plan, 0).expect("a plan").rules().iter().any(has);
            assert!(draws.iter().any(|draw| drawn(&draw)), "{point}={kind} is never drawn");
        }
    }

    #[test]
    fn a_plan_that_may_end_a_host_is_known() {
        use WorkerIsolation::{InProcess, Process};
        for (plan, isolation, ends) in [
            ("store.commit=kill", Process, true),
            ("worker.start=exit", InProcess, true),
            ("worker.start=exit", Process, false),
            ("runner.start=kill;telemetry.write=panic", InProcess, false),
            ("stdio.write=torn", Process, true),
            ("stdio.read=panic;stdio.read#2=panic;ledger.record=panic", Process, true),
            ("stdio.read=panic;stdio.read#2=hang", Process, false),
        ] {
            let plan = FaultPlan::parse(plan, 0).expect("a plan");
            assert_eq!(may_end(plan.rules(), isolation), ends, "{plan}");
        }
    }
}
