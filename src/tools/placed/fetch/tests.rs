//! What is fetched is the commit that was asked for, and nothing that its repository names is run.
//!
//! git is a real one; `ssh` is a script that comes first on PATH and serves repositories of this directory, so that no network is
//! touched.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use super::super::clones::Clones;
use super::*;
use crate::base::ids::JobId;
use crate::base::state_dir::StateDir;
use crate::config::Config;
use crate::jobs::{CloneChanges, ClonePatch};

/// A place that serves `ssh://git@git.example/team/a.git`.
struct Hosting {
    scratch: tempfile::TempDir,
    /// The older commit of its branch, and the newer one.
    commits: [String; 2],
}

impl Hosting {
    /// `None`, said aloud, where there is no git.
    fn new() -> Option<Self> {
        if !Command::new("git").arg("version").output().is_ok_and(|answer| answer.status.success()) {
            assert!(std::env::var_os("CI").is_none(), "git is needed");
            eprintln!("SKIPPED: there is no git");
            return None;
        }
        let scratch = tempfile::tempdir().expect("a directory");
        let it = Self { scratch, commits: Default::default() };
        for dir in ["bin", "home", "hooks", "served/team", "work/src/deep", "work/m"] {
            fs::create_dir_all(it.at(dir)).expect("made");
        }
        it.says_ssh("exec git upload-pack \"$path\"");
        // Whatever of this is believed leaves a file.
        let canary = it.at("canary").display().to_string();
        let hooks = it.at("hooks").display().to_string();
        fs::write(
            it.at("home/.gitconfig"),
            format!(
                "[core]\n hooksPath = {hooks}\n fsmonitor = touch {canary}\n[filter \"canary\"]\n smudge = touch {canary}\n \
                 process = touch {canary}\n required = true\n[filter \"lfs\"]\n smudge = touch {canary}\n[init]\n \
                 templateDir = {hooks}\n[submodule]\n recurse = true\n"
            ),
        )
        .expect("written");
        for hook in ["post-checkout", "reference-transaction", "post-index-change"] {
            it.program(&format!("hooks/{hook}"), &format!("touch {canary}"));
        }
        it.git("work", &["init", "--quiet", "--initial-branch=main"]);
        fs::write(it.at("work/src/deep/a"), "one\n").expect("written");
        let first = it.commit();
        fs::write(it.at("work/src/deep/a"), "two\n").expect("written");
        fs::write(it.at("work/.gitattributes"), "* filter=canary\n*.bin filter=lfs\n").expect("written");
        fs::write(it.at("work/x.bin"), "version https://git-lfs.github.com/spec/v1\n").expect("written");
        let module = "[submodule \"m\"]\n path = m\n url = ssh://git@git.example/team/a.git\n";
        fs::write(it.at("work/.gitmodules"), module).expect("written");
        std::os::unix::fs::symlink("/etc/passwd", it.at("work/link")).expect("linked");
        std::os::unix::fs::symlink("/etc", it.at("work/src/out")).expect("linked");
        it.git("work", &["update-index", "--add", "--cacheinfo", &format!("160000,{first},m")]);
        let second = it.commit();
        it.git("served/team", &["clone", "--quiet", "--bare", "../../work", "a.git"]);
        assert!(!it.at("canary").exists(), "the test itself runs none");
        Some(Self { commits: [first, second], ..it })
    }

    fn at(&self, path: &str) -> PathBuf {
        self.scratch.path().join(path)
    }

    fn program(&self, path: &str, does: &str) {
        fs::write(self.at(path), format!("#!/bin/sh\n{does}\n")).expect("written");
        fs::set_permissions(self.at(path), fs::Permissions::from_mode(0o755)).expect("set");
    }

    /// What `ssh` does; `$path` is the repository's directory.
    fn says_ssh(&self, does: &str) {
        let served = self.at("served").display().to_string();
        let path = format!("for last; do :; done\npath=${{last#*\\'}}\npath={served}${{path%\\'}}");
        self.program("bin/ssh", &format!("{path}\n{does}"));
    }

    fn git(&self, dir: &str, words: &[&str]) -> String {
        let mut command = Command::new("git");
        command.current_dir(self.at(dir)).args(["-c", "user.name=t", "-c", "user.email=t@t"]).args(words);
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        let answer = command.output().expect("git");
        assert!(answer.status.success(), "{words:?}: {}", String::from_utf8_lossy(&answer.stderr));
        String::from_utf8(answer.stdout).expect("text").trim().to_owned()
    }

    fn commit(&self) -> String {
        self.git("work", &["add", "src", "."]);
        self.git("work", &["commit", "--quiet", "--message", "x"]);
        self.git("work", &["rev-parse", "HEAD"])
    }

    fn environment(&self) -> Environment {
        let path = format!("{}:{}", self.at("bin").display(), std::env::var("PATH").expect("PATH"));
        let home = self.at("home").display().to_string();
        let all = [("PATH", path), ("HOME", home), ("GIT_CONFIG_COUNT", "x".to_owned())];
        all.into_iter().collect()
    }

    fn clones(&self, change: impl FnOnce(&mut Config)) -> Clones {
        let mut config = Config { fleet_clone: vec!["ssh://git@git.example/team/*".into()], ..Config::default() };
        change(&mut config);
        Clones::new(self.state(), &config)
    }

    fn state(&self) -> StateDir {
        StateDir::at(self.at("state"))
    }

    fn left(&self) -> usize {
        fs::read_dir(self.state().clones()).map_or(0, Iterator::count)
    }
}

fn asked(commit: &str) -> CloneOf {
    let remote = "ssh://git@git.example/team/a.git".to_owned();
    CloneOf::new(remote, commit.to_owned(), String::new(), CloneChanges::None, None, false)
}

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_clone_is_the_commit_that_was_asked_for_and_nothing_of_the_repository_is_run() {
    let Some(hosting) = Hosting::new() else { return };
    let (clones, environment) = (hosting.clones(|_| ()), hosting.environment());
    for commit in &hosting.commits {
        let job = JobId::random();
        let of = CloneOf { below: "src/deep".into(), ..asked(commit) };
        clones.make(job, &of, &environment, MINUTE).await.expect("fetched");
        let tree = clones.tree(job).expect("there");
        assert_eq!(hosting.git(tree.to_str().expect("text"), &["rev-parse", "HEAD"]), *commit);
        assert_eq!(hosting.git(tree.to_str().expect("text"), &["status", "--porcelain"]), "");
        let mode = fs::metadata(hosting.state().clones()).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        if *commit == hosting.commits[1] {
            assert_eq!(fs::read_to_string(tree.join("src/deep/a")).expect("read"), "two\n");
            for (link, target) in [("link", "/etc/passwd"), ("src/out", "/etc")] {
                assert!(fs::symlink_metadata(tree.join(link)).expect("there").is_file(), "{link}");
                assert_eq!(fs::read_to_string(tree.join(link)).expect("read"), target);
            }
            assert!(fs::read_to_string(tree.join("x.bin")).expect("read").starts_with("version "), "not smudged");
            let module = fs::read_dir(tree.join("m")).map_or(0, Iterator::count);
            assert_eq!((module, tree.join(".git/modules").exists()), (0, false), "no submodule");
            let hooks = fs::read_dir(tree.join(".git/hooks")).map_or(0, Iterator::count);
            assert_eq!(hooks, 0, "no template");
        }
        clones.remove(job).await;
        assert!(clones.tree(job).is_none());
    }
    assert!(!hosting.at("canary").exists(), "something was run");
    assert_eq!(hosting.left(), 0);
}

#[tokio::test]
async fn a_server_that_gives_branches_only_is_asked_for_those() {
    let Some(hosting) = Hosting::new() else { return };
    hosting.says_ssh("unset GIT_PROTOCOL\nexec git upload-pack \"$path\"");
    let (clones, environment, job) = (hosting.clones(|_| ()), hosting.environment(), JobId::random());
    clones.make(job, &asked(&hosting.commits[0]), &environment, MINUTE).await.expect("fetched");
    let tree = clones.tree(job).expect("there");
    assert_eq!(fs::read_to_string(tree.join("src/deep/a")).expect("read"), "one\n");
    let gone = clones.make(JobId::random(), &asked(&"ab".repeat(20)), &environment, MINUTE).await.expect_err("no such");
    assert!(gone.detail.contains("does not have the commit"), "{gone}");
    clones.remove(job).await;
    wait_until_gone(&hosting).await;
}

#[tokio::test]
async fn changes_that_go_along_are_applied_or_there_is_no_clone() {
    let Some(hosting) = Hosting::new() else { return };
    let (clones, environment, job) = (hosting.clones(|_| ()), hosting.environment(), JobId::random());
    let with = |patch: &str| {
        let patch = ClonePatch::new(digest(patch.as_bytes()), STANDARD.encode(patch));
        CloneOf { patch: Some(patch), changes: CloneChanges::Included, ..asked(&hosting.commits[1]) }
    };
    let good = "diff --git a/src/deep/a b/src/deep/a\n--- a/src/deep/a\n+++ b/src/deep/a\n@@ -1 +1 @@\n-two\n+three\n";
    clones.make(job, &with(good), &environment, MINUTE).await.expect("fetched");
    let tree = clones.tree(job).expect("there");
    assert_eq!(fs::read_to_string(tree.join("src/deep/a")).expect("read"), "three\n");
    clones.remove(job).await;
    let beyond =
        "diff --git a/../../x b/../../x\nnew file mode 100644\n--- /dev/null\n+++ b/../../x\n@@ -0,0 +1 @@\n+x\n";
    let inside = "diff --git a/.git/hooks/x b/.git/hooks/x\nnew file mode 100755\n--- /dev/null\n+++ b/.git/hooks/x\n@@ -0,0 +1 @@\n+x\n";
    for wrong in [good.replace("-two", "-else").as_str(), "no patch", beyond, inside] {
        let refused = clones.make(JobId::random(), &with(wrong), &environment, MINUTE).await.expect_err(wrong);
        assert!(refused.detail.contains("do not apply"), "{refused}");
    }
    assert!(!hosting.at("canary").exists());
    wait_until_gone(&hosting).await;
}

#[tokio::test]
async fn what_cannot_be_had_is_said_and_leaves_nothing() {
    let Some(hosting) = Hosting::new() else { return };
    let environment = hosting.environment();
    let of = asked(&hosting.commits[1]);
    let fails = async |clones: Clones, of: &CloneOf, within, told: &str| {
        let refused = clones.make(JobId::random(), of, &environment, within).await.expect_err(told);
        assert_eq!(refused.code, FaultCode::WorkspaceUnavailable);
        assert!(refused.detail.contains(told), "{refused} and not {told}");
    };
    fails(hosting.clones(|config| config.fleet_clone.clear()), &of, MINUTE, "fetches nothing from there").await;
    fails(hosting.clones(|_| ()), &asked(&"ab".repeat(20)), MINUTE, "does not have the commit").await;
    let nowhere = CloneOf { below: "none".into(), ..of.clone() };
    fails(hosting.clones(|_| ()), &nowhere, MINUTE, "that the commit does not have").await;
    let linked = CloneOf { below: "src/out".into(), ..of.clone() };
    fails(hosting.clones(|_| ()), &linked, MINUTE, "that the commit does not have").await;
    hosting.says_ssh("echo 'ssh: connect to host git.example: refused' >&2; exit 255");
    fails(hosting.clones(|_| ()), &of, MINUTE, "ssh: connect to host git.example: refused").await;
    hosting.says_ssh("sleep 600");
    fails(hosting.clones(|_| ()), &of, Duration::from_millis(300), "longer than the job may take").await;
    // It fills the disk before it is told anything.
    hosting.says_ssh("dd if=/dev/zero of=\"$PWD/.git/fill\" bs=1M count=8 2>/dev/null; sleep 600");
    fails(hosting.clones(|config| config.fleet_clone_mb = 4), &of, MINUTE, "more than 4 MiB").await;
    wait_until_gone(&hosting).await;
}

/// What is dropped is removed by a thread of its own.
async fn wait_until_gone(hosting: &Hosting) {
    let until = Instant::now() + MINUTE;
    while hosting.left() > 0 {
        assert!(Instant::now() < until, "{} clones are left", hosting.left());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn what_another_machine_asks_for_is_checked_again_here() {
    let list = ["ssh://git@git.example/*".to_owned()];
    let good = asked(&"ab".repeat(20));
    assert!(checked(&good, &list).is_ok());
    let patch = |digest: &str, base64: &str| Some(ClonePatch::new(digest.to_owned(), base64.to_owned()));
    for (wrong, told) in [
        (CloneOf { commit: "HEAD".into(), ..good.clone() }, "no whole hash"),
        (CloneOf { commit: "AB".repeat(20), ..good.clone() }, "no whole hash"),
        (CloneOf { commit: "ab".repeat(21), ..good.clone() }, "no whole hash"),
        (CloneOf { commit: "-".repeat(40), ..good.clone() }, "no whole hash"),
        (CloneOf { below: "/etc".into(), ..good.clone() }, "no directory below"),
        (CloneOf { below: "a/../..".into(), ..good.clone() }, "no directory below"),
        (CloneOf { below: "a\nb".into(), ..good.clone() }, "no directory below"),
        (CloneOf { remote: "git@git.example:team/a".into(), ..good.clone() }, "one spelling"),
        (CloneOf { remote: "ext::sh -c x".into(), ..good.clone() }, "its address"),
        (CloneOf { remote: "--upload-pack=x".into(), ..good.clone() }, "its address"),
        (CloneOf { remote: "https://git.example/team/a".into(), ..good.clone() }, "fetches nothing from there"),
        (CloneOf { patch: patch("00", "AAAA"), ..good.clone() }, "digest"),
        (CloneOf { patch: patch(&digest(b""), "*"), ..good.clone() }, "digest"),
        (CloneOf { patch: patch("00", &"A".repeat(PATCH_MOST * 2)), ..good.clone() }, "more changes than are taken"),
    ] {
        let refused = checked(&wrong, &list).expect_err(told);
        assert!(refused.to_string().contains(told), "{refused} and not {told}");
    }
}
