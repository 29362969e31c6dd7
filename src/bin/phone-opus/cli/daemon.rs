//! The words of `daemon`.
//!
//! Owns: its commands and their options. May not know: what a daemon does.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use phone_opus::internals::config::{Key, WorkerIsolation};

use super::{Common, Overrides, words};

/// `daemon`.
#[derive(Debug, Subcommand)]
pub(crate) enum DaemonCommand {
    /// Serve clients on the socket until told to stop. Stays in the foreground, as service managers want it.
    #[command(after_help = "Examples:\n  \
        phone-opus daemon run                in this terminal; Ctrl-C ends it\n  \
        phone-opus daemon run --idle-s 600   ends ten minutes after its last client")]
    Run(DaemonRunOptions),
    /// Start a daemon in the background, where none runs, and wait until it serves.
    #[command(after_help = "Example:\n  \
        phone-opus daemon start && phone-opus daemon status")]
    Start(DaemonStartOptions),
    /// End the daemon; another one may start at once.
    #[command(after_help = "Examples:\n  \
        phone-opus daemon stop           refused while jobs run\n  \
        phone-opus daemon stop --drain   when what is in flight has ended\n  \
        phone-opus daemon stop --force   now")]
    Stop {
        /// Let what is in flight end first; new consults are refused meanwhile.
        #[arg(long, conflicts_with = "force")]
        drain: bool,
        /// At once: consults of bridged clients go on, and so do jobs in the background; other calls in flight fail.
        #[arg(long)]
        force: bool,
        /// Which one.
        #[command(flatten)]
        of: DaemonAsked,
    },
    /// Show how the daemon is: its version, process, clients and jobs.
    #[command(after_help = "Examples:\n  \
        phone-opus daemon status          exit code 4 where none runs\n  \
        phone-opus daemon status --json   for scripts")]
    Status(DaemonAsked),
    /// Have the daemon look for its next version, and for its socket, which is made again where it is gone.
    #[command(after_help = "Example:\n  \
        phone-opus daemon reload   after an upgrade, instead of waiting for its own look")]
    Reload(DaemonAsked),
    /// Let what is in flight end, begin nothing new, then end the daemon: as `stop --drain`, but whoever needs a daemon starts the
    /// next one.
    #[command(after_help = "Example:\n  \
        phone-opus daemon drain   the next client gets a new daemon")]
    Drain(DaemonAsked),
    /// Begin no job until `resume`; what runs goes on.
    #[command(after_help = "Example:\n  \
        phone-opus daemon pause   jobs are accepted and wait")]
    Pause(DaemonAsked),
    /// Begin jobs again after `pause`.
    #[command(after_help = "Example:\n  \
        phone-opus daemon resume   what waits begins in its order")]
    Resume(DaemonAsked),
    /// Have systemd (Linux) or launchd (macOS) start a daemon when somebody connects: shows the files, and writes them with --write.
    #[command(after_help = "Examples:\n  \
        phone-opus daemon install           only look\n  \
        phone-opus daemon install --write   and it says what to run then")]
    Install(DaemonInstallOptions),
    /// Remove the files that `daemon install` wrote: shows them, and removes them with --write.
    #[command(after_help = "Examples:\n  \
        phone-opus daemon uninstall           only look\n  \
        phone-opus daemon uninstall --write   remove them")]
    Uninstall(DaemonInstallOptions),
}

/// Which daemon.
#[derive(Debug, Clone, Args)]
pub(crate) struct DaemonPlace {
    /// Where it listens [default: where its record says; for a new one, in the state directory].
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Where jobs are kept.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// A question to a daemon.
#[derive(Debug, Clone, Args)]
pub(crate) struct DaemonAsked {
    /// One JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// Which one.
    #[command(flatten)]
    pub(crate) place: DaemonPlace,
}

/// How a daemon serves.
#[derive(Debug, Clone, Args)]
pub(crate) struct DaemonServes {
    /// Seconds without clients and jobs after which it ends [default: 1800 when a client or a service manager started it;
    /// else it stays].
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub(crate) idle_s: Option<Duration>,
    /// How often it looks whether its socket is there.
    #[arg(long, value_name = "S", value_parser = seconds, hide = true)]
    pub(crate) look_s: Option<Duration>,
    #[arg(long, value_parser = words::<WorkerIsolation>(), help = Key::isolation.help())]
    pub(crate) isolation: Option<WorkerIsolation>,
    /// Numbers and paths.
    #[command(flatten)]
    pub(crate) overrides: Overrides,
}

/// `daemon run`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DaemonRunOptions {
    /// Start once more, away from whoever started this, and leave.
    #[arg(long, hide = true)]
    pub(crate) detach: bool,
    /// This is that one.
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub(crate) detached: bool,
    /// A client wants it: it ends when nobody needs it.
    #[arg(long, hide = true)]
    pub(crate) started_by_client: bool,
    /// Whose unit of the service manager it is in, as its starter says.
    #[arg(long, value_name = "WORDS", hide = true)]
    pub(crate) scope: Option<String>,
    /// Where to say in one line that it serves, or why not; closed after it.
    #[arg(long, value_name = "FD")]
    pub(crate) ready_fd: Option<i32>,
    /// What the image before this one passed on (given by it when it is replaced in place).
    #[arg(long, value_name = "WHERE", hide = true)]
    pub(crate) restore: Option<OsString>,
    /// How it serves.
    #[command(flatten)]
    pub(crate) serves: DaemonServes,
    /// Where.
    #[command(flatten)]
    pub(crate) place: DaemonPlace,
}

/// `daemon start`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DaemonStartOptions {
    /// One JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// How it serves.
    #[command(flatten)]
    pub(crate) serves: DaemonServes,
    /// Where.
    #[command(flatten)]
    pub(crate) place: DaemonPlace,
}

/// `daemon install` and `daemon uninstall`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DaemonInstallOptions {
    /// Do it, instead of showing it.
    #[arg(long)]
    pub(crate) write: bool,
    /// Where the files lie [default: the user's directory of systemd or launchd].
    #[arg(long, value_name = "DIR")]
    pub(crate) to: Option<PathBuf>,
    /// One JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where jobs are kept.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Seconds, and parts of one.
fn seconds(text: &str) -> Result<Duration, String> {
    let read = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    read.filter(|found| !found.is_zero() && *found <= LONGEST)
        .ok_or_else(|| "accepted: seconds, up to a year".to_owned())
}

/// The longest time that means anything here.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
