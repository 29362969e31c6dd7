//! What the program says to whoever started it: its output on stdout, its own words on stderr.
//!
//! Owns: every byte of a command on either stream, what a terminal may be shown of it, and what becomes of a command whose
//! output is lost. May not know: commands. `mcp serve` and the processes it starts write to stdout by themselves.
//!
//! Invariants: (1) nothing here panics, whatever the streams are; (2) the first write that fails is the last one, and decides
//! the exit code: [`CLOSED`] and no word where the reader has gone, 1 and a sentence for everything else; (3) a terminal is
//! shown no character it would obey, but line ends, tabs, the colours of a [`Line`] and what takes a [`draw`]n view away
//! again; a pipe or a file gets the bytes as they are; (4) nothing is written into a view: it is taken away first.

use std::borrow::Cow;
use std::io::{self, IsTerminal};
use std::os::fd::BorrowedFd;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use phone_opus::internals::base::lenient;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, write};
use rustix::stdio::{stderr, stdout};
use rustix::termios::tcgetwinsize;
use serde_json::{Value, json};

use crate::screen::layout::{self, prose};
use crate::screen::{Face, Line};

/// The exit code when whoever read the output has gone: what a shell says of a program that SIGPIPE ended.
const CLOSED: u8 = 141;

/// The version of what `--json` prints: raised when a member goes, or comes to mean something else.
pub(crate) const JSON_VERSION: u64 = 1;

/// The first write to stdout that failed.
static LOST: OnceLock<Errno> = OnceLock::new();

/// Rows of the view that stands at the end of the terminal, under the lock of whoever writes there.
static VIEW: Mutex<usize> = Mutex::new(0);

/// What stdout shows, and to whom.
pub(crate) fn out() -> Face {
    face(stdout(), io::stdout().is_terminal())
}

/// What stderr shows, and to whom.
pub(crate) fn err() -> Face {
    face(stderr(), io::stderr().is_terminal())
}

fn face(of: BorrowedFd<'_>, terminal: bool) -> Face {
    let size = || tcgetwinsize(of).map_or((0, 0), |size| (size.ws_col, size.ws_row));
    Face::of(terminal.then(size), |name| std::env::var_os(name))
}

/// Output of a command: a line, or several. Says nothing when the output is lost; [`is_lost`] tells.
pub(crate) fn print(text: &str) {
    let terminal = io::stdout().is_terminal();
    put(format!("{}\n", as_shown(text, terminal)), terminal);
}

/// The same in sentences: on a terminal broken at words.
pub(crate) fn print_prose(text: &str) {
    let face = out();
    if face.terminal { print_lines(&prose(text, face.width)) } else { print(text) }
}

/// The same in lines that are laid out.
pub(crate) fn print_lines(lines: &[Line]) {
    let face = out();
    put(rendered(lines, face.colour), face.terminal);
}

/// A command's output for a program: one object on one line, with the version of what its members mean.
pub(crate) fn print_json(mut object: Value) {
    if let Value::Object(members) = &mut object {
        members.insert("version".to_owned(), json!(JSON_VERSION));
    }
    print(&object.to_string());
}

fn put(text: String, terminal: bool) {
    if is_lost() {
        return;
    }
    let mut view = view();
    if terminal {
        take_away(&mut view);
    }
    if let Err(error) = write_all(stdout(), text.as_bytes()) {
        let _ = LOST.set(error);
    }
}

/// Whether some of the output could not be written. Then an answer was not read.
pub(crate) fn is_lost() -> bool {
    LOST.get().is_some()
}

/// One line on stderr, or several; on a terminal broken at words. Where nobody reads it, nobody needs it.
pub(crate) fn say(text: &str) {
    let face = err();
    if face.terminal { say_lines(&prose(text, face.width)) } else { tell(format!("{text}\n").as_bytes()) }
}

/// The same in lines that are laid out.
pub(crate) fn say_lines(lines: &[Line]) {
    tell(rendered(lines, err().colour).as_bytes());
}

fn tell(bytes: &[u8]) {
    let mut view = view();
    take_away(&mut view);
    let _ = write_all(stderr(), bytes);
}

/// A line on the terminal that the next one replaces. The text is our own.
pub(crate) fn say_over(text: &str) {
    let _ = write_all(stderr(), format!("\r\x1b[K{text}").as_bytes());
}

/// Shows lines at the end of the terminal, in the place of those that stood there. Each has to fit into a row. Only where
/// stderr's terminal can go back ([`Face::moves`]).
pub(crate) fn draw(lines: &[Line]) {
    let mut view = view();
    let mut text = away(*view);
    let colour = err().colour;
    let rows: Vec<String> = lines.iter().map(|line| line.rendered(colour)).collect();
    text.push_str(&rows.join("\n"));
    *view = lines.len();
    let _ = write_all(stderr(), text.as_bytes());
}

/// Takes away what [`draw`] has shown.
pub(crate) fn erase() {
    take_away(&mut view());
}

fn view() -> MutexGuard<'static, usize> {
    // Whoever panicked with it has written its bytes or has not; the count is right enough for a screen.
    VIEW.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take_away(view: &mut usize) {
    let away = away(std::mem::take(view));
    if !away.is_empty() {
        let _ = write_all(stderr(), away.as_bytes());
    }
}

/// What takes so many rows away, the cursor being in the last one.
fn away(rows: usize) -> String {
    match rows {
        0 => String::new(),
        1 => "\r\x1b[J".to_owned(),
        rows => format!("\r\x1b[{}A\x1b[J", rows - 1),
    }
}

fn rendered(lines: &[Line], colour: bool) -> String {
    lines.iter().map(|line| line.rendered(colour) + "\n").collect()
}

/// Logged lines on stderr.
pub(crate) fn log(lines: &[u8]) {
    if io::stderr().is_terminal() {
        tell(lenient::visible(&String::from_utf8_lossy(lines)).as_bytes());
    } else {
        tell(lines);
    }
}

/// The command line's help, its version, or what is wrong with its words, and the code for it.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let plain = error.render().to_string();
    // Words of a command line can come from anywhere.
    let harmless = matches!(lenient::visible(&plain), Cow::Borrowed(_));
    let face = err();
    if error.use_stderr() && face.terminal && plain.lines().any(|line| layout::width(line) > face.width) {
        // Help is as wide as there is room; what is wrong is not.
        say_lines(&prose(&plain, face.width));
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    let shown = |face: Face| {
        if face.colour && harmless {
            error.render().ansi().to_string()
        } else {
            as_shown(&plain, face.terminal).into_owned()
        }
    };
    if error.use_stderr() {
        let _ = write_all(stderr(), shown(err()).as_bytes());
    } else if let Err(error) = write_all(stdout(), shown(out()).as_bytes()) {
        let _ = LOST.set(error);
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
