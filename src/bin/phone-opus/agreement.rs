//! The question that is asked at the terminal before something is done.
//!
//! Owns: who can be asked, and which answers are a yes. May not know: what is to be done.

use std::io::{self, IsTerminal as _};

use crate::output::say_over;

/// The exit code of a user's no.
pub(crate) const DECLINED: u8 = 3;

/// What came of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Agreement {
    Yes,
    No,
    /// No terminal on both sides, or a program reads the output.
    NobodyToAsk,
}

/// Whether it may be done: by `--yes`, or by whoever is asked. With `--json` nobody is.
pub(crate) fn agreed(question: &str, yes: bool, json: bool) -> Agreement {
    if yes {
        return Agreement::Yes;
    }
    if json || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Agreement::NobodyToAsk;
    }
    say_over(&format!("{question} [y/N] "));
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
        Agreement::Yes
    } else {
        Agreement::No
    }
}
