//! `exec-server`: processes and files of this machine, for a client elsewhere.
//!
//! Two processes. The inner one serves. The outer one waits for it and then ends whatever it left: what a process of a client started
//! falls to the inner one when its parent ends, and to the outer one when the inner one was killed. When the outer one is killed,
//! the inner one is told by the system, and ends in order.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use phone_opus::internals::base::stdio::{Input, Output};
use phone_opus::internals::exec::local::{Adopt, become_subreaper, end_all_children};
use phone_opus::internals::exec::server::PeerEnd;
use phone_opus::internals::exec::server::admission::BearerToken;
use phone_opus::internals::exec::server::host::{ExecServer, ExecServerOptions};
use phone_opus::internals::exec::server::house::House;
use phone_opus::internals::exec::server::listen::{ExecDoor, ListenAt};
use phone_opus::internals::exec::server::sessions::Lease;
use rustix::process::Signal as Kill;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::begin::{self, Kind};
use crate::cli::ExecServerFlags;
use crate::logging;
use crate::output::{print, say};
use crate::settings::{SetupError, chain, program, refused, runtime};

/// How long the end of all processes may take: what does not end by a KILL in ten seconds does not end.
const END_BOUND: Duration = Duration::from_secs(12);

/// Bytes of the longest message on the standard streams and a Unix socket; what a WebSocket may bring.
const MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Serves until it is told to end, or until its client on the standard streams is gone.
pub(crate) fn run(flags: &ExecServerFlags) -> ExitCode {
    let at = match ListenAt::parse(&flags.listen) {
        Ok(at) => at,
        Err(why) => return wrong(&format!("--listen {}: {why}", flags.listen)),
    };
    // Before anything is started, so that whoever typed it reads it at once.
    let token = match flags.token_file.as_deref().map(BearerToken::read).transpose() {
        Ok(token) => token,
        Err(error) => return wrong(&format!("failed to {error}")),
    };
    if token.is_none() && at.needs_a_token() {
        return wrong(&format!(
            "--listen {}: others than this machine's processes can reach it, so it needs --token-file",
            flags.listen
        ));
    }
    if let Err(error) = become_subreaper() {
        tracing::warn!(%error, "what leaves its parents cannot be found again");
    }
    logging::start();
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return refused(&error),
    };
    let ended = runtime.block_on(async {
        begin::ignore(Kind::ExecServer)?;
        if flags.kept { serve(&at, token, flags.lease_s).await } else { keep().await }
    });
    // A file that is being read on a thread beside ends with the process.
    runtime.shutdown_background();
    match ended {
        Ok(code) => code,
        Err(error) => refused(&error),
    }
}

fn wrong(text: &str) -> ExitCode {
    say(&format!("phone-opus: {text}"));
    ExitCode::from(2)
}

/// The signals that end it.
struct Ends([(Kill, Signal); 4]);

impl Ends {
    fn hear() -> Result<Self, SetupError> {
        let hear = |kind: Kill| {
            signal(SignalKind::from_raw(kind.as_raw())).map(|heard| (kind, heard)).map_err(SetupError::Runtime)
        };
        Ok(Self([hear(Kill::TERM)?, hear(Kill::INT)?, hear(Kill::HUP)?, hear(Kill::QUIT)?]))
    }

    async fn next(&mut self) -> Kill {
        let [(term, a), (int, b), (hup, c), (quit, d)] = &mut self.0;
        tokio::select! {
            _ = a.recv() => *term,
            _ = b.recv() => *int,
            _ = c.recv() => *hup,
            _ = d.recv() => *quit,
        }
    }
}

/// The outer process.
async fn keep() -> Result<ExitCode, SetupError> {
    let mut ends = Ends::hear()?;
    let mut words: Vec<OsString> = std::env::args_os().skip(1).collect();
    words.push("--kept".into());
    let mut house = House::open(&program(), &words).map_err(SetupError::Runtime)?;
    loop {
        tokio::select! {
            code = house.ended() => {
                end_all_children(END_BOUND).await;
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            }
            kind = ends.next() => house.pass_on(kind),
        }
    }
}

/// The inner process.
async fn serve(at: &ListenAt, token: Option<BearerToken>, lease_s: u64) -> Result<ExitCode, SetupError> {
    let mut ends = Ends::hear()?;
    let lease = match (at, lease_s) {
        (ListenAt::Stdio, _) | (_, 0) => Lease::None,
        (_, seconds) => Lease::For(Duration::from_secs(seconds)),
    };
    let server = ExecServer::new(ExecServerOptions {
        lease,
        environment: std::env::vars_os().collect(),
        cwd: std::env::current_dir().unwrap_or_else(|_| "/".into()),
        orphans: Adopt::Yes,
        descriptors: begin::told().and_then(|(_, before)| before.parse().ok()),
        message_bytes: MESSAGE_BYTES,
    });
    let code = match ExecDoor::open(at, token).await {
        Ok(Some(door)) => {
            print(&door.url());
            tokio::select! {
                broken = door.serve(server.clone()) => {
                    if let Err(error) = broken {
                        say(&format!("phone-opus: the listening socket cannot be used any more: {}", chain(&error)));
                    }
                    ExitCode::FAILURE
                }
                _ = ends.next() => ExitCode::SUCCESS,
            }
        }
        Ok(None) => {
            let input = Input::stdin().map_err(SetupError::Runtime)?;
            let output = Output::stdout().map_err(SetupError::Runtime)?;
            tokio::select! {
                end = server.serve(input, output, None, None) => match end {
                    PeerEnd::Gone => ExitCode::SUCCESS,
                    PeerEnd::Broke { reason } => {
                        say(&format!("phone-opus: the client broke the protocol: {reason}"));
                        ExitCode::FAILURE
                    }
                    PeerEnd::Overrun => {
                        say("phone-opus: the client asked for much and read nothing");
                        ExitCode::FAILURE
                    }
                },
                _ = ends.next() => ExitCode::SUCCESS,
            }
        }
        Err(error) => {
            say(&format!("phone-opus: failed to {}", chain(&error)));
            ExitCode::FAILURE
        }
    };
    server.stop(END_BOUND).await;
    end_all_children(END_BOUND).await;
    Ok(code)
}
