//! Flow: windows of echoes over many connections at once, from one thread.
//!
//! Owns: what is sent, that each request has its one answer. May not know: what is behind a connection.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::Trouble;

/// Bytes read at once.
const READ: usize = 64 * 1024;

/// One client's end of two streams.
pub(crate) struct Connection {
    /// Where the server reads.
    pub(crate) to: OwnedFd,
    /// Where it writes.
    pub(crate) from: OwnedFd,
    pending: Vec<u8>,
    buffer: Vec<u8>,
    next: u64,
    /// When each request in flight was sent, by its number.
    sent: std::collections::HashMap<u64, Instant>,
}

/// What windows of echoes achieved.
pub(crate) struct Flow {
    calls: usize,
    took: Duration,
    times: Vec<u64>,
}

impl Flow {
    /// Answers a second.
    pub(crate) fn per_second(&self) -> f64 {
        self.calls as f64 / self.took.as_secs_f64()
    }

    /// The middle one's time from being sent to being read, in us.
    pub(crate) fn middle_us(&self) -> f64 {
        let mut times = self.times.clone();
        times.sort_unstable();
        times.get(times.len() / 2).map_or(f64::NAN, |ns| *ns as f64 / 1000.0)
    }
}

impl Connection {
    /// Of two descriptors; they no longer block.
    pub(crate) fn new(to: OwnedFd, from: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&to, true)?;
        rustix::io::ioctl_fionbio(&from, true)?;
        let sent = std::collections::HashMap::new();
        Ok(Self { to, from, pending: Vec::new(), buffer: Vec::new(), next: 1, sent })
    }

    fn echo(&mut self) {
        let id = self.next;
        self.next += 1;
        let text = format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"echo","arguments":{{"text":"{id} abcdefghijklmnopqrstuvwxyz"}}}}}}"#
        );
        self.pending.extend_from_slice(text.as_bytes());
        self.pending.push(b'\n');
        self.sent.insert(id, Instant::now());
    }

    fn write(&mut self) -> Result<(), Trouble> {
        while !self.pending.is_empty() {
            match rustix::io::write(&self.to, &self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Reads what is there; the time of each answer goes to `times`.
    fn read(&mut self, times: &mut Vec<u64>) -> Result<(), Trouble> {
        loop {
            let at = self.buffer.len();
            self.buffer.resize(at + READ, 0);
            let read = rustix::io::read(&self.from, &mut self.buffer[at..]);
            self.buffer.truncate(at + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Err("the server hung up".into()),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        let now = Instant::now();
        let mut start = 0;
        while let Some(end) = memchr::memchr(b'\n', &self.buffer[start..]) {
            let line = &self.buffer[start..start + end];
            start += end + 1;
            let text = String::from_utf8_lossy(line);
            let id: u64 = number_after(&text, "\"id\":").ok_or_else(|| format!("no id in {text}"))?;
            let sent = self.sent.remove(&id).ok_or_else(|| format!("{id} was answered twice or never asked"))?;
            if !text.contains(&format!("\"text\":\"{id} abc")) {
                return Err(format!("{id} has another's answer: {text}").into());
            }
            times.push(u64::try_from((now - sent).as_nanos()).unwrap_or(u64::MAX));
        }
        self.buffer.drain(..start);
        Ok(())
    }

    /// Says a line and reads the next one.
    pub(crate) fn ask(&mut self, line: &str) -> Result<String, Trouble> {
        self.pending.extend_from_slice(line.as_bytes());
        self.pending.push(b'\n');
        while !self.pending.is_empty() {
            self.write()?;
        }
        self.line()
    }

    /// The next line, waited for.
    pub(crate) fn line(&mut self) -> Result<String, Trouble> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer) {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            wait(&[self], false)?;
            let at = self.buffer.len();
            self.buffer.resize(at + READ, 0);
            let read = rustix::io::read(&self.from, &mut self.buffer[at..]);
            self.buffer.truncate(at + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Err("the server hung up".into()),
                Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Says a line nobody answers.
    pub(crate) fn tell(&mut self, line: &str) -> Result<(), Trouble> {
        self.pending.extend_from_slice(line.as_bytes());
        self.pending.push(b'\n');
        while !self.pending.is_empty() {
            self.write()?;
        }
        Ok(())
    }

    /// Writes as much of this as is taken at once.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        rustix::io::write(&self.to, bytes).unwrap_or(0)
    }
}

fn number_after(text: &str, mark: &str) -> Option<u64> {
    let rest = &text[text.find(mark)? + mark.len()..];
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

fn wait(connections: &[&Connection], to_write: bool) -> Result<(), Trouble> {
    let mut watched: Vec<PollFd<'_>> =
        connections.iter().map(|connection| PollFd::from_borrowed_fd(connection.from.as_fd(), PollFlags::IN)).collect();
    if to_write {
        let waiting = connections.iter().filter(|connection| !connection.pending.is_empty());
        watched.extend(waiting.map(|connection| PollFd::from_borrowed_fd(connection.to.as_fd(), PollFlags::OUT)));
    }
    match poll(&mut watched, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Keeps this many echoes in flight on each connection for this long, then waits for the rest.
pub(crate) fn flow(connections: &mut [Connection], window: usize, time: Duration) -> Result<Flow, Trouble> {
    let mut times = Vec::new();
    let began = Instant::now();
    loop {
        let open = began.elapsed() < time;
        for connection in &mut *connections {
            while open && connection.sent.len() < window {
                connection.echo();
            }
            connection.write()?;
        }
        if !open && connections.iter().all(|connection| connection.sent.is_empty()) {
            break;
        }
        let all: Vec<&Connection> = connections.iter().collect();
        wait(&all, true)?;
        for connection in &mut *connections {
            connection.read(&mut times)?;
        }
    }
    Ok(Flow { calls: times.len(), took: began.elapsed(), times })
}
