//! A long answer page by page, by the program that `PAGER` names.
//!
//! Owns: whether one is used, and what of `PAGER` is accepted. May not know: what is shown.
//!
//! Invariants: (1) no shell: the value is split at spaces, and what would need a shell is refused with a sentence; (2) only
//! for a terminal, and only for what does not fit into it; (3) whatever becomes of the pager, the text is shown once.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::output::{erase, out, print_lines, say};
use crate::screen::{Face, Line, layout};

/// What a shell would do something with. Letters, digits and these alone are words of a command line.
const PLAIN: &str = "/._-+=:,@%^";

/// Whether a pager may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paging {
    Allowed,
    /// `--no-pager`.
    Never,
}

/// Shows lines, page by page where there are more than fit.
pub(crate) fn show(lines: &[Line], paging: Paging) {
    let face = out();
    if let Some(words) = wanted(lines, paging, face, std::env::var_os("PAGER")) {
        match words {
            Ok(words) => match run(&words, lines, face) {
                Ok(()) => return,
                Err(error) => say(&format!("phone-opus: the pager {}: {error}", words.join(" "))),
            },
            Err(refused) => say(&format!("phone-opus: {refused}")),
        }
    }
    print_lines(lines);
}

/// The pager's words, where one is to be used.
fn wanted(
    lines: &[Line],
    paging: Paging,
    face: Face,
    variable: Option<OsString>,
) -> Option<Result<Vec<String>, String>> {
    if paging == Paging::Never || !face.terminal || layout::rows(lines, face.width) < face.height {
        return None;
    }
    let value = variable?;
    let words = words(&value.to_string_lossy());
    // One that shows everything at once is none.
    (words.as_deref() != Ok(&[]) && words.as_deref() != Ok(&["cat".to_owned()])).then_some(words)
}

/// The words of `PAGER`, or why it is not used.
fn words(value: &str) -> Result<Vec<String>, String> {
    let needs_a_shell = |c: char| !(c.is_alphanumeric() || c == ' ' || PLAIN.contains(c));
    if let Some(c) = value.chars().find(|c| needs_a_shell(*c)) {
        return Err(format!(
            "PAGER has {c:?} in it, which needs a shell, and none is used; accepted: a program and its options with spaces \
             between, as less -R"
        ));
    }
    Ok(value.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect())
}

/// Runs it to its end. Fails where it could not be started; what it shows of the text is the reader's choice.
fn run(words: &[String], lines: &[Line], face: Face) -> std::io::Result<()> {
    let [program, arguments @ ..] = words else { return Ok(()) };
    let program = which::which(program).map_err(std::io::Error::other)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped());
    if std::env::var_os("LESS").is_none() {
        // Shows colours, leaves what it has shown on the screen, and ends by itself when all of it fits.
        command.env("LESS", "FRX");
    }
    erase();
    let mut child = command.spawn()?;
    let text: String = lines.iter().map(|line| line.rendered(face.colour) + "\n").collect();
    if let Some(mut stdin) = child.stdin.take() {
        // Whoever has read enough closes it.
        let _ = stdin.write_all(text.as_bytes());
    }
    child.wait().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::screen::paint;

    #[test]
    fn a_pager_is_split_into_words_and_what_needs_a_shell_is_refused() {
        for (value, want) in [
            ("less", Some(&["less"][..])),
            ("less -R  +G", Some(&["less", "-R", "+G"])),
            ("/usr/bin/most", Some(&["/usr/bin/most"])),
            ("bat --style=plain --paging=always", Some(&["bat", "--style=plain", "--paging=always"])),
            ("", Some(&[])),
            ("less; touch x", None),
            ("less | cat", None),
            ("$(evil)", None),
            ("`evil`", None),
            ("less 'a b'", None),
            ("\"less\"", None),
            ("~/bin/pager", None),
            ("less > x", None),
            ("less\nevil", None),
            ("less &", None),
            ("less \\x", None),
            ("less *", None),
        ] {
            let read = words(value);
            let read = read.as_ref().map(|words| words.iter().map(String::as_str).collect::<Vec<_>>()).ok();
            assert_eq!(read.as_deref(), want, "{value:?}");
        }
    }

    #[test]
    fn a_pager_is_used_for_what_does_not_fit_into_a_terminal() {
        let lines = |count: usize| vec![Line::of(paint::PLAIN, "x"); count];
        let terminal = Face { terminal: true, colour: false, moves: true, width: 80, height: 24 };
        let pipe = Face { terminal: false, ..terminal };
        for (count, paging, face, variable, used) in [
            (24, Paging::Allowed, terminal, Some("less"), true),
            (23, Paging::Allowed, terminal, Some("less"), false),
            (24, Paging::Never, terminal, Some("less"), false),
            (24, Paging::Allowed, pipe, Some("less"), false),
            (24, Paging::Allowed, terminal, None, false),
            (24, Paging::Allowed, terminal, Some(""), false),
            (24, Paging::Allowed, terminal, Some("cat"), false),
        ] {
            let words = wanted(&lines(count), paging, face, variable.map(OsString::from));
            assert_eq!(words.is_some(), used, "{count} {paging:?} {variable:?}");
        }
    }
}
