//! Consults, in turns: in a session, over bytes in the same process, over the standard streams of `phone-opus mcp serve`.
//!
//! Owns: a host for each way, what its consults took, the table. May not know: how a tool is called.
//!
//! 1. Each way has a host, a scratch directory and a runtime of its own, and the same environment; all have the same program as
//!    runner. What differs is the way, and that the hosts in this process are this bench's build of the library.
//! 2. A turn ends when its host has had time to put away what the consult left, which is no part of the time and part of the
//!    allocations.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use phone_opus::{AgentRegistry, Grace, StateDir, System};
use tokio::process::{Child, Command};
use tokio::runtime::Runtime;

use crate::world::{Agent, World, median};
use crate::{Trouble, Way, duplex, floor, runtime, stdio, typed};

/// Consults of each way before the first that counts: what a host prepares once is none of these figures.
const WARM: usize = 3;

/// How long a host has for what it still does when its consult is answered: see the runner out, forget the job.
const REST: Duration = Duration::from_millis(50);

/// The scripted agent, which answers at once and stands in for Claude Code; and the built-in one, which reads the directory.
const AGENTS: [(&str, &str); 2] = [("claude", "at once"), ("offline", "offline")];

/// What is asked of them.
pub(crate) struct Plan<'a> {
    /// The program that serves over stdio and runs each consult of all hosts.
    pub program: &'a Path,
    /// Consults of each way that count.
    pub count: usize,
    /// Where the scratch directories are made.
    pub dir: &'a Path,
}

enum Host {
    Here(System),
    There(Child),
}

/// A way, and all that belongs to it. The world goes last: it ends what is left in it.
struct Side {
    name: &'static str,
    way: Way,
    host: Host,
    runtime: Runtime,
    world: World,
}

/// What the consults of a way took.
#[derive(Default)]
struct Taken {
    times: Vec<f64>,
    allocations: u64,
    bytes: u64,
}

impl Taken {
    /// The middle one, the one at the lower quarter, and the middle half as a part of the middle one.
    fn quarters(&mut self) -> (f64, f64, f64) {
        let p50 = median(&mut self.times);
        let at = |quarter: usize| self.times.get(self.times.len() * quarter / 4).copied().unwrap_or(f64::NAN);
        (p50, at(1), (at(3) - at(1)) / p50)
    }
}

impl Side {
    /// A system in this process.
    fn here(name: &'static str, plan: &Plan<'_>) -> Result<Self, Trouble> {
        let world = World::new(plan.dir, Agent::AtOnce)?;
        let runtime = runtime(1)?;
        let system = System::builder()
            .state_dir(StateDir::at(world.path("state")))
            .agents(AgentRegistry::standard(Some(world.agent()), plan.program.to_owned()))
            .runner(plan.program)
            .environment(world.variables().into_iter().map(|(name, value)| (OsString::from(name), value)).collect())
            .default_cwd(Some(world.path("work")));
        let (system, way) = runtime.block_on(async {
            let system = system.start().await?;
            let way = if name == "session" { typed(&system).await? } else { duplex(&system).await? };
            Ok::<_, Trouble>((system, way))
        })?;
        Ok(Self { name, way, host: Host::Here(system), runtime, world })
    }

    /// The program as a child.
    fn there(name: &'static str, plan: &Plan<'_>) -> Result<Self, Trouble> {
        let world = World::new(plan.dir, Agent::AtOnce)?;
        let runtime = runtime(1)?;
        let mut command = Command::new(plan.program);
        command.args(["mcp", "serve"]).env_clear().envs(world.variables()).current_dir(world.path("work"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let (child, way) = runtime.block_on(async {
            let mut child = command.spawn()?;
            let way = stdio(&mut child).await?;
            Ok::<_, Trouble>((child, way))
        })?;
        Ok(Self { name, way, host: Host::There(child), runtime, world })
    }

    /// One consult: its time in milliseconds, and what this thread allocated for it.
    fn consult(&mut self, agent: &str, into: &mut Taken) -> Result<(), Trouble> {
        let Self { runtime, way, .. } = self;
        let mut took: Result<f64, Trouble> = Ok(f64::NAN);
        let info = allocation_counter::measure(|| {
            took = runtime.block_on(async {
                let began = Instant::now();
                way.consult(agent).await?;
                let took = began.elapsed().as_secs_f64() * 1e3;
                tokio::time::sleep(REST).await;
                Ok(took)
            });
        });
        into.times.push(took?);
        into.allocations += info.count_total;
        into.bytes += info.bytes_total;
        Ok(())
    }

    fn end(self) -> Result<(), Trouble> {
        let Self { way, host, runtime, world, .. } = self;
        drop(way);
        runtime.block_on(async {
            match host {
                Host::Here(system) => {
                    system.shutdown(Grace::default()).await;
                }
                Host::There(mut child) => {
                    child.wait().await?;
                }
            }
            Ok::<_, Trouble>(())
        })?;
        drop(runtime);
        drop(world);
        Ok(())
    }
}

/// The table of consults.
pub(crate) fn table(plan: &Plan<'_>) -> Result<(), Trouble> {
    let mut sides = [Side::here("session", plan)?, Side::here("bytes", plan)?, Side::there("stdio", plan)?];
    println!(
        "\n{:<10} {:<8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "consult", "agent", "ms, p50", "spread", "ratio", "ms, p25", "ratio", "allocs", "bytes"
    );
    for (agent, called) in AGENTS {
        rows(plan, &mut sides, agent, called)?;
    }
    sides.into_iter().try_for_each(Side::end)
}

/// The rows of one agent. The ways take turns, with another beginner each round; the agent alone is run in each round, too.
fn rows(plan: &Plan<'_>, sides: &mut [Side; 3], agent: &str, called: &str) -> Result<(), Trouble> {
    let mut taken = [Taken::default(), Taken::default(), Taken::default()];
    let mut alone = Taken::default();
    for side in &mut *sides {
        for _ in 0..WARM {
            side.consult(agent, &mut Taken::default())?;
        }
    }
    for round in 0..plan.count {
        for turn in 0..sides.len() {
            let at = (round + turn) % sides.len();
            sides[at].consult(agent, &mut taken[at])?;
        }
        if agent == "claude" {
            alone.times.extend(floor::runs(&sides[0].world, 1)?);
        }
    }
    let (session, quick_session, _) = taken[0].quarters();
    let row = |name: &str, taken: &mut Taken, counted: bool| {
        let (p50, p25, spread) = taken.quarters();
        let each = |sum: u64| sum as f64 / plan.count as f64;
        let counts = if counted {
            format!("{:>8.0} {:>8.0}", each(taken.allocations), each(taken.bytes))
        } else {
            format!("{:>8} {:>8}", "-", "-")
        };
        let (ratio, quick, spread) = (p50 / session, p25 / quick_session, spread * 100.0);
        println!("{name:<10} {called:<8} {p50:>8.2} {spread:>7.0}% {ratio:>8.2} {p25:>8.2} {quick:>8.2} {counts}");
    };
    for (side, taken) in sides.iter().zip(&mut taken) {
        row(side.name, taken, matches!(side.host, Host::Here(_)));
    }
    if !alone.times.is_empty() {
        row("(no host)", &mut alone, false);
    }
    Ok(())
}
