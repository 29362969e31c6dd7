//! An embedding program, written from the documentation only (docs/embedding.md and the crate's own pages): an agent runtime with
//! a ractor tree of its own that takes phone-opus along.
//!
//! Owns: the order of what is tried, on both kinds of runtime, and the look at what is left afterwards. May not know: anything
//! of phone-opus that is not at the root of the crate. `.ci/run` builds and runs it without this repository's Cargo
//! configuration, with ractor's default features and with its `async-trait`.
//!
//! Invariants: (1) what fails ends the program with 1 and the reason; (2) after each runtime is gone, nothing is there that was not
//! there before: threads, descriptors, children, temporary files, signal handlers.

mod acts;
mod agent;
mod client;
mod machine;
mod surroundings;
mod tools;
mod tree;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use phone_opus::AgentElsewhere;
use phone_opus::process::{Registry, dispatch};

use crate::agent::Counter;
use crate::surroundings::Surroundings;
use crate::tools::Abort;

/// What went wrong, in words.
type Problem = Box<dyn std::error::Error + Send + Sync>;

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a system is started and stopped on each runtime.
const ROUNDS: usize = 20;

/// What every act is given.
struct World {
    /// Agents and tools of this program, which is also what each consult and each worker process is run by.
    registry: Registry,
    /// A directory to ask about.
    project: PathBuf,
    /// Where systems keep their jobs, each in a directory of its own.
    states: PathBuf,
}

fn main() -> ExitCode {
    // Projects lie below the directory of temporary files here.
    let boxed = AgentElsewhere::new(machine::AGENT, Counter, machine::Box).workspace(std::env::temp_dir());
    let registry = Registry::standard().agent(Counter).agent(boxed).tool(Abort);
    if let Some(code) = dispatch(std::env::args_os(), &registry) {
        return code;
    }
    let done = match std::env::args().nth(1).as_deref() {
        Some(agent::WORD) => agent::count(),
        _ => on("current_thread", &registry).and_then(|()| on("multi_thread", &registry)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// Everything on a runtime of its own, and the look before and after.
fn on(kind: &str, registry: &Registry) -> Result<(), Problem> {
    // What tokio and the C library open once in a process, and keep: the pipe of tokio's signals, the handler of threads.
    runtime(kind)?.block_on(async { tokio::task::spawn_blocking(|| ()).await })?;
    let before = Surroundings::now()?;
    {
        let scratch = tempfile::tempdir()?;
        let world = World {
            registry: registry.clone(),
            project: scratch.path().join("project"),
            states: scratch.path().join("states"),
        };
        // Sockets lie in it as well, and only in a directory that nobody else can enter.
        std::fs::DirBuilder::new().mode(0o700).create(&world.states)?;
        std::fs::create_dir_all(&world.project)?;
        std::fs::write(
            world.project.join("notes.md"),
            "# Notes\n\nA crashed worker is restarted by its supervisor.\n",
        )?;
        let runtime = runtime(kind)?;
        // In a task, as a program with many of them has it.
        runtime.block_on(async { tokio::spawn(everything(Arc::new(world))).await })??;
    }
    before.same_as(&Surroundings::now()?).map_err(|problem| format!("{kind}: {problem}"))?;
    println!("{kind}: everything was done and nothing is left");
    Ok(())
}

fn runtime(kind: &str) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = match kind {
        "current_thread" => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.enable_all().build()
}

async fn everything(world: Arc<World>) -> Result<(), Problem> {
    let named = |act: &'static str| move |problem: Problem| Problem::from(format!("{act}: {problem}"));
    acts::a_consult_is_typed_and_so_is_its_fault(&world).await.map_err(named("consults"))?;
    acts::an_agent_of_ones_own_answers_and_fails(&world).await.map_err(named("agents"))?;
    acts::an_agent_runs_on_a_machine_of_ones_own(&world).await.map_err(named("machines"))?;
    acts::a_background_job_is_followed_to_its_end(&world).await.map_err(named("jobs"))?;
    acts::a_tool_of_ones_own_is_not_run_twice().await.map_err(named("tools"))?;
    acts::a_tool_that_ends_its_process_costs_its_call(&world).await.map_err(named("isolation"))?;
    acts::whoever_connects_to_a_socket_is_served(&world).await.map_err(named("sockets"))?;
    acts::one_systems_crashes_are_not_the_others().await.map_err(named("two systems"))?;
    tree::a_supervisor_of_ones_own_restarts_a_system().await.map_err(named("the tree"))?;
    acts::the_last_handle_ends_everything(&world).await.map_err(named("handles"))?;
    acts::systems_come_and_go(&world, ROUNDS).await.map_err(named("rounds"))
}
