//! Workspaces of other machines that this host reaches by an exec server: what was seen of them last.
//!
//! Owns: which agent of the configuration has which workspace, by what proves it. May not know: how a machine is reached, who looks.
//!
//! A machine that runs an exec server and no host of the fleet is no member of it; whoever reaches it may run a job of its workspaces
//! there. Its directories are proven as a host proves its own, by what the kernel there says through the exec server.
//!
//! Invariant: what was not seen at the last look is not offered.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::home::parts_of;
use crate::agents::AgentSites;
use crate::fleet::labels::ReachLabel;

/// A workspace of another machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkspaceThere {
    /// The directory as the configuration names it.
    pub dir: PathBuf,
    /// What proves it.
    pub proof: String,
}

/// What was seen, by the names of agents. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Reached {
    seen: Arc<Mutex<BTreeMap<String, Vec<WorkspaceThere>>>>,
}

impl Reached {
    /// Takes note of what the machine of an agent has now; nothing where it was not reached.
    pub(super) fn note(&self, name: &str, workspaces: Vec<WorkspaceThere>) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), workspaces);
    }

    /// What is offered.
    pub(super) fn labels(&self, sites: &AgentSites, billing: &str) -> Vec<ReachLabel> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let label = |(name, there): (&String, &Vec<WorkspaceThere>)| {
            let agent = sites.get(name).filter(|_| !there.is_empty())?.agent.clone();
            let mut workspaces: Vec<String> = there.iter().map(|workspace| workspace.proof.clone()).collect();
            workspaces.sort();
            workspaces.dedup();
            Some(ReachLabel { agent, billing: billing.to_owned(), workspaces })
        };
        seen.iter().filter_map(label).collect()
    }

    /// The agent of the configuration that is `agent` on the machine of this workspace, the workspace there, and the directory in it
    /// that a job of it means.
    pub(super) fn find(
        &self,
        sites: &AgentSites,
        agent: &str,
        workspace: &str,
        cwd: &Path,
    ) -> Option<(String, PathBuf, PathBuf)> {
        let (proof, asked) = parts_of(workspace)?;
        let below = cwd.strip_prefix(asked).ok()?;
        if !below.components().all(|part| matches!(part, Component::Normal(_))) {
            return None;
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|(name, _)| sites.get(*name).is_some_and(|site| site.agent == agent)).find_map(
            |(name, there)| {
                let found = there.iter().find(|workspace| workspace.proof == proof)?;
                Some((name.clone(), found.dir.clone(), found.dir.join(below)))
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::AgentSite;
    use crate::exec::{ExecTarget, TargetWords};

    #[test]
    fn a_job_goes_to_the_agent_that_was_seen_in_its_workspace_and_nowhere_beside_it() {
        let target = ExecTarget::parse(&TargetWords::Text("unix:/x".into())).expect("a target");
        let site = |agent: &str| AgentSite {
            agent: agent.into(),
            target: target.clone(),
            token_file: None,
            program: None,
            workspaces: vec!["/there".into()],
        };
        let sites = AgentSites::from([("box".to_owned(), site("claude")), ("other".to_owned(), site("codex"))]);
        let reached = Reached::default();
        let there = |proof: &str| vec![WorkspaceThere { dir: "/there".into(), proof: proof.into() }];
        reached.note("box", there("dev:b:1:2"));
        reached.note("other", Vec::new());
        let labels = reached.labels(&sites, "subscription");
        assert_eq!(labels.len(), 1);
        assert_eq!((labels[0].agent.as_str(), &labels[0].workspaces[..]), ("claude", &["dev:b:1:2".to_owned()][..]));
        let find = |agent: &str, workspace: &str, cwd: &str| reached.find(&sites, agent, workspace, Path::new(cwd));
        let found = find("claude", "dev:b:1:2 in /here", "/here/src").expect("found");
        assert_eq!(found, ("box".to_owned(), "/there".into(), "/there/src".into()));
        for (agent, workspace, cwd) in [
            ("codex", "dev:b:1:2 in /here", "/here"),
            ("claude", "dev:b:1:3 in /here", "/here"),
            ("claude", "dev:b:1:2 in /here", "/elsewhere"),
            ("claude", "dev:b:1:2 in /here", "/here/../etc"),
            ("claude", "nothing", "/here"),
        ] {
            assert_eq!(find(agent, workspace, cwd), None, "{agent} {workspace} {cwd}");
        }
        reached.note("box", Vec::new());
        assert!(reached.labels(&sites, "").is_empty() && find("claude", "dev:b:1:2 in /here", "/here").is_none());
    }
}
