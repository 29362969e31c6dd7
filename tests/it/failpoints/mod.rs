//! Fault plans and the self-test, on the program as a user has it.

mod fault_points;
mod selftest;
