//! The protocol edge: bytes in, typed messages out, and back.
//!
//! Owns: framing, the JSON-RPC envelope, the two MCP eras, the session's state machine, every byte of a reply.
//! May not know: actors, processes, jobs, the store. Nothing here reads a clock or does I/O.
//!
//! Reading order: [`frame`] splits bytes into lines, [`scan`] walks over JSON, [`envelope`] turns a line into a message
//! with its id, [`version`], [`method`] and [`catalog`] say what is spoken and offered, [`session`] decides, [`wire`] and [`tasks`] write.

pub mod catalog;
pub mod envelope;
pub mod frame;
mod id;
pub mod method;
pub mod scan;
pub mod session;
pub mod tasks;
pub mod version;
pub mod wire;
