//! Jobs that wait for their turn: who holds them, what wakes them, and how each comes to its runner.
//!
//! Owns: the waiting process (one for each host that has something waiting), what it decides ([`core`]) and how it is spoken
//! to ([`wire`]). May not know: agents' output, MCP, who waits for an answer. The evidence that it lives is in
//! [`crate::jobs::evidence`].
//!
//! ```text
//! host ──stdin: here is a job──▶ waiting process ──stdout: its turn──▶ host ──spawns──▶ runner
//!                                      │  host gone: it starts the runner itself
//!                                      ├── blocked on the locks of the jobs that run (a permit comes free)
//!                                      └── blocked on its bell, a FIFO (a cancel, a settled job)
//! ```
//!
//! Invariants: (1) a waiting job costs no process, no timer and no look of its own; (2) its environment is the waiting
//! process's own, or was handed in with it, in memory alone, and no job is started with another one; (3) what frees a permit is known by a lock the kernel gives back, whatever ended its holder;
//! (4) whose turn it is follows from [`crate::jobs::admission::plan`] alone; (5) a job is started by nobody without its lock,
//! so that two who think it theirs start it once.

pub mod core;
pub mod process;
pub mod wire;
