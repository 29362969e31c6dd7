//! Where a program's output may go: a pipe whose reader has gone, a device that is full, a terminal.
//!
//! Owns: making those, and running a command into them. May not know: what the program makes of it.

#![expect(clippy::expect_used, clippy::panic, reason = "what goes wrong in a rig fails the case")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use tokio::process::Child;
use tokio::task::JoinHandle;

use super::rig::Rig;
use super::wait::PATIENCE;

/// A pipe whose reader has gone.
///
/// # Panics
///
/// When there is no pipe to be had.
#[must_use]
pub fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

/// A device that has no room for anything; `None` where the system has none.
#[must_use]
pub fn full_device() -> Option<Stdio> {
    File::options().write(true).open("/dev/full").ok().map(Stdio::from)
}

/// A terminal of so many columns and rows, or one that does not say: the side a program is started on, and the side its
/// output is read from.
fn terminal(size: Option<(u16, u16)>) -> (OwnedFd, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&master).expect("granted");
    unlockpt(&master).expect("unlocked");
    let name = ptsname(&master, Vec::new()).expect("a name");
    let slave = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("its other side");
    if let Some((ws_col, ws_row)) = size {
        tcsetwinsize(&slave, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 }).expect("sized");
    }
    (slave, master.into())
}

/// Whether a command has the terminal as its stdin too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keyboard {
    /// It has: whoever started it could type.
    There,
    /// Its stdin is empty.
    Away,
}

/// A command that runs on a terminal.
pub struct OnTerminal {
    child: Child,
    reading: JoinHandle<()>,
    seen: Arc<Mutex<Vec<u8>>>,
    /// Whoever types, or nobody: the terminal is there all the same.
    master: File,
}

impl OnTerminal {
    /// Everything it has shown so far.
    #[must_use]
    pub fn seen(&self) -> String {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Presses these keys.
    ///
    /// # Panics
    ///
    /// When the terminal takes none.
    pub fn press(&self, keys: &str) {
        (&self.master).write_all(keys.as_bytes()).expect("typed");
    }

    /// Makes the window this large; who runs in it is told by a signal, which is for the caller to send.
    ///
    /// # Panics
    ///
    /// When the terminal has no size.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).expect("sized");
    }

    /// Whether it reads whole lines, and whether what is typed is shown.
    ///
    /// # Panics
    ///
    /// When the terminal does not say.
    #[must_use]
    pub fn modes(&self) -> (bool, bool) {
        let modes = tcgetattr(&self.master).expect("its modes").local_modes;
        (modes.contains(LocalModes::ICANON), modes.contains(LocalModes::ECHO))
    }

    /// How it ended, everything it has shown, and how the terminal is afterwards ([`OnTerminal::modes`]).
    ///
    /// # Panics
    ///
    /// When it does not end.
    pub async fn ended_with_modes(mut self) -> (ExitStatus, String, (bool, bool)) {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("it did not end: {}", self.seen())).expect("it is waited for");
        let modes = self.modes();
        (&mut self.reading).await.expect("it is read");
        (status, self.seen(), modes)
    }

    /// Sends it a signal.
    ///
    /// # Panics
    ///
    /// When it is over.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).expect("it runs");
        kill_process(pid, signal).expect("signalled");
    }

    /// How it ended, and everything it has shown.
    ///
    /// # Panics
    ///
    /// When it does not end.
    pub async fn ended(self) -> (ExitStatus, String) {
        let (status, seen, _) = self.ended_with_modes().await;
        (status, seen)
    }
}

impl Rig {
    /// Runs a command to its end with this as its stdout.
    ///
    /// # Panics
    ///
    /// When it does not end.
    pub async fn run_into(&self, arguments: &[&str], stdout: Stdio) -> Output {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
        let child = command.spawn().expect("it runs").wait_with_output();
        let ended = tokio::time::timeout(PATIENCE, child).await;
        ended.unwrap_or_else(|_| panic!("{arguments:?} did not end")).expect("it is waited for")
    }

    /// What a command shows on a terminal that does not say how large it is, both its streams.
    ///
    /// # Panics
    ///
    /// When it does not end, or there is no terminal to be had.
    pub async fn on_a_terminal(&self, arguments: &[&str]) -> String {
        self.begin_on_a_terminal(arguments, None, Keyboard::Away).ended().await.1
    }

    /// Starts a command on a terminal of so many columns and rows, which shows both its streams.
    ///
    /// # Panics
    ///
    /// When there is no terminal to be had.
    #[must_use]
    pub fn begin_on_a_terminal(&self, arguments: &[&str], size: Option<(u16, u16)>, keyboard: Keyboard) -> OnTerminal {
        let (slave, master) = terminal(size);
        let mut command = self.command(arguments);
        let again = || slave.try_clone().expect("the same terminal");
        let stdin = if keyboard == Keyboard::There { again().into() } else { Stdio::null() };
        command.stdin(stdin).stdout(again()).stderr(again());
        let child = command.spawn().expect("it runs");
        // These hold this process's copies of the terminal, which ends when nobody has it any more.
        drop((command, slave));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (kept, mut reader) = (seen.clone(), master.try_clone().expect("the same side"));
        let reading = tokio::task::spawn_blocking(move || {
            let mut part = [0; 4096];
            // The last reader of a terminal without a program gets an error and no end.
            while let Ok(read @ 1..) = reader.read(&mut part) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&part[..read]);
            }
        });
        OnTerminal { child, reading, seen, master }
    }
}
