//! Where a case runs its processes, and what each place is allowed to do differently.
//!
//! Laws: L7.
//!
//! The real `codex exec-server` is run where `PHONE_OPUS_CODEX` names the program; elsewhere its tests say so and pass.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests; what is skipped is said"
)]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use phone_opus::internals::exec::backend::{ExecBackend, StartRequest, StartedProcess};
use phone_opus::internals::exec::machine::OwnMachine;
use phone_opus::internals::exec::remote::{RemoteExec, RemoteOptions};
use phone_opus::internals::exec::target::{ExecTarget, TargetWords};
use phone_opus::internals::exec::{EventStream, LocalExec, OutputCursor, OutputTap, ProcessEvent, ProcessSession};
use phone_opus::machine::{Machine, MachineError, MachineFuture, MachineProcess, MachineStart};
use phone_opus::testkit::machine::StreamedHere;
use phone_opus::testkit::processes;
use phone_opus::testkit::tried_program;
use phone_opus::testkit::wait::Waiting;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// The longest a case waits for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What names the real server's program.
const CODEX_VARIABLE: &str = "PHONE_OPUS_CODEX";

/// A place's own ways, each measured and none of them ours to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Difference {
    /// It cannot end a standard input, so bytes cannot be given with a start.
    StdinStaysOpen,
    /// It kills where we ask first.
    NoGrace,
    /// A name is free again once its process is over.
    NamesAreFreed,
    /// A write to a process that has exited is said to be accepted.
    LateWritesAreTaken,
    /// A terminal has the size it had.
    SizesStay,
    /// A death by a signal is an exit code and nothing else.
    SignalsAreCodes,
    /// A program is told its own name and no other.
    NamesAreTheirOwn,
}

/// Where processes run.
pub(super) struct Place {
    pub(super) backend: Arc<dyn ExecBackend>,
    pub(super) differs: &'static [Difference],
    pub(super) dir: TempDir,
    server: Option<Child>,
    target: Option<ExecTarget>,
    /// Where its socket is, so that its name marks nobody.
    _apart: Option<TempDir>,
}

/// The ways of this machine without a server.
const LOCAL: &[Difference] = &[Difference::NamesAreFreed];

/// The ways of machines of a program's own.
const MACHINE: &[Difference] = &[Difference::NamesAreFreed, Difference::NamesAreTheirOwn];

/// A machine that is this one.
pub(super) struct Here;

impl Machine for Here {
    fn name(&self) -> &str {
        "here"
    }

    fn over_within(&self) -> Duration {
        Duration::ZERO
    }

    fn start(&self, start: MachineStart) -> MachineFuture<'_, Result<MachineProcess, MachineError>> {
        Box::pin(async move { Ok(MachineProcess::here(start)) })
    }
}

/// The ways of `codex exec-server` 0.169.0.
const CODEX: &[Difference] = &[
    Difference::StdinStaysOpen,
    Difference::NoGrace,
    Difference::LateWritesAreTaken,
    Difference::SizesStay,
    Difference::SignalsAreCodes,
];

impl Place {
    pub(super) fn differs(&self, difference: Difference) -> bool {
        self.differs.contains(&difference)
    }

    pub(super) async fn local() -> Option<Self> {
        Some(Self {
            backend: Arc::new(LocalExec),
            differs: LOCAL,
            dir: scratch(),
            server: None,
            target: None,
            _apart: None,
        })
    }

    pub(super) async fn machine_here() -> Option<Self> {
        Some(Self::machine(Here))
    }

    pub(super) async fn machine_streamed() -> Option<Self> {
        Some(Self::machine(StreamedHere))
    }

    fn machine(machine: impl Machine) -> Self {
        let backend = Arc::new(OwnMachine::new(Arc::new(machine), Vec::new()));
        Self { backend, differs: MACHINE, dir: scratch(), server: None, target: None, _apart: None }
    }

    pub(super) async fn unix() -> Option<Self> {
        let (dir, apart) = (scratch(), scratch());
        let listen = format!("unix:{}", apart.path().join("exec.sock").display());
        let mut server = ours(&listen, dir.path());
        let _ = first_line(&mut server).await;
        let place = Self::remote(&TargetWords::Text(listen), dir, Some(server), &[]).await;
        Some(Self { _apart: Some(apart), ..place })
    }

    pub(super) async fn ws() -> Option<Self> {
        let dir = scratch();
        let mut server = ours("ws://127.0.0.1:0", dir.path());
        let url = first_line(&mut server).await;
        Some(Self::remote(&TargetWords::Text(url), dir, Some(server), &[]).await)
    }

    pub(super) async fn stdio() -> Option<Self> {
        let words = [program().display().to_string(), "exec-server".into(), "--listen".into(), "stdio".into()];
        Some(Self::remote(&TargetWords::Program(words.to_vec()), scratch(), None, &[]).await)
    }

    pub(super) async fn codex_ws() -> Option<Self> {
        let (codex, dir) = (codex()?, scratch());
        let mut command = Command::new(codex);
        command.args(["exec-server", "--listen", "ws://127.0.0.1:0"]);
        let mut server = start(command, dir.path());
        let url = first_line(&mut server).await;
        Some(Self::remote(&TargetWords::Text(url), dir, Some(server), CODEX).await)
    }

    pub(super) async fn codex_stdio() -> Option<Self> {
        let words = [codex()?.display().to_string(), "exec-server".into(), "--listen".into(), "stdio".into()];
        Some(Self::remote(&TargetWords::Program(words.to_vec()), scratch(), None, CODEX).await)
    }

    async fn remote(words: &TargetWords, dir: TempDir, server: Option<Child>, differs: &'static [Difference]) -> Self {
        let target = ExecTarget::parse(words).expect("a target");
        let connected = RemoteExec::connect(target.clone(), None, RemoteOptions::default());
        let remote = in_time("a connection", connected).await.expect("a connection");
        Self { backend: Arc::new(remote), differs, dir, server, target: Some(target), _apart: None }
    }

    /// Where its server is reached.
    pub(super) fn target(&self) -> ExecTarget {
        self.target.clone().expect("a server")
    }

    /// A shell's script, with nothing but a path and the mark of this place in its environment.
    pub(super) fn shell(&self, id: &str, script: &str) -> StartRequest {
        let mut request = StartRequest::new(id, "/bin/sh", self.dir.path());
        request.args = vec!["-c".into(), script.into()];
        request.env = vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into()), self.mark()];
        request.ends_with_leader = true;
        request
    }

    pub(super) fn mark(&self) -> (std::ffi::OsString, std::ffi::OsString) {
        ("EXEC_CASE".into(), self.dir.path().into())
    }

    pub(super) async fn start(&self, request: StartRequest) -> Running {
        let session = ProcessSession::new();
        let id = request.process_id.clone();
        let started = in_time("a start", self.backend.start(request, session.clone())).await;
        let (process, tap) = started.unwrap_or_else(|error| panic!("{id}: {error}"));
        Running { process: (process, tap), session }
    }

    pub(super) async fn run(&self, id: &str, script: &str) -> Running {
        self.start(self.shell(id, script)).await
    }

    /// What runs that was started here. The server is not marked.
    pub(super) fn alive(&self) -> Vec<String> {
        processes::marked(self.dir.path()).into_iter().map(|process| format!("{process:?}")).collect()
    }

    /// Waits until nothing runs any more.
    pub(super) async fn is_empty(&self) {
        let waiting = Waiting::until("nothing is left alive", PATIENCE);
        loop {
            let alive = self.alive();
            if alive.is_empty() {
                return;
            }
            waiting.again(|| alive.join(", ")).await;
        }
    }

    /// Kills the server, so that nobody is left to end what it runs.
    pub(super) async fn kill_server(&mut self) {
        if let Some(server) = &mut self.server {
            server.kill().await.expect("killed");
        }
    }

    /// Ends the place and proves that nothing is left.
    pub(super) async fn close(mut self) {
        in_time("the backend lets go", self.backend.shutdown()).await;
        self.is_empty().await;
        if let Some(mut server) = self.server.take() {
            let _ = server.kill().await;
        }
    }
}

/// A process of a case.
pub(super) struct Running {
    pub(super) process: StartedProcess,
    pub(super) session: ProcessSession,
}

impl Running {
    pub(super) fn tap(&mut self) -> &mut OutputTap {
        &mut self.process.1
    }

    /// What it writes from here on, both streams apart.
    pub(super) async fn output(&mut self) -> (Vec<u8>, Vec<u8>) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some((stream, bytes)) = in_time("output", self.process.1.next()).await {
            match stream {
                phone_opus::internals::exec::OutputStream::Stdout => out.extend_from_slice(&bytes),
                phone_opus::internals::exec::OutputStream::Stderr => err.extend_from_slice(&bytes),
            }
        }
        assert_eq!(self.process.1.lost(), 0, "its only reader read everything");
        (out, err)
    }

    /// Reads until this was written.
    pub(super) async fn until(&mut self, words: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(words) {
            let next = in_time(&format!("{words:?} after {seen:?}"), self.process.1.next()).await;
            let Some((_, bytes)) = next else { panic!("it ended without {words:?}: {seen:?}") };
            seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        seen
    }

    pub(super) fn events(&self) -> EventStream {
        self.session.subscribe(OutputCursor::start())
    }

    /// All events, to the last.
    pub(super) async fn all(&self) -> Vec<ProcessEvent> {
        use phone_opus::internals::exec::invariants::{
            invariant_exactly_one_terminal_and_last, invariant_positions_have_no_gap,
        };
        let (mut stream, mut events) = (self.events(), Vec::new());
        while let Some(event) = in_time("an event", stream.next()).await {
            events.push(event);
        }
        invariant_positions_have_no_gap(&events).unwrap_or_else(|error| panic!("{error}: {events:?}"));
        invariant_exactly_one_terminal_and_last(&events).unwrap_or_else(|error| panic!("{error}: {events:?}"));
        events
    }

    pub(super) async fn code(&self) -> i32 {
        in_time("the end", self.process.0.end()).await.expect("an end").code
    }

    pub(super) async fn write(&self, text: &str) {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        in_time("a write", self.process.0.write(bytes)).await.expect("a write");
    }
}

pub(super) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// A directory of nobody else's, as a socket asks for.
pub(super) fn scratch() -> TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let ours = std::fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().permissions(ours).tempdir().expect("a directory")
}

fn program() -> PathBuf {
    tried_program(env!("CARGO_BIN_EXE_phone-opus"))
}

fn ours(listen: &str, dir: &Path) -> Child {
    let mut command = Command::new(program());
    command.args(["exec-server", "--listen", listen]);
    start(command, dir)
}

fn start(mut command: Command, dir: &Path) -> Child {
    command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().expect("a server")
}

async fn first_line(server: &mut Child) -> String {
    let mut lines = BufReader::new(server.stdout.take().expect("piped")).lines();
    let line = in_time("the server's address", lines.next_line()).await.expect("read").expect("a line");
    // Its standard output stays open as long as it runs.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    line
}

fn codex() -> Option<PathBuf> {
    let named = std::env::var_os(CODEX_VARIABLE).map(PathBuf::from).filter(|path| path.is_file());
    if named.is_none() {
        eprintln!("SKIPPED: {CODEX_VARIABLE} names no program, so nothing is tried against the real codex exec-server");
    }
    named
}
