//! What a worker process is told by its host before its first call, so that the two cannot disagree.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::base::ids::{ChainId, HostId};
use crate::config::Config;
use crate::places::Places;

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
    /// The names of the agents.
    pub agents: Vec<String>,
    /// Where a consult runs that names no directory.
    pub default_cwd: Option<PathBuf>,
    /// Where its clients may look.
    pub places: Places,
    /// The chain the host itself is part of, and how deep.
    pub nesting: (Option<ChainId>, u32),
}
