//! What a client does not hear, and how its connection ends.
//!
//! Owns: silence, whether it reads, the end of the other side, what is told the laws. May not know: what was asked.

#![expect(clippy::panic, clippy::expect_used, reason = "what a client waits for in vain fails the case")]

use std::process::ExitStatus;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Child;

use super::{End, Exchange, Reading, Sent, TestClient};
use crate::actors::sessions::messages::SessionEnd;
use crate::base::fault::Fault;

impl TestClient {
    /// Cancels a request, which nobody may answer from here on.
    ///
    /// # Panics
    ///
    /// When it has been answered.
    pub async fn cancel(&mut self, sent: Sent) {
        self.notify("notifications/cancelled", json!({"requestId": sent.0})).await;
        self.expect_silence_about(sent).await;
    }

    /// Nobody answers this request, now or until the connection is over.
    ///
    /// # Panics
    ///
    /// When it has been answered.
    pub async fn expect_silence_about(&mut self, sent: Sent) {
        self.silent.insert(sent.0);
        self.ping().await;
        assert_eq!(self.inbox().answers.get(&sent.0.to_string()), None, "an answer to a cancelled request");
    }

    /// Expects no answer to a request: the connection or the host ends before it.
    pub fn give_up_on(&mut self, sent: Sent) {
        self.silent.insert(sent.0);
    }

    /// Takes the answers to a request whose id the case chose itself, by the JSON text of the id.
    pub fn answers_to(&mut self, id: &str) -> Vec<Value> {
        self.inbox().answers.remove(id).unwrap_or_default()
    }

    /// Notifications of this method so far.
    #[must_use]
    pub fn notifications(&self, method: &str) -> Vec<Value> {
        self.inbox().notifications.iter().filter(|note| note["method"] == method).cloned().collect()
    }

    /// The codes of the errors that could not be tied to a request, once there are this many; they are taken.
    ///
    /// # Panics
    ///
    /// When there are fewer.
    pub async fn errors_without_id(&mut self, count: usize) -> Vec<i64> {
        self.wait_for(&format!("{count} errors without an id"), |inbox| {
            (inbox.answers.get("null").map_or(0, Vec::len) >= count).then_some(())
        })
        .await;
        let errors = self.answers_to("null");
        errors.iter().filter_map(|error| error["error"]["code"].as_i64()).collect()
    }

    /// Lets the client read, or not, while it is busy elsewhere.
    #[must_use]
    pub fn reading(&self) -> Reading {
        self.reading.clone()
    }

    /// Takes nothing more from the stream until [`TestClient::read_on`].
    pub fn stop_reading(&self) {
        self.reading.pause();
    }

    /// Reads on.
    pub fn read_on(&self) {
        self.reading.go_on();
    }

    /// Ends the input.
    pub async fn hang_up(&mut self) {
        if let Some(mut input) = self.input.take() {
            self.dropped = self.end == End::AfterUs && self.inbox().closed;
            // Whoever is gone needs no end of input.
            let _ = input.shutdown().await;
        }
    }

    /// Waits until nothing more is said.
    ///
    /// # Panics
    ///
    /// When the output stays open.
    pub async fn silence(&self) {
        self.wait_for("the end of the output", |inbox| inbox.closed.then_some(())).await;
    }

    /// The host may end at any time and in any way from here on: a fault plan or a signal takes it.
    pub fn expect_end(&mut self) {
        self.end = End::Anyhow;
    }

    /// The host's pid.
    ///
    /// # Panics
    ///
    /// When it has none: it is this process, or it has ended and was waited for.
    #[must_use]
    pub fn host_pid(&self) -> Pid {
        let pid = self.host.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        pid.expect("a host in a process of its own")
    }

    /// Signals the host, which may end from here on; after SIGKILL and its like, in any way.
    ///
    /// # Panics
    ///
    /// When there is no host's process.
    pub fn signal(&mut self, signal: Signal) {
        let asked = [Signal::TERM, Signal::INT, Signal::HUP];
        let harmless = [Signal::STOP, Signal::CONT];
        if !harmless.contains(&signal) {
            self.end = self.end.max(if asked.contains(&signal) { End::Well } else { End::Anyhow });
        }
        kill_process(self.host_pid(), signal).expect("the host is signalled");
    }

    /// Waits for the host's end.
    ///
    /// # Panics
    ///
    /// When it does not end.
    pub async fn exit(&mut self) -> ExitStatus {
        let host = self.host.as_mut().expect("a host in a process of its own");
        let ended = tokio::time::timeout(self.patience, host.wait()).await;
        let Ok(ended) = ended else { panic!("the host did not end in {:?}; {}", self.patience, self.seen()) };
        ended.expect("the host is waited for")
    }

    /// Waits for the end of the connection, as a system in this process tells it.
    ///
    /// # Panics
    ///
    /// When it does not end, or is a process's.
    pub async fn served(&mut self) -> Result<SessionEnd, Fault> {
        let serving = self.serving.as_mut().expect("a system in this process");
        let ended = tokio::time::timeout(self.patience, serving).await.expect("the connection ends");
        self.serving = None;
        ended.expect("serving does not panic")
    }

    /// Hangs up, waits for the end of the output and of the host, and expects both to be well unless something else
    /// was announced.
    ///
    /// # Panics
    ///
    /// When they do not end, or end badly.
    pub async fn finish(&mut self) {
        self.hang_up().await;
        if self.host.is_some() {
            let status = self.exit().await;
            assert!(status.success() || self.end == End::Anyhow, "the host ended with {status}");
        }
        self.silence().await;
    }

    /// What was asked and told so far, for the laws.
    #[must_use]
    pub fn exchange(&self) -> Exchange {
        let inbox = self.inbox();
        Exchange {
            asked: self.last,
            silent: self.silent.clone(),
            answers: inbox.answers.clone(),
            broken: inbox.broken.clone(),
            dropped: self.dropped,
            generations: self.generations.clone(),
            totals: self.totals.clone(),
        }
    }
}
