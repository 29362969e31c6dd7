//! A fleet on trial: hosts, runners and the database's own processes are killed at random, and each job ends once, was run at most once,
//! and is answered where it still can be.
//!
//! One storm takes machines away for good, one kills for as long as it lasts and starts again what it killed. The seed is printed, and
//! `PHONE_OPUS_FLEET_STORM_SEED` repeats one. `PHONE_OPUS_FLEET_STORM_JOBS` and `PHONE_OPUS_FLEET_STORM_KILLS` make them as long as they
//! are meant to be (500 and 1,000); then there are ten machines. `PHONE_OPUS_TEST_PROGRAM` names another program than the one of this
//! build.
//!
//! Laws: L3, L4, L7, L19.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use phone_opus::internals::fleet::CapScope;
use phone_opus::testkit::processes::Role;
use phone_opus::testkit::{ForkPlace, Sent, Signal, Step, Waiting};
use rustix::process::{Pid, kill_process};
use serde_json::Value;

use super::world::{PATIENCE, World, seconds};
use crate::private_postgres::PrivateServer;

/// Jobs of the first storm, kills of the second: short ones, unless somebody says otherwise.
const JOBS: usize = 40;
const KILLS: usize = 30;

/// From so many jobs or kills on it is a long one, with as many machines as a fleet is tried with.
const LONG: usize = 100;
const MACHINES: usize = 10;

/// Machines of a short one.
const FEW_MACHINES: usize = 3;

/// Agents of one machine at once.
const RUNNING: usize = 2;

/// Short enough to be waited for, long enough that a busy machine's hosts renew in time.
const LEASE: Duration = Duration::from_secs(4);

/// Kills of one world; the next ones are done in a new one, so that the laws are looked at every so often.
const KILLS_PER_WORLD: usize = 50;

/// Jobs that are open at any moment of the second storm.
const OPEN: usize = 12;

/// Longest pause between two kills: about as long as one scripted consult takes, so that every phase of one is hit.
const PAUSE_MOST_MS: u64 = 300;

/// Machines whose host is down or stands still at once, at most.
const DOWN: usize = 3;

/// After so many kills more a host is started again, or goes on, at the latest; but one in so many is away for longer than the fleet
/// believes it.
const AWAY_MOST: usize = 8;
const LOST_ONE_IN: u8 = 4;

/// One kill in so many has a host stand still besides.
const STILL_ONE_IN: u8 = 12;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn size(name: &str, short: usize) -> usize {
    number(name).and_then(|number| usize::try_from(number).ok()).unwrap_or(short)
}

fn seed() -> u64 {
    let seed = number("PHONE_OPUS_FLEET_STORM_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("PHONE_OPUS_FLEET_STORM_SEED={seed}");
    seed
}

/// A consult that is to be accepted.
struct Asking {
    arguments: Value,
    /// The workspace it is about.
    workspace: usize,
    /// To whom it was said, and what is waited for.
    said: Option<(usize, Sent)>,
}

struct Storm {
    world: World,
    rng: Rng,
    asked: usize,
    /// What nobody has accepted yet, by its key.
    asking: BTreeMap<String, Asking>,
    kills: BTreeMap<&'static str, usize>,
    /// Hosts that are down or stand still, and after how many kills in all they are back.
    away: BTreeMap<usize, usize>,
    stopped: usize,
    refused: BTreeMap<String, usize>,
}

impl Storm {
    /// A world of machines that are up, with caps that are lower than what all of them could run.
    async fn begin(server: Arc<PrivateServer>, seed: u64, machines: usize) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut world = World::new(server, LEASE, machines, RUNNING, 4).await;
        for machine in &mut world.machines {
            machine.start().await;
        }
        // The first one asks what has no cap, so that it is known how the account is called.
        let workspace = world.machines[0].workspaces[0].clone();
        let first = world.asking("first", &workspace, Vec::new());
        assert!(world.machines[0].up().call("consult", first).await["job_id"].is_string());
        let all = u64::try_from(machines * RUNNING).expect("few");
        let mut caps = |least: u64| rng.u64(least..=all - 1);
        let account = CapScope::Account(world.account().await);
        let host = CapScope::Host(nix::unistd::gethostname().expect("a name").into_string().expect("text"));
        let scopes = [CapScope::Fleet, account, CapScope::Agent("claude".into()), host];
        let scopes: Vec<(CapScope, u64)> = scopes.into_iter().map(|scope| (scope, caps(all / 2))).collect();
        println!("{scopes:?}");
        for (scope, cap) in scopes {
            world.cap(scope, cap).await;
        }
        Self {
            world,
            rng,
            asked: 0,
            asking: BTreeMap::new(),
            kills: BTreeMap::new(),
            away: BTreeMap::new(),
            stopped: 0,
            refused: BTreeMap::new(),
        }
    }

    /// The steps of an agent: short or slow, tame or deaf to TERM with children that stay behind.
    fn steps(&mut self) -> Vec<Step> {
        let mut steps = vec![Step::Text("at work".into())];
        if self.rng.u8(..6) == 0 {
            steps.extend([Step::IgnoreTerm, Step::Fork(ForkPlace::Group), Step::Fork(ForkPlace::Session)]);
        }
        for _ in 0..self.rng.u8(..4) {
            steps.extend([Step::ToolUse("Grep".into()), Step::DelayMs(self.rng.u64(..150))]);
        }
        steps
    }

    /// A new consult about a random workspace.
    fn want(&mut self) {
        self.asked += 1;
        let (workspace, steps) = (self.rng.usize(..self.world.workspaces.len()), self.steps());
        let key = format!("job-{}", self.asked);
        let arguments = self.world.asking(&key, &self.world.workspaces[workspace].clone(), steps);
        self.asking.insert(key, Asking { arguments, workspace, said: None });
    }

    /// Says to somebody what is to be said, and takes in what was answered.
    async fn ask(&mut self) {
        let mut accepted = Vec::new();
        for (key, asking) in &mut self.asking {
            let Some((machine, sent)) = asking.said else { continue };
            let Some(reply) = self.world.machines[machine].client.as_ref().and_then(|client| client.answered(sent))
            else {
                continue;
            };
            assert_ne!(reply.code(), "request_key_conflict", "what is asked again is the same: {:#}", reply.0);
            // One that was accepted before, for somebody who was not told, may have ended badly since.
            if reply["job_id"].is_null() {
                *self.refused.entry(reply.code().to_owned()).or_default() += 1;
                assert_eq!(reply.code(), "store_unavailable", "{:#}", reply.0);
                asking.said = None;
            } else {
                accepted.push(key.clone());
            }
        }
        for key in accepted {
            self.asking.remove(&key);
        }
        for asking in self.asking.values_mut().filter(|asking| asking.said.is_none()) {
            let workspace = &self.world.workspaces[asking.workspace];
            let machines = self.world.machines.iter_mut().enumerate();
            let here = machines.filter(|(at, it)| it.client.is_some() && !self.away.contains_key(at));
            let may: Vec<_> = here.filter(|(_, it)| it.workspaces.contains(workspace)).collect();
            if may.is_empty() {
                continue;
            }
            let at = self.rng.usize(..may.len());
            let (machine, host) = may.into_iter().nth(at).expect("one of them");
            asking.said = Some((machine, host.up().start("consult", asking.arguments.clone()).await));
        }
    }

    /// Asks until everything was accepted.
    async fn all_is_accepted(&mut self) {
        let waiting = Waiting::until("everything is accepted", PATIENCE);
        loop {
            self.ask().await;
            if self.asking.is_empty() {
                return;
            }
            waiting.again(|| format!("{:?}", self.asking.keys())).await;
        }
    }

    /// Kills a machine's host.
    async fn kill_host(&mut self, machine: usize) {
        self.world.machines[machine].kill().await;
        for asking in self.asking.values_mut() {
            asking.said = asking.said.filter(|(of, _)| *of != machine);
        }
        *self.kills.entry("host").or_default() += 1;
    }

    /// The machines whose hosts are up and do not stand still.
    fn up(&self) -> Vec<usize> {
        let machines = self.world.machines.iter().enumerate();
        let up = machines.filter(|(at, machine)| machine.client.is_some() && !self.away.contains_key(at));
        up.map(|(at, _)| at).collect()
    }

    fn done(&self) -> usize {
        self.kills.values().sum()
    }

    /// One that is up and may go away, if any may.
    fn one_to_go(&mut self) -> Option<usize> {
        let (up, all) = (self.up(), self.world.machines.len());
        if all - up.len() >= DOWN.min(all - 1) {
            return None;
        }
        let lost = self.rng.u8(..LOST_ONE_IN) == 0;
        let away = if lost { KILLS_PER_WORLD } else { self.rng.usize(..AWAY_MOST) };
        let one = up[self.rng.usize(..up.len())];
        self.away.insert(one, self.done() + away);
        Some(one)
    }

    /// Kills something.
    async fn kill(&mut self) {
        let waiting = Waiting::until("there is something to kill", PATIENCE);
        loop {
            let drawn = self.rng.u8(..100);
            let done = match drawn {
                0..45 => self.kill_some_host().await,
                45..75 => self.kill_runner(),
                75..95 => self.end_backend(drawn).await,
                _ => self.kill_backend().await,
            };
            if done {
                return;
            }
            waiting.again(|| "nothing").await;
        }
    }

    async fn kill_some_host(&mut self) -> bool {
        let Some(victim) = self.one_to_go() else { return false };
        self.kill_host(victim).await;
        true
    }

    /// A host stands still, and what it runs goes on.
    fn stop_some_host(&mut self) {
        if let Some(one) = self.one_to_go() {
            self.world.machines[one].up().signal(Signal::STOP);
            self.stopped += 1;
        }
    }

    /// A machine that is up, with an agent where there is one.
    fn victim_at_work(&mut self) -> usize {
        let up = self.up();
        let works: Vec<usize> =
            up.iter().copied().filter(|at| !self.world.machines[*at].rig.runners().is_empty()).collect();
        let from = if works.is_empty() { up } else { works };
        from[self.rng.usize(..from.len())]
    }

    /// Has those back whose time has come.
    async fn bring_back(&mut self, all: bool) {
        let done = self.done();
        let back: Vec<usize> = self.away.iter().filter(|(_, at)| all || **at <= done).map(|(one, _)| *one).collect();
        for one in back {
            self.away.remove(&one);
            let machine = &mut self.world.machines[one];
            match &mut machine.client {
                Some(client) => client.signal(Signal::CONT),
                None => machine.start().await,
            }
        }
    }

    fn kill_runner(&mut self) -> bool {
        let runners: Vec<_> = self.world.machines.iter().flat_map(|machine| machine.rig.all(Role::Runner)).collect();
        let done = self.rng.choice(&runners).is_some_and(|runner| runner.send(Signal::KILL));
        *self.kills.entry("runner").or_default() += usize::from(done);
        done
    }

    /// The database ends a connection.
    async fn end_backend(&mut self, drawn: u8) -> bool {
        let ended = self
            .world
            .rows(&format!(
                "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity
                 WHERE application_name = 'phone-opus' AND datname = current_database() ORDER BY pid) a OFFSET {drawn} % greatest(1,
                 (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'phone-opus' AND datname = current_database())) LIMIT 1"
            ))
            .await;
        let done = ended.first().is_some_and(|row| row.get(0));
        *self.kills.entry("connection").or_default() += usize::from(done);
        done
    }

    /// A process of the database is killed: the server ends all of them, and recovers.
    async fn kill_backend(&mut self) -> bool {
        let find =
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'phone-opus' AND datname = current_database()
                    ORDER BY pid";
        let pids: Vec<i32> = self.world.rows(find).await.iter().map(|row| row.get(0)).collect();
        let victim = self.rng.choice(&pids).and_then(|pid| Pid::from_raw(*pid));
        let done = victim.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok());
        *self.kills.entry("database").or_default() += usize::from(done);
        done
    }

    /// Waits until everything is over, and holds it against the laws.
    async fn end(mut self) -> BTreeMap<String, usize> {
        self.bring_back(true).await;
        self.all_is_accepted().await;
        let began = Instant::now();
        self.world.settle().await;
        println!(
            "settled in {}; {} asked, killed {:?}, stopped {}, refused {:?}",
            seconds(began),
            self.asked,
            self.kills,
            self.stopped,
            self.refused
        );
        let late: i64 = self.world.jobs().await.iter().map(|job| job.late).sum();
        let ends = self.world.end().await;
        println!("ended {ends:?}, {late} late outcomes");
        ends
    }
}

#[tokio::test]
async fn machines_that_are_lost_for_good_cost_a_fleet_no_job_that_another_one_may_serve() {
    let Some(server) = PrivateServer::own().map(Arc::new) else { return };
    let (jobs, seed, began) = (size("PHONE_OPUS_FLEET_STORM_JOBS", JOBS), seed(), Instant::now());
    let (machines, lost) = if jobs >= LONG { (MACHINES, 3) } else { (FEW_MACHINES, 1) };
    let mut storm = Storm::begin(server, seed, machines).await;
    // Each of them when so many jobs are over.
    let mut moments: Vec<usize> = std::iter::repeat_with(|| storm.rng.usize(jobs / 10..jobs / 2)).take(lost).collect();
    moments.sort_unstable();
    let waiting = Waiting::until("everything is asked and the machines are lost", PATIENCE * 4);
    while storm.asked < jobs || !storm.asking.is_empty() || !moments.is_empty() {
        if storm.asked < jobs {
            storm.want();
        }
        storm.ask().await;
        let over = storm.world.jobs().await.iter().filter(|job| job.is_over()).count();
        if moments.first().is_some_and(|moment| *moment <= over) {
            moments.remove(0);
            let victim = storm.victim_at_work();
            storm.away.insert(victim, usize::MAX);
            storm.kill_host(victim).await;
            println!("machine {victim} is lost when {over} jobs are over, {} since the start", seconds(began));
        }
        waiting.again(|| format!("{} asked, {over} over", storm.asked)).await;
    }
    println!("everything is accepted after {}", seconds(began));
    storm.world.settle().await;
    println!("everything is over after {}", seconds(began));
    let open = storm.world.jobs().await;
    let interrupted = open.iter().filter(|job| job.state == "interrupted").count();
    assert!(interrupted <= lost * RUNNING, "more than the lost machines can have run: {open:?}");
    // Those that come back have something to tell of what they had begun, and nothing of it changes.
    let ends = storm.end().await;
    println!("{ends:?}, {}", seconds(began));
    assert_eq!(ends["succeeded"] + ends.get("interrupted").unwrap_or(&0), jobs + 1, "{ends:?}");
    assert_eq!(ends.get("interrupted").copied().unwrap_or(0), interrupted, "what is over stays");
}

#[tokio::test]
async fn whatever_is_killed_in_a_fleet_each_job_ends_once_is_run_at_most_once_and_caps_hold() {
    let (kills, mut seed) = (size("PHONE_OPUS_FLEET_STORM_KILLS", KILLS), seed());
    let machines = if kills >= LONG { MACHINES } else { FEW_MACHINES };
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    let (mut done, began) = (0, Instant::now());
    while done < kills {
        // A server that was made to recover is nobody else's.
        let Some(server) = PrivateServer::own().map(Arc::new) else { return };
        println!("PHONE_OPUS_FLEET_STORM_SEED={seed}, after {done} kills and {}", seconds(began));
        let mut storm = Storm::begin(server, seed, machines).await;
        for _ in 0..KILLS_PER_WORLD.min(kills - done) {
            let open = storm.world.jobs().await.iter().filter(|job| !job.is_over()).count();
            for _ in open + storm.asking.len()..OPEN {
                storm.want();
            }
            storm.ask().await;
            // Not a wait for anything: the moment of the next kill.
            tokio::time::sleep(Duration::from_millis(storm.rng.u64(..PAUSE_MOST_MS))).await;
            storm.kill().await;
            if storm.rng.u8(..STILL_ONE_IN) == 0 {
                storm.stop_some_host();
            }
            storm.bring_back(false).await;
            done += 1;
        }
        for (end, count) in storm.end().await {
            *ends.entry(end).or_default() += count;
        }
        seed = Rng::with_seed(seed).u64(..);
    }
    println!("{done} kills in {}: {ends:?}", seconds(began));
    assert!(ends.get("succeeded").is_some_and(|count| *count > 0), "nobody was ever answered");
}
