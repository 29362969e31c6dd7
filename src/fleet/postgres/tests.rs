//! The fleet in a real PostgreSQL: what the core says, the statements say, whoever is killed meanwhile.
//!
//! Laws: L3, L4, L9, L13, L19.

mod cuts;
mod failover;
mod load;
mod people;
mod pooler;
mod roles;
mod server;
mod traces;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant as Clock;

use tokio::task::JoinSet;

use self::server::PrivateServer;
use super::*;
use crate::base::ids::UnixMillis;
use crate::fleet::core::{FleetCore, FleetEvent, FleetVerdict};
use crate::fleet::invariants::{
    FleetWitness, invariant_a_job_is_started_at_most_once, invariant_every_answer_was_right, invariant_fences_grow,
    invariant_what_was_told_is_kept,
};
use crate::fleet::tests::schedules::{Kinds, Op, TICK, World, job, labels, ops};

/// Longest anything here is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

async fn statements(fleet: &PgFleet, statements: &str) {
    let tx = fleet.begin(Fate::default()).await.expect("begun");
    tx.batch(statements).await.unwrap_or_else(|error| panic!("{statements}: {error}"));
    tx.commit().await.expect("committed");
}

async fn number_of(fleet: &PgFleet, query: &str) -> i64 {
    let tx = fleet.begin(Fate::default()).await.expect("begun");
    let row = tx.row(query, &[]).await.unwrap_or_else(|error| panic!("{query}: {error}"));
    let number = big(&row.expect("a row"), 0, "number").expect("a number");
    tx.commit().await.expect("committed");
    number
}

fn renewal(host: HostId, slots: u32) -> Renewal {
    Renewal { host, name: "box".into(), state_id: "s".into(), labels: labels(slots), running: Vec::new() }
}

fn asked(host: HostId, most: usize) -> ClaimAsk {
    ClaimAsk { host, most, accepts: Vec::new() }
}

fn finished(ticket: Ticket) -> RunFinish {
    RunFinish { ticket, end: FleetState::Succeeded, outcome: JobOutcome::default(), pause: None }
}

fn new_job(key: &str) -> NewFleetJob {
    job(FleetJobId::random(), "path:s:/w", key, "", 1000)
}

fn given(claim: FleetClaim) -> Vec<ClaimedJob> {
    match claim {
        FleetClaim::Claimed(given) => given,
        FleetClaim::NotNow(why) => panic!("not now: {why:?}"),
    }
}

/// Has a database do what an event says.
async fn perform(fleet: &PgFleet, world: &mut World, op: &Op, event: &FleetEvent) -> FleetVerdict {
    let done = match event {
        FleetEvent::AcceptAsked { .. } => {
            let job = world.new_job(op).expect("a job");
            fleet.accept(&job).await.map(FleetVerdict::Accept)
        }
        FleetEvent::ClaimAsked { ask, .. } => fleet.claim(ask).await.map(FleetVerdict::Claim),
        FleetEvent::StartAsked(ticket) => fleet.start(*ticket).await.map(FleetVerdict::Start),
        FleetEvent::LeaseRenewed(renewal) => fleet.renew(renewal).await.map(FleetVerdict::Renew),
        FleetEvent::RunEnded(finish) => fleet.finish(finish).await.map(FleetVerdict::Finish),
        FleetEvent::SweepDue => fleet.sweep().await.map(FleetVerdict::Sweep),
        FleetEvent::CancelAsked(job) => fleet.cancel(*job).await.map(FleetVerdict::Cancel),
        FleetEvent::CapSet { scope, cap } => fleet.set_cap(scope, *cap).await.map(|()| FleetVerdict::Noted),
        FleetEvent::DrainSet { host, drained } => {
            fleet.set_drained(*host, *drained).await.map(|()| FleetVerdict::Noted)
        }
        FleetEvent::TimelineChanged => {
            statements(fleet, "UPDATE phone_opus.meta SET timeline = 'another'").await;
            // Whoever looks next writes it down, which here is at once.
            let tx = fleet.begin(Fate::default()).await.expect("begun");
            assert!(meta(&tx).await.expect("looked").quiet);
            tx.commit().await.map(|()| FleetVerdict::Noted)
        }
    };
    done.unwrap_or_else(|error| panic!("{event:?}: {error}"))
}

/// Time passes for a database when everything in it is longer ago.
async fn pass(fleet: &PgFleet) {
    let columns = [
        ("host", "lease_until"),
        ("job", "accepted"),
        ("job", "claimed"),
        ("job", "started"),
        ("job", "ended"),
        ("job", "hold_until"),
        ("late", "at"),
        ("pause", "until"),
        ("meta", "quiet_until"),
    ];
    let back = |(table, column)| {
        format!("UPDATE phone_opus.{table} SET {column} = {column} - interval '{} seconds';", TICK.as_secs())
    };
    statements(fleet, &columns.map(back).concat()).await;
}

/// A verdict without the numbers of fences, which no two fleets share.
fn unnumbered(verdict: &FleetVerdict) -> FleetVerdict {
    let mut verdict = verdict.clone();
    if let FleetVerdict::Claim(FleetClaim::Claimed(given)) = &mut verdict {
        for job in given {
            job.ticket.fence = Fence(0);
        }
    }
    verdict
}

#[tokio::test]
async fn the_statements_answer_what_the_core_answers() {
    let Some(server) = PrivateServer::shared() else { return };
    let asked = std::env::var("PHONE_OPUS_FLEET_PG_SEEDS").ok().and_then(|text| text.parse().ok());
    let (first, seeds) = (20_261_200_u64, asked.unwrap_or(3));
    let mut kinds = Kinds::default();
    for seed in first..first + seeds {
        let fleet = PgFleet::open(&server.database().await).await.expect("opened");
        // The first look has nothing to compare a history with.
        assert_eq!(fleet.sweep().await, Ok(FleetSwept::default()));
        let (mut core, mut witness) = (FleetCore::default(), FleetWitness::default());
        let mut told = World::default();
        let began = UnixMillis::now();
        told.set_now(began);
        let mut asked = told.clone();
        for (at, op) in ops(seed, 120).into_iter().enumerate() {
            let event = told.event(&op);
            // Only the jobs an op brings are counted, and the core's world has taken this one's.
            let before = asked.clone();
            let theirs = asked.event(&op);
            asked.set_now(began);
            if op == Op::Pass {
                pass(&fleet).await;
            }
            let (Some(event), Some(theirs)) = (event, theirs) else { continue };
            let mut bringing = before;
            let verdict = perform(&fleet, &mut bringing, &op, &theirs).await;
            asked.learn(&theirs, &verdict);
            let expected = core.step(event.clone(), told.now());
            told.learn(&event, &expected);
            kinds.note(&verdict);
            assert_eq!(unnumbered(&verdict), unnumbered(&expected), "seed {seed}, event {at}: {op:?}");
            witness.saw(&theirs, &verdict, told.now());
        }
        for law in [
            invariant_a_job_is_started_at_most_once(&witness),
            invariant_fences_grow(&witness),
            invariant_every_answer_was_right(&witness),
        ] {
            law.unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
        }
        for job in witness.jobs().collect::<Vec<_>>() {
            let view = fleet.wait(job, Duration::ZERO).await.expect("looked");
            invariant_what_was_told_is_kept(&witness, job, view.as_ref())
                .unwrap_or_else(|broken| panic!("seed {seed}: {broken}"));
            let expected = core
                .view(job)
                .map(|view| (view.state, view.host, view.cancel_requested, view.outcome, view.late.len()));
            assert_eq!(
                view.map(|view| (view.state, view.host, view.cancel_requested, view.outcome, view.late.len())),
                expected
            );
        }
    }
    println!("{kinds:?}");
}

#[tokio::test]
async fn one_key_from_ten_hosts_at_once_is_one_row() {
    let Some(server) = PrivateServer::shared() else { return };
    let settings = server.database().await;
    let mut hosts = JoinSet::new();
    for _ in 0..10 {
        let settings = settings.clone();
        // They also make the tables at once.
        hosts.spawn(async move {
            let fleet = PgFleet::open(&settings).await.expect("opened");
            fleet.accept(&new_job("one")).await.expect("accepted")
        });
    }
    let answers = hosts.join_all().await;
    let inserted = answers.iter().filter_map(|answer| match answer {
        FleetAccept::Inserted(job) => Some(*job),
        _ => None,
    });
    let [one] = inserted.collect::<Vec<_>>()[..] else { panic!("{answers:?}") };
    assert_eq!(answers.iter().filter(|answer| **answer == FleetAccept::Joined(one)).count(), 9, "{answers:?}");
    let fleet = PgFleet::open(&settings).await.expect("opened");
    assert_eq!(number_of(&fleet, "SELECT count(*) FROM phone_opus.job").await, 1);
    let mut other = new_job("one");
    other.request.prompt.push('!');
    assert_eq!(fleet.accept(&other).await, Ok(FleetAccept::Conflict(one)));
}

/// One host's work until nothing is left: what it began, and with which fences.
async fn work(fleet: PgFleet, jobs: i64) -> Vec<Ticket> {
    let host = HostId::random();
    let mut began = Vec::new();
    let _ = fleet.renew(&renewal(host, 3)).await.expect("renewed");
    loop {
        let given = given(fleet.claim(&asked(host, 2)).await.expect("claimed"));
        for job in &given {
            assert_eq!(fleet.start(job.ticket).await, Ok(FleetStart::Started));
            began.push(job.ticket);
        }
        for job in &given {
            assert_eq!(fleet.finish(&finished(job.ticket)).await, Ok(FleetFinish::Finished));
        }
        if given.is_empty()
            && number_of(&fleet, "SELECT count(*) FROM phone_opus.job WHERE state = 'succeeded'").await == jobs
        {
            return began;
        }
    }
}

#[tokio::test]
async fn ten_hosts_claim_each_job_once_and_never_more_than_the_caps() {
    const JOBS: i64 = 40;
    let Some(server) = PrivateServer::shared() else { return };
    let settings = server.database().await;
    let fleet = PgFleet::open(&settings).await.expect("opened");
    fleet.set_cap(&CapScope::Fleet, Some(7)).await.expect("set");
    fleet.set_cap(&CapScope::Account("a1".into()), Some(2)).await.expect("set");
    for key in 0..JOBS {
        let account = if key % 2 == 0 { "a1" } else { "" };
        let new = job(FleetJobId::random(), &format!("path:s:/w{}", key % 5), &key.to_string(), account, 1000);
        assert!(matches!(fleet.accept(&new).await, Ok(FleetAccept::Inserted(_))));
    }
    let mut hosts = JoinSet::new();
    for _ in 0..10 {
        let host = PgFleet::open(&settings).await.expect("opened");
        hosts.spawn(work(host, JOBS));
    }
    let mut began = Vec::new();
    let over = "SELECT (count(*) > 7 OR count(*) FILTER (WHERE account = 'a1') > 2)::int::int8 FROM phone_opus.job
                WHERE state IN ('claimed', 'running')";
    while !hosts.is_empty() {
        // One statement sees one moment.
        assert_eq!(number_of(&fleet, over).await, 0, "more at once than a cap allows");
        while let Some(host) = hosts.try_join_next() {
            began.extend(host.expect("a host"));
        }
    }
    let (jobs, fences): (BTreeSet<_>, BTreeSet<_>) = began.iter().map(|ticket| (ticket.job, ticket.fence)).unzip();
    assert_eq!((began.len(), jobs.len(), fences.len()), (40, 40, 40), "each once, each with a fence of its own");
}

#[tokio::test]
async fn tables_of_an_older_version_are_added_to_and_those_of_a_later_one_are_used() {
    let Some(server) = PrivateServer::shared() else { return };
    let settings = server.database().await;
    let version = "SELECT version FROM phone_opus.meta";
    let old = PgFleet::open_at(&settings, 1).await.expect("opened");
    let FleetAccept::Inserted(job) = old.accept(&new_job("old")).await.expect("accepted") else { panic!("not new") };
    assert_eq!(number_of(&old, version).await, 1);
    let fleet = PgFleet::open(&settings).await.expect("opened");
    assert_eq!(number_of(&fleet, version).await, schema::known());
    let still = PgFleet::open_at(&settings, 1).await.expect("opened");
    assert_eq!(number_of(&still, version).await, schema::known(), "an older program takes nothing back");
    assert!(matches!(old.accept(&new_job("old too")).await, Ok(FleetAccept::Inserted(_))), "side by side");

    let later = format!(
        "ALTER TABLE phone_opus.job ADD COLUMN novelty text NOT NULL DEFAULT 'x'; CREATE TABLE phone_opus.novelty (a int);
         UPDATE phone_opus.meta SET version = {}",
        schema::known() + 1
    );
    statements(&fleet, &later).await;
    let fleet = PgFleet::open(&settings).await.expect("opened");
    let host = HostId::random();
    assert!(!fleet.renew(&renewal(host, 4)).await.expect("renewed").quiet);
    let claimed = given(fleet.claim(&asked(host, 1)).await.expect("claimed"));
    assert_eq!(claimed[0].ticket.job, job);
    statements(&fleet, &format!("UPDATE phone_opus.meta SET least = {}", schema::known() + 1)).await;
    let refused = FleetError::TooOld { least: schema::known() + 1, known: schema::known() };
    assert_eq!(PgFleet::open(&settings).await.map(drop), Err(refused));
}

#[tokio::test]
async fn what_somebody_else_wrote_is_not_believed_and_stops_nobody() {
    let Some(server) = PrivateServer::shared() else { return };
    let fleet = PgFleet::open(&server.database().await).await.expect("opened");
    let host = HostId::random();
    let _ = fleet.renew(&renewal(host, 9)).await.expect("renewed");
    let bad = [
        "agent = E'a\\x1b[2J'",
        "agent = repeat('a', 1000000)",
        "account = 'a b'",
        "needs = 'nonsense'",
        "needs = '{\"tags\":[\"' || repeat('t', 100000) || '\"]}'",
        "request = '{}'",
        "request = repeat(' ', 9000000) || '{}'",
        "request = '[' || repeat('[', 100000)",
        "workspace = ''",
        "workspace = repeat('w', 100000)",
        "session = E'\\n'",
        "pin_state = ''",
        "owner = 'somebody else'",
        "turn = -1",
    ];
    let mut jobs = Vec::new();
    for (at, change) in bad.iter().enumerate() {
        let FleetAccept::Inserted(job) = fleet.accept(&new_job(&at.to_string())).await.expect("accepted") else {
            panic!("not new")
        };
        statements(&fleet, &format!("UPDATE phone_opus.job SET {change} WHERE id = '{job}'")).await;
        jobs.push(job);
    }
    let FleetAccept::Inserted(good) = fleet.accept(&new_job("good")).await.expect("accepted") else {
        panic!("not new")
    };
    let claimed = given(fleet.claim(&asked(host, 9)).await.expect("claimed"));
    assert_eq!(claimed.iter().map(|job| job.ticket.job).collect::<Vec<_>>(), [good]);

    // What is not understood and may be running counts.
    fleet.set_cap(&CapScope::Fleet, Some(2)).await.expect("set");
    statements(&fleet, &format!("UPDATE phone_opus.job SET state = 'running' WHERE id = '{}'", jobs[0])).await;
    assert!(matches!(fleet.accept(&new_job("next")).await, Ok(FleetAccept::Inserted(_))));
    assert_eq!(given(fleet.claim(&asked(host, 9)).await.expect("claimed")), []);
    fleet.set_cap(&CapScope::Fleet, None).await.expect("lifted");
    statements(&fleet, "INSERT INTO phone_opus.cap VALUES ('planet:earth', 0), ('', 0); INSERT INTO phone_opus.cap VALUES ('fleet', -1)")
        .await;
    assert_eq!(
        given(fleet.claim(&asked(host, 9)).await.expect("claimed")),
        [],
        "a cap that is no number allows nothing"
    );
    fleet.set_cap(&CapScope::Fleet, None).await.expect("lifted");

    for (column, value) in [("outcome", "'{'"), ("outcome", "repeat(' ', 17000000)")] {
        statements(&fleet, &format!("UPDATE phone_opus.job SET {column} = {value} WHERE id = '{good}'")).await;
        let seen = fleet.wait(good, Duration::ZERO).await;
        assert!(matches!(&seen, Err(FleetError::Bad(bad)) if bad.field == column), "{seen:?}");
    }
    statements(&fleet, &format!("UPDATE phone_opus.job SET digest = 'x' WHERE id = '{good}'")).await;
    assert_eq!(fleet.accept(&new_job("good")).await, Err(FleetError::Bad(BadRow::new("digest", "is no digest"))));
    statements(&fleet, "UPDATE phone_opus.host SET labels = repeat('x', 100000)").await;
    assert!(
        matches!(fleet.claim(&asked(host, 9)).await, Err(FleetError::Bad(bad)) if bad.field == "needs" || bad.field == "labels")
    );
    let error = fleet.accept(&NewFleetJob { workspace: "secret\nplace".into(), ..new_job("bad") }).await;
    let said = error.expect_err("out of its bounds").to_string();
    assert!(said.contains("workspace") && !said.contains("secret"), "{said}");
}

#[tokio::test]
async fn a_change_of_history_quiets_the_fleet_until_hosts_have_said_what_they_run() {
    let Some(server) = PrivateServer::shared() else { return };
    let fleet = PgFleet::open(&server.database().await).await.expect("opened");
    let host = HostId::random();
    let _ = fleet.renew(&renewal(host, 4)).await.expect("renewed");
    for key in ["begun", "waiting"] {
        assert!(matches!(fleet.accept(&new_job(key)).await, Ok(FleetAccept::Inserted(_))));
    }
    let ticket = given(fleet.claim(&asked(host, 1)).await.expect("claimed"))[0].ticket;
    assert_eq!(fleet.start(ticket).await, Ok(FleetStart::Started));
    // The database goes on without the claim.
    let lost = format!(
        "UPDATE phone_opus.job SET state = 'queued', fence = NULL, host = NULL, started = NULL WHERE id = '{}'",
        ticket.job
    );
    statements(&fleet, &lost).await;
    statements(&fleet, "UPDATE phone_opus.meta SET system_id = '1'").await;
    assert_eq!(fleet.claim(&asked(host, 4)).await, Ok(FleetClaim::NotNow(ClaimRefusal::Quiet)));
    assert!(fleet.sweep().await.expect("swept").quiet);
    let said = Renewal { running: vec![ticket], ..renewal(host, 4) };
    assert_eq!(
        fleet.renew(&said).await,
        Ok(FleetRenewed { drained: false, quiet: true, reasserted: 1, lease: FleetLease::default() })
    );
    pass(&fleet).await;
    assert_eq!(fleet.claim(&asked(host, 4)).await, Ok(FleetClaim::NotNow(ClaimRefusal::Quiet)));
    pass(&fleet).await;
    assert_eq!(
        fleet.renew(&said).await,
        Ok(FleetRenewed { drained: false, quiet: false, reasserted: 0, lease: FleetLease::default() })
    );
    let claimed = given(fleet.claim(&asked(host, 4)).await.expect("claimed"));
    assert_eq!(claimed.len(), 1, "what runs is given to nobody");
    assert!(claimed[0].ticket.fence.0 > ticket.fence.0 + 1000, "no lost fence is drawn again");
    assert_eq!(fleet.finish(&finished(ticket)).await, Ok(FleetFinish::Finished));
}

#[tokio::test]
async fn who_waits_hears_of_an_end_on_another_connection() {
    let Some(server) = PrivateServer::shared() else { return };
    let settings = server.database().await;
    let (here, there) =
        (PgFleet::open(&settings).await.expect("opened"), PgFleet::open(&settings).await.expect("opened"));
    let mut rings = here.rings();
    let rung = tokio::time::timeout(PATIENCE, rings.changed()).await;
    assert!(matches!(rung, Ok(Ok(()))), "a new connection rings once");
    let FleetAccept::Inserted(job) = here.accept(&new_job("one")).await.expect("accepted") else { panic!("not new") };
    assert!(matches!(tokio::time::timeout(PATIENCE, rings.changed()).await, Ok(Ok(()))), "something was accepted");
    let ended = async {
        // Others end the connection it hears by, and it comes back.
        statements(
            &there,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'NOTIFY phone_opus_%'",
        )
        .await;
        there.cancel(job).await
    };
    let (view, cancelled) = tokio::join!(here.wait(job, PATIENCE), ended);
    assert_eq!(cancelled, Ok(FleetCancel::Ended));
    assert_eq!(view.expect("looked").map(|view| view.state), Some(FleetState::Cancelled));
    assert_eq!(here.wait(FleetJobId::random(), PATIENCE).await, Ok(None));
}

/// Asks again as long as nothing is known, as a host does.
async fn insist<T, F: Future<Output = Result<T, FleetError>>>(mut ask: impl FnMut() -> F) -> T {
    let until = Clock::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(FleetError::Unavailable { .. } | FleetError::Unsure { .. }) if Clock::now() < until => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// A host that insists: the jobs it may start an agent for.
async fn insistent(settings: String, until_all_are_over: Arc<AtomicI64>) -> Vec<FleetJobId> {
    let fleet = insist(|| PgFleet::open(&settings)).await;
    let host = HostId::random();
    let mut began = Vec::new();
    let (renewal, ask) = (renewal(host, 4), asked(host, 2));
    let _ = insist(|| fleet.renew(&renewal)).await;
    let mut renewed = Clock::now();
    loop {
        if renewed.elapsed() > FleetLease::default().renew_every() {
            renewed = Clock::now();
            let _ = insist(|| fleet.renew(&renewal)).await;
        }
        // An answer that was lost may have given jobs to this host: they are held until it is gone, so it lets them go.
        let claim = match fleet.claim(&ask).await {
            Ok(claim) => given(claim),
            Err(FleetError::Unsure { .. }) => {
                let back = format!("UPDATE phone_opus.host SET lease_until = '-infinity' WHERE host = '{host}'");
                insist(|| async {
                    let tx = fleet.begin(Fate::default()).await?;
                    tx.batch(&back).await?;
                    tx.commit().await
                })
                .await;
                let _ = insist(|| fleet.sweep()).await;
                let _ = insist(|| fleet.renew(&renewal)).await;
                continue;
            }
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
        };
        for job in &claim {
            if insist(|| fleet.start(job.ticket)).await == FleetStart::Started {
                began.push(job.ticket.job);
                let finish = finished(job.ticket);
                let end = insist(|| fleet.finish(&finish)).await;
                assert!(matches!(end, FleetFinish::Finished | FleetFinish::Already), "{end:?}");
            }
        }
        let over = insist(|| async {
            let tx = fleet.begin(Fate::default()).await?;
            let row = tx.row("SELECT count(*) FROM phone_opus.job WHERE state = 'succeeded'", &[]).await?;
            tx.commit().await?;
            Ok(row.map(|row| big(&row, 0, "count")).transpose()?.unwrap_or(0))
        });
        if claim.is_empty() && over.await == until_all_are_over.load(Ordering::SeqCst) {
            return began;
        }
    }
}

#[tokio::test]
async fn whatever_becomes_of_connections_and_server_each_job_is_begun_once_and_ends_once() {
    const JOBS: i64 = 80;
    let Some(server) = PrivateServer::own() else { return };
    let settings = server.database().await;
    let fleet = PgFleet::open(&settings).await.expect("opened");
    for key in 0..JOBS / 2 {
        assert!(matches!(fleet.accept(&new_job(&key.to_string())).await, Ok(FleetAccept::Inserted(_))));
    }
    let mut hosts = JoinSet::new();
    for _ in 0..4 {
        hosts.spawn(insistent(settings.clone(), Arc::new(AtomicI64::new(JOBS))));
    }
    let ends = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let mut killed = 0;
    for key in JOBS / 2..JOBS {
        let new = new_job(&key.to_string());
        // Asked again, it is the same job.
        let accepted = insist(|| fleet.accept(&new)).await;
        assert!(
            matches!(accepted, FleetAccept::Inserted(job) | FleetAccept::Joined(job) if job == new.id),
            "{accepted:?}"
        );
        if key % 8 == 0 {
            killed += number_of(&fleet, ends).await;
        }
        if key == JOBS / 2 + 12 {
            server.kill_and_restart();
        }
    }
    let mut began = Vec::new();
    while let Some(host) = hosts.join_next().await {
        began.extend(host.expect("a host"));
    }
    assert!(killed > 0, "no connection was ended");
    let jobs: BTreeSet<_> = began.iter().collect();
    let over = i64::try_from(jobs.len()).expect("few");
    assert_eq!((over, began.len()), (JOBS, jobs.len()), "each once");
    let ended = "SELECT count(*) FROM phone_opus.job WHERE state = 'succeeded' AND outcome IS NOT NULL";
    assert_eq!(number_of(&fleet, ended).await, JOBS);
    assert_eq!(number_of(&fleet, "SELECT count(*) FROM phone_opus.late").await, 0);
}

fn expect_unsure(accepted: Result<FleetAccept, FleetError>) {
    assert!(matches!(&accepted, Err(FleetError::Unsure { detail }) if detail.contains("standby")), "{accepted:?}");
}

#[tokio::test]
async fn a_commit_that_no_standby_has_is_not_believed_until_one_has_it() {
    let Some(server) = PrivateServer::own() else { return };
    let settings = server.database().await;
    let fleet = PgFleet::open(&settings).await.expect("opened");
    let reload = "SELECT pg_reload_conf()";
    server.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    server.sql("postgres", reload).await;
    let waits = "DO $$ BEGIN LOOP PERFORM pg_stat_clear_snapshot();
                     EXIT WHEN EXISTS (SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep');
                     PERFORM pg_sleep(0.01); END LOOP; END $$";
    let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    // A setting is not in force at once: what is accepted before it is says nothing.
    let job = loop {
        let job = new_job(&FleetJobId::random().to_string());
        let mut accept = fleet.accept(&job);
        tokio::select! {
            accepted = &mut accept => assert_eq!(accepted, Ok(FleetAccept::Inserted(job.id))),
            () = server.sql("postgres", waits) => {
                server.sql("postgres", cancel).await;
                expect_unsure(accept.await);
                break job;
            }
        }
    };
    // It is there, and no more durable than before.
    let cancelled = async {
        server.sql("postgres", waits).await;
        server.sql("postgres", cancel).await;
    };
    let (accepted, ()) = tokio::join!(fleet.accept(&job), cancelled);
    expect_unsure(accepted);
    let released = async {
        server.sql("postgres", waits).await;
        server.sql("postgres", "ALTER SYSTEM RESET synchronous_standby_names").await;
        server.sql("postgres", reload).await;
    };
    let (accepted, ()) = tokio::join!(fleet.accept(&job), released);
    assert_eq!(accepted, Ok(FleetAccept::Joined(job.id)));
}

#[test]
fn a_database_off_this_machine_is_reached_by_verified_tls_or_not_at_all() {
    for (settings, is_socket) in [
        ("host=/run/postgresql user=a", true),
        ("postgresql:///fleet?host=/run/postgresql", true),
        ("host=/run/postgresql hostaddr=10.0.0.1", false),
        ("host=/run/postgresql,db.example user=a", false),
        ("user=a", false),
        ("host=db.example user=a sslmode=disable", false),
        ("postgres://a:secret@localhost/fleet?sslmode=prefer", false),
        ("host=db.example sslmode=nonsense password=secret", false),
        ("nonsense secret", false),
    ] {
        match Way::new(settings) {
            Ok(Way::Socket(config)) => {
                assert!(is_socket, "{settings}");
                assert_eq!(config.get_ssl_mode(), tokio_postgres::config::SslMode::Disable);
            }
            #[cfg(feature = "fleet")]
            Ok(Way::Proven(config, _)) => {
                assert!(settings.contains("db.example") || settings.contains("localhost"), "{settings}");
                assert_eq!(config.get_ssl_mode(), tokio_postgres::config::SslMode::Require, "{settings}");
            }
            Err(error) => {
                assert!(!is_socket, "{settings}: {error}");
                assert!(!error.to_string().contains("secret"), "{error}");
            }
        }
    }
}

#[test]
fn a_verb_that_takes_too_long_is_unsure_from_its_commit_on() {
    let fate = Fate::default();
    assert!(matches!(fate.overdue(), FleetError::Unavailable { .. }));
    let fault = FleetError::Unsure { detail: "x".into() }.fault();
    assert_eq!(fault.code, crate::base::fault::FaultCode::StoreUnavailable);
    assert!(fault.detail.contains("whether it was done: x"), "{}", fault.detail);
}

/// A server that proves to be `build.example` by an authority of the tests' own is spoken to by whoever believes that one.
#[cfg(feature = "fleet")]
#[tokio::test]
async fn a_server_of_another_machine_is_spoken_to_when_it_has_proven_who_it_is() {
    use tokio_postgres_rustls::MakeRustlsConnect;
    use tokio_rustls::rustls::pki_types::CertificateDer;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let files: [(&str, &[u8]); 2] = [
        ("server.pem", include_bytes!("../../exec/transport/tls_tests/server.pem")),
        ("server.key", include_bytes!("../../exec/transport/tls_tests/server.key")),
    ];
    let settings =
        ["listen_addresses=127.0.0.1", "ssl=on", "ssl_cert_file=../server.pem", "ssl_key_file=../server.key"];
    let settings: Vec<String> = settings.map(str::to_owned).into_iter().chain([format!("port={port}")]).collect();
    let Some(server) = PrivateServer::with(&files, &settings) else { return };
    let by_socket = format!("host={} port={port} user=fleet dbname=postgres", server.dir().display());
    drop(insist(|| PgFleet::open(&by_socket)).await);
    let believing = |is_believed: bool| {
        let mut roots = RootCertStore::empty();
        if is_believed {
            let authority = include_bytes!("../../exec/transport/tls_tests/authority.pem");
            roots.add(CertificateDer::from_pem_slice(authority).expect("a certificate")).expect("an authority");
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().expect("versions");
        MakeRustlsConnect::new(config.with_root_certificates(roots).with_no_client_auth())
    };
    for (host, is_believed, is_opened) in [
        ("build.example", true, true),
        ("other.example", true, false),
        ("127.0.0.1", true, false),
        ("build.example", false, false),
    ] {
        let settings = format!("host={host} hostaddr=127.0.0.1 port={port} user=fleet dbname=postgres");
        let mut config: tokio_postgres::Config = settings.parse().expect("settings");
        config.ssl_mode(tokio_postgres::config::SslMode::Require);
        let opened = PgFleet::open_by(Way::Proven(Box::new(config), believing(is_believed)), schema::known()).await;
        assert_eq!(opened.is_ok(), is_opened, "{host}, {is_believed}: {opened:?}");
        if let Err(error) = opened {
            assert!(error.to_string().contains("TLS"), "{error}");
            continue;
        }
        let tls = number_of(
            &opened.expect("opened"),
            "SELECT count(*) FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl",
        )
        .await;
        assert_eq!(tls, 1);
    }
}
