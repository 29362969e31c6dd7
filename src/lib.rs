//! phone-opus lets a coding agent phone another one.

#[cfg(panic = "abort")]
compile_error!("phone-opus survives panics of its actors and must be built with panic = \"unwind\"");

#[cfg(not(unix))]
compile_error!("phone-opus runs on Linux and macOS; Windows is not supported");

pub mod actors;
pub mod agents;
pub mod base;
pub mod checkout;
pub mod config;
pub mod exec;
pub mod failpoints;
pub mod jobs;
pub mod places;
pub mod protocol;
pub mod rollout;
pub mod runner;
pub mod system;
pub mod telemetry;
#[cfg(feature = "testkit")]
pub mod testkit;
pub mod tools;
pub mod waiting;
pub mod worker;
