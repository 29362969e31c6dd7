//! The rows: what is struck, and what is promised to come of it.
//!
//! Owns: the expectation of every point and action. May not know: how a row is tried.
//!
//! A row strikes while one consult is under way; the consult's caller is told exactly what stands here. Where a wait has
//! to be cut off, its bound is named beside it.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use crate::base::fault::FaultCode;
use crate::config::WorkerIsolation;
use crate::failpoints::{ActionKind, FaultAction, FaultPlan, FaultPoint, FaultRule, When};
use crate::testkit::rig::Through;

/// What the caller of the struck consult is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedAnswer {
    /// The agent's answer: what was lost was made good.
    Success,
    /// Exactly one fault, of this code.
    Fault(FaultCode),
    /// Its connection ends, because its host was ended or its stream failed. It may have been answered before.
    Ends,
    /// Nothing, until it withdraws its request: how long a tool may take is for its caller to say. Then nothing at all.
    Withdrawn,
}

impl fmt::Display for ExpectedAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("success"),
            Self::Fault(code) => code.fmt(f),
            Self::Ends => f.write_str("the connection ends"),
            Self::Withdrawn => f.write_str("withdrawn"),
        }
    }
}

/// What is promised about a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expectation {
    /// What the caller of the struck consult is told.
    pub answer: ExpectedAnswer,
    /// The worker's generation when a later consult has been answered: by the same host, or by the next one when the
    /// connection ended.
    pub generation: u64,
    /// Fewest and most runs of the agent for the struck consult.
    pub runs: (usize, usize),
}

/// A row that breaks a law on purpose: it shows that the scoreboard would see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// A file anybody may read is left in the state directory (L13).
    OpenFile,
    /// Another answer is expected than the one that comes.
    WrongAnswer,
}

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub struct FaultRow {
    /// What is struck, and when.
    pub rule: FaultRule,
    /// Where the host's tools run.
    pub isolation: WorkerIsolation,
    /// How its client comes to the host that is struck.
    pub through: Through,
    /// What is promised.
    pub expect: Expectation,
    /// Set in rows that must fail.
    pub control: Option<Control>,
}

impl FaultRow {
    /// Its name: the rule, where tools run, and whether a daemon is struck.
    #[must_use]
    pub fn name(&self) -> String {
        let control = match self.control {
            None => "",
            Some(Control::OpenFile) => " open-file",
            Some(Control::WrongAnswer) => " wrong-answer",
        };
        let through = match self.through {
            Through::Streams => "",
            Through::Daemon => ", daemon",
        };
        format!("{} ({}{through}){control}", self.rule, place(self.isolation))
    }

    /// Its fault plan.
    #[must_use]
    pub fn plan(&self) -> String {
        self.rule.to_string()
    }

    /// How long it waits, roughly and relatively: what waits longest is to begin first.
    #[must_use]
    pub fn weight(&self) -> u8 {
        match self.rule.action.kind() {
            ActionKind::Hang | ActionKind::Silence | ActionKind::StopReading | ActionKind::Drop => 2,
            kind if kind.ends_process() && self.expect.answer == ExpectedAnswer::Ends => 3,
            _ => 1,
        }
    }
}

/// Where tools run, as a row's name says it.
#[must_use]
pub const fn place(isolation: WorkerIsolation) -> &'static str {
    match isolation {
        WorkerIsolation::InProcess => "in process",
        WorkerIsolation::Process => "worker process",
    }
}

/// The end of a connection, which comes after everything else of a row.
pub(super) const OVER: &str = "over";

/// How long a delay delays: long enough to be seen, short beside every bound.
const DELAY: Duration = Duration::from_millis(150);

/// Where each point is struck: the operations, and the time. Nothing means any operation, the first time.
const fn strikes(point: FaultPoint) -> &'static [(Option<&'static str>, u64)] {
    const CONSULT: Option<&str> = Some("tools/call:consult");
    match point {
        // The first is about the greeting, the second about the consult.
        FaultPoint::StdioRead | FaultPoint::StdioWrite => &[(None, 2)],
        FaultPoint::SessionDispatch
        | FaultPoint::LedgerRecord
        | FaultPoint::WorkerBeforeExecute
        | FaultPoint::WorkerBeforeReply
        | FaultPoint::WorkerAfterReply => &[(CONSULT, 1)],
        FaultPoint::WorkersSupervise => &[(Some("wanted"), 1), (Some("up"), 1)],
        FaultPoint::SessionsSupervise => &[(Some("opened"), 1), (Some(OVER), 1)],
        FaultPoint::JobsSupervise => {
            &[(Some("accept"), 1), (Some("stored"), 1), (Some("attach"), 1), (Some("ended"), 1)]
        }
        FaultPoint::ConsultAttend => &[(Some("began"), 1), (Some("ended"), 1)],
        FaultPoint::StoreCommit => &[
            (Some("accept"), 1),
            (Some("start"), 1),
            (Some("set_process"), 1),
            (Some("append"), 1),
            (Some("finish"), 1),
        ],
        FaultPoint::WorkerStart
        | FaultPoint::JobsBeforeAccept
        | FaultPoint::JobsAfterAccept
        | FaultPoint::RunnerStart
        | FaultPoint::RunnerBeforeTerminal
        | FaultPoint::RunnerAfterTerminal
        | FaultPoint::TelemetryWrite
        | FaultPoint::RolloutSnapshot
        | FaultPoint::RolloutBeforeExec
        | FaultPoint::RolloutAfterRestore => &[(None, 1)],
        // The row's host has a collector, which is away.
        FaultPoint::ExporterCarry if cfg!(feature = "otlp") => &[(None, 1)],
        FaultPoint::ExporterCarry => &[],
        // Where the rows' host has a socket.
        FaultPoint::UnixAccept => &[(None, 1)],
        // Met before anybody can be a client.
        FaultPoint::UnixBind => &[],
        // The rows' host has no other machine; the tests of `exec/remote` and `actors/exec` strike them.
        FaultPoint::ExecConnect | FaultPoint::ExecRead => &[],
        // It is of no fleet; the tests of the real program with a database strike these.
        FaultPoint::FleetAsk | FaultPoint::FleetAnswered => &[],
    }
}

/// Whether a worker is concerned, so that both kinds of worker are tried.
const fn concerns_worker(point: FaultPoint) -> bool {
    matches!(
        point,
        FaultPoint::SessionDispatch
            | FaultPoint::WorkerStart
            | FaultPoint::WorkerBeforeExecute
            | FaultPoint::WorkerBeforeReply
            | FaultPoint::WorkerAfterReply
            | FaultPoint::WorkersSupervise
            | FaultPoint::JobsBeforeAccept
            | FaultPoint::JobsAfterAccept
            | FaultPoint::RolloutSnapshot
            | FaultPoint::RolloutBeforeExec
            | FaultPoint::RolloutAfterRestore
    )
}

/// Whether it is met in an upgrade only: the row's host is upgraded while the struck consult is under way.
pub(super) const fn needs_upgrade(point: FaultPoint) -> bool {
    matches!(point, FaultPoint::RolloutSnapshot | FaultPoint::RolloutBeforeExec | FaultPoint::RolloutAfterRestore)
}

/// Whether it is met only where a collector is configured.
pub(super) const fn needs_collector(point: FaultPoint) -> bool {
    matches!(point, FaultPoint::ExporterCarry)
}

/// An action of this kind, as rows use it.
#[must_use]
pub const fn action(kind: ActionKind, delay: Duration, code: u8) -> FaultAction {
    match kind {
        ActionKind::Panic => FaultAction::Panic,
        ActionKind::Error => FaultAction::Error,
        ActionKind::Exit => FaultAction::Exit(code),
        ActionKind::Kill => FaultAction::Kill,
        ActionKind::Abort => FaultAction::Abort,
        ActionKind::Delay => FaultAction::Delay(delay),
        ActionKind::Hang => FaultAction::Hang,
        ActionKind::Drop => FaultAction::Drop,
        ActionKind::Torn => FaultAction::Torn,
        ActionKind::Garbage => FaultAction::Garbage,
        ActionKind::Silence => FaultAction::Silence,
        ActionKind::StopReading => FaultAction::StopReading,
    }
}

/// Every row: each point that is met on this way, with each action it accepts, in either place where a worker is concerned.
#[must_use]
pub fn rows(through: Through) -> Vec<FaultRow> {
    let mut rows = Vec::new();
    let here = |point: FaultPoint| (through == Through::Daemon || !point.is_of_a_socket()) && !point.is_of_a_fleet();
    let is_met = |point: &&FaultPoint| point.is_reached() && here(**point);
    for &point in FaultPoint::ALL.iter().filter(is_met) {
        for &(operation, time) in strikes(point) {
            for &kind in point.accepted() {
                for isolation in [WorkerIsolation::InProcess, WorkerIsolation::Process] {
                    if isolation == WorkerIsolation::Process && !concerns_worker(point) {
                        continue;
                    }
                    let rule = FaultRule {
                        point,
                        operation: operation.map(Box::from),
                        when: NonZeroU64::new(time).map_or(When::Always, When::Nth),
                        action: action(kind, DELAY, 1),
                    };
                    let expect = match (through, expected(point, operation, kind, isolation)) {
                        (Through::Streams, expect) => expect,
                        (Through::Daemon, expect) => bridged(expect),
                    };
                    rows.push(FaultRow { rule, isolation, through, expect, control: None });
                }
            }
        }
    }
    rows
}

/// Rows that break a law on purpose.
#[must_use]
pub fn controls() -> Vec<FaultRow> {
    let plan = FaultPlan::parse("worker.before_execute@tools/call:consult=panic", 0);
    let Some(rule) = plan.ok().and_then(|plan| plan.rules().first().cloned()) else { return Vec::new() };
    let expect = Expectation { answer: ExpectedAnswer::Success, generation: 2, runs: (1, 1) };
    [Control::OpenFile, Control::WrongAnswer]
        .map(|control| FaultRow {
            rule: rule.clone(),
            isolation: WorkerIsolation::InProcess,
            through: Through::Streams,
            expect: match control {
                Control::WrongAnswer => Expectation { answer: ExpectedAnswer::Fault(FaultCode::Busy), ..expect },
                _ => expect,
            },
            control: Some(control),
        })
        .to_vec()
}

/// What is promised. Everything the caller notices stands here; the laws hold in any case.
#[must_use]
pub fn expected(
    point: FaultPoint,
    operation: Option<&str>,
    kind: ActionKind,
    isolation: WorkerIsolation,
) -> Expectation {
    use ActionKind as A;
    use FaultPoint as P;
    let separate = isolation == WorkerIsolation::Process;
    let told = |answer, generation, runs| Expectation { answer, generation, runs };
    // Nobody noticed, or everything was made good by a worker of this generation.
    let good = |generation| told(ExpectedAnswer::Success, generation, (1, 1));
    let fault = |code, runs| told(ExpectedAnswer::Fault(code), 1, (runs, runs));
    let ends = |fewest, most| told(ExpectedAnswer::Ends, 1, (fewest, most));
    match (point, kind) {
        // Ended where the actors live: nobody is left to answer. How far the job was decides whether its agent was run.
        (P::StdioRead | P::SessionDispatch | P::LedgerRecord | P::WorkersSupervise | P::JobsBeforeAccept, kind)
            if kind.ends_process() =>
        {
            ends(0, 0)
        }
        // When the client has hung up nobody is left to notice but whoever waits for the host.
        (P::SessionsSupervise, kind) if kind.ends_process() && operation != Some(OVER) => ends(0, 0),
        (P::WorkerStart | P::WorkerBeforeExecute, kind) if kind.ends_process() && !separate => ends(0, 0),
        // Durable and without a runner: no agent is started for a synchronous job nobody waits for.
        (P::JobsAfterAccept, kind) if kind.ends_process() => ends(0, 0),
        (P::JobsSupervise, kind) if kind.ends_process() => match operation {
            Some("accept" | "stored") => ends(0, 0),
            // A runner was started; it ends 2 s after its host, and a quick agent has answered by then.
            Some("attach") => ends(0, 1),
            _ => ends(1, 1),
        },
        (P::ConsultAttend, kind) if kind.ends_process() => match operation {
            Some("began") => ends(0, 1),
            _ => ends(1, 1),
        },
        (P::StdioWrite, kind) if kind.ends_process() => ends(1, 1),
        (P::WorkerBeforeReply | P::WorkerAfterReply, kind) if kind.ends_process() && !separate => ends(1, 1),
        // Its first batch is a quarter of a second after the greeting: the consult may be anywhere.
        (P::TelemetryWrite, kind) if kind.ends_process() => ends(0, 1),
        (P::StoreCommit, kind) if kind.ends_process() => match operation {
            Some("accept") => ends(0, 0),
            // The others are the runner's: before `running` another one may try, afterwards none may.
            Some("start") => good(1),
            Some("set_process") => fault(FaultCode::RunnerLost, 0),
            Some("append") => told(ExpectedAnswer::Fault(FaultCode::RunnerLost), 1, (0, 1)),
            _ => fault(FaultCode::RunnerLost, 1),
        },
        // The stream itself fails. What was read before is served as far as half a second goes.
        (P::StdioRead, A::Error) => ends(0, 1),
        (P::StdioWrite, A::Error | A::Torn) => ends(1, 1),
        (P::SessionDispatch | P::LedgerRecord, A::Error) => fault(FaultCode::Injected, 0),
        // What a session was about to record is lost with it, and answered.
        (P::LedgerRecord, _) => fault(FaultCode::Internal, 0),
        // Lost on its way: the worker is taken for broken, and its successor is given the call.
        (P::SessionDispatch, A::Drop) => good(2),
        // The session goes on with the connection, at once or, when it was held up, after the bound of a turn (5 s).
        (P::StdioRead | P::StdioWrite | P::SessionDispatch, _) => good(1),
        // A start that fails, or does not come to an end (5 s), is tried again.
        (P::WorkerStart, A::Delay) => good(1),
        (P::WorkerStart, _) => good(2),
        (P::WorkerBeforeExecute | P::WorkerBeforeReply | P::WorkerAfterReply, A::Delay) => good(1),
        (P::WorkerBeforeExecute, A::Error) => fault(FaultCode::Injected, 0),
        (P::WorkerBeforeReply, A::Error) => fault(FaultCode::Injected, 1),
        (P::WorkerBeforeExecute, A::Hang) => told(ExpectedAnswer::Withdrawn, 1, (0, 0)),
        (P::WorkerBeforeReply, A::Hang) => told(ExpectedAnswer::Withdrawn, 1, (1, 1)),
        // Another worker has the call or its job. A silent one is found out after 10 s with work, in its own process;
        // one in this process that stands still after a reply, after 5 s.
        (P::WorkerBeforeExecute | P::WorkerBeforeReply | P::WorkerAfterReply, _) => good(2),
        (P::WorkersSupervise, A::Delay) => good(1),
        // A supervisor that fails, or stands still for 5 s, is started again with those that depend on it. The first
        // question comes before there is a worker, the news of one when there is.
        (P::WorkersSupervise, _) => good(if operation == Some("wanted") { 1 } else { 2 }),
        (P::SessionsSupervise | P::ConsultAttend, _) => good(1),
        (P::JobsSupervise | P::JobsBeforeAccept | P::JobsAfterAccept, A::Delay) => good(1),
        (P::JobsSupervise, _) => good(2),
        (P::JobsBeforeAccept, A::Error) => fault(FaultCode::Injected, 0),
        // The caller was told that it failed, so it lets go of its job, which may have begun.
        (P::JobsAfterAccept, A::Error) => told(ExpectedAnswer::Fault(FaultCode::Injected), 1, (0, 1)),
        // Question or answer are lost: whoever asked asks again, and joins.
        (P::JobsBeforeAccept | P::JobsAfterAccept, A::Drop) => good(1),
        (P::JobsBeforeAccept | P::JobsAfterAccept, _) => good(2),
        // Before it owned its job: another runner may.
        (P::RunnerStart | P::RunnerAfterTerminal, _) => good(1),
        (P::RunnerBeforeTerminal, A::Delay) => good(1),
        // Not run again, and not known how it came out: the answer was not durable.
        (P::RunnerBeforeTerminal, _) => fault(FaultCode::RunnerLost, 1),
        (P::StoreCommit, A::Delay) => good(1),
        (P::StoreCommit, kind) => match (operation, kind) {
            (Some("accept"), A::Error) => fault(FaultCode::StoreUnavailable, 0),
            // Without the mark a sweep could not find what is left of the run, so it is not begun. A verb that fails is asked for
            // again at once; one that stands still for 15 s has used up its patience.
            (Some("set_process"), A::Hang) => fault(FaultCode::StoreUnavailable, 0),
            // It takes the verb that waits behind it along, which is that one.
            (Some("append"), A::Hang) => fault(FaultCode::StoreUnavailable, 0),
            // A verb that panics, or stands still for 15 s, is asked for again where that is safe.
            _ => good(1),
        },
        // A quarter of a second after a call is over its facts are told, and half a second later they are in hand.
        (P::ExporterCarry, kind) if kind.ends_process() => ends(1, 1),
        (P::TelemetryWrite | P::ExporterCarry, _) => good(1),
        // Before the new program is started the old one goes on, with another worker: the one there was has been ended.
        (P::RolloutSnapshot | P::RolloutBeforeExec, kind) if kind.ends_process() => ends(1, 1),
        (P::RolloutSnapshot | P::RolloutBeforeExec, _) | (P::RolloutAfterRestore, A::Delay) => good(2),
        // Afterwards there is no old one: a program that cannot go on ends, and what was accepted is kept.
        (P::RolloutAfterRestore, _) => ends(1, 1),
        // A bridge looks for a daemon once more, or serves its client itself.
        (P::UnixAccept | P::UnixBind, _) => good(1),
        // No row names it.
        (P::ExecConnect | P::ExecRead | P::FleetAsk | P::FleetAnswered, _) => good(1),
    }
}

/// What is promised to the client of a bridge: the end of its daemon, or of the connection to it, is no end of its own. The
/// call goes to the next daemon, where it joins what it began.
#[must_use]
const fn bridged(expect: Expectation) -> Expectation {
    match expect.answer {
        ExpectedAnswer::Ends => Expectation { answer: ExpectedAnswer::Success, generation: 1, runs: (1, 1) },
        _ => expect,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_point_that_is_met_has_a_row_for_every_action_it_accepts() {
        for (through, sockets) in [(Through::Streams, false), (Through::Daemon, true)] {
            let rows = rows(through);
            for &point in FaultPoint::ALL {
                for &kind in point.accepted() {
                    let found = rows.iter().filter(|row| row.rule.point == point && row.rule.action.kind() == kind);
                    let is_met = point.is_reached() && (sockets || !point.is_of_a_socket());
                    let nowhere = [FaultPoint::UnixBind, FaultPoint::ExecConnect, FaultPoint::ExecRead];
                    let is_met = is_met && !nowhere.contains(&point) && !point.is_of_a_fleet();
                    let is_met = is_met && (cfg!(feature = "otlp") || !needs_collector(point));
                    assert_eq!(found.count() > 0, is_met, "{point}={kind}");
                }
            }
        }
    }

    #[test]
    fn a_row_is_known_by_its_name_and_its_plan_is_one_that_can_be_armed() {
        let mut names = BTreeSet::new();
        for row in rows(Through::Streams).iter().chain(&rows(Through::Daemon)).chain(&controls()) {
            assert!(names.insert(row.name()), "{} stands twice", row.name());
            let plan = FaultPlan::parse(&row.plan(), 0).expect("a plan");
            assert_eq!(plan.rules(), std::slice::from_ref(&row.rule));
        }
    }

    #[test]
    fn no_row_expects_more_runs_than_one_or_an_answer_without_one() {
        for row in rows(Through::Streams).into_iter().chain(rows(Through::Daemon)) {
            let Expectation { answer, runs: (fewest, most), generation } = row.expect;
            assert!(fewest <= most && most <= 1 && (1..=2).contains(&generation), "{}", row.name());
            assert!(answer != ExpectedAnswer::Success || fewest == 1, "{}", row.name());
            assert!(answer != ExpectedAnswer::Ends || row.through == Through::Streams, "{}", row.name());
        }
    }
}
