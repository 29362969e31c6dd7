//! The words of what puts the program in its place and looks whether it is: `install`, `uninstall`, `config`, `doctor`, `agents`.
//!
//! Owns: their options. May not know: clients, agents.

use clap::{Args, Subcommand};

use super::{Common, Overrides};
use crate::clients::{ClientName, SetupScope};

/// `config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show every setting, its value, and the file, variable or flag it is from.
    #[command(after_help = "Examples:\n  \
        phone-opus config show\n  \
        phone-opus config show --max-running 5   what this flag would change")]
    Show {
        /// One JSON object.
        #[arg(long)]
        json: bool,
        /// Numbers and paths.
        #[command(flatten)]
        overrides: Overrides,
    },
}

/// `install` and `uninstall`.
#[derive(Debug, Clone, Args)]
pub(crate) struct SetupOptions {
    /// Which client.
    #[arg(long, value_name = "NAME")]
    pub(crate) client: ClientName,
    /// For whom: in your own configuration, or in a file of the directory this is run in.
    #[arg(long, default_value = "user")]
    pub(crate) scope: SetupScope,
    /// Have the client share a daemon (`mcp connect`), instead of a server of its own (`mcp serve`).
    #[arg(long)]
    pub(crate) connect: bool,
    /// Do it without a question.
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Only show what would change.
    #[arg(long, conflicts_with = "yes")]
    pub(crate) dry_run: bool,
    /// Also what you or somebody else has written into the entry.
    #[arg(long)]
    pub(crate) force: bool,
    /// One JSON object; asks nothing.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where it is remembered what was written.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// `doctor`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DoctorOptions {
    /// Ask each agent that is installed one short question, as a consult; it is paid for as one.
    #[arg(long)]
    pub(crate) live: bool,
    /// Of these agents only, installed or not; may be given more than once.
    #[arg(long, value_name = "NAME", requires = "live")]
    pub(crate) agent: Vec<String>,
    /// Put right what is safe: what is ours and can be taken back or made anew. Shows it first, and asks.
    #[arg(long)]
    pub(crate) fix: bool,
    /// Only show what `--fix` would do.
    #[arg(long, requires = "fix", conflicts_with = "yes")]
    pub(crate) dry_run: bool,
    /// Do it without a question.
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// One JSON object; asks nothing.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where jobs are kept.
    #[command(flatten)]
    pub(crate) common: Common,
    /// Numbers and paths.
    #[command(flatten)]
    pub(crate) overrides: Overrides,
}

/// `agents`.
#[derive(Debug, Clone, Args)]
pub(crate) struct AgentsOptions {
    /// One JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where jobs are kept.
    #[command(flatten)]
    pub(crate) common: Common,
    /// Numbers and paths.
    #[command(flatten)]
    pub(crate) overrides: Overrides,
}
