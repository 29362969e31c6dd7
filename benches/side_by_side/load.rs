//! Load: sending requests one at a time or through a window, and timing that.
//!
//! Owns: the two ways of driving a server, and the shortest path between the clock and the pipe.
//! May not know: which figure this is for, processes.
//! Invariants:
//! 1. Between the two readings of the clock there is one write, the reads it takes, and nothing of the checker's.
//! 2. In a window neither side waits for the other to read: writes and reads both go on as they can.
//! 3. Work ends only when every request has its answer; what never comes is the watchdog's to end.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::server::{Connection, Trouble};
use crate::wire::{Checker, Ids, Template};

/// Bytes of requests put together for one write, unless one request is longer.
const BATCH: usize = 256 * 1024;

/// When to stop sending.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Until {
    /// After this long,
    pub(crate) time: Duration,
    /// or after so many requests, whichever is first.
    pub(crate) calls: usize,
}

impl Until {
    /// So many requests, however long they take.
    pub(crate) const fn calls(calls: usize) -> Self {
        Self { time: Duration::MAX, calls }
    }
}

/// Sends one request after another, each when the one before was answered. Returns each one's time in ns.
pub(crate) fn one_by_one(
    connection: &mut Connection,
    ids: &mut Ids,
    template: &mut Template,
    until: Until,
) -> Result<Vec<u64>, Trouble> {
    let mut checker = Checker::new(template);
    let mut times = Vec::with_capacity(until.calls.min(1 << 20));
    let began = Instant::now();
    while times.len() < until.calls {
        let id = ids.next();
        let request = template.stamp(id);
        checker.sent(id);
        let sent = Instant::now();
        connection.write_all(request)?;
        connection.fill_line()?;
        let answered = Instant::now();
        times.push(u64::try_from((answered - sent).as_nanos()).unwrap_or(u64::MAX));
        while let Some(line) = connection.take_line() {
            checker.reply(line);
        }
        // A notification came first; the answer is still to come, and its time is spoilt.
        while checker.waiting() > 0 && checker.clean().is_ok() {
            times.pop();
            connection.fill_line()?;
            while let Some(line) = connection.take_line() {
                checker.reply(line);
            }
        }
        checker.clean().map_err(Trouble::Wrong)?;
        if answered - began > until.time {
            break;
        }
    }
    if connection.has_rest() {
        return Err(Trouble::Wrong("more came than was asked for".to_owned()));
    }
    Ok(times)
}

/// What a window achieved.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    /// Requests answered.
    pub(crate) calls: usize,
    /// From the first write to the last reply.
    pub(crate) took: Duration,
}

impl Flow {
    /// Answers per second.
    pub(crate) fn per_second(self) -> f64 {
        self.calls as f64 / self.took.as_secs_f64()
    }
}

/// Keeps up to `width` requests unanswered until it is time to stop, then waits for the rest.
///
/// The connection has to be non-blocking.
pub(crate) fn windowed(
    connection: &mut Connection,
    ids: &mut Ids,
    template: &mut Template,
    width: usize,
    until: Until,
    checker: &mut Checker,
) -> Result<Flow, Trouble> {
    let mut pending: Vec<u8> = Vec::with_capacity(BATCH.max(template.len()));
    let mut written = 0;
    let mut calls = 0;
    let mut open = true;
    let began = Instant::now();
    loop {
        if written == pending.len() && open {
            pending.clear();
            written = 0;
            open = calls < until.calls && began.elapsed() <= until.time;
            while open
                && checker.waiting() < width
                && calls < until.calls
                && (pending.is_empty() || pending.len() + template.len() <= BATCH)
            {
                let id = ids.next();
                pending.extend_from_slice(template.stamp(id));
                checker.sent(id);
                calls += 1;
            }
        }
        if written < pending.len() {
            match rustix::io::write(connection.input(), &pending[written..]) {
                Ok(count) => written += count,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let more_to_write = written < pending.len() || (open && calls < until.calls && checker.waiting() < width);
        if connection.read_some()? == 0 {
            if checker.waiting() == 0 && written == pending.len() && (!open || calls >= until.calls) {
                break;
            }
            wait_for_room_or_reply(connection, more_to_write)?;
            continue;
        }
        while let Some(line) = connection.take_line() {
            checker.reply(line);
        }
        if checker.waiting() == 0 && (!open || calls >= until.calls || began.elapsed() > until.time) {
            break;
        }
    }
    let took = began.elapsed();
    if connection.has_rest() {
        return Err(Trouble::Wrong("more came than was asked for".to_owned()));
    }
    Ok(Flow { calls, took })
}

/// Sleeps until the server has written or, if we want to write, has room.
fn wait_for_room_or_reply(connection: &Connection, want_room: bool) -> Result<(), Trouble> {
    let reply = PollFd::from_borrowed_fd(connection.output(), PollFlags::IN);
    let room = PollFd::from_borrowed_fd(connection.input(), PollFlags::OUT);
    let polled = if want_room { poll(&mut [reply, room], None) } else { poll(&mut [reply], None) };
    match polled {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Calls sent by a client that read nothing. [`Flood::drain`] completes the last one and awaits every answer.
pub(crate) struct Flood {
    checker: Checker,
    /// What the server has not taken of the last request.
    rest: Vec<u8>,
}

impl Flood {
    /// Writes as much as the server takes. The connection has to be non-blocking.
    pub(crate) fn send(
        connection: &Connection,
        ids: &mut Ids,
        template: &mut Template,
        time: Duration,
    ) -> Result<Self, Trouble> {
        let mut flood = Self { checker: Checker::new(template), rest: Vec::new() };
        let began = Instant::now();
        while began.elapsed() < time {
            if flood.rest.is_empty() {
                for _ in 0..(BATCH / 8 / template.len()).max(1) {
                    let id = ids.next();
                    flood.checker.sent(id);
                    flood.rest.extend_from_slice(template.stamp(id));
                }
            }
            match rustix::io::write(connection.input(), &flood.rest) {
                Ok(count) => drop(flood.rest.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let room = PollFd::from_borrowed_fd(connection.input(), PollFlags::OUT);
                    crate::server::wait_for(&mut [room], time.saturating_sub(began.elapsed()))?;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(flood)
    }

    /// How many requests have no answer yet.
    pub(crate) const fn waiting(&self) -> usize {
        self.checker.waiting()
    }

    /// Reads again: every request sent has to have its one answer.
    pub(crate) fn drain(mut self, connection: &mut Connection) -> Result<(), Trouble> {
        while self.checker.waiting() > 0 {
            if !self.rest.is_empty() {
                match rustix::io::write(connection.input(), &self.rest) {
                    Ok(count) => drop(self.rest.drain(..count)),
                    Err(Errno::INTR | Errno::AGAIN) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            if connection.read_some()? == 0 {
                wait_for_room_or_reply(connection, !self.rest.is_empty())?;
            }
            while let Some(line) = connection.take_line() {
                self.checker.reply(line);
            }
        }
        self.checker.clean().map_err(Trouble::Wrong)
    }
}
