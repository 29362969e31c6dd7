//! Sessions: one daemon and very many clients that do nothing.
//!
//! Owns: what each costs, how long one takes to be opened, what the quiet notice of the loud. May not know: how a daemon is made.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Trouble;
use crate::flow::Connection;
use crate::served::{connect, over};

/// Pings by which the quiet ones are judged.
const PINGS: usize = 2000;

/// Sessions opened one after another, the last of a thousand among them, whose time is told.
const TIMED: usize = 200;

struct Daemon {
    process: Child,
    scratch: tempfile::TempDir,
}

impl Daemon {
    fn start(program: &Path) -> Result<Self, Trouble> {
        let scratch = tempfile::tempdir()?;
        let process = Command::new(program)
            .args(["daemon", "run", "--state-dir"])
            .arg(scratch.path().join("state"))
            .env_clear()
            .env("HOME", scratch.path())
            .env("PATH", "/usr/bin:/bin")
            // So that its memory can be looked at by its own user.
            .env("PHONE_OPUS_DUMPABLE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { process, scratch })
    }

    fn connect(&self) -> Result<UnixStream, Trouble> {
        connect(&self.scratch.path().join("state").join("daemon.sock"))
    }

    fn open(&self, number: usize, with_context: bool) -> Result<Connection, Trouble> {
        let mut connection = over(self.connect()?)?;
        if with_context {
            let opening = json!({
                "type": "session_open", "proto": 1, "build": "bench", "session": format!("bench-{number}"),
                "cwd": self.scratch.path(), "env": {"PATH": "/usr/bin:/bin", "HOME": self.scratch.path()},
            });
            let answer = connection.ask(&opening.to_string())?;
            if !answer.contains("session_opened") {
                return Err(answer.into());
            }
        }
        let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}});
        connection.ask(&hello.to_string())?;
        connection.tell(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#)?;
        Ok(connection)
    }

    fn kib(&self, what: &str) -> Result<f64, Trouble> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.process.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(what)).ok_or("the kernel does not say")?;
        Ok(line.split_whitespace().next().ok_or("no number")?.parse()?)
    }

    fn descriptors(&self) -> Result<usize, Trouble> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.process.id()))?.count())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Ours, and not waited for yet.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Opens so many sessions and tells what they cost.
pub(crate) fn measure(program: &Path, count: usize) -> Result<(), Trouble> {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: most.maximum, maximum: most.maximum },
    );
    let daemon = Daemon::start(program)?;
    // Whatever a first session makes for all of them is made.
    for number in 0..8 {
        ping(&mut daemon.open(number, true)?)?;
    }
    settle();
    let (rss, pss, fds) = (daemon.kib("Rss:")?, daemon.kib("Pss:")?, daemon.descriptors()?);
    let mut sessions = Vec::with_capacity(count);
    let mut opened = Vec::with_capacity(count);
    for number in 0..count {
        let began = Instant::now();
        sessions.push(daemon.open(1000 + number, true)?);
        opened.push(micros(began));
    }
    settle();
    println!("{count} idle sessions on one daemon");
    println!(
        "- memory of one: {:.1} KiB RSS, {:.1} KiB PSS (daemon alone: {:.2} MB RSS)",
        (daemon.kib("Rss:")? - rss) / count as f64,
        (daemon.kib("Pss:")? - pss) / count as f64,
        rss * 1.024e-3
    );
    let last = opened.split_off(count.saturating_sub(TIMED));
    println!("- connect, open, initialize: the last {}: {}", last.len(), told(last));
    let open_now = daemon.descriptors()?;
    println!("- descriptors: {fds} before, {open_now} with all of them");

    println!("- ping of the quiet, nobody loud: {}", told(quiet(&mut sessions, None)?));
    let mut loud = daemon.open(1, true)?;
    let mut deaf = daemon.open(2, true)?;
    stuff(&mut deaf)?;
    println!("- ping of the quiet, one floods and one never reads: {}", told(quiet(&mut sessions, Some(&mut loud))?));
    for session in &mut sessions {
        ping(session)?;
    }
    println!("- each of them answered");
    drop((sessions, loud, deaf));
    let began = Instant::now();
    while daemon.descriptors()? > fds && began.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("- descriptors after all have gone: {} ({fds} before)", daemon.descriptors()?);
    Ok(())
}

fn settle() {
    std::thread::sleep(Duration::from_millis(700));
}

fn ping(session: &mut Connection) -> Result<(), Trouble> {
    let answer = session.ask(r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#)?;
    if answer.contains("\"result\":{}") { Ok(()) } else { Err(answer.into()) }
}

/// Asks more and more without reading an answer, until nothing more is taken.
fn stuff(deaf: &mut Connection) -> Result<(), Trouble> {
    let line = format!("{}\n", r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#).repeat(64);
    let began = Instant::now();
    let mut bytes: VecDeque<u8> = line.bytes().collect();
    let mut refused = 0;
    while refused < 50 && began.elapsed() < Duration::from_secs(5) {
        let taken = deaf.push(bytes.make_contiguous());
        if taken == 0 {
            refused += 1;
            std::thread::sleep(Duration::from_millis(2));
        } else {
            refused = 0;
            bytes.rotate_left(taken % line.len());
        }
    }
    if refused < 50 { Err("a client that never reads is read for ever".into()) } else { Ok(()) }
}

/// Pings of one quiet session after another, each timed; a thread of its own keeps the loud one as loud as it can be.
fn quiet(sessions: &mut [Connection], loud: Option<&mut Connection>) -> Result<Vec<f64>, Trouble> {
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        if let Some(loud) = loud {
            let over = &over;
            scope.spawn(move || flood(loud, over));
        }
        let mut times = Vec::with_capacity(PINGS);
        let count = sessions.len();
        let mut asked = || -> Result<(), Trouble> {
            for number in 0..PINGS {
                let began = Instant::now();
                // Neighbours in the table are not neighbours here.
                ping(&mut sessions[(number * 7) % count])?;
                times.push(micros(began));
            }
            Ok(())
        };
        let asked = asked();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        asked.map(|()| times)
    })
}

/// Pings as fast as they are answered, 512 in flight.
fn flood(loud: &mut Connection, over: &std::sync::atomic::AtomicBool) {
    let line = r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#;
    let mut in_flight = 0;
    while !over.load(std::sync::atomic::Ordering::Relaxed) {
        while in_flight < 512 {
            if loud.tell(line).is_err() {
                return;
            }
            in_flight += 1;
        }
        if loud.line().is_err() {
            return;
        }
        in_flight -= 1;
    }
    for _ in 0..in_flight {
        let _ = loud.line();
    }
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_nanos() as f64 / 1000.0
}

fn told(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    let at = |part: f64| {
        times
            .get(((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1)))
            .copied()
            .unwrap_or(f64::NAN)
    };
    format!("p50 {:.0} us, p99 {:.0} us, most {:.0} us", at(0.5), at(0.99), at(1.0))
}
