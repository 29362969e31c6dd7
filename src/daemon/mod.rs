//! The daemon of a state directory: one process that many clients share.
//!
//! Owns: what is true of a daemon whichever process looks: who holds its lock, where it listens, how it is reached, who may
//! come in, what is said beside JSON-RPC, whose environment a consult gets, when it may end by itself. May not know: actors,
//! sessions, the command line.
//!
//! ```text
//! start   lock ─▶ bind under a passing name ─▶ 0600 ─▶ listen ─▶ rename over the old path ─▶ record
//! stop    unlink (ours only) ─▶ answer who waits at the door ─▶ close ─▶ forget the record ─▶ unlock ─▶ drain
//! client  record ─▶ connect; only "no such file" and "refused" mean that there is no daemon
//! ```
//!
//! Invariants: (1) a daemon lives exactly while its lock is held; no pid and no file decides it (L18); (2) nothing is
//! unlinked or replaced that is not proven ours; (3) whoever comes in has our user id by the kernel's word; (4) what one
//! client sends of its environment reaches its own consults and nothing else (L17).

pub mod apart;
pub mod ask;
pub mod context;
pub mod control;
pub mod idle;
pub mod left;
pub mod life;
pub mod lock;
pub mod record;
pub mod start;

pub use crate::base::socket::{accept, listener, paths, peer, reach};

/// The version of what is said beside JSON-RPC: of `session_open`, and of the record. `hello`, `status` and `shutdown` are
/// the same in all versions.
pub const PROTOCOL: u32 = 1;
