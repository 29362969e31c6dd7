//! Machines of a program's own: it runs an agent's process in its own way, and the agent is what it is anywhere.
//!
//! Owns: what such a machine has to do ([`Machine`], [`MachineSteering`]), and everything about a process that is the same on all of
//! them: its session and its tap, the order of its end, how long an end may take. May not know: what the process is for, how it is
//! started.
//!
//! ```text
//! start ─▶ streams and steering ─▶ output ─▶ `ended` ─▶ exit told ─▶ streams close ─▶ closed
//!                                   stop: `terminate` ── grace ──▶ `kill` ── bound ──▶ lost
//! ```
//!
//! Invariants: (1) a start that is dropped, and a process of which the last handle is dropped, are killed; (2) each session is told
//! exactly one end (L20), also when the machine's own code panics; (3) nobody waits for a machine that does not end what it killed
//! longer than [`KILL_BOUND`] (L9).

use crate::base::tasks::{self, TaskSet};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};

use super::OutputStream;
use super::backend::{
    EnvironmentInfo, ExecBackend, ExecFiles, ExecProcess, ProcessLost, ProcessStartError, StartRequest, StartedProcess,
    StdinKind, start_here,
};
use super::client::ExecError;
use super::local::{
    GRACE, KILL_BOUND, OutputTap, PIPE_BOUND, ProcessEnd, Pump, PumpEnd, SpawnError, StdinQueue, TAP_CHUNKS,
    TerminalSize, WriteStatus, feed_bytes, feed_queue,
};
use super::session::ProcessSession;
use super::wire::{WireError, code};

/// A machine of your own: a place where an agent's process runs in your way, such as a container, another account, a machine behind
/// an interface of yours. [`AgentElsewhere`](crate::AgentElsewhere) says which agent runs there, and a
/// [`Registry`](crate::process::Registry) makes it known to hosts and to the runners they start: each runner makes its machine's
/// processes itself, in its own process, and ends with them.
///
/// The library does the rest, as for any agent: deadlines, stalls and cancels, the journal, what the end means, one run at most.
/// What it cannot do is the machine's promise:
///
/// 1. **Nothing outlives its runner** by more than [`Machine::over_within`], however that ends, SIGKILL included. A job whose runner
///    was killed is not settled before that time is over. A program of this machine ([`MachineProcess::here`]) keeps the promise
///    by itself; whatever that program starts elsewhere has to end with it, or with its standard input.
/// 2. A start whose future is dropped leaves nothing behind, and neither does one that failed, but for [`MachineError::Unsure`].
/// 3. [`MachineSteering::ended`] is not over before all of it is: not while anything that the process started lives.
/// 4. A directory is what the machine says it is. The library has checked its name against the workspaces of the agent; a link that
///    leads out of them is the machine's to refuse.
///
/// `testkit::machine::try_out` holds a machine to these with a few dozen processes.
///
/// ```
/// use std::time::Duration;
///
/// use phone_opus::machine::{Machine, MachineError, MachineFuture, MachineProcess, MachineStart};
/// use phone_opus::process::Registry;
/// use phone_opus::{AgentElsewhere, ClaudeCode};
///
/// /// Agents here, with less of the processor than everybody else.
/// struct Quietly;
///
/// impl Machine for Quietly {
///     fn name(&self) -> &str { "quiet" }
///     fn over_within(&self) -> Duration { Duration::ZERO }              // what is started here ends with its runner
///     fn start(&self, start: MachineStart) -> MachineFuture<'_, Result<MachineProcess, MachineError>> {
///         Box::pin(async move { Ok(MachineProcess::here(start.by("/usr/bin/nice", ["-n", "19"]))) })
///     }
/// }
///
/// let quiet = AgentElsewhere::new("quiet", ClaudeCode::default(), Quietly).workspace("/srv/work");
/// let registry = Registry::standard().agent(quiet);                     // a consult names it: `agent: "quiet"`
/// # let _ = registry;
/// ```
pub trait Machine: Send + Sync + 'static {
    /// Its name, never empty. A reply shows it as `machine`, behind `own:`; it stays what it is from version to version, because a
    /// job that was accepted for another machine is not run.
    fn name(&self) -> &str;

    /// How long after the end of its runner something that was started here may live.
    fn over_within(&self) -> Duration;

    /// Starts a program.
    ///
    /// # Errors
    ///
    /// Why it was not started.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it must leave nothing running.
    fn start(&self, start: MachineStart) -> MachineFuture<'_, Result<MachineProcess, MachineError>>;
}

/// What a machine does when it is asked.
pub type MachineFuture<'a, T> = BoxFuture<'a, T>;

/// A program to be started on a machine.
///
/// ```
/// use phone_opus::machine::MachineStart;
///
/// let start = MachineStart::new("/usr/bin/agent", "/srv/work").args(["--json"]).env("LANG", "C");
/// let wrapped = start.by("/usr/bin/env", ["-u", "DISPLAY"]);
/// assert_eq!(wrapped.program.to_str(), Some("/usr/bin/env"));
/// assert_eq!(wrapped.args, ["-u", "DISPLAY", "/usr/bin/agent", "--json"]);
/// assert_eq!(wrapped.cwd.to_str(), Some("/srv/work"));
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MachineStart {
    /// The program: an absolute path there, or a name that the machine looks up.
    pub program: PathBuf,
    /// Its arguments, without the program's name.
    pub args: Vec<OsString>,
    /// The directory it begins in, of that machine.
    pub cwd: PathBuf,
    /// Variables that are set over what the machine gives its processes. Among them is the mark of the run
    /// (`PHONE_OPUS_RUN_TOKEN`).
    pub env: Vec<(OsString, OsString)>,
}

impl MachineStart {
    /// This program in this directory, with nothing else.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, cwd: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), args: Vec::new(), cwd: cwd.into(), env: Vec::new() }
    }

    /// With more arguments.
    #[must_use]
    pub fn args(mut self, words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(words.into_iter().map(Into::into));
        self
    }

    /// With one more variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The same, run by another program: its words, then this program and its arguments.
    #[must_use]
    pub fn by(mut self, program: impl Into<PathBuf>, words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let own = std::mem::replace(&mut self.program, program.into());
        let mut args: Vec<OsString> = words.into_iter().map(Into::into).collect();
        args.push(own.into());
        args.append(&mut self.args);
        Self { args, ..self }
    }
}

/// Names of the environment only: values are secrets.
impl fmt::Debug for MachineStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.env.iter().map(|(name, _)| name).collect();
        f.debug_struct("MachineStart")
            .field("program", &self.program)
            .field("args", &self.args)
            .field("cwd", &self.cwd)
            .field("env", &names)
            .finish()
    }
}

/// Why a machine did not start a program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// There is no such program.
    #[error("find the program")]
    ProgramMissing,
    /// It is there and cannot be executed.
    #[error("execute the program")]
    NotExecutable,
    /// The directory is not there, is none, or may not be looked into.
    #[error("enter the directory")]
    NoDirectory,
    /// The machine was not reached, and has started nothing.
    #[error("reach the machine: {0}")]
    Unreachable(String),
    /// Whether it was started is not known. It is over within [`Machine::over_within`], if it was.
    #[error("learn whether it was started: {0}")]
    Unsure(String),
    /// It refused for another reason, in its own words.
    #[error("start: {0}")]
    Refused(String),
}

/// How a process on a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineEnd {
    /// Its exit code, 128 + n for death by signal n, -1 when it is not known.
    pub code: i32,
    /// The signal it died of, where that is known: a code of 137 alone may be any program's own.
    pub signal: Option<i32>,
}

/// How a process on a machine is ended, and how its end is heard of.
pub trait MachineSteering: Send + Sync + 'static {
    /// Asks for its end, as TERM does; what does not heed it is killed some hundred milliseconds later. Waits for nothing.
    fn terminate(&self);

    /// Ends it without asking: whatever it has started, too. Waits for nothing. It may be called again, and after the end.
    fn kill(&self);

    /// Waits until it is over: it and everything it has started. What it wrote may still be read after that.
    ///
    /// # Errors
    ///
    /// Its end can no longer be learnt; a sentence for people says why.
    fn ended(&self) -> MachineFuture<'_, Result<MachineEnd, String>>;
}

type BoxedRead = Box<dyn AsyncRead + Send + Unpin>;
type BoxedWrite = Box<dyn AsyncWrite + Send + Unpin>;

/// A process that a machine has started, or is to start here.
pub struct MachineProcess(Kind);

enum Kind {
    Here(Box<MachineStart>),
    Streams { stdin: BoxedWrite, stdout: BoxedRead, stderr: BoxedRead, steering: Arc<dyn MachineSteering> },
}

impl MachineProcess {
    /// A program of this machine, such as one that runs the agent in a box. It is started by the library in a process group of its
    /// own, with `env` over what a login cannot do without (`HOME`, `PATH`, `USER`, `SHELL`, …) and nothing else; and it is ended,
    /// with everything it has started here, as any agent: by TERM, then KILL, with its runner, and when its runner was killed.
    #[must_use]
    pub fn here(start: MachineStart) -> Self {
        Self(Kind::Here(Box::new(start)))
    }

    /// A process that was started, by its streams: what is written to `stdin` it reads, and dropping that is the end of its input.
    ///
    /// ```
    /// use phone_opus::machine::{MachineEnd, MachineFuture, MachineProcess, MachineSteering};
    ///
    /// /// What some interface of yours gives for a process.
    /// struct Steering;
    ///
    /// impl MachineSteering for Steering {
    ///     fn terminate(&self) { /* say it there */ }
    ///     fn kill(&self) { /* say it there */ }
    ///     fn ended(&self) -> MachineFuture<'_, Result<MachineEnd, String>> {
    ///         Box::pin(async { Ok(MachineEnd { code: 0, signal: None }) })
    ///     }
    /// }
    ///
    /// let (stdin, _theirs) = tokio::io::duplex(4096);
    /// let process = MachineProcess::streams(stdin, tokio::io::empty(), tokio::io::empty(), Steering);
    /// # drop(process);
    /// ```
    pub fn streams(
        stdin: impl AsyncWrite + Send + Unpin + 'static,
        stdout: impl AsyncRead + Send + Unpin + 'static,
        stderr: impl AsyncRead + Send + Unpin + 'static,
        steering: impl MachineSteering,
    ) -> Self {
        Self(Kind::Streams {
            stdin: Box::new(stdin),
            stdout: Box::new(stdout),
            stderr: Box::new(stderr),
            steering: Arc::new(steering),
        })
    }
}

impl fmt::Debug for MachineProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Here(start) => f.debug_tuple("MachineProcess").field(start).finish(),
            Kind::Streams { .. } => f.write_str("MachineProcess(streams)"),
        }
    }
}

/// A machine behind the interface of all places that run processes.
pub struct OwnMachine {
    machine: Arc<dyn Machine>,
    /// What is started here has these variables, under its own.
    base: Vec<(OsString, OsString)>,
    all: Arc<All>,
}

/// All processes of a machine.
struct All {
    /// Whether they are to end.
    over: watch::Sender<bool>,
    running: watch::Sender<usize>,
}

/// One of them.
struct One(Arc<All>);

impl One {
    fn new(all: &Arc<All>) -> Self {
        all.running.send_modify(|running| *running += 1);
        Self(Arc::clone(all))
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.running.send_modify(|running| *running -= 1);
    }
}

impl OwnMachine {
    /// For processes that this one starts and keeps; `base` is under the environment of what is started here.
    #[must_use]
    pub fn new(machine: Arc<dyn Machine>, base: Vec<(OsString, OsString)>) -> Self {
        let all = Arc::new(All { over: watch::Sender::new(false), running: watch::Sender::new(0) });
        Self { machine, base, all }
    }

    async fn started(
        &self,
        request: StartRequest,
        session: ProcessSession,
    ) -> Result<StartedProcess, ProcessStartError> {
        let unsupported = |what| ProcessStartError::Unsupported { process_id: request.process_id.clone(), what };
        if request.tty {
            return Err(unsupported("a machine of the program's own has no terminals"));
        }
        if request.arg0.is_some() {
            return Err(unsupported("a machine of the program's own tells each program its own name"));
        }
        let start = MachineStart {
            program: request.program.clone(),
            args: request.args.clone(),
            cwd: request.cwd.clone(),
            env: request.env.clone(),
        };
        // A machine is somebody else's code.
        let made = AssertUnwindSafe(self.machine.start(start)).catch_unwind().await;
        let made = made.unwrap_or_else(|_| Err(MachineError::Unsure("the machine's own code panicked".to_owned())));
        match made.map_err(|error| start_error(error, &request))?.0 {
            Kind::Here(start) => self.here(*start, request, session),
            Kind::Streams { stdin, stdout, stderr, steering } => {
                let StartRequest { process_id: id, stdin: kind, .. } = request;
                let pipes = Pipes { kind, stdin, stdout, stderr };
                let (process, tap) = OwnProcess::keep(id, session, pipes, steering, &self.all);
                Ok((Arc::new(process) as Arc<dyn ExecProcess>, tap))
            }
        }
    }

    fn here(
        &self,
        start: MachineStart,
        asked: StartRequest,
        session: ProcessSession,
    ) -> Result<StartedProcess, ProcessStartError> {
        let MachineStart { program, args, cwd, env } = start;
        let env: BTreeMap<OsString, OsString> = self.base.iter().cloned().chain(env).collect();
        let mark = asked.marked_by.as_ref().and_then(|name| {
            let mut mark = OsString::from(format!("{name}="));
            mark.push(env.get(OsStr::new(name))?);
            Some(mark)
        });
        let env = env.into_iter().collect();
        start_here(StartRequest { program, args, cwd, env, env_policy: None, ..asked }, session, mark)
    }
}

fn start_error(error: MachineError, request: &StartRequest) -> ProcessStartError {
    let (program, process_id) = (request.program.clone(), request.process_id.clone());
    match error {
        MachineError::ProgramMissing => SpawnError::ProgramMissing { program }.into(),
        MachineError::NotExecutable => SpawnError::NotExecutable { program }.into(),
        MachineError::NoDirectory => SpawnError::CwdMissing { cwd: request.cwd.clone() }.into(),
        MachineError::Unreachable(reason) => ProcessStartError::Unreachable { process_id, reason },
        MachineError::Unsure(reason) => ProcessStartError::Ambiguous { process_id, reason },
        MachineError::Refused(said) => {
            ProcessStartError::Refused { process_id, error: WireError::new(code::INTERNAL, said) }
        }
    }
}

impl ExecBackend for OwnMachine {
    fn start(
        &self,
        request: StartRequest,
        session: ProcessSession,
    ) -> BoxFuture<'_, Result<StartedProcess, ProcessStartError>> {
        self.started(request, session).boxed()
    }

    /// Nothing of it is looked at: what a directory is, its starts say.
    fn files(&self) -> Option<&dyn ExecFiles> {
        None
    }

    fn environment(&self) -> BoxFuture<'_, Result<EnvironmentInfo, ExecError>> {
        std::future::ready(Ok(EnvironmentInfo::default())).boxed()
    }

    /// Kills what is left, and waits until it is over. What was started here is its handles' own.
    fn shutdown(&self) -> BoxFuture<'_, ()> {
        self.all.over.send_replace(true);
        let mut running = self.all.running.subscribe();
        async move {
            let _ = running.wait_for(|running| *running == 0).await;
        }
        .boxed()
    }
}

/// The streams of a process, and what it is to read.
struct Pipes {
    kind: StdinKind,
    stdin: BoxedWrite,
    stdout: BoxedRead,
    stderr: BoxedRead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    Asked { grace: Duration },
    Kill,
}

/// How it ended, once it has.
type Known = Option<Result<ProcessEnd, ProcessLost>>;

/// A process that a machine gave by its streams.
struct OwnProcess {
    id: String,
    session: ProcessSession,
    steering: Arc<dyn MachineSteering>,
    stdin: Mutex<Option<StdinQueue>>,
    stop: watch::Sender<Stop>,
    end: watch::Receiver<Known>,
}

impl fmt::Debug for OwnProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnProcess").field("id", &self.id).finish_non_exhaustive()
    }
}

impl OwnProcess {
    fn keep(
        id: String,
        session: ProcessSession,
        pipes: Pipes,
        steering: Arc<dyn MachineSteering>,
        all: &Arc<All>,
    ) -> (Self, OutputTap) {
        let (sender, receiver) = mpsc::channel(TAP_CHUNKS);
        let until = watch::Sender::new(None);
        let mut pumps = TaskSet::new();
        pumps.spawn(Pump::new(OutputStream::Stdout, &session, &sender, &until).run(pipes.stdout));
        pumps.spawn(Pump::new(OutputStream::Stderr, &session, &sender, &until).run(pipes.stderr));
        drop(sender);
        let mut feeder = TaskSet::new();
        let stdin = match pipes.kind {
            StdinKind::Null => None,
            StdinKind::Bytes(bytes) => {
                feeder.spawn(feed_bytes(pipes.stdin, bytes));
                None
            }
            StdinKind::Piped => {
                let (queue, receiver, room) = StdinQueue::new();
                feeder.spawn(feed_queue(pipes.stdin, receiver, room, b""));
                Some(queue)
            }
        };
        let stop = watch::Sender::new(Stop::No);
        let (told, end) = watch::channel(None);
        let keeper = Keeper {
            fuse: Fuse { steering: Arc::clone(&steering), session: session.clone(), is_over: false },
            stop: stop.subscribe(),
            over: all.over.subscribe(),
            pumps,
            feeder,
            until,
            told,
            _one: One::new(all),
        };
        // Nobody joins it: it lives until the process is over, which is when `told` is, and its fuse kills if it is dropped.
        tasks::spawn(keeper.run());
        (Self { id, session, steering, stdin: Mutex::new(stdin), stop, end }, OutputTap::bounded(receiver))
    }

    fn is_over(&self) -> bool {
        self.end.borrow().is_some()
    }

    fn queue(&self) -> Option<StdinQueue> {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for OwnProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

impl ExecProcess for OwnProcess {
    fn id(&self) -> &str {
        &self.id
    }

    fn session(&self) -> &ProcessSession {
        &self.session
    }

    fn pid(&self) -> Option<u32> {
        None
    }

    fn start_time(&self) -> u64 {
        0
    }

    fn write(&self, bytes: Bytes) -> BoxFuture<'_, Result<WriteStatus, ExecError>> {
        let queue = self.queue();
        async move {
            Ok(match queue {
                Some(queue) => queue.write(bytes).await,
                None => WriteStatus::StdinClosed,
            })
        }
        .boxed()
    }

    fn close_stdin(&self) -> BoxFuture<'_, Result<(), ExecError>> {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(Ok(())).boxed()
    }

    /// A machine of the program's own knows one way to ask.
    fn interrupt(&self) -> BoxFuture<'_, Result<(), ExecError>> {
        if !self.is_over() {
            self.steering.terminate();
        }
        std::future::ready(Ok(())).boxed()
    }

    fn resize(&self, _size: TerminalSize) -> BoxFuture<'_, Result<bool, ExecError>> {
        std::future::ready(Ok(false)).boxed()
    }

    fn terminate(&self, grace: Option<Duration>) -> BoxFuture<'_, Result<bool, ExecError>> {
        let running = !self.is_over();
        if running {
            let grace = grace.unwrap_or(GRACE);
            self.stop.send_if_modified(|stop| {
                let more = *stop == Stop::No;
                if more {
                    *stop = Stop::Asked { grace };
                }
                more
            });
        }
        std::future::ready(Ok(running)).boxed()
    }

    fn kill(&self) {
        if !self.is_over() {
            // Here, not by the keeper's next turn: there may be milliseconds between.
            self.steering.kill();
            self.stop.send_replace(Stop::Kill);
        }
    }

    fn end(&self) -> BoxFuture<'_, Result<ProcessEnd, ProcessLost>> {
        let mut end = self.end.clone();
        async move {
            match end.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(end)) => end.clone(),
                // The runtime is going down, and the keeper's fuse has killed it.
                _ => Err(lost("nobody is left to wait for it")),
            }
        }
        .boxed()
    }
}

fn lost(message: impl Into<String>) -> ProcessLost {
    ProcessLost { message: message.into(), heard: Instant::now() }
}

/// Kills the process if the keeper goes away before it is over.
struct Fuse {
    steering: Arc<dyn MachineSteering>,
    session: ProcessSession,
    is_over: bool,
}

impl Drop for Fuse {
    fn drop(&mut self) {
        if !self.is_over {
            self.steering.kill();
            self.session.publish_failed("nobody is left to wait for it");
        }
    }
}

/// Who keeps a process until it is over.
struct Keeper {
    fuse: Fuse,
    stop: watch::Receiver<Stop>,
    over: watch::Receiver<bool>,
    pumps: TaskSet<PumpEnd>,
    feeder: TaskSet<()>,
    until: watch::Sender<Option<tokio::time::Instant>>,
    told: watch::Sender<Known>,
    _one: One,
}

impl Keeper {
    async fn run(mut self) {
        let ended = self.ended().await;
        let terminated = *self.stop.borrow() != Stop::No;
        self.fuse.is_over = true;
        // What it has not read by now nobody reads.
        self.feeder.abort_all();
        let end = match ended {
            Ok(MachineEnd { code, signal }) => {
                let _ = self.fuse.session.publish_exited(code, signal);
                self.until.send_replace(Some(tokio::time::Instant::now() + PIPE_BOUND));
                let mut pipes_leaked = false;
                while let Some(end) = self.pumps.join_next().await {
                    pipes_leaked |= !matches!(end, Ok(PumpEnd::Closed));
                }
                let _ = self.fuse.session.publish_closed();
                Ok(ProcessEnd { code, signal, reaped: 0, left: 0, terminated, pipes_leaked })
            }
            Err(message) => {
                self.fuse.steering.kill();
                self.pumps.abort_all();
                self.fuse.session.publish_failed(message.clone());
                Err(lost(message))
            }
        };
        self.told.send_replace(Some(end));
    }

    /// Waits for the end, and sees to it that it comes once somebody asks for it.
    async fn ended(&mut self) -> Result<MachineEnd, String> {
        let steering = Arc::clone(&self.fuse.steering);
        let mut ended = AssertUnwindSafe(steering.ended()).catch_unwind().boxed();
        let (mut kill_at, mut give_up_at) = (None, None);
        loop {
            tokio::select! {
                biased;
                end = &mut ended => return end.unwrap_or_else(|_| Err("the machine's own code panicked".to_owned())),
                stop = changed(&mut self.stop) => match stop {
                    Stop::No => {}
                    Stop::Asked { grace } => {
                        steering.terminate();
                        kill_at = Some(tokio::time::Instant::now() + grace);
                    }
                    Stop::Kill => kill_at = Some(tokio::time::Instant::now()),
                },
                () = is_set(&mut self.over), if kill_at.is_none() => kill_at = Some(tokio::time::Instant::now()),
                () = at(kill_at), if kill_at.is_some() && give_up_at.is_none() => {
                    steering.kill();
                    give_up_at = Some(tokio::time::Instant::now() + KILL_BOUND);
                }
                () = at(give_up_at), if give_up_at.is_some() => {
                    return Err("it was killed, and its machine does not say that it is over".to_owned());
                }
            }
        }
    }
}

async fn at(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn is_set(over: &mut watch::Receiver<bool>) {
    if over.wait_for(|over| *over).await.is_err() {
        std::future::pending().await
    }
}

/// What is asked for next; pending for ever when nobody can ask any more.
async fn changed(stop: &mut watch::Receiver<Stop>) -> Stop {
    match stop.changed().await {
        Ok(()) => *stop.borrow_and_update(),
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    //! Machines whose own code fails. What they do right is tried with real processes, beside all other places. Laws: L9, L20.

    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::{OutputCursor, ProcessEvent};
    use super::*;

    /// What goes wrong on a machine without any process.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Wrong {
        StartPanics,
        EndPanics,
        EndIsUnknown,
        NeverEnds,
        Nothing,
    }

    struct Bad {
        wrong: Wrong,
        kills: Arc<AtomicUsize>,
    }

    impl Machine for Bad {
        fn name(&self) -> &str {
            "bad"
        }

        fn over_within(&self) -> Duration {
            Duration::ZERO
        }

        fn start(&self, _start: MachineStart) -> MachineFuture<'_, Result<MachineProcess, MachineError>> {
            async move {
                assert!(self.wrong != Wrong::StartPanics, "it panics");
                let steering = BadSteering { wrong: self.wrong, kills: Arc::clone(&self.kills) };
                let (stdin, _) = tokio::io::duplex(16);
                Ok(MachineProcess::streams(stdin, tokio::io::empty(), tokio::io::empty(), steering))
            }
            .boxed()
        }
    }

    struct BadSteering {
        wrong: Wrong,
        kills: Arc<AtomicUsize>,
    }

    impl MachineSteering for BadSteering {
        fn terminate(&self) {}

        fn kill(&self) {
            self.kills.fetch_add(1, Ordering::Relaxed);
        }

        fn ended(&self) -> MachineFuture<'_, Result<MachineEnd, String>> {
            let wrong = self.wrong;
            async move {
                match wrong {
                    Wrong::EndPanics => panic!("it panics"),
                    Wrong::EndIsUnknown => Err("nobody knows".to_owned()),
                    Wrong::NeverEnds => std::future::pending().await,
                    Wrong::StartPanics | Wrong::Nothing => Ok(MachineEnd { code: 7, signal: None }),
                }
            }
            .boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_a_machine_does_wrong_its_process_is_killed_and_has_one_end() {
        for (wrong, end, killed) in [
            (Wrong::Nothing, Ok(7), false),
            (Wrong::EndPanics, Err("panicked"), true),
            (Wrong::EndIsUnknown, Err("nobody knows"), true),
            (Wrong::NeverEnds, Err("does not say that it is over"), true),
        ] {
            let kills = Arc::new(AtomicUsize::new(0));
            let machine = OwnMachine::new(Arc::new(Bad { wrong, kills: Arc::clone(&kills) }), Vec::new());
            let session = ProcessSession::new();
            let (process, _tap) =
                machine.start(StartRequest::new("p", "/p", "/"), session.clone()).await.expect("started");
            if wrong == Wrong::NeverEnds {
                assert_eq!(process.terminate(None).await, Ok(true));
            }
            let ended = process.end().await.map(|end| end.code).map_err(|lost| lost.message);
            match (&ended, end) {
                (Ok(code), Ok(meant)) => assert_eq!(*code, meant, "{wrong:?}"),
                (Err(said), Err(meant)) => assert!(said.contains(meant), "{wrong:?}: {said}"),
                _ => panic!("{wrong:?}: {ended:?}"),
            }
            assert_eq!(kills.load(Ordering::Relaxed) > 0, killed, "{wrong:?}");
            let (mut events, mut last) = (session.subscribe(OutputCursor::start()), None);
            while let Some(event) = events.next().await {
                assert!(last.replace(event).is_none_or(|before: ProcessEvent| !before.is_terminal()), "{wrong:?}");
            }
            let failed = matches!(last, Some(ProcessEvent::Failed { .. }));
            assert_eq!(failed, end.is_err(), "{wrong:?}: {last:?}");
            machine.shutdown().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_panics_is_one_whose_fate_is_unknown() {
        let kills = Arc::new(AtomicUsize::new(0));
        let machine = OwnMachine::new(Arc::new(Bad { wrong: Wrong::StartPanics, kills }), Vec::new());
        let started = machine.start(StartRequest::new("p", "/p", "/"), ProcessSession::new()).await;
        assert!(matches!(started, Err(ProcessStartError::Ambiguous { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_handle_and_the_end_of_the_machine_kill() {
        for by_handle in [true, false] {
            let kills = Arc::new(AtomicUsize::new(0));
            let machine =
                OwnMachine::new(Arc::new(Bad { wrong: Wrong::NeverEnds, kills: Arc::clone(&kills) }), Vec::new());
            let session = ProcessSession::new();
            let (process, _tap) =
                machine.start(StartRequest::new("p", "/p", "/"), session.clone()).await.expect("started");
            if by_handle {
                drop(process);
            }
            // It never says that it is over, so this takes the whole bound.
            machine.shutdown().await;
            assert!(kills.load(Ordering::Relaxed) > 0, "{by_handle}");
            session.its_end().await;
        }
    }
}
