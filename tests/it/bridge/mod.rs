//! `mcp connect`, the real program, with daemons of a test's own and with real ones.

mod alone;
mod kills;
mod peer;
mod real;
mod skew;
mod stops;
