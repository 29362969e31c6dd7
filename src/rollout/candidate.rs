//! The check of a candidate: what is asked of a file before anything of ours is handed to it.
//!
//! Owns: the questions, their order, their bounds, and the verdict on every way they can be answered. May not know: when
//! a check is due, and what follows a verdict.
//!
//! ```text
//! owner, mode, first bytes ─▶ `mcp selfcheck --json` ─▶ versions ─▶ `mcp selfcheck --json --restore SNAPSHOT` ─▶ still the same file?
//! ```
//!
//! Invariants: (1) the file is run with our environment, our arguments and our directory, since it will serve with them,
//! but without the variables of a fault plan: a plan strikes the server it was given to and not the trial of another; (2)
//! no shell, nothing on stdin but the snapshot it is to restore, bounded output, one deadline a step; (3) nothing it started is left when a step is over, whatever group or session that went to (`kept`);
//! (4) what it says once it has read a snapshot is shown nowhere: there are prompts in it.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::elf::{self, Kind};
use super::fingerprint::Fingerprint;
use super::kept;
use super::owner;
use super::selfcheck::{NAME, Refusal, RefusalCode, SNAPSHOT_FORMAT, SelfCheck};
use super::{HandOver, SnapshotFile};
use crate::agents::Environment;
use crate::base::fault::Fault;
use crate::base::tasks;
use crate::exec::local::{Adopt, CloseBy, LocalExec, SpawnError, SpawnSpec, Stdin};
use crate::exec::{OutputStream, ProcessSession};
use crate::failpoints::{CRASH_ONCE_KEY, FAULT_COUNTERS, FAULT_SEED, FAULTS, FORCE_ROLLOUT_KEY};
use crate::jobs::store;

/// Longest one step may take. A healthy program takes some 30 ms; a machine that swaps is no reason to refuse one.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// Bytes of a candidate's line; ours has 200. More is no line of ours.
const LINE_BYTES: usize = 16 * 1024;

/// Bytes of its last words that are kept and shown.
const WORDS_BYTES: usize = 600;

/// Where a candidate finds the snapshot it is to restore: no name leads to it.
const STDIN: std::os::fd::RawFd = 0;

/// As Rust's own programs end after a panic.
const PANICKED: i32 = 101;

/// What stays out of a candidate's environment.
const PLAN: [&str; 5] = [FAULTS, FAULT_SEED, FAULT_COUNTERS, CRASH_ONCE_KEY, FORCE_ROLLOUT_KEY];

/// Which question a candidate was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TrialQuestion {
    /// To serve a client of its own.
    Selfcheck,
    /// To restore our snapshot.
    Restore,
}

impl std::fmt::Display for TrialQuestion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Selfcheck => "`mcp selfcheck --json`",
            Self::Restore => "`mcp selfcheck --json --restore`",
        })
    }
}

/// Why a file is not adopted. Each is a sentence that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Verdict {
    /// Its mode does not allow it.
    #[error("the file is not executable by this user; make it so (chmod 755), or install it again.")]
    NotExecutable,
    /// Somebody else's program would act with all this server may do.
    #[error(
        "the file belongs to user id {owner}, who is neither this user nor root nor the owner of the running program; \
         install it as one of these."
    )]
    ForeignOwner {
        /// Whose it is.
        owner: u32,
    },
    /// Somebody else may change it.
    #[error("the file can be written by others (mode {mode:04o}); take that from them (chmod go-w).")]
    WritableByOthers { mode: u32 },
    /// Somebody else may put another file in its place. It is looked at again.
    #[error(
        "others can put another file in its place: the directory {} belongs to user id {owner} and has mode {mode:04o}; give \
         it to this user or root and take the right to write from others (chmod o-w).",
        dir.display()
    )]
    LooseDirectory {
        /// Where it lies.
        dir: PathBuf,
        /// Whose that is.
        owner: u32,
        mode: u32,
    },
    /// It cannot be read.
    #[error("the file cannot be read ({0}); install it again with the mode 755.")]
    Unreadable(io::ErrorKind),
    /// It is for another machine.
    #[error("the file is a program for another machine; install the build for {}.", std::env::consts::ARCH)]
    WrongArchitecture,
    /// Its end is missing.
    #[error("the file is the beginning of a program; install it again, by writing it beside and renaming it.")]
    Truncated,
    /// It is something else.
    #[error("the file is neither a program nor a script; install phone-opus there again.")]
    NotAProgram,
    /// The system does not start it.
    #[error("the file cannot be started ({0}); try `phone-opus mcp selfcheck` with it.")]
    NotStarted(String),
    /// It ended with a code.
    #[error("{step} ended with code {code}{}; run it to see why, and install a build that passes.", words(.said))]
    Failed {
        /// At which question.
        step: TrialQuestion,
        /// With which code.
        code: i32,
        /// Its last words, where they may be shown.
        said: String,
    },
    /// It was ended by a signal.
    #[error("{step} was ended by signal {signal}{}; install a build that passes.", words(.said))]
    Killed {
        /// At which question.
        step: TrialQuestion,
        /// By which signal.
        signal: i32,
        /// Its last words, where they may be shown.
        said: String,
    },
    /// It did not end.
    #[error("{step} did not end within {} s and was killed; install a build that does.", DEADLINE.as_secs())]
    Hung {
        /// At which question.
        step: TrialQuestion,
    },
    /// It says something else than the one line.
    #[error("{step} did not print the one line it should; is another program, or a much older version, at this path?")]
    Garbled {
        /// At which question.
        step: TrialQuestion,
    },
    #[error("the new version cannot serve here: {reason}. Run `phone-opus doctor` with it, or install another build.")]
    CannotServe {
        /// Its own words.
        reason: String,
    },
    /// It restores snapshots of another version.
    #[error(
        "the new version restores snapshots of version {candidate} and this one writes version {}; it takes over at the \
         client's next start, or install a version that knows both.",
        SNAPSHOT_FORMAT
    )]
    SnapshotFormat {
        /// Of which.
        candidate: u32,
    },
    /// It would look for our snapshot in a file with a name.
    #[error(
        "version {version} cannot take over from a running server of this one: it is older, and looks for the server's state \
         in a file with a name, where this one writes none; it takes over at the client's next start."
    )]
    OlderHandOver { version: String },
    /// It does not know the job store.
    #[error(
        "the new version speaks version {candidate} of the job store, whose file is of version {file} already; install a \
         later version."
    )]
    OlderStore {
        /// Up to which version it speaks.
        candidate: i64,
        /// The file's.
        file: i64,
    },
    /// It does not restore our snapshot.
    #[error("the new version cannot restore this server's state: {reason}. It takes over at the client's next start.")]
    RestoreRefused {
        /// Its own words.
        reason: String,
    },
    /// It panicked over our snapshot.
    #[error("the new version panicked when it restored this server's state; install a build that does not.")]
    RestorePanicked,
    /// Somebody still writes to the file, or it was replaced while it was checked. It is looked at again.
    #[error("the file was replaced while it was checked; it is looked at again.")]
    Replaced,
    /// We could not check it, which says nothing about it. It is tried again later.
    #[error("the new version could not be checked now: {0} It is tried again later.")]
    NotChecked(String),
}

fn words(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(" (it said: {said})") }
}

impl Verdict {
    /// Its stable name.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotExecutable => "not_executable",
            Self::ForeignOwner { .. } => "foreign_owner",
            Self::WritableByOthers { .. } => "writable_by_others",
            Self::LooseDirectory { .. } => "loose_directory",
            Self::Unreadable(_) => "unreadable",
            Self::WrongArchitecture => "wrong_architecture",
            Self::Truncated => "truncated",
            Self::NotAProgram => "not_a_program",
            Self::NotStarted(_) => "not_started",
            Self::Failed { .. } => "exited",
            Self::Killed { .. } => "killed",
            Self::Hung { .. } => "hung",
            Self::Garbled { .. } => "garbled",
            Self::CannotServe { .. } => "cannot_serve",
            Self::SnapshotFormat { .. } => "snapshot_format",
            Self::OlderHandOver { .. } => "older_hand_over",
            Self::OlderStore { .. } => "older_store",
            Self::RestoreRefused { .. } => "restore_refused",
            Self::RestorePanicked => "restore_panicked",
            Self::Replaced => "replaced",
            Self::NotChecked(_) => "not_checked",
        }
    }

    /// Whether it is about this very file, so that it need not be checked again.
    #[must_use]
    pub const fn condemns(&self) -> bool {
        !matches!(self, Self::Replaced | Self::NotChecked(_) | Self::LooseDirectory { .. })
    }
}

/// What is tried, and with what.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The file.
    pub program: PathBuf,
    /// What this server was given after `mcp serve`.
    pub arguments: Vec<OsString>,
    /// Our environment.
    pub environment: Environment,
    /// Our directory.
    pub here: PathBuf,
    /// The running image, as a file, where there is one.
    pub image: Option<PathBuf>,
    /// What keeps a run, where there is something.
    pub keeper: Option<PathBuf>,
    /// The job store, where there is one.
    pub database: Option<PathBuf>,
    /// What it has to say that it is, where it is not phone-opus.
    pub name: Option<String>,
}

impl Trial {
    /// Checks the file, which looked like this when it was settled on.
    ///
    /// # Errors
    ///
    /// Why it is not to be adopted.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was started is killed, and a snapshot that was written is removed.
    pub async fn check(&self, seen: Fingerprint, how: Option<&dyn HandOver>) -> Result<SelfCheck, Verdict> {
        self.can_be_run().await?;
        let said = self.ask(TrialQuestion::Selfcheck, None).await?;
        if said.snapshot_format != SNAPSHOT_FORMAT {
            return Err(Verdict::SnapshotFormat { candidate: said.snapshot_format });
        }
        if !said.takes_descriptor {
            return Err(Verdict::OlderHandOver { version: clipped(&said.version) });
        }
        let database = self.database.clone();
        let file = blocking(move || database.and_then(|path| store::schema_of(&path))).await?;
        if let Some(file) = file.filter(|file| said.store_schema < *file) {
            return Err(Verdict::OlderStore { candidate: said.store_schema, file });
        }
        if let Some(how) = how {
            let snapshot = how.peek().await.map_err(|fault| not_checked(&fault))?;
            let restored = self.ask(TrialQuestion::Restore, Some(&snapshot)).await?;
            if restored.restored != Some(true) {
                return Err(Verdict::Garbled { step: TrialQuestion::Restore });
            }
        }
        let program = self.program.clone();
        let now = blocking(move || Fingerprint::look(&program)).await?;
        if now == Some(seen) { Ok(said) } else { Err(Verdict::Replaced) }
    }

    /// Looks at what can be known without running it.
    async fn can_be_run(&self) -> Result<(), Verdict> {
        let (program, image) = (self.program.clone(), self.image.clone());
        let kind = blocking(move || {
            if rustix::fs::access(&program, rustix::fs::Access::EXEC_OK).is_err() {
                return Err(if program.exists() { Verdict::NotExecutable } else { Verdict::Replaced });
            }
            owner::check(&program, image.as_deref())?;
            elf::kind(&program, image.as_deref()).map_err(|error| Verdict::Unreadable(error.kind()))
        });
        match kind.await?? {
            Kind::Runnable => Ok(()),
            Kind::Foreign => Err(Verdict::WrongArchitecture),
            Kind::Truncated => Err(Verdict::Truncated),
            Kind::Unknown => Err(Verdict::NotAProgram),
        }
    }

    /// Runs it once and reads its line.
    async fn ask(&self, step: TrialQuestion, snapshot: Option<&SnapshotFile>) -> Result<SelfCheck, Verdict> {
        let mut args: Vec<OsString> = ["mcp", "selfcheck", "--json"].map(OsString::from).into();
        let mut stdin = Stdin::Null;
        if let Some(snapshot) = snapshot {
            args.push("--restore".into());
            args.push(snapshot.at(STDIN).to_string().into());
            stdin = Stdin::File(Arc::clone(snapshot.file()));
        }
        args.extend(self.arguments.iter().cloned());
        let ours = |(name, _): &(&std::ffi::OsStr, &std::ffi::OsStr)| !PLAN.iter().any(|plan| *name == *plan);
        let env = self.environment.iter().filter(ours).map(|(name, value)| (name.to_owned(), value.to_owned()));
        let spec = SpawnSpec {
            program: self.program.clone(),
            args,
            cwd: self.here.clone(),
            env: env.collect(),
            stdin,
            adopt: Adopt::No,
            descriptors: None,
        };
        let kept = match &self.keeper {
            Some(keeper) => kept::run_under(keeper, &spec).await,
            None => None,
        };
        let said = match kept {
            Some(kept) => kept,
            // A running image that cannot be started again is what a good candidate heals.
            None => run(spec, std::future::pending()).await,
        };
        let said = said.map_err(|why| why.verdict(step))?;
        let line = one_line(said.stdout.as_bytes());
        match (said.signal, said.code) {
            (Some(signal), _) => {
                return Err(Verdict::Killed { step, signal, said: said.last_words(step) });
            }
            (None, 0) => {}
            (None, PANICKED) if step == TrialQuestion::Restore => return Err(Verdict::RestorePanicked),
            (None, code) => {
                return Err(match line.and_then(|line| serde_json::from_slice::<Refusal>(line).ok()) {
                    Some(refusal) => refused(refusal),
                    None => Verdict::Failed { step, code, said: said.last_words(step) },
                });
            }
        }
        line.and_then(|line| serde_json::from_slice::<SelfCheck>(line).ok())
            .filter(|said| said.selfcheck == NAME && said.program == self.name)
            .ok_or(Verdict::Garbled { step })
    }
}

fn not_checked(fault: &Fault) -> Verdict {
    Verdict::NotChecked(fault.detail.clone())
}

fn refused(refusal: Refusal) -> Verdict {
    let reason = clipped(&refusal.reason);
    match (refusal.refused, refusal.found) {
        (RefusalCode::Serve, _) => Verdict::CannotServe { reason },
        (RefusalCode::SnapshotFormat | RefusalCode::Restore, _) => Verdict::RestoreRefused { reason },
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Verdict> {
    let joined = tokio::time::timeout(DEADLINE, tasks::spawn_blocking(work)).await;
    match joined {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(_)) => Err(Verdict::NotChecked("a look at the file failed.".to_owned())),
        Err(_) => Err(Verdict::NotChecked("its file system does not answer.".to_owned())),
    }
}

/// What a run of the candidate came to.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Said {
    code: i32,
    signal: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Said {
    fn last_words(&self, step: TrialQuestion) -> String {
        match step {
            TrialQuestion::Selfcheck => clipped(&self.stderr),
            TrialQuestion::Restore => String::new(),
        }
    }
}

/// Why a run came to nothing.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum NotRun {
    /// It did not end in time, or nobody wanted to know any more.
    Hung,
    /// It said more than any line of ours has.
    Garbled,
    /// It is nothing that can be started.
    NotAProgram,
    /// Somebody has it open for writing.
    Replaced,
    /// The system does not start it.
    NotStarted(String),
    /// Whose fault it is is not known.
    NotChecked(String),
}

impl NotRun {
    fn verdict(self, step: TrialQuestion) -> Verdict {
        match self {
            Self::Hung => Verdict::Hung { step },
            Self::Garbled => Verdict::Garbled { step },
            Self::NotAProgram => Verdict::NotAProgram,
            Self::Replaced => Verdict::Replaced,
            Self::NotStarted(why) => Verdict::NotStarted(why),
            Self::NotChecked(why) => Verdict::NotChecked(why),
        }
    }
}

impl From<SpawnError> for NotRun {
    fn from(error: SpawnError) -> Self {
        match error {
            SpawnError::NotExecutable { .. } => Self::NotAProgram,
            SpawnError::ProgramMissing { .. } => Self::NotStarted("its interpreter is missing".into()),
            SpawnError::Other { source, .. } => match source.kind() {
                io::ErrorKind::ExecutableFileBusy => Self::Replaced,
                io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => {
                    Self::NotChecked("no process can be started.".to_owned())
                }
                kind => Self::NotStarted(kind.to_string()),
            },
            error => Self::NotChecked(format!("failed to {error}.")),
        }
    }
}

/// Runs a program to its end, or ends it and everything in its group (and what was adopted) when its time is over or `stop`
/// says so.
pub(super) async fn run(spec: SpawnSpec, stop: impl Future<Output = ()>) -> Result<Said, NotRun> {
    let (mut process, mut tap) = LocalExec::spawn(spec, ProcessSession::new(), CloseBy::Backend)?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let control = process.control();
    let running = async {
        while let Some((stream, bytes)) = tap.next().await {
            match stream {
                OutputStream::Stdout if stdout.len() + bytes.len() > LINE_BYTES => return Err(NotRun::Garbled),
                OutputStream::Stdout => stdout.extend_from_slice(&bytes),
                OutputStream::Stderr => keep_end(&mut stderr, &bytes),
            }
        }
        Ok(process.wait_end().await)
    };
    let ended = tokio::select! {
        ended = tokio::time::timeout(DEADLINE, running) => ended.unwrap_or(Err(NotRun::Hung)),
        () = stop => Err(NotRun::Hung),
    };
    let why = match ended {
        Ok(end) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            return Ok(Said { code: end.code, signal: end.signal, stdout: text(&stdout), stderr: text(&stderr) });
        }
        Err(why) => why,
    };
    control.kill();
    drop(tap);
    // Bounded by itself: what not even a kill ends is left after a while.
    let _ = process.wait_end().await;
    Err(why)
}

fn keep_end(kept: &mut Vec<u8>, more: &Bytes) {
    kept.extend_from_slice(more);
    if kept.len() > WORDS_BYTES * 4 {
        kept.drain(..kept.len() - WORDS_BYTES * 2);
    }
}

/// The only line of an output, where there is one.
fn one_line(output: &[u8]) -> Option<&[u8]> {
    let line = output.strip_suffix(b"\n").unwrap_or(output);
    (!line.is_empty() && !line.contains(&b'\n')).then_some(line)
}

/// The end of a text on one line, for a sentence.
fn clipped(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let mut from = text.len().saturating_sub(WORDS_BYTES);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text[from..].trim_end_matches('.').to_owned()
}
