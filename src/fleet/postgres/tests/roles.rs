//! What the role of `packaging/fleet-role.sql` may do and what it may not, and what users that are kept apart see of each other.
//!
//! Owns: the servers with the scripts run, the table of statements. Laws: L3, L13, L19.

use super::*;

const ROLE: &str = include_str!("../../../../packaging/fleet-role.sql");
const USERS: &str = include_str!("../../../../packaging/fleet-users.sql");

/// A server of its own, because roles are the whole server's; the settings of its owner and of each of these users, members of the role.
pub(super) async fn with_users<const N: usize>(
    users: [&str; N],
    apart: bool,
) -> Option<(PrivateServer, String, [String; N])> {
    let server = PrivateServer::own()?;
    let owner = server.database().await;
    let database = owner.rsplit('=').next().expect("a name").to_owned();
    drop(PgFleet::open(&owner).await.expect("the tables are made"));
    for _ in 0..2 {
        server.sql(&database, ROLE).await;
    }
    for user in users {
        server.sql(&database, &format!("CREATE ROLE {user} LOGIN IN ROLE phone_opus_host")).await;
    }
    if apart {
        for _ in 0..2 {
            server.sql(&database, USERS).await;
        }
    }
    let settings = users.map(|user| owner.replace("user=fleet", &format!("user={user}")));
    Some((server, owner, settings))
}

/// Everything a host does, from the first connection to the last sweep.
async fn live_a_day(settings: &str, key: &str) {
    let fleet = PgFleet::open(settings).await.expect("opened");
    let host = HostId::random();
    assert_eq!(fleet.renew(&renewal(host, 4)).await.map(|renewed| renewed.quiet), Ok(false));
    let (first, second) = (new_job(&format!("{key} 1")), new_job(&format!("{key} 2")));
    for new in [&first, &second] {
        assert_eq!(fleet.accept(new).await, Ok(FleetAccept::Inserted(new.id)));
        assert_eq!(fleet.accept(new).await, Ok(FleetAccept::Joined(new.id)));
    }
    let mut other = first.clone();
    other.request.prompt.push('!');
    assert_eq!(fleet.accept(&other).await, Ok(FleetAccept::Conflict(first.id)));
    let given = given(fleet.claim(&asked(host, 4)).await.expect("claimed"));
    assert_eq!(given.iter().map(|job| job.ticket.job).collect::<Vec<_>>(), [first.id, second.id]);
    assert_eq!(fleet.cancel(second.id).await, Ok(FleetCancel::Ended));
    assert_eq!(fleet.start(given[0].ticket).await, Ok(FleetStart::Started));
    assert_eq!(fleet.cancel(first.id).await, Ok(FleetCancel::Asked));
    let lasts = Duration::from_secs(60);
    let pause = FleetPause { scope: CapScope::Account(key.to_owned()), lasts, why: "limit".into() };
    let finish = RunFinish { pause: Some(pause), ..finished(given[0].ticket) };
    assert_eq!(fleet.finish(&finish).await, Ok(FleetFinish::Finished));
    let late = finished(given[1].ticket);
    assert_eq!(fleet.finish(&late).await, Ok(FleetFinish::Late { state: FleetState::Cancelled }));
    assert_eq!(fleet.finish(&late).await, Ok(FleetFinish::Late { state: FleetState::Cancelled }), "asked again");
    let view = fleet.wait(second.id, Duration::ZERO).await.expect("looked").expect("a job");
    assert_eq!((view.state, view.late.len()), (FleetState::Cancelled, 1));
    assert_eq!(fleet.sweep().await, Ok(FleetSwept::default()));
    // Others may be heard.
    let mut rings = fleet.rings();
    assert!(matches!(tokio::time::timeout(PATIENCE, rings.changed()).await, Ok(Ok(()))));
}

#[tokio::test]
async fn a_user_with_the_hosts_role_does_what_hosts_do_through_changes_of_history_too() {
    let Some((_server, owner, [anna])) = with_users(["anna"], false).await else { return };
    live_a_day(&anna, "first").await;
    let fleet = PgFleet::open(&owner).await.expect("opened");
    let before = number_of(&fleet, "SELECT last_value FROM phone_opus.fence").await;
    statements(&fleet, "UPDATE phone_opus.meta SET system_id = '1'").await;
    let hers = PgFleet::open(&anna).await.expect("opened");
    assert!(hers.sweep().await.expect("swept").quiet, "she notices it");
    assert!(number_of(&fleet, "SELECT last_value FROM phone_opus.fence").await >= before + FENCE_JUMP);
    statements(&fleet, "UPDATE phone_opus.meta SET quiet_until = NULL").await;
    live_a_day(&anna, "second").await;
}

/// Statements, and whether a host's role may have them done.
const STATEMENTS: &[(&str, bool)] = &[
    ("SELECT state FROM phone_opus.job", true),
    ("UPDATE phone_opus.job SET cancel = clock_timestamp()", true),
    ("LISTEN phone_opus_fleet", true),
    ("SELECT pg_advisory_xact_lock(1)", true),
    ("SELECT * FROM phone_opus.cap", true),
    ("UPDATE phone_opus.job SET request = '{}'", false),
    ("UPDATE phone_opus.job SET owner = session_user", false),
    ("UPDATE phone_opus.job SET workspace = 'elsewhere'", false),
    ("UPDATE phone_opus.job SET account = ''", false),
    ("UPDATE phone_opus.job SET timeout_s = 1", false),
    ("UPDATE phone_opus.job SET turn = 0", false),
    ("TRUNCATE phone_opus.job", false),
    ("DROP TABLE phone_opus.job", false),
    ("ALTER TABLE phone_opus.job ADD COLUMN novelty text", false),
    ("ALTER TABLE phone_opus.job DISABLE ROW LEVEL SECURITY", false),
    ("CREATE TABLE phone_opus.novelty (a int)", false),
    ("CREATE FUNCTION phone_opus.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", false),
    (
        "CREATE TRIGGER t BEFORE UPDATE ON phone_opus.job FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        false,
    ),
    ("INSERT INTO phone_opus.cap (scope, n) VALUES ('fleet', 1000)", false),
    ("UPDATE phone_opus.cap SET n = 1000", false),
    ("DELETE FROM phone_opus.cap", false),
    ("UPDATE phone_opus.host SET drained = false", false),
    ("UPDATE phone_opus.host SET host = gen_random_uuid()", false),
    ("UPDATE phone_opus.host SET owner = session_user", false),
    ("UPDATE phone_opus.meta SET version = 1000", false),
    ("UPDATE phone_opus.meta SET least = 1000", false),
    ("UPDATE phone_opus.meta SET lease_ms = 1000", false),
    ("DELETE FROM phone_opus.meta", false),
    ("UPDATE phone_opus.late SET outcome = '{}'", false),
    ("SELECT setval('phone_opus.fence', 1)", false),
    ("ALTER SEQUENCE phone_opus.fence RESTART", false),
    ("INSERT INTO phone_opus.share (owner, with_user) VALUES ('fleet', 'anna')", false),
    ("UPDATE phone_opus.share SET with_user = 'anna'", false),
    ("COPY phone_opus.job TO PROGRAM 'true'", false),
    ("CREATE ROLE friend", false),
    ("GRANT phone_opus_operator TO anna", false),
    ("SET ROLE fleet", false),
];

/// Has one statement run and undone; the code of the refusal.
async fn refusal(client: &tokio_postgres::Client, statement: &str) -> Option<String> {
    client.batch_execute("BEGIN").await.expect("begun");
    let done = client.batch_execute(statement).await;
    client.batch_execute("ROLLBACK").await.expect("undone");
    done.err().map(|error| error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()))
}

#[tokio::test]
async fn the_hosts_role_may_do_what_is_in_the_table_and_nothing_that_is_not() {
    let Some((server, owner, [anna, otto])) = with_users(["anna", "otto"], false).await else { return };
    let database = owner.rsplit('=').next().expect("a name").to_owned();
    server.sql(&database, "GRANT phone_opus_operator TO otto; INSERT INTO phone_opus.cap VALUES ('fleet', 4)").await;
    live_a_day(&anna, "one").await;
    let (client, connection) = tokio_postgres::connect(&anna, tokio_postgres::NoTls).await.expect("connected");
    let driver = tokio::spawn(connection);
    for (statement, is_allowed) in STATEMENTS {
        let refused = refusal(&client, statement).await;
        // 42501: insufficient privilege.
        assert_eq!(refused.as_deref(), (!is_allowed).then_some("42501"), "{statement}");
    }
    driver.abort();

    // An operator sets caps and drains; it asks for nothing and ends nothing by that.
    let fleet = PgFleet::open(&otto).await.expect("opened");
    fleet.set_cap(&CapScope::Fleet, Some(3)).await.expect("set");
    fleet.set_cap(&CapScope::Fleet, None).await.expect("lifted");
    let host = HostId::random();
    let hers = PgFleet::open(&anna).await.expect("opened");
    let _ = hers.renew(&renewal(host, 4)).await.expect("renewed");
    fleet.set_drained(host, true).await.expect("drained");
    assert_eq!(hers.claim(&asked(host, 1)).await, Ok(FleetClaim::NotNow(ClaimRefusal::Drained)));
    assert!(hers.set_drained(host, false).await.is_err(), "she is no operator");
    assert!(hers.set_cap(&CapScope::Fleet, Some(9)).await.is_err(), "she is no operator");
    statements(&PgFleet::open(&owner).await.expect("opened"), "REVOKE phone_opus_host FROM otto").await;
    let only = PgFleet::open(&otto).await.expect("opened");
    only.set_drained(host, false).await.expect("resumed");
    assert!(only.accept(&new_job("an operator's")).await.is_err(), "an operator alone is no host");
}

#[tokio::test]
async fn who_may_not_add_to_old_tables_is_told_whose_work_it_is() {
    let Some(server) = PrivateServer::own() else { return };
    let owner = server.database().await;
    let database = owner.rsplit('=').next().expect("a name").to_owned();
    server.sql(&database, "CREATE ROLE anna LOGIN").await;
    let anna = owner.replace("user=fleet", "user=anna");
    let said = PgFleet::open(&anna).await.expect_err("there are no tables").to_string();
    assert!(said.contains("have their owner run"), "{said}");
    drop(PgFleet::open_at(&owner, 1).await.expect("opened"));
    server.sql(&database, "GRANT USAGE ON SCHEMA phone_opus TO anna; GRANT SELECT ON phone_opus.meta TO anna").await;
    let said = PgFleet::open(&anna).await.expect_err("they are old").to_string();
    assert!(said.contains("have their owner run"), "{said}");
}

#[tokio::test]
async fn users_that_are_kept_apart_see_their_own_jobs_and_those_that_are_shared_and_caps_are_exact() {
    let Some((_server, owner, [anna, bert])) = with_users(["anna", "bert"], true).await else { return };
    for (user, key) in [(&anna, "hers"), (&bert, "his")] {
        live_a_day(user, key).await;
    }
    let whole = PgFleet::open(&owner).await.expect("opened");
    whole.set_cap(&CapScope::Fleet, Some(2)).await.expect("set");
    let (hers, his) = (PgFleet::open(&anna).await.expect("opened"), PgFleet::open(&bert).await.expect("opened"));
    let (her_host, his_host) = (HostId::random(), HostId::random());
    let _ = hers.renew(&renewal(her_host, 4)).await.expect("renewed");
    let _ = his.renew(&renewal(his_host, 4)).await.expect("renewed");
    for key in 0..3 {
        for (fleet, name) in [(&hers, "a"), (&his, "b")] {
            let new = job(FleetJobId::random(), &format!("path:{name}:/w"), &format!("{name} {key}"), "", 1000);
            assert_eq!(fleet.accept(&new).await, Ok(FleetAccept::Inserted(new.id)));
        }
    }
    let all = "SELECT count(*) FROM phone_opus.job";
    assert_eq!((number_of(&whole, all).await, number_of(&hers, all).await, number_of(&his, all).await), (10, 5, 5));
    let late = "SELECT count(*) FROM phone_opus.late";
    assert_eq!((number_of(&whole, late).await, number_of(&hers, late).await), (2, 1));

    // A key that somebody else has is no full queue.
    let same_key = job(FleetJobId::random(), "path:a:/w", "a 0", "", 1000);
    assert_eq!(his.accept(&same_key).await, Ok(FleetAccept::Hidden));

    // One cap over both, though neither sees the other's job.
    let one = given(hers.claim(&asked(her_host, 1)).await.expect("claimed"));
    assert_eq!(one.len(), 1);
    assert_eq!(hers.start(one[0].ticket).await, Ok(FleetStart::Started));
    let two = given(his.claim(&asked(his_host, 4)).await.expect("claimed"));
    assert_eq!(two.len(), 1, "the other place is hers");
    assert_eq!(given(hers.claim(&asked(her_host, 4)).await.expect("claimed")), []);

    // Nobody ends, forgets or speaks for what is another one's.
    assert_eq!(hers.cancel(two[0].ticket.job).await, Ok(FleetCancel::NoJob));
    assert_eq!(hers.wait(two[0].ticket.job, Duration::ZERO).await, Ok(None));
    let (client, connection) = tokio_postgres::connect(&anna, tokio_postgres::NoTls).await.expect("connected");
    let driver = tokio::spawn(connection);
    for (statement, changed) in [
        ("DELETE FROM phone_opus.job WHERE owner = 'bert'", 0),
        ("UPDATE phone_opus.job SET state = 'queued' WHERE owner = 'bert'", 0),
        ("UPDATE phone_opus.host SET lease_until = '-infinity' WHERE owner = 'bert'", 0),
        ("DELETE FROM phone_opus.host WHERE owner = 'bert'", 0),
        ("DELETE FROM phone_opus.late WHERE owner = 'bert'", 0),
        ("DELETE FROM phone_opus.turn", 0),
        ("INSERT INTO phone_opus.share (with_user) VALUES ('nobody')", 1),
        ("DELETE FROM phone_opus.share", 1),
    ] {
        assert_eq!(client.execute_typed(statement, &[]).await.ok(), Some(changed), "{statement}");
    }
    driver.abort();

    // What she shares with him his hosts may run, where his configuration accepts it.
    whole.set_cap(&CapScope::Fleet, None).await.expect("lifted");
    let accepting = ClaimAsk { accepts: vec!["anna".into()], ..asked(his_host, 9) };
    let workspaces = |given: &[ClaimedJob]| given.iter().map(|job| job.workspace.clone()).collect::<BTreeSet<_>>();
    let his_own = given(his.claim(&accepting).await.expect("claimed"));
    assert_eq!(
        workspaces(&his_own),
        BTreeSet::from(["path:b:/w".to_owned()]),
        "what she does not share he is not given"
    );
    let tx = hers.begin(Fate::default()).await.expect("begun");
    tx.batch("INSERT INTO phone_opus.share (with_user) VALUES ('bert')").await.expect("shared");
    tx.commit().await.expect("committed");
    assert_eq!(given(his.claim(&asked(his_host, 9)).await.expect("claimed")), [], "his configuration accepts nobody's");
    let shared = given(his.claim(&accepting).await.expect("claimed"));
    assert_eq!(workspaces(&shared), BTreeSet::from(["path:a:/w".to_owned()]));
    assert_eq!(his.start(shared[0].ticket).await, Ok(FleetStart::Started));
    assert_eq!(his.finish(&finished(shared[0].ticket)).await, Ok(FleetFinish::Finished));
    let view = hers.wait(shared[0].ticket.job, PATIENCE).await.expect("looked").expect("a job");
    assert_eq!((view.state, view.host), (FleetState::Succeeded, Some(his_host)), "she hears of its end");
}
