//! What stdin brings to a consult: the prompt itself, something beside it, or nothing.
//!
//! Owns: which of the three, how long it is waited for, and how it stands in the prompt. May not know: who is asked.
//!
//! Invariants: (1) only a pipe or a plain file is read beside a prompt: a terminal is a person's, a socket or a device is
//! whoever started us; (2) a pipe into which nobody writes holds nothing up for longer than [`FIRST_BYTE`]; (3) what does not
//! fit is refused whole, and nothing is asked with half of it.

use std::io::{self, IsTerminal, Read};
use std::time::Duration;

use phone_opus::internals::agents::MAX_PROMPT_BYTES;
use phone_opus::internals::base::lenient;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::stdio::stdin;

use crate::output::say;
use crate::settings::SetupError;

/// How long a pipe may take to bring something. A program that writes into it begins sooner; one that merely left it open
/// never does.
const FIRST_BYTE: Duration = Duration::from_secs(3);

/// What stands before it in the prompt.
const HEADING: &str = "\n\n## Standard input\n\n";

/// What stdin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Terminal,
    Pipe,
    File,
    /// A socket, a device, or nothing that is open.
    Other,
}

/// How the prompt is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prompt {
    /// In words.
    Words,
    /// As `-`: it is on stdin.
    Dash,
}

/// What stdin is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Nothing,
    /// It is the prompt, and waited for however long it takes.
    Prompt,
    /// It is appended to the prompt when its first byte comes in time.
    Beside,
}

/// What stdin is for.
fn what_for(prompt: Prompt, wanted: bool, source: Source) -> Use {
    match (prompt, wanted, source) {
        (Prompt::Dash, ..) => Use::Prompt,
        (Prompt::Words, true, Source::Pipe | Source::File) => Use::Beside,
        (Prompt::Words, ..) => Use::Nothing,
    }
}

/// The whole prompt of a consult.
pub(crate) fn prompt(words: &str, wanted: bool) -> Result<String, SetupError> {
    let given = if words == "-" { Prompt::Dash } else { Prompt::Words };
    match what_for(given, wanted, source()) {
        Use::Nothing => Ok(words.to_owned()),
        Use::Prompt => read(0),
        Use::Beside if begins_in_time() => beside(words, &read(words.len() + HEADING.len())?),
        Use::Beside => {
            say(&format!(
                "phone-opus: nothing came on stdin in {} s; asking without it (--no-stdin does not wait)",
                FIRST_BYTE.as_secs()
            ));
            Ok(words.to_owned())
        }
    }
}

/// The prompt with what came on stdin under a heading. What shows nothing is left out.
fn beside(words: &str, piped: &str) -> Result<String, SetupError> {
    if lenient::is_blank(piped) {
        return Ok(words.to_owned());
    }
    let bytes = words.len() + HEADING.len() + piped.len();
    if bytes > MAX_PROMPT_BYTES {
        return Err(SetupError::TooMuchPiped);
    }
    Ok(format!("{words}{HEADING}{piped}"))
}

fn source() -> Source {
    if io::stdin().is_terminal() {
        return Source::Terminal;
    }
    match fstat(stdin()).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(FileType::Fifo) => Source::Pipe,
        Ok(FileType::RegularFile) => Source::File,
        _ => Source::Other,
    }
}

/// Whether something comes, or the end, before too long.
fn begins_in_time() -> bool {
    let until = std::time::Instant::now() + FIRST_BYTE;
    loop {
        let left = until.saturating_duration_since(std::time::Instant::now());
        let left = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::from_borrowed_fd(stdin(), PollFlags::IN)], left.as_ref()) {
            Ok(0) => return false,
            Err(Errno::INTR) => {}
            // What cannot be polled is read, which says what is wrong.
            Ok(_) | Err(_) => return true,
        }
    }
}

/// All of stdin; `taken` bytes of the prompt are there.
fn read(taken: usize) -> Result<String, SetupError> {
    // A little more than is accepted, so that too much is seen to be too much.
    let most = (MAX_PROMPT_BYTES.saturating_sub(taken) as u64) + 4096;
    let mut bytes = Vec::new();
    io::stdin().take(most).read_to_end(&mut bytes).map_err(SetupError::Prompt)?;
    // A diff has the bytes of its files in it; what is no text is shown as such, as MCP clients' prompts are.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stdin_is_read_beside_a_prompt_when_it_is_a_pipe_or_a_file_and_nobody_said_otherwise() {
        use Prompt::{Dash, Words};
        use Source::{File, Other, Pipe, Terminal};
        for (prompt, wanted, source, want) in [
            (Words, true, Terminal, Use::Nothing),
            (Words, true, Pipe, Use::Beside),
            (Words, true, File, Use::Beside),
            (Words, true, Other, Use::Nothing),
            (Words, false, Terminal, Use::Nothing),
            (Words, false, Pipe, Use::Nothing),
            (Words, false, File, Use::Nothing),
            (Words, false, Other, Use::Nothing),
            (Dash, true, Terminal, Use::Prompt),
            (Dash, true, Pipe, Use::Prompt),
            (Dash, true, File, Use::Prompt),
            (Dash, true, Other, Use::Prompt),
        ] {
            assert_eq!(what_for(prompt, wanted, source), want, "{prompt:?} {wanted} {source:?}");
        }
    }

    #[test]
    fn what_came_stands_under_a_heading_and_has_to_fit() {
        assert_eq!(beside("review", "a\nb\n").ok().as_deref(), Some("review\n\n## Standard input\n\na\nb\n"));
        for blank in ["", " \n\t\n", "\u{feff}"] {
            assert_eq!(beside("review", blank).ok().as_deref(), Some("review"), "{blank:?}");
        }
        let room = MAX_PROMPT_BYTES - "review".len() - HEADING.len();
        assert_eq!(beside("review", &"x".repeat(room)).map(|whole| whole.len()).ok(), Some(MAX_PROMPT_BYTES));
        let said = beside("review", &"x".repeat(room + 1)).expect_err("too much").to_string();
        assert!(said.contains("1000000") && said.contains("--no-stdin"), "{said}");
    }
}
