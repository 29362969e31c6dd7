//! What the tests of several agents need.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, test_kill_process};

use super::cli::{Invocation, Sheet};
use super::probe::Features;
use super::{AgentEvent, OutputParser, RunEnd, RunSummary, RunVerdict};
use crate::base::procfs;
use crate::jobs::{ConsultRequest, RunExit};

/// An agent that is a program of its own, as its tests ask it.
pub(super) struct AgentTried(pub(super) &'static Sheet);

impl AgentTried {
    /// What these lines of a whole run of it mean.
    pub(super) fn events(&self, lines: &[&str]) -> Vec<AgentEvent> {
        events((self.0.parser)(), lines)
    }

    /// What its program is called with for this request, where it can do this.
    pub(super) fn arguments(&self, request: &ConsultRequest, features: &Features) -> Vec<String> {
        self.invoked(&Invocation { request, features, state_dir: Path::new("/s"), new_session: None })
    }

    /// The same with everything a command line is made of.
    pub(super) fn invoked(&self, invocation: &Invocation<'_>) -> Vec<String> {
        (self.0.arguments)(invocation).into_iter().map(|arg| arg.into_string().expect("text")).collect()
    }

    /// What it means that a run of it ended so.
    pub(super) fn verdict(&self, code: i32, stderr: &str, lines: &[&str]) -> RunVerdict {
        self.0.profile.classify(run_end(code, stderr, &self.events(lines)))
    }
}

/// A command line as text.
pub(super) fn words(args: &[OsString]) -> Vec<&str> {
    args.iter().map(|arg| arg.to_str().expect("text")).collect()
}

/// What these lines of a whole run mean.
pub(super) fn events(mut parser: Box<dyn OutputParser>, lines: &[&str]) -> Vec<AgentEvent> {
    let mut out = Vec::new();
    lines.iter().for_each(|line| parser.line(line.as_bytes(), &mut out));
    parser.end(&mut out);
    out
}

/// Damages this line in many ways, and has each read by a parser of its own: nothing panics, and no line is more than three events.
/// (What is damaged may be two pieces, and what belongs to neither is counted once.)
pub(super) fn expect_damage_is_survived(seed: u64, sample: &str, parser: fn() -> Box<dyn OutputParser>) {
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..5_000 {
        let mut line = sample.as_bytes().to_vec();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..line.len());
            match random.u8(..3) {
                0 => line[at] = random.u8(..),
                1 => line.truncate(at.max(1)),
                _ => line.insert(at, b"\\u\"{}["[random.usize(..6)]),
            }
        }
        let mut out = Vec::new();
        parser().line(&line, &mut out);
        assert!(out.len() <= 3, "seed {seed}: {out:?}");
    }
}

/// The end of a run that said this.
pub(super) fn run_end(code: i32, stderr: &str, events: &[AgentEvent]) -> RunEnd {
    let mut summary = RunSummary::new();
    events.iter().for_each(|event| summary.fold(event));
    let exit = Some(RunExit { code, signal: None, reaped: 0 });
    RunEnd { summary, exit, stderr_tail: stderr.as_bytes().to_vec(), ..RunEnd::default() }
}

pub(super) fn request(prompt: &str) -> ConsultRequest {
    ConsultRequest::new(prompt).cwd("/").timeout_s(60)
}

/// Writes an executable shell script.
///
/// Another process writes it: a file this process has open for writing while another test forks cannot be executed.
pub(super) fn script(dir: &Path, name: &str, body: &str) -> PathBuf {
    let path = dir.join(name);
    let mut writer = Command::new("/bin/sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    let mut stdin = writer.stdin.take().expect("its stdin");
    stdin.write_all(format!("#!/bin/sh\n{body}\n").as_bytes()).expect("written");
    drop(stdin);
    assert!(writer.wait().expect("ended").success());
    path
}

/// Whether the process runs; one that only waits to be reaped by somebody else does not.
fn lives(pid: Pid) -> bool {
    let zombie = procfs::stat(pid.as_raw_nonzero().get()).is_some_and(|stat| stat.is_dead);
    test_kill_process(pid).is_ok() && !zombie
}

/// Waits until none of these processes exists.
pub(super) fn wait_until_gone(pids: &[Pid]) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left: Vec<_> = pids.iter().filter(|pid| lives(**pid)).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "still alive: {left:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
