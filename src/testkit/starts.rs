//! How a program may have been started: with signals blocked or ignored, with limits, with descriptors of somebody else, as
//! another user, as the first process of a container, without `/proc`.
//!
//! Owns: the words that stand before the program on a command line to make it so. May not know: what the program is. Every
//! circumstance is made by a program every system has (`sh`, `env`, `unshare`, `setpriv`), because a test must not do any of
//! it to its own process.
//!
//! What a machine cannot do is `None`, and said on stderr: the test that asks for it is skipped, and it can be seen that it was.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

/// Who a world is given to that is to be somebody else's: nobody, on most systems.
pub const NOBODY: u32 = 65534;

/// Circumstances, as words before the program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start(Vec<OsString>);

impl Start {
    /// As it is.
    #[must_use]
    pub fn plain() -> Self {
        Self::default()
    }

    /// The words before the program.
    #[must_use]
    pub fn words(&self) -> &[OsString] {
        &self.0
    }

    /// Under this shell command, which must end in nothing: the program follows it in the same process.
    #[must_use]
    pub fn after(mut self, command: &str) -> Self {
        let script = format!("{command}; exec \"$@\"");
        self.0.extend(["/bin/sh", "-c", script.as_str(), "sh"].map(OsString::from));
        self
    }

    /// With every signal blocked.
    #[must_use]
    pub fn signals_blocked(self) -> Option<Self> {
        self.through(&["env", "--block-signal"])
    }

    /// With these signals ignored, by their names without `SIG`.
    #[must_use]
    pub fn signals_ignored(self, names: &str) -> Self {
        self.after(&format!("trap '' {names}"))
    }

    /// With this soft limit of descriptors, and this hard one.
    #[must_use]
    pub fn descriptors(self, soft: u32, hard: u32) -> Self {
        self.after(&format!("ulimit -S -n {soft} && ulimit -H -n {hard}"))
    }

    /// With so many processes and threads that its user may have at most, where that is no superuser.
    #[must_use]
    pub fn processes(self, most: u32) -> Option<Self> {
        self.through(&["prlimit", &format!("--nproc={most}")])
    }

    /// With files that may not grow beyond so many blocks of 512 bytes.
    #[must_use]
    pub fn file_blocks(self, blocks: u32) -> Self {
        self.after(&format!("ulimit -f {blocks}"))
    }

    /// Holding this file open for writing, a FIFO for one, as descriptor `fd`, which is none of the program's business.
    #[must_use]
    pub fn holding(self, file: &Path, fd: u8) -> Self {
        self.after(&format!("exec {fd}>'{}'", file.display()))
    }

    /// As another user ([`NOBODY`]), where this one may become it. See [`Rig::give_away`](super::Rig::give_away).
    #[must_use]
    pub fn as_nobody(self) -> Option<Self> {
        let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
        self.through(&["setpriv", &user, &group, "--clear-groups"])
    }

    /// As the first process of a container.
    #[must_use]
    pub fn as_first_process(self) -> Option<Self> {
        self.through(&["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"])
    }

    /// With an empty `/proc`.
    #[must_use]
    pub fn without_proc(self) -> Option<Self> {
        let next = self.through(&["unshare", "--mount"])?;
        next.through(&["/bin/sh", "-c", "mount -t tmpfs none /proc && exec \"$@\"", "sh"])
    }

    /// Through these words, where they work.
    fn through(mut self, words: &[&str]) -> Option<Self> {
        self.0.extend(words.iter().map(OsString::from));
        let (program, rest) = self.0.split_first()?;
        let tried = Command::new(program).args(rest).arg("true").stdin(Stdio::null()).output();
        if tried.is_ok_and(|tried| tried.status.success()) {
            return Some(self);
        }
        tracing::warn!(?words, "a circumstance cannot be made on this machine");
        None
    }
}
