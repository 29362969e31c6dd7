//! One question to a daemon, and its answer.
//!
//! Owns: the line that goes there, the line that comes back, and how long both may take. May not know: what is asked, what the
//! answer is for. A client that stays connected speaks otherwise.
//!
//! Invariant: a daemon that does not answer costs its asker the limit and nothing more.

use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::control::DaemonAnswer;

/// How long a daemon may take to answer. One that lives needs microseconds; one that is stopped never answers.
pub const ANSWER: Duration = Duration::from_secs(2);

/// Bytes of an answer that are read.
const MOST: usize = 4 * 1024 * 1024;

/// A question that was not answered.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The connection ended: the daemon is ending, or did not want it.
    #[error("hear an answer: the daemon has closed the connection")]
    Closed,
    /// It took too long.
    #[error("hear an answer within {} s: the daemon does not answer", limit.as_secs_f32())]
    Silent {
        /// How long it was waited for.
        limit: Duration,
    },
    /// The answer is none of those that are known.
    #[error("understand the daemon's answer")]
    Unknown,
    /// The system refused.
    #[error("speak to the daemon")]
    Io(#[source] io::Error),
}

/// Sends this line and reads one answer. Blocks its thread for the limit at most.
///
/// # Errors
///
/// There is no answer, or none that is known.
pub fn ask(stream: &OwnedFd, line: &str, limit: Duration) -> Result<DaemonAnswer, AskError> {
    DaemonAnswer::read(&ask_line(stream, line, limit)?).ok_or(AskError::Unknown)
}

/// Sends this line and reads one, whatever it is, without its end. Blocks its thread for the limit at most.
///
/// # Errors
///
/// None comes.
pub fn ask_line(stream: &OwnedFd, line: &str, limit: Duration) -> Result<Vec<u8>, AskError> {
    let mut stream = UnixStream::from(stream.try_clone().map_err(AskError::Io)?);
    let until = Instant::now() + limit;
    stream.set_write_timeout(Some(limit)).map_err(AskError::Io)?;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AskError::Silent { limit },
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => AskError::Closed,
        _ => AskError::Io(error),
    };
    // One that is told off at the door may have closed it already; what it said there is still to be read.
    let sent = stream.write_all(format!("{line}\n").as_bytes()).map_err(failed);
    let mut heard = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(AskError::Silent { limit });
        }
        stream.set_read_timeout(Some(left)).map_err(AskError::Io)?;
        let mut part = [0; 4096];
        match stream.read(&mut part) {
            Ok(0) => return sent.and(Err(AskError::Closed)),
            Ok(read) => heard.extend_from_slice(part.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
        if let Some(end) = heard.iter().position(|byte| *byte == b'\n') {
            heard.truncate(end);
            return Ok(heard);
        }
        if heard.len() > MOST {
            return Err(AskError::Unknown);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::daemon::control;

    fn asked(by: impl FnOnce(UnixStream) + Send + 'static, limit: Duration) -> Result<DaemonAnswer, AskError> {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let other = thread::spawn(move || by(theirs));
        let answer = ask(&OwnedFd::from(ours), r#"{"type":"hello"}"#, limit);
        other.join().expect("no panic");
        answer
    }

    #[test]
    fn what_comes_back_is_one_line_in_time() {
        let long = Duration::from_secs(60);
        let restarting = || format!("{}\n", control::restarting());
        let answer = asked(
            move |mut daemon| {
                let mut line = [0; 17];
                daemon.read_exact(&mut line).expect("a line");
                assert_eq!(&line, b"{\"type\":\"hello\"}\n");
                for part in restarting().as_bytes().chunks(3) {
                    daemon.write_all(part).expect("written");
                }
            },
            long,
        );
        assert_eq!(answer.expect("an answer"), DaemonAnswer::Restarting);
        // Told off at the door, which was closed before anything was said.
        let told_off = asked(move |mut daemon| daemon.write_all(restarting().as_bytes()).expect("written"), long);
        assert_eq!(told_off.expect("an answer"), DaemonAnswer::Restarting);
        assert!(matches!(asked(drop, long), Err(AskError::Closed)));
        let (let_go, kept) = std::sync::mpsc::channel::<()>();
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let silent = thread::spawn(move || {
            let _ = kept.recv();
            drop(theirs);
        });
        let answer = ask(&OwnedFd::from(ours), "{}", Duration::from_millis(20));
        assert!(matches!(answer, Err(AskError::Silent { .. })), "{answer:?}");
        drop(let_go);
        silent.join().expect("no panic");
        let other = asked(|mut daemon| daemon.write_all(b"{\"jsonrpc\":\"2.0\"}\n").expect("written"), long);
        assert!(matches!(other, Err(AskError::Unknown)));
    }
}
