//! What tests need to stand in for the outside world.
//!
//! Owns: the scripted agent. Nothing outside tests and `selftest` uses it.

pub mod scripted_agent;
