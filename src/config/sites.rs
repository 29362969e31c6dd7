//! The table of an agent on another machine, as a user's file writes it.
//!
//! Owns: its keys, and what of them is refused. May not know: how a machine is reached.
//!
//! Invariant: it stands in the user's file and nowhere else: no variable, no flag, no session and no project names a machine.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::keys::Key;
use super::kinds::{Kind, Lay, listed};
use crate::agents::{AgentSite, AgentSites, SITE_AGENTS};
use crate::base::nearest::nearest;
use crate::exec::{ExecTarget, TargetWords};
use crate::places;

/// Agents on other machines; nobody has more than a few.
const SITES_MOST: usize = 32;

/// Directories of one of them.
const WORKSPACES_MOST: usize = 64;

/// What the user's file says of one agent, in its table `agents.NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentSettings {
    /// Which agent it is; that of its own name when not said.
    pub agent: Option<String>,
    /// How its machine is reached.
    pub exec: Option<TargetWords>,
    /// The file with the token it is reached by.
    pub exec_token_file: Option<PathBuf>,
    /// Its program there.
    pub program: Option<String>,
    /// The directories there that it may look into.
    pub workspaces: Option<Vec<PathBuf>>,
}

impl AgentSettings {
    /// What it comes to.
    ///
    /// # Errors
    ///
    /// The key, what is wrong with it, and what is accepted.
    fn site(&self, name: &str) -> Result<AgentSite, (&'static str, String)> {
        let agent = self.agent.clone().unwrap_or_else(|| name.to_owned());
        if !SITE_AGENTS.contains(&agent.as_str()) {
            let near = nearest(&agent, SITE_AGENTS).map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
            let wrong =
                if self.agent.is_some() { "is no agent" } else { "is missing, and the table's name is no agent" };
            return Err(("agent", format!("{wrong}{near}; accepted: {}", SITE_AGENTS.join(", "))));
        }
        let Some(words) = &self.exec else {
            return Err(("exec", format!("is missing; accepted: {}", crate::exec::target::FORMS)));
        };
        let target = ExecTarget::parse(words).map_err(|wrong| ("exec", wrong))?;
        if let Some(file) = &self.exec_token_file {
            let accepted = "accepted: the absolute path of a file that is yours alone (mode 0600)";
            if !file.is_absolute() {
                return Err(("exec_token_file", format!("is {}; {accepted}", file.display())));
            }
            if !target.takes_a_token() {
                let wrong = "is for ws:// and wss://; who may come in by a socket's file or a program is seen to there";
                return Err(("exec_token_file", format!("{wrong}; accepted: to leave it out")));
            }
        }
        if let Some(program) = &self.program {
            let relative = program.contains('/') && !program.starts_with('/');
            if program.is_empty() || relative || program.contains('\0') || program.starts_with('-') {
                return Err(("program", format!("is {program:?}; accepted: an absolute path there, or a name")));
            }
        }
        let workspaces = self.workspaces.clone().unwrap_or_default();
        let accepted = "accepted: absolute directories of that machine, at least one";
        if workspaces.is_empty() || workspaces.len() > WORKSPACES_MOST {
            return Err(("workspaces", format!("lists {} directories; {accepted}", workspaces.len())));
        }
        if let Some(wrong) = workspaces.iter().find(|dir| !is_plain(dir)) {
            return Err(("workspaces", format!("holds {}; {accepted}", wrong.display())));
        }
        if let Some(secret) = workspaces.iter().find(|dir| places::is_secret(dir)) {
            let wrong = places::PlaceRefused::Secrets.wrong();
            return Err(("workspaces", format!("holds {}, which {wrong}; {accepted}", secret.display())));
        }
        let (token_file, program) = (self.exec_token_file.clone(), self.program.clone());
        Ok(AgentSite { agent, target, token_file, program, workspaces })
    }
}

/// Whether a path can be judged without asking its machine.
fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// Whether callers can name an agent so: it stands before the colon of a job's directory.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    (1..=32).contains(&name.len()) && name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(plain)
}

/// A table for each agent on another machine. In files only.
#[derive(Debug)]
pub(super) struct PerAgent;

impl Kind for PerAgent {
    type Raw = BTreeMap<String, AgentSettings>;

    const VARIABLE: bool = false;

    fn from_variable(_: OsString) -> Result<Self::Raw, String> {
        Err("is a table, which no variable holds".to_owned())
    }

    fn accepted(_: Option<&RangeInclusive<u64>>) -> String {
        "a table; in files only".to_owned()
    }
}

impl Lay<AgentSites> for PerAgent {
    fn lay(key: &Key, raw: &Self::Raw, field: &mut AgentSites) -> Result<(), String> {
        let key = key.name;
        for (name, settings) in raw {
            if !is_name(name) {
                let accepted = "up to 32 small letters, digits, - and _, the first a letter";
                return Err(format!("{key} has a table {name:?}; accepted: {accepted}"));
            }
            let site = settings.site(name).map_err(|(of, wrong)| format!("{key}.{name}.{of} {wrong}"))?;
            field.insert(name.clone(), site);
        }
        if field.len() > SITES_MOST {
            return Err(format!("{key} has {} tables; accepted: up to {SITES_MOST}", field.len()));
        }
        Ok(())
    }

    fn shown(field: &AgentSites) -> String {
        listed(field.keys().cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Settings};

    fn read(text: &str) -> Result<Config, String> {
        let settings = Settings::from_toml(super::Path::new("config.toml"), text).map_err(|error| error.to_string())?;
        Config::from_sources(&[("config.toml".to_owned(), settings)]).map_err(|error| error.to_string())
    }

    #[test]
    fn an_agent_of_another_machine_is_a_table_of_the_users_file() {
        let config = read(
            "[agents.box]\nagent = \"claude\"\nexec = [\"ssh\", \"build\", \"phone-opus\", \"exec-server\", \"--listen\", \"stdio\"]\n\
             workspaces = [\"/srv/work\", \"/srv/more\"]\nprogram = \"/opt/claude\"\n\
             [agents.offline]\nexec = \"wss://build.example\"\nexec_token_file = \"/home/u/token\"\nworkspaces = [\"/srv\"]\n",
        )
        .expect("accepted");
        let one = &config.agents["box"];
        assert_eq!(one.target.to_string(), "ssh build phone-opus exec-server --listen stdio");
        assert_eq!((one.agent.as_str(), one.program.as_deref()), ("claude", Some("/opt/claude")));
        assert_eq!(one.workspaces.len(), 2);
        assert_eq!((config.agents["offline"].agent.as_str(), config.agents.len()), ("offline", 2));
        assert!(config.agents["offline"].token_file.is_some());
    }

    #[test]
    fn what_is_wrong_with_a_table_names_its_place_the_key_and_what_is_accepted() {
        let table = |rest: &str| format!("[agents.box]\nagent = \"claude\"\nworkspaces = [\"/srv\"]\n{rest}");
        let with = |line: &str| table(&format!("exec = \"unix:/x\"\n{line}"));
        let plain = |rest: &str| format!("[agents.box]\nexec = \"unix:/x\"\n{rest}");
        for (text, wants) in [
            (
                table("exec = \"ws://build.example:1\"\n"),
                &["agents.box.exec", "another machine", "wss://HOST", "unix:/PATH"][..],
            ),
            (table("exec = \"http://x\"\n"), &["agents.box.exec", "not a WebSocket", "\"ssh\""]),
            (table("exec = []\n"), &["agents.box.exec", "names no program"]),
            (table("exec = 7\n"), &["line 4"]),
            (table(""), &["agents.box.exec is missing", "wss://"]),
            (table("exce = \"unix:/x\"\n"), &["line 4", "exce", "expected one of"]),
            (with("exec_token_file = \"/t\"\n"), &["agents.box.exec_token_file", "ws:// and wss://"]),
            (with("program = \"bin/claude\"\n"), &["agents.box.program", "an absolute path there"]),
            (plain("workspaces = [\"/srv\"]\n"), &["agents.box.agent", "is missing", "claude, offline"]),
            (plain("agent = \"cluade\"\nworkspaces = [\"/srv\"]\n"), &["agents.box.agent", "did you mean claude?"]),
            (plain("agent = \"claude\"\n"), &["agents.box.workspaces", "at least one"]),
            (plain("agent = \"claude\"\nworkspaces = [\"srv\"]\n"), &["agents.box.workspaces holds srv"]),
            (plain("agent = \"claude\"\nworkspaces = [\"/srv/../x\"]\n"), &["agents.box.workspaces"]),
            (
                plain("agent = \"claude\"\nworkspaces = [\"/home/u/.ssh\"]\n"),
                &["agents.box.workspaces", "store of secrets"],
            ),
            (with("").replace("agents.box", "agents.Box"), &["a table \"Box\"", "small letters"]),
        ] {
            let said = read(&text).expect_err(&text);
            assert!(said.starts_with("config.toml: "), "{said}");
            assert!(wants.iter().all(|want| said.contains(want)), "{wants:?} in {said}");
        }
    }
}
