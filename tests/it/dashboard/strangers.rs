//! The dashboard and processes of another user. Only root can be somebody else: everybody else sees the tests say that they are
//! skipped.
//!
//! Laws: L13.

use std::io::{Read as _, Write as _};
use std::net::TcpStream as StdTcp;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as StdUnix;
use std::path::Path;

use phone_opus::testkit::{Rig, Start};

use super::*;

const PORT: &str = "STRANGERS_PORT";
const SOCKET: &str = "STRANGERS_SOCKET";

/// The other process: asks by each door, and says what it heard.
#[test]
#[ignore = "the stranger of the other test"]
fn a_stranger_asks() {
    let (Ok(port), Ok(socket)) = (std::env::var(PORT), std::env::var(SOCKET)) else {
        println!("no test has started this");
        return;
    };
    let heard = |mut stream: Box<dyn ReadWrite>, request: String| {
        let _ = stream.write_all(request.as_bytes());
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text.lines().next().unwrap_or("nothing").to_owned()
    };
    let host = format!("Host: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    let by_port = StdTcp::connect(format!("127.0.0.1:{port}"));
    let by_port = by_port.map_or("closed".to_owned(), |it| heard(Box::new(it), format!("GET / HTTP/1.1\r\n{host}")));
    let by_socket = StdUnix::connect(socket);
    let by_socket = by_socket
        .map_or("closed".to_owned(), |it| heard(Box::new(it), format!("GET /api/overview HTTP/1.1\r\n{host}")));
    println!("by port: {by_port}\nby socket: {by_socket}");
}

trait ReadWrite: std::io::Read + std::io::Write {}
impl<T: std::io::Read + std::io::Write> ReadWrite for T {}

/// What the stranger heard by port and by socket; `None` where this user can be nobody else.
async fn stranger(served: &Served) -> Option<String> {
    let Some(start) = Start::plain().as_nobody() else {
        // Not by a macro, whose words are kept from who runs the tests.
        let _ = std::io::stderr().write_all(b"SKIPPED: only root can start a process as another user\n");
        return None;
    };
    let (first, words) = start.words().split_first()?;
    let mut command = tokio::process::Command::new(first);
    command.args(words).arg(std::env::current_exe().expect("this program"));
    command.args(["--exact", "dashboard::strangers::a_stranger_asks", "--ignored", "--nocapture"]);
    command.env(PORT, served.port.to_string()).env(SOCKET, &served.socket).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.expect("it runs");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Lets everybody into a directory of the scratch and to the socket in it, as somebody might by mistake.
fn open_up(rig: &Rig, socket: &Path) {
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
    };
    mode(socket, 0o666);
    let mut dir = socket.parent();
    while let Some(path) = dir.filter(|path| path.starts_with(rig.path(""))) {
        mode(path, 0o755);
        dir = path.parent();
    }
}

#[tokio::test]
async fn another_user_gets_nothing_by_either_door_of_either_page_though_both_stand_open() {
    for by in By::BOTH {
        let mut rig = new_rig();
        let served = Served::by(&mut rig, by).await;
        let mode = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!((mode(&served.socket), mode(served.socket.parent().expect("a directory"))), (0o600, 0o700));
        if let Some(heard) = stranger(&served).await {
            assert!(heard.contains("by socket: closed"), "{by:?}: {heard}");
            open_up(&rig, &served.socket);
            let heard = stranger(&served).await.expect("it ran before");
            assert!(heard.contains("by socket: HTTP/1.1 403 Forbidden"), "{by:?}: {heard}");
            // Where the kernel does not say whose a connection is, the cookie keeps it out of everything but the page's own files.
            let refused = heard.contains("by port: HTTP/1.1 403 Forbidden");
            assert!(refused || !cfg!(target_os = "linux"), "{by:?}: {heard}");
            std::fs::set_permissions(rig.state_dir().root(), std::fs::Permissions::from_mode(0o700)).expect("a mode");
        }
        served.end(Signal::INT).await;
        rig.stop_and_check_invariants([]).await;
    }
}
