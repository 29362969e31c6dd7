//! A runner's process, started by this image of the program or by an earlier one.
//!
//! Owns: that it is waited for. May not know: its job, its pipes.
//!
//! A process stays our child when our program is replaced in place, but what the runtime knew of it is gone. So an
//! inherited one is asked about by its number, which stays its own until it was waited for. It is looked at, not listened
//! to: nobody else's children may be reaped by a signal meant for all, and a runner is waited for only when its pipe has
//! ended already.

use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::process::Child;
use tokio::sync::watch;

/// How often an inherited process is looked at by whoever waits for its end, which is due.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How often one is looked at for which nobody waits.
const LEFT_EVERY: Duration = Duration::from_millis(500);

/// How long one that is due is looked at that often.
const DUE: Duration = Duration::from_secs(5);

/// How many runners of a system are seen out: their end is due, and nobody but whoever stops the system waits for it. Cheap to
/// clone.
#[derive(Clone)]
pub struct Leaving(watch::Sender<usize>);

impl Default for Leaving {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Leaving {
    fn one_more(&self) -> LeavingOne {
        self.0.send_modify(|many| *many += 1);
        LeavingOne(self.clone())
    }

    /// Waits until none is left.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn all_have_left(&self) {
        // The sender is held here.
        let _ = self.0.subscribe().wait_for(|many| *many == 0).await;
    }
}

/// One of them, until it is dropped.
struct LeavingOne(Leaving);

impl Drop for LeavingOne {
    fn drop(&mut self) {
        self.0.0.send_modify(|many| *many = many.saturating_sub(1));
    }
}

/// The process.
pub(crate) enum RunnerChild {
    /// Started here.
    Ours(Child),
    /// Started by an earlier image.
    Inherited(Inherited),
}

/// A process an earlier image started; reaped sooner or later, whatever becomes of this.
pub(crate) struct Inherited(Option<Pid>);

/// Whether it was there to be reaped, or is nobody any more.
fn is_gone(pid: Pid) -> bool {
    // An error says that it is no child of ours.
    !matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None))
}

impl RunnerChild {
    /// The process of this number, if that is one.
    pub(crate) fn inherited(pid: i32) -> Option<Self> {
        Pid::from_raw(pid).map(|pid| Self::Inherited(Inherited(Some(pid))))
    }

    /// Its number, unless it was waited for.
    pub(crate) fn pid(&self) -> Option<i32> {
        match self {
            Self::Ours(child) => child.id().and_then(|pid| i32::try_from(pid).ok()),
            Self::Inherited(Inherited(pid)) => pid.map(|pid| pid.as_raw_nonzero().get()),
        }
    }

    /// Waits for its end. The code it exited with, where the system told it to us.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub(crate) async fn wait(&mut self) -> Option<i32> {
        match self {
            Self::Ours(child) => child.wait().await.ok()?.code(),
            Self::Inherited(Inherited(left)) => {
                while let Some(pid) = *left {
                    if is_gone(pid) {
                        *left = None;
                        break;
                    }
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                None
            }
        }
    }

    /// Waits for its end, which is due, beside whoever lets go of it.
    pub(crate) fn see_out(mut self, leaving: &Leaving) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let counted = leaving.one_more();
            runtime.spawn(async move {
                let _counted = counted;
                if let Self::Inherited(_) = &self {
                    // Looked at often for so long only; whatever becomes of it, it is reaped.
                    let _ = tokio::time::timeout(DUE, self.wait()).await;
                } else {
                    self.wait().await;
                }
            });
        }
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        match self {
            Self::Ours(child) => drop(child.start_kill()),
            // Not waited for, so the number is still its own.
            Self::Inherited(Inherited(Some(pid))) => drop(kill_process(*pid, Signal::KILL)),
            Self::Inherited(Inherited(None)) => {}
        }
    }
}

impl Drop for Inherited {
    fn drop(&mut self) {
        let Some(pid) = self.0.take().filter(|pid| !is_gone(*pid)) else { return };
        // It goes on by itself, and is to leave nothing behind when it ends.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                while !is_gone(pid) {
                    tokio::time::sleep(LEFT_EVERY).await;
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::future::poll_immediate;

    use super::*;

    #[tokio::test]
    async fn who_stops_a_system_waits_for_each_runner_that_leaves() {
        let leaving = Leaving::default();
        assert_eq!(poll_immediate(pin!(leaving.all_have_left())).await, Some(()), "nobody leaves");
        let (one, other) = (leaving.one_more(), leaving.clone().one_more());
        let mut all = pin!(leaving.all_have_left());
        assert_eq!(poll_immediate(&mut all).await, None);
        drop(one);
        assert_eq!(poll_immediate(&mut all).await, None, "the other one has not left");
        drop(other);
        all.await;
    }
}
