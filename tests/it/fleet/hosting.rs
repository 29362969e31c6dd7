//! A place from which machines clone, without a network: `ssh` is a script that comes first on PATH and serves a repository beside it.
//!
//! Owns: the repository, the script, and the files that are there if anything of a repository is run. May not know: who fetches.
//!
//! Laws: L19.

#![expect(clippy::expect_used, clippy::print_stderr, reason = "helpers of tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use phone_opus::testkit::Rig;

/// The one repository it serves.
pub(super) const ADDRESS: &str = "git@git.example:team/tool.git";

/// What a host's list has to cover for it.
pub(super) const PATTERN: &str = "ssh://git@git.example/team/*";

/// It serves what `asks` has pushed.
pub(super) struct Hosting {
    dir: PathBuf,
    work: PathBuf,
}

impl Hosting {
    /// Makes the directory of this machine a checkout whose commit is pushed. `None`, said aloud, without git.
    pub(super) fn of(asks: &Rig) -> Option<Self> {
        Self::at(asks.path("hosting"), asks.work())
    }

    /// The same of any directory; it serves from another one.
    pub(super) fn at(dir: PathBuf, work: PathBuf) -> Option<Self> {
        if !Command::new("git").arg("version").output().is_ok_and(|answer| answer.status.success()) {
            assert!(std::env::var_os("CI").is_none(), "git is needed");
            eprintln!("SKIPPED: there is no git");
            return None;
        }
        let it = Self { dir, work };
        fs::create_dir_all(it.dir.join("bin")).expect("made");
        fs::create_dir_all(it.dir.join("team")).expect("made");
        it.answers("exec git upload-pack \"$path\"");
        it.git(&["init", "--quiet", "--initial-branch=main"]);
        it.git(&["remote", "add", "origin", ADDRESS]);
        fs::write(it.work.join(".gitignore"), "/other\n").expect("written");
        fs::write(it.work.join("told"), "committed\n").expect("written");
        fs::write(it.work.join(".gitattributes"), "* filter=canary\n").expect("written");
        // Whoever asks has no such filter either; its own attributes would keep it from seeing its changes.
        fs::create_dir_all(it.work.join(".git/info")).expect("made");
        fs::write(it.work.join(".git/info/attributes"), "* !filter\n").expect("written");
        let module = "[submodule \"m\"]\n path = m\n url = git@git.example:team/tool.git\n";
        fs::write(it.work.join(".gitmodules"), module).expect("written");
        std::os::unix::fs::symlink("/etc", it.work.join("out")).expect("linked");
        it.commit();
        it.git(&["clone", "--quiet", "--bare", ".", &it.dir.join("team/tool.git").display().to_string()]);
        Some(it)
    }

    /// What `ssh` does; `$path` is the repository's directory.
    pub(super) fn answers(&self, does: &str) {
        let dir = self.dir.display();
        let said = format!("#!/bin/sh\nfor last; do :; done\npath=${{last#*\\'}}\npath={dir}${{path%\\'}}\n{does}\n");
        self.program(&self.dir.join("bin/ssh"), &said);
    }

    fn program(&self, at: &Path, text: &str) {
        // A script that is being run is not written to.
        let new = self.dir.join("new");
        fs::write(&new, text).expect("written");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("set");
        fs::rename(new, at).expect("named");
    }

    /// The checkout's remote is this address from here on.
    pub(super) fn is_at(&self, address: &str) {
        self.git(&["remote", "set-url", "origin", address]);
    }

    /// Commits everything, and pushes nothing.
    pub(super) fn commit(&self) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", "x"]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// The commit that is checked out in a directory.
    pub(super) fn head(dir: &Path) -> String {
        run(dir, &["rev-parse", "HEAD"])
    }

    fn git(&self, words: &[&str]) -> String {
        run(&self.work, words)
    }

    /// PATH of a machine that reaches it.
    pub(super) fn path(&self) -> String {
        format!("{}:{}", self.dir.join("bin").display(), std::env::var("PATH").expect("PATH"))
    }

    /// Gives the user of a machine a configuration of git's in which everything runs something. The file that is there if it was.
    pub(super) fn traps(&self, rig: &mut Rig) -> PathBuf {
        let canary = rig.path("canary");
        let hooks = self.dir.join("hooks");
        fs::create_dir_all(&hooks).expect("made");
        for hook in ["post-checkout", "reference-transaction", "post-index-change"] {
            self.program(&hooks.join(hook), &format!("#!/bin/sh\ntouch {}\n", canary.display()));
        }
        let (hooks, touch) = (hooks.display(), format!("touch {}", canary.display()));
        let text = format!(
            "[core]\n hooksPath = {hooks}\n fsmonitor = {touch}\n[filter \"canary\"]\n smudge = {touch}\n process = {touch}\n\
             [init]\n templateDir = {hooks}\n[submodule]\n recurse = true\n"
        );
        let dir = rig.at_home(".config").join("git");
        fs::create_dir_all(&dir).expect("made");
        fs::write(dir.join("config"), text).expect("written");
        canary
    }
}

fn run(dir: &Path, words: &[&str]) -> String {
    let mut command = Command::new("git");
    command.current_dir(dir).args(["-c", "user.name=t", "-c", "user.email=t@t"]).args(words);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    let answer = command.output().expect("git");
    assert!(answer.status.success(), "{words:?}: {}", String::from_utf8_lossy(&answer.stderr));
    String::from_utf8(answer.stdout).expect("text").trim().to_owned()
}

/// How many clones a machine has now.
pub(super) fn clones_of(rig: &Rig) -> usize {
    fs::read_dir(rig.state_dir().clones()).map_or(0, Iterator::count)
}
