//! Peers: the servers that are compared, and how to get an executable of each.
//!
//! Owns: names, cargo targets, known limits.
//! May not know: what is measured.

use std::path::PathBuf;

use crate::shipped;

/// Bytes of the longest line phone-opus and the floor take by default.
const OUR_MAX_LINE: usize = 8 * 1024 * 1024;
/// Bytes of the longest line rmcp takes by default.
const RMCP_MAX_LINE: usize = 16 * 1024 * 1024;

/// The yardstick of those whose tools run apart. It starts no second child when the first one dies.
pub(crate) const FLOOR2: &str = "floor2";

/// A server somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PeerChoice {
    /// One of ours, built here.
    Example(&'static Example),
    /// Any other program.
    Program {
        /// What the table calls it.
        label: String,
        /// Program and arguments.
        argv: Vec<String>,
    },
}

/// Where a server runs its tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In its own process.
    Inside,
    /// In a process that it starts.
    Apart,
}

/// A server this repository builds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Example {
    label: &'static str,
    target: &'static str,
    max_line: usize,
    place: Place,
    variables: &'static [(&'static str, &'static str)],
}

const fn inside(label: &'static str, target: &'static str, max_line: usize) -> Example {
    Example { label, target, max_line, place: Place::Inside, variables: &[] }
}

const fn apart(
    label: &'static str,
    target: &'static str,
    variables: &'static [(&'static str, &'static str)],
) -> Example {
    Example { label, target, max_line: OUR_MAX_LINE, place: Place::Apart, variables }
}

/// Ours; see its entry in `Cargo.toml`.
const OURS: &str = "bench_phone_opus";

const EXAMPLES: &[Example] = &[
    inside("floor", "bench_floor", OUR_MAX_LINE),
    inside("rmcp", "bench_rmcp", RMCP_MAX_LINE),
    inside("rmcp-best", "bench_rmcp_best", RMCP_MAX_LINE),
    inside("phone-opus", OURS, OUR_MAX_LINE),
    apart(FLOOR2, "bench_floor2", &[]),
    apart("phone-opus-process", OURS, &[("BENCH_ISOLATION", "process")]),
];

impl PeerChoice {
    /// Every server this repository builds, the floor first.
    pub(crate) fn all() -> Vec<Self> {
        EXAMPLES.iter().map(Self::Example).collect()
    }

    /// A name from the list, or `LABEL=PROGRAM ARG...`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Some((label, command)) = text.split_once('=') {
            let argv: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
            if label.is_empty() || argv.is_empty() {
                return Err(format!("{text:?} should read LABEL=PROGRAM ARG..."));
            }
            return Ok(Self::Program { label: label.to_owned(), argv });
        }
        EXAMPLES.iter().find(|example| example.label == text).map(Self::Example).ok_or_else(|| {
            let known: Vec<_> = EXAMPLES.iter().map(|example| example.label).collect();
            format!("there is no peer {text:?}; there are {}, and LABEL=PROGRAM ARG...", known.join(", "))
        })
    }

    /// What the table calls it.
    pub(crate) fn label(&self) -> &str {
        match self {
            Self::Example(example) => example.label,
            Self::Program { label, .. } => label,
        }
    }
}

/// A server that can be started.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// What the table calls it.
    pub(crate) label: String,
    /// Program and arguments.
    pub(crate) argv: Vec<PathBuf>,
    /// Bytes of the longest line it takes by default, where known.
    pub(crate) max_line: Option<usize>,
    /// Where it runs its tools.
    pub(crate) place: Place,
    /// Added to its environment.
    pub(crate) variables: &'static [(&'static str, &'static str)],
}

/// A peer as the table knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    /// What the table calls it.
    pub(crate) label: String,
    /// Where it runs its tools.
    pub(crate) place: Place,
}

/// Builds what has to be built. The error is one sentence.
pub(crate) fn prepare(choice: &PeerChoice) -> Result<Peer, String> {
    match choice {
        PeerChoice::Program { label, argv } => Ok(Peer {
            label: label.clone(),
            argv: argv.iter().map(PathBuf::from).collect(),
            max_line: None,
            place: Place::Inside,
            variables: &[],
        }),
        PeerChoice::Example(example) => Ok(Peer {
            label: example.label.to_owned(),
            argv: vec![if example.target == OURS {
                shipped::build(example.target, &["--features", "bench-server", "--bin"])?
            } else {
                shipped::build(example.target, &["--example"])?
            }],
            max_line: Some(example.max_line),
            place: example.place,
            variables: example.variables,
        }),
    }
}
