//! The voices of the scripted agent: what each real program says where the script says what happens.
//!
//! Owns: which program it plays, by the words it is called with. May not know: scripts.
//!
//! A program that is to be played as well is one file here and a row in [`ALL`].

use std::io::{self, BufRead, Write};

use serde_json::{Map, Value};

mod acp;
mod claude;
mod codex;
mod copilot;
mod gemini;
mod opencode;
mod qwen;

pub use self::claude::{HELP, VERSION};

/// What a run says of itself in every event.
#[derive(Debug, Clone, Default)]
pub(super) struct Speaker {
    /// Its session.
    pub session_id: String,
    /// Its model.
    pub model: String,
    /// Where it says its key comes from, by the script.
    pub key_source: Option<String>,
    /// The request that it answers, where it is talked to.
    pub request: Value,
}

/// What was said to a program that is talked to, until it was asked.
#[derive(Debug)]
pub(super) struct Conversed {
    /// What it was asked.
    pub prompt: String,
    /// Its session.
    pub session_id: String,
    /// The request it was asked by.
    pub request: Value,
}

/// How a program refuses the words it is called with.
#[derive(Debug)]
pub(super) struct OptionRefused {
    /// One line for stderr.
    pub line: String,
    /// Its exit code.
    pub code: i32,
}

/// One program's way of saying things.
pub(super) trait Voice: Sync {
    /// Whether these are words this program is called with.
    fn is_called(&self, args: &[String]) -> bool;

    /// What it answers to a question about itself; `None` when these words are none.
    fn asked(&self, args: &[String]) -> Option<String>;

    /// Refuses what the real program refuses, and returns the session to resume.
    ///
    /// # Errors
    ///
    /// What it says to it.
    fn check(&self, args: &[String]) -> Result<Option<String>, OptionRefused>;

    /// Speaks with its caller until it is asked, where it is a program that is talked to. Any other reads its whole input.
    fn converse(&self, _input: &mut dyn BufRead, _output: &mut dyn Write) -> Option<io::Result<Conversed>> {
        None
    }

    /// It introduces itself.
    fn introduction(&self, speaker: &Speaker) -> Vec<Value>;

    /// It says something.
    fn text(&self, speaker: &Speaker, text: &str) -> Value;

    /// It thinks.
    fn thinking(&self, speaker: &Speaker) -> Value;

    /// It uses a tool, and the tool gives its result.
    fn tool(&self, speaker: &Speaker, tool: &str) -> Vec<Value>;

    /// A tool use is refused.
    fn denied(&self, tool: &str, target: &str) -> Value;

    /// It waits before it asks its provider again.
    fn retries(&self, attempt: u64, max: u64, delay_ms: u64, status: Option<u64>) -> Value;

    /// The provider has answered with an error of this class.
    fn provider_error(&self, speaker: &Speaker, class: &str) -> Value;

    /// The provider refuses until this time.
    fn limit(&self, at: u64) -> Value;

    /// The provider says this about its limits.
    fn limit_info(&self, info: &Map<String, Value>) -> Value;

    /// Its last word: this answer, under these fields of the script, and whether it has failed by that.
    fn result(&self, speaker: &Speaker, answer: &str, fields: &Map<String, Value>) -> (Vec<Value>, bool);

    /// A line that holds half of a surrogate pair in its text.
    fn half_a_pair(&self) -> &'static str;
}

/// All of them. The first plays when nobody else is called.
const ALL: &[&dyn Voice] =
    &[&claude::Claude, &codex::Codex, &copilot::Copilot, &qwen::Qwen, &gemini::Gemini, &opencode::OpenCode, &acp::Acp];

/// Whom these words call.
pub(super) fn called(args: &[String]) -> &'static dyn Voice {
    ALL.iter().skip(1).find(|voice| voice.is_called(args)).copied().unwrap_or(ALL[0])
}

/// What Gemini CLI, and Qwen Code which is made from it, make of these words: the session to resume, or a refusal.
fn resumed(args: &[String], flags: &[&str], options: &[&str]) -> Result<Option<String>, OptionRefused> {
    let mut resume = None;
    let valued = |name: &str, value: &str| {
        if matches!(name, "-r" | "--resume") {
            resume = Some(value.to_owned());
        }
    };
    each_option(args, flags, options, valued, |arg, _| {
        Err(OptionRefused { line: format!("Unknown argument: {}", arg.trim_start_matches('-')), code: 1 })
    })?;
    Ok(resume)
}

/// The words an agent's program is checked by: flags, and options with a value. What is neither is given to `other`, which may take
/// the next words as well.
fn each_option(
    args: &[String],
    flags: &[&str],
    options: &[&str],
    mut valued: impl FnMut(&str, &str),
    mut other: impl FnMut(&str, &mut std::slice::Iter<'_, String>) -> Result<(), OptionRefused>,
) -> Result<(), OptionRefused> {
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if flags.contains(&arg.as_str()) {
            valued(arg, "");
        } else if options.contains(&arg.as_str()) {
            let Some(value) = rest.next() else {
                return Err(OptionRefused { line: format!("error: option '{arg}' argument missing"), code: 1 });
            };
            valued(arg, value);
        } else {
            other(arg, &mut rest)?;
        }
    }
    Ok(())
}
