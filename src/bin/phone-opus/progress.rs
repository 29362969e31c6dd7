//! What a person sees while a consult runs: that it goes on, what the agent does, and the end of what it has said.
//!
//! Owns: how that is laid out, and when it is drawn anew. May not know: where news come from.
//!
//! ```text
//! ⠙ 12 s · using Read · job 3f2504e0
//! │ the last lines of what
//! │ the agent has said
//! ```
//!
//! A terminal that cannot go back is told of each phase once instead, in a line of its own.

use std::time::Duration;

use phone_opus::internals::base::ids::JobId;

use crate::job_word::short;
use crate::output::{draw, erase, err, say};
use crate::screen::{Face, Line, ages, layout, paint};

/// Between two pictures: quick enough to look alive, and less work for a terminal than a key held down.
pub(crate) const FRAME: Duration = Duration::from_millis(100);

/// The mark that turns.
const TURNS: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// The mark in this picture.
pub(crate) fn turn(frame: usize) -> &'static str {
    TURNS[frame % TURNS.len()]
}

/// Lines of what was said that are shown.
const SAID: usize = 8;

/// Rows of the terminal that are left to what stood there before.
const LEFT: usize = 4;

/// A consult that is waited for.
pub(crate) struct Progress {
    job: JobId,
    face: Face,
    frame: usize,
    /// The phase that was told last, where each is told once.
    told: String,
}

impl Progress {
    /// Of this job. Says at once which it is and how it is ended: whoever loses the terminal finds the answer by it.
    pub(crate) fn begin(job: JobId, agent: &str) -> Self {
        say(&format!("job {} asks {agent}; Ctrl-C ends it", short(job)));
        Self { job, face: err(), frame: 0, told: String::new() }
    }

    /// Of this job of the fleet, whose id is found on no machine by how it begins.
    pub(crate) fn of_fleet(job: JobId, agent: &str) -> Self {
        say(&format!("job {job} asks {agent} in the fleet; Ctrl-C ends it wherever it is"));
        Self { job, face: err(), frame: 0, told: String::new() }
    }

    /// Shows how it is after so long.
    pub(crate) fn show(&mut self, after: Duration, phase: &str, said: &str) {
        if self.face.moves {
            // A window may be made larger or smaller meanwhile.
            self.face = err();
            draw(&picture(self.job, self.face, self.frame, after, phase, said));
            self.frame += 1;
        } else if phase != self.told {
            say(&format!("[{:>4} s] {phase}", after.as_secs()));
            phase.clone_into(&mut self.told);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        erase();
    }
}

fn picture(job: JobId, face: Face, frame: usize, after: Duration, phase: &str, said: &str) -> Vec<Line> {
    // In the last column some terminals begin the next line.
    let width = face.width.saturating_sub(1);
    let mut first = Line::of(paint::BUSY, turn(frame));
    first.push(paint::PLAIN, &format!(" {} · {phase}", ages::elapsed(after.as_secs())));
    first.push(paint::DIM, &format!(" · job {}", short(job)));
    let room = SAID.min(face.height.saturating_sub(LEFT));
    // More than these characters fill no window.
    let from = said.char_indices().rev().nth(room * width).map_or(0, |(at, _)| at);
    let lines = layout::paragraph(paint::DIM, said[from..].trim_end(), width.saturating_sub(2));
    let last = lines.into_iter().filter(|line| !line.is_empty());
    let mut last: Vec<Line> = last.collect();
    let last = last.split_off(last.len().saturating_sub(room));
    let mut rows = vec![layout::cut(&first, width)];
    rows.extend(last.into_iter().map(|line| {
        let mut row = Line::of(paint::DIM, "│ ");
        row.append(line);
        layout::cut(&row, width)
    }));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(face: Face, phase: &str, said: &str) -> Vec<String> {
        let job = "3f2504e0-4f89-41d3-9a0c-0305e82c3301".parse().expect("an id");
        picture(job, face, 1, Duration::from_secs(125), phase, said).iter().map(Line::plain).collect()
    }

    const FACE: Face = Face { terminal: true, colour: false, moves: true, width: 80, height: 24 };

    #[test]
    fn the_picture_has_the_phase_the_time_the_job_and_the_end_of_what_was_said() {
        assert_eq!(shown(FACE, "using Read", ""), ["⠙ 2 min 05 s · using Read · job 3f2504e0"]);
        assert_eq!(shown(FACE, "writing", "one\n\ntwo"), ["⠙ 2 min 05 s · writing · job 3f2504e0", "│ one", "│ two"]);
        let many: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let rows = shown(FACE, "writing", &many);
        assert_eq!((rows.len(), rows.last().map(String::as_str)), (1 + SAID, Some("│ line 99")));
    }

    #[test]
    fn no_row_is_broken_by_the_terminal_and_the_window_leaves_room() {
        let said = format!("{} {}", "漢".repeat(500), "\u{1b}[2J word".repeat(300));
        for (width, height) in [(40, 5), (80, 24), (120, 50), (40, 2)] {
            let face = Face { width, height, ..FACE };
            let rows = shown(face, &"phase".repeat(50), &said);
            assert!(rows.len() <= 1 + height.saturating_sub(LEFT), "{width}x{height}: {rows:#?}");
            for row in rows {
                assert!(layout::width(&row) < width, "{width}: {row:?}");
                assert!(!row.chars().any(char::is_control), "{row:?}");
            }
        }
    }
}
