//! A server for many connections: their sessions and the processes of each.
//!
//! Owns: performing what the [`SessionTable`] decides: processes that are started, read, written and ended, sessions that are
//! attached, detached and ended. May not know: sockets, who may come in, the wire but for its errors.
//!
//! What is here is shared by the connections, behind one lock that is held for the time of a look or a step.
//!
//! Invariants:
//! 1. A process whose session is attached, or was a moment ago, waits for its reader; another never does.
//! 2. A session that ends takes every group along that it started; what left its group ends when no session is left.
//! 3. Who was lost is detached at once, whatever was in flight for it.

use crate::base::tasks;
use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use uuid::Uuid;

use super::super::backend::EnvPolicy;
use super::super::core::{ProcessLog, Retention};
use super::super::files::{self, FileHandles};
use super::super::local::{
    Adopt, CloseBy, EndsWithUs, Leftovers, LocalExec, LocalProcess, SpawnMode, SpawnSpec, Stdin, TerminalSize,
    WriteStatus, reap_orphans,
};
use super::super::session::ProcessSession;
use super::super::transport::marks::Marks;
use super::super::wire::{
    self, CloseStdinParams, InitializeParams, InitializeResult, ResizeParams, StartParams, StartResult, WireError,
    WireSignal, WireWriteStatus, WriteParams, code, method,
};
use super::super::{RING_BYTES, lines};
use super::environment;
use super::sessions::{ConnectionNumber, LIVING, Lease, SessionTable, TableEffect, TableEvent};
use super::{Begun, ConnectionTraits, Delivery, Extra, LAST_WORDS, Opened, PeerEnd, ProcessTable, Server};

/// What a process retains for who reads late; what the protocol's servers retain.
const RETAINED: Retention = Retention { chunks: 50_000, bytes: RING_BYTES };

/// Writes of one process that are known by their id; what the protocol's servers know.
const WRITE_IDS: usize = 4096;

/// Requests of one connection that may wait: eight bursts of 500 starts.
const WAITING: usize = 4096;

/// The longest grace of a process that is asked to end.
const LONGEST_GRACE: Duration = Duration::from_secs(600);

/// The size of a terminal before anybody says what it is.
const TERMINAL: TerminalSize = TerminalSize { cols: 80, rows: 24 };

/// How often what fell to this process is reaped.
const REAP_PAUSE: Duration = Duration::from_secs(1);

/// What a server is given.
#[derive(Debug, Clone)]
pub struct ExecServerOptions {
    /// What becomes of a session whose connection is gone.
    pub lease: Lease,
    /// The environment that policies choose from.
    pub environment: Vec<(OsString, OsString)>,
    /// The directory it says it is in.
    pub cwd: PathBuf,
    /// Whether all other children of this process are its processes' orphans, to be reaped.
    pub orphans: Adopt,
    /// The soft limit of descriptors its processes get; its own when `None`.
    pub descriptors: Option<u64>,
    /// The longest message that is taken.
    pub message_bytes: usize,
}

/// Who asks whether a peer is still there; dropped with its connection.
pub type Doubts = Box<dyn Fn() + Send + Sync>;

/// A server. Clones are the same one; the last one that is dropped ends everything at once.
#[derive(Clone)]
pub struct ExecServer {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for ExecServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecServer").field("sessions", &self.shared.state().table.counts()).finish()
    }
}

struct Shared {
    options: ExecServerOptions,
    info: Value,
    state: Mutex<State>,
    connections: AtomicU64,
    /// Told when what is due next may have changed.
    due: Arc<Notify>,
}

struct State {
    table: SessionTable,
    sessions: HashMap<String, Session>,
    /// Processes of sessions that are over, until they are.
    ending: Vec<Arc<Process>>,
    doubts: HashMap<ConnectionNumber, Doubts>,
}

#[derive(Default)]
struct Session {
    processes: HashMap<String, Arc<Process>>,
    /// Forgotten ones of whose group something lives on.
    lingering: Vec<Arc<Process>>,
    files: Arc<FileHandles>,
}

struct Process {
    handle: LocalProcess,
    session: ProcessSession,
    is_on_terminal: bool,
    /// Held for the time of a write, so that the same one is not made twice by two connections.
    writes: tokio::sync::Mutex<WriteIds>,
}

/// Writes that were made.
#[derive(Default)]
struct WriteIds {
    known: std::collections::HashSet<String>,
    order: VecDeque<String>,
}

impl WriteIds {
    fn remember(&mut self, id: String) {
        if self.known.insert(id.clone()) {
            self.order.push_back(id);
        }
        while self.order.len() > WRITE_IDS {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

impl ExecServer {
    /// A server without a connection. In a runtime, on the thread its processes are to be started on: on Linux they end with it.
    #[must_use]
    pub fn new(options: ExecServerOptions) -> Self {
        let info = environment::describe(&options.environment, &options.cwd, lease_ms(options.lease));
        let table = SessionTable::new(options.lease);
        let due = Arc::new(Notify::new());
        let shared = Arc::new(Shared {
            options,
            info,
            state: Mutex::new(State { table, sessions: HashMap::new(), ending: Vec::new(), doubts: HashMap::new() }),
            connections: AtomicU64::new(0),
            due: Arc::clone(&due),
        });
        // It ends with the server, whose clock it is.
        tasks::spawn(keep_time(Arc::downgrade(&shared), due));
        Self { shared }
    }

    /// Serves one connection until its peer is gone or breaks the protocol. Its session is then detached, or over.
    ///
    /// # Cancel safety
    /// Dropping the future is the end of the connection.
    pub async fn serve<R, W>(&self, reader: R, writer: W, marks: Option<Arc<Marks>>, doubts: Option<Doubts>) -> PeerEnd
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let number = ConnectionNumber(self.shared.connections.fetch_add(1, Ordering::Relaxed) + 1);
        if let Some(doubts) = doubts {
            self.shared.state().doubts.insert(number, doubts);
        }
        let connection = Connection { shared: Arc::clone(&self.shared), number };
        let lost = LostOnDrop(Arc::clone(&self.shared), number);
        let mut server = Server::start_marked(reader, writer, connection, marks);
        let end = server.peer_gone().await;
        drop(lost);
        server.finish(LAST_WORDS).await;
        end
    }

    /// Ends every session, and waits until their processes are over, for `within` at most. Nothing can be started afterwards.
    pub async fn stop(&self, within: Duration) {
        let ending: Vec<Arc<Process>> = {
            let mut state = self.shared.state();
            self.shared.perform(&mut state, TableEvent::Stopped);
            state.ending.clone()
        };
        let over = async {
            for process in ending {
                let mut end = process.handle.control().ending();
                let _ = end.wait_for(Option::is_some).await;
            }
        };
        let _ = tokio::time::timeout(within, over).await;
    }

    /// The leaders of the groups it started and that may not be over: children that are reaped by their own keepers.
    #[must_use]
    pub fn leaders(&self) -> Vec<u32> {
        self.shared.state().leaders()
    }
}

fn lease_ms(lease: Lease) -> Option<u64> {
    match lease {
        Lease::For(lease) => u64::try_from(lease.as_millis()).ok(),
        Lease::None => None,
    }
}

/// Detaches a connection's session however its serving ends.
struct LostOnDrop(Arc<Shared>, ConnectionNumber);

impl Drop for LostOnDrop {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.doubts.remove(&self.1);
        self.0.perform(&mut state, TableEvent::Lost { connection: self.1 });
        self.0.due.notify_one();
    }
}

/// Has leases run out and ended processes forgotten, and reaps what fell to this process.
async fn keep_time(shared: Weak<Shared>, due: Arc<Notify>) {
    loop {
        let next = {
            let Some(alive) = shared.upgrade() else { return };
            let mut state = alive.state();
            alive.perform(&mut state, TableEvent::Passed);
            let pause = state.clear_up(alive.options.orphans).then(|| Instant::now() + REAP_PAUSE);
            [state.table.next_due(), pause].into_iter().flatten().min()
        };
        match next {
            Some(next) => _ = tokio::time::timeout_at(next.into(), due.notified()).await,
            // Nothing is there; whoever comes says so.
            None => due.notified().await,
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Its processes end with their handles, and its clock here.
        self.due.notify_one();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each step changes the table first; a panic behind it leaves at worst a process that its handle ends.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the table decide and performs what can be performed here; returns what is to be said.
    fn perform(&self, state: &mut State, change: TableEvent) -> Option<TableEffect> {
        let mut said = None;
        for effect in state.table.step(change, Instant::now()) {
            match effect {
                TableEffect::Detach { session } => {
                    for process in state.processes_of(&session) {
                        process.session.detach();
                    }
                }
                TableEffect::End { session } => {
                    let Some(session) = state.sessions.remove(&session) else { continue };
                    for process in session.processes.into_values().chain(session.lingering) {
                        process.session.detach();
                        if process.handle.control().kill() {
                            state.ending.push(process);
                        }
                    }
                }
                TableEffect::Forget { session, process } => {
                    if let Some(session) = state.sessions.get_mut(&session)
                        && let Some(process) = session.processes.remove(&process)
                        && !process.handle.control().has_ended()
                    {
                        session.lingering.push(process);
                    }
                }
                other => said = Some(other),
            }
        }
        said
    }

    fn process(&self, connection: ConnectionNumber, process_id: &str) -> Option<Arc<Process>> {
        let state = self.state();
        let session = state.table.session_of(connection)?;
        state.sessions.get(session)?.processes.get(process_id).cloned()
    }

    fn open(&self, connection: ConnectionNumber, params: InitializeParams) -> Result<Opened, WireError> {
        let mut state = self.state();
        let (change, begun) = match params.resume_session_id {
            Some(session) => (TableEvent::Resumed { connection, session }, Begun::Resumed),
            None => (TableEvent::Opened { connection, session: Uuid::new_v4().to_string() }, Begun::Anew),
        };
        let session_id = match (self.perform(&mut state, change.clone()), change) {
            (Some(TableEffect::Attach { session }), _) => session,
            (Some(TableEffect::SayAttached { to }), _) => {
                if let Some(doubt) = state.doubts.get(&to) {
                    doubt();
                }
                return Err(WireError::new(code::SESSION_ATTACHED, "the session is attached to another connection"));
            }
            (Some(TableEffect::SayFull { what }), _) => return Err(full(what)),
            (_, TableEvent::Resumed { session, .. }) => {
                return Err(WireError::new(code::INVALID_REQUEST, format!("unknown session id {session}")));
            }
            _ => return Err(WireError::new(code::INTERNAL, "no session could be opened")),
        };
        state.sessions.entry(session_id.clone()).or_default();
        self.due.notify_one();
        for process in state.processes_of(&session_id) {
            // What its reader did not have is kept for it, until it says where it stands.
            process.session.attach(process.session.released());
        }
        let answer = InitializeResult {
            session_id,
            environment_info: Some(self.info.clone()),
            lease_ms: lease_ms(self.options.lease),
        };
        Ok(Opened { answer, begun })
    }

    fn start(self: &Arc<Self>, connection: ConnectionNumber, params: StartParams) -> Result<StartResult, WireError> {
        let process_id = params.process_id.clone();
        let (spec, mode) = self.plan(params)?;
        let mut state = self.state();
        let reserved = TableEvent::Reserved { connection, process: process_id.clone() };
        let session_id = match self.perform(&mut state, reserved) {
            Some(TableEffect::Start { session }) => session,
            Some(TableEffect::SayFull { what }) => return Err(full(what)),
            Some(TableEffect::SayTaken) => {
                let text = format!("process id {process_id:?} already exists");
                return Err(WireError::new(code::INVALID_REQUEST, text));
            }
            _ => return Err(WireError::new(code::INVALID_REQUEST, "this connection has no session any more")),
        };
        let not_started = TableEvent::NotStarted { session: session_id.clone(), process: process_id.clone() };
        if state.sessions.get(&session_id).is_none_or(|session| session.lingering.len() >= LIVING) {
            self.perform(&mut state, not_started);
            return Err(full("processes that live on in the background"));
        }
        let session = ProcessSession::over(ProcessLog::retaining(RETAINED));
        // Before its first byte: its reader is to miss nothing.
        session.attach(0);
        let is_on_terminal = mode.terminal.is_some();
        let started = LocalExec::spawn_with(spec, mode, session.clone(), CloseBy::Backend);
        let handle = match started {
            Ok((handle, _tap)) => handle,
            Err(error) => {
                self.perform(&mut state, not_started);
                return Err(WireError::of_spawn(&error));
            }
        };
        let process =
            Process { handle, session: session.clone(), is_on_terminal, writes: tokio::sync::Mutex::default() };
        if let Some(entry) = state.sessions.get_mut(&session_id) {
            entry.processes.insert(process_id.clone(), Arc::new(process));
        }
        drop(state);
        // It ends with the process, which ends with its session.
        tasks::spawn(watch_end(Arc::downgrade(self), session, session_id, process_id.clone()));
        Ok(StartResult { process_id, sandbox_type: Some("none".to_owned()) })
    }

    /// What a request asks to be started, if this server can do what it asks.
    fn plan(&self, params: StartParams) -> Result<(SpawnSpec, SpawnMode), WireError> {
        let invalid = |text: &str| Err(WireError::new(code::INVALID_PARAMS, text));
        // What cannot be enforced is refused, and not run without it.
        if params.sandbox.is_some() {
            return invalid("this server has no sandbox to enforce");
        }
        if params.enforce_managed_network || params.managed_network.is_some() {
            return invalid("this server cannot enforce rules for the network");
        }
        let mut argv = params.argv.into_iter();
        let Some(program) = argv.next().filter(|program| !program.is_empty()) else {
            return invalid("argv names no program");
        };
        let cwd =
            wire::read_cwd(&params.cwd).map_err(|error| WireError::new(code::INVALID_PARAMS, error.to_string()))?;
        let policy: Option<EnvPolicy> = match params.env_policy {
            None => None,
            Some(policy) => Some(
                serde_json::from_value(policy)
                    .map_err(|error| WireError::new(code::INVALID_PARAMS, format!("envPolicy: {error}")))?,
            ),
        };
        let mark = match &params.marked_by {
            None => None,
            Some(name) => match params.env.get(name) {
                Some(value) => Some(OsString::from(format!("{name}={value}"))),
                None => return invalid("markedBy names no variable of env"),
            },
        };
        let spec = SpawnSpec {
            program: program.into(),
            args: argv.map(OsString::from).collect(),
            cwd: normal(&cwd),
            env: environment::compose(&self.options.environment, policy.as_ref(), params.env),
            stdin: if params.pipe_stdin { Stdin::Piped } else { Stdin::Null },
            adopt: Adopt::No,
            descriptors: self.options.descriptors,
        };
        let mode = SpawnMode {
            arg0: params.arg0.map(OsString::from),
            terminal: params.tty.then_some(TERMINAL),
            leftovers: if params.ends_with_leader { Leftovers::End } else { Leftovers::Keep },
            ends: EndsWithUs::AtOnce,
            mark,
        };
        Ok((spec, mode))
    }
}

impl State {
    /// Lets go of what is over, and reaps what fell to this process. Whether there may be more to do in a while.
    fn clear_up(&mut self, orphans: Adopt) -> bool {
        for session in self.sessions.values_mut() {
            session.lingering.retain(|process| !process.handle.control().has_ended());
        }
        self.ending.retain(|process| !process.handle.control().has_ended());
        let mut living = Vec::new();
        if orphans == Adopt::Yes {
            // With the lock held: nothing is started between the look at the leaders and the look at the children.
            living = reap_orphans(&self.leaders());
            if self.sessions.is_empty() {
                // What left its group was some ended session's.
                for orphan in &living {
                    // Ours to reap, so the number cannot have become somebody else's.
                    let _ = rustix::process::kill_process(*orphan, rustix::process::Signal::KILL);
                }
            }
        }
        !self.sessions.is_empty() || !self.ending.is_empty() || !living.is_empty()
    }

    fn leaders(&self) -> Vec<u32> {
        let all = self.sessions.values().flat_map(|session| session.processes.values().chain(&session.lingering));
        let all = all.chain(&self.ending);
        all.filter(|process| !process.handle.control().has_ended()).map(|process| process.handle.pid()).collect()
    }

    fn processes_of(&self, session: &str) -> Vec<Arc<Process>> {
        self.sessions.get(session).map(|session| session.processes.values().cloned().collect()).unwrap_or_default()
    }
}

fn full(what: &str) -> WireError {
    WireError::new(code::INTERNAL, format!("there are too many {what} at this server"))
}

/// Without `.` and `..`, by the names alone, as a URI is read.
fn normal(path: &std::path::Path) -> PathBuf {
    use std::path::Component;
    path.components().fold(PathBuf::new(), |mut so_far, part| {
        match part {
            Component::ParentDir => _ = so_far.pop(),
            Component::CurDir => {}
            other => so_far.push(other),
        }
        so_far
    })
}

/// Tells the table that a process is over.
async fn watch_end(shared: Weak<Shared>, session: ProcessSession, session_id: String, process_id: String) {
    session.its_end().await;
    let bytes = session.look(ProcessLog::retained).1;
    if let Some(shared) = shared.upgrade() {
        let mut state = shared.state();
        shared.perform(&mut state, TableEvent::Closed { session: session_id, process: process_id, bytes });
        shared.due.notify_one();
    }
}

/// One connection, as its dispatcher asks.
struct Connection {
    shared: Arc<Shared>,
    number: ConnectionNumber,
}

impl Connection {
    fn process(&self, process_id: &str) -> Option<Arc<Process>> {
        self.shared.process(self.number, process_id)
    }
}

impl ProcessTable for Connection {
    fn traits(&self) -> ConnectionTraits {
        let line_bytes = self.shared.options.message_bytes.max(lines::LINE_BYTES);
        ConnectionTraits { line_bytes, waiting: WAITING, delivery: Delivery::Lossless }
    }

    fn open(&self, params: InitializeParams) -> Result<Opened, WireError> {
        self.shared.open(self.number, params)
    }

    fn exposed(&self) -> Vec<String> {
        let state = self.shared.state();
        let session = state.table.session_of(self.number).and_then(|session| state.sessions.get(session));
        session.map(|session| session.processes.keys().cloned().collect()).unwrap_or_default()
    }

    fn session(&self, process_id: &str) -> Option<ProcessSession> {
        self.process(process_id).map(|process| process.session.clone())
    }

    fn is_on_terminal(&self, process_id: &str) -> bool {
        self.process(process_id).is_some_and(|process| process.is_on_terminal)
    }

    fn pushes_from(&self, process_id: &str, seen: u64) {
        // Of a connection that was lost meanwhile, the process is not there.
        if let Some(process) = self.process(process_id) {
            process.session.attach(seen);
        }
    }

    fn terminate(&self, process_id: &str) -> bool {
        self.process(process_id).is_some_and(|process| process.handle.control().kill())
    }

    fn terminate_within(&self, process_id: &str, grace: Option<Duration>) -> bool {
        match grace {
            None => self.terminate(process_id),
            Some(grace) => self
                .process(process_id)
                .is_some_and(|process| process.handle.control().terminate_within(grace.min(LONGEST_GRACE))),
        }
    }

    async fn start(&self, params: StartParams) -> Result<StartResult, WireError> {
        self.shared.start(self.number, params)
    }

    async fn write(&self, params: WriteParams) -> Result<WireWriteStatus, WireError> {
        if params.write_id.as_deref() == Some("") {
            return Err(WireError::new(code::INVALID_PARAMS, "writeId is empty"));
        }
        let Some(process) = self.process(&params.process_id) else { return Ok(WireWriteStatus::UnknownProcess) };
        let mut writes = process.writes.lock().await;
        if params.write_id.as_ref().is_some_and(|id| writes.known.contains(id)) {
            return Ok(WireWriteStatus::Accepted);
        }
        match process.handle.write(params.chunk.0).await {
            WriteStatus::Accepted => {
                if let Some(id) = params.write_id {
                    writes.remember(id);
                }
                Ok(WireWriteStatus::Accepted)
            }
            WriteStatus::StdinClosed => Ok(WireWriteStatus::StdinClosed),
        }
    }

    fn signal(&self, process_id: &str, signal: WireSignal) -> Result<(), WireError> {
        match signal {
            WireSignal::Interrupt => {
                if let Some(process) = self.process(process_id) {
                    process.handle.interrupt();
                }
            }
        }
        Ok(())
    }

    fn extra(&self, name: &str, params: &RawValue) -> Option<Extra> {
        match name {
            method::CLOSE_STDIN => Some(match wire::read_params::<CloseStdinParams>(params) {
                Ok(params) => {
                    let (shared, number) = (Arc::clone(&self.shared), self.number);
                    let id = params.process_id.clone();
                    // Behind the writes before it.
                    later(Some(params.process_id), async move {
                        let process = shared.process(number, &id).ok_or_else(|| unknown(&id))?;
                        process.handle.control().close_stdin();
                        Ok(json!({}))
                    })
                }
                Err(error) => later(None, async { Err::<(), _>(error) }),
            }),
            method::RESIZE => {
                let resized = wire::read_params::<ResizeParams>(params).and_then(|params| {
                    let process = self.process(&params.process_id).ok_or_else(|| unknown(&params.process_id))?;
                    let size = TerminalSize { cols: params.cols, rows: params.rows };
                    if process.handle.control().resize(size) {
                        Ok(json!({}))
                    } else {
                        Err(WireError::new(code::INVALID_REQUEST, "the process has no terminal"))
                    }
                });
                Some(later(None, async { resized }))
            }
            method::ENVIRONMENT_INFO => {
                let info = self.shared.info.clone();
                Some(later(None, async { Ok(info) }))
            }
            method::ENVIRONMENT_STATUS => Some(later(None, async { Ok(json!({ "status": "ready" })) })),
            _ if name.starts_with("fs/") => {
                let state = self.shared.state();
                let session = state.table.session_of(self.number).and_then(|session| state.sessions.get(session));
                let handles = session.map(|session| Arc::clone(&session.files)).unwrap_or_default();
                files::call(name, params, &handles)
            }
            _ => None,
        }
    }
}

fn unknown(process_id: &str) -> WireError {
    WireError::new(code::INVALID_REQUEST, format!("unknown process id {process_id}"))
}

fn later<T: Serialize>(
    lane: Option<String>,
    work: impl Future<Output = Result<T, WireError>> + Send + 'static,
) -> Extra {
    let work = Box::pin(async move {
        let answer = work.await?;
        serde_json::value::to_raw_value(&answer).map_err(|error| WireError::new(code::INTERNAL, error.to_string()))
    });
    Extra { lane, size: 0, work }
}
