//! What a socket costs beside standard streams, and what a thousand sessions cost one daemon.
//!
//! Throughput and latency of one server over its socket, on 1, 4 and 16 connections with windows of 1, 8, 64 and 512, beside the
//! floor over a socket and beside servers over standard streams (one for each connection, which is what a client has without a
//! daemon). Then the shipped daemon with as many idle sessions as are asked for: memory of one, time until one is open, pings of
//! the quiet while one floods and one never reads, descriptors afterwards. Figures are for reading; nothing here passes or fails.
//!
//! ```sh
//! cargo bench --bench socket
//! cargo bench --bench socket -- --only sessions --program target/release/phone-opus --sessions 1000
//! ```

#![expect(clippy::print_stdout, reason = "what a bench tells")]

#[path = "socket/flow.rs"]
mod flow;
#[path = "socket/served.rs"]
mod served;
#[path = "socket/sessions.rs"]
mod sessions;
#[path = "common/shipped.rs"]
mod shipped;

use std::path::PathBuf;
use std::time::Duration;

use crate::flow::flow;
use crate::served::{Served, Way};

/// Anything that went wrong; the figure is left out with its words.
type Trouble = Box<dyn std::error::Error>;

/// One of the bench's two parts.
type Part = fn(&Options) -> Result<(), Trouble>;

/// Requests in flight on each connection.
const WINDOWS: [usize; 4] = [1, 8, 64, 512];

/// Connections at once.
const CONNECTIONS: [usize; 3] = [1, 4, 16];

struct Options {
    only: Vec<String>,
    program: Option<PathBuf>,
    server: Option<PathBuf>,
    floor: Option<PathBuf>,
    rounds: usize,
    sessions: usize,
}

impl Options {
    fn read() -> Self {
        let mut options =
            Self { only: Vec::new(), program: None, server: None, floor: None, rounds: 5, sessions: 1000 };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_default();
            match word.as_str() {
                "--only" => options.only = value().split(',').map(str::to_owned).collect(),
                "--program" => options.program = Some(value().into()),
                "--server" => options.server = Some(value().into()),
                "--floor" => options.floor = Some(value().into()),
                "--rounds" => options.rounds = value().parse().unwrap_or(options.rounds),
                "--sessions" => options.sessions = value().parse().unwrap_or(options.sessions),
                _ => {}
            }
        }
        options
    }

    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }
}

fn main() {
    let options = Options::read();
    let parts: [(&str, Part); 2] = [("throughput", throughput), ("sessions", sessions)];
    for (name, part) in parts.into_iter().filter(|(name, _)| options.wants(name)) {
        if let Err(error) = part(&options) {
            println!("{name}: left out: {error}");
        }
    }
}

/// The server with the bench's tools, and the floor, over either.
fn throughput(options: &Options) -> Result<(), Trouble> {
    let server = match &options.server {
        Some(server) => server.clone(),
        None => shipped::build("bench_phone_opus", &["--features", "bench-server", "--bin"])?,
    };
    let floor = match &options.floor {
        Some(floor) => floor.clone(),
        None => shipped::build("bench_floor", &["--example"])?,
    };
    println!("echoes a second; in brackets the ratio to the floor over a socket");
    println!(
        "| connections | window | floor, socket | ours, socket | ours, standard streams | p50 of one, ours / floor |"
    );
    println!("|---|---|---|---|---|---|");
    for connections in CONNECTIONS {
        let mut floor = Served::start(&floor, Way::Socket, connections)?;
        let mut socket = Served::start(&server, Way::Socket, connections)?;
        let mut streams = Served::start(&server, Way::Streams, connections)?;
        for window in WINDOWS {
            // In turns, so that a machine that changes its mind does it to all of them.
            let mut rates: [Vec<f64>; 3] = Default::default();
            let mut middles: [Vec<f64>; 3] = Default::default();
            for _ in 0..options.rounds {
                for (at, served) in [&mut floor, &mut socket, &mut streams].into_iter().enumerate() {
                    let flow = flow(&mut served.connections, window, Duration::from_millis(400))?;
                    rates[at].push(flow.per_second());
                    middles[at].push(flow.middle_us());
                }
            }
            let [floor, socket, streams] = rates.map(median);
            let [floor_us, socket_us, _] = middles.map(median);
            println!(
                "| {connections} | {window} | {floor:.0} | {socket:.0} ({:.2}) | {streams:.0} ({:.2}) | {socket_us:.1} / {floor_us:.1} us |",
                socket / floor,
                streams / floor,
            );
        }
    }
    Ok(())
}

fn sessions(options: &Options) -> Result<(), Trouble> {
    let program = match &options.program {
        Some(program) => program.clone(),
        None => shipped::build("phone-opus", &["--bin"])?,
    };
    sessions::measure(&program, options.sessions)
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
