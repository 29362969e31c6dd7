//! What a consult costs: its time over the agent's own, its memory, what waits, what many at once get through.
//!
//! Each figure stands beside a floor measured in the same run on the same file system; see `benches/README.md`. Figures are for
//! reading; nothing here passes or fails.
//!
//! ```sh
//! cargo bench --bench consult
//! cargo bench --bench consult -- --program target/release/phone-opus --against /usr/local/bin/phone-opus --only C1,C2
//! ```

#[path = "consult/floor.rs"]
mod floor;
#[path = "consult/server.rs"]
mod server;
#[path = "common/shipped.rs"]
mod shipped;
#[path = "consult/world.rs"]
mod world;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::server::Server;
use crate::world::{Agent, World, median};

/// Anything that went wrong; the figure is left out with its words.
type Trouble = Box<dyn std::error::Error>;

struct Options {
    programs: Vec<PathBuf>,
    only: Vec<String>,
    rounds: usize,
    dir: PathBuf,
    waiting: usize,
}

impl Options {
    fn read() -> Result<Self, Trouble> {
        let mut options =
            Self { programs: Vec::new(), only: Vec::new(), rounds: 4, dir: std::env::temp_dir(), waiting: 1000 };
        let mut against = None;
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_default();
            match word.as_str() {
                "--program" => options.programs.insert(0, value().into()),
                "--against" => against = Some(value()),
                "--only" => options.only = value().split(',').map(str::to_owned).collect(),
                "--rounds" => options.rounds = value().parse().unwrap_or(options.rounds),
                "--dir" => options.dir = value().into(),
                "--waiting" => options.waiting = value().parse().unwrap_or(options.waiting),
                _ => {}
            }
        }
        if options.programs.is_empty() {
            options.programs.push(shipped::build("phone-opus", &["--bin"])?);
        }
        options.programs.extend(against.map(PathBuf::from));
        // They are started in another directory than this one.
        options.programs = options.programs.iter().map(|program| program.canonicalize()).collect::<Result<_, _>>()?;
        Ok(options)
    }

    fn wants(&self, figure: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == figure)
    }
}

/// One figure: what is good, what is too much, and whether more is better.
struct Target {
    goal: f64,
    line: f64,
    more: bool,
}

const fn at_most(goal: f64, line: f64) -> Target {
    Target { goal, line, more: false }
}

#[expect(clippy::print_stdout, reason = "the bench's own output")]
fn show(line: &str) {
    println!("{line}");
}

fn print(figure: &str, program: usize, what: &str, value: f64, unit: &str, target: &Target) {
    let met = |bound: f64| if target.more { value >= bound } else { value <= bound };
    let verdict = match (met(target.goal), met(target.line)) {
        (true, _) => "goal",
        (false, true) => "line",
        (false, false) => "missed",
    };
    let name = if program == 0 { "program" } else { "against" };
    show(&format!(
        "{figure:<4} {name:<8} {what:<58} {value:>9.3} {unit:<6} goal {:<6} line {:<6} {verdict}",
        target.goal, target.line
    ));
}

fn main() {
    if !std::path::Path::new("/proc/self/smaps_rollup").exists() {
        return show("needs Linux");
    }
    let options = match Options::read() {
        Ok(options) => options,
        Err(trouble) => return show(&trouble.to_string()),
    };
    type Figure = fn(&Options) -> Result<(), Trouble>;
    let figures: [(&str, Figure); 6] =
        [("C1", answer), ("C2", spawn), ("C3", memory), ("C4", waiting), ("C5", crowd), ("C6", accept)];
    for (name, figure) in figures {
        if options.wants(name)
            && let Err(trouble) = figure(&options)
        {
            show(&format!("{name}: {trouble}"));
        }
    }
}

/// Time of each of so many synchronous consults.
fn consults(server: &mut Server, count: usize) -> Result<Vec<f64>, Trouble> {
    (0..count)
        .map(|_| {
            let began = Instant::now();
            server.consult("hello")?;
            Ok(began.elapsed().as_secs_f64() * 1e3)
        })
        .collect()
}

/// C1: a synchronous consult of an agent that answers at once.
fn answer(options: &Options) -> Result<(), Trouble> {
    let mut times = vec![Vec::new(); options.programs.len()];
    let (mut direct, mut commit) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        for (times, program) in times.iter_mut().zip(&options.programs) {
            let world = World::new(&options.dir, Agent::AtOnce)?;
            let mut server = Server::start(program, &world, 3)?;
            consults(&mut server, 5)?;
            times.extend(consults(&mut server, 40)?);
            server.stop()?;
            direct.extend(floor::runs(&world, 40)?);
            commit.extend(floor::commits(&world, 100)?);
        }
    }
    let (agent, commit) = (median(&mut direct), median(&mut commit));
    // Accepted, running, over: each is on the disk before anybody is told or anything is started.
    let floor = agent + 3.0 * commit;
    show(&format!(
        "C1   floor: the agent alone {agent:.2} ms, a synced commit {commit:.3} ms, with three {floor:.2} ms"
    ));
    for (at, times) in times.iter_mut().enumerate() {
        let p50 = median(times);
        print(
            "C1",
            at,
            &format!("consult answered, p50 {p50:.2} ms, over floor"),
            p50 / floor,
            "x",
            &at_most(1.5, 2.5),
        );
    }
    Ok(())
}

/// C2: from the acceptance to the agent's first own line.
fn spawn(options: &Options) -> Result<(), Trouble> {
    let mut times = vec![Vec::new(); options.programs.len()];
    let mut direct = Vec::new();
    for _ in 0..options.rounds {
        for (times, program) in times.iter_mut().zip(&options.programs) {
            let world = World::new(&options.dir, Agent::AtOnce)?;
            let mut server = Server::start(program, &world, 3)?;
            consults(&mut server, 5)?;
            for _ in 0..40 {
                server.consult("hello")?;
                times.push(world.last_began()? - world.last_accepted()?);
            }
            server.stop()?;
            direct.extend(floor::starts(&world, 40)?);
        }
    }
    show(&format!("C2   floor: the agent's first line after its spawn {:.2} ms", median(&mut direct)));
    for (at, times) in times.iter_mut().enumerate() {
        print("C2", at, "accepted to the agent's first line, p50", median(times), "ms", &at_most(3.0, 6.0));
    }
    Ok(())
}

/// C3: memory of a running consult.
fn memory(options: &Options) -> Result<(), Trouble> {
    const RUNNING: usize = 10;
    for (at, program) in options.programs.iter().enumerate() {
        let world = World::new(&options.dir, Agent::Stays)?;
        let mut server = Server::start(program, &world, RUNNING)?;
        server.background("warm")?;
        world.wait_for_agents(1)?;
        let before = world::pss(server.pid())?;
        for _ in 1..RUNNING {
            server.background("hello")?;
        }
        world.wait_for_agents(RUNNING)?;
        std::thread::sleep(Duration::from_millis(500));
        let growth = (world::pss(server.pid())? - before) / (RUNNING - 1) as f64;
        let runners = world.processes("background-consult");
        let each = runners.iter().map(|pid| world::pss(*pid)).sum::<Result<f64, _>>()? / runners.len() as f64;
        print("C3", at, "host's growth for one running consult (PSS)", growth, "MB", &at_most(0.1, 0.3));
        print("C3", at, "runner (PSS)", each, "MB", &at_most(2.5, 4.0));
        server.stop()?;
    }
    Ok(())
}

/// C4: what jobs that wait cost.
fn waiting(options: &Options) -> Result<(), Trouble> {
    for (at, program) in options.programs.iter().enumerate() {
        for count in [64, options.waiting] {
            if at > 0 && count > 200 {
                // The other program may have a process for each.
                continue;
            }
            let world = World::new(&options.dir, Agent::Stays)?;
            let mut server = Server::start(program, &world, 1)?;
            let began = Instant::now();
            for _ in 0..=count {
                server.background("hello")?;
            }
            let accepted = began.elapsed().as_secs_f64();
            world.wait_for_agents(1)?;
            std::thread::sleep(Duration::from_secs(3));
            let before = world.used();
            std::thread::sleep(Duration::from_secs(5));
            let used = (world.used() - before) / 5.0 * 100.0;
            let all = world.processes("wait");
            let held: f64 = all.iter().filter_map(|pid| world::pss(*pid).ok()).sum();
            let what = format!("{count} waiting (accepted in {accepted:.1} s, waiting process {held:.1} MB), CPU");
            print("C4", at, &what, used, "% core", &at_most(0.5, 2.0));
            server.stop()?;
        }
    }
    Ok(())
}

/// C5: two hundred consults at once, sixteen at a time.
fn crowd(options: &Options) -> Result<(), Trouble> {
    const ALL: usize = 200;
    const LIMIT: usize = 16;
    for (agent, what) in
        [(Agent::Works, "0.25 s of an agent's time each"), (Agent::AtOnce, "an agent that answers at once")]
    {
        let mut rates = vec![Vec::new(); options.programs.len()];
        let mut floors = Vec::new();
        for _ in 0..options.rounds.min(2) {
            for (rates, program) in rates.iter_mut().zip(&options.programs) {
                let world = World::new(&options.dir, agent)?;
                let mut server = Server::start(program, &world, LIMIT)?;
                server.consult("warm")?;
                let began = Instant::now();
                server.consults_at_once(ALL)?;
                rates.push(ALL as f64 / began.elapsed().as_secs_f64());
                server.stop()?;
                floors.push(floor::crowd(&world, ALL, LIMIT)?);
            }
        }
        let floor = median(&mut floors);
        for (at, rates) in rates.iter_mut().enumerate() {
            let rate = median(rates);
            let what = format!("{what}: {rate:.0} of {floor:.0} answers a second");
            print("C5", at, &what, rate / floor, "x", &Target { goal: 0.8, line: 0.6, more: true });
        }
    }
    Ok(())
}

/// C6: accepting a background job with many in the store.
fn accept(options: &Options) -> Result<(), Trouble> {
    const STORED: usize = 10_000;
    let mut times = vec![Vec::new(); options.programs.len()];
    let mut commit = Vec::new();
    for (times, program) in times.iter_mut().zip(&options.programs) {
        // One of its own: an older program does not open the store of a newer one.
        let filled = World::new(&options.dir, Agent::Stays)?;
        let mut server = Server::start(program, &filled, 1)?;
        server.background("the one that runs")?;
        filled.wait_for_agents(1)?;
        filled.fill(STORED)?;
        for _ in 0..60 {
            let began = Instant::now();
            server.background("hello")?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        commit.extend(floor::commits(&filled, 100)?);
        server.stop()?;
    }
    let floor = median(&mut commit);
    for (at, times) in times.iter_mut().enumerate() {
        let p50 = median(times);
        let what = format!("background accepted with {STORED} stored, p50 {p50:.2} ms, over a commit of {floor:.2} ms");
        print("C6", at, &what, p50 / floor, "x", &at_most(1.5, 2.5));
    }
    Ok(())
}
