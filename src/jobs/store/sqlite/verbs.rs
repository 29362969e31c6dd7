//! The verbs of the store as SQL.
//!
//! Owns: every statement that is run on an open database. Changes of state are conditional updates; whether one was
//! refused is read from the number of rows it changed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::rows;
use super::{Durability, Place, SqliteStore};
use crate::base::fault::FaultCode;
use crate::base::ids::{AgentSessionId, FleetJobId, HostId, InvocationId, JobId, UnixMillis, WaiterId};
use crate::jobs::evidence;
use crate::jobs::fleet_runs::{self, FleetRun};
use crate::jobs::hosts::HostRow;
use crate::jobs::journal::AgentEvent;
use crate::jobs::limits::Scope;
use crate::jobs::row::{JobRow, ROWS_MOST};
use crate::jobs::store::{
    Accept, AcceptLimits, Adoption, Ages, CHAINS_MOST, CancelState, ChainCost, DataVersion, DayCost, Glance, JobCounts,
    JobFilter, LIMIT_MOST, Limit, MOST_LISTED, Pruned, QueueRow, RetentionPolicy, StartOutcome, Store, StoreError,
    Transition,
};
use crate::jobs::{
    Billing, CancelReason, JobMode, JobOutcome, JobRecord, JobState, JobSummary, JournalEntry, JournalEvent, NewJob,
    RunProcess, limits,
};

/// What a job holds besides its request, journal and outcome, roughly: its row and its index entries.
const ROW_BYTES: usize = 1_024;

/// What a journal entry holds besides its text, roughly.
const EVENT_BYTES: usize = 24;

/// Jobs forgotten in one transaction: some ten milliseconds, so that nobody waits long behind a pruning.
const PRUNE_BATCH: usize = 50;

/// Bytes forgotten in one transaction: what the room that is kept on a full disk takes, with what is written around them.
const PRUNE_BYTES: u64 = 256 << 10;

/// When this program was written: 1 November 2026. A clock before it is wrong.
pub(super) const WRITTEN: i64 = 1_793_491_200_000;

/// How far ahead of a clock that may be right an end is believed: a year.
const AHEAD_MOST: i64 = 365 * 24 * 60 * 60 * 1000;

/// The most one look adds to the time that finished jobs were seen for: a day. A machine that was off for longer, or a clock
/// that jumped, keeps answers longer and never forgets one early.
const SEEN_MOST: i64 = 24 * 60 * 60 * 1000;

/// Pages given back to the file system after a pruning, at most: 16 MiB, again to keep the lock short.
const GIVEN_BACK: usize = 4_096;

/// The columns of a full record.
const RECORD: &str = "SELECT jobs.*, requests.request, outcomes.outcome FROM jobs
    JOIN requests ON requests.job = jobs.sequence LEFT JOIN outcomes ON outcomes.job = jobs.sequence";

/// The columns of a listing.
const SUMMARY: &str = "SELECT id, state, mode, agent, workspace, session_id, prompt_head, accepted_at, finished_at,
    unread FROM jobs";

/// Of an outcome only the fault's code is read, and of an answer nothing: it is not even looked into.
pub(super) const JOB_ROWS: &str =
    "SELECT id, sequence, state, mode, agent, workspace, chain, depth, accepted_at, started_at,
    finished_at, cost_usd, cancel_requested, unread, last_event,
    CASE WHEN state IN ('failed', 'cancelled', 'interrupted') THEN
        (SELECT CASE WHEN json_valid(outcome) THEN json_extract(outcome, '$.fault.code') END FROM outcomes
         WHERE job = sequence) END AS code
    FROM jobs WHERE sequence > ?1 AND (finished_at IS NULL OR finished_at >= ?2) ORDER BY sequence LIMIT ?3";

pub(super) const QUEUE: &str = "SELECT id, sequence, workspace, agent, session_id, state, mode, accepted_at, turn,
    cancel_requested, waiter, environment, host,
    (SELECT max(other.start_turn) FROM jobs AS other WHERE other.workspace = jobs.workspace) AS served
    FROM jobs WHERE state IN ('queued', 'running') ORDER BY sequence";

/// Answers nobody has read.
pub(super) const UNREAD_ANSWERS: &str = "SELECT id FROM jobs
    WHERE workspace = ?1 AND state = 'succeeded' AND unread = 1 ORDER BY sequence DESC LIMIT ?2";

/// Other ends nobody has read. What its own caller cancelled or left is no news to anybody.
pub(super) const UNREAD: &str = "SELECT id FROM jobs WHERE workspace = ?1 AND unread = 1 AND state <> 'succeeded'
    AND NOT (state = 'cancelled' AND cancel_requested IS NOT NULL) ORDER BY sequence DESC LIMIT ?2";

pub(super) const COUNTS: &str = "SELECT state, count(*) FROM jobs GROUP BY state";

pub(super) const COSTS: &str = "SELECT date(finished_at / 1000, 'unixepoch') AS day, count(*), total(cost_usd),
    count(*) - count(cost_usd) FROM jobs WHERE finished_at IS NOT NULL AND finished_at >= ?1 GROUP BY day ORDER BY day";

pub(super) const CHAIN_COSTS: &str = "SELECT chain, count(*), total(cost_usd) AS cost, count(*) - count(cost_usd)
    FROM jobs WHERE finished_at IS NOT NULL AND finished_at >= ?1
    GROUP BY chain HAVING count(*) > 1 ORDER BY cost DESC, chain LIMIT ?2";

/// The place of a queued job, 0 for one that is none. A queued job is never unread, so an index has the answer.
pub(super) const PLACE: &str = "SELECT count(*) FROM jobs WHERE state = 'queued' AND unread = 0 AND sequence <=
    (SELECT sequence FROM jobs WHERE id = ?1 AND state = 'queued')";

pub(super) const QUEUED: &str = "SELECT count(*) FROM jobs WHERE state = 'queued'";

pub(super) const SESSION_BUSY: &str = "SELECT other.id FROM jobs AS this JOIN jobs AS other
    ON other.state = 'running' AND other.agent = this.agent AND other.session_id = this.session_id
    AND other.sequence <> this.sequence WHERE this.id = ?1 LIMIT 1";

/// An id is written in digits, dashes and letters up to `f`, so that all that begin alike come before the same with a `g`.
pub(super) const BEGINNING_WITH: &str =
    "SELECT id FROM jobs WHERE id >= ?1 AND id < ?1 || 'g' ORDER BY sequence DESC LIMIT ?2";

/// The newest of the read ones or of the unread ones, since the index tells them apart.
pub(super) const NEWEST: &str = "SELECT id FROM jobs WHERE sequence = max(
    ifnull((SELECT max(sequence) FROM jobs WHERE workspace = ?1 AND unread = 0), 0),
    ifnull((SELECT max(sequence) FROM jobs WHERE workspace = ?1 AND unread = 1), 0))";

/// The newest job before this one that was in the session. Asked only where one is resumed; jobs are few enough to be looked at.
pub(super) const LAST_OF_SESSION: &str = "SELECT other.id FROM jobs AS this JOIN jobs AS other
    ON other.session_id = ?2 AND other.agent = this.agent AND other.sequence < this.sequence
    WHERE this.id = ?1 ORDER BY other.sequence DESC LIMIT 1";

/// The statement of a listing; ?1 is the workspace, ?2 the state, ?3 the limit. One for each combination, so that each has
/// an index that gives its order.
pub(super) fn listing(by_workspace: bool, by_state: bool) -> String {
    let condition = match (by_workspace, by_state) {
        (false, false) => "",
        (true, false) => "WHERE workspace = ?1",
        (false, true) => "WHERE state = ?2",
        (true, true) => "WHERE workspace = ?1 AND state = ?2",
    };
    format!("{SUMMARY} {condition} ORDER BY unread DESC, sequence DESC LIMIT ?3")
}

/// A job's number and state; every verb on one job begins with it.
fn locate(connection: &Connection, job: JobId) -> Result<(i64, JobState), StoreError> {
    let mut statement = connection.prepare_cached("SELECT sequence, state FROM jobs WHERE id = ?1")?;
    let found = statement.query_and_then([job.to_string()], |row| Ok((row.get(0)?, rows::state(row)?)))?.next();
    found.unwrap_or(Err(StoreError::UnknownJob(job)))
}

fn find_record(
    connection: &Connection,
    condition: &str,
    values: impl rusqlite::Params,
) -> Result<Option<JobRecord>, StoreError> {
    let mut statement = connection.prepare_cached(&format!("{RECORD} WHERE {condition}"))?;
    statement.query_and_then(values, rows::record)?.next().transpose()
}

fn record(connection: &Connection, job: JobId) -> Result<JobRecord, StoreError> {
    find_record(connection, "jobs.id = ?1", [job.to_string()])?.ok_or(StoreError::UnknownJob(job))
}

/// The older job that a consult already is, or collides with. A key whose job is over without anything having been run
/// is given back.
fn find_same(connection: &Connection, new: &NewJob) -> Result<Option<Accept>, StoreError> {
    if let Some(invocation) = &new.invocation {
        let found = find_record(connection, "jobs.invocation = ?1", [invocation.to_string()])?;
        if let Some(found) = found {
            return Ok(Some(Accept::Joined(found)));
        }
    }
    if let Some(key) = &new.request_key {
        let values = params![rows::path(&new.workspace), key];
        let found = find_record(connection, "jobs.workspace = ?1 AND jobs.request_key = ?2", values)?;
        match found {
            // The accept of this very job, whose answer was lost.
            Some(found) if found.id == new.id => return Ok(Some(Accept::Joined(found))),
            Some(found) if found.nothing_ran() => {
                connection
                    .prepare_cached("UPDATE jobs SET request_key = NULL WHERE sequence = ?1")?
                    .execute([rows::signed(found.sequence)])?;
            }
            Some(found) => {
                let same = is_same(connection, new, &found)?;
                return Ok(Some(if same { Accept::Joined(found) } else { Accept::Conflict { job: found.id } }));
            }
            None => {}
        }
    }
    // The id is the last thing to be recognised by: an accept whose answer was lost and that is tried again.
    let found = find_record(connection, "jobs.id = ?1", [new.id.to_string()])?;
    Ok(found.map(
        |found| {
            if found.request == new.request { Accept::Joined(found) } else { Accept::Conflict { job: found.id } }
        },
    ))
}

/// Whether two calls with one key asked for the same: they are equal, or they named the same options alike and differ in
/// what defaults made of the others. Of a prompt with a diff the caller's words count.
fn is_same(connection: &Connection, new: &NewJob, found: &JobRecord) -> Result<bool, StoreError> {
    if found.request == new.request {
        return Ok(true);
    }
    let stored: Option<String> = connection
        .prepare_cached("SELECT given FROM jobs WHERE sequence = ?1")?
        .query_row([rows::signed(found.sequence)], |row| row.get(0))?;
    let (Some(stored), Some(given)) = (stored, &new.given) else { return Ok(false) };
    let value = |request| serde_json::to_value(request).map_err(|_| StoreError::Unstorable { what: "the request" });
    let (ours, theirs) = (value(&new.request)?, value(&found.request)?);
    let alike = |name: &str| ours.get(name) == theirs.get(name);
    let same_names = stored == given.join(",");
    // A diff may have become another one since; its base is among the names.
    let same_words = new.request.words() == found.request.words();
    Ok(same_names && same_words && alike("diff") && alike("billing") && given.iter().all(|name| alike(name)))
}

/// Who waits with a queued job.
fn waiter(connection: &Connection, sequence: i64) -> Result<Option<WaiterId>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT waiter FROM jobs WHERE sequence = ?1")?;
    Ok(statement.query_and_then([sequence], rows::waiter)?.next().transpose()?.flatten())
}

fn next_turn(connection: &Connection) -> Result<i64, StoreError> {
    let mut statement = connection.prepare_cached("UPDATE turns SET last = last + 1 RETURNING last")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

/// Reports one conditional update: the number of rows it changed, and what the job is when it changed none.
fn transition(changed: usize, current: JobState) -> Transition {
    if changed == 0 { Transition::Refused { current } } else { Transition::Done }
}

/// The session an event tells of, so that a run that began a session keeps others out of it before it has ended.
fn begun_session(event: &JournalEvent) -> Option<&str> {
    match event {
        JournalEvent::Agent { event: AgentEvent::Started { session_id, .. } } => session_id.as_deref(),
        _ => None,
    }
}

/// When a job ended, for a clock that may be wrong: not before this program was written, not before the job was accepted
/// and started, and not before the newest end the store knows. An end that is a year ahead of a clock which may be right is
/// itself taken for a mistake, so that one day with a wrong clock is not the last one for good.
fn no_earlier(connection: &Connection, sequence: i64, at: UnixMillis) -> Result<i64, StoreError> {
    let own: i64 = connection
        .prepare_cached("SELECT max(accepted_at, coalesce(started_at, 0)) FROM jobs WHERE sequence = ?1")?
        .query_row([sequence], |row| row.get(0))?;
    let newest: Option<i64> = connection
        .prepare_cached("SELECT max(finished_at) FROM jobs WHERE finished_at IS NOT NULL")?
        .query_row([], |row| row.get(0))?;
    let believed = newest.filter(|newest| at.0 < WRITTEN || newest.saturating_sub(at.0) <= AHEAD_MOST);
    Ok(at.0.max(own).max(WRITTEN).max(believed.unwrap_or(0)))
}

/// Milliseconds before `now`, as a stored time.
fn before(now: UnixMillis, age: Duration) -> i64 {
    now.0.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}

impl SqliteStore {
    /// Forgets the finished jobs that `condition` selects, oldest end first, until `excess` bytes are gone.
    fn forget(&mut self, condition: &str, value: i64, excess: u64, pruned: &mut Pruned) -> Result<(), StoreError> {
        let select = format!(
            "SELECT sequence, id, bytes FROM jobs WHERE finished_at IS NOT NULL AND {condition}
             ORDER BY finished_at, sequence LIMIT ?2"
        );
        let mut freed = 0_u64;
        while freed < excess {
            let left = excess - freed;
            let batch = match self.forget_batch(&select, value, left) {
                // Forgetting is written to the log first. What is in it already makes room when it is begun anew.
                Err(StoreError::Full) => {
                    self.begin_log_anew()?;
                    self.forget_batch(&select, value, left)?
                }
                batch => batch?,
            };
            if batch.is_empty() {
                break;
            }
            freed = batch.iter().fold(freed, |freed, (_, bytes)| freed.saturating_add(*bytes));
            pruned.bytes += batch.iter().map(|(_, bytes)| bytes).sum::<u64>();
            pruned.jobs.extend(batch.iter().map(|(id, _)| id));
        }
        Ok(())
    }

    /// Forgets some of the jobs that are selected, no more than hold `left` bytes but for the last one.
    fn forget_batch(&mut self, select: &str, value: i64, left: u64) -> Result<Vec<(JobId, u64)>, StoreError> {
        let most = left.min(PRUNE_BYTES);
        self.write(Durability::Normal, |transaction| {
            let mut batch = Vec::new();
            let mut bytes = 0_u64;
            let mut chosen = transaction.prepare_cached(select)?;
            let mut found = chosen.query(params![value, rows::count(PRUNE_BATCH)])?;
            while let (true, Some(row)) = (bytes < most, found.next()?) {
                let held = rows::unsigned(row.get("bytes")?);
                bytes = bytes.saturating_add(held);
                batch.push((row.get::<_, i64>("sequence")?, rows::job_id(row)?, held));
            }
            let mut delete = transaction.prepare_cached("DELETE FROM jobs WHERE sequence = ?1")?;
            for (sequence, _, _) in &batch {
                delete.execute([sequence])?;
            }
            Ok(batch.into_iter().map(|(_, id, held)| (id, held)).collect())
        })
    }

    /// Brings what the log holds into the database and begins it anew, where no reader is in the middle of something.
    fn begin_log_anew(&mut self) -> Result<(), StoreError> {
        Ok(self.connection()?.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?)
    }

    /// Adds the time since the last look to that for which finished jobs were seen, begins to count for new ones, and returns
    /// it.
    fn age(&mut self, now: UnixMillis) -> Result<i64, StoreError> {
        self.write(Durability::Normal, |transaction| {
            let (seen, wall): (i64, i64) = transaction
                .prepare_cached("SELECT seen, wall FROM age")?
                .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            // The first look sees everything for the first time.
            let passed = if wall == 0 { 0 } else { now.0.saturating_sub(wall).clamp(0, SEEN_MOST) };
            let seen = seen.saturating_add(passed);
            transaction.prepare_cached("UPDATE age SET seen = ?1, wall = ?2")?.execute([seen, now.0])?;
            transaction
                .prepare_cached("UPDATE jobs SET seen_at = ?1 WHERE finished_at IS NOT NULL AND seen_at IS NULL")?
                .execute([seen])?;
            Ok(seen)
        })
    }

    pub(super) fn finished_bytes(&mut self) -> Result<u64, StoreError> {
        self.read(|transaction| {
            let sum = "SELECT coalesce(sum(bytes), 0) FROM jobs WHERE finished_at IS NOT NULL";
            Ok(rows::unsigned(transaction.prepare_cached(sum)?.query_row([], |row| row.get(0))?))
        })
    }
}

/// Whose usage a request is, and of which model.
struct Usage {
    agent: String,
    billing: String,
    account: String,
    model: Option<String>,
}

/// The usage a job is.
fn usage(transaction: &Transaction<'_>, sequence: i64) -> Result<Option<Usage>, StoreError> {
    let sql = "SELECT jobs.agent, json_extract(requests.request, '$.billing'), jobs.account,
                      json_extract(requests.request, '$.model')
               FROM jobs JOIN requests ON requests.job = jobs.sequence WHERE jobs.sequence = ?1";
    let found = transaction
        .prepare_cached(sql)?
        .query_row([sequence], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?, row.get::<_, String>(2)?, row.get(3)?))
        })
        .optional()?;
    Ok(found.and_then(|(agent, billing, account, model)| Some(Usage { agent, billing: billing?, account, model })))
}

fn read_limit(row: &Row<'_>) -> Result<Limit, StoreError> {
    let unreadable = |what| StoreError::Unreadable { what };
    let billing = Billing::parse(&row.get::<_, String>(1)?).ok_or(unreadable("a limit's billing"))?;
    let job = row.get::<_, String>(3)?.parse().map_err(|_| unreadable("a limit's job"))?;
    let scope = Scope { family: limits::family(&row.get::<_, String>(5)?), by_default: row.get(6)? };
    Ok(Limit { agent: row.get(0)?, billing, until: UnixMillis(row.get(2)?), job, account: row.get(4)?, scope })
}

/// The limits an account has reached that are not over.
fn limits_of(transaction: &Transaction<'_>, usage: &Usage, now: UnixMillis) -> Result<Vec<Limit>, StoreError> {
    let sql = "SELECT agent, billing, until, job, account, family, by_default FROM account_limits
               WHERE agent = ?1 AND billing = ?2 AND account = ?3 AND until > ?4";
    let values = params![usage.agent, usage.billing, usage.account, now.0];
    transaction.prepare_cached(sql)?.query_and_then(values, read_limit)?.collect()
}

/// The limit that refuses a request like this longest.
fn limit(transaction: &Transaction<'_>, usage: &Usage, now: UnixMillis) -> Result<Option<Limit>, StoreError> {
    let reached = limits_of(transaction, usage, now)?.into_iter();
    let concerned = reached.filter(|limit| limit.scope.concerns(usage.model.as_deref()));
    Ok(concerned.max_by_key(|limit| limit.until))
}

/// Learns from an outcome what the provider says about its limits.
fn note_limit(
    transaction: &Transaction<'_>,
    sequence: i64,
    job: JobId,
    to: JobState,
    outcome: &JobOutcome,
    at: UnixMillis,
) -> Result<(), StoreError> {
    let until = outcome
        .fault
        .as_ref()
        .filter(|fault| fault.code == FaultCode::AgentRateLimited && outcome.exit.is_some())
        .and_then(|fault| fault.retry_at)
        .filter(|until| *until > at && until.since(at) <= LIMIT_MOST);
    if until.is_none() && to != JobState::Succeeded {
        return Ok(());
    }
    let Some(usage) = usage(transaction, sequence)? else { return Ok(()) };
    // Those that are over as well: a success clears them away.
    let reached = limits_of(transaction, &usage, UnixMillis(0))?;
    let Some(until) = until else {
        // The model that answered is the better evidence; the one that was asked for may have been replaced.
        let model = outcome.model.as_deref().filter(|model| limits::family(model).is_some()).or(usage.model.as_deref());
        for over in reached.iter().filter(|limit| limit.scope.concerns(model)) {
            transaction
                .prepare_cached(
                    "DELETE FROM account_limits WHERE agent = ?1 AND billing = ?2 AND account = ?3 AND family = ?4",
                )?
                .execute(params![usage.agent, usage.billing, usage.account, over.scope.family.unwrap_or_default()])?;
        }
        return Ok(());
    };
    let scope = Scope::of(outcome.limit.as_deref(), usage.model.as_deref());
    let same = reached.iter().find(|limit| limit.scope.family == scope.family && limit.until > at);
    let by_default = scope.by_default || same.is_some_and(|limit| limit.scope.by_default);
    let family = scope.family.unwrap_or_default();
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO account_limits (agent, billing, account, family, by_default, until, job)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![usage.agent, usage.billing, usage.account, family, by_default, until.0, job.to_string()])?;
    Ok(())
}

impl Store for SqliteStore {
    fn limits(&mut self, now: UnixMillis) -> Result<Vec<Limit>, StoreError> {
        self.read(|transaction| {
            let sql = "SELECT agent, billing, until, job, account, family, by_default FROM account_limits
                       WHERE until > ?1 ORDER BY agent, billing, account, family";
            transaction.prepare_cached(sql)?.query_and_then([now.0], read_limit)?.collect()
        })
    }

    fn clear_limits(&mut self) -> Result<usize, StoreError> {
        self.write(Durability::Full, |transaction| Ok(transaction.execute("DELETE FROM account_limits", [])?))
    }

    fn accept(&mut self, new: &NewJob, limits: AcceptLimits) -> Result<Accept, StoreError> {
        let request = rows::to_json("the request", &new.request)?;
        self.write(Durability::Full, |transaction| {
            if let Some(same) = find_same(transaction, new)? {
                return Ok(same);
            }
            let usage = Usage {
                agent: new.request.agent.clone(),
                billing: new.request.billing.as_str().to_owned(),
                account: new.account.clone(),
                model: new.request.model.clone(),
            };
            if let Some(limit) = limit(transaction, &usage, new.accepted_at)? {
                return Ok(Accept::Limited(limit));
            }
            let queued: i64 = transaction.prepare_cached(QUEUED)?.query_row([], |row| row.get(0))?;
            if queued >= rows::count(limits.max_queued) {
                return Ok(Accept::QueueFull { queued: usize::try_from(queued).unwrap_or(usize::MAX) });
            }
            let turn = next_turn(transaction)?;
            transaction
                .prepare_cached(
                    "INSERT INTO jobs (id, invocation, request_key, workspace, mode, state, agent, session_id,
                        prompt_head, chain, depth, accepted_at, turn, bytes, given, environment, account, host, trace)
                     VALUES (?1, ?2, ?3, ?4, ?5, 'queued', ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
                        ?18)",
                )?
                .execute(params![
                    new.id.to_string(),
                    new.invocation.map(|invocation| invocation.to_string()),
                    new.request_key,
                    rows::path(&new.workspace),
                    new.mode.as_str(),
                    new.request.agent,
                    new.request.session_id.map(|session| session.to_string()),
                    rows::prompt_head(&new.request.prompt),
                    new.chain.to_string(),
                    new.depth,
                    new.accepted_at.0,
                    turn,
                    rows::count(ROW_BYTES + request.len()),
                    new.given.as_ref().map(|names| names.join(",")),
                    new.environment,
                    new.account,
                    new.host.map(|host| host.to_string()),
                    new.trace.as_ref().map(|trace| rows::to_json("the trace", trace)).transpose()?,
                ])?;
            transaction
                .prepare_cached("INSERT INTO requests (job, request) VALUES (?1, ?2)")?
                .execute(params![transaction.last_insert_rowid(), request])?;
            record(transaction, new.id).map(Accept::Inserted)
        })
    }

    fn job(&mut self, job: JobId) -> Result<JobRecord, StoreError> {
        self.read(|transaction| record(transaction, job))
    }

    fn glance(&mut self, job: JobId) -> Result<Glance, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction
                .prepare_cached("SELECT state, mode, cancel_requested, last_event, host FROM jobs WHERE id = ?1")?;
            let found = statement.query_and_then([job.to_string()], rows::glance)?.next();
            found.unwrap_or(Err(StoreError::UnknownJob(job)))
        })
    }

    fn find_invocation(&mut self, invocation: &InvocationId) -> Result<Option<JobId>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT id FROM jobs WHERE invocation = ?1")?;
            statement.query_and_then([invocation.to_string()], rows::job_id)?.next().transpose()
        })
    }

    fn list(&mut self, filter: &JobFilter) -> Result<Vec<JobSummary>, StoreError> {
        self.read(|transaction| {
            let sql = listing(filter.workspace.is_some(), filter.state.is_some());
            let mut statement = transaction.prepare_cached(&sql)?;
            let values = params![
                filter.workspace.as_deref().map(rows::path),
                filter.state.map(JobState::as_str),
                rows::count(filter.limit.min(MOST_LISTED)),
            ];
            statement.query_and_then(values, rows::summary)?.collect()
        })
    }

    fn job_rows(&mut self, since: UnixMillis, after: u64) -> Result<Vec<JobRow>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached(JOB_ROWS)?;
            let values = (rows::signed(after), since.0, rows::count(ROWS_MOST));
            statement.query_and_then(values, rows::job_row)?.collect()
        })
    }

    fn beginning_with(&mut self, start: &str, limit: usize) -> Result<Vec<JobId>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached(BEGINNING_WITH)?;
            let values = params![start, rows::count(limit.min(MOST_LISTED))];
            statement.query_and_then(values, rows::job_id)?.collect()
        })
    }

    fn newest(&mut self, workspace: &Path) -> Result<Option<JobId>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached(NEWEST)?;
            statement.query_and_then([rows::path(workspace)], rows::job_id)?.next().transpose()
        })
    }

    fn start(&mut self, job: JobId, at: UnixMillis) -> Result<StartOutcome, StoreError> {
        self.write(Durability::Full, |transaction| {
            let (sequence, current) = locate(transaction, job)?;
            let busy = transaction
                .prepare_cached(SESSION_BUSY)?
                .query_and_then([job.to_string()], rows::job_id)?
                .next()
                .transpose()?;
            if let (JobState::Queued, Some(by)) = (current, busy) {
                return Ok(StartOutcome::SessionBusy { by });
            }
            if current == JobState::Queued
                && let Some(usage) = usage(transaction, sequence)?
                && let Some(limit) = limit(transaction, &usage, at)?
            {
                return Ok(StartOutcome::Limited(limit));
            }
            let turn = next_turn(transaction)?;
            let changed = transaction
                .prepare_cached(
                    "UPDATE jobs SET state = 'running', started_at = ?2, start_turn = ?3
                     WHERE sequence = ?1 AND state = 'queued'",
                )?
                .execute(params![sequence, at.0, turn])?;
            Ok(if changed == 0 { StartOutcome::Refused { current } } else { StartOutcome::Started })
        })
    }

    fn set_process(&mut self, job: JobId, process: RunProcess) -> Result<Transition, StoreError> {
        self.write(Durability::Normal, |transaction| {
            let (sequence, current) = locate(transaction, job)?;
            let changed = transaction
                .prepare_cached(
                    "UPDATE jobs SET pid = ?2, pid_start_time = ?3, run_token = ?4, pid_session = ?5, pid_numbering = ?6
                     WHERE sequence = ?1 AND state = 'running'",
                )?
                .execute(params![
                    sequence,
                    process.pid,
                    rows::signed(process.start_time),
                    process.token.to_string(),
                    process.session,
                    process.numbering.cast_signed()
                ])?;
            Ok(transition(changed, current))
        })
    }

    fn set_elsewhere(&mut self, job: JobId, over_within: Duration) -> Result<Transition, StoreError> {
        let within = i64::try_from(over_within.as_millis()).unwrap_or(i64::MAX);
        self.write(Durability::Normal, |transaction| {
            let (sequence, current) = locate(transaction, job)?;
            if current != JobState::Running {
                return Ok(Transition::Refused { current });
            }
            transaction
                .prepare_cached("INSERT OR REPLACE INTO elsewhere (job, over_within_ms) VALUES (?1, ?2)")?
                .execute(params![sequence, within])?;
            Ok(Transition::Done)
        })
    }

    fn lost_elsewhere(&mut self, job: JobId, now: UnixMillis) -> Result<Option<UnixMillis>, StoreError> {
        let found = self.read(|transaction| {
            let (sequence, _) = locate(transaction, job)?;
            let mut statement = transaction.prepare_cached("SELECT over_within_ms FROM elsewhere WHERE job = ?1")?;
            let within: Option<i64> = statement.query_row([sequence], |row| row.get(0)).optional()?;
            Ok(within.map(|within| (sequence, within)))
        })?;
        // Most jobs run here, and looking at them writes nothing.
        let Some((sequence, within)) = found else { return Ok(None) };
        self.write(Durability::Normal, |transaction| {
            // A clock that was set back must not make it wait for what it was set back by.
            let lost: i64 = transaction
                .prepare_cached(
                    "UPDATE elsewhere SET lost_at = min(coalesce(lost_at, ?2), ?2) WHERE job = ?1 RETURNING lost_at",
                )?
                .query_row(params![sequence, now.0], |row| row.get(0))?;
            Ok(Some(UnixMillis(lost.saturating_add(within))))
        })
    }

    fn finish(
        &mut self,
        job: JobId,
        to: JobState,
        outcome: &JobOutcome,
        at: UnixMillis,
    ) -> Result<Transition, StoreError> {
        let text = rows::to_json("the outcome", outcome)?;
        self.write(Durability::Full, |transaction| {
            let (sequence, current) = locate(transaction, job)?;
            // The edges of `JobState::advance` once more; nothing leads back to the first two.
            let from = match to {
                JobState::Queued | JobState::Running => return Ok(Transition::Refused { current }),
                JobState::Succeeded => "state = 'running'",
                JobState::Failed | JobState::Cancelled | JobState::Interrupted => "state IN ('queued', 'running')",
            };
            let ended = no_earlier(transaction, sequence, at)?;
            let changed = transaction
                .prepare_cached(&format!(
                    "UPDATE jobs SET state = ?2, finished_at = ?3, unread = 1, cost_usd = ?4,
                        session_id = coalesce(?5, session_id), bytes = bytes + ?6
                     WHERE sequence = ?1 AND {from}"
                ))?
                .execute(params![
                    sequence,
                    to.as_str(),
                    ended,
                    outcome.cost_usd,
                    outcome.session_id,
                    rows::count(text.len())
                ])?;
            if changed > 0 {
                transaction
                    .prepare_cached("INSERT INTO outcomes (job, outcome) VALUES (?1, ?2)")?
                    .execute(params![sequence, text])?;
                note_limit(transaction, sequence, job, to, outcome, at)?;
            }
            Ok(transition(changed, current))
        })
    }

    fn append(&mut self, job: JobId, events: &[(UnixMillis, JournalEvent)]) -> Result<u64, StoreError> {
        let texts = events
            .iter()
            .map(|(at, event)| Ok((at.0, rows::to_json("a journal event", event)?)))
            .collect::<Result<Vec<_>, StoreError>>()?;
        let bytes: usize = texts.iter().map(|(_, text)| text.len() + EVENT_BYTES).sum();
        let session = events.iter().rev().find_map(|(_, event)| begun_session(event));
        self.write(Durability::Normal, |transaction| {
            let (sequence, state) = locate(transaction, job)?;
            if state.is_terminal() {
                return Err(StoreError::Ended { job, state });
            }
            let last: i64 = transaction
                .prepare_cached(
                    "UPDATE jobs SET last_event = last_event + ?2, bytes = bytes + ?3,
                        session_id = coalesce(?4, session_id)
                     WHERE sequence = ?1 RETURNING last_event",
                )?
                .query_row(params![sequence, rows::count(texts.len()), rows::count(bytes), session], |row| {
                    row.get(0)
                })?;
            let mut insert =
                transaction.prepare_cached("INSERT INTO events (job, seq, at, event) VALUES (?1, ?2, ?3, ?4)")?;
            for ((at, text), seq) in texts.iter().zip(last - rows::count(texts.len()) + 1..) {
                insert.execute(params![sequence, seq, at, text])?;
            }
            Ok(rows::unsigned(last))
        })
    }

    fn events(
        &mut self,
        job: JobId,
        after_seq: u64,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<JournalEntry>, StoreError> {
        self.read(|transaction| {
            let (sequence, _) = locate(transaction, job)?;
            let mut statement = transaction.prepare_cached(
                "SELECT seq, at, event FROM events WHERE job = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
            )?;
            let mut found = statement.query(params![sequence, rows::signed(after_seq), rows::count(limit)])?;
            let mut entries = Vec::new();
            let mut bytes = 0_usize;
            while let Some(row) = found.next()? {
                bytes = bytes.saturating_add(row.get_ref("event")?.as_str().map_or(0, str::len));
                if bytes > max_bytes && !entries.is_empty() {
                    break;
                }
                entries.push(rows::journal_entry(row)?);
            }
            Ok(entries)
        })
    }

    fn request_cancel(&mut self, job: JobId, reason: CancelReason) -> Result<CancelState, StoreError> {
        let mut waits = None;
        let done = self.write(Durability::Normal, |transaction| {
            let (sequence, state) = locate(transaction, job)?;
            if state.is_terminal() {
                return Ok(CancelState::Ended { state });
            }
            let first = transaction
                .prepare_cached("SELECT cancel_requested FROM jobs WHERE sequence = ?1")?
                .query_and_then([sequence], rows::cancel_reason)?
                .next()
                .transpose()?
                .flatten();
            if let Some(reason) = first {
                return Ok(CancelState::AlreadyRequested { state, reason });
            }
            if reason == CancelReason::CallerLost {
                let mode: String = transaction
                    .prepare_cached("SELECT mode FROM jobs WHERE sequence = ?1")?
                    .query_row([sequence], |row| row.get(0))?;
                if mode == JobMode::Background.as_str() {
                    return Ok(CancelState::GoesOn);
                }
            }
            transaction
                .prepare_cached("UPDATE jobs SET cancel_requested = ?2 WHERE sequence = ?1")?
                .execute(params![sequence, reason.as_str()])?;
            if state == JobState::Queued {
                waits = waiter(transaction, sequence)?;
            }
            Ok(CancelState::Requested { state })
        });
        if let (Ok(_), Some(waiter), Place::Dir(dir)) = (&done, waits, &self.place) {
            // A runner looks at the store by itself; who waits looks when it is woken.
            evidence::ring(dir, waiter);
        }
        done
    }

    fn hand_over(&mut self, job: JobId) -> Result<Transition, StoreError> {
        self.write(Durability::Normal, |transaction| {
            let (sequence, current) = locate(transaction, job)?;
            let changed = transaction
                .prepare_cached("UPDATE jobs SET mode = ?2 WHERE sequence = ?1 AND state IN ('queued', 'running')")?
                .execute(params![sequence, JobMode::Background.as_str()])?;
            Ok(transition(changed, current))
        })
    }

    fn adopt(&mut self, job: JobId, from: HostId, by: HostId) -> Result<Adoption, StoreError> {
        let mut waits = None;
        let done = self.write(Durability::Normal, |transaction| {
            let (sequence, state) = locate(transaction, job)?;
            let changed = transaction
                .prepare_cached(
                    "UPDATE jobs SET host = ?3 WHERE sequence = ?1 AND host = ?2 AND state IN ('queued', 'running')",
                )?
                .execute(params![sequence, from.to_string(), by.to_string()])?;
            if changed == 0 {
                return Ok(if state.is_terminal() { Adoption::Over { state } } else { Adoption::Elsewhere });
            }
            if state == JobState::Queued {
                waits = waiter(transaction, sequence)?;
            }
            Ok(Adoption::Adopted)
        });
        if let (Ok(_), Some(waiter), Place::Dir(dir)) = (&done, waits, &self.place) {
            // Who waits with it learns whose lock it is to watch.
            evidence::ring(dir, waiter);
        }
        done
    }

    fn show_host(&mut self, row: &HostRow) -> Result<(), StoreError> {
        self.write(Durability::Normal, |transaction| {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO hosts (host, said) VALUES (?1, ?2)")?
                .execute(params![row.host.to_string(), rows::to_json("a host", row)?])?;
            Ok(())
        })
    }

    fn hosts(&mut self) -> Result<Vec<HostRow>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT said FROM hosts ORDER BY host")?;
            let said: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok(said.iter().filter_map(|said| serde_json::from_str(said).ok()).collect())
        })
    }

    fn forget_hosts(&mut self, hosts: &[HostId]) -> Result<(), StoreError> {
        self.write(Durability::Normal, |transaction| {
            for host in hosts {
                transaction.prepare_cached("DELETE FROM hosts WHERE host = ?1")?.execute([host.to_string()])?;
            }
            Ok(())
        })
    }

    fn note_fleet_run(&mut self, run: FleetRun) -> Result<(), StoreError> {
        self.write(Durability::Full, |transaction| {
            transaction
                .prepare_cached("INSERT OR REPLACE INTO fleet_runs (job, host, fence) VALUES (?1, ?2, ?3)")?
                .execute(params![run.job.to_string(), run.host.to_string(), rows::signed(run.fence)])?;
            Ok(())
        })
    }

    fn fleet_runs(&mut self) -> Result<Vec<FleetRun>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT job, host, fence FROM fleet_runs LIMIT ?1")?;
            let mut found = statement.query([rows::count(fleet_runs::MOST_READ)])?;
            let mut runs = Vec::new();
            while let Some(row) = found.next()? {
                let (job, host): (String, String) = (row.get(0)?, row.get(1)?);
                // What is not understood was written by nobody of us.
                if let (Ok(job), Ok(host)) = (job.parse(), host.parse()) {
                    runs.push(FleetRun { job, host, fence: rows::unsigned(row.get(2)?) });
                }
            }
            Ok(runs)
        })
    }

    fn forget_fleet_run(&mut self, job: FleetJobId) -> Result<(), StoreError> {
        self.write(Durability::Normal, |transaction| {
            transaction.prepare_cached("DELETE FROM fleet_runs WHERE job = ?1")?.execute([job.to_string()])?;
            Ok(())
        })
    }

    fn mark_read(&mut self, job: JobId, at: UnixMillis) -> Result<(), StoreError> {
        // Most reads are not the first one, and need no write.
        let unread = self.read(|transaction| {
            let mut statement = transaction.prepare_cached("SELECT unread FROM jobs WHERE id = ?1")?;
            let unread: Option<bool> = statement.query_row([job.to_string()], |row| row.get(0)).optional()?;
            unread.ok_or(StoreError::UnknownJob(job))
        })?;
        if !unread {
            return Ok(());
        }
        self.write(Durability::Normal, |transaction| {
            transaction
                .prepare_cached("UPDATE jobs SET unread = 0, read_at = ?2 WHERE id = ?1 AND unread = 1")?
                .execute(params![job.to_string(), at.0])?;
            Ok(())
        })
    }

    fn unread(&mut self, workspace: &Path, limit: usize) -> Result<Vec<JobId>, StoreError> {
        self.read(|transaction| {
            let limit = limit.min(MOST_LISTED);
            let mut found: Vec<JobId> = Vec::new();
            for sql in [UNREAD_ANSWERS, UNREAD] {
                let values = params![rows::path(workspace), rows::count(limit - found.len())];
                for job in transaction.prepare_cached(sql)?.query_and_then(values, rows::job_id)? {
                    found.push(job?);
                }
            }
            Ok(found)
        })
    }

    fn queue(&mut self) -> Result<Vec<QueueRow>, StoreError> {
        self.read(|transaction| transaction.prepare_cached(QUEUE)?.query_and_then([], rows::queue_row)?.collect())
    }

    fn queue_place(&mut self, job: JobId) -> Result<Option<usize>, StoreError> {
        self.read(|transaction| {
            let place: i64 = transaction.prepare_cached(PLACE)?.query_row([job.to_string()], |row| row.get(0))?;
            Ok(usize::try_from(place).ok().filter(|&place| place > 0))
        })
    }

    fn last_of_session(&mut self, job: JobId, session: AgentSessionId) -> Result<Option<JobId>, StoreError> {
        self.read(|transaction| {
            locate(transaction, job)?;
            let mut statement = transaction.prepare_cached(LAST_OF_SESSION)?;
            let mut found =
                statement.query_map([job.to_string(), session.to_string()], |row| row.get::<_, String>(0))?;
            found.next().transpose().map(|id| id.and_then(|id| id.parse().ok())).map_err(StoreError::from)
        })
    }

    fn wait_with(&mut self, jobs: &[JobId], waiter: WaiterId) -> Result<Vec<JobId>, StoreError> {
        self.write(Durability::Normal, |transaction| {
            let mut note = transaction.prepare_cached(
                "UPDATE jobs SET waiter = ?2 WHERE id = ?1 AND state = 'queued' RETURNING cancel_requested",
            )?;
            let mut others = Vec::new();
            for job in jobs {
                let values = [job.to_string(), waiter.to_string()];
                let waits = note.query_row(values, |row| Ok(row.get_ref(0)? == ValueRef::Null)).optional()?;
                if waits != Some(true) {
                    others.push(*job);
                }
            }
            Ok(others)
        })
    }

    fn counts(&mut self) -> Result<JobCounts, StoreError> {
        self.read(|transaction| {
            let mut counts = JobCounts::default();
            let mut statement = transaction.prepare_cached(COUNTS)?;
            for found in
                statement.query_and_then([], |row| Ok::<_, StoreError>((rows::state(row)?, row.get::<_, i64>(1)?)))?
            {
                let (state, count) = found?;
                *counts.of_mut(state) = rows::unsigned(count);
            }
            Ok(counts)
        })
    }

    fn cost_by_day(&mut self, since: UnixMillis) -> Result<Vec<DayCost>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached(COSTS)?;
            statement
                .query_and_then([since.0], |row| {
                    Ok(DayCost {
                        day: row.get(0)?,
                        jobs: rows::unsigned(row.get(1)?),
                        cost_usd: row.get(2)?,
                        unknown: rows::unsigned(row.get(3)?),
                    })
                })?
                .collect()
        })
    }

    fn cost_by_chain(&mut self, since: UnixMillis) -> Result<Vec<ChainCost>, StoreError> {
        self.read(|transaction| {
            let mut statement = transaction.prepare_cached(CHAIN_COSTS)?;
            statement
                .query_and_then((since.0, CHAINS_MOST), |row| {
                    Ok(ChainCost {
                        chain: row.get(0)?,
                        jobs: rows::unsigned(row.get(1)?),
                        cost_usd: row.get(2)?,
                        unknown: rows::unsigned(row.get(3)?),
                    })
                })?
                .collect()
        })
    }

    fn prune(&mut self, policy: RetentionPolicy, now: UnixMillis) -> Result<Pruned, StoreError> {
        let mut pruned = Pruned::default();
        let seen = self.age(now)?;
        let ages = [(0, policy.max_age), (1, policy.max_unread_age)];
        for (unread, age) in ages {
            let (column, limit) = match policy.ages {
                Ages::Seen => ("seen_at", before(UnixMillis(seen), age)),
                Ages::Clock => ("finished_at", before(now, age)),
            };
            let condition = format!("unread = {unread} AND {column} < ?1");
            self.forget(&condition, limit, u64::MAX, &mut pruned)?;
        }
        for unread in [0, 1] {
            let excess = self.finished_bytes()?.saturating_sub(policy.max_bytes);
            self.forget("unread = ?1", unread, excess, &mut pruned)?;
        }
        if !pruned.jobs.is_empty() {
            let open = self.connection()?;
            let mut give_back = open.connection.prepare(&format!("PRAGMA incremental_vacuum({GIVEN_BACK})"))?;
            let mut pages = give_back.query([])?;
            // One page is given back at each step.
            while pages.next()?.is_some() {}
            drop(pages);
            drop(give_back);
            // What was forgotten is in the log as well, until it is begun anew. A reader who is in the middle of something
            // keeps it for now; whoever prunes next tries again.
            self.begin_log_anew()?;
        }
        Ok(pruned)
    }

    fn data_version(&mut self) -> Result<DataVersion, StoreError> {
        let open = self.connection()?;
        let by_others = open.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        let by_us = open.connection.total_changes();
        Ok(DataVersion { opened: self.opened, by_others, by_us })
    }

    fn moved_aside(&self) -> Option<PathBuf> {
        self.moved_aside.clone()
    }
}
