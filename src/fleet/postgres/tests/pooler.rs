//! A pooler between hosts and the database, which gives each transaction whichever connection is free.
//!
//! Owns: a pgbouncer in transaction mode. Without the program these tests are left out, loudly; `PHONE_OPUS_REQUIRE_PGBOUNCER=1`
//! makes that a failure. Laws: L3, L7, L19.

use std::path::Path;
use std::process::{Child, Stdio};

use tempfile::TempDir;

use super::server::{command, directory};
use super::*;

/// Makes a machine without pgbouncer fail instead of leaving these tests out.
const REQUIRE_VARIABLE: &str = "PHONE_OPUS_REQUIRE_PGBOUNCER";

pub(super) struct Pooler {
    dir: TempDir,
    child: Child,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Pooler {
    /// In front of this server, with fewer connections to it than hosts have to the pooler.
    pub(super) fn before(server: &PrivateServer) -> Option<Self> {
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"];
        let Some(program) = program.into_iter().map(Path::new).find(|path| path.is_file()) else {
            assert!(std::env::var_os(REQUIRE_VARIABLE).is_none(), "no pgbouncer, and {REQUIRE_VARIABLE} is set");
            eprintln!("SKIPPED: the fleet through a pooler is not tried: no pgbouncer is on this machine");
            return None;
        };
        let dir = directory();
        let settings = format!(
            "[databases]\n* = host={}\n[pgbouncer]\npool_mode = transaction\nauth_type = any\nlisten_addr =\n\
             unix_socket_dir = {}\nlisten_port = 5432\ndefault_pool_size = 3\nmax_client_conn = 100\n",
            server.dir().display(),
            dir.path().display()
        );
        // `any` takes whoever comes for the user the database names; that is why it is named.
        let settings = settings.replace("* = host", "* = user=fleet host");
        std::fs::write(dir.path().join("pgbouncer.ini"), settings).expect("written");
        let folder = program.parent().expect("a folder");
        let child = command(folder, "pgbouncer", dir.path()).arg("pgbouncer.ini").stderr(Stdio::null()).spawn();
        Some(Self { dir, child: child.expect("pgbouncer") })
    }

    pub(super) fn settings(&self, direct: &str) -> String {
        let rest = direct.split_once(' ').expect("more settings").1;
        format!("host={} {rest}", self.dir.path().display())
    }
}

#[tokio::test]
async fn hosts_work_through_a_pooler_that_changes_connections_between_transactions() {
    const JOBS: i64 = 40;
    let Some(server) = PrivateServer::own() else { return };
    let Some(pooler) = Pooler::before(&server) else { return };
    let direct = server.database().await;
    let through = pooler.settings(&direct);
    let fleet = insist(|| PgFleet::open(&through)).await;
    let mut hosts = JoinSet::new();
    for _ in 0..6 {
        let host = insist(|| PgFleet::open(&through)).await;
        hosts.spawn(work(host, JOBS));
    }
    for key in 0..JOBS {
        assert!(matches!(fleet.accept(&new_job(&key.to_string())).await, Ok(FleetAccept::Inserted(_))));
    }
    let began: Vec<Ticket> = hosts.join_all().await.concat();
    let jobs: BTreeSet<_> = began.iter().map(|ticket| ticket.job).collect();
    assert_eq!((began.len(), jobs.len()), (40, 40), "each once");

    // What a host sets is set for its own transaction only: nobody who comes after it has it.
    let left = "SELECT count(*) FROM pg_settings WHERE name IN ('lock_timeout', 'idle_in_transaction_session_timeout') AND setting <> '0'";
    let tx = fleet.begin(Fate::default()).await.expect("begun");
    assert_eq!(big(&tx.row(left, &[]).await.expect("seen").expect("a row"), 0, "count"), Ok(2), "inside of one");
    drop(tx);
    let (client, connection) = tokio_postgres::connect(&through, tokio_postgres::NoTls).await.expect("connected");
    let driver = tokio::spawn(connection);
    let outside = client.query_typed(left, &[]).await.expect("seen");
    assert_eq!(big(&outside[0], 0, "count"), Ok(0), "outside of one");
    driver.abort();
}

#[tokio::test]
async fn who_waits_behind_a_pooler_hears_of_an_end_by_looking() {
    let Some(server) = PrivateServer::own() else { return };
    let Some(pooler) = Pooler::before(&server) else { return };
    let direct = server.database().await;
    let through = pooler.settings(&direct);
    let waiting = insist(|| PgFleet::open(&through)).await;
    let other = PgFleet::open(&direct).await.expect("opened");
    let new = new_job("one");
    assert_eq!(other.accept(&new).await, Ok(FleetAccept::Inserted(new.id)));
    let (view, cancelled) = tokio::join!(waiting.wait(new.id, PATIENCE), other.cancel(new.id));
    assert_eq!(cancelled, Ok(FleetCancel::Ended));
    assert_eq!(view.expect("looked").map(|view| view.state), Some(FleetState::Cancelled));
}
