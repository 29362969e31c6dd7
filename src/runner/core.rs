//! The runner's decisions: when a job may start, when it must end, and why.
//!
//! Owns: the caller-lost, deadline and stall clocks, the reason of an end. May not know: processes, the store, I/O;
//! `now` is passed in.
//!
//! ```text
//!  waiting ──its turn──▶ running ──process over──▶ done
//!     └── stop ──▶ done     └── stop ──▶ ending ──process over──▶ done
//! ```
//!
//! Invariants: (1) the first reason to end a job stays; (2) a background job never ends because a host is gone.

use std::time::{Duration, Instant};

use crate::agents::StopCause;
use crate::fault::{Fault, FaultCode};
use crate::jobs::{CancelReason, JobMode};
use crate::store::Glance;

/// How long a synchronous job survives its caller: long enough for a host that replaces itself to come back.
const CALLER_GRACE: Duration = Duration::from_secs(2);

/// Longest a job waits for its turn. A day: nobody waits longer for a second opinion.
const QUEUE_BOUND: Duration = Duration::from_secs(24 * 60 * 60);

/// The clocks of one job.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    /// How long the agent may run.
    pub timeout: Duration,
    /// How long it may be silent.
    pub stall: Duration,
}

/// The state of one job in its runner.
#[derive(Debug)]
pub struct RunnerCore {
    clocks: Clocks,
    began: Instant,
    mode: JobMode,
    host_gone: Option<Instant>,
    running: Option<Running>,
    stop: Option<StopCause>,
}

#[derive(Debug, Clone, Copy)]
struct Running {
    since: Instant,
    heard: Instant,
}

impl RunnerCore {
    /// A job that waits for its turn.
    #[must_use]
    pub fn new(clocks: Clocks, mode: JobMode, now: Instant) -> Self {
        Self { clocks, began: now, mode, host_gone: None, running: None, stop: None }
    }

    /// The store was looked at.
    pub fn glanced(&mut self, glance: &Glance) {
        self.mode = glance.mode;
        if let Some(reason) = glance.cancel_requested {
            self.end(StopCause::Cancelled(reason));
        }
    }

    /// The host asked for the end; the store says why, if it knows.
    pub fn asked_to_end(&mut self, recorded: Option<CancelReason>) {
        self.end(StopCause::Cancelled(recorded.unwrap_or(CancelReason::Requested)));
    }

    /// The runner itself was told to end.
    pub fn told_to_stop(&mut self) {
        self.end(StopCause::Cancelled(CancelReason::RunnerStopped));
    }

    /// The host's end of the pipe is closed.
    pub fn host_went(&mut self, now: Instant) {
        self.host_gone.get_or_insert(now);
    }

    /// The agent was started.
    pub fn started(&mut self, now: Instant) {
        self.running = Some(Running { since: now, heard: now });
    }

    /// The agent was heard of.
    pub fn heard(&mut self, now: Instant) {
        if let Some(running) = &mut self.running {
            running.heard = now;
        }
    }

    /// The run must not go on.
    pub fn faulted(&mut self, fault: Fault) {
        self.end(StopCause::Faulted(Box::new(fault)));
    }

    fn end(&mut self, cause: StopCause) {
        self.stop.get_or_insert(cause);
    }

    /// Time has passed. Returns why the job is to end, from the first moment on that it is.
    pub fn tick(&mut self, now: Instant) -> Option<&StopCause> {
        let past = |since: Instant, limit: Duration| now.saturating_duration_since(since) >= limit;
        if self.mode == JobMode::Sync && self.host_gone.is_some_and(|at| past(at, CALLER_GRACE)) {
            self.end(StopCause::Cancelled(CancelReason::CallerLost));
        }
        match self.running {
            Some(run) if past(run.since, self.clocks.timeout) => self.end(StopCause::Deadline),
            Some(run) if past(run.heard, self.clocks.stall) => self.end(StopCause::Stalled),
            None if past(self.began, QUEUE_BOUND) => {
                self.end(StopCause::Faulted(Box::new(Fault::new(
                    FaultCode::DeadlineExceeded,
                    "the job waited a day for its turn.",
                ))));
            }
            _ => {}
        }
        self.stop.as_ref()
    }

    /// Why the job is to end, if it is.
    #[must_use]
    pub fn stop(&self) -> Option<&StopCause> {
        self.stop.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::JobState;

    const CLOCKS: Clocks = Clocks { timeout: Duration::from_secs(100), stall: Duration::from_secs(10) };

    fn core(mode: JobMode) -> (RunnerCore, Instant) {
        let now = Instant::now();
        (RunnerCore::new(CLOCKS, mode, now), now)
    }

    fn glance(mode: JobMode, cancel_requested: Option<CancelReason>) -> Glance {
        Glance { state: JobState::Running, mode, cancel_requested, last_event: 0 }
    }

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_synchronous_job_ends_two_seconds_after_its_host_and_a_background_job_does_not() {
        let (mut sync, now) = core(JobMode::Sync);
        sync.host_went(now);
        assert_eq!(sync.tick(now + secs(1)), None);
        assert_eq!(sync.tick(now + secs(2)), Some(&StopCause::Cancelled(CancelReason::CallerLost)));

        let (mut background, now) = core(JobMode::Background);
        background.host_went(now);
        assert_eq!(background.tick(now + secs(3600)), None);
    }

    #[test]
    fn a_job_that_was_handed_over_survives_its_host() {
        let (mut core, now) = core(JobMode::Sync);
        core.host_went(now);
        core.glanced(&glance(JobMode::Background, None));
        assert_eq!(core.tick(now + secs(60)), None);
    }

    #[test]
    fn silence_and_the_deadline_are_two_clocks() {
        let (mut silent, now) = core(JobMode::Background);
        silent.started(now);
        silent.heard(now + secs(5));
        assert_eq!(silent.tick(now + secs(14)), None);
        assert_eq!(silent.tick(now + secs(15)), Some(&StopCause::Stalled));

        let (mut busy, now) = core(JobMode::Background);
        busy.started(now);
        busy.heard(now + secs(99));
        assert_eq!(busy.tick(now + secs(99)), None);
        assert_eq!(busy.tick(now + secs(100)), Some(&StopCause::Deadline));
    }

    #[test]
    fn a_waiting_job_has_no_stall_but_a_bound() {
        let (mut core, now) = core(JobMode::Background);
        assert_eq!(core.tick(now + secs(3600)), None);
        assert!(matches!(core.tick(now + QUEUE_BOUND), Some(StopCause::Faulted(_))));
    }

    #[test]
    fn the_first_reason_stays() {
        let (mut core, now) = core(JobMode::Sync);
        core.asked_to_end(None);
        core.told_to_stop();
        core.glanced(&glance(JobMode::Sync, Some(CancelReason::CallerLost)));
        assert_eq!(core.tick(now), Some(&StopCause::Cancelled(CancelReason::Requested)));
        let (mut core, _) = self::core(JobMode::Sync);
        core.asked_to_end(Some(CancelReason::CallerLost));
        assert_eq!(core.stop(), Some(&StopCause::Cancelled(CancelReason::CallerLost)));
    }
}
