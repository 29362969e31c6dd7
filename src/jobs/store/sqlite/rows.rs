//! How values are stored and read back.
//!
//! Owns: the translation between columns and our types. A value that is not understood becomes an error that names the
//! column and never quotes it: it may be a prompt.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rusqlite::Row;
use rusqlite::types::{ToSqlOutput, ValueRef};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::ids::{HostId, JobId, UnixMillis, WaiterId};
use crate::jobs::journal::AgentEvent;
use crate::jobs::row::JobRow;
use crate::jobs::store::{Glance, QueueRow, SessionKey, StoreError};
use crate::jobs::{
    CancelReason, ConsultRequest, JobMode, JobOutcome, JobRecord, JobState, JobSummary, JournalEntry, JournalEvent,
    RunProcess,
};

/// Characters of the prompt in a listing.
const PROMPT_HEAD: usize = 80;

pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

pub(super) fn count(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Text when it is UTF-8, so that people can read the database, else the bytes.
pub(super) fn path(path: &Path) -> ToSqlOutput<'_> {
    let bytes = path.as_os_str().as_bytes();
    ToSqlOutput::Borrowed(match path.to_str() {
        Some(_) => ValueRef::Text(bytes),
        None => ValueRef::Blob(bytes),
    })
}

fn read_path(row: &Row<'_>, name: &'static str) -> Result<PathBuf, StoreError> {
    match row.get_ref(name)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Ok(OsString::from_vec(bytes.to_vec()).into()),
        _ => Err(StoreError::Unreadable { what: name }),
    }
}

fn parsed<T>(
    row: &Row<'_>,
    name: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, StoreError> {
    let unreadable = StoreError::Unreadable { what: name };
    match row.get_ref(name)? {
        ValueRef::Null => Ok(None),
        value => value.as_str().ok().and_then(parse).map(Some).ok_or(unreadable),
    }
}

fn required<T>(row: &Row<'_>, name: &'static str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, StoreError> {
    parsed(row, name, parse)?.ok_or(StoreError::Unreadable { what: name })
}

fn parse_mode(text: &str) -> Option<JobMode> {
    [JobMode::Sync, JobMode::Background].into_iter().find(|mode| mode.as_str() == text)
}

fn from_json<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}

/// Fails for paths that are not UTF-8, which JSON cannot hold.
pub(super) fn to_json(what: &'static str, value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|_| StoreError::Unstorable { what })
}

fn time(row: &Row<'_>, name: &'static str) -> Result<Option<UnixMillis>, StoreError> {
    Ok(row.get::<_, Option<i64>>(name)?.map(UnixMillis))
}

/// The first characters of a prompt, on one line.
pub(super) fn prompt_head(prompt: &str) -> String {
    // Four times as many are looked at, so that a megabyte of blanks costs nothing.
    let mut head = String::new();
    for word in prompt.chars().take(4 * PROMPT_HEAD).collect::<String>().split_whitespace() {
        if !head.is_empty() {
            head.push(' ');
        }
        head.extend(word.chars().filter(|c| !c.is_control()));
    }
    head.chars().take(PROMPT_HEAD).collect()
}

pub(super) fn job_id(row: &Row<'_>) -> Result<JobId, StoreError> {
    required(row, "id", |text| text.parse().ok())
}

pub(super) fn state(row: &Row<'_>) -> Result<JobState, StoreError> {
    required(row, "state", JobState::parse)
}

pub(super) fn cancel_reason(row: &Row<'_>) -> Result<Option<CancelReason>, StoreError> {
    parsed(row, "cancel_requested", CancelReason::parse)
}

pub(super) fn waiter(row: &Row<'_>) -> Result<Option<WaiterId>, StoreError> {
    parsed(row, "waiter", |text| text.parse().ok())
}

pub(super) fn host(row: &Row<'_>) -> Result<Option<HostId>, StoreError> {
    parsed(row, "host", |text| text.parse().ok())
}

fn process(row: &Row<'_>) -> Result<Option<RunProcess>, StoreError> {
    let Some(token) = parsed(row, "run_token", |text| text.parse().ok())? else { return Ok(None) };
    Ok(Some(RunProcess {
        pid: row.get("pid")?,
        start_time: unsigned(row.get("pid_start_time")?),
        token,
        session: row.get::<_, Option<u32>>("pid_session")?.unwrap_or(0),
        numbering: row.get::<_, Option<i64>>("pid_numbering")?.unwrap_or(0).cast_unsigned(),
    }))
}

pub(super) fn record(row: &Row<'_>) -> Result<JobRecord, StoreError> {
    Ok(JobRecord {
        id: job_id(row)?,
        sequence: unsigned(row.get("sequence")?),
        invocation: row.get("invocation")?,
        request_key: row.get("request_key")?,
        workspace: read_path(row, "workspace")?,
        mode: required(row, "mode", parse_mode)?,
        state: state(row)?,
        request: required(row, "request", from_json::<ConsultRequest>)?,
        chain: required(row, "chain", |text| text.parse().ok())?,
        depth: row.get("depth")?,
        accepted_at: UnixMillis(row.get("accepted_at")?),
        started_at: time(row, "started_at")?,
        finished_at: time(row, "finished_at")?,
        cancel_requested: cancel_reason(row)?,
        process: process(row)?,
        outcome: parsed(row, "outcome", from_json::<JobOutcome>)?,
        read_at: time(row, "read_at")?,
        last_event: unsigned(row.get("last_event")?),
        waiter: waiter(row)?,
        environment: row.get("environment")?,
        host: host(row)?,
        // One that a later version wrote otherwise is none: a trace is nothing to lose a job for.
        trace: parsed(row, "trace", |text| Some(from_json(text)))?.flatten(),
    })
}

pub(super) fn summary(row: &Row<'_>) -> Result<JobSummary, StoreError> {
    Ok(JobSummary {
        id: job_id(row)?,
        state: state(row)?,
        mode: required(row, "mode", parse_mode)?,
        agent: row.get("agent")?,
        workspace: read_path(row, "workspace")?,
        session_id: row.get("session_id")?,
        prompt_head: row.get("prompt_head")?,
        accepted_at: UnixMillis(row.get("accepted_at")?),
        finished_at: time(row, "finished_at")?,
        unread: row.get("unread")?,
    })
}

pub(super) fn job_row(row: &Row<'_>) -> Result<JobRow, StoreError> {
    Ok(JobRow {
        id: job_id(row)?,
        sequence: unsigned(row.get("sequence")?),
        state: state(row)?,
        mode: required(row, "mode", parse_mode)?,
        agent: row.get("agent")?,
        workspace: read_path(row, "workspace")?,
        chain: required(row, "chain", |text| text.parse().ok())?,
        depth: row.get("depth")?,
        accepted_at: UnixMillis(row.get("accepted_at")?),
        started_at: time(row, "started_at")?,
        finished_at: time(row, "finished_at")?,
        cost_usd: row.get("cost_usd")?,
        code: row.get("code")?,
        cancel_requested: cancel_reason(row)?,
        unread: row.get("unread")?,
        last_event: unsigned(row.get("last_event")?),
    })
}

pub(super) fn glance(row: &Row<'_>) -> Result<Glance, StoreError> {
    Ok(Glance {
        state: state(row)?,
        mode: required(row, "mode", parse_mode)?,
        cancel_requested: cancel_reason(row)?,
        last_event: unsigned(row.get("last_event")?),
        host: host(row)?,
    })
}

pub(super) fn queue_row(row: &Row<'_>) -> Result<QueueRow, StoreError> {
    let agent: String = row.get("agent")?;
    let session: Option<String> = row.get("session_id")?;
    Ok(QueueRow {
        job: job_id(row)?,
        sequence: unsigned(row.get("sequence")?),
        workspace: read_path(row, "workspace")?,
        session: session.map(|session| SessionKey { agent, session }),
        state: state(row)?,
        mode: required(row, "mode", parse_mode)?,
        accepted_at: UnixMillis(row.get("accepted_at")?),
        turn: unsigned(row.get("turn")?),
        workspace_served: unsigned(row.get::<_, Option<i64>>("served")?.unwrap_or(0)),
        cancel_requested: cancel_reason(row)?,
        waiter: waiter(row)?,
        environment: row.get("environment")?,
        host: host(row)?,
    })
}

/// An event of a later version keeps its number and loses its meaning.
pub(super) fn journal_entry(row: &Row<'_>) -> Result<JournalEntry, StoreError> {
    let unknown = || JournalEvent::Agent { event: AgentEvent::Other { kind: "unknown".to_owned() } };
    Ok(JournalEntry {
        seq: unsigned(row.get("seq")?),
        at: UnixMillis(row.get("at")?),
        event: required(row, "event", |text| Some(from_json(text).unwrap_or_else(unknown)))?,
    })
}
