//! The board for tools of somebody else: what each contract promises when the worker that runs a tool is struck.
//!
//! Owns: the rows for given tools, how one is tried against the program that serves them. May not know: what the tools do.
//!
//! ```text
//! row = tool × point × action, with what the tool's contract promises          (pure data)
//! row ──a process of the program, the plan in its environment──▶ score
//! ```
//!
//! The program is started as its client starts it. It arms the plan of its environment by [`process::armed`], and its tools
//! append a line to a file for each effect, if they are to be held to it ([`StruckTool::effects`]).
//!
//! Invariants: (1) what is promised follows from the contract, the point and the action alone; (2) a row whose point was not
//! met is broken: a fault that did not happen has shown nothing.
//!
//! [`process::armed`]: crate::process::armed

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::case::{self, World};
use super::rows::{ExpectedAnswer, action, expected};
use super::{CASE_LIMIT, PATIENCE, Recovered, Score, bounded, many};
use crate::base::fault::FaultCode;
use crate::config::WorkerIsolation;
use crate::failpoints::{ActionKind, FaultPoint, FaultRule, When};
use crate::testkit::client::{REVISION, TestClient};
use crate::testkit::invariants::Violation;
use crate::testkit::rig::Rig;
use crate::tools::ReplayContract;

/// How a program is started that serves one MCP client on its standard streams.
#[derive(Debug, Clone)]
pub struct TriedServer {
    program: PathBuf,
    arguments: Vec<String>,
    isolation: WorkerIsolation,
}

impl TriedServer {
    /// This program with these arguments, whose tools run in its own process.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        Self { program: program.into(), arguments, isolation: WorkerIsolation::InProcess }
    }

    /// The same, when its tools run in a worker process.
    #[must_use]
    pub fn isolated(self) -> Self {
        Self { isolation: WorkerIsolation::Process, ..self }
    }
}

/// A tool that is struck.
#[derive(Debug, Clone)]
pub struct StruckTool {
    name: String,
    contract: ReplayContract,
    arguments: Value,
    effects: Option<String>,
}

impl StruckTool {
    /// This tool, under the contract it says it has.
    #[must_use]
    pub fn new(name: impl Into<String>, contract: ReplayContract) -> Self {
        Self { name: name.into(), contract, arguments: json!({}), effects: None }
    }

    /// Called with these arguments.
    #[must_use]
    pub fn arguments(self, arguments: Value) -> Self {
        Self { arguments, ..self }
    }

    /// Held to its effects: it appends a line to this file in its program's working directory for each.
    #[must_use]
    pub fn effects(self, file: impl Into<String>) -> Self {
        Self { effects: Some(file.into()), ..self }
    }
}

/// One row of the board.
#[derive(Debug, Clone)]
pub struct ToolRow {
    /// What is struck.
    pub rule: FaultRule,
    /// The tool.
    pub tool: StruckTool,
    /// What its caller is told.
    pub answer: ExpectedAnswer,
    /// Fewest and most effects of the struck call.
    pub effects: (usize, usize),
}

impl ToolRow {
    /// Its name: the rule it strikes by.
    #[must_use]
    pub fn name(&self) -> String {
        self.rule.to_string()
    }
}

/// Where a call of a tool can be struck.
const POINTS: [FaultPoint; 5] = [
    FaultPoint::SessionDispatch,
    FaultPoint::LedgerRecord,
    FaultPoint::WorkerBeforeExecute,
    FaultPoint::WorkerBeforeReply,
    FaultPoint::WorkerAfterReply,
];

/// A delay that is seen, and short beside every bound.
const DELAY: std::time::Duration = std::time::Duration::from_millis(150);

/// The rows for these tools.
#[must_use]
pub fn tool_rows(server: &TriedServer, tools: &[StruckTool]) -> Vec<ToolRow> {
    let mut rows = Vec::new();
    for tool in tools {
        for point in POINTS {
            for &kind in point.accepted() {
                let operation = format!("tools/call:{}", tool.name);
                let (answer, effects) = promised(point, &operation, kind, server.isolation, tool.contract);
                let action = action(kind, DELAY, 1);
                let rule = FaultRule {
                    point,
                    operation: Some(operation.into()),
                    when: When::Nth(std::num::NonZeroU64::MIN),
                    action,
                };
                rows.push(ToolRow { rule, tool: tool.clone(), answer, effects });
            }
        }
    }
    rows
}

/// What its caller is told, and how many effects the struck call has.
fn promised(
    point: FaultPoint,
    operation: &str,
    kind: ActionKind,
    isolation: WorkerIsolation,
    contract: ReplayContract,
) -> (ExpectedAnswer, (usize, usize)) {
    // A consult is probe required: what is promised of one is what the evidence makes good.
    let consult = expected(point, Some(operation), kind, isolation);
    let was_lost = consult.answer == ExpectedAnswer::Success && consult.generation > 1;
    // The reply has left by then.
    let was_lost = was_lost && point != FaultPoint::WorkerAfterReply;
    let had_run = point == FaultPoint::WorkerBeforeReply;
    match contract {
        ReplayContract::NeverReplay if was_lost => {
            let effects = usize::from(had_run);
            (ExpectedAnswer::Fault(FaultCode::OutcomeUnknown), (effects, effects))
        }
        ReplayContract::Convergent if was_lost && had_run => (consult.answer, (1, 2)),
        _ => (consult.answer, consult.runs),
    }
}

/// Plays the rows for these tools against the program that serves them, so many at once, and tells each score as it comes.
///
/// To be called inside a current-thread runtime.
///
/// # Cancel safety
///
/// Dropping the future ends the cases, and their processes with them.
pub async fn run_for(
    server: &TriedServer,
    tools: &[StruckTool],
    at_once: usize,
    mut told: impl FnMut(&ToolRow, &Score),
) -> Vec<(ToolRow, Score)> {
    let cases = tool_rows(server, tools).into_iter().map(|row| {
        let server = server.clone();
        move || async move {
            let score = bounded(CASE_LIMIT, play(&server, &row)).await;
            (row, score)
        }
    });
    let mut scores = Vec::new();
    many(cases, at_once, |(row, score)| {
        told(&row, &score);
        scores.push((row, score));
    })
    .await;
    scores
}

/// Starts the program.
fn serve(server: &TriedServer, rig: &mut Rig) -> TestClient {
    let words: Vec<&str> = server.arguments.iter().map(String::as_str).collect();
    let work = rig.work();
    rig.host_with(&words, &work)
}

async fn play(server: &TriedServer, row: &ToolRow) -> Score {
    let mut world = World::new(&server.program, &row.name(), 0, server.isolation, PATIENCE);
    let mut score = Score::default();
    let mut host = serve(server, &mut world.rig);
    if row.answer == ExpectedAnswer::Ends {
        host.expect_end();
    }
    let told = struck(&mut world, &mut host, row).await;
    score.answered.clone_from(&told);
    let counted = |world: &World| row.tool.effects.as_deref().map(|file| lines(&world.rig.work().join(file)));
    let effects = counted(&world);
    let mut clients = Vec::new();
    let mut last = if host.has_ended() {
        host.hang_up().await;
        clients.push(host);
        world.disarm();
        score.recovered = Recovered::NextHost;
        let mut next = serve(server, &mut world.rig);
        next.handshake(REVISION).await;
        next
    } else {
        score.recovered = Recovered::Here;
        host
    };
    last.ping().await;
    served(&mut last, row).await;
    clients.push(last);
    let as_promised = match row.answer {
        ExpectedAnswer::Ends => told == case::ENDED || told == case::SUCCESS,
        ExpectedAnswer::Success => told == case::SUCCESS,
        ExpectedAnswer::Fault(code) => told == code.as_str(),
        ExpectedAnswer::Withdrawn => told == case::WITHDRAWN,
    };
    if !as_promised {
        world.note(case::EXPECTED, format!("the caller was told `{told}`, and `{}` is promised", row.answer));
    }
    let (fewest, most) = row.effects;
    if let Some(effects) = effects.filter(|effects| !(fewest..=most).contains(effects)) {
        world.note(case::EXPECTED, format!("{effects} effects, and {fewest} to {most} are promised"));
    }
    world.close(clients, false, &mut score).await;
    score.runs = effects.unwrap_or_default();
    if score.fired != 1 {
        let detail = format!("it struck {} times; does the program arm the plan of its environment?", score.fired);
        score.broken.push(Violation { law: case::STRUCK, detail });
    }
    score
}

/// The struck call: what its caller was told.
async fn struck(world: &mut World, host: &mut TestClient, row: &ToolRow) -> String {
    host.handshake(REVISION).await;
    let call = host.start(&row.tool.name, row.tool.arguments.clone()).await;
    if row.answer == ExpectedAnswer::Withdrawn {
        return case::withdraw(world, host, call).await;
    }
    match host.answer_or_end(call).await {
        Some(answer) => case::told(&crate::testkit::client::Reply(answer)),
        None => {
            host.give_up_on(call);
            case::ENDED.to_owned()
        }
    }
}

/// A call afterwards is served as if nothing had happened.
async fn served(host: &mut TestClient, row: &ToolRow) {
    let after = host.call(&row.tool.name, row.tool.arguments.clone()).await;
    // The worker that was struck after its reply ends in this moment, and takes along what was just given to it.
    let may_be_lost =
        row.rule.point == FaultPoint::WorkerAfterReply && row.tool.contract == ReplayContract::NeverReplay;
    if may_be_lost && after.is_error() {
        after.expect_fault(FaultCode::OutcomeUnknown.as_str());
        host.call(&row.tool.name, row.tool.arguments.clone()).await.expect_success();
    } else {
        after.expect_success();
    }
}

fn lines(file: &Path) -> usize {
    std::fs::read_to_string(file).map_or(0, |text| text.lines().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_of_a_lost_call_is_what_its_contract_says() {
        use ExpectedAnswer::{Ends, Fault, Success};
        use ReplayContract::{Convergent, NeverReplay, ProbeRequired};
        let (apart, here) = (WorkerIsolation::Process, WorkerIsolation::InProcess);
        let unknown = Fault(FaultCode::OutcomeUnknown);
        let table = [
            (FaultPoint::WorkerBeforeExecute, ActionKind::Kill, apart, Convergent, (Success, (1, 1))),
            (FaultPoint::WorkerBeforeExecute, ActionKind::Kill, apart, ProbeRequired, (Success, (1, 1))),
            (FaultPoint::WorkerBeforeExecute, ActionKind::Kill, apart, NeverReplay, (unknown, (0, 0))),
            (FaultPoint::WorkerBeforeReply, ActionKind::Kill, apart, Convergent, (Success, (1, 2))),
            (FaultPoint::WorkerBeforeReply, ActionKind::Kill, apart, ProbeRequired, (Success, (1, 1))),
            (FaultPoint::WorkerBeforeReply, ActionKind::Kill, apart, NeverReplay, (unknown, (1, 1))),
            (FaultPoint::WorkerBeforeReply, ActionKind::Panic, here, NeverReplay, (unknown, (1, 1))),
            (FaultPoint::WorkerAfterReply, ActionKind::Panic, here, NeverReplay, (Success, (1, 1))),
            (FaultPoint::WorkerBeforeReply, ActionKind::Kill, here, NeverReplay, (Ends, (1, 1))),
            (FaultPoint::WorkerBeforeReply, ActionKind::Delay, here, NeverReplay, (Success, (1, 1))),
        ];
        for (point, kind, isolation, contract, promise) in table {
            let told = promised(point, "tools/call:own", kind, isolation, contract);
            assert_eq!(told, promise, "{point}={kind}, {isolation:?}, {contract:?}");
        }
    }

    #[test]
    fn every_tool_has_a_row_for_every_action_of_every_point() {
        let tools =
            [StruckTool::new("a", ReplayContract::Convergent), StruckTool::new("b", ReplayContract::NeverReplay)];
        let rows = tool_rows(&TriedServer::new("/p", ["serve"]), &tools);
        let each: usize = POINTS.iter().map(|point| point.accepted().len()).sum();
        assert_eq!(rows.len(), 2 * each);
        let mut names: Vec<String> = rows.iter().map(ToolRow::name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), rows.len(), "a row is known by its name");
        assert!(names.iter().all(|name| name.parse::<crate::failpoints::FaultPlan>().is_ok()));
    }
}
