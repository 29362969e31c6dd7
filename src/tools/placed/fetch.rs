//! One commit of a repository, fetched into a directory of our own.
//!
//! Owns: what is fetched and what is refused, what git is told and with which environment, in which order. May not know: who asked,
//! where the directory lies, how large it may become.
//!
//! The address and the commit come from another machine, the files from whoever can push. Nothing of either decides what is run here:
//!
//! | what could name a program | why it is not run |
//! | --- | --- |
//! | the address (`ext::`, an option, a file) | it is one of two schemes and plain characters, in the user's own list, and read again here |
//! | hooks | `core.hooksPath`, and the repository is made without a template |
//! | filters, differences, merges by an attribute | they are programs of the configuration, and there is none but ours; LFS is not smudged |
//! | submodules | none is fetched |
//! | the system's and the user's configuration | `GIT_CONFIG_NOSYSTEM`, `GIT_CONFIG_GLOBAL` |
//! | a redirection to another host, another transport | `http.followRedirects`, `GIT_ALLOW_PROTOCOL` |
//! | a link in the tree | it is written as a file that holds where it leads (`core.symlinks`) |
//!
//! What is the user's is let through by name: the agent of ssh keys, HOME for keys and known hosts of ssh and for `.netrc`, proxies and
//! authorities of https, and the credential helpers that the user's configuration lists for this. git asks nobody for a login.
//!
//! Invariants: (1) git is run without a shell of ours, on words that are checked, with an environment that is listed here; (2) what is
//! checked out is the commit that was asked for, or nothing; (3) a patch is the one whose digest was told, and changes files below
//! the root only.

use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::time::Instant;

use super::asked::digest;
use crate::agents::Environment;
use crate::base::beside::beside;
use crate::base::fault::{Fault, FaultCode};
use crate::fleet::remote::{Remote, covered};
use crate::jobs::CloneOf;
use crate::tools::diff::{Git, NotRun, PATCH_MOST, answered, shown};

/// What each word to git comes after.
const ALWAYS: &[&str] = &[
    "--no-pager",
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "core.attributesFile=/dev/null",
    "-c",
    "core.symlinks=false",
    "-c",
    "core.protectHFS=true",
    "-c",
    "core.protectNTFS=true",
    "-c",
    "protocol.ext.allow=never",
    "-c",
    "submodule.recurse=false",
    "-c",
    "fetch.recurseSubmodules=false",
    "-c",
    "maintenance.auto=false",
    "-c",
    "gc.auto=0",
    "-c",
    "http.followRedirects=false",
    // What the user lists comes after it.
    "-c",
    "credential.helper=",
];

/// What git is told by its environment.
const VARIABLES: &[(&str, &str)] = &[
    ("GIT_CONFIG_NOSYSTEM", "1"),
    ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ("GIT_TERMINAL_PROMPT", "0"),
    ("GIT_ALLOW_PROTOCOL", "https:ssh"),
    ("GIT_LFS_SKIP_SMUDGE", "1"),
    ("GIT_ATTR_NOSYSTEM", "1"),
    // Of our own words only; git hands it the address behind them.
    ("GIT_SSH_COMMAND", "ssh -oBatchMode=yes -oForwardAgent=no -oClearAllForwardings=yes -oPermitLocalCommand=no"),
    ("LC_ALL", "C"),
];

/// What of the user's environment is let through.
const LET_THROUGH: &[&str] = &[
    "HOME",
    "USER",
    "LOGNAME",
    "SSH_AUTH_SOCK",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
];

/// Authorities by the names that git hears of, and by those that other programs have for them.
const AUTHORITIES: [(&str, &str); 2] = [("GIT_SSL_CAINFO", "SSL_CERT_FILE"), ("GIT_SSL_CAPATH", "SSL_CERT_DIR")];

/// Bytes of an answer of git's that are read.
const ANSWER: usize = 4 * 1024;

/// What is said where a thread is needed.
pub(super) const NO_THREAD: &str = "there is no thread to be had";

/// Why a clone is not to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CloneRefused {
    #[error("this machine fetches nothing from there (`fleet_clone` of its configuration)")]
    NotListed,
    #[error("its address {0}")]
    Address(&'static str),
    #[error("what was asked for {0}")]
    Wrong(&'static str),
    #[error("there is no git on this machine")]
    NoGit,
    #[error("the remote does not have the commit, or shows it to nobody (is it pushed?)")]
    NotThere,
    #[error("it was not fetched: {0}")]
    NotFetched(String),
    #[error("it was not checked out: {0}")]
    NotCheckedOut(String),
    #[error("the uncommitted changes do not apply to it: {0}")]
    NotApplied(String),
    #[error("it takes more than {} MiB, which is the most this machine gives a clone (`fleet_clone_mb`)", .0 >> 20)]
    TooLarge(u64),
    #[error("it took longer than the job may take")]
    Slow,
    #[error("its directory could not be made: {0}")]
    Disk(String),
}

impl CloneRefused {
    /// What is told of it. An address that was not understood is not repeated: it may hold a login.
    pub(super) fn fault(&self, asked: &CloneOf) -> Fault {
        let of = match (self, Remote::read(&asked.remote)) {
            (Self::Wrong(_), _) | (_, Err(_)) => String::new(),
            (_, Ok(remote)) => format!(" {} of {remote}", shown(&asked.commit)),
        };
        let hint = match self {
            Self::NotThere => "Push the commit, or ask with placement = local.",
            Self::NotApplied(_) => "Ask without `changes`, or with placement = local.",
            _ => "Ask with placement = local, or of a machine that has the directory.",
        };
        Fault::new(FaultCode::WorkspaceUnavailable, format!("no clone of the commit{of}: {self}.")).hint(hint)
    }
}

/// What is to be fetched, checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    remote: Remote,
    commit: String,
    below: PathBuf,
    patch: Option<Vec<u8>>,
}

/// Checks what another machine asks for, by this machine's own list.
pub(super) fn checked(asked: &CloneOf, patterns: &[String]) -> Result<Wanted, CloneRefused> {
    let remote = Remote::read(&asked.remote).map_err(CloneRefused::Address)?;
    if remote.as_str() != asked.remote {
        return Err(CloneRefused::Address("is not in its one spelling"));
    }
    if !covered(patterns, remote.as_str()) {
        return Err(CloneRefused::NotListed);
    }
    let hex = asked.commit.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !hex || !matches!(asked.commit.len(), 40 | 64) {
        return Err(CloneRefused::Wrong("is no whole hash of a commit"));
    }
    let below = PathBuf::from(&asked.below);
    let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || asked.below.chars().any(char::is_control) {
        return Err(CloneRefused::Wrong("is no directory below the root"));
    }
    let patch = match &asked.patch {
        None => None,
        Some(patch) if patch.base64.len() > PATCH_MOST.div_ceil(3) * 4 => {
            return Err(CloneRefused::Wrong("has more changes than are taken"));
        }
        Some(patch) => match STANDARD.decode(&patch.base64) {
            Ok(bytes) if digest(&bytes) == patch.digest => Some(bytes),
            _ => return Err(CloneRefused::Wrong("has changes that are not those whose digest was told")),
        },
    };
    Ok(Wanted { remote, commit: asked.commit.clone(), below, patch })
}

/// What git is run with.
pub(super) struct Fetch<'a> {
    /// The directory of the clone, which is our own and in which nothing lies but its lock.
    pub(super) place: &'a Path,
    pub(super) environment: &'a Environment,
    pub(super) helpers: &'a [String],
    pub(super) until: Instant,
}

impl Fetch<'_> {
    /// Fetches it into `tree`.
    ///
    /// # Errors
    ///
    /// Why it is not there; what was written is left.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time: what it started is killed with its process group.
    pub(super) async fn run(&self, wanted: &Wanted) -> Result<(), CloneRefused> {
        let path = self.environment.get("PATH");
        let git = Git::find(path, self.environment.get("HOME"), self.place).ok_or(CloneRefused::NoGit)?;
        let tree = self.place.join("tree");
        let format = if wanted.commit.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
        let asks = Asks { fetch: self, git: &git };
        let made = asks.ask(self.place, &["init", "--quiet", "--template=", format, "tree"]).await?;
        made.map_err(CloneRefused::NotCheckedOut)?;
        // Whoever looks at the clone later has the same files for the same.
        let kept = asks.ask(&tree, &["config", "core.symlinks", "false"]).await?;
        kept.map_err(CloneRefused::NotCheckedOut)?;
        self.fetched(&asks, &tree, wanted).await?;
        let out = asks.ask(&tree, &["checkout", "--quiet", "--detach", &wanted.commit, "--"]).await?;
        out.map_err(CloneRefused::NotCheckedOut)?;
        let head = asks.ask(&tree, &["rev-parse", "--verify", "HEAD"]).await?.map_err(CloneRefused::NotCheckedOut)?;
        if head.trim_end() != wanted.commit {
            return Err(CloneRefused::NotCheckedOut("it is another commit".to_owned()));
        }
        if let Some(patch) = &wanted.patch {
            let (file, patch) = (self.place.join("patch"), patch.clone());
            let written = looked(move || std::fs::write(file, patch).map_err(|error| error.to_string())).await;
            written.unwrap_or_else(|| Err(NO_THREAD.to_owned())).map_err(CloneRefused::Disk)?;
            let applied = asks.ask(&tree, &["apply", "--whitespace=nowarn", "../patch"]).await?;
            applied.map_err(CloneRefused::NotApplied)?;
        }
        self.stays_inside(&tree, &wanted.below).await
    }

    async fn fetched(&self, asks: &Asks<'_>, tree: &Path, wanted: &Wanted) -> Result<(), CloneRefused> {
        let (remote, commit) = (wanted.remote.as_str(), wanted.commit.as_str());
        let words = ["fetch", "--quiet", "--no-tags", "--depth=1", "--end-of-options", remote, commit];
        let said = match asks.ask(tree, &words).await? {
            Ok(_) => return Ok(()),
            Err(said) => said,
        };
        if said.contains("not our ref") {
            return Err(CloneRefused::NotThere);
        }
        if !said.contains("unadvertised object") && !said.contains("not allow request") {
            return Err(CloneRefused::NotFetched(said));
        }
        // A server that gives what its branches point to and nothing else.
        let words =
            ["fetch", "--quiet", "--no-tags", "--end-of-options", remote, "+refs/heads/*:refs/remotes/origin/*"];
        asks.ask(tree, &words).await?.map_err(CloneRefused::NotFetched)?;
        let there = asks.ask(tree, &["cat-file", "-e", &format!("{commit}^{{commit}}")]).await?;
        there.map(drop).map_err(|_| CloneRefused::NotThere)
    }

    /// Whether the directory of the consult is there, and no link leads out of the clone.
    async fn stays_inside(&self, tree: &Path, below: &Path) -> Result<(), CloneRefused> {
        let (dir, tree) = (tree.join(below), tree.to_owned());
        let look = looked(move || {
            let found = std::fs::canonicalize(dir).ok()?;
            (found.starts_with(std::fs::canonicalize(tree).ok()?) && found.is_dir()).then_some(())
        });
        look.await.flatten().ok_or(CloneRefused::Wrong("names a directory that the commit does not have"))
    }
}

/// Does something with files on a thread of its own.
pub(super) async fn looked<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    beside("clone", look)?.await
}

struct Asks<'a> {
    fetch: &'a Fetch<'a>,
    git: &'a Git,
}

impl Asks<'_> {
    /// Runs git; what it wrote, or the first line of what it complained of.
    async fn ask(&self, dir: &Path, words: &[&str]) -> Result<Result<String, String>, CloneRefused> {
        let mut command = self.git.command(dir);
        let through = LET_THROUGH.iter().filter_map(|name| Some((*name, self.fetch.environment.get(name)?)));
        let environment = self.fetch.environment;
        let authorities = AUTHORITIES.iter().filter_map(|(name, other)| Some((*name, environment.get(other)?)));
        command.args(ALWAYS).envs(authorities).envs(through).envs(VARIABLES.iter().copied());
        for helper in self.fetch.helpers {
            command.arg("-c").arg(format!("credential.helper={helper}"));
        }
        command.args(words);
        match answered(command, ANSWER, self.fetch.until).await {
            Err(NotRun::Slow) => Err(CloneRefused::Slow),
            Err(NotRun::Failed(error)) => Ok(Err(error.to_string())),
            Ok(answer) if answer.succeeded => Ok(Ok(answer.text().into_owned())),
            Ok(answer) => Ok(Err(complaint(&answer.said))),
        }
    }
}

/// The line of git's that says what is wrong.
fn complaint(said: &str) -> String {
    let wrong = |line: &&str| ["fatal:", "error:", "ssh:"].iter().any(|begin| line.starts_with(begin));
    let mut lines = said.lines().filter(|line| !line.trim().is_empty());
    let first = said.lines().find(wrong).or_else(|| lines.next()).unwrap_or("git says nothing");
    shown(first)
}

#[cfg(test)]
mod tests;
