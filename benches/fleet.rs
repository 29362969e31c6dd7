//! What the fleet's statements cost: beside the same rows written by bare statements, on a PostgreSQL server of the bench's own.
//!
//! Accepts, claims with starts, and finishes a second; how long after an accept another host has claimed the job; what a hundred hosts
//! that have nothing to do ask of the database. Figures are for reading; nothing here passes or fails. Without PostgreSQL it says so.
//!
//! ```sh
//! cargo bench --bench fleet
//! cargo bench --bench fleet -- --jobs 2000 --seconds 60 --durable
//! ```
//!
//! `--durable` has the server sync each commit, as a real one does; without, the statements alone are measured.

#![expect(clippy::print_stdout, clippy::expect_used, clippy::panic, reason = "what a bench tells, and its server")]

#[expect(dead_code, reason = "the tests' server has more than a bench needs")]
#[path = "../src/fleet/postgres/tests/server.rs"]
mod server;

use std::time::{Duration, Instant};

use phone_opus::internals::base::ids::{FleetJobId, HostId};
use phone_opus::internals::fleet::postgres::PgFleet;
use phone_opus::internals::fleet::{
    ClaimAsk, Fleet, FleetAccept, FleetClaim, FleetFinish, FleetLease, FleetStart, FleetState, Labels, Needs,
    NewFleetJob, POLL, Renewal, RunFinish, Ticket,
};
use phone_opus::internals::jobs::{ConsultRequest, JobOutcome};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

use self::server::PrivateServer;

/// Hosts at work at the same time.
const HOSTS: usize = 4;

/// Hosts that have nothing to do.
const IDLE: usize = 100;

struct Options {
    jobs: usize,
    seconds: u64,
    is_durable: bool,
}

impl Options {
    fn read() -> Self {
        let mut options = Self { jobs: 400, seconds: 20, is_durable: false };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().and_then(|word| word.parse().ok());
            match word.as_str() {
                "--jobs" => options.jobs = value().unwrap_or(400),
                "--seconds" => options.seconds = u64::try_from(value().unwrap_or(20)).unwrap_or(20),
                "--durable" => options.is_durable = true,
                _ => {}
            }
        }
        options
    }
}

fn main() {
    let options = Options::read();
    let sync = if options.is_durable { vec!["fsync=on".to_owned()] } else { Vec::new() };
    let settings: Vec<String> = ["max_connections=300".to_owned()].into_iter().chain(sync).collect();
    let Some(server) = PrivateServer::with(&[], &settings) else { return };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    runtime.block_on(async {
        println!("{} jobs, fsync {}", options.jobs, if options.is_durable { "on" } else { "off" });
        for hosts in [1, HOSTS] {
            rates(&server, options.jobs, hosts).await;
        }
        latency(&server, options.jobs.min(300)).await;
        idle(&server, options.seconds).await;
    });
}

fn labels() -> Labels {
    Labels::read(r#"{"agents":{"claude":{}},"slots":1000}"#).expect("labels")
}

fn renewal(host: HostId) -> Renewal {
    Renewal { host, name: "box".into(), state_id: "s".into(), labels: labels(), running: Vec::new() }
}

fn new_job(at: usize) -> NewFleetJob {
    NewFleetJob {
        id: FleetJobId::random(),
        workspace: format!("path:s:/w{}", at % 10),
        request_key: FleetJobId::random().to_string(),
        request: ConsultRequest::new("why does the build fail? ".repeat(40)).cwd("/w").timeout_s(1000),
        given: None,
        account: String::new(),
        needs: Needs::default(),
        pin_state: None,
        trace: None,
    }
}

fn finished(ticket: Ticket) -> RunFinish {
    RunFinish { ticket, end: FleetState::Succeeded, outcome: outcome(), pause: None }
}

fn outcome() -> JobOutcome {
    let mut outcome = JobOutcome::default();
    outcome.response = Some("because. ".repeat(200));
    outcome
}

async fn client(settings: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(settings, NoTls).await.expect("connected");
    // It ends with the client.
    tokio::spawn(connection);
    client
}

/// So many of something a second.
fn rate(count: usize, took: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / took.as_secs_f64()
}

/// Does something in parts at the same time, each on a connection of its own.
async fn together<F: Future<Output = usize> + Send + 'static>(parts: Vec<F>) -> f64 {
    let began = Instant::now();
    let mut set = JoinSet::new();
    parts.into_iter().for_each(|part| drop(set.spawn(part)));
    let done: usize = set.join_all().await.into_iter().sum();
    rate(done, began.elapsed())
}

/// Verbs a second, and the bare statements that write the same.
async fn rates(server: &PrivateServer, jobs: usize, hosts: usize) {
    let settings = server.database().await;
    drop(PgFleet::open(&settings).await.expect("opened"));
    let each = jobs / hosts;
    let mut fleets = Vec::new();
    for _ in 0..hosts {
        fleets.push(std::sync::Arc::new(PgFleet::open(&settings).await.expect("opened")));
    }
    let accepting = fleets.iter().cloned().map(|fleet| async move {
        for at in 0..each {
            assert!(matches!(fleet.accept(&new_job(at)).await, Ok(FleetAccept::Inserted(_))));
        }
        each
    });
    let accepts = together(accepting.collect()).await;
    // Each claim reads what waits: the first ones all of it.
    let claiming = fleets.iter().cloned().map(|fleet| async move {
        let host = HostId::random();
        let _ = fleet.renew(&renewal(host)).await.expect("renewed");
        let mut tickets = Vec::new();
        while let Ok(FleetClaim::Claimed(given)) = fleet.claim(&ClaimAsk { host, most: 1, accepts: Vec::new() }).await {
            let Some(job) = given.first() else { break };
            tickets.push(job.ticket);
        }
        tickets
    });
    let began = Instant::now();
    let mut set = JoinSet::new();
    claiming.for_each(|part| drop(set.spawn(part)));
    let tickets = set.join_all().await;
    let claims = rate(tickets.iter().map(Vec::len).sum(), began.elapsed());
    let starting = fleets.iter().cloned().zip(tickets.clone()).map(|(fleet, tickets)| async move {
        for ticket in &tickets {
            assert_eq!(fleet.start(*ticket).await, Ok(FleetStart::Started));
        }
        tickets.len()
    });
    let starts = together(starting.collect()).await;
    let finishing = fleets.iter().cloned().zip(tickets).map(|(fleet, tickets)| async move {
        for ticket in &tickets {
            assert_eq!(fleet.finish(&finished(*ticket)).await, Ok(FleetFinish::Finished));
        }
        tickets.len()
    });
    let finishes = together(finishing.collect()).await;
    let floor = floor(server, each, hosts).await;
    println!("\n{hosts} host(s)    verbs/s   bare/s  ratio");
    for (name, ours, bare) in [
        ("accept", accepts, floor[0]),
        ("claim", claims, floor[1]),
        ("start", starts, floor[1]),
        ("finish", finishes, floor[2]),
    ] {
        println!("{name:<10} {ours:>9.0} {bare:>8.0} {:>6.2}", ours / bare);
    }
}

/// The same rows by one prepared statement each and nothing else: an insert, an update of the state, one of state and outcome.
async fn floor(server: &PrivateServer, each: usize, hosts: usize) -> [f64; 3] {
    let settings = server.database().await;
    let make = "CREATE TABLE bare (id uuid PRIMARY KEY, workspace text, request_key text UNIQUE, request text, state text, fence bigint, outcome text);
                CREATE SEQUENCE fence";
    client(&settings).await.batch_execute(make).await.expect("made");
    let request = serde_json::to_string(&new_job(0).request).expect("JSON");
    let outcome = serde_json::to_string(&outcome()).expect("JSON");
    let mut rates = [0.0; 3];
    let mut clients = Vec::new();
    for _ in 0..hosts {
        let ids: Vec<String> = (0..each).map(|_| FleetJobId::random().to_string()).collect();
        clients.push((std::sync::Arc::new(client(&settings).await), ids));
    }
    let statements = [
        "INSERT INTO bare VALUES ($1::text::uuid, 'path:s:/w', $1, $2, 'queued', NULL, NULL)",
        "UPDATE bare SET state = 'claimed', fence = nextval('fence') WHERE id = $1::text::uuid AND state = 'queued' AND $2::text IS NOT NULL",
        "UPDATE bare SET state = 'succeeded', outcome = $2 WHERE id = $1::text::uuid AND state = 'claimed'",
    ];
    for (at, statement) in statements.into_iter().enumerate() {
        let text = if at == 2 { outcome.clone() } else { request.clone() };
        let working = clients.iter().cloned().map(|(client, ids)| {
            let text = text.clone();
            async move {
                let prepared = client.prepare(statement).await.expect("prepared");
                for id in &ids {
                    assert_eq!(client.execute(&prepared, &[id, &text]).await.expect("done"), 1);
                }
                ids.len()
            }
        });
        rates[at] = together(working.collect()).await;
    }
    rates
}

/// From the begin of an accept on one host to the answer of a claim on another that waits for the bell.
async fn latency(server: &PrivateServer, count: usize) {
    let settings = server.database().await;
    let (here, there) =
        (PgFleet::open(&settings).await.expect("opened"), PgFleet::open(&settings).await.expect("opened"));
    let host = HostId::random();
    let _ = there.renew(&renewal(host)).await.expect("renewed");
    let mut rings = there.rings();
    let _ = rings.changed().await;
    let mut took = Vec::new();
    for at in 0..count {
        rings.mark_unchanged();
        let began = Instant::now();
        let claimed = async {
            loop {
                let _ = tokio::time::timeout(POLL, rings.changed()).await;
                if let Ok(FleetClaim::Claimed(given)) =
                    there.claim(&ClaimAsk { host, most: 1, accepts: Vec::new() }).await
                    && let Some(job) = given.first()
                {
                    return (began.elapsed(), job.ticket);
                }
            }
        };
        let new = new_job(at);
        let (accepted, (elapsed, ticket)) = tokio::join!(here.accept(&new), claimed);
        assert!(matches!(accepted, Ok(FleetAccept::Inserted(_))));
        took.push(elapsed);
        assert_eq!(there.start(ticket).await, Ok(FleetStart::Started));
        assert_eq!(there.finish(&finished(ticket)).await, Ok(FleetFinish::Finished));
    }
    took.sort();
    let at = |part: usize| took[(took.len() * part / 100).min(took.len() - 1)];
    println!("\naccept to claimed elsewhere, {count} times: p50 {:?}, p99 {:?}, longest {:?}", at(50), at(99), at(100));
}

/// What hosts ask that have nothing to do: a lease each [`FleetLease::renew_every`], a claim and a sweep each [`POLL`], a connection that listens.
async fn idle(server: &PrivateServer, seconds: u64) {
    let settings = server.database().await;
    let mut hosts = JoinSet::new();
    let connected = std::sync::Arc::new(tokio::sync::Barrier::new(IDLE + 1));
    for at in 0..IDLE {
        let fleet = PgFleet::open(&settings).await.expect("opened");
        let connected = std::sync::Arc::clone(&connected);
        hosts.spawn(async move {
            let host = HostId::random();
            let _rings = fleet.rings();
            let _ = fleet.renew(&renewal(host)).await.expect("renewed");
            connected.wait().await;
            // They do not look together.
            tokio::time::sleep(POLL * u32::try_from(at).unwrap_or(0) / u32::try_from(IDLE).unwrap_or(1)).await;
            let mut looked = 0_u32;
            loop {
                assert!(matches!(
                    fleet.claim(&ClaimAsk { host, most: 4, accepts: Vec::new() }).await,
                    Ok(FleetClaim::Claimed(_))
                ));
                if looked.is_multiple_of(
                    u32::try_from(FleetLease::default().renew_every().as_secs() / POLL.as_secs()).unwrap_or(3),
                ) {
                    let _ = fleet.renew(&renewal(host)).await.expect("renewed");
                    let _ = fleet.sweep().await.expect("swept");
                }
                looked += 1;
                tokio::time::sleep(POLL).await;
            }
        });
    }
    connected.wait().await;
    let counted = client(&settings).await;
    let transactions = async || {
        let see = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
        counted.query_one(see, &[]).await.expect("seen").get::<_, i64>(0)
    };
    tokio::time::sleep(POLL).await;
    let (before, cpu, began) = (transactions().await, processor_time(server), Instant::now());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let (did, used, took) =
        (transactions().await - before, processor_time(server).saturating_sub(cpu), began.elapsed());
    println!(
        "\n{IDLE} idle hosts for {:.0} s: {:.1} transactions/s, {:.2} % of one core of the database ({:.2} s)",
        took.as_secs_f64(),
        rate(usize::try_from(did).unwrap_or(0), took),
        100.0 * used.as_secs_f64() / took.as_secs_f64(),
        used.as_secs_f64()
    );
    hosts.abort_all();
}

/// Processor time of all processes of a server that are there, their ended children included: each works in its directory of data.
fn processor_time(server: &PrivateServer) -> Duration {
    let data = server.dir().join("data");
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let own = entries.filter(|process| std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == data));
    let ticks = |process: std::path::PathBuf| {
        let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
        // Its name may have spaces; what follows are numbers, of which these are utime, stime, cutime and cstime.
        let numbers = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(4);
        numbers.filter_map(|number| number.parse::<u64>().ok()).sum::<u64>()
    };
    // Linux tells it in hundredths of a second, whatever the kernel's own clock.
    Duration::from_millis(10 * own.map(ticks).sum::<u64>())
}
