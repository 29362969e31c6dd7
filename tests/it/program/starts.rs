//! How programs are found and started, and what processes take over from whoever started them: nothing of it reaches an
//! agent, costs an answer, or stays.
//!
//! Laws: L7, L13, L18.

#![expect(clippy::expect_used, reason = "what goes wrong in a helper fails the test")]

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use phone_opus::internals::base::ids::UnixMillis;
use phone_opus::internals::jobs::JobState;
use phone_opus::testkit::{
    FileFate, KEY, OwnFileSystem, PATIENCE, Process, ProgramFile, Rig, Role, Run, Signal, Start, Step, Waiting,
    tried_program,
};
use serde_json::{Value, json};

fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

/// A circumstance this machine may not allow; the test says so where people look.
macro_rules! or_skip {
    ($start:expr) => {
        match $start {
            Some(start) => start,
            None => return println!("skipped: {} cannot be made here", stringify!($start)),
        }
    };
}

/// A line of `/proc/PID/FILE`.
fn proc_line(process: &Process, file: &str, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{}/{file}", process.pid.as_raw_nonzero())).expect("it is there");
    text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned()
}

/// What a process has open, by number.
fn descriptors(process: &Process) -> Vec<u32> {
    let dir = fs::read_dir(format!("/proc/{}/fd", process.pid.as_raw_nonzero())).expect("it is there");
    let mut open: Vec<u32> = dir.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    open.sort_unstable();
    open
}

/// An executable script, written by another process: one that is open for writing here while another test forks could not be
/// run.
fn script(path: &Path, body: &str) {
    let text = format!("#!/bin/sh\n{body}\n");
    let written = std::process::Command::new("/bin/sh")
        .args(["-c", "mkdir -p \"$(dirname \"$1\")\" && printf %s \"$2\" > \"$1.new\" && chmod 755 \"$1.new\" && mv \"$1.new\" \"$1\"", "sh"])
        .arg(path)
        .arg(text)
        .status();
    assert!(written.expect("a shell").success());
}

fn fifo(rig: &Rig, name: &str) -> PathBuf {
    let path = rig.path(name);
    assert!(std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
    path
}

/// The reading end of a FIFO, opened without waiting for a writer.
fn reader(path: &Path) -> fs::File {
    fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).expect("a fifo")
}

/// Whether somebody holds the other end: reading nothing is the end, being told to wait is not.
fn is_held(reader: &fs::File) -> bool {
    use std::io::Read as _;
    let mut reader = reader;
    reader.read(&mut [0; 16]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

// --- what processes take over ------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_descriptor_the_server_was_started_with_is_held_by_none_of_its_children() {
    let rig = new_rig();
    let pipe = fifo(&rig, "foreign");
    let ours = reader(&pipe);
    let mut rig = rig.with_start(Start::plain().holding(&pipe, 7));
    let mut host = rig.serve().await;
    let prompt = rig.doing(vec![
        Step::Fork(phone_opus::testkit::ForkPlace::Group),
        Step::Touch(rig.sign("begun")),
        Step::WaitForFile(rig.sign("go")),
    ]);
    let job = host.consult_in_background(&prompt).await;
    rig.wait_for_sign("begun").await;
    assert!(is_held(&ours), "the server itself has it");
    // The sign is a file that it makes, and closes a moment after it is seen.
    let waiting = Waiting::until("agents hold their streams alone", PATIENCE);
    for agent in rig.agents() {
        while descriptors(&agent) != [0, 1, 2] {
            waiting.again(|| format!("{agent:?} holds {:?}", descriptors(&agent))).await;
        }
    }
    host.signal(Signal::KILL);
    host.exit().await;
    host.silence().await;
    let waiting = Waiting::until("the pipe is closed when the server has gone", Duration::from_secs(5));
    while is_held(&ours) {
        waiting.again(|| format!("{:?}", rig.processes())).await;
    }
    rig.give_sign("go");
    let mut next = rig.serve().await;
    assert_eq!(next.job(&job).await["response"], "done");
    rig.stop_and_check_invariants([next]).await;
}

#[tokio::test]
async fn who_captures_the_output_of_a_background_consult_is_not_kept_until_its_end() {
    let rig = new_rig();
    let prompt = rig.waiting("begun", "go");
    // As `id=$(… 3>&1)` in a shell: another copy of the captured pipe goes along.
    let capture = Start::plain().after("exec 3>&1 4>&2");
    let rig = rig.with_start(capture);
    let began = Instant::now();
    let output = rig.run(&["consult", "--background", &prompt]).await;
    assert!(output.status.success(), "{output:?}");
    assert!(began.elapsed() < Duration::from_secs(30), "it was kept");
    rig.wait_for_sign("begun").await;
    assert_eq!(rig.agents().len(), 1, "the job goes on");
    rig.give_sign("go");
    rig.only_job_over().await;
    rig.check_invariants().await;
}

#[tokio::test]
async fn a_server_started_with_every_signal_blocked_or_ignored_ends_when_it_is_told_to_and_its_agent_hears() {
    for start in [Start::plain().signals_blocked(), Some(Start::plain().signals_ignored("TERM INT USR1 CHLD ALRM"))] {
        let start = or_skip!(start);
        let mut rig = new_rig().with_start(start);
        let mut host = rig.serve().await;
        let sent = host.start("consult", json!({"prompt": rig.hanging("begun")})).await;
        rig.wait_for_sign("begun").await;
        let agent = rig.the(Role::Agent).await;
        for name in ["SigBlk:", "SigIgn:"] {
            let line = proc_line(&agent, "status", name);
            // PIPE is ignored by the scripted agent itself, as every program of its language does.
            let mask = u64::from_str_radix(line.split_whitespace().last().unwrap_or_default(), 16).expect("a mask");
            // Those above 31 are no signals of anybody's but the C library's.
            assert_eq!(mask & 0x7fff_ffff & !(1 << 12), 0, "{line}");
        }
        host.signal(Signal::TERM);
        host.exit().await;
        host.silence().await;
        assert!(host.reply(sent).await.is_error(), "it is told that there is no answer");
        rig.expect_no_agent_left().await;
        rig.stop_and_check_invariants([host]).await;
    }
}

/// `pkill -USR2 phone-opus` reaches a server, its worker, its runners and what they run.
#[tokio::test]
async fn a_signal_sent_to_all_of_us_by_our_name_costs_nobody_an_answer() {
    let mut rig = new_rig();
    let mut host = rig.host_with(&["mcp", "serve", "--isolation", "process"], &rig.work());
    host.handshake("2025-11-25").await;
    let table = [
        (Signal::USR1, &[Role::Host, Role::Worker, Role::Runner][..]),
        (Signal::ALARM, &[Role::Host, Role::Worker, Role::Runner]),
        (Signal::VTALARM, &[Role::Host, Role::Worker, Role::Runner]),
        // A soft limit of processor time that was reached (`ulimit -S -t`).
        (Signal::XCPU, &[Role::Host, Role::Worker, Role::Runner]),
        // What a server heeds, meant for it and met by the others.
        (Signal::USR2, &[Role::Worker, Role::Runner]),
        (Signal::INT, &[Role::Worker, Role::Runner]),
        (Signal::QUIT, &[Role::Worker, Role::Runner]),
        (Signal::HUP, &[Role::Worker, Role::Runner]),
    ];
    for (count, (signal, roles)) in table.into_iter().enumerate() {
        let (begun, go) = (format!("begun{count}"), format!("go{count}"));
        let sent = host.start("consult", json!({"prompt": rig.waiting(&begun, &go)})).await;
        rig.wait_for_sign(&begun).await;
        let before: Vec<Process> = roles.iter().flat_map(|role| rig.signal(*role, signal)).collect();
        assert_eq!(before.len(), roles.len(), "{signal:?}: {before:?}");
        rig.give_sign(&go);
        assert_eq!(host.reply(sent).await.expect_success()["response"], "done", "{signal:?}");
        let lost: Vec<&Process> = before.iter().filter(|one| one.role != Role::Runner && !one.lives()).collect();
        assert!(lost.is_empty(), "{signal:?} ended {lost:?}");
    }
    // QUIT asks a server for its end, in order.
    host.signal(Signal::QUIT);
    assert!(host.exit().await.success());
    host.silence().await;
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn files_that_may_not_grow_cost_telemetry_and_no_connection() {
    // 50 KiB: the log reaches it after some hundred calls.
    let mut rig = new_rig().with("PHONE_OPUS_LOG", "off").with_start(Start::plain().file_blocks(100));
    let mut host = rig.serve().await;
    for _ in 0..300 {
        // The store may be refused room as well, and then says so.
        host.call("consult_jobs", json!({})).await;
    }
    host.ping().await;
    let totals = host.health().await;
    assert!(!totals.is_error(), "{}", totals.text());
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn few_descriptors_by_default_are_no_limit_of_ours_and_the_agent_has_them_as_they_were() {
    let mut rig = new_rig().with_start(Start::plain().descriptors(40, 4096)).with("PHONE_OPUS_MAX_RUNNING", "4");
    let mut host = rig.serve().await;
    let first = host.consult_in_background(&rig.waiting("begun", "go")).await;
    rig.wait_for_sign("begun").await;
    let limit = |process: &Process| {
        let line = proc_line(process, "limits", "Max open files");
        line.split_whitespace().filter_map(|word| word.parse::<u32>().ok()).take(2).collect::<Vec<_>>()
    };
    let agent = rig.the(Role::Agent).await;
    assert_eq!(limit(&agent), [40, 4096]);
    let mut jobs = vec![first];
    for number in 0..14 {
        jobs.push(host.consult_in_background(&rig.answering(&format!("{number}"))).await);
    }
    rig.give_sign("go");
    for job in &jobs {
        let reply = host.job(job).await;
        assert_eq!(reply.str("status"), "succeeded", "{}", reply.text());
    }
    rig.expect_runs(jobs.len());
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn an_accepted_job_waits_for_descriptors_instead_of_failing() {
    // The hard limit is reached by the sixth job or so; each gives back what it had.
    let mut rig = new_rig().with_start(Start::plain().descriptors(48, 48));
    let mut host = rig.serve().await;
    let mut jobs = Vec::new();
    for number in 0..12 {
        jobs.push(host.consult_in_background(&rig.answering(&format!("{number}"))).await);
    }
    for job in &jobs {
        let reply = host.job(job).await;
        assert_eq!(reply.str("status"), "succeeded", "{}", reply.text());
    }
    rig.expect_runs(jobs.len());
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn want_of_processes_and_threads_is_an_answer_or_a_wait_and_ends_no_server() {
    for most in [1, 2, 3, 4, 5, 6, 8, 10, 12, 16] {
        // What others run as the same user counts too, so that there may be even fewer.
        let start = or_skip!(Start::plain().as_nobody().and_then(|start| start.processes(most)));
        let mut rig = new_rig().with_start(start);
        let prompt = rig.answering("42");
        rig.give_away();
        let mut host = rig.host();
        let greeting = host.send_greeting("2025-11-25").await;
        if host.answer_or_end(greeting).await.is_none() {
            host.give_up_on(greeting);
            assert!(!host.exit().await.success(), "{most}: a server that cannot begin says so");
            continue;
        }
        host.notify("notifications/initialized", json!({})).await;
        let asked = host.call("consult", json!({"prompt": prompt, "wait_s": 3})).await;
        host.ping().await;
        let job = match (asked.is_error(), asked.str("status")) {
            (true, _) => {
                let word = asked.code();
                // Without a thread the directory is not looked at, which is said.
                let no_thread = word == "invalid_input" && asked.text().contains("no thread to be had");
                let refused = ["store_unavailable", "runner_spawn_failed", "agent_spawn_failed"].contains(&word);
                // A runner that began and had no thread for its store, before it started anything.
                let not_begun = word == "runner_lost" && asked.text().contains("No agent was started");
                assert!(refused || no_thread || not_begun, "{most}: {:#}", asked.0);
                None
            }
            (false, "succeeded") => None,
            (false, _) => Some(asked.str("job_id").to_owned()),
        };
        println!("{most}: {}", if asked.is_error() { asked.code() } else { asked.str("status") });
        Start::lift_processes(host.host_pid());
        // Whom it had started meanwhile has the limit of then.
        let started = [Role::Runner, Role::Waiting].into_iter().flat_map(|role| rig.all(role));
        started.for_each(|process| Start::lift_processes(process.pid));
        if let Some(job) = job {
            let reply = host.job(&job).await;
            assert_eq!(reply["response"], "42", "{most}: an accepted job waits: {}", reply.text());
        }
        let again = host.consult(&rig.answering("43")).await;
        assert_eq!(again["response"], "43", "{most}: {}", again.text());
        host.finish().await;
        rig.take_back();
        rig.check_invariants().await;
    }
}

/// A job that nothing can be started for holds no lock of any kind: another server must not take it for one that nobody looks
/// after.
#[tokio::test]
async fn a_job_that_waits_for_descriptors_is_left_to_its_server_by_the_others() {
    let mut rig = new_rig().with_start(Start::plain().descriptors(48, 48)).with("PHONE_OPUS_MAX_RUNNING", "20");
    let mut host = rig.serve().await;
    let mut sent = Vec::new();
    // Every run takes some of the server's, until there are too few for another one.
    let wanting = loop {
        let (begun, number) = (format!("begun{}", sent.len()), sent.len());
        assert!(number < 20, "there is always room");
        sent.push(host.start("consult", json!({"prompt": rig.waiting(&begun, "go")})).await);
        let since = Instant::now();
        while !rig.sign(&begun).exists() && since.elapsed() < Duration::from_secs(5) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let queued = rig.jobs().await.into_iter().find(|job| job.state == JobState::Queued);
        if let Some(job) = queued.filter(|_| !rig.sign(&begun).exists()) {
            break job;
        }
    };
    assert!(rig.all(Role::Waiting).is_empty(), "it is in want, and not in a queue");
    let waiting = Waiting::until("it was accepted longer ago than a start may take", Duration::from_secs(20));
    while UnixMillis::now().since(wanting.accepted_at) < 12_000 {
        waiting.again(String::new).await;
    }
    // Another one looks at every job when it begins.
    let mut rig = rig.with_start(Start::plain());
    let mut other = rig.serve().await;
    let reply = other.call("consult_job", json!({"job_id": wanting.id.to_string(), "wait_s": 3})).await;
    assert_eq!(reply.str("status"), "queued", "{}", reply.text());
    rig.give_sign("go");
    for sent in sent {
        assert_eq!(host.reply(sent).await.expect_success()["response"], "done");
    }
    assert_eq!(other.job(&wanting.id.to_string()).await["response"], "done");
    rig.stop_and_check_invariants([host, other]).await;
}

// --- what the agent can see --------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_runner_holds_nothing_that_is_withheld_from_its_agent() {
    let mut rig = new_rig().with("DATABASE_PASSWORD", "planted-9c41").with("CLAUDECODE", "1");
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.waiting("begun", "go")})).await;
    rig.wait_for_sign("begun").await;
    let runner = rig.the(Role::Runner).await;
    let environ = runner.environment().expect("it runs");
    for planted in [KEY, "planted-9c41", "CLAUDECODE="] {
        assert!(!environ.contains(planted), "{planted} is in the runner's environment");
    }
    rig.give_sign("go");
    host.reply(sent).await.expect_success();
    rig.stop_and_check_invariants([host]).await;
}

/// The agent is a program of the same user: what it may read of its runner and of the server is nothing.
#[tokio::test]
async fn an_agent_of_the_same_user_reads_neither_the_runners_nor_the_servers_environment() {
    let start = or_skip!(Start::plain().as_nobody());
    let mut rig = new_rig().with_start(start).with("DATABASE_PASSWORD", "planted-9c41");
    let (seen, player) = (rig.path("signs/seen"), rig.player());
    let nosy = rig.path("nosy-agent");
    let body = format!(
        "case \"$1\" in --*) ;; *)\n  host=$(sed 's/.*) //' /proc/$PPID/stat | cut -d' ' -f2)\n  for pid in $PPID $host; do \
         {{ tr '\\0' '\\n' < /proc/$pid/environ; }} >> '{0}' 2>&1; done ;; esac\nexec '{1}' \"$@\"",
        seen.display(),
        player.display()
    );
    script(&nosy, &body);
    rig.set("PHONE_OPUS_CLAUDE_BIN", nosy.display().to_string());
    rig.give_away();
    let mut host = rig.serve().await;
    assert_eq!(host.consult(&rig.answering("42")).await.expect_success()["response"], "42");
    host.finish().await;
    rig.take_back();
    let seen = fs::read_to_string(seen).expect("it looked");
    assert!(!seen.contains("planted") && !seen.contains(KEY) && !seen.contains("PHONE_OPUS"), "{seen}");
    assert_eq!(seen.matches("ermission denied").count(), 2, "{seen}");
    rig.check_invariants().await;
}

#[tokio::test]
async fn a_path_that_means_the_consults_directory_reaches_no_agent() {
    let own = |rig: &Rig| format!("{}:/opt/none:.::relative/bin:/usr/bin:/bin:", rig.path("bin").display());
    let mut rig = new_rig();
    rig.set("PATH", own(&rig));
    rig.set("XDG_CONFIG_HOME", ".config");
    // A repository with an interpreter of its own, which nobody has asked for.
    script(&rig.path("work/node-of-a-test"), &format!("touch '{}'", rig.sign("pwned").display()));
    let agent = rig.path("agent-of-a-script");
    let player = rig.player();
    script(&rig.path("bin/ok-of-a-test"), "exec \"$@\"");
    script(&agent, &format!("node-of-a-test; exec ok-of-a-test '{}' \"$@\"", player.display()));
    rig.set("PHONE_OPUS_CLAUDE_BIN", agent.display().to_string());
    let mut host = rig.serve().await;
    host.consult(&rig.answering("42")).await.expect_success();
    assert!(!rig.sign("pwned").exists(), "the repository ran code");
    let run = rig.runs().pop().expect("a run");
    let path = run.env("PATH").expect("a path").to_owned();
    assert!(path.split(':').all(|dir| dir.starts_with('/')), "{path}");
    assert_eq!(run.env("XDG_CONFIG_HOME"), None);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_variable_the_user_has_named_reaches_the_agent_and_one_that_pays_stops_the_start() {
    let mut rig = new_rig().with("CORPORATE_PROXY_TICKET", "t-1").with("NOT_NAMED", "n-1").with("VOLTA_HOME", "/v");
    rig.set("PHONE_OPUS_AGENT_ENV", "CORPORATE_PROXY_TICKET");
    let mut host = rig.serve().await;
    host.consult(&rig.answering("42")).await.expect_success();
    let run = rig.runs().pop().expect("a run");
    assert_eq!((run.env("CORPORATE_PROXY_TICKET"), run.env("VOLTA_HOME")), (Some("t-1"), Some("/v")));
    assert_eq!(run.env("NOT_NAMED"), None);
    host.finish().await;
    rig.set("PHONE_OPUS_AGENT_ENV", "ANTHROPIC_API_KEY");
    let refused = rig.run(&["mcp", "serve"]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("PHONE_OPUS_AGENT_ENV") || said.contains("agent_env"), "{said}");
    assert!(said.contains("can spend money") && said.contains("billing"), "{said}");
    rig.stop_and_check_invariants([host]).await;
}

// --- where the program is ----------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_program_a_desktops_path_does_not_name_is_found_where_installers_put_it() {
    for place in [".local/bin", ".claude/local", ".nvm/versions/node/v22.1.0/bin"] {
        let mut rig = new_rig();
        let home = rig.path("users-home");
        let file = home.join(place).join("claude");
        script(&file, &format!("exec '{}' \"$@\"", rig.player().display()));
        rig.unset("PHONE_OPUS_CLAUDE_BIN");
        rig.set("HOME", home.display().to_string());
        rig.set("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
        let mut host = rig.serve().await;
        let reply = host.consult(&rig.answering("42")).await;
        assert_eq!(reply["response"], "42", "{place}: {}", reply.text());
        rig.stop_and_check_invariants([host]).await;
    }
}

#[tokio::test]
async fn a_script_finds_its_interpreter_beside_it_and_one_without_says_what_is_missing() {
    let mut rig = new_rig();
    let dir = rig.path("version/bin");
    fs::create_dir_all(&dir).expect("a directory");
    let write = |name: &str, text: String| {
        script(&dir.join(name), "exit 0");
        let written = std::process::Command::new("/bin/sh")
            .args(["-c", "printf %s \"$2\" > \"$1\"", "sh"])
            .arg(dir.join(name))
            .arg(text)
            .status();
        assert!(written.expect("a shell").success());
    };
    write("claude", "#!/usr/bin/env node-of-a-test\n".to_owned());
    rig.set("PHONE_OPUS_CLAUDE_BIN", dir.join("claude").display().to_string());
    let mut host = rig.serve().await;
    let fault = host.consult(&rig.answering("42")).await.expect_fault("agent_missing");
    assert_eq!(fault["fault"]["retryable"], false, "{}", fault.text());
    assert!(fault.str("stderr_tail").contains("node-of-a-test"), "{}", fault.text());
    // `env` starts it with the script's name first.
    write("node-of-a-test", format!("#!/bin/sh\nshift\nexec '{}' \"$@\"\n", rig.player().display()));
    assert_eq!(host.consult(&rig.answering("42")).await.expect_success()["response"], "42");
    rig.stop_and_check_invariants([host]).await;
}

/// A file that never changes, and two versions behind it; the old one refuses what it does not know.
fn shim(rig: &mut Rig) -> PathBuf {
    let (old, new, file) = (rig.path("v-old"), rig.path("v-new"), rig.path("shim"));
    let player = rig.player().display().to_string();
    let refusing = format!(
        "case \"$1\" in --version) echo '1.0.88 (Claude Code)'; exit;; --help) echo '--output-format --verbose'; exit;; esac\n\
         for word; do case \"$word\" in --restricted|--tools|--strict-mcp-config|--setting-sources|--permission-prompts) \
         echo \"error: unknown option '$word'\" >&2; exit 1;; esac; done\nexec '{player}' \"$@\""
    );
    script(&old, &refusing);
    script(&new, &format!("exec '{player}' \"$@\""));
    script(&file, &format!("exec '{}' \"$@\"", rig.path("current").display()));
    rig.set("PHONE_OPUS_CLAUDE_BIN", file.display().to_string());
    rig.path("current")
}

fn point(current: &Path, to: &Path) {
    let beside = current.with_extension("new");
    std::os::unix::fs::symlink(to, &beside).expect("a link");
    fs::rename(&beside, current).expect("renamed");
}

fn confined(run: &Run) -> bool {
    ["--restricted", "--tools", "--strict-mcp-config", "--setting-sources"].iter().all(|flag| run.argv().contains(flag))
}

#[tokio::test]
async fn a_program_that_is_exchanged_behind_an_unchanged_file_is_run_by_what_it_can_do_now() {
    let mut rig = new_rig();
    let current = shim(&mut rig);
    let mut host = rig.serve().await;
    // From the new version down as well: it is not asked for its version then, and the old one refuses before it does anything.
    let order = [("v-new", true), ("v-old", false), ("v-new", true), ("v-old", false), ("v-new", true)];
    for (count, (version, is_confined)) in order.into_iter().enumerate() {
        point(&current, &rig.path(version));
        let reply = host.consult(&rig.answering("42")).await.expect_success();
        assert_eq!(reply["response"], "42");
        let runs = rig.runs();
        assert_eq!((runs.len(), confined(&runs[count])), (count + 1, is_confined), "{version}");
        let doctor = rig.run(&["doctor", "--json"]).await;
        let report: Value = serde_json::from_slice(&doctor.stdout).expect("a report");
        let flags = report["checks"].as_array().and_then(|all| all.iter().find(|one| one["check"] == "flags")).cloned();
        let missing = flags.expect("a check")["data"]["missing"].as_array().map_or(0, Vec::len);
        assert_eq!(missing == 0, is_confined, "doctor and consult agree about {version}");
    }
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_program_that_refuses_an_option_under_the_same_version_is_asked_again_and_run_once() {
    let mut rig = new_rig();
    let current = shim(&mut rig);
    let mut host = rig.serve().await;
    point(&current, &rig.path("v-new"));
    host.consult(&rig.answering("1")).await.expect_success();
    // Another build of the same version: only its refusal tells.
    let old = fs::read_to_string(rig.path("v-old")).expect("a script");
    let version = phone_opus::testkit::scripted_agent::VERSION.trim();
    script(
        &rig.path("v-other"),
        old.trim_start_matches("#!/bin/sh\n").trim_end().replace("1.0.88 (Claude Code)", version).as_str(),
    );
    point(&current, &rig.path("v-other"));
    let reply = host.consult(&rig.answering("2")).await.expect_success();
    assert_eq!(reply["response"], "2");
    let runs = rig.runs();
    assert_eq!((runs.len(), confined(&runs[1])), (2, false), "started once for each");
    // What cannot be helped is said, once.
    let body = "case \"$1\" in --version) echo 3;; --help) echo --output-format;; *) echo \"error: unknown option '-p'\" >&2; exit 1;; esac";
    script(&rig.path("v-none"), body);
    point(&current, &rig.path("v-none"));
    let fault = host.consult(&rig.answering("3")).await.expect_fault("agent_unsupported");
    assert!(fault.str("stderr_tail").contains("'-p'"), "{}", fault.text());
    rig.expect_runs(2);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_program_that_is_being_replaced_is_waited_for() {
    let mut rig = new_rig();
    let place = rig.path("installed");
    fs::create_dir(&place).expect("a directory");
    let program = place.join(phone_opus::testkit::scripted_agent::PROGRAM_NAME);
    fs::copy(fs::canonicalize(rig.player()).expect("a file"), &program).expect("a copy");
    rig.set("PHONE_OPUS_CLAUDE_BIN", program.display().to_string());
    let mut host = rig.serve().await;
    host.consult(&rig.answering("before")).await.expect_success();
    // Open for writing: no system runs such a file.
    let held = fs::OpenOptions::new().append(true).open(&program).expect("open");
    let sent = host.start("consult", json!({"prompt": rig.answering("written")})).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    drop(held);
    assert_eq!(host.reply(sent).await.expect_success()["response"], "written");
    // Gone for a moment, and not to be executed for another one.
    let aside = place.join("aside");
    fs::rename(&program, &aside).expect("renamed");
    let sent = host.start("consult", json!({"prompt": rig.answering("moved")})).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    fs::rename(&aside, &program).expect("renamed");
    assert_eq!(host.reply(sent).await.expect_success()["response"], "moved");
    rig.expect_runs(3);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_question_to_the_program_ends_with_the_runner_that_asked_it() {
    let mut rig = new_rig();
    let file = rig.path("hanging-agent");
    let asked = rig.sign("asked");
    script(&file, &format!("touch '{}'; sleep 300 & exec sleep 300", asked.display()));
    rig.set("PHONE_OPUS_CLAUDE_BIN", file.display().to_string());
    let mut host = rig.serve().await;
    let sent = host.start("consult", json!({"prompt": rig.answering("never")})).await;
    rig.wait_for_sign("asked").await;
    // The server first: it would settle the job, and end what is left, at once.
    host.expect_end();
    host.give_up_on(sent);
    host.signal(Signal::KILL);
    for runner in rig.runners() {
        let _ = runner.send(Signal::KILL);
    }
    host.exit().await;
    host.silence().await;
    let next = rig.serve().await;
    let waiting = Waiting::until("nothing of the question is left", Duration::from_secs(40));
    while rig.all(Role::Other).iter().any(|one| one.command.contains("sleep")) {
        waiting.again(|| format!("{:?}", rig.processes())).await;
    }
    rig.only_job_over().await;
    rig.stop_and_check_invariants([next, host]).await;
}

// --- what our own processes are started from ---------------------------------------------------------------------------

/// A world whose agent is played by another file than the program, which something is to become of.
fn rig_of_a_copy(dir: &Path) -> Rig {
    let program = dir.join("phone-opus");
    fs::copy(tried_program(env!("CARGO_BIN_EXE_phone-opus")), &program).expect("a copy");
    let rig = Rig::new(&program).with("PHONE_OPUS_ROLLOUT", "off").with("PHONE_OPUS_MAX_RUNNING", "1");
    // Its worker is ended again and again.
    let rig = rig.with("PHONE_OPUS_RESTART_INTENSITY", "60");
    let player = rig.player();
    phone_opus::testkit::places::remove(&player);
    std::os::unix::fs::symlink(tried_program(env!("CARGO_BIN_EXE_phone-opus")), player).expect("a link");
    rig
}

/// Everything a server starts: a worker, a runner, one that waits with a job and what it starts, the built-in agent.
async fn every_kind_of_child_starts(rig: &Rig, host: &mut phone_opus::testkit::TestClient, why: &str) {
    let worker = rig.worker_of(host).expect("a worker");
    worker.kill();
    let (begun, go) = (format!("begun {why}"), format!("go {why}"));
    let sent = host.start("consult", json!({"prompt": rig.waiting(&begun, &go)})).await;
    rig.wait_for_sign(&begun).await;
    assert!(rig.worker_of(host).is_some_and(|now| now.pid != worker.pid), "{why}: another worker");
    let job = host.consult_in_background(&rig.answering("after")).await;
    rig.the(Role::Waiting).await;
    rig.give_sign(&go);
    assert_eq!(host.reply(sent).await.expect_success()["response"], "done", "{why}");
    let waited = host.job(&job).await;
    assert_eq!(waited["response"], "after", "{why}: {}", waited.text());
    let built_in = host.call("consult", json!({"prompt": "where is what?", "agent": "offline"})).await;
    assert_eq!(built_in.str("status"), "succeeded", "{why}: {}", built_in.text());
}

/// What a process has open that lies in memory alone.
fn files_in_memory(process: &Process) -> usize {
    let dir = fs::read_dir(format!("/proc/{}/fd", process.pid.as_raw_nonzero())).expect("it is there");
    let names = dir.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    names.filter(|name| name.starts_with("/memfd:phone-opus")).count()
}

#[tokio::test]
async fn a_server_starts_its_children_whatever_becomes_of_its_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut rig = rig_of_a_copy(dir.path());
    let file = ProgramFile::new(rig.program());
    let mut host = rig.host_with(&["mcp", "serve", "--isolation", "process"], &rig.work());
    host.handshake("2025-11-25").await;
    // The first one that is needed starts the worker.
    assert_eq!(host.consult(&rig.answering("42")).await.expect_success()["response"], "42");
    for fate in FileFate::ALL {
        if !file.befall(fate) {
            // On Linux nobody writes to a file that is being run.
            println!("skipped: {fate:?} is not allowed here");
            continue;
        }
        every_kind_of_child_starts(&rig, &mut host, &format!("{fate:?}")).await;
        file.undo();
        every_kind_of_child_starts(&rig, &mut host, &format!("{fate:?} undone")).await;
        assert_eq!(files_in_memory(&rig.the(Role::Host).await), 0, "{fate:?}: a copy is kept as long as it is needed");
    }
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_server_starts_its_children_where_nothing_may_be_run_any_more() {
    let dir = tempfile::tempdir().expect("a directory");
    let mount = or_skip!(OwnFileSystem::at(dir.path()));
    let mut rig = rig_of_a_copy(dir.path());
    let mut host = rig.host_with(&["mcp", "serve", "--isolation", "process"], &rig.work());
    host.handshake("2025-11-25").await;
    // The first one that is needed starts the worker.
    assert_eq!(host.consult(&rig.answering("42")).await.expect_success()["response"], "42");
    assert!(mount.let_run(false), "it is ours");
    let refused = std::process::Command::new(rig.program()).status();
    assert_eq!(refused.expect_err("it may not be run").kind(), std::io::ErrorKind::PermissionDenied);
    every_kind_of_child_starts(&rig, &mut host, "noexec").await;
    rig.stop_and_check_invariants([host]).await;
}

// --- where a run cannot begin ------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_directory_that_may_not_be_entered_is_the_callers_and_not_the_programs_fault() {
    let start = or_skip!(Start::plain().as_nobody());
    let mut rig = new_rig().with_start(start);
    let closed = rig.path("work/closed");
    fs::create_dir(&closed).expect("a directory");
    rig.give_away();
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a mode");
    let mut host = rig.serve().await;
    for agent in ["claude", "offline"] {
        let arguments = json!({"prompt": "where?", "cwd": closed, "agent": agent});
        let fault = host.call("consult", arguments).await.expect_fault("invalid_input");
        assert!(fault.text().contains("`cwd`") && fault.text().contains("entered"), "{agent}: {}", fault.text());
    }
    host.finish().await;
    rig.take_back();
    rig.check_invariants().await;
}

#[tokio::test]
async fn a_nested_consult_in_the_background_is_refused_with_the_reason() {
    let mut rig = new_rig().with("PHONE_OPUS_DEPTH", "1");
    let mut host = rig.serve().await;
    let prompt = rig.answering("42");
    let fault = host.call("consult", json!({"prompt": prompt, "background": true})).await;
    let fault = fault.expect_fault("recursion_refused");
    assert!(fault.text().contains("background"), "{}", fault.text());
    assert_eq!(host.consult(&prompt).await.expect_success()["response"], "42");
    rig.expect_runs(1);
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn a_server_without_proc_starts_its_runners_all_the_same() {
    let start = or_skip!(Start::plain().without_proc());
    let mut rig = new_rig().with_start(start);
    let mut host = rig.serve().await;
    assert_eq!(host.consult(&rig.answering("42")).await.expect_success()["response"], "42");
    rig.stop_and_check_invariants([host]).await;
}

#[tokio::test]
async fn the_first_process_of_a_container_reaps_whoever_falls_to_it() {
    let start = or_skip!(Start::plain().as_first_process());
    let mut rig = new_rig().with_start(start);
    let mut host = rig.serve().await;
    let prompt = rig.doing(vec![
        Step::Fork(phone_opus::testkit::ForkPlace::Session),
        Step::Touch(rig.sign("begun")),
        Step::Hang,
    ]);
    let sent = host.start("consult", json!({"prompt": prompt})).await;
    rig.wait_for_sign("begun").await;
    rig.kill(Role::Runner);
    host.reply(sent).await.expect_fault("runner_lost");
    rig.expect_no_agent_left().await;
    let zombies = || {
        let entries = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
        let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
        stats.filter(|stat| stat.contains(") Z ") && stat.contains("(claude)")).collect::<Vec<_>>()
    };
    let waiting = Waiting::until("no agent is left as a zombie", Duration::from_secs(10));
    while !zombies().is_empty() {
        waiting.again(|| format!("{:?}", zombies())).await;
    }
    // And a signal for the first process reaches the server behind it.
    assert_eq!(host.consult(&rig.answering("42")).await.expect_success()["response"], "42");
    rig.stop_and_check_invariants([host]).await;
}
