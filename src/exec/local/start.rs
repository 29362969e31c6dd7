//! Starting a process of this machine.
//!
//! Owns: the child's pipes and group, the tasks it is given, and why a start did not work. May not know: how a process ends.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use rustix::process::Pid;
use tokio::process::Command;
use tokio::sync::{mpsc, watch};

use super::super::OutputStream;
use super::super::session::ProcessSession;
use super::begin::{as_a_program, with_its_terminal};
use super::group::{Group, GroupState};
use super::keeper::{AbortOnDrop, Fuse, Keeper};
use super::pipes::{Pump, feed_bytes, feed_queue};
use super::terminal::{END_OF_FILE, Pty, Terminal};
use super::{
    CloseBy, ControlState, GRACE, LocalProcess, OutputTap, ProcessControl, SpawnMode, SpawnSpec, Stdin, StdinQueue,
    Stop, TAP_CHUNKS,
};
use crate::base::image::StandIn;
use crate::base::procfs;
use crate::base::tasks::{self, TaskSet};

/// Why a process could not be started. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The directory does not exist.
    #[error("start in {}: no such directory", cwd.display())]
    CwdMissing {
        /// The directory.
        cwd: PathBuf,
    },
    /// The directory is something else.
    #[error("start in {}: not a directory", cwd.display())]
    CwdNotADirectory {
        /// The path.
        cwd: PathBuf,
    },
    /// The directory may not be entered.
    #[error("start in {}: it may not be entered", cwd.display())]
    CwdNotEntered {
        /// The directory.
        cwd: PathBuf,
    },
    /// The program, or the interpreter it names, does not exist.
    #[error("start {}: no such program", program.display())]
    ProgramMissing { program: PathBuf },
    /// The program is there and may not or cannot be executed.
    #[error("start {}: not executable", program.display())]
    NotExecutable { program: PathBuf },
    /// The arguments and the environment are larger than the system takes.
    #[error("start {}: argument list too long", program.display())]
    ArgumentsTooLarge { program: PathBuf },
    /// The program's file is being written at this moment.
    #[error("start {}: its file is being written", program.display())]
    Busy { program: PathBuf },
    /// There is no descriptor, process or memory to be had at this moment.
    #[error("start {}", program.display())]
    NoRoom {
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system refused for another reason.
    #[error("start {}", program.display())]
    Other {
        program: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

impl SpawnError {
    /// The word for it on the wire.
    #[must_use]
    pub const fn kind(&self) -> Option<&'static str> {
        Some(match self {
            Self::CwdMissing { .. } => "cwdMissing",
            Self::CwdNotADirectory { .. } => "cwdNotADirectory",
            Self::CwdNotEntered { .. } => "cwdNotEntered",
            Self::ProgramMissing { .. } => "programMissing",
            Self::NotExecutable { .. } => "notExecutable",
            Self::ArgumentsTooLarge { .. } => "argumentsTooLarge",
            Self::Busy { .. } => "busy",
            Self::NoRoom { .. } => "noRoom",
            Self::Other { .. } => return None,
        })
    }

    /// The error another machine means by its word and its text; [`SpawnError::Other`] for a word that is not known.
    #[must_use]
    pub fn of_kind(kind: &str, text: &str, program: &Path, cwd: &Path) -> Self {
        let (program, cwd) = (program.to_owned(), cwd.to_owned());
        let source = io::Error::other(text.to_owned());
        match kind {
            "cwdMissing" => Self::CwdMissing { cwd },
            "cwdNotADirectory" => Self::CwdNotADirectory { cwd },
            "cwdNotEntered" => Self::CwdNotEntered { cwd },
            "programMissing" => Self::ProgramMissing { program },
            "notExecutable" => Self::NotExecutable { program },
            "argumentsTooLarge" => Self::ArgumentsTooLarge { program },
            "busy" => Self::Busy { program },
            "noRoom" => Self::NoRoom { program, source },
            _ => Self::Other { program, source },
        }
    }
}

/// The backend for processes of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalExec;

impl LocalExec {
    /// Starts a process as the leader of its own process group.
    ///
    /// On Linux it gets TERM when *the calling thread* ends, however that happens: call this on a thread that lives as
    /// long as the process may, such as the main thread under a current-thread runtime.
    ///
    /// # Errors
    /// A [`SpawnError`]; the session is then as it was.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time, as everything that makes tokio pipes does.
    pub fn spawn(
        spec: SpawnSpec,
        session: ProcessSession,
        close: CloseBy,
    ) -> Result<(LocalProcess, OutputTap), SpawnError> {
        Self::spawn_with(spec, SpawnMode::default(), session, close)
    }

    /// As [`LocalExec::spawn`], in this way. On a terminal, standard input is the terminal whatever [`SpawnSpec::stdin`] says,
    /// and can be written.
    ///
    /// # Errors
    /// As [`LocalExec::spawn`].
    ///
    /// # Panics
    /// As [`LocalExec::spawn`].
    pub fn spawn_with(
        spec: SpawnSpec,
        mode: SpawnMode,
        session: ProcessSession,
        close: CloseBy,
    ) -> Result<(LocalProcess, OutputTap), SpawnError> {
        // An ENOENT of spawn does not say whether the program or the directory is missing, so this is asked first.
        match std::fs::metadata(&spec.cwd) {
            Ok(found) if !found.is_dir() => return Err(SpawnError::CwdNotADirectory { cwd: spec.cwd }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SpawnError::CwdMissing { cwd: spec.cwd });
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(SpawnError::CwdNotADirectory { cwd: spec.cwd });
            }
            _ => {}
        }
        let other = |source| SpawnError::Other { program: spec.program.clone(), source };
        let pty = mode.terminal.map(Pty::open).transpose().map_err(other)?;
        // The built-in agent is our own image.
        let started = StandIn::default().start(&spec.program, |program| {
            let mut command = Command::new(program);
            if let Some(arg0) = &mode.arg0 {
                command.arg0(arg0);
            }
            command
                .args(&spec.args)
                .current_dir(&spec.cwd)
                .env_clear()
                .envs(spec.env.iter().map(|(name, value)| (name, value)))
                .kill_on_drop(true);
            as_a_program(&mut command, mode.ends, spec.descriptors);
            match &pty {
                Some(pty) => {
                    command.stdin(pty.end()?).stdout(pty.end()?).stderr(pty.end()?);
                    // Leading a session is leading a group.
                    with_its_terminal(&mut command);
                }
                None => {
                    command.stdin(spec.stdin.as_stdio()?).stdout(Stdio::piped()).stderr(Stdio::piped());
                    command.process_group(0);
                }
            }
            command.spawn()
        });
        let mut child = started.map_err(|error| classify(spec.program.clone(), &spec.cwd, error))?;
        let pid = child.id().unwrap_or_default();
        let Some(leader) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Err(SpawnError::Other {
                program: spec.program,
                source: io::Error::other("the process has no pid"),
            });
        };
        let start_time = procfs::start_time(leader);
        let group = Arc::new(Group { leader, state: Mutex::new(GroupState::Led) });

        let (tap, tap_receiver) = mpsc::channel(TAP_CHUNKS);
        let (pipes_until, _) = watch::channel(None);
        let mut pumps = TaskSet::new();
        if let Some(pipe) = child.stdout.take() {
            let pump = Pump::new(OutputStream::Stdout, &session, &tap, &pipes_until);
            pumps.spawn(pump.run(pipe));
        }
        if let Some(pipe) = child.stderr.take() {
            let pump = Pump::new(OutputStream::Stderr, &session, &tap, &pipes_until);
            pumps.spawn(pump.run(pipe));
        }
        let terminal = pty.map(Pty::ours).transpose().map_err(other)?;
        if let Some(terminal) = &terminal {
            let pump = Pump::new(OutputStream::Stdout, &session, &tap, &pipes_until);
            pumps.spawn(pump.run(terminal.reader().map_err(other)?));
        }
        let terminal_input = terminal.as_ref().map(Terminal::writer).transpose().map_err(other)?;
        // A feeder is the keeper's: it is aborted when the keeper ends.
        let (stdin, feeder) = match (child.stdin.take(), spec.stdin) {
            (None, _) if terminal_input.is_some() => match terminal_input {
                Some(side) => {
                    let (stdin, receiver, room) = StdinQueue::new();
                    let feeder = tasks::spawn(feed_queue(side, receiver, room, END_OF_FILE));
                    (Some(stdin), Some(feeder.abort_handle()))
                }
                None => (None, None),
            },
            (Some(pipe), Stdin::Bytes(bytes)) => (None, Some(tasks::spawn(feed_bytes(pipe, bytes)).abort_handle())),
            (Some(pipe), Stdin::Piped) => {
                let (stdin, receiver, room) = StdinQueue::new();
                let feeder = tasks::spawn(feed_queue(pipe, receiver, room, b""));
                (Some(stdin), Some(feeder.abort_handle()))
            }
            _ => (None, None),
        };

        let grace = Arc::new(Mutex::new(GRACE));
        let (stop, stop_receiver) = watch::channel(Stop::No);
        let (end, end_receiver) = watch::channel(None);
        let control = ProcessControl {
            shared: Arc::new(ControlState {
                group: Arc::clone(&group),
                stop,
                stdin: Mutex::new(stdin),
                grace: Arc::clone(&grace),
                terminal: terminal.map(Arc::new),
                end: end_receiver.clone(),
            }),
        };
        let keeper = Keeper {
            fuse: Fuse { group, session },
            child,
            adopt: spec.adopt,
            close,
            leftovers: mode.leftovers,
            mark: mode.mark.clone(),
            stop: stop_receiver,
            grace,
            kill_at: None,
            pumps,
            pipes_until,
            feeder: feeder.map(AbortOnDrop),
        };
        // The keeper outlives every handle, since it has to empty the process group and reap the process; `end` says when.
        tasks::spawn(async move {
            let how = keeper.run().await;
            end.send_replace(Some(how));
        });
        Ok((LocalProcess { control, end: end_receiver, start_time }, OutputTap::bounded(tap_receiver)))
    }
}

fn classify(program: PathBuf, cwd: &Path, error: io::Error) -> SpawnError {
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::NOTDIR) => SpawnError::ProgramMissing { program },
        // Entering the directory comes before the program, and is refused in the same word.
        Some(Errno::ACCESS) if !may_be_entered(cwd) => SpawnError::CwdNotEntered { cwd: cwd.to_owned() },
        Some(Errno::ACCESS | Errno::NOEXEC | Errno::ISDIR) => SpawnError::NotExecutable { program },
        Some(Errno::TOOBIG) => SpawnError::ArgumentsTooLarge { program },
        Some(Errno::TXTBSY) => SpawnError::Busy { program },
        _ if is_no_room(&error) => SpawnError::NoRoom { program, source: error },
        _ => SpawnError::Other { program, source: error },
    }
}

/// Whether this process may make the directory its own.
#[must_use]
pub fn may_be_entered(dir: &Path) -> bool {
    use rustix::fs::{Access, AtFlags, CWD, accessat};
    accessat(CWD, dir, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

/// Whether a start failed for want of descriptors, processes or memory: it may work in a moment.
#[must_use]
pub fn is_no_room(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::AGAIN | Errno::NOMEM))
}
