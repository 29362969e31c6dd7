//! The words of `selftest`, in programs that have it.

use clap::Args;
use phone_opus::testkit::custody_board::AgentPart;
use phone_opus::testkit::rig::Through;

use super::words;

/// `selftest`.
#[derive(Debug, Clone, Args)]
pub(crate) struct SelftestOptions {
    /// Show the rows and what is promised of each; play nothing.
    #[arg(long)]
    pub(crate) list: bool,
    /// Only rows, or cells, with this in their name; given more than once, with all of them.
    #[arg(long, value_name = "TEXT")]
    pub(crate) only: Vec<String>,
    /// Rows that break a law on purpose: it must say so.
    #[arg(long)]
    pub(crate) control: bool,
    /// The seed of draws; of a soak, the first one [default: 0, of a soak any].
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Random plans and workloads for so many minutes, instead of the rows.
    #[arg(long, value_name = "MINUTES", conflicts_with_all = ["only", "control", "list"])]
    pub(crate) soak: Option<f64>,
    /// The plan and the workload of one seed of a soak.
    #[arg(long, value_name = "SEED", conflicts_with_all = ["only", "control", "list", "soak", "seed"])]
    pub(crate) replay: Option<u64>,
    /// The custody scoreboard instead: what becomes of prompts, secrets and processes.
    #[arg(long, conflicts_with_all = ["control", "list", "soak", "replay", "seed"])]
    pub(crate) custody: bool,
    /// Whom the scripted agent plays in that: an agent's name, or `all`, which takes a minute for each.
    #[arg(long, value_name = "NAME", default_value = "claude", value_parser = part, requires = "custody")]
    pub(crate) agent: String,
    /// How clients come to the server that is struck.
    #[arg(long, default_value = "streams", value_parser = words::<Through>(), conflicts_with_all = ["control", "soak", "replay"])]
    pub(crate) through: Through,
    /// How many are played at once.
    #[arg(long, value_name = "N", default_value_t = AT_ONCE, value_parser = at_once)]
    pub(crate) at_once: usize,
    /// One JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Every agent, one after the other.
pub(crate) const EVERY_AGENT: &str = "all";

/// Whom the scripted agent can play.
fn part(text: &str) -> Result<String, String> {
    let names = || AgentPart::all().map(|part| part.name().to_owned());
    if text == EVERY_AGENT || names().any(|name| name == text) {
        return Ok(text.to_owned());
    }
    Err(format!("accepted: {}, {EVERY_AGENT}", names().collect::<Vec<_>>().join(", ")))
}

/// Most of a row is waiting for the bound it is about, so that two cores keep up with this many.
const AT_ONCE: usize = 20;

fn at_once(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| (1..=64).contains(count)).ok_or_else(|| "accepted: 1 to 64".to_owned())
}
