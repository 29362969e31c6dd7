//! Real processes: shells and small tools. Each test ends by proving that nothing of its group lives.

use std::time::Duration;

use rustix::process::WaitOptions;
use tokio::time::Instant;

use super::super::invariants::{invariant_exactly_one_terminal_and_last, invariant_positions_have_no_gap};
use super::super::session::ProcessSession;
use super::super::{OutputCursor, OutputStream, ProcessEvent, ProcessLog, RING_BYTES, RING_EVENTS};
use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

fn program(path: &str, args: &[&str]) -> SpawnSpec {
    SpawnSpec {
        program: path.into(),
        args: args.iter().map(OsString::from).collect(),
        cwd: std::env::temp_dir(),
        env: vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())],
        stdin: Stdin::Null,
        adopt: Adopt::No,
        descriptors: None,
    }
}

fn shell(script: &str) -> SpawnSpec {
    program("/bin/sh", &["-c", script])
}

fn with_stdin(mut spec: SpawnSpec, stdin: Stdin) -> SpawnSpec {
    spec.stdin = stdin;
    spec
}

/// A running process, its session and what its tap gave so far.
struct Run {
    process: LocalProcess,
    tap: OutputTap,
    session: ProcessSession,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Run {
    fn start(spec: SpawnSpec) -> Self {
        Self::start_closed_by(spec, CloseBy::Backend)
    }

    fn start_closed_by(spec: SpawnSpec, close: CloseBy) -> Self {
        let session = ProcessSession::new();
        let (process, tap) = LocalExec::spawn(spec, session.clone(), close).unwrap();
        Self { process, tap, session, stdout: Vec::new(), stderr: Vec::new() }
    }

    async fn more(&mut self) -> bool {
        let next = tokio::time::timeout(PATIENCE, self.tap.next()).await;
        match next.unwrap_or_else(|_| panic!("no output after {:?}", String::from_utf8_lossy(&self.stdout))) {
            Some((OutputStream::Stdout, bytes)) => self.stdout.extend_from_slice(&bytes),
            Some((OutputStream::Stderr, bytes)) => self.stderr.extend_from_slice(&bytes),
            None => return false,
        }
        true
    }

    async fn until_stdout(&mut self, wanted: &str) {
        while !self.text().contains(wanted) {
            assert!(self.more().await, "the output ended with {:?}", self.text());
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    async fn end(&mut self) -> ProcessEnd {
        while self.more().await {}
        let end = tokio::time::timeout(PATIENCE, self.process.wait_end()).await.expect("the process ends");
        assert_group_is_empty(self.process.pid());
        end
    }

    async fn events(&self) -> Vec<ProcessEvent> {
        let events = all_events(&self.session).await;
        invariant_positions_have_no_gap(&events).unwrap();
        invariant_exactly_one_terminal_and_last(&events).unwrap();
        events
    }
}

async fn all_events(session: &ProcessSession) -> Vec<ProcessEvent> {
    let mut stream = session.subscribe(OutputCursor::start());
    let mut events = Vec::new();
    while let Some(event) = tokio::time::timeout(PATIENCE, stream.next()).await.expect("the session ends") {
        events.push(event);
    }
    assert_eq!(stream.next().await, None);
    events
}

fn assert_group_is_empty(pid: u32) {
    assert_eq!(living_members(pid).unwrap_or_default(), Vec::<u32>::new(), "members of group {pid} live");
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn output_exit_and_close_are_numbered_from_one() {
    let mut run = Run::start(shell("printf out; printf err >&2; exit 7"));
    let end = run.end().await;
    assert_eq!((end.code, end.signal, end.reaped, end.terminated, end.pipes_leaked), (7, None, 0, false, false));
    assert_eq!((run.stdout.as_slice(), run.stderr.as_slice()), (&b"out"[..], &b"err"[..]));
    let events = run.events().await;
    assert_eq!(events.len(), 4, "{events:?}");
    assert!(events.iter().any(|event| matches!(event, ProcessEvent::Exited { code: 7, .. })));
    assert_eq!(events.last(), Some(&ProcessEvent::Closed { seq: 4 }));
}

#[tokio::test]
async fn output_may_follow_the_exit_and_closed_follows_the_output() {
    // The leader can be signalled until it is reaped, so this writes after that.
    let mut run = Run::start(shell("(while kill -0 $$; do :; done 2>/dev/null; echo late) & exit 3"));
    assert_eq!(run.end().await.code, 3);
    let kinds: Vec<_> = run.events().await.iter().map(std::mem::discriminant).collect();
    let (bytes, stream) = (Bytes::new(), OutputStream::Stdout);
    let expected = [
        ProcessEvent::Exited { seq: 1, code: 3, signal: None },
        ProcessEvent::Output { seq: 2, stream, bytes },
        ProcessEvent::Closed { seq: 3 },
    ];
    assert_eq!(kinds, expected.iter().map(std::mem::discriminant).collect::<Vec<_>>());
    assert_eq!(run.text(), "late\n");
}

#[tokio::test]
async fn exit_codes_and_deaths_by_signal_are_told() {
    for (script, code, signal) in [
        ("exit 0", 0, None),
        ("exit 255", 255, None),
        ("kill -TERM $$", 143, Some(15)),
        ("kill -KILL $$", 137, Some(9)),
        ("kill -INT $$", 130, Some(2)),
    ] {
        let end = Run::start(shell(script)).end().await;
        assert_eq!((end.code, end.signal), (code, signal), "{script}");
    }
}

#[tokio::test]
async fn a_start_that_cannot_work_says_why_and_leaves_the_session_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    std::fs::write(&file, "not a program").unwrap();
    let at = |cwd: PathBuf| SpawnSpec { cwd, ..shell("true") };
    let huge = "x".repeat(4 * 1024 * 1024);
    let session = ProcessSession::new();
    let attempt = |spec| LocalExec::spawn(spec, session.clone(), CloseBy::Backend).map(|_| ()).unwrap_err();

    assert!(matches!(attempt(at(scratch.path().join("none"))), SpawnError::CwdMissing { .. }));
    assert!(matches!(attempt(at(file.clone())), SpawnError::CwdNotADirectory { .. }));
    assert!(matches!(attempt(at(file.join("below"))), SpawnError::CwdNotADirectory { .. }));
    assert!(matches!(attempt(program("/nonexistent/program", &[])), SpawnError::ProgramMissing { .. }));
    assert!(matches!(attempt(program(file.to_str().unwrap(), &[])), SpawnError::NotExecutable { .. }));
    assert!(matches!(attempt(program("/usr", &[])), SpawnError::NotExecutable { .. }));
    assert!(matches!(attempt(program("/bin/sh", &["-c", &huge])), SpawnError::ArgumentsTooLarge { .. }));
    assert!(matches!(attempt(program("/bin/sh", &["nul\0"])), SpawnError::Other { .. }));
    assert_eq!(session.last_seq(), 0);
}

#[tokio::test]
async fn the_environment_and_the_directory_are_exactly_the_given_ones() {
    let scratch = tempfile::tempdir().unwrap();
    let cwd = scratch.path().canonicalize().unwrap().join("Zürich ☂");
    std::fs::create_dir(&cwd).unwrap();
    let mut run = Run::start(SpawnSpec {
        cwd: cwd.clone(),
        env: vec![("Ä".into(), "ö ü".into()), ("B".into(), "".into())],
        ..program("/usr/bin/env", &[])
    });
    run.end().await;
    let mut lines: Vec<_> = run.text().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["B=", "Ä=ö ü"]);
    let mut run = Run::start(SpawnSpec { cwd: cwd.clone(), ..program("/bin/pwd", &["-P"]) });
    run.end().await;
    assert_eq!(run.text().trim_end(), cwd.to_str().unwrap());
}

#[tokio::test]
async fn standard_input_is_written_while_output_is_drained() {
    let input: Vec<u8> = (0..4_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut run = Run::start(with_stdin(program("/bin/cat", &[]), Stdin::Bytes(input.clone().into())));
    assert_eq!(run.end().await.code, 0);
    assert!(run.stdout == input, "{} bytes came back", run.stdout.len());
}

#[tokio::test]
async fn a_process_that_does_not_read_its_input_is_not_in_error() {
    let input = Bytes::from(vec![b'x'; 4_000_000]);
    let mut run = Run::start(with_stdin(shell("exec <&-; echo done; exit 0"), Stdin::Bytes(input)));
    assert_eq!(run.end().await.code, 0);
    assert_eq!(run.text(), "done\n");
}

#[tokio::test]
async fn piped_input_is_written_in_order_until_it_is_closed() {
    let mut run = Run::start(with_stdin(program("/bin/cat", &[]), Stdin::Piped));
    let control = run.process.control();
    let mut expected = Vec::new();
    for n in 0..40_u8 {
        let part = vec![n; 10_000];
        expected.extend_from_slice(&part);
        let write = run.process.write(part.into());
        assert_eq!(tokio::time::timeout(PATIENCE, write).await, Ok(WriteStatus::Accepted));
        while let Some((_, bytes)) = run.tap.try_next() {
            run.stdout.extend_from_slice(&bytes);
        }
    }
    control.close_stdin();
    assert_eq!(control.write(Bytes::from_static(b"late")).await, WriteStatus::StdinClosed);
    assert_eq!(run.end().await.code, 0);
    assert!(run.stdout == expected);
}

#[tokio::test]
async fn writes_to_a_process_that_is_over_or_has_no_input_are_refused() {
    let mut run = Run::start(with_stdin(shell("exit 0"), Stdin::Piped));
    run.end().await;
    let late = run.process.control();
    until("the input is closed", || late.shared.stdin.lock().unwrap().as_ref().is_none_or(|q| q.queue.is_closed()))
        .await;
    assert_eq!(late.write(Bytes::from_static(b"x")).await, WriteStatus::StdinClosed);
    let mut run = Run::start(shell("exit 0"));
    assert_eq!(run.process.write(Bytes::from_static(b"x")).await, WriteStatus::StdinClosed);
    run.end().await;
}

#[tokio::test]
async fn a_writer_that_waits_for_room_is_released_when_the_process_ends() {
    let mut run = Run::start(with_stdin(shell("echo ready; exec sleep 1000"), Stdin::Piped));
    run.until_stdout("ready").await;
    let control = run.process.control();
    let chunk = Bytes::from(vec![b'x'; STDIN_BYTES]);
    assert_eq!(control.write(chunk.clone()).await, WriteStatus::Accepted);
    let waiting = tokio::spawn(async move { control.write(chunk).await });
    run.process.terminate();
    run.end().await;
    assert_eq!(tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap(), WriteStatus::StdinClosed);
}

#[tokio::test]
async fn interrupt_reaches_the_whole_group() {
    // The leader's trap runs once its child has left, so one signal to the group gives both lines.
    let script = "trap 'echo leader; exit 9' INT; \
                  sh -c 'trap \"echo child; exit 0\" INT; echo ready; while :; do sleep 0.02; done'";
    let mut run = Run::start(shell(script));
    run.until_stdout("ready").await;
    run.process.interrupt();
    let end = run.end().await;
    assert_eq!((end.code, end.terminated), (9, false));
    assert!(run.text().ends_with("child\nleader\n"), "{}", run.text());
}

#[tokio::test]
async fn terminate_asks_first_and_kills_what_does_not_listen() {
    // A leader that leaves when asked.
    let mut run = Run::start(shell("trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.02; done"));
    run.until_stdout("ready").await;
    assert!(run.process.terminate() && run.process.terminate());
    let end = run.end().await;
    assert_eq!((end.code, end.terminated, end.reaped), (5, true, 0));
    assert!(run.text().ends_with("bye\n"));
    assert!(!run.process.terminate(), "there is nothing left to end");

    // A group that ignores TERM.
    let mut run = Run::start(shell("trap '' TERM; sleep 1000 & sleep 1000 & echo ready; wait"));
    run.until_stdout("ready").await;
    let asked = Instant::now();
    run.process.terminate();
    let end = run.end().await;
    assert_eq!((end.code, end.signal, end.terminated), (137, Some(9), true));
    assert!(asked.elapsed() >= GRACE, "killed after {:?}, before its grace was over", asked.elapsed());
    run.events().await;
}

#[tokio::test]
async fn members_that_outlive_the_leader_are_killed_and_counted() {
    let mut run = Run::start(shell("sleep 1000 & sleep 1000 & exit 0"));
    let end = run.end().await;
    assert_eq!((end.code, end.terminated, end.pipes_leaked), (0, false, false));
    assert_eq!(end.reaped, if cfg!(target_os = "linux") { 2 } else { 1 });
}

#[tokio::test]
async fn terminate_works_after_the_exit_of_the_leader() {
    let member = "sh -c 'trap \"echo asked; exit 0\" TERM; echo ready; while :; do sleep 0.02; done'";
    let mut run = Run::start(with_stdin(shell(&format!("{member} & read line; exit 4")), Stdin::Piped));
    run.until_stdout("ready").await;
    run.process.write(Bytes::from_static(b"leave\n")).await;
    let mut events = run.session.subscribe(OutputCursor::start());
    while !matches!(events.next().await, Some(ProcessEvent::Exited { code: 4, .. })) {}
    assert!(run.process.terminate());
    let end = run.end().await;
    assert_eq!((end.code, end.terminated), (4, true));
    assert!(run.text().ends_with("asked\n"), "{}", run.text());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_descendant_that_left_the_group_can_hold_the_pipes_for_a_bounded_time_only() {
    let mut run = Run::start(shell("setsid sh -c 'echo $$; exec sleep 1000' & sleep 0.1"));
    run.until_stdout("\n").await;
    let escaped: u32 = run.text().trim().parse().unwrap();
    let end = run.end().await;
    assert!(end.pipes_leaked);
    assert_eq!(end.code, 0);
    run.events().await;
    rustix::process::kill_process(Pid::from_raw(escaped.cast_signed()).unwrap(), Signal::KILL).unwrap();
    until("the escaped process is gone", || start_time(escaped) == 0).await;
}

#[tokio::test]
async fn the_owner_closes_when_it_is_asked_to() {
    let mut run = Run::start_closed_by(shell("exit 0"), CloseBy::Owner);
    run.end().await;
    assert!(!run.session.has_ended());
    run.session.publish_closed().unwrap();
    assert_eq!(run.events().await.last(), Some(&ProcessEvent::Closed { seq: 2 }));
}

#[tokio::test]
async fn a_hundred_megabytes_arrive_whole_and_are_never_held_at_once() {
    const SIZE: usize = 100_000_000;
    let mut run = Run::start(shell(&format!("yes 0123456 | head -c {SIZE}")));
    let (mut received, mut chunks) = (0_usize, 0_u64);
    while let Some((stream, bytes)) = tokio::time::timeout(PATIENCE, run.tap.next()).await.expect("output") {
        assert_eq!(stream, OutputStream::Stdout);
        for (offset, byte) in bytes.iter().enumerate() {
            assert!(*byte == b"0123456\n"[(received + offset) % 8], "byte {} is wrong", received + offset);
        }
        received += bytes.len();
        chunks += 1;
        // What the process has written is what was read, what the tap holds, one chunk on its way, and the exit.
        let ahead = run.session.last_seq() - chunks;
        assert!(ahead <= TAP_CHUNKS as u64 + 2, "{ahead} chunks ahead of the reader");
    }
    assert_eq!(received, SIZE);
    assert_eq!(run.end().await.code, 0);
    // The session kept the tail and says what it lacks.
    let events = run.events().await;
    assert!(matches!(events[0], ProcessEvent::Lagged { from: 1, .. }));
    assert!(events.len() <= RING_EVENTS + 2);
    let (_, bytes) = run.session.look(ProcessLog::retained);
    assert!(bytes <= RING_BYTES);
}

#[tokio::test]
async fn a_dropped_tap_frees_the_process() {
    let Run { mut process, tap, session, .. } = Run::start(shell("yes | head -c 10000000; exit 6"));
    drop(tap);
    let end = tokio::time::timeout(PATIENCE, process.wait_end()).await.expect("the process ends");
    assert_eq!(end.code, 6);
    assert_group_is_empty(process.pid());
    assert!(session.has_ended());
}

#[tokio::test]
async fn a_slow_subscriber_is_told_what_it_missed_and_gets_the_end() {
    let mut run = Run::start(shell("yes | head -c 5000000"));
    let mut slow = run.session.subscribe(OutputCursor::start());
    let first = slow.next().await.unwrap();
    assert!(matches!(first, ProcessEvent::Output { seq: 1, .. }));
    run.end().await;
    let mut events = vec![first];
    while let Some(event) = slow.next().await {
        events.push(event);
    }
    invariant_positions_have_no_gap(&events).unwrap();
    invariant_exactly_one_terminal_and_last(&events).unwrap();
    assert!(events.iter().any(|event| matches!(event, ProcessEvent::Lagged { from: 2, .. })));
}

#[tokio::test]
async fn reads_wait_for_output_and_not_beyond_the_end() {
    let mut run = Run::start(with_stdin(shell("read line; echo \"got $line\"; exit 0"), Stdin::Piped));
    let lapsed = run.session.read(0, None, Duration::from_millis(5)).await;
    assert!(lapsed.chunks.is_empty() && !lapsed.closed);
    let session = run.session.clone();
    let waiting = tokio::spawn(async move { session.read(0, None, PATIENCE).await });
    run.process.write(Bytes::from_static(b"hello\n")).await;
    let result = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert_eq!(result.chunks[0].bytes.as_ref(), b"got hello\n");
    run.end().await;
    let after = tokio::time::timeout(PATIENCE, run.session.read(99, None, Duration::MAX)).await.unwrap();
    assert!(after.closed);
}

#[tokio::test]
async fn dropping_the_process_kills_its_group() {
    let mut run = Run::start(shell("trap '' TERM; sleep 1000 & echo ready; sleep 1000"));
    run.until_stdout("ready").await;
    let Run { process, tap, session, .. } = run;
    let pid = process.pid();
    drop(process);
    drop(tap);
    until("the group is empty", || living_members(pid).is_none_or(|all| all.is_empty())).await;
    let events = all_events(&session).await;
    invariant_exactly_one_terminal_and_last(&events).unwrap();
}

#[test]
fn dropping_the_runtime_kills_the_group_and_fails_the_session() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (run, session) = runtime.block_on(async {
        let mut run = Run::start(shell("trap '' TERM; sleep 1000 & echo ready; sleep 1000"));
        run.until_stdout("ready").await;
        let session = run.session.clone();
        (run, session)
    });
    drop(runtime);
    let check = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    check.block_on(async {
        until("the group is empty", || living_members(run.process.pid()).is_none_or(|all| all.is_empty())).await;
        let events = all_events(&session).await;
        assert!(matches!(events.last(), Some(ProcessEvent::Failed { .. })));
    });
}

#[cfg(target_os = "linux")]
#[test]
fn the_process_is_asked_to_end_when_its_thread_dies_without_a_word() {
    let leader = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let run = runtime.block_on(async {
            let mut run = Run::start(program("/bin/sh", &["-c", "echo ready; exec sleep 1000"]));
            run.until_stdout("ready").await;
            run
        });
        let leader = run.process.control.shared.group.leader;
        // As after SIGKILL: no destructor runs.
        std::mem::forget(run);
        std::mem::forget(runtime);
        leader
    })
    .join()
    .unwrap();
    let status = rustix::process::waitpid(Some(leader), WaitOptions::empty()).unwrap().unwrap().1;
    assert_eq!(status.terminating_signal(), Some(15));
    assert_group_is_empty(leader.as_raw_nonzero().get().cast_unsigned());
}

#[test]
fn what_may_be_secret_is_not_in_the_debug_text() {
    let mut spec = with_stdin(shell("true"), Stdin::Bytes(Bytes::from_static(b"prompt")));
    spec.env.push(("API_KEY".into(), "hush".into()));
    let text = format!("{spec:?}");
    assert!(text.contains("API_KEY") && text.contains("6 bytes"), "{text}");
    assert!(!text.contains("hush") && !text.contains("prompt"), "{text}");
}

#[tokio::test]
async fn the_start_time_tells_two_processes_apart_from_their_pids() {
    let mut run = Run::start(shell("read line"));
    assert_eq!(run.process.start_time(), start_time(run.process.pid()));
    assert!(run.process.start_time() > 0 || !cfg!(target_os = "linux"));
    run.process.terminate();
    run.end().await;
    until("the process is gone", || start_time(run.process.pid()) != run.process.start_time()).await;
}

#[tokio::test]
async fn fifty_processes_at_once_end_whole_and_leave_nothing() {
    let mut runs: Vec<Run> = (0..50).map(|n| Run::start(shell(&format!("echo {n}; sleep 1000 & exit {n}")))).collect();
    for (n, run) in runs.iter_mut().enumerate() {
        let end = run.end().await;
        assert_eq!(end.code, i32::try_from(n).unwrap());
        assert_eq!(run.text(), format!("{n}\n"));
    }
}
