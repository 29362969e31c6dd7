//! What people are shown of a fleet in a real database, and what a look at the database finds.
//!
//! Owns: nothing but the tests. Laws: L13.

use super::*;
use crate::fleet::people::CapSeen;

#[tokio::test]
async fn people_see_hosts_jobs_caps_and_limits_and_nothing_of_what_was_asked() {
    let Some(server) = PrivateServer::shared() else { return };
    let fleet = PgFleet::open(&server.database().await).await.expect("opened");
    let empty = fleet.seen().await.expect("seen");
    assert_eq!((empty.tables, empty.hosts.len(), empty.oldest_s, empty.quiet_s), (schema::known(), 0, None, None));
    assert!(empty.jobs.values().all(|jobs| *jobs == 0) && empty.jobs.len() == FleetState::ALL.len(), "{empty:?}");

    let (host, other, gone) = (HostId::random(), HostId::random(), HostId::random());
    let named = |host, name: &str| Renewal { name: name.into(), ..renewal(host, 4) };
    for (host, name) in [(host, "a box"), (other, "b"), (gone, "a box")] {
        let _ = fleet.renew(&named(host, name)).await.expect("renewed");
    }
    for key in 0..6 {
        let account = if key == 0 { "a1" } else { "" };
        let new = job(FleetJobId::random(), "path:s:/w", &key.to_string(), account, 1000);
        assert_eq!(fleet.accept(&new).await, Ok(FleetAccept::Inserted(new.id)));
    }
    let given_to_gone = given(fleet.claim(&asked(gone, 1)).await.expect("claimed"));
    assert_eq!(fleet.start(given_to_gone[0].ticket).await, Ok(FleetStart::Started));
    statements(&fleet, &format!("UPDATE phone_opus.host SET lease_until = '-infinity' WHERE host = '{gone}'")).await;
    assert_eq!(fleet.sweep().await.expect("swept").interrupted.len(), 1);
    let tickets: Vec<Ticket> =
        given(fleet.claim(&asked(host, 2)).await.expect("claimed")).iter().map(|job| job.ticket).collect();
    assert_eq!(fleet.start(tickets[0]).await, Ok(FleetStart::Started));
    let lasts = Duration::from_secs(600);
    let pause = FleetPause { scope: CapScope::Account("a1".into()), lasts, why: "limit".into() };
    let finish = RunFinish { pause: Some(pause), ..finished(tickets[0]) };
    assert_eq!(fleet.finish(&finish).await, Ok(FleetFinish::Finished));
    fleet.set_cap(&CapScope::Fleet, Some(5)).await.expect("set");
    fleet.set_cap(&CapScope::Host("a box".into()), Some(9)).await.expect("set");

    // One machine's processes that live are drained together.
    assert_eq!(fleet.set_drained_named("a box", true).await, Ok(vec![host]));
    assert_eq!(fleet.set_drained_named(&other.to_string(), true).await, Ok(vec![other]));
    assert_eq!(fleet.set_drained_named("b", false).await, Ok(vec![other]));
    assert_eq!(fleet.set_drained_named("nobody", true).await, Ok(Vec::new()));
    let seen = fleet.seen().await.expect("seen");
    let hosts: Vec<_> =
        seen.hosts.iter().map(|host| (host.name.as_str(), host.standing(), host.jobs, host.slots)).collect();
    assert_eq!(hosts, [("a box", "drained", 1, 4), ("b", "lives", 0, 4), ("a box", "gone", 0, 4)]);
    assert_eq!(seen.hosts[0].owner, "fleet");
    assert!(seen.hosts[0].agents == ["claude"] && seen.hosts[0].tags == ["big"], "{:?}", seen.hosts[0]);
    let states = |state: &str| seen.jobs[state];
    assert_eq!((states("queued"), states("claimed"), states("succeeded"), states("interrupted")), (3, 1, 1, 1));
    assert_eq!((seen.held, seen.unread, seen.more), (1, 0, false));
    let caps = [("fleet", 5, 2), ("host:a box", 9, 2)];
    let caps = caps.map(|(scope, cap, used)| CapSeen { scope: scope.to_owned(), cap, used });
    assert_eq!(seen.caps, caps, "what is held counts");
    assert!(seen.pauses.len() == 1 && (500..=600).contains(&seen.pauses[0].left_s), "{:?}", seen.pauses);
    assert!(!serde_json::to_string(&seen).expect("JSON").contains("prompt"), "{seen:?}");

    // What somebody else wrote is counted and not shown.
    statements(&fleet, "UPDATE phone_opus.host SET labels = 'nonsense' WHERE name = 'b'; INSERT INTO phone_opus.cap VALUES ('x:y', 1), ('agent:a', -1)")
        .await;
    let seen = fleet.seen().await.expect("seen");
    assert_eq!((seen.hosts.len(), seen.unread), (2, 3));
}

/// What is found beside what is good.
async fn found(settings: &str) -> Vec<(&'static str, Option<bool>)> {
    let exam = PgFleet::examine(settings).await.expect("looked at");
    assert_eq!(exam.settings.len(), crate::fleet::people::SETTINGS.len(), "{exam:?}");
    exam.findings()
        .into_iter()
        .filter(|finding| finding.good != Some(true))
        .map(|finding| (finding.check, finding.good))
        .collect()
}

#[tokio::test]
async fn a_look_at_a_database_finds_what_is_wrong_with_it() {
    // A server whose files are thrown away.
    const ALWAYS: [(&str, Option<bool>); 2] = [("commit", Some(false)), ("rights", None)];
    let Some(server) = PrivateServer::own() else { return };
    let settings = server.database().await;
    let database = settings.rsplit('=').next().expect("a name").to_owned();
    let before = PgFleet::examine(&settings).await.expect("looked at");
    assert_eq!((before.tables, before.by_socket, before.hears, before.pooled), (0, true, true, false));
    assert!(before.clock_ms.abs() < 2_000, "{before:?}");
    drop(PgFleet::open(&settings).await.expect("opened"));
    assert_eq!(PgFleet::examine(&settings).await.expect("looked at").tables, schema::known());
    assert_eq!(found(&settings).await, ALWAYS);

    let log = format!("ALTER DATABASE {database} SET log_min_duration_statement = 250");
    server.sql("postgres", &log).await;
    assert_eq!(found(&settings).await, [ALWAYS[0], ("log", Some(false)), ALWAYS[1]]);
    server.sql("postgres", &format!("ALTER DATABASE {database} SET log_parameter_max_length = 0")).await;
    assert_eq!(found(&settings).await, ALWAYS);

    server
        .sql(
            &database,
            "CREATE ROLE anna LOGIN; GRANT USAGE ON SCHEMA phone_opus TO anna; GRANT SELECT ON phone_opus.meta TO anna",
        )
        .await;
    let anna = settings.replace("user=fleet", "user=anna");
    assert_eq!(found(&anna).await, [ALWAYS[0]]);
    let Some(pooler) = pooler::Pooler::before(&server) else { return };
    let through = pooler.settings(&settings);
    insist(|| PgFleet::examine(&through)).await;
    let deaf = found(&through).await;
    assert!(deaf.contains(&("listen", None)) && deaf.contains(&("pooler", None)), "{deaf:?}");
    let nobody = settings.replace("host=/", "host=/nowhere/");
    assert!(matches!(PgFleet::examine(&nobody).await, Err(FleetError::Unavailable { .. })));
}
