//! Options: what to compare, how long, and where to put it.
//!
//! Owns: the command line and the `BENCH_*` variables. Arguments win over variables.
//! May not know: how anything is measured.

use std::path::PathBuf;

use crate::peers::PeerChoice;

/// What the user reads when asking for help or getting an option wrong.
pub(crate) const USAGE: &str = "\
cargo bench --bench side_by_side -- [options]      (each also as a variable: BENCH_PEERS, BENCH_ROUNDS, ...)

  --peers LIST    who runs, first the yardstick: floor,rmcp,rmcp-best,phone-opus,floor2,phone-opus-process (default: all
                  of them), or any other server as LABEL=PROGRAM ARG...
  --rounds N      rounds over all peers (default 5, at least 1)
  --quick         a fifth of the time per figure and, unless said otherwise, 2 rounds: to see that it works
  --only LIST     only these targets, as in I1,I5,O6
  --json FILE     also write every round's figures there
";

/// A run, as asked for.
#[derive(Debug)]
pub(crate) struct Options {
    /// Who takes part, in the order given; the first is the yardstick.
    pub(crate) peers: Vec<PeerChoice>,
    /// Rounds over all peers, at least 1.
    pub(crate) rounds: usize,
    /// How long each figure is measured.
    pub(crate) effort: Effort,
    /// The targets to measure; empty means all.
    pub(crate) only: Vec<String>,
    /// Where the JSON goes.
    pub(crate) json: Option<PathBuf>,
}

impl Options {
    /// Whether this target is to be measured and shown.
    pub(crate) fn wants(&self, id: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == id)
    }
}

/// How much time a run may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Enough to see that everything works; the figures are rough.
    Quick,
    /// Enough to quote.
    Full,
}

/// What the command line asks for.
pub(crate) enum Asked {
    /// A run.
    Run(Options),
    /// The usage.
    Help,
    /// Nothing: this is not `cargo bench`, for instance `cargo test --all-targets`.
    Nothing,
}

/// Reads the arguments (without the program's name) and the variables.
pub(crate) fn read(
    arguments: impl Iterator<Item = String>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Asked, String> {
    let mut peers = variable("BENCH_PEERS");
    let mut rounds = variable("BENCH_ROUNDS");
    let mut quick = variable("BENCH_QUICK").is_some_and(|text| !text.is_empty() && text != "0");
    let mut only = variable("BENCH_ONLY");
    let mut json = variable("BENCH_JSON");
    let mut benching = false;

    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let (name, mut inline) = match argument.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (argument, None),
        };
        let mut value =
            || inline.take().or_else(|| arguments.next()).ok_or_else(|| format!("{name} wants a value\n\n{USAGE}"));
        match name.as_str() {
            "--bench" => benching = true,
            "--help" | "-h" => return Ok(Asked::Help),
            "--quick" => quick = true,
            "--peers" => peers = Some(value()?),
            "--rounds" => rounds = Some(value()?),
            "--only" => only = Some(value()?),
            "--json" => json = Some(value()?),
            _ => return Err(format!("unknown option {name}\n\n{USAGE}")),
        }
    }
    if !benching {
        return Ok(Asked::Nothing);
    }

    let effort = if quick { Effort::Quick } else { Effort::Full };
    let rounds = match rounds {
        Some(text) => match text.parse() {
            Ok(rounds) if rounds >= 1 => rounds,
            _ => return Err(format!("--rounds wants a number from 1 up, not {text:?}")),
        },
        None if quick => 2,
        None => 5,
    };
    let list = |text: String| -> Vec<String> {
        text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
    };
    let mut chosen = Vec::new();
    for text in peers.map(list).unwrap_or_default() {
        let peer = PeerChoice::parse(&text)?;
        if chosen.contains(&peer) {
            return Err(format!("--peers names {text} twice"));
        }
        chosen.push(peer);
    }
    let peers = if chosen.is_empty() { PeerChoice::all() } else { chosen };
    let only = only.map(list).unwrap_or_default();
    Ok(Asked::Run(Options { peers, rounds, effort, only, json: json.map(PathBuf::from) }))
}
