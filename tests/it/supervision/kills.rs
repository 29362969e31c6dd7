//! Worker processes of the real program killed at random moments under load: nobody is answered twice or not at all, no
//! agent runs twice, and the next call is served within milliseconds.
//!
//! Each test has a small size that runs with the others, and a full one (`cargo test --release --test it kills -- --ignored
//! --nocapture`), which prints what it measured.
//!
//! Laws: L1, L3, L8.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, clippy::print_stdout, reason = "helpers of tests, and what they measured")]

use std::collections::HashSet;
use std::time::{Duration, Instant};

use fastrand::Rng;
use phone_opus::testkit::{PATIENCE, Process, Reply, Rig, Script, Sent, Step, TestClient, tried_program, until};
use serde_json::json;

/// Consults of one host under way at once: enough that every kill finds some, few enough for a busy machine.
const CONSULTS: usize = 6;

/// The pace of the load: one request of some kind each time.
const PACE: Duration = Duration::from_millis(5);

/// A world of its own around the program, whose worker is a process that may be lost any number of times.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
        .with("PHONE_OPUS_ISOLATION", "process")
        .with("PHONE_OPUS_MAX_RUNNING", "16")
        .with("PHONE_OPUS_RESTART_INTENSITY", "10000")
        // What is measured is the restart, not the pause before it.
        .with("PHONE_OPUS_RESTART_BACKOFF_MS", "0")
}

/// What was asked, and what the answer must be.
enum Asked {
    /// A synchronous consult, to be answered with this.
    Consult(String),
    /// A background consult whose job is to be answered with this.
    Background(String),
    /// That job.
    Job(String),
    /// Anything else that must succeed.
    Reader,
    Ping,
}

/// What became of a storm.
#[derive(Default)]
struct Account {
    requests: usize,
    /// Consults whose worker was lost before it had accepted them, twice.
    exhausted: usize,
    /// Calls that were served, from the kill before them.
    recoveries: Vec<Duration>,
    /// Kills of a worker that had not served since it was started.
    early: usize,
}

/// One host's client, the load it makes, and the kills it bears.
struct Storm<'a> {
    rig: &'a Rig,
    client: TestClient,
    name: &'a str,
    rng: Rng,
    open: Vec<(Sent, Asked)>,
    jobs: Vec<String>,
    numbered: usize,
    next: Instant,
    killed: HashSet<u64>,
    account: Account,
}

impl<'a> Storm<'a> {
    async fn begin(rig: &'a Rig, client: TestClient, name: &'a str, seed: u64) -> Self {
        let mut storm = Self {
            rig,
            client,
            name,
            rng: Rng::with_seed(seed),
            open: Vec::new(),
            jobs: Vec::new(),
            numbered: 0,
            next: Instant::now(),
            killed: HashSet::new(),
            account: Account::default(),
        };
        // Whoever asks for this again joins the job, which is over: the cheapest success of a call that needs a worker.
        let probe = storm.probe().await;
        storm.client.reply(probe).await.expect_success();
        storm
    }

    async fn probe(&mut self) -> Sent {
        let key = format!("probe of {}", self.name);
        let arguments = json!({"prompt": self.rig.answering(&key), "request_key": key});
        self.client.start("consult", arguments).await
    }

    /// Asks for something, if it is time.
    async fn load(&mut self) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        // A pace that was missed is not caught up with.
        self.next = now.max(self.next + PACE);
        let busy = self.open.iter().filter(|(_, asked)| !matches!(asked, Asked::Reader | Asked::Ping)).count();
        let asked = match self.rng.u32(0..10) {
            0..=4 if busy < CONSULTS => {
                self.numbered += 1;
                let answer = format!("answer {} of {}", self.numbered, self.name);
                let steps = vec![Step::DelayMs(self.rng.u64(0..60))];
                let script = Script { steps, answer: Some(answer.clone()), ..Script::default() };
                let background = self.rng.bool();
                let arguments = json!({"prompt": self.rig.prompt(script), "background": background});
                let sent = self.client.start("consult", arguments).await;
                (sent, if background { Asked::Background(answer) } else { Asked::Consult(answer) })
            }
            5..=6 => (self.client.send("ping", json!({})).await, Asked::Ping),
            7 => (self.client.start("consult_jobs", json!({"scope": "all"})).await, Asked::Reader),
            8 if !self.jobs.is_empty() => {
                let job = self.rng.choice(&self.jobs).expect("a job").clone();
                (self.client.start("consult_job", json!({"job_id": job})).await, Asked::Reader)
            }
            _ => (self.client.start("health_snapshot", json!({})).await, Asked::Reader),
        };
        self.open.push(asked);
    }

    /// Looks at what was answered, and goes on with it.
    async fn look(&mut self) {
        for (sent, asked) in std::mem::take(&mut self.open) {
            let Some(reply) = self.client.answered(sent) else {
                self.open.push((sent, asked));
                continue;
            };
            match asked {
                Asked::Ping => assert_eq!(reply.0["result"], json!({})),
                Asked::Reader => assert!(!reply.is_error(), "{:#}", reply.0),
                Asked::Consult(_) | Asked::Background(_) if reply.code() == "replay_exhausted" => {
                    self.account.exhausted += 1;
                }
                Asked::Consult(answer) | Asked::Job(answer) => {
                    assert_eq!(reply.expect_success()["response"], answer);
                }
                Asked::Background(answer) => {
                    assert!(!reply.is_error() && reply.str("mode") == "background", "{:#}", reply.0);
                    let job = reply.str("job_id").to_owned();
                    let sent = self.client.start("consult_job", json!({"job_id": job, "wait_s": 60})).await;
                    self.jobs.push(job);
                    self.open.push((sent, Asked::Job(answer)));
                }
            }
        }
    }

    /// Keeps the load up for so long.
    async fn load_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.load().await;
            self.look().await;
            tokio::time::sleep(self.next.min(until).saturating_duration_since(Instant::now())).await;
        }
    }

    /// The reply, with the load kept up.
    async fn reply_under_load(&mut self, sent: Sent) -> Reply {
        let until = Instant::now() + PATIENCE;
        loop {
            let pause = self.next.saturating_duration_since(Instant::now());
            if let Some(reply) = self.client.answered_within(sent, pause).await {
                return reply;
            }
            assert!(Instant::now() < until, "{}: no answer to {sent:?}", self.name);
            self.load().await;
            self.look().await;
        }
    }

    /// The worker that has not been killed yet, as soon as it is there: it may not even have greeted.
    async fn new_worker(&mut self) -> Process {
        let until = Instant::now() + PATIENCE;
        loop {
            let found = self.rig.worker_of(&self.client);
            if let Some(worker) = found.filter(|worker| !self.killed.contains(&worker.number())) {
                return worker;
            }
            assert!(Instant::now() < until, "{}: no new worker; {:?}", self.name, self.rig.processes());
            self.load_for(Duration::from_micros(500)).await;
        }
    }

    /// Kills the worker, and returns when that was.
    async fn kill(&mut self) -> Instant {
        let worker = self.new_worker().await;
        // At once, within its start, or later.
        let most = [0, 5, 5, 60, 60][self.rng.usize(0..5)];
        let pause = Duration::from_micros(self.rng.u64(0..=most * 1000));
        self.load_for(pause).await;
        let at = Instant::now();
        worker.kill();
        self.killed.insert(worker.number());
        at
    }

    /// Kills so many workers in turn. Four in five have served before they are killed, one in five may not have.
    async fn rage(&mut self, kills: usize) {
        for kill in 1..=kills {
            let at = self.kill().await;
            if kill < kills && self.rng.u32(0..5) == 0 {
                self.account.early += 1;
                continue;
            }
            loop {
                let probe = self.probe().await;
                let reply = self.reply_under_load(probe).await;
                if reply.code() != "replay_exhausted" {
                    reply.expect_success();
                    break;
                }
                self.account.exhausted += 1;
            }
            self.account.recoveries.push(at.elapsed());
        }
    }

    /// Waits for everything that is open.
    async fn calm(mut self) -> (TestClient, Account) {
        let until = Instant::now() + PATIENCE;
        while !self.open.is_empty() {
            assert!(Instant::now() < until, "{}: {} requests are open", self.name, self.open.len());
            self.look().await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let health = self.client.health().await;
        let kills = self.killed.len() as u64;
        assert_eq!((health.number("worker_generation"), health.number("restart_count")), (kills + 1, kills));
        assert_eq!(health.number("calls_in_flight"), 0);
        self.account.requests = usize::try_from(self.client.exchange().asked).expect("a count");
        (self.client, self.account)
    }
}

/// A process of the machine, told apart from later ones of the same pid.
trait Numbered {
    fn number(&self) -> u64;
}

impl Numbered for Process {
    fn number(&self) -> u64 {
        self.started << 24 | u64::from(self.pid.as_raw_nonzero().get().unsigned_abs())
    }
}

impl Account {
    fn report(&mut self, name: &str, kills: usize) {
        self.recoveries.sort_unstable();
        let at = |part: usize| self.recoveries[(self.recoveries.len() - 1) * part / 100];
        println!(
            "{name}: {kills} kills ({} of workers that had not served), {} requests, {} of them exhausted; \
             from the kill to the next success: p50 {:?}, p99 {:?}, max {:?}",
            self.early,
            self.requests,
            self.exhausted,
            at(50),
            at(99),
            at(100),
        );
    }
}

/// Every consult that was accepted has succeeded, with one run of the agent.
async fn expect_one_run_for_each_accepted(rig: &Rig) {
    let jobs = rig.jobs().await;
    let failed: Vec<_> = jobs.iter().filter(|job| job.state.as_str() != "succeeded").collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(rig.runs().len(), jobs.len(), "runs of the agent, and consults that were accepted");
}

async fn one_host(kills: usize, seed: u64) {
    println!("seed {seed}");
    let mut rig = new_rig();
    let client = rig.serve().await;
    let mut storm = Storm::begin(&rig, client, "the host", seed).await;
    storm.rage(kills).await;
    let asked = storm.numbered;
    let (client, mut account) = storm.calm().await;
    account.report("one host", kills);
    expect_one_run_for_each_accepted(&rig).await;
    let accepted = rig.jobs().await.len();
    // What was not accepted was told so; the first probe is a job too.
    assert!(accepted <= asked + 1 && accepted + account.exhausted > asked, "{accepted} jobs of {asked} consults");
    rig.stop_and_check_invariants([client]).await;
}

async fn two_hosts(kills: usize, seed: u64) {
    println!("seed {seed}");
    let mut rig = new_rig();
    let (first, second) = (rig.serve().await, rig.serve().await);
    let (mut one, mut other) =
        tokio::join!(Storm::begin(&rig, first, "the first", seed), Storm::begin(&rig, second, "the second", seed + 1));
    tokio::join!(one.rage(kills), other.rage(kills));
    let ((first, mut one), (second, mut other)) = tokio::join!(one.calm(), other.calm());
    one.report("the first host", kills);
    other.report("the second host", kills);
    expect_one_run_for_each_accepted(&rig).await;
    rig.stop_and_check_invariants([first, second]).await;
}

#[tokio::test]
async fn twenty_killed_workers_cost_no_answer_and_no_second_run() {
    one_host(20, 1).await;
}

#[tokio::test]
#[ignore = "full size: a minute on a release build"]
async fn two_hundred_killed_workers_cost_no_answer_and_no_second_run() {
    one_host(200, 2).await;
}

#[tokio::test]
async fn two_hosts_on_one_state_directory_lose_their_workers_without_harm_to_each_other() {
    two_hosts(8, 3).await;
}

#[tokio::test]
#[ignore = "full size: a minute on a release build"]
async fn two_hosts_lose_a_hundred_workers_each_without_harm_to_each_other() {
    two_hosts(100, 4).await;
}

#[tokio::test]
async fn how_many_losses_are_borne_is_configured_and_the_refusal_says_when_to_try_again() {
    let mut rig = new_rig().with("PHONE_OPUS_RESTART_INTENSITY", "1").with("PHONE_OPUS_RESTART_PERIOD_S", "2");
    let mut client = rig.serve().await;
    client.consult(&rig.answering("1")).await.expect_success();
    let first = rig.worker_of(&client).expect("a worker");
    first.kill();
    let health = client.wait_for_generation(2).await;
    assert_eq!(health.number("restart_count"), 1);
    rig.worker_of(&client).expect("the next").kill();
    until("the slot gives up", async || (client.health().await["ready"] == false).then_some(())).await;
    let refused = client.consult(&rig.answering("never")).await.expect_fault("worker_lost");
    assert!(refused["fault"]["hint"].as_str().is_some_and(|hint| hint.contains("again in 2 s")), "{:#}", refused.0);
    until("it is tried again", async || (!client.consult(&rig.answering("2")).await.is_error()).then_some(())).await;
    assert_eq!(client.generation().await, 3);
    rig.expect_runs(2);
    rig.stop_and_check_invariants([client]).await;
}
