//! Where a consult may look.
//!
//! Owns: the rule ([`Grounds::judge`]), what counts as a store of secrets, and how directories that are named become resolved
//! ones ([`Places::resolve`]). May not know: sessions, jobs, who asks.
//!
//! ```text
//!  the owner of this program (its command line, an embedding program)   everywhere, but in stores of secrets
//!  a client                                                            below the start directory, its roots, `workspaces`
//!  a client of a server that was started in / or in a home             below its roots and `workspaces`; without roots,
//!                                                                      what lies below the home
//! ```
//!
//! A directory of another machine ([`elsewhere`]) is none of this one's, and only its name can be judged here: by the directories the
//! user lists for its agent ([`judge_elsewhere`]). What its links lead to is asked from its machine, by whoever runs there.
//!
//! A job of another machine may run in a clone below our own state directory ([`Places::clone_tree`]): of everything that lies there,
//! that one directory is granted, for that job.
//!
//! Invariants: (1) only resolved paths are judged, so neither `..` nor a link leads anywhere else; (2) what cannot be resolved
//! grants nothing; (3) a store of secrets is refused to everybody, whatever lies around it.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Roots of one client that count; real ones have a handful.
pub const ROOTS: usize = 64;

/// What names our own state directory, wherever it lies.
pub const DATABASE: &str = "phone-opus.db";

/// Stores of secrets, by the end of their names, wherever they lie. In lower case.
const SECRETS: &[&[&str]] = &[
    &[".ssh"],
    &[".gnupg"],
    &[".aws"],
    &[".password-store"],
    &[".config", "gcloud"],
    &[".config", "gh"],
    &[".config", "op"],
    &[".config", "sops"],
    &[".config", "rclone"],
    &[".local", "share", "keyrings"],
    &[".local", "share", "kwalletd"],
    &[".local", "share", "opencode"],
    &[".mozilla"],
    &[".thunderbird"],
    &[".config", "google-chrome"],
    &[".config", "chromium"],
    &[".config", "microsoft-edge"],
    &[".config", "bravesoftware"],
    &[".config", "vivaldi"],
    &[".config", "opera"],
    &["snap", "firefox"],
    &["snap", "chromium"],
    &[".var", "app", "org.mozilla.firefox"],
    &[".var", "app", "com.google.chrome"],
    &[".var", "app", "org.chromium.chromium"],
    &["library", "keychains"],
    &["library", "cookies"],
    &["library", "application support", "google", "chrome"],
    &["library", "application support", "chromium"],
    &["library", "application support", "firefox"],
    &["library", "application support", "bravesoftware"],
    &["library", "application support", "microsoft edge"],
];

/// Stores of secrets directly in a home; elsewhere a directory of this name is part of a project. In lower case.
const HOME_SECRETS: &[&str] =
    &[".azure", ".kube", ".docker", ".claude", ".codex", ".gemini", ".copilot", ".qwen", ".terraform.d", ".vault"];

/// Whether this resolved path is a store of secrets, or lies in one, by its name.
#[must_use]
pub fn is_secret(path: &Path) -> bool {
    let names: Vec<String> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_string_lossy().to_ascii_lowercase()),
            _ => None,
        })
        .collect();
    let stores = SECRETS.iter().any(|store| names.windows(store.len()).any(|part| part.iter().eq(store.iter())));
    let home = match names.first().map(String::as_str) {
        Some("home" | "users") => 2,
        Some("root") => 1,
        _ => return stores,
    };
    stores || names.get(home).is_some_and(|name| HOME_SECRETS.contains(&name.as_str()))
}

/// Whether this directory holds the store of a phone-opus, with the prompts and answers of every project.
#[must_use]
pub fn is_state(dir: &Path) -> bool {
    fs::symlink_metadata(dir.join(DATABASE)).is_ok()
}

/// The workspace of jobs whose agent runs on another machine: `AGENT:/DIR`, which is no path of this one, so that jobs of two
/// machines never share a turn, a key or what was not read.
#[must_use]
pub fn elsewhere(agent: &str, dir: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(agent);
    name.push(":");
    name.push(dir);
    name.into()
}

/// The agent and the directory of such a workspace; `None` for one of this machine.
#[must_use]
pub fn of_elsewhere(workspace: &Path) -> Option<(&str, &Path)> {
    let (agent, dir) = workspace.to_str()?.split_once(':')?;
    (!agent.is_empty() && !agent.contains('/') && dir.starts_with('/')).then(|| (agent, Path::new(dir)))
}

/// A directory of another machine as its name says it: absolute, without dots.
///
/// # Errors
///
/// What is wrong with it. `..` is refused: where it leads depends on links of that machine.
pub fn named_elsewhere(dir: &Path) -> Result<PathBuf, &'static str> {
    if !dir.is_absolute() {
        return Err("is not absolute");
    }
    if dir.components().any(|part| part == Component::ParentDir) {
        return Err("holds `..`");
    }
    Ok(dir.components().collect())
}

/// Whether an agent may look into this directory of its machine, as [`named_elsewhere`] gives it, whose `home` there may be known.
///
/// # Errors
///
/// Why not.
pub fn judge_elsewhere(dir: &Path, workspaces: &[PathBuf], home: Option<&Path>) -> Result<(), PlaceRefused> {
    let grounds = Grounds { home: home.map(Path::to_owned), ..Grounds::default() };
    grounds.judge_secrets(dir)?;
    if workspaces.iter().any(|granted| dir.starts_with(granted)) { Ok(()) } else { Err(PlaceRefused::Outside) }
}

/// What a system knows about where its clients may look.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// Where it was started.
    pub start: Option<PathBuf>,
    /// The user's home.
    pub home: Option<PathBuf>,
    /// What the user's configuration lists.
    pub workspaces: Vec<PathBuf>,
    /// Where jobs are kept.
    pub state: Option<PathBuf>,
    /// The one directory below it that may be looked into: the clone of the job that is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_tree: Option<PathBuf>,
}

impl Places {
    /// Whether it was started in a directory that grants nothing by itself.
    #[must_use]
    pub fn is_broad(&self) -> bool {
        let home = self.home.as_deref();
        self.start.as_deref().is_some_and(|start| is_broad(start, home))
    }

    /// Everything resolved. Touches the disk, so it may hang with a file system that does.
    #[must_use]
    pub fn resolve(&self, roots: &[PathBuf]) -> Grounds {
        let one = |path: &PathBuf| path.is_absolute().then(|| fs::canonicalize(path).ok()).flatten();
        let all = |paths: &[PathBuf]| paths.iter().take(ROOTS).filter_map(one).collect();
        Grounds {
            start: self.start.as_ref().and_then(one),
            home: self.home.as_ref().and_then(one),
            workspaces: all(&self.workspaces),
            roots: all(roots),
            state: self.state.as_ref().and_then(one),
            clone_tree: self.clone_tree.as_ref().and_then(one),
        }
    }

    /// The same without what is no text: a worker process is told in JSON.
    #[must_use]
    pub fn in_text(&self) -> Self {
        let text = |path: &Option<PathBuf>| path.clone().filter(|path| path.to_str().is_some());
        Self {
            start: text(&self.start),
            home: text(&self.home),
            workspaces: self.workspaces.iter().filter(|path| path.to_str().is_some()).cloned().collect(),
            state: text(&self.state),
            clone_tree: text(&self.clone_tree),
        }
    }
}

/// Everything that grants anything, resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grounds {
    /// Where the system was started.
    pub start: Option<PathBuf>,
    /// The user's home.
    pub home: Option<PathBuf>,
    /// What the user's configuration lists.
    pub workspaces: Vec<PathBuf>,
    /// What the client works on.
    pub roots: Vec<PathBuf>,
    /// Where jobs are kept.
    pub state: Option<PathBuf>,
    /// The one directory below it that may be looked into.
    pub clone_tree: Option<PathBuf>,
}

/// Why a directory is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaceRefused {
    /// It is a store of secrets.
    Secrets,
    /// Nothing grants it.
    Outside,
}

impl PlaceRefused {
    /// What is said about it, after its name.
    #[must_use]
    pub const fn wrong(self) -> &'static str {
        match self {
            Self::Secrets => "is a store of secrets, which no consult looks into",
            Self::Outside => "is outside of what this server may look into",
        }
    }

    /// The same of a directory of another machine.
    #[must_use]
    pub const fn wrong_elsewhere(self) -> &'static str {
        match self {
            Self::Secrets => self.wrong(),
            Self::Outside => "is outside of what this agent may look into there",
        }
    }

    /// What is accepted instead.
    #[must_use]
    pub const fn accepted(self) -> &'static str {
        match self {
            Self::Secrets => "a directory of a project",
            Self::Outside => {
                "a directory below the one this server was started in, below a root of its client, or listed in \
                 `workspaces` of the user's configuration (PHONE_OPUS_WORKSPACES)"
            }
        }
    }
}

impl Grounds {
    /// Whether a client may have this resolved directory looked into.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn judge(&self, dir: &Path) -> Result<(), PlaceRefused> {
        self.judge_secrets(dir)?;
        if self.is_clone(dir) {
            return Ok(());
        }
        let home = self.home.as_deref();
        // The user named it, whatever it is.
        if self.workspaces.iter().any(|granted| dir.starts_with(granted)) {
            return Ok(());
        }
        let narrow = |granted: &&PathBuf| !is_broad(granted, home);
        let mut granted = self.roots.iter().chain(&self.start).filter(narrow);
        if granted.any(|granted| dir.starts_with(granted)) {
            return Ok(());
        }
        // Started where everything begins, with a client that says nothing, or no more than that.
        let broad = self.start.as_deref().is_none_or(|start| is_broad(start, home));
        let said = self.roots.iter().any(|root| !is_broad(root, home));
        let began = self.start.is_some() || !self.roots.is_empty();
        let below = |home: &Path| home.parent().is_some() && dir.starts_with(home) && dir != home;
        if began && broad && !said && home.is_some_and(below) {
            return Ok(());
        }
        Err(PlaceRefused::Outside)
    }

    /// Whether the owner of this program may.
    ///
    /// # Errors
    ///
    /// It is a store of secrets.
    pub fn judge_secrets(&self, dir: &Path) -> Result<(), PlaceRefused> {
        if self.is_clone(dir) {
            // What a repository calls a store of secrets stays one.
            let below = self.clone_tree.as_deref().and_then(|tree| dir.strip_prefix(tree).ok());
            return if below.is_some_and(is_secret) { Err(PlaceRefused::Secrets) } else { Ok(()) };
        }
        let own = self.state.as_deref().is_some_and(|state| dir.starts_with(state));
        let home = self.home.as_deref().and_then(|home| dir.strip_prefix(home).ok());
        let first = home.and_then(|below| below.components().next());
        let in_home = first.is_some_and(|name| {
            HOME_SECRETS.contains(&name.as_os_str().to_string_lossy().to_ascii_lowercase().as_str())
        });
        if own || in_home || is_secret(dir) { Err(PlaceRefused::Secrets) } else { Ok(()) }
    }
}

impl Grounds {
    /// Whether a resolved directory is the clone that may be looked into, or lies in it.
    #[must_use]
    pub fn is_clone(&self, dir: &Path) -> bool {
        self.clone_tree.as_deref().is_some_and(|tree| dir.starts_with(tree))
    }
}

/// Whether a directory is the root of everything, a home, or what homes lie in.
fn is_broad(dir: &Path, home: Option<&Path>) -> bool {
    dir.parent().is_none() || home.is_some_and(|home| home.starts_with(dir))
}

/// The path a root's URI names. `None` for what is no directory of this machine.
#[must_use]
pub fn of_uri(uri: &str) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let scheme = uri.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("file://"))?;
    let rest = &uri[scheme.len()..];
    // An authority is this machine or nobody we know.
    let path = rest.find('/').map(|at| rest.split_at(at))?;
    if !matches!(path.0, "" | "localhost") {
        return None;
    }
    let path = path.1.split(['?', '#']).next().unwrap_or_default();
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    (!bytes.contains(&0)).then(|| PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grounds(start: &str, roots: &[&str], workspaces: &[&str]) -> Grounds {
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
        Grounds {
            start: Some(start).filter(|start| !start.is_empty()).map(PathBuf::from),
            home: Some("/home/u".into()),
            workspaces: paths(workspaces),
            roots: paths(roots),
            state: Some("/home/u/.local/state/phone_opus".into()),
            clone_tree: None,
        }
    }

    #[test]
    fn of_the_state_directory_one_clone_is_granted_and_nothing_beside_it() {
        let state = "/home/u/.local/state/phone_opus";
        let tree = format!("{state}/clones/7/tree");
        let mut grounds = grounds("/home/u/p", &[], &[]);
        let judged = |grounds: &Grounds, dir: &str| {
            (grounds.judge(Path::new(dir)).is_ok(), grounds.judge_secrets(Path::new(dir)).is_ok())
        };
        assert_eq!(judged(&grounds, &tree), (false, false));
        grounds.clone_tree = Some(tree.clone().into());
        assert_eq!(judged(&grounds, &tree), (true, true));
        assert_eq!(judged(&grounds, &format!("{tree}/src")), (true, true));
        for refused in [
            state.to_owned(),
            format!("{state}/clones"),
            format!("{state}/clones/7"),
            format!("{state}/clones/7/tree2"),
            format!("{state}/clones/8/tree"),
            format!("{state}/jobs"),
            format!("{tree}/.ssh"),
        ] {
            assert_eq!(judged(&grounds, &refused), (false, false), "{refused}");
        }
    }

    #[test]
    fn a_directory_is_granted_by_start_roots_or_configuration_and_by_nothing_else() {
        const OK: Result<(), PlaceRefused> = Ok(());
        const OUT: Result<(), PlaceRefused> = Err(PlaceRefused::Outside);
        const SECRET: Result<(), PlaceRefused> = Err(PlaceRefused::Secrets);
        type Row =
            (&'static str, &'static [&'static str], &'static [&'static str], &'static str, Result<(), PlaceRefused>);
        let table: &[Row] = &[
            // A server in a project.
            ("/home/u/p", &[], &[], "/home/u/p", OK),
            ("/home/u/p", &[], &[], "/home/u/p/deep/er", OK),
            ("/home/u/p", &[], &[], "/home/u/q", OUT),
            ("/home/u/p", &[], &[], "/home/u/pp", OUT),
            ("/home/u/p", &[], &[], "/home/u", OUT),
            ("/home/u/p", &[], &[], "/", OUT),
            ("/home/u/p", &["/srv/q"], &[], "/srv/q/x", OK),
            ("/home/u/p", &["/srv/q"], &[], "/home/u/p", OK),
            ("/home/u/p", &["/srv/q"], &[], "/srv", OUT),
            ("/home/u/p", &[], &["/srv/w"], "/srv/w/x", OK),
            ("/home/u/p", &[], &["/srv/w"], "/srv/v", OUT),
            ("/srv/p", &[], &[], "/home/u/q", OUT),
            // A root or a start that is everything grants what lies below the home.
            ("/home/u/p", &["/"], &[], "/etc", OUT),
            ("/home/u/p", &["/home/u"], &[], "/home/u/q", OUT),
            ("/", &[], &[], "/home/u/q", OK),
            ("/", &[], &[], "/home/u", OUT),
            ("/", &[], &[], "/home/v/q", OUT),
            ("/", &[], &[], "/etc", OUT),
            ("/home", &[], &[], "/home/v/q", OUT),
            ("/home/u", &[], &[], "/home/u/q", OK),
            ("/home/u", &["/home/u"], &[], "/home/u/q", OK),
            ("/home/u", &["/home/u/p"], &[], "/home/u/q", OUT),
            ("/home/u", &["/home/u/p"], &[], "/home/u/p/x", OK),
            ("/", &["/srv/p"], &[], "/srv/p", OK),
            ("/", &["/srv/p"], &[], "/home/u/q", OUT),
            ("/", &["/srv/p"], &["/data"], "/data/x", OK),
            ("/", &[], &["/home/u"], "/home/u", OK),
            // Nobody said where it was started.
            ("", &[], &[], "/home/u/q", OUT),
            ("", &["/srv/p"], &[], "/srv/p", OK),
            ("", &[], &["/data"], "/data", OK),
            // Secrets, whatever grants what is around them.
            ("/home/u", &[], &[], "/home/u/.ssh", SECRET),
            ("/home/u", &[], &["/home/u/.ssh"], "/home/u/.ssh", SECRET),
            ("/home/u/.ssh", &[], &[], "/home/u/.ssh/keys", SECRET),
            ("/srv/p", &[], &[], "/srv/p/backup/.GnuPG/x", SECRET),
            ("/home/u", &[], &[], "/home/u/.config/gcloud", SECRET),
            ("/home/u", &[], &[], "/home/u/.config/nvim", OK),
            ("/home/u", &[], &[], "/home/u/.docker", SECRET),
            ("/home/u/p", &[], &[], "/home/u/p/.docker", OK),
            ("/home/u/p", &[], &[], "/home/u/p/.claude/worktrees/x", OK),
            ("/home/u", &[], &[], "/home/u/.claude", SECRET),
            ("/", &["/home/v/.kube"], &[], "/home/v/.kube/cache", SECRET),
            ("/home/u", &[], &[], "/home/u/.mozilla/firefox", SECRET),
            ("/home/u", &[], &[], "/home/u/Library/Application Support/Google/Chrome/Default", SECRET),
            ("/home/u", &[], &[], "/home/u/.local/state/phone_opus/jobs", SECRET),
        ];
        for (start, roots, workspaces, dir, want) in table {
            let got = grounds(start, roots, workspaces).judge(Path::new(dir));
            assert_eq!(got, *want, "start {start:?}, roots {roots:?}, workspaces {workspaces:?}: {dir}");
        }
        let owner = grounds("/home/u/p", &[], &[]);
        assert_eq!(owner.judge_secrets(Path::new("/etc")), OK);
        assert_eq!(owner.judge_secrets(Path::new("/home/u/.aws")), SECRET);
        let homeless = Grounds { home: Some("/".into()), ..grounds("/", &[], &[]) };
        assert_eq!(homeless.judge(Path::new("/etc")), OUT, "a home that is everything grants nothing");
    }

    #[test]
    fn a_directory_of_another_machine_is_judged_by_its_name_and_its_agents_list() {
        let workspaces = [PathBuf::from("/srv/w"), PathBuf::from("/home/b")];
        let judged = |dir: &str, home: Option<&str>| {
            let named = named_elsewhere(Path::new(dir)).map_err(|wrong| wrong.to_owned())?;
            judge_elsewhere(&named, &workspaces, home.map(Path::new)).map_err(|refused| format!("{refused:?}"))
        };
        for (dir, home, want) in [
            ("/srv/w", None, Ok(())),
            ("/srv/w/deep/./er/", None, Ok(())),
            ("/srv/ww", None, Err("Outside")),
            ("/srv", None, Err("Outside")),
            ("/", None, Err("Outside")),
            ("srv/w", None, Err("is not absolute")),
            ("/srv/w/../x", None, Err("holds `..`")),
            ("/srv/w/.ssh", None, Err("Secrets")),
            ("/srv/w/.docker", None, Ok(())),
            ("/srv/w/.docker", Some("/srv/w"), Err("Secrets")),
            ("/home/b/.claude", None, Err("Secrets")),
            ("/home/b/.config/gh", None, Err("Secrets")),
        ] {
            assert_eq!(judged(dir, home), want.map_err(str::to_owned), "{dir} with the home {home:?}");
        }
    }

    #[test]
    fn the_workspace_of_another_machine_is_told_from_every_path_of_this_one() {
        let there = elsewhere("box", Path::new("/srv/w"));
        assert_eq!(there, Path::new("box:/srv/w"));
        assert_eq!(of_elsewhere(&there), Some(("box", Path::new("/srv/w"))));
        assert!(there.is_relative() && !there.starts_with("/"));
        for here in ["/srv/w", "/a:/srv", "", ":/srv", "box:srv", "a/b:/srv", "box"] {
            assert_eq!(of_elsewhere(Path::new(here)), None, "{here}");
        }
    }

    #[test]
    fn links_and_dots_are_resolved_before_anything_is_judged() {
        let dir = tempfile::tempdir().expect("a directory");
        let base = fs::canonicalize(dir.path()).expect("there");
        for made in ["p/src", "q", "home/.ssh"] {
            fs::create_dir_all(base.join(made)).expect("made");
        }
        std::os::unix::fs::symlink(base.join("q"), base.join("p/to-q")).expect("linked");
        std::os::unix::fs::symlink(base.join("home/.ssh"), base.join("p/keys")).expect("linked");
        std::os::unix::fs::symlink(base.join("p"), base.join("link-to-p")).expect("linked");
        let places = Places { start: Some(base.join("link-to-p")), home: Some(base.join("home")), ..Places::default() };
        let judge = |path: &str| {
            let grounds = places.resolve(&[base.join("gone")]);
            grounds.judge(&fs::canonicalize(base.join(path)).expect("there"))
        };
        assert_eq!(judge("p/src"), Ok(()));
        assert_eq!(judge("link-to-p/src/../src"), Ok(()));
        assert_eq!(judge("p/to-q"), Err(PlaceRefused::Outside));
        assert_eq!(judge("p/../q"), Err(PlaceRefused::Outside));
        assert_eq!(judge("p/keys"), Err(PlaceRefused::Secrets));
    }

    #[test]
    fn a_roots_uri_is_a_path_of_this_machine_or_nothing() {
        let cases = [
            ("file:///srv/p", Some("/srv/p")),
            ("FILE:///srv/with%20space/%C3%A9", Some("/srv/with space/é")),
            ("file://localhost/srv/p/", Some("/srv/p/")),
            ("file:///srv/p?x#y", Some("/srv/p")),
            ("file://elsewhere/srv/p", None),
            ("file:///srv/%zz", None),
            ("file:///srv/%0", None),
            ("file:///srv/%00", None),
            ("https://x/y", None),
            ("/srv/p", None),
            ("file:", None),
            ("", None),
        ];
        for (uri, want) in cases {
            assert_eq!(of_uri(uri), want.map(PathBuf::from), "{uri}");
        }
    }
}
