//! What it means when a daemon cannot be connected to.
//!
//! Owns: which refusal says that there is no daemon, which says "in a moment", which says that this process may not. May not
//! know: who wants to connect, and what it does instead.
//!
//! Invariant: only what proves that nobody listens is taken for absence. A sandbox that forbids sockets is no absence: who
//! took it for one would put a second daemon in the place of a healthy one.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect as connect_to};

/// What came of trying to connect.
#[derive(Debug)]
pub enum Reached {
    /// Somebody listens there.
    There(OwnedFd),
    /// Nobody does: there is no socket, or one that was left behind.
    Absent,
    /// Somebody does, and has as many at the door as may wait there.
    Busy,
    /// This process may not connect there: a sandbox, or a stranger's directory. Nothing is known of a daemon.
    Denied,
    /// Something else.
    Failed(Errno),
}

/// Connects to a socket. Blocks for no longer than the system needs to say no; the stream is blocking and closes on `exec`.
#[must_use]
pub fn connect(path: &Path) -> Reached {
    let address = match SocketAddrUnix::new(path) {
        Ok(address) => address,
        Err(error) => return Reached::Failed(error),
    };
    let socket = match stream_socket() {
        Ok(socket) => socket,
        Err(error) => return Reached::Failed(error),
    };
    // A full door would be waited for without end otherwise.
    let asked = rustix::io::ioctl_fionbio(&socket, true)
        .and_then(|()| connect_to(&socket, &address))
        .and_then(|()| rustix::io::ioctl_fionbio(&socket, false));
    match asked {
        Ok(()) => Reached::There(socket),
        Err(error) => refused(error),
    }
}

/// What a refusal means.
fn refused(errno: Errno) -> Reached {
    match errno {
        Errno::NOENT | Errno::CONNREFUSED => Reached::Absent,
        Errno::AGAIN | Errno::INPROGRESS | Errno::INTR => Reached::Busy,
        Errno::ACCESS | Errno::PERM => Reached::Denied,
        errno => Reached::Failed(errno),
    }
}

/// A stream socket that closes on `exec`.
pub(super) fn stream_socket() -> rustix::io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    return rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, rustix::net::SocketFlags::CLOEXEC, None);
    #[cfg(not(target_os = "linux"))]
    {
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
        Ok(socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_proves_that_nobody_listens_is_absence() {
        let name = |reached: Reached| match reached {
            Reached::There(_) => "there",
            Reached::Absent => "absent",
            Reached::Busy => "busy",
            Reached::Denied => "denied",
            Reached::Failed(_) => "failed",
        };
        let cases = [
            (Errno::NOENT, "absent"),
            (Errno::CONNREFUSED, "absent"),
            (Errno::AGAIN, "busy"),
            (Errno::ACCESS, "denied"),
            (Errno::PERM, "denied"),
            (Errno::CONNRESET, "failed"),
            (Errno::NOTDIR, "failed"),
            (Errno::PROTOTYPE, "failed"),
            (Errno::OPNOTSUPP, "failed"),
        ];
        for (errno, expected) in cases {
            assert_eq!(name(refused(errno)), expected, "{errno:?}");
        }
    }
}
