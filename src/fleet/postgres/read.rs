//! Rows as they come in, checked like a client's message.
//!
//! Owns: the columns of each kind of row and how they are read. May not know: when they are asked for.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use crate::base::ids::{FleetJobId, HostId, UnixMillis};
use crate::base::trace::TraceContext;
use crate::fleet::claiming::FleetRow;
use crate::fleet::job::{Fence, FleetState, FleetView, LateOutcome};
use crate::fleet::labels::Needs;
use crate::fleet::rows::{
    BadRow, NAME_BYTES, OUTCOME_BYTES, WORKSPACE_BYTES, count, id, json, text, word, word_or_nothing,
};
use crate::jobs::JobOutcome;
use crate::jobs::turns::SessionKey;

/// The columns of a row that waits or counts. What may be long is cut in the server.
pub(super) const QUEUE_COLUMNS: &str = "j.id::text, j.state, j.turn, left(j.workspace, 4401), coalesce(t.last_fence, 0), left(j.agent, 257),
    left(j.account, 257), left(j.session, 257), CASE WHEN octet_length(j.needs) <= 65536 THEN j.needs END, left(j.pin_state, 257),
    j.host::text, left(h.name, 257), left(j.owner, 257),
    greatest(extract(epoch FROM clock_timestamp() - j.accepted) * 1000, 0)::bigint";

/// The columns of a job that somebody waits for.
pub(super) const VIEW_COLUMNS: &str = "j.state, j.host::text, left(h.name, 257), j.cancel IS NOT NULL,
    CASE WHEN octet_length(j.outcome) <= 16777216 THEN j.outcome END, j.outcome IS NOT NULL,
    left(j.agent, 257), left(j.workspace, 4401), CASE WHEN octet_length(j.needs) <= 65536 THEN j.needs END,
    (extract(epoch FROM j.accepted) * 1000)::bigint";

/// The columns of an outcome that came too late.
pub(super) const LATE_COLUMNS: &str =
    "fence, host::text, state, CASE WHEN octet_length(outcome) <= 16777216 THEN outcome END,
    (extract(epoch FROM at) * 1000)::bigint";

/// A column of a type that it has.
pub(super) fn column<'a, T: FromSql<'a>>(row: &'a Row, at: usize, field: &'static str) -> Result<T, BadRow> {
    row.try_get(at).map_err(|_| BadRow::new(field, "has another type, or is not there"))
}

/// A number.
pub(super) fn big(row: &Row, at: usize, field: &'static str) -> Result<i64, BadRow> {
    column(row, at, field)
}

fn optional<'a>(row: &'a Row, at: usize, field: &'static str) -> Result<Option<&'a str>, BadRow> {
    column(row, at, field)
}

fn state(field: &'static str, value: &str) -> Result<FleetState, BadRow> {
    FleetState::parse(value).ok_or(BadRow::new(field, "is not understood"))
}

fn host(row: &Row, at: usize) -> Result<Option<HostId>, BadRow> {
    optional(row, at, "host")?.map(|host| id("host", host)).transpose()
}

fn name(row: &Row, at: usize) -> Result<Option<String>, BadRow> {
    optional(row, at, "name")?.map(|name| text("name", name, NAME_BYTES).map(str::to_owned)).transpose()
}

/// Reads [`QUEUE_COLUMNS`].
pub(super) fn queued(row: &Row) -> Result<FleetRow, BadRow> {
    let agent = word("agent", column(row, 5, "agent")?)?.to_owned();
    let session = optional(row, 7, "session")?.map(|session| word("session", session)).transpose()?;
    let session = session.map(|session| SessionKey { agent: agent.clone(), session: session.to_owned() });
    Ok(FleetRow {
        job: id("id", column(row, 0, "id")?)?,
        state: state("state", column(row, 1, "state")?)?,
        turn: count("turn", big(row, 2, "turn")?)?,
        workspace: text("workspace", column(row, 3, "workspace")?, WORKSPACE_BYTES)?.to_owned(),
        workspace_served: count("last_fence", big(row, 4, "last_fence")?)?,
        agent,
        account: word_or_nothing("account", column(row, 6, "account")?)?.to_owned(),
        session,
        needs: Needs::read(column(row, 8, "needs")?)?,
        pin_state: optional(row, 9, "pin_state")?.map(|pin| word("pin_state", pin)).transpose()?.map(str::to_owned),
        waited: Duration::from_millis(count("accepted", big(row, 13, "accepted")?)?),
        host: host(row, 10)?,
        host_name: name(row, 11)?,
        owner: text("owner", column(row, 12, "owner")?, NAME_BYTES)?.to_owned(),
    })
}

/// Reads [`VIEW_COLUMNS`].
pub(super) fn view(job: FleetJobId, row: &Row, late: Vec<LateOutcome>) -> Result<FleetView, BadRow> {
    let outcome = optional(row, 4, "outcome")?;
    if outcome.is_none() && column(row, 5, "outcome")? {
        return Err(BadRow::new("outcome", "is too long"));
    }
    Ok(FleetView {
        job,
        state: state("state", column(row, 0, "state")?)?,
        agent: word("agent", column(row, 6, "agent")?)?.to_owned(),
        workspace: text("workspace", column(row, 7, "workspace")?, WORKSPACE_BYTES)?.to_owned(),
        host: host(row, 1)?,
        host_name: name(row, 2)?,
        // Needs that are not understood let nobody clone.
        may_clone: Needs::read(column(row, 8, "needs")?).is_ok_and(|needs| !needs.clone.is_empty()),
        cancel_requested: column(row, 3, "cancel")?,
        accepted: UnixMillis(big(row, 9, "accepted")?),
        outcome: outcome.map(|outcome| json::<JobOutcome>("outcome", outcome, OUTCOME_BYTES)).transpose()?,
        late,
    })
}

/// Reads [`LATE_COLUMNS`].
pub(super) fn late(row: &Row) -> Result<LateOutcome, BadRow> {
    Ok(LateOutcome {
        fence: fence(row, 0)?,
        host: id("host", column(row, 1, "host")?)?,
        end: state("state", column(row, 2, "state")?)?,
        outcome: json("outcome", column(row, 3, "outcome")?, OUTCOME_BYTES)?,
        at: UnixMillis(big(row, 4, "at")?),
    })
}

/// A fence.
pub(super) fn fence(row: &Row, at: usize) -> Result<Fence, BadRow> {
    Ok(Fence(count("fence", big(row, at, "fence")?)?))
}

/// What is above a job in its caller's trace, read as a client's `traceparent` and `tracestate` are: what is wrong is none, and costs no
/// job.
pub(super) fn trace(row: &Row, at: usize) -> Option<TraceContext> {
    let context = TraceContext::parse(optional(row, at, "traceparent").ok()??)?;
    Some(match optional(row, at + 1, "tracestate") {
        Ok(Some(state)) => context.with_state(state),
        _ => context,
    })
}

/// A state with the ticket it has.
pub(super) fn standing(row: &Row) -> Result<(FleetState, Option<HostId>, Option<Fence>), BadRow> {
    let fence: Option<i64> = column(row, 2, "fence")?;
    let fence = fence.map(|fence| count("fence", fence)).transpose()?.map(Fence);
    Ok((state("state", column(row, 0, "state")?)?, host(row, 1)?, fence))
}

/// The ids a statement gave back.
pub(super) fn ids(rows: &[Row]) -> Result<Vec<FleetJobId>, BadRow> {
    rows.iter().map(|row| id("id", column(row, 0, "id")?)).collect()
}

/// The same of hosts.
pub(super) fn hosts(rows: &[Row]) -> Result<Vec<HostId>, BadRow> {
    rows.iter().map(|row| id("host", column(row, 0, "host")?)).collect()
}
