//! What lives on this machine because of a case: finding it, ending it, freezing it.
//!
//! A process belongs to a world when its command line or environment holds the world's directory. Only where `/proc`
//! shows other processes (Linux); elsewhere nothing is found, and [`are_visible`] says so.

use std::fmt;
use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, test_kill_process_group};

use super::scripted_agent;
use crate::base::procfs::{self, Stat};

/// Whether other processes can be seen here at all.
#[must_use]
pub fn are_visible() -> bool {
    Path::new("/proc/self/stat").exists()
}

/// What a process is for, by its command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// `mcp serve`, `daemon`, or a `consult` from a shell: a system with a tree.
    Host,
    /// `mcp connect`: between a client and a host, or a host itself.
    Bridge,
    /// `mcp worker`, or an embedding program that was told to be one (`worker` is its first, second or third word).
    Worker,
    /// `mcp background-consult`: one job.
    Runner,
    /// `mcp wait`: a host's jobs until their turn.
    Waiting,
    /// The scripted agent, or the built-in one.
    Agent,
    /// Started by the scripted agent and left behind.
    Offspring,
    /// Anything else in the world.
    Other,
}

impl Role {
    /// Every role, for tables.
    pub const ALL: [Self; 8] = [
        Self::Host,
        Self::Bridge,
        Self::Worker,
        Self::Runner,
        Self::Waiting,
        Self::Agent,
        Self::Offspring,
        Self::Other,
    ];

    /// The role of a command line: the program and its arguments.
    #[must_use]
    pub fn of(words: &[&str]) -> Self {
        let Some((program, arguments)) = words.split_first() else { return Self::Other };
        if Path::new(program).file_name().is_some_and(|name| name == scripted_agent::PROGRAM_NAME) {
            let left = arguments.first() == Some(&scripted_agent::GRANDCHILD);
            return if left { Self::Offspring } else { Self::Agent };
        }
        match arguments {
            ["mcp", "background-consult", ..] => Self::Runner,
            ["mcp", "wait", ..] => Self::Waiting,
            ["mcp", "offline-agent", ..] => Self::Agent,
            ["mcp", "connect", ..] => Self::Bridge,
            ["mcp", "serve", ..] | ["daemon" | "consult", ..] => Self::Host,
            arguments if arguments.iter().take(3).any(|word| *word == "worker") => Self::Worker,
            _ => Self::Other,
        }
    }
}

/// One process, as it was when it was seen.
#[derive(Clone, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: Pid,
    /// When it started, in the kernel's own ticks: with the pid, this process and no later one.
    pub started: u64,
    /// Who started it, or whoever took it over since.
    pub parent: Option<Pid>,
    /// Its words, separated by spaces.
    pub command: String,
    /// What it is for.
    pub role: Role,
    /// Whether it leads a session of its own.
    pub leads_session: bool,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} ({})", self.role, self.pid.as_raw_nonzero(), self.command.trim_end())
    }
}

impl Process {
    /// Whether it is still there; dead and not waited for yet is dead.
    #[must_use]
    pub fn lives(&self) -> bool {
        stat(self.pid).is_some_and(|stat| !stat.is_dead && stat.start_time == self.started)
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        assert!(self.send(signal), "no {signal:?} for {self:?}: it is gone");
    }

    /// Ends it on the spot (SIGKILL).
    ///
    /// # Panics
    ///
    /// When it is gone.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Stops it where it stands (SIGSTOP).
    ///
    /// # Panics
    ///
    /// When it is gone.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Panics
    ///
    /// When it is gone.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// The environment it was started with, an entry after the other, each ended by a NUL. `None` once it is gone, and where it
    /// cannot be read: what is looked for in vain in an environment that nobody has seen is not known to be missing.
    #[must_use]
    pub fn environment(&self) -> Option<String> {
        let environment = fs::read(format!("/proc/{}/environ", self.pid.as_raw_nonzero())).ok()?;
        (!environment.is_empty() && self.lives()).then(|| String::from_utf8_lossy(&environment).into_owned())
    }

    /// Sends a signal to this process and to no later one of the same pid; whether it was there.
    #[must_use]
    #[cfg(target_os = "linux")]
    pub fn send(&self, signal: Signal) -> bool {
        use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
        // The descriptor pins whoever has the pid now; the start time says whether that is who was meant.
        let Ok(fd) = pidfd_open(self.pid, PidfdFlags::empty()) else { return false };
        self.lives() && pidfd_send_signal(&fd, signal).is_ok()
    }

    /// Sends a signal to this process; whether it was there.
    #[must_use]
    #[cfg(not(target_os = "linux"))]
    pub fn send(&self, signal: Signal) -> bool {
        self.lives() && rustix::process::kill_process(self.pid, signal).is_ok()
    }
}

fn stat(pid: Pid) -> Option<Stat> {
    procfs::stat(pid.as_raw_nonzero().get())
}

fn pids() -> impl Iterator<Item = Pid> {
    procfs::pids().into_iter().flatten().filter_map(Pid::from_raw)
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && bytes.windows(part.len()).any(|window| window == part)
}

/// Every live process whose command line or environment holds `mark`, but for this one.
#[must_use]
pub fn marked(mark: &Path) -> Vec<Process> {
    let mark = mark.as_os_str().as_encoded_bytes();
    let ours = rustix::process::getpid();
    let look = |pid: Pid| {
        let read = |name: &str| fs::read(format!("/proc/{}/{name}", pid.as_raw_nonzero())).unwrap_or_default();
        let stat = stat(pid).filter(|stat| !stat.is_dead)?;
        let command = read("cmdline");
        (holds(&command, mark) || holds(&read("environ"), mark)).then(|| {
            let command = String::from_utf8_lossy(&command).into_owned();
            let words: Vec<&str> = command.split_terminator('\0').collect();
            Process {
                pid,
                started: stat.start_time,
                parent: Pid::from_raw(stat.parent),
                role: Role::of(&words),
                leads_session: stat.session == pid.as_raw_nonzero().get(),
                command: words.join(" "),
            }
        })
    };
    pids().filter(|pid| *pid != ours).filter_map(look).collect()
}

/// Bytes of memory of its own a process has resident; `None` when it is gone, or nothing tells. What it has mapped of files is not
/// counted: how much of its program the kernel maps with a page that is read depends on how the file came into the cache.
#[must_use]
pub fn resident(pid: Pid) -> Option<u64> {
    memory(pid, "RssAnon:")
}

/// The most memory a process ever had at once, in bytes. `None` where the system does not say, or the process is gone.
#[must_use]
pub fn peak(pid: Pid) -> Option<u64> {
    memory(pid, "VmHWM:")
}

/// The most memory of its own a process ever had, in bytes: [`peak`] without what it has mapped of files now, as in [`resident`].
#[must_use]
pub fn own_peak(pid: Pid) -> Option<u64> {
    Some(peak(pid)?.saturating_sub(memory(pid, "RssFile:")?).saturating_sub(memory(pid, "RssShmem:")?))
}

fn memory(pid: Pid, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The command line of any process of this machine that has `text` on it.
#[must_use]
pub fn on_a_command_line(text: &str) -> Option<String> {
    pids().find_map(|pid| {
        let command = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
        holds(&command, text.as_bytes()).then(|| String::from_utf8_lossy(&command).into_owned())
    })
}

/// Whether a process of the group lives; one that nobody has reaped yet does not.
#[must_use]
pub fn group_lives(group: Pid) -> bool {
    if test_kill_process_group(group).is_err() {
        return false;
    }
    procfs::living_members(group).is_none_or(|members| !members.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_words_and_not_by_its_prompt() {
        let agent = format!("/tmp/rig/{}", scripted_agent::PROGRAM_NAME);
        for (words, role) in [
            (&["/x/phone-opus", "mcp", "serve", "--billing", "api_key"][..], Role::Host),
            (&["/x/phone-opus", "mcp", "worker", "--generation", "3"], Role::Worker),
            (&["/x/embedder", "worker"], Role::Worker),
            (&["/x/phone-opus", "mcp", "background-consult", "--job", "worker"], Role::Runner),
            (&["/x/phone-opus", "mcp", "wait", "--state-dir", "worker"], Role::Waiting),
            (&["/x/phone-opus", "consult", "worker"], Role::Host),
            (&["/x/phone-opus", "mcp", "offline-agent"], Role::Agent),
            (&[&agent, "-p"], Role::Agent),
            (&[&agent, scripted_agent::GRANDCHILD, "group"], Role::Offspring),
            (&["sh", "-c", "mcp serve"], Role::Other),
            (&[], Role::Other),
        ] {
            assert_eq!(Role::of(words), role, "{words:?}");
        }
    }

    #[test]
    fn a_signal_never_reaches_a_later_process_of_the_same_pid() {
        if !are_visible() {
            return println!("skipped: no /proc here");
        }
        let mut child = std::process::Command::new("sleep").arg("600").spawn().expect("a child");
        let pid = Pid::from_child(&child);
        let started = stat(pid).expect("it is there").start_time;
        let process = |started| Process {
            pid,
            started,
            parent: None,
            command: "sleep 600".into(),
            role: Role::Other,
            leads_session: false,
        };
        assert!(!process(started + 1).send(Signal::KILL), "somebody else's process");
        assert!(process(started).lives());
        assert!(process(started).send(Signal::KILL));
        assert!(!child.wait().expect("waited").success());
        assert!(!process(started).lives() && !process(started).send(Signal::KILL));
    }
}
