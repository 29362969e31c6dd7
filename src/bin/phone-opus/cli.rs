//! The command line's words.

#[cfg(feature = "fleet")]
mod fleet;
#[cfg(feature = "see")]
pub(crate) mod report;
#[cfg(feature = "selftest")]
mod selftest;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use clap_complete::engine::ArgValueCompleter;
use phone_opus::internals::base::ids::AgentSessionId;
use phone_opus::internals::config::{Key, Words, WorkerIsolation};
use phone_opus::internals::jobs::{Billing, JobState};

#[cfg(feature = "fleet")]
pub(crate) use self::fleet::{FleetAsked, FleetCapsCommand, FleetCommand};
#[cfg(feature = "selftest")]
pub(crate) use self::selftest::{EVERY_AGENT, SelftestOptions};
use crate::clients::{ClientName, SetupScope};
use crate::completions::{self, ShellKind};
use crate::job_word::JobWord;

/// Lets one coding agent phone another one.
///
/// An MCP server whose tool `consult` runs your agent CLI read-only in the caller's directory, at once or as a durable
/// background job.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  \
        phone-opus consult --agent offline \"who retries?\"   ask here, without a model\n  \
        phone-opus consult \"is the retry safe?\"             ask Claude Code\n  \
        phone-opus install --client claude                  let Claude Code ask\n  \
        phone-opus jobs list                                what was asked\n  \
        phone-opus doctor                                   is everything in place?\n\n\
        Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 cancelled or interrupted, \
        4 no daemon is running, 141 nobody reads the output any more (an answer then stays unread)."
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The MCP server and the processes it starts.
    #[command(after_help = "Examples:\n  \
        phone-opus mcp serve       what a client starts; `phone-opus install` sees to it\n  \
        phone-opus mcp connect     the same by a daemon that many clients share\n  \
        phone-opus mcp selfcheck   can it serve here?")]
    Mcp {
        #[command(subcommand)]
        command: McpCommand,
    },
    /// Ask an agent here and now; the answer goes to stdout.
    #[command(after_help = "Examples:\n  \
        phone-opus consult \"why does the build fail?\"\n  \
        phone-opus consult --diff \"review this\"        with what is not committed\n  \
        phone-opus consult --diff=main \"review this\"   with what was done since main\n  \
        git log | phone-opus consult \"what changed?\"   with what comes on stdin\n  \
        phone-opus consult - < question.md             the prompt from stdin\n  \
        phone-opus consult --agents claude,codex \"?\"   the answers of both\n  \
        phone-opus consult --session ID \"and then?\"    go on where an answer ended\n  \
        phone-opus consult --placement fleet \"?\"      on any machine that has this directory\n  \
        phone-opus consult --background \"review\"       a job\n  \
        phone-opus jobs show last --wait 600           its answer")]
    Consult(ConsultFlags),
    /// List, show, follow, cancel and forget jobs.
    #[command(after_help = "Examples:\n  \
        phone-opus jobs list --all --state running   what is being asked, everywhere\n  \
        phone-opus jobs show last --wait 600         wait for the last answer, read it\n  \
        phone-opus jobs tail 3f25                    what the agent does, as it does\n  \
        phone-opus jobs cancel 3f25                  end it and everything it started\n  \
        phone-opus jobs prune --older-than 7         forget what ended a week ago\n\n\
        A job is named by its id, the first 4 or more characters of it, or `last`: the last one of this directory.")]
    Jobs {
        #[command(subcommand)]
        command: JobsCommand,
    },
    /// Who serves here, what is asked, and what is waited for.
    #[command(after_help = "Examples:\n  \
        phone-opus status          is anybody at work, and is a place free?\n  \
        phone-opus status --json   for scripts\n\n\
        It only looks: it starts nothing and makes no file.")]
    Status(StatusOptions),
    /// Serve a page for your browser: jobs and servers as they are, live; it follows and cancels.
    #[cfg(feature = "see")]
    #[command(after_help = "Examples:\n  \
        phone-opus dashboard              prints an address that opens once\n  \
        phone-opus dashboard --port 4100  always the same port\n  \
        phone-opus dashboard --stop       has the daemon serve it no longer\n  \
        curl --unix-socket ~/.local/state/phone_opus/dashboard.sock http://x/api/overview   for tools\n\n\
        Where a dashboard is served already, it prints another address of that one. Where a daemon runs, the daemon serves it, until \
        nobody has looked for half an hour; else this command does, until Ctrl-C. It starts no consult. Other users of this \
        machine are kept out: docs/dashboard.md.\n\n\
        Exit codes: 0 it was told to end, or another one gave an address, 1 failed, 2 wrong usage.")]
    Dashboard(DashboardOptions),
    /// Says that this program cannot.
    #[cfg(not(feature = "see"))]
    #[command(hide = true)]
    Dashboard {
        /// Whatever follows.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<OsString>,
    },
    /// What is going on, live in this terminal: servers, jobs, what happens.
    #[cfg(feature = "see")]
    #[command(after_help = "Example:\n  \
        phone-opus top   the servers and jobs of your state directory\n\n\
        Keys: up and down select a job, Enter follows it, c ends it (after a question), / shows some only, q leaves.\n\n\
        It serves nobody and makes nothing. Where there is a daemon it is asked twice a second, and stays for as long.\n\n\
        Exit codes: 0 left by a key, 1 the terminal failed, 2 no terminal, 3 told to end.")]
    Top(report::TopOptions),
    /// Says that this program cannot.
    #[cfg(not(feature = "see"))]
    #[command(hide = true)]
    Top {
        /// Whatever follows.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<OsString>,
    },
    /// What was asked in a period, as one page with plots, to keep or to send.
    #[cfg(feature = "see")]
    #[command(after_help = "Examples:\n  \
        phone-opus report                        the last 7 days, in a few lines\n  \
        phone-opus report -o report.html         the page: plots and tables\n  \
        phone-opus report --since 4w --csv > jobs.csv\n  \
        phone-opus report --since 2026-11-01 --json\n\n\
        In a pipe the page is on stdout. It needs no other host and has no script; no prompt and no answer is in it \
        without --with-text.\n\n\
        Exit codes: 0 done, 1 failed, or FILE is there and no report, 2 wrong usage.")]
    Report(report::ReportOptions),
    /// Says that this program cannot.
    #[cfg(not(feature = "see"))]
    #[command(hide = true)]
    Report {
        /// Whatever follows.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<OsString>,
    },
    /// One server that many clients share: start it, ask how it is, end it.
    #[command(after_help = "Examples:\n  \
        phone-opus daemon start     where none runs; `mcp connect` does so by itself\n  \
        phone-opus daemon status    who serves here, and how busy it is\n  \
        phone-opus daemon stop      refused while jobs run, without --drain or --force\n  \
        phone-opus daemon install   let systemd or launchd start it at need\n\n\
        `stop`, `status`, `reload`, `drain`, `pause` and `resume` start nothing and make no file.\n\n\
        Exit codes: 0 done, 1 failed or refused, 2 wrong usage or configuration, 4 no daemon is running.")]
    Daemon {
        #[command(subcommand)]
        command: DaemonCommand,
    },
    /// The hosts of several machines and their one queue.
    #[cfg(feature = "fleet")]
    #[command(after_help = "Examples:\n  \
        phone-opus fleet status                          how many wait and run, and what keeps them\n  \
        phone-opus fleet drain build.example             its hosts take no more jobs\n  \
        phone-opus fleet caps set fleet=8 agent:codex=2  what may run at once\n\n\
        The database is `fleet` in your configuration. Exit codes: 0 done, 1 it cannot be used or no such host lives, 2 wrong usage or \
        no fleet configured.")]
    Fleet {
        #[command(subcommand)]
        command: FleetCommand,
    },
    /// Says that this program cannot.
    #[cfg(not(feature = "fleet"))]
    #[command(hide = true)]
    Fleet {
        /// Whatever follows.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<OsString>,
    },
    /// Run processes on this machine for a client elsewhere, and read and write files for it.
    #[command(after_help = "Examples:\n  \
        phone-opus exec-server --listen stdio              for who starts it (ssh)\n  \
        phone-opus exec-server --listen unix:/run/po/x     for this user alone\n  \
        phone-opus exec-server --listen ws://127.0.0.1:0   says on stdout where it is\n\n\
        It speaks the protocol of `codex exec-server`. A peer on this machine comes in when the system says that it is yours; \
        everybody else needs the token. What a client started ends when the client has been gone for the lease, and when the \
        server ends, however it ends.\n\n\
        Exit codes: 0 its client is gone or it was told to end, 1 failed, 2 wrong usage.")]
    ExecServer(ExecServerFlags),
    /// Let a client start phone-opus: shows what would change in the client's own configuration, asks, and writes it.
    #[command(after_help = "Examples:\n  \
        phone-opus install --client claude                   you, in every directory\n  \
        phone-opus install --client codex --dry-run          only look\n  \
        phone-opus install --client cursor --scope project   everybody, in this one\n  \
        phone-opus install --client gemini --yes --json      for scripts\n\n\
        Comments, order and every other byte of the file stay. Where a client would cut a long consult short, its limit for \
        phone-opus is raised, unless you have set one.\n\n\
        Exit codes: 0 done or nothing to do, 1 refused or failed, 2 wrong usage, or nobody to ask and no --yes, 3 you said no.")]
    Install(SetupOptions),
    /// Take back what `install` wrote, where it is still as it was written.
    #[command(after_help = "Examples:\n  \
        phone-opus uninstall --client claude          the file is what it was before\n  \
        phone-opus uninstall --client codex --force   the entry goes, whatever it is\n\n\
        Exit codes: 0 done or nothing to do, 1 refused or failed, or the entry was edited and stays, 2 wrong usage, or nobody \
        to ask and no --yes, 3 you said no.")]
    Uninstall(SetupOptions),
    /// What is configured, and where each setting is from.
    #[command(after_help = "Examples:\n  \
        phone-opus config show          each setting, and which file or variable says so\n  \
        phone-opus config show --json   for scripts")]
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Check that everything is in place.
    #[command(after_help = "Examples:\n  \
        phone-opus doctor                   costs nothing and asks no model\n  \
        phone-opus doctor --live            a real turn of each agent, that is paid\n  \
        phone-opus doctor --live --agent codex --yes\n  \
        phone-opus doctor --fix --dry-run   what can be put right, and how\n  \
        phone-opus doctor --json            for scripts\n\n\
        `--live` shows each agent's login, who pays, its model and version and how long it takes, and what to do where it fails. \
        `--fix` touches nothing of an agent's, forgets no job, and writes into a client's file only where that still says \
        what `install` wrote.\n\n\
        Exit codes: 0 all is well, 1 a consult with the default agent cannot work, an agent named by --agent does not answer, \
        or a fix failed, 2 wrong usage, or nobody to ask and no --yes, 3 you said no, or ended it.")]
    Doctor(DoctorOptions),
    /// Who can answer here: each agent, where its program is, and what keeps it to reading.
    #[command(after_help = "Examples:\n  \
        phone-opus agents          who is there, and what to do about who is not\n  \
        phone-opus agents --json   for scripts\n\n\
        It starts none of them; `phone-opus doctor` asks each what it can do and whether it is logged in.")]
    Agents(AgentsOptions),
    /// What can be broken on purpose, and how to ask for it.
    #[command(after_help = "Examples:\n  \
        phone-opus faults list\n  \
        PHONE_OPUS_FAULTS='worker.before_reply#1=kill' phone-opus mcp serve")]
    Faults {
        #[command(subcommand)]
        command: FaultsCommand,
    },
    /// Try this very program: strike every fault point and check every promise.
    #[cfg(feature = "selftest")]
    #[command(after_help = "Examples:\n  \
        phone-opus selftest                     every row; a minute on two idle cores\n  \
        phone-opus selftest --only worker. --only kill\n  \
        phone-opus selftest --soak 10           ten minutes of random plans, by seeds\n  \
        phone-opus selftest --replay 1234       the plan of that seed again\n  \
        phone-opus selftest --custody           where prompts and processes end\n  \
        phone-opus selftest --custody --agent all    the same for each agent\n  \
        phone-opus selftest --through daemon    either, with clients that share one\n\n\
        It needs no agent and no network, and touches nothing but a scratch directory.\n\n\
        Exit codes: 0 all laws hold, 1 a law was broken, 2 wrong usage.")]
    Selftest(SelftestOptions),
    /// Says that this program cannot.
    #[cfg(not(feature = "selftest"))]
    #[command(hide = true)]
    Selftest {
        /// Whatever follows.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<OsString>,
    },
    /// Print what makes a shell complete words, job ids among them.
    #[command(after_help = "Put it where the shell reads it:\n  \
        phone-opus completions bash \\\n    \
        > ~/.local/share/bash-completion/completions/phone-opus\n  \
        phone-opus completions zsh > ~/.zfunc/_phone-opus     (a directory of $fpath)\n  \
        phone-opus completions fish > ~/.config/fish/completions/phone-opus.fish\n\n\
        The shell then asks the program `phone-opus` on PATH at each key. Write it anew after an upgrade.")]
    Completions {
        /// Which shell.
        shell: ShellKind,
    },
    /// Write the manual pages into a directory that is there.
    #[command(hide = true)]
    Man {
        /// Where.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

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

/// `status`.
#[derive(Debug, Clone, Args)]
pub(crate) struct StatusOptions {
    /// One JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where jobs are kept.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// `dashboard`.
#[cfg(feature = "see")]
#[derive(Debug, Clone, Args)]
pub(crate) struct DashboardOptions {
    /// The port of 127.0.0.1 [default: any that is free].
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    pub(crate) port: u16,
    /// Serve it here, whether or not there is a daemon.
    #[arg(long)]
    pub(crate) alone: bool,
    /// Have the daemon serve it no longer.
    #[arg(long, conflicts_with_all = ["port", "alone", "metrics_token_file"])]
    pub(crate) stop: bool,
    /// A file with the token that Prometheus brings for /metrics (yours alone, mode 0600). It is served here then.
    #[arg(long, value_name = "PATH")]
    pub(crate) metrics_token_file: Option<PathBuf>,
    /// The address as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where jobs are kept.
    #[command(flatten)]
    pub(crate) common: Common,
}

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

/// `exec-server`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ExecServerFlags {
    /// Where: ws://IP:PORT, unix:/PATH, or stdio.
    #[arg(long, value_name = "WHERE")]
    pub(crate) listen: String,
    /// A file with the token that peers bring (yours alone, mode 0600). Needed to listen on an address others can reach.
    #[arg(long, value_name = "PATH")]
    pub(crate) token_file: Option<PathBuf>,
    /// Seconds a client may be gone before what it started is ended. On stdio it ends with the client.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub(crate) lease_s: u64,
    /// Started by the process that ends what this one leaves behind.
    #[arg(long, hide = true)]
    pub(crate) kept: bool,
}

/// What every command that uses jobs takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// Where jobs are kept [env: PHONE_OPUS_STATE_DIR] [default: the platform's state directory].
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// Numbers and paths, over environment and files.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Overrides {
    #[arg(long, value_name = "PATH", help = Key::claude_bin.help())]
    pub(crate) claude_bin: Option<PathBuf>,
    #[arg(long, value_parser = words::<Billing>(), help = Key::billing.help())]
    pub(crate) billing: Option<Billing>,
    #[arg(long, value_name = "N", help = Key::max_running.help())]
    pub(crate) max_running: Option<u64>,
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

/// `consult`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConsultFlags {
    /// The question; `-` reads it from stdin. What a pipe or a file brings on stdin is appended to a question in words.
    pub(crate) prompt: String,
    /// Leave alone what is on stdin.
    #[arg(long)]
    pub(crate) no_stdin: bool,
    /// Who answers: a name that `phone-opus agents` lists; `offline` is a word search without a model.
    #[arg(long)]
    pub(crate) agent: Option<String>,
    /// Ask 2 to 5 at once, each in a job of its own.
    #[arg(long, value_name = "A,B", value_delimiter = ',', conflicts_with_all = ["agent", "session"])]
    pub(crate) agents: Vec<String>,
    /// Add what `git diff` shows against a commit [default: HEAD, what is not committed].
    #[arg(long, value_name = "BASE", num_args = 0..=1, require_equals = true, default_missing_value = "HEAD")]
    pub(crate) diff: Option<String>,
    /// Where the agent looks [default: here].
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,
    /// Go on in this session of the agent: the id that an earlier answer names.
    #[arg(long, value_name = "ID")]
    pub(crate) session: Option<AgentSessionId>,
    /// Model name or alias.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// How hard the model thinks: low, medium, high, xhigh, max.
    #[arg(long)]
    pub(crate) effort: Option<String>,
    /// Most turns the agent may take.
    #[arg(long, value_name = "N")]
    pub(crate) max_turns: Option<u32>,
    /// Most US dollars the answer may cost.
    #[arg(long, value_name = "USD")]
    pub(crate) max_budget_usd: Option<f64>,
    /// Seconds the agent may run.
    #[arg(long, value_name = "S")]
    pub(crate) timeout_s: Option<u64>,
    /// Return a job id at once; the job goes on by itself.
    #[arg(long)]
    pub(crate) background: bool,
    /// Where it may run: here, or on any machine of the fleet that has the directory [default: as configured].
    #[arg(long, value_name = "WHERE", value_parser = ["local", "fleet", "clone"])]
    pub(crate) placement: Option<String>,
    /// The same key and arguments join the same job.
    #[arg(long, value_name = "KEY")]
    pub(crate) request_key: Option<String>,
    /// The whole reply as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress on stderr.
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Show a long answer at once, whatever PAGER is.
    #[arg(long)]
    pub(crate) no_pager: bool,
    /// Where jobs are kept.
    #[command(flatten)]
    pub(crate) common: Common,
    /// Numbers and paths.
    #[command(flatten)]
    pub(crate) overrides: Overrides,
}

/// `jobs`.
#[derive(Debug, Subcommand)]
pub(crate) enum JobsCommand {
    /// List jobs, unread answers first.
    #[command(after_help = "Examples:\n  \
        phone-opus jobs list                          of this directory\n  \
        phone-opus jobs list --all --state running    what is being asked, everywhere\n  \
        phone-opus jobs list --json                   for scripts")]
    List {
        /// How many.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
        /// Only jobs in this state: queued, running, succeeded, failed, cancelled, interrupted.
        #[arg(long, visible_alias = "status", value_parser = job_state)]
        state: Option<JobState>,
        /// Of all workspaces, not only this directory's.
        #[arg(long)]
        all: bool,
        /// One JSON object.
        #[arg(long)]
        json: bool,
        /// Where jobs are kept.
        #[command(flatten)]
        common: Common,
    },
    /// Show one job and its answer.
    #[command(after_help = "Examples:\n  \
        phone-opus jobs show last               the last one of this directory\n  \
        phone-opus jobs show 3f25 --wait 600    wait for its end, ten minutes at most\n  \
        phone-opus jobs show last --full        everything that is known of it")]
    Show {
        /// The job: its id, the first 4 or more characters of it, or `last`.
        #[arg(value_parser = JobWord::parse, add = ArgValueCompleter::new(completions::jobs))]
        job: JobWord,
        /// Seconds to wait for its end.
        #[arg(long, default_value_t = 0, value_name = "S")]
        wait: u64,
        /// Everything that is known.
        #[arg(long)]
        full: bool,
        /// Show a long answer at once, whatever PAGER is.
        #[arg(long)]
        no_pager: bool,
        /// One JSON object.
        #[arg(long)]
        json: bool,
        /// Where jobs are kept.
        #[command(flatten)]
        common: Common,
    },
    /// Print what happens in a job, as it happens, until its end.
    #[command(after_help = "Examples:\n  \
        phone-opus jobs tail last               what the agent does, as it does\n  \
        phone-opus jobs tail 3f25 --no-follow   what it has done so far")]
    Tail {
        /// The job: its id, the first 4 or more characters of it, or `last`.
        #[arg(value_parser = JobWord::parse, add = ArgValueCompleter::new(completions::jobs))]
        job: JobWord,
        /// Only what follows this number.
        #[arg(long, default_value_t = 0, value_name = "SEQ")]
        after: u64,
        /// Do not wait for more.
        #[arg(long)]
        no_follow: bool,
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
        /// Where jobs are kept.
        #[command(flatten)]
        common: Common,
    },
    /// End a job and everything it started.
    #[command(after_help = "Examples:\n  \
        phone-opus jobs cancel last   the last one of this directory\n  \
        phone-opus jobs cancel 3f25   that one")]
    Cancel {
        /// The job: its id, the first 4 or more characters of it, or `last`.
        #[arg(value_parser = JobWord::parse, add = ArgValueCompleter::new(completions::jobs))]
        job: JobWord,
        /// One JSON object.
        #[arg(long)]
        json: bool,
        /// Where jobs are kept.
        #[command(flatten)]
        common: Common,
    },
    /// Forget finished jobs that are older or larger than what is kept; unread answers go last.
    #[command(after_help = "Examples:\n  \
        phone-opus jobs prune                  what a server forgets by itself\n  \
        phone-opus jobs prune --older-than 7   what ended a week ago")]
    Prune {
        /// Days a finished job is kept.
        #[arg(long, default_value_t = 30, value_name = "DAYS")]
        older_than: u32,
        /// Bytes all finished jobs may hold together, in MiB.
        #[arg(long, default_value_t = 1024, value_name = "MIB")]
        keep: u64,
        /// One JSON object.
        #[arg(long)]
        json: bool,
        /// Where jobs are kept.
        #[command(flatten)]
        common: Common,
    },
    /// Show usage limits that agents have reached. Until they are over nothing is started for these agents.
    #[command(after_help = "Examples:\n  \
        phone-opus jobs limits           until when each agent takes nothing\n  \
        phone-opus jobs limits --clear   you know better: ask again")]
    Limits {
        /// Forget them: the provider takes requests again.
        #[arg(long)]
        clear: bool,
        /// One JSON object.
        #[arg(long)]
        json: bool,
        /// Where jobs are kept.
        #[command(flatten)]
        common: Common,
    },
}

impl JobsCommand {
    /// Where its jobs are.
    pub(crate) fn common(&self) -> &Common {
        match self {
            Self::List { common, .. }
            | Self::Show { common, .. }
            | Self::Tail { common, .. }
            | Self::Cancel { common, .. }
            | Self::Prune { common, .. }
            | Self::Limits { common, .. } => common,
        }
    }
}

fn job_state(text: &str) -> Result<JobState, String> {
    JobState::parse(text).ok_or_else(|| {
        let known: Vec<&str> = JobState::ALL.iter().map(|state| state.as_str()).collect();
        format!("accepted: {}", known.join(", "))
    })
}

/// `faults`.
#[derive(Debug, Subcommand)]
pub(crate) enum FaultsCommand {
    /// Every fault point: when it is met, what can happen there, and in which operations.
    #[command(after_help = "Examples:\n  \
        phone-opus faults list\n  \
        phone-opus faults list --json   for scripts")]
    List {
        /// One JSON object.
        #[arg(long)]
        json: bool,
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

/// Reads one of a key's words; the help lists them.
fn words<T: Words + Send + Sync>() -> impl TypedValueParser<Value = T> {
    let known = T::WORDS.iter().map(|(word, _, what)| PossibleValue::new(*word).help(*what));
    PossibleValuesParser::new(known).try_map(|word| T::of_word(&word))
}
