//! The words of `consult` and `jobs`.
//!
//! Owns: their options. May not know: how a job is found or shown.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter;
use phone_opus::internals::base::ids::AgentSessionId;
use phone_opus::internals::jobs::JobState;

use super::{Common, Overrides};
use crate::completions;
use crate::job_word::JobWord;

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
