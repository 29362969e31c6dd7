//! Probes: how each figure is measured on one peer.
//!
//! Owns: which session is opened for what, how long it is driven, what is read off.
//! May not know: goals, other peers, printing.
//! Invariants:
//! 1. A probe starts its own server and ends it, so that nothing of one figure is left for the next.
//! 2. What a server cannot do is noted on the sheet and ends only that probe.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use serde_json::{Value, json};

use crate::kills;
use crate::load::{Flood, Until, one_by_one, windowed};
use crate::options::Effort;
use crate::peers::Peer;
use crate::proc;
use crate::server::{Connection, Cores, Leaving, Server, Trouble, Watchdog, Wiring, wait_for};
use crate::sheet::Sheet;
use crate::targets::Figure;
use crate::wire::{Ask, Checker, Era, Id, Ids, PANIC_TEXT, Template, head};

/// Bytes in the text of an ordinary echo.
const SMALL: usize = 32;
const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// How long a server may take beyond the time a probe means to take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Within this a reply that is not late has come.
const GRACE: Duration = Duration::from_secs(1);
/// How long we listen for what should not come.
const SILENCE: Duration = Duration::from_millis(20);

/// Bytes of requests in one cell of windows and sizes; the largest window of 64 KiB texts just fits.
const CELL_BYTES: usize = 256 * MIB;

/// What every probe needs.
pub(crate) struct Kit {
    /// Kills those whose time is up.
    pub(crate) watchdog: Watchdog,
    /// Where driver and servers run.
    pub(crate) cores: Cores,
    /// How much time there is.
    pub(crate) effort: Effort,
    /// How many rounds there are.
    pub(crate) rounds: usize,
}

impl Kit {
    /// How many turns each peer has at a probe in this round, which counts from 0.
    pub(crate) fn turns(&self, often: Often, round: usize) -> usize {
        match often {
            Often::EachRound => 1,
            Often::ManyTimes if self.effort == Effort::Quick => 5,
            Often::ManyTimes => 30_usize.div_ceil(self.rounds).max(8),
            Often::Twice => usize::from(round < 2),
            Often::Once => usize::from(round == 0),
        }
    }

    fn time(&self, full_ms: u64) -> Duration {
        Duration::from_millis(match self.effort {
            Effort::Full => full_ms,
            Effort::Quick => full_ms / 5,
        })
    }
}

/// How often a probe is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Often {
    /// In each round.
    EachRound,
    /// In each round, so many times that there are at least 30 values in a full run; it is short and varies much.
    ManyTimes,
    /// In the first two rounds: it varies little, or takes long.
    Twice,
    /// In the first round: it counts and does not measure.
    Once,
}

/// One way of measuring one or more figures.
pub(crate) struct Probe {
    /// What is shown while it runs.
    pub(crate) name: &'static str,
    /// What it measures.
    pub(crate) figures: &'static [Figure],
    /// How often.
    pub(crate) often: Often,
    /// Measures, and writes down what it finds.
    pub(crate) run: fn(&Kit, &Peer, &mut Sheet<'_>) -> Result<(), Trouble>,
}

/// All probes, in the order they run within a round.
pub(crate) const PROBES: &[Probe] = &[
    Probe {
        name: "one at a time",
        figures: &[Figure::EchoP50, Figure::EchoP99, Figure::PingP50, Figure::ListP50],
        often: Often::EachRound,
        run: one_at_a_time,
    },
    Probe { name: "CPU per call", figures: &[Figure::CpuPerCall], often: Often::EachRound, run: cpu_per_call },
    Probe {
        name: "two cores",
        figures: &[Figure::Rate64, Figure::Rate512, Figure::Scaling],
        often: Often::EachRound,
        run: two_cores,
    },
    Probe { name: "modern era", figures: &[Figure::Modern], often: Often::EachRound, run: modern_era },
    Probe { name: "socket pairs", figures: &[Figure::SocketP50], often: Often::EachRound, run: socket_pairs },
    Probe { name: "64 KiB, two cores", figures: &[Figure::Rate64K], often: Often::EachRound, run: rate_64k },
    Probe { name: "start", figures: &[Figure::Initialize, Figure::FirstEcho], often: Often::ManyTimes, run: start },
    Probe {
        name: "recovery",
        figures: &[Figure::Recovery, Figure::WorstRecovery],
        often: Often::ManyTimes,
        run: kills::recovery,
    },
    Probe {
        name: "large texts",
        figures: &[Figure::Echo64K, Figure::Echo1M, Figure::Echo16M],
        often: Often::EachRound,
        run: large_texts,
    },
    Probe { name: "memory", figures: &[Figure::IdleRss, Figure::IdlePss], often: Often::Twice, run: memory },
    Probe { name: "peak memory", figures: &[Figure::Peak16M], often: Often::Twice, run: peak_memory },
    Probe { name: "idle", figures: &[Figure::WakeUps, Figure::IdleCpu], often: Often::Once, run: idle },
    Probe {
        name: "a client that never reads",
        figures: &[Figure::FloodGrowth, Figure::FloodFaults],
        often: Often::Once,
        run: never_reads,
    },
    Probe { name: "exactly one reply", figures: &[Figure::Faults], often: Often::Once, run: exactly_one_reply },
    Probe { name: "a line over the limit", figures: &[Figure::LongLine], often: Often::Once, run: long_line },
    Probe { name: "unknown methods", figures: &[Figure::UnknownMethod], often: Often::Once, run: unknown_methods },
    Probe { name: "a panicking tool", figures: &[Figure::Panic], often: Often::Once, run: panicking_tool },
    Probe {
        name: "many kills",
        figures: &[Figure::Caught, Figure::KillFaults, Figure::Orphans, Figure::KillGrowth],
        often: Often::Once,
        run: kills::many_kills,
    },
];

/// A server and the ids already used with it.
pub(crate) struct Session {
    /// It.
    pub(crate) server: Server,
    /// Those not used yet.
    pub(crate) ids: Ids,
}

/// How a session is opened.
#[derive(Clone, Copy)]
pub(crate) struct Opening {
    pub(crate) wiring: Wiring,
    pub(crate) era: Era,
    /// In bytes; the server's own when `None`.
    pub(crate) max_line: Option<usize>,
    /// Whether its worker may be killed as often as one likes.
    pub(crate) restarts: bool,
}

/// The ordinary way.
pub(crate) const PLAIN: Opening = Opening { wiring: Wiring::Pipes, era: Era::Legacy, max_line: None, restarts: false };
/// For texts of 16 MiB, which not every default admits.
const ROOMY: Opening = Opening { max_line: Some(64 * MIB), ..PLAIN };

impl Session {
    /// Starts a server and, in the legacy era, shakes hands with it.
    pub(crate) fn open(kit: &Kit, peer: &Peer, opening: Opening) -> Result<Self, Trouble> {
        let mut variables: Vec<_> =
            opening.max_line.map(|bytes| ("BENCH_MAX_LINE", bytes.to_string())).into_iter().collect();
        variables.extend(opening.restarts.then(|| ("BENCH_RESTARTS", "any".to_owned())));
        let server = Server::start(peer, opening.wiring, &variables, &kit.watchdog)?;
        let mut session = Self { server, ids: Ids::new() };
        if opening.era == Era::Legacy {
            session.server.within(PATIENCE, shake_hands)?;
        }
        Ok(session)
    }

    /// One request after another, for so long.
    fn one_by_one(&mut self, template: &mut Template, until: Until) -> Result<Vec<u64>, Trouble> {
        let planned = if until.time == Duration::MAX { Duration::ZERO } else { until.time };
        let limit = planned + PATIENCE;
        self.server.within(limit, |connection| one_by_one(connection, &mut self.ids, template, until))
    }

    /// The same after a warm-up of a quarter of the time; returns the median in µs and all times in ns, sorted.
    fn timed(&mut self, ask: Ask, era: Era, time: Duration) -> Result<(f64, Vec<u64>), Trouble> {
        let mut template = Template::new(ask, era);
        self.one_by_one(&mut template, Until { time: time / 4, calls: 20_000 })?;
        let mut times = self.one_by_one(&mut template, Until { time, calls: 100_000 })?;
        times.sort_unstable();
        Ok((quantile(&times, 0.5) / 1e3, times))
    }

    /// Keeps a window full for so long.
    fn windowed(
        &mut self,
        template: &mut Template,
        width: usize,
        time: Duration,
    ) -> Result<crate::load::Flow, Trouble> {
        self.server.within(time + PATIENCE, |connection| {
            connection.set_nonblocking(true)?;
            let mut checker = Checker::new(template);
            let until = Until { time, calls: usize::MAX };
            let flow = windowed(connection, &mut self.ids, template, width, until, &mut checker)?;
            checker.clean().map_err(Trouble::Wrong)?;
            connection.set_nonblocking(false)?;
            Ok(flow)
        })
    }
}

/// The handshake of the legacy era.
fn shake_hands(connection: &mut Connection) -> Result<(), Trouble> {
    connection.write_all(
        concat!(
            r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","#,
            r#""capabilities":{},"clientInfo":{"name":"side_by_side","version":"1"}}}"#,
            "\n"
        )
        .as_bytes(),
    )?;
    loop {
        connection.fill_line()?;
        let Some(line) = connection.take_line() else { continue };
        let reply: Value = serde_json::from_slice(line)
            .map_err(|_| Trouble::Wrong(format!("answers initialize with {}", head(&String::from_utf8_lossy(line)))))?;
        if reply["id"] != 0 {
            continue;
        }
        if !reply["result"]["protocolVersion"].is_string() {
            return Err(Trouble::Wrong(format!("refuses to initialize: {}", head(&reply.to_string()))));
        }
        return connection
            .write_all(concat!(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#, "\n").as_bytes());
    }
}

fn quantile(sorted: &[u64], at: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * at).round() as usize).map_or(f64::NAN, |ns| *ns as f64)
}

/// Whether a peer works at all; the error is one sentence. Says also whether it leaves when its input ends.
pub(crate) fn preflight(kit: &Kit, peer: &Peer) -> Result<Leaving, String> {
    let attempt = |stderr| -> Result<Leaving, Trouble> {
        kit.cores.pin_up_to_two()?;
        let mut server = Server::start_with(peer, Wiring::Pipes, &[], stderr, &kit.watchdog)?;
        server.within(PATIENCE, shake_hands)?;
        let mut session = Session { server, ids: Ids::new() };
        session.one_by_one(&mut Template::new(Ask::Echo(SMALL), Era::Legacy), Until::calls(1))?;
        Ok(session.server.finish())
    };
    let (mut reader, writer) = std::io::pipe().map_err(|error| error.to_string())?;
    attempt(writer.into()).map_err(|trouble| {
        let mut said = Vec::new();
        let _partial = std::io::Read::read_to_end(&mut reader, &mut said);
        let said = String::from_utf8_lossy(&said);
        match said.lines().rfind(|line| !line.trim().is_empty()) {
            Some(line) => format!("{trouble}: {}", head(line.trim())),
            None => trouble.to_string(),
        }
    })
}

fn one_at_a_time(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    kit.cores.pin_one()?;
    let mut session = Session::open(kit, peer, PLAIN)?;
    let (p50, times) = session.timed(Ask::Echo(SMALL), Era::Legacy, kit.time(500))?;
    sheet.put(Figure::EchoP50, p50);
    sheet.put(Figure::EchoP99, quantile(&times, 0.99) / 1e3);
    sheet.put(Figure::PingP50, session.timed(Ask::Ping, Era::Legacy, kit.time(250))?.0);
    sheet.put(Figure::ListP50, session.timed(Ask::List, Era::Legacy, kit.time(250))?.0);
    Ok(())
}

fn cpu_per_call(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    kit.cores.pin_one()?;
    let mut session = Session::open(kit, peer, PLAIN)?;
    let mut template = Template::new(Ask::Echo(SMALL), Era::Legacy);
    session.windowed(&mut template, 64, kit.time(100))?;
    let before = proc::used(session.server.id())?;
    let flow = session.windowed(&mut template, 64, kit.time(400))?;
    let after = proc::used(session.server.id())?;
    sheet.put(Figure::CpuPerCall, (after.cpu_ns - before.cpu_ns) as f64 / 1e3 / flow.calls as f64);
    Ok(())
}

fn two_cores(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    kit.cores.pin_two()?;
    let mut session = Session::open(kit, peer, PLAIN)?;
    let mut template = Template::new(Ask::Echo(SMALL), Era::Legacy);
    session.windowed(&mut template, 64, kit.time(100))?;
    let narrow = session.windowed(&mut template, 64, kit.time(400))?.per_second();
    sheet.put(Figure::Rate64, narrow);
    session.windowed(&mut template, 512, kit.time(100))?;
    let wide = session.windowed(&mut template, 512, kit.time(400))?.per_second();
    sheet.put(Figure::Rate512, wide);
    sheet.put(Figure::Scaling, wide / narrow);
    Ok(())
}

fn rate_64k(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    kit.cores.pin_two()?;
    let mut session = Session::open(kit, peer, PLAIN)?;
    let mut template = Template::new(Ask::Echo(64 * KIB), Era::Legacy);
    session.windowed(&mut template, 8, kit.time(100))?;
    sheet.put(Figure::Rate64K, session.windowed(&mut template, 8, kit.time(400))?.per_second());
    Ok(())
}

fn modern_era(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    kit.cores.pin_one()?;
    let mut legacy = Session::open(kit, peer, PLAIN)?;
    let mut modern = Session::open(kit, peer, Opening { era: Era::Modern, ..PLAIN })?;
    // Twice in turns, so that a drift of the machine falls on both.
    let (mut old, mut new) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        old.extend(legacy.timed(Ask::Echo(SMALL), Era::Legacy, kit.time(200))?.1);
        new.extend(modern.timed(Ask::Echo(SMALL), Era::Modern, kit.time(200))?.1);
    }
    old.sort_unstable();
    new.sort_unstable();
    sheet.put(Figure::Modern, quantile(&new, 0.5) / quantile(&old, 0.5));
    Ok(())
}

fn socket_pairs(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    kit.cores.pin_one()?;
    let mut session = Session::open(kit, peer, Opening { wiring: Wiring::SocketPairs, ..PLAIN })?;
    sheet.put(Figure::SocketP50, session.timed(Ask::Echo(SMALL), Era::Legacy, kit.time(400))?.0);
    Ok(())
}

/// One start: the table's median is over all starts of all rounds.
fn start(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    kit.cores.pin_up_to_two()?;
    let mut template = Template::new(Ask::Echo(SMALL), Era::Legacy);
    let began = Instant::now();
    let mut session = Session::open(kit, peer, PLAIN)?;
    // The notification that ends the handshake is on its way too: it is written at once and answered by nobody.
    sheet.put(Figure::Initialize, began.elapsed().as_secs_f64() * 1e3);
    session.one_by_one(&mut template, Until::calls(1))?;
    sheet.put(Figure::FirstEcho, began.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

fn large_texts(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    kit.cores.pin_one()?;
    let mut session = Session::open(kit, peer, ROOMY)?;
    sheet.put(Figure::Echo64K, session.timed(Ask::Echo(64 * KIB), Era::Legacy, kit.time(200))?.0);
    sheet.put(Figure::Echo1M, session.timed(Ask::Echo(MIB), Era::Legacy, kit.time(300))?.0);
    if !sheet.wants(Figure::Echo16M) {
        return Ok(());
    }
    let calls = if kit.effort == Effort::Full { 5 } else { 2 };
    let mut template = Template::new(Ask::Echo(16 * MIB), Era::Legacy);
    session.one_by_one(&mut template, Until::calls(1))?;
    let mut times = session.one_by_one(&mut template, Until::calls(calls))?;
    times.sort_unstable();
    sheet.put(Figure::Echo16M, quantile(&times, 0.5) / 1e6);
    Ok(())
}

fn memory(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    kit.cores.pin_up_to_two()?;
    let mut session = settled(kit, peer)?;
    session.server.within(PATIENCE, |_| {
        thread::sleep(Duration::from_millis(500));
        Ok(())
    })?;
    let memory = proc::memory(session.server.id())?;
    sheet.put(Figure::IdleRss, memory.rss);
    sheet.put(Figure::IdlePss, memory.pss);
    Ok(())
}

/// A session that has done a hundred echoes.
fn settled(kit: &Kit, peer: &Peer) -> Result<Session, Trouble> {
    let mut session = Session::open(kit, peer, PLAIN)?;
    session.one_by_one(&mut Template::new(Ask::Echo(SMALL), Era::Legacy), Until::calls(100))?;
    Ok(session)
}

fn peak_memory(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    kit.cores.pin_up_to_two()?;
    let mut session = Session::open(kit, peer, ROOMY)?;
    session.one_by_one(&mut Template::new(Ask::Echo(16 * MIB), Era::Legacy), Until::calls(1))?;
    sheet.put(Figure::Peak16M, proc::peak_rss(session.server.id())?);
    Ok(())
}

fn idle(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    kit.cores.pin_up_to_two()?;
    let session = settled(kit, peer)?;
    // What a server does right after its last reply is not idling.
    thread::sleep(Duration::from_millis(500));
    let before = proc::used(session.server.id())?;
    let began = Instant::now();
    thread::sleep(match kit.effort {
        Effort::Full => Duration::from_secs(5),
        Effort::Quick => Duration::from_secs(2),
    });
    let after = proc::used(session.server.id())?;
    let seconds = began.elapsed().as_secs_f64();
    sheet.put(Figure::WakeUps, after.sleeps.saturating_sub(before.sleeps) as f64 / seconds);
    sheet.put(Figure::IdleCpu, after.cpu_ns.saturating_sub(before.cpu_ns) as f64 / 1e6 / seconds);
    Ok(())
}

fn never_reads(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    kit.cores.pin_up_to_two()?;
    let mut session = settled(kit, peer)?;
    let before = proc::memory(session.server.id())?.rss;
    let time = match kit.effort {
        Effort::Full => Duration::from_secs(4),
        Effort::Quick => Duration::from_secs(1),
    };
    let mut template = Template::new(Ask::Echo(KIB), Era::Legacy);
    let flood = session.server.within(time + PATIENCE, |connection| {
        connection.set_nonblocking(true)?;
        Flood::send(connection, &mut session.ids, &mut template, time)
    })?;
    sheet.put(Figure::FloodGrowth, proc::peak_rss(session.server.id())? - before);
    let sent = flood.waiting();
    match session.server.within(PATIENCE * 6, |connection| flood.drain(connection)) {
        Ok(()) => sheet.put(Figure::FloodFaults, 0.0),
        Err(trouble) => sheet.put_with(Figure::FloodFaults, 1.0, format!("of {sent} requests: {trouble}")),
    }
    Ok(())
}

fn exactly_one_reply(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    kit.cores.pin_up_to_two()?;
    let mut faults = 0;
    let mut stuck = 0;
    let mut reasons = Vec::new();
    let budget = if kit.effort == Effort::Full { CELL_BYTES } else { CELL_BYTES / 8 };
    for size in [64, 64 * KIB, MIB] {
        for width in [1, 8, 64, 512, 4096] {
            if stuck == 3 {
                sheet.put_with(Figure::Faults, f64::from(faults), format!("{}; gave up", reasons.join("; ")));
                return Ok(());
            }
            let calls = (budget / size).min((2 * width).max(2000)).max(64);
            let calls = if width == 1 { calls.min(budget / 4 / size).max(16) } else { calls };
            let cell = one_cell(kit, peer, size, width, calls)?;
            if let Some(reason) = cell.reason {
                reasons.push(format!("W={width}, {size} B: {reason}"));
                faults += u32::try_from(cell.faults).unwrap_or(u32::MAX).max(1);
                stuck += u32::from(cell.stuck);
            }
        }
    }
    let first: Vec<_> = reasons.into_iter().take(4).collect();
    match first.is_empty() {
        true => sheet.put(Figure::Faults, 0.0),
        false => sheet.put_with(Figure::Faults, f64::from(faults), first.join("; ")),
    }
    Ok(())
}

/// What one window of one size came to.
struct Cell {
    faults: u64,
    reason: Option<String>,
    stuck: bool,
}

fn one_cell(kit: &Kit, peer: &Peer, size: usize, width: usize, calls: usize) -> Result<Cell, Trouble> {
    let mut session = Session::open(kit, peer, PLAIN)?;
    let mut template = Template::new(Ask::Echo(size), Era::Legacy);
    let mut checker = Checker::new(&template);
    let mut fence = Template::new(Ask::Ping, Era::Legacy);
    let outcome = session.server.within(PATIENCE * 2, |connection| {
        connection.set_nonblocking(true)?;
        windowed(connection, &mut session.ids, &mut template, width, Until::calls(calls), &mut checker)?;
        connection.set_nonblocking(false)?;
        // A second answer to an old request would come before or after the ping's, as something not asked for.
        one_by_one(connection, &mut session.ids, &mut fence, Until::calls(1))?;
        match wait_for(&mut [PollFd::from_borrowed_fd(connection.output(), PollFlags::IN)], SILENCE)? {
            true => Err(Trouble::Wrong("more came than was asked for".to_owned())),
            false => Ok(()),
        }
    });
    let tally = checker.tally();
    let mut faults = tally.doubled + tally.wrong + checker.waiting() as u64;
    let mut reason = tally.first_fault.clone();
    if let Err(trouble) = &outcome {
        faults = faults.max(1);
        let lost = checker.waiting();
        reason.get_or_insert(if lost > 0 {
            format!("{lost} without an answer, {trouble}")
        } else {
            trouble.to_string()
        });
    }
    Ok(Cell { faults, reason, stuck: matches!(outcome, Err(Trouble::Late(_))) })
}

/// Everything that came, by id (none for a missing or null one).
type Replies = HashMap<Option<u64>, Vec<Value>>;

/// Reads until those who must be answered are, then a little longer for those who may be, then listens for more.
fn collect(connection: &mut Connection, must: &[Id], may: &[Option<Id>]) -> Result<Replies, Trouble> {
    connection.set_nonblocking(true)?;
    let key = |id: &Id| Some(u64::from(id.number()));
    let mut replies = Replies::new();
    let mut until = None;
    loop {
        while let Some(line) = connection.take_line() {
            let reply: Value =
                serde_json::from_slice(line).map_err(|_| Trouble::Wrong("a line is not JSON".to_owned()))?;
            if reply.get("method").is_none() {
                replies.entry(reply["id"].as_u64()).or_default().push(reply);
            }
        }
        let all_must = must.iter().all(|id| replies.contains_key(&key(id)));
        let all_may = may.iter().all(|id| replies.contains_key(&id.as_ref().and_then(key)));
        let limit = match (all_must, all_may) {
            (false, _) => PATIENCE,
            (true, false) => GRACE.saturating_sub(until.get_or_insert_with(Instant::now).elapsed()),
            (true, true) => SILENCE,
        };
        let there = wait_for(&mut [PollFd::from_borrowed_fd(connection.output(), PollFlags::IN)], limit)?;
        if !there {
            if all_must {
                return Ok(replies);
            }
            return Err(Trouble::Late(PATIENCE));
        }
        connection.read_some()?;
    }
}

/// The one reply to an id, or why there is not one.
fn only<'a>(replies: &'a Replies, id: Id, what: &str) -> Result<&'a Value, Trouble> {
    match replies.get(&Some(u64::from(id.number()))).map(Vec::as_slice) {
        Some([reply]) => Ok(reply),
        None | Some([]) => Err(Trouble::Wrong(format!("{what} was never answered"))),
        Some(many) => Err(Trouble::Wrong(format!("{what} was answered {} times", many.len()))),
    }
}

/// Writes down how a check of behaviour went: 0 or 1 faults, with the reason.
fn record(sheet: &mut Sheet<'_>, figure: Figure, outcome: Result<(), Trouble>) {
    match outcome {
        Ok(()) => sheet.put(figure, 0.0),
        Err(trouble) => sheet.put_with(figure, 1.0, trouble.to_string()),
    }
}

/// After whatever happened the session still echoes.
fn still_lives(session: &mut Session) -> Result<(), Trouble> {
    session.server.within(PATIENCE, |connection| {
        connection.set_nonblocking(false)?;
        one_by_one(connection, &mut session.ids, &mut Template::new(Ask::Echo(SMALL), Era::Legacy), Until::calls(3))
    })?;
    Ok(())
}

fn long_line(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    kit.cores.pin_up_to_two()?;
    let mut session = Session::open(kit, peer, PLAIN)?;
    let long = session.ids.next();
    let next = session.ids.next();
    let size = peer.max_line.unwrap_or(32 * MIB) + MIB;
    let mut request = Template::new(Ask::Echo(size), Era::Legacy);
    let mut ordinary = Template::new(Ask::Echo(SMALL), Era::Legacy);
    let outcome = session
        .server
        .within(PATIENCE, |connection| {
            connection.set_nonblocking(false)?;
            connection.write_all(request.stamp(long))?;
            connection.write_all(ordinary.stamp(next))?;
            // Whose line it was may not be known by then: the error may come without an id.
            let first = collect(connection, &[next], &[Some(long)])?;
            Ok(first)
        })
        .and_then(|replies| {
            only(&replies, next, "the request after the long line")?;
            let own = replies.get(&Some(u64::from(long.number()))).map_or(&[][..], Vec::as_slice);
            let nameless = replies.get(&None).map_or(&[][..], Vec::as_slice);
            match [own, nameless].concat().as_slice() {
                [] => Err(Trouble::Wrong("the long line got no answer".to_owned())),
                [reply] if reply.get("error").is_some() || reply["result"]["isError"] == true => Ok(()),
                [_] if peer.max_line.is_none() => Ok(()),
                [reply] => Err(Trouble::Wrong(format!("the long line was taken: {}", head(&reply.to_string())))),
                many => Err(Trouble::Wrong(format!("the long line was answered {} times", many.len()))),
            }
        })
        .and_then(|()| still_lives(&mut session));
    record(sheet, Figure::LongLine, outcome);
    Ok(())
}

fn unknown_methods(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    kit.cores.pin_up_to_two()?;
    let mut session = Session::open(kit, peer, PLAIN)?;
    let mut ordinary = Template::new(Ask::Echo(SMALL), Era::Legacy);
    let ids: Vec<Id> = (0..64).map(|_| session.ids.next()).collect();
    let mut burst = Vec::new();
    for (index, id) in ids.iter().enumerate() {
        if index % 8 == 3 {
            let request = json!({"jsonrpc": "2.0", "id": id.number(), "method": "no/such", "params": {}});
            burst.extend_from_slice(format!("{request}\n").as_bytes());
        } else {
            burst.extend_from_slice(ordinary.stamp(*id));
        }
    }
    let outcome = session
        .server
        .within(PATIENCE, |connection| {
            connection.write_all(&burst)?;
            collect(connection, &[], &ids.iter().copied().map(Some).collect::<Vec<_>>())
        })
        .and_then(|replies| {
            for (index, id) in ids.iter().enumerate() {
                let unknown = index % 8 == 3;
                let what = if unknown { "an unknown method" } else { "an echo beside it" };
                let reply = only(&replies, *id, what)?;
                if unknown != (reply["error"]["code"] == -32601) {
                    return Err(Trouble::Wrong(format!("{what} got {}", head(&reply.to_string()))));
                }
            }
            Ok(())
        })
        .and_then(|()| still_lives(&mut session));
    record(sheet, Figure::UnknownMethod, outcome);
    Ok(())
}

fn panicking_tool(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    kit.cores.pin_up_to_two()?;
    let mut session = Session::open(kit, peer, PLAIN)?;
    let mut ordinary = Template::new(Ask::Echo(SMALL), Era::Legacy);
    let (panics, next) = (session.ids.next(), session.ids.next());
    let request = json!({
        "jsonrpc": "2.0", "id": panics.number(), "method": "tools/call",
        "params": {"name": "echo", "arguments": {"text": PANIC_TEXT}},
    });
    let outcome = session.server.within(PATIENCE, |connection| {
        connection.write_all(format!("{request}\n").as_bytes())?;
        connection.write_all(ordinary.stamp(next))?;
        collect(connection, &[next], &[Some(panics)])
    });
    let outcome = outcome.and_then(|replies| {
        only(&replies, next, "the request after the panic")?;
        Ok(only(&replies, panics, "the call that panicked")?.clone())
    });
    let outcome = match outcome {
        Ok(reply) if reply["result"]["content"][0]["text"] == PANIC_TEXT && reply["result"]["isError"] != true => {
            sheet.not_applicable(Figure::Panic, "its echo does not panic");
            return Ok(());
        }
        Ok(_) => still_lives(&mut session),
        Err(trouble) => Err(trouble),
    };
    record(sheet, Figure::Panic, outcome);
    Ok(())
}
