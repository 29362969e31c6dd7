//! Diagnostics on stderr, which may be unread: nothing here waits for it. A runner's stderr is a file in its job's directory,
//! which never makes anybody wait and is bounded instead.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use phone_opus::internals::base::signals;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::output;

/// Lines that may wait for whoever reads stderr; then they are dropped.
const WAITING: usize = 256;

/// Hands lines to a thread.
#[derive(Clone)]
struct Lines(SyncSender<Vec<u8>>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = self.0.try_send(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts the writing thread with the first line.
struct Stderr(std::sync::OnceLock<Lines>);

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Lines;

    fn make_writer(&'a self) -> Self::Writer {
        self.0
            .get_or_init(|| {
                let (lines, waiting) = sync_channel::<Vec<u8>>(WAITING);
                let work = move || {
                    // One that takes a signal in the moment of an upgrade would take it along.
                    signals::leave_to_others();
                    while let Ok(line) = waiting.recv() {
                        output::log(&line);
                    }
                };
                // Without the thread the lines are dropped, like when nobody reads them.
                let _ = std::thread::Builder::new().name("stderr".into()).stack_size(128 * 1024).spawn(work);
                Lines(lines)
            })
            .clone()
    }
}

/// Bytes a runner may leave behind. A run that goes well says nothing; one in trouble says what it is in a few lines.
const RUNNER_BYTES: usize = 64 * 1024;

/// Writes lines at once, until there were too many.
#[derive(Clone, Default)]
struct Bounded(Arc<AtomicUsize>);

impl Write for Bounded {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.fetch_add(line.len(), Ordering::Relaxed) < RUNNER_BYTES {
            output::log(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Bounded {
    type Writer = Self;

    fn make_writer(&'a self) -> Self::Writer {
        self.clone()
    }
}

/// Logs what `PHONE_OPUS_LOG` asks for (`error`, `warn`, `info`, `debug`, `trace`; `warn` when not set), and panics as
/// one line each.
pub(crate) fn start() {
    log_to(Stderr(std::sync::OnceLock::new()));
}

/// The same for a runner, whose last line must be written before it ends.
pub(crate) fn start_runner() {
    log_to(Bounded::default());
}

fn log_to(writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) {
    let level = std::env::var("PHONE_OPUS_LOG").ok().and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::WARN);
    let subscriber = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(writer).finish();
    // Only this program sets it, once.
    let _ = tracing::subscriber::set_global_default(subscriber);
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        // The payload of a tool's panic may hold anything; where it happened is enough to find it.
        tracing::error!(place, "a panic was caught");
    }));
}
