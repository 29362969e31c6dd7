//! The words of `fleet`.

use clap::{Args, Subcommand};

use super::Common;

/// `fleet`.
#[derive(Debug, Subcommand)]
pub(crate) enum FleetCommand {
    /// How many jobs wait and run, the caps and what is used of them, and what keeps jobs waiting.
    #[command(after_help = "Example:\n  \
        phone-opus fleet status --json   for scripts")]
    Status(FleetAsked),
    /// Who is in it.
    #[command(after_help = "Example:\n  \
        phone-opus fleet hosts --json   for scripts")]
    Hosts(FleetAsked),
    /// Have the hosts on a machine take no more jobs; what runs goes on.
    #[command(after_help = "Example:\n  \
        phone-opus fleet drain build.example")]
    Drain(FleetMachine),
    /// Have the hosts on a machine take jobs again.
    #[command(after_help = "Example:\n  \
        phone-opus fleet resume build.example")]
    Resume(FleetMachine),
    /// The caps; with `set`, sets them.
    #[command(after_help = "Examples:\n  \
        phone-opus fleet caps\n  \
        phone-opus fleet caps set fleet=8 account:team=none")]
    Caps {
        #[command(subcommand)]
        set: Option<FleetCapsCommand>,
        #[command(flatten)]
        of: FleetAsked,
    },
}

/// How it is told.
#[derive(Debug, Clone, Args)]
pub(crate) struct FleetAsked {
    /// One JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where jobs are kept.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Which machine.
#[derive(Debug, Clone, Args)]
pub(crate) struct FleetMachine {
    /// The machine's name, or the id of one host on it.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) of: FleetAsked,
}

/// `fleet caps`.
#[derive(Debug, Subcommand)]
pub(crate) enum FleetCapsCommand {
    /// Set caps: fleet=8, account:NAME=2, agent:claude=4, host:NAME=1; `none` lifts one.
    #[command(after_help = "Example:\n  \
        phone-opus fleet caps set fleet=8 agent:codex=2")]
    Set {
        /// What may run at once.
        #[arg(required = true, value_name = "SCOPE=N")]
        caps: Vec<String>,
        #[command(flatten)]
        of: FleetAsked,
    },
}
