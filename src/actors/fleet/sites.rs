//! The machines a host reaches by exec servers: who looks at them, and when.
//!
//! Owns: the pace, and that one machine holds up no other. May not know: what proves a workspace, how a machine is reached.
//!
//! Invariant: what was not seen at the last look is not offered, whether the machine was not reached, said nothing or the look panicked.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};

use crate::agents::{AgentSite, AgentSites};
use crate::base::fault::Fault;
use crate::fleet::LEASE;
use crate::runner::{MachineSeen, WorkspaceSeen, seen_there};
use crate::tools::placed::{DirectorySeen, FleetDesk, WorkspaceThere};

/// How often: as often as a lease, after which a host that is gone is not believed either.
const EVERY: Duration = LEASE;

/// Machines that are looked at at once. One that does not answer takes its place for 45 s; each is a process or a connection of ours.
const AT_ONCE: usize = 8;

/// Looks at the machines this host reaches, for as long as the actor lives.
pub(super) async fn look_at_sites(desk: FleetDesk) {
    if desk.sites().is_empty() {
        return;
    }
    loop {
        look_at_all(desk.sites(), seen_there, |name, there| desk.note_site(name, there)).await;
        tokio::time::sleep(EVERY).await;
    }
}

/// Looks at each once; what was seen of one is noted when that is known.
async fn look_at_all<'a, F: Future<Output = Result<MachineSeen, Fault>>>(
    sites: &'a AgentSites,
    look: impl Fn(&'a AgentSite) -> F,
    note: impl Fn(&str, Vec<WorkspaceThere>),
) {
    let looks = futures_util::stream::iter(sites).for_each_concurrent(AT_ONCE, |(name, site)| {
        let (look, note) = (&look, &note);
        async move {
            let seen = AssertUnwindSafe(async { look(site).await.map(|seen| workspaces_of(&seen)) }).catch_unwind();
            let there = match seen.await {
                Ok(Ok(there)) => there,
                Ok(Err(fault)) => {
                    tracing::debug!(%fault, name, "the machine of an agent is not offered to the fleet");
                    Vec::new()
                }
                Err(_) => {
                    tracing::warn!(name, "a look at the machine of an agent panicked; it is not offered to the fleet");
                    Vec::new()
                }
            };
            note(name, there);
        }
    });
    looks.await;
}

/// The workspaces of a machine that are proven.
fn workspaces_of(seen: &MachineSeen) -> Vec<WorkspaceThere> {
    let proven = |there: &WorkspaceSeen| {
        let WorkspaceSeen { named, dir, dev, ino, git } = there;
        let seen = DirectorySeen { dir, dev: *dev, ino: *ino, git: *git, mounts: &seen.mounts, boot: &seen.boot };
        Some(WorkspaceThere { dir: named.clone(), proof: seen.proof()? })
    };
    seen.workspaces.iter().filter_map(proven).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::*;
    use crate::base::fault::FaultCode;
    use crate::exec::{ExecTarget, TargetWords};

    fn site(program: &str) -> AgentSite {
        AgentSite {
            agent: "claude".into(),
            target: ExecTarget::parse(&TargetWords::Text("unix:/x".into())).expect("a target"),
            token_file: None,
            program: Some(program.into()),
            workspaces: vec!["/w".into()],
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_machine_that_hangs_or_a_look_that_panics_holds_up_no_other_and_is_not_offered() {
        let names = ["fails", "hangs", "panics", "well"];
        let sites: AgentSites = names.map(|name| (name.to_owned(), site(name))).into();
        let look = |site: &AgentSite| {
            let does = site.program.clone().expect("a word");
            async move {
                match does.as_str() {
                    "hangs" => tokio::time::sleep(Duration::from_secs(45)).await,
                    "panics" => panic!("on purpose"),
                    _ => {}
                }
                if does != "well" {
                    return Err(Fault::new(FaultCode::ExecUnreachable, "not reached."));
                }
                let mounts = "21 1 0:19 / / rw - ext4 /dev/x rw".to_owned();
                let seen = WorkspaceSeen { named: "/w".into(), dir: "/w".into(), dev: 1, ino: 2, git: None };
                Ok(MachineSeen { boot: "b".into(), mounts, workspaces: vec![seen] })
            }
        };
        let began = tokio::time::Instant::now();
        let noted = RefCell::new(BTreeMap::new());
        let note = |name: &str, there: Vec<WorkspaceThere>| {
            noted.borrow_mut().insert(name.to_owned(), (there.len(), began.elapsed().as_secs()));
        };
        look_at_all(&sites, look, note).await;
        let noted = noted.into_inner();
        let seen: Vec<_> = noted.iter().map(|(name, seen)| (name.as_str(), *seen)).collect();
        assert_eq!(seen, [("fails", (0, 0)), ("hangs", (0, 45)), ("panics", (0, 0)), ("well", (1, 0))]);
    }
}
