//! Targets: the figures, what we want of them, and the verdict.
//!
//! Owns: every goal and line, in one table.
//! May not know: how a figure is measured or printed.
//!
//! A goal is what we aim at. A line is where a rival stands or physics bends: crossing it is a defect.

use crate::peers::{FLOOR2, Named, Place};

/// One figure of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Figure {
    /// Echo p50, µs, one core.
    EchoP50,
    /// Server CPU per echo, µs, one core, 64 in flight.
    CpuPerCall,
    /// Echoes per second, two cores, 64 in flight.
    Rate64,
    /// Echoes per second, two cores, 512 in flight.
    Rate512,
    /// Its rate with 512 in flight over that with 64, per round.
    Scaling,
    /// Ping p50, µs, one core.
    PingP50,
    /// `tools/list` p50, µs, one core.
    ListP50,
    /// Echo p99, µs, one core.
    EchoP99,
    /// Echo p50 of the modern era over its own legacy p50, per round.
    Modern,
    /// Echo p50, µs, one core, socket pairs as standard streams.
    SocketP50,
    /// From spawning to the first echo, ms.
    FirstEcho,
    /// Resident memory when idle, MB.
    IdleRss,
    /// Its proportional share of that, MB.
    IdlePss,
    /// Wake-ups per second when idle.
    WakeUps,
    /// CPU when idle, ms per second.
    IdleCpu,
    /// Echo p50 of 64 KiB, µs, one core.
    Echo64K,
    /// Echo p50 of 1 MiB, µs, one core.
    Echo1M,
    /// Echo p50 of 16 MiB, ms, one core.
    Echo16M,
    /// Peak resident memory after one echo of 16 MiB, MB.
    Peak16M,
    /// Growth of resident memory under a client that never reads, MB.
    FloodGrowth,
    /// Faults when that client reads after all.
    FloodFaults,
    /// Requests lost, answered twice or wrongly, over all windows and sizes.
    Faults,
    /// Faults after a line over the limit.
    LongLine,
    /// Faults after unknown methods in a burst.
    UnknownMethod,
    /// Faults after a tool panicked.
    Panic,
    /// From spawning to the answer to `initialize`, ms.
    Initialize,
    /// Echoes of 64 KiB per second, two cores, 8 in flight.
    Rate64K,
    /// From killing the worker to the first answer to a call sent after that, ms.
    Recovery,
    /// The longest of these.
    WorstRecovery,
    /// Calls caught by a kill that were not answered as they have to be.
    Caught,
    /// Calls lost, doubled or wrong over many kills.
    KillFaults,
    /// Processes left behind after many kills.
    Orphans,
    /// Growth of resident memory over many kills, MB.
    KillGrowth,
}

/// What is wanted of a figure.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rule {
    /// At most this many times the yardstick's.
    TimesAtMost { goal: f64, line: f64 },
    /// At least this many times the yardstick's.
    TimesAtLeast { goal: f64, line: f64 },
    /// At least this many times a rival's; not asked of the rivals themselves.
    BeatsAtLeast { rival: &'static str, goal: f64 },
    /// At most this many times a rival's; not asked of the rivals themselves.
    BeatsAtMost { rival: &'static str, goal: f64, line: f64 },
    /// At most so many times another figure of the same peer in the same run; the line is absolute.
    TimesOwn { other: Figure, goal: f64, line: f64 },
    /// At most this.
    AtMost { goal: f64, line: f64 },
    /// At least this.
    AtLeast { goal: f64, line: f64 },
}

/// Who is in a row, besides the yardstick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// Those that run their tools here.
    At(Place),
    /// Everybody.
    All,
}

impl Who {
    /// Whether a peer of this place belongs in the row.
    pub(crate) fn has(self, place: Place) -> bool {
        self == Self::All || self == Self::At(place)
    }
}

/// What a ratio is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Yardstick {
    /// The first peer named.
    First,
    /// The floor of two processes.
    Floor2,
}

impl Yardstick {
    /// Which of these peers it is.
    pub(crate) fn of(self, peers: &[Named]) -> Option<usize> {
        match self {
            Self::First => (!peers.is_empty()).then_some(0),
            Self::Floor2 => peers.iter().position(|peer| peer.label == FLOOR2),
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// `I1` and so on.
    pub(crate) id: &'static str,
    /// Which figure.
    pub(crate) figure: Figure,
    /// What the row says it is, unit included.
    pub(crate) name: &'static str,
    /// What is wanted.
    pub(crate) rule: Rule,
    /// Of whom.
    pub(crate) who: Who,
    /// What its ratios are to.
    pub(crate) yardstick: Yardstick,
}

const fn row(id: &'static str, figure: Figure, name: &'static str, rule: Rule) -> Target {
    Target { id, figure, name, rule, who: Who::At(Place::Inside), yardstick: Yardstick::First }
}

/// A row for every peer.
const fn every(id: &'static str, figure: Figure, name: &'static str, rule: Rule) -> Target {
    Target { who: Who::All, ..row(id, figure, name, rule) }
}

/// A row for those whose tools run in a process of their own, beside the floor of two processes.
const fn apart(id: &'static str, figure: Figure, name: &'static str, rule: Rule) -> Target {
    Target { who: Who::At(Place::Apart), yardstick: Yardstick::Floor2, ..row(id, figure, name, rule) }
}

/// The same, beside the first peer.
const fn apart_from_first(id: &'static str, figure: Figure, name: &'static str, rule: Rule) -> Target {
    Target { yardstick: Yardstick::First, ..apart(id, figure, name, rule) }
}

const fn times_at_most(goal: f64, line: f64) -> Rule {
    Rule::TimesAtMost { goal, line }
}

const fn times_at_least(goal: f64, line: f64) -> Rule {
    Rule::TimesAtLeast { goal, line }
}

const fn beats(rival: &'static str, goal: f64) -> Rule {
    Rule::BeatsAtLeast { rival, goal }
}

const fn at_most(goal: f64, line: f64) -> Rule {
    Rule::AtMost { goal, line }
}

/// Every row, in the order it is printed.
pub(crate) const TARGETS: &[Target] = &[
    row("I1", Figure::EchoP50, "echo p50, one core, µs", times_at_most(1.8, 2.1)),
    // The goal and line above, where they were set, as multiples of this rival: it pays for context switches too, so this
    // row moves less than the one above between machines on which those cost more or less.
    row(
        "I1",
        Figure::EchoP50,
        "  the same, against rmcp-best",
        Rule::BeatsAtMost { rival: "rmcp-best", goal: 0.85, line: 1.0 },
    ),
    row("I2", Figure::CpuPerCall, "CPU per echo, one core, W=64, µs", times_at_most(6.0, 9.0)),
    row("I3", Figure::Rate64, "echoes/s, two cores, W=64", times_at_least(0.42, 0.33)),
    row("I3", Figure::Rate64, "  the same, against rmcp-best", beats("rmcp-best", 2.0)),
    row("I3", Figure::Rate64, "  the same, against rmcp", beats("rmcp", 15.0)),
    row("I4", Figure::Rate512, "echoes/s, two cores, W=512", times_at_least(0.40, 0.30)),
    row("I4", Figure::Rate512, "  the same, against rmcp-best", beats("rmcp-best", 4.0)),
    // The line leaves 5 % for what two runs of one server differ by.
    row("I4", Figure::Scaling, "  the same, over its own at W=64", Rule::AtLeast { goal: 1.0, line: 0.95 }),
    row("I5", Figure::PingP50, "ping p50, one core, µs", times_at_most(1.5, 1.8)),
    row("I5", Figure::ListP50, "tools/list p50, one core, µs", times_at_most(1.5, 1.8)),
    row("I6", Figure::EchoP99, "echo p99, one core, µs", times_at_most(2.5, 3.1)),
    row("I7", Figure::Modern, "modern era over own legacy, echo p50", at_most(1.08, 1.12)),
    row("I8", Figure::SocketP50, "echo p50, socket pairs, one core, µs", times_at_most(1.6, 2.0)),
    row("I9", Figure::FirstEcho, "spawn to first echo, ms", times_at_most(1.4, 1.8)),
    row("I10", Figure::IdleRss, "idle RSS, MB", times_at_most(2.2, 2.6)),
    row("I10", Figure::IdlePss, "idle PSS, MB", times_at_most(3.5, 4.9)),
    row("I11", Figure::WakeUps, "idle wake-ups per second", at_most(0.0, 0.2)),
    row("I11", Figure::IdleCpu, "idle CPU, ms per second", at_most(0.0, 0.05)),
    row("I12", Figure::Echo64K, "echo p50 of 64 KiB, one core, µs", times_at_most(1.6, 1.9)),
    row("I12", Figure::Echo1M, "echo p50 of 1 MiB, one core, µs", times_at_most(1.6, 2.4)),
    row("I12", Figure::Echo16M, "echo p50 of 16 MiB, one core, ms", times_at_most(1.7, 2.0)),
    row("I13", Figure::Peak16M, "peak RSS, one echo of 16 MiB, MB", times_at_most(1.5, 2.5)),
    every("I14", Figure::FloodGrowth, "growth under a client that never reads, MB", at_most(8.0, 16.0)),
    every("I14", Figure::FloodFaults, "  faults when it reads after all", at_most(0.0, 0.0)),
    every("I15", Figure::Faults, "lost, doubled, wrong: all W and sizes", at_most(0.0, 0.0)),
    every("I16", Figure::LongLine, "line over the limit: faults", at_most(0.0, 0.0)),
    every("I16", Figure::UnknownMethod, "unknown methods in a burst: faults", at_most(0.0, 0.0)),
    every("I16", Figure::Panic, "panicking tool: faults", at_most(0.0, 0.0)),
    apart("O1", Figure::EchoP50, "echo p50, one core, µs", times_at_most(1.4, 1.8)),
    apart("O2", Figure::CpuPerCall, "CPU per echo, one core, W=64, µs", times_at_most(4.0, 6.0)),
    apart("O3", Figure::Rate64, "echoes/s, two cores, W=64", times_at_least(0.45, 0.33)),
    apart("O4", Figure::Rate512, "echoes/s, two cores, W=512", times_at_least(0.50, 0.0)),
    apart("O4", Figure::Scaling, "  the same, over its own at W=64", Rule::AtLeast { goal: 1.0, line: 0.95 }),
    apart_from_first("O5", Figure::Initialize, "spawn to initialize, ms", times_at_most(1.5, 2.0)),
    apart("O5", Figure::FirstEcho, "spawn to first echo, ms", times_at_most(1.5, 2.0)),
    apart(
        "O6",
        Figure::Recovery,
        "recovery after kill -9, 1000 calls/s, ms",
        Rule::TimesOwn { other: Figure::FirstEcho, goal: 3.0, line: 30.0 },
    ),
    apart(
        "O6",
        Figure::WorstRecovery,
        "  the longest, ms",
        Rule::TimesOwn { other: Figure::FirstEcho, goal: 10.0, line: 100.0 },
    ),
    apart("O8", Figure::Caught, "calls caught by kills: faults", at_most(0.0, 0.0)),
    apart("O9", Figure::KillFaults, "50 kills: lost, doubled, wrong", at_most(0.0, 0.0)),
    apart("O9", Figure::Orphans, "  orphans", at_most(0.0, 0.0)),
    apart("O9", Figure::KillGrowth, "  growth of RSS, MB", at_most(1.0, f64::INFINITY)),
    apart_from_first("O10", Figure::IdlePss, "idle PSS, host and worker, MB", times_at_most(4.5, 7.5)),
    apart("O11", Figure::Echo1M, "echo p50 of 1 MiB, one core, µs", times_at_most(1.6, 2.2)),
    apart("O11", Figure::Rate64K, "echoes/s of 64 KiB, two cores, W=8", times_at_least(0.7, 0.5)),
    apart("O12", Figure::WakeUps, "idle wake-ups per second", at_most(0.0, 0.2)),
    apart("O12", Figure::IdleCpu, "idle CPU, ms per second", at_most(0.0, 0.05)),
];

impl Figure {
    /// The rows that need it.
    pub(crate) fn targets(self) -> impl Iterator<Item = &'static Target> {
        TARGETS.iter().filter(move |target| target.figure == self || target.rule.other() == Some(self))
    }

    /// Whether the worst value counts, and not the one in the middle.
    pub(crate) fn is_worst(self) -> bool {
        self == Self::WorstRecovery
    }
}

/// How a figure stands to its goal and line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// At the goal or better.
    Met,
    /// Between the goal and the line.
    WithinLine,
    /// Beyond the line, or it could not do what was asked.
    Missed,
    /// There is nothing to judge.
    NotApplicable,
}

impl Verdict {
    /// The word in the table.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::WithinLine => "within line",
            Self::Missed => "missed",
            Self::NotApplicable => "n.a.",
        }
    }
}

impl Rule {
    /// The rival it compares with, if it is not the yardstick.
    pub(crate) const fn rival(self) -> Option<&'static str> {
        match self {
            Self::BeatsAtLeast { rival, .. } | Self::BeatsAtMost { rival, .. } => Some(rival),
            _ => None,
        }
    }

    /// The peer's own figure it compares with.
    pub(crate) const fn other(self) -> Option<Figure> {
        match self {
            Self::TimesOwn { other, .. } => Some(other),
            _ => None,
        }
    }

    /// Judges what the rule looks at, a ratio or the figure itself; `value` is the figure in any case.
    pub(crate) fn judge(self, judged: f64, value: f64) -> Verdict {
        let (met, within) = match self {
            Self::TimesOwn { goal, line, .. } => (judged <= goal, value <= line),
            Self::TimesAtMost { goal, line } | Self::BeatsAtMost { goal, line, .. } | Self::AtMost { goal, line } => {
                (judged <= goal, judged <= line)
            }
            Self::TimesAtLeast { goal, line } | Self::AtLeast { goal, line } => (judged >= goal, judged >= line),
            Self::BeatsAtLeast { goal, .. } => (judged >= goal, false),
        };
        match (met, within) {
            (true, _) => Verdict::Met,
            (false, true) => Verdict::WithinLine,
            (false, false) => Verdict::Missed,
        }
    }

    /// The goal as the table prints it.
    pub(crate) fn goal(self) -> String {
        match self {
            Self::TimesAtMost { goal, .. } | Self::BeatsAtMost { goal, .. } => format!("≤ {goal}×"),
            Self::TimesAtLeast { goal, .. } | Self::BeatsAtLeast { goal, .. } => format!("≥ {goal}×"),
            Self::TimesOwn { goal, .. } => format!("≤ {goal}× own"),
            Self::AtMost { goal: 0.0, .. } => "0".to_owned(),
            Self::AtMost { goal, .. } => format!("≤ {goal}"),
            Self::AtLeast { goal, .. } => format!("≥ {goal}"),
        }
    }

    /// The line as the table prints it.
    pub(crate) fn line(self) -> String {
        match self {
            Self::TimesAtMost { line, .. } | Self::BeatsAtMost { line, .. } => format!("≤ {line}×"),
            Self::TimesAtLeast { line: 0.0, .. } | Self::BeatsAtLeast { .. } => String::new(),
            Self::TimesAtLeast { line, .. } => format!("≥ {line}×"),
            Self::AtMost { line: 0.0, .. } => "0".to_owned(),
            Self::AtMost { line, .. } if line.is_infinite() => String::new(),
            Self::AtMost { line, .. } | Self::TimesOwn { line, .. } => format!("≤ {line}"),
            Self::AtLeast { line, .. } => format!("≥ {line}"),
        }
    }
}
