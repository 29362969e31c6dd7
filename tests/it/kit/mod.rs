//! The test kit tried by itself, and what the fuzzers found.

mod fuzzing;
mod rig;
mod scripted_agent;
