//! The doors of a system, whoever watches them at the moment.
//!
//! Owns: each door's loop while nobody has borrowed it. May not know: what comes in, supervision. It belongs to the system, so
//! that it outlives every actor but the root.
//!
//! Invariant: the lock is held for a look or an insertion, never across anything that waits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use super::stream::StreamDoor;
use super::unix::{DoorEvent, ListeningSocket, UnixDoor};
use crate::actors::connections::Connections;
use crate::actors::current::Current;
use crate::actors::kept::Kept;
use crate::actors::sessions::messages::SessionsMsg;
use crate::base::fault::Fault;
use crate::base::ids::DoorNumber;
use crate::failpoints::Faults;

/// What a door opens connections with.
#[derive(Clone)]
pub struct Entrance {
    /// The connections.
    pub connections: Connections,
    /// Who has them served.
    pub sessions: Current<SessionsMsg>,
    /// Fault plan.
    pub faults: Faults,
}

/// A door, with everything it works with.
pub(crate) enum DoorLoop {
    /// Of one stream.
    Stream(StreamDoor),
    /// Of a listening socket.
    Unix(Box<UnixDoor>),
}

impl DoorLoop {
    /// Lets in whoever comes, until the door is closed.
    ///
    /// # Cancel safety
    ///
    /// Safe: everything is in `self`, and another run goes on with it.
    pub(super) async fn run(&mut self, entrance: &Entrance) -> Result<(), Fault> {
        match self {
            Self::Stream(door) => door.run(entrance).await,
            Self::Unix(door) => door.run(entrance).await,
        }
    }
}

struct OpenDoor {
    kept: Arc<Kept<DoorLoop>>,
    /// The way to speak to it, where there is anything to say.
    events: Option<mpsc::UnboundedSender<DoorEvent>>,
}

#[derive(Default)]
struct OpenDoors {
    next: u64,
    doors: BTreeMap<DoorNumber, OpenDoor>,
    /// Passed on by another image, until somebody has a desk for them.
    awaited: Vec<ListeningSocket>,
}

/// The doors. Cheap to clone.
#[derive(Clone, Default)]
pub struct DoorTable {
    open: Arc<Mutex<OpenDoors>>,
}

impl DoorTable {
    fn open_ones(&self) -> MutexGuard<'_, OpenDoors> {
        // Nothing that can panic leaves it half changed.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a door in, with the way to speak to it; the supervisor has to be told to watch it.
    pub(crate) fn open(&self, door: DoorLoop, events: Option<mpsc::UnboundedSender<DoorEvent>>) -> DoorNumber {
        let mut open = self.open_ones();
        let number = DoorNumber(open.next);
        open.next += 1;
        open.doors.insert(number, OpenDoor { kept: Kept::new(door), events });
        number
    }

    /// Takes in a socket that another image passed on.
    pub(crate) fn inherit(&self, socket: ListeningSocket) {
        self.open_ones().awaited.push(socket);
    }

    /// The sockets that were passed on, each once.
    pub(crate) fn passed(&self) -> Vec<ListeningSocket> {
        std::mem::take(&mut self.open_ones().awaited)
    }

    /// The ways to those doors that another image can go on with.
    pub(crate) fn lasting(&self) -> Vec<mpsc::UnboundedSender<DoorEvent>> {
        self.open_ones().doors.values().filter_map(|door| door.events.clone()).collect()
    }

    /// The numbers of all doors, oldest first.
    #[must_use]
    pub fn numbers(&self) -> Vec<DoorNumber> {
        self.open_ones().doors.keys().copied().collect()
    }

    /// The loop of a door, to be borrowed; `None` when it is closed.
    pub(super) fn door(&self, number: DoorNumber) -> Option<Arc<Kept<DoorLoop>>> {
        self.open_ones().doors.get(&number).map(|door| Arc::clone(&door.kept))
    }

    /// A door is closed.
    pub(super) fn over(&self, number: DoorNumber) {
        let door = self.open_ones().doors.remove(&number);
        drop(door.map(|door| door.kept.finish()));
    }

    /// Closes all of them at once; nobody who waits is told.
    pub(in crate::actors) fn abandon(&self) {
        for number in self.numbers() {
            self.over(number);
        }
    }

    /// Closes what nobody watches any more. Who waits at a socket is told that there is nobody.
    pub(super) async fn close_all(&self) {
        for number in self.numbers() {
            if let Some(door) = self.door(number)
                && let Some(mut lent) = door.lend().await
                && let Some(DoorLoop::Unix(unix)) = lent.get()
            {
                unix.turn_all_away();
            }
            self.over(number);
        }
    }
}
