//! Everything that is tried from outside, in one program, so that it is linked once.
//!
//! Owns: the list of modules, by subject. A test that has to have a process to itself (exit of any child, open descriptors)
//! starts this program again with its own name, or is a file of its own beside this folder and says why in its head.
//! `cargo test --test it jobs::custody` runs one module.

mod bridge;
mod daemon;
mod dashboard;
mod doors;
mod embedding;
mod exec;
mod exec_consult;
mod failpoints;
mod fleet;
mod front;
mod jobs;
mod kit;
#[path = "../../src/fleet/postgres/tests/server.rs"]
#[expect(clippy::expect_used, clippy::panic, reason = "helpers of tests")]
#[expect(dead_code, reason = "the library's own tests use the rest")]
mod private_postgres;
mod program;
mod protocol;
mod supervision;
mod traces;
mod upgrades;
