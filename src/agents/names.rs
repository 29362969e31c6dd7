//! The agents of a system, for those who only read what is asked of them.
//!
//! Owns: the names of agents and the kinds of ids their sessions have. May not know: programs, how an agent is run.
//!
//! Invariant: what is known here of an agent is what its [`AgentProfile`](super::AgentProfile) says, so that an argument is judged
//! before a job is accepted as it would be judged where the job is run.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::AgentRegistry;
use crate::base::fault::{Fault, FaultCode};
use crate::base::ids::AgentSessionId;

/// Which sessions an agent can go on with, told by their ids. Another id would be a name, a file or a search to some agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SessionIds<Word = &'static str> {
    /// None: it keeps no sessions.
    NotKept,
    /// Those whose ids are UUIDs in lower case.
    Uuids,
    /// Those whose ids are words of this beginning; of an empty one, any.
    Begin(Word),
}

impl<Word: AsRef<str>> SessionIds<Word> {
    /// Whether this could be the id of one of them.
    pub(crate) fn have(&self, id: &AgentSessionId) -> bool {
        match self {
            Self::NotKept => false,
            Self::Uuids => id.is_uuid(),
            Self::Begin(beginning) => id.as_str().starts_with(beginning.as_ref()),
        }
    }

    /// What their ids are, as a phrase.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::NotKept => "none".to_owned(),
            Self::Uuids => "UUIDs in lower case".to_owned(),
            Self::Begin(beginning) => format!("words that begin with `{}`", beginning.as_ref()),
        }
    }
}

impl SessionIds {
    fn owned(self) -> SessionIds<String> {
        match self {
            Self::NotKept => SessionIds::NotKept,
            Self::Uuids => SessionIds::Uuids,
            Self::Begin(beginning) => SessionIds::Begin(beginning.to_owned()),
        }
    }
}

/// What is known of one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KnownAgent {
    name: String,
    sessions: SessionIds<String>,
}

/// The agents of a system by their names, each with the sessions it can go on with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<KnownAgent>", into = "Vec<KnownAgent>")]
pub struct AgentNames(Arc<[KnownAgent]>);

impl From<Vec<KnownAgent>> for AgentNames {
    fn from(known: Vec<KnownAgent>) -> Self {
        Self(known.into())
    }
}

impl From<AgentNames> for Vec<KnownAgent> {
    fn from(names: AgentNames) -> Self {
        names.0.to_vec()
    }
}

impl AgentRegistry {
    /// The same agents, for those who only read what is asked of them.
    #[must_use]
    #[doc(hidden)]
    pub fn known(&self) -> AgentNames {
        let known = |agent: &Arc<dyn super::Agent>| KnownAgent {
            name: agent.name().to_owned(),
            sessions: agent.profile().sessions().owned(),
        };
        AgentNames(self.agents.iter().map(known).collect())
    }
}

impl AgentNames {
    /// The names.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|known| known.name.as_str())
    }

    /// Whether there is such an agent.
    ///
    /// # Errors
    ///
    /// `invalid_input`, naming the nearest and all known names.
    pub fn check(&self, name: &str) -> Result<(), Fault> {
        if self.iter().any(|known| known == name) {
            return Ok(());
        }
        Err(unknown_agent(name, &self.iter().collect::<Vec<_>>()))
    }

    /// The sessions that the agent of this name can go on with; `None` where there is no such agent.
    pub(crate) fn sessions(&self, name: &str) -> Option<&SessionIds<String>> {
        self.0.iter().find(|known| known.name == name).map(|known| &known.sessions)
    }
}

pub(super) fn unknown_agent(name: &str, known: &[&str]) -> Fault {
    let lower = name.to_lowercase();
    // Three slips is what still reads as a misspelling of a name this short.
    let nearest = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(candidate, &lower), *candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= 3 && *distance < candidate.len());
    let listed = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let hint = match nearest {
        Some((_, nearest)) => format!("Agents: {listed} (did you mean `{nearest}`?)."),
        None => format!("Agents: {listed}."),
    };
    let shown: String = name.chars().filter(|c| !c.is_control()).take(40).collect();
    Fault::new(FaultCode::InvalidInput, format!("`agent`: there is no agent `{shown}`.")).hint(hint)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::agents::{CustomAgent, CustomAgents};

    const UUID: &str = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";
    const UPPER: &str = "3F2504E0-4F89-41D3-9A0C-0305E82C3301";
    const SES: &str = "ses_de457804bffeBYrIDvN3KCkJMW";

    #[test]
    fn which_ids_each_kind_of_agent_has_is_known_by_its_name() {
        let customs: CustomAgents = ["text", "acp", "codex"]
            .into_iter()
            .map(|output| {
                (format!("my-{output}"), CustomAgent { output: output.into(), ..CustomAgent::new(["/bin/x"]) })
            })
            .collect();
        let registry = AgentRegistry::standard(None, PathBuf::from("/bin/phone-opus")).with_customs(&customs);
        let known = registry.known();
        assert_eq!(known.iter().collect::<Vec<_>>(), registry.names());
        // name, whether it takes: a UUID, one in upper case, a session of OpenCode's, another word
        let table = [
            ("claude", [true, false, false, false]),
            ("codex", [true, false, false, false]),
            ("copilot", [true, false, false, false]),
            ("gemini", [true, false, false, false]),
            ("opencode", [false, false, true, false]),
            ("qwen", [true, false, false, false]),
            ("offline", [false, false, false, false]),
            ("my-acp", [true, true, true, true]),
            ("my-codex", [false, false, false, false]),
            ("my-text", [false, false, false, false]),
        ];
        assert_eq!(known.iter().collect::<Vec<_>>(), table.map(|(name, _)| name), "each is a member");
        for (name, takes) in table {
            let sessions = known.sessions(name).expect("known");
            let agent = registry.get(name).expect("known");
            for (id, good) in [UUID, UPPER, SES, "last"].into_iter().zip(takes) {
                let id: AgentSessionId = id.parse().expect("an id");
                assert_eq!(sessions.have(&id), good, "{name} {id}");
                // Where the job is run the same holds.
                assert_eq!(
                    agent.profile().resumes() && agent.profile().check_session(&id).is_ok(),
                    good,
                    "{name} {id}"
                );
            }
        }
        assert_eq!(known.sessions("oracle"), None);
    }

    #[test]
    fn what_is_known_reaches_a_worker_as_it_is() {
        let known = AgentRegistry::standard(None, PathBuf::from("/bin/phone-opus")).known();
        let told = serde_json::to_string(&known).expect("JSON");
        assert_eq!(serde_json::from_str::<AgentNames>(&told).expect("the same"), known, "{told}");
    }
}
