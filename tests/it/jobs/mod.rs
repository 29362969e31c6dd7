//! Consults as jobs: who pays, where they look, what they leave, and that none is lost or run twice.

mod adoption;
mod adoption_model;
mod agents;
mod answers;
mod billing;
mod callers;
mod custody;
mod custody_model;
mod diff;
mod disk;
mod durability;
mod failures;
mod hostile_output;
mod lifetimes;
mod model;
mod places;
mod several;
mod waiting;
