//! A candidate's run under a process of its own, which nothing the candidate starts outlives.
//!
//! Owns: the process between us and a candidate, and what it reports. May not know: what a candidate is asked.
//!
//! ```text
//! server ──spawns──▶ `mcp trial` (adopts) ──spawns──▶ candidate ──▶ whatever it starts, in any session
//!   ▲                      │ all of it has ended
//!   └──── one line ────────┘
//! ```
//!
//! A server cannot adopt what a candidate leaves behind: its own runners are its children too. So the keeper does, and ends
//! every process that falls to it before it reports. It is asked to end (TERM), never killed, since it would leave what it
//! keeps; when the server is gone the kernel asks it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, Signal};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::candidate::{DEADLINE, NotRun, Said, run};
use crate::base::image::StandIn;
use crate::exec::local::{Adopt, KILL_BOUND, SpawnSpec, Stdin, become_subreaper};

/// Longest report that is read; one is bounded by what is kept of a candidate's output, each byte escaped.
const REPORT_BYTES: u64 = 256 * 1024;

/// What a keeper may take beyond the candidate's deadline: what it kills may hang in the kernel.
const SLACK: std::time::Duration = std::time::Duration::from_secs(3);

/// What a run came to, as the keeper reports it.
pub(super) type Report = Result<Said, NotRun>;

/// A keeper, which is asked to end when nobody waits for it any more.
struct Keeper(Child);

impl Drop for Keeper {
    fn drop(&mut self) {
        // Without a number it was waited for.
        if let Some(pid) = self.0.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
    }
}

/// Runs a program under this keeper. `None` when the keeper cannot be started.
///
/// # Cancel safety
///
/// Safe: the keeper ends what it keeps.
pub(super) async fn run_under(keeper: &Path, spec: &SpawnSpec) -> Option<Report> {
    let started = StandIn::default().start(keeper, |keeper| {
        let mut command = Command::new(keeper);
        command.args(["mcp", "trial", "--parent", &std::process::id().to_string(), "--"]);
        command.arg(&spec.program).args(&spec.args).current_dir(&spec.cwd).env_clear();
        command.envs(spec.env.iter().map(|(name, value)| (name, value)));
        command.stdin(match &spec.stdin {
            Stdin::File(file) => Stdio::from(file.try_clone()?),
            _ => Stdio::null(),
        });
        command.stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        command.spawn()
    });
    let mut keeper = Keeper(started.ok()?);
    let output = keeper.0.stdout.take()?;
    let report = async {
        let mut text = Vec::new();
        let _read = output.take(REPORT_BYTES).read_to_end(&mut text).await;
        let _ended = keeper.0.wait().await;
        text
    };
    let report = tokio::time::timeout(DEADLINE + KILL_BOUND + SLACK, report).await;
    let read = report.ok().and_then(|text| serde_json::from_slice::<Report>(&text).ok());
    Some(read.unwrap_or_else(|| Err(NotRun::NotChecked("the process that keeps the trial said nothing.".to_owned()))))
}

/// The keeper's main function: runs the program to its end, or until it is asked to end it, and says what it came to. `None`
/// when whoever wanted to know is gone already.
///
/// # Errors
///
/// The process cannot adopt, or cannot hear signals.
pub async fn keep(parent: i32, program: PathBuf, args: Vec<std::ffi::OsString>) -> std::io::Result<Option<String>> {
    let mut ended = signal(SignalKind::terminate())?;
    become_subreaper()?;
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    // It may have gone before the line above.
    if rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(parent) {
        return Ok(None);
    }
    let own = std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned()?;
    let spec = SpawnSpec {
        program,
        args,
        cwd: std::env::current_dir()?,
        env: std::env::vars_os().collect(),
        stdin: Stdin::File(std::fs::File::from(own).into()),
        adopt: Adopt::Yes,
        descriptors: None,
    };
    let report: Report = run(spec, async {
        let _asked = ended.recv().await;
    })
    .await;
    Ok(serde_json::to_string(&report).ok())
}
