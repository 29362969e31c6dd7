//! What is above a job in its caller's trace: that it travels with the job, and never costs one.
//!
//! Laws: L10, L19.

use super::*;
use crate::base::trace::TraceContext;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn traced(key: &str) -> NewFleetJob {
    let trace = TraceContext::parse(PARENT).map(|context| context.with_state("vendor=1"));
    NewFleetJob { trace, ..new_job(key) }
}

/// The trace of the one job that waits.
async fn claimed(fleet: &PgFleet, host: HostId) -> Option<(String, Option<String>)> {
    let mut given = given(fleet.claim(&asked(host, 9)).await.expect("claimed"));
    let only = given.pop().expect("a job");
    assert!(given.is_empty());
    only.trace.map(|trace| (trace.traceparent(), trace.state))
}

#[tokio::test]
async fn what_is_above_a_job_travels_with_it_and_what_somebody_else_wrote_there_is_none() {
    let Some(server) = PrivateServer::shared() else { return };
    let fleet = PgFleet::open(&server.database().await).await.expect("opened");
    let host = HostId::random();
    let _ = fleet.renew(&renewal(host, 99)).await.expect("renewed");
    let whole = Some((PARENT.to_owned(), Some("vendor=1".to_owned())));
    let alone = Some((PARENT.to_owned(), None));
    let rows = [
        ("traceparent = traceparent", whole.clone()),
        ("traceparent = NULL", None),
        ("traceparent = 'nonsense'", None),
        ("traceparent = upper(traceparent)", None),
        ("traceparent = repeat('0', 1000000)", None),
        ("traceparent = overlay(traceparent placing repeat('0', 32) from 4)", None),
        ("tracestate = NULL", alone.clone()),
        ("tracestate = E'a=\\x1b[2J'", alone.clone()),
        ("tracestate = 'a=' || repeat('b', 1000000)", alone),
    ];
    for (at, (change, found)) in rows.into_iter().enumerate() {
        let job = traced(&at.to_string());
        assert_eq!(fleet.accept(&job).await, Ok(FleetAccept::Inserted(job.id)));
        statements(&fleet, &format!("UPDATE phone_opus.job SET {change} WHERE id = '{}'", job.id)).await;
        assert_eq!(claimed(&fleet, host).await, found, "{change}");
    }
    // Who asks again is in another trace, or in none, and asks for the same.
    let (first, again) = (traced("again"), new_job("again"));
    assert_eq!(fleet.accept(&first).await, Ok(FleetAccept::Inserted(first.id)));
    assert_eq!(fleet.accept(&again).await, Ok(FleetAccept::Joined(first.id)));
    assert_eq!(claimed(&fleet, host).await, whole);
}

#[tokio::test]
async fn rights_and_tables_from_before_there_were_traces_cost_the_trace_and_no_job() {
    let Some((server, owner, [anna])) = roles::with_users(["anna"], false).await else { return };
    let database = owner.rsplit('=').next().expect("a name").to_owned();
    let revoke = "REVOKE INSERT (traceparent, tracestate) ON phone_opus.job FROM phone_opus_host";
    server.sql(&database, revoke).await;
    let (hers, host) = (PgFleet::open(&anna).await.expect("opened"), HostId::random());
    let _ = hers.renew(&renewal(host, 9)).await.expect("renewed");
    assert!(matches!(hers.accept(&traced("hers")).await, Ok(FleetAccept::Inserted(_))));
    assert_eq!(claimed(&hers, host).await, None);
    let old = PgFleet::open_at(&server.database().await, 4).await.expect("opened");
    assert!(matches!(old.accept(&traced("old")).await, Ok(FleetAccept::Inserted(_))));
}
