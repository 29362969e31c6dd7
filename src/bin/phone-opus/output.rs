//! What the program says to whoever started it: its output on stdout, its own words on stderr.
//!
//! Owns: every byte of a command on either stream, what a terminal may be shown of it, and what becomes of a command whose
//! output is lost. May not know: commands. `mcp serve` and the processes it starts write to stdout by themselves.
//!
//! Invariants: (1) nothing here panics, whatever the streams are; (2) the first write that fails is the last one, and decides
//! the exit code: [`CLOSED`] and no word where the reader has gone, 1 and a sentence for everything else; (3) a terminal is
//! shown no character it would obey, but line ends and tabs; a pipe or a file gets the bytes as they are.

use std::borrow::Cow;
use std::io::{self, IsTerminal};
use std::os::fd::BorrowedFd;
use std::process::ExitCode;
use std::sync::OnceLock;

use phone_opus::internals::base::lenient;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, write};
use rustix::stdio::{stderr, stdout};

/// The exit code when whoever read the output has gone: what a shell says of a program that SIGPIPE ended.
const CLOSED: u8 = 141;

/// The first write to stdout that failed.
static LOST: OnceLock<Errno> = OnceLock::new();

/// Output of a command: a line, or several. Says nothing when the output is lost; [`is_lost`] tells.
pub(crate) fn print(text: &str) {
    if is_lost() {
        return;
    }
    let line = format!("{}\n", as_shown(text, io::stdout().is_terminal()));
    if let Err(error) = write_all(stdout(), line.as_bytes()) {
        let _ = LOST.set(error);
    }
}

/// Whether some of the output could not be written. Then an answer was not read.
pub(crate) fn is_lost() -> bool {
    LOST.get().is_some()
}

/// One line on stderr. Where nobody reads it, nobody needs it.
pub(crate) fn say(line: &str) {
    let line = format!("{}\n", as_shown(line, io::stderr().is_terminal()));
    let _ = write_all(stderr(), line.as_bytes());
}

/// A line on the terminal that the next one replaces. The text is our own.
pub(crate) fn say_over(text: &str) {
    let _ = write_all(stderr(), format!("\r\x1b[K{text}").as_bytes());
}

/// Logged lines on stderr.
pub(crate) fn log(lines: &[u8]) {
    if io::stderr().is_terminal() {
        let _ = write_all(stderr(), lenient::visible(&String::from_utf8_lossy(lines)).as_bytes());
    } else {
        let _ = write_all(stderr(), lines);
    }
}

/// The command line's help, its version, or what is wrong with its words, and the code for it.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let plain = error.render().to_string();
    let coloured = |terminal: bool| {
        let allowed = std::env::var_os("NO_COLOR").is_none_or(|word| word.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        // Words of a command line can come from anywhere.
        let harmless = matches!(lenient::visible(&plain), Cow::Borrowed(_));
        terminal && allowed && !dumb && harmless
    };
    if error.use_stderr() {
        let terminal = io::stderr().is_terminal();
        let text =
            if coloured(terminal) { error.render().ansi().to_string() } else { as_shown(&plain, terminal).into() };
        let _ = write_all(stderr(), text.as_bytes());
    } else {
        let terminal = io::stdout().is_terminal();
        let text =
            if coloured(terminal) { error.render().ansi().to_string() } else { as_shown(&plain, terminal).into() };
        if let Err(error) = write_all(stdout(), text.as_bytes()) {
            let _ = LOST.set(error);
        }
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// The exit code of a command that ended with this one, when its output is taken into account.
pub(crate) fn ended(code: ExitCode) -> ExitCode {
    match LOST.get() {
        None => code,
        Some(&Errno::PIPE) => ExitCode::from(CLOSED),
        Some(error) => {
            say(&format!("phone-opus: the output could not be written: {}", io::Error::from(*error)));
            ExitCode::FAILURE
        }
    }
}

fn as_shown(text: &str, terminal: bool) -> Cow<'_, str> {
    if terminal { lenient::visible(text) } else { Cow::Borrowed(text) }
}

/// Writes all of it, also to a stream that somebody has made non-blocking.
fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(to, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(to, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
