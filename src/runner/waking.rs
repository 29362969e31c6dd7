//! What wakes a runner that waits: its host, signals, the store.
//!
//! Owns: the signals, whether the host is there, and how each is told to the core. May not know: what the runner waits for.
//!
//! Invariant: everything that is heard goes to [`RunnerCore`](super::RunnerCore), which alone says that a job is to end.

use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Runner;
use super::core::HostSeen;
use crate::jobs::host_lock::HostLock;

/// How often the store is looked at for a cancel by another process.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Whether the host that started this runner still holds its end of the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Host {
    There,
    Gone,
}

pub(super) struct Signals {
    pub(super) terminate: Signal,
    pub(super) hangup: Signal,
    pub(super) look: Signal,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            look: signal(SignalKind::user_defined1())?,
        })
    }
}

impl Runner {
    /// Heeds a request to end that a pause has noted.
    pub(super) async fn heed(&mut self) {
        if std::mem::take(&mut self.ask_pending) {
            self.asked_to_end().await;
        }
    }

    /// Waits for whatever wakes a runner, at most `limit`.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only notes what it heard.
    pub(super) async fn pause(&mut self, limit: Duration) {
        tokio::select! {
            Some(()) = self.asked.recv() => self.ask_pending = true,
            _ = self.server.peer_gone(), if self.host == Host::There => self.host_went(),
            _ = self.signals.terminate.recv() => self.core.told_to_stop(),
            _ = self.signals.hangup.recv() => {}
            _ = self.signals.look.recv() => {}
            () = tokio::time::sleep(limit) => {}
        }
    }

    pub(super) fn host_went(&mut self) {
        self.host = Host::Gone;
        self.core.host_went(Instant::now());
    }

    /// Looks whether a host lives that has adopted the job. Nothing is looked at while the pipe is open.
    pub(super) fn look_for_host(&mut self) {
        if let Some(host) = self.core.host_to_look_for() {
            let lives = HostLock::lives(&self.options.dir, host);
            let seen = if lives { HostSeen::Alive } else { HostSeen::Gone };
            self.core.looked_for_host(host, seen, Instant::now());
        }
    }

    pub(super) async fn asked_to_end(&mut self) {
        // The host records why before it asks.
        let recorded = self.store.glance(self.options.job).await.ok().and_then(|glance| glance.cancel_requested);
        self.core.asked_to_end(recorded);
    }

    /// Looks at the store and the clocks; true when the job is to end.
    pub(super) async fn look(&mut self) -> bool {
        // A store that cannot be looked at for a moment does not end a run that is paid for already.
        if let Ok(glance) = self.store.glance(self.options.job).await {
            self.core.glanced(&glance);
        }
        self.look_for_host();
        self.core.tick(Instant::now()).is_some()
    }
}
