//! What an accept loop does next.
//!
//! Owns: which failures mean "again", which mean "later", which mean that the socket is no socket, and how long later is.
//! May not know: the socket. The loop around it accepts, serves and sleeps.
//!
//! ```text
//! accepted ─▶ serve                        ECONNABORTED, EINTR, EPROTO … ─▶ at once again: that client is gone
//! EMFILE, ENFILE, ENOBUFS, ENOMEM ─▶ refuse one on the spare descriptor, then 100 ms … 5 s of rest
//! EBADF, ENOTSOCK, EINVAL … ─▶ the door is broken: its supervisor makes another
//! ```
//!
//! Invariants: (1) no failure makes the loop spin: what does not go away by itself is waited for; (2) no failure of one
//! client ends the door.

use std::time::{Duration, Instant};

use rustix::io::Errno;

/// The first rest when there is no descriptor or no memory to be had.
const REST: Duration = Duration::from_millis(100);

/// The longest rest: a client that finds the door full waits no longer than this once it is not.
const REST_MOST: Duration = Duration::from_secs(5);

/// After so long without want the next want counts as the first.
const SETTLED: Duration = Duration::from_secs(10);

/// What the system said to an accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// There is a client.
    Client,
    /// There is none, because of this.
    Failed(Errno),
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Serve it, and accept the next.
    Serve,
    /// Accept the next.
    Again,
    /// Tell one client that there is no room, with the descriptor that is kept for that, and rest.
    Rest(Duration),
    /// The socket cannot be used any more.
    Broken(Errno),
}

/// The accept loop's memory.
#[derive(Debug, Clone, Default)]
pub struct Accepting {
    /// The rest that was taken last, and when.
    rested: Option<(Duration, Instant)>,
}

impl Accepting {
    /// One step.
    pub fn step(&mut self, accepted: Arrival, now: Instant) -> Next {
        let Arrival::Failed(errno) = accepted else { return Next::Serve };
        match errno {
            Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => {
                let rest = match self.rested {
                    Some((rest, at)) if now.saturating_duration_since(at) < SETTLED + rest => (rest * 2).min(REST_MOST),
                    _ => REST,
                };
                self.rested = Some((rest, now));
                Next::Rest(rest)
            }
            Errno::BADF | Errno::NOTSOCK | Errno::INVAL | Errno::OPNOTSUPP | Errno::FAULT => Next::Broken(errno),
            // What the network said to one client, some systems say to whoever accepts it.
            _ => Next::Again,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_answer() {
        let at = Instant::now();
        let cases = [
            (Arrival::Client, Next::Serve),
            (Arrival::Failed(Errno::CONNABORTED), Next::Again),
            (Arrival::Failed(Errno::INTR), Next::Again),
            (Arrival::Failed(Errno::PROTO), Next::Again),
            (Arrival::Failed(Errno::PERM), Next::Again),
            (Arrival::Failed(Errno::MFILE), Next::Rest(REST)),
            (Arrival::Failed(Errno::NFILE), Next::Rest(REST)),
            (Arrival::Failed(Errno::NOBUFS), Next::Rest(REST)),
            (Arrival::Failed(Errno::NOMEM), Next::Rest(REST)),
            (Arrival::Failed(Errno::NOTSOCK), Next::Broken(Errno::NOTSOCK)),
            (Arrival::Failed(Errno::BADF), Next::Broken(Errno::BADF)),
        ];
        for (accepted, next) in cases {
            assert_eq!(Accepting::default().step(accepted, at), next, "{accepted:?}");
        }
    }

    #[test]
    fn want_that_goes_on_is_asked_about_less_and_less_often() {
        let (mut accepting, mut now) = (Accepting::default(), Instant::now());
        let mut rests = Vec::new();
        for _ in 0..8 {
            let Next::Rest(rest) = accepting.step(Arrival::Failed(Errno::MFILE), now) else { panic!("no rest") };
            rests.push(u64::try_from(rest.as_millis()).expect("short"));
            now += rest;
            // One comes through now and then, and changes nothing.
            assert_eq!(accepting.step(Arrival::Client, now), Next::Serve);
        }
        assert_eq!(rests, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        now += SETTLED + REST_MOST;
        assert_eq!(accepting.step(Arrival::Failed(Errno::MFILE), now), Next::Rest(REST), "long forgotten");
    }
}
