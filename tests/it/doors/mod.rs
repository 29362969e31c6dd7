//! Doors: clients that come in by a socket, what they say beside JSON-RPC, and what a door can run into.

mod crowds;
mod host;
mod kit;
mod lines;
mod troubles;
mod upgrades;
