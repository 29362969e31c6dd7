//! Agents whose process runs on another machine.
//!
//! Owns: what is known of such a machine ([`AgentSite`]), and an agent as it is there ([`AgentElsewhere`]): on the machine of an exec
//! server that the configuration names, or on one of the program's own. May not know: how the machine is reached, what a
//! configuration looks like.
//!
//! Invariants: (1) of the caller's environment nothing travels that says where something is, and nothing that every agent gets:
//! that machine has its own; (2) what is known of a program there is kept apart from what is known of one here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, TryFutureExt as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::environment::Environment;
use super::{
    Agent, AgentCommand, AgentEvent, AgentProfile, AgentRegistry, OutputParser, PayerKnown, Payment, RunEnd,
    RunRequest, RunVerdict,
};
use crate::base::fault::{Fault, FaultClass};
use crate::exec::ExecTarget;
use crate::exec::machine::Machine;
use crate::jobs::Billing;

/// Bytes kept of a digest that tells accounts of other machines apart; as for those of this one.
const ACCOUNT_BYTES: usize = 12;

/// Where an agent's process runs, when that is not here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSite {
    /// Which agent it is: a name of one that runs here.
    pub agent: String,
    /// How its machine is reached.
    pub target: ExecTarget,
    /// The file with the token it is reached by.
    pub token_file: Option<PathBuf>,
    /// Its program there: an absolute path, or a name to be looked up.
    pub program: Option<String>,
    /// The directories there that it may look into; never empty.
    pub workspaces: Vec<PathBuf>,
}

impl AgentSite {
    /// Whether its machine is one of the program's own.
    #[must_use]
    #[doc(hidden)]
    pub fn is_own(&self) -> bool {
        matches!(self.target, ExecTarget::Own { .. })
    }
}

/// Agents that a configuration can send to another machine.
pub const SITE_AGENTS: &[&str] = &["claude", "codex", "offline"];

/// The agents of other machines, by the names callers use.
pub type AgentSites = BTreeMap<String, AgentSite>;

impl AgentRegistry {
    /// The same agents, with those of other machines. One of a known name takes the place of the one here.
    #[must_use]
    #[doc(hidden)]
    pub fn with_sites(&self, sites: &AgentSites) -> Self {
        let mut all = self.clone();
        for (name, site) in sites {
            if self.get(name).is_ok_and(|known| known.site() == Some(site)) {
                continue;
            }
            if let Ok(agent) = self.get(&site.agent) {
                let (name, site) = (name.clone(), Arc::new(site.clone()));
                all = all.with(Arc::new(AgentElsewhere { name, agent, site, machine: None }));
            }
        }
        all
    }

    /// The agents that run on machines of the program's own, as a configuration would have them.
    #[must_use]
    #[doc(hidden)]
    pub fn own_sites(&self) -> AgentSites {
        let own = self.agents.iter().filter(|agent| agent.machine().is_some());
        own.filter_map(|agent| Some((agent.name().to_owned(), agent.site()?.clone()))).collect()
    }
}

/// An agent whose process runs on another machine: what it is asked and what it says are as anywhere.
///
/// A configuration names machines with an exec server (`agents.NAME`). A program that has a [`Machine`] of its own says here which
/// agent runs there, and adds it to its [`Registry`](crate::process::Registry) as it adds any agent. As on every other machine, the
/// caller's environment stays here but for what the agent itself needs, and a directory is that machine's: it has to lie below
/// a workspace that is named here, and no ignore file or project file of this machine is looked at.
pub struct AgentElsewhere {
    name: String,
    agent: Arc<dyn Agent>,
    site: Arc<AgentSite>,
    /// The machine, where it is the program's own.
    machine: Option<Arc<dyn Machine>>,
}

impl AgentElsewhere {
    /// An agent on a machine of your own, under a name of its own; under the name of one that runs here it takes that one's place.
    #[must_use]
    pub fn new(name: impl Into<String>, agent: impl Agent + 'static, machine: impl Machine) -> Self {
        let site = AgentSite {
            agent: agent.name().to_owned(),
            target: ExecTarget::Own { name: machine.name().to_owned() },
            token_file: None,
            program: None,
            workspaces: Vec::new(),
        };
        let (agent, machine) = (Arc::new(agent), Some(Arc::new(machine) as Arc<dyn Machine>));
        Self { name: name.into(), agent, site: Arc::new(site), machine }
    }

    /// With a directory there that consults may look into, and what lies below it. Without one no consult can be asked.
    #[must_use]
    pub fn workspace(mut self, dir: impl Into<PathBuf>) -> Self {
        Arc::make_mut(&mut self.site).workspaces.push(dir.into());
        self
    }

    /// With the agent's program there: an absolute path, or a name that the machine looks up. When not set, Claude Code and
    /// `offline` are looked up by their names, and an agent of your own is run by the path that it prepares.
    #[must_use]
    pub fn program(mut self, program: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.site).program = Some(program.into());
        self
    }
}

impl fmt::Debug for AgentElsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentElsewhere").field("name", &self.name).field("site", &self.site).finish_non_exhaustive()
    }
}

impl Agent for AgentElsewhere {
    fn name(&self) -> &str {
        &self.name
    }

    fn site(&self) -> Option<&AgentSite> {
        Some(&self.site)
    }

    fn machine(&self) -> Option<Arc<dyn Machine>> {
        self.machine.clone()
    }

    /// Its program is looked for there, when it is run.
    fn locate(&self, _env: &Environment) -> Result<PathBuf, Fault> {
        Ok(PathBuf::from(self.site.program.as_deref().unwrap_or(self.agent.name())))
    }

    fn prepare<'a>(
        &'a self,
        run: &'a RunRequest<'a>,
        state_dir: &'a Path,
    ) -> BoxFuture<'a, Result<AgentCommand, Fault>> {
        // Those that a configuration can send elsewhere look for themselves there.
        let named = self.site.program.as_ref().filter(|_| !SITE_AGENTS.contains(&self.agent.name()));
        let prepared = self.agent.prepare(run, state_dir);
        match named {
            None => prepared,
            Some(program) => prepared.map_ok(|command| AgentCommand { program: program.into(), ..command }).boxed(),
        }
    }

    fn needs(&self, environment: &Environment, billing: Billing) -> Environment {
        self.agent.needs(environment, billing)
    }

    fn under(&self, program: Option<&Path>, variables: &[String]) -> Option<Arc<dyn Agent>> {
        let agent = self.agent.under(program, variables)?;
        let (name, site, machine) = (self.name.clone(), Arc::clone(&self.site), self.machine.clone());
        Some(Arc::new(Self { name, agent, site, machine }))
    }

    fn forget(&self, program: &Path, state_dir: &Path) {
        self.agent.forget_there(&self.site.target, program, state_dir);
    }

    fn parser(&self) -> Box<dyn OutputParser> {
        self.agent.parser()
    }

    fn payer(&self) -> PayerKnown {
        self.agent.payer()
    }

    /// A login that travels is the caller's wherever it is used; without one it is that machine's own.
    fn account(&self, env: &Environment, billing: Billing) -> String {
        if self.agent.brings_a_login(env, billing) {
            return self.agent.account(env, billing);
        }
        if self.agent.account(env, billing).is_empty() {
            return String::new();
        }
        let mut digest = Sha256::new();
        digest.update(self.site.target.to_string().as_bytes());
        digest.finalize().iter().take(ACCOUNT_BYTES).map(|byte| format!("{byte:02x}")).collect()
    }

    fn check_start(&self, started: &AgentEvent, payment: Payment) -> Result<(), Fault> {
        self.agent.check_start(started, payment)
    }

    fn profile(&self) -> AgentProfile {
        self.agent.profile()
    }

    /// As anywhere; what is wrong with the agent is to be looked for where it ran.
    fn classify(&self, end: RunEnd) -> RunVerdict {
        let mut verdict = self.agent.classify(end);
        if let Some(fault) = &mut verdict.outcome.fault
            && fault.class == FaultClass::Downstream
        {
            fault.detail = format!("{} It ran on another machine: {}.", fault.detail, self.site.target);
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::{ClaudeCode, Offline, StopCause};
    use crate::base::fault::FaultCode;
    use crate::exec::TargetWords;
    use crate::jobs::JobState;

    fn site(agent: &str, target: &str) -> AgentSite {
        AgentSite {
            agent: agent.to_owned(),
            target: ExecTarget::parse(&TargetWords::Text(target.to_owned())).expect("a target"),
            token_file: None,
            program: None,
            workspaces: vec!["/srv".into()],
        }
    }

    fn registry() -> AgentRegistry {
        let here = AgentRegistry::new().with(Arc::new(ClaudeCode::default())).with(Arc::new(Offline::new("/p".into())));
        let sites =
            [("box".to_owned(), site("claude", "unix:/box")), ("claude".to_owned(), site("claude", "unix:/two"))];
        here.with_sites(&sites.into_iter().collect())
    }

    #[test]
    fn an_agent_of_another_machine_is_one_more_or_stands_for_the_one_here() {
        let all = registry();
        assert_eq!(all.names(), ["claude", "offline", "box"]);
        let target = |name: &str| all.get(name).expect("known").site().map(|site| site.target.to_string());
        assert_eq!(target("box").as_deref(), Some("unix:/box"));
        assert_eq!(target("claude").as_deref(), Some("unix:/two"), "the one here, and not itself, is what runs there");
        assert_eq!(target("offline"), None);
        let under = all.under(&[("claude".to_owned(), "/mine".into())].into_iter().collect(), &["MINE".to_owned()]);
        let still = under.get("box").expect("known");
        assert_eq!((still.name(), still.site().is_some()), ("box", true));
    }

    #[test]
    fn the_login_of_another_machine_is_an_account_of_its_own_and_one_that_travels_is_the_callers() {
        let all = registry();
        let account = |name: &str, variables: &[(&str, &str)], billing| {
            let env: Environment = variables.iter().copied().collect();
            all.get(name).expect("known").account(&env, billing)
        };
        let home = [("HOME", "/home/one")];
        let there = account("box", &home, Billing::Subscription);
        assert_ne!(there, account("claude", &home, Billing::Subscription), "two machines");
        assert_eq!(there, account("box", &[("HOME", "/home/two")], Billing::Subscription), "whoever asks");
        let key = [("HOME", "/home/one"), ("ANTHROPIC_API_KEY", "k")];
        assert_eq!(there, account("box", &key, Billing::Subscription), "a key that is withheld");
        assert_eq!(account("box", &key, Billing::ApiKey), account("claude", &key, Billing::ApiKey), "one key");
        let token = [("CLAUDE_CODE_OAUTH_TOKEN", "t")];
        assert_eq!(account("box", &token, Billing::Subscription), account("claude", &token, Billing::Subscription));
    }

    #[test]
    fn what_is_wrong_with_an_agent_names_its_machine_and_what_is_not_its_fault_does_not() {
        let there = registry().get("box").expect("known");
        let missing = RunEnd { spawn_error: Some(crate::agents::SpawnFailure::Missing), ..RunEnd::default() };
        let fault = there.classify(missing).outcome.fault.expect("a fault");
        assert_eq!(fault.code, FaultCode::AgentMissing);
        assert!(fault.detail.contains("unix:/box"), "{}", fault.detail);
        let late = there.classify(RunEnd { stop: Some(StopCause::Deadline), ..RunEnd::default() });
        assert_eq!(late.state, JobState::Cancelled);
        assert!(!late.outcome.fault.expect("a fault").detail.contains("unix:"));
    }
}
