//! The dashboard on the real program: who gets what by either door, what is followed and cancelled, what is bounded, how it ends.
//!
//! What pages look like is `tests/browser`, which needs a browser.
//!
//! Laws: L7, L9, L13.

#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod daemon;
mod refused;
mod slow;
mod strangers;

use std::path::PathBuf;
use std::process::Stdio;

use phone_opus::testkit::{PATIENCE, Rig, Signal, Step, tried_program};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::Child;
use tokio::time::timeout;

fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

/// A dashboard that serves.
struct Served {
    child: Child,
    port: u16,
    token: String,
    socket: PathBuf,
}

/// Who serves the page.
#[derive(Debug, Clone, Copy)]
enum By {
    /// The command, which was started for it.
    Command,
    /// A daemon, which was asked to.
    Daemon,
}

impl By {
    const BOTH: [Self; 2] = [Self::Command, Self::Daemon];
}

/// A page that was opened: its cookie and its key.
struct Opened {
    cookie: String,
    key: String,
}

impl Opened {
    fn headers(&self) -> String {
        format!("Cookie: {}\r\nX-Phone-Opus: {}\r\n", self.cookie, self.key)
    }
}

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(said, _)| said.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Sends these bytes and reads everything that comes.
async fn told(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Answer {
    // One that is told off may be cut off while it still speaks.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut heard = Vec::new();
    let mut part = [0; 4096];
    while let Ok(Ok(read)) = timeout(PATIENCE, stream.read(&mut part)).await {
        if read == 0 {
            break;
        }
        heard.extend_from_slice(&part[..read]);
    }
    let text = String::from_utf8(heard).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

impl Served {
    async fn start(rig: &Rig, words: &[&str]) -> Self {
        let mut all = vec!["dashboard", "--json"];
        all.extend(words);
        let mut command = rig.command(&all);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let line = timeout(PATIENCE, lines.next_line()).await.expect("in time").expect("read").expect("a line");
        let said: Value = serde_json::from_str(&line).expect("JSON");
        let (port, token) = place(said["url"].as_str().expect("an address"));
        let socket = said["socket"].as_str().expect("a socket").into();
        Self { child, port, token, socket }
    }

    async fn by(rig: &mut Rig, by: By) -> Self {
        match by {
            By::Command => Self::start(rig, &[]).await,
            By::Daemon => Self::of(rig.daemon(&[]).await, rig).await,
        }
    }

    /// The page of this daemon, from here on.
    async fn of(child: Child, rig: &Rig) -> Self {
        let (port, token) = daemon::address(rig, &[]).await;
        Self { child, port, token, socket: rig.state_dir().root().join("dashboard.sock") }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.expect("it listens")
    }

    fn names(&self) -> String {
        format!("Host: 127.0.0.1:{}\r\nConnection: close\r\n", self.port)
    }

    /// `Origin` of a page of ours.
    fn origin(&self) -> String {
        format!("Origin: http://127.0.0.1:{}\r\n", self.port)
    }

    async fn ask(&self, line: &str, headers: &str, body: &str) -> Answer {
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let request = format!("{line} HTTP/1.1\r\n{}{headers}{length}\r\n{body}", self.names());
        told(self.connect().await, &request).await
    }

    async fn exchange(&self, token: &str) -> Answer {
        let headers = format!("{}X-Phone-Opus: 1\r\n", self.origin());
        self.ask("POST /api/session", &headers, &json!({"token": token}).to_string()).await
    }

    async fn open(&self) -> Opened {
        let answer = self.exchange(&self.token).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let cookie = answer.header("set-cookie").expect("a cookie");
        for part in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"] {
            assert!(cookie.split("; ").any(|said| said == part), "{cookie}");
        }
        let cookie = cookie.split(';').next().expect("a pair").to_owned();
        Opened { cookie, key: answer.json()["key"].as_str().expect("a key").to_owned() }
    }

    /// Asks by the socket.
    async fn tool(&self, line: &str) -> Answer {
        let stream = UnixStream::connect(&self.socket).await.expect("it listens");
        told(stream, &format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")).await
    }

    /// Tells it to end, and waits.
    async fn end(mut self, signal: Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id().expect("it lives")).expect("a pid"));
        rustix::process::kill_process(pid.expect("a pid"), signal).expect("it is ours");
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it ends").expect("waited");
        assert_eq!(status.code(), Some(0));
        assert!(!self.socket.exists(), "its socket's name goes with it");
    }
}

/// The port and the token of an address.
fn place(url: &str) -> (u16, String) {
    let rest = url.strip_prefix("http://127.0.0.1:").expect("an address of this machine");
    let (port, token) = rest.split_once("/#").expect("a token behind #");
    (port.parse().expect("a port"), token.to_owned())
}

/// A stream of events.
struct Following(BufReader<TcpStream>);

impl Following {
    async fn open(served: &Served, path: &str, headers: &str) -> Self {
        let mut stream = served.connect().await;
        let request = format!("GET {path} HTTP/1.1\r\n{}{headers}\r\n", served.names());
        stream.write_all(request.as_bytes()).await.expect("it takes it");
        Self(BufReader::new(stream))
    }

    /// The next event: its id, its name, its data. `None` at the end.
    async fn next(&mut self) -> Option<(String, String, Value)> {
        let (mut id, mut name) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            let read = timeout(PATIENCE, self.0.read_line(&mut line)).await.expect("something comes").ok()?;
            if read == 0 {
                return None;
            }
            match line.trim_end().split_once(": ") {
                Some(("id", value)) => value.clone_into(&mut id),
                Some(("event", value)) => value.clone_into(&mut name),
                Some(("data", value)) => return Some((id, name, serde_json::from_str(value).expect("JSON"))),
                _ => {}
            }
        }
    }

    async fn until(&mut self, wanted: &str, is: impl Fn(&Value) -> bool) -> (String, Value) {
        loop {
            let (id, name, data) = self.next().await.unwrap_or_else(|| panic!("it ended before {wanted}"));
            if name == wanted && is(&data) {
                return (id, data);
            }
        }
    }
}

#[tokio::test]
async fn a_consult_is_followed_from_its_acceptance_and_cancelled_and_nothing_is_left() {
    let mut rig = new_rig();
    let served = Served::start(&rig, &[]).await;
    let ours = served.open().await.headers();
    let mut live = Following::open(&served, "/api/live", &ours).await;
    live.until("whole", |whole| whole["jobs"] == json!([])).await;
    let mut client = rig.serve().await;
    let hostile = "<img src=x onerror=alert(1)>\u{1b}[2J\u{202e}";
    let begun = rig.sign("begun");
    let prompt = rig.doing(vec![Step::Text(hostile.to_owned()), Step::Touch(begun), Step::Hang]);
    let job = client.consult_in_background(&prompt).await;
    let of_job = |data: &Value| {
        data["jobs"]
            .as_array()
            .is_some_and(|jobs| jobs.iter().any(|row| row["job_id"] == job[..] && row["status"] == "running"))
    };
    let (heard, _) = live.until("change", of_job).await;
    rig.wait_for_sign("begun").await;
    let mut follow = Following::open(&served, &format!("/api/jobs/{job}/live"), &ours).await;
    let (_, record) = follow.until("record", |record| record["status"] == "running").await;
    assert_eq!(record["prompt"].as_str(), Some(&prompt[..]));
    let says = |entry: &Value| entry["event"]["event"]["text"] == hostile;
    let (seq, _) = follow.until("entries", |all| all.as_array().is_some_and(|all| all.iter().any(says))).await;
    let answer = served.ask(&format!("POST /api/jobs/{job}/cancel"), &format!("{}{ours}", served.origin()), "").await;
    assert_eq!((answer.status, answer.json()["changed"].clone()), (200, json!(true)), "{answer:?}");
    let (_, end) = follow.until("end", |_| true).await;
    assert_eq!(end["status"], "cancelled");
    assert!(follow.next().await.is_none(), "a job's stream ends with the job");
    // Who comes again hears what came after, and no event twice.
    let mut again =
        Following::open(&served, &format!("/api/jobs/{job}/live"), &format!("{ours}Last-Event-ID: {seq}\r\n")).await;
    while let Some((_, name, data)) = again.next().await {
        if name == "entries" {
            let all = data.as_array().expect("entries");
            assert!(all.iter().all(|entry| entry["seq"].as_u64() > seq.parse().ok()), "{data}");
        }
    }
    drop(live);
    let mut live = Following::open(&served, "/api/live", &format!("{ours}Last-Event-ID: {heard}\r\n")).await;
    let over =
        |data: &Value| data["jobs"].as_array().is_some_and(|jobs| jobs.iter().any(|row| row["status"] == "cancelled"));
    live.until("change", over).await;
    let once_more =
        served.ask(&format!("POST /api/jobs/{job}/cancel"), &format!("{}{ours}", served.origin()), "").await;
    assert_eq!(once_more.json()["changed"], json!(false));
    // Nobody waits with it any more, and nothing was started anew.
    rig.expect_runs(1);
    drop(live);
    served.end(Signal::HUP).await;
    rig.stop_and_check_invariants([client]).await;
}

#[tokio::test]
async fn tools_ask_by_the_socket_and_numbers_say_nothing_of_anybodys_work() {
    let mut rig = new_rig();
    let token = rig.path("token");
    std::fs::write(&token, "0123456789abcdef0123\n").expect("written");
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a mode");
    let mut daemon = rig.daemon(&[]).await;
    let served = Served::start(&rig, &["--metrics-token-file", token.to_str().expect("text")]).await;
    let mut client = rig.serve().await;
    let secret = "a prompt nobody else reads";
    client.consult(&format!("{secret} {}", rig.answering("an answer nobody else reads"))).await.expect_success();
    let overview = served.tool("GET /api/overview").await;
    assert_eq!(overview.status, 200, "{overview:?}");
    let overview = overview.json();
    assert_eq!(overview["jobs"][0]["status"], "succeeded");
    assert!(overview["jobs"][0]["started_at"].as_i64() >= overview["jobs"][0]["accepted_at"].as_i64(), "{overview}");
    let servers = overview["sections"]["servers"].as_array().expect("servers");
    assert!(servers.iter().any(|server| server["kind"] == "daemon" && server["health"]["ready"] == true), "{overview}");
    let bearer = served.ask("GET /metrics", "Authorization: Bearer 0123456789abcdef0123\r\n", "").await;
    let numbers = served.tool("GET /metrics").await;
    for answer in [&bearer, &numbers] {
        assert_eq!(answer.status, 200, "{answer:?}");
        for line in ["phone_opus_jobs{state=\"succeeded\"} 1", "phone_opus_up 1", "phone_opus_daemon_ready 1"] {
            assert!(answer.body.lines().any(|found| found == line), "{line}\n{}", answer.body);
        }
        for word in ["nobody else", rig.canary(), rig.work().to_str().expect("text"), "@@script"] {
            assert!(!answer.body.contains(word), "{word}\n{}", answer.body);
        }
    }
    for page in ["GET /", "POST /api/session"] {
        assert_eq!(served.tool(page).await.status, 404);
    }
    // Whoever starts another one gets an address of this one, and it opens.
    let another = rig.run(&["dashboard", "--json"]).await;
    let said: Value = serde_json::from_slice(&another.stdout).expect("JSON");
    let (port, token) = place(said["url"].as_str().expect("an address"));
    assert_eq!((port, another.status.code()), (served.port, Some(0)));
    assert_eq!(served.exchange(&token).await.status, 200);
    served.end(Signal::QUIT).await;
    rig.end_daemon().await;
    let _ = daemon.wait().await;
    rig.stop_and_check_invariants([client]).await;
}

#[tokio::test]
async fn the_page_has_no_foreign_host_and_no_script_but_its_files() {
    let rig = new_rig();
    let served = Served::start(&rig, &[]).await;
    let page = served.ask("GET /", "Sec-Fetch-Site: none\r\n", "").await;
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").expect("a policy");
    for part in
        ["default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"]
    {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("http") && !policy.contains('*'), "{policy}");
    for (name, value) in
        [("x-frame-options", "DENY"), ("referrer-policy", "no-referrer"), ("cache-control", "no-store")]
    {
        assert_eq!(page.header(name), Some(value));
    }
    let mut files = vec!["/".to_owned(), "/style.css".to_owned(), "/icon.svg".to_owned(), "/script/page.js".to_owned()];
    let mut at = 0;
    while let Some(path) = files.get(at).cloned() {
        at += 1;
        let file = served.ask(&format!("GET {path}"), "", "").await;
        assert_eq!(file.status, 200, "{path}");
        let outside = file.body.replace("http://www.w3.org/", "");
        for word in [
            "http://",
            "https://",
            "//cdn",
            "innerHTML",
            "eval(",
            "insertAdjacent",
            "document.write",
            " style=",
            " onclick=",
        ] {
            assert!(!outside.contains(word), "{path} has {word}");
        }
        for import in file.body.split("from \"./").skip(1).filter_map(|rest| rest.split('"').next()) {
            let path = format!("/script/{import}");
            if !files.contains(&path) {
                files.push(path);
            }
        }
    }
    assert_eq!(files.len(), 8, "{files:?}");
    served.end(Signal::INT).await;
    rig.stop_and_check_invariants([]).await;
}

#[tokio::test]
async fn who_follows_is_told_the_end_and_a_port_that_is_taken_is_named() {
    let rig = new_rig();
    let served = Served::start(&rig, &[]).await;
    let ours = served.open().await.headers();
    let mut live = Following::open(&served, "/api/live", &ours).await;
    live.until("whole", |_| true).await;
    let other = rig.path("elsewhere");
    let port = served.port.to_string();
    let taken = rig.run(&["dashboard", "--port", &port, "--state-dir", other.to_str().expect("text")]).await;
    assert_eq!(taken.status.code(), Some(1));
    let said = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert!(said.contains(&format!("127.0.0.1:{port}")), "{said}");
    served.end(Signal::INT).await;
    assert!(live.next().await.is_none(), "the stream ends");
    rig.stop_and_check_invariants([]).await;
}
