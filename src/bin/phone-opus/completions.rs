//! What a shell completes: the script it is given once, and the words it asks for at each key.
//!
//! Owns: which word is asked for how, and job ids among them. May not know: what a command does.
//!
//! Invariants: (1) nothing is made or changed by a completion: where no job was ever asked there is no store; (2) it answers
//! soon or with nothing: [`PATIENCE`]; (3) what a shell shows of a job has no character in it that a terminal obeys.

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, ValueEnum};
use clap_complete::CompleteEnv;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::Shells;
use phone_opus::internals::base::ids::UnixMillis;
use phone_opus::internals::base::lenient;
use phone_opus::internals::jobs::JobSummary;
use phone_opus::internals::jobs::store::{JobFilter, StoreHandle};

use crate::cli::{Cli, Common};
use crate::output::{print, say};
use crate::screen::ages;
use crate::settings::{runtime, state_dir};

/// The variable by which a shell's script asks. A name of our own: one that others use too could be set for a server.
const VARIABLE: &str = "PHONE_OPUS_COMPLETE";

/// How long the store is waited for; after that a person has typed on.
const PATIENCE: Duration = Duration::from_millis(500);

/// Jobs that are offered.
const OFFERED: usize = 30;

/// Shells that can be given a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShellKind {
    Bash,
    Elvish,
    Fish,
    #[value(name = "powershell")]
    PowerShell,
    Zsh,
}

impl ShellKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Elvish => "elvish",
            Self::Fish => "fish",
            Self::PowerShell => "powershell",
            Self::Zsh => "zsh",
        }
    }
}

/// Answers a shell that asks what a word may become. `None` where none asks.
pub(crate) fn asked() -> Option<ExitCode> {
    std::env::var_os(VARIABLE).filter(|shell| !shell.is_empty())?;
    let here = std::env::current_dir().ok();
    let answered =
        CompleteEnv::with_factory(Cli::command).var(VARIABLE).try_complete(std::env::args_os(), here.as_deref());
    match answered {
        Ok(true) => Some(ExitCode::SUCCESS),
        // The variable says that nothing is asked.
        Ok(false) => None,
        Err(error) => {
            say(&format!("phone-opus: {error}"));
            Some(ExitCode::FAILURE)
        }
    }
}

/// Prints the script for a shell.
pub(crate) fn script(shell: ShellKind) -> ExitCode {
    let shells = Shells::builtins();
    let mut script = Vec::new();
    let written = match shells.completer(shell.name()) {
        Some(completer) => {
            completer.write_registration(VARIABLE, "phone-opus", "phone-opus", "phone-opus", &mut script)
        }
        None => Err(io::ErrorKind::Unsupported.into()),
    };
    match written.and_then(|()| script.flush()) {
        Ok(()) => {
            print(String::from_utf8_lossy(&script).trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("phone-opus: failed to write the script for {}: {error}", shell.name()));
            ExitCode::FAILURE
        }
    }
}

/// Jobs whose id begins with what was typed, the newest first.
pub(crate) fn jobs(typed: &OsStr) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy().to_ascii_lowercase();
    let last = ("last", "the last one of this directory");
    let mut offered = Vec::new();
    if last.0.starts_with(&typed) {
        offered.push(CompletionCandidate::new(last.0).help(Some(last.1.into())));
    }
    let now = UnixMillis::now();
    let found = known().into_iter().filter(|row| row.id.to_string().starts_with(&typed));
    offered
        .extend(found.map(|row| CompletionCandidate::new(row.id.to_string()).help(Some(described(&row, now).into()))));
    offered
}

/// A job in a few words.
fn described(row: &JobSummary, now: UnixMillis) -> String {
    let prompt = row.prompt_head.split_whitespace().collect::<Vec<_>>().join(" ");
    let prompt: String = prompt.chars().take(40).collect();
    lenient::visible(&format!("{}, {}: {prompt}", row.state.as_str(), ages::ago(row.accepted_at, now))).into_owned()
}

/// The newest jobs, where there are any and the store says so in time.
fn known() -> Vec<JobSummary> {
    let Ok(dir) = state_dir(&Common { state_dir: None }) else { return Vec::new() };
    if !dir.database().exists() {
        return Vec::new();
    }
    let Ok(runtime) = runtime() else { return Vec::new() };
    let mut rows = runtime.block_on(async {
        let store = StoreHandle::sqlite(dir);
        let filter = JobFilter { workspace: None, state: None, limit: OFFERED };
        tokio::time::timeout(PATIENCE, store.list(filter)).await.ok().and_then(Result::ok).unwrap_or_default()
    });
    runtime.shutdown_background();
    rows.sort_by_key(|row| std::cmp::Reverse(row.accepted_at));
    rows
}
