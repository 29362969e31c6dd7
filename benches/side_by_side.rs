//! Side by side: our server, a floor and other servers in one run, in turns, judged by ratios.
//!
//! Owns: the order of things: build, preflight, rounds, report.
//! May not know: how a figure is measured (`probes`) or judged (`targets`).
//! Invariants:
//! 1. Peers take turns within each figure, and who begins changes from round to round.
//! 2. A peer that cannot do something loses that row and nothing else.
//! 3. Nothing here passes or fails anything: figures are for reading. `cargo test` does not run it.
//!
//! See `benches/README.md` for what the figures mean and which to trust.

#[cfg(target_os = "linux")]
#[path = "side_by_side/kills.rs"]
mod kills;
#[cfg(target_os = "linux")]
#[path = "side_by_side/load.rs"]
mod load;
#[cfg(target_os = "linux")]
#[path = "side_by_side/options.rs"]
mod options;
#[cfg(target_os = "linux")]
#[path = "side_by_side/peers.rs"]
mod peers;
#[cfg(target_os = "linux")]
#[path = "side_by_side/probes.rs"]
mod probes;
#[cfg(target_os = "linux")]
#[path = "side_by_side/proc.rs"]
mod proc;
#[cfg(target_os = "linux")]
#[path = "side_by_side/report.rs"]
mod report;
#[cfg(target_os = "linux")]
#[path = "side_by_side/run.rs"]
mod run;
#[cfg(target_os = "linux")]
#[path = "side_by_side/server.rs"]
mod server;
#[cfg(target_os = "linux")]
#[path = "side_by_side/sheet.rs"]
mod sheet;
#[cfg(target_os = "linux")]
#[path = "common/shipped.rs"]
mod shipped;
#[cfg(target_os = "linux")]
#[path = "side_by_side/targets.rs"]
mod targets;
#[cfg(target_os = "linux")]
#[path = "side_by_side/wire.rs"]
mod wire;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    run::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
