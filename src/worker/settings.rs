//! What a worker process is told by its host before its first call, so that the two cannot disagree.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::agents::{AgentNames, Environment};
use crate::base::ids::{ChainId, HostId};
use crate::config::Config;
use crate::places::Places;
use crate::tools::callers::{CallerContext, CallerOrigin};

/// Everything the tools of a worker process need to know. It opens no store and reads no configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerSettings {
    /// The host whose worker it is.
    pub host: HostId,
    /// Longest line on the pipes.
    pub line_limit: usize,
    /// What the consult tool needs; `None` where the host has no consults.
    pub desk: Option<DeskSettings>,
}

/// What the consult tool needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeskSettings {
    /// The numbers.
    pub config: Config,
    /// Where observations about clients are kept.
    pub observed: Option<PathBuf>,
    /// The agents, and which sessions each can go on with.
    pub agents: AgentNames,
    /// Where a consult runs that names no directory.
    pub default_cwd: Option<PathBuf>,
    /// Where its clients may look.
    pub places: Places,
    /// The chain the host itself is part of, and how deep.
    pub nesting: (Option<ChainId>, u32),
    /// Where programs are looked for, of the host's environment.
    #[serde(default)]
    pub search_path: Option<String>,
    /// What its machine is called in its fleet, where it has one.
    #[serde(default)]
    pub fleet: Option<String>,
}

/// What the tools of a worker process need to know of a session with a context of its own: of its environment where its home
/// is and where programs are looked for, and nothing else. What is no text cannot be sent, and a consult could not run there either.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallerSettings {
    /// The directory it works in.
    pub cwd: Option<PathBuf>,
    /// Its home.
    pub home: Option<PathBuf>,
    /// Where programs are looked for.
    #[serde(default)]
    pub search_path: Option<String>,
    /// The configuration its consults are under.
    pub config: Config,
    /// The chain it is part of, and how deep.
    pub nesting: (Option<ChainId>, u32),
    /// Whose environment its consults get.
    pub origin: CallerOrigin,
}

fn is_text(path: &impl AsRef<Path>) -> bool {
    path.as_ref().to_str().is_some()
}

/// What of a configuration a worker process is told; where its clients may look is told apart from it.
#[must_use]
pub fn told_config(config: &Config) -> Config {
    let programs = config.programs().into_iter().filter(|(_, path)| is_text(path)).collect();
    Config { workspaces: Vec::new(), ..Config::clone(config) }.with_programs(&programs)
}

/// Where programs are looked for, of an environment.
#[must_use]
pub fn search_path(environment: &Environment) -> Option<String> {
    environment.get("PATH").and_then(|path| path.to_str()).map(str::to_owned)
}

/// The part of an environment that a worker process is told.
#[must_use]
pub fn told_environment(home: Option<PathBuf>, search_path: Option<String>) -> Environment {
    let home = home.map(|home| ("HOME", home.into_os_string()));
    home.into_iter().chain(search_path.map(|path| ("PATH", path.into()))).collect()
}

impl From<&CallerContext> for CallerSettings {
    fn from(context: &CallerContext) -> Self {
        Self {
            cwd: context.cwd.clone().filter(is_text),
            home: context.home().filter(is_text),
            search_path: search_path(&context.environment),
            config: told_config(&context.config),
            nesting: context.nesting,
            origin: context.origin,
        }
    }
}

impl From<CallerSettings> for CallerContext {
    fn from(told: CallerSettings) -> Self {
        Self {
            cwd: told.cwd,
            environment: told_environment(told.home, told.search_path),
            config: Arc::new(told.config),
            nesting: told.nesting,
            key_withheld: false,
            origin: told.origin,
        }
    }
}
