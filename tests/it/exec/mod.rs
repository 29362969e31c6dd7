//! Process sessions on other machines, by the real program.

mod kit;
mod server;
