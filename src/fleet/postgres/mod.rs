//! The fleet in PostgreSQL.
//!
//! Owns: the statement of each verb. May not know: who asks, what a run is. What a claim gives is chosen by `claiming`, as in memory;
//! what every verb answers is what [`core`](super::core) answers.
//!
//! ```text
//! verbs ──▶ one connection, a transaction a verb ──▶ schema `phone_opus`
//! bell ───▶ a connection of its own ── LISTEN
//! ```
//!
//! Invariants: (1) claims and sweeps hold one advisory lock of the database, so that caps and turns are exact; (2) every change of a
//! state is one update whose condition is the edge it takes, so that of two that meet one finds nothing to change; (3) what is
//! confirmed again is confirmed by a transaction that writes, so that it waits for a standby as the first one had to; (4) all times
//! are `clock_timestamp()` of the database; (5) what a row of a later version says that is not understood is left to hosts that
//! understand it, and counts.

mod accepting;
mod bell;
mod lazy;
mod link;
mod people;
mod read;
mod schema;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tokio_postgres::Row;

use self::bell::{Bell, CHANNEL};
pub use self::lazy::LazyFleet;
use self::link::{Fate, Link, Tx, VERB_BOUND, Way, flag, number, text};
use self::read::{LATE_COLUMNS, QUEUE_COLUMNS, VIEW_COLUMNS, big, column};
use super::claiming::{CapScope, Claimant, FleetQueue, FleetRow, choose};
use super::core::expired;
use super::job::{ClaimedJob, Fence, FleetState, FleetView, NewFleetJob, Ticket};
use super::labels::Labels;
use super::rows::{BadRow, NAME_BYTES, OUTCOME_BYTES, REQUEST_BYTES, json, written};
use super::{
    ClaimAsk, ClaimRefusal, Fleet, FleetAccept, FleetCancel, FleetClaim, FleetError, FleetFinish, FleetFuture,
    FleetLease, FleetPause, FleetRenewed, FleetStart, FleetSwept, HOST_KEPT, KEPT, MOST_CLAIMED, PAUSE_MOST, POLL,
    Renewal, RunFinish,
};
use crate::base::ids::{FleetJobId, HostId};
use crate::base::tasks;
use crate::base::trace::TraceContext;
use crate::jobs::{ConsultRequest, JobOutcome};

/// Held by whoever claims or sweeps, for a transaction. Any two numbers that no other program uses: these spell the name.
const LOCK_CLAIMS: i64 = 0x7068_6f6e_6531;

/// Held by whoever changes the tables.
const LOCK_SCHEMA: i64 = 0x7068_6f6e_6532;

/// Most rows a claim reads: those that may wait, and as many that run or are held. Beyond that caps could not be counted.
const MOST_READ: i64 = 8_000;

/// How far fences jump when the database's history changes: more than were drawn in the part that is lost. It takes about a second.
const FENCE_JUMP: i64 = 1_000_000;

/// Most late outcomes that are shown of one job; each is a claim of it that was lost.
const LATE_SHOWN: i64 = 8;

/// Most old rows one sweep forgets, so that it never takes long.
const FORGOTTEN_AT_ONCE: i64 = 1_000;

/// A fleet in a PostgreSQL database.
///
/// ```no_run
/// # use phone_opus::internals::fleet::{Fleet, FleetError, postgres::PgFleet};
/// # use phone_opus::internals::base::ids::FleetJobId;
/// # async fn example(job: FleetJobId) -> Result<(), FleetError> {
/// let fleet = PgFleet::open("postgres://team@db.example/phone_opus").await?;
/// let view = fleet.wait(job, std::time::Duration::from_secs(50)).await?;
/// # let _ = view;
/// # Ok(()) }
/// ```
#[cfg_attr(not(feature = "fleet"), doc = "Without the feature `fleet` it is there for tests only.")]
pub struct PgFleet {
    way: Way,
    link: Arc<Mutex<Option<Link>>>,
    /// Hung when somebody first wants to hear it.
    bell: OnceLock<Bell>,
}

/// Whether these settings say where a database is and how it is reached safely. Nothing is reached for it.
///
/// # Errors
///
/// What is wrong with them, without their text.
pub fn understood(settings: &str) -> Result<(), FleetError> {
    Way::read(settings).map(drop)
}

impl fmt::Debug for PgFleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgFleet").finish_non_exhaustive()
    }
}

impl PgFleet {
    /// Reaches a database, and makes the fleet's tables where they are missing.
    ///
    /// # Errors
    ///
    /// It cannot be reached, or not safely, or its tables are of a version this program may not use.
    pub async fn open(settings: &str) -> Result<Self, FleetError> {
        Self::open_at(settings, schema::known()).await
    }

    /// As a program would that knows the tables up to this version only.
    async fn open_at(settings: &str, version: i64) -> Result<Self, FleetError> {
        let settings = settings.to_owned();
        // The platform's authorities are files.
        let way = tasks::spawn_blocking(move || Way::new(&settings)).await;
        let way = way.map_err(|_| FleetError::Settings { detail: "the database's address is not understood" })??;
        Self::open_by(way, version).await
    }

    async fn open_by(way: Way, version: i64) -> Result<Self, FleetError> {
        let fleet = Self { way, link: Arc::default(), bell: OnceLock::new() };
        let migrated = fleet.within(|fate| async {
            let tx = fleet.begin(fate).await?;
            schema::migrate(&tx, version).await?;
            tx.commit().await
        });
        migrated.await?;
        Ok(fleet)
    }

    /// Rings when something in the fleet may have changed. Whoever waits for it looks each [`POLL`] besides.
    #[must_use]
    pub fn rings(&self) -> watch::Receiver<u64> {
        self.bell.get_or_init(|| Bell::hang(self.way.clone())).rings()
    }

    /// Sets a cap, or lifts it.
    ///
    /// # Errors
    ///
    /// As of any verb.
    pub async fn set_cap(&self, scope: &CapScope, cap: Option<u64>) -> Result<(), FleetError> {
        let scope = scope.write();
        CapScope::read(&scope)?;
        let cap = cap.map(|cap| i64::try_from(cap).map_err(|_| BadRow::new("cap", "is too large"))).transpose()?;
        self.within(|fate| async {
            let tx = self.begin(fate).await?;
            match cap {
                Some(cap) => {
                    let set = "INSERT INTO phone_opus.cap (scope, n) VALUES ($1, $2)
                               ON CONFLICT (scope) DO UPDATE SET n = excluded.n";
                    tx.changed(set, &[text(&scope), number(&cap)]).await?;
                }
                None => {
                    tx.changed("DELETE FROM phone_opus.cap WHERE scope = $1", &[text(&scope)]).await?;
                }
            }
            tx.commit().await
        })
        .await
    }

    /// Says whether a host may take jobs.
    ///
    /// # Errors
    ///
    /// As of any verb.
    pub async fn set_drained(&self, host: HostId, drained: bool) -> Result<(), FleetError> {
        let host = host.to_string();
        self.within(|fate| async {
            let tx = self.begin(fate).await?;
            let set = "UPDATE phone_opus.host SET drained = $2 WHERE host = $1::uuid";
            tx.changed(set, &[text(&host), flag(&drained)]).await?;
            tx.commit().await
        })
        .await
    }

    async fn begin(&self, fate: Fate) -> Result<Tx, FleetError> {
        let slot = Arc::clone(&self.link).lock_owned().await;
        Tx::begin(&self.way, slot, fate).await
    }

    /// A verb within its time.
    async fn within<T, F>(&self, verb: impl FnOnce(Fate) -> F) -> Result<T, FleetError>
    where
        F: Future<Output = Result<T, FleetError>>,
    {
        let fate = Fate::default();
        match tokio::time::timeout(VERB_BOUND, verb(fate.clone())).await {
            Ok(done) => done,
            Err(_) => Err(fate.overdue()),
        }
    }

    async fn do_claim(&self, ask: &ClaimAsk, fate: Fate) -> Result<FleetClaim, FleetError> {
        let tx = self.begin(fate).await?;
        tx.rows("SELECT pg_advisory_xact_lock($1)", &[number(&LOCK_CLAIMS)]).await?;
        let host = ask.host.to_string();
        let quiet = meta(&tx).await?.quiet;
        let find = "SELECT left(name, 257), left(state_id, 257), CASE WHEN octet_length(labels) <= 65536 THEN labels END, drained,
                        session_user::text FROM phone_opus.host WHERE host = $1::uuid AND lease_until > clock_timestamp()";
        let found = tx.row(find, &[text(&host)]).await?;
        let not_now = match &found {
            None => Some(ClaimRefusal::LeaseOver),
            Some(_) if quiet => Some(ClaimRefusal::Quiet),
            Some(row) => column::<bool>(row, 3, "drained")?.then_some(ClaimRefusal::Drained),
        };
        let (Some(row), None) = (found, not_now) else {
            // What was noticed of the database's history stays.
            tx.commit().await?;
            return Ok(FleetClaim::NotNow(not_now.unwrap_or(ClaimRefusal::LeaseOver)));
        };
        let labels = Labels::read(column(&row, 2, "labels")?)?;
        let user: String = column(&row, 4, "owner")?;
        let owners: Vec<String> = ask.accepts.iter().cloned().chain([user]).collect();
        let claimant = Claimant {
            host: ask.host,
            name: super::rows::text("name", column(&row, 0, "name")?, NAME_BYTES)?,
            state_id: super::rows::word("state_id", column(&row, 1, "state_id")?)?,
            labels: &labels,
            owners: &owners,
            most: ask.most.min(MOST_CLAIMED),
        };
        let mut queue = queue(&tx).await?;
        let requests = requests_for(&tx, &mut queue, &claimant).await?;
        let mut given = Vec::new();
        for (row, AskedOf { request, trace }) in requests {
            if let Some(fence) = give(&tx, row.job, &host).await? {
                let ticket = Ticket { job: row.job, host: ask.host, fence };
                given.push(ClaimedJob { ticket, workspace: row.workspace, account: row.account, request, trace });
            }
        }
        tx.commit().await?;
        Ok(FleetClaim::Claimed(given))
    }

    async fn do_start(&self, ticket: Ticket, fate: Fate) -> Result<FleetStart, FleetError> {
        let (job, host, fence) = (ticket.job.to_string(), ticket.host.to_string(), whole(ticket.fence.0)?);
        let tx = self.begin(fate).await?;
        let start = "UPDATE phone_opus.job SET state = 'running', started = clock_timestamp()
                     WHERE id = $1::uuid AND host = $2::uuid AND fence = $3 AND state = 'claimed' AND cancel IS NULL
                       AND EXISTS (SELECT 1 FROM phone_opus.host WHERE host = $2::uuid AND lease_until > clock_timestamp())";
        let begun = tx.changed(start, &[text(&job), text(&host), number(&fence)]).await? == 1;
        let answer = match begun {
            true => FleetStart::Started,
            false => match standing(&tx, &job).await? {
                None => FleetStart::NoJob,
                Some((state, host, fence)) if (host, fence) != (Some(ticket.host), Some(ticket.fence)) => {
                    FleetStart::Refused { state }
                }
                Some((FleetState::Running, ..)) => FleetStart::Started,
                // What is to be cancelled is over as long as nobody started it.
                Some((FleetState::Claimed, ..)) => FleetStart::LeaseOver,
                Some((state, ..)) => FleetStart::Refused { state },
            },
        };
        tx.commit().await?;
        Ok(answer)
    }

    async fn do_renew(&self, renewal: &Renewal, fate: Fate) -> Result<FleetRenewed, FleetError> {
        renewal.checked()?;
        let (host, labels) = (renewal.host.to_string(), renewal.labels.write()?);
        let tx = self.begin(fate).await?;
        let Meta { quiet, lease } = meta(&tx).await?;
        let lasts = millis(lease.get());
        let mut reasserted = 0;
        for ticket in renewal.running.iter().filter(|ticket| quiet && ticket.host == renewal.host) {
            let again =
                "UPDATE phone_opus.job SET state = 'running', host = $2::uuid, fence = $3, started = clock_timestamp()
                         WHERE id = $1::uuid AND state IN ('queued', 'claimed') AND coalesce(fence, 0) <= $3";
            let (job, fence) = (ticket.job.to_string(), whole(ticket.fence.0)?);
            let changed = tx.changed(again, &[text(&job), text(&host), number(&fence)]).await?;
            reasserted += usize::try_from(changed).unwrap_or(0);
        }
        // What does not change is not written: the row stays on its page.
        let renew = "UPDATE phone_opus.host SET lease_until = clock_timestamp() + $5 * interval '1 millisecond', seen = seen + 1
                     WHERE host = $1::uuid AND name = $2 AND state_id = $3 AND labels = $4 RETURNING drained";
        let values = [text(&host), text(&renewal.name), text(&renewal.state_id), text(&labels), number(&lasts)];
        let row = match tx.row(renew, &values).await? {
            Some(row) => Some(row),
            None => {
                let write = "INSERT INTO phone_opus.host (host, name, state_id, labels, lease_until)
                             VALUES ($1::uuid, $2, $3, $4, clock_timestamp() + $5 * interval '1 millisecond')
                             ON CONFLICT (host) DO UPDATE SET name = excluded.name, state_id = excluded.state_id,
                                 labels = excluded.labels, lease_until = excluded.lease_until, seen = host.seen + 1
                             RETURNING drained";
                tx.row(write, &values).await?
            }
        };
        let drained = row.map(|row| column(&row, 0, "drained")).transpose()?.unwrap_or(false);
        tx.commit().await?;
        Ok(FleetRenewed { drained, quiet, reasserted, lease })
    }

    async fn do_finish(&self, finish: &RunFinish, fate: Fate) -> Result<FleetFinish, FleetError> {
        let outcome = finish.checked()?;
        let ticket = finish.ticket;
        let (job, host, fence) = (ticket.job.to_string(), ticket.host.to_string(), whole(ticket.fence.0)?);
        let end = finish.end.as_str();
        let tx = self.begin(fate).await?;
        if let Some(pause) = &finish.pause {
            write_pause(&tx, pause).await?;
        }
        let values = [text(&job), text(&host), number(&fence), text(&end), text(&outcome)];
        let ended = "UPDATE phone_opus.job SET state = $4, ended = clock_timestamp(), outcome = $5
                     WHERE id = $1::uuid AND host = $2::uuid AND fence = $3
                       AND (state = 'running' OR (state = 'claimed' AND $4 IN ('failed', 'cancelled')))";
        if tx.changed(ended, &values).await? == 1 {
            notify(&tx).await?;
            tx.commit().await?;
            return Ok(FleetFinish::Finished);
        }
        let found = standing(&tx, &job).await?;
        let own = found.is_some_and(|(_, host, fence)| (host, fence) == (Some(ticket.host), Some(ticket.fence)));
        let answer = match found {
            Some((FleetState::Succeeded | FleetState::Failed | FleetState::Cancelled, ..)) if own => {
                FleetFinish::Already
            }
            // Of two that were interrupted the one its host told has an outcome.
            Some((FleetState::Interrupted, ..)) if own && has_outcome(&tx, &job).await? => FleetFinish::Already,
            Some((state, ..)) => FleetFinish::Late { state },
            None => FleetFinish::NoJob,
        };
        if answer != FleetFinish::Already {
            let keep =
                "INSERT INTO phone_opus.late (job, fence, host, state, outcome) VALUES ($1::uuid, $3, $2::uuid, $4, $5)
                        ON CONFLICT (job, fence) DO NOTHING";
            tx.changed(keep, &values).await?;
        }
        if own && answer != FleetFinish::Already {
            // Nothing of it runs any more.
            tx.changed("UPDATE phone_opus.job SET hold_until = NULL WHERE id = $1::uuid", &[text(&job)]).await?;
            notify(&tx).await?;
        }
        tx.commit().await?;
        Ok(answer)
    }

    async fn do_sweep(&self, fate: Fate) -> Result<FleetSwept, FleetError> {
        let tx = self.begin(fate).await?;
        tx.rows("SELECT pg_advisory_xact_lock($1)", &[number(&LOCK_CLAIMS)]).await?;
        let Meta { quiet, lease } = meta(&tx).await?;
        if quiet {
            tx.commit().await?;
            return Ok(FleetSwept { quiet: true, ..FleetSwept::default() });
        }
        // One lease more, for a start that was on its way.
        let after = millis(lease.get());
        let lost = "NOT EXISTS (SELECT 1 FROM phone_opus.host h WHERE h.host = job.host
                        AND h.lease_until + $1 * interval '1 millisecond' > clock_timestamp())";
        let requeue = format!(
            "UPDATE phone_opus.job SET state = 'queued', host = NULL, fence = NULL, claimed = NULL
             WHERE state = 'claimed' AND ({lost} OR (position('\"clone\":' in needs) = 0
                 AND coalesce(claimed, '-infinity') + 2 * $1 * interval '1 millisecond' <= clock_timestamp()))
             RETURNING id::text, turn"
        );
        let interrupt = format!(
            "UPDATE phone_opus.job SET state = 'interrupted', ended = clock_timestamp(),
                 hold_until = coalesce(started, clock_timestamp()) + timeout_s * interval '1 second'
             WHERE state = 'running' AND {lost} RETURNING id::text, turn"
        );
        let expire = "UPDATE phone_opus.job SET state = 'failed', ended = clock_timestamp(), outcome = $1
                      WHERE state = 'queued' AND accepted + timeout_s * interval '1 second' <= clock_timestamp()
                      RETURNING id::text, turn";
        let nobody_came = written::<JobOutcome>("outcome", &expired(), OUTCOME_BYTES)?;
        let mut swept = FleetSwept {
            requeued: in_order(&tx, &requeue, &[number(&after)]).await?,
            interrupted: in_order(&tx, &interrupt, &[number(&after)]).await?,
            expired: in_order(&tx, expire, &[text(&nobody_came)]).await?,
            ..FleetSwept::default()
        };
        swept.forgotten = forget(&tx).await?;
        if !(swept.requeued.is_empty() && swept.interrupted.is_empty() && swept.expired.is_empty()) {
            notify(&tx).await?;
        }
        tx.commit().await?;
        Ok(swept)
    }

    async fn do_cancel(&self, job: FleetJobId, fate: Fate) -> Result<FleetCancel, FleetError> {
        let job = job.to_string();
        let tx = self.begin(fate).await?;
        let end = "UPDATE phone_opus.job SET state = 'cancelled', cancel = clock_timestamp(), ended = clock_timestamp(), fence = NULL
                   WHERE id = $1::uuid AND state IN ('queued', 'claimed')";
        let ask = "UPDATE phone_opus.job SET cancel = coalesce(cancel, clock_timestamp()) WHERE id = $1::uuid AND state = 'running'";
        let answer = if tx.changed(end, &[text(&job)]).await? == 1 {
            FleetCancel::Ended
        } else if tx.changed(ask, &[text(&job)]).await? == 1 {
            FleetCancel::Asked
        } else {
            match standing(&tx, &job).await? {
                Some((state, ..)) if state.is_terminal() => FleetCancel::Over { state },
                // It was begun or given back between the two.
                Some(_) => return Err(FleetError::Unavailable { detail: "the job was changing".to_owned() }),
                None => FleetCancel::NoJob,
            }
        };
        if matches!(answer, FleetCancel::Ended | FleetCancel::Asked) {
            notify(&tx).await?;
        }
        tx.commit().await?;
        Ok(answer)
    }

    async fn look(&self, job: FleetJobId, fate: Fate) -> Result<Option<FleetView>, FleetError> {
        let id = job.to_string();
        let tx = self.begin(fate).await?;
        let find = format!(
            "SELECT {VIEW_COLUMNS} FROM phone_opus.job j LEFT JOIN phone_opus.host h ON h.host = j.host WHERE j.id = $1::uuid"
        );
        let row = tx.row(&find, &[text(&id)]).await?;
        let find = format!("SELECT {LATE_COLUMNS} FROM phone_opus.late WHERE job = $1::uuid ORDER BY fence LIMIT $2");
        let late = tx.rows(&find, &[text(&id), number(&LATE_SHOWN)]).await?;
        let view = row.map(|row| read::view(job, &row, late.iter().filter_map(|row| read::late(row).ok()).collect()));
        tx.commit().await?;
        Ok(view.transpose()?)
    }
}

impl Fleet for PgFleet {
    fn accept<'a>(&'a self, job: &'a NewFleetJob) -> FleetFuture<'a, FleetAccept> {
        self.within(|fate| self.do_accept(job, fate)).boxed()
    }

    fn claim<'a>(&'a self, ask: &'a ClaimAsk) -> FleetFuture<'a, FleetClaim> {
        self.within(|fate| self.do_claim(ask, fate)).boxed()
    }

    fn start(&self, ticket: Ticket) -> FleetFuture<'_, FleetStart> {
        self.within(move |fate| self.do_start(ticket, fate)).boxed()
    }

    fn renew<'a>(&'a self, renewal: &'a Renewal) -> FleetFuture<'a, FleetRenewed> {
        self.within(|fate| self.do_renew(renewal, fate)).boxed()
    }

    fn finish<'a>(&'a self, finish: &'a RunFinish) -> FleetFuture<'a, FleetFinish> {
        self.within(|fate| self.do_finish(finish, fate)).boxed()
    }

    fn sweep(&self) -> FleetFuture<'_, FleetSwept> {
        self.within(|fate| self.do_sweep(fate)).boxed()
    }

    fn cancel(&self, job: FleetJobId) -> FleetFuture<'_, FleetCancel> {
        self.within(move |fate| self.do_cancel(job, fate)).boxed()
    }

    fn changes(&self) -> FleetFuture<'_, watch::Receiver<u64>> {
        std::future::ready(Ok(self.rings())).boxed()
    }

    fn wait(&self, job: FleetJobId, most: Duration) -> FleetFuture<'_, Option<FleetView>> {
        let until = Instant::now() + most;
        let mut rings = self.rings();
        async move {
            loop {
                rings.mark_unchanged();
                let view = self.within(|fate| self.look(job, fate)).await;
                let over = match &view {
                    Ok(view) => view.as_ref().is_none_or(|view| view.state.is_terminal()),
                    // It may be back before the time is over.
                    Err(FleetError::Unavailable { .. } | FleetError::Unsure { .. }) => false,
                    Err(_) => true,
                };
                if over || Instant::now() >= until {
                    return view;
                }
                let look = until.min(Instant::now() + jittered(POLL));
                // A bell that is gone rings no more; the time goes on.
                if let Ok(Err(_)) = tokio::time::timeout_at(look, rings.changed()).await {
                    tokio::time::sleep_until(look).await;
                }
            }
        }
        .boxed()
    }
}

/// A little less or more, so that hosts that began together do not look together.
fn jittered(time: Duration) -> Duration {
    let draw = u32::from(uuid::Uuid::new_v4().as_bytes()[0]);
    time * (224 + draw / 4) / 256
}

fn whole(number: u64) -> Result<i64, BadRow> {
    i64::try_from(number).map_err(|_| BadRow::new("number", "is too large"))
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

async fn notify(tx: &Tx) -> Result<(), FleetError> {
    tx.rows("SELECT pg_notify($1, '')", &[text(&CHANNEL)]).await.map(drop)
}

/// A job's state and ticket. Its row is locked, which is written.
async fn standing(tx: &Tx, job: &str) -> Result<Option<(FleetState, Option<HostId>, Option<Fence>)>, FleetError> {
    let find = "SELECT state, host::text, fence FROM phone_opus.job WHERE id = $1::uuid FOR NO KEY UPDATE";
    let row = tx.row(find, &[text(&job)]).await?;
    Ok(row.map(|row| read::standing(&row)).transpose()?)
}

async fn has_outcome(tx: &Tx, job: &str) -> Result<bool, FleetError> {
    let find = "SELECT 1 FROM phone_opus.job WHERE id = $1::uuid AND outcome IS NOT NULL";
    Ok(tx.row(find, &[text(&job)]).await?.is_some())
}

/// What holds for the whole fleet.
struct Meta {
    /// Whether the database's history changed less than a lease ago.
    quiet: bool,
    lease: FleetLease,
}

/// Looks at what holds for the whole fleet. Whoever notices first that the database's history changed writes it down for everybody.
async fn meta(tx: &Tx) -> Result<Meta, FleetError> {
    let see = "SELECT m.system_id, m.timeline, (pg_control_system()).system_identifier::text,
                   substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8), coalesce(m.quiet_until > clock_timestamp(), false),
                   m.lease_ms
               FROM phone_opus.meta m";
    let missing = || FleetError::Unavailable { detail: "its tables are not whole".to_owned() };
    let row = tx.row(see, &[]).await?.ok_or_else(missing)?;
    let (known_system, known_line): (Option<String>, Option<String>) =
        (column(&row, 0, "system_id")?, column(&row, 1, "timeline")?);
    let (system, line): (String, String) = (column(&row, 2, "system_id")?, column(&row, 3, "timeline")?);
    let lease = FleetLease::of_millis(super::rows::count("lease_ms", big(&row, 5, "lease_ms")?)?);
    if known_system.as_ref() == Some(&system) && known_line.as_ref() == Some(&line) {
        return Ok(Meta { quiet: column(&row, 4, "quiet_until")?, lease });
    }
    // The first look of all has nothing to compare with.
    let quiet = if known_system.is_some() { millis(lease.get()) } else { 0 };
    let write = "UPDATE phone_opus.meta SET system_id = $1, timeline = $2,
                     quiet_until = clock_timestamp() + $3 * interval '1 millisecond'
                 WHERE system_id IS DISTINCT FROM $1 OR timeline IS DISTINCT FROM $2";
    let first = tx.changed(write, &[text(&system), text(&line), number(&quiet)]).await? == 1;
    if first && quiet > 0 {
        // Drawn and not set, so that nobody needs the right to set it back.
        let jump = "SELECT max(nextval('phone_opus.fence')) FROM generate_series(1::int8, $1)";
        tx.rows(jump, &[number(&FENCE_JUMP)]).await?;
    }
    Ok(Meta { quiet: quiet > 0, lease })
}

/// What a claim looks at. Rows that are not understood are left out, and count where they may run.
async fn queue(tx: &Tx) -> Result<FleetQueue, FleetError> {
    let find = format!(
        "SELECT {QUEUE_COLUMNS} FROM phone_opus.job j LEFT JOIN phone_opus.turn t ON t.lane = j.lane
         LEFT JOIN phone_opus.host h ON h.host = j.host
         WHERE j.state IN ('queued', 'claimed', 'running')
            OR (j.hold_until > clock_timestamp() AND j.state = 'interrupted') LIMIT $1"
    );
    let rows = tx.rows(&find, &[number(&MOST_READ)]).await?;
    if i64::try_from(rows.len()).is_ok_and(|read| read >= MOST_READ) {
        return Err(FleetError::Unavailable { detail: "it has more jobs than a claim can look at".to_owned() });
    }
    let mut queue = FleetQueue::default();
    for row in &rows {
        match read::queued(row) {
            Ok(row) => queue.rows.push(row),
            Err(_) if row.try_get(1).is_ok_and(|state: &str| state == FleetState::Queued.as_str()) => {}
            Err(_) => queue.unread += 1,
        }
    }
    queue.caps = caps(tx).await?;
    unseen(tx, &mut queue).await?;
    let find = "SELECT left(scope, 513) FROM phone_opus.pause WHERE until > clock_timestamp() LIMIT $1";
    for row in tx.rows(find, &[number(&MOST_READ)]).await? {
        queue.paused.extend(CapScope::read(column(&row, 0, "scope")?).ok());
    }
    Ok(queue)
}

/// What counts of other users' jobs, where users are kept apart: as many as there are, and nothing of what they are.
async fn unseen(tx: &Tx, queue: &mut FleetQueue) -> Result<(), FleetError> {
    let find = "SELECT agent, account, host_name, jobs FROM phone_opus.unseen() WHERE row_security_active('phone_opus.job') LIMIT $1";
    for row in tx.rows(find, &[number(&MOST_READ)]).await? {
        let jobs = super::rows::count("jobs", big(&row, 3, "jobs")?)?;
        queue.count_unseen(column(&row, 0, "agent")?, column(&row, 1, "account")?, column(&row, 2, "name")?, jobs);
    }
    Ok(())
}

/// The caps. One whose number is no number allows nothing; one about what only later versions know is theirs to keep.
async fn caps(tx: &Tx) -> Result<BTreeMap<CapScope, u64>, FleetError> {
    let mut caps = BTreeMap::new();
    for row in tx.rows("SELECT left(scope, 513), n FROM phone_opus.cap LIMIT $1", &[number(&MOST_READ)]).await? {
        if let Ok(scope) = CapScope::read(column(&row, 0, "scope")?) {
            caps.insert(scope, super::rows::count("cap", big(&row, 1, "cap")?).unwrap_or(0));
        }
    }
    Ok(caps)
}

/// The chosen jobs with what is asked in them. One whose request this version does not understand waits for a host that does.
async fn requests_for(
    tx: &Tx,
    queue: &mut FleetQueue,
    claimant: &Claimant<'_>,
) -> Result<Vec<(FleetRow, AskedOf)>, FleetError> {
    'anew: loop {
        let mut requests = Vec::new();
        for job in choose(queue, claimant) {
            let Some(request) = request(tx, job).await? else {
                queue.rows.retain(|row| row.job != job);
                continue 'anew;
            };
            let row = queue.rows.iter().find(|row| row.job == job);
            requests.extend(row.map(|row| (row.clone(), request)));
        }
        return Ok(requests);
    }
}

/// What is asked for in a job, and what is above it in its caller's trace.
struct AskedOf {
    request: ConsultRequest,
    trace: Option<TraceContext>,
}

async fn request(tx: &Tx, job: FleetJobId) -> Result<Option<AskedOf>, FleetError> {
    let find = "SELECT CASE WHEN octet_length(request) <= 8388608 THEN request END, left(traceparent, 256), left(tracestate, 513)
                FROM phone_opus.job WHERE id = $1::uuid";
    let row = tx.row(find, &[text(&job.to_string())]).await?;
    let asked = |row: &Row| {
        let request = json("request", column(row, 0, "request").ok()?, REQUEST_BYTES).ok()?;
        Some(AskedOf { request, trace: read::trace(row, 1) })
    };
    Ok(row.as_ref().and_then(asked))
}

/// Gives a waiting job to a host.
async fn give(tx: &Tx, job: FleetJobId, host: &str) -> Result<Option<Fence>, FleetError> {
    let take = "WITH taken AS (
                    UPDATE phone_opus.job SET state = 'claimed', fence = nextval('phone_opus.fence'), host = $2::uuid,
                        claimed = clock_timestamp()
                    WHERE id = $1::uuid AND state = 'queued' AND cancel IS NULL RETURNING lane, fence),
                turned AS (
                    INSERT INTO phone_opus.turn (lane, last_fence) SELECT lane, fence FROM taken
                    ON CONFLICT (lane) DO UPDATE SET last_fence = excluded.last_fence)
                SELECT fence FROM taken";
    let row = tx.row(take, &[text(&job.to_string()), text(&host)]).await?;
    Ok(row.map(|row| read::fence(&row, 0)).transpose()?)
}

/// A usage limit that was met. The later one of two counts.
async fn write_pause(tx: &Tx, pause: &FleetPause) -> Result<(), FleetError> {
    let write = "INSERT INTO phone_opus.pause (scope, until, why) VALUES ($1, clock_timestamp() + $2 * interval '1 millisecond', $3)
                 ON CONFLICT (scope) DO UPDATE SET until = greatest(pause.until, excluded.until), why = excluded.why";
    let (scope, lasts) = (pause.scope.write(), millis(pause.lasts.min(PAUSE_MOST)));
    tx.changed(write, &[text(&scope), number(&lasts), text(&pause.why)]).await.map(drop)
}

/// Runs an update that gives back ids and turns; the ids in the order of acceptance.
async fn in_order(tx: &Tx, update: &str, params: &[link::Param<'_>]) -> Result<Vec<FleetJobId>, FleetError> {
    let mut rows = tx.rows(update, params).await?;
    rows.sort_by_key(|row| row.try_get::<_, i64>(1).unwrap_or(i64::MAX));
    Ok(read::ids(&rows)?)
}

/// Forgets what is old. How many jobs that were.
async fn forget(tx: &Tx) -> Result<usize, FleetError> {
    let kept = millis(KEPT);
    let jobs = "DELETE FROM phone_opus.job WHERE id IN (
                    SELECT id FROM phone_opus.job WHERE ended <= clock_timestamp() - $1 * interval '1 millisecond'
                        AND (hold_until IS NULL OR hold_until <= clock_timestamp()) ORDER BY ended LIMIT $2)";
    let forgotten = tx.changed(jobs, &[number(&kept), number(&FORGOTTEN_AT_ONCE)]).await?;
    let late = "DELETE FROM phone_opus.late WHERE at <= clock_timestamp() - $1 * interval '1 millisecond'";
    tx.changed(late, &[number(&kept)]).await?;
    tx.changed("DELETE FROM phone_opus.pause WHERE until <= clock_timestamp()", &[]).await?;
    let hosts = "DELETE FROM phone_opus.host WHERE lease_until + $1 * interval '1 millisecond' <= clock_timestamp()
                     AND NOT EXISTS (SELECT 1 FROM phone_opus.job j WHERE j.host = host.host
                         AND (j.state IN ('claimed', 'running') OR j.hold_until > clock_timestamp()))";
    tx.changed(hosts, &[number(&millis(HOST_KEPT))]).await?;
    // A workspace that comes back is due since it came, with or without its turn.
    let turns = "DELETE FROM phone_opus.turn t WHERE NOT EXISTS (SELECT 1 FROM phone_opus.job j WHERE j.lane = t.lane)";
    tx.changed(turns, &[]).await?;
    Ok(usize::try_from(forgotten).unwrap_or(usize::MAX))
}
