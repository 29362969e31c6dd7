//! What a daemon is started with again.
//!
//! Owns: the words and the environment of its next image. May not know: when there is one.

use std::ffi::OsString;
use std::path::PathBuf;

use phone_opus::internals::base::state_dir::StateDir;

use crate::cli::DaemonRunOptions;
use crate::daemon::activation;
use crate::daemon::asking::serving;

/// The words this daemon could be started with again from anywhere.
pub(super) fn words(options: &DaemonRunOptions, dir: &StateDir, asked: Option<&PathBuf>) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["daemon".into(), "run".into()];
    words.extend(["--state-dir".into(), dir.root().as_os_str().to_owned()]);
    if let Some(path) = asked {
        words.extend(["--socket".into(), path.as_os_str().to_owned()]);
    }
    for (given, word) in [(options.detached, "--detached"), (options.started_by_client, "--started-by-client")] {
        if given {
            words.push(word.into());
        }
    }
    if let Some(scope) = &options.scope {
        words.extend(["--scope".into(), scope.into()]);
    }
    words.extend(serving(&options.serves));
    words
}

pub(super) fn named(words: &[OsString]) -> Vec<OsString> {
    std::env::args_os().next().into_iter().chain(words.iter().cloned()).collect()
}

/// What the next image begins with. What was passed on to this one is passed on by the snapshot.
pub(super) fn begin_environment() -> Vec<(OsString, OsString)> {
    crate::serve::environment().filter(|(name, _)| !activation::is_of_descriptors(name)).collect()
}
