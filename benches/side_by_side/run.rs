//! Run: builds and checks the peers, goes through the rounds, prints.
//!
//! Owns: the order of things, and what is said meanwhile.
//! May not know: figures one by one.

use std::fs;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};

use crate::options::{self, Asked, Options, USAGE};
use crate::peers::{Named, Peer, prepare};
use crate::probes::{Kit, PROBES, Probe, preflight};
use crate::report;
use crate::server::{Cores, Leaving, Trouble, Watchdog};
use crate::sheet::{Gap, Results};
use crate::targets::{Figure, TARGETS};
use crate::wire;

/// Reads the options and does what they ask.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is what this program is for")]
pub(crate) fn main() -> ExitCode {
    let asked = options::read(std::env::args().skip(1), |name| std::env::var(name).ok());
    let options = match asked {
        Ok(Asked::Run(options)) => options,
        Ok(Asked::Help) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Ok(Asked::Nothing) => {
            println!("side_by_side measures and tests nothing; run it with: cargo bench --bench side_by_side");
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprintln!("{}", problem.trim_end());
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is what this program is for")]
fn run(options: &Options) -> Result<(), String> {
    if let Some(unknown) = options.only.iter().find(|id| !TARGETS.iter().any(|target| target.id == id.as_str())) {
        return Err(format!("there is no target {unknown}; they are I1 to I16 and O1 to O12, without O7"));
    }
    wire::self_check()?;
    let machine = machine();
    let kit = Kit {
        watchdog: Watchdog::start().map_err(|error| format!("no watchdog: {error}"))?,
        cores: Cores::find().map_err(|error| format!("the cores are not known: {error}"))?,
        effort: options.effort,
        rounds: options.rounds,
    };

    let mut ready = Vec::new();
    for choice in &options.peers {
        eprintln!("{}: building and trying", choice.label());
        let tried = prepare(choice).and_then(|peer| preflight(&kit, &peer).map(|leaving| (peer, leaving)));
        match tried {
            Ok((peer, leaving)) => {
                if leaving == Leaving::Killed {
                    println!("{}: does not leave when its input ends; it is killed after every figure", peer.label);
                }
                ready.push(peer);
            }
            Err(reason) => println!("{}: left out: {reason}", choice.label()),
        }
    }
    let [yardstick, ..] = ready.as_slice() else { return Err("no peer is left".to_owned()) };
    if options.peers.first().is_some_and(|first| first.label() != yardstick.label) {
        return Err("the first peer is the yardstick, and it does not work".to_owned());
    }

    let named: Vec<Named> = ready.iter().map(|peer| Named { label: peer.label.clone(), place: peer.place }).collect();
    let results = rounds(options, &kit, &ready, &named);
    println!("{}", describe(&machine, options, &named));
    print!("{}", report::table(options, &named, &results));
    if let Some(path) = &options.json {
        let text = report::json(options, &machine, &named, &results).to_string();
        fs::write(path, text).map_err(|error| format!("{} is not written: {error}", path.display()))?;
    }
    Ok(())
}

/// Every wanted probe on every peer, in turns.
#[expect(clippy::print_stderr, reason = "progress, for whoever waits")]
fn rounds(options: &Options, kit: &Kit, peers: &[Peer], named: &[Named]) -> Results {
    let began = Instant::now();
    let mut results = Results::default();
    for round in 0..options.rounds {
        for probe in PROBES.iter().filter(|probe| {
            let figures = |peer: usize| probe.figures.iter().any(|figure| wanted(*figure, peer, options, named));
            (0..named.len()).any(figures)
        }) {
            let turns = kit.turns(probe.often, round);
            if turns == 0 {
                continue;
            }
            eprintln!(
                "{:>4.0} s  round {} of {}: {}",
                began.elapsed().as_secs_f64(),
                round + 1,
                options.rounds,
                probe.name
            );
            for turn in 0..turns * peers.len() {
                let peer = (turn + round) % peers.len();
                let wants = |figure: &Figure| !results.settled(peer, *figure) && wanted(*figure, peer, options, named);
                if probe.figures.iter().any(wants) {
                    one(probe, kit, peer, &peers[peer], &mut results);
                }
            }
        }
    }
    results
}

fn one(probe: &Probe, kit: &Kit, index: usize, peer: &Peer, results: &mut Results) {
    let mut sheet = results.page(index);
    if let Err(trouble) = (probe.run)(kit, peer, &mut sheet) {
        let gap = match trouble {
            Trouble::OneCore => Gap::NotApplicable(trouble.to_string()),
            other => Gap::Failed(other.to_string()),
        };
        sheet.fail_rest(probe.figures, &gap);
    }
}

/// Whether a row that is wanted needs this figure of this peer.
fn wanted(figure: Figure, peer: usize, options: &Options, named: &[Named]) -> bool {
    figure.targets().filter(|target| options.wants(target.id)).any(|target| {
        target.who.has(named[peer].place) || (target.figure == figure && target.yardstick.of(named) == Some(peer))
    })
}

/// What the figures depend on besides the peers.
fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_owned()));
    json!({
        "cpu": cpu,
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load_before": read("/proc/loadavg").split_whitespace().next(),
    })
}

fn describe(machine: &Value, options: &Options, peers: &[Named]) -> String {
    format!(
        "\n{} cores of {}, Linux {}, load {} before; {} rounds; ratios are to {}, those of O1 to O11 to floor2 unless said otherwise\n",
        machine["cores"],
        machine["cpu"].as_str().unwrap_or("an unknown CPU"),
        machine["kernel"].as_str().unwrap_or("?"),
        machine["load_before"].as_str().unwrap_or("?"),
        options.rounds,
        peers.first().map_or("nothing", |peer| peer.label.as_str()),
    )
}
