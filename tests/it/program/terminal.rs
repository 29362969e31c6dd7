//! What a person sees: progress, tables, Markdown, colours, a pager, what Ctrl-C leaves behind; and what a program gets instead.
//!
//! Laws: L13.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::path::Path;
use std::process::{Output, Stdio};

use phone_opus::internals::jobs::JobState;
use phone_opus::testkit::outputs::Keyboard;
use phone_opus::testkit::{ForkPlace, KEY, Rig, Script, Step, tried_program, until};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

fn new_rig() -> Rig {
    let mut rig = Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")));
    rig.set("PHONE_OPUS_LOG", "error");
    rig.set("TERM", "xterm-256color");
    rig
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn parsed(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON and nothing else on stdout")
}

/// What a command leaves on a terminal of so many columns.
async fn on_columns(rig: &Rig, arguments: &[&str], columns: u16) -> String {
    let (_, seen) = rig.begin_on_a_terminal(arguments, Some((columns, 200)), Keyboard::Away).ended().await;
    // A terminal ends its own lines with both.
    seen.replace("\r\n", "\n")
}

/// A job that is over.
async fn asked(rig: &Rig, prompt: &str) -> String {
    let output = rig.run(&["consult", "--json", prompt]).await;
    parsed(&output)["job_id"].as_str().expect("a job").to_owned()
}

/// Columns of a line without wide characters.
fn width(line: &str) -> usize {
    line.chars().count()
}

/// What is there without the colours.
fn plain(seen: &str) -> String {
    let mut parts = seen.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |mut all, part| {
        let (codes, rest) = part.split_once('m').expect("a colour");
        assert!(codes.chars().all(|c| c.is_ascii_digit() || c == ';'), "no colour: {codes:?}");
        all.push_str(rest);
        all
    })
}

#[tokio::test]
async fn a_listing_fits_the_terminal_and_a_program_gets_rows_with_tabs() {
    let mut rig = new_rig();
    let job = asked(&rig, &rig.answering("forty-two")).await;
    let output = rig.run(&["consult", "--background", "--json", &rig.answering("unread")]).await;
    let unread = parsed(&output)["job_id"].as_str().expect("a job").to_owned();
    rig.run(&["jobs", "tail", &unread]).await;
    for columns in [80, 100, 120] {
        let seen = on_columns(&rig, &["jobs", "list"], columns).await;
        assert!(seen.contains("\u{1b}["), "a terminal has colours: {seen:?}");
        let rows: Vec<String> = plain(&seen).lines().map(str::to_owned).collect();
        assert_eq!(rows.len(), 3, "{rows:#?}");
        assert!(rows[0].starts_with("ID") && rows[0].contains("STATUS") && rows[0].contains("PROMPT"), "{rows:#?}");
        assert!(rows[1].starts_with(&unread[..8]) && rows[1].contains("unread"), "{rows:#?}");
        assert!(rows[2].starts_with(&job[..8]) && rows[2].contains("ago") || rows[2].contains("just now"), "{rows:#?}");
        for row in &rows {
            assert!(width(row) <= usize::from(columns), "{columns}: {row:?}");
        }
        assert!(rows[1].ends_with('…'), "a long prompt is cut: {rows:#?}");
        println!("{}", rows.join("\n"));
    }
    rig.set("NO_COLOR", "1");
    let seen = on_columns(&rig, &["jobs", "list"], 80).await;
    assert!(!seen.contains('\u{1b}'), "{seen:?}");
    let listed = stdout(&rig.run(&["jobs", "list"]).await);
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows.iter().map(|row| row[0]).collect::<Vec<_>>(), [&unread, &job]);
    assert!(rows.iter().all(|row| row.len() == 6 && row[1] == "succeeded" && row[4].ends_with('Z')), "{rows:#?}");
    rig.set("NO_COLOR", "");
    rig.set("CLICOLOR_FORCE", "1");
    let listed = stdout(&rig.run(&["jobs", "list"]).await);
    assert!(listed.contains("\u{1b}[32msucceeded\u{1b}[0m"), "{listed:?}");
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn the_agents_fit_the_terminal_and_a_program_gets_rows_with_tabs() {
    let mut rig = new_rig();
    rig.set("NO_COLOR", "1");
    rig.set("PHONE_OPUS_CODEX_BIN", "/no/such/program");
    for columns in [80, 100, 120] {
        let seen = on_columns(&rig, &["agents"], columns).await;
        let rows: Vec<&str> = seen.lines().collect();
        assert!(rows[0].starts_with("AGENT") && rows[0].contains("READS"), "{rows:#?}");
        assert!(rows.iter().all(|row| width(row) <= usize::from(columns)), "{rows:#?}");
        assert!(rows.iter().any(|row| row.starts_with("claude ") && row.contains("found   Claude Code")), "{rows:#?}");
        assert!(seen.contains("claude answers when none is named.") && seen.contains("codex: "), "{rows:#?}");
    }
    let listed = stdout(&rig.run(&["agents"]).await);
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split('\t').collect()).collect();
    assert!(rows.iter().all(|row| row.len() == 5), "{rows:#?}");
    assert!(rows[1][..3] == ["codex", "none", "Codex"] && rows[1][3].contains("/no/such/program"), "{rows:#?}");
    let told = parsed(&rig.run(&["agents", "--json"]).await);
    assert_eq!((&told["version"], &told["build"]), (&json!(1), &json!(env!("CARGO_PKG_VERSION"))));
    let codes: Vec<&str> =
        told["agents"].as_array().expect("agents").iter().filter_map(|a| a["status"].as_str()).collect();
    assert_eq!(codes[..2], ["found", "agent_missing"]);
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_consult_shows_its_job_at_once_then_what_the_agent_does_and_says_then_the_answer_alone() {
    let mut rig = new_rig();
    let prompt = rig.doing(vec![
        Step::Text("first **thoughts**\u{1b}[2J".to_owned()),
        Step::ToolUse("Grep".to_owned()),
        Step::Touch(rig.sign("looked")),
        Step::WaitForFile(rig.sign("go")),
    ]);
    let asking = rig.begin_on_a_terminal(&["consult", &prompt], Some((80, 24)), Keyboard::Away);
    let seen = until("it shows what the agent does", async || {
        let seen = asking.seen();
        (seen.contains("first **thoughts**") && seen.contains("thinking")).then_some(seen)
    })
    .await;
    let job = rig.jobs().await[0].id.to_string();
    assert!(seen.starts_with(&format!("job {} asks claude; Ctrl-C ends it\r\n", &job[..8])), "{seen:?}");
    assert!(seen.contains("⠋ 0 s · ") || seen.contains(" s · "), "{seen:?}");
    assert!(!seen.contains("\u{1b}[2J"), "what the agent says is not obeyed: {seen:?}");
    rig.give_sign("go");
    let (status, seen) = asking.ended().await;
    assert_eq!(status.code(), Some(0), "{seen:?}");
    let (progress, answer) = seen.rsplit_once("\u{1b}[J").expect("the view is taken away");
    assert!(progress.contains("job "), "{progress:?}");
    let answer = plain(&answer.replace("\r\n", "\n"));
    assert!(answer.starts_with("done\n\n[job "), "{answer:?}");
    assert!(answer.lines().all(|line| width(line) <= 80), "{answer:?}");
    rig.set("TERM", "dumb");
    let seen = on_columns(&rig, &["consult", &rig.answering("forty-two")], 80).await;
    assert!(seen.contains("s] ") && !seen.contains('\u{1b}'), "a terminal that cannot go back has lines: {seen:?}");
    let seen = on_columns(&rig, &["consult", "--quiet", &rig.answering("forty-two")], 80).await;
    assert!(seen.starts_with("forty-two\n"), "{seen:?}");
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn ctrl_c_ends_a_consult_and_says_what_is_known_and_how_to_read_on() {
    let rig = new_rig();
    let said = "half of an answer";
    let prompt = rig.doing(vec![Step::Text(said.to_owned()), Step::Touch(rig.sign("said")), Step::Hang]);
    let asking = rig.begin_on_a_terminal(&["consult", &prompt], Some((80, 24)), Keyboard::Away);
    rig.wait_for_sign("said").await;
    until("it is shown", async || asking.seen().contains(said).then_some(())).await;
    asking.signal(Signal::INT);
    let (status, seen) = asking.ended().await;
    assert_eq!(status.code(), Some(3), "{seen:?}");
    let job = rig.only_job_over().await;
    let (id, session) = (job.id.to_string(), job.outcome.and_then(|outcome| outcome.session_id).expect("a session"));
    let (_, after) = seen.split_once(&format!("phone-opus: cancelled job {id}")).expect("the job is named");
    let after = plain(after).replace("\r\n", " ");
    for known in [said, &session, &format!("phone-opus jobs show {}", &id[..8])] {
        assert!(after.contains(known), "{known:?} in {after:?}");
    }
    assert!(job.read_at.is_some(), "whoever ended it knows");
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn ctrl_c_ends_all_that_were_asked_at_once_and_names_each_of_their_jobs() {
    // Both are at work, or one of them waits for its place.
    for places in ["2", "1"] {
        let mut rig = new_rig();
        rig.set("PHONE_OPUS_MAX_RUNNING", places);
        let hangs = |agent: &str| {
            let steps = vec![
                Step::Text(format!("half of what {agent} says")),
                Step::Fork(ForkPlace::Group),
                Step::Touch(rig.sign(agent)),
                Step::Hang,
            ];
            Script { steps, ..Script::default() }
        };
        let called = [("--restricted", "claude"), ("read-only", "codex")];
        let called = called.map(|(word, agent)| (word.to_owned(), hangs(agent))).into();
        let prompt = rig.prompt(Script { when_called_with: called, ..Script::default() });
        let words = ["consult", "--agents", "claude,codex", &prompt];
        let asking = rig.begin_on_a_terminal(&words, Some((80, 24)), Keyboard::Away);
        rig.wait_for_sign("claude").await;
        if places == "2" {
            rig.wait_for_sign("codex").await;
        }
        until("both are shown", async || {
            let seen = asking.seen();
            (seen.contains("asks claude; Ctrl-C ends all of them") && seen.contains("asks codex")).then_some(())
        })
        .await;
        asking.signal(Signal::INT);
        let (status, seen) = asking.ended().await;
        assert_eq!(status.code(), Some(3), "{seen:?}");
        let (_, after) = seen.split_once("phone-opus: cancelled").expect("it says so");
        let after = plain(after).replace("\r\n", " ");
        let jobs = rig.jobs().await;
        assert_eq!(jobs.len(), 2);
        for job in jobs {
            assert_eq!(job.state, JobState::Cancelled, "{}", job.request.agent);
            assert!(after.contains(&job.id.to_string()), "{} of {} in {after:?}", job.id, job.request.agent);
            assert!(job.read_at.is_some(), "whoever ended it knows");
        }
        rig.expect_no_agent_left().await;
        rig.stop_and_check_invariants([]).await;
    }
}

#[tokio::test]
async fn a_program_that_interrupts_a_consult_gets_what_is_known_as_json() {
    let rig = new_rig();
    let prompt = rig.doing(vec![Step::Text("half".to_owned()), Step::Touch(rig.sign("said")), Step::Hang]);
    let mut command = rig.command(&["consult", "--json", &prompt]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    rig.wait_for_sign("said").await;
    let pid = child.id().and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)).expect("a pid");
    rustix::process::kill_process(pid, Signal::INT).expect("interrupted");
    let output = child.wait_with_output().await.expect("it ends");
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let told = parsed(&output);
    assert_eq!((&told["status"], &told["version"]), (&json!("cancelled"), &json!(1)), "{told:#}");
    rig.stop_and_check_invariants([]).await;
}

/// The prompt of the newest job, after a command with this on its stdin.
async fn with_stdin(rig: &Rig, arguments: &[&str], stdin: Stdio, write: Option<Vec<u8>>) -> (Output, Option<String>) {
    let mut command = rig.command(arguments);
    let mut child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    if let (Some(mut to), Some(bytes)) = (child.stdin.take(), write) {
        // A command that refuses it does not read to the end.
        let _ = to.write_all(&bytes).await;
    }
    let output = child.wait_with_output().await.expect("it ends");
    let mut jobs = rig.jobs().await;
    jobs.sort_by_key(|job| job.sequence);
    (output, jobs.pop().map(|job| job.request.prompt))
}

#[tokio::test]
async fn what_is_piped_into_a_consult_stands_under_a_heading_in_its_prompt() {
    let rig = new_rig();
    let prompt = rig.answering("seen");
    let file = rig.path("notes.txt");
    std::fs::write(&file, "from a file\n").expect("written");
    let file = || Stdio::from(std::fs::File::open(&file).expect("opened"));
    let under = |text: &str| format!("{prompt}\n\n## Standard input\n\n{text}");
    let piped = || Stdio::piped();
    let with: [(&[&str], _, _, _); 6] = [
        (&["consult", &prompt], piped(), Some("from a pipe\n".into()), under("from a pipe\n")),
        (&["consult", &prompt], file(), None, under("from a file\n")),
        (&["consult", &prompt], piped(), Some(b"no \xff text".to_vec()), under("no \u{fffd} text")),
        (&["consult", &prompt], piped(), Some(" \n".into()), prompt.clone()),
        (&["consult", "--no-stdin", &prompt], piped(), Some("left out".into()), prompt.clone()),
        (&["consult", "-"], piped(), Some(prompt.clone().into_bytes()), prompt.clone()),
    ];
    for (arguments, stdin, write, want) in with {
        let (output, asked) = with_stdin(&rig, arguments, stdin, write).await;
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        assert_eq!(asked.as_deref(), Some(&*want), "{arguments:?}");
        assert!(!stderr(&output).contains("stdin"), "{}", stderr(&output));
    }
    let jobs = rig.jobs().await.len();
    let (output, _) = with_stdin(&rig, &["consult", &prompt], Stdio::piped(), Some(vec![b'x'; 1_100_000])).await;
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("1000000") && stderr(&output).contains("--no-stdin"), "{}", stderr(&output));
    assert_eq!(rig.jobs().await.len(), jobs, "nothing is asked with half of it");
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_pipe_that_nobody_writes_into_is_waited_for_briefly_and_said() {
    let rig = new_rig();
    let prompt = rig.answering("forty-two");
    let mut command = rig.command(&["consult", &prompt]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    // Kept open until the command is over.
    let open = child.stdin.take();
    let output = child.wait_with_output().await.expect("it ends");
    drop(open);
    assert_eq!((output.status.code(), &*stdout(&output)), (Some(0), "forty-two\n"), "{}", stderr(&output));
    assert!(stderr(&output).contains("nothing came on stdin in 3 s"), "{}", stderr(&output));
    assert_eq!(rig.only_job_over().await.request.prompt, prompt);
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_job_is_named_by_how_its_id_begins_or_as_the_last_one() {
    let rig = new_rig();
    let output = rig.run(&["jobs", "show", "last"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no job was asked in this directory"), "{}", stderr(&output));
    let first = asked(&rig, &rig.answering("the first")).await;
    let second = asked(&rig, &rig.answering("the second")).await;
    for (word, answer) in [
        (&first[..], "the first"),
        (&first[..13], "the first"),
        (&first.to_uppercase(), "the first"),
        (&second[..8].to_uppercase(), "the second"),
        ("last", "the second"),
        ("LAST", "the second"),
    ] {
        let output = rig.run(&["jobs", "show", word]).await;
        assert_eq!(output.status.code(), Some(0), "{word}: {}", stderr(&output));
        assert!(stdout(&output).starts_with(answer), "{word}: {}", stdout(&output));
    }
    let tailed = stdout(&rig.run(&["jobs", "tail", "last"]).await);
    assert!(tailed.contains("introduces itself") && tailed.contains("has answered"), "{tailed}");
    let told = parsed(&rig.run(&["jobs", "cancel", "--json", &first[..8]]).await);
    assert_eq!(told, json!({"job_id": first, "status": "succeeded", "changed": false, "version": 1}));
    let unknown = if first.starts_with("0000") || second.starts_with("0000") { "1111" } else { "0000" };
    let output = rig.run(&["jobs", "show", unknown]).await;
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("no job's id begins with"), "{}", stderr(&output));
    let output = rig.run(&["jobs", "show", &first[..3]]).await;
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_job_that_its_own_user_cancels_is_no_news() {
    let rig = new_rig();
    let output = rig.run(&["consult", "--background", "--json", &rig.hanging("begun")]).await;
    let job = parsed(&output)["job_id"].as_str().expect("a job").to_owned();
    rig.wait_for_sign("begun").await;
    let told = parsed(&rig.run(&["jobs", "cancel", "--json", "last"]).await);
    assert_eq!((&told["job_id"], &told["status"], &told["changed"]), (&json!(job), &json!("cancelled"), &json!(true)));
    assert!(rig.only_job_over().await.read_at.is_some());
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn an_answer_is_laid_out_on_a_terminal_and_as_it_was_written_in_a_pipe() {
    let mut rig = new_rig();
    let answer = format!(
        "# Found\n\n- **one** `x`\n\n{}\n\n| a | b |\n|---|---|\n| 1 | {} |",
        "word ".repeat(60).trim_end(),
        "cell ".repeat(40).trim_end()
    );
    let job = asked(&rig, &rig.answering(&answer)).await;
    for columns in [80, 100, 120] {
        let seen = on_columns(&rig, &["jobs", "show", &job], columns).await;
        assert!(seen.contains("\u{1b}[1mone\u{1b}[0m"), "{seen:?}");
        let seen = plain(&seen);
        println!("{seen}");
        assert!(seen.starts_with("Found\n\n• one x\n\nword word"), "{seen:?}");
        assert!(!seen.contains("**") && !seen.contains("|---"), "{seen:?}");
        assert!(seen.lines().all(|line| width(line) <= usize::from(columns)), "{columns}: {seen}");
        assert_eq!(seen.matches("word").count(), 60, "no word is lost");
        assert_eq!(seen.matches("cell").count(), 40, "no word is lost");
    }
    let piped = stdout(&rig.run(&["jobs", "show", &job]).await);
    assert!(piped.starts_with(&answer), "{piped}");
    rig.set("NO_COLOR", "1");
    assert!(!on_columns(&rig, &["jobs", "show", &job], 80).await.contains('\u{1b}'));
    rig.stop_and_check_invariants([]).await;
}

/// A pager that keeps what it is given.
fn keeping_pager(rig: &Rig) -> (String, std::path::PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let (program, kept) = (rig.path("pager"), rig.path("kept"));
    std::fs::write(&program, format!("#!/bin/sh\ncat > '{}'\n", kept.display())).expect("written");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).expect("made a program");
    (program.display().to_string(), kept)
}

fn read(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let _ = std::fs::remove_file(path);
    text
}

#[tokio::test]
async fn a_long_answer_goes_through_the_pager_of_a_terminal_and_no_shell_is_asked() {
    let mut rig = new_rig();
    rig.set("NO_COLOR", "1");
    let long: String = (0..60).map(|n| format!("line {n}\n")).collect();
    let (pager, kept) = keeping_pager(&rig);
    rig.set("PAGER", &*pager);
    let job = asked(&rig, &rig.answering(&long)).await;
    let shown = async |rig: &Rig, arguments: &[&str]| {
        rig.begin_on_a_terminal(arguments, Some((80, 24)), Keyboard::Away).ended().await.1
    };
    let seen = shown(&rig, &["jobs", "show", &job]).await;
    assert!(!seen.contains("line 7"), "{seen:?}");
    assert!(read(&kept).contains("line 7\nline 8\n"));
    let seen = shown(&rig, &["consult", "--quiet", &rig.answering(&long)]).await;
    assert!(!seen.contains("line 7") && seen.contains("succeeded"), "facts are beside the answer: {seen:?}");
    assert!(read(&kept).contains("line 59"));
    for arguments in [&["jobs", "show", "--no-pager", &job][..], &["jobs", "show", "--json", &job]] {
        assert!(shown(&rig, arguments).await.contains("line 7"), "{arguments:?}");
        assert_eq!(read(&kept), "", "{arguments:?}");
    }
    rig.run(&["jobs", "show", &job]).await;
    assert_eq!(read(&kept), "", "no pager in a pipe");
    rig.set("PAGER", format!("{pager}; touch {}", rig.path("evil").display()));
    let seen = shown(&rig, &["jobs", "show", &job]).await;
    assert!(seen.contains("line 7") && seen.contains("needs a shell"), "{seen:?}");
    assert!(!rig.path("evil").exists() && !kept.exists());
    rig.set("PAGER", "/no/such/pager");
    assert!(shown(&rig, &["jobs", "show", &job]).await.contains("line 7"), "the text is shown all the same");
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn what_a_program_reads_has_a_version_and_a_job_has_a_status() {
    let rig = new_rig();
    let job = asked(&rig, &rig.answering("forty-two")).await;
    let prompt = rig.answering("again");
    for (arguments, place) in [
        (&["consult", "--json", &prompt][..], "/status"),
        (&["consult", "--json", "--background", &prompt], "/status"),
        (&["jobs", "list", "--json"], "/jobs/0/status"),
        (&["jobs", "show", "--json", &job], "/status"),
        (&["jobs", "show", "--json", "--full", &job], "/status"),
        (&["jobs", "cancel", "--json", &job], "/status"),
        (&["jobs", "limits", "--json"], "/limits"),
        (&["jobs", "prune", "--json", "--older-than", "9"], "/forgotten"),
        (&["status", "--json"], "/jobs"),
        (&["doctor", "--json"], "/build"),
        (&["doctor", "--live", "--yes", "--json", "--agent", "offline"], "/checks/0/check"),
        (&["doctor", "--fix", "--dry-run", "--json"], "/fixes"),
        (&["agents", "--json"], "/agents/0/status"),
        (&["config", "show", "--json"], "/settings/0/key"),
        (&["faults", "list", "--json"], "/points/0/point"),
        (&["selftest", "--list", "--json"], "/rows"),
        (&["daemon", "status", "--json"], "/running"),
        (&["daemon", "install", "--json"], "/files"),
    ] {
        let told = parsed(&rig.run(arguments).await);
        assert_eq!(told["version"], json!(1), "{arguments:?}: {told:#}");
        assert!(told.pointer(place).is_some(), "{arguments:?}: {place} in {told:#}");
    }
    let tailed = stdout(&rig.run(&["jobs", "tail", "--json", &job]).await);
    for line in tailed.lines() {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        assert_eq!(line["version"], json!(1), "{line}");
    }
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn every_setting_is_shown_with_where_it_is_from_and_no_secret() {
    let mut rig = new_rig();
    rig.configure("max_running = 2\nstall_s = 100\n[clients.my-editor]\nwait_s = 30\n");
    rig.set("PHONE_OPUS_BILLING", "api_key");
    rig.set("NO_COLOR", "1");
    std::fs::write(rig.work().join(".phone-opus.toml"), "stall_s = 60\nwait_s = 20\n").expect("written");
    let told = parsed(&rig.run(&["config", "show", "--json", "--max-running", "5"]).await);
    let of = |name: &str| {
        let settings = told["settings"].as_array().expect("settings").iter();
        let found = settings.clone().find(|setting| setting["key"] == name).expect("a setting");
        (found["value"].clone(), found["from"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(of("max_running"), (json!(5), "the command line".to_owned()));
    assert_eq!(of("billing"), (json!("api_key"), "PHONE_OPUS_BILLING".to_owned()));
    assert_eq!(of("agent"), (json!("claude"), "default".to_owned()));
    assert_eq!(of("stall_s"), (json!(60), "./.phone-opus.toml, which lowers it".to_owned()));
    assert_eq!(of("wait_s").0, json!(20));
    assert_eq!(of("clients").0, json!("my-editor"));
    assert!(of("clients").1.ends_with("config.toml"), "{told:#}");
    for columns in [80, 100, 120] {
        let seen = on_columns(&rig, &["config", "show"], columns).await;
        println!("{seen}");
        assert!(seen.starts_with("KEY"), "{seen}");
        assert!(!seen.contains(KEY), "{seen}");
    }
    let rows = stdout(&rig.run(&["config", "show"]).await);
    assert!(rows.lines().any(|row| row == "max_running\t2\t".to_owned() + &of("clients").1), "{rows}");
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_shell_completes_commands_flags_and_job_ids() {
    let mut rig = new_rig();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = rig.run(&["completions", shell]).await;
        assert!(output.status.success() && stdout(&output).contains("PHONE_OPUS_COMPLETE"), "{shell}: {output:?}");
    }
    assert!(!rig.state_dir().root().exists(), "nothing is made for it");
    rig.set("PHONE_OPUS_COMPLETE", "fish");
    let offered = async |rig: &Rig, words: &[&str]| {
        let arguments: Vec<&str> = ["--", "phone-opus"].iter().chain(words).copied().collect();
        let output = rig.run(&arguments).await;
        assert!(output.status.success(), "{words:?}: {}", stderr(&output));
        stdout(&output)
    };
    assert!(offered(&rig, &["jobs", "sh"]).await.starts_with("show"));
    assert!(offered(&rig, &["consult", "--no-"]).await.contains("--no-stdin"));
    assert!(offered(&rig, &["jobs", "show", ""]).await.starts_with("last"));
    assert!(!rig.state_dir().root().exists(), "nothing is made for it");
    rig.set("PHONE_OPUS_COMPLETE", "");
    let job = asked(&rig, &rig.answering("forty-two")).await;
    rig.set("PHONE_OPUS_COMPLETE", "fish");
    for command in ["show", "tail", "cancel"] {
        let seen = offered(&rig, &["jobs", command, &job[..4]]).await;
        assert!(seen.contains(&job) && seen.contains("succeeded"), "{command}: {seen}");
    }
    // An old shell's script is no command.
    rig.set("PHONE_OPUS_COMPLETE", "cobol");
    assert!(!rig.run(&["--", "phone-opus", "jobs", ""]).await.status.success());
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn manual_pages_are_written_for_every_command() {
    let rig = new_rig();
    let dir = rig.path("man");
    std::fs::create_dir(&dir).expect("a directory");
    let output = rig.run(&["man", &dir.display().to_string()]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    for page in ["phone-opus.1", "phone-opus-consult.1", "phone-opus-jobs-show.1", "phone-opus-mcp-serve.1"] {
        let text = std::fs::read_to_string(dir.join(page)).unwrap_or_else(|_| panic!("no page {page}"));
        assert!(text.contains(".TH"), "{page}");
    }
    let output = rig.run(&["man", "/no/such/dir"]).await;
    assert_eq!(output.status.code(), Some(1));
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn a_server_that_is_typed_by_hand_says_whom_it_waits_for() {
    let rig = new_rig();
    let serving = rig.begin_on_a_terminal(&["mcp", "serve"], Some((80, 24)), Keyboard::There);
    until("it says so", async || serving.seen().contains("waiting for an MCP client").then_some(())).await;
    serving.signal(Signal::INT);
    let (_, seen) = serving.ended().await;
    assert!(seen.contains("phone-opus mcp serve --help"), "{seen:?}");
    // A client talks through a pipe, and reads nothing that is not for it.
    let output = rig.run(&["mcp", "serve"]).await;
    assert!(!stderr(&output).contains("waiting"), "{}", stderr(&output));
    rig.stop_and_check_invariants([]).await;
}
