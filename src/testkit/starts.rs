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

use rustix::process::Pid;

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

    /// With so many processes and threads that its user may have at most, where that is no superuser. The soft limit only:
    /// [`lift_processes`](Self::lift_processes) takes it back.
    #[must_use]
    pub fn processes(self, most: u32) -> Option<Self> {
        self.through(&["prlimit", &format!("--nproc={most}:")])
    }

    /// Gives a process that was started [as nobody](Self::as_nobody) and with few [processes](Self::processes) as many as the
    /// hard limit has, unless it is gone. Done as nobody too: another user's limits are a privilege that root has not everywhere.
    ///
    /// # Panics
    ///
    /// When it is refused.
    pub fn lift_processes(pid: Pid) {
        let pid = pid.as_raw_nonzero().to_string();
        let Ok(limits) = std::fs::read_to_string(format!("/proc/{pid}/limits")) else { return };
        let line = limits.lines().find_map(|line| line.strip_prefix("Max processes")).unwrap_or_default();
        let hard = line.split_ascii_whitespace().nth(1).unwrap_or("unlimited");
        let lift = ["prlimit", "--pid", &pid, &format!("--nproc={hard}:{hard}")];
        let lifted = Start::plain().as_nobody().and_then(|start| {
            let (program, words) = start.0.split_first()?;
            Command::new(program).args(words).args(lift).status().ok()
        });
        let gone = !Path::new(&format!("/proc/{pid}")).exists();
        assert!(gone || lifted.is_some_and(|status| status.success()), "it is nobody's");
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
