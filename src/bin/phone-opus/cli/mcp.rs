//! The words of `mcp`: the processes a client starts.
//!
//! Owns: its commands and their options. May not know: how a client is served.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use phone_opus::internals::config::{Key, WorkerIsolation};

use super::{Common, Overrides, words};

/// The processes.
#[derive(Debug, Subcommand)]
pub(crate) enum McpCommand {
    /// Serve one MCP client on stdin and stdout.
    #[command(after_help = "Add it to a client:\n  \
        phone-opus install --client claude\n  \
        phone-opus install --client codex\n  \
        {\"mcpServers\":{\"phone-opus\":{\"command\":\"phone-opus\",\"args\":[\"mcp\",\"serve\"]}}}\n\n\
        It looks for a new version of itself at the path it was started by, and checks it before it is replaced by it \
        (`rollout` in the configuration). SIGUSR2 asks for that now; health_snapshot says what became of it.")]
    Serve(ServeOptions),
    /// Serve one MCP client on stdin and stdout through the daemon of the state directory; starts the daemon when there is none.
    #[command(after_help = "Add it to a client:\n  \
        phone-opus install --client claude --connect\n  \
        phone-opus install --client codex --connect\n\n\
        The client keeps its connection when the daemon is lost or replaced. Where no daemon can be had, this process serves \
        as `mcp serve` does, and health_snapshot says why.")]
    Connect(ConnectOptions),
    /// Say whether this very program file can serve here; a running server asks that before it is replaced by the file.
    #[command(after_help = "Examples:\n  \
        phone-opus mcp selfcheck\n  \
        phone-opus mcp selfcheck --isolation process --json\n\n\
        Give it what you give `mcp serve`. It serves a client of its own and touches nothing.\n\n\
        Exit codes: 0 it can, 1 it cannot, 2 wrong usage or configuration.")]
    Selfcheck(SelfcheckOptions),
    /// Keep the run of a new version that is tried (started by the server).
    #[command(hide = true)]
    Trial {
        /// Who wants to know.
        #[arg(long, value_name = "PID")]
        parent: i32,
        /// What to run.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// `mcp serve`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeOptions {
    #[arg(long, value_parser = words::<WorkerIsolation>(), help = Key::isolation.help())]
    pub(crate) isolation: Option<WorkerIsolation>,
    /// What the image before this one passed on (given by it when it is replaced in place).
    #[arg(long, value_name = "WHERE", hide = true)]
    pub(crate) restore: Option<OsString>,
    /// Seconds in which a consult of this server may be adopted by the next one when this one is gone (a daemon's; for tests).
    #[arg(long, value_name = "N", default_value_t = 0, hide = true)]
    pub(crate) orphan_grace_s: u64,
    /// Where jobs are kept.
    #[command(flatten)]
    pub(crate) common: Common,
    /// Numbers and paths.
    #[command(flatten)]
    pub(crate) overrides: Overrides,
}

/// `mcp connect`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConnectOptions {
    /// The daemon's socket [default: what the state directory's record says].
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    #[arg(long, value_parser = words::<WorkerIsolation>(), help = Key::isolation.help())]
    pub(crate) isolation: Option<WorkerIsolation>,
    /// Where jobs are kept.
    #[command(flatten)]
    pub(crate) common: Common,
    /// Numbers and paths.
    #[command(flatten)]
    pub(crate) overrides: Overrides,
}

/// `mcp selfcheck`.
#[derive(Debug, Clone, Args)]
pub(crate) struct SelfcheckOptions {
    /// One JSON object on one line.
    #[arg(long)]
    pub(crate) json: bool,
    /// What the server is started with. A snapshot is restored as a trial, and nothing is served from it.
    #[command(flatten)]
    pub(crate) serve: ServeOptions,
}
