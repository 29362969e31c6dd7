//! The command line's words.
//!
//! Owns: which commands there are, in the order the help shows them, and what several take. The words of each stand in a file of their
//! own. May not know: what a command does.

mod daemon;
#[cfg(feature = "fleet")]
mod fleet;
mod jobs;
mod mcp;
#[cfg(feature = "see")]
pub(crate) mod report;
#[cfg(feature = "selftest")]
mod selftest;
mod setup;

#[cfg(not(all(feature = "fleet", feature = "see", feature = "selftest")))]
use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use phone_opus::internals::config::{Key, Words};
use phone_opus::internals::jobs::Billing;

pub(crate) use self::daemon::{
    DaemonAsked, DaemonCommand, DaemonInstallOptions, DaemonPlace, DaemonRunOptions, DaemonServes, DaemonStartOptions,
};
#[cfg(feature = "fleet")]
pub(crate) use self::fleet::{FleetAsked, FleetCapsCommand, FleetCommand};
pub(crate) use self::jobs::{ConsultFlags, JobsCommand};
pub(crate) use self::mcp::{ConnectOptions, McpCommand, SelfcheckOptions, ServeOptions};
#[cfg(feature = "see")]
pub(crate) use self::report::DashboardOptions;
#[cfg(feature = "selftest")]
pub(crate) use self::selftest::{EVERY_AGENT, SelftestOptions};
pub(crate) use self::setup::{AgentsOptions, ConfigCommand, DoctorOptions, SetupOptions};
use crate::completions::ShellKind;

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

/// Reads one of a key's words; the help lists them.
fn words<T: Words + Send + Sync>() -> impl TypedValueParser<Value = T> {
    let known = T::WORDS.iter().map(|(word, _, what)| PossibleValue::new(*word).help(*what));
    PossibleValuesParser::new(known).try_map(|word| T::of_word(&word))
}
