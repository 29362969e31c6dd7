//! Looks at directories, which may hang.
//!
//! Owns: how long a look may take, and what is said of a directory that is none. May not know: who may have it looked into.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::base::beside::beside;
use crate::exec::local::may_be_entered;

/// How long a directory may take to be looked at. One on a file system that does not answer would hold up the thread that
/// serves everybody; its caller is told instead.
pub(crate) const LOOK_BOUND: Duration = Duration::from_secs(2);

/// Looks at a directory on a thread that may hang, and makes it canonical. What is wrong with it, if it is none.
///
/// # Cancel safety
///
/// Safe: the look is not ended, but nobody waits for it.
pub(in crate::tools) async fn look_at(dir: PathBuf) -> Result<PathBuf, &'static str> {
    within(LOOK_BOUND, move || resolved(dir)).await
}

/// Looks at a directory, and makes it canonical. It may hang.
pub(crate) fn resolved(dir: PathBuf) -> Result<PathBuf, &'static str> {
    match std::fs::metadata(&dir) {
        Ok(found) if found.is_dir() && !may_be_entered(&dir) => {
            Err("may not be entered by the user this server runs as")
        }
        Ok(found) if found.is_dir() => Ok(std::fs::canonicalize(&dir).unwrap_or(dir)),
        Ok(_) => Err("is not a directory"),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err("cannot be looked at"),
        Err(_) => Err("does not exist"),
    }
}

pub(crate) async fn within<T: Send + 'static>(
    bound: Duration,
    look: impl FnOnce() -> Result<T, &'static str> + Send + 'static,
) -> Result<T, &'static str> {
    let Some(looking) = beside("look", look) else { return Err("cannot be looked at: there is no thread to be had") };
    match tokio::time::timeout(bound, looking).await {
        Ok(Some(looked)) => looked,
        Ok(None) => Err("cannot be looked at"),
        Err(_) => Err("does not answer: its file system hangs"),
    }
}

/// A directory a consult may run in without being named: not the root, not the user's home.
#[must_use]
pub fn default_cwd(current: Option<&Path>, home: Option<&Path>) -> Option<PathBuf> {
    current.filter(|dir| dir.is_absolute() && dir.parent().is_some() && Some(*dir) != home).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_look_that_hangs_is_told_and_holds_nobody_up() {
        let (release, hanging) = std::sync::mpsc::channel::<()>();
        let hung = within(Duration::from_millis(50), move || hanging.recv().map_err(|_| "released")).await;
        assert_eq!(hung, Err("does not answer: its file system hangs"));
        drop(release);
        assert_eq!(within(LOOK_BOUND, || Ok(7)).await, Ok(7));
        assert_eq!(look_at(PathBuf::from("/no/such")).await, Err("does not exist"));
    }
}
