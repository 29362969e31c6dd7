//! Asks an installed agent what it can do.
//!
//! Owns: how it is asked, and the cache of what was said, one file per binary under `STATE_DIR/probe`. May not know what is looked
//! for ([`Questions`] says it, in the agent's own file), or what it is used for.
//!
//! The file that is called may be a shim, which stays as it is while what stands behind it is upgraded, downgraded or chosen
//! by the directory it is called in. So the version is asked at each run, in the run's directory and environment; what the
//! version can do is asked once and kept. One question is left out: where every version seen behind the file knows all that a
//! run uses, another one knows it too, or refuses it before it has done anything, and is asked then.
//!
//! Invariants: (1) a probe never fails a run: what cannot be found out is assumed to be the newest known version, whose
//! `unknown option` says the rest; (2) at most 10 s and 256 KiB; (3) nothing it started is left when it returns or is
//! dropped, or when this process is killed: it ends with us, and bears the run's mark; (4) a cached answer takes nothing away
//! from a run but for the very file and the very version it was got from: what is missing is asked for at each run.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use super::there::{AskedThere, Candidate, There, is_missing};
use crate::base::fault::Fault;
use crate::exec::ExecTarget;
use crate::exec::backend::ProcessStartError;
use crate::exec::local::{EndsWithUs, as_a_program};

/// Time for one of the two questions. They take 0.3 s; a wrapper that downloads something may take longer than this,
/// and then the newest version is assumed.
const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of an answer that are read; a real one has 15 KB.
const MAX_OUTPUT: u64 = 256 << 10;
/// How often a program whose file is being written is tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// How long a killed probe may take to be gone. Only a process stuck in the kernel takes longer.
const REAP_DEADLINE: Duration = Duration::from_secs(1);

/// What is asked of an agent's program, and looked for in what it says.
#[derive(Debug)]
pub(super) struct Questions {
    /// Whose program it is.
    pub(super) agent: &'static str,
    /// The words it is called with; what it says to all of them is read as one text.
    pub(super) helps: &'static [&'static [&'static str]],
    /// What is in the text when it is this agent's.
    pub(super) mark: &'static str,
    /// What is looked for, and what it means when it is not there.
    pub(super) looked_for: &'static [(&'static str, Need)],
}

/// What it means that a program does not know something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Without it a consult would not be kept to reading, or could not be understood: nothing is started.
    Must,
    /// A consult does without, and `doctor` says so.
    Used,
    /// A consult looks at it only where it resumes a session, or not at all.
    Aside,
}

/// What an installed agent can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// What `--version` says.
    pub version: Option<String>,
    /// Whether each thing that was looked for is there.
    named: BTreeMap<String, bool>,
}

impl Features {
    /// Everything the newest known version can do.
    pub(super) fn newest(questions: &Questions) -> Self {
        Self { version: None, named: questions.looked_for.iter().map(|(name, _)| ((*name).to_owned(), true)).collect() }
    }

    /// Without these.
    #[cfg(test)]
    pub(super) fn without(mut self, names: &[&str]) -> Self {
        for name in names {
            assert!(self.named.insert((*name).to_owned(), false).is_some(), "{name} is not looked for");
        }
        self
    }

    /// Whether this is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.named.get(name).is_some_and(|there| *there)
    }

    /// What a consult would use and does without.
    pub(super) fn missing(&self, questions: &Questions) -> Vec<&'static str> {
        let used = questions.looked_for.iter().filter(|(name, need)| *need != Need::Aside && !self.has(name));
        used.map(|(name, _)| *name).collect()
    }

    /// What no consult does without, and is not there.
    pub(super) fn wanting(&self, questions: &Questions) -> Vec<&'static str> {
        let must = questions.looked_for.iter().filter(|(name, need)| *need == Need::Must && !self.has(name));
        must.map(|(name, _)| *name).collect()
    }

    /// Whether exactly this was looked for: an older version of ours looked for less.
    fn answers(&self, questions: &Questions) -> bool {
        self.named.len() == questions.looked_for.len()
            && questions.looked_for.iter().all(|(name, _)| self.named.contains_key(*name))
    }

    /// What a help text names. `None` when it is not this agent's.
    fn from_help(questions: &Questions, help: &str, version: Option<String>) -> Option<Self> {
        let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let names = |name: &str| {
            help.match_indices(name).any(|(at, _)| {
                let next = help[at + name.len()..].chars().next();
                let before = help[..at].chars().next_back();
                !next.is_some_and(part) && !before.is_some_and(part)
            })
        };
        let named = || questions.looked_for.iter().map(|(name, _)| ((*name).to_owned(), names(name))).collect();
        names(questions.mark).then(|| Self { version, named: named() })
    }
}

/// The file a binary is, as far as it can be told without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ProgramStamp {
    path: Vec<u8>,
    size: u64,
    mtime: i64,
    mtime_nsec: i64,
    inode: u64,
}

impl ProgramStamp {
    fn of(program: &Path) -> io::Result<Self> {
        let meta = fs::metadata(program)?;
        Ok(Self {
            path: program.as_os_str().as_bytes().to_vec(),
            size: meta.size(),
            mtime: meta.mtime(),
            mtime_nsec: meta.mtime_nsec(),
            inode: meta.ino(),
        })
    }

    /// What stands for a program of another machine, whose file is not looked at: what is kept of it is kept by its versions, and
    /// forgotten when one does not know an option.
    fn elsewhere(target: &ExecTarget, program: &Path) -> Self {
        let path = [target.to_string().as_bytes(), b"\0", program.as_os_str().as_bytes()].concat();
        Self { path, size: 0, mtime: 0, mtime_nsec: 0, inode: 0 }
    }

    /// A name for the cache file (FNV-1a of the path). Two paths that collide only cost each other's cache.
    fn file_name(&self, agent: &str) -> String {
        let hash = self.path.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        format!("{agent}-{hash:016x}.json")
    }
}

/// What is kept about one program.
#[derive(Serialize, Deserialize)]
struct Cached {
    fingerprint: ProgramStamp,
    /// One for each version that was seen behind it, the latest last.
    versions: Vec<Features>,
}

/// Versions that are kept of one program: a shim that chooses by directory has a few.
const VERSIONS_KEPT: usize = 8;

/// Whom to ask, and how a run of it would be started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) questions: &'static Questions,
    pub(super) program: &'a Path,
    pub(super) env: &'a [(OsString, OsString)],
    /// Where the run is to be: a shim may choose by it.
    pub(super) cwd: &'a Path,
    /// The soft limit of descriptors; ours when `None`.
    pub(super) descriptors: Option<u64>,
}

/// What a run of this program may use. The program is not started for it where nothing but a refusal could be new.
///
/// # Cancel safety
///
/// As [`features`].
pub(super) async fn for_a_run(asked: Asked<'_>, state_dir: &Path, resumes: bool) -> Features {
    // Whether a session goes on under its own id is told by no refusal.
    if !resumes && let Ok(fingerprint) = ProgramStamp::of(asked.program) {
        let mut known = cached(asked.questions, &place(asked.questions, &fingerprint, state_dir).1, &fingerprint);
        if known.iter().all(|version| version.missing(asked.questions).is_empty())
            && let Some(latest) = known.pop()
        {
            return latest;
        }
    }
    features(asked, state_dir).await
}

/// What this program can do: from itself, and from the cache what this version of it has said before. What cannot be found
/// out is as in [`Features::newest`].
///
/// # Cancel safety
///
/// May be dropped at any time; what it started is killed with its process group.
pub(super) async fn features(asked: Asked<'_>, state_dir: &Path) -> Features {
    probe(asked, state_dir, DEADLINE).await
}

/// The program on another machine, and what a run of it may use.
///
/// # Errors
///
/// `agent_missing`: it is not there.
///
/// # Cancel safety
///
/// May be dropped at any time; what it started is ended by its machine.
pub(super) async fn for_a_run_there(
    there: &There<'_>,
    questions: &'static Questions,
    name: &str,
    asked: AskedThere<'_>,
    state_dir: &Path,
    resumes: bool,
) -> Result<(Candidate, Features), Fault> {
    let first = there.first(name);
    if let Some(known) = known_there(there, questions, &first, state_dir, resumes) {
        return Ok((first, known));
    }
    match features_there(there, questions, &first, asked, state_dir).await {
        Ok(features) => return Ok((first, features)),
        Err(error) if is_missing(&error) => {}
        // Whatever else is wrong with it, the start of the agent itself says it.
        Err(_) => return Ok((first, Features::newest(questions))),
    }
    let Some(found) = there.elsewhere(name).await else { return Err(there.missing(name)) };
    let features = match known_there(there, questions, &found, state_dir, resumes) {
        Some(known) => known,
        None => features_there(there, questions, &found, asked, state_dir)
            .await
            .unwrap_or_else(|_| Features::newest(questions)),
    };
    Ok((found, features))
}

/// What a run may use without asking, as in [`for_a_run`].
fn known_there(
    there: &There<'_>,
    questions: &Questions,
    program: &Candidate,
    state_dir: &Path,
    resumes: bool,
) -> Option<Features> {
    let stamp = ProgramStamp::elsewhere(&there.site.target, &program.program);
    let mut known = cached(questions, &place(questions, &stamp, state_dir).1, &stamp);
    (!resumes && known.iter().all(|version| version.missing(questions).is_empty())).then(|| known.pop()).flatten()
}

/// As [`features`]; all questions at once, since the way may be long.
async fn features_there(
    there: &There<'_>,
    questions: &Questions,
    program: &Candidate,
    asked: AskedThere<'_>,
    state_dir: &Path,
) -> Result<Features, ProcessStartError> {
    let helps = join_all(questions.helps.iter().map(|words| there.ask(program, asked, words)));
    let (version, helps) = tokio::join!(there.ask(program, asked, &["--version"]), helps);
    let version = version?.and_then(|text| first_line(&text));
    let mut help = String::new();
    for text in helps {
        help.push_str(&text?.unwrap_or_default());
        help.push('\n');
    }
    let Some(features) = Features::from_help(questions, &help, version) else {
        tracing::debug!("the agent's help could not be read; the newest version is assumed");
        return Ok(Features::newest(questions));
    };
    if features.version.is_some() {
        let fingerprint = ProgramStamp::elsewhere(&there.site.target, &program.program);
        let (directory, cache) = place(questions, &fingerprint, state_dir);
        let mut versions = cached(questions, &cache, &fingerprint);
        versions.retain(|known| known.version != features.version);
        versions.push(features.clone());
        versions.drain(..versions.len().saturating_sub(VERSIONS_KEPT));
        if let Err(error) = keep(&directory, &cache, &Cached { fingerprint, versions }) {
            tracing::debug!(%error, "the probe of the agent could not be cached");
        }
    }
    Ok(features)
}

/// What `--version` says.
fn first_line(text: &str) -> Option<String> {
    let first = text.lines().next()?.trim();
    (!first.is_empty()).then(|| first.chars().take(80).collect())
}

async fn probe(asked: Asked<'_>, state_dir: &Path, deadline: Duration) -> Features {
    let questions = asked.questions;
    let Ok(fingerprint) = ProgramStamp::of(asked.program) else { return Features::newest(questions) };
    let (directory, cache) = place(questions, &fingerprint, state_dir);
    let known = cached(questions, &cache, &fingerprint);
    let (version, help) = if known.is_empty() {
        // It will have to be asked for both, so at the same time.
        let (version, help) = tokio::join!(ask(asked, &["--version"], deadline), ask_for_help(asked, deadline));
        (version, Some(help))
    } else {
        (ask(asked, &["--version"], deadline).await, None)
    };
    let version = version.and_then(|text| first_line(&text));
    if let Some(features) = known.iter().find(|known| version.is_some() && known.version == version) {
        return features.clone();
    }
    let help = match help {
        Some(help) => help,
        None => ask_for_help(asked, deadline).await,
    };
    let Some(features) = Features::from_help(questions, &help, version) else {
        tracing::debug!("the agent's help could not be read; the newest version is assumed");
        return Features::newest(questions);
    };
    // What has no version cannot be told from the next one.
    if features.version.is_some() {
        let mut versions = known;
        versions.push(features.clone());
        versions.drain(..versions.len().saturating_sub(VERSIONS_KEPT));
        if let Err(error) = keep(&directory, &cache, &Cached { fingerprint, versions }) {
            tracing::debug!(%error, "the probe of the agent could not be cached");
        }
    }
    features
}

/// What it says to all that it is asked about itself, as one text. What it does not answer is left out.
async fn ask_for_help(asked: Asked<'_>, deadline: Duration) -> String {
    let texts = join_all(asked.questions.helps.iter().map(|words| ask(asked, words, deadline))).await;
    texts.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

/// Forgets what is known about a program: it did not understand what its version was said to.
pub(super) fn forget(questions: &Questions, program: &Path, state_dir: &Path) {
    if let Ok(fingerprint) = ProgramStamp::of(program) {
        // What is not there is forgotten.
        let _ = fs::remove_file(place(questions, &fingerprint, state_dir).1);
    }
}

/// The same of a program of another machine.
pub(super) fn forget_there(questions: &Questions, target: &ExecTarget, program: &Path, state_dir: &Path) {
    // What is not there is forgotten.
    let _ = fs::remove_file(place(questions, &ProgramStamp::elsewhere(target, program), state_dir).1);
}

/// Whether some program of this agent was found and asked here before: one that is missing now may be being replaced.
pub(super) fn was_found(questions: &Questions, state_dir: &Path) -> bool {
    let is_its = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap_or_default();
        name.strip_prefix(questions.agent).is_some_and(|rest| rest.starts_with('-'))
    };
    fs::read_dir(state_dir.join("probe")).is_ok_and(|entries| entries.filter_map(Result::ok).any(is_its))
}

fn place(questions: &Questions, fingerprint: &ProgramStamp, state_dir: &Path) -> (PathBuf, PathBuf) {
    let directory = state_dir.join("probe");
    let cache = directory.join(fingerprint.file_name(questions.agent));
    (directory, cache)
}

/// What is known of each version. What an older program of ours looked for something else in is known of none.
fn cached(questions: &Questions, file: &Path, fingerprint: &ProgramStamp) -> Vec<Features> {
    let read = || serde_json::from_slice::<Cached>(&fs::read(file).ok()?).ok();
    let versions = read().filter(|entry| entry.fingerprint == *fingerprint).map(|entry| entry.versions);
    versions.unwrap_or_default().into_iter().filter(|version| version.answers(questions)).collect()
}

/// Writes beside and renames, so that a reader sees the old file or the new one.
fn keep(directory: &Path, file: &Path, entry: &Cached) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let beside: PathBuf = directory.join(format!("{}.tmp", uuid::Uuid::new_v4()));
    let written = (|| {
        let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        new.write_all(&serde_json::to_vec(entry)?)?;
        fs::rename(&beside, file)
    })();
    if written.is_err() {
        // Nothing can be done about a leftover; the error itself is what is reported.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Kills a process group when it is dropped. Must be dropped before the leader is reaped: as long as it is not, the
/// number of the group cannot belong to anybody else.
struct GroupKill(Pid);

impl Drop for GroupKill {
    fn drop(&mut self) {
        // Nobody left to kill is what we want.
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

/// What the program says to these words, for whoever wants to know more than a consult does.
///
/// # Cancel safety
///
/// May be dropped at any time; what it started is killed with its process group.
pub(super) async fn answer(asked: Asked<'_>, words: &[&str]) -> Option<String> {
    ask(asked, words, DEADLINE).await
}

/// The same of a program that may take so long to say it.
pub(super) async fn answer_within(asked: Asked<'_>, words: &[&str], deadline: Duration) -> Option<String> {
    ask(asked, words, deadline).await
}

/// One question. The exit code is not looked at: the text tells whether it was answered.
async fn ask(asked: Asked<'_>, words: &[&str], deadline: Duration) -> Option<String> {
    let until = tokio::time::Instant::now() + deadline;
    let mut child = loop {
        match start(asked, words) {
            Ok(child) => break child,
            // Its file is being written: by an upgrade, which is over in a moment.
            Err(error)
                if Errno::from_io_error(&error) == Some(Errno::TXTBSY) && tokio::time::Instant::now() < until =>
            {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(_) => return None,
        }
    };
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)).map(GroupKill);
    let mut output = Vec::new();
    let read = match child.stdout.take() {
        Some(stdout) => tokio::time::timeout_at(until, stdout.take(MAX_OUTPUT).read_to_end(&mut output)).await,
        None => return None,
    };
    drop(group);
    let _ = tokio::time::timeout(REAP_DEADLINE, child.wait()).await;
    match read {
        Ok(Ok(_)) => Some(String::from_utf8_lossy(&output).into_owned()),
        Ok(Err(_)) | Err(_) => None,
    }
}

fn start(asked: Asked<'_>, words: &[&str]) -> io::Result<Child> {
    let mut command = Command::new(asked.program);
    command
        .args(words)
        .env_clear()
        .envs(asked.env.iter().map(|(name, value)| (name, value)))
        .current_dir(asked.cwd)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    as_a_program(&mut command, EndsWithUs::AtOnce, asked.descriptors);
    command.spawn()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Instant;

    use super::*;
    use crate::agents::claude::QUESTIONS;
    use crate::agents::tests_support::script;

    fn newest() -> Features {
        Features::newest(&QUESTIONS)
    }

    /// What a help text of the newest version says about the flags that are looked for.
    const HELP: &str = "--output-format <f>  --tools <t...>  --restricted  --permission-prompts <t>  \
        --setting-sources <s>  --strict-mcp-config  --system-prompt-snapshot <m>  --fork-session";

    fn path_env() -> Vec<(OsString, OsString)> {
        vec![("PATH".into(), std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))]
    }

    async fn features(program: &Path, env: &[(OsString, OsString)], state_dir: &Path) -> Features {
        super::features(
            Asked { questions: &QUESTIONS, program, env, cwd: Path::new("/"), descriptors: None },
            state_dir,
        )
        .await
    }

    fn calls(dir: &Path) -> usize {
        fs::read_to_string(dir.join("calls")).map(|calls| calls.lines().count()).unwrap_or(0)
    }

    /// A stand-in that counts its calls and answers with this help.
    fn agent(dir: &Path, help: &str) -> PathBuf {
        fs::write(dir.join("help"), help).expect("help");
        let dir = dir.display();
        let body = format!(
            "echo call >> '{dir}/calls'\nif [ \"$1\" = --version ]; then echo '9.9 (Claude Code)'; else cat '{dir}/help'; fi"
        );
        script(Path::new(&dir.to_string()), "agent", &body)
    }

    #[tokio::test]
    async fn a_binary_is_asked_once_and_again_when_it_changes() {
        let dir = tempfile::tempdir().expect("scratch");
        let program = agent(dir.path(), HELP);
        let state = dir.path().join("state");
        let first = features(&program, &path_env(), &state).await;
        assert_eq!(first, Features { version: Some("9.9 (Claude Code)".into()), ..newest() });
        assert_eq!(features(&program, &path_env(), &state).await, first);
        assert_eq!(calls(dir.path()), 3, "its version each time, its help once");

        let changed = agent(dir.path(), "--output-format  --restricted-mode --setting-sources=x");
        fs::File::open(&changed).and_then(|file| file.set_modified(std::time::UNIX_EPOCH)).expect("older");
        let old = features(&changed, &path_env(), &state).await;
        assert!(old.has("--setting-sources") && !old.has("--restricted") && !old.has("--tools"), "{old:?}");
        assert_eq!(calls(dir.path()), 5);

        let cache: Vec<_> =
            fs::read_dir(state.join("probe")).expect("cache").map(|entry| entry.expect("entry")).collect();
        assert_eq!(cache.len(), 1);
        let mode = |path: &Path| fs::metadata(path).expect("meta").permissions().mode() & 0o777;
        assert_eq!((mode(&state.join("probe")), mode(&cache[0].path())), (0o700, 0o600));

        fs::write(cache[0].path(), "{ torn").expect("torn");
        assert_eq!(features(&changed, &path_env(), &state).await, old);
        assert_eq!(calls(dir.path()), 7);
    }

    /// A shim: a script that never changes and calls what its directory of versions, or the caller's directory, names.
    #[tokio::test]
    async fn what_stands_behind_an_unchanged_file_is_asked_in_each_of_its_versions() {
        let dir = tempfile::tempdir().expect("scratch");
        let root = dir.path();
        let state = root.join("state");
        let at = root.display();
        for place in ["v1", "v2", "project"] {
            fs::create_dir(root.join(place)).expect("a directory");
        }
        let body = |version: &str| {
            format!(
                "if [ \"$1\" = --version ]; then echo '{version} (Claude Code)'; else cat '{at}/v{version}/help'; fi"
            )
        };
        for (version, help) in [("1", "--output-format --setting-sources"), ("2", HELP)] {
            fs::write(root.join(format!("v{version}/help")), help).expect("help");
            script(&root.join(format!("v{version}")), "claude", &body(version));
        }
        let shim = script(
            root,
            "shim",
            &format!("v=$(cat ./.version 2>/dev/null || cat '{at}/current')\nexec '{at}'/v$v/claude \"$@\""),
        );
        let ask = |cwd: PathBuf| {
            let (shim, state) = (shim.clone(), state.clone());
            async move {
                let asked =
                    Asked { questions: &QUESTIONS, program: &shim, env: &path_env(), cwd: &cwd, descriptors: None };
                super::features(asked, &state).await
            }
        };
        fs::write(root.join("project/.version"), "1").expect("a choice");
        // Upgraded, downgraded, and chosen by the directory; each is what it is, however often it changes.
        for (current, cwd, restricted) in
            [("1", "v1", false), ("2", "v1", true), ("1", "v1", false), ("2", "v1", true), ("2", "project", false)]
        {
            fs::write(root.join("current"), current).expect("an upgrade");
            let seen = ask(root.join(cwd)).await;
            assert_eq!(seen.has("--restricted"), restricted, "{current} in {cwd}: {seen:?}");
        }
        // The version says what it said, and can do something else: only the program itself can tell, by refusing.
        fs::write(root.join("v2/help"), "--output-format").expect("another build");
        assert!(ask(root.join("v1")).await.has("--restricted"));
        forget(&QUESTIONS, &shim, &state);
        assert!(!ask(root.join("v1")).await.has("--restricted"));
        assert!(was_found(&QUESTIONS, &state) && !was_found(&QUESTIONS, &root.join("nowhere")));
    }

    #[tokio::test]
    async fn a_run_starts_no_question_where_every_known_version_has_all_it_uses() {
        let dir = tempfile::tempdir().expect("scratch");
        let program = agent(dir.path(), HELP);
        let state = dir.path().join("state");
        let env = path_env();
        let asked =
            Asked { questions: &QUESTIONS, program: &program, env: &env, cwd: Path::new("/"), descriptors: None };
        let first = for_a_run(asked, &state, false).await;
        assert_eq!((calls(dir.path()), first.missing(&QUESTIONS)), (2, vec![]), "nothing was known");
        assert_eq!((for_a_run(asked, &state, false).await, calls(dir.path())), (first.clone(), 2));
        // What only a resumed session needs to know is told by the version alone.
        assert_eq!((for_a_run(asked, &state, true).await, calls(dir.path())), (first, 3));
        // A refusal, and what stands there now has less: from then on it is asked each time.
        forget(&QUESTIONS, &program, &state);
        agent(dir.path(), "--output-format --restricted");
        let less = for_a_run(asked, &state, false).await;
        assert!(less.has("--restricted") && !less.has("--tools") && calls(dir.path()) == 5, "{less:?}");
        assert_eq!((for_a_run(asked, &state, false).await, calls(dir.path())), (less, 6));
        // Another file is another program.
        let other = script(
            dir.path(),
            "other",
            &fs::read_to_string(&program).expect("a script").replacen("#!/bin/sh\n", "", 1),
        );
        for_a_run(Asked { program: &other, ..asked }, &state, false).await;
        assert_eq!(calls(dir.path()), 8);
    }

    #[tokio::test]
    async fn a_program_whose_file_is_being_written_is_asked_when_that_is_over() {
        let dir = tempfile::tempdir().expect("scratch");
        let program = dir.path().join("agent");
        // A real program, which cannot be run while it is open for writing; a script could.
        fs::copy(fs::canonicalize("/bin/cat").expect("cat"), &program).expect("a copy");
        let held = OpenOptions::new().append(true).open(&program).expect("open for writing");
        let state = dir.path().join("state");
        let env = path_env();
        let asking = features(&program, &env, &state);
        let over = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            drop(held);
        };
        let began = Instant::now();
        let (seen, ()) = tokio::join!(asking, over);
        assert!(began.elapsed() >= Duration::from_millis(300), "it was not waited for");
        // What `cat` says of itself is no help of an agent's; it was asked.
        assert_eq!(seen, newest());
    }

    #[tokio::test]
    async fn a_probe_that_hangs_or_floods_is_ended_with_everything_it_started() {
        let dir = tempfile::tempdir().expect("scratch");
        let path = dir.path().display();
        for (name, body) in [
            ("hangs", format!("echo $$ >> '{path}/pids'; sleep 600 & echo $! >> '{path}/pids'; wait")),
            ("floods", format!("echo $$ >> '{path}/pids'; while :; do echo --output-format; done")),
        ] {
            let program = script(dir.path(), name, &body);
            let started = Instant::now();
            let asked = Asked {
                questions: &QUESTIONS,
                program: &program,
                env: &path_env(),
                cwd: Path::new("/"),
                descriptors: None,
            };
            let seen = probe(asked, dir.path(), Duration::from_millis(500)).await;
            assert!(started.elapsed() < Duration::from_secs(30));
            if name == "hangs" {
                assert_eq!(seen, newest());
                assert!(!dir.path().join("probe").exists(), "an assumption is not cached");
            }
            let pids = fs::read_to_string(dir.path().join("pids")).expect("pids");
            let pids: Vec<Pid> = pids.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect();
            assert!(!pids.is_empty());
            crate::agents::tests_support::wait_until_gone(&pids);
            fs::remove_file(dir.path().join("pids")).expect("again");
        }
    }

    #[tokio::test]
    async fn a_probe_that_cannot_start_assumes_the_newest_version() {
        let dir = tempfile::tempdir().expect("scratch");
        assert_eq!(features(Path::new("/nonexistent/claude"), &[], dir.path()).await, newest());
        let program = script(dir.path(), "other", "echo usage: something else");
        assert_eq!(features(&program, &path_env(), dir.path()).await, newest());
    }

    #[cfg(feature = "testkit")]
    #[test]
    fn the_scripted_agent_has_the_newest_versions_flags() {
        let help = crate::testkit::scripted_agent::HELP;
        assert_eq!(Features::from_help(&QUESTIONS, help, None), Some(newest()));
    }

    #[test]
    fn a_flag_is_named_only_as_a_whole() {
        let features =
            Features::from_help(&QUESTIONS, "--output-format x\n --tools-all, --restricted\n", None).expect("help");
        assert!(features.has("--restricted") && !features.has("--tools"));
        assert_eq!(Features::from_help(&QUESTIONS, "bash: no such file", None), None);
    }
}
