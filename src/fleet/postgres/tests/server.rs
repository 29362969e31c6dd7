//! A PostgreSQL server of the tests' own, from the programs this machine has.
//!
//! Owns: where those programs are, a directory of data, the server's process and its end. Tests that run at the same time share one;
//! the last of them ends it. Laws: L7, for itself: nothing of a server is left.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;
use tokio_postgres::NoTls;

/// Makes a machine without PostgreSQL fail instead of leaving these tests out.
const REQUIRE_VARIABLE: &str = "PHONE_OPUS_REQUIRE_PG";

/// Whom root lets the server run as: PostgreSQL refuses root.
const NOBODY: u32 = 65_534;

/// Longest a server takes to begin or to end on a busy machine.
const BOUND: Duration = Duration::from_secs(60);

/// A server, and the directory it lives in.
pub(super) struct PrivateServer {
    dir: TempDir,
    programs: PathBuf,
    settings: Vec<String>,
    child: Mutex<Child>,
}

/// The one that is shared now.
static SHARED: Mutex<Weak<PrivateServer>> = Mutex::new(Weak::new());

impl PrivateServer {
    /// The server that tests share. `None`, loudly, where this machine has no PostgreSQL.
    pub(super) fn shared() -> Option<Arc<Self>> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return Some(server);
        }
        let server = Arc::new(Self::own()?);
        *shared = Arc::downgrade(&server);
        Some(server)
    }

    /// A server for one test alone.
    pub(super) fn own() -> Option<Self> {
        Self::with(&[], &[])
    }

    /// A server for one test alone, with files beside its data and settings of its own.
    pub(super) fn with(files: &[(&str, &[u8])], settings: &[String]) -> Option<Self> {
        let programs = match programs() {
            Ok(programs) => programs,
            Err(why) => {
                assert!(std::env::var_os(REQUIRE_VARIABLE).is_none(), "{why}, and {REQUIRE_VARIABLE} is set");
                let loud = format!("SKIPPED: the fleet in PostgreSQL is not tried: {why}\n");
                let _ = std::io::stderr().write_all(loud.as_bytes());
                return None;
            }
        };
        // A socket's path is short: the system's own directory, whatever TMPDIR says.
        let dir = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").expect("a directory");
        if geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("given away");
        }
        for (name, content) in files {
            let path = dir.path().join(name);
            std::fs::write(&path, content).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("private");
            if geteuid().is_root() {
                std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).expect("given away");
            }
        }
        let data = dir.path().join("data");
        let made = command(&programs, "initdb", dir.path())
            .args(["--no-sync", "--auth=trust", "--username=fleet", "--encoding=UTF8", "--locale=C", "-D"])
            .arg(&data)
            .output()
            .expect("initdb");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let settings = settings.to_vec();
        let child = Mutex::new(begin(&programs, dir.path(), &settings));
        Some(Self { dir, programs, settings, child })
    }

    /// Settings that lead to a database of it.
    pub(super) fn settings(&self, database: &str) -> String {
        format!("host={} user=fleet dbname={database}", self.dir.path().display())
    }

    /// The directory of its socket, and of the files it was given.
    #[cfg(feature = "fleet")]
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A new, empty database.
    pub(super) async fn database(&self) -> String {
        let name = format!("d{}", uuid::Uuid::new_v4().simple());
        self.sql("postgres", &format!("CREATE DATABASE {name}")).await;
        self.settings(&name)
    }

    /// Has a database run statements, once it answers.
    pub(super) async fn sql(&self, database: &str, statements: &str) {
        let until = Instant::now() + BOUND;
        loop {
            match tokio_postgres::connect(&self.settings(database), NoTls).await {
                Ok((client, connection)) => {
                    let driver = tokio::spawn(connection);
                    client.batch_execute(statements).await.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
                    driver.abort();
                    return;
                }
                Err(error) if Instant::now() < until => {
                    let is_over = self.lock().try_wait().expect("looked at").is_some();
                    assert!(!is_over, "the server ended: {error}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("the server does not answer: {error}"),
            }
        }
    }

    /// Kills it, waits until everything of it is gone, and begins again.
    pub(super) fn kill_and_restart(&self) {
        let mut child = self.lock();
        child.kill().expect("killed");
        child.wait().expect("waited for");
        wait_until_nothing_is_left(&self.data());
        *child = begin(&self.programs, self.dir.path(), &self.settings);
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        let data = self.data();
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        // At once, without a last checkpoint: the data is thrown away.
        let pid = i32::try_from(child.id()).expect("a pid");
        let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
        let until = Instant::now() + BOUND;
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() >= until {
                let _ = child.kill();
            }
            thread::sleep(Duration::from_millis(5));
        }
        wait_until_nothing_is_left(&data);
    }
}

fn begin(programs: &Path, dir: &Path, own: &[String]) -> Child {
    // What is written survives the end of processes without any sync, and no test ends the machine.
    let settings =
        ["listen_addresses=", "fsync=off", "shared_buffers=16MB", "max_connections=60", "log_min_messages=fatal"];
    command(programs, "postgres", dir)
        .arg("-D")
        .arg(dir.join("data"))
        .arg("-k")
        .arg(dir)
        .args(settings.into_iter().chain(own.iter().map(String::as_str)).flat_map(|setting| ["-c", setting]))
        .stderr(Stdio::null())
        .spawn()
        .expect("postgres")
}

fn command(programs: &Path, name: &str, dir: &Path) -> Command {
    let mut command = Command::new(programs.join(name));
    command.env_clear().env("LC_ALL", "C").current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null());
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// The newest programs of Debian's folders, else those on PATH; or why there can be no server.
fn programs() -> Result<PathBuf, &'static str> {
    let is_whole = |dir: &PathBuf| ["initdb", "postgres"].iter().all(|name| dir.join(name).is_file());
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |dir: &PathBuf| dir.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let newest = versions.map(|entry| entry.path()).filter(|dir| is_whole(&dir.join("bin"))).max_by_key(version);
    let on_path = || std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).find(is_whole);
    let found = newest.map(|dir| dir.join("bin")).or_else(on_path);
    let none = "no PostgreSQL is on this machine (initdb and postgres in /usr/lib/postgresql/*/bin or on PATH)";
    let open_to_all = |meta: std::fs::Metadata| meta.permissions().mode() & 0o006 == 0o006;
    if geteuid().is_root() && !std::fs::metadata("/dev/null").is_ok_and(open_to_all) {
        return Err("only root may open /dev/null here, and PostgreSQL runs as somebody else, who needs it");
    }
    found.ok_or(none)
}

/// Every process of a server works in its directory of data.
fn processes_in(data: &Path) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|pid: &u32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data)).collect()
}

fn wait_until_nothing_is_left(data: &Path) {
    let until = Instant::now() + BOUND;
    loop {
        let left = processes_in(data);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < until || thread::panicking(), "processes of the server are left: {left:?}");
        thread::sleep(Duration::from_millis(5));
    }
}
