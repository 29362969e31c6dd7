//! A program that is its own runner, worker and agent: what a system's processes are when they are started from the program
//! that embeds it.
//!
//! Owns: which of the processes a host starts this one is ([`words`]), and each of their main functions: what it does to its
//! process before it begins ([`house`]), its runtime, its exit code. May not know: how a host starts them, actors, the
//! program's own command line, its logger.
//!
//! A consult is run by a process that outlives its host; tools can have a process of their own, so that one that crashes takes
//! nothing with it; and `offline` is an agent like any other, a program with a prompt on its standard input. All of these are
//! started from a program that knows the agents and the tools, and nobody knows them better than the one that made the system.
//! So it says what it knows once, in a [`Registry`], and begins with [`dispatch`]:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use phone_opus::process::{Registry, dispatch};
//! use phone_opus::{StateDir, System};
//!
//! fn main() -> ExitCode {
//!     let registry = Registry::standard();             // `claude`, `codex`, … and `offline`; `.agent(Mine)`, `.tool(Mine)` for yours
//!     if let Some(code) = dispatch(std::env::args_os(), &registry) {
//!         return code;                                 // it was a runner, a worker, who waits with jobs, or the agent
//!     }
//!     let system = System::builder().state_dir(StateDir::at("/var/lib/mine")).program(&registry);
//!     // … start it in your runtime, and serve
//! #   drop(system);
//!     ExitCode::SUCCESS
//! }
//! ```
//!
//! Invariants: (1) a process that was not started by a host is left as it was: nothing is looked at but its words; (2) one that
//! was belongs to its host: it takes its signals, closes what it was not given, and ends when it has done what it was started
//! for; (3) L11: of the streams, only the protocol it was started for is written to stdout.

mod house;
mod roles;
mod words;

use std::ffi::OsString;
use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;

#[doc(hidden)]
pub use house::{ignore, keep_others_out, runtime, say, tell, unheeded_everywhere};
#[doc(hidden)]
pub use words::{RunWords, RunnerWords, StartedAs, WordsError};

pub use roles::{BeginError, armed};

use crate::agents::{Agent, AgentRegistry};
use crate::base::image;
use crate::tools::Tool;

/// What a process was started for by a host of the same program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Duty {
    /// It runs tools until its host is gone.
    Worker,
    /// It runs one job to its end, and may outlive its host.
    Runner,
    /// It holds jobs until their turn, and may outlive its host.
    Waiting,
    /// It answers one prompt as the agent `offline`.
    OfflineAgent,
}

/// The agents and tools a program knows, wherever they run: in its hosts, and in the processes these start from it.
///
/// Cheap to clone. Tools are made in every process that begins with [`dispatch`], and used by workers only: what a tool opens,
/// it should open at its first call.
#[derive(Clone, Default)]
pub struct Registry {
    pub(crate) agents: AgentRegistry,
    pub(crate) tools: Vec<Arc<dyn Tool>>,
    begins: Option<fn(Duty)>,
}

impl Registry {
    /// Without agents and tools.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With the agents every installation has: Claude Code, Codex and the others, by their usual names, and `offline`, played by this
    /// program.
    #[must_use]
    pub fn standard() -> Self {
        Self { agents: AgentRegistry::standard(None, image::own_program()), ..Self::default() }
    }

    /// With an agent; one of the same name is replaced.
    #[must_use]
    pub fn agent(mut self, agent: impl Agent + 'static) -> Self {
        self.agents = self.agents.with(Arc::new(agent));
        self
    }

    /// With a tool.
    #[must_use]
    pub fn tool(mut self, tool: impl Tool) -> Self {
        self.tools.push(Arc::new(tool));
        self
    }

    /// What is called in a process that a host started, before it does anything, for a logger or a panic hook of its own. A
    /// runner's stderr is a file in its job's directory, and so is that of who waits; a worker's is its host's.
    ///
    /// ```
    /// use phone_opus::process::Registry;
    ///
    /// let registry = Registry::standard().on_begin(|duty| eprintln!("a process of its own begins: {duty:?}"));
    /// # let _ = registry;
    /// ```
    #[must_use]
    pub fn on_begin(mut self, begins: fn(Duty)) -> Self {
        self.begins = Some(begins);
        self
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tools: Vec<&str> = self.tools.iter().map(|tool| tool.name()).collect();
        f.debug_struct("Registry").field("agents", &self.agents).field("tools", &tools).finish()
    }
}

/// Does what a host of this program started this process for, and returns the code to exit with; `None` where no host did, and
/// the program goes on as itself. `args` are those of the process, its name first.
///
/// It is the first line of a main function: what was opened before may be closed by it, and it needs the process's first
/// thread, with no runtime around it. The words it takes begin with `mcp worker`, `mcp background-consult`, `mcp wait` or
/// `mcp offline-agent`. Words like these that make no sense are told on stderr, and the code is 2.
///
/// In such a process the library does what it never does to a program that embeds it: it takes the signals that are meant for
/// others of the same name, closes descriptors that were handed on by mistake, and ends the process when a tool does not let
/// go of the thread and the host is gone.
pub fn dispatch(args: impl IntoIterator<Item = OsString>, registry: &Registry) -> Option<ExitCode> {
    Some(run(StartedAs::read(args.into_iter().skip(1))?, registry))
}

/// Does what was read; for a program that makes its registry only then.
#[doc(hidden)]
#[must_use]
pub fn run(started: Result<StartedAs, WordsError>, registry: &Registry) -> ExitCode {
    let started = match started {
        Ok(started) => started,
        Err(error) => return refused(&error),
    };
    let duty = started.duty();
    house::begin(duty);
    if let Some(begins) = registry.begins {
        begins(duty);
    }
    let done = match started {
        StartedAs::Worker(generation) => roles::worker(generation, registry),
        StartedAs::Runner(words) => roles::runner(*words, registry),
        StartedAs::Waiting(words) => roles::waiting(*words, registry),
        StartedAs::OfflineAgent(words) => Ok(roles::offline_agent(&words)),
    };
    done.unwrap_or_else(|error| refused(&error))
}

fn refused(error: &dyn std::error::Error) -> ExitCode {
    house::say_error(error);
    ExitCode::from(house::REFUSED)
}

impl StartedAs {
    /// What it is for.
    #[must_use]
    pub fn duty(&self) -> Duty {
        match self {
            Self::Worker(_) => Duty::Worker,
            Self::Runner(_) => Duty::Runner,
            Self::Waiting(_) => Duty::Waiting,
            Self::OfflineAgent(_) => Duty::OfflineAgent,
        }
    }
}
