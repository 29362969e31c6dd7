//! `floor2`: the least a server can do whose tools run in another process. The yardstick of the rows O1 to O12.
//!
//! ```text
//! client ─▶ host thread ── tools/call lines, unchanged ─▶ child: a floor
//!    ◀── replies to the rest ──┘                              │
//!    ◀────────── relay thread ◀────── replies, unchanged ─────┘
//! ```
//!
//! Owns: two threads and a child.
//! May not know: which call a reply is for, that a child can die: it starts no other.
//! Invariants:
//! 1. Each line is parsed once on its way in, for its id and method, and once on its way out, for nothing but that it is
//!    JSON; both go on as they came.
//! 2. Each batch is one write; whole batches take turns on standard output.
//! 3. Neither thread reads while what it has collected is unwritten.

#[path = "common/lines.rs"]
mod lines;

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};

use lines::{Answering, Lines, answer, max_line, pump, too_long, write_all};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

/// What it is called with when it is the child.
const CHILD: &str = "child";

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, rename = "id")]
    _id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
}

/// The way in.
struct Host<'a> {
    child: ChildStdin,
    stdout: &'a Mutex<()>,
    calls: Vec<u8>,
    replies: Vec<u8>,
}

impl Lines for Host<'_> {
    fn line(&mut self, line: &[u8]) {
        match serde_json::from_slice::<Head<'_>>(line) {
            Ok(Head { method: Some(method), .. }) if method == "tools/call" => {
                self.calls.extend_from_slice(line);
                self.calls.push(b'\n');
            }
            _ => answer(line, &mut self.replies),
        }
    }

    fn too_long(&mut self) {
        too_long(&mut self.replies);
    }

    fn written(&mut self) -> io::Result<()> {
        write_all(&self.child, &self.calls)?;
        self.calls.clear();
        relay(self.stdout, &mut self.replies)
    }
}

/// The way out.
struct Relay<'a> {
    stdout: &'a Mutex<()>,
    replies: Vec<u8>,
}

impl Lines for Relay<'_> {
    fn line(&mut self, line: &[u8]) {
        // All fields are skipped; what is no JSON is not for a client.
        if serde_json::from_slice::<IgnoredAny>(line).is_ok() {
            self.replies.extend_from_slice(line);
            self.replies.push(b'\n');
        }
    }

    fn too_long(&mut self) {}

    fn written(&mut self) -> io::Result<()> {
        relay(self.stdout, &mut self.replies)
    }
}

fn relay(stdout: &Mutex<()>, replies: &mut Vec<u8>) -> io::Result<()> {
    if replies.is_empty() {
        return Ok(());
    }
    let turn = stdout.lock().unwrap_or_else(PoisonError::into_inner);
    write_all(rustix::stdio::stdout(), replies)?;
    drop(turn);
    replies.clear();
    Ok(())
}

fn main() -> ExitCode {
    let done = if std::env::args().nth(1).as_deref() == Some(CHILD) {
        pump(rustix::stdio::stdin(), max_line(), &mut Answering::to(rustix::stdio::stdout()))
    } else {
        host()
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn host() -> io::Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg(CHILD)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("the child has no pipes"));
    };
    let from = File::from(OwnedFd::from(from));
    let max_line = max_line();
    let stdout = Mutex::new(());
    let mut host = Host { child: to, stdout: &stdout, calls: Vec::new(), replies: Vec::new() };
    let done = std::thread::scope(|scope| {
        let relaying = scope
            .spawn(|| pump(&from, max_line.saturating_mul(2), &mut Relay { stdout: &stdout, replies: Vec::new() }));
        let done = pump(rustix::stdio::stdin(), max_line, &mut host);
        // The child's input ends here; it leaves, and the relay with it.
        drop(host);
        relaying.join().unwrap_or_else(|_| Err(io::Error::other("the relay failed"))).and(done)
    });
    child.wait()?;
    done
}
