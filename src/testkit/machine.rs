//! Machines of a program's own, held to what they promise.
//!
//! Owns: what is tried on a machine ([`try_out`]), and one to try ([`StreamedHere`]). May not know: agents, jobs: that nothing outlives
//! a runner is seen by killing one.

#![expect(clippy::expect_used, clippy::panic, reason = "a machine that does not keep its promises fails the case")]

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::process::{Child, Command};

use super::wait::{PATIENCE, Waiting};
use crate::exec::backend::{ExecBackend as _, ExecProcess, ProcessStartError, StartRequest, StartedProcess, StdinKind};
use crate::exec::local::{OutputTap, ProcessEnd, SpawnError};
use crate::exec::machine::{
    Machine, MachineEnd, MachineError, MachineFuture, MachineProcess, MachineStart, MachineSteering, OwnMachine,
};
use crate::exec::{OutputCursor, OutputStream, ProcessSession};

/// How long what was started is let alone before it is looked at again: many times what a living one takes to show itself.
const STILL: &str = "sleep 0.5";

/// Writes to a file for as long as it lives.
const BEATS: &str = "(while :; do echo beat >> beats; sleep 0.02; done)";

/// Tries a machine with a few dozen processes: exit codes, streams, long inputs and outputs, the environment, what is not there,
/// and above all that each end is one of everything that was started. `dir` is an empty directory on the machine, which has a
/// `/bin/sh` and can be written by what runs there.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use phone_opus::testkit::machine::{StreamedHere, try_out};
///
/// try_out(StreamedHere, "/tmp/an-empty-directory").await;              // your own in place of it
/// # }
/// ```
///
/// # Panics
///
/// At the first promise that is not kept, with what was seen.
pub async fn try_out(machine: impl Machine, dir: impl Into<PathBuf>) {
    let trial = Trial { machine: OwnMachine::new(Arc::new(machine), Vec::new()), dir: dir.into() };
    trial.what_it_says_and_how_it_ends().await;
    trial.what_it_is_given().await;
    trial.much_of_everything().await;
    trial.what_is_not_there().await;
    trial.an_end_that_is_asked_for().await;
    trial.an_end_without_asking().await;
    trial.what_outlives_its_leader().await;
    trial.what_nobody_holds().await;
    trial.a_start_that_is_given_up().await;
    in_time("everything is let go of", trial.machine.shutdown()).await;
}

struct Trial {
    machine: OwnMachine,
    dir: PathBuf,
}

/// A process, and what it writes.
struct Tried {
    process: Arc<dyn ExecProcess>,
    tap: OutputTap,
    session: ProcessSession,
}

impl Tried {
    /// Everything it writes to its end, both streams apart; and how it ended.
    async fn whole(mut self) -> (Vec<u8>, Vec<u8>, ProcessEnd) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some((stream, bytes)) = in_time("output", self.tap.next()).await {
            match stream {
                OutputStream::Stdout => out.extend_from_slice(&bytes),
                OutputStream::Stderr => err.extend_from_slice(&bytes),
            }
        }
        let end = in_time("its end", self.process.end()).await;
        (out, err, end.unwrap_or_else(|lost| panic!("{lost}: {}", lost.message)))
    }

    /// Reads until it has said that it is there.
    async fn is_up(&mut self) {
        let mut seen = String::new();
        while !seen.contains("up\n") {
            let Some((_, bytes)) = in_time("`up`", self.tap.next()).await else {
                panic!("it ended without a word: {seen:?}");
            };
            seen.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
}

impl Trial {
    fn shell(&self, script: &str) -> StartRequest {
        let mut request = StartRequest::new(uuid::Uuid::new_v4().to_string(), "/bin/sh", self.dir.clone());
        request.args = vec!["-c".into(), script.into()];
        request.env = vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into()), ("TRIED".into(), "a=b c".into())];
        request
    }

    async fn try_to_start(&self, request: StartRequest) -> (Result<StartedProcess, ProcessStartError>, ProcessSession) {
        let session = ProcessSession::new();
        (in_time("a start", self.machine.start(request, session.clone())).await, session)
    }

    async fn start(&self, request: StartRequest) -> Tried {
        let (started, session) = self.try_to_start(request).await;
        let (process, tap) = started.unwrap_or_else(|error| panic!("{error}"));
        Tried { process, tap, session }
    }

    /// What a script says that ends well.
    async fn said(&self, script: &str) -> String {
        let (out, err, end) = self.start(self.shell(script)).await.whole().await;
        let (out, err) = (String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&err).into_owned());
        assert_eq!(end.code, 0, "{script}: {out} {err}");
        out
    }

    /// That nothing writes to the file any more, as two looks that lie apart see it.
    async fn nothing_beats(&self, what: &str) {
        let looks = self.said(&format!("cat beats 2>&- | wc -c; {STILL}; cat beats 2>&- | wc -c; rm -f beats")).await;
        let looks: Vec<&str> = looks.split_whitespace().collect();
        assert_eq!(looks.first(), looks.get(1), "{what}: something it started lives on");
    }

    async fn what_it_says_and_how_it_ends(&self) {
        for (script, code) in [("exit 0", 0), ("echo out; echo err >&2; exit 3", 3), ("exit 255", 255)] {
            let (out, err, end) = self.start(self.shell(script)).await.whole().await;
            assert_eq!(end.code, code, "{script}");
            let said = if code == 3 { (&b"out\n"[..], &b"err\n"[..]) } else { (&b""[..], &b""[..]) };
            assert_eq!((&out[..], &err[..]), said, "{script}");
        }
        let (_, _, end) = self.start(self.shell("kill -KILL $$")).await.whole().await;
        assert_eq!(end.code, 137, "death by KILL is 128 + 9");
    }

    async fn what_it_is_given(&self) {
        assert_eq!(self.said("echo \"$TRIED\"").await, "a=b c\n", "the environment");
        let here = self.said("pwd -P").await;
        let named = self.said(&format!("cd '{}'; pwd -P", self.dir.display())).await;
        assert_eq!(here, named, "the directory it begins in");
        let mut request = self.shell("wc -c");
        request.stdin = StdinKind::Bytes(Bytes::from(vec![b'x'; 3_000_000]));
        let (out, _, _) = self.start(request).await.whole().await;
        assert_eq!(String::from_utf8_lossy(&out).trim(), "3000000", "bytes of its standard input, to its end");
        // That it does not read them is no failure.
        let mut request = self.shell("exit 4");
        request.stdin = StdinKind::Bytes(Bytes::from(vec![b'x'; 3_000_000]));
        assert_eq!(self.start(request).await.whole().await.2.code, 4, "of a program that reads nothing");
    }

    async fn much_of_everything(&self) {
        let (out, err, end) = self
            .start(self.shell("yes out | head -c 5000000 & yes err | head -c 5000000 >&2 & wait; exit 2"))
            .await
            .whole()
            .await;
        assert_eq!((out.len(), err.len(), end.code), (5_000_000, 5_000_000, 2), "two busy streams, whole");
        let all = (0..20).map(|number| async move { self.said(&format!("echo {number}")).await });
        let said = futures_util::future::join_all(all).await;
        assert!(said.iter().enumerate().all(|(number, said)| *said == format!("{number}\n")), "at once: {said:?}");
    }

    async fn what_is_not_there(&self) {
        let mut missing = self.shell("exit 0");
        missing.program = "/no/such/program".into();
        let mut elsewhere = self.shell("exit 0");
        elsewhere.cwd = "/no/such/directory".into();
        let (started, _) = self.try_to_start(missing).await;
        match started {
            Err(ProcessStartError::Spawn(SpawnError::ProgramMissing { .. })) => {}
            // What runs it says so instead, as a shell does.
            Ok((process, _)) => {
                let end = in_time("its end", process.end()).await.expect("an end");
                assert!(end.code != 0, "a program that is not there ended well");
            }
            Err(error) => panic!("a program that is not there: {error}"),
        }
        let (started, _) = self.try_to_start(elsewhere).await;
        match started {
            Err(ProcessStartError::Spawn(SpawnError::CwdMissing { .. } | SpawnError::CwdNotEntered { .. })) => {}
            other => panic!("a directory that is not there: {:?}", other.map(|(process, _)| process)),
        }
    }

    async fn an_end_that_is_asked_for(&self) {
        // What heeds it, and what does not.
        for script in [format!("{BEATS} & echo up; wait"), format!("trap '' TERM; {BEATS} & echo up; wait")] {
            let mut tried = self.start(self.shell(&script)).await;
            tried.is_up().await;
            let was_running = in_time("the asking", tried.process.terminate(Some(Duration::from_millis(300)))).await;
            assert_eq!(was_running.ok(), Some(true));
            let end = tried.whole().await.2;
            assert!(end.terminated, "{script}: {end:?}");
            self.nothing_beats(&script).await;
        }
    }

    async fn an_end_without_asking(&self) {
        let script = format!("trap '' TERM INT HUP; {BEATS} & echo up; wait");
        let mut tried = self.start(self.shell(&script)).await;
        tried.is_up().await;
        tried.process.kill();
        tried.process.kill();
        let process = Arc::clone(&tried.process);
        tried.whole().await;
        process.kill();
        self.nothing_beats("after a kill").await;
    }

    async fn what_outlives_its_leader(&self) {
        let script = format!("{BEATS} >&- 2>&- & echo up; exit 5");
        let end = self.start(self.shell(&script)).await.whole().await.2;
        assert_eq!(end.code, 5);
        self.nothing_beats("after the end of its leader").await;
    }

    async fn what_nobody_holds(&self) {
        let mut tried = self.start(self.shell(&format!("{BEATS} & echo up; wait"))).await;
        tried.is_up().await;
        let mut events = tried.session.subscribe(OutputCursor::start());
        drop(tried);
        while in_time("an end", events.next()).await.is_some() {}
        self.nothing_beats("after its last handle was dropped").await;
    }

    async fn a_start_that_is_given_up(&self) {
        let request = self.shell(&format!("{BEATS} & wait"));
        {
            let mut start = self.machine.start(request, ProcessSession::new());
            let _ = (&mut start).now_or_never();
        }
        self.nothing_beats("after a start that was given up").await;
    }
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// A machine that gives its processes by their streams. They run here, in groups of their own, and end with the runtime or their
/// handle; what their runner leaves when it is killed is found by the mark of the run, since they are processes of this machine.
#[derive(Debug, Clone, Copy)]
pub struct StreamedHere;

impl Machine for StreamedHere {
    fn name(&self) -> &str {
        "streamed"
    }

    fn over_within(&self) -> Duration {
        Duration::ZERO
    }

    fn start(&self, start: MachineStart) -> MachineFuture<'_, Result<MachineProcess, MachineError>> {
        // Nothing here waits: a future that was dropped before it was polled has started nothing.
        async move { started(&start) }.boxed()
    }
}

fn started(start: &MachineStart) -> Result<MachineProcess, MachineError> {
    if !Path::new(&start.cwd).is_dir() {
        return Err(MachineError::NoDirectory);
    }
    let path = ("PATH".into(), OsString::from("/usr/local/bin:/usr/bin:/bin"));
    let mut child = Command::new(&start.program)
        .args(&start.args)
        .current_dir(&start.cwd)
        .env_clear()
        .envs(std::iter::once(path).chain(start.env.iter().cloned()))
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => MachineError::ProgramMissing,
            io::ErrorKind::PermissionDenied => MachineError::NotExecutable,
            _ if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => MachineError::NotExecutable,
            _ => MachineError::Refused(error.to_string()),
        })?;
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let (Some(group), Some(stdin), Some(stdout), Some(stderr)) =
        (pid, child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(MachineError::Refused("a process without a number or a stream".to_owned()));
    };
    let steering = GroupSteering { group, child: Mutex::new(Some(child)), is_over: Mutex::new(false) };
    Ok(MachineProcess::streams(stdin, stdout, stderr, steering))
}

/// A process group that was started here.
struct GroupSteering {
    group: Pid,
    child: Mutex<Option<Child>>,
    /// Set while the number is still the group's, so that nobody else is ever signalled.
    is_over: Mutex<bool>,
}

impl GroupSteering {
    fn signal(&self, signal: Signal) {
        if !*self.is_over.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = kill_process_group(self.group, signal);
        }
    }
}

impl MachineSteering for GroupSteering {
    fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn ended(&self) -> MachineFuture<'_, Result<MachineEnd, String>> {
        async {
            let child = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
            let mut child = child.ok_or_else(|| "it was waited for already".to_owned())?;
            let status = child.wait().await.map_err(|error| error.to_string())?;
            // What it leaves may end by itself for a moment.
            let (waiting, grace) = (Waiting::until("its group is empty", PATIENCE), std::time::Instant::now());
            while test_kill_process_group(self.group).is_ok() {
                if grace.elapsed() > Duration::from_millis(300) {
                    self.signal(Signal::KILL);
                }
                waiting.again(|| "members").await;
            }
            *self.is_over.lock().unwrap_or_else(PoisonError::into_inner) = true;
            Ok(end_of(status))
        }
        .boxed()
    }
}

fn end_of(status: ExitStatus) -> MachineEnd {
    let signal = status.signal();
    MachineEnd { code: status.code().or(signal.map(|signal| 128 + signal)).unwrap_or(-1), signal }
}
