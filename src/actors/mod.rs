//! The supervision tree. ARCHITECTURE.md draws it; each file here is one actor.
//!
//! Actors know nothing of wire text (`protocol` writes every byte) and nothing of SQL. Reading order: [`root`] for the
//! tree and its start and stop, [`doors`], [`sessions`], [`session`] for a client's side, [`workers`]
//! for execution, [`jobs`] for jobs, [`callers`] for whose, [`rollout`] for upgrades, [`telemetry`] for the sink, [`exporter`] for the way out, `pump` around both, [`reply`],
//! [`child`] and [`current`] for what they share.

pub mod callers;
pub mod child;
pub mod clock;
pub mod connections;
pub mod current;
pub mod doors;
pub mod exec;
pub mod exporter;
pub mod fleet;
pub mod health;
pub mod jobs;
pub mod kept;
mod pump;
pub mod reply;
pub mod rollout;
pub mod root;
pub mod session;
pub mod sessions;
pub mod supervision;
pub mod telemetry;
pub mod workers;
