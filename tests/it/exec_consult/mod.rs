//! Consults whose agent runs behind an exec server: on the real binary, over a Unix socket, a WebSocket and a child's streams.
//!
//! Owns: what such a consult promises (docs/exec.md). May not know: how the wire between the two is spoken (`exec`).
//!
//! The other machine is this one: its server is started in the same world, so whatever is left alive on either side is seen. Only
//! where `/proc` shows who is alive.
//!
//! Laws: L3, L4, L7, L13, L17.

#![cfg(target_os = "linux")]

mod answers;
mod cuts;
mod kills;
mod kit;
#[cfg(feature = "tls")]
mod proven;
mod tokens;
