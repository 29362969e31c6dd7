//! What it takes to try phone-opus: a scratch world with the real program in it, clients that speak in verbs, an agent
//! that plays a script, tools that fail on purpose, and the laws as functions.
//!
//! Owns: nothing the program needs to work, but the program tries itself with it and plays the scripted agent, so the feature
//! `cli` switches on `testkit`, and `selftest` for the two boards. May not know: the tests. The project's own integration tests use
//! nothing else, and everything here is public so that others can try their own tools and agents the same way.
//!
//! ```no_run
//! # use phone_opus::testkit::Rig;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let mut rig = Rig::new("target/debug/phone-opus");
//! let mut host = rig.serve().await;
//! let reply = host.consult(&rig.answering("42")).await.expect_success();
//! assert_eq!(reply["response"], "42");
//! rig.expect_runs(1);
//! rig.stop_and_check_invariants([host]).await;
//! # }
//! ```
//!
//! Reading order: [`rig`] is the world, [`client`] speaks to a host or a system, [`scripted_agent`] is the other side of
//! every consult, [`tools`] are for systems inside the test's own process, [`processes`] finds, ends and freezes what
//! runs, [`trouble`] is what its store and its own file can run into, [`starts`] is how the program may have been started, [`outputs`] is where its output may go, [`machine`] tries machines of a program's own, [`invariants`] are the laws, [`fuzzing`] holds what reads bytes to them, [`scoreboard`] strikes every fault point and holds the program to them, and
//! [`custody_board`] asks a program what becomes of prompts, secrets and processes.
//!
//! Invariants: (1) whatever fails panics with what was waited for and what was last seen, because a test and a
//! self-test run each case in a task of its own and read the panic; (2) waiting is for a condition, with a deadline;
//! (3) nothing of the machine's own agents, homes or keys reaches a rig's processes; (4) a rig that is dropped ends
//! every process of its world.

pub mod agent_process;
pub mod client;
#[cfg(feature = "selftest")]
pub mod custody_board;
pub mod exec_proxy;
pub mod fuzzing;
pub mod invariants;
pub mod machine;
pub mod outputs;
pub mod places;
pub mod processes;
pub mod rig;
#[cfg(feature = "selftest")]
pub mod scoreboard;
pub mod scripted_agent;
pub mod starts;
pub mod tools;
pub mod trouble;
mod voices;
pub mod wait;

pub use self::agent_process::AgentProcess;
pub use self::client::{Reply, Sent, TestClient};
pub use self::processes::{Process, Role};
pub use self::rig::{KEY, Rig, Run, give_away, installed_program, tried_program};
pub use self::scripted_agent::{ForkPlace, Script, Step};
pub use self::starts::{NOBODY, Start};
pub use self::trouble::{FileFate, OwnFileSystem, ProgramFile, SmallDisk};
pub use self::wait::{PATIENCE, Waiting, until, until_seen};
pub use crate::failpoints::{ActionKind, FaultAction, FaultPoint, FaultRule, Operation, Operations, Tools, When};
pub use rustix::process::Signal;
