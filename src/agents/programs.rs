//! Where an agent's program is, and what it needs beside it.
//!
//! Owns: looking a program up by its name or a named path, the places installers put programs that a desktop's PATH does
//! not name, and the PATH a program is given. May not know: which agent it is for, or how it is run.
//!
//! Invariants: (1) an entry of PATH that is not absolute means the directory of a consult, and nothing that lies there is
//! looked at or handed on; (2) looking is bounded: so many places, so many versions, so many links.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::Environment;
use crate::base::fault::{Fault, FaultCode};

/// Where installers of command line programs put them, below the home directory, in the order they are looked at.
const BELOW_HOME: &[&str] = &[
    ".local/bin",
    ".claude/local",
    ".npm-global/bin",
    ".npm-packages/bin",
    ".volta/bin",
    ".asdf/shims",
    ".local/share/mise/shims",
    ".nodenv/shims",
    ".bun/bin",
    ".local/share/pnpm",
    "Library/pnpm",
    ".yarn/bin",
    ".nix-profile/bin",
    "bin",
];

/// The same for the whole machine. A program that is started by a desktop has none of them on its PATH.
const OF_THE_MACHINE: &[&str] = &[
    "/usr/local/bin",
    "/opt/homebrew/bin",
    "/home/linuxbrew/.linuxbrew/bin",
    "/run/current-system/sw/bin",
    "/opt/local/bin",
    "/snap/bin",
];

/// Directories with one version each, below the home directory, and where programs are in one. The newest is looked at first.
const VERSIONED: &[(&str, &str)] = &[
    (".nvm/versions/node", "bin"),
    (".local/share/fnm/node-versions", "installation/bin"),
    (".fnm/node-versions", "installation/bin"),
];

/// Versions that are looked at; people have some five.
const VERSIONS: usize = 32;

/// Links that are followed from a program's name to its file; real ones have up to three.
const LINKS: usize = 8;

/// What a shell takes for PATH where there is none.
const WITHOUT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A program's first place: on PATH, else where installers put programs.
pub(super) fn find(name: &OsStr, env: &Environment) -> Option<PathBuf> {
    directories(env.get("PATH")).chain(known_places(env)).map(|dir| dir.join(name)).find(|file| is_program(file))
}

/// A program somebody named: an absolute path, or a bare name to be looked up.
///
/// # Errors
///
/// `agent_missing` or `agent_not_executable`, with `hint`.
pub(super) fn named(named: &Path, by: &str, env: &Environment, hint: &'static str) -> Result<PathBuf, Fault> {
    let shown = named.display();
    let missing = |detail: String| Err(Fault::new(FaultCode::AgentMissing, detail).hint(hint));
    if named.components().count() == 1 && named.is_relative() {
        return find(named.as_os_str(), env)
            .map_or_else(|| missing(format!("{by} names `{shown}`, which was not found {}.", searched(env))), Ok);
    }
    if named.is_relative() {
        // It would be looked for in the directory of every single consult.
        return missing(format!("{by} names `{shown}`, which is not an absolute path."));
    }
    if std::fs::metadata(named).is_err() {
        return missing(format!("{by} names `{shown}`, which does not exist."));
    }
    if !is_program(named) {
        return Err(Fault::new(
            FaultCode::AgentNotExecutable,
            format!("{by} names `{shown}`, which is not an executable file."),
        )
        .hint(hint));
    }
    Ok(named.to_owned())
}

/// Where [`find`] looks, in words.
pub(super) fn searched(env: &Environment) -> String {
    let path = if env.get("PATH").is_some() { "on PATH" } else { "(there is no PATH)" };
    if env.get("HOME").is_none() {
        return format!("{path}; without HOME nowhere else was looked");
    }
    format!("{path}, nor in ~/.local/bin, ~/.claude/local, /usr/local/bin, /opt/homebrew/bin and the like")
}

/// Where a program of another machine is looked for besides that machine's PATH: the same places, of its home.
pub(super) fn places_below(home: &Path) -> impl Iterator<Item = PathBuf> {
    let below: Vec<PathBuf> = BELOW_HOME.iter().map(|place| home.join(place)).collect();
    below.into_iter().chain(OF_THE_MACHINE.iter().map(PathBuf::from))
}

/// These, in words.
pub(super) const fn searched_below() -> &'static str {
    "in ~/.local/bin, ~/.claude/local, /usr/local/bin, /opt/homebrew/bin and the like"
}

/// The PATH of a program that was found there: what a shell takes without one, and the program's own directory first.
pub(super) fn path_beside(program: &Path) -> Option<OsString> {
    let own = program.parent()?.to_owned();
    let all = std::iter::once(own).chain(directories(Some(OsStr::new(WITHOUT_PATH))));
    std::env::join_paths(all).ok()
}

/// The PATH this program is given: what there is without what is not absolute, then the directories the program itself is in.
/// A script of a version manager's directory names its interpreter by name alone, and that lies beside it.
pub(super) fn path_for(program: &Path, path: Option<&OsStr>) -> Option<OsString> {
    let mut all: Vec<PathBuf> = directories(Some(path.unwrap_or(OsStr::new(WITHOUT_PATH)))).collect();
    for dir in own_directories(program) {
        if !all.contains(&dir) {
            all.push(dir);
        }
    }
    std::env::join_paths(all).ok()
}

/// The absolute entries of a search path.
pub(super) fn directories(path: Option<&OsStr>) -> impl Iterator<Item = PathBuf> {
    path.into_iter().flat_map(std::env::split_paths).filter(|dir| dir.is_absolute())
}

/// The directory of each name the program has, from the one it is called by to its file.
fn own_directories(program: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut name = program.to_owned();
    for _ in 0..=LINKS {
        let Some(dir) = name.parent().filter(|dir| dir.is_absolute()) else { break };
        // Through `..` in a link the same directory would get a second name.
        all.push(std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned()));
        match std::fs::read_link(&name) {
            Ok(target) => name = dir.join(target),
            Err(_) => break,
        }
    }
    all
}

/// Without a home there is no user whose programs these could be.
fn known_places(env: &Environment) -> impl Iterator<Item = PathBuf> {
    let home = env.get("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    home.into_iter().flat_map(|home| {
        let below: Vec<PathBuf> = BELOW_HOME.iter().map(|place| home.join(place)).collect();
        let machine = OF_THE_MACHINE.iter().map(PathBuf::from);
        let versioned = VERSIONED.iter().flat_map(move |(root, within)| newest_first(&home.join(root), within));
        below.into_iter().chain(machine).chain(versioned)
    })
}

fn newest_first(root: &Path, within: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().filter_map(Result::ok).take(VERSIONS);
    let number = |name: &OsStr| -> Vec<u64> {
        let name = name.to_string_lossy().into_owned();
        name.trim_start_matches('v').split('.').map(|part| part.parse().unwrap_or(0)).collect()
    };
    let mut found: Vec<(Vec<u64>, PathBuf)> =
        entries.map(|entry| (number(&entry.file_name()), entry.path().join(within))).collect();
    found.sort();
    found.into_iter().rev().map(|(_, dir)| dir).collect()
}

fn is_program(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::tests_support::script;

    #[test]
    fn a_program_is_found_on_path_then_where_installers_put_it_and_never_below_a_relative_entry() {
        let dir = tempfile::tempdir().expect("scratch");
        let root = dir.path();
        let places = [".local/bin", ".volta/bin", ".asdf/shims", ".nvm/versions/node/v9.11.0/bin"];
        let more = [".nvm/versions/node/v20.2.0/bin", "on-path"];
        for place in places.iter().chain(&more) {
            std::fs::create_dir_all(root.join(place)).expect("a directory");
        }
        let home = root.display().to_string();
        let path = format!("here:.::{home}/on-path:/usr/bin");
        let env: Environment = [("HOME", home.as_str()), ("PATH", path.as_str())].into_iter().collect();
        let name = OsStr::new("claude-of-a-test");
        assert_eq!(find(name, &env), None);
        // From the last place to the first: each new one goes before those that were there.
        for place in [places[3], more[0], places[2], places[1], places[0], more[1]] {
            let file = script(&root.join(place), "claude-of-a-test", "exit 0");
            assert_eq!(find(name, &env), Some(file), "{place}");
        }
        let without_home: Environment = [("PATH", "here:.")].into_iter().collect();
        assert_eq!(find(name, &without_home), None);
        assert!(searched(&env).contains("~/.local/bin") && searched(&without_home).contains("HOME"));
    }

    #[test]
    fn a_program_is_given_the_directories_it_is_in_and_none_that_is_not_absolute() {
        let dir = tempfile::tempdir().expect("scratch");
        let root = std::fs::canonicalize(dir.path()).expect("a path");
        for place in ["a", "b/bin", "b/lib"] {
            std::fs::create_dir_all(root.join(place)).expect("a directory");
        }
        let file = script(&root.join("b/lib"), "cli.js", "exit 0");
        std::os::unix::fs::symlink("../lib/cli.js", root.join("b/bin/claude")).expect("a link");
        std::os::unix::fs::symlink(root.join("b/bin/claude"), root.join("a/claude")).expect("a link");
        assert!(file.is_file());
        let shown = |place: &str| root.join(place).display().to_string();
        let given = |path: Option<&str>| {
            let path = path_for(&root.join("a/claude"), path.map(OsStr::new)).expect("a path");
            path.into_string().expect("text").split(':').map(str::to_owned).collect::<Vec<_>>()
        };
        let own = [shown("a"), shown("b/bin"), shown("b/lib")];
        for (path, first) in [
            (Some(".:/opt/bin::bin:../x:/usr/bin:"), vec!["/opt/bin", "/usr/bin"]),
            (Some(""), vec![]),
            (None, WITHOUT_PATH.split(':').collect()),
        ] {
            let expected: Vec<String> = first.iter().map(|dir| (*dir).to_owned()).chain(own.clone()).collect();
            assert_eq!(given(path), expected, "{path:?}");
        }
        assert_eq!(given(Some(&shown("b/bin"))), [shown("b/bin"), shown("a"), shown("b/lib")], "none twice");
        std::os::unix::fs::symlink("round", root.join("round")).expect("a link to itself");
        assert_eq!(own_directories(&root.join("round")).len(), LINKS + 1);
    }
}
