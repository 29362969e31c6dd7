//! How a job is put into the queue, or joins one that is there.
//!
//! Owns: the statements of [`accept`](crate::fleet::Fleet::accept). May not know: who asks, what a run is.

use super::link::{Fate, Tx, number, text};
use super::read::{big, column};
use super::{PgFleet, notify, whole};
use crate::base::trace::TraceContext;
use crate::fleet::job::{FrozenJob, NewFleetJob};
use crate::fleet::rows::id;
use crate::fleet::{FleetAccept, FleetError, MOST_QUEUED};

impl PgFleet {
    pub(super) async fn do_accept(&self, job: &NewFleetJob, fate: Fate) -> Result<FleetAccept, FleetError> {
        let mut frozen = job.freeze()?;
        match self.put(&frozen, fate.clone()).await {
            // Rights from before there were traces cost the trace and no consult (L10).
            Err(error) if frozen.trace.is_some() && lacks_right(&error) => {
                frozen.trace = None;
                self.put(&frozen, fate).await
            }
            accepted => accepted,
        }
    }

    async fn put(&self, frozen: &FrozenJob, fate: Fate) -> Result<FleetAccept, FleetError> {
        let (new, timeout_s) = (frozen.id.to_string(), whole(frozen.timeout_s)?);
        let most = i64::try_from(MOST_QUEUED).unwrap_or(i64::MAX);
        let tx = self.begin(fate).await?;
        let insert = |columns: &str, values: &str| {
            format!(
                "INSERT INTO phone_opus.job (id, workspace, lane, request_key, request, digest, agent, account, needs, session,
                     pin_state, timeout_s{columns})
                 SELECT $1::uuid, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12{values}
                 WHERE (SELECT count(*) FROM phone_opus.job WHERE state = 'queued') < $13
                 ON CONFLICT (lane, request_key) DO NOTHING"
            )
        };
        let traceparent = frozen.trace.as_ref().map(TraceContext::traceparent);
        let tracestate = frozen.trace.as_ref().and_then(|trace| trace.state.clone());
        let mut values = vec![
            text(&new),
            text(&frozen.workspace),
            text(&frozen.lane),
            text(&frozen.request_key),
            text(&frozen.request),
            text(&frozen.digest),
            text(&frozen.agent),
            text(&frozen.account),
            text(&frozen.needs),
            text(&frozen.session),
            text(&frozen.pin_state),
            number(&timeout_s),
            number(&most),
        ];
        let insert = match &traceparent {
            Some(_) => {
                values.extend([text(&traceparent), text(&tracestate)]);
                insert(", traceparent, tracestate", ", $14, $15")
            }
            None => insert("", ""),
        };
        if tx.changed(&insert, &values).await? == 1 {
            notify(&tx).await?;
            tx.commit().await?;
            return Ok(FleetAccept::Inserted(frozen.id));
        }
        // Locked, which is written: the commit waits for a standby again.
        let find = "SELECT id::text, left(digest, 65) FROM phone_opus.job WHERE lane = $1 AND request_key = $2 FOR NO KEY UPDATE";
        let found = tx.row(find, &[text(&frozen.lane), text(&frozen.request_key)]).await?;
        let answer = match found {
            Some(row) => {
                let known = id("id", column(&row, 0, "id")?)?;
                let same = frozen.is_same_as(column(&row, 1, "digest")?)?;
                if same { FleetAccept::Joined(known) } else { FleetAccept::Conflict(known) }
            }
            None => full_or_hidden(&tx, frozen).await?,
        };
        tx.commit().await?;
        Ok(answer)
    }
}

/// Why a job that nobody is shown was not put in.
async fn full_or_hidden(tx: &Tx, job: &FrozenJob) -> Result<FleetAccept, FleetError> {
    let find = "SELECT (SELECT count(*) FROM phone_opus.job WHERE state = 'queued'), phone_opus.has_key($1, $2)";
    let missing = || FleetError::Unavailable { detail: "its tables are not whole".to_owned() };
    let row = tx.row(find, &[text(&job.lane), text(&job.request_key)]).await?.ok_or_else(missing)?;
    if column(&row, 1, "has_key")? {
        return Ok(FleetAccept::Hidden);
    }
    let queued = big(&row, 0, "count")?;
    Ok(FleetAccept::QueueFull { queued: usize::try_from(queued).unwrap_or(MOST_QUEUED) })
}

/// Whether a statement was refused because this user lacks a right, or the tables a column.
fn lacks_right(error: &FleetError) -> bool {
    let FleetError::Unavailable { detail } = error else { return false };
    ["(42501)", "(42703)"].iter().any(|code| detail.contains(code))
}
