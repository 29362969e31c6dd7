//! A connection to a system in this process.
//!
//! Owns: with how much room, as whom and whether reading it is made. May not know: what is said by it.

use std::sync::Arc;

use tokio::sync::watch;

use super::{REVISION, TestClient};
use crate::system::System;
use crate::tools::callers::CallerContext;

/// A connection to be made to a system in this process.
#[derive(Clone)]
pub struct Connecting<'a> {
    pub(super) system: &'a System,
    pub(super) context: Option<CallerContext>,
    pub(super) buffer: usize,
    pub(super) reads: bool,
}

impl Connecting<'_> {
    /// With room for this many bytes each way.
    #[must_use]
    pub fn buffer(mut self, bytes: usize) -> Self {
        self.buffer = bytes;
        self
    }

    /// As a client that takes nothing from its stream until it is told to ([`TestClient::read_on`]).
    #[must_use]
    pub fn not_reading(mut self) -> Self {
        self.reads = false;
        self
    }

    /// As a client with a directory, an environment and a configuration of its own.
    #[must_use]
    #[doc(hidden)]
    pub fn from(mut self, context: CallerContext) -> Self {
        self.context = Some(context);
        self
    }

    /// Connects without a word.
    #[must_use]
    pub fn open(self) -> TestClient {
        let (ours, theirs) = tokio::io::duplex(self.buffer);
        let (input, output) = tokio::io::split(theirs);
        let system = self.system.clone();
        let context = self.context;
        let serving = tokio::spawn(async move {
            match context {
                Some(context) => system.serve_as(context, input, output).await,
                None => system.serve(input, output).await,
            }
        });
        let (output, input) = tokio::io::split(ours);
        let mut client = TestClient::over(output, input, self.reads);
        client.serving = Some(serving);
        client
    }

    /// Connects and greets. A client that does not read cannot hear the answer: open it and write the greeting.
    pub async fn greet(self) -> TestClient {
        let mut client = self.open();
        client.handshake(REVISION).await;
        client
    }
}

/// Makes a client read or not, while the client itself is busy elsewhere.
#[derive(Debug, Clone)]
pub struct Reading(pub(super) Arc<watch::Sender<bool>>);

impl Reading {
    /// Takes nothing more from the stream; a line that is being read is read to its end.
    pub fn pause(&self) {
        self.0.send_replace(false);
    }

    /// Reads on.
    pub fn go_on(&self) {
        self.0.send_replace(true);
    }
}
