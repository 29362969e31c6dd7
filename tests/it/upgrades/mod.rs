//! A new version in the place of the running one.

mod in_place;
mod rollout;
