//! Tools that do what a case needs: answer, crash, hang, count, leave evidence.
//!
//! Owns: their behaviour and the [`Tally`] of what they did. May not know: who calls them. They go into a system with
//! `SystemBuilder::tool`; a tally in a file counts for worker processes as well.
//!
//! Invariants: (1) an attempt is counted before it does anything else; (2) an effect is counted in the moment in which
//! it happens, so a crash before or after it can be told from the tally alone.

#![expect(clippy::panic, clippy::expect_used, reason = "crashing is what these tools are for")]

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;

use crate::base::ids::{Generation, InvocationId};
use crate::tools::{
    Annotations, Evidence, ProbeFuture, ReplayContract, Target, Tool, ToolCall, ToolDefinition, ToolFuture, ToolReply,
};

/// One thing that was counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TallyEntry {
    /// The call it belongs to, in its text form.
    pub invocation: String,
    /// The worker it happened in.
    pub generation: Generation,
}

/// What happened, one entry after the other. Clones are the same tally.
#[derive(Debug, Clone, Default)]
pub struct Tally(Book);

#[derive(Debug, Clone)]
enum Book {
    Memory(Arc<Mutex<Vec<TallyEntry>>>),
    File(PathBuf),
}

impl Default for Book {
    fn default() -> Self {
        Self::Memory(Arc::default())
    }
}

impl Tally {
    /// A tally in this process.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A tally in a file, for tools whose worker is a process of its own.
    #[must_use]
    pub fn in_file(path: impl Into<PathBuf>) -> Self {
        Self(Book::File(path.into()))
    }

    /// Counts one thing.
    ///
    /// # Panics
    ///
    /// When the file cannot be written.
    pub fn count(&self, invocation: InvocationId, generation: Generation) {
        match &self.0 {
            Book::Memory(entries) => {
                let entry = TallyEntry { invocation: invocation.to_string(), generation };
                entries.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
            }
            Book::File(path) => {
                // One write, so that lines of several processes do not mix.
                let line = format!("{invocation} {generation}\n");
                let file = OpenOptions::new().create(true).append(true).open(path);
                file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the tally is written");
            }
        }
    }

    /// Everything counted so far, oldest first.
    ///
    /// # Panics
    ///
    /// When the file holds something else.
    #[must_use]
    pub fn entries(&self) -> Vec<TallyEntry> {
        match &self.0 {
            Book::Memory(entries) => entries.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            Book::File(path) => {
                let text = fs::read_to_string(path).unwrap_or_default();
                let entry = |line: &str| {
                    let (invocation, generation) = line.split_once(' ')?;
                    let generation = Generation(generation.parse().ok()?);
                    Some(TallyEntry { invocation: invocation.to_owned(), generation })
                };
                text.lines().map(|line| entry(line).unwrap_or_else(|| panic!("no entry: {line:?}"))).collect()
            }
        }
    }

    /// How many there are.
    #[must_use]
    pub fn total(&self) -> usize {
        match &self.0 {
            // Every call of a tool asks, so nothing is copied for it.
            Book::Memory(entries) => entries.lock().unwrap_or_else(PoisonError::into_inner).len(),
            Book::File(_) => self.entries().len(),
        }
    }

    /// How many there are of this call.
    #[must_use]
    pub fn of(&self, invocation: InvocationId) -> usize {
        let invocation = invocation.to_string();
        self.entries().iter().filter(|entry| entry.invocation == invocation).count()
    }
}

/// Where a tool that leaves evidence crashes at its first attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Crash {
    /// Nowhere.
    Nowhere,
    /// Before its effect.
    BeforeEffect,
    /// After its effect, without an answer.
    AfterEffect,
}

type Run = dyn Fn(usize, ToolCall) -> ToolFuture + Send + Sync;

/// A tool of an embedding program, as a case wants it.
#[derive(Clone)]
pub struct TestTool {
    name: String,
    contract: ReplayContract,
    target: Target,
    deadline: Option<Duration>,
    attempts: Tally,
    effects: Option<Tally>,
    knows: bool,
    run: Arc<Run>,
}

impl TestTool {
    /// A tool that does this. It is given the number of the attempt, counted from 1 over all its calls. It is never
    /// replayed, runs in a worker and has no deadline, unless told otherwise.
    #[must_use]
    pub fn new(name: impl Into<String>, run: impl Fn(usize, ToolCall) -> ToolFuture + Send + Sync + 'static) -> Self {
        Self {
            name: name.into(),
            contract: ReplayContract::NeverReplay,
            target: Target::Worker,
            deadline: None,
            attempts: Tally::new(),
            effects: None,
            knows: true,
            run: Arc::new(run),
        }
    }

    /// Under another name.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Under this replay contract.
    #[must_use]
    pub fn under(mut self, contract: ReplayContract) -> Self {
        self.contract = contract;
        self
    }

    /// In the host, beside the session.
    #[must_use]
    pub fn in_the_host(mut self) -> Self {
        self.target = Target::Host;
        self
    }

    /// With a deadline.
    #[must_use]
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Counting its attempts there, which is how a tool in another process is counted.
    #[must_use]
    pub fn counting_in(mut self, attempts: &Tally) -> Self {
        self.attempts = attempts.clone();
        self
    }

    /// With a probe that looks for effects there.
    #[must_use]
    pub fn probing(mut self, effects: &Tally) -> Self {
        self.effects = Some(effects.clone());
        self
    }

    /// With a probe that cannot find anything out.
    #[must_use]
    pub fn forgetful(mut self) -> Self {
        self.knows = false;
        self
    }

    /// Its attempts, one entry each.
    #[must_use]
    pub fn attempts(&self) -> Tally {
        self.attempts.clone()
    }
}

/// What clients are told about a tool of a test.
#[must_use]
pub fn definition(name: &str) -> ToolDefinition {
    ToolDefinition {
        name: name.to_owned(),
        title: name.to_owned(),
        description: "For tests.".to_owned(),
        input_schema: json!({"type": "object"}),
        annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
        meta: None,
    }
}

impl Tool for TestTool {
    fn name(&self) -> &str {
        &self.name
    }

    fn definition(&self) -> ToolDefinition {
        definition(&self.name)
    }

    fn contract(&self) -> ReplayContract {
        self.contract
    }

    fn target(&self) -> Target {
        self.target
    }

    fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    fn call(&self, call: ToolCall) -> ToolFuture {
        self.attempts.count(call.invocation, call.generation);
        (self.run)(self.attempts.total(), call)
    }

    fn probe(&self, invocation: InvocationId) -> ProbeFuture {
        let evidence = match &self.effects {
            Some(effects) if self.knows && effects.of(invocation) > 0 => Evidence::Accepted,
            Some(_) if self.knows => Evidence::NotAccepted,
            _ => Evidence::Unknown,
        };
        Box::pin(std::future::ready(evidence))
    }
}

fn answer(text: impl Into<String>) -> ToolFuture {
    let text = text.into();
    Box::pin(std::future::ready(Ok(ToolReply::text(text))))
}

/// `echo`, convergent: answers with its arguments at its first poll.
#[must_use]
pub fn echo() -> TestTool {
    TestTool::new("echo", |_, call| answer(String::from_utf8_lossy(&call.arguments).into_owned()))
        .under(ReplayContract::Convergent)
}

/// `boom`: takes its worker along.
#[must_use]
pub fn boom() -> TestTool {
    TestTool::new("boom", |_, _| {
        Box::pin(async {
            tokio::task::yield_now().await;
            panic!("boom");
        })
    })
}

/// `early_boom`: takes its worker along before it has returned a future.
#[must_use]
pub fn early_boom() -> TestTool {
    TestTool::new("early_boom", |_, _| panic!("early boom"))
}

/// `stumbles`, convergent: takes its worker along the first time, and then answers `attempt N`.
#[must_use]
pub fn stumbles() -> TestTool {
    TestTool::new("stumbles", |attempt, _| {
        Box::pin(async move {
            tokio::task::yield_now().await;
            assert!(attempt > 1, "stumbled");
            Ok(ToolReply::text(format!("attempt {attempt}")))
        })
    })
    .under(ReplayContract::Convergent)
}

/// `cursed`, convergent: takes its worker along each time.
#[must_use]
pub fn cursed() -> TestTool {
    TestTool::new("cursed", |_, _| Box::pin(async { panic!("cursed") })).under(ReplayContract::Convergent)
}

/// `stuck`, convergent: never answers.
#[must_use]
pub fn stuck() -> TestTool {
    TestTool::new("stuck", |_, _| Box::pin(std::future::pending())).under(ReplayContract::Convergent)
}

/// `blocks`, convergent: holds its thread for so long at a time, and then answers. In a worker of this process it holds
/// everything on that thread.
#[must_use]
pub fn blocks(held: Duration) -> TestTool {
    TestTool::new("blocks", move |_, _| {
        std::thread::sleep(held);
        answer("blocked")
    })
    .under(ReplayContract::Convergent)
}

/// `counter`, never replayed: each attempt counts one effect, and answers with their number.
#[must_use]
pub fn counter(effects: &Tally) -> TestTool {
    let effects = effects.clone();
    TestTool::new("counter", move |_, call| {
        effects.count(call.invocation, call.generation);
        answer(effects.total().to_string())
    })
}

/// `dying_counter`, never replayed: counts one effect, and takes its worker along without an answer.
#[must_use]
pub fn dying_counter(effects: &Tally) -> TestTool {
    let effects = effects.clone();
    TestTool::new("dying_counter", move |_, call| {
        effects.count(call.invocation, call.generation);
        Box::pin(async { panic!("counted") })
    })
}

/// `probed`, probe required: has one effect per call, which its probe finds. Answers `done`, or `attached` when
/// an earlier attempt had the effect. Crashes there in the first attempt of each call.
#[must_use]
pub fn probed(effects: &Tally, crash: Crash) -> TestTool {
    let book = effects.clone();
    let mut tool = TestTool::new("probed", move |_, call| {
        let book = book.clone();
        Box::pin(async move {
            tokio::task::yield_now().await;
            let first = call.evidence.is_none();
            if call.evidence == Some(Evidence::Accepted) {
                return Ok(ToolReply::text("attached".to_owned()));
            }
            assert!(!(first && crash == Crash::BeforeEffect), "crashed before the effect");
            book.count(call.invocation, call.generation);
            assert!(!(first && crash == Crash::AfterEffect), "crashed after the effect");
            Ok(ToolReply::text("done".to_owned()))
        })
    })
    .under(ReplayContract::ProbeRequired);
    tool.effects = Some(effects.clone());
    tool
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{HostId, SessionNumber};

    #[test]
    fn a_tally_in_a_file_is_the_same_for_every_handle_on_it() {
        let scratch = tempfile::tempdir().expect("scratch");
        let call = |call| InvocationId { host: HostId::random(), session: SessionNumber(1), call };
        let (first, second) = (call(1), call(2));
        for (one, other) in
            [(Tally::in_file(scratch.path().join("tally")), Tally::in_file(scratch.path().join("tally"))), {
                let tally = Tally::new();
                (tally.clone(), tally)
            }]
        {
            assert_eq!((one.total(), one.of(first)), (0, 0));
            one.count(first, Generation(1));
            other.count(first, Generation(2));
            other.count(second, Generation(2));
            assert_eq!((one.total(), one.of(first), other.of(second)), (3, 2, 1));
            assert_eq!(other.entries()[1], TallyEntry { invocation: first.to_string(), generation: Generation(2) });
        }
    }
}
