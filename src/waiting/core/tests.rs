//! Tables of what a waiting process does, and a model of several of them on one queue.

use super::*;
use crate::base::ids::UnixMillis;
use crate::jobs::admission::{QueueRow, SessionKey};

fn row(sequence: u64, state: JobState) -> Contender {
    let row = QueueRow {
        job: JobId::random(),
        sequence,
        workspace: "/w".into(),
        session: None,
        state,
        mode: JobMode::Background,
        accepted_at: UnixMillis(0),
        turn: sequence,
        workspace_served: 0,
        cancel_requested: None,
        waiter: None,
        environment: None,
        host: None,
    };
    Contender { row, alive: true }
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// One that holds the queued ones of these rows, has seen them, and what it did then.
fn holding(limit: usize, rows: &[Contender], now: Instant) -> (WaitingCore, Vec<WaitingEffect>) {
    let mut core = WaitingCore::new(limit);
    for row in rows.iter().filter(|one| one.row.state == JobState::Queued) {
        assert_eq!(core.step(WaitingEvent::Came(row.row.job), now), []);
    }
    assert!(core.take_look());
    let effects = core.step(WaitingEvent::Looked(rows.to_vec()), now);
    (core, effects)
}

#[test]
fn with_every_permit_taken_it_is_blocked_on_the_runs_and_on_no_clock() {
    let now = Instant::now();
    let rows =
        [row(1, JobState::Running), row(2, JobState::Running), row(3, JobState::Queued), row(4, JobState::Queued)];
    let (mut core, effects) = holding(2, &rows, now);
    let job = |at: usize| rows[at].row.job;
    assert_eq!(effects, [WaitingEffect::Watch(job(0)), WaitingEffect::Watch(job(1)), WaitingEffect::TellMoved]);
    assert_eq!(core.wake_at(), Some(now + QUEUE_BOUND), "a day, and nothing before");
    // A thousand more are looked at by nobody.
    for _ in 0..1000 {
        core.step(WaitingEvent::Came(JobId::random()), now);
        assert!(!core.take_look());
    }
    core.step(WaitingEvent::Freed(job(0)), now);
    assert!(core.take_look());
}

#[test]
fn whose_turn_it_is_is_offered_once_and_started_by_us_when_the_host_does_not() {
    let now = Instant::now();
    let rows = [row(1, JobState::Queued), row(2, JobState::Queued)];
    let first = rows[0].row.job;
    let (mut core, effects) = holding(1, &rows, now);
    assert_eq!(effects, [WaitingEffect::Offer(first), WaitingEffect::TellMoved]);
    assert_eq!(core.step(WaitingEvent::Looked(rows.to_vec()), now + ms(4)), [], "it was offered");
    assert_eq!(core.step(WaitingEvent::Due, now + ms(1999)), []);
    assert_eq!(
        core.step(WaitingEvent::Due, now + ms(2000)),
        [WaitingEffect::Start(first)],
        "a stuck host holds up nobody"
    );
    assert_eq!(core.step(WaitingEvent::Due, now + ms(9000)), []);

    type Case = (&'static str, fn(JobId) -> WaitingEvent, bool);
    let cases: [Case; 3] = [
        ("refused", WaitingEvent::Refused, true),
        ("the host is gone", |_| WaitingEvent::HostGone, true),
        ("taken", WaitingEvent::Taken, false),
    ];
    for (what, event, started) in cases {
        let (mut core, _) = holding(1, &rows, now);
        let expected = if started { vec![WaitingEffect::Start(first)] } else { Vec::new() };
        assert_eq!(core.step(event(first), now), expected, "{what}");
        assert_eq!(core.step(WaitingEvent::Refused(first), now), [], "{what}: and no second time");
    }
}

#[test]
fn a_start_under_way_is_looked_at_again_less_and_less_often_and_then_no_more() {
    let now = Instant::now();
    let mut rows = [row(1, JobState::Queued), row(2, JobState::Queued)];
    let (mut core, _) = holding(1, &rows, now);
    core.step(WaitingEvent::Taken(rows[0].row.job), now);
    let (mut at, mut looks) = (now, 0);
    while at < now + ms(10_000) {
        at = core.wake_at().expect("it looks again");
        core.step(WaitingEvent::Due, at);
        if core.take_look() {
            looks += 1;
            core.step(WaitingEvent::Looked(rows.to_vec()), at);
        }
    }
    assert!((10..25).contains(&looks), "{looks} looks in ten seconds");
    rows[0].row.state = JobState::Running;
    let effects = core.step(WaitingEvent::Looked(rows.to_vec()), at);
    assert_eq!(effects, [WaitingEffect::Watch(rows[0].row.job)]);
    assert_eq!(core.wake_at(), Some(now + QUEUE_BOUND));
}

#[test]
fn a_cancel_ends_what_waits_and_leaves_what_was_offered_to_its_runner() {
    let now = Instant::now();
    let mut rows = [row(1, JobState::Queued), row(2, JobState::Queued)];
    let (mut core, _) = holding(1, &rows, now);
    for one in &mut rows {
        one.row.cancel_requested = Some(CancelReason::Requested);
    }
    core.step(WaitingEvent::Rang, now);
    assert!(core.take_look());
    let effects = core.step(WaitingEvent::Looked(rows.to_vec()), now);
    let second = rows[1].row.job;
    assert_eq!(effects[..2], [WaitingEffect::Cancel(second, CancelReason::Requested), WaitingEffect::TellOver(second)]);
    assert_eq!(core.len(), 1);
}

#[test]
fn a_lost_host_ends_synchronous_jobs_after_two_seconds_and_background_jobs_never() {
    let now = Instant::now();
    let mut rows = [row(1, JobState::Running), row(2, JobState::Queued), row(3, JobState::Queued)];
    rows[1].row.mode = JobMode::Sync;
    let (mut core, _) = holding(1, &rows, now);
    assert_eq!(core.step(WaitingEvent::HostGone, now), []);
    assert!(core.take_look());
    assert_eq!(
        core.step(WaitingEvent::Looked(rows.to_vec()), now + ms(10)),
        [],
        "they may come back, or be handed over"
    );
    assert_eq!(core.wake_at(), Some(now + CALLER_GRACE));
    core.step(WaitingEvent::Due, now + CALLER_GRACE);
    assert!(core.take_look());
    let effects = core.step(WaitingEvent::Looked(rows.to_vec()), now + CALLER_GRACE);
    assert_eq!(
        effects,
        [WaitingEffect::Cancel(rows[1].row.job, CancelReason::CallerLost)],
        "and nobody is there to be told"
    );
    assert!(!core.is_over());
    rows[0].row.state = JobState::Succeeded;
    core.step(WaitingEvent::Freed(rows[0].row.job), now + ms(5000));
    assert_eq!(
        core.step(WaitingEvent::Looked(rows[2..].to_vec()), now + ms(5000)),
        [WaitingEffect::Start(rows[2].row.job)]
    );
    rows[2].row.state = JobState::Running;
    core.step(WaitingEvent::Looked(rows[2..].to_vec()), now + ms(5010));
    assert!(core.is_over(), "what runs needs nobody");
}

/// L7: whoever has a waiting job in custody keeps it; when nobody does for so long, it ends, however many had it.
#[test]
fn a_waiting_job_that_may_be_adopted_ends_a_grace_after_the_last_host_that_had_it() {
    let grace = Duration::from_secs(30);
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let [own, second, third] = [(); 3].map(|()| HostId::random());
    let mut rows = [row(1, JobState::Running), row(2, JobState::Queued)];
    let job = rows[1].row.job;
    (rows[1].row.mode, rows[1].row.host) = (JobMode::Sync, Some(own));
    let mut core = WaitingCore::new(1).with_orphan_grace(grace);
    core.step(WaitingEvent::Came(job), start);
    let mut look = |core: &mut WaitingCore, host, now| {
        rows[1].row.host = Some(host);
        assert!(core.take_look());
        core.step(WaitingEvent::Looked(rows.to_vec()), now)
    };
    look(&mut core, own, start);
    core.step(WaitingEvent::HostGone, at(1));
    assert_eq!(look(&mut core, own, at(1)), []);
    assert_eq!(core.wake_at(), Some(at(31)), "and no look before");
    // The bell is rung for it when it is adopted.
    core.step(WaitingEvent::Rang, at(20));
    assert_eq!(look(&mut core, second, at(20)), [WaitingEffect::WatchHost(second)]);
    assert_eq!(core.wake_at(), Some(start + QUEUE_BOUND), "its lock says when that one is gone");
    core.step(WaitingEvent::HostFreed(second), at(500));
    assert_eq!(look(&mut core, second, at(500)), []);
    assert_eq!(core.wake_at(), Some(at(530)));
    core.step(WaitingEvent::Due, at(530));
    // Adopted again in the last moment, by one that is gone before anybody looked.
    assert_eq!(look(&mut core, third, at(530)), [WaitingEffect::WatchHost(third)]);
    core.step(WaitingEvent::HostFreed(third), at(530));
    assert_eq!(look(&mut core, third, at(530)), []);
    core.step(WaitingEvent::Due, at(560));
    assert_eq!(look(&mut core, third, at(560)), [WaitingEffect::Cancel(job, CancelReason::CallerLost)]);
    assert!(core.is_over());
}

#[test]
fn a_job_whose_session_is_busy_is_woken_by_the_end_of_that_run() {
    let now = Instant::now();
    let mut rows = [row(1, JobState::Running), row(2, JobState::Queued)];
    for one in &mut rows {
        one.row.session = Some(SessionKey { agent: "a".into(), session: "s".into() });
    }
    let (mut core, effects) = holding(3, &rows, now);
    assert_eq!(effects, [WaitingEffect::Watch(rows[0].row.job), WaitingEffect::TellMoved]);
    assert_eq!(core.wake_at(), Some(now + QUEUE_BOUND));
    core.step(WaitingEvent::Freed(rows[0].row.job), now);
    assert!(core.take_look());
    let effects = core.step(WaitingEvent::Looked(rows[1..].to_vec()), now);
    assert_eq!(effects, [WaitingEffect::Offer(rows[1].row.job)]);
}

#[test]
fn a_runner_that_keeps_dying_and_a_job_that_waits_a_day_come_to_an_end() {
    let now = Instant::now();
    let rows = [row(1, JobState::Queued)];
    let job = rows[0].row.job;
    let (mut core, _) = holding(1, &rows, now);
    core.step(WaitingEvent::HostGone, now);
    assert_eq!(core.step(WaitingEvent::NotYet(job), now), [], "no permit is no failure");
    assert_eq!(core.step(WaitingEvent::RunnerOver(job), now), []);
    assert_eq!(core.step(WaitingEvent::Looked(rows.to_vec()), now), [WaitingEffect::Start(job)]);
    assert_eq!(core.step(WaitingEvent::RunnerOver(job), now), [WaitingEffect::Lost(job)]);
    assert!(core.is_over());

    let rows = [row(1, JobState::Running), row(2, JobState::Queued)];
    let (mut core, _) = holding(1, &rows, now);
    let job = rows[1].row.job;
    assert_eq!(
        core.step(WaitingEvent::Due, now + QUEUE_BOUND),
        [WaitingEffect::Expire(job), WaitingEffect::TellOver(job)]
    );
}

#[test]
fn what_another_image_of_the_host_hands_in_again_is_offered_again() {
    let now = Instant::now();
    let rows = [row(1, JobState::Queued), row(2, JobState::Queued)];
    let (mut core, _) = holding(1, &rows, now);
    let (first, second) = (rows[0].row.job, rows[1].row.job);
    assert_eq!(core.step(WaitingEvent::CameAgain(first), now), [WaitingEffect::Offer(first)]);
    assert_eq!(core.step(WaitingEvent::CameAgain(second), now), []);
    assert_eq!(core.len(), 2);
    // One that ended while nobody listened: the store calls it doubtful, and a look tells.
    let gone = JobId::random();
    core.step(WaitingEvent::CameAgain(gone), now);
    core.step(WaitingEvent::Doubtful, now);
    assert!(core.take_look());
    assert!(core.step(WaitingEvent::Looked(rows.to_vec()), now).contains(&WaitingEffect::TellOver(gone)));
}

/// Several waiting processes, their hosts and runners on one queue, in miniature.
struct World {
    now: Instant,
    limit: usize,
    rows: Vec<Contender>,
    holders: Vec<Option<(WaitingCore, bool)>>,
    /// Of each job, its holder.
    of: BTreeMap<JobId, usize>,
    blocked: Vec<(usize, JobId)>,
    starting: Vec<(Option<usize>, JobId)>,
    sequence: u64,
    started: BTreeMap<JobId, usize>,
}

impl World {
    fn new(limit: usize, holders: usize) -> Self {
        Self {
            now: Instant::now(),
            limit,
            rows: Vec::new(),
            holders: (0..holders).map(|_| Some((WaitingCore::new(limit), true))).collect(),
            of: BTreeMap::new(),
            blocked: Vec::new(),
            starting: Vec::new(),
            sequence: 0,
            started: BTreeMap::new(),
        }
    }

    fn running(&self) -> usize {
        self.rows.iter().filter(|one| one.alive && one.row.state == JobState::Running).count()
    }

    fn tell(&mut self, holder: usize, event: WaitingEvent) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let Some((core, host)) = self.holders[holder].as_mut() else { return };
            let host = *host;
            let effects = core.step(event, self.now);
            if core.take_look() {
                events.push(WaitingEvent::Looked(self.rows.clone()));
            }
            for effect in effects {
                match effect {
                    WaitingEffect::Offer(job) if host => {
                        self.starting.push((None, job));
                        events.push(WaitingEvent::Taken(job));
                    }
                    WaitingEffect::Offer(_)
                    | WaitingEffect::TellOver(_)
                    | WaitingEffect::TellMoved
                    | WaitingEffect::WatchHost(_) => {}
                    WaitingEffect::Start(job) => self.starting.push((Some(holder), job)),
                    WaitingEffect::Watch(job) => self.blocked.push((holder, job)),
                    WaitingEffect::Cancel(job, _) | WaitingEffect::Expire(job) | WaitingEffect::Lost(job) => {
                        self.rows.retain(|one| one.row.job != job);
                    }
                }
            }
        }
    }

    fn accept(&mut self, holder: usize, session: Option<u8>) {
        if self.holders[holder].is_none() {
            return;
        }
        self.sequence += 1;
        let mut new = row(self.sequence, JobState::Queued);
        new.row.workspace = format!("/{holder}").into();
        new.row.session = session.map(|session| SessionKey { agent: "a".into(), session: session.to_string() });
        self.of.insert(new.row.job, holder);
        let job = new.row.job;
        self.rows.push(new);
        self.tell(holder, WaitingEvent::Came(job));
    }

    /// One of the runners that are being started gets as far as it gets.
    fn begin(&mut self, which: usize) {
        let (by, job) = self.starting.remove(which);
        let busy = |session: &Option<SessionKey>| {
            session.is_some()
                && self.rows.iter().any(|one| one.row.state == JobState::Running && one.row.session == *session)
        };
        let Some(at) = self.rows.iter().position(|one| one.row.job == job && one.row.state == JobState::Queued) else {
            return;
        };
        if self.running() < self.limit && !busy(&self.rows[at].row.session) {
            self.rows[at].row.state = JobState::Running;
            *self.started.entry(job).or_default() += 1;
        } else if let Some(holder) = by {
            self.tell(holder, WaitingEvent::NotYet(job));
        } else if let Some(holder) = self.of.get(&job).copied() {
            self.tell(holder, WaitingEvent::Came(job));
        }
    }

    fn end(&mut self, job: JobId) {
        self.rows.retain(|one| one.row.job != job);
        let (freed, left): (Vec<_>, Vec<_>) = self.blocked.drain(..).partition(|(_, run)| *run == job);
        self.blocked = left;
        for (holder, run) in freed {
            self.tell(holder, WaitingEvent::Freed(run));
        }
    }

    /// The waiting process dies: its jobs are nobody's, and a sweep settles them.
    fn kill(&mut self, holder: usize) {
        self.holders[holder] = None;
        self.blocked.retain(|(of, _)| *of != holder);
        let of = &self.of;
        self.rows.retain(|one| one.row.state != JobState::Queued || of.get(&one.row.job) != Some(&holder));
        for other in 0..self.holders.len() {
            self.tell(other, WaitingEvent::Rang);
        }
    }

    /// Time passes until nothing is under way.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.starting.is_empty() {
                self.begin(0);
                continue;
            }
            let due = self.holders.iter().flatten().filter_map(|(core, _)| core.wake_at()).min();
            let Some(at) = due.filter(|at| *at < self.now + ms(60_000)) else { return };
            self.now = self.now.max(at);
            for holder in 0..self.holders.len() {
                self.tell(holder, WaitingEvent::Due);
            }
        }
        panic!("never still: {:?}", self.holders);
    }

    fn invariant_at_most_so_many_run(&self) {
        assert!(self.running() <= self.limit);
    }

    fn invariant_each_is_started_once(&self) {
        assert!(self.started.values().all(|&times| times == 1), "{:?}", self.started);
    }

    fn invariant_nobody_sleeps_who_could_run(&self) {
        let startable: Vec<JobId> = plan(&self.rows, self.limit).startable().collect();
        assert!(startable.is_empty(), "{startable:?} could run and nobody starts them: {:?}", self.holders);
    }
}

#[test]
fn whatever_happens_nobody_sleeps_who_could_run_and_nobody_runs_twice() {
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut world = World::new(rng.usize(1..4), rng.usize(1..4));
        for _ in 0..rng.usize(10..80) {
            let holder = rng.usize(..world.holders.len());
            match rng.u8(..16) {
                0..6 => world.accept(holder, rng.bool().then(|| rng.u8(..3))),
                6..9 => {
                    let run = world.rows.iter().find(|one| one.row.state == JobState::Running).map(|one| one.row.job);
                    if let Some(job) = run {
                        world.end(job);
                    }
                }
                9..12 if !world.starting.is_empty() => {
                    let which = rng.usize(..world.starting.len());
                    world.begin(which);
                }
                12 => world.tell(holder, WaitingEvent::Rang),
                13 => {
                    if let Some((_, host)) = world.holders[holder].as_mut() {
                        *host = false;
                    }
                    world.tell(holder, WaitingEvent::HostGone);
                }
                14 if rng.u8(..4) == 0 => world.kill(holder),
                _ => world.settle(),
            }
            world.invariant_at_most_so_many_run();
            world.invariant_each_is_started_once();
        }
        world.settle();
        world.invariant_nobody_sleeps_who_could_run();
        while let Some(job) = world.rows.iter().find(|one| one.row.state == JobState::Running).map(|one| one.row.job) {
            world.end(job);
            world.settle();
            world.invariant_nobody_sleeps_who_could_run();
        }
        assert!(world.rows.is_empty(), "seed {seed}: {:?} never ran", world.rows);
        world.invariant_each_is_started_once();
    }
}
