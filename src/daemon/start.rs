//! Finding the daemon of a state directory, and starting one where there is none.
//!
//! Owns: where clients look, how fifty of them start one daemon, what a daemon that is started is given and says, how long it
//! is waited for. May not know: what is said to a daemon that was reached, what a client does without one.
//!
//! ```text
//! look ─ there ──────────────────────────────────────────────▶ connected
//!   │ absent: start.lock, look again, nobody holds daemon.lock
//!   ▼
//! daemon run --detach ──▶ it starts itself once more and ends ──▶ the daemon says one line on the pipe it was given
//!                                                                  ready · taken (another lives) · why it cannot start
//! ```
//!
//! The daemon is started twice so that whoever starts it is not its parent: it leaves nobody a process to wait for, and is no
//! descendant that a client is ended together with.
//!
//! Invariants: (1) a daemon is started only where nobody listens and nobody holds the lock (L18); (2) everything here ends
//! within the patience it was given; (3) the daemon has nothing of its starter's but the variables listed here, a pipe until it
//! has said its line, and a file for its words.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::apart::{self, Apart, UnitChances};
use super::control::OF_A_SESSION;
use super::lock::{DaemonLock, StartLock};
use super::paths;
use super::reach::{self, Reached};
use super::record::DaemonRecord;
use crate::agents::Environment;
use crate::base::fault::chain;
use crate::base::image::StandIn;
use crate::base::state_dir::{StateDir, StateDirError};
use crate::config::Key;
use crate::jobs::lock::LockError;

/// How long a client waits for a daemon that starts. One needs some tens of milliseconds; a machine that is busy, a second.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked whether somebody listens by now.
const LOOK: Duration = Duration::from_millis(20);

/// How long a door is waited for that has as many before it as may wait.
const DOOR: Duration = Duration::from_secs(2);

/// The pause before such a door is tried again.
const BUSY: Duration = Duration::from_millis(50);

/// Daemons that one client starts. The second is for one that lost the lock to another that then ended.
const STARTS: u32 = 3;

/// Bytes of what a daemon says that are read; it says a line.
const SAID: usize = 8 * 1024;

/// How long a service manager may take until a daemon it was asked for speaks. It needs milliseconds; what takes longer is done
/// without it.
const APART: Duration = Duration::from_secs(2);

/// What is known of a daemon that says nothing.
const MUTE: &str = "it ended before it was ready; what it said is in daemon.log";

/// What a daemon says when clients can come.
pub const READY: &str = "ready";

/// What it says when another one lives.
pub const TAKEN: &str = "taken";

/// Variables beside the settings that a daemon may have of whoever starts it: who the user is, and how programs are found and
/// speak. Whose consults it runs brings the rest along.
const VARIABLES: [&str; 12] = [
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "PATH",
    "LANG",
    "TZ",
    "TMPDIR",
    "PHONE_OPUS_LOG",
    "PHONE_OPUS_FAULTS",
    "PHONE_OPUS_FAULT_SEED",
    "PHONE_OPUS_DUMPABLE",
];

/// What came of looking for a daemon.
#[derive(Debug)]
pub enum DaemonLook {
    /// Somebody listens there.
    There(OwnedFd),
    /// Nobody does.
    Absent,
    /// This process may not connect there; nothing is known of a daemon.
    Denied(PathBuf),
    /// Something else is wrong there.
    Failed(PathBuf, Errno),
}

/// A daemon that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory or a lock in it cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The directory cannot be used.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// A sandbox, or a stranger's directory.
    #[error("connect to {}: this process may not, so nothing is known of a daemon and none is started", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no absence.
    #[error("connect to {}: {errno}", path.display())]
    Failed {
        /// The socket.
        path: PathBuf,
        /// The system's word.
        errno: Errno,
    },
    /// The program could not be run.
    #[error("run {}", program.display())]
    Spawn {
        /// What was to be run.
        program: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// The daemon said why it cannot start.
    #[error("start a daemon: {said}")]
    Refused {
        /// In its words.
        said: String,
    },
    /// It said nothing in time.
    #[error("reach a daemon within {} s: {seen}", waited.as_secs_f32())]
    Silent {
        /// How long it was waited for.
        waited: Duration,
        /// What was seen last.
        seen: &'static str,
    },
}

/// Where clients of a state directory connect: where they were told, else where the record says, else the directory's own
/// socket. What is no usable record leads nowhere else.
#[must_use]
pub fn place(dir: &StateDir, asked: Option<&Path>) -> PathBuf {
    if let Some(path) = asked {
        return path.to_owned();
    }
    match DaemonRecord::read(dir) {
        Ok(Some(record)) => record.socket(),
        Ok(None) => dir.daemon_socket(),
        Err(error) => {
            tracing::debug!(error = %chain(&error), "a daemon's record is not used");
            dir.daemon_socket()
        }
    }
}

/// Looks for the daemon of a state directory. Makes and starts nothing. A full door is waited for, two seconds at most.
#[must_use]
pub fn look(dir: &StateDir, asked: Option<&Path>) -> DaemonLook {
    let path = place(dir, asked);
    let until = Instant::now() + DOOR;
    loop {
        match reach::connect(&path) {
            // Whoever listens where others can enter may be anybody; a daemon of ours would not.
            Reached::There(stream) if paths::check(&path).is_ok() => return DaemonLook::There(stream),
            Reached::There(_) => return DaemonLook::Denied(path),
            Reached::Absent => return DaemonLook::Absent,
            Reached::Denied => return DaemonLook::Denied(path),
            // No daemon can listen at a path like this one, so none does.
            Reached::Failed(Errno::NAMETOOLONG | Errno::NOTDIR) => return DaemonLook::Absent,
            Reached::Busy if Instant::now() < until => std::thread::sleep(BUSY),
            Reached::Busy => return DaemonLook::Failed(path, Errno::AGAIN),
            Reached::Failed(errno) => return DaemonLook::Failed(path, errno),
        }
    }
}

/// Whose wish a daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DaemonStarter {
    /// A client's, that found none: it ends when nobody needs it.
    Client,
    /// A person's: it stays.
    Person,
}

/// A daemon that was found or started.
#[derive(Debug)]
pub struct FoundDaemon {
    /// The connection to it; it blocks, and closes on `exec`.
    pub stream: OwnedFd,
    /// Whether it was started for this.
    pub started: bool,
}

/// How a daemon is started.
#[derive(Debug, Clone)]
pub struct DaemonStart {
    dir: StateDir,
    asked: Option<PathBuf>,
    program: PathBuf,
    called: Option<OsString>,
    words: Vec<OsString>,
    environment: Environment,
    /// Whether it is started otherwise than an installed unit would.
    special: bool,
    /// Where the programs of the system's service manager lie, where that is not where they always do.
    system: Option<Vec<PathBuf>>,
}

impl DaemonStart {
    /// The daemon of this state directory, run by this program; `environment` is that of whoever starts it.
    #[must_use]
    pub fn new(dir: StateDir, program: PathBuf, environment: &Environment, starter: DaemonStarter) -> Self {
        let mut words: Vec<OsString> = ["daemon", "run", "--detach", "--ready-fd", "1"].map(OsString::from).into();
        if starter == DaemonStarter::Client {
            words.push("--started-by-client".into());
        }
        words.extend(["--state-dir".into(), dir.root().as_os_str().to_owned()]);
        let environment = environment_of_daemon(environment);
        Self { dir, asked: None, program, called: None, words, environment, special: false, system: None }
    }

    /// The same, listening at this path.
    #[must_use]
    pub fn at(mut self, socket: Option<PathBuf>) -> Self {
        if let Some(path) = &socket {
            self.words.extend(["--socket".into(), path.as_os_str().to_owned()]);
            self.special = true;
        }
        self.asked = socket;
        self
    }

    /// The same, called by this path, where its next version will lie.
    #[must_use]
    pub fn called(mut self, path: Option<PathBuf>) -> Self {
        self.called = path.map(PathBuf::into_os_string);
        self
    }

    /// The same with more words of its command line.
    #[must_use]
    pub fn with(mut self, words: impl IntoIterator<Item = OsString>) -> Self {
        let before = self.words.len();
        self.words.extend(words);
        self.special |= self.words.len() > before;
        self
    }

    /// Connects to the daemon, starting it where there is none; the stream is blocking and closes on `exec`. Blocks its thread
    /// for as long as `patience` says, at most.
    ///
    /// # Errors
    ///
    /// Nobody listens, and a daemon cannot be started, or says nothing in time.
    pub fn connect(&self, patience: Duration) -> Result<OwnedFd, StartError> {
        self.find(patience).map(|found| found.stream)
    }

    /// The same, for who wants to know whether it was this start that started it.
    ///
    /// # Errors
    ///
    /// As [`DaemonStart::connect`].
    pub fn find(&self, patience: Duration) -> Result<FoundDaemon, StartError> {
        let began = Instant::now();
        let until = began + patience;
        let silent = |seen| StartError::Silent { waited: patience, seen };
        let _held = loop {
            if let Some(stream) = self.look()? {
                return Ok(FoundDaemon { stream, started: false });
            }
            if let Some(held) = StartLock::acquire_within(&self.dir, LOOK)? {
                break held;
            }
            if Instant::now() >= until {
                return Err(silent("another client has been starting one all the while"));
            }
        };
        let mut seen = "a daemon lives here and does not listen";
        let mut starts = 0;
        let mut started = false;
        while Instant::now() < until {
            if let Some(stream) = self.look()? {
                return Ok(FoundDaemon { stream, started });
            }
            if starts >= STARTS || DaemonLock::is_held(&self.dir)? {
                std::thread::sleep(LOOK);
                continue;
            }
            starts += 1;
            match self.run(until)? {
                Run::Reached(stream) => return Ok(FoundDaemon { stream, started: true }),
                Run::Ready => started = true,
                Run::Taken => {}
                Run::Silent | Run::Mute => {
                    seen = "the one that was started says nothing";
                    break;
                }
            }
        }
        Err(silent(seen))
    }

    /// Whoever listens.
    fn look(&self) -> Result<Option<OwnedFd>, StartError> {
        match look(&self.dir, self.asked.as_deref()) {
            DaemonLook::There(stream) => Ok(Some(stream)),
            DaemonLook::Absent => Ok(None),
            DaemonLook::Denied(path) => Err(StartError::Denied { path }),
            DaemonLook::Failed(path, errno) => Err(StartError::Failed { path, errno }),
        }
    }

    /// Runs the program in a unit of its own, where that can be had, and waits for the daemon's line.
    fn run(&self, until: Instant) -> Result<Run, StartError> {
        let (root, special) = (self.dir.root(), self.special);
        let there = match &self.system {
            Some(places) => UnitChances::look_in(places, &self.environment, root, special),
            None => UnitChances::look(&self.environment, root, special),
        };
        let soon = until.min(Instant::now() + APART);
        let why = match apart::choose(&there) {
            Apart::Starters(why) => why,
            Apart::Unit(program) => match self.run_unit(&program, soon)? {
                Some(stream) => return Ok(Run::Reached(stream)),
                None => "the installed unit did not start",
            },
            Apart::Scope(program) => match self.run_by(Some(&program), "its own", soon)? {
                Run::Silent | Run::Mute => "systemd-run did not run it",
                run => return Ok(run),
            },
        };
        match self.run_by(None, &format!("its starter's: {why}"), until)? {
            Run::Mute => Err(StartError::Refused { said: MUTE.to_owned() }),
            run => Ok(run),
        }
    }

    /// Starts the installed unit. Nobody where that fails, or takes too long.
    fn run_unit(&self, systemctl: &Path, until: Instant) -> Result<Option<OwnedFd>, StartError> {
        let mut command = Command::new(systemctl);
        command.args(apart::unit_words()).env_clear().envs(self.environment.iter()).current_dir("/");
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(self.dir.open_daemon_log()?).spawn();
        let Ok(child) = started else { return Ok(None) };
        let mut child = First(child);
        loop {
            if let Some(stream) = self.look()? {
                return Ok(Some(stream));
            }
            let failed = matches!(child.0.try_wait(), Ok(Some(status)) if !status.success());
            if failed || Instant::now() >= until {
                let _ = child.0.kill();
                return Ok(None);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The command of a daemon that is told what unit it is in: by itself, or by the program that runs it in one of its own.
    fn command(&self, program: &Path, by: Option<&Path>, scope: &str) -> Command {
        let called = self.called.as_ref();
        let mut command = match by {
            None => {
                let mut command = Command::new(program);
                if let Some(called) = called {
                    command.arg0(called);
                }
                command
            }
            Some(by) => {
                let mut command = Command::new(by);
                // It is called by the path it is run by.
                let path = called.map(Path::new).filter(|path| path.is_absolute() && path.is_file());
                command.args(apart::scope_words()).arg(path.unwrap_or(program));
                command
            }
        };
        command.args(&self.words).args(["--scope", scope]);
        command
    }

    /// Runs the program and waits for the daemon's line.
    fn run_by(&self, by: Option<&Path>, scope: &str, until: Instant) -> Result<Run, StartError> {
        let log = self.dir.open_daemon_log()?;
        let started = StandIn::default().start(&self.program, |program| {
            let mut command = self.command(program, by, scope);
            command.env_clear().envs(self.environment.iter()).current_dir("/");
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.try_clone()?);
            command.spawn()
        });
        let spawn = |source| StartError::Spawn { program: self.program.clone(), source };
        let mut first = match (started, by) {
            (Ok(child), _) => First(child),
            (Err(_), Some(_)) => return Ok(Run::Mute),
            (Err(error), None) => return Err(spawn(error)),
        };
        let Some(mut pipe) = first.0.stdout.take() else { return Ok(Run::Silent) };
        let mut said = Vec::new();
        loop {
            let ended = read_within(&mut pipe, &mut said, LOOK).map_err(spawn)?;
            match judge(&said, ended) {
                Some(Line::Ready) => return Ok(Run::Ready),
                Some(Line::Taken) => return Ok(Run::Taken),
                Some(Line::Refused(said)) => return Err(StartError::Refused { said }),
                Some(Line::Mute) => return Ok(Run::Mute),
                None => {}
            }
            if let Some(stream) = self.look()? {
                return Ok(Run::Reached(stream));
            }
            if Instant::now() >= until {
                if by.is_some() {
                    // What it was to run is run without it.
                    let _ = first.0.kill();
                }
                return Ok(Run::Silent);
            }
        }
    }
}

/// What came of running the program.
enum Run {
    /// Somebody listens by now.
    Reached(OwnedFd),
    /// The daemon says so.
    Ready,
    /// Another daemon lives.
    Taken,
    /// Nothing was said in time.
    Silent,
    /// It ended without a word.
    Mute,
}

/// The first process, which starts the daemon and ends.
struct First(Child);

impl Drop for First {
    fn drop(&mut self) {
        // It normally has ended long before its daemon says a word; one that hangs is our own child.
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            let until = Instant::now() + DOOR;
            while Instant::now() < until && matches!(self.0.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Reads what is there, waiting this long for it; whether it was the end.
fn read_within(pipe: &mut ChildStdout, said: &mut Vec<u8>, patience: Duration) -> io::Result<bool> {
    let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(patience.subsec_nanos()) };
    match poll(&mut [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)], Some(&wait)) {
        Ok(0) | Err(Errno::INTR) => return Ok(false),
        Ok(_) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut part = [0; 1024];
    let read = pipe.read(&mut part)?;
    said.extend_from_slice(part.get(..read).unwrap_or_default());
    Ok(read == 0 || said.len() >= SAID)
}

/// A daemon's line.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Ready,
    Taken,
    Refused(String),
    /// It ended before it said one.
    Mute,
}

/// What a daemon has said, once it has.
fn judge(said: &[u8], ended: bool) -> Option<Line> {
    let whole = said.iter().position(|byte| *byte == b'\n');
    let line = match (whole, ended) {
        (Some(end), _) => said.get(..end).unwrap_or_default(),
        (None, true) => said,
        (None, false) => return None,
    };
    Some(match String::from_utf8_lossy(line).trim() {
        READY => Line::Ready,
        TAKEN => Line::Taken,
        "" => Line::Mute,
        why => Line::Refused(why.to_owned()),
    })
}

/// What a daemon has of its starter's environment. A caller's settings and marks are not the daemon's: it serves others as well,
/// and outlives the agent that asked for it.
fn environment_of_daemon(environment: &Environment) -> Environment {
    let is_settings =
        |name: &str| Key::ALL.iter().any(|key| !OF_A_SESSION.contains(&key.name) && key.variable() == name);
    let passes = |name: &OsStr| {
        let name = name.to_str().unwrap_or_default();
        VARIABLES.contains(&name) || name.starts_with("LC_") || name.starts_with("XDG_") || is_settings(name)
    };
    environment.iter().filter(|(name, _)| passes(name)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn scratch() -> (tempfile::TempDir, StateDir) {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        (scratch, dir)
    }

    /// A start of something that says these words instead of a daemon.
    fn saying(dir: &StateDir, script: &str) -> DaemonStart {
        let start = DaemonStart::new(dir.clone(), "/bin/sh".into(), &Environment::default(), DaemonStarter::Client);
        DaemonStart { words: ["-c", script].map(OsString::from).into(), ..start }
    }

    #[test]
    fn what_a_daemon_says_is_one_line_or_the_reason() {
        let refused = |text: &str| Some(Line::Refused(text.to_owned()));
        let cases: [(&[u8], bool, Option<Line>); 8] = [
            (b"", false, None),
            (b"rea", false, None),
            (b"ready\n", false, Some(Line::Ready)),
            (b"ready", true, Some(Line::Ready)),
            (b"taken\nmore", false, Some(Line::Taken)),
            (b"no room", false, None),
            (b"no room\n", false, refused("no room")),
            (b"", true, Some(Line::Mute)),
        ];
        for (said, ended, line) in cases {
            assert_eq!(judge(said, ended), line, "{said:?}");
        }
    }

    #[test]
    fn looking_makes_nothing_and_a_record_leads() {
        let (scratch, dir) = scratch();
        assert!(matches!(look(&dir, None), DaemonLook::Absent));
        assert!(!dir.root().exists(), "looking made something");
        dir.create().expect("a state directory");
        let other = scratch.path().join("other");
        paths::prepare(&other.join("x.sock")).expect("a directory");
        let listener = super::super::listener::Listener::bind(&other.join("x.sock")).expect("it listens");
        assert!(matches!(look(&dir, None), DaemonLook::Absent));
        let id = crate::base::ids::DaemonId::random();
        DaemonRecord::of_this(id, listener.place()).write(&dir).expect("it is written");
        assert!(matches!(look(&dir, None), DaemonLook::There(_)));
        assert_eq!(place(&dir, Some(Path::new("/x"))), Path::new("/x"));
        // Whoever could enter the directory may have put another socket there.
        std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a mode");
        assert!(matches!(look(&dir, None), DaemonLook::Denied(_)));
        drop(listener);
        assert!(matches!(look(&dir, None), DaemonLook::Absent), "left behind");
        // A path no socket can have.
        let long = StateDir::at(scratch.path().join("x".repeat(200)));
        assert!(matches!(look(&long, None), DaemonLook::Absent));
    }

    #[test]
    fn one_that_cannot_start_says_why_and_nothing_is_waited_for() {
        let (_scratch, dir) = scratch();
        let began = Instant::now();
        let error = saying(&dir, "echo the disk is full").connect(PATIENCE).expect_err("it said no");
        assert_eq!(error.to_string(), "start a daemon: the disk is full");
        let error = saying(&dir, "exit 1").connect(PATIENCE).expect_err("it ended").to_string();
        assert!(error.contains("before it was ready"), "{error}");
        let gone = DaemonStart { program: "/no/such/program".into(), ..saying(&dir, "") };
        assert!(matches!(gone.connect(PATIENCE), Err(StartError::Spawn { .. })));
        assert!(began.elapsed() < PATIENCE, "patience was spent on what was said at once");
        let error = saying(&dir, "sleep 600").connect(Duration::from_millis(100)).expect_err("it is silent");
        assert!(matches!(error, StartError::Silent { .. }), "{error}");
    }

    /// A service manager's program that notes how it was called and then does this.
    fn manager(scratch: &Path, name: &str, does: &str) -> (DaemonStart, PathBuf) {
        use std::os::unix::fs::PermissionsExt as _;
        let (runtime, bin, noted) = (scratch.join("run"), scratch.join("bin"), scratch.join("noted"));
        for dir in [runtime.join("systemd"), bin.clone(), scratch.join("config/systemd/user")] {
            std::fs::create_dir_all(dir).expect("made");
        }
        std::fs::write(runtime.join("systemd/private"), "").expect("written");
        let script = format!("#!/bin/sh\nprintf '%s\\n' \"$@\" > '{}'\n{does}\n", noted.display());
        std::fs::write(bin.join(name), script).expect("written");
        std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(0o755)).expect("a mode");
        let environment: Environment =
            [("XDG_RUNTIME_DIR", runtime), ("XDG_CONFIG_HOME", scratch.join("config"))].into_iter().collect();
        let dir = StateDir::at(scratch.join("state"));
        let start = DaemonStart::new(dir, "/bin/sh".into(), &environment, DaemonStarter::Client);
        (DaemonStart { system: Some(vec![bin]), ..start }, noted)
    }

    #[test]
    fn where_there_is_a_service_manager_a_daemon_is_run_in_a_scope_of_its_own_and_told_so() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let (start, noted) = manager(scratch.path(), "systemd-run", "echo the disk is full");
        let error = start.connect(PATIENCE).expect_err("it said no");
        assert_eq!(error.to_string(), "start a daemon: the disk is full", "the daemon's word, and not another try");
        let words = std::fs::read_to_string(noted).expect("it was called");
        let words: Vec<&str> = words.lines().collect();
        let state = scratch.path().join("state").display().to_string();
        let command = ["/bin/sh", "daemon", "run", "--detach", "--ready-fd", "1", "--started-by-client", "--state-dir"];
        let first = ["--user", "--scope", "--collect", "--quiet", "--description=phone-opus daemon", "--"];
        assert_eq!(words, [&first[..], &command, &[&state, "--scope", "its own"]].concat());
    }

    #[test]
    fn a_service_manager_that_fails_or_hangs_costs_a_moment_and_no_daemon() {
        for (name, does, said) in [
            ("systemd-run", "exit 1", "its starter's: systemd-run did not run it"),
            ("systemd-run", "sleep 600", "its starter's: systemd-run did not run it"),
            ("systemctl", "exit 1", "its starter's: the installed unit did not start"),
        ] {
            let scratch = tempfile::tempdir().expect("a scratch directory");
            let (start, noted) = manager(scratch.path(), name, does);
            if name == "systemctl" {
                let unit = scratch.path().join("config/systemd/user").join(apart::SERVICE);
                let state = scratch.path().join("state");
                let text =
                    format!("# {}\nExecStart=\"x\" daemon run --state-dir \"{}\"\n", apart::UNIT_MARK, state.display());
                std::fs::write(unit, text).expect("written");
            }
            // What is run without it says the last of its words.
            let script = "shift $(($# - 1)); echo \"$1\"";
            let start = DaemonStart { words: ["-c", script, "sh"].map(OsString::from).into(), ..start };
            let began = Instant::now();
            let error = start.connect(PATIENCE).expect_err("it is no daemon").to_string();
            assert!(noted.exists(), "{name} was asked first");
            assert_eq!(error, format!("start a daemon: {said}"), "{name} {does}");
            assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
        }
    }

    #[test]
    fn who_finds_somebody_else_listening_while_it_waits_is_served_by_that_one() {
        let (_scratch, dir) = scratch();
        dir.create().expect("a state directory");
        let binding = {
            let dir = dir.clone();
            // As a daemon that somebody else started meanwhile.
            std::thread::spawn(move || UnixListener::bind(dir.daemon_socket()).expect("a socket"))
        };
        saying(&dir, "sleep 600").connect(PATIENCE).expect("somebody listens");
        drop(binding.join().expect("no panic"));
    }

    #[test]
    fn nothing_is_started_beside_one_that_lives() {
        let (_scratch, dir) = scratch();
        let held = DaemonLock::try_acquire(&dir).expect("it can be taken").expect("nobody has it");
        let touched = dir.root().join("started");
        let start = saying(&dir, &format!("touch '{}'; echo ready", touched.display()));
        let error = start.connect(Duration::from_millis(100)).expect_err("it does not listen");
        assert!(error.to_string().contains("lives here and does not listen"), "{error}");
        assert!(!touched.exists(), "another one was started");
        drop(held);
    }

    #[test]
    fn a_daemon_has_its_own_settings_and_nothing_of_its_starters_secrets_and_marks() {
        let all: Environment = [
            ("HOME", "/home/me"),
            ("PATH", "/bin"),
            ("LC_ALL", "C"),
            ("XDG_RUNTIME_DIR", "/run/user/1"),
            ("PHONE_OPUS_MAX_RUNNING", "2"),
            ("PHONE_OPUS_LOG", "debug"),
            ("PHONE_OPUS_BILLING", "api_key"),
            ("PHONE_OPUS_CLAUDE_BIN", "/opt/claude"),
            ("PHONE_OPUS_RUN_TOKEN", "x"),
            ("PHONE_OPUS_DEPTH", "1"),
            ("PHONE_OPUS_STATE_DIR", "/elsewhere"),
            ("ANTHROPIC_API_KEY", "key"),
            ("CLAUDE_CONFIG_DIR", "/home/me/.other"),
            ("HTTPS_PROXY", "http://p"),
            ("SECRET_OF_MINE", "s"),
        ]
        .into_iter()
        .collect();
        let kept = environment_of_daemon(&all);
        let names: Vec<&str> = kept.iter().filter_map(|(name, _)| name.to_str()).collect();
        let expected = ["HOME", "LC_ALL", "PATH", "PHONE_OPUS_LOG", "PHONE_OPUS_MAX_RUNNING", "XDG_RUNTIME_DIR"];
        assert_eq!(names, expected);
    }
}
