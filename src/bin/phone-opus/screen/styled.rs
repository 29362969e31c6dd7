//! Lines with colours.
//!
//! Owns: how a text from anywhere becomes harmless, and where colours begin and end. May not know: how wide anything is.

use clap::builder::styling::{AnsiColor, Style};
use phone_opus::internals::base::lenient;

/// The looks there are.
pub(crate) mod paint {
    use super::{AnsiColor, Style};

    pub(crate) const PLAIN: Style = Style::new();
    pub(crate) const BOLD: Style = Style::new().bold();
    pub(crate) const DIM: Style = Style::new().dimmed();
    pub(crate) const GOOD: Style = colour(AnsiColor::Green);
    pub(crate) const BAD: Style = colour(AnsiColor::Red);
    pub(crate) const DOUBT: Style = colour(AnsiColor::Yellow);
    pub(crate) const BUSY: Style = colour(AnsiColor::Cyan);
    pub(crate) const CODE: Style = colour(AnsiColor::Cyan);
    pub(crate) const NEW: Style = colour(AnsiColor::Yellow).bold();
    pub(crate) const HEADER: Style = Style::new().bold().underline();

    const fn colour(colour: AnsiColor) -> Style {
        Style::new().fg_color(Some(clap::builder::styling::Color::Ansi(colour)))
    }
}

/// One line, without its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Line(Vec<(Style, String)>);

impl Line {
    /// A line of one look.
    pub(crate) fn of(style: Style, text: &str) -> Self {
        let mut line = Self::default();
        line.push(style, text);
        line
    }

    /// Adds a text. What a terminal would obey is written out; a line end becomes a space, since a line has none.
    pub(crate) fn push(&mut self, style: Style, text: &str) {
        if text.is_empty() {
            return;
        }
        let text = lenient::visible(text);
        let text = if text.contains('\n') { text.replace('\n', " ") } else { text.into_owned() };
        match self.0.last_mut() {
            Some((last, before)) if *last == style => before.push_str(&text),
            _ => self.0.push((style, text)),
        }
    }

    /// Adds what another line has.
    pub(crate) fn append(&mut self, other: Self) {
        for (style, text) in other.0 {
            match self.0.last_mut() {
                Some((last, before)) if *last == style => before.push_str(&text),
                _ => self.0.push((style, text)),
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its parts, each of one look.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (Style, &str)> {
        self.0.iter().map(|(style, text)| (*style, text.as_str()))
    }

    /// Its text.
    pub(crate) fn plain(&self) -> String {
        self.0.iter().map(|(_, text)| text.as_str()).collect()
    }

    /// The line as it is written to a terminal.
    pub(crate) fn rendered(&self, colour: bool) -> String {
        if !colour {
            return self.plain();
        }
        let mut out = String::new();
        for (style, text) in &self.0 {
            out.push_str(&format!("{style}{text}{style:#}"));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_no_sequence_but_its_own_colours() {
        let mut line = Line::of(paint::BAD, "failed");
        line.push(paint::PLAIN, " \u{1b}[2J\u{9b}31m\u{202e}x\ny");
        assert_eq!(line.rendered(true), "\u{1b}[31mfailed\u{1b}[0m \\u001b[2J\\u009b31m\\u202ex y");
        assert_eq!(line.rendered(false), "failed \\u001b[2J\\u009b31m\\u202ex y");
        assert_eq!(line.plain(), line.rendered(false));
    }

    #[test]
    fn neighbours_of_one_look_are_one_part() {
        let mut line = Line::of(paint::BOLD, "a");
        line.push(paint::BOLD, "b");
        line.append(Line::of(paint::BOLD, "c"));
        line.push(paint::PLAIN, "");
        assert_eq!(line.spans().collect::<Vec<_>>(), [(paint::BOLD, "abc")]);
        assert!(Line::of(paint::BOLD, "").is_empty());
    }
}
