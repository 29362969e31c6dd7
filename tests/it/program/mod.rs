//! The program as people and shells meet it: its command line, its terminal, and how it is started.

mod cli;
mod clients;
mod doctor;
mod fleet;
mod keyboard;
mod packages;
#[path = "../../../benches/offline/questions.rs"]
mod questions;
mod report;
mod starts;
mod terminal;
mod top;
mod widths;
