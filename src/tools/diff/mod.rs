//! The argument `diff`: what git shows of the changes in a consult's directory, under a heading of the prompt.
//!
//! Owns: which repository it is of, what is refused, what is asked of git in which order, how much of it is kept. May not know:
//! how a process is run (`git.rs`), who may look where.
//!
//! A repository says what git runs: hooks, a monitor of its files, programs for differences and for contents, transports to
//! fetch what is missing. The checkout may be anybody's work, and who asks wants it read, not run. So each question to git
//! leaves out all that can be left out, and what cannot be left out is looked for first and refused.
//!
//! | what a repository can name | why it is not run |
//! | --- | --- |
//! | `core.fsmonitor`, `core.hooksPath`, hooks | set to nothing for each question; the index is not written (`diff.autoRefreshIndex`) |
//! | `diff.external`, `diff.*.command`, `diff.*.textconv` | `--no-ext-diff`, `--no-textconv` |
//! | `filter.*`, by configuration or by an attribute | refused: git would run it to compare a file |
//! | `core.pager`, aliases | `--no-pager`; a built-in command has no alias |
//! | a remote to fetch what is missing from, `core.sshCommand` | `GIT_NO_LAZY_FETCH`; no transport is allowed |
//! | a submodule | `--ignore-submodules` |
//! | `core.worktree` | refused where the files lie elsewhere than beside the `.git` that was found |
//! | a program `git` in the directory, by a PATH with such an entry | only absolute entries outside of the repository count |
//!
//! Invariants: (1) git is run in the root of the repository only, and only when the caller may have that looked into; (2) what
//! the caller names is resolved to the hash of a commit before anything is compared with it, and is never an option; (3) at
//! most [`LIMIT`] and [`MOST`] bytes, and nothing that was started is left.

mod git;
mod standing;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use self::git::Answered;
pub(super) use self::git::{Git, NotRun, answered};
pub(super) use self::standing::{Changed, PATCH_MOST, patch, standing};

/// How long all of it may take. A diff of a large checkout takes a second; a file system that hangs takes for ever.
const LIMIT: Duration = Duration::from_secs(10);

/// Bytes of a diff that are kept: more than anybody reads at a time, and a quarter of what a prompt may have.
const MOST: usize = 256 * 1024;

/// Bytes of any other answer that are read.
const MOST_OF_ANSWER: usize = 4 * 1024 * 1024;

/// Directories above one that are looked at for a repository.
const PARENTS: usize = 64;

/// Bytes of what the caller names.
const BASE_BYTES: usize = 200;

/// What is compared with when nothing is named: everything that is not committed.
pub(super) const HEAD: &str = "HEAD";

/// A diff was asked for and is not to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum DiffRefused {
    #[error("needs git, which is not on PATH (only absolute entries outside of the repository count)")]
    NoGit,
    #[error("is of a repository, and there is none at or above {}", .0.display())]
    NoRepository(PathBuf),
    #[error("is of the repository {}, whose files are said to lie elsewhere (core.worktree)", .0.display())]
    Elsewhere(PathBuf),
    #[error("is of the repository {}, which git finds to be another user's, and reads no such one (safe.directory of your own git configuration names those that you trust)", .0.display())]
    OfAnother(PathBuf),
    #[error("is of a repository whose configuration names a program that git would run ({0})")]
    FilterNamed(String),
    #[error("is of a repository whose attributes have git run a filter (for {0})")]
    FilterUsed(String),
    #[error("names {0:?}, which is no commit of the repository")]
    NoCommit(String),
    #[error("shows nothing: what git tracks is as it is in {0}")]
    Empty(String),
    #[error("is of a repository without a remote {0:?}, from which another machine could fetch it")]
    NoRemote(String),
    #[error("has more than {PATCH_MOST} bytes of uncommitted changes")]
    PatchTooLarge,
    #[error("took git longer than {} s", LIMIT.as_secs())]
    Slow,
    #[error("cannot be made: {0}")]
    Failed(String),
}

impl DiffRefused {
    /// What is accepted instead.
    pub(super) const fn accepted(&self) -> &'static str {
        match self {
            Self::NoCommit(_) => "true for what is not committed, or a commit, branch or tag",
            Self::Empty(_) => "another commit; files that git does not track are no part of a diff",
            Self::FilterNamed(_) | Self::FilterUsed(_) => {
                "a diff that you made yourself, in the prompt (from a shell: git diff | phone-opus consult …)"
            }
            Self::NoRepository(_) | Self::Elsewhere(_) => "true or a commit, in the checkout of a repository",
            Self::NoRemote(_) | Self::PatchTooLarge => "a checkout whose commit is pushed to a remote",
            Self::NoGit | Self::OfAnother(_) | Self::Slow | Self::Failed(_) => "no `diff`",
        }
    }
}

/// Whether this can be the name of a commit at all.
pub(super) fn is_nameable(base: &str) -> bool {
    !base.is_empty() && base.len() <= BASE_BYTES && !base.starts_with('-') && !base.chars().any(char::is_control)
}

/// The directory with the `.git` that git finds from this one. It may hang.
pub(super) fn root_of(dir: &Path) -> Option<PathBuf> {
    let has_git = |dir: &&Path| dir.join(".git").symlink_metadata().is_ok();
    dir.ancestors().take(PARENTS).find(has_git).map(Path::to_owned)
}

/// A prompt with this diff.
pub(super) fn beside(prompt: &str, base: &str, diff: &str) -> String {
    format!("{prompt}\n\n## git diff {base}\n\n{diff}")
}

/// What differs between this commit and the files below `root`, which has a `.git` and may be looked into.
///
/// # Errors
///
/// Why there is none.
///
/// # Cancel safety
///
/// May be dropped at any time: what it started is killed with its process group.
pub(super) async fn taken(git: &Git, root: &Path, base: &str) -> Result<String, DiffRefused> {
    taken_by(Instant::now() + LIMIT, git, root, base).await
}

async fn taken_by(until: Instant, git: &Git, root: &Path, base: &str) -> Result<String, DiffRefused> {
    let question = Question { git, root, until };
    question.toplevel().await?;
    question.unfiltered().await?;
    let hash = question.commit(base).await?;
    let words = [
        "diff",
        "--no-ext-diff",
        "--no-textconv",
        "--no-color",
        "--ignore-submodules",
        "--end-of-options",
        &hash,
        "--",
    ];
    let diff = question.ask(&words, MOST).await?;
    if !diff.succeeded && !diff.cut {
        return Err(refusal(root, &diff));
    }
    let text = diff.text();
    if text.trim().is_empty() {
        return Err(DiffRefused::Empty(base.to_owned()));
    }
    Ok(if diff.cut { cut(&text) } else { text.into_owned() })
}

/// Whoever asks git about a repository, and until when.
struct Question<'a> {
    git: &'a Git,
    root: &'a Path,
    until: Instant,
}

impl Question<'_> {
    async fn ask(&self, words: &[&str], most: usize) -> Result<Answered, DiffRefused> {
        match self.git.ask(self.root, words, most, self.until).await {
            Ok(answered) => Ok(answered),
            Err(NotRun::Slow) => Err(DiffRefused::Slow),
            Err(NotRun::Failed(error)) => Err(DiffRefused::Failed(error.to_string())),
        }
    }

    /// Refuses a repository whose files lie elsewhere.
    async fn toplevel(&self) -> Result<(), DiffRefused> {
        let found = self.ask(&["rev-parse", "--show-toplevel"], MOST_OF_ANSWER).await?;
        if !found.succeeded {
            return Err(refusal(self.root, &found));
        }
        let top = OsStr::new(found.text().trim_end_matches('\n')).to_owned();
        if std::fs::canonicalize(&top).ok() != std::fs::canonicalize(self.root).ok() {
            return Err(DiffRefused::Elsewhere(self.root.to_owned()));
        }
        Ok(())
    }

    /// Refuses a repository for which git would run a filter to compare a file.
    async fn unfiltered(&self) -> Result<(), DiffRefused> {
        let settings = self.ask(&["config", "--list", "--show-scope", "--includes", "-z"], MOST_OF_ANSWER).await?;
        if !settings.succeeded || settings.cut {
            return Err(refusal(self.root, &settings));
        }
        if let Some(name) = filter_named(&settings.text()) {
            return Err(DiffRefused::FilterNamed(name));
        }
        // Each file that git tracks for which an attribute says anything else than that there is no filter.
        let words = ["ls-files", "-z", "--", ":(exclude,attr:!filter)", ":(exclude,attr:-filter)"];
        let filtered = self.ask(&words, MOST_OF_ANSWER).await?;
        if !filtered.succeeded {
            return Err(refusal(self.root, &filtered));
        }
        match filtered.text().split('\0').next().filter(|file| !file.is_empty()) {
            Some(file) => Err(DiffRefused::FilterUsed(shown(file))),
            None => Ok(()),
        }
    }

    /// The hash of the commit that this names.
    async fn commit(&self, base: &str) -> Result<String, DiffRefused> {
        let named = format!("{base}^{{commit}}");
        let words = ["rev-parse", "--verify", "--quiet", "--end-of-options", &named];
        let commit = self.ask(&words, MOST_OF_ANSWER).await?;
        let hash = commit.text().lines().last().unwrap_or_default().to_owned();
        if !commit.succeeded || hash.len() < 40 || !hash.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(DiffRefused::NoCommit(base.to_owned()));
        }
        Ok(hash)
    }
}

/// As much of a diff as is kept, to the end of its last whole line, and a mark behind it.
fn cut(text: &str) -> String {
    let end = text.rfind('\n').map_or(text.len(), |at| at + 1);
    format!("{}[… cut here: the diff has more than {MOST} bytes …]\n", &text[..end])
}

/// The first `filter.*` that the repository itself brings, of what `git config --list --show-scope -z` says.
fn filter_named(settings: &str) -> Option<String> {
    let mut parts = settings.split('\0');
    while let (Some(scope), Some(setting)) = (parts.next(), parts.next()) {
        let name = setting.split('\n').next().unwrap_or_default();
        // What the user, the machine and we say counts; every other scope is the repository's.
        if name.starts_with("filter.") && !matches!(scope, "system" | "global" | "command") {
            return Some(shown(name));
        }
    }
    None
}

fn refusal(root: &Path, answered: &Answered) -> DiffRefused {
    if answered.said.contains("dubious ownership") {
        return DiffRefused::OfAnother(root.to_owned());
    }
    let first = answered.said.lines().find(|line| !line.trim().is_empty()).unwrap_or("git says nothing");
    DiffRefused::Failed(shown(first))
}

/// What others wrote, on one line and short.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(160).collect()
}

#[cfg(test)]
mod tests;
