//! The keys that name agents' programs.
//!
//! Owns: which key is which agent's ([`PROGRAM_KEYS`]), so that nobody else needs to know them one by one. May not know: who uses a
//! program.

use std::path::PathBuf;

use super::keys::{Config, Key, Settings};
use crate::agents::AgentPrograms;

/// A key that names an agent's program.
#[derive(Debug)]
pub struct ProgramKey {
    /// The agent.
    pub agent: &'static str,
    /// The key.
    pub key: &'static Key,
    config: fn(&Config) -> &Option<PathBuf>,
    config_mut: fn(&mut Config) -> &mut Option<PathBuf>,
    settings: fn(&Settings) -> &Option<PathBuf>,
    settings_mut: fn(&mut Settings) -> &mut Option<PathBuf>,
}

macro_rules! program_keys {
    ($($agent:literal => $key:ident;)*) => {
        /// All of them.
        pub const PROGRAM_KEYS: &[ProgramKey] = &[$(ProgramKey {
            agent: $agent,
            key: &Key::$key,
            config: |config| &config.$key,
            config_mut: |config| &mut config.$key,
            settings: |settings| &settings.$key,
            settings_mut: |settings| &mut settings.$key,
        },)*];
    };
}

program_keys! {
    "claude" => claude_bin;
    "codex" => codex_bin;
    "copilot" => copilot_bin;
    "gemini" => gemini_bin;
    "opencode" => opencode_bin;
    "qwen" => qwen_bin;
}

impl Config {
    /// The programs that are configured.
    #[must_use]
    #[doc(hidden)]
    pub fn programs(&self) -> AgentPrograms {
        let of = |row: &ProgramKey| Some((row.agent.to_owned(), (row.config)(self).clone()?));
        PROGRAM_KEYS.iter().filter_map(of).collect()
    }

    /// The same configuration with these programs and no others.
    #[must_use]
    #[doc(hidden)]
    pub fn with_programs(mut self, programs: &AgentPrograms) -> Self {
        for row in PROGRAM_KEYS {
            *(row.config_mut)(&mut self) = programs.get(row.agent).cloned();
        }
        self
    }
}

impl Settings {
    /// The programs that are set, with their keys.
    #[doc(hidden)]
    pub fn programs(&self) -> impl Iterator<Item = (&'static ProgramKey, &PathBuf)> {
        PROGRAM_KEYS.iter().filter_map(|row| Some((row, (row.settings)(self).as_ref()?)))
    }

    /// Takes over what these set of the program of this key; whether it is one.
    #[doc(hidden)]
    pub fn take_program(&mut self, key: &str, from: &mut Self) -> bool {
        let Some(row) = PROGRAM_KEYS.iter().find(|row| row.key.name == key) else { return false };
        *(row.settings_mut)(self) = (row.settings_mut)(from).take();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agents::{Agent as _, CliAgent};

    #[test]
    fn every_agent_that_is_a_program_has_its_key_and_its_variable() {
        let agents: Vec<String> = CliAgent::all().map(|agent| agent.name().to_owned()).collect();
        assert_eq!(PROGRAM_KEYS.iter().map(|row| row.agent.to_owned()).collect::<Vec<_>>(), agents);
        for row in PROGRAM_KEYS {
            assert_eq!(row.key.name, format!("{}_bin", row.agent));
        }
    }

    #[test]
    fn programs_are_taken_out_and_put_back_as_they_were() {
        let programs: AgentPrograms =
            [("claude", "/a"), ("codex", "/b")].map(|(agent, path)| (agent.to_owned(), path.into())).into();
        let config = Config::default().with_programs(&programs);
        assert_eq!(config.programs(), programs);
        assert_eq!(config.with_programs(&AgentPrograms::new()), Config::default());
        let mut from = Settings { codex_bin: Some("/b".into()), ..Settings::default() };
        let mut settings = Settings::default();
        assert!(settings.take_program("codex_bin", &mut from) && !settings.take_program("billing", &mut from));
        assert_eq!(
            settings.programs().map(|(row, path)| (row.agent, path.clone())).collect::<Vec<_>>(),
            [("codex", "/b".into())]
        );
    }
}
