//! The commit that stands for a directory where a job may run in a clone.
//!
//! Owns: what this machine's checkout says of it, and what is refused before anything is accepted. May not know: who fetches it.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use crate::base::fault::{Fault, FaultCode};
use crate::fleet::Placement;
use crate::fleet::remote::Remote;
use crate::jobs::{CloneChanges, CloneOf, ClonePatch};
use crate::tools::consult::{Caller, ConsultOptions, Consults};
use crate::tools::diff::{self, Changed, DiffRefused};

/// The same options with the commit that stands for their directory, where a clone of it will do.
///
/// # Errors
///
/// As [`clone_of`], where the caller said itself that it may be cloned.
///
/// # Cancel safety
///
/// Safe: nothing is changed.
pub(super) async fn with_commit(
    desk: &Consults,
    mut options: ConsultOptions,
    caller: Caller,
) -> Result<ConsultOptions, Fault> {
    if options.placement == Placement::Clone {
        options.request.clone_of = match clone_of(desk, &options, caller).await {
            Ok(of) => Some(of),
            // Where the configuration lets it be cloned and it cannot be, it may run wherever the directory is.
            Err(_) if !options.is_placed_by_caller() => None,
            Err(fault) => return Err(fault),
        };
    }
    Ok(options)
}

/// The commit of the checkout that a consult looks into, with what is not committed where the caller wants that.
///
/// # Errors
///
/// `invalid_input`: there is none that another machine could fetch.
///
/// # Cancel safety
///
/// Safe: nothing is changed.
async fn clone_of(desk: &Consults, options: &ConsultOptions, caller: Caller) -> Result<CloneOf, Fault> {
    if options.request.session_id.is_some() {
        return Err(refused(
            "and a session is gone on with, which lies on the machine that had it",
            "no `session_id`, or another `placement`",
        ));
    }
    let dir = options.workspace.clone();
    let found = desk.repository(dir.clone(), caller).await.map_err(|(wrong, accepted)| {
        refused(&format!("and the root of the repository around its directory {wrong}"), accepted)
    })?;
    let of = |refusal: DiffRefused| refused(&format!("and what would be cloned {refusal}"), refusal.accepted());
    let (root, git) = match found {
        None => return Err(of(DiffRefused::NoRepository(dir))),
        Some((_, None)) => return Err(of(DiffRefused::NoGit)),
        Some((root, Some(git))) => (root, git),
    };
    let standing = diff::standing(&git, &root).await.map_err(of)?;
    let remote = Remote::read(&standing.remote).map_err(|wrong| {
        let accepted = "a remote by https or ssh, without a login in its address";
        refused(&format!("and the address of the repository's remote {wrong}"), accepted)
    })?;
    let (changes, patch) = if options.with_changes {
        let patch = diff::patch(&git, &root, &standing.commit).await.map_err(of)?;
        included(standing.changed, &patch)
    } else {
        (left_out(standing.changed), None)
    };
    let below = below(&root, &dir).ok_or_else(|| {
        refused("and its directory is not below the repository's root by a plain name", "another directory")
    })?;
    Ok(CloneOf::new(remote.to_string(), standing.commit, below, changes, patch, options.with_changes))
}

fn refused(wrong: &str, accepted: &str) -> Fault {
    Fault::new(FaultCode::InvalidInput, format!("`placement` is `clone`, {wrong}; accepted: {accepted}."))
}

fn below(root: &Path, dir: &Path) -> Option<String> {
    dir.strip_prefix(root).ok()?.to_str().map(str::to_owned)
}

fn left_out(changed: Option<Changed>) -> CloneChanges {
    match changed {
        None => CloneChanges::Unknown,
        Some(Changed { tracked: false, untracked: false }) => CloneChanges::None,
        Some(_) => CloneChanges::LeftOut,
    }
}

fn included(changed: Option<Changed>, patch: &[u8]) -> (CloneChanges, Option<ClonePatch>) {
    let untracked = changed.is_some_and(|changed| changed.untracked);
    if patch.is_empty() {
        return (if untracked { CloneChanges::LeftOut } else { CloneChanges::None }, None);
    }
    let patch = ClonePatch::new(digest(patch), STANDARD.encode(patch));
    (if untracked { CloneChanges::IncludedTracked } else { CloneChanges::Included }, Some(patch))
}

/// By which the patch that arrived is known to be the one that was made.
pub(super) fn digest(patch: &[u8]) -> String {
    Sha256::digest(patch).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_changes_is_what_became_of_them() {
        use CloneChanges::{Included, IncludedTracked, LeftOut, None as Nothing, Unknown};
        for (tracked, untracked, without, with) in [
            (false, false, Nothing, Nothing),
            (true, false, LeftOut, Included),
            (false, true, LeftOut, LeftOut),
            (true, true, LeftOut, IncludedTracked),
        ] {
            let changed = Some(Changed { tracked, untracked });
            assert_eq!(left_out(changed), without);
            let (said, patch) = included(changed, if tracked { b"diff" } else { b"" });
            assert_eq!((said, patch.is_some()), (with, tracked));
        }
        assert_eq!(left_out(None), Unknown);
    }
}
