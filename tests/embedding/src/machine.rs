//! A machine of the program's own: its agents run with a variable that says so.
//!
//! Owns: how a program is started there. May not know: which agents run on it.

use std::time::Duration;

use phone_opus::machine::{Machine, MachineError, MachineFuture, MachineProcess, MachineStart};

/// The name of the agent that runs there.
pub const AGENT: &str = "boxed";

pub struct Box;

impl Machine for Box {
    fn name(&self) -> &str {
        "box"
    }

    fn over_within(&self) -> Duration {
        Duration::ZERO
    }

    fn start(&self, start: MachineStart) -> MachineFuture<'_, Result<MachineProcess, MachineError>> {
        std::boxed::Box::pin(async move { Ok(MachineProcess::here(start.by("/usr/bin/env", ["BOXED=1"]))) })
    }
}
