//! Cuts a stream of bytes into lines.
//!
//! Owns: the unfinished line. May not know what a line means. Invariants: (1) holds at most `max` bytes whatever comes
//! in; (2) every byte belongs to exactly one line, given or counted; (3) the result does not depend on how the input is
//! portioned.

/// Bytes of one line that are kept.
///
/// An agent writes its whole answer as one line and 8 MB have been seen; eight times that is no answer any more. A
/// longer line is skipped, its bytes counted.
pub const MAX_LINE_BYTES: usize = 64 << 20;

/// Capacity kept between lines. One long answer must not hold its memory until the end of the run.
const KEPT_CAPACITY: usize = 1 << 20;

/// One line, without its line end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentLine<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// Longer than the bound; its text is gone.
    TooLong {
        /// How long it was.
        bytes: u64,
    },
}

/// Keeps the unfinished line between portions of input.
#[derive(Debug)]
pub struct LineSplitter {
    max: usize,
    partial: Vec<u8>,
    /// Bytes of the current line that were not kept; more than zero means the line is already too long.
    skipped: u64,
}

impl LineSplitter {
    /// A splitter that keeps lines of up to `max` bytes.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { max, partial: Vec::new(), skipped: 0 }
    }

    /// Takes the next bytes and gives every line they complete to `each`.
    pub fn push(&mut self, mut bytes: &[u8], each: &mut dyn FnMut(AgentLine<'_>)) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            if self.partial.is_empty() && self.skipped == 0 && line.len() <= self.max {
                each(AgentLine::Whole(line));
            } else {
                self.keep(line);
                self.give(each);
            }
            bytes = rest;
        }
        self.keep(bytes);
    }

    /// What is kept of the unfinished line; nothing when it is too long already.
    #[must_use]
    pub fn unfinished(&self) -> &[u8] {
        &self.partial
    }

    /// The end of input: what is left is the last line, if there is anything left.
    pub fn finish(&mut self, each: &mut dyn FnMut(AgentLine<'_>)) {
        if !self.partial.is_empty() || self.skipped > 0 {
            self.give(each);
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.skipped == 0 && self.partial.len() + bytes.len() <= self.max {
            self.partial.extend_from_slice(bytes);
        } else {
            self.skipped += (self.partial.len() + bytes.len()) as u64;
            self.partial = Vec::new();
        }
    }

    fn give(&mut self, each: &mut dyn FnMut(AgentLine<'_>)) {
        if self.skipped > 0 {
            each(AgentLine::TooLong { bytes: self.skipped });
            self.skipped = 0;
        } else {
            each(AgentLine::Whole(&self.partial));
        }
        self.partial.clear();
        if self.partial.capacity() > KEPT_CAPACITY {
            self.partial = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(max: usize, portions: &[&[u8]]) -> Vec<Result<Vec<u8>, u64>> {
        let mut splitter = LineSplitter::new(max);
        let mut lines = Vec::new();
        let mut each = |line: AgentLine<'_>| {
            lines.push(match line {
                AgentLine::Whole(bytes) => Ok(bytes.to_vec()),
                AgentLine::TooLong { bytes } => Err(bytes),
            });
        };
        for portion in portions {
            splitter.push(portion, &mut each);
        }
        splitter.finish(&mut each);
        lines
    }

    #[test]
    fn lines_do_not_depend_on_how_the_input_is_portioned() {
        let input = b"one\n\ntwo and more\nlonger than the bound of twenty\nlast";
        let whole = split(20, &[input]);
        assert_eq!(
            whole,
            [Ok(b"one".to_vec()), Ok(Vec::new()), Ok(b"two and more".to_vec()), Err(31), Ok(b"last".to_vec())]
        );
        for size in 1..input.len() {
            let portions: Vec<&[u8]> = input.chunks(size).collect();
            assert_eq!(split(20, &portions), whole, "portions of {size}");
        }
    }

    #[test]
    fn a_line_of_fifty_megabytes_is_whole_and_one_over_the_bound_holds_no_memory() {
        let portion = vec![b'a'; 1 << 16];
        let mut splitter = LineSplitter::new(MAX_LINE_BYTES);
        let mut seen = Vec::new();
        let mut each = |line: AgentLine<'_>| {
            seen.push(match line {
                AgentLine::Whole(bytes) => (bytes.len() as u64, true),
                AgentLine::TooLong { bytes } => (bytes, false),
            });
        };
        for _ in 0..(50 << 20) / portion.len() {
            splitter.push(&portion, &mut each);
        }
        splitter.push(b"\n", &mut each);
        assert!(splitter.partial.capacity() <= KEPT_CAPACITY);
        for _ in 0..(80 << 20) / portion.len() {
            splitter.push(&portion, &mut each);
            assert!(splitter.partial.len() <= MAX_LINE_BYTES);
        }
        splitter.push(b"\nshort\n", &mut each);
        assert_eq!(seen, [(50 << 20, true), (80 << 20, false), (5, true)]);
    }
}
