//! The terminal while `top` has it.
//!
//! Owns: how it is taken and given back. May not know: what is shown.
//!
//! Invariant: whatever ends the command but a KILL, the terminal is as it was: line by line, with its cursor, on the screen it had.

use std::io::{self, Stdout};
use std::panic;

use phone_opus::internals::base::ids::UnixMillis;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};

use super::core::TopCore;
use super::view::{self, Paint};

/// The terminal, for as long as this is there.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    paint: Paint,
}

impl Screen {
    /// Takes it.
    pub(super) fn begin(paint: Paint) -> io::Result<Self> {
        enable_raw_mode()?;
        // From here on it is given back, also where the next step fails.
        let given_back = GivenBack;
        execute!(io::stdout(), EnterAlternateScreen)?;
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        std::mem::forget(given_back);
        tell_panics_on_the_screen_there_was();
        Ok(Self { terminal, paint })
    }

    /// Shows what is known.
    pub(super) fn show(&mut self, core: &TopCore, now: UnixMillis) -> io::Result<()> {
        let paint = self.paint;
        self.terminal.draw(|frame| view::draw(frame, core, paint, now)).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

struct GivenBack;

impl Drop for GivenBack {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    // Each by itself: what fails leaves the others to be tried, and nobody is there to be told.
    let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}

/// A panic of this thread ends the command: its words go to the screen that stays. One of another thread is survived.
fn tell_panics_on_the_screen_there_was() {
    let (before, this) = (panic::take_hook(), std::thread::current().id());
    panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() == this {
            give_back();
        }
        before(info);
    }));
}

#[cfg(test)]
mod tests {
    use phone_opus::testkit::Rig;
    use phone_opus::testkit::outputs::Keyboard;

    use super::*;

    /// Set for the program that is to panic.
    const CHILD: &str = "PHONE_OPUS_TOP_PANICS";

    #[test]
    #[ignore = "the next test plays it, on a terminal of its own"]
    fn it_panics_with_the_terminal_in_hand() {
        if std::env::var_os(CHILD).is_some() {
            let mut screen = Screen::begin(Paint::None).expect("a terminal");
            screen.show(&TopCore::new(), UnixMillis(0)).expect("shown");
            panic!("on purpose");
        }
    }

    #[tokio::test]
    async fn after_a_panic_the_terminal_is_as_it_was_and_its_words_stand_on_the_screen_that_stays() {
        let rig = Rig::new(std::env::current_exe().expect("this program")).with(CHILD, "1").with("TERM", "xterm");
        let this = "top::screen::tests::it_panics_with_the_terminal_in_hand";
        let words = [this, "--exact", "--ignored", "--nocapture"];
        let child = rig.begin_on_a_terminal(&words, Some((80, 24)), Keyboard::There);
        let (status, seen, modes) = child.ended_with_modes().await;
        assert_eq!(status.code(), Some(101), "{seen}");
        let after = seen.rsplit("\u{1b}[?1049h").next().unwrap_or_default();
        let (_, stays) = after.split_once("\u{1b}[?1049l").expect("the screen is given back");
        assert!(stays.contains("on purpose") && after.contains("\u{1b}[?25h"), "{seen:?}");
        assert_eq!(modes, (true, true));
    }
}
