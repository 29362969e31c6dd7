//! A world of several machines: each a rig with its own state directory, all over one database and a few workspaces.
//!
//! Owns: the database and what is noted of every change of a job's state there, the workspaces, what agents note of their runs, the laws
//! that are looked at when everything is over. May not know: who is struck, and when.
//!
//! How often an agent was started is counted by the agents: each run appends to its job's own file. How many ran at once is counted by
//! locks that the kernel takes back from whoever ends. That a job ended once is read from the edges a trigger has noted in the
//! database, whoever wrote them.
//!
//! Laws: L3, L4, L7, L16, L19.

#![expect(clippy::expect_used, clippy::print_stderr, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use phone_opus::internals::fleet::CapScope;
use phone_opus::internals::fleet::postgres::PgFleet;
use phone_opus::testkit::client::REVISION;
use phone_opus::testkit::{Rig, Script, Signal, Step, TestClient, Waiting, tried_program};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio_postgres::{Client, NoTls, Row};

use super::hosting::{Hosting, PATTERN};
use super::processes::url;
use crate::private_postgres::PrivateServer;

/// Longest anything takes here beside the leases that are waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);

/// How long a host stays that has something to tell.
const COME_AND_GO: Duration = Duration::from_millis(2000);

/// How long an agent may run, in seconds; a job of a host that is gone for good counts for as long.
const TIMEOUT_S: u64 = 120;

/// Notes each change of a job's state that is committed.
const EDGES: &str = "
CREATE TABLE public.edge (nr bigserial PRIMARY KEY, job uuid NOT NULL, was text NOT NULL, became text NOT NULL);
CREATE FUNCTION public.note_edge() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.edge (job, was, became) VALUES (NEW.id, OLD.state, NEW.state);
    RETURN NULL;
END $$;
CREATE TRIGGER note_edge AFTER UPDATE ON phone_opus.job
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION public.note_edge();
";

/// The edges a job may take.
const DRAWN: [(&str, &str); 11] = [
    ("queued", "claimed"),
    ("queued", "failed"),
    ("queued", "cancelled"),
    ("claimed", "queued"),
    ("claimed", "running"),
    ("claimed", "failed"),
    ("claimed", "cancelled"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("running", "interrupted"),
];

/// One machine.
pub(super) struct Machine {
    pub(super) rig: Rig,
    /// What it has of the world's workspaces.
    pub(super) workspaces: Vec<PathBuf>,
    /// The client of its host, where one is up.
    pub(super) client: Option<TestClient>,
}

impl Machine {
    pub(super) fn up(&mut self) -> &mut TestClient {
        self.client.as_mut().expect("its host is up")
    }

    /// Starts its host.
    pub(super) async fn start(&mut self) {
        let mut client = self.rig.host();
        client.handshake(REVISION).await;
        self.client = Some(client);
    }

    /// Starts its host, which may be gone before it is greeted.
    pub(super) fn start_unheard(&mut self) {
        self.client = Some(self.rig.host());
    }

    /// Takes its workspaces away, so that it serves a job by a clone alone.
    pub(super) fn clones_only(&mut self, hosting: &Hosting) {
        self.workspaces.clear();
        self.rig.unset("PHONE_OPUS_WORKSPACES");
        self.rig.set("PATH", hosting.path());
        self.rig.set("PHONE_OPUS_FLEET_CLONE", PATTERN);
    }

    /// Kills its host, and nothing else of it.
    pub(super) async fn kill(&mut self) {
        self.up().signal(Signal::KILL);
        self.is_gone().await;
    }

    /// Waits until its host has ended, as a fault plan has it.
    pub(super) async fn is_gone(&mut self) {
        let mut client = self.client.take().expect("its host was up");
        client.expect_end();
        client.exit().await;
        client.silence().await;
    }

    /// The claims its store still has to tell the fleet of; or why that cannot be read, where it is being made.
    fn untold(&self) -> Vec<String> {
        let read = || {
            let read_only = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
            let database = rusqlite::Connection::open_with_flags(self.rig.state_dir().database(), read_only)?;
            let mut statement = database.prepare("SELECT job FROM fleet_runs")?;
            let jobs = statement.query_map([], |row| row.get::<_, rusqlite::types::Value>(0))?;
            jobs.map(|job| job.map(|job| format!("{job:?}"))).collect::<Result<_, rusqlite::Error>>()
        };
        read().unwrap_or_else(|error| vec![error.to_string()])
    }
}

/// A job of the fleet, as the database has it.
#[derive(Debug)]
pub(super) struct JobSeen {
    pub(super) id: String,
    pub(super) key: String,
    pub(super) state: String,
    /// How many outcomes are kept of it that say nothing of its end: those that came too late, and that of an interrupted run.
    pub(super) late: i64,
}

impl JobSeen {
    pub(super) fn is_over(&self) -> bool {
        !["queued", "claimed", "running"].contains(&self.state.as_str())
    }
}

/// The machines, and what they share.
pub(super) struct World {
    pub(super) server: Arc<PrivateServer>,
    settings: String,
    /// A connection of the test's own.
    link: Mutex<Option<Client>>,
    scratch: tempfile::TempDir,
    pub(super) lease: Duration,
    pub(super) machines: Vec<Machine>,
    pub(super) workspaces: Vec<PathBuf>,
    /// The places of each scope that has a cap.
    places: Vec<(PathBuf, u64)>,
}

impl World {
    /// So many machines that may run so many agents each; each has all but one of so many workspaces, where there are several.
    pub(super) async fn new(
        server: Arc<PrivateServer>,
        lease: Duration,
        machines: usize,
        running: usize,
        workspaces: usize,
    ) -> Self {
        let settings = server.database().await;
        drop(PgFleet::open(&settings).await.expect("the tables are made"));
        let scratch = tempfile::Builder::new().prefix("phone-opus-fleet-").tempdir().expect("a directory");
        for dir in ["runs", "places"] {
            std::fs::create_dir(scratch.path().join(dir)).expect("a directory");
        }
        let workspaces: Vec<PathBuf> = (0..workspaces).map(|nr| scratch.path().join(format!("w{nr}"))).collect();
        for workspace in &workspaces {
            std::fs::create_dir(workspace).expect("a directory");
        }
        let mut world = Self {
            server,
            settings,
            link: Mutex::default(),
            scratch,
            lease,
            machines: Vec::new(),
            workspaces,
            places: Vec::new(),
        };
        world.sql(&format!("UPDATE phone_opus.meta SET lease_ms = {}; {EDGES}", lease.as_millis())).await;
        for nr in 0..machines {
            world.add(nr, running);
        }
        world
    }

    fn add(&mut self, nr: usize, running: usize) {
        let missing = if self.workspaces.len() > 1 { nr % self.workspaces.len() } else { usize::MAX };
        let has = self.workspaces.iter().enumerate().filter(|(at, _)| *at != missing).map(|(_, dir)| dir.clone());
        let workspaces: Vec<PathBuf> = has.collect();
        let listed = std::env::join_paths(&workspaces).expect("plain paths").into_string().expect("plain paths");
        let rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
            .with("PHONE_OPUS_FLEET", url(&self.settings))
            .with("PHONE_OPUS_MAX_RUNNING", running.to_string())
            .with("PHONE_OPUS_WORKSPACES", listed)
            // Whoever pays by a key can be told apart by other machines, so that its account has a cap.
            .with("PHONE_OPUS_BILLING", "api_key")
            .with("PHONE_OPUS_LOG", "warn")
            .with_patience(PATIENCE);
        self.machines.push(Machine { rig, workspaces, client: None });
    }

    /// Has the database run statements, once it answers.
    pub(super) async fn sql(&self, statements: &str) {
        let database = self.settings.rsplit('=').next().expect("a name");
        self.server.sql(database, statements).await;
    }

    /// What the database answers, once it does.
    pub(super) async fn rows(&self, statement: &str) -> Vec<Row> {
        let waiting = Waiting::until("the database answers", PATIENCE);
        loop {
            let why = match self.answer(statement).await {
                Ok(rows) => return rows,
                Err(why) => why,
            };
            // What is wrong with the statement will not get better.
            assert!(why.code().is_none_or(|code| !code.code().starts_with("42")), "{statement}: {why:?}");
            waiting.again(|| format!("{why:?}")).await;
        }
    }

    async fn answer(&self, statement: &str) -> Result<Vec<Row>, tokio_postgres::Error> {
        let mut link = self.link.lock().await;
        let client = match link.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => {
                let (client, connection) = tokio_postgres::connect(&self.settings, NoTls).await?;
                // It ends with the client.
                tokio::spawn(connection);
                client
            }
        };
        let rows = client.query(statement, &[]).await?;
        *link = Some(client);
        Ok(rows)
    }

    /// Waits until so many hosts have said that they live.
    pub(super) async fn is_in(&self, hosts: i64) {
        let waiting = Waiting::until(format!("{hosts} hosts are in the fleet"), PATIENCE);
        loop {
            let rows = self.rows("SELECT count(*) FROM phone_opus.host WHERE lease_until > clock_timestamp()").await;
            let found: i64 = rows.first().expect("a count").get(0);
            if found >= hosts {
                return;
            }
            waiting.again(|| found).await;
        }
    }

    /// Every job.
    pub(super) async fn jobs(&self) -> Vec<JobSeen> {
        let find = "SELECT id::text, request_key, state, (SELECT count(*) FROM phone_opus.late l WHERE l.job = j.id)
                        + (state = 'interrupted' AND outcome IS NOT NULL)::int
                    FROM phone_opus.job j ORDER BY turn";
        let rows = self.rows(find).await;
        let seen = |row: &Row| JobSeen { id: row.get(0), key: row.get(1), state: row.get(2), late: row.get(3) };
        rows.iter().map(seen).collect()
    }

    /// The one job, once it is over.
    pub(super) async fn only_job_over(&self) -> JobSeen {
        let waiting = Waiting::until("the only job is over", PATIENCE);
        loop {
            let mut jobs = self.jobs().await;
            assert!(jobs.len() < 2, "more than one: {jobs:?}");
            match jobs.pop() {
                Some(job) if job.is_over() => return job,
                job => waiting.again(|| format!("{job:?}")).await,
            }
        }
    }

    /// Gives a scope of which all jobs are a cap, which agents of what is asked from here on look after.
    pub(super) async fn cap(&mut self, scope: CapScope, cap: u64) {
        let fleet = PgFleet::open(&self.settings).await.expect("opened");
        fleet.set_cap(&scope, Some(cap)).await.expect("set");
        self.watch_cap(cap);
    }

    /// Agents of what is asked from here on look after a cap, which nobody else keeps.
    pub(super) fn watch_cap(&mut self, cap: u64) {
        let dir = self.scratch.path().join("places").join(self.places.len().to_string());
        std::fs::create_dir(&dir).expect("a directory");
        self.places.push((dir, cap));
    }

    /// The account by which every machine of this world pays, once a job is there.
    pub(super) async fn account(&self) -> String {
        let rows = self.rows("SELECT account FROM phone_opus.job LIMIT 1").await;
        rows.first().expect("a job").get(0)
    }

    /// What is asked for a job of this key that takes these steps in this workspace.
    pub(super) fn asking(&self, key: &str, workspace: &Path, steps: Vec<Step>) -> Value {
        let places = self.places.iter().map(|(dir, of)| Step::TakePlace { dir: dir.clone(), of: *of });
        let script = Script {
            answer: Some(format!("answer to {key}")),
            log: Some(self.run_log(key)),
            steps: places.chain(steps).collect(),
            ..Script::default()
        };
        json!({
            "prompt": script.in_prompt(), "cwd": workspace, "placement": "fleet", "background": true,
            "request_key": key, "timeout_s": TIMEOUT_S,
        })
    }

    /// A file by which agents and cases wait for each other.
    pub(super) fn sign(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn run_log(&self, key: &str) -> PathBuf {
        self.scratch.path().join("runs").join(key)
    }

    /// How often an agent was started for this job, and how often it ended by itself.
    pub(super) fn runs(&self, key: &str) -> (usize, usize) {
        let log = std::fs::read_to_string(self.run_log(key)).unwrap_or_default();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of the log"));
        let (ended, began): (Vec<Value>, Vec<Value>) = lines.partition(|line| line["event"] == "end");
        (began.len(), ended.len())
    }

    /// Waits until every job is over, and each machine that is up has told what it had to tell. Hosts that have had the same to tell for
    /// a while, and no runner, come and go meanwhile: a new one looks a second after its start for jobs that lost their host before they
    /// had a runner, and after that only every 30 s. One that has just claimed a job stays: what it has begun would be lost.
    pub(super) async fn settle(&mut self) {
        let waiting = Waiting::until("every job is over and told", PATIENCE);
        let (mut began, mut before) = (Instant::now(), BTreeSet::new());
        loop {
            self.nobody_waits_for_the_dead().await;
            let open: Vec<JobSeen> = self.jobs().await.into_iter().filter(|job| !job.is_over()).collect();
            let up = self.machines.iter_mut().filter(|machine| machine.client.is_some());
            let mut telling: Vec<(Vec<String>, &mut Machine)> = up.map(|machine| (machine.untold(), machine)).collect();
            telling.retain(|(untold, _)| !untold.is_empty());
            if open.is_empty() && telling.is_empty() {
                return;
            }
            let untold: Vec<&Vec<String>> = telling.iter().map(|(untold, _)| untold).collect();
            waiting.again(|| format!("{open:?}; not told: {untold:?}")).await;
            if began.elapsed() > COME_AND_GO {
                let now: BTreeSet<Vec<String>> = telling.iter().map(|(untold, _)| untold.clone()).collect();
                telling.retain(|(untold, machine)| before.contains(untold) && machine.rig.runners().is_empty());
                before = now;
                for (_, machine) in telling {
                    machine.up().finish().await;
                    machine.start().await;
                }
                began = Instant::now();
            }
        }
    }

    /// A job that a host had which is gone is taken from it after two leases, by the next sweep of anybody.
    pub(super) async fn nobody_waits_for_the_dead(&self) {
        let long = self.lease * 3 + Duration::from_secs(20);
        let find = format!(
            "SELECT j.id::text, j.state, h.lease_until::text, clock_timestamp()::text
             FROM phone_opus.job j LEFT JOIN phone_opus.host h ON h.host = j.host WHERE j.state IN ('claimed', 'running')
                 AND (h.host IS NULL OR h.lease_until + {} * interval '1 millisecond' < clock_timestamp())",
            long.as_millis()
        );
        let stuck = self.rows(&find).await;
        let column = |row: &Row, at| row.get::<_, Option<String>>(at).unwrap_or_default();
        let stuck: Vec<Vec<String>> = stuck.iter().map(|row| (0..4).map(|at| column(row, at)).collect()).collect();
        assert!(stuck.is_empty(), "with a host that is gone (job, state, its lease, now): {stuck:?}");
    }

    /// Ends the hosts that are up, and holds everything that happened against the laws. How many jobs ended in each way.
    pub(super) async fn end(self) -> BTreeMap<String, usize> {
        let (ends, broken) = self.judged().await;
        assert!(broken.is_empty(), "laws are broken:\n{broken}");
        ends
    }

    /// The same, with the laws that are broken.
    pub(super) async fn judged(mut self) -> (BTreeMap<String, usize>, String) {
        let jobs = self.jobs().await;
        for machine in &mut self.machines {
            if let Some(mut client) = machine.client.take() {
                client.finish().await;
            }
        }
        self.nothing_is_left_alive().await;
        let mut broken = String::new();
        let mut ends: BTreeMap<String, usize> = BTreeMap::new();
        let edges = self.edges().await;
        for job in &jobs {
            *ends.entry(job.state.clone()).or_default() += 1;
            let (began, ended) = self.runs(&job.key);
            let mut breaks = |law: &str| {
                let _ = writeln!(broken, "{law}: {job:?}, {began} starts, {ended} ends, {:?}", edges.get(&job.id));
            };
            if began > 1 {
                breaks("L3: an agent was started more than once");
            }
            if job.state == "succeeded" && ended != 1 {
                breaks("L4: it succeeded without a run");
            }
            if !job.is_over() {
                breaks("L4: it is not over");
            }
            let of_job: &[(String, String)] = edges.get(&job.id).map_or(&[], Vec::as_slice);
            let is_over = |state: &str| !["queued", "claimed", "running"].contains(&state);
            if of_job.iter().filter(|(_, became)| is_over(became)).count() != 1 {
                breaks("L4: it did not end once");
            }
            if of_job.iter().filter(|(_, became)| became == "running").count() > 1 {
                breaks("L19: it was begun more than once");
            }
            if of_job.iter().any(|(was, became)| !DRAWN.contains(&(was, became))) {
                breaks("L16: it took an edge that is not drawn");
            }
        }
        broken.push_str(&broken_caps(&self.places));
        self.one_machine_each(&jobs, &mut broken).await;
        (ends, broken)
    }

    async fn edges(&self) -> BTreeMap<String, Vec<(String, String)>> {
        let mut edges: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        for row in self.rows("SELECT job::text, was, became FROM public.edge ORDER BY nr").await {
            edges.entry(row.get(0)).or_default().push((row.get(1), row.get(2)));
        }
        edges
    }

    /// No two machines have one job of the fleet, and what a machine has of one that was taken from it was told.
    async fn one_machine_each(&self, jobs: &[JobSeen], broken: &mut String) {
        let mut has: BTreeMap<String, usize> = BTreeMap::new();
        for (nr, machine) in self.machines.iter().enumerate() {
            for job in machine.rig.jobs().await {
                if !job.state.is_terminal() {
                    let _ = writeln!(broken, "L4: machine {nr} has a job that is not over: {job:?}");
                }
                let in_fleet = jobs.iter().find(|seen| seen.id == job.id.to_string());
                if in_fleet.is_none_or(|seen| seen.state == "interrupted" && seen.late != 1) {
                    let _ = writeln!(broken, "L19: machine {nr} has {}, and of it is kept {in_fleet:?}", job.id);
                }
                if let Some(other) = has.insert(job.id.to_string(), nr) {
                    let _ = writeln!(broken, "L19: machines {other} and {nr} have {}", job.id);
                }
            }
        }
    }

    async fn nothing_is_left_alive(&self) {
        let waiting = Waiting::until("nothing is left alive", PATIENCE);
        loop {
            let left: Vec<_> = self.machines.iter().flat_map(|machine| machine.rig.processes()).collect();
            if left.is_empty() {
                return;
            }
            waiting.again(|| format!("{left:?}")).await;
        }
    }

    /// What every host logged that it warns of, the latest of each.
    pub(super) fn last_words(&self) -> String {
        let words = self.machines.iter().enumerate().map(|(nr, machine)| format!("machine {nr}: {}", machine.words()));
        words.collect::<Vec<_>>().join("\n")
    }
}

/// The caps that agents saw broken by the locks they take: of each a line.
fn broken_caps(places: &[(PathBuf, u64)]) -> String {
    let over = places.iter().filter(|(dir, _)| dir.join("over").exists());
    over.map(|(dir, cap)| format!("L19: more than {cap} ran at once ({})\n", dir.display())).collect()
}

impl Machine {
    fn words(&self) -> String {
        let logs = std::fs::read_dir(self.rig.path("")).into_iter().flatten().flatten().map(|entry| entry.path());
        let logs = logs.filter(|path| path.extension().is_some_and(|kind| kind == "stderr"));
        logs.map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect()
    }
}

/// What is shown when a case fails: what the hosts said.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let words = self.last_words();
            let from = words.len().saturating_sub(4_000);
            eprintln!("{}", words.get(from..).unwrap_or_default());
        }
    }
}

/// How long something took, for what is printed.
pub(super) fn seconds(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}
