//! `install` and `uninstall`: lets a client start phone-opus, by its own configuration file.
//!
//! Owns: which file, which program, the question whether to write, what is said. May not know: how a text is edited, what of it is
//! ours, how a file is replaced.
//!
//! ```text
//! table ─▶ file (place) ─▶ plan (text, record) ─▶ diff ─▶ yes? ─▶ record, file
//! ```
//!
//! Invariants: (1) nothing is written that was not shown, and nothing without a yes: by `--yes` or at the terminal; (2) the program
//! is named by an absolute path where versions are installed.

mod diff;
mod json_text;
mod place;
mod plan;
mod record;
pub(crate) mod stale;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod toml_text;

use std::io;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use phone_opus::internals::base::state_dir::StateDir;
use serde_json::{Value, json};

use self::place::{Found, PlaceError, Where};
use self::plan::{After, Force, Plan, PlanError};
use self::record::Kept;
use self::table::{Client, Surroundings};
pub(crate) use self::table::{ClientName, SetupScope};
use self::text::At;
use crate::agreement::{Agreement, DECLINED, agreed};
use crate::cli::SetupOptions;
use crate::output::{print, print_json, say};
use crate::settings::{rollout_with, state_dir};

/// What is done to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Install,
    Uninstall,
}

/// What a client starts phone-opus with.
const SERVE: [&str; 2] = ["mcp", "serve"];
const CONNECT: [&str; 2] = ["mcp", "connect"];

/// What an entry can name as the program.
struct Program(String);

/// Why a client stays as it is.
#[derive(Debug, thiserror::Error)]
enum SetupFault {
    #[error("find your home directory: HOME is not set")]
    NoHome,
    #[error("find out where this is: {0}")]
    NoPlace(io::Error),
    #[error("set up {0} for a project: it reads no file of a project; leave --scope out")]
    NoProjectFile(&'static str),
    #[error("name this program's file; start it by its path")]
    NoProgram,
    #[error("name {}: a path below `target` is a build directory, which the next build sweeps; install the program \
        (cargo install --path . --config .cargo/ship.toml) and run that one", .0.display())]
    BuildDirectory(PathBuf),
    #[error("name {}: the path is not UTF-8", .0.display())]
    NotUtf8(PathBuf),
    #[error("{0}")]
    Place(#[from] PlaceError),
    #[error("change {}: failed to {error}", path.display())]
    Plan { path: PathBuf, error: PlanError },
    #[error("ask: there is no terminal to ask at; --yes writes what is shown, --dry-run only shows it")]
    NobodyToAsk,
    #[error("{0}")]
    StateDir(String),
}

impl SetupFault {
    /// 2 where the command was wrong, 1 where the world is.
    fn code(&self) -> u8 {
        match self {
            Self::NoHome
            | Self::NoProjectFile(_)
            | Self::NoProgram
            | Self::BuildDirectory(_)
            | Self::NotUtf8(_)
            | Self::NobodyToAsk
            | Self::StateDir(_) => 2,
            Self::NoPlace(_) | Self::Place(_) | Self::Plan { .. } => 1,
        }
    }

    /// Where in the file, if it is about a place there.
    fn at(&self) -> Option<At> {
        match self {
            Self::Plan { error, .. } => error.at(),
            _ => None,
        }
    }
}

/// Lets a client start phone-opus.
pub(crate) fn install(options: &SetupOptions) -> ExitCode {
    ended(Act::Install, options)
}

/// Takes that back.
pub(crate) fn uninstall(options: &SetupOptions) -> ExitCode {
    ended(Act::Uninstall, options)
}

fn ended(act: Act, options: &SetupOptions) -> ExitCode {
    match run(act, options) {
        Ok(code) => ExitCode::from(code),
        Err(fault) => {
            // A plan that nobody could be asked about was shown as one.
            if options.json && !matches!(fault, SetupFault::NobodyToAsk) {
                let at = fault.at().map(|at| json!({"line": at.line, "column": at.column}));
                print_json(json!({"status": "refused", "error": format!("failed to {fault}"), "at": at}));
            }
            say(&format!("phone-opus: failed to {fault}"));
            ExitCode::from(fault.code())
        }
    }
}

fn run(act: Act, options: &SetupOptions) -> Result<u8, SetupFault> {
    let client = Client::named(options.client);
    let dir = state_dir(&options.common).map_err(|error| SetupFault::StateDir(error.to_string()))?;
    let arguments = if options.connect { CONNECT } else { SERVE };
    let program = match act {
        Act::Install => Some(program()?),
        Act::Uninstall => program().ok(),
    };
    let found = Found::find(&place(client, options.scope)?)?;
    let kept = Kept::of(&dir, &client.word(), found.real());
    let before = kept.read();
    let force = if options.force { Force::Yes } else { Force::No };
    let planned = match (act, &program) {
        (Act::Install, Some(Program(program))) => {
            plan::install(client, found.text.as_deref(), &client.entry(program, &arguments), before.as_ref(), force)
        }
        _ => {
            let named = program
                .iter()
                .flat_map(|Program(program)| [SERVE, CONNECT].map(|arguments| client.entry(program, &arguments)));
            let entries: Vec<_> = named.collect();
            plan::uninstall(client, found.text.as_deref(), &entries, before.as_ref(), force)
        }
    };
    let plan = planned.map_err(|error| SetupFault::Plan { path: found.path().to_owned(), error })?;
    let said = Said::new(act, client, options, &found, &plan, program.as_ref());
    act_on(&said, options, plan, found, &kept, &dir)
}

/// Shows a plan, and follows it where it may.
fn act_on(
    said: &Said<'_>,
    options: &SetupOptions,
    plan: Plan,
    found: Found,
    kept: &Kept,
    dir: &StateDir,
) -> Result<u8, SetupFault> {
    let left_alone = said.act == Act::Uninstall && !plan.kept.is_empty();
    if plan.after == After::Same {
        if said.act == Act::Uninstall && !left_alone && !options.dry_run {
            // What was remembered of an entry that its user has removed.
            let _ = kept.write(dir, None);
        }
        said.end(State::NothingToDo);
        return Ok(u8::from(left_alone));
    }
    said.show();
    if options.dry_run {
        said.end(State::WouldWrite);
        return Ok(0);
    }
    match agreed("Write this?", options.yes, options.json) {
        Agreement::Yes => {}
        Agreement::No => {
            said.end(State::Declined);
            return Ok(DECLINED);
        }
        Agreement::NobodyToAsk => {
            said.end(State::NeedsYes);
            return Err(SetupFault::NobodyToAsk);
        }
    }
    let record = plan.record.map(|record| plan::Record { file: found.real().display().to_string(), ..record });
    let before = kept.read();
    let new = match &plan.after {
        After::Text(text) => Some(text.as_str()),
        _ => None,
    };
    // The record goes first: one of something that was not written says nothing untrue, since what is there is compared with it.
    let written = match said.act {
        Act::Install => found.replace(new, || kept.write(dir, record.as_ref())),
        Act::Uninstall => found.replace(new, || Ok(())),
    };
    match (&written, said.act) {
        (Ok(()), Act::Uninstall) => {
            let _ = kept.write(dir, record.as_ref());
        }
        (Err(_), Act::Install) => {
            let _ = kept.write(dir, before.as_ref());
        }
        _ => {}
    }
    written?;
    said.end(State::Written);
    Ok(u8::from(left_alone))
}

/// The file that a client reads for a scope.
fn place(client: &Client, scope: SetupScope) -> Result<Where, SetupFault> {
    let places: Vec<Where> = match scope {
        SetupScope::User => {
            let home = dirs::home_dir().filter(|home| home.is_absolute()).ok_or(SetupFault::NoHome)?;
            let variable = |name: &str| std::env::var_os(name);
            let at = Surroundings { home: &home, variable: &variable, macos: cfg!(target_os = "macos") };
            client.user_files(&at).into_iter().map(Where::User).collect()
        }
        SetupScope::Project => {
            let root = std::env::current_dir().map_err(SetupFault::NoPlace)?;
            client.project_files().into_iter().map(|below| Where::Project { root: root.clone(), below }).collect()
        }
    };
    let there = places.iter().find(|place| place.is_there());
    there.or(places.last()).cloned().ok_or(SetupFault::NoProjectFile(client.title))
}

/// The path that a client is to start, which outlives the next build.
fn program() -> Result<Program, SetupFault> {
    let path = rollout_with(Vec::new()).map(|setup| setup.launch.path).ok_or(SetupFault::NoProgram)?;
    let mut path = std::path::absolute(&path).map_err(SetupFault::NoPlace)?;
    if path.components().any(|part| part == Component::ParentDir)
        && let (Some(dir), Some(name)) = (path.parent(), path.file_name())
    {
        // A link is how many an installation changes versions, so it is only resolved where the path goes up again.
        path = dir.canonicalize().map_err(SetupFault::NoPlace)?.join(name);
    }
    let is_build = |path: &Path| path.components().any(|part| part.as_os_str() == "target");
    if is_build(&path) || path.canonicalize().is_ok_and(|real| is_build(&real)) {
        return Err(SetupFault::BuildDirectory(path));
    }
    path.to_str().map(|text| Program(text.to_owned())).ok_or(SetupFault::NotUtf8(path))
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    NothingToDo,
    WouldWrite,
    NeedsYes,
    Declined,
    Written,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::NothingToDo => "nothing_to_do",
            Self::WouldWrite => "would_write",
            Self::NeedsYes => "needs_yes",
            Self::Declined => "declined",
            Self::Written => "written",
        }
    }
}

/// What is said of a plan.
struct Said<'c> {
    act: Act,
    client: &'c Client,
    json: bool,
    scope: SetupScope,
    path: PathBuf,
    real: PathBuf,
    diff: Vec<String>,
    changes: Vec<(String, Option<Value>)>,
    kept: Vec<String>,
    /// The file as a whole comes or goes.
    whole: bool,
}

impl<'c> Said<'c> {
    fn new(
        act: Act,
        client: &'c Client,
        options: &SetupOptions,
        found: &Found,
        plan: &Plan,
        program: Option<&Program>,
    ) -> Self {
        let old = found.text.as_deref().unwrap_or_default();
        let new = match &plan.after {
            After::Text(text) => text,
            After::Same => old,
            After::Gone => "",
        };
        let program = program.map(|Program(program)| program.as_str());
        let ours: Vec<&str> =
            ["phone-opus", "mcp", "serve", "connect", "stdio", "local"].into_iter().chain(program).collect();
        Self {
            act,
            client,
            json: options.json,
            scope: options.scope,
            path: found.path().to_owned(),
            real: found.real().to_owned(),
            diff: diff::lines(client.format, old, new, &ours),
            changes: plan.changes.clone(),
            kept: plan.kept.clone(),
            whole: found.text.is_none() || plan.after == After::Gone,
        }
    }

    /// What would change.
    fn show(&self) {
        if self.json {
            return;
        }
        let follows = if self.real == self.path { String::new() } else { format!(" -> {}", self.real.display()) };
        let whole = match (self.whole, self.act) {
            (true, Act::Install) => ", a new file",
            (true, Act::Uninstall) => ", which goes",
            _ => "",
        };
        print(&format!("# {}: {}{follows}{whole}", self.client.title, self.path.display()));
        for line in &self.diff {
            print(line);
        }
    }

    /// What became of it.
    fn end(&self, state: State) {
        if self.json {
            let changes: Vec<Value> =
                self.changes.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
            let act = if self.act == Act::Install { "install" } else { "uninstall" };
            let said = json!({
                "action": act, "client": self.client.word(), "scope": self.scope.word(), "status": state.word(),
                "file": self.path.display().to_string(), "real_file": self.real.display().to_string(),
                "changes": changes, "kept": self.kept, "diff": self.diff, "then": self.client.then,
            });
            print_json(said);
            return;
        }
        let path = self.path.display();
        match (state, self.act) {
            (State::NothingToDo, Act::Install) => {
                print(&format!("{} starts phone-opus already: {path}", self.client.title))
            }
            (State::NothingToDo, Act::Uninstall) if self.kept.is_empty() => {
                print(&format!("nothing of ours is in {path}"));
            }
            (State::NothingToDo, Act::Uninstall) => {}
            (State::WouldWrite, _) => print("# nothing was written (--dry-run)"),
            (State::NeedsYes | State::Declined, _) => print("# nothing was written"),
            (State::Written, Act::Install) => print(&format!("# written; {}", self.client.then)),
            (State::Written, Act::Uninstall) => print("# written; sessions that run keep what they have started"),
        }
        if !self.kept.is_empty() {
            let how = match self.act {
                Act::Install => "stays as you have it",
                Act::Uninstall => "is not as it was written, so the entry stays; --force takes it out whole",
            };
            say(&format!("phone-opus: {path}: {} {how}", self.kept.join(", ")));
        }
    }
}
