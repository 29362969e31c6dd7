//! What clients of each era see on the wire.

mod edge_cases;
mod eras;
mod rmcp_client;
mod serve;
mod transcripts;
