//! Tasks of the runtime whose futures lie on the heap.
//!
//! The runtime makes its whole machinery of a task, some hundred functions, for each type of future it is given; there are more than a
//! hundred types in this crate. Boxed, they are one type for each outcome: of 107,800 functions that were compiled, 8,600 are gone, and a
//! released program is a twentieth smaller. It costs an allocation for each task, beside the one the runtime makes anyway.
//!
//! Owns: [`spawn`], [`spawn_blocking`], [`TaskSet`]. May not know: what runs in a task.

use std::ops::{Deref, DerefMut};

use futures_util::future::BoxFuture;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

/// Starts a task. It goes on when the handle is dropped.
///
/// # Panics
///
/// Outside a runtime.
pub(crate) fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    let future: BoxFuture<'static, T> = Box::pin(future);
    tokio::spawn(future)
}

/// Runs what blocks on a thread that may be blocked. It goes on when the handle is dropped.
///
/// # Panics
///
/// Outside a runtime.
pub(crate) fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let work: Box<dyn FnOnce() -> T + Send> = Box::new(work);
    tokio::task::spawn_blocking(work)
}

/// Tasks that are aborted when this is dropped: a [`JoinSet`] of boxed futures.
#[derive(Debug)]
pub(crate) struct TaskSet<T>(JoinSet<T>);

impl<T> Default for TaskSet<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> TaskSet<T> {
    /// None.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self(JoinSet::new())
    }
}

impl<T: Send + 'static> TaskSet<T> {
    /// Starts one.
    ///
    /// # Panics
    ///
    /// Outside a runtime.
    pub(crate) fn spawn(&mut self, future: impl Future<Output = T> + Send + 'static) -> AbortHandle {
        let future: BoxFuture<'static, T> = Box::pin(future);
        self.0.spawn(future)
    }

    /// Runs what blocks on a thread that may be blocked. It cannot be aborted once it runs.
    ///
    /// # Panics
    ///
    /// Outside a runtime.
    pub(crate) fn spawn_blocking(&mut self, work: impl FnOnce() -> T + Send + 'static) -> AbortHandle {
        let work: Box<dyn FnOnce() -> T + Send> = Box::new(work);
        self.0.spawn_blocking(work)
    }
}

impl<T> Deref for TaskSet<T> {
    type Target = JoinSet<T>;

    fn deref(&self) -> &JoinSet<T> {
        &self.0
    }
}

impl<T> DerefMut for TaskSet<T> {
    fn deref_mut(&mut self) -> &mut JoinSet<T> {
        &mut self.0
    }
}
