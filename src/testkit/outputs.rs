//! Where a program's output may go: a pipe whose reader has gone, a device that is full, a terminal.
//!
//! Owns: making those, and running a command into them. May not know: what the program makes of it.

#![expect(clippy::expect_used, clippy::panic, reason = "what goes wrong in a rig fails the case")]

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::process::{Output, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

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

/// A terminal: the side a program is started on, and the side its output is read from.
fn terminal() -> (OwnedFd, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&master).expect("granted");
    unlockpt(&master).expect("unlocked");
    let name = ptsname(&master, Vec::new()).expect("a name");
    let slave = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("its other side");
    (slave, master.into())
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

    /// What a command shows on a terminal, both its streams.
    ///
    /// # Panics
    ///
    /// When it does not end, or there is no terminal to be had.
    pub async fn on_a_terminal(&self, arguments: &[&str]) -> String {
        let (slave, mut master) = terminal();
        let mut command = self.command(arguments);
        let again = slave.try_clone().expect("the same terminal");
        command.stdin(Stdio::null()).stdout(again).stderr(slave);
        let mut child = command.spawn().expect("it runs");
        // It holds this process's copies of the terminal, which ends when nobody has it any more.
        drop(command);
        let reading = tokio::task::spawn_blocking(move || {
            let (mut seen, mut part) = (Vec::new(), [0; 4096]);
            // The last reader of a terminal without a program gets an error and no end.
            while let Ok(read @ 1..) = master.read(&mut part) {
                seen.extend_from_slice(&part[..read]);
            }
            seen
        });
        let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
        ended.unwrap_or_else(|_| panic!("{arguments:?} did not end")).expect("it is waited for");
        String::from_utf8_lossy(&reading.await.expect("it is read")).into_owned()
    }
}
