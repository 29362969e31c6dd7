//! What a service manager passes on, and is told.
//!
//! Owns: the socket of systemd or launchd, what systemd is told about the daemon, how a daemon ends that was started for a client
//! and cannot serve. May not know: what is served.
//!
//! Invariants: (1) a socket that was passed on is a listening Unix socket, checked, and closes on `exec`; its name is never bound,
//! changed or taken away here; (2) a daemon that cannot serve answers whoever waits and ends slowly: one that ended at once would
//! be started again at once, until the service manager gives up on the socket for good; (3) what was meant for this process
//! reaches none of its children.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::fd::{AsFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use phone_opus::internals::base::descriptors;
use phone_opus::internals::daemon::control::ControlRefusal;
use phone_opus::internals::daemon::listener::{ListenError, Listener};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sd_notify::NotifyState;

/// How long a daemon that cannot serve lives. systemd takes more than 20 starts in two seconds for a reason to stop trying.
const SLOWLY: Duration = Duration::from_secs(5);

/// Variables for this process alone.
const OURS: [&str; 6] =
    ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// Whether a variable is for this process alone.
pub(super) fn is_ours(name: &OsStr) -> bool {
    OURS.iter().any(|ours| name == *ours)
}

/// Whether a variable speaks of descriptors that were passed on, which only the process it was made for has.
pub(super) fn is_of_descriptors(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"LISTEN_")
}

/// The numbers of the descriptors that were passed on. Before anything is opened.
pub(super) fn numbers() -> Vec<RawFd> {
    match sd_notify::listen_fds() {
        Ok(passed) => passed.collect(),
        Err(error) => {
            tracing::warn!(%error, "what was passed on by the service manager cannot be used");
            Vec::new()
        }
    }
}

/// The socket among what was passed on, where something was. Once, before anything else is opened.
pub(super) fn socket(numbers: &[RawFd]) -> Option<Result<Listener, ListenError>> {
    let taken: Vec<_> = numbers.iter().filter_map(|number| descriptors::take_passed(*number)).collect();
    #[cfg(target_os = "macos")]
    let taken = if taken.is_empty() { launchd() } else { taken };
    if taken.len() > 1 {
        tracing::warn!(count = taken.len(), "several sockets were passed on; the first one is listened at");
    }
    // What is not used closes here: whoever passed it on has it as well.
    taken.into_iter().next().map(Listener::passed)
}

/// The socket of our property list. Asked for once: a second time is an error, also for the next image of this process.
#[cfg(target_os = "macos")]
fn launchd() -> Vec<std::os::fd::OwnedFd> {
    let passed = raunch::activate_socket("phone-opus").unwrap_or_default();
    passed.into_iter().filter_map(descriptors::take_passed).collect()
}

/// Tells systemd. Where it does not listen, nobody needs to know.
pub(super) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

/// How often systemd wants a sign of life, where it does: twice in the time after which it takes us for stuck.
pub(super) fn sign_of_life() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// Answers whoever connects with the reason why nobody is served, for five seconds, and ends well.
pub(super) fn end_slowly(listener: &Listener, why: &str) -> ExitCode {
    let line = format!("{}\n", ControlRefusal::new("start", why).line());
    let until = Instant::now() + SLOWLY;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return ExitCode::SUCCESS;
        }
        let wait =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(0), tv_nsec: i64::from(left.subsec_nanos()) };
        let waited = poll(&mut [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)], Some(&wait));
        match waited.and_then(|_| rustix::net::accept(listener.as_fd())) {
            Ok(client) => {
                let mut client = UnixStream::from(client);
                // It fits into what a socket takes at once; who does not read is not waited for.
                let _ = client.set_nonblocking(true).and_then(|()| client.write_all(line.as_bytes()));
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
            // Nobody can be answered; the end comes as slowly.
            Err(_) => std::thread::sleep(left.min(Duration::from_millis(100))),
        }
    }
}
