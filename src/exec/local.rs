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

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::session::Session;
use super::{CHUNK_BYTES, OutputStream};

mod procfs;

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

/// Below this much free space a new buffer is taken, so that small chunks do not each pin a large one.
const MIN_READ: usize = 8 * 1024;

/// What may still be read from a pipe after [`PIPE_BOUND`]: the most a Linux pipe holds by default limits.
const LATE_BYTES: usize = 1024 * 1024;

/// The longest pause between two looks at a group. Others' children end without telling us, so we have to look.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// From this pause on a look also tells zombies from living members, which costs a walk through the process table.
const THOROUGH_PAUSE: Duration = Duration::from_millis(16);

/// How often dead adopted descendants are reaped while the leader runs; they cost a table entry until then.
const ADOPTED_PAUSE: Duration = Duration::from_secs(1);

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
            .finish()
    }
}

/// What a process reads on its standard input.
#[derive(Clone, PartialEq, Eq)]
pub enum Stdin {
    /// Nothing.
    Null,
    /// These bytes, then the end. That the process does not read them all is not an error.
    Bytes(Bytes),
    /// What is written by [`ProcessControl::write`].
    Piped,
}

impl fmt::Debug for Stdin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Self::Piped => f.write_str("Piped"),
        }
    }
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
    /// The owner of the session, by [`Session::publish_closed`], when it has done what must come before.
    Owner,
}

/// Why a process could not be started. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The directory does not exist.
    #[error("start in {}: no such directory", cwd.display())]
    CwdMissing {
        /// The directory.
        cwd: PathBuf,
    },
    /// The directory is something else.
    #[error("start in {}: not a directory", cwd.display())]
    CwdNotADirectory {
        /// The path.
        cwd: PathBuf,
    },
    /// The program, or the interpreter it names, does not exist.
    #[error("start {}: no such program", program.display())]
    ProgramMissing {
        /// The program.
        program: PathBuf,
    },
    /// The program is there and may not or cannot be executed.
    #[error("start {}: not executable", program.display())]
    NotExecutable {
        /// The program.
        program: PathBuf,
    },
    /// The arguments and the environment are larger than the system takes.
    #[error("start {}: argument list too long", program.display())]
    ArgumentsTooLarge {
        /// The program.
        program: PathBuf,
    },
    /// The system refused for another reason.
    #[error("start {}", program.display())]
    Other {
        /// The program.
        program: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
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

/// The backend for processes of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalExec;

impl LocalExec {
    /// Starts a process as the leader of its own process group.
    ///
    /// On Linux it gets TERM when *the calling thread* ends, however that happens: call this on a thread that lives as
    /// long as the process may, such as the main thread under a current-thread runtime.
    ///
    /// # Errors
    /// A [`SpawnError`]; the session is then as it was.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time, as everything that makes tokio pipes does.
    pub fn spawn(spec: SpawnSpec, session: Session, close: CloseBy) -> Result<(LocalProcess, OutputTap), SpawnError> {
        // An ENOENT of spawn does not say whether the program or the directory is missing, so this is asked first.
        match std::fs::metadata(&spec.cwd) {
            Ok(found) if !found.is_dir() => return Err(SpawnError::CwdNotADirectory { cwd: spec.cwd }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SpawnError::CwdMissing { cwd: spec.cwd });
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(SpawnError::CwdNotADirectory { cwd: spec.cwd });
            }
            _ => {}
        }
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.args)
            .current_dir(&spec.cwd)
            .env_clear()
            .envs(spec.env)
            .stdin(if spec.stdin == Stdin::Null { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        hear_signals(&mut command);
        die_with_this_thread(&mut command);
        let mut child = command.spawn().map_err(|error| classify(spec.program.clone(), error))?;
        let pid = child.id().unwrap_or_default();
        let Some(leader) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Err(SpawnError::Other {
                program: spec.program,
                source: io::Error::other("the process has no pid"),
            });
        };
        let start_time = procfs::start_time(leader);
        let group = Arc::new(Group { leader, state: Mutex::new(GroupState::Led) });

        let (tap, tap_receiver) = mpsc::channel(TAP_CHUNKS);
        let (pipes_until, _) = watch::channel(None);
        let mut pumps = JoinSet::new();
        if let Some(pipe) = child.stdout.take() {
            let pump = Pump::new(OutputStream::Stdout, &session, &tap, &pipes_until);
            pumps.spawn(pump.run(pipe));
        }
        if let Some(pipe) = child.stderr.take() {
            let pump = Pump::new(OutputStream::Stderr, &session, &tap, &pipes_until);
            pumps.spawn(pump.run(pipe));
        }
        let (stdin, feeder) = match (child.stdin.take(), spec.stdin) {
            (Some(pipe), Stdin::Bytes(bytes)) => (None, Some(tokio::spawn(feed_bytes(pipe, bytes)).abort_handle())),
            (Some(pipe), Stdin::Piped) => {
                let (queue, receiver) = mpsc::unbounded_channel();
                let room = Arc::new(Semaphore::new(STDIN_BYTES));
                let feeder = tokio::spawn(feed_queue(pipe, receiver, Arc::clone(&room)));
                (Some(StdinQueue { queue, room }), Some(feeder.abort_handle()))
            }
            _ => (None, None),
        };

        let (stop, stop_receiver) = watch::channel(Stop::No);
        let (end, end_receiver) = watch::channel(None);
        let control = ProcessControl {
            shared: Arc::new(ControlState {
                group: Arc::clone(&group),
                stop,
                stdin: Mutex::new(stdin),
                end: end_receiver.clone(),
            }),
        };
        let keeper = Keeper {
            fuse: Fuse { group, session },
            child,
            adopt: spec.adopt,
            close,
            stop: stop_receiver,
            kill_at: None,
            pumps,
            pipes_until,
            feeder: feeder.map(AbortOnDrop),
        };
        tokio::spawn(async move {
            let how = keeper.run().await;
            end.send_replace(Some(how));
        });
        Ok((LocalProcess { control, end: end_receiver, start_time }, OutputTap { receiver: tap_receiver }))
    }
}

fn classify(program: PathBuf, error: io::Error) -> SpawnError {
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::NOTDIR) => SpawnError::ProgramMissing { program },
        Some(Errno::ACCESS | Errno::NOEXEC | Errno::ISDIR) => SpawnError::NotExecutable { program },
        Some(Errno::TOOBIG) => SpawnError::ArgumentsTooLarge { program },
        _ => SpawnError::Other { program, source: error },
    }
}

/// Has the child begin with signals as a program expects them: what we were told to ignore, by a shell that started us in the
/// background for one, it would ignore too, and could not be asked to end.
fn hear_signals(command: &mut Command) {
    use nix::sys::signal::{SigHandler, Signal, signal};
    let prepare = || {
        for number in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGHUP] {
            #[expect(unsafe_code, reason = "an ignored signal can only be unignored by the child itself")]
            // SAFETY: no handler of ours is installed, so none can run at a bad moment.
            unsafe { signal(number, SigHandler::SigDfl) }.map_err(io::Error::from)?;
        }
        Ok(())
    };
    #[expect(unsafe_code, reason = "as above, between fork and exec")]
    // SAFETY: `prepare` runs in the forked child and only makes async-signal-safe system calls; it allocates nothing, takes
    // no lock and does not unwind.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Has the kernel send TERM to the child when the calling thread ends, so that even our SIGKILL does not orphan it.
#[cfg(target_os = "linux")]
fn die_with_this_thread(command: &mut Command) {
    use rustix::process::{getpid, getppid, set_parent_process_death_signal};
    let parent = getpid();
    let prepare = move || {
        set_parent_process_death_signal(Some(Signal::TERM))?;
        // The parent may have gone before the line above; then nobody would ever send the signal.
        if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::from(Errno::SRCH)) }
    };
    #[expect(
        unsafe_code,
        reason = "the parent-death signal can only be set by the child itself, between fork and exec"
    )]
    // SAFETY: `prepare` runs in the forked child and only makes two async-signal-safe system calls on values it captured by
    // copy; it allocates nothing, takes no lock and does not unwind.
    unsafe {
        command.pre_exec(prepare);
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_this_thread(_command: &mut Command) {}

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
        match self.end.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(end)) => *end,
            // The keeper went without an end: the runtime is going down, and its fuse has killed the group.
            _ => ProcessEnd { code: -1, signal: None, reaped: 0, left: 0, terminated: true, pipes_leaked: true },
        }
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
    end: watch::Receiver<Option<ProcessEnd>>,
}

#[derive(Debug, Clone)]
struct StdinQueue {
    /// Bounded by `room`: who sends holds as many permits as bytes, and the feeder gives them back.
    queue: mpsc::UnboundedSender<Bytes>,
    room: Arc<Semaphore>,
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
        if bytes.is_empty() {
            return if stdin.queue.is_closed() { WriteStatus::StdinClosed } else { WriteStatus::Accepted };
        }
        let share = u32::try_from(bytes.len().min(STDIN_BYTES)).unwrap_or(u32::MAX);
        let Ok(permits) = stdin.room.acquire_many(share).await else { return WriteStatus::StdinClosed };
        permits.forget();
        if stdin.queue.send(bytes).is_ok() { WriteStatus::Accepted } else { WriteStatus::StdinClosed }
    }

    /// Closes the standard input after what is queued.
    pub fn close_stdin(&self) {
        self.stdin().take();
    }

    /// Sends INT to the group, as a terminal's Ctrl-C would. Does nothing once the group is empty.
    pub fn interrupt(&self) {
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

/// Everything the process writes, for the one who parses it. Lossless: when it is full, the process waits.
#[derive(Debug)]
pub struct OutputTap {
    receiver: mpsc::Receiver<(OutputStream, Bytes)>,
}

impl OutputTap {
    /// The next output of either stream; `None` when both pipes are closed or abandoned and everything was read.
    ///
    /// # Cancel safety
    /// Output is taken only by the poll that returns it.
    pub async fn next(&mut self) -> Option<(OutputStream, Bytes)> {
        self.receiver.recv().await
    }

    /// The next output if there is some now.
    pub fn try_next(&mut self) -> Option<(OutputStream, Bytes)> {
        self.receiver.try_recv().ok()
    }
}

/// A process group and whether it may still be signalled.
#[derive(Debug)]
struct Group {
    leader: Pid,
    /// Held while signalling, so that nobody signals a number that was given back meanwhile.
    state: Mutex<GroupState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GroupState {
    /// The leader is not reaped, so its pid is its own.
    Led,
    /// The leader is reaped; others may be left.
    Leaderless,
    /// Seen empty.
    Gone,
}

impl Group {
    fn signal(&self, signal: Signal) {
        let state = self.state();
        if *state == GroupState::Gone {
            return;
        }
        let reached = rustix::process::kill_process_group(self.leader, signal);
        // A leader may have moved to another group of its session. It gets a gentle signal once, not twice.
        if *state == GroupState::Led && (reached.is_err() || signal == Signal::KILL) {
            let _ = rustix::process::kill_process(self.leader, signal);
        }
    }

    fn enter(&self, next: GroupState) {
        *self.state() = next;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, GroupState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing of the group is left that could still run. Only after the leader was reaped.
    fn is_empty(&self, look: Look) -> bool {
        // Members that fell to us when their parent died stay members until we reap them.
        while let Ok(Some(_)) = rustix::process::waitpgid(self.leader, WaitOptions::NOHANG) {}
        match rustix::process::test_kill_process_group(self.leader) {
            Err(Errno::SRCH) => true,
            // Members nobody may signal: zombies (macOS) or programs that changed their user. Neither can be waited for.
            Err(_) => procfs::living_members(self.leader).is_none_or(|members| {
                if !members.is_empty() {
                    tracing::warn!(group = ?self.leader, ?members, "group members may not be signalled and are left");
                }
                true
            }),
            // Zombies that somebody else has to reap count for `kill` and for nothing else.
            Ok(()) => look == Look::Thorough && procfs::living_members(self.leader).is_some_and(|all| all.is_empty()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Quick,
    Thorough,
}

/// Kills the group if the keeper goes away before it is done.
#[derive(Debug)]
struct Fuse {
    group: Arc<Group>,
    session: Session,
}

impl Drop for Fuse {
    fn drop(&mut self) {
        if *self.group.state() != GroupState::Gone {
            self.group.signal(Signal::KILL);
            self.session.publish_failed("the process was killed because its keeper stopped");
        }
    }
}

/// Owns the child until it is over. Runs as its own task, so that nobody has to wait for it to go on.
struct Keeper {
    /// Dropped before the child, so that the group is killed while the leader still holds its number.
    fuse: Fuse,
    child: Child,
    adopt: Adopt,
    close: CloseBy,
    stop: watch::Receiver<Stop>,
    /// When the grace of a stop is over.
    kill_at: Option<Instant>,
    pumps: JoinSet<PumpEnd>,
    pipes_until: watch::Sender<Option<Instant>>,
    feeder: Option<AbortOnDrop>,
}

#[derive(Debug)]
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Keeper {
    async fn run(mut self) -> ProcessEnd {
        let status = self.leader_ends().await;
        self.fuse.group.enter(GroupState::Leaderless);
        let (code, signal) = decode(status.as_ref());
        if let Err(refused) = self.fuse.session.publish_exited(code) {
            tracing::warn!(%refused, "the session did not take the exit");
        }
        let Emptied { reaped, left } = self.group_empties().await;
        self.fuse.group.enter(GroupState::Gone);
        self.feeder = None;
        let pipes_leaked = self.pipes_close().await;
        if self.close == CloseBy::Backend
            && let Err(refused) = self.fuse.session.publish_closed()
        {
            tracing::warn!(%refused, "the session did not take the end");
        }
        ProcessEnd { code, signal, reaped, left, terminated: *self.stop.borrow() != Stop::No, pipes_leaked }
    }

    /// Waits for the leader, ending it when asked to. An error when it does not end, [`KILL_BOUND`] after it was killed.
    async fn leader_ends(&mut self) -> io::Result<ExitStatus> {
        let mut sweep = tokio::time::interval(ADOPTED_PAUSE);
        let mut give_up_at = None;
        loop {
            tokio::select! {
                biased;
                status = self.child.wait() => return status,
                stop = stop_asked(&mut self.stop) => self.stop_group(stop),
                () = tokio::time::sleep_until(self.kill_at.unwrap_or_else(Instant::now)), if self.kill_at.is_some() => {
                    self.fuse.group.signal(Signal::KILL);
                    self.kill_at = None;
                    give_up_at = Some(Instant::now() + KILL_BOUND);
                }
                () = tokio::time::sleep_until(give_up_at.unwrap_or_else(Instant::now)), if give_up_at.is_some() => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "it outlived a KILL"));
                }
                _ = sweep.tick(), if self.adopt == Adopt::Yes => {
                    reap_children(Some(self.fuse.group.leader));
                }
            }
        }
    }

    fn stop_group(&mut self, stop: Stop) {
        match stop {
            Stop::No => {}
            Stop::Asked => {
                self.fuse.group.signal(Signal::TERM);
                self.kill_at.get_or_insert_with(|| Instant::now() + GRACE);
            }
            Stop::Kill => {
                self.fuse.group.signal(Signal::KILL);
                self.kill_at = Some(Instant::now());
            }
        }
    }

    /// Waits until nothing of the group, nor of what we adopted, is left, and kills what does not go by itself.
    async fn group_empties(&mut self) -> Emptied {
        let mut killed = BTreeSet::new();
        let mut pause = Duration::from_millis(1);
        let mut emptying = Emptying::new(Instant::now());
        loop {
            let look = if pause >= THOROUGH_PAUSE { Look::Thorough } else { Look::Quick };
            let group_is_empty = self.fuse.group.is_empty(look);
            let adopted = if self.adopt == Adopt::Yes { reap_children(None) } else { Vec::new() };
            let reaped = |killed: &BTreeSet<i32>| u32::try_from(killed.len()).unwrap_or(u32::MAX);
            match emptying.looked(group_is_empty && adopted.is_empty(), self.kill_at, Instant::now()) {
                Next::Done => return Emptied { reaped: reaped(&killed), left: 0 },
                Next::GiveUp => {
                    let members = procfs::living_members(self.fuse.group.leader).unwrap_or_default();
                    let left: BTreeSet<i32> =
                        adopted.iter().map(|child| child.as_raw_nonzero().get()).chain(members).collect();
                    tracing::error!(group = ?self.fuse.group.leader, ?left, "processes outlived a KILL and are left");
                    // One at least: where processes cannot be listed, the group itself.
                    return Emptied { reaped: reaped(&killed), left: reaped(&left).max(1) };
                }
                Next::Wait => {}
                Next::Kill => {
                    if killed.is_empty() {
                        pause = Duration::from_millis(1);
                    }
                    if !group_is_empty {
                        let leader = self.fuse.group.leader;
                        match procfs::living_members(leader) {
                            Some(members) => killed.extend(members),
                            None => _ = killed.insert(leader.as_raw_nonzero().get()),
                        }
                        self.fuse.group.signal(Signal::KILL);
                    }
                    for child in adopted {
                        killed.insert(child.as_raw_nonzero().get());
                        // Ours to reap, so the number cannot have become somebody else's.
                        let _ = rustix::process::kill_process(child, Signal::KILL);
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                stop = stop_asked(&mut self.stop) => self.stop_group(stop),
            }
            pause = (pause * 2).min(LOOK_PAUSE);
        }
    }

    /// Waits for the pipes to close, for [`PIPE_BOUND`] at most. Returns whether something held them.
    async fn pipes_close(&mut self) -> bool {
        self.pipes_until.send_replace(Some(Instant::now() + PIPE_BOUND));
        let mut leaked = false;
        while let Some(end) = self.pumps.join_next().await {
            leaked |= !matches!(end, Ok(PumpEnd::Closed));
        }
        leaked
    }
}

/// What became of a group whose leader is gone.
#[derive(Debug, Clone, Copy)]
struct Emptied {
    reaped: u32,
    left: u32,
}

/// What to do about a group whose leader is gone, look by look.
#[derive(Debug)]
struct Emptying {
    /// Until then its members may end by themselves.
    quiet_end: Instant,
    /// When they were first killed.
    killed_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Wait,
    Kill,
    Done,
    GiveUp,
}

impl Emptying {
    fn new(now: Instant) -> Self {
        Self { quiet_end: now + GRACE, killed_at: None }
    }

    /// The group was looked at; `kill_at` is when the grace of a stop is over, if one was asked for.
    fn looked(&mut self, is_empty: bool, kill_at: Option<Instant>, now: Instant) -> Next {
        if is_empty {
            return Next::Done;
        }
        if now < kill_at.unwrap_or(self.quiet_end) {
            return Next::Wait;
        }
        let since = *self.killed_at.get_or_insert(now);
        // Again and again until then: a member may have forked in between.
        if now < since + KILL_BOUND { Next::Kill } else { Next::GiveUp }
    }
}

/// The next stop level somebody asks for; pending for ever when nobody can ask any more.
async fn stop_asked(stop: &mut watch::Receiver<Stop>) -> Stop {
    match stop.changed().await {
        Ok(()) => *stop.borrow_and_update(),
        Err(_) => std::future::pending().await,
    }
}

/// Reaps dead children of this process other than `leader` and returns the living ones.
fn reap_children(leader: Option<Pid>) -> Vec<Pid> {
    let mut living = procfs::children();
    living.retain(|child| {
        Some(*child) != leader && matches!(rustix::process::waitpid(Some(*child), WaitOptions::NOHANG), Ok(None))
    });
    living
}

fn decode(status: Result<&ExitStatus, &io::Error>) -> (i32, Option<i32>) {
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => (code, None),
            (None, Some(signal)) => (128 + signal, Some(signal)),
            (None, None) => (-1, None),
        },
        Err(error) => {
            tracing::warn!(%error, "the exit of a process could not be learnt");
            (-1, None)
        }
    }
}

/// Carries one pipe to the session and the tap.
struct Pump {
    stream: OutputStream,
    session: Session,
    /// `None` once nobody reads the tap.
    tap: Option<mpsc::Sender<(OutputStream, Bytes)>>,
    /// Set when the group is empty: from then on nobody legitimate writes.
    until: watch::Receiver<Option<Instant>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PumpEnd {
    Closed,
    Abandoned,
}

impl Pump {
    fn new(
        stream: OutputStream,
        session: &Session,
        tap: &mpsc::Sender<(OutputStream, Bytes)>,
        until: &watch::Sender<Option<Instant>>,
    ) -> Self {
        Self { stream, session: session.clone(), tap: Some(tap.clone()), until: until.subscribe() }
    }

    async fn run(mut self, mut pipe: impl AsyncRead + Unpin) -> PumpEnd {
        let mut buffer = BytesMut::new();
        let mut late = 0;
        loop {
            if buffer.capacity() < MIN_READ {
                buffer = BytesMut::with_capacity(CHUNK_BYTES);
            }
            // What is in the pipe goes first, so that a slow tap never makes us abandon output of the group itself.
            let read = tokio::select! {
                biased;
                read = pipe.read_buf(&mut buffer) => read,
                () = passed(&mut self.until) => return PumpEnd::Abandoned,
            };
            match read {
                Ok(0) => return PumpEnd::Closed,
                Ok(size) => {
                    if (*self.until.borrow()).is_some_and(|until| until <= Instant::now()) {
                        late += size;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::warn!(%error, "a pipe of a process could not be read");
                    return PumpEnd::Closed;
                }
            }
            let chunk = buffer.split().freeze();
            // A session that has ended takes nothing more; the tap still does.
            let _ = self.session.publish_output(self.stream, chunk.clone());
            if let Some(tap) = &self.tap
                && tap.send((self.stream, chunk)).await.is_err()
            {
                self.tap = None;
            }
            if late > LATE_BYTES {
                return PumpEnd::Abandoned;
            }
        }
    }
}

/// Returns when the set time has passed.
async fn passed(until: &mut watch::Receiver<Option<Instant>>) {
    loop {
        let set = *until.borrow_and_update();
        match set {
            Some(until) => return tokio::time::sleep_until(until).await,
            None => {
                if until.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Writes everything, then closes. A process that does not read it all has simply decided so.
async fn feed_bytes(mut pipe: ChildStdin, bytes: Bytes) {
    if let Err(error) = pipe.write_all(&bytes).await {
        tracing::debug!(%error, "a process did not read all of its input");
    }
}

async fn feed_queue(mut pipe: ChildStdin, mut queue: mpsc::UnboundedReceiver<Bytes>, room: Arc<Semaphore>) {
    /// Whoever waits for room learns that there will be none, also when this task is aborted.
    struct CloseOnDrop(Arc<Semaphore>);
    impl Drop for CloseOnDrop {
        fn drop(&mut self) {
            self.0.close();
        }
    }
    let room = CloseOnDrop(room);
    while let Some(bytes) = queue.recv().await {
        if let Err(error) = pipe.write_all(&bytes).await {
            tracing::debug!(%error, "a process closed its input");
            return;
        }
        room.0.add_permits(bytes.len().min(STDIN_BYTES));
    }
}

#[cfg(test)]
mod tests;
