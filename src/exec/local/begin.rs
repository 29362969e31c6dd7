//! What a child is before its program runs.
//!
//! Owns: its signals, its limit of descriptors, and what ends it when we are gone. May not know: what is started, or why.
//!
//! A program takes over what its parent was: signals that are ignored or blocked, limits, descriptors. What we do to
//! ourselves to work well (raise a limit, hear a signal), and what was done to us by whoever started us (a mask, an
//! ignored signal), is none of an agent's business, so each begins as a shell would have started it. Descriptors are not
//! closed here: those of ours are close-on-exec, and the program has made those so that it was started with.
//!
//! Invariant: everything here runs between fork and exec and makes async-signal-safe system calls only; it allocates
//! nothing, takes no lock and does not unwind.

use std::io;

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::process::Command;

/// The variable in which a program that has raised its limit of descriptors tells its runners what it was before: agents
/// are given that one.
pub const DESCRIPTORS_VARIABLE: &str = "PHONE_OPUS_DESCRIPTORS";

/// What ends a child when the thread that started it ends, however that happens. On Linux only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EndsWithUs {
    /// TERM, so that it can end in order.
    #[default]
    Asked,
    /// KILL: it has nothing to put in order.
    AtOnce,
}

/// Has the child begin as a program expects to: every signal does what it does by default and none is blocked, with this
/// soft limit of descriptors (as it is, when `None`), and tied to the calling thread.
pub(crate) fn as_a_program(command: &mut Command, ends: EndsWithUs, descriptors: Option<u64>) {
    let parent = rustix::process::getpid();
    let prepare = move || {
        default_signals()?;
        if let Some(soft) = descriptors {
            limit_descriptors(soft);
        }
        tie(parent, ends)
    };
    #[expect(unsafe_code, reason = "signals, limits and the parent-death signal can only be set by the child itself")]
    // SAFETY: `prepare` runs in the forked child on values it captured by copy; see the module's invariant.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Has the child lead a session of its own whose terminal is its standard input.
pub(super) fn with_its_terminal(command: &mut Command) {
    let prepare = || {
        rustix::process::setsid()?;
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        Ok(())
    };
    #[expect(unsafe_code, reason = "a controlling terminal can only be taken by the child itself")]
    // SAFETY: `prepare` makes two system calls and captures nothing; see the module's invariant.
    unsafe {
        command.pre_exec(prepare);
    }
}

fn default_signals() -> io::Result<()> {
    for number in Signal::iterator() {
        if matches!(number, Signal::SIGKILL | Signal::SIGSTOP) {
            continue;
        }
        #[expect(unsafe_code, reason = "an ignored signal can only be unignored by the child itself")]
        // SAFETY: it installs no handler.
        unsafe { signal(number, SigHandler::SigDfl) }.map_err(io::Error::from)?;
    }
    SigSet::empty().thread_set_mask().map_err(io::Error::from)
}

/// A limit that cannot be set is left as it is: more descriptors than asked for do no harm.
fn limit_descriptors(soft: u64) {
    let now = getrlimit(Resource::Nofile);
    let current = Some(now.maximum.map_or(soft, |hard| soft.min(hard)));
    let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum: now.maximum });
}

#[cfg(target_os = "linux")]
fn tie(parent: rustix::process::Pid, ends: EndsWithUs) -> io::Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    let by = match ends {
        EndsWithUs::Asked => Signal::TERM,
        EndsWithUs::AtOnce => Signal::KILL,
    };
    set_parent_process_death_signal(Some(by))?;
    // The parent may have gone before the line above; then nobody would ever send the signal.
    if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::from(rustix::io::Errno::SRCH)) }
}

#[cfg(not(target_os = "linux"))]
fn tie(_parent: rustix::process::Pid, _ends: EndsWithUs) -> io::Result<()> {
    Ok(())
}
