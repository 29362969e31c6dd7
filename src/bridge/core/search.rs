//! How a bridge comes by somebody who serves its client.
//!
//! Owns: what each outcome of a try means, when a daemon is started, when this process serves itself. May not know: sockets,
//! processes, what is said to whoever is found but for the opening of the session.
//!
//! ```text
//!  idle ──wanted──▶ reaching ──connected──▶ opening ──opened──▶ served ──ended──▶ reaching
//!                    │   ▲                  ▲ │ └─refused──▶ asking who it is ──▶ here
//!              absent│   └─pausing◀─restarts, or ended once
//!                    ▼                       │
//!                  starting ─────────────────┘      denied, silent for 2 s, started in vain, lost too often ──▶ here
//!
//!  served ──it was stopped──▶ reaching ──absent──▶ here ──one is there when the client asks for something──▶ opening
//! ```
//!
//! Invariants: (1) a daemon is started only where nobody listens, never where this process may not connect (L18), and not after
//! somebody stopped it, until somebody has started one; (2) no
//! search is longer than its bounds, and each ends with somebody who serves or with words why nobody does; (3) a daemon is
//! there when it has answered `session_open`, and nothing else proves it.

use std::time::{Duration, Instant};

/// How long a daemon may take to answer `session_open`. One that is stopped or stuck takes longer; a client that waited for it
/// would take its server for dead.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

/// Time between two tries at a daemon that makes room for the next one.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a daemon that is being replaced is waited for.
const REPLACED: Duration = Duration::from_secs(10);

/// Daemons started in one search: the first may find that it is not needed any more just when somebody comes.
const STARTS: u32 = 2;

/// Daemons in a row that answered nothing before they were lost, after which this process serves itself.
const LOSSES: u32 = 5;

/// Time between two looks whether there is a daemon again after one was stopped. Nobody looks while the client asks for nothing.
const PEEK: Duration = Duration::from_secs(1);

/// Why there is no daemon that somebody stopped.
const STOPPED: &str = "the daemon was stopped; it serves again once somebody starts it.";

/// What came of what was asked for, or of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SearchEvent {
    /// Somebody is wanted.
    Wanted,
    /// There is a connection.
    Connected,
    /// Nobody listens.
    Absent,
    /// This process may not, or cannot, connect there.
    Denied(String),
    /// It answered `session_open`; the version of its program.
    Opened(Option<String>),
    /// It refuses the session.
    Refused(String),
    /// It said who it is: the version of its program.
    Named(Option<String>),
    /// It makes room for the next one.
    Restarting,
    /// Somebody stopped it.
    Stopped,
    /// While this process serves: there is a connection to a daemon that somebody started.
    Back,
    /// The connection is over.
    Ended,
    /// There is a connection to a daemon that was started or came meanwhile, or why there is none.
    Started(Result<(), String>),
    /// This process serves itself, or why not.
    Hosted(Result<(), String>),
    /// Time has passed.
    Woke,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SearchEffect {
    /// Try to connect.
    Reach,
    /// Try to connect, while this process serves.
    Peek,
    /// Start a daemon.
    Start,
    /// Say `session_open`.
    Open,
    /// Ask who it is.
    AskWho,
    /// Ask it to look for the next version of itself.
    AskReload,
    /// Let go of the connection.
    LetGo,
    /// Serve: the session is open.
    Serve,
    /// Serve in this process, because of this.
    HostHere(String),
    /// Nobody serves, because of this.
    GiveUp(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    Idle,
    Reaching,
    Pausing(Instant),
    Starting,
    Opening(Instant),
    /// Until when, and what was refused.
    AskingWho(Instant, String),
    /// By a daemon, or by this process.
    Served,
    /// This process begins to serve.
    Hosting(String),
}

/// The search, and what came of earlier ones.
#[derive(Debug)]
pub(super) struct Search {
    stage: Stage,
    /// When this search began.
    began: Instant,
    starts: u32,
    /// A daemon has ended a connection before it answered.
    ended: bool,
    asked_reload: bool,
    /// Daemons lost since the last answer.
    losses: u32,
    /// Somebody stopped the last daemon.
    stopped: bool,
    /// When it may be looked for another one while this process serves in its place.
    peeks: Option<Instant>,
    ours: &'static str,
}

impl Search {
    /// One that has not begun; `ours` is the version of this program.
    #[must_use]
    pub(super) fn new(ours: &'static str, now: Instant) -> Self {
        Self {
            stage: Stage::Idle,
            began: now,
            starts: 0,
            ended: false,
            asked_reload: false,
            losses: 0,
            stopped: false,
            peeks: None,
            ours,
        }
    }

    /// Whoever serves has answered something: it is of use.
    pub(super) fn answered(&mut self) {
        self.losses = 0;
    }

    /// Whether somebody serves.
    #[must_use]
    pub(super) fn is_served(&self) -> bool {
        self.stage == Stage::Served
    }

    /// Whether this process serves in the place of a daemon that was stopped.
    #[must_use]
    pub(super) fn stands_in(&self) -> bool {
        self.is_served() && self.peeks.is_some()
    }

    /// Whether a connection is there whose session is not open yet.
    #[must_use]
    pub(super) fn is_opening(&self) -> bool {
        matches!(self.stage, Stage::Opening(_) | Stage::AskingWho(..))
    }

    /// When it wants to be asked again.
    #[must_use]
    pub(super) fn wakes(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Pausing(until) | Stage::Opening(until) | Stage::AskingWho(until, _) => Some(*until),
            _ => None,
        }
    }

    /// One step. What does not fit the stage belongs to a try that is over, and changes nothing.
    pub(super) fn step(&mut self, event: SearchEvent, now: Instant) -> Vec<SearchEffect> {
        use SearchEffect as Do;
        match (self.stage.clone(), event) {
            (Stage::Idle, SearchEvent::Wanted) => self.begin(now),
            (Stage::Reaching, SearchEvent::Connected) | (Stage::Starting, SearchEvent::Started(Ok(()))) => {
                self.stage = Stage::Opening(now + ANSWER);
                vec![Do::Open]
            }
            (Stage::Served, SearchEvent::Wanted) => self.peek(now),
            (Stage::Served, SearchEvent::Back) if self.peeks.is_some() => {
                (self.began, self.starts, self.ended) = (now, 0, false);
                self.peeks = None;
                self.stage = Stage::Opening(now + ANSWER);
                vec![Do::Open]
            }
            (Stage::Served, SearchEvent::Stopped) => {
                self.stopped = true;
                self.begin(now)
            }
            (Stage::Opening(_), SearchEvent::Stopped) => {
                // Once nobody listens any more, or somebody else does.
                self.stopped = true;
                self.step(SearchEvent::Restarting, now)
            }
            (Stage::Reaching, SearchEvent::Absent) => self.start(),
            (Stage::Reaching, SearchEvent::Denied(why)) => self.host(why),
            (Stage::Pausing(until), SearchEvent::Woke) if now >= until => self.reach(),
            (Stage::Starting, SearchEvent::Started(Err(why))) => self.host(why),
            (Stage::Opening(_), SearchEvent::Opened(build)) => self.found(build.as_deref()),
            (Stage::Opening(_), SearchEvent::Refused(why)) => {
                self.stage = Stage::AskingWho(now + ANSWER, why);
                vec![Do::AskWho]
            }
            (Stage::Opening(_), SearchEvent::Restarting) if now < self.began + REPLACED => {
                let mut effects = vec![Do::LetGo];
                effects.extend(self.pause(now));
                effects
            }
            (Stage::Opening(_), SearchEvent::Restarting) => {
                self.let_go_and_host("the daemon has been making room for the next one for too long.".to_owned())
            }
            (Stage::Opening(_), SearchEvent::Ended) if !self.ended => {
                // It closed its door just then, or died: what it listened at may take a moment longer to close.
                self.ended = true;
                self.pause(now)
            }
            (Stage::Opening(_), SearchEvent::Ended) => {
                self.host("the daemon ends connections before it answers them.".to_owned())
            }
            (Stage::Opening(until), SearchEvent::Woke) if now >= until => {
                self.let_go_and_host(format!("the daemon did not answer within {} s.", ANSWER.as_secs()))
            }
            (Stage::AskingWho(_, why), SearchEvent::Named(build)) => self.unfit(build.as_deref(), &why),
            (Stage::AskingWho(_, why), SearchEvent::Ended) => self.host(refusal(None, &why)),
            (Stage::AskingWho(until, why), SearchEvent::Woke) if now >= until => {
                self.let_go_and_host(refusal(None, &why))
            }
            (Stage::Hosting(_), SearchEvent::Hosted(Ok(()))) => {
                self.stage = Stage::Served;
                self.peeks = self.stopped.then_some(now + PEEK);
                vec![Do::Serve]
            }
            (Stage::Hosting(why), SearchEvent::Hosted(Err(neither))) => {
                self.stage = Stage::Idle;
                vec![Do::GiveUp(format!("{why} This process cannot serve either: {neither}"))]
            }
            (Stage::Served, SearchEvent::Ended) => self.lost(now),
            _ => Vec::new(),
        }
    }

    fn begin(&mut self, now: Instant) -> Vec<SearchEffect> {
        self.peeks = None;
        (self.began, self.starts, self.ended) = (now, 0, false);
        self.reach()
    }

    fn reach(&mut self) -> Vec<SearchEffect> {
        self.stage = Stage::Reaching;
        vec![SearchEffect::Reach]
    }

    fn pause(&mut self, now: Instant) -> Vec<SearchEffect> {
        self.stage = Stage::Pausing(now + PAUSE);
        Vec::new()
    }

    /// The client asks for something: whoever stopped a daemon may have started one.
    fn peek(&mut self, now: Instant) -> Vec<SearchEffect> {
        match &mut self.peeks {
            Some(at) if now >= *at => {
                *at = now + PEEK;
                vec![SearchEffect::Peek]
            }
            _ => Vec::new(),
        }
    }

    fn start(&mut self) -> Vec<SearchEffect> {
        if self.stopped {
            return self.host(STOPPED.to_owned());
        }
        if self.starts == STARTS {
            return self.host("a daemon was started and is not there any more.".to_owned());
        }
        self.starts += 1;
        self.stage = Stage::Starting;
        vec![SearchEffect::Start]
    }

    fn found(&mut self, build: Option<&str>) -> Vec<SearchEffect> {
        self.stage = Stage::Served;
        self.stopped = false;
        let mut effects = self.ask_reload(build);
        effects.push(SearchEffect::Serve);
        effects
    }

    /// A daemon older than this program is asked once to look for the next version of itself.
    fn ask_reload(&mut self, build: Option<&str>) -> Vec<SearchEffect> {
        let older = build.is_some_and(|build| is_older(build, self.ours));
        if !older || std::mem::replace(&mut self.asked_reload, true) {
            return Vec::new();
        }
        vec![SearchEffect::AskReload]
    }

    fn unfit(&mut self, build: Option<&str>, why: &str) -> Vec<SearchEffect> {
        let mut effects = self.ask_reload(build);
        effects.extend(self.let_go_and_host(refusal(build, why)));
        effects
    }

    fn host(&mut self, why: String) -> Vec<SearchEffect> {
        self.stage = Stage::Hosting(why.clone());
        vec![SearchEffect::HostHere(why)]
    }

    fn let_go_and_host(&mut self, why: String) -> Vec<SearchEffect> {
        let mut effects = vec![SearchEffect::LetGo];
        effects.extend(self.host(why));
        effects
    }

    fn lost(&mut self, now: Instant) -> Vec<SearchEffect> {
        self.losses += 1;
        if self.losses > LOSSES {
            self.losses = 0;
            return self
                .host(format!("more than {LOSSES} daemons were lost in a row before they had answered anything."));
        }
        self.begin(now)
    }
}

fn refusal(build: Option<&str>, why: &str) -> String {
    match build {
        Some(build) => format!("the daemon, of version {build}, refuses this session: {why}"),
        None => format!("the daemon refuses this session: {why}"),
    }
}

/// Whether a version comes before another one; what is no version does not.
fn is_older(build: &str, ours: &str) -> bool {
    let numbers = |version: &str| {
        let plain = version.split(['-', '+']).next().unwrap_or_default();
        let numbers: Vec<u64> = plain.split('.').map_while(|part| part.parse().ok()).collect();
        (numbers.len() == 3).then_some(numbers)
    };
    numbers(build).zip(numbers(ours)).is_some_and(|(build, ours)| build < ours)
}

#[cfg(test)]
mod tests {
    use super::SearchEvent as Heard;
    use super::*;

    const OURS: &str = "1.2.0";

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// What follows each event, in short; the last words of what is said.
    fn told(events: &[(u64, Heard)]) -> Vec<String> {
        let start = Instant::now();
        let mut search = Search::new(OURS, start);
        let mut said = Vec::new();
        for (at, event) in events {
            for effect in search.step(event.clone(), start + ms(*at)) {
                said.push(match effect {
                    SearchEffect::HostHere(why) => format!("here: {why}"),
                    SearchEffect::GiveUp(why) => format!("nobody: {why}"),
                    other => format!("{other:?}"),
                });
            }
        }
        said
    }

    fn opened(build: &str) -> Heard {
        Heard::Opened(Some(build.to_owned()))
    }

    #[test]
    fn each_outcome_of_a_search_is_what_the_drawing_says() {
        use Heard::{Absent, Connected, Denied, Ended, Hosted, Named, Refused, Restarting, Started, Wanted, Woke};
        use Heard::{Back, Stopped};
        let no = || "no.".to_owned();
        /// What is tried, what is heard when, what follows.
        type Case = (&'static str, Vec<(u64, Heard)>, &'static [&'static str]);
        let cases: [Case; 21] = [
            ("a daemon is there", vec![(0, Wanted), (1, Connected), (2, opened(OURS))], &["Reach", "Open", "Serve"]),
            (
                "one is started",
                vec![(0, Wanted), (1, Absent), (500, Started(Ok(()))), (502, opened(OURS))],
                &["Reach", "Start", "Open", "Serve"],
            ),
            (
                "started in vain",
                vec![(0, Wanted), (1, Absent), (9, Started(Err("the disk is full.".to_owned())))],
                &["Reach", "Start", "here: the disk is full."],
            ),
            (
                "started, and gone each time",
                vec![
                    (0, Wanted),
                    (1, Absent),
                    (2, Started(Ok(()))),
                    (3, Restarting),
                    (53, Woke),
                    (54, Absent),
                    (55, Started(Ok(()))),
                    (56, Ended),
                    (106, Woke),
                    (107, Absent),
                ],
                &[
                    "Reach",
                    "Start",
                    "Open",
                    "LetGo",
                    "Reach",
                    "Start",
                    "Open",
                    "Reach",
                    "here: a daemon was started and is not there any more.",
                ],
            ),
            (
                "a sandbox: nothing is started",
                vec![(0, Wanted), (1, Denied("connections are denied.".to_owned()))],
                &["Reach", "here: connections are denied."],
            ),
            (
                "it does not answer",
                vec![(0, Wanted), (1, Connected), (2000, Woke), (2001, Woke)],
                &["Reach", "Open", "LetGo", "here: the daemon did not answer within 2 s."],
            ),
            (
                "it makes room, and nobody follows by itself",
                vec![(0, Wanted), (1, Connected), (2, Restarting), (52, Woke), (53, Absent), (60, Started(Ok(())))],
                &["Reach", "Open", "LetGo", "Reach", "Start", "Open"],
            ),
            (
                "it makes room for ever",
                vec![(0, Wanted), (1, Connected), (2, Restarting), (52, Woke), (9999, Connected), (10_000, Restarting)],
                &[
                    "Reach",
                    "Open",
                    "LetGo",
                    "Reach",
                    "Open",
                    "LetGo",
                    "here: the daemon has been making room for the next one for too long.",
                ],
            ),
            (
                "its door closed just then",
                vec![
                    (0, Wanted),
                    (1, Connected),
                    (2, Ended),
                    (3, Woke),
                    (52, Woke),
                    (53, Absent),
                    (60, Started(Ok(()))),
                ],
                &["Reach", "Open", "Reach", "Start", "Open"],
            ),
            (
                "it ends each connection",
                vec![(0, Wanted), (1, Connected), (2, Ended), (52, Woke), (53, Connected), (54, Ended)],
                &["Reach", "Open", "Reach", "Open", "here: the daemon ends connections before it answers them."],
            ),
            (
                "an older one serves and is asked to look for its next version, once",
                vec![
                    (0, Wanted),
                    (1, Connected),
                    (2, opened("1.1.9")),
                    (3, Ended),
                    (4, Connected),
                    (5, opened("1.1.9")),
                ],
                &["Reach", "Open", "AskReload", "Serve", "Reach", "Open", "Serve"],
            ),
            (
                "a newer one serves",
                vec![(0, Wanted), (1, Connected), (2, opened("2.0.0"))],
                &["Reach", "Open", "Serve"],
            ),
            (
                "an older one that refuses is asked all the same",
                vec![(0, Wanted), (1, Connected), (2, Refused(no())), (3, Named(Some("0.9.0".to_owned())))],
                &[
                    "Reach",
                    "Open",
                    "AskWho",
                    "AskReload",
                    "LetGo",
                    "here: the daemon, of version 0.9.0, refuses this session: no.",
                ],
            ),
            (
                "one that refuses and says nothing more",
                vec![(0, Wanted), (1, Connected), (2, Refused(no())), (2002, Woke)],
                &["Reach", "Open", "AskWho", "LetGo", "here: the daemon refuses this session: no."],
            ),
            (
                "nobody at all, and then somebody",
                vec![
                    (0, Wanted),
                    (1, Denied(no())),
                    (2, Hosted(Err("out of memory.".to_owned()))),
                    (3, Wanted),
                    (4, Denied(no())),
                    (5, Hosted(Ok(()))),
                ],
                &[
                    "Reach",
                    "here: no.",
                    "nobody: no. This process cannot serve either: out of memory.",
                    "Reach",
                    "here: no.",
                    "Serve",
                ],
            ),
            (
                "somebody stops it: nobody starts another one, and who comes back is found when something is asked",
                vec![
                    (0, Wanted),
                    (1, Connected),
                    (2, opened(OURS)),
                    (3, Wanted),
                    (10, Stopped),
                    (11, Absent),
                    (20, Hosted(Ok(()))),
                    (21, Wanted),
                    (1020, Wanted),
                    (1021, Wanted),
                    (2021, Wanted),
                    (2022, Back),
                    (2023, opened(OURS)),
                    (4000, Wanted),
                    (4001, Ended),
                    (4002, Absent),
                ],
                &[
                    "Reach",
                    "Open",
                    "Serve",
                    "Reach",
                    "here: the daemon was stopped; it serves again once somebody starts it.",
                    "Serve",
                    "Peek",
                    "Peek",
                    "Open",
                    "Serve",
                    "Reach",
                    "Start",
                ],
            ),
            (
                "it is stopped, and the next one is there already",
                vec![(0, Wanted), (1, Connected), (2, opened(OURS)), (3, Stopped), (4, Connected), (5, opened(OURS))],
                &["Reach", "Open", "Serve", "Reach", "Open", "Serve"],
            ),
            (
                "it is stopped while it is come to",
                vec![(0, Wanted), (1, Connected), (2, Stopped), (52, Woke), (53, Absent)],
                &[
                    "Reach",
                    "Open",
                    "LetGo",
                    "Reach",
                    "here: the daemon was stopped; it serves again once somebody starts it.",
                ],
            ),
            (
                "who came back is gone again, and nobody starts another one",
                vec![
                    (0, Wanted),
                    (1, Connected),
                    (2, opened(OURS)),
                    (3, Stopped),
                    (4, Absent),
                    (5, Hosted(Ok(()))),
                    (2000, Wanted),
                    (2001, Back),
                    (2002, Ended),
                    (2052, Woke),
                    (2053, Absent),
                    (2054, Hosted(Ok(()))),
                    (2055, Ended),
                    (2056, Absent),
                ],
                &[
                    "Reach",
                    "Open",
                    "Serve",
                    "Reach",
                    "here: the daemon was stopped; it serves again once somebody starts it.",
                    "Serve",
                    "Peek",
                    "Open",
                    "Reach",
                    "here: the daemon was stopped; it serves again once somebody starts it.",
                    "Serve",
                    "Reach",
                    "here: the daemon was stopped; it serves again once somebody starts it.",
                ],
            ),
            (
                "one that cannot be had for another reason is not looked for again and again",
                vec![(0, Wanted), (1, Denied(no())), (2, Hosted(Ok(()))), (9000, Wanted), (9001, Back)],
                &["Reach", "here: no.", "Serve"],
            ),
            (
                "what belongs to a try that is over",
                vec![(0, Absent), (1, opened(OURS)), (2, Wanted), (3, Started(Ok(()))), (4, Ended), (5, Wanted)],
                &["Reach"],
            ),
        ];
        for (name, events, expected) in cases {
            assert_eq!(told(&events), expected, "{name}");
        }
    }

    #[test]
    fn daemons_that_are_lost_before_they_answer_are_left_alone() {
        for (answers, expected) in [
            (
                false,
                SearchEffect::HostHere(
                    "more than 5 daemons were lost in a row before they had answered anything.".to_owned(),
                ),
            ),
            (true, SearchEffect::Reach),
        ] {
            let now = Instant::now();
            let mut search = Search::new(OURS, now);
            search.step(Heard::Wanted, now);
            let mut last = Vec::new();
            for life in 1..=6 {
                search.step(Heard::Connected, now);
                assert!(search.step(opened(OURS), now).contains(&SearchEffect::Serve), "life {life}");
                if answers {
                    search.answered();
                }
                last = search.step(Heard::Ended, now);
            }
            assert_eq!(last, [expected]);
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (build, ours, older) in [
            ("1.2.0", "1.2.0", false),
            ("1.9.9", "1.10.0", true),
            ("1.10.0", "1.9.9", false),
            ("0.1.0-dev+abc", "0.2.0", true),
            ("0.2.0", "0.2.0-dev", false),
            ("", "1.0.0", false),
            ("1.0", "1.1.0", false),
            ("latest", "1.0.0", false),
        ] {
            assert_eq!(is_older(build, ours), older, "{build} and {ours}");
        }
    }

    #[test]
    fn it_wakes_when_it_waits_for_time_and_not_otherwise() {
        let start = Instant::now();
        let mut search = Search::new(OURS, start);
        assert_eq!(search.wakes(), None);
        search.step(Heard::Wanted, start);
        assert_eq!(search.wakes(), None);
        search.step(Heard::Connected, start);
        assert_eq!(search.wakes(), Some(start + ANSWER));
        search.step(Heard::Restarting, start);
        assert_eq!(search.wakes(), Some(start + PAUSE));
        search.step(Heard::Woke, start + PAUSE);
        search.step(Heard::Connected, start + PAUSE);
        assert_eq!(search.wakes(), Some(start + PAUSE + ANSWER));
        assert!(search.is_opening());
        search.step(opened(OURS), start + PAUSE);
        assert!(search.is_served() && search.wakes().is_none());
    }
}
