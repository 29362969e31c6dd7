//! The fault scoreboard: every fault point with every action it accepts, struck on the real program, and what is
//! promised to come of it.
//!
//! Owns: the rows and what is expected of each (`rows`), how a row is tried (`case`), the same for tools of somebody else (`own_tools`), random plans that repeat from a
//! seed (`soak`), and running many at a time. May not know: how a result is shown, the command line.
//!
//! ```text
//! row = fault plan × where tools run × expectation          (pure data)
//! row ──a rig of its own, the plan in its environment──▶ score = what was seen + the laws that were broken
//! ```
//!
//! Invariants: (1) what is expected stands in the row before it is run, and is a function of point, action and isolation
//! alone; (2) a case is a task of its own: whatever it panics with is a broken law of that row and of no other; (3) a case
//! ends within its bound ([`CASE_LIMIT`], [`SOAK_LIMIT`]), and leaves no process behind; (4) a soak case is decided by its seed alone.

pub mod case;
pub mod own_tools;
pub mod rows;
pub mod soak;

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::task::{JoinSet, LocalSet};

pub use self::own_tools::{StruckTool, ToolRow, TriedServer, run_for, tool_rows};
pub use self::rows::{Control, Expectation, ExpectedAnswer, FaultRow, rows};
pub use self::soak::Draw;
use super::invariants::Violation;

/// Longest a row may take. The longest bound any of them runs into is 15 s.
pub const CASE_LIMIT: Duration = Duration::from_secs(90);

/// Longest a soak case may take: several faults may follow each other.
pub const SOAK_LIMIT: Duration = Duration::from_secs(300);

/// How long a row waits for one thing: above every bound of the system that it runs into, restarts included, and below
/// [`CASE_LIMIT`], so that the wait says what was missing.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// What was seen of one case, and what is wrong with it.
#[derive(Debug, Clone, Default)]
pub struct Score {
    /// What the caller of the struck consult was told, in a word or two.
    pub answered: String,
    /// Who answered a consult afterwards.
    pub recovered: Recovered,
    /// The worker's generation at the end, where somebody was there to say.
    pub generation: Option<u64>,
    /// Runs of the agent: of a row for its struck consult, of a soak in all.
    pub runs: usize,
    /// Processes that were left when everybody who owned one was gone.
    pub left: usize,
    /// How often the plan struck.
    pub fired: u64,
    /// How long it took.
    pub took: Duration,
    /// The laws that were broken.
    pub broken: Vec<Violation>,
}

/// Who served after the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recovered {
    /// Nobody.
    #[default]
    No,
    /// The same host, on the same connection.
    Here,
    /// The next host on the same state directory.
    NextHost,
}

impl Recovered {
    /// For a table.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Here => "yes",
            Self::NextHost => "next host",
        }
    }
}

impl Score {
    /// Whether every law held.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.broken.is_empty()
    }
}

/// Plays rows against this program, so many at once, and tells each score as it comes, with the place of its row.
///
/// To be called inside a current-thread runtime. It returns when all have been played; the order of scores is the order
/// in which they ended.
///
/// # Cancel safety
///
/// Dropping the future ends the cases, and their processes with them.
pub async fn run(program: &Path, seed: u64, rows: &[FaultRow], at_once: usize, mut told: impl FnMut(usize, Score)) {
    // Whoever waits for a bound goes first, so that the end is not one long wait.
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|place| std::cmp::Reverse(rows[*place].weight()));
    let cases = order.into_iter().map(|place| {
        let (row, program) = (rows[place].clone(), program.to_owned());
        move || async move { (place, play(&program, seed, &row).await) }
    });
    many(cases, at_once, |(place, score)| told(place, score)).await;
}

/// Plays one row.
pub async fn play(program: &Path, seed: u64, row: &FaultRow) -> Score {
    bounded(CASE_LIMIT, case::play(program, seed, row)).await
}

/// Plays what a seed draws.
pub async fn replay(program: &Path, draw: &Draw) -> Score {
    bounded(SOAK_LIMIT, soak::play(program, draw)).await
}

/// Plays what the seeds from this one on draw, so many at once, until the time is up; those that have begun are played to
/// their end. At least one is played.
///
/// # Cancel safety
///
/// As [`run`].
pub async fn soak(program: &Path, seed: u64, time: Duration, at_once: usize, mut told: impl FnMut(Draw, Score)) {
    let began = Instant::now();
    let seeds = (seed..=u64::MAX).enumerate().take_while(|(n, _)| *n == 0 || began.elapsed() < time);
    let cases = seeds.map(|(_, seed)| {
        let program = program.to_owned();
        move || async move {
            let draw = Draw::of(seed);
            let score = replay(&program, &draw).await;
            (draw, score)
        }
    });
    many(cases, at_once, |(draw, score)| told(draw, score)).await;
}

/// Runs cases in tasks of this thread. Cases are taken one by one, when there is room for them.
async fn many<T: 'static, F: Future<Output = T> + 'static>(
    cases: impl Iterator<Item = impl FnOnce() -> F>,
    at_once: usize,
    mut told: impl FnMut(T),
) {
    let mut cases = cases;
    let local = LocalSet::new();
    local
        .run_until(async {
            let mut running: JoinSet<T> = JoinSet::new();
            loop {
                while running.len() < at_once.max(1) {
                    let Some(case) = cases.next() else { break };
                    running.spawn_local(case());
                }
                match running.join_next().await {
                    Some(Ok(score)) => told(score),
                    // A case's own panic is in its score; this one was cancelled.
                    Some(Err(_)) => {}
                    None => return,
                }
            }
        })
        .await;
}

/// Gives a case its bound; a panic becomes the law it broke.
async fn bounded(limit: Duration, case: impl Future<Output = Score>) -> Score {
    let began = Instant::now();
    let broken = |violation| Score { broken: vec![violation], ..Score::default() };
    // Dropping the case ends it, and its rig ends every process of its world.
    let score = match tokio::time::timeout(limit, AssertUnwindSafe(case).catch_unwind()).await {
        Ok(Ok(score)) => score,
        Ok(Err(panic)) => broken(panicked(&*panic)),
        Err(_) => broken(Violation { law: BOUNDS, detail: format!("not over after {limit:?}") }),
    };
    Score { took: began.elapsed(), ..score }
}

/// A wait that was in vain.
const BOUNDS: &str = "L9: every wait has a bound; reaching it is an answer, not a stall";

/// Anything else a case was stopped by.
const PLAYED: &str = "a case is played to its end";

fn panicked(panic: &(dyn Any + Send)) -> Violation {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    let detail = text.unwrap_or_else(|| "a panic without a text".to_owned());
    let law = if detail.starts_with("waited") || detail.contains("did not end in") { BOUNDS } else { PLAYED };
    Violation { law, detail }
}
