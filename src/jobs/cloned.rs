//! The commit that stands for a workspace where a consult runs in a clone.
//!
//! Owns: what is said of it from the machine that asks to the one that fetches, and to whoever reads the answer. May not know: git,
//! which addresses are fetched from.

use serde::{Deserialize, Serialize};

/// A commit, where it is fetched from, and what there was beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct CloneOf {
    /// The repository's address.
    pub remote: String,
    /// The commit's whole hash.
    pub commit: String,
    /// The directory of the consult below the repository's root; empty for the root itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub below: String,
    /// Whether the caller wanted changes that are not committed to go along.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub changes_asked: bool,
    /// What became of changes that were not committed.
    pub changes: CloneChanges,
    /// Those that go along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch: Option<ClonePatch>,
}

/// What becomes of changes that are not committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CloneChanges {
    /// There were none.
    None,
    /// There were some, and they are not in the clone.
    LeftOut,
    /// They are in the clone.
    Included,
    /// Those of files that git tracks are in the clone; files that it does not track are not.
    IncludedTracked,
    /// It was not asked whether there are any, for git would have run programs of the repository's choice; none is in the clone.
    Unknown,
}

impl CloneChanges {
    /// What is said of it, after the commit.
    #[must_use]
    #[doc(hidden)]
    pub const fn told(self) -> &'static str {
        match self {
            Self::None => "nothing was uncommitted",
            Self::LeftOut => "uncommitted changes were not included",
            Self::Included => "uncommitted changes were included",
            Self::IncludedTracked => "uncommitted changes were included, but for files that git does not track",
            Self::Unknown => "uncommitted changes, if there were any, were not included",
        }
    }
}

/// Changes as git writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ClonePatch {
    /// SHA-256 of the patch.
    pub digest: String,
    /// The patch in base64: files need not be text.
    pub base64: String,
}

impl ClonePatch {
    /// One of these two.
    pub(crate) const fn new(digest: String, base64: String) -> Self {
        Self { digest, base64 }
    }
}

impl CloneOf {
    /// One of all of this.
    pub(crate) const fn new(
        remote: String,
        commit: String,
        below: String,
        changes: CloneChanges,
        patch: Option<ClonePatch>,
        changes_asked: bool,
    ) -> Self {
        Self { remote, commit, below, changes_asked, changes, patch }
    }

    /// What a caller asks for by it, whatever the checkout has become since.
    pub(crate) fn asked(&self) -> Self {
        Self { commit: String::new(), changes: CloneChanges::None, ..self.without_patch() }
    }

    /// The same without the changes themselves: for whoever is told of it.
    #[must_use]
    #[doc(hidden)]
    pub fn without_patch(&self) -> Self {
        Self { patch: None, ..self.clone() }
    }
}
