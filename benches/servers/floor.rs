//! `floor`: about the least an MCP server can do and still be one. The yardstick of `side_by_side`, and with a path in
//! `BENCH_LISTEN`, where it listens instead of reading standard input, that of `socket`.
//!
//! Owns: one thread; over a socket one for each connection.
//! May not know: validation, timeouts, concurrency, any state of a call beyond its line.
//! Invariants:
//! 1. Each line is parsed once, into borrowed slices; the echoed text is copied as it stood, escapes included.
//! 2. Replies are written when the read buffer holds no further whole line, in one write, and not before.
//! 3. No reading while replies are unwritten: a client that does not read stalls itself, and memory does not grow.

#[path = "common/lines.rs"]
mod lines;

use std::io;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use lines::{Answering, max_line, pump};

fn main() -> ExitCode {
    let served = match std::env::var_os("BENCH_LISTEN") {
        Some(path) => UnixListener::bind(path).and_then(|listener| listen(&listener)),
        None => pump(rustix::stdio::stdin(), max_line(), &mut Answering::to(rustix::stdio::stdout())),
    };
    if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Serves whoever connects, until this process is ended.
fn listen(listener: &UnixListener) -> io::Result<()> {
    loop {
        let (client, _) = listener.accept()?;
        std::thread::spawn(move || pump(&client, max_line(), &mut Answering::to(&client)));
    }
}
