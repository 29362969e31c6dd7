//! A connection to an exec server that breaks: a proxy on a Unix socket that knows where a message begins and ends.
//!
//! Owns: which message is cut, halved, held back, doubled, swapped or lost, drawn from a seed. May not know: sessions, what a
//! message is about beyond whether it answers something.
//!
//! What it does is what networks and servers do. It never invents a message, never doubles a request (no connection does),
//! and never loses an answer without the connection.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::task::JoinSet;

use crate::exec::lines::LineReader;
use crate::exec::target::{ExecTarget, TargetWords};
use crate::exec::transport;

/// How long a message may be held back: longer than a gap is given to close by itself, shorter than any deadline.
const HELD_MS: u64 = 300;

/// The longest message; as a client takes them.
const LINE_MOST: usize = 64 * 1024 * 1024;

/// What can be done to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireFault {
    /// The connection ends before it.
    Cut,
    /// The connection ends in the middle of it.
    Half,
    /// It comes later, with everything behind it.
    Delay,
    /// It comes twice.
    Double,
    /// It comes after the next one.
    Swap,
    /// It never comes.
    Lose,
}

impl WireFault {
    /// Every fault.
    pub const ALL: [Self; 6] = [Self::Cut, Self::Half, Self::Delay, Self::Double, Self::Swap, Self::Lose];
}

/// The proxy. Dropping it ends it and every connection through it.
#[derive(Debug)]
pub struct FaultyProxy {
    path: PathBuf,
    shared: Arc<ProxyState>,
    _serving: JoinSet<()>,
}

#[derive(Debug)]
struct ProxyState {
    upstream: ExecTarget,
    /// One message in so many is struck.
    one_in: u64,
    draws: Mutex<u64>,
    calm: AtomicBool,
    made: [AtomicU64; WireFault::ALL.len()],
}

impl FaultyProxy {
    /// A proxy to `upstream` that listens at `path` and strikes one message in `one_in`.
    ///
    /// # Errors
    /// When nothing can listen there.
    pub fn start(path: &Path, upstream: ExecTarget, seed: u64, one_in: u64) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let shared = Arc::new(ProxyState {
            upstream,
            one_in: one_in.max(1),
            draws: Mutex::new(seed),
            calm: AtomicBool::new(false),
            made: std::array::from_fn(|_| AtomicU64::new(0)),
        });
        let mut serving = JoinSet::new();
        let state = Arc::clone(&shared);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let state = Arc::clone(&state);
                connections.spawn(async move {
                    let (client_read, client_write) = client.into_split();
                    let Ok((read, write, _guard)) = transport::connect(&state.upstream, None).await else { return };
                    // The end of either direction is that of the connection.
                    tokio::select! {
                        () = state.carry(client_read, write, Way::ToServer) => {}
                        () = state.carry(read, client_write, Way::ToClient) => {}
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { path: path.to_owned(), shared, _serving: serving })
    }

    /// Where it is reached.
    ///
    /// # Errors
    /// When its path cannot be a target's.
    pub fn target(&self) -> Result<ExecTarget, String> {
        ExecTarget::parse(&TargetWords::Text(format!("unix:{}", self.path.display())))
    }

    /// From now on nothing is struck.
    pub fn calm(&self) {
        self.shared.calm.store(true, Ordering::Release);
    }

    /// How many messages were struck by this.
    #[must_use]
    pub fn made(&self, fault: WireFault) -> u64 {
        self.shared.made[fault as usize].load(Ordering::Acquire)
    }

    /// How many messages were struck.
    #[must_use]
    pub fn made_in_all(&self) -> u64 {
        WireFault::ALL.into_iter().map(|fault| self.made(fault)).sum()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToServer,
    ToClient,
}

impl ProxyState {
    fn draw(&self, below: u64) -> u64 {
        let mut state = self.draws.lock().unwrap_or_else(PoisonError::into_inner);
        // splitmix64
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % below.max(1)
    }

    /// What happens to this message.
    fn strike(&self, line: &[u8], way: Way) -> Option<WireFault> {
        if self.calm.load(Ordering::Acquire) || self.draw(self.one_in) != 0 {
            return None;
        }
        let answers = !has_no_id(line);
        let all = WireFault::ALL;
        // Ends of the connection are a tenth of all, so that something gets through between them.
        let fault = match self.draw(20) {
            0 => WireFault::Cut,
            1 => WireFault::Half,
            drawn => all[2 + usize::try_from(drawn % 4).unwrap_or(0)],
        };
        let fault = match fault {
            WireFault::Double | WireFault::Swap if way == Way::ToServer => WireFault::Delay,
            WireFault::Lose if way == Way::ToServer || answers => WireFault::Delay,
            other => other,
        };
        self.made[fault as usize].fetch_add(1, Ordering::AcqRel);
        Some(fault)
    }

    /// Carries messages one way until the connection ends.
    async fn carry(&self, reader: impl AsyncRead + Unpin, mut writer: impl AsyncWrite + Unpin, way: Way) {
        let mut lines = LineReader::after(&[], reader).up_to(LINE_MOST);
        let mut held: Option<Bytes> = None;
        loop {
            let next = match &held {
                Some(_) => tokio::time::timeout(Duration::from_millis(HELD_MS), lines.next()).await,
                None => Ok(lines.next().await),
            };
            let line = match next {
                Ok(Ok(Some(line))) => line,
                Ok(_) => return,
                // Nothing came that it could have been swapped with.
                Err(_) => match held.take() {
                    Some(line) => {
                        if write(&mut writer, &line).await.is_err() {
                            return;
                        }
                        continue;
                    }
                    None => continue,
                },
            };
            let times = match self.strike(&line, way) {
                None => 1,
                Some(WireFault::Cut) => return,
                Some(WireFault::Half) => {
                    let _ = writer.write_all(&line[..line.len() / 2]).await;
                    let _ = writer.flush().await;
                    return;
                }
                Some(WireFault::Delay) => {
                    tokio::time::sleep(Duration::from_millis(self.draw(HELD_MS) / 8)).await;
                    1
                }
                Some(WireFault::Double) => 2,
                Some(WireFault::Swap) if held.is_none() => {
                    held = Some(line);
                    continue;
                }
                Some(WireFault::Swap) => 1,
                Some(WireFault::Lose) => 0,
            };
            for _ in 0..times {
                if write(&mut writer, &line).await.is_err() {
                    return;
                }
            }
            if let Some(line) = held.take()
                && write(&mut writer, &line).await.is_err()
            {
                return;
            }
        }
    }
}

/// Whether the message announces something, rather than asking or answering.
fn has_no_id(line: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Id {
        id: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_slice::<Id>(line).is_ok_and(|message| message.id.is_none())
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), line: &[u8]) -> io::Result<()> {
    writer.write_all(line).await?;
    writer.write_all(b"\n").await?;
    writer.flush().await
}
