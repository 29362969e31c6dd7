//! The next image of the program, and the `exec` that makes it this process.
//!
//! Owns: that system call and what has to be right in the moment of it. May not know: what is in a snapshot, who asked.
//!
//! Invariant: when it fails, everything is as before: no descriptor goes through an `exec` of somebody else, signals come
//! through.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::base::descriptors::{PassedPipe, Passing};
use crate::rollout::Fingerprint;
use crate::rollout::snapshot_file::SnapshotFile;

/// The option by which a program is told where its snapshot lies ([`Restore`](super::Restore)). It is no variable: those are inherited by everything that is
/// started later.
pub const RESTORE: &str = "--restore";

/// What is to run in this process's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewImage {
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    /// How the program looked when it was found good; `None` when nobody looked.
    checked: Option<Fingerprint>,
}

impl NewImage {
    /// This program with these arguments, its own name first, in this environment. An earlier `--restore` among the
    /// arguments is left out.
    #[must_use]
    pub fn new(
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        let mut kept = Vec::new();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            if argument == RESTORE {
                arguments.next();
            } else if !argument.as_bytes().starts_with(b"--restore=") {
                kept.push(argument);
            }
        }
        Self { program: program.into(), arguments: kept, environment: environment.into_iter().collect(), checked: None }
    }

    /// The same with this program, as long as it looks like this.
    pub(super) fn checked(&self, program: PathBuf, as_it_was: Fingerprint) -> Self {
        Self { program, checked: Some(as_it_was), ..self.clone() }
    }

    /// Whether the program is the one that was checked, where one was.
    pub(super) fn is_as_checked(&self) -> bool {
        self.checked.is_none_or(|checked| Fingerprint::look(&self.program) == Some(checked))
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Becomes it. Returns only why not.
    pub(super) fn exec(&self, snapshot: &SnapshotFile, pipes: &[PassedPipe]) -> io::Error {
        let texts = || -> io::Result<_> {
            let own = self.arguments.iter().map(OsString::as_os_str);
            let place = snapshot.here().to_string();
            let arguments =
                own.chain([OsStr::new(RESTORE), OsStr::new(&place)]).map(text).collect::<io::Result<Vec<_>>>()?;
            let variable = |(name, value): &(OsString, OsString)| {
                let mut pair = name.clone();
                pair.push("=");
                pair.push(value);
                text(&pair)
            };
            let environment = self.environment.iter().map(variable).collect::<io::Result<Vec<_>>>()?;
            Ok((text(self.program.as_os_str())?, arguments, environment))
        };
        let (program, arguments, environment) = match texts() {
            Ok(texts) => texts,
            Err(error) => return error,
        };
        let passing = snapshot
            .set_passing(true)
            .and_then(|()| pipes.iter().try_for_each(|pipe| pipe.set_passing(Passing::Through)));
        let error = match passing {
            Err(error) => error,
            Ok(()) => match nix::unistd::execve(&program, &arguments, &environment) {
                Ok(never) => match never {},
                Err(error) => error.into(),
            },
        };
        for pipe in pipes {
            // One that could not be made to pass is closed to others already.
            let _ = pipe.set_passing(Passing::Closed);
        }
        let _ = snapshot.set_passing(false);
        error
    }
}

fn text(text: &OsStr) -> io::Result<CString> {
    CString::new(text.to_owned().into_vec()).map_err(|_| io::ErrorKind::InvalidInput.into())
}
