//! What a repository can name is not run: a canary for each way, which sings where git is asked without care.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use super::*;

/// A repository with a change, in a world of its own.
struct Checkout {
    scratch: tempfile::TempDir,
}

impl Checkout {
    /// `None` where there is no git; said loudly, since nothing is shown then.
    fn new() -> Option<Self> {
        let scratch = tempfile::tempdir().expect("scratch");
        let checkout = Self { scratch };
        for dir in ["home", "repo"] {
            std::fs::create_dir(checkout.path(dir)).expect("a directory");
        }
        if Git::find(None, None, Path::new("/no/such")).is_none() {
            eprintln!("SKIPPED: there is no git");
            return None;
        }
        checkout.script("canary", "echo sung >> \"$SELF.song\"");
        checkout.git(&["init", "-q", "-b", "main"]);
        checkout.write("file.txt", "one\n");
        checkout.commit();
        checkout.write("file.txt", "two\n");
        Some(checkout)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn root(&self) -> PathBuf {
        self.path("repo")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.root().join(name);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        std::fs::write(path, text).expect("written");
    }

    fn script(&self, name: &str, body: &str) -> PathBuf {
        let path = self.path(name);
        let text = format!("#!/bin/sh\nSELF='{}'\n{body}\n", self.path("canary").display());
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("made a program");
        path
    }

    fn canary(&self) -> String {
        self.path("canary").display().to_string()
    }

    /// Whether the canary was run; it is quiet again after that.
    fn sang(&self) -> bool {
        std::fs::remove_file(self.path("canary.song")).is_ok()
    }

    /// git as anybody asks it.
    fn asked(&self, dir: &Path, words: &[&str]) -> Output {
        let mut command = Command::new("git");
        command.args(words).current_dir(dir).env_clear().env("HOME", self.path("home"));
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "a").env(format!("GIT_{who}_EMAIL"), "a@b");
        }
        command.output().expect("git is run")
    }

    fn git_in(&self, dir: &Path, words: &[&str]) {
        let output = self.asked(dir, words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn git(&self, words: &[&str]) {
        self.git_in(&self.root(), words);
    }

    fn set(&self, name: &str, value: &str) {
        self.git(&["config", name, value]);
    }

    fn commit(&self) {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "-m", "so"]);
    }

    fn found(&self) -> Git {
        let path = std::env::var_os("PATH");
        Git::find(path.as_deref(), Some(self.path("home").as_os_str()), &self.root()).expect("it is there")
    }

    async fn diff(&self, base: &str) -> Result<String, DiffRefused> {
        taken(&self.found(), &self.root(), base).await
    }
}

/// One way in which a repository has something run.
struct Way {
    name: &'static str,
    laid: fn(&Checkout),
    /// What has the canary sing, without care; nothing where only a terminal would.
    careless: &'static [&'static str],
    refused: fn(&DiffRefused) -> bool,
}

/// It is left out, and the diff is made.
fn made(_: &DiffRefused) -> bool {
    false
}

fn named(refused: &DiffRefused) -> bool {
    matches!(refused, DiffRefused::FilterNamed(_))
}

fn used(refused: &DiffRefused) -> bool {
    matches!(refused, DiffRefused::FilterUsed(file) if file == "file.txt")
}

const DIFF: &[&str] = &["diff", "HEAD", "--"];

const WAYS: &[Way] = &[
    Way { name: "a monitor", laid: |c| c.set("core.fsmonitor", &c.canary()), careless: DIFF, refused: made },
    Way {
        name: "a hook",
        laid: |c| {
            std::fs::create_dir_all(c.root().join(".git/hooks")).expect("hooks");
            std::os::unix::fs::symlink(c.path("canary"), c.root().join(".git/hooks/post-index-change"))
                .expect("a hook");
            // Only its time differs, so that git has an index to write.
            c.write("same.txt", "same\n");
            c.write("file.txt", "one\n");
            c.commit();
            c.sang();
            c.write("file.txt", "three\n");
            let file = std::fs::File::options().append(true).open(c.root().join("same.txt")).expect("open");
            file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).expect("older");
        },
        careless: DIFF,
        refused: made,
    },
    Way {
        name: "a directory of hooks",
        laid: |c| {
            std::fs::create_dir(c.path("hooks")).expect("hooks");
            std::os::unix::fs::symlink(c.path("canary"), c.path("hooks/post-index-change")).expect("a hook");
            c.write("same.txt", "same\n");
            c.write("file.txt", "one\n");
            c.commit();
            c.set("core.hooksPath", &c.path("hooks").display().to_string());
            c.write("file.txt", "three\n");
            let file = std::fs::File::options().append(true).open(c.root().join("same.txt")).expect("open");
            file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).expect("older");
        },
        careless: DIFF,
        refused: made,
    },
    Way { name: "an external diff", laid: |c| c.set("diff.external", &c.canary()), careless: DIFF, refused: made },
    Way {
        name: "a driver's command",
        laid: |c| {
            c.write(".gitattributes", "*.txt diff=x\n");
            c.set("diff.x.command", &c.canary());
        },
        careless: DIFF,
        refused: made,
    },
    Way {
        name: "a driver's text conversion",
        laid: |c| {
            c.write(".gitattributes", "*.txt diff=x\n");
            c.set("diff.x.textconv", &c.canary());
        },
        careless: DIFF,
        refused: made,
    },
    Way {
        name: "a filter",
        laid: |c| {
            c.write(".gitattributes", "*.txt filter=x\n");
            c.set("filter.x.clean", &c.canary());
        },
        careless: DIFF,
        refused: named,
    },
    Way {
        name: "a filter that is a process",
        laid: |c| {
            c.write(".gitattributes", "*.txt filter=x\n");
            c.set("filter.x.process", &c.canary());
        },
        careless: DIFF,
        refused: named,
    },
    Way {
        name: "a filter in another case, of an included file",
        laid: |c| {
            c.write(".gitattributes", "*.txt filter=x\n");
            let text = format!("[FILTER \"x\"]\n\tClean = {}\n", c.canary());
            std::fs::write(c.path("more.cfg"), text).expect("written");
            c.set("include.path", &c.path("more.cfg").display().to_string());
        },
        careless: DIFF,
        refused: named,
    },
    Way {
        name: "a filter of the worktree's configuration",
        laid: |c| {
            c.write(".gitattributes", "*.txt filter=x\n");
            c.set("extensions.worktreeConfig", "true");
            c.git(&["config", "--worktree", "filter.x.clean", &c.canary()]);
        },
        careless: DIFF,
        refused: named,
    },
    Way {
        name: "a filter of the user's, by an attribute",
        laid: |c| {
            c.write("deep/.gitattributes", "");
            c.write(".gitattributes", "[attr]mine filter=x\n*.txt mine\n");
            c.git(&["config", "--global", "filter.x.clean", &c.canary()]);
        },
        careless: DIFF,
        refused: used,
    },
    Way {
        name: "a filter of the user's, by the repository's own attributes",
        laid: |c| {
            std::fs::create_dir_all(c.root().join(".git/info")).expect("info");
            std::fs::write(c.root().join(".git/info/attributes"), "*.txt filter=x\n").expect("written");
            c.git(&["config", "--global", "filter.x.clean", &c.canary()]);
        },
        careless: DIFF,
        refused: used,
    },
    Way {
        name: "a filter of the user's, by a file of attributes elsewhere",
        laid: |c| {
            std::fs::write(c.path("attributes"), "*.txt filter=x\n").expect("written");
            c.set("core.attributesFile", &c.path("attributes").display().to_string());
            c.git(&["config", "--global", "filter.x.clean", &c.canary()]);
        },
        careless: DIFF,
        refused: made,
    },
    Way { name: "a pager", laid: |c| c.set("core.pager", &c.canary()), careless: &[], refused: made },
    Way { name: "an alias", laid: |c| c.set("alias.diff", &format!("!{}", c.canary())), careless: &[], refused: made },
    Way {
        name: "a submodule's monitor",
        laid: |c| {
            let module = c.root().join("module");
            std::fs::create_dir(&module).expect("a directory");
            c.git_in(&module, &["init", "-q", "-b", "main"]);
            c.write("module/inner.txt", "one\n");
            c.git_in(&module, &["add", "-A"]);
            c.git_in(&module, &["commit", "-q", "-m", "so"]);
            c.git(&["-c", "advice.addEmbeddedRepo=false", "add", "module"]);
            c.git(&["commit", "-q", "-m", "a module", "module"]);
            c.write("module/inner.txt", "two\n");
            c.git_in(&module, &["config", "core.fsmonitor", &c.canary()]);
        },
        careless: DIFF,
        refused: made,
    },
    Way {
        name: "a fetch of what is missing",
        laid: |c| {
            for (name, value) in [
                ("core.repositoryFormatVersion", "1"),
                ("extensions.partialClone", "origin"),
                ("remote.origin.promisor", "true"),
                ("remote.origin.url", "ssh://nobody.invalid/x"),
                ("core.sshCommand", &*c.canary()),
            ] {
                c.set(name, value);
            }
            let hash = c.asked(&c.root(), &["rev-parse", "HEAD:file.txt"]).stdout;
            let hash = String::from_utf8(hash).expect("a hash");
            let (dir, file) = hash.trim().split_at(2);
            std::fs::remove_file(c.root().join(".git/objects").join(dir).join(file)).expect("it was there");
        },
        careless: DIFF,
        refused: |refused| matches!(refused, DiffRefused::Failed(_)),
    },
];

#[tokio::test]
async fn nothing_that_a_repository_names_is_run() {
    for way in WAYS {
        let Some(checkout) = Checkout::new() else { return };
        (way.laid)(&checkout);
        checkout.sang();
        let index = || std::fs::read(checkout.root().join(".git/index")).expect("an index");
        let before = index();
        let diff = checkout.diff(HEAD).await;
        assert!(index() == before, "{}: the index was written", way.name);
        assert!(!checkout.sang(), "{}: it was run, and this came of it: {diff:?}", way.name);
        match &diff {
            Ok(text) => assert!(text.contains("-one\n"), "{}: {text}", way.name),
            Err(refused) => assert!((way.refused)(refused), "{}: {refused}", way.name),
        }
        if !way.careless.is_empty() {
            let careless = checkout.asked(&checkout.root(), way.careless);
            assert!(checkout.sang(), "{} shows nothing: {careless:?}", way.name);
        }
    }
}

#[tokio::test]
async fn what_is_compared_with_is_a_commit_and_never_an_option() {
    let Some(checkout) = Checkout::new() else { return };
    checkout.git(&["tag", "v1"]);
    for base in ["HEAD", "main", "v1", "HEAD~0", "@"] {
        let diff = checkout.diff(base).await.expect("a diff");
        assert!(is_nameable(base) && diff.contains("-one\n+two\n"), "{base}: {diff}");
    }
    for base in ["nothing", "HEAD~7", "HEAD:file.txt", "HEAD..main", "main v1", "--output=x", "-O/etc/passwd"] {
        assert_eq!(checkout.diff(base).await, Err(DiffRefused::NoCommit(base.to_owned())), "{base}");
    }
    assert!(!checkout.root().join("x").exists() && !checkout.root().join("x^{commit}").exists());
    for base in ["", "-x", "--output=x", "a\nb", "a\0b", &"x".repeat(201)] {
        assert!(!is_nameable(base), "{base:?}");
    }
    checkout.write("file.txt", "one\n");
    assert_eq!(checkout.diff("HEAD").await, Err(DiffRefused::Empty("HEAD".to_owned())));
}

#[tokio::test]
async fn only_a_git_that_is_not_the_repositorys_own_is_run() {
    let Some(checkout) = Checkout::new() else { return };
    let own = checkout.root().join("bin");
    std::fs::create_dir(&own).expect("a directory");
    let canary = checkout.path("canary");
    for dir in [&own, &checkout.root()] {
        std::fs::copy(&canary, dir.join("git")).expect("a copy");
    }
    let linked = checkout.path("linked");
    std::fs::create_dir(&linked).expect("a directory");
    std::os::unix::fs::symlink(own.join("git"), linked.join("git")).expect("a link");
    let usual = std::env::var("PATH").expect("PATH");
    let path = format!(".:bin::{}:{}:{usual}", own.display(), linked.display());
    let git = Git::find(Some(OsStr::new(&path)), None, &checkout.root()).expect("the usual one");
    let shown = format!("{git:?}");
    assert!(!shown.contains(&*checkout.root().to_string_lossy()), "{shown}");
    assert!(taken(&git, &checkout.root(), HEAD).await.is_ok() && !checkout.sang());
    let theirs = format!(".:bin:{}:{}", own.display(), linked.display());
    assert!(Git::find(Some(OsStr::new(&theirs)), None, &checkout.root()).is_none());
}

#[tokio::test]
async fn the_files_of_a_diff_are_those_beside_the_repository_that_was_found() {
    let Some(checkout) = Checkout::new() else { return };
    let git = checkout.found();
    // A worktree of its own is a checkout like any other.
    let tree = checkout.path("tree");
    checkout.git(&["worktree", "add", "-q", &tree.display().to_string()]);
    std::fs::write(tree.join("file.txt"), "three\n").expect("written");
    assert_eq!(root_of(&tree.join("deep/er")).as_deref(), Some(&*tree));
    assert!(taken(&git, &tree, HEAD).await.expect("a diff").contains("+three\n"));
    // A repository in a repository that has no `.git` of its own is no repository, whatever its settings are.
    let bare = checkout.root().join("bare");
    checkout.git_in(checkout.scratch.path(), &["init", "-q", "--bare", &bare.display().to_string()]);
    checkout.git_in(&bare, &["config", "core.fsmonitor", &checkout.canary()]);
    assert_eq!(root_of(&bare), Some(checkout.root()));
    assert!(checkout.diff(HEAD).await.is_ok() && !checkout.sang());
    checkout.set("core.worktree", &checkout.scratch.path().display().to_string());
    assert_eq!(checkout.diff(HEAD).await, Err(DiffRefused::Elsewhere(checkout.root())));
}

#[tokio::test]
async fn a_repository_of_another_user_is_told_as_such() {
    let Some(checkout) = Checkout::new() else { return };
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only a superuser gives files away");
        return;
    }
    for path in [checkout.root(), checkout.root().join(".git")] {
        std::os::unix::fs::chown(path, Some(65534), None).expect("given away");
    }
    assert_eq!(checkout.diff(HEAD).await, Err(DiffRefused::OfAnother(checkout.root())));
}

#[tokio::test]
async fn a_diff_that_is_too_long_is_cut_at_a_line_and_says_so() {
    let Some(checkout) = Checkout::new() else { return };
    checkout.write("file.txt", &"a line of a file\n".repeat(100_000));
    let diff = checkout.diff(HEAD).await.expect("a diff");
    assert!(diff.len() <= MOST + 100 && diff.len() > MOST - 100, "{}", diff.len());
    assert!(
        diff.ends_with("+a line of a file\n[… cut here: the diff has more than 262144 bytes …]\n"),
        "{}",
        &diff[MOST - 200..]
    );
}

#[tokio::test]
async fn a_git_that_hangs_is_ended_with_everything_it_started() {
    let Some(checkout) = Checkout::new() else { return };
    checkout.script("git", "echo $$ >> \"$SELF.pids\"; sleep 600 & echo $! >> \"$SELF.pids\"; wait");
    let path = format!("{}:/usr/bin:/bin", checkout.scratch.path().display());
    let git = Git::find(Some(OsStr::new(&path)), None, &checkout.root()).expect("it is there");
    let slow = taken_by(Instant::now() + Duration::from_millis(500), &git, &checkout.root(), HEAD).await;
    assert_eq!(slow, Err(DiffRefused::Slow));
    let pids = std::fs::read_to_string(checkout.path("canary.pids")).expect("it was run");
    let is_alive = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|state| !state.is_empty() && !state.starts_with('Z'))
    };
    let until = Instant::now() + Duration::from_secs(30);
    while pids.lines().any(is_alive) {
        assert!(Instant::now() < until, "{pids} live on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn only_filters_of_the_repository_itself_count() {
    for (settings, want) in [
        ("global\0filter.lfs.clean\ngit-lfs clean\0system\0filter.a.b\nc\0command\0filter.c.d\ne\0", None),
        ("local\0core.bare\nfalse\0local\0filter.x.clean\nrm\0", Some("filter.x.clean")),
        ("worktree\0filter.x.required\0", Some("filter.x.required")),
        ("local\0filters.x.clean\nno\0local\0user.name\nfilter.x\nfilter.y\0", None),
        ("", None),
    ] {
        assert_eq!(filter_named(settings).as_deref(), want, "{settings:?}");
    }
}
