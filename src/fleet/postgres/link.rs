//! One connection to PostgreSQL, and transactions on it.
//!
//! Owns: how the database is reached and how safely, what its notices mean, when a fate is known. May not know: tables.
//!
//! Invariants: (1) off a Unix socket nothing is said to a server that has not proven who it is; (2) a failure before `COMMIT` leaves is
//! [`FleetError::Unavailable`]: nothing was done; (3) after it, anything but a plain success is [`FleetError::Unsure`]. A warning is
//! none: a server that stops waiting for its standby says so by a warning, and by success besides; (4) a connection that was left in
//! the middle of anything is never used again.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::error::Severity;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Row, Socket};
#[cfg(feature = "fleet")]
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::base::tasks;
use crate::fleet::FleetError;

/// Longest a verb takes, the way to the database included. What a server does with it after that is not known.
pub(super) const VERB_BOUND: Duration = Duration::from_secs(10);

/// Longest one address of the database is tried.
const DIAL_BOUND: Duration = Duration::from_secs(4);

/// How each transaction begins. A lock that is held for longer than these seconds is somebody's who is stuck; a server forgets a
/// transaction whose client is. Nothing bounds the statement itself: a server does not end its wait for a standby by that, and what
/// a client stops waiting for it does not know. What the user's role has otherwise is set for this transaction only, so that a
/// pooler may stand between.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '5s';
SET LOCAL idle_in_transaction_session_timeout = '10s';
SET LOCAL statement_timeout = 0;
SET LOCAL client_min_messages = 'warning';
SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') IN ('off', 'local')";

/// How the database is reached.
#[derive(Clone)]
pub(super) enum Way {
    /// By a socket of this machine.
    Socket(Box<Config>),
    /// By TLS, verified.
    #[cfg(feature = "fleet")]
    Proven(Box<Config>, MakeRustlsConnect),
}

impl Way {
    /// The way these settings describe: a URL or `key=value` pairs, as PostgreSQL's own programs take them.
    pub(super) fn new(settings: &str) -> Result<Self, FleetError> {
        let (config, by_socket) = Self::read(settings)?;
        if by_socket { Ok(Self::Socket(Box::new(config))) } else { Self::proven(config) }
    }

    /// The settings, and whether they name sockets alone. Reads no file.
    pub(super) fn read(settings: &str) -> Result<(Config, bool), FleetError> {
        // What is wrong with them is not repeated: there may be a password in it.
        let unread = |_| FleetError::Settings { detail: "the database's address is not understood" };
        let mut config: Config = settings.parse().map_err(unread)?;
        config.connect_timeout(DIAL_BOUND).target_session_attrs(TargetSessionAttrs::ReadWrite);
        if config.get_application_name().is_none() {
            config.application_name("phone-opus");
        }
        let is_socket = |host: &Host| matches!(host, Host::Unix(_));
        let sockets = config.get_hosts().iter().filter(|host| is_socket(host)).count();
        if sockets == config.get_hosts().len() && config.get_hostaddrs().is_empty() && sockets > 0 {
            config.ssl_mode(SslMode::Disable);
            return Ok((config, true));
        }
        if sockets > 0 || config.get_hosts().is_empty() {
            let detail = "the database's address names neither sockets alone nor machines by their names alone";
            return Err(FleetError::Settings { detail });
        }
        config.ssl_mode(SslMode::Require);
        Ok((config, false))
    }

    #[cfg(feature = "fleet")]
    fn proven(config: Config) -> Result<Self, FleetError> {
        let unproven = |_| FleetError::Settings { detail: "this platform names no authority to verify a server by" };
        let tls = crate::exec::transport::client_config().map_err(unproven)?;
        Ok(Self::Proven(Box::new(config), MakeRustlsConnect::new(tls)))
    }

    #[cfg(not(feature = "fleet"))]
    fn proven(_: Config) -> Result<Self, FleetError> {
        Err(FleetError::Settings {
            detail: "this program was built without the TLS that a database needs off a socket",
        })
    }

    /// A new connection. Each notification it hears is told by `heard`.
    pub(super) async fn dial(&self, heard: impl Fn(&str) + Send + 'static) -> Result<Link, FleetError> {
        match self {
            Self::Socket(config) => {
                let (client, connection) = config.connect(NoTls).await.map_err(|error| not_done(&error))?;
                Ok(Link::new(client, connection, heard))
            }
            #[cfg(feature = "fleet")]
            Self::Proven(config, tls) => {
                let (client, connection) = config.connect(tls.clone()).await.map_err(|error| not_done(&error))?;
                Ok(Link::new(client, connection, heard))
            }
        }
    }
}

/// A connection, and the task that drives it. It ends with this.
pub(super) struct Link {
    pub(super) client: Client,
    /// Warnings the server has sent.
    warnings: Arc<AtomicU64>,
    driver: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Link {
    fn new<T>(client: Client, connection: Connection<Socket, T>, heard: impl Fn(&str) + Send + 'static) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let warnings = Arc::new(AtomicU64::new(0));
        // Messages are handled in the order they came in, so whoever has an answer finds the warnings before it counted.
        let driver = tasks::spawn(drive(connection, Arc::clone(&warnings), heard));
        Self { client, warnings, driver }
    }

    /// Whether it can be used.
    pub(super) fn is_open(&self) -> bool {
        !self.client.is_closed() && !self.driver.is_finished()
    }
}

async fn drive<T>(mut connection: Connection<Socket, T>, warnings: Arc<AtomicU64>, heard: impl Fn(&str))
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
        match message {
            AsyncMessage::Notice(notice) => {
                let harmless = matches!(
                    notice.parsed_severity(),
                    Some(Severity::Notice | Severity::Info | Severity::Log | Severity::Debug)
                );
                if !harmless {
                    warnings.fetch_add(1, Ordering::Release);
                }
            }
            AsyncMessage::Notification(notification) => heard(notification.channel()),
            _ => {}
        }
    }
}

/// How far a verb has come, for whoever stops waiting for it.
#[derive(Debug, Clone, Default)]
pub(super) struct Fate(Arc<AtomicBool>);

impl Fate {
    /// What a verb is that did not end in time.
    pub(super) fn overdue(&self) -> FleetError {
        let detail = format!("it did not answer in {} s", VERB_BOUND.as_secs());
        if self.0.load(Ordering::Acquire) { FleetError::Unsure { detail } } else { FleetError::Unavailable { detail } }
    }
}

/// A transaction. Dropped, it is rolled back by the server, which loses the connection.
pub(super) struct Tx {
    link: Link,
    slot: OwnedMutexGuard<Option<Link>>,
    fate: Fate,
}

/// A value for a statement.
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// A text, or none.
pub(super) fn text<'a>(value: &'a (impl ToSql + Sync)) -> Param<'a> {
    (value, Type::TEXT)
}

/// A number, or none.
pub(super) fn number<'a>(value: &'a (impl ToSql + Sync)) -> Param<'a> {
    (value, Type::INT8)
}

/// Yes or no.
pub(super) fn flag(value: &bool) -> Param<'_> {
    (value, Type::BOOL)
}

impl Tx {
    /// Begins one on the connection of this slot, or on a new one.
    pub(super) async fn begin(
        way: &Way,
        mut slot: OwnedMutexGuard<Option<Link>>,
        fate: Fate,
    ) -> Result<Self, FleetError> {
        let link = match slot.take().filter(Link::is_open) {
            // It may have been ended a moment ago, and nobody has noticed yet.
            Some(link) if link.client.batch_execute(BEGIN).await.is_ok() => link,
            _ => {
                let link = way.dial(|_| ()).await?;
                link.client.batch_execute(BEGIN).await.map_err(|error| not_done(&error))?;
                link
            }
        };
        Ok(Self { link, slot, fate })
    }

    /// Runs a statement without a name on the server, so that a pooler may stand between.
    pub(super) async fn rows(&self, statement: &str, params: &[Param<'_>]) -> Result<Vec<Row>, FleetError> {
        self.link.client.query_typed(statement, params).await.map_err(|error| not_done(&error))
    }

    /// The first row, if there is one.
    pub(super) async fn row(&self, statement: &str, params: &[Param<'_>]) -> Result<Option<Row>, FleetError> {
        Ok(self.rows(statement, params).await?.into_iter().next())
    }

    /// How many rows a statement changed.
    pub(super) async fn changed(&self, statement: &str, params: &[Param<'_>]) -> Result<u64, FleetError> {
        self.link.client.execute_typed(statement, params).await.map_err(|error| not_done(&error))
    }

    /// Runs statements that have no values.
    pub(super) async fn batch(&self, statements: &str) -> Result<(), FleetError> {
        self.link.client.batch_execute(statements).await.map_err(|error| not_done(&error))
    }

    /// Makes it durable, and says so only when it is.
    pub(super) async fn commit(self) -> Result<(), FleetError> {
        let Self { link, mut slot, fate } = self;
        let warnings = link.warnings.load(Ordering::Acquire);
        fate.0.store(true, Ordering::Release);
        if let Err(error) = link.client.batch_execute("COMMIT").await {
            let rolled_back = error.as_db_error().is_some_and(|said| said.parsed_severity() == Some(Severity::Error));
            return Err(if rolled_back { not_done(&error) } else { FleetError::Unsure { detail: in_words(&error) } });
        }
        if link.warnings.load(Ordering::Acquire) != warnings {
            let detail = "the server did not wait until its standby had it".to_owned();
            return Err(FleetError::Unsure { detail });
        }
        *slot = Some(link);
        Ok(())
    }
}

/// Nothing was committed when this happened.
pub(super) fn not_done(error: &tokio_postgres::Error) -> FleetError {
    FleetError::Unavailable { detail: in_words(error) }
}

/// What happened, in the server's words where it has some; its details may repeat what a row holds.
fn in_words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => {
            format!("the server says {:?} ({})", crate::jobs::hosts::shown_word(said.message()), said.code().code())
        }
        None => match std::error::Error::source(error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}
