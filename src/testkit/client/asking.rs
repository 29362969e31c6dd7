//! What a client asks, and waits for.
//!
//! Owns: the waits for answers, and the calls a story is told with. May not know: how lines are written.

#![expect(clippy::panic, reason = "what a client waits for in vain fails the case")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::inbox::Inbox;
use super::{Reply, Sent, TestClient};
use crate::testkit::wait::Waiting;

impl TestClient {
    /// The answer to a request.
    ///
    /// # Panics
    ///
    /// When none comes.
    pub async fn answer(&self, sent: Sent) -> Value {
        let answer = self.answer_or_end(sent).await;
        answer.unwrap_or_else(|| panic!("no answer to request {} came; last seen: {}", sent.0, self.seen()))
    }

    /// The answer to a request; `None` when the connection ends without one.
    ///
    /// # Panics
    ///
    /// When neither comes.
    pub async fn answer_or_end(&self, sent: Sent) -> Option<Value> {
        let key = sent.0.to_string();
        let look = |inbox: &Inbox| match inbox.answers.get(&key).and_then(|answers| answers.first()) {
            Some(answer) => Some(Some(answer.clone())),
            None => inbox.closed.then_some(None),
        };
        self.wait_for(&format!("the answer to request {key}"), look).await
    }

    /// Whether a request has been answered by now.
    #[must_use]
    pub fn is_answered(&self, sent: Sent) -> bool {
        self.inbox().answers.contains_key(&sent.0.to_string())
    }

    /// Whether the other side has ended the connection.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.inbox().closed
    }

    /// The reply to a tool call.
    ///
    /// # Panics
    ///
    /// When none comes.
    pub async fn reply(&self, sent: Sent) -> Reply {
        Reply(self.answer(sent).await)
    }

    /// The reply to a tool call, once: what it says is given away, and only that it came is kept for the laws. For cases
    /// whose answers are more than memory should hold.
    ///
    /// # Panics
    ///
    /// When none comes.
    pub async fn take(&self, sent: Sent) -> Reply {
        let key = sent.0.to_string();
        let look = |inbox: &Inbox| inbox.answers.contains_key(&key).then_some(());
        self.wait_for(&format!("the answer to request {key}"), look).await;
        let mut inbox = self.inbox();
        Reply(
            inbox.answers.get_mut(&key).and_then(|answers| answers.first_mut()).map(std::mem::take).unwrap_or_default(),
        )
    }

    /// The answer to a request, if it has come by now.
    #[must_use]
    pub fn answered(&self, sent: Sent) -> Option<Reply> {
        self.inbox().answers.get(&sent.0.to_string())?.first().cloned().map(Reply)
    }

    /// The answer to a request, if it comes within this time.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    pub async fn answered_within(&self, sent: Sent, limit: Duration) -> Option<Reply> {
        let until = Instant::now() + limit;
        loop {
            let heard = self.inbox.1.notified();
            if let Some(reply) = self.answered(sent) {
                return Some(reply);
            }
            let left = until.checked_duration_since(Instant::now())?;
            let _ = tokio::time::timeout(left, heard).await;
        }
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Panics
    ///
    /// When none comes.
    pub async fn request(&mut self, method: &str, params: Value) -> Value {
        let sent = self.send(method, params).await;
        self.answer(sent).await
    }

    /// Calls a tool and waits for its reply.
    ///
    /// # Panics
    ///
    /// When none comes.
    pub async fn call(&mut self, tool: &str, arguments: Value) -> Reply {
        let sent = self.start(tool, arguments).await;
        self.reply(sent).await
    }

    /// A consult with nothing but a prompt.
    ///
    /// # Panics
    ///
    /// When no reply comes.
    pub async fn consult(&mut self, prompt: &str) -> Reply {
        self.call("consult", json!({"prompt": prompt})).await
    }

    /// A background consult; returns its job.
    ///
    /// # Panics
    ///
    /// When it is not accepted.
    pub async fn consult_in_background(&mut self, prompt: &str) -> String {
        let reply = self.call("consult", json!({"prompt": prompt, "background": true})).await;
        assert!(!reply.is_error() && reply.str("mode") == "background", "not accepted: {:#}", reply.0);
        reply.str("job_id").to_owned()
    }

    /// Waits for a job's end.
    ///
    /// # Panics
    ///
    /// When no reply comes.
    pub async fn job(&mut self, job: &str) -> Reply {
        self.call("consult_job", json!({"job_id": job, "wait_s": 60})).await
    }

    /// The legacy handshake; returns the answer to `initialize`.
    ///
    /// # Panics
    ///
    /// When no answer comes.
    pub async fn handshake(&mut self, version: &str) -> Value {
        let sent = self.send_greeting(version).await;
        let answer = self.answer(sent).await;
        self.notify("notifications/initialized", json!({})).await;
        answer
    }

    /// The session is alive: it answers at once.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub async fn ping(&mut self) {
        let answer = self.request("ping", json!({})).await;
        assert_eq!(answer["result"], json!({}), "the answer to a ping: {answer}");
    }

    /// `health_snapshot`, in full.
    ///
    /// # Panics
    ///
    /// When no reply comes.
    pub async fn health(&mut self) -> Reply {
        let reply = self.call("health_snapshot", json!({"detail": "full"})).await;
        self.keep(&reply);
        reply
    }

    /// Keeps what a reply says of generations and totals, for the laws.
    pub fn keep(&mut self, reply: &Reply) {
        self.generations.extend(reply["worker_generation"].as_u64());
        self.totals
            .extend(reply.0["result"]["structuredContent"].get("totals").filter(|totals| totals.is_object()).cloned());
    }

    /// The newest generation of the worker, by health; 0 while none was needed.
    ///
    /// # Panics
    ///
    /// When health does not say.
    pub async fn generation(&mut self) -> u64 {
        self.health().await.number("worker_generation")
    }

    /// Waits until a worker of this generation or a later one is there, and returns the health that said so.
    ///
    /// # Panics
    ///
    /// When none comes.
    pub async fn wait_for_generation(&mut self, generation: u64) -> Reply {
        let waiting = Waiting::until(format!("a worker of generation {generation} is there"), self.patience);
        loop {
            let health = self.health().await;
            if health["worker_alive"] == true && health["worker_generation"].as_u64() >= Some(generation) {
                return health;
            }
            waiting.again(|| format!("{:#}", health.0)).await;
        }
    }

    /// The totals of `telemetry_snapshot`: requests, successes, retries, restarts, dropped, ….
    ///
    /// # Panics
    ///
    /// When there are none.
    pub async fn totals(&mut self) -> Value {
        let reply = self.call("telemetry_snapshot", json!({})).await;
        let totals = reply["totals"].clone();
        assert!(totals.is_object(), "no totals in {:#}", reply.0);
        self.keep(&reply);
        totals
    }
}
