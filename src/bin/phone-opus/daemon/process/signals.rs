//! The signals a daemon hears.
//!
//! Owns: which ones. May not know: what follows from them.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::begin::{self, Kind};
use crate::settings::SetupError;

/// The signals a daemon hears.
pub(super) struct Signals {
    pub(super) ends: [Signal; 3],
    pub(super) look: Signal,
    pub(super) reload: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, SetupError> {
        let hear = |kind| signal(kind).map_err(SetupError::Runtime);
        let signals = Self {
            ends: [hear(SignalKind::terminate())?, hear(SignalKind::interrupt())?, hear(SignalKind::quit())?],
            look: hear(SignalKind::hangup())?,
            reload: hear(SignalKind::user_defined2())?,
        };
        begin::ignore(Kind::Server)?;
        Ok(signals)
    }

    pub(super) async fn end(ends: &mut [Signal; 3]) {
        let [first, second, third] = ends;
        tokio::select! {
            _ = first.recv() => {}
            _ = second.recv() => {}
            _ = third.recv() => {}
        }
    }
}
