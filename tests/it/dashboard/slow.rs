//! A page that opens a stream and does not read it: what it costs the server and the others.
//!
//! Laws: L7, L9.

use std::os::fd::AsFd as _;

use phone_opus::testkit::{Signal, Step, processes, until_seen};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::process::Pid;
use tokio::net::TcpSocket;

use super::*;

/// What the agent says in all: more than the kernel keeps for one connection, and less than a journal keeps.
const SAID: usize = 1_800 * 4_000;

/// How many do not read.
const SLOW: usize = 12;

/// What the server may have grown by: a piece of a quarter of a MiB for each stream, and what it reads and writes for the one that
/// reads. What was said is kept for nobody, which would be twice as much.
const GROWN: u64 = 40 << 20;

/// The most memory of its own the process ever had, in bytes.
fn peak(child: &Child) -> u64 {
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).expect("it lives");
    processes::own_peak(pid).expect("it lives, and its memory can be read")
}

#[tokio::test]
async fn who_does_not_read_is_let_go_and_costs_a_piece_while_others_hear_everything() {
    if !cfg!(target_os = "linux") {
        return;
    }
    let mut rig = new_rig();
    let served = Served::start(&rig, &[]).await;
    let ours = served.open().await.headers();
    let mut client = rig.serve().await;
    let (begun, said) = (rig.sign("begun"), rig.sign("said"));
    let mut steps = vec![Step::Touch(begun), Step::WaitForFile(rig.sign("go"))];
    steps.extend((0..1_800).map(|_| Step::HugeText(4_000)));
    steps.extend([Step::Text("the last of it".to_owned()), Step::Touch(said), Step::Hang]);
    let job = client.consult_in_background(&rig.doing(steps)).await;
    rig.wait_for_sign("begun").await;
    let before = peak(&served.child);

    let path = format!("/api/jobs/{job}/live");
    let request = format!("GET {path} HTTP/1.1\r\n{}{ours}\r\n", served.names());
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        let socket = TcpSocket::new_v4().expect("a socket");
        set_socket_recv_buffer_size(socket.as_fd(), 4096).expect("a small buffer");
        let mut one = socket.connect(([127, 0, 0, 1], served.port).into()).await.expect("it listens");
        one.write_all(request.as_bytes()).await.expect("it takes it");
        slow.push(one);
    }
    let mut quick = Following::open(&served, &path, &ours).await;
    let streams = async |count: usize| {
        until_seen("so many follow", async || {
            let numbers = served.tool("GET /metrics").await.body;
            let line = format!("phone_opus_dashboard_streams {count}");
            if numbers.lines().any(|found| found == line) { Ok(()) } else { Err(numbers) }
        })
        .await;
    };
    streams(SLOW + 1).await;
    rig.give_sign("go");
    let mut heard = 0;
    let is_last = |entry: &Value| entry["event"]["event"]["text"] == "the last of it";
    loop {
        let (_, name, data) = quick.next().await.expect("it goes on");
        if name == "entries" {
            let all = data.as_array().expect("entries");
            heard +=
                all.iter().filter_map(|entry| entry["event"]["event"]["text"].as_str()).map(str::len).sum::<usize>();
            if all.iter().any(is_last) {
                break;
            }
        }
    }
    assert!(heard >= SAID, "one who reads hears everything: {heard}");
    // Those that do not read are let go, by themselves, and the other one stays.
    streams(1).await;
    let grown = peak(&served.child).saturating_sub(before);
    assert!(grown < GROWN, "{grown} bytes for what {SLOW} did not read");
    for mut one in slow {
        let mut left = Vec::new();
        let end = timeout(PATIENCE, one.read_to_end(&mut left)).await.expect("its connection is over");
        assert!(end.is_err() || left.len() < SAID, "{end:?}, {}", left.len());
    }
    let answer = served.ask(&format!("POST /api/jobs/{job}/cancel"), &format!("{}{ours}", served.origin()), "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    quick.until("end", |_| true).await;
    served.end(Signal::TERM).await;
    rig.stop_and_check_invariants([client]).await;
}
