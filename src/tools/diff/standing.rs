//! Where a checkout stands: its commit, where that is fetched from, and what is not committed.
//!
//! Owns: what git is asked for it. May not know: what an address may look like, who fetches.

use tokio::time::Instant;

use super::git::Git;
use super::{DiffRefused, HEAD, LIMIT, MOST_OF_ANSWER, Question, is_nameable};

/// Bytes of changes that go along with a commit: as many as a prompt may have.
pub(in super::super) const PATCH_MOST: usize = 1024 * 1024;

/// The remote of a branch that names none.
const ORIGIN: &str = "origin";

/// Where a checkout stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Standing {
    /// The whole hash of the commit.
    pub(in super::super) commit: String,
    /// The address of its remote as the configuration has it.
    pub(in super::super) remote: String,
    /// Whether anything is not committed; `None` where git would have run a program of the repository's choice to learn it.
    pub(in super::super) changed: Option<Changed>,
}

/// What is not committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Changed {
    /// Anything in files that git tracks.
    pub(in super::super) tracked: bool,
    /// Files that it neither tracks nor ignores.
    pub(in super::super) untracked: bool,
}

/// Where the checkout stands whose root this is, which may be looked into.
///
/// # Errors
///
/// Why that is not to be had.
///
/// # Cancel safety
///
/// May be dropped at any time: what it started is killed with its process group.
pub(in super::super) async fn standing(git: &Git, root: &std::path::Path) -> Result<Standing, DiffRefused> {
    let question = Question { git, root, until: Instant::now() + LIMIT };
    question.toplevel().await?;
    let commit = question.commit(HEAD).await?;
    let remote = remote(&question).await?;
    let changed = match question.unfiltered().await {
        Ok(()) => Some(changed(&question, &commit).await?),
        Err(DiffRefused::FilterNamed(_) | DiffRefused::FilterUsed(_)) => None,
        Err(other) => return Err(other),
    };
    Ok(Standing { commit, remote, changed })
}

/// What is not committed in files that git tracks, as a patch for this commit.
///
/// # Errors
///
/// Why it is not to be had: it is too large, or git would run programs of the repository's choice.
pub(in super::super) async fn patch(git: &Git, root: &std::path::Path, commit: &str) -> Result<Vec<u8>, DiffRefused> {
    let question = Question { git, root, until: Instant::now() + LIMIT };
    question.toplevel().await?;
    question.unfiltered().await?;
    let words = [
        "-c",
        "diff.noprefix=false",
        "-c",
        "diff.mnemonicPrefix=false",
        "diff",
        "--binary",
        "--full-index",
        "--unified=3",
        "--no-renames",
        "--no-relative",
        "--src-prefix=a/",
        "--dst-prefix=b/",
        "--no-ext-diff",
        "--no-textconv",
        "--no-color",
        "--ignore-submodules",
        "--end-of-options",
        commit,
        "--",
    ];
    let patch = question.ask(&words, PATCH_MOST).await?;
    match (patch.cut, patch.succeeded) {
        (true, _) => Err(DiffRefused::PatchTooLarge),
        (_, false) => Err(super::refusal(root, &patch)),
        _ => Ok(patch.into_bytes()),
    }
}

/// The address of the remote that the branch follows, else of `origin`.
async fn remote(question: &Question<'_>) -> Result<String, DiffRefused> {
    let line = async |words: &[&str]| {
        let answered = question.ask(words, MOST_OF_ANSWER).await?;
        let line = answered.text().trim_end_matches('\n').to_owned();
        Ok::<_, DiffRefused>(Some(line).filter(|line| answered.succeeded && !line.is_empty()))
    };
    let mut name = None;
    if let Some(branch) = line(&["symbolic-ref", "--quiet", "--short", HEAD]).await? {
        name = line(&["config", "--get", &format!("branch.{branch}.remote")]).await?;
    }
    // A branch that follows one of the same repository says a dot.
    let name = name.filter(|name| name != "." && is_nameable(name)).unwrap_or_else(|| ORIGIN.to_owned());
    let address = line(&["remote", "get-url", &name]).await?;
    address.ok_or(DiffRefused::NoRemote(name))
}

async fn changed(question: &Question<'_>, commit: &str) -> Result<Changed, DiffRefused> {
    let words = [
        "diff",
        "--name-only",
        "-z",
        "--no-ext-diff",
        "--no-textconv",
        "--no-color",
        "--ignore-submodules",
        "--end-of-options",
        commit,
        "--",
    ];
    let tracked = question.ask(&words, MOST_OF_ANSWER).await?;
    let words = ["ls-files", "-z", "--others", "--exclude-standard", "--directory", "--no-empty-directory"];
    let untracked = question.ask(&words, MOST_OF_ANSWER).await?;
    for answered in [&tracked, &untracked] {
        if !answered.succeeded && !answered.cut {
            return Err(super::refusal(question.root, answered));
        }
    }
    Ok(Changed { tracked: !tracked.text().is_empty(), untracked: !untracked.text().is_empty() })
}
