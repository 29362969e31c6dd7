//! What a daemon that was killed has left: its record, and its socket.
//!
//! Owns: whether that is so, and taking it away. May not know: who asks. The next daemon replaces both by itself; until then clients
//! look where nobody is.
//!
//! Invariant: nothing goes but what the record of a daemon of this machine names, by device and inode, where nobody listens and
//! nobody holds the lock, which is held meanwhile (L18).

use super::listener::SocketPlace;
use super::lock::DaemonLock;
use super::reach::{self, Reached};
use super::record::DaemonRecord;
use crate::base::state_dir::StateDir;
use crate::jobs::lock::LockError;

/// What a dead daemon left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonLeft {
    record: DaemonRecord,
    /// Its socket, where it lies there still.
    socket: Option<SocketPlace>,
}

impl DaemonLeft {
    /// What is left in this directory. Makes nothing.
    #[must_use]
    pub fn look(dir: &StateDir) -> Option<Self> {
        // What cannot be looked at, or is of another machine, may live.
        if DaemonLock::is_held(dir).unwrap_or(true) {
            return None;
        }
        let record = DaemonRecord::read(dir).ok()??;
        let place = SocketPlace { path: record.socket(), device: record.device, inode: record.inode };
        // A service manager's socket outlives the daemons that it starts.
        let socket = matches!(reach::connect(&place.path), Reached::Absent) && place.is_there();
        Some(Self { record, socket: socket.then_some(place) })
    }

    /// Its socket, where it lies there still.
    #[must_use]
    pub fn socket(&self) -> Option<&SocketPlace> {
        self.socket.as_ref()
    }

    /// Takes it away. False where a daemon has come meanwhile, or something else has changed.
    ///
    /// # Errors
    ///
    /// The lock cannot be taken.
    pub fn clear(&self, dir: &StateDir) -> Result<bool, LockError> {
        // Nobody starts one while it is held.
        let Some(_held) = DaemonLock::try_acquire(dir)? else { return Ok(false) };
        if !DaemonRecord::read(dir).is_ok_and(|found| found.as_ref() == Some(&self.record)) {
            return Ok(false);
        }
        if let Some(place) = &self.socket
            && matches!(reach::connect(&place.path), Reached::Absent)
        {
            place.unlink();
        }
        DaemonRecord::forget(self.record.generation, dir);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::listener::Listener;
    use super::*;
    use crate::base::ids::DaemonId;

    fn state() -> (tempfile::TempDir, StateDir) {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let dir = StateDir::at(scratch.path().join("state"));
        dir.create().expect("a state directory");
        (scratch, dir)
    }

    #[test]
    fn what_a_killed_daemon_left_goes_and_nothing_of_a_living_one() {
        let (_scratch, dir) = state();
        assert_eq!(DaemonLeft::look(&dir), None, "there was none");
        let listener = Listener::bind(&dir.daemon_socket()).expect("a socket");
        let place = listener.place().clone();
        DaemonRecord::of_this(DaemonId::random(), &place).write(&dir).expect("written");
        let held = DaemonLock::try_acquire(&dir).expect("tried").expect("free");
        assert_eq!(DaemonLeft::look(&dir), None, "it lives");
        // Somebody listens, whoever that is: the socket stays.
        drop(held);
        let left = loop {
            // A child that another test has forked shares the lock until it becomes its program.
            match DaemonLeft::look(&dir) {
                Some(left) => break left,
                None => std::thread::yield_now(),
            }
        };
        assert_eq!(left.socket(), None);
        drop(listener);
        let left = DaemonLeft::look(&dir).expect("it is left");
        assert_eq!(left.socket(), Some(&place));
        // Another daemon has come and gone meanwhile.
        let other = DaemonRecord::of_this(DaemonId::random(), &place);
        other.write(&dir).expect("written");
        assert!(!left.clear(&dir).expect("tried"));
        assert!(place.is_there() && DaemonRecord::read(&dir).is_ok_and(|found| found == Some(other)));
        let left = DaemonLeft::look(&dir).expect("it is left");
        assert!(left.clear(&dir).expect("tried"));
        assert!(!place.is_there() && !dir.daemon_record().exists());
        assert_eq!(DaemonLeft::look(&dir), None);
    }
}
