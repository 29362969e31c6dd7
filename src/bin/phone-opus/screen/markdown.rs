//! An answer as a terminal shows it: headings, lists, code, quotes and tables of Markdown.
//!
//! Owns: how each of them looks. May not know: where the text came from.
//!
//! Invariants: (1) a terminal obeys nothing of the text: it becomes lines by [`Line::push`], also what the text writes as
//! `&#27;`; (2) no word is lost: what is no Markdown is text, HTML is shown as it is written, the address of a link stands
//! beside its words; (3) line ends of the text stay, since many answers are lists without marks.

use std::borrow::Cow;

use clap::builder::styling::Style;
use phone_opus::internals::base::lenient;
use pulldown_cmark::{Alignment, CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use super::layout::{CellFit, GAP, laid_out, line_width, wrap};
use super::styled::{Line, paint};

/// A column of a table is not made narrower than this.
const LEAST_CELL: usize = 8;

/// Text beside which nothing fits is laid out for this many columns all the same.
const LEAST_TEXT: usize = 20;

/// The text in lines of so many columns.
pub(crate) fn lines(text: &str, width: usize) -> Vec<Line> {
    // Before it is read too: a lone carriage return would be a line end to the reader, and be lost.
    let text: Cow<'_, str> = lenient::visible(text);
    let mut page = Page { width, ..Page::default() };
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS;
    for event in Parser::new_ext(&text, options) {
        page.take(event);
    }
    page.end_block();
    page.lines
}

/// A block that others stand in.
#[derive(Debug)]
enum Around {
    Quote,
    /// A list, and the number of its next item.
    List(Option<u64>),
    /// An item: the columns of its mark.
    Item(usize),
}

/// A table that is being read.
#[derive(Debug, Default)]
struct Table {
    alignments: Vec<Alignment>,
    rows: Vec<Vec<Line>>,
}

/// A page that is being written.
#[derive(Debug, Default)]
struct Page {
    width: usize,
    lines: Vec<Line>,
    around: Vec<Around>,
    /// Where looks end again.
    styles: Vec<Style>,
    /// The text of the block that is open, line by line.
    block: Vec<Line>,
    /// The mark of an item whose first line is not written.
    mark: Option<Line>,
    /// Where the links end that are open, and what is in front of their words.
    links: Vec<(String, String)>,
    table: Option<Table>,
    in_code: bool,
    /// Whether what comes next stands apart from what is there.
    apart: bool,
}

impl Page {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) if self.in_code => self.code(&text),
            Event::Text(text) => self.text(self.style(), &text),
            Event::Code(code) => self.text(self.style().fg_color(paint::CODE.get_fg_color()), &code),
            Event::Html(html) => self.raw(&html),
            Event::InlineHtml(html) => self.text(self.style(), &html),
            Event::SoftBreak | Event::HardBreak => self.block.push(Line::default()),
            Event::Rule => {
                self.end_block();
                let rule = "─".repeat(self.room());
                self.block = vec![Line::of(paint::DIM, &rule)];
                self.end_block();
            }
            Event::TaskListMarker(done) => self.text(self.style(), if done { "[x] " } else { "[ ] " }),
            // Of extensions that are not switched on.
            Event::InlineMath(text) | Event::DisplayMath(text) | Event::FootnoteReference(text) => {
                self.text(self.style(), &text);
            }
        }
    }

    fn start(&mut self, tag: Tag<'_>) {
        match tag {
            Tag::Paragraph | Tag::HtmlBlock => self.end_block(),
            Tag::Heading { level, .. } => {
                self.end_block();
                let style = if level == HeadingLevel::H1 { paint::HEADER } else { paint::BOLD };
                self.styles.push(style);
            }
            Tag::BlockQuote(_) => {
                self.end_block();
                self.around.push(Around::Quote);
            }
            Tag::CodeBlock(kind) => {
                self.end_block();
                self.in_code = true;
                if let CodeBlockKind::Fenced(language) = kind
                    && !language.is_empty()
                {
                    self.block.push(Line::of(paint::DIM, &language));
                }
            }
            Tag::List(first) => {
                self.end_block();
                // A list within an item follows its text at once.
                self.apart &= !matches!(self.around.last(), Some(Around::Item(_)));
                self.around.push(Around::List(first));
            }
            Tag::Item => {
                self.end_block();
                let mark = match self.around.last_mut() {
                    Some(Around::List(Some(number))) => {
                        *number += 1;
                        format!("{}. ", *number - 1)
                    }
                    _ => "• ".to_owned(),
                };
                let mark = Line::of(paint::BUSY, &mark);
                self.around.push(Around::Item(line_width(&mark)));
                self.mark = Some(mark);
            }
            Tag::Table(alignments) => {
                self.end_block();
                self.table = Some(Table { alignments, rows: Vec::new() });
            }
            Tag::TableHead => {
                self.styles.push(paint::BOLD);
                self.row();
            }
            Tag::TableRow => self.row(),
            Tag::TableCell => self.block.clear(),
            Tag::Emphasis => self.styles.push(self.style().italic()),
            Tag::Strong => self.styles.push(self.style().bold()),
            Tag::Strikethrough => self.styles.push(self.style().strikethrough()),
            Tag::Link { dest_url, .. } => {
                self.links.push((dest_url.to_string(), self.written()));
                self.styles.push(self.style().underline());
            }
            Tag::Image { dest_url, .. } => {
                self.links.push((dest_url.to_string(), self.written()));
                self.styles.push(self.style());
            }
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Paragraph | TagEnd::HtmlBlock => {
                self.end_block();
                self.apart = true;
            }
            TagEnd::Heading(_) => {
                self.end_block();
                self.styles.pop();
                self.apart = true;
            }
            TagEnd::BlockQuote(_) => {
                self.end_block();
                self.around.pop();
                self.apart = true;
            }
            TagEnd::CodeBlock => {
                self.end_code();
                self.apart = true;
            }
            TagEnd::Item => {
                self.end_block();
                // An item without words has its mark all the same.
                if self.mark.is_some() {
                    self.put(Line::default());
                }
                self.around.pop();
            }
            TagEnd::List(_) => {
                self.end_block();
                self.around.pop();
                self.apart = !matches!(self.around.last(), Some(Around::Item(_)));
            }
            TagEnd::TableCell => {
                let cell = self.block.drain(..).fold(Line::default(), |mut all, line| {
                    all.append(line);
                    all
                });
                if let Some(row) = self.table.as_mut().and_then(|table| table.rows.last_mut()) {
                    row.push(cell);
                }
            }
            TagEnd::TableHead => {
                self.styles.pop();
            }
            TagEnd::Table => {
                self.end_table();
                self.apart = true;
            }
            TagEnd::Emphasis | TagEnd::Strong | TagEnd::Strikethrough => {
                self.styles.pop();
            }
            TagEnd::Link | TagEnd::Image => {
                self.styles.pop();
                if let Some((address, before)) = self.links.pop() {
                    let words = self.written();
                    let words = words.strip_prefix(&before).unwrap_or(&words);
                    // One that is its own words is not said twice.
                    if words != address && format!("mailto:{words}") != address && !address.is_empty() {
                        self.text(paint::DIM, &format!(" ({address})"));
                    }
                }
            }
            _ => {}
        }
    }

    /// The look of what is written now.
    fn style(&self) -> Style {
        self.styles.last().copied().unwrap_or_default()
    }

    /// What is written of the open block.
    fn written(&self) -> String {
        self.block.iter().map(Line::plain).collect()
    }

    /// Columns for a text here.
    fn room(&self) -> usize {
        let taken: usize = self
            .around
            .iter()
            .map(|around| match around {
                Around::Quote => 2,
                Around::List(_) => 0,
                Around::Item(mark) => *mark,
            })
            .sum();
        self.width.saturating_sub(taken).max(LEAST_TEXT)
    }

    fn text(&mut self, style: Style, text: &str) {
        if self.block.is_empty() {
            self.block.push(Line::default());
        }
        if let Some(line) = self.block.last_mut() {
            line.push(style, text);
        }
    }

    /// Text whose lines stay.
    fn raw(&mut self, text: &str) {
        for part in text.split_inclusive('\n') {
            self.text(self.style(), part.trim_end_matches('\n'));
            if part.ends_with('\n') {
                self.block.push(Line::default());
            }
        }
    }

    fn code(&mut self, text: &str) {
        // Tabs have no columns of their own behind an indentation.
        let text = text.replace('\t', "    ");
        for line in text.lines() {
            self.block.push(Line::of(paint::CODE, line));
        }
    }

    fn row(&mut self) {
        self.block.clear();
        if let Some(table) = &mut self.table {
            table.rows.push(Vec::new());
        }
    }

    /// Writes the open block, broken into lines.
    fn end_block(&mut self) {
        let mut block = std::mem::take(&mut self.block);
        while block.last().is_some_and(Line::is_empty) {
            block.pop();
        }
        if block.is_empty() {
            return;
        }
        let room = self.room();
        for line in block.iter().flat_map(|line| wrap(line, room)) {
            self.put(line);
        }
    }

    /// Writes the open block of code: its lines are not broken, so that they can be copied.
    fn end_code(&mut self) {
        self.in_code = false;
        for line in std::mem::take(&mut self.block) {
            let mut indented = Line::default();
            if !line.is_empty() {
                indented.push(paint::PLAIN, "    ");
                indented.append(line);
            }
            self.put(indented);
        }
    }

    fn end_table(&mut self) {
        let Some(mut table) = self.table.take() else { return };
        let count = table.rows.iter().map(Vec::len).max().unwrap_or_default();
        let widest = |at: usize| table.rows.iter().filter_map(|row| row.get(at)).map(line_width).max();
        let widths: Vec<usize> = (0..count).map(|at| widest(at).unwrap_or_default()).collect();
        let room = self.room();
        // What is broken into lines stands on the left.
        let whole = widths.iter().sum::<usize>() + GAP * count.saturating_sub(1) <= room;
        for row in table.rows.iter_mut().filter(|_| whole) {
            for (at, cell) in row.iter_mut().enumerate() {
                let free = widths[at] - line_width(cell);
                let before = match table.alignments.get(at) {
                    Some(Alignment::Right) => free,
                    Some(Alignment::Center) => free / 2,
                    Some(Alignment::Left | Alignment::None) | None => 0,
                };
                let mut aligned = Line::default();
                aligned.push(paint::PLAIN, &" ".repeat(before));
                aligned.append(std::mem::take(cell));
                *cell = aligned;
            }
        }
        let fits = vec![CellFit::Wrap(LEAST_CELL); count];
        let rows = laid_out(&fits, table.rows.iter(), room);
        let wide = rows.iter().flatten().map(line_width).max().unwrap_or_default();
        for (at, row) in rows.into_iter().enumerate() {
            row.into_iter().for_each(|line| self.put(line));
            if at == 0 {
                self.put(Line::of(paint::DIM, &"─".repeat(wide)));
            }
        }
    }

    /// Writes one line behind the marks of what it stands in.
    fn put(&mut self, line: Line) {
        if std::mem::take(&mut self.apart) && !self.lines.is_empty() {
            let margin = self.margin(None);
            // Of an item nothing is seen in an empty line.
            self.lines.push(if margin.plain().trim().is_empty() { Line::default() } else { margin });
        }
        let mark = self.mark.take();
        let mut whole = self.margin(mark);
        whole.append(line);
        self.lines.push(whole);
    }

    /// What stands before a line here.
    fn margin(&self, mut mark: Option<Line>) -> Line {
        let mut margin = Line::default();
        let innermost = self.around.iter().rposition(|around| matches!(around, Around::Item(_)));
        for (at, around) in self.around.iter().enumerate() {
            match around {
                Around::Quote => margin.push(paint::DIM, "│ "),
                Around::List(_) => {}
                Around::Item(wide) => match mark.take_if(|_| Some(at) == innermost) {
                    Some(mark) => margin.append(mark),
                    None => margin.push(paint::PLAIN, &" ".repeat(*wide)),
                },
            }
        }
        margin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, width: usize) -> Vec<String> {
        lines(text, width).iter().map(|line| line.plain().trim_end().to_owned()).collect()
    }

    #[test]
    fn each_block_of_markdown_has_its_look() {
        for (text, want) in [
            ("one\ntwo\n\nthree", &["one", "two", "", "three"][..]),
            ("# Title\ntext", &["Title", "", "text"]),
            ("## Part\n\ntext", &["Part", "", "text"]),
            ("- a\n- b\n  - c\n- d", &["• a", "• b", "  • c", "• d"]),
            ("3. a\n4. b", &["3. a", "4. b"]),
            ("- a\n\n- b", &["• a", "", "• b"]),
            ("- [x] done\n- [ ] open", &["• [x] done", "• [ ] open"]),
            ("text:\n- a", &["text:", "", "• a"]),
            ("> said\n> so", &["│ said", "│ so"]),
            ("```rust\nfn f() {\n\tx\n}\n```\nafter", &["    rust", "    fn f() {", "        x", "    }", "", "after"]),
            ("- a\n\n  ```\n  b\n  ```", &["• a", "", "      b"]),
            ("a\n\n---\n\nb", &["a", "", "────────────────────", "b"]),
            ("see [the page](https://a.example/b)", &["see the page (https://a.example/b)"]),
            ("<https://a.example>", &["https://a.example"]),
            ("![a plot](p.png)", &["a plot (p.png)"]),
            ("<b>bold</b> x < y", &["<b>bold</b> x < y"]),
            ("<div>\nx\n</div>", &["<div>", "x", "</div>"]),
            ("snake_case_name and a * b", &["snake_case_name and a * b"]),
            ("-", &["•"]),
            ("", &[]),
        ] {
            assert_eq!(shown(text, 20.max(width_for(text))), want, "{text:?}");
        }
    }

    /// Wide enough for all but the rule, which is as wide as there is room.
    fn width_for(text: &str) -> usize {
        if text.contains("---") { 20 } else { 80 }
    }

    #[test]
    fn words_have_their_looks() {
        let rendered =
            |text: &str| lines(text, 80).iter().map(|line| line.rendered(true)).collect::<Vec<_>>().join("\n");
        for (text, want) in [
            ("**b** *i* ~~s~~", "\u{1b}[1mb\u{1b}[0m \u{1b}[3mi\u{1b}[0m \u{1b}[9ms\u{1b}[0m"),
            ("`code`", "\u{1b}[36mcode\u{1b}[0m"),
            ("***bi***", "\u{1b}[1m\u{1b}[3mbi\u{1b}[0m"),
        ] {
            assert_eq!(rendered(text), want, "{text:?}");
        }
    }

    #[test]
    fn a_table_fits_and_its_cells_are_broken_and_not_cut() {
        let text = "| file | what |\n|:--|--:|\n| `a.rs` | one two three four five six |\n| b | x |";
        assert_eq!(
            shown(text, 80),
            [
                "file                         what",
                "─────────────────────────────────",
                "a.rs  one two three four five six",
                "b                               x"
            ]
        );
        let narrow = shown(text, 24);
        assert!(narrow.iter().all(|line| super::super::layout::width(line) <= 24), "{narrow:#?}");
        let words = narrow.join(" ");
        for word in ["one", "two", "three", "four", "five", "six", "a.rs"] {
            assert!(words.contains(word), "{word} in {narrow:#?}");
        }
    }

    #[test]
    fn a_terminal_obeys_nothing_of_an_answer() {
        for text in [
            "\u{1b}]52;c;eA==\u{7}",
            "# \u{1b}[2J",
            "`\u{9b}31m`",
            "```\n\u{1b}[2J\n```",
            "```\u{1b}[2J\nx\n```",
            "&#27;[2J &#x9b;31m &#7;",
            "[x](\u{1b}[2J)",
            "[x](<a&#27;[2J>)",
            "| \u{1b}[2J |\n|--|\n| &#27; |",
            "<b title=\"\u{1b}[2J\">",
            "> \u{202e}evil",
            "- good\rEVIL",
            "&#8238;evil",
            "![\u{1b}[2J](x)",
        ] {
            let all = lines(text, 80);
            assert!(!all.is_empty());
            for line in all {
                let plain = line.plain();
                let obeyed = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
                assert!(!plain.chars().any(obeyed), "{text:?}: {plain:?}");
            }
        }
    }

    #[test]
    fn no_word_of_a_page_is_lost_at_any_width() {
        let text = "# Head one\n\nText two **three** `four` [five](six).\n\n1. seven\n   - eight\n\n     > nine\n2. ten\n\n```sh\neleven twelve\n```\n\n| thirteen | fourteen |\n|---|---|\n| fifteen | sixteen seventeen |\n\n<i>eighteen</i>\n\nnineteen  \ntwenty";
        let words = "Head one Text two three four five six seven eight nine ten sh eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty";
        for width in 1..100 {
            let all = shown(text, width).join("\n");
            for word in words.split(' ') {
                assert!(all.contains(word), "{word} at {width}: {all}");
            }
        }
    }
}
