//! A daemon's life from its first client to its end.
//!
//! Owns: what follows from what happens to a daemon, and the order of a stop. May not know: sockets, files, actors, clocks; the
//! loop around it looks, performs, and tells what came of it.
//!
//! ```text
//! serving ◀─ resume ─ pause ─▶ paused          every 30 s: is the socket there, and the record? made again where not
//!    │ nobody needed it · shutdown · TERM            (a socket that systemd or launchd passed on is theirs)
//!    ▼
//! close the door: unlink (ours only), tell who waits "restarting", close ─▶ forget the record ─▶ release the lock
//!    │ drain: refuse new consults, wait for the calls in flight                            │ else at once
//!    ▼                                                                                     ▼
//!  end: every connection closes; synchronous jobs whose callers may come back wait for them, the others are cancelled
//! ```
//!
//! From the moment the lock is released another daemon may serve. Jobs have locks of their own, so two that overlap harm nobody.
//!
//! Who ends because somebody wants no daemon (`shutdown`, a signal) tells its bridges, and they start none. Who ends for the next
//! one (`drain`) or because nobody needed it does not: whoever needs one then starts it.
//!
//! Invariants: (1) the steps of a stop are taken in this order, each once, whoever asked for it and however often; (2) `stop`
//! ends nobody's job unless it was told to; (3) a daemon that stops begins nothing new for who is still connected.

use std::time::{Duration, Instant};

use super::control::{ServingState, ShutdownMode};
use super::idle::{Idle, IdleEffect, IdleEvent};

/// How often it is looked whether the socket and the record are there.
pub const LOOK_EVERY: Duration = Duration::from_secs(30);

/// How often a daemon that drains looks whether calls are in flight.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

/// How long a drain may take. An agent may run for a day at most; what is waited for longer is not coming.
const DRAIN_MOST: Duration = Duration::from_secs(24 * 60 * 60);

/// What the loop is asked by a client that is told when it is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifeVerb {
    /// Begin no job until told.
    Pause,
    /// Begin jobs again.
    Resume,
    /// Let what is in flight end, and end.
    Drain,
    /// Look for the next version, and for the socket.
    Reload,
    /// End.
    Shutdown(ShutdownMode),
}

impl LifeVerb {
    /// Its word beside JSON-RPC.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Drain => "drain",
            Self::Reload => "reload",
            Self::Shutdown(_) => "shutdown",
        }
    }
}

/// Whether something lies where it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sighting {
    /// It does.
    There,
    /// It does not, or something else does.
    Gone,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifeEvent {
    /// A client asks for something; `others` are the jobs that run or wait here.
    Asked {
        /// What.
        verb: LifeVerb,
        /// Jobs that are not over.
        others: usize,
    },
    /// There are so many connections now.
    Connections(usize),
    /// There are so many jobs that are not over.
    Jobs(usize),
    /// So many calls are in flight.
    InFlight(usize),
    /// What was seen of the socket and the record.
    Looked {
        /// The socket's file.
        socket: Sighting,
        /// The record.
        record: Sighting,
    },
    /// A signal asks for the end.
    EndSignalled,
    /// A signal asks for a look.
    LookSignalled,
    /// The time of [`Life::wakes_at`] has come.
    Due,
}

/// Whether there is to be another daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// When somebody needs one.
    Restarting,
    /// Not before somebody starts one.
    Stopped,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LifeEffect {
    /// Tell who asked that it is done or under way.
    Confirm,
    /// Tell who asked why not.
    Refuse(String),
    /// Look at the socket's file and the record, and tell.
    Look,
    /// Ask how many jobs are not over, and tell.
    CountJobs,
    /// Ask how many calls are in flight, and tell.
    CountCalls,
    /// Make the socket again, where it can be had, and write the record.
    MakeSocketAgain,
    /// Write the record again.
    WriteRecordAgain,
    /// Look for the next version of the program.
    LookForVersion,
    /// Begin no job.
    PauseJobs,
    /// Begin jobs again.
    ResumeJobs,
    /// Refuse new consults: another daemon takes them.
    RefuseConsults,
    /// Unlink the socket if it is ours, tell who waits at the door this, close the door.
    CloseDoor(Farewell),
    /// Remove the record if it is ours.
    ForgetRecord,
    /// Let another daemon begin.
    ReleaseLock,
    /// Tell the bridges that are connected that it was stopped.
    TellStopped,
    /// Stop the system, and end.
    End,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    Paused,
    /// The door is closed; calls in flight are waited for until then.
    Draining(Instant),
    /// Everything is under way.
    Ending,
}

/// Whose socket it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketOwner {
    /// Bound here: made again when its file goes.
    Ours,
    /// Passed on by systemd or launchd, who look after it.
    Activator,
}

/// A daemon's life.
#[derive(Debug, Clone)]
pub struct Life {
    stage: Stage,
    idle: Idle,
    socket: SocketOwner,
    look_every: Duration,
    look_at: Instant,
    idle_at: Option<Instant>,
    drain_look_at: Option<Instant>,
}

impl Life {
    /// One that begins to serve. It ends by itself after it was needed by nobody for `idle`, where there is such a limit.
    #[must_use]
    pub fn new(idle: Option<Duration>, socket: SocketOwner, look_every: Duration, now: Instant) -> Self {
        let idle = Idle::new(idle, now);
        let mut life = Self {
            stage: Stage::Serving,
            idle,
            socket,
            look_every,
            look_at: now + look_every,
            idle_at: None,
            drain_look_at: None,
        };
        life.wait_for_idle(now);
        life
    }

    /// When [`LifeEvent::Due`] is to be told.
    #[must_use]
    pub fn wakes_at(&self) -> Option<Instant> {
        match self.stage {
            Stage::Serving | Stage::Paused => Some(self.idle_at.map_or(self.look_at, |idle| idle.min(self.look_at))),
            Stage::Draining(_) => self.drain_look_at,
            Stage::Ending => None,
        }
    }

    /// What clients are told of it.
    #[must_use]
    pub const fn state(&self) -> ServingState {
        match self.stage {
            Stage::Serving => ServingState::Serving,
            Stage::Paused => ServingState::Paused,
            Stage::Draining(_) | Stage::Ending => ServingState::Draining,
        }
    }

    /// One step; adds what is to be done.
    pub fn step(&mut self, event: LifeEvent, now: Instant, effects: &mut Vec<LifeEffect>) {
        match (self.stage, event) {
            (Stage::Ending, LifeEvent::Asked { .. }) => effects.push(LifeEffect::Confirm),
            (Stage::Ending, _) => {}
            (_, LifeEvent::EndSignalled) => self.end(Farewell::Stopped, effects),
            (_, LifeEvent::Asked { verb, others }) => self.asked(verb, others, now, effects),
            (Stage::Draining(until), event) => self.drains(until, event, now, effects),
            (_, event) => self.serves(event, now, effects),
        }
    }

    fn asked(&mut self, verb: LifeVerb, others: usize, now: Instant, effects: &mut Vec<LifeEffect>) {
        let draining = matches!(self.stage, Stage::Draining(_));
        match verb {
            LifeVerb::Pause | LifeVerb::Resume if draining => {
                effects.push(LifeEffect::Refuse("this daemon is ending and begins nothing any more".to_owned()));
            }
            LifeVerb::Pause => {
                self.stage = Stage::Paused;
                effects.extend([LifeEffect::PauseJobs, LifeEffect::Confirm]);
            }
            LifeVerb::Resume => {
                self.stage = Stage::Serving;
                effects.extend([LifeEffect::ResumeJobs, LifeEffect::Confirm]);
            }
            LifeVerb::Reload => {
                effects.push(LifeEffect::Confirm);
                if !draining {
                    effects.extend([LifeEffect::Look, LifeEffect::LookForVersion]);
                }
            }
            LifeVerb::Drain => {
                effects.push(LifeEffect::Confirm);
                self.drain(Farewell::Restarting, now, effects);
            }
            LifeVerb::Shutdown(ShutdownMode::Drain) => {
                effects.push(LifeEffect::Confirm);
                self.drain(Farewell::Stopped, now, effects);
            }
            LifeVerb::Shutdown(ShutdownMode::WhenFree) if others > 0 => {
                let are =
                    if others == 1 { "1 job runs or waits".to_owned() } else { format!("{others} jobs run or wait") };
                effects.push(LifeEffect::Refuse(format!(
                    "{are} here; `stop --drain` lets what is in flight end first, `stop --force` ends at once"
                )));
            }
            LifeVerb::Shutdown(ShutdownMode::WhenFree | ShutdownMode::Force) => {
                effects.push(LifeEffect::Confirm);
                self.end(Farewell::Stopped, effects);
            }
        }
    }

    fn serves(&mut self, event: LifeEvent, now: Instant, effects: &mut Vec<LifeEffect>) {
        let idle = match event {
            LifeEvent::Connections(count) => self.idle.step(IdleEvent::Connections(count), now),
            LifeEvent::Jobs(count) => self.idle.step(IdleEvent::Jobs(count), now),
            LifeEvent::LookSignalled => return effects.push(LifeEffect::Look),
            LifeEvent::Looked { socket, record } => {
                match (self.socket, socket, record) {
                    (SocketOwner::Ours, Sighting::Gone, _) => effects.push(LifeEffect::MakeSocketAgain),
                    (_, _, Sighting::Gone) => effects.push(LifeEffect::WriteRecordAgain),
                    _ => {}
                }
                return;
            }
            LifeEvent::Due => {
                if now >= self.look_at {
                    self.look_at = now + self.look_every;
                    effects.extend([LifeEffect::Look, LifeEffect::CountJobs]);
                }
                if self.idle_at.is_some_and(|at| now >= at) {
                    // The number of jobs decides, and is asked for.
                    self.idle_at = None;
                    if !effects.contains(&LifeEffect::CountJobs) {
                        effects.push(LifeEffect::CountJobs);
                    }
                }
                return;
            }
            LifeEvent::InFlight(_) | LifeEvent::Asked { .. } | LifeEvent::EndSignalled => return,
        };
        match (event, idle) {
            // Only a count of jobs that was just made ends it.
            (LifeEvent::Jobs(_), IdleEffect::Stop) => self.end(Farewell::Restarting, effects),
            _ => self.wait_for_idle(now),
        }
    }

    fn wait_for_idle(&mut self, now: Instant) {
        self.idle_at = match self.idle.effect(now) {
            IdleEffect::Stay => None,
            IdleEffect::WakeAt(at) => Some(at),
            IdleEffect::Stop => Some(now),
        };
    }

    fn drains(&mut self, until: Instant, event: LifeEvent, now: Instant, effects: &mut Vec<LifeEffect>) {
        match event {
            LifeEvent::InFlight(0) => self.end(Farewell::Restarting, effects),
            LifeEvent::InFlight(_) if now >= until => self.end(Farewell::Restarting, effects),
            LifeEvent::InFlight(_) => self.drain_look_at = Some(now + DRAIN_LOOK),
            LifeEvent::Due => {
                self.drain_look_at = None;
                effects.push(LifeEffect::CountCalls);
            }
            _ => {}
        }
    }

    /// Lets what is in flight end. A second time changes nothing but what bridges are told.
    fn drain(&mut self, farewell: Farewell, now: Instant, effects: &mut Vec<LifeEffect>) {
        if self.stage == Stage::Ending {
            return;
        }
        let begins = !matches!(self.stage, Stage::Draining(_));
        if begins {
            effects.push(LifeEffect::RefuseConsults);
        }
        self.close(farewell, effects);
        if begins {
            effects.push(LifeEffect::CountCalls);
            self.stage = Stage::Draining(now + DRAIN_MOST);
        }
    }

    fn end(&mut self, farewell: Farewell, effects: &mut Vec<LifeEffect>) {
        self.close(farewell, effects);
        self.stage = Stage::Ending;
        effects.push(LifeEffect::End);
    }

    /// The order in which a daemon becomes none, once; a bridge is told when nobody can be reached here any more.
    fn close(&mut self, farewell: Farewell, effects: &mut Vec<LifeEffect>) {
        if !matches!(self.stage, Stage::Draining(_) | Stage::Ending) {
            effects.extend([LifeEffect::CloseDoor(farewell), LifeEffect::ForgetRecord, LifeEffect::ReleaseLock]);
        }
        if farewell == Farewell::Stopped {
            effects.push(LifeEffect::TellStopped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::LifeEffect as E;
    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    struct Story {
        life: Life,
        start: Instant,
    }

    impl Story {
        fn of(idle: Option<Duration>, socket: SocketOwner) -> Self {
            let start = Instant::now();
            Self { life: Life::new(idle, socket, LOOK_EVERY, start), start }
        }

        fn serving() -> Self {
            Self::of(None, SocketOwner::Ours)
        }

        fn at(&mut self, seconds: u64, event: LifeEvent) -> Vec<LifeEffect> {
            let mut effects = Vec::new();
            self.life.step(event, self.start + Duration::from_secs(seconds), &mut effects);
            effects
        }

        fn asked(&mut self, verb: LifeVerb, others: usize) -> Vec<LifeEffect> {
            self.at(1, LifeEvent::Asked { verb, others })
        }
    }

    fn closing(before: &[LifeEffect], farewell: Farewell, after: &[LifeEffect]) -> Vec<LifeEffect> {
        let close = [E::CloseDoor(farewell), E::ForgetRecord, E::ReleaseLock];
        let told = (farewell == Farewell::Stopped).then_some(E::TellStopped);
        [before, &close, told.as_slice(), after].concat()
    }

    #[test]
    fn each_verb_has_its_effects() {
        let shutdown = LifeVerb::Shutdown;
        let draining = |farewell| closing(&[E::Confirm, E::RefuseConsults], farewell, &[E::CountCalls]);
        let ending = closing(&[E::Confirm], Farewell::Stopped, &[E::End]);
        let cases = [
            (LifeVerb::Pause, 3, vec![E::PauseJobs, E::Confirm]),
            (LifeVerb::Resume, 3, vec![E::ResumeJobs, E::Confirm]),
            (LifeVerb::Reload, 3, vec![E::Confirm, E::Look, E::LookForVersion]),
            (LifeVerb::Drain, 3, draining(Farewell::Restarting)),
            (shutdown(ShutdownMode::Drain), 3, draining(Farewell::Stopped)),
            (shutdown(ShutdownMode::WhenFree), 0, ending.clone()),
            (shutdown(ShutdownMode::Force), 3, ending),
        ];
        for (verb, others, effects) in cases {
            assert_eq!(Story::serving().asked(verb, others), effects, "{verb:?}");
        }
    }

    #[test]
    fn a_stop_that_was_not_told_to_ends_nobodys_job_and_says_how_many_there_are() {
        for (others, said) in [(1, "1 job runs or waits here"), (2, "2 jobs run or wait here")] {
            let mut story = Story::serving();
            let effects = story.asked(LifeVerb::Shutdown(ShutdownMode::WhenFree), others);
            assert!(matches!(&effects[..], [E::Refuse(why)] if why.starts_with(said)), "{effects:?}");
            assert_eq!(story.life.state(), ServingState::Serving);
        }
    }

    #[test]
    fn whoever_asks_for_the_end_and_however_often_the_door_is_closed_once_and_first() {
        let ends = [
            LifeEvent::EndSignalled,
            LifeEvent::Asked { verb: LifeVerb::Shutdown(ShutdownMode::Force), others: 1 },
            LifeEvent::Asked { verb: LifeVerb::Drain, others: 1 },
            LifeEvent::Asked { verb: LifeVerb::Shutdown(ShutdownMode::WhenFree), others: 0 },
            LifeEvent::InFlight(0),
        ];
        for first in ends {
            for second in ends {
                let mut story = Story::serving();
                let mut all = story.at(1, first);
                all.extend(story.at(2, second));
                all.extend(story.at(3, LifeEvent::EndSignalled));
                let closes = |found: &E| matches!(found, E::CloseDoor(_));
                let steps: [&dyn Fn(&E) -> bool; 4] =
                    [&closes, &|found| *found == E::ForgetRecord, &|found| *found == E::ReleaseLock, &|found| {
                        *found == E::End
                    }];
                let mut order = Vec::new();
                for step in steps {
                    let places: Vec<usize> = (0..all.len()).filter(|at| step(&all[*at])).collect();
                    assert_eq!(places.len(), 1, "{first:?}, {second:?}: {all:?}");
                    order.extend(places);
                }
                assert!(order.is_sorted(), "{first:?}, {second:?}: {all:?}");
                // Whoever wants no daemon has its bridges told, unless it was over before; nobody reaches it here any more then.
                let makes_room = first == LifeEvent::Asked { verb: LifeVerb::Drain, others: 1 };
                let told = all.iter().position(|found| *found == E::TellStopped);
                let over_before = makes_room && second == LifeEvent::InFlight(0);
                assert_eq!(told.is_none(), over_before, "{first:?}, {second:?}: {all:?}");
                assert!(told.is_none_or(|told| told > order[2]), "{first:?}, {second:?}: {all:?}");
            }
        }
    }

    #[test]
    fn a_drain_ends_with_the_last_call_in_flight_or_at_its_bound() {
        let mut story = Story::serving();
        story.asked(LifeVerb::Drain, 1);
        assert_eq!(story.life.state(), ServingState::Draining);
        assert_eq!(story.at(1, LifeEvent::InFlight(2)), []);
        let due = story.life.wakes_at().expect("it looks again");
        assert_eq!(due, story.start + Duration::from_secs(1) + DRAIN_LOOK);
        assert_eq!(story.at(2, LifeEvent::Due), [E::CountCalls]);
        assert_eq!(story.at(2, LifeEvent::Connections(0)), [], "jobs and calls count, and not who is connected");
        let refused = story.asked(LifeVerb::Pause, 1);
        assert!(matches!(&refused[..], [E::Refuse(_)]), "{refused:?}");
        assert_eq!(story.asked(LifeVerb::Reload, 1), [E::Confirm], "no next version for one that ends");
        assert_eq!(story.at(3, LifeEvent::InFlight(0)), [E::End]);
        assert_eq!(story.life.wakes_at(), None);
        let mut story = Story::serving();
        story.asked(LifeVerb::Drain, 1);
        assert_eq!(story.at(DRAIN_MOST.as_secs() + 1, LifeEvent::InFlight(1)), [E::End], "it has a bound");
    }

    #[test]
    fn a_socket_or_record_that_is_gone_is_made_again_by_who_made_it() {
        use Sighting::{Gone, There};
        let cases = [
            (SocketOwner::Ours, There, There, vec![]),
            (SocketOwner::Ours, Gone, There, vec![E::MakeSocketAgain]),
            (SocketOwner::Ours, Gone, Gone, vec![E::MakeSocketAgain]),
            (SocketOwner::Ours, There, Gone, vec![E::WriteRecordAgain]),
            (SocketOwner::Activator, Gone, There, vec![]),
            (SocketOwner::Activator, Gone, Gone, vec![E::WriteRecordAgain]),
        ];
        for (owner, socket, record, effects) in cases {
            let mut story = Story::of(None, owner);
            assert_eq!(story.life.wakes_at(), Some(story.start + LOOK_EVERY));
            assert_eq!(story.at(29, LifeEvent::Due), []);
            assert_eq!(story.at(30, LifeEvent::Due), [E::Look, E::CountJobs]);
            assert_eq!(story.at(30, LifeEvent::Looked { socket, record }), effects, "{owner:?} {socket:?} {record:?}");
            assert_eq!(story.at(31, LifeEvent::LookSignalled), [E::Look]);
            assert_eq!(story.life.wakes_at(), Some(story.start + LOOK_EVERY * 2));
        }
        // One that ends has none to be made again.
        let mut story = Story::serving();
        story.asked(LifeVerb::Drain, 0);
        assert_eq!(story.at(40, LifeEvent::Looked { socket: Gone, record: Gone }), []);
    }

    #[test]
    fn one_that_nobody_needs_ends_after_its_jobs_were_counted() {
        let mut story = Story::of(Some(IDLE), SocketOwner::Ours);
        assert_eq!(story.at(10, LifeEvent::Connections(1)), []);
        assert_eq!(story.at(20, LifeEvent::Connections(0)), []);
        story.at(30, LifeEvent::Due);
        story.at(60, LifeEvent::Due);
        assert_eq!(
            story.life.wakes_at(),
            Some(story.start + Duration::from_secs(80)),
            "a minute after the last client"
        );
        assert_eq!(story.at(80, LifeEvent::Due), [E::CountJobs]);
        assert_eq!(story.at(80, LifeEvent::Jobs(1)), [], "a job goes on");
        assert_eq!(story.at(90, LifeEvent::Due), [E::Look, E::CountJobs]);
        assert_eq!(story.at(90, LifeEvent::Jobs(0)), []);
        assert_eq!(story.at(150, LifeEvent::Due), [E::Look, E::CountJobs]);
        assert_eq!(story.at(150, LifeEvent::Jobs(0)), closing(&[], Farewell::Restarting, &[E::End]));
        // One that stays counts and stays.
        let mut story = Story::serving();
        story.at(3000, LifeEvent::Due);
        assert_eq!(story.at(3000, LifeEvent::Jobs(0)), []);
    }

    #[test]
    fn a_client_that_comes_while_jobs_are_counted_keeps_it() {
        let mut story = Story::of(Some(IDLE), SocketOwner::Ours);
        story.at(30, LifeEvent::Due);
        assert_eq!(story.at(60, LifeEvent::Due), [E::Look, E::CountJobs]);
        assert_eq!(story.at(60, LifeEvent::Connections(1)), []);
        assert_eq!(story.at(60, LifeEvent::Jobs(0)), []);
        assert_eq!(story.life.state(), ServingState::Serving);
        assert_eq!(story.asked(LifeVerb::Pause, 0), [E::PauseJobs, E::Confirm]);
        assert_eq!(story.life.state(), ServingState::Paused);
    }
}
