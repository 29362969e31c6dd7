//! The runner's decisions: when its job must end, and why. When it may start is decided by `admission` and the store.
//!
//! Owns: the caller-lost, deadline, stall and leaving clocks, who has custody of the job, the reason of an end. May not know:
//! processes, the store, locks, I/O; `now` is passed in.
//!
//! ```text
//!  beginning ──started──▶ running ──process over──▶ done
//!     └── stop ──▶ done     └── stop ──▶ ending ──process over──▶ done
//! ```
//!
//! The agent's silence is time in which it could have been heard, and is therefore not a difference of two clocks: it is
//! added up from looks at the pipe that came on time and found it empty. A runner that was stopped with its agent, a
//! machine that slept, a store that kept the runner waiting are no silence of the agent.
//!
//! A job has the custody of the host at the other end of its pipe. When that end is closed, a job that may be adopted has
//! the custody of the host its row names, for as long as that one holds its lock; from the moment on in which nobody has it,
//! a synchronous job is given a grace in which another host may come. Others are given [`CALLER_GRACE`].
//!
//! ```text
//!  pipe ──closed──▶ nobody's ──the row's host lives──▶ adopted ──its lock is free──▶ nobody's
//!                     └── grace over, synchronous ──▶ ending
//! ```
//!
//! Invariants: (1) the first reason to end a job stays; (2) a background job never ends because a host is gone; (3) an
//! agent is taken for stuck only by looks that would have heard it; (4) one that has given its result is told to leave; (5) L7:
//! a synchronous job without a host ends a grace after it lost the last one, however many it had.

use std::time::{Duration, Instant};

use crate::agents::{AgentEvent, StopCause};
use crate::base::fault::Fault;
use crate::base::ids::HostId;
use crate::jobs::store::Glance;
use crate::jobs::{CancelReason, JobMode};

/// How long a synchronous job that nobody may adopt survives its caller: long enough for a host that replaces itself to come
/// back.
const CALLER_GRACE: Duration = Duration::from_secs(2);

/// Time between two looks above which the second one was late. Eight times what is usual: a busy machine is not late, a
/// stopped process is.
const LATE: Duration = Duration::from_secs(2);

/// How long an agent may stay after its result without another event. Claude Code leaves within half a second; one that
/// has something left to do says so.
const LEAVING: Duration = Duration::from_secs(5);

/// How long it may stay in all, when what it says after its result is nothing of a turn.
const LEAVING_BOUND: Duration = Duration::from_secs(60);

/// The longest announced wait that is believed; the deadline ends a job that waits longer.
const ANNOUNCED_MOST: Duration = Duration::from_secs(60 * 60);

/// What a look at the agent's pipes found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pipe {
    /// Nothing was in them.
    Empty,
    /// Something was.
    Unread,
}

/// Whether a host was found to live, by its lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostSeen {
    /// It holds its lock.
    Alive,
    /// Nobody does.
    Gone,
}

/// Who may adopt a job, and how long it waits for that.
#[derive(Debug, Clone, Copy)]
struct Adoptable {
    /// The host that has custody of it, by its row.
    host: HostId,
    grace: Duration,
}

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
    mode: JobMode,
    /// `None` when it depends on its pipe alone.
    adoptable: Option<Adoptable>,
    /// The pipe is closed.
    pipe_over: bool,
    /// Since when no host has custody of it.
    lost: Option<Instant>,
    running: Option<Running>,
    stop: Option<StopCause>,
}

#[derive(Debug, Clone, Copy)]
struct Running {
    since: Instant,
    /// When its pipes were last looked at.
    looked: Instant,
    /// How long it has been silent, as far as it could have been heard.
    silent: Duration,
    /// Until when it has announced to be silent.
    announced: Option<Instant>,
    /// Since its result, while nothing of a turn has followed.
    leaving: Option<Leaving>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Leaving {
    silent: Duration,
    total: Duration,
}

impl RunnerCore {
    /// A job whose turn has come. How long it may try to begin is bounded where it tries; how long it may wait is bounded by
    /// the waiting process.
    #[must_use]
    pub fn new(clocks: Clocks, mode: JobMode) -> Self {
        Self { clocks, mode, adoptable: None, pipe_over: false, lost: None, running: None, stop: None }
    }

    /// The same for a job that is in the custody of this host by its row, and waits so long to be adopted when it is in
    /// nobody's. Without either it is as any other.
    #[must_use]
    pub fn adoptable(self, host: Option<HostId>, grace: Duration) -> Self {
        let adoptable = host.filter(|_| !grace.is_zero()).map(|host| Adoptable { host, grace });
        Self { adoptable, ..self }
    }

    /// The store was looked at.
    pub fn glanced(&mut self, glance: &Glance) {
        self.mode = glance.mode;
        if let Some(reason) = glance.cancel_requested {
            self.end(StopCause::Cancelled(reason));
        }
        if let (Some(adoptable), Some(host)) = (&mut self.adoptable, glance.host)
            && adoptable.host != host
        {
            // It was adopted. Whether that one is gone again by now is to be looked at.
            adoptable.host = host;
            self.lost = None;
        }
    }

    /// The host whose lock says whether somebody has custody of the job; `None` where that is not in question.
    #[must_use]
    pub fn host_to_look_for(&self) -> Option<HostId> {
        self.adoptable.filter(|_| self.pipe_over && self.mode == JobMode::Sync).map(|adoptable| adoptable.host)
    }

    /// A host was looked for.
    pub fn looked_for_host(&mut self, host: HostId, seen: HostSeen, now: Instant) {
        if self.host_to_look_for() != Some(host) {
            return;
        }
        match seen {
            HostSeen::Alive => self.lost = None,
            HostSeen::Gone => {
                self.lost.get_or_insert(now);
            }
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
        self.pipe_over = true;
        self.lost.get_or_insert(now);
    }

    /// The agent was started.
    pub fn started(&mut self, now: Instant) {
        self.running =
            Some(Running { since: now, looked: now, silent: Duration::ZERO, announced: None, leaving: None });
    }

    /// The agent was heard of.
    pub fn heard(&mut self) {
        if let Some(running) = &mut self.running {
            running.silent = Duration::ZERO;
        }
    }

    /// The agent said this.
    pub fn said(&mut self, event: &AgentEvent, now: Instant) {
        let Some(running) = &mut self.running else { return };
        match event {
            AgentEvent::Result { .. } => running.leaving = Some(Leaving::default()),
            AgentEvent::Retrying { delay_ms, .. } => {
                let until = now + Duration::from_millis(*delay_ms).min(ANNOUNCED_MOST);
                running.announced = running.announced.max(Some(until));
                // It goes on.
                running.leaving = None;
            }
            event if event.is_of_a_turn() => running.leaving = None,
            _ => {
                if let Some(leaving) = &mut running.leaving {
                    leaving.silent = Duration::ZERO;
                }
            }
        }
    }

    /// The agent's pipes were looked at.
    pub fn listened(&mut self, now: Instant, pipe: Pipe) {
        let stall = self.clocks.stall;
        let Some(running) = &mut self.running else { return };
        let gap = now.saturating_duration_since(running.looked);
        running.looked = now;
        if let Some(leaving) = running.leaving.as_mut().filter(|_| gap <= LATE) {
            // However much it says: what would take this back is heard in a moment.
            leaving.total += gap;
        }
        if gap > LATE || pipe == Pipe::Unread {
            // Whoever listens late has heard nothing of what was said meanwhile, and it may have been stopped as well.
            running.silent = Duration::ZERO;
            if let Some(leaving) = &mut running.leaving {
                leaving.silent = Duration::ZERO;
            }
            return;
        }
        if running.announced.is_none_or(|until| now >= until) {
            running.silent += gap;
        }
        if let Some(leaving) = &mut running.leaving {
            leaving.silent += gap;
        }
        let left = running.leaving.is_some_and(|since| since.silent >= LEAVING);
        let stalled = running.silent >= stall;
        if left {
            self.end(StopCause::Lingered);
        } else if stalled {
            self.end(StopCause::Stalled);
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
        let grace = self.adoptable.map_or(CALLER_GRACE, |adoptable| adoptable.grace);
        if self.mode == JobMode::Sync && self.lost.is_some_and(|at| past(at, grace)) {
            self.end(StopCause::Cancelled(CancelReason::CallerLost));
        }
        match self.running {
            Some(run) if past(run.since, self.clocks.timeout) => self.end(StopCause::Deadline),
            Some(Running { leaving: Some(since), .. }) if since.total >= LEAVING_BOUND => self.end(StopCause::Lingered),
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
        (RunnerCore::new(CLOCKS, mode), now)
    }

    fn glance(mode: JobMode, cancel_requested: Option<CancelReason>) -> Glance {
        Glance { state: JobState::Running, mode, cancel_requested, last_event: 0, host: None }
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

    const GRACE: Duration = secs(30);

    fn named(host: HostId) -> Glance {
        Glance { host: Some(host), ..glance(JobMode::Sync, None) }
    }

    /// What a look of the runner finds: the host its row names, and whether that one lives.
    fn look(core: &mut RunnerCore, host: HostId, seen: HostSeen, now: Instant) -> Option<StopCause> {
        core.glanced(&named(host));
        if let Some(host) = core.host_to_look_for() {
            core.looked_for_host(host, seen, now);
        }
        core.tick(now).cloned()
    }

    #[test]
    fn a_job_that_may_be_adopted_waits_for_that_and_each_host_it_loses_begins_the_wait_anew() {
        const LOST: StopCause = StopCause::Cancelled(CancelReason::CallerLost);
        let [one, two, three] = [(); 3].map(|()| HostId::random());
        let core = |mode| RunnerCore::new(CLOCKS, mode).adoptable(Some(one), GRACE);
        let start = Instant::now();
        let at = |seconds| start + secs(seconds);

        let mut job = core(JobMode::Sync);
        assert_eq!(job.host_to_look_for(), None, "its pipe says that its host is there");
        assert_eq!(look(&mut job, one, HostSeen::Gone, at(0)), None);
        job.host_went(at(10));
        assert_eq!(look(&mut job, one, HostSeen::Gone, at(39)), None);
        assert_eq!(look(&mut job, one, HostSeen::Gone, at(40)), Some(LOST), "nobody came");

        let mut job = core(JobMode::Sync);
        job.host_went(at(0));
        assert_eq!(look(&mut job, two, HostSeen::Alive, at(29)), None, "adopted");
        assert_eq!(look(&mut job, two, HostSeen::Alive, at(1000)), None);
        assert_eq!(look(&mut job, two, HostSeen::Gone, at(1001)), None, "lost again");
        assert_eq!(look(&mut job, three, HostSeen::Gone, at(1030)), None, "the third one is gone as it is seen");
        assert_eq!(look(&mut job, three, HostSeen::Gone, at(1059)), None);
        assert_eq!(look(&mut job, three, HostSeen::Gone, at(1060)), Some(LOST));

        let mut background = core(JobMode::Background);
        background.host_went(at(0));
        assert_eq!(background.host_to_look_for(), None, "nobody needs to be there");
        assert_eq!(background.tick(at(1000)), None);
        // What a caller of another host that is gone says changes nothing.
        let mut job = core(JobMode::Sync);
        job.host_went(at(0));
        job.looked_for_host(two, HostSeen::Alive, at(1));
        assert_eq!(job.tick(at(30)), Some(&LOST));
    }

    #[test]
    fn a_job_that_nobody_may_adopt_does_not_wait_for_it() {
        for (host, grace) in [(None, GRACE), (Some(HostId::random()), Duration::ZERO)] {
            let now = Instant::now();
            let mut job = RunnerCore::new(CLOCKS, JobMode::Sync).adoptable(host, grace);
            job.host_went(now);
            job.glanced(&named(HostId::random()));
            assert_eq!(job.host_to_look_for(), None);
            assert_eq!(job.tick(now + secs(2)), Some(&StopCause::Cancelled(CancelReason::CallerLost)));
        }
    }

    /// Looks of an idle runner, four a second, from `from` to `to` seconds after the start; the first moment there is a
    /// reason to end, in milliseconds.
    fn listen(core: &mut RunnerCore, start: Instant, from: u64, to: u64) -> Option<u64> {
        (from * 4 + 1..=to * 4).map(|quarter| quarter * 250).find(|ms| {
            let now = start + Duration::from_millis(*ms);
            core.listened(now, Pipe::Empty);
            core.tick(now).is_some()
        })
    }

    fn result() -> AgentEvent {
        AgentEvent::Result { result: Box::default() }
    }

    #[test]
    fn silence_and_the_deadline_are_two_clocks() {
        let (mut silent, now) = core(JobMode::Background);
        silent.started(now);
        assert_eq!(listen(&mut silent, now, 0, 5), None);
        silent.heard();
        assert_eq!(listen(&mut silent, now, 5, 60), Some(15_000));
        assert_eq!(silent.stop(), Some(&StopCause::Stalled));

        let (mut busy, now) = core(JobMode::Background);
        busy.started(now);
        for second in 0..99 {
            busy.heard();
            assert_eq!(listen(&mut busy, now, second, second + 1), None);
        }
        assert_eq!(listen(&mut busy, now, 99, 101), Some(100_000));
        assert_eq!(busy.stop(), Some(&StopCause::Deadline));
    }

    #[test]
    fn an_agent_is_not_stuck_while_nobody_could_have_heard_it() {
        // What happens after nine of ten seconds of silence, and when the agent is taken for stuck if it says no more.
        type Happens = fn(&mut RunnerCore, Instant);
        let table: [(&str, Happens, u64); 7] = [
            ("nothing", |_, _| {}, 10_000),
            // The look that comes late counts for nothing, and the clock begins anew.
            ("the runner was stopped", |core, now| core.listened(now + secs(30), Pipe::Empty), 40_000 + 9_000),
            ("the pipe was full", |core, now| core.listened(now, Pipe::Unread), 19_000),
            ("it was heard", |core, _| core.heard(), 19_000),
            ("a wait was announced", |core, now| retry(core, now, 14_000), 9_000 + 14_000 + 750),
            (
                "two waits were announced",
                |core, now| {
                    retry(core, now, 20_000);
                    retry(core, now, 1_000)
                },
                9_000 + 20_000 + 750,
            ),
            ("a wait was announced for ever", |core, now| retry(core, now, u64::MAX), 0),
        ];
        for (what, happens, stuck) in table {
            let (mut core, start) = core(JobMode::Background);
            core.started(start);
            assert_eq!(listen(&mut core, start, 0, 9), None, "{what}");
            happens(&mut core, start + secs(9));
            let from = if what.contains("stopped") { 39 } else { 9 };
            let found = listen(&mut core, start, from, 99);
            assert_eq!(found, (stuck > 0).then_some(stuck), "{what}");
            assert_eq!(core.stop().is_some(), stuck > 0, "{what}");
        }
    }

    fn retry(core: &mut RunnerCore, now: Instant, delay_ms: u64) {
        core.said(&AgentEvent::Retrying { attempt: 1, max: 2, delay_ms, status: None }, now);
    }

    #[test]
    fn an_agent_that_has_given_its_result_is_told_to_leave() {
        type Then = fn(&mut RunnerCore, Instant);
        let table: [(&str, Then, Option<StopCause>, u64); 5] = [
            ("nothing", |_, _| {}, Some(StopCause::Lingered), 5_000),
            ("an event", |core, now| core.said(&AgentEvent::ExtraUsage, now), Some(StopCause::Lingered), 9_000),
            ("a second result", |core, now| core.said(&result(), now), Some(StopCause::Lingered), 9_000),
            // The model goes on: from here on it is the stall clock again, which began four seconds before.
            ("a text", |core, now| core.said(&AgentEvent::Thinking, now), Some(StopCause::Stalled), 10_000),
            ("a late look", |core, now| core.listened(now + secs(20), Pipe::Empty), Some(StopCause::Lingered), 29_000),
        ];
        for (what, then, cause, at) in table {
            let (mut core, start) = core(JobMode::Background);
            core.started(start);
            core.heard();
            core.said(&result(), start);
            assert_eq!(listen(&mut core, start, 0, 4), None, "{what}");
            then(&mut core, start + secs(4));
            let from = if what.contains("late") { 24 } else { 4 };
            assert_eq!(listen(&mut core, start, from, 60), Some(at), "{what}");
            assert_eq!(core.stop(), cause.as_ref(), "{what}");
        }
    }

    #[test]
    fn an_agent_that_chatters_after_its_result_is_told_to_leave_after_a_minute() {
        let (mut core, start) = core(JobMode::Background);
        core.started(start);
        core.said(&result(), start);
        let chatter = AgentEvent::Other { kind: "system/hook".into() };
        let left = (0..99).find_map(|second| {
            core.heard();
            core.said(&chatter, start + secs(second));
            listen(&mut core, start, second, second + 1)
        });
        assert_eq!((left, core.stop()), (Some(60_000), Some(&StopCause::Lingered)));
    }

    #[test]
    fn an_agent_that_never_stops_talking_after_its_result_is_told_to_leave_unless_it_works() {
        let thinks: fn(u64) -> bool = |quarter| quarter == 100;
        for (works, at) in [((|_| false) as fn(u64) -> bool, Some(60_000)), (thinks, None)] {
            let (mut core, start) = core(JobMode::Background);
            core.started(start);
            core.said(&result(), start);
            let left = (1..360).find_map(|quarter| {
                let now = start + Duration::from_millis(250 * quarter);
                core.heard();
                if works(quarter) {
                    core.said(&AgentEvent::Thinking, now);
                }
                // There is always more to read than was read.
                core.listened(now, Pipe::Unread);
                core.tick(now).is_some().then_some(250 * quarter)
            });
            assert_eq!(left, at);
        }
    }

    #[test]
    fn a_job_whose_agent_is_not_started_has_none_of_its_clocks() {
        let (mut core, now) = core(JobMode::Background);
        assert_eq!(listen(&mut core, now, 0, 1000), None);
        assert_eq!(core.tick(now + secs(1001)), None);
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
