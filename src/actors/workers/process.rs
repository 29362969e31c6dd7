//! The worker in a process of its own, as its host keeps it.
//!
//! Owns: the process, its two pipes, the attempts it was given, the questions it asks. May not know: sessions' state, what
//! becomes of a call whose worker is gone.
//!
//! ```text
//! spawned ──hello, ready──▶ up ──end of its output, exit, nonsense, silence, order──▶ group killed ──▶ reaped ──▶ gone
//! ```
//!
//! Invariants: (1) the process is waited for, and its group killed, before anybody hears that it is gone; (2) an attempt's
//! token is held here until the process has settled it, and dropped after the process was waited for; (3) a message of
//! another generation, or about an attempt it does not have, is counted and dropped (L5); anything that is no message of
//! ours ends the process; (4) while it has no work there is no timer.
//!
//! What a process that does not read makes wait here is bounded by what its sessions may have in flight (calls and bytes);
//! it is found by its silence and ended, and the memory goes with it.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::poll_immediate;
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;

use super::asks::Asks;
use super::lifeline::{Keeping, Order};
use super::messages::{Attempt, WorkerMsg};
use crate::actors::clock;
use crate::actors::reply::AttemptReply;
use crate::actors::session::gauges::Gauges;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::{CallKey, CallNumber, Generation, SessionNumber};
use crate::base::image::StandIn;
use crate::base::tasks::TaskSet;
use crate::jobs::client::JobsHandle;
use crate::protocol::frame::{Frame, FrameReader};
use crate::protocol::session::CallOutcome;
use crate::tools::callers::{CallerOrigin, Callers};
use crate::tools::placed::placing::Placing;
use crate::tools::progress::ProgressSink;
use crate::tools::roots::RootsHandle;
use crate::worker::outbox::Outbox;
use crate::worker::settings::{CallerSettings, WorkerSettings};
use crate::worker::vigil::{Look, Vigil};
use crate::worker::wire::{self, FromWorker};
use crate::worker::{WorkerCommand, WorkerPolicy};

/// How long a process may take to leave by itself when it is not needed any more; it has nothing to save.
const LEAVE: Duration = Duration::from_millis(200);

/// How long the rest of its output may take to be read once the process is dead. More is held open by something that left
/// its group, and is nobody's.
const REST: Duration = Duration::from_secs(1);

/// How long a killed process may take to be waited for. Longer means the kernel holds it, and it runs nothing any more.
const REAP: Duration = Duration::from_secs(5);

/// When the clock is first looked at after work has come. Stopping it with each call's end would cost more than a look, and
/// without work it is not set again: so it has run out before anybody could call this host idle.
const GLANCE: Duration = Duration::from_millis(250);

/// Messages encoded before bytes are written and read again.
const TURN: usize = 256;

/// What every worker process of a system is started with.
pub struct ProcessBackend {
    /// What to start.
    pub command: WorkerCommand,
    /// What it is started from when the running image may not be.
    pub stand_in: StandIn,
    /// Set over its environment.
    pub variables: Vec<(&'static str, OsString)>,
    /// How long it may be silent.
    pub policy: WorkerPolicy,
    /// What it is told.
    pub settings: WorkerSettings,
    /// The tools it must be able to run.
    pub tools: Vec<String>,
    /// Answers its questions.
    pub jobs: JobsHandle,
    /// What clients work on.
    pub roots: RootsHandle,
    /// Its fleet, where it has one.
    pub fleet: Option<Placing>,
    /// Whose sessions they are.
    pub callers: Callers,
    /// Counts stale messages.
    pub gauges: Arc<Gauges>,
}

/// Kills a process group when it is dropped.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw))
    }

    fn kill(&self) {
        if let Some(leader) = self.0 {
            // An empty group is what is wanted.
            let _ = rustix::process::kill_process_group(leader, Signal::KILL);
        }
    }

    /// The leader was waited for: its number may soon belong to somebody else.
    fn gone(&mut self) {
        // Members that outlived the leader keep the number theirs.
        self.kill();
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) if signal == Signal::ABORT.as_raw() => "aborted".to_owned(),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// How a process came to its end, before it was waited for.
enum Cause {
    /// The loop ended: the end of its output, or something wrong with it.
    Loop(Option<Box<(Pump, Fault)>>),
    /// It exited.
    Exited(ExitStatus),
    /// It was ordered to.
    Ordered(Order),
}

/// Keeps a worker process until it has ended; returns why it did.
pub(super) async fn keep(
    backend: Arc<ProcessBackend>,
    generation: Generation,
    inbox: mpsc::UnboundedReceiver<WorkerMsg>,
    keeping: &mut Keeping,
    up: impl FnOnce(Option<u32>) + Send + 'static,
) -> Fault {
    let failed = |why: String| Fault::new(FaultCode::WorkerSpawnFailed, why);
    let mut child = match spawn(&backend, generation) {
        Ok(child) => child,
        Err(error) => {
            let program = backend.command.program.display();
            return failed(format!("the worker program {program} could not be started: {error}."));
        }
    };
    let mut group = Group::of(&child);
    let pid = child.id();
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return failed("the worker process has no pipes.".to_owned());
    };
    let mut looping = TaskSet::new();
    let pump = Pump::new(backend, generation, inbox, stdin, stdout);
    looping.spawn(pump.run(move || up(pid)));
    let cause = tokio::select! {
        biased;
        ended = looping.join_next() => Cause::Loop(ended.and_then(Result::ok).map(Box::new)),
        order = keeping.ordered() => Cause::Ordered(order),
        status = child.wait() => match status {
            Ok(status) => Cause::Exited(status),
            Err(_) => Cause::Loop(None),
        },
    };
    // The tokens are in `rest`, which is dropped when this function returns.
    let (rest, why, status) = match cause {
        Cause::Loop(Some(rest)) => {
            group.kill();
            let why = Some(rest.1.clone());
            (Some(rest), why, reap(&mut child).await)
        }
        Cause::Loop(None) => {
            group.kill();
            let why = Fault::new(FaultCode::Internal, "the loop of the worker process failed");
            (None, Some(why), reap(&mut child).await)
        }
        Cause::Exited(status) => {
            // What it had said before is still in the pipe; whatever would hold that open ends with the group.
            group.gone();
            let rest = rest(&mut looping).await;
            (rest, None, Some(status))
        }
        Cause::Ordered(Order::Kill(fault)) => {
            group.kill();
            let rest = rest(&mut looping).await;
            (rest, Some(*fault), reap(&mut child).await)
        }
        Cause::Ordered(Order::Stop) => {
            // Its pipes are closed with the loop, which it takes for the end.
            looping.shutdown().await;
            let left = tokio::time::timeout(LEAVE, child.wait()).await;
            group.kill();
            let status = match left {
                Ok(status) => status.ok(),
                Err(_) => reap(&mut child).await,
            };
            (None, Some(Fault::new(FaultCode::WorkerLost, "the worker was ended")), status)
        }
    };
    group.gone();
    // An end that nothing else explains explains itself.
    let why = why.or_else(|| rest.as_ref().map(|rest| rest.1.clone()));
    explain(why, status)
}

/// What the loop still has to say about a process that is dead.
async fn rest(looping: &mut TaskSet<(Pump, Fault)>) -> Option<Box<(Pump, Fault)>> {
    match tokio::time::timeout(REST, looping.join_next()).await {
        Ok(ended) => ended.and_then(Result::ok).map(Box::new),
        Err(_) => {
            looping.shutdown().await;
            None
        }
    }
}

async fn reap(child: &mut Child) -> Option<ExitStatus> {
    match tokio::time::timeout(REAP, child.wait()).await {
        Ok(status) => status.ok(),
        Err(_) => {
            tracing::error!(pid = child.id(), "a killed worker process was not waited for");
            None
        }
    }
}

fn explain(why: Option<Fault>, status: Option<ExitStatus>) -> Fault {
    let mut fault = why.unwrap_or_else(|| Fault::new(FaultCode::WorkerLost, "the worker ended"));
    if let Some(status) = status {
        fault.detail = format!("{}; its process {}", fault.detail.trim_end_matches('.'), ended(status));
    }
    fault
}

fn spawn(backend: &ProcessBackend, generation: Generation) -> io::Result<Child> {
    let ProcessBackend { command, stand_in, variables, .. } = backend;
    stand_in.start(&command.program, |program| {
        let mut spawned = Command::new(program);
        spawned
            .args(&command.args)
            .arg("--generation")
            .arg(generation.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(environment) = &command.env {
            spawned.env_clear().envs(environment.iter());
        }
        spawned.envs(variables.iter().map(|(name, value)| (name, value)));
        spawned.spawn()
    })
}

/// An attempt the process has.
struct Given {
    reply: AttemptReply,
    progress: ProgressSink,
    /// Counts those it was given.
    number: u64,
}

/// The loop of one worker process.
struct Pump {
    backend: Arc<ProcessBackend>,
    generation: Generation,
    inbox: mpsc::UnboundedReceiver<WorkerMsg>,
    /// Absent once the process has closed its end.
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    reader: FrameReader,
    out: Outbox,
    /// Keyed by our own numbers, so the hash need not resist anybody.
    attempts: HashMap<CallKey, Given, foldhash::fast::RandomState>,
    /// Sessions whose context it was told; of the others it has the host's.
    told: HashSet<SessionNumber, foldhash::fast::RandomState>,
    /// Attempts it was given so far, and how many of them before the last check.
    given: u64,
    checked: u64,
    asks: Asks,
    vigil: Vigil,
    clock: Pin<Box<tokio::time::Sleep>>,
    ticking: bool,
}

impl Pump {
    fn new(
        backend: Arc<ProcessBackend>,
        generation: Generation,
        inbox: mpsc::UnboundedReceiver<WorkerMsg>,
        stdin: ChildStdin,
        stdout: ChildStdout,
    ) -> Self {
        Self {
            generation,
            inbox,
            stdin: Some(stdin),
            stdout,
            reader: FrameReader::new(backend.settings.line_limit),
            out: Outbox::default(),
            attempts: HashMap::default(),
            told: HashSet::default(),
            given: 0,
            checked: 0,
            asks: Asks::new(backend.jobs.clone(), backend.roots.clone(), backend.fleet.clone()),
            vigil: Vigil::new(backend.policy.quiet, clock::now()),
            clock: Box::pin(tokio::time::sleep(Duration::ZERO)),
            ticking: false,
            backend,
        }
    }

    /// Greets the process and serves it until it is over, or has to be; gives itself back, with the tokens.
    async fn run(mut self, up: impl FnOnce()) -> (Self, Fault) {
        let fault = match tokio::time::timeout(self.backend.policy.handshake, self.greet()).await {
            Ok(Ok(())) => {
                up();
                self.serve().await
            }
            Ok(Err(fault)) => fault,
            Err(_) => Fault::new(FaultCode::WorkerHandshakeTimeout, "the worker did not greet in time"),
        };
        (self, fault)
    }

    async fn greet(&mut self) -> Result<(), Fault> {
        let failed = |why: String| Fault::new(FaultCode::WorkerSpawnFailed, why);
        wire::hello(self.out.tail(), self.generation, &self.backend.settings)
            .map_err(|error| failed(format!("the worker's settings cannot be sent: {error}")))?;
        loop {
            self.write_now().await;
            if let Some(frame) = self.reader.next_frame() {
                return self.on_ready(&frame);
            }
            tokio::select! {
                read = self.stdout.read_buf(self.reader.space()) => match read {
                    Ok(count) if count > 0 => {}
                    _ => return Err(failed("the worker ended before it had greeted".to_owned())),
                },
                written = push(&mut self.stdin, self.out.front()), if !self.out.is_empty() => self.on_written(written),
            }
        }
    }

    fn on_ready(&mut self, frame: &Frame) -> Result<(), Fault> {
        let wrong = |why: String| Fault::new(FaultCode::WorkerProtocol, why);
        let Frame::Line(line) = frame else { return Err(wrong("the worker's greeting has no end".to_owned())) };
        let Some(FromWorker::Ready { protocol, g, tools }) = read(line) else {
            return Err(wrong("the worker's greeting is no greeting".to_owned()));
        };
        if protocol != wire::PROTOCOL {
            return Err(wrong(format!("the worker speaks version {protocol} where {} is spoken", wire::PROTOCOL)));
        }
        if g != self.generation {
            return Err(wrong(format!("the worker takes itself for generation {g}")));
        }
        if let Some(missing) = self.backend.tools.iter().find(|tool| !tools.contains(tool)) {
            return Err(wrong(format!("the worker has no tool {missing}")));
        }
        self.vigil.heard(clock::now());
        Ok(())
    }

    async fn serve(&mut self) -> Fault {
        // What came in one piece with the greeting.
        if let Err(fault) = self.take_frames() {
            return fault;
        }
        loop {
            self.write_now().await;
            let turn = tokio::select! {
                // What was said before what is to be said: a reply frees what a call takes.
                biased;
                read = self.stdout.read_buf(self.reader.space()) => self.on_read(read),
                answered = self.asks.answered(), if self.asks.is_open() => {
                    self.answer(answered.id, &answered.answer);
                    Ok(())
                }
                Some(message) = self.inbox.recv() => {
                    self.tell(message);
                    Ok(())
                }
                written = push(&mut self.stdin, self.out.front()), if !self.out.is_empty() => {
                    self.on_written(written);
                    Ok(())
                }
                () = self.clock.as_mut(), if self.ticking => self.on_time(),
            };
            if let Err(fault) = turn {
                return fault;
            }
            // One write takes all there is; a process that talks all the time hears us nevertheless.
            for _ in 0..TURN {
                let Ok(message) = self.inbox.try_recv() else { break };
                self.tell(message);
            }
        }
    }

    fn tell(&mut self, message: WorkerMsg) {
        match message {
            WorkerMsg::Execute(attempt) => self.execute(*attempt),
            WorkerMsg::ExecuteAll(attempts) => attempts.into_iter().for_each(|attempt| self.execute(attempt)),
            WorkerMsg::Withdraw(key) => {
                if let Some(given) = self.attempts.remove(&key) {
                    given.reply.forget();
                    wire::withdraw(self.out.tail(), self.generation, key);
                }
            }
            WorkerMsg::SessionOver(session) => {
                let over: Vec<CallKey> = self.attempts.keys().copied().filter(|key| key.session == session).collect();
                if !self.told.remove(&session) && over.is_empty() {
                    return;
                }
                for key in over {
                    if let Some(given) = self.attempts.remove(&key) {
                        given.reply.forget();
                    }
                }
                wire::session_over(self.out.tail(), self.generation, session);
            }
        }
    }

    fn execute(&mut self, attempt: Attempt) {
        let Attempt { key, reply, tool, call } = attempt;
        let limit = self.backend.settings.line_limit;
        self.tell_caller(key.session);
        if let Err(large) = wire::execute(&mut self.out, key, tool.name(), &call, limit) {
            let fault = Fault::new(FaultCode::Internal, format!("the worker's pipe failed to {large}."));
            reply.finish(CallOutcome::Fault(Box::new(fault)));
            return;
        }
        if self.attempts.is_empty() {
            // Its silence counts from here.
            let now = clock::now();
            self.vigil.begin(now);
            if !self.ticking {
                self.wake_at(now + GLANCE.min(self.backend.policy.quiet));
            }
        }
        self.attempts.insert(key, Given { reply, progress: call.progress, number: self.given });
        self.given += 1;
    }

    /// Tells what a session has of its own, before its first call.
    fn tell_caller(&mut self, session: SessionNumber) {
        // Without one it is over: its call is refused where it would be accepted.
        let Some(context) = self.backend.callers.of(session) else { return };
        if context.origin != CallerOrigin::Host && self.told.insert(session) {
            wire::caller(self.out.tail(), self.generation, session, &CallerSettings::from(&*context));
        }
    }

    fn answer(&mut self, id: u64, answer: &Result<crate::worker::asks::HostAnswer, Fault>) {
        wire::answer(self.out.tail(), self.generation, id, answer, self.backend.settings.line_limit);
    }

    fn on_read(&mut self, read: io::Result<usize>) -> Result<(), Fault> {
        match read {
            Ok(count) if count > 0 => {
                self.vigil.heard(clock::now());
                self.take_frames()
            }
            Ok(_) if self.reader.finish().is_some() => {
                Err(Fault::new(FaultCode::WorkerProtocol, "the worker's last line was torn"))
            }
            Ok(_) => Err(Fault::new(FaultCode::WorkerLost, "the worker ended")),
            Err(error) => Err(Fault::new(FaultCode::WorkerLost, format!("the worker's output failed: {error}"))),
        }
    }

    fn take_frames(&mut self) -> Result<(), Fault> {
        while let Some(frame) = self.reader.next_frame() {
            match frame {
                Frame::Line(line) => self.on_line(&line)?,
                Frame::TooLong { .. } => {
                    return Err(Fault::new(FaultCode::WorkerProtocol, "the worker sent a line that is too long"));
                }
            }
        }
        Ok(())
    }

    fn on_line(&mut self, line: &Bytes) -> Result<(), Fault> {
        let wrong = |why: &str| Fault::new(FaultCode::WorkerProtocol, why);
        let Some(message) = read(line) else { return Err(wrong("the worker sent what is no message")) };
        let generation = match &message {
            FromWorker::Settled(settled) => settled.g,
            FromWorker::Ready { g, .. }
            | FromWorker::Progress { g, .. }
            | FromWorker::Ask { g, .. }
            | FromWorker::Alive { g, .. }
            | FromWorker::Panicked { g, .. } => *g,
        };
        if generation != self.generation {
            self.stale();
            return Ok(());
        }
        match message {
            FromWorker::Settled(settled) => {
                let key = CallKey { session: settled.s, call: CallNumber(settled.c) };
                let Some(outcome) = settled.outcome(line) else {
                    return Err(wrong("the worker sent an outcome without one"));
                };
                match self.attempts.remove(&key) {
                    Some(given) => given.reply.finish(outcome),
                    // It was withdrawn meanwhile.
                    None => self.stale(),
                }
            }
            FromWorker::Progress { s, c, value, message, .. } => {
                let key = CallKey { session: s, call: CallNumber(c) };
                match self.attempts.get(&key) {
                    Some(given) => given.progress.report(value, message),
                    None => self.stale(),
                }
            }
            FromWorker::Ask { id, question, .. } => {
                if let Some(answer) = self.asks.ask(id, question) {
                    self.answer(id, &answer);
                }
            }
            FromWorker::Alive { n, open, .. } => {
                if self.vigil.alive(n) {
                    // The pipe keeps the order: it has all that was sent before the check and is not settled.
                    let given = self.attempts.values().filter(|attempt| attempt.number < self.checked).count();
                    if open < given as u64 {
                        return Err(wrong("the worker lost an attempt it was given"));
                    }
                }
            }
            FromWorker::Panicked { tool, .. } => {
                return Err(Fault::new(FaultCode::WorkerLost, format!("tool {tool} panicked")));
            }
            FromWorker::Ready { .. } => return Err(wrong("the worker greeted twice")),
        }
        Ok(())
    }

    fn stale(&self) {
        self.backend.gauges.stale.fetch_add(1, Ordering::Relaxed);
    }

    fn on_time(&mut self) -> Result<(), Fault> {
        self.ticking = false;
        match self.vigil.look(clock::now(), !self.attempts.is_empty()) {
            Look::Idle => {}
            Look::At(at) => self.wake_at(at),
            Look::Ask(n, at) => {
                wire::check(self.out.tail(), self.generation, n);
                self.checked = self.given;
                self.wake_at(at);
            }
            Look::Dead => {
                let detail = "the worker gave no sign of life while it had work";
                return Err(Fault::new(FaultCode::WorkerUnresponsive, detail));
            }
        }
        Ok(())
    }

    fn wake_at(&mut self, at: Instant) {
        self.clock.as_mut().reset(tokio::time::Instant::from_std(at));
        self.ticking = true;
    }

    /// Writes what the process takes at once.
    async fn write_now(&mut self) {
        while !self.out.is_empty() {
            match poll_immediate(push(&mut self.stdin, self.out.front())).await {
                Some(written) => self.on_written(written),
                None => return,
            }
        }
    }

    fn on_written(&mut self, written: io::Result<usize>) {
        match written {
            Ok(count) if count > 0 => self.out.written(count),
            // It reads nothing more. It is dying, which the end of its output tells, or its silence will.
            _ => {
                self.stdin = None;
                self.out = Outbox::default();
            }
        }
    }
}

/// Writes some of it; without a reader it is written for nobody.
///
/// # Cancel safety
///
/// Safe: what was not taken is still in `out`.
async fn push(stdin: &mut Option<ChildStdin>, out: &[u8]) -> io::Result<usize> {
    match stdin {
        Some(stdin) => stdin.write(out).await,
        None => Ok(out.len()),
    }
}

fn read(line: &Bytes) -> Option<FromWorker<'_>> {
    match wire::read_worker(std::str::from_utf8(line).ok()?) {
        Ok(message) => Some(message),
        Err(error) => {
            // The text of the error names our own fields; of the line it tells the place only.
            tracing::debug!(%error, "a worker's line was not understood");
            None
        }
    }
}
