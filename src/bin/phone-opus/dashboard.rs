//! `dashboard`: serves the page until it is told to end.
//!
//! Owns: what is printed, the signals. May not know: what is served (`phone_opus::internals::dashboard`).

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use phone_opus::internals::base::socket::listener::ListenError;
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::dashboard::server::{Dashboard, DashboardError, socket_of};
use phone_opus::internals::exec::server::admission::BearerToken;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::begin::{self, Kind};
use crate::cli::DashboardOptions;
use crate::logging;
use crate::output::{out, print, print_json, say};
use crate::settings::{SetupError, chain, refused, runtime, state_dir};

/// How long the dashboard that is there already may take to give out an address.
const LINK: Duration = Duration::from_secs(3);

/// Bytes of its answer.
const LINK_BYTES: u64 = 16 * 1024;

/// Serves, or says where it is served already.
pub(crate) fn run(options: &DashboardOptions) -> ExitCode {
    logging::start();
    let dir = match state_dir(&options.common) {
        Ok(dir) => dir,
        Err(error) => return refused(&error),
    };
    if let Err(error) = dir.refuse_foreign_owner() {
        return failed(&format!("use the state directory: failed to {}", chain(&error)));
    }
    let token = match options.metrics_token_file.as_deref().map(BearerToken::read).transpose() {
        Ok(token) => token,
        Err(error) => {
            say(&format!("phone-opus: failed to {error}"));
            return ExitCode::from(2);
        }
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return refused(&error),
    };
    let ended = runtime.block_on(async {
        begin::ignore(Kind::Dashboard)?;
        let mut ends = Ends::hear()?;
        match Dashboard::listen(dir.clone(), options.port, token).await {
            Ok(dashboard) => {
                let link = dashboard.link();
                show(&link, Some(dashboard.socket()), options.json);
                dashboard.serve(async move { ends.next().await }).await;
                Ok(ExitCode::SUCCESS)
            }
            Err(DashboardError::Socket(ListenError::Taken { path })) => Ok(there(&dir, &path, options.json)),
            Err(error) => Ok(failed(&chain(&error))),
        }
    });
    // What is being read on a thread beside ends with the process.
    runtime.shutdown_background();
    ended.unwrap_or_else(|error: SetupError| refused(&error))
}

fn failed(why: &str) -> ExitCode {
    say(&format!("phone-opus: dashboard: failed to {why}"));
    ExitCode::FAILURE
}

/// Shows an address. It is on stdout alone, and in nobody's list of processes.
fn show(link: &str, socket: Option<&Path>, as_json: bool) {
    if as_json {
        print_json(json!({"url": link, "socket": socket.map(|socket| socket.display().to_string())}));
        return;
    }
    print(link);
    if out().terminal {
        let does = if socket.is_some() { "Ctrl-C ends it. " } else { "" };
        say(&format!(
            "Open it in a browser of this machine; it opens once. {does}Another address: phone-opus dashboard, in another terminal."
        ));
    }
}

/// Another process serves this state directory: that one is asked for an address.
fn there(dir: &StateDir, path: &Path, as_json: bool) -> ExitCode {
    debug_assert_eq!(path, socket_of(dir));
    match ask_for_link(path) {
        Some(link) => {
            show(&link, None, as_json);
            ExitCode::SUCCESS
        }
        None => failed(&format!("get an address of the dashboard that is served already ({})", path.display())),
    }
}

fn ask_for_link(path: &Path) -> Option<String> {
    let mut stream = UnixStream::connect(path).ok()?;
    stream.set_read_timeout(Some(LINK)).ok()?;
    stream.set_write_timeout(Some(LINK)).ok()?;
    let head = "POST /api/link HTTP/1.1\r\nhost: dashboard\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).ok()?;
    let mut text = String::new();
    stream.take(LINK_BYTES).read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200 ").then_some(())?;
    let told: Value = serde_json::from_str(body).ok()?;
    Some(told.get("url")?.as_str()?.to_owned())
}

/// The signals that end it.
struct Ends([Signal; 4]);

impl Ends {
    fn hear() -> Result<Self, SetupError> {
        let hear = |kind| signal(kind).map_err(SetupError::Runtime);
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        let [a, b, c, d] = kinds;
        Ok(Self([hear(a)?, hear(b)?, hear(c)?, hear(d)?]))
    }

    async fn next(&mut self) {
        let [a, b, c, d] = &mut self.0;
        tokio::select! {
            _ = a.recv() => {}
            _ = b.recv() => {}
            _ = c.recv() => {}
            _ = d.recv() => {}
        }
    }
}
