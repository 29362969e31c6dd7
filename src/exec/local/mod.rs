//! Processes of this machine, each with its own process group.
//!
//! Owns: starting a program, its three pipes, its signals, and knowing when it is really over.
//! May not know: what the program is or says, and who listens.
//!
//! ```text
//! leader runs --stop asked--> TERM group, 300 ms, KILL group
//!      | leader reaped: Exited
//! group still has members --300 ms--> KILL group (and adopted descendants), again until none is left
//!      | group empty, or what is left has outlived its KILL by 10 s
//! pipes still open --2 s--> abandoned
//!      | pipes closed: Closed (or left to the owner)
//! ended
//! ```
//!
//! Invariants:
//! 1. A process ends only when its leader is reaped and its group is empty, but for members that not even a KILL ends: those
//!    are waited for 10 s, counted, and left.
//! 2. A group is never signalled once it was seen empty or was given up: its number may belong to somebody else by then.
//! 3. The leader is reaped by the runtime's child handle and nobody else; we reap others only by a pid that is not the
//!    leader's, or after the leader's wait has returned.
//! 4. Whoever holds the [`OutputTap`] gets every byte, and slows the process when it is slow. Dropping it frees the process.
//! 5. Dropping [`LocalProcess`], or the runtime, kills the group.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal};
use tokio::sync::{Semaphore, mpsc, watch};

pub(crate) use self::begin::as_a_program;
pub use self::begin::{DESCRIPTORS_VARIABLE, EndsWithUs};
use self::group::Group;
pub(super) use self::pipes::{Pump, PumpEnd, feed_bytes, feed_queue};
pub use self::start::{LocalExec, SpawnError, is_no_room, may_be_entered};
use self::terminal::Terminal;
pub use super::tap::OutputTap;
use crate::base::procfs;

mod begin;
mod group;
mod keeper;
mod pipes;
mod start;
mod terminal;

/// What a group gets between being asked to stop (or losing its leader) and being killed.
///
/// Long enough for a CLI to write its session file, short enough that a cancelled call still feels cancelled.
pub const GRACE: Duration = Duration::from_millis(300);

/// How long the pipes may stay open once the group is empty. Only a descendant that left the group can hold them then, and
/// it may do so for ever; after this its output is nobody's.
pub const PIPE_BOUND: Duration = Duration::from_secs(2);

/// How long what was killed may stay. A process that hangs in the kernel (a file system that does not answer), or that
/// became another user's, does not end by our KILL, and its owner must not wait for it for ever.
pub const KILL_BOUND: Duration = Duration::from_secs(10);

/// Output chunks the tap holds before the process feels it: 1 MiB of full chunks.
pub const TAP_CHUNKS: usize = 16;

/// Bytes that may wait for a process to read its standard input; a writer waits beyond it.
pub const STDIN_BYTES: usize = 1024 * 1024;

/// What to start.
///
/// Its `Debug` text holds neither values of the environment nor input: there may be keys in the one and prompts in the other.
#[derive(Clone)]
pub struct SpawnSpec {
    /// The program; absolute, unless it is to be looked up on the `PATH` in `env`.
    pub program: PathBuf,
    /// Its arguments, without the program's name.
    pub args: Vec<OsString>,
    /// The directory it starts in.
    pub cwd: PathBuf,
    /// Its complete environment; nothing of ours is added.
    pub env: Vec<(OsString, OsString)>,
    /// What it reads on its standard input.
    pub stdin: Stdin,
    /// Whether descendants that left the group are ended too.
    pub adopt: Adopt,
    /// Its soft limit of descriptors; that of this process when `None`.
    pub descriptors: Option<u64>,
}

impl fmt::Debug for SpawnSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.env.iter().map(|(name, _)| name).collect();
        f.debug_struct("SpawnSpec")
            .field("program", &self.program)
            .field("args", &self.args)
            .field("cwd", &self.cwd)
            .field("env", &names)
            .field("stdin", &self.stdin)
            .field("adopt", &self.adopt)
            .field("descriptors", &self.descriptors)
            .finish()
    }
}

/// What a process reads on its standard input.
#[derive(Clone)]
pub enum Stdin {
    /// Nothing.
    Null,
    /// This file, from where it stands.
    File(Arc<std::fs::File>),
    /// These bytes, then the end. That the process does not read them all is not an error.
    Bytes(Bytes),
    /// What is written by [`ProcessControl::write`].
    Piped,
}

impl Stdin {
    fn as_stdio(&self) -> io::Result<Stdio> {
        Ok(match self {
            Self::Null => Stdio::null(),
            Self::File(file) => Stdio::from(file.try_clone()?),
            Self::Bytes(_) | Self::Piped => Stdio::piped(),
        })
    }
}

impl fmt::Debug for Stdin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::File(_) => f.write_str("File"),
            Self::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Self::Piped => f.write_str("Piped"),
        }
    }
}

/// How to start it and keep it, beside what is started. The default is what a runner wants for its agent.
#[derive(Debug, Clone, Default)]
pub struct SpawnMode {
    /// Its own name, when not the program's.
    pub arg0: Option<OsString>,
    /// A terminal of this size instead of pipes: everything it writes is its standard output.
    pub terminal: Option<TerminalSize>,
    /// What becomes of the rest of its group when the leader has ended.
    pub leftovers: Leftovers,
    /// What ends it when we are gone.
    pub ends: EndsWithUs,
    /// A variable of its environment, `NAME=value`, that nothing else has: what carries it and fell to this process ends with
    /// the group, wherever it went. Only for a process that is a subreaper ([`become_subreaper`]).
    pub mark: Option<OsString>,
}

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// What becomes of the rest of a group when its leader has ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Leftovers {
    /// It is ended after [`GRACE`]; the process is over when nothing is left.
    #[default]
    End,
    /// It lives on, with the pipes it has; the session is closed when they are. It is ended when somebody asks for the end, and
    /// when the process's handle is dropped.
    Keep,
}

/// Whether all other children of this process belong to the process being started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopt {
    /// They do not: leave them alone.
    No,
    /// They do: end and reap every child of this process before the process counts as over.
    ///
    /// Only for a process that is a subreaper ([`become_subreaper`]) and starts nothing else.
    Yes,
}

/// Who publishes `Closed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseBy {
    /// This module, as soon as the process is over.
    Backend,
    /// The owner of the session, by [`ProcessSession::publish_closed`](super::ProcessSession::publish_closed), when it has done what must
    /// come before.
    Owner,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessEnd {
    /// Exit code of the leader, 128 + n for death by signal n, -1 when the kernel did not say.
    pub code: i32,
    /// The signal the leader died of.
    pub signal: Option<i32>,
    /// Members of the group and adopted descendants that had to be killed after the leader was gone.
    ///
    /// Where processes cannot be listed (not Linux), a group that had to be killed counts as one.
    pub reaped: u32,
    /// Members of the group and adopted descendants that were there [`KILL_BOUND`] after they were killed, and are left.
    pub left: u32,
    /// Whether somebody asked for the end.
    pub terminated: bool,
    /// Whether something outside the group held the pipes until we let go of them.
    pub pipes_leaked: bool,
}

/// What became of bytes for a process's standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteStatus {
    /// They are queued; whether the process reads them is its business.
    Accepted,
    /// The process has no open standard input.
    StdinClosed,
}

/// Makes this process the one that orphaned descendants fall to, so that none can escape into the background.
///
/// For the main function of a process that runs one [`Adopt::Yes`] process. Does nothing outside Linux.
///
/// # Errors
/// When the kernel refuses.
pub fn become_subreaper() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    Ok(())
}

/// Reaps the dead children of this process that fell to it from others, and returns the living ones. `leaders` are reaped by those
/// who started them. Only for a process that starts nothing beside them.
pub(crate) fn reap_orphans(leaders: &[u32]) -> Vec<Pid> {
    keeper::reap_children(|child| leaders.contains(&child.as_raw_nonzero().get().unsigned_abs()))
}

/// Ends and reaps every child of this process, those that fall to it meanwhile included, for `within` at most. Returns how many
/// are left.
pub async fn end_all_children(within: Duration) -> usize {
    let until = tokio::time::Instant::now() + within;
    loop {
        let living = reap_orphans(&[]);
        if living.is_empty() || tokio::time::Instant::now() >= until {
            return living.len();
        }
        for child in living {
            // Ours to reap, so the number cannot have become somebody else's.
            let _ = rustix::process::kill_process(child, Signal::KILL);
        }
        // Others' children fall to us only when they end, and nobody tells us.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The members of a process group that are not dead; `None` where the process table cannot be read (not Linux).
#[must_use]
pub fn living_members(group: u32) -> Option<Vec<u32>> {
    let group = i32::try_from(group).ok().and_then(Pid::from_raw)?;
    Some(procfs::living_members(group)?.into_iter().map(i32::unsigned_abs).collect())
}

/// When the kernel started a process, in clock ticks since boot; 0 when it is gone or that cannot be learnt (not Linux).
///
/// With the pid it tells a process from a later one of the same number.
#[must_use]
pub fn start_time(pid: u32) -> u64 {
    i32::try_from(pid).ok().and_then(Pid::from_raw).map_or(0, procfs::start_time)
}

/// A running process. Dropping it kills the whole group.
#[derive(Debug)]
pub struct LocalProcess {
    control: ProcessControl,
    end: watch::Receiver<Option<ProcessEnd>>,
    start_time: u64,
}

impl LocalProcess {
    /// The leader's pid, which is also the number of its group.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.control.shared.group.leader.as_raw_nonzero().get().unsigned_abs()
    }

    /// When the kernel started the leader, in clock ticks since boot; 0 where that cannot be learnt (not Linux).
    #[must_use]
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// A handle to steer the process; it keeps nothing alive.
    #[must_use]
    pub fn control(&self) -> ProcessControl {
        self.control.clone()
    }

    /// See [`ProcessControl::write`].
    pub async fn write(&self, bytes: Bytes) -> WriteStatus {
        self.control.write(bytes).await
    }

    /// See [`ProcessControl::interrupt`].
    pub fn interrupt(&self) {
        self.control.interrupt();
    }

    /// See [`ProcessControl::terminate`].
    pub fn terminate(&self) -> bool {
        self.control.terminate()
    }

    /// Waits until the leader is reaped, the group is empty and the pipes are closed or abandoned.
    ///
    /// The output tap must be read meanwhile, or be dropped: a full tap holds the pipes open.
    ///
    /// # Cancel safety
    /// It only waits; call it again at will, also after the end.
    pub async fn wait_end(&mut self) -> ProcessEnd {
        self.ended().await
    }

    /// [`LocalProcess::wait_end`] for a process that is shared.
    pub(crate) fn ended(&self) -> impl Future<Output = ProcessEnd> + Send + use<> {
        end_of(self.end.clone())
    }
}

async fn end_of(mut end: watch::Receiver<Option<ProcessEnd>>) -> ProcessEnd {
    match end.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(end)) => *end,
        // The keeper went without an end: the runtime is going down, and its fuse has killed the group.
        _ => ProcessEnd { code: -1, signal: None, reaped: 0, left: 0, terminated: true, pipes_leaked: true },
    }
}

impl Drop for LocalProcess {
    fn drop(&mut self) {
        // The keeper stays to reap, to empty the group and to end the session.
        self.control.kill();
    }
}

/// A cheap handle to steer a process. It does not keep the process alive.
#[derive(Debug, Clone)]
pub struct ProcessControl {
    shared: Arc<ControlState>,
}

#[derive(Debug)]
struct ControlState {
    group: Arc<Group>,
    stop: watch::Sender<Stop>,
    stdin: Mutex<Option<StdinQueue>>,
    /// What an asked group gets before it is killed.
    grace: Arc<Mutex<Duration>>,
    terminal: Option<Arc<Terminal>>,
    end: watch::Receiver<Option<ProcessEnd>>,
}

/// What waits to be read by a process. Dropping it is the end of the process's input, after what is queued.
#[derive(Debug, Clone)]
pub(super) struct StdinQueue {
    /// Bounded by `room`: who sends holds as many permits as bytes, and the feeder gives them back.
    queue: mpsc::UnboundedSender<Bytes>,
    room: Arc<Semaphore>,
}

impl StdinQueue {
    /// A queue, and what [`feed_queue`] needs of it.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Bytes>, Arc<Semaphore>) {
        let (queue, receiver) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(STDIN_BYTES));
        (Self { queue, room: Arc::clone(&room) }, receiver, room)
    }

    /// Queues bytes, waiting while [`STDIN_BYTES`] are queued.
    ///
    /// # Cancel safety
    /// Until it returns `Accepted`, none of the bytes are queued.
    pub(super) async fn write(&self, bytes: Bytes) -> WriteStatus {
        if bytes.is_empty() {
            return if self.queue.is_closed() { WriteStatus::StdinClosed } else { WriteStatus::Accepted };
        }
        let share = u32::try_from(bytes.len().min(STDIN_BYTES)).unwrap_or(u32::MAX);
        let Ok(permits) = self.room.acquire_many(share).await else { return WriteStatus::StdinClosed };
        permits.forget();
        if self.queue.send(bytes).is_ok() { WriteStatus::Accepted } else { WriteStatus::StdinClosed }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    No,
    Asked,
    Kill,
}

impl ProcessControl {
    /// Queues bytes for the standard input of a [`Stdin::Piped`] process, waiting while [`STDIN_BYTES`] are queued.
    ///
    /// # Cancel safety
    /// Until it returns `Accepted`, none of the bytes are queued.
    pub async fn write(&self, bytes: Bytes) -> WriteStatus {
        let Some(stdin) = self.stdin().clone() else { return WriteStatus::StdinClosed };
        stdin.write(bytes).await
    }

    /// Closes the standard input after what is queued.
    pub fn close_stdin(&self) {
        self.stdin().take();
    }

    /// Sends INT to the group, as a terminal's Ctrl-C would. Does nothing once the group is empty.
    pub fn interrupt(&self) {
        if !self.has_ended() && self.shared.terminal.as_ref().is_some_and(|terminal| terminal.interrupt()) {
            return;
        }
        self.shared.group.signal(Signal::INT);
    }

    /// Asks for the end: TERM to the group, KILL after [`GRACE`], until the group is empty. Asking again changes nothing.
    ///
    /// Also works when the leader has exited and others of its group live on. Returns whether there was anything to end.
    pub fn terminate(&self) -> bool {
        let running = !self.has_ended();
        if running {
            self.ask(Stop::Asked);
        }
        running
    }

    /// As [`ProcessControl::terminate`], with so much time before the KILL. A later call may shorten it.
    pub fn terminate_within(&self, grace: Duration) -> bool {
        let running = !self.has_ended();
        if running {
            {
                let asked = *self.shared.stop.borrow() != Stop::No;
                let mut set = self.shared.grace.lock().unwrap_or_else(PoisonError::into_inner);
                *set = if asked { grace.min(*set) } else { grace };
            }
            self.shared.stop.send_modify(|asked| *asked = Stop::Asked.max(*asked));
        }
        running
    }

    /// Sets the size of its terminal. Returns whether it has one.
    pub fn resize(&self, size: TerminalSize) -> bool {
        self.shared.terminal.as_ref().is_some_and(|terminal| terminal.resize(size))
    }

    /// Ends it without asking: KILL to the group at once, until the group is empty.
    ///
    /// For what must not do one thing more; a process that is asked may still finish what it had begun. Returns whether
    /// there was anything to end.
    pub fn kill(&self) -> bool {
        let running = !self.has_ended();
        if running {
            // Here, not by the keeper's next turn: there may be milliseconds between.
            self.shared.group.signal(Signal::KILL);
            self.ask(Stop::Kill);
        }
        running
    }

    /// How it ended, once it has.
    pub(crate) fn ending(&self) -> watch::Receiver<Option<ProcessEnd>> {
        self.shared.end.clone()
    }

    /// Whether the process is over.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.shared.end.borrow().is_some()
    }

    fn ask(&self, stop: Stop) {
        self.shared.stop.send_if_modified(|asked| {
            let more = *asked < stop;
            *asked = stop.max(*asked);
            more
        });
    }

    fn stdin(&self) -> std::sync::MutexGuard<'_, Option<StdinQueue>> {
        self.shared.stdin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
