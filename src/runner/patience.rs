//! A store that refuses for a moment is asked again.
//!
//! Owns: which refusals pass by themselves, and the pauses. May not know: what is asked, how long it is worth to wait.

use std::time::{Duration, Instant};

use crate::jobs::store::StoreError;

/// Asks a store that is busy, full or just made anew again, for so long.
///
/// # Errors
///
/// The last one.
pub(super) async fn insist<T, F>(patience: Duration, mut verb: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let began = Instant::now();
    let mut pause = Duration::from_millis(100);
    loop {
        match verb().await {
            Err(error) if is_passing(&error) && began.elapsed() < patience => {
                tracing::warn!(%error, "the store is asked again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
            }
            done => return done,
        }
    }
}

/// Whether the store may work again in a moment.
pub(super) fn is_passing(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Busy
            | StoreError::Overloaded
            | StoreError::Full
            | StoreError::Io { .. }
            | StoreError::Panicked
            | StoreError::Stuck
    )
}
