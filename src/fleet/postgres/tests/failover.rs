//! A server that dies and another one that goes on in its place, as fail-over pairs do.
//!
//! Owns: the pair. What the survivor lacks is noticed and said (asynchronous standby); what was confirmed it has (synchronous one).
//! Laws: L3, L4, L19.

use super::*;

/// How often the server with a synchronous standby is killed (`.ci/long fleet-backend`).
const FAILOVERS_VARIABLE: &str = "PHONE_OPUS_FLEET_FAILOVERS";

/// A database on a pair: where hosts find whichever of the two serves, and the two.
async fn pair() -> Option<(String, PrivateServer, PrivateServer)> {
    let primary = PrivateServer::own()?;
    let database = primary.database().await;
    let name = database.rsplit('=').next().expect("a name").to_owned();
    let standby = PrivateServer::standby_of(&primary);
    let both = format!("host={},{} user=fleet dbname={name}", primary.dir().display(), standby.dir().display());
    Some((both, primary, standby))
}

/// Until the standby has what the primary has written by now. How far it has applied it is said every ten seconds only.
const CAUGHT_UP: &str =
    "DO $$ DECLARE written pg_lsn := pg_current_wal_flush_lsn(); BEGIN LOOP PERFORM pg_stat_clear_snapshot();
    EXIT WHEN EXISTS (SELECT 1 FROM pg_stat_replication WHERE flush_lsn >= written AND state = 'streaming');
    PERFORM pg_sleep(0.01); END LOOP; END $$";

async fn promote(primary: &PrivateServer, standby: &PrivateServer) {
    primary.kill();
    standby.sql("postgres", "SELECT pg_promote(true)").await;
}

#[tokio::test]
async fn what_an_asynchronous_standby_had_not_got_is_missed_and_said_and_runs_no_second_time() {
    let Some((both, primary, standby)) = pair().await else { return };
    let fleet = PgFleet::open(&both).await.expect("opened");
    let host = HostId::random();
    let _ = fleet.renew(&renewal(host, 4)).await.expect("renewed");
    let (kept, lost, waiting) = (new_job("kept"), new_job("lost"), new_job("waiting"));
    let begin = async |new: &NewFleetJob| {
        assert_eq!(fleet.accept(new).await, Ok(FleetAccept::Inserted(new.id)));
        let ticket = given(fleet.claim(&asked(host, 1)).await.expect("claimed"))[0].ticket;
        assert_eq!(fleet.start(ticket).await, Ok(FleetStart::Started));
        ticket
    };
    let kept_ticket = begin(&kept).await;
    primary.sql("postgres", CAUGHT_UP).await;
    standby.kill();
    let lost_ticket = begin(&lost).await;
    assert_eq!(fleet.accept(&waiting).await, Ok(FleetAccept::Inserted(waiting.id)));
    primary.kill();
    standby.begin_again();
    standby.sql("postgres", "SELECT pg_promote(true)").await;

    // It is said: to whoever claims, to whoever sweeps, to whoever waits.
    let ask = asked(host, 4);
    assert_eq!(insist(|| fleet.claim(&ask)).await, FleetClaim::NotNow(ClaimRefusal::Quiet));
    assert!(fleet.sweep().await.expect("swept").quiet);
    assert_eq!(fleet.wait(waiting.id, Duration::ZERO).await, Ok(None), "it was accepted, and nobody knows of it");
    assert_eq!(fleet.wait(lost.id, Duration::ZERO).await, Ok(None));
    // Who asked for them asks again, and hears that they are new.
    for new in [&lost, &waiting] {
        assert_eq!(fleet.accept(new).await, Ok(FleetAccept::Inserted(new.id)));
    }
    let said = Renewal { running: vec![kept_ticket, lost_ticket], ..renewal(host, 4) };
    assert_eq!(
        fleet.renew(&said).await,
        Ok(FleetRenewed { drained: false, quiet: true, reasserted: 1, lease: FleetLease::default() })
    );
    pass(&fleet).await;
    pass(&fleet).await;
    assert!(!fleet.renew(&said).await.expect("renewed").quiet);
    let next = given(fleet.claim(&asked(host, 4)).await.expect("claimed"));
    assert_eq!(next.iter().map(|job| job.ticket.job).collect::<Vec<_>>(), [waiting.id], "what runs is given to nobody");
    assert!(next[0].ticket.fence > lost_ticket.fence, "no fence is drawn twice");
    for ticket in [kept_ticket, lost_ticket] {
        assert_eq!(fleet.finish(&finished(ticket)).await, Ok(FleetFinish::Finished));
    }
}

#[tokio::test]
async fn an_outcome_of_a_job_that_was_lost_with_its_server_is_kept() {
    let Some((both, primary, standby)) = pair().await else { return };
    let fleet = PgFleet::open(&both).await.expect("opened");
    let host = HostId::random();
    let _ = fleet.renew(&renewal(host, 4)).await.expect("renewed");
    primary.sql("postgres", CAUGHT_UP).await;
    standby.kill();
    let new = new_job("lost");
    assert_eq!(fleet.accept(&new).await, Ok(FleetAccept::Inserted(new.id)));
    let ticket = given(fleet.claim(&asked(host, 1)).await.expect("claimed"))[0].ticket;
    assert_eq!(fleet.start(ticket).await, Ok(FleetStart::Started));
    primary.kill();
    standby.begin_again();
    standby.sql("postgres", "SELECT pg_promote(true)").await;
    // Nobody asks again in time; the run ends.
    let finish = finished(ticket);
    assert_eq!(insist(|| fleet.finish(&finish)).await, FleetFinish::NoJob);
    assert_eq!(number_of(&fleet, "SELECT count(*) FROM phone_opus.late").await, 1);
}

/// What was confirmed by then. Ends with the first verb that is not.
async fn confirmed_until_the_end(fleet: &PgFleet, host: HostId) -> (Vec<FleetJobId>, Vec<Ticket>) {
    let (mut accepted, mut started) = (Vec::new(), Vec::new());
    let _ = fleet.renew(&renewal(host, 100)).await;
    loop {
        let new = new_job(&FleetJobId::random().to_string());
        match fleet.accept(&new).await {
            Ok(FleetAccept::Inserted(job)) => accepted.push(job),
            _ => return (accepted, started),
        }
        let Ok(FleetClaim::Claimed(given)) = fleet.claim(&asked(host, 1)).await else { return (accepted, started) };
        for job in given {
            match fleet.start(job.ticket).await {
                Ok(FleetStart::Started) => started.push(job.ticket),
                _ => return (accepted, started),
            }
        }
    }
}

#[tokio::test]
async fn what_was_confirmed_with_a_synchronous_standby_outlives_the_server() {
    let rounds = std::env::var(FAILOVERS_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    for round in 0..rounds {
        if one_failover(12 + 5 * round).await.is_none() {
            return;
        }
    }
}

/// Kills the server when so many jobs run. `None` where there is no PostgreSQL.
async fn one_failover(when_running: i64) -> Option<()> {
    let (both, primary, standby) = pair().await?;
    // From here on a confirmation waits for the standby.
    primary.sql("postgres", CAUGHT_UP).await;
    primary.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    primary.sql("postgres", "SELECT pg_reload_conf()").await;
    let is_sync = "DO $$ BEGIN LOOP PERFORM pg_stat_clear_snapshot();
        EXIT WHEN EXISTS (SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'); PERFORM pg_sleep(0.01); END LOOP; END $$";
    primary.sql("postgres", is_sync).await;
    let host = HostId::random();
    let fleet = PgFleet::open(&both).await.expect("opened");
    // While it works, the server is killed: nothing is awaited between the last confirmation and that.
    let killed = async {
        let observer = PgFleet::open(&both).await.expect("opened");
        loop {
            let running = "SELECT count(*) FROM phone_opus.job WHERE state = 'running'";
            if number_of(&observer, running).await >= when_running {
                break;
            }
        }
        promote(&primary, &standby).await;
    };
    let ((accepted, started), ()) = tokio::join!(confirmed_until_the_end(&fleet, host), killed);
    let least = usize::try_from(when_running).expect("few") - 1;
    assert!(accepted.len() >= least && started.len() >= least, "{} and {}", accepted.len(), started.len());

    let survivor = insist(|| PgFleet::open(&both)).await;
    for job in &accepted {
        assert!(survivor.wait(*job, Duration::ZERO).await.expect("looked").is_some(), "{job} was accepted and is lost");
    }
    for ticket in &started {
        assert_eq!(survivor.start(*ticket).await, Ok(FleetStart::Started), "{ticket:?} was started and is not");
        assert_eq!(survivor.finish(&finished(*ticket)).await, Ok(FleetFinish::Finished));
    }
    assert_eq!(survivor.claim(&asked(host, 4)).await, Ok(FleetClaim::NotNow(ClaimRefusal::Quiet)), "that is said too");
    Some(())
}
