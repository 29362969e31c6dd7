//! Server: one running peer, its standard streams, and the certainty that it ends.
//!
//! Owns: the child process and its group, the descriptors to it, the cores both run on, the watchdog.
//! May not know: what is asked and which reply is right.
//! Invariants:
//! 1. Every child is the leader of its own process group, and is reaped when its `Server` is dropped.
//! 2. No wait is without a limit: the watchdog kills the group of a server whose time is up, and every read then ends.
//! 3. The watchdog signals only children that have not been reaped, so a number never means another process.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::peers::Peer;

/// How long a server may take to leave once its input has ended; then its group is killed.
const LEAVE: Duration = Duration::from_secs(2);

/// Why something could not be measured.
#[derive(Debug, Clone)]
pub(crate) enum Trouble {
    /// It could not be started.
    NotStarted(String),
    /// It closed its output; how it ended is added when it is known.
    Closed(Option<ExitStatus>),
    /// It had this long, and was killed.
    Late(Duration),
    /// It said something wrong.
    Wrong(String),
    /// Two cores are needed, and there is one.
    OneCore,
    /// The system refused something.
    System(Errno),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted(reason) => write!(f, "does not start: {reason}"),
            Self::Closed(None) => f.write_str("closed its output"),
            Self::Closed(Some(status)) => write!(f, "ended ({status})"),
            Self::Late(limit) => write!(f, "not done after {} s", limit.as_secs_f64()),
            Self::Wrong(what) => f.write_str(what),
            Self::OneCore => f.write_str("there is only one core"),
            Self::System(errno) => write!(f, "system error: {errno}"),
        }
    }
}

impl From<Errno> for Trouble {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PIPE | Errno::CONNRESET => Self::Closed(None),
            other => Self::System(other),
        }
    }
}

/// Which cores the driver and its servers run on. A child inherits what its driver had when it was started.
#[derive(Debug)]
pub(crate) struct Cores {
    one: CpuSet,
    two: Option<CpuSet>,
}

impl Cores {
    /// The second core of those we may use where there is one (interrupts like the first), and the first two.
    pub(crate) fn find() -> Result<Self, Errno> {
        let allowed = sched_getaffinity(None)?;
        let usable: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).take(2).collect();
        let set = |cpus: &[usize]| {
            let mut set = CpuSet::new();
            cpus.iter().for_each(|cpu| set.set(*cpu));
            set
        };
        Ok(Self { one: set(&usable[usable.len().saturating_sub(1)..]), two: (usable.len() == 2).then(|| set(&usable)) })
    }

    /// From here on driver and new servers share one core.
    pub(crate) fn pin_one(&self) -> Result<(), Trouble> {
        Ok(sched_setaffinity(None, &self.one)?)
    }

    /// From here on driver and new servers have two cores.
    pub(crate) fn pin_two(&self) -> Result<(), Trouble> {
        match &self.two {
            Some(two) => Ok(sched_setaffinity(None, two)?),
            None => Err(Trouble::OneCore),
        }
    }

    /// Two cores where there are two.
    pub(crate) fn pin_up_to_two(&self) -> Result<(), Trouble> {
        Ok(sched_setaffinity(None, self.two.as_ref().unwrap_or(&self.one))?)
    }
}

/// What the standard input and output of a server are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wiring {
    /// Two pipes, as most clients make them.
    Pipes,
    /// Two socket pairs, as Node makes them for its children.
    SocketPairs,
}

/// Kills servers whose time is up. One thread for the whole run.
#[derive(Debug, Clone)]
pub(crate) struct Watchdog(Arc<Kennel>);

#[derive(Debug, Default)]
struct Kennel {
    watched: Mutex<HashMap<Pid, Watched>>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Watched {
    until: Option<Instant>,
    killed: bool,
}

impl Kennel {
    fn lock(&self) -> MutexGuard<'_, HashMap<Pid, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watchdog {
    /// Starts the thread. It ends with the process.
    pub(crate) fn start() -> io::Result<Self> {
        let kennel = Arc::new(Kennel::default());
        let watchdog = Self(Arc::clone(&kennel));
        thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let mut watched = kennel.lock();
            loop {
                let now = Instant::now();
                for (group, entry) in watched.iter_mut() {
                    if entry.until.is_some_and(|until| until <= now) {
                        entry.until = None;
                        entry.killed = true;
                        let _gone = kill_process_group(*group, Signal::KILL);
                    }
                }
                let next = watched.values().filter_map(|entry| entry.until).min();
                let wait = next.map_or(Duration::from_secs(3600), |next| next.saturating_duration_since(now));
                watched = kennel
                    .changed
                    .wait_timeout(watched, wait)
                    .map_or_else(|poisoned| poisoned.into_inner().0, |it| it.0);
            }
        })?;
        Ok(watchdog)
    }

    fn watch(&self, group: Pid, limit: Duration) {
        self.0.lock().entry(group).or_default().until = Some(Instant::now() + limit);
        self.0.changed.notify_one();
    }

    /// Stops the clock; says whether it had run out.
    fn rest(&self, group: Pid) -> bool {
        self.0.lock().get_mut(&group).is_some_and(|entry| {
            entry.until = None;
            entry.killed
        })
    }

    /// Must be called before the child is reaped.
    fn forget(&self, group: Pid) {
        self.0.lock().remove(&group);
    }
}

/// The driver's ends of a server's standard streams.
#[derive(Debug)]
pub(crate) struct Connection {
    input: OwnedFd,
    output: OwnedFd,
    buffer: Vec<u8>,
    /// Where the bytes not yet taken begin.
    start: usize,
    /// Up to where they are known to hold no newline.
    searched: usize,
}

/// Room for one read; what a pipe holds on Linux.
const READ: usize = 64 * 1024;

impl Connection {
    const fn new(input: OwnedFd, output: OwnedFd) -> Self {
        Self { input, output, buffer: Vec::new(), start: 0, searched: 0 }
    }

    /// The descriptor requests are written to.
    pub(crate) fn input(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }

    /// The descriptor replies are read from.
    pub(crate) fn output(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }

    /// Makes reads and writes of the driver wait, or not; the server's own ends are not touched.
    pub(crate) fn set_nonblocking(&self, on: bool) -> Result<(), Trouble> {
        rustix::io::ioctl_fionbio(&self.input, on)?;
        Ok(rustix::io::ioctl_fionbio(&self.output, on)?)
    }

    /// Writes everything, waiting as long as it takes. For blocking descriptors.
    pub(crate) fn write_all(&self, mut bytes: &[u8]) -> Result<(), Trouble> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.input, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Reads once; returns how many bytes came. [`Errno::AGAIN`] is 0; end of file is an error.
    pub(crate) fn read_some(&mut self) -> Result<usize, Trouble> {
        if self.start > 0 && self.start == self.buffer.len() {
            self.buffer.clear();
            (self.start, self.searched) = (0, 0);
        } else if self.start >= READ && self.start > self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
        }
        self.buffer.reserve(READ);
        loop {
            match rustix::io::read(&self.output, rustix::buffer::spare_capacity(&mut self.buffer)) {
                Ok(0) => return Err(Trouble::Closed(None)),
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(0),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The next whole line that has been read, without its newline.
    pub(crate) fn take_line(&mut self) -> Option<&[u8]> {
        match memchr::memchr(b'\n', &self.buffer[self.searched..]) {
            Some(offset) => {
                let (from, to) = (self.start, self.searched + offset);
                (self.start, self.searched) = (to + 1, to + 1);
                Some(&self.buffer[from..to])
            }
            None => {
                self.searched = self.buffer.len();
                None
            }
        }
    }

    /// Waits until a whole line is there. For blocking descriptors.
    pub(crate) fn fill_line(&mut self) -> Result<(), Trouble> {
        while memchr::memchr(b'\n', &self.buffer[self.searched..]).is_none() {
            self.searched = self.buffer.len();
            self.read_some()?;
        }
        Ok(())
    }

    /// Whether bytes came that nobody has taken.
    pub(crate) fn has_rest(&self) -> bool {
        self.start < self.buffer.len()
    }
}

/// One running peer.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    group: Pid,
    watchdog: Watchdog,
    connection: Option<Connection>,
    /// How it left, once it is reaped.
    left: Option<Leaving>,
}

impl Server {
    /// Starts a peer on the cores the caller is pinned to. `variables` are added to its environment.
    pub(crate) fn start(
        peer: &Peer,
        wiring: Wiring,
        variables: &[(&str, String)],
        watchdog: &Watchdog,
    ) -> Result<Self, Trouble> {
        Self::start_with(peer, wiring, variables, Stdio::null(), watchdog)
    }

    /// The same, with a standard error of the caller's choice.
    pub(crate) fn start_with(
        peer: &Peer,
        wiring: Wiring,
        variables: &[(&str, String)],
        stderr: Stdio,
        watchdog: &Watchdog,
    ) -> Result<Self, Trouble> {
        let (program, arguments) =
            peer.argv.split_first().ok_or_else(|| Trouble::NotStarted("no program given".to_owned()))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(peer.variables.iter().copied())
            .envs(variables.iter().map(|(name, value)| (*name, value)))
            .stderr(stderr)
            .process_group(0);
        let ours = match wiring {
            Wiring::Pipes => {
                command.stdin(Stdio::piped()).stdout(Stdio::piped());
                None
            }
            Wiring::SocketPairs => {
                let pair = || socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
                let (input, its_stdin) = pair()?;
                let (output, its_stdout) = pair()?;
                command.stdin(its_stdin).stdout(its_stdout);
                Some((input, output))
            }
        };
        let mut child = command.spawn().map_err(|error| Trouble::NotStarted(error.to_string()))?;
        // The command still holds the server's ends of socket pairs; with them open, no read would see its end.
        drop(command);
        let ours = match ours {
            Some(pair) => Some(pair),
            None => child.stdin.take().zip(child.stdout.take()).map(|(input, output)| (input.into(), output.into())),
        };
        let group = Pid::from_child(&child);
        let connection = ours.map(|(input, output)| Connection::new(input, output));
        Ok(Self { child, group, watchdog: watchdog.clone(), connection, left: None })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Does something with the connection, for at most `limit`; after that the server is killed.
    pub(crate) fn within<T>(
        &mut self,
        limit: Duration,
        work: impl FnOnce(&mut Connection) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let connection = self.connection.as_mut().ok_or(Trouble::Closed(None))?;
        self.watchdog.watch(self.group, limit);
        let outcome = work(connection);
        let killed = self.watchdog.rest(self.group);
        match outcome {
            Err(Trouble::Closed(None)) if killed => Err(Trouble::Late(limit)),
            Err(Trouble::Closed(None)) => Err(Trouble::Closed(self.wait(Duration::from_millis(200)))),
            other => other,
        }
    }

    /// How it ended, if it does so in time; then it is reaped, and its group is empty.
    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        exits_within(self.group, limit).then(|| self.reap(Leaving::OnItsOwn))?
    }

    fn reap(&mut self, how: Leaving) -> Option<ExitStatus> {
        // Until it is reaped below the leader is at least a zombie, so the group's number is still its own.
        let _gone = kill_process_group(self.group, Signal::KILL);
        self.watchdog.forget(self.group);
        self.left = Some(how);
        self.child.wait().ok()
    }

    /// Ends its input and waits for it to leave; says whether it left by itself.
    pub(crate) fn finish(mut self) -> Leaving {
        self.end()
    }

    fn end(&mut self) -> Leaving {
        self.connection = None;
        if self.left.is_none() && self.wait(LEAVE).is_none() && self.left.is_none() {
            self.reap(Leaving::Killed);
        }
        self.left.unwrap_or(Leaving::Killed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// How a server ended once its input was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// In time.
    OnItsOwn,
    /// It had to be killed.
    Killed,
}

/// Whether a child that is not yet reaped exits in time.
fn exits_within(pid: Pid, limit: Duration) -> bool {
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    wait_for(&mut [PollFd::new(&handle, PollFlags::IN)], limit).unwrap_or(false)
}

/// Polls; says whether anything happened in time.
pub(crate) fn wait_for(fds: &mut [PollFd<'_>], limit: Duration) -> Result<bool, Trouble> {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(fds, Some(&timeout)) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
