//! Processes through every backend: this machine, our exec server by each of its transports, and the real `codex exec-server`;
//! and our server by itself, line by line.

mod cases;
mod conformance;
mod faults;
mod kit;
mod place;
mod server;
mod tree;
