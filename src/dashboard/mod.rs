//! The page: what a state directory's hosts and jobs do, in a browser and for tools.
//!
//! Owns: an HTTP server on a loopback port and on a socket of the state directory, what it shows, who may see it. May not know: the
//! tree of any host, how a job is run. It reads the store and asks a daemon as every other process does; the one thing it changes is
//! a job's end, which it asks for in the store. It never starts a consult.
//!
//! ```text
//! browser ──127.0.0.1:PORT──▶ gate ──▶ routes ──▶ desk ◀── one task that reads: store, locks, daemon, log
//! tools ───dashboard.sock───▶ peer's uid ──▶ gate ──┘
//! ```
//!
//! Deciding is apart: `gate` (who may ask what), `keys` (what a secret is worth), `feed` (what a page is sent), `picture` and
//! `metrics` (what is shown) are pure.

pub mod desk;
pub mod feed;
pub mod gate;
pub mod happened;
pub mod keys;
pub mod known;
pub mod looking;
pub mod metrics;
pub mod picture;
pub mod routes;
pub mod server;
pub mod stall;
pub mod streams;
