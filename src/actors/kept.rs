//! What must outlive the actor that works with it: lent to one incarnation at a time, given back by its end.
//!
//! A panic loses an actor's state. A client's connection, or the pipes to a runner, cannot be made again, so no incarnation
//! owns them: it borrows them, and whatever ends it (return, panic, abort) puts them back for the next one.
//!
//! Invariants: (1) one borrower at a time; (2) what is lent comes back or is finished, it is never lost; (3) the lock is
//! held for a move of a pointer, never across anything that waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

#[derive(Debug)]
enum State<T> {
    Here(Box<T>),
    Lent,
    Over,
}

/// The place of a kept value.
#[derive(Debug)]
pub struct Kept<T> {
    state: Mutex<State<T>>,
    moved: Notify,
}

/// A borrowed value. Dropping it gives the value back.
#[derive(Debug)]
pub struct Lent<T> {
    home: Arc<Kept<T>>,
    value: Option<Box<T>>,
}

impl<T> Kept<T> {
    /// Keeps a value.
    #[must_use]
    pub fn new(value: T) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State::Here(Box::new(value))), moved: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        // Nothing that can panic leaves it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Borrows the value, after whoever has it has given it back. `None` when it is finished.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is taken before the future returns.
    pub async fn lend(self: &Arc<Self>) -> Option<Lent<T>> {
        loop {
            let moved = self.moved.notified();
            {
                let mut state = self.state();
                match std::mem::replace(&mut *state, State::Lent) {
                    State::Here(value) => return Some(Lent { home: Arc::clone(self), value: Some(value) }),
                    State::Lent => {}
                    State::Over => {
                        *state = State::Over;
                        return None;
                    }
                }
            }
            moved.await;
        }
    }

    /// Marks the value finished. Returns it if nobody has borrowed it; a borrowed value is dropped when it comes back.
    pub fn finish(&self) -> Option<T> {
        let state = std::mem::replace(&mut *self.state(), State::Over);
        self.moved.notify_waiters();
        match state {
            State::Here(value) => Some(*value),
            State::Lent | State::Over => None,
        }
    }
}

impl<T> Lent<T> {
    /// The value. There is one as long as the guard is.
    pub fn get(&mut self) -> Option<&mut T> {
        self.value.as_deref_mut()
    }

    /// Ends the keeping: the value is not needed any more.
    pub fn finish(mut self) -> Option<T> {
        let _ = self.home.finish();
        self.value.take().map(|value| *value)
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        let Some(value) = self.value.take() else { return };
        let mut state = self.home.state();
        if matches!(*state, State::Lent) {
            *state = State::Here(value);
        }
        drop(state);
        self.home.moved.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_lent_comes_back_from_a_panic_and_from_an_abort() {
        let kept = Kept::new(1);
        let home = Arc::clone(&kept);
        let panicking = tokio::spawn(async move {
            let mut lent = home.lend().await.expect("it is there");
            *lent.get().expect("lent") += 1;
            panic!("the borrower fails");
        });
        assert!(panicking.await.is_err());
        let home = Arc::clone(&kept);
        let (told, borrowed) = tokio::sync::oneshot::channel();
        let hanging = tokio::spawn(async move {
            let mut lent = home.lend().await.expect("it is back");
            *lent.get().expect("lent") += 1;
            let _ = told.send(());
            std::future::pending::<()>().await;
        });
        borrowed.await.expect("borrowed");
        hanging.abort();
        let lent = kept.lend().await.expect("it is back again");
        assert_eq!(lent.finish(), Some(3));
        assert!(kept.lend().await.is_none());
    }

    #[tokio::test]
    async fn what_is_finished_while_lent_ends_with_its_borrower() {
        let value = Arc::new(());
        let kept = Kept::new(Arc::clone(&value));
        let lent = kept.lend().await.expect("it is there");
        assert!(kept.finish().is_none());
        drop(lent);
        assert_eq!(Arc::strong_count(&value), 1);
        assert!(kept.lend().await.is_none());
    }
}
