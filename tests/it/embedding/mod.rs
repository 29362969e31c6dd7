//! The library as another program has it: typed sessions, jobs followed event by event, a foreign tree, many systems.
//!
//! Owns: the list.

mod ends;
mod programs;
mod sessions;
mod time;
mod trees;
mod two_systems;

use phone_opus::testkit::{Rig, tried_program};

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}
