//! What a machine has for a fleet: its workspaces, by what proves them the same as another machine's, its agents, its name.
//!
//! Owns: the name of a workspace, what a job of it needs, and where it is on this machine. May not know: the queue.
//!
//! A workspace is one of the directories that the user's configuration grants (`workspaces`, and the start directory). Its name
//! begins with what proves it. On one machine that is the kernel's boot id, the device and the inode; on a file system that machines
//! share it is the file system's source, the path below it, and the inodes of the directory and of its `.git`, which all who share it
//! see alike. Where neither can be told, the name begins with that of the state directory, and the workspace is nobody else's.
//!
//! Invariants: (1) two machines have one workspace only where that was proven, never by equal paths; (2) a job of another machine
//! looks into a workspace of this one and nowhere else: no `..`, no link out of it, no store of secrets.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::base::fault::{Fault, FaultCode};
use crate::base::state_dir::StateDir;
use crate::fleet::{Labels, Needs};
use crate::places::Places;
use crate::tools::consult::{LOOK_BOUND, within};

/// What stands between what proves a workspace and its path on the machine that asks.
const IN: &str = " in ";

/// What the proof of a directory on a file system begins with that machines share.
const MOUNT: &str = "mount:";

/// Types of file systems that machines share.
const SHARED: [&str; 14] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "ceph",
    "lustre",
    "glusterfs",
    "fuse.glusterfs",
    "fuse.sshfs",
    "9p",
    "virtiofs",
    "gpfs",
    "beegfs",
    "fuse.ceph",
];

/// Where this machine's workspaces are.
#[derive(Debug, Clone)]
pub struct Home {
    /// The name of the machine, for people and caps.
    pub name: String,
    /// Its state directory.
    pub dir: StateDir,
    /// Where it lets a consult look.
    pub places: Arc<Places>,
}

/// A workspace of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Root {
    path: PathBuf,
    /// What proves it.
    proof: Option<String>,
}

/// Where a job may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed {
    /// The workspace's name.
    pub(super) workspace: String,
    pub(super) needs: Needs,
    /// The state directory it is tied to.
    pub(super) pin_state: Option<String>,
}

impl Home {
    /// What the state directory is called.
    ///
    /// # Errors
    ///
    /// It cannot be used.
    fn state_id(&self) -> Result<String, Fault> {
        let refused =
            |error| Fault::new(FaultCode::StoreUnavailable, format!("the state directory: failed to {error}."));
        let secret = self.dir.secret().map_err(refused)?;
        let digest = Sha256::new().chain_update("phone-opus fleet state\0").chain_update(secret).finalize();
        Ok(digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect())
    }

    fn roots(&self) -> Vec<Root> {
        let grounds = self.places.resolve(&[]);
        let start = grounds.start.clone().filter(|_| !self.places.is_broad());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let all = grounds.workspaces.iter().cloned().chain(start);
        let plain = all.filter(|path| path.to_str().is_some_and(|path| !path.chars().any(char::is_control)));
        let mut roots: Vec<Root> = plain.map(|path| Root { proof: proof(&path, &mounts, boot.trim()), path }).collect();
        // The innermost first.
        roots.sort_by_key(|root| std::cmp::Reverse(root.path.components().count()));
        roots.dedup();
        roots
    }

    /// The name of the state directory, and the workspaces by what proves them.
    pub(super) async fn told(&self) -> Result<(String, Vec<String>), Fault> {
        let home = self.clone();
        let look = move || Ok(home.state_id().map(|id| (id, home.roots())));
        let (id, roots) = within(LOOK_BOUND, look).await.map_err(hangs)??;
        Ok((id, roots.into_iter().filter_map(|root| root.proof).collect()))
    }

    /// Where a job of this directory, which is canonical, may run; `tied` ties it to this machine.
    pub(super) async fn place(&self, cwd: PathBuf, tied: bool) -> Result<Placed, Fault> {
        let home = self.clone();
        let look = move || {
            let root = home.roots().into_iter().find(|root| cwd.starts_with(&root.path));
            Ok(home.state_id().map(|id| (id, root)))
        };
        let (id, root) = within(LOOK_BOUND, look).await.map_err(hangs)??;
        let Some(root) = root else {
            let detail = "`placement` lets it run on another machine, and `cwd` is in no directory that this one has for its \
                          fleet; accepted: a directory listed in `workspaces` of the user's configuration, or below the one the \
                          server was started in.";
            return Err(Fault::new(FaultCode::InvalidInput, detail));
        };
        Ok(match root.proof.filter(|_| !tied) {
            Some(proof) => Placed {
                workspace: format!("{proof}{IN}{}", root.path.display()),
                // Of a machine's own directories every host that has them is its owner's.
                needs: Needs {
                    owner: if proof.starts_with(MOUNT) { id } else { String::new() },
                    workspaces: vec![proof],
                    ..Needs::default()
                },
                pin_state: None,
            },
            None => Placed {
                workspace: format!("path:{id}{IN}{}", root.path.display()),
                needs: Needs::default(),
                pin_state: Some(id),
            },
        })
    }

    /// The directory of this machine that a job of this workspace means, and the workspace it has to stay in.
    pub(super) async fn here(&self, workspace: &str, cwd: PathBuf) -> Result<(PathBuf, PathBuf), Fault> {
        let refused = || Fault::new(FaultCode::InvalidInput, "the job's directory is in no workspace of this machine.");
        let (proof, there) = workspace.split_once(IN).ok_or_else(refused)?;
        let below = cwd.strip_prefix(there).map_err(|_| refused())?.to_owned();
        if !below.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(refused());
        }
        let (home, proof, there) = (self.clone(), proof.to_owned(), PathBuf::from(there));
        let look = move || {
            let own = home.state_id().map(|id| format!("path:{id}"));
            let is_it = |root: &Root, own: &str| {
                root.proof.as_deref() == Some(proof.as_str()) || (proof == own && root.path == there)
            };
            let found = own.map(|own| home.roots().into_iter().find(|root| is_it(root, &own)));
            Ok(found.map(|root| root.map(|root| (root.path.join(&below), root.path))))
        };
        within(LOOK_BOUND, look).await.map_err(hangs)??.ok_or_else(refused)
    }
}

/// What proves the workspace of this name, and the path of it on the machine that asked.
pub(super) fn parts_of(workspace: &str) -> Option<(&str, &Path)> {
    workspace.split_once(IN).map(|(proof, path)| (proof, Path::new(path)))
}

/// The path on the machine that asked, of a workspace's name.
pub(super) fn path_of(workspace: &str) -> PathBuf {
    workspace.split_once(IN).map_or_else(PathBuf::new, |(_, path)| PathBuf::from(path))
}

/// The labels of a machine with these workspaces.
pub(super) fn with_workspaces(labels: Labels, mut workspaces: Vec<String>) -> Labels {
    workspaces.sort();
    workspaces.dedup();
    workspaces.truncate(crate::fleet::labels::LIST);
    Labels { workspaces, ..labels }
}

fn hangs(wrong: &'static str) -> Fault {
    Fault::new(
        FaultCode::StoreUnavailable,
        format!("this machine's workspaces cannot be looked at: a directory {wrong}."),
    )
}

/// What a machine says of a directory of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectorySeen<'a> {
    /// The directory, links followed.
    pub dir: &'a Path,
    /// The number of its file system.
    pub dev: u64,
    /// Its inode.
    pub ino: u64,
    /// That of the `.git` in it.
    pub git: Option<u64>,
    /// What is mounted there, as `/proc/self/mountinfo` says it.
    pub mounts: &'a str,
    /// The machine's boot id.
    pub boot: &'a str,
}

impl DirectorySeen<'_> {
    /// What proves that a directory is this one, wherever it is seen from; `None` where nothing does.
    #[must_use]
    pub fn proof(&self) -> Option<String> {
        let (mount, root, kind, source) = mount_of(self.dir, self.mounts)?;
        if SHARED.contains(&kind) {
            let git = self.git.map_or_else(|| "-".to_owned(), |git| git.to_string());
            let below = self.dir.strip_prefix(mount).ok()?.to_str()?;
            // A part of the file system may be mounted, each host's another one.
            return Some(format!("{MOUNT}{kind}:{source}:{root}:{below}:{}:{git}", self.ino));
        }
        (!self.boot.is_empty()).then(|| format!("dev:{}:{:x}:{}", self.boot, self.dev, self.ino))
    }
}

/// The same of a directory of this machine.
fn proof(dir: &Path, mounts: &str, boot: &str) -> Option<String> {
    let meta = fs::metadata(dir).ok()?;
    let git = fs::metadata(dir.join(".git")).ok().map(|git| git.ino());
    DirectorySeen { dir, dev: meta.dev(), ino: meta.ino(), git, mounts, boot }.proof()
}

/// The mount a directory lies in: where it is, which part of the file system it shows, its type and its source. `None` where a
/// name in it is written with escapes, or nothing is known of mounts.
fn mount_of<'a>(dir: &Path, mounts: &'a str) -> Option<(&'a Path, &'a str, &'a str, &'a str)> {
    let read = |line: &'a str| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, at) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let (kind, source) = (after.next()?, after.next()?);
        Some((Path::new(at), root, kind, source))
    };
    // Of two mounts at one place the later one is seen.
    let all = mounts.lines().filter_map(read).filter(|(at, ..)| dir.starts_with(at));
    let found = all.max_by_key(|(at, ..)| at.components().count())?;
    let plain = [found.1, found.3].iter().all(|text| !text.contains('\\') && !text.contains(IN));
    (plain && !found.0.to_str()?.contains('\\')).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "21 1 0:19 / / rw - overlay overlay rw
30 21 0:40 / /home rw - nfs4 server:/export rw
31 30 0:41 /a /home/ada/x rw shared:1 - ext4 /dev/sda1 rw
32 21 0:42 / /with\\040space rw - nfs server:/b rw";

    #[test]
    fn the_innermost_mount_is_the_one_a_directory_lies_in() {
        for (dir, found) in [
            ("/etc", Some(("/", "/", "overlay", "overlay"))),
            ("/home/ada", Some(("/home", "/", "nfs4", "server:/export"))),
            ("/home/ada/x/y", Some(("/home/ada/x", "/a", "ext4", "/dev/sda1"))),
            ("/homes", Some(("/", "/", "overlay", "overlay"))),
        ] {
            let found = found.map(|(at, root, kind, source)| (Path::new(at), root, kind, source));
            assert_eq!(mount_of(Path::new(dir), MOUNTS), found, "{dir}");
        }
        assert_eq!(mount_of(Path::new("/x"), ""), None);
    }

    fn home(dir: &Path, state: &str) -> Home {
        let places = Places { start: None, home: None, workspaces: vec![dir.to_owned()], ..Places::default() };
        Home {
            name: "box".into(),
            dir: StateDir::at(dir.parent().expect("above").join(state)),
            places: Arc::new(places),
        }
    }

    #[tokio::test]
    async fn a_job_of_another_state_directory_finds_its_workspace_and_nothing_beside_it() {
        let scratch = tempfile::tempdir().expect("a directory");
        let root = fs::canonicalize(scratch.path()).expect("resolved").join("work");
        fs::create_dir_all(root.join("below")).expect("made");
        let (asks, other) = (home(&root, "a"), home(&root, "b"));
        let tied = asks.place(root.join("below"), true).await.expect("placed");
        let (own, elsewhere) =
            (asks.here(&tied.workspace, root.join("below")), other.here(&tied.workspace, root.join("below")));
        assert_eq!(own.await.expect("here").0, root.join("below"));
        assert!(elsewhere.await.is_err() && tied.pin_state.is_some(), "it is another machine's own");
        let placed = asks.place(root.join("below"), false).await.expect("placed");
        let (_, proofs) = other.told().await.expect("told");
        if cfg!(target_os = "linux") {
            assert_eq!(placed.needs.workspaces, proofs, "one kernel, one inode");
            assert_eq!(other.here(&placed.workspace, root.join("below")).await.expect("here").1, root);
        }
        for outside in ["/etc", "/etc/../etc"]
            .map(PathBuf::from)
            .into_iter()
            .chain([root.join("../work/below"), root.join("below/..")])
        {
            assert!(asks.here(&placed.workspace, outside.clone()).await.is_err(), "{}", outside.display());
        }
        assert!(asks.place(PathBuf::from("/etc"), false).await.is_err(), "no workspace");
    }
}
