//! What a process that a host started does to itself before it does anything else.
//!
//! Owns: what it takes over from whoever started it (descriptors, the mask of signals), that others may not look into it, which
//! signals it hears without heeding them, its runtime. May not know: what it does then.
//!
//! ```text
//!             TERM   HUP    INT QUIT USR1 USR2, ALRM and the like, XFSZ
//! worker      ends   -      -
//! runner      ends   looks  - (USR1 is its own: the bell of a queued cancel)
//! ```
//!
//! Invariants: (1) a signal that is sent to all of us by our name costs nobody an answer but where it asks for the end; (2) an
//! agent gets none of this: each begins as a shell would have started it.

use std::error::Error;
use std::io::{self, Write as _};

use nix::libc;
use tokio::signal::unix::{SignalKind, signal};

use super::Duty;
use crate::base::{descriptors, lenient, signals};

/// The exit code of a process that did not begin: its words, its plan of faults or its runtime could not be had.
pub(super) const REFUSED: u8 = 2;

/// Set for whoever wants to trace, debug or sample a process of ours as its own user.
const DUMPABLE_VARIABLE: &str = "PHONE_OPUS_DUMPABLE";

/// One sentence on stderr.
pub(super) fn say_error(error: &dyn Error) {
    say(&format!("phone-opus: {error}"));
}

/// The same in these words. Where nobody reads it, nobody needs it.
pub fn say(words: &str) {
    let line = format!("{}\n", lenient::visible(words));
    let _ = io::stderr().write_all(line.as_bytes());
}

/// One line on stdout, for whoever started this process to be told so.
pub fn tell(line: &str) {
    let _ = io::stdout().write_all(format!("{line}\n").as_bytes());
}

/// Makes this process its own. On the first thread, before anything is opened or started.
pub(super) fn begin(duty: Duty) {
    signals::let_through();
    match duty {
        // It is given its three streams, and lives longer than whoever gave it more by mistake.
        Duty::Runner | Duty::Waiting => descriptors::close_foreign(),
        // A server gave it its streams and starts it while a call waits; it starts nothing itself.
        Duty::Worker => {}
        // An agent like any other.
        Duty::OfflineAgent => return,
    }
    keep_others_out();
}

/// Whoever runs as the same user may not read our memory and environment: an agent we withhold a key from is such a
/// process. It also keeps prompts out of core dumps.
pub fn keep_others_out() {
    #[cfg(target_os = "linux")]
    if std::env::var_os(DUMPABLE_VARIABLE).is_none_or(|value| value != "1") {
        let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    }
}

/// Signals without a meaning for any process of ours whose default is to end it.
const MEANINGLESS: &[i32] = &[
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    #[cfg(target_os = "linux")]
    libc::SIGPWR,
    #[cfg(target_os = "linux")]
    libc::SIGSTKFLT,
    // A limit of processor time that was reached: the kernel's own limit, past which it kills, is the one that counts.
    libc::SIGXCPU,
    // A file that may not grow: the write fails, and whoever wrote it says so.
    libc::SIGXFSZ,
];

/// What none of our processes heeds.
#[must_use]
pub fn unheeded_everywhere() -> &'static [i32] {
    MEANINGLESS
}

/// What it hears and does not heed besides. What it heeds has handlers of its own; the rest does what it does by default.
fn unheeded(duty: Duty) -> &'static [i32] {
    use libc::{SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2};
    match duty {
        Duty::Worker => &[SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2],
        Duty::Runner | Duty::Waiting => &[SIGINT, SIGQUIT, SIGUSR2],
        Duty::OfflineAgent => &[],
    }
}

/// Hears these, and what no process of ours heeds, so that they do not end this one. In a runtime; its children begin with the
/// defaults again.
///
/// # Errors
///
/// The system refuses a handler.
pub fn ignore(unheeded: &[i32]) -> io::Result<()> {
    for number in unheeded.iter().chain(MEANINGLESS) {
        // The runtime never takes a handler away again, so nobody needs to listen.
        drop(signal(SignalKind::from_raw(*number))?);
    }
    Ok(())
}

/// The same for what it was started for.
pub(super) fn ignore_as(duty: Duty) -> io::Result<()> {
    ignore(unheeded(duty))
}

/// A runtime on this thread. One thread: a message between actors is then a function call away, and what blocks has a
/// thread of its own.
///
/// # Errors
///
/// What the system says.
pub fn runtime() -> io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // Signals are for the thread that waits for them: one of these would take them along when the program is replaced.
    builder.enable_all().on_thread_start(signals::leave_to_others).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duty_is_deaf_to_what_the_others_heed() {
        use libc::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU, SIGXFSZ};
        // What it heeds by a handler of its own, or by ending.
        let heeded = [
            (Duty::Worker, &[SIGTERM][..]),
            (Duty::Runner, &[SIGTERM, SIGHUP, SIGUSR1]),
            (Duty::Waiting, &[SIGTERM, SIGHUP, SIGUSR1]),
        ];
        for (duty, heeded) in heeded {
            for signal in [SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGALRM, SIGXFSZ, SIGXCPU] {
                let ignores = unheeded(duty).contains(&signal) || MEANINGLESS.contains(&signal);
                assert!(
                    heeded.contains(&signal) != ignores,
                    "{duty:?} and signal {signal}: one of the two, and only one"
                );
            }
        }
    }
}
