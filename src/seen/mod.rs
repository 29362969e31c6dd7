//! What there is to see of a state directory, for people: how it is, and what it did.
//!
//! Owns: one look at everything that lives ([`live`]), the past of a period ([`past`]) and the figures that follow from it
//! ([`figures`], pure), and what is read back of telemetry's file ([`said`]). May not know: who is shown it, and how; SQL.
//!
//! ```text
//!  store, hosts' locks, daemon's word ──▶ Live ─┐
//!  store, telemetry.jsonl ──▶ Past ──▶ Figures ─┴──▶ status, top, report, dashboard
//! ```
//!
//! Invariants: (1) looking changes nothing, and makes nothing: where nothing was ever asked there is no store afterwards either; (2) no
//! prompt and no answer is read (L13): who wants one asks the store for that job; (3) what is looked at is bounded, and what is beyond
//! a bound is said.

pub mod figures;
pub mod live;
pub mod past;
pub mod said;
