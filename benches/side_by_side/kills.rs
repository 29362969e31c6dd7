//! Kills: what becomes of calls when the process that runs the tools is killed under them.
//!
//! Owns: a load that survives kills, and the certainty that nothing is left behind.
//! May not know: goals, other peers.
//! Invariants:
//! 1. Every call sent is answered exactly once: an echo with its text, a sink with its length or, when a kill caught it,
//!    with an error that says that its outcome is unknown. Whatever else comes is a fault.
//! 2. Only the worker is signalled, as a child that its host has not reaped: its number is its own.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid};
use serde_json::Value;

use crate::options::Effort;
use crate::peers::{FLOOR2, Peer};
use crate::probes::{Kit, Opening, PATIENCE, PLAIN, Session};
use crate::proc;
use crate::server::{Connection, Trouble, wait_for};
use crate::sheet::Sheet;
use crate::targets::Figure;
use crate::wire::{Ask, Era, Id, Ids, Template, head};

/// Between two calls of the paced load.
const PACE: Duration = Duration::from_millis(1);
/// Calls in flight of the dense load; half of them must not be run twice.
const WIDTH: usize = 64;
/// Between two kills of the dense load.
const BETWEEN: Duration = Duration::from_millis(200);
/// How long a process that nobody owns may take to notice it.
const LEFTOVERS: Duration = Duration::from_secs(1);

const NO_RESTART: &str = "it does not start its child again";

/// A server whose worker is killed more often than any policy for real use would have it.
const RESTARTS: Opening = Opening { restarts: true, ..PLAIN };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Echo,
    Sink,
}

/// What is in flight, and how what is not came out.
struct Traffic<'a> {
    connection: &'a mut Connection,
    ids: &'a mut Ids,
    echo: Template,
    sink: Template,
    waiting: HashMap<Id, (Kind, Instant)>,
    unsent: Vec<u8>,
    /// The last answer to a call that was sent after the last kill, and when that was.
    killed: Option<Instant>,
    recovered: Option<Instant>,
    /// Calls whose outcome is unknown.
    unknown: u64,
    faults: u64,
    first: Option<String>,
}

impl<'a> Traffic<'a> {
    fn new(connection: &'a mut Connection, ids: &'a mut Ids) -> Result<Self, Trouble> {
        connection.set_nonblocking(true)?;
        Ok(Self {
            connection,
            ids,
            echo: Template::new(Ask::Echo(32), Era::Legacy),
            sink: Template::new(Ask::Sink(32), Era::Legacy),
            waiting: HashMap::new(),
            unsent: Vec::new(),
            killed: None,
            recovered: None,
            unknown: 0,
            faults: 0,
            first: None,
        })
    }

    fn call(&mut self, kind: Kind) {
        let id = self.ids.next();
        let template = if kind == Kind::Echo { &mut self.echo } else { &mut self.sink };
        self.unsent.extend_from_slice(template.stamp(id));
        self.waiting.insert(id, (kind, Instant::now()));
    }

    /// Keeps `WIDTH` calls in flight.
    fn fill(&mut self) {
        while self.waiting.len() < WIDTH {
            self.call(if self.waiting.len().is_multiple_of(2) { Kind::Echo } else { Kind::Sink });
        }
    }

    /// Writes and reads what there is; waits for more until then at the latest.
    fn turn(&mut self, until: Instant) -> Result<(), Trouble> {
        if !self.unsent.is_empty() {
            match rustix::io::write(self.connection.input(), &self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if self.connection.read_some()? == 0 {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = vec![PollFd::from_borrowed_fd(self.connection.output(), PollFlags::IN)];
            if !self.unsent.is_empty() {
                fds.push(PollFd::from_borrowed_fd(self.connection.input(), PollFlags::OUT));
            }
            wait_for(&mut fds, left)?;
        }
        let now = Instant::now();
        while let Some(line) = self.connection.take_line() {
            let Ok(reply) = serde_json::from_slice::<Value>(line) else {
                let said = head(&String::from_utf8_lossy(line));
                self.fault(format!("a line that is not JSON: {said}"));
                continue;
            };
            if reply.get("method").is_none() {
                self.reply(&reply, now);
            }
        }
        Ok(())
    }

    fn reply(&mut self, reply: &Value, now: Instant) {
        let Some((id, (kind, sent))) = Id::of(reply).and_then(|id| Some((id, self.waiting.remove(&id)?))) else {
            return self.fault(format!("a reply to nobody, or a second one: {}", head(&reply.to_string())));
        };
        let unknown = reply["result"]["structuredContent"]["fault"]["code"] == "outcome_unknown";
        let template = if kind == Kind::Echo { &self.echo } else { &self.sink };
        match template.check(id, reply) {
            Ok(()) if self.killed.is_some_and(|killed| sent > killed) => {
                self.recovered.get_or_insert(now);
            }
            Ok(()) => {}
            Err(_) if kind == Kind::Sink && unknown && reply["result"]["isError"] == true => self.unknown += 1,
            Err(fault) => self.fault(fault),
        }
    }

    fn fault(&mut self, fault: String) {
        self.faults += 1;
        self.first.get_or_insert(fault);
    }

    /// One call after another at a steady pace, until then or until a call sent after the last kill was answered.
    fn paced(&mut self, until: Instant) -> Result<(), Trouble> {
        let mut next = Instant::now();
        while self.recovered.is_none() && Instant::now() < until {
            if Instant::now() >= next {
                self.call(Kind::Echo);
                next += PACE;
            }
            self.turn(next)?;
        }
        Ok(())
    }

    /// The window kept full until then.
    fn dense(&mut self, until: Instant) -> Result<(), Trouble> {
        while Instant::now() < until {
            self.fill();
            self.turn(until)?;
        }
        Ok(())
    }

    /// Waits for every answer; what does not come in time is lost.
    fn rest(&mut self) -> Result<(), Trouble> {
        let until = Instant::now() + PATIENCE / 2;
        while !self.waiting.is_empty() && Instant::now() < until {
            self.turn(until)?;
        }
        if !self.waiting.is_empty() {
            self.faults += self.waiting.len() as u64;
            let lost = format!("{} calls without an answer", self.waiting.len());
            self.first.get_or_insert(lost);
        }
        self.connection.set_nonblocking(false)
    }

    /// Kills the worker of this host.
    fn kill(&mut self, host: u32) -> Result<(), Trouble> {
        let [worker] = proc::children(host)[..] else {
            return Err(Trouble::Wrong(format!("it has {} children, not one worker", proc::children(host).len())));
        };
        let worker = i32::try_from(worker).ok().and_then(Pid::from_raw);
        let worker = worker.ok_or_else(|| Trouble::Wrong("its worker has no number".to_owned()))?;
        self.recovered = None;
        let now = Instant::now();
        self.killed = Some(now);
        Ok(kill_process(worker, Signal::KILL)?)
    }
}

/// Each kill strikes another server, so that each restart is a first one, which is what a user meets.
pub(crate) fn recovery(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    if peer.label == FLOOR2 {
        return not_applicable(sheet, &[Figure::Recovery, Figure::WorstRecovery]);
    }
    kit.cores.pin_up_to_two()?;
    let mut session = Session::open(kit, peer, PLAIN)?;
    let host = session.server.id();
    let took = session.server.within(PATIENCE, |connection| {
        let mut traffic = Traffic::new(connection, &mut session.ids)?;
        traffic.paced(Instant::now() + Duration::from_millis(50))?;
        traffic.kill(host)?;
        traffic.paced(Instant::now() + PATIENCE / 2)?;
        let took = traffic.killed.zip(traffic.recovered).map(|(killed, recovered)| recovered - killed);
        traffic.rest()?;
        match (took, traffic.first) {
            (Some(took), None) => Ok(took),
            (_, Some(fault)) => Err(Trouble::Wrong(fault)),
            (None, None) => Err(Trouble::Wrong("it did not recover".to_owned())),
        }
    })?;
    sheet.put(Figure::Recovery, took.as_secs_f64() * 1e3);
    sheet.put(Figure::WorstRecovery, took.as_secs_f64() * 1e3);
    Ok(())
}

/// A dense load, half of which must not be run twice, and kills.
pub(crate) fn many_kills(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    let figures = [Figure::Caught, Figure::KillFaults, Figure::Orphans, Figure::KillGrowth];
    if peer.label == FLOOR2 {
        return not_applicable(sheet, &figures);
    }
    kit.cores.pin_up_to_two()?;
    // Whoever loses its parent becomes our child, and is found.
    set_child_subreaper(Some(getpid()))?;
    let outcome = strike(kit, peer, sheet);
    let orphans = leftovers();
    set_child_subreaper(None)?;
    sheet.put(Figure::Orphans, f64::from(orphans));
    outcome
}

fn strike(kit: &Kit, peer: &Peer, sheet: &mut Sheet<'_>) -> Result<(), Trouble> {
    let kills = if kit.effort == Effort::Full { 50 } else { 10 };
    let time = BETWEEN * kills + PATIENCE * 2;
    let mut session = Session::open(kit, peer, RESTARTS)?;
    let host = session.server.id();
    let (before, after, unknown, faults, first) = session.server.within(time, |connection| {
        let mut traffic = Traffic::new(connection, &mut session.ids)?;
        traffic.dense(Instant::now() + BETWEEN)?;
        traffic.rest()?;
        traffic.connection.set_nonblocking(true)?;
        thread::sleep(BETWEEN);
        let before = proc::memory(host)?.rss;
        for _ in 0..kills {
            traffic.dense(Instant::now() + BETWEEN)?;
            traffic.kill(host)?;
        }
        traffic.dense(Instant::now() + BETWEEN)?;
        traffic.rest()?;
        thread::sleep(BETWEEN);
        let after = proc::memory(host)?.rss;
        Ok((before, after, traffic.unknown, traffic.faults, traffic.first))
    })?;
    sheet.put(Figure::KillGrowth, after - before);
    match first {
        None => sheet.put(Figure::KillFaults, 0.0),
        Some(fault) => sheet.put_with(Figure::KillFaults, faults as f64, fault),
    }
    // Without a call that was caught the row would say nothing.
    let (caught, remark) = match (faults, unknown) {
        (0, 0) => (1.0, format!("{kills} kills caught no call")),
        _ => (faults as f64, format!("{kills} kills caught {unknown} calls that must not be run twice")),
    };
    sheet.put_with(Figure::Caught, caught, remark);
    Ok(())
}

fn not_applicable(sheet: &mut Sheet<'_>, figures: &[Figure]) -> Result<(), Trouble> {
    figures.iter().for_each(|figure| sheet.not_applicable(*figure, NO_RESTART));
    Ok(())
}

/// Children that are left although every server was reaped, and do not leave. They are ended.
fn leftovers() -> u32 {
    let until = Instant::now() + LEFTOVERS;
    loop {
        match waitpid(None, WaitOptions::NOHANG) {
            Err(_) => return 0,
            Ok(Some(_)) => {}
            Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
            Ok(None) => break,
        }
    }
    let left = proc::children(std::process::id());
    for orphan in &left {
        if let Some(pid) = i32::try_from(*orphan).ok().and_then(Pid::from_raw) {
            let _gone = kill_process(pid, Signal::KILL);
            let _reaped = waitpid(Some(pid), WaitOptions::empty());
        }
    }
    u32::try_from(left.len()).unwrap_or(u32::MAX)
}
