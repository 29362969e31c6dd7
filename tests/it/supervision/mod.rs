//! Crashes, crowds and restarts of the parts of a host.

mod crowds;
mod in_process;
mod isolation;
mod kills;
mod model;
mod panics;
