//! Ends what is left of a run whose runner is gone.
//!
//! Owns: by what marks a process is known for one of the run, and how it is ended. May not know: jobs, the store.
//!
//! A pid proves nothing: it may belong to somebody else by now. Two marks do, either of them alone:
//!
//! 1. the run's token in a process's environment, wherever the process went;
//! 2. the recorded process group *and* the recorded session together, in the same numbering of processes (boot and
//!    namespace), of a process that is no older than the agent: children that were started with a cleared environment, or
//!    that wrote over it. Both numbers stay taken as long as a member is left.
//!
//! A process that carries another run's token is never ours. Where the process table cannot be read (no `/proc`) nothing
//! can be proved, so nothing is ended, and the agent's own end (its pipes are closed) is relied on.

use std::time::Duration;

use crate::jobs::RunProcess;

/// How long the ended may take to be gone. One that hangs in the kernel stays longer, and is not waited for: nothing of it
/// runs any more.
pub const BOUND: Duration = Duration::from_secs(2);

/// What the process table says of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Member {
    group: i32,
    session: i32,
    started: u64,
    token: Token,
}

/// The run token in a process's environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// This run's.
    Ours,
    /// Another run's.
    Others,
    /// There is none to be seen.
    Unseen,
}

/// What is known now about who has the recorded numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Numbers {
    /// The numbering of this process; 0 when unknown.
    here: u64,
    /// When the process that has the group's number started; `None` when there is none.
    leader: Option<u64>,
    /// When the process that has the session's number started; `None` when there is none.
    session_leader: Option<u64>,
}

/// Whether a process belongs to the run.
fn is_ours(process: RunProcess, numbers: Numbers, member: Member) -> bool {
    match member.token {
        Token::Ours => true,
        Token::Others => false,
        Token::Unseen => {
            let number = |recorded: u32, is: i32| recorded != 0 && u32::try_from(is) == Ok(recorded);
            let known = process.numbering != 0 && process.numbering == numbers.here && process.start_time != 0;
            known
                && number(process.pid, member.group)
                && number(process.session, member.session)
                && member.started >= process.start_time
                // The agent itself, or nobody: its number is not given away while its group has members.
                && numbers.leader.is_none_or(|started| started == process.start_time)
                // The runner, or nobody: it was there before its agent.
                && numbers.session_leader.is_none_or(|started| started <= process.start_time)
        }
    }
}

/// Ends every process of the run, and waits until they are gone; returns how many there were. Blocks for milliseconds, for
/// [`BOUND`] at most.
#[must_use]
pub fn end(process: RunProcess) -> u32 {
    #[cfg(target_os = "linux")]
    {
        linux::end(process, linux::Strike::ByDescriptor)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (process, is_ours, Member { group: 0, session: 0, started: 0, token: Token::Unseen });
        let _ = (Token::Ours, Token::Others, Numbers { here: 0, leader: None, session_leader: None });
        0
    }
}

/// The numbering of processes this process lives in, to be recorded with numbers; 0 when unknown.
#[must_use]
pub fn numbering() -> u64 {
    #[cfg(target_os = "linux")]
    {
        linux::numbering()
    }
    #[cfg(not(target_os = "linux"))]
    {
        0
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashSet;
    use std::fs;
    use std::os::fd::OwnedFd;
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::io::Errno;
    use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

    use super::{BOUND, Member, Numbers, Token, is_ours};
    use crate::base::ids::RUN_TOKEN_VARIABLE;
    use crate::base::procfs;
    use crate::jobs::RunProcess;

    /// How a process that was found is reached.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) enum Strike {
        /// By a descriptor that pins it; by its number where the system has no such descriptors.
        ByDescriptor,
        #[cfg(test)]
        ByNumber,
    }

    /// How often a process without a descriptor is looked at while it ends.
    const LOOK_EVERY: Duration = Duration::from_millis(2);

    /// Somebody who was told to end.
    enum Dying {
        Pinned(OwnedFd),
        Numbered(Pid, u64),
    }

    pub(super) fn end(process: RunProcess, strike: Strike) -> u32 {
        let mut ended = HashSet::new();
        let until = Instant::now() + BOUND;
        // Again until none is found: one may have forked just before it was ended.
        loop {
            let mut dying = Vec::new();
            for (pid, started) in members(process) {
                if let Some(struck) = end_one(process, pid, started, strike) {
                    ended.insert(pid.as_raw_nonzero());
                    dying.push(struck);
                }
            }
            if dying.is_empty() {
                break;
            }
            dying.iter().for_each(|one| wait_for(one, until));
            if Instant::now() >= until {
                tracing::warn!("processes of a lost run were ended and are not gone yet");
                break;
            }
        }
        u32::try_from(ended.len()).unwrap_or(u32::MAX)
    }

    fn end_one(process: RunProcess, pid: Pid, started: u64, strike: Strike) -> Option<Dying> {
        let pinned = match strike {
            Strike::ByDescriptor => pidfd_open(pid, PidfdFlags::empty()),
            #[cfg(test)]
            Strike::ByNumber => Err(Errno::NOSYS),
        };
        // The descriptor pins the process: it is looked at once more before it is ended, so that a pid that was given to
        // somebody else in between is left alone. Without one the look is the last thing before the signal.
        let still = || look(process, pid).is_some_and(|member| member.started == started);
        match pinned {
            Ok(fd) => (still() && pidfd_send_signal(&fd, Signal::KILL).is_ok()).then_some(Dying::Pinned(fd)),
            Err(Errno::SRCH) => None,
            // An old kernel, a sandbox that knows no such call, no descriptor to be had.
            Err(_) => (still() && kill_process(pid, Signal::KILL).is_ok()).then_some(Dying::Numbered(pid, started)),
        }
    }

    /// Waits for a process's end. A job is over when nothing of it is left, not when it was told to end.
    fn wait_for(dying: &Dying, until: Instant) {
        match dying {
            Dying::Pinned(fd) => {
                let left = until.saturating_duration_since(Instant::now());
                let timeout = Timespec {
                    tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
                    tv_nsec: i64::from(left.subsec_nanos()),
                };
                let _ = poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout));
            }
            Dying::Numbered(pid, started) => {
                let lives = || {
                    let stat = procfs::stat(pid.as_raw_nonzero().get());
                    stat.is_some_and(|stat| !stat.is_dead && stat.start_time == *started)
                };
                while lives() && Instant::now() < until {
                    std::thread::sleep(LOOK_EVERY);
                }
            }
        }
    }

    /// The processes of the run that are not dead, and when they started.
    pub(super) fn members(process: RunProcess) -> Vec<(Pid, u64)> {
        let Some(pids) = procfs::pids() else {
            tracing::warn!("the process table cannot be read, so what is left of a lost run cannot be told");
            return Vec::new();
        };
        pids.filter_map(Pid::from_raw)
            .filter_map(|pid| look(process, pid).map(|member| (pid, member.started)))
            .collect()
    }

    /// The process of this number, if it lives and is one of the run.
    fn look(process: RunProcess, pid: Pid) -> Option<Member> {
        let number = pid.as_raw_nonzero().get();
        let stat = procfs::stat(number).filter(|stat| !stat.is_dead)?;
        let token = token(pid, process);
        let member = Member { group: stat.group, session: stat.session, started: stat.start_time, token };
        is_ours(process, numbers(process), member).then_some(member)
    }

    fn numbers(process: RunProcess) -> Numbers {
        let started = |number: u32| {
            let found = i32::try_from(number).ok().and_then(procfs::stat)?;
            // A zombie holds its number as well.
            Some(found.start_time)
        };
        Numbers { here: numbering(), leader: started(process.pid), session_leader: started(process.session) }
    }

    fn token(pid: Pid, process: RunProcess) -> Token {
        let marker = format!("{RUN_TOKEN_VARIABLE}={}", process.token);
        let any = format!("{RUN_TOKEN_VARIABLE}=");
        // Another user's process cannot be read; a zombie's environment is empty.
        let Ok(environ) = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())) else { return Token::Unseen };
        let mut others = false;
        for entry in environ.split(|byte| *byte == 0) {
            if entry == marker.as_bytes() {
                return Token::Ours;
            }
            others |= entry.starts_with(any.as_bytes());
        }
        if others { Token::Others } else { Token::Unseen }
    }

    pub(super) fn numbering() -> u64 {
        let Ok(boot) = fs::read("/proc/sys/kernel/random/boot_id") else { return 0 };
        let Ok(space) = fs::read_link("/proc/self/ns/pid") else { return 0 };
        fnv1a(&[&boot, space.as_os_str().as_encoded_bytes()]).max(1)
    }

    /// A hash that stays the same from version to version of the program and of its compiler.
    fn fnv1a(parts: &[&[u8]]) -> u64 {
        let bytes = parts.iter().flat_map(|part| part.iter());
        bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::RunToken;

    #[test]
    fn either_mark_is_enough_and_a_stranger_with_some_of_the_numbers_is_none_of_ours() {
        let process = RunProcess { pid: 70, start_time: 1000, token: RunToken::random(), session: 60, numbering: 5 };
        let numbers = Numbers { here: 5, leader: Some(1000), session_leader: Some(990) };
        let child = Member { group: 70, session: 60, started: 1001, token: Token::Unseen };
        let marked = Member { group: 71, session: 71, token: Token::Ours, ..child };
        let gone = Numbers { leader: None, session_leader: None, ..numbers };
        let cases = [
            ("a child in the group", process, numbers, child, true),
            ("the same when agent and runner are gone", process, gone, child, true),
            ("the agent itself", process, numbers, Member { started: 1000, ..child }, true),
            ("by its token alone", process, gone, marked, true),
            ("by its token, from another boot's numbers", process, Numbers { here: 6, ..gone }, marked, true),
            ("with another run's token", process, numbers, Member { token: Token::Others, ..child }, false),
            ("in the group's number, of another session", process, gone, Member { session: 61, ..child }, false),
            ("in the session, of another group", process, gone, Member { group: 72, ..child }, false),
            ("older than the agent", process, gone, Member { started: 999, ..child }, false),
            ("after another boot, or in another namespace", process, Numbers { here: 6, ..gone }, child, false),
            ("where the numbering is not known", process, Numbers { here: 0, ..gone }, child, false),
            (
                "when it was not recorded",
                RunProcess { numbering: 0, ..process },
                Numbers { here: 0, ..gone },
                child,
                false,
            ),
            ("when the agent's start was not recorded", RunProcess { start_time: 0, ..process }, gone, child, false),
            (
                "when no session was recorded",
                RunProcess { session: 0, ..process },
                gone,
                Member { session: 0, ..child },
                false,
            ),
            ("when no agent was recorded", RunProcess { pid: 0, ..process }, gone, Member { group: 0, ..child }, false),
            ("when the agent's number is another's", process, Numbers { leader: Some(2000), ..gone }, child, false),
            (
                "when the runner's number is another's",
                process,
                Numbers { session_leader: Some(2000), ..gone },
                child,
                false,
            ),
        ];
        for (what, process, numbers, member, ours) in cases {
            assert_eq!(is_ours(process, numbers, member), ours, "{what}");
        }
    }

    #[cfg(target_os = "linux")]
    mod on_this_system {
        use std::os::unix::process::CommandExt as _;
        use std::process::{Child, Command};
        use std::time::Instant;

        use super::super::linux::{Strike, end, members, numbering};
        use super::*;
        use crate::base::ids::RUN_TOKEN_VARIABLE;
        use crate::base::procfs;

        fn sleeping(mark: impl FnOnce(&mut Command)) -> Child {
            let mut command = Command::new("sleep");
            mark(command.arg("600"));
            command.spawn().expect("a child")
        }

        fn assert_all_ended(children: &mut [Child]) {
            for child in children {
                assert!(child.try_wait().expect("asked").is_some(), "it was ended and is not gone");
            }
        }

        fn end_stranger(mut stranger: Child) {
            assert!(stranger.try_wait().expect("asked").is_none(), "a stranger was ended");
            stranger.kill().expect("ended");
            stranger.wait().expect("waited for");
        }

        #[test]
        fn what_carries_the_token_is_gone_when_it_was_ended_and_nothing_else_is_touched() {
            for strike in [Strike::ByDescriptor, Strike::ByNumber] {
                let (token, other) = (RunToken::random(), RunToken::random());
                let carrying =
                    |token: RunToken| sleeping(|command| _ = command.env(RUN_TOKEN_VARIABLE, token.to_string()));
                let mut ours: Vec<_> = (0..20).map(|_| carrying(token)).collect();
                let stranger = carrying(other);
                // A child that has not replaced itself yet has the environment of this process.
                let mark = RunProcess { pid: 0, start_time: 0, token, session: 0, numbering: 0 };
                let until = Instant::now() + Duration::from_secs(10);
                while members(mark).len() < ours.len() {
                    assert!(Instant::now() < until, "they do not start");
                }
                assert_eq!(end(mark, strike), 20);
                assert_all_ended(&mut ours);
                assert_eq!(end(mark, strike), 0);
                end_stranger(stranger);
            }
        }

        /// A session whose leader lives outside this namespace of pids has no number: the test is run once more in one that
        /// has.
        fn in_a_session_of_its_own() {
            let thread = std::thread::current();
            let name = thread.name().expect("a test has its name");
            let program = std::env::current_exe().expect("this program");
            let status = Command::new("setsid").arg("--wait").arg(program).args(["--exact", name]).status();
            assert!(status.expect("setsid").success(), "{name} in a session of its own");
        }

        #[test]
        fn what_has_no_environment_is_known_by_group_and_session_even_when_its_leader_is_gone() {
            let own = i32::try_from(std::process::id()).expect("a pid");
            let session = procfs::stat(own).expect("there").session;
            if session == 0 {
                return in_a_session_of_its_own();
            }
            let started = |child: &Child| procfs::stat(i32::try_from(child.id()).expect("a pid")).expect("there");
            for (strike, leads) in [(Strike::ByDescriptor, true), (Strike::ByNumber, true), (Strike::ByNumber, false)] {
                let mut leader = sleeping(|command| _ = command.env_clear().process_group(0));
                let group = i32::try_from(leader.id()).expect("a pid");
                let mut ours: Vec<_> =
                    (0..3).map(|_| sleeping(|command| _ = command.env_clear().process_group(group))).collect();
                // In the same session, of another group.
                let stranger = sleeping(|command| _ = command.env_clear().process_group(0));
                let process = RunProcess {
                    pid: leader.id(),
                    start_time: started(&leader).start_time,
                    token: RunToken::random(),
                    session: u32::try_from(session).expect("a session"),
                    numbering: numbering(),
                };
                if leads {
                    ours.push(leader);
                } else {
                    leader.kill().expect("ended");
                    leader.wait().expect("waited for");
                }
                let elsewhere = RunProcess { numbering: process.numbering ^ 1, ..process };
                assert_eq!(end(elsewhere, strike), 0, "the numbers of another boot prove nothing");
                assert_eq!(end(process, strike), if leads { 4 } else { 3 });
                assert_all_ended(&mut ours);
                end_stranger(stranger);
            }
        }
    }
}
