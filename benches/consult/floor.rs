//! Floors: the same agent without us, and a commit that is on the disk.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Instant, SystemTime};

use crate::Trouble;
use crate::world::World;

fn agent(world: &World) -> Result<Child, Trouble> {
    let mut child = Command::new(world.agent())
        .arg("-p")
        .current_dir(world.path("work"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    // An agent that answers at once may be gone before it was asked.
    let _ = child.stdin.take().map(|mut input| input.write_all(b"hello"));
    Ok(child)
}

fn answered(mut child: Child) -> Result<(), Trouble> {
    let mut said = String::new();
    if let Some(output) = &mut child.stdout {
        output.read_to_string(&mut said)?;
    }
    child.wait()?;
    if said.contains("\"result\"") { Ok(()) } else { Err("the agent did not answer".into()) }
}

/// The agent run directly: from its spawn to its end, in ms.
pub(crate) fn runs(world: &World, count: usize) -> Result<Vec<f64>, Trouble> {
    let mut times = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        answered(agent(world)?)?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}

/// The agent run directly: from its spawn to its first word, in ms.
pub(crate) fn starts(world: &World, count: usize) -> Result<Vec<f64>, Trouble> {
    let mut times = Vec::new();
    for _ in 0..count {
        let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64() * 1e3;
        answered(agent(world)?)?;
        times.push(world.last_began()? - began);
    }
    Ok(times)
}

/// A commit of one row that is on the disk when it returns, in ms.
pub(crate) fn commits(world: &World, count: usize) -> Result<Vec<f64>, Trouble> {
    let database = rusqlite::Connection::open(world.path("floor.db"))?;
    let _: String = database.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    database
        .execute_batch("PRAGMA synchronous = FULL; CREATE TABLE IF NOT EXISTS t (a INTEGER PRIMARY KEY, b TEXT)")?;
    let text = "x".repeat(1000);
    let mut times = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        database.prepare_cached("INSERT INTO t (b) VALUES (?1)")?.execute([&text])?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}

/// The agent alone, so many at a time: answers a second.
pub(crate) fn crowd(world: &World, all: usize, limit: usize) -> Result<f64, Trouble> {
    let began = Instant::now();
    let left = std::sync::atomic::AtomicUsize::new(all);
    let failed = std::thread::scope(|scope| {
        let each = || -> bool {
            use std::sync::atomic::Ordering;
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                if agent(world).and_then(answered).is_err() {
                    return true;
                }
            }
            false
        };
        let threads: Vec<_> = (0..limit).map(|_| scope.spawn(each)).collect();
        threads.into_iter().any(|thread| thread.join().unwrap_or(true))
    });
    if failed { Err("the agents alone failed".into()) } else { Ok(all as f64 / began.elapsed().as_secs_f64()) }
}
