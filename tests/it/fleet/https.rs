//! Clones by https: of a server that proves who it is by an authority of the machine's own, and gives nothing without a login.
//!
//! The repository is served by git's own `http-backend` behind the tests' `front`, whose certificates
//! are for 127.0.0.1.
//!
//! Laws: L13, L19.

#![expect(clippy::expect_used, reason = "helpers of tests")]

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use phone_opus::internals::fleet::Fleet;
use phone_opus::testkit::{Rig, TestClient, until};
use phone_opus::{Config, Grace, System};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::hosting::{Hosting, clones_of};
use super::memory::{new_rig, occupied, queue};
use crate::front::{Front, certificate};

/// `ada:s3cret`, as a request has it.
const LOGIN: &str = "Basic YWRhOnMzY3JldA==";

/// A server of what lies in a directory.
struct Served {
    front: Front,
    _serving: JoinSet<()>,
}

impl Served {
    async fn over_tls(root: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let front = Front::before(&listener.local_addr().expect("an address").to_string()).await;
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let root = root.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let root = root.clone();
                        async move { Ok::<_, Infallible>(answer(&root, request).await) }
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(client), service).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { front, _serving: serving }
    }
}

/// What git's own program for it answers, to who has the login.
async fn answer(root: &Path, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let header = |name: &str| {
        let value = request.headers().get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    if header("authorization") != LOGIN {
        let refused = Response::builder().status(401).header("www-authenticate", "Basic realm=\"team\"");
        return refused.body(Full::default()).expect("a response");
    }
    let mut program = tokio::process::Command::new("git");
    program.arg("http-backend").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    program.env("GIT_PROJECT_ROOT", root).env("GIT_HTTP_EXPORT_ALL", "1").env("REMOTE_USER", "ada");
    program.env("REQUEST_METHOD", request.method().as_str()).env("PATH_INFO", request.uri().path());
    program.env("QUERY_STRING", request.uri().query().unwrap_or_default()).env("CONTENT_TYPE", header("content-type"));
    program.env("HTTP_CONTENT_ENCODING", header("content-encoding")).env("GIT_PROTOCOL", header("git-protocol"));
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    program.env("CONTENT_LENGTH", body.len().to_string());
    let mut child = program.spawn().expect("git");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(&body).await.expect("written");
    drop(input);
    let said = child.wait_with_output().await.expect("an answer").stdout;
    let end = said.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("headers");
    let mut response = Response::builder();
    for line in String::from_utf8_lossy(&said[..end]).lines() {
        let (name, value) = line.split_once(": ").expect("a header");
        response = match name {
            "Status" => response.status(value.split(' ').next().expect("a number")),
            _ => response.header(name, value),
        };
    }
    response.body(Full::from(said[end + 4..].to_vec())).expect("a response")
}

/// A host that may clone from there, with these helpers for a login.
async fn cloning(rig: &Rig, fleet: &Arc<dyn Fleet>, port: u16, helpers: &[&str]) -> System {
    let config = Config {
        wait: Some(Duration::from_secs(300)),
        max_running: 1,
        fleet_clone: vec![format!("https://127.0.0.1:{port}/team/*")],
        fleet_clone_credentials: helpers.iter().map(|name| (*name).to_owned()).collect(),
        ..Config::default()
    };
    rig.system().config(config).fleet(Arc::clone(fleet)).start().await.expect("a system")
}

/// A helper that would be seen, had git asked it.
fn trap(at: &Path, canary: &Path) -> String {
    fs::write(at, format!("#!/bin/sh\ntouch {}\necho username=ada\necho password=s3cret\n", canary.display()))
        .expect("written");
    fs::set_permissions(at, fs::Permissions::from_mode(0o755)).expect("set");
    format!("[credential]\n helper = {}\n", at.display())
}

#[tokio::test]
async fn a_private_repository_is_cloned_by_the_helper_that_is_named_for_it_and_by_nobody_elses() {
    let (asks, fleet) = (new_rig(), queue());
    let dir = asks.path("hosting");
    let Some(hosting) = Hosting::at(dir.clone(), asks.work()) else { return };
    let served = Served::over_tls(dir.clone()).await;
    hosting.is_at(&format!("https://127.0.0.1:{}/team/tool.git", served.front.port()));
    // A helper that the repository names for whoever asks, and one of the user's own that was not named for clones.
    let canary = asks.path("canary");
    let config = asks.work().join(".git/config");
    let whole = fs::read_to_string(&config).expect("read");
    fs::write(&config, format!("{whole}{}", trap(&dir.join("of-the-repository"), &canary))).expect("written");
    let here_config = Config { wait: Some(Duration::from_secs(300)), max_running: 1, ..Config::default() };
    let here = asks.system().config(here_config).fleet(Arc::clone(&fleet)).start().await.expect("a system");
    let mut client = TestClient::of(&here).greet().await;
    let taken = occupied(&asks, &mut client).await;
    for (helpers, trusts, told) in [
        (&["store"][..], true, None),
        (&[], true, Some("could not read Username")),
        (&["store"], false, Some("certificate")),
    ] {
        let mut other = new_rig();
        let home = other.at_home(".config").join("git");
        fs::create_dir_all(&home).expect("made");
        fs::write(home.join("config"), trap(&dir.join("of-the-user"), &canary)).expect("written");
        let login = format!("https://ada:s3cret@127.0.0.1:{}\n", served.front.port());
        fs::write(home.join("credentials"), login).expect("written");
        if trusts {
            other.set("SSL_CERT_FILE", certificate("authority.pem").display().to_string());
        }
        let there = cloning(&other, &fleet, served.front.port(), helpers).await;
        let asked = json!({"prompt": other.answering("from a clone"), "placement": "clone"});
        let reply = client.call("consult", asked).await;
        match told {
            None => {
                let reply = reply.expect_success();
                assert_eq!(reply.str("response"), "from a clone", "{:#}", reply.0);
                assert!(reply.str("placed_because").contains("it cloned commit"), "{:#}", reply.0);
            }
            Some(told) => {
                let failed = reply.expect_fault("workspace_unavailable");
                assert!(failed.text().contains(told), "{helpers:?}: {}", failed.text());
                assert!(!failed.text().contains("s3cret"), "{}", failed.text());
            }
        }
        other.expect_runs(usize::from(told.is_none()));
        until("no clone is left", async || (clones_of(&other) == 0).then_some(())).await;
        assert!(!canary.exists(), "{helpers:?}: a helper was asked that was not named for it");
        other.stop_system_and_check_invariants(there, []).await;
    }
    assert!(client.call("consult_cancel", json!({"job_id": taken})).await.is_result());
    client.finish().await;
    drop(here.shutdown(Grace::default()).await);
}
