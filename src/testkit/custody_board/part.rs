//! Whom the scripted agent plays on a board, and what differs between one agent and another there.
//!
//! Owns: the agents a board can be asked about, how a world is set up for one, what is planted in it. May not know: the cells.
//!
//! An agent that is a program of its own is here by its row in the table of agents, and its secrets by its own lists; one that a
//! user configures is a row in [`CONFIGURED`].

use std::collections::BTreeSet;
use std::path::Path;

use super::super::rig::{KEY, Rig};
use crate::agents::{Agent as _, CliAgent, Environment, PayerKnown};
use crate::base::fault::FaultCode;
use crate::jobs::{Billing, ConsultRequest};

/// An agent that is there by the user's configuration.
struct Configured {
    name: &'static str,
    /// Its table, for the program that plays it.
    table: fn(&Path) -> String,
    /// What it pays with.
    key: &'static str,
}

/// What pays for the command of the user's own.
const CUSTOM_KEY: &str = "CUSTODY_CUSTOM_KEY";

/// The same for one that is talked to.
const TALKER_KEY: &str = "CUSTODY_TALKER_KEY";

static CONFIGURED: &[Configured] = &[
    Configured {
        name: "custom",
        table: |player| {
            format!(
                "[agents.custom]\ncommand = [{:?}, \"exec\", \"--json\", \"-\"]\noutput = \"codex\"\npay_env = [\"{CUSTOM_KEY}\"]\n",
                player.display().to_string()
            )
        },
        key: CUSTOM_KEY,
    },
    Configured {
        name: "acp",
        table: |player| {
            format!(
                "[agents.acp]\ncommand = [{:?}, \"--acp\"]\noutput = \"acp\"\npay_env = [\"{TALKER_KEY}\"]\n",
                player.display().to_string()
            )
        },
        key: TALKER_KEY,
    },
];

enum Kind {
    Known(CliAgent),
    Configured(&'static Configured),
}

/// One agent that the scripted one plays.
#[doc(hidden)]
pub struct AgentPart(Kind);

impl AgentPart {
    /// All of them, in the order they are told.
    pub fn all() -> impl Iterator<Item = Self> {
        let known = CliAgent::all().map(|agent| Self(Kind::Known(agent)));
        known.chain(CONFIGURED.iter().map(|row| Self(Kind::Configured(row))))
    }

    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|part| part.name() == name)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        match &self.0 {
            Kind::Known(agent) => agent.name(),
            Kind::Configured(row) => row.name,
        }
    }

    /// A world whose consults it answers. What pays for it is there, and is withheld unless a cell says otherwise.
    pub(super) fn in_world(&self, mut rig: Rig) -> Rig {
        rig.set("PHONE_OPUS_AGENT", self.name());
        if let Kind::Configured(row) = &self.0 {
            let table = (row.table)(&rig.player());
            rig.configure(&table);
        }
        if let Some(key) = self.key() {
            rig.set(key, KEY);
        }
        rig
    }

    /// Whether it says itself who pays.
    pub(super) fn names_its_payer(&self) -> bool {
        match &self.0 {
            Kind::Known(agent) => agent.payer() == PayerKnown::InStream,
            Kind::Configured(_) => false,
        }
    }

    /// Whether it takes a prompt of so many bytes.
    pub(super) fn takes(&self, bytes: usize) -> bool {
        let Kind::Known(agent) = &self.0 else { return true };
        let request = ConsultRequest::new("x".repeat(bytes));
        let refused = agent.check(&request, &Environment::default()).err();
        refused.is_none_or(|fault| fault.code != FaultCode::PromptTooLarge)
    }

    /// The first name a key for it may be in.
    pub(super) fn key(&self) -> Option<&'static str> {
        match &self.0 {
            Kind::Known(agent) => agent.key(),
            Kind::Configured(row) => Some(row.key),
        }
    }

    /// The names that reach it under this choice, of all that any agent pays or is logged in with.
    pub(super) fn is_handed(&self, secret: &str, billing: Billing) -> bool {
        match &self.0 {
            Kind::Known(agent) => agent.is_handed(secret, billing),
            Kind::Configured(row) => secret == row.key && billing == Billing::ApiKey,
        }
    }
}

/// The names of everything that any agent pays or is logged in with, by the agents' own lists.
pub(super) fn secrets() -> BTreeSet<&'static str> {
    let known = CliAgent::all().flat_map(|agent| agent.secrets().collect::<Vec<_>>());
    known.chain(CONFIGURED.iter().map(|row| row.key)).collect()
}

/// Those of them that switch to an account of a cloud provider.
pub(super) fn switches() -> BTreeSet<&'static str> {
    CliAgent::all().flat_map(|agent| agent.switches().collect::<Vec<_>>()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_agent_has_a_part_and_what_is_one_agents_own_is_no_others() {
        let names: Vec<String> = AgentPart::all().map(|part| part.name().to_owned()).collect();
        let known: Vec<String> = CliAgent::all().map(|agent| agent.name().to_owned()).collect();
        assert_eq!(names[..known.len()], known);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert!(AgentPart::named("claude").is_some() && AgentPart::named("oracle").is_none());
        let all = secrets();
        for name in ["ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "AWS_SECRET_ACCESS_KEY", CUSTOM_KEY] {
            assert!(all.contains(name), "{name}");
        }
        for part in AgentPart::all() {
            let handed = |name, billing| part.is_handed(name, billing);
            for (name, owners) in [
                ("ANTHROPIC_API_KEY", &["claude"][..]),
                ("OPENAI_API_KEY", &["codex", "qwen"]),
                ("COPILOT_PROVIDER_API_KEY", &["copilot"]),
                (CUSTOM_KEY, &["custom"]),
            ] {
                assert!(!handed(name, Billing::Subscription), "{name} and {}", part.name());
                // One that speaks to several vendors has keys of several.
                if owners.contains(&part.name()) {
                    assert!(handed(name, Billing::ApiKey), "{name} and {}", part.name());
                }
            }
            for name in ["claude", "codex", "copilot", "gemini", "qwen"].into_iter().filter(|name| *name == part.name())
            {
                let others = if name == "claude" { "OPENAI_API_KEY" } else { "ANTHROPIC_API_KEY" };
                assert!(!handed(others, Billing::ApiKey), "{others} and {name}");
            }
        }
    }
}
