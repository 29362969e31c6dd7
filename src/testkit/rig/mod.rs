//! The rig: a scratch world with the real program in it, spoken of in verbs.
//!
//! Owns: the scratch directories, the environment of every process, and the laws that are checked when a case is over.
//! The agent is the scripted one, under a link in the scratch directory; nothing of the machine's own agents, homes or
//! keys can reach a case. May not know: what a case is about.
//!
//! ```text
//! scratch/  home/  work/  work/other/  signs/  state/     directories; the agent's program is a link beside them
//!           agent.log                                     one line per start and end of a run
//!           host-N.stderr                                 what each host logged
//! ```

#![expect(clippy::expect_used, clippy::panic, reason = "what goes wrong in a rig fails the case")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use super::invariants::Surroundings;
use super::scripted_agent;
use super::starts::{NOBODY, Start};
use super::tools::Tally;
use super::wait::PATIENCE;
use crate::agents::CliAgent;
use crate::base::ids::JobId;
use crate::config::Words;
use crate::tools::ReplayContract;

mod hosts;
mod looks;
mod programs;
mod runs;
mod verdict;
mod world;

use self::programs::own;
pub use self::programs::{give_away, installed_program, tried_program};
pub use self::runs::Run;

/// A key no agent may see unless it pays by key.
pub const KEY: &str = "sk-canary-key-5f1d";

/// The variable that holds a fault plan, for every process of the program.
pub const FAULTS: &str = "PHONE_OPUS_FAULTS";

/// The variable that holds the seed of a fault plan's draws.
pub const FAULT_SEED: &str = "PHONE_OPUS_FAULT_SEED";

/// How a client comes to whoever serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Through {
    /// By the standard streams of a host of its own (`mcp serve`).
    #[default]
    Streams,
    /// By a bridge (`mcp connect`) to a daemon that it shares.
    Daemon,
}

impl Words for Through {
    const WORDS: &'static [(&'static str, Self, &'static str)] = &[
        ("streams", Self::Streams, "each by the standard streams of a server of its own"),
        ("daemon", Self::Daemon, "by bridges to one daemon"),
    ];
}

/// The scratch world of one case. Dropped, it ends whatever is left of it.
pub struct Rig {
    program: PathBuf,
    scratch: tempfile::TempDir,
    env: BTreeMap<String, String>,
    /// Stands in every prompt and may be seen nowhere else.
    canary: String,
    hosts: usize,
    /// How the clients of this world come to a host.
    through: Through,
    patience: Duration,
    before: Surroundings,
    /// What a case put into the home.
    own_at_home: BTreeSet<String>,
    /// How the program is started.
    start: Start,
    /// What the tools of a case did, with the contract each is under: attempts, and effects.
    watched: Vec<(ReplayContract, Tally, Tally)>,
    /// Whether a fault plan of this world tears records of telemetry, on purpose.
    tears_telemetry: bool,
}

impl Rig {
    /// A world around this program ([`tried_program`]), which must be able to play the scripted agent (built with the feature
    /// `testkit`) unless `PHONE_OPUS_TEST_AGENT` names another one that does.
    ///
    /// # Panics
    ///
    /// When there is no room for it on the disk.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let program = std::path::absolute(program.into()).expect("an absolute path");
        let scratch = tempfile::Builder::new().prefix("phone-opus-rig-").tempdir().expect("a scratch directory");
        let path = |name: &str| scratch.path().join(name).display().to_string();
        for dir in ["home", "work", "work/other", "signs"] {
            std::fs::create_dir(scratch.path().join(dir)).expect("a directory");
        }
        // An older program under test cannot play what the kit has learnt since; a newer one plays for it then.
        let player = std::env::var_os("PHONE_OPUS_TEST_AGENT").map_or_else(|| program.clone(), PathBuf::from);
        std::os::unix::fs::symlink(&player, path(scripted_agent::PROGRAM_NAME)).expect("a link");
        let env = [
            ("HOME", path("home")),
            ("PATH", "/usr/bin:/bin".to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
            ("PHONE_OPUS_STATE_DIR", path("state")),
            // A busy machine must not turn a synchronous consult into a background job.
            ("PHONE_OPUS_WAIT_S", "300".to_owned()),
            // The more is logged, the more a leak would show.
            ("PHONE_OPUS_LOG", "trace".to_owned()),
            ("ANTHROPIC_API_KEY", KEY.to_owned()),
        ];
        // It plays every agent that is a program of its own.
        let programs = CliAgent::all().map(|agent| (agent.variable(), path(scripted_agent::PROGRAM_NAME)));
        let mut env: BTreeMap<String, String> =
            env.into_iter().chain(programs).map(|(name, value)| (name.to_owned(), value)).collect();
        // Without a superuser's rights a rig could not see whose its processes are; a superuser sees them all the same.
        if !rustix::process::geteuid().is_root() {
            env.insert("PHONE_OPUS_DUMPABLE".to_owned(), "1".to_owned());
        }
        let canary = format!("CANARY-{}", JobId::random());
        let before = Surroundings::look();
        Self {
            program,
            scratch,
            env,
            canary,
            hosts: 0,
            through: Through::Streams,
            patience: PATIENCE,
            before,
            own_at_home: BTreeSet::new(),
            start: Start::plain(),
            watched: Vec::new(),
            tears_telemetry: false,
        }
    }

    /// With one variable set for every process started from here on.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.set(name, value);
        self
    }

    /// With a fault plan for every process started from here on, as in
    /// `worker.before_execute@tools/call:consult=panic`.
    #[must_use]
    pub fn with_faults(self, plan: &str) -> Self {
        self.with(FAULTS, plan)
    }

    /// With the seed of the fault plan's draws.
    #[must_use]
    pub fn with_fault_seed(self, seed: u64) -> Self {
        self.with(FAULT_SEED, seed.to_string())
    }

    /// With another patience than [`PATIENCE`], for the clients it makes as well.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// With clients that come to their host so, from here on.
    #[must_use]
    pub fn with_clients(mut self, through: Through) -> Self {
        self.through = through;
        self
    }

    /// With every process of the program started so from here on.
    #[must_use]
    pub fn with_start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Makes this world [`NOBODY`]'s, for a program that is started as nobody ([`Start::as_nobody`]).
    ///
    /// # Panics
    ///
    /// When this process may not.
    pub fn give_away(&self) {
        own(self.scratch.path(), NOBODY);
    }

    /// Makes this world ours again, to look at what was done in it.
    ///
    /// # Panics
    ///
    /// When this process may not.
    pub fn take_back(&self) {
        own(self.scratch.path(), rustix::process::geteuid().as_raw());
    }
}

/// What a failed case leaves behind is ended; a passed one leaves nothing.
impl Drop for Rig {
    fn drop(&mut self) {
        // One that is ended may have just started another.
        for _ in 0..5 {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for process in left {
                let _ = process.send(rustix::process::Signal::KILL);
            }
        }
    }
}
