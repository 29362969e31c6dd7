//! What a machine keeps of a fleet's job: by which claim it has it, until the fleet was told how it ended.
//!
//! The job itself is one of this machine's store, under the fleet's id. May not know: the fleet.

use crate::base::ids::{FleetJobId, HostId, JobId};

/// Most of them that are read at a time; a host that tells them reads the rest afterwards.
pub const MOST_READ: usize = 256;

/// A claim of a fleet's job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FleetRun {
    /// The job, by the fleet's id.
    pub job: FleetJobId,
    /// The host that claimed it.
    pub host: HostId,
    /// The claim.
    pub fence: u64,
}

/// The id that a fleet's job has in a machine's own store: the same, so that no machine has two jobs for it (L3).
#[must_use]
pub fn local(job: FleetJobId) -> JobId {
    JobId::of_fleet(job)
}
