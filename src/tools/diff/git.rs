//! git as a program that is asked something and answers.
//!
//! Owns: which file it is, what it is given, how it is bounded and ended. May not know: what is asked.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::{Instant, timeout, timeout_at};

use crate::exec::local::{EndsWithUs, as_a_program};

/// What each question begins with: nothing is shown page by page, written, watched or fetched, and no hook is there.
const ALWAYS: &[&str] = &[
    "--no-pager",
    "--no-optional-locks",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.attributesFile=/dev/null",
    // A diff would write the index anew where only the time of a file differs, optional locks or not.
    "-c",
    "diff.autoRefreshIndex=false",
];

/// What it has in its environment beside PATH and HOME. Its messages are read, so they are in one language.
/// No transport has the name that is allowed: an older git that fetches what is missing all the same does not get far.
const VARIABLES: &[(&str, &str)] =
    &[("GIT_NO_LAZY_FETCH", "1"), ("GIT_ALLOW_PROTOCOL", "none"), ("GIT_TERMINAL_PROMPT", "0"), ("LC_ALL", "C")];

/// What a shell takes for PATH where there is none.
const WITHOUT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Bytes of its standard error that are read.
const SAID: usize = 4096;

/// How long what was killed may take to be gone. Only a process stuck in the kernel takes longer.
const GONE: Duration = Duration::from_secs(1);

/// The program, and what it is given.
#[derive(Debug, Clone)]
pub(in super::super) struct Git {
    program: PathBuf,
    path: OsString,
    home: Option<OsString>,
}

/// What it answered.
#[derive(Debug)]
pub(in super::super) struct Answered {
    pub(in super::super) succeeded: bool,
    bytes: Vec<u8>,
    /// Whether there was more.
    pub(super) cut: bool,
    /// The beginning of its standard error.
    pub(in super::super) said: String,
}

impl Answered {
    /// What it wrote on standard output.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// A file's bytes need not be text; what is none is shown as such.
    pub(in super::super) fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(in super::super) enum NotRun {
    Slow,
    Failed(io::Error),
}

/// Kills a process group when it is dropped. Must be dropped before the leader is reaped: as long as it is not, the number of
/// the group cannot belong to anybody else.
struct GroupKill(Option<Pid>);

impl GroupKill {
    /// The leader was reaped: its number may be somebody else's.
    fn reaped(mut self) {
        self.0 = None;
    }
}

impl Drop for GroupKill {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Nobody left to kill is what we want.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Git {
    /// The first one on this PATH that is not of the repository itself. It may hang.
    pub(in super::super) fn find(path: Option<&OsStr>, home: Option<&OsStr>, root: &Path) -> Option<Self> {
        let is_its =
            |path: &Path| path.starts_with(root) || path.canonicalize().is_ok_and(|path| path.starts_with(root));
        let path = path.filter(|path| !path.is_empty()).unwrap_or(OsStr::new(WITHOUT_PATH));
        let entries = || std::env::split_paths(path).filter(|entry| entry.is_absolute() && !is_its(entry));
        let is_program = |file: &PathBuf| {
            let found = file.metadata();
            found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0) && !is_its(file)
        };
        let program = entries().map(|entry| entry.join("git")).find(is_program)?;
        let path = std::env::join_paths(entries()).ok()?;
        Some(Self { program, path, home: home.map(OsStr::to_owned) })
    }

    /// Asks it something, in this directory.
    ///
    /// # Errors
    ///
    /// It could not be started, or took too long.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time: what it started is killed with its process group.
    pub(super) async fn ask(
        &self,
        dir: &Path,
        words: &[&str],
        most: usize,
        until: Instant,
    ) -> Result<Answered, NotRun> {
        let mut command = self.command(dir);
        command
            .args(ALWAYS)
            .args(words)
            .envs(self.home.iter().map(|home| ("HOME", home)))
            .envs(VARIABLES.iter().copied());
        answered(command, most, until).await
    }

    /// The program in this directory, with PATH for its environment and no words yet.
    pub(in super::super) fn command(&self, dir: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", &self.path).current_dir(dir);
        command
    }
}

/// Runs it, and takes what it answers: at most so many bytes, and until then.
///
/// # Errors
///
/// It could not be started, or took too long.
///
/// # Cancel safety
///
/// May be dropped at any time: what it started is killed with its process group.
pub(in super::super) async fn answered(mut command: Command, most: usize, until: Instant) -> Result<Answered, NotRun> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    as_a_program(&mut command, EndsWithUs::AtOnce, None);
    let mut child = command.spawn().map_err(NotRun::Failed)?;
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let group = GroupKill(group);
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(NotRun::Failed(io::ErrorKind::BrokenPipe.into()));
    };
    let (mut bytes, mut said) = (Vec::new(), Vec::new());
    let reading = async {
        tokio::try_join!(read(stdout, most + 1, &mut bytes), read_some(stderr, &mut said))?;
        Ok::<_, io::Error>(())
    };
    let read = timeout_at(until, reading).await;
    let cut = bytes.len() > most;
    bytes.truncate(most);
    let status = match read {
        Err(_) => return Err(NotRun::Slow),
        Ok(Err(error)) => return Err(NotRun::Failed(error)),
        // It has more to say than is wanted: it is ended with the group.
        Ok(Ok(())) if cut => None,
        Ok(Ok(())) => match timeout_at(until, child.wait()).await {
            Err(_) => return Err(NotRun::Slow),
            Ok(status) => Some(status.map_err(NotRun::Failed)?),
        },
    };
    if status.is_some() {
        group.reaped();
    } else {
        drop(group);
        let _ = timeout(GONE, child.wait()).await;
    }
    let succeeded = status.is_some_and(|status| status.success());
    Ok(Answered { succeeded, bytes, cut, said: String::from_utf8_lossy(&said).into_owned() })
}

async fn read(from: impl AsyncRead + Unpin, most: usize, into: &mut Vec<u8>) -> io::Result<()> {
    from.take(most as u64).read_to_end(into).await.map(drop)
}

/// Reads to the end and keeps the beginning, so that nobody who says much is held up by it.
async fn read_some(mut from: impl AsyncRead + Unpin, into: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0; 1024];
    loop {
        match from.read(&mut chunk).await? {
            0 => return Ok(()),
            count => into.extend_from_slice(&chunk[..count.min(SAID.saturating_sub(into.len()))]),
        }
    }
}
