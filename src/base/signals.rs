//! Signals while the program is replaced.
//!
//! Owns: which signals wait, and for how long. May not know: what anybody does when one comes; handlers are the program's.
//!
//! An `exec` takes the handlers away and leaves the mask and what is pending. So the thread that replaces the program holds
//! these signals first, and the next image lets them through once it has handlers again: none is lost, and none meets the
//! default action, which would end the process. A signal that a thread beside it took in the last microsecond would be lost
//! all the same; so our threads take none.
//!
//! Invariant: no child is started while signals are held; it would begin its life deaf.

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

/// What may be sent to ask for something, and would end a process without handlers.
const HELD: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGALRM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

fn held() -> SigSet {
    HELD.into_iter().collect()
}

/// Lets them wait, on this thread, until dropped.
#[derive(Debug)]
pub(crate) struct Holding {
    before: Option<SigSet>,
}

impl Holding {
    pub(crate) fn begin() -> Self {
        Self { before: held().thread_swap_mask(SigmaskHow::SIG_BLOCK).ok() }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // It was this thread's mask a moment ago, so it is one.
            let _ = before.thread_set_mask();
        }
    }
}

/// Lets every signal through on this thread: what an earlier image held, and what whoever started us had blocked. A mask is
/// taken over at an `exec`, and a program that was started with one would be deaf to whoever wants it to end.
///
/// To be called on a program's first thread, before it starts anything; by one that was started with a snapshot, once it has
/// handlers.
pub fn let_through() {
    let _ = SigSet::all().thread_unblock();
}

/// For a thread that does something beside: it takes none of the signals sent to the process. Each thread of a program that
/// hands over begins with this, or a signal may be lost in the moment of the `exec`.
pub fn leave_to_others() {
    let _ = held().thread_block();
}
