//! Targets: the figures, what we want of them, and the verdict.
//!
//! Owns: every goal and line, in one table.
//! May not know: how a figure is measured or printed.
//!
//! A goal is what we aim at. A line is where a rival stands or physics bends: crossing it is a defect.

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
    /// At most this.
    AtMost { goal: f64, line: f64 },
    /// At least this.
    AtLeast { goal: f64, line: f64 },
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
}

const fn row(id: &'static str, figure: Figure, name: &'static str, rule: Rule) -> Target {
    Target { id, figure, name, rule }
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
    row("I14", Figure::FloodGrowth, "growth under a client that never reads, MB", at_most(8.0, 16.0)),
    row("I14", Figure::FloodFaults, "  faults when it reads after all", at_most(0.0, 0.0)),
    row("I15", Figure::Faults, "lost, doubled, wrong: all W and sizes", at_most(0.0, 0.0)),
    row("I16", Figure::LongLine, "line over the limit: faults", at_most(0.0, 0.0)),
    row("I16", Figure::UnknownMethod, "unknown methods in a burst: faults", at_most(0.0, 0.0)),
    row("I16", Figure::Panic, "panicking tool: faults", at_most(0.0, 0.0)),
];

impl Figure {
    /// The targets it belongs to.
    pub(crate) fn ids(self) -> impl Iterator<Item = &'static str> {
        TARGETS.iter().filter(move |target| target.figure == self).map(|target| target.id)
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

    /// Judges what the rule looks at: a ratio or the figure itself.
    pub(crate) fn judge(self, value: f64) -> Verdict {
        let (met, within) = match self {
            Self::TimesAtMost { goal, line } | Self::BeatsAtMost { goal, line, .. } | Self::AtMost { goal, line } => {
                (value <= goal, value <= line)
            }
            Self::TimesAtLeast { goal, line } | Self::AtLeast { goal, line } => (value >= goal, value >= line),
            Self::BeatsAtLeast { goal, .. } => (value >= goal, false),
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
            Self::AtMost { goal: 0.0, .. } => "0".to_owned(),
            Self::AtMost { goal, .. } => format!("≤ {goal}"),
            Self::AtLeast { goal, .. } => format!("≥ {goal}"),
        }
    }

    /// The line as the table prints it.
    pub(crate) fn line(self) -> String {
        match self {
            Self::TimesAtMost { line, .. } | Self::BeatsAtMost { line, .. } => format!("≤ {line}×"),
            Self::TimesAtLeast { line, .. } => format!("≥ {line}×"),
            Self::BeatsAtLeast { .. } => String::new(),
            Self::AtMost { line: 0.0, .. } => "0".to_owned(),
            Self::AtMost { line, .. } => format!("≤ {line}"),
            Self::AtLeast { line, .. } => format!("≥ {line}"),
        }
    }
}
