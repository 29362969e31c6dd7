//! How a system ends: by its owner's word, by the last handle that is dropped, again and again, and what is left of it then.
//!
//! Laws: L7, L9, L12.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "helpers of tests")]

use std::time::Duration;

use phone_opus::testkit::client::REVISION;
use phone_opus::testkit::tools::echo;
use phone_opus::testkit::{TestClient, until, until_seen};
use phone_opus::{Client, Consult, Grace, JobState, Shutdown, System};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::new_rig;

#[tokio::test]
async fn the_last_handle_that_is_dropped_ends_all_but_jobs_in_the_background() {
    let rig = new_rig();
    let system = rig.system().tool(echo()).start().await.expect("a system");
    let other = system.clone();
    let session = system.open_session(Client::new("runtime")).await.expect("a session");
    let background = session.start(Consult::new(rig.waiting("behind", "go"))).await.expect("accepted");
    let sync = tokio::spawn({
        let (session, prompt) = (session.clone(), rig.hanging("before"));
        async move { session.consult(Consult::new(prompt)).await }
    });
    rig.wait_for_sign("behind").await;
    rig.wait_for_sign("before").await;
    let down = other.actor();
    drop((system, session));
    // The consult that waits has a handle, and so has `other`.
    assert!(tokio::time::timeout(Duration::from_millis(100), down.wait(None)).await.is_err());
    sync.abort();
    let _ = sync.await;
    drop(other);
    down.wait(Some(Duration::from_secs(15))).await.expect("it stops in order");
    let over = until("the synchronous job is over", async || {
        let jobs = rig.jobs().await;
        let over = jobs.iter().find(|job| job.id != background)?.state;
        over.is_terminal().then_some((over, jobs))
    })
    .await;
    assert_eq!(over.0, JobState::Cancelled);
    let lives = over.1.into_iter().find(|job| job.id == background).expect("it is kept");
    assert_eq!((lives.state, rig.agents().len(), rig.runners().len()), (JobState::Running, 1, 1));
    rig.give_sign("go");
    let ended = until("it ends by itself", async || {
        rig.jobs().await.into_iter().find(|job| job.id == background && job.state.is_terminal())
    })
    .await;
    assert_eq!(ended.state, JobState::Succeeded);
    rig.check_invariants().await;
}

#[tokio::test]
async fn a_stop_may_end_jobs_in_the_background_as_well() {
    let rig = new_rig();
    let system = rig.system().start().await.expect("a system");
    for name in ["one", "two"] {
        system.jobs().submit(Consult::new(rig.hanging(name))).await.expect("accepted");
        rig.wait_for_sign(name).await;
    }
    let grace = Grace::within(Duration::from_secs(30)).end_background();
    assert!(matches!(system.shutdown(grace).await, Shutdown::InOrder));
    let states: Vec<JobState> = rig.jobs().await.iter().map(|job| job.state).collect();
    assert_eq!(states, [JobState::Cancelled; 2]);
    assert!(rig.agents().is_empty(), "{:?}", rig.agents());
    rig.check_invariants().await;
}

/// Threads and descriptors of this process, as far as the platform shows them.
fn threads_and_descriptors() -> Option<(usize, usize)> {
    let count = |dir: &str| std::fs::read_dir(dir).ok().map(Iterator::count);
    Some((count("/proc/self/task")?, count("/proc/self/fd")?))
}

/// Bytes of this process's memory that are its own.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// What `PHONE_OPUS_STARTS` says; a short series without it. The full one (1000) is in `.ci/long`.
fn starts() -> usize {
    std::env::var("PHONE_OPUS_STARTS").ok().and_then(|count| count.parse().ok()).unwrap_or(100)
}

/// One life of a system: a store, a session, a call, a client; and an end of one kind or the other.
async fn one_life(builder: phone_opus::SystemBuilder, number: usize) {
    let system = builder.tool(echo()).start().await.expect("a system");
    let session = system.open_session(Client::new("runtime")).await.expect("a session");
    session.call("echo", json!({"text": "x"})).await.expect("a reply");
    assert!(system.jobs().counts().await.is_ok());
    drop(session);
    if number.is_multiple_of(2) {
        assert!(matches!(system.shutdown(Grace::default()).await, Shutdown::InOrder));
    } else {
        let actor = system.actor();
        drop(system);
        actor.wait(Some(Duration::from_secs(15))).await.expect("it stops");
    }
}

/// Started and stopped in a process of its own, since nothing else may open or close anything meanwhile.
fn in_a_process_of_its_own(name: &str, work: impl Future<Output = ()>, runtime: tokio::runtime::Runtime) {
    const ALONE: &str = "PHONE_OPUS_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return runtime.block_on(work);
    }
    let program = std::env::current_exe().expect("this program");
    let ended = std::process::Command::new(program)
        .args(["--exact", &format!("embedding::ends::{name}"), "--nocapture"])
        .env(ALONE, "1")
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && said.contains("1 passed"), "{said}");
    print!(
        "{}",
        said.lines().filter(|line| line.contains("starts")).map(|line| format!("{line}\n")).collect::<String>()
    );
}

async fn many_lives() {
    let rig = new_rig();
    for number in 0..10 {
        one_life(rig.system(), number).await;
    }
    let (before, memory) = (threads_and_descriptors(), resident());
    let (lives, began) = (starts(), std::time::Instant::now());
    for number in 0..lives {
        one_life(rig.system(), number).await;
    }
    // A thread that was joined is gone from the table a moment later; one of an earlier life may have been in it still.
    until_seen("threads and descriptors are no more than before", async || {
        let now = threads_and_descriptors();
        let no_more = now.zip(before).is_none_or(|(now, before)| now.0 <= before.0 && now.1 <= before.1);
        if no_more { Ok(()) } else { Err(format!("{now:?} after {before:?}")) }
    })
    .await;
    let grown = resident().zip(memory).map(|(now, before)| now.saturating_sub(before));
    println!(
        "{lives} starts and stops in {:?}: at most {before:?} before and after, {grown:?} KiB more",
        began.elapsed()
    );
    // What an allocator keeps of the first lives' arenas, and not a part of each life.
    assert!(grown.is_none_or(|grown| grown < 4096 + lives as u64 * 2), "{grown:?} KiB more after {lives} lives");
    rig.check_invariants().await;
}

#[test]
fn starts_and_stops_in_a_row_leave_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    in_a_process_of_its_own("starts_and_stops_in_a_row_leave_nothing", many_lives(), runtime);
}

#[test]
fn starts_and_stops_in_a_row_leave_nothing_on_several_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build();
    let name = "starts_and_stops_in_a_row_leave_nothing_on_several_threads";
    in_a_process_of_its_own(name, many_lives(), runtime.expect("a runtime"));
}

#[tokio::test]
async fn a_socket_is_listened_at_by_its_path_and_its_name_goes_with_the_system() {
    let rig = new_rig();
    let system = rig.system().tool(echo()).start().await.expect("a system");
    let path = rig.path("sockets/own.sock");
    let listening = system.listen(&path).expect("a socket");
    assert_eq!(listening.path(), path);
    let taken = system.listen(&path).expect_err("somebody listens there");
    assert!(taken.detail.contains("socket"), "{taken}");
    let (from, to) = UnixStream::connect(&path).await.expect("connected").into_split();
    let mut client = TestClient::new(from, to);
    client.handshake(REVISION).await;
    let reply = client.call("echo", json!({"text": "hello"})).await;
    assert!(!reply.is_error(), "{:#}", reply.0);
    let (from, mut to) = UnixStream::connect(&path).await.expect("connected").into_split();
    to.write_all(b"{\"type\":\"status\",\"protocol\":1}\n").await.expect("written");
    let answer = BufReader::new(from).lines().next_line().await.expect("read").expect("a line");
    assert!(answer.contains("no daemon"), "{answer}");
    listening.close().await;
    assert!(!path.exists());
    client.ping().await;
    let again = system.listen(&path).expect("a socket");
    client.expect_end();
    rig.stop_system_and_check_invariants(system, [client]).await;
    again.closed().await;
    until("the name is gone", async || (!path.exists()).then_some(())).await;
}

/// A system that was never started, dropped or stopped twice costs nothing.
#[tokio::test]
async fn a_stop_may_be_asked_for_again() {
    drop(System::builder());
    let system = System::builder().start().await.expect("a system");
    assert!(matches!(system.shutdown(Grace::default()).await, Shutdown::InOrder));
    assert!(matches!(system.shutdown(Grace::default()).await, Shutdown::InOrder));
    assert!(system.open_session(Client::new("late")).await.is_err());
}
