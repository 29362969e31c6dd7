//! `dashboard`: has the daemon serve the page, or serves it until it is told to end.
//!
//! Owns: who serves it, what is printed, the signals. May not know: what is served (`phone_opus::internals::dashboard`).
//!
//! ```text
//! served already ─▶ an address of that one      else a daemon lives ─▶ it serves it      else it is served here
//! ```

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use phone_opus::internals::base::socket::listener::ListenError;
use phone_opus::internals::base::state_dir::StateDir;
use phone_opus::internals::daemon::ask::ask;
use phone_opus::internals::daemon::control::DaemonAnswer;
use phone_opus::internals::daemon::start::{DaemonLook, look};
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
    if options.stop {
        return stop(&dir, options.json);
    }
    if !options.alone && options.metrics_token_file.is_none() {
        if let Some(link) = ask_for_link(&socket_of(&dir)) {
            show(&link, Server::Another, options.json);
            return ExitCode::SUCCESS;
        }
        match ask_daemon(&dir, &json!({"type": "dashboard", "port": options.port})) {
            Some(DaemonAnswer::Dashboard { url }) => {
                show(&url, Server::Daemon, options.json);
                return ExitCode::SUCCESS;
            }
            // It says why, and no other port and no other server was asked for.
            Some(DaemonAnswer::Error { message, .. }) if !message.contains("built without") => {
                return failed(&format!("have the daemon serve it: {message}"));
            }
            // There is none, or it is of a version that cannot.
            _ => {}
        }
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
                show(&link, Server::This(dashboard.socket()), options.json);
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

/// Asks the daemon; none where there is none, or it answers nothing that is known.
fn ask_daemon(dir: &StateDir, line: &Value) -> Option<DaemonAnswer> {
    let DaemonLook::There(stream) = look(dir, None) else { return None };
    ask(&stream, &line.to_string(), LINK).ok()
}

fn stop(dir: &StateDir, as_json: bool) -> ExitCode {
    match ask_daemon(dir, &json!({"type": "dashboard", "stop": true})) {
        Some(DaemonAnswer::Ok { .. }) => {
            if as_json {
                print_json(json!({"done": true}));
            } else {
                print("the daemon serves no dashboard");
            }
            ExitCode::SUCCESS
        }
        Some(DaemonAnswer::Error { message, .. }) => failed(&format!("have the daemon serve none: {message}")),
        _ => failed(
            "reach a daemon: none runs, or one of an older version; what was started in a terminal ends by Ctrl-C there",
        ),
    }
}

/// Who serves it.
#[derive(Clone, Copy)]
enum Server<'a> {
    /// This process, by this socket for tools.
    This(&'a Path),
    Daemon,
    /// One that was there already.
    Another,
}

/// Shows an address. It is on stdout alone, and in nobody's list of processes.
fn show(link: &str, server: Server<'_>, as_json: bool) {
    if as_json {
        let socket = match server {
            Server::This(socket) => Some(socket.display().to_string()),
            Server::Daemon | Server::Another => None,
        };
        let daemon = matches!(server, Server::Daemon);
        print_json(json!({"url": link, "socket": socket, "daemon": daemon}));
        return;
    }
    print(link);
    if out().terminal {
        let does = match server {
            Server::This(_) => "Ctrl-C ends it. ",
            Server::Daemon => {
                "The daemon serves it until nobody has looked for half an hour; phone-opus dashboard --stop ends it. "
            }
            Server::Another => "",
        };
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
            show(&link, Server::Another, as_json);
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
