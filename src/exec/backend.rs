//! What every place that can run processes offers, whichever machine it is on.
//!
//! Owns: the interface of a backend, of a process it started and of its files; this machine's side of it. May not know: the
//! wire, connections, and what a process is for.
//!
//! A process is a [`ProcessSession`] wherever it runs: its events, its bounded ring and its reads are those of the session,
//! which is local in each case. What differs is how it is started and steered, and that is here.
//!
//! Invariants:
//! 1. A start whose future is dropped leaves no process, and neither does a process of which the last handle is dropped.
//! 2. The tap of a process gets every byte; where that is not possible it says how much is missing ([`OutputTap::lost`]).
//! 3. A start that failed with anything but [`ProcessStartError::Ambiguous`] has left nothing running.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::client::ExecError;
use super::local::{
    Adopt, CloseBy, LocalExec, LocalProcess, OutputTap, ProcessEnd, SpawnError, SpawnMode, SpawnSpec, Stdin,
    TerminalSize, WriteStatus,
};
use super::session::ProcessSession;
use super::wire::WireError;

/// What to start, on the machine of whoever is asked.
///
/// Its `Debug` text holds neither values of the environment nor input, as that of [`SpawnSpec`].
#[derive(Clone)]
pub struct StartRequest {
    /// The process's name at its backend; never used twice.
    pub process_id: String,
    /// The program; absolute, unless it is to be looked up on the `PATH` in `env`.
    pub program: PathBuf,
    /// Its arguments, without the program's name.
    pub args: Vec<OsString>,
    /// What it is told its own name is, when that is not the program's.
    pub arg0: Option<OsString>,
    /// The directory it starts in, of that machine.
    pub cwd: PathBuf,
    /// Its complete environment, unless there is an `env_policy`.
    pub env: Vec<(OsString, OsString)>,
    /// What it has of that machine's environment, under `env`.
    pub env_policy: Option<EnvPolicy>,
    /// Whether it runs on a terminal.
    pub tty: bool,
    /// What it reads on its standard input.
    pub stdin: StdinKind,
    /// Whether its end is that of its whole group, as it always is on this machine; asked for where a server offers it.
    pub ends_with_leader: bool,
    /// The name in `env` of a variable that nothing else has, by which what left its group is known there and ended with it;
    /// asked for where a server offers it. This machine has other means.
    pub marked_by: Option<String>,
    /// Whatever the peer may want to know; this machine does not.
    pub metadata: Option<Value>,
}

impl StartRequest {
    /// This program in this directory, with nothing else.
    #[must_use]
    pub fn new(process_id: impl Into<String>, program: impl Into<PathBuf>, cwd: impl Into<PathBuf>) -> Self {
        Self {
            process_id: process_id.into(),
            program: program.into(),
            args: Vec::new(),
            arg0: None,
            cwd: cwd.into(),
            env: Vec::new(),
            env_policy: None,
            tty: false,
            stdin: StdinKind::Null,
            ends_with_leader: false,
            marked_by: None,
            metadata: None,
        }
    }
}

impl fmt::Debug for StartRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.env.iter().map(|(name, _)| name).collect();
        f.debug_struct("StartRequest")
            .field("process_id", &self.process_id)
            .field("program", &self.program)
            .field("args", &self.args)
            .field("cwd", &self.cwd)
            .field("env", &names)
            .field("tty", &self.tty)
            .field("stdin", &self.stdin)
            .finish_non_exhaustive()
    }
}

/// What a process reads on its standard input, in words that every machine understands.
#[derive(Clone)]
pub enum StdinKind {
    /// Nothing.
    Null,
    /// These bytes, then the end.
    Bytes(Bytes),
    /// What is written by [`ExecProcess::write`].
    Piped,
}

impl fmt::Debug for StdinKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Self::Piped => f.write_str("Piped"),
        }
    }
}

/// Which variables of a machine's own environment a process inherits. What the request sets goes over them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvPolicy {
    /// Where to begin.
    pub inherit: EnvInherit,
    /// Keep variables whose names look like secrets.
    pub ignore_default_excludes: bool,
    /// Patterns of names to leave out.
    pub exclude: Vec<String>,
    /// Variables to set.
    pub set: BTreeMap<String, String>,
    /// When not empty, patterns of the only names to keep.
    pub include_only: Vec<String>,
}

/// See [`EnvPolicy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnvInherit {
    /// Everything.
    #[default]
    All,
    /// What a login shell cannot do without.
    Core,
    /// Nothing.
    None,
}

/// Why a process was not started, or is not known to have been.
#[derive(Debug, thiserror::Error)]
pub enum ProcessStartError {
    /// The machine refused, in the words of [`SpawnError`].
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// There is or was a process of this name.
    #[error("start {process_id:?}: the name is taken")]
    DuplicateId {
        /// The name.
        process_id: String,
    },
    /// The backend cannot do what was asked.
    #[error("start {process_id:?}: {what}")]
    Unsupported {
        /// The name.
        process_id: String,
        /// What it cannot do.
        what: &'static str,
    },
    /// The backend was not reached, or is known not to have started it.
    #[error("start {process_id:?}: {reason}")]
    Unreachable {
        /// The name.
        process_id: String,
        /// Why.
        reason: String,
    },
    /// Whether it was started cannot be learnt. It is ended should it turn up.
    #[error("learn whether {process_id:?} was started: {reason}")]
    Ambiguous {
        /// The name.
        process_id: String,
        /// What hid it.
        reason: String,
    },
    /// The backend's server refused, in words of its own.
    #[error("start {process_id:?}: {error}")]
    Refused {
        /// The name.
        process_id: String,
        /// What it said.
        error: WireError,
    },
}

/// What became of a process can no longer be learnt. Its session has failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("learn how the process ended: {message}")]
pub struct ProcessLost {
    /// The message of the session's `Failed`.
    pub message: String,
    /// When the machine was last heard of: its server ends what it runs a lease after that at the latest.
    pub heard: Instant,
}

/// What a machine says of itself. All of it may be unknown.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvironmentInfo {
    /// The user's shell.
    pub shell: Option<ShellInfo>,
    /// Where the server was started.
    pub cwd: Option<String>,
    /// The user's home directory.
    pub user_home_dir: Option<String>,
    /// Where scratch files go.
    pub temp_dir: Option<String>,
    /// `linux`, `macos`, `windows`.
    pub platform_os: Option<String>,
    /// The server's version.
    pub executor_version: Option<String>,
    /// How long the server keeps what runs while nobody is connected.
    pub lease_ms: Option<u64>,
    /// What the server can do beyond the protocol; values that are not `true` mean that it cannot.
    pub capabilities: BTreeMap<String, Value>,
}

impl EnvironmentInfo {
    /// Whether the server says that it can do this.
    #[must_use]
    pub fn can(&self, capability: &str) -> bool {
        self.capabilities.get(capability).and_then(Value::as_bool).unwrap_or(false)
    }
}

/// A shell.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ShellInfo {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: String,
}

/// A process and everything it writes.
pub type StartedProcess = (Arc<dyn ExecProcess>, OutputTap);

/// A place that can run processes.
pub trait ExecBackend: Send + Sync {
    /// Starts a process whose events go to `session`, which must be new.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no process.
    fn start(
        &self,
        request: StartRequest,
        session: ProcessSession,
    ) -> BoxFuture<'_, Result<StartedProcess, ProcessStartError>>;

    /// The machine's files; `None` when it is this machine, whose files are at hand.
    fn files(&self) -> Option<&dyn ExecFiles>;

    /// Whether what its processes say is heard now: one that is being reached again may say much.
    fn is_heard(&self) -> bool {
        true
    }

    /// What the machine is like.
    fn environment(&self) -> BoxFuture<'_, Result<EnvironmentInfo, ExecError>>;

    /// Ends everything that was started and lets go of the machine. Sessions that are open end by what is heard until then.
    fn shutdown(&self) -> BoxFuture<'_, ()>;
}

/// A process that was started. Dropping the last handle ends it.
pub trait ExecProcess: fmt::Debug + Send + Sync {
    /// Its name at its backend.
    fn id(&self) -> &str;

    /// Its events.
    fn session(&self) -> &ProcessSession;

    /// Its pid, where it is a process of this machine.
    fn pid(&self) -> Option<u32>;

    /// When the kernel started it, as [`start_time`](super::local::start_time); 0 where it is not a process of this machine.
    fn start_time(&self) -> u64;

    /// Queues bytes for its standard input, in the order of the calls. Waits while too much is queued.
    ///
    /// # Cancel safety
    /// Whether the bytes are queued is not known.
    fn write(&self, bytes: Bytes) -> BoxFuture<'_, Result<WriteStatus, ExecError>>;

    /// Closes its standard input after what was written before.
    fn close_stdin(&self) -> BoxFuture<'_, Result<(), ExecError>>;

    /// Interrupts its group, as a terminal's Ctrl-C would.
    fn interrupt(&self) -> BoxFuture<'_, Result<(), ExecError>>;

    /// Gives its terminal this size. Returns whether it has one.
    ///
    /// # Errors
    /// Where its machine cannot, and as any call.
    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, Result<bool, ExecError>>;

    /// Asks for its end: TERM to the group, KILL after the grace (the backend's own, where `None`). Where the machine knows
    /// no grace it is killed. Returns whether there was anything to end.
    fn terminate(&self, grace: Option<Duration>) -> BoxFuture<'_, Result<bool, ExecError>>;

    /// Has it killed, now or as soon as its machine can be reached. Waits for nothing.
    fn kill(&self);

    /// Waits for its end, at any time and as often as wanted.
    fn end(&self) -> BoxFuture<'_, Result<ProcessEnd, ProcessLost>>;
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FileMetadata {
    /// A directory.
    pub is_directory: bool,
    /// A regular file.
    pub is_file: bool,
    /// A link; the rest is about what it leads to.
    pub is_symlink: bool,
    /// In bytes.
    pub size: u64,
    /// 0 when unknown.
    pub created_at_ms: i64,
    /// 0 when unknown.
    pub modified_at_ms: i64,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectoryEntry {
    /// The name.
    pub file_name: String,
    /// A directory.
    pub is_directory: bool,
    /// A regular file.
    pub is_file: bool,
}

/// Whether what is below a directory is meant too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Only this.
    One,
    /// All of it.
    Whole,
}

/// Why something was not done to a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// It is not there.
    #[error("find {}", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// The path cannot be said to that machine.
    #[error("name {}: it is not an absolute path", path.display())]
    Unnameable {
        /// The path.
        path: PathBuf,
    },
    /// Anything else.
    #[error(transparent)]
    Exec(#[from] ExecError),
}

/// The files of another machine. Paths are absolute and that machine's.
pub trait ExecFiles: Send + Sync {
    /// A whole file. Large ones are read in blocks, and may change between two of them.
    fn read_file<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Bytes, FilesError>>;

    /// Makes a file be these bytes; its directory must be there.
    fn write_file<'a>(&'a self, path: &'a Path, bytes: Bytes) -> BoxFuture<'a, Result<(), FilesError>>;

    /// Makes a directory, with those above it where `depth` is whole.
    fn create_directory<'a>(&'a self, path: &'a Path, depth: Depth) -> BoxFuture<'a, Result<(), FilesError>>;

    /// What is there, links followed.
    fn metadata<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<FileMetadata, FilesError>>;

    /// What is in a directory, in no order.
    fn read_directory<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Result<Vec<DirectoryEntry>, FilesError>>;

    /// Removes what is there; that nothing is, is an error.
    fn remove<'a>(&'a self, path: &'a Path, depth: Depth) -> BoxFuture<'a, Result<(), FilesError>>;

    /// Copies a file, or a directory where `depth` is whole.
    fn copy<'a>(&'a self, from: &'a Path, to: &'a Path, depth: Depth) -> BoxFuture<'a, Result<(), FilesError>>;
}

impl ExecBackend for LocalExec {
    fn start(
        &self,
        request: StartRequest,
        session: ProcessSession,
    ) -> BoxFuture<'_, Result<StartedProcess, ProcessStartError>> {
        // Nothing here waits, so a future that was polled has started the process, and its handle ends it when dropped.
        std::future::ready(start_here(request, session, None)).boxed()
    }

    fn files(&self) -> Option<&dyn ExecFiles> {
        None
    }

    fn environment(&self) -> BoxFuture<'_, Result<EnvironmentInfo, ExecError>> {
        let info = EnvironmentInfo {
            platform_os: Some(std::env::consts::OS.to_owned()),
            executor_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            ..EnvironmentInfo::default()
        };
        std::future::ready(Ok(info)).boxed()
    }

    /// Every process is its own handle's, so there is nothing to end.
    fn shutdown(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}

/// Starts a process of this machine. `mark` is [`SpawnMode::mark`]: for a process that is a subreaper.
pub(super) fn start_here(
    request: StartRequest,
    session: ProcessSession,
    mark: Option<OsString>,
) -> Result<StartedProcess, ProcessStartError> {
    let StartRequest { process_id, program, args, arg0, cwd, env, env_policy, tty, stdin, .. } = request;
    if env_policy.is_some() {
        let what = "on this machine an environment is given whole";
        return Err(ProcessStartError::Unsupported { process_id, what });
    }
    let stdin = match stdin {
        StdinKind::Null => Stdin::Null,
        StdinKind::Bytes(bytes) => Stdin::Bytes(bytes),
        StdinKind::Piped => Stdin::Piped,
    };
    let spec = SpawnSpec { program, args, cwd, env, stdin, adopt: Adopt::No, descriptors: None };
    let terminal = tty.then_some(TerminalSize { cols: 80, rows: 24 });
    let mode = SpawnMode { arg0, terminal, mark, ..SpawnMode::default() };
    let (process, tap) = LocalExec::spawn_with(spec, mode, session.clone(), CloseBy::Backend)?;
    Ok((Arc::new(HereProcess { process_id, session, process }), tap))
}

/// A process of this machine, behind the interface.
#[derive(Debug)]
struct HereProcess {
    process_id: String,
    session: ProcessSession,
    process: LocalProcess,
}

impl ExecProcess for HereProcess {
    fn id(&self) -> &str {
        &self.process_id
    }

    fn session(&self) -> &ProcessSession {
        &self.session
    }

    fn pid(&self) -> Option<u32> {
        Some(self.process.pid())
    }

    fn start_time(&self) -> u64 {
        self.process.start_time()
    }

    fn write(&self, bytes: Bytes) -> BoxFuture<'_, Result<WriteStatus, ExecError>> {
        self.process.write(bytes).map(Ok).boxed()
    }

    fn close_stdin(&self) -> BoxFuture<'_, Result<(), ExecError>> {
        self.process.control().close_stdin();
        std::future::ready(Ok(())).boxed()
    }

    fn interrupt(&self) -> BoxFuture<'_, Result<(), ExecError>> {
        self.process.interrupt();
        std::future::ready(Ok(())).boxed()
    }

    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, Result<bool, ExecError>> {
        std::future::ready(Ok(self.process.control().resize(size))).boxed()
    }

    fn terminate(&self, grace: Option<Duration>) -> BoxFuture<'_, Result<bool, ExecError>> {
        let control = self.process.control();
        let running = grace.map_or_else(|| control.terminate(), |grace| control.terminate_within(grace));
        std::future::ready(Ok(running)).boxed()
    }

    fn kill(&self) {
        self.process.control().kill();
    }

    fn end(&self) -> BoxFuture<'_, Result<ProcessEnd, ProcessLost>> {
        self.process.ended().map(Ok).boxed()
    }
}

#[cfg(test)]
mod tests {
    //! This machine behind the interface. Laws: L7.

    use super::super::local::living_members;
    use super::super::{OutputCursor, OutputStream, ProcessEvent};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn shell(id: &str, script: &str) -> StartRequest {
        let mut request = StartRequest::new(id, "/bin/sh", std::env::temp_dir());
        request.args = vec!["-c".into(), script.into()];
        request.env = vec![("PATH".into(), "/usr/bin:/bin".into()), ("SECRET".into(), "hunter2".into())];
        request
    }

    async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
        tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
    }

    #[tokio::test]
    async fn a_process_of_this_machine_is_started_written_to_and_heard_to_its_end() {
        let backend: &dyn ExecBackend = &LocalExec;
        let session = ProcessSession::new();
        let mut request = shell("p", "read a; echo got $a; cat; exit 3");
        request.stdin = StdinKind::Piped;
        assert!(!format!("{request:?}").contains("hunter2"));
        let (process, mut tap) = backend.start(request, session.clone()).await.unwrap();
        assert_eq!(process.id(), "p");
        assert_eq!(process.write(Bytes::from_static(b"this\n")).await, Ok(WriteStatus::Accepted));
        process.close_stdin().await.unwrap();
        let mut said = Vec::new();
        while let Some((stream, bytes)) = in_time("output", tap.next()).await {
            assert_eq!(stream, OutputStream::Stdout);
            said.extend_from_slice(&bytes);
        }
        assert_eq!((said.as_slice(), tap.lost()), (&b"got this\n"[..], 0));
        let end = in_time("the end", process.end()).await.unwrap();
        assert_eq!((end.code, in_time("the end again", process.end()).await), (3, Ok(end)));
        assert!(!process.terminate(None).await.unwrap());
        let mut events = session.subscribe(OutputCursor::start());
        let mut last = None;
        while let Some(event) = in_time("an event", events.next()).await {
            last = Some(event);
        }
        assert_eq!(last, Some(ProcessEvent::Closed { seq: 3 }));
    }

    #[tokio::test]
    async fn the_last_handle_takes_its_process_along() {
        let session = ProcessSession::new();
        let (process, _tap) = LocalExec.start(shell("p", "sleep 1000 & sleep 1000"), session.clone()).await.unwrap();
        let (pid, other) = (process.pid().unwrap(), Arc::clone(&process));
        drop(process);
        assert!(!living_members(pid).unwrap_or_else(|| vec![pid]).is_empty());
        drop(other);
        let mut events = session.subscribe(OutputCursor::start());
        while in_time("the end", events.next()).await.is_some() {}
        assert_eq!(living_members(pid).unwrap_or_default(), Vec::<u32>::new());
    }

    #[tokio::test]
    async fn what_cannot_be_started_is_said_in_the_machines_words() {
        let missing = StartRequest::new("a", "/no/such/program", "/");
        let elsewhere = StartRequest::new("b", "/bin/sh", "/no/such/directory");
        let mut policy = shell("c", "exit 0");
        policy.env_policy = Some(EnvPolicy::default());
        let refused = |request| async { LocalExec.start(request, ProcessSession::new()).await.err().unwrap() };
        assert!(matches!(refused(missing).await, ProcessStartError::Spawn(SpawnError::ProgramMissing { .. })));
        assert!(matches!(refused(elsewhere).await, ProcessStartError::Spawn(SpawnError::CwdMissing { .. })));
        assert!(matches!(refused(policy).await, ProcessStartError::Unsupported { .. }));
    }

    #[test]
    fn an_environment_that_says_little_or_more_is_read() {
        let none: EnvironmentInfo = serde_json::from_str("{}").unwrap();
        assert_eq!(none, EnvironmentInfo::default());
        let some: EnvironmentInfo = serde_json::from_str(
            r#"{"shell":{"name":"sh","path":"/bin/sh"},"new":1,"leaseMs":30000,
                "capabilities":{"processCloseStdin":true,"limit":7,"terminateGrace":false}}"#,
        )
        .unwrap();
        assert!(some.can("processCloseStdin") && !some.can("terminateGrace") && !some.can("limit"));
        assert_eq!(some.lease_ms, Some(30_000));
    }
}
