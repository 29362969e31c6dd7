//! What a host can do, what a job needs, and whether the one holds the other.
//!
//! Owns: the two shapes, their bounds, and containment. May not know: where they are kept, who is asked first.
//!
//! Invariants: (1) whether a host may serve a job follows from [`Labels::way`] and [`Labels::serves`] alone; (2) what is named
//! nowhere in the needs is asked of nobody; (3) another tree than the workspace itself is a way to a job that names a repository, and
//! to no other.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::POLL;
use super::remote::{RemotePattern, covered, spelled};
use super::rows::{BadRow, LABELS_BYTES, NAME_BYTES, WORKSPACE_BYTES, json, text, word, word_or_nothing, written};

/// Most entries of one list of a host; a machine with more workspaces names the roots above them.
pub const LIST: usize = 512;

/// Most agents of a host that may run at once.
pub const SLOTS: u32 = 1_000;

/// What a host says it can do. Renewed when it changes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Labels {
    /// Platform, as `linux/x86_64`.
    pub os: String,
    /// The program's version.
    pub build: String,
    /// The agents that are there, by name.
    pub agents: BTreeMap<String, AgentLabel>,
    /// The workspaces it owns, by id.
    pub workspaces: Vec<String>,
    /// File systems it shares with others.
    pub mounts: Vec<MountLabel>,
    /// Exec servers it reaches, by id.
    pub exec: Vec<String>,
    /// Agents on machines it reaches by an exec server, with the workspaces there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reach: Vec<ReachLabel>,
    /// Repositories it makes clones of, as patterns.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clones: Vec<String>,
    /// Agents that may run at once.
    pub slots: u32,
    /// What its owner calls it.
    pub tags: Vec<String>,
}

/// An agent of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentLabel {
    /// Its version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// The accounts it is logged in with, as digests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accounts: Vec<String>,
    /// How it is paid for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub billing: String,
}

/// An agent on a machine that a host reaches by an exec server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReachLabel {
    /// Which agent it is.
    pub agent: String,
    /// How it is paid for.
    pub billing: String,
    /// The workspaces there, by id.
    pub workspaces: Vec<String>,
}

/// A file system a host shares with others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MountLabel {
    /// Where it comes from, as `server:/export`.
    pub source: String,
    /// Where it is there.
    pub at: String,
}

/// What a job needs of a host: the same shape, of which what is empty asks for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Needs {
    /// This platform.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub os: String,
    /// This version of the program.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub build: String,
    /// These agents, with these versions, accounts and ways of paying.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub agents: BTreeMap<String, AgentLabel>,
    /// The state directory of the machine whose workspace it is, where others may have the same by a file system they share. It is asked
    /// of nobody: who has it is asked first.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// These workspaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub workspaces: Vec<String>,
    /// These mounts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountLabel>,
    /// These exec servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<String>,
    /// These tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The repository of which a clone will do as well as the workspaces and the state directory; none where only these do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub clone: String,
}

/// How long a job is left to its workspace's own machine, and then to those that share its file system. Each is less than the next, and
/// enough for a host that is told at once and has room.
const MOUNT_PATIENCE: Duration = Duration::from_secs(1);
const EXEC_PATIENCE: Duration = Duration::from_secs(2);

/// How a host comes to the files of a job, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkspaceWay {
    /// The workspace is the machine's own, or nobody says whose it is.
    Own,
    /// The same file system is mounted there, proven.
    Mount,
    /// By an exec server on the workspace's machine.
    Exec,
    /// By a clone of the commit.
    Clone,
}

/// What a host's state directory is to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateHere {
    /// That of the machine whose workspace it is, or any is as good.
    Owner,
    /// That of another machine, which may share the workspace.
    Other,
    /// Not the one that the job is tied to.
    Missing,
}

impl WorkspaceWay {
    /// How long a job is left to hosts that have a better way. Those that have one and room are told of it at once.
    #[must_use]
    pub const fn patience(self) -> Duration {
        match self {
            Self::Own => Duration::ZERO,
            Self::Mount => MOUNT_PATIENCE,
            Self::Exec => EXEC_PATIENCE,
            Self::Clone => POLL,
        }
    }
}

impl Labels {
    /// How this host comes to the files of a job of this agent and account, if it has all else that is needed.
    #[must_use]
    pub fn way(&self, needs: &Needs, agent: &str, account: &str, state: StateHere) -> Option<WorkspaceWay> {
        let (served, has_state) = (self.serves(agent, account), state != StateHere::Missing);
        if has_state && served && self.hold(needs) {
            return Some(if state == StateHere::Owner { WorkspaceWay::Own } else { WorkspaceWay::Mount });
        }
        let elsewhere = Needs { workspaces: Vec::new(), mounts: Vec::new(), ..needs.clone() };
        // Whose account an agent there has is not known here.
        if has_state && account.is_empty() && self.reaches(needs, agent) {
            let rest = Needs { agents: BTreeMap::new(), ..elsewhere };
            return self.hold(&rest).then_some(WorkspaceWay::Exec);
        }
        let clones = !needs.clone.is_empty() && covered(&self.clones, &needs.clone);
        (clones && served && self.hold(&elsewhere)).then_some(WorkspaceWay::Clone)
    }

    /// Whether this agent is on a machine it reaches, with everything of the workspace that is needed.
    fn reaches(&self, needs: &Needs, agent: &str) -> bool {
        let pays = |here: &ReachLabel| {
            needs.agents.values().all(|asked| {
                asked.version.is_empty()
                    && asked.accounts.is_empty()
                    && (asked.billing.is_empty() || asked.billing == here.billing)
            })
        };
        let only = needs.agents.keys().all(|name| name == agent);
        let has = |here: &&ReachLabel| here.agent == agent && all_in(&needs.workspaces, &here.workspaces) && pays(here);
        only && !needs.workspaces.is_empty() && needs.mounts.is_empty() && self.reach.iter().any(|here| has(&here))
    }

    /// Whether everything that is needed is here.
    #[must_use]
    pub fn hold(&self, needs: &Needs) -> bool {
        let same = |asked: &str, here: &str| asked.is_empty() || asked == here;
        let agent = |(name, asked): (&String, &AgentLabel)| {
            self.agents.get(name).is_some_and(|here| {
                same(&asked.version, &here.version)
                    && same(&asked.billing, &here.billing)
                    && all_in(&asked.accounts, &here.accounts)
            })
        };
        same(&needs.os, &self.os)
            && same(&needs.build, &self.build)
            && needs.agents.iter().all(agent)
            && all_in(&needs.workspaces, &self.workspaces)
            && all_in(&needs.mounts, &self.mounts)
            && all_in(&needs.exec, &self.exec)
            && all_in(&needs.tags, &self.tags)
    }

    /// Whether this agent is here, with this account where one is named.
    #[must_use]
    pub fn serves(&self, agent: &str, account: &str) -> bool {
        let has = |here: &AgentLabel| account.is_empty() || here.accounts.iter().any(|one| one == account);
        self.agents.get(agent).is_some_and(has)
    }

    /// Reads what a host wrote.
    ///
    /// # Errors
    ///
    /// The first field that is out of its bounds.
    pub fn read(value: &str) -> Result<Self, BadRow> {
        json::<Self>("labels", value, LABELS_BYTES)?.checked()
    }

    /// Writes it for others to read.
    ///
    /// # Errors
    ///
    /// The first field that is out of its bounds.
    pub fn write(&self) -> Result<String, BadRow> {
        written("labels", &self.clone().checked()?, LABELS_BYTES)
    }

    fn checked(self) -> Result<Self, BadRow> {
        word_or_nothing("labels.os", &self.os)?;
        word_or_nothing("labels.build", &self.build)?;
        agents(&self.agents)?;
        places(&self.workspaces, &self.mounts)?;
        words("labels.exec", &self.exec)?;
        words("labels.tags", &self.tags)?;
        few("labels.reach", &self.reach)?;
        for here in &self.reach {
            word("reach.agent", &here.agent)?;
            word_or_nothing("reach.billing", &here.billing)?;
            places(&here.workspaces, &[])?;
        }
        few("labels.clones", &self.clones)?;
        if self.clones.iter().any(|pattern| RemotePattern::read(pattern).is_err()) {
            return Err(BadRow::new("labels.clones", "is no pattern of addresses"));
        }
        if self.slots > SLOTS { Err(BadRow::new("labels.slots", "is too large")) } else { Ok(self) }
    }
}

impl Needs {
    /// Reads what another host wrote.
    ///
    /// # Errors
    ///
    /// The first field that is out of its bounds.
    pub fn read(value: &str) -> Result<Self, BadRow> {
        json::<Self>("needs", value, LABELS_BYTES)?.checked()
    }

    /// Writes it for others to read.
    ///
    /// # Errors
    ///
    /// The first field that is out of its bounds.
    pub fn write(&self) -> Result<String, BadRow> {
        written("needs", &self.clone().checked()?, LABELS_BYTES)
    }

    fn checked(self) -> Result<Self, BadRow> {
        word_or_nothing("needs.os", &self.os)?;
        word_or_nothing("needs.build", &self.build)?;
        agents(&self.agents)?;
        word_or_nothing("needs.owner", &self.owner)?;
        places(&self.workspaces, &self.mounts)?;
        words("needs.exec", &self.exec)?;
        words("needs.tags", &self.tags)?;
        if !self.clone.is_empty() {
            spelled("needs.clone", &self.clone)?;
        }
        Ok(self)
    }
}

fn all_in<T: PartialEq>(asked: &[T], here: &[T]) -> bool {
    asked.iter().all(|one| here.contains(one))
}

fn few<T>(field: &'static str, list: &[T]) -> Result<(), BadRow> {
    if list.len() > LIST { Err(BadRow::new(field, "has too many entries")) } else { Ok(()) }
}

fn words(field: &'static str, list: &[String]) -> Result<(), BadRow> {
    few(field, list)?;
    list.iter().try_for_each(|one| word(field, one).map(drop))
}

fn agents(agents: &BTreeMap<String, AgentLabel>) -> Result<(), BadRow> {
    if agents.len() > LIST {
        return Err(BadRow::new("agents", "has too many entries"));
    }
    for (name, agent) in agents {
        word("agents", name)?;
        if !agent.version.is_empty() {
            text("agents.version", &agent.version, NAME_BYTES)?;
        }
        word_or_nothing("agents.billing", &agent.billing)?;
        words("agents.accounts", &agent.accounts)?;
    }
    Ok(())
}

fn places(workspaces: &[String], mounts: &[MountLabel]) -> Result<(), BadRow> {
    few("workspaces", workspaces)?;
    few("mounts", mounts)?;
    for one in workspaces {
        text("workspaces", one, WORKSPACE_BYTES)?;
    }
    for one in mounts {
        text("mounts.source", &one.source, WORKSPACE_BYTES)?;
        text("mounts.at", &one.at, WORKSPACE_BYTES)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = r#"{"os":"linux/x86_64","build":"1","agents":{"claude":{"version":"2 (x)","accounts":["a","b"],
        "billing":"subscription","later":1}},"workspaces":["path:s:/w"],"mounts":[{"source":"server:/export","at":"/home"}],
        "exec":["box"],"slots":3,"tags":["big","quiet"],"written by a later version":{}}"#;

    #[test]
    fn a_host_serves_what_it_holds_all_of() {
        let host = Labels::read(HOST).expect("labels");
        for (needs, held) in [
            ("{}", true),
            (r#"{"os":"linux/x86_64","tags":["big"]}"#, true),
            (r#"{"os":"macos/aarch64"}"#, false),
            (r#"{"build":"2"}"#, false),
            (r#"{"tags":["big","loud"]}"#, false),
            (r#"{"agents":{"claude":{}}}"#, true),
            (r#"{"agents":{"claude":{"accounts":["b"],"billing":"subscription"}}}"#, true),
            (r#"{"agents":{"claude":{"accounts":["b","c"]}}}"#, false),
            (r#"{"agents":{"claude":{"billing":"api_key"}}}"#, false),
            (r#"{"agents":{"claude":{"version":"3"}}}"#, false),
            (r#"{"agents":{"codex":{}}}"#, false),
            (r#"{"workspaces":["path:s:/w"]}"#, true),
            (r#"{"workspaces":["path:s:/w/below"]}"#, false),
            (r#"{"mounts":[{"source":"server:/export","at":"/home"}],"exec":["box"]}"#, true),
            (r#"{"mounts":[{"source":"server:/export","at":"/elsewhere"}]}"#, false),
        ] {
            assert_eq!(host.hold(&Needs::read(needs).expect(needs)), held, "{needs}");
        }
        for (agent, account, served) in
            [("claude", "", true), ("claude", "a", true), ("claude", "c", false), ("codex", "", false)]
        {
            assert_eq!(host.serves(agent, account), served, "{agent} for {account:?}");
        }
        let again = Labels::read(&host.write().expect("written")).expect("read");
        assert_eq!(again, host);
    }

    #[test]
    fn a_clone_is_a_way_to_a_job_that_names_its_repository_and_the_workspace_itself_is_a_better_one() {
        let host = |labels: &str| Labels::read(labels).expect(labels);
        let clones = r#""clones":["ssh://git@git.example/team/*"]"#;
        let rest = r#""agents":{"claude":{}},"tags":["gpu"]"#;
        let both = host(&format!(r#"{{"workspaces":["w"],{rest},{clones}}}"#));
        let only = host(&format!(r#"{{{rest},{clones}}}"#));
        let neither = host(&format!("{{{rest}}}"));
        let (same, clone) = (Some(WorkspaceWay::Own), Some(WorkspaceWay::Clone));
        let (tied_here, tied_elsewhere) = (StateHere::Owner, StateHere::Missing);
        for (needs, state, ways) in [
            (r#"{"workspaces":["w"]}"#, tied_here, [same, None, None]),
            (r#"{"workspaces":["w"],"clone":"ssh://git@git.example/team/a"}"#, tied_here, [same, clone, None]),
            (r#"{"workspaces":["v"],"clone":"ssh://git@git.example/team/a"}"#, tied_here, [clone, clone, None]),
            (r#"{"clone":"ssh://git@git.example/team/a"}"#, tied_elsewhere, [clone, clone, None]),
            (r#"{"clone":"ssh://git@git.example/team/a"}"#, tied_here, [same, same, same]),
            (r#"{"clone":"ssh://git@git.example/other/a"}"#, tied_elsewhere, [None, None, None]),
            (r#"{"clone":"ssh://git@git.example/team/a","tags":["big"]}"#, tied_elsewhere, [None, None, None]),
            (r#"{}"#, tied_elsewhere, [None, None, None]),
        ] {
            let read = Needs::read(needs).expect(needs);
            assert_eq!(
                [&both, &only, &neither].map(|host| host.way(&read, "claude", "", state)),
                ways,
                "{needs} {state:?}"
            );
        }
        assert!(WorkspaceWay::Own < WorkspaceWay::Clone && WorkspaceWay::Own.patience().is_zero());
        let again = Labels::read(&both.write().expect("written")).expect("read");
        assert_eq!(again, both);
    }

    #[test]
    fn of_five_ways_to_a_workspace_the_best_one_counts_and_each_asks_for_all_of_its_own() {
        let (own, mount, exec, cloned) =
            (WorkspaceWay::Own, WorkspaceWay::Mount, WorkspaceWay::Exec, WorkspaceWay::Clone);
        let (owner, other, missing) = (StateHere::Owner, StateHere::Other, StateHere::Missing);
        let here = r#""workspaces":["w"]"#;
        let reach = r#""reach":[{"agent":"claude","billing":"subscription","workspaces":["w"]}]"#;
        let clones = r#""clones":["https://git.example/*"]"#;
        let agents = r#""agents":{"claude":{"accounts":["a"],"billing":"subscription"}}"#;
        let needs = |rest: &str| Needs::read(&format!("{{{rest}}}")).expect(rest);
        let asked = r#""agents":{"claude":{"billing":"subscription"}},"workspaces":["w"]"#;
        let clone = format!(r#"{asked},"clone":"https://git.example/a""#);
        for (labels, asked, account, state, way) in [
            (format!("{agents},{here},{reach},{clones}"), clone.as_str(), "", owner, Some(own)),
            (format!("{agents},{here},{reach},{clones}"), &clone, "", other, Some(mount)),
            (format!("{agents},{reach},{clones}"), &clone, "", other, Some(exec)),
            (format!("{agents},{here}"), asked, "a", other, Some(mount)),
            (format!("{agents},{here}"), asked, "", missing, None),
            (format!("{agents},{reach},{clones}"), &clone, "", owner, Some(exec)),
            (format!("{agents},{clones}"), &clone, "", owner, Some(cloned)),
            (agents.to_owned(), &clone, "", owner, None),
            // No agent of its own is needed for one that is there.
            (reach.to_owned(), asked, "", owner, Some(exec)),
            (here.to_owned(), asked, "", owner, None),
            // Whose account is used there is not known, and a state directory is nowhere else.
            (format!("{agents},{reach}"), asked, "a", owner, None),
            (format!("{agents},{here},{reach}"), asked, "a", owner, Some(own)),
            (format!("{agents},{reach}"), asked, "", missing, None),
            // Another workspace, agent or way of paying.
            (reach.replace("\"w\"", "\"v\""), asked, "", owner, None),
            (reach.replace("claude", "codex"), asked, "", owner, None),
            (reach.replace("subscription", "api_key"), asked, "", owner, None),
            (reach.to_owned(), &format!(r#"{asked},"tags":["gpu"]"#), "", owner, None),
            // A job without a proven workspace is reached by nobody.
            (reach.to_owned(), r#""agents":{"claude":{}}"#, "", owner, None),
        ] {
            let host = Labels::read(&format!("{{{labels}}}")).expect(&labels);
            assert_eq!(host.way(&needs(asked), "claude", account, state), way, "{labels} for {asked}");
        }
        let patience = [own, mount, exec, cloned].map(WorkspaceWay::patience);
        assert!(patience.is_sorted_by(|one, next| one < next), "{patience:?}");
    }

    #[test]
    fn labels_out_of_their_bounds_are_refused_by_the_name_of_the_field() {
        let many = format!(r#"{{"tags":{:?}}}"#, vec!["t"; LIST + 1]);
        let long = format!(r#"{{"workspaces":[{:?}]}}"#, "w".repeat(WORKSPACE_BYTES + 1));
        let vast = format!(r#"{{"tags":["{}"]}}"#, "t".repeat(LABELS_BYTES));
        for (labels, field) in [
            ("", "labels"),
            ("[]", "labels"),
            ("null", "labels"),
            (r#"{"slots":-1}"#, "labels"),
            (r#"{"slots":1001}"#, "labels.slots"),
            (r#"{"os":"a b"}"#, "labels.os"),
            (r#"{"tags":[""]}"#, "labels.tags"),
            (r#"{"tags":["a\u001b[2J"]}"#, "labels.tags"),
            (r#"{"agents":{"\u0000":{}}}"#, "agents"),
            (r#"{"agents":{"a":{"version":"\n"}}}"#, "agents.version"),
            (r#"{"mounts":[{"source":"","at":"/"}]}"#, "mounts.source"),
            (r#"{"clones":["ext::sh"]}"#, "labels.clones"),
            (&many, "labels.tags"),
            (&long, "workspaces"),
            (&vast, "labels"),
        ] {
            let shown = &labels[..labels.len().min(40)];
            assert_eq!(Labels::read(labels).map_err(|bad| bad.field), Err(field), "{shown}");
        }
    }
}
