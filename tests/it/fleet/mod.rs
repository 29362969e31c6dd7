//! Consults that another machine answers: machines of one world, each with a state directory, an environment and agents of its own.
//!
//! Owns: what is promised of such a consult from its call to its reply (docs/fleet.md). May not know: the queue's statements, which
//! are tried in the library. The machines are one here, so that what proves a workspace is the kernel's word.
//!
//! Laws: L3, L4, L19.

#![cfg(target_os = "linux")]

mod callers;
mod caps;
mod clones;
mod exec;
mod hosting;
mod https;
mod memory;
mod processes;
mod shell;
mod storms;
mod struck;
mod tasks;
mod world;

pub(crate) use self::processes::url;
