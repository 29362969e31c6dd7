//! What a person sees: colour, widths, tables, ages, Markdown.
//!
//! Owns: how words become lines of a terminal. May not know: commands, streams, jobs. Nothing here writes or reads anything;
//! [`Face`] says for whom to lay out.
//!
//! Invariant: text from elsewhere becomes part of a [`Line`] by [`Line::push`] alone, which writes out what a terminal would
//! obey. The only control sequences in a rendered line are the colours given to that function.

pub(crate) mod ages;
pub(crate) mod layout;
pub(crate) mod markdown;
mod styled;

use std::ffi::OsString;

pub(crate) use self::styled::{Line, paint};

/// Columns where the terminal does not say: what every terminal has.
const USUAL_WIDTH: usize = 80;

/// Rows where the terminal does not say.
const USUAL_HEIGHT: usize = 24;

/// Narrower than this, a table is laid out for this width and the terminal breaks its lines.
const LEAST_WIDTH: usize = 40;

/// What a stream shows, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Face {
    /// Somebody looks at it; otherwise a program reads it.
    pub(crate) terminal: bool,
    /// Whether colours are wanted.
    pub(crate) colour: bool,
    /// Whether the terminal understands that the cursor goes back.
    pub(crate) moves: bool,
    /// Columns.
    pub(crate) width: usize,
    /// Rows.
    pub(crate) height: usize,
}

impl Face {
    /// The face of a stream: `size` is what its terminal says (columns, rows), `None` where it is no terminal.
    pub(crate) fn of(size: Option<(u16, u16)>, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let terminal = size.is_some();
        let known = |told: u16, usual: usize| if told == 0 { usual } else { usize::from(told) };
        let (columns, rows) = size.unwrap_or_default();
        let dumb = variable("TERM").is_none_or(|term| term == "dumb");
        Self {
            terminal,
            colour: wants_colour(terminal && !dumb, &variable),
            moves: terminal && !dumb,
            width: known(columns, USUAL_WIDTH).max(LEAST_WIDTH),
            height: known(rows, USUAL_HEIGHT),
        }
    }
}

/// Whether colours are shown. The first row that applies decides:
///
/// | variable | colours |
/// |---|---|
/// | `NO_COLOR` set and not empty | none |
/// | `CLICOLOR_FORCE` set, not empty and not `0` | also in a pipe |
/// | `CLICOLOR=0` | none |
/// | none of these | on a terminal that is not `dumb` |
fn wants_colour(able: bool, variable: &impl Fn(&str) -> Option<OsString>) -> bool {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if set("NO_COLOR").is_some() {
        return false;
    }
    if set("CLICOLOR_FORCE").is_some_and(|value| value != "0") {
        return true;
    }
    able && set("CLICOLOR").is_none_or(|value| value != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(set: &[(&'static str, &'static str)]) -> impl Fn(&str) -> Option<OsString> {
        move |name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
    }

    #[test]
    fn colours_are_shown_where_somebody_can_see_them_and_nobody_asked_for_none() {
        let terminal = Some((100, 30));
        for (size, set, colour) in [
            (terminal, &[("TERM", "xterm")][..], true),
            (terminal, &[], false),
            (terminal, &[("TERM", "dumb")], false),
            (terminal, &[("TERM", "xterm"), ("NO_COLOR", "1")], false),
            (terminal, &[("TERM", "xterm"), ("NO_COLOR", "")], true),
            (terminal, &[("TERM", "xterm"), ("CLICOLOR", "0")], false),
            (terminal, &[("TERM", "xterm"), ("CLICOLOR", "1")], true),
            (None, &[("TERM", "xterm")], false),
            (None, &[("CLICOLOR_FORCE", "1")], true),
            (None, &[("CLICOLOR_FORCE", "0")], false),
            (None, &[("CLICOLOR_FORCE", "")], false),
            (terminal, &[("TERM", "xterm"), ("CLICOLOR", "0"), ("CLICOLOR_FORCE", "1")], true),
            (terminal, &[("TERM", "xterm"), ("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")], false),
        ] {
            assert_eq!(Face::of(size, variables(set)).colour, colour, "{size:?} {set:?}");
        }
    }

    #[test]
    fn a_terminal_without_a_size_has_the_usual_one_and_no_table_is_narrower_than_it_can_be_read() {
        for (size, want) in
            [(None, (80, 24)), (Some((0, 0)), (80, 24)), (Some((120, 50)), (120, 50)), (Some((10, 3)), (40, 3))]
        {
            let face = Face::of(size, variables(&[]));
            assert_eq!((face.width, face.height), want, "{size:?}");
        }
    }
}
