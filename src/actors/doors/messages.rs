//! Everything that can wake the doors' supervisor.

use crate::actors::supervision::driver::ChildNews;
use crate::base::ids::DoorNumber;

/// Everything that can wake the doors' supervisor.
#[derive(Debug)]
pub enum DoorsMsg {
    /// A door was made.
    Opened(DoorNumber),
    /// A door is closed: nothing comes in by it any more.
    Over(DoorNumber),
    /// News of a door's actor.
    Child(ChildNews<DoorNumber>),
}
