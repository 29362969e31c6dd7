//! placeholder
use std::path::Path;
use super::Score;
use crate::config::WorkerIsolation;
/// x
#[derive(Debug, Clone)]
pub struct Draw { /// x
pub seed: u64, /// x
 pub plan: String, /// x
 pub isolation: WorkerIsolation }
impl std::fmt::Display for Draw { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(&self.plan) } }
impl Draw {
    /// x
    #[must_use]
    pub fn of(seed: u64) -> Self { Self { seed, plan: String::new(), isolation: WorkerIsolation::InProcess } }
}
/// x
#[must_use]
pub fn any_seed() -> u64 { 1 }
pub(super) async fn play(_program: &Path, _draw: &Draw) -> Score { Score::default() }
