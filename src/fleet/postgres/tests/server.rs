//! A PostgreSQL server of the tests' own, from the programs this machine has.
//!
//! Owns: where those programs are, directories of data, the server's process and its end. Tests that run at the same time share one;
//! the last of them ends it. A directory of data is a copy of one that `initdb` made beside the tests' program, once for all its runs.
//! Laws: L7, for itself: nothing of a server is left.

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
        let dir = directory();
        for (name, content) in files {
            let path = dir.path().join(name);
            std::fs::write(&path, content).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("private");
            give_away(&path);
        }
        copy_for_the_server(&template(&programs), &dir.path().join("data"));
        let settings = settings.to_vec();
        let child = Mutex::new(begin(&programs, dir.path(), &settings));
        Some(Self { dir, programs, settings, child })
    }

    /// Settings that lead to a database of it.
    pub(super) fn settings(&self, database: &str) -> String {
        format!("host={} user=fleet dbname={database}", self.dir.path().display())
    }

    /// The directory of its socket, and of the files it was given.
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

    /// A server that follows another one, which is this one's twin until it is promoted.
    pub(super) fn standby_of(primary: &Self) -> Self {
        let (dir, programs) = (directory(), primary.programs.clone());
        let copied = command(&programs, "pg_basebackup", dir.path())
            .args(["--checkpoint=fast", "--no-sync", "--write-recovery-conf", "--username=fleet", "--host"])
            .arg(primary.dir.path())
            .arg("--pgdata")
            .arg(dir.path().join("data"))
            .output()
            .expect("pg_basebackup");
        assert!(copied.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&copied.stderr));
        let child = Mutex::new(begin(&programs, dir.path(), &[]));
        Self { dir, programs, settings: Vec::new(), child }
    }

    /// Kills it, and waits until everything of it is gone.
    pub(super) fn kill(&self) {
        let mut child = self.lock();
        child.kill().expect("killed");
        child.wait().expect("waited for");
        wait_until_nothing_is_left(&self.data());
    }

    /// Begins again, after a kill.
    pub(super) fn begin_again(&self) {
        *self.lock() = begin(&self.programs, self.dir.path(), &self.settings);
    }

    /// Kills it, and begins again.
    pub(super) fn kill_and_restart(&self) {
        self.kill();
        self.begin_again();
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

/// The data of a server that has never begun, from which every one begins. It stays beside the tests' program, as what is built does.
fn template(programs: &Path) -> PathBuf {
    /// Held while it is made. Other processes may make it at the same time: one of them wins.
    static MAKING: Mutex<()> = Mutex::new(());
    let _one = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = directory();
    let version = command(programs, "postgres", dir.path()).arg("--version").stdout(Stdio::piped()).output();
    let version = String::from_utf8(version.expect("postgres").stdout).expect("a version");
    // What is made otherwise has another name: the 1.
    let name = format!("fleet-1-{}", version.trim().replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
    let built = std::env::current_exe().expect("this program");
    let template = built.parent().expect("its folder").join(name);
    if template.is_dir() {
        return template;
    }
    let data = dir.path().join("data");
    let made = command(programs, "initdb", dir.path())
        .args(["--no-sync", "--auth=trust", "--username=fleet", "--encoding=UTF8", "--locale=C", "-D"])
        .arg(&data)
        .output()
        .expect("initdb");
    assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    let mut whole = template.clone().into_os_string();
    whole.push(format!(".{}", std::process::id()));
    copy_for_the_server(&data, Path::new(&whole));
    if std::fs::rename(&whole, &template).is_err() {
        std::fs::remove_dir_all(&whole).expect("removed");
    }
    template
}

/// A directory of whom the server runs as. A socket's path is short: the system's own directory, whatever TMPDIR says.
pub(super) fn directory() -> TempDir {
    let dir = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").expect("a directory");
    give_away(dir.path());
    dir
}

/// Copies a directory, for whoever the server runs as.
fn copy_for_the_server(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a directory");
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o700)).expect("private");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let (entry, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).expect("an entry");
        if entry.is_dir() {
            copy_for_the_server(&entry, &to);
        } else {
            std::fs::copy(&entry, &to).expect("copied");
            give_away(&to);
        }
    }
    give_away(to);
}

/// Root has it owned by whom the server runs as.
fn give_away(path: &Path) {
    if geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("given away");
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

/// A program that works in this directory, as whom servers run as.
pub(super) fn command(programs: &Path, name: &str, dir: &Path) -> Command {
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
