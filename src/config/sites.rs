//! The table of an agent on another machine, or of one that is a command of the user's own, as a user's file writes it.
//!
//! Owns: its keys, and what of them is refused. May not know: how a machine is reached, how a command is run.
//!
//! Invariant: it stands in the user's file and nowhere else: no variable, no flag, no session and no project names a machine or a
//! command.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::keys::Key;
use super::kinds::{Kind, Lay, listed};
use super::programs::PROGRAM_KEYS;
use crate::agents::{AgentSite, AgentSites, CustomAgent, CustomAgents, SITE_AGENTS, variable_refused};
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
    /// The program and its arguments, of an agent of the user's own.
    pub command: Option<Vec<String>>,
    /// How it writes its answer.
    pub output: Option<String>,
    /// The variables it is handed.
    pub env: Option<Vec<String>>,
    /// The variables it pays with.
    pub pay_env: Option<Vec<String>>,
    /// What keeps it to reading.
    pub reads: Option<String>,
}

impl AgentSettings {
    /// What it comes to.
    ///
    /// # Errors
    ///
    /// The key, what is wrong with it, and what is accepted.
    fn site(&self, name: &str) -> Result<AgentSite, (&'static str, String)> {
        let agent = self.agent.clone().unwrap_or_else(|| name.to_owned());
        let own = [
            ("output", self.output.is_some()),
            ("env", self.env.is_some()),
            ("pay_env", self.pay_env.is_some()),
            ("reads", self.reads.is_some()),
        ];
        if let Some((key, _)) = own.iter().find(|(_, given)| *given) {
            return Err((key, "is for an agent with a `command`; accepted: to leave it out".to_owned()));
        }
        if !SITE_AGENTS.contains(&agent.as_str()) {
            let near = nearest(&agent, SITE_AGENTS).map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
            let wrong =
                if self.agent.is_some() { "is no agent" } else { "is missing, and the table's name is no agent" };
            return Err(("agent", format!("{wrong}{near}; accepted: {}", SITE_AGENTS.join(", "))));
        }
        let Some(words) = &self.exec else {
            let here = match PROGRAM_KEYS.iter().find(|row| row.agent == agent) {
                Some(row) => format!("; for its program on this machine set {} instead", row.key.name),
                None => String::new(),
            };
            return Err(("exec", format!("is missing; accepted: {}{here}", crate::exec::target::FORMS)));
        };
        let target = ExecTarget::parse(words).map_err(|wrong| ("exec", wrong))?;
        if matches!(target, ExecTarget::Own { .. }) {
            let wrong = "is a machine of a program's own, which that program gives its agents";
            return Err(("exec", format!("{wrong}; accepted: {}", crate::exec::target::FORMS)));
        }
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

/// Words of a command, and bytes of all of them: a command line, and no program in itself.
const WORDS_MOST: usize = 64;
const COMMAND_BYTES: usize = 4096;

/// Characters of what keeps an agent to reading.
const READS_CHARS: usize = 200;

impl AgentSettings {
    /// The agent of the user's own it comes to.
    ///
    /// # Errors
    ///
    /// The key, what is wrong with it, and what is accepted.
    fn custom(&self, command: &[String]) -> Result<CustomAgent, (&'static str, String)> {
        let elsewhere = [
            ("agent", self.agent.is_some()),
            ("exec", self.exec.is_some()),
            ("exec_token_file", self.exec_token_file.is_some()),
            ("program", self.program.is_some()),
            ("workspaces", self.workspaces.is_some()),
        ];
        if let Some((key, _)) = elsewhere.iter().find(|(_, given)| *given) {
            return Err((key, "stands beside `command`; accepted: one of the two".to_owned()));
        }
        let accepted = format!(
            "accepted: a program, by its absolute path or its name, and its arguments, as [\"llm\", \"-m\", \"x\"]; up to {WORDS_MOST} words"
        );
        let program = command.first().map(String::as_str).unwrap_or_default();
        let relative = program.contains('/') && !program.starts_with('/');
        if program.is_empty() || relative || program.starts_with('-') {
            return Err(("command", format!("begins with {program:?}; {accepted}")));
        }
        let bytes: usize = command.iter().map(String::len).sum();
        if command.len() > WORDS_MOST || bytes > COMMAND_BYTES || command.iter().any(|word| word.contains('\0')) {
            return Err(("command", format!("has {} words and {bytes} bytes; {accepted}", command.len())));
        }
        let output = self.output.clone().unwrap_or_else(|| CustomAgent::TEXT.to_owned());
        let known: Vec<&str> = CustomAgent::outputs().collect();
        if !known.contains(&output.as_str()) {
            let near = nearest(&output, &known).map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
            return Err(("output", format!("is {output:?}{near}; accepted: {}", known.join(", "))));
        }
        let (env, pay_env) = (self.env.clone().unwrap_or_default(), self.pay_env.clone().unwrap_or_default());
        for name in &env {
            if let Some(why) = variable_refused(name) {
                let pays = if why.contains("money") { "; name it as `pay_env` instead" } else { "" };
                return Err(("env", format!("holds {}, which {why}{pays}", shown(name))));
            }
        }
        for name in &pay_env {
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.is_empty();
            if !plain || name.starts_with("PHONE_OPUS_") {
                return Err((
                    "pay_env",
                    format!("holds {}; accepted: names of variables that are not ours", shown(name)),
                ));
            }
        }
        let reads = self.reads.clone();
        if reads
            .as_ref()
            .is_some_and(|reads| reads.chars().count() > READS_CHARS || reads.chars().any(char::is_control))
        {
            return Err(("reads", format!("is too long; accepted: one line of up to {READS_CHARS} characters")));
        }
        Ok(CustomAgent { command: command.to_vec(), output, env, pay_env, reads })
    }
}

fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(60).collect()
}

/// Takes in the tables that name a command.
pub(super) fn lay_customs(
    key: &Key,
    tables: &BTreeMap<String, AgentSettings>,
    field: &mut CustomAgents,
) -> Result<(), String> {
    let key = key.name;
    for (name, settings) in tables {
        let Some(command) = &settings.command else { continue };
        if PROGRAM_KEYS.iter().any(|row| row.agent == name) || SITE_AGENTS.contains(&name.as_str()) {
            return Err(format!(
                "{key}.{name}.command is a command under the name of an agent there is; accepted: another name"
            ));
        }
        let custom = settings.custom(command).map_err(|(of, wrong)| format!("{key}.{name}.{of} {wrong}"))?;
        field.insert(name.clone(), custom);
    }
    if field.len() > SITES_MOST {
        return Err(format!("{key} has {} tables with a command; accepted: up to {SITES_MOST}", field.len()));
    }
    Ok(())
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
            if settings.command.is_some() {
                continue;
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
            (plain("workspaces = [\"/srv\"]\n"), &["agents.box.agent", "is missing", "claude, codex, offline"]),
            (plain("agent = \"cluade\"\nworkspaces = [\"/srv\"]\n"), &["agents.box.agent", "did you mean claude?"]),
            (plain("agent = \"claude\"\n"), &["agents.box.workspaces", "at least one"]),
            (plain("agent = \"claude\"\nworkspaces = [\"srv\"]\n"), &["agents.box.workspaces holds srv"]),
            (plain("agent = \"claude\"\nworkspaces = [\"/srv/../x\"]\n"), &["agents.box.workspaces"]),
            (
                plain("agent = \"claude\"\nworkspaces = [\"/home/u/.ssh\"]\n"),
                &["agents.box.workspaces", "store of secrets"],
            ),
            (with("").replace("agents.box", "agents.Box"), &["a table \"Box\"", "small letters"]),
            (with("output = \"text\"\n"), &["agents.box.output", "`command`"]),
            (
                "[agents.codex]\nprogram = \"/opt/codex\"\n".to_owned(),
                &["agents.codex.exec is missing", "set codex_bin instead"],
            ),
        ] {
            let said = read(&text).expect_err(&text);
            assert!(said.starts_with("config.toml: "), "{said}");
            assert!(wants.iter().all(|want| said.contains(want)), "{wants:?} in {said}");
        }
    }

    #[test]
    fn a_command_of_the_users_own_is_a_table_too() {
        let config = read(
            "[agents.llm]\ncommand = [\"llm\", \"-m\", \"local; rm -r x\"]\nenv = [\"LLM_USER_PATH\"]\npay_env = [\"OPENAI_API_KEY\"]\n\
             reads = \"it has no tools\"\n[agents.wrapped]\ncommand = [\"/opt/wrapped\"]\noutput = \"codex\"\n",
        )
        .expect("accepted");
        let one = &config.customs["llm"];
        assert_eq!((one.command.len(), one.command[2].as_str(), one.output.as_str()), (3, "local; rm -r x", "text"));
        assert_eq!((one.env.len(), one.pay_env.len(), one.reads.as_deref()), (1, 1, Some("it has no tools")));
        assert_eq!((config.customs["wrapped"].output.as_str(), config.agents.len()), ("codex", 0));
    }

    #[test]
    fn what_is_wrong_with_a_command_names_its_place_and_what_is_accepted() {
        let table = |rest: &str| format!("[agents.mine]\n{rest}\n");
        let with = |line: &str| table(&format!("command = [\"llm\"]\n{line}"));
        for (text, wants) in [
            (table("command = []"), &["agents.mine.command", "a program"][..]),
            (table("command = \"llm -m x\""), &["line 2"]),
            (table("command = [\"bin/llm\"]"), &["agents.mine.command", "absolute path"]),
            (table("command = [\"-x\"]"), &["agents.mine.command"]),
            (with("output = \"clade\""), &["agents.mine.output", "did you mean claude?", "text, acp, claude, codex"]),
            (with("env = [\"OPENAI_API_KEY\"]"), &["agents.mine.env", "OPENAI_API_KEY", "money", "`pay_env`"]),
            (with("env = [\"PHONE_OPUS_X\"]"), &["agents.mine.env", "own"]),
            (with("pay_env = [\"A=B\"]"), &["agents.mine.pay_env"]),
            (with("exec = \"unix:/x\""), &["agents.mine.exec", "one of the two"]),
            (with("program = \"/x\""), &["agents.mine.program", "one of the two"]),
            (with("reads = \"a\\nb\""), &["agents.mine.reads"]),
            (with("").replace("agents.mine", "agents.codex"), &["agents.codex.command", "another name"]),
            (with("").replace("agents.mine", "agents.offline"), &["agents.offline.command", "another name"]),
            (with("").replace("agents.mine", "agents.Mine"), &["a table \"Mine\"", "small letters"]),
        ] {
            let said = read(&text).expect_err(&text);
            assert!(wants.iter().all(|want| said.contains(want)), "{wants:?} in {said}");
        }
    }
}
