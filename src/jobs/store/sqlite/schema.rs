//! The tables, and how a database gets from one version to the next.
//!
//! Owns: the migrations. Each step only adds, so that an older process that still has the database open goes on working.
//! `user_version` counts the steps that were done.

use rusqlite::{Connection, TransactionBehavior};

use crate::jobs::store::StoreError;

/// Steps in order; once released, one is never changed.
const STEPS: &[&str] = &[FIRST, LIMITS, PROOF, WAITING, ACCOUNT_LIMITS, CUSTODY, ELSEWHERE, HOSTS, FLEET, TRACE];

/// The version this program writes.
pub(super) fn known() -> i64 {
    i64::try_from(STEPS.len()).unwrap_or(i64::MAX)
}

/// `jobs` has the small columns only: it is rewritten at every journal append, and read by every listing. What may be
/// large and is written once is in `requests` and `outcomes`.
///
/// `unread` is 1 from the end of a job until somebody read it. `turn` and `start_turn` are draws of one counter
/// (see `jobs::admission`). `bytes` is what a job holds, for retention. `workspace` is text, or a blob where the path is
/// not UTF-8.
const FIRST: &str = "
CREATE TABLE jobs (
    sequence         INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT    NOT NULL UNIQUE,
    invocation       TEXT    UNIQUE,
    request_key      TEXT,
    workspace        BLOB    NOT NULL,
    mode             TEXT    NOT NULL,
    state            TEXT    NOT NULL,
    agent            TEXT    NOT NULL,
    session_id       TEXT,
    prompt_head      TEXT    NOT NULL,
    chain            TEXT    NOT NULL,
    depth            INTEGER NOT NULL,
    accepted_at      INTEGER NOT NULL,
    started_at       INTEGER,
    finished_at      INTEGER,
    read_at          INTEGER,
    unread           INTEGER NOT NULL DEFAULT 0,
    cancel_requested TEXT,
    pid              INTEGER,
    pid_start_time   INTEGER,
    run_token        TEXT,
    turn             INTEGER NOT NULL,
    start_turn       INTEGER,
    last_event       INTEGER NOT NULL DEFAULT 0,
    cost_usd         REAL,
    bytes            INTEGER NOT NULL
);
CREATE UNIQUE INDEX jobs_by_key ON jobs (workspace, request_key) WHERE request_key IS NOT NULL;
CREATE INDEX jobs_by_unread ON jobs (unread);
CREATE INDEX jobs_by_workspace ON jobs (workspace, unread);
CREATE INDEX jobs_by_state ON jobs (state, unread);
CREATE INDEX jobs_by_workspace_state ON jobs (workspace, state, unread);
CREATE INDEX jobs_by_start ON jobs (workspace, start_turn);
CREATE INDEX jobs_by_end ON jobs (finished_at, cost_usd) WHERE finished_at IS NOT NULL;

CREATE TABLE requests (
    job     INTEGER PRIMARY KEY REFERENCES jobs (sequence) ON DELETE CASCADE,
    request TEXT    NOT NULL
);
CREATE TABLE outcomes (
    job     INTEGER PRIMARY KEY REFERENCES jobs (sequence) ON DELETE CASCADE,
    outcome TEXT    NOT NULL
);
CREATE TABLE events (
    job   INTEGER NOT NULL REFERENCES jobs (sequence) ON DELETE CASCADE,
    seq   INTEGER NOT NULL,
    at    INTEGER NOT NULL,
    event TEXT    NOT NULL,
    PRIMARY KEY (job, seq)
) WITHOUT ROWID;

CREATE TABLE turns (last INTEGER NOT NULL);
INSERT INTO turns VALUES (0);
";

/// A provider's refusals: until when an agent that is paid for in this way will be refused again, and which job was told so.
const LIMITS: &str = "
CREATE TABLE limits (
    agent   TEXT    NOT NULL,
    billing TEXT    NOT NULL,
    until   INTEGER NOT NULL,
    job     TEXT    NOT NULL,
    PRIMARY KEY (agent, billing)
) WITHOUT ROWID;
";

/// `pid_session` and `pid_numbering` go with `pid`: what a sweep needs to know a run's processes by their numbers. `given` is
/// the options a caller named itself. `seen_at` is when a finished job was first seen as one, by `age`: time that passed while
/// somebody looked, which no jump of the wall clock adds to.
const PROOF: &str = "
ALTER TABLE jobs ADD COLUMN pid_session INTEGER;
ALTER TABLE jobs ADD COLUMN pid_numbering INTEGER;
ALTER TABLE jobs ADD COLUMN given TEXT;
ALTER TABLE jobs ADD COLUMN seen_at INTEGER;
CREATE TABLE age (seen INTEGER NOT NULL, wall INTEGER NOT NULL);
INSERT INTO age VALUES (0, 0);
";

/// Who waits for a queued job's turn (it holds the lock of that name), and a digest of the environment the job is to run
/// with: who finds the job left alone may run it with that environment only.
const WAITING: &str = "
ALTER TABLE jobs ADD COLUMN waiter TEXT;
ALTER TABLE jobs ADD COLUMN environment TEXT;
";

/// The same by account and, where the provider said so, by family of models (`''` is all of them). `by_default` is 1 when a
/// run that named no model was refused. Programs that know only `limits` keep that one by themselves.
const ACCOUNT_LIMITS: &str = "
ALTER TABLE jobs ADD COLUMN account TEXT NOT NULL DEFAULT '';
CREATE TABLE account_limits (
    agent      TEXT    NOT NULL,
    billing    TEXT    NOT NULL,
    account    TEXT    NOT NULL,
    family     TEXT    NOT NULL,
    by_default INTEGER NOT NULL,
    until      INTEGER NOT NULL,
    job        TEXT    NOT NULL,
    PRIMARY KEY (agent, billing, account, family)
) WITHOUT ROWID;
";

/// The host that has custody of a job and may be followed in it by another one, by the lock it holds; null where nobody may:
/// such a job depends on the pipes of the host that accepted it.
const CUSTODY: &str = "
ALTER TABLE jobs ADD COLUMN host TEXT;
";

/// Running jobs whose agent is on another machine: how long after its runner is lost that machine has ended it, and since when the
/// runner is known to be lost.
const ELSEWHERE: &str = "
CREATE TABLE elsewhere (
    job            INTEGER PRIMARY KEY REFERENCES jobs (sequence) ON DELETE CASCADE,
    over_within_ms INTEGER NOT NULL,
    lost_at        INTEGER
);
";

/// What hosts say of themselves (see `jobs::hosts`), as JSON: it is shown, and nothing is decided by it.
const HOSTS: &str = "
CREATE TABLE hosts (
    host TEXT NOT NULL PRIMARY KEY,
    said TEXT NOT NULL
) WITHOUT ROWID;
";

/// Jobs of a fleet that this machine has claimed and of which the fleet was not told how they ended (see `jobs::fleet_runs`).
const FLEET: &str = "
CREATE TABLE fleet_runs (
    job   TEXT    NOT NULL PRIMARY KEY,
    host  TEXT    NOT NULL,
    fence INTEGER NOT NULL
) WITHOUT ROWID;
";

/// The trace a job is part of (see `base::trace::JobTrace`), as JSON; null for most jobs.
const TRACE: &str = "
ALTER TABLE jobs ADD COLUMN trace TEXT;
";

pub(super) fn version(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

/// Refuses a database of a later version. Nothing may be written before this has passed.
pub(super) fn refuse_newer(connection: &Connection) -> Result<(), StoreError> {
    let found = version(connection)?;
    if found > known() { Err(StoreError::NewerSchema { found, known: known() }) } else { Ok(()) }
}

/// Whether no step was done yet.
pub(super) fn is_new(connection: &Connection) -> Result<bool, StoreError> {
    Ok(version(connection)? == 0)
}

/// Does the steps that are missing, in one transaction.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    if version(connection)? == known() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have done them, or gone further, while this one waited.
    refuse_newer(&transaction)?;
    let done = usize::try_from(version(&transaction)?).unwrap_or(0);
    for step in STEPS.iter().skip(done) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", known())?;
    transaction.commit()?;
    Ok(())
}
