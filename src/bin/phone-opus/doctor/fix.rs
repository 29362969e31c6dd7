//! `doctor --fix`: what is safe to put right.
//!
//! Owns: what that is, that it is shown before it is done, and at whose word. May not know: how a lock, a job or a client's file is
//! dealt with; each has its own module.
//!
//! | fix | what is done | how it is taken back |
//! |---|---|---|
//! | `modes` | files and directories of the state directory that others could read are closed | `chmod` |
//! | `daemon` | the record and the socket of a daemon that was killed go | the next daemon makes both |
//! | `jobs` | jobs whose runner is gone are settled, as any server does within 30 s; what is left of their agents is ended | they stay, with their journal |
//! | `hosts` | locks of servers and waiting processes that are gone go | each server makes its own |
//! | `partial` | files that were being written when somebody died, an hour ago or more, go | they were never read |
//! | `client` | a client that starts a program of ours which is gone is led to this one | `uninstall` |
//!
//! Invariants: (1) nothing is done that was not shown, and nothing without a yes; (2) what others can write to, own, or lead to by a
//! link is left alone and is no matter of a fix: it cannot be trusted; (3) no job is forgotten, and no file of an agent is touched.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use phone_opus::internals::base::fault::{Fault, FaultCode};
use phone_opus::internals::base::ids::JobId;
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::daemon::left::DaemonLeft;
use phone_opus::internals::jobs::evidence::{clear_waiters, dead_waiters};
use phone_opus::internals::jobs::host_lock::{clear_hosts, dead_hosts};
use phone_opus::internals::jobs::store::StoreHandle;
use phone_opus::internals::jobs::sweep::{self, Settlement};
use rustix::fs::OFlags;
use serde_json::{Value, json};

use crate::agreement::{Agreement, agreed};
use crate::clients::stale::{self, Stale};
use crate::output::{out, print_lines};
use crate::screen::ages::counted;
use crate::screen::layout::{CellFit, laid_out};
use crate::screen::{Line, paint};
use crate::settings::{Prepared, SetupError, chain, runtime};

/// How old a file has to be that nobody has finished: whoever writes one needs milliseconds.
const ABANDONED: Duration = Duration::from_secs(3_600);

/// Directories below one another that are looked into; ours are three deep.
const DEEPEST: usize = 6;

/// Paths that are named of a fix with many.
const NAMED: usize = 3;

/// Something that can be put right.
pub(super) enum Fix {
    /// Others could read these.
    Modes(Vec<Open>),
    Daemon(DaemonLeft),
    Jobs(Vec<JobId>),
    Hosts {
        hosts: usize,
        waiting: usize,
    },
    Partial(Vec<PathBuf>),
    Client(Box<Stale>),
}

/// A file or directory that others could read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Open {
    path: PathBuf,
    mode: u32,
    wanted: u32,
}

impl Fix {
    fn word(&self) -> &'static str {
        match self {
            Self::Modes(_) => "modes",
            Self::Daemon(_) => "daemon",
            Self::Jobs(_) => "jobs",
            Self::Hosts { .. } => "hosts",
            Self::Partial(_) => "partial",
            Self::Client(_) => "client",
        }
    }

    /// What it will do.
    fn text(&self, dir: &StateDir) -> String {
        let below = |path: &Path| match path.strip_prefix(dir.root()) {
            Ok(rest) if !rest.as_os_str().is_empty() => rest.display().to_string(),
            _ => path.display().to_string(),
        };
        match self {
            Self::Modes(open) => {
                let told = open
                    .iter()
                    .map(|open| format!("{} ({:03o}, to be {:03o})", below(&open.path), open.mode, open.wanted));
                format!("close to other users: {}", some(told.collect()))
            }
            Self::Daemon(left) => match left.socket() {
                Some(place) => {
                    format!("take away what a dead daemon left: daemon.json and the socket {}", place.path.display())
                }
                None => "take away what a dead daemon left: daemon.json".to_owned(),
            },
            Self::Jobs(jobs) => {
                let jobs = jobs.iter().map(JobId::to_string).collect();
                format!("settle jobs whose runner is gone, and end what is left of their agents: {}", some(jobs))
            }
            Self::Hosts { hosts, waiting } => format!(
                "take away locks of {} and {} that are gone",
                counted(*hosts as u64, "server"),
                // One host waits with its jobs by a process.
                if *waiting == 1 { "1 waiting process".to_owned() } else { format!("{waiting} waiting processes") }
            ),
            Self::Partial(files) => {
                format!("remove what nobody finished writing: {}", some(files.iter().map(|path| below(path)).collect()))
            }
            Self::Client(stale) => stale.text(),
        }
    }

    /// Does it.
    async fn apply(self, dir: &StateDir) -> Result<(), String> {
        match self {
            Self::Modes(open) => open.iter().try_for_each(close),
            Self::Daemon(left) => match left.clear(dir) {
                Ok(true) => Ok(()),
                Ok(false) => Err("another daemon has come meanwhile".to_owned()),
                Err(error) => Err(format!("failed to {}", chain(&error))),
            },
            Self::Jobs(jobs) => {
                let store = StoreHandle::sqlite(dir.clone());
                let settled = settle(&store, dir, jobs).await;
                store.close().await;
                settled
            }
            Self::Hosts { .. } => {
                clear_hosts(dir);
                clear_waiters(dir);
                Ok(())
            }
            Self::Partial(files) => files.iter().try_for_each(|path| match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("{}: {error}", path.display())),
                _ => Ok(()),
            }),
            Self::Client(stale) => stale.repoint(dir),
        }
    }
}

/// The first few of them, and how many more there are.
fn some(all: Vec<String>) -> String {
    let more = all.len().saturating_sub(NAMED);
    let named = all.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
    if more == 0 { named } else { format!("{named} and {more} more") }
}

async fn settle(store: &StoreHandle, dir: &StateDir, jobs: Vec<JobId>) -> Result<(), String> {
    let mut wrong = Vec::new();
    for job in jobs {
        let why = Fault::new(FaultCode::RunnerLost, "the job's runner is gone.");
        match sweep::settle(store, dir, job, why).await {
            Ok(Settlement::NotBefore(at)) => {
                wrong.push(format!("{job}: its agent is on another machine, and may live until {}", at.to_iso8601()));
            }
            Ok(_) => {}
            Err(fault) => wrong.push(format!("{job}: {fault}")),
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

/// Everything that can be put right, and what is to be said of what cannot. Changes nothing.
pub(super) async fn plan(dir: &StateDir) -> (Vec<Fix>, Vec<String>) {
    let mut fixes = Vec::new();
    let modes = open_to_others(dir.root());
    if !modes.is_empty() {
        fixes.push(Fix::Modes(modes));
    }
    fixes.extend(DaemonLeft::look(dir).map(Fix::Daemon));
    // Where nothing was ever asked there is no store, and none is made.
    if dir.database().exists() {
        let store = StoreHandle::sqlite(dir.clone());
        let lost = sweep::lost(&store, dir).await.unwrap_or_default();
        store.close().await;
        if !lost.is_empty() {
            fixes.push(Fix::Jobs(lost));
        }
    }
    let (hosts, waiting) = (dead_hosts(dir), dead_waiters(dir));
    if hosts + waiting > 0 {
        fixes.push(Fix::Hosts { hosts, waiting });
    }
    let partial = unfinished(dir.root(), SystemTime::now());
    if !partial.is_empty() {
        fixes.push(Fix::Partial(partial));
    }
    let (stale, said) = stale::find(dir);
    fixes.extend(stale.into_iter().map(|stale| Fix::Client(Box::new(stale))));
    (fixes, said)
}

/// What came of it.
pub(super) enum Fixed {
    /// Everything was dealt with: whether all of it went well.
    Done { well: bool },
    /// The user said no.
    Declined,
    /// It needs a yes, and there was nobody who could have given it.
    NobodyToAsk,
}

/// How it is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// Only shown.
    DryRun,
    /// With a yes, which `--yes` is.
    Agreed { yes: bool },
}

/// What became of one fix.
struct Outcome {
    word: &'static str,
    text: String,
    status: &'static str,
    error: Option<String>,
}

/// Shows what can be put right, asks, and does it. Returns the fixes for `--json` as well.
pub(super) fn run(prepared: &Prepared, manner: Manner, as_json: bool) -> Result<(Fixed, Value), SetupError> {
    let dir = &prepared.dir;
    let runtime = runtime()?;
    let (fixes, said) = runtime.block_on(plan(dir));
    let shown = |fix: &Fix, status| Outcome { word: fix.word(), text: fix.text(dir), status, error: None };
    let all = |status| fixes.iter().map(|fix| shown(fix, status)).collect::<Vec<_>>();
    if !as_json {
        show(&all("would_fix"), &said);
    }
    let told = |outcomes: &[Outcome]| {
        let fixes: Vec<Value> = outcomes
            .iter()
            .map(|o| json!({"fix": o.word, "text": o.text, "status": o.status, "error": o.error}))
            .collect();
        json!({"fixes": fixes, "not_fixed": said})
    };
    if fixes.is_empty() {
        return Ok((Fixed::Done { well: true }, told(&[])));
    }
    match manner {
        Manner::DryRun => return Ok((Fixed::Done { well: true }, told(&all("would_fix")))),
        Manner::Agreed { yes } => match agreed("Do this?", yes, as_json) {
            Agreement::Yes => {}
            Agreement::No => return Ok((Fixed::Declined, told(&all("declined")))),
            Agreement::NobodyToAsk => return Ok((Fixed::NobodyToAsk, told(&all("needs_yes")))),
        },
    }
    let mut outcomes = Vec::new();
    for fix in fixes {
        let mut outcome = shown(&fix, "fixed");
        if let Err(why) = runtime.block_on(fix.apply(dir)) {
            (outcome.status, outcome.error) = ("failed", Some(why));
        }
        outcomes.push(outcome);
    }
    if !as_json {
        results(&outcomes);
    }
    let well = outcomes.iter().all(|outcome| outcome.error.is_none());
    Ok((Fixed::Done { well }, told(&outcomes)))
}

/// What there is to put right.
fn show(fixes: &[Outcome], said: &[String]) {
    if fixes.is_empty() && said.is_empty() {
        return print_lines(&[Line::of(paint::PLAIN, "nothing needs to be put right")]);
    }
    let fix = |fix: &Outcome| {
        [Line::of(paint::DOUBT, "fix"), Line::of(paint::BOLD, fix.word), Line::of(paint::PLAIN, &fix.text)]
    };
    let left =
        |text: &String| [Line::of(paint::BAD, "left"), Line::of(paint::BOLD, "client"), Line::of(paint::PLAIN, text)];
    rows(fixes.iter().map(fix).chain(said.iter().map(left)));
}

/// What became of it.
fn results(outcomes: &[Outcome]) {
    rows(outcomes.iter().map(|outcome| {
        let (style, mark, text) = match &outcome.error {
            None => (paint::GOOD, "done", ""),
            Some(why) => (paint::BAD, "FAIL", why.as_str()),
        };
        [Line::of(style, mark), Line::of(paint::BOLD, outcome.word), Line::of(paint::PLAIN, text)]
    }));
}

/// Rows as the checks have them.
fn rows(rows: impl Iterator<Item = [Line; 3]>) {
    let rows: Vec<Vec<Line>> = rows.map(Vec::from).collect();
    let face = out();
    // A pipe has no width.
    let width = if face.terminal { face.width } else { usize::MAX };
    let fits = [CellFit::Whole, CellFit::Whole, CellFit::Wrap(30)];
    print_lines(&laid_out(&fits, rows.iter(), width).concat());
}

/// Files and directories of ours that others could read or write, in a state directory nobody else can write to.
fn open_to_others(root: &Path) -> Vec<Open> {
    let ours = rustix::process::geteuid().as_raw();
    let Ok(found) = fs::metadata(root) else { return Vec::new() };
    // What others may have put there cannot be made trustworthy by closing it now.
    if found.uid() != ours || found.mode() & 0o022 != 0 {
        return Vec::new();
    }
    let mut open = Vec::new();
    note(root, &found, &mut open);
    walk(root, ours, DEEPEST, &mut open);
    open.sort_by(|a, b| a.path.cmp(&b.path));
    open
}

fn note(path: &Path, found: &fs::Metadata, open: &mut Vec<Open>) {
    let mode = found.mode() & 0o777;
    if mode & 0o077 != 0 {
        let wanted = if found.is_dir() { 0o700 } else { 0o600 };
        open.push(Open { path: path.to_owned(), mode, wanted });
    }
}

fn walk(dir: &Path, ours: u32, deep: usize, open: &mut Vec<Open>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        // A link leads to what is not ours to set; a socket or a pipe has its maker's mode.
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        if found.uid() != ours || !(found.is_file() || found.is_dir()) {
            continue;
        }
        note(&path, &found, open);
        if found.is_dir() && deep > 0 {
            walk(&path, ours, deep - 1, open);
        }
    }
}

/// Sets the mode of what was looked at, and of nothing somebody puts in its place meanwhile.
fn close(open: &Open) -> Result<(), String> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let closed = OpenOptions::new().read(true).custom_flags(flags).open(&open.path).and_then(|file| {
        if file.metadata()?.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        file.set_permissions(Permissions::from_mode(open.wanted))
    });
    match closed {
        // A job's file may have gone with its job.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("{}: {error}", open.path.display())),
        _ => Ok(()),
    }
}

/// Where files are written beside their place, and how such a file is called: what its name begins with and what it ends with, or
/// what follows the beginning where it ends with a number of its own.
const WRITTEN_BESIDE: &[(&str, &str, &str)] = &[
    ("", "secret.new-", ""),
    ("", "daemon.json.new-", ""),
    ("", "phone-opus.db.new-", ""),
    ("", "clients.json.", ""),
    ("", "handover-", ".json"),
    ("agents", "", ".tmp"),
    ("probe", "", ".tmp"),
];

/// Whether a file of this name in this folder of the state directory is one that was being written.
fn is_unfinished(folder: &str, name: &str) -> bool {
    let numbered = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    let of_row = |(place, begins, ends): &&(&str, &str, &str)| {
        let rest = name.strip_prefix(begins).and_then(|rest| rest.strip_suffix(ends));
        *place == folder && rest.is_some_and(numbered)
    };
    // A record of what was installed has another name for each process.
    let record = folder == "installed" && name.split_once(".new-").is_some_and(|(_, rest)| numbered(rest));
    record || WRITTEN_BESIDE.iter().any(|row| of_row(&row))
}

/// Files that were being written when whoever wrote them died, an hour ago or more.
fn unfinished(root: &Path, now: SystemTime) -> Vec<PathBuf> {
    let ours = rustix::process::geteuid().as_raw();
    let mut found = Vec::new();
    for folder in ["", "agents", "probe", "installed"] {
        for entry in fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
            let Ok(about) = fs::symlink_metadata(entry.path()) else { continue };
            // Whichever way the clock was set since.
            let age = |at: SystemTime| now.duration_since(at).unwrap_or_else(|ahead| ahead.duration());
            let old = about.modified().is_ok_and(|at| age(at) > ABANDONED);
            let named = entry.file_name().to_str().is_some_and(|name| is_unfinished(folder, name));
            if about.is_file() && about.uid() == ours && old && named {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";

    #[test]
    fn a_file_that_was_being_written_is_told_from_one_that_is_whole() {
        for (folder, name, unfinished) in [
            ("", format!("secret.new-{ID}"), true),
            ("", "secret".to_owned(), false),
            ("", format!("daemon.json.new-{ID}"), true),
            ("", "daemon.json".to_owned(), false),
            ("", format!("phone-opus.db.new-{ID}"), true),
            ("", "phone-opus.db-wal".to_owned(), false),
            ("", "phone-opus.db.new-er".to_owned(), false),
            ("", "clients.json.4711".to_owned(), true),
            ("", "clients.json".to_owned(), false),
            ("", "clients.json.bak".to_owned(), false),
            ("", format!("handover-{ID}.json"), true),
            ("", format!("{ID}.tmp"), false),
            ("agents", format!("{ID}.tmp"), true),
            ("agents", "gemini.json".to_owned(), false),
            ("probe", format!("{ID}.tmp"), true),
            ("installed", "0a1b.new-4711".to_owned(), true),
            ("installed", "0a1b.json".to_owned(), false),
            ("jobs", format!("{ID}.tmp"), false),
        ] {
            assert_eq!(is_unfinished(folder, &name), unfinished, "{folder}/{name}");
        }
    }

    #[test]
    fn what_others_could_read_is_closed_and_what_they_could_write_to_is_left_alone() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let root = scratch.path().join("state");
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).expect("set");
        fs::create_dir_all(root.join("jobs/a")).expect("directories");
        for file in ["jobs/a/lock", "telemetry.jsonl", "secret"] {
            fs::write(root.join(file), "x").expect("written");
            set(&root.join(file), 0o600);
        }
        for dir in ["", "jobs", "jobs/a"] {
            set(&root.join(dir), 0o700);
        }
        assert_eq!(open_to_others(&root), []);
        set(&root.join("jobs/a/lock"), 0o644);
        set(&root.join("jobs"), 0o755);
        set(&root.join("secret"), 0o666);
        std::os::unix::fs::symlink("/etc/passwd", root.join("link")).expect("a link");
        let open = open_to_others(&root);
        let told: Vec<(&str, u32, u32)> = open
            .iter()
            .map(|open| (open.path.strip_prefix(&root).expect("below").to_str().expect("text"), open.mode, open.wanted))
            .collect();
        assert_eq!(told, [("jobs", 0o755, 0o700), ("jobs/a/lock", 0o644, 0o600), ("secret", 0o666, 0o600)]);
        open.iter().for_each(|open| close(open).expect("closed"));
        assert_eq!(open_to_others(&root), []);
        set(&root.join("secret"), 0o644);
        set(&root, 0o777);
        assert_eq!(open_to_others(&root), [], "what others can write to cannot be trusted");
        set(&root, 0o700);
        assert_eq!(open_to_others(&scratch.path().join("nothing")), []);
    }

    #[test]
    fn only_what_is_an_hour_old_was_abandoned() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let root = scratch.path();
        let file = root.join(format!("secret.new-{ID}"));
        fs::write(&file, "x").expect("written");
        fs::write(root.join("secret"), "x").expect("written");
        let now = SystemTime::now();
        assert_eq!(unfinished(root, now), Vec::<PathBuf>::new());
        for later in [now + 2 * ABANDONED, now - 2 * ABANDONED] {
            assert_eq!(unfinished(root, later), std::slice::from_ref(&file));
        }
    }

    #[test]
    fn a_fix_of_many_names_some() {
        let names = |count: usize| (0..count).map(|number| number.to_string()).collect();
        assert_eq!(some(names(1)), "0");
        assert_eq!(some(names(3)), "0, 1, 2");
        assert_eq!(some(names(5)), "0, 1, 2 and 2 more");
    }
}
