//! Configuration: every number and path a user may choose, where each comes from, and what is accepted.
//!
//! Owns: the keys with their defaults and bounds (one table, `keys`), the order of precedence (flags > environment > user file >
//! defaults), and what a project's file may do (`project`). May not know: who uses a value. Nothing here reads the process's
//! environment; it is passed in.
//!
//! Invariant: an unknown key or a bad value of the user's is an error that names its place and the nearest known key. A
//! project's file is no layer.

pub mod clients;
mod keys;
mod kinds;
mod otlp;
mod programs;
mod project;
mod sites;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use self::keys::{Config, Key, Settings};
pub use self::kinds::Words;
pub use self::otlp::{CollectorUrl, OtlpTarget};
pub use self::programs::{PROGRAM_KEYS, ProgramKey};
pub use self::project::{LeftOut, PROJECT_FILE};
pub use self::sites::AgentSettings;
use crate::base::nearest::nearest;

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ConfigError {
    /// The file, variable or flag.
    pub place: String,
    /// What is wrong with it and what is accepted.
    pub problem: String,
}

/// Bytes of a configuration file; real ones have a few hundred.
pub const FILE_BYTES: usize = 64 * 1024;

/// Where tools run that a worker executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WorkerIsolation {
    /// In the host's own process: fastest; a panic is survived.
    #[default]
    InProcess,
    /// In a process of their own: an abort, a stack overflow, a blocked thread are survived too.
    Process,
}

impl WorkerIsolation {
    /// The word of the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InProcess => "in_process",
            Self::Process => "process",
        }
    }
}

/// When a new file at the launch path is adopted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RolloutMode {
    /// When it is there and passes the check, and when somebody asks.
    #[default]
    Auto,
    /// Only when somebody asks.
    OnRequest,
    /// Never.
    Off,
}

impl Config {
    /// Lays sources over the defaults, the strongest last.
    ///
    /// # Errors
    ///
    /// The first value that is out of bounds, with its place.
    #[doc(hidden)]
    pub fn from_sources(sources: &[(String, Settings)]) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        for (place, settings) in sources {
            if let Some((_, problem)) = config.lay(settings).into_iter().next() {
                return Err(ConfigError { place: place.clone(), problem });
            }
        }
        Ok(config)
    }

    /// Whether these settings ask for something else than what is in force here; what cannot be used does.
    #[must_use]
    #[doc(hidden)]
    pub fn differs_from(&self, settings: &Settings) -> bool {
        let mut asked = self.clone();
        !asked.lay(settings).is_empty() || asked != *self
    }

    /// The same under the settings that one session brings.
    ///
    /// # Errors
    ///
    /// Every key whose value is not accepted.
    #[doc(hidden)]
    pub fn under(mut self, settings: &Settings) -> Result<Self, Vec<&'static Key>> {
        let refused: Vec<&'static Key> = self.lay(settings).into_iter().map(|(key, _)| key).collect();
        if refused.is_empty() { Ok(self) } else { Err(refused) }
    }
}

impl Settings {
    /// Reads a configuration file's text.
    ///
    /// # Errors
    ///
    /// The place (file and line) and what is wrong, with the nearest known key for an unknown one.
    pub fn from_toml(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let failed = |problem: String| ConfigError { place: path.display().to_string(), problem };
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| failed(error.to_string()))?;
        if let Some(key) = table.keys().find(|key| Key::named(key).is_none()) {
            return Err(failed(unknown(key)));
        }
        toml::from_str(text).map_err(|error| failed(error.to_string().trim_end().to_owned()))
    }
}

/// Variables an agent may be handed by name; nobody has more than a few.
const AGENT_ENV_MOST: usize = 64;

fn unknown(key: &str) -> String {
    let known: Vec<&str> = Key::ALL.iter().map(|key| key.name).collect();
    match nearest(key, &known) {
        Some(near) => format!("unknown key {key:?} (did you mean {near}?)"),
        None => format!("unknown key {key:?}; accepted: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests;
