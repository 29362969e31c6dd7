//! The tables of a fleet, and how they get from one version to the next.
//!
//! Owns: the migrations. Each step only adds, so that programs of both versions use the tables side by side; `least` says from which
//! version on a program may, should a step ever do more than add. Everything is in a schema of its own and named by it.
//!
//! JSON is kept as text: nobody looks into it by SQL, `jsonb` refuses a character that prompts may have, and a request's digest is of
//! its bytes.

use super::link::{Tx, number, text};
use super::read::{big, column};
use crate::fleet::FleetError;

/// Steps in order; once released, one is never changed.
const STEPS: &[&str] = &[FIRST, HISTORY, USERS, LEASE, TRACE];

/// The version this program writes.
pub(super) fn known() -> i64 {
    i64::try_from(STEPS.len()).unwrap_or(i64::MAX)
}

/// `host` is written every few seconds and has room for that on its pages. `lane` is a digest of the workspace, because an index
/// entry holds less than a path. One sequence numbers acceptances (`turn`) and claims (`fence`).
const FIRST: &str = "
CREATE TABLE phone_opus.meta (
    one     boolean PRIMARY KEY DEFAULT true CHECK (one),
    version bigint  NOT NULL,
    least   bigint  NOT NULL,
    fleet   uuid    NOT NULL
);
CREATE SEQUENCE phone_opus.fence;
CREATE TABLE phone_opus.host (
    host        uuid        PRIMARY KEY,
    name        text        NOT NULL,
    state_id    text        NOT NULL,
    labels      text        NOT NULL,
    lease_until timestamptz NOT NULL,
    drained     boolean     NOT NULL DEFAULT false,
    seen        bigint      NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE TABLE phone_opus.job (
    id          uuid        PRIMARY KEY,
    owner       text        NOT NULL DEFAULT session_user,
    workspace   text        NOT NULL,
    lane        text        NOT NULL,
    request_key text        NOT NULL,
    request     text        NOT NULL,
    digest      text        NOT NULL,
    agent       text        NOT NULL,
    account     text        NOT NULL,
    needs       text        NOT NULL,
    session     text,
    pin_state   text,
    timeout_s   bigint      NOT NULL,
    turn        bigint      NOT NULL DEFAULT nextval('phone_opus.fence'),
    state       text        NOT NULL DEFAULT 'queued'
                CHECK (state IN ('queued', 'claimed', 'running', 'succeeded', 'failed', 'cancelled', 'interrupted')),
    fence       bigint,
    host        uuid,
    accepted    timestamptz NOT NULL DEFAULT clock_timestamp(),
    claimed     timestamptz,
    started     timestamptz,
    ended       timestamptz,
    hold_until  timestamptz,
    cancel      timestamptz,
    outcome     text,
    UNIQUE (lane, request_key)
);
CREATE INDEX job_live ON phone_opus.job (accepted) WHERE state IN ('queued', 'claimed', 'running');
CREATE INDEX job_held ON phone_opus.job (hold_until) WHERE hold_until IS NOT NULL;
CREATE INDEX job_ended ON phone_opus.job (ended) WHERE ended IS NOT NULL;
CREATE TABLE phone_opus.late (
    job     uuid        NOT NULL,
    fence   bigint      NOT NULL,
    host    uuid        NOT NULL,
    state   text        NOT NULL,
    outcome text        NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (job, fence)
);
CREATE TABLE phone_opus.turn (
    lane       text   PRIMARY KEY,
    last_fence bigint NOT NULL
);
CREATE TABLE phone_opus.cap (
    scope text   PRIMARY KEY,
    n     bigint NOT NULL
);
CREATE TABLE phone_opus.pause (
    scope text        PRIMARY KEY,
    until timestamptz NOT NULL,
    why   text        NOT NULL
);
";

/// Which history of which database was seen last, and until when nobody claims because that changed.
const HISTORY: &str = "
ALTER TABLE phone_opus.meta ADD COLUMN system_id text;
ALTER TABLE phone_opus.meta ADD COLUMN timeline text;
ALTER TABLE phone_opus.meta ADD COLUMN quiet_until timestamptz;
";

/// What keeps several users of one fleet apart (`packaging/fleet-users.sql`): whose a host and a late outcome are, who shows jobs to
/// whom, and what may be known of jobs that are not shown. The functions see with their owner's rights and answer for `session_user`.
const USERS: &str = "
ALTER TABLE phone_opus.host ADD COLUMN owner text NOT NULL DEFAULT session_user;
ALTER TABLE phone_opus.late ADD COLUMN owner text NOT NULL DEFAULT session_user;
CREATE TABLE phone_opus.share (
    owner     text NOT NULL DEFAULT session_user,
    with_user text NOT NULL,
    PRIMARY KEY (owner, with_user)
);
CREATE FUNCTION phone_opus.shows(owner text) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        SELECT $1 = session_user
            OR EXISTS (SELECT 1 FROM phone_opus.share s WHERE s.owner = $1 AND s.with_user = session_user) $$;
CREATE FUNCTION phone_opus.has_jobs(lane text) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        SELECT EXISTS (SELECT 1 FROM phone_opus.job j WHERE j.lane = $1) $$;
CREATE FUNCTION phone_opus.unseen() RETURNS TABLE (agent text, account text, host_name text, jobs bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        SELECT left(j.agent, 257), left(j.account, 257), left(h.name, 257), count(*)
        FROM phone_opus.job j LEFT JOIN phone_opus.host h ON h.host = j.host
        WHERE NOT phone_opus.shows(j.owner)
          AND (j.state IN ('claimed', 'running') OR (j.state = 'interrupted' AND j.hold_until > clock_timestamp()))
        GROUP BY 1, 2, 3 $$;
";

/// For how long a host is believed to live, for all of them; and whether a key is taken, for a user who is not shown whose it is.
const LEASE: &str = "
ALTER TABLE phone_opus.meta ADD COLUMN lease_ms bigint NOT NULL DEFAULT 60000 CHECK (lease_ms BETWEEN 1000 AND 3600000);
CREATE FUNCTION phone_opus.has_key(lane text, request_key text) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
        SELECT EXISTS (SELECT 1 FROM phone_opus.job j WHERE j.lane = $1 AND j.request_key = $2) $$;
";

/// What is above a job in its caller's trace, as W3C Trace Context writes it. Columns of their own: the request is what was asked for, and
/// its digest what a key is held to.
const TRACE: &str = "
ALTER TABLE phone_opus.job ADD COLUMN traceparent text;
ALTER TABLE phone_opus.job ADD COLUMN tracestate text;
";

/// Makes the tables, or adds what they lack. Where nothing does, nothing is written, so that a user without the right to can use them.
pub(super) async fn migrate(tx: &Tx, upto: i64) -> Result<(), FleetError> {
    if version(tx).await? >= upto {
        return Ok(());
    }
    tx.rows("SELECT pg_advisory_xact_lock($1)", &[number(&super::LOCK_SCHEMA)]).await?;
    // Another program may have done it while this one waited.
    let found = version(tx).await?;
    let Ok(done) = usize::try_from(found) else { return Ok(()) };
    if found == 0 && tx.row("SELECT 1 FROM pg_namespace WHERE nspname = 'phone_opus'", &[]).await?.is_none() {
        tx.batch("CREATE SCHEMA phone_opus").await.map_err(owners_work)?;
    }
    let upto_steps = usize::try_from(upto).unwrap_or(0);
    for step in STEPS.iter().take(upto_steps).skip(done) {
        tx.batch(step).await.map_err(owners_work)?;
    }
    let fleet = uuid::Uuid::new_v4().to_string();
    tx.changed(
        "INSERT INTO phone_opus.meta (version, least, fleet) VALUES ($1, 1, $2::uuid)
         ON CONFLICT (one) DO UPDATE SET version = greatest(meta.version, excluded.version)",
        &[number(&upto), text(&fleet)],
    )
    .await?;
    Ok(())
}

/// A user with a host's rights makes no tables.
fn owners_work(error: FleetError) -> FleetError {
    match &error {
        FleetError::Unavailable { detail } if detail.contains("(42501)") => FleetError::Settings {
            detail: "its tables are missing or of an older version, and this user may not add to them: \
                     have their owner run `phone-opus fleet status` with this program once, and then packaging/fleet-role.sql",
        },
        _ => error,
    }
}

/// The version that is there, 0 for none. One that this program may not use is refused.
async fn version(tx: &Tx) -> Result<i64, FleetError> {
    // Asked of the catalogue itself: functions such as `to_regclass` answer from what this connection remembers, which may be from
    // before the lock.
    let there = "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE n.nspname = 'phone_opus' AND c.relname = 'meta'";
    if tx.row(there, &[]).await?.is_none() {
        return Ok(0);
    }
    let row = tx.row("SELECT version, least FROM phone_opus.meta", &[]).await?;
    let Some(row) = row else { return Ok(0) };
    let (version, least): (i64, i64) = (big(&row, 0, "version")?, column(&row, 1, "least")?);
    if least > known() { Err(FleetError::TooOld { least, known: known() }) } else { Ok(version) }
}
