//! What the process table says.
//!
//! Owns: reading it on Linux. Elsewhere it says nothing, and the callers' answers get coarser, not wrong.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use rustix::process::Pid;

pub(crate) use linux::{pids, stat};

/// What the table says of one process.
pub(crate) struct Stat {
    /// Whether it only waits to be reaped.
    pub(crate) is_dead: bool,
    /// Who started it, or whoever took it over since; 0 where that is outside this namespace.
    pub(crate) parent: i32,
    /// Its group.
    pub(crate) group: i32,
    /// Its session.
    pub(crate) session: i32,
    /// When the kernel started it, in clock ticks since boot.
    pub(crate) start_time: u64,
}

/// When the kernel started `pid`, in clock ticks since boot; 0 when unknown.
pub(crate) fn start_time(pid: Pid) -> u64 {
    stat(pid.as_raw_nonzero().get()).map_or(0, |stat| stat.start_time)
}

/// Whether this process leads its session; `false` where the table cannot be read.
///
/// The table is asked and not the system call: a session or group whose leader lives outside this namespace of pids has the
/// number 0, which no pid type can hold.
pub(crate) fn leads_session() -> bool {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    stat(own).is_some_and(|stat| stat.session == own)
}

/// The members of a group that are not dead; `None` where the table cannot be read.
pub(crate) fn living_members(group: Pid) -> Option<Vec<i32>> {
    all(|stat| !stat.is_dead && stat.group == group.as_raw_nonzero().get())
}

/// The processes of which the table says this; `None` where it cannot be read.
fn all(wanted: impl Fn(&Stat) -> bool) -> Option<Vec<i32>> {
    Some(pids()?.filter(|pid| stat(*pid).is_some_and(|stat| wanted(&stat))).collect())
}

/// All children of this process, dead ones included.
pub(crate) fn children() -> Vec<Pid> {
    let found = linux::own_children().or_else(|| {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        all(|stat| stat.parent == own)
    });
    found.unwrap_or_default().into_iter().filter_map(Pid::from_raw).collect()
}

/// Whether a process is not dead and was started with this variable, `NAME=value`; `false` where that cannot be seen.
pub(crate) fn lives_with(pid: Pid, variable: &OsStr) -> bool {
    let pid = pid.as_raw_nonzero().get();
    stat(pid).is_some_and(|stat| !stat.is_dead)
        && std::fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|text| text.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes()))
}

/// What the kernel is known by since the machine was started; `None` where it does not say.
pub(crate) fn boot_id() -> Option<String> {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(read.trim().to_owned()).filter(|id| !id.is_empty())
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;

    use super::Stat;

    /// What the table says of a process, while there is one of this number.
    pub(crate) fn stat(pid: i32) -> Option<Stat> {
        parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Fields follow the last `)`, because the program's name in front of it may contain anything.
    pub(crate) fn parse(text: &[u8]) -> Option<Stat> {
        let name_end = memchr::memrchr(b')', text)?;
        let rest = std::str::from_utf8(text.get(name_end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        let session = fields.next()?.parse().ok()?;
        // Field 22 of the line; the four above are 3 to 6.
        let start_time = fields.nth(15)?.parse().ok()?;
        Some(Stat { is_dead: matches!(state, "Z" | "X" | "x"), parent, group, session, start_time })
    }

    /// Every process there is; `None` where the table cannot be read.
    pub(crate) fn pids() -> Option<impl Iterator<Item = i32>> {
        let entries = fs::read_dir("/proc").ok()?;
        Some(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
    }

    /// Children of every thread; adopted ones fall to any of them. `None` on kernels built without this file.
    pub(crate) fn own_children() -> Option<Vec<i32>> {
        let mut found = Vec::new();
        for task in fs::read_dir("/proc/self/task").ok()? {
            // A thread may end while we look; its children are then another one's, seen at the next look.
            let Ok(text) = fs::read_to_string(task.ok()?.path().join("children")) else {
                if fs::exists("/proc/thread-self/children").unwrap_or(false) {
                    continue;
                }
                return None;
            };
            found.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        Some(found)
    }
}

#[cfg(not(target_os = "linux"))]
mod linux {
    use super::Stat;

    pub(crate) fn stat(_pid: i32) -> Option<Stat> {
        None
    }

    pub(crate) fn pids() -> Option<impl Iterator<Item = i32>> {
        None::<std::iter::Empty<i32>>
    }

    pub(crate) fn own_children() -> Option<Vec<i32>> {
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let line = b"42 (a) S 1 2 (x) Z 7 9 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 123456 0 0";
        let stat = linux::parse(line).unwrap();
        assert!(stat.is_dead);
        assert_eq!((stat.parent, stat.group, stat.session, stat.start_time), (7, 9, 1, 123_456));
        for torn in [&b""[..], b"42 (a", b"42 (a)", b"42 (a) S 1 2"] {
            assert!(linux::parse(torn).is_none());
        }
    }

    #[test]
    fn our_own_start_time_is_known() {
        assert!(start_time(rustix::process::getpid()) > 0);
    }
}
