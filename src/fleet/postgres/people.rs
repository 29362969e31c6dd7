//! What people ask of a fleet's database: how it stands, who is in it, and whether it is fit.
//!
//! Owns: those statements. May not know: how anything is shown. Every row is read like a client's message: one that is not understood is
//! counted and left out.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_postgres::{Client, Row};

use super::link::{Fate, Link, Tx, VERB_BOUND, Way, flag, number, text};
use super::read::{big, column};
use super::{PgFleet, schema};
use crate::base::ids::{HostId, UnixMillis};
use crate::base::tasks;
use crate::fleet::claiming::CapScope;
use crate::fleet::labels::Labels;
use crate::fleet::people::{CapSeen, FleetExam, FleetHostSeen, FleetSeen, PauseSeen, SETTINGS, SHOWN};
use crate::fleet::rows::{BadRow, NAME_BYTES, count, id, text as text_row};
use crate::fleet::{FleetError, FleetState};

/// Longest a notification of one's own takes.
const HEARS_WITHIN: Duration = Duration::from_secs(5);

impl PgFleet {
    /// How the fleet stands.
    ///
    /// # Errors
    ///
    /// As of any verb.
    pub async fn seen(&self) -> Result<FleetSeen, FleetError> {
        self.within(|fate| async {
            let tx = self.begin(fate).await?;
            let seen = seen(&tx).await?;
            tx.commit().await?;
            Ok(seen)
        })
        .await
    }

    /// Says whether the hosts of a machine may take jobs: the processes of this name that live, or the one of this id. Which they were.
    ///
    /// # Errors
    ///
    /// As of any verb.
    pub async fn set_drained_named(&self, name: &str, drained: bool) -> Result<Vec<HostId>, FleetError> {
        text_row("name", name, NAME_BYTES)?;
        self.within(|fate| async {
            let tx = self.begin(fate).await?;
            let set = "UPDATE phone_opus.host SET drained = $2
                       WHERE (name = $1 OR host::text = $1) AND lease_until > clock_timestamp() RETURNING host::text";
            let rows = tx.rows(set, &[text(&name), flag(&drained)]).await?;
            let hosts = super::read::hosts(&rows)?;
            tx.commit().await?;
            Ok(hosts)
        })
        .await
    }

    /// What a database says of itself. It makes no tables.
    ///
    /// # Errors
    ///
    /// It cannot be reached, or not safely.
    pub async fn examine(settings: &str) -> Result<FleetExam, FleetError> {
        let settings = settings.to_owned();
        // The platform's authorities are files.
        let way = tasks::spawn_blocking(move || Way::new(&settings)).await;
        let way = way.map_err(|_| FleetError::Settings { detail: "the database's address is not understood" })??;
        let fate = Fate::default();
        timeout(VERB_BOUND + HEARS_WITHIN, exam(&way)).await.unwrap_or_else(|_| Err(fate.overdue()))
    }
}

async fn seen(tx: &Tx) -> Result<FleetSeen, FleetError> {
    let find = "SELECT fleet::text, version,
                    CASE WHEN quiet_until > clock_timestamp() THEN extract(epoch FROM quiet_until - clock_timestamp())::int8 END,
                    lease_ms / 1000
                FROM phone_opus.meta";
    let missing = || FleetError::Unavailable { detail: "its tables are not whole".to_owned() };
    let meta = tx.row(find, &[]).await?.ok_or_else(missing)?;
    let quiet: Option<i64> = column(&meta, 2, "quiet_until")?;
    let (jobs, held, oldest_s) = jobs(tx).await?;
    let unseen =
        "SELECT coalesce(sum(jobs), 0)::int8 FROM phone_opus.unseen() WHERE row_security_active('phone_opus.job')";
    let unseen = tx.row(unseen, &[]).await?.map(|row| big(&row, 0, "unseen")).transpose()?.unwrap_or(0);
    let mut seen = FleetSeen {
        fleet: column(&meta, 0, "fleet")?,
        tables: big(&meta, 1, "version")?,
        lease_s: count("lease_ms", big(&meta, 3, "lease_ms")?)?,
        quiet_s: quiet.map(|left| u64::try_from(left).unwrap_or(0)),
        jobs,
        held,
        oldest_s,
        unseen: u64::try_from(unseen).unwrap_or(0),
        hosts: Vec::new(),
        caps: Vec::new(),
        pauses: Vec::new(),
        unread: 0,
        more: false,
    };
    hosts(tx, &mut seen).await?;
    caps(tx, &mut seen).await?;
    pauses(tx, &mut seen).await?;
    Ok(seen)
}

type Counted = (BTreeMap<String, u64>, u64, Option<u64>);

async fn jobs(tx: &Tx) -> Result<Counted, FleetError> {
    let find =
        "SELECT state, count(*), count(*) FILTER (WHERE state = 'interrupted' AND hold_until > clock_timestamp()),
                    extract(epoch FROM clock_timestamp() - min(accepted))::int8 FROM phone_opus.job GROUP BY state";
    let mut jobs: BTreeMap<String, u64> = FleetState::ALL.iter().map(|state| (state.as_str().to_owned(), 0)).collect();
    let (mut held, mut oldest) = (0, None);
    for row in tx.rows(find, &[]).await? {
        // The table's own check has no other state; a later version's may.
        let Some(state) = FleetState::parse(column(&row, 0, "state")?) else { continue };
        jobs.insert(state.as_str().to_owned(), count("count", big(&row, 1, "count")?)?);
        held += count("count", big(&row, 2, "count")?)?;
        if state == FleetState::Queued {
            oldest = Some(u64::try_from(big(&row, 3, "accepted")?).unwrap_or(0));
        }
    }
    Ok((jobs, held, oldest))
}

/// Adds what is understood of these rows, and counts the rest.
fn add<T>(rows: &[Row], unread: &mut usize, more: &mut bool, read: impl Fn(&Row) -> Result<T, BadRow>) -> Vec<T> {
    *more |= rows.len() > SHOWN;
    let mut taken = Vec::new();
    for row in rows.iter().take(SHOWN) {
        match read(row) {
            Ok(one) => taken.push(one),
            Err(_) => *unread += 1,
        }
    }
    taken
}

fn most() -> i64 {
    i64::try_from(SHOWN + 1).unwrap_or(i64::MAX)
}

async fn hosts(tx: &Tx, seen: &mut FleetSeen) -> Result<(), FleetError> {
    let find = "SELECT h.host::text, left(h.name, 257), left(h.owner, 257), h.drained,
                    extract(epoch FROM greatest(h.lease_until, clock_timestamp() - interval '10 years') - clock_timestamp())::int8,
                    CASE WHEN octet_length(h.labels) <= 65536 THEN h.labels END,
                    (SELECT count(*) FROM phone_opus.job j WHERE j.host = h.host AND j.state IN ('claimed', 'running'))
                FROM phone_opus.host h ORDER BY h.lease_until > clock_timestamp() DESC, h.name, h.host LIMIT $1";
    let rows = tx.rows(find, &[number(&most())]).await?;
    let read = |row: &Row| {
        let labels = Labels::read(column(row, 5, "labels")?)?;
        Ok(FleetHostSeen {
            host: id("host", column(row, 0, "host")?)?,
            name: text_row("name", column(row, 1, "name")?, NAME_BYTES)?.to_owned(),
            owner: text_row("owner", column(row, 2, "owner")?, NAME_BYTES)?.to_owned(),
            drained: column(row, 3, "drained")?,
            lease_s: big(row, 4, "lease_until")?,
            jobs: count("count", big(row, 6, "count")?)?,
            slots: labels.slots,
            build: labels.build,
            os: labels.os,
            agents: labels.agents.into_keys().collect(),
            tags: labels.tags,
        })
    };
    seen.hosts = add(&rows, &mut seen.unread, &mut seen.more, read);
    Ok(())
}

async fn caps(tx: &Tx, seen: &mut FleetSeen) -> Result<(), FleetError> {
    let find = "SELECT left(scope, 513), n FROM phone_opus.cap ORDER BY scope LIMIT $1";
    let rows = tx.rows(find, &[number(&most())]).await?;
    let read = |row: &Row| {
        let scope = CapScope::read(column(row, 0, "scope")?)?;
        Ok((scope, count("cap", big(row, 1, "cap")?)?))
    };
    let caps = add(&rows, &mut seen.unread, &mut seen.more, read);
    let queue = super::queue(tx).await?;
    for (scope, cap) in caps {
        seen.caps.push(CapSeen { used: queue.used_of(&scope), scope: scope.write(), cap });
    }
    Ok(())
}

async fn pauses(tx: &Tx, seen: &mut FleetSeen) -> Result<(), FleetError> {
    let find = "SELECT left(scope, 513), extract(epoch FROM until - clock_timestamp())::int8, left(why, 257)
                FROM phone_opus.pause WHERE until > clock_timestamp() ORDER BY scope LIMIT $1";
    let rows = tx.rows(find, &[number(&most())]).await?;
    let read = |row: &Row| {
        Ok(PauseSeen {
            scope: CapScope::read(column(row, 0, "scope")?)?.write(),
            left_s: u64::try_from(big(row, 1, "until")?).unwrap_or(0),
            why: text_row("why", column(row, 2, "why")?, NAME_BYTES)?.to_owned(),
        })
    };
    seen.pauses = add(&rows, &mut seen.unread, &mut seen.more, read);
    Ok(())
}

async fn exam(way: &Way) -> Result<FleetExam, FleetError> {
    let (heard, mut hears) = mpsc::channel(1);
    let link = way
        .dial(move |_| {
            // One says as much as two.
            let _ = heard.try_send(());
        })
        .await?;
    let other = way.dial(|_| ()).await?;
    let hears = async {
        let own = format!("phone_opus_{}", uuid::Uuid::new_v4().simple());
        // Told by another one that has begun already: what a pooler gives to both would hear itself.
        other.client.batch_execute("BEGIN").await.ok()?;
        link.client.batch_execute(&format!("LISTEN {own}")).await.ok()?;
        other.client.batch_execute(&format!("NOTIFY {own}; COMMIT")).await.ok()?;
        timeout(HEARS_WITHIN, hears.recv()).await.ok()?
    };
    let hears = hears.await.is_some();
    let pooled = is_pooled(&link, &other).await?;
    let see =
        "SELECT current_setting('server_version_num')::int8, (extract(epoch FROM clock_timestamp()) * 1000)::int8,
                   coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false),
                   (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
                   (SELECT count(*) FROM pg_stat_replication WHERE pid IS NOT NULL),
                   (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')),
                   EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                       WHERE n.nspname = 'phone_opus' AND c.relname = 'meta')";
    let before = UnixMillis::now();
    let row = one(&link.client, see).await?;
    // The middle of asking is when it looked at its clock, within half of the way there and back.
    let between = UnixMillis(before.0.midpoint(UnixMillis::now().0));
    let mut settings = BTreeMap::new();
    // In their own units, without a word for it.
    let asked = "SELECT name, setting FROM pg_settings";
    for row in client_rows(&link.client, asked).await? {
        let name: String = column(&row, 0, "setting")?;
        if SETTINGS.contains(&name.as_str()) {
            settings.insert(name, column(&row, 1, "setting")?);
        }
    }
    let is_made: bool = column(&row, 6, "meta")?;
    let tables = match is_made {
        true => big(&one(&link.client, "SELECT version FROM phone_opus.meta").await?, 0, "version")?,
        false => 0,
    };
    Ok(FleetExam {
        server_version: big(&row, 0, "version")?,
        tables,
        known: schema::known(),
        tls: column(&row, 2, "ssl")?,
        by_socket: matches!(way, Way::Socket(_)),
        clock_ms: big(&row, 1, "clock")?.saturating_sub(between.0),
        hears,
        pooled,
        superuser: column(&row, 3, "superuser")?,
        settings,
        standbys: big(&row, 4, "standbys")?,
        synchronous: big(&row, 5, "standbys")?,
    })
}

/// What one connection sets for itself is its own, unless something gives connections away: then another one has it, or it has gone.
async fn is_pooled(link: &Link, other: &Link) -> Result<bool, FleetError> {
    let probe = uuid::Uuid::new_v4().simple().to_string();
    let set = format!("SET phone_opus.probe = '{probe}'");
    link.client.batch_execute(&set).await.map_err(|error| super::link::not_done(&error))?;
    other.client.batch_execute("BEGIN").await.map_err(|error| super::link::not_done(&error))?;
    let see = "SELECT coalesce(current_setting('phone_opus.probe', true), '')";
    let (theirs, ours): (String, String) =
        (column(&one(&other.client, see).await?, 0, "probe")?, column(&one(&link.client, see).await?, 0, "probe")?);
    for client in [&other.client, &link.client] {
        // Whoever is given this connection next has nothing of it.
        let _ = client.batch_execute("RESET phone_opus.probe").await;
    }
    let _ = other.client.batch_execute("COMMIT").await;
    Ok(theirs == probe || ours != probe)
}

async fn client_rows(client: &Client, statement: &str) -> Result<Vec<Row>, FleetError> {
    client.query_typed(statement, &[]).await.map_err(|error| super::link::not_done(&error))
}

async fn one(client: &Client, statement: &str) -> Result<Row, FleetError> {
    let none = || FleetError::Unavailable { detail: "it answered nothing".to_owned() };
    client_rows(client, statement).await?.into_iter().next().ok_or_else(none)
}
