//! Custody on trial: whatever is killed, and whenever, each accepted consult ends once, was run at most once, and leaves
//! nothing behind.
//!
//! One storm is over hosts with a client each, one over a daemon and its bridges. `PHONE_OPUS_CUSTODY_KILLS=1000` makes them as
//! long as they are meant to be, `PHONE_OPUS_CUSTODY_SEED` repeats one (it
//! is printed), and `PHONE_OPUS_TEST_PROGRAM` names another program than the one of this build, such as a released one.
//!
//! Laws: L3, L4, L7.

#![expect(clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use phone_opus::internals::base::ids::JobId;
use phone_opus::internals::jobs::{JobMode, JobRecord, JobState};
use phone_opus::testkit::client::{Exchange, REVISION};
use phone_opus::testkit::rig::{FAULTS, Through};
use phone_opus::testkit::{
    ForkPlace, Process, Reply, Rig, Role, Script, Sent, Signal, Step, TestClient, Waiting, tried_program,
};
use serde_json::{Value, json};

/// Kills of one world; the next ones are done in a new one, so that a law is looked at every so often and listings stay
/// whole.
const KILLS_PER_ROUND: usize = 40;

/// Consults that are open at any moment.
const OPEN: usize = 6;

/// Longest pause between two kills: about as long as one scripted consult takes, so that every phase of one is hit.
const PAUSE_MOST_MS: u64 = 200;

/// One kill in so many takes a host and all runners at once, so that nobody is left to notice.
const ALL_AT_ONCE: u8 = 10;

/// How long a storm's client waits: a job whose host died before it had a runner is taken up by a sweep, 40 s later at
/// most.
const PATIENCE: Duration = Duration::from_secs(120);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// A world around the program that is tried.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

/// Waits until every job is over, with hosts that come and go: a new one looks for lost jobs a second after its start, and
/// after that only every 30 s. A daemon stays: each would give the callers of those that are gone their time anew.
async fn every_job_is_over(rig: &mut Rig, through: Through) {
    let waiting = Waiting::until("every job is over", PATIENCE);
    let stays = match through {
        Through::Streams => Duration::from_millis(2500),
        Through::Daemon => PATIENCE,
    };
    loop {
        let mut sweeper = rig.serve().await;
        // A bridge looks for somebody who serves when it is asked for what one has.
        sweeper.call("consult_jobs", json!({})).await;
        let began = Instant::now();
        let mut open = usize::MAX;
        while open > 0 && began.elapsed() < stays {
            open = rig.jobs().await.into_iter().filter(|job| !job.state.is_terminal()).count();
            waiting.again(|| format!("{open} jobs are open; {:?}", rig.processes())).await;
        }
        sweeper.finish().await;
        if open == 0 {
            return;
        }
    }
}

/// What a consult of the storm was to be answered, by what it asks.
fn expected(prompt: &str) -> Option<String> {
    let (_, rest) = prompt.split_once("@@script ")?;
    let script: Value = serde_json::Deserializer::from_str(rest).into_iter().next()?.ok()?;
    script["answer"].as_str().map(str::to_owned)
}

/// One call that is open.
struct Open {
    host: usize,
    sent: Sent,
    answer: String,
    background: bool,
}

/// One world in which things are killed.
struct Storm {
    rig: Rig,
    through: Through,
    rng: fastrand::Rng,
    hosts: Vec<TestClient>,
    open: Vec<Open>,
    /// What the clients of killed hosts were told.
    gone: Vec<Exchange>,
    asked: u64,
    /// The last keyed request, to be asked again by whoever comes next.
    keyed: Option<(Value, String)>,
    /// Terminal jobs as they were first seen.
    ended: BTreeMap<JobId, JobRecord>,
    kills: BTreeMap<Role, usize>,
    replies: BTreeMap<String, usize>,
}

impl Storm {
    async fn begin(seed: u64, through: Through) -> Self {
        let mut rig = new_rig()
            .with_clients(through)
            .with("PHONE_OPUS_ISOLATION", "process")
            // What is logged at every level is looked through for secrets by other tests; here it would fill the disk.
            .with("PHONE_OPUS_LOG", "warn")
            .with_patience(PATIENCE);
        let hosts = vec![rig.serve().await, rig.serve().await];
        Self {
            rig,
            through,
            rng: fastrand::Rng::with_seed(seed),
            hosts,
            open: Vec::new(),
            gone: Vec::new(),
            asked: 0,
            keyed: None,
            ended: BTreeMap::new(),
            kills: BTreeMap::new(),
            replies: BTreeMap::new(),
        }
    }

    /// The steps of an agent: short or slow, tame or deaf to TERM with a child in its group and one in a session of its
    /// own.
    fn steps(&mut self) -> Vec<Step> {
        let mut steps = vec![Step::Text("at work".into())];
        if self.rng.u8(..4) == 0 {
            steps.extend([Step::IgnoreTerm, Step::Fork(ForkPlace::Group), Step::Fork(ForkPlace::Session)]);
        }
        for _ in 0..self.rng.u8(..4) {
            steps.extend([Step::ToolUse("Grep".into()), Step::DelayMs(self.rng.u64(..120))]);
        }
        steps
    }

    /// Asks something of a random host: something new, or what was asked with a key before.
    async fn ask(&mut self) {
        let host = self.rng.usize(..self.hosts.len());
        let (arguments, answer) = match self.keyed.take() {
            Some(keyed) if self.rng.bool() => keyed,
            _ => {
                self.asked += 1;
                let answer = format!("answer {}", self.asked);
                let steps = self.steps();
                let prompt = self.rig.prompt(Script { answer: Some(answer.clone()), steps, ..Script::default() });
                let mut arguments = json!({"prompt": prompt});
                if self.rng.bool() {
                    arguments["background"] = json!(true);
                }
                if self.rng.u8(..3) == 0 {
                    arguments["request_key"] = json!(format!("key {}", self.asked));
                    self.keyed = Some((arguments.clone(), answer.clone()));
                }
                (arguments, answer)
            }
        };
        let background = arguments["background"] == true;
        let sent = self.hosts[host].start("consult", arguments).await;
        self.open.push(Open { host, sent, answer, background });
    }

    /// Takes in what was answered meanwhile.
    fn take_answers(&mut self) {
        let exchanges: Vec<Exchange> = self.hosts.iter().map(TestClient::exchange).collect();
        let (answered, open) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|open| exchanges[open.host].answers.contains_key(&open.sent.0.to_string()));
        self.open = open;
        for Open { host, sent, answer, background } in answered {
            let reply = Reply(exchanges[host].answers[&sent.0.to_string()][0].clone());
            self.judge(&reply, &answer, background);
        }
    }

    fn judge(&mut self, reply: &Reply, answer: &str, background: bool) {
        let status = reply.str("status");
        if status == "succeeded" {
            assert_eq!(reply["response"], answer, "somebody else's answer: {:#}", reply.0);
        } else if !reply.is_error() {
            assert!(background && ["queued", "running"].contains(&status), "neither answer nor fault: {:#}", reply.0);
        }
        *self.replies.entry(format!("{status} {}", reply.code())).or_default() += 1;
    }

    /// Ends one process on the spot, of a random role among those there are.
    async fn kill(&mut self) {
        let waiting = Waiting::until("there is something to kill", PATIENCE);
        loop {
            let mut by_role: BTreeMap<Role, Vec<Process>> = BTreeMap::new();
            for process in self.rig.processes() {
                if !matches!(process.role, Role::Offspring | Role::Other) {
                    by_role.entry(process.role).or_default().push(process);
                }
            }
            let roles: Vec<Role> = by_role.keys().copied().collect();
            if let Some(role) = self.rng.choice(&roles)
                && let Some(victim) = self.rng.choice(&by_role[role])
            {
                let client = self.hosts.iter().position(|host| host.host_pid() == victim.pid);
                let serves = client.is_some() || victim.role == Role::Host;
                if serves && self.rng.u8(..ALL_AT_ONCE) == 0 {
                    let killed = by_role.get(&Role::Runner).into_iter().flatten().filter(|it| it.send(Signal::KILL));
                    *self.kills.entry(Role::Runner).or_default() += killed.count();
                }
                if let Some(client) = client {
                    self.kill_host(client).await;
                } else if !victim.send(Signal::KILL) {
                    continue;
                }
                *self.kills.entry(*role).or_default() += 1;
                return;
            }
            waiting.again(|| "nothing").await;
        }
    }

    /// Kills a host and puts another in its place.
    async fn kill_host(&mut self, host: usize) {
        let mut client = std::mem::replace(&mut self.hosts[host], self.rig.host());
        self.hosts[host].handshake(REVISION).await;
        client.signal(Signal::KILL);
        client.exit().await;
        client.silence().await;
        let told = client.exchange();
        let (of_it, open) = std::mem::take(&mut self.open).into_iter().partition(|open| open.host == host);
        self.open = open;
        for Open { sent, answer, background, .. } in of_it {
            match told.answers.get(&sent.0.to_string()) {
                Some(answers) => self.judge(&Reply(answers[0].clone()), &answer, background),
                None => client.give_up_on(sent),
            }
        }
        let mut told = client.exchange();
        // The kill may have come in the middle of its last line.
        assert!(told.broken.len() < 2, "{:?}", told.broken);
        told.broken.clear();
        self.gone.push(told);
    }

    /// A job that is over stays as it is; nothing is open to others at any moment.
    async fn look(&mut self) {
        for job in self.rig.jobs().await.into_iter().filter(|job| job.state.is_terminal()) {
            // That somebody has read it, or asked too late for its end, is not about its end. The key of one that ran nothing
            // goes to whoever asks again with it.
            let request_key = job.request_key.clone().filter(|_| !job.nothing_ran());
            let mut job = job;
            (job.read_at, job.request_key) = (None, request_key);
            let first = self.ended.entry(job.id).or_insert_with(|| job.clone());
            assert_eq!(first, &job, "a job that was over has changed");
        }
        let private = phone_opus::testkit::invariants::invariant_files_are_private(&self.rig.path("state"));
        private.unwrap_or_else(|broken| panic!("{broken}"));
    }

    /// Waits until everybody was answered and every job is over, and holds the world against the laws.
    async fn end(mut self) -> BTreeMap<String, usize> {
        let waiting = Waiting::until("every call of a living host is answered", PATIENCE);
        loop {
            self.take_answers();
            if self.open.is_empty() {
                break;
            }
            let sent: Vec<_> = self.open.iter().map(|open| (open.host, open.sent, open.background)).collect();
            waiting.again(|| format!("open: {sent:?}, processes: {:?}", self.rig.processes())).await;
        }
        let mut told = std::mem::take(&mut self.gone);
        for mut host in std::mem::take(&mut self.hosts) {
            host.finish().await;
            told.push(host.exchange());
        }
        let began = Instant::now();
        every_job_is_over(&mut self.rig, self.through).await;
        println!("settled {:?} after the last answer", began.elapsed());
        self.look().await;
        self.results_are_readable().await;
        let database = rusqlite::Connection::open(self.rig.state_dir().database()).expect("opened");
        let verdict: String =
            database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("the check of the database");
        assert_eq!(verdict, "ok");
        drop(database);
        let (jobs, runs) = (self.ended.len(), self.rig.runs().len());
        println!("{} asked, {jobs} jobs, {runs} runs; killed {:?}; told {:?}", self.asked, self.kills, self.replies);
        let mut ends: BTreeMap<String, usize> = BTreeMap::new();
        for job in self.ended.values() {
            let fault = job.outcome.as_ref().and_then(|outcome| outcome.fault.as_ref());
            // What is killed takes no agent away: a job run under other settings than its caller's would not find it.
            assert_ne!(fault.map(|fault| fault.code.as_str()), Some("agent_missing"), "{job:?}");
            let why = fault.map_or(String::new(), |fault| format!(" {}", fault.code.as_str()));
            *ends.entry(format!("{}{why}", job.state.as_str())).or_default() += 1;
        }
        println!("ended {ends:?}");
        let broken = self.rig.violations(&told).await;
        let broken: Vec<String> = broken.iter().map(ToString::to_string).collect();
        assert!(broken.is_empty(), "{} laws are broken:\n{}", broken.len(), broken.join("\n"));
        self.replies
    }

    async fn results_are_readable(&mut self) {
        let mut reader = self.rig.serve().await;
        for job in self.ended.values() {
            let reply = reader.call("consult_job", json!({"job_id": job.id})).await;
            assert_eq!(reply.str("status"), job.state.as_str(), "{:#}", reply.0);
            if job.state.as_str() == "succeeded" {
                let answer = expected(&job.request.prompt).expect("a script");
                assert_eq!(reply["response"], answer, "{:#}", reply.0);
            }
        }
        reader.finish().await;
    }
}

#[tokio::test]
async fn whatever_is_killed_each_accepted_consult_ends_once_runs_at_most_once_and_leaves_nothing() {
    storms(Through::Streams).await;
}

#[tokio::test]
async fn whatever_is_killed_of_a_daemon_and_its_bridges_each_consult_ends_once_runs_at_most_once_and_leaves_nothing() {
    storms(Through::Daemon).await;
}

async fn storms(through: Through) {
    if !phone_opus::testkit::processes::are_visible() {
        return println!("skipped: the processes of this machine cannot be seen");
    }
    let kills = number("PHONE_OPUS_CUSTODY_KILLS").map_or(KILLS_PER_ROUND, |kills| kills as usize);
    let first = number("PHONE_OPUS_CUSTODY_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let mut told: BTreeMap<String, usize> = BTreeMap::new();
    for (seed, round) in (first..).zip(0..kills.div_ceil(KILLS_PER_ROUND)) {
        println!("PHONE_OPUS_CUSTODY_SEED={seed}");
        let began = Instant::now();
        let mut storm = Storm::begin(seed, through).await;
        for kill in 0..KILLS_PER_ROUND.min(kills - round * KILLS_PER_ROUND) {
            while storm.open.len() < OPEN {
                storm.ask().await;
            }
            // Not a wait for anything: the moment of the next kill.
            let pause = storm.rng.u64(..PAUSE_MOST_MS);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            storm.kill().await;
            storm.take_answers();
            if kill % 10 == 0 {
                storm.look().await;
            }
        }
        for (reply, count) in storm.end().await {
            *told.entry(reply).or_default() += count;
        }
        println!("round {round} took {:?}", began.elapsed());
    }
    println!("{kills} kills; replies: {told:#?}");
    assert!(told.get("succeeded none").is_some_and(|count| *count > 0), "nobody was ever answered");
}

#[tokio::test]
async fn the_same_request_key_fifty_times_from_two_hosts_is_one_run_and_fifty_equal_answers() {
    let mut rig = new_rig();
    let mut hosts = [rig.serve().await, rig.serve().await];
    let arguments = json!({"prompt": rig.waiting("begun", "go"), "request_key": "one"});
    let mut sent = Vec::new();
    for call in 0..50 {
        sent.push(hosts[call % 2].start("consult", arguments.clone()).await);
    }
    rig.wait_for_sign("begun").await;
    for host in &mut hosts {
        host.ping().await;
    }
    rig.give_sign("go");
    let mut answers = Vec::new();
    for (call, sent) in sent.into_iter().enumerate() {
        let reply = hosts[call % 2].reply(sent).await.expect_success();
        let mut told = reply.0["result"]["structuredContent"].clone();
        // Whether it still depends on its first caller changes when somebody of another host joins.
        told.as_object_mut().expect("an object").remove("mode");
        // All but the first are told that they joined.
        told.as_object_mut().expect("an object").remove("joined");
        answers.push(told);
    }
    assert_eq!(answers[0]["response"], "done");
    let other = answers.iter().find(|answer| **answer != answers[0]);
    assert_eq!(other, None, "not what the first was told: {}", answers[0]);
    rig.expect_runs(1);
    // A caller who comes late is given the same answer, and so is one who asks for something else with the key: no.
    let late = hosts[1].call("consult", arguments).await.expect_success();
    assert_eq!((&late["job_id"], &late["response"]), (&answers[0]["job_id"], &answers[0]["response"]));
    let other = json!({"prompt": rig.answering("other"), "request_key": "one"});
    hosts[0].call("consult", other).await.expect_fault("request_key_conflict");
    rig.expect_runs(1);
    rig.stop_and_check_invariants(hosts).await;
}

/// How real clients end a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// SIGINT, SIGTERM 100 ms later, SIGKILL 400 ms after that.
    InSteps,
    /// The end of input, and SIGKILL 2 ms after it.
    AtOnce,
}

impl Ending {
    async fn of(self, host: &mut TestClient) {
        match self {
            Self::InSteps => {
                host.signal(Signal::INT);
                // Not waits for anything: the client's own clock.
                tokio::time::sleep(Duration::from_millis(100)).await;
                end(host, Signal::TERM);
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
            Self::AtOnce => {
                host.expect_end();
                host.hang_up().await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        end(host, Signal::KILL);
        host.exit().await;
        host.silence().await;
    }
}

/// Signals a host that may be gone already.
fn end(host: &mut TestClient, signal: Signal) {
    host.expect_end();
    // It is not waited for before it was signalled last, so the pid is its own even when it is gone.
    let _ = rustix::process::kill_process(host.host_pid(), signal);
}

#[tokio::test]
async fn clients_that_end_their_server_as_real_ones_do_leave_what_was_promised_and_nothing_else() {
    let mut cells = Vec::new();
    for ending in [Ending::InSteps, Ending::AtOnce] {
        for background in [false, true] {
            // After the agent's first sign of life, or so soon that nobody knows how far the call got.
            for delay_ms in [None, Some(0), Some(3), Some(12), Some(40), Some(160)] {
                cells.push((ending, background, delay_ms));
            }
        }
    }
    let mut rig = new_rig().with("PHONE_OPUS_MAX_RUNNING", cells.len().to_string()).with_patience(PATIENCE);
    let mut ended = Vec::new();
    for (cell, (ending, background, delay_ms)) in cells.iter().copied().enumerate() {
        let mut host = rig.serve().await;
        let mut steps =
            vec![Step::Text("at work".into()), Step::Fork(ForkPlace::Group), Step::Fork(ForkPlace::Session)];
        steps.push(Step::Touch(rig.sign(&format!("begun {cell}"))));
        steps.push(if background { Step::WaitForFile(rig.sign("go")) } else { Step::Hang });
        let prompt = rig.prompt(Script { answer: Some(format!("answer {cell}")), steps, ..Script::default() });
        let sent = host.start("consult", json!({"prompt": prompt, "background": background})).await;
        match delay_ms {
            None => rig.wait_for_sign(&format!("begun {cell}")).await,
            Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
        }
        ended.push(tokio::spawn(async move {
            let began = Instant::now();
            ending.of(&mut host).await;
            let told = host.exchange();
            let answer = told.answers.get(&sent.0.to_string()).map(|answers| Reply(answers[0].clone()));
            if answer.is_none() {
                host.give_up_on(sent);
            }
            (host.exchange(), answer, began)
        }));
    }
    let mut told = Vec::new();
    let mut kept = Vec::new();
    let mut last = Instant::now();
    for ended in ended {
        let (exchange, answer, began) = ended.await.expect("no panic");
        told.push(exchange);
        kept.push(answer);
        last = last.max(began);
    }
    // What nobody waits for any more ends by itself, without a host; two seconds are its caller's to come back.
    let gone = Waiting::until("only background jobs are left", PATIENCE);
    loop {
        let jobs = rig.jobs().await;
        let open: Vec<_> =
            jobs.iter().filter(|job| job.mode == JobMode::Sync && job.state == JobState::Running).collect();
        if open.is_empty() {
            break;
        }
        gone.again(|| format!("{open:?}")).await;
    }
    println!("synchronous consults were over {:?} after the last server was ended", last.elapsed());
    rig.give_sign("go");
    every_job_is_over(&mut rig, Through::Streams).await;
    let jobs = rig.jobs().await;
    let mut reader = rig.serve().await;
    let mut table: BTreeMap<String, usize> = BTreeMap::new();
    for ((cell, (ending, background, delay_ms)), answer) in cells.iter().enumerate().zip(&kept) {
        let name = format!("answer {cell}");
        let job = jobs.iter().find(|job| expected(&job.request.prompt).as_ref() == Some(&name));
        let state = job.map_or("not accepted", |job| job.state.as_str());
        *table.entry(format!("{ending:?} {} {state}", if *background { "background" } else { "sync" })).or_default() +=
            1;
        let at = format!("{ending:?}, background {background}, after {delay_ms:?} ms: {job:?}, told {answer:?}");
        if *background {
            // Whoever was told that the job is accepted finds its answer.
            if answer.as_ref().is_some_and(|answer| !answer.is_error()) || delay_ms.is_none() {
                assert_eq!(state, "succeeded", "{at}");
                let job = job.expect("a job");
                let reply = reader.call("consult_job", json!({"job_id": job.id})).await.expect_success();
                assert_eq!(reply["response"], name);
            }
            assert!(["succeeded", "not accepted"].contains(&state), "{at}");
        } else {
            // Failed is what never got a runner: nothing was started for it.
            let ways: &[&str] =
                if delay_ms.is_none() { &["cancelled"] } else { &["cancelled", "failed", "not accepted"] };
            assert!(ways.contains(&state), "{at}");
        }
    }
    println!("{table:#?}");
    reader.finish().await;
    told.push(reader.exchange());
    let broken = rig.violations(&told).await;
    let broken: Vec<String> = broken.iter().map(ToString::to_string).collect();
    assert!(broken.is_empty(), "{} laws are broken:\n{}", broken.len(), broken.join("\n"));
}

#[tokio::test]
async fn a_runner_that_fails_leaves_its_last_words_with_its_job_and_one_that_does_not_leaves_none() {
    let mut rig = new_rig().with("PHONE_OPUS_LOG", "warn").with_faults("runner.before_terminal=error");
    let mut host = rig.serve().await;
    let reply = host.consult(&rig.answering("42")).await.expect_fault("runner_lost");
    let job = reply.str("job_id").parse().expect("a job");
    let log = rig.state_dir().job_log(job);
    let words = std::fs::read_to_string(&log).expect("its last words");
    assert!(words.contains("the runner failed") && words.lines().count() < 5, "{words}");
    assert!(reply.text().contains(&log.display().to_string()), "{}", reply.text());
    // The plan was about the first one.
    let reply = host.consult(&rig.answering("42")).await.expect_success();
    let log = rig.state_dir().job_log(reply.str("job_id").parse().expect("a job"));
    let waiting = Waiting::until("its empty log is gone", PATIENCE);
    while log.exists() {
        waiting.again(|| "it is there").await;
    }
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn an_answer_that_reached_nobody_is_announced_until_somebody_reads_it() {
    for isolation in ["in_process", "process"] {
        let mut rig = new_rig().with("PHONE_OPUS_ISOLATION", isolation);
        // The first two things it writes are the greeting and the job; with the third the client is gone.
        rig.set(FAULTS, "stdio.write#3=error");
        let mut host = rig.serve().await;
        let prompt = rig.waiting("begun", "go");
        let job = host.consult_in_background(&prompt).await;
        rig.wait_for_sign("begun").await;
        host.expect_end();
        let sent = host.start("consult_job", json!({"job_id": job, "wait_s": 60})).await;
        host.give_up_on(sent);
        rig.give_sign("go");
        host.silence().await;
        host.exit().await;
        rig.unset(FAULTS);
        let mut next = rig.serve().await;
        let reply = next.consult(&rig.answering("42")).await.expect_success();
        assert_eq!(reply["unread_jobs"], json!([job]), "{isolation}: {:#}", reply.0);
        assert_eq!(next.job(&job).await.expect_success()["response"], "done");
        let reply = next.consult(&rig.answering("42")).await.expect_success();
        assert_eq!(reply["unread_jobs"], Value::Null, "{isolation}: it was read");
        rig.stop_and_check_invariants([host, next]).await;
    }
}
