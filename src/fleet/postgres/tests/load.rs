//! Many hosts at one database: caps with jobs that are held, turns between workspaces, connections that are ended all the time, and a
//! database whose clock is another one's.
//!
//! Owns: nothing but the tests. Laws: L3, L9, L19.

use super::*;

/// Seconds for which connections are ended, one time a second (`.ci/long fleet-backend`).
const SECONDS_VARIABLE: &str = "PHONE_OPUS_FLEET_PG_SECONDS";
const SECONDS: u64 = 3;

#[tokio::test]
async fn jobs_of_a_lost_host_count_against_caps_until_it_is_known_that_they_ended() {
    let Some(server) = PrivateServer::shared() else { return };
    let settings = server.database().await;
    let fleet = PgFleet::open(&settings).await.expect("opened");
    fleet.set_cap(&CapScope::Fleet, Some(3)).await.expect("set");
    let gone = HostId::random();
    let _ = fleet.renew(&renewal(gone, 4)).await.expect("renewed");
    for key in 0..12 {
        let new = job(FleetJobId::random(), &format!("path:s:/w{key}"), &key.to_string(), "", 1000);
        assert_eq!(fleet.accept(&new).await, Ok(FleetAccept::Inserted(new.id)));
    }
    let mut held = Vec::new();
    for job in given(fleet.claim(&asked(gone, 2)).await.expect("claimed")) {
        assert_eq!(fleet.start(job.ticket).await, Ok(FleetStart::Started));
        held.push(job.ticket);
    }
    statements(&fleet, "UPDATE phone_opus.host SET lease_until = '-infinity'").await;
    assert_eq!(fleet.sweep().await.expect("swept").interrupted.len(), 2);

    // Two of three places are held: ten hosts that ask at once get one job.
    let counted =
        "SELECT count(*) FROM phone_opus.job WHERE state IN ('claimed', 'running') OR hold_until > clock_timestamp()";
    let ask_all = async || {
        let mut hosts = JoinSet::new();
        for _ in 0..10 {
            let settings = settings.clone();
            hosts.spawn(async move {
                let fleet = PgFleet::open(&settings).await.expect("opened");
                let host = HostId::random();
                let _ = fleet.renew(&renewal(host, 4)).await.expect("renewed");
                given(fleet.claim(&asked(host, 4)).await.expect("claimed"))
            });
        }
        hosts.join_all().await.concat()
    };
    let first = ask_all().await;
    assert_eq!((first.len(), number_of(&fleet, counted).await), (1, 3));
    assert_eq!(ask_all().await, []);
    // One of them tells of its end after all, and another one's time is over.
    assert!(matches!(fleet.finish(&finished(held[0])).await, Ok(FleetFinish::Late { .. })));
    let second = ask_all().await;
    assert_eq!((second.len(), number_of(&fleet, counted).await), (1, 3));
    let over = format!("UPDATE phone_opus.job SET hold_until = clock_timestamp() WHERE id = '{}'", held[1].job);
    statements(&fleet, &over).await;
    let third = ask_all().await;
    assert_eq!((third.len(), number_of(&fleet, counted).await), (1, 3));
}

#[tokio::test]
async fn one_workspace_with_two_hundred_jobs_keeps_nine_others_waiting_for_a_turn_at_most() {
    let Some(server) = PrivateServer::shared() else { return };
    let fleet = PgFleet::open(&server.database().await).await.expect("opened");
    let accept = async |workspace: &str, key: usize| {
        let new = job(FleetJobId::random(), workspace, &key.to_string(), "", 1000);
        assert_eq!(fleet.accept(&new).await, Ok(FleetAccept::Inserted(new.id)));
    };
    for key in 0..200 {
        accept("path:s:/many", key).await;
    }
    let host = HostId::random();
    let _ = fleet.renew(&renewal(host, 1)).await.expect("renewed");
    let next = async || {
        let job = given(fleet.claim(&asked(host, 1)).await.expect("claimed")).remove(0);
        assert_eq!(fleet.start(job.ticket).await, Ok(FleetStart::Started));
        assert_eq!(fleet.finish(&finished(job.ticket)).await, Ok(FleetFinish::Finished));
        job.workspace
    };
    // The large one has had a few turns before the others come.
    for _ in 0..5 {
        assert_eq!(next().await, "path:s:/many");
    }
    for other in 0..9 {
        accept(&format!("path:s:/one{other}"), 0).await;
    }
    let began = Clock::now();
    let mut served = Vec::new();
    while served.iter().filter(|workspace: &&String| workspace.as_str() != "path:s:/many").count() < 9 {
        assert!(served.len() < 20, "{served:?}");
        served.push(next().await);
    }
    let waits: Vec<usize> = served
        .iter()
        .enumerate()
        .filter_map(|(at, workspace)| (workspace != "path:s:/many").then_some(at + 1))
        .collect();
    println!("nine were served as numbers {waits:?} of {}, the last after {:?}", served.len(), began.elapsed());
    assert!(served.len() <= 10, "each workspace has one turn before any has two: {waits:?}");
}

#[tokio::test]
async fn connections_that_are_ended_every_second_under_load_cost_no_job_and_double_none() {
    let seconds = std::env::var(SECONDS_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    let Some(server) = PrivateServer::own() else { return };
    let settings = server.database().await;
    let fleet = PgFleet::open(&settings).await.expect("opened");
    let until = Clock::now() + Duration::from_secs(seconds);
    let ending = async {
        let ends = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                    WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let (mut ended, mut every) = (0, tokio::time::interval(Duration::from_secs(1)));
        every.tick().await;
        while Clock::now() < until {
            every.tick().await;
            let other = insist(|| PgFleet::open(&settings)).await;
            ended += number_of(&other, ends).await;
        }
        ended
    };
    // Hosts that work until the last job is over; who asks insists as well.
    let asking = async {
        let mut jobs = 0_i64;
        while Clock::now() < until {
            let new = new_job(&jobs.to_string());
            let accepted = insist(|| fleet.accept(&new)).await;
            if matches!(accepted, FleetAccept::QueueFull { .. }) {
                // Whoever asks faster than hosts work is refused, and asks again.
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
            assert!(
                matches!(accepted, FleetAccept::Inserted(job) | FleetAccept::Joined(job) if job == new.id),
                "{accepted:?}"
            );
            jobs += 1;
        }
        jobs
    };
    let mut hosts = JoinSet::new();
    let done = Arc::new(AtomicI64::new(i64::MAX));
    for _ in 0..4 {
        hosts.spawn(insistent(settings.clone(), Arc::clone(&done)));
    }
    let (ended, jobs) = tokio::join!(ending, asking);
    done.store(jobs, Ordering::SeqCst);
    let began: Vec<FleetJobId> = hosts.join_all().await.concat();
    let each: BTreeSet<_> = began.iter().collect();
    println!("{jobs} jobs in {seconds} s, {ended} connections ended");
    assert!(ended > 0, "no connection was ended");
    assert_eq!((i64::try_from(each.len()).expect("few"), began.len()), (jobs, each.len()), "each once");
    let over = "SELECT count(*) FROM phone_opus.job WHERE state = 'succeeded' AND outcome IS NOT NULL";
    assert_eq!(number_of(&fleet, over).await, jobs);
    assert_eq!(number_of(&fleet, "SELECT count(*) FROM phone_opus.late").await, 0);
}

/// Nothing here takes a host's clock, so the one that can be wrong is moved: that of the database.
#[tokio::test]
async fn a_clock_that_is_an_hour_off_ends_no_lease_and_takes_no_job() {
    let Some(server) = PrivateServer::shared() else { return };
    for hours in [-1, 1] {
        let settings = server.database().await;
        let database = settings.rsplit('=').next().expect("a name").to_owned();
        let shift = format!(
            "CREATE SCHEMA shifted;
             CREATE FUNCTION shifted.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
                 AS $$ SELECT pg_catalog.clock_timestamp() + interval '{hours} hours' $$;
             ALTER DATABASE {database} SET search_path = shifted, pg_catalog"
        );
        server.sql(&database, &shift).await;
        let fleet = PgFleet::open(&settings).await.expect("opened");
        let off = "SELECT (extract(epoch FROM clock_timestamp() - pg_catalog.clock_timestamp()) / 3600)::int8";
        assert_eq!(number_of(&fleet, off).await, hours, "the clock is moved");
        let host = HostId::random();
        let _ = fleet.renew(&renewal(host, 4)).await.expect("renewed");
        let (new, other) = (new_job("one"), new_job("two"));
        for new in [&new, &other] {
            assert_eq!(fleet.accept(new).await, Ok(FleetAccept::Inserted(new.id)));
        }
        let lease = "SELECT extract(epoch FROM lease_until - clock_timestamp())::int8 FROM phone_opus.host";
        let left = number_of(&fleet, lease).await;
        assert!((50..=60).contains(&left), "{hours}: {left} s are left of a lease");
        let ticket = given(fleet.claim(&asked(host, 1)).await.expect("claimed"))[0].ticket;
        assert_eq!(fleet.sweep().await, Ok(FleetSwept::default()), "{hours}: it lives, and nobody waited too long");
        assert_eq!(fleet.start(ticket).await, Ok(FleetStart::Started));
        assert_eq!(fleet.sweep().await, Ok(FleetSwept::default()));
        assert_eq!(fleet.finish(&finished(ticket)).await, Ok(FleetFinish::Finished));
        assert_eq!(
            fleet.wait(new.id, PATIENCE).await.expect("looked").map(|view| view.state),
            Some(FleetState::Succeeded)
        );
        // A lease is over by the same clock.
        statements(&fleet, "UPDATE phone_opus.host SET lease_until = clock_timestamp() - interval '1 second'").await;
        assert_eq!(fleet.claim(&asked(host, 1)).await, Ok(FleetClaim::NotNow(ClaimRefusal::LeaseOver)));
    }
}
