//! `floor`: about the least an MCP server over stdio can do and still be one. The yardstick of `side_by_side`.
//!
//! Owns: one thread.
//! May not know: validation, timeouts, concurrency, any state of a call beyond its line.
//! Invariants:
//! 1. Each line is parsed once, into borrowed slices; the echoed text is copied as it stood, escapes included.
//! 2. Replies are written when the read buffer holds no further whole line, in one write, and not before.
//! 3. No reading while replies are unwritten: a client that does not read stalls itself, and memory does not grow.

#[path = "common/lines.rs"]
mod lines;

use std::process::ExitCode;

use lines::{Answering, max_line, pump};

fn main() -> ExitCode {
    match pump(rustix::stdio::stdin(), max_line(), &mut Answering::new()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
