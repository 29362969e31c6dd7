//! Work that may stand still, beside the thread that must not.
//!
//! Owns: starting a thread for it, or not. May not know: the work. The runtime's own pool of threads panics where the system
//! has no thread to give, and takes whoever asked along; here that is an answer.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::signals;

/// A thread's stack: what is done beside looks at files.
const STACK: usize = 512 * 1024;

/// Work under way on a thread of its own. Dropping it lets the work go on for nobody.
#[derive(Debug)]
pub(crate) struct Beside<T>(oneshot::Receiver<T>);

/// Begins it; `None` when there is no thread to be had.
pub(crate) fn beside<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Option<Beside<T>> {
    let (done, waited_for) = oneshot::channel();
    let run = move || {
        // Signals are for the first thread: one would be lost here in the moment of an upgrade.
        signals::leave_to_others();
        // Whoever does not wait any more has said so.
        let _ = done.send(work());
    };
    let started = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(run);
    if let Err(error) = &started {
        tracing::warn!(%error, name, "there is no thread to be had");
    }
    started.ok().map(|_| Beside(waited_for))
}

impl<T> Beside<T> {
    /// Whether it is done, or has panicked.
    pub(crate) fn is_finished(&self) -> bool {
        !self.0.is_empty() || self.0.is_terminated()
    }
}

/// What the work gave; `None` when it panicked.
impl<T> Future for Beside<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(Result::ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_beside_gives_what_it_made_and_nothing_when_it_panics() {
        let work = beside("test", || 42).expect("a thread");
        assert_eq!(work.await, Some(42));
        let panics = beside("test", || panic!("at work")).expect("a thread");
        assert_eq!(panics.await, None::<()>);
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let work = beside("test", move || wait.recv().is_ok()).expect("a thread");
        assert!(!work.is_finished());
        go.send(()).expect("it waits");
        assert_eq!(work.await, Some(true));
    }
}
