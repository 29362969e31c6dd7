//! What the machine of an agent says of its workspaces, so that they can be told to be the same as another machine's.
//!
//! Owns: what is asked there, through the exec server and without a shell. May not know: what it proves.
//!
//! The boot id and the mounts are read as files of the kernel there, by the exec server; device and inode are what `stat` says there. Of
//! a server without files, or a machine without these programs, nothing is known.

use std::path::{Path, PathBuf};

use super::elsewhere::{REACH, Reached, reach, too_late};
use crate::agents::AgentSite;
use crate::base::fault::Fault;
use crate::failpoints::Faults;

/// Bytes of a file of the kernel's that are believed.
const FILE_BYTES: usize = 1 << 20;

/// Workspaces of one machine that are asked about.
const WORKSPACES: usize = 64;

/// What a machine says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSeen {
    /// Its boot id.
    pub boot: String,
    /// What is mounted there.
    pub mounts: String,
    pub workspaces: Vec<WorkspaceSeen>,
}

/// What it says of a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkspaceSeen {
    /// As the configuration names it.
    pub named: PathBuf,
    /// Where that is, links followed.
    pub dir: PathBuf,
    pub dev: u64,
    pub ino: u64,
    /// The inode of the `.git` in it.
    pub git: Option<u64>,
}

/// Reaches an agent's machine and asks it about the workspaces there.
///
/// # Errors
///
/// It was not reached.
///
/// # Cancel safety
///
/// May be dropped at any time: what was started there ends with the connection.
pub async fn seen_there(site: &AgentSite) -> Result<MachineSeen, Fault> {
    let looking = async {
        let reached = reach(site, Faults::none()).await?;
        let seen = look(&reached, site).await;
        reached.leave().await;
        Ok(seen)
    };
    tokio::time::timeout(REACH, looking).await.unwrap_or_else(|_| Err(too_late(site)))
}

async fn look(reached: &Reached, site: &AgentSite) -> MachineSeen {
    let boot = file(reached, "/proc/sys/kernel/random/boot_id").await.unwrap_or_default();
    let mounts = file(reached, "/proc/self/mountinfo").await.unwrap_or_default();
    let mut workspaces = Vec::new();
    for named in site.workspaces.iter().take(WORKSPACES) {
        workspaces.extend(workspace(reached, named).await);
    }
    MachineSeen { boot: boot.trim().to_owned(), mounts, workspaces }
}

async fn file(reached: &Reached, path: &str) -> Option<String> {
    let bytes = reached.backend.files()?.read_file(Path::new(path)).await.ok()?;
    (bytes.len() <= FILE_BYTES).then(|| String::from_utf8(bytes.to_vec()).ok()).flatten()
}

async fn workspace(reached: &Reached, named: &Path) -> Option<WorkspaceSeen> {
    let there = reached.there();
    let text = named.to_str()?;
    let real = there.asked("realpath", named, &["--canonicalize-existing", "--", text]).await.ok()??;
    let dir = PathBuf::from(real.strip_suffix('\n')?);
    if !dir.is_absolute() || real.lines().count() != 1 {
        return None;
    }
    let words = ["--dereference", "--format=%d %i", "--", dir.to_str()?];
    let (dev, ino) = numbers(&there.asked("stat", named, &words).await.ok()??)?;
    let git = dir.join(".git");
    let words = ["--dereference", "--format=%d %i", "--", git.to_str()?];
    let git = there.asked("stat", named, &words).await.ok().flatten();
    Some(WorkspaceSeen {
        named: named.to_owned(),
        dir,
        dev,
        ino,
        git: git.and_then(|said| numbers(&said)).map(|(_, ino)| ino),
    })
}

/// The two numbers of a line.
fn numbers(said: &str) -> Option<(u64, u64)> {
    let (dev, ino) = said.trim_end_matches('\n').split_once(' ')?;
    Some((dev.parse().ok()?, ino.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_line_of_two_numbers_is_nothing() {
        assert_eq!(numbers("2049 131\n"), Some((2049, 131)));
        for wrong in ["", "1", "1 2 3", "a b", "1 2\n3 4\n", "-1 2"] {
            assert_eq!(numbers(wrong), None, "{wrong:?}");
        }
    }
}
