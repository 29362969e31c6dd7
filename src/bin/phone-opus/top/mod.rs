//! `top`: what is going on, live in a terminal.
//!
//! Owns: the loop: what wakes it, what is done then. May not know: what an event means (`core`), what is shown (`view`).
//!
//! ```text
//!  keys, sizes ──▶┐
//!  looks ────────▶├─ TopCore::step ──▶ look, cancel, quit;  then the window is drawn anew
//!  signals ──────▶┘
//! ```
//!
//! It looks at the store and asks the daemon, where there is one; it serves nobody, and makes nothing.

mod core;
mod screen;
mod view;

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use phone_opus::internals::base::fault::{Fault, FaultCode};
use phone_opus::internals::base::ids::{JobId, UnixMillis};
use phone_opus::internals::base::signals;
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::jobs::store::{CancelState, StoreError, StoreHandle};
use phone_opus::internals::jobs::{CancelReason, JobState, sweep};
use phone_opus::internals::seen::live::{self, Live};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use self::core::{Noted, TopCore, TopEffect, TopEvent, TopKey, TopLook};
use self::screen::Screen;
use self::view::Paint;
use crate::cli::report::TopOptions;
use crate::end_signals::EndSignals;
use crate::logging;
use crate::output::{out, say};
use crate::settings::{chain, refused, runtime, state_dir};

/// From one look to the next: a person does not see less, and a look costs some milliseconds.
const PACE: Duration = Duration::from_millis(500);

/// How long the keyboard is waited for before the thread that reads it looks whether it is to end.
const KEY_WAIT: Duration = Duration::from_millis(100);

/// Keys and sizes that may wait; a storm of more is held in the terminal.
const KEYS: usize = 64;

/// How long ago a job may have ended that is still shown.
const LATELY: i64 = 60 * 60 * 1000;

/// Entries and bytes of a journal that one look reads; the next one reads on.
const ENTRIES: usize = 200;
const ENTRY_BYTES: usize = 128 * 1024;

/// How long the runtime's threads may take to end: a daemon that stands still is not waited for.
const END: Duration = Duration::from_millis(200);

/// The exit code of a command that was told to end.
const ENDED: u8 = 3;

/// Shows it until somebody has seen enough.
pub(crate) fn run(options: &TopOptions) -> ExitCode {
    logging::start();
    let dir = match state_dir(&options.common) {
        Ok(dir) => dir,
        Err(error) => return refused(&error),
    };
    if !(out().moves && io::stdin().is_terminal()) {
        say("phone-opus: `top` needs a terminal whose cursor can be moved, for its keys and its view. \
             `phone-opus status` says the same once.");
        return ExitCode::from(2);
    }
    let paint = if out().colour { Paint::Colours } else { Paint::None };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return refused(&error),
    };
    let shown = runtime.block_on(show(&dir, paint));
    runtime.shutdown_timeout(END);
    match shown {
        Ok(code) => code,
        Err(error) => {
            say(&format!("phone-opus: failed to use the terminal: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn show(dir: &StateDir, paint: Paint) -> io::Result<ExitCode> {
    let store = StoreHandle::sqlite(dir.clone());
    // Before the terminal is taken: from then on a signal has to give it back.
    let mut told = EndSignals::begin()?;
    let mut screen = Screen::begin(paint)?;
    let (mut keys, reading) = Keys::begin()?;
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut work: JoinSet<TopEvent> = JoinSet::new();
    let mut core = TopCore::new();
    let code = 'shown: loop {
        screen.show(&core, UnixMillis::now())?;
        let event = tokio::select! {
            _ = told.any() => break ExitCode::from(ENDED),
            key = keys.recv() => match key {
                Some(Typed::Key(key)) => TopEvent::Pressed(key),
                Some(Typed::Size) => continue,
                // Nobody can type any more.
                None => break ExitCode::from(ENDED),
            },
            Some(done) = work.join_next() => done.unwrap_or_else(|error| TopEvent::LookFailed(error.to_string())),
            _ = pace.tick() => TopEvent::LookDue,
        };
        for effect in core.step(event, UnixMillis::now()) {
            match effect {
                TopEffect::Look(journals) => drop(work.spawn(look(store.clone(), dir.clone(), journals))),
                TopEffect::Cancel(job) => drop(work.spawn(cancel(store.clone(), dir.clone(), job))),
                TopEffect::Quit => break 'shown ExitCode::SUCCESS,
            }
        }
    };
    drop(screen);
    // Its thread may wait for room.
    drop(keys);
    reading.end();
    work.abort_all();
    store.close().await;
    Ok(code)
}

/// Looks at everything.
async fn look(store: StoreHandle, dir: StateDir, journals: Vec<(JobId, u64)>) -> TopEvent {
    match looked(&store, &dir, &journals).await {
        Ok(look) => TopEvent::Looked(Box::new(look)),
        Err(error) => TopEvent::LookFailed(chain(&error)),
    }
}

async fn looked(store: &StoreHandle, dir: &StateDir, journals: &[(JobId, u64)]) -> Result<TopLook, StoreError> {
    let asked = dir.clone();
    let daemon = tokio::task::spawn_blocking(move || live::daemon(&asked)).await.ok().flatten();
    let now = UnixMillis::now();
    let live = Live::look(store, dir, daemon, now).await?;
    let (mut rows, mut news) = (Vec::new(), Vec::new());
    // Where nothing was ever asked there is no store, and none is made.
    if dir.database().exists() {
        rows = store.job_rows(UnixMillis(now.0 - LATELY), 0).await?;
        for (job, after) in journals {
            match store.events(*job, *after, ENTRIES, ENTRY_BYTES).await {
                Ok(entries) => {
                    let noted =
                        entries.into_iter().map(|entry| Noted { seq: entry.seq, at: entry.at, event: entry.event });
                    news.push((*job, noted.collect()));
                }
                // It was forgotten meanwhile.
                Err(StoreError::UnknownJob(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(TopLook { live, rows, news })
}

/// Asks for the end of a job, as `jobs cancel` does.
async fn cancel(store: StoreHandle, dir: StateDir, job: JobId) -> TopEvent {
    let asked = async {
        if let CancelState::Ended { state } = store.request_cancel(job, CancelReason::Requested).await? {
            return Ok(state);
        }
        // A job whose runner is gone has nobody to find the request: it is settled here.
        let gone = Fault::new(FaultCode::RunnerLost, "the job's runner is gone.");
        let _ = sweep::settle(&store, &dir, job, gone).await?;
        Ok(store.glance(job).await?.state)
    };
    let asked: Result<JobState, Fault> = asked.await;
    TopEvent::CancelAsked(job, asked.map_err(|fault| fault.detail))
}

/// What comes from the terminal.
enum Typed {
    Key(TopKey),
    /// The window is another one.
    Size,
}

/// The thread that reads the keyboard.
struct Keys {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Keys {
    fn begin() -> io::Result<(mpsc::Receiver<Typed>, Self)> {
        let (sender, receiver) = mpsc::channel(KEYS);
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let thread = std::thread::Builder::new().name("keys".to_owned()).spawn(move || {
            signals::leave_to_others();
            while !ends.load(Ordering::Relaxed) {
                match event::poll(KEY_WAIT)
                    .and_then(|is_there| if is_there { event::read().map(Some) } else { Ok(None) })
                {
                    Ok(Some(event)) => {
                        let Some(typed) = meaning(&event) else { continue };
                        if sender.blocking_send(typed).is_err() {
                            return;
                        }
                    }
                    Ok(None) => {}
                    Err(_) => return,
                }
            }
        })?;
        Ok((receiver, Self { over, thread }))
    }

    /// Ends it; within the time it waits for a key.
    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        // It gives its last key to nobody, and ends by that too.
        let _ = self.thread.join();
    }
}

fn meaning(event: &Event) -> Option<Typed> {
    let Event::Key(key) = event else {
        return matches!(event, Event::Resize(..)).then_some(Typed::Size);
    };
    if key.kind == KeyEventKind::Release {
        return None;
    }
    Some(Typed::Key(match key.code {
        KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => TopKey::Interrupt,
        KeyCode::Char(_) if key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) => return None,
        KeyCode::Char(c) => TopKey::Char(c),
        KeyCode::Up => TopKey::Up,
        KeyCode::Down => TopKey::Down,
        KeyCode::PageUp => TopKey::PageUp,
        KeyCode::PageDown => TopKey::PageDown,
        KeyCode::Home => TopKey::First,
        KeyCode::End => TopKey::Last,
        KeyCode::Enter => TopKey::Enter,
        KeyCode::Esc => TopKey::Escape,
        KeyCode::Backspace => TopKey::Backspace,
        _ => return None,
    }))
}
