//! Peers: the servers that are compared, and how to get an executable of each.
//!
//! Owns: names, cargo targets, known limits.
//! May not know: what is measured.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Bytes of the longest line phone-opus and the floor take by default.
const OUR_MAX_LINE: usize = 8 * 1024 * 1024;
/// Bytes of the longest line rmcp takes by default.
const RMCP_MAX_LINE: usize = 16 * 1024 * 1024;

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

/// A server this repository builds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Example {
    label: &'static str,
    target: &'static str,
    max_line: usize,
}

const EXAMPLES: &[Example] = &[
    Example { label: "floor", target: "bench_floor", max_line: OUR_MAX_LINE },
    Example { label: "rmcp", target: "bench_rmcp", max_line: RMCP_MAX_LINE },
    Example { label: "rmcp-best", target: "bench_rmcp_best", max_line: RMCP_MAX_LINE },
    Example { label: "phone-opus", target: "bench_phone_opus", max_line: OUR_MAX_LINE },
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
}

/// Builds what has to be built. The error is one sentence.
pub(crate) fn prepare(choice: &PeerChoice) -> Result<Peer, String> {
    match choice {
        PeerChoice::Program { label, argv } => {
            Ok(Peer { label: label.clone(), argv: argv.iter().map(PathBuf::from).collect(), max_line: None })
        }
        PeerChoice::Example(example) => Ok(Peer {
            label: example.label.to_owned(),
            argv: vec![build(example.target)?],
            max_line: Some(example.max_line),
        }),
    }
}

/// Builds one example in the release profile and returns its executable, wherever cargo was told to put it.
fn build(target: &str) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let output = Command::new(cargo)
        .args(["build", "--release", "--quiet", "--message-format=json-render-diagnostics", "--example", target])
        .arg("--manifest-path")
        .arg(manifest)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo does not run: {error}"))?;
    if !output.status.success() {
        return Err(format!("{target} does not build"));
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == target)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| format!("cargo named no executable for {target}"))
}
