//! The signals that ask a program to end: TERM, INT, HUP, QUIT.
//!
//! Owns: hearing them. May not know: what is to be ended first.

use std::io;

use futures_util::future::select_all;
use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind};

/// They are heard from its making on, in place of what the system does with them.
pub(crate) struct EndSignals {
    all: Vec<(Signal, unix::Signal)>,
}

impl EndSignals {
    /// # Errors
    ///
    /// When the system lets none be heard.
    pub(crate) fn begin() -> io::Result<Self> {
        let kinds = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT].into_iter();
        let heard = kinds.map(|kind| Ok((kind, unix::signal(SignalKind::from_raw(kind.as_raw()))?)));
        Ok(Self { all: heard.collect::<io::Result<_>>()? })
    }

    /// The next one.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub(crate) async fn any(&mut self) -> Signal {
        let heard = self.all.iter_mut().map(|(kind, signal)| {
            Box::pin(async move {
                signal.recv().await;
                *kind
            })
        });
        select_all(heard).await.0
    }
}
