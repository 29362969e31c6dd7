//! The points at which a plan may break something, and what can break at each.
//!
//! Owns: the closed list of points, their names, the table of what is accepted where. May not know: plans, counts, the
//! actors that meet a point.
//!
//! Invariants: (1) the table stands here and nowhere else; (2) a point lists an action only if whoever meets it can act
//! on it: `torn` where bytes are written, `drop` where a message may be lost, `delay` and `hang` where it can wait.

use std::fmt;
use std::time::Duration;

use crate::base::fault::Stage;

macro_rules! action_kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// What can be made to happen, without its argument.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ActionKind {
            $($(#[$doc])* $name,)*
        }

        impl ActionKind {
            /// Every kind, in the order it is documented.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word in a plan.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

action_kinds! {
    /// Whoever meets the point panics.
    Panic = "panic";
    /// What is about to be done fails.
    Error = "error";
    /// The process exits.
    Exit = "exit";
    /// The process gets SIGKILL from itself.
    Kill = "kill";
    /// The process aborts.
    Abort = "abort";
    /// It happens later.
    Delay = "delay";
    /// It never happens, and whoever met the point goes no further.
    Hang = "hang";
    /// The message is lost on its way.
    Drop = "drop";
    /// Only the first half of the bytes is written.
    Torn = "torn";
    /// A worker process writes a line that is no message.
    Garbage = "garbage";
    /// A worker process never says anything again.
    Silence = "silence";
    /// A worker process stops reading its input.
    StopReading = "stop_reading";
}

impl ActionKind {
    /// Whether it ends the process it happens in.
    #[must_use]
    pub const fn ends_process(self) -> bool {
        matches!(self, Self::Exit | Self::Kill | Self::Abort)
    }
}

impl fmt::Display for ActionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is to happen at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultAction {
    /// See [`ActionKind::Panic`].
    Panic,
    /// See [`ActionKind::Error`].
    Error,
    /// See [`ActionKind::Exit`]; with this code.
    Exit(u8),
    /// See [`ActionKind::Kill`].
    Kill,
    /// See [`ActionKind::Abort`].
    Abort,
    /// See [`ActionKind::Delay`]; by so much, in whole milliseconds.
    Delay(Duration),
    /// See [`ActionKind::Hang`].
    Hang,
    /// See [`ActionKind::Drop`].
    Drop,
    /// See [`ActionKind::Torn`].
    Torn,
    /// See [`ActionKind::Garbage`].
    Garbage,
    /// See [`ActionKind::Silence`].
    Silence,
    /// See [`ActionKind::StopReading`].
    StopReading,
}

impl FaultAction {
    /// The action without its argument.
    #[must_use]
    pub const fn kind(self) -> ActionKind {
        match self {
            Self::Panic => ActionKind::Panic,
            Self::Error => ActionKind::Error,
            Self::Exit(_) => ActionKind::Exit,
            Self::Kill => ActionKind::Kill,
            Self::Abort => ActionKind::Abort,
            Self::Delay(_) => ActionKind::Delay,
            Self::Hang => ActionKind::Hang,
            Self::Drop => ActionKind::Drop,
            Self::Torn => ActionKind::Torn,
            Self::Garbage => ActionKind::Garbage,
            Self::Silence => ActionKind::Silence,
            Self::StopReading => ActionKind::StopReading,
        }
    }
}

/// The exit code of an `exit` that names none.
pub(super) const EXIT_CODE: u8 = 1;

/// As it is written in a plan.
impl fmt::Display for FaultAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind().fmt(f)?;
        match self {
            Self::Exit(code) if *code != EXIT_CODE => write!(f, ":{code}"),
            Self::Delay(time) => write!(f, ":{}", time.as_millis()),
            _ => Ok(()),
        }
    }
}

macro_rules! fault_points {
    ($($name:ident = $text:literal, $stage:ident, $built:ident, [$($action:ident)*], $meaning:literal;)*) => {
        /// Every boundary where a crash matters.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum FaultPoint {
            $(#[doc = concat!("`", $text, "`: ", $meaning, ".")] $name,)*
        }

        impl FaultPoint {
            /// Every point, in the order a call meets them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name in a plan.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// When it is met, as a clause.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)* }
            }

            /// The part that meets it.
            #[must_use]
            pub const fn stage(self) -> Stage {
                match self { $(Self::$name => Stage::$stage,)* }
            }

            /// Whether anything meets it yet. A plan may name the others; nothing will come of it.
            #[must_use]
            pub const fn is_reached(self) -> bool {
                match self { $(Self::$name => fault_points!(@built $built),)* }
            }

            /// What a plan may ask for here.
            #[must_use]
            pub const fn accepted(self) -> &'static [ActionKind] {
                match self { $(Self::$name => &[$(ActionKind::$action,)*],)* }
            }
        }
    };
    (@built built) => { true };
    (@built planned) => { false };
}

fault_points! {
    StdioRead = "stdio.read", Transport, built,
        [Panic Error Exit Kill Abort Delay Hang],
        "a session has read bytes from its client";
    StdioWrite = "stdio.write", Transport, built,
        [Panic Error Exit Kill Abort Delay Hang Torn],
        "a session is about to write to its client";
    SessionDispatch = "session.dispatch", Host, built,
        [Panic Error Exit Kill Abort Delay Hang Drop],
        "a session is about to hand a call to a worker";
    // The ledger is a plain value inside the session's turn: it has nothing to wait with.
    LedgerRecord = "ledger.record", Host, built,
        [Panic Error Exit Kill Abort],
        "a call is about to be recorded as dispatched";
    WorkerStart = "worker.start", Worker, built,
        [Panic Error Exit Kill Abort Delay Hang Garbage Silence StopReading],
        "a worker starts and has not greeted yet";
    WorkerBeforeExecute = "worker.before_execute", Worker, built,
        [Panic Error Exit Kill Abort Delay Hang Drop Garbage Silence StopReading],
        "a worker has an attempt and has not begun it";
    WorkerBeforeReply = "worker.before_reply", Worker, built,
        [Panic Error Exit Kill Abort Delay Hang Drop Torn Garbage Silence StopReading],
        "a worker has run an attempt and has not answered";
    WorkerAfterReply = "worker.after_reply", Worker, built,
        [Panic Error Exit Kill Abort Delay Hang Garbage Silence StopReading],
        "a worker has answered an attempt";
    // A supervisor's own messages cannot be lost inside a process; what can fail is the handling of one.
    WorkersSupervise = "workers.supervise", Host, built,
        [Panic Error Exit Kill Abort Delay Hang],
        "the workers' supervisor handles a message";
    SessionsSupervise = "sessions.supervise", Host, built,
        [Panic Error Exit Kill Abort Delay Hang],
        "the sessions' supervisor handles a message";
    JobsSupervise = "jobs.supervise", Job, built,
        [Panic Error Exit Kill Abort Delay Hang],
        "the jobs' supervisor handles a message";
    ConsultAttend = "consult.attend", Job, built,
        [Panic Error Exit Kill Abort Delay Hang],
        "a consult actor handles a message";
    JobsBeforeAccept = "jobs.before_accept", Job, built,
        [Panic Error Exit Kill Abort Delay Hang Drop],
        "a job is about to be accepted";
    JobsAfterAccept = "jobs.after_accept", Job, built,
        [Panic Error Exit Kill Abort Delay Hang Drop],
        "a job is durable and nobody has been told";
    RunnerStart = "runner.start", Job, built,
        [Panic Error Exit Kill Abort Delay Hang],
        "a runner starts and does not own its job yet";
    RunnerBeforeTerminal = "runner.before_terminal", Job, built,
        [Panic Error Exit Kill Abort Delay Hang],
        "the agent has ended and the outcome is not durable";
    RunnerAfterTerminal = "runner.after_terminal", Job, built,
        [Panic Error Exit Kill Abort Delay Hang Drop],
        "the outcome is durable and nobody has been told";
    StoreCommit = "store.commit", Store, built,
        [Panic Error Exit Kill Abort Delay Hang],
        "the store is about to commit";
    TelemetryWrite = "telemetry.write", Host, built,
        [Panic Error Exit Kill Abort Delay Hang Drop Torn],
        "the log is about to be written";
    ExporterCarry = "exporter.carry", Host, built,
        [Panic Error Exit Kill Abort Delay Hang],
        "a batch for the collector is in hand and nothing of it was sent; an error is that of a collector that refuses it";
    RolloutSnapshot = "rollout.snapshot", Rollout, built,
        [Panic Error Exit Kill Abort Delay Hang],
        "everything is at rest and the snapshot is about to be put into memory; an error has it put into a file without a name";
    RolloutBeforeExec = "rollout.before_exec", Rollout, built,
        [Panic Error Exit Kill Abort Delay Hang],
        "the snapshot is written and the new program is not started";
    RolloutAfterRestore = "rollout.after_restore", Rollout, built,
        [Panic Error Exit Kill Abort Delay Hang],
        "the new program has read the snapshot and serves nothing yet";
    UnixAccept = "unix.accept", Transport, built,
        [Panic Error Exit Kill Abort Delay Hang Drop],
        "a connection came in on the socket";
    // A start waits for nobody.
    UnixBind = "unix.bind", Transport, built,
        [Panic Error Exit Kill Abort Delay],
        "a daemon is about to make its socket; an error is that of a file system that has none";
    ExecConnect = "exec.connect", Transport, built,
        [Panic Error Exit Kill Abort Delay Hang],
        "a connection to an exec server is about to be made";
    ExecRead = "exec.read", Transport, built,
        [Panic Error Exit Kill Abort Delay Hang Drop],
        "a line of an exec server was read and nothing has come of it";
    // What is asked has its own bound, and nothing between two tasks of one process is lost: neither a hang nor a drop is real.
    FleetAsk = "fleet.ask", Host, built,
        [Panic Error Exit Kill Abort Delay],
        "a host of a fleet is about to ask its queue or its store";
    FleetAnswered = "fleet.answered", Host, built,
        [Panic Error Exit Kill Abort Delay],
        "a host of a fleet was answered and nothing has come of it";
}

/// The methods of requests but for calls of tools, which are named by their tool.
const METHODS: [&str; 10] = [
    "ping",
    "tools/list",
    "initialize",
    "server/discover",
    "subscriptions/listen",
    "tasks/get",
    "tasks/result",
    "tasks/list",
    "tasks/cancel",
    "tasks/update",
];

/// The store's verbs that change what is stored.
const STORE_VERBS: [&str; 10] = [
    "accept",
    "start",
    "set_process",
    "finish",
    "append",
    "request_cancel",
    "hand_over",
    "mark_read",
    "clear_limits",
    "prune",
];

/// The messages of the jobs' supervisor, by the names it has for them.
const JOBS_MESSAGES: [&str; 18] = [
    "accept",
    "stored",
    "withdrawn",
    "resumed",
    "session_over",
    "handed_over",
    "shown",
    "attach",
    "terminate",
    "ended",
    "attend",
    "gone",
    "due",
    "sweep",
    "adopt",
    "let_go",
    "resume",
    "attached",
];

/// What a host of a fleet asks, by the names it has for it.
const FLEET_QUESTIONS: [&str; 11] =
    ["renew", "claim", "note", "prepare", "start", "accept", "tell", "forget", "look", "sweep", "read"];

impl FaultPoint {
    /// Whether a plan may ask for this here.
    #[must_use]
    pub fn accepts(self, action: ActionKind) -> bool {
        self.accepted().contains(&action)
    }

    /// What a rule may name here.
    #[must_use]
    pub const fn operations(self) -> Operations {
        match self {
            Self::StdioRead
            | Self::StdioWrite
            | Self::WorkerStart
            | Self::RunnerStart
            | Self::RunnerBeforeTerminal
            | Self::RunnerAfterTerminal
            | Self::TelemetryWrite
            | Self::ExporterCarry
            | Self::RolloutSnapshot
            | Self::RolloutBeforeExec
            | Self::RolloutAfterRestore
            | Self::UnixAccept
            | Self::UnixBind
            | Self::ExecConnect
            | Self::ExecRead => Operations::None,
            Self::SessionDispatch | Self::LedgerRecord | Self::WorkerBeforeReply | Self::WorkerAfterReply => {
                Operations::Calls
            }
            // For what no worker executes, a rule here takes the worker away.
            Self::WorkerBeforeExecute => Operations::Requests,
            Self::WorkersSupervise => Operations::These(&[
                "wanted",
                "session_over",
                "broken",
                "up",
                "gone",
                "due",
                "set_aside",
                "resume",
                "snapshot",
            ]),
            Self::SessionsSupervise => Operations::These(&["opened", "over", "gone", "due"]),
            Self::JobsSupervise => Operations::These(&JOBS_MESSAGES),
            Self::ConsultAttend => Operations::These(&["began", "ended", "panicked"]),
            Self::JobsBeforeAccept | Self::JobsAfterAccept => Operations::These(&["accept"]),
            Self::StoreCommit => Operations::These(&STORE_VERBS),
            Self::FleetAsk | Self::FleetAnswered => Operations::These(&FLEET_QUESTIONS),
        }
    }

    /// Whether it is met only where clients come in by a socket, or where something runs on another machine, which is never the
    /// case at a host on standard streams with agents of its own.
    #[must_use]
    pub const fn is_of_a_socket(self) -> bool {
        matches!(self, Self::UnixAccept | Self::UnixBind | Self::ExecConnect | Self::ExecRead)
    }

    /// Whether it is met only where a fleet is configured.
    #[must_use]
    pub const fn is_of_a_fleet(self) -> bool {
        matches!(self, Self::FleetAsk | Self::FleetAnswered)
    }

    /// Whether it is met only in a process of its own, never in the one that holds the actors.
    #[must_use]
    pub const fn is_runners_own(self) -> bool {
        matches!(self, Self::RunnerStart | Self::RunnerBeforeTerminal | Self::RunnerAfterTerminal)
    }
}

impl fmt::Display for FaultPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a rule may name behind the `@` at a point: what can be going on when it is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operations {
    /// Nothing that has a name: a rule that named something would never be met.
    None,
    /// One of these.
    These(&'static [&'static str]),
    /// A call of a tool: `tools/call:NAME`.
    Calls,
    /// A request of a client: its method, or `tools/call:NAME`.
    Requests,
    /// Not decided yet: nothing meets the point in this version.
    Any,
}

/// Which tools can be called, as far as whoever reads a plan knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tools<'a> {
    /// Any: an embedding program has tools of its own.
    Any,
    /// These and no others.
    These(&'a [&'a str]),
}

impl Operations {
    /// Every text a rule may name, where they are known; `tools/call:NAME` stands for tools that are not.
    #[must_use]
    pub fn names(self, tools: Tools<'_>) -> Vec<String> {
        let calls = || match tools {
            Tools::Any => vec![format!("{TOOL}NAME")],
            Tools::These(names) => names.iter().map(|name| format!("{TOOL}{name}")).collect(),
        };
        match self {
            Self::None | Self::Any => Vec::new(),
            Self::These(names) => names.iter().map(|name| (*name).to_owned()).collect(),
            Self::Calls => calls(),
            Self::Requests => METHODS.iter().map(|method| (*method).to_owned()).chain(calls()).collect(),
        }
    }

    /// Whether a rule that names this could be met.
    #[must_use]
    pub fn accept(self, text: &str, tools: Tools<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::None | Self::These(_) => self.names(tools).iter().any(|name| name == text),
            Self::Calls | Self::Requests => match (text.strip_prefix(TOOL), tools) {
                (Some(tool), Tools::Any) => !tool.is_empty(),
                _ => self.names(tools).iter().any(|name| name == text && !name.ends_with(":NAME")),
            },
        }
    }
}

/// What was being done when a point was met. A plan names it as text; comparing allocates nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Nothing that has a name.
    None,
    /// A method or verb: `ping`, `accept`.
    Method(&'a str),
    /// A call of this tool; its text is `tools/call:` and the name.
    Tool(&'a str),
}

/// What stands before the name of a tool.
const TOOL: &str = "tools/call:";

impl Operation<'_> {
    /// Whether this text names the operation. No text names [`Operation::None`].
    #[must_use]
    pub fn is(self, text: &str) -> bool {
        match self {
            Self::None => false,
            Self::Method(method) => method == text,
            Self::Tool(tool) => text.strip_prefix(TOOL) == Some(tool),
        }
    }

    pub(super) fn text(self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Method(method) => Some(method.to_owned()),
            Self::Tool(tool) => Some(format!("{TOOL}{tool}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_point_and_action_is_decided() {
        let columns = "panic error exit kill abort delay hang drop torn garbage silence stop_reading";
        let table = "
            stdio.read              x x x x x x x - - - - -
            stdio.write             x x x x x x x - x - - -
            session.dispatch        x x x x x x x x - - - -
            ledger.record           x x x x x - - - - - - -
            worker.start            x x x x x x x - - x x x
            worker.before_execute   x x x x x x x x - x x x
            worker.before_reply     x x x x x x x x x x x x
            worker.after_reply      x x x x x x x - - x x x
            workers.supervise       x x x x x x x - - - - -
            sessions.supervise      x x x x x x x - - - - -
            jobs.supervise          x x x x x x x - - - - -
            consult.attend          x x x x x x x - - - - -
            jobs.before_accept      x x x x x x x x - - - -
            jobs.after_accept       x x x x x x x x - - - -
            runner.start            x x x x x x x - - - - -
            runner.before_terminal  x x x x x x x - - - - -
            runner.after_terminal   x x x x x x x x - - - -
            store.commit            x x x x x x x - - - - -
            telemetry.write         x x x x x x x x x - - -
            exporter.carry          x x x x x x x - - - - -
            rollout.snapshot        x x x x x x x - - - - -
            rollout.before_exec     x x x x x x x - - - - -
            rollout.after_restore   x x x x x x x - - - - -
            unix.accept             x x x x x x x x - - - -
            unix.bind               x x x x x x - - - - - -
            exec.connect            x x x x x x x - - - - -
            exec.read               x x x x x x x x - - - -
            fleet.ask               x x x x x x - - - - - -
            fleet.answered          x x x x x x - - - - - -";
        let columns: Vec<&str> = columns.split(' ').collect();
        let kinds: Vec<&str> = ActionKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(kinds, columns);
        let rows: Vec<&str> = table.trim().lines().map(str::trim).collect();
        assert_eq!(rows.len(), FaultPoint::ALL.len());
        for (row, &point) in rows.iter().zip(FaultPoint::ALL) {
            let mut cells = row.split_whitespace();
            assert_eq!(cells.next(), Some(point.as_str()));
            let decided: Vec<bool> = cells.map(|cell| cell == "x").collect();
            assert_eq!(decided.len(), columns.len(), "{point}");
            for (&kind, decided) in ActionKind::ALL.iter().zip(decided) {
                assert_eq!(point.accepts(kind), decided, "{point}={kind}");
            }
        }
    }

    #[test]
    fn points_and_actions_have_names_of_their_own() {
        let names = FaultPoint::ALL.iter().map(|point| point.as_str());
        let mut seen = std::collections::HashSet::new();
        for name in names.chain(ActionKind::ALL.iter().map(|kind| kind.as_str())) {
            assert!(seen.insert(name), "{name} stands twice");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || "._".contains(c)), "{name}");
        }
    }

    #[test]
    fn an_operation_is_accepted_exactly_where_it_can_be_met() {
        let tools = Tools::These(&["consult", "consult_job"]);
        for (point, text, own, any) in [
            (FaultPoint::StoreCommit, "accept", true, true),
            (FaultPoint::StoreCommit, "acept", false, false),
            (FaultPoint::StoreCommit, "tools/call:consult", false, false),
            (FaultPoint::JobsBeforeAccept, "accept", true, true),
            (FaultPoint::JobsBeforeAccept, "finish", false, false),
            (FaultPoint::WorkerBeforeReply, "tools/call:consult", true, true),
            (FaultPoint::WorkerBeforeReply, "tools/call:consul", false, true),
            (FaultPoint::WorkerBeforeReply, "tools/call:NAME", false, true),
            (FaultPoint::WorkerBeforeReply, "tools/call:", false, false),
            (FaultPoint::WorkerBeforeReply, "tools/call", false, false),
            (FaultPoint::WorkerBeforeReply, "consult", false, false),
            (FaultPoint::WorkerBeforeReply, "ping", false, false),
            (FaultPoint::WorkerBeforeExecute, "ping", true, true),
            (FaultPoint::WorkerBeforeExecute, "pin", false, false),
            (FaultPoint::WorkerBeforeExecute, "tools/call:consult_job", true, true),
            (FaultPoint::SessionsSupervise, "opened", true, true),
            (FaultPoint::SessionsSupervise, "open", false, false),
            (FaultPoint::StdioRead, "ping", false, false),
            (FaultPoint::RunnerStart, "tools/call:consult", false, false),
            (FaultPoint::UnixAccept, "anything", false, false),
            (FaultPoint::FleetAnswered, "claim", true, true),
            (FaultPoint::FleetAnswered, "wait", false, false),
        ] {
            let operations = point.operations();
            assert_eq!(operations.accept(text, tools), own, "{point}@{text}");
            assert_eq!(operations.accept(text, Tools::Any), any, "{point}@{text}, any tool");
        }
        for point in FaultPoint::ALL {
            for name in point.operations().names(tools) {
                assert!(point.operations().accept(&name, tools), "{point}@{name}");
            }
        }
    }

    #[test]
    fn a_tool_is_named_by_its_call_and_nothing_else() {
        let tool = Operation::Tool("consult");
        assert!(tool.is("tools/call:consult"));
        for other in ["consult", "tools/call", "tools/call:", "tools/call:consult_job", "tools/call:consul", ""] {
            assert!(!tool.is(other), "{other:?}");
        }
        assert!(Operation::Method("ping").is("ping"));
        assert!(!Operation::Method("ping").is("pin"));
        assert!(!Operation::None.is(""));
    }
}
