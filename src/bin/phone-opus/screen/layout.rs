//! Widths: how wide a text is, where it is cut, where it is broken, and how a table fits.
//!
//! Owns: the arithmetic. May not know: what the words say.
//!
//! Invariants: (1) a cut text and a row of a table are no wider than they were given; (2) breaking loses nothing: a word that
//! is wider than the line stays whole, and the terminal breaks it, but in a table, where it is broken here; (3) widths are those of the terminal, so a wide character
//! counts as two.

use clap::builder::styling::Style;
use unicode_width::UnicodeWidthChar;

use super::Face;
use super::styled::{Line, paint};

/// Columns between those of a table.
pub(crate) const GAP: usize = 2;

/// A tab takes at most so many.
const TAB: usize = 8;

/// Columns that a character takes.
fn char_width(c: char) -> usize {
    if c == '\t' { TAB } else { c.width().unwrap_or(0) }
}

/// Columns that a text takes.
///
/// The sum over its characters: terminals that draw several of them as one use less.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

/// Columns that a line takes.
pub(crate) fn line_width(line: &Line) -> usize {
    line.spans().map(|(_, text)| width(text)).sum()
}

/// The line within so many columns; one that is wider ends with `…`.
pub(crate) fn cut(line: &Line, most: usize) -> Line {
    if line_width(line) <= most {
        return line.clone();
    }
    let mut kept = Line::default();
    let mut left = most.saturating_sub(1);
    'all: for (style, text) in line.spans() {
        let mut end = 0;
        for (at, c) in text.char_indices() {
            let wide = char_width(c);
            if wide > left {
                kept.push(style, &text[..end]);
                break 'all;
            }
            left -= wide;
            end = at + c.len_utf8();
        }
        kept.push(style, &text[..end]);
    }
    if most > 0 {
        kept.push(paint::PLAIN, "…");
    }
    kept
}

/// The line in lines of so many columns, broken at spaces.
pub(crate) fn wrap(line: &Line, most: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut current = Line::default();
    let (mut used, mut begun) = (0, false);
    let mut spaces = Line::default();
    for word in words(line) {
        let wide = line_width(&word);
        if word.plain().chars().all(|c| c == ' ') {
            spaces.append(word);
            continue;
        }
        let gap = line_width(&spaces);
        if begun && used + gap + wide > most {
            lines.push(std::mem::take(&mut current));
            used = 0;
        } else {
            // Before the first word it is the indentation.
            current.append(std::mem::take(&mut spaces));
            used += gap;
        }
        spaces = Line::default();
        current.append(word);
        (used, begun) = (used + wide, true);
    }
    if !current.is_empty() || lines.is_empty() {
        lines.push(current);
    }
    lines
}

/// A line in lines of so many columns, broken within a word: behind a slash or what else joins its parts where that leaves no more
/// than two thirds of a line free, otherwise where the line is full.
fn broken(line: &Line, most: usize) -> Vec<Line> {
    let mut lines = vec![Line::default()];
    let mut used = 0;
    for (style, text) in line.spans() {
        let mut rest = text;
        while !rest.is_empty() {
            let (mut end, mut slash, mut taken) = (0, None, used);
            for (at, c) in rest.char_indices() {
                if taken + char_width(c) > most.max(1) {
                    break;
                }
                taken += char_width(c);
                end = at + c.len_utf8();
                if "/@:=".contains(c) && taken > most / 3 {
                    slash = Some(end);
                }
            }
            // A character that is wider than the line takes one for itself.
            let first = rest.chars().next().map_or(0, char::len_utf8);
            let end = match slash {
                Some(slash) if end < rest.len() => slash,
                _ if end == 0 && used == 0 => first,
                _ => end,
            };
            let (part, after) = rest.split_at(end);
            if let Some(last) = lines.last_mut() {
                last.push(style, part);
            }
            used += width(part);
            rest = after;
            if !rest.is_empty() {
                lines.push(Line::default());
                used = 0;
            }
        }
    }
    lines
}

/// A text in lines of so many columns, broken at spaces. What a line goes on in is set in a little more than the line itself.
pub(crate) fn prose(text: &str, most: usize) -> Vec<Line> {
    /// Columns that the rest of a line is set in.
    const HANGS: usize = 2;
    let mut lines = Vec::new();
    for line in text.lines() {
        let bare = line.trim_start_matches(' ');
        let indent = line.len() - bare.len();
        let parts = wrap(&Line::of(paint::PLAIN, bare), most.saturating_sub(indent + HANGS).max(HANGS));
        for (at, part) in parts.into_iter().enumerate() {
            let mut whole = Line::default();
            whole.push(paint::PLAIN, &" ".repeat(if at == 0 { indent } else { indent + HANGS }));
            whole.append(part);
            lines.push(whole);
        }
    }
    lines
}

/// Words and the spaces between them. A word may have parts of several looks.
fn words(line: &Line) -> Vec<Line> {
    let mut all: Vec<Line> = Vec::new();
    let mut in_spaces = None;
    for (style, text) in line.spans() {
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let space = first == ' ';
            let end = rest.find(|c: char| (c == ' ') != space).unwrap_or(rest.len());
            let (part, after) = rest.split_at(end);
            match all.last_mut() {
                Some(last) if in_spaces == Some(space) => last.push(style, part),
                _ => all.push(Line::of(style, part)),
            }
            in_spaces = Some(space);
            rest = after;
        }
    }
    all
}

/// What a table does with a text that is wider than its column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CellFit {
    /// The column is as wide as its widest text.
    Whole,
    /// It is cut, but a column has at least so many.
    Cut(usize),
    /// It is broken into lines, but a column has at least so many.
    Wrap(usize),
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    /// What stands above it.
    pub(crate) title: &'static str,
    /// What becomes of a wide text.
    pub(crate) fit: CellFit,
}

impl Column {
    pub(crate) const fn new(title: &'static str, fit: CellFit) -> Self {
        Self { title, fit }
    }
}

/// A table for whoever looks: on a terminal with a header and as wide as there is room, for a program one line for each row
/// with a tab between the cells.
pub(crate) fn table(columns: &[Column], rows: &[Vec<Line>], face: Face) -> Vec<Line> {
    if face.terminal { fitted(columns, rows, face.width) } else { rows.iter().map(|row| tabbed(row)).collect() }
}

/// A row with a tab between its cells, and none within them.
fn tabbed(row: &[Line]) -> Line {
    let mut line = Line::default();
    for (at, cell) in row.iter().enumerate() {
        if at > 0 {
            line.push(paint::PLAIN, "\t");
        }
        for (style, text) in cell.spans() {
            line.push(style, &text.replace('\t', " "));
        }
    }
    line
}

/// A table in so many columns of the terminal, with a header. Columns that may be narrower give way, the widest first.
fn fitted(columns: &[Column], rows: &[Vec<Line>], most: usize) -> Vec<Line> {
    let header: Vec<Line> = columns.iter().map(|column| Line::of(paint::HEADER, column.title)).collect();
    let fits: Vec<CellFit> = columns.iter().map(|column| column.fit).collect();
    laid_out(&fits, std::iter::once(&header).chain(rows), most).into_iter().flatten().collect()
}

/// Rows in columns, each in the lines it takes.
pub(crate) fn laid_out<'a>(
    fits: &[CellFit],
    rows: impl Iterator<Item = &'a Vec<Line>> + Clone,
    most: usize,
) -> Vec<Vec<Line>> {
    let widths = widths(fits, rows.clone(), most);
    let mut all = Vec::new();
    for row in rows {
        let mut lines = Vec::new();
        let cells: Vec<Vec<Line>> = (0..fits.len())
            .map(|at| {
                let cell = row.get(at).cloned().unwrap_or_default();
                match fits[at] {
                    CellFit::Wrap(_) => {
                        wrap(&cell, widths[at]).iter().flat_map(|line| broken(line, widths[at])).collect()
                    }
                    CellFit::Cut(_) => vec![cut(&cell, widths[at])],
                    CellFit::Whole => vec![cell],
                }
            })
            .collect();
        let height = cells.iter().map(Vec::len).max().unwrap_or_default();
        for at in 0..height {
            let mut line = Line::default();
            let mut gap = 0;
            for (cell, width) in cells.iter().zip(&widths) {
                let part = cell.get(at).cloned().unwrap_or_default();
                let free = width.saturating_sub(line_width(&part));
                if !part.is_empty() {
                    line.push(paint::PLAIN, &" ".repeat(gap));
                    gap = 0;
                    line.append(part);
                }
                // Nothing stands behind the last text of a line.
                gap += free + GAP;
            }
            lines.push(line);
        }
        all.push(lines);
    }
    all
}

/// How wide each column is.
fn widths<'a>(fits: &[CellFit], rows: impl Iterator<Item = &'a Vec<Line>>, most: usize) -> Vec<usize> {
    let mut widths = vec![0; fits.len()];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(line_width(cell));
        }
    }
    let gaps = GAP * fits.len().saturating_sub(1);
    loop {
        let over = (widths.iter().sum::<usize>() + gaps).saturating_sub(most);
        let least = |at: usize| match fits[at] {
            CellFit::Whole => usize::MAX,
            CellFit::Cut(least) | CellFit::Wrap(least) => least,
        };
        let widest = (0..fits.len()).filter(|at| widths[*at] > least(*at)).max_by_key(|at| widths[*at]);
        match widest {
            Some(at) if over > 0 => widths[at] -= 1,
            _ => return widths,
        }
    }
}

/// A text in lines of so many columns, all of one look. Lines that are there stay.
pub(crate) fn paragraph(style: Style, text: &str, most: usize) -> Vec<Line> {
    text.lines().flat_map(|line| wrap(&Line::of(style, line), most)).collect()
}

/// Rows that lines take on a terminal that breaks what is too wide.
pub(crate) fn rows(lines: &[Line], width: usize) -> usize {
    lines.iter().map(|line| line_width(line).div_ceil(width.max(1)).max(1)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Line {
        Line::of(paint::PLAIN, text)
    }

    fn shown(lines: &[Line]) -> Vec<String> {
        lines.iter().map(Line::plain).collect()
    }

    #[test]
    fn a_text_is_as_wide_as_a_terminal_shows_it() {
        for (text, want) in [
            ("", 0),
            ("abc", 3),
            ("é", 1),
            ("e\u{301}", 1),
            ("漢字", 4),
            ("😀", 2),
            ("a\tb", 10),
            ("…", 1),
            ("\u{200d}", 0),
        ] {
            assert_eq!(width(text), want, "{text:?}");
        }
    }

    #[test]
    fn a_cut_text_is_never_wider_than_it_may_be_and_says_that_it_was_cut() {
        for (text, most, want) in [
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("abcd", 1, "…"),
            ("abcd", 0, ""),
            ("漢字", 4, "漢字"),
            ("漢字", 3, "漢…"),
            ("漢字", 2, "…"),
            ("a漢字b", 4, "a漢…"),
            ("\u{1b}[2J", 5, "\\u00…"),
        ] {
            let kept = cut(&plain(text), most);
            assert_eq!(kept.plain(), want, "{text:?} in {most}");
            assert!(line_width(&kept) <= most);
        }
        let mut line = Line::of(paint::BAD, "ab");
        line.push(paint::GOOD, "cd");
        assert_eq!(cut(&line, 3).rendered(true), "\u{1b}[31mab\u{1b}[0m…", "colours take no room");
    }

    #[test]
    fn a_word_that_is_wider_than_its_column_is_broken_there_and_a_path_behind_a_slash() {
        for (text, most, want) in [
            ("/usr/lib/node_modules/.bin/codex", 20, &["/usr/lib/", "node_modules/.bin/", "codex"][..]),
            ("~/.local/bin/claude", 20, &["~/.local/bin/claude"]),
            ("unbreakableword", 6, &["unbrea", "kablew", "ord"]),
            ("漢字漢字", 4, &["漢字", "漢字"]),
            ("漢", 1, &["漢"]),
            ("", 4, &[""]),
        ] {
            let lines = broken(&plain(text), most);
            assert_eq!(shown(&lines), want, "{text:?} in {most}");
        }
        let row = vec![plain("key"), plain("/a/quite/long/path/to/a/program-of-ours")];
        for line in laid_out(&[CellFit::Whole, CellFit::Wrap(10)], std::iter::once(&row), 24).concat() {
            assert!(line_width(&line) <= 24, "{:?}", line.plain());
        }
    }

    #[test]
    fn a_sentence_goes_on_beneath_itself() {
        assert_eq!(
            shown(&prose("one two three\n  four five six", 11)),
            ["one two", "  three", "  four", "    five", "    six"]
        );
        assert_eq!(shown(&prose("short", 80)), ["short"]);
    }

    #[test]
    fn a_line_is_broken_at_spaces_and_keeps_every_word() {
        for (text, most, want) in [
            ("one two three", 7, &["one two", "three"][..]),
            ("one two three", 80, &["one two three"]),
            ("  indented text", 10, &["  indented", "text"]),
            ("unbreakablewordoflength short", 8, &["unbreakablewordoflength", "short"]),
            ("", 5, &[""]),
            ("漢字 漢字", 5, &["漢字", "漢字"]),
            ("a  b", 10, &["a  b"]),
        ] {
            assert_eq!(shown(&wrap(&plain(text), most)), want, "{text:?} in {most}");
        }
        let mut line = Line::of(paint::PLAIN, "say ");
        line.push(paint::BOLD, "bo");
        line.push(paint::PLAIN, "ld now");
        let broken = wrap(&line, 8);
        assert_eq!(shown(&broken), ["say bold", "now"], "a word of two looks is one word");
        assert_eq!(broken[0].rendered(true), "say \u{1b}[1mbo\u{1b}[0mld");
    }

    const COLUMNS: [Column; 3] = [
        Column::new("ID", CellFit::Whole),
        Column::new("STATUS", CellFit::Whole),
        Column::new("PROMPT", CellFit::Cut(10)),
    ];

    fn rows_of(cells: &[[&str; 3]]) -> Vec<Vec<Line>> {
        cells.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect()
    }

    #[test]
    fn a_table_fits_its_width_and_only_what_may_be_cut_is_cut() {
        let rows = rows_of(&[
            ["3f2504e0", "succeeded", "where are workers restarted?"],
            ["0305e82c", "running", "漢字漢字漢字漢字漢字"],
        ]);
        assert_eq!(
            shown(&fitted(&COLUMNS, &rows, 80)),
            [
                "ID        STATUS     PROMPT",
                "3f2504e0  succeeded  where are workers restarted?",
                "0305e82c  running    漢字漢字漢字漢字漢字"
            ]
        );
        assert_eq!(
            shown(&fitted(&COLUMNS, &rows, 36)),
            [
                "ID        STATUS     PROMPT",
                "3f2504e0  succeeded  where are work…",
                "0305e82c  running    漢字漢字漢字漢…"
            ]
        );
        for most in 31..100 {
            for line in fitted(&COLUMNS, &rows, most) {
                assert!(line_width(&line) <= most, "{most}: {:?}", line.plain());
            }
        }
        // Narrower than it can be, nothing that identifies a row is lost.
        assert!(shown(&fitted(&COLUMNS, &rows, 20))[1].starts_with("3f2504e0  succeeded  "));
    }

    #[test]
    fn a_program_gets_a_line_for_each_row_and_tabs_between_the_cells() {
        let rows = rows_of(&[["3f2504e0", "a\tb", "one\ntwo"], ["", "", "x"]]);
        let face = Face { terminal: false, colour: false, moves: false, width: 40, height: 9 };
        assert_eq!(shown(&table(&COLUMNS, &rows, face)), ["3f2504e0\ta b\tone two", "\t\tx"]);
        let face = Face { terminal: true, ..face };
        assert_eq!(shown(&table(&COLUMNS, &rows, face)).len(), 3, "a header and the rows");
    }

    #[test]
    fn the_widest_column_gives_way_first_and_empty_cells_leave_no_blanks_behind() {
        let fits = [CellFit::Cut(4), CellFit::Cut(4)];
        let rows: Vec<Vec<Line>> = vec![vec![plain("aaaaaaaaaa"), plain("bbbbb")], vec![plain("a"), plain("")]];
        assert_eq!(shown(&laid_out(&fits, rows.iter(), 13).concat()), ["aaaaa…  bbbbb", "a"]);
        assert_eq!(shown(&laid_out(&fits, rows.iter(), 10).concat()), ["aaa…  bbb…", "a"]);
    }

    #[test]
    fn a_wrapped_cell_keeps_its_words_under_each_other() {
        let fits = [CellFit::Whole, CellFit::Wrap(5)];
        let rows: Vec<Vec<Line>> = vec![vec![plain("key"), plain("one two three")]];
        assert_eq!(shown(&laid_out(&fits, rows.iter(), 12).concat()), ["key  one two", "     three"]);
    }

    #[test]
    fn the_rows_of_a_screen_are_counted_with_what_the_terminal_breaks() {
        assert_eq!(rows(&[plain(""), plain("abc"), plain("abcdef")], 4), 4);
        assert_eq!(rows(&[], 80), 0);
    }
}
